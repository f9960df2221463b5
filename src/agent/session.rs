//! The agent's end of the connection: blocking, over any pair of pipes.

use super::loans::Loans;
use crate::wire::frame::{Frame, FrameError, FrameReader, Kind, Lent, OPENING, ReadError};
use crate::wire::pool::Pool;
use crate::wire::v1;
use bytes::Bytes;
use std::io::{self, IoSlice, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// Frames that wait between the reading thread and the handler.
const READ_AHEAD: usize = 8;

/// Shorter payloads are not worth lending, in bytes.
const LEAST_LENT: usize = 32 << 10;

/// Why a connection ended other than by its ordinary end.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Reading or writing failed.
    #[error("the connection to the coordinator broke: {0}")]
    Io(#[from] io::Error),
    /// What came is not the protocol.
    #[error("the coordinator sent {0}")]
    Frame(#[from] FrameError),
    /// The coordinator closed its side within a request.
    #[error("the coordinator went away in the middle of a request")]
    Gone,
    /// A frame that is not due now.
    #[error("the coordinator sent a {0:?} frame that is not due now")]
    OutOfTurn(Kind),
}

impl From<ReadError> for LinkError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Io(e) => Self::Io(e),
            ReadError::Frame(e) => Self::Frame(e),
        }
    }
}

impl From<LinkError> for v1::Failure {
    fn from(error: LinkError) -> Self {
        Self::new(
            v1::failure::Kind::Protocol,
            error.to_string(),
            "the step was not finished",
            "run the same command again",
        )
    }
}

/// Writes frames; cheap to clone, usable from several threads.
#[derive(Clone)]
pub struct Sender {
    output: Arc<Mutex<Box<dyn Write + Send>>>,
    request: u32,
    loans: Arc<Loans>,
    lends: bool,
}

impl Sender {
    /// Writes one frame.
    pub fn send(&self, frame: &Frame) -> io::Result<()> {
        let header = frame.header().encode();
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        write_all_vectored(&mut **output, &header, &frame.payload)?;
        output.flush()
    }

    /// Writes a part of the reply that is due.
    pub fn part(&self, part: v1::part::Part) -> io::Result<()> {
        self.send(&Frame::message(Kind::Part, self.request, &v1::Part { part: Some(part) }))
    }

    /// Has the coordinator read bulk data from this process's memory, if it said that it can.
    pub fn lending(self, lends: bool) -> Self {
        Self { lends, ..self }
    }

    /// Writes bulk data of the reply that is due; a payload that is not needed any more, this
    /// one or an earlier one.
    pub fn data(&self, payload: Bytes) -> io::Result<Option<Bytes>> {
        if self.lends && payload.len() >= LEAST_LENT {
            let tell = |payload: &[u8]| self.send(&Frame::lent(self.request, Lent::of(payload)));
            return self.loans.lend(payload, tell);
        }
        self.send(&Frame::data(self.request, payload.clone()))?;
        Ok(Some(payload))
    }
}

