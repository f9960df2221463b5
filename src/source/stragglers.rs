//! Stragglers: what has reached the source since the user was frozen for the
//! move, because the move stopped before the source was retired.
//!
//! Under the freeze, before the target publishes, the source writes down what
//! each mailbox is ([`Baseline`]). UIDs and MODSEQs only grow, so that later a
//! look at the index tells what is new: a UID above the last one of then is a new
//! message, a MODSEQ above the highest of then is a changed one.

use super::inventory::{Listing, SourceMailbox, UserFiles};
use super::mailbox::{self, Known};
use crate::agent::Sender;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{Header, IndexView, Record};
use crate::cyrus::mboxlist::Acl;
use crate::cyrus::mboxlist::mbtype::Kind;
use crate::cyrus::quota::Quota;
use crate::cyrus::subscription::Subscriptions;
use crate::host::{Host, read_locked};
use crate::inventory::flags;
use crate::wire::manifest;
use crate::wire::v1::{self, FileKind, problem::Severity};
use bytes::Bytes;
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// How long the lock of an index is waited for.
const INDEX_WAIT: Duration = Duration::from_secs(10);

/// Stragglers of one part; each may name all keywords of its mailbox.
const MAX_STRAGGLERS: usize = 1000;

/// What the user was when he was frozen to be published.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Baseline {
    mailboxes: BTreeMap<String, Then>,
    subscriptions: Vec<Vec<u8>>,
    /// What is only compared, by a word for it.
    rest: BTreeMap<String, String>,
}

/// What a mailbox was.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Then {
    name: Vec<u8>,
    deleted: bool,
    acl: Vec<(Vec<u8>, Vec<u8>)>,
    uidvalidity: u32,
    last_uid: u32,
    highestmodseq: u64,
    /// BLAKE3 of its message annotations, as text.
    annotations: String,
}

impl Baseline {
    /// What the last scan has found.
    pub fn of(
        listing: &Listing,
        known: &BTreeMap<u32, Known>,
        files: &UserFiles,
        rest: &v1::ScanDone,
    ) -> Self {
        let then = |mailbox: &SourceMailbox| {
            let scan = known
                .get(&mailbox.ordinal)
                .and_then(|k| v1::MailboxScan::decode(k.observable.as_slice()).ok())
                .unwrap_or_default();
            let then = Then {
                name: mailbox.entry.name.as_bytes().to_vec(),
                deleted: mailbox.deleted,
                acl: mailbox.entry.acl.0.clone(),
                uidvalidity: scan.uidvalidity,
                last_uid: scan.last_uid,
                highestmodseq: scan.highestmodseq,
                annotations: annotations_of(&scan),
            };
            (mailbox.id.as_str().to_owned(), then)
        };
        Self {
            mailboxes: listing.mailboxes.iter().map(then).collect(),
            subscriptions: subscriptions(listing, files),
            rest: the_rest(listing, rest),
        }
    }
}

/// Finds what is different from `baseline`, after a scan; mailboxes go to `to`.
///
/// Errors: a mailbox cannot be read, or the connection is gone.
pub fn find(
    host: &Host,
    listing: &Listing,
    known: &BTreeMap<u32, Known>,
    files: &UserFiles,
    rest: &v1::ScanDone,
    baseline: &Baseline,
    to: &Sender,
) -> Result<v1::StragglersFound, String> {
    let mut problems = Vec::new();
    for mailbox in &listing.mailboxes {
        let id = mailbox.id.as_str();
        let then = baseline.mailboxes.get(id);
        let shown = host.external(&mailbox.entry.name);
        let left = |text: &str| left(&shown, text);
        if mailbox.deleted {
            match then {
                Some(then) if !then.deleted => send(to, gone(id, mailbox.ordinal, then))?,
                Some(_) => {}
                None => {
                    problems.push(left("it was made and deleted since; it stays on the source"))
                }
            }
            continue;
        }
        let mut part = part_of(mailbox, then);
        if mailbox.entry.partition.is_some() {
            let now = Now::read(host, mailbox).map_err(|e| format!("{shown}: {e}"))?;
            if then.is_some_and(|t| t.uidvalidity != now.header.uidvalidity) {
                problems.push(left("its UIDVALIDITY is another; nothing of it is carried over"));
                continue;
            }
            let stragglers = now.stragglers(then, !listing.top.is_user())?;
            let known = known.get(&mailbox.ordinal);
            let scan = known.and_then(|k| v1::MailboxScan::decode(k.observable.as_slice()).ok());
            if let (Some(then), Some(scan)) = (then, scan)
                && annotations_of(&scan) != then.annotations
            {
                problems.push(left("annotations of its messages were changed on the source"));
            }
            if ![Kind::Email, Kind::Sieve].contains(&mailbox.entry.mbtype.kind) {
                if !stragglers.is_empty() {
                    problems.push(left("it holds no mail; its changes are not carried over"));
                }
                continue;
            }
            if then.is_some_and(|t| now.header.deletedmodseq > t.highestmodseq) {
                part.listed = true;
                part.present_runs = manifest::runs(now.present());
            }
            if stragglers.is_empty() && !part.listed && !has_news(&part) {
                continue;
            }
            let mut chunks = stragglers.chunks(MAX_STRAGGLERS);
            part.stragglers = chunks.next().unwrap_or_default().to_vec();
            send(to, part.clone())?;
            for chunk in chunks {
                let stragglers = chunk.to_vec();
                send(to, v1::StragglerMailbox { stragglers, ..part.clone() })?;
            }
        } else if has_news(&part) {
            send(to, part)?;
        }
    }
    let listed: BTreeSet<&str> = listing.mailboxes.iter().map(|m| m.id.as_str()).collect();
    for (number, (id, then)) in baseline.mailboxes.iter().enumerate() {
        if !then.deleted && !listed.contains(id.as_str()) {
            // It is on no list any more, so that no other has this number.
            send(to, gone(id, u32::MAX - 1 - number as u32, then))?;
        }
    }
    let now = the_rest(listing, rest);
    for what in now.keys().chain(baseline.rest.keys()).collect::<BTreeSet<_>>() {
        if now.get(what) != baseline.rest.get(what) {
            problems.push(left("", &format!("{what}: changed on the source, not on the target")));
        }
    }
    let (then, now) = (&baseline.subscriptions, subscriptions(listing, files));
    let only = |a: &[Vec<u8>], b: &[Vec<u8>]| {
        a.iter().filter(|name| !b.contains(name)).map(|n| Bytes::copy_from_slice(n)).collect()
    };
    Ok(v1::StragglersFound {
        subscribed: only(&now, then),
        unsubscribed: only(then, &now),
        problems,
        active_sieve: rest.active_sieve.clone(),
    })
}

