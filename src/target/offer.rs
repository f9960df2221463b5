//! Comparing what the source has with what the stage holds.
//!
//! The target alone knows what it has: it is told everything and answers with
//! what it wants. A file counts as held once its bytes were verified in this
//! session; what an earlier session left is verified by its GUID first.

use super::archive::Archive;
use super::convert::Looked;
use super::receive::{Arrived, Expected, Held, Item, ItemKey, Size};
use super::stage::{Stage, StageError, StagedDirectory, Trace};
use crate::cyrus::config::MetaFile;
use crate::cyrus::dlist::Dlist;
use crate::cyrus::mboxlist::mbtype::{Kind, Mbtype};
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::host::Host;
use crate::inventory::{Groups, Shape};
use crate::wire::blocks::Blocks;
use crate::wire::manifest::{self, Entry};
use crate::wire::v1::{self, FileKind};
use crate::wire::{USER, bulk};
use bytes::Bytes;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The files of a mailbox besides its messages.
const META: [(FileKind, MetaFile); 5] = [
    (FileKind::Header, MetaFile::Header),
    (FileKind::Index, MetaFile::Index),
    (FileKind::Cache, MetaFile::Cache),
    (FileKind::ArchiveCache, MetaFile::ArchiveCache),
    (FileKind::Annotations, MetaFile::Annotations),
];

/// A mailbox of the move, checked, with what its stage holds.
#[derive(Debug)]
pub struct StagedMailbox {
    /// Its name.
    pub name: MailboxName,
    /// Its uniqueid.
    pub id: UniqueId,
    /// Its partition on this server.
    pub partition: PartitionName,
    /// Whether it is a name only, without a directory.
    pub name_only: bool,
    /// Value of its N record on the source.
    pub name_record: Vec<u8>,
    /// Value of its I record on the source.
    pub id_record: Vec<u8>,
    /// Where its messages are staged.
    pub directory: Arc<StagedDirectory>,
    /// Where those are staged that are archived, if that is another place.
    pub archive: Option<Archive>,
    /// UIDs whose files are staged and verified, ascending.
    have: Vec<u32>,
    /// Messages that were asked for: those that have not come are asked for again.
    lacking: Vec<Entry>,
    /// Files that an earlier session left: UID to size.
    unverified: BTreeMap<u32, u64>,
    /// BLAKE3 of the staged metadata files, as they came.
    files: BTreeMap<FileKind, [u8; 32]>,
    /// Those of them that can be patched.
    held: BTreeMap<FileKind, Held>,
    /// How many messages the last whole scan listed.
    listed: usize,
    /// What the source says that the mailbox is, since the last whole scan.
    pub offered: Offered,
    /// Whether the staged files changed since they were last compared.
    pub dirty: bool,
    /// Whether a staged metadata file is as the source wrote it, since it arrived.
    pub as_sent: bool,
    /// What is known of its messages.
    pub looked: Looked,
    /// The records that were compared last.
    pub compared: Option<Compared>,
}

/// Staged records that are known to be there with their messages.
#[derive(Debug)]
pub struct Compared {
    /// Where they are in the index.
    pub shape: Shape,
    /// How many they are.
    pub count: u32,
    /// What the index was.
    pub blocks: Arc<Blocks>,
    /// Their digests.
    pub groups: Groups,
}

/// What the source said of a mailbox at its last scan.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Offered {
    /// BLAKE3 over the identities of all records.
    pub records_blake3: Vec<u8>,
    /// How many records.
    pub records: u32,
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// The last UID.
    pub last_uid: u32,
    /// HIGHESTMODSEQ.
    pub highestmodseq: u64,
    /// BLAKE3 of each metadata file that is there.
    pub files: BTreeMap<FileKind, [u8; 32]>,
}

/// A file of the user, as the source listed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedUserFile {
    /// Its number in this scan.
    pub number: u32,
    /// What it is.
    pub kind: FileKind,
    /// Its BLAKE3.
    pub blake3: [u8; 32],
    /// Its directory below the stage's root of its kind, and its name.
    pub place: UserPlace,
}

/// Where a file of the user belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserPlace {
    /// Whether it belongs to sieve, not to the configdirectory.
    pub sieve: bool,
    /// Relative to the stage's sieve or conf directory.
    pub relative: PathBuf,
}

/// What the peer offered that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// A breach of the protocol.
    #[error("the source offers {0}")]
    Nonsense(String),
    /// The stage fails.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The layout of this server is not known.
    #[error("{0}")]
    Layout(String),
}

