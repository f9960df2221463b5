//! The shadow: a private instance of Cyrus on the staged files, run by this
//! server's own programs. What its Cyrus accepts and how it writes the
//! records is what will be published.

use super::by_name;
use super::offer::Inventory;
use super::settle;
use super::stage::Stage;
use super::staged::StagedMailbox;
use crate::cyrus::config::DbKind;
use crate::cyrus::db::{Database, Engine};
use crate::cyrus::dlist::Dlist;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::cyrus::mboxlist::edit::RecordEdit;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::path::Layout;
use crate::host::tools::DbOp;
use crate::host::{Host, read_locked};
use crate::target::publish::KeyValue;
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;

/// How long one of Cyrus's programs may take on a user.
const TOOL_LIMIT: Duration = Duration::from_secs(3600);

/// What the target's own Cyrus said and made.
#[derive(Debug, Clone)]
pub struct Shadow {
    /// The records of mailboxes.db as this server's Cyrus has them.
    pub records: Vec<KeyValue>,
    /// The records that it was made of; another build is needed when they change.
    made_of: Vec<KeyValue>,
}

/// Why the shadow was not built.
#[derive(Debug, thiserror::Error)]
pub enum ShadowError {
    /// A record of the source is not what it should be.
    #[error("the record of {mailbox} in the source's mailboxes.db: {reason}")]
    Record {
        /// The mailbox.
        mailbox: String,
        /// What is wrong.
        reason: String,
    },
    /// A program or a file fails.
    #[error("the shadow in {}: {reason}", directory.display())]
    Build {
        /// The shadow's configdirectory.
        directory: std::path::PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// This server's Cyrus finds something to mend.
    #[error("this server's Cyrus does not accept what was copied: {0}")]
    Rejected(String),
}

impl Shadow {
    /// Builds the shadow's databases of what is staged.
    pub fn build(host: &Host, stage: &Stage, inventory: &Inventory) -> Result<Self, ShadowError> {
        let made_of = source_records(host, inventory)?;
        let error = |reason: String| ShadowError::Build { directory: stage.conf.clone(), reason };
        let path = Layout::new(&stage.config)
            .server_db(DbKind::Mailboxes)
            .map_err(|e| error(e.to_string()))?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(error(format!("{}: {e}", path.display())));
            }
            _ => {}
        }
        let ops: Vec<_> = made_of.iter().map(|(k, v)| DbOp::Set(k, v)).collect();
        let engine = stage.config.db_engine(DbKind::Mailboxes);
        host.tools
            .change_database(&stage.imapd_conf, &path, engine.name(), &["-n"], &ops)
            .map_err(|e| error(e.to_string()))?;
        // Makes what the other programs expect, and brings the records into
        // the form of this version.
        host.tools
            .run(&stage.imapd_conf, "ctl_cyrusdb", &["-r"], Vec::new(), TOOL_LIMIT)
            .map_err(|e| error(e.to_string()))?;
        let records = read_records(&path, &engine).map_err(error)?;
        // Last: while there are no records yet, ctl_cyrusdb drops annotations.
        let annotations = settle::annotations(host, inventory).map_err(error)?;
        if !annotations.is_empty() {
            let path = Layout::new(&stage.config)
                .server_db(DbKind::Annotations)
                .map_err(|e| error(e.to_string()))?;
            let ops: Vec<_> = annotations.iter().map(|(k, v)| DbOp::Set(k, v)).collect();
            let engine = stage.config.db_engine(DbKind::Annotations);
            host.tools
                .change_database(&stage.imapd_conf, &path, engine.name(), &["-n"], &ops)
                .map_err(|e| error(e.to_string()))?;
        }
        for (key, _) in &made_of {
            if !records.iter().any(|(k, _)| k == key) {
                return Err(error("a record of a mailbox is missing".into()));
            }
        }
        Ok(Self { records, made_of })
    }

    /// Whether the shadow is of these mailboxes as they are now.
    pub fn is_of(&self, host: &Host, inventory: &Inventory) -> bool {
        source_records(host, inventory).is_ok_and(|records| records == self.made_of)
    }

    /// Has this server's Cyrus read every mailbox; it must find nothing to mend.
    /// What it says of a mailbox that is still `changing` on the source counts
    /// for nothing: its files are of different moments.
    pub fn examine(
        &self,
        host: &Host,
        stage: &Stage,
        top: &Top,
        changing: &[String],
    ) -> Result<(), ShadowError> {
        let arguments: Vec<&str> = match &top.userid {
            Some(userid) => vec!["-n", "-q", "-u", userid],
            None => vec!["-n", "-q", "-r", &top.external],
        };
        let output = host
            .tools
            .run(&stage.imapd_conf, "reconstruct", &arguments, Vec::new(), TOOL_LIMIT)
            .map_err(|e| ShadowError::Build {
                directory: stage.conf.clone(),
                reason: e.to_string(),
            })?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let settled = |line: &&str| !changing.iter().any(|name| is_about(line, name));
        let complaints: Vec<&str> =
            said.lines().filter(|line| is_complaint(line)).filter(settled).collect();
        match complaints.first() {
            None => Ok(()),
            Some(_) => {
                let shown = complaints.iter().take(5).copied().collect::<Vec<_>>().join("; ");
                let more = complaints.len().saturating_sub(5);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                Err(ShadowError::Rejected(format!("{shown}{more}")))
            }
        }
    }
}

