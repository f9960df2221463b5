//! As much of an IMAP client as this program needs: it sends a command and hears
//! what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

/// Most bytes of one response that are kept.
const MAX_RESPONSE: usize = 1 << 20;

/// Most commands that are sent before their answers are read: what both sides send
/// fits into their buffers.
const AT_ONCE: usize = 50;

/// The connection broke, or what came is not IMAP.
#[derive(Debug, thiserror::Error)]
pub enum ImapError {
    /// The connection.
    #[error("the session with this server's imapd broke: {0}")]
    Io(#[from] io::Error),
    /// What came.
    #[error("this server's imapd said {0}")]
    Strange(String),
    /// A disk, a database or the like fails.
    #[error("this server's imapd could not do what it should: {0}")]
    Trouble(String),
}

/// What a refusal says that is about the server and not about what was asked.
const TROUBLE: [&str; 6] = ["I/O", "nternal", "atabase", "locked", "[UNAVAILABLE]", "[INUSE]"];

fn line_of(verb: &str, arguments: &[&[u8]]) -> Vec<u8> {
    let mut line = verb.as_bytes().to_vec();
    for argument in arguments {
        line.push(b' ');
        line.extend_from_slice(&quoted(argument));
    }
    line
}

/// A message to be appended.
#[derive(Debug, Clone)]
pub struct Letter<'a> {
    /// Its flags.
    pub flags: Vec<&'a [u8]>,
    /// Its INTERNALDATE, in IMAP's form.
    pub date: &'a str,
    /// Its bytes.
    pub message: &'a [u8],
}

impl Letter<'_> {
    /// What stands before the bytes.
    fn head(&self) -> Vec<u8> {
        let flags = self.flags.join(&b' ');
        [b" (", &flags[..], b") \"", self.date.as_bytes(), b"\" "].concat()
    }
}

/// What came of a command.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it was done.
    pub ok: bool,
    /// What the server said, with the code, as it can be shown.
    pub text: String,
    /// The response code of one that was done, whole.
    code: String,
    /// The new MODSEQs that it told of, by UID.
    pub modseqs: BTreeMap<u32, u64>,
}

/// A session.
pub struct Imap {
    stream: BufReader<UnixStream>,
    commands: u32,
}

