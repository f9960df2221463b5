//! What freezes a user on this server.

use super::inventory::Listing;
use crate::cyrus::config::MetaFile;
use crate::cyrus::lock::opens_take_user_lock;
use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::{DirStyle, Layout};
use crate::fault::{Sabotage, sabotaged};
use crate::host::userlock::{LockError, UserLock};
use crate::host::{Host, indexlock};
use std::path::PathBuf;
use std::time::Duration;

/// The locks that freeze a user, or a shared tree.
#[derive(Debug, PartialEq, Eq)]
pub enum Locks {
    /// Everything that opens a mailbox takes one of these; none for a disk on which
    /// nothing runs.
    Named(Vec<PathBuf>),
    /// Whoever opens a mailbox locks its index, and whoever makes, renames or deletes
    /// one locks the user.
    Indexes {
        /// The user's lock.
        user: PathBuf,
        /// The top mailbox.
        top: MailboxName,
    },
}

impl Locks {
    /// Those of this server.
    pub fn of(host: &Host, listing: &Listing) -> Result<Self, LockError> {
        let top = &listing.top;
        if host.offline.is_some() {
            return Ok(Self::Named(Vec::new()));
        }
        if host.release().is_some_and(|release| !opens_take_user_lock(release)) {
            return Ok(Self::Indexes { user: host.user_lock_path(top)?, top: top.clone() });
        }
        let mailboxes = listing.mailboxes.iter().map(|m| (&m.entry.name, m.style()));
        host.freeze_paths(top, mailboxes).map(Self::Named)
    }

    /// Whether they are named after the mailboxes that were listed.
    pub fn is_of_each_mailbox(&self) -> bool {
        matches!(self, Self::Named(_))
    }

    /// Takes them, waiting no longer than `wait` for all of them.
    pub fn take(&self, host: &Host, wait: Duration) -> Result<UserLock, LockError> {
        match self {
            _ if sabotaged(Sabotage::SkipFreeze) => UserLock::take(&[], wait),
            Self::Named(paths) => UserLock::take(paths, wait),
            Self::Indexes { user, top } => {
                indexlock::take(std::slice::from_ref(user), &|| indexes(host, top), wait)
            }
        }
    }

    /// Takes what the top mailbox alone is opened by, to prove it; with its path.
    pub fn take_top(
        &self,
        host: &Host,
        wait: Duration,
    ) -> Result<(UserLock, Vec<PathBuf>), LockError> {
        match self {
            Self::Named(paths) => Ok((UserLock::take(paths, wait)?, paths.clone())),
            Self::Indexes { top, .. } => {
                let mut paths = indexes(host, top)?;
                paths.truncate(1);
                let lock = indexlock::take(&[], &|| Ok(paths.clone()), wait)?;
                Ok((lock, paths))
            }
        }
    }

    /// For people.
    pub fn shown(&self) -> Vec<String> {
        match self {
            Self::Named(paths) => paths.iter().map(|path| path.display().to_string()).collect(),
            Self::Indexes { user, .. } => {
                vec![user.display().to_string(), "cyrus.index of each mailbox".into()]
            }
        }
    }
}

/// The indexes of all of the user's mailboxes on this server, that of the top mailbox
/// first and the others by their names.
fn indexes(host: &Host, top: &MailboxName) -> Result<Vec<PathBuf>, LockError> {
    let unknown = |e: &dyn std::fmt::Display| LockError::Unknown(e.to_string());
    let database = host.mailboxes().map_err(|e| unknown(&e))?;
    let list = MailboxList::from_database(&database).map_err(|e| unknown(&e))?;
    let owned = list.owned(top, &host.config.deletedprefix()).map_err(|e| unknown(&e))?;
    let layout = Layout::new(&host.config);
    let mut named = Vec::new();
    for entry in owned {
        // A retired mailbox has no place here any more.
        let elsewhere = [Flag::Deleted, Flag::Moving, Flag::Remote, Flag::Reserve];
        if elsewhere.iter().any(|flag| entry.mbtype.has(*flag)) {
            continue;
        }
        let Some(partition) = &entry.partition else { continue };
        let path = layout.meta_file(MetaFile::Index, &entry.name, DirStyle::Name, partition);
        let first = entry.name != *top;
        named.push(((first, entry.name), path.map_err(|e| unknown(&e))?));
    }
    named.sort();
    Ok(named.into_iter().map(|(_, path)| path).collect())
}
