//! Cyrus's dlist, the notation of mailboxes.db records (2.5 and later) and of
//! cyrus.header (3.6 and later).
//!
//! Atoms, `"quoted"` strings with `\` escapes, literals `{n}` and `{n+}`, `NIL`,
//! lists `(a b)` and key-value lists `%(key value key value)`
//! (`imap/dlist.c:dlist_print`, `dlist_parsesax`).  A string remembers how it was
//! written, so a record that is parsed and written again is the same bytes.

use std::fmt;

/// Deeper nesting is refused; Cyrus itself writes four levels.
const MAX_DEPTH: usize = 32;
/// Longer strings are written as literals (`lib/prot.h:MAXQSTRING`).
const MAX_QUOTED: usize = 8192;
/// Longer strings are no atoms (`lib/imparse.c:imparse_isnatom`).
const MAX_ATOM: usize = 1023;

/// Where and why a dlist does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad dlist at offset {offset}: {reason}")]
pub struct DlistError {
    /// Byte offset.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

type Result<T> = std::result::Result<T, DlistError>;

/// How a string is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Atom,
    Quoted,
    Literal { plus: bool },
}

/// A string and the form it is written in.
#[derive(Clone, PartialEq, Eq)]
pub struct Scalar {
    value: Vec<u8>,
    form: Form,
}

impl Scalar {
    /// A string in the form in which Cyrus would write it
    /// (`lib/prot.c:prot_printastring`); 0x1f is quoted, as 3.12 does.
    pub fn new(value: &[u8]) -> Self {
        let special = |c: &u8| matches!(c, b' ' | b'{' | b'(' | b')' | b'"' | b'%' | b'*' | b'\\');
        let plain = |c: &u8| (0x20..0x7f).contains(c) && !special(c);
        let quotable = |c: &u8| !matches!(c, 0 | b'\r' | b'\n' | b'"' | b'\\' | b'%') && *c < 0x80;
        let atom = !value.is_empty() && value.len() <= MAX_ATOM && value != b"NIL";
        let form = if atom && value.iter().all(plain) {
            Form::Atom
        } else if value.len() < MAX_QUOTED && value.iter().all(quotable) {
            Form::Quoted
        } else {
            Form::Literal { plus: true }
        };
        Self { value: value.to_vec(), form }
    }

    /// The string.
    pub fn as_bytes(&self) -> &[u8] {
        &self.value
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self.form {
            Form::Atom => out.extend_from_slice(&self.value),
            Form::Quoted => {
                out.push(b'"');
                for &c in &self.value {
                    if c == b'"' || c == b'\\' {
                        out.push(b'\\');
                    }
                    out.push(c);
                }
                out.push(b'"');
            }
            Form::Literal { plus } => {
                let plus = if plus { "+" } else { "" };
                out.extend_from_slice(format!("{{{}{plus}}}\r\n", self.value.len()).as_bytes());
                out.extend_from_slice(&self.value);
            }
        }
    }
}

impl fmt::Debug for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.value))
    }
}

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dlist {
    /// `NIL`
    Nil,
    /// An atom, a quoted string or a literal.
    Str(Scalar),
    /// `(a b)`
    List(Vec<Dlist>),
    /// `%(key value ...)`, in the order of the file.
    Kv(Vec<(Scalar, Dlist)>),
}

impl Dlist {
    /// A string value.
    pub fn string(value: &[u8]) -> Self {
        Self::Str(Scalar::new(value))
    }

