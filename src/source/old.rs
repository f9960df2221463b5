//! A server older than 3.6, or its disk: what it has of a user, in the form of 3.6.
//!
//! The messages are sent as they lie. Indexes, headers, records, subscriptions,
//! quota roots and annotations are converted into a directory of this machine's own,
//! and go from there the way of any other source's. A mailbox of which no file and
//! no record has changed is not looked at again, so that the last look, which is
//! under the freeze, costs as much as there was changed.

use super::check;
use super::inventory::{
    Conversion, Converted, Flawed, Listing, Ordinals, SourceMailbox, UserFiles,
};
use super::mailbox::{self, Stamp};
use super::seen;
use crate::cyrus::annotation::{AnnotationKey, AnnotationValue, LongForm, OWNER};
use crate::cyrus::config::{Config, Defaults, MetaFile};
use crate::cyrus::db::{Database, DbError, Engine, Entry, twoskip};
use crate::cyrus::guid::Guid;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{IndexView, Record, Time};
use crate::cyrus::mboxlist::MailboxEntry;
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::cyrus::quota::Quota;
use crate::cyrus::subscription::{SubscriptionForm, Subscriptions};
use crate::cyrus::upgrade::{self, Beside, FileFacts, QuotaUse};
use crate::host::Host;
use crate::wire::v1::{self, FileKind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What was converted of an old server, for one session. What has changed since is
/// converted again.
#[derive(Debug)]
pub struct OldDisk {
    directory: PathBuf,
    mailboxes: BTreeMap<MailboxName, Kept>,
    /// Ids that mailboxes of the list that is being read have.
    ids: BTreeSet<UniqueId>,
    conversions: u64,
    locking: Locking,
    /// Messages that turned out not to be what the index says, while they were sent.
    rotten: BTreeSet<(MailboxName, u32)>,
}

/// Whether an index must be locked to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locking {
    /// The server is in use.
    Needed,
    /// This process has frozen the user.
    Frozen,
    /// Nothing runs on it, and nothing changes.
    Offline,
}

/// A mailbox that was converted.
#[derive(Debug)]
struct Kept {
    /// The record that it was made of.
    record: Bytes,
    /// The files that it was made of.
    files: Vec<(PathBuf, Option<Stamp>)>,
    /// When their stamps were taken, in seconds since 1970.
    taken: i64,
    /// `None`: it only waits to be cleaned up.
    mailbox: Option<SourceMailbox>,
}

/// An old mailbox that was read.
struct Read {
    id: UniqueId,
    uidvalidity: u32,
    changed: u64,
    files: Converted,
    flawed: Vec<Flawed>,
}

