//! UIDs that both servers have given to messages since the user was published: a
//! client knows such a UID from one server, and another client from the other.
//! So it must not mean anything any more: the message that has it here gets a new
//! one, as if a client had copied and expunged it, above all that were ever told.

use super::decide::Flags;
use super::imap::{Letter, set};
use super::ledger::{Appended, Appending, Line, Message};
use super::live::{Mailbox, id_of};
use super::messages::unreadable;
use super::{Offered, Result, Run};
use crate::cyrus::index::Record;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::host::imap::is_flag;
use crate::inventory::hex;
use crate::wire::v1::problem::Severity;
use sha1::{Digest, Sha1};
use std::collections::BTreeMap;

/// How often a mailbox is looked at again because somebody changes it meanwhile.
const PASSES: usize = 5;

/// Most UIDs that are used up.
const MOST: u32 = 20_000;

/// Placeholders for one command.
pub const AT_ONCE: u32 = 200;

const DELETED: &[u8] = b"\\Deleted";

/// What uses a UID up, for a moment.
const PLACEHOLDER: &[u8] = b"From: mbcopy <mbcopy@localhost>\r\n\
    Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n\
    Subject: a placeholder\r\n\
    Message-Id: <placeholder@mbcopy.invalid>\r\n\
    \r\n\
    This only keeps a UID from being used twice.\r\n";

/// Sees to it that no UID which the source has given since means another message
/// here, or ever will.
pub fn keep_apart(run: &mut Run<'_>, offered: &Offered) -> Result<()> {
    if !is_shared(offered) {
        return Ok(());
    }
    let here = run.here(offered).filter(|entry| entry.partition.is_some()).cloned();
    let Some(entry) = here else { return Ok(()) };
    let Some(writer) = run.writer(&entry) else { return Ok(()) };
    let name = run.external(&entry.name)?;
    let work = Work { offered, entry: &entry, writer: &writer, name: &name };
    for _ in 0..PASSES {
        let twice = work.twice(run)?;
        if !run.session(&writer)?.command("SELECT", &[&name])?.ok {
            break;
        }
        let done = work.use_up_to(run, offered.last_uid_now)? && work.renumber(run, &twice)?;
        let done = work.expunge_placeholders(run)? && done;
        run.session(&writer)?.raw(b"UNSELECT", b"")?;
        if done {
            return Ok(());
        }
    }
    let text = "some of its UIDs were given on both servers, and could not be changed here";
    run.leave(Severity::Note, &entry.name, 0, text);
    Ok(())
}

/// How many UIDs are to be used up, so that the next message gets the one that it has on
/// the source, or, where that is not possible any more, one that the source has not
/// given. `last` is the last one that is used now.
pub fn gap(offered: &Offered, last: u32, uid: u32, frozen: bool) -> u32 {
    let wanted = match last < uid {
        true => uid - 1,
        false if last < offered.last_uid_now => ahead(offered, frozen),
        false => last,
    };
    let gap = wanted.saturating_sub(last);
    if is_shared(offered) && gap <= MOST { gap } else { 0 }
}

/// Whether both servers give UIDs of the same UIDVALIDITY: of a mailbox that was not
/// published they are others here.
fn is_shared(offered: &Offered) -> bool {
    offered.name_then.is_some() && offered.last_uid_now > offered.last_uid
}

/// Beyond what the source has given: if it is in use still, twice as far as it has
/// come since it was published.
fn ahead(offered: &Offered, frozen: bool) -> u32 {
    let since = offered.last_uid_now.saturating_sub(offered.last_uid);
    offered.last_uid_now.saturating_add(if frozen { 0 } else { 2 * since.min(MOST / 4) })
}

