//! Seen state, subscriptions, quotas, annotations, the list of mailboxes, and
//! databases of any kind.

use super::time::When;
use super::{Beside, Flaw, printed};
use crate::cyrus::annotation::{AnnotationKey, AnnotationValue, Scope};
use crate::cyrus::db::{Database, Engine, Entry};
use crate::cyrus::mboxlist::mbtype::{Flag, Kind};
use crate::cyrus::mboxlist::{Acl, KeyStyle, MailboxEntry, MailboxList, RecordError};
use crate::cyrus::name::MailboxName;
use crate::cyrus::quota::{Quota, Resource};
use crate::cyrus::seen::Seen;
use crate::cyrus::subscription::{SubscriptionForm, Subscriptions};
use bytes::Bytes;
use serde::Serialize;

/// The engine of a database, and where a crash has left something behind its end.
#[derive(Debug, Clone, Serialize)]
pub struct File {
    /// Engine; `empty` of a file without a byte.
    pub engine: String,
    /// Offset behind the last commit, in bytes, if something follows it that was
    /// never committed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub torn_tail: Option<u64>,
}

pub(super) fn open(bytes: &Bytes) -> Result<(File, Vec<Entry>), Flaw> {
    let db = Database::open(bytes.clone(), &Engine::Flat)?;
    let engine = db.engine().map_or_else(|| "empty".to_owned(), |e| e.name().to_owned());
    Ok((File { engine, torn_tail: db.torn_tail() }, db.entries()?))
}

/// Any database.
#[derive(Debug, Clone, Serialize)]
pub struct Pairs {
    /// The file.
    #[serde(flatten)]
    pub file: File,
    /// Keys and values, as text.
    pub records: Vec<(String, String)>,
}

pub(super) fn pairs(bytes: &Bytes) -> Result<Pairs, Flaw> {
    let (file, entries) = open(bytes)?;
    let records = entries.iter().map(|(key, value)| (printed(key), printed(value)));
    Ok(Pairs { file, records: records.collect() })
}

/// What a user has seen, in each mailbox.
#[derive(Debug, Clone, Serialize)]
pub struct Seens {
    /// The file.
    #[serde(flatten)]
    pub file: File,
    /// One for each mailbox.
    pub records: Vec<SeenIn>,
}

/// What a user has seen in one mailbox.
#[derive(Debug, Clone, Serialize)]
pub struct SeenIn {
    /// The mailbox's uniqueid.
    pub uniqueid: String,
    /// When the user was last there.
    pub last_read: When,
    /// Highest UID that the user was told of.
    pub last_uid: u32,
    /// When this was last changed.
    pub last_change: When,
    /// How many messages, gone ones too.
    pub count: u64,
    /// Their UIDs, as a set of IMAP.
    pub uids: String,
}

pub(super) fn seen(bytes: &Bytes, flaws: &mut Vec<Flaw>) -> Result<Seens, Flaw> {
    let (file, entries) = open(bytes)?;
    let mut records = Vec::new();
    for (key, value) in &entries {
        match Seen::parse(value) {
            Ok(seen) => records.push(SeenIn {
                uniqueid: printed(key),
                last_read: When::from_seconds(seen.last_read),
                last_uid: seen.last_uid,
                last_change: When::from_seconds(seen.last_change),
                count: seen.uids.count(),
                uids: seen.uids.to_string(),
            }),
            Err(error) => flaws.push(Flaw::at(error.offset as u64, error.reason).of(key)),
        }
    }
    Ok(Seens { file, records })
}

/// What a user has subscribed to.
#[derive(Debug, Clone, Serialize)]
pub struct Subscribed {
    /// `names` up to 3.4, `keys` from 3.6 on.
    pub form: &'static str,
    /// The folders, by internal name.
    pub names: Vec<String>,
    /// What is there and is no mailbox name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub odd: Vec<String>,
}

pub(super) fn subscriptions(bytes: &Bytes, beside: &Beside<'_>) -> Result<Subscribed, Flaw> {
    // Without a user, his INBOX is called as the file has it.
    let unknown = MailboxName::from_internal(b"INBOX").map_err(Flaw::new)?;
    let read = Subscriptions::parse(bytes.clone(), beside.inbox.unwrap_or(&unknown))?;
    Ok(Subscribed {
        form: match read.form {
            SubscriptionForm::Names => "names",
            SubscriptionForm::Keys => "keys",
        },
        names: read.names.iter().map(|name| printed(name.as_bytes())).collect(),
        odd: read.odd.iter().map(|key| printed(key)).collect(),
    })
}

