//! What an earlier session has left in the stage, verified and on stable storage: it counts
//! without being read again as long as nobody has written to it since.

use super::offer::Inventory;
use super::stage::{Left, Stage};
use super::user_files::UserPlace;
use crate::cyrus::release::Release;
use crate::fault::{self, Point};
use crate::moves::sealed;
use crate::wire::manifest;
use crate::wire::v1::FileKind;
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The file that tells it, in the stage's own directory.
const FILE: &str = "earlier";

/// What was staged at the end of a session's first copy.
#[derive(Clone, PartialEq, Message)]
pub struct Earlier {
    /// When all of it had been verified, and was about to be synced, by the clock of the files,
    /// in nanoseconds since 1970.
    #[prost(int64, tag = "1")]
    taken: i64,
    /// Whose Cyrus has accepted it.
    #[prost(string, tag = "2")]
    accepted: String,
    #[prost(message, repeated, tag = "3")]
    mailboxes: Vec<EarlierMailbox>,
    #[prost(message, repeated, tag = "4")]
    user_files: Vec<EarlierFile>,
}

/// A mailbox.
#[derive(Clone, PartialEq, Message)]
pub struct EarlierMailbox {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    partition: String,
    /// UIDs whose files were there, as first and number.
    #[prost(uint32, repeated, tag = "3")]
    pub uid_runs: Vec<u32>,
    #[prost(message, repeated, tag = "4")]
    files: Vec<EarlierFile>,
}

/// A file that is no message.
#[derive(Clone, PartialEq, Message)]
struct EarlierFile {
    #[prost(enumeration = "FileKind", tag = "1")]
    kind: i32,
    /// BLAKE3 as it came; it may have been converted since.
    #[prost(bytes = "bytes", tag = "2")]
    blake3: Bytes,
    /// Size as it is, in bytes.
    #[prost(uint64, tag = "3")]
    size: u64,
    /// Of a file of the user: where it is.
    #[prost(bool, tag = "4")]
    sieve: bool,
    #[prost(bytes = "bytes", tag = "5")]
    relative: Bytes,
}

/// Now, by the clock that times of change are taken from, in nanoseconds since 1970.
pub fn now_of_files(stage: &Stage) -> io::Result<i64> {
    let path = stage.directory.join("now");
    std::fs::write(&path, b"")?;
    let left = Left::of(&path).ok_or(io::ErrorKind::NotFound)?;
    std::fs::remove_file(&path)?;
    Ok(left.changed)
}

/// Now, in nanoseconds since 1970.
fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Whose Cyrus accepts what is staged.
fn whose(release: &Release) -> String {
    format!("{:?} {:?}", release.since, crate::wire::SOFTWARE)
}

impl Earlier {
    /// What the last session has written down; none if there is nothing, or anything is odd.
    pub fn load(stage: &Stage) -> Option<Self> {
        let bytes = sealed::load_bytes(&stage.directory.join(FILE)).ok()?;
        let earlier = Self::decode(bytes.as_slice()).ok()?;
        // A clock that was put back since would make what is new look old.
        (earlier.taken <= now()).then_some(earlier)
    }

