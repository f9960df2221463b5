//! The source agent: reads the user natively, sends what is wanted, freezes
//! him, and retires his copy.

mod alarms;
mod contents;
pub(crate) mod freeze;
pub(crate) mod inventory;
mod locks;
pub(crate) mod mailbox;
pub(crate) mod old;
mod purge;
mod records;
pub(crate) mod retire;
pub(crate) mod send;
pub(crate) mod sessions;
mod stragglers;

use crate::agent::{self, Handler, Link};
use crate::cyrus::index::{IndexFile, IndexView};
use crate::cyrus::name::MailboxName;
use crate::cyrus::release::Release;
use crate::fault::{self, Point};
use crate::host::userlock::LockError;
use crate::host::{Host, ofd};
use crate::moves::journal::{Entry, Hold, JournalError, REPAIR, now_ms, state};
use crate::moves::verdict::route_is_changed;
use crate::moves::{Journal, MoveId, sealed};
use crate::murder::{self, wiped::KeyValue};
use crate::wire::v1::{self, FileKind, failure::Kind, problem::Severity};
use crate::wire::v1::{reply::Result as Answer, request::Op};
use bytes::Bytes;
use contents::Contents;
use freeze::{Freeze, ProofError};
use inventory::{Listing, Ordinals, SourceMailbox, UserFiles};
use locks::Locks;
use mailbox::Known;
use old::{Locking, OldDisk};
use retire::{RetireError, Retirement};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use stragglers::{Baseline, Search};

/// How long a user's own database is waited for, while he is frozen.
const DATABASE_WAIT: Duration = Duration::from_secs(1);

/// How long the freeze lasts at least, once the route is to be changed: longer
/// than a route command should take, and not for ever.
const ROUTE_TIME: Duration = Duration::from_secs(30);

/// Longest freeze, whatever the coordinator asks for.
const LONGEST_FREEZE: Duration = Duration::from_secs(3600);