/// Everything that is staged of a move.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The mailboxes by ordinal.
    pub mailboxes: BTreeMap<u32, StagedMailbox>,
    /// The user's files of the last offer.
    pub user_files: Vec<OfferedUserFile>,
    /// BLAKE3 of the user's files that are staged, as they came.
    staged_user_files: BTreeMap<UserPlace, [u8; 32]>,
    /// Those of them that can be patched.
    held_user_files: BTreeMap<UserPlace, Held>,
    /// The user's files that are as the source wrote them, since they arrived.
    pub user_files_as_sent: BTreeSet<UserPlace>,
    /// Quota roots, annotations and the active script of the last offer.
    pub rest: v1::ScanDone,
}

/// What was asked of the source and may arrive.
pub struct Asked {
    messages: BTreeMap<u32, AskedMessages>,
    files: BTreeMap<ItemKey, Item>,
}

/// Messages of one mailbox.
struct AskedMessages {
    /// Where they go.
    directory: Arc<StagedDirectory>,
    /// UID and size of each, in UID order.
    sizes: Vec<(u32, u64)>,
    /// Where some go instead, and which.
    archive: Option<(Arc<StagedDirectory>, BTreeSet<u32>)>,
}

impl Inventory {
    /// Takes the source's list of mailboxes: new ones get a place in the
    /// stage, those that are not listed any more leave the move.
    pub fn table(
        &mut self,
        stage: &Stage,
        table: v1::Table,
        check: impl Fn(&v1::Mailbox) -> Result<Checked, OfferError>,
    ) -> Result<(), OfferError> {
        if table.mailboxes.len() > manifest::MAX_MAILBOXES {
            let most = manifest::MAX_MAILBOXES;
            return Err(OfferError::Nonsense(format!("more than {most} mailboxes")));
        }
        let mut known = std::mem::take(&mut self.mailboxes);
        for mailbox in table.mailboxes {
            let checked = check(&mailbox)?;
            let same = known
                .remove(&mailbox.ordinal)
                .filter(|m| m.id == checked.id && m.partition == checked.partition);
            let staged = match same {
                Some(mut staged) => {
                    staged.dirty |= staged.name != checked.name;
                    staged.name = checked.name;
                    staged.name_only = mailbox.partition.is_empty();
                    staged.name_record = mailbox.name_record.to_vec();
                    staged.id_record = mailbox.id_record.to_vec();
                    staged
                }
                None => StagedMailbox::open(stage, &mailbox, checked)?,
            };
            if self.mailboxes.insert(mailbox.ordinal, staged).is_some() {
                return Err(OfferError::Nonsense(format!("ordinal {} twice", mailbox.ordinal)));
            }
        }
        Ok(())
    }

    /// The user's INBOX; none of a shared tree.
    pub fn inbox(&self) -> Option<&StagedMailbox> {
        self.mailboxes.values().find(|m| m.name.inbox().as_ref() == Some(&m.name))
    }

    /// Takes the end of an offer: files of the user, and what has no files.
    pub fn scan_done(&mut self, stage: &Stage, done: v1::ScanDone) -> Result<(), OfferError> {
        let inbox = self.inbox();
        let mut offered = Vec::new();
        for file in &done.user_files {
            let Some(inbox) = inbox else {
                return Err(OfferError::Nonsense("files of a user without an INBOX".into()));
            };
            offered.push(OfferedUserFile {
                number: file.number,
                kind: file.kind(),
                blake3: hash(&file.blake3)?,
                place: user_place(stage, inbox, file)?,
            });
        }
        // A file that the source has no more must not be published.
        let places: BTreeSet<_> = offered.iter().map(|f| &f.place).collect();
        self.staged_user_files.retain(|place, _| {
            let keep = places.contains(place);
            if !keep {
                let _ = std::fs::remove_file(place.path(stage));
            }
            keep
        });
        self.user_files = offered;
        self.rest = done;
        Ok(())
    }

    /// Leaves nothing in the stage but what is published.
    pub fn forget_as_sent(&self, stage: &Stage) {
        self.mailboxes.values().for_each(|mailbox| mailbox.forget_as_sent(stage));
    }

    /// The user's files that are not staged as the source has them.
    pub fn wanted_user_files(&self) -> Vec<u32> {
        let staged = |f: &&OfferedUserFile| self.staged_user_files.get(&f.place) != Some(&f.blake3);
        self.user_files.iter().filter(staged).map(|f| f.number).collect()
    }

