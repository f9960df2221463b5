//! A ManageSieve client.

use crate::imap::{Refused, Status, readable};
use anyhow::{Context, Result, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A ManageSieve session; it says LOGOUT when dropped, for 3.6.1's server crashes otherwise.
pub struct Sieve {
    session: BufReader<TcpStream>,
}

/// A line of an answer: its words, where a quoted string or a literal is one word.
type Line = Vec<Vec<u8>>;

impl Sieve {
    /// Connects to port 4190 and logs in.
    pub fn connect(ip: &str, user: &str, password: &str) -> Result<Sieve> {
        let stream = crate::net::connect(ip, 4190, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut sieve = Sieve { session: BufReader::new(stream) };
        sieve.answer().context("greeting")?;
        let token = STANDARD.encode(format!("\0{user}\0{password}"));
        sieve.command(format!("AUTHENTICATE \"PLAIN\" \"{token}\"").as_bytes())?;
        Ok(sieve)
    }

    /// Stores a script.
    pub fn put(&mut self, name: &str, text: &str) -> Result<()> {
        let command = format!("PUTSCRIPT {} {{{}+}}\r\n{text}", quoted(name), text.len());
        self.command(command.as_bytes()).map(drop)
    }

    /// Makes a script the active one; the empty name makes none active.
    pub fn activate(&mut self, name: &str) -> Result<()> {
        let command = format!("SETACTIVE {}", quoted(name));
        self.command(command.as_bytes()).map(drop)
    }

    /// Deletes a script.
    pub fn delete(&mut self, name: &str) -> Result<()> {
        self.command(format!("DELETESCRIPT {}", quoted(name)).as_bytes())?;
        Ok(())
    }

    /// The scripts' names and whether they are active.
    pub fn list(&mut self) -> Result<Vec<(String, bool)>> {
        let lines = self.command(b"LISTSCRIPTS")?;
        Ok(lines
            .iter()
            .filter_map(|line| Some((readable(line.first()?), line.len() > 1)))
            .collect())
    }

    /// The text of a script.
    pub fn get(&mut self, name: &str) -> Result<String> {
        let lines = self.command(format!("GETSCRIPT {}", quoted(name)).as_bytes())?;
        Ok(lines.first().and_then(|line| line.first()).map_or(String::new(), |text| readable(text)))
    }

    fn command(&mut self, command: &[u8]) -> Result<Vec<Line>> {
        let stream = self.session.get_mut();
        stream.write_all(&[command, b"\r\n"].concat())?;
        self.answer()
    }

    /// The lines before OK.
    fn answer(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        loop {
            let line = read_line(&mut self.session)?;
            match line.first().map(Vec::as_slice) {
                Some(b"OK") => return Ok(lines),
                Some(verdict @ (b"NO" | b"BYE")) => {
                    let said: Vec<String> = line.iter().map(|word| readable(word)).collect();
                    if *verdict == *b"BYE" {
                        bail!("sieve: {}", said.join(" "));
                    }
                    let text = said.get(1..).unwrap_or_default().join(" ");
                    let status = Status { kind: "NO".into(), code: None, text };
                    bail!(Refused { command: "sieve".into(), status });
                }
                _ => lines.push(line),
            }
        }
    }
}

impl Drop for Sieve {
    fn drop(&mut self) {
        let _ = self.command(b"LOGOUT");
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

fn read_line(reader: &mut impl BufRead) -> Result<Line> {
    let mut words = Vec::new();
    loop {
        let mut raw = Vec::new();
        reader.read_until(b'\n', &mut raw).context("receiving")?;
        if !raw.ends_with(b"\n") {
            bail!("sieve: the server closed the connection");
        }
        let raw = raw.trim_ascii_end();
        let Some(length) = split(raw, &mut words) else {
            return Ok(words);
        };
        let mut literal = Vec::new();
        reader.take(length).read_to_end(&mut literal)?;
        words.push(literal);
    }
}

/// Splits a line into words; returns the length of the literal announced at its end, if any.
fn split(line: &[u8], words: &mut Line) -> Option<u64> {
    let mut bytes = line.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let mut word = Vec::new();
        match byte {
            b' ' => continue,
            b'"' => {
                while let Some(byte) = bytes.next().filter(|b| *b != b'"') {
                    match byte {
                        b'\\' => word.extend(bytes.next()),
                        _ => word.push(byte),
                    }
                }
            }
            _ => {
                word.push(byte);
                while let Some(byte) = bytes.next_if(|b| *b != b' ') {
                    word.push(byte);
                }
                let announced = word.strip_prefix(b"{").and_then(|w| w.strip_suffix(b"}"));
                if let Some(length) = announced {
                    let length = length.strip_suffix(b"+").unwrap_or(length);
                    return std::str::from_utf8(length).ok()?.parse().ok();
                }
            }
        }
        words.push(word);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_words_strings_and_literals() {
        let mut wire = &b"\"a \\\"b\" ACTIVE\r\n{3}\r\nx\r\n\r\nOK\r\n"[..];
        assert_eq!(read_line(&mut wire).expect("line"), [b"a \"b".to_vec(), b"ACTIVE".to_vec()]);
        assert_eq!(read_line(&mut wire).expect("line"), [b"x\r\n".to_vec()]);
        assert_eq!(read_line(&mut wire).expect("line"), [b"OK".to_vec()]);
    }
}
