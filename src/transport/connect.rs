//! Gets a byte stream to the server, directly or through something, and shakes hands over it.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use russh::client::{self, Handle};
use russh::{Preferred, cipher, compression};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::oneshot;

use super::destination::Destination;
use super::error::TransportError;
use super::host_key::{ClientHandler, Fate, HandlerError, HostKeyPolicy, describe};
use super::options::ConnectOptions;
use super::process::StderrTail;
use super::session::Session;
use super::ssh_config::{AddressFamily, Proxy, ResolvedHost};

/// How many jump hosts may be in a row, those that the jump hosts' own configuration adds included.
const MAX_JUMPS: usize = 5;

/// Both directions of a connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A stream with what must live as long as it.
pub(super) struct Route {
    pub(super) stream: Box<dyn Stream>,
    /// The session with the last jump host.
    pub(super) jump: Option<Session>,
    /// What a proxy command writes to its standard error.
    pub(super) proxy_stderr: Option<StderrTail>,
}

/// Opens the way to a host.
///
/// `depth` counts the jump hosts on the way to here.
pub(super) async fn open_route(
    host: &ResolvedHost,
    options: &ConnectOptions,
    depth: usize,
) -> Result<Route, TransportError> {
    match &host.proxy {
        Proxy::Direct => {
            let (tcp, write) = connect_tcp(host, options).await?.into_split();
            let stream = tokio::io::join(PromptReader { tcp, reads: 0 }, write);
            Ok(Route { stream: Box::new(stream), jump: None, proxy_stderr: None })
        }
        Proxy::Command(command) => start_proxy(host, command),
        Proxy::Jump(hops) => {
            let Some((last, before)) = hops.split_last() else {
                return Err(proxy_error(host, "ProxyJump", "no jump host is named"));
            };
            if depth >= MAX_JUMPS {
                return Err(proxy_error(
                    host,
                    &last.to_string(),
                    "more than 5 jump hosts in a row; does a jump host's own configuration send it through itself?",
                ));
            }
            open_jump(host, last, before, options, depth).await
        }
    }
}

async fn open_jump(
    host: &ResolvedHost,
    hop: &Destination,
    before: &[Destination],
    options: &ConnectOptions,
    depth: usize,
) -> Result<Route, TransportError> {
    // The hops named before this one replace what its own configuration says.
    let way = (!before.is_empty()).then(|| Proxy::Jump(before.to_vec()));
    let jump = Session::connect_at_depth(hop, options, way, depth + 1).await?;
    let stream = jump
        .open_tcp_stream(&host.hostname, host.port, limit_of(host, options))
        .await
        .map_err(|reason| proxy_error(host, jump.at(), &reason))?;
    Ok(Route { stream: Box::new(stream), jump: Some(jump), proxy_stderr: None })
}

fn proxy_error(host: &ResolvedHost, via: &str, reason: &str) -> TransportError {
    TransportError::Proxy { at: host.at(), via: via.to_owned(), reason: reason.to_owned() }
}

fn limit_of(host: &ResolvedHost, options: &ConnectOptions) -> Duration {
    host.connect_timeout.unwrap_or(options.connect_timeout)
}

async fn connect_tcp(
    host: &ResolvedHost,
    options: &ConnectOptions,
) -> Result<TcpStream, TransportError> {
    let limit = limit_of(host, options);
    let timeout = |doing| TransportError::Timeout { at: host.at(), doing, limit };
    let resolve_error = |source| TransportError::Resolve { at: host.at(), source };
    let addresses =
        tokio::time::timeout(limit, tokio::net::lookup_host((host.hostname.as_str(), host.port)))
            .await
            .map_err(|_| timeout("looking up its address"))?
            .map_err(resolve_error)?;
    let mut failure =
        resolve_error(io::Error::new(io::ErrorKind::NotFound, "no address of the wanted family"));
    for address in addresses {
        let wanted = match host.address_family {
            AddressFamily::Any => true,
            AddressFamily::Inet => address.is_ipv4(),
            AddressFamily::Inet6 => address.is_ipv6(),
        };
        if !wanted {
            continue;
        }
        match tokio::time::timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests and their answers are small; without this they wait for each other.
                stream
                    .set_nodelay(true)
                    .map_err(|source| TransportError::Connect { at: host.at(), source })?;
                return Ok(stream);
            }
            Ok(Err(source)) => {
                tracing::debug!("{address}: {source}");
                failure = TransportError::Connect { at: host.at(), source };
            }
            Err(_) => failure = timeout("connecting"),
        }
    }
    Err(failure)
}

/// Reads after which a connection has long begun its first command.
const BEGINNING: u32 = 64;

