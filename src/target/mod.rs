//! The target agent: stages what comes, has this server's Cyrus look at it,
//! and publishes it.

mod announce;
mod archive;
mod base;
mod by_name;
mod carry;
mod convert;
mod dav;
mod features;
mod offer;
mod plan;
mod publish;
mod quota;
mod receive;
mod settle;
mod shadow;
pub(crate) mod stage;
mod sync;

pub use plan::{crossing, programs};
pub use stage::OUR_DIRECTORY;

use crate::agent::{self, Handler, Link};
use crate::cyrus::index::IndexView;
use crate::cyrus::lock::opens_take_user_lock;
use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::{DirStyle, Layout};
use crate::cyrus::release::Release;
use crate::fault::{self, Point, Sabotage, sabotaged};
use crate::host::userlock::UserLock;
use crate::host::{Host, indexlock};
use crate::moves::journal::{Entry, Hold, JournalError, now_ms, state};
use crate::moves::verdict::has_user;
use crate::moves::{Journal, MoveId, sealed};
use crate::murder;
use crate::wire::v1::{self, failure::Kind, reply::Result as Answer, request::Op};
use base::Base;
use by_name::View;
use carry::{CarryError, Carrying};
use offer::{Checked, Inventory, Listing, MailboxWants, OfferError};
use publish::{Publication, Standing};
use receive::{Expected, Receipt, Writers};
use shadow::{Shadow, Top};
use stage::Stage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sync::Syncing;

/// How long the lock of the user is waited for; nobody should hold it, since
/// the user does not exist here.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How long a delivery may be on its way here after the route was restored: a mail
/// server looks the route up just before it connects.
const ON_THE_WAY: Duration = Duration::from_secs(5);

/// Cyrus's programs without which nobody can be published.
const PROGRAMS: [&str; 3] = ["cyr_dbtool", "ctl_cyrusdb", "reconstruct"];

/// The target's side of one move.
pub struct Target {
    host: Host,
    session: Option<Session>,
}

/// A move that this agent works on.
struct Session {
    top: MailboxName,
    tool_names: Top,
    entry: Entry,
    journal: Option<Journal>,
    _hold: Option<Hold>,
    partitions: BTreeMap<String, PartitionName>,
    stage: Stage,
    inventory: Inventory,
    asked: Option<Arc<dyn Expected>>,
    shadow: Option<Shadow>,
    publication: Option<Publication>,
    /// What is kept here of an earlier time of the user.
    base: Option<Base>,
    /// Held between the two steps of taking a publication back.
    withdrawing: Option<UserLock>,
    /// Since when those who are still on their way here are deferred.
    deferring: Option<Instant>,
    /// What puts the stage onto stable storage in the background.
    syncing: Option<Syncing>,
    /// Whether this session has begun to stage.
    staged: bool,
    /// What has reached the source since and is to be carried over.
    carrying: Option<Carrying>,
}

impl Target {
    /// The agent of this server.
    pub fn new(host: Host) -> Self {
        Self { host, session: None }
    }
}

impl Handler for Target {
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure> {
        match hello.role() {
            v1::Role::Target => Ok(self.host.welcome()),
            _ => Err(agent::protocol("this agent is the target of moves, not the source")),
        }
    }

    fn handle(&mut self, op: Op, link: &mut Link) -> Result<Answer, v1::Failure> {
        match &op {
            Op::PlanTarget(plan) => return self.plan(plan).map(Answer::TargetPlan),
            Op::Attach(attach) => return self.attach(attach).map(Answer::Attached),
            _ => {}
        }
        let host = &self.host;
        let session = self
            .session
            .as_mut()
            .ok_or_else(|| agent::protocol("a step of a move that was not planned"))?;
        match op {
            Op::Offer(_) => session.offer(host, link).map(Answer::Wants),
            Op::Store(store) => session.store(host, link, store.durable).map(Answer::Stored),
            Op::Rehearse(rehearse) => session.rehearse(host, &rehearse).map(Answer::Rehearsed),
            Op::Settle(settle) => session.settle(host, &settle).map(Answer::Prepared),
            Op::Publish(_) => session.publish(host).map(Answer::Published),
            Op::OfferStragglers(_) => session.offer_stragglers(host, link).map(Answer::Wants),
            Op::Carry(_) => session.carry(host).map(Answer::Carried),
            Op::Unpublish(step) => session.unpublish(host, step.hold).map(Answer::Unpublished),
            Op::TakeRoute(_) => session.take_route(host).map(Answer::RouteTaken),
            Op::Record(record) => {
                session.record(&record.state)?;
                Ok(Answer::Recorded(v1::Recorded {}))
            }
            Op::Finish(finish) => session.finish(host, finish.done).map(Answer::Finished),
            _ => Err(agent::unknown_request()),
        }
    }
}

