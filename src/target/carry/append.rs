//! What is new, appended: many messages by one command and one line of the ledger.

use super::decide::{self, Action};
use super::imap::{ImapError, Letter, internal_date};
use super::ledger::{Appended, Appending, Line};
use super::live::{Mailbox, id_of};
use super::messages::{SEEN, settle_pending, there};
use super::{CarryError, Offered, Result, Run, STAGE, file_name, uids};
use crate::cyrus::mboxlist::MailboxEntry;
use crate::fault::{self, Point};
use crate::host::imap::is_flag;
use crate::inventory::hex;
use crate::wire::MAX_MESSAGE;
use crate::wire::v1::{self, problem::Severity};
use sha1::{Digest, Sha1};
use std::io;

/// Most messages of one command.
const MOST: usize = 100;

/// Most bytes of one command, unless one message has more.
const MOST_BYTES: usize = 4 << 20;

/// Appends what is new.
pub fn appends(run: &mut Run<'_>, ordinal: u32, offered: &Offered) -> Result<()> {
    let is_new = |s: &&v1::Straggler| {
        s.uid > offered.last_uid
            && !run.ledger.appended.contains_key(&offered.message(s.uid))
            && decide::newcomer(&there(s)) == Action::Append
    };
    let new: Vec<_> = offered.stragglers.iter().filter(is_new).collect();
    let mut batch: Option<Batch<'_>> = None;
    for straggler in new {
        if straggler.size > MAX_MESSAGE as u64 {
            let text = format!("it has {} bytes, more than are carried over", straggler.size);
            run.leave(Severity::BadMessage, &offered.name, straggler.uid, text);
            continue;
        }
        let Some(bytes) = arrived(run, ordinal, offered, straggler.uid)? else { continue };
        let date = internal_date(straggler.internaldate).ok_or_else(|| {
            CarryError::Nonsense(format!("an impossible date, {}", straggler.internaldate))
        })?;
        let batch = match &mut batch {
            Some(batch) => batch,
            None => match Addressee::find(run, offered)? {
                Ok(to) => batch.insert(Batch::new(offered, to)),
                Err(why) => {
                    run.leave(Severity::BadMessage, &offered.name, straggler.uid, why);
                    continue;
                }
            },
        };
        batch.add(run, New { straggler, gap: 0, date, bytes })?;
    }
    batch.map_or(Ok(()), |mut batch| batch.send(run))
}

/// The bytes of a message, if the source could read them.
fn arrived(
    run: &mut Run<'_>,
    ordinal: u32,
    offered: &Offered,
    uid: u32,
) -> Result<Option<Vec<u8>>> {
    let path = run.directory.join(STAGE).join(ordinal.to_string()).join(file_name(uid));
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let text = "it could not be read on the source, and is not carried over";
            run.leave(Severity::BadMessage, &offered.name, uid, text);
            Ok(None)
        }
        Err(source) => Err(CarryError::Io { path, source }),
    }
}

/// A message that is to be appended.
struct New<'a> {
    straggler: &'a v1::Straggler,
    /// UIDs that are used up before it.
    gap: u32,
    date: String,
    bytes: Vec<u8>,
}

/// Messages of one mailbox that are appended together.
struct Batch<'a> {
    offered: &'a Offered,
    to: Addressee,
    new: Vec<New<'a>>,
    bytes: usize,
    /// The last UID that is used when they are appended, if nobody else appends.
    last: u32,
}

impl<'a> Batch<'a> {
    fn new(offered: &'a Offered, to: Addressee) -> Self {
        Self { offered, last: to.last, to, new: Vec::new(), bytes: 0 }
    }

    /// UIDs to be used up before a message, so that it gets the one that it has on the
    /// source, or at least none that the source has given to another.
    fn gap(&self, run: &Run<'_>, uid: u32) -> u32 {
        if self.to.own { uids::gap(self.offered, self.last, uid, run.frozen) } else { 0 }
    }

    /// Adds a message, after those before it were sent if they are enough.
    fn add(&mut self, run: &mut Run<'_>, mut new: New<'a>) -> Result<()> {
        let uid = new.straggler.uid;
        for flag in &new.straggler.flags {
            run.sends(flag, &self.offered.name, uid);
        }
        let full = self.new.len() >= MOST || self.bytes + new.bytes.len() > MOST_BYTES;
        if full || self.gap(run, uid) > uids::AT_ONCE {
            self.send(run)?;
        }
        new.gap = match self.gap(run, uid) {
            gap if gap > uids::AT_ONCE => {
                let used = uids::use_up(run, &self.to.writer, &self.to.name, gap)?;
                self.to.last += if used { gap } else { 0 };
                self.last = self.to.last;
                0
            }
            gap => gap,
        };
        self.last = self.last.saturating_add(new.gap).saturating_add(1);
        self.bytes += new.bytes.len();
        self.new.push(new);
        Ok(())
    }

