//! Reading one mailbox: its index, and whether its files are what it says.

use super::ahead::ToRead;
use super::check;
use super::contents::Contents;
use super::inventory::{SourceMailbox, problem};
use super::looked::Look;
use super::records::{self, Listed, Read, Records};
use crate::cyrus::config::MetaFile;
use crate::cyrus::index::IndexView;
use crate::cyrus::path::Layout;
use crate::host::{Host, ofd};
use crate::wire::blocks::Blocks;
use crate::wire::manifest::{ENTRY, MAX_ENTRIES};
use crate::wire::v1::{self, FileKind, problem::Severity};
use bytes::{Bytes, BytesMut};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the lock of an index is waited for; nobody waits for us meanwhile.
const INDEX_WAIT: Duration = Duration::from_secs(30);

/// A file that was changed less than this before it was read may change again
/// without another time stamp.
const STAMP_GRAIN: i64 = 2;

/// The files of a mailbox besides its messages.
pub const META: [(FileKind, MetaFile); 5] = [
    (FileKind::Header, MetaFile::Header),
    (FileKind::Index, MetaFile::Index),
    (FileKind::Cache, MetaFile::Cache),
    (FileKind::ArchiveCache, MetaFile::ArchiveCache),
    (FileKind::Annotations, MetaFile::Annotations),
];

/// What is remembered of a mailbox between scans.
#[derive(Debug, Default)]
pub struct Known {
    stamps: Vec<Option<Stamp>>,
    /// When the stamps were taken, in seconds since 1970.
    taken: i64,
    /// Of an older server: which conversion was scanned.
    conversion: u64,
    /// UIDs up to this one were looked at on disk.
    pub(super) checked: u32,
    /// The last look at all of them that found nothing wrong.
    pub(super) looked: Option<Look>,
    /// Messages that cannot be copied.
    pub bad: BTreeSet<u32>,
    /// What the mailbox adds to the totals.
    pub totals: v1::Totals,
    /// What a client can observe of it, as a digest.
    pub observable: Vec<u8>,
    /// The records that were told last.
    records: Option<Arc<Records>>,
    /// What was read of its index before the first scan.
    pub(super) ahead: Option<(Records, Vec<Listed>)>,
}

impl Known {
    /// Makes the next scan tell everything again.
    pub fn forget(&mut self) {
        self.stamps.clear();
        self.conversion = 0;
        self.records = None;
    }
}

/// What tells that a file has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether this is the same file, which has become no shorter since.
    pub fn is_of_same_file(&self, later: &Self) -> bool {
        self.inode == later.inode && self.size <= later.size
    }

    /// Whether a change after the stamp was `taken` would make another one.
    pub fn is_settled(&self, taken: i64) -> bool {
        self.changed.0 < taken - STAMP_GRAIN
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Found {
    /// What the target is told; none of a mailbox that cannot be read.
    told: Option<Told>,
    /// What stands against copying.
    pub problems: Vec<v1::Problem>,
}

/// What the target is told of a mailbox.
#[derive(Debug)]
struct Told {
    listed: Vec<Listed>,
    last: v1::MailboxScan,
}

impl Found {
    /// Parts for the wire, in order; each is made when it is asked for.
    pub fn parts(&self) -> impl Iterator<Item = v1::MailboxScan> + '_ {
        self.told.iter().flat_map(|Told { listed, last }| {
            let count = listed.len().div_ceil(MAX_ENTRIES).max(1);
            (0..count).map(move |n| {
                let from = n * MAX_ENTRIES;
                let to = listed.len().min(from + MAX_ENTRIES);
                let before =
                    v1::MailboxScan { mailbox: last.mailbox, ..v1::MailboxScan::default() };
                v1::MailboxScan {
                    first: n == 0,
                    manifest: manifest(listed.get(from..to).unwrap_or_default()),
                    ..if n + 1 == count { last.clone() } else { before }
                }
            })
        })
    }
}

fn manifest(listed: &[Listed]) -> Bytes {
    let mut out = BytesMut::with_capacity(listed.len() * ENTRY);
    listed.iter().for_each(|record| record.entry.encode(&mut out));
    out.freeze()
}

