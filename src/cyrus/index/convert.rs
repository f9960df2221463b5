//! The same index in another minor version, as another release of Cyrus writes it.
//!
//! From 16 on, versions differ in their headers, and only from 20 on in their records:
//! records are copied as they are where both versions lay them out alike.  No record's
//! modification sequence, flags or place in the cache changes, so cyrus.cache goes with
//! the new index as it went with the old one.
//!
//! It is written a few records at a time, and written again only where the old index has
//! changed since: one of a million messages has more than a hundred megabytes.

use super::file::{IndexFile, ReadError, touched};
use super::header::Header;
use super::layout::Layout;
use super::record::{Record, internal, system};
use super::time::Time;
use super::write::{WriteError, write_header, write_record};
use std::fs::File;
use std::io;
use std::iter::once;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// The oldest version that is converted: older ones keep in annotations what their
/// successors keep in the records.
pub const OLDEST_CONVERTED: u32 = 16;

/// Since this version an index knows since when it knows of changes.
const HAS_EPOCH: u32 = 17;

/// Since this version an index counts what is deleted and expunged.
const COUNTS_DELETED: u32 = 18;

/// How many records are converted, and counted, together.
const GROUP: u32 = 128;

/// How much is written at a time, in bytes.
const WRITE: usize = 256 << 10;

/// Why an index is not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It has annotations that would become parts of records.
    #[error("an index of version {0} is converted by Cyrus itself only")]
    TooOld(u32),
    /// A record cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The other version cannot hold it.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// It cannot be written.
    #[error("writing it: {0}")]
    Io(io::Error),
}

/// What an index becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// Its minor version.
    pub minor: u32,
    /// When knowledge of changes begins if the index does not say so, as Cyrus takes it
    /// where it opens one (`imap/mailbox.c:mailbox_buf_to_index_header`).
    pub now: Time,
    /// CRC-32 of the cyrus.header that it goes with; `None`: of the same as before.
    pub header_file_crc: Option<u32>,
}

/// What is remembered of an index that was converted, so that it can be continued.
#[derive(Debug, Clone, Default)]
pub struct Conversion {
    /// Versions of the index, before and after, and where its records were.
    from: Option<(u32, u32, u32, u32)>,
    records: u32,
    /// Bytes of deleted and of expunged messages, by group.
    counts: Vec<(u64, u64)>,
}

impl Conversion {
    /// Whether what was converted is what would be made now of the same records.
    pub fn continues(&self, header: &Header, form: &Form) -> bool {
        self.from == Some(place(header, form)) && self.records <= header.num_records
    }

