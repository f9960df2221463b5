//! Chunks: the bytes of files inside data frames.

use super::frame::MAX_DATA;
use bytes::{BufMut, Bytes, BytesMut};

/// Length of a chunk's header, in bytes.
pub const CHUNK_HEADER: usize = 72;

const LAST: u8 = 1;
const GONE: u8 = 2;
const ZSTD: u8 = 4;
const PATCH: u8 = 8;
const LINKED: u8 = 16;
const SAME: u8 = 32;

/// One piece of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Ordinal of the mailbox, or [`super::USER`].
    pub mailbox: u32,
    /// A `FileKind`, as the peer sent it.
    pub kind: u8,
    /// UID of the message, or number of the user's file.
    pub uid: u32,
    /// Whether the file ends with this chunk.
    pub last: bool,
    /// Whether the file has gone since it was listed; there are no bytes then.
    pub gone: bool,
    /// Whether `bytes` are compressed by zstd.
    pub compressed: bool,
    /// Whether the file is patched: what lies between chunks is as in the version that the
    /// receiver named.
    pub patch: bool,
    /// Whether the file has several names on the source.
    pub linked: bool,
    /// The message, by mailbox and UID, of which this one is another name; it is sent by
    /// itself, and there are no bytes here.
    pub same: Option<(u32, u32)>,
    /// Size of the whole file, in bytes.
    pub size: u64,
    /// Where in the file the chunk belongs, in bytes.
    pub offset: u64,
    /// Modification time, in seconds since 1970.
    pub mtime: i64,
    /// BLAKE3 of the whole file; counts in the last chunk only.
    pub blake3: [u8; 32],
    /// The bytes.
    pub bytes: Bytes,
}

/// Why a data frame is not a sequence of chunks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The frame ends within a chunk.
    #[error("bulk data ends within a chunk, {0} bytes after its start")]
    Short(usize),
    /// Offset, length and size do not fit together.
    #[error("a chunk of {length} bytes at {offset} of a file of {size} bytes")]
    OutOfFile {
        /// Where the chunk begins, in bytes.
        offset: u64,
        /// Its length, in bytes.
        length: u64,
        /// Size of the file, in bytes.
        size: u64,
    },
    /// The compressed bytes are not what they claim.
    #[error("a chunk does not decompress: {0}")]
    Compression(String),
}

impl Chunk {
    /// The chunk's header, for `length` bytes that follow it in a data frame's payload.
    pub fn header(&self, length: usize) -> [u8; CHUNK_HEADER] {
        let flags = (u8::from(self.last) * LAST)
            | (u8::from(self.gone) * GONE)
            | (u8::from(self.compressed) * ZSTD)
            | (u8::from(self.patch) * PATCH)
            | (u8::from(self.linked) * LINKED)
            | (u8::from(self.same.is_some()) * SAME);
        let mut header = [0; CHUNK_HEADER];
        let mut out = &mut header[..];
        out.put_u32(self.mailbox);
        out.put_u8(self.kind);
        out.put_u8(flags);
        out.put_u16(0);
        out.put_u32(self.uid);
        out.put_u32(length as u32);
        out.put_u64(self.size);
        out.put_u64(self.offset);
        out.put_i64(self.mtime);
        match self.same {
            None => out.put_slice(&self.blake3),
            Some((mailbox, uid)) => {
                out.put_u32(mailbox);
                out.put_u32(uid);
            }
        }
        header
    }

    /// Appends the chunk to a data frame's payload.
    pub fn encode(&self, out: &mut BytesMut) {
        out.reserve(CHUNK_HEADER + self.bytes.len());
        out.put_slice(&self.header(self.bytes.len()));
        out.put_slice(&self.bytes);
    }

    /// Splits the first chunk off a data frame's payload.
    pub fn decode(frame: &mut Bytes) -> Result<Self, ChunkError> {
        let short = ChunkError::Short(frame.len());
        let Some(header) = frame.first_chunk::<CHUNK_HEADER>() else { return Err(short) };
        let header = *header;
        let u32_at = |at: usize| be_u32(&header, at);
        let u64_at = |at: usize| be_u64(&header, at);
        let length = u32_at(12) as usize;
        if length > MAX_DATA || frame.len() < CHUNK_HEADER + length {
            return Err(short);
        }
        let _ = frame.split_to(CHUNK_HEADER);
        let bytes = frame.split_to(length);
        let flags = header[5];
        let same = (flags & SAME != 0).then(|| (u32_at(40), u32_at(44)));
        let mut blake3 = [0; 32];
        if same.is_none() {
            blake3.copy_from_slice(&header[40..72]);
        }
        let chunk = Self {
            mailbox: u32_at(0),
            kind: header[4],
            uid: u32_at(8),
            last: flags & LAST != 0,
            gone: flags & GONE != 0,
            compressed: flags & ZSTD != 0,
            patch: flags & PATCH != 0,
            linked: flags & LINKED != 0,
            same,
            size: u64_at(16),
            offset: u64_at(24),
            mtime: u64_at(32) as i64,
            blake3,
            bytes,
        };
        if !chunk.compressed {
            chunk.fits(chunk.bytes.len() as u64)?;
        }
        Ok(chunk)
    }

