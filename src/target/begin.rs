//! How the target begins a move, or takes one up.

use super::base::Base;
use super::offer::Inventory;
use super::publish::{Changed, Publication, Standing, TakenAway};
use super::shadow::Top;
use super::share::Share;
use super::stage::Stage;
use super::{
    PROGRAMS, Session, Target, USED, began_to_publish, features, internal, journal_failure, lock,
    lock_published, plan, publish, remove_stage,
};
use crate::agent;
use crate::cyrus::name::MailboxName;
use crate::host::userlock::UserLock;
use crate::moves::journal::{Entry, Hold, now_ms, state};
use crate::moves::verdict::{has_user, route_is_changed};
use crate::moves::{Journal, MoveId, sealed};
use crate::murder;
use crate::wire::v1::{self, failure::Kind, problem::Severity};
use std::collections::BTreeMap;

impl Target {
    pub(super) fn plan(&mut self, plan: &v1::PlanTarget) -> Result<v1::TargetPlan, v1::Failure> {
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
        let mut taken_away = Vec::new();
        let publication = self.settle(&mut entry, &mut taken_away)?;
        answer.snapshot = entry.note().to_owned().into();
        answer.mail_held = entry.mail_is_held();
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
            // Also where nothing is written.
            let read = if journal.is_none() { self.journal_there()? } else { None };
            base = journal
                .as_ref()
                .or(read.as_ref())
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
        answer.problems.extend(taken_away);
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
            share: Share::of(&plan.share),
            ..self.begin(top, entry, journal, hold)?
        });
        Ok(answer)
    }

    /// Takes up a move that this server knows, to end it.
    pub(super) fn attach(&mut self, attach: &v1::Attach) -> Result<v1::Attached, v1::Failure> {
        let id = parse_id(&attach.move_id)?;
        let name = attach.identity.clone().unwrap_or_default().name;
        let top = MailboxName::from_internal(&name)
            .map_err(|e| agent::protocol(format!("the name of the mailbox: {e}")))?;
        let Some(journal) = self.journal_there()? else { return Ok(v1::Attached::default()) };
        let holder = format!("process {}, an abort", std::process::id());
        let hold =
            journal.hold_for(top.as_bytes(), &holder, &id).map_err(|e| journal_failure(&e))?;
        let known = journal.find(&id).map_err(|e| journal_failure(&e))?;
        let Some(mut entry) = known.filter(|e| e.name == top.as_bytes()) else {
            return Ok(v1::Attached::default());
        };
        let publication = self.settle(&mut entry, &mut Vec::new())?;
        journal.write(&entry).map_err(|e| journal_failure(&e))?;
        let record = v1::MoveRecord::from(entry.clone());
        let session = self.begin(top, entry, Some(journal), Some(hold))?;
        self.session = Some(Session { publication, ..session });
        Ok(v1::Attached { r#move: Some(record), ..v1::Attached::default() })
    }

    /// This server's journal, if it has one.
    fn journal_there(&self) -> Result<Option<Journal>, v1::Failure> {
        let directory = self.host.config.configdirectory();
        let directory = directory.map_err(|e| internal(e.to_string(), "nothing was changed"))?;
        Journal::open_existing(&directory).map_err(|e| journal_failure(&e))
    }

    /// A session of a move that nothing is known of but its entry.
    pub(super) fn begin(
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
            unchanged: false,
            carrying: None,
            share: None,
        })
    }

    /// Finds out what a move has come to that had begun to publish, or had a
    /// plan of it.
    pub(super) fn settle(
        &self,
        entry: &mut Entry,
        problems: &mut Vec<v1::Problem>,
    ) -> Result<Option<Publication>, v1::Failure> {
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
            let lock = self.lock_of(entry)?;
            if loaded.put_back(&self.host).map_err(|e| damaged(&e))? {
                sealed::save(&path, &loaded).map_err(|e| damaged(&e))?;
            }
            drop(lock);
            // What is not routed is taken back as a whole.
            if route_is_changed(&entry.state) && loaded.taken_away.mailboxes > 0 {
                if loaded.taken_away.uncounted {
                    self.count_again(entry).map_err(|e| damaged(&e))?;
                    loaded.taken_away.uncounted = false;
                    sealed::save(&path, &loaded).map_err(|e| damaged(&e))?;
                }
                problems.push(told(loaded.taken_away));
            }
        }
        self.settle_publication(entry, &loaded)?;
        Ok(began_to_publish(&entry.state).then_some(loaded))
    }

    /// Counts the quota of a user again whose mailboxes were taken away.
    fn count_again(&self, entry: &Entry) -> Result<(), String> {
        let top = MailboxName::from_internal(&entry.name).map_err(|e| e.to_string())?;
        murder::wiped::count_again(&self.host, &top)
    }

    /// Opens the journal and takes the right to work on the user; what the
    /// journal has of this move, or `fresh`. A source that has lost its own
    /// journal is told of the move that is known here.
    pub(super) fn open_journal(&self, fresh: &Entry, lost: bool) -> Result<Opened, v1::Failure> {
        let directory = self
            .host
            .config
            .configdirectory()
            .map_err(|e| internal(e.to_string(), "nothing was changed"))?;
        let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
        self.host.keep_version();
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
    pub(super) fn settle_publication(
        &self,
        entry: &mut Entry,
        publication: &Publication,
    ) -> Result<(), v1::Failure> {
        let failed = |e: publish::PublishError| {
            v1::Failure::new(
                Kind::UnknownOutcome,
                format!("what became of an interrupted publication cannot be settled: {e}"),
                "it is not known whether the target has the user",
                "mend the cause and run the same push again",
            )
        };
        let standing = publication.standing(&self.host);
        let top = top_of(entry)?;
        let absent = match entry.state.as_str() {
            state::PUBLISHING => standing.map_err(failed)? == Standing::Absent,
            state::UNPUBLISHING => true,
            state::PREPARED if matches!(standing, Ok(Standing::Committed)) => false,
            state::PREPARED => {
                let _lock = self.lock_of(entry)?;
                publication.stop_deferring(&self.host).map_err(failed)?;
                return Ok(());
            }
            // The records change as soon as somebody uses the mailboxes.
            _ if matches!(standing, Ok(Standing::Absent)) => true,
            state::PUBLISHED => false,
            _ => return Ok(()),
        };
        if !absent {
            let changed = publication.changed_since(&self.host, &top).map_err(failed)?;
            let used = matches!(changed, Some(Changed::Used(_)));
            entry.state = if used { USED } else { state::PUBLISHED }.into();
            return Ok(());
        }
        let lock = lock_published(&self.host, &top, Some(publication))?;
        if publication.standing(&self.host).map_err(failed)? != Standing::Absent {
            // Clients may have come before anything was taken back.
            let begun = publication.directories_first && publication.has_moved_back();
            match publication.changed_since(&self.host, &top).map_err(failed)? {
                Some(Changed::Used(_)) => {
                    if begun {
                        publication.bring_forward().map_err(failed)?;
                    }
                    entry.state = USED.into();
                    return Ok(());
                }
                Some(Changed::Unreadable(_)) if !begun => {
                    entry.state = state::PUBLISHED.into();
                    return Ok(());
                }
                _ => {}
            }
        }
        publication.undo(&self.host, &lock, false).map_err(failed)?;
        publication.stop_deferring(&self.host).map_err(failed)?;
        entry.state = state::PREPARED.into();
        Ok(())
    }

    /// Takes this server's lock on the user of a move.
    pub(super) fn lock_of(&self, entry: &Entry) -> Result<UserLock, v1::Failure> {
        lock(&self.host, &top_of(entry)?)
    }
}

