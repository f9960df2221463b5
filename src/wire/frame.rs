//! Frames: the envelope of everything that crosses the wire.

use super::pool::Pool;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use std::io::{self, BufRead, BufReader, Read};

/// What each side writes before its first frame.
pub const OPENING: &[u8; 16] = b"\x00mbcopy-wire\x01\r\n\n";

/// How much noise before the opening is skipped, in bytes.
pub const MAX_NOISE: usize = 64 << 10;

/// Length of a frame's header, in bytes.
pub const HEADER: usize = 12;

/// Largest payload of a control frame, in bytes.
pub const MAX_CONTROL: usize = 16 << 20;

/// Largest payload of a data frame, in bytes.
pub const MAX_DATA: usize = 4 << 20;

/// Length of the payload of a lent frame, in bytes.
pub const LENT: usize = 12;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A `Request` of the coordinator.
    Request = 1,
    /// A `Part` of a streamed request or reply.
    Part = 2,
    /// Chunks of bulk data; see [`super::bulk`].
    Data = 3,
    /// The `Reply` that ends a request.
    Reply = 4,
    /// A data frame's payload that a child lets its parent read from its memory; see [`Lent`].
    Lent = 5,
    /// The oldest payload that was lent is not needed any more. It has no payload.
    Returned = 6,
}

/// Where the payload of a data frame is in the memory of the process that lends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lent {
    /// Its address there.
    pub address: u64,
    /// Its length, in bytes; within the limit of a data frame.
    pub length: usize,
}

impl Lent {
    /// Where these bytes are.
    pub fn of(bytes: &[u8]) -> Self {
        Self { address: bytes.as_ptr() as u64, length: bytes.len() }
    }

    /// The payload of a frame that lends.
    pub fn encode(&self) -> Bytes {
        let mut payload = BytesMut::with_capacity(LENT);
        payload.put_u64(self.address);
        payload.put_u32(self.length as u32);
        payload.freeze()
    }

    /// Reads such a payload.
    pub fn decode(mut payload: &[u8]) -> Result<Self, FrameError> {
        if payload.len() != LENT {
            let reason = format!("{} bytes instead of {LENT}", payload.len());
            return Err(FrameError::Malformed { what: "loan", reason });
        }
        let (address, length) = (payload.get_u64(), payload.get_u32() as usize);
        if length > MAX_DATA {
            return Err(FrameError::TooLarge { length, limit: MAX_DATA });
        }
        Ok(Self { address, length })
    }
}

/// One frame, its payload not yet decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// The request it belongs to.
    pub request: u32,
    /// The payload.
    pub payload: Bytes,
}

/// Why bytes are not a frame, or a frame not the message that was due.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Too much noise before the opening.
    #[error("no mbcopy agent answered: {MAX_NOISE} bytes came that are not its opening")]
    NoOpening,
    /// A kind that the protocol does not know.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A payload above the limit.
    #[error("a frame of {length} bytes, above the limit of {limit}")]
    TooLarge {
        /// Length that the peer announced, in bytes.
        length: usize,
        /// The limit for this kind, in bytes.
        limit: usize,
    },
    /// A payload that is not the message it should be.
    #[error("a malformed {what}: {reason}")]
    Malformed {
        /// The message that was due.
        what: &'static str,
        /// Why it is not.
        reason: String,
    },
}

/// A frame's header, checked against the limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the payload is.
    pub kind: Kind,
    /// The request it belongs to.
    pub request: u32,
    /// Length of the payload, in bytes; within the limit of its kind.
    pub length: usize,
}

impl FrameHeader {
    /// Reads a header; refuses it before anything is allocated for its payload.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, kind, _, _, _, r0, r1, r2, r3] = *bytes;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let (kind, limit) = match kind {
            1 => (Kind::Request, MAX_CONTROL),
            2 => (Kind::Part, MAX_CONTROL),
            3 => (Kind::Data, MAX_DATA),
            4 => (Kind::Reply, MAX_CONTROL),
            5 => (Kind::Lent, LENT),
            6 => (Kind::Returned, 0),
            other => return Err(FrameError::UnknownKind(other)),
        };
        if length > limit {
            return Err(FrameError::TooLarge { length, limit });
        }
        Ok(Self { kind, request: u32::from_be_bytes([r0, r1, r2, r3]), length })
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = (self.length as u32).to_be_bytes();
        let [r0, r1, r2, r3] = self.request.to_be_bytes();
        [l0, l1, l2, l3, self.kind as u8, 0, 0, 0, r0, r1, r2, r3]
    }
}

impl Frame {
    /// A frame that holds a protobuf message.
    pub fn message(kind: Kind, request: u32, message: &impl Message) -> Self {
        Self { kind, request, payload: message.encode_to_vec().into() }
    }

    /// A frame of bulk data.
    pub fn data(request: u32, payload: Bytes) -> Self {
        Self { kind: Kind::Data, request, payload }
    }

    /// A frame that says where bulk data is.
    pub fn lent(request: u32, at: Lent) -> Self {
        Self { kind: Kind::Lent, request, payload: at.encode() }
    }

    /// The frame's header.
    pub fn header(&self) -> FrameHeader {
        FrameHeader { kind: self.kind, request: self.request, length: self.payload.len() }
    }

