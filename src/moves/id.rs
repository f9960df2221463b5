//! The name of one move, the same on both servers.

use std::fmt;
use std::str::FromStr;

/// A move's id: 16 lower-case hexadecimal digits; safe as a file's name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveId(String);

/// Text that is not a move's id.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not the id of a move: 16 hexadecimal digits are")]
pub struct NotAnId(String);

impl MoveId {
    /// A new id. Unique enough: the random keys of the standard library's
    /// hasher, the time and the process all go into it.
    pub fn random() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
        hasher.write_u128(
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |d| d.as_nanos()),
        );
        hasher.write_u32(std::process::id());
        Self(format!("{:016x}", hasher.finish()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MoveId {
    type Err = NotAnId;

    fn from_str(text: &str) -> Result<Self, NotAnId> {
        let good = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if good { Ok(Self(text.into())) } else { Err(NotAnId(text.chars().take(64).collect())) }
    }
}

impl fmt::Display for MoveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
