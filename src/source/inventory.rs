//! What makes up a user on this server, read from Cyrus's databases and
//! directories.

use super::old::{self, OldDisk};
use crate::cyrus::annotation::{self, AnnotationKey};
use crate::cyrus::config::DbKind;
use crate::cyrus::db::Engine;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::mboxlist::{KeyStyle, MailboxEntry, MailboxList};
use crate::cyrus::name::{MailboxName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout, PathError};
use crate::host::Host;
use crate::wire::v1::{self, FileKind, failure::Kind, problem::Severity};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// A mailbox of the user.
#[derive(Debug, Clone)]
pub struct SourceMailbox {
    /// Names it on the wire, the same through a session.
    pub ordinal: u32,
    /// Its record in mailboxes.db.
    pub entry: MailboxEntry,
    /// Its uniqueid.
    pub id: UniqueId,
    /// Its I record: key and value.
    pub id_record: (Bytes, Bytes),
    /// Whether it is kept by delayed delete.
    pub deleted: bool,
    /// Of an older server: its metadata as 3.6 has them.
    pub converted: Option<Conversion>,
}

/// What an old mailbox was converted to; the entry's record is as 3.6 has it.
#[derive(Debug, Clone)]
pub struct Conversion {
    /// Its record as this server has it.
    pub record: Bytes,
    /// Another number each time that it is converted.
    pub number: u64,
    /// Its files.
    pub files: Converted,
    /// Messages that its index lists no more, for their files cannot be copied.
    pub flawed: Vec<Flawed>,
}

/// A message whose file cannot be copied: its UID, a stable word, and what is wrong.
pub type Flawed = (u32, &'static str, String);

/// The metadata files of an old mailbox in the form of 3.6, or why there are none.
pub type Converted = Result<Vec<(FileKind, PathBuf)>, String>;

/// The mailboxes of a user, and who he is.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The top mailbox.
    pub top: MailboxName,
    /// The mailboxes, the top one first.
    pub mailboxes: Vec<SourceMailbox>,
    /// Of an older server: the directory of what was converted.
    pub converted: Option<PathBuf>,
}

/// Ordinals that were given out, by uniqueid.
pub type Ordinals = BTreeMap<UniqueId, u32>;

impl SourceMailbox {
    /// How its directories are named.
    pub fn style(&self) -> DirStyle<'_> {
        if self.entry.mbtype.has(Flag::LegacyDirs) || self.converted.is_some() {
            DirStyle::Name
        } else {
            DirStyle::Id(&self.id)
        }
    }

    /// Whether it was renamed or deleted since it was listed, where that takes its
    /// directory away: what cannot be read of it then is nothing to mend.
    pub fn has_gone(&self, host: &Host) -> bool {
        let Some(conversion) = self.converted.as_ref().filter(|_| host.offline.is_none()) else {
            return false;
        };
        let now = host.mailboxes().ok().and_then(|list| list.get(&self.entry.key).ok());
        now.is_some_and(|record| record.as_ref() != Some(&conversion.record))
    }

    /// Where its messages are; none for a mailbox that is a name only.
    pub fn directory(&self, host: &Host) -> Option<PathBuf> {
        let partition = self.entry.partition.as_ref()?;
        Layout::new(&host.config).mailbox_dir(&self.entry.name, self.style(), partition).ok()
    }
}

