//! Text records of mailboxes.db, up to 2.4: `<type> <[server!]partition> <acl>`.
//!
//! Some 2.4 builds put `(uniqueid X specialuse Y) ` before it
//! (3.6.1:`imap/mboxlist.c:mboxlist_parse_entry` still reads that).

use super::RecordError;

/// The parts of a text record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record<'a> {
    /// `(...) ` with the space behind it, or nothing.
    pub extension: &'a [u8],
    pub bits: u32,
    pub server: Option<&'a [u8]>,
    pub partition: &'a [u8],
    pub acl: &'a [u8],
}

impl<'a> Record<'a> {
    pub fn parse(value: &'a [u8]) -> Result<Self, RecordError> {
        let mut extension = 0;
        if value.starts_with(b"(") {
            let end = value.windows(2).position(|w| w == b") ");
            extension = end.ok_or_else(|| fail(0, "the extension does not end"))? + 2;
        }
        let (extension, rest) = value.split_at_checked(extension).unwrap_or((b"", value));
        let base = extension.len();
        let (number, rest) = word(rest).ok_or_else(|| fail(base, "the type is missing"))?;
        let bits = std::str::from_utf8(number).ok().and_then(|n| n.parse().ok());
        let bits = bits.ok_or_else(|| fail(base, "the type is no number"))?;
        let at = base + number.len() + 1;
        // An empty ACL may come without the space before it.
        let (place, acl) = word(rest).unwrap_or((rest, b""));
        if place.is_empty() {
            return Err(fail(at, "the partition is missing"));
        }
        let bang = place.iter().position(|&c| c == b'!');
        let (server, partition) = match bang.and_then(|bang| place.split_at_checked(bang)) {
            Some((server, partition)) => (Some(server), partition.get(1..).unwrap_or_default()),
            None => (None, place),
        };
        Ok(Self { extension, bits, server, partition, acl })
    }

    /// The uniqueid of the extension.
    pub fn uniqueid(&self) -> Option<&'a [u8]> {
        let inner = self.extension.strip_prefix(b"(")?.strip_suffix(b") ")?;
        let mut words = inner.split(|&c| c == b' ');
        while let Some(key) = words.next() {
            let value = words.next()?;
            if key == b"uniqueid" {
                return Some(value);
            }
        }
        None
    }
}

fn fail(offset: usize, reason: &'static str) -> RecordError {
    RecordError::Text { offset, reason }
}

/// The bytes before the first space, and those after it.
fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|&c| c == b' ')?;
    let (word, rest) = text.split_at_checked(space)?;
    Some((word, rest.get(1..).unwrap_or_default()))
}
