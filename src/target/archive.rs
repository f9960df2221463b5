//! Messages on an archive partition (3.0 and later): the target's own, where it has one for
//! the mailbox's partition; else they are staged as all others.
//!
//! A record's flag tells in which of the two directories Cyrus looks for the message, and
//! in which cyrus.cache for what it has parsed of it (imap/mailbox.c: mailbox_record_fname,
//! mailbox_cachefile). What counts here is where a message is *staged*: it may have been
//! archived on the source since it was copied, or be archived there and not here. So the
//! staged index gets the flag of where each message lies.

use super::offer::{Checked, OfferError};
use super::stage::{Stage, StageError, StagedDirectory};
use crate::cyrus::config::MetaFile;
use crate::cyrus::index::{Record, internal};
use crate::cyrus::path::{DirStyle, Layout};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The archive of a staged mailbox.
#[derive(Debug)]
pub struct Archive {
    /// Where its messages are staged.
    pub directory: Arc<StagedDirectory>,
    /// Where its cyrus.cache is staged, if it has one of its own.
    pub cache: Option<Arc<StagedDirectory>>,
    /// UIDs whose files are staged here, or will be.
    uids: BTreeSet<u32>,
    /// Whether they are others than when the index was told where its messages are.
    pub moved: bool,
}

impl Archive {
    /// Opens the archive of a mailbox; none where this server keeps all messages in one place.
    pub fn open(
        stage: &Stage,
        mailbox: &Checked,
        messages: &Path,
    ) -> Result<Option<Self>, OfferError> {
        let (layout, style) = (Layout::new(&stage.config), DirStyle::Id(&mailbox.id));
        let wrong = |e: crate::cyrus::path::PathError| OfferError::Layout(e.to_string());
        let root = stage.config.archivepartition(&mailbox.partition);
        let Some(root) = root.map_err(|e| OfferError::Layout(e.to_string()))? else {
            return Ok(None);
        };
        let path = layout.archive_dir(&mailbox.name, style, &mailbox.partition).map_err(wrong)?;
        if path == messages {
            return Ok(None);
        }
        let file = |file| layout.meta_file(file, &mailbox.name, style, &mailbox.partition);
        let cache = file(MetaFile::ArchiveCache).map_err(wrong)?;
        let own = cache != file(MetaFile::Cache).map_err(wrong)?;
        let cache_root =
            layout.meta_root(MetaFile::ArchiveCache, &mailbox.partition).map_err(wrong)?;
        let cache = cache.parent().filter(|_| own).map(|path| make(&cache_root, path));
        Ok(Some(Self {
            directory: make(&root, &path)?,
            cache: cache.transpose()?,
            uids: BTreeSet::new(),
            moved: false,
        }))
    }

    /// UIDs whose files are staged here, or will be.
    pub fn uids(&self) -> &BTreeSet<u32> {
        &self.uids
    }

    /// The file of this UID is staged here, or will be.
    pub fn insert(&mut self, uid: u32) {
        self.moved |= self.uids.insert(uid);
    }

    /// The file of this UID is not here any more.
    pub fn remove(&mut self, uid: u32) {
        self.moved |= self.uids.remove(&uid);
    }
}

fn make(root: &Path, path: &Path) -> Result<Arc<StagedDirectory>, OfferError> {
    let made = StagedDirectory::make(root, path.strip_prefix(root).unwrap_or(path));
    let io = |source| StageError::Io { verb: "make", path: path.into(), source };
    Ok(made.map(Arc::new).map_err(io)?)
}

/// Gives a record the flag of where its message is staged, which is the archive if it is
/// `here`; one whose flag changes loses its place in a cache that is another one now, and one
/// in the archive if the archive's cache is not `cached`. Whether that changes it.
pub fn place(record: &mut Record, here: bool, cached: bool) -> bool {
    let right = here == record.is_archived();
    record.internal_flags &= !internal::ARCHIVED;
    if here {
        record.internal_flags |= internal::ARCHIVED;
    }
    let lost = (!right || (here && !cached)) && record.cache_offset > 0;
    if lost {
        record.forget_cache();
    }
    !right || lost
}
