//! Public key authentication: the agent's keys first, then key files.
//!
//! The order is OpenSSH's: keys that are named in the configuration and held by the agent, the other keys
//! of the agent (unless `IdentitiesOnly`), key files that the agent does not hold.  A server counts every
//! offered key and hangs up after a few (`MaxAuthTries`), so no key is offered twice.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::public::KeyData;
use russh::keys::{Algorithm, Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey};
use tokio::net::UnixStream;

use super::error::{AuthFailure, TransportError};
use super::host_key::{ClientHandler, Fate};
use super::ssh_config::ResolvedHost;
use super::text::one_line;

/// A key file, as far as it could be read.
struct Identity {
    path: PathBuf,
    public: Option<PublicKey>,
    private: Private,
    certificate: Option<Certificate>,
}

enum Private {
    Ready(Arc<PrivateKey>),
    Encrypted,
    /// Only the agent can use it: a public key file, or a key in hardware.
    AgentOnly,
    Unusable(String),
}

/// Authenticates, or says what was tried.
pub(super) async fn authenticate(
    handle: &mut Handle<ClientHandler>,
    host: &ResolvedHost,
    fate: &Fate,
) -> Result<(), TransportError> {
    let mut attempt = Attempt {
        handle,
        user: host.user.clone(),
        rsa_hash: None,
        offered: Vec::new(),
        report: AuthFailure { at: host.at(), user: host.user.clone(), ..AuthFailure::default() },
    };
    let identities = load_identities(host);
    if attempt.run(host, &identities).await {
        return Ok(());
    }
    if attempt.handle.is_closed() {
        // The reason is written by another task, which may be a moment behind.
        for _ in 0..20 {
            if fate.get().is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        attempt.report.closed = Some(fate.describe());
    }
    Err(TransportError::Auth(Box::new(attempt.report)))
}

struct Attempt<'a> {
    handle: &'a mut Handle<ClientHandler>,
    user: String,
    /// The hash for RSA signatures, once the server was asked; `Some(None)` if it takes SHA-1 only.
    rsa_hash: Option<Option<HashAlg>>,
    offered: Vec<KeyData>,
    report: AuthFailure,
}