impl Target {
    fn plan(&mut self, plan: &v1::PlanTarget) -> Result<v1::TargetPlan, v1::Failure> {
        self.session = None;
        let id = parse_id(&plan.move_id)?;
        let identity = plan.identity.clone().unwrap_or_default();
        let top = MailboxName::from_internal(&identity.name)
            .map_err(|e| agent::protocol(format!("the name of the mailbox: {e}")))?;
        if !self.host.allows(&top) {
            return Err(v1::Failure::new(
                Kind::Refused,
                format!("this agent is not allowed to receive {}", self.host.external(&top)),
                "nothing was changed",
                "look at --allow in the authorized_keys of the target",
            ));
        }
        let mut answer = v1::TargetPlan { move_id: id.to_string(), ..v1::TargetPlan::default() };
        let fresh = Entry {
            id: id.clone(),
            role: v1::Role::Target,
            name: top.as_bytes().to_vec(),
            display: self.host.external(&top),
            peer: crate::wire::printable(&plan.source),
            state: state::PLANNED.into(),
            detail: String::new(),
            started: now_ms(),
            updated: now_ms(),
        };
        let (mut journal, mut hold, mut entry) = (None, None, fresh);
        if !plan.dry_run {
            match self.open_journal(&entry, plan.fresh)? {
                Opened::Ours(ours, held, known) => {
                    (journal, hold, entry) = (Some(ours), Some(held), known);
                }
                Opened::Unknown(other) => {
                    answer.unknown_move_id = other.id.to_string();
                    return Ok(answer);
                }
            }
        }
        let publication = self.settle(&mut entry)?;
        answer.snapshot = entry.detail.clone().into();
        let partitions = plan::partitions(&self.host, plan, &mut answer.problems);
        let mut base = None;
        if has_user(&entry.state) {
            // What is here is ours; there is nothing left to refuse.
            answer.problems.clear();
        } else {
            let totals = plan.totals.unwrap_or_default();
            plan::room(&self.host, &partitions, &totals, &mut answer);
            answer.problems.extend(plan::release(&self.host, &plan.mailboxes));
            answer.problems.extend(plan::programs(&self.host, &PROGRAMS));
            answer.problems.extend(features::unserved(&self.host, &plan.mailboxes));
            base = journal
                .as_ref()
                .map_or(Ok(None), |journal| Base::find(&self.host, journal, top.as_bytes()))
                .map_err(|e| journal_failure(&e))?;
            let conflicts =
                plan::conflicts(&self.host, &top, &plan.mailboxes, &partitions, base.as_ref())
                    .map_err(|e| internal(e.to_string(), "nothing was changed"))?;
            answer.problems.extend(conflicts);
        }
        answer.partitions = partitions
            .iter()
            .map(|(source, here)| (source.clone(), here.as_str().to_owned()))
            .collect();
        answer.state.clone_from(&entry.state);
        answer.murder = murder::is_member(&self.host);
        let (mupdate, found) = murder::look(&self.host, None);
        answer.mupdate = mupdate;
        answer.problems.extend(found);
        let refused = answer.problems.iter().any(|p| p.severity() == v1::problem::Severity::Refuse);
        match (&journal, refused) {
            (Some(journal), false) => journal.write(&entry).map_err(|e| journal_failure(&e))?,
            // A refused move leaves nothing behind.
            _ => (journal, hold) = (None, None),
        }
        self.session = Some(Session {
            partitions,
            publication,
            base,
            ..self.begin(top, entry, journal, hold)?
        });
        Ok(answer)
    }

