//! Messages of many shapes and sizes, the same ones for the same seed.

use crate::imap::NewMessage;
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{Timestamp, tz::Offset};
use rand::{Rng, RngCore, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use sha1::{Digest, Sha1};

/// How large messages are.
#[derive(Clone, Copy, Debug)]
pub enum Size {
    /// Log-normally distributed around this many bytes, as a mailbox without attachments is: the
    /// mean is 1.4 times the median.
    Median(usize),
    /// More widely spread around this many bytes, with a few of more than a megabyte.
    Mixed(usize),
    /// Every message about this many bytes.
    Fixed(usize),
}

/// The largest message that [`Size::Mixed`] makes.
const LARGEST: usize = 4 << 20;
/// Bytes per line of base64, with CRLF.
const BASE64_LINE: usize = 78;

const WORDS: &[&str] = &[
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consetetur",
    "sadipscing",
    "elitr",
    "sed",
    "diam",
    "nonumy",
    "eirmod",
    "tempor",
    "invidunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "Rechnung",
    "Angebot",
    "Termin",
    "Sitzung",
    "meeting",
    "report",
    "budget",
    "deadline",
    "server",
    "mailbox",
];
const PEOPLE: &[&str] = &[
    "Jürgen Müller",
    "Anna Schmidt",
    "山田太郎",
    "Ola Nordmann",
    "Zoë Ångström",
    "Bob Example",
    "Cron Daemon",
    "Списки рассылки",
];
const SUBJECTS: &[&str] = &[
    "Re: Termin",
    "Fwd: Angebot",
    "Prüfungsergebnisse für März",
    "会議の議事録",
    "Build failed",
    "Urlaub?",
    "AW: AW: AW: Druckerpatrone",
    "Invoice",
    "Ünïcödé",
    "",
];
const KEYWORDS: &[&str] =
    &["$Forwarded", "NonJunk", "$Label1", "$MDNSent", "projekt-x", "Junk", "todo/later"];

/// A source of messages.
pub(crate) struct Messages {
    /// The source of every choice, here and in [`crate::seed`].
    pub random: SmallRng,
    label: String,
    user: String,
    size: Size,
    made: u32,
    text: Vec<u8>,
    base64: Vec<u8>,
}

impl Messages {
    pub fn new(seed: u64, user: &str, size: Size) -> Messages {
        let digest = Sha1::digest(format!("{seed}/{user}"));
        let mut state = [0; 8];
        state.copy_from_slice(&digest[..8]);
        let mut random = SmallRng::seed_from_u64(u64::from_le_bytes(state));
        let mut text = Vec::with_capacity(1 << 20);
        while text.len() < 1 << 20 {
            let start = text.len();
            while text.len() < start + 66 {
                let word = WORDS.choose(&mut random).unwrap_or(&"word");
                text.extend_from_slice(word.as_bytes());
                text.push(b' ');
            }
            text.pop();
            text.extend_from_slice(b"\r\n");
        }
        let mut noise = vec![0; 57 * 40_000];
        random.fill_bytes(&mut noise);
        let mut base64 = Vec::with_capacity(BASE64_LINE * 40_000);
        for line in noise.chunks(57) {
            base64.extend_from_slice(STANDARD.encode(line).as_bytes());
            base64.extend_from_slice(b"\r\n");
        }
        let label = format!("{seed}.{user}");
        Messages { random, label, user: user.to_owned(), size, made: 0, text, base64 }
    }

    /// A message of any size, with flags.
    pub fn next(&mut self) -> NewMessage {
        let size = self.any_size();
        let mut message = self.sized(size);
        message.flags = self.flags();
        message
    }

    /// A message of about this size, without flags.
    pub fn sized(&mut self, size: usize) -> NewMessage {
        self.made += 1;
        let made = self.made;
        // 2005 to 2024
        let seconds = self.random.random_range(1_104_537_600..1_735_603_200);
        let minutes = *[0, 60, 120, -300, 330, 540].choose(&mut self.random).unwrap_or(&0);
        let (internal, date) = dates(seconds, minutes);
        let mut bytes = format!(
            "Return-Path: <bounce@example.org>\r\n\
             Received: from mx{}.example.org by mail.example.org; {date}\r\n\
             Message-ID: <{}.{made}.{:08x}@lab.example.org>\r\n\
             Date: {date}\r\nFrom: {} <p{}@example.org>\r\nTo: {user} <{user}@lab>\r\n\
             Subject: {}\r\nMIME-Version: 1.0\r\n",
            self.random.random_range(1..10),
            self.label,
            self.random.next_u32(),
            encoded(PEOPLE.choose(&mut self.random).unwrap_or(&"")),
            self.random.random_range(1..100),
            encoded(SUBJECTS.choose(&mut self.random).unwrap_or(&"")),
            user = self.user,
        )
        .into_bytes();
        if self.random.random_bool(0.3) {
            let earlier = self.random.random_range(1..=made);
            bytes.extend_from_slice(
                format!("References: <{}.{earlier}@lab.example.org>\r\n", self.label).as_bytes(),
            );
        }
        if size > 40_000 || self.random.random_bool(0.15) {
            self.attachment(&mut bytes, size);
        } else {
            self.plain(&mut bytes, size);
        }
        NewMessage { flags: Vec::new(), date: Some(internal), bytes }
    }

    fn attachment(&mut self, bytes: &mut Vec<u8>, size: usize) {
        let boundary = format!("b{:016x}", self.random.next_u64());
        bytes.extend_from_slice(
            format!(
                "Content-Type: multipart/mixed; boundary=\"{boundary}\"\r\n\r\n--{boundary}\r\n\
                 Content-Type: text/plain; charset=utf-8\r\n\
                 Content-Transfer-Encoding: 8bit\r\n\r\nGrüße — ✓\r\n"
            )
            .as_bytes(),
        );
        self.prose(bytes, 600);
        bytes.extend_from_slice(
            format!(
                "--{boundary}\r\nContent-Type: application/octet-stream; name=\"f{}.bin\"\r\n\
                 Content-Disposition: attachment\r\n\
                 Content-Transfer-Encoding: base64\r\n\r\n",
                self.made
            )
            .as_bytes(),
        );
        let mut lines = (size.saturating_sub(bytes.len() + 24)).div_ceil(BASE64_LINE);
        while lines > 0 {
            let run = lines.min(14_000);
            let available = self.base64.len() / BASE64_LINE - run;
            let start = self.random.random_range(0..available) * BASE64_LINE;
            bytes.extend_from_slice(&self.base64[start..start + run * BASE64_LINE]);
            lines -= run;
        }
        bytes.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    }

    fn plain(&mut self, bytes: &mut Vec<u8>, size: usize) {
        let (charset, greeting): (_, &[u8]) = if self.random.random_bool(0.5) {
            ("utf-8", "Grüße aus Köln, ".as_bytes())
        } else {
            ("iso-8859-1", b"Gr\xfc\xdfe aus K\xf6ln, ")
        };
        bytes.extend_from_slice(
            format!(
                "Content-Type: text/plain; charset={charset}\r\n\
                 Content-Transfer-Encoding: 8bit\r\n\r\n"
            )
            .as_bytes(),
        );
        bytes.extend_from_slice(greeting);
        bytes.extend_from_slice(format!("message {}\r\n", self.made).as_bytes());
        self.prose(bytes, size.saturating_sub(bytes.len()));
    }

    /// Whole lines of text of about this many bytes.
    fn prose(&mut self, bytes: &mut Vec<u8>, mut size: usize) {
        while size > 0 {
            let anywhere = self.random.random_range(0..self.text.len() - 70_000);
            let from = &self.text[anywhere..];
            let line = from.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            let wanted = line + size.min(65_536);
            let rest = from[wanted..].iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            bytes.extend_from_slice(&from[line..wanted + rest]);
            size = size.saturating_sub(65_536);
        }
    }

    fn any_size(&mut self) -> usize {
        match self.size {
            Size::Fixed(size) => size,
            Size::Mixed(_) if self.random.random_bool(0.003) => {
                self.random.random_range(1 << 20..LARGEST)
            }
            Size::Mixed(median) => self.log_normal(median, 1.2),
            Size::Median(median) => self.log_normal(median, 0.84),
        }
    }

    /// A log-normally distributed size; `spread` is the logarithm's standard deviation.
    fn log_normal(&mut self, median: usize, spread: f64) -> usize {
        // A normally distributed number by Box and Muller.
        let (a, b): (f64, f64) = (self.random.random(), self.random.random());
        let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
        let size = median as f64 * (spread * normal).exp();
        (size as usize).clamp(400, LARGEST)
    }

    fn flags(&mut self) -> Vec<String> {
        let system = [
            ("\\Seen", 0.62),
            ("\\Answered", 0.12),
            ("\\Flagged", 0.06),
            ("\\Draft", 0.02),
            ("\\Deleted", 0.02),
        ];
        let keywords = KEYWORDS.iter().map(|keyword| (*keyword, 0.05));
        let chances: Vec<_> = system.into_iter().chain(keywords).collect();
        chances
            .into_iter()
            .filter(|(_, chance)| self.random.random_bool(*chance))
            .map(|(flag, _)| flag.to_owned())
            .collect()
    }
}

/// A moment in IMAP's format and in that of a message's header.
fn dates(seconds: i64, minutes: i32) -> (String, String) {
    // Both are constants of the caller's ranges, far from any limit.
    let moment = Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
    let offset = Offset::from_seconds(minutes * 60).unwrap_or(Offset::UTC);
    let zoned = moment.to_zoned_datetime(offset.to_time_zone());
    (
        zoned.strftime("%e-%b-%Y %H:%M:%S %z").to_string(),
        zoned.strftime("%a, %d %b %Y %H:%M:%S %z").to_string(),
    )
}

/// A header's text as an encoded word, if it must be one.
fn encoded(text: &str) -> String {
    if text.is_ascii() { text.to_owned() } else { format!("=?utf-8?b?{}?=", STANDARD.encode(text)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_messages() {
        let make = |seed, user| {
            let mut messages = Messages::new(seed, user, Size::Mixed(4000));
            (0..50).map(|_| messages.next().bytes).collect::<Vec<_>>()
        };
        assert_eq!(make(1, "a"), make(1, "a"));
        assert_ne!(make(1, "a"), make(2, "a"));
        assert_ne!(make(1, "a"), make(1, "b"));
    }

    #[test]
    fn messages_are_well_formed() {
        let mut messages = Messages::new(1, "a", Size::Mixed(4000));
        for _ in 0..300 {
            let message = messages.next();
            assert!(message.bytes.ends_with(b"\r\n"));
            for (i, byte) in message.bytes.iter().enumerate() {
                assert!(*byte != b'\n' || message.bytes[i - 1] == b'\r');
            }
        }
    }

    #[test]
    fn a_size_is_about_met() {
        let mut messages = Messages::new(1, "a", Size::Fixed(5 << 20));
        for size in [2000, 30_000, 5 << 20] {
            let made = messages.sized(size).bytes.len();
            assert!((size - 100..size + 2000).contains(&made), "{made} for {size}");
        }
    }

    #[test]
    fn dates_are_in_both_formats() {
        let (internal, date) = dates(1_104_537_600, -300);
        assert_eq!(internal, "31-Dec-2004 19:00:00 -0500");
        assert_eq!(date, "Fri, 31 Dec 2004 19:00:00 -0500");
    }
}
