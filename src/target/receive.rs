//! Receiving bulk data into the stage: several writers, each file verified
//! before it counts.

use super::stage::StagedDirectory;
use crate::agent::{LinkError, Sender};
use crate::fault::{self, Point};
use crate::wire::bulk::{Chunk, ChunkError};
use crate::wire::pool::Pool;
use crate::wire::v1;
use bytes::Bytes;
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Threads that write.
const WRITERS: usize = 3;

/// Frames that wait for one writer.
const QUEUE: usize = 8;

/// How often the coordinator is told how much was taken, in bytes.
const RECEIPT_EVERY: u64 = 256 << 10;

/// Which file a chunk belongs to: mailbox ordinal (or the user), kind, uid.
pub type ItemKey = (u32, u8, u32);

/// A file that was asked for, and where it goes.
#[derive(Debug, Clone)]
pub struct Item {
    /// The directory.
    pub directory: Arc<StagedDirectory>,
    /// The file's name; made on this side.
    pub name: String,
    /// Its size, as far as it is known.
    pub size: Size,
    /// Whether an older version of it may be there and is replaced.
    pub replaces: bool,
}

/// How large a file may be that was asked for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A message never changes.
    Exactly(u64),
    /// Other files may have grown since they were listed.
    AtMost(u64),
}

impl Size {
    fn allows(self, size: u64) -> bool {
        match self {
            Self::Exactly(wanted) => size == wanted,
            Self::AtMost(most) => size <= most,
        }
    }
}

/// Finds what was asked for; what was not asked for is refused.
pub trait Expected: Send + Sync {
    /// The item of a key, if it was asked for.
    fn item(&self, key: ItemKey) -> Option<Item>;
}

/// A file that has arrived whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Which.
    pub key: ItemKey,
    /// Its size, in bytes.
    pub size: u64,
    /// BLAKE3 of its content.
    pub blake3: [u8; 32],
}

/// What a writer has done.
#[derive(Debug, Default)]
pub struct Received {
    /// Files that are there, verified.
    pub arrived: Vec<Arrived>,
    /// Files that have gone from the source meanwhile.
    pub gone: Vec<ItemKey>,
}

/// Why receiving had to end.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The frame is not bulk data.
    #[error("the peer sent {0}")]
    Chunk(#[from] ChunkError),
    /// A file that nobody asked for.
    #[error("the peer sent a file that was not asked for: mailbox {}, kind {}, uid {}", .0.0, .0.1, .0.2)]
    NotAsked(ItemKey),
    /// Chunks out of order.
    #[error("the peer sent pieces of {name} out of order")]
    OutOfOrder {
        /// The file.
        name: String,
    },
    /// Size or hash do not agree.
    #[error("{name} did not arrive as it was sent: {what}")]
    Mismatch {
        /// The file.
        name: String,
        /// What differs.
        what: &'static str,
    },
    /// Writing failed.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// A writer is not there any more.
    #[error("a writing thread has ended early")]
    WriterGone,
}

/// The writers of one `Store`.
pub struct Writers {
    queues: Vec<SyncSender<Bytes>>,
    threads: Vec<JoinHandle<Result<Received, ReceiveError>>>,
    turn: usize,
}

impl Writers {
    /// Starts the writers; the frames they have used go to the pool.
    pub fn start(expected: &Arc<dyn Expected>, pool: &Pool) -> io::Result<Self> {
        let mut queues = Vec::new();
        let mut threads = Vec::new();
        for n in 0..WRITERS {
            let (queue, frames) = sync_channel(QUEUE);
            let mut writer = Writer {
                expected: Arc::clone(expected),
                open: BTreeMap::new(),
                received: Received::default(),
                pool: pool.clone(),
            };
            queues.push(queue);
            threads.push(
                std::thread::Builder::new()
                    .name(format!("writer-{n}"))
                    .spawn(move || writer.run(&frames))?,
            );
        }
        Ok(Self { queues, threads, turn: 0 })
    }

