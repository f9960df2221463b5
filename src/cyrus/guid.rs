//! The identity of a message's content: the SHA-1 of its file.

use std::fmt;

use sha1::{Digest, Sha1};

/// SHA-1 of a message file, as Cyrus keeps it from index minor version 10 on
/// (`imap/message_guid.c:message_guid_generate`).
///
/// Twenty zero bytes mean "unknown" on disk; parsers give `None` for them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid([u8; Guid::LEN]);

impl Guid {
    /// Length in bytes.
    pub const LEN: usize = 20;

    /// Computes the GUID of a message file's bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha1::digest(bytes).into())
    }

    /// Takes the bytes of an index record; all zeros give `None`.
    pub fn from_stored(bytes: [u8; Self::LEN]) -> Option<Self> {
        (bytes != [0; Self::LEN]).then_some(Self(bytes))
    }

    /// Reads forty hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        if text.len() != 2 * Self::LEN {
            return None;
        }
        let digit = |c: u8| char::from(c).to_digit(16);
        let mut bytes = [0; Self::LEN];
        let (pairs, _) = text.as_chunks::<2>();
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
        }
        Some(Self(bytes))
    }

    /// The twenty bytes.
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn known_value() {
        let text = "a9993e364706816aba3e25717850c26c9cd0d89d";
        assert_eq!(Guid::of(b"abc").to_string(), text);
        assert_eq!(Guid::from_hex(&text.to_uppercase()), Some(Guid::of(b"abc")));
        assert_eq!(Guid::from_stored(*Guid::of(b"abc").as_bytes()), Some(Guid::of(b"abc")));
        assert_eq!(Guid::from_stored([0; 20]), None);
        for bad in ["", "a9", &text.replace('a', "g"), &text.replace('a', "ä")] {
            assert_eq!(Guid::from_hex(bad), None, "{bad}");
        }
    }
}
