//! A blocking IMAP client that understands literals and leaves nothing out.

use anyhow::{Context, Result, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::STANDARD_NO_PAD};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What a response consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `NIL`
    Nil,
    /// An unquoted word, which includes numbers, flags and `BODY[...]`.
    Atom(Vec<u8>),
    /// A quoted string or a literal.
    Text(Vec<u8>),
    /// A parenthesised list.
    List(Vec<Value>),
}

impl Value {
    /// The bytes of a word or string; none for NIL and lists.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Value::Atom(bytes) | Value::Text(bytes) => bytes,
            Value::Nil | Value::List(_) => &[],
        }
    }

    /// The elements of a list; none for anything else.
    pub fn list(&self) -> &[Value] {
        match self {
            Value::List(list) => list,
            _ => &[],
        }
    }

    /// Whether this is the given word, in any case.
    pub fn is(&self, word: &str) -> bool {
        matches!(self, Value::Atom(atom) if atom.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// The number that this word is.
    pub fn number(&self) -> Option<u64> {
        std::str::from_utf8(self.bytes()).ok()?.parse().ok()
    }

    /// The elements of a list that alternates keys and values.
    pub fn pairs(&self) -> impl Iterator<Item = (String, &Value)> {
        self.list().as_chunks::<2>().0.iter().map(|[key, value]| (key.to_string(), value))
    }

    /// The value after that key, in any case, in a list that alternates keys and values.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.list()
            .as_chunks::<2>()
            .0
            .iter()
            .find(|[k, _]| k.bytes().eq_ignore_ascii_case(key.as_bytes()))
            .map(|[_, value]| value)
    }
}

/// Readable text: words and strings as they are, with bytes that are not UTF-8 as `\xNN`.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Nil => f.write_str("NIL"),
            Value::Atom(bytes) | Value::Text(bytes) => f.write_str(&readable(bytes)),
            Value::List(list) => {
                f.write_str("(")?;
                for (i, value) in list.iter().enumerate() {
                    write!(f, "{}{value}", if i == 0 { "" } else { " " })?;
                }
                f.write_str(")")
            }
        }
    }
}

/// Bytes as text, with what is not UTF-8 as `\xNN`.
pub fn readable(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// A status response, tagged or not: `OK [APPENDUID 1 2] Completed`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `OK`, `NO`, `BAD`, `BYE` or `PREAUTH`.
    pub kind: String,
    /// What stands in brackets, without them.
    pub code: Option<String>,
    /// The text for humans.
    pub text: String,
}

impl Status {
    /// Whether it is an `OK`.
    pub fn is_ok(&self) -> bool {
        self.kind == "OK"
    }

    /// The rest of the code, if it begins with this word.
    pub fn code(&self, word: &str) -> Option<&str> {
        let code = self.code.as_deref()?;
        let (first, rest) = code.split_once(' ').unwrap_or((code, ""));
        first.eq_ignore_ascii_case(word).then_some(rest)
    }

    fn parse(line: &[u8]) -> Option<Status> {
        let line = readable(line);
        let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let kind = kind.to_ascii_uppercase();
        if !["OK", "NO", "BAD", "BYE", "PREAUTH"].contains(&kind.as_str()) {
            return None;
        }
        let coded = rest.strip_prefix('[').and_then(|r| r.split_once(']'));
        let (code, text) = match coded {
            Some((code, text)) => (Some(code.to_owned()), text.trim_start().to_owned()),
            None => (None, rest.to_owned()),
        };
        Some(Status { kind, code, text })
    }
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(code) = &self.code {
            write!(f, " [{code}]")?;
        }
        write!(f, " {}", self.text)
    }
}

/// An untagged response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Untagged {
    /// `* OK ...`, `* NO ...`, `* BYE ...`
    Status(Status),
    /// Anything else, such as `* LIST ...` or `* 3 FETCH (...)`.
    Data(Vec<Value>),
}

/// Everything that a server answers to one command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// The untagged data, in order.
    pub data: Vec<Vec<Value>>,
    /// The untagged status responses, in order.
    pub notes: Vec<Status>,
    /// The tagged answer.
    pub tagged: Status,
}

