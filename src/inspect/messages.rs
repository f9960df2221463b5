//! The messages of one mailbox, streamed: what the index says of each, whether
//! its file is there and whole, and on request what its content is.

use super::copy::Copy;
use super::data;
use crate::agent::Sender;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{IndexError, IndexView, Record};
use crate::cyrus::path::Layout;
use crate::source::inventory::SourceMailbox;
use crate::source::mailbox::{as_it_is, meta_paths, read_index};
use crate::source::records::Listed;
use crate::source::send;
use crate::wire::v1::{self, CopyItem, CopyKind, FileKind, copy_record::File as Standing};
use bytes::Bytes;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Records of one part.
const PART: usize = 512;

/// Threads that read messages.
const READERS: usize = 8;

/// Files that are not as the index says, by UID.
type Odd = BTreeMap<u32, (Standing, String)>;

/// What is told of a mailbox, read at one moment.
struct Snapshot {
    index: Bytes,
    header: MailboxHeader,
    annotations: BTreeMap<u32, Vec<CopyItem>>,
    odd: Odd,
}

/// Why a mailbox is not told of.
enum Trouble {
    Gone,
    Unreadable(String),
}

/// Tells everything of one mailbox.
///
/// Errors: the coordinator is gone.
pub fn tell(copy: &Copy, mailbox: &SourceMailbox, content: bool, to: &Sender) -> io::Result<()> {
    let mut header = v1::CopyHeader { ordinal: mailbox.ordinal, ..v1::CopyHeader::default() };
    let last = v1::CopyRecords { records: Vec::new(), last: true };
    let snapshot = match read(copy, mailbox) {
        Ok(snapshot) => snapshot,
        Err(trouble) => {
            match trouble {
                Trouble::Gone => header.gone = true,
                Trouble::Unreadable(text) => header.unreadable = text,
            }
            to.part(v1::part::Part::CopyHeader(header))?;
            return to.part(v1::part::Part::CopyRecords(last));
        }
    };
    // Parsed before, without an error.
    let Ok(index) = IndexView::parse(&snapshot.index) else { return Ok(()) };
    let facts = index.header();
    header.index_minor = facts.minor;
    header.uidvalidity = facts.uidvalidity;
    header.last_uid = facts.last_uid;
    header.highestmodseq = facts.highestmodseq;
    header.deleted_modseq = facts.deletedmodseq;
    header.recent_uid = facts.recentuid;
    header.has_modseqs = facts.has_modseqs();
    header.groups = data::properties(&copy.listing.top, facts, &snapshot.header);
    let names = snapshot.header.user_flags.iter().cloned();
    header.keywords = names.map(|name| name.unwrap_or_default().into()).collect();
    to.part(v1::part::Part::CopyHeader(header))?;
    let mut records = index.records().filter_map(Result::ok).peekable();
    while records.peek().is_some() {
        let part: Vec<Record> = records.by_ref().take(PART).collect();
        let mut told: Vec<v1::CopyRecord> = part.iter().map(|r| snapshot.record(r)).collect();
        if content {
            hash(copy, mailbox, &part, &mut told);
        }
        to.part(v1::part::Part::CopyRecords(v1::CopyRecords { records: told, last: false }))?;
    }
    to.part(v1::part::Part::CopyRecords(last))
}

impl Snapshot {
    fn record(&self, record: &Record) -> v1::CopyRecord {
        let odd = self.odd.get(&record.uid);
        let file = match odd {
            Some((standing, _)) => *standing,
            None if record.is_unlinked() => Standing::NotLookedFor,
            None => Standing::There,
        };
        v1::CopyRecord {
            uid: record.uid,
            modseq: record.modseq,
            system_flags: record.system_flags.into(),
            keywords: record.user_flag_numbers().map(|n| n as u32).collect(),
            internaldate_ns: record.internaldate.nanoseconds(),
            savedate_ns: record.savedate.nanoseconds(),
            size: record.size,
            guid: record.guid.map(|g| Bytes::copy_from_slice(g.as_bytes())).unwrap_or_default(),
            expunged: record.is_expunged(),
            annotations: self.annotations.get(&record.uid).cloned().unwrap_or_default(),
            file: file.into(),
            file_text: odd.map(|(_, text)| text.clone()).unwrap_or_default(),
            blake3: Bytes::new(),
        }
    }
}

