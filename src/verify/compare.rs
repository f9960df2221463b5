//! The comparison of two copies of a user. Pure: what two agents tell goes in,
//! findings and counts come out.
//!
//! Where one copy has gone on since the other was taken from it, a change that
//! can be proven to be later is counted; everything else that is not the same
//! is a difference. The proof is Cyrus's own order of changes: a UID above the
//! other copy's last one, a MODSEQ above all of the other copy's, or the stamps
//! that agents send with what has no MODSEQ.

use super::finding::{Finding, Kind, Relation, Side};
use crate::cyrus::index::{Time, system};
use crate::wire::v1::{self, copy_record::File};
use crate::wire::printable;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Where findings go.
pub trait Sink {
    /// Takes something that should be the same and is not.
    fn difference(&mut self, finding: Finding);
    /// Takes something that one side's copy has got later than the other's.
    fn later(&mut self, finding: Finding);
}

/// What is later in one mailbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Later {
    /// Messages that came.
    pub new: u64,
    /// Messages with other flags or annotations.
    pub changed: u64,
    /// Messages that went.
    pub expunged: u64,
}

impl Later {
    /// Whether nothing is.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

impl std::ops::AddAssign for Later {
    fn add_assign(&mut self, other: Self) {
        self.new += other.new;
        self.changed += other.changed;
        self.expunged += other.expunged;
    }
}

/// Messages of both sides, as they come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the messages of a mailbox did not come in the order of their UIDs")]
pub struct OutOfOrder;

/// Two mailboxes that are one, or one that only one side has: positions in the
/// two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair(pub [Option<usize>; 2]);

/// Pairs the mailboxes of two lists, by id and then by name. What only one
/// side has comes last.
pub fn pair(here: &[v1::CopyMailbox], there: &[v1::CopyMailbox]) -> Vec<Pair> {
    let mut by_id: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_name: BTreeMap<&[u8], usize> = BTreeMap::new();
    for (at, mailbox) in there.iter().enumerate().filter(|(_, m)| !m.tombstone) {
        by_id.insert(&mailbox.unique_id, at);
        by_name.insert(&mailbox.name, at);
    }
    let live = || here.iter().enumerate().filter(|(_, m)| !m.tombstone);
    let same_id: BTreeMap<usize, usize> = live()
        .filter(|(_, m)| !m.unique_id.is_empty())
        .filter_map(|(at, m)| Some((at, *by_id.get(m.unique_id.as_str())?)))
        .collect();
    let mut taken: BTreeSet<usize> = same_id.values().copied().collect();
    let (mut pairs, mut single) = (Vec::new(), Vec::new());
    for (at, mailbox) in live() {
        let same_name = || by_name.get(&*mailbox.name).copied().filter(|n| !taken.contains(n));
        match same_id.get(&at).copied().or_else(same_name) {
            Some(other) => {
                taken.insert(other);
                pairs.push(Pair([Some(at), Some(other)]));
            }
            None => single.push(Pair([Some(at), None])),
        }
    }
    let live = there.iter().enumerate().filter(|(_, m)| !m.tombstone);
    single.extend(live.filter(|(at, _)| !taken.contains(at)).map(|(at, _)| Pair([None, Some(at)])));
    pairs.extend(single);
    pairs
}

/// Compares what the two lists say of one mailbox.
pub fn compare_mailboxes(
    relation: Relation,
    here: &v1::CopyMailbox,
    there: &v1::CopyMailbox,
    sink: &mut impl Sink,
) {
    let name = printable(&here.display);
    let both = [here, there];
    let later = relation.later().is_some_and(|side| {
        both[side as usize].folder_modseq > both[side.other() as usize].folder_modseq
    });
    let mut check = |kind, values: [String; 2], later: bool| {
        let [a, b] = &values;
        if a != b {
            let finding = Finding::differs(kind, &name, 0, "", values.map(Some));
            if later { sink.later(finding) } else { sink.difference(finding) }
        }
    };
    // A mailbox has its id for ever.
    check(Kind::UniqueId, both.map(|m| printable(&m.unique_id)), false);
    let renamed = here.name != there.name;
    let names = if renamed { both.map(|m| printable(&m.display)) } else { Default::default() };
    check(Kind::Name, names, later);
    compare_groups(relation, &name, both.map(|m| m.groups.as_slice()), sink);
}

/// Judges a mailbox that only the list of `side` has; `other` is the other list.
/// `messages` are those that clients see in it.
pub fn single_mailbox(
    relation: Relation,
    side: Side,
    mailbox: &v1::CopyMailbox,
    other: &[v1::CopyMailbox],
    messages: u64,
    sink: &mut impl Sink,
) {
    let value = if messages == 1 { "1 message".into() } else { format!("{messages} messages") };
    let mut values = [None, None];
    values[side as usize] = Some(value);
    let finding = Finding::differs(Kind::Mailbox, &printable(&mailbox.display), 0, "", values);
    let deleted_since = || {
        // What delayed delete keeps goes by itself one day.
        mailbox.deleted
            || other.iter().any(|o| {
                o.tombstone && o.name == mailbox.name && o.folder_modseq > mailbox.folder_modseq
            })
    };
    match relation.later() {
        Some(later) if later == side || deleted_since() => sink.later(finding),
        _ => sink.difference(finding),
    }
}

/// Compares groups of what has no UID, entry by entry. A kind of group that
/// only one side tells is not compared.
pub fn compare_groups(
    relation: Relation,
    owner: &str,
    [here, there]: [&[v1::CopyGroup]; 2],
    sink: &mut impl Sink,
) {
    for (side, groups) in [(Side::Here, here), (Side::There, there)] {
        for damaged in groups.iter().filter(|g| g.kind == DAMAGE).flat_map(|g| &g.items) {
            let what = format!("{}: {}", text(&damaged.name), text(&damaged.value));
            sink.difference(Finding::damage(Kind::UnreadableData, owner, 0, side, what));
        }
    }
    for group in here.iter().filter(|g| g.kind != DAMAGE) {
        let Some(other) = there.iter().find(|o| o.kind == group.kind) else { continue };
        let mut entries: BTreeMap<&[u8], [Option<&v1::CopyItem>; 2]> = BTreeMap::new();
        for (side, group) in [(Side::Here, group), (Side::There, other)] {
            for item in &group.items {
                entries.entry(&item.name).or_default()[side as usize] = Some(item);
            }
        }
        for (name, items) in entries {
            let values = items.map(|item| item.map(|i| &*i.value));
            if values[0] == values[1] {
                continue;
            }
            let kind = group_kind(&group.kind);
            let finding =
                Finding::differs(kind, owner, 0, text(name), values.map(|v| v.map(text)));
            let stamps = [group, other].map(|g| g.stamps.as_slice());
            let own = items.map(|item| item.map_or(&[][..], |i| &i.stamps));
            if is_later(relation, own) || is_later(relation, stamps) {
                sink.later(finding);
            } else if relation.later().is_some_and(|later| relation.incomplete(later.other()))
                && stamps.iter().chain(&own).all(|s| s.is_empty())
            {
                // Nothing tells when it was changed, and only one of them is in use.
                sink.later(finding);
            } else {
                sink.difference(finding);
            }
        }
    }
}

/// The group that tells what cannot be read.
pub const DAMAGE: &str = "damage";

/// Whether a stamp of the later side is higher; one that is missing is lowest.
fn is_later(relation: Relation, stamps: [&[i64]; 2]) -> bool {
    let Some(later) = relation.later() else { return false };
    let (later, earlier) = (stamps[later as usize], stamps[later.other() as usize]);
    later.iter().enumerate().any(|(n, stamp)| earlier.get(n).is_none_or(|e| stamp > e))
}

fn group_kind(word: &str) -> Kind {
    match word {
        "rights" => Kind::Rights,
        "property" => Kind::Property,
        "annotation" => Kind::Annotation,
        "subscription" => Kind::Subscription,
        "seen" => Kind::Seen,
        "sieve" => Kind::SieveScript,
        "active-sieve" => Kind::ActiveSieveScript,
        "quota" => Kind::QuotaLimit,
        _ => Kind::Other,
    }
}

fn text(bytes: &[u8]) -> String {
    printable(&String::from_utf8_lossy(bytes))
}

/// One mailbox that both sides have, message by message, in the order of UIDs.
pub struct MailboxComparison {
    relation: Relation,
    name: String,
    headers: [v1::CopyHeader; 2],
    waiting: [VecDeque<v1::CopyRecord>; 2],
    ended: [bool; 2],
    last: [u32; 2],
    /// What is later.
    pub later: Later,
    /// UIDs that were looked at.
    pub messages: u64,
    /// Bytes of the messages whose content was compared.
    pub bytes: u64,
}

impl MailboxComparison {
    /// Begins with what the two headers say.
    pub fn new(
        relation: Relation,
        name: &str,
        headers: [v1::CopyHeader; 2],
        sink: &mut impl Sink,
    ) -> Self {
        let comparison = Self {
            relation,
            name: printable(name),
            headers,
            waiting: Default::default(),
            ended: [false; 2],
            last: [0; 2],
            later: Later::default(),
            messages: 0,
            bytes: 0,
        };
        comparison.headers(sink);
        comparison
    }