    /// Appends them, by one command if this server takes that, else each by itself.
    fn send(&mut self, run: &mut Run<'_>) -> Result<()> {
        let new = std::mem::take(&mut self.new);
        let appending = |new: &New<'_>| {
            let appending = Appending {
                to: self.to.id.clone(),
                from: self.to.last.saturating_add(1),
                guid: hex(&Sha1::digest(&new.bytes)),
                date: new.straggler.internaldate,
            };
            Line::Appending(self.offered.message(new.straggler.uid), appending)
        };
        let lines: Vec<_> = new.iter().map(appending).collect();
        if lines.is_empty() {
            return Ok(());
        }
        run.write(lines)?;
        fault::point(Point::Carrying);
        if new.len() < 2 || !self.together(run, &new)? {
            for new in &new {
                self.alone(run, new)?;
            }
        }
        (self.bytes, self.last) = (0, self.to.last);
        Ok(())
    }

    /// Appends all by one command; whether that was done.
    fn together(&mut self, run: &mut Run<'_>, all: &[New<'_>]) -> Result<bool> {
        let strip = run.seen_is_not_his(&self.to.writer);
        let mut letters = Vec::new();
        for new in all {
            letters.extend(std::iter::repeat_n(uids::placeholder(), new.gap as usize));
            letters.push(new.letter(strip));
        }
        let answer = match run.session(&self.to.writer)?.append_all(&self.to.name, &letters) {
            Err(ImapError::Io(_)) if run.still_works(&self.to.writer)? => {
                settle_pending(run.ledger, &run.tree, run.host)?;
                return Ok(false);
            }
            answer => answer?,
        };
        if !answer.ok {
            return Ok(false);
        }
        fault::point(Point::Carried);
        let mut uids = answer.appended(letters.len());
        self.to.last = self.to.last.max(uids.last().copied().unwrap_or_default());
        if uids.len() != letters.len() {
            // All are there, without it being told where.
            uids.clear();
        }
        let mut uids = uids.into_iter();
        let lines = all.iter().map(|new| {
            let uid = uids.nth(new.gap as usize).unwrap_or_default();
            self.appended(new, uid)
        });
        let lines: Vec<_> = lines.collect();
        run.write(lines)?;
        Ok(true)
    }

    /// Appends one, unless it is there.
    fn alone(&mut self, run: &mut Run<'_>, new: &New<'_>) -> Result<()> {
        let (uid, name) = (new.straggler.uid, &self.offered.name);
        let message = self.offered.message(uid);
        if run.ledger.appended.contains_key(&message) {
            return Ok(());
        }
        self.last = self.to.last;
        let gap = self.gap(run, uid);
        if gap > 0 && uids::use_up(run, &self.to.writer, &self.to.name, gap)? {
            self.to.last += gap;
        }
        let letter = new.letter(run.seen_is_not_his(&self.to.writer));
        let answer = match run.session(&self.to.writer)?.append(&self.to.name, &letter) {
            Err(ImapError::Io(_)) if run.still_works(&self.to.writer)? => {
                settle_pending(run.ledger, &run.tree, run.host)?;
                if !run.ledger.appended.contains_key(&message) {
                    let text = "this server's imapd breaks down when it takes it";
                    run.leave(Severity::BadMessage, name, uid, text);
                }
                return Ok(());
            }
            answer => answer?,
        };
        if !answer.ok {
            let text = format!("this server does not take it: {}", answer.text);
            run.leave(Severity::BadMessage, name, uid, text);
            return Ok(());
        }
        fault::point(Point::Carried);
        let uid = answer.appended(1).first().copied().unwrap_or_default();
        self.to.last = self.to.last.max(uid);
        run.write([self.appended(new, uid)])
    }

    /// What the ledger says of one that is there.
    fn appended(&self, new: &New<'_>, uid: u32) -> Line {
        let appended = Appended { to: self.to.id.clone(), uid, modseq: new.straggler.modseq };
        Line::Appended(self.offered.message(new.straggler.uid), appended)
    }
}

impl New<'_> {
    fn letter(&self, strip: bool) -> Letter<'_> {
        let flags = self.straggler.flags.iter().map(|flag| flag.as_ref());
        Letter {
            flags: flags.filter(|f| is_flag(f) && (!strip || *f != SEEN)).collect(),
            date: &self.date,
            message: &self.bytes,
        }
    }
}

/// Where messages are appended, and by whom.
struct Addressee {
    id: String,
    name: Vec<u8>,
    writer: String,
    /// Whether it is the mailbox itself.
    own: bool,
    /// The last UID there, or a lower one.
    last: u32,
}

impl Addressee {
    /// The mailbox itself, or, if it is not here any more, the top one; or why
    /// there is none.
    fn find(run: &mut Run<'_>, offered: &Offered) -> Result<std::result::Result<Self, String>> {
        let usable = |entry: &&MailboxEntry| entry.partition.is_some();
        let home = run.here(offered).filter(usable).cloned();
        let own = home.is_some();
        let entry = home.or_else(|| run.tree.by_name(run.top).filter(usable).cloned());
        let Some(entry) = entry else { return Ok(Err("its mailbox is not here".into())) };
        let Some(writer) = run.writer(&entry) else {
            return Ok(Err("nobody has the right to put mail into its mailbox".into()));
        };
        let last = Mailbox::read(run.host, &entry)?.view()?.header().last_uid;
        let name = run.external(&entry.name)?;
        Ok(Ok(Self { id: id_of(&entry), name, writer, own, last }))
    }
}
