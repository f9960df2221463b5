//! cyrus.index and cyrus.expunge: what a mailbox knows of its messages.
//!
//! A header, then records of one size, big endian, UIDs ascending.  All minor
//! versions that servers from 2.2 on wrote, or left as they were, are read (2 to 20; 11
//! was internal to one company); 12 to 20 are written.  [`IndexView`] borrows the file's
//! bytes and reads records one by one, so a million messages need no memory of their
//! own.
//!
//! The bytes must have been read under the index's lock, or the answer is compared
//! with a later one: Cyrus updates records in place.

mod codec;
mod compare;
mod convert;
mod file;
mod header;
mod layout;
mod record;
mod time;
mod write;

#[cfg(test)]
mod offsets;
#[cfg(test)]
mod tests;

pub use compare::{Aspect, CompareOptions, IndexDifference, Side, compare, compare_with};
pub use convert::{Conversion, ConvertError, Form, OLDEST_CONVERTED};
pub use file::{IndexFile, ReadError, touched};
pub use header::{Header, options};
pub use record::{Identity, MAX_USER_FLAGS, Record, internal, system};
pub use time::Time;
pub use write::{WriteError, write_header, write_index, write_record};

use crate::cyrus::db::crc::crc32;
use codec::Reader;
use layout::{At, Layout, MINOR};

/// Where and why an index does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad index at offset {offset}: {damage}")]
pub struct IndexError {
    /// Byte offset.
    pub offset: u64,
    /// What is wrong there.
    pub damage: Damage,
}

/// What is wrong with an index.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The file ends too early.
    #[error("the file has {have} bytes and needs {need}")]
    Short {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// No Cyrus that is known writes this.
    #[error("minor version {0} is not known")]
    Version(u32),
    /// Header or record size does not fit the version.
    #[error("{found} is not the {what} of minor version {minor}")]
    Layout {
        /// Which size.
        what: &'static str,
        /// Minor version.
        minor: u32,
        /// The size found, in bytes.
        found: u32,
    },
    /// The header's checksum is wrong.
    #[error("the header's checksum is wrong")]
    HeaderChecksum,
    /// A record's checksum is wrong.
    #[error("the checksum of the record of UID {uid} is wrong")]
    RecordChecksum {
        /// UID, if that much of the record is right.
        uid: u32,
    },
    /// A record has UID 0.
    #[error("the record has UID 0")]
    NoUid,
    /// UIDs are not ascending.
    #[error("UID {uid} follows UID {before}")]
    Order {
        /// UID of this record.
        uid: u32,
        /// UID of a record before it.
        before: u32,
    },
    /// There is no such record.
    #[error("there is no record number {0}")]
    NoRecord(u32),
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, IndexError>;

fn fail<T>(offset: u64, damage: Damage) -> Result<T> {
    Err(IndexError { offset, damage })
}

/// Which file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Expunge,
}

/// An index whose header is read and whose records are read on demand.
#[derive(Debug, Clone)]
pub struct IndexView<'a> {
    header: Header,
    layout: &'static Layout,
    /// Exactly `count` times the record size.
    records: &'a [u8],
    count: u32,
    kind: Kind,
}