    /// Turns wants into the list of what may arrive.
    pub fn asked(
        &self,
        stage: &Stage,
        wants: &BTreeMap<u32, MailboxWants>,
        user_files: &[u32],
    ) -> Result<Asked, OfferError> {
        let mut asked = Asked { messages: BTreeMap::new(), files: BTreeMap::new() };
        for (ordinal, wants) in wants {
            let Some(mailbox) = self.mailboxes.get(ordinal) else { continue };
            let messages = AskedMessages {
                directory: Arc::clone(&mailbox.directory),
                sizes: wants.messages.iter().map(|e| (e.uid, e.size)).collect(),
                archive: mailbox.archive.as_ref().map(|archive| {
                    let wanted = wants.messages.iter().map(|e| e.uid);
                    let there = wanted.filter(|uid| archive.uids.contains(uid)).collect();
                    (Arc::clone(&archive.directory), there)
                }),
            };
            asked.messages.insert(*ordinal, messages);
            for kind in &wants.files {
                let item = Item {
                    directory: mailbox.meta_directory(stage, *kind)?,
                    name: meta_name(*kind).to_owned(),
                    size: largest(*kind),
                    replaces: true,
                    base: mailbox.base(stage, *kind),
                };
                asked.files.insert((*ordinal, *kind as u8, 0), item);
            }
        }
        for file in self.user_files.iter().filter(|f| user_files.contains(&f.number)) {
            let path = file.place.path(stage);
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let root = stage_root(stage, &file.place);
            let directory =
                StagedDirectory::make(root, parent.strip_prefix(root).unwrap_or(parent)).map_err(
                    |source| StageError::Io { verb: "make", path: parent.into(), source },
                )?;
            let item = Item {
                directory: Arc::new(directory),
                name: name.to_string_lossy().into_owned(),
                size: largest(file.kind),
                replaces: true,
                base: self.user_base(stage, file),
            };
            // The kind is part of the key that the source uses; any kind fits.
            for kind in USER_KINDS {
                asked.files.insert((USER, kind as u8, file.number), item.clone());
            }
        }
        Ok(asked)
    }

    /// What is held, as it came, of a file of the user.
    fn user_base(&self, stage: &Stage, file: &OfferedUserFile) -> Option<Held> {
        let held = self.held_user_files.get(&file.place)?;
        let there = std::fs::File::open(file.place.path(stage)).ok()?;
        (Trace::of(&there).ok()? == held.trace).then(|| held.clone())
    }

    /// The versions that the source may patch, of the user's files that are wanted.
    pub fn user_bases(&self, stage: &Stage, wanted: &[u32]) -> Vec<v1::Base> {
        let files = self.user_files.iter().filter(|file| wanted.contains(&file.number));
        let bases = files.filter_map(|file| {
            let blake3 = self.user_base(stage, file)?.blocks.blake3();
            let blake3 = Bytes::copy_from_slice(&blake3);
            Some(v1::Base { kind: 0, number: file.number, blake3 })
        });
        bases.collect()
    }

    /// Notes which files a patch has spoilt: they are wanted whole.
    pub fn torn(&mut self, keys: &[ItemKey]) {
        for (ordinal, kind, number) in keys {
            if *ordinal == USER {
                if let Some(file) = self.user_files.iter().find(|f| f.number == *number) {
                    self.staged_user_files.remove(&file.place);
                    self.held_user_files.remove(&file.place);
                }
            } else if let Some(mailbox) = self.mailboxes.get_mut(ordinal)
                && let Ok(kind) = FileKind::try_from(i32::from(*kind))
            {
                mailbox.files.remove(&kind);
                mailbox.held.remove(&kind);
                mailbox.dirty = true;
            }
        }
    }