fn write_all_vectored(out: &mut dyn Write, header: &[u8], payload: &[u8]) -> io::Result<()> {
    let mut slices = [IoSlice::new(header), IoSlice::new(payload)];
    let mut left = &mut slices[..];
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match out.write_vectored(left) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => IoSlice::advance_slices(&mut left, n),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The connection to the coordinator.
pub struct Link {
    frames: Receiver<Result<Frame, LinkError>>,
    sender: Sender,
    pool: Pool,
    streaming: bool,
    receipts: bool,
}

impl Link {
    /// Sends the opening and starts to read.
    pub fn open(
        input: impl Read + Send + 'static,
        mut output: impl Write + Send + 'static,
    ) -> Result<Self, LinkError> {
        output.write_all(OPENING)?;
        output.flush()?;
        let (to, frames) = sync_channel(READ_AHEAD);
        let pool = Pool::default();
        let buffers = pool.clone();
        let loans = Arc::new(Loans::default());
        let lent = Arc::clone(&loans);
        std::thread::Builder::new().name("wire-reader".into()).spawn(move || {
            read_frames(input, buffers, |frame| match &frame {
                Ok(Frame { kind: Kind::Returned, .. }) if lent.returned() => true,
                _ => to.send(frame).is_ok(),
            });
            lent.end();
        })?;
        let output: Box<dyn Write + Send> = Box::new(output);
        let output = Arc::new(Mutex::new(output));
        let sender = Sender { output, request: 0, loans, lends: false };
        Ok(Self { frames, sender, pool, streaming: false, receipts: false })
    }

    /// The next request; `None` when the coordinator has closed its side.
    pub(super) fn next_request(&mut self) -> Result<Option<Frame>, LinkError> {
        match self.frames.recv() {
            Err(_) => Ok(None),
            Ok(frame) => match frame? {
                frame if frame.kind == Kind::Request => Ok(Some(frame)),
                frame => Err(LinkError::OutOfTurn(frame.kind)),
            },
        }
    }

    pub(super) fn answering(&mut self, request: u32) {
        self.sender.request = request;
    }

    /// Where parts, data and the reply go.
    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Where the payloads of data frames go when they have been used.
    pub fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// The next part that the coordinator streams after its request; `None`
    /// after the last, which is an empty `Part`.
    pub fn next_part(&mut self) -> Result<Option<v1::part::Part>, LinkError> {
        let part = self.next_of(Kind::Part)?.decode::<v1::Part>("part")?.part;
        self.streaming = part.is_some();
        Ok(part)
    }

    /// The payload of the next data frame that the coordinator streams after
    /// its request; `None` after the last, which is empty.
    pub fn next_data(&mut self) -> Result<Option<Bytes>, LinkError> {
        let payload = self.next_of(Kind::Data)?.payload;
        self.streaming = !payload.is_empty();
        Ok(self.streaming.then_some(payload))
    }

    /// Reads and drops what the coordinator still streams for a request whose
    /// handler has failed half way.
    pub(super) fn skip_rest(&mut self) -> Result<(), LinkError> {
        if self.streaming && self.receipts {
            // Whoever waits for receipts of what is dropped now would wait for ever.
            self.sender.part(v1::part::Part::Received(v1::Received { bytes: u64::MAX }))?;
        }
        while self.streaming {
            let frame = self.frames.recv().map_err(|_| LinkError::Gone)??;
            self.streaming = match frame.kind {
                Kind::Data => !frame.payload.is_empty(),
                Kind::Part => frame.decode::<v1::Part>("part")?.part.is_some(),
                kind => return Err(LinkError::OutOfTurn(kind)),
            };
        }
        Ok(())
    }

    /// Notes that the request at hand is followed by a stream, and whether its
    /// sender waits for receipts.
    pub(super) fn expect_stream(&mut self, receipts: bool) {
        self.streaming = true;
        self.receipts = receipts;
    }

    fn next_of(&mut self, kind: Kind) -> Result<Frame, LinkError> {
        let frame = self.frames.recv().map_err(|_| LinkError::Gone)??;
        if frame.kind == kind { Ok(frame) } else { Err(LinkError::OutOfTurn(frame.kind)) }
    }
}

/// Reads frames until the end of the input; `give` says whether to go on.
fn read_frames(input: impl Read, pool: Pool, give: impl Fn(Result<Frame, LinkError>) -> bool) {
    let mut reader = match FrameReader::open(input, pool) {
        Ok(reader) => reader,
        // A coordinator that went away before it said anything.
        Err(ReadError::Io(e)) if e.kind() == io::ErrorKind::UnexpectedEof => return,
        Err(e) => {
            give(Err(e.into()));
            return;
        }
    };
    while let Some(frame) = reader.next_frame().map_err(LinkError::from).transpose() {
        let goes_on = frame.is_ok();
        if !give(frame) || !goes_on {
            return;
        }
    }
}