fn read(copy: &Copy, mailbox: &SourceMailbox) -> Result<Snapshot, Trouble> {
    if mailbox.entry.partition.is_none() {
        return Err(Trouble::Gone);
    }
    // Looking at many files takes long on a cold disk, and must not keep mail
    // waiting: the lock is given back first.
    let (index, header, annotations, lock) = at_one_moment(copy, mailbox)?;
    drop(lock);
    let view = parse(copy, mailbox, &index)?;
    let mut odd = Odd::new();
    for record in view.records() {
        let record = record.map_err(|e| bad_index(copy, mailbox, &e))?;
        look(copy, mailbox, &record, &mut odd);
    }
    if copy.is_live() && mailbox.converted.is_some() && !odd.is_empty() {
        // What was converted is of a moment ago.
        let listed = view.records().filter_map(Result::ok).map(|record| Listed::from(&record));
        let now = as_it_is(&copy.files, mailbox, listed).map_err(Trouble::Unreadable)?.0;
        let gone = now.iter().filter(|r| r.entry.expunged || r.unlinked).map(|r| r.entry.uid);
        let gone: BTreeSet<u32> = gone.collect();
        odd.retain(|uid, _| !gone.contains(uid));
    }
    if odd.is_empty() || !copy.is_live() || mailbox.converted.is_some() {
        return Ok(Snapshot { index, header, annotations, odd });
    }
    // What is odd, and what has come since, is looked at again under the lock,
    // where index and directory belong together for certain.
    let seen = view.header().last_uid;
    let (index, header, annotations, _lock) = at_one_moment(copy, mailbox)?;
    let view = parse(copy, mailbox, &index)?;
    let newest = (0..view.len()).rev().filter_map(|n| view.record(n).ok());
    let mut again: Vec<Record> = newest.take_while(|r| r.uid > seen).collect();
    again.extend(odd.keys().filter_map(|uid| view.find(*uid).ok().flatten()));
    let mut odd = Odd::new();
    again.iter().for_each(|record| look(copy, mailbox, record, &mut odd));
    Ok(Snapshot { index, header, annotations, odd })
}

fn parse<'a>(
    copy: &Copy,
    mailbox: &SourceMailbox,
    index: &'a [u8],
) -> Result<IndexView<'a>, Trouble> {
    IndexView::parse(index).map_err(|e| bad_index(copy, mailbox, &e))
}

fn bad_index(copy: &Copy, mailbox: &SourceMailbox, error: &IndexError) -> Trouble {
    let path = super::copy::index_path(&copy.files, mailbox).unwrap_or_default();
    Trouble::Unreadable(format!("{}: {error}", path.display()))
}

type Moment = (Bytes, MailboxHeader, BTreeMap<u32, Vec<CopyItem>>, Option<std::fs::File>);

/// Index, header and annotations that belong together, and the lock that they
/// were read under.
fn at_one_moment(copy: &Copy, mailbox: &SourceMailbox) -> Result<Moment, Trouble> {
    let paths = meta_paths(&copy.files, mailbox);
    let path = |kind: FileKind| -> Result<&PathBuf, Trouble> {
        let found = paths.iter().find(|(k, _)| *k == kind).map(|(_, path)| path);
        found.ok_or_else(|| Trouble::Unreadable("it has no place here".into()))
    };
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        Trouble::Unreadable(format!("{}: {error}", path.display()))
    };
    let index_path = path(FileKind::Index)?;
    let (index, lock) = match read_index(index_path, !copy.is_live()) {
        Ok(read) => read,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Trouble::Gone),
        Err(e) => return Err(failed(index_path, &e)),
    };
    let header_path = path(FileKind::Header)?;
    let header = match std::fs::read(header_path) {
        Ok(header) => header,
        // It was still to come when the copying stopped.
        Err(e) if e.kind() == io::ErrorKind::NotFound && copy.kind == CopyKind::Stage => {
            return Err(Trouble::Gone);
        }
        Err(e) => return Err(failed(header_path, &e)),
    };
    let header = MailboxHeader::parse(&header).map_err(|e| failed(header_path, &e))?;
    // What was converted has such a file only where there are any.
    let annotations = match path(FileKind::Annotations) {
        Ok(path) => data::message_annotations(path, copy).map_err(Trouble::Unreadable)?,
        Err(_) => BTreeMap::new(),
    };
    Ok((index, header, annotations, lock))
}