/// Has UIDs used up; whether that was done.
pub fn use_up(run: &mut Run<'_>, writer: &str, name: &[u8], count: u32) -> Result<bool> {
    if count > MOST {
        return Ok(false);
    }
    let mut left = count;
    while left > 0 {
        let now = left.min(AT_ONCE);
        left -= now;
        let letters = vec![placeholder(); now as usize];
        if !run.session(writer)?.append_all(name, &letters)?.ok {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What uses one UID up.
pub fn placeholder() -> Letter<'static> {
    Letter { flags: vec![DELETED], date: "01-Jan-1970 00:00:00 +0000", message: PLACEHOLDER }
}

/// A mailbox at work.
struct Work<'a> {
    offered: &'a Offered,
    entry: &'a MailboxEntry,
    writer: &'a str,
    name: &'a [u8],
}

impl Work<'_> {
    /// A message here, as the ledger names it.
    fn message(&self, uid: u32) -> Message {
        (format!("{} here", self.offered.id.as_str()), uid)
    }

    /// The messages here whose UIDs the source has given to others, or to none that
    /// is left.
    fn twice(&self, run: &Run<'_>) -> Result<Vec<u32>> {
        let index = Mailbox::read(run.host, self.entry)?;
        let here = id_of(self.entry);
        let same = |uid: u32| {
            let carried = run.ledger.appended.get(&self.offered.message(uid));
            carried.is_some_and(|carried| carried.uid == uid && carried.to == here)
        };
        let mut twice = Vec::new();
        for record in index.view()?.records() {
            let record = record.map_err(unreadable)?;
            let given =
                record.uid > self.offered.last_uid && record.uid <= self.offered.last_uid_now;
            if given && is_there(&record) && !is_placeholder(&record) && !same(record.uid) {
                twice.push(record.uid);
            }
        }
        Ok(twice)
    }

    /// Uses up all UIDs up to this one; whether that is done.
    fn use_up_to(&self, run: &mut Run<'_>, wanted: u32) -> Result<bool> {
        let last = Mailbox::read(run.host, self.entry)?.view()?.header().last_uid;
        use_up(run, self.writer, self.name, wanted.saturating_sub(last))
    }

    /// Expunges what has used UIDs up, here or in an attempt before this one.
    fn expunge_placeholders(&self, run: &mut Run<'_>) -> Result<bool> {
        let index = Mailbox::read(run.host, self.entry)?;
        let mut uids = Vec::new();
        for record in index.view()?.records() {
            let record = record.map_err(unreadable)?;
            if is_placeholder(&record) && is_there(&record) {
                uids.push(record.uid);
            }
        }
        self.expunge(run, &uids)
    }

    /// Gives new UIDs to these messages; whether that is done.
    fn renumber(&self, run: &mut Run<'_>, uids: &[u32]) -> Result<bool> {
        let index = Mailbox::read(run.host, self.entry)?;
        let view = index.view()?;
        let mut records = Vec::new();
        for uid in uids {
            records.extend(view.find(*uid).map_err(unreadable)?.filter(is_there));
        }
        let mut done = true;
        for records in records.chunks(AT_ONCE as usize) {
            let copies = self.copy(run, records, view.header().last_uid)?;
            // The same flags, whatever was changed since they were copied.
            let mut flags = BTreeMap::<Flags, Vec<u32>>::new();
            let (mut copied, mut newest) = (Vec::new(), 0);
            for record in records {
                let Some(copy) = copies.get(&record.uid) else { continue };
                let begun = run.ledger.expunging.contains(&self.message(record.uid));
                let mut has = index.flags(record);
                has.retain(|flag| !begun || flag != DELETED);
                flags.entry(has).or_default().push(*copy);
                copied.push(record.uid);
                newest = newest.max(record.modseq);
            }
            done &= copied.len() == records.len();
            if copied.is_empty() {
                continue;
            }
            for (flags, mut copies) in flags {
                if !flags.iter().all(|flag| is_flag(flag)) {
                    // They have them as COPY has given them.
                    continue;
                }
                copies.sort_unstable();
                let flags: Vec<&[u8]> = flags.iter().map(Vec::as_slice).collect();
                let head = format!("UID STORE {} FLAGS.SILENT (", set(&copies));
                let command = [head.as_bytes(), &flags.join(&b' '), b")"].concat();
                done &= run.session(self.writer)?.raw(&command, b"")?.ok;
            }
            run.write([Line::Expunging(self.message(0).0, copied.clone())])?;
            // Who was changed since the index was read has a higher MODSEQ than all of these.
            let session = run.session(self.writer)?;
            let stored = session.store(&copied, Some(newest), '+', &[DELETED])?;
            done &= stored.ok && stored.modified().is_empty();
        }
        // Who was changed meanwhile is not \Deleted, and stays for the next pass.
        Ok(self.expunge(run, uids)? && done)
    }

    /// The new UIDs of messages, which are copied unless they were before.
    fn copy(&self, run: &mut Run<'_>, records: &[Record], last: u32) -> Result<BTreeMap<u32, u32>> {
        let to = id_of(self.entry);
        let (mut copies, mut lines, mut new) = (BTreeMap::new(), Vec::new(), Vec::new());
        for record in records {
            let message = self.message(record.uid);
            if let Some(copied) = run.ledger.appended.get(&message) {
                copies.insert(record.uid, copied.uid);
                continue;
            }
            let appending = Appending {
                to: to.clone(),
                from: last.saturating_add(1),
                guid: record.guid.as_ref().map(|g| hex(g.as_bytes())).unwrap_or_default(),
                date: record.internaldate.seconds(),
            };
            lines.push(Line::Appending(message, appending));
            new.push(record.uid);
        }
        if new.is_empty() {
            return Ok(copies);
        }
        run.write(lines)?;
        let head = format!("UID COPY {} ", set(&new));
        let command = [head.as_bytes(), &super::imap::quoted(self.name)].concat();
        let answer = run.session(self.writer)?.raw(&command, b"")?;
        let made = if answer.ok { answer.copied(new.len()) } else { BTreeMap::new() };
        let mut lines = Vec::new();
        for record in records {
            let Some(uid) = made.get(&record.uid).copied() else { continue };
            // One that was carried over has moved.
            let mut all = run.ledger.appended.iter();
            let carried = all.find(|(_, a)| a.to == to && a.uid == record.uid);
            lines.extend(carried.map(|(message, appended)| {
                Line::Appended(message.clone(), Appended { uid, ..appended.clone() })
            }));
            let copied = Appended { to: to.clone(), uid, modseq: record.modseq };
            lines.push(Line::Appended(self.message(record.uid), copied));
        }
        run.write(lines)?;
        copies.extend(made);
        Ok(copies)
    }

    /// Expunges those of these messages that are \Deleted; whether that was done.
    fn expunge(&self, run: &mut Run<'_>, uids: &[u32]) -> Result<bool> {
        if uids.is_empty() {
            return Ok(true);
        }
        let command = format!("UID EXPUNGE {}", set(uids));
        Ok(run.session(self.writer)?.raw(command.as_bytes(), b"")?.ok)
    }
}

fn is_there(record: &Record) -> bool {
    !record.is_expunged() && !record.is_unlinked()
}

fn is_placeholder(record: &Record) -> bool {
    let guid = record.guid.as_ref();
    record.size == PLACEHOLDER.len() as u64
        && guid.is_some_and(|g| g.as_bytes() == Sha1::digest(PLACEHOLDER).as_slice())
}