impl OldDisk {
    /// Nothing yet; what will be is kept in `directory`, as long as this value lives.
    pub fn new(directory: PathBuf, locking: Locking) -> io::Result<Self> {
        // What a process that was killed has left.
        match std::fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let parent = directory.parent().ok_or(io::ErrorKind::InvalidInput)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self {
            directory,
            mailboxes: BTreeMap::new(),
            ids: BTreeSet::new(),
            conversions: 0,
            locking,
            rotten: BTreeSet::new(),
        })
    }

    /// Where it is kept.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Leaves a message out of what a disk's mailbox is converted to: where an index has
    /// to be made anew, Cyrus would fail on it.
    pub fn leave_out(&mut self, name: &MailboxName, uid: u32) {
        if self.locking == Locking::Offline {
            self.rotten.insert((name.clone(), uid));
            self.mailboxes.remove(name);
        }
    }

    /// Begins another look at the server, frozen or not.
    pub fn begin(&mut self, frozen: bool) {
        self.ids.clear();
        self.locking = match (self.locking, frozen) {
            (Locking::Offline, _) => Locking::Offline,
            (_, true) => Locking::Frozen,
            (_, false) => Locking::Needed,
        };
    }

    /// A mailbox as 3.6 has it, converted the first time and whenever it has changed;
    /// `None` if it is deleted and only waits to be cleaned up.
    pub fn mailbox(
        &mut self,
        host: &Host,
        top: &MailboxName,
        entry: &MailboxEntry,
        deleted: bool,
        ordinals: &mut Ordinals,
    ) -> Option<SourceMailbox> {
        if let Some(kept) = self.mailboxes.get(&entry.name)
            && kept.record == entry.raw
            && (self.locking == Locking::Offline || kept.is_as_it_was())
        {
            match &kept.mailbox {
                None => return None,
                Some(mailbox) if self.ids.insert(mailbox.id.clone()) => {
                    return Some(mailbox.clone());
                }
                // Another mailbox has got its id.
                Some(_) => {}
            }
        }
        let taken = mailbox::now();
        let mut files = files_of(host, entry);
        let mailbox = self.convert(host, top, entry, deleted, ordinals, &mut files);
        let conversion = mailbox.as_ref().and_then(|m| m.converted.as_ref());
        // What has failed is tried again.
        if conversion.is_none_or(|conversion| conversion.files.is_ok()) {
            let record = entry.raw.clone();
            let kept = Kept { record, files, taken, mailbox: mailbox.clone() };
            self.mailboxes.insert(entry.name.clone(), kept);
        } else {
            self.mailboxes.remove(&entry.name);
        }
        mailbox
    }

    fn convert(
        &mut self,
        host: &Host,
        top: &MailboxName,
        entry: &MailboxEntry,
        deleted: bool,
        ordinals: &mut Ordinals,
        files: &mut Vec<(PathBuf, Option<Stamp>)>,
    ) -> Option<SourceMailbox> {
        self.conversions += 1;
        let uidvalidity = entry.uidvalidity;
        let nothing = |id, files| Read { id, uidvalidity, changed: 0, files, flawed: Vec::new() };
        let read = match &entry.partition {
            Some(partition) => match self.read(host, top, entry, partition, files) {
                Ok(read) => read?,
                Err(text) => nothing(self.id(entry, None, 0)?, Err(text)),
            },
            None => nothing(self.id(entry, None, 0)?, Ok(Vec::new())),
        };
        let Read { id, uidvalidity, changed, files, flawed } = read;
        let (name_record, id_record) = upgrade::records(entry, &id, uidvalidity, changed);
        let next = ordinals.len() as u32;
        let ordinal = *ordinals.entry(id.clone()).or_insert(next);
        let (record, number) = (entry.raw.clone(), self.conversions);
        let conversion = Conversion { record, number, files, flawed };
        let entry = MailboxEntry { raw: name_record.into(), ..entry.clone() };
        let id_record = (Bytes::from(format!("I{id}")), Bytes::from(id_record));
        let converted = Some(conversion);
        Some(SourceMailbox { ordinal, entry, id, id_record, deleted, converted })
    }

    /// The id of a mailbox. Older servers made it of the name and the time, and a
    /// renamed mailbox kept it: two may have the same, where 3.6 wants one.
    fn id(
        &mut self,
        entry: &MailboxEntry,
        header: Option<&MailboxHeader>,
        uidvalidity: u32,
    ) -> Option<UniqueId> {
        let of_header = header.and_then(|h| UniqueId::new(h.uniqueid.as_deref()?).ok());
        let own = of_header.or_else(|| entry.uniqueid.clone());
        let own = own.filter(|id| !self.ids.contains(id));
        let id = own.or_else(|| upgrade::made_up_id(&entry.name, uidvalidity))?;
        self.ids.insert(id.clone());
        Some(id)
    }

    fn read(
        &mut self,
        host: &Host,
        top: &MailboxName,
        entry: &MailboxEntry,
        partition: &PartitionName,
        files: &mut Vec<(PathBuf, Option<Stamp>)>,
    ) -> Result<Option<Read>, String> {
        let layout = Layout::new(&host.config);
        let path = |file| {
            let path = layout.meta_file(file, &entry.name, DirStyle::Name, partition);
            path.map_err(|e| e.to_string())
        };
        let index_path = path(MetaFile::Index)?;
        let unlocked = self.locking != Locking::Needed;
        let (bytes, lock) =
            mailbox::read_index(&index_path, unlocked).map_err(|e| at(&index_path, &e))?;
        let index = IndexView::parse(&bytes).map_err(|e| at(&index_path, &e))?;
        let header = index.header();
        if header.is_deleted() {
            return Ok(None);
        }
        // After the index: a keyword has its name before a message has it.
        let header_path = path(MetaFile::Header)?;
        let header_bytes = std::fs::read(&header_path).map_err(|e| at(&header_path, &e))?;
        let old_header = MailboxHeader::parse(&header_bytes).map_err(|e| at(&header_path, &e))?;
        let id = self
            .id(entry, Some(&old_header), header.uidvalidity)
            .ok_or("its id cannot be made up")?;

        let expunge_path = path(MetaFile::Expunge)?;
        let expunge_bytes = match header.has_seen() {
            true => None,
            false => read_if_there(&expunge_path)?,
        };
        let expunge = expunge_bytes.as_deref().map(IndexView::parse_expunge).transpose();
        let expunge = expunge.map_err(|e| at(&expunge_path, &e))?;
        let directory = layout
            .mailbox_dir(&entry.name, DirStyle::Name, partition)
            .map_err(|e| e.to_string())?;
        let seen = match (header.has_seen(), header.shares_seen()) {
            (true, _) => None,
            (false, shared) => seen::of_mailbox(host, top, &old_header, shared, &directory, files)?,
        };
        let annotations = path(MetaFile::Annotations)?;
        let annotated = read_if_there(&annotations)?;
        drop(lock);
        let header_file = upgrade::header_file(&old_header, entry, &id);
        let flawed = match self.locking {
            Locking::Offline => check::flaws(&directory, &index).map_err(|e| at(&directory, &e))?,
            _ => Vec::new(),
        };
        let mut without: BTreeSet<u32> = flawed.iter().map(|(uid, ..)| *uid).collect();
        let rotten = self.rotten.iter().filter(|(name, _)| *name == entry.name);
        without.extend(rotten.map(|(_, uid)| *uid));
        let without: Vec<u32> = without.into_iter().collect();
        let beside = Beside {
            expunge: expunge.as_ref(),
            seen: seen.as_ref(),
            header_file: &header_file,
            without: &without,
        };
        let archive = layout
            .archive_dir(&entry.name, DirStyle::Name, partition)
            .map_err(|e| e.to_string())?;
        let new = upgrade::index(&index, &beside, |record, hash| {
            facts(if record.is_archived() { &archive } else { &directory }, record, hash)
        });
        let new = new.map_err(|e| format!("{}: {e}", directory.display()))?;

        let place = self.directory.join(id.as_str());
        std::fs::create_dir_all(&place).map_err(|e| at(&place, &e))?;
        let write = |file: MetaFile, bytes: &[u8]| {
            let path = place.join(file.file_name());
            std::fs::write(&path, bytes).map_err(|e| at(&path, &e))?;
            Ok::<_, String>(path)
        };
        let mut converted = vec![
            (FileKind::Header, write(MetaFile::Header, &header_file)?),
            (FileKind::Index, write(MetaFile::Index, &new)?),
        ];
        // Up to 2.3 a cache has no checksums that could be trusted.
        if header.has_seen() {
            converted.push((FileKind::Cache, path(MetaFile::Cache)?));
            converted.push((FileKind::ArchiveCache, path(MetaFile::ArchiveCache)?));
            mailbox::one_cache(&mut converted);
        }
        if let Some(bytes) = annotated {
            let new = message_annotations(bytes, top).map_err(|e| at(&annotations, &e))?;
            converted.push((FileKind::Annotations, write(MetaFile::Annotations, &new)?));
        }
        let changed = std::fs::metadata(&index_path).map_or(0, |m| m.mtime().max(0) as u64);
        let (uidvalidity, files) = (header.uidvalidity, Ok(converted));
        Ok(Some(Read { id, uidvalidity, changed, files, flawed }))
    }
}