/// Reads the list of the user's mailboxes.
///
/// Errors: the mailbox does not exist here, or is not this server's to move.
pub fn list(
    host: &Host,
    top: &MailboxName,
    ordinals: &mut Ordinals,
    mut old: Option<&mut OldDisk>,
) -> Result<Listing, v1::Failure> {
    let shown = host.external(top);
    let unreadable = |text: String| {
        v1::Failure::new(
            Kind::Refused,
            format!("cannot read the list of mailboxes: {text}"),
            "nothing was changed",
            "mend mailboxes.db; mbcopy must run as root or as Cyrus's user",
        )
    };
    let database = host.mailboxes().map_err(|e| unreadable(e.to_string()))?;
    let list = MailboxList::from_database(&database).map_err(|e| unreadable(e.to_string()))?;
    let owned =
        list.owned(top, &host.config.deletedprefix()).map_err(|e| unreadable(e.to_string()))?;
    // The disk of a server of 3.6 or later is read as it is.
    if list.style() == KeyStyle::Typed {
        old = None;
    }
    let converted = old.as_ref().map(|old| old.directory().to_owned());
    let mut mailboxes = Vec::new();
    for mut entry in owned.into_iter().filter(|e| !e.is_deleted()) {
        // Only a name in the hierarchy, whatever else its record says.
        if entry.mbtype.has(Flag::Intermediate) {
            entry.partition = None;
        }
        for (flag, what) in [
            (Flag::Moving, "marked as moving to another server"),
            (Flag::Remote, "on another server"),
            (Flag::Reserve, "reserved"),
        ] {
            if entry.mbtype.has(flag) {
                let server = entry.server.clone().unwrap_or_default();
                return Err(v1::Failure::new(
                    Kind::Refused,
                    format!("{} is {what} {server}", host.external(&entry.name)),
                    "nothing was changed",
                    "a move by mbcopy or XFER has been here before: mbcopy doctor says what has \
                     become of it, and puts it right",
                ));
            }
        }
        let unidentified = || {
            v1::Failure::new(
                Kind::Refused,
                format!("the record of {} has no uniqueid", host.external(&entry.name)),
                "nothing was changed",
                "this version of mbcopy moves from Cyrus 3.6 and later",
            )
        };
        let deleted = entry.name != *top && !entry.name.is_below(top);
        if let Some(old) = &mut old {
            // Its index says that it is deleted and only waits to be cleaned up.
            let Some(mailbox) = old.mailbox(host, top, &entry, deleted, ordinals) else { continue };
            mailboxes.push(mailbox);
            continue;
        }
        let id = entry.uniqueid.clone().ok_or_else(unidentified)?;
        let id_record =
            list.id_record(&id).map_err(|e| unreadable(e.to_string()))?.ok_or_else(unidentified)?;
        let sharers = list.sharers(&id, &entry.name).map_err(|e| unreadable(e.to_string()))?;
        if let Some(other) = sharers.first() {
            return Err(shared_directory(host, &entry.name, other, &id));
        }
        let next = ordinals.len() as u32;
        let ordinal = *ordinals.entry(id.clone()).or_insert(next);
        mailboxes.push(SourceMailbox { ordinal, entry, id, id_record, deleted, converted: None });
    }
    if !mailboxes.iter().any(|m| m.entry.name == *top) {
        return Err(v1::Failure::new(
            Kind::Refused,
            format!("{shown} does not exist on this server"),
            "nothing was changed",
            "look at the name: user.x or user/x, as in cyradm on this server",
        ));
    }
    Ok(Listing { top: top.clone(), mailboxes, converted })
}

/// Two mailboxes of one uniqueid have one directory: whoever is moved takes the other's
/// messages along.
fn shared_directory(
    host: &Host,
    name: &MailboxName,
    other: &MailboxName,
    id: &UniqueId,
) -> v1::Failure {
    let (name, other) = (host.external(name), host.external(other));
    v1::Failure::new(
        Kind::Refused,
        format!(
            "{name} and {other} have the same uniqueid, {id}, and by that the same directory: \
             each shows what comes to the other"
        ),
        "nothing was changed",
        "Cyrus has given it to both. Copy the messages of each into a new folder, and delete \
         both, for good: cyr_expire -D 0",
    )
}

impl Listing {
    /// The record of INBOX, for a user's tree.
    pub fn inbox(&self) -> Option<&SourceMailbox> {
        self.mailboxes.iter().find(|m| self.top.is_user() && m.entry.name == self.top)
    }

