//! Mailbox names in the forms that Cyrus uses, and other names that become paths.
//!
//! | form | example | where |
//! |---|---|---|
//! | internal | `example.com!user.joe^smith.Sent` | protocols, headers, keys up to 3.4 |
//! | database key | `example.com<1d>user<1f>joe.smith<1f>Sent` | mailboxes.db from 3.6 |
//! | external | `user/joe.smith/Sent@example.com` | what an admin types |
//!
//! Names are bytes: modified UTF-7 by rule, but old servers hold others too.

use std::fmt;

/// Hierarchy separator of database keys from 3.6 (`imap/mboxlist.c:DB_HIERSEP_CHAR`).
const KEY_SEPARATOR: u8 = 0x1f;
/// Domain separator of database keys from 3.6 (`imap/mboxlist.c:DB_DOMAINSEP_CHAR`).
const KEY_DOMAIN: u8 = 0x1d;
/// Cyrus's MAX_MAILBOX_BUFFER: a name below DELETED may exceed the 490 bytes of
/// MAX_MAILBOX_NAME, but never this (`imap/mailbox.h`).
const MAX_NAME: usize = 1023;

/// Why something is not a name.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum NameError {
    /// Nothing there.
    #[error("the name is empty")]
    Empty,
    /// Longer than Cyrus can hold.
    #[error("the name has {len} bytes, more than {max}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A byte that no such name can have.
    #[error("byte {byte:#04x} at offset {offset} cannot be part of the name")]
    BadByte {
        /// The byte.
        byte: u8,
        /// Its offset.
        offset: usize,
    },
    /// Two separators in a row, or one at an end.
    #[error("the name has an empty component at offset {offset}")]
    EmptyComponent {
        /// Offset of the component.
        offset: usize,
    },
    /// A component that is a path of its own.
    #[error("the name has a component '..' or '.'")]
    DotComponent,
}

type Result<T> = std::result::Result<T, NameError>;

/// `virtdomains` of imapd.conf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtDomains {
    /// No domains.
    Off,
    /// The domain is taken from the user id.
    Userid,
    /// The domain may also come from the server's address.
    On,
}

/// How a server's external names look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// `unixhierarchysep`: `/` separates and a dot is a dot.
    pub unix_separator: bool,
    /// `virtdomains`.
    pub virtdomains: VirtDomains,
    /// `defaultdomain`: never part of an internal name.
    pub default_domain: Option<String>,
}

impl Namespace {
    fn foreign(&self, domain: &[u8]) -> bool {
        self.default_domain.as_ref().map(String::as_bytes) != Some(domain)
    }
}

/// An id under which a user logs in: `joe.smith@example.com`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserId(Vec<u8>);

impl UserId {
    /// Checks an id: not empty, no control characters, no `/`.
    pub fn new(id: &[u8]) -> Result<Self> {
        check_bytes(id, |c| c < 0x20 || c == 0x7f || c == b'/' || c == b'!')?;
        let (local, domain) = split_domain(id);
        for part in [Some(local), domain].into_iter().flatten() {
            match part {
                b"" => return Err(NameError::Empty),
                b"." | b".." => return Err(NameError::DotComponent),
                _ => {}
            }
        }
        Ok(Self(id.to_vec()))
    }

    /// The id's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Part before the last `@`, and the domain after it.
    pub fn split(&self) -> (&[u8], Option<&[u8]>) {
        split_domain(&self.0)
    }