    /// Parses one value that fills `bytes`; line ends after it are allowed.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let (value, end) = Self::parse_prefix(bytes)?;
        let rest = bytes.get(end..).unwrap_or_default();
        match rest.iter().position(|c| !matches!(c, b'\r' | b'\n')) {
            None => Ok(value),
            Some(at) => Err(DlistError { offset: end + at, reason: "something follows the value" }),
        }
    }

    /// Parses one value at the start of `bytes`; gives it and the offset of its end.
    pub fn parse_prefix(bytes: &[u8]) -> Result<(Self, usize)> {
        let mut parser = Parser { bytes, at: 0 };
        let value = parser.value(0)?;
        Ok((value, parser.at))
    }

    /// The bytes as Cyrus writes them, without a line end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Nil => out.extend_from_slice(b"NIL"),
            Self::Str(text) => text.write(out),
            Self::List(items) => {
                out.push(b'(');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b' ');
                    }
                    item.write(out);
                }
                out.push(b')');
            }
            Self::Kv(items) => {
                out.extend_from_slice(b"%(");
                for (index, (key, item)) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b' ');
                    }
                    key.write(out);
                    out.push(b' ');
                    item.write(out);
                }
                out.push(b')');
            }
        }
    }

    /// The string, if it is one.
    pub fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Str(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// The number, if it is a string of decimal digits that fit.
    pub fn as_u64(&self) -> Option<u64> {
        let text = std::str::from_utf8(self.as_bytes()?).ok()?;
        if text.starts_with('+') {
            return None;
        }
        text.parse().ok()
    }

    /// The items, if it is a list.
    pub fn as_list(&self) -> Option<&[Dlist]> {
        match self {
            Self::List(items) => Some(items),
            _ => None,
        }
    }

    /// The pairs, if it is a key-value list.
    pub fn as_kv(&self) -> Option<&[(Scalar, Dlist)]> {
        match self {
            Self::Kv(items) => Some(items),
            _ => None,
        }
    }

    /// The last value of a key, as Cyrus takes it, if it is a key-value list.
    pub fn get(&self, key: &[u8]) -> Option<&Dlist> {
        let pairs = self.as_kv()?;
        pairs.iter().rev().find(|(k, _)| k.as_bytes() == key).map(|(_, v)| v)
    }

    /// Puts `value` in the place of the key's value, or inserts the pair after the
    /// last of the keys `after` that is there, else at the start.  Does nothing if
    /// this is no key-value list.
    pub fn set(&mut self, key: &[u8], value: Dlist, after: &[&[u8]]) {
        let Self::Kv(pairs) = self else { return };
        if let Some((_, old)) = pairs.iter_mut().rev().find(|(k, _)| k.as_bytes() == key) {
            *old = value;
            return;
        }
        let last = pairs.iter().rposition(|(k, _)| after.contains(&k.as_bytes()));
        let at = last.map_or(0, |last| last + 1);
        pairs.insert(at, (Scalar::new(key), value));
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8]) {
        if let Self::Kv(pairs) = self {
            pairs.retain(|(k, _)| k.as_bytes() != key);
        }
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Parser<'a> {
    fn fail<T>(&self, reason: &'static str) -> Result<T> {
        Err(DlistError { offset: self.at, reason })
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    fn spaces(&mut self) -> bool {
        let before = self.at;
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
        self.at > before
    }

    fn value(&mut self, depth: usize) -> Result<Dlist> {
        if depth > MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        match self.peek() {
            Some(b'(') => {
                self.at += 1;
                let mut items = Vec::new();
                while !self.closed(items.is_empty())? {
                    items.push(self.value(depth + 1)?);
                }
                Ok(Dlist::List(items))
            }
            Some(b'%') => {
                if !self.rest().starts_with(b"%(") {
                    return self.fail("'%' is not followed by '('");
                }
                self.at += 2;
                let mut items = Vec::new();
                while !self.closed(items.is_empty())? {
                    let key = self.scalar()?;
                    if !self.spaces() {
                        return self.fail("no space after a key");
                    }
                    items.push((key, self.value(depth + 1)?));
                }
                Ok(Dlist::Kv(items))
            }
            _ => {
                let text = self.scalar()?;
                Ok(if text.form == Form::Atom && text.value == b"NIL" {
                    Dlist::Nil
                } else {
                    Dlist::Str(text)
                })
            }
        }
    }

    /// Whether the list ends here; else goes to its next item.
    fn closed(&mut self, first: bool) -> Result<bool> {
        let spaced = self.spaces();
        match self.peek() {
            Some(b')') => {
                self.at += 1;
                Ok(true)
            }
            None => self.fail("the list does not end"),
            Some(_) if first || spaced => Ok(false),
            Some(_) => self.fail("no space between two items"),
        }
    }

    fn scalar(&mut self) -> Result<Scalar> {
        match self.peek() {
            Some(b'"') => self.quoted(),
            Some(b'{') => self.literal(),
            _ => {
                let end = self
                    .rest()
                    .iter()
                    .position(|&c| matches!(c, b' ' | b')' | b'(' | b'"') || c < 0x1f);
                let value = match end {
                    Some(end) => self.rest().get(..end).unwrap_or_default(),
                    None => self.rest(),
                }
                .to_vec();
                if value.is_empty() {
                    return self.fail("a value is missing");
                }
                self.at += value.len();
                let form = Form::Atom;
                Ok(Scalar { value, form })
            }
        }
    }

    fn quoted(&mut self) -> Result<Scalar> {
        self.at += 1;
        let mut value = Vec::new();
        let mut escaped = false;
        for &c in self.rest() {
            self.at += 1;
            match c {
                b'"' if !escaped => {
                    let form = Form::Quoted;
                    return Ok(Scalar { value, form });
                }
                b'\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                c => value.push(c),
            }
            escaped = false;
        }
        self.fail("the quoted string does not end")
    }

    fn literal(&mut self) -> Result<Scalar> {
        let rest = self.rest().get(1..).unwrap_or_default();
        let digits = rest.iter().take_while(|c| c.is_ascii_digit()).count();
        let number = rest.get(..digits).and_then(|d| std::str::from_utf8(d).ok());
        let Some(len) = number.and_then(|n| n.parse::<usize>().ok()) else {
            return self.fail("the literal has no length");
        };
        let tail = rest.get(digits..).unwrap_or_default();
        let (plus, tail) = match tail.strip_prefix(b"+") {
            Some(tail) => (true, tail),
            None => (false, tail),
        };
        let Some(body) = tail.strip_prefix(b"}\r\n") else {
            return self.fail("the literal's length does not end in '}' and a line end");
        };
        let Some(value) = body.get(..len).map(<[u8]>::to_vec) else {
            return self.fail("the literal is longer than what is left");
        };
        self.at += 1 + digits + usize::from(plus) + 3 + len;
        let form = Form::Literal { plus };
        Ok(Scalar { value, form })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn real_records_come_back_unchanged() {
        for record in [
            &b"%(A %(legacy lrswipkxtecdan other lrsw) I 87a80841-b747 P default V 17 C 1 F 2 M 3)"[..],
            b"%(T e N \"user\x1fx\" P default V 1 M 2 A %(x lrs) H (%(N user\x1fy M 1 T e P default) NIL))",
            b"%(T ed I 7 V 1 A %() H ())",
            b"%(A %({4+}\r\n\xc3\xa4(b lrs \"a b\" {2}\r\n\"\\))",
        ] {
            let list = Dlist::parse(record).unwrap();
            assert_eq!(list.to_bytes(), record);
        }
    }

    #[test]
    fn reads_and_edits() {
        let mut list = Dlist::parse(b"%(T e I x P default V 5 Z (new thing) M 1)").unwrap();
        assert_eq!(list.get(b"V").unwrap().as_u64(), Some(5));
        list.set(b"P", Dlist::string(b"two"), &[]);
        list.set(b"S", Dlist::string(b"new host"), &[b"T", b"I", b"P"]);
        list.remove(b"M");
        assert_eq!(list.to_bytes(), b"%(T e I x P two S \"new host\" V 5 Z (new thing))");
    }

    #[test]
    fn errors_say_where() {
        for (text, offset) in [
            ("", 0),
            ("%(A", 3),
            ("%(A )", 4),
            ("%(A b) c", 6),
            ("(a\"b\")", 2),
            ("{9}\r\nab", 0),
            ("{99999999999999999999999}\r\nab", 0),
            ("\"ab", 3),
            ("%{x}", 0),
        ] {
            assert_eq!(Dlist::parse(text.as_bytes()).unwrap_err().offset, offset, "{text}");
        }
        let deep = "(".repeat(100_000);
        assert_eq!(Dlist::parse(deep.as_bytes()).unwrap_err().reason, "nested too deeply");
    }

    fn value() -> impl Strategy<Value = Dlist> {
        let text = prop_oneof!["[a-zA-Z0-9 ().\"\\\\%*{}\r\n\u{1f}-]{0,12}", Just("NIL".into())];
        let bytes = proptest::collection::vec(any::<u8>(), 0..12);
        let leaf = prop_oneof![
            Just(Dlist::Nil),
            text.prop_map(|t| Dlist::string(t.as_bytes())),
            bytes.prop_map(|b| Dlist::string(&b)),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = "[A-Za-z\" ]{1,3}".prop_map(|k| Scalar::new(k.as_bytes()));
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Dlist::List),
                proptest::collection::vec((key, inner), 0..4).prop_map(Dlist::Kv),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(list in value()) {
            prop_assert_eq!(Dlist::parse(&list.to_bytes()).unwrap(), list);
        }

        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Dlist::parse(&raw);
        }

        #[test]
        fn never_panics_on_brackets(raw in "[%( )a{1}\"\\\\\r\n]{0,40}") {
            if let Ok(list) = Dlist::parse(raw.as_bytes()) {
                prop_assert_eq!(Dlist::parse(&list.to_bytes()).unwrap(), list);
            }
        }
    }
}