impl<'a> IndexView<'a> {
    /// Reads the header of a cyrus.index and checks that all records are there.
    ///
    /// Bytes behind the last record are ignored: 2.x appends records first and
    /// counts them afterwards.  Fails if the file is too short, the version is not
    /// known, the sizes are not those of the version, or the header's checksum is
    /// wrong (`imap/mailbox.c:mailbox_buf_to_index_header`).
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::open(bytes, Kind::Index)
    }

    /// Reads the header of a cyrus.expunge, in which 2.3 keeps expunged messages.
    ///
    /// Its records are in the order of the expunges, one UID may be there twice, and
    /// the counts in the header may be wrong: there are as many records as the file
    /// has room for, as the upgrade of 2.4 reads it.  Otherwise as
    /// [`parse`](Self::parse).
    pub fn parse_expunge(bytes: &'a [u8]) -> Result<Self> {
        Self::open(bytes, Kind::Expunge)
    }

    /// Reads the header alone, of the beginning of a cyrus.index: it says how many
    /// messages there are, and of what size. Fails as [`parse`](Self::parse).
    pub fn peek(beginning: &'a [u8]) -> Result<Header> {
        Self::open_header(beginning).map(|(header, ..)| header)
    }

    fn open_header(bytes: &'a [u8]) -> Result<(Header, &'static Layout, &'a [u8])> {
        let have = bytes.len() as u64;
        let short = |need| fail(have, Damage::Short { need, have });
        let offset = MINOR as u64;
        let Some(&word) = bytes.get(MINOR..).and_then(|b| b.first_chunk::<4>()) else {
            return short(offset + 4);
        };
        let minor = u32::from_be_bytes(word);
        let Some(layout) = Layout::of(minor) else {
            return fail(offset, Damage::Version(minor));
        };
        let size = usize::from(layout.header_size);
        let Some((head, body)) = bytes.split_at_checked(size) else {
            return short(size as u64);
        };
        let header = Header::read(head, layout);
        let wrong = |what, found| Damage::Layout { what, minor, found };
        if header.start_offset != u32::from(layout.header_size) {
            return fail(12, wrong("header size", header.start_offset));
        }
        if !layout.allows_record_size(header.record_size) {
            return fail(16, wrong("record size", header.record_size));
        }
        if layout.crc && !crc_fits(head) {
            return fail(size as u64 - 4, Damage::HeaderChecksum);
        }
        Ok((header, layout, body))
    }

    fn open(bytes: &'a [u8], kind: Kind) -> Result<Self> {
        let (header, layout, body) = Self::open_header(bytes)?;
        let have = bytes.len() as u64;
        let size = usize::from(layout.header_size);
        let stride = u64::from(header.record_size);
        let count = match kind {
            Kind::Index => header.num_records,
            Kind::Expunge => u32::try_from(body.len() as u64 / stride).unwrap_or(u32::MAX),
        };
        let need = u64::from(count) * stride;
        let records = usize::try_from(need).ok().and_then(|need| body.get(..need));
        match records {
            Some(records) => Ok(Self { header, layout, records, count, kind }),
            None => fail(have, Damage::Short { need: size as u64 + need, have }),
        }
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Number of records, expunged ones included.
    pub fn len(&self) -> u32 {
        self.count
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether the index belongs to this cyrus.header; `None` before minor 12, which
    /// does not say.
    pub fn header_file_fits(&self, cyrus_header: &[u8]) -> Option<bool> {
        let says = self.layout.header.header_file_crc != At::No;
        says.then(|| self.header.header_file_crc == crc32(cyrus_header))
    }

    /// All records in the order of the file, expunged ones included.
    ///
    /// A bad record gives an error and does not end the iteration.
    pub fn records(&self) -> Records<'_, 'a> {
        Records { view: self, next: 0, last_uid: 0 }
    }

    /// The records of messages that clients see, and errors.
    pub fn live(&self) -> impl Iterator<Item = Result<Record>> {
        let records = self.records();
        records.filter(|r| !matches!(r, Ok(record) if record.is_expunged()))
    }

    /// The record with a number, counted from 0.  Fails if there is none or its
    /// checksum is wrong.
    pub fn record(&self, number: u32) -> Result<Record> {
        let stride = u64::from(self.header.record_size);
        let start = u64::from(number) * stride;
        let offset = u64::from(self.header.start_offset) + start;
        let bytes = usize::try_from(start).ok().and_then(|start| {
            let size = usize::from(self.layout.record_size);
            self.records.get(start..)?.get(..size)
        });
        let Some(bytes) = bytes else {
            return fail(offset, Damage::NoRecord(number));
        };
        if self.layout.crc && !crc_fits(bytes) {
            let uid = Reader { bytes }.number(self.layout.record.uid).unwrap_or(0);
            let uid = u32::try_from(uid).unwrap_or(0);
            return fail(offset, Damage::RecordChecksum { uid });
        }
        let record = Record::read(bytes, self.layout, self.header.highestmodseq);
        if record.uid == 0 {
            return fail(offset, Damage::NoUid);
        }
        Ok(record)
    }

    /// The record of a UID, expunged or not, found by bisection; for a cyrus.expunge
    /// by looking at all of them.
    pub fn find(&self, uid: u32) -> Result<Option<Record>> {
        if self.kind == Kind::Expunge {
            return self.records().find(|r| !matches!(r, Ok(r) if r.uid != uid)).transpose();
        }
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.record(middle)?;
            match record.uid.cmp(&uid) {
                std::cmp::Ordering::Equal => return Ok(Some(record)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

/// Whether the last four bytes are the CRC-32 of the others.
fn crc_fits(bytes: &[u8]) -> bool {
    let Some((rest, crc)) = bytes.split_last_chunk::<4>() else {
        return false;
    };
    crc32(rest) == u32::from_be_bytes(*crc)
}

/// Iterator over an index's records; see [`IndexView::records`].
#[derive(Debug, Clone)]
pub struct Records<'v, 'a> {
    view: &'v IndexView<'a>,
    next: u32,
    /// Highest UID so far.
    last_uid: u32,
}

impl Iterator for Records<'_, '_> {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.view.count {
            return None;
        }
        let number = self.next;
        self.next += 1;
        let record = match self.view.record(number) {
            Ok(record) => record,
            Err(error) => return Some(Err(error)),
        };
        let (uid, before) = (record.uid, self.last_uid);
        if self.view.kind == Kind::Index && uid <= before {
            let header = &self.view.header;
            let start = u64::from(number) * u64::from(header.record_size);
            let offset = u64::from(header.start_offset) + start;
            return Some(fail(offset, Damage::Order { uid, before }));
        }
        self.last_uid = uid;
        Some(Ok(record))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.view.count - self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Records<'_, '_> {}
