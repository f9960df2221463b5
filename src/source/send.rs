//! Sending files: many are read ahead at once, since a disk answers many
//! questions faster than one after the other; small ones share a frame.

use super::contents::{Contents, Difference};
use super::inventory::{SourceMailbox, problem};
use super::mailbox::Places;
use super::pace::Pace;
use super::wanted::{Message, Wanted};
use crate::agent::Sender;
use crate::fault::{self, Point};
use crate::host::{Host, priority};
use crate::wire::USER;
use crate::wire::blocks::{BLOCK, Blocks, Hashing, Patching};
use crate::wire::bulk::{CHUNK_HEADER, Chunk};
use crate::wire::pool::{self, Pool};
use crate::wire::v1::{self, FileKind, problem::Severity};
use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use sha1::{Digest, Sha1};
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use zstd::bulk::Compressor;

/// Threads that read: more only get in the way of each other when the files are in memory.
const READERS: usize = 6;

/// Frames that wait to be written.
const QUEUE: usize = 8;

/// Size of a data frame, in bytes.
const FRAME: usize = pool::BUFFER;

/// Most bytes of one piece of a file.
const PIECE: usize = FRAME - CHUNK_HEADER;

/// Most bytes of one piece of a patch.
const BLOCKS: usize = PIECE / BLOCK * BLOCK;

/// Shorter pieces are not compressed, in bytes.
const LEAST_COMPRESSED: usize = 256;

/// Of zstd; more costs more than it saves.
const LEVEL: i32 = 1;

/// Messages with several names that are remembered while they are sent: some 80 bytes each.
const MOST_NAMES: usize = 200_000;

/// Files that a reader takes at a time.
const BATCH: usize = 16;

/// A file to send.
#[derive(Debug, Clone)]
pub struct Job {
    /// The mailbox, or [`USER`].
    pub mailbox: u32,
    /// Its kind.
    pub kind: FileKind,
    /// UID, or number of the user's file.
    pub uid: u32,
    /// Where it is.
    pub place: Place,
    /// Size and SHA-1 that the index says, of a message.
    pub expected: Option<(u64, Option<[u8; 20]>)>,
    /// What the target lacks, if it has an older version.
    pub difference: Option<Difference>,
}

/// Where a file is.
#[derive(Debug, Clone)]
pub enum Place {
    /// Under its UID in a mailbox's directory.
    Message(Arc<Directory>),
    /// Anywhere.
    Path(PathBuf),
}

/// A mailbox's directory, opened once for all its messages.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// None: it cannot be opened, as each of its files will say.
    handle: Option<File>,
    /// Where Cyrus moves messages that it archives, at any moment.
    archive: Option<File>,
}

/// What was sent.
#[derive(Debug, Default)]
pub struct Sent {
    /// Files.
    pub items: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that could not be sent.
    pub problems: Vec<v1::Problem>,
    /// What the target has got of metadata files.
    pub files: Vec<(PathBuf, Blocks)>,
}

