//! All that is here of a user, whatever state it is in: what a move that failed has
//! left would be refused or overlooked by everything else.

use super::{gone, unreadable};
use crate::agent::Sender;
use crate::cyrus::config::MetaFile;
use crate::cyrus::dlist::Dlist;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::IndexView;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::mboxlist::{KeyStyle, MailboxEntry, MailboxList};
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::doctor::seen::Message;
use crate::host::Host;
use crate::moves::Journal;
use crate::moves::journal::{Entry, state};
use crate::murder;
use crate::repair::restore;
use crate::source::OLDEST_LIVE;
use crate::source::inventory::{Conversion, Listing, SourceMailbox};
use crate::source::mailbox::read_index;
use crate::source::retire::NOWHERE;
use crate::wire::v1;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Messages of one part.
const PART: usize = 100_000;

/// So many messages that cannot be read are named.
const NAMED: usize = 20;

/// A mailbox, and whether its files are here.
pub(crate) struct Found {
    /// Its record, with the partition where its directory was found.
    pub entry: MailboxEntry,
    /// Whether only a record of its id leads to it.
    pub unnamed: bool,
    /// Whether delayed delete keeps it.
    pub kept: bool,
}

impl Found {
    /// How its directories are named.
    pub fn style<'a>(&'a self, host: &Host) -> DirStyle<'a> {
        match &self.entry.uniqueid {
            Some(id) if !self.entry.mbtype.has(Flag::LegacyDirs) => host.style(id),
            _ => DirStyle::Name,
        }
    }

    /// Whether mbcopy has put it away.
    pub fn is_put_away(&self) -> bool {
        self.entry.partition.as_ref().is_some_and(|p| p.as_str() == NOWHERE)
    }

    /// Where one of its files is.
    pub fn file(&self, host: &Host, file: MetaFile) -> Option<PathBuf> {
        let partition = self.entry.partition.as_ref()?;
        let layout = Layout::new(&host.config);
        layout.meta_file(file, &self.entry.name, self.style(host), partition).ok()
    }
}

/// Every record that has to do with the user, and what no name leads to: records of ids
/// only, and the directories of those of `ids` of which there is no record at all.
pub(crate) fn find(host: &Host, top: &MailboxName, ids: &[String]) -> Result<Vec<Found>, String> {
    let database = host.mailboxes_recovered().map_err(|e| e.to_string())?;
    let list = MailboxList::from_database(&database).map_err(|e| e.to_string())?;
    let owned = list.owned(top, &host.config.deletedprefix()).map_err(|e| e.to_string())?;
    let kept = |entry: &MailboxEntry| entry.name != *top && !entry.name.is_below(top);
    let mut found: Vec<Found> = owned
        .into_iter()
        .map(|entry| Found { kept: kept(&entry), entry, unnamed: false })
        .collect();
    if list.style() == KeyStyle::Typed {
        let named: BTreeSet<UniqueId> =
            found.iter().filter_map(|f| f.entry.uniqueid.clone()).collect();
        for (key, value) in database.prefix(b"I").map_err(|e| e.to_string())? {
            let Some(entry) = by_id(&key, &value) else { continue };
            let ours = entry.name == *top || entry.name.is_below(top);
            if ours && entry.uniqueid.as_ref().is_some_and(|id| !named.contains(id)) {
                found.push(Found { entry, unnamed: true, kept: false });
            }
        }
    }
    let partitions = host.config.partitions().unwrap_or_default();
    if host.keeps_by_id() {
        found.extend(ids.iter().filter_map(|id| without_record(host, top, id, &list, &partitions)));
    }
    for one in &mut found {
        if one.entry.is_deleted() {
            // What was renamed, or is kept by delayed delete, has its files by another name.
            let id = one.entry.uniqueid.as_ref();
            let name = id.map(|id| list.name_of_id(id)).transpose().map_err(|e| e.to_string())?;
            if name.flatten().is_some_and(|name| name != one.entry.name) {
                one.entry.partition = None;
            }
        } else if one.entry.partition.is_none() && !one.entry.mbtype.has(Flag::Intermediate) {
            one.entry.partition = place(host, one, partitions.keys());
        }
    }
    Ok(found)
}

/// A mailbox of the user of which there is a directory and no record: a new one of its
/// name has replaced it.
fn without_record(
    host: &Host,
    top: &MailboxName,
    id: &str,
    list: &MailboxList<'_>,
    partitions: &BTreeMap<PartitionName, PathBuf>,
) -> Option<Found> {
    let id = UniqueId::new(id.as_bytes()).ok()?;
    if list.id_record(&id).ok()?.is_some() {
        return None;
    }
    let layout = Layout::new(&host.config);
    let header = |partition| {
        let path = layout.meta_file(MetaFile::Header, top, DirStyle::Id(&id), partition).ok()?;
        super::copy::by_header(&path, partition)
    };
    let entry = partitions.keys().find_map(header)?;
    let ours = entry.name == *top || entry.name.is_below(top);
    (ours && entry.uniqueid == Some(id)).then_some(Found { entry, unnamed: true, kept: false })
}

