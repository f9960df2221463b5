//! A command running on the other server.
//!
//! One task per process takes everything the server sends and sorts it: output to a queue with a byte
//! budget, errors to a bounded tail, the status to whoever waits for it.  The task is what keeps one
//! process from stalling the connection: russh hands out packets of all channels in one loop and waits
//! for each channel in turn.
//!
//! SSH flow control does not bound memory here, since russh reopens the window on receipt.  The budget
//! does, and what happens when it is used up is the caller's choice ([`WhenFull`]).  A protocol that
//! never has more than the budget under way never meets either case.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};

use super::error::TransportError;
use super::session::Connection;
use super::text::{neutralise, one_line};

/// How much of the standard error output is kept.
const STDERR_TAIL: usize = 32 << 10;

/// What a queued piece costs besides its bytes, so that tiny packets are bounded too.
const PIECE_OVERHEAD: usize = 128;

/// The largest piece an `AsyncWrite` caller's data is cut into.
const WRITE_PIECE: usize = 256 << 10;

/// What to do when the output of a process is not read and its budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// Stop reading from the connection.  All processes on it wait; right if there is one.
    #[default]
    Stall,
    /// Close the process with [`TransportError::Overrun`].  Right if its protocol counts credits.
    Close,
}

/// Settings of one remote process.
#[derive(Clone, Copy, Debug)]
pub struct ExecOptions {
    /// How many bytes of output wait for the reader, at most.
    pub stdout_budget: usize,
    /// What happens beyond.
    pub when_full: WhenFull,
}

impl Default for ExecOptions {
    fn default() -> Self {
        ExecOptions { stdout_budget: 16 << 20, when_full: WhenFull::Stall }
    }
}

/// How a remote process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this code.  A POSIX shell says 127 for a command that does not exist.
    Code(u32),
    /// By a signal, named without `SIG`.
    Signal(String),
    /// The server closed the channel and did not say.
    Unknown,
}

impl ExitStatus {
    /// Tells whether the code is 0.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == ExitStatus::Code(0)
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit code {code}"),
            ExitStatus::Signal(name) => write!(f, "killed by signal {name}"),
            ExitStatus::Unknown => f.write_str("no exit code"),
        }
    }
}

/// A running command.  Its parts can be moved to different tasks.
///
/// Dropping all parts closes the channel; sshd then closes the pipes of the command.
pub struct RemoteProcess {
    /// Its standard input.
    pub stdin: ProcessStdin,
    /// Its standard output.
    pub stdout: ProcessStdout,
    /// The last part of its standard error output.
    pub stderr: StderrTail,
    /// Its end.
    pub exit: ProcessExit,
}

/// What a finished command left.
#[derive(Clone, Debug)]
pub struct RemoteOutput {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// The last part of its standard error output, made safe.
    pub stderr: String,
    /// Its end.
    pub status: ExitStatus,
}

impl RemoteProcess {
    /// Closes the standard input and collects the output, of which `limit` bytes are allowed.
    pub async fn output(self, limit: usize) -> Result<RemoteOutput, TransportError> {
        let RemoteProcess { stdin, mut stdout, stderr, mut exit } = self;
        // A command that is already gone does not mind.
        let _ = stdin.finish().await;
        let mut collected = Vec::new();
        while let Some(piece) = stdout.recv().await? {
            if collected.len() + piece.len() > limit {
                return Err(TransportError::Overrun {
                    at: stdout.channel.connection.at.clone(),
                    limit,
                });
            }
            collected.extend_from_slice(&piece);
        }
        let status = exit.wait().await?;
        Ok(RemoteOutput { stdout: collected, stderr: stderr.text(), status })
    }
}

/// The last 32 KiB of a standard error stream.
#[derive(Clone, Debug, Default)]
pub struct StderrTail(Arc<Mutex<Tail>>);

#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    dropped: u64,
}

