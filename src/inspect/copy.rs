//! The copies of a user that a server can have, and where each lies. A retired
//! copy and a stage have the shape of a live server below directories of their
//! own, so that each is read as a server with another configuration.

use super::{refused, unreadable};
use crate::cyrus::config::{Config, MetaFile};
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::mboxlist::mbtype::{Flag, Mbtype};
use crate::cyrus::mboxlist::{MailboxEntry, MailboxList};
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::host::Host;
use crate::moves::journal::{Entry, state};
use crate::moves::{Journal, MoveId};
use crate::source::inventory::{Listing, Ordinals, SourceMailbox};
use crate::source::mailbox::meta_paths;
use crate::source::old::{Locking, OldDisk};
use crate::source::retire::{RetireError, Retirement};
use crate::target::stage::Stage;
use crate::wire::v1::{self, CopyKind, FileKind};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::ErrorKind::NotFound;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// One copy of a user.
pub struct Copy {
    /// Which.
    pub kind: CopyKind,
    /// The server as this copy's files see it.
    pub files: Host,
    /// The server as this copy's annotations and quota roots see it.
    pub databases: Host,
    /// Its mailboxes.
    pub listing: Listing,
    /// Records of mailboxes that were here.
    pub tombstones: Vec<MailboxEntry>,
    /// Of a server before 3.6: what was converted into the form of 3.6, as long as it is
    /// looked at.
    _converted: Option<(OldDisk, TempDir)>,
}

/// The copies that are here of the user.
pub fn of_user(host: &Host, top: &MailboxName) -> Result<Vec<v1::UserCopy>, v1::Failure> {
    let mut copies = Vec::new();
    let (entries, _) = records(host, top)?;
    let here = match host.keeps_by_id() {
        true => {
            let listing = listing(top, entries.clone())?;
            listing.mailboxes.iter().any(|m| m.entry.name == *top && has_index(host, m))
        }
        false => {
            let index = entries.iter().find(|e| e.name == *top).and_then(|e| old_index(host, e));
            index.is_some_and(|path| path.exists())
        }
    };
    if here {
        let moving = entries.iter().filter(|entry| entry.mbtype.has(Flag::Moving));
        let state = match moving.clone().count() {
            0 => String::new(),
            n => format!("{n} mailboxes are marked as moving to another server"),
        };
        copies.push(v1::UserCopy { kind: CopyKind::Live.into(), state, ..v1::UserCopy::default() });
    }
    for entry in moves(host, top)? {
        let kind = match (entry.role, entry.state.as_str()) {
            (v1::Role::Source, state::RETIRED | state::DONE) => {
                // What was purged is no copy; one that is damaged says so when it is opened.
                match Retirement::load(host, &entry.id) {
                    Err(RetireError::Io { source, .. }) if source.kind() == NotFound => continue,
                    _ => CopyKind::Retired,
                }
            }
            // There its files are by id, and in the form of before.
            (v1::Role::Target, _) if !host.keeps_by_id() => continue,
            (v1::Role::Target, state::PLANNED | state::COPYING | state::PREPARED) => {
                let stage = stage(host, &entry.id)?;
                if !stage.conf.is_dir() {
                    continue;
                }
                CopyKind::Stage
            }
            _ => continue,
        };
        copies.push(v1::UserCopy {
            kind: kind.into(),
            move_id: entry.id.to_string(),
            peer: entry.peer,
            state: entry.state,
        });
    }
    Ok(copies)
}

impl Copy {
    /// Opens a copy of the user.
    pub fn open(host: &Host, top: &MailboxName, open: &v1::OpenCopy) -> Result<Self, v1::Failure> {
        let id = || -> Result<MoveId, v1::Failure> {
            let id = open.move_id.parse();
            id.map_err(|e: crate::moves::id::NotAnId| crate::agent::protocol(e.to_string()))
        };
        let kind = open.kind();
        let as_server = |config| Host::new(host.conf.clone(), config, None, Vec::new());
        let (files, databases, entries, tombstones) = match kind {
            CopyKind::Live => {
                let (entries, tombstones) = records(host, top)?;
                (host.clone(), host.clone(), entries, tombstones)
            }
            CopyKind::Retired => {
                let id = id()?;
                let retirement =
                    Retirement::load(host, &id).map_err(|e| unreadable(e.to_string()))?;
                let files = as_server(retired_config(&host.config, &id).map_err(unreadable)?);
                let by_id = host.keeps_by_id();
                (files, host.clone(), retired_records(&retirement, by_id)?, Vec::new())
            }
            CopyKind::Stage => {
                let files = as_server(stage(host, &id()?)?.config);
                let (mut entries, _) = records(&files, top)?;
                if entries.is_empty() {
                    entries = staged_headers(&files, top);
                }
                (files.clone(), files, entries, Vec::new())
            }
            CopyKind::Unspecified => {
                return Err(crate::agent::protocol("a kind of copy that is not known"));
            }
        };
        let (listing, converted) = match host.keeps_by_id() {
            true => (listing(top, entries)?, None),
            false => {
                let locking =
                    if kind == CopyKind::Live { Locking::Needed } else { Locking::Offline };
                let (listing, old) = converted(&files, top, entries, locking)?;
                (listing, Some(old))
            }
        };
        Ok(Self { kind, files, databases, listing, tombstones, _converted: converted })
    }

