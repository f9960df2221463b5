//! A cyrus.index that is read where it lies, a few records at a time: the index of a million
//! messages has more than a hundred megabytes.

use super::{Damage, Header, IndexError, IndexView, Kind, Layout, Record};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Records that are read at a time.
const WINDOW: u32 = 2048;

/// More than any version's header, in bytes.
const HEADER: usize = 4096;

/// Why an index could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What is in it is not an index.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// An open index whose header is read.
#[derive(Debug)]
pub struct IndexFile<'f> {
    file: &'f File,
    header: Header,
    layout: &'static Layout,
    /// What the header was read from, and more.
    beginning: Vec<u8>,
    window: Vec<u8>,
}

impl<'f> IndexFile<'f> {
    /// Reads the header. Fails as [`IndexView::parse`], also where records are missing.
    pub fn open(file: &'f File) -> Result<Self, ReadError> {
        let mut beginning = vec![0; HEADER];
        let length = read_at(file, &mut beginning, 0)?;
        beginning.truncate(length);
        let (header, layout, _) = IndexView::open_header(&beginning)?;
        let have = file.metadata()?.len();
        let need = header.place(header.num_records);
        if need > have {
            let damage = Damage::Short { need, have };
            return Err(IndexError { offset: have, damage }.into());
        }
        Ok(Self { file, header, layout, beginning, window: Vec::new() })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What lies before the records, as the header was read from it; `None` if it is longer
    /// than any version's header.
    pub fn before_records(&self) -> Option<&[u8]> {
        self.beginning.get(..usize::try_from(self.header.start_offset).ok()?)
    }

    /// Gives the records with these numbers, counted from 0, in the order of the file, which
    /// is that of their UIDs.
    ///
    /// Fails at the first that is damaged.
    pub fn each(
        &mut self,
        numbers: Range<u32>,
        mut take: impl FnMut(u32, Record),
    ) -> Result<(), ReadError> {
        self.try_each(numbers, |number, record, _| {
            take(number, record);
            Ok(())
        })
    }

    /// Gives the same records with their bytes, until one of them fails.
    pub fn try_each<E: From<ReadError>>(
        &mut self,
        numbers: Range<u32>,
        mut take: impl FnMut(u32, Record, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut before = 0;
        let mut first = numbers.start;
        let end = numbers.end.min(self.header.num_records);
        let stride = usize::try_from(self.header.record_size).unwrap_or(1).max(1);
        while first < end {
            let window = self.window(first, (end - first).min(WINDOW))?;
            let count = window.len();
            let bytes = window.records.chunks(stride);
            for ((number, record), bytes) in (first..).zip(window.records()).zip(bytes) {
                let offset = window.offset(number);
                // The view counts from its own beginning.
                let record = record.map_err(|e| ReadError::from(IndexError { offset, ..e }))?;
                let uid = record.uid;
                if uid <= before {
                    let damage = Damage::Order { uid, before };
                    return Err(ReadError::from(IndexError { offset, damage }).into());
                }
                before = uid;
                take(number, record, bytes)?;
            }
            first += count.max(1);
        }
        Ok(())
    }

    /// Whether its records are as a layout wants them.
    pub(super) fn has_records_of(&self, layout: &Layout) -> bool {
        self.layout.record == layout.record
            && self.header.record_size == u32::from(layout.record_size)
    }

    /// The record with a number, counted from 0.
    pub fn record(&mut self, number: u32) -> Result<Record, ReadError> {
        if number >= self.header.num_records {
            return Err(IndexError { offset: 0, damage: Damage::NoRecord(number) }.into());
        }
        Ok(self.window(number, 1)?.record(0)?)
    }

    fn window(&mut self, first: u32, count: u32) -> Result<IndexView<'_>, ReadError> {
        let stride = u64::from(self.header.record_size);
        let start = self.header.place(first);
        let length = usize::try_from(u64::from(count) * stride).unwrap_or(0);
        self.window.resize(length, 0);
        self.file.read_exact_at(&mut self.window, start)?;
        Ok(IndexView {
            header: self.header.clone(),
            layout: self.layout,
            records: &self.window,
            count,
            kind: Kind::Index,
        })
    }
}

impl Header {
    /// Where the record with a number is in its file, in bytes.
    pub fn place(&self, number: u32) -> u64 {
        u64::from(self.start_offset) + u64::from(number) * u64::from(self.record_size)
    }
}

impl IndexView<'_> {
    /// Where a record is in its file, in bytes.
    fn offset(&self, number: u32) -> u64 {
        self.header.place(number)
    }
}

