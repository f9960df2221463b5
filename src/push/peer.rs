//! A coordinator's connection to one agent.

use super::lanes::Lanes;
use super::memory::Memory;
use crate::fault::{self, Point};
use crate::transport::RemoteProcess;
use crate::wire::frame::{Frame, FrameError, FrameHeader, HEADER, Kind, Lent, MAX_NOISE, OPENING};
use crate::wire::{self, v1};
use bytes::{Bytes, BytesMut};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

/// Frames that wait to be written.
const WRITE_AHEAD: usize = 8;

/// Why a request to an agent has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The agent did what it could and says why it failed.
    #[error("{server}: {}", wire::printable(&failure.text))]
    Failed {
        /// The agent's server.
        server: String,
        /// What it says.
        failure: Box<v1::Failure>,
    },
    /// The connection ended or broke.
    #[error("the connection to the agent on {server} broke: {reason}")]
    Lost {
        /// The agent's server.
        server: String,
        /// Why, with what the agent wrote to its standard error.
        reason: String,
    },
    /// The agent sent what it should not.
    #[error("the agent on {server} sent {source}")]
    Protocol {
        /// The agent's server.
        server: String,
        /// What.
        source: FrameError,
    },
}

impl PeerError {
    /// What kind of failure the agent reported, if it did.
    pub fn kind(&self) -> Option<v1::failure::Kind> {
        match self {
            Self::Failed { failure, .. } => Some(failure.kind()),
            _ => None,
        }
    }

    /// What the agent says about the state things are in, and what to do next.
    pub fn guidance(&self) -> Option<(&str, &str)> {
        match self {
            Self::Failed { failure, .. } => Some((&failure.state, &failure.advice)),
            _ => None,
        }
    }

    /// The state things are in, and what to do next: as the agent says, else as the
    /// coordinator does (`ours`). Once the move is `routed`, an agent that only failed
    /// does not know who serves the user.
    pub fn guidance_beside<'a>(
        &'a self,
        ours: (&'a str, &'a str),
        routed: bool,
    ) -> (&'a str, &'a str) {
        let (state, advice) = self.guidance().unwrap_or(ours);
        (if routed && !self.outcome_unknown() { ours.0 } else { state }, advice)
    }

    /// Whether it is not known what became of the request.
    pub fn outcome_unknown(&self) -> bool {
        match self {
            Self::Failed { failure, .. } => failure.kind() == v1::failure::Kind::UnknownOutcome,
            Self::Lost { .. } | Self::Protocol { .. } => true,
        }
    }
}

/// The two directions of a connection, however it was made.
pub struct Streams {
    /// What the agent writes.
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    /// What the agent is to read. A task drains it; when it ends, the agent's
    /// input is closed.
    pub write: mpsc::Sender<Bytes>,
    /// The end of what the agent wrote to its standard error.
    pub stderr: Stderr,
    /// The agent's memory, if it is a child of ours.
    pub memory: Option<Memory>,
}

const CLOSED: &str = "it closed its input";

/// Writes a frame whose payload is there already; whether somebody still takes it.
pub(super) async fn write(
    queue: &mpsc::Sender<Bytes>,
    kind: Kind,
    request: u32,
    payload: Bytes,
) -> bool {
    let header = FrameHeader { kind, request, length: payload.len() };
    let header = queue.send(Bytes::copy_from_slice(&header.encode())).await;
    header.is_ok() && (payload.is_empty() || queue.send(payload).await.is_ok())
}

/// Tells the end of what an agent wrote to its standard error.
pub type Stderr = Box<dyn Fn() -> String + Send + Sync>;

impl Streams {
    /// The queue that such a connection's writing task drains.
    pub fn queue() -> (mpsc::Sender<Bytes>, mpsc::Receiver<Bytes>) {
        mpsc::channel(WRITE_AHEAD)
    }
}

impl From<RemoteProcess> for Streams {
    fn from(process: RemoteProcess) -> Self {
        let RemoteProcess { mut stdin, stdout, stderr, .. } = process;
        let (write, mut queue) = Self::queue();
        tokio::spawn(async move {
            while let Some(bytes) = queue.recv().await {
                if stdin.send(bytes).await.is_err() {
                    return;
                }
            }
            let _ = stdin.finish().await;
        });
        let stderr = Box::new(move || stderr.text());
        Self { read: Box::new(stdout), write, stderr, memory: None }
    }
}

/// One agent.
pub struct Peer {
    server: String,
    role: v1::Role,
    read: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
    write: mpsc::Sender<Bytes>,
    stderr: Stderr,
    /// The agent's memory, if it can be read.
    memory: Option<Memory>,
    /// Further channels.
    pub lanes: Lanes,
    request: u32,
    /// Whether the request at hand has no reply yet.
    asked: bool,
    /// A request whose reply nobody waits for.
    told: Option<u32>,
    /// What the agent said of itself.
    pub welcome: v1::Welcome,
}

