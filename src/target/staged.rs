//! A mailbox in the stage: what it holds, and what a scan of the source makes it want.

use super::archive::Archive;
use super::asked::{MailboxWants, Wanted};
use super::earlier::Earlier;
use super::offer::{Checked, OfferError};
use super::own_index::OwnIndex;
use super::receive::Held;
use super::stage::{Left, Stage, StageError, StagedDirectory, Trace};
use crate::cyrus::config::MetaFile;
use crate::cyrus::dlist::Dlist;
use crate::cyrus::mboxlist::mbtype::{Kind, Mbtype};
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::cyrus::release::Release;
use crate::host::Host;
use crate::inventory::{Groups, Shape};
use crate::source::wanted::{Message, Wanted as Listed};
use crate::wire::blocks::Blocks;
use crate::wire::manifest::{self, Entry};
use crate::wire::v1::{self, FileKind};
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
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
    lacking: Arc<Vec<Wanted>>,
    /// Messages that an earlier session left, by UID: their size, and whether it has put them
    /// onto stable storage as they are.
    unverified: BTreeMap<u32, (u64, bool)>,
    /// What the index says that it has put there, too.
    proven: Option<Peekable<Listed>>,
    /// Whether nothing is new or gone since then.
    pub as_earlier: bool,
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
    /// Its index in the form of this server's Cyrus.
    pub own_index: OwnIndex,
    /// The records that were read last.
    pub compared: Option<Compared>,
}

/// Staged records that were read, and looked up whether their messages are there.
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
    /// Groups that list a message that was not there.
    pub lacking: BTreeSet<u32>,
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

impl StagedMailbox {
    /// Opens its place in the stage, with what an earlier session left there.
    pub fn open(
        stage: &Stage,
        mailbox: &v1::Mailbox,
        checked: Checked,
        earlier: Option<(&Earlier, &Release)>,
    ) -> Result<Self, OfferError> {
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
        let holds = |left: &Left| earlier.is_some_and(|(earlier, _)| earlier.holds(left));
        let mut unverified = leftovers(&directory, holds).map_err(io)?;
        let mut archive = Archive::open(stage, &checked, &path)?;
        if let Some(archive) = &mut archive {
            for (uid, left) in leftovers(&archive.directory, holds).map_err(io)? {
                // An earlier session may have had it in the other place.
                match unverified.contains_key(&uid) {
                    true => archive.directory.remove(&message_name(uid)),
                    false => {
                        unverified.insert(uid, left);
                        archive.insert(uid);
                    }
                }
            }
        }
        let mut staged = Self {
            name: checked.name,
            id: checked.id,
            partition: checked.partition,
            name_only: mailbox.partition.is_empty(),
            name_record: mailbox.name_record.to_vec(),
            id_record: mailbox.id_record.to_vec(),
            directory: Arc::new(directory),
            archive,
            have: Vec::new(),
            lacking: Arc::default(),
            unverified,
            proven: None,
            as_earlier: false,
            files: BTreeMap::new(),
            held: BTreeMap::new(),
            listed: 0,
            offered: Offered::default(),
            dirty: true,
            as_sent: false,
            own_index: OwnIndex::default(),
            compared: None,
        };
        if let Some(earlier) = earlier {
            staged.take_up(stage, earlier);
        }
        Ok(staged)
    }

    /// Takes up the metadata files that an earlier session has put onto stable storage.
    fn take_up(&mut self, stage: &Stage, (earlier, release): (&Earlier, &Release)) {
        let of_mailbox = earlier.mailbox(self.id.as_str(), self.partition.as_str());
        // Where messages are archived, the index says where they are staged, which may change.
        let Some(of_mailbox) = of_mailbox.filter(|_| self.archive.is_none()) else { return };
        let place = |kind| {
            let directory = self.meta_directory(stage, kind).ok()?;
            Some(directory.path().join(meta_name(kind)))
        };
        let files = of_mailbox.files((earlier, release), |kind| Left::of(&place(kind)?));
        let index = place(FileKind::Index);
        self.as_earlier = files.len() == of_mailbox.count();
        if let (true, Some(index)) = (files.iter().any(|(k, _)| *k == FileKind::Index), index) {
            self.proven = Some(Listed::of(Some(&index), &of_mailbox.uid_runs).peekable());
        }
        // The session that made them could patch what had come; this one gets it whole.
        for (kind, _) in &files {
            if let Ok(directory) = self.meta_directory(stage, *kind) {
                directory.forget_as_sent(meta_name(*kind));
            }
        }
        self.files = files.into_iter().collect();
    }

    /// UIDs whose files are staged and verified, ascending.
    pub fn staged(&self) -> &[u32] {
        &self.have
    }