    /// Hands a data frame to a writer. Pieces of one large file always go to
    /// the same one, so that they stay in order.
    pub fn give(&mut self, frame: Bytes) -> Result<(), ReceiveError> {
        let mut rest = frame.clone();
        let first = Chunk::decode(&mut rest)?;
        // The end of a large file that went wrong comes alone, and must reach
        // the writer that has its pieces.
        let alone = rest.is_empty();
        let whole = !(first.gone && alone) && first.offset == 0 && first.last;
        let writer = if whole {
            self.turn += 1;
            self.turn
        } else {
            first.uid as usize + first.mailbox as usize
        } % self.queues.len();
        let queue = self.queues.get(writer).ok_or(ReceiveError::WriterGone)?;
        queue.send(frame).map_err(|_| ReceiveError::WriterGone)
    }

    /// Waits for the writers; the first error of any of them.
    pub fn finish(self) -> Result<Received, ReceiveError> {
        drop(self.queues);
        let mut all = Received::default();
        let mut first_error = None;
        for thread in self.threads {
            match thread.join().unwrap_or(Err(ReceiveError::WriterGone)) {
                Ok(received) => {
                    all.arrived.extend(received.arrived);
                    all.gone.extend(received.gone);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(all), Err)
    }
}

/// Tells the coordinator how much was taken.
pub struct Receipt {
    sender: Sender,
    taken: u64,
    told: u64,
}

impl Receipt {
    /// Of one `Store`; nothing is taken yet.
    pub fn new(sender: Sender) -> Self {
        Self { sender, taken: 0, told: 0 }
    }

    /// A frame of this many bytes was taken.
    pub fn frame(&mut self, length: usize) -> Result<(), LinkError> {
        self.taken += length as u64;
        if self.taken - self.told >= RECEIPT_EVERY {
            self.told = self.taken;
            self.sender.part(v1::part::Part::Received(v1::Received { bytes: self.taken }))?;
        }
        Ok(())
    }
}

struct Writer {
    expected: Arc<dyn Expected>,
    open: BTreeMap<ItemKey, Partial>,
    received: Received,
    pool: Pool,
}

/// A file of which some pieces are there.
struct Partial {
    item: Item,
    file: File,
    /// As its first piece says.
    size: u64,
    hasher: blake3::Hasher,
    offset: u64,
}

impl Writer {
    fn run(&mut self, frames: &Receiver<Bytes>) -> Result<Received, ReceiveError> {
        while let Ok(frame) = frames.recv() {
            let mut rest = frame.clone();
            while !rest.is_empty() {
                let chunk = Chunk::decode(&mut rest)?;
                self.take(&chunk)?;
            }
            drop(rest);
            self.pool.put(frame);
        }
        // What has not ended has no place under the name of a message.
        for partial in std::mem::take(&mut self.open).into_values() {
            partial.item.directory.remove(&partial.item.temporary());
        }
        Ok(std::mem::take(&mut self.received))
    }

    fn take(&mut self, chunk: &Chunk) -> Result<(), ReceiveError> {
        let key = (chunk.mailbox, chunk.kind, chunk.uid);
        if chunk.gone {
            self.expected.item(key).ok_or(ReceiveError::NotAsked(key))?;
            if let Some(partial) = self.open.remove(&key) {
                partial.item.directory.remove(&partial.item.temporary());
            }
            self.received.gone.push(key);
            return Ok(());
        }
        let mut partial = match self.open.remove(&key) {
            Some(partial) => partial,
            None => self.create(key, chunk)?,
        };
        // Each piece ends within the size that it names itself.
        if chunk.size != partial.size {
            partial.item.directory.remove(&partial.item.temporary());
            let what = "its size changes on the way";
            return Err(ReceiveError::Mismatch { name: partial.item.name, what });
        }
        let bytes = chunk.plain()?;
        if chunk.offset != partial.offset {
            return Err(ReceiveError::OutOfOrder { name: partial.item.name });
        }
        partial.hasher.update(&bytes);
        partial
            .file
            .write_all_at(&bytes, partial.offset)
            .map_err(|source| partial.item.io(source))?;
        partial.offset += bytes.len() as u64;
        if chunk.last {
            let arrived = partial.complete(key, chunk)?;
            self.received.arrived.push(arrived);
        } else {
            self.open.insert(key, partial);
        }
        Ok(())
    }

    fn create(&self, key: ItemKey, chunk: &Chunk) -> Result<Partial, ReceiveError> {
        let item = self.expected.item(key).ok_or(ReceiveError::NotAsked(key))?;
        if !item.size.allows(chunk.size) {
            let what = match item.size {
                Size::Exactly(_) => "its size is another",
                Size::AtMost(_) => "it is larger than such a file can be",
            };
            return Err(ReceiveError::Mismatch { name: item.name, what });
        }
        let file = item.directory.create(&item.temporary()).map_err(|source| item.io(source))?;
        let hasher = blake3::Hasher::new();
        Ok(Partial { item, file: file.into(), size: chunk.size, hasher, offset: 0 })
    }
}

impl Partial {
    fn complete(self, key: ItemKey, last: &Chunk) -> Result<Arrived, ReceiveError> {
        let blake3 = *self.hasher.finalize().as_bytes();
        let item = self.item;
        let what = if self.offset != last.size {
            Some("its size is another")
        } else if blake3 != last.blake3 {
            Some("its BLAKE3 is another")
        } else {
            None
        };
        if let Some(what) = what {
            item.directory.remove(&item.temporary());
            return Err(ReceiveError::Mismatch { name: item.name, what });
        }
        let when = Timespec { tv_sec: last.mtime, tv_nsec: 0 };
        rustix::fs::futimens(
            &self.file,
            &Timestamps { last_access: when, last_modification: when },
        )
        .map_err(|e| item.io(e.into()))?;
        if item.replaces {
            item.directory
                .rename(&item.temporary(), &item.name)
                .map_err(|source| item.io(source))?;
        }
        Ok(Arrived { key, size: last.size, blake3 })
    }
}

impl Item {
    /// The name under which it is written. A message is written under its own
    /// name, since a stage is not looked at before all of it is verified, and
    /// a rename per message costs; what replaces an older file is renamed.
    fn temporary(&self) -> String {
        if self.replaces { format!("{}.mbcopy-new", self.name) } else { self.name.clone() }
    }

    fn io(&self, source: io::Error) -> ReceiveError {
        ReceiveError::Io {
            path: self.directory.path().join(&self.name).display().to_string(),
            source,
        }
    }
}

/// Opens a new file below a directory; an old one of that name goes away first.
pub(super) fn create_at(directory: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    fault::check(Point::StageWrite)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(directory, name, flags, mode) {
        Err(rustix::io::Errno::EXIST) => {
            rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
            Ok(rustix::fs::openat(directory, name, flags, mode)?)
        }
        opened => Ok(opened?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use std::path::Path;

    /// One message of 5 bytes and one cyrus.index are asked for.
    struct Asked(Arc<StagedDirectory>);

    impl Expected for Asked {
        fn item(&self, key: ItemKey) -> Option<Item> {
            let (name, size, replaces) = match key {
                (1, 1, 7) => ("7.", Size::Exactly(5), false),
                (1, 3, 0) => ("cyrus.index", Size::AtMost(100), true),
                _ => return None,
            };
            let directory = Arc::clone(&self.0);
            Some(Item { directory, name: name.into(), size, replaces })
        }
    }

    fn chunk(key: ItemKey, bytes: &[u8]) -> Chunk {
        Chunk {
            mailbox: key.0,
            kind: key.1,
            uid: key.2,
            last: true,
            gone: false,
            compressed: false,
            size: bytes.len() as u64,
            offset: 0,
            mtime: 1_000_000,
            blake3: *blake3::hash(bytes).as_bytes(),
            bytes: Bytes::copy_from_slice(bytes),
        }
    }

    fn receive(dir: &Path, chunks: &[Chunk]) -> Result<Received, ReceiveError> {
        let directory = StagedDirectory::make(dir, Path::new("box")).unwrap();
        let expected: Arc<dyn Expected> = Arc::new(Asked(Arc::new(directory)));
        let mut writers = Writers::start(&expected, &Pool::default()).unwrap();
        for chunk in chunks {
            let mut frame = BytesMut::new();
            chunk.encode(&mut frame);
            writers.give(frame.freeze())?;
        }
        writers.finish()
    }

    #[test]
    fn files_arrive_with_their_times_and_replace_older_ones() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("box")).unwrap();
        std::fs::write(dir.path().join("box/cyrus.index"), "old").unwrap();
        let chunks = [chunk((1, 1, 7), b"hello"), chunk((1, 3, 0), b"new index")];
        let received = receive(dir.path(), &chunks).unwrap();
        assert_eq!(received.arrived.len(), 2);
        let message = dir.path().join("box/7.");
        assert_eq!(std::fs::read(&message).unwrap(), b"hello");
        let stamp = std::fs::metadata(&message).unwrap().modified().unwrap();
        let since = stamp.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since.as_secs(), 1_000_000);
        assert_eq!(std::fs::read(dir.path().join("box/cyrus.index")).unwrap(), b"new index");
    }

    #[test]
    fn a_large_file_comes_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let whole = chunk((1, 3, 0), b"one two three");
        let piece = |offset: usize, end: usize| Chunk {
            offset: offset as u64,
            last: end == whole.bytes.len(),
            bytes: whole.bytes.slice(offset..end),
            ..whole.clone()
        };
        receive(dir.path(), &[piece(0, 4), piece(4, 8), piece(8, 13)]).unwrap();
        assert_eq!(std::fs::read(dir.path().join("box/cyrus.index")).unwrap(), b"one two three");
        let skipped = receive(dir.path(), &[piece(0, 4), piece(8, 13)]);
        assert!(matches!(skipped, Err(ReceiveError::OutOfOrder { .. })), "{skipped:?}");
    }

