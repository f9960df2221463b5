//! What an index says of the messages that are asked for, read while they are sent: of a
//! million messages nothing is held but those that come next.

use crate::cyrus::index::{IndexFile, ReadError};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::vec::IntoIter;

/// Records that are read at a time.
const WINDOW: u32 = 512;

/// How often it is tried to read records that Cyrus is writing, and how long it is waited
/// between.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(5);

/// A message that an index lists and that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Its UID.
    pub uid: u32,
    /// Its size, in bytes.
    pub size: u64,
    /// SHA-1 of its bytes, where the index has it.
    pub guid: Option<[u8; 20]>,
}

/// The messages of an index whose UIDs are asked for, in UID order.
#[derive(Debug)]
pub struct Wanted {
    /// Until it is opened, which is when the first message is wanted.
    path: Option<PathBuf>,
    /// None: there is no more to read.
    file: Option<File>,
    /// First UID and number of UIDs of each, ascending.
    runs: Vec<[u32; 2]>,
    /// Those of them that are over.
    past: usize,
    /// The record to read next, counted from 0.
    next: u32,
    found: IntoIter<Message>,
}

impl Wanted {
    /// Of the index at `path`; none if it cannot be read.
    pub fn of(path: Option<&Path>, uid_runs: &[u32]) -> Self {
        let runs = uid_runs.as_chunks::<2>().0.to_vec();
        let path = path.filter(|_| !runs.is_empty()).map(Path::to_owned);
        Self { path, file: None, runs, past: 0, next: 0, found: Vec::new().into_iter() }
    }

    /// Reads on; whether anything is left behind that.
    fn read(&mut self, file: &File, found: &mut Vec<Message>) -> Result<bool, ReadError> {
        let mut index = IndexFile::open(file)?;
        let count = index.header().num_records;
        let Some([first, _]) = self.runs.get(self.past) else { return Ok(false) };
        if self.next < count && index.record(self.next)?.uid < *first {
            self.next = place(&mut index, self.next..count, *first)?;
        }
        let end = count.min(self.next.saturating_add(WINDOW));
        let runs = &self.runs;
        let past = &mut self.past;
        index.each(self.next..end, |_, record| {
            let over = |[first, count]: &[u32; 2]| first.saturating_add(*count) <= record.uid;
            *past += runs.iter().skip(*past).take_while(|run| over(run)).count();
            if runs.get(*past).is_some_and(|[first, _]| *first <= record.uid) {
                let guid = record.guid.as_ref().map(|guid| *guid.as_bytes());
                found.push(Message { uid: record.uid, size: record.size, guid });
            }
        })?;
        self.next = end;
        Ok(end < count)
    }
}

/// The first record of these whose UID is not below this one.
fn place(
    index: &mut IndexFile<'_>,
    numbers: std::ops::Range<u32>,
    uid: u32,
) -> Result<u32, ReadError> {
    let (mut low, mut high) = (numbers.start, numbers.end);
    while low < high {
        let middle = low + (high - low) / 2;
        if index.record(middle)?.uid < uid { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

impl Iterator for Wanted {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.found.next() {
                return Some(message);
            }
            if let Some(path) = self.path.take() {
                self.file = File::open(path).ok();
            }
            let file = self.file.take()?;
            let (past, mut found) = (self.past, Vec::new());
            for tries_left in (0..TRIES).rev() {
                match self.read(&file, &mut found) {
                    Ok(true) => self.file = Some(file),
                    Ok(false) => {}
                    // It was read while Cyrus wrote to it.
                    Err(_) if tries_left > 0 => {
                        std::thread::sleep(PAUSE);
                        self.past = past;
                        found.clear();
                        continue;
                    }
                    // What is missing is asked for again.
                    Err(_) => {}
                }
                break;
            }
            self.found = found.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::index::{Header, Record, write_index};
    use crate::wire::manifest;

    #[test]
    fn whatever_is_asked_for_is_found_and_nothing_else() {
        let records = (1..=5000u32).map(|n| Record { uid: n * 3, size: 7, ..Record::default() });
        let header = Header { exists: 5000, ..Header::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), write_index(17, &header, records).unwrap()).unwrap();
        let found = |runs: &[u32]| -> Vec<u32> {
            Wanted::of(Some(file.path()), runs).map(|message| message.uid).collect()
        };
        let all: Vec<u32> = (1..=5000).map(|n| n * 3).collect();
        assert_eq!(found(&[1, u32::MAX]), all);
        let some: Vec<u32> = all.iter().copied().filter(|uid| uid % 7 == 0).collect();
        assert_eq!(found(&manifest::runs(some.iter().copied())), some);
        assert_eq!(found(&[14_990, 11]), [14_991, 14_994, 14_997, 15_000]);
        assert_eq!(found(&[3, 1, 4, 2, 9000, 4, 15_000, 9]), [3, 9000, 9003, 15_000]);
        assert!(found(&[15_001, 4]).is_empty() && found(&[4, 2]).is_empty());
        assert!(found(&[]).is_empty());
        assert_eq!(Wanted::of(None, &[1, 5]).count(), 0);
    }
}
