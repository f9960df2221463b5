//! What both agents compute alike, so that they can compare.

use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{IndexError, IndexView, Record, system};

/// BLAKE3 over what a client can observe of the records of an index, in UID
/// order, and whether each is expunged: equal digests mean equal mailboxes.
#[derive(Debug, Default)]
pub struct Digest(blake3::Hasher);

impl Digest {
    /// Adds a record.
    pub fn add(&mut self, record: &Record) {
        let id = record.identity();
        let mut field = |bytes: &[u8]| {
            self.0.update(bytes);
        };
        field(&id.uid.to_be_bytes());
        field(&id.size.to_be_bytes());
        field(id.guid.as_ref().map_or(&[0; 20], |g| g.as_bytes()));
        // An old index has no such times; zero stands for that.
        field(&id.internaldate.nanoseconds().to_be_bytes());
        field(&id.savedate.nanoseconds().to_be_bytes());
        field(&id.system_flags.to_be_bytes());
        id.user_flags.iter().for_each(|word| field(&word.to_be_bytes()));
        field(&id.modseq.to_be_bytes());
        field(&[u8::from(record.is_expunged())]);
    }

    /// The digest.
    pub fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// The digest of a whole index.
pub fn records_digest(index: &IndexView<'_>) -> Result<[u8; 32], IndexError> {
    let mut digest = Digest::default();
    for record in index.records() {
        digest.add(&record?);
    }
    Ok(digest.finish())
}

/// The flags of a message as IMAP writes them; \Seen only if it is wanted.
pub fn flags<'a>(
    record: &'a Record,
    names: &'a MailboxHeader,
    seen: bool,
) -> impl Iterator<Item = &'a [u8]> {
    let bits: [(u16, &[u8]); 5] = [
        (system::ANSWERED, b"\\Answered"),
        (system::FLAGGED, b"\\Flagged"),
        (system::DELETED, b"\\Deleted"),
        (system::DRAFT, b"\\Draft"),
        (if seen { system::SEEN } else { 0 }, b"\\Seen"),
    ];
    let of_system = bits.into_iter().filter(|(bit, _)| record.system_flags & bit != 0);
    let keywords = record.user_flag_numbers().filter_map(|number| names.user_flag(number));
    of_system.map(|(_, name)| name).chain(keywords)
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
