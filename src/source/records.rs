//! The records of a mailbox's index, by what has changed of them since they were read last.

use crate::cyrus::index::{Header, IndexFile, ReadError, Record, touched};
use crate::inventory::{GROUP, Grouping, Groups, Shape};
use crate::wire::blocks::{Blocks, Hashing};
use crate::wire::manifest::Entry;
use crate::wire::v1;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::iter::once;
use std::ops::Range;
use std::sync::Arc;

/// What is remembered of the records of an index.
#[derive(Debug)]
pub struct Records {
    shape: Shape,
    count: u32,
    blocks: Arc<Blocks>,
    groups: Groups,
    /// What each group adds, in the order of the groups.
    parts: Vec<Part>,
}

/// A group of records.
#[derive(Debug, Clone, Copy, Default)]
struct Part {
    first_uid: u32,
    last_uid: u32,
    messages: u32,
    expunged: u32,
    bytes: u64,
    /// Of these, bytes of messages on an archive partition.
    archived: u64,
    /// The largest place in cyrus.cache.
    cached: u64,
}

/// What is held of a record: the target is told no more of it, and a mailbox may have
/// millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// What the target is told.
    pub entry: Entry,
    /// Whether its file has been removed.
    pub unlinked: bool,
}

impl From<&Record> for Listed {
    fn from(record: &Record) -> Self {
        let entry = Entry {
            uid: record.uid,
            expunged: record.is_expunged(),
            archived: record.is_archived(),
            size: record.size,
            guid: record.guid.as_ref().map_or([0; 20], |guid| *guid.as_bytes()),
        };
        Self { entry, unlinked: record.is_unlinked() }
    }
}

/// An index, and those of its records that may have changed.
#[derive(Debug)]
pub struct Read {
    /// The index's header.
    pub header: Header,
    /// The records that may have changed, in UID order; all, if `intervals` is empty.
    pub changed: Vec<Listed>,
    /// Between which UIDs, both included, nothing is left but what has changed; `None`: of
    /// all the index.
    pub intervals: Option<Vec<(u32, u32)>>,
    /// Numbers of the changed records.
    numbers: Vec<Range<u32>>,
    groups: Groups,
    parts: Vec<Part>,
    blocks: Arc<Blocks>,
}

/// Reads the records of an index that may have changed since `known`: those in blocks that
/// differ. `blocks` is what the file is now.
pub fn read(file: &File, blocks: Arc<Blocks>, known: Option<&Records>) -> Result<Read, ReadError> {
    let mut index = IndexFile::open(file)?;
    let header = index.header().clone();
    let (shape, count) = (Shape::of(&header), header.num_records);
    // An index of before 2.4 has records that say something else when its header changes.
    let known = known.filter(|k| k.shape == shape && k.count <= count && header.has_modseqs());
    let numbers = match known {
        Some(known) => touched(&header, known.count, blocks.differing(&known.blocks), GROUP),
        None => once(0..count).collect(),
    };
    let mut taken = Taken::after(known, count, numbers.iter().map(|range| range.len()).sum());
    for range in &numbers {
        let mut taking = taken.taking();
        index.each(range.clone(), |number, record| taking.take(number, &record))?;
        taking.grouping.close();
    }
    let Taken { changed, groups, parts } = taken;
    let intervals = known.map(|_| numbers.iter().map(|range| interval(range, &parts)).collect());
    Ok(Read { header, changed, intervals, numbers, groups, parts, blocks })
}

/// Reads all records of an index that others may be writing to. Each is read from the very
/// bytes that its block is hashed of: what [`read`] finds changed since is all that can be wrong.
pub fn read_ahead(mut file: &File) -> Result<Read, ReadError> {
    let mut index = IndexFile::open(file)?;
    let header = index.header().clone();
    let count = header.num_records;
    let mut hashing = Hashing::default();
    hashing.update(index.before_records().unwrap_or_default());
    // Room for what is added meanwhile: a list that grows is copied to twice its size.
    let mut taken = Taken::after(None, count, count as usize + GROUP as usize * 8);
    let mut taking = taken.taking();
    index.try_each(0..count, |number, record, bytes| -> Result<(), ReadError> {
        hashing.update(bytes);
        taking.take(number, &record);
        Ok(())
    })?;
    taking.grouping.close();
    let Taken { changed, groups, parts } = taken;
    file.seek(SeekFrom::Start(header.place(count)))?;
    hashing.update_reader(file)?;
    let blocks = Arc::new(hashing.finish());
    let numbers = once(0..count).collect();
    Ok(Read { header, changed, intervals: None, numbers, groups, parts, blocks })
}

/// What is taken of records as they are read.
struct Taken {
    changed: Vec<Listed>,
    groups: Groups,
    parts: Vec<Part>,
}

struct Taking<'t> {
    changed: &'t mut Vec<Listed>,
    grouping: Grouping<'t>,
    parts: &'t mut [Part],
}

