//! Locks that conflict with Cyrus's own.
//!
//! Cyrus locks whole files by fcntl (`lib/lock_fcntl.c`). Such a lock is lost
//! when its process closes any descriptor of the file. Open file description
//! locks conflict with them and last exactly as long as one descriptor.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

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
    match control(file, libc::F_OFD_SETLK, mode.kind()) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Locks a whole file, waiting for it up to `limit`; `false` when it was not had, and then
/// `file` is good for nothing but to be closed.
///
/// Cyrus's processes wait in the kernel. Where many of them want a file, it is hardly ever
/// free for somebody who only asks now and then; so this waits there, too, in a thread that
/// lets go of what comes too late.
pub fn lock(file: &File, mode: Mode, limit: Duration) -> io::Result<bool> {
    if try_lock(file, mode)? {
        return Ok(true);
    }
    // The lock belongs to the open file, which both have.
    let waiting = file.try_clone()?;
    let (locked, outcome) = sync_channel(0);
    std::thread::spawn(move || {
        let result = loop {
            match control(&waiting, libc::F_OFD_SETLKW, mode.kind()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        if locked.send(result).is_err() {
            let _ = control(&waiting, libc::F_OFD_SETLK, libc::F_UNLCK);
        }
    });
    outcome.recv_timeout(limit).map_or(Ok(false), |result| result.map(|()| true))
}

/// The error of a lock that was not had.
pub fn stays_locked(waited: Duration) -> io::Error {
    let text = format!("another process has kept it locked for {waited:?}");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

impl Mode {
    fn kind(self) -> libc::c_int {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        }
    }
}

fn control(file: &File, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: a zeroed flock is a valid value; the call reads it and keeps no
    // pointer. No library that we use has these locks on every C library.
    let failed = unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        libc::fcntl(file.as_raw_fd(), command, &lock) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
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

    #[test]
    fn what_comes_too_late_is_let_go_of() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let (first, second) = (open(), open());
        assert!(try_lock(&first, Mode::Exclusive).unwrap());
        assert!(!lock(&second, Mode::Exclusive, Duration::from_millis(5)).unwrap());
        drop(first);
        // `second` is still open.
        assert!(lock(&open(), Mode::Exclusive, Duration::from_secs(5)).unwrap());
    }

    #[test]
    fn who_waits_gets_it_though_others_hold_it_nearly_always() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(file.path()).unwrap();
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        let file = open();
                        control(&file, libc::F_OFD_SETLKW, libc::F_WRLCK).unwrap();
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
            }
            let had = lock(&open(), Mode::Shared, Duration::from_secs(20));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(had.unwrap());
        });
    }
}