impl Attempt<'_> {
    async fn run(&mut self, host: &ResolvedHost, identities: &[Identity]) -> bool {
        let mut in_agent = Vec::new();
        if let Some(socket) = &host.identity_agent {
            match self.open_agent(socket).await {
                Ok((mut agent, mut keys)) => {
                    in_agent.extend(keys.iter().map(|key| key.public_key().key_data().clone()));
                    let rank = |key: &AgentIdentity| {
                        let key = key.public_key();
                        identities.iter().position(|identity| identity.is(key.key_data()))
                    };
                    if host.identities_only {
                        let all = keys.len();
                        keys.retain(|key| rank(key).is_some());
                        if keys.len() < all {
                            self.report.skipped.push(format!(
                                "{} keys of the agent (IdentitiesOnly yes)",
                                all - keys.len()
                            ));
                        }
                    }
                    keys.sort_by_key(|key| rank(key).unwrap_or(usize::MAX));
                    for key in &keys {
                        if self.try_agent_key(&mut agent, key).await {
                            return true;
                        }
                        if self.is_hopeless() {
                            return false;
                        }
                    }
                }
                Err(reason) => self
                    .report
                    .skipped
                    .push(format!("the agent at {} ({reason})", socket.display())),
            }
        }
        for identity in identities {
            if self.try_file(identity, &in_agent).await {
                return true;
            }
            if self.is_hopeless() {
                return false;
            }
        }
        if self.report.tried.is_empty() {
            // Costs nothing, and the answer names the methods the server would take.
            let answer = self.handle.authenticate_none(self.user.clone()).await;
            if let Ok(answer) = answer {
                let welcome = self.note(String::new(), answer);
                self.report.tried.clear();
                return welcome;
            }
        }
        false
    }

    fn is_hopeless(&self) -> bool {
        let no_keys_wanted = !self.report.server_accepts.is_empty()
            && !self.report.server_accepts.iter().any(|method| method == "publickey");
        self.handle.is_closed() || no_keys_wanted
    }

    async fn open_agent(
        &self,
        socket: &Path,
    ) -> Result<(AgentClient<UnixStream>, Vec<AgentIdentity>), String> {
        let mut agent =
            AgentClient::connect_uds(socket).await.map_err(|error| error.to_string())?;
        if let Some(binding) = self.handle.agent_session_binding() {
            // Needed for keys that are limited to some destinations; other agents do not know it.
            if let Err(error) = agent.bind_session(binding, false).await {
                tracing::debug!("the agent does not bind sessions: {error}");
            }
        }
        let keys = agent.request_identities().await.map_err(|error| error.to_string())?;
        Ok((agent, keys))
    }

    async fn try_agent_key(
        &mut self,
        agent: &mut AgentClient<UnixStream>,
        identity: &AgentIdentity,
    ) -> bool {
        let public = identity.public_key().into_owned();
        let what = format!(
            "{} {} of the agent ({})",
            describe_key(&public),
            if matches!(identity, AgentIdentity::Certificate { .. }) {
                "certificate"
            } else {
                "key"
            },
            one_line(identity.comment().as_bytes(), 60)
        );
        let Some(hash) = self.hash_for(&public, &what).await else {
            return false;
        };
        let user = self.user.clone();
        let answer = match identity {
            AgentIdentity::PublicKey { key, .. } => {
                self.offered.push(key.key_data().clone());
                self.handle.authenticate_publickey_with(user, key.clone(), hash, agent).await
            }
            AgentIdentity::Certificate { certificate, .. } => {
                self.handle
                    .authenticate_certificate_with(user, certificate.clone(), hash, agent)
                    .await
            }
        };
        match answer {
            Ok(answer) => self.note(what, answer),
            Err(error) => {
                self.report.tried.push(format!("{what}: the agent would not sign ({error})"));
                false
            }
        }
    }

    async fn try_file(&mut self, identity: &Identity, in_agent: &[KeyData]) -> bool {
        let path = identity.path.display();
        let held = in_agent.iter().any(|key| identity.is(key));
        let key = match &identity.private {
            Private::Ready(key) => key.clone(),
            Private::Encrypted => {
                if !held {
                    self.report.encrypted.push(identity.path.clone());
                }
                return false;
            }
            Private::AgentOnly => {
                if !held {
                    self.report
                        .skipped
                        .push(format!("{path} (only an agent could use it, and none holds it)"));
                }
                return false;
            }
            Private::Unusable(reason) => {
                self.report.skipped.push(format!("{path} ({reason})"));
                return false;
            }
        };
        let what = format!("{path} ({})", describe_key(key.public_key()));
        if let Some(certificate) = &identity.certificate {
            let answer = self
                .handle
                .authenticate_openssh_cert(self.user.clone(), key.clone(), certificate.clone())
                .await;
            match answer {
                Ok(answer) => {
                    if self.note(format!("the certificate of {what}"), answer) {
                        return true;
                    }
                }
                Err(error) => self.report.tried.push(format!("the certificate of {what}: {error}")),
            }
            if self.is_hopeless() {
                return false;
            }
        }
        if self.offered.contains(key.public_key().key_data()) {
            return false;
        }
        let Some(hash) = self.hash_for(key.public_key(), &what).await else {
            return false;
        };
        self.offered.push(key.public_key().key_data().clone());
        let answer = self
            .handle
            .authenticate_publickey(self.user.clone(), PrivateKeyWithHashAlg::new(key, hash))
            .await;
        match answer {
            Ok(answer) => self.note(what, answer),
            Err(error) => {
                self.report.tried.push(format!("{what}: {error}"));
                false
            }
        }
    }

    /// Chooses the signature hash: `Some(None)` for keys that have no choice, `None` if there is no good one.
    async fn hash_for(&mut self, key: &PublicKey, what: &str) -> Option<Option<HashAlg>> {
        if !matches!(key.algorithm(), Algorithm::Rsa { .. }) {
            return Some(None);
        }
        let hash = match self.rsa_hash {
            Some(hash) => hash,
            None => {
                let hash = match self.handle.best_supported_rsa_hash().await {
                    Ok(Some(hash)) => hash,
                    // A server that says nothing (RFC 8308) mostly takes it.
                    Ok(None) | Err(_) => Some(HashAlg::Sha512),
                };
                self.rsa_hash = Some(hash);
                hash
            }
        };
        if hash.is_none() {
            self.report
                .skipped
                .push(format!("{what} (the server takes RSA with SHA-1 only, use an Ed25519 key)"));
            return None;
        }
        Some(hash)
    }

    /// Writes down an answer, and tells whether it lets us in.
    fn note(&mut self, what: String, answer: AuthResult) -> bool {
        match answer {
            AuthResult::Success => {
                tracing::debug!("{} let us in with {what}", self.report.at);
                true
            }
            AuthResult::Failure { remaining_methods, partial_success } => {
                if !remaining_methods.is_empty() {
                    self.report.server_accepts = remaining_methods
                        .iter()
                        .map(|method| <&str>::from(method).to_owned())
                        .collect();
                }
                self.report.tried.push(if partial_success {
                    format!("{what}: accepted, but the server wants another method as well")
                } else {
                    what
                });
                false
            }
        }
    }
}

fn describe_key(key: &PublicKey) -> String {
    format!("{} {}", key.algorithm().as_str(), key.fingerprint(HashAlg::Sha256))
}

impl Identity {
    fn is(&self, key: &KeyData) -> bool {
        self.public.as_ref().is_some_and(|public| public.key_data() == key)
    }
}