    /// Takes up a move that this server knows, to end it.
    fn attach(&mut self, attach: &v1::Attach) -> Result<v1::Attached, v1::Failure> {
        let id = parse_id(&attach.move_id)?;
        let name = attach.identity.clone().unwrap_or_default().name;
        let top = MailboxName::from_internal(&name)
            .map_err(|e| agent::protocol(format!("the name of the mailbox: {e}")))?;
        let directory = self.host.config.configdirectory();
        let directory = directory.map_err(|e| internal(e.to_string(), "nothing was changed"))?;
        if !directory.join("mbcopy/journal.sqlite").exists() {
            return Ok(v1::Attached::default());
        }
        let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
        let holder = format!("process {}, an abort", std::process::id());
        let hold =
            journal.hold_for(top.as_bytes(), &holder, &id).map_err(|e| journal_failure(&e))?;
        let known = journal.find(&id).map_err(|e| journal_failure(&e))?;
        let Some(mut entry) = known.filter(|e| e.name == top.as_bytes()) else {
            return Ok(v1::Attached::default());
        };
        let publication = self.settle(&mut entry)?;
        journal.write(&entry).map_err(|e| journal_failure(&e))?;
        let record = v1::MoveRecord::from(entry.clone());
        let session = self.begin(top, entry, Some(journal), Some(hold))?;
        self.session = Some(Session { publication, ..session });
        Ok(v1::Attached { r#move: Some(record), ..v1::Attached::default() })
    }

    /// A session of a move that nothing is known of but its entry.
    fn begin(
        &self,
        top: MailboxName,
        entry: Entry,
        journal: Option<Journal>,
        hold: Option<Hold>,
    ) -> Result<Session, v1::Failure> {
        let stage = Stage::new(&self.host.config, &entry.id)
            .map_err(|e| internal(e.to_string(), "nothing was changed"))?;
        let tool_names = Top {
            userid: top.userid().map(|u| String::from_utf8_lossy(u.as_bytes()).into_owned()),
            external: self.host.external(&top),
        };
        Ok(Session {
            top,
            tool_names,
            entry,
            journal,
            _hold: hold,
            partitions: BTreeMap::new(),
            stage,
            inventory: Inventory::default(),
            asked: None,
            shadow: None,
            publication: None,
            base: None,
            withdrawing: None,
            deferring: None,
            syncing: None,
            staged: false,
            carrying: None,
        })
    }

    /// Finds out what a move has come to that had begun to publish, or had a
    /// plan of it.
    fn settle(&self, entry: &mut Entry) -> Result<Option<Publication>, v1::Failure> {
        let path = Stage::new(&self.host.config, &entry.id)
            .map_err(|e| internal(e.to_string(), "nothing was changed"))?
            .publication();
        let planned = entry.state == state::PREPARED && path.exists();
        // Of a move that is over here, the plan has gone with the stage.
        if entry.state == state::DONE || !(planned || began_to_publish(&entry.state)) {
            return Ok(None);
        }
        let damaged = |e: &dyn std::fmt::Display| {
            let text = format!("{}: {e}", path.display());
            internal(text, "this server's journal says that it has published the user")
        };
        let mut loaded: Publication = sealed::load(&path).map_err(|e| damaged(&e))?;
        if murder::is_member(&self.host) {
            let _lock = self.lock_of(entry)?;
            if loaded.put_back(&self.host).map_err(|e| damaged(&e))? {
                sealed::save(&path, &loaded).map_err(|e| damaged(&e))?;
            }
        }
        self.settle_publication(entry, &loaded)?;
        Ok(began_to_publish(&entry.state).then_some(loaded))
    }

    /// Opens the journal and takes the right to work on the user; what the
    /// journal has of this move, or `fresh`. A source that has lost its own
    /// journal is told of the move that is known here.
    fn open_journal(&self, fresh: &Entry, lost: bool) -> Result<Opened, v1::Failure> {
        let directory = self
            .host
            .config
            .configdirectory()
            .map_err(|e| internal(e.to_string(), "nothing was changed"))?;
        let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
        let holder = format!("process {}, a move from {}", std::process::id(), fresh.peer);
        let hold =
            journal.hold_for(&fresh.name, &holder, &fresh.id).map_err(|e| journal_failure(&e))?;
        let known = journal.find(&fresh.id).map_err(|e| journal_failure(&e))?;
        let unfinished =
            journal.unfinished(&fresh.name, fresh.role).map_err(|e| journal_failure(&e))?;
        if let Some(other) = unfinished.filter(|other| other.id != fresh.id) {
            let harmless = [state::PLANNED, state::COPYING, state::PREPARED];
            if lost && other.peer == fresh.peer {
                return Ok(Opened::Unknown(other));
            }
            if !harmless.contains(&other.state.as_str()) {
                return Err(v1::Failure::new(
                    Kind::Refused,
                    format!(
                        "the move {} of {} from {} stopped on this server when it was {}",
                        other.id, other.display, other.peer, other.state
                    ),
                    "that move decides which server has the user",
                    "finish it from its source server first",
                ));
            }
            let old = Stage::new(&self.host.config, &other.id)
                .map_err(|e| internal(e.to_string(), "nothing was changed"))?;
            remove_stage(&old);
            let over = Entry { state: state::ABORTED.into(), updated: now_ms(), ..other };
            journal.write(&over).map_err(|e| journal_failure(&e))?;
        }
        let entry = known.filter(|e| e.state != state::ABORTED).unwrap_or_else(|| fresh.clone());
        Ok(Opened::Ours(journal, hold, entry))
    }

    /// Finds out what became of a publication: committed is committed, and
    /// anything less is taken back. What mailboxes.db says counts, wherever a
    /// disk may have lost what the journal said last.
    fn settle_publication(
        &self,
        entry: &mut Entry,
        publication: &Publication,
    ) -> Result<(), v1::Failure> {
        let failed = |e: publish::PublishError| {
            v1::Failure::new(
                Kind::UnknownOutcome,
                format!("what became of an interrupted publication cannot be settled: {e}"),
                "the source serves the user",
                "mend the cause and run the same push again",
            )
        };
        let standing = publication.standing(&self.host);
        let absent = match entry.state.as_str() {
            state::PUBLISHING => standing.map_err(failed)? != Standing::Committed,
            state::UNPUBLISHING => true,
            state::PREPARED if matches!(standing, Ok(Standing::Committed)) => false,
            state::PREPARED => {
                let _lock = self.lock_of(entry)?;
                publication.stop_deferring(&self.host).map_err(failed)?;
                return Ok(());
            }
            // The records change as soon as somebody uses the mailboxes.
            _ if matches!(standing, Ok(Standing::Absent)) => true,
            _ => return Ok(()),
        };
        entry.state = match absent {
            false => state::PUBLISHED.into(),
            true => {
                let _lock = self.lock_of(entry)?;
                publication.undo(&self.host, false).map_err(failed)?;
                publication.stop_deferring(&self.host).map_err(failed)?;
                state::PREPARED.into()
            }
        };
        Ok(())
    }
}

impl Target {
    /// Takes this server's lock on the user of a move.
    fn lock_of(&self, entry: &Entry) -> Result<UserLock, v1::Failure> {
        let top = MailboxName::from_internal(&entry.name);
        lock(&self.host, &top.map_err(|e| agent::protocol(e.to_string()))?)
    }
}

/// What opening the journal for a move has come to.
enum Opened {
    /// The move, as the journal has it or new.
    Ours(Journal, Hold, Entry),
    /// Another unfinished move of the same user from the same source.
    Unknown(Entry),
}

fn parse_id(text: &str) -> Result<MoveId, v1::Failure> {
    text.parse().map_err(|e: crate::moves::id::NotAnId| agent::protocol(e.to_string()))
}

/// Whether this server has the user, or may have parts of him in place.
fn began_to_publish(state: &str) -> bool {
    [state::PUBLISHING, state::UNPUBLISHING].contains(&state) || has_user(state)
}

impl Session {
    fn offer(&mut self, host: &Host, link: &mut Link) -> Result<v1::Wants, v1::Failure> {
        self.writable()?;
        if !self.staged {
            // The user's own files of an earlier session may be gone by now.
            for directory in [self.stage.conf.join("user"), self.stage.sieve.clone()] {
                let _ = std::fs::remove_dir_all(directory);
            }
            self.staged = true;
        }
        self.stage
            .make(&host.config)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        let mut wants: BTreeMap<u32, MailboxWants> = BTreeMap::new();
        let mut listing = Listing::default();
        while let Some(part) = link.next_part()? {
            let taken = match part {
                v1::part::Part::Table(table) => {
                    let check = |m: &v1::Mailbox| {
                        let checked = check(&self.top, &self.partitions, host, m)?;
                        self.base.as_ref().map_or(Ok(()), |base| {
                            seed(host, &self.stage, base, &checked)
                                .map_err(|e| OfferError::Layout(e.to_string()))
                        })?;
                        Ok(checked)
                    };
                    self.inventory.table(&self.stage, table, check)
                }
                v1::part::Part::MailboxScan(scan) => {
                    let wants = wants.entry(scan.mailbox).or_default();
                    match self.inventory.mailboxes.get_mut(&scan.mailbox) {
                        Some(mailbox) => mailbox.scan_part(&scan, &mut listing, wants),
                        None => Err(OfferError::Nonsense(format!(
                            "a scan of mailbox {}, which it did not list",
                            scan.mailbox
                        ))),
                    }
                }
                v1::part::Part::ScanDone(done) => self.inventory.scan_done(&self.stage, done),
                _ => Err(OfferError::Nonsense("something else within a scan".into())),
            };
            taken.map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        }
        // Also of those of which nothing new was told.
        for (ordinal, mailbox) in &mut self.inventory.mailboxes {
            mailbox.want_again(wants.entry(*ordinal).or_default());
        }
        wants.retain(|_, wants| !wants.is_empty());
        self.check_room(host, &wants)?;
        let user_files = self.inventory.wanted_user_files();
        let asked = self
            .inventory
            .asked(&self.stage, &wants, &user_files)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        let to_wire = |(ordinal, wants): (&u32, &MailboxWants)| {
            wants.to_wire(*ordinal, asked.bases(*ordinal))
        };
        let answer = v1::Wants {
            messages: wants.values().map(|w| w.messages.len() as u64).sum(),
            bytes: wants.values().fold(0, |all, wants| all.saturating_add(wants.bytes())),
            wants: wants.iter().map(to_wire).collect(),
            user_bases: self.inventory.user_bases(&self.stage, &user_files),
            user_files,
        };
        self.asked = Some(Arc::new(asked));
        for (ordinal, wants) in wants {
            if let Some(mailbox) = self.inventory.mailboxes.get_mut(&ordinal) {
                mailbox.remember(wants);
            }
        }
        Ok(answer)
    }

    /// Refuses to ask for more than the partitions have room for.
    fn check_room(
        &self,
        host: &Host,
        wants: &BTreeMap<u32, MailboxWants>,
    ) -> Result<(), v1::Failure> {
        let mut bytes: BTreeMap<&PartitionName, u64> = BTreeMap::new();
        for (ordinal, wants) in wants {
            let Some(mailbox) = self.inventory.mailboxes.get(ordinal) else { continue };
            let sum = bytes.entry(&mailbox.partition).or_default();
            *sum = sum.saturating_add(wants.bytes());
        }
        plan::room_for(host, &bytes).map_err(|text| {
            v1::Failure::new(
                Kind::Internal,
                text,
                "the source serves the user; what arrived before is kept in the stage",
                "make room and run the same push again",
            )
        })
    }

    /// Hears what has reached the source since the user was published here.
    fn offer_stragglers(&mut self, host: &Host, link: &mut Link) -> Result<v1::Wants, v1::Failure> {
        self.writable()?;
        if !has_user(&self.entry.state) {
            return Err(agent::protocol("stragglers of a user who was not published"));
        }
        let mut offer = carry::Offer::default();
        while let Some(part) = link.next_part()? {
            match part {
                v1::part::Part::StragglerMailbox(part) => {
                    let mailbox = part.mailbox.clone().unwrap_or_default();
                    let checked = check(&self.top, &self.partitions, host, &mailbox);
                    let checked = checked.map_err(|e| agent::protocol(e.to_string()))?;
                    offer.mailbox(part, checked).map_err(|e| not_carried(&e))?;
                }
                v1::part::Part::StragglersFound(found) => offer.found(found),
                _ => return Err(agent::protocol("something else among stragglers")),
            }
        }
        let carrying = Carrying::begin(host, &self.stage, &self.top, offer);
        let carrying = carrying.map_err(|e| not_carried(&e))?;
        let (wants, asked) = carrying.wants().map_err(|e| not_carried(&e))?;
        self.asked = Some(asked);
        self.carrying = Some(carrying);
        Ok(wants)
    }

    /// Carries over what was offered, and whose messages have arrived.
    fn carry(&mut self, host: &Host) -> Result<v1::Carried, v1::Failure> {
        let mut carrying = self
            .carrying
            .take()
            .ok_or_else(|| agent::protocol("carrying over what was not offered"))?;
        carrying.run(host, &self.top).map_err(|e| not_carried(&e))
    }

    fn store(
        &mut self,
        host: &Host,
        link: &mut Link,
        durable: bool,
    ) -> Result<v1::Stored, v1::Failure> {
        self.writable()?;
        let asked =
            self.asked.take().ok_or_else(|| agent::protocol("bulk data that was not asked for"))?;
        let broken = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                text,
                "the source serves the user; what arrived before is kept in the stage",
                "mend the cause and run the same push again",
            )
        };
        let mut writers =
            Writers::start(&asked, &link.pool()).map_err(|e| broken(e.to_string()))?;
        if durable {
            self.syncing = Some(Syncing::start(self.synced_roots(), self.syncing.take()));
        }
        let mut failed = None;
        let shadow = std::thread::scope(|scope| -> Result<_, v1::Failure> {
            // Built while the first files come: later it would wait for their sync.
            let first = durable && self.shadow.is_none();
            let (stage, inventory) = (&self.stage, &self.inventory);
            let building =
                first.then(|| scope.spawn(|| Shadow::build(host, stage, inventory).ok()));
            let mut receipt = Receipt::new(link.sender());
            while let Some(frame) = link.next_data()? {
                let length = frame.len();
                // After an error the rest is read and dropped, so that the reply
                // reaches a coordinator that is still sending.
                if failed.is_none() {
                    failed = writers.give(frame).err();
                }
                receipt.frame(length)?;
            }
            Ok(building.and_then(|thread| thread.join().ok()?))
        })?;
        self.shadow = shadow.or(self.shadow.take());
        let received = match (writers.finish(), failed) {
            (Ok(received), None) => received,
            // The writers' own error is the cause of one in handing over.
            (Err(error), _) | (Ok(_), Some(error)) => return Err(broken(error.to_string())),
        };
        self.inventory.arrived(&received.messages, &received.files);
        self.inventory.torn(&received.torn);
        if let Ok(release) = this_release(host) {
            // What fails may have been read while it changed; it comes again, or the
            // settlement says so.
            convert::all(&self.stage, &mut self.inventory, release);
        }
        if durable {
            settle::look_ahead(&self.stage, &mut self.inventory);
        }
        if let Some(syncing) = &mut self.syncing {
            syncing.all_is_there();
        }
        Ok(v1::Stored {
            items: (received.messages.len() + received.files.len()) as u64,
            bytes: received.bytes,
            problems: Vec::new(),
            torn: received.torn.len() as u64,
        })
    }

