//! The lines of MUPDATE: RFC 3656, and what Cyrus makes of it (imap/mupdate.c). Pure.
//!
//! A command is `tag word string...`, an answer the same, or `* word string...`. A
//! string is quoted, or a literal `{n+}` or `{n}`, CRLF and n bytes. The text of OK, NO,
//! BAD and BYE is not always quoted.

use crate::cyrus::mboxlist::MailboxEntry;

/// Longest string that is taken: an ACL may be long.
const MAX_STRING: usize = 1 << 20;

/// Longest answer.
const MAX_ANSWER: usize = 4 << 20;

/// Most strings of a line.
const MAX_STRINGS: usize = 64;

/// What the master says of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its internal name.
    pub name: Vec<u8>,
    /// `server!partition`.
    pub location: Vec<u8>,
    /// Its ACL; none: it is reserved, and nobody can reach it.
    pub acl: Option<Vec<u8>>,
}

impl Entry {
    /// What `server` says of a mailbox that it has.
    pub fn active(server: &str, entry: &MailboxEntry) -> Self {
        let partition = entry.partition.as_ref().map(|p| p.as_str()).unwrap_or_default();
        Self {
            name: entry.name.as_bytes().to_vec(),
            location: format!("{server}!{partition}").into_bytes(),
            acl: Some(entry.acl.to_text()),
        }
    }

    /// The server that has it.
    pub fn server(&self) -> String {
        let server = self.location.split(|c| *c == b'!').next().unwrap_or_default();
        String::from_utf8_lossy(server).into_owned()
    }

    /// The command that makes the master say this of a mailbox, whatever it said before.
    pub fn activate(&self, tag: &str) -> Vec<u8> {
        let acl = self.acl.as_deref().unwrap_or_default();
        command(tag, "ACTIVATE", &[&self.name, &self.location, acl])
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The command's tag, or `*`.
    pub tag: Vec<u8>,
    /// `OK`, `NO`, `MAILBOX` and so on, in capitals.
    pub word: String,
    /// What follows.
    pub strings: Vec<Vec<u8>>,
}

/// Why bytes are no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is not `tag word strings`.
    #[error("a line that is not MUPDATE")]
    Syntax,
    /// More than any master says.
    #[error("a line that is too long")]
    TooLong,
}

impl Line {
    /// The mailbox that it tells of, if it does.
    pub fn entry(&self) -> Option<Entry> {
        let mut strings = self.strings.iter().cloned();
        let (name, location) = (strings.next()?, strings.next()?);
        match self.word.as_str() {
            "MAILBOX" => Some(Entry { name, location, acl: Some(strings.next()?) }),
            "RESERVE" => Some(Entry { name, location, acl: None }),
            _ => None,
        }
    }

    /// Its strings as text, for people.
    pub fn text(&self) -> String {
        let strings = self.strings.iter().map(|s| String::from_utf8_lossy(s));
        crate::wire::printable(&strings.collect::<Vec<_>>().join(" "))
    }
}