impl Drop for OldDisk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
        // It is the move's, unless that was only planned.
        let _ = self.directory.parent().map(std::fs::remove_dir);
    }
}

impl Kept {
    /// Whether no file has changed, as far as its stamp can tell.
    fn is_as_it_was(&self) -> bool {
        let settled = |stamp: &Option<Stamp>| stamp.is_none_or(|s| s.is_settled(self.taken));
        self.files.iter().all(|(path, stamp)| mailbox::stamp(path) == *stamp && settled(stamp))
    }
}

/// The files that tell what a mailbox is, with their stamps of now.
fn files_of(host: &Host, entry: &MailboxEntry) -> Vec<(PathBuf, Option<Stamp>)> {
    let Some(partition) = &entry.partition else { return Vec::new() };
    let layout = Layout::new(&host.config);
    let kinds = [
        MetaFile::Header,
        MetaFile::Index,
        MetaFile::Cache,
        MetaFile::Annotations,
        MetaFile::Expunge,
    ];
    let paths =
        kinds.map(|file| layout.meta_file(file, &entry.name, DirStyle::Name, partition).ok());
    paths.into_iter().flatten().map(|path| (path.clone(), mailbox::stamp(&path))).collect()
}

/// What a message's file tells; `None` if it cannot be read, as the scan will say.
fn facts(directory: &Path, record: &Record, hash: bool) -> Option<FileFacts> {
    let path = directory.join(record.file_name());
    let stat = std::fs::symlink_metadata(&path).ok();
    // Cyrus can make nothing of an empty one.
    let stat = stat.filter(|stat| stat.is_file() && stat.len() > 0)?;
    let modified = Time::from_seconds(u32::try_from(stat.mtime()).unwrap_or(0));
    let guid = if hash { Some(Guid::of(&std::fs::read(&path).ok()?)) } else { None };
    Some(FileFacts { guid, modified })
}

