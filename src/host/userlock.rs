//! Cyrus's own locks on a user, or on a shared tree.
//!
//! From 3.4 on everything that opens one of a user's mailboxes takes the user's
//! lock, shared to read and exclusive to write (imap/mailbox.c:
//! mailbox_open_advanced). Held exclusively it makes everybody wait. A mailbox
//! that nobody owns has no such lock: there each mailbox's own lock does the
//! same, and the lock of all that nobody owns keeps new ones from being made.
//! In 3.2 the user's lock only keeps mailboxes from being made, renamed and
//! deleted: see [`indexlock`](super::indexlock).

use super::{Host, ofd};
use crate::cyrus::lock::{Locks, UserLockNaming};
use crate::cyrus::name::{MailboxName, UniqueId};
use crate::cyrus::path::DirStyle;
use crate::cyrus::release::Release;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Locks, held until they are dropped or their process ends.
#[derive(Debug)]
pub struct UserLock {
    files: Vec<File>,
    since: Instant,
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
        let release = self.release().ok_or_else(|| {
            unknown("the version of Cyrus, and so the name of its lock, cannot be told".into())
        })?;
        let naming = UserLockNaming::of_version(release);
        locks
            .user(top, naming)
            .map_err(|e| unknown(e.to_string()))?
            .ok_or_else(|| unknown("this version of Cyrus has no lock on a user".into()))
    }

    /// What freezes these mailboxes: the owner's lock, or for a shared tree the
    /// lock against new mailboxes and each mailbox's own, in one fixed order.
    pub fn freeze_paths<'a>(
        &self,
        top: &MailboxName,
        mailboxes: impl Iterator<Item = (&'a MailboxName, DirStyle<'a>)>,
    ) -> Result<Vec<PathBuf>, LockError> {
        let mut paths = vec![self.user_lock_path(top)?];
        if !top.is_user() {
            let locks = Locks::new(&self.config);
            let each = mailboxes.map(|(name, style)| locks.mailbox(name, style));
            let mut each = each
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| LockError::Unknown(e.to_string()))?;
            each.sort();
            paths.extend(each);
        }
        Ok(paths)
    }

    /// Whether this server finds mailboxes by their ids, as 3.6 and later do, and not by
    /// their names.
    pub fn keeps_by_id(&self) -> bool {
        self.release().is_none_or(|release| Release::of(release).by_id)
    }

    /// How the directories of a mailbox are named here, unless its record says more.
    pub fn style<'a>(&self, id: &'a UniqueId) -> DirStyle<'a> {
        if self.keeps_by_id() { DirStyle::Id(id) } else { DirStyle::Name }
    }

    /// The release of Cyrus's programs, as (major, minor).
    pub fn release(&self) -> Option<(u32, u32)> {
        let version = self.cyrus_version()?;
        let mut numbers = version.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

impl UserLock {
    /// Takes the locks at `paths` exclusively, one after the other, waiting no
    /// longer than `limit` for all of them; on failure none is kept.
    pub fn take(paths: &[PathBuf], limit: Duration) -> Result<Self, LockError> {
        let began = Instant::now();
        let mut files = Vec::new();
        for path in paths {
            let io = |source| LockError::Io { path: path.clone(), source };
            let file = open(path).map_err(io)?;
            let left = limit.saturating_sub(began.elapsed());
            if !ofd::lock(&file, ofd::Mode::Exclusive, left).map_err(io)? {
                return Err(LockError::Busy { path: path.clone(), waited: limit });
            }
            files.push(file);
        }
        Ok(Self { files, since: Instant::now() })
    }

    /// The same with further files that are locked already, the first of them since then.
    pub(super) fn with(mut self, files: Vec<File>, since: Instant) -> Self {
        self.files.extend(files);
        self.since = self.since.min(since);
        self
    }

    /// The files that are locked.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// When somebody may have begun to wait for it.
    pub fn since(&self) -> Instant {
        self.since
    }
}

/// Whether the programs that are started from now on hold these locks, too. One that
/// changes records may outlive this process: whoever waits must not find the records as
/// they were, and go on where nobody looks any more. No program may inherit a lock that it
/// takes itself: it would wait for ever.
pub fn hand_down<'a>(locks: impl IntoIterator<Item = &'a File>, inherited: bool) {
    let flags = match inherited {
        true => rustix::io::FdFlags::empty(),
        false => rustix::io::FdFlags::CLOEXEC,
    };
    for lock in locks {
        // Fails for no file that is open.
        let _ = rustix::io::fcntl_setfd(lock, flags);
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
