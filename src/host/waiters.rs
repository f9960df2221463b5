//! Who waits for locks of ours.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// The processes that wait for a lock on one of these files.
///
/// In /proc/locks the line of a lock is `1: POSIX ADVISORY WRITE <pid> <device>:<inode> 0 EOF`,
/// and those of who waits for it follow with an arrow before the kind.
///
/// Errors: /proc/locks cannot be read.
pub fn of(paths: &[PathBuf]) -> io::Result<BTreeSet<i32>> {
    let stats = paths.iter().filter_map(|path| std::fs::metadata(path).ok());
    let inodes: BTreeSet<u64> = stats.map(|stat| stat.ino()).collect();
    Ok(waiting(&std::fs::read_to_string("/proc/locks")?, &inodes))
}

fn waiting(locks: &str, inodes: &BTreeSet<u64>) -> BTreeSet<i32> {
    let waiter = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, "->", _, _, _, pid, file, ..] = words.as_slice() else { return None };
        let inode = file.rsplit(':').next()?.parse().ok()?;
        if inodes.contains(&inode) { pid.parse().ok() } else { None }
    };
    locks.lines().filter_map(waiter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_with_an_arrow_wait() {
        let locks = "1: OFDLCK ADVISORY  WRITE -1 fe:00:77 0 EOF\n\
                     1: -> POSIX  ADVISORY  READ 4711 fe:00:77 0 EOF\n\
                     1: -> POSIX  ADVISORY  WRITE 4712 fe:00:77 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 4713 fe:00:78 0 EOF\n\
                     2: -> POSIX  ADVISORY  WRITE 4714 fe:00:78 0 EOF\n\
                     3: ->\n";
        assert_eq!(waiting(locks, &BTreeSet::from([77])), BTreeSet::from([4711, 4712]));
        assert!(waiting(locks, &BTreeSet::new()).is_empty());
    }
}