/// Sends files as data frames, `rate` bytes per second or as fast as it goes (0).
///
/// Errors: the connection is gone.
///
/// With `names`, the other names of a message are told and not sent; with `nice` other users
/// of the server go first.
pub fn send(
    host: &Host,
    mailboxes: &[SourceMailbox],
    jobs: impl Iterator<Item = Job> + Send,
    (rate, pace): (u64, &Pace),
    (names, nice): (Option<&Names>, bool),
    to: &Sender,
) -> io::Result<Sent> {
    let work = Mutex::new(jobs);
    let sent = Mutex::new(Sent::default());
    let pool = Pool::default();
    let (queue, frames) = sync_channel::<(Bytes, u64)>(QUEUE);
    let began = Instant::now();
    pace.begin(began);
    std::thread::scope(|scope| {
        // Moved in, so that a broken connection ends the readers, too.
        let frames = frames;
        for _ in 0..READERS {
            let (queue, work, sent, pool) = (queue.clone(), &work, &sent, &pool);
            scope.spawn(move || {
                if nice {
                    priority::yield_to_others();
                }
                let give = |frame, plain| queue.send((frame, plain)).is_ok();
                let mut reader = Reader::new(pool, pace, names, &give);
                loop {
                    let batch: Vec<Job> = {
                        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
                        work.by_ref().take(BATCH).collect()
                    };
                    if batch.is_empty() || !reader.wanted {
                        reader.flush();
                        return;
                    }
                    let outcomes: Vec<_> = batch.iter().map(|job| reader.file(job)).collect();
                    let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                    for (job, outcome) in batch.iter().zip(outcomes) {
                        sent.note(host, mailboxes, job, outcome);
                    }
                }
            });
        }
        drop(queue);
        let mut bytes = 0;
        while let Ok((frame, plain)) = frames.recv() {
            bytes += frame.len() as u64;
            let waiting = Instant::now();
            if let Some(free) = to.data(frame)? {
                pool.put(free);
            }
            throttle(rate, bytes, began);
            let now = Instant::now();
            pace.sent(plain, now.saturating_duration_since(waiting), now);
        }
        Ok(())
    })
    .map(|()| sent.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn throttle(rate: u64, bytes: u64, began: Instant) {
    if rate > 0 {
        let due = Duration::from_secs_f64(bytes as f64 / rate as f64);
        std::thread::sleep(due.saturating_sub(began.elapsed()));
    }
}

/// What became of one file.
enum Outcome {
    Sent(u64),
    /// A metadata file: how much of it, and what it has become at the target.
    File(u64, Blocks),
    Gone,
    Bad {
        code: &'static str,
        text: String,
    },
}

impl Sent {
    fn note(&mut self, host: &Host, mailboxes: &[SourceMailbox], job: &Job, outcome: Outcome) {
        match outcome {
            Outcome::Sent(bytes) => {
                self.items += 1;
                self.bytes += bytes;
            }
            Outcome::File(bytes, blocks) => {
                self.items += 1;
                self.bytes += bytes;
                self.files.push((job.path(), blocks));
            }
            Outcome::Gone => {}
            Outcome::Bad { code, text } => {
                let severity = match job.kind {
                    FileKind::Message => Severity::BadMessage,
                    _ => Severity::Refuse,
                };
                let advice = "mend it on this server, and push again";
                let mailbox = mailboxes.iter().find(|m| m.ordinal == job.mailbox);
                self.problems.push(match mailbox {
                    Some(mailbox) => {
                        problem(severity, code, (host, mailbox), job.uid, &job.path(), text, advice)
                    }
                    None => v1::Problem {
                        severity: severity.into(),
                        code: code.into(),
                        path: job.path().display().to_string(),
                        text,
                        advice: advice.into(),
                        ..v1::Problem::default()
                    },
                });
            }
        }
    }
}

struct Reader<'a> {
    frame: Vec<u8>,
    /// Bytes of files in it, as they are on the disk.
    plain: u64,
    pool: &'a Pool,
    pace: &'a Pace,
    /// Made when something is compressed for the first time.
    compressor: Option<Compressor<'static>>,
    compressed: Vec<u8>,
    names: Option<&'a Names>,
    give: &'a dyn Fn(Bytes, u64) -> bool,
    /// Whether somebody still takes the frames.
    wanted: bool,
}

impl<'a> Reader<'a> {
    fn new(
        pool: &'a Pool,
        pace: &'a Pace,
        names: Option<&'a Names>,
        give: &'a dyn Fn(Bytes, u64) -> bool,
    ) -> Self {
        let (frame, compressed) = (Vec::new(), Vec::new());
        let (plain, compressor, wanted) = (0, None, true);
        Self { frame, plain, pool, pace, compressor, compressed, names, give, wanted }
    }

    fn flush(&mut self) {
        if !self.frame.is_empty() {
            let (frame, plain) = (std::mem::take(&mut self.frame), std::mem::take(&mut self.plain));
            self.wanted &= (self.give)(frame.into(), plain);
        }
    }

    /// Compresses what lies in the frame from `start` on, if that makes it shorter.
    fn compress(&mut self, start: usize) -> bool {
        let piece = self.frame.get(start..).unwrap_or_default();
        if piece.len() < LEAST_COMPRESSED || !self.pace.is_compressing() {
            return false;
        }
        if self.compressor.is_none() {
            self.compressor = Compressor::new(LEVEL).ok();
        }
        let Some(compressor) = &mut self.compressor else { return false };
        self.compressed.clear();
        self.compressed.reserve(piece.len());
        // What does not fit is not shorter.
        match compressor.compress_to_buffer(piece, &mut self.compressed) {
            Ok(length) if length < piece.len() => {
                self.frame.truncate(start);
                self.frame.extend_from_slice(&self.compressed);
                true
            }
            _ => false,
        }
    }

    /// Makes room in the frame for a chunk of `length` bytes, and its header.
    fn make_room(&mut self, length: usize) {
        if self.frame.len() + CHUNK_HEADER + length > FRAME {
            self.flush();
        }
        if self.frame.capacity() == 0 {
            self.frame = self.pool.take(FRAME);
            self.frame.clear();
        }
    }

    fn file(&mut self, job: &Job) -> Outcome {
        let sent = job.open().and_then(|file| {
            let stat = file.metadata()?;
            if let Some(difference) = &job.difference {
                return self.patch(job, &file, difference, stat.mtime());
            }
            if let Some(first) = self.names.and_then(|names| names.first(job, &stat)) {
                return Ok(self.name(job, &stat, first));
            }
            let sent = self.content(job, &file, &stat);
            if let (Some(names), false) = (self.names, matches!(sent, Ok(Outcome::Sent(_)))) {
                names.forget(&stat);
            }
            if sent.is_err() && stat.len() > PIECE as u64 {
                self.gone(job);
            }
            sent
        });
        match sent {
            Ok(outcome) => outcome,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.gone(job);
                Outcome::Gone
            }
            Err(e) => Outcome::Bad {
                code: "unreadable-message",
                text: format!("{} cannot be read: {e}", job.path().display()),
            },
        }
    }

    /// Tells of which message, by mailbox and UID, this one is another name.
    fn name(&mut self, job: &Job, stat: &Metadata, first: (u32, u32)) -> Outcome {
        self.make_room(0);
        let (size, mtime) = (stat.len(), stat.mtime());
        let chunk = Chunk { size, mtime, last: true, same: Some(first), ..job.chunk() };
        self.frame.extend_from_slice(&chunk.header(0));
        Outcome::Sent(size)
    }

    /// Sends a file piece by piece; most have one. Of a file that is not what the
    /// index says nothing is sent, or, if its end shows it, that it is gone.
    fn content(&mut self, job: &Job, file: &File, stat: &Metadata) -> io::Result<Outcome> {
        let (size, mtime, linked) = (stat.len(), stat.mtime(), stat.nlink() > 1);
        let mut hashes = Hashes::of(job.kind);
        let mut offset = 0;
        loop {
            let length = (size - offset).min(PIECE as u64) as usize;
            self.make_room(length);
            let header = self.frame.len();
            self.frame.resize(header + CHUNK_HEADER, 0);
            let read = match read_into(file, &mut self.frame, length) {
                Ok(read) => read,
                Err(e) => {
                    self.frame.truncate(header);
                    return Err(e);
                }
            };
            if read < length && offset > 0 {
                // It was cut short meanwhile; the next round tells what it is now.
                self.frame.truncate(header);
                self.gone(job);
                return Ok(Outcome::Gone);
            }
            let size = if read < length { read as u64 } else { size };
            let piece = self.frame.get(header + CHUNK_HEADER..).unwrap_or_default();
            let last = offset + read as u64 == size;
            let whole = last && offset == 0 && job.kind == FileKind::Message;
            if !whole {
                hashes.update(piece);
            }
            if last {
                let sha1 = || if whole { Sha1::digest(piece).into() } else { hashes.sha1() };
                if let Some(bad) = job.check(size, sha1) {
                    self.frame.truncate(header);
                    if !whole {
                        self.gone(job);
                    }
                    return Ok(bad);
                }
            }
            let mut blocks = None;
            let blake3 = match (last, whole) {
                (false, _) => [0; 32],
                (true, false) => hashes.finish(&mut blocks),
                (true, true) => *blake3::hash(piece).as_bytes(),
            };
            self.plain += read as u64;
            let start = header + CHUNK_HEADER;
            let compressed = self.compress(start);
            let chunk =
                Chunk { size, offset, mtime, last, linked, blake3, compressed, ..job.chunk() };
            let length = self.frame.len() - start;
            if let Some(place) = self.frame.get_mut(header..start) {
                place.copy_from_slice(&chunk.header(length));
            }
            if last {
                return Ok(match blocks {
                    Some(blocks) => Outcome::File(size, blocks),
                    None => Outcome::Sent(size),
                });
            }
            offset += read as u64;
        }
    }

    /// Sends what differs from the version that the target has. Of a file in use some of
    /// it may be newer than what was compared: what is told is what the target will have.
    fn patch(
        &mut self,
        job: &Job,
        file: &File,
        difference: &Difference,
        mtime: i64,
    ) -> io::Result<Outcome> {
        let size = difference.size;
        let mut patching = Patching::of(&difference.from, size);
        let mut bytes = 0;
        // Alone in its frames, so that they all go to one writer.
        self.flush();
        let ranges = difference.ranges.iter();
        let mut pieces = ranges
            .flat_map(|range| {
                let starts = range.clone().step_by(BLOCKS);
                starts.map(|at| (at, (range.end - at).min(BLOCKS as u64) as usize))
            })
            .chain(difference.ranges.is_empty().then_some((size, 0)))
            .peekable();
        while let Some((offset, length)) = pieces.next() {
            self.make_room(length);
            let header = self.frame.len();
            self.frame.resize(header + CHUNK_HEADER + length, 0);
            let (before, piece) = self.frame.split_at_mut(header + CHUNK_HEADER);
            let put =
                file.read_exact_at(piece, offset).is_ok() && patching.put(offset, piece).is_ok();
            let last = put && pieces.peek().is_none();
            let blocks = if last { patching.clone().finish().ok() } else { None };
            if !put || (last && blocks.is_none()) {
                // It was cut short meanwhile; the next round tells what it is now.
                self.frame.truncate(header);
                self.gone(job);
                return Ok(Outcome::Gone);
            }
            bytes += length as u64;
            self.plain += length as u64;
            let blake3 = blocks.as_ref().map_or([0; 32], Blocks::blake3);
            let chunk = Chunk { size, offset, mtime, last, blake3, patch: true, ..job.chunk() };
            if let Some(place) = before.get_mut(header..) {
                place.copy_from_slice(&chunk.header(length));
            }
            if let Some(blocks) = blocks {
                self.flush();
                return Ok(Outcome::File(bytes, blocks));
            }
        }
        Ok(Outcome::Gone)
    }

    /// Tells that a file has gone; alone in its frame, for whoever has its pieces.
    fn gone(&mut self, job: &Job) {
        self.flush();
        self.make_room(0);
        let chunk = Chunk { gone: true, last: true, ..job.chunk() };
        self.frame.extend_from_slice(&chunk.header(0));
        self.flush();
    }
}

