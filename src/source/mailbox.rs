//! Reading one mailbox: its index, and whether its files are what it says.

use super::inventory::{SourceMailbox, problem};
use crate::cyrus::config::MetaFile;
use crate::cyrus::index::{IndexView, Record};
use crate::cyrus::path::Layout;
use crate::host::{Host, ofd};
use crate::inventory::Digest;
use crate::wire::manifest::{Entry, MAX_ENTRIES};
use crate::wire::v1::{self, FileKind, problem::Severity};
use bytes::{Bytes, BytesMut};
use prost::Message;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the lock of an index is waited for.
const INDEX_WAIT: Duration = Duration::from_secs(5);

/// A file that was changed less than this before it was read may change again
/// without another time stamp.
const STAMP_GRAIN: i64 = 2;

/// The files of a mailbox besides its messages.
pub const META: [(FileKind, MetaFile); 4] = [
    (FileKind::Header, MetaFile::Header),
    (FileKind::Index, MetaFile::Index),
    (FileKind::Cache, MetaFile::Cache),
    (FileKind::Annotations, MetaFile::Annotations),
];

/// What is remembered of a mailbox between scans.
#[derive(Debug, Clone, Default)]
pub struct Known {
    stamps: Vec<Option<Stamp>>,
    /// When the stamps were taken, in seconds since 1970.
    taken: i64,
    /// UIDs up to this one were looked at on disk.
    checked: u32,
    /// Messages that cannot be copied.
    pub bad: BTreeSet<u32>,
    /// What the mailbox adds to the totals.
    pub totals: v1::Totals,
    /// What a client can observe of it, as a digest.
    pub observable: Vec<u8>,
}

impl Known {
    /// Makes the next scan tell everything again.
    pub fn forget(&mut self) {
        self.stamps.clear();
    }
}

/// What tells that a file has not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Found {
    /// Parts for the wire, in order.
    pub parts: Vec<v1::MailboxScan>,
    /// What stands against copying.
    pub problems: Vec<v1::Problem>,
}

/// Scans one mailbox; `None` when nothing has changed since `known`. Under the
/// user's freeze no lock of the index is needed.
pub fn scan(
    host: &Host,
    mailbox: &SourceMailbox,
    known: &mut Known,
    frozen: bool,
) -> Option<Found> {
    let paths = meta_paths(host, mailbox);
    let taken = now();
    let stamps: Vec<_> = paths.iter().map(|(_, path)| stamp(path)).collect();
    let settled = |s: &Option<Stamp>| s.is_none_or(|s| s.changed.0 < known.taken - STAMP_GRAIN);
    if known.stamps == stamps && stamps.iter().all(settled) {
        return None;
    }
    let mut found = Found::default();
    let before = std::mem::take(&mut known.stamps);
    match read(host, mailbox, &paths, known, frozen, &mut found) {
        Ok(()) => {
            known.stamps = stamps;
            known.taken = taken;
        }
        Err(text) => {
            known.stamps = before;
            let path = mailbox.directory(host).unwrap_or_default();
            found.parts.clear();
            found.problems.push(problem(
                Severity::Refuse,
                "unreadable-mailbox",
                (host, mailbox),
                0,
                &path,
                text,
                "mend it (reconstruct on this server), and push again",
            ));
        }
    }
    Some(found)
}

