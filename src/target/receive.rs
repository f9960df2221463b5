//! Receiving bulk data into the stage: several writers, each file verified
//! before it counts.

use super::stage::{StagedDirectory, Trace};
use super::sync;
use crate::agent::{LinkError, Sender};
use crate::fault::{self, Point};
use crate::host::priority;
use crate::wire::blocks::{Blocks, Hashing, Patching};
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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// The version that was named to the source, of which a patch is taken.
    pub base: Option<Held>,
}

/// A version of a file that came from the source and is held as it came.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it is.
    pub blocks: Arc<Blocks>,
    /// What tells that nobody has touched it since.
    pub trace: Trace,
}

/// How large a file may be that was asked for, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A message never changes.
    Exactly(u64),
    /// Other files may have grown since they were listed.
    AtMost(u64),
}

/// Finds what was asked for; what was not asked for is refused.
pub trait Expected: Send + Sync {
    /// The item of a key, if it was asked for.
    fn item(&self, key: ItemKey) -> Option<Item>;
}

/// A file that is no message, and has arrived whole.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// Which.
    pub key: ItemKey,
    /// What it is.
    pub held: Held,
}

/// What a writer has done.
#[derive(Debug, Default)]
pub struct Received {
    /// Messages whose files are there, verified: UIDs by mailbox.
    pub messages: BTreeMap<u32, Vec<u32>>,
    /// Those of them that have several names on the source: mailbox and UID.
    pub linked: Vec<(u32, u32)>,
    /// Other names of messages that come by themselves: which, and of what.
    pub same: Vec<(ItemKey, (u32, u32))>,
    /// Their bytes.
    pub bytes: u64,
    /// Other files that are there, verified.
    pub files: Vec<Arrived>,
    /// Files that have gone from the source meanwhile.
    pub gone: Vec<ItemKey>,
    /// Files that are not there any more: a patch of them was not what it should be.
    pub torn: Vec<ItemKey>,
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
    turn: AtomicUsize,
}

impl Writers {
    /// Starts the writers; the frames they have used go to the pool. With `nice` other users of
    /// the server go first.
    pub fn start(expected: &Arc<dyn Expected>, pool: &Pool, nice: bool) -> io::Result<Self> {
        let mut queues = Vec::new();
        let mut threads = Vec::new();
        for n in 0..WRITERS {
            let (queue, frames) = sync_channel(QUEUE);
            let mut writer = Writer {
                expected: Arc::clone(expected),
                open: BTreeMap::new(),
                received: Received::default(),
                pool: pool.clone(),
                nice,
            };
            queues.push(queue);
            threads.push(
                std::thread::Builder::new()
                    .name(format!("writer-{n}"))
                    .spawn(move || writer.run(&frames))?,
            );
        }
        Ok(Self { queues, threads, turn: AtomicUsize::new(0) })
    }

    /// Hands a data frame to a writer. Pieces of one large file always go to
    /// the same one, so that they stay in order.
    pub fn give(&self, frame: Bytes) -> Result<(), ReceiveError> {
        let writer = match Chunk::order_of(&frame)? {
            Some(order) => order as usize,
            None => self.turn.fetch_add(1, Ordering::Relaxed),
        };
        let queue = self.queues.get(writer % self.queues.len().max(1));
        let queue = queue.ok_or(ReceiveError::WriterGone)?;
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
                    for (mailbox, mut uids) in received.messages {
                        all.messages.entry(mailbox).or_default().append(&mut uids);
                    }
                    all.linked.extend(received.linked);
                    all.same.extend(received.same);
                    all.bytes += received.bytes;
                    all.files.extend(received.files);
                    all.gone.extend(received.gone);
                    all.torn.extend(received.torn);
                }
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        first_error.map_or(Ok(all), Err)
    }
}

impl Received {
    /// Gives those messages their other names that have come, verified; how many have not
    /// got theirs, and have to come by themselves.
    pub fn link(&mut self, expected: &dyn Expected) -> u64 {
        let same = std::mem::take(&mut self.same);
        if !same.is_empty() {
            self.messages.values_mut().for_each(|uids| uids.sort_unstable());
        }
        let came = |(mailbox, uid): (u32, u32)| {
            self.messages.get(&mailbox).is_some_and(|uids| uids.binary_search(&uid).is_ok())
        };
        let (mut named, mut left) = (Vec::new(), 0);
        for (key, first) in same {
            let from = expected.item((first.0, key.1, first.1)).filter(|_| came(first));
            let to = expected.item(key);
            let linked =
                from.zip(to).filter(|(from, to)| from.size == to.size).map(|(from, to)| {
                    to.directory.remove(&to.name);
                    to.directory.link(&from.directory.path().join(&from.name), to.name.as_ref())
                });
            // Two partitions here may be one on the source.
            match linked {
                Some(Ok(())) => named.push((key.0, key.2)),
                _ => left += 1,
            }
        }
        for (mailbox, uid) in named {
            self.messages.entry(mailbox).or_default().push(uid);
        }
        left
    }
}

