//! Annotations of servers, mailboxes and messages.
//!
//! One annotations.db for the server and its mailboxes, from 2.5 on also a
//! cyrus.annotations per mailbox for its messages; the entries have one form.

/// Stands for the mailbox's owner in keys of 3.6 and later
/// (`imap/annotate.c:OWNER_USERID_TOKEN`).
pub const OWNER: &[u8] = b"[.OwNeR.]";

/// Where and why an annotation does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad annotation at offset {offset}: {reason}")]
pub struct AnnotationError {
    /// Byte offset in the key or value.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

type Result<T> = std::result::Result<T, AnnotationError>;

fn fail<T>(offset: usize, reason: &'static str) -> Result<T> {
    Err(AnnotationError { offset, reason })
}

/// What an annotation is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The server.
    Server,
    /// A mailbox: its internal name up to 3.4, its unique id from 3.6 on.
    Mailbox(Vec<u8>),
    /// A message, by UID, in the mailbox whose cyrus.annotations this is.
    Message(u32),
}

/// The key of an annotation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnnotationKey {
    /// What it is about.
    pub scope: Scope,
    /// Its name without `/shared` or `/private`, as in `/comment`.
    pub entry: Vec<u8>,
    /// Whose it is: empty is everybody's (shared), else a private one of this user,
    /// or of [`OWNER`].
    pub userid: Vec<u8>,
}

impl AnnotationKey {
    /// Parses a key of annotations.db (`imap/annotate.c:split_key`).
    pub fn parse(key: &[u8]) -> Result<Self> {
        let (place, entry, userid) = split(key)?;
        let scope = match place {
            b"" => Scope::Server,
            name => Scope::Mailbox(name.to_vec()),
        };
        Ok(Self { scope, entry, userid })
    }

    /// Parses a key of a mailbox's cyrus.annotations.
    pub fn parse_message(key: &[u8]) -> Result<Self> {
        let (place, entry, userid) = split(key)?;
        let digits = place.iter().all(u8::is_ascii_digit);
        let uid = std::str::from_utf8(place).ok().filter(|_| digits);
        let Some(uid) = uid.and_then(|text| text.parse().ok()) else {
            return fail(0, "the key does not begin with a UID");
        };
        Ok(Self { scope: Scope::Message(uid), entry, userid })
    }

    /// The key as Cyrus writes it; a NUL ends it (`imap/annotate.c:make_key`).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut key = match &self.scope {
            Scope::Server => Vec::new(),
            Scope::Mailbox(name) => name.clone(),
            Scope::Message(uid) => uid.to_string().into_bytes(),
        };
        for part in [&self.entry, &self.userid] {
            key.push(0);
            key.extend_from_slice(part);
        }
        key.push(0);
        key
    }
}

/// `place NUL entry NUL userid NUL`; the last NUL, and a userid before it, may be
/// missing.
fn split(key: &[u8]) -> Result<(&[u8], Vec<u8>, Vec<u8>)> {
    let mut parts = key.split(|&c| c == 0);
    let place = parts.next().unwrap_or_default();
    let Some(entry) = parts.next() else {
        return fail(key.len(), "the key has no entry name");
    };
    if entry.is_empty() {
        return fail(place.len() + 1, "the entry name is empty");
    }
    let userid = parts.next().unwrap_or_default();
    if parts.any(|part| !part.is_empty()) {
        let offset = place.len() + entry.len() + userid.len() + 3;
        return fail(offset, "something follows the user id");
    }
    Ok((place, entry.to_vec(), userid.to_vec()))
}

/// How the machine that wrote a value keeps an `unsigned long`: values hold them as
/// they were in memory, after `htonl` (`imap/annotate.c:make_entry`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LongForm {
    /// 64 bits, little endian: the number big endian in the first four bytes.
    #[default]
    Little64,
    /// 32 bits: the number big endian.
    Any32,
    /// 64 bits, big endian: the number in the last four bytes.
    Big64,
}

impl LongForm {
    const ALL: [Self; 3] = [Self::Little64, Self::Any32, Self::Big64];

    fn split(self, bytes: &[u8]) -> Option<(u32, &[u8])> {
        let (&[a, b, c, d], rest) = bytes.split_first_chunk::<4>()?;
        let first = u32::from_be_bytes([a, b, c, d]);
        if self == Self::Any32 {
            return Some((first, rest));
        }
        let (&[e, f, g, h], rest) = rest.split_first_chunk::<4>()?;
        let second = u32::from_be_bytes([e, f, g, h]);
        let (number, zero) = match self {
            Self::Big64 => (second, first),
            _ => (first, second),
        };
        (zero == 0).then_some((number, rest))
    }