impl Taken {
    /// Begins with what is known; an index has `count` records, of which so many are read.
    fn after(known: Option<&Records>, count: u32, length: usize) -> Self {
        let mut groups = known.map(|known| known.groups.clone()).unwrap_or_default();
        groups.resize(count);
        let mut parts = known.map(|known| known.parts.clone()).unwrap_or_default();
        parts.resize(count.div_ceil(GROUP) as usize, Part::default());
        Self { changed: Vec::with_capacity(length), groups, parts }
    }

    fn taking(&mut self) -> Taking<'_> {
        let Self { changed, groups, parts } = self;
        Taking { changed, grouping: groups.grouping(), parts }
    }
}

impl Taking<'_> {
    fn take(&mut self, number: u32, record: &Record) {
        self.grouping.add(number, record);
        if let Some(part) = self.parts.get_mut((number / GROUP) as usize) {
            if number.is_multiple_of(GROUP) {
                *part = Part { first_uid: record.uid, ..Part::default() };
            }
            part.last_uid = record.uid;
            if !record.is_archived() {
                part.cached = part.cached.max(record.cache_offset);
            }
        }
        self.changed.push(Listed::from(record));
    }
}

impl Records {
    /// What of cyrus.cache is never written again.
    pub fn cached(&self) -> u64 {
        cached(&self.parts)
    }
}

fn cached(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.cached).max().unwrap_or_default()
}

/// From behind the last UID before these records to before the first one behind them.
fn interval(numbers: &Range<u32>, parts: &[Part]) -> (u32, u32) {
    let group = (numbers.start / GROUP) as usize;
    let before = group.checked_sub(1).and_then(|group| parts.get(group));
    let behind = parts.get(numbers.end.div_ceil(GROUP) as usize);
    let first = before.map_or(0, |part| part.last_uid).saturating_add(1);
    (first, behind.map_or(u32::MAX, |part| part.first_uid.saturating_sub(1)))
}

impl Read {
    /// The whole index: `earlier` was listed of it before, with what this has been read after.
    pub fn completing(mut self, mut earlier: Vec<Listed>) -> Self {
        if self.intervals.take().is_none() {
            return self;
        }
        let added = (self.header.num_records as usize).saturating_sub(earlier.len());
        earlier.reserve_exact(added);
        let mut changed = self.changed.into_iter();
        for range in &self.numbers {
            let place = |number: u32| (number as usize).min(earlier.len());
            let records = changed.by_ref().take(range.len());
            earlier.splice(place(range.start)..place(range.end), records);
        }
        let numbers = once(0..self.header.num_records).collect();
        Self { changed: earlier, numbers, ..self }
    }

    /// What the index was when it was read.
    pub fn blocks(&self) -> &Arc<Blocks> {
        &self.blocks
    }

    /// The digest of all records.
    pub fn digest(&self) -> [u8; 32] {
        self.groups.digest()
    }

    /// What of cyrus.cache is never written again: Cyrus writes there what a record needs
    /// before the record.
    pub fn cached(&self) -> u64 {
        cached(&self.parts)
    }

    /// What the mailbox adds to the totals, but for messages that are `bad`.
    pub fn totals(&mut self, bad: &BTreeSet<u32>) -> v1::Totals {
        let numbers = self.numbers.iter().cloned().flatten();
        for (number, record) in numbers.zip(&self.changed) {
            let Some(part) = self.parts.get_mut((number / GROUP) as usize) else { continue };
            if number.is_multiple_of(GROUP) {
                (part.messages, part.expunged, part.bytes, part.archived) = (0, 0, 0, 0);
            }
            let Listed { entry, unlinked } = record;
            if *unlinked || bad.contains(&entry.uid) {
                continue;
            }
            part.messages += 1;
            part.expunged += u32::from(entry.expunged);
            part.bytes = part.bytes.saturating_add(entry.size);
            if entry.archived {
                part.archived = part.archived.saturating_add(entry.size);
            }
        }
        let mut totals = v1::Totals { mailboxes: 1, ..v1::Totals::default() };
        for part in &self.parts {
            totals.messages += u64::from(part.messages);
            totals.expunged += u64::from(part.expunged);
            totals.bytes = totals.bytes.saturating_add(part.bytes);
            totals.archived = totals.archived.saturating_add(part.archived);
        }
        totals
    }

    /// What is remembered of it, and the records that may have changed.
    pub fn remembered(self) -> (Records, Vec<Listed>) {
        let records = Records {
            shape: Shape::of(&self.header),
            count: self.header.num_records,
            blocks: self.blocks,
            groups: self.groups,
            parts: self.parts,
        };
        (records, self.changed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)]
    use super::*;
    use crate::cyrus::index::{internal, write_index};

    fn write(file: &tempfile::NamedTempFile, records: &[Record]) -> Arc<Blocks> {
        let header = Header { exists: records.len() as u32, ..Header::default() };
        let bytes = write_index(17, &header, records.iter().copied()).unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        Arc::new(Blocks::of(&bytes))
    }

