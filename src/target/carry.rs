//! Carrying over: what reached the source after the user was published here comes
//! to the live mailboxes, by this server's own imapd, as if a client had brought it.
//!
//! The source tells what is different ([`Offer`]). Messages get new UIDs here, and
//! keep their flags and INTERNALDATE; [`decide`] has the rules for everything that
//! was changed on both servers. The [`ledger`] makes each step happen once: an
//! append is announced in it before it is done, and one whose end is not known is
//! looked for in the live index, by its content, before it is done again.

mod append;
mod decide;
mod folders;
mod ledger;
mod live;
mod messages;
mod sieve;
mod uids;

use super::offer::Checked;
use super::receive::{Expected, Item, ItemKey, Size};
use super::stage::{Stage, StagedDirectory};
use crate::cyrus::imap_set::UidSet;
use crate::cyrus::mboxlist::MailboxEntry;
use crate::cyrus::mboxlist::mbtype::{Flag, Kind};
use crate::cyrus::name::{MailboxName, UniqueId};
use crate::host::Host;
use crate::host::imap::{self, ImapError};
use crate::host::imapd::{Instance, InstanceError};
use crate::wire::MAX_MESSAGE;
use crate::wire::manifest;
use crate::wire::v1::{self, FileKind, problem::Severity};
use bytes::Bytes;
use ledger::{Deed, How, Ledger};
use live::{LiveError, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the messages wait, below the move's directory.
const STAGE: &str = "stragglers";

/// Why carrying over stopped. What was done is in the ledger.
#[derive(Debug, thiserror::Error)]
pub enum CarryError {
    /// The source said what cannot be.
    #[error("the source sent {0}")]
    Nonsense(String),
    /// A file of the move fails.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The ledger fails.
    #[error("the ledger of the move: {0}")]
    Ledger(#[from] io::Error),
    /// The live mailboxes cannot be read.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// imapd does not start.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The session broke.
    #[error(transparent)]
    Imap(#[from] ImapError),
    /// The messages do not fit.
    #[error("{bytes} bytes are to come, and {} has {free} bytes free", path.display())]
    Room {
        /// What is to come.
        bytes: u64,
        /// The move's directory.
        path: PathBuf,
        /// What is free there.
        free: u64,
    },
}

type Result<T> = std::result::Result<T, CarryError>;

/// What is different on the source.
#[derive(Debug, Default)]
pub struct Offer {
    mailboxes: BTreeMap<u32, Offered>,
    found: v1::StragglersFound,
    /// How many messages, runs of messages and rights were told.
    told: usize,
}

/// A mailbox that is different on the source.
#[derive(Debug)]
struct Offered {
    id: UniqueId,
    name: MailboxName,
    /// Its name when it was published, if it was.
    name_then: Option<MailboxName>,
    last_uid: u32,
    /// The last UID that the source has given by now.
    last_uid_now: u32,
    highestmodseq: u64,
    gone: bool,
    /// All messages that are left of those that were published, as runs; `None`:
    /// none has gone without a trace.
    present: Option<UidSet>,
    stragglers: Vec<v1::Straggler>,
    rights: Vec<v1::RightsChange>,
    /// Whether it is a name without messages.
    name_only: bool,
    /// What it holds.
    kind: Kind,
}

impl Offer {
    /// Takes a part of a mailbox whose identity was checked.
    pub fn mailbox(&mut self, part: v1::StragglerMailbox, checked: Checked) -> Result<()> {
        let nonsense =
            |text: &str| CarryError::Nonsense(format!("{}: {text}", checked.name.display()));
        for straggler in &part.stragglers {
            if straggler.uid == 0 || straggler.guid.len() != 20 {
                return Err(nonsense("an impossible message"));
            }
        }
        self.told += part.stragglers.len() + part.present_runs.len() + part.rights.len();
        if self.told > manifest::MAX_MESSAGES || self.mailboxes.len() > manifest::MAX_MAILBOXES {
            return Err(nonsense("more than anybody has"));
        }
        let wire = part.mailbox.unwrap_or_default();
        if let Some(known) = self.mailboxes.get_mut(&wire.ordinal) {
            if known.id != checked.id {
                return Err(nonsense("two mailboxes in one"));
            }
            known.stragglers.extend(part.stragglers);
            return Ok(());
        }
        let name_then = part.known.then(|| MailboxName::from_internal(&part.name_then));
        let name_then = name_then.transpose().map_err(|_| nonsense("an impossible name"))?;
        let raw = wire.name_record.clone();
        let record = MailboxEntry::parse(checked.name.clone(), Bytes::new(), raw);
        let mbtype = record.map(|record| record.mbtype).unwrap_or_default();
        let name_only = wire.partition.is_empty() || mbtype.has(Flag::Intermediate);
        let offered = Offered {
            kind: mbtype.kind,
            id: checked.id,
            name: checked.name,
            name_then,
            last_uid: part.last_uid_then,
            last_uid_now: part.last_uid_now,
            highestmodseq: part.highestmodseq_then,
            gone: part.gone,
            present: part.listed.then(|| UidSet::from_ranges(manifest::ranges(&part.present_runs))),
            stragglers: part.stragglers,
            rights: part.rights,
            name_only: name_only && !part.gone,
        };
        self.mailboxes.insert(wire.ordinal, offered);
        Ok(())
    }

    /// Takes the end.
    pub fn found(&mut self, found: v1::StragglersFound) {
        self.found = found;
    }
}

/// Carrying over what was offered.
#[derive(Debug)]
pub struct Carrying {
    offer: Offer,
    ledger: Ledger,
    /// The move's directory.
    directory: PathBuf,
}

/// The messages that may arrive: where, and of what size, by UID.
struct Asked(BTreeMap<u32, (Arc<StagedDirectory>, BTreeMap<u32, u64>)>);

impl Expected for Asked {
    fn item(&self, key: ItemKey) -> Option<Item> {
        let (mailbox, kind, uid) = key;
        let (directory, messages) = self.0.get(&mailbox)?;
        let size = messages.get(&uid).filter(|_| kind == FileKind::Message as u8)?;
        Some(Item {
            directory: Arc::clone(directory),
            name: file_name(uid),
            size: Size::Exactly(*size),
            replaces: false,
            base: None,
        })
    }
}

impl Carrying {
    /// Takes up what was offered, and what an earlier attempt has begun.
    pub fn begin(host: &Host, stage: &Stage, top: &MailboxName, offer: Offer) -> Result<Self> {
        let directory = stage.directory.clone();
        let ledger = Ledger::open(&directory.join("ledger"))?;
        let mut carrying = Self { offer, ledger, directory };
        messages::settle_pending(&mut carrying.ledger, &Tree::read(host, top)?, host)?;
        Ok(carrying)
    }

    /// The messages whose bytes are needed, and how they are taken in.
    pub fn wants(&self) -> Result<(v1::Wants, Arc<dyn Expected>)> {
        let root = self.directory.join(STAGE);
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| CarryError::Io { path, source }
        };
        match std::fs::remove_dir_all(&root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(&root)(e)),
            _ => {}
        }
        let (mut wants, mut asked) = (v1::Wants::default(), BTreeMap::new());
        for (ordinal, offered) in &self.offer.mailboxes {
            let needed = |s: &&v1::Straggler| {
                s.uid > offered.last_uid
                    && !s.expunged
                    && s.size <= MAX_MESSAGE as u64
                    && !self.ledger.appended.contains_key(&offered.message(s.uid))
            };
            let sizes: BTreeMap<u32, u64> =
                offered.stragglers.iter().filter(needed).map(|s| (s.uid, s.size)).collect();
            if sizes.is_empty() {
                continue;
            }
            wants.messages += sizes.len() as u64;
            wants.bytes = sizes.values().fold(wants.bytes, |all, size| all.saturating_add(*size));
            wants.wants.push(v1::Want {
                mailbox: *ordinal,
                uid_runs: manifest::runs(sizes.keys().copied()),
                ..v1::Want::default()
            });
            let directory = StagedDirectory::make(&root, Path::new(&ordinal.to_string()));
            asked.insert(*ordinal, (Arc::new(directory.map_err(io(&root))?), sizes));
        }
        // Before anything comes: nothing is half done then.
        let stat =
            rustix::fs::statvfs(&self.directory).map_err(|e| io(&self.directory)(e.into()))?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        match wants.bytes <= free {
            true => Ok((wants, Arc::new(Asked(asked)))),
            false => {
                Err(CarryError::Room { bytes: wants.bytes, path: self.directory.clone(), free })
            }
        }
    }

    /// Carries everything over; what is done is in the ledger, whatever happens.
    pub fn run(&mut self, host: &Host, top: &MailboxName) -> Result<v1::Carried> {
        let mut run = Run {
            host,
            top,
            tree: Tree::read(host, top)?,
            ledger: &mut self.ledger,
            directory: &self.directory,
            sessions: BTreeMap::new(),
            left: Vec::new(),
            odd: Vec::new(),
            frozen: self.offer.found.frozen,
        };
        let mut ordered: Vec<_> = self.offer.mailboxes.iter().collect();
        // Parents before what is below them.
        ordered.sort_by(|(_, a), (_, b)| a.name.as_bytes().cmp(b.name.as_bytes()));
        let all: Vec<&Offered> = ordered.iter().map(|(_, offered)| *offered).collect();
        folders::place(&mut run, &all)?;
        for (ordinal, offered) in ordered.iter().filter(|(_, o)| !o.gone && !o.name_only) {
            match offered.kind {
                Kind::Sieve => sieve::carry(&mut run, **ordinal, offered, &self.offer.found)?,
                _ => {
                    messages::carry(&mut run, **ordinal, offered)?;
                    // While the source is in use there would be no end of it.
                    if self.offer.found.frozen {
                        uids::keep_apart(&mut run, offered)?;
                    }
                }
            }
        }
        for (_, offered) in &ordered {
            folders::rights(&mut run, offered)?;
        }
        // What is below before its parents.
        for (_, offered) in ordered.iter().rev().filter(|(_, o)| o.gone) {
            folders::delete(&mut run, offered)?;
        }
        folders::subscribe(&mut run, &self.offer.found)?;
        run.write([])?;
        // What is settled is not looked at again, and is to be told all the same.
        for (mailbox, uid, text) in run.ledger.left.clone() {
            run.left.push(problem(Severity::Note, mailbox, uid, text));
        }
        let problems = std::mem::take(&mut run.left);
        drop(run);
        let _ = std::fs::remove_dir_all(self.directory.join(STAGE));
        let ledger = &self.ledger;
        Ok(v1::Carried {
            messages: ledger.carried(),
            flags: ledger.count(How::Flags),
            expunged: ledger.count(How::Expunged),
            mailboxes: ledger.deeds(Deed::Mailbox),
            other: ledger.deeds(Deed::Other),
            problems,
        })
    }
}

impl Offered {
    /// A message of it, as the ledger names it.
    fn message(&self, uid: u32) -> ledger::Message {
        (self.id.as_str().to_owned(), uid)
    }
}

/// One attempt to carry everything over.
struct Run<'a> {
    host: &'a Host,
    top: &'a MailboxName,
    tree: Tree,
    ledger: &'a mut Ledger,
    directory: &'a Path,
    /// Sessions with imapd, by who is logged in.
    sessions: BTreeMap<String, Instance>,
    left: Vec<v1::Problem>,
    /// Of what is carried over the parts that are left behind, until the ledger has them.
    odd: Vec<ledger::Line>,
    /// Whether nothing more can reach the source.
    frozen: bool,
}

