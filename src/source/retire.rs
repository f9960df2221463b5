//! Retiring: making the source's copy unreachable, keeping every byte of it.
//!
//! Under the freeze, in this order:
//!
//! 1. the old records are written to a file, durably, so that they can be put back;
//! 2. **one transaction** marks the live mailboxes as moving to the new server,
//!    and removes the records of those that delayed delete keeps: from here on
//!    every new lookup defers or refers, and nothing bounces;
//! 3. directories and quota roots are renamed into the holding place on the same
//!    filesystem, so that whoever waited inside the old ones fails instead of
//!    writing there;
//! 4. sessions that have the user open are told to go.
//!
//! Each part can be done again: a directory that is in the holding place
//! already was renamed before.

use super::inventory::{Listing, user_places};
use crate::cyrus::config::DbKind;
use crate::cyrus::config::MetaFile;
use crate::cyrus::db::Engine;
use crate::cyrus::mboxlist::edit::{RecordEdit, ServerEdit};
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::name::PartitionName;
use crate::cyrus::path::Layout;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::host::tools::DbOp;
use crate::moves::MoveId;
use crate::moves::sealed::{self, PathBytes};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A partition that no server has. Cyrus does not look at the type of a parent when
/// it creates a folder, but takes the parent's partition (imap/mboxlist.c:
/// mboxlist_create_partition): so nothing can be created below a retired mailbox,
/// where nobody would see it.
const NOWHERE: &str = "mbcopy-retired";

/// A key of mailboxes.db, the record that was, and what it becomes (none: removed).
type Change = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Everything that retiring does, fixed before it begins, so that it can be
/// finished by another process, or put back.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Retirement {
    changes: Vec<Change>,
    renames: Vec<(PathBytes, PathBytes)>,
}

/// Why retiring stopped.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// A file or directory fails.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A record cannot be changed.
    #[error("{0}")]
    Record(String),
    /// mailboxes.db was not changed as it should be.
    #[error("mailboxes.db was not changed: {0}")]
    Database(String),
}

impl Retirement {
    /// What retiring the listed mailboxes to `server` will do.
    pub fn new(
        host: &Host,
        listing: &Listing,
        id: &MoveId,
        server: &str,
    ) -> Result<Self, RetireError> {
        let record = |e: &dyn std::fmt::Display| RetireError::Record(e.to_string());
        let moving = sends_to(server);
        let mut changes = Vec::new();
        for mailbox in &listing.mailboxes {
            let records = [
                (mailbox.entry.key.to_vec(), mailbox.entry.raw.to_vec()),
                (mailbox.id_record.0.to_vec(), mailbox.id_record.1.to_vec()),
            ];
            for (key, old) in records {
                let new = if mailbox.deleted {
                    None
                } else {
                    Some(moving.apply(&old).map_err(|e| record(&e))?)
                };
                changes.push((key, old, new));
            }
        }
        let directory = host
            .config
            .configdirectory()
            .map_err(|e| record(&e))?
            .join("mbcopy/moves")
            .join(id.as_str());
        let renames = renames(host, listing, id, &directory).map_err(|e| record(&e))?;
        Ok(Self { changes, renames })
    }

    /// Whether an earlier process was about to do it.
    pub fn is_planned(host: &Host, id: &MoveId) -> Result<bool, RetireError> {
        Ok(Self::path(host, id)?.exists())
    }

    /// Reads what an earlier process was about to do.
    pub fn load(host: &Host, id: &MoveId) -> Result<Self, RetireError> {
        let path = Self::path(host, id)?;
        sealed::load(&path).map_err(io("read", &path))
    }

    /// The records as they were before: key and value.
    pub fn records(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.changes.iter().map(|(key, old, _)| (key.as_slice(), old.as_slice()))
    }

    fn path(host: &Host, id: &MoveId) -> Result<PathBuf, RetireError> {
        let directory =
            host.config.configdirectory().map_err(|e| RetireError::Record(e.to_string()))?;
        Ok(directory.join("mbcopy/moves").join(id.as_str()).join("retirement"))
    }

