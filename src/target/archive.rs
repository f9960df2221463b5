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
use super::staged::StagedMailbox;
use crate::cyrus::config::MetaFile;
use crate::cyrus::index::{self, IndexView, Record, internal};
use crate::cyrus::path::{DirStyle, Layout};
use crate::wire::v1::FileKind;
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
    pub uids: BTreeSet<u32>,
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
        }))
    }
}

fn make(root: &Path, path: &Path) -> Result<Arc<StagedDirectory>, OfferError> {
    let made = StagedDirectory::make(root, path.strip_prefix(root).unwrap_or(path));
    let io = |source| StageError::Io { verb: "make", path: path.into(), source };
    Ok(made.map(Arc::new).map_err(io)?)
}

/// The index with the flags of where its messages are staged; a record whose flag changes
/// loses its place in a cache that is another one now. `None` if all are right.
pub fn placed(mailbox: &StagedMailbox, index: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let view = IndexView::parse(index).map_err(|e| e.to_string())?;
    let archive = mailbox.archive.as_ref();
    let cached = mailbox.offered.files.contains_key(&FileKind::ArchiveCache);
    let place = |record: &mut Record| {
        let here = archive.is_some_and(|archive| archive.uids.contains(&record.uid));
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
    };
    index::edited(&view, place).map_err(|e| e.to_string())
}