    /// Decodes the payload as the message `M`.
    pub fn decode<M: Message + Default>(&self, what: &'static str) -> Result<M, FrameError> {
        M::decode(self.payload.clone())
            .map_err(|e| FrameError::Malformed { what, reason: e.to_string() })
    }

    /// The whole frame's bytes.
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(HEADER + self.payload.len());
        out.put_slice(&self.header().encode());
        out.put_slice(&self.payload);
        out
    }
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Reading failed, or the stream ended within a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What came is not a frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads the frames of a blocking stream.
pub struct FrameReader<R> {
    input: BufReader<R>,
    pool: Pool,
}

impl<R: Read> FrameReader<R> {
    /// Skips whatever comes before the opening; what the pool holds is used for
    /// the payloads of data frames.
    pub fn open(input: R, pool: Pool) -> Result<Self, ReadError> {
        let mut input = BufReader::with_capacity(64 << 10, input);
        let mut noise = Vec::new();
        while !noise.ends_with(OPENING) {
            if noise.len() > MAX_NOISE + OPENING.len() {
                return Err(FrameError::NoOpening.into());
            }
            let mut byte = [0];
            input.read_exact(&mut byte)?;
            noise.extend_from_slice(&byte);
        }
        Ok(Self { input, pool })
    }

    /// The next frame; `None` at the end of the stream.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ReadError> {
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.input.read_exact(&mut header)?;
        let FrameHeader { kind, request, length } = FrameHeader::parse(&header)?;
        let payload = match kind {
            Kind::Data => {
                let mut buffer = self.pool.take(length);
                self.input.read_exact(buffer.get_mut(..length).unwrap_or_default())?;
                Bytes::from(buffer).slice(..length)
            }
            // Grows as it comes: a header alone costs nothing.
            _ => {
                let mut buffer = Vec::with_capacity(length.min(64 << 10));
                let came = self.input.by_ref().take(length as u64).read_to_end(&mut buffer)?;
                if came < length {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                buffer.into()
            }
        };
        Ok(Some(Frame { kind, request, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::v1;
    use proptest::prelude::*;

    fn request() -> Frame {
        let op = v1::request::Op::Freeze(v1::Freeze { limit_ms: 10_000, wait_ms: 2_000 });
        Frame::message(Kind::Request, 7, &v1::Request { op: Some(op) })
    }

    #[test]
    fn frames_survive_any_cut_and_noise_before_the_opening() {
        let mut stream = b"Welcome to mail.example.org\r\n".to_vec();
        stream.extend_from_slice(OPENING);
        stream.extend_from_slice(&request().encode());
        stream.extend_from_slice(&Frame::data(7, Bytes::from_static(b"abc")).encode());
        for cut in 1..stream.len() {
            let input = Cut { bytes: &stream, at_most: cut };
            let mut reader = FrameReader::open(input, Pool::default()).unwrap();
            let mut seen = Vec::new();
            while let Some(frame) = reader.next_frame().unwrap() {
                seen.push(frame);
            }
            assert_eq!(seen, [request(), Frame::data(7, Bytes::from_static(b"abc"))]);
        }
    }

    /// A stream that comes in pieces.
    struct Cut<'a> {
        bytes: &'a [u8],
        at_most: usize,
    }

    impl Read for Cut<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let wanted = buffer.len().min(self.at_most);
            self.bytes.read(&mut buffer[..wanted])
        }
    }

    fn read(bytes: &[u8]) -> FrameReader<io::Cursor<Vec<u8>>> {
        let stream = [OPENING, bytes].concat();
        FrameReader::open(io::Cursor::new(stream), Pool::default()).unwrap()
    }

    #[test]
    fn a_loan_is_no_longer_than_a_data_frame() {
        let at = Lent { address: 0x7fff_1234_5678, length: MAX_DATA };
        assert_eq!(Lent::decode(&at.encode()), Ok(at));
        let longer = Lent { length: MAX_DATA + 1, ..at }.encode();
        assert!(matches!(Lent::decode(&longer), Err(FrameError::TooLarge { .. })));
        assert!(matches!(Lent::decode(&longer[1..]), Err(FrameError::Malformed { .. })));
    }

    #[test]
    fn limits_are_checked_on_the_header_alone() {
        let refused = read(&[0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 1]).next_frame();
        assert!(matches!(
            refused,
            Err(ReadError::Frame(FrameError::TooLarge { limit: MAX_DATA, .. }))
        ));
    }

    #[test]
    fn endless_noise_is_refused() {
        let noise = vec![b'x'; MAX_NOISE * 2];
        let refused = FrameReader::open(&noise[..], Pool::default());
        assert!(matches!(refused, Err(ReadError::Frame(FrameError::NoOpening))));
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_an_error() {
        let whole = request().encode();
        for end in 1..whole.len() {
            assert!(matches!(read(&whole[..end]).next_frame(), Err(ReadError::Io(_))), "{end}");
        }
        assert!(matches!(read(&[]).next_frame(), Ok(None)));
    }

    proptest! {
        #[test]
        fn any_bytes_give_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut reader = read(&bytes);
            while let Ok(Some(frame)) = reader.next_frame() {
                let _ = frame.decode::<v1::Request>("request");
                let _ = frame.decode::<v1::Reply>("reply");
                let _ = frame.decode::<v1::Part>("part");
            }
        }
    }
}
