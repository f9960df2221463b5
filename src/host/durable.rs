//! Stable storage for directories in which something was renamed.

use crate::fault::{self, Point, Sabotage, sabotaged};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// So many directories are synced one by one, which takes some milliseconds each; for
/// more of them each filesystem is synced as a whole, once.
const FEW: usize = 32;

/// A directory that could not be put onto stable storage.
#[derive(Debug, thiserror::Error)]
#[error("cannot sync {}: {source}", path.display())]
pub struct NotDurable {
    /// The directory.
    pub path: PathBuf,
    /// What the system says.
    pub source: io::Error,
}

/// Puts the entries of these directories onto stable storage; those that are not there
/// are left out.
pub fn directories(all: &BTreeSet<&Path>) -> Result<(), NotDurable> {
    let all: Vec<&Path> = all.iter().copied().filter(|path| path.is_dir()).collect();
    // A whole filesystem would hide from a test that something else on it was not synced.
    let hides = [Sabotage::SkipSync, Sabotage::JournalUnsynced].into_iter().any(sabotaged);
    if all.len() <= FEW || hides {
        return all.into_iter().try_for_each(|path| sync(path, |directory| directory.sync_all()));
    }
    let mut filesystems = BTreeMap::new();
    for path in all {
        let stat = path.metadata().map_err(|source| NotDurable { path: path.into(), source })?;
        filesystems.insert(stat.dev(), path);
    }
    let whole = |directory: &File| Ok(rustix::fs::syncfs(directory)?);
    filesystems.into_values().try_for_each(|path| sync(path, whole))
}

fn sync(path: &Path, how: impl FnOnce(&File) -> io::Result<()>) -> Result<(), NotDurable> {
    let synced = fault::check(Point::DirectorySync)
        .and_then(|()| File::open(path))
        .and_then(|directory| how(&directory));
    synced.map_err(|source| NotDurable { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_directories_and_those_that_are_gone() {
        let root = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..FEW * 2).map(|n| root.path().join(n.to_string())).collect();
        for path in &paths[1..] {
            std::fs::create_dir(path).unwrap();
        }
        for count in [0, 3, paths.len()] {
            let all = paths.iter().take(count).map(PathBuf::as_path).collect();
            directories(&all).unwrap();
        }
    }
}
