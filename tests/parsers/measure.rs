//! How much memory a check asks for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a check may need whatever its input, in bytes: the buffers of a stream.
const BASE: usize = 1 << 20;

/// The same, where chunks of files are read: the largest frame of data may be announced
/// and not come, or be compressed to nearly nothing.
const BASE_OF_DATA: usize = 10 << 20;

/// What it may need for each byte of its input: a list of one-letter words is made of
/// values and their places.
const FACTOR: usize = 400;

/// Counts what each thread holds.
pub struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn note(size: isize) {
    HELD.set(HELD.get().wrapping_add(size));
    MOST.set(MOST.get().max(HELD.get()));
}

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size() as isize);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        note(-(layout.size() as isize));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs a check; fails if it held more memory at once than its input justifies.
pub fn within_reason(name: &str, check: fn(&[u8]), bytes: &[u8]) {
    let before = HELD.get();
    MOST.set(before);
    check(bytes);
    let most = (MOST.get() - before) as usize;
    let base = if ["frames", "bulk"].contains(&name) { BASE_OF_DATA } else { BASE };
    assert!(
        most <= base + FACTOR * bytes.len(),
        "{name}: {most} bytes of memory for {} bytes",
        bytes.len()
    );
}