impl Imap {
    /// A session over a connection.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), commands: 0 }
    }

    /// Reads the server's first words.
    pub fn greeting(&mut self) -> Result<(), ImapError> {
        let line = self.response()?;
        match line.starts_with(b"* OK") {
            true => Ok(()),
            false => Err(ImapError::Strange(readable(&line))),
        }
    }

    /// Sends a command whose arguments are strings.
    pub fn command(&mut self, verb: &str, arguments: &[&[u8]]) -> Result<Answer, ImapError> {
        self.raw(&line_of(verb, arguments), b"")
    }

    /// Sends a command whose arguments are strings, and waits for nothing.
    pub fn begin(&mut self, verb: &str, arguments: &[&[u8]]) -> Result<(), ImapError> {
        let mut line = b"x ".to_vec();
        line.extend_from_slice(&line_of(verb, arguments));
        line.extend_from_slice(b"\r\n");
        Ok(self.stream.get_mut().write_all(&line)?)
    }

    /// Sends a command as it is, in two pieces.
    pub fn raw(&mut self, command: &[u8], rest: &[u8]) -> Result<Answer, ImapError> {
        let tag = self.send(command, rest)?;
        self.answer(&tag)
    }

    /// Sends commands as they are, and only then waits for what comes of them.
    pub fn all(&mut self, commands: &[Vec<u8>]) -> Result<Vec<Answer>, ImapError> {
        let mut answers = Vec::new();
        for some in commands.chunks(AT_ONCE) {
            let tags: Result<Vec<_>, _> = some.iter().map(|c| self.send(c, b"")).collect();
            for tag in tags? {
                answers.push(self.answer(&tag)?);
            }
        }
        Ok(answers)
    }

    fn send(&mut self, command: &[u8], rest: &[u8]) -> Result<String, ImapError> {
        self.commands += 1;
        let tag = format!("m{} ", self.commands);
        self.stream.get_mut().write_all(&[tag.as_bytes(), command].concat())?;
        self.stream.get_mut().write_all(rest)?;
        self.stream.get_mut().write_all(b"\r\n")?;
        Ok(tag)
    }

    fn answer(&mut self, tag: &str) -> Result<Answer, ImapError> {
        let mut answer = Answer::default();
        loop {
            let line = self.response()?;
            if let Some(rest) = line.strip_prefix(tag.as_bytes()) {
                answer.ok = rest.starts_with(b"OK");
                answer.text = readable(rest);
                answer.code = code(rest).ok_or_else(|| ImapError::Strange(readable(rest)))?;
                let trouble = TROUBLE.iter().any(|word| answer.text.contains(word));
                return match trouble && !answer.ok {
                    true => Err(ImapError::Trouble(answer.text)),
                    false => Ok(answer),
                };
            }
            if line.starts_with(b"* BYE") {
                return Err(ImapError::Strange(readable(&line)));
            }
            answer.modseqs.extend(modseq(&line));
        }
    }

    /// Appends a message. What was delivered may be no message to the strict eyes of
    /// APPEND: then its bytes go as one piece of a message, which nobody looks at
    /// (imap/imapd.c:catenate_text).
    pub fn append(&mut self, mailbox: &[u8], letter: &Letter<'_>) -> Result<Answer, ImapError> {
        let command = [b"APPEND ", &quoted(mailbox)[..], &letter.head()].concat();
        let literal = format!("{{{}+}}\r\n", letter.message.len());
        let answer = self.raw(&[&command, literal.as_bytes()].concat(), letter.message)?;
        if answer.ok {
            return Ok(answer);
        }
        let whole = [letter.message, b")"].concat();
        self.raw(&[&command, &b"CATENATE (TEXT "[..], literal.as_bytes()].concat(), &whole)
    }

    /// Appends messages by one command, which takes all of them or none. Where they are
    /// taken they get UIDs one after the other (imap/imapd.c:cmd_append).
    pub fn append_all(
        &mut self,
        mailbox: &[u8],
        letters: &[Letter<'_>],
    ) -> Result<Answer, ImapError> {
        let mut rest = Vec::new();
        for letter in letters {
            rest.extend(letter.head());
            rest.extend(format!("{{{}+}}\r\n", letter.message.len()).into_bytes());
            rest.extend_from_slice(letter.message);
        }
        self.raw(&[b"APPEND ", &quoted(mailbox)[..]].concat(), &rest)
    }

    /// Changes flags of messages: `sign` is `+` or `-`. Those whose MODSEQ is above
    /// `unchanged_since` are left as they are, and named by [`Answer::modified`].
    pub fn store(
        &mut self,
        uids: &[u32],
        unchanged_since: Option<u64>,
        sign: char,
        flags: &[&[u8]],
    ) -> Result<Answer, ImapError> {
        let condition = unchanged_since.map(|m| format!(" (UNCHANGEDSINCE {m})"));
        let condition = condition.unwrap_or_default();
        let head = format!("UID STORE {}{condition} {sign}FLAGS.SILENT (", set(uids));
        self.raw(&[head.as_bytes(), &flags.join(&b' '), b")"].concat(), b"")
    }

    /// Ends the session; the server sees that nobody is there any more.
    pub fn close(&mut self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Both);
    }

    /// One response: a line, with the literals in it.
    fn response(&mut self) -> Result<Vec<u8>, ImapError> {
        let mut response = Vec::new();
        loop {
            let room = (MAX_RESPONSE - response.len()) as u64;
            let read = (&mut self.stream).take(room).read_until(b'\n', &mut response)?;
            if read == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let Some(line) = response.strip_suffix(b"\n") else {
                return Err(ImapError::Strange(readable(&response)));
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            match literal(line) {
                None => return Ok(line.to_vec()),
                Some(length) if length < MAX_RESPONSE - response.len() => {
                    (&mut self.stream).take(length as u64).read_to_end(&mut response)?;
                }
                Some(_) => return Err(ImapError::Strange("a very long answer".into())),
            }
        }
    }
}

impl Answer {
    /// The UIDs that an APPEND was given, in the order of its messages; no more than
    /// `most`.
    pub fn appended(&self, most: usize) -> Vec<u32> {
        let set = self.code("APPENDUID").and_then(|code| code.split(' ').nth(1));
        uids(set.unwrap_or_default()).take(most).collect()
    }

    /// The messages that were copied, and the UIDs of the copies; no more than `most`.
    pub fn copied(&self, most: usize) -> BTreeMap<u32, u32> {
        let mut words = self.code("COPYUID").unwrap_or_default().split(' ').skip(1);
        let mut set = || uids(words.next().unwrap_or_default());
        set().zip(set()).take(most).collect()
    }

