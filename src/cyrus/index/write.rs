//! Writes indexes of minor versions 12 to 20.

use super::codec::Writer;
use super::header::Header;
use super::layout::Layout;
use super::record::Record;
use crate::cyrus::db::crc::crc32;

/// Why an index cannot be written.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum WriteError {
    /// Only minor versions 12 to 20 are written.
    #[error("an index of minor version {0} cannot be written")]
    Version(u32),
    /// The version has too few bits for a value.
    #[error("the {field} of UID {uid} does not fit minor version {minor}")]
    Record {
        /// Which field.
        field: &'static str,
        /// Whose.
        uid: u32,
        /// Minor version.
        minor: u32,
    },
    /// The version has too few bits for a value of the header.
    #[error("the header's {field} does not fit minor version {minor}")]
    Header {
        /// Which field.
        field: &'static str,
        /// Minor version.
        minor: u32,
    },
    /// UIDs must ascend, from 1 on.
    #[error("UID {uid} cannot follow UID {before}")]
    Order {
        /// UID of the record.
        uid: u32,
        /// UID of the record before.
        before: u32,
    },
    /// More records than can be counted.
    #[error("there are too many records")]
    TooMany,
}

fn writable(minor: u32) -> Result<&'static Layout, WriteError> {
    let layout = Layout::of(minor).filter(|layout| layout.crc);
    layout.ok_or(WriteError::Version(minor))
}

fn seal(bytes: &mut [u8]) {
    if let Some((rest, crc)) = bytes.split_last_chunk_mut::<4>() {
        *crc = crc32(rest).to_be_bytes();
    }
}

/// Writes a header with its checksum.
///
/// `minor`, `start_offset` and `record_size` of `header` are replaced by what the
/// version wants; all else is written as it is, in so far as the version has it.
/// Fractions of seconds are lost before minor 20.  What an older version did not have
/// (`unseen`, `createdmodseq`, `changes_epoch`) stays as `header` has it: set it when
/// converting upwards.  Fails if a value does not fit.
pub fn write_header(minor: u32, header: &Header) -> Result<Vec<u8>, WriteError> {
    let layout = writable(minor)?;
    let mut header = Header {
        minor,
        start_offset: layout.header_size.into(),
        record_size: layout.record_size.into(),
        ..header.clone()
    };
    let mut bytes = vec![0; layout.header_size.into()];
    let mut writer = Writer { bytes: &mut bytes, misfit: None };
    header.visit(&layout.header, &mut writer);
    if let Some(field) = writer.misfit {
        return Err(WriteError::Header { field, minor });
    }
    seal(&mut bytes);
    Ok(bytes)
}

/// Appends a record with its checksum to `out`.
///
/// What the version does not have is left out, and fractions of seconds before
/// minor 20.  Fails, and appends nothing, if a value does not fit.
pub fn write_record(minor: u32, record: &Record, out: &mut Vec<u8>) -> Result<(), WriteError> {
    let layout = writable(minor)?;
    let start = out.len();
    out.resize(start + usize::from(layout.record_size), 0);
    let bytes = out.get_mut(start..).unwrap_or_default();
    let mut writer = Writer { bytes: &mut *bytes, misfit: None };
    let mut copy = *record;
    copy.visit(&layout.record, &mut writer);
    let wide = record.cache_offset >> 48 != 0;
    if let Some(field) = writer.misfit.or(wide.then_some("cache offset")) {
        out.truncate(start);
        let uid = record.uid;
        return Err(WriteError::Record { field, uid, minor });
    }
    seal(bytes);
    Ok(())
}

/// Writes a whole index; the header's number of records is that of `records`.
///
/// `exists` and the other counts are written as `header` has them.  Fails if UIDs do
/// not ascend or a value does not fit.
pub fn write_index(
    minor: u32,
    header: &Header,
    records: impl IntoIterator<Item = Record>,
) -> Result<Vec<u8>, WriteError> {
    let mut out = write_header(minor, header)?;
    let (mut num_records, mut before) = (0u32, 0);
    for record in records {
        let uid = record.uid;
        if uid <= before {
            return Err(WriteError::Order { uid, before });
        }
        before = uid;
        num_records = num_records.checked_add(1).ok_or(WriteError::TooMany)?;
        write_record(minor, &record, &mut out)?;
    }
    let counted = Header { num_records, ..header.clone() };
    let head = write_header(minor, &counted)?;
    if let Some(place) = out.get_mut(..head.len()) {
        place.copy_from_slice(&head);
    }
    Ok(out)
}