/// A file of a user, under the name that 2.x or 3.x gives it.
pub(super) fn user_file(
    host: &Host,
    inbox: &MailboxName,
    suffix: &str,
) -> Result<Option<(PathBuf, Vec<u8>)>, String> {
    for config in both(&host.config) {
        let path = Layout::new(&config)
            .user_file(inbox, DirStyle::Name, suffix)
            .map_err(|e| e.to_string())?;
        if let Some(bytes) = read_if_there(&path)? {
            return Ok(Some((path, bytes)));
        }
    }
    Ok(None)
}

/// The configuration with its server's defaults first, then with the other ones:
/// files of users keep their old names until somebody renames them.
pub(super) fn both(config: &Config) -> [Config; 2] {
    let other = match config.defaults() {
        Defaults::V2 => Defaults::V3,
        Defaults::V3 => Defaults::V2,
    };
    [config.clone(), config.clone().with_defaults(other)]
}

/// The user's own files; what is converted goes into `directory`.
pub fn user_files(
    host: &Host,
    inbox: &SourceMailbox,
    directory: &Path,
) -> Result<UserFiles, String> {
    let mut files = UserFiles::default();
    let name = &inbox.entry.name;
    if let Some((path, bytes)) = user_file(host, name, "sub")? {
        let old = Subscriptions::parse(bytes.into(), name).map_err(|e| at(&path, &e))?;
        for odd in &old.odd {
            files.notes.push(format!(
                "{}: the subscription {} is no mailbox name, and stays",
                path.display(),
                odd.escape_ascii()
            ));
        }
        let new = Subscriptions { form: SubscriptionForm::Keys, ..old }.to_flat(name);
        let new_path = directory.join("sub.db");
        std::fs::write(&new_path, new).map_err(|e| at(&new_path, &e))?;
        files.add_converted(FileKind::UserSubscriptions, new_path, path);
    }
    if let Some((path, bytes)) = user_file(host, name, "seen")? {
        let database = Database::open(bytes.into(), &Engine::Flat).map_err(|e| at(&path, &e))?;
        // Cyrus recognises the engine of a file by itself, but for lines of text.
        if database.engine() == Some(Engine::Flat) {
            let entries = database.entries().map_err(|e| at(&path, &e))?;
            let new = twoskip::write(&entries);
            let new_path = directory.join("seen.db");
            std::fs::write(&new_path, new).map_err(|e| at(&new_path, &e))?;
            files.add_converted(FileKind::UserSeen, new_path, path);
        } else if database.engine().is_some() {
            files.add(FileKind::UserSeen, b"", path);
        }
    }
    // Every later version reads those of every older one.
    if let Some((path, _)) = user_file(host, name, "counters")? {
        files.add(FileKind::UserCounters, b"", path);
    }
    let mut sieve = Vec::new();
    if let Some(user) = name.userid() {
        let layout = Layout::new(&host.config);
        sieve.extend(layout.sieve_dir(&user, DirStyle::Name).map_err(|e| e.to_string())?);
        // 2.x names the directory as the mailbox is named.
        let local = name.components().nth(1).unwrap_or_default();
        let internal = sieve.first().and_then(|dir| {
            use std::os::unix::ffi::OsStrExt;
            Some(dir.parent()?.join(std::ffi::OsStr::from_bytes(local)))
        });
        sieve.extend(internal);
    }
    if let Some(directory) = sieve.iter().find(|directory| directory.is_dir()) {
        files.add_scripts(directory)?;
    }
    Ok(files)
}

