//! The twoskip engine (`lib/cyrusdb_twoskip.c`, 2.5 and later).
//!
//! All integers are big endian, offsets count from the start of the file, CRCs are
//! zlib's.
//!
//! | offset | header |
//! |---|---|
//! | 0 | magic, 20 bytes |
//! | 20 | version u32, 1 |
//! | 24 | generation u64 |
//! | 32 | number of records u64 |
//! | 40 | size after the last repack u64 |
//! | 48 | current size u64: the end of what is committed |
//! | 56 | flags u32, 1 = a transaction runs or died |
//! | 60 | CRC of bytes 0..60 |
//!
//! A record: type u8, level u8, keylen u16, vallen u32, [keylen u64], [vallen u64],
//! level+1 pointers u64, CRC of all before it, CRC of what follows, key, value, zeros
//! to a multiple of 8.  Pointers 0 and 1 are twins of the lowest level: a transaction
//! overwrites only the older one, so the higher of the two that is below the current
//! size is the committed one, whatever a crash left behind.  Higher levels have no
//! twin: they only shorten the way, and only in a file that is not dirty.

use bytes::Bytes;

use super::crc::crc32;
use super::{DbError, Entry, Result};

/// First bytes of a file.
pub const MAGIC: &[u8; 20] = b"\xa1\x02\x8b\x0dtwoskip file\0\0\0\0";

const HEADER: usize = 64;
const MAX_LEVEL: u8 = 31;
/// No record is smaller: lengths 8, one pointer 8, CRCs 8.
const MIN_RECORD: u64 = 24;

/// A twoskip database.
#[derive(Debug, Clone)]
pub struct Twoskip {
    bytes: Bytes,
    /// Offset behind what is committed.
    end: u64,
    count: u64,
    dirty: bool,
}

/// A record whose head was checked.
#[derive(Debug, Clone, Copy)]
struct Record {
    at: u64,
    kind: u8,
    level: u8,
    pointers: usize,
    tail_crc: u32,
    key: usize,
    value: usize,
    end: usize,
    padded: usize,
}

fn damaged(offset: u64, reason: &'static str) -> DbError {
    DbError::Damaged { engine: "twoskip", offset, reason }
}

impl Twoskip {
    /// Checks the header.
    pub fn open(bytes: Bytes) -> Result<Self> {
        let word = |at| u32_at(&bytes, at).ok_or_else(|| damaged(0, "the header is short"));
        let long = |at| u64_at(&bytes, at).ok_or_else(|| damaged(0, "the header is short"));
        if !bytes.starts_with(MAGIC) {
            return Err(damaged(0, "the magic is wrong"));
        }
        if word(60)? != crc32(bytes.get(..60).unwrap_or_default()) {
            return Err(damaged(60, "the header's CRC is wrong"));
        }
        if word(20)? != 1 {
            return Err(damaged(20, "the version is not 1"));
        }
        let (count, end, dirty) = (long(32)?, long(48)?, word(56)? & 1 == 1);
        if end < HEADER as u64 || end > bytes.len() as u64 {
            return Err(damaged(48, "the file is shorter than its current size"));
        }
        let db = Self { bytes, end, count, dirty };
        let dummy = db.record(HEADER as u64)?;
        if dummy.kind != b'=' || dummy.level != MAX_LEVEL {
            return Err(damaged(HEADER as u64, "the first record is no dummy"));
        }
        Ok(db)
    }

    /// Number of records, as the header has it.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Offset behind the last commit, if something follows it.
    pub fn torn_tail(&self) -> Option<u64> {
        (self.end < self.bytes.len() as u64).then_some(self.end)
    }