/// Scans one mailbox; `None` when nothing has changed since `known`. Under the
/// user's freeze no lock of the index is needed.
pub fn scan(
    host: &Host,
    mailbox: &SourceMailbox,
    known: &mut Known,
    contents: &mut Contents,
    frozen: bool,
) -> Option<Found> {
    let paths = meta_paths(host, mailbox);
    let taken = now();
    let stamps: Vec<_> = paths.iter().map(|(_, path)| stamp(path)).collect();
    let settled = |s: &Option<Stamp>| s.is_none_or(|s| s.is_settled(known.taken));
    let unchanged = match &mailbox.converted {
        // Whoever converts it has looked whether it has changed.
        Some(conversion) => known.conversion == conversion.number,
        None => known.stamps == stamps && stamps.iter().all(settled),
    };
    if unchanged {
        return None;
    }
    let mut found = Found::default();
    let before = std::mem::take(&mut known.stamps);
    match read((host, mailbox), &paths, known, contents, frozen, &mut found) {
        Ok(()) => {
            known.stamps = stamps;
            known.taken = taken;
            known.conversion = mailbox.converted.as_ref().map_or(0, |c| c.number);
        }
        Err(why) => {
            known.stamps = before;
            found.told = None;
            found.problems.push(why.problem(host, mailbox));
        }
    }
    Some(found)
}

/// Looks at one mailbox for the plan: what stands against copying it. The next scan tells
/// everything; of one that is as an earlier session has found it, it is yet to be read.
pub(super) fn look(
    host: &Host,
    mailbox: &SourceMailbox,
    known: &mut Known,
    to_read: &mut ToRead,
) -> Vec<v1::Problem> {
    let paths = meta_paths(host, mailbox);
    if let (Some(before), Some(places)) = (&known.looked, Places::of(host, mailbox))
        && let Some(totals) = before.totals(&Look::begin(&places, path_of(&paths, FileKind::Index)))
    {
        known.totals = totals;
        to_read.add(mailbox.ordinal, totals.messages, paths);
        return Vec::new();
    }
    match examine((host, mailbox), &paths, known, &mut Contents::default(), false) {
        Ok(examined) => examined.problems,
        Err(why) => vec![why.problem(host, mailbox)],
    }
}

/// Why a mailbox cannot be read.
enum Unreadable {
    /// Something is wrong with its files.
    Damaged(String),
    /// Others have not let go of its index.
    Locked(String),
}

impl From<String> for Unreadable {
    fn from(text: String) -> Self {
        Self::Damaged(text)
    }
}

impl Unreadable {
    fn problem(self, host: &Host, mailbox: &SourceMailbox) -> v1::Problem {
        let path = mailbox.directory(host).unwrap_or_default();
        let (code, text, advice) = match (self, host.offline.is_some()) {
            (Self::Locked(text), _) => (
                "locked-mailbox",
                text,
                "push again; if it stays so, look which process of Cyrus has it (fuser)",
            ),
            (Self::Damaged(text), false) => {
                let advice = "mend it (reconstruct on this server), and push again";
                ("unreadable-mailbox", text, advice)
            }
            (Self::Damaged(text), true) => (
                "unreadable-mailbox",
                text,
                "nothing is written to this disk: mend it in a copy, and push from there",
            ),
        };
        problem(Severity::Refuse, code, (host, mailbox), 0, &path, text, advice)
    }
}

fn read(
    (host, mailbox): (&Host, &SourceMailbox),
    paths: &[(FileKind, PathBuf)],
    known: &mut Known,
    contents: &mut Contents,
    frozen: bool,
    found: &mut Found,
) -> Result<(), Unreadable> {
    let Examined { read, problems } = examine((host, mailbox), paths, known, contents, frozen)?;
    found.problems.extend(problems);
    let mut files = Vec::new();
    for (kind, path) in paths {
        let content = match kind {
            // As it was when its records were read.
            FileKind::Index => Some(Arc::clone(read.blocks())),
            FileKind::Cache => contents.find(path, read.cached()).map_err(|e| at(path, &e))?,
            _ => contents.find(path, 0).map_err(|e| at(path, &e))?,
        };
        files.push(v1::FileState {
            kind: (*kind).into(),
            absent: content.is_none(),
            size: content.as_ref().map_or(0, |c| c.size()),
            blake3: content.map(|c| Bytes::copy_from_slice(&c.blake3())).unwrap_or_default(),
        });
    }
    let header = &read.header;
    let mut last = v1::MailboxScan {
        mailbox: mailbox.ordinal,
        last: true,
        records: header.num_records,
        uidvalidity: header.uidvalidity,
        last_uid: header.last_uid,
        highestmodseq: header.highestmodseq,
        records_blake3: Bytes::copy_from_slice(&read.digest()),
        files,
        ..v1::MailboxScan::default()
    };
    // The index and the cache change also when nobody changes anything.
    let stable = [FileKind::Header, FileKind::Annotations];
    let observable = v1::MailboxScan {
        files: last.files.iter().filter(|f| stable.contains(&f.kind())).cloned().collect(),
        ..last.clone()
    };
    known.observable = observable.encode_to_vec();
    last.listed = known.totals.messages as u32;
    if let Some(intervals) = &read.intervals {
        last.partial = true;
        last.intervals = intervals.iter().flat_map(|(first, end)| [*first, *end]).collect();
    }
    let (records, mut listed) = read.remembered();
    known.records = Some(Arc::new(records));
    listed.retain(|record| !record.unlinked && !known.bad.contains(&record.entry.uid));
    found.told = Some(Told { listed, last });
    Ok(())
}