fn send(to: &Sender, part: v1::StragglerMailbox) -> Result<(), String> {
    to.part(v1::part::Part::StragglerMailbox(part)).map_err(|e| e.to_string())
}

/// A mailbox as it is now, without its messages.
fn part_of(mailbox: &SourceMailbox, then: Option<&Then>) -> v1::StragglerMailbox {
    let mut part = v1::StragglerMailbox {
        mailbox: Some(super::to_wire(mailbox)),
        ..v1::StragglerMailbox::default()
    };
    if let Some(then) = then {
        part.known = true;
        part.name_then = Bytes::copy_from_slice(&then.name);
        part.last_uid_then = then.last_uid;
        part.highestmodseq_then = then.highestmodseq;
        part.rights = rights(&Acl(then.acl.clone()), &mailbox.entry.acl);
    }
    part
}

/// A mailbox that was published and is deleted now.
fn gone(id: &str, ordinal: u32, then: &Then) -> v1::StragglerMailbox {
    let name = Bytes::copy_from_slice(&then.name);
    let mailbox = v1::Mailbox {
        ordinal,
        name: name.clone(),
        unique_id: id.to_owned(),
        ..v1::Mailbox::default()
    };
    v1::StragglerMailbox {
        mailbox: Some(mailbox),
        known: true,
        name_then: name,
        last_uid_then: then.last_uid,
        highestmodseq_then: then.highestmodseq,
        gone: true,
        ..v1::StragglerMailbox::default()
    }
}

/// Whether the mailbox itself is different.
fn has_news(part: &v1::StragglerMailbox) -> bool {
    let name = part.mailbox.as_ref().map(|m| &m.name);
    !part.known || name != Some(&part.name_then) || !part.rights.is_empty()
}

fn rights(then: &Acl, now: &Acl) -> Vec<v1::RightsChange> {
    let identifiers: BTreeSet<&Vec<u8>> = then.0.iter().chain(&now.0).map(|(id, _)| id).collect();
    let of = |acl: &Acl, id: &[u8]| Bytes::copy_from_slice(acl.rights(id).unwrap_or_default());
    identifiers
        .into_iter()
        .map(|id| v1::RightsChange {
            identifier: Bytes::copy_from_slice(id),
            then: of(then, id),
            now: of(now, id),
        })
        .filter(|change| change.then != change.now)
        .collect()
}

fn annotations_of(scan: &v1::MailboxScan) -> String {
    let of = scan.files.iter().find(|f| f.kind() == FileKind::Annotations);
    of.map(|f| hex(&f.blake3)).unwrap_or_default()
}

fn subscriptions(listing: &Listing, files: &UserFiles) -> Vec<Vec<u8>> {
    let inbox = &listing.top;
    let path = files.files.iter().find(|(kind, ..)| *kind == FileKind::UserSubscriptions);
    let bytes = path.and_then(|(.., path)| std::fs::read(path).ok()).unwrap_or_default();
    let names = Subscriptions::parse(bytes.into(), inbox).map(|s| s.names).unwrap_or_default();
    names.into_iter().map(|name| name.as_bytes().to_vec()).collect()
}

