//! The messages of one mailbox.

use super::decide::{self, Action, Flags, Here, There};
use super::ledger::{Appended, How, Ledger, Line, Settled};
use super::live::{Mailbox, Tree, id_of};
use super::{CarryError, LiveError, Offered, Result, Run, append};
use crate::cyrus::index::Record;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::host::imap::is_flag;
use crate::inventory::hex;
use crate::wire::v1::{self, problem::Severity};
use std::collections::{BTreeMap, BTreeSet};

/// Messages whose flags are changed by one command.
const MAX_SET: usize = 1000;

pub const SEEN: &[u8] = b"\\Seen";

const KEPT: &str = "it was expunged on the source and changed here; it stays";

/// How often a mailbox is looked at again because somebody changes it meanwhile.
const PASSES: usize = 5;

/// Finds out what became of appends whose end is not known: who is in the live
/// index with that content and date, and is no other's, has been appended.
pub fn settle_pending(ledger: &mut Ledger, tree: &Tree, host: &Host) -> Result<()> {
    let mut found = Vec::new();
    let mut taken: BTreeSet<(String, u32)> =
        ledger.appended.values().map(|a| (a.to.clone(), a.uid)).collect();
    for (message, pending) in &ledger.pending {
        let Some(entry) = tree.by_id(&pending.to) else { continue };
        let mailbox = Mailbox::read(host, entry)?;
        let is_it = |r: &Record| {
            let guid = r.guid.as_ref().map(|g| hex(g.as_bytes())).unwrap_or_default();
            r.uid >= pending.from
                && guid == pending.guid
                && r.internaldate.seconds() == pending.date
                && !taken.contains(&(pending.to.clone(), r.uid))
        };
        let uid = mailbox.view()?.records().filter_map(|r| r.ok()).find(is_it).map(|r| r.uid);
        if let Some(uid) = uid {
            taken.insert((pending.to.clone(), uid));
            let appended = Appended { to: pending.to.clone(), uid, modseq: 0 };
            found.push(Line::Appended(message.clone(), appended));
        }
    }
    Ok(ledger.write(found)?)
}

/// Carries the messages of a mailbox over, and what was changed of others.
pub fn carry(run: &mut Run<'_>, ordinal: u32, offered: &Offered) -> Result<()> {
    let carried = run.ledger.appended_of(offered.id.as_str()).next().is_some();
    if offered.stragglers.is_empty() && offered.present.is_none() && !carried {
        return Ok(());
    }
    if run.here(offered).is_some_and(|entry| entry.partition.is_some()) {
        for pass in 0..PASSES {
            if !changes(run, offered, pass + 1 == PASSES)? {
                break;
            }
        }
    }
    append::appends(run, ordinal, offered)
}

/// Flags to set and flags to remove.
type Change = (Flags, Flags);

