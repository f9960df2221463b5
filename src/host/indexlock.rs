//! Locks on the indexes of all mailboxes of a user: what makes everybody wait in 3.2.
//!
//! There nobody takes the user's lock to open a mailbox, only to make, rename or delete
//! one (3.2.6: imap/imapd.c:cmd_create, cmd_delete, cmd_rename; autocreate; cyr_expire).
//! But whoever reads or writes a mailbox locks its cyrus.index (imap/mailbox.c:
//! mailbox_lock_index). So first comes the user's lock, then under it the list of his
//! mailboxes, then each one's index.
//!
//! Whoever waits for an index has looked the mailbox up before. It fails only because
//! the header is not at its path any more (mailbox_lock_index_internal), which is why
//! the directories must be renamed before the records are changed.
//!
//! A process of Cyrus may hold one index and wait for another (COPY, MOVE). Nobody
//! knows in which order, so what is not had soon is let go of, and tried again.

use super::ofd;
use super::userlock::{LockError, UserLock};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long some indexes are held while others are waited for.
const HOLD: Duration = Duration::from_millis(300);

/// How long others may go on before it is tried again.
const PAUSE: Duration = Duration::from_millis(30);

/// Descriptors that this process needs for other things.
const OTHER_FILES: u64 = 256;

/// Locks the user's lock and then, exclusively, the indexes that `indexes` lists under
/// it, in that order; waits no longer than `limit` for all of them. On failure none is
/// kept.
pub fn take(
    user: &[PathBuf],
    indexes: &dyn Fn() -> Result<Vec<PathBuf>, LockError>,
    limit: Duration,
) -> Result<UserLock, LockError> {
    let began = Instant::now();
    loop {
        let left = limit.saturating_sub(began.elapsed());
        let lock = UserLock::take(user, left)?;
        let paths = indexes()?;
        allow_files(paths.len() as u64);
        let since = Instant::now();
        match lock_all(&paths, HOLD.min(left)) {
            Ok(files) => return Ok(lock.with(files, since)),
            Err(LockError::Busy { path, .. }) if began.elapsed() >= limit => {
                return Err(LockError::Busy { path, waited: limit });
            }
            Err(LockError::Busy { .. }) => {}
            Err(e) => return Err(e),
        }
        drop(lock);
        std::thread::sleep(PAUSE);
    }
}

fn lock_all(paths: &[PathBuf], limit: Duration) -> Result<Vec<File>, LockError> {
    let began = Instant::now();
    let mut files = Vec::with_capacity(paths.len());
    for path in paths {
        let locked = lock(path, limit.saturating_sub(began.elapsed()));
        let locked = locked.map_err(|source| LockError::Io { path: path.clone(), source })?;
        files.push(locked.ok_or_else(|| LockError::Busy { path: path.clone(), waited: limit })?);
    }
    Ok(files)
}

/// Locks the index of that name; `None` if it was not had.
fn lock(path: &Path, limit: Duration) -> io::Result<Option<File>> {
    let began = Instant::now();
    loop {
        let file = File::options().read(true).write(true).open(path)?;
        let left = limit.saturating_sub(began.elapsed());
        if !ofd::lock(&file, ofd::Mode::Exclusive, left)? {
            return Ok(None);
        }
        let (opened, named) = (file.metadata()?, std::fs::metadata(path)?);
        // Cyrus puts a new file in its place when it repacks.
        if (opened.dev(), opened.ino()) == (named.dev(), named.ino()) {
            return Ok(Some(file));
        }
    }
}

/// Lets this process have that many files open more, if it may.
fn allow_files(more: u64) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limits = getrlimit(Resource::Nofile);
    let wanted = more + OTHER_FILES;
    if limits.current.is_some_and(|current| current < wanted) {
        limits.current = Some(limits.maximum.map_or(wanted, |most| most.min(wanted)));
        let _ = setrlimit(Resource::Nofile, limits);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn make(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, b"index").unwrap();
        path
    }

    fn try_exclusive(path: &Path) -> bool {
        let file = File::options().read(true).write(true).open(path).unwrap();
        ofd::try_lock(&file, ofd::Mode::Exclusive).unwrap()
    }

    #[test]
    fn all_are_locked_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let user = [dir.path().join("user.lock")];
        let paths = vec![make(dir.path(), "a"), make(dir.path(), "b")];
        let list = || Ok(paths.clone());
        let held = take(&user, &list, Duration::from_millis(50)).unwrap();
        assert!(!paths.iter().chain(&user).any(|path| try_exclusive(path)));
        drop(held);
        let other = File::options().read(true).write(true).open(&paths[1]).unwrap();
        assert!(ofd::try_lock(&other, ofd::Mode::Exclusive).unwrap());
        let busy = take(&user, &list, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(busy, LockError::Busy { path, .. } if path == paths[1]));
        assert!(try_exclusive(&paths[0]) && try_exclusive(&user[0]));
    }

    #[test]
    fn the_index_is_the_one_that_has_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = make(dir.path(), "index");
        let old = File::options().read(true).write(true).open(&path).unwrap();
        assert!(ofd::try_lock(&old, ofd::Mode::Exclusive).unwrap());
        // A repack: a new file of that name, while the old one is waited for.
        let waiting = path.clone();
        let waiter = std::thread::spawn(move || lock(&waiting, Duration::from_secs(5)));
        std::thread::sleep(Duration::from_millis(20));
        let new = make(dir.path(), "index.NEW");
        std::fs::rename(&new, &path).unwrap();
        drop(old);
        let locked = waiter.join().unwrap().unwrap().unwrap();
        assert_eq!(locked.metadata().unwrap().ino(), std::fs::metadata(&path).unwrap().ino());
        assert!(!try_exclusive(&path));
    }
}