    /// What the frames have in common that must stay in order with this one: the pieces of
    /// one file. `None` if it holds whole files.
    pub fn order_of(frame: &Bytes) -> Result<Option<u32>, ChunkError> {
        let mut rest = frame.clone();
        let first = Self::decode(&mut rest)?;
        // The end of a large file that went wrong comes alone.
        let alone = rest.is_empty();
        let whole = !(first.gone && alone) && first.offset == 0 && first.last;
        Ok((!whole).then_some(first.uid.wrapping_add(first.mailbox)))
    }

    /// The chunk's bytes, decompressed; never more than the file still has
    /// room for, nor than the limit of a frame.
    pub fn plain(&self) -> Result<Bytes, ChunkError> {
        if !self.compressed {
            return Ok(self.bytes.clone());
        }
        let room = self.size.saturating_sub(self.offset).min(MAX_DATA as u64) as usize;
        let plain = zstd::bulk::decompress(&self.bytes, room)
            .map_err(|e| ChunkError::Compression(e.to_string()))?;
        self.fits(plain.len() as u64)?;
        Ok(plain.into())
    }

    fn fits(&self, length: u64) -> Result<(), ChunkError> {
        match self.offset.checked_add(length) {
            Some(end) if end <= self.size || self.gone => Ok(()),
            _ => Err(ChunkError::OutOfFile { offset: self.offset, length, size: self.size }),
        }
    }
}

fn be_u32(header: &[u8; CHUNK_HEADER], at: usize) -> u32 {
    header.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_be_bytes(*b))
}

fn be_u64(header: &[u8; CHUNK_HEADER], at: usize) -> u64 {
    header.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_be_bytes(*b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunk(bytes: &'static [u8]) -> Chunk {
        Chunk {
            mailbox: 3,
            kind: 1,
            uid: 42,
            last: true,
            gone: false,
            compressed: false,
            patch: false,
            linked: false,
            same: None,
            size: bytes.len() as u64,
            offset: 0,
            mtime: -5,
            blake3: *blake3::hash(bytes).as_bytes(),
            bytes: Bytes::from_static(bytes),
        }
    }

    #[test]
    fn chunks_come_back_as_they_were() {
        let mut frame = BytesMut::new();
        let chunks = [chunk(b"first"), chunk(b""), chunk(b"third")];
        chunks.iter().for_each(|c| c.encode(&mut frame));
        let mut frame = frame.freeze();
        for expected in &chunks {
            assert_eq!(&Chunk::decode(&mut frame).unwrap(), expected);
        }
        assert!(frame.is_empty());
    }

    #[test]
    fn a_chunk_beyond_its_file_is_refused() {
        let mut bad = chunk(b"hello");
        bad.offset = 1;
        let mut frame = BytesMut::new();
        bad.encode(&mut frame);
        assert!(matches!(Chunk::decode(&mut frame.freeze()), Err(ChunkError::OutOfFile { .. })));
    }

    #[test]
    fn compressed_bytes_may_not_grow_beyond_the_file() {
        let mut bomb = chunk(b"");
        bomb.bytes = zstd::bulk::compress(&vec![0; 1 << 20], 1).unwrap().into();
        bomb.compressed = true;
        bomb.size = 1000;
        assert!(matches!(bomb.plain(), Err(ChunkError::Compression(_))));
        bomb.size = 1 << 20;
        assert_eq!(bomb.plain().unwrap().len(), 1 << 20);
    }

    proptest! {
        #[test]
        fn any_bytes_give_chunks_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..1024)) {
            let mut frame = Bytes::from(bytes);
            while let Ok(chunk) = Chunk::decode(&mut frame) {
                let _ = chunk.plain();
                if frame.is_empty() { break }
            }
        }
    }
}
