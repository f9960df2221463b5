//! A server that finds everything by name (up to 3.4): what is staged in the form and
//! by the ids of later releases becomes what such a server keeps.
//!
//! Headers, indexes, annotations of messages and subscriptions are converted in the
//! stage, where they lie by id as ever. Scripts, which are messages later on, become
//! files, and the mailbox of theirs does not become one here. For the shadow's programs
//! there is a [`View`] of the stage by names. Publishing renames each mailbox's
//! directory into that of its parent, which is there before.

use super::convert::replace;
use super::offer::Inventory;
use super::publish::KeyValue;
use super::stage::Stage;
use super::staged::{StagedMailbox, message_name};
use super::user_files::script_name;
use crate::cyrus::db::crc::crc32;
use crate::cyrus::downgrade;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::IndexView;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::cyrus::mboxlist::mbtype::Kind;
use crate::cyrus::name::{MailboxName, UserId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::cyrus::quota::Quota;
use crate::cyrus::sieve;
use crate::cyrus::subscription::{SubscriptionForm, Subscriptions};
use crate::cyrus::upgrade::{self, QuotaUse};
use crate::host::Host;
use crate::wire::v1::FileKind;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// The files of a user that are kept here, by the suffix of their names.
pub const USER_SUFFIXES: [&str; 3] = ["sub", "seen", "counters"];

/// Brings the metadata files of a staged mailbox into the form of this server, but for its
/// index; the CRC-32 of its header, of which the index tells.
pub fn mailbox(
    stage: &Stage,
    mailbox: &StagedMailbox,
    owner: Option<&UserId>,
) -> Result<u32, String> {
    let directory = |kind| mailbox.meta_directory(stage, kind).map_err(|e| e.to_string());
    let place = directory(FileKind::Header)?;
    let bytes = place.read_as_sent("cyrus.header").map_err(|e| format!("cyrus.header: {e}"))?;
    let header = MailboxHeader::parse(&bytes).map_err(|e| e.to_string())?;
    let header = downgrade::header_file(&header);
    replace(&place, "cyrus.header", &header)?;
    let place = directory(FileKind::Annotations)?;
    match (place.read_as_sent("cyrus.annotations"), owner) {
        (Ok(bytes), Some(owner)) => {
            let new = downgrade::message_annotations(bytes.into(), owner);
            replace(&place, "cyrus.annotations", &new.map_err(|e| e.to_string())?)?;
        }
        (Err(e), _) if e.kind() != io::ErrorKind::NotFound => return Err(e.to_string()),
        _ => {}
    }
    Ok(crc32(&header))
}

/// Brings a staged file of the user into the form of this server.
pub fn user_file(path: &Path, kind: FileKind, inbox: &MailboxName) -> Result<(), String> {
    if ![FileKind::UserSubscriptions, FileKind::UserCounters].contains(&kind) {
        return Ok(());
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    if kind == FileKind::UserCounters {
        let old = downgrade::counters(&bytes);
        return old.map_or(Ok(()), |old| std::fs::write(path, old)).map_err(|e| e.to_string());
    }
    let new = Subscriptions::parse(bytes.into(), inbox).map_err(|e| e.to_string())?;
    let old = Subscriptions { form: SubscriptionForm::Names, ..new };
    std::fs::write(path, old.to_flat(inbox)).map_err(|e| e.to_string())
}

/// The records of the mailboxes, by name.
pub fn records(mailbox: &StagedMailbox, record: &[u8]) -> Result<KeyValue, String> {
    let name = mailbox.name.clone();
    let entry = MailboxEntry::parse(name, Bytes::new(), Bytes::copy_from_slice(record));
    let record = downgrade::record(&entry.map_err(|e| e.to_string())?, &mailbox.id);
    Ok((mailbox.name.as_bytes().to_vec(), record))
}

/// Makes files of the scripts that are messages in a mailbox of their own, if they are.
pub fn scripts(stage: &Stage, inventory: &Inventory) -> Result<(), String> {
    let of_scripts = inventory.mailboxes.values().find(|m| m.kind() == Kind::Sieve);
    let (Some(mailbox), Some(inbox)) = (of_scripts, inventory.inbox()) else { return Ok(()) };
    let layout = Layout::new(&stage.config);
    let user = inbox.name.userid();
    let directory = user.and_then(|u| layout.sieve_dir(&u, DirStyle::Id(&inbox.id)).ok().flatten());
    let directory = directory.ok_or("sieve scripts are not kept by this server")?;
    let at = |e: io::Error| format!("{}: {e}", directory.display());
    // Bytecode of a later release is compiled anew by Cyrus when it is needed.
    match std::fs::remove_dir_all(&directory) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(e)),
        _ => std::fs::create_dir_all(&directory).map_err(at)?,
    }
    let index = mailbox.meta_directory(stage, FileKind::Index).map_err(|e| e.to_string())?;
    let bytes = index.read("cyrus.index").map_err(|e| format!("cyrus.index: {e}"))?;
    let index = IndexView::parse(&bytes).map_err(|e| e.to_string())?;
    for record in index.records() {
        let record = record.map_err(|e| e.to_string())?;
        if record.is_expunged() || record.is_unlinked() {
            continue;
        }
        let message = mailbox.message_directory(record.uid).read(&message_name(record.uid));
        let message = message.map_err(|e| format!("the script {}: {e}", record.uid))?;
        let script = sieve::script(&message);
        let script =
            script.and_then(|(name, text)| Some((script_name(name.as_bytes())?.to_owned(), text)));
        let (name, text) = script.ok_or("a sieve script has a name that cannot be a file's")?;
        std::fs::write(directory.join(format!("{name}.script")), text).map_err(at)?;
    }
    Ok(())
}