    /// Whether Cyrus may change it while it is read.
    pub fn is_live(&self) -> bool {
        self.kind == CopyKind::Live
    }
}

/// The user's records in a mailboxes.db, and those that say that a mailbox was
/// there. Unlike a push, which refuses odd states, a comparison looks at them.
fn records(
    host: &Host,
    top: &MailboxName,
) -> Result<(Vec<MailboxEntry>, Vec<MailboxEntry>), v1::Failure> {
    let failed = |e: String| unreadable(format!("cannot read the list of mailboxes: {e}"));
    let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
    let list = MailboxList::from_database(&database).map_err(|e| failed(e.to_string()))?;
    let owned = list.owned(top, &host.config.deletedprefix()).map_err(|e| failed(e.to_string()))?;
    Ok(owned.into_iter().partition(|entry| !entry.is_deleted()))
}

fn listing(top: &MailboxName, entries: Vec<MailboxEntry>) -> Result<Listing, v1::Failure> {
    let mut mailboxes = Vec::new();
    // The position is the number on the wire.
    for (ordinal, entry) in entries.into_iter().enumerate() {
        let id = entry.uniqueid.clone().ok_or_else(|| {
            refused(
                format!("the record of {} has no uniqueid", entry.name.display()),
                "this version of mbcopy compares mailboxes of Cyrus 3.6 and later",
            )
        })?;
        let deleted = entry.name != *top && !entry.name.is_below(top);
        let id_record = (Bytes::new(), Bytes::new());
        mailboxes.push(SourceMailbox {
            ordinal: ordinal as u32,
            entry,
            id,
            id_record,
            deleted,
            converted: None,
        });
    }
    Ok(Listing { top: top.clone(), mailboxes, converted: None })
}

/// The same of a server before 3.6: everything is converted.
fn converted(
    files: &Host,
    top: &MailboxName,
    entries: Vec<MailboxEntry>,
    locking: Locking,
) -> Result<(Listing, (OldDisk, TempDir)), v1::Failure> {
    let failed = |e: std::io::Error| unreadable(format!("a directory to convert into: {e}"));
    let place = tempfile::tempdir().map_err(failed)?;
    let mut old = OldDisk::new(place.path().join("converted"), locking).map_err(failed)?;
    let (mut ordinals, mut mailboxes) = (Ordinals::new(), Vec::new());
    for mut entry in entries {
        if entry.mbtype.has(Flag::Intermediate) {
            entry.partition = None;
        }
        let deleted = entry.name != *top && !entry.name.is_below(top);
        mailboxes.extend(old.mailbox(files, top, &entry, deleted, &mut ordinals));
    }
    for (ordinal, mailbox) in mailboxes.iter_mut().enumerate() {
        mailbox.ordinal = ordinal as u32;
    }
    let directory = Some(old.directory().to_owned());
    Ok((Listing { top: top.clone(), mailboxes, converted: directory }, (old, place)))
}

fn old_index(host: &Host, entry: &MailboxEntry) -> Option<PathBuf> {
    let partition = entry.partition.as_ref()?;
    let layout = Layout::new(&host.config);
    layout.meta_file(MetaFile::Index, &entry.name, DirStyle::Name, partition).ok()
}

fn has_index(host: &Host, mailbox: &SourceMailbox) -> bool {
    index_path(host, mailbox).is_some_and(|path| path.exists())
}

/// Where a mailbox's index is.
pub fn index_path(host: &Host, mailbox: &SourceMailbox) -> Option<PathBuf> {
    let paths = meta_paths(host, mailbox);
    paths.into_iter().find(|(kind, _)| *kind == FileKind::Index).map(|(_, path)| path)
}

