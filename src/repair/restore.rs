//! Making records live again that XFER has marked or deleted.

use super::{Session, refused, unchanged};
use crate::cyrus::config::MetaFile;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::IndexView;
use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::mboxlist::edit::{Counters, RecordEdit, ServerEdit};
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::inspect::examine::{self, Found};
use crate::moves::journal::{Entry, REPAIR, state};
use crate::moves::{Journal, sealed};
use crate::wire::v1;
use std::io;
use std::path::Path;

/// The name of the file that keeps what records were.
const FILE: &str = "restored";

/// The name of the file that keeps the ids of what comes back whole from the other server.
const TAKEN: &str = "taken";

/// What repairs of a user that are not over have found to be taken from this server.
pub fn taken(host: &Host, entries: &[Entry]) -> io::Result<Vec<String>> {
    let directory = host.state_directory().map_err(io::Error::other)?;
    let Some(journal) = Journal::open_existing(&directory).map_err(io::Error::other)? else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for entry in entries.iter().filter(|e| e.detail == REPAIR && !state::is_over(&e.state)) {
        match sealed::load::<Vec<String>>(&journal.move_directory(&entry.id).join(TAKEN)) {
            Ok(taken) => all.extend(taken),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// The flags that make a record lead away, or nowhere.
const AWAY: [Flag; 4] = [Flag::Deleted, Flag::Moving, Flag::Remote, Flag::Reserve];

/// A key of mailboxes.db, the record that was, and what it becomes (none: removed).
type Change = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

impl Session {
    /// Makes the records live, or removes them, in one transaction under the user's lock.
    pub(super) fn restore(&mut self, host: &Host, wanted: &v1::Restore) -> Result<(), v1::Failure> {
        let _lock = self.lock(host)?;
        let found = examine::find(host, &self.top, &[]).map_err(unchanged)?;
        let database = host.mailboxes().map_err(|e| unchanged(e.to_string()))?;
        let list = MailboxList::from_database(&database).map_err(|e| unchanged(e.to_string()))?;
        let mut changes: Vec<Change> = Vec::new();
        for wanted in &wanted.mailboxes {
            let one = found.iter().find(|f| !f.unnamed && f.entry.name.as_bytes() == wanted.name);
            let one = one.ok_or_else(|| refused("a mailbox that is not here".into()))?;
            let shown = host.external(&one.entry.name);
            let id = one.entry.uniqueid.as_ref().map(|id| id.as_str()).unwrap_or_default();
            let away = AWAY.into_iter().any(|flag| one.entry.mbtype.has(flag));
            if !away || one.is_put_away() || id != wanted.unique_id {
                return Err(refused(format!("the record of {shown} has changed meanwhile")));
            }
            let edit = match wanted.remove {
                true => None,
                false => Some(live_again(host, one, wanted).map_err(refused)?),
            };
            let mut records = vec![(one.entry.key.to_vec(), one.entry.raw.to_vec())];
            let by_id = match &one.entry.uniqueid {
                Some(id) => list.id_record(id).map_err(|e| unchanged(e.to_string()))?,
                None => None,
            };
            records.extend(by_id.map(|(key, value)| (key.to_vec(), value.to_vec())));
            for (key, old) in records {
                let new = edit.as_ref().map(|edit| edit.apply(&old)).transpose();
                let new = new.map_err(|e| unchanged(format!("the record of {shown}: {e}")))?;
                changes.push((key, old, new));
            }
        }
        self.commit(host, &changes, &wanted.taken)
    }

    fn commit(
        &mut self,
        host: &Host,
        changes: &[Change],
        taken: &[String],
    ) -> Result<(), v1::Failure> {
        let directory = self.journal.move_directory(&self.entry.id);
        let failed = |name: &str, e: io::Error| {
            unchanged(format!("cannot write {}: {e}", directory.join(name).display()))
        };
        sealed::save(&directory.join(TAKEN), &taken).map_err(|e| failed(TAKEN, e))?;
        sealed::save(&directory.join(FILE), &changes).map_err(|e| failed(FILE, e))?;
        self.record(state::PLANNED)?;
        fault::point(Point::RestoreSaved);
        let changed = changes.iter().map(|(key, _, new)| (&key[..], new.as_deref()));
        if !changes.is_empty() {
            host.change_records(changed).map_err(|e| unchanged(e.to_string()))?;
        }
        // The journal goes on saying that a repair is under way: what is left to be done,
        // records alone do not tell any more.
        fault::point(Point::RestoreCommitted);
        Ok(())
    }
}

/// What makes the record of a mailbox live again, if its files are here, and its own.
fn live_again(host: &Host, found: &Found, wanted: &v1::Restored) -> Result<RecordEdit, String> {
    let shown = host.external(&found.entry.name);
    let mut uidvalidity = 0;
    if !found.entry.mbtype.has(Flag::Intermediate) {
        let at = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let index = found.file(host, MetaFile::Index).filter(|path| path.exists());
        let index = index.ok_or_else(|| format!("the files of {shown} are not here"))?;
        let read = std::fs::read(&index).map_err(|e| at(&index, &e))?;
        uidvalidity = IndexView::parse(&read).map_err(|e| at(&index, &e))?.header().uidvalidity;
        let header = found.file(host, MetaFile::Header).unwrap_or_default();
        let read = std::fs::read(&header).map_err(|e| at(&header, &e))?;
        let read = MailboxHeader::parse(&read).map_err(|e| at(&header, &e))?;
        let id = found.entry.uniqueid.as_ref().map(|id| id.as_str().as_bytes());
        if read.uniqueid.as_deref().is_some_and(|its| Some(its) != id) {
            return Err(format!("{} is of another mailbox than {shown}", header.display()));
        }
    }
    Ok(RecordEdit {
        partition: found.entry.partition.clone(),
        server: ServerEdit::Remove,
        add: Vec::new(),
        remove: AWAY.to_vec(),
        fill: Counters {
            uidvalidity,
            createdmodseq: wanted.created_modseq,
            foldermodseq: wanted.folder_modseq,
        },
    })
}