/// Messages with several names of which one is being sent, by device and inode.
#[derive(Default)]
pub struct Names(Mutex<HashMap<(u64, u64), First>>);

/// The name that is sent, and what the index says of it.
struct First {
    message: (u32, u32),
    expected: (u64, Option<[u8; 20]>),
}

impl Names {
    /// The message, by mailbox and UID, of which this one is another name; the first of them
    /// is sent.
    fn first(&self, job: &Job, stat: &Metadata) -> Option<(u32, u32)> {
        // Whoever has a GUID is what he is there, too.
        let expected = job.expected.filter(|(size, guid)| *size == stat.len() && guid.is_some())?;
        if stat.nlink() < 2 {
            return None;
        }
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (stat.dev(), stat.ino());
        if let Some(first) = names.get(&key) {
            return (first.expected == expected).then_some(first.message);
        }
        if names.len() < MOST_NAMES {
            names.insert(key, First { message: (job.mailbox, job.uid), expected });
        }
        None
    }

    /// That one was not sent after all.
    fn forget(&self, stat: &Metadata) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.remove(&(stat.dev(), stat.ino()));
    }
}

/// The hashes of a file that is read in pieces.
enum Hashes {
    Message { blake3: Box<blake3::Hasher>, sha1: Sha1 },
    Blocks(Hashing),
}

