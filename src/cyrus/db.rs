//! Cyrus's databases, read without Cyrus.
//!
//! An engine is recognised by the file's magic, never by configuration: servers
//! that were upgraded hold files of several.  Reading needs the file's bytes as they
//! are under a read lock (fcntl on the file itself, then compare the inode).

pub(crate) mod crc;
pub mod flat;
pub mod skiplist;
pub mod twoskip;

use bytes::Bytes;

use flat::Flat;
use skiplist::Skiplist;
use twoskip::Twoskip;

/// A database engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Engine {
    /// 2.5 and later.
    Twoskip,
    /// The default up to 2.4.
    Skiplist,
    /// Lines of text.
    Flat,
    /// One file per quota root.
    QuotaLegacy,
    /// Berkeley DB, up to 2.5.
    Berkeley,
    /// Something else, by name (`sql`, `lmdb`, `zeroskip`).
    Other(String),
}

impl Engine {
    /// Reads an engine's name as in imapd.conf.
    pub fn from_name(name: &str) -> Self {
        match name {
            "twoskip" => Self::Twoskip,
            "skiplist" => Self::Skiplist,
            "flat" => Self::Flat,
            "quotalegacy" => Self::QuotaLegacy,
            other if other.starts_with("berkeley") => Self::Berkeley,
            other => Self::Other(other.to_owned()),
        }
    }

    /// The name as `cyr_dbtool` and imapd.conf have it.
    pub fn name(&self) -> &str {
        match self {
            Self::Twoskip => "twoskip",
            Self::Skiplist => "skiplist",
            Self::Flat => "flat",
            Self::QuotaLegacy => "quotalegacy",
            Self::Berkeley => "berkeley",
            Self::Other(name) => name,
        }
    }
}

/// Why a database cannot be read.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum DbError {
    /// The bytes are damaged.
    #[error("the {engine} database is damaged at offset {offset}: {reason}")]
    Damaged {
        /// Engine's name.
        engine: &'static str,
        /// Byte offset.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// An engine that is not read natively.
    #[error(
        "the database is {found}, which cannot be read; stop Cyrus and convert it with: {advice}"
    )]
    Unsupported {
        /// What it is.
        found: &'static str,
        /// The command to run.
        advice: &'static str,
    },
    /// No known magic, and the hint is no engine without magic.
    #[error("the file is no database of a known kind")]
    Unknown,
}

/// Result of this module.
pub type Result<T> = std::result::Result<T, DbError>;

/// A key and its value.
pub type Entry = (Bytes, Bytes);

/// A database's committed state.
#[derive(Debug, Clone)]
pub enum Database {
    /// An empty file: a database that nobody has written to yet.
    Empty,
    /// A twoskip database.
    Twoskip(Twoskip),
    /// A skiplist database.
    Skiplist(Skiplist),
    /// Lines of text.
    Flat(Flat),
}

impl Database {
    /// Recognises and opens a database.
    ///
    /// `hint` decides only where there is no magic: [`Engine::Flat`] is accepted.
    /// A Berkeley database is refused with advice.
    pub fn open(bytes: Bytes, hint: &Engine) -> Result<Self> {
        match recognise(&bytes) {
            _ if bytes.is_empty() => Ok(Self::Empty),
            Some(Engine::Twoskip) => Twoskip::open(bytes).map(Self::Twoskip),
            Some(Engine::Skiplist) => Skiplist::open(bytes).map(Self::Skiplist),
            Some(Engine::Berkeley) => Err(DbError::Unsupported {
                found: "a Berkeley DB file",
                advice: "cvt_cyrusdb <file> berkeley <file>.new skiplist",
            }),
            Some(_) => Err(DbError::Unsupported {
                found: "a file of an engine for which there is no reader",
                advice: "cvt_cyrusdb <file> <engine> <file>.new twoskip",
            }),
            None if *hint == Engine::Flat => Flat::open(bytes).map(Self::Flat),
            None => Err(DbError::Unknown),
        }
    }

    /// The engine found.
    pub fn engine(&self) -> Option<Engine> {
        match self {
            Self::Empty => None,
            Self::Twoskip(_) => Some(Engine::Twoskip),
            Self::Skiplist(_) => Some(Engine::Skiplist),
            Self::Flat(_) => Some(Engine::Flat),
        }
    }

