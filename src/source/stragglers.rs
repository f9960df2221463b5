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
use crate::cyrus::config::DbKind;
use crate::cyrus::db::Database;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{Header, IndexView, Record};
use crate::cyrus::mboxlist::Acl;
use crate::cyrus::mboxlist::mbtype::Kind;
use crate::cyrus::quota::Quota;
use crate::cyrus::subscription::Subscriptions;
use crate::host::{Host, read_locked};
use crate::inventory::{flags, hex};
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

/// What is looked at: the user as the last scan has found him, and as he was.
pub struct Search<'a> {
    /// This server.
    pub host: &'a Host,
    /// His mailboxes.
    pub listing: &'a Listing,
    /// What the scan has found of each.
    pub known: &'a BTreeMap<u32, Known>,
    /// His own files.
    pub files: &'a UserFiles,
    /// The rest of the scan.
    pub rest: &'a v1::ScanDone,
    /// What he was.
    pub baseline: &'a Baseline,
    /// Where mailboxes that are different go.
    pub to: &'a Sender,
    /// Whether he is frozen.
    pub frozen: bool,
}

impl Search<'_> {
    /// Finds what is different.
    ///
    /// Errors: a mailbox cannot be read, or the connection is gone.
    pub fn find(&self) -> Result<v1::StragglersFound, String> {
        let mut problems = Vec::new();
        for mailbox in &self.listing.mailboxes {
            self.mailbox(mailbox, &mut problems)?;
        }
        let listed: BTreeSet<&str> = self.listing.mailboxes.iter().map(|m| m.id.as_str()).collect();
        for (number, (id, then)) in self.baseline.mailboxes.iter().enumerate() {
            if !then.deleted && !listed.contains(id.as_str()) {
                // It is on no list any more, so that no other has this number.
                send(self.to, gone(id, u32::MAX - 1 - number as u32, then))?;
            }
        }
        let (then, now) = (&self.baseline.rest, the_rest(self.listing, self.rest));
        for what in now.keys().chain(then.keys()).collect::<BTreeSet<_>>() {
            if now.get(what) != then.get(what) {
                problems
                    .push(left("", &format!("{what}: changed on the source, not carried over")));
            }
        }
        let (then, now) = (&self.baseline.subscriptions, subscriptions(self.listing, self.files));
        let only = |a: &[Vec<u8>], b: &[Vec<u8>]| {
            a.iter().filter(|name| !b.contains(name)).map(|n| Bytes::copy_from_slice(n)).collect()
        };
        Ok(v1::StragglersFound {
            subscribed: only(&now, then),
            unsubscribed: only(then, &now),
            problems,
            active_sieve: self.rest.active_sieve.clone(),
            frozen: self.frozen,
        })
    }

    /// Tells what is different of one mailbox.
    fn mailbox(
        &self,
        mailbox: &SourceMailbox,
        problems: &mut Vec<v1::Problem>,
    ) -> Result<(), String> {
        let id = mailbox.id.as_str();
        let then = self.baseline.mailboxes.get(id);
        let shown = self.host.external(&mailbox.entry.name);
        let mut leave = |text: &str| problems.push(left(&shown, text));
        if mailbox.deleted {
            match then {
                Some(then) if !then.deleted => send(self.to, gone(id, mailbox.ordinal, then))?,
                Some(_) => {}
                None => leave("it was made and deleted since"),
            }
            return Ok(());
        }
        let mut part = part_of(mailbox, then);
        let mut stragglers = Vec::new();
        if mailbox.entry.partition.is_some() {
            let now = Now::read(self.host, mailbox).map_err(|e| format!("{shown}: {e}"))?;
            if then.is_some_and(|t| t.uidvalidity != now.header.uidvalidity) {
                leave("its UIDVALIDITY is another; nothing of it is carried over");
                return Ok(());
            }
            part.last_uid_now = now.header.last_uid;
            stragglers = now.stragglers(then, !self.listing.top.is_user());
            if then.is_some_and(|then| self.annotated(mailbox, then)) {
                leave("annotations of its messages were changed");
            }
            if ![Kind::Email, Kind::Sieve].contains(&mailbox.entry.mbtype.kind) {
                if !stragglers.is_empty() {
                    leave("it holds no mail; its changes are not carried over");
                }
                return Ok(());
            }
            if then.is_some_and(|t| now.header.deletedmodseq > t.highestmodseq) {
                part.listed = true;
                part.present_runs = manifest::runs(now.present());
            }
        }
        // Also where nothing is different: it may have been, and was carried over.
        let mut chunks = stragglers.chunks(MAX_STRAGGLERS);
        part.stragglers = chunks.next().unwrap_or_default().to_vec();
        let again = v1::StragglerMailbox { mailbox: part.mailbox.clone(), ..Default::default() };
        send(self.to, part)?;
        for chunk in chunks {
            send(self.to, v1::StragglerMailbox { stragglers: chunk.to_vec(), ..again.clone() })?;
        }
        Ok(())
    }

    /// Whether annotations of messages were changed.
    fn annotated(&self, mailbox: &SourceMailbox, then: &Then) -> bool {
        let known = self.known.get(&mailbox.ordinal);
        let scan = known.and_then(|k| v1::MailboxScan::decode(k.observable.as_slice()).ok());
        scan.is_some_and(|scan| annotations_of(&scan) != then.annotations)
            && has_annotations(self.host, mailbox)
    }
}