    /// Puts the whole stage onto stable storage. A failure is final for what
    /// was written: what it has left in the cache looks right and is not.
    fn sync(&mut self) -> Result<(), v1::Failure> {
        let before = self.syncing.take().map_or(Ok(()), Syncing::finish);
        before.and_then(|()| sync::all(&self.synced_roots())).map_err(|text| {
            remove_stage(&self.stage);
            internal(text, "the source serves the user; what was copied is thrown away")
        })
    }

    fn synced_roots(&self) -> Vec<PathBuf> {
        self.stage.roots().into_iter().filter(|root| root.is_dir()).collect()
    }

    fn rehearse(
        &mut self,
        host: &Host,
        rehearse: &v1::Rehearse,
    ) -> Result<v1::Rehearsed, v1::Failure> {
        let shadow = self.current_shadow(host)?;
        let view = self.view(host)?;
        self.convert_indexes(host)?;
        if rehearse.skipped.is_empty() {
            let changing = self.inventory.mailboxes.values().filter(|m| !m.is_consistent());
            let changing: Vec<_> = changing.map(|m| host.external(&m.name)).collect();
            shadow
                .examine(host, &self.stage, &self.tool_names, &changing)
                .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        }
        self.shadow = Some(shadow);
        drop(view);
        // Nothing of this is left to do under the freeze.
        self.sync()?;
        Ok(v1::Rehearsed::default())
    }

