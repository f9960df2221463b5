//! The flat engine: lines `key TAB value`, sorted (`lib/cyrusdb_flat.c`).
//!
//! From 2.5 a NUL, TAB, CR or LF in a key or value is written as 0xff and the
//! byte with its high bit set, and 0xff as 0xff 0xff.  Older versions do not escape;
//! an 0xff that begins no such pair stands for itself.

use bytes::Bytes;

use super::{DbError, Entry, Result};

/// A flat database, parsed.
#[derive(Debug, Clone)]
pub struct Flat {
    entries: Vec<Entry>,
}

impl Flat {
    /// Parses all lines.  Fails on a line without TAB or without line end.
    pub fn open(bytes: Bytes) -> Result<Self> {
        let mut entries = Vec::new();
        let mut offset = 0;
        while offset < bytes.len() {
            let fail = |reason| DbError::Damaged { engine: "flat", offset: offset as u64, reason };
            let rest = bytes.get(offset..).unwrap_or_default();
            let end = rest.iter().position(|&c| c == b'\n');
            let end = end.ok_or_else(|| fail("the last line does not end"))?;
            let line = rest.get(..end).unwrap_or_default();
            let tab = line.iter().position(|&c| c == b'\t');
            let tab = tab.ok_or_else(|| fail("the line has no TAB"))?;
            let key = bytes.slice(offset..offset + tab);
            let value = bytes.slice(offset + tab + 1..offset + end);
            entries.push((unescape(key), unescape(value)));
            offset += end + 1;
        }
        Ok(Self { entries })
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        let found = self.entries.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.clone())
    }

    /// The entries whose keys begin with `prefix`.
    pub fn prefix(&self, prefix: &[u8]) -> Vec<Entry> {
        let matching = self.entries.iter().filter(|(k, _)| k.starts_with(prefix));
        matching.cloned().collect()
    }
}

/// A file of these entries, which must be sorted by their keys' bytes, as 2.5 and later
/// write it (`lib/cyrusdb_flat.c:encode`).
pub fn write<K: AsRef<[u8]>, V: AsRef<[u8]>>(entries: &[(K, V)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut put = |text: &[u8], end: u8| {
        for &byte in text {
            match byte {
                0 | b'\t' | b'\r' | b'\n' => out.extend([0xff, byte | 0x80]),
                0xff => out.extend([0xff, 0xff]),
                _ => out.push(byte),
            }
        }
        out.push(end);
    };
    for (key, value) in entries {
        put(key.as_ref(), b'\t');
        put(value.as_ref(), b'\n');
    }
    out
}

fn unescape(text: Bytes) -> Bytes {
    if !text.contains(&0xff) {
        return text;
    }
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_ref();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after.split_first()) {
            (0xff, Some((&code @ (0x80 | 0x89 | 0x8a | 0x8d), tail))) => {
                plain.push(code & 0x7f);
                rest = tail;
            }
            (0xff, Some((0xff, tail))) => {
                plain.push(0xff);
                rest = tail;
            }
            _ => plain.push(byte),
        }
    }
    plain.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_lines() {
        let db = Flat::open(Bytes::from_static(b"a\t\nb\xff\x89\t2\xff\xff\n")).unwrap();
        assert_eq!(db.get(b"a").unwrap(), "");
        assert_eq!(db.get(b"b\t").unwrap(), &b"2\xff"[..]);
        assert_eq!(db.prefix(b"b").len(), 1);
        for (text, at) in [("a\tb", 0), ("a\t\nb\n", 3)] {
            let error = Flat::open(text.into()).unwrap_err();
            assert!(matches!(error, DbError::Damaged { offset, .. } if offset == at));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(map in proptest::collection::btree_map(
            proptest::collection::vec(prop_oneof![Just(0xffu8), 0..14u8, any::<u8>()], 0..9),
            proptest::collection::vec(prop_oneof![Just(0xffu8), 0..14u8, any::<u8>()], 0..9),
            0..9,
        )) {
            let entries: Vec<Entry> =
                map.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
            prop_assert_eq!(Flat::open(write(&entries).into()).unwrap().prefix(b""), entries);
        }

        #[test]
        fn never_panics(raw in proptest::collection::vec(
            prop_oneof![Just(b'\t'), Just(b'\n'), Just(0xff), any::<u8>()], 0..80)) {
            let _ = Flat::open(raw.into());
        }
    }
}