impl Run<'_> {
    /// The live mailbox that is the offered one.
    fn here(&self, offered: &Offered) -> Option<&MailboxEntry> {
        self.tree.by_id(self.id_here(offered))
    }

    /// The uniqueid that the offered one has here, if it is here.
    fn id_here<'a>(&'a self, offered: &'a Offered) -> &'a str {
        let id = offered.id.as_str();
        self.ledger.placed.get(id).map_or(id, String::as_str)
    }

    /// The name of a mailbox, as a session is told.
    fn external(&self, name: &MailboxName) -> Result<Vec<u8>> {
        let namespace = self.host.namespace();
        let namespace = namespace.map_err(|e| LiveError::Unreadable(e.to_string()))?;
        Ok(name.to_external(&namespace))
    }

    /// A session of somebody's.
    fn session(&mut self, identity: &str) -> Result<&mut imap::Imap> {
        if !self.sessions.contains_key(identity) {
            let instance = Instance::start(self.host, self.directory, identity)?;
            self.sessions.insert(identity.to_owned(), instance);
        }
        let instance = self.sessions.get_mut(identity);
        instance
            .map(|i| &mut i.imap)
            .ok_or_else(|| CarryError::Instance(InstanceError::Start("its session is lost".into())))
    }

    /// Who makes, renames and deletes mailboxes: the user himself, or an admin.
    fn owner(&self) -> Option<String> {
        match self.top.userid() {
            Some(user) => Some(String::from_utf8_lossy(user.as_bytes()).into_owned()),
            None => self.host.config.admins().into_iter().next(),
        }
    }

    /// Who may put mail into a mailbox: its owner, if its rights let him, or
    /// anybody else whom they let.
    fn writer(&self, entry: &MailboxEntry) -> Option<String> {
        let rights = |id: &[u8]| -> BTreeSet<u8> {
            let listed = |id: &[u8]| entry.acl.rights(id).unwrap_or_default().iter().copied();
            let denied = |id: &[u8]| listed(&[b"-", id].concat()).collect::<BTreeSet<_>>();
            let not = &denied(id) | &denied(b"anyone");
            let mut has: BTreeSet<u8> =
                listed(id).chain(listed(b"anyone")).filter(|right| !not.contains(right)).collect();
            // What older servers wrote for both.
            if has.contains(&b'd') {
                has.extend(b"te");
            }
            has
        };
        let may =
            |id: &&String| b"lrswite".iter().all(|right| rights(id.as_bytes()).contains(right));
        let can_log_in = |id: &&String| {
            !id.starts_with(['-'])
                && !id.contains(':')
                && !["anyone", "anonymous"].contains(&id.as_str())
        };
        let owner = self.owner().into_iter();
        let listed = entry.acl.0.iter().filter_map(|(id, _)| String::from_utf8(id.clone()).ok());
        let all: Vec<String> = owner.chain(listed).collect();
        all.iter().filter(can_log_in).find(may).cloned()
    }

    /// Notes what is not carried over.
    fn leave(&mut self, severity: Severity, name: &MailboxName, uid: u32, text: impl Into<String>) {
        self.left.push(problem(severity, self.host.external(name), uid, text.into()));
    }

    /// Notes flags that no command can name; whether this one is none of them.
    fn sends(&mut self, flag: &[u8], name: &MailboxName, uid: u32) -> bool {
        let sends = imap::is_flag(flag);
        if !sends {
            let shown = crate::wire::printable(&String::from_utf8_lossy(flag));
            let text = format!("its flag {shown:.100} cannot be given, and is not carried over");
            let left = (self.host.external(name), uid, text);
            if !self.ledger.left.contains(&left) {
                self.odd.push(ledger::Line::Left(left.0, left.1, left.2));
            }
        }
        sends
    }

    fn write(&mut self, lines: impl IntoIterator<Item = ledger::Line>) -> Result<()> {
        let odd = std::mem::take(&mut self.odd);
        Ok(self.ledger.write(odd.into_iter().chain(lines))?)
    }
}