    /// Notes what has arrived.
    pub fn arrived(&mut self, messages: &[(u32, u32)], files: &[Arrived]) {
        for arrived in files {
            let (ordinal, kind, uid) = arrived.key;
            if ordinal == USER {
                if let Some(file) = self.user_files.iter().find(|f| f.number == uid) {
                    let blake3 = arrived.held.blocks.blake3();
                    self.staged_user_files.insert(file.place.clone(), blake3);
                    self.held_user_files.insert(file.place.clone(), arrived.held.clone());
                    self.user_files_as_sent.insert(file.place.clone());
                }
                continue;
            }
            let Some(mailbox) = self.mailboxes.get_mut(&ordinal) else { continue };
            mailbox.dirty = true;
            if let Ok(kind) = FileKind::try_from(i32::from(kind)) {
                mailbox.files.insert(kind, arrived.held.blocks.blake3());
                mailbox.held.insert(kind, arrived.held.clone());
                let converted = [FileKind::Index, FileKind::Header, FileKind::Annotations];
                mailbox.as_sent |= converted.contains(&kind);
            }
        }
        for of_mailbox in messages.chunk_by(|a, b| a.0 == b.0) {
            let Some((ordinal, _)) = of_mailbox.first() else { continue };
            if let Some(mailbox) = self.mailboxes.get_mut(ordinal) {
                mailbox.dirty = true;
                mailbox.have.extend(of_mailbox.iter().map(|(_, uid)| *uid));
            }
        }
        for mailbox in self.mailboxes.values_mut().filter(|m| !m.have.is_sorted()) {
            // What was there and what has come are sorted already, more or less.
            mailbox.have.sort();
            mailbox.have.dedup();
        }
    }

    /// The staged content of the user's files agrees with the last offer.
    pub fn user_files_complete(&self) -> bool {
        self.wanted_user_files().is_empty()
    }
}

/// A mailbox's identity after the checks of the receiver.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Its name, within the moved tree.
    pub name: MailboxName,
    /// Its uniqueid.
    pub id: UniqueId,
    /// Its partition on this server.
    pub partition: PartitionName,
}

/// What is wanted of one mailbox.
#[derive(Debug, Default)]
pub struct MailboxWants {
    /// Messages.
    pub messages: Vec<Entry>,
    /// Metadata files.
    pub files: Vec<FileKind>,
}

impl StagedMailbox {
    fn open(stage: &Stage, mailbox: &v1::Mailbox, checked: Checked) -> Result<Self, OfferError> {
        let layout = Layout::new(&stage.config);
        let path = layout
            .mailbox_dir(&checked.name, DirStyle::Id(&checked.id), &checked.partition)
            .map_err(|e| OfferError::Layout(e.to_string()))?;
        let root = stage.partitions.get(&checked.partition).ok_or_else(|| {
            OfferError::Layout(format!("no partition {}", checked.partition.as_str()))
        })?;
        let io = |source| StageError::Io { verb: "make", path: path.clone(), source };
        let directory =
            StagedDirectory::make(root, path.strip_prefix(root).unwrap_or(&path)).map_err(io)?;
        // What a shadow by names has left that was killed.
        directory.remove_links().map_err(io)?;
        let mut unverified = leftovers(&directory).map_err(io)?;
        let mut archive = Archive::open(stage, &checked, &path)?;
        if let Some(archive) = &mut archive {
            for (uid, size) in leftovers(&archive.directory).map_err(io)? {
                // An earlier session may have had it in the other place.
                match unverified.contains_key(&uid) {
                    true => archive.directory.remove(&message_name(uid)),
                    false => {
                        unverified.insert(uid, size);
                        archive.uids.insert(uid);
                    }
                }
            }
        }
        Ok(Self {
            name: checked.name,
            id: checked.id,
            partition: checked.partition,
            name_only: mailbox.partition.is_empty(),
            name_record: mailbox.name_record.to_vec(),
            id_record: mailbox.id_record.to_vec(),
            directory: Arc::new(directory),
            archive,
            have: Vec::new(),
            lacking: Vec::new(),
            unverified,
            files: BTreeMap::new(),
            held: BTreeMap::new(),
            listed: 0,
            offered: Offered::default(),
            dirty: true,
            as_sent: false,
            looked: Looked::default(),
            compared: None,
        })
    }

    /// What it holds.
    pub fn kind(&self) -> Kind {
        let record = Dlist::parse(&self.name_record).ok();
        let letters = record.as_ref().and_then(|r| r.get(b"T")).and_then(Dlist::as_bytes);
        Mbtype::from_letters(letters.unwrap_or_default()).kind
    }

    /// Whether it becomes a mailbox of this server: where sieve scripts are files, the
    /// mailbox of the scripts does not.
    pub fn is_published(&self, host: &Host) -> bool {
        host.keeps_by_id() || self.kind() != Kind::Sieve
    }

    /// Whether the message's file is staged and verified.
    pub fn has(&self, uid: u32) -> bool {
        self.have.binary_search(&uid).is_ok()
    }