impl StderrTail {
    pub(super) fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = bytes.len().min(STDERR_TAIL);
        let surplus = (tail.bytes.len() + kept).saturating_sub(STDERR_TAIL);
        tail.bytes.drain(..surplus);
        tail.bytes.extend(bytes.iter().skip(bytes.len() - kept));
        tail.dropped += (surplus + bytes.len() - kept) as u64;
    }

    /// The text so far, safe to show.  If something was cut off at the begin, the first line says so.
    #[must_use]
    pub fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.bytes.iter().copied().collect();
        let text = neutralise(&bytes);
        match tail.dropped {
            0 => text,
            dropped => format!("[{dropped} bytes before this are not kept]\n{text}"),
        }
    }

    /// Tells whether there was none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.bytes.is_empty()
    }

    /// The text on one line, for an error message.
    #[must_use]
    pub fn one_line(&self, limit: usize) -> String {
        one_line(self.text().as_bytes(), limit)
    }
}

/// The end of a channel as its drain task saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Exited(ExitStatus),
    Lost,
    Overrun,
}

/// What all parts of a process share; the last one to go closes the channel.
struct ChannelParts {
    write: Arc<ChannelWriteHalf<Msg>>,
    ended: watch::Receiver<Option<End>>,
    connection: Arc<Connection>,
    runtime: tokio::runtime::Handle,
    limit: usize,
    /// Dropped with the parts, which ends the drain task: russh tells it nothing after our own close.
    _wanted: oneshot::Sender<()>,
}

impl ChannelParts {
    fn lost(&self) -> TransportError {
        self.connection.lost()
    }

    fn error_of(&self, end: &End) -> TransportError {
        match end {
            End::Exited(_) => TransportError::ProcessEnded { at: self.connection.at.clone() },
            End::Lost => self.lost(),
            End::Overrun => {
                TransportError::Overrun { at: self.connection.at.clone(), limit: self.limit }
            }
        }
    }

    /// Waits for the end.
    async fn end(&self) -> End {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(End::Lost),
            Err(_) => End::Lost,
        }
    }
}

impl Drop for ChannelParts {
    fn drop(&mut self) {
        if self.ended.borrow().is_none() {
            let (write, connection) = (self.write.clone(), self.connection.clone());
            self.runtime.spawn(async move {
                let _ = write.close().await;
                drop(connection);
            });
        }
    }
}

/// Makes the parts of a process from an open channel, and starts its drain task.
fn take_apart(
    connection: Arc<Connection>,
    channel: russh::Channel<Msg>,
    options: &ExecOptions,
) -> (RemoteProcess, oneshot::Receiver<bool>) {
    let limit = options.stdout_budget.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
    let (read, write) = channel.split();
    let write = Arc::new(write);
    let (queue, pieces) = mpsc::unbounded_channel();
    let (ended_tx, ended) = watch::channel(None);
    let (started_tx, started) = oneshot::channel();
    let (wanted, abandoned) = oneshot::channel();
    let stderr = StderrTail::default();
    let drain = Drain {
        read,
        write: Arc::downgrade(&write),
        abandoned,
        started: Some(started_tx),
        queue: Some(queue),
        budget: Arc::new(Semaphore::new(limit)),
        limit,
        when_full: options.when_full,
        stderr: stderr.clone(),
    };
    tokio::spawn(async move {
        let end = drain.run().await;
        let _ = ended_tx.send(Some(end));
    });
    let channel = Arc::new(ChannelParts {
        write,
        ended,
        connection,
        runtime: tokio::runtime::Handle::current(),
        limit,
        _wanted: wanted,
    });
    let process = RemoteProcess {
        stdin: ProcessStdin { channel: channel.clone(), sending: None, finished: false },
        stdout: ProcessStdout { channel: channel.clone(), pieces, current: None, ended: None },
        stderr,
        exit: ProcessExit { channel },
    };
    (process, started)
}