impl Hashes {
    fn of(kind: FileKind) -> Self {
        match kind {
            FileKind::Message => Self::Message { blake3: Box::default(), sha1: Sha1::new() },
            _ => Self::Blocks(Hashing::default()),
        }
    }

    fn update(&mut self, piece: &[u8]) {
        match self {
            Self::Message { blake3, sha1 } => {
                blake3.update(piece);
                sha1.update(piece);
            }
            Self::Blocks(hashing) => hashing.update(piece),
        }
    }

    /// BLAKE3 of the file; its blocks, if it is no message.
    fn finish(&mut self, blocks: &mut Option<Blocks>) -> [u8; 32] {
        match self {
            Self::Message { blake3, .. } => *blake3.finalize().as_bytes(),
            Self::Blocks(hashing) => blocks.insert(std::mem::take(hashing).finish()).blake3(),
        }
    }

    fn sha1(&self) -> [u8; 20] {
        match self {
            Self::Message { sha1, .. } => sha1.clone().finalize().into(),
            Self::Blocks(_) => [0; 20],
        }
    }
}

/// Appends the next `length` bytes of a file, or fewer at its end; how many.
fn read_into(file: &File, to: &mut Vec<u8>, length: usize) -> io::Result<usize> {
    let end = to.len() + length;
    let start = to.len();
    to.reserve(length);
    while to.len() < end {
        match rustix::io::read(file, rustix::buffer::spare_capacity(to)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    // The room may have been larger, and the file too.
    to.truncate(end);
    Ok(to.len() - start)
}

impl Job {
    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Message(directory) => directory.path.join(format!("{}.", self.uid)),
            Place::Path(path) => path.clone(),
        }
    }

    /// Opens the file.
    pub(super) fn open(&self) -> io::Result<File> {
        let opened = match &self.place {
            Place::Message(directory) => directory.handle.as_ref(),
            Place::Path(_) => None,
        };
        let here = match opened {
            Some(directory) => open_at(directory, Path::new(&format!("{}.", self.uid))),
            None => open_at(rustix::fs::CWD, &self.path()),
        };
        match (&self.place, here) {
            (Place::Message(directory), Err(e)) if e.kind() == io::ErrorKind::NotFound => {
                let archive = directory.archive.as_ref().ok_or(e)?;
                open_at(archive, Path::new(&format!("{}.", self.uid)))
            }
            (_, here) => here,
        }
    }

    /// A chunk of this file without anything in it.
    fn chunk(&self) -> Chunk {
        Chunk {
            mailbox: self.mailbox,
            kind: i32::from(self.kind) as u8,
            uid: self.uid,
            last: false,
            gone: false,
            compressed: false,
            patch: false,
            linked: false,
            same: None,
            size: 0,
            offset: 0,
            mtime: 0,
            blake3: [0; 32],
            bytes: Bytes::new(),
        }
    }

    fn check(&self, size: u64, sha1: impl FnOnce() -> [u8; 20]) -> Option<Outcome> {
        let (expected, guid) = self.expected?;
        if size != expected {
            return Some(Outcome::Bad {
                code: "wrong-size-message",
                text: format!(
                    "{} has {size} bytes, the index says {expected}",
                    self.path().display()
                ),
            });
        }
        if guid.is_some_and(|guid| guid != sha1()) {
            return Some(Outcome::Bad {
                code: "rotten-message",
                text: format!(
                    "the content of {} is not what was delivered: its SHA-1 is not the index's",
                    self.path().display()
                ),
            });
        }
        None
    }
}