/// A quota root's record without what is counted of the mailbox of scripts.
pub fn quota(
    stage: &Stage,
    inventory: &Inventory,
    root: &MailboxName,
    record: &[u8],
) -> Result<Vec<u8>, String> {
    let scripts = inventory.mailboxes.values().find(|m| m.kind() == Kind::Sieve);
    let roots = inventory.rest.quota_roots.iter();
    let roots = roots.filter_map(|r| MailboxName::from_internal(&r.name).ok());
    let counts = |m: &&StagedMailbox| {
        let above = roots.clone().filter(|root| m.name == *root || m.name.is_below(root));
        above.max_by_key(|root| root.as_bytes().len()).as_ref() == Some(root)
    };
    let (Some(mailbox), Ok(Some(quota))) = (scripts.filter(counts), Quota::parse(record)) else {
        return Ok(record.to_vec());
    };
    let index = mailbox.meta_directory(stage, FileKind::Index).map_err(|e| e.to_string())?;
    let bytes = index.read("cyrus.index").map_err(|e| format!("cyrus.index: {e}"))?;
    let index = IndexView::parse(&bytes).map_err(|e| e.to_string())?;
    let header = index.header();
    let less = |of: Option<crate::cyrus::quota::Resource>, less: u64| {
        let used = of.map_or(0, |of| u64::try_from(of.used).unwrap_or(0));
        used.saturating_sub(less)
    };
    let used = QuotaUse {
        storage: less(quota.storage, header.quota_mailbox_used),
        messages: less(quota.message, u64::from(header.exists)),
        annotations: less(quota.annotation_storage, header.quota_annot_used),
        folders: less(quota.num_folders, 1),
    };
    Ok(upgrade::quota(&quota, &used))
}

/// The stage as a server sees it that finds mailboxes by name, while this value lives:
/// a symbolic link for each, in the directory of its parent.
#[derive(Debug)]
pub struct View {
    links: Vec<PathBuf>,
}

impl View {
    /// Makes it; nothing where mailboxes are found by id.
    pub fn make(host: &Host, stage: &Stage, inventory: &Inventory) -> io::Result<Self> {
        let mut view = Self { links: Vec::new() };
        if host.keeps_by_id() {
            return Ok(view);
        }
        let layout = Layout::new(&stage.config);
        for mailbox in in_order(inventory).filter(|m| !m.name_only && m.is_published(host)) {
            let dirs = |style| {
                let dirs = layout.mailbox_dirs(&mailbox.name, style, &mailbox.partition);
                dirs.map_err(io::Error::other)
            };
            let (ids, names) = (dirs(DirStyle::Id(&mailbox.id))?, dirs(DirStyle::Name)?);
            let pairs = names.into_iter().zip(ids).map(|((_, name), (_, id))| (name, id));
            let pairs: BTreeSet<_> = pairs.collect();
            for (name, id) in pairs {
                if let Some(parent) = name.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                match std::fs::remove_file(&name) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => std::os::unix::fs::symlink(id, &name)?,
                }
                view.links.push(name);
            }
        }
        Ok(view)
    }
}

impl Drop for View {
    fn drop(&mut self) {
        for link in self.links.iter().rev() {
            let _ = std::fs::remove_file(link);
        }
    }
}

/// The mailboxes, parents before what is in them.
pub fn in_order(inventory: &Inventory) -> impl Iterator<Item = &StagedMailbox> {
    let mut mailboxes: Vec<_> = inventory.mailboxes.values().collect();
    mailboxes.sort_by_key(|m| (m.name.components().count(), m.name.as_bytes().to_vec()));
    mailboxes.into_iter()
}