/// What is not carried over.
fn problem(severity: Severity, mailbox: String, uid: u32, text: String) -> v1::Problem {
    v1::Problem {
        severity: severity.into(),
        code: crate::wire::STRAGGLER_LEFT.into(),
        mailbox,
        uid,
        text,
        advice: "the source's retired copy has it".into(),
        ..v1::Problem::default()
    }
}

/// The name of a message's file on the stage.
fn file_name(uid: u32) -> String {
    format!("{uid}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::name::PartitionName;

    fn straggler(uid: u32, size: u64) -> v1::Straggler {
        let guid = Bytes::from_static(&[7; 20]);
        v1::Straggler { uid, size, guid, modseq: 5, ..v1::Straggler::default() }
    }

    fn part(ordinal: u32, stragglers: Vec<v1::Straggler>) -> (v1::StragglerMailbox, Checked) {
        let mailbox = v1::Mailbox { ordinal, ..v1::Mailbox::default() };
        let checked = Checked {
            name: MailboxName::from_internal(b"user.x").unwrap(),
            id: UniqueId::new(format!("id{ordinal}").as_bytes()).unwrap(),
            partition: PartitionName::new("default").unwrap(),
        };
        let mailbox = Some(mailbox);
        (v1::StragglerMailbox { mailbox, stragglers, ..Default::default() }, checked)
    }

    /// What is asked for where this is offered.
    fn wants(stragglers: Vec<v1::Straggler>) -> Result<v1::Wants> {
        let directory = tempfile::tempdir().unwrap();
        let mut offer = Offer::default();
        let (part, checked) = part(1, stragglers);
        offer.mailbox(part, checked)?;
        let ledger = Ledger::open(&directory.path().join("ledger"))?;
        let carrying = Carrying { offer, ledger, directory: directory.path().to_owned() };
        carrying.wants().map(|(wants, _)| wants)
    }

    #[test]
    fn no_more_is_asked_for_than_there_is_room_for() {
        let large = MAX_MESSAGE as u64;
        let asked = wants(vec![straggler(1, 10), straggler(2, large + 1), straggler(3, u64::MAX)]);
        let asked = asked.unwrap();
        assert_eq!((asked.messages, asked.bytes), (1, 10));
        let many = (1..200_000).map(|uid| straggler(uid, large)).collect();
        assert!(matches!(wants(many), Err(CarryError::Room { .. })));
    }

    #[test]
    fn what_a_source_may_tell_has_an_end() {
        let mut offer = Offer { told: manifest::MAX_MESSAGES - 2, ..Offer::default() };
        for (uids, fits) in [(1..2, true), (2..3, true), (3..4, false)] {
            let (part, checked) = part(1, uids.map(|uid| straggler(uid, 1)).collect());
            assert_eq!(offer.mailbox(part, checked).is_ok(), fits);
        }
        // A flag that no command can name is no reason to stop.
        let odd = v1::Straggler { flags: vec![b"\xff"[..].into()], ..straggler(1, 1) };
        assert_eq!(wants(vec![odd]).unwrap().messages, 1);
    }
}