impl Directory {
    fn open(places: Places) -> Arc<Self> {
        let handle = File::open(&places.messages).ok();
        let archive = places.archived.and_then(|path| File::open(path).ok());
        Arc::new(Self { path: places.messages, handle, archive })
    }
}

/// The files that a want asks for. What it asks beyond what is listed is left out.
pub fn jobs_of<'a>(
    want: &'a v1::Want,
    mailbox: &SourceMailbox,
    places: Places,
    meta: Vec<(FileKind, PathBuf)>,
    contents: &'a Contents,
) -> impl Iterator<Item = Job> + 'a {
    let ordinal = mailbox.ordinal;
    let directory = Directory::open(places);
    let index = meta.iter().find(|(kind, _)| *kind == FileKind::Index);
    let wanted = Wanted::of(index.map(|(_, path)| path.as_path()), &want.uid_runs);
    let messages = wanted.map(move |Message { uid, size, guid }| {
        let place = Place::Message(Arc::clone(&directory));
        let (kind, expected) = (FileKind::Message, Some((size, guid)));
        Job { mailbox: ordinal, kind, uid, place, expected, difference: None }
    });
    let files = want.files().filter_map(move |kind| {
        let (_, path) = meta.iter().find(|(k, _)| *k == kind)?;
        let base = want.bases.iter().find(|base| base.kind() == kind);
        let difference = base.and_then(|base| contents.difference(path, &base.blake3));
        let place = Place::Path(path.clone());
        Some(Job { mailbox: ordinal, kind, uid: 0, place, expected: None, difference })
    });
    messages.chain(files)
}

/// A file of the user as a job.
pub fn user_job(number: u32, kind: FileKind, path: PathBuf, difference: Option<Difference>) -> Job {
    let place = Place::Path(path);
    Job { mailbox: USER, kind, uid: number, place, expected: None, difference }
}

/// Opens a file for reading, not following links, and without a write to its
/// access time where that is allowed.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_at(rustix::fs::CWD, path)
}

/// The same, below a directory that is open.
fn open_at(directory: impl rustix::fd::AsFd, path: &Path) -> io::Result<File> {
    fault::check(Point::SourceRead)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |flags| rustix::fs::openat(&directory, path, flags, Mode::empty());
    let fd = match open(flags | OFlags::NOATIME) {
        Err(rustix::io::Errno::PERM) => open(flags)?,
        opened => opened?,
    };
    Ok(fd.into())
}
