//! Reads known_hosts files the way OpenSSH does.
//!
//! Lines that do not name the host are dropped while reading.  The order of what remains decides nothing:
//! a revoked key is refused wherever the line stands, an equal key is trusted, and only then is another
//! key of the same type a changed key.  Keys are compared as bytes, so a key type this program cannot
//! use still counts as "known".

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::ssh_encoding::base64::{Base64, Encoding};

use super::error::TransportError;
use super::text::random_bytes;

/// The name of a host in known_hosts files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupName {
    name: String,
    /// The name without its port, which OpenSSH accepts too when the full name is unknown.
    bare: Option<String>,
}

impl LookupName {
    /// Makes the name for a host: its alias, or `host`, or `[host]:port` for another port than 22.
    #[must_use]
    pub fn new(hostname: &str, port: u16, alias: Option<&str>) -> Self {
        match alias {
            Some(alias) => LookupName { name: alias.to_ascii_lowercase(), bare: None },
            None => {
                let host = hostname.to_ascii_lowercase();
                if port == 22 {
                    LookupName { name: host, bare: None }
                } else {
                    LookupName { name: format!("[{host}]:{port}"), bare: Some(host) }
                }
            }
        }
    }

    /// The name as it stands in a file.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, counted from 1; 0 means the file as a whole.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        Ok(())
    }
}

/// What the files say about a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostKeyVerdict {
    /// This key is listed for this host.
    Trusted,
    /// No line says anything about this key.
    Unknown {
        /// Key types that are listed for this host.
        other_types: Vec<String>,
        /// A certificate authority is listed for this host.
        cert_authority: Option<Place>,
    },
    /// Another key of the same type is listed.
    Changed {
        /// The line with the other key.
        place: Place,
    },
    /// The key is marked as revoked.
    Revoked {
        /// The line that says so.
        place: Place,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    Key,
    Revoked,
    CertAuthority,
}

#[derive(Clone, Debug)]
struct Entry {
    place: Place,
    marker: Marker,
    /// Matched only by the name without the port.
    bare: bool,
    key_type: String,
    key: Vec<u8>,
}

/// The lines about one host.
#[derive(Clone, Debug, Default)]
pub struct KnownHosts {
    entries: Vec<Entry>,
}

impl KnownHosts {
    /// Reads the lines about a host from several files.
    ///
    /// A missing file is no error; one that cannot be read is, because it might revoke a key.
    pub fn load(files: &[PathBuf], name: &LookupName) -> Result<Self, TransportError> {
        let mut known = KnownHosts::default();
        for file in files {
            match std::fs::read(file) {
                Ok(content) => known.read(&String::from_utf8_lossy(&content), file, name),
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) => {}
                Err(source) => {
                    return Err(TransportError::File {
                        verb: "read the known hosts in",
                        path: file.clone(),
                        source,
                    });
                }
            }
        }
        Ok(known)
    }

    /// Adds the lines about a host from the text of one file.
    pub fn read(&mut self, text: &str, file: &Path, name: &LookupName) {
        let file: Arc<Path> = Arc::from(file);
        for (index, line) in text.lines().enumerate() {
            let place = Place { file: file.clone(), line: index + 1 };
            if let Some(entry) = read_line(line, place, name) {
                self.entries.push(entry);
            }
        }
    }

    /// Adds a list of revoked public keys (`RevokedHostKeys` in its text form).
    pub fn revoke_keys(&mut self, text: &str, file: &Path) {
        let file: Arc<Path> = Arc::from(file);
        for (index, line) in text.lines().enumerate() {
            let mut fields = line.split_ascii_whitespace();
            let (Some(key_type), Some(key)) = (fields.next(), fields.next()) else {
                continue;
            };
            if key_type.starts_with('#') {
                continue;
            }
            if let Some(key) = decode_base64(key) {
                self.entries.push(Entry {
                    place: Place { file: file.clone(), line: index + 1 },
                    marker: Marker::Revoked,
                    bare: false,
                    key_type: key_type.to_owned(),
                    key,
                });
            }
        }
    }

    /// Judges a key, given by its type and its bytes in SSH form.
    #[must_use]
    pub fn check(&self, key_type: &str, key: &[u8]) -> HostKeyVerdict {
        let with = |marker: Marker| self.entries.iter().filter(move |entry| entry.marker == marker);
        if let Some(entry) = with(Marker::Revoked).find(|entry| entry.key == key) {
            return HostKeyVerdict::Revoked { place: entry.place.clone() };
        }
        let keys: Vec<&Entry> = with(Marker::Key).collect();
        if keys.iter().any(|entry| !entry.bare && entry.key == key) {
            return HostKeyVerdict::Trusted;
        }
        if let Some(entry) = keys.iter().find(|entry| !entry.bare && entry.key_type == key_type) {
            return HostKeyVerdict::Changed { place: entry.place.clone() };
        }
        if keys.iter().any(|entry| entry.bare && entry.key == key) {
            return HostKeyVerdict::Trusted;
        }
        HostKeyVerdict::Unknown {
            other_types: distinct(keys.into_iter().filter(|entry| !entry.bare)),
            cert_authority: with(Marker::CertAuthority).next().map(|entry| entry.place.clone()),
        }
    }

    /// The key types listed for the host, so that the server can be asked for one of them.
    #[must_use]
    pub fn key_types(&self) -> Vec<String> {
        let keys = || self.entries.iter().filter(|entry| entry.marker == Marker::Key);
        let exact = distinct(keys().filter(|entry| !entry.bare));
        if exact.is_empty() { distinct(keys()) } else { exact }
    }
}

