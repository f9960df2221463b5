//! Whether the files of a mailbox's messages are what its index says.

use super::inventory::{Flawed, SourceMailbox, problem};
use super::mailbox::{Known, Places};
use super::records::Listed;
use crate::cyrus::index::IndexView;
use crate::host::Host;
use crate::wire::manifest::Entry;
use crate::wire::v1::{self, problem::Severity};
use rustix::fs::{Access, AtFlags};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

/// Threads that look at files.
const LOOKERS: usize = 16;

/// Files that are not worth a thread of their own.
const LEAST_SHARE: usize = 256;

/// What to do about a message whose file cannot be copied.
pub(super) const MEND: &str =
    "mend its owner, mode or content, or go on without it: --bad-messages=skip";

/// Checks that each message that the index lists is there, whole and readable,
/// and that no file is there that it does not list. Only what was not looked
/// at before, here or by an earlier session, is looked at, for a message's file never changes;
/// and what was `odd` then.
pub(super) fn files(
    mailbox: (&Host, &SourceMailbox),
    places: &Places,
    records: &[Listed],
    known: &mut Known,
    odd: &BTreeSet<u32>,
) -> Result<Vec<v1::Problem>, String> {
    let mut problems = Vec::new();
    let first_time = known.checked == 0;
    known.bad.retain(|uid| !odd.contains(uid));
    let archive = places.archived.as_deref().map(|directory| (directory, true));
    let in_archive = |record: &Listed| record.entry.archived && places.archived.is_some();
    for (directory, archived) in [(places.messages.as_path(), false)].into_iter().chain(archive) {
        let here = |record: &Listed| !record.unlinked && in_archive(record) == archived;
        let mut bad = |severity, code, uid, text: String, advice| {
            let path = directory.join(format!("{uid}."));
            problems.push(problem(severity, code, mailbox, uid, &path, text, advice));
        };
        let dir = match File::open(directory) {
            Ok(dir) => dir,
            // Where metadata are elsewhere, the first message makes the directory.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !records.iter().any(here) => continue,
            Err(e) => return Err(at(directory, &e)),
        };
        let me = rustix::process::geteuid().as_raw();
        let look = |record: &Listed| {
            let uid = record.entry.uid;
            let wanted = here(record) && (uid > known.checked || odd.contains(&uid));
            wanted.then(|| look_at(&dir, directory, &record.entry, me)).flatten()
        };
        for (uid, flaw) in look_at_all(records, look) {
            known.bad.insert(uid);
            if let Flaw::Bad(code, text) = flaw {
                bad(Severity::BadMessage, code, uid, text, MEND);
            }
        }
        let flawed = mailbox.1.converted.iter().flat_map(|c| &c.flawed);
        let flawed: BTreeSet<u32> = flawed.map(|(uid, ..)| *uid).collect();
        let is_listed = |uid: &u32| {
            records.binary_search_by_key(uid, |r| r.entry.uid).is_ok() || flawed.contains(uid)
        };
        let mut orphan = |uid: u32| {
            if !is_listed(&uid) {
                let path = directory.join(format!("{uid}."));
                bad(
                    Severity::BadMessage,
                    "orphan-file",
                    uid,
                    format!("{} has no record in the index", path.display()),
                    "reconstruct the mailbox on this server, or move the file away",
                );
            }
        };
        if first_time {
            for entry in std::fs::read_dir(directory).map_err(|e| at(directory, &e))? {
                let entry = entry.map_err(|e| at(directory, &e))?;
                let name = entry.file_name();
                let uid = name.to_str().and_then(|n| n.strip_suffix('.')?.parse::<u32>().ok());
                uid.into_iter().for_each(&mut orphan);
            }
        } else {
            let exists = |uid: &u32| {
                rustix::fs::statat(&dir, format!("{uid}."), AtFlags::SYMLINK_NOFOLLOW).is_ok()
            };
            odd.iter().copied().filter(exists).for_each(&mut orphan);
        }
    }
    let last = records.last().map_or(known.checked, |r| r.entry.uid.max(known.checked));
    known.checked = last.max(1);
    Ok(problems)
}

/// The messages that an index shows to clients and whose files cannot be copied. Those
/// on archive partitions are elsewhere, and not looked for.
pub fn flaws(directory: &Path, index: &IndexView<'_>) -> io::Result<Vec<Flawed>> {
    let records = index.live().filter_map(Result::ok);
    let looked_at = |r: &Listed| !r.unlinked && !r.entry.archived;
    let records: Vec<Listed> = records.map(|r| Listed::from(&r)).filter(looked_at).collect();
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let dir = File::open(directory)?;
    let me = rustix::process::geteuid().as_raw();
    let look = |record: &Listed| look_at(&dir, directory, &record.entry, me);
    let flaws = look_at_all(&records, look).into_iter();
    Ok(flaws
        .filter_map(|(uid, flaw)| match flaw {
            Flaw::Bad(code, text) => Some((uid, code, text)),
            Flaw::Gone => None,
        })
        .collect())
}

/// Why a message's file cannot be copied.
enum Flaw {
    /// It is expunged, and its file has gone already.
    Gone,
    /// A stable word for it, and what is wrong.
    Bad(&'static str, String),
}

/// Looks at the file of one message; `me` is the user that reads it.
fn look_at(dir: &File, directory: &Path, record: &Entry, me: u32) -> Option<Flaw> {
    let name = format!("{}.", record.uid);
    let shown = || directory.join(&name).display().to_string();
    let unreadable = |e: rustix::io::Errno| {
        Some(Flaw::Bad("unreadable-message", format!("{} cannot be read: {e}", shown())))
    };
    match rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(rustix::io::Errno::NOENT) if record.expunged => Some(Flaw::Gone),
        Err(rustix::io::Errno::NOENT) => {
            let text = format!("{} is missing, the index lists it", shown());
            Some(Flaw::Bad("missing-message", text))
        }
        Err(e) => unreadable(e),
        // Cyrus accepts none from anybody, and fails on what a crash has left of one.
        Ok(stat) if stat.st_size == 0 && record.size == 0 && record.expunged => Some(Flaw::Gone),
        Ok(stat) if stat.st_size == 0 && record.size == 0 => {
            Some(Flaw::Bad("empty-message", format!("{} has not a single byte", shown())))
        }
        Ok(stat) if stat.st_size as u64 != record.size => {
            let (has, says) = (stat.st_size, record.size);
            let text = format!("{} has {has} bytes, the index says {says}", shown());
            Some(Flaw::Bad("wrong-size-message", text))
        }
        // The usual case, without another question to the kernel.
        Ok(stat) if stat.st_uid == me && stat.st_mode & 0o400 != 0 => None,
        Ok(_) => rustix::fs::accessat(dir, &name, Access::READ_OK, AtFlags::EACCESS)
            .err()
            .and_then(unreadable),
    }
}

/// Looks at many files at once, since a disk answers many questions faster than
/// one after the other; the flaws, by UID.
fn look_at_all(
    records: &[Listed],
    look: impl Fn(&Listed) -> Option<Flaw> + Sync,
) -> Vec<(u32, Flaw)> {
    let flaws = |records: &[Listed]| -> Vec<(u32, Flaw)> {
        records.iter().filter_map(|record| Some((record.entry.uid, look(record)?))).collect()
    };
    let share = records.len().div_ceil(LOOKERS).max(LEAST_SHARE);
    if records.len() <= share {
        return flaws(records);
    }
    std::thread::scope(|scope| {
        let looking: Vec<_> =
            records.chunks(share).map(|share| scope.spawn(|| flaws(share))).collect();
        looking.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

fn at(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