/// What comes on a connection, acknowledged at once in its beginning. Until the first command
/// sshd sends no small packet before the last one is acknowledged, and the kernel puts that off
/// for 40 ms where nothing is sent back.
struct PromptReader {
    tcp: OwnedReadHalf,
    reads: u32,
}

impl AsyncRead for PromptReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if read.is_ready() && self.reads < BEGINNING {
            self.reads += 1;
            // The kernel forgets it with each packet that is sent.
            let _ = self.tcp.as_ref().set_quickack(true);
        }
        read
    }
}

/// Starts the user's own proxy command, in a shell as OpenSSH does.
fn start_proxy(host: &ResolvedHost, command: &str) -> Result<Route, TransportError> {
    let failed = |reason: String| proxy_error(host, &format!("ProxyCommand {command:?}"), &reason);
    let mut child = tokio::process::Command::new("/bin/sh")
        .arg("-c")
        .arg(format!("exec {command}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (Some(stdin), Some(stdout), Some(mut stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("its pipes are missing".to_owned()));
    };
    let tail = StderrTail::default();
    let writer = tail.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut buffer).await {
            writer.push(buffer.get(..count).unwrap_or_default());
        }
    });
    Ok(Route {
        stream: Box::new(ProxyStream { stdin, stdout, _child: child }),
        jump: None,
        proxy_stderr: Some(tail),
    })
}

/// A proxy command, killed when the connection is dropped.
struct ProxyStream {
    stdin: ChildStdin,
    stdout: ChildStdout,
    _child: Child,
}

impl AsyncRead for ProxyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for ProxyStream {
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

/// Held by the owner of a connection; the stream fails as soon as it is dropped.
///
/// russh runs a connection in a task of its own, which does not end by itself while it waits for a
/// silent server: a dropped handshake would leave task and socket behind.
pub(super) type AliveGuard = oneshot::Sender<()>;

struct GuardedStream<S> {
    inner: S,
    guard: oneshot::Receiver<()>,
    over: bool,
}

impl<S> GuardedStream<S> {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        // Reading and writing share one waker slot here, which is enough: one task does both.
        if !self.over && Pin::new(&mut self.guard).poll(cx).is_ready() {
            self.over = true;
        }
        if self.over {
            Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the connection is no longer wanted",
            ))
        } else {
            Ok(())
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// The settings of a connection; the numbers are measured.
fn client_config(policy: &HostKeyPolicy, options: &ConnectOptions) -> client::Config {
    client::Config {
        window_size: options.window_size,
        // Smaller packets cost a quarter more CPU on download, larger ones break the protocol.
        maximum_packet_size: 65535,
        // The drain task of each channel empties this at once; it bounds memory, not speed.
        channel_buffer_size: 64,
        nodelay: true,
        keepalive_interval: Some(Duration::from_secs(15)),
        keepalive_max: 4,
        // No inactivity_timeout: it can fire on a healthy connection after a long stall of ours.
        inactivity_timeout: None,
        preferred: Preferred {
            key: policy.algorithms(),
            // The default order begins with chacha20 (0.7 times the speed) and has no aes128-gcm at all.
            cipher: vec![
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_256_CTR,
                cipher::AES_128_CTR,
            ]
            .into(),
            compression: vec![compression::NONE].into(),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

/// Agrees on keys with the server and checks its host key.
pub(super) async fn shake_hands(
    host: &ResolvedHost,
    options: &ConnectOptions,
    policy: HostKeyPolicy,
    route: Route,
    fate: Arc<Fate>,
) -> Result<(Handle<ClientHandler>, AliveGuard), TransportError> {
    let config = Arc::new(client_config(&policy, options));
    let (guard, watch) = oneshot::channel();
    let stream = GuardedStream {
        // Without a buffer each packet costs two reads.
        inner: BufReader::with_capacity(256 << 10, route.stream),
        guard: watch,
        over: false,
    };
    let connecting = client::connect_stream(config, stream, ClientHandler::new(policy, fate));
    let said = || match &route.proxy_stderr {
        Some(tail) if !tail.is_empty() => {
            format!("; the ProxyCommand said: {}", tail.one_line(300))
        }
        _ => String::new(),
    };
    match tokio::time::timeout(options.handshake_timeout, connecting).await {
        Ok(Ok(handle)) => Ok((handle, guard)),
        Ok(Err(HandlerError::HostKey(problem))) => Err(TransportError::HostKey(problem)),
        Ok(Err(HandlerError::Local(error))) => Err(error),
        Ok(Err(error)) => {
            // A proxy command that fails says why just before or just after it closes its output.
            if route.proxy_stderr.is_some() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(TransportError::Handshake { at: host.at(), reason: describe(&error) + &said() })
        }
        Err(_) => Err(TransportError::Timeout {
            at: host.at(),
            doing: "shaking hands",
            limit: options.handshake_timeout,
        }),
    }
}