    /// The side whose messages are needed next; `None` when all were compared.
    pub fn needs(&self) -> Option<Side> {
        let needs = |side: &Side| {
            self.waiting[*side as usize].is_empty() && !self.ended[*side as usize]
        };
        Side::BOTH.into_iter().find(needs)
    }

    /// Takes messages of one side, and compares as far as it can.
    pub fn take(
        &mut self,
        side: Side,
        part: v1::CopyRecords,
        sink: &mut impl Sink,
    ) -> Result<(), OutOfOrder> {
        let at = side as usize;
        for record in part.records {
            if record.uid <= self.last[at] {
                return Err(OutOfOrder);
            }
            self.last[at] = record.uid;
            self.waiting[at].push_back(record);
        }
        self.ended[at] = part.last;
        while self.needs().is_none() {
            let [here, there] = &self.waiting;
            let next = [here.front().map(|r| r.uid), there.front().map(|r| r.uid)];
            let Some(uid) = next.iter().flatten().min().copied() else { break };
            let mut records = [None, None];
            for (at, record) in records.iter_mut().enumerate() {
                if next[at] == Some(uid) {
                    *record = self.waiting[at].pop_front();
                }
            }
            self.messages += 1;
            match records {
                [Some(here), Some(there)] => self.both([here, there], sink),
                [Some(here), None] => self.single(Side::Here, &here, sink),
                [None, Some(there)] => self.single(Side::There, &there, sink),
                [None, None] => {}
            }
        }
        Ok(())
    }