/// The oldest release that can be moved from while it is in use: before it nobody
/// locked a user.
const OLDEST_LIVE: (u32, u32) = (3, 2);

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
    /// What is in the metadata files.
    contents: Contents,
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
            Op::SendItems(items) => session.send(host, &items, link).map(Answer::SendDone),
            Op::Freeze(freeze) => session.freeze(host, &freeze).map(Answer::Frozen),
            Op::Thaw(_) => Ok(Answer::Thawed(session.thaw())),
            Op::FindStragglers(_) => {
                session.find_stragglers(host, link).map(Answer::StragglersFound)
            }
            Op::Retire(retire) => session.retire(host, &retire.server).map(Answer::Retired),
            Op::TakeRoute(_) => murder::take(host, &session.top).map(Answer::RouteTaken),
            Op::Record(record) => {
                session.note(host, &record)?;
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

impl Source {
    fn plan(&mut self, plan: &v1::PlanSource) -> Result<v1::SourcePlan, v1::Failure> {
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
                Some(before) if !harmless(&before.state) => {
                    return Err(v1::Failure::new(
                        Kind::Refused,
                        format!(
                            "the move {} of {} to {} stopped when it was {}",
                            before.id, before.display, before.peer, before.state
                        ),
                        "that move decides which server has the user",
                        format!("finish it first: mbcopy push {} {}", plan.mailbox, before.peer),
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
    fn attach(&mut self, attach: &v1::Attach) -> Result<v1::Attached, v1::Failure> {
        let host = &self.host;
        let top = top_of(host, &attach.mailbox)?;
        let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
        if !directory.join("mbcopy/journal.sqlite").exists() {
            return Ok(v1::Attached::default());
        }
        let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
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
            contents: Contents::default(),
            snapshot: String::new(),
            baseline: Baseline::default(),
            freeze: None,
        }
    }

    fn journal_write(&self) -> Result<(), v1::Failure> {
        let written = self.journal.as_ref().map_or(Ok(()), |journal| journal.write(&self.entry));
        written.map_err(|e| journal_failure(&e))
    }

    /// Looks at everything once, for the plan.
    fn look(&mut self, host: &Host) -> v1::SourcePlan {
        // Nothing of a disk is renamed.
        let crossings = if host.offline.is_none() { host.crossings() } else { Vec::new() };
        let mut problems: Vec<_> =
            crossings.iter().map(|path| crate::target::crossing(path)).collect();
        if host.offline.is_none() {
            problems.extend(crate::target::programs(host, &["cyr_dbtool", "mbexamine"]));
        }
        let mut minors = BTreeMap::new();
        for mailbox in &self.listing.mailboxes {
            let known = self.known.entry(mailbox.ordinal).or_default();
            if mailbox.entry.partition.is_some() {
                let found = mailbox::look(host, mailbox, known);
                if found.is_empty() || !mailbox.has_gone(host) {
                    problems.extend(found);
                }
            }
            minors.insert(mailbox.ordinal, index_minor(host, mailbox));
        }
        problems.extend(alarms::note(host, &self.listing));
        if host.offline.is_none() {
            // Any directory can be a mount.
            let planned = Retirement::new(host, &self.listing, &self.id, "");
            let crossings = planned.map(|planned| planned.crossings()).unwrap_or_default();
            problems.extend(crossings.iter().map(|path| crate::target::crossing(path)));
        }
        // Once the route may have changed, mupdate may rightly say anything.
        let here = (!route_is_changed(&self.entry.state)).then_some(&self.top);
        let (mupdate, found) = murder::look(host, here);
        problems.extend(found);
        let mailboxes = self.listing.mailboxes.iter().map(|m| {
            let mut wire = to_wire(m);
            wire.index_minor = minors.get(&m.ordinal).copied().unwrap_or_default();
            wire
        });
        v1::SourcePlan {
            identity: Some(self.identity(host)),
            mailboxes: mailboxes.collect(),
            totals: Some(self.totals()),
            problems,
            move_id: self.id.to_string(),
            state: self.entry.state.clone(),
            snapshot: Bytes::copy_from_slice(self.detail().snapshot.as_bytes()),
            route_command: self.detail().route_command,
            offline: host.offline.is_some(),
            murder: murder::is_member(host),
            mupdate,
            murder_route: self.detail().murder_route,
        }
    }

    fn identity(&self, host: &Host) -> v1::Identity {
        let user = self.top.userid();
        v1::Identity {
            name: Bytes::copy_from_slice(self.top.as_bytes()),
            userid: user
                .map(|u| String::from_utf8_lossy(u.as_bytes()).into_owned())
                .unwrap_or_default(),
            display: host.external(&self.top),
        }
    }

    fn totals(&self) -> v1::Totals {
        let mut totals = v1::Totals::default();
        for mailbox in &self.listing.mailboxes {
            let known = self.known.get(&mailbox.ordinal).map(|k| k.totals).unwrap_or_default();
            totals.mailboxes += 1;
            totals.messages += known.messages;
            totals.bytes += known.bytes;
            totals.expunged += known.expunged;
            totals.archived += known.archived;
        }
        totals
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

    fn scan(&mut self, host: &Host, link: &Link) -> Result<v1::ScanDone, v1::Failure> {
        let sender = link.sender();
        self.survey(host, &|part| {
            sender.part(part).map_err(|e| v1::Failure::from(crate::agent::LinkError::from(e)))
        })
    }

    /// Looks at everything that has changed since the last time, and tells it.
    fn survey(
        &mut self,
        host: &Host,
        tell: &dyn Fn(v1::part::Part) -> Result<(), v1::Failure>,
    ) -> Result<v1::ScanDone, v1::Failure> {
        let frozen = self.check_freeze()?;
        if let Some(old) = &mut self.old {
            old.begin(frozen);
        }
        self.listing = inventory::list(host, &self.top, &mut self.ordinals, self.old.as_mut())?;
        let table = v1::Table {
            identity: Some(self.identity(host)),
            mailboxes: self.listing.mailboxes.iter().map(to_wire).collect(),
        };
        tell(v1::part::Part::Table(table))?;
        let mut done = v1::ScanDone::default();
        for mailbox in &self.listing.mailboxes {
            if mailbox.entry.partition.is_none() {
                continue;
            }
            let known = self.known.entry(mailbox.ordinal).or_default();
            let Some(found) = mailbox::scan(host, mailbox, known, &mut self.contents, frozen)
            else {
                done.unchanged.push(mailbox.ordinal);
                continue;
            };
            if !found.problems.is_empty() && !frozen && mailbox.has_gone(host) {
                known.forget();
                continue;
            }
            done.problems.extend(found.problems);
            for part in found.parts {
                tell(v1::part::Part::MailboxScan(part))?;
            }
        }
        let unreadable = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                text,
                "the source serves the user and is unchanged",
                "mend it on this server, and push again",
            )
        };
        self.user_files = self.listing.user_files(host).map_err(unreadable)?;
        self.scripts.clear();
        for (number, (kind, name, path)) in self.user_files.files.iter().enumerate() {
            let found = self
                .contents
                .find(path, 0)
                .and_then(|found| found.ok_or_else(|| std::io::ErrorKind::NotFound.into()));
            let found = found.map_err(|e| unreadable(format!("{}: {e}", path.display())))?;
            if *kind == FileKind::SieveScript {
                self.scripts.insert(path.clone(), found.blake3().into());
            }
            done.user_files.push(v1::UserFile {
                number: number as u32,
                kind: (*kind).into(),
                name: Bytes::copy_from_slice(name),
                size: found.size(),
                blake3: Bytes::copy_from_slice(&found.blake3()),
            });
        }
        done.problems.extend(self.user_files.notes.iter().map(|text| v1::Problem {
            severity: Severity::Note.into(),
            code: "unknown-user-file".into(),
            text: text.clone(),
            ..v1::Problem::default()
        }));
        done.active_sieve = Bytes::copy_from_slice(self.user_files.active_sieve.as_bytes());
        done.quota_roots = self.listing.quota_roots(host).map_err(unreadable)?;
        done.annotations = self.listing.annotations(host).map_err(unreadable)?;
        done.totals = Some(self.totals());
        self.snapshot = self.take_snapshot(&done);
        done.snapshot = Bytes::copy_from_slice(self.snapshot.as_bytes());
        if frozen {
            self.baseline = Baseline::of(&self.listing, &self.known, &self.user_files, &done);
        }
        Ok(done)
    }

    /// Tells what is different from what was published.
    fn find_stragglers(
        &mut self,
        host: &Host,
        link: &Link,
    ) -> Result<v1::StragglersFound, v1::Failure> {
        let failed = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                format!(
                    "the source has changes that the target has not, which cannot be found: {text}"
                ),
                "the target serves the user; the source's copy is not retired yet",
                "mend the cause and run the same push again",
            )
        };
        let path = self.baseline_path(host)?;
        let baseline: Baseline = sealed::load(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => v1::Failure {
                advice: "an older mbcopy began this move: carry the changes over by hand, then \
                         remove the source's mailboxes"
                    .into(),
                ..failed(format!("{} is missing", path.display()))
            },
            _ => failed(format!("{}: {e}", path.display())),
        })?;
        let done = self.survey(host, &|_| Ok(()))?;
        let search = Search {
            host,
            listing: &self.listing,
            known: &self.known,
            files: &self.user_files,
            rest: &done,
            baseline: &baseline,
            to: &link.sender(),
            frozen: self.freeze.is_some(),
        };
        search.find().map_err(failed)
    }

    fn baseline_path(&self, host: &Host) -> Result<PathBuf, v1::Failure> {
        let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
        Ok(directory.join("mbcopy/moves").join(self.id.as_str()).join(stragglers::FILE))
    }

    /// A digest of all that the user is, as text.
    fn take_snapshot(&self, done: &v1::ScanDone) -> String {
        use prost::Message;
        let mut hasher = blake3::Hasher::new();
        for mailbox in &self.listing.mailboxes {
            hasher.update(&mailbox.entry.raw);
            hasher.update(mailbox.id.as_str().as_bytes());
            if let Some(known) = self.known.get(&mailbox.ordinal) {
                hasher.update(&known.observable);
            }
        }
        let rest = v1::ScanDone {
            user_files: done.user_files.clone(),
            quota_roots: done.quota_roots.clone(),
            annotations: done.annotations.clone(),
            active_sieve: done.active_sieve.clone(),
            ..v1::ScanDone::default()
        };
        hasher.update(&rest.encode_to_vec()).finalize().to_hex().to_string()
    }

    fn send(
        &mut self,
        host: &Host,
        items: &v1::SendItems,
        link: &Link,
    ) -> Result<v1::SendDone, v1::Failure> {
        self.check_freeze()?;
        let mut wants = Vec::new();
        for want in &items.wants {
            let mailbox = self.listing.mailboxes.iter().find(|m| m.ordinal == want.mailbox);
            match mailbox.and_then(|m| Some((m, mailbox::Places::of(host, m)?))) {
                Some((mailbox, places)) => wants.push((want, mailbox, places)),
                None => {
                    let text = format!("mailbox {} was not listed", want.mailbox);
                    return Err(agent::protocol(text));
                }
            }
        }
        let mut of_user = Vec::new();
        for number in &items.user_files {
            let file = self.user_files.files.get(*number as usize);
            let (kind, _, path) =
                file.ok_or_else(|| agent::protocol("a file of the user that was not listed"))?;
            let base = items.user_bases.iter().find(|base| base.number == *number);
            let difference = base.and_then(|b| self.contents.difference(path, &b.blake3));
            of_user.push(send::user_job(*number, *kind, path.clone(), difference));
        }
        let contents = &self.contents;
        // One mailbox after the other: only the index of one is held in memory.
        let of_mailboxes = wants.into_iter().flat_map(|(want, mailbox, places)| {
            let meta = mailbox::meta_paths(host, mailbox);
            let listed = listed(want, &meta).unwrap_or_default();
            send::jobs_of(want, mailbox, places, meta, contents, listed)
        });
        let jobs = of_mailboxes.chain(of_user);
        let sender = link.sender();
        let mut sent = send::send(host, &self.listing.mailboxes, jobs, items.rate_limit, &sender)
            .map_err(|e| v1::Failure::from(crate::agent::LinkError::from(e)))?;
        for (path, blocks) in std::mem::take(&mut sent.files) {
            self.contents.sent(path, blocks);
        }
        let ordinals: BTreeSet<u32> = sent.problems.iter().map(|p| p.mailbox_ordinal).collect();
        let gone = self.listing.mailboxes.iter().filter(|m| ordinals.contains(&m.ordinal));
        let gone: BTreeSet<u32> = gone.filter(|m| m.has_gone(host)).map(|m| m.ordinal).collect();
        sent.problems.retain(|problem| !gone.contains(&problem.mailbox_ordinal));
        // What turned out to be bad is not offered again.
        for problem in &sent.problems {
            if let Some(known) = self.known.get_mut(&problem.mailbox_ordinal)
                && problem.uid > 0
            {
                known.bad.insert(problem.uid);
                known.forget();
                let mut all = self.listing.mailboxes.iter();
                let mailbox = all.find(|m| m.ordinal == problem.mailbox_ordinal);
                if let (Some(old), Some(mailbox)) = (&mut self.old, mailbox) {
                    old.leave_out(&mailbox.entry.name, problem.uid);
                }
            }
        }
        Ok(v1::SendDone { items: sent.items, bytes: sent.bytes, problems: sent.problems })
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

    fn retire(&mut self, host: &Host, server: &str) -> Result<v1::Retired, v1::Failure> {
        let limit = || {
            v1::Failure::new(
                Kind::Limit,
                "the freeze limit was reached before the source could be retired",
                "the route leads to the target; the source's copy is not retired yet",
                "run the same push again",
            )
        };
        let freeze = self.freeze.take().ok_or_else(limit)?;
        let done = freeze.pinned(|| self.put_away(host, server));
        self.freeze = Some(freeze);
        done.unwrap_or_else(|| Err(limit()))
    }

    /// Retires, or goes on with a retirement that was interrupted.
    fn put_away(&mut self, host: &Host, server: &str) -> Result<v1::Retired, v1::Failure> {
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
            let retirement = if state == state::RETIRING {
                Retirement::load(host, &self.id)
            } else {
                Retirement::new(host, &self.listing, &self.id, server)
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
                self.entry.detail = serde_json::to_string(&detail).unwrap_or_default();
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
        serde_json::from_str(&self.entry.detail).unwrap_or_default()
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

/// Finds out what became of a retirement that was planned: what mailboxes.db says
/// counts, wherever a disk may have lost what the journal said last.
fn settle_retirement(host: &Host, entry: &mut Entry) -> Result<(), v1::Failure> {
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

/// Where the records of a user are written down whose route is changed by mupdate.
fn records_path(host: &Host, id: &MoveId) -> Result<PathBuf, v1::Failure> {
    let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
    Ok(directory.join("mbcopy/moves").join(id.as_str()).join("records"))
}

/// Puts back what this backend's `ctl_mboxlist -m` has taken away since the route of a
/// move was changed, which is not retired yet; whether it ever was: the mailboxes are as
/// they were then, but the use of quotas and what delayed delete kept are not.
fn put_back(host: &Host, entry: &Entry) -> Result<bool, v1::Failure> {
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

/// Where what an older server has is kept in the form of 3.6, as long as it is needed.
fn converted(state: &Path, id: &MoveId) -> PathBuf {
    state.join("mbcopy/moves").join(id.as_str()).join("converted")
}

/// What converts what an older server has, if this one is older than 3.6.
///
/// Errors: it is in use and too old for that.
fn old_server(host: &Host, id: &MoveId) -> Result<Option<OldDisk>, v1::Failure> {
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
fn moves(host: &Host, mailbox: &str) -> Result<v1::Moves, v1::Failure> {
    let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
    if !directory.join("mbcopy/journal.sqlite").exists() {
        return Ok(v1::Moves::default());
    }
    let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
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
fn no_repair(unfinished: Option<&Entry>) -> Result<(), v1::Failure> {
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

/// Whether nothing but copies can be left of a move in this state.
fn harmless(state: &str) -> bool {
    [state::PLANNED, state::COPYING].contains(&state)
}

/// Whether the source's own records have begun to name the other server.
fn retired(state: &str) -> bool {
    [state::RETIRING, state::RETIRED].contains(&state)
}

/// What an index says of each message that is asked for.
fn listed(want: &v1::Want, meta: &[(FileKind, PathBuf)]) -> Option<send::Listed> {
    if want.uid_runs.is_empty() {
        return None;
    }
    let (_, path) = meta.iter().find(|(kind, _)| *kind == FileKind::Index)?;
    let file = File::open(path).ok()?;
    let mut index = IndexFile::open(&file).ok()?;
    let runs = want.uid_runs.as_chunks::<2>().0;
    let wanted = |uid: u32| {
        let run = runs.partition_point(|[first, _]| *first <= uid).checked_sub(1);
        run.and_then(|n| runs.get(n)).is_some_and(|[first, count]| uid - first < *count)
    };
    let mut sizes = Vec::new();
    // What is asked for last is at the end; a record that changes meanwhile ends it.
    let _ = index.each(0..u32::MAX, |_, r| {
        if wanted(r.uid) {
            sizes.push((r.uid, r.size, r.guid.as_ref().map(|g| *g.as_bytes())));
        }
    });
    Some(sizes)
}

fn index_minor(host: &Host, mailbox: &SourceMailbox) -> u32 {
    let meta = mailbox::meta_paths(host, mailbox);
    let path = meta.iter().find(|(kind, _)| *kind == FileKind::Index);
    path.and_then(|(_, path)| {
        let bytes = std::fs::read(path).ok()?;
        Some(IndexView::parse(&bytes).ok()?.header().minor)
    })
    .unwrap_or_default()
}

fn to_wire(mailbox: &SourceMailbox) -> v1::Mailbox {
    let partition = mailbox.entry.partition.as_ref();
    v1::Mailbox {
        ordinal: mailbox.ordinal,
        name: Bytes::copy_from_slice(mailbox.entry.name.as_bytes()),
        unique_id: mailbox.id.as_str().to_owned(),
        partition: partition.map(|p| p.as_str().to_owned()).unwrap_or_default(),
        deleted: mailbox.deleted,
        name_record: mailbox.entry.raw.clone(),
        id_record: mailbox.id_record.1.clone(),
        index_minor: 0,
    }
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
