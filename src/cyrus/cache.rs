//! cyrus.cache: what Cyrus has parsed of messages, for clients that ask.
//!
//! A generation number, then records, each ten items of a 32-bit length, big endian,
//! and bytes, filled up to a multiple of four (`imap/mailbox.h:CACHE_ENVELOPE`,
//! `imap/mailbox.c:cache_parserecord`).  An index record tells where its message's is.

/// Position of the BODYSTRUCTURE among the items.
const BODYSTRUCTURE: usize = 1;

/// From this version of a record on (3.12), the parts of a message/global are in it.
pub const SPLITS_GLOBAL: u16 = 13;

/// The BODYSTRUCTURE of the record at `offset`, as it is sent to clients; `None` if the
/// file has no such record.
pub fn bodystructure(file: &[u8], offset: u64) -> Option<&[u8]> {
    let mut rest = file.get(usize::try_from(offset).ok()?..)?;
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
    bodystructure.windows(GLOBAL.len()).any(|words| words.eq_ignore_ascii_case(GLOBAL))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_second_item_is_found() {
        let mut file = 7u32.to_be_bytes().to_vec();
        for item in [&b"(envelope)"[..], b"((\"MESSAGE\" \"GLOBAL\" NIL))", b"body"] {
            file.extend((item.len() as u32).to_be_bytes());
            file.extend_from_slice(item);
            file.resize(file.len().next_multiple_of(4), 0);
        }
        let found = bodystructure(&file, 4).unwrap();
        assert_eq!(found, b"((\"MESSAGE\" \"GLOBAL\" NIL))");
        assert!(has_global(found));
        assert!(!has_global(b"((\"MESSAGE\" \"RFC822\" NIL) \"GLOBAL\")"));
        assert_eq!(bodystructure(&file, file.len() as u64), None);
        assert_eq!(bodystructure(&file, u64::MAX), None);
    }

    proptest! {
        #[test]
        fn never_panics(file in proptest::collection::vec(any::<u8>(), 0..60), offset in 0..70u64) {
            let _ = bodystructure(&file, offset);
        }
    }
}
