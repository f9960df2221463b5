//! Sending files: many are read ahead at once, since a disk answers many
//! questions faster than one after the other; small ones share a frame.

use super::inventory::{SourceMailbox, problem};
use crate::agent::Sender;
use crate::host::Host;
use crate::wire::USER;
use crate::wire::bulk::Chunk;
use crate::wire::manifest;
use crate::wire::v1::{self, FileKind, problem::Severity};
use bytes::{Bytes, BytesMut};
use rustix::fs::{Mode, OFlags};
use sha1::{Digest, Sha1};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Threads that read.
const READERS: usize = 16;

/// Frames that wait to be written.
const QUEUE: usize = 8;

/// Size of a frame of small files, and of a piece of a large one, in bytes.
const FRAME: usize = 1 << 20;

/// Most files of one batch.
const BATCH: usize = 256;

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
    pub path: PathBuf,
    /// Size and SHA-1 that the index says, of a message.
    pub expected: Option<(u64, Option<[u8; 20]>)>,
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
}

/// Sends files as data frames, `rate` bytes per second or as fast as it goes (0).
///
/// Errors: the connection is gone.
pub fn send(
    host: &Host,
    mailboxes: &[SourceMailbox],
    jobs: Vec<Job>,
    rate: u64,
    to: &Sender,
) -> io::Result<Sent> {
    let work = Mutex::new(jobs.into_iter());
    let sent = Mutex::new(Sent::default());
    let (queue, frames) = sync_channel::<Bytes>(QUEUE);
    let began = Instant::now();
    std::thread::scope(|scope| {
        // Moved in, so that a broken connection ends the readers, too.
        let frames = frames;
        for _ in 0..READERS {
            let (queue, work, sent) = (queue.clone(), &work, &sent);
            scope.spawn(move || {
                let mut reader = Reader {
                    frame: BytesMut::new(),
                    give: &|f| queue.send(f).is_ok(),
                    wanted: true,
                };
                loop {
                    let batch: Vec<Job> = {
                        let mut work = work.lock().unwrap_or_else(PoisonError::into_inner);
                        work.by_ref().take(BATCH / READERS).collect()
                    };
                    if batch.is_empty() || !reader.wanted {
                        reader.flush();
                        return;
                    }
                    for job in batch {
                        let outcome = reader.file(&job);
                        let mut sent = sent.lock().unwrap_or_else(PoisonError::into_inner);
                        sent.note(host, mailboxes, &job, outcome);
                    }
                }
            });
        }
        drop(queue);
        let mut bytes = 0;
        while let Ok(frame) = frames.recv() {
            bytes += frame.len() as u64;
            to.data(frame)?;
            throttle(rate, bytes, began);
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
    Gone,
    Bad { code: &'static str, text: String },
}

impl Sent {
    fn note(&mut self, host: &Host, mailboxes: &[SourceMailbox], job: &Job, outcome: Outcome) {
        match outcome {
            Outcome::Sent(bytes) => {
                self.items += 1;
                self.bytes += bytes;
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
                        problem(severity, code, (host, mailbox), job.uid, &job.path, text, advice)
                    }
                    None => v1::Problem {
                        severity: severity.into(),
                        code: code.into(),
                        path: job.path.display().to_string(),
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
    frame: BytesMut,
    give: &'a dyn Fn(Bytes) -> bool,
    /// Whether somebody still takes the frames.
    wanted: bool,
}

impl Reader<'_> {
    fn flush(&mut self) {
        if !self.frame.is_empty() {
            self.wanted &= (self.give)(self.frame.split().freeze());
        }
    }

    fn file(&mut self, job: &Job) -> Outcome {
        let unreadable = |e: &io::Error| Outcome::Bad {
            code: "unreadable-message",
            text: format!("{} cannot be read: {e}", job.path.display()),
        };
        let mut file = match open(&job.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.chunk(job, 0, 0, 0, true, true, [0; 32], &[]);
                return Outcome::Gone;
            }
            Err(e) => return unreadable(&e),
        };
        let stat = match file.metadata() {
            Ok(stat) => stat,
            Err(e) => return unreadable(&e),
        };
        let size = stat.len();
        let result = if size <= FRAME as u64 {
            self.small(job, &mut file, size, stat.mtime())
        } else {
            let sent = self.large(job, &mut file, size, stat.mtime());
            if sent.is_err() {
                self.chunk(job, size, 0, 0, true, true, [0; 32], &[]);
                self.flush();
            }
            sent
        };
        match result {
            Ok(outcome) => outcome,
            Err(e) => unreadable(&e),
        }
    }

    /// A file that is read and checked whole before any of it is sent.
    fn small(&mut self, job: &Job, file: &mut File, size: u64, mtime: i64) -> io::Result<Outcome> {
        let mut bytes = Vec::with_capacity(size as usize + 1);
        file.take(FRAME as u64 * 2).read_to_end(&mut bytes)?;
        if let Some(bad) = job.check(bytes.len() as u64, || Sha1::digest(&bytes).into()) {
            return Ok(bad);
        }
        if self.frame.len() + bytes.len() > FRAME {
            self.flush();
        }
        let blake3 = *blake3::hash(&bytes).as_bytes();
        self.chunk(job, bytes.len() as u64, 0, mtime, true, false, blake3, &bytes);
        if self.frame.len() >= FRAME {
            self.flush();
        }
        Ok(Outcome::Sent(bytes.len() as u64))
    }

    /// A large file goes piece by piece. When its end shows that it is not what
    /// the index says, its last piece says that it is gone.
    fn large(&mut self, job: &Job, file: &mut File, size: u64, mtime: i64) -> io::Result<Outcome> {
        self.flush();
        let (mut hasher, mut sha1) = (blake3::Hasher::new(), Sha1::new());
        let mut buffer = vec![0; FRAME];
        let mut offset = 0;
        while offset < size {
            let want = (size - offset).min(FRAME as u64) as usize;
            let Some(piece) = buffer.get_mut(..want) else { break };
            file.read_exact(piece)?;
            hasher.update(piece);
            sha1.update(&*piece);
            let last = offset + want as u64 == size;
            if last && let Some(bad) = job.check(size, || sha1.clone().finalize().into()) {
                self.chunk(job, size, 0, 0, true, true, [0; 32], &[]);
                self.flush();
                return Ok(bad);
            }
            let blake3 = if last { *hasher.finalize().as_bytes() } else { [0; 32] };
            self.chunk(job, size, offset, mtime, last, false, blake3, piece);
            self.flush();
            offset += want as u64;
        }
        Ok(Outcome::Sent(size))
    }

    #[allow(clippy::too_many_arguments)] // the fields of a chunk, in its order
    fn chunk(
        &mut self,
        job: &Job,
        size: u64,
        offset: u64,
        mtime: i64,
        last: bool,
        gone: bool,
        blake3: [u8; 32],
        bytes: &[u8],
    ) {
        Chunk {
            mailbox: job.mailbox,
            kind: i32::from(job.kind) as u8,
            uid: job.uid,
            last,
            gone,
            compressed: false,
            size,
            offset,
            mtime,
            blake3,
            bytes: Bytes::copy_from_slice(bytes),
        }
        .encode(&mut self.frame);
    }
}

impl Job {
    fn check(&self, size: u64, sha1: impl FnOnce() -> [u8; 20]) -> Option<Outcome> {
        let (expected, guid) = self.expected?;
        if size != expected {
            return Some(Outcome::Bad {
                code: "wrong-size-message",
                text: format!(
                    "{} has {size} bytes, the index says {expected}",
                    self.path.display()
                ),
            });
        }
        if guid.is_some_and(|guid| guid != sha1()) {
            return Some(Outcome::Bad {
                code: "rotten-message",
                text: format!(
                    "the content of {} is not what was delivered: its SHA-1 is not the index's",
                    self.path.display()
                ),
            });
        }
        None
    }
}

/// The files that a want asks for. What it asks beyond what was listed is left out.
pub fn jobs_of(
    want: &v1::Want,
    mailbox: &SourceMailbox,
    directory: &Path,
    meta: &[(FileKind, PathBuf)],
    expected: impl Fn(u32) -> Option<(u64, Option<[u8; 20]>)>,
) -> Vec<Job> {
    let job =
        |kind, uid, path, expected| Job { mailbox: mailbox.ordinal, kind, uid, path, expected };
    let files = want.files().filter_map(|kind| {
        let (_, path) = meta.iter().find(|(k, _)| *k == kind)?;
        Some(job(kind, 0, path.clone(), None))
    });
    let messages = manifest::uids(&want.uid_runs).filter_map(|uid| {
        let expected = expected(uid)?;
        let path = directory.join(format!("{uid}."));
        Some(job(FileKind::Message, uid, path, Some(expected)))
    });
    messages.chain(files).collect()
}

/// A file of the user as a job.
pub fn user_job(number: u32, kind: FileKind, path: PathBuf) -> Job {
    Job { mailbox: USER, kind, uid: number, path, expected: None }
}

/// Opens a file for reading, not following links, and without a write to its
/// access time where that is allowed.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty());
    let fd = match opened {
        Err(rustix::io::Errno::PERM) => rustix::fs::open(path, flags, Mode::empty())?,
        opened => opened?,
    };
    Ok(fd.into())
}
