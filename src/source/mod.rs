//! The source agent: reads the user natively, sends what is wanted, freezes
//! him, and retires his copy.

mod ahead;
mod alarms;
mod begin;
mod check;
mod contents;
pub(crate) mod freeze;
pub(crate) mod inventory;
mod late;
pub(crate) mod locks;
mod looked;
pub(crate) mod mailbox;
pub(crate) mod old;
mod pace;
mod prove;
mod purge;
mod quota;
pub(crate) mod records;
pub(crate) mod retire;
mod scan;
mod seen;
pub(crate) mod send;
pub(crate) mod sessions;
mod stragglers;
pub(crate) mod wanted;

pub(crate) use begin::top_of;

use crate::agent::{self, Handler, Link};
use crate::cyrus::name::MailboxName;
use crate::fault::{self, Point};
use crate::host::userlock::LockError;
use crate::host::{Host, ofd};
use crate::moves::journal::{Entry, Hold, JournalError, now_ms, state};
use crate::moves::{Journal, MoveId, sealed};
use crate::murder::{self, wiped::KeyValue};
use crate::wire::v1::{self, failure::Kind};
use crate::wire::v1::{reply::Result as Answer, request::Op};
use ahead::Ahead;
use begin::moves;
use contents::Contents;
use freeze::{Freeze, ProofError};
use inventory::{Listing, Ordinals, UserFiles};
use locks::Locks;
use mailbox::Known;
use old::OldDisk;
use pace::Pace;
use retire::{Retirement, leads_away};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stragglers::Baseline;

/// How long a user's own database is waited for, while he is frozen.
const DATABASE_WAIT: Duration = Duration::from_secs(1);

/// How long the freeze lasts at least, once the route is to be changed: longer
/// than a route command should take, and not for ever.
const ROUTE_TIME: Duration = Duration::from_secs(30);

/// The longest that clients are kept waiting for what frontends do not know yet.
const MAX_LAG: Duration = Duration::from_secs(10);

/// Longest freeze, whatever the coordinator asks for.
const LONGEST_FREEZE: Duration = Duration::from_secs(3600);

/// The oldest release that can be moved from while it is in use: before it nobody
/// locked a user.
pub(crate) const OLDEST_LIVE: (u32, u32) = (3, 2);

/// The source's side of one move.
pub struct Source {
    host: Host,
    session: Option<Session>,
}

/// A move that this agent works on.
struct Session {
    id: MoveId,
    top: MailboxName,
    entry: Entry,
    journal: Option<Journal>,
    _hold: Option<Hold>,
    ordinals: Ordinals,
    listing: Listing,
    old: Option<OldDisk>,
    user_files: UserFiles,
    /// BLAKE3 of the sieve scripts that are files, as they were sent, by path.
    scripts: BTreeMap<PathBuf, blake3::Hash>,
    known: BTreeMap<u32, Known>,
    /// What is being read before the first scan.
    ahead: Option<Ahead>,
    /// Whether it is written down what was looked at.
    looks_are_kept: bool,
    /// What is in the metadata files.
    contents: Contents,
    /// How fast it gets to the target.
    pace: Pace,
    /// What the last scan found, as a digest.
    snapshot: String,
    /// What the last scan under a freeze found, to compare with later.
    baseline: Baseline,
    freeze: Option<Freeze>,
}

impl Source {
    /// The agent of this server.
    pub fn new(host: Host) -> Self {
        Self { host, session: None }
    }
}

impl Handler for Source {
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure> {
        match hello.role() {
            v1::Role::Source => Ok(self.host.welcome()),
            _ => Err(agent::protocol("this agent is the source of moves, not the target")),
        }
    }

