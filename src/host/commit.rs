//! One writer at a time on a server's shared databases.
//!
//! Cyrus locks each of its databases by itself; many moves at once are made to
//! take turns before that, so that its own processes never stand behind a queue
//! of ours, and no two of our transactions are ever under way on one server.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often the lock is asked for.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// The right to change this server's databases; a kernel lock that ends with
/// the process, and with the programs that it has started.
#[derive(Debug)]
pub struct CommitLock {
    _file: File,
}

impl CommitLock {
    /// Takes it below a state directory, waiting no longer than `limit`.
    ///
    /// Errors: the file cannot be used, or others keep it for so long
    /// ([`io::ErrorKind::TimedOut`]).
    pub fn take(directory: &Path, limit: Duration) -> io::Result<Self> {
        let directory = directory.join("mbcopy");
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let path = directory.join("commit.lock");
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let began = Instant::now();
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        while let Err(errno) = rustix::fs::flock(&file, exclusive) {
            if !matches!(errno, rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) {
                return Err(errno.into());
            }
            if began.elapsed() >= limit {
                let text = format!("other moves keep the lock on it for more than {limit:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            std::thread::sleep(ASK_EVERY);
        }
        // Inherited by the program that writes: an agent that is killed while it
        // runs leaves the lock with it.
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn one_has_it_and_the_others_wait() {
        let dir = tempfile::tempdir().unwrap();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let _lock = CommitLock::take(dir.path(), LONG).unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        std::thread::sleep(Duration::from_millis(1));
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
        });
        let _lock = CommitLock::take(dir.path(), LONG).unwrap();
        let error = CommitLock::take(dir.path(), Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn it_stays_with_the_program_that_writes() {
        let dir = tempfile::tempdir().unwrap();
        let lock = CommitLock::take(dir.path(), LONG).unwrap();
        let mut writer = Command::new("sleep").arg("60").spawn().unwrap();
        drop(lock);
        assert!(CommitLock::take(dir.path(), Duration::from_millis(5)).is_err());
        writer.kill().unwrap();
        writer.wait().unwrap();
        CommitLock::take(dir.path(), LONG).unwrap();
    }
}
