//! Mail delivery as a mail transfer agent does it, over LMTP.

use crate::host::Host;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

/// How long any one answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// How far a delivery got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Connecting and waiting for the greeting.
    Greeting,
    /// LHLO
    Hello,
    /// MAIL FROM
    Sender,
    /// RCPT TO
    Recipient,
    /// DATA
    Data,
    /// The message itself, from its first byte to the answer after its final dot.
    Content,
}

/// The server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Such as 250.
    pub code: u16,
    /// The text of all its lines, joined by a space.
    pub text: String,
}

/// How a delivery ended.
#[derive(Debug)]
pub enum Outcome {
    /// 2xx after the message: it is the server's now.
    Accepted(Reply),
    /// 4xx or 5xx: it is not the server's.
    Refused(Stage, Reply),
    /// The connection failed. Nobody knows whose the message is, if it was at [`Stage::Content`].
    Lost(Stage, anyhow::Error),
}

impl Outcome {
    /// Whether the server may or may not have accepted the message.
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Outcome::Lost(Stage::Content, _))
    }

    /// An error, unless the message was accepted.
    pub fn accepted(self) -> Result<Reply> {
        match self {
            Outcome::Accepted(reply) => Ok(reply),
            Outcome::Refused(stage, reply) => bail!("{stage:?}: {} {}", reply.code, reply.text),
            Outcome::Lost(stage, error) => Err(error.context(format!("{stage:?}"))),
        }
    }
}

/// Delivers one message to one recipient over a connection of its own.
pub fn deliver(host: &Host, recipient: &str, message: &[u8]) -> Outcome {
    deliver_to(host, &[recipient], message)
}

/// Delivers one message to several recipients, by one transaction.
pub fn deliver_to(host: &Host, recipients: &[&str], message: &[u8]) -> Outcome {
    let mut stage = Stage::Greeting;
    match converse(host, recipients, message, &mut stage) {
        Ok(reply) if reply.code / 100 == 2 => Outcome::Accepted(reply),
        Ok(reply) => Outcome::Refused(stage, reply),
        Err(error) => Outcome::Lost(stage, error),
    }
}

/// The conversation up to the first refusal or the answer to the message.
fn converse(host: &Host, recipients: &[&str], message: &[u8], stage: &mut Stage) -> Result<Reply> {
    let stream = crate::net::connect(host.ip(), 24, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut session = BufReader::new(stream);
    let greeting = answer(&mut session)?;
    if greeting.code != 220 {
        return Ok(greeting);
    }
    let to = |recipient: &&str| (Stage::Recipient, format!("RCPT TO:<{recipient}>"), 2);
    let commands = [
        (Stage::Hello, "LHLO lab".to_owned(), 2),
        (Stage::Sender, "MAIL FROM:<sender@example.org>".to_owned(), 2),
    ];
    let commands = commands.into_iter().chain(recipients.iter().map(to));
    for (next, command, expected) in commands.chain([(Stage::Data, "DATA".to_owned(), 3)]) {
        *stage = next;
        session.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let reply = answer(&mut session)?;
        if reply.code / 100 != expected {
            goodbye(&mut session);
            return Ok(reply);
        }
    }
    *stage = Stage::Content;
    session.get_mut().write_all(&dotted(message))?;
    // One answer for each recipient; the first that is no success counts.
    let mut reply = answer(&mut session)?;
    for _ in recipients.iter().skip(1) {
        let next = answer(&mut session)?;
        if reply.code / 100 == 2 {
            reply = next;
        }
    }
    goodbye(&mut session);
    Ok(reply)
}

fn goodbye(session: &mut BufReader<TcpStream>) {
    let _ = session.get_mut().write_all(b"QUIT\r\n");
    let _ = answer(session);
}

/// The message with its dots stuffed and its final dot.
fn dotted(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 16);
    for line in message.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

fn answer(session: &mut impl BufRead) -> Result<Reply> {
    let mut text = Vec::new();
    loop {
        let mut line = Vec::new();
        session.read_until(b'\n', &mut line).context("receiving")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        let Some((code, rest)) = line.split_at_checked(3) else {
            bail!("the connection ended: {line:?}");
        };
        text.push(rest.get(1..).unwrap_or("").to_owned());
        if !rest.starts_with('-') {
            let code = code.parse().with_context(|| format!("strange answer {line}"))?;
            return Ok(Reply { code, text: text.join(" ") });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_stuffed() {
        assert_eq!(dotted(b".a\r\n..\r\nb."), b"..a\r\n...\r\nb.\r\n.\r\n");
        assert_eq!(dotted(b"a\r\n"), b"a\r\n.\r\n");
    }

    #[test]
    fn answers_may_have_several_lines() {
        let mut wire = &b"250-one\r\n250 two\r\n"[..];
        let reply = answer(&mut wire).expect("an answer");
        assert_eq!(reply, Reply { code: 250, text: "one two".into() });
    }
}