    /// All entries, in the order of the file.  Checks both CRCs of each record, that
    /// keys ascend, and that there are as many as the header says.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        let (mut bytes, mut dots) = (true, true);
        for entry in self.walk(self.record(HEADER as u64)?) {
            let (key, value) = entry?;
            if let Some((before, _)) = entries.last() {
                bytes &= Order::Bytes.less(before, &key);
                dots &= Order::DotLowest.less(before, &key);
            }
            if !bytes && !dots {
                return Err(damaged(0, "the keys do not ascend"));
            }
            entries.push((key, value));
        }
        if entries.len() as u64 != self.count {
            return Err(damaged(32, "the header counts another number of records"));
        }
        Ok(entries)
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        // The key itself sorts before all that it is a prefix of.
        let found = match self.seek_both(key, 1) {
            Some(found) => found,
            None => self.entries()?,
        };
        let found = found.into_iter().find(|(k, _)| k == key);
        Ok(found.map(|(_, value)| value))
    }

    /// The entries whose keys begin with `prefix`, in the order of the file; at most
    /// `limit` of them, not always the first.
    ///
    /// Goes there by the higher levels if the file is not dirty and nothing on the way
    /// contradicts itself; else reads the whole file.
    pub fn prefix(&self, prefix: &[u8], limit: usize) -> Result<Vec<Entry>> {
        let found = match self.seek_both(prefix, limit) {
            Some(found) => found,
            None => self.entries()?,
        };
        let matching = found.into_iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(matching.take(limit).collect())
    }

    /// Seeks in both orders that a file may have; none if it must be read as a whole.
    ///
    /// Only one of the orders is the file's, and the seek in the other may miss
    /// entries, but never invents one.  So the truth is what both find together.
    fn seek_both(&self, prefix: &[u8], limit: usize) -> Option<Vec<Entry>> {
        if self.dirty {
            return None;
        }
        let bytes = self.seek(prefix, limit, Order::Bytes).ok()?;
        let dots = self.seek(prefix, limit, Order::DotLowest).ok()?;
        match (bytes, dots) {
            (Some(a), Some(b)) if a.first() != b.first() && limit < usize::MAX => {
                let more: Vec<_> = b.into_iter().filter(|e| !a.contains(e)).collect();
                Some(a.into_iter().chain(more).collect())
            }
            (Some(a), Some(b)) => Some(if a.len() < b.len() { b } else { a }),
            (a, b) => a.or(b),
        }
    }

    /// As [`Self::prefix`], for one order of keys; none if that is not the file's.
    fn seek(&self, prefix: &[u8], limit: usize, order: Order) -> Result<Option<Vec<Entry>>> {
        let mut at = self.record(HEADER as u64)?;
        // Keys on the way must ascend towards the prefix on every level, and those
        // that end a level must not lie before one that ended a higher level.
        let mut bound: Option<Bytes> = None;
        let mut left = self.end / MIN_RECORD;
        for level in (2..=MAX_LEVEL).rev() {
            while level <= at.level {
                let next = self.pointer(&at, level).unwrap_or_default();
                if next == 0 {
                    break;
                }
                let next = self.record(next)?;
                if next.kind != b'+' || next.level < level || left == 0 {
                    return Err(damaged(at.at, "a pointer of a higher level is wrong"));
                }
                left -= 1;
                let key = self.key(&next);
                let forward = at.kind == b'=' || order.less(&self.key(&at), &key);
                if !forward || bound.as_ref().is_some_and(|b| order.less(b, &key)) {
                    return Ok(None);
                }
                if !order.less(&key, prefix) {
                    bound = Some(key);
                    break;
                }
                at = next;
            }
        }
        let mut found = Vec::new();
        let mut before = (at.kind == b'+').then(|| self.key(&at));
        for entry in self.walk(at) {
            let (key, value) = entry?;
            if before.as_ref().is_some_and(|b| !order.less(b, &key)) {
                return Ok(None);
            }
            before = Some(key.clone());
            if key.starts_with(prefix) {
                found.push((key, value));
                if found.len() >= limit {
                    break;
                }
            } else if !order.less(&key, prefix) {
                break;
            }
        }
        Ok(Some(found))
    }

    /// Live records behind `from`, at the lowest level.
    fn walk(&self, from: Record) -> Walk<'_> {
        Walk { db: self, at: Some(from), left: self.end }
    }

    /// Reads the head of the record at an offset and checks it.
    fn record(&self, at: u64) -> Result<Record> {
        let fail = |reason| damaged(at, reason);
        if at < HEADER as u64 || at >= self.end || !at.is_multiple_of(8) {
            return Err(fail("a pointer leads outside of the records"));
        }
        let parse = || {
            let start = usize::try_from(at).ok()?;
            let (&kind, &level) = (self.bytes.get(start)?, self.bytes.get(start + 1)?);
            let mut next = start + 8;
            let mut keylen = u64::from(u16_at(&self.bytes, start + 2)?);
            if keylen == u64::from(u16::MAX) {
                keylen = u64_at(&self.bytes, next)?;
                next += 8;
            }
            let mut vallen = u64::from(u32_at(&self.bytes, start + 4)?);
            if vallen == u64::from(u32::MAX) {
                vallen = u64_at(&self.bytes, next)?;
                next += 8;
            }
            let pointers = next;
            next += 8 * (usize::from(level.min(MAX_LEVEL)) + 1);
            let head_crc = u32_at(&self.bytes, next)?;
            let head_ok = head_crc == crc32(self.bytes.get(start..next)?);
            let tail_crc = u32_at(&self.bytes, next + 4)?;
            let key = next + 8;
            let value = key.checked_add(usize::try_from(keylen).ok()?)?;
            let end = value.checked_add(usize::try_from(vallen).ok()?)?;
            let padded = key.checked_add((end - key).checked_next_multiple_of(8)?)?;
            let record = Record { at, kind, level, pointers, tail_crc, key, value, end, padded };
            Some((record, head_ok))
        };
        let (record, head_ok) = parse().ok_or_else(|| fail("the record is cut off"))?;
        if !head_ok {
            return Err(fail("the CRC of the record's head is wrong"));
        }
        if !matches!(record.kind, b'=' | b'+' | b'-' | b'$') || record.level > MAX_LEVEL {
            return Err(fail("the record's type or level is unknown"));
        }
        if record.padded as u64 > self.end {
            return Err(fail("the record crosses the current size"));
        }
        Ok(record)
    }

    fn pointer(&self, record: &Record, index: u8) -> Option<u64> {
        u64_at(&self.bytes, record.pointers + 8 * usize::from(index))
    }

    fn key(&self, record: &Record) -> Bytes {
        self.bytes.slice(record.key..record.value)
    }

    /// The committed next record at the lowest level.
    fn next(&self, record: &Record) -> Result<Option<Record>> {
        let next = if record.level == 0 {
            self.pointer(record, 0)
        } else {
            let twins = [self.pointer(record, 0), self.pointer(record, 1)];
            twins.into_iter().flatten().filter(|&p| p < self.end).max()
        };
        match next {
            None => Err(damaged(record.at, "both pointers lead beyond the current size")),
            Some(0) => Ok(None),
            Some(next) => self.record(next).map(Some),
        }
    }

    fn entry(&self, record: &Record) -> Result<Entry> {
        let tail = self.bytes.get(record.key..record.padded).unwrap_or_default();
        if crc32(tail) != record.tail_crc {
            return Err(damaged(record.at, "the CRC of the record's key and value is wrong"));
        }
        let value = self.bytes.slice(record.value..record.end);
        Ok((self.key(record), value))
    }
}