    fn handle(&mut self, op: Op, link: &mut Link) -> Result<Answer, v1::Failure> {
        match &op {
            Op::PlanSource(plan) => return self.plan(plan).map(Answer::SourcePlan),
            Op::Attach(attach) => return self.attach(attach).map(Answer::Attached),
            Op::Purge(purge) => return purge::purge(&self.host, purge).map(Answer::Purged),
            _ => {}
        }
        let host = &self.host;
        if let Op::ListMoves(list) = op {
            return moves(host, &list.mailbox).map(Answer::Moves);
        }
        let session = self
            .session
            .as_mut()
            .ok_or_else(|| agent::protocol("a step of a move that was not planned"))?;
        match op {
            Op::ProveFreeze(_) => session.prove(host).map(Answer::FreezeProof),
            Op::Scan(_) => session.scan(host, link).map(Answer::ScanDone),
            Op::ProveContents(ask) => {
                session.prove_contents(host, &ask).map(Answer::ContentsProven)
            }
            Op::SendItems(items) => session.send(host, &items, link).map(Answer::SendDone),
            Op::Freeze(freeze) => session.freeze(host, &freeze).map(Answer::Frozen),
            Op::Thaw(_) => Ok(Answer::Thawed(session.thaw())),
            Op::FindStragglers(_) => {
                session.find_stragglers(host, link).map(Answer::StragglersFound)
            }
            Op::PlanOldServer(plan) => Ok(Answer::OldServerPlan(late::look(host, &plan))),
            Op::Retire(retire) => session.retire(host, &retire).map(Answer::Retired),
            Op::TakeRoute(_) => murder::take(host, &session.top).map(Answer::RouteTaken),
            Op::Record(record) => {
                session.note(host, &record)?;
                Ok(Answer::Recorded(v1::Recorded {}))
            }
            Op::HoldMail(hold) => {
                session.entry.set_mail_held(hold.held);
                session.journal_write()?;
                Ok(Answer::Recorded(v1::Recorded {}))
            }
            Op::Finish(finish) => {
                session.finish(host, finish.done)?;
                Ok(Answer::Finished(v1::Finished::default()))
            }
            _ => Err(agent::unknown_request()),
        }
    }
}

impl Session {
    fn new(top: MailboxName, entry: Entry, journal: Option<Journal>, hold: Option<Hold>) -> Self {
        Self {
            id: entry.id.clone(),
            listing: Listing { top: top.clone(), mailboxes: Vec::new(), converted: None },
            old: None,
            top,
            entry,
            journal,
            _hold: hold,
            ordinals: Ordinals::new(),
            user_files: UserFiles::default(),
            scripts: BTreeMap::new(),
            known: BTreeMap::new(),
            ahead: None,
            looks_are_kept: false,
            contents: Contents::default(),
            pace: Pace::default(),
            snapshot: String::new(),
            baseline: Baseline::default(),
            freeze: None,
        }
    }

    fn journal_write(&self) -> Result<(), v1::Failure> {
        let written = self.journal.as_ref().map_or(Ok(()), |journal| journal.write(&self.entry));
        written.map_err(|e| journal_failure(&e))
    }

    fn prove(&self, host: &Host) -> Result<v1::FreezeProof, v1::Failure> {
        let locks = Locks::of(host, &self.listing).map_err(|e| lock_failure(&e))?;
        let scratch = self.old.as_ref().map(OldDisk::directory).unwrap_or(Path::new("/"));
        let proof = freeze::prove(host, &self.top, &locks, scratch).map_err(|e| match e {
            ProofError::Lock(e) => lock_failure(&e),
            e => v1::Failure::new(
                Kind::Refused,
                e.to_string(),
                "nothing was changed",
                "this version of Cyrus locks in another way than mbcopy knows, or runs with \
                 another mboxname_lockpath: do not move users from it, and report this",
            ),
        })?;
        Ok(v1::FreezeProof {
            lock: proof.lock.display().to_string(),
            waiter: "mbexamine".into(),
            waited_us: proof.frozen.as_micros() as u64,
        })
    }

