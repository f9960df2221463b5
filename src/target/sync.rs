//! Stable storage: the stage is put there while files still arrive, so that
//! little is left to do, and to wait for, when the last has come.

use super::stage::StagedDirectory;
use crate::fault::{self, Point, Sabotage};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often, while files arrive; more often would only keep the writers waiting.
const EVERY: Duration = Duration::from_secs(2);

/// Files from this size on, in bytes, are on their way to the disk as soon as they are
/// written. With small ones it takes longer than it saves, for each is a request.
const LARGE: u64 = 1 << 20;

/// Lets the disk begin with a file that is written, if it is large, so that the sync finds less
/// to do; with `nice` with any, so that others need not wait while the disk gets all at once.
pub fn begin(file: &File, size: u64, nice: bool) {
    if nice || size >= LARGE {
        // SAFETY: the descriptor is open, and no memory is handed over. No library has this.
        // An error is told by the sync that follows.
        unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    }
}

/// A thread that syncs.
pub struct Syncing {
    /// Dropped when no more files will come.
    more: Option<Sender<()>>,
    thread: JoinHandle<Result<(), String>>,
}

impl Syncing {
    /// Begins to sync the filesystems of these directories; an error of `before`
    /// is an error of this one.
    pub fn start(roots: Vec<PathBuf>, before: Option<Syncing>) -> Self {
        let (more, end) = channel();
        let thread = std::thread::spawn(move || {
            before.map_or(Ok(()), Self::finish)?;
            while end.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                all(&roots)?;
            }
            all(&roots)
        });
        Self { more: Some(more), thread }
    }

    /// All files are there: the last sync begins.
    pub fn all_is_there(&mut self) {
        self.more = None;
    }

    /// Waits for the last sync; what failed is not to be tried again.
    pub fn finish(self) -> Result<(), String> {
        drop(self.more);
        self.thread.join().unwrap_or_else(|_| Err("the syncing thread has died".into()))
    }
}

/// Puts what was written on the filesystems of these directories onto stable
/// storage, each filesystem once.
pub fn all(roots: &[PathBuf]) -> Result<(), String> {
    if fault::sabotaged(Sabotage::SkipSync) {
        return Ok(());
    }
    let mut devices = BTreeSet::new();
    for root in roots {
        let synced = std::fs::metadata(root).and_then(|stat| {
            if !devices.insert(stat.dev()) {
                return Ok(());
            }
            fault::check(Point::StageSync)?;
            StagedDirectory::make(root, Path::new(""))?.sync_filesystem()
        });
        synced.map_err(|e| format!("cannot put {} onto stable storage: {e}", root.display()))?;
    }
    Ok(())
}