/// A command. Strings are literals that need no answer, as Cyrus's own are.
pub fn command(tag: &str, word: &str, strings: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("{tag} {word}").into_bytes();
    for string in strings {
        bytes.extend_from_slice(format!(" {{{}+}}\r\n", string.len()).as_bytes());
        bytes.extend_from_slice(string);
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// The first answer in `bytes` and how long it is; none: it has not come as a whole yet.
pub fn parse(bytes: &[u8]) -> Result<Option<(Line, usize)>, LineError> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.line() {
        Ok(line) => Ok(Some((line, reader.at))),
        Err(Stop::NotYet) if bytes.len() > MAX_ANSWER => Err(LineError::TooLong),
        Err(Stop::NotYet) => Ok(None),
        Err(Stop::Error(error)) => Err(error),
    }
}

enum Stop {
    NotYet,
    Error(LineError),
}

const SYNTAX: Stop = Stop::Error(LineError::Syntax);

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn line(&mut self) -> Result<Line, Stop> {
        let tag = self.word()?;
        self.expect(b' ')?;
        let word = String::from_utf8_lossy(&self.word()?).to_ascii_uppercase();
        let mut strings = Vec::new();
        while self.peek()? == b' ' {
            self.at += 1;
            if strings.len() == MAX_STRINGS {
                return Err(Stop::Error(LineError::TooLong));
            }
            strings.push(match self.peek()? {
                b'"' => self.quoted()?,
                b'{' => self.literal()?,
                _ => self.rest()?,
            });
        }
        self.end()?;
        Ok(Line { tag, word, strings })
    }

    fn peek(&self) -> Result<u8, Stop> {
        self.bytes.get(self.at).copied().ok_or(Stop::NotYet)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Stop> {
        match self.peek()? {
            found if found == byte => {
                self.at += 1;
                Ok(())
            }
            _ => Err(SYNTAX),
        }
    }

    fn end(&mut self) -> Result<(), Stop> {
        if self.peek()? == b'\r' {
            self.at += 1;
        }
        self.expect(b'\n')
    }

    /// Bytes up to a blank or the line's end.
    fn word(&mut self) -> Result<Vec<u8>, Stop> {
        let from = self.at;
        while self.peek()?.is_ascii_graphic() {
            self.at += 1;
        }
        match self.at - from {
            0 => Err(SYNTAX),
            1..=200 => Ok(self.bytes[from..self.at].to_vec()),
            _ => Err(SYNTAX),
        }
    }

    /// Text that is not quoted, up to the line's end.
    fn rest(&mut self) -> Result<Vec<u8>, Stop> {
        let from = self.at;
        while !matches!(self.peek()?, b'\r' | b'\n') {
            self.at += 1;
        }
        Ok(self.bytes[from..self.at].to_vec())
    }

    fn quoted(&mut self) -> Result<Vec<u8>, Stop> {
        self.at += 1;
        let mut string = Vec::new();
        loop {
            match self.peek()? {
                b'"' => break,
                b'\r' | b'\n' => return Err(SYNTAX),
                b'\\' => {
                    self.at += 1;
                    string.push(self.peek()?);
                }
                byte => string.push(byte),
            }
            if string.len() > MAX_STRING {
                return Err(Stop::Error(LineError::TooLong));
            }
            self.at += 1;
        }
        self.at += 1;
        Ok(string)
    }

    fn literal(&mut self) -> Result<Vec<u8>, Stop> {
        self.at += 1;
        let mut length = 0_usize;
        let mut digits = 0;
        while self.peek()?.is_ascii_digit() {
            length = length * 10 + usize::from(self.peek()? - b'0');
            digits += 1;
            if length > MAX_STRING {
                return Err(Stop::Error(LineError::TooLong));
            }
            self.at += 1;
        }
        if digits == 0 {
            return Err(SYNTAX);
        }
        if self.peek()? == b'+' {
            self.at += 1;
        }
        self.expect(b'}')?;
        self.end()?;
        let string = self.bytes.get(self.at..self.at + length).ok_or(Stop::NotYet)?;
        self.at += length;
        Ok(string.to_vec())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn line(tag: &str, word: &str, strings: &[&str]) -> Line {
        let strings = strings.iter().map(|s| s.as_bytes().to_vec()).collect();
        Line { tag: tag.into(), word: word.into(), strings }
    }

    /// As a master of 3.6.1 sent them.
    const SAID: &[u8] = b"* AUTH \"PLAIN\"\r\n* STARTTLS\r\n* COMPRESS \"DEFLATE\"\r\n\
        * OK MUPDATE \"mup\" \"Cyrus IMAP\" \"3.6.1\" \"(master)\"\r\n\
        X1 MAILBOX {10+}\r\nuser.alice {11+}\r\nbe1!default {21+}\r\nalice\tlrswipkxtecdan\t\r\n\
        X2 RESERVE {10+}\r\nuser.alice {11+}\r\nbe1!default\r\n\
        X3 OK \"Search completed\"\r\nX4 NO Client canceled authentication\r\n";

    fn all(mut bytes: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        while let Some((line, length)) = parse(bytes).unwrap() {
            lines.push(line);
            bytes = &bytes[length..];
        }
        assert!(bytes.is_empty());
        lines
    }

    #[test]
    fn what_a_master_says() {
        let lines = all(SAID);
        assert_eq!(lines[0], line("*", "AUTH", &["PLAIN"]));
        assert_eq!(lines[1], line("*", "STARTTLS", &[]));
        assert_eq!(lines[3].strings.len(), 1);
        assert_eq!(lines[3].strings[0], b"MUPDATE \"mup\" \"Cyrus IMAP\" \"3.6.1\" \"(master)\"");
        let entry = lines[4].entry().unwrap();
        assert_eq!(
            (entry.server().as_str(), entry.acl.as_deref()),
            ("be1", Some(&b"alice\tlrswipkxtecdan\t"[..]))
        );
        assert_eq!(lines[5].entry().unwrap().acl, None);
        assert_eq!(lines[6], line("X3", "OK", &["Search completed"]));
        assert_eq!(lines[7], line("X4", "NO", &["Client canceled authentication"]));
        assert_eq!(lines[6].entry(), None);
    }

    #[test]
    fn an_answer_that_has_not_come_as_a_whole_is_waited_for() {
        let whole = all(SAID);
        for cut in 0..SAID.len() {
            let (mut bytes, mut lines) = (&SAID[..cut], Vec::new());
            while let Some((line, length)) = parse(bytes).unwrap() {
                lines.push(line);
                bytes = &bytes[length..];
            }
            assert_eq!(lines, whole[..lines.len()], "cut at {cut}");
        }
    }

    #[test]
    fn what_is_said_of_a_mailbox_is_what_is_read_back() {
        let entry = Entry {
            name: b"user.\"odd\"\\ name".to_vec(),
            location: b"be2!p2".to_vec(),
            acl: Some(b"x\tlrs\tanyone\tp\t".to_vec()),
        };
        let sent = entry.activate("A7");
        assert!(sent.starts_with(b"A7 ACTIVATE {"));
        assert_eq!(parse(&sent).unwrap().unwrap().0.strings[1], b"be2!p2");
        let said =
            command("A7", "MAILBOX", &[&entry.name, &entry.location, b"x\tlrs\tanyone\tp\t"]);
        let (line, length) = parse(&said).unwrap().unwrap();
        assert_eq!((line.entry(), length), (Some(entry), said.len()));
    }

    #[test]
    fn nonsense_is_an_error_and_nothing_is_waited_for_without_end() {
        let bad: [&[u8]; 6] = [
            b"\r\n",
            b" OK\r\n",
            b"X1\r\n",
            b"X1 MAILBOX {x}\r\n",
            b"X1 MAILBOX {}\r\n",
            b"X1 OK \"a\r\n",
        ];
        for bytes in bad {
            assert_eq!(parse(bytes), Err(LineError::Syntax), "{bytes:?}");
        }
        assert_eq!(parse(b"X1 MAILBOX {99999999999999999999999}\r\n"), Err(LineError::TooLong));
        let endless = [b"X1 OK ".to_vec(), vec![b'a'; MAX_ANSWER]].concat();
        assert_eq!(parse(&endless), Err(LineError::TooLong));
        let many = [b"X1 MAILBOX".to_vec(), b" \"a\"".repeat(MAX_STRINGS + 1), b"\r\n".to_vec()];
        assert_eq!(parse(&many.concat()), Err(LineError::TooLong));
    }
}
