//! One authenticated connection.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use russh::client::{Handle, Msg};
use russh::{Channel, Disconnect};

use super::auth;
use super::connect::{AliveGuard, Route, open_route, shake_hands};
use super::destination::Destination;
use super::error::TransportError;
use super::host_key::{ClientHandler, Fate, HostKeyPolicy};
use super::options::ConnectOptions;
use super::process::{self, ExecOptions, RemoteOutput, RemoteProcess, TunnelStream};
use super::ssh_config::{Proxy, resolve};
use super::text::join_quoted;

/// A connection to a server, cheap to clone.  Several processes may run on it at once; OpenSSH allows ten
/// (`MaxSessions`).
///
/// The connection ends when the last clone and the last process on it are dropped.
#[derive(Clone)]
pub struct Session {
    connection: Arc<Connection>,
}

/// What sessions and processes share.
pub(super) struct Connection {
    handle: Handle<ClientHandler>,
    pub(super) at: String,
    /// How long the server may take to answer a request.
    pub(super) answer_limit: Duration,
    fate: Arc<Fate>,
    _guard: AliveGuard,
    /// The session this one runs through.
    _jump: Option<Session>,
}

impl Connection {
    /// The error for a connection that is gone.
    pub(super) fn lost(&self) -> TransportError {
        TransportError::Disconnected { at: self.at.clone(), reason: self.fate.describe() }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("at", &self.connection.at).finish_non_exhaustive()
    }
}

impl Session {
    /// Connects, checks the host key and authenticates.
    pub async fn connect(
        destination: &Destination,
        options: &ConnectOptions,
    ) -> Result<Self, TransportError> {
        Self::connect_at_depth(destination, options, None, 0).await
    }

