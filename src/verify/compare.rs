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
use crate::wire::printable;
use crate::wire::v1::{self, copy_record::File};
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
            let finding = Finding::differs(kind, owner, 0, text(name), values.map(|v| v.map(text)));
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
        "property" | "index" => Kind::Property,
        "keyword" => Kind::Keyword,
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
        let needs =
            |side: &Side| self.waiting[*side as usize].is_empty() && !self.ended[*side as usize];
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
                && self
                    .relation
                    .later()
                    .is_some_and(|later| values[later as usize] >= values[later.other() as usize]);
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
            Some(_) if !record.expunged => other.deleted_modseq > self.header(side).highestmodseq,
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
            // It may have been half written when the copying stopped.
            File::Absent | File::OtherSize if self.relation.incomplete(side) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use v1::{CopyGroup, CopyHeader, CopyItem, CopyMailbox, CopyRecord, CopyRecords};

    const BEFORE: Relation = Relation::BeforeSwitch(Side::Here);
    const AFTER: Relation = Relation::AfterSwitch(Side::There);

    #[derive(Default)]
    struct Seen {
        differences: Vec<Finding>,
        later: Vec<Finding>,
    }

    impl Sink for Seen {
        fn difference(&mut self, finding: Finding) {
            self.differences.push(finding);
        }
        fn later(&mut self, finding: Finding) {
            self.later.push(finding);
        }
    }

    impl Seen {
        fn kinds(&self) -> Vec<(Kind, u32)> {
            self.differences.iter().map(|f| (f.kind, f.uid)).collect()
        }
    }

    /// Ten messages with MODSEQs 1 to 10.
    fn records() -> Vec<CopyRecord> {
        let record = |uid: u32| CopyRecord {
            uid,
            modseq: uid.into(),
            size: 100,
            guid: vec![uid as u8; 20].into(),
            internaldate_ns: i64::from(uid) * 1_000_000_000,
            savedate_ns: 7_000_000_000,
            ..CopyRecord::default()
        };
        (1..=10).map(record).collect()
    }

    fn header(minor: u32) -> CopyHeader {
        CopyHeader {
            index_minor: minor,
            uidvalidity: 5,
            last_uid: 10,
            highestmodseq: 10,
            has_modseqs: true,
            keywords: vec![Bytes::from_static(b"Junk"), Bytes::from_static(b"Work")],
            ..CopyHeader::default()
        }
    }

    /// Compares in parts of some records each, as they cross the wire.
    fn run(
        relation: Relation,
        headers: [CopyHeader; 2],
        records: [Vec<CopyRecord>; 2],
        part: usize,
    ) -> (Seen, Later) {
        let mut seen = Seen::default();
        let mut comparison = MailboxComparison::new(relation, "user.x", headers, &mut seen);
        let mut left = records.map(VecDeque::from);
        while let Some(side) = comparison.needs() {
            let from = &mut left[side as usize];
            let records: Vec<_> = from.drain(..part.min(from.len())).collect();
            let part = CopyRecords { last: records.is_empty(), records };
            comparison.take(side, part, &mut seen).unwrap();
        }
        (seen, comparison.later)
    }

    fn same_headers(records: [Vec<CopyRecord>; 2]) -> Seen {
        let (seen, later) = run(Relation::BothLive, [header(17), header(17)], records, 3);
        assert!(later.is_empty(), "{later:?}");
        seen
    }

    #[test]
    fn equal_mailboxes_are_equal_however_they_are_cut() {
        for relation in [Relation::BothLive, BEFORE, AFTER] {
            for part in 1..12 {
                let (seen, later) =
                    run(relation, [header(17), header(17)], [records(), records()], part);
                assert_eq!(seen.kinds(), []);
                assert!(later.is_empty());
            }
        }
    }

    #[test]
    fn each_field_is_compared() {
        type Change = fn(&mut CopyRecord);
        let changes: [(Kind, Change); 11] = [
            (Kind::Size, |r| r.size += 1),
            (Kind::Guid, |r| r.guid = vec![99; 20].into()),
            (Kind::InternalDate, |r| r.internaldate_ns += 1_000_000_000),
            (Kind::SaveDate, |r| r.savedate_ns += 1_000_000_000),
            (Kind::Flags, |r| r.system_flags |= u32::from(system::SEEN)),
            (Kind::Flags, |r| r.keywords = vec![1]),
            (Kind::Expunged, |r| r.expunged = true),
            (Kind::Modseq, |r| r.modseq += 1),
            (Kind::MissingFile, |r| r.file = File::Absent.into()),
            (Kind::RottenFile, |r| r.file = File::Rotten.into()),
            (Kind::MessageAnnotation, |r| {
                r.annotations = vec![CopyItem { name: "/comment".into(), ..CopyItem::default() }];
            }),
        ];
        for (kind, change) in changes {
            for changed in Side::BOTH {
                let mut both = [records(), records()];
                change(&mut both[changed as usize][4]);
                for relation in [Relation::BothLive, AFTER] {
                    let headers = [header(17), header(17)];
                    let (seen, _) = run(relation, headers, both.clone(), 4);
                    assert_eq!(seen.kinds(), [(kind, 5)], "{relation:?} {changed:?}");
                }
            }
        }
    }

    #[test]
    fn the_bytes_are_compared_unless_one_file_is_known_to_be_rotten() {
        let with_hash = |byte: u8, file: File| {
            let mut all = records();
            all[2].blake3 = vec![byte; 32].into();
            all[2].file = file.into();
            all
        };
        let there = File::There;
        assert_eq!(same_headers([with_hash(1, there), with_hash(1, there)]).kinds(), []);
        assert_eq!(
            same_headers([with_hash(1, there), with_hash(2, there)]).kinds(),
            [(Kind::Content, 3)]
        );
        let rotten = same_headers([with_hash(1, there), with_hash(2, File::Rotten)]);
        assert_eq!(rotten.kinds(), [(Kind::RottenFile, 3)]);
        assert_eq!(rotten.differences[0].side, Some(Side::There));
    }

    #[test]
    fn keywords_are_compared_by_name() {
        let mut both = [records(), records()];
        both[0][0].keywords = vec![0];
        both[1][0].keywords = vec![1];
        let mut headers = [header(17), header(17)];
        headers[1].keywords.reverse();
        let (seen, _) = run(Relation::BothLive, headers, both.clone(), 5);
        assert_eq!(seen.kinds(), []);
        let seen = same_headers(both);
        assert_eq!(seen.differences[0].here.as_deref(), Some("Junk"));
        assert_eq!(seen.differences[0].there.as_deref(), Some("Work"));
    }

    #[test]
    fn what_a_version_cannot_express_is_not_compared() {
        let mut both = [records(), records()];
        both[0][0].internaldate_ns += 5;
        both[0][1].savedate_ns = 0;
        both[0][2].guid = Bytes::new();
        let minors = |a, b| [header(a), header(b)];
        let kinds = |headers, both: &[Vec<CopyRecord>; 2]| {
            run(Relation::BothLive, headers, both.clone(), 5).0.kinds()
        };
        assert_eq!(kinds(minors(17, 20), &both), []);
        assert_eq!(kinds(minors(20, 20), &both), [(Kind::InternalDate, 1)]);
        both[0][3].savedate_ns = 1;
        both[0][4].system_flags |= u32::from(system::SEEN);
        both[0][5].modseq = 1;
        let mut old = minors(10, 17);
        old[0].has_modseqs = false;
        assert_eq!(kinds(old, &both), []);
        let now = [(Kind::SaveDate, 4), (Kind::Flags, 5), (Kind::Modseq, 6)];
        assert_eq!(kinds(minors(17, 17), &both), now);
    }

    #[test]
    fn only_what_can_be_proven_to_be_later_is_excused() {
        // The source goes on; the stage stays.
        let mut source = header(17);
        (source.last_uid, source.highestmodseq) = (12, 15);
        let mut now = records();
        now.push(CopyRecord { uid: 12, modseq: 11, ..CopyRecord::default() });
        (now[0].system_flags, now[0].modseq) = (1, 12);
        (now[1].expunged, now[1].modseq) = (true, 13);
        let headers = || [source.clone(), header(17)];
        let (seen, later) = run(BEFORE, headers(), [now.clone(), records()], 3);
        assert_eq!(seen.kinds(), []);
        assert_eq!(later, Later { new: 1, changed: 1, expunged: 1 });
        // The same between two live copies is all different.
        let (seen, _) = run(Relation::BothLive, headers(), [now.clone(), records()], 3);
        let expected = [
            (Kind::LastUid, 0),
            (Kind::HighestModseq, 0),
            (Kind::Flags, 1),
            (Kind::Expunged, 2),
            (Kind::Message, 12),
        ];
        assert_eq!(seen.kinds(), expected);
        // Other flags with a MODSEQ that the stage knows already prove nothing.
        now[0].modseq = 10;
        let (seen, _) = run(BEFORE, headers(), [now.clone(), records()], 3);
        assert_eq!(seen.kinds(), [(Kind::Flags, 1)]);
        // Nor does a message below the stage's last UID that the stage has not.
        now[0] = records()[0].clone();
        let mut stage = records();
        stage.remove(6);
        let (seen, _) = run(BEFORE, headers(), [now, stage], 3);
        assert_eq!(seen.kinds(), [(Kind::Message, 7)]);
    }

    #[test]
    fn the_copy_in_use_must_not_fall_behind() {
        let mut target = header(17);
        (target.last_uid, target.highestmodseq, target.uidvalidity) = (9, 9, 6);
        let (seen, _) = run(AFTER, [header(17), target], [records(), records()], 5);
        let expected = [(Kind::UidValidity, 0), (Kind::LastUid, 0), (Kind::HighestModseq, 0)];
        assert_eq!(seen.kinds(), expected);
    }

    #[test]
    fn a_message_that_went_is_excused_only_by_an_expunge_that_was_cleaned_up() {
        let mut there = records();
        there.remove(3);
        let lost =
            |header_there| run(AFTER, [header(17), header_there], [records(), there.clone()], 5);
        assert_eq!(lost(header(17)).0.kinds(), [(Kind::Message, 4)]);
        let mut cleaned = header(17);
        (cleaned.highestmodseq, cleaned.deleted_modseq) = (12, 11);
        let (seen, later) = lost(cleaned);
        assert_eq!(seen.kinds(), []);
        assert_eq!(later, Later { expunged: 1, ..Later::default() });
        // A clean-up of what the earlier copy knows to be expunged proves nothing.
        let mut cleaned = header(17);
        (cleaned.highestmodseq, cleaned.deleted_modseq) = (12, 10);
        assert_eq!(lost(cleaned).0.kinds(), [(Kind::Message, 4)]);
        // One that was expunged before is needed as long as Cyrus keeps it.
        let mut here = records();
        here[3].expunged = true;
        let kinds = |deleted_modseq| {
            let there_header = CopyHeader { deleted_modseq, ..header(17) };
            run(AFTER, [header(17), there_header], [here.clone(), there.clone()], 5).0.kinds()
        };
        assert_eq!(kinds(3), [(Kind::Message, 4)]);
        assert_eq!(kinds(4), []);
    }

    #[test]
    fn what_a_stage_lacks_is_not_copied_yet() {
        let mut staged = records();
        staged[0].file = File::Absent.into();
        staged[1].file = File::OtherSize.into();
        let (seen, later) = run(BEFORE, [header(17), header(17)], [records(), staged.clone()], 5);
        assert_eq!(seen.kinds(), []);
        assert_eq!(later.new, 2);
        // The source has nobody to get it from.
        let (seen, _) = run(BEFORE, [header(17), header(17)], [staged, records()], 5);
        assert_eq!(seen.kinds(), [(Kind::MissingFile, 1), (Kind::FileSize, 2)]);
    }

    #[test]
    fn messages_out_of_order_are_no_answer() {
        let mut seen = Seen::default();
        let mut comparison =
            MailboxComparison::new(AFTER, "x", [header(17), header(17)], &mut seen);
        let mut records = records();
        records.swap(0, 1);
        let part = CopyRecords { records, last: false };
        assert_eq!(comparison.take(Side::Here, part, &mut seen), Err(OutOfOrder));
    }

    fn mailbox(name: &str, id: &str, folder_modseq: u64) -> CopyMailbox {
        CopyMailbox {
            name: Bytes::copy_from_slice(name.as_bytes()),
            display: name.into(),
            unique_id: id.into(),
            folder_modseq,
            ..CopyMailbox::default()
        }
    }

    #[test]
    fn mailboxes_pair_by_id_and_then_by_name() {
        let here = [mailbox("a", "1", 1), mailbox("b", "2", 1), mailbox("c", "3", 1)];
        let there = [mailbox("b", "9", 1), mailbox("x", "1", 1), mailbox("d", "4", 1)];
        let pairs = [
            Pair([Some(0), Some(1)]),
            Pair([Some(1), Some(0)]),
            Pair([Some(2), None]),
            Pair([None, Some(2)]),
        ];
        assert_eq!(pair(&here, &there), pairs);
    }

    #[test]
    fn a_mailbox_that_went_is_excused_by_its_tombstone() {
        let judge = |relation, side, mailbox: &CopyMailbox, other: &[CopyMailbox]| {
            let mut seen = Seen::default();
            single_mailbox(relation, side, mailbox, other, 3, &mut seen);
            seen.differences.is_empty()
        };
        let lost = mailbox("user.x.a", "1", 4);
        let grave = |modseq| CopyMailbox { tombstone: true, ..mailbox("user.x.a", "", modseq) };
        assert!(!judge(AFTER, Side::Here, &lost, &[]));
        assert!(!judge(AFTER, Side::Here, &lost, &[grave(4)]));
        assert!(judge(AFTER, Side::Here, &lost, &[grave(5)]));
        assert!(judge(AFTER, Side::There, &lost, &[]));
        assert!(judge(BEFORE, Side::Here, &lost, &[]));
        assert!(!judge(BEFORE, Side::There, &lost, &[]));
        assert!(!judge(Relation::BothLive, Side::Here, &lost, &[grave(5)]));
    }

    #[test]
    fn ids_never_change_and_names_only_later() {
        let judge = |there: CopyMailbox| {
            let mut seen = Seen::default();
            compare_mailboxes(AFTER, &mailbox("a", "1", 4), &there, &mut seen);
            (seen.kinds(), seen.later.len())
        };
        assert_eq!(judge(mailbox("a", "1", 4)), (vec![], 0));
        assert_eq!(judge(mailbox("b", "1", 5)), (vec![], 1));
        assert_eq!(judge(mailbox("b", "1", 4)), (vec![(Kind::Name, 0)], 0));
        assert_eq!(judge(mailbox("a", "2", 9)), (vec![(Kind::UniqueId, 0)], 0));
    }

    fn group(kind: &str, stamps: &[i64], items: &[(&str, &str, &[i64])]) -> CopyGroup {
        let items = items.iter().map(|(name, value, stamps)| CopyItem {
            name: Bytes::copy_from_slice(name.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            stamps: stamps.to_vec(),
        });
        CopyGroup { kind: kind.into(), items: items.collect(), stamps: stamps.to_vec() }
    }

    #[test]
    fn entries_are_later_by_their_stamps_and_else_different() {
        let judge = |relation, here: CopyGroup, there: CopyGroup| {
            let mut seen = Seen::default();
            compare_groups(relation, "user.x", [&[here], &[there]], &mut seen);
            (seen.differences.len(), seen.later.len())
        };
        let rights = |stamp, value| group("rights", &[stamp], &[("anna", value, &[])]);
        assert_eq!(judge(AFTER, rights(4, "lrs"), rights(4, "lrs")), (0, 0));
        assert_eq!(judge(AFTER, rights(4, "lrs"), rights(4, "l")), (1, 0));
        assert_eq!(judge(AFTER, rights(4, "lrs"), rights(5, "l")), (0, 1));
        assert_eq!(judge(AFTER, rights(5, "lrs"), rights(4, "l")), (1, 0));
        assert_eq!(judge(BEFORE, rights(5, "lrs"), rights(4, "l")), (0, 1));
        assert_eq!(judge(Relation::BothLive, rights(4, "lrs"), rights(5, "l")), (1, 0));
        // One entry's own stamp excuses no other entry.
        let two = |a: i64, value| group("seen", &[], &[("1", value, &[a]), ("2", value, &[7])]);
        assert_eq!(judge(AFTER, two(7, "x"), two(8, "y")), (1, 1));
        // What has no stamps may be behind in a stage, and nowhere else.
        let bare = |value| group("annotation", &[], &[("/comment", value, &[])]);
        assert_eq!(judge(BEFORE, bare("x"), bare("y")), (0, 1));
        assert_eq!(judge(AFTER, bare("x"), bare("y")), (1, 0));
        // Damage is told of each side, and a group that one side lacks is not compared.
        assert_eq!(judge(AFTER, group(DAMAGE, &[], &[("sub.db", "torn", &[])]), bare("")), (1, 0));
        assert_eq!(judge(AFTER, rights(4, "lrs"), bare("")), (0, 0));
    }
}