    fn record(uid: u32) -> Record {
        Record { uid, size: 10, cache_offset: u64::from(uid), ..Record::default() }
    }

    /// Reads again what was changed, and compares with reading all.
    fn changed(records: &mut Vec<Record>, change: impl FnOnce(&mut Vec<Record>)) -> Read {
        let file = tempfile::NamedTempFile::new().unwrap();
        let none = BTreeSet::new();
        let mut first = read(file.as_file(), write(&file, records), None).unwrap();
        assert_eq!(first.totals(&none).messages, records.len() as u64);
        let (known, _) = first.remembered();
        change(records);
        let blocks = write(&file, records);
        let mut again = read(file.as_file(), Arc::clone(&blocks), Some(&known)).unwrap();
        let mut all = read(file.as_file(), blocks, None).unwrap();
        assert_eq!((again.digest(), again.cached()), (all.digest(), all.cached()));
        assert_eq!(again.totals(&none), all.totals(&none));
        again
    }

    #[test]
    fn only_groups_that_changed_are_read_again() {
        let mut records: Vec<_> = (1..=GROUP * 40).map(|n| record(n * 2)).collect();
        let read = changed(&mut records, |records| {
            records[GROUP as usize * 20 + 5].internal_flags = internal::UNLINKED;
            records[GROUP as usize * 20 + 6].modseq = 7;
            records.push(record(GROUP * 80 + 100));
        });
        assert!(read.changed.len() < GROUP as usize * 6, "{}", read.changed.len());
        let intervals = read.intervals.clone().unwrap();
        assert_eq!(intervals.last().unwrap().1, u32::MAX);
        let within = |uid: u32| intervals.iter().any(|(a, b)| (*a..=*b).contains(&uid));
        assert!(within(records[GROUP as usize * 20 + 5].uid) && within(GROUP * 80 + 100));
        assert!(!within(records[GROUP as usize * 10].uid));
    }

    #[test]
    fn what_is_gone_lies_in_an_interval() {
        let mut records: Vec<_> = (1..=GROUP * 9).map(|n| record(n * 3)).collect();
        let gone = GROUP * 12;
        let read = changed(&mut records, |records| {
            records.retain(|record| record.uid != gone);
            records.extend((1..GROUP).map(|n| record(GROUP * 27 + n)));
        });
        let intervals = read.intervals.clone().unwrap();
        assert!(intervals.iter().any(|(a, b)| (*a..=*b).contains(&gone)));
        assert!(read.changed.iter().all(|r| r.entry.uid != gone));
        let mut shorter: Vec<_> = (1..=GROUP * 2).map(record).collect();
        let read = changed(&mut shorter, |records| {
            records.remove(3);
        });
        assert_eq!(read.intervals, None);
    }

    /// Reads ahead, then what `now` is in place of `before`, and compares with reading all.
    fn ahead(before: &[u8], now: &[u8]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), before).unwrap();
        let early = read_ahead(file.as_file()).unwrap();
        assert_eq!(**early.blocks(), Blocks::of(before));
        let (records, listed) = early.remembered();
        std::fs::write(file.path(), now).unwrap();
        let blocks = Arc::new(Blocks::of(now));
        let mut all = read(file.as_file(), Arc::clone(&blocks), None).unwrap();
        let mut read = read(file.as_file(), blocks, Some(&records)).unwrap().completing(listed);
        assert_eq!((&read.changed, &read.numbers), (&all.changed, &all.numbers));
        assert_eq!((read.digest(), read.cached()), (all.digest(), all.cached()));
        let none = BTreeSet::new();
        assert_eq!((read.totals(&none), read.intervals), (all.totals(&none), None));
    }

    #[test]
    fn what_is_read_ahead_is_completed_by_what_has_changed_since() {
        let bytes = |records: &[Record]| {
            let header = Header { exists: records.len() as u32, ..Header::default() };
            write_index(17, &header, records.iter().copied()).unwrap()
        };
        let before: Vec<_> = (1..=GROUP * 20 + 5).map(record).collect();
        ahead(&bytes(&before), &bytes(&before));
        let mut now = before.clone();
        now[GROUP as usize * 3].modseq = 9;
        now[0].internal_flags = internal::EXPUNGED;
        now.extend((GROUP * 20 + 6..GROUP * 23).map(record));
        ahead(&bytes(&before), &bytes(&now));
        // A repack has made it shorter.
        now.drain(5..9);
        ahead(&bytes(&now), &bytes(&before));
        ahead(&bytes(&before), &bytes(&[]));
        ahead(&bytes(&[]), &bytes(&before));
        // The new record is there, the header does not know it yet.
        let new = bytes(&before);
        let mut old = bytes(&before[..before.len() - 1]);
        old.extend_from_slice(&new[old.len()..]);
        ahead(&old, &new);
    }
}