/// What is only compared: quotas, annotations and what the user
/// has read in others' folders, as digests.
fn the_rest(listing: &Listing, rest: &v1::ScanDone) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut add = |what: String, bytes: &[u8]| {
        found.insert(what, hex(blake3::hash(bytes).as_bytes()));
    };
    for file in &rest.user_files {
        let name = String::from_utf8_lossy(&file.name);
        match file.kind() {
            FileKind::UserSeen => add("what he has read in others' folders".into(), &file.blake3),
            // Of an older server; else it is in a mailbox.
            FileKind::SieveScript => add(format!("the sieve script {name}"), &file.blake3),
            // Subscriptions are carried over, and the rest follows from the mail.
            _ => {}
        }
    }
    for root in &rest.quota_roots {
        // How much is used changes with the mail; the limits are what an admin set.
        let name = String::from_utf8_lossy(&root.name);
        add(format!("the quota limits of {name}"), &limits(&root.record));
    }
    for annotation in &rest.annotations {
        let mailbox = listing.mailboxes.iter().find(|m| m.ordinal == annotation.mailbox);
        let of = match mailbox {
            Some(mailbox) if !annotation.server => mailbox.entry.name.display(),
            _ => "the server".to_owned(),
        };
        let entry = String::from_utf8_lossy(&annotation.entry);
        let user = String::from_utf8_lossy(&annotation.userid);
        if !entry.ends_with("/lastupdate") {
            add(format!("the annotation {entry} {user} of {of}"), &annotation.value);
        }
    }
    found
}

/// A quota root's limits alone.
fn limits(record: &[u8]) -> Vec<u8> {
    let Ok(Some(quota)) = Quota::parse(record) else { return Vec::new() };
    let of = [quota.storage, quota.message, quota.annotation_storage, quota.num_folders];
    let limits = of.map(|resource| resource.and_then(|r| r.limit));
    format!("{limits:?}").into_bytes()
}

/// A mailbox's index as it is now.
struct Now {
    header: Header,
    records: Vec<Record>,
    names: MailboxHeader,
}

impl Now {
    fn read(host: &Host, mailbox: &SourceMailbox) -> Result<Self, String> {
        let paths = mailbox::meta_paths(host, mailbox);
        let path = |wanted: FileKind| {
            let found = paths.iter().find(|(kind, _)| *kind == wanted);
            found.map(|(_, path)| path.as_path()).ok_or("it has no directory")
        };
        let (index, header) = (path(FileKind::Index)?, path(FileKind::Header)?);
        let at = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let bytes = read_locked(index, INDEX_WAIT).map_err(|e| at(index, &e))?;
        let view = IndexView::parse(&bytes).map_err(|e| at(index, &e))?;
        let records = view.records().collect::<Result<Vec<_>, _>>().map_err(|e| at(index, &e))?;
        // After the index: a keyword has its name before a message has it.
        let names = std::fs::read(header).map_err(|e| at(header, &e))?;
        let names = MailboxHeader::parse(&names).map_err(|e| at(header, &e))?;
        Ok(Self { header: view.header().clone(), records, names })
    }

    /// The records that are new or changed. In a `shared` mailbox \Seen is not
    /// the message's unless all share it.
    fn stragglers(&self, then: Option<&Then>, shared: bool) -> Result<Vec<v1::Straggler>, String> {
        let (last_uid, highest) = then.map_or((0, 0), |t| (t.last_uid, t.highestmodseq));
        let seen = self.header.shares_seen() || !shared;
        let different = |r: &&Record| r.uid > last_uid || r.modseq > highest;
        let found = self.records.iter().filter(different).map(|r| v1::Straggler {
            uid: r.uid,
            modseq: r.modseq,
            expunged: r.is_expunged() || r.is_unlinked(),
            guid: Bytes::copy_from_slice(&r.guid.as_ref().map_or([0; 20], |g| *g.as_bytes())),
            internaldate: r.internaldate.seconds(),
            size: r.size,
            flags: flags(r, &self.names, seen).map(Bytes::copy_from_slice).collect(),
        });
        Ok(found.collect())
    }

    /// The UIDs of the messages that are there.
    fn present(&self) -> impl Iterator<Item = u32> + '_ {
        self.records.iter().filter(|r| !r.is_expunged() && !r.is_unlinked()).map(|r| r.uid)
    }
}

fn left(mailbox: &str, text: &str) -> v1::Problem {
    v1::Problem {
        severity: Severity::Note.into(),
        code: crate::wire::STRAGGLER_LEFT.into(),
        mailbox: mailbox.into(),
        text: text.into(),
        advice: "the source's retired copy has it".into(),
        ..v1::Problem::default()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name of the file that holds the baseline of a move.
pub const FILE: &str = "baseline";
