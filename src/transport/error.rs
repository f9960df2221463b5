//! What can go wrong on the way to the other server, in sentences that end with the next step.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failure of the transport.
///
/// `at` names the server as the user wrote it and as it was resolved: `bw2 (root@10.0.0.2:22)`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The destination on the command line is not one.
    #[error("cannot use {text:?} as a destination: {reason}")]
    BadDestination {
        /// The text, made safe.
        text: String,
        /// Why not.
        reason: String,
    },
    /// OpenSSH could not say how to reach the host.
    #[error("cannot read the SSH configuration for {host}: {reason}; see `ssh -G {host}`")]
    Config {
        /// The host or alias.
        host: String,
        /// What `ssh -G` said.
        reason: String,
    },
    /// The name has no address.
    #[error(
        "cannot find an address for {at}: {source}; check the name, or HostName in the SSH configuration"
    )]
    Resolve {
        /// The server.
        at: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// No address accepted a connection.
    #[error(
        "cannot connect to {at}: {source}; check that sshd runs there and that no firewall is in between"
    )]
    Connect {
        /// The server.
        at: String,
        /// The error of the last address tried.
        source: io::Error,
    },
    /// Something took too long.
    #[error("{at} did not answer within {} s while {doing}; try `ssh -v` to the same host", limit.as_secs_f32())]
    Timeout {
        /// The server.
        at: String,
        /// What was waited for.
        doing: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The way through a proxy command or jump host failed.
    #[error("cannot reach {at} through {via}: {reason}")]
    Proxy {
        /// The server.
        at: String,
        /// The jump host or command.
        via: String,
        /// What went wrong.
        reason: String,
    },
    /// Both sides could not agree on keys, or the other side is no SSH server.
    #[error("the SSH handshake with {at} failed: {reason}; try `ssh -v` to the same host")]
    Handshake {
        /// The server.
        at: String,
        /// What went wrong.
        reason: String,
    },
    /// The host key is not the one to be trusted.
    #[error("{0}")]
    HostKey(Box<HostKeyProblem>),
    /// A file could not be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No key was accepted.
    #[error("{0}")]
    Auth(Box<AuthFailure>),
    /// The server would not start a command.
    #[error("{at} refused to {doing}: {reason}")]
    Refused {
        /// The server.
        at: String,
        /// What was asked for.
        doing: &'static str,
        /// Its answer, with what to do.
        reason: String,
    },
    /// The connection is gone.
    #[error("the connection to {at} was lost: {reason}")]
    Disconnected {
        /// The server.
        at: String,
        /// Why, as far as known.
        reason: String,
    },
    /// The remote process has ended while it was still being written to.
    #[error("the remote command on {at} ended before it had read its input")]
    ProcessEnded {
        /// The server.
        at: String,
    },
    /// The remote process sent more than it may.
    #[error("the remote command on {at} sent more than {limit} bytes ahead of us and was stopped")]
    Overrun {
        /// The server.
        at: String,
        /// The budget in bytes.
        limit: usize,
    },
    /// A command holds what cannot be sent.
    #[error("cannot run a remote command with {reason}")]
    BadCommand {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A file could not be uploaded.
    #[error("cannot upload {} to {at}:{remote}: {reason}", local.display())]
    Upload {
        /// The server.
        at: String,
        /// The local file.
        local: PathBuf,
        /// The remote path, made safe.
        remote: String,
        /// What went wrong.
        reason: String,
    },
}

impl TransportError {
    /// Tells whether the same attempt may succeed a little later without anybody doing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            TransportError::Connect { .. }
            | TransportError::Timeout { .. }
            | TransportError::Disconnected { .. } => true,
            TransportError::Resolve { .. }
            | TransportError::BadDestination { .. }
            | TransportError::Config { .. }
            | TransportError::Proxy { .. }
            | TransportError::Handshake { .. }
            | TransportError::HostKey(_)
            | TransportError::File { .. }
            | TransportError::Auth(_)
            | TransportError::Refused { .. }
            | TransportError::ProcessEnded { .. }
            | TransportError::Overrun { .. }
            | TransportError::BadCommand { .. }
            | TransportError::Upload { .. } => false,
        }
    }
}

