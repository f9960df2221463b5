//! What a copy has besides messages, in a form that does not depend on how a
//! version of Cyrus writes it: groups of names and values, with stamps that
//! grow when they are changed.

use super::copy::{Copy, index_path};
use crate::cyrus::annotation::{AnnotationKey, AnnotationValue, Scope};
use crate::cyrus::config::DbKind;
use crate::cyrus::db::Database;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{Header, IndexView, options};
use crate::cyrus::mboxlist::mbtype::Kind as Holds;
use crate::cyrus::name::MailboxName;
use crate::cyrus::quota::{Quota, Resource};
use crate::cyrus::seen::Seen;
use crate::cyrus::subscription::Subscriptions;
use crate::host::read_locked;
use crate::source::inventory::{SourceMailbox, UserFiles};
use crate::verify::compare::DAMAGE;
use crate::wire::v1::{self, CopyGroup, CopyItem, CopyKind, FileKind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long the lock of a user's own database is waited for.
const DATABASE_WAIT: Duration = Duration::from_secs(5);

/// All mailboxes of the copy, with what mailboxes.db and annotations.db say.
pub fn mailboxes(copy: &Copy) -> Result<Vec<v1::CopyMailbox>, String> {
    let annotations = copy.listing.annotations(&copy.databases)?;
    let mut groups: BTreeMap<u32, CopyGroup> = BTreeMap::new();
    for annotation in annotations.iter().filter(|a| !a.server) {
        let group = groups.entry(annotation.mailbox).or_default();
        group.items.extend(annotation_item(annotation));
    }
    let live = copy.listing.mailboxes.iter().map(|mailbox| {
        let stamps = vec![mailbox.entry.foldermodseq as i64];
        let mut annotations = groups.remove(&mailbox.ordinal).unwrap_or_default();
        annotations.kind = "annotation".into();
        annotations.stamps.clone_from(&stamps);
        let rights = mailbox.entry.acl.0.iter().map(|(who, rights)| {
            let mut rights = rights.clone();
            rights.sort_unstable();
            rights.dedup();
            item(who, &rights, &[])
        });
        let holds = format!("{:?}", mailbox.entry.mbtype.kind).to_lowercase();
        let property = item(b"type", holds.as_bytes(), &[]);
        let mut groups = vec![
            group("rights", rights.collect(), &stamps),
            group("property", vec![property], &stamps),
        ];
        // Until the shadow is built no annotations are staged.
        if copy.kind != CopyKind::Stage || mailbox.entry.foldermodseq > 0 {
            groups.push(annotations);
        }
        v1::CopyMailbox {
            ordinal: mailbox.ordinal,
            name: Bytes::copy_from_slice(mailbox.entry.name.as_bytes()),
            display: copy.files.external(&mailbox.entry.name),
            unique_id: mailbox.id.as_str().to_owned(),
            deleted: mailbox.deleted,
            tombstone: false,
            name_only: mailbox.entry.partition.is_none(),
            folder_modseq: mailbox.entry.foldermodseq,
            created_modseq: mailbox.entry.createdmodseq,
            groups,
        }
    });
    let mut all: Vec<_> = live.collect();
    all.extend(copy.tombstones.iter().map(|entry| v1::CopyMailbox {
        ordinal: u32::MAX,
        name: Bytes::copy_from_slice(entry.name.as_bytes()),
        display: copy.files.external(&entry.name),
        tombstone: true,
        folder_modseq: entry.foldermodseq,
        ..v1::CopyMailbox::default()
    }));
    Ok(all)
}

/// The groups of the user himself.
pub fn user(copy: &Copy) -> Vec<CopyGroup> {
    let mut damage = Vec::new();
    let mut groups = Vec::new();
    let mut keep = |what: &str, made: Result<Vec<CopyGroup>, String>| match made {
        Ok(made) => groups.extend(made),
        Err(error) => damage.push(item(what.as_bytes(), error.as_bytes(), &[])),
    };
    keep("quota roots", quota(copy));
    keep("annotations", server_annotations(copy));
    match copy.listing.user_files(&copy.files) {
        Ok(files) => {
            keep("sub.db", subscriptions(copy, &files));
            keep("seen.db", seen(copy, &files));
            keep("sieve scripts", sieve(copy, &files));
        }
        Err(error) => keep("the user's files", Err(error)),
    }
    groups.push(group(DAMAGE, damage, &[]));
    groups
}

/// What the index and the header file of a mailbox say of it as a whole.
pub fn properties(top: &MailboxName, index: &Header, header: &MailboxHeader) -> Vec<CopyGroup> {
    let stamps = [index.highestmodseq as i64];
    let switch = |name: &str, bit: u32| {
        item(name.as_bytes(), if index.options & bit == 0 { b"off" } else { b"on" }, &[])
    };
    let mut items = vec![
        switch("sharedseen", options::SHAREDSEEN),
        switch("duplicatedeliver", options::DUPDELIVER),
        item(b"pop3showafter", index.pop3_show_after.seconds().to_string().as_bytes(), &[]),
    ];
    // A root above the tree is the business of the server.
    let root = header.quota_root.as_deref().and_then(|r| MailboxName::from_internal(r).ok());
    if let Some(root) = root.filter(|root| root == top || root.is_below(top)) {
        items.push(item(b"quota root", root.as_bytes(), &[]));
    }
    let keywords = header.user_flags.iter().flatten().map(|name| item(name, b"", &[]));
    vec![group("index", items, &stamps), group("keyword", keywords.collect(), &stamps)]
}

/// The annotations of the messages of a mailbox, by UID.
pub fn message_annotations(
    path: &Path,
    copy: &Copy,
) -> Result<BTreeMap<u32, Vec<CopyItem>>, String> {
    let mut found: BTreeMap<u32, Vec<CopyItem>> = BTreeMap::new();
    for (key, value) in entries(path, copy, DbKind::Annotations)? {
        let Ok(key) = AnnotationKey::parse_message(&key) else { continue };
        let Scope::Message(uid) = key.scope else { continue };
        let owner = key.userid == crate::cyrus::annotation::OWNER;
        let annotation = v1::Annotation {
            entry: key.entry.into(),
            userid: if owner { Bytes::new() } else { key.userid.into() },
            owner,
            value,
            ..v1::Annotation::default()
        };
        found.entry(uid).or_default().extend(annotation_item(&annotation));
    }
    Ok(found)
}

fn item(name: &[u8], value: &[u8], stamps: &[i64]) -> CopyItem {
    CopyItem {
        name: Bytes::copy_from_slice(name),
        value: Bytes::copy_from_slice(value),
        stamps: stamps.to_vec(),
    }
}

fn group(kind: &str, items: Vec<CopyItem>, stamps: &[i64]) -> CopyGroup {
    CopyGroup { kind: kind.into(), items, stamps: stamps.to_vec() }
}

/// An annotation by name and owner; none for what is only remembered as removed.
fn annotation_item(annotation: &v1::Annotation) -> Option<CopyItem> {
    let whose: &[u8] = match (annotation.owner, annotation.userid.is_empty()) {
        (true, _) => b"the owner",
        (false, true) => b"everybody",
        (false, false) => &annotation.userid,
    };
    let name = [&annotation.entry, &b" of "[..], whose].concat();
    match AnnotationValue::parse(&annotation.value) {
        Ok(value) if value.is_deleted() => None,
        Ok(value) => {
            let stamp = value.modseq.map(|modseq| modseq as i64);
            Some(item(&name, &value.value, stamp.as_slice()))
        }
        Err(_) => Some(item(&name, &annotation.value, &[])),
    }
}

fn server_annotations(copy: &Copy) -> Result<Vec<CopyGroup>, String> {
    let annotations = copy.listing.annotations(&copy.databases)?;
    let items = annotations.iter().filter(|a| a.server).filter_map(annotation_item).collect();
    // What is staged tells nothing before the shadow is built.
    let none = copy.kind == CopyKind::Stage && annotations.is_empty();
    Ok(if none { Vec::new() } else { vec![group("annotation", items, &[])] })
}

fn quota(copy: &Copy) -> Result<Vec<CopyGroup>, String> {
    // Quota roots are no part of a stage.
    if copy.kind == CopyKind::Stage {
        return Ok(Vec::new());
    }
    let legacy =
        copy.files.config.db_engine(DbKind::Quota) == crate::cyrus::db::Engine::QuotaLegacy;
    let roots = copy.listing.quota_roots(if legacy { &copy.files } else { &copy.databases })?;
    let mut items = Vec::new();
    for root in roots {
        let name = String::from_utf8_lossy(&root.name).into_owned();
        let quota = Quota::parse(&root.record).map_err(|e| format!("{name}: {e}"))?;
        let Some(quota) = quota else { continue };
        let stamp = quota.modseq.map(|modseq| modseq as i64);
        let limits: [(&str, Option<Resource>); 4] = [
            ("STORAGE", quota.storage),
            ("MESSAGE", quota.message),
            ("ANNOTATION-STORAGE", quota.annotation_storage),
            ("MAILBOX", quota.num_folders),
        ];
        for (resource, limit) in limits {
            if let Some(limit) = limit.and_then(|r| r.limit) {
                let name = format!("{resource} of {name}");
                items.push(item(name.as_bytes(), limit.to_string().as_bytes(), stamp.as_slice()));
            }
        }
    }
    Ok(vec![group("quota", items, &[])])
}

fn subscriptions(copy: &Copy, files: &UserFiles) -> Result<Vec<CopyGroup>, String> {
    let Some(inbox) = copy.listing.inbox() else { return Ok(Vec::new()) };
    let Some(path) = path_of(files, FileKind::UserSubscriptions) else {
        return Ok(vec![group("subscription", Vec::new(), &[])]);
    };
    let stamp = modified(path)?;
    let found = entries(path, copy, DbKind::Subscription)?;
    let keys = found.iter().map(|(key, _)| key.as_ref());
    let found = Subscriptions::from_keys(keys, &inbox.entry.name);
    let items = found.names.iter().map(|name| item(name.as_bytes(), b"", &[])).collect();
    Ok(vec![group("subscription", items, &[stamp])])
}

/// What the user has read elsewhere; of his own mailboxes the index tells.
fn seen(copy: &Copy, files: &UserFiles) -> Result<Vec<CopyGroup>, String> {
    let mut items = Vec::new();
    if let Some(path) = path_of(files, FileKind::UserSeen) {
        let own: BTreeSet<&[u8]> =
            copy.listing.mailboxes.iter().map(|m| m.id.as_str().as_bytes()).collect();
        for (id, value) in entries(path, copy, DbKind::Seen)? {
            if own.contains(&*id) {
                continue;
            }
            match Seen::parse(&value) {
                Ok(seen) => {
                    let value = format!("{} up to {}", seen.uids, seen.last_uid);
                    items.push(item(&id, value.as_bytes(), &[seen.last_change]));
                }
                Err(_) => items.push(item(&id, &value, &[])),
            }
        }
    }
    Ok(vec![group("seen", items, &[])])
}

fn sieve(copy: &Copy, files: &UserFiles) -> Result<Vec<CopyGroup>, String> {
    if copy.listing.inbox().is_none() {
        return Ok(Vec::new());
    }
    // From 3.6 on each change of a script is one of this mailbox, too.
    let is_sieve = |m: &&SourceMailbox| m.entry.mbtype.kind == Holds::Sieve && !m.deleted;
    let changes: u64 = copy
        .listing
        .mailboxes
        .iter()
        .filter(is_sieve)
        .filter_map(|mailbox| highestmodseq(copy, mailbox))
        .max()
        .unwrap_or_default();
    let stamps = [changes as i64];
    let mut items = Vec::new();
    for (kind, name, path) in &files.files {
        let suffix: &[u8] = match kind {
            FileKind::SieveBytecode => b".bc",
            FileKind::SieveScript => b".script",
            _ => continue,
        };
        let bytes = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let size = bytes.len();
        let hash = format!("{size} bytes of BLAKE3 {}", blake3::hash(&bytes).to_hex());
        items.push(item(&[name, suffix].concat(), hash.as_bytes(), &[modified(path)?]));
    }
    let mut groups = vec![group("sieve", items, &stamps)];
    // The link is made when a stage is complete.
    if copy.kind != CopyKind::Stage {
        let active = Some(files.active_sieve.as_bytes()).filter(|name| !name.is_empty());
        let active = active.map(|name| item(b"", name, &[]));
        groups.push(group("active-sieve", active.into_iter().collect(), &stamps));
    }
    Ok(groups)
}

fn highestmodseq(copy: &Copy, mailbox: &SourceMailbox) -> Option<u64> {
    let path = index_path(&copy.files, mailbox)?;
    let (bytes, _lock) = crate::source::mailbox::read_index(&path, !copy.is_live()).ok()?;
    Some(IndexView::parse(&bytes).ok()?.header().highestmodseq)
}

fn path_of(files: &UserFiles, kind: FileKind) -> Option<&Path> {
    files.files.iter().find(|(k, ..)| *k == kind).map(|(.., path)| path.as_path())
}

/// When a file was changed, in whole seconds, as a copy keeps it.
fn modified(path: &Path) -> Result<i64, String> {
    std::fs::metadata(path).map(|m| m.mtime()).map_err(|e| format!("{}: {e}", path.display()))
}

/// The entries of a database file; none when there is no file.
fn entries(path: &Path, copy: &Copy, kind: DbKind) -> Result<Vec<(Bytes, Bytes)>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let bytes = match read_locked(path, DATABASE_WAIT) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(&e)),
    };
    let database = Database::open(bytes, &copy.files.config.db_engine(kind));
    database.and_then(|database| database.entries()).map_err(|e| failed(&e))
}