/// Flag changes and expunges; whether somebody has changed some of the messages
/// meanwhile, so that they have to be looked at again.
fn changes(run: &mut Run<'_>, offered: &Offered, last: bool) -> Result<bool> {
    let Some(entry) = run.here(offered).cloned() else { return Ok(false) };
    let mailbox = Mailbox::read(run.host, &entry)?;
    let writer = run.writer(&entry);
    let strip = writer.as_ref().is_some_and(|writer| run.seen_is_not_his(writer));
    let (mut flags, mut expunges) = (BTreeMap::<Change, Messages>::new(), Messages::default());
    let mut settled = Vec::new();
    let carried: Vec<u32> = run.ledger.appended_of(offered.id.as_str()).collect();
    for (message, mut there) in offered.differences(&mailbox, carried)? {
        let Some(place) = run.place(offered, message.uid) else { continue };
        let before = run.ledger.settled.get(&offered.message(message.uid)).cloned();
        if let Some(before) = before.as_ref().filter(|s| s.modseq >= message.modseq) {
            if before.how == How::Kept {
                run.leave(Severity::Note, &entry.name, place.uid, KEPT);
            }
            continue;
        }
        if place.modseq >= message.modseq {
            continue;
        }
        let ours = before.map_or(0, |s| s.here).max(place.ours);
        let record = mailbox.view()?.find(place.uid).map_err(unreadable)?;
        let mut has = record.as_ref().map(|record| mailbox.flags(record)).unwrap_or_default();
        // What came with the user has all its flags, also those that cannot be sent.
        there.flags.retain(|f| has.contains(f) || run.sends(f, &entry.name, place.uid));
        let sendable = |flags: &mut Flags| flags.retain(|f| is_flag(f) && (!strip || f != SEEN));
        sendable(&mut there.flags);
        sendable(&mut has);
        let here = record.map(|record| Here {
            expunged: record.is_expunged() || record.is_unlinked(),
            flags: has,
            modseq: record.modseq,
            // What was appended is as it came while it has its first MODSEQ.
            ours: if place.appended { ours.max(record.createdmodseq) } else { ours },
            expunging: run.ledger.expunging.contains(&offered.message(place.uid)),
        });
        match decide::known(&there, here.as_ref()) {
            Action::Nothing | Action::Append => {
                let here = here.filter(|h| h.modseq <= h.ours).map_or(0, |h| h.modseq);
                settled.push(offered.settled(&message, here, How::Same));
            }
            Action::Keep => {
                run.leave(Severity::Note, &entry.name, place.uid, KEPT);
                settled.push(offered.settled(&message, 0, How::Kept));
            }
            Action::Flags { add, remove, modseq } => {
                flags.entry((add, remove)).or_default().add(message, place.uid, modseq);
            }
            Action::Expunge { modseq } => expunges.add(message, place.uid, modseq),
        }
    }
    run.write(settled)?;
    if flags.is_empty() && expunges.is_empty() {
        return Ok(false);
    }
    let Some(writer) = writer else {
        let text = "nobody has the rights to change its messages; changes of flags and expunges \
                    are not carried over";
        run.leave(Severity::Note, &entry.name, 0, text);
        return Ok(false);
    };
    let name = run.external(&entry.name)?;
    let selected = run.session(&writer)?.command("SELECT", &[&name])?;
    if !selected.ok {
        run.leave(Severity::Note, &entry.name, 0, format!("it cannot be used: {}", selected.text));
        return Ok(false);
    }
    let mut again = false;
    for ((add, remove), messages) in flags {
        again |= store(run, &writer, offered, &entry, &add, &remove, messages)?;
    }
    again |= expunge(run, &writer, offered, &entry, expunges)?;
    run.session(&writer)?.raw(b"UNSELECT", b"")?;
    if again && last {
        run.leave(
            Severity::Note,
            &entry.name,
            0,
            "it is changed all the time; some flags are not carried over",
        );
    }
    Ok(again)
}

/// Messages for one command, by the highest MODSEQ that they may have.
#[derive(Default)]
struct Messages(Vec<(Different, u32, u64)>);

impl Messages {
    fn add(&mut self, message: Different, uid: u32, modseq: u64) {
        self.0.push((message, uid, modseq));
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets of messages with ascending UIDs, each with the MODSEQ of the newest. A
    /// message that is changed after it was read has a higher one than all that
    /// were read.
    fn sets(mut self) -> impl Iterator<Item = (Vec<(Different, u32)>, u64)> {
        self.0.sort_by_key(|(_, uid, _)| *uid);
        let newest = self.0.iter().map(|(.., modseq)| *modseq).max().unwrap_or_default();
        let mut rest = self.0.into_iter().map(|(message, uid, _)| (message, uid));
        std::iter::from_fn(move || {
            let set: Vec<_> = rest.by_ref().take(MAX_SET).collect();
            (!set.is_empty()).then_some((set, newest))
        })
    }
}

fn store(
    run: &mut Run<'_>,
    writer: &str,
    offered: &Offered,
    entry: &MailboxEntry,
    add: &Flags,
    remove: &Flags,
    messages: Messages,
) -> Result<bool> {
    let mut again = false;
    for (set, newest) in messages.sets() {
        let mut uids: Vec<u32> = set.iter().map(|(_, uid)| *uid).collect();
        let mut modseqs = BTreeMap::new();
        let mut unchanged_since = newest;
        // If it ends between the two, what is left to be done is what is done about a message
        // that was changed on both: what was to be removed would stay.
        for (sign, flags) in [('-', remove), ('+', add)] {
            if flags.is_empty() || uids.is_empty() {
                continue;
            }
            let flags: Vec<&[u8]> = flags.iter().map(Vec::as_slice).collect();
            let answer = run.session(writer)?.store(&uids, Some(unchanged_since), sign, &flags)?;
            fault::point(Point::CarryFlagged);
            if !answer.ok {
                let text =
                    format!("flags of {} messages were not changed: {}", uids.len(), answer.text);
                run.leave(Severity::Note, &entry.name, 0, text);
                return Ok(false);
            }
            let modified = answer.modified();
            again |= !modified.is_empty();
            uids.retain(|uid| !modified.contains(uid));
            modseqs.extend(answer.modseqs);
            // What clients do between the two commands has a higher one than what we did.
            unchanged_since = modseqs.values().copied().fold(newest, u64::max);
        }
        let done = set.iter().filter(|(_, uid)| uids.contains(uid));
        let lines: Vec<_> = done
            .map(|(message, uid)| {
                let here = modseqs.get(uid).copied().unwrap_or_default();
                offered.settled(message, here, How::Flags)
            })
            .collect();
        run.write(lines)?;
    }
    Ok(again)
}

fn expunge(
    run: &mut Run<'_>,
    writer: &str,
    offered: &Offered,
    entry: &MailboxEntry,
    messages: Messages,
) -> Result<bool> {
    let mut again = false;
    for (set, newest) in messages.sets() {
        let mut uids: Vec<u32> = set.iter().map(|(_, uid)| *uid).collect();
        run.write([Line::Expunging(offered.id.as_str().to_owned(), uids.clone())])?;
        let session = run.session(writer)?;
        let mut answer = session.store(&uids, Some(newest), '+', &[b"\\Deleted"])?;
        let modified = answer.modified();
        fault::point(Point::CarryExpunging);
        again |= !modified.is_empty();
        uids.retain(|uid| !modified.contains(uid));
        if answer.ok && !uids.is_empty() {
            let command = format!("UID EXPUNGE {}", super::imap::set(&uids));
            answer = session.raw(command.as_bytes(), b"")?;
        }
        if !answer.ok {
            let text = format!("{} messages were not expunged: {}", uids.len(), answer.text);
            run.leave(Severity::Note, &entry.name, 0, text);
            return Ok(false);
        }
        let done = set.iter().filter(|(_, uid)| uids.contains(uid));
        let lines: Vec<_> =
            done.map(|(message, _)| offered.settled(message, 0, How::Expunged)).collect();
        run.write(lines)?;
    }
    Ok(again)
}

/// A message that is different on the source.
#[derive(Debug, Clone, Copy)]
pub struct Different {
    /// Its UID there.
    pub uid: u32,
    /// Its MODSEQ there.
    pub modseq: u64,
}

/// Where a message of the source is here.
struct Place {
    uid: u32,
    /// The MODSEQ on the source up to which everything is here already.
    modseq: u64,
    /// The MODSEQ here up to which nobody has changed it.
    ours: u64,
    appended: bool,
}

impl Run<'_> {
    /// Whether imapd works after a session with it has broken: then it was not its
    /// fault alone. It gets a new session.
    pub fn still_works(&mut self, identity: &str) -> Result<bool> {
        self.sessions.remove(identity);
        Ok(self.session(identity)?.raw(b"NOOP", b"")?.ok)
    }

