//! Buffers of bulk data that are used again: fresh memory costs more than what
//! is read into it.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// Size of a buffer at least, in bytes: large enough for a frame to cost nothing,
/// small enough for all that are under way to stay in the processor's cache.
pub const BUFFER: usize = 256 << 10;

/// Buffers that nobody uses at the moment; clones share them.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    /// A buffer of at least `length` bytes and [`BUFFER`], with anything in it.
    pub fn take(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut buffer = buffer.take().unwrap_or_default();
        buffer.resize(length.max(BUFFER), 0);
        buffer
    }

    /// Takes back what nobody else refers to any more.
    pub fn put(&self, bytes: Bytes) {
        if bytes.is_unique() {
            let mut buffer = Vec::from(bytes);
            // What was cut off at its end is still there.
            let capacity = buffer.capacity();
            buffer.resize(capacity.min(BUFFER), 0);
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
        }
    }
}