fn read(
    host: &Host,
    mailbox: &SourceMailbox,
    paths: &[(FileKind, PathBuf)],
    known: &mut Known,
    frozen: bool,
    found: &mut Found,
) -> Result<(), String> {
    let directory = mailbox.directory(host).ok_or("it has no directory")?;
    let path = |kind: FileKind| {
        paths.iter().find(|(k, _)| *k == kind).map(|(_, p)| p.as_path()).unwrap_or(&directory)
    };
    let index_path = path(FileKind::Index);
    let read = |checked: &mut Known, keep_locked: bool| -> Result<_, String> {
        let (bytes, lock) = read_index(index_path, frozen).map_err(|e| at(index_path, &e))?;
        let lock = lock.filter(|_| keep_locked);
        let index = IndexView::parse(&bytes).map_err(|e| format!("cyrus.index: {e}"))?;
        let records = index.records().collect::<Result<Vec<_>, _>>();
        let records = records.map_err(|e| at(index_path, &e))?;
        let problems = check_files((host, mailbox), &directory, &records, checked)?;
        drop(lock);
        Ok((bytes, records, problems))
    };
    // Looking at many files takes long on a cold disk, and must not keep mail
    // waiting. Only if something is odd is it looked at again under the lock,
    // where the index and the directory belong together for certain.
    let before = known.clone();
    let (mut bytes, mut records, mut problems) = read(known, false)?;
    if !problems.is_empty() && !frozen {
        *known = before;
        (bytes, records, problems) = read(known, true)?;
    }
    found.problems.extend(problems);
    let index = IndexView::parse(&bytes).map_err(|e| format!("cyrus.index: {e}"))?;

    let mut digest = Digest::default();
    records.iter().for_each(|r| digest.add(r));
    let kept: Vec<&Record> =
        records.iter().filter(|r| !r.is_unlinked() && !known.bad.contains(&r.uid)).collect();
    known.totals = v1::Totals {
        mailboxes: 1,
        messages: kept.len() as u64,
        bytes: kept.iter().map(|r| r.size).sum(),
        expunged: kept.iter().filter(|r| r.is_expunged()).count() as u64,
    };
    let mut chunks = kept.chunks(MAX_ENTRIES).map(manifest).collect::<Vec<_>>();
    if chunks.is_empty() {
        chunks.push(Bytes::new());
    }
    let count = chunks.len();
    for (n, manifest) in chunks.into_iter().enumerate() {
        found.parts.push(v1::MailboxScan {
            mailbox: mailbox.ordinal,
            first: n == 0,
            last: n + 1 == count,
            manifest,
            ..v1::MailboxScan::default()
        });
    }
    let mut files = Vec::new();
    for (kind, path) in paths {
        let content = match kind {
            FileKind::Index => Some(bytes.clone()),
            _ => read_whole(path).map_err(|e| at(path, &e))?,
        };
        files.push(v1::FileState {
            kind: (*kind).into(),
            absent: content.is_none(),
            size: content.as_ref().map_or(0, |c| c.len() as u64),
            blake3: content
                .map(|c| Bytes::copy_from_slice(blake3::hash(&c).as_bytes()))
                .unwrap_or_default(),
        });
    }
    if let Some(last) = found.parts.last_mut() {
        let header = index.header();
        last.records = header.num_records;
        last.uidvalidity = header.uidvalidity;
        last.last_uid = header.last_uid;
        last.highestmodseq = header.highestmodseq;
        last.records_blake3 = Bytes::copy_from_slice(&digest.finish());
        last.files = files;
        // The index and the cache change also when nobody changes anything.
        let stable = [FileKind::Header, FileKind::Annotations];
        let observable = v1::MailboxScan {
            files: last.files.iter().filter(|f| stable.contains(&f.kind())).cloned().collect(),
            manifest: Bytes::new(),
            first: false,
            ..last.clone()
        };
        known.observable = observable.encode_to_vec();
    }
    Ok(())
}