    /// Connects as part of a chain of jump hosts; boxed, because the way there calls this again.
    pub(super) fn connect_at_depth<'a>(
        destination: &'a Destination,
        options: &'a ConnectOptions,
        way: Option<Proxy>,
        depth: usize,
    ) -> Pin<Box<dyn Future<Output = Result<Self, TransportError>> + Send + 'a>> {
        Box::pin(Self::connect_inner(destination, options, way, depth))
    }

    async fn connect_inner(
        destination: &Destination,
        options: &ConnectOptions,
        way: Option<Proxy>,
        depth: usize,
    ) -> Result<Self, TransportError> {
        let mut host = resolve(destination, options).await?;
        if let Some(way) = way {
            host.proxy = way;
        }
        // Before anything is sent: a known_hosts file that cannot be read ends it here.
        let policy = HostKeyPolicy::load(&host)?;
        let at = host.at();
        let mut route: Route = open_route(&host, options, depth).await?;
        let jump = route.jump.take();
        let fate = Arc::new(Fate::default());
        let (mut handle, guard) = shake_hands(&host, options, policy, route, fate.clone()).await?;
        let authenticating = auth::authenticate(&mut handle, &host, &fate);
        tokio::time::timeout(options.auth_timeout, authenticating).await.map_err(|_| {
            TransportError::Timeout {
                at: at.clone(),
                doing: "authenticating (does an agent wait for its user?)",
                limit: options.auth_timeout,
            }
        })??;
        tracing::debug!("connected to {at}");
        Ok(Session {
            connection: Arc::new(Connection {
                handle,
                at,
                answer_limit: options.handshake_timeout,
                fate,
                _guard: guard,
                _jump: jump,
            }),
        })
    }

    /// Names the server, as in `bw2 (root@10.0.0.2:22)`.
    #[must_use]
    pub fn at(&self) -> &str {
        &self.connection.at
    }

    /// Tells whether the connection is known to be gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.handle.is_closed()
    }

    /// Runs a command, given as words.  Each is quoted for the remote shell, none is interpreted by it.
    pub async fn exec<S: AsRef<str>>(&self, words: &[S]) -> Result<RemoteProcess, TransportError> {
        self.exec_with(words, &ExecOptions::default()).await
    }

    /// Runs a command with other settings.
    pub async fn exec_with<S: AsRef<str>>(
        &self,
        words: &[S],
        options: &ExecOptions,
    ) -> Result<RemoteProcess, TransportError> {
        if words.first().is_none_or(|word| word.as_ref().is_empty()) {
            return Err(TransportError::BadCommand { reason: "no name" });
        }
        if words.iter().any(|word| word.as_ref().contains('\0')) {
            return Err(TransportError::BadCommand { reason: "a zero byte in it" });
        }
        let channel = self.open_channel("open another channel").await?;
        process::start(self.connection.clone(), channel, join_quoted(words), options).await
    }

    /// Runs a command without input to its end and collects at most `limit` bytes of output.
    pub async fn run<S: AsRef<str>>(
        &self,
        words: &[S],
        limit: usize,
    ) -> Result<RemoteOutput, TransportError> {
        self.exec(words).await?.output(limit).await
    }

    /// Measures the round trip, which tells how many channels a fast upload needs: the server's window of
    /// 2 MiB per channel is the limit there.
    ///
    /// The best of three counts: the first answer after authentication waits for a delayed
    /// acknowledgement (40 ms), since sshd turns off Nagle's algorithm only with the first command.
    pub async fn round_trip(&self) -> Result<Duration, TransportError> {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let begin = Instant::now();
            self.answered("answering a ping", self.connection.handle.send_ping())
                .await?
                .map_err(|_| self.connection.lost())?;
            if self.is_closed() {
                return Err(self.connection.lost());
            }
            best = best.min(begin.elapsed());
        }
        Ok(best)
    }

    /// Says good-bye to the server.  Processes that still run are cut off.
    pub async fn close(self) {
        let goodbye = self.connection.handle.disconnect(Disconnect::ByApplication, "done", "en");
        // Only politeness: the connection is dropped right after in any case.
        if tokio::time::timeout(Duration::from_secs(1), goodbye)
            .await
            .is_ok_and(|sent| sent.is_ok())
        {
            for _ in 0..50 {
                if self.is_closed() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Opens a channel for a command or subsystem.
    pub(super) async fn open_channel(
        &self,
        doing: &'static str,
    ) -> Result<Channel<Msg>, TransportError> {
        let opening = self.connection.handle.channel_open_session();
        match self.answered("opening a channel", opening).await? {
            Ok(channel) => Ok(channel),
            Err(russh::Error::ChannelOpenFailure(reason)) => Err(TransportError::Refused {
                at: self.connection.at.clone(),
                doing,
                reason: format!(
                    "{reason:?}; sshd's MaxSessions may be lower than the number of channels"
                ),
            }),
            Err(_) => Err(self.connection.lost()),
        }
    }

    /// Opens a TCP connection from the server to another one.
    pub(super) async fn open_tcp_stream(
        &self,
        host: &str,
        port: u16,
        limit: Duration,
    ) -> Result<TunnelStream, String> {
        let opening = self.connection.handle.channel_open_direct_tcpip(
            host,
            u32::from(port),
            "127.0.0.1",
            0_u32,
        );
        match tokio::time::timeout(limit, opening).await {
            Ok(Ok(channel)) => Ok(TunnelStream::new(self.connection.clone(), channel)),
            Ok(Err(russh::Error::ChannelOpenFailure(reason))) => Err(format!(
                "the jump host cannot or may not connect to {host} port {port} ({reason:?}); check AllowTcpForwarding there"
            )),
            Ok(Err(_)) => Err(self.connection.lost().to_string()),
            Err(_) => Err(format!(
                "the jump host did not reach {host} port {port} within {} s",
                limit.as_secs_f32()
            )),
        }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    async fn answered<T>(
        &self,
        doing: &'static str,
        asking: impl Future<Output = T>,
    ) -> Result<T, TransportError> {
        let limit = self.connection.answer_limit;
        tokio::time::timeout(limit, asking).await.map_err(|_| TransportError::Timeout {
            at: self.connection.at.clone(),
            doing,
            limit,
        })
    }
}
