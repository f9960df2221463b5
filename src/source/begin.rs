//! How the source begins a move, or takes one up.

use super::inventory::{Listing, Ordinals};
use super::old::{Locking, OldDisk};
use super::retire::{RetireError, Retirement};
use super::{
    OLDEST_LIVE, Session, Source, converted, harmless, inventory, journal_failure, records_path,
    refused, retired,
};
use crate::agent;
use crate::cyrus::name::MailboxName;
use crate::cyrus::release::Release;
use crate::host::Host;
use crate::moves::journal::{Entry, REPAIR, now_ms, state};
use crate::moves::{Journal, MoveId, sealed};
use crate::murder::{self, wiped::KeyValue};
use crate::wire::v1::{self, failure::Kind};

impl Source {
    pub(super) fn plan(&mut self, plan: &v1::PlanSource) -> Result<v1::SourcePlan, v1::Failure> {
        self.session = None;
        let host = &self.host;
        let top = top_of(host, &plan.mailbox)?;
        if !host.allows(&top) {
            return Err(refused(format!(
                "this agent is not allowed to send {}",
                host.external(&top)
            )));
        }
        if top.is_user() && top.inbox().as_ref() != Some(&top) {
            return Err(refused(format!(
                "{} is a folder of a user; a user moves as a whole",
                host.external(&top)
            )));
        }
        let id: MoveId = plan
            .move_id
            .parse()
            .map_err(|e: crate::moves::id::NotAnId| agent::protocol(e.to_string()))?;
        let (mut journal, mut hold) = (None, None);
        let mut entry = Entry {
            id,
            role: v1::Role::Source,
            name: top.as_bytes().to_vec(),
            display: host.external(&top),
            peer: crate::wire::printable(&plan.destination),
            state: state::PLANNED.into(),
            detail: String::new(),
            started: now_ms(),
            updated: now_ms(),
        };
        if !plan.dry_run {
            let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
            let opened = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
            host.keep_version();
            let holder = format!("process {}, a push to {}", std::process::id(), entry.peer);
            let held = opened.hold(&entry.name, &holder).map_err(|e| journal_failure(&e))?;
            // An interrupted push to the same place is taken up again.
            let before =
                opened.unfinished(&entry.name, entry.role).map_err(|e| journal_failure(&e))?;
            no_repair(before.as_ref())?;
            match before {
                Some(before) if plan.adopt && before.state == state::PLANNED => {
                    let over = Entry { state: state::ABORTED.into(), ..before };
                    opened.write(&over).map_err(|e| journal_failure(&e))?;
                }
                Some(_) if plan.adopt => {
                    return Err(refused("this server knows another move of the user".into()));
                }
                Some(before) if before.peer == entry.peer => {
                    entry = Entry { updated: now_ms(), ..before };
                }
                // One that has published may be live there although its route is restored.
                Some(before) if !harmless(&before.state) || !before.note().is_empty() => {
                    return Err(v1::Failure::new(
                        Kind::Refused,
                        format!(
                            "the move {} of {} to {} stopped when it was {}",
                            before.id, before.display, before.peer, before.state
                        ),
                        "that move decides which server has the user",
                        format!(
                            "finish it first (mbcopy push {0} {1}), or give it up (mbcopy abort {0} \
                             {1})",
                            plan.mailbox, before.peer
                        ),
                    ));
                }
                _ => {}
            }
            (journal, hold) = (Some(opened), Some(held));
        }
        if host.offline.is_none() {
            settle_retirement(host, &mut entry)?;
            put_back(host, &entry)?;
        }
        let mut ordinals = Ordinals::new();
        let mut old = old_server(host, &entry.id)?;
        // The records of a user who is being retired name the other server; a disk
        // on which nothing runs stays as it is.
        let listing = if retired(&entry.state) && host.offline.is_none() {
            Listing { top: top.clone(), mailboxes: Vec::new(), converted: None }
        } else {
            inventory::list(host, &top, &mut ordinals, old.as_mut())?
        };
        let mut session = Session::new(top, entry, journal, hold);
        session.journal_write()?;
        session.ordinals = ordinals;
        session.old = old;
        session.listing = listing;
        let answer = session.look(host);
        self.session = Some(session);
        Ok(answer)
    }

