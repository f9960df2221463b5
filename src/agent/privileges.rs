//! Becoming the user that Cyrus runs as.
//!
//! An agent that root starts gives its rights up before it reads anything of a
//! mailbox or of its peer: what Cyrus cannot read, mbcopy cannot read, and
//! nothing that it makes has to change hands.

use std::io;

/// Becomes whoever owns `path`, for good, by number: on the disk of another machine
/// names mean nothing. Does nothing when not root, or when root owns it.
pub fn become_owner(path: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let owner = std::fs::metadata(path)?;
    if !rustix::process::geteuid().is_root() || owner.uid() == 0 {
        return Ok(());
    }
    let groups = [owner.gid()];
    // SAFETY: plain system calls, the first on a list of one group that lives as
    // long; in this order, since each needs the rights that the last one drops.
    let failed = unsafe {
        libc::setgroups(groups.len(), groups.as_ptr()) != 0
            || libc::setgid(owner.gid()) != 0
            || libc::setuid(owner.uid()) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Becomes `user` for good, with his groups; does nothing when not root.
///
/// Errors: the user does not exist, or the kernel refuses.
pub fn become_user(user: &str) -> io::Result<()> {
    // The umask holds for everything that the agent makes: mail is private.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let name = std::ffi::CString::new(user)?;
    // SAFETY: `name` is a C string; the entry that getpwnam points to is copied
    // before any other call that could overwrite it, and no other thread runs yet.
    let (uid, gid) = unsafe {
        let entry = libc::getpwnam(name.as_ptr());
        if entry.is_null() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("this server has no user {user:?} to run as"),
            ));
        }
        ((*entry).pw_uid, (*entry).pw_gid)
    };
    // SAFETY: plain system calls; the C library applies them to all threads.
    // In this order, since each needs the rights that the last one drops.
    let failed = unsafe {
        libc::initgroups(name.as_ptr(), gid) != 0
            || libc::setgid(gid) != 0
            || libc::setuid(uid) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}
