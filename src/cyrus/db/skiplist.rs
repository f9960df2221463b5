//! The skiplist engine (`lib/cyrusdb_skiplist.c`, 2.1 and later), read by replay.
//!
//! | offset | what (all u32 big endian) |
//! |---|---|
//! | 0 | magic, 20 bytes |
//! | 20 | version 1, then minor version, maxlevel, curlevel, listsize |
//! | 40 | logstart: up to here sorted records, then the log |
//! | 44 | time of the last recovery |
//! | 48 | records |
//!
//! Records: INORDER and ADD `type keylen key datalen data ptr.. ffffffff` (key and
//! data padded to 4), DELETE `type offset`, COMMIT `type`.  The log is replayed and
//! takes effect at each COMMIT.  Pointers are not used: 2.x links uncommitted
//! records in place, so they may lead to what was never committed.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{DbError, Entry, Result};

/// First bytes of a file.
pub const MAGIC: &[u8; 20] = b"\xa1\x02\x8b\x0dskiplist file\0\0\0";

const HEADER: usize = 48;
/// More pointers than the 20 that Cyrus writes are no record.
const MAX_LEVEL: usize = 64;
const DUMMY: u32 = 257;
const INORDER: u32 = 1;
const ADD: u32 = 2;
const DELETE: u32 = 4;
const COMMIT: u32 = 255;

/// A skiplist database, replayed up to its last commit.
#[derive(Debug, Clone)]
pub struct Skiplist {
    map: BTreeMap<Bytes, Bytes>,
    torn: Option<u64>,
}

impl Skiplist {
    /// Replays the file.
    ///
    /// Fails on damage below logstart; above it the first bytes that are no record
    /// are the tail that a crash left ([`Self::torn_tail`]).
    pub fn open(bytes: Bytes) -> Result<Self> {
        let file = File { bytes };
        if !file.bytes.starts_with(MAGIC) {
            return Err(damaged(0, "the magic is wrong"));
        }
        if file.word(20) != Some(1) {
            return Err(damaged(20, "the version is not 1"));
        }
        let logstart = file.word(40).ok_or_else(|| damaged(40, "the header is short"))? as usize;
        if logstart < HEADER || logstart > file.bytes.len() {
            return Err(damaged(40, "the log starts outside of the file"));
        }
        let mut map = BTreeMap::new();
        let mut at = HEADER;
        while at < logstart {
            match file.record(at) {
                Some((Record::Dummy, end)) => at = end,
                Some((Record::Inorder(key, value), end)) => {
                    map.insert(key, value);
                    at = end;
                }
                _ => return Err(damaged(at, "no sorted record before the log")),
            }
        }
        if at != logstart {
            return Err(damaged(at, "a record crosses the start of the log"));
        }
        let mut pending = Vec::new();
        let mut committed = at;
        while at < file.bytes.len() {
            let Some((record, end)) = file.record(at) else {
                break;
            };
            at = end;
            match record {
                Record::Add(key, value) => pending.push((key, Some(value))),
                Record::Delete(key) => pending.push((key, None)),
                Record::Blank if pending.is_empty() => committed = at,
                Record::Blank => {}
                Record::Commit => {
                    committed = at;
                    for (key, value) in pending.drain(..) {
                        match value {
                            Some(value) => map.insert(key, value),
                            None => map.remove(&key),
                        };
                    }
                }
                Record::Dummy | Record::Inorder(..) => break,
            }
        }
        let torn = (committed < file.bytes.len()).then_some(committed as u64);
        Ok(Self { map, torn })
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.get(key).cloned()
    }