    /// The quota roots at and below the top mailbox.
    pub fn quota_roots(&self, host: &Host) -> Result<Vec<v1::QuotaRoot>, String> {
        let layout = Layout::new(&host.config);
        let engine = host.config.db_engine(DbKind::Quota);
        let database = match engine {
            Engine::QuotaLegacy => None,
            _ => Some(host.database(DbKind::Quota).map_err(|e| e.to_string())?),
        };
        let mut roots = Vec::new();
        for mailbox in self.mailboxes.iter().filter(|m| !m.deleted) {
            let name = &mailbox.entry.name;
            let record = match &database {
                Some(database) => {
                    database.get(name.as_bytes()).map_err(|e| e.to_string())?.map(|v| v.to_vec())
                }
                None => {
                    let path = layout.quota_file(name).map_err(|e| e.to_string())?;
                    read_if_there(&path)?
                }
            };
            if let Some(mut record) = record.filter(|r| !r.is_empty()) {
                if self.converted.is_some() {
                    record = old::quota(host, self, name, &record)?;
                }
                let name = Bytes::copy_from_slice(name.as_bytes());
                roots.push(v1::QuotaRoot { name, record: record.into() });
            }
        }
        Ok(roots)
    }

    /// Annotations of the mailboxes, and the user's own of the server.
    pub fn annotations(&self, host: &Host) -> Result<Vec<v1::Annotation>, String> {
        let database = host.database(DbKind::Annotations).map_err(|e| e.to_string())?;
        let mut found = Vec::new();
        let mut take = |prefix: &[u8], mailbox: Option<u32>| -> Result<(), String> {
            for (key, value) in database.prefix(prefix).map_err(|e| e.to_string())? {
                let Ok(key) = AnnotationKey::parse(&key) else { continue };
                let owner = key.userid == annotation::OWNER;
                found.push(v1::Annotation {
                    server: mailbox.is_none(),
                    mailbox: mailbox.unwrap_or_default(),
                    entry: key.entry.into(),
                    userid: if owner { Bytes::new() } else { key.userid.into() },
                    owner,
                    value,
                });
            }
            Ok(())
        };
        for mailbox in self.mailboxes.iter().filter(|_| self.converted.is_some()) {
            let name = mailbox.entry.name.as_bytes();
            take(&[name, b"\0"].concat(), Some(mailbox.ordinal))?;
        }
        for mailbox in self.mailboxes.iter().filter(|_| self.converted.is_none()) {
            take(&[mailbox.id.as_str().as_bytes(), b"\0"].concat(), Some(mailbox.ordinal))?;
        }
        if let Some(user) = self.top.userid() {
            take(b"\0", None)?;
            found.retain(|a| !a.server || a.userid == user.as_bytes());
        }
        if self.converted.is_some() {
            old::annotations(&self.top, &mut found)?;
        }
        Ok(found)
    }

    /// The user's own files, with their paths.
    pub fn user_files(&self, host: &Host) -> Result<UserFiles, String> {
        let mut files = UserFiles::default();
        let Some(inbox) = self.inbox() else { return Ok(files) };
        if let Some(converted) = &self.converted {
            return old::user_files(host, inbox, converted);
        }
        let layout = Layout::new(&host.config);
        if let DirStyle::Name = inbox.style() {
            for (suffix, kind) in USER_FILES {
                let path = layout.user_file(&inbox.entry.name, DirStyle::Name, suffix);
                let path = path.map_err(|e| e.to_string())?;
                if path.exists() && kind != FileKind::UserXapianActive {
                    files.add(kind, b"", path);
                }
            }
        } else {
            let directory = layout.user_dir(&inbox.id).map_err(|e| e.to_string())?;
            for (name, path) in names_in(&directory)? {
                match user_file_kind(&name) {
                    // It names the parts of an index that does not move.
                    Some(FileKind::UserXapianActive) => {}
                    Some(kind) => files.add(kind, b"", path),
                    // SQLite's own, gone when nobody writes.
                    None if name.ends_with("-journal") || name.ends_with(".NEW") => {}
                    None => files.notes.push(format!("{} is not known, and stays", path.display())),
                }
            }
        }
        let user = self.top.userid();
        let sieve = user.and_then(|user| layout.sieve_dir(&user, inbox.style()).ok().flatten());
        if let Some(sieve) = sieve {
            files.add_scripts(&sieve)?;
        }
        Ok(files)
    }
}

/// The user's own files.
#[derive(Debug, Default)]
pub struct UserFiles {
    /// Kind, name (of a sieve script) and path; the position is the number on the wire.
    pub files: Vec<(FileKind, Vec<u8>, PathBuf)>,
    /// The active sieve script; empty when there is none.
    pub active_sieve: String,
    /// What was seen and is not moved.
    pub notes: Vec<String>,
    /// Those of this server that the user's lock does not protect: his subscriptions
    /// and what he has read in others' folders.
    pub unprotected: Vec<PathBuf>,
}