    /// Whether what this one has seen says nothing of what the owner has.
    pub fn seen_is_not_his(&self, writer: &str) -> bool {
        self.top.is_user() && self.owner().as_deref() != Some(writer)
    }

    /// Where a message of the source is here, if it came here.
    fn place(&self, offered: &Offered, uid: u32) -> Option<Place> {
        if uid <= offered.last_uid {
            let then = offered.highestmodseq;
            return Some(Place { uid, modseq: then, ours: then, appended: false });
        }
        let appended = self.ledger.appended.get(&offered.message(uid))?;
        // One that went to another mailbox, or whose UID was not told, is left alone.
        let home = self.here(offered).is_some_and(|entry| id_of(entry) == appended.to);
        (home && appended.uid > 0).then_some(Place {
            uid: appended.uid,
            modseq: appended.modseq,
            ours: 0,
            appended: true,
        })
    }
}

impl Offered {
    /// What is different, with what has gone without a trace; also of what was `carried`
    /// before: the source tells all that it has above the last UID of then.
    fn differences(&self, here: &Mailbox, carried: Vec<u32>) -> Result<Vec<(Different, There)>> {
        let listed = self.stragglers.iter();
        let mut all: Vec<_> =
            listed.map(|s| (Different { uid: s.uid, modseq: s.modseq }, there(s))).collect();
        let told: BTreeSet<u32> = all.iter().map(|(different, _)| different.uid).collect();
        let mut gone = carried;
        if let Some(present) = &self.present {
            for record in here.view()?.records() {
                let uid = record.map_err(unreadable)?.uid;
                gone.extend((uid <= self.last_uid && !present.contains(uid)).then_some(uid));
            }
        }
        for uid in gone.into_iter().filter(|uid| !told.contains(uid)) {
            let there = There { expunged: true, flags: Flags::new() };
            all.push((Different { uid, modseq: u64::MAX }, there));
        }
        Ok(all)
    }

    pub fn settled(&self, message: &Different, here: u64, how: How) -> Line {
        Line::Settled(self.message(message.uid), Settled { modseq: message.modseq, here, how })
    }
}

pub fn there(straggler: &v1::Straggler) -> There {
    There {
        expunged: straggler.expunged,
        flags: straggler.flags.iter().map(|flag| flag.to_vec()).collect(),
    }
}

pub fn unreadable(error: crate::cyrus::index::IndexError) -> CarryError {
    LiveError::Unreadable(error.to_string()).into()
}