    fn freeze(&mut self, host: &Host, freeze: &v1::Freeze) -> Result<v1::Frozen, v1::Failure> {
        self.freeze = None;
        let began = std::time::Instant::now();
        let wait = Duration::from_millis(u64::from(freeze.wait_ms));
        let mut limit = Duration::from_millis(u64::from(freeze.limit_ms));
        if host.offline.is_none() {
            limit = limit.min(LONGEST_FREEZE);
        }
        let (locks, held) = loop {
            let locks = Locks::of(host, &self.listing).map_err(|e| lock_failure(&e))?;
            let left = wait.saturating_sub(began.elapsed());
            let held = locks.take(host, left).map_err(|e| lock_failure(&e))?;
            // Each mailbox of a shared tree has its own lock. Only now can nobody make
            // another one: what was made since they were listed has to be locked, too.
            if self.top.is_user() || host.offline.is_some() || !locks.is_of_each_mailbox() {
                break (locks, held);
            }
            self.listing = inventory::list(host, &self.top, &mut self.ordinals, self.old.as_mut())?;
            if Locks::of(host, &self.listing).map_err(|e| lock_failure(&e))? == locks {
                break (locks, held);
            }
        };
        let waited_ms = held.since().saturating_duration_since(began).as_millis() as u32;
        let freeze = Freeze::hold(held, limit).map_err(|e| lock_failure(&e))?;
        // After the user's lock: whoever waits for it may hold one of these.
        if host.offline.is_none() {
            freeze.also(self.lock_databases().map_err(|e| lock_failure(&e))?);
        }
        self.freeze = Some(freeze);
        Ok(v1::Frozen { waited_ms, locks: locks.shown() })
    }

    /// Locks what the user's lock does not protect against writers: his
    /// subscriptions, and what he has read in others' folders.
    fn lock_databases(&self) -> Result<Vec<File>, LockError> {
        let mut locked = Vec::new();
        for path in &self.user_files.unprotected {
            let io = |source| LockError::Io { path: path.clone(), source };
            let file = match File::open(path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(io(e)),
            };
            let waited = DATABASE_WAIT;
            if !ofd::lock(&file, ofd::Mode::Shared, waited).map_err(io)? {
                return Err(LockError::Busy { path: path.clone(), waited });
            }
            // A flat database is replaced by a new file at each change.
            let opened = file.metadata().map_err(io)?;
            let named = std::fs::metadata(path).map_err(io)?;
            if opened.ino() != named.ino() {
                return Err(LockError::Busy { path: path.clone(), waited });
            }
            locked.push(file);
        }
        Ok(locked)
    }

    fn thaw(&mut self) -> v1::Thawed {
        match self.freeze.take().map(Freeze::thaw) {
            Some(ended) => {
                v1::Thawed { frozen_us: ended.lasted.as_micros() as u64, by_limit: ended.by_limit }
            }
            None => v1::Thawed::default(),
        }
    }

    fn retire(&mut self, host: &Host, retire: &v1::Retire) -> Result<v1::Retired, v1::Failure> {
        let limit = || {
            v1::Failure::new(
                Kind::Limit,
                "the freeze limit was reached before the source could be retired",
                "the route leads to the target; the source's copy is not retired yet",
                "run the same push again",
            )
        };
        let freeze = self.freeze.take().ok_or_else(limit)?;
        let done = freeze.pinned(|| self.put_away(host, retire));
        self.freeze = Some(freeze);
        done.unwrap_or_else(|| Err(limit()))
    }

