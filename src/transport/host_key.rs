//! Decides about the key a server shows, and keeps what the server says afterwards.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use russh::client::{self, DisconnectReason};
use russh::keys::{Algorithm, HashAlg, PublicKeyBase64, PublicKeyOrCertificate};

use super::error::{HostKeyProblem, TransportError};
use super::known_hosts::{self, HostKeyVerdict, KnownHosts, LookupName};
use super::ssh_config::{Proxy, ResolvedHost, StrictHostKey};
use super::text::one_line;

/// Why the connection ended, written by the connection's own task.
#[derive(Debug, Default)]
pub(super) struct Fate(Mutex<Option<String>>);

impl Fate {
    pub(super) fn set(&self, reason: String) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert(reason);
    }

    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn describe(&self) -> String {
        self.get().unwrap_or_else(|| "the connection was closed".to_owned())
    }
}

/// What the connection's task can fail with.
#[derive(Debug)]
pub(super) enum HandlerError {
    Ssh(russh::Error),
    HostKey(Box<HostKeyProblem>),
    Local(TransportError),
}

impl From<russh::Error> for HandlerError {
    fn from(error: russh::Error) -> Self {
        HandlerError::Ssh(error)
    }
}

/// Everything the decision needs, read before the connection is made.
pub(super) struct HostKeyPolicy {
    at: String,
    name: LookupName,
    known: KnownHosts,
    files: Vec<PathBuf>,
    strict: StrictHostKey,
    /// Where accepted keys are written.
    user_file: Option<PathBuf>,
    hashed: bool,
    ssh_command: String,
    keyscan: Option<String>,
}

impl HostKeyPolicy {
    /// Reads the known_hosts files.
    pub(super) fn load(host: &ResolvedHost) -> Result<Self, TransportError> {
        let name = host.lookup_name();
        let files: Vec<PathBuf> =
            host.user_known_hosts.iter().chain(&host.global_known_hosts).cloned().collect();
        let mut known = KnownHosts::load(&files, &name)?;
        if let Some(file) = &host.revoked_host_keys {
            load_revoked(&mut known, file)?;
        }
        let port = if host.port == 22 { String::new() } else { format!("-p {} ", host.port) };
        Ok(HostKeyPolicy {
            at: host.at(),
            known,
            files,
            strict: host.strict,
            user_file: host.user_known_hosts.first().cloned(),
            hashed: host.hash_known_hosts,
            ssh_command: format!("ssh {port}{}@{}", host.user, host.alias),
            // ssh-keyscan goes straight to the address and knows no alias.
            keyscan: (host.proxy == Proxy::Direct && host.host_key_alias.is_none())
                .then(|| format!("{port}{}", host.hostname)),
            name,
        })
    }

    /// The host key algorithms to ask for, those with a known key first.
    ///
    /// A server shows one key only; asked in a fixed order it would show one we do not know.
    /// SHA-1 signatures (`ssh-rsa`) are never asked for.
    pub(super) fn algorithms(&self) -> Cow<'static, [Algorithm]> {
        let types = self.known.key_types();
        let (mut first, second): (Vec<Algorithm>, Vec<Algorithm>) = russh::Preferred::DEFAULT
            .key
            .iter()
            .filter(|algorithm| **algorithm != Algorithm::Rsa { hash: None })
            .cloned()
            .partition(|algorithm| types.iter().any(|known| *known == key_type_of(algorithm)));
        first.extend(second);
        Cow::Owned(first)
    }

    fn problem(
        &self,
        key_type: String,
        fingerprint: String,
        verdict: HostKeyVerdict,
    ) -> HandlerError {
        HandlerError::HostKey(Box::new(HostKeyProblem {
            at: self.at.clone(),
            name: self.name.as_str().to_owned(),
            key_type,
            fingerprint,
            verdict,
            files: self.files.clone(),
            ssh_command: self.ssh_command.clone(),
            keyscan: self.keyscan.clone(),
        }))
    }

    fn decide(&self, key: &russh::keys::PublicKey) -> Result<(), HandlerError> {
        let bytes = key.public_key_bytes();
        let key_type = key.algorithm().as_str().to_owned();
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let verdict = self.known.check(&key_type, &bytes);
        // A host that has known keys and shows none of them is not a new host.
        let is_new = matches!(&verdict, HostKeyVerdict::Unknown { other_types, .. } if other_types.is_empty());
        match (&verdict, self.strict) {
            (HostKeyVerdict::Trusted, _) => Ok(()),
            (HostKeyVerdict::Unknown { .. }, StrictHostKey::No) if is_new => {
                tracing::warn!(
                    "the host key of {} is unknown and used all the same (StrictHostKeyChecking no): {key_type} {fingerprint}",
                    self.at
                );
                Ok(())
            }
            (HostKeyVerdict::Unknown { .. }, StrictHostKey::AcceptNew) if is_new => {
                let Some(file) = &self.user_file else {
                    return Err(self.problem(key_type, fingerprint, verdict));
                };
                known_hosts::append(file, &self.name, self.hashed, &key_type, &bytes).map_err(
                    |source| {
                        HandlerError::Local(TransportError::File {
                            verb: "add the new host key to",
                            path: file.clone(),
                            source,
                        })
                    },
                )?;
                tracing::info!(
                    "added the host key of {} to {}: {key_type} {fingerprint}",
                    self.at,
                    file.display()
                );
                Ok(())
            }
            _ => Err(self.problem(key_type, fingerprint, verdict)),
        }
    }
}