/// Checks that each message that the index lists is there, whole and readable,
/// and that no file is there that it does not list. Only what was not looked
/// at before is looked at: a message's file never changes.
fn check_files(
    mailbox: (&Host, &SourceMailbox),
    directory: &Path,
    records: &[Record],
    known: &mut Known,
) -> Result<Vec<v1::Problem>, String> {
    let mut problems = Vec::new();
    let first_time = known.checked == 0;
    let mut bad = |severity, code, uid, text: String, advice| {
        let path = directory.join(format!("{uid}."));
        problems.push(problem(severity, code, mailbox, uid, &path, text, advice));
    };
    if records.iter().any(|r| r.is_archived() && !r.is_unlinked()) {
        return Err("it has messages on an archive partition, which are not moved yet".into());
    }
    let dir = File::open(directory).map_err(|e| at(directory, &e))?;
    for record in records.iter().filter(|r| !r.is_unlinked() && r.uid > known.checked) {
        let name = format!("{}.", record.uid);
        let path = directory.join(&name);
        let shown = path.display();
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let (code, text) = match rustix::fs::statat(&dir, &name, flags) {
            Err(rustix::io::Errno::NOENT) if record.is_expunged() => {
                known.bad.insert(record.uid);
                continue;
            }
            Err(rustix::io::Errno::NOENT) => {
                ("missing-message", format!("{shown} is missing, the index lists it"))
            }
            Err(e) => ("unreadable-message", format!("{shown} cannot be read: {e}")),
            Ok(stat) if stat.st_size as u64 != record.size => (
                "wrong-size-message",
                format!("{shown} has {} bytes, the index says {}", stat.st_size, record.size),
            ),
            Ok(_) => {
                let read = rustix::fs::Access::READ_OK;
                let flags = rustix::fs::AtFlags::EACCESS;
                match rustix::fs::accessat(&dir, &name, read, flags) {
                    Ok(()) => continue,
                    Err(e) => ("unreadable-message", format!("{shown} cannot be read: {e}")),
                }
            }
        };
        known.bad.insert(record.uid);
        bad(Severity::BadMessage, code, record.uid, text, "mend its owner, mode or content");
    }
    if first_time {
        let listed: BTreeSet<u32> = records.iter().map(|r| r.uid).collect();
        for entry in std::fs::read_dir(directory).map_err(|e| at(directory, &e))? {
            let entry = entry.map_err(|e| at(directory, &e))?;
            let name = entry.file_name();
            let uid = name.to_str().and_then(|n| n.strip_suffix('.')?.parse::<u32>().ok());
            if let Some(uid) = uid.filter(|uid| !listed.contains(uid)) {
                bad(
                    Severity::BadMessage,
                    "orphan-file",
                    uid,
                    format!("{} has no record in the index", entry.path().display()),
                    "reconstruct the mailbox on this server, or move the file away",
                );
            }
        }
    }
    known.checked = records.last().map_or(known.checked, |r| r.uid.max(known.checked)).max(1);
    Ok(problems)
}

fn manifest(records: &[&Record]) -> Bytes {
    let mut out = BytesMut::new();
    for record in records {
        let entry = Entry {
            uid: record.uid,
            expunged: record.is_expunged(),
            size: record.size,
            guid: record.guid.as_ref().map_or([0; 20], |g| *g.as_bytes()),
        };
        entry.encode(&mut out);
    }
    out.freeze()
}

/// The metadata files of a mailbox that this configuration has.
pub fn meta_paths(host: &Host, mailbox: &SourceMailbox) -> Vec<(FileKind, PathBuf)> {
    let Some(partition) = &mailbox.entry.partition else { return Vec::new() };
    let layout = Layout::new(&host.config);
    META.iter()
        .filter_map(|(kind, file)| {
            let path =
                layout.meta_file(*file, &mailbox.entry.name, mailbox.style(), partition).ok()?;
            Some((*kind, path))
        })
        .collect()
}

/// Reads an index, and keeps it locked against writers unless it is frozen anyway.
pub(crate) fn read_index(path: &Path, frozen: bool) -> io::Result<(Bytes, Option<File>)> {
    loop {
        let mut file = File::open(path)?;
        if !frozen && !ofd::lock(&file, ofd::Mode::Shared, INDEX_WAIT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it stays locked"));
        }
        let opened = file.metadata()?;
        let named = std::fs::metadata(path)?;
        // Cyrus puts a new file in its place when it repacks.
        if (opened.dev(), opened.ino()) == (named.dev(), named.ino()) {
            let mut bytes = Vec::with_capacity(opened.len() as usize);
            file.read_to_end(&mut bytes)?;
            return Ok((bytes.into(), (!frozen).then_some(file)));
        }
    }
}

fn read_whole(path: &Path) -> io::Result<Option<Bytes>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let stat = std::fs::metadata(path).ok()?;
    Some(Stamp {
        inode: stat.ino(),
        size: stat.len(),
        modified: (stat.mtime(), stat.mtime_nsec()),
        changed: (stat.ctime(), stat.ctime_nsec()),
    })
}

fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