    /// The stage as Cyrus's programs of this server look for mailboxes.
    fn view(&self, host: &Host) -> Result<View, v1::Failure> {
        let view = View::make(host, &self.stage, &self.inventory);
        view.map_err(|e| internal(format!("the shadow: {e}"), "the source serves the user"))
    }

    /// Makes sure that everything is in the form of this server's Cyrus.
    fn converted(&mut self, host: &Host) -> Result<(), v1::Failure> {
        let release = this_release(host)?;
        match convert::all(&self.stage, &mut self.inventory, release).first() {
            None => Ok(()),
            Some(failed) => Err(internal(
                format!(
                    "{} is not as this server's Cyrus keeps it: {}",
                    failed.what, failed.reason
                ),
                "the source serves the user",
            )),
        }
    }

    /// The shadow of the mailboxes as they are now.
    fn current_shadow(&mut self, host: &Host) -> Result<Shadow, v1::Failure> {
        match self.shadow.take().filter(|shadow| shadow.is_of(host, &self.inventory)) {
            Some(shadow) => Ok(shadow),
            None => self.build_shadow(host),
        }
    }

    /// Has this server's Cyrus bring staged indexes of older versions to its own:
    /// such a repack keeps what clients see, and makes the cache of old ones anew.
    fn convert_indexes(&self, host: &Host) -> Result<(), v1::Failure> {
        let failed = |text: String| internal(text, "nothing was changed but the stage");
        let newest = this_release(host)?.index;
        let older = || -> Result<Option<String>, String> {
            for mailbox in self.inventory.mailboxes.values().filter(|m| !m.name_only) {
                let directory = mailbox.meta_directory(&self.stage, v1::FileKind::Index);
                let bytes = directory.map_err(|e| e.to_string())?.read("cyrus.index");
                let bytes = match bytes {
                    // It has not come yet.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    bytes => bytes.map_err(|e| format!("cyrus.index: {e}"))?,
                };
                let index = IndexView::parse(&bytes).map_err(|e| format!("cyrus.index: {e}"))?;
                if index.header().minor < newest {
                    return Ok(Some(mailbox.name.display()));
                }
            }
            Ok(None)
        };
        if older().map_err(failed)?.is_none() {
            return Ok(());
        }
        let said = settle::to_own_version(host, &self.stage, &self.tool_names).map_err(failed)?;
        match older().map_err(failed)? {
            None => Ok(()),
            Some(name) => Err(failed(format!(
                "this server's Cyrus has not brought the index of {name} to its version: {said}"
            ))),
        }
    }