/// The mailbox that a record of an id tells of.
fn by_id(key: &Bytes, value: &Bytes) -> Option<MailboxEntry> {
    let id = UniqueId::new(key.get(1..)?).ok()?;
    let record = Dlist::parse(value).ok()?;
    let name = MailboxName::from_db_key(record.get(b"N")?.as_bytes()?).ok()?;
    let entry = MailboxEntry::parse(name, key.clone(), value.clone()).ok()?;
    Some(MailboxEntry { uniqueid: Some(id), ..entry })
}

/// The partition on which a mailbox has its directory, when its record names none.
fn place<'a>(
    host: &Host,
    found: &Found,
    mut partitions: impl Iterator<Item = &'a PartitionName>,
) -> Option<PartitionName> {
    let layout = Layout::new(&host.config);
    let style = found.style(host);
    let here = |p: &&PartitionName| {
        let index = layout.meta_file(MetaFile::Index, &found.entry.name, style, p);
        index.is_ok_and(|path| path.exists())
    };
    partitions.find(here).cloned()
}

/// Tells all of it; `held`: this process keeps everybody from the user. Memory grows with
/// the number of messages of one mailbox.
pub(super) fn tell(
    host: &Host,
    top: &MailboxName,
    ids: &[String],
    held: bool,
    to: &Sender,
) -> Result<v1::Examined, v1::Failure> {
    let found =
        find(host, top, ids).map_err(|e| unreadable(format!("the list of mailboxes: {e}")))?;
    for one in &found {
        let (mut told, messages) = describe(host, one, held);
        let mut rest = messages.as_slice();
        loop {
            let (part, left) = rest.split_at(rest.len().min(PART));
            let mut packed = Vec::new();
            part.iter().for_each(|message| message.pack(&mut packed));
            told.messages = packed.into();
            to.part(v1::part::Part::SeenMailbox(told)).map_err(gone)?;
            if left.is_empty() {
                break;
            }
            rest = left;
            told = v1::SeenMailbox {
                name: Bytes::copy_from_slice(one.entry.name.as_bytes()),
                ..v1::SeenMailbox::default()
            };
        }
    }
    let (files, quota_roots) = of_user(host, top, &found).map_err(unreadable)?;
    let (master, listed, list_trouble) = match murder::listed(host, top) {
        None => Default::default(),
        Some(Ok((master, entries))) => {
            (master, entries.iter().map(|e| listed(host, e)).collect(), String::new())
        }
        Some(Err(text)) => (String::new(), Vec::new(), text),
    };
    let moves = moves(host, top)?;
    let taken = restore::taken(host, &moves).map_err(|e| unreadable(e.to_string()))?;
    Ok(v1::Examined {
        taken,
        identity: Some(v1::Identity {
            name: Bytes::copy_from_slice(top.as_bytes()),
            userid: String::new(),
            display: host.external(top),
        }),
        files: files.into_iter().map(i32::from).collect(),
        quota_roots: quota_roots as u32,
        moves: moves.into_iter().map(v1::MoveRecord::from).collect(),
        repairable: is_repairable(host),
        master,
        listed,
        list_trouble,
    })
}

/// Whether a repair is possible here: what it puts aside is retired as a move would.
pub(crate) fn is_repairable(host: &Host) -> bool {
    host.offline.is_none() && host.release().is_some_and(|release| release >= OLDEST_LIVE)
}

/// What a Murder's list says of a mailbox.
fn listed(host: &Host, entry: &murder::Entry) -> v1::Listed {
    let name = MailboxName::from_internal(&entry.name);
    let display = name.map(|name| host.external(&name));
    v1::Listed {
        name: Bytes::copy_from_slice(&entry.name),
        display: display.unwrap_or_else(|_| String::from_utf8_lossy(&entry.name).into_owned()),
        server: entry.server(),
        reserved: entry.acl.is_none(),
    }
}