impl UserFiles {
    /// Adds a file of a kind; a sieve script has a name.
    pub(super) fn add(&mut self, kind: FileKind, name: &[u8], path: PathBuf) {
        if matches!(kind, FileKind::UserSubscriptions | FileKind::UserSeen) {
            self.unprotected.push(path.clone());
        }
        self.files.push((kind, name.to_vec(), path));
    }

    /// Adds a file that was converted from `original`.
    pub(super) fn add_converted(&mut self, kind: FileKind, path: PathBuf, original: PathBuf) {
        self.files.push((kind, Vec::new(), path));
        self.unprotected.push(original);
    }

    /// Adds the sieve scripts in a directory.
    pub(super) fn add_scripts(&mut self, sieve: &Path) -> Result<(), String> {
        let files = self;
        for (name, path) in names_in(sieve)? {
            // Before there was bytecode (2.1), `default` led to the script itself.
            if name == "defaultbc" || name == "default" {
                let target = std::fs::read_link(&path).map_err(|e| at(&path, &e))?;
                let target = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let bare = target.strip_suffix(".bc").or(target.strip_suffix(".script"));
                files.active_sieve = bare.unwrap_or(&target).to_owned();
            } else if let Some(script) = name.strip_suffix(".bc") {
                files.add(FileKind::SieveBytecode, script.as_bytes(), path);
            } else if let Some(script) = name.strip_suffix(".script") {
                files.add(FileKind::SieveScript, script.as_bytes(), path);
            } else if !name.ends_with(".NEW") {
                files.notes.push(format!("{} is not known, and stays", path.display()));
            }
        }
        Ok(())
    }
}

/// The user's own files: `user/uuid/<a>/<b>/<id>/<suffix>.db`, or, where mailboxes have
/// directories by name, `user/<h>/<user>.<suffix>`.
const USER_FILES: [(&str, FileKind); 7] = [
    ("sub", FileKind::UserSubscriptions),
    ("seen", FileKind::UserSeen),
    ("conversations", FileKind::UserConversations),
    ("counters", FileKind::UserCounters),
    ("dav", FileKind::UserDav),
    ("mboxkey", FileKind::UserMboxkey),
    ("xapianactive", FileKind::UserXapianActive),
];

fn user_file_kind(name: &str) -> Option<FileKind> {
    let suffix = name.strip_suffix(".db")?;
    USER_FILES.iter().find(|(s, _)| *s == suffix).map(|(_, kind)| *kind)
}

/// Where a user's own files are: their directory, or, by name, each of them.
pub fn user_places(host: &Host, inbox: &SourceMailbox) -> Result<Vec<PathBuf>, PathError> {
    let layout = Layout::new(&host.config);
    match inbox.style() {
        DirStyle::Id(id) => Ok(vec![layout.user_dir(id)?]),
        style => {
            let files = USER_FILES.iter();
            files.map(|(suffix, _)| layout.user_file(&inbox.entry.name, style, suffix)).collect()
        }
    }
}

/// The names in a directory, sorted; none when there is no directory.
fn names_in(directory: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(at(directory, &e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| at(directory, &e))?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    names.sort();
    Ok(names)
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        // Of a mailbox with a very long name there can be no file of a quota root.
        Err(e) if [ErrorKind::NotFound, ErrorKind::InvalidFilename].contains(&e.kind()) => Ok(None),
        Err(e) => Err(at(path, &e)),
    }
}

fn at(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// A problem with a message or a mailbox.
pub fn problem(
    severity: Severity,
    code: &str,
    mailbox: (&Host, &SourceMailbox),
    uid: u32,
    path: &Path,
    text: String,
    advice: &str,
) -> v1::Problem {
    let (host, mailbox) = mailbox;
    v1::Problem {
        severity: severity.into(),
        code: code.into(),
        mailbox: host.external(&mailbox.entry.name),
        mailbox_ordinal: mailbox.ordinal,
        uid,
        path: path.display().to_string(),
        text,
        advice: advice.into(),
    }
}