    /// Writes down what is staged, and whose Cyrus has `accepted` all of it. `taken` was before
    /// the sync that has put it onto stable storage.
    pub fn save(
        stage: &Stage,
        inventory: &Inventory,
        taken: i64,
        accepted: Option<&Release>,
    ) -> io::Result<()> {
        fault::check(Point::StageWrite)?;
        let mailboxes = inventory.mailboxes.values().filter(|mailbox| !mailbox.name_only);
        let earlier = Self {
            taken,
            accepted: accepted.map(whose).unwrap_or_default(),
            mailboxes: mailboxes
                .map(|mailbox| EarlierMailbox {
                    id: mailbox.id.as_str().to_owned(),
                    partition: mailbox.partition.as_str().to_owned(),
                    uid_runs: manifest::runs(mailbox.staged().iter().copied()),
                    files: mailbox
                        .staged_files(stage)
                        .map(|(kind, blake3, size)| EarlierFile {
                            kind: kind.into(),
                            blake3: Bytes::copy_from_slice(&blake3),
                            size,
                            ..EarlierFile::default()
                        })
                        .collect(),
                })
                .collect(),
            user_files: inventory
                .staged_user_files()
                .filter_map(|(place, blake3)| {
                    Some(EarlierFile {
                        blake3: Bytes::copy_from_slice(blake3),
                        size: std::fs::symlink_metadata(place.path(stage)).ok()?.len(),
                        sieve: place.sieve,
                        relative: Bytes::copy_from_slice(place.relative.as_os_str().as_bytes()),
                        ..EarlierFile::default()
                    })
                })
                .collect(),
        };
        sealed::save_bytes(&stage.directory.join(FILE), &earlier.encode_to_vec())
    }

    /// Whether a file is as it was on stable storage.
    pub fn holds(&self, left: &Left) -> bool {
        // What was changed in the same tick of that clock may have been changed later.
        left.changed < self.taken
    }

    /// What is known of a mailbox.
    pub fn mailbox(&self, id: &str, partition: &str) -> Option<&EarlierMailbox> {
        self.mailboxes.iter().find(|m| m.id == id && m.partition == partition)
    }

    /// How many mailboxes there were.
    pub fn count(&self) -> usize {
        self.mailboxes.len()
    }

    /// Whether this server's Cyrus has accepted all of it.
    pub fn is_accepted(&self, release: &Release) -> bool {
        // Where files are kept by name, they are converted by what the mailbox is called.
        release.by_id && self.accepted == whose(release)
    }

    /// The user's own files that are as they were, by place, in the form of this server's Cyrus.
    pub fn user_files(&self, stage: &Stage, release: &Release) -> Vec<(UserPlace, [u8; 32])> {
        let mut held = Vec::new();
        if !self.is_accepted(release) {
            return held;
        }
        for file in &self.user_files {
            let relative = PathBuf::from(OsStr::from_bytes(&file.relative));
            let place = UserPlace { sieve: file.sieve, relative };
            let left = Left::of(&place.path(stage));
            let same = left.is_some_and(|left| left.size == file.size && self.holds(&left));
            if let (true, Ok(blake3)) = (same, <[u8; 32]>::try_from(file.blake3.as_ref())) {
                held.push((place, blake3));
            }
        }
        held
    }
}

impl EarlierMailbox {
    /// The metadata files that are as they were, of those that `look` finds, in the form of
    /// this server's Cyrus.
    pub fn files(
        &self,
        (earlier, release): (&Earlier, &Release),
        look: impl Fn(FileKind) -> Option<Left>,
    ) -> Vec<(FileKind, [u8; 32])> {
        let files = self.files.iter().filter(|_| earlier.is_accepted(release));
        let held = files.filter_map(|file| {
            let left = look(file.kind())?;
            let same = left.size == file.size && earlier.holds(&left);
            Some((file.kind(), file.blake3.as_ref().try_into().ok().filter(|_| same)?))
        });
        held.collect()
    }

    /// How many files there were.
    pub fn count(&self) -> usize {
        self.files.len()
    }
}

/// Removes the user's own files in the stage but for those that are `held`.
pub fn remove_others(stage: &Stage, held: &[(UserPlace, [u8; 32])]) {
    let held: BTreeSet<PathBuf> = held.iter().map(|(place, _)| place.path(stage)).collect();
    for directory in [stage.conf.join("user"), stage.sieve.clone()] {
        if held.is_empty() {
            let _ = std::fs::remove_dir_all(directory);
        } else {
            remove_below(&directory, &held);
        }
    }
}

fn remove_below(directory: &Path, held: &BTreeSet<PathBuf>) {
    for entry in walkdir::WalkDir::new(directory).into_iter().filter_map(Result::ok) {
        if !entry.file_type().is_dir() && !held.contains(entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
