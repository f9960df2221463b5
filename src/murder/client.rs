//! A connection to the master: TLS where it offers it, SASL PLAIN, and the few
//! commands that a move needs.
//!
//! A move never sends DEACTIVATE or DELETE: of a name that it does not know, either ends
//! the master of 2.5 to 3.10 by a fault, and both would leave a moment in which nobody
//! can reach the mailbox. A repair sends DELETE of what no server has, and that the
//! master has just been found to know.

use super::Settings;
use super::protocol::{Entry, Line, LineError, command, parse};
use super::tls;
use russh::keys::ssh_encoding::base64::{Base64, Encoding};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long the master may take to answer anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Questions that are under way at once: their answers must fit into what lies between,
/// since nobody reads them before all are sent.
const ASKED_AT_ONCE: usize = 64;

/// Changes that are under way at once: their answers are short.
const CHANGED_AT_ONCE: usize = 1000;

/// Why the master cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MupdateError {
    /// It cannot be reached.
    #[error("the mupdate master {server} cannot be reached: {source}")]
    Connect {
        /// As imapd.conf has it.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the connection to the mupdate master {server} broke: {source}")]
    Io {
        /// As imapd.conf has it.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// It speaks something else.
    #[error("{server} sent {source}")]
    Line {
        /// As imapd.conf has it.
        server: String,
        /// What.
        source: LineError,
    },
    /// TLS does not come about.
    #[error("TLS with the mupdate master {server} failed: {reason}")]
    Tls {
        /// As imapd.conf has it.
        server: String,
        /// Why.
        reason: String,
    },
    /// It is a copy of the list, and takes no changes.
    #[error("{server} is not the mupdate master, but keeps a copy for itself")]
    NotMaster {
        /// As imapd.conf has it.
        server: String,
    },
    /// No mechanism that mbcopy has.
    #[error(
        "the mupdate master {server} offers no login that mbcopy has, which is PLAIN; it offers \
         {offered}"
    )]
    NoMechanism {
        /// As imapd.conf has it.
        server: String,
        /// What it offers.
        offered: String,
    },
    /// Login is refused.
    #[error("the mupdate master {server} refuses the login of {authname}: {said}")]
    Login {
        /// As imapd.conf has it.
        server: String,
        /// Who.
        authname: String,
        /// What it said.
        said: String,
    },
    /// A command is refused.
    #[error("the mupdate master {server} refuses {command}: {said}")]
    Refused {
        /// As imapd.conf has it.
        server: String,
        /// Which.
        command: &'static str,
        /// What it said.
        said: String,
    },
}

/// A connection that is logged in.
pub struct Client {
    server: String,
    stream: Box<dyn Stream>,
    waiting: Vec<u8>,
    tags: u64,
    greeting: Greeting,
}

/// Both directions.
trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// What the master said first.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Greeting {
    mechanisms: Vec<String>,
    starttls: bool,
    name: String,
    master: bool,
}

impl Client {
    /// Connects and logs in.
    pub fn connect(settings: &Settings) -> Result<Self, MupdateError> {
        let server = settings.server.clone();
        let unreachable = |source| MupdateError::Connect { server: server.clone(), source };
        let addresses = (server.as_str(), settings.port).to_socket_addrs().map_err(unreachable)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        let mut connected = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let Some(stream) = connected else { return Err(unreachable(last)) };
        let set = stream.set_nodelay(true);
        set.and_then(|()| stream.set_read_timeout(Some(PATIENCE)))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(unreachable)?;
        let clear = stream.try_clone().map_err(unreachable)?;
        let mut client = Self {
            server: server.clone(),
            stream: Box::new(clear),
            waiting: Vec::new(),
            tags: 0,
            greeting: Greeting::default(),
        };
        client.greet()?;
        if client.greeting.starttls {
            client.call("STARTTLS", b"STARTTLS")?;
            let stream = tls::client(stream, &settings.server, &settings.authorities)
                .map_err(|reason| MupdateError::Tls { server, reason })?;
            client.stream = Box::new(stream);
            // What came before is nobody's.
            client.waiting.clear();
            client.greet()?;
        }
        client.login(settings)?;
        match client.greeting.master {
            true => Ok(client),
            false => Err(MupdateError::NotMaster { server: client.server }),
        }
    }

    /// The master's own name, by which two servers see that they have the same one.
    pub fn master(&self) -> &str {
        &self.greeting.name
    }