    /// The messages that a STORE left as they were, since they were changed.
    pub fn modified(&self) -> BTreeSet<u32> {
        uids(self.code("MODIFIED").unwrap_or_default()).take(1 << 20).collect()
    }

    fn code(&self, word: &str) -> Option<&str> {
        self.code.strip_prefix(word)?.strip_prefix(' ')
    }
}

/// The response code of an answer, empty if it has none; `None`: it has no end.
fn code(answer: &[u8]) -> Option<String> {
    let Some(rest) = answer.strip_prefix(b"OK [") else { return Some(String::new()) };
    let end = rest.iter().position(|b| *b == b']')?;
    Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
}

/// UIDs, ascending, as a set: runs are put together.
pub fn set(uids: &[u32]) -> String {
    let runs = crate::wire::manifest::runs(uids.iter().copied());
    let ranges = runs.as_chunks::<2>().0.iter().map(|[first, count]| match count {
        1 => first.to_string(),
        count => format!("{first}:{}", first + (count - 1)),
    });
    ranges.collect::<Vec<_>>().join(",")
}

/// The UIDs of a set, in its order.
fn uids(set: &str) -> impl Iterator<Item = u32> {
    let ranges = set.split(',').filter_map(|range| {
        let (first, last) = range.split_once(':').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    });
    ranges.flatten()
}

/// Whether this may stand among the flags of a command: what Cyrus takes for an atom
/// (lib/imparse.c:imparse_isnatom), which is more than what IMAP calls so.
pub fn is_flag(flag: &[u8]) -> bool {
    let system: [&[u8]; 5] = [b"\\Answered", b"\\Flagged", b"\\Deleted", b"\\Draft", b"\\Seen"];
    let atom = |b: &u8| b.is_ascii_graphic() && !b"(){%*\"\\".contains(b);
    let keyword = !flag.is_empty() && flag.len() < 1024 && flag.iter().all(atom);
    keyword || system.contains(&flag)
}

/// A time in seconds since 1970 as IMAP writes it; `None` beyond the year 9999.
pub fn internal_date(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.strftime("%d-%b-%Y %H:%M:%S +0000").to_string())
}

/// A string as an argument.
pub fn quoted(text: &[u8]) -> Vec<u8> {
    let plain = |b: &u8| (32..127).contains(b) && !b"\\\"".contains(b);
    match text.iter().all(plain) {
        true => [b"\"", text, b"\""].concat(),
        false => [format!("{{{}+}}\r\n", text.len()).as_bytes(), text].concat(),
    }
}

/// The length of the literal that a line announces at its end.
fn literal(line: &[u8]) -> Option<usize> {
    let rest = line.strip_suffix(b"}")?;
    let at = rest.iter().rposition(|b| *b == b'{')?;
    std::str::from_utf8(rest.get(at + 1..)?).ok()?.parse().ok()
}

/// UID and MODSEQ of a `* 1 FETCH (UID 7 MODSEQ (12))`.
fn modseq(line: &[u8]) -> Option<(u32, u64)> {
    let line = std::str::from_utf8(line).ok()?;
    let after = |word: &str| {
        let rest = line.split_once(word)?.1;
        rest.split(|c: char| !c.is_ascii_digit()).next()
    };
    line.split(' ').nth(2).filter(|word| *word == "FETCH")?;
    Some((after("UID ")?.parse().ok()?, after("MODSEQ (")?.parse().ok()?))
}