    /// Retires, or goes on with a retirement that was interrupted.
    fn put_away(&mut self, host: &Host, retire: &v1::Retire) -> Result<v1::Retired, v1::Failure> {
        let failed = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                format!("retiring the source's copy failed: {text}"),
                "the route leads to the target, which serves the user",
                "mend the cause and run the same push again",
            )
        };
        if host.offline.is_some() {
            // Nobody reaches it, and nothing is written to it.
            self.record(state::RETIRED)?;
            return Ok(v1::Retired::default());
        }
        let state = self.entry.state.clone();
        let mut notes = Vec::new();
        if state != state::RETIRED {
            // Who still comes here, from a frontend that does not know yet, waits, and is not
            // told that there is no such mailbox.
            std::thread::sleep(Duration::from_millis(u64::from(retire.lag_ms)).min(MAX_LAG));
            let retirement = if state == state::RETIRING {
                Retirement::load(host, &self.id)
            } else {
                let away = leads_away(host, &retire.server, retire.old_server());
                Retirement::new(host, &self.listing, &self.id, &away)
            };
            let retirement = retirement.map_err(|e| failed(e.to_string()))?;
            // Where opening a mailbox does not take the user's lock, only looking tells.
            if self.old.is_some() && state != state::RETIRING {
                let stranger = retirement.left_behind(host, &self.top);
                if let Some(name) = stranger.map_err(|e| failed(e.to_string()))? {
                    let name = host.external(&name);
                    return Err(failed(format!("{name} was made although the user is frozen")));
                }
            }
            retirement.save(host, &self.id).map_err(|e| failed(e.to_string()))?;
            self.record(state::RETIRING)?;
            fault::point(Point::RetireBegun);
            retirement.execute(host).map_err(|e| failed(e.to_string()))?;
            if murder::is_member(host) {
                let all = self.listing.mailboxes.iter().map(|m| (&m.entry.name, m.style()));
                let locks = host.freeze_paths(&self.top, all).map_err(|e| failed(e.to_string()))?;
                sessions::end_waiting(&locks);
            }
            // No lock keeps scripts that are files from being edited.
            for (path, sent) in &self.scripts {
                let kept = retirement.kept(path).and_then(|kept| std::fs::read(kept).ok());
                if kept.is_some_and(|kept| blake3::hash(&kept) != *sent) {
                    notes.push(format!(
                        "{} was edited in the moment of the freeze: the source's retired copy has \
                         what the target has not",
                        path.display()
                    ));
                }
            }
            self.record(state::RETIRED)?;
            fault::point(Point::Retired);
        }
        let sessions_told = sessions::tell(host, &self.top);
        Ok(v1::Retired { notes, sessions_told })
    }

    /// Whether the user is frozen; an error when he was and is no more.
    fn check_freeze(&self) -> Result<bool, v1::Failure> {
        match &self.freeze {
            None => Ok(false),
            Some(freeze) if freeze.holds() => Ok(true),
            Some(_) => Err(self.thawed_by_limit()),
        }
    }

    /// What the coordinator wants remembered.
    fn note(&mut self, host: &Host, record: &v1::Record) -> Result<(), v1::Failure> {
        match record.state.as_str() {
            state::PUBLISHING => {
                let path = self.baseline_path(host)?;
                sealed::save(&path, &self.baseline).map_err(|e| {
                    v1::Failure::new(
                        Kind::Internal,
                        format!("cannot write {}: {e}", path.display()),
                        "the source serves the user and is unchanged",
                        "mend the cause and run the same push again",
                    )
                })?;
                if murder::is_member(host) {
                    self.remember_records(host)?;
                }
                let detail = Detail {
                    snapshot: self.snapshot.clone(),
                    route_command: record.route_command,
                    murder_route: record.murder_route,
                };
                self.entry.set_note(&serde_json::to_string(&detail).unwrap_or_default());
            }
            // From here on the move only goes forward: the freeze must last.
            state::ROUTING => {
                let holds = self.freeze.as_ref().is_some_and(|f| f.extend(ROUTE_TIME));
                if !holds {
                    return Err(self.thawed_by_limit());
                }
            }
            _ => {}
        }
        self.record(&record.state)
    }

    /// Writes down the records of the live mailboxes, so that they can be put back when
    /// this backend is restarted after the route was changed.
    fn remember_records(&self, host: &Host) -> Result<(), v1::Failure> {
        let live = self.listing.mailboxes.iter().filter(|m| !m.deleted);
        let records: Vec<KeyValue> = live
            .flat_map(|m| [(m.entry.key.clone(), m.entry.raw.clone()), m.id_record.clone()])
            .map(|(key, value)| (key.to_vec(), value.to_vec()))
            .collect();
        let path = records_path(host, &self.id)?;
        sealed::save(&path, &records).map_err(|e| {
            v1::Failure::new(
                Kind::Internal,
                format!("cannot write {}: {e}", path.display()),
                "the source serves the user and is unchanged",
                "mend the cause and run the same push again",
            )
        })
    }

    fn detail(&self) -> Detail {
        serde_json::from_str(self.entry.note()).unwrap_or_default()
    }

    /// Ends the move; one that may have been published cannot be given up here.
    fn finish(&mut self, host: &Host, done: bool) -> Result<(), v1::Failure> {
        if !done && !harmless(&self.entry.state) {
            return Err(agent::protocol(format!("giving up a move that is {}", self.entry.state)));
        }
        // What a killed process has left of an older server's mailboxes.
        if let Ok(state) = host.state_directory() {
            let _ = std::fs::remove_dir_all(converted(&state, &self.id));
        }
        if let Ok(looked) = place(host, &self.id, looked::FILE) {
            let _ = std::fs::remove_file(looked);
        }
        self.record(if done { state::DONE } else { state::ABORTED })
    }

    fn thawed_by_limit(&self) -> v1::Failure {
        v1::Failure::new(
            Kind::Limit,
            "the freeze limit was reached",
            "the source serves the user and is unchanged",
            "push again with a higher --max-freeze",
        )
    }

    fn record(&mut self, state: &str) -> Result<(), v1::Failure> {
        let Some(journal) = &self.journal else {
            return Err(agent::protocol("a change in a move that is only planned"));
        };
        self.entry.state = state.into();
        self.entry.updated = now_ms();
        journal.write(&self.entry).map_err(|e| journal_failure(&e))
    }
}