    /// Converts those records that lie in the `changed` bytes of `from`, as `edit` leaves
    /// them, and the header; all other records are in `to` already.  All are converted if
    /// this does not [continue](Self::continues) what was converted before.  `edit` gets
    /// each record with its number, and says whether it has changed it.
    ///
    /// Returns what was written, as ranges of bytes in ascending order.  Fails if a record
    /// is damaged, or if one of two versions is older than [`OLDEST_CONVERTED`]; `to` is
    /// of no use then.
    pub fn update(
        &mut self,
        (from, changed): (&mut IndexFile<'_>, &[Range<u64>]),
        (to, form): (&File, &Form),
        mut edit: impl FnMut(u32, &mut Record) -> bool,
    ) -> Result<Vec<Range<u64>>, ConvertError> {
        let mut header = from.header().clone();
        let too_old = [header.minor, form.minor].into_iter().find(|m| *m < OLDEST_CONVERTED);
        if let (Some(old), true) = (too_old, header.minor != form.minor) {
            return Err(ConvertError::TooOld(old));
        }
        let layout = Layout::of(form.minor).ok_or(WriteError::Version(form.minor))?;
        let alike = from.has_records_of(layout);
        let records = header.num_records;
        let numbers = match self.continues(&header, form) {
            true => touched(&header, self.records, changed.iter().cloned(), GROUP),
            false => once(0..records).collect(),
        };
        // What fails is not continued.
        self.from = None;
        self.counts.resize(records.div_ceil(GROUP) as usize, (0, 0));
        let place_of =
            |n: u32| u64::from(layout.header_size) + u64::from(n) * u64::from(layout.record_size);
        let mut written: Vec<_> = once(0..u64::from(layout.header_size)).collect();
        let mut out = Vec::new();
        for numbers in numbers.into_iter().filter(|numbers| !numbers.is_empty()) {
            let mut at = place_of(numbers.start);
            written.push(at..place_of(numbers.end));
            let mut write = |out: &mut Vec<u8>| {
                to.write_all_at(out, at).map_err(ConvertError::Io)?;
                at += out.len() as u64;
                out.clear();
                Ok::<_, ConvertError>(())
            };
            from.try_each(numbers, |number, mut record, bytes| {
                count(&mut self.counts, number, &record);
                if edit(number, &mut record) || !alike {
                    write_record(form.minor, &record, &mut out)?;
                } else {
                    out.extend_from_slice(bytes);
                }
                if out.len() < WRITE { Ok(()) } else { write(&mut out) }
            })?;
            write(&mut out)?;
        }
        if header.minor < HAS_EPOCH {
            let repacked = header.last_repack_time;
            header.changes_epoch = if repacked.is_zero() { form.now } else { repacked };
        }
        if header.minor < COUNTS_DELETED && form.minor >= COUNTS_DELETED {
            let sum = |all: u64, more: u64| all.saturating_add(more);
            header.quota_deleted_used =
                self.counts.iter().map(|(deleted, _)| *deleted).fold(0, sum);
            header.quota_expunged_used =
                self.counts.iter().map(|(_, expunged)| *expunged).fold(0, sum);
        }
        header.header_file_crc = form.header_file_crc.unwrap_or(header.header_file_crc);
        let bytes = write_header(form.minor, &header)?;
        to.write_all_at(&bytes, 0).map_err(ConvertError::Io)?;
        (self.from, self.records) = (Some(place(from.header(), form)), records);
        Ok(written)
    }
}

/// What must be the same for records to stay as they were converted.
fn place(header: &Header, form: &Form) -> (u32, u32, u32, u32) {
    (header.minor, form.minor, header.start_offset, header.record_size)
}

/// Counts what an older version did not (`imap/mailbox.c:header_update_counts`, 3.10).
fn count(counts: &mut [(u64, u64)], number: u32, record: &Record) {
    let Some(group) = counts.get_mut((number / GROUP) as usize) else { return };
    if number.is_multiple_of(GROUP) {
        *group = (0, 0);
    }
    let counter = match record.internal_flags & (internal::UNLINKED | internal::EXPUNGED) {
        internal::EXPUNGED => &mut group.1,
        0 if record.system_flags & system::DELETED != 0 => &mut group.0,
        _ => return,
    };
    *counter = counter.saturating_add(record.size);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    #![allow(clippy::single_range_in_vec_init)]
    use super::super::{IndexView, compare, write_index};
    use super::*;
    use crate::wire::blocks::{BLOCK, Blocks};

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

    fn form(minor: u32, now: Time) -> Form {
        Form { minor, now, header_file_crc: None }
    }

    fn file_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    fn bytes_of(file: &File) -> Vec<u8> {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Converts all of an index.
    fn convert(index: &[u8], minor: u32, now: Time) -> Result<Vec<u8>, ConvertError> {
        let (from, to) = (file_of(index), tempfile::tempfile().unwrap());
        let mut from = IndexFile::open(&from)?;
        let (mut conversion, form) = (Conversion::default(), form(minor, now));
        conversion.update((&mut from, &[]), (&to, &form), |_, _| false)?;
        Ok(bytes_of(&to))
    }

    /// All of an index at once, in memory, without anything remembered.
    fn whole(index: &[u8], form: &Form, edit: impl Fn(&mut Record) -> bool) -> Vec<u8> {
        let view = IndexView::parse(index).unwrap();
        let mut header = view.header().clone();
        if header.minor < COUNTS_DELETED && form.minor >= COUNTS_DELETED {
            for record in view.records().map(|r| r.unwrap()) {
                let gone = record.is_expunged();
                if gone && !record.is_unlinked() {
                    header.quota_expunged_used += record.size;
                } else if !gone && record.system_flags & system::DELETED != 0 {
                    header.quota_deleted_used += record.size;
                }
            }
        }
        header.header_file_crc = form.header_file_crc.unwrap_or(header.header_file_crc);
        let records = view.records().map(|record| {
            let mut record = record.unwrap();
            edit(&mut record);
            record
        });
        write_index(form.minor, &header, records).unwrap()
    }

    const NOW: Time = Time::ZERO;

    #[test]
    fn there_and_back_is_the_same_file() {
        for from in 16..=20 {
            for to in 17..=20 {
                let old = index(from);
                let new = convert(&old, to, NOW).unwrap();
                let view = IndexView::parse(&new).unwrap();
                assert_eq!(view.header().minor, to);
                assert_eq!(compare(&IndexView::parse(&old).unwrap(), &view), []);
                if from > 16 {
                    assert_eq!(new, index(to), "{from} to {to}");
                    assert_eq!(convert(&new, from, NOW).unwrap(), old, "{from} to {to}");
                }
            }
        }
    }

    /// An index of many records, and what may happen to it.
    #[derive(Clone)]
    struct Many {
        header: Header,
        records: Vec<Record>,
    }

    impl Many {
        fn new(count: u32) -> Self {
            let records = (1..=count).map(|n| record(n * 2, 0, 0)).collect();
            Self { header: Header { uidvalidity: 44, ..Header::default() }, records }
        }

        fn append(&mut self, count: u32) {
            let last = self.records.last().map_or(0, |r| r.uid);
            self.records.extend((1..=count).map(|n| record(last + 3 * n, system::SEEN, 0)));
            self.header.last_uid = last + 3 * count;
        }

        /// Changes every `step`th record from `first` on.
        fn change(&mut self, first: usize, step: usize, change: impl Fn(&mut Record)) {
            self.header.highestmodseq += 1;
            for record in self.records.iter_mut().skip(first).step_by(step) {
                change(record);
                record.modseq = self.header.highestmodseq;
            }
        }

        fn bytes(&self, minor: u32) -> Vec<u8> {
            write_index(minor, &self.header, self.records.iter().copied()).unwrap()
        }
    }

    /// Deletes, expunges, unlinks, appends; nothing; the header alone.
    const STEPS: [fn(&mut Many); 8] = [
        |many| many.change(5, 700, |r| r.system_flags |= system::DELETED),
        |many| many.change(5, 1400, |r| r.internal_flags |= internal::EXPUNGED),
        |many| many.append(1),
        |many| many.change(5, 2800, |r| r.internal_flags |= internal::UNLINKED),
        |many| many.append(400),
        |_| {},
        |many| many.header.recentuid = 9,
        |many| {
            many.change(701, 9000, |r| (r.cache_offset, r.cache_version) = (1 << 33, 13));
            many.append(GROUP);
        },
    ];

    #[test]
    fn what_is_converted_again_where_it_has_changed_is_what_all_of_it_becomes() {
        let edit = |record: &mut Record| {
            let edited = record.uid.is_multiple_of(5) && record.cache_offset > 0;
            if edited {
                record.forget_cache();
            }
            edited
        };
        for (from, minor) in [(17, 19), (19, 17), (17, 20), (20, 19), (17, 17)] {
            let mut many = Many::new(3000);
            let form = Form { header_file_crc: Some(7), ..form(minor, NOW) };
            let (mut conversion, to) = (Conversion::default(), tempfile::tempfile().unwrap());
            let mut before = Blocks::of(&[]);
            for (number, step) in STEPS.iter().enumerate() {
                step(&mut many);
                let mut bytes = many.bytes(from);
                // What is added next lies in its place already.
                let mut next = many.clone();
                STEPS.iter().skip(number + 1).take(1).for_each(|step| step(&mut next));
                bytes.extend_from_slice(&next.bytes(from)[bytes.len()..]);
                let blocks = Blocks::of(&bytes);
                let (file, mut looked) = (file_of(&bytes), 0);
                let mut open = IndexFile::open(&file).unwrap();
                let changed = blocks.differing(&before);
                let old = bytes_of(&to);
                let written =
                    conversion.update((&mut open, &changed), (&to, &form), |_, record| {
                        looked += 1;
                        edit(record)
                    });
                let (written, new) = (written.unwrap(), bytes_of(&to));
                assert!(new == whole(&bytes, &form, edit), "{from} to {minor}, step {number}");
                // Nothing else is written, and little is read.
                let within = |at: u64| written.iter().any(|range| range.contains(&at));
                let same = |at: usize| old.get(at) == new.get(at);
                assert!((0..new.len()).all(|at| same(at) || within(at as u64)), "step {number}");
                assert!(number == 0 || looked < 1500, "{looked} in step {number}");
                before = blocks;
            }
        }
    }

    #[test]
    fn what_does_not_continue_what_was_converted_is_converted_whole() {
        let mut many = Many::new(500);
        let (mut conversion, form) = (Conversion::default(), form(19, NOW));
        let update = |conversion: &mut Conversion, bytes: &[u8], changed: &[Range<u64>]| {
            let (file, to) = (file_of(bytes), tempfile::tempfile().unwrap());
            let mut from = IndexFile::open(&file).unwrap();
            let written = conversion.update((&mut from, changed), (&to, &form), |_, _| false);
            (written.map(|written| written.len()), bytes_of(&to))
        };
        update(&mut conversion, &many.bytes(17), &[]).0.unwrap();
        let continued = update(&mut conversion, &many.bytes(17), &[0..BLOCK as u64]);
        assert_eq!(continued.0.unwrap(), 2);
        assert_ne!(continued.1, whole(&many.bytes(17), &form, |_| false));
        // Fewer records, another version, one that failed: nothing of them is taken over.
        many.records.truncate(400);
        let all = update(&mut conversion, &many.bytes(17), &[0..1]);
        assert_eq!(all.1, whole(&many.bytes(17), &form, |_| false));
        let all = update(&mut conversion, &many.bytes(18), &[0..1]);
        assert_eq!(all.1, whole(&many.bytes(18), &form, |_| false));
        let mut damaged = many.bytes(18);
        damaged[200] ^= 1;
        assert!(update(&mut conversion, &damaged, &[0..BLOCK as u64]).0.is_err());
        let all = update(&mut conversion, &many.bytes(18), &[0..1]);
        assert_eq!(all.1, whole(&many.bytes(18), &form, |_| false));
    }

    #[test]
    fn what_an_older_version_does_not_say_is_found() {
        let old = index(16);
        let now = Time::from_seconds(77);
        let new = convert(&old, 19, now).unwrap();
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
        assert_eq!(convert(&wide, 19, NOW).unwrap(), index(19));
        assert_eq!(convert(&wide, 17, NOW).unwrap(), index(17));
    }

    #[test]
    fn damage_and_what_is_too_old_are_refused() {
        for (from, to, old) in [(13, 19, 13), (19, 12, 12)] {
            let refused = convert(&index(from), to, NOW).unwrap_err();
            assert!(matches!(refused, ConvertError::TooOld(minor) if minor == old), "{refused}");
        }
        let mut damaged = index(17);
        damaged[200] ^= 1;
        assert!(matches!(convert(&damaged, 19, NOW), Err(ConvertError::Read(_))));
        assert!(matches!(convert(&damaged, 17, NOW), Err(ConvertError::Read(_))));
    }
}