/// A channel as a stream in both directions, for a connection inside the connection.
///
/// What the peer sends is always taken.  The inner connection does not read while it writes, and would
/// wait for ever if the outer one in turn waited for it to read.  The windows of the inner connection
/// bound what piles up here.
pub(super) struct TunnelStream {
    stdin: ProcessStdin,
    stdout: ProcessStdout,
}

impl TunnelStream {
    pub(super) fn new(connection: Arc<Connection>, channel: russh::Channel<Msg>) -> Self {
        let options = ExecOptions { stdout_budget: usize::MAX, when_full: WhenFull::Stall };
        let (process, _) = take_apart(connection, channel, &options);
        TunnelStream { stdin: process.stdin, stdout: process.stdout }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}

/// Starts a command on an open channel.
pub(super) async fn start(
    connection: Arc<Connection>,
    channel: russh::Channel<Msg>,
    command: String,
    options: &ExecOptions,
) -> Result<RemoteProcess, TransportError> {
    let (process, started) = take_apart(connection.clone(), channel, options);
    process.stdin.channel.write.exec(true, command).await.map_err(|_| connection.lost())?;
    match tokio::time::timeout(connection.answer_limit, started).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            return Err(TransportError::Refused {
                at: connection.at.clone(),
                doing: "run a command",
                reason: "the server does not allow commands for this user".to_owned(),
            });
        }
        Ok(Err(_)) => return Err(connection.lost()),
        Err(_) => {
            return Err(TransportError::Timeout {
                at: connection.at.clone(),
                doing: "starting a command",
                limit: connection.answer_limit,
            });
        }
    }
    Ok(process)
}

/// What the drain task hands to the reader.
enum Piece {
    Data(Bytes, OwnedSemaphorePermit),
    /// The last one, `Ok` if nothing is missing.  A queue that ends without it was cut off.
    End(Result<(), End>),
}

/// The task behind a process.
struct Drain {
    read: ChannelReadHalf,
    write: std::sync::Weak<ChannelWriteHalf<Msg>>,
    abandoned: oneshot::Receiver<()>,
    started: Option<oneshot::Sender<bool>>,
    queue: Option<mpsc::UnboundedSender<Piece>>,
    budget: Arc<Semaphore>,
    limit: usize,
    when_full: WhenFull,
    stderr: StderrTail,
}

impl Drain {
    async fn run(mut self) -> End {
        let mut status = ExitStatus::Unknown;
        let mut eof = false;
        loop {
            let message = tokio::select! {
                message = self.read.wait() => message,
                _ = &mut self.abandoned => return End::Lost,
            };
            match message {
                Some(ChannelMsg::Data { data }) => {
                    if !self.take(data).await {
                        self.end_output(Err(End::Overrun));
                        if let Some(write) = self.write.upgrade() {
                            let _ = write.close().await;
                        }
                        return End::Overrun;
                    }
                }
                Some(ChannelMsg::ExtendedData { data, ext: 1 }) => self.stderr.push(&data),
                Some(ChannelMsg::Eof) => {
                    eof = true;
                    self.end_output(Ok(()));
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    status = ExitStatus::Code(exit_status);
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    let name = match signal_name {
                        russh::Sig::Custom(name) => one_line(name.as_bytes(), 40),
                        known => format!("{known:?}"),
                    };
                    status = ExitStatus::Signal(name);
                }
                Some(ChannelMsg::Success) => self.has_started(true),
                Some(ChannelMsg::Failure) => self.has_started(false),
                Some(ChannelMsg::Close) => break,
                Some(_) => {}
                // The connection ended under us; if the status is here already, nothing is missing.
                None if eof && status != ExitStatus::Unknown => break,
                None => {
                    self.end_output(Err(End::Lost));
                    return End::Lost;
                }
            }
        }
        self.end_output(Ok(()));
        End::Exited(status)
    }