    /// The metadata files that are staged in the form of this server's Cyrus: BLAKE3 as they
    /// came, and their sizes now.
    pub fn staged_files<'a>(
        &'a self,
        stage: &'a Stage,
    ) -> impl Iterator<Item = (FileKind, [u8; 32], u64)> + 'a {
        self.files.iter().filter(|_| !self.as_sent).filter_map(|(kind, blake3)| {
            let directory = self.meta_directory(stage, *kind).ok()?;
            let left = Left::of(&directory.path().join(meta_name(*kind)))?;
            Some((*kind, *blake3, left.size))
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
                    archive.insert(entry.uid);
                }
                wants.add(Wanted::new(entry.uid, entry.size));
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
        Arc::make_mut(&mut self.lacking).retain(|message| !told(&message.uid));
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
        self.proven = None;

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
                    self.as_earlier &= self.files.remove(&kind).is_none();
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
        let lacking = std::mem::take(&mut self.lacking);
        let lacks = |message: &&Wanted| !self.has(message.uid);
        wants.add_all(lacking.iter().filter(lacks).copied());
        wants.files = self.wanted_files();
    }

    /// Remembers what was asked for.
    pub fn remember(&mut self, wants: MailboxWants) {
        self.lacking = wants.messages;
    }

    /// Takes messages that have arrived, and are verified.
    pub fn arrived(&mut self, messages: &[u32]) {
        (self.dirty, self.as_earlier) = (true, false);
        self.have.extend_from_slice(messages);
        if !self.have.is_sorted() {
            // What was there and what has come are sorted already, more or less.
            self.have.sort();
        }
        self.have.dedup();
    }

    /// Takes a metadata file that has arrived, and is verified.
    pub fn file_arrived(&mut self, kind: FileKind, held: Held) {
        (self.dirty, self.as_earlier) = (true, false);
        self.files.insert(kind, held.blocks.blake3());
        self.held.insert(kind, held);
        let converted = [FileKind::Index, FileKind::Header, FileKind::Annotations];
        self.as_sent |= converted.contains(&kind);
    }

    /// A patch has spoilt a metadata file: it is wanted whole.
    pub fn file_torn(&mut self, kind: FileKind) {
        self.files.remove(&kind);
        self.held.remove(&kind);
        (self.dirty, self.as_earlier) = (true, false);
    }

    /// The metadata files that are not staged as they were offered last.
    fn wanted_files(&self) -> Vec<FileKind> {
        let offered = self.offered.files.iter();
        offered.filter(|(kind, hash)| self.files.get(kind) != Some(hash)).map(|(k, _)| *k).collect()
    }

    /// What is held, as it came, of a metadata file.
    pub fn base(&self, stage: &Stage, kind: FileKind) -> Option<Held> {
        let held = self.held.get(&kind)?;
        let directory = self.meta_directory(stage, kind).ok()?;
        directory.is_as_sent(meta_name(kind), &held.trace).then(|| held.clone())
    }

    /// What a staged file is, if it is as it came, or the index as it was made of that.
    pub fn blocks(&self, kind: FileKind, file: &std::fs::File) -> Option<Arc<Blocks>> {
        let made = self.own_index.made().filter(|_| kind == FileKind::Index);
        let trace = Trace::of(file).ok()?;
        let mut known = self.held.get(&kind).into_iter().chain(made);
        known.find(|held| held.trace == trace).map(|held| Arc::clone(&held.blocks))
    }

    /// Removes what was kept of files as they came, which has no place among a user's files.
    pub fn forget_as_sent(&self, stage: &Stage) {
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
        let Some((size, durable)) = self.unverified.remove(&entry.uid) else { return false };
        let name = message_name(entry.uid);
        let known = size == entry.size && entry.guid != [0; 20];
        let proven = known && durable && self.is_proven(entry);
        self.as_earlier &= proven;
        let read = || self.message_directory(entry.uid).read(&name);
        let same = proven
            || known && read().is_ok_and(|bytes| Sha1::digest(&bytes).as_slice() == entry.guid);
        if same {
            if let Err(at) = self.have.binary_search(&entry.uid) {
                self.have.insert(at, entry.uid);
            }
        } else {
            self.remove_message(entry.uid);
        }
        same
    }

    /// Whether a message is what an earlier session has put onto stable storage; messages are
    /// asked for in UID order.
    fn is_proven(&mut self, entry: &Entry) -> bool {
        let Some(proven) = &mut self.proven else { return false };
        while proven.next_if(|message| message.uid < entry.uid).is_some() {}
        let same = |message: &Message| {
            message.uid == entry.uid
                && message.size == entry.size
                && message.guid == Some(entry.guid)
        };
        proven.next_if(same).is_some()
    }

    /// Where a message is staged.
    pub fn message_directory(&self, uid: u32) -> &StagedDirectory {
        match self.archive.as_ref().filter(|archive| archive.uids().contains(&uid)) {
            Some(archive) => &archive.directory,
            None => &self.directory,
        }
    }

    fn remove_message(&mut self, uid: u32) {
        self.as_earlier = false;
        self.message_directory(uid).remove(&message_name(uid));
        if let Some(archive) = &mut self.archive {
            archive.remove(uid);
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

/// Messages that an earlier session left in a directory, by UID: size, and whether they are
/// on stable storage. What had not arrived
/// whole is removed.
fn leftovers(
    directory: &StagedDirectory,
    durable: impl Fn(&Left) -> bool,
) -> std::io::Result<BTreeMap<u32, (u64, bool)>> {
    let (mut messages, mut unfinished) = (BTreeMap::new(), Vec::new());
    directory.each_file(|name, left| match message_uid(name) {
        Some(uid) => drop(messages.insert(uid, (left.size, durable(&left)))),
        None if name.ends_with(".mbcopy-new") => unfinished.push(name.to_owned()),
        None => {}
    })?;
    unfinished.iter().for_each(|name| directory.remove(name));
    Ok(messages)
}

/// A BLAKE3 of the peer's.
pub fn hash(bytes: &[u8]) -> Result<[u8; 32], OfferError> {
    bytes.try_into().map_err(|_| OfferError::Nonsense("a hash of the wrong length".into()))
}

/// The name of a metadata file.
pub fn meta_name(kind: FileKind) -> &'static str {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_listed_than_there_can_be() {
        let mut listing = Listing::default();
        listing.take(7).unwrap();
        assert!(listing.take(7).unwrap_err().to_string().contains("UID order"));
        listing.uids = vec![0; manifest::MAX_MESSAGES];
        let error = listing.take(8).unwrap_err().to_string();
        assert_eq!(error, "the source offers more than 16777216 messages in one mailbox");
    }
}
