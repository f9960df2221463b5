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

use super::inventory::Listing;
use crate::cyrus::config::DbKind;
use crate::cyrus::config::MetaFile;
use crate::cyrus::db::Engine;
use crate::cyrus::mboxlist::edit::{RecordEdit, ServerEdit};
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::path::Layout;
use crate::host::Host;
use crate::host::tools::DbOp;
use crate::moves::MoveId;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A key of mailboxes.db, the record that was, and what it becomes (none: removed).
type Change = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// Everything that retiring does.
#[derive(Debug)]
pub struct Retirement {
    changes: Vec<Change>,
    renames: Vec<(PathBuf, PathBuf)>,
    saved: PathBuf,
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
        let moving = RecordEdit {
            server: ServerEdit::Set(server.to_owned()),
            add: vec![Flag::Moving],
            ..RecordEdit::default()
        };
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
        Ok(Self { changes, renames, saved: directory.join("retired.records") })
    }

    /// Retires. The caller holds the freeze.
    pub fn execute(&self, host: &Host) -> Result<(), RetireError> {
        self.save()?;
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
        for (from, to) in &self.renames {
            rename(from, to)?;
        }
        let parents: BTreeSet<&Path> = self
            .renames
            .iter()
            .flat_map(|(from, to)| [from.parent(), to.parent()])
            .flatten()
            .collect();
        for parent in parents.into_iter().filter(|p| p.is_dir()) {
            File::open(parent).and_then(|d| d.sync_all()).map_err(io("sync", parent))?;
        }
        Ok(())
    }

    fn is_committed(&self, host: &Host) -> Result<bool, RetireError> {
        let database = host.mailboxes().map_err(|e| RetireError::Database(e.to_string()))?;
        for (key, _, new) in &self.changes {
            let now = database.get(key).map_err(|e| RetireError::Database(e.to_string()))?;
            if now.as_deref() != new.as_deref() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes the old records down, in the order of keys: length and bytes of
    /// the key, length and bytes of the value, lengths as u32, big endian.
    fn save(&self) -> Result<(), RetireError> {
        let directory = self.saved.parent().unwrap_or(&self.saved);
        std::fs::create_dir_all(directory).map_err(io("make", directory))?;
        let mut bytes = Vec::new();
        for field in self.changes.iter().flat_map(|(key, old, _)| [key, old]) {
            bytes.extend((field.len() as u32).to_be_bytes());
            bytes.extend(field);
        }
        let temporary = self.saved.with_extension("new");
        let mut file = File::create(&temporary).map_err(io("make", &temporary))?;
        file.write_all(&bytes)
            .and_then(|()| file.write_all(blake3::hash(&bytes).as_bytes()))
            .and_then(|()| file.sync_all())
            .map_err(io("write", &temporary))?;
        std::fs::rename(&temporary, &self.saved).map_err(io("rename", &temporary))?;
        File::open(directory).and_then(|d| d.sync_all()).map_err(io("sync", directory))
    }
}

/// Which directories and files go where: below a holding place on the same
/// filesystem, with the path that they have below their root.
fn renames(
    host: &Host,
    listing: &Listing,
    id: &MoveId,
    directory: &Path,
) -> Result<Vec<(PathBuf, PathBuf)>, String> {
    let layout = Layout::new(&host.config);
    let configdirectory = host.config.configdirectory().map_err(|e| e.to_string())?;
    let mut renames = Vec::new();
    let mut hold = |path: PathBuf, root: &Path, place: PathBuf| {
        if let Ok(relative) = path.strip_prefix(root) {
            let to = place.join("retired").join(relative);
            if !renames.iter().any(|(from, _)| *from == path) {
                renames.push((path, to));
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
        let path = layout.user_dir(&inbox.id).map_err(|e| e.to_string())?;
        hold(path, &configdirectory, directory.to_path_buf());
        let user = listing.top.userid();
        let sieve = user.and_then(|u| layout.sieve_dir(&u, inbox.style()).ok().flatten());
        if let Some(sieve) = sieve {
            let root = host.config.sievedir();
            hold(sieve, &root, ours(&root));
        }
    }
    renames.retain(|(from, to)| from.symlink_metadata().is_ok() || to.symlink_metadata().is_ok());
    Ok(renames)
}

fn rename(from: &Path, to: &Path) -> Result<(), RetireError> {
    if from.symlink_metadata().is_err() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io("make", parent))?;
    }
    std::fs::rename(from, to).map_err(io("rename", from))
}

fn io<'a>(verb: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RetireError + 'a {
    move |source| RetireError::Io { verb, path: path.into(), source }
}
