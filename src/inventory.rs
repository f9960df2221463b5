//! What both agents compute alike, so that they can compare.

use crate::cyrus::index::{IndexError, IndexView};

/// BLAKE3 over what a client can observe of every record of an index, in UID
/// order: equal digests mean equal mailboxes.
pub fn records_digest(index: &IndexView<'_>) -> Result<[u8; 32], IndexError> {
    let mut hasher = blake3::Hasher::new();
    for record in index.records() {
        hasher.update(&record?.identity_bytes());
    }
    Ok(*hasher.finalize().as_bytes())
}
