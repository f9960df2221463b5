//! Files as blocks: of a later version of a file only the blocks that differ are read,
//! sent and hashed again.
//!
//! The hash of a block is the value of its subtree in BLAKE3's own tree, so the hash of
//! the whole file follows from those of its blocks and is the same that hashing the file
//! would give.

use blake3::Hasher;
use blake3::hazmat::{
    ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root,
};
use std::io;
use std::ops::Range;

/// Length of a block, in bytes: a power of two, as BLAKE3's tree wants it, large enough
/// that a processor hashes at full speed, small enough that a change costs little.
pub const BLOCK: usize = 8 << 10;

/// How much of a file is read at a time, in bytes.
const READ: usize = 256 << 10;

/// A version of a file: its size and the hashes of its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    size: u64,
    values: Vec<ChainingValue>,
    /// BLAKE3 of the first block alone, which is the hash of a file that has only one.
    first: [u8; 32],
    blake3: [u8; 32],
}

/// A piece of a patch that does not lie where blocks lie, or is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the blocks of a patch do not fit its file")]
pub struct Misfit;

impl Blocks {
    /// Size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// BLAKE3 of the whole file.
    pub fn blake3(&self) -> [u8; 32] {
        self.blake3
    }

    /// Whether the file's first block, or the whole of a shorter one, has these bytes.
    pub fn begins_with(&self, block: &[u8]) -> bool {
        self.first == *blake3::hash(block).as_bytes()
    }

    /// Of a file whose bytes these are.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hashing = Hashing::default();
        hashing.update(bytes);
        hashing.finish()
    }

    /// Where this version differs from an older one, as ranges of bytes that begin with a
    /// block and end with one, or with the file.
    pub fn differing(&self, older: &Self) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (n, value) in self.values.iter().enumerate() {
            if older.values.get(n) == Some(value) {
                continue;
            }
            let start = n as u64 * BLOCK as u64;
            let end = (start + BLOCK as u64).min(self.size);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// Hashes a file from its beginning to its end.
#[derive(Debug, Clone, Default)]
pub struct Hashing {
    size: u64,
    values: Vec<ChainingValue>,
    first: Option<[u8; 32]>,
    /// The beginning of the next block.
    rest: Vec<u8>,
}

impl Hashing {
    /// Goes on behind those whole blocks of a known version that end before `upto`; and
    /// where it goes on, in bytes.
    pub fn after(known: &Blocks, upto: u64) -> (Self, u64) {
        let count = usize::try_from(upto.min(known.size) / BLOCK as u64).unwrap_or(0);
        let values: Vec<_> = known.values.iter().take(count).copied().collect();
        let size = values.len() as u64 * BLOCK as u64;
        let first = (!values.is_empty()).then_some(known.first);
        (Self { size, values, first, rest: Vec::new() }, size)
    }

    /// Adds the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.rest.is_empty() {
            let (head, tail) = bytes.split_at(bytes.len().min(BLOCK - self.rest.len()));
            self.rest.extend_from_slice(head);
            bytes = tail;
            if self.rest.len() < BLOCK {
                return;
            }
            let block = std::mem::take(&mut self.rest);
            self.block(&block);
        }
        let mut blocks = bytes.chunks_exact(BLOCK);
        blocks.by_ref().for_each(|block| self.block(block));
        self.rest.extend_from_slice(blocks.remainder());
    }

    /// Adds all that a file still has.
    pub fn update_reader(&mut self, mut file: impl io::Read) -> io::Result<()> {
        let mut buffer = vec![0; READ];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => self.update(buffer.get(..read).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The file, with these bytes behind all others.
    pub fn finish(mut self) -> Blocks {
        let rest = std::mem::take(&mut self.rest);
        if !rest.is_empty() {
            self.block(&rest);
        }
        let first = self.first.unwrap_or_else(|| *blake3::hash(b"").as_bytes());
        let blake3 = root(&self.values, first);
        Blocks { size: self.size, values: self.values, first, blake3 }
    }

    fn block(&mut self, block: &[u8]) {
        self.first.get_or_insert_with(|| *blake3::hash(block).as_bytes());
        self.values.push(value(self.values.len(), block));
        self.size += block.len() as u64;
    }
}

/// A version of a file that is made of an older one and the blocks that differ.
#[derive(Debug, Clone)]
pub struct Patching {
    size: u64,
    /// None: neither the older version nor the patch has brought it yet.
    values: Vec<Option<ChainingValue>>,
    first: [u8; 32],
}

impl Patching {
    /// Begins with the older version; `size` is that of the new one, in bytes.
    pub fn of(older: &Blocks, size: u64) -> Self {
        // Memory for what is really there only: the size is what a peer says.
        let count = usize::try_from(size.div_ceil(BLOCK as u64)).unwrap_or(usize::MAX);
        let values = older.values.iter().take(count).copied().map(Some).collect();
        Self { size, values, first: older.first }
    }

    /// Puts bytes in their place; they begin with a block and end with one, or with the
    /// file. Places come in ascending order, and a file does not grow by leaving some out.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Misfit> {
        let block = BLOCK as u64;
        let end = offset.checked_add(bytes.len() as u64).ok_or(Misfit)?;
        let whole = offset.is_multiple_of(block) && (end.is_multiple_of(block) || end == self.size);
        let number = usize::try_from(offset / block).map_err(|_| Misfit)?;
        if end > self.size || (!whole && !bytes.is_empty()) || number > self.values.len() {
            return Err(Misfit);
        }
        for (n, piece) in (number..).zip(bytes.chunks(BLOCK)) {
            if n == 0 {
                self.first = *blake3::hash(piece).as_bytes();
            }
            match self.values.get_mut(n) {
                Some(place) => *place = Some(value(n, piece)),
                None => self.values.push(Some(value(n, piece))),
            }
        }
        Ok(())
    }

    /// The new version.
    pub fn finish(self) -> Result<Blocks, Misfit> {
        let values = self.values.into_iter().collect::<Option<Vec<_>>>().ok_or(Misfit)?;
        if values.len() as u64 != self.size.div_ceil(BLOCK as u64) {
            return Err(Misfit);
        }
        let first = if values.is_empty() { *blake3::hash(b"").as_bytes() } else { self.first };
        Ok(Blocks { size: self.size, blake3: root(&values, first), values, first })
    }
}

