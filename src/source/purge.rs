//! Purging: removing what was kept of a finished move, for good.

use super::{journal_failure, refused};
use crate::host::Host;
use crate::moves::journal::{Entry, now_ms, state};
use crate::moves::{Journal, MoveId};
use crate::target::OUR_DIRECTORY;
use crate::wire::v1::{self, failure::Kind};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Removes what is kept of one move.
pub fn purge(host: &Host, purge: &v1::Purge) -> Result<v1::Purged, v1::Failure> {
    let id: MoveId =
        purge.move_id.parse().map_err(|e: crate::moves::id::NotAnId| refused(e.to_string()))?;
    let directory = host.config.configdirectory().map_err(|e| refused(e.to_string()))?;
    let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
    let entry = journal.find(&id).map_err(|e| journal_failure(&e))?;
    let kept = |e: &Entry| e.role == v1::Role::Source && e.state == state::DONE;
    let Some(entry) = entry.filter(kept) else {
        return Err(refused(format!("this server keeps nothing of a move {}", id.as_str())));
    };
    let holder = format!("process {}, a purge", std::process::id());
    let _hold = journal.hold(&entry.name, &holder).map_err(|e| journal_failure(&e))?;
    // A user who is on his way back may need it.
    for role in [v1::Role::Source, v1::Role::Target] {
        let unfinished = journal.unfinished(&entry.name, role).map_err(|e| journal_failure(&e))?;
        if let Some(other) = unfinished {
            return Err(refused(format!(
                "the move {} of {} is not finished, and may need what is kept of him",
                other.id.as_str(),
                entry.display
            )));
        }
    }
    let mut bytes = 0;
    for place in places(host, &directory, &id) {
        bytes += size(&place);
        let removed = match std::fs::remove_dir_all(&place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotADirectory => std::fs::remove_file(&place),
            removed => removed,
        };
        removed.map_err(|e| {
            v1::Failure::new(
                Kind::Internal,
                format!("cannot remove {}: {e}", place.display()),
                "a part of what was kept may be gone",
                "mend the cause and purge again",
            )
        })?;
    }
    // Of runs that nobody has ended; nobody's mail.
    let _ = crate::target::share::forget(host, None);
    let purged = Entry { state: state::PURGED.into(), updated: now_ms(), ..entry };
    journal.write(&purged).map_err(|e| journal_failure(&e))?;
    Ok(v1::Purged { bytes })
}

/// Where retiring has put things.
fn places(host: &Host, configdirectory: &Path, id: &MoveId) -> Vec<PathBuf> {
    let spools = host.config.partitions().unwrap_or_default().into_values();
    let further = host.config.further_roots().into_iter().map(|(_, root)| root);
    let roots =
        spools.chain(further).chain(host.config.search_roots()).chain([host.config.sievedir()]);
    let mut places: Vec<_> = roots.map(|root| root.join(OUR_DIRECTORY).join(id.as_str())).collect();
    // But the plan: it tells which records send clients away.
    let of_move = configdirectory.join("mbcopy/moves").join(id.as_str());
    let entries = std::fs::read_dir(&of_move).into_iter().flatten().flatten();
    places.extend(entries.filter(|e| e.file_name() != "retirement").map(|e| e.path()));
    places
}

/// Bytes on disk that only this place has a name of.
fn size(place: &Path) -> u64 {
    let files = walkdir::WalkDir::new(place).into_iter().filter_map(Result::ok);
    let alone = files.filter_map(|f| f.metadata().ok()).filter(|m| m.is_file() && m.nlink() == 1);
    alone.map(|m| m.len()).sum()
}