    fn header(&self, side: Side) -> &v1::CopyHeader {
        &self.headers[side as usize]
    }

    fn has_modseqs(&self) -> bool {
        self.headers.iter().all(|h| h.has_modseqs)
    }

    /// The oldest of the two formats: what it cannot express is not compared.
    fn minor(&self) -> u32 {
        self.headers.iter().map(|h| h.index_minor).min().unwrap_or_default()
    }

    fn headers(&self, sink: &mut impl Sink) {
        let both = [self.header(Side::Here), self.header(Side::There)];
        let mut check = |kind, values: [u64; 2], grows: bool| {
            let grown = grows
                && self.relation.later().is_some_and(|later| {
                    values[later as usize] >= values[later.other() as usize]
                });
            if values[0] != values[1] && !grown {
                let values = values.map(|v| Some(v.to_string()));
                sink.difference(Finding::differs(kind, &self.name, 0, "", values));
            }
        };
        check(Kind::UidValidity, both.map(|h| h.uidvalidity.into()), false);
        check(Kind::LastUid, both.map(|h| h.last_uid.into()), true);
        if self.has_modseqs() {
            check(Kind::HighestModseq, both.map(|h| h.highestmodseq), true);
        }
        // Looking into a mailbox is enough to raise it.
        if self.relation != Relation::BothLive {
            check(Kind::RecentUid, both.map(|h| h.recent_uid.into()), true);
        }
        let groups = both.map(|h| h.groups.as_slice());
        compare_groups(self.relation, &self.name, groups, sink);
    }