fn send(to: &Sender, part: v1::StragglerMailbox) -> Result<(), String> {
    to.part(v1::part::Part::StragglerMailbox(part)).map_err(|e| e.to_string())
}

/// A mailbox as it is now, without its messages.
fn part_of(mailbox: &SourceMailbox, then: Option<&Then>) -> v1::StragglerMailbox {
    let mut part = v1::StragglerMailbox {
        mailbox: Some(super::scan::to_wire(mailbox)),
        ..v1::StragglerMailbox::default()
    };
    if let Some(then) = then {
        part.known = true;
        part.name_then = Bytes::copy_from_slice(&then.name);
        part.last_uid_then = then.last_uid;
        part.highestmodseq_then = then.highestmodseq;
    }
    let acl = then.map(|then| Acl(then.acl.clone())).unwrap_or_default();
    part.rights = rights(&acl, &mailbox.entry.acl);
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

/// Whether messages of the mailbox have annotations: Cyrus makes the file without
/// a reason, too.
fn has_annotations(host: &Host, mailbox: &SourceMailbox) -> bool {
    let paths = mailbox::meta_paths(host, mailbox);
    let path = paths.iter().find(|(kind, _)| *kind == FileKind::Annotations);
    let bytes = path.and_then(|(_, path)| read_locked(path, INDEX_WAIT).ok()).unwrap_or_default();
    let engine = host.config.db_engine(DbKind::Annotations);
    let entries = Database::open(bytes, &engine).and_then(|database| database.entries());
    entries.is_ok_and(|entries| !entries.is_empty())
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
    fn stragglers(&self, then: Option<&Then>, shared: bool) -> Vec<v1::Straggler> {
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
        found.collect()
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

/// The name of the file that holds the baseline of a move.
pub const FILE: &str = "baseline";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::index::{internal, system};

    fn record(uid: u32, modseq: u64) -> Record {
        Record { uid, modseq, ..Record::default() }
    }

    fn now(records: Vec<Record>) -> Now {
        let names = MailboxHeader {
            user_flags: vec![None, Some(b"$label".to_vec())],
            ..MailboxHeader::default()
        };
        Now { header: Header { minor: 17, ..Header::default() }, records, names }
    }

    fn then() -> Then {
        Then { last_uid: 3, highestmodseq: 10, ..Then::default() }
    }

    #[test]
    fn what_is_above_the_last_uid_is_new_and_what_is_above_the_modseq_is_changed() {
        let expunged = Record { internal_flags: internal::EXPUNGED, ..record(5, 13) };
        let records = vec![record(1, 4), record(2, 11), record(3, 10), record(4, 12), expunged];
        let now = now(records);
        let found = now.stragglers(Some(&then()), false);
        let told: Vec<_> = found.iter().map(|s| (s.uid, s.modseq, s.expunged)).collect();
        assert_eq!(told, [(2, 11, false), (4, 12, false), (5, 13, true)]);
        assert_eq!(now.present().collect::<Vec<_>>(), [1, 2, 3, 4]);
        // Of a mailbox that was not there everything is new.
        assert_eq!(now.stragglers(None, false).len(), 5);
    }

    #[test]
    fn flags_have_their_names_and_what_is_seen_in_a_shared_mailbox_is_nobodys() {
        let mut seen = record(9, 20);
        seen.system_flags = system::SEEN | system::FLAGGED;
        seen.user_flags[0] = 0b11;
        let flags = |shared| {
            let found = now(vec![seen]).stragglers(Some(&then()), shared);
            found.iter().flat_map(|s| s.flags.clone()).collect::<Vec<_>>()
        };
        assert_eq!(flags(false), [&b"\\Flagged"[..], b"\\Seen", b"$label"]);
        assert_eq!(flags(true), [&b"\\Flagged"[..], b"$label"]);
    }

    #[test]
    fn rights_that_were_given_changed_and_taken() {
        let acl = |text: &[u8]| Acl::from_text(text);
        let then = acl(b"a\tlrs\tb\tlr\tc\tl\t");
        let now = acl(b"a\tlrs\tb\tlrs\td\tp\t");
        let changes = rights(&then, &now);
        let told: Vec<_> =
            changes.iter().map(|c| (&c.identifier[..], &c.then[..], &c.now[..])).collect();
        let expected: [(&[u8], &[u8], &[u8]); 3] =
            [(b"b", b"lr", b"lrs"), (b"c", b"l", b""), (b"d", b"", b"p")];
        assert_eq!(told, expected);
    }

    #[test]
    fn of_a_quota_only_the_limits_count() {
        assert_eq!(limits(b"%(S (100 500) M (3))"), limits(b"%(S (999 500) M (4))"));
        assert_ne!(limits(b"%(S (100 500) M (3))"), limits(b"%(S (100 600) M (3))"));
    }
}
