//! Frames: the envelope of everything that crosses the wire.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

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

/// Cuts a stream of bytes into frames, however it was cut on its way.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: BytesMut,
    opened: bool,
}

impl Decoder {
    /// Adds bytes that have arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that came and are not part of a whole frame yet. Before the
    /// opening these are what the remote side printed instead of starting.
    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// The next whole frame; `None` when more bytes are needed.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if !self.opened && !self.find_opening()? {
            return Ok(None);
        }
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let header = FrameHeader::parse(header)?;
        let whole = HEADER + header.length;
        if self.buffer.len() < whole {
            self.buffer.reserve(whole - self.buffer.len());
            return Ok(None);
        }
        let payload = self.buffer.split_to(whole).freeze().slice(HEADER..);
        Ok(Some(Frame { kind: header.kind, request: header.request, payload }))
    }

    fn find_opening(&mut self) -> Result<bool, FrameError> {
        if let Some(at) = self.buffer.windows(OPENING.len()).position(|w| w == OPENING) {
            let _ = self.buffer.split_to(at + OPENING.len());
            self.opened = true;
            return Ok(true);
        }
        if self.buffer.len() > MAX_NOISE { Err(FrameError::NoOpening) } else { Ok(false) }
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
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in stream.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert_eq!(seen, [request(), Frame::data(7, Bytes::from_static(b"abc"))]);
        }
    }

    #[test]
    fn limits_are_checked_on_the_header_alone() {
        let mut decoder = Decoder::default();
        decoder.push(OPENING);
        decoder.push(&[0xff, 0xff, 0xff, 0xff, 3, 0, 0, 0, 0, 0, 0, 1]);
        assert!(matches!(decoder.next_frame(), Err(FrameError::TooLarge { limit: MAX_DATA, .. })));
    }

    #[test]
    fn endless_noise_is_refused() {
        let mut decoder = Decoder::default();
        decoder.push(&vec![b'x'; MAX_NOISE + 1]);
        assert_eq!(decoder.next_frame(), Err(FrameError::NoOpening));
    }

    proptest! {
        #[test]
        fn any_bytes_give_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut decoder = Decoder::default();
            decoder.push(OPENING);
            decoder.push(&bytes);
            while let Ok(Some(frame)) = decoder.next_frame() {
                let _ = frame.decode::<v1::Request>("request");
                let _ = frame.decode::<v1::Reply>("reply");
                let _ = frame.decode::<v1::Part>("part");
            }
        }
    }
}