    fn single(&mut self, side: Side, record: &v1::CopyRecord, sink: &mut impl Sink) {
        let other = self.header(side.other());
        let of_late = match self.relation.later() {
            Some(later) if later == side => record.uid > other.last_uid,
            // Expunged and cleaned up: only an expunge after all that the earlier
            // copy knows takes a message away that was not expunged there.
            Some(_) if !record.expunged => {
                other.deleted_modseq > self.header(side).highestmodseq
            }
            _ => record.expunged && other.deleted_modseq >= record.modseq,
        };
        self.file(side, record, sink);
        match (of_late, self.relation.later() == Some(side)) {
            (true, true) => self.later.new += u64::from(!record.expunged),
            (true, false) => self.later.expunged += u64::from(!record.expunged),
            (false, _) => {
                let mut values = [None, None];
                values[side as usize] =
                    Some(if record.expunged { "it, expunged".into() } else { String::new() });
                sink.difference(self.differs(Kind::Message, record.uid, "", values));
            }
        }
    }

    fn both(&mut self, records: [v1::CopyRecord; 2], sink: &mut impl Sink) {
        let [here, there] = &records;
        for side in Side::BOTH {
            self.file(side, &records[side as usize], sink);
        }
        let uid = here.uid;
        let mut fixed = |kind, values: [Option<String>; 2]| {
            if let [Some(a), Some(b)] = &values
                && a != b
            {
                sink.difference(self.differs(kind, uid, "", values));
            }
        };
        let both = [here, there];
        fixed(Kind::Size, both.map(|r| Some(r.size.to_string())));
        fixed(Kind::Guid, both.map(|r| (!r.guid.is_empty()).then(|| hex(&r.guid))));
        fixed(Kind::InternalDate, both.map(|r| self.time(r.internaldate_ns)));
        if self.minor() >= 15 {
            let known = |ns: i64| self.time(ns).filter(|_| ns != 0);
            fixed(Kind::SaveDate, both.map(|r| known(r.savedate_ns)));
        }
        let rotten = both.iter().any(|r| r.file() == File::Rotten);
        let read = both.iter().all(|r| !r.blake3.is_empty());
        if read && !rotten {
            fixed(Kind::Content, both.map(|r| Some(hex(&r.blake3))));
        }
        self.bytes += if read { here.size } else { 0 };
        self.changeable(&records, sink);
    }

