//! Cyrus's own lock on a user.
//!
//! From 3.4 on everything that opens one of a user's mailboxes takes it,
//! shared to read and exclusive to write (imap/mailbox.c:mailbox_open_advanced).
//! Held exclusively it makes everybody wait.

use super::{Host, ofd};
use crate::cyrus::lock::{Locks, UserLockNaming};
use crate::cyrus::name::MailboxName;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The lock, held until it is dropped or its process ends.
#[derive(Debug)]
pub struct UserLock {
    /// The file.
    pub path: PathBuf,
    _file: File,
}

/// Why a user's lock was not had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody keeps it.
    #[error("the lock {} stays with another process for more than {waited:?}", path.display())]
    Busy {
        /// The file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file cannot be used.
    #[error("the lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Nobody knows what this version locks.
    #[error("{0}")]
    Unknown(String),
}

impl Host {
    /// Where this server's Cyrus locks the owner of the mailbox, or all
    /// mailboxes that nobody owns.
    pub fn user_lock_path(&self, top: &MailboxName) -> Result<PathBuf, LockError> {
        let unknown = |e: String| LockError::Unknown(e);
        let locks = Locks::new(&self.config);
        if !top.is_user() {
            return locks.shared().map_err(|e| unknown(e.to_string()));
        }
        let naming = UserLockNaming::of_version(self.release().unwrap_or((3, 6)));
        locks
            .user(top, naming)
            .map_err(|e| unknown(e.to_string()))?
            .ok_or_else(|| unknown("this version of Cyrus has no lock on a user".into()))
    }

    /// The release of Cyrus's programs, as (major, minor).
    pub fn release(&self) -> Option<(u32, u32)> {
        let version = self.cyrus_version()?;
        let mut numbers = version.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl UserLock {
    /// Takes the lock at `path` exclusively, waiting no longer than `limit`.
    pub fn take(path: PathBuf, limit: Duration) -> Result<Self, LockError> {
        let io = |source| LockError::Io { path: path.clone(), source };
        let file = open(&path).map_err(io)?;
        match ofd::lock(&file, ofd::Mode::Exclusive, limit).map_err(io)? {
            true => Ok(Self { path, _file: file }),
            false => Err(LockError::Busy { path, waited: limit }),
        }
    }
}

/// Opens a lock file as Cyrus does, making it where it is missing
/// (lib/cyr_lock.c, imap/mboxname.c:mboxname_lock). It belongs to the user that
/// Cyrus runs as, since the agent is that user.
fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