impl Reply {
    /// The data responses that begin with this word.
    pub fn of<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a [Value]> {
        self.data
            .iter()
            .filter(move |values| values.first().is_some_and(|first| first.is(word)))
            .map(Vec::as_slice)
    }

    /// The data responses of the form `* number WORD ...`.
    pub fn numbered<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (u64, &'a [Value])> {
        self.data.iter().filter_map(move |values| match values.as_slice() {
            [number, second, ..] if second.is(word) => Some((number.number()?, &values[2..])),
            _ => None,
        })
    }

    /// The code with this first word among the untagged notes.
    pub fn note(&self, word: &str) -> Option<&str> {
        self.notes.iter().find_map(|status| status.code(word))
    }
}

/// The server answered NO or BAD: the command had no effect, the session lives on.
#[derive(Clone, Debug)]
pub struct Refused {
    /// The beginning of the command.
    pub command: String,
    /// The server's answer.
    pub status: Status,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.command, self.status)
    }
}

impl std::error::Error for Refused {}

/// One message for [`Imap::append`].
#[derive(Clone, Debug, Default)]
pub struct NewMessage {
    /// Flags and keywords.
    pub flags: Vec<String>,
    /// INTERNALDATE, in IMAP's format; the server's clock decides if there is none.
    pub date: Option<String>,
    /// The message.
    pub bytes: Vec<u8>,
}

/// An IMAP session.
pub struct Imap {
    reader: BufReader<TcpStream>,
    commands: u32,
    /// The server's greeting.
    pub greeting: Status,
    /// The capabilities after login, in upper case.
    pub capabilities: Vec<String>,
}