/// Which records, by number, lie at least partly in these ranges of an index's bytes, in
/// whole groups of so many; and those behind the first `known`: what was added may have been
/// in its place before the header counted it.
pub fn touched(
    header: &Header,
    known: u32,
    ranges: impl IntoIterator<Item = Range<u64>>,
    group: u32,
) -> Vec<Range<u32>> {
    let added = header.place(known)..header.place(header.num_records);
    let ranges = ranges.into_iter().chain(std::iter::once(added));
    let mut ranges: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let start = u64::from(header.start_offset);
    let stride = u64::from(header.record_size).max(1);
    let number = |bytes: u64| u32::try_from(bytes / stride).unwrap_or(u32::MAX);
    let mut touched: Vec<Range<u32>> = Vec::new();
    for range in ranges {
        // Nothing but the header.
        if range.end <= start {
            continue;
        }
        let first = number(range.start.saturating_sub(start)) / group * group;
        let last = number((range.end - start).saturating_sub(1)) / group * group;
        let (first, end) = (first, last.saturating_add(group).min(header.num_records));
        match touched.last_mut() {
            Some(before) if first <= before.end => before.end = before.end.max(end),
            _ if first < end => touched.push(first..end),
            _ => {}
        }
    }
    touched
}

/// Reads as much as there is.
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    loop {
        let left = buffer.get_mut(read..).unwrap_or_default();
        match file.read_at(left, offset + read as u64) {
            Ok(0) => return Ok(read),
            Ok(more) => read += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)]
    use super::super::{Time, write_index};
    use super::*;

    fn index(count: u32) -> (tempfile::NamedTempFile, Vec<u8>) {
        let records = (1..=count).map(|uid| Record {
            uid: uid * 2,
            internaldate: Time::from_seconds(uid),
            ..Record::default()
        });
        let header = Header { last_uid: count * 2, exists: count, ..Header::default() };
        let bytes = write_index(17, &header, records).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    fn uids(file: &File, numbers: Range<u32>) -> Result<Vec<u32>, ReadError> {
        let mut uids = Vec::new();
        IndexFile::open(file)?.each(numbers, |_, record| uids.push(record.uid))?;
        Ok(uids)
    }

    #[test]
    fn records_are_those_of_the_whole_file() {
        let (file, bytes) = index(2 * WINDOW + 7);
        let view = IndexView::parse(&bytes).unwrap();
        let all: Vec<_> = view.records().map(|r| r.unwrap().uid).collect();
        assert_eq!(uids(file.as_file(), 0..u32::MAX).unwrap(), all);
        assert_eq!(uids(file.as_file(), 5..8).unwrap(), [12, 14, 16]);
        assert!(uids(file.as_file(), 9..9).unwrap().is_empty());
        let mut open = IndexFile::open(file.as_file()).unwrap();
        assert_eq!(open.record(3).unwrap().uid, 8);
        assert!(open.record(2 * WINDOW + 7).is_err());
    }

    #[test]
    fn damage_is_told_where_it_is() {
        let (file, mut bytes) = index(WINDOW + 5);
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
        std::fs::write(file.path(), &bytes).unwrap();
        let error = uids(file.as_file(), 0..u32::MAX).unwrap_err();
        let expected = IndexView::parse(&bytes).unwrap().records().find_map(Result::err).unwrap();
        assert_eq!(error.to_string(), expected.to_string());
        std::fs::write(file.path(), &bytes[..at]).unwrap();
        let short = IndexFile::open(file.as_file()).unwrap_err().to_string();
        assert_eq!(short, IndexView::parse(&bytes[..at]).unwrap_err().to_string());
        std::fs::write(file.path(), "").unwrap();
        assert!(IndexFile::open(file.as_file()).is_err());
    }

    #[test]
    fn groups_that_bytes_lie_in_are_told_once() {
        let header =
            Header { start_offset: 100, record_size: 10, num_records: 95, ..Header::default() };
        let touched = |ranges: &[Range<u64>]| touched(&header, 95, ranges.iter().cloned(), 10);
        assert_eq!(touched(&[0..100]), []);
        assert_eq!(touched(&[0..101]), [0..10]);
        assert_eq!(touched(&[195..205]), [0..20]);
        assert_eq!(touched(&[100..101, 150..151, 420..421]), [0..10, 30..40]);
        assert_eq!(touched(&[300..310, 420..421, 150..400, 500..500]), [0..40]);
        assert_eq!(touched(&[1040..2000]), [90..95]);
        assert_eq!(touched(&[2000..3000]), []);
    }
}