fn describe(host: &Host, found: &Found, held: bool) -> (v1::SeenMailbox, Vec<Message>) {
    let entry = &found.entry;
    let has = |flag| entry.mbtype.has(flag);
    let mut told = v1::SeenMailbox {
        name: Bytes::copy_from_slice(entry.name.as_bytes()),
        display: host.external(&entry.name),
        unique_id: entry.uniqueid.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        partition: entry.partition.as_ref().map(|p| p.as_str().to_owned()).unwrap_or_default(),
        server: entry.server.clone().unwrap_or_default(),
        deleted: has(Flag::Deleted),
        moving: has(Flag::Moving),
        remote: has(Flag::Remote),
        reserved: has(Flag::Reserve),
        name_only: has(Flag::Intermediate),
        kept: found.kept,
        original: original(host, &entry.name).into(),
        unnamed: found.unnamed,
        put_away: found.is_put_away(),
        folder_modseq: entry.foldermodseq,
        created_modseq: entry.createdmodseq,
        changed: i64::try_from(entry.mtime).unwrap_or_default(),
        ..v1::SeenMailbox::default()
    };
    if told.name_only || told.put_away {
        return (told, Vec::new());
    }
    match messages(host, found, held, &mut told) {
        Ok(messages) => (told, messages),
        Err(text) => {
            told.unreadable = text;
            (told, Vec::new())
        }
    }
}

/// The name that a mailbox had which delayed delete keeps; empty: it keeps it not.
fn original(host: &Host, name: &MailboxName) -> Vec<u8> {
    let original = name.deleted_original(&host.config.deletedprefix());
    original.map(|(name, _)| name.as_bytes().to_vec()).unwrap_or_default()
}

fn messages(
    host: &Host,
    found: &Found,
    held: bool,
    told: &mut v1::SeenMailbox,
) -> Result<Vec<Message>, String> {
    let Some(path) = found.file(host, MetaFile::Index) else { return Ok(Vec::new()) };
    let at = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = match read_index(&path, held) {
        Ok((bytes, _lock)) => bytes,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(at(&path, &e)),
    };
    let view = IndexView::parse(&bytes).map_err(|e| at(&path, &e))?;
    if let Some(header) = found.file(host, MetaFile::Header) {
        let read = std::fs::read(&header).map_err(|e| at(&header, &e))?;
        MailboxHeader::parse(&read).map_err(|e| at(&header, &e))?;
    }
    let layout = Layout::new(&host.config);
    let directory = found.entry.partition.as_ref().and_then(|partition| {
        layout.mailbox_dir(&found.entry.name, found.style(host), partition).ok()
    });
    let mut messages = Vec::new();
    for record in view.records() {
        let record = record.map_err(|e| at(&path, &e))?;
        let saved = if record.savedate.is_zero() { record.internaldate } else { record.savedate };
        messages.push(Message {
            uid: record.uid,
            expunged: record.is_expunged() || record.is_unlinked(),
            saved: u32::try_from(saved.seconds()).unwrap_or_default(),
            guid: record.guid.map(|guid| *guid.as_bytes()).unwrap_or_default(),
        });
        let looked_at = !record.is_unlinked() && !record.is_archived() && told.bad.len() < NAMED;
        if let Some(directory) = directory.as_ref().filter(|_| looked_at) {
            let path = directory.join(record.file_name());
            if let Err(e) = std::fs::File::open(&path) {
                told.bad.push(format!("UID {}, {}", record.uid, at(&path, &e)));
            }
        }
    }
    told.has_index = true;
    told.uidvalidity = view.header().uidvalidity;
    told.last_uid = view.header().last_uid;
    Ok(messages)
}

/// Kinds of the user's own files, and how many quota roots he has.
fn of_user(
    host: &Host,
    top: &MailboxName,
    found: &[Found],
) -> Result<(BTreeSet<v1::FileKind>, usize), String> {
    let listing = listing(host, top, found.iter().filter(|f| !f.unnamed && !f.is_put_away()));
    let files = listing.user_files(host)?.files;
    let kinds = files.into_iter().map(|(kind, ..)| kind).collect();
    Ok((kinds, listing.quota_roots(host)?.len()))
}

/// The mailboxes in the form in which the rest of this program knows them; what has
/// no id is left out.
pub(crate) fn listing<'a>(
    host: &Host,
    top: &MailboxName,
    found: impl Iterator<Item = &'a Found>,
) -> Listing {
    // Nothing is converted: it stays here.
    let as_it_is = |entry: &MailboxEntry| {
        (!host.keeps_by_id()).then(|| Conversion {
            record: entry.raw.clone(),
            number: 0,
            files: Ok(Vec::new()),
            flawed: Vec::new(),
        })
    };
    let with_id = found.filter_map(|one| Some((one, one.entry.uniqueid.clone()?)));
    let mailboxes = with_id.enumerate().map(|(ordinal, (one, id))| SourceMailbox {
        ordinal: ordinal as u32,
        entry: one.entry.clone(),
        id,
        id_record: (Bytes::new(), Bytes::new()),
        // What nothing shall lead to any more.
        deleted: one.kept || one.unnamed,
        converted: as_it_is(&one.entry),
    });
    Listing { top: top.clone(), mailboxes: mailboxes.collect(), converted: None }
}