    fn build_shadow(&self, host: &Host) -> Result<Shadow, v1::Failure> {
        Shadow::build(host, &self.stage, &self.inventory)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))
    }

    fn settle(&mut self, host: &Host, settle: &v1::Settle) -> Result<v1::Prepared, v1::Failure> {
        self.writable()?;
        self.converted(host)?;
        let mut prepared = match sabotaged(Sabotage::PublishBeforeCompare) {
            true => v1::Prepared::default(),
            false => settle::compare(&self.stage, &mut self.inventory, &settle.skipped),
        };
        if prepared.problems.iter().any(|p| p.severity() == v1::problem::Severity::Refuse) {
            return Ok(prepared);
        }
        if !settle.skipped.is_empty() {
            let _view = self.view(host)?;
            prepared.problems.extend(settle::drop_skipped(
                host,
                &self.stage,
                &self.tool_names,
                &self.inventory,
            ));
        }
        let shadow = self.current_shadow(host)?;
        prepared.problems.extend(dav::make(host, &self.stage, &self.inventory, &self.tool_names));
        let adopted = quota::adopt(host, &self.stage, &self.inventory, &self.top);
        prepared.problems.extend(adopted.map_err(|e| internal(e, "the source serves the user"))?);
        let release = this_release(host)?;
        prepared.problems.extend(settle::unknown_scripts(&self.stage, &self.inventory, release));
        let ends = (&self.top, self.entry.peer.as_str());
        let publication = settle::user_databases(host, &self.stage, &self.inventory)
            .and_then(|()| settle::publication(host, &self.stage, &self.inventory, &shadow, ends))
            .and_then(|publication| match &self.base {
                Some(base) => {
                    publication.over(host, base, (&self.stage, &self.inventory), &self.top)
                }
                None => Ok(publication),
            })
            .map_err(|e| internal(e, "the source serves the user"))?;
        self.shadow = Some(shadow);
        self.inventory.forget_as_sent(&self.stage);
        self.sync()?;
        sealed::save(&self.stage.publication(), &publication)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        self.publication = Some(publication);
        self.entry.detail = String::from_utf8_lossy(&settle.snapshot).into_owned();
        self.record(state::PREPARED)?;
        Ok(prepared)
    }

    fn publish(&mut self, host: &Host) -> Result<v1::Published, v1::Failure> {
        let publication = self
            .publication
            .clone()
            .ok_or_else(|| agent::protocol("publishing what was not prepared"))?;
        let lock = lock(host, &self.top)?;
        let began = Instant::now();
        self.refuse_newcomer(host, &publication)?;
        self.record(state::PUBLISHING)?;
        fault::point(Point::PublishBegun);
        if let Err(error) = publication.execute(host) {
            let unknown = matches!(error, publish::PublishError::Unknown { .. });
            // Before the commit everything goes back, so that the failure is plain.
            let undone = if unknown { Err(error.to_string()) } else { self.take_back(host) };
            return Err(match undone {
                Ok(()) => v1::Failure::new(
                    Kind::Internal,
                    format!("publishing failed: {error}"),
                    "the source serves the user; this server shows nothing of him",
                    "mend the cause and run the same push again",
                ),
                Err(also) => v1::Failure::new(
                    Kind::UnknownOutcome,
                    format!("publishing failed: {error}; taking it back failed too: {also}"),
                    "the source serves the user",
                    "run the same push again: it asks this server",
                ),
            });
        }
        fault::point(Point::PublishCommitted);
        self.record(state::PUBLISHED)?;
        fault::point(Point::PublishRecorded);
        drop(lock);
        Ok(v1::Published {
            locked_us: began.elapsed().as_micros() as u64,
            mailboxes: self.inventory.mailboxes.len() as u32,
        })
    }

    /// Points mupdate at this server. Nobody may make or delete a mailbox meanwhile.
    fn take_route(&self, host: &Host) -> Result<v1::RouteTaken, v1::Failure> {
        let _lock = lock(host, &self.top)?;
        murder::take(host, &self.top)
    }

    /// Keeps everybody waiting who wants to open what was published.
    fn lock_published(&self, host: &Host) -> Result<UserLock, v1::Failure> {
        let opens = host.release().is_none_or(opens_take_user_lock);
        let Some(publication) = self.publication.as_ref().filter(|_| !opens) else {
            return lock(host, &self.top);
        };
        let paths = || {
            let paths = publication.indexes.iter().map(|(path, _)| path.path().to_owned());
            Ok(paths.filter(|path| path.exists()).collect())
        };
        host.user_lock_path(&self.top)
            .and_then(|user| indexlock::take(&[user], &paths, LOCK_WAIT))
            .map_err(|e| internal(e.to_string(), "the source serves the user"))
    }

    fn take_back(&mut self, host: &Host) -> Result<(), String> {
        let publication = self.publication.clone().ok_or("there is no plan of it")?;
        publication.undo(host, false).map_err(|e| e.to_string())?;
        self.record(state::PREPARED).map_err(|f| f.text)
    }

    fn unpublish(&mut self, host: &Host, hold: bool) -> Result<v1::Unpublished, v1::Failure> {
        if self.deferring.is_some() {
            return self.stop_deferring(host).map(|()| v1::Unpublished {});
        }
        let lock = match self.withdrawing.take() {
            Some(lock) => lock,
            None => self.lock_published(host)?,
        };
        let unknown = |text: String| {
            v1::Failure::new(
                Kind::UnknownOutcome,
                text,
                "both servers have a copy of the user; the route leads to the source",
                "look at this server's copy before anything else",
            )
        };
        let publication = self
            .publication
            .clone()
            .ok_or_else(|| agent::protocol("taking back what was not published"))?;
        let changed = publication.changed_since(host, &self.top);
        if let Some(changed) = changed.map_err(|e| unknown(e.to_string()))? {
            return Err(unknown(format!(
                "{changed} has changed on this server since it was published"
            )));
        }
        if hold {
            self.withdrawing = Some(lock);
            return Ok(v1::Unpublished {});
        }
        // The route may have led here until a moment ago.
        let defer = [state::ROUTING, state::ROUTED].contains(&self.entry.state.as_str());
        self.record(state::UNPUBLISHING)?;
        publication.undo(host, defer).map_err(|e| unknown(e.to_string()))?;
        self.deferring = defer.then(Instant::now);
        self.record(state::PREPARED)?;
        drop(lock);
        // What was replaced is there again.
        self.base = self
            .journal
            .as_ref()
            .map_or(Ok(None), |journal| Base::find(host, journal, self.top.as_bytes()))
            .map_err(|e| journal_failure(&e))?;
        Ok(v1::Unpublished {})
    }

    /// Somebody may have made the user since preflight: an autocreate, an admin.
    /// And no record of anybody else may be overwritten, whatever the source says.
    fn refuse_newcomer(&self, host: &Host, publication: &Publication) -> Result<(), v1::Failure> {
        let failed = |e: String| internal(e, "the source serves the user");
        let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
        let list = MailboxList::from_database(&database).map_err(|e| failed(e.to_string()))?;
        let owned = list
            .owned(&self.top, &host.config.deletedprefix())
            .map_err(|e| failed(e.to_string()))?;
        let newcomer = owned
            .iter()
            .filter(|e| !publication.replaces(e))
            .find(|e| !e.is_deleted() && (e.name == self.top || e.name.is_below(&self.top)))
            .map(|e| host.external(&e.name));
        let taken = || -> Result<Option<String>, v1::Failure> {
            for (key, _) in &publication.records {
                let Some(id) = key.strip_prefix(b"I").and_then(|id| UniqueId::new(id).ok()) else {
                    continue;
                };
                let named = list.name_of_id(&id).map_err(|e| failed(e.to_string()))?;
                let ours = |name: &MailboxName| {
                    publication.records.iter().any(|(k, _)| *k == name_key(name))
                };
                let Some(name) = named.filter(|name| !ours(name)) else { continue };
                let entry = list.get(&name).map_err(|e| failed(e.to_string()))?;
                if !entry.is_some_and(|entry| publication.replaces(&entry)) {
                    return Ok(Some(host.external(&name)));
                }
            }
            Ok(None)
        };
        match newcomer.map_or_else(taken, |name| Ok(Some(name)))? {
            None => Ok(()),
            Some(name) => Err(v1::Failure::new(
                Kind::Refused,
                format!("{name} came into being on this server while the user was copied"),
                "the source serves the user and is unchanged",
                "switch autocreate off on this server, delete the new mailbox, and push again",
            )),
        }
    }

    /// Ends the move and removes its stage: never while the stage may be the
    /// only copy here, or while what was published has not been taken back.
    fn finish(&mut self, host: &Host, done: bool) -> Result<v1::Finished, v1::Failure> {
        let here = self.has_user(host)?;
        if done != here && (done || began_to_publish(&self.entry.state)) {
            return Err(v1::Failure::new(
                Kind::Refused,
                format!(
                    "ending the move as {} while {} {} on this server",
                    if done { state::DONE } else { state::ABORTED },
                    host.external(&self.top),
                    if here { "is" } else { "is not" }
                ),
                "the stage is kept",
                "run the same push again",
            ));
        }
        self.stop_deferring(host)?;
        let notes = if done { announce::announce(host, &self.top) } else { Vec::new() };
        self.record(if done { state::DONE } else { state::ABORTED })?;
        remove_stage(&self.stage);
        Ok(v1::Finished { notes })
    }

    /// Once nobody can be on his way here any more, he is as unknown as before.
    fn stop_deferring(&mut self, host: &Host) -> Result<(), v1::Failure> {
        let (Some(since), Some(publication)) = (self.deferring.take(), &self.publication) else {
            return Ok(());
        };
        std::thread::sleep(ON_THE_WAY.saturating_sub(since.elapsed()));
        let _lock = lock(host, &self.top)?;
        let stopped = publication.stop_deferring(host);
        stopped.map(drop).map_err(|e| internal(e.to_string(), "the source serves the user"))
    }

    /// Whether this server's Cyrus has the user.
    fn has_user(&self, host: &Host) -> Result<bool, v1::Failure> {
        let failed = |e: String| internal(e, "the stage is kept");
        let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
        let list = MailboxList::from_database(&database).map_err(|e| failed(e.to_string()))?;
        let top = list.get(&self.top).map_err(|e| failed(e.to_string()))?;
        Ok(top.is_some_and(|entry| !entry.is_deleted() && entry.server.is_none()))
    }

    fn record(&mut self, state: &str) -> Result<(), v1::Failure> {
        let Some(journal) = &self.journal else {
            return Err(agent::protocol("a change in a move that is only planned"));
        };
        self.entry.state = state.into();
        self.entry.updated = now_ms();
        journal.write(&self.entry).map_err(|e| journal_failure(&e))
    }

    fn writable(&self) -> Result<(), v1::Failure> {
        match self.journal {
            Some(_) => Ok(()),
            None => Err(agent::protocol("a change in a move that is only planned")),
        }
    }
}