/// The value of one block's subtree.
fn value(number: usize, block: &[u8]) -> ChainingValue {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(number as u64 * BLOCK as u64);
    hasher.update(block).finalize_non_root()
}

/// The hash of the file; `first` that of one that has no second block.
fn root(values: &[ChainingValue], first: [u8; 32]) -> [u8; 32] {
    match split(values) {
        Some((left, right)) => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        None => first,
    }
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    match split(values) {
        Some((left, right)) => merge_subtrees_non_root(&left, &right, Mode::Hash),
        None => values.first().copied().unwrap_or_default(),
    }
}

/// The two halves of a subtree: the left one is the largest that is full.
fn split(values: &[ChainingValue]) -> Option<(ChainingValue, ChainingValue)> {
    let left = values.len().checked_sub(1)?.checked_ilog2()?;
    let (left, right) = values.split_at(1 << left);
    Some((subtree(left), subtree(right)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)]
    use super::*;
    use proptest::prelude::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|n| (n / 7 % 251) as u8).collect()
    }

    fn patched(old: &[u8], new: &[u8]) -> Result<Blocks, Misfit> {
        let (older, newer) = (Blocks::of(old), Blocks::of(new));
        let mut patching = Patching::of(&older, newer.size());
        for range in newer.differing(&older) {
            patching.put(range.start, &new[range.start as usize..range.end as usize])?;
        }
        patching.finish()
    }

    #[test]
    fn the_hash_is_that_of_the_file_however_it_is_cut() {
        for length in [0, 1, 1024, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 11 * BLOCK + 77] {
            let bytes = bytes(length);
            for cut in [1, 1000, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
                let mut hashing = Hashing::default();
                bytes.chunks(cut).for_each(|piece| hashing.update(piece));
                let blocks = hashing.finish();
                assert_eq!(blocks.blake3(), *blake3::hash(&bytes).as_bytes(), "{length}, {cut}");
                assert_eq!(blocks.size(), length as u64);
            }
        }
    }

    #[test]
    fn hashing_goes_on_where_a_known_version_ends() {
        let all = bytes(9 * BLOCK + 3);
        for (length, upto) in [(5 * BLOCK + 9, u64::MAX), (5 * BLOCK, 3 * BLOCK as u64 + 1), (9, 9)]
        {
            let (mut hashing, at) = Hashing::after(&Blocks::of(&all[..length]), upto);
            assert!(at <= upto && at <= length as u64);
            hashing.update(&all[at as usize..]);
            assert_eq!(hashing.finish(), Blocks::of(&all));
        }
    }

    #[test]
    fn only_what_differs_is_told() {
        let old = bytes(10 * BLOCK + 100);
        let mut new = old.clone();
        new[BLOCK + 1] ^= 1;
        new[2 * BLOCK] ^= 1;
        new.extend_from_slice(b"more");
        let block = BLOCK as u64;
        let ranges = Blocks::of(&new).differing(&Blocks::of(&old));
        assert_eq!(ranges, [block..3 * block, 10 * block..10 * block + 104]);
        assert_eq!(Blocks::of(&old).differing(&Blocks::of(&old)), []);
    }

    #[test]
    fn a_patch_that_leaves_something_out_is_another_file_or_none() {
        let (old, new) = (bytes(2 * BLOCK), bytes(5 * BLOCK));
        let older = Blocks::of(&old);
        let mut gap = Patching::of(&older, new.len() as u64);
        assert_eq!(gap.put(3 * BLOCK as u64, &new[3 * BLOCK..]), Err(Misfit));
        assert_eq!(gap.finish(), Err(Misfit));
        let mut beyond = Patching::of(&older, 2 * BLOCK as u64);
        assert_eq!(beyond.put(2 * BLOCK as u64, b"x"), Err(Misfit));
        assert_eq!(beyond.put(1, &old[..BLOCK]), Err(Misfit));
        assert_eq!(beyond.put(u64::MAX, &old[..BLOCK]), Err(Misfit));
        assert_eq!(Patching::of(&older, u64::MAX).finish(), Err(Misfit));
    }

    proptest! {
        #[test]
        fn a_patch_makes_the_new_version(
            length in 0..5 * BLOCK,
            newer in 0..5 * BLOCK,
            changes in proptest::collection::vec((0..5 * BLOCK, any::<u8>()), 0..4),
        ) {
            let old = bytes(length);
            let mut new = bytes(newer);
            for (at, byte) in changes {
                if let Some(place) = new.get_mut(at) { *place = byte }
            }
            prop_assert_eq!(patched(&old, &new), Ok(Blocks::of(&new)));
        }
    }
}