/// The top mailbox as Cyrus's programs are told.
#[derive(Debug, Clone)]
pub struct Top {
    /// The user's id; none for a shared tree.
    pub userid: Option<String>,
    /// The top mailbox's external name.
    pub external: String,
}

/// Whether a line of `reconstruct -n` is about this mailbox: its name comes first.
fn is_about(line: &str, name: &str) -> bool {
    line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', ':']))
}

/// Whether a line of `reconstruct -n` says that something is wrong. With `-q`
/// names of mailboxes are not printed; a date that it would derive in another
/// way is no difference that anybody sees.
fn is_complaint(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.contains("mismatch: sentdate") && !line.contains("mismatch: gmtime")
}

/// The records of the staged mailboxes, as on the source but for the partition: an N and
/// an I record of each, or one by name.
fn source_records(host: &Host, inventory: &Inventory) -> Result<Vec<KeyValue>, ShadowError> {
    let mut records = Vec::new();
    for mailbox in inventory.mailboxes.values().filter(|m| m.is_published(host)) {
        if !host.keeps_by_id() {
            let record = by_name::records(mailbox, &moved(mailbox, &mailbox.name_record)?);
            let mailbox = mailbox.name.display();
            records.push(record.map_err(|reason| ShadowError::Record { mailbox, reason })?);
            continue;
        }
        let name_key = [b"N", mailbox.name.to_db_key().as_slice()].concat();
        records.push((name_key, moved(mailbox, &mailbox.name_record)?));
        let id_key = [b"I", mailbox.id.as_str().as_bytes()].concat();
        records.push((id_key, moved(mailbox, &mailbox.id_record)?));
    }
    records.sort();
    Ok(records)
}

/// A record of the source as this server will have it, after checking that it
/// speaks of this mailbox and of no other server.
fn moved(mailbox: &StagedMailbox, record: &[u8]) -> Result<Vec<u8>, ShadowError> {
    let error = |reason: String| ShadowError::Record { mailbox: mailbox.name.display(), reason };
    let parsed =
        MailboxEntry::parse(mailbox.name.clone(), Bytes::new(), Bytes::copy_from_slice(record))
            .map_err(|e| error(e.to_string()))?;
    if parsed.uniqueid.as_ref().is_some_and(|id| *id != mailbox.id) {
        return Err(error("it names another uniqueid".into()));
    }
    let named = Dlist::parse(record)
        .ok()
        .and_then(|list| list.get(b"N").and_then(Dlist::as_bytes).map(<[u8]>::to_vec));
    if named.is_some_and(|name| name != mailbox.name.to_db_key()) {
        return Err(error("it names another mailbox".into()));
    }
    if parsed.server.is_some() {
        return Err(error("it names a server: the mailbox is on another one".into()));
    }
    let edit = RecordEdit {
        // What is only a name in the hierarchy is on no partition.
        partition: (!mailbox.name_only).then(|| mailbox.partition.clone()),
        // Staged directories are named by id, however the source names its own.
        remove: vec![Flag::LegacyDirs],
        ..RecordEdit::default()
    };
    edit.apply(record).map_err(|e| error(e.to_string()))
}

fn read_records(path: &Path, engine: &Engine) -> Result<Vec<KeyValue>, String> {
    let bytes = read_locked(path, Duration::from_secs(5)).map_err(|e| e.to_string())?;
    let database = Database::open(bytes, engine).map_err(|e| e.to_string())?;
    let entries = database.entries().map_err(|e| e.to_string())?;
    Ok(entries.into_iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_about_the_mailbox_that_it_begins_with() {
        assert!(is_about("user.x: Mailbox has an invalid format", "user.x"));
        assert!(is_about("user.x uid 4 guid mismatch", "user.x"));
        assert!(!is_about("user.x.y: Mailbox has an invalid format", "user.x"));
    }

    #[test]
    fn only_harmless_lines_of_reconstruct_are_no_complaints() {
        assert!(is_complaint("user.x: System I/O error Permission denied"));
        assert!(is_complaint("user.x uid 4 guid mismatch"));
        assert!(!is_complaint(""));
        assert!(!is_complaint("user.x uid 4 mismatch: sentdate"));
    }
}