/// Links what is kept of a mailbox into the stage, the first time.
fn seed(host: &Host, stage: &Stage, base: &Base, mailbox: &Checked) -> std::io::Result<()> {
    let dirs = |config, style| {
        let layout = Layout::new(config);
        layout.mailbox_dirs(&mailbox.name, style, &mailbox.partition)
    };
    let staged = dirs(&stage.config, DirStyle::Id(&mailbox.id));
    let (Ok(staged), Ok(live)) = (staged, dirs(&host.config, host.style(&mailbox.id))) else {
        return Ok(());
    };
    let places: BTreeSet<_> = staged.into_iter().zip(live).collect();
    for ((root, staged), (_, live)) in places.into_iter().filter(|((_, at), _)| !at.exists()) {
        let relative = staged.strip_prefix(&root).unwrap_or(&staged);
        base.seed(&live, &stage::StagedDirectory::make(&root, relative)?)?;
    }
    Ok(())
}

/// What this server's Cyrus does.
fn this_release(host: &Host) -> Result<&'static Release, v1::Failure> {
    host.release().map(Release::of).ok_or_else(|| {
        let text = "the version of this server's Cyrus cannot be told";
        internal(text, "nothing was changed")
    })
}

/// The key of a mailbox's record, in the form of 3.6 and later.
fn name_key(name: &MailboxName) -> Vec<u8> {
    [b"N", name.to_db_key().as_slice()].concat()
}