    fn end_output(&mut self, verdict: Result<(), End>) {
        if let Some(queue) = self.queue.take() {
            let _ = queue.send(Piece::End(verdict));
        }
    }

    fn has_started(&mut self, good: bool) {
        if let Some(started) = self.started.take() {
            let _ = started.send(good);
        }
    }

    /// Queues a piece; false if it is over the budget and must not wait.
    async fn take(&mut self, data: Bytes) -> bool {
        let Some(queue) = &self.queue else {
            return true;
        };
        let cost = u32::try_from((data.len() + PIECE_OVERHEAD).min(self.limit)).unwrap_or(u32::MAX);
        let permit = match self.budget.clone().try_acquire_many_owned(cost) {
            Ok(permit) => permit,
            Err(_) if self.when_full == WhenFull::Close && !queue.is_closed() => return false,
            Err(_) => {
                tokio::select! {
                    permit = self.budget.clone().acquire_many_owned(cost) => match permit {
                        Ok(permit) => permit,
                        Err(_) => return true,
                    },
                    // Nobody reads any more: throw it away, the other channels need the connection.
                    () = queue.closed() => return true,
                }
            }
        };
        let _ = queue.send(Piece::Data(data, permit));
        true
    }
}

type Sending = Pin<Box<dyn Future<Output = Result<(), TransportError>> + Send>>;

/// The standard input of a remote process.
pub struct ProcessStdin {
    channel: Arc<ChannelParts>,
    /// A piece on its way, for the `AsyncWrite` side.
    sending: Option<Sending>,
    finished: bool,
}

impl ProcessStdin {
    /// Sends bytes without copying them.  Pieces of about 1 MiB are best.
    ///
    /// Waits while the server's window (2 MiB with OpenSSH) is full, and ends when the process does.
    /// If the call is dropped half way, a part of the bytes may have been sent.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), TransportError> {
        self.settle().await?;
        send_on(self.channel.clone(), bytes).await
    }

    /// Sends the end of the input.
    pub async fn finish(mut self) -> Result<(), TransportError> {
        self.settle().await?;
        self.finished = true;
        self.channel.write.eof().await.map_err(|_| self.channel.lost())
    }

    /// Waits for a piece that `AsyncWrite` has left on its way.
    async fn settle(&mut self) -> Result<(), TransportError> {
        std::future::poll_fn(|cx| self.poll_settle(cx)).await
    }

    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if let Some(sending) = &mut self.sending {
            let sent = ready!(sending.as_mut().poll(cx));
            self.sending = None;
            return Poll::Ready(sent);
        }
        Poll::Ready(Ok(()))
    }
}

/// Sends one piece, or stops when the process ends: russh would wait for its window for ever.
async fn send_on(channel: Arc<ChannelParts>, bytes: Bytes) -> Result<(), TransportError> {
    tokio::select! {
        biased;
        end = channel.end() => Err(channel.error_of(&end)),
        sent = channel.write.data_bytes(bytes) => sent.map_err(|_| channel.lost()),
    }
}

impl AsyncWrite for ProcessStdin {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_settle(cx)).map_err(to_io)?;
        let piece = Bytes::copy_from_slice(buf.get(..WRITE_PIECE).unwrap_or(buf));
        let count = piece.len();
        self.sending = Some(Box::pin(send_on(self.channel.clone(), piece)));
        // Taken; whether it is sent as well shows at the next call.
        match self.poll_settle(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(to_io(error))),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_settle(cx).map_err(to_io)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_settle(cx)).map_err(to_io)?;
        if self.finished {
            return Poll::Ready(Ok(()));
        }
        self.finished = true;
        let channel = self.channel.clone();
        self.sending =
            Some(Box::pin(async move { channel.write.eof().await.map_err(|_| channel.lost()) }));
        self.poll_settle(cx).map_err(to_io)
    }
}