    /// Where a metadata file is staged.
    pub fn meta_directory(
        &self,
        stage: &Stage,
        kind: FileKind,
    ) -> Result<Arc<StagedDirectory>, OfferError> {
        let Some((_, file)) = META.iter().find(|(k, _)| *k == kind) else {
            return Ok(Arc::clone(&self.directory));
        };
        let layout = Layout::new(&stage.config);
        let path = layout
            .meta_file(*file, &self.name, DirStyle::Id(&self.id), &self.partition)
            .map_err(|e| OfferError::Layout(e.to_string()))?;
        let parent = path.parent().unwrap_or(&path);
        if parent == self.directory.path() {
            return Ok(Arc::clone(&self.directory));
        }
        let root = layout
            .meta_root(*file, &self.partition)
            .map_err(|e| OfferError::Layout(e.to_string()))?;
        StagedDirectory::make(&root, parent.strip_prefix(&root).unwrap_or(parent))
            .map(Arc::new)
            .map_err(|source| StageError::Io { verb: "make", path: parent.into(), source }.into())
    }

    /// Takes one part of a scan; the wants grow with it. Parts come in UID order.
    pub fn scan_part(
        &mut self,
        part: &v1::MailboxScan,
        listing: &mut Listing,
        wants: &mut MailboxWants,
    ) -> Result<(), OfferError> {
        if part.first {
            *listing = Listing::default();
        }
        let entries = manifest::entries(&part.manifest)
            .ok_or_else(|| OfferError::Nonsense("a malformed manifest".into()))?;
        for entry in entries {
            listing.take(entry.uid)?;
            if !self.has(entry.uid) && !self.verify_leftover(&entry) {
                if let Some(archive) = self.archive.as_mut().filter(|_| entry.archived) {
                    archive.uids.insert(entry.uid);
                }
                wants.messages.push(entry);
            }
        }
        if part.last {
            self.finish_scan(part, listing)?;
        }
        Ok(())
    }

    fn finish_scan(
        &mut self,
        part: &v1::MailboxScan,
        listing: &mut Listing,
    ) -> Result<(), OfferError> {
        // What the index does not list any more was expunged and cleaned up.
        let listed = std::mem::take(&mut listing.uids);
        let whole = [[0, u32::MAX]];
        let intervals = if part.partial { part.intervals.as_chunks::<2>().0 } else { &whole };
        let told = |uid: &u32| intervals.iter().any(|[first, last]| (first..=last).contains(&uid));
        if !listed.iter().all(told) {
            return Err(OfferError::Nonsense("a message outside of what it tells".into()));
        }
        self.lacking.retain(|entry| !told(&entry.uid));
        self.listed = if part.partial { part.listed as usize } else { listed.len() };
        let stale = |uid: &u32| listed.binary_search(uid).is_err();
        let mut gone = Vec::new();
        for [first, last] in intervals {
            let start = self.have.partition_point(|uid| uid < first);
            let end = self.have.partition_point(|uid| uid <= last);
            let within = self.have.get(start..end).unwrap_or_default();
            gone.extend(within.iter().copied().filter(stale));
        }
        if !gone.is_empty() {
            self.dirty = true;
            self.compared = None;
        }
        // All that an earlier session left is asked for by the first scan, which is whole.
        let left = self.unverified.keys().copied().filter(|uid| stale(uid));
        for uid in gone.iter().copied().chain(left).collect::<Vec<_>>() {
            self.remove_message(uid);
        }
        if !gone.is_empty() {
            gone.sort_unstable();
            self.have.retain(|uid| gone.binary_search(uid).is_err());
        }
        self.unverified.clear();

        let mut files = BTreeMap::new();
        for file in &part.files {
            let kind = file.kind();
            if !META.iter().any(|(k, _)| *k == kind) {
                return Err(OfferError::Nonsense("a file of unknown kind in a mailbox".into()));
            }
            // Where all messages have one cache, or are all in one place, Cyrus makes it anew.
            let archive = self.archive.as_ref().is_some_and(|archive| archive.cache.is_some());
            if !file.absent && (kind != FileKind::ArchiveCache || archive) {
                files.insert(kind, hash(&file.blake3)?);
            }
        }
        for (kind, _) in META {
            match files.get(&kind) {
                Some(_) => {}
                // Cyrus's own, made anew when the index was brought to its version.
                None if self.offered.files == files => {}
                None => {
                    let archive = self.archive.as_ref().and_then(|a| a.cache.as_ref());
                    let directory = match kind {
                        FileKind::ArchiveCache => archive,
                        _ => Some(&self.directory),
                    };
                    if let Some(directory) = directory {
                        directory.remove(meta_name(kind));
                        directory.forget_as_sent(meta_name(kind));
                    }
                    self.files.remove(&kind);
                    self.held.remove(&kind);
                }
            }
        }
        let offered = Offered {
            records_blake3: part.records_blake3.to_vec(),
            records: part.records,
            uidvalidity: part.uidvalidity,
            last_uid: part.last_uid,
            highestmodseq: part.highestmodseq,
            files,
        };
        self.dirty |= self.offered != offered;
        self.offered = offered;
        Ok(())
    }