/// An index and what is wrong with the files that it lists.
struct Examined {
    read: Read,
    problems: Vec<v1::Problem>,
}

/// Reads the index and looks at the files; what it adds to the totals is known
/// afterwards.
fn examine(
    (host, mailbox): (&Host, &SourceMailbox),
    paths: &[(FileKind, PathBuf)],
    known: &mut Known,
    contents: &mut Contents,
    frozen: bool,
) -> Result<Examined, Unreadable> {
    if let Some(Err(text)) = mailbox.converted.as_ref().map(|c| &c.files) {
        return Err(text.clone().into());
    }
    let places = Places::of(host, mailbox).ok_or_else(|| "it has no directory".to_owned())?;
    let index_path = path_of(paths, FileKind::Index).unwrap_or(&places.messages);
    let now = (known.checked == 0).then(|| Look::begin(&places, Some(index_path)));
    if let (Some(before), Some(now)) = (&known.looked, &now) {
        known.checked = before.checked(now).unwrap_or_default();
    }
    let first = now.filter(|_| known.checked == 0);
    let remembered = known.records.clone();
    let early = match known.records {
        None if !frozen => known.ahead.take().or_else(|| read_ahead(paths, contents)),
        _ => None,
    };
    let mut read_now = |ahead: Option<(Records, Vec<Listed>)>| -> Result<_, Unreadable> {
        let before = ahead.as_ref().map(|(records, _)| records).or(remembered.as_deref());
        let (file, lock) = match open_index(index_path, frozen) {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(Unreadable::Locked(at(index_path, &e)));
            }
            opened => opened.map_err(|e| at(index_path, &e))?,
        };
        let blocks = contents.find(index_path, 0).map_err(|e| at(index_path, &e))?;
        let blocks = blocks.ok_or_else(|| "cyrus.index is missing".to_owned())?;
        let read = records::read(&file, blocks, before).map_err(|e| at(index_path, &e))?;
        let completed = match ahead {
            Some((_, listed)) => read.completing(listed),
            None => read,
        };
        Ok((completed, lock))
    };
    // Looking at many files takes long, and must not keep mail waiting. Only what is odd is
    // looked at again under the lock, where the index and the directory belong together for
    // certain.
    let (mut read, lock) = read_now(early)?;
    drop(lock);
    let files = |read: &[Listed], known: &mut Known, odd: &BTreeSet<u32>| {
        check::files((host, mailbox), &places, read, known, odd)
    };
    let mut problems = files(&read.changed, known, &BTreeSet::new())?;
    if !problems.is_empty() && !frozen {
        let odd = problems.iter().map(|problem| problem.uid).collect();
        if mailbox.converted.is_some() && host.offline.is_none() {
            // What was converted is of a moment ago.
            let (listed, _lock) = as_it_is(host, mailbox, read.changed.iter().copied())?;
            problems = files(&listed, known, &odd)?;
        } else {
            let whole = read.intervals.is_none();
            let (again, _lock) = read_now(whole.then(|| read.remembered()))?;
            problems = files(&again.changed, known, &odd)?;
            read = again;
        }
    }
    for (uid, code, text) in mailbox.converted.iter().flat_map(|c| &c.flawed) {
        let (path, advice) = (places.messages.join(format!("{uid}.")), check::MEND);
        let at = (host, mailbox);
        let flaw = problem(Severity::BadMessage, code, at, *uid, &path, text.clone(), advice);
        problems.push(flaw);
    }
    known.totals = read.totals(&known.bad);
    if let Some(now) = first {
        let good = problems.is_empty() && known.bad.is_empty();
        known.looked = good.then(|| now.ended(known.checked, &known.totals));
    }
    Ok(Examined { read, problems })
}

/// Reads an index while others go on writing to it, so that their lock is needed only for
/// what they change meanwhile; `None` where that went wrong.
pub(super) fn read_ahead(
    paths: &[(FileKind, PathBuf)],
    contents: &mut Contents,
) -> Option<(Records, Vec<Listed>)> {
    let path = path_of(paths, FileKind::Index)?;
    let taken = now();
    let stamp = stamp(path)?;
    let read = records::read_ahead(&File::open(path).ok()?).ok()?;
    contents.note(path, (stamp, taken), Blocks::clone(read.blocks()), 0);
    Some(read.remembered())
}

