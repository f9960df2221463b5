//! The live mailboxes of the user, read natively.

use super::decide::Flags;
use crate::cyrus::config::MetaFile;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{IndexView, Record};
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::mboxlist::{MailboxEntry, MailboxList};
use crate::cyrus::name::{MailboxName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::host::{Host, read_locked};
use crate::inventory::flags;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// How long the lock of an index is waited for.
const INDEX_WAIT: Duration = Duration::from_secs(10);

/// The live mailboxes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Why.
    #[error("{0}")]
    Unreadable(String),
}

/// The mailboxes of the user.
#[derive(Debug)]
pub struct Tree {
    entries: BTreeMap<MailboxName, MailboxEntry>,
    names: BTreeMap<String, MailboxName>,
}

impl Tree {
    /// Reads them.
    pub fn read(host: &Host, top: &MailboxName) -> Result<Self, LiveError> {
        let failed = |e: &dyn std::fmt::Display| LiveError::Unreadable(e.to_string());
        let database = host.mailboxes().map_err(|e| failed(&e))?;
        let list = MailboxList::from_database(&database).map_err(|e| failed(&e))?;
        let entries = list.tree(top).map_err(|e| failed(&e))?;
        let entries = entries.into_iter().filter(|e| !e.is_deleted());
        let entries: BTreeMap<_, _> = entries.map(|e| (e.name.clone(), e)).collect();
        let names = entries.values().filter(|e| e.uniqueid.is_some());
        let names = names.map(|e| (id_of(e), e.name.clone())).collect();
        Ok(Self { entries, names })
    }

    /// The mailbox with a uniqueid.
    pub fn by_id(&self, id: &str) -> Option<&MailboxEntry> {
        self.entries.get(self.names.get(id)?)
    }

    /// The mailbox of a name.
    pub fn by_name(&self, name: &MailboxName) -> Option<&MailboxEntry> {
        self.entries.get(name)
    }
}

/// A live mailbox's index and the names of its keywords.
pub struct Mailbox {
    index: Bytes,
    names: MailboxHeader,
    /// Whether its records know what is seen.
    seen: bool,
}

impl Mailbox {
    /// Reads it.
    pub fn read(host: &Host, entry: &MailboxEntry) -> Result<Self, LiveError> {
        let failed =
            |text: String| LiveError::Unreadable(format!("{}: {text}", host.external(&entry.name)));
        let (Some(id), Some(partition)) = (&entry.uniqueid, &entry.partition) else {
            return Err(failed("it has no directory".into()));
        };
        let style = style(host, entry, id);
        let layout = Layout::new(&host.config);
        let path = |file| layout.meta_file(file, &entry.name, style, partition);
        let at =
            |path: &Path, e: &dyn std::fmt::Display| failed(format!("{}: {e}", path.display()));
        let index_path = path(MetaFile::Index).map_err(|e| failed(e.to_string()))?;
        let header_path = path(MetaFile::Header).map_err(|e| failed(e.to_string()))?;
        let index = read_locked(&index_path, INDEX_WAIT).map_err(|e| at(&index_path, &e))?;
        let view = IndexView::parse(&index).map_err(|e| at(&index_path, &e))?;
        let seen = view.header().shares_seen() || entry.name.is_user();
        // After the index: a keyword has its name before a message has it.
        let header = std::fs::read(&header_path).map_err(|e| at(&header_path, &e))?;
        let names = MailboxHeader::parse(&header).map_err(|e| at(&header_path, &e))?;
        Ok(Self { index, names, seen })
    }

    /// Its index.
    pub fn view(&self) -> Result<IndexView<'_>, LiveError> {
        IndexView::parse(&self.index).map_err(|e| LiveError::Unreadable(e.to_string()))
    }

    /// The flags of a message.
    pub fn flags(&self, record: &Record) -> Flags {
        flags(record, &self.names, self.seen).map(<[u8]>::to_vec).collect()
    }
}

/// The bytes of a message; `None` when its file is not there.
pub fn message(host: &Host, entry: &MailboxEntry, uid: u32) -> Option<Vec<u8>> {
    let (id, partition) = (entry.uniqueid.as_ref()?, entry.partition.as_ref()?);
    let layout = Layout::new(&host.config);
    let style = style(host, entry, id);
    let directories = [
        layout.mailbox_dir(&entry.name, style, partition),
        layout.archive_dir(&entry.name, style, partition),
    ];
    directories.into_iter().find_map(|d| std::fs::read(d.ok()?.join(format!("{uid}."))).ok())
}

/// The uniqueid of a mailbox, as text.
pub fn id_of(entry: &MailboxEntry) -> String {
    entry.uniqueid.as_ref().map(UniqueId::as_str).unwrap_or_default().to_owned()
}

/// How a mailbox's directories are named.
fn style<'a>(host: &Host, entry: &MailboxEntry, id: &'a UniqueId) -> DirStyle<'a> {
    match entry.mbtype.has(Flag::LegacyDirs) {
        true => DirStyle::Name,
        false => host.style(id),
    }
}