    /// Adds to the wants what was wanted before, has not come, and was not told of again: a
    /// record may have been in the making when its message was to be sent.
    pub fn want_again(&mut self, wants: &mut MailboxWants) {
        let have = &self.have;
        self.lacking.retain(|entry| have.binary_search(&entry.uid).is_err());
        if !self.lacking.is_empty() {
            wants.messages.append(&mut self.lacking);
            wants.messages.sort_by_key(|entry| entry.uid);
        }
        wants.files = self.wanted_files();
    }

    /// A message that was asked for last.
    pub fn asked_for(&self, uid: u32) -> Option<&Entry> {
        let at = self.lacking.binary_search_by_key(&uid, |entry| entry.uid).ok()?;
        self.lacking.get(at)
    }

    /// Remembers what was asked for.
    pub fn remember(&mut self, wants: MailboxWants) {
        self.lacking = wants.messages;
    }

    /// The metadata files that are not staged as they were offered last.
    fn wanted_files(&self) -> Vec<FileKind> {
        let offered = self.offered.files.iter();
        offered.filter(|(kind, hash)| self.files.get(kind) != Some(hash)).map(|(k, _)| *k).collect()
    }

    /// What is held, as it came, of a metadata file.
    fn base(&self, stage: &Stage, kind: FileKind) -> Option<Held> {
        let held = self.held.get(&kind)?;
        let directory = self.meta_directory(stage, kind).ok()?;
        directory.is_as_sent(meta_name(kind), &held.trace).then(|| held.clone())
    }

    /// What a staged file is, if it is as it came.
    pub fn blocks(&self, kind: FileKind, file: &std::fs::File) -> Option<Arc<Blocks>> {
        let held = self.held.get(&kind)?;
        (Trace::of(file).ok()? == held.trace).then(|| Arc::clone(&held.blocks))
    }

    /// Removes what was kept of files as they came, which has no place among a user's files.
    fn forget_as_sent(&self, stage: &Stage) {
        for kind in self.held.keys() {
            if let Ok(directory) = self.meta_directory(stage, *kind) {
                directory.forget_as_sent(meta_name(*kind));
            }
        }
    }

    /// Whether a file of an earlier session is the message; then it is held.
    /// After a crash a file may have its name and size but not its bytes, so
    /// only its content counts.
    fn verify_leftover(&mut self, entry: &Entry) -> bool {
        let Some(size) = self.unverified.remove(&entry.uid) else { return false };
        let name = message_name(entry.uid);
        let same = size == entry.size
            && entry.guid != [0; 20]
            && self
                .message_directory(entry.uid)
                .read(&name)
                .is_ok_and(|bytes| Sha1::digest(&bytes).as_slice() == entry.guid);
        if same {
            if let Err(at) = self.have.binary_search(&entry.uid) {
                self.have.insert(at, entry.uid);
            }
        } else {
            self.remove_message(entry.uid);
        }
        same
    }

    /// Where a message is staged.
    pub fn message_directory(&self, uid: u32) -> &StagedDirectory {
        match self.archive.as_ref().filter(|archive| archive.uids.contains(&uid)) {
            Some(archive) => &archive.directory,
            None => &self.directory,
        }
    }

    fn remove_message(&mut self, uid: u32) {
        self.message_directory(uid).remove(&message_name(uid));
        if let Some(archive) = &mut self.archive {
            archive.uids.remove(&uid);
        }
    }

    /// Whether all that is staged is of one moment: the metadata files are as
    /// they were offered, and no message that was offered was gone.
    pub fn is_consistent(&self) -> bool {
        // One that was renamed on the source before it could be read has nothing yet.
        let offered = self.name_only || !self.offered.files.is_empty();
        offered && self.files_complete() && self.have.len() == self.listed
    }

    /// Whether every metadata file is staged as it was offered.
    pub fn files_complete(&self) -> bool {
        self.files == self.offered.files
    }
}

/// The UIDs of a scan that is being received.
#[derive(Debug, Default)]
pub struct Listing {
    last: Option<u32>,
    uids: Vec<u32>,
}