/// Takes this server's own lock on the user.
fn lock(host: &Host, top: &MailboxName) -> Result<UserLock, v1::Failure> {
    host.user_lock_path(top)
        .and_then(|path| UserLock::take(&[path], LOCK_WAIT))
        .map_err(|e| internal(e.to_string(), "the source serves the user"))
}

/// Checks what the source says of a mailbox: it must lie in the moved tree.
fn check(
    top: &MailboxName,
    partitions: &BTreeMap<String, PartitionName>,
    host: &Host,
    mailbox: &v1::Mailbox,
) -> Result<Checked, OfferError> {
    let nonsense = |text: String| OfferError::Nonsense(text);
    let name = MailboxName::from_internal(&mailbox.name)
        .map_err(|e| nonsense(format!("a mailbox with an impossible name: {e}")))?;
    let id = UniqueId::new(mailbox.unique_id.as_bytes())
        .map_err(|e| nonsense(format!("a mailbox with an impossible id: {e}")))?;
    let original = name.deleted_original(&host.config.deletedprefix()).map(|(name, _)| name);
    let inside = |n: &MailboxName| n == top || n.is_below(top);
    let deleted_inside = mailbox.deleted && original.as_ref().is_some_and(inside);
    if !inside(&name) && !deleted_inside {
        return Err(nonsense(format!("{}, which is not part of the move", name.display())));
    }
    let partition = partitions
        .get(&mailbox.partition)
        .or_else(|| partitions.values().next())
        .cloned()
        .ok_or_else(|| nonsense("a mailbox on no partition".into()))?;
    Ok(Checked { name, id, partition })
}

/// Removes a stage. What cannot be removed harms nobody, and is tried again.
fn remove_stage(stage: &Stage) {
    for root in stage.roots() {
        let _ = std::fs::remove_dir_all(&root);
        // Our directory above it goes when no other move uses it.
        if let Some(parent) = root.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        // Durable, or a power cut brings it back when no journal knows of it any more.
        let above = root.ancestors().skip(1).find(|above| above.is_dir());
        let _ = above.map(|above| std::fs::File::open(above).and_then(|d| d.sync_all()));
    }
}

fn internal(text: impl Into<String>, state: &str) -> v1::Failure {
    v1::Failure::new(Kind::Internal, text, state, "mend the cause and run the same push again")
}

fn not_carried(error: &CarryError) -> v1::Failure {
    v1::Failure::new(
        Kind::Internal,
        format!("what has reached the source since cannot be carried over: {error}"),
        "the target serves the user; the source's copy is not retired yet",
        "mend the cause and run the same push again: nothing is carried over twice",
    )
}

fn journal_failure(error: &JournalError) -> v1::Failure {
    let kind = match error {
        JournalError::Held { .. } => Kind::Busy,
        _ => Kind::Internal,
    };
    v1::Failure::new(
        kind,
        error.to_string(),
        "nothing was changed by this step",
        match kind {
            Kind::Busy => "wait until that move ends, or stop it",
            _ => "mend the journal's directory and run the same push again",
        },
    )
}