/// The key type of a signature algorithm: all RSA signatures are made by `ssh-rsa` keys.
fn key_type_of(algorithm: &Algorithm) -> String {
    match algorithm {
        Algorithm::Rsa { .. } => "ssh-rsa".to_owned(),
        other => other.as_str().to_owned(),
    }
}

fn load_revoked(known: &mut KnownHosts, file: &Path) -> Result<(), TransportError> {
    let failed = |source| TransportError::File {
        verb: "read the revoked host keys in",
        path: file.to_owned(),
        source,
    };
    let content = std::fs::read(file).map_err(failed)?;
    // The binary form names keys by hash or serial number as well; guessing would fail open.
    if content.starts_with(b"SSHKRL\n\0") {
        return Err(failed(std::io::Error::other(
            "binary key revocation lists are not supported, use a list of public keys",
        )));
    }
    known.revoke_keys(&String::from_utf8_lossy(&content), file);
    Ok(())
}

/// The callbacks of one connection.
pub(super) struct ClientHandler {
    policy: HostKeyPolicy,
    /// The key accepted at first; a later key exchange must show the same.
    accepted: Option<Vec<u8>>,
    fate: Arc<Fate>,
}

impl ClientHandler {
    pub(super) fn new(policy: HostKeyPolicy, fate: Arc<Fate>) -> Self {
        ClientHandler { policy, accepted: None, fate }
    }
}

impl client::Handler for ClientHandler {
    type Error = HandlerError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            // Certificates are not asked for, so a server has no reason to show one.
            return Ok(false);
        };
        let bytes = key.public_key_bytes();
        match &self.accepted {
            Some(accepted) => Ok(*accepted == bytes),
            None => {
                self.policy.decide(key)?;
                self.accepted = Some(bytes);
                Ok(true)
            }
        }
    }

    async fn auth_banner(
        &mut self,
        banner: &str,
        _session: &mut client::Session,
    ) -> Result<(), Self::Error> {
        tracing::debug!("{} says: {}", self.policy.at, one_line(banner.as_bytes(), 500));
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                self.fate
                    .set(format!("the server said: {}", one_line(info.message.as_bytes(), 300)));
                Ok(())
            }
            DisconnectReason::Error(error) => {
                self.fate.set(describe(&error));
                Err(error)
            }
        }
    }
}

/// Says in a few words what an error of russh means.
pub(super) fn describe(error: &HandlerError) -> String {
    match error {
        HandlerError::HostKey(problem) => problem.to_string(),
        HandlerError::Local(error) => error.to_string(),
        HandlerError::Ssh(russh::Error::KeepaliveTimeout) => {
            "the server no longer answers (keepalive timeout)".to_owned()
        }
        HandlerError::Ssh(russh::Error::HUP | russh::Error::Disconnect) => {
            "the server closed the connection".to_owned()
        }
        HandlerError::Ssh(russh::Error::IO(error))
            if error.kind() == std::io::ErrorKind::UnexpectedEof =>
        {
            "the server closed the connection".to_owned()
        }
        HandlerError::Ssh(error) => one_line(error.to_string().as_bytes(), 300),
    }
}