    fn put(self, number: u32, out: &mut Vec<u8>) {
        if self == Self::Big64 {
            out.extend([0; 4]);
        }
        out.extend(number.to_be_bytes());
        if self == Self::Little64 {
            out.extend([0; 4]);
        }
    }
}

/// The value of an annotation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnnotationValue {
    /// The value itself.
    pub value: Vec<u8>,
    /// Its content type; Cyrus looks at it no more from 2.4 on.
    pub content_type: Vec<u8>,
    /// When it was changed, in seconds since the epoch; 0 from 3.0 on.
    pub modified_since: u32,
    /// Modification sequence, from 3.0 on.
    pub modseq: Option<u64>,
    /// Bit 0: deleted; from 3.0 on, after a modification sequence.
    pub flags: Option<u8>,
    /// How the machine that wrote it keeps numbers.
    pub form: LongForm,
}

impl AnnotationValue {
    /// A value as Cyrus 3.x writes it on today's machines.
    pub fn new(value: &[u8], modseq: u64) -> Self {
        Self {
            value: value.to_vec(),
            content_type: b"text/plain".to_vec(),
            modified_since: 0,
            modseq: Some(modseq),
            flags: Some(0),
            form: LongForm::Little64,
        }
    }

    /// Parses the value of an annotation of any version and machine
    /// (`imap/annotate.c:split_attribs`).
    ///
    /// Which machine wrote it is told by which form uses up all bytes; if several do,
    /// it is the first of [`LongForm`]'s.  Fails if none does.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut forms = LongForm::ALL.into_iter();
        let parsed = forms.find_map(|form| Self::parse_form(bytes, form));
        parsed.map_or_else(|| fail(0, "the lengths do not fit the value's length"), Ok)
    }

    fn parse_form(bytes: &[u8], form: LongForm) -> Option<Self> {
        let (len, rest) = form.split(bytes)?;
        let (value, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        let mut parsed = Self {
            value: value.to_vec(),
            content_type: Vec::new(),
            modified_since: 0,
            modseq: None,
            flags: None,
            form,
        };
        let rest = rest.strip_prefix(&[0])?;
        let end = rest.iter().position(|&c| c == 0)?;
        let (content_type, rest) = rest.split_at_checked(end)?;
        parsed.content_type = content_type.to_vec();
        let (modified_since, rest) = form.split(rest.get(1..)?)?;
        parsed.modified_since = modified_since;
        if rest.is_empty() {
            return Some(parsed);
        }
        let (&modseq, rest) = rest.split_first_chunk::<8>()?;
        parsed.modseq = Some(u64::from_be_bytes(modseq));
        match rest {
            [] => Some(parsed),
            &[flags] => {
                parsed.flags = Some(flags);
                Some(parsed)
            }
            _ => None,
        }
    }

    /// Whether it is a tombstone: the annotation does not exist.
    pub fn is_deleted(&self) -> bool {
        self.flags.is_some_and(|flags| flags & 1 != 0)
    }

    /// The bytes as Cyrus writes them.  Flags are written only after a modification
    /// sequence.  `None` if the value has 4 GiB or more, or its content type a NUL.
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let len = u32::try_from(self.value.len()).ok()?;
        if self.content_type.contains(&0) {
            return None;
        }
        let mut out = Vec::with_capacity(self.value.len() + self.content_type.len() + 32);
        self.form.put(len, &mut out);
        for part in [&self.value, &self.content_type] {
            out.extend_from_slice(part);
            out.push(0);
        }
        self.form.put(self.modified_since, &mut out);
        if let Some(modseq) = self.modseq {
            out.extend(modseq.to_be_bytes());
            out.extend(self.flags);
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys() {
        for (raw, scope, entry, userid) in [
            (&b"\0/motd\0\0"[..], Scope::Server, "/motd", ""),
            (b"user.x\0/comment\0jane\0", Scope::Mailbox(b"user.x".to_vec()), "/comment", "jane"),
            (b"87a8-b7\0/a\0[.OwNeR.]\0", Scope::Mailbox(b"87a8-b7".to_vec()), "/a", "[.OwNeR.]"),
        ] {
            let key = AnnotationKey::parse(raw).unwrap();
            assert_eq!((&key.scope, key.entry.as_slice()), (&scope, entry.as_bytes()));
            assert_eq!(key.userid, userid.as_bytes());
            assert_eq!(key.to_bytes(), raw);
        }
        let key = AnnotationKey::parse_message(b"41\0/altsubject\0\0").unwrap();
        assert_eq!(key.scope, Scope::Message(41));
        assert_eq!(key.to_bytes(), b"41\0/altsubject\0\0");
        // The NUL at the end, and more, may be missing.
        let short = AnnotationKey::parse(b"a\0/b\0c").unwrap();
        assert_eq!(short.to_bytes(), b"a\0/b\0c\0");
        assert_eq!(AnnotationKey::parse(b"a\0/b").unwrap().userid, b"");
        for (raw, offset) in [(&b""[..], 0), (b"ab", 2), (b"ab\0\0c\0", 3), (b"a\0b\0c\0d", 6)] {
            assert_eq!(AnnotationKey::parse(raw).unwrap_err().offset, offset, "{raw:?}");
        }
        for raw in [&b"x\0/a\0\0"[..], b"\0/a\0\0", b"+1\0/a\0\0", b"4294967296\0/a\0\0"] {
            assert_eq!(AnnotationKey::parse_message(raw).unwrap_err().offset, 0);
        }
    }

    #[test]
    fn values_of_all_machines() {
        for (raw, form) in [
            (
                &b"\0\0\0\x02\0\0\0\0hi\0text/plain\0\x6b\x04\x42\x98\0\0\0\0"[..],
                LongForm::Little64,
            ),
            (b"\0\0\0\x02hi\0text/plain\0\x6b\x04\x42\x98", LongForm::Any32),
            (b"\0\0\0\0\0\0\0\x02hi\0text/plain\0\0\0\0\0\x6b\x04\x42\x98", LongForm::Big64),
        ] {
            let value = AnnotationValue::parse(raw).unwrap();
            assert_eq!((value.value.as_slice(), value.form), (&b"hi"[..], form));
            assert_eq!((value.modified_since, value.modseq), (0x6b04_4298, None));
            assert_eq!(value.to_bytes().unwrap(), raw);
        }
        let mut value = AnnotationValue::new(b"", 7);
        let raw = value.to_bytes().unwrap();
        assert_eq!(raw.len(), 8 + 1 + 11 + 8 + 8 + 1);
        assert_eq!(AnnotationValue::parse(&raw).unwrap(), value);
        assert!(!value.is_deleted());
        value.flags = Some(1);
        assert!(value.is_deleted());
        for raw in [&b""[..], b"\0\0\0\x09\0\0\0\0hi\0", b"\xff\xff\xff\xff\0\0\0\0"] {
            assert_eq!(AnnotationValue::parse(raw).unwrap_err().offset, 0);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            value in proptest::collection::vec(any::<u8>(), 0..40),
            modified_since in any::<u32>(),
            modseq in proptest::option::of(any::<u64>()),
            flags in any::<u8>(),
            form in proptest::sample::select(&LongForm::ALL[..]),
        ) {
            let flags = modseq.map(|_| flags);
            let content_type = b"text/plain".to_vec();
            let mut value = AnnotationValue { value, content_type, modified_since, modseq, flags, form };
            let raw = value.to_bytes().unwrap();
            let back = AnnotationValue::parse(&raw).unwrap();
            // An empty value of 0 is the same on both 64-bit machines.
            if value.value.is_empty() && modified_since == 0 && form == LongForm::Big64 {
                value.form = LongForm::Little64;
            }
            prop_assert_eq!(&back, &value);
            prop_assert_eq!(back.to_bytes().unwrap(), raw);
        }

        #[test]
        fn keys_come_back(place in "[a-z.]{0,6}", entry in "/[a-z/]{0,9}", userid in "[a-z.]{0,5}", uid in any::<u32>()) {
            let mut key = AnnotationKey::parse(format!("{place}\0{entry}\0{userid}\0").as_bytes()).unwrap();
            prop_assert_eq!(&AnnotationKey::parse(&key.to_bytes()).unwrap(), &key);
            key.scope = Scope::Message(uid);
            prop_assert_eq!(AnnotationKey::parse_message(&key.to_bytes()).unwrap(), key);
        }

        #[test]
        fn never_panics(raw in proptest::collection::vec(prop_oneof![Just(0u8), 0..20u8, any::<u8>()], 0..60)) {
            let _ = (AnnotationKey::parse(&raw), AnnotationKey::parse_message(&raw));
            if let Ok(value) = AnnotationValue::parse(&raw) {
                prop_assert_eq!(value.to_bytes().unwrap(), raw);
            }
        }
    }
}