fn top_of(entry: &Entry) -> Result<MailboxName, v1::Failure> {
    MailboxName::from_internal(&entry.name).map_err(|e| agent::protocol(e.to_string()))
}

/// What is not as it was after mailboxes were taken away and put back.
fn told(taken: TakenAway) -> v1::Problem {
    let mut text = format!(
        "this backend was started while mupdate named the other one for {} mailboxes: what \
         ctl_mboxlist had taken away is put back and counted into the quota again; \
         HIGHESTMODSEQ is higher than before",
        taken.mailboxes
    );
    if taken.lost > 0 {
        text.push_str(&format!(
            "; what delayed delete kept of {} mailboxes is only in the retired copy of the source",
            taken.lost
        ));
    }
    v1::Problem::new(
        Severity::Note,
        "put-back",
        text,
        "nothing is to be done: clients look at them again",
    )
}

/// What opening the journal for a move has come to.
pub(super) enum Opened {
    /// The move, as the journal has it or new.
    Ours(Journal, Hold, Entry),
    /// Another unfinished move of the same user from the same source.
    Unknown(Entry),
}

pub(super) fn parse_id(text: &str) -> Result<MoveId, v1::Failure> {
    text.parse().map_err(|e: crate::moves::id::NotAnId| agent::protocol(e.to_string()))
}