impl Imap {
    /// Connects to port 143 and reads the greeting; later answers may take ten minutes.
    pub fn connect(ip: &str, patience: Duration) -> Result<Imap> {
        let stream = crate::net::connect(ip, 143, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut imap = Imap {
            reader: BufReader::with_capacity(1 << 18, stream),
            commands: 0,
            greeting: Status::default(),
            capabilities: Vec::new(),
        };
        let line = read_response(&mut imap.reader)?;
        let [Piece::Line(line)] = line.as_slice() else {
            bail!("a greeting with a literal");
        };
        imap.greeting = line
            .strip_prefix(b"* ")
            .and_then(Status::parse)
            .ok_or_else(|| anyhow!("no greeting but {}", readable(line)))?;
        if !imap.greeting.is_ok() {
            bail!("turned away: {}", imap.greeting);
        }
        imap.set_patience(Duration::from_secs(600))?;
        Ok(imap)
    }

    /// How long any one answer may take.
    pub fn set_patience(&mut self, patience: Duration) -> Result<()> {
        let stream = self.reader.get_ref();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(())
    }

    /// Whether the server has neither closed the connection nor said BYE while nobody listened.
    pub fn is_alive(&self) -> bool {
        let stream = self.reader.get_ref();
        let mut waiting = [0; 5];
        if stream.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = stream.peek(&mut waiting);
        if stream.set_nonblocking(false).is_err() {
            return false;
        }
        match peeked {
            Ok(count) => count > 0 && waiting != *b"* BYE",
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }

    /// Logs in by AUTHENTICATE PLAIN.
    pub fn login(&mut self, user: &str, password: &str) -> Result<()> {
        self.login_as("", user, password)
    }

    /// Logs in as `user` who acts as `authorized`.
    pub fn login_as(&mut self, authorized: &str, user: &str, password: &str) -> Result<()> {
        let token = STANDARD.encode(format!("{authorized}\0{user}\0{password}"));
        self.command(format!("AUTHENTICATE PLAIN {token}"))
            .with_context(|| format!("logging in as {user}"))?;
        let reply = self.command("CAPABILITY")?;
        self.capabilities = reply
            .of("CAPABILITY")
            .flat_map(|values| &values[1..])
            .map(|value| value.to_string().to_ascii_uppercase())
            .collect();
        Ok(())
    }

    /// Whether a capability begins with this.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|c| c.starts_with(capability))
    }

    /// Sends a command, which must succeed; a NO or BAD becomes the error [`Refused`].
    pub fn command(&mut self, command: impl AsRef<[u8]>) -> Result<Reply> {
        let reply = self.attempt(command.as_ref())?;
        refuse(command.as_ref(), reply)
    }

    /// Sends a command, which may fail; only a broken connection is an error.
    pub fn attempt(&mut self, command: impl AsRef<[u8]>) -> Result<Reply> {
        let mut reply = Reply::default();
        let tagged = self.stream(command, |untagged| {
            match untagged {
                Untagged::Status(status) => reply.notes.push(status),
                Untagged::Data(values) => reply.data.push(values),
            }
            Ok(())
        })?;
        reply.tagged = tagged;
        Ok(reply)
    }

    /// Sends a command and hands over every untagged response as it comes; returns the tagged one.
    pub fn stream(
        &mut self,
        command: impl AsRef<[u8]>,
        mut each: impl FnMut(Untagged) -> Result<()>,
    ) -> Result<Status> {
        self.commands += 1;
        let tag = format!("T{} ", self.commands);
        let mut line = Vec::with_capacity(command.as_ref().len() + 16);
        line.extend_from_slice(tag.as_bytes());
        line.extend_from_slice(command.as_ref());
        line.extend_from_slice(b"\r\n");
        self.reader.get_mut().write_all(&line).context("sending")?;
        loop {
            let pieces = read_response(&mut self.reader)?;
            let Some(Piece::Line(first)) = pieces.first() else {
                bail!("a response that begins with a literal");
            };
            if let Some(rest) = first.strip_prefix(tag.as_bytes()) {
                return Status::parse(rest)
                    .ok_or_else(|| anyhow!("strange answer {}", readable(first)));
            }
            match first.strip_prefix(b"* ") {
                Some(rest) => match Status::parse(rest) {
                    Some(status) => each(Untagged::Status(status))?,
                    None => each(Untagged::Data(parse(&pieces)))?,
                },
                None => bail!("unexpected {}", readable(first)),
            }
        }
    }

    /// Appends messages by one command (MULTIAPPEND if several); returns their UIDs.
    pub fn append(&mut self, mailbox: &str, messages: &[NewMessage]) -> Result<Vec<u32>> {
        let mut command = [b"APPEND ".as_slice(), &quote(mailbox)].concat();
        for message in messages {
            command.extend_from_slice(format!(" ({})", message.flags.join(" ")).as_bytes());
            if let Some(date) = &message.date {
                command.extend_from_slice(format!(" \"{date}\"").as_bytes());
            }
            command.extend_from_slice(format!(" {{{}+}}\r\n", message.bytes.len()).as_bytes());
            command.extend_from_slice(&message.bytes);
        }
        let reply = self.command(&command)?;
        let uids = reply
            .tagged
            .code("APPENDUID")
            .and_then(|code| code.split_once(' '))
            .map_or("", |(_, uids)| uids);
        Ok(expand(uids))
    }

    /// Says goodbye; what the server answers does not matter.
    pub fn logout(mut self) {
        let _ = self.attempt("LOGOUT");
    }
}

/// Turns a NO or BAD into the error [`Refused`].
fn refuse(command: &[u8], reply: Reply) -> Result<Reply> {
    if reply.tagged.is_ok() {
        return Ok(reply);
    }
    let end = command.len().min(120);
    bail!(Refused {
        command: readable(&command[..end]).replace("\r\n", "\u{21b5}"),
        status: reply.tagged,
    })
}

/// The numbers of a set such as `3,5:7`; both ends must be given.
pub fn expand(set: &str) -> Vec<u32> {
    let mut numbers = Vec::new();
    for range in set.split(',') {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

/// A string as an argument: quoted, or a non-synchronizing literal where quotes cannot hold it.
pub fn quote(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    let plain = |b: &u8| (32..127).contains(b) && !b"\\\"".contains(b);
    if text.iter().all(plain) {
        [b"\"", text, b"\""].concat()
    } else {
        [format!("{{{}+}}\r\n", text.len()).as_bytes(), text].concat()
    }
}

/// A command of several parts, joined by spaces.
pub fn words(parts: &[&[u8]]) -> Vec<u8> {
    parts.join(&b' ')
}

/// A mailbox name in IMAP's modified UTF-7.
pub fn mutf7(name: &str) -> String {
    let mut out = String::new();
    let mut run = Vec::new();
    let flush = |run: &mut Vec<u8>, out: &mut String| {
        if !run.is_empty() {
            out.push('&');
            out.push_str(&STANDARD_NO_PAD.encode(&*run).replace('/', ","));
            out.push('-');
            run.clear();
        }
    };
    for c in name.chars() {
        if (' '..='~').contains(&c) {
            flush(&mut run, &mut out);
            out.push(c);
            if c == '&' {
                out.push('-');
            }
        } else {
            let mut units = [0; 2];
            run.extend(c.encode_utf16(&mut units).iter().flat_map(|u| u.to_be_bytes()));
        }
    }
    flush(&mut run, &mut out);
    out
}

/// The name that modified UTF-7 stands for; one that is malformed stays as it is.
pub fn unmutf7(name: &str) -> String {
    decode_mutf7(name).unwrap_or_else(|| name.to_owned())
}

fn decode_mutf7(mut rest: &str) -> Option<String> {
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let (run, after) = after.split_once('-')?;
        rest = after;
        if run.is_empty() {
            out.push('&');
            continue;
        }
        let bytes = STANDARD_NO_PAD.decode(run.replace(',', "/")).ok()?;
        let (pairs, []) = bytes.as_chunks::<2>() else {
            return None;
        };
        let units: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
        out.push_str(&String::from_utf16(&units).ok()?);
    }
    out.push_str(rest);
    Some(out)
}

/// A part of a response as it comes over the wire.
#[derive(Debug)]
enum Piece {
    Line(Vec<u8>),
    Literal(Vec<u8>),
}

/// Reads one response: lines, with a literal between each two.
fn read_response(reader: &mut impl BufRead) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).context("receiving")?;
        if !line.ends_with(b"\n") {
            bail!("the server closed the connection");
        }
        line.pop();
        if line.ends_with(b"\r") {
            line.pop();
        }
        let Some((end, length)) = literal_announced(&line) else {
            pieces.push(Piece::Line(line));
            return Ok(pieces);
        };
        line.truncate(end);
        pieces.push(Piece::Line(line));
        let mut literal = Vec::new();
        let read = reader.take(length).read_to_end(&mut literal).context("receiving")?;
        if read as u64 != length {
            bail!("the server closed the connection within a literal");
        }
        pieces.push(Piece::Literal(literal));
    }
}