    /// Whether its transaction has happened, whatever clients have done before
    /// or since: nobody else makes the records that it makes.
    pub fn has_happened(&self, host: &Host) -> Result<bool, RetireError> {
        let failed = |e: String| RetireError::Database(e);
        let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
        for (key, _, new) in &self.changes {
            let Some(new) = new else { continue };
            let now = database.get(key).map_err(|e| failed(e.to_string()))?;
            if now.as_deref() == Some(new) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes down what is about to be done, durably.
    pub fn save(&self, host: &Host, id: &MoveId) -> Result<(), RetireError> {
        let path = Self::path(host, id)?;
        sealed::save(&path, self).map_err(io("write", &path))
    }

    /// Retires. The caller holds the freeze, and has saved this.
    pub fn execute(&self, host: &Host) -> Result<(), RetireError> {
        let ops: Vec<DbOp<'_>> = self
            .changes
            .iter()
            .map(|(key, _, new)| match new {
                Some(new) => DbOp::Set(key, new),
                None => DbOp::Delete(key),
            })
            .collect();
        let said = host.change(DbKind::Mailboxes, &ops);
        // Only what is read back tells whether the transaction happened.
        if !self.is_committed(host)? {
            let why = said.err().map_or("the records are as before".into(), |e| e.to_string());
            return Err(RetireError::Database(why));
        }
        fault::point(Point::RetireCommitted);
        for (from, to) in &self.renames {
            rename(from.path(), to.path())?;
            fault::point(Point::RetireRenamedOne);
        }
        fault::point(Point::RetireRenamed);
        let parents: BTreeSet<&Path> = self
            .renames
            .iter()
            .flat_map(|(from, to)| [from.path().parent(), to.path().parent()])
            .flatten()
            .collect();
        for parent in parents.into_iter().filter(|p| p.is_dir()) {
            let synced = fault::check(Point::DirectorySync)
                .and_then(|()| File::open(parent))
                .and_then(|directory| directory.sync_all());
            synced.map_err(io("sync", parent))?;
        }
        Ok(())
    }

    /// The records that send clients away, as they were left.
    pub fn left_records(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.changes.iter().filter_map(|(key, _, new)| Some((key.clone(), new.clone()?)))
    }

    /// Where the content of a directory that was live is kept.
    pub fn kept(&self, live: &Path) -> Option<&Path> {
        self.renames.iter().find(|(from, _)| from.path() == live).map(|(_, to)| to.path())
    }

    /// Whether mailboxes.db is as this has left it.
    pub fn is_committed(&self, host: &Host) -> Result<bool, RetireError> {
        let database = host.mailboxes().map_err(|e| RetireError::Database(e.to_string()))?;
        for (key, _, new) in &self.changes {
            let now = database.get(key).map_err(|e| RetireError::Database(e.to_string()))?;
            if now.as_deref() != new.as_deref() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Makes a record one that sends clients to `server`: deliveries are deferred, and
/// everything else is refused.
pub(crate) fn sends_to(server: &str) -> RecordEdit {
    RecordEdit {
        partition: PartitionName::new(NOWHERE).ok(),
        server: ServerEdit::Set(server.to_owned()),
        add: vec![Flag::Moving],
        ..RecordEdit::default()
    }
}

/// Which directories and files go where: below a holding place on the same
/// filesystem, with the path that they have below their root.
fn renames(
    host: &Host,
    listing: &Listing,
    id: &MoveId,
    directory: &Path,
) -> Result<Vec<(PathBytes, PathBytes)>, String> {
    let layout = Layout::new(&host.config);
    let configdirectory = host.config.configdirectory().map_err(|e| e.to_string())?;
    let mut renames = Vec::new();
    let mut hold = |path: PathBuf, root: &Path, place: PathBuf| {
        if let Ok(relative) = path.strip_prefix(root) {
            let to = place.join("retired").join(relative);
            let pair = (PathBytes::from(path.as_path()), PathBytes::from(to.as_path()));
            if !renames.contains(&pair) {
                renames.push(pair);
            }
        }
    };
    let ours = |root: &Path| root.join(".mbcopy").join(id.as_str());
    for mailbox in &listing.mailboxes {
        let Some(partition) = &mailbox.entry.partition else { continue };
        let name = &mailbox.entry.name;
        if let (Some(path), Some(root)) =
            (mailbox.directory(host), host.config.partition(partition))
        {
            hold(path, &root, ours(&root));
        }
        for file in MetaFile::ALL {
            let path = layout.meta_file(file, name, mailbox.style(), partition);
            let root = layout.meta_root(file, partition).map_err(|e| e.to_string())?;
            if let Some(parent) = path.map_err(|e| e.to_string())?.parent() {
                hold(parent.to_path_buf(), &root, ours(&root));
            }
        }
        if !mailbox.deleted && host.config.db_engine(DbKind::Quota) == Engine::QuotaLegacy {
            let path = layout.quota_file(name).map_err(|e| e.to_string())?;
            hold(path, &configdirectory, directory.to_path_buf());
        }
    }
    if let Some(inbox) = listing.inbox() {
        for path in user_places(host, inbox).map_err(|e| e.to_string())? {
            hold(path, &configdirectory, directory.to_path_buf());
        }
        let user = listing.top.userid();
        let sieve = user.and_then(|u| layout.sieve_dir(&u, inbox.style()).ok().flatten());
        if let Some(sieve) = sieve {
            let root = host.config.sievedir();
            hold(sieve, &root, ours(&root));
        }
    }
    renames.retain(|(from, _)| from.path().symlink_metadata().is_ok());
    Ok(renames)
}

fn rename(from: &Path, to: &Path) -> Result<(), RetireError> {
    // What is in its holding place was renamed before; a late client may have made
    // an empty one of that name since, as he does with subscriptions.
    if from.symlink_metadata().is_err() || to.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io("make", parent))?;
    }
    fault::check(Point::Rename).and_then(|()| std::fs::rename(from, to)).map_err(io("rename", from))
}

fn io<'a>(verb: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RetireError + 'a {
    move |source| RetireError::Io { verb, path: path.into(), source }
}