    fn greet(&mut self) -> Result<(), MupdateError> {
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            let end = ["OK", "BYE", "NO", "BAD"].contains(&line.word.as_str());
            lines.push(line);
            if end || lines.len() > 100 {
                break;
            }
        }
        self.greeting = greeting(&lines).map_err(|said| MupdateError::Refused {
            server: self.server.clone(),
            command: "the connection",
            said,
        })?;
        Ok(())
    }

    fn login(&mut self, settings: &Settings) -> Result<(), MupdateError> {
        let server = || self.server.clone();
        let offered = &self.greeting.mechanisms;
        if !offered.iter().any(|mechanism| mechanism == "PLAIN") {
            let offered = match offered.is_empty() {
                true => "none".to_owned(),
                false => offered.join(", "),
            };
            return Err(MupdateError::NoMechanism { server: server(), offered });
        }
        let said = format!("{}\0{}\0{}", settings.username, settings.authname, settings.password);
        let said = Base64::encode_string(said.as_bytes());
        let tag = self.tag();
        self.write(format!("{tag} AUTHENTICATE \"PLAIN\" \"{said}\"\r\n").as_bytes())?;
        let (_, end) = self.answers(&tag)?;
        match end.word.as_str() {
            "OK" => Ok(()),
            _ => Err(MupdateError::Login {
                server: self.server.clone(),
                authname: settings.authname.clone(),
                said: end.text(),
            }),
        }
    }

    /// What the master says of each of these names; none: nothing.
    pub fn find(&mut self, names: &[&[u8]]) -> Result<Vec<Option<Entry>>, MupdateError> {
        let commands = |tag: &str, name: &&[u8]| command(tag, "FIND", &[name]);
        let answers = self.each("FIND", ASKED_AT_ONCE, names, commands)?;
        let entry = |(lines, name): (Vec<Line>, &&[u8])| {
            lines.iter().filter_map(Line::entry).find(|entry| entry.name == *name)
        };
        Ok(answers.into_iter().zip(names).map(entry).collect())
    }

    /// Makes the master say these of mailboxes, whatever it said before.
    pub fn activate(&mut self, entries: &[Entry]) -> Result<(), MupdateError> {
        let activate = |tag: &str, entry: &Entry| entry.activate(tag);
        self.each("ACTIVATE", CHANGED_AT_ONCE, entries, activate).map(drop)
    }

    /// Gives `take` all that the master says of mailboxes on a server, one by one.
    pub fn list(&mut self, server: &str, mut take: impl FnMut(Entry)) -> Result<(), MupdateError> {
        let tag = self.tag();
        self.write(&command(&tag, "LIST", &[format!("{server}!").as_bytes()]))?;
        let end = self.each_answer(&tag, |line| {
            line.entry().into_iter().for_each(&mut take);
        })?;
        self.succeeded("LIST", &end)
    }

    /// Makes the master forget those of these mailboxes that it has on `server`; how many.
    pub fn forget(&mut self, server: &str, names: &[&[u8]]) -> Result<usize, MupdateError> {
        let mut forgotten = 0;
        for name in names {
            let found = self.find(&[name])?;
            if found.iter().flatten().any(|entry| entry.server() == server) {
                let delete = |tag: &str, name: &&[u8]| command(tag, "DELETE", &[name]);
                self.each("DELETE", 1, &[*name], delete)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Sends a command for each of `things`, several at once, and gives the answers to
    /// each. Errors: one was refused; those sent before it are done.
    fn each<T>(
        &mut self,
        name: &'static str,
        at_once: usize,
        things: &[T],
        command: impl Fn(&str, &T) -> Vec<u8>,
    ) -> Result<Vec<Vec<Line>>, MupdateError> {
        let mut all = Vec::with_capacity(things.len());
        for some in things.chunks(at_once) {
            let tags: Vec<String> = some.iter().map(|_| self.tag()).collect();
            let mut bytes = Vec::new();
            for (tag, thing) in tags.iter().zip(some) {
                bytes.extend(command(tag, thing));
            }
            self.write(&bytes)?;
            for tag in &tags {
                let (lines, end) = self.answers(tag)?;
                self.succeeded(name, &end)?;
                all.push(lines);
            }
        }
        Ok(all)
    }

    fn call(&mut self, name: &'static str, words: &[u8]) -> Result<(), MupdateError> {
        let tag = self.tag();
        self.write(&[tag.as_bytes(), b" ", words, b"\r\n"].concat())?;
        let (_, end) = self.answers(&tag)?;
        self.succeeded(name, &end)
    }

    fn succeeded(&self, command: &'static str, end: &Line) -> Result<(), MupdateError> {
        match end.word.as_str() {
            "OK" => Ok(()),
            _ => {
                let server = self.server.clone();
                Err(MupdateError::Refused { server, command, said: end.text() })
            }
        }
    }

    fn tag(&mut self) -> String {
        self.tags += 1;
        format!("M{}", self.tags)
    }

    /// The answers to the command of this tag, and the one that ends them.
    fn answers(&mut self, tag: &str) -> Result<(Vec<Line>, Line), MupdateError> {
        let mut lines = Vec::new();
        let end = self.each_answer(tag, |line| lines.push(line))?;
        Ok((lines, end))
    }

    /// The answer that ends the command of this tag; `take` gets those before it.
    fn each_answer(&mut self, tag: &str, mut take: impl FnMut(Line)) -> Result<Line, MupdateError> {
        loop {
            let line = self.line()?;
            let end = ["OK", "NO", "BAD"].contains(&line.word.as_str());
            match line.tag == tag.as_bytes() {
                true if end => return Ok(line),
                true => take(line),
                false if line.word == "BYE" => {
                    let source = io::Error::new(io::ErrorKind::ConnectionAborted, line.text());
                    return Err(self.broken(source));
                }
                false => {}
            }
        }
    }

    fn line(&mut self) -> Result<Line, MupdateError> {
        loop {
            let parsed = parse(&self.waiting)
                .map_err(|source| MupdateError::Line { server: self.server.clone(), source })?;
            if let Some((line, length)) = parsed {
                self.waiting.drain(..length);
                return Ok(line);
            }
            let mut bytes = [0; 16 << 10];
            let read = self.stream.read(&mut bytes).map_err(|e| self.broken(e))?;
            if read == 0 {
                return Err(self.broken(io::ErrorKind::UnexpectedEof.into()));
            }
            self.waiting.extend_from_slice(bytes.get(..read).unwrap_or_default());
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), MupdateError> {
        let written = self.stream.write_all(bytes).and_then(|()| self.stream.flush());
        written.map_err(|e| self.broken(e))
    }

    fn broken(&self, source: io::Error) -> MupdateError {
        let source = match source.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "no answer"),
            _ => source,
        };
        MupdateError::Io { server: self.server.clone(), source }
    }
}

/// What the first lines of a connection say; else the line that ends it.
fn greeting(lines: &[Line]) -> Result<Greeting, String> {
    let mut greeting = Greeting::default();
    for line in lines {
        match line.word.as_str() {
            "AUTH" => {
                let names = line.strings.iter().map(|s| String::from_utf8_lossy(s).to_uppercase());
                greeting.mechanisms = names.collect();
            }
            "STARTTLS" => greeting.starttls = true,
            "OK" => {
                // MUPDATE "name" "software" "version" "(master)" or "mupdate://master"
                let text = line.text();
                let mut words = text.split('"').skip(1).step_by(2);
                greeting.name = words.next().unwrap_or_default().to_owned();
                greeting.master = words.any(|word| word == "(master)");
                return Ok(greeting);
            }
            "NO" | "BAD" | "BYE" => return Err(line.text()),
            _ => {}
        }
    }
    Err("it greets without end".into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn greet(bytes: &[u8]) -> Result<Greeting, String> {
        let (mut rest, mut lines) = (bytes, Vec::new());
        while let Some((line, length)) = parse(rest).unwrap() {
            lines.push(line);
            rest = &rest[length..];
        }
        greeting(&lines)
    }

    #[test]
    fn a_master_and_a_copy_are_told_apart() {
        let said = b"* AUTH \"PLAIN\" \"LOGIN\"\r\n* STARTTLS\r\n* PARTIAL-UPDATE\r\n\
                     * OK MUPDATE \"mup\" \"Cyrus IMAP\" \"3.6.1\" \"(master)\"\r\n";
        let master = greet(said).unwrap();
        assert_eq!((master.name.as_str(), master.master, master.starttls), ("mup", true, true));
        assert_eq!(master.mechanisms, ["PLAIN", "LOGIN"]);
        let said = b"* AUTH\r\n* OK MUPDATE \"fe1\" \"Cyrus IMAP\" \"3.6.1\" \"mupdate://mup\"\r\n";
        let copy = greet(said).unwrap();
        assert_eq!((copy.name.as_str(), copy.master, copy.starttls), ("fe1", false, false));
        assert!(copy.mechanisms.is_empty());
        assert_eq!(greet(b"* BYE \"too many\"\r\n").unwrap_err(), "too many");
        assert!(greet(b"* AUTH\r\n").is_err());
    }
}