/// What this server's journal knows of the user, newest first.
fn moves(host: &Host, top: &MailboxName) -> Result<Vec<Entry>, v1::Failure> {
    let failed = |e: &dyn std::fmt::Display| unreadable(e.to_string());
    let directory = host.config.configdirectory().map_err(|e| failed(&e))?;
    let journal = Journal::open_existing(&directory).map_err(|e| failed(&e))?;
    let Some(journal) = journal else { return Ok(Vec::new()) };
    let mut moves = journal.of(top.as_bytes()).map_err(|e| failed(&e))?;
    moves.reverse();
    Ok(moves)
}

fn stage(host: &Host, id: &MoveId) -> Result<Stage, v1::Failure> {
    Stage::new(&host.config, id).map_err(|e| unreadable(e.to_string()))
}

/// The configuration that finds what retiring put away: each root is its
/// holding place (`source::retire`).
fn retired_config(live: &Config, id: &MoveId) -> Result<Config, String> {
    let directory = live.configdirectory().map_err(|e| e.to_string())?;
    let held = |root: &Path| root.join(".mbcopy").join(id.as_str()).join("retired");
    let mut overrides = BTreeMap::new();
    let mut set = |option: &str, path: PathBuf| {
        overrides.insert(option.to_owned(), path.display().to_string());
    };
    for (option, value) in live.options() {
        let is_root = ["partition-", "metapartition-", "archivepartition-", "metadir-"];
        if is_root.iter().any(|prefix| option.starts_with(prefix)) {
            set(option, held(Path::new(value)));
        }
    }
    let moves = directory.join("mbcopy/moves").join(id.as_str());
    set("configdirectory", moves.join("retired"));
    set("sievedir", held(&live.sievedir()));
    let text = live.shadow(&overrides).map_err(|e| e.to_string())?;
    Config::parse(text.as_bytes(), live.defaults(), &mut |_| Err("nothing is included".into()))
        .map_err(|e| e.to_string())
}

/// The records that retiring has replaced.
fn retired_records(retirement: &Retirement, by_id: bool) -> Result<Vec<MailboxEntry>, v1::Failure> {
    let mut entries = Vec::new();
    for (key, record) in retirement.records() {
        let name = match (by_id, key.strip_prefix(b"N")) {
            (true, Some(name)) => MailboxName::from_db_key(name),
            (true, None) => continue,
            // One of Cyrus's own lists.
            (false, _) if key.starts_with(b"$") => continue,
            (false, _) => MailboxName::from_internal(key),
        };
        let name = name.map_err(|e| unreadable(e.to_string()))?;
        let (key, record) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(record));
        entries
            .push(MailboxEntry::parse(name, key, record).map_err(|e| unreadable(e.to_string()))?);
    }
    Ok(entries)
}

/// The mailboxes of a stage for which no mailboxes.db was built yet, by what
/// their own headers say.
fn staged_headers(files: &Host, top: &MailboxName) -> Vec<MailboxEntry> {
    let partitions = files.config.partitions().unwrap_or_default();
    let found = partitions.iter().flat_map(|(partition, root)| {
        let root = files.config.metapartition(partition).unwrap_or_else(|| root.clone());
        let files = walkdir::WalkDir::new(root).into_iter().filter_map(Result::ok);
        files
            .filter(|file| file.file_name() == "cyrus.header")
            .filter_map(|file| by_header(file.path(), partition))
    });
    let mut found: Vec<MailboxEntry> = found.collect();
    found.sort_by(|a, b| {
        (a.name != *top, a.name.as_bytes()).cmp(&(b.name != *top, b.name.as_bytes()))
    });
    found
}

/// A mailbox by what its own header says.
pub(super) fn by_header(path: &Path, partition: &PartitionName) -> Option<MailboxEntry> {
    let header = MailboxHeader::parse(&std::fs::read(path).ok()?).ok()?;
    Some(MailboxEntry {
        name: MailboxName::from_internal(&header.name?).ok()?,
        mbtype: Mbtype::from_letters(&header.mbtype.unwrap_or_default()),
        uniqueid: Some(UniqueId::new(&header.uniqueid?).ok()?),
        partition: Some(partition.clone()),
        server: None,
        uidvalidity: 0,
        createdmodseq: 0,
        foldermodseq: 0,
        mtime: 0,
        acl: header.acl.unwrap_or_default(),
        key: Bytes::new(),
        raw: Bytes::new(),
    })
}