impl Peer {
    /// Greets the agent on `server` (a name for messages) in its role.
    ///
    /// Errors: no agent answers, or versions do not fit.
    pub async fn greet(server: &str, role: v1::Role, streams: Streams) -> Result<Self, PeerError> {
        let mut peer = Self {
            server: server.into(),
            role,
            read: BufReader::with_capacity(256 << 10, streams.read),
            write: streams.write,
            stderr: streams.stderr,
            memory: streams.memory,
            lanes: Lanes::default(),
            request: 0,
            asked: false,
            told: None,
            welcome: v1::Welcome::default(),
        };
        peer.put(Bytes::from_static(OPENING)).await?;
        let hello = v1::Hello {
            protocol_min: *wire::PROTOCOL.start(),
            protocol_max: *wire::PROTOCOL.end(),
            role: role.into(),
            software: wire::SOFTWARE.into(),
            capabilities: peer.memory.iter().map(|_| wire::LEND.into()).collect(),
        };
        // It does not wait for the agent's opening, which may be far; what is wrong with an
        // agent is told better by that.
        let asked = peer.begin(v1::request::Op::Hello(hello)).await;
        peer.find_opening().await?;
        asked?;
        match peer.reply().await? {
            v1::reply::Result::Welcome(welcome) => peer.welcome = welcome,
            _ => return Err(peer.unexpected("greeting")),
        }
        let sample = peer.welcome.sample.take();
        if !peer.finds(sample.as_ref()) {
            peer.memory = None;
        }
        Ok(peer)
    }

    fn finds(&mut self, sample: Option<&v1::Sample>) -> bool {
        let (Some(memory), Some(sample)) = (&mut self.memory, sample) else { return false };
        let at = Lent { address: sample.address, length: sample.content.len() };
        memory.read(at).is_ok_and(|found| found == sample.content)
    }

    /// Whether the agent may have its bulk data read from its memory.
    pub fn is_readable(&self) -> bool {
        self.memory.is_some()
    }

    /// The agent's server, for messages.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Whether the last request still waits for its reply.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// Sends a request that nothing follows and waits for its reply.
    pub async fn call(&mut self, op: v1::request::Op) -> Result<v1::reply::Result, PeerError> {
        self.begin(op).await?;
        self.reply().await
    }

    /// Sends a request whose reply changes nothing: it is passed over when it comes. Nothing
    /// else may be told before it has.
    pub async fn tell(&mut self, op: v1::request::Op) -> Result<(), PeerError> {
        self.begin(op).await?;
        self.asked = false;
        self.told = Some(self.request);
        Ok(())
    }

    /// Sends a request.
    pub async fn begin(&mut self, op: v1::request::Op) -> Result<(), PeerError> {
        self.cut(Point::SourceAsked, Point::TargetAsked)?;
        self.request += 1;
        self.asked = true;
        self.send(Kind::Request, &v1::Request { op: Some(op) }).await
    }

    /// Streams a part after a request; `None` after the last.
    pub async fn part(&mut self, part: Option<v1::part::Part>) -> Result<(), PeerError> {
        self.send(Kind::Part, &v1::Part { part }).await
    }

    /// Streams a frame of another peer's after a request of this one.
    pub async fn relay(&mut self, kind: Kind, payload: Bytes) -> Result<(), PeerError> {
        match write(&self.write, kind, self.request, payload).await {
            true => Ok(()),
            false => Err(self.lost(&CLOSED)),
        }
    }

    /// Streams bulk data after a request of this one, on the channel that has most room.
    pub async fn bulk(&mut self, payload: Bytes) -> Result<(), PeerError> {
        match self.lanes.choose(&payload, &self.write) {
            None => self.relay(Kind::Data, payload).await,
            Some(lane) if self.lanes.send(lane, payload).await => Ok(()),
            Some(_) => Err(self.lost(&"a further channel has ended")),
        }
    }

    /// Ends the bulk data after a request.
    pub async fn end_bulk(&mut self) -> Result<(), PeerError> {
        if !self.lanes.end().await {
            return Err(self.lost(&"a further channel has ended"));
        }
        self.relay(Kind::Data, Bytes::new()).await
    }

    /// Waits for the reply of the request at hand.
    pub async fn reply(&mut self) -> Result<v1::reply::Result, PeerError> {
        let frame = self.next().await?;
        match frame.kind {
            Kind::Reply => self.decode_reply(&frame),
            _ => Err(self.unexpected("reply")),
        }
    }