    /// Internal name of the INBOX (`imap/mboxname.c:mboxname_user_mbox`).
    pub fn inbox(&self, namespace: &Namespace) -> Result<MailboxName> {
        let (local, domain) = self.split();
        let mut name = Vec::with_capacity(self.0.len() + 8);
        if let Some(domain) = domain.filter(|d| namespace.foreign(d)) {
            name.extend_from_slice(domain);
            name.push(b'!');
        }
        name.extend_from_slice(b"user.");
        name.extend(local.iter().map(|&c| if c == b'.' { b'^' } else { c }));
        MailboxName::from_internal(&name)
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// A mailbox name in Cyrus's internal form.
///
/// Accepts every name that a Cyrus of 2.2 or later can hold, also spaces, `&` and
/// 8-bit bytes.  Never holds NUL, control characters, `/`, or an empty component,
/// so each component is safe as a path component.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MailboxName(Vec<u8>);

impl MailboxName {
    /// Checks a name in internal form.
    pub fn from_internal(name: &[u8]) -> Result<Self> {
        check_bytes(name, |c| c < 0x20 || c == 0x7f || c == b'/')?;
        let (domain, rest) = split_internal(name);
        let start = name.len() - rest.len();
        if let Some(domain) = domain {
            check_components(domain, 0)?;
        }
        check_components(rest, start)?;
        Ok(Self(name.to_vec()))
    }

    /// Reads the key of an `N` record without its `N` (3.6 and later,
    /// `imap/mboxlist.c:mboxname_from_dbname`).
    pub fn from_db_key(key: &[u8]) -> Result<Self> {
        let mut name = Vec::with_capacity(key.len());
        let domain = key.iter().position(|&c| c == KEY_DOMAIN);
        for (offset, &byte) in key.iter().enumerate() {
            let in_domain = domain.is_some_and(|end| offset < end);
            name.push(match byte {
                KEY_DOMAIN if domain == Some(offset) => b'!',
                KEY_SEPARATOR if !in_domain => b'.',
                b'.' if !in_domain => b'^',
                other => other,
            });
        }
        Self::from_internal(&name)
    }

    /// The key of its `N` record without the `N` (`imap/mboxlist.c:mboxname_to_dbname`).
    pub fn to_db_key(&self) -> Vec<u8> {
        let (domain, rest) = split_internal(&self.0);
        let mut key = Vec::with_capacity(self.0.len());
        if let Some(domain) = domain {
            key.extend_from_slice(domain);
            key.push(KEY_DOMAIN);
        }
        key.extend(rest.iter().map(|&c| match c {
            b'.' => KEY_SEPARATOR,
            b'^' => b'.',
            other => other,
        }));
        key
    }

    /// Reads a name as an admin types it, in either separator.
    ///
    /// With a `/`, or on a server with `unixhierarchysep` (unless it begins with
    /// `user.` or `DELETED.`), dots belong to components; otherwise they separate.
    /// With virtual domains, what follows the last `@` is the domain.
    pub fn from_external(text: &[u8], namespace: &Namespace) -> Result<Self> {
        let (text, domain) = match namespace.virtdomains {
            VirtDomains::Off => (text, None),
            _ => split_domain(text),
        };
        let dotted = text.starts_with(b"user.") || text.starts_with(b"DELETED.");
        let unix = text.contains(&b'/') || (namespace.unix_separator && !dotted);
        let mut name = Vec::with_capacity(text.len() + 8);
        if let Some(domain) = domain.filter(|d| namespace.foreign(d)) {
            name.extend_from_slice(domain);
            name.push(b'!');
        }
        name.extend(text.iter().map(|&c| match c {
            b'.' if unix => b'^',
            b'/' => b'.',
            other => other,
        }));
        Self::from_internal(&name)
    }

    /// The name as an admin sees it on a server with this namespace.
    pub fn to_external(&self, namespace: &Namespace) -> Vec<u8> {
        let (domain, rest) = split_internal(&self.0);
        let mut text: Vec<u8> = rest
            .iter()
            .map(|&c| match c {
                b'.' if namespace.unix_separator => b'/',
                b'^' if namespace.unix_separator => b'.',
                other => other,
            })
            .collect();
        if let Some(domain) = domain {
            text.push(b'@');
            text.extend_from_slice(domain);
        }
        text
    }

    /// The internal form.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The part before `!`.
    pub fn domain(&self) -> Option<&[u8]> {
        split_internal(&self.0).0
    }

    /// The part after `!`, or all of it.
    pub fn without_domain(&self) -> &[u8] {
        split_internal(&self.0).1
    }

    /// Components in internal form (with `^`), without the domain.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.without_domain().split(|&c| c == b'.')
    }

    /// Whether it is a user's INBOX or below one (not if below `DELETED`).
    pub fn is_user(&self) -> bool {
        let mut parts = self.components();
        parts.next() == Some(b"user") && parts.next().is_some()
    }

    /// The user that owns it, as he logs in; none for an owner like `^^`, whose id
    /// would be `..`.
    pub fn userid(&self) -> Option<UserId> {
        if !self.is_user() {
            return None;
        }
        let local = self.components().nth(1)?;
        let mut id: Vec<u8> = local.iter().map(|&c| if c == b'^' { b'.' } else { c }).collect();
        if let Some(domain) = self.domain() {
            id.push(b'@');
            id.extend_from_slice(domain);
        }
        UserId::new(&id).ok()
    }

    /// INBOX of the user that owns it.
    pub fn inbox(&self) -> Option<Self> {
        if !self.is_user() {
            return None;
        }
        let local = self.components().nth(1)?;
        let end = self.0.len() - self.without_domain().len() + b"user.".len() + local.len();
        Some(Self(self.0.get(..end)?.to_vec()))
    }

    /// Whether it is below `other` (not `other` itself).
    pub fn is_below(&self, other: &Self) -> bool {
        let rest = self.0.strip_prefix(other.0.as_slice());
        rest.is_some_and(|rest| rest.first() == Some(&b'.'))
    }

    /// For `DELETED.user.x.Sent.5F3C1A2B`: the name before its deletion and the time
    /// of it in seconds since the epoch (`imap/mboxname.c:mbname_from_intname`).
    pub fn deleted_original(&self, deletedprefix: &str) -> Option<(Self, u32)> {
        let rest = self.without_domain();
        let inner = rest.strip_prefix(deletedprefix.as_bytes())?;
        let inner = inner.strip_prefix(b".")?;
        let dot = inner.iter().rposition(|&c| c == b'.')?;
        let (original, stamp) = inner.split_at_checked(dot)?;
        let stamp = std::str::from_utf8(stamp.get(1..)?).ok()?;
        if !stamp.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        let time = u32::from_str_radix(stamp, 16).ok()?;
        let mut name = self.0.get(..self.0.len() - rest.len())?.to_vec();
        name.extend_from_slice(original);
        Some((Self::from_internal(&name).ok()?, time))
    }

    /// The name for people: modified UTF-7 decoded, bytes that are not UTF-8
    /// replaced.  Not reversible.
    pub fn display(&self) -> String {
        decode_mutf7(&self.0)
    }
}

impl fmt::Debug for MailboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MailboxName({:?})", String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Display for MailboxName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display())
    }
}