struct Walk<'a> {
    db: &'a Twoskip,
    at: Option<Record>,
    /// Bytes that are left for further records: more of them are a loop, or overlap.
    left: u64,
}

impl Walk<'_> {
    fn step(&mut self) -> Result<Option<Entry>> {
        while let Some(at) = self.at.take() {
            let Some(next) = self.db.next(&at)? else {
                break;
            };
            let size = (next.padded as u64).saturating_sub(next.at);
            let Some(left) = self.left.checked_sub(size) else {
                return Err(damaged(next.at, "the pointers form a loop"));
            };
            self.left = left;
            self.at = Some(next);
            match next.kind {
                b'+' => return self.db.entry(&next).map(Some),
                b'-' => {}
                _ => return Err(damaged(next.at, "a pointer leads to no key")),
            }
        }
        Ok(None)
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            self.at = None;
        }
        step.transpose()
    }
}

/// How a file's keys are sorted; the file does not say.
#[derive(Debug, Clone, Copy)]
enum Order {
    /// By bytes, shorter first.
    Bytes,
    /// With `.` below all that names hold: `improved_mboxlist_sort`
    /// (`lib/bsearch.c:bsearch_ncompare_mbox`, up to 3.4).
    DotLowest,
}

impl Order {
    fn less(self, a: &[u8], b: &[u8]) -> bool {
        let low = |&c: &u8| if c == b'.' { 2 } else { c };
        match self {
            Self::Bytes => a < b,
            Self::DotLowest => a.iter().map(low).lt(b.iter().map(low)),
        }
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let found = bytes.get(at..at.checked_add(2)?)?.first_chunk()?;
    Some(u16::from_be_bytes(*found))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let found = bytes.get(at..at.checked_add(4)?)?.first_chunk()?;
    Some(u32::from_be_bytes(*found))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let found = bytes.get(at..at.checked_add(8)?)?.first_chunk()?;
    Some(u64::from_be_bytes(*found))
}

/// A file as a repack writes it (`lib/cyrusdb_twoskip.c:mycheckpoint`): `entries` must
/// be sorted by their keys' bytes, and no key may be there twice.
pub fn write<K: AsRef<[u8]>, V: AsRef<[u8]>>(entries: &[(K, V)]) -> Vec<u8> {
    let entries: Vec<(&[u8], &[u8])> =
        entries.iter().map(|(key, value)| (key.as_ref(), value.as_ref())).collect();
    let level = |n: usize| (n + 1).trailing_zeros().clamp(0, 5) as u8 + 1;
    let mut offsets = Vec::new();
    let mut at = (HEADER + 8 + 32 * 8 + 8) as u64;
    for (n, (key, value)) in entries.iter().enumerate() {
        offsets.push(at);
        let long = if key.len() >= 0xffff { 8 } else { 0 };
        let tail = (key.len() + value.len()).next_multiple_of(8);
        at += (8 + long + 8 * (usize::from(level(n)) + 1) + 8 + tail) as u64;
    }
    let next = |from: usize, wanted: u8| {
        let mut rest = (from..entries.len()).filter(|&n| level(n) >= wanted);
        rest.next().and_then(|n| offsets.get(n).copied()).unwrap_or(0)
    };
    let mut out = vec![0; HEADER];
    let mut put = |kind: u8, level: u8, from: usize, key: &[u8], value: &[u8]| {
        let mut head = vec![kind, level];
        head.extend((key.len().min(0xffff) as u16).to_be_bytes());
        head.extend((value.len() as u32).to_be_bytes());
        if key.len() >= 0xffff {
            head.extend((key.len() as u64).to_be_bytes());
        }
        head.extend(next(from, 1).to_be_bytes());
        for n in 1..=level {
            // The second twin of a repacked file is 0.
            let pointer = if n == 1 { 0 } else { next(from, n) };
            head.extend(pointer.to_be_bytes());
        }
        let mut tail = [key, value].concat();
        tail.resize(tail.len().next_multiple_of(8), 0);
        out.extend(&head);
        out.extend(crc32(&head).to_be_bytes());
        out.extend(crc32(&tail).to_be_bytes());
        out.extend(&tail);
    };
    put(b'=', MAX_LEVEL, 0, b"", b"");
    for (n, (key, value)) in entries.iter().enumerate() {
        put(b'+', level(n), n + 1, key, value);
    }
    let size = out.len();
    seal(&mut out, entries.len(), size, 0);
    out
}

/// Writes the header of a file of `count` records into its first bytes.
fn seal(out: &mut [u8], count: usize, size: usize, flags: u32) {
    let mut head = MAGIC.to_vec();
    head.extend(1u32.to_be_bytes());
    head.extend(0u64.to_be_bytes());
    head.extend((count as u64).to_be_bytes());
    head.extend(0u64.to_be_bytes());
    head.extend((size as u64).to_be_bytes());
    head.extend(flags.to_be_bytes());
    head.extend(crc32(&head).to_be_bytes());
    if let Some(place) = out.get_mut(..head.len()) {
        place.copy_from_slice(&head);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn write(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
        super::write(entries)
    }

    fn open(bytes: Vec<u8>) -> Twoskip {
        Twoskip::open(bytes.into()).unwrap()
    }

    fn keys(entries: Vec<Entry>) -> Vec<String> {
        let text = |(k, _): Entry| String::from_utf8_lossy(&k).into_owned();
        entries.into_iter().map(text).collect()
    }

    #[test]
    fn walks_gets_and_seeks() {
        let db = open(write(&[(b"a", b"1"), (b"ab", b"2"), (b"b", b"3"), (b"c", b"")]));
        assert_eq!(keys(db.entries().unwrap()), ["a", "ab", "b", "c"]);
        assert_eq!(db.get(b"ab").unwrap().unwrap(), "2");
        assert_eq!(db.get(b"aa").unwrap(), None);
        assert_eq!(keys(db.prefix(b"a", usize::MAX).unwrap()), ["a", "ab"]);
        assert_eq!(keys(db.seek_both(b"c", usize::MAX).unwrap()), ["c"]);
        assert!(open(write(&[])).entries().unwrap().is_empty());
        let long = vec![b'k'; 70_000];
        assert_eq!(open(write(&[(&long, b"v")])).get(&long).unwrap().unwrap(), "v");
    }

    #[test]
    fn uncommitted_records_do_not_exist() {
        let mut file = write(&[(b"a", b"1"), (b"c", b"3")]);
        let size = file.len();
        // A transaction: a new record behind the end, linked from the dummy's
        // second twin, header dirty; then the writer died.
        let mut head = vec![b'+', 1, 0, 1, 0, 0, 0, 1];
        head.extend([0; 16]);
        file.extend(&head);
        file.extend(crc32(&head).to_be_bytes());
        file.extend(crc32(b"b2\0\0\0\0\0\0").to_be_bytes());
        file.extend(b"b2\0\0\0\0\0\0");
        file[80..88].copy_from_slice(&(size as u64).to_be_bytes());
        let crc = crc32(&file[64..64 + 8 + 256]);
        file[328..332].copy_from_slice(&crc.to_be_bytes());
        seal(&mut file, 2, size, 1);
        let db = open(file);
        assert_eq!(keys(db.entries().unwrap()), ["a", "c"]);
        assert_eq!(db.torn_tail(), Some(size as u64));
        assert!(db.seek_both(b"a", usize::MAX).is_none());
        assert_eq!(keys(db.prefix(b"a", usize::MAX).unwrap()), ["a"]);
    }

    #[test]
    fn deleted_records_are_skipped() {
        // '-' has one pointer, which leads on.
        let mut file = write(&[(b"a", b"1"), (b"c", b"3")]);
        let a = HEADER + 8 + 256 + 8;
        let c = u64_at(&file, a + 8).unwrap();
        let gone = file.len() as u64;
        let mut head = vec![b'-', 0, 0, 0, 0, 0, 0, 0];
        head.extend(c.to_be_bytes());
        file.extend(&head);
        file.extend(crc32(&head).to_be_bytes());
        file.extend(crc32(b"").to_be_bytes());
        file[80..88].copy_from_slice(&gone.to_be_bytes());
        let crc = crc32(&file[64..64 + 8 + 256]);
        file[328..332].copy_from_slice(&crc.to_be_bytes());
        let size = file.len();
        seal(&mut file, 1, size, 0);
        assert_eq!(keys(open(file).entries().unwrap()), ["c"]);
    }

    // As cyr_dbtool -M of 3.6.1 writes them.
    #[test]
    fn keys_with_dots_lowest_are_found() {
        let keys = ["user.a", "user.a.x", "user.a b", "user.a-c"];
        let entries: Vec<_> = keys.iter().map(|k| (k.as_bytes(), k.as_bytes())).collect();
        let db = open(write(&entries));
        for key in keys {
            assert_eq!(db.get(key.as_bytes()).unwrap().unwrap(), key);
        }
        assert_eq!(db.prefix(b"user.a", usize::MAX).unwrap().len(), 4);
        assert_eq!(db.prefix(b"user.a.", usize::MAX).unwrap().len(), 1);
        assert_eq!(db.prefix(b"user.a.", 1).unwrap().len(), 1);
    }

    #[test]
    fn damage_is_found() {
        let good = write(&[(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]);
        // All bytes but the dummy's second CRC, which covers nothing.
        for at in (0..332).chain(336..good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            let result = Twoskip::open(bad.into()).and_then(|db| db.entries());
            assert!(result.is_err(), "offset {at}");
        }
        for len in 0..good.len() {
            let cut = Bytes::copy_from_slice(&good[..len]);
            assert!(Twoskip::open(cut).is_err(), "length {len}");
        }
    }

    #[test]
    fn loops_end() {
        let mut file = write(&[(b"a", b"1")]);
        let a = HEADER + 8 + 256 + 8;
        file[a + 8..a + 16].copy_from_slice(&(a as u64).to_be_bytes());
        let crc = crc32(&file[a..a + 24]);
        file[a + 24..a + 28].copy_from_slice(&crc.to_be_bytes());
        let db = open(file);
        assert!(db.entries().is_err());
        assert!(db.get(b"b").is_err());
    }

    proptest! {
        #[test]
        fn seeking_finds_what_walking_finds(
            map in proptest::collection::btree_set("[ab. -]{0,6}", 0..60),
            prefix in "[ab. -]{0,4}",
            dots in any::<bool>(),
        ) {
            let order = if dots { Order::DotLowest } else { Order::Bytes };
            let mut names: Vec<_> = map.into_iter().collect();
            names.sort_by(|a, b| order.less(b.as_bytes(), a.as_bytes()).cmp(&order.less(a.as_bytes(), b.as_bytes())));
            let entries: Vec<_> = names.iter().map(|k| (k.as_bytes(), &b"v"[..])).collect();
            let db = open(write(&entries));
            let all = db.entries().unwrap();
            prop_assert_eq!(all.len(), names.len());
            for (key, value) in &all {
                prop_assert_eq!(&db.get(key).unwrap().unwrap(), value);
            }
            let prefix = prefix.as_bytes();
            prop_assert_eq!(db.get(prefix).unwrap().is_some(), all.iter().any(|(k, _)| k == prefix));
            let wanted: Vec<_> = all.into_iter().filter(|(k, _)| k.starts_with(prefix)).collect();
            prop_assert_eq!(db.prefix(prefix, 1).unwrap().len(), wanted.len().min(1));
            prop_assert_eq!(&db.seek(prefix, usize::MAX, order).unwrap().unwrap(), &wanted);
            prop_assert_eq!(db.prefix(prefix, usize::MAX).unwrap(), wanted);
        }

        #[test]
        fn what_is_written_is_read(
            map in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 0..30),
                proptest::collection::vec(any::<u8>(), 0..90),
                0..50,
            ),
        ) {
            let entries: Vec<Entry> =
                map.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            let file = super::write(&entries);
            prop_assert_eq!(open(file.clone()).entries().unwrap(), entries);
            prop_assert_eq!(open(file).torn_tail(), None);
        }

        #[test]
        fn never_panics_with_right_checksums(at in 0usize..500, byte in any::<u8>()) {
            let mut file = write(&[(b"a", b"1"), (b"b", b"2")]);
            let at = at % file.len();
            file[at] = byte;
            let size = u64_at(&file, 48).unwrap() as usize;
            seal(&mut file, 2, size, 0);
            for start in [64, 64 + 8 + 256 + 8] {
                let end = start + if start == 64 { 264 } else { 24 };
                let crc = crc32(&file[start..end]);
                file[end..end + 4].copy_from_slice(&crc.to_be_bytes());
            }
            if let Ok(db) = Twoskip::open(file.into()) {
                let _ = (db.entries(), db.get(b"b"), db.prefix(b"a", usize::MAX));
            }
        }
    }
}
