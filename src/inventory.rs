//! What both agents compute alike, so that they can compare.

use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{Header, Record, system};

/// How many records, in the order of the index, have a digest of their own: of an index that
/// changes a little only a few records are read again.
pub const GROUP: u32 = 128;

/// Where records are in an index: versions of it that agree in this have a record of the same
/// number in the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape(u32, u32);

impl Shape {
    /// Of an index with this header.
    pub fn of(header: &Header) -> Self {
        Self(header.start_offset, header.record_size)
    }
}

/// Digests of the records of an index, one for each group: BLAKE3 over what a client can
/// observe of each record, in UID order, and whether it is expunged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Groups(Vec<[u8; 32]>);

impl Groups {
    /// Makes room for so many records; those that are new, or in a group that grows, have to
    /// be added.
    pub fn resize(&mut self, records: u32) {
        self.0.resize(records.div_ceil(GROUP) as usize, [0; 32]);
    }

    /// Begins to add records.
    pub fn grouping(&mut self) -> Grouping<'_> {
        Grouping { groups: self, bytes: Vec::new(), group: 0 }
    }

    /// The digest of the whole index: equal digests mean equal mailboxes.
    pub fn digest(&self) -> [u8; 32] {
        *blake3::hash(self.0.as_flattened()).as_bytes()
    }
}

/// Takes the records of whole groups, and makes their digests.
pub struct Grouping<'g> {
    groups: &'g mut Groups,
    bytes: Vec<u8>,
    group: usize,
}

impl Grouping<'_> {
    /// Adds the record with this number; a group's records come one after the other.
    pub fn add(&mut self, number: u32, record: &Record) {
        let group = (number / GROUP) as usize;
        if group != self.group {
            self.close();
            self.group = group;
        }
        let id = record.identity();
        let mut field = |bytes: &[u8]| self.bytes.extend_from_slice(bytes);
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

    /// Ends the last group.
    pub fn close(&mut self) {
        if !self.bytes.is_empty()
            && let Some(place) = self.groups.0.get_mut(self.group)
        {
            *place = *blake3::hash(&self.bytes).as_bytes();
        }
        self.bytes.clear();
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(records: &[Record]) -> Groups {
        let mut groups = Groups::default();
        groups.resize(records.len() as u32);
        let mut grouping = groups.grouping();
        (0..).zip(records).for_each(|(number, record)| grouping.add(number, record));
        grouping.close();
        groups
    }

    #[test]
    fn adding_what_has_changed_gives_the_digest_of_all() {
        let record = |uid| Record { uid, ..Record::default() };
        let mut records: Vec<_> = (1..=GROUP * 3 + 5).map(record).collect();
        let mut groups = digest(&records);
        records[GROUP as usize].modseq = 9;
        records.extend((GROUP * 3 + 6..GROUP * 4 + 9).map(record));
        let whole = digest(&records);
        assert_ne!(groups.digest(), whole.digest());
        groups.resize(records.len() as u32);
        let mut grouping = groups.grouping();
        for (number, record) in (0..).zip(&records) {
            if (GROUP..GROUP * 2).contains(&number) || number >= GROUP * 3 {
                grouping.add(number, record);
            }
        }
        grouping.close();
        assert_eq!(groups, whole);
        assert_eq!(groups.digest(), whole.digest());
        records.swap(0, 1);
        assert_ne!(digest(&records).digest(), whole.digest());
    }
}