fn distinct<'a>(entries: impl Iterator<Item = &'a Entry>) -> Vec<String> {
    let mut types: Vec<String> = Vec::new();
    for entry in entries {
        let key_type = &entry.key_type;
        if !types.contains(key_type) {
            types.push(key_type.clone());
        }
    }
    types
}

fn read_line(line: &str, place: Place, name: &LookupName) -> Option<Entry> {
    let mut fields = line.split_ascii_whitespace();
    let mut hosts = fields.next()?;
    if hosts.starts_with('#') {
        return None;
    }
    let marker = match hosts {
        "@revoked" => Marker::Revoked,
        "@cert-authority" => Marker::CertAuthority,
        _ if hosts.starts_with('@') => {
            tracing::debug!("{place} has an unknown marker");
            return None;
        }
        _ => Marker::Key,
    };
    if marker != Marker::Key {
        hosts = fields.next()?;
    }
    let bare = if hosts_match(hosts, &name.name) {
        false
    } else if name.bare.as_deref().is_some_and(|bare| hosts_match(hosts, bare)) {
        true
    } else {
        return None;
    };
    let key_type = fields.next()?;
    let Some(key) = fields.next().and_then(decode_base64) else {
        tracing::debug!("{place} names the host but holds no key");
        return None;
    };
    Some(Entry { place, marker, bare, key_type: key_type.to_owned(), key })
}

/// Matches a host against the first field of a line.
fn hosts_match(field: &str, host: &str) -> bool {
    if let Some(hashed) = field.strip_prefix("|1|") {
        let Some((salt, hash)) = hashed.split_once('|') else {
            return false;
        };
        let (Some(salt), Some(hash)) = (decode_base64(salt), decode_base64(hash)) else {
            return false;
        };
        return hmac_sha1(&salt, host.as_bytes()) == hash.as_slice();
    }
    let mut matched = false;
    for pattern in field.split(',') {
        let (negated, pattern) = match pattern.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, pattern),
        };
        if glob_match(pattern.to_ascii_lowercase().as_bytes(), host.as_bytes()) {
            if negated {
                return false;
            }
            matched = true;
        }
    }
    matched
}

/// Matches `*` and `?`, in time proportional to both lengths whatever the pattern.
fn glob_match(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || Some(c) == text.get(t) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    p = star_p + 1;
                    t = star_t + 1;
                    star = Some((star_p, t));
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|c| *c == b'*')
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    Base64::decode_vec(text).ok()
}

/// HMAC (RFC 2104) with SHA-1, which is what hashed host names are made of.
fn hmac_sha1(key: &[u8], message: &[u8]) -> [u8; 20] {
    use sha1::{Digest, Sha1};
    const BLOCK: usize = 64;
    let mut padded = [0_u8; BLOCK];
    let shortened;
    let key = if key.len() > BLOCK {
        shortened = Sha1::digest(key);
        shortened.as_slice()
    } else {
        key
    };
    for (to, from) in padded.iter_mut().zip(key) {
        *to = *from;
    }
    let inner =
        Sha1::new().chain_update(padded.map(|byte| byte ^ 0x36)).chain_update(message).finalize();
    Sha1::new().chain_update(padded.map(|byte| byte ^ 0x5c)).chain_update(inner).finalize().into()
}