/// Where the announcement of a literal (`{12}` or `~{12}`) at a line's end begins, and its length.
fn literal_announced(line: &[u8]) -> Option<(usize, u64)> {
    let inside = line.strip_suffix(b"}")?;
    let open = inside.iter().rposition(|b| *b == b'{')?;
    let length = std::str::from_utf8(&inside[open + 1..]).ok()?.parse().ok()?;
    let end = if inside[..open].ends_with(b"~") { open - 1 } else { open };
    Some((end, length))
}

/// The values of an untagged response, without the `* `.
fn parse(pieces: &[Piece]) -> Vec<Value> {
    let mut stack = vec![Vec::new()];
    for (i, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Literal(literal) => add(&mut stack, Value::Text(literal.clone())),
            Piece::Line(line) => {
                let line = if i == 0 { line.strip_prefix(b"* ").unwrap_or(line) } else { line };
                parse_line(line, &mut stack);
            }
        }
    }
    while stack.len() > 1 {
        close(&mut stack);
    }
    stack.pop().unwrap_or_default()
}

fn add(stack: &mut [Vec<Value>], value: Value) {
    if let Some(innermost) = stack.last_mut() {
        innermost.push(value);
    }
}

fn close(stack: &mut Vec<Vec<Value>>) {
    if stack.len() > 1
        && let Some(list) = stack.pop()
    {
        add(stack, Value::List(list));
    }
}