/// Looks at the file of a message, and notes what is odd about it.
fn look(copy: &Copy, mailbox: &SourceMailbox, record: &Record, odd: &mut Odd) {
    if record.is_unlinked() {
        return;
    }
    let Some(path) = file_path(copy, mailbox, record) else { return };
    let shown = path.display();
    let found = match path.symlink_metadata() {
        Ok(stat) if stat.len() == record.size => match readable(&path) {
            Ok(()) => return,
            Err(e) => (Standing::Unreadable, format!("{shown}: {e}")),
        },
        Ok(stat) => (
            Standing::OtherSize,
            format!("{shown} has {} bytes, the index says {}", stat.len(), record.size),
        ),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (Standing::Absent, shown.to_string()),
        Err(e) => (Standing::Unreadable, format!("{shown}: {e}")),
    };
    odd.insert(record.uid, found);
}

fn readable(path: &Path) -> io::Result<()> {
    let (read, flags) = (rustix::fs::Access::READ_OK, rustix::fs::AtFlags::EACCESS);
    Ok(rustix::fs::accessat(rustix::fs::CWD, path, read, flags)?)
}

fn file_path(copy: &Copy, mailbox: &SourceMailbox, record: &Record) -> Option<PathBuf> {
    let directory = if record.is_archived() {
        let partition = mailbox.entry.partition.as_ref()?;
        let layout = Layout::new(&copy.files.config);
        layout.archive_dir(&mailbox.entry.name, mailbox.style(), partition).ok()?
    } else {
        mailbox.directory(&copy.files)?
    };
    Some(directory.join(record.file_name()))
}

/// Reads the messages of a part, several at once, since a disk answers many
/// questions faster than one after the other.
fn hash(copy: &Copy, mailbox: &SourceMailbox, part: &[Record], told: &mut [v1::CopyRecord]) {
    let next = AtomicUsize::new(0);
    let jobs: Vec<_> = part
        .iter()
        .zip(told)
        .filter(|(_, told)| told.file() == Standing::There)
        .map(Mutex::new)
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..READERS.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let mut job = job.lock().unwrap_or_else(PoisonError::into_inner);
                    let (record, told) = &mut *job;
                    hash_one(copy, mailbox, record, told);
                }
            });
        }
    });
}

fn hash_one(copy: &Copy, mailbox: &SourceMailbox, record: &Record, told: &mut v1::CopyRecord) {
    let Some(path) = file_path(copy, mailbox, record) else { return };
    let (standing, text) = match digests(&path) {
        Ok((blake3, sha1)) => {
            told.blake3 = Bytes::copy_from_slice(blake3.as_bytes());
            match &record.guid {
                Some(guid) if *guid.as_bytes() != sha1 => {
                    let text = format!("the SHA-1 of {} is not the index's", path.display());
                    (Standing::Rotten, text)
                }
                _ => return,
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if copy.is_live() && !is_listed(copy, mailbox, record.uid) {
                // Expunged and cleaned up while it was waited for.
                (Standing::NotLookedFor, String::new())
            } else {
                (Standing::Absent, path.display().to_string())
            }
        }
        Err(e) => (Standing::Unreadable, format!("{}: {e}", path.display())),
    };
    told.file = standing.into();
    told.file_text = text;
}

/// Whether the message still should have a file.
fn is_listed(copy: &Copy, mailbox: &SourceMailbox, uid: u32) -> bool {
    let Some(path) = super::copy::index_path(&copy.files, mailbox) else { return false };
    let Ok((bytes, _lock)) = read_index(&path, false) else { return false };
    let found = IndexView::parse(&bytes).and_then(|index| index.find(uid));
    found.is_ok_and(|record| record.is_some_and(|r| !r.is_unlinked() && !r.is_expunged()))
}

fn digests(path: &Path) -> io::Result<(blake3::Hash, [u8; 20])> {
    let mut file = send::open(path)?;
    let (mut blake3, mut sha1) = (blake3::Hasher::new(), Sha1::new());
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = file.read(&mut buffer)?;
        let Some(piece @ [_, ..]) = buffer.get(..n) else { break };
        blake3.update(piece);
        sha1.update(piece);
    }
    Ok((blake3.finalize(), sha1.finalize().into()))
}
