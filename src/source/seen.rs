//! What the owner of an old mailbox has seen of it: up to 2.3 the index does not say.

use super::mailbox::{self, Stamp};
use super::old::{at, both, read_if_there, user_file};
use crate::cyrus::db::{Database, Engine};
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::{DirStyle, Layout};
use crate::cyrus::seen::Seen;
use crate::host::Host;
use std::path::{Path, PathBuf};

/// User whose seen database has the state that a mailbox shares
/// (2.3 `imap/index.c:index_check`).
const EVERYBODY: &str = "anyone";

/// What the owner of an old mailbox has seen of it, or everybody if that is `shared`.
/// The files that say so are added to `files`.
pub(super) fn of_mailbox(
    host: &Host,
    top: &MailboxName,
    header: &MailboxHeader,
    shared: bool,
    directory: &Path,
    files: &mut Vec<(PathBuf, Option<Stamp>)>,
) -> Result<Option<Seen>, String> {
    match of_user(host, top, header, shared, files)? {
        None if !shared => of_old_file(directory, top),
        found => Ok(found),
    }
}

/// What the user's database says.
fn of_user(
    host: &Host,
    top: &MailboxName,
    header: &MailboxHeader,
    shared: bool,
    files: &mut Vec<(PathBuf, Option<Stamp>)>,
) -> Result<Option<Seen>, String> {
    let Some(id) = &header.uniqueid else { return Ok(None) };
    let inbox = match (shared, top.inbox()) {
        (true, _) => MailboxName::from_internal(format!("user.{EVERYBODY}").as_bytes()).ok(),
        (false, inbox) => inbox,
    };
    for config in inbox.iter().flat_map(|_| both(&host.config)) {
        let path =
            inbox.as_ref().map(|i| Layout::new(&config).user_file(i, DirStyle::Name, "seen"));
        let path = path.transpose().map_err(|e| e.to_string())?;
        files.extend(path.map(|path| (path.clone(), mailbox::stamp(&path))));
    }
    let Some((path, bytes)) = inbox.map(|i| user_file(host, &i, "seen")).transpose()?.flatten()
    else {
        return Ok(None);
    };
    let database = Database::open(bytes.into(), &Engine::Flat).map_err(|e| at(&path, &e))?;
    let value = database.get(id).map_err(|e| at(&path, &e))?;
    value.map(|value| Seen::parse(&value).map_err(|e| at(&path, &e))).transpose()
}

/// What the owner has seen of a mailbox that he has not opened since 1.6, which kept that
/// of everybody in a file of the mailbox (2.2.13 `imap/seen_db.c:seen_readold`).
fn of_old_file(directory: &Path, top: &MailboxName) -> Result<Option<Seen>, String> {
    let path = directory.join("cyrus.seen");
    let (Some(owner), Some(bytes)) = (top.userid(), read_if_there(&path)?) else {
        return Ok(None);
    };
    let key = [owner.as_bytes(), b"\t"].concat();
    let mut lines = bytes.split(|&c| c == b'\n');
    // What follows is as in the databases of later versions, but for their number.
    let value = lines.find_map(|line| line.strip_prefix(&*key));
    let value = value.map(|rest| [b"1 ", rest].concat());
    value.map(|value| Seen::parse(&value).map_err(|e| at(&path, &e))).transpose()
}