impl Listing {
    fn take(&mut self, uid: u32) -> Result<(), OfferError> {
        if self.last.is_some_and(|last| uid <= last) {
            return Err(OfferError::Nonsense("a manifest that is not in UID order".into()));
        }
        if self.uids.len() >= manifest::MAX_MESSAGES {
            let most = manifest::MAX_MESSAGES;
            return Err(OfferError::Nonsense(format!("more than {most} messages in one mailbox")));
        }
        self.last = Some(uid);
        self.uids.push(uid);
        Ok(())
    }
}

impl Asked {
    /// The versions that the source may patch, of the files of a mailbox.
    pub fn bases(&self, mailbox: u32) -> Vec<v1::Base> {
        let of_mailbox = self.files.range((mailbox, 0, 0)..=(mailbox, u8::MAX, u32::MAX));
        let bases = of_mailbox.filter_map(|((_, kind, _), item)| {
            let blake3 = Bytes::copy_from_slice(&item.base.as_ref()?.blocks.blake3());
            Some(v1::Base { kind: i32::from(*kind), number: 0, blake3 })
        });
        bases.collect()
    }
}

impl Expected for Asked {
    fn item(&self, key: ItemKey) -> Option<Item> {
        let (mailbox, kind, uid) = key;
        if kind == FileKind::Message as u8 {
            let AskedMessages { directory, sizes, archive } = self.messages.get(&mailbox)?;
            let at = sizes.binary_search_by_key(&uid, |(uid, _)| *uid).ok()?;
            let (_, size) = sizes.get(at)?;
            let archived = archive.as_ref().filter(|(_, uids)| uids.contains(&uid));
            return Some(Item {
                directory: Arc::clone(archived.map_or(directory, |(archive, _)| archive)),
                name: message_name(uid),
                size: Size::Exactly(*size),
                replaces: false,
                base: None,
            });
        }
        self.files.get(&key).cloned()
    }
}

/// Messages that an earlier session left in a directory: UID to size. What had not arrived
/// whole is removed.
fn leftovers(directory: &StagedDirectory) -> std::io::Result<BTreeMap<u32, u64>> {
    let mut messages = BTreeMap::new();
    for (name, size) in directory.files()? {
        match message_uid(&name) {
            Some(uid) => {
                messages.insert(uid, size);
            }
            None if name.ends_with(".mbcopy-new") => directory.remove(&name),
            None => {}
        }
    }
    Ok(messages)
}

const USER_KINDS: [FileKind; 9] = [
    FileKind::UserSubscriptions,
    FileKind::UserSeen,
    FileKind::UserConversations,
    FileKind::UserCounters,
    FileKind::UserDav,
    FileKind::UserMboxkey,
    FileKind::UserXapianActive,
    FileKind::SieveBytecode,
    FileKind::SieveScript,
];

/// How large a file besides messages may be. What is read whole here has to fit into
/// memory; a cache, which is not, has some kilobytes of each message.
fn largest(kind: FileKind) -> Size {
    Size::AtMost(match kind {
        FileKind::Header | FileKind::SieveBytecode | FileKind::SieveScript => 64 << 20,
        FileKind::Cache => (manifest::MAX_MESSAGES as u64) << 14,
        _ => 4 << 30,
    })
}

/// The suffix of a user's file.
fn user_suffix(kind: FileKind) -> Option<&'static str> {
    Some(match kind {
        FileKind::UserSubscriptions => "sub",
        FileKind::UserSeen => "seen",
        FileKind::UserConversations => "conversations",
        FileKind::UserCounters => "counters",
        FileKind::UserDav => "dav",
        FileKind::UserMboxkey => "mboxkey",
        FileKind::UserXapianActive => "xapianactive",
        _ => return None,
    })
}

fn user_place(
    stage: &Stage,
    inbox: &StagedMailbox,
    file: &v1::UserFile,
) -> Result<UserPlace, OfferError> {
    let layout = Layout::new(&stage.config);
    let wrong = |e: crate::cyrus::path::PathError| OfferError::Layout(e.to_string());
    let style = DirStyle::Id(&inbox.id);
    if let Some(suffix) = user_suffix(file.kind()) {
        let path = layout.user_file(&inbox.name, style, suffix).map_err(wrong)?;
        return Ok(UserPlace { sieve: false, relative: below(&stage.conf, &path)? });
    }
    let suffix = match file.kind() {
        FileKind::SieveBytecode => "bc",
        FileKind::SieveScript => "script",
        _ => return Err(OfferError::Nonsense("a user's file of unknown kind".into())),
    };
    let name = script_name(&file.name)
        .ok_or_else(|| OfferError::Nonsense("a sieve script with an impossible name".into()))?;
    let directory = inbox
        .name
        .userid()
        .and_then(|user| layout.sieve_dir(&user, style).transpose())
        .ok_or_else(|| OfferError::Layout("sieve scripts are not kept by this server".into()))?
        .map_err(wrong)?;
    let path = directory.join(format!("{name}.{suffix}"));
    Ok(UserPlace { sieve: true, relative: below(&stage.sieve, &path)? })
}

