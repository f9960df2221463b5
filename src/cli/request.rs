//! What an admin has asked for, kept until it is done, so that `resume` and
//! `abort` need not be told again.
//!
//! It is kept by the user that runs mbcopy, not by Cyrus's: it names commands
//! that run with his rights.

use super::push::MoveOptions;
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::PathBuf;

/// One push, as it was typed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Request {
    /// The top mailbox.
    pub mailbox: String,
    /// The SSH destination, with a partition if one was given.
    pub destination: String,
    /// Everything else.
    pub options: MoveOptions,
    /// The user comes from the destination, and this server is the target.
    #[serde(default)]
    pub reverse: bool,
}

impl Request {
    /// Keeps the request of a move.
    pub fn keep(&self, move_id: &str) -> io::Result<()> {
        let directory = directory()?;
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let mut file = tempfile::NamedTempFile::new_in(&directory)?;
        file.as_file().set_permissions(Permissions::from_mode(0o600))?;
        serde_json::to_writer(&mut file, self)?;
        file.persist(path(move_id)?)?;
        Ok(())
    }

    /// The request of a move, if it was kept.
    pub fn load(move_id: &str) -> io::Result<Self> {
        let mut request: Self = serde_json::from_slice(&std::fs::read(path(move_id)?)?)?;
        // Whoever is gone on with by himself is none of a run's any more.
        (request.options.share, request.options.bwlimit_file) = (None, None);
        Ok(request)
    }

    /// Forgets the request of a move that is over.
    pub fn forget(move_id: &str) {
        let _ = path(move_id).and_then(std::fs::remove_file);
    }
}

fn path(move_id: &str) -> io::Result<PathBuf> {
    // Only what is an id can become a name.
    let id: crate::moves::MoveId =
        move_id.parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    Ok(directory()?.join(format!("{}.json", id.as_str())))
}

fn directory() -> io::Result<PathBuf> {
    Ok(state_directory()?.join("requests"))
}

/// Where the user that runs mbcopy keeps what it remembers for him.
pub(super) fn state_directory() -> io::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/mbcopy".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or_else(|| io::Error::other("there is no HOME"))?;
    Ok(state.join("mbcopy"))
}
