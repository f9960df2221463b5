//! What a user has seen of a mailbox: the values of a user's seen database.
//!
//! The key is the mailbox's unique id.  Up to 2.3 this is where everybody's \Seen is
//! (user `anyone`, if the mailbox shares it); from 2.4 on only that of users in
//! mailboxes of others, and what is left there of the owner's own is out of date.
//! The rule is [`Header::has_seen`](super::index::Header::has_seen).

use super::imap_set::UidSet;

/// Where and why a seen value does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad seen record at offset {offset}: {reason}")]
pub struct SeenError {
    /// Byte offset.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// What a user has seen of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// When the user was last there, in seconds since the epoch; 0 is never.
    pub last_read: i64,
    /// Highest UID the user has been told of: higher ones are \Recent.
    pub last_uid: u32,
    /// When this record was last changed, in seconds since the epoch.
    pub last_change: i64,
    /// UIDs with \Seen; may hold UIDs of messages that are gone.
    pub uids: UidSet,
}

impl Seen {
    /// Parses `1 <last read> <last uid> <last change> <uids>`, the same in all
    /// versions (`imap/seen_db.c:parse_data`).
    ///
    /// Fails if a number is missing or the UIDs are no set; Cyrus takes the latter
    /// for an empty set.
    pub fn parse(value: &[u8]) -> Result<Self, SeenError> {
        let mut words = Words { value, at: 0 };
        let version: i64 = words.number("the version is missing")?;
        if version != 1 {
            let reason = "the version is not 1";
            return Err(SeenError { offset: 0, reason });
        }
        let last_read = words.number("the time of the last read is missing")?;
        let last_uid = words.number("the last UID is missing")?;
        let last_change = words.number("the time of the last change is missing")?;
        let (offset, text) = words.rest();
        let uids = UidSet::parse(text)
            .map_err(|error| SeenError { offset: offset + error.offset, reason: error.reason })?;
        Ok(Self { last_read, last_uid, last_change, uids })
    }

    /// The value as Cyrus writes it (`imap/seen_db.c:seen_write`).
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { last_read, last_uid, last_change, uids } = self;
        format!("1 {last_read} {last_uid} {last_change} {uids}").into_bytes()
    }
}

struct Words<'a> {
    value: &'a [u8],
    at: usize,
}

fn is_space(c: &u8) -> bool {
    c.is_ascii_whitespace() || *c == 0
}

impl<'a> Words<'a> {
    /// What is left, without white space around it, and its offset.
    fn rest(&self) -> (usize, &'a [u8]) {
        let rest = self.value.get(self.at..).unwrap_or_default();
        let spaces = rest.iter().take_while(|c| is_space(c)).count();
        let text = rest.get(spaces..).unwrap_or_default();
        let end = text.iter().rposition(|c| !is_space(c)).map_or(0, |last| last + 1);
        (self.at + spaces, text.get(..end).unwrap_or_default())
    }

    fn number<N: std::str::FromStr>(&mut self, reason: &'static str) -> Result<N, SeenError> {
        let (offset, rest) = self.rest();
        let len = rest.iter().take_while(|c| !is_space(c)).count();
        let word = rest.get(..len).unwrap_or_default();
        self.at = offset + len;
        let number = std::str::from_utf8(word).ok().and_then(|word| word.parse().ok());
        number.ok_or(SeenError { offset, reason })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_and_writes() {
        for text in ["1 1795442171 97 1795442173 1:5,7,9:12", "1 0 0 0 ", "1 -1 4294967295 5 3"] {
            let seen = Seen::parse(text.as_bytes()).unwrap();
            assert_eq!(seen.to_bytes(), text.as_bytes());
        }
        let seen = Seen::parse(b"1 5 6  7\t1:3 \0").unwrap();
        assert_eq!((seen.last_read, seen.last_uid, seen.last_change), (5, 6, 7));
        assert_eq!(seen.uids.count(), 3);
        assert_eq!(Seen::parse(b"1 5 6 7").unwrap().uids.count(), 0);
    }

    #[test]
    fn errors_say_where() {
        for (text, offset) in [
            ("", 0),
            ("2 1 1 1 1", 0),
            ("1 x", 2),
            ("1 1 4294967296 1 ", 4),
            ("1 1 1", 5),
            ("1 1 1 1 4,x", 10),
            ("1 1 1 1 4 5", 8),
        ] {
            let error = Seen::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            last_read in any::<i64>(), last_uid in any::<u32>(), last_change in any::<i64>(),
            uids in proptest::collection::vec(any::<(u32, u32)>(), 0..9),
        ) {
            let uids = UidSet::from_ranges(uids);
            let seen = Seen { last_read, last_uid, last_change, uids };
            prop_assert_eq!(Seen::parse(&seen.to_bytes()).unwrap(), seen);
        }

        #[test]
        fn never_panics(raw in "[0-9 :,*x\0-]{0,40}", bytes in any::<[u8; 9]>()) {
            let _ = (Seen::parse(raw.as_bytes()), Seen::parse(&bytes));
        }
    }
}