    /// The next frame of the answer to the request at hand.
    pub async fn next(&mut self) -> Result<Frame, PeerError> {
        let mut frame = self.read_frame().await?;
        if self.told.is_some_and(|told| told == frame.request && frame.kind == Kind::Reply) {
            self.told = None;
            frame = self.read_frame().await?;
        }
        if frame.request != self.request {
            return Err(self.unexpected("answer to this request"));
        }
        if frame.kind == Kind::Lent {
            return self.borrow(&frame.payload).await;
        }
        if frame.kind == Kind::Reply {
            self.asked = false;
            self.cut(Point::SourceAnswered, Point::TargetAnswered)?;
        }
        Ok(frame)
    }

    async fn read_frame(&mut self) -> Result<Frame, PeerError> {
        let mut header = [0; HEADER];
        if let Err(e) = self.read.read_exact(&mut header).await {
            return Err(self.lost(&e));
        }
        let header = FrameHeader::parse(&header).map_err(|source| self.protocol(source))?;
        let mut payload = BytesMut::with_capacity(header.length);
        while payload.len() < header.length {
            let left = (header.length - payload.len()) as u64;
            match (&mut self.read).take(left).read_buf(&mut payload).await {
                Ok(0) => return Err(self.lost(&"it ended in the middle of an answer")),
                Ok(_) => {}
                Err(e) => return Err(self.lost(&e)),
            }
        }
        Ok(Frame { kind: header.kind, request: header.request, payload: payload.freeze() })
    }

    /// The data frame whose payload is lent.
    async fn borrow(&mut self, payload: &[u8]) -> Result<Frame, PeerError> {
        let at = Lent::decode(payload).map_err(|source| self.protocol(source))?;
        let Some(memory) = &mut self.memory else {
            return Err(self.unexpected("answer without loans"));
        };
        let payload =
            memory.read(at).map_err(|e| self.lost(&format!("reading its memory: {e}")))?;
        let returned = Frame { kind: Kind::Returned, request: self.request, payload: Bytes::new() };
        self.put(returned.encode().freeze()).await?;
        Ok(Frame::data(self.request, payload))
    }

    /// Decodes a reply; a failure becomes an error.
    pub fn decode_reply(&self, frame: &Frame) -> Result<v1::reply::Result, PeerError> {
        let reply: v1::Reply = frame.decode("reply").map_err(|source| self.protocol(source))?;
        match reply.result {
            Some(v1::reply::Result::Failure(failure)) => {
                Err(PeerError::Failed { server: self.server.clone(), failure: failure.into() })
            }
            Some(result) => Ok(result),
            None => Err(self.unexpected("reply")),
        }
    }

    /// The error of an answer that is not the one that was due.
    pub fn unexpected(&self, what: &'static str) -> PeerError {
        self.protocol(FrameError::Malformed { what, reason: "something else came".into() })
    }

    async fn send(&mut self, kind: Kind, message: &impl prost::Message) -> Result<(), PeerError> {
        self.put(Frame::message(kind, self.request, message).encode().freeze()).await
    }

    async fn put(&mut self, bytes: Bytes) -> Result<(), PeerError> {
        match self.write.send(bytes).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.lost(&CLOSED)),
        }
    }

    async fn find_opening(&mut self) -> Result<(), PeerError> {
        let mut noise = Vec::new();
        while !noise.ends_with(OPENING) {
            match self.read.read_u8().await {
                Ok(byte) if noise.len() < MAX_NOISE + OPENING.len() => noise.push(byte),
                Ok(_) => return Err(self.protocol(FrameError::NoOpening)),
                Err(_) => {
                    self.hear_last_words().await;
                    let said = wire::printable(&String::from_utf8_lossy(&noise));
                    return Err(self.lost(&format!("mbcopy did not start there; {said}")));
                }
            }
        }
        Ok(())
    }

    /// Why an agent has ended comes by another pipe than its end.
    async fn hear_last_words(&mut self) {
        for _ in 0..20 {
            if !(self.stderr)().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    /// Where a test has the connection break.
    fn cut(&mut self, of_source: Point, of_target: Point) -> Result<(), PeerError> {
        let point = match self.role {
            v1::Role::Source => of_source,
            v1::Role::Target => of_target,
            _ => return Ok(()),
        };
        fault::check(point).map_err(|error| {
            self.read = BufReader::new(Box::new(tokio::io::empty()));
            self.write = mpsc::channel(1).0;
            self.lost(&error)
        })
    }

    fn lost(&self, reason: &dyn std::fmt::Display) -> PeerError {
        let said = wire::printable((self.stderr)().trim());
        let reason =
            if said.is_empty() { reason.to_string() } else { format!("{reason}; it said: {said}") };
        PeerError::Lost { server: self.server.clone(), reason }
    }

    fn protocol(&self, source: FrameError) -> PeerError {
        PeerError::Protocol { server: self.server.clone(), source }
    }
}
