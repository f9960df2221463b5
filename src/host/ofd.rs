//! Locks that conflict with Cyrus's own.
//!
//! Cyrus locks whole files by fcntl (`lib/lock_fcntl.c`). Such a lock is lost
//! when its process closes any descriptor of the file. Open file description
//! locks conflict with them and last exactly as long as one descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// How a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Against writers.
    Shared,
    /// Against everybody.
    Exclusive,
}

/// Tries to lock a whole file; `false` when somebody else has it.
pub fn try_lock(file: &File, mode: Mode) -> io::Result<bool> {
    let kind = match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    };
    // SAFETY: a zeroed flock is a valid value; the call reads it and keeps no
    // pointer. No library that we use has these locks on every C library.
    let failed = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) != 0
    };
    if !failed {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        e => Err(e),
    }
}

/// Locks a whole file, asking again until `limit`; `false` when it was not had.
pub fn lock(file: &File, mode: Mode, limit: Duration) -> io::Result<bool> {
    let began = Instant::now();
    loop {
        if try_lock(file, mode)? {
            return Ok(true);
        }
        if began.elapsed() >= limit {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_descriptors_of_one_file_exclude_each_other() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        assert!(try_lock(&first, Mode::Shared).unwrap());
        assert!(try_lock(&second, Mode::Shared).unwrap());
        assert!(!try_lock(&second, Mode::Exclusive).unwrap());
        // Another descriptor that is closed does not take the lock with it.
        drop(open());
        drop(first);
        assert!(try_lock(&second, Mode::Exclusive).unwrap());
        assert!(!lock(&open(), Mode::Shared, Duration::from_millis(5)).unwrap());
    }
}