    /// Takes up the unfinished move of a user, to end it.
    pub(super) fn attach(&mut self, attach: &v1::Attach) -> Result<v1::Attached, v1::Failure> {
        let host = &self.host;
        let top = top_of(host, &attach.mailbox)?;
        let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
        let journal = Journal::open_existing(&directory).map_err(|e| journal_failure(&e))?;
        let Some(journal) = journal else { return Ok(v1::Attached::default()) };
        let holder = format!("process {}, an abort", std::process::id());
        let hold = journal.hold(top.as_bytes(), &holder).map_err(|e| journal_failure(&e))?;
        let unfinished = journal.unfinished(top.as_bytes(), v1::Role::Source);
        let Some(mut entry) = unfinished.map_err(|e| journal_failure(&e))? else {
            let moves = journal.of(top.as_bytes()).map_err(|e| journal_failure(&e))?;
            let ours = |e: &Entry| e.role == v1::Role::Source;
            let last = moves.into_iter().filter(ours).max_by_key(|e| e.updated);
            let r#move = last.map(v1::MoveRecord::from);
            return Ok(v1::Attached { r#move, ..v1::Attached::default() });
        };
        no_repair(Some(&entry))?;
        settle_retirement(host, &mut entry)?;
        let taken_away = put_back(host, &entry)?;
        let mut record = v1::MoveRecord::from(entry.clone());
        let session = Session::new(top, entry, Some(journal), Some(hold));
        record.identity = Some(session.identity(host));
        session.journal_write()?;
        let murder_route = session.detail().murder_route;
        self.session = Some(session);
        Ok(v1::Attached { r#move: Some(record), murder_route, taken_away })
    }
}

/// Finds out what became of a retirement that was planned: what mailboxes.db says
/// counts, wherever a disk may have lost what the journal said last.
pub(super) fn settle_retirement(host: &Host, entry: &mut Entry) -> Result<(), v1::Failure> {
    let unknown = |e: RetireError| {
        v1::Failure::new(
            Kind::UnknownOutcome,
            e.to_string(),
            "the target serves the user; the source's copy is not put away completely",
            "look at the source's records of the user (ctl_mboxlist -d)",
        )
    };
    let began = match entry.state.as_str() {
        state::RETIRING => true,
        state::ROUTED => Retirement::is_planned(host, &entry.id).map_err(unknown)?,
        _ => false,
    };
    if began {
        let planned = Retirement::load(host, &entry.id).map_err(unknown)?;
        let happened = planned.has_happened(host).map_err(unknown)?;
        if !happened {
            planned.take_back().map_err(unknown)?;
        }
        entry.state = if happened { state::RETIRING } else { state::ROUTED }.into();
    }
    Ok(())
}

/// Puts back what this backend's `ctl_mboxlist -m` has taken away since the route of a
/// move was changed, which is not retired yet; whether it ever was: the mailboxes are as
/// they were then, but the use of quotas and what delayed delete kept are not.
pub(super) fn put_back(host: &Host, entry: &Entry) -> Result<bool, v1::Failure> {
    let path = records_path(host, &entry.id)?;
    let routed = [state::ROUTING, state::ROUTED].contains(&entry.state.as_str());
    if !routed || !path.exists() {
        return Ok(false);
    }
    let unknown = |text: String| {
        v1::Failure::new(
            Kind::UnknownOutcome,
            format!("what ctl_mboxlist has taken away here cannot be put back: {text}"),
            "the target serves the user; the source's copy is kept below DELETED",
            "mend the cause and run the same command again",
        )
    };
    let records: Vec<KeyValue> =
        sealed::load(&path).map_err(|e| unknown(format!("{}: {e}", path.display())))?;
    let mark = path.with_file_name("taken-away");
    if murder::wiped::put_back(host, &records).map_err(unknown)? > 0 {
        std::fs::write(&mark, "").map_err(|e| unknown(format!("{}: {e}", mark.display())))?;
    }
    Ok(mark.exists())
}

/// What converts what an older server has, if this one is older than 3.6.
///
/// Errors: it is in use and too old for that.
pub(super) fn old_server(host: &Host, id: &MoveId) -> Result<Option<OldDisk>, v1::Failure> {
    let failed = |e: std::io::Error| refused(e.to_string());
    if let Some(state) = &host.offline {
        return OldDisk::new(converted(state, id), Locking::Offline).map(Some).map_err(failed);
    }
    match host.release() {
        Some(release) if release < OLDEST_LIVE => Err(v1::Failure::new(
            Kind::Refused,
            format!(
                "this server is in use and runs Cyrus {}.{}, which cannot be frozen",
                release.0, release.1
            ),
            "nothing was changed",
            "stop Cyrus here and push its disk as it lies: --source-conf /etc/imapd.conf",
        )),
        Some(release) if !Release::of(release).by_id => {
            let state = host.config.configdirectory().map_err(|e| refused(e.to_string()))?;
            OldDisk::new(converted(&state, id), Locking::Needed).map(Some).map_err(failed)
        }
        _ => Ok(None),
    }
}

/// The moves that this server's journal knows, of one mailbox or of all.
pub(super) fn moves(host: &Host, mailbox: &str) -> Result<v1::Moves, v1::Failure> {
    let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
    let journal = Journal::open_existing(&directory).map_err(|e| journal_failure(&e))?;
    let Some(journal) = journal else { return Ok(v1::Moves::default()) };
    let found = match mailbox {
        "" => journal.moves(),
        mailbox => journal.of(top_of(host, mailbox)?.as_bytes()).map(|moves| (moves, Vec::new())),
    };
    let (moves, damaged) = found.map_err(|e| journal_failure(&e))?;
    Ok(v1::Moves {
        moves: moves.into_iter().map(v1::MoveRecord::from).collect(),
        damaged: damaged.iter().map(ToString::to_string).collect(),
    })
}

/// The mailbox that an admin means by what he types.
pub(crate) fn top_of(host: &Host, typed: &str) -> Result<MailboxName, v1::Failure> {
    host.namespace()
        .map_err(|e| e.to_string())
        .and_then(|namespace| {
            MailboxName::from_external(typed.as_bytes(), &namespace).map_err(|e| e.to_string())
        })
        .map_err(|e| refused(format!("{}: {e}", crate::wire::printable(typed))))
}

/// Refuses what is not a move, but a repair that is not over.
pub(super) fn no_repair(unfinished: Option<&Entry>) -> Result<(), v1::Failure> {
    match unfinished {
        Some(entry) if entry.detail == REPAIR => Err(v1::Failure::new(
            Kind::Refused,
            format!("a repair of {} with {} is not over", entry.display, entry.peer),
            "nothing was changed",
            format!("go on with it: mbcopy doctor {} DEST --repair", entry.display),
        )),
        _ => Ok(()),
    }
}