impl Drop for ProcessStdin {
    fn drop(&mut self) {
        if self.finished || self.channel.ended.borrow().is_some() {
            return;
        }
        // What was taken is sent first, as with a pipe.
        let (channel, sending) = (self.channel.clone(), self.sending.take());
        let runtime = channel.runtime.clone();
        runtime.spawn(async move {
            if let Some(sending) = sending {
                let limit = channel.connection.answer_limit;
                match tokio::time::timeout(limit, sending).await {
                    Ok(Ok(())) => {}
                    _ => return,
                }
            }
            let _ = channel.write.eof().await;
        });
    }
}

/// The standard output of a remote process.
pub struct ProcessStdout {
    channel: Arc<ChannelParts>,
    pieces: mpsc::UnboundedReceiver<Piece>,
    /// A piece that `AsyncRead` has begun, with its share of the budget.
    current: Option<(Bytes, OwnedSemaphorePermit)>,
    /// The end, once it was seen.
    ended: Option<Result<(), End>>,
}

impl ProcessStdout {
    /// Receives the next piece as it came, `None` at the end of the output.
    ///
    /// An output that was cut off, because the connection broke, is an error and never an end.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, TransportError> {
        if let Some((bytes, _)) = self.current.take() {
            return Ok(Some(bytes));
        }
        std::future::poll_fn(|cx| self.poll_piece(cx))
            .await
            .map(|piece| piece.map(|(bytes, _)| bytes))
    }

    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<(Bytes, OwnedSemaphorePermit)>, TransportError>> {
        if self.ended.is_none() {
            match ready!(self.pieces.poll_recv(cx)) {
                Some(Piece::Data(bytes, permit)) => return Poll::Ready(Ok(Some((bytes, permit)))),
                Some(Piece::End(end)) => self.ended = Some(end),
                None => self.ended = Some(Err(End::Lost)),
            }
        }
        Poll::Ready(match &self.ended {
            Some(Err(end)) => Err(self.channel.error_of(end)),
            _ => Ok(None),
        })
    }
}

impl AsyncRead for ProcessStdout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.as_ref().is_none_or(|(bytes, _)| bytes.is_empty()) {
            self.current = ready!(self.poll_piece(cx)).map_err(to_io)?;
            if self.current.is_none() {
                return Poll::Ready(Ok(()));
            }
        }
        if let Some((bytes, _)) = &mut self.current {
            let count = bytes.len().min(buf.remaining());
            buf.put_slice(bytes.get(..count).unwrap_or_default());
            bytes.advance(count);
            if bytes.is_empty() {
                self.current = None;
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The end of a remote process.
pub struct ProcessExit {
    channel: Arc<ChannelParts>,
}

impl ProcessExit {
    /// Waits for the end.
    ///
    /// The status comes after all output, so somebody must read the output meanwhile or have dropped it.
    pub async fn wait(&mut self) -> Result<ExitStatus, TransportError> {
        match self.channel.end().await {
            End::Exited(status) => Ok(status),
            end => Err(self.channel.error_of(&end)),
        }
    }
}

fn to_io(error: TransportError) -> io::Error {
    let kind = match error {
        TransportError::ProcessEnded { .. } => io::ErrorKind::BrokenPipe,
        TransportError::Overrun { .. } => io::ErrorKind::QuotaExceeded,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_keeps_the_end() {
        let tail = StderrTail::default();
        assert!(tail.is_empty());
        tail.push(b"first\n");
        tail.push(&vec![b'x'; STDERR_TAIL - 3]);
        tail.push(b"\x1b[2Jend");
        let text = tail.text();
        assert!(text.starts_with("[10 bytes before this are not kept]\nxxx"), "{text:.60}");
        assert!(text.ends_with("x\\x1b[2Jend"));
        tail.push(&vec![b'y'; 3 * STDERR_TAIL]);
        assert_eq!(tail.0.lock().unwrap().bytes.len(), STDERR_TAIL);
        assert!(tail.text().ends_with('y'));
    }
}
