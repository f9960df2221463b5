//! The quota root above a moved tree is the server's and not the tree's: what was under
//! one of the source goes under that of this server, or under none.

use super::offer::Inventory;
use super::stage::Stage;
use super::staged::StagedMailbox;
use crate::cyrus::config::DbKind;
use crate::cyrus::db::Engine;
use crate::cyrus::db::crc::crc32;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{Header, IndexFile, write_header};
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::Layout;
use crate::host::Host;
use crate::wire::v1::{self, FileKind, problem::Severity};
use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Names this server's root in the headers of staged mailboxes that name one which does
/// not move with them (`imap/mailbox.c:mailbox_set_quotaroot`); what is to be told.
pub fn adopt(
    host: &Host,
    stage: &Stage,
    inventory: &Inventory,
    top: &MailboxName,
) -> Result<Option<v1::Problem>, String> {
    let moved: BTreeSet<&[u8]> =
        inventory.rest.quota_roots.iter().map(|root| root.name.as_ref()).collect();
    let above = root_above(host, top)?;
    let mut adopted = false;
    for mailbox in inventory.mailboxes.values().filter(|m| !m.name_only) {
        let failed = |e: String| format!("{}: {e}", mailbox.name.display());
        adopted |= adopt_one(stage, mailbox, &moved, above.as_ref()).map_err(failed)?;
    }
    let tree = host.external(top);
    let told = |text: String| v1::Problem::new(Severity::Note, "quota-root-above", text, "");
    Ok(adopted.then(|| match &above {
        Some(root) => {
            let root = host.external(root);
            told(format!("{root} counts {tree} only after `quota -f {root}` on this server"))
        }
        None => told(format!("{tree} was under a quota root above it, here it is under none")),
    }))
}

/// Whether the mailbox was under a root that does not move.
fn adopt_one(
    stage: &Stage,
    mailbox: &StagedMailbox,
    moved: &BTreeSet<&[u8]>,
    above: Option<&MailboxName>,
) -> Result<bool, String> {
    let place = |kind| mailbox.meta_directory(stage, kind).map_err(|e| e.to_string());
    let directory = place(FileKind::Header)?;
    let bytes = directory.read("cyrus.header").map_err(|e| format!("cyrus.header: {e}"))?;
    let mut header = MailboxHeader::parse(&bytes).map_err(|e| format!("cyrus.header: {e}"))?;
    let Some(root) = &header.quota_root else { return Ok(false) };
    if moved.contains(root.as_slice()) || above.is_some_and(|a| a.as_bytes() == root) {
        return Ok(false);
    }
    header.quota_root = above.map(|name| name.as_bytes().to_vec());
    let bytes = header.to_bytes();
    let path = directory.path().join("cyrus.header");
    std::fs::write(&path, &bytes).map_err(|e| format!("{}: {e}", path.display()))?;

    // The index has the checksum of the header.
    let directory = place(FileKind::Index)?;
    let path = directory.path().join("cyrus.index");
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::options().read(true).write(true).open(&path).map_err(|e| failed(&e))?;
    let index = IndexFile::open(&file).map_err(|e| failed(&e))?;
    let head = Header { header_file_crc: crc32(&bytes), ..index.header().clone() };
    let head = write_header(head.minor, &head).map_err(|e| failed(&e))?;
    file.write_all_at(&head, 0).map_err(|e| failed(&e))?;
    Ok(true)
}

/// The nearest quota root of this server above a mailbox.
fn root_above(host: &Host, top: &MailboxName) -> Result<Option<MailboxName>, String> {
    let layout = Layout::new(&host.config);
    let database = match host.config.db_engine(DbKind::Quota) {
        Engine::QuotaLegacy => None,
        _ => Some(host.database(DbKind::Quota).map_err(|e| e.to_string())?),
    };
    let name = top.as_bytes();
    let dots = name.iter().enumerate().rev().filter(|(_, c)| **c == b'.').map(|(at, _)| at);
    for above in dots.filter_map(|at| MailboxName::from_internal(name.get(..at)?).ok()) {
        let there = match &database {
            Some(database) => database.get(above.as_bytes()).map_err(|e| e.to_string())?.is_some(),
            None => layout.quota_file(&above).is_ok_and(|path| path.exists()),
        };
        if there {
            return Ok(Some(above));
        }
    }
    Ok(None)
}
