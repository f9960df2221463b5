//! cyrus.cache: what Cyrus has parsed of messages, for clients that ask.
//!
//! A generation number, then records, each ten items of a 32-bit length, big endian,
//! and bytes, filled up to a multiple of four (`imap/mailbox.h:CACHE_ENVELOPE`,
//! `imap/mailbox.c:cache_parserecord`).  An index record tells where its message's is.

/// Position of the BODYSTRUCTURE among the items.
const BODYSTRUCTURE: usize = 1;

/// From this version of a record on (3.12), the parts of a message/global are in it.
const SPLITS_GLOBAL: u16 = 13;

/// Whether a Cyrus that writes records of the version `reader` misreads records of the
/// version `written` of messages that [have a message/global](has_global).  It ends by a
/// fault when a client asks for a part of one, and its `reconstruct -n` does not notice
/// (3.10.2 with a record of 3.12.4, 3.12.4 with one of 3.6.1).
pub fn misreads_global(reader: u16, written: u16) -> bool {
    (reader >= SPLITS_GLOBAL) != (written >= SPLITS_GLOBAL)
}

/// The BODYSTRUCTURE of the record that `bytes` begin with, as it is sent to clients;
/// `None` if they end too early.
pub fn bodystructure(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes;
    for item in 0.. {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        if item == BODYSTRUCTURE {
            return after.get(..length);
        }
        rest = after.get(length.checked_next_multiple_of(4)?..)?;
    }
    None
}

/// Whether it may have a part of type message/global.
pub fn has_global(bodystructure: &[u8]) -> bool {
    const GLOBAL: &[u8] = b"\"MESSAGE\" \"GLOBAL\"";
    bodystructure.windows(GLOBAL.len()).any(|words| words == GLOBAL)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_second_item_is_found() {
        let mut record = Vec::new();
        for item in [&b"(envelope)"[..], b"((\"MESSAGE\" \"GLOBAL\" NIL))", b"body"] {
            record.extend((item.len() as u32).to_be_bytes());
            record.extend_from_slice(item);
            record.resize(record.len().next_multiple_of(4), 0);
        }
        let found = bodystructure(&record).unwrap();
        assert_eq!(found, b"((\"MESSAGE\" \"GLOBAL\" NIL))");
        assert!(has_global(found));
        assert!(!has_global(b"((\"MESSAGE\" \"RFC822\" NIL) \"GLOBAL\")"));
        assert_eq!(bodystructure(&record[..30]), None);
    }

    #[test]
    fn who_misreads_what() {
        for (reader, written) in [(11, 11), (11, 10), (13, 13), (14, 13)] {
            assert!(!misreads_global(reader, written));
        }
        assert!(misreads_global(11, 13) && misreads_global(13, 11));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = bodystructure(&bytes);
        }
    }
}