fn readable(bytes: &[u8]) -> String {
    crate::wire::printable(&String::from_utf8_lossy(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::strategy::Strategy;

    /// A session with a server that says `script` whatever it is told.
    fn hears(script: &[u8]) -> Imap {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(script).unwrap();
        theirs.shutdown(Shutdown::Write).unwrap();
        // Kept open for what we write.
        std::mem::forget(theirs);
        Imap::new(ours)
    }

    #[test]
    fn answers_are_understood() {
        let mut imap = hears(
            b"* OK hello\r\n\
              * 3 FETCH (FLAGS (\\Recent) UID 7 MODSEQ (12))\r\n\
              * METADATA a {5}\r\nm1 OK more\r\n\
              m1 OK [MODIFIED 1,4:6] Completed\r\n\
              m2 OK [APPENDUID 99 15:17,20] Completed\r\n\
              m3 NO Permission denied\r\n\
              m4 OK [COPYUID 99 15,17 31:32] Completed\r\n",
        );
        imap.greeting().unwrap();
        let stored = imap.store(&[1, 4, 5, 6, 7], Some(9), '+', &[b"\\Seen"]).unwrap();
        assert_eq!(stored.modseqs, BTreeMap::from([(7, 12)]));
        assert_eq!(stored.modified(), BTreeSet::from([1, 4, 5, 6]));
        let appended = imap.command("APPEND", &[]).unwrap();
        assert_eq!(
            (appended.appended(9), appended.appended(2)),
            (vec![15, 16, 17, 20], vec![15, 16])
        );
        let refused = imap.command("SELECT", &[b"x"]).unwrap();
        assert_eq!((refused.ok, refused.text.as_str()), (false, "NO Permission denied"));
        let copied = imap.raw(b"UID COPY 15:17 a", b"").unwrap().copied(9);
        assert_eq!(copied, BTreeMap::from([(15, 31), (17, 32)]));
        assert!(refused.appended(9).is_empty() && refused.copied(9).is_empty());
        assert!(matches!(imap.raw(b"NOOP", b""), Err(ImapError::Io(_))));
        let mut imap = hears(b"m1 OK a\r\nm2 NO b\r\n");
        let answers = imap.all(&[b"NOOP".to_vec(), b"NOOP".to_vec()]).unwrap();
        assert_eq!(answers.iter().map(|a| a.ok).collect::<Vec<_>>(), [true, false]);
        let mut imap = hears(b"m1 NO System I/O error\r\n");
        assert!(matches!(imap.raw(b"NOOP", b""), Err(ImapError::Trouble(_))));
    }

    #[test]
    fn dates_are_written_as_imap_has_them() {
        assert_eq!(internal_date(978_307_200).unwrap(), "01-Jan-2001 00:00:00 +0000");
        assert_eq!(internal_date(1_795_458_714).unwrap(), "23-Nov-2026 18:31:54 +0000");
        assert_eq!(internal_date(i64::MAX), None);
    }

    #[test]
    fn nothing_endless_is_read() {
        let mut imap = hears(&vec![b'x'; MAX_RESPONSE + 10][..100_000]);
        assert!(imap.greeting().is_err());
        assert!(hears(b"* x {999999999999}\r\n").greeting().is_err());
        assert!(hears(b"* OK {18446744073709551615}\r\n").greeting().is_err());
    }

    #[test]
    fn a_connection_that_ends_within_an_answer_is_broken() {
        for said in [&b""[..], b"* x", b"* x {5}\r\n", b"* x {0}\r\n", b"* x {5}\r\nab\n"] {
            assert!(matches!(
                hears(said).greeting(),
                Err(ImapError::Io(_) | ImapError::Strange(_))
            ));
        }
    }

    #[test]
    fn a_long_code_is_whole_and_one_without_an_end_is_none() {
        let uids: Vec<String> = (1..=2000u32).map(|n| (2 * n).to_string()).collect();
        let said = format!("m1 OK [MODIFIED {}] Completed\r\n", uids.join(","));
        let answer = hears(said.as_bytes()).raw(b"NOOP", b"").unwrap();
        assert_eq!((answer.modified().len(), answer.text.len()), (2000, 4000));
        let endless = hears(b"m1 OK [MODIFIED 1,2 Completed\r\n").raw(b"NOOP", b"");
        assert!(matches!(endless, Err(ImapError::Strange(_))));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_said_is_an_answer_or_an_error(
            said in proptest::collection::vec(
                proptest::prop_oneof![
                    proptest::prelude::any::<Vec<u8>>(),
                    "[*m1 OKNBYE{}0-9\\[\\]:,A-Z()]{0,40}(\r\n)?".prop_map(String::into_bytes),
                ],
                0..6,
            ),
        ) {
            if let Ok(answer) = hears(&said.concat()).raw(b"NOOP", b"") {
                let _ = (answer.appended(9), answer.copied(9), answer.modified());
            }
        }
    }

    #[test]
    fn what_is_sent_cannot_be_misread() {
        assert_eq!(quoted(b"user.a b"), b"\"user.a b\"");
        assert_eq!(quoted(b"a\"\r\nb"), b"{5+}\r\na\"\r\nb");
        assert_eq!(set(&[1, 2, 3, 9]), "1:3,9");
        assert!(
            is_flag(b"\\Seen") && is_flag(b"$Label1") && is_flag(b"[x]") && is_flag(&[b'y'; 1023])
        );
        assert!(!is_flag(&[b'y'; 1024]));
        for bad in [&b""[..], b"a b", b"a)", b"\\Recent", b"a\r\nb", b"\xff"] {
            assert!(!is_flag(bad), "{bad:?}");
        }
    }
}
