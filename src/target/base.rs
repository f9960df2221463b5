//! The base: what this server kept of a user when an earlier move took him away.
//! When he comes back, only what has changed since has to cross the wire, and
//! the records that send his clients away are replaced in the same transaction
//! that brings him back.

use super::publish::KeyValue;
use super::stage::StagedDirectory;
use crate::cyrus::annotation::{AnnotationKey, Scope};
use crate::cyrus::config::DbKind;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::host::Host;
use crate::moves::journal::{Entry, state};
use crate::moves::{Journal, JournalError};
use crate::source::retire::Retirement;
use crate::wire::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

/// What is kept of a user who was moved away from here.
#[derive(Debug)]
pub struct Base {
    retirement: Retirement,
    records: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Base {
    /// The base of the user whose top mailbox is `name`: of the last move that
    /// took him away, if his records are as that move has left them.
    pub fn find(host: &Host, journal: &Journal, name: &[u8]) -> Result<Option<Base>, JournalError> {
        let away = |e: &Entry| {
            let over = [state::DONE, state::PURGED].contains(&e.state.as_str());
            e.role == v1::Role::Source && over
        };
        let last = journal.of(name)?.into_iter().filter(away).max_by_key(|e| e.updated);
        let base = last.and_then(|entry| {
            let retirement = Retirement::load(host, &entry.id).ok()?;
            let stands = retirement.is_committed(host).unwrap_or(false);
            let records = retirement.left_records().collect();
            stands.then_some(Base { retirement, records })
        });
        Ok(base)
    }

    /// Whether a record of mailboxes.db is one that sends clients away from here.
    pub fn left(&self, key: &[u8], value: &[u8]) -> bool {
        self.records.get(key).is_some_and(|left| left == value)
    }

    /// Whether an entry of mailboxes.db is one that sends clients away from here.
    pub fn left_entry(&self, entry: &MailboxEntry) -> bool {
        self.left(&entry.key, &entry.raw)
    }

    /// The records that publishing replaces or removes.
    pub fn stale_records(&self) -> Vec<KeyValue> {
        self.records.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Links the kept messages of a mailbox, whose live directory was `live`, into
    /// its directory of the stage. They count only when their content is what the
    /// source's index says, as all that an earlier session has left there.
    pub fn seed(&self, live: &Path, staged: &StagedDirectory) -> io::Result<()> {
        let Some(kept) = self.retirement.kept(live) else { return Ok(()) };
        let entries = match std::fs::read_dir(&kept) {
            // It was purged.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let message = name.to_str().and_then(|n| n.strip_suffix('.'));
            if message.is_some_and(|uid| uid.parse::<u32>().is_ok())
                && let Err(e) = staged.link(&entry.path(), &name)
                && e.kind() != io::ErrorKind::AlreadyExists
            {
                return Err(e);
            }
        }
        Ok(())
    }

    /// The files in the places of directories, which keep Cyrus from making them.
    pub fn blocked(&self) -> impl Iterator<Item = &Path> {
        self.retirement.blocked()
    }

    /// The annotations of these mailboxes, by id or by name as this server has them,
    /// that are here and will not be any more.
    pub fn stale_annotations(
        host: &Host,
        ids: &BTreeSet<&[u8]>,
        userid: Option<&[u8]>,
        new: &[KeyValue],
    ) -> Result<Vec<KeyValue>, String> {
        let database = host.database(DbKind::Annotations).map_err(|e| e.to_string())?;
        let mut stale = Vec::new();
        for (key, value) in database.prefix(b"").map_err(|e| e.to_string())? {
            let Ok(parsed) = AnnotationKey::parse(&key) else { continue };
            let ours = match &parsed.scope {
                Scope::Mailbox(id) => ids.contains(id.as_slice()),
                Scope::Server => userid.is_some_and(|user| parsed.userid == user),
                Scope::Message(_) => false,
            };
            if ours && !new.iter().any(|(k, _)| **k == *key) {
                stale.push((key.to_vec(), value.to_vec()));
            }
        }
        Ok(stale)
    }
}