    /// The entries whose keys begin with `prefix`, sorted by bytes.
    pub fn prefix(&self, prefix: &[u8]) -> Vec<Entry> {
        let from = self.map.range(Bytes::copy_from_slice(prefix)..);
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Offset behind the last commit, if something follows it.
    pub fn torn_tail(&self) -> Option<u64> {
        self.torn
    }
}

fn damaged(offset: usize, reason: &'static str) -> DbError {
    DbError::Damaged { engine: "skiplist", offset: offset as u64, reason }
}

enum Record {
    Dummy,
    Inorder(Bytes, Bytes),
    Add(Bytes, Bytes),
    Delete(Bytes),
    Commit,
    /// A zero word, which old recoveries left between records of the log.
    Blank,
}

struct File {
    bytes: Bytes,
}

impl File {
    fn word(&self, at: usize) -> Option<u32> {
        let end = at.checked_add(4)?;
        let word = self.bytes.get(at..end)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*word))
    }

    /// The record at an offset and the offset behind it.
    fn record(&self, at: usize) -> Option<(Record, usize)> {
        match self.word(at)? {
            0 => Some((Record::Blank, at + 4)),
            COMMIT => Some((Record::Commit, at + 4)),
            DELETE => {
                let target = self.word(at + 4)? as usize;
                if !matches!(self.word(target)?, ADD | INORDER) {
                    return None;
                }
                let (key, _, _) = self.pair(target)?;
                Some((Record::Delete(key), at + 8))
            }
            kind @ (DUMMY | INORDER | ADD) => {
                let (key, value, end) = self.pair(at)?;
                let record = match kind {
                    DUMMY => Record::Dummy,
                    INORDER => Record::Inorder(key, value),
                    _ => Record::Add(key, value),
                };
                Some((record, end))
            }
            _ => None,
        }
    }

    fn pair(&self, at: usize) -> Option<(Bytes, Bytes, usize)> {
        let (key, at) = self.string(at.checked_add(4)?)?;
        let (value, mut at) = self.string(at)?;
        for _ in 0..=MAX_LEVEL {
            let pointer = self.word(at)?;
            at += 4;
            if pointer == u32::MAX {
                return Some((key, value, at));
            }
        }
        None
    }

    /// A length and so many bytes, padded to 4.
    fn string(&self, at: usize) -> Option<(Bytes, usize)> {
        let len = self.word(at)? as usize;
        let start = at.checked_add(4)?;
        let end = start.checked_add(len)?;
        let padded = start.checked_add(len.checked_next_multiple_of(4)?)?;
        if padded > self.bytes.len() {
            return None;
        }
        Some((self.bytes.slice(start..end), padded))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    struct Writer(Vec<u8>);

    impl Writer {
        fn new(base: &[(&str, &str)]) -> Self {
            let mut w = Self(MAGIC.to_vec());
            w.words(&[1, 2, 20, 1, base.len() as u32, 0, 0, DUMMY, 0, 0]);
            w.words(&[0; 20]);
            w.words(&[u32::MAX]);
            for (key, value) in base {
                w.pair(INORDER, key, value);
            }
            let logstart = w.0.len() as u32;
            w.0[40..44].copy_from_slice(&logstart.to_be_bytes());
            w
        }

        fn words(&mut self, words: &[u32]) {
            words.iter().for_each(|w| self.0.extend(w.to_be_bytes()));
        }

        fn pair(&mut self, kind: u32, key: &str, value: &str) -> u32 {
            let at = self.0.len() as u32;
            self.words(&[kind]);
            for text in [key, value] {
                self.words(&[text.len() as u32]);
                self.0.extend(text.bytes());
                self.0.resize(self.0.len().next_multiple_of(4), 0);
            }
            self.words(&[0, 0, u32::MAX]);
            at
        }

        fn keys(&self) -> Vec<String> {
            let db = Skiplist::open(self.0.clone().into()).unwrap();
            let show = |(k, v): &Entry| {
                format!("{}={}", String::from_utf8_lossy(k), String::from_utf8_lossy(v))
            };
            db.prefix(b"").iter().map(show).collect()
        }
    }

    #[test]
    fn replays_commits_only() {
        let mut w = Writer::new(&[("a", "1"), ("bb", "22")]);
        assert_eq!(w.keys(), ["a=1", "bb=22"]);
        let c = w.pair(ADD, "c", "3");
        assert_eq!(w.keys(), ["a=1", "bb=22"]);
        w.words(&[COMMIT, 0]);
        assert_eq!(w.keys(), ["a=1", "bb=22", "c=3"]);
        w.words(&[DELETE, c]);
        w.pair(ADD, "c", "4");
        w.words(&[COMMIT]);
        assert_eq!(w.keys(), ["a=1", "bb=22", "c=4"]);
        let end = w.0.len();
        w.words(&[DELETE, c, 77, COMMIT]);
        assert_eq!(w.keys(), ["a=1", "bb=22", "c=4"]);
        let db = Skiplist::open(w.0.clone().into()).unwrap();
        assert_eq!(db.torn_tail(), Some(end as u64));
        assert_eq!(db.get(b"c").unwrap(), "4");
        assert_eq!(db.prefix(b"b").len(), 1);
    }

    #[test]
    fn damage_below_the_log_is_an_error() {
        let w = Writer::new(&[("a", "1")]);
        let mut bytes = w.0.clone();
        bytes[144] = 9;
        let error = Skiplist::open(bytes.into()).unwrap_err();
        assert!(matches!(error, DbError::Damaged { .. }), "{error}");
        for len in 0..w.0.len() {
            assert!(Skiplist::open(w.0[..len].to_vec().into()).is_err(), "{len}");
        }
    }

    proptest! {
        #[test]
        fn any_byte_may_be_wrong(at in 0usize..220, byte in any::<u8>(), cut in 0usize..220) {
            let mut w = Writer::new(&[("a", "1"), ("bb", "22")]);
            w.pair(ADD, "c", "3");
            w.words(&[COMMIT]);
            let at = at % w.0.len();
            w.0[at] = byte;
            w.0.truncate(w.0.len() - cut % w.0.len());
            let _ = Skiplist::open(w.0.into());
        }
    }
}