/// The records of an older server's mailbox as they are now, in so far as they tell
/// which files there must be, with the lock that keeps them so.
pub(crate) fn as_it_is(
    host: &Host,
    mailbox: &SourceMailbox,
    converted: impl Iterator<Item = Listed>,
) -> Result<(Vec<Listed>, Option<File>), String> {
    let partition = mailbox.entry.partition.as_ref().ok_or("it has no directory")?;
    let layout = Layout::new(&host.config);
    let path = layout.meta_file(MetaFile::Index, &mailbox.entry.name, mailbox.style(), partition);
    let path = path.map_err(|e| e.to_string())?;
    let (bytes, lock) = read_index(&path, false).map_err(|e| at(&path, &e))?;
    let index = IndexView::parse(&bytes).map_err(|e| at(&path, &e))?;
    // What is not listed there any more was expunged, and its file may have gone.
    let expunged = |mut record: Listed| {
        record.entry.expunged = true;
        (record.entry.uid, record)
    };
    let mut listed: BTreeMap<u32, Listed> = converted.map(expunged).collect();
    for record in index.records() {
        let record = record.map_err(|e| at(&path, &e))?;
        listed.insert(record.uid, Listed::from(&record));
    }
    Ok((listed.into_values().collect(), lock))
}

/// Where a mailbox's messages are.
#[derive(Debug, Clone)]
pub struct Places {
    /// Those that are not archived.
    pub messages: PathBuf,
    /// The others, where that is another directory.
    pub archived: Option<PathBuf>,
}

impl Places {
    /// Of a mailbox that has a directory.
    pub fn of(host: &Host, mailbox: &SourceMailbox) -> Option<Self> {
        let messages = mailbox.directory(host)?;
        let partition = mailbox.entry.partition.as_ref()?;
        let layout = Layout::new(&host.config);
        let archived = layout.archive_dir(&mailbox.entry.name, mailbox.style(), partition).ok();
        Some(Self { archived: archived.filter(|path| *path != messages), messages })
    }
}

/// The metadata files of a mailbox that this configuration has.
pub fn meta_paths(host: &Host, mailbox: &SourceMailbox) -> Vec<(FileKind, PathBuf)> {
    if let Some(conversion) = &mailbox.converted {
        return conversion.files.as_ref().cloned().unwrap_or_default();
    }
    let Some(partition) = &mailbox.entry.partition else { return Vec::new() };
    let layout = Layout::new(&host.config);
    let mut paths: Vec<(FileKind, PathBuf)> = META
        .iter()
        .filter_map(|(kind, file)| {
            let path =
                layout.meta_file(*file, &mailbox.entry.name, mailbox.style(), partition).ok()?;
            Some((*kind, path))
        })
        .collect();
    one_cache(&mut paths);
    paths
}

/// Where the metadata file of a kind is.
pub(super) fn path_of(paths: &[(FileKind, PathBuf)], wanted: FileKind) -> Option<&Path> {
    paths.iter().find(|(kind, _)| *kind == wanted).map(|(_, path)| path.as_path())
}

/// Archived messages have a cache of their own only where it is another file.
pub fn one_cache(paths: &mut Vec<(FileKind, PathBuf)>) {
    let cache = path_of(paths, FileKind::Cache).map(Path::to_owned);
    let same = |path: &PathBuf| cache.as_ref() == Some(path);
    paths.retain(|(kind, path)| *kind != FileKind::ArchiveCache || !same(path));
}

/// Reads an index, and keeps it locked against writers unless it is frozen anyway.
pub(crate) fn read_index(path: &Path, frozen: bool) -> io::Result<(Bytes, Option<File>)> {
    let (mut file, lock) = open_index(path, frozen)?;
    let mut bytes = Vec::with_capacity(file.metadata()?.len() as usize);
    file.read_to_end(&mut bytes)?;
    Ok((bytes.into(), lock))
}

/// Opens an index, and keeps it locked against writers unless it is frozen anyway.
fn open_index(path: &Path, frozen: bool) -> io::Result<(File, Option<File>)> {
    loop {
        let file = File::open(path)?;
        if !frozen && !ofd::lock(&file, ofd::Mode::Shared, INDEX_WAIT)? {
            return Err(ofd::stays_locked(INDEX_WAIT));
        }
        let opened = file.metadata()?;
        let named = std::fs::metadata(path)?;
        // Cyrus puts a new file in its place when it repacks.
        if (opened.dev(), opened.ino()) == (named.dev(), named.ino()) {
            // The lock belongs to the open file, which both have.
            let lock = if frozen { None } else { Some(file.try_clone()?) };
            return Ok((file, lock));
        }
    }
}

/// The stamp of a file, if it is there.
pub fn stamp(path: &Path) -> Option<Stamp> {
    let stat = std::fs::metadata(path).ok()?;
    Some(Stamp {
        inode: stat.ino(),
        size: stat.len(),
        modified: (stat.mtime(), stat.mtime_nsec()),
        changed: (stat.ctime(), stat.ctime_nsec()),
    })
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
