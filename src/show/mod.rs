//! What mbcopy reads in Cyrus's files, as documents for people and programs
//! (`mbcopy inspect`). Pure: bytes in, a document out.
//!
//! A document says everything that was understood; what was not is a [`Flaw`], with
//! the offset where one is known. One flaw in a record does not hide the others.

mod databases;
mod index;
mod text;
mod time;

pub use databases::{Annotations, Mailbox, Mailboxes, Pairs, Quotas, Seens, Subscribed, mailbox};
pub use index::{Header, Index};
pub use text::{Lines, Shown, table};

use crate::cyrus::db::{Database, DbError, Engine, recognise};
use crate::cyrus::header::{MAGIC, MailboxHeader};
use crate::cyrus::mboxlist::KeyStyle;
use crate::cyrus::name::MailboxName;
use bytes::Bytes;
use serde::Serialize;
use std::path::Path;

/// Grows when a field of a document changes its meaning.
pub const SCHEMA: u32 = 1;

/// What a file is, by the name that `--as` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// cyrus.index
    Index,
    /// cyrus.expunge of 2.3
    Expunge,
    /// cyrus.header
    Header,
    /// What a user has seen
    Seen,
    /// What a user has subscribed to
    Subscriptions,
    /// A quota root's file, or quotas.db
    Quota,
    /// annotations.db
    Annotations,
    /// cyrus.annotations
    MessageAnnotations,
    /// mailboxes.db
    Mailboxes,
    /// Any database: keys and values
    Database,
}

impl Kind {
    /// Recognises a file by its name, else by its first bytes.
    pub fn recognise(path: &Path, bytes: &[u8]) -> Option<Self> {
        Self::of_name(path).or_else(|| Self::of_content(bytes))
    }

    fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let parents = path.parent().into_iter().flat_map(Path::components);
        let below_quota = parents.rev().take(2).any(|part| part.as_os_str() == "quota");
        Some(match name {
            "cyrus.index" => Self::Index,
            "cyrus.expunge" => Self::Expunge,
            "cyrus.header" => Self::Header,
            "cyrus.annotations" => Self::MessageAnnotations,
            "annotations.db" => Self::Annotations,
            "mailboxes.db" => Self::Mailboxes,
            "quotas.db" => Self::Quota,
            "seen.db" => Self::Seen,
            "sub.db" => Self::Subscriptions,
            _ if name.ends_with(".seen") => Self::Seen,
            _ if name.ends_with(".sub") => Self::Subscriptions,
            _ if below_quota => Self::Quota,
            _ => return None,
        })
    }

    fn of_content(bytes: &[u8]) -> Option<Self> {
        if bytes.starts_with(MAGIC) {
            return Some(Self::Header);
        }
        if recognise(bytes).is_some() {
            let db = Database::open(Bytes::copy_from_slice(bytes), &Engine::Flat);
            let typed = db.is_ok_and(|db| KeyStyle::recognise(&db) == Ok(KeyStyle::Typed));
            return Some(if typed { Self::Mailboxes } else { Self::Database });
        }
        if crate::cyrus::index::IndexView::parse(bytes).is_ok() {
            return Some(Self::Index);
        }
        let lines = !bytes.is_empty()
            && bytes.ends_with(b"\n")
            && bytes.split(|&c| c == b'\n').all(|line| line.is_empty() || line.contains(&b'\t'));
        lines.then_some(Self::Database)
    }
}

/// What helps to understand a file and is not in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// The mailbox's cyrus.header: the names of keywords.
    pub header: Option<&'a MailboxHeader>,
    /// The user's INBOX: what it is called in his subscriptions.
    pub inbox: Option<&'a MailboxName>,
}

/// What is wrong with a file, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Flaw {
    /// Offset in bytes, if there is one; in the value, if a record is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The key or the UID of the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl Flaw {
    fn new(reason: impl ToString) -> Self {
        Self { offset: None, record: None, reason: reason.to_string() }
    }

    fn at(offset: impl TryInto<u64>, reason: impl ToString) -> Self {
        Self { offset: offset.try_into().ok(), ..Self::new(reason) }
    }

    fn of(self, key: &[u8]) -> Self {
        Self { record: Some(printed(key)), ..self }
    }
}

impl From<DbError> for Flaw {
    fn from(error: DbError) -> Self {
        match error {
            DbError::Damaged { engine, offset, reason } => {
                Self::at(offset, format!("the {engine} database is damaged: {reason}"))
            }
            other => Self::new(other),
        }
    }
}

/// What a file holds.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Content {
    /// cyrus.index
    Index(Index),
    /// cyrus.expunge
    Expunge(Index),
    /// cyrus.header
    Header(Header),
    /// What a user has seen.
    Seen(Seens),
    /// What a user has subscribed to.
    Subscriptions(Subscribed),
    /// Quota roots.
    Quota(Quotas),
    /// Annotations of the server, of mailboxes, of messages.
    Annotations(Annotations),
    /// mailboxes.db
    Mailboxes(Mailboxes),
    /// Any database.
    Database(Pairs),
}

/// A file's content and its flaws.
#[derive(Debug, Clone, Serialize)]
pub struct Document {
    /// What it holds.
    #[serde(flatten)]
    pub content: Content,
    /// What in it is not as it should be.
    pub flaws: Vec<Flaw>,
}

/// Reads a file of a known kind. Fails if nothing of it can be understood.
pub fn read(kind: Kind, bytes: &Bytes, beside: &Beside<'_>) -> Result<Document, Flaw> {
    let mut flaws = Vec::new();
    let content = match kind {
        Kind::Index => Content::Index(index::index(bytes, beside, &mut flaws)?),
        Kind::Expunge => Content::Expunge(index::expunge(bytes, beside, &mut flaws)?),
        Kind::Header => Content::Header(index::header(bytes)?),
        Kind::Seen => Content::Seen(databases::seen(bytes, &mut flaws)?),
        Kind::Subscriptions => Content::Subscriptions(databases::subscriptions(bytes, beside)?),
        Kind::Quota => Content::Quota(databases::quota(bytes, &mut flaws)?),
        Kind::Annotations => {
            Content::Annotations(databases::annotations(bytes, false, &mut flaws)?)
        }
        Kind::MessageAnnotations => {
            Content::Annotations(databases::annotations(bytes, true, &mut flaws)?)
        }
        Kind::Mailboxes => Content::Mailboxes(databases::mailboxes(bytes, &mut flaws)?),
        Kind::Database => Content::Database(databases::pairs(bytes)?),
    };
    Ok(Document { content, flaws })
}

/// Reads those records of annotations.db or quotas.db whose keys are wanted.
pub fn read_part(
    kind: Kind,
    bytes: &Bytes,
    wanted: &dyn Fn(&[u8]) -> bool,
) -> Result<Document, Flaw> {
    let (file, mut entries) = databases::open(bytes)?;
    entries.retain(|(key, _)| wanted(key));
    let mut flaws = Vec::new();
    let content = match kind {
        Kind::Quota => Content::Quota(databases::quota_roots(&entries, &mut flaws)),
        _ => Content::Annotations(databases::annotations_of(file, &entries, false, &mut flaws)),
    };
    Ok(Document { content, flaws })
}

/// Bytes as text: UTF-8 as it is, other bytes and control characters escaped.
pub fn printed(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text
            .chars()
            .flat_map(|c| {
                let escaped = c.is_control();
                let escaped = escaped.then(|| c.escape_default().to_string());
                escaped.unwrap_or_else(|| c.to_string()).chars().collect::<Vec<_>>()
            })
            .collect(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests;