/// Quota roots: of a database, or the one of a file.
#[derive(Debug, Clone, Serialize)]
pub struct Quotas {
    /// The roots.
    pub roots: Vec<Root>,
}

/// One quota root.
#[derive(Debug, Clone, Serialize)]
pub struct Root {
    /// Its name; of a file the file's name says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its resources: those that it knows.
    pub resources: Vec<Used>,
    /// Its modification sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modseq: Option<u64>,
    /// A count is under way, or was broken off.
    pub scanning: bool,
}

/// Use and limit of a resource.
#[derive(Debug, Clone, Serialize)]
pub struct Used {
    /// As IMAP names it.
    pub resource: &'static str,
    /// Bytes, or a number.
    pub used: i64,
    /// KiB, or a number; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

pub(super) fn quota(bytes: &Bytes, flaws: &mut Vec<Flaw>) -> Result<Quotas, Flaw> {
    if crate::cyrus::db::recognise(bytes).is_none() {
        let root = Quota::parse(bytes).map_err(|e| Flaw::at(e.offset as u64, e.reason))?;
        let roots = root.iter().map(|quota| root_of(None, quota)).collect();
        return Ok(Quotas { roots });
    }
    let (_, entries) = open(bytes)?;
    Ok(quota_roots(&entries, flaws))
}

pub(super) fn quota_roots(entries: &[Entry], flaws: &mut Vec<Flaw>) -> Quotas {
    let mut roots = Vec::new();
    for (key, value) in entries {
        match Quota::parse(value) {
            Ok(Some(quota)) => roots.push(root_of(Some(printed(key)), &quota)),
            Ok(None) => {}
            Err(error) => flaws.push(Flaw::at(error.offset as u64, error.reason).of(key)),
        }
    }
    Quotas { roots }
}

fn root_of(name: Option<String>, quota: &Quota) -> Root {
    let all: [(&'static str, Option<Resource>); 4] = [
        ("STORAGE", quota.storage),
        ("MESSAGE", quota.message),
        ("X-ANNOTATION-STORAGE", quota.annotation_storage),
        ("X-NUM-FOLDERS", quota.num_folders),
    ];
    let resources = all.into_iter().filter_map(|(resource, known)| {
        known.map(|Resource { used, limit }| Used { resource, used, limit })
    });
    let (modseq, scanning) = (quota.modseq, quota.scanning);
    Root { name, resources: resources.collect(), modseq, scanning }
}

/// Annotations.
#[derive(Debug, Clone, Serialize)]
pub struct Annotations {
    /// The file.
    #[serde(flatten)]
    pub file: File,
    /// Each.
    pub records: Vec<Annotation>,
}

/// One annotation.
#[derive(Debug, Clone, Serialize)]
pub struct Annotation {
    /// Of which mailbox: its name up to 3.4, its uniqueid from 3.6 on; absent: of the
    /// server, or of a message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<String>,
    /// Of which message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its name.
    pub entry: String,
    /// Whose; empty: everybody's.
    pub userid: String,
    /// Its value.
    pub value: String,
    /// Its modification sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modseq: Option<u64>,
    /// When it was changed; up to 2.5.
    #[serde(skip_serializing_if = "When::is_never")]
    pub modified_since: When,
    /// It is a tombstone.
    pub deleted: bool,
}

pub(super) fn annotations(
    bytes: &Bytes,
    of_messages: bool,
    flaws: &mut Vec<Flaw>,
) -> Result<Annotations, Flaw> {
    let (file, entries) = open(bytes)?;
    Ok(annotations_of(file, &entries, of_messages, flaws))
}

pub(super) fn annotations_of(
    file: File,
    entries: &[Entry],
    of_messages: bool,
    flaws: &mut Vec<Flaw>,
) -> Annotations {
    let mut records = Vec::new();
    for (key, value) in entries {
        let parsed = match of_messages {
            true => AnnotationKey::parse_message(key),
            false => AnnotationKey::parse(key),
        };
        match parsed.and_then(|parsed| Ok((parsed, AnnotationValue::parse(value)?))) {
            Ok((key, value)) => records.push(annotation(&key, &value)),
            Err(error) => flaws.push(Flaw::at(error.offset as u64, error.reason).of(key)),
        }
    }
    Annotations { file, records }
}

fn annotation(key: &AnnotationKey, value: &AnnotationValue) -> Annotation {
    let (mailbox, uid) = match &key.scope {
        Scope::Server => (None, None),
        Scope::Mailbox(name) => (Some(printed(name)), None),
        Scope::Message(uid) => (None, Some(*uid)),
    };
    Annotation {
        mailbox,
        uid,
        entry: printed(&key.entry),
        userid: printed(&key.userid),
        value: printed(&value.value),
        modseq: value.modseq,
        modified_since: When::from_seconds(value.modified_since.into()),
        deleted: value.is_deleted(),
    }
}

/// mailboxes.db
#[derive(Debug, Clone, Serialize)]
pub struct Mailboxes {
    /// The file.
    #[serde(flatten)]
    pub file: File,
    /// `names` up to 3.4, `typed` from 3.6 on.
    pub keys: &'static str,
    /// Each mailbox; tombstones too.
    pub records: Vec<Mailbox>,
    /// Records of Cyrus's own lists, of ids and of rights.
    pub other_records: usize,
}

/// One mailbox's record.
#[derive(Debug, Clone, Serialize)]
pub struct Mailbox {
    /// Its internal name.
    pub name: String,
    /// What it holds.
    pub r#type: &'static str,
    /// Its states.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<&'static str>,
    /// Its uniqueid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uniqueid: Option<String>,
    /// Its partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// The server that has it, if another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// UIDVALIDITY; 0: the record does not say.
    pub uidvalidity: u32,
    /// Modification sequence of its creation; 0: the record does not say.
    pub createdmodseq: u64,
    /// Modification sequence of its last change as a folder; 0: it does not say.
    pub foldermodseq: u64,
    /// When the record last changed.
    pub changed: When,
    /// Who may do what.
    pub acl: Vec<Right>,
}

/// Somebody's rights.
#[derive(Debug, Clone, Serialize)]
pub struct Right {
    /// Who.
    pub id: String,
    /// What.
    pub rights: String,
}

pub(super) fn rights(acl: &Acl) -> Vec<Right> {
    let pairs = acl.0.iter();
    pairs.map(|(id, rights)| Right { id: printed(id), rights: printed(rights) }).collect()
}

pub(super) fn mailboxes(bytes: &Bytes, flaws: &mut Vec<Flaw>) -> Result<Mailboxes, Flaw> {
    let (file, entries) = open(bytes)?;
    let db = Database::open(bytes.clone(), &Engine::Flat)?;
    let list = MailboxList::from_database(&db).map_err(Flaw::new)?;
    let (mut records, mut other_records) = (Vec::new(), 0);
    for (key, value) in entries {
        match list.style().read(key.clone(), value) {
            Some(Ok(entry)) => records.push(mailbox(&entry)),
            Some(Err(error)) => flaws.push(flaw(error).of(&key)),
            None => other_records += 1,
        }
    }
    let keys = match list.style() {
        KeyStyle::Name => "names",
        KeyStyle::Typed => "typed",
    };
    Ok(Mailboxes { file, keys, records, other_records })
}

fn flaw(error: RecordError) -> Flaw {
    match error {
        RecordError::Text { offset, reason } => Flaw::at(offset as u64, reason),
        RecordError::Dlist(error) => Flaw::at(error.offset as u64, error.reason),
        other => Flaw::new(other),
    }
}

/// A mailbox's record as a document.
pub fn mailbox(entry: &MailboxEntry) -> Mailbox {
    Mailbox {
        name: printed(entry.name.as_bytes()),
        r#type: match entry.mbtype.kind {
            Kind::Email => "email",
            Kind::News => "news",
            Kind::Calendar => "calendar",
            Kind::Addressbook => "addressbook",
            Kind::Collection => "collection",
            Kind::Submission => "submission",
            Kind::PushSubscription => "push-subscription",
            Kind::Sieve => "sieve",
            Kind::Notification => "notification",
        },
        states: entry.mbtype.flags().iter().map(|flag| state(*flag)).collect(),
        uniqueid: entry.uniqueid.as_ref().map(ToString::to_string),
        partition: entry.partition.as_ref().map(ToString::to_string),
        server: entry.server.clone(),
        uidvalidity: entry.uidvalidity,
        createdmodseq: entry.createdmodseq,
        foldermodseq: entry.foldermodseq,
        changed: When::from_seconds(i64::try_from(entry.mtime).unwrap_or(0)),
        acl: rights(&entry.acl),
    }
}

fn state(flag: Flag) -> &'static str {
    match flag {
        Flag::Deleted => "deleted",
        Flag::Moving => "moving",
        Flag::Remote => "remote",
        Flag::Reserve => "reserved",
        Flag::Intermediate => "intermediate",
        Flag::LegacyDirs => "legacy-dirs",
    }
}