/// A host key that is not trusted.
#[derive(Debug)]
#[non_exhaustive]
pub struct HostKeyProblem {
    /// The server.
    pub at: String,
    /// The name it is looked up by in known_hosts files.
    pub name: String,
    /// The type of the key it showed, as in `ssh-ed25519`.
    pub key_type: String,
    /// The key's fingerprint, `SHA256:...`.
    pub fingerprint: String,
    /// What is wrong.
    pub verdict: super::HostKeyVerdict,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// How to call ssh for the same host, as in `ssh -p 2222 bw2`.
    pub ssh_command: String,
    /// Where ssh-keyscan would look, as in `-p 2222 10.0.0.2`; nothing if a proxy is in between.
    pub keyscan: Option<String>,
}

impl fmt::Display for HostKeyProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use super::HostKeyVerdict;
        let HostKeyProblem { at, name, key_type, fingerprint, ssh_command, .. } = self;
        match &self.verdict {
            HostKeyVerdict::Unknown { other_types, cert_authority } => {
                write!(
                    f,
                    "the host key of {at} is unknown: {key_type} {fingerprint} is not listed for {name} in {}",
                    list_files(&self.files)
                )?;
                if !other_types.is_empty() {
                    write!(
                        f,
                        " (other keys of this host are: {}; a server that hides them is not accepted by itself)",
                        other_types.join(", ")
                    )?;
                }
                if let Some(place) = cert_authority {
                    write!(
                        f,
                        " (the @cert-authority line {place} covers this host, but host certificates are not supported; list the plain key)"
                    )?;
                }
                write!(
                    f,
                    "; compare the fingerprint with `ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub` on that server, then run `{ssh_command}` once and answer yes"
                )?;
                if let (Some(scan), Some(file)) = (&self.keyscan, self.files.first()) {
                    write!(f, ", or add it with `ssh-keyscan {scan} >> {}`", file.display())?;
                }
                Ok(())
            }
            HostKeyVerdict::Changed { place } => write!(
                f,
                "THE HOST KEY OF {at} HAS CHANGED: it shows {key_type} {fingerprint}, but {place} lists another {key_type} key for {name}. \
                 Somebody may be listening in, or the server was reinstalled; nothing was sent. \
                 If the new key is right, remove the old one with `ssh-keygen -R '{name}' -f {}` and run `{ssh_command}` once",
                place.file.display()
            ),
            HostKeyVerdict::Revoked { place } => write!(
                f,
                "the host key of {at} is revoked: {place} marks {key_type} {fingerprint} as revoked; do not connect until that server has a new key"
            ),
            HostKeyVerdict::Trusted => write!(f, "the host key of {at} is trusted"),
        }
    }
}

fn list_files(files: &[PathBuf]) -> String {
    if files.is_empty() {
        return "any file (no known_hosts file is configured)".to_owned();
    }
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// An authentication that came to nothing.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct AuthFailure {
    /// The server.
    pub at: String,
    /// The remote user.
    pub user: String,
    /// Each key that was offered, with what came of it.
    pub tried: Vec<String>,
    /// What could not be offered, and why.
    pub skipped: Vec<String>,
    /// Key files that need a passphrase and are not in the agent.
    pub encrypted: Vec<PathBuf>,
    /// The methods the server would take.
    pub server_accepts: Vec<String>,
    /// The server closed the connection after that many keys.
    pub closed: Option<String>,
}

impl fmt::Display for AuthFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} does not let us in as {}", self.at, self.user)?;
        if self.tried.is_empty() {
            write!(f, ": there was no key to offer")?;
        } else {
            write!(f, ": tried {}", self.tried.join(", "))?;
        }
        if !self.skipped.is_empty() {
            write!(f, "; not used: {}", self.skipped.join(", "))?;
        }
        for file in &self.encrypted {
            write!(
                f,
                "; {} is encrypted and no agent holds it: run `ssh-add {}` first (mbcopy never asks for a passphrase)",
                file.display(),
                file.display()
            )?;
        }
        if let Some(reason) = &self.closed {
            write!(
                f,
                "; the server closed the connection ({reason}): with many keys in the agent set IdentityFile and IdentitiesOnly yes for this host"
            )?;
        }
        if !self.server_accepts.is_empty() {
            write!(f, "; the server takes: {}", self.server_accepts.join(", "))?;
        }
        if self.encrypted.is_empty() {
            write!(f, "; add a public key to authorized_keys of {} there", self.user)?;
        }
        Ok(())
    }
}
