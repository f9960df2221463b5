//! The same index in another minor version, as another release of Cyrus writes it.
//!
//! From 16 on, versions differ in their headers, and only from 20 on in their records:
//! records are copied as they are where both versions lay them out alike.  No record's
//! modification sequence, flags or place in the cache changes, so cyrus.cache goes with
//! the new index as it went with the old one.

use super::header::Header;
use super::layout::Layout;
use super::record::{Record, internal, system};
use super::time::Time;
use super::write::{WriteError, write_header, write_index};
use super::{IndexError, IndexView};

/// The oldest version that is converted: older ones keep in annotations what their
/// successors keep in the records.
pub const OLDEST_CONVERTED: u32 = 16;

/// Since this version an index knows since when it knows of changes.
const HAS_EPOCH: u32 = 17;

/// Since this version an index counts what is deleted and expunged.
const COUNTS_DELETED: u32 = 18;

/// Why an index is not converted.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum ConvertError {
    /// It has annotations that would become parts of records.
    #[error("an index of version {0} is converted by Cyrus itself only")]
    TooOld(u32),
    /// A record cannot be read.
    #[error(transparent)]
    Read(#[from] IndexError),
    /// The other version cannot hold it.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// The bytes of the same index in the version `minor`.
///
/// `now` is when knowledge of changes begins in an index that does not say so, as Cyrus
/// takes it where it opens one (`imap/mailbox.c:mailbox_buf_to_index_header`).  Fails if
/// a record is damaged, or if one of the two versions is older than
/// [`OLDEST_CONVERTED`].
pub fn convert(index: &IndexView<'_>, minor: u32, now: Time) -> Result<Vec<u8>, ConvertError> {
    let from = index.header().minor;
    if let Some(old) = [from, minor].into_iter().find(|minor| *minor < OLDEST_CONVERTED) {
        return Err(ConvertError::TooOld(old));
    }
    let to = Layout::of(minor).ok_or(WriteError::Version(minor))?;
    let mut header = index.header().clone();
    if from < HAS_EPOCH {
        let repacked = header.last_repack_time;
        header.changes_epoch = if repacked.is_zero() { now } else { repacked };
    }
    let counts = from < COUNTS_DELETED && minor >= COUNTS_DELETED;
    if counts {
        count(&mut header, index)?;
    }
    let alike =
        index.layout.record == to.record && index.header().record_size == u32::from(to.record_size);
    if !alike {
        let records = index.records().collect::<Result<Vec<_>, _>>()?;
        return Ok(write_index(minor, &header, records)?);
    }
    let mut out = write_header(minor, &header)?;
    out.extend_from_slice(index.records);
    Ok(out)
}

/// The bytes of the same index for a mailbox whose cyrus.header has this CRC.
///
/// Fails if the version is older than 12, which knows of no CRC.
pub fn with_header_file(index: &IndexView<'_>, crc: u32) -> Result<Vec<u8>, ConvertError> {
    let header = Header { header_file_crc: crc, ..index.header().clone() };
    let mut out = write_header(header.minor, &header)?;
    out.extend_from_slice(index.records);
    Ok(out)
}

/// The bytes of the same index without the place in cyrus.cache of the records that are
/// `stale`: Cyrus parses their messages again when it needs to.  `None` if there are none.
///
/// Fails if a record is damaged.
pub fn without_cache(
    index: &IndexView<'_>,
    mut stale: impl FnMut(&Record) -> bool,
) -> Result<Option<Vec<u8>>, ConvertError> {
    edited(index, |record| {
        let lost = record.cache_offset > 0 && stale(record);
        if lost {
            record.forget_cache();
        }
        lost
    })
}

/// The bytes of the same index with other records; `edit` says whether it has changed one.
/// `None` if it has changed none.
///
/// Fails if a record is damaged.
pub fn edited(
    index: &IndexView<'_>,
    mut edit: impl FnMut(&mut Record) -> bool,
) -> Result<Option<Vec<u8>>, ConvertError> {
    let mut any = false;
    let mut records = Vec::new();
    for record in index.records() {
        let mut record = record?;
        any |= edit(&mut record);
        records.push(record);
    }
    let header = index.header();
    Ok(if any { Some(write_index(header.minor, header, records)?) } else { None })
}

/// Counts what an older version did not (`imap/mailbox.c:header_update_counts`, 3.10).
fn count(header: &mut Header, index: &IndexView<'_>) -> Result<(), IndexError> {
    (header.quota_deleted_used, header.quota_expunged_used) = (0, 0);
    for record in index.records() {
        let record = record?;
        let counter = match record.internal_flags & (internal::UNLINKED | internal::EXPUNGED) {
            internal::EXPUNGED => &mut header.quota_expunged_used,
            0 if record.system_flags & system::DELETED != 0 => &mut header.quota_deleted_used,
            _ => continue,
        };
        *counter = counter.saturating_add(record.size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::super::compare;
    use super::*;

    fn record(uid: u32, system_flags: u16, internal_flags: u16) -> Record {
        Record {
            uid,
            size: 1000 + u64::from(uid),
            system_flags,
            internal_flags,
            internaldate: Time::from_seconds(uid),
            savedate: Time::from_seconds(uid + 1),
            modseq: 7,
            createdmodseq: 5,
            cache_offset: 99 * u64::from(uid),
            cache_version: 11,
            cache_crc: 0xabcd,
            user_flags: [uid, 0, 0, 1],
            ..Record::default()
        }
    }

    /// Live, deleted, expunged, and expunged without a file.
    fn index(minor: u32) -> Vec<u8> {
        let records = [
            record(1, 0, 0),
            record(2, system::DELETED, 0),
            record(3, system::DELETED, internal::EXPUNGED),
            record(9, 0, internal::EXPUNGED | internal::UNLINKED),
            record(12, system::DELETED | system::SEEN, 0),
        ];
        let header = Header {
            generation: 3,
            uidvalidity: 44,
            last_uid: 12,
            exists: 3,
            highestmodseq: 1 << 33,
            deletedmodseq: 4,
            header_file_crc: 5,
            sync_crc: 6,
            createdmodseq: 2,
            changes_epoch: if minor < HAS_EPOCH { Time::ZERO } else { Time::from_seconds(8) },
            quota_deleted_used: if minor < COUNTS_DELETED { 0 } else { 1002 + 1012 },
            quota_expunged_used: if minor < COUNTS_DELETED { 0 } else { 1003 },
            ..Header::default()
        };
        write_index(minor, &header, records).unwrap()
    }

    const NOW: Time = Time::ZERO;

    #[test]
    fn there_and_back_is_the_same_file() {
        for from in 16..=20 {
            for to in 17..=20 {
                let old = index(from);
                let new = convert(&IndexView::parse(&old).unwrap(), to, NOW).unwrap();
                let view = IndexView::parse(&new).unwrap();
                assert_eq!(view.header().minor, to);
                assert_eq!(compare(&IndexView::parse(&old).unwrap(), &view), []);
                if from > 16 {
                    assert_eq!(new, index(to), "{from} to {to}");
                    assert_eq!(convert(&view, from, NOW).unwrap(), old, "{from} to {to}");
                }
            }
        }
    }

    #[test]
    fn what_an_older_version_does_not_say_is_found() {
        let old = index(16);
        let now = Time::from_seconds(77);
        let new = convert(&IndexView::parse(&old).unwrap(), 19, now).unwrap();
        let header = IndexView::parse(&new).unwrap().header().clone();
        assert_eq!(header.changes_epoch, now);
        assert_eq!((header.quota_deleted_used, header.quota_expunged_used), (2014, 1003));
    }

    #[test]
    fn records_of_another_size_are_written_anew() {
        // 3.13 has left indexes of version 19 whose records have the room of 20.
        let mut wide = index(19);
        let tail = wide.split_off(160);
        for record in tail.chunks(112) {
            wide.extend_from_slice(record);
            wide.extend([0; 32]);
        }
        wide[16..20].copy_from_slice(&144u32.to_be_bytes());
        let crc = crate::cyrus::db::crc::crc32(&wide[..156]);
        wide[156..160].copy_from_slice(&crc.to_be_bytes());
        let view = IndexView::parse(&wide).unwrap();
        assert_eq!(convert(&view, 19, NOW).unwrap(), index(19));
        assert_eq!(convert(&view, 17, NOW).unwrap(), index(17));
    }

    #[test]
    fn only_what_is_stale_loses_its_place_in_the_cache() {
        let old = index(19);
        let view = IndexView::parse(&old).unwrap();
        assert_eq!(without_cache(&view, |_| false).unwrap(), None);
        let new = without_cache(&view, |record| record.uid == 3).unwrap().unwrap();
        let view = IndexView::parse(&new).unwrap();
        assert_eq!(compare(&IndexView::parse(&old).unwrap(), &view), []);
        let places: Vec<_> =
            view.records().map(|r| r.unwrap()).map(|r| (r.cache_offset, r.cache_crc)).collect();
        let crc = 0xabcd;
        assert_eq!(places, [(99, crc), (198, crc), (0, 0), (891, crc), (1188, crc)]);
    }

    #[test]
    fn damage_and_what_is_too_old_are_refused() {
        for (from, to, old) in [(13, 19, 13), (19, 12, 12)] {
            let file = index(from);
            let view = IndexView::parse(&file).unwrap();
            assert_eq!(convert(&view, to, NOW), Err(ConvertError::TooOld(old)));
        }
        let mut damaged = index(17);
        damaged[200] ^= 1;
        let view = IndexView::parse(&damaged).unwrap();
        assert!(matches!(convert(&view, 19, NOW), Err(ConvertError::Read(_))));
        let view = IndexView::parse(&damaged).unwrap();
        // Where nothing is counted the comparison with the source finds it.
        assert!(convert(&view, 17, NOW).is_ok());
    }
}