    /// What clients can change, and each time raise the MODSEQ.
    fn changeable(&mut self, records: &[v1::CopyRecord; 2], sink: &mut impl Sink) {
        let both = [&records[0], &records[1]];
        let flags = [Side::Here, Side::There].map(|side| self.flags(side, both[side as usize]));
        let annotations = both.map(|r| {
            r.annotations.iter().map(|i| (&*i.name, &*i.value)).collect::<BTreeMap<_, _>>()
        });
        let same_modseq = !self.has_modseqs() || both[0].modseq == both[1].modseq;
        let same = flags[0] == flags[1]
            && both[0].expunged == both[1].expunged
            && annotations[0] == annotations[1];
        if same && same_modseq {
            return;
        }
        let later = self.relation.later().filter(|later| {
            let (later, earlier) = (*later, later.other());
            let modseq = both[later as usize].modseq;
            let highest = self.header(earlier).highestmodseq;
            self.has_modseqs() && modseq > both[earlier as usize].modseq && modseq > highest
        });
        if let Some(later) = later {
            let gone = both[later as usize].expunged && !both[later.other() as usize].expunged;
            self.later.expunged += u64::from(gone);
            self.later.changed += u64::from(!gone);
            return;
        }
        let uid = both[0].uid;
        let mut differs = |kind, what: String, values: [Option<String>; 2]| {
            if values[0] != values[1] {
                sink.difference(self.differs(kind, uid, what, values));
            }
        };
        let modseqs = same.then(|| both.map(|r| Some(r.modseq.to_string())));
        differs(Kind::Flags, String::new(), flags.map(Some));
        let state = |r: &v1::CopyRecord| if r.expunged { "expunged" } else { "not expunged" };
        differs(Kind::Expunged, String::new(), both.map(|r| Some(state(r).into())));
        let names: BTreeSet<&[u8]> = annotations.iter().flat_map(|a| a.keys().copied()).collect();
        for name in names {
            let values = [0, 1].map(|at| annotations[at].get(name).map(|v| text(v)));
            differs(Kind::MessageAnnotation, text(name), values);
        }
        if let Some(modseqs) = modseqs {
            differs(Kind::Modseq, String::new(), modseqs);
        }
    }

    /// The flags by their names, as far as both sides can express them.
    fn flags(&self, side: Side, record: &v1::CopyRecord) -> String {
        const NAMES: [(u16, &str); 5] = [
            (system::ANSWERED, "\\Answered"),
            (system::FLAGGED, "\\Flagged"),
            (system::DELETED, "\\Deleted"),
            (system::DRAFT, "\\Draft"),
            (system::SEEN, "\\Seen"),
        ];
        let mut names: BTreeSet<String> = NAMES
            .iter()
            .filter(|(bit, _)| record.system_flags & u32::from(*bit) != 0)
            .filter(|(bit, _)| *bit != system::SEEN || self.minor() >= 12)
            .map(|(_, name)| (*name).to_owned())
            .collect();
        let keywords = &self.header(side).keywords;
        names.extend(record.keywords.iter().map(|number| match keywords.get(*number as usize) {
            Some(name) if !name.is_empty() => text(name),
            _ => format!("keyword {number}, which has no name"),
        }));
        names.into_iter().collect::<Vec<_>>().join(" ")
    }

    /// A time as both sides can express it.
    fn time(&self, nanoseconds: i64) -> Option<String> {
        let time = Time::from_nanoseconds(nanoseconds);
        let time = if self.minor() >= 20 { time } else { time.whole() };
        let shown = jiff::Timestamp::from_nanosecond(time.nanoseconds().into());
        Some(shown.map_or_else(|_| time.nanoseconds().to_string(), |t| t.to_string()))
    }

    /// Whether the message's file is as the index says.
    fn file(&mut self, side: Side, record: &v1::CopyRecord, sink: &mut impl Sink) {
        let kind = match record.file() {
            File::There | File::NotLookedFor => return,
            File::Absent if record.expunged => return,
            File::Absent if self.relation.incomplete(side) => {
                self.later.new += 1;
                return;
            }
            File::Absent => Kind::MissingFile,
            File::OtherSize => Kind::FileSize,
            File::Unreadable => Kind::UnreadableFile,
            File::Rotten => Kind::RottenFile,
        };
        let what = printable(&record.file_text);
        sink.difference(Finding::damage(kind, &self.name, record.uid, side, what));
    }

    fn differs(
        &self,
        kind: Kind,
        uid: u32,
        what: impl Into<String>,
        values: [Option<String>; 2],
    ) -> Finding {
        Finding::differs(kind, &self.name, uid, what, values)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