fn load_identities(host: &ResolvedHost) -> Vec<Identity> {
    let mut certificates: Vec<Certificate> = host
        .certificate_files
        .iter()
        .filter_map(|path| russh::keys::load_openssh_certificate(path).ok())
        .collect();
    let mut identities = Vec::new();
    for path in &host.identity_files {
        let beside = with_suffix(path, "-cert.pub");
        if let Ok(certificate) = russh::keys::load_openssh_certificate(beside) {
            certificates.push(certificate);
        }
        if let Some(mut identity) = load_identity(path) {
            identity.certificate = certificates
                .iter()
                .find(|certificate| identity.is(certificate.public_key()))
                .cloned();
            identities.push(identity);
        }
    }
    identities
}

/// Reads one key file; `None` if it does not exist.
fn load_identity(path: &Path) -> Option<Identity> {
    let mut identity = Identity {
        path: path.to_owned(),
        public: russh::keys::load_public_key(with_suffix(path, ".pub")).ok(),
        private: Private::AgentOnly,
        certificate: None,
    };
    let content = match std::fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            // The private half may be in the agent alone.
            return identity.public.is_some().then_some(identity);
        }
        Err(error) => {
            identity.private = Private::Unusable(error.to_string());
            return Some(identity);
        }
    };
    let text = String::from_utf8_lossy(&content);
    if let Ok(public) = russh::keys::load_public_key(path) {
        identity.public = Some(public);
        return Some(identity);
    }
    // OpenSSH refuses such keys; whoever else can read one can log in as well.
    if let Ok(meta) = std::fs::metadata(path) {
        // SAFETY: getuid has no preconditions and cannot fail.
        let own = meta.uid() == unsafe { libc::getuid() };
        if own && meta.mode() & 0o077 != 0 {
            identity.private = Private::Unusable(format!(
                "others can read it, run `chmod 600 {}`",
                path.display()
            ));
            return Some(identity);
        }
    }
    // An OpenSSH key file has the public half in clear even if the private half is encrypted.
    let parsed = PrivateKey::from_openssh(text.as_bytes()).ok();
    if let Some(key) = &parsed {
        identity.public = Some(key.public_key().clone());
    }
    let encrypted_pem = text.contains("ENCRYPTED");
    identity.private = match parsed {
        Some(key) if key.is_encrypted() => Private::Encrypted,
        Some(key)
            if matches!(key.algorithm(), Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256) =>
        {
            Private::AgentOnly
        }
        Some(key) => Private::Ready(Arc::new(key)),
        None if encrypted_pem => Private::Encrypted,
        None => match russh::keys::decode_secret_key(&text, None) {
            Ok(key) => {
                identity.public = Some(key.public_key().clone());
                Private::Ready(Arc::new(key))
            }
            Err(russh::keys::Error::KeyIsEncrypted) => Private::Encrypted,
            Err(error) => Private::Unusable(format!("it cannot be read as a key: {error}")),
        },
    };
    Some(identity)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn keygen(path: &Path, arguments: &[&str]) {
        let status = std::process::Command::new("ssh-keygen")
            .args(["-q", "-f"])
            .arg(path)
            .args(arguments)
            .status()
            .expect("this test needs ssh-keygen (apt-get install openssh-client)");
        assert!(status.success());
    }

    fn kind(path: &Path) -> &'static str {
        match load_identity(path) {
            None => "missing",
            Some(identity) => match identity.private {
                Private::Ready(_) => "ready",
                Private::Encrypted => "encrypted",
                Private::AgentOnly => "agent only",
                Private::Unusable(_) => "unusable",
            },
        }
    }

    #[test]
    fn tells_key_files_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (name, arguments, wanted) in [
            ("ed", vec!["-t", "ed25519", "-N", ""], "ready"),
            ("ed_enc", vec!["-t", "ed25519", "-N", "secret"], "encrypted"),
            ("ec", vec!["-t", "ecdsa", "-N", ""], "ready"),
            ("rsa", vec!["-t", "rsa", "-b", "2048", "-N", ""], "ready"),
            ("pem", vec!["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""], "ready"),
            ("pem_enc", vec!["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", "secret"], "encrypted"),
            ("p8_enc", vec!["-t", "rsa", "-b", "2048", "-m", "PKCS8", "-N", "secret"], "encrypted"),
        ] {
            keygen(&path(name), &arguments);
            assert_eq!(kind(&path(name)), wanted, "{name}");
            let public = russh::keys::load_public_key(path(&format!("{name}.pub"))).unwrap();
            assert!(load_identity(&path(name)).unwrap().is(public.key_data()), "{name}");
        }
        assert_eq!(kind(&path("ed.pub")), "agent only");
        assert_eq!(kind(&path("nothing")), "missing");
        std::fs::write(path("junk"), "no key\n").unwrap();
        std::fs::set_permissions(path("junk"), PermissionsExt::from_mode(0o600)).unwrap();
        assert_eq!(kind(&path("junk")), "unusable");
        std::fs::set_permissions(path("ed"), PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(kind(&path("ed")), "unusable");
        std::fs::remove_file(path("ec")).unwrap();
        assert_eq!(kind(&path("ec")), "agent only");
    }
}
