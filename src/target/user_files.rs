//! The user's own files in the stage: what may come, and where it belongs.

use super::offer::OfferError;
use super::stage::Stage;
use super::staged::StagedMailbox;
use crate::cyrus::path::{DirStyle, Layout};
use crate::wire::v1::{self, FileKind};
use std::path::{Path, PathBuf};

/// What they are.
pub const USER_KINDS: [FileKind; 9] = [
    FileKind::UserSubscriptions,
    FileKind::UserSeen,
    FileKind::UserConversations,
    FileKind::UserCounters,
    FileKind::UserDav,
    FileKind::UserMboxkey,
    FileKind::UserXapianActive,
    FileKind::SieveBytecode,
    FileKind::SieveScript,
];

/// A file of the user, as the source listed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedUserFile {
    /// Its number in this scan.
    pub number: u32,
    /// What it is.
    pub kind: FileKind,
    /// Its BLAKE3.
    pub blake3: [u8; 32],
    /// Its directory below the stage's root of its kind, and its name.
    pub place: UserPlace,
}

/// Where a file of the user belongs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserPlace {
    /// Whether it belongs to sieve, not to the configdirectory.
    pub sieve: bool,
    /// Relative to the stage's sieve or conf directory.
    pub relative: PathBuf,
}

/// The suffix of a user's file.
fn user_suffix(kind: FileKind) -> Option<&'static str> {
    Some(match kind {
        FileKind::UserSubscriptions => "sub",
        FileKind::UserSeen => "seen",
        FileKind::UserConversations => "conversations",
        FileKind::UserCounters => "counters",
        FileKind::UserDav => "dav",
        FileKind::UserMboxkey => "mboxkey",
        FileKind::UserXapianActive => "xapianactive",
        _ => return None,
    })
}

/// Where a file that the source lists belongs.
pub fn user_place(
    stage: &Stage,
    inbox: &StagedMailbox,
    file: &v1::UserFile,
) -> Result<UserPlace, OfferError> {
    let layout = Layout::new(&stage.config);
    let wrong = |e: crate::cyrus::path::PathError| OfferError::Layout(e.to_string());
    let style = DirStyle::Id(&inbox.id);
    if let Some(suffix) = user_suffix(file.kind()) {
        let path = layout.user_file(&inbox.name, style, suffix).map_err(wrong)?;
        return Ok(UserPlace { sieve: false, relative: below(&stage.conf, &path)? });
    }
    let suffix = match file.kind() {
        FileKind::SieveBytecode => "bc",
        FileKind::SieveScript => "script",
        _ => return Err(OfferError::Nonsense("a user's file of unknown kind".into())),
    };
    let name = script_name(&file.name)
        .ok_or_else(|| OfferError::Nonsense("a sieve script with an impossible name".into()))?;
    let directory = inbox
        .name
        .userid()
        .and_then(|user| layout.sieve_dir(&user, style).transpose())
        .ok_or_else(|| OfferError::Layout("sieve scripts are not kept by this server".into()))?
        .map_err(wrong)?;
    let path = directory.join(format!("{name}.{suffix}"));
    Ok(UserPlace { sieve: true, relative: below(&stage.sieve, &path)? })
}

/// A sieve script's name that can be the name of a file, and only that.
pub fn script_name(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let good = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && !name.chars().any(|c| c == '/' || c.is_control());
    good.then_some(name)
}

fn below(root: &Path, path: &Path) -> Result<PathBuf, OfferError> {
    path.strip_prefix(root)
        .map(Path::to_path_buf)
        .map_err(|_| OfferError::Layout(format!("{} lies outside the stage", path.display())))
}

/// The stage's root of its kind.
pub fn stage_root<'a>(stage: &'a Stage, place: &UserPlace) -> &'a Path {
    if place.sieve { &stage.sieve } else { &stage.conf }
}

impl UserPlace {
    /// Where it is staged.
    pub fn path(&self, stage: &Stage) -> PathBuf {
        stage_root(stage, self).join(&self.relative)
    }
}