/// The moves that this server's journal knows of the user, oldest first.
fn moves(host: &Host, top: &MailboxName) -> Result<Vec<Entry>, v1::Failure> {
    let failed = |e: &dyn std::fmt::Display| unreadable(e.to_string());
    let directory = host.state_directory().map_err(|e| failed(&e))?;
    let journal = Journal::open_existing(&directory).map_err(|e| failed(&e))?;
    let Some(journal) = journal else { return Ok(Vec::new()) };
    journal.of(top.as_bytes()).map_err(|e| failed(&e))
}

/// Tells every user and shared tree, with the states of their records.
pub(super) fn states(host: &Host, to: &Sender) -> Result<v1::StatesListed, v1::Failure> {
    let failed = |e: &dyn std::fmt::Display| unreadable(e.to_string());
    let database = host.mailboxes_recovered().map_err(|e| failed(&e))?;
    let list = MailboxList::from_database(&database).map_err(|e| failed(&e))?;
    let mut users: BTreeMap<MailboxName, v1::UserState> = BTreeMap::new();
    let top_of = |name: &MailboxName| name.inbox().unwrap_or_else(|| name.clone());
    let deleted = format!("{}.", host.config.deletedprefix());
    let is_kept = |name: &MailboxName| name.without_domain().starts_with(deleted.as_bytes());
    // What a Murder's list has on this server, and whether clients can reach it there.
    let mut reachable: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    let told = murder::list_all(host, |entry| {
        reachable.insert(entry.name, entry.acl.is_some());
    });
    let (in_murder, list_trouble) = match told {
        None => (false, String::new()),
        Some(told) => (told.is_ok(), told.err().unwrap_or_default()),
    };
    let each = list.each(|entry| {
        let name = &entry.name;
        let top = top_of(name);
        let kept = is_kept(name);
        let found = Found { unnamed: false, kept, entry };
        let listed = match found.entry.is_deleted() {
            true => None,
            false => reachable.remove(found.entry.name.as_bytes()),
        };
        if kept || found.is_put_away() || !host.allows(&top) {
            return;
        }
        let told = users.entry(top).or_default();
        let entry = &found.entry;
        let away = [Flag::Moving, Flag::Remote, Flag::Reserve];
        match entry.mbtype.has(Flag::Deleted) {
            true => told.deleted += u32::from(entry.partition.is_some()),
            false if away.into_iter().any(|flag| entry.mbtype.has(flag)) => {
                told.away += 1;
                let server = entry.server.clone().unwrap_or_default();
                if !told.servers.contains(&server) && told.servers.len() < NAMED {
                    told.servers.push(server);
                }
            }
            false => {
                told.live += 1;
                let in_list = in_murder && !entry.mbtype.has(Flag::Intermediate);
                told.unlisted += u32::from(in_list && listed != Some(true));
            }
        }
    });
    each.map_err(|e| failed(&e))?;
    for name in reachable.keys() {
        let name = MailboxName::from_internal(name).ok().filter(|name| !is_kept(name));
        let top = name.map(|name| top_of(&name)).filter(|top| host.allows(top));
        if let Some(top) = top {
            users.entry(top).or_default().listed_only += 1;
        }
    }
    for entry in all_moves(host)? {
        if let Ok(name) = MailboxName::from_internal(&entry.name)
            && !state::is_over(&entry.state)
            && host.allows(&name)
        {
            users.entry(name).or_default().unfinished = true;
        }
    }
    let told = users.into_iter().map(|(name, told)| v1::UserState {
        name: Bytes::copy_from_slice(name.as_bytes()),
        display: host.external(&name),
        ..told
    });
    let told: Vec<v1::UserState> = told.collect();
    for part in told.chunks(super::LIST_PART) {
        let part = v1::StateList { users: part.to_vec() };
        to.part(v1::part::Part::StateList(part)).map_err(gone)?;
    }
    Ok(v1::StatesListed { list_trouble })
}

fn all_moves(host: &Host) -> Result<Vec<Entry>, v1::Failure> {
    let failed = |e: &dyn std::fmt::Display| unreadable(e.to_string());
    let directory = host.state_directory().map_err(|e| failed(&e))?;
    let journal = Journal::open_existing(&directory).map_err(|e| failed(&e))?;
    let Some(journal) = journal else { return Ok(Vec::new()) };
    // A damaged record says so in `status`.
    Ok(journal.moves().map_err(|e| failed(&e))?.0)
}