fn parse_line(line: &[u8], stack: &mut Vec<Vec<Value>>) {
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        at += 1;
        match byte {
            b' ' => {}
            b'(' => stack.push(Vec::new()),
            b')' => close(stack),
            b'"' => {
                let mut text = Vec::new();
                while let Some(&byte) = line.get(at) {
                    at += 1;
                    match byte {
                        b'"' => break,
                        b'\\' => {
                            text.extend(line.get(at));
                            at += 1;
                        }
                        _ => text.push(byte),
                    }
                }
                add(stack, Value::Text(text));
            }
            _ => {
                // An atom; what stands in brackets belongs to it, as in BODY[HEADER.FIELDS (TO)].
                let start = at - 1;
                let mut brackets = usize::from(byte == b'[');
                while let Some(&byte) = line.get(at) {
                    match byte {
                        b'[' => brackets += 1,
                        b']' => brackets = brackets.saturating_sub(1),
                        b' ' | b'(' | b')' | b'"' if brackets == 0 => break,
                        _ => {}
                    }
                    at += 1;
                }
                let atom = &line[start..at];
                let nil = atom.eq_ignore_ascii_case(b"NIL");
                add(stack, if nil { Value::Nil } else { Value::Atom(atom.to_vec()) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(wire: &[u8]) -> Vec<Value> {
        let mut reader = wire;
        parse(&read_response(&mut reader).expect("a whole response"))
    }

    fn atom(text: &str) -> Value {
        Value::Atom(text.into())
    }

    #[test]
    fn literals_are_part_of_the_tree() {
        let values =
            parsed(b"* 1 FETCH (UID 7 BODY[] {6}\r\na)\r\n\"b FLAGS (\\Seen) X ~{2}\r\n\0\0)\r\n");
        assert_eq!(values[..2], [atom("1"), atom("FETCH")]);
        let fetched = &values[2];
        assert_eq!(fetched.get("uid").and_then(Value::number), Some(7));
        assert_eq!(fetched.get("BODY[]"), Some(&Value::Text(b"a)\r\n\"b".to_vec())));
        assert_eq!(fetched.get("FLAGS"), Some(&Value::List(vec![atom("\\Seen")])));
        assert_eq!(fetched.get("X"), Some(&Value::Text(vec![0, 0])));
    }

    #[test]
    fn brackets_belong_to_their_atom() {
        let values = parsed(b"* 1 FETCH (BODY[HEADER.FIELDS (A \"B\")] NIL Z \"q\\\"\\\\\")\r\n");
        assert_eq!(values[2].list()[0], atom("BODY[HEADER.FIELDS (A \"B\")]"));
        assert_eq!(values[2].list()[1], Value::Nil);
        assert_eq!(values[2].list()[3], Value::Text(b"q\"\\".to_vec()));
    }

    #[test]
    fn a_quoted_nil_is_a_string() {
        assert_eq!(parsed(b"* X \"NIL\" nil\r\n")[1..], [Value::Text(b"NIL".to_vec()), Value::Nil]);
    }

    #[test]
    fn statuses_have_codes() {
        let status = Status::parse(b"OK [APPENDUID 12 3:5,9] Completed").expect("a status");
        assert_eq!(status.code("appenduid"), Some("12 3:5,9"));
        assert_eq!(expand("3:5,9"), [3, 4, 5, 9]);
        assert_eq!(status.text, "Completed");
        assert_eq!(Status::parse(b"LIST () \".\" a"), None);
    }

    #[test]
    fn a_cut_response_is_an_error() {
        for wire in [&b"* OK"[..], b"* X {5}\r\nab", b""] {
            let mut reader = wire;
            assert!(read_response(&mut reader).is_err());
        }
    }

    #[test]
    fn names_survive_modified_utf7() {
        for (name, wire) in [
            ("plain", "plain"),
            ("A&B", "A&-B"),
            ("Größe", "Gr&APYA3w-e"),
            ("日本語", "&ZeVnLIqe-"),
            ("emoji 📬", "emoji &2D3c7A-"),
        ] {
            assert_eq!(mutf7(name), wire);
            assert_eq!(unmutf7(wire), name);
        }
        assert_eq!(unmutf7("broken &x"), "broken &x");
    }

    #[test]
    fn quoting_falls_back_to_literals() {
        assert_eq!(quote("a b"), b"\"a b\"");
        assert_eq!(quote("a\"b"), b"{3+}\r\na\"b");
    }
}
