//! What is in the user's metadata files, by their blocks: as it was found last, and as it
//! was sent last. Of what was sent the target names the hash, and gets what differs.

use super::mailbox::{Stamp, now, stamp};
use crate::wire::blocks::{BLOCK, Blocks, Hashing};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The contents of files, by path.
#[derive(Debug, Default)]
pub struct Contents {
    found: BTreeMap<PathBuf, Found>,
    sent: BTreeMap<PathBuf, Arc<Blocks>>,
}

/// A file as it was found.
#[derive(Debug)]
struct Found {
    stamp: Stamp,
    /// When the stamp was taken, in seconds since 1970.
    taken: i64,
    blocks: Arc<Blocks>,
    /// What lies before this does not change any more as long as the file is the same.
    settled: u64,
}

/// How to make what was found of what was sent.
#[derive(Debug, Clone)]
pub struct Difference {
    /// What was sent.
    pub from: Arc<Blocks>,
    /// Size of what was found, in bytes.
    pub size: u64,
    /// What differs, in bytes.
    pub ranges: Vec<Range<u64>>,
}

impl Contents {
    /// Reads a file, or what can have changed of it; `None` if there is none.
    ///
    /// `settled`: what lies before this is never written again, since Cyrus only appends to
    /// such a file; 0 if it does more.
    pub fn find(&mut self, path: &Path, settled: u64) -> io::Result<Option<Arc<Blocks>>> {
        let taken = now();
        let Some(stamp) = stamp(path) else {
            self.found.remove(path);
            return Ok(None);
        };
        let known = self.found.get(path);
        if let Some(known) = known
            && known.stamp == stamp
            && stamp.is_settled(known.taken)
        {
            return Ok(Some(Arc::clone(&known.blocks)));
        }
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let (mut hashing, at) = match known.filter(|known| known.stamp.is_of_same_file(&stamp)) {
            Some(known) if known.begins_as(&file)? => {
                Hashing::after(&known.blocks, known.settled.min(settled))
            }
            _ => (Hashing::default(), 0),
        };
        file.seek(SeekFrom::Start(at))?;
        hashing.update_reader(file)?;
        Ok(Some(self.note(path, (stamp, taken), hashing.finish(), settled)))
    }

    /// Notes what somebody has read of a file, and what the file was just before.
    pub fn note(
        &mut self,
        path: &Path,
        (stamp, taken): (Stamp, i64),
        blocks: Blocks,
        settled: u64,
    ) -> Arc<Blocks> {
        let same = self.sent.get(path).filter(|sent| ***sent == blocks);
        let blocks = same.map_or_else(|| Arc::new(blocks), Arc::clone);
        let found = Found { stamp, taken, blocks: Arc::clone(&blocks), settled };
        self.found.insert(path.to_owned(), found);
        blocks
    }

    /// Notes what the target has got of a file.
    pub fn sent(&mut self, path: PathBuf, blocks: Blocks) {
        let same = self.found.get(&path).filter(|found| *found.blocks == blocks);
        let blocks = same.map_or_else(|| Arc::new(blocks), |found| Arc::clone(&found.blocks));
        self.sent.insert(path, blocks);
    }

    /// What has to be sent to a target that has the version of this hash; `None`: the whole
    /// file.
    pub fn difference(&self, path: &Path, base: &[u8]) -> Option<Difference> {
        let from = self.sent.get(path).filter(|sent| sent.blake3().as_slice() == base)?;
        let found = &self.found.get(path)?.blocks;
        let ranges = found.differing(from);
        Some(Difference { from: Arc::clone(from), size: found.size(), ranges })
    }
}

impl Found {
    /// Whether the file has the same first block: its inode's number may have gone to another
    /// file, but a cache begins with a number that each repack makes anew.
    fn begins_as(&self, file: &File) -> io::Result<bool> {
        let mut block = [0; BLOCK];
        let length = usize::try_from(self.stamp.size()).unwrap_or(BLOCK).min(BLOCK);
        let block = block.get_mut(..length).unwrap_or_default();
        match file.read_exact_at(block, 0) {
            Ok(()) => Ok(self.blocks.begins_with(block)),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init)]
    use super::*;
    use std::io::Write;

    #[test]
    fn only_what_can_have_changed_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cyrus.cache");
        assert!(Contents::default().find(&path, 0).unwrap().is_none());
        std::fs::write(&path, vec![1; 3 * BLOCK]).unwrap();
        let mut contents = Contents::default();
        let settled = 2 * BLOCK as u64;
        let first = contents.find(&path, settled).unwrap().unwrap();
        // Written in place although it is only appended to: nobody looks there again.
        let mut file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"changed", BLOCK as u64).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(b"appended").unwrap();
        let grown = contents.find(&path, settled).unwrap().unwrap();
        assert_eq!(grown.differing(&first), [3 * BLOCK as u64..3 * BLOCK as u64 + 8]);
        let whole = contents.find(&path, 0).unwrap().unwrap();
        assert_eq!(*whole, Blocks::of(&std::fs::read(&path).unwrap()));
        // A repack whose file has got the same inode.
        file.write_all_at(b"generation", 0).unwrap();
        file.write_all(b"appended").unwrap();
        let repacked = contents.find(&path, settled).unwrap().unwrap();
        assert_eq!(*repacked, Blocks::of(&std::fs::read(&path).unwrap()));
        // Another file in its place has nothing in common with it.
        let new = dir.path().join("new");
        std::fs::write(&new, vec![2; 3 * BLOCK]).unwrap();
        std::fs::rename(&new, &path).unwrap();
        let replaced = contents.find(&path, settled).unwrap().unwrap();
        assert_eq!(*replaced, Blocks::of(&std::fs::read(&path).unwrap()));
    }

    #[test]
    fn a_difference_is_told_only_to_who_has_what_was_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cyrus.index");
        std::fs::write(&path, vec![1; 3 * BLOCK]).unwrap();
        let mut contents = Contents::default();
        let blocks = contents.find(&path, 0).unwrap().unwrap();
        assert!(contents.difference(&path, &blocks.blake3()).is_none(), "it was never sent");
        contents.sent(path.clone(), (*blocks).clone());
        std::fs::write(&path, vec![1; 2 * BLOCK + 5]).unwrap();
        contents.find(&path, 0).unwrap();
        let difference = contents.difference(&path, &blocks.blake3()).unwrap();
        assert_eq!(difference.size, 2 * BLOCK as u64 + 5);
        assert_eq!(difference.ranges, [2 * BLOCK as u64..2 * BLOCK as u64 + 5]);
        assert!(contents.difference(&path, &[7; 32]).is_none());
    }
}