/// The record of a quota root as 3.6 has it.
pub fn quota(
    host: &Host,
    listing: &Listing,
    root: &MailboxName,
    record: &[u8],
) -> Result<Vec<u8>, String> {
    let shown = host.external(root);
    let quota = Quota::parse(record).map_err(|e| format!("the quota root {shown}: {e}"))?;
    let Some(quota) = quota.filter(|_| !record.starts_with(b"%")) else {
        return Ok(record.to_vec());
    };
    let mut used = QuotaUse::default();
    for mailbox in listing.mailboxes.iter().filter(|m| !m.deleted) {
        if quota_root(host, listing, &mailbox.entry.name).as_ref() != Some(root) {
            continue;
        }
        let index = super::mailbox::meta_paths(host, mailbox)
            .into_iter()
            .find(|(kind, _)| *kind == FileKind::Index);
        let Some((_, path)) = index else { continue };
        let bytes = std::fs::read(&path).map_err(|e| at(&path, &e))?;
        let index = IndexView::parse(&bytes).map_err(|e| at(&path, &e))?;
        used.storage += index.header().quota_mailbox_used;
        used.messages += u64::from(index.header().exists);
        used.annotations += index.header().quota_annot_used;
        used.folders += 1;
    }
    Ok(upgrade::quota(&quota, &used))
}

/// The quota root that a mailbox is under: the nearest above it that has a file.
fn quota_root(host: &Host, listing: &Listing, name: &MailboxName) -> Option<MailboxName> {
    let layout = Layout::new(&host.config);
    let above = listing.mailboxes.iter().map(|m| &m.entry.name);
    let above = above.filter(|above| *above == name || name.is_below(above));
    let exists = |root: &&MailboxName| layout.quota_file(root).is_ok_and(|path| path.exists());
    above.filter(exists).max_by_key(|root| root.as_bytes().len()).cloned()
}

/// Brings annotations into the form of 3.6: it keeps the owner's own under a token,
/// and numbers as 64-bit machines of today have them.
pub fn annotations(top: &MailboxName, found: &mut [v1::Annotation]) -> Result<(), String> {
    let owner = top.userid();
    for annotation in found {
        let owns = owner.as_ref().is_some_and(|owner| annotation.userid == owner.as_bytes());
        if !annotation.server && owns {
            annotation.owner = true;
            annotation.userid = Bytes::new();
        }
        let entry = || annotation.entry.escape_ascii().to_string();
        let value = AnnotationValue::parse(&annotation.value)
            .map_err(|e| format!("the annotation {}: {e}", entry()))?;
        if value.form != LongForm::Little64 {
            let value = AnnotationValue { form: LongForm::Little64, ..value };
            let bytes = value.to_bytes();
            annotation.value =
                bytes.ok_or_else(|| format!("the annotation {} is too large", entry()))?.into();
        }
    }
    Ok(())
}

/// A database of messages' annotations in which the owner's own are under his token.
fn message_annotations(bytes: Vec<u8>, top: &MailboxName) -> Result<Vec<u8>, DbError> {
    let entries = Database::open(bytes.into(), &Engine::Twoskip)?.entries()?;
    let owner = top.userid();
    let mut new: Vec<Entry> = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let own = AnnotationKey::parse_message(&key).ok();
        let own = own.filter(|k| owner.as_ref().is_some_and(|owner| k.userid == owner.as_bytes()));
        let key = match own {
            Some(own) => AnnotationKey { userid: OWNER.to_vec(), ..own }.to_bytes().into(),
            None => key,
        };
        new.push((key, value));
    }
    new.sort();
    Ok(twoskip::write(&new))
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path, &e)),
    }
}

pub(super) fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