/// What the journal of a source remembers besides the state.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
struct Detail {
    /// What the user was when the target was to publish him.
    snapshot: String,
    /// Whether the route is changed by a command.
    route_command: bool,
    /// Whether the route is changed by mupdate.
    #[serde(default)]
    murder_route: bool,
}

/// Where a file of a move is.
fn place(host: &Host, id: &MoveId, name: &str) -> Result<PathBuf, v1::Failure> {
    let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
    Ok(directory.join("mbcopy/moves").join(id.as_str()).join(name))
}

/// Where the records of a user are written down whose route is changed by mupdate.
fn records_path(host: &Host, id: &MoveId) -> Result<PathBuf, v1::Failure> {
    place(host, id, "records")
}

/// Where what an older server has is kept in the form of 3.6, as long as it is needed.
fn converted(state: &Path, id: &MoveId) -> PathBuf {
    state.join("mbcopy/moves").join(id.as_str()).join("converted")
}

/// Whether the source's own records have begun to name the other server.
fn retired(state: &str) -> bool {
    [state::RETIRING, state::RETIRED].contains(&state)
}

fn refused(text: String) -> v1::Failure {
    v1::Failure::new(Kind::Refused, text, "nothing was changed", "look at the name of the mailbox")
}

fn lock_failure(error: &LockError) -> v1::Failure {
    let kind = match error {
        LockError::Busy { .. } => Kind::Limit,
        _ => Kind::Internal,
    };
    v1::Failure::new(
        kind,
        error.to_string(),
        "the source serves the user and is unchanged",
        "look who holds it (/proc/locks), or push again later",
    )
}

pub(crate) fn journal_failure(error: &JournalError) -> v1::Failure {
    let (kind, advice) = match error {
        JournalError::Held { .. } => (Kind::Busy, "wait until that move ends, or stop it"),
        _ => (Kind::Internal, "mend the journal's directory and run the same push again"),
    };
    v1::Failure::new(kind, error.to_string(), "nothing was changed by this step", advice)
}

/// Whether nothing but copies can be left of a move in this state.
fn harmless(state: &str) -> bool {
    [state::PLANNED, state::COPYING].contains(&state)
}