/// Adds a key to a file, which is created with its directory if need be.
pub(super) fn append(
    file: &Path,
    name: &LookupName,
    hashed: bool,
    key_type: &str,
    key: &[u8],
) -> std::io::Result<()> {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

    if let Some(parent) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let host = if hashed {
        let salt = random_bytes(20)?;
        format!(
            "|1|{}|{}",
            Base64::encode_string(&salt),
            Base64::encode_string(&hmac_sha1(&salt, name.name.as_bytes()))
        )
    } else {
        name.name.clone()
    };
    let mut line = format!("{host} {key_type} {}\n", Base64::encode_string(key));
    let mut target =
        std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file)?;
    if target.seek(SeekFrom::End(0))? > 0 {
        target.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        target.read_exact(&mut last)?;
        if last != [b'\n'] {
            line.insert(0, '\n');
        }
    }
    target.write_all(line.as_bytes())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const ED: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    const ED2: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIK2pr+Bfus1hvPof4Wb/plZCzSbqadHH0u+/f4ODtKnE";

    fn bytes(text: &str) -> Vec<u8> {
        decode_base64(text).unwrap()
    }

    fn known(text: &str, host: &str, port: u16) -> KnownHosts {
        let mut known = KnownHosts::default();
        known.read(text, Path::new("kh"), &LookupName::new(host, port, None));
        known
    }

    fn verdict(text: &str, host: &str, port: u16) -> HostKeyVerdict {
        known(text, host, port).check("ssh-ed25519", &bytes(ED))
    }

    fn unknown() -> HostKeyVerdict {
        HostKeyVerdict::Unknown { other_types: vec![], cert_authority: None }
    }

    fn line(n: usize) -> Place {
        Place { file: Arc::from(Path::new("kh")), line: n }
    }

    #[test]
    fn plain_names_and_ports() {
        let text = format!("# c\n\nbw2,10.0.0.2 ssh-ed25519 {ED} comment # more\n");
        assert_eq!(verdict(&text, "bw2", 22), HostKeyVerdict::Trusted);
        assert_eq!(verdict(&text, "BW2", 22), HostKeyVerdict::Trusted);
        assert_eq!(verdict(&text, "10.0.0.2", 22), HostKeyVerdict::Trusted);
        assert_eq!(verdict(&text, "bw22", 22), unknown());
        // An entry without port also covers other ports, as in OpenSSH ...
        assert_eq!(verdict(&text, "bw2", 2222), HostKeyVerdict::Trusted);
        // ... but never makes a key "changed" there.
        let other = format!("bw2 ssh-ed25519 {ED2}\n");
        assert_eq!(verdict(&other, "bw2", 2222), unknown());
        assert_eq!(verdict(&other, "bw2", 22), HostKeyVerdict::Changed { place: line(1) });
        let port = format!("[bw2]:2222\tssh-ed25519\t{ED}");
        assert_eq!(verdict(&port, "bw2", 2222), HostKeyVerdict::Trusted);
        assert_eq!(verdict(&port, "bw2", 22), unknown());
        assert_eq!(verdict(&port, "bw2", 2223), unknown());
        let v6 = format!("[::1]:24 ssh-ed25519 {ED}");
        assert_eq!(verdict(&v6, "::1", 24), HostKeyVerdict::Trusted);
    }

    #[test]
    fn patterns_and_negations() {
        let text = format!("*.example.net,!bad.example.net,?w2 ssh-ed25519 {ED}");
        for (host, good) in [
            ("a.example.net", true),
            ("a.b.EXAMPLE.net", true),
            ("bad.example.net", false),
            ("example.net", false),
            ("bw2", true),
            ("w2", false),
        ] {
            assert_eq!(verdict(&text, host, 22) == HostKeyVerdict::Trusted, good, "{host}");
        }
        let only_negation = format!("!a ssh-ed25519 {ED}");
        assert_eq!(verdict(&only_negation, "b", 22), unknown());
        assert!(!glob_match(b"a*a*a*a*a*a*b", &[b'a'; 5000]));
        assert!(glob_match(b"**", b""));
        assert!(glob_match(b"[*]:2222", b"[x]:2222"));
    }

    #[test]
    fn markers_win_wherever_they_stand() {
        let text = format!("bw2 ssh-ed25519 {ED}\n@revoked * ssh-ed25519 {ED}\n");
        assert_eq!(verdict(&text, "bw2", 22), HostKeyVerdict::Revoked { place: line(2) });
        let authority =
            format!("@cert-authority *.net ssh-ed25519 {ED}\n@other x.net ssh-ed25519 {ED}\n");
        assert_eq!(
            verdict(&authority, "x.net", 22),
            HostKeyVerdict::Unknown { other_types: vec![], cert_authority: Some(line(1)) }
        );
        assert!(known(&authority, "x.net", 22).key_types().is_empty());
        let mut list = KnownHosts::default();
        list.revoke_keys(&format!("# x\nssh-ed25519 {ED}\n"), Path::new("kh"));
        assert_eq!(
            list.check("ssh-ed25519", &bytes(ED)),
            HostKeyVerdict::Revoked { place: line(2) }
        );
    }

    #[test]
    fn several_keys_of_one_host() {
        let both = format!("bw2 ssh-ed25519 {ED2}\nbw2 ssh-ed25519 {ED}\nbw2 future-type AAAA\n");
        assert_eq!(verdict(&both, "bw2", 22), HostKeyVerdict::Trusted);
        assert_eq!(known(&both, "bw2", 22).key_types(), ["ssh-ed25519", "future-type"]);
        let other = "bw2 ssh-rsa AAAA\nbw2 ssh-rsa\nbw2\nbw2 ssh-ed25519 !!!\n";
        assert_eq!(
            verdict(other, "bw2", 22),
            HostKeyVerdict::Unknown {
                other_types: vec!["ssh-rsa".to_owned()],
                cert_authority: None
            }
        );
    }

    #[test]
    fn aliases_have_no_port() {
        let name = LookupName::new("10.0.0.2", 2222, Some("Mail"));
        assert_eq!(name.as_str(), "mail");
        let mut known = KnownHosts::default();
        known.read(&format!("mail ssh-ed25519 {ED}"), Path::new("kh"), &name);
        known.read(&format!("[10.0.0.2]:2222 ssh-rsa {ED2}"), Path::new("kh"), &name);
        assert_eq!(known.key_types(), ["ssh-ed25519"]);
    }

    #[test]
    fn hashed_names_as_ssh_keygen_makes_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kh");
        std::fs::write(&file, format!("[bw2]:2222 ssh-ed25519 {ED}\nbw3 ssh-ed25519 {ED2}\n"))
            .unwrap();
        let status = std::process::Command::new("ssh-keygen")
            .args(["-q", "-H", "-f"])
            .arg(&file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .expect("this test needs ssh-keygen (apt-get install openssh-client)");
        assert!(status.success());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.lines().all(|line| line.starts_with("|1|")), "{text}");
        assert_eq!(verdict(&text, "bw2", 2222), HostKeyVerdict::Trusted);
        assert_eq!(verdict(&text, "bw2", 22), unknown());
        assert_eq!(verdict(&text, "bw3", 22), HostKeyVerdict::Changed { place: line(2) });
        assert_eq!(verdict("|1|x|y ssh-ed25519 AAAA\n|1|\n", "x", 22), unknown());
    }

    #[test]
    fn what_is_appended_is_found_again_also_by_ssh_keygen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/.ssh/kh");
        let name = LookupName::new("bw2", 2222, None);
        append(&file, &name, false, "ssh-ed25519", &bytes(ED)).unwrap();
        std::fs::write(&file, std::fs::read_to_string(&file).unwrap().trim_end()).unwrap();
        let name3 = LookupName::new("bw3", 22, None);
        append(&file, &name3, true, "ssh-ed25519", &bytes(ED2)).unwrap();
        let files = [file.clone(), dir.path().join("missing")];
        let known = KnownHosts::load(&files, &name).unwrap();
        assert_eq!(known.check("ssh-ed25519", &bytes(ED)), HostKeyVerdict::Trusted);
        let known = KnownHosts::load(&files, &name3).unwrap();
        assert_eq!(known.check("ssh-ed25519", &bytes(ED2)), HostKeyVerdict::Trusted);
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 2);
        for host in ["[bw2]:2222", "bw3"] {
            let found = std::process::Command::new("ssh-keygen")
                .args(["-F", host, "-f"])
                .arg(&file)
                .output()
                .unwrap();
            assert!(found.status.success(), "{host}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = KnownHosts::load(&[dir.path().to_owned()], &LookupName::new("a", 22, None))
            .unwrap_err();
        assert!(error.to_string().starts_with("cannot read the known hosts in"));
    }

    #[test]
    fn hmac_of_rfc_2202() {
        let hex = |bytes: [u8; 20]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(
            hex(hmac_sha1(b"Jefe", b"what do ya want for nothing?")),
            "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"
        );
        assert_eq!(
            hex(hmac_sha1(&[0xaa; 80], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "aa4ae5e15272d00e95705637ce8a3b55ed402112"
        );
    }
}