    /// All entries, in the order of the file (skiplist: of their bytes).
    pub fn entries(&self) -> Result<Vec<Entry>> {
        match self {
            Self::Empty => Ok(Vec::new()),
            Self::Twoskip(db) => db.entries(),
            Self::Skiplist(db) => Ok(db.prefix(b"")),
            Self::Flat(db) => Ok(db.prefix(b"")),
        }
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        match self {
            Self::Empty => Ok(None),
            Self::Twoskip(db) => db.get(key),
            Self::Skiplist(db) => Ok(db.get(key)),
            Self::Flat(db) => Ok(db.get(key)),
        }
    }

    /// The entries whose keys begin with `prefix`, in the same order.
    pub fn prefix(&self, prefix: &[u8]) -> Result<Vec<Entry>> {
        self.prefix_limited(prefix, usize::MAX)
    }

    /// At most `limit` entries whose keys begin with `prefix`, not always the first:
    /// to ask whether there are any.
    pub fn prefix_limited(&self, prefix: &[u8], limit: usize) -> Result<Vec<Entry>> {
        let mut found = match self {
            Self::Empty => Vec::new(),
            Self::Twoskip(db) => db.prefix(prefix, limit)?,
            Self::Skiplist(db) => db.prefix(prefix),
            Self::Flat(db) => db.prefix(prefix),
        };
        found.truncate(limit);
        Ok(found)
    }

    /// Offset of bytes behind the last commit, which a crash left: not an error.
    pub fn torn_tail(&self) -> Option<u64> {
        match self {
            Self::Empty | Self::Flat(_) => None,
            Self::Twoskip(db) => db.torn_tail(),
            Self::Skiplist(db) => db.torn_tail(),
        }
    }
}

/// Recognises an engine by the file's first bytes.
pub fn recognise(bytes: &[u8]) -> Option<Engine> {
    if bytes.starts_with(twoskip::MAGIC) {
        return Some(Engine::Twoskip);
    }
    if bytes.starts_with(skiplist::MAGIC) {
        return Some(Engine::Skiplist);
    }
    if bytes.starts_with(b"SQLite format 3\0") {
        return Some(Engine::Other("sql".to_owned()));
    }
    // Berkeley DB: magic of btree, hash, queue, heap at 12, either byte order.
    if let Some(&word) = bytes.get(12..16).and_then(|b| b.first_chunk::<4>()) {
        let known = [0x0005_3162, 0x0006_1561, 0x0004_2253, 0x0007_4582];
        if known.contains(&u32::from_le_bytes(word)) || known.contains(&u32::from_be_bytes(word)) {
            return Some(Engine::Berkeley);
        }
    }
    if bytes.get(16..20) == Some(&0xbeef_c0de_u32.to_le_bytes()[..]) {
        return Some(Engine::Other("lmdb".to_owned()));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn recognises_by_magic() {
        let mut berkeley = vec![0; 512];
        berkeley[12..16].copy_from_slice(&0x0005_3162_u32.to_le_bytes());
        let error = Database::open(berkeley.into(), &Engine::Berkeley).unwrap_err();
        assert!(error.to_string().contains("cvt_cyrusdb"), "{error}");
        let text = Bytes::from_static(b"user.x\t\n");
        assert!(matches!(Database::open(text.clone(), &Engine::Flat), Ok(Database::Flat(_))));
        assert_eq!(Database::open(text, &Engine::Twoskip).unwrap_err(), DbError::Unknown);
        let empty = Database::open(Bytes::new(), &Engine::Twoskip).unwrap();
        assert_eq!((empty.engine(), empty.entries().unwrap()), (None, vec![]));
    }

    #[test]
    fn names() {
        for name in ["twoskip", "skiplist", "flat", "quotalegacy", "zeroskip"] {
            assert_eq!(Engine::from_name(name).name(), name);
        }
        assert_eq!(Engine::from_name("berkeley-hash"), Engine::Berkeley);
    }

    proptest! {
        #[test]
        fn never_panics(
            kind in 0..3usize,
            mut raw in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let magic = [&twoskip::MAGIC[..], skiplist::MAGIC, b""][kind];
            if raw.len() >= magic.len() {
                raw[..magic.len()].copy_from_slice(magic);
            }
            if let Ok(db) = Database::open(raw.into(), &Engine::Flat) {
                let _ = (db.entries(), db.get(b"a"), db.prefix(b"b"), db.torn_tail());
            }
        }
    }
}