/// A sieve script's name that can be the name of a file, and only that.
pub fn script_name(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let good = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && !name.chars().any(|c| c == '/' || c.is_control());
    good.then_some(name)
}

fn below(root: &Path, path: &Path) -> Result<PathBuf, OfferError> {
    path.strip_prefix(root)
        .map(Path::to_path_buf)
        .map_err(|_| OfferError::Layout(format!("{} lies outside the stage", path.display())))
}

fn stage_root<'a>(stage: &'a Stage, place: &UserPlace) -> &'a Path {
    if place.sieve { &stage.sieve } else { &stage.conf }
}

impl UserPlace {
    /// Where it is staged.
    pub fn path(&self, stage: &Stage) -> PathBuf {
        stage_root(stage, self).join(&self.relative)
    }
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], OfferError> {
    bytes.try_into().map_err(|_| OfferError::Nonsense("a hash of the wrong length".into()))
}

fn meta_name(kind: FileKind) -> &'static str {
    META.iter().find(|(k, _)| *k == kind).map_or("", |(_, file)| file.file_name())
}

/// The name of a message's file (every version: `<uid>.`).
pub fn message_name(uid: u32) -> String {
    format!("{uid}.")
}

/// The UID that a message's file is named by.
pub fn message_uid(name: &str) -> Option<u32> {
    let digits = name.strip_suffix('.')?;
    let uid: u32 = digits.parse().ok()?;
    (uid > 0 && message_name(uid) == name).then_some(uid)
}

impl MailboxWants {
    /// As the source is told.
    pub fn to_wire(&self, mailbox: u32, bases: Vec<v1::Base>) -> v1::Want {
        v1::Want {
            mailbox,
            bases,
            uid_runs: manifest::runs(self.messages.iter().map(|e| e.uid)),
            files: self.files.iter().map(|k| i32::from(*k)).collect(),
        }
    }

    /// Bytes of the wanted messages.
    pub fn bytes(&self) -> u64 {
        self.messages.iter().fold(0, |all, message| all.saturating_add(message.size))
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.files.is_empty()
    }
}

// Chunks name kinds by one byte; the largest kind must fit.
const _: () = assert!((FileKind::SieveScript as i32) < 256 && bulk::CHUNK_HEADER == 72);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::config::{Config, Defaults};
    use crate::moves::MoveId;

    #[test]
    fn no_more_is_listed_than_there_can_be() {
        let mut listing = Listing::default();
        listing.take(7).unwrap();
        assert!(listing.take(7).unwrap_err().to_string().contains("UID order"));
        listing.uids = vec![0; manifest::MAX_MESSAGES];
        let error = listing.take(8).unwrap_err().to_string();
        assert_eq!(error, "the source offers more than 16777216 messages in one mailbox");

        let conf = b"configdirectory: /nowhere\npartition-default: /nowhere/spool\n";
        let config = Config::parse(conf, Defaults::V3, &mut |_| Err(String::new())).unwrap();
        let stage = Stage::new(&config, &MoveId::random()).unwrap();
        let mailboxes = vec![v1::Mailbox::default(); manifest::MAX_MAILBOXES + 1];
        let table = v1::Table { mailboxes, ..v1::Table::default() };
        let check = |_: &v1::Mailbox| Err(OfferError::Nonsense("what was looked at".into()));
        let error = Inventory::default().table(&stage, table, check).unwrap_err();
        assert_eq!(error.to_string(), "the source offers more than 1000000 mailboxes");
    }

    #[test]
    fn sizes_that_cannot_be_added_are_too_many_bytes() {
        let entry =
            Entry { uid: 1, expunged: false, size: u64::MAX - 5, guid: [0; 20], archived: false };
        let wants = MailboxWants { messages: vec![entry; 3], files: Vec::new() };
        assert_eq!(wants.bytes(), u64::MAX);
    }
}