/// A mailbox's uniqueid: 16 hex digits up to 2.5 or so, a UUID later.
///
/// Only ASCII letters, digits and `-`, 2 to 64 of them: safe as a path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UniqueId(String);

impl UniqueId {
    /// Checks an id.
    pub fn new(id: &[u8]) -> Result<Self> {
        if let [byte] = id {
            return Err(NameError::BadByte { byte: *byte, offset: 0 });
        }
        ascii_word(id, |c| c.is_ascii_alphanumeric() || c == b'-').map(Self)
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A partition's name, lower-cased as Cyrus looks it up.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionName(String);

impl PartitionName {
    /// Checks a name: ASCII letters, digits, `-` and `_`, up to 64.
    pub fn new(name: &str) -> Result<Self> {
        let ok = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        ascii_word(name.as_bytes(), ok).map(|name| Self(name.to_ascii_lowercase()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PartitionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn ascii_word(word: &[u8], ok: impl Fn(u8) -> bool) -> Result<String> {
    const MAX: usize = 64;
    if word.is_empty() {
        return Err(NameError::Empty);
    }
    if word.len() > MAX {
        return Err(NameError::TooLong { len: word.len(), max: MAX });
    }
    if let Some((offset, &byte)) = word.iter().enumerate().find(|&(_, &c)| !ok(c)) {
        return Err(NameError::BadByte { byte, offset });
    }
    Ok(word.iter().map(|&c| char::from(c)).collect())
}

fn check_bytes(name: &[u8], bad: impl Fn(u8) -> bool) -> Result<()> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_NAME {
        return Err(NameError::TooLong { len: name.len(), max: MAX_NAME });
    }
    match name.iter().enumerate().find(|&(_, &c)| bad(c)) {
        Some((offset, &byte)) => Err(NameError::BadByte { byte, offset }),
        None if name == b"." || name == b".." => Err(NameError::DotComponent),
        None => Ok(()),
    }
}

fn check_components(name: &[u8], base: usize) -> Result<()> {
    let mut offset = base;
    for part in name.split(|&c| c == b'.') {
        if part.is_empty() {
            return Err(NameError::EmptyComponent { offset });
        }
        offset += part.len() + 1;
    }
    Ok(())
}

/// Splits `domain!rest` at the first `!`.
fn split_internal(name: &[u8]) -> (Option<&[u8]>, &[u8]) {
    let at = name.iter().position(|&c| c == b'!');
    match at.and_then(|at| name.split_at_checked(at)) {
        Some((domain, rest)) => (Some(domain), rest.get(1..).unwrap_or_default()),
        None => (None, name),
    }
}

/// Splits `rest@domain` at the last `@`.
fn split_domain(text: &[u8]) -> (&[u8], Option<&[u8]>) {
    let at = text.iter().rposition(|&c| c == b'@');
    match at.and_then(|at| text.split_at_checked(at)) {
        Some((rest, domain)) => (rest, domain.get(1..)),
        None => (text, None),
    }
}

/// Decodes modified UTF-7 (RFC 3501 5.1.3); what is not valid stays as it is.
fn decode_mutf7(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.iter().position(|&c| c == b'&') {
        let (plain, coded) = rest.split_at(at);
        text.push_str(&String::from_utf8_lossy(plain));
        let end = coded.iter().position(|&c| c == b'-').unwrap_or(0);
        match coded.get(1..end).map(decode_shifted) {
            Some(Some(decoded)) => {
                text.push_str(if end == 1 { "&" } else { &decoded });
                rest = coded.get(end + 1..).unwrap_or_default();
            }
            _ => {
                text.push('&');
                rest = coded.get(1..).unwrap_or_default();
            }
        }
    }
    text.push_str(&String::from_utf8_lossy(rest));
    text
}

/// Decodes the base64 between `&` and `-`.
fn decode_shifted(coded: &[u8]) -> Option<String> {
    let (mut bits, mut count, mut units) = (0u32, 0, Vec::new());
    for &c in coded {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b',' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0x3f_ffff;
        count += 6;
        if count >= 16 {
            count -= 16;
            units.push((bits >> count & 0xffff) as u16);
        }
    }
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn name(text: &str) -> MailboxName {
        MailboxName::from_internal(text.as_bytes()).unwrap()
    }

    fn space(unix_separator: bool, virtdomains: VirtDomains) -> Namespace {
        Namespace { unix_separator, virtdomains, default_domain: Some("other.org".into()) }
    }

    #[test]
    fn forms_of_a_dotted_user_in_a_domain() {
        let n = name("example.com!user.joe^smith.Sent");
        let key = b"example.com\x1duser\x1fjoe.smith\x1fSent";
        assert_eq!(n.to_db_key(), key);
        assert_eq!(MailboxName::from_db_key(key).unwrap(), n);
        let unix = space(true, VirtDomains::Userid);
        let ext = b"user/joe.smith/Sent@example.com";
        assert_eq!(n.to_external(&unix), ext);
        assert_eq!(MailboxName::from_external(ext, &unix).unwrap(), n);
        let dots = space(false, VirtDomains::Userid);
        let ext = b"user.joe^smith.Sent@example.com";
        assert_eq!(n.to_external(&dots), ext);
        for ns in [&unix, &dots] {
            assert_eq!(MailboxName::from_external(ext, ns).unwrap(), n);
        }
        assert_eq!(n.userid().unwrap().to_string(), "joe.smith@example.com");
        assert_eq!(n.inbox().unwrap(), name("example.com!user.joe^smith"));
        assert!(n.is_below(&n.inbox().unwrap()));
        assert!(!name("user.joes").is_below(&name("user.joe")));
        assert_eq!(
            UserId::new(b"joe.smith@example.com").unwrap().inbox(&unix).unwrap(),
            n.inbox().unwrap()
        );
        assert_eq!(UserId::new(b"a@other.org").unwrap().inbox(&unix).unwrap(), name("user.a"));
    }

    #[test]
    fn external_names_in_either_separator() {
        let unix = space(true, VirtDomains::Off);
        let dots = space(false, VirtDomains::Off);
        for ns in [&unix, &dots] {
            for text in ["user.x.Sent", "user/x/Sent"] {
                let got = MailboxName::from_external(text.as_bytes(), ns).unwrap();
                assert_eq!(got, name("user.x.Sent"));
            }
        }
        assert_eq!(MailboxName::from_external(b"a.b", &unix).unwrap(), name("a^b"));
        assert_eq!(MailboxName::from_external(b"a.b", &dots).unwrap(), name("a.b"));
        assert_eq!(MailboxName::from_external(b"user/x@y", &unix).unwrap(), name("user.x@y"));
    }

    #[test]
    fn deleted_names() {
        let n = name("d.org!DELETED.user.x.Sent.5F3C1A2B");
        let (old, time) = n.deleted_original("DELETED").unwrap();
        assert_eq!((old, time), (name("d.org!user.x.Sent"), 0x5f3c_1a2b));
        assert!(!n.is_user());
        for other in ["DELETED.user.x.Sent", "DELETED.5F3C1A2B", "user.x.5F3C1A2B"] {
            assert_eq!(name(other).deleted_original("DELETED"), None);
        }
    }

    #[test]
    fn accepts_old_names_and_refuses_dangerous_ones() {
        for ok in ["user.legacy.Work.Project X", "user.x.a&b", "user.x.^^", "$RUNQ", "a~"] {
            assert!(MailboxName::from_internal(ok.as_bytes()).is_ok(), "{ok}");
        }
        assert!(MailboxName::from_internal(b"user.x.\xe4").is_ok());
        let long = "x".repeat(MAX_NAME + 1);
        for bad in
            ["", ".", "..", "a..b", ".a", "a.", "a/b", "a\0", "a\nb", "!a", "a!", "../x", &long]
        {
            assert!(MailboxName::from_internal(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert_eq!(
            MailboxName::from_internal(b"user.x\x07").unwrap_err(),
            NameError::BadByte { byte: 7, offset: 6 }
        );
    }

    #[test]
    fn displays_utf7() {
        assert_eq!(name("user.x.Entw&APw-rfe").display(), "user.x.Entwürfe");
        assert_eq!(name("a &- b&x").display(), "a & b&x");
        assert_eq!(name("&2Dzf7w-").display(), "\u{1f3ef}");
    }

    #[test]
    fn ids_are_path_components() {
        assert!(UniqueId::new(b"839802de-d9a1-4722-ba4c-9bfdbc12a650").is_ok());
        assert!(UniqueId::new(b"7d9a3c2e5f3c1a2b").is_ok());
        for bad in ["", "a", "../..", "a/b", "a.b", &"a".repeat(65)] {
            assert!(UniqueId::new(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(PartitionName::new("Two").unwrap().as_str(), "two");
        assert!(PartitionName::new("a/b").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = MailboxName::from_db_key(&raw);
            let _ = (UniqueId::new(&raw), UserId::new(&raw), decode_mutf7(&raw));
            let _ = MailboxName::from_external(&raw, &space(true, VirtDomains::On));
            if let Ok(n) = MailboxName::from_internal(&raw) {
                let _ = (n.display(), n.userid(), n.inbox(), n.deleted_original("DELETED"));
                prop_assert!(n.components().all(|c| !c.is_empty() && c != b".."));
            }
        }

        #[test]
        fn round_trips(text in "([a-z.]{1,8}!)?[a-zA-Z^ &@+-]{1,6}(\\.[a-zA-Z^ &-]{1,6}){0,4}") {
            if let Ok(n) = MailboxName::from_internal(text.as_bytes()) {
                prop_assert_eq!(&MailboxName::from_db_key(&n.to_db_key()).unwrap(), &n);
            }
        }
    }
}