/// Hands what comes on all channels of one `Store` to the writers.
pub struct Intake<'a> {
    writers: &'a Writers,
    failure: Mutex<Option<ReceiveError>>,
    receipt: Mutex<Receipt>,
}

impl<'a> Intake<'a> {
    /// Of one `Store`; nothing is taken yet. The sender brings the receipts.
    pub fn new(writers: &'a Writers, sender: Sender) -> Self {
        let receipt = Mutex::new(Receipt { sender, taken: 0, told: 0 });
        Self { writers, failure: Mutex::default(), receipt }
    }

    /// Takes the frames of one channel to their end.
    ///
    /// Errors: the channel is broken. After any other error the rest is read and dropped, so
    /// that the reply reaches a coordinator that is still sending.
    pub fn take_all(
        &self,
        mut next: impl FnMut() -> Result<Option<Bytes>, LinkError>,
    ) -> Result<(), LinkError> {
        while let Some(frame) = next()? {
            let length = frame.len();
            if lock(&self.failure).is_none()
                && let Err(error) = self.writers.give(frame)
            {
                lock(&self.failure).get_or_insert(error);
            }
            lock(&self.receipt).frame(length)?;
        }
        Ok(())
    }

    /// Why something could not be handed over.
    pub fn failure(self) -> Option<ReceiveError> {
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the coordinator how much was taken.
struct Receipt {
    sender: Sender,
    taken: u64,
    told: u64,
}

impl Receipt {
    /// A frame of this many bytes was taken.
    fn frame(&mut self, length: usize) -> Result<(), LinkError> {
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
    nice: bool,
}

/// A file of which some pieces are there.
struct Partial {
    item: Item,
    file: File,
    /// As its first piece says.
    size: u64,
    content: Content,
    offset: u64,
}

/// What is known of the bytes of a file that arrives.
enum Content {
    Message(Box<blake3::Hasher>),
    Whole(Hashing),
    Patch(Patching),
}

/// What has become of a file whose last piece is there.
enum Complete {
    Message,
    File(Held),
    /// It was patched, and is not what it should be.
    Torn,
}

impl Writer {
    fn run(&mut self, frames: &Receiver<Bytes>) -> Result<Received, ReceiveError> {
        if self.nice {
            priority::yield_to_others();
        }
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
        for (key, partial) in std::mem::take(&mut self.open) {
            self.give_up(key, &partial);
        }
        Ok(std::mem::take(&mut self.received))
    }

    fn take(&mut self, chunk: &Chunk) -> Result<(), ReceiveError> {
        let key = (chunk.mailbox, chunk.kind, chunk.uid);
        if chunk.gone {
            self.expected.item(key).ok_or(ReceiveError::NotAsked(key))?;
            if let Some(partial) = self.open.remove(&key) {
                self.give_up(key, &partial);
            }
            self.received.gone.push(key);
            return Ok(());
        }
        if let Some(first) = chunk.same {
            let item = self.expected.item(key).ok_or(ReceiveError::NotAsked(key))?;
            item.allows(chunk.size)?;
            if item.replaces {
                return Err(ReceiveError::Mismatch { name: item.name, what: "it is no message" });
            }
            self.received.same.push((key, first));
            return Ok(());
        }
        let mut partial = match self.open.remove(&key) {
            Some(partial) => partial,
            None if chunk.patch => match self.patch(key, chunk)? {
                Some(partial) => partial,
                // The rest of it, too, is of no use.
                None => return Ok(()),
            },
            None => self.create(key, chunk)?,
        };
        // Each piece ends within the size that it names itself.
        if chunk.size != partial.size {
            let what = "its size changes on the way";
            let name = partial.item.name.clone();
            self.give_up(key, &partial);
            return Err(ReceiveError::Mismatch { name, what });
        }
        let bytes = chunk.plain()?;
        let fits = match &mut partial.content {
            Content::Message(hasher) => {
                hasher.update(&bytes);
                chunk.offset == partial.offset
            }
            Content::Whole(hashing) => {
                hashing.update(&bytes);
                chunk.offset == partial.offset
            }
            Content::Patch(patching) => {
                chunk.offset >= partial.offset && patching.put(chunk.offset, &bytes).is_ok()
            }
        };
        if !fits {
            let name = partial.item.name.clone();
            self.give_up(key, &partial);
            return Err(ReceiveError::OutOfOrder { name });
        }
        partial
            .file
            .write_all_at(&bytes, chunk.offset)
            .map_err(|source| partial.item.io(source))?;
        partial.offset = chunk.offset + bytes.len() as u64;
        if !chunk.last {
            self.open.insert(key, partial);
            return Ok(());
        }
        match partial.complete(chunk, self.nice)? {
            Complete::Message => {
                self.received.messages.entry(key.0).or_default().push(key.2);
                if chunk.linked {
                    self.received.linked.push((key.0, key.2));
                }
                self.received.bytes += chunk.size;
            }
            Complete::File(held) => {
                self.received.bytes += chunk.size;
                self.received.files.push(Arrived { key, held });
            }
            Complete::Torn => self.received.torn.push(key),
        }
        Ok(())
    }

    fn create(&self, key: ItemKey, chunk: &Chunk) -> Result<Partial, ReceiveError> {
        let item = self.expected.item(key).ok_or(ReceiveError::NotAsked(key))?;
        item.allows(chunk.size)?;
        let file = item.directory.create(&item.temporary()).map_err(|source| item.io(source))?;
        let content = match item.replaces {
            true => Content::Whole(Hashing::default()),
            false => Content::Message(Box::default()),
        };
        Ok(Partial { item, file: file.into(), size: chunk.size, content, offset: 0 })
    }

    /// Opens the file that is patched, in its place: a stage whose session ends early is not
    /// trusted with its metadata files. `None` if it is not what was named any more.
    fn patch(&mut self, key: ItemKey, chunk: &Chunk) -> Result<Option<Partial>, ReceiveError> {
        let item = self.expected.item(key).ok_or(ReceiveError::NotAsked(key))?;
        let Some(base) = item.base.clone() else {
            return Err(ReceiveError::Mismatch { name: item.name, what: "it was wanted whole" });
        };
        item.allows(chunk.size)?;
        if self.received.torn.contains(&key) {
            return Ok(None);
        }
        let opened = item.directory.patch_as_sent(&item.name, &base.trace);
        let Some(file) = opened.map_err(|source| item.io(source))? else {
            self.received.torn.push(key);
            return Ok(None);
        };
        let content = Content::Patch(Patching::of(&base.blocks, chunk.size));
        Ok(Some(Partial { item, file, size: chunk.size, content, offset: 0 }))
    }

    /// Removes what came of a file that does not come whole.
    fn give_up(&mut self, key: ItemKey, partial: &Partial) {
        if let Content::Patch(_) = partial.content {
            partial.item.directory.remove_as_sent(&partial.item.name);
            self.received.torn.push(key);
        } else {
            partial.item.directory.remove(&partial.item.temporary());
        }
    }
}

impl Partial {
    /// Verifies the file.
    fn complete(self, last: &Chunk, nice: bool) -> Result<Complete, ReceiveError> {
        let Self { item, file, content, offset, .. } = self;
        let (blocks, blake3, patched) = match content {
            Content::Message(hasher) => (None, *hasher.finalize().as_bytes(), false),
            Content::Whole(hashing) => {
                let blocks = hashing.finish();
                let blake3 = blocks.blake3();
                (Some(blocks), blake3, false)
            }
            Content::Patch(patching) => {
                let blocks = patching.finish().ok().filter(|b| b.blake3() == last.blake3);
                let Some(blocks) = blocks else {
                    item.directory.remove_as_sent(&item.name);
                    return Ok(Complete::Torn);
                };
                // It may have become shorter.
                file.set_len(last.size).map_err(|source| item.io(source))?;
                (Some(blocks), last.blake3, true)
            }
        };
        let what = if !patched && offset != last.size {
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
        rustix::fs::futimens(&file, &Timestamps { last_access: when, last_modification: when })
            .map_err(|e| item.io(e.into()))?;
        sync::begin(&file, last.size, nice);
        if item.replaces && !patched {
            item.directory
                .replace_as_sent(&item.temporary(), &item.name)
                .map_err(|source| item.io(source))?;
        }
        let Some(blocks) = blocks else { return Ok(Complete::Message) };
        let trace = Trace::of(&file).map_err(|source| item.io(source))?;
        Ok(Complete::File(Held { blocks: Arc::new(blocks), trace }))
    }
}

impl Item {
    /// Refuses a size that it cannot have.
    fn allows(&self, size: u64) -> Result<(), ReceiveError> {
        let what = match self.size {
            Size::Exactly(wanted) if size != wanted => "its size is another",
            Size::AtMost(most) if size > most => "it is larger than such a file can be",
            _ => return Ok(()),
        };
        Err(ReceiveError::Mismatch { name: self.name.clone(), what })
    }

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
                (1, 3, 0) => ("cyrus.index", Size::AtMost(1 << 20), true),
                _ => return None,
            };
            let directory = Arc::clone(&self.0);
            Some(Item { directory, name: name.into(), size, replaces, base: None })
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
            patch: false,
            linked: false,
            same: None,
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
        let writers = Writers::start(&expected, &Pool::default(), false).unwrap();
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
        assert_eq!((received.messages.len(), received.files.len()), (1, 1));
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
        let huge = Chunk { size: (1 << 20) + 1, last: false, ..chunk((1, 3, 0), b"index") };
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

    /// Two messages of one mailbox are asked for, and a third of another size.
    struct AskedSame(Arc<StagedDirectory>);

    impl Expected for AskedSame {
        fn item(&self, (mailbox, kind, uid): ItemKey) -> Option<Item> {
            let size = Size::Exactly(if uid == 9 { 6 } else { 5 });
            let directory = Arc::clone(&self.0);
            let name = format!("{uid}.");
            let asked = (mailbox, kind) == (1, 1) && (7..10).contains(&uid);
            asked.then_some(Item { directory, name, size, replaces: false, base: None })
        }
    }

    #[test]
    fn another_name_of_a_message_is_a_link_if_that_has_come() {
        let dir = tempfile::tempdir().unwrap();
        let directory = StagedDirectory::make(dir.path(), Path::new("box")).unwrap();
        let expected: Arc<dyn Expected> = Arc::new(AskedSame(Arc::new(directory)));
        let name =
            |uid, first, size| Chunk { same: Some((1, first)), size, ..chunk((1, 1, uid), b"") };
        let take = |chunks: &[Chunk]| {
            let writers = Writers::start(&expected, &Pool::default(), false).unwrap();
            for chunk in chunks {
                let mut frame = BytesMut::new();
                chunk.encode(&mut frame);
                writers.give(frame.freeze())?;
            }
            let mut received = writers.finish()?;
            let left = received.link(&*expected);
            Ok::<_, ReceiveError>((received, left))
        };
        // Whichever comes first.
        let (received, left) = take(&[name(8, 7, 5), chunk((1, 1, 7), b"hello")]).unwrap();
        assert_eq!((received.messages[&1].len(), left), (2, 0));
        use std::os::unix::fs::MetadataExt;
        let inode = |uid| std::fs::metadata(dir.path().join(format!("box/{uid}."))).unwrap().ino();
        assert_eq!(inode(7), inode(8));
        // The first has not come, or is of another size.
        let (received, left) = take(&[name(8, 7, 5)]).unwrap();
        assert_eq!((received.messages.len(), left), (0, 1));
        let (_, left) = take(&[name(9, 7, 6), chunk((1, 1, 7), b"hello")]).unwrap();
        assert_eq!(left, 1);
        for wrong in [name(9, 7, 5), name(10, 7, 5)] {
            assert!(take(&[wrong]).is_err());
        }
    }

    #[test]
    fn a_message_that_has_gone_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let gone = Chunk { gone: true, size: 0, ..chunk((1, 1, 7), b"") };
        let received = receive(dir.path(), &[gone]).unwrap();
        assert_eq!((received.messages.len(), received.gone), (0, vec![(1, 1, 7)]));
    }

    /// The same as [`Asked`], after a first version of the index has come.
    struct AskedPatch(Arc<StagedDirectory>, Held);

    impl Expected for AskedPatch {
        fn item(&self, _: ItemKey) -> Option<Item> {
            let (directory, base) = (Arc::clone(&self.0), Some(self.1.clone()));
            let size = Size::AtMost(u64::MAX);
            Some(Item { directory, name: "cyrus.index".into(), size, replaces: true, base })
        }
    }

    /// An index of five blocks as it came, and a patch of it that changes two and adds one.
    fn patched(
        change: impl FnOnce(&Path, &mut Vec<Chunk>),
    ) -> (tempfile::TempDir, Vec<u8>, Received) {
        use crate::wire::blocks::BLOCK;
        let dir = tempfile::tempdir().unwrap();
        let old = vec![3; 5 * BLOCK];
        let pieces = [chunk((1, 3, 0), &old)];
        let mut received = receive(dir.path(), &pieces).unwrap();
        let held = received.files.remove(0).held;
        let mut new = old;
        new[BLOCK] = 4;
        new[4 * BLOCK] = 5;
        new.extend_from_slice(b"appended");
        let piece = |at: usize, end: usize| Chunk {
            offset: at as u64,
            last: end == new.len(),
            patch: true,
            bytes: Bytes::copy_from_slice(&new[at..end]),
            ..chunk((1, 3, 0), &new)
        };
        let mut pieces = vec![piece(BLOCK, 2 * BLOCK), piece(4 * BLOCK, new.len())];
        change(dir.path(), &mut pieces);
        let directory = Arc::new(StagedDirectory::make(dir.path(), Path::new("box")).unwrap());
        let expected: Arc<dyn Expected> = Arc::new(AskedPatch(directory, held));
        let writers = Writers::start(&expected, &Pool::default(), false).unwrap();
        for chunk in pieces {
            let mut frame = BytesMut::new();
            chunk.encode(&mut frame);
            writers.give(frame.freeze()).unwrap();
        }
        (dir, new, writers.finish().unwrap())
    }

    #[test]
    fn a_patch_makes_the_newer_version_of_a_file_in_its_place() {
        let (dir, new, received) = patched(|_, _| {});
        assert_eq!(std::fs::read(dir.path().join("box/cyrus.index")).unwrap(), new);
        assert_eq!(received.files.len(), 1);
        assert_eq!(received.files[0].held.blocks.blake3(), *blake3::hash(&new).as_bytes());
        let trace = received.files[0].held.trace;
        let file = File::open(dir.path().join("box/cyrus.index")).unwrap();
        assert_eq!(Trace::of(&file).unwrap(), trace);
    }

    #[test]
    fn a_patch_is_of_the_file_as_it_came_whatever_was_made_of_it() {
        let (dir, new, received) = patched(|dir, _| {
            let directory = StagedDirectory::make(dir, Path::new("box")).unwrap();
            directory.keep_as_sent("cyrus.index").unwrap();
            std::fs::write(dir.join("box/converted"), "made of it").unwrap();
            directory.rename("converted", "cyrus.index").unwrap();
        });
        assert_eq!(received.files.len(), 1);
        assert_eq!(std::fs::read(dir.path().join("box/cyrus.index")).unwrap(), b"made of it");
        let directory = StagedDirectory::make(dir.path(), Path::new("box")).unwrap();
        let sent = directory.open_as_sent("cyrus.index").unwrap();
        assert_eq!(Trace::of(&sent).unwrap(), received.files[0].held.trace);
        directory.restore_as_sent("cyrus.index").unwrap();
        assert_eq!(std::fs::read(dir.path().join("box/cyrus.index")).unwrap(), new);
        assert_eq!(std::fs::read_dir(dir.path().join("box")).unwrap().count(), 1);
    }

    #[test]
    fn what_a_patch_spoils_is_told_and_is_not_there_any_more() {
        type Change = fn(&Path, &mut Vec<Chunk>);
        let changes: [(&str, Change); 4] = [
            ("a block that differs is not sent", |_, pieces| {
                pieces.remove(0);
            }),
            ("another byte comes than was hashed", |_, pieces| {
                pieces[0].bytes = vec![9; pieces[0].bytes.len()].into();
            }),
            ("it has gone meanwhile", |_, pieces| {
                pieces[1] = Chunk { gone: true, bytes: Bytes::new(), ..pieces[1].clone() };
            }),
            ("it ends too early", |_, pieces| {
                pieces.remove(1);
            }),
        ];
        for (what, change) in changes {
            let (dir, _, received) = patched(change);
            assert_eq!(received.torn, [(1, 3, 0)], "{what}");
            assert!(received.files.is_empty(), "{what}");
            assert!(!dir.path().join("box/cyrus.index").exists(), "{what}");
        }
        // Somebody has written to it: it is not the patch's.
        let (dir, _, received) = patched(|dir, _| {
            std::fs::write(dir.join("box/cyrus.index"), "of somebody else").unwrap();
        });
        assert_eq!(received.torn, [(1, 3, 0)]);
        assert!(received.files.is_empty());
        let left = std::fs::read(dir.path().join("box/cyrus.index")).unwrap();
        assert_eq!(left, b"of somebody else");
    }
}
