//! UIDs that both servers have given to messages since the user was published: a
//! client knows such a UID from one server, and another client from the other.
//! So it must not mean anything any more: the message that has it here gets a new
//! one, as if a client had copied and expunged it, above all that were ever told.

use super::imap::set;
use super::ledger::{Appended, Appending, Line, Message};
use super::live::{Mailbox, id_of};
use super::messages::{internal_date, unreadable};
use super::{Offered, Result, Run};
use crate::cyrus::index::Record;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::inventory::hex;
use crate::wire::v1::problem::Severity;
use sha1::{Digest, Sha1};

/// How often a mailbox is looked at again because somebody changes it meanwhile.
const PASSES: usize = 5;

/// Most UIDs that are used up.
const MOST: u32 = 20_000;

/// Placeholders for one command.
const AT_ONCE: usize = 200;

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
        let done = work.use_up(run, offered.last_uid_now)? && work.renumber(run, &twice)?;
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

/// Uses UIDs up, so that the next message gets the one that it has on the source, or,
/// where that is not possible any more, one that the source has not given; the last
/// UID that is used then. `last` is the last one that is now.
pub fn make_way(
    run: &mut Run<'_>,
    offered: &Offered,
    (writer, name): (&str, &[u8]),
    last: u32,
    (uid, frozen): (u32, bool),
) -> Result<u32> {
    let wanted = match last < uid {
        true => uid - 1,
        false if last < offered.last_uid_now => ahead(offered, frozen),
        false => last,
    };
    let used = is_shared(offered) && placeholders(run, writer, name, wanted.saturating_sub(last))?;
    Ok(if used { wanted.max(last) } else { last })
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
fn placeholders(run: &mut Run<'_>, writer: &str, name: &[u8], count: u32) -> Result<bool> {
    if count > MOST {
        return Ok(false);
    }
    let date = internal_date(0).unwrap_or_default();
    let mut left = count as usize;
    while left > 0 {
        let now = left.min(AT_ONCE);
        left -= now;
        let head = format!(" (\\Deleted) \"{date}\" {{{}+}}\r\n", PLACEHOLDER.len());
        let one = [head.as_bytes(), PLACEHOLDER].concat();
        let command = [b"APPEND ", &super::imap::quoted(name)[..]].concat();
        if !run.session(writer)?.raw(&command, &one.repeat(now))?.ok {
            return Ok(false);
        }
    }
    Ok(true)
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
    fn use_up(&self, run: &mut Run<'_>, wanted: u32) -> Result<bool> {
        let last = Mailbox::read(run.host, self.entry)?.view()?.header().last_uid;
        placeholders(run, self.writer, self.name, wanted.saturating_sub(last))
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
        let mut done = true;
        for uid in uids {
            let found = view.find(*uid).map_err(unreadable)?.filter(is_there);
            let Some(record) = found else { continue };
            let Some(copy) = self.copy(run, &record, view.header().last_uid)? else {
                return Ok(false);
            };
            // The same flags, whatever was changed since it was copied.
            let begun = run.ledger.expunging.contains(&self.message(*uid));
            let deleted: &[u8] = b"\\Deleted";
            let mut flags = index.flags(&record);
            flags.retain(|flag| !begun || flag != deleted);
            let flags: Vec<&[u8]> = flags.iter().map(Vec::as_slice).collect();
            let head = format!("UID STORE {copy} FLAGS.SILENT (");
            let flags = [head.as_bytes(), &flags.join(&b' '), b")"].concat();
            let same = run.session(self.writer)?.raw(&flags, b"")?;
            run.write([Line::Expunging(self.message(0).0, vec![*uid])])?;
            let session = run.session(self.writer)?;
            let stored = session.store(&[*uid], Some(record.modseq), '+', &[deleted])?;
            done &= same.ok && stored.ok && stored.modified().is_empty();
        }
        // Who was changed meanwhile is not \Deleted, and stays for the next pass.
        Ok(self.expunge(run, uids)? && done)
    }

    /// The new UID of a message, which is copied unless it was before.
    fn copy(&self, run: &mut Run<'_>, record: &Record, last: u32) -> Result<Option<u32>> {
        let message = self.message(record.uid);
        if let Some(copied) = run.ledger.appended.get(&message) {
            return Ok(Some(copied.uid));
        }
        let to = id_of(self.entry);
        let appending = Appending {
            to: to.clone(),
            from: last.saturating_add(1),
            guid: record.guid.as_ref().map(|g| hex(g.as_bytes())).unwrap_or_default(),
            date: record.internaldate.seconds(),
        };
        run.write([Line::Appending(message.clone(), appending)])?;
        let command = [
            b"UID COPY ",
            record.uid.to_string().as_bytes(),
            b" ",
            &super::imap::quoted(self.name),
        ]
        .concat();
        let answer = run.session(self.writer)?.raw(&command, b"")?;
        let Some(uid) = answer.copied().filter(|_| answer.ok) else { return Ok(None) };
        // One that was carried over has moved.
        let carried = run.ledger.appended.iter().find(|(_, a)| a.to == to && a.uid == record.uid);
        let carried = carried.map(|(message, appended)| {
            Line::Appended(message.clone(), Appended { uid, ..appended.clone() })
        });
        let copied = Appended { to, uid, modseq: record.modseq };
        run.write(carried.into_iter().chain([Line::Appended(message, copied)]))?;
        Ok(Some(uid))
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