    #[test]
    fn what_is_not_as_it_was_asked_for_is_refused_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let stranger = receive(dir.path(), &[chunk((1, 1, 8), b"hello")]);
        assert!(matches!(stranger, Err(ReceiveError::NotAsked((1, 1, 8)))), "{stranger:?}");
        let longer = receive(dir.path(), &[chunk((1, 1, 7), b"hello!")]);
        assert!(matches!(longer, Err(ReceiveError::Mismatch { .. })), "{longer:?}");
        let huge = Chunk { size: 101, last: false, ..chunk((1, 3, 0), b"index") };
        let huge = receive(dir.path(), &[huge]).unwrap_err();
        assert!(huge.to_string().contains("larger than such a file can be"), "{huge}");
        // The first piece keeps to what was asked for, the second does not.
        let first = Chunk { last: false, ..chunk((1, 1, 7), b"hello") };
        let more = Chunk { size: 1 << 40, offset: 5, last: false, ..chunk((1, 1, 7), b"more") };
        let grown = receive(dir.path(), &[first, more]).unwrap_err();
        assert!(grown.to_string().contains("its size changes on the way"), "{grown}");
        let gone = Chunk { gone: true, size: 0, ..chunk((1, 1, 8), b"") };
        let gone = receive(dir.path(), &[gone]);
        assert!(matches!(gone, Err(ReceiveError::NotAsked((1, 1, 8)))), "{gone:?}");
        let changed = Chunk { blake3: [1; 32], ..chunk((1, 1, 7), b"hello") };
        let changed = receive(dir.path(), &[changed]);
        assert!(matches!(changed, Err(ReceiveError::Mismatch { .. })), "{changed:?}");
        assert_eq!(std::fs::read_dir(dir.path().join("box")).unwrap().count(), 0);
    }

    #[test]
    fn a_message_that_has_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Chunk { gone: true, size: 0, ..chunk((1, 1, 7), b"") };
        let received = receive(dir.path(), &[gone]).unwrap();
        assert_eq!((received.arrived.len(), received.gone), (0, vec![(1, 1, 7)]));
    }
}
