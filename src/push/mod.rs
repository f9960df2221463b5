//! The coordinator: moves one user by driving the two agents through the
//! phases of [`crate::moves::phase`].
//!
//! Everything that a step may leave half done is the business of the agent
//! that does it, and in its journal. The coordinator holds no state that
//! matters: it can die at any point.

pub mod local;
pub mod monitor;
pub mod peer;
pub mod report;
pub mod route;

use crate::fault::{self, Point};
use crate::moves::journal::state;
use crate::moves::{Event, MoveId, Phase, Server};
use crate::wire::bulk::Chunk;
use crate::wire::frame::Kind;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use monitor::{Monitor, PhaseName};
use peer::{Peer, PeerError};
use report::{Failure, Outcome, Problem, Report, Severity};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What the admin asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The top mailbox, as typed.
    pub mailbox: String,
    /// The destination, as typed, for messages and for the route command.
    pub destination: String,
    /// The partition on the target; `None`: as the source's is named.
    pub partition: Option<String>,
    /// Only plan.
    pub dry_run: bool,
    /// Go on without messages that cannot be read.
    pub skip_bad: bool,
    /// Longest freeze.
    pub max_freeze: Duration,
    /// Most rounds of copying before a freeze is tried all the same.
    pub max_rounds: u32,
    /// Freezes that are tried before giving up.
    pub freeze_attempts: u32,
    /// The admin's route command.
    pub route_command: Option<String>,
    /// How long the route command may take.
    pub route_timeout: Duration,
    /// Bytes per second; 0: as fast as it goes.
    pub rate_limit: u64,
    /// The command that the admin typed, to be typed again.
    pub command: String,
}

/// Set when the admin wants to stop; looked at wherever stopping is safe.
pub type Interrupt = Arc<AtomicBool>;

/// How long an agent may take beyond the freeze limit before its connection is
/// given up, so that nobody waits for a stopped machine. What is done under the
/// freeze needs some time on a slow disk even when the limit is nearly over.
const GRACE: Duration = Duration::from_secs(10);

/// What Cyrus itself makes different on another server of the same version.
const DIFFERENCES: [&str; 2] = ["lastupdate", "freespace"];

/// Most bytes that are sent and not yet taken by the target: more would only
/// fill the buffers of sshd, which it grows by copying them again and again.
const UNDER_WAY: u64 = 2 << 20;

/// What must be left of the freeze limit for publish, route and retire to start.
const PUBLISH_RESERVE: Duration = Duration::from_millis(500);

/// A round that took less than this part of the freeze limit is good enough.
const READY_PART: u32 = 4;

/// Why a phase did not succeed.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Route(#[from] route::RouteError),
    #[error("{0}")]
    Refused(String),
    #[error("interrupted")]
    Interrupted,
    #[error("the freeze limit of {0:?} was reached")]
    Limit(Duration),
    #[error(
        "the source has received mail or changes after it was frozen for the move and before it \
         could be retired"
    )]
    Stragglers,
    #[error("the other side did not answer within {0:?}")]
    Silence(Duration),
}

impl Trouble {
    fn event(&self, phase: Phase) -> Event {
        match self {
            Self::Limit(_) => Event::LimitReached,
            Self::Peer(e) if e.kind() == Some(v1::failure::Kind::Limit) => Event::LimitReached,
            Self::Peer(e) if e.outcome_unknown() => lost(phase),
            Self::Silence(_) => lost(phase),
            _ => Event::Failed,
        }
    }

    /// Whether a step was given up in its middle: what such a connection says
    /// next belongs to something else.
    fn breaks_connections(&self) -> bool {
        matches!(self, Self::Silence(_) | Self::Interrupted)
    }
}

/// Where tests kill the coordinator.
fn died_after(phase: Phase) {
    fault::point(match phase {
        Phase::Planning => Point::Planned,
        Phase::Copying => Point::Copied,
        Phase::Freezing => Point::Frozen,
        Phase::Settling => Point::Settled,
        Phase::Publishing => Point::Published,
        Phase::Routing => Point::Routed,
        Phase::Thawing => Point::Thawed,
        _ => return,
    });
}

/// What it means for a phase that its answer never came.
fn lost(phase: Phase) -> Event {
    match phase {
        Phase::Publishing | Phase::Unpublishing | Phase::Retiring => Event::OutcomeUnknown,
        _ => Event::Failed,
    }
}

/// Moves one user. Never fails without saying, in the report, who serves him.
pub async fn push(
    options: &Options,
    source: Peer,
    target: Peer,
    monitor: &dyn Monitor,
    interrupt: &Interrupt,
) -> Report {
    let began = Instant::now();
    let mut push = Push::new(options, source, target, monitor, interrupt);
    let mut phase = Phase::Planning;
    while !phase.is_final() {
        monitor.event(monitor::Event::Phase { phase: PhaseName(phase) });
        let result = push.perform(phase).await;
        let begun = push.route_begun;
        let event = match &result {
            // A route that an earlier push has changed is not taken back.
            Err(_) if phase == Phase::Routing && begun => Event::OutcomeUnknown,
            Ok(()) if phase == Phase::Planning && push.route_begun => Event::RouteBegun,
            Ok(()) => Event::Succeeded,
            Err(trouble) => trouble.event(phase),
        };
        if let Err(trouble) = result {
            push.remember(phase, &trouble);
        }
        if push.report.outcome == Outcome::Planned {
            break;
        }
        if event == Event::Succeeded {
            died_after(phase);
        }
        if event == Event::LimitReached && matches!(phase, Phase::Freezing | Phase::Settling) {
            // Not while the next rounds are copied.
            if phase == Phase::Settling {
                let _ = push.thaw().await;
            }
            push.attempts += 1;
            if push.attempts >= options.freeze_attempts {
                phase = Phase::Failed;
                break;
            }
            push.ready = false;
        }
        // The table has an answer to every event that a phase can report;
        // an event that it does not know ends as that phase's failure.
        phase = phase.after(event).or(phase.after(Event::Failed)).unwrap_or(Phase::Failed);
    }
    push.conclude(phase).await;
    push.report.total_ms = millis(began.elapsed());
    push.report
}

/// Whether a source's journal tells that the route may lead to the target: from
/// then on a move only goes forward.
fn route_is_changed(state: &str) -> bool {
    [state::ROUTING, state::ROUTED, state::RETIRING, state::RETIRED].contains(&state)
}

/// A report of a push that ended before both agents answered. `source` is asked,
/// where it is there, whether an earlier push has changed the route.
pub async fn stillborn(options: &Options, source: Option<Peer>, failure: Failure) -> Report {
    let name = source.as_ref().map_or("this server", |s| &s.welcome.servername).to_owned();
    let mut report = blank(options, &name, &options.destination);
    report.failure = Some(failure);
    let mut phase = Phase::Failed;
    if let Some(mut source) = source {
        let op = Op::ListMoves(v1::ListMoves { mailbox: options.mailbox.clone() });
        if let Ok(Answer::Moves(moves)) = source.call(op).await
            && moves.moves.last().is_some_and(|last| route_is_changed(&last.state))
        {
            phase = Phase::Routed;
            report.outcome = Outcome::Resumable;
        }
    }
    report.settle_serving(phase);
    report
}

fn blank(options: &Options, source: &str, target: &str) -> Report {
    Report {
        outcome: Outcome::Failed,
        phase: PhaseName(Phase::Planning),
        move_id: String::new(),
        mailbox: options.mailbox.clone(),
        source: source.into(),
        target: target.into(),
        serving: source.into(),
        mailboxes: 0,
        messages: 0,
        bytes: 0,
        messages_sent: 0,
        bytes_sent: 0,
        rounds: 0,
        freeze_ms: 0.0,
        publish_ms: 0.0,
        total_ms: 0.0,
        records_compared: 0,
        differences: Vec::new(),
        problems: Vec::new(),
        notes: Vec::new(),
        failure: None,
        next_steps: Vec::new(),
    }
}

struct Push<'a> {
    options: &'a Options,
    source: Peer,
    target: Peer,
    monitor: &'a dyn Monitor,
    interrupt: &'a Interrupt,
    report: Report,
    identity: v1::Identity,
    frozen_at: Option<Instant>,
    attempts: u32,
    ready: bool,
    /// Whether a connection may be in the middle of something.
    broken: bool,
    /// Messages that cannot be copied, as the agents named them.
    bad_messages: Vec<v1::Problem>,
    /// Whether an earlier push has begun to change the route.
    route_begun: bool,
    /// How far an earlier push had come, if its route was begun.
    source_state: String,
    /// What the user was when an earlier push had him published.
    snapshot: bytes::Bytes,
}

impl<'a> Push<'a> {
    fn new(
        options: &'a Options,
        source: Peer,
        target: Peer,
        monitor: &'a dyn Monitor,
        interrupt: &'a Interrupt,
    ) -> Self {
        monitor.event(monitor::Event::Connected {
            source: source.welcome.servername.clone(),
            target: target.welcome.servername.clone(),
            source_cyrus: source.welcome.cyrus_version.clone(),
            target_cyrus: target.welcome.cyrus_version.clone(),
        });
        let report = blank(options, &source.welcome.servername, &target.welcome.servername);
        Self {
            options,
            source,
            target,
            monitor,
            interrupt,
            report,
            identity: v1::Identity::default(),
            frozen_at: None,
            attempts: 0,
            ready: false,
            broken: false,
            bad_messages: Vec::new(),
            route_begun: false,
            source_state: String::new(),
            snapshot: bytes::Bytes::new(),
        }
    }

    async fn perform(&mut self, phase: Phase) -> Result<(), Trouble> {
        // The source keeps the freeze limit by itself. A peer that stops
        // answering must not keep the admin waiting much longer than that.
        let patience = match phase {
            Phase::Routing | Phase::Unpublishing => Some(self.options.route_timeout * 2 + GRACE),
            phase => phase.is_frozen().then(|| self.left() + GRACE),
        };
        let step = async {
            match phase {
                Phase::Planning => self.plan().await,
                Phase::Copying => self.copy().await,
                Phase::Freezing => self.freeze().await,
                Phase::Refreezing => self.refreeze().await,
                Phase::Settling => self.settle().await,
                Phase::Publishing => self.publish().await,
                Phase::Routing => self.route().await,
                Phase::Unpublishing => self.unpublish().await,
                Phase::Retiring => self.retire().await,
                Phase::Thawing => self.thaw().await,
                _ => Ok(()),
            }
        };
        match patience {
            Some(patience) => tokio::time::timeout(patience, step)
                .await
                .unwrap_or(Err(Trouble::Silence(patience))),
            None => step.await,
        }
    }

    // ---- the phases ---------------------------------------------------------

    async fn plan(&mut self) -> Result<(), Trouble> {
        if self.source.welcome.machine_id == self.target.welcome.machine_id {
            return Err(self.refuse(
                "same-server",
                format!(
                    "the destination {} is this server, {}",
                    self.options.destination, self.report.source
                ),
                "name another server; to change a partition use Cyrus's own RENAME",
            ));
        }
        let plan = Op::PlanSource(v1::PlanSource {
            mailbox: self.options.mailbox.clone(),
            move_id: MoveId::random().to_string(),
            destination: self.options.destination.clone(),
            dry_run: self.options.dry_run,
            skip_bad: self.options.skip_bad,
        });
        let Answer::SourcePlan(plan) = self.source.call(plan).await? else {
            return Err(self.source.unexpected("plan").into());
        };
        let totals = plan.totals.unwrap_or_default();
        let source_state = plan.state;
        self.route_begun = route_is_changed(&source_state);
        if self.route_begun && plan.route_command && self.options.route_command.is_none() {
            return Err(Trouble::Refused(
                "this move changes its route by a command, which is missing now: give the same \
                 --route-command"
                    .into(),
            ));
        }
        self.snapshot = plan.snapshot;
        self.identity = plan.identity.unwrap_or_default();
        self.report.mailbox = crate::wire::printable(&self.identity.display);
        self.report.move_id = crate::wire::printable(&plan.move_id);
        self.count(&totals);
        self.monitor.event(monitor::Event::Planned {
            move_id: self.report.move_id.clone(),
            mailboxes: totals.mailboxes,
            messages: totals.messages,
            bytes: totals.bytes,
        });
        self.problems(Server::Source, &plan.problems);

        let op = Op::PlanTarget(v1::PlanTarget {
            move_id: plan.move_id,
            identity: Some(self.identity.clone()),
            mailboxes: plan.mailboxes,
            totals: Some(totals),
            partition: self.options.partition.clone().unwrap_or_default(),
            source: self.report.source.clone(),
            dry_run: self.options.dry_run,
        });
        // A source whose route was begun may have nothing left to freeze.
        let prove = !self.route_begun;
        if prove {
            self.source.begin(Op::ProveFreeze(v1::ProveFreeze {})).await?;
        }
        let planned = self.target.call(op).await;
        let proof = if prove { Some(self.source.reply().await) } else { None };
        let Answer::TargetPlan(plan) = planned? else {
            return Err(self.target.unexpected("plan").into());
        };
        self.problems(Server::Target, &plan.problems);
        if self.take_up(source_state, &plan.state).await? {
            return Ok(());
        }
        match proof.transpose()? {
            Some(Answer::FreezeProof(proof)) => {
                self.note(format!("freeze proven: {} waits for {}", proof.waiter, proof.lock))
            }
            _ => return Err(self.source.unexpected("proof of the freeze").into()),
        }
        self.judge()?;
        if self.options.dry_run {
            self.report.outcome = Outcome::Planned;
        }
        Ok(())
    }

    /// Takes up a move that stopped after it was to be published; whether its
    /// route may lead to the target already. If it certainly does not, what the
    /// target has published is taken back, and is the stage of a new beginning.
    async fn take_up(&mut self, source: String, target: &str) -> Result<bool, Trouble> {
        let published = [state::PUBLISHED, state::ROUTING, state::ROUTED, state::DONE];
        if self.route_begun {
            if !published.contains(&target) {
                return Err(Trouble::Refused(format!(
                    "this move was {source} on the source, but the target's journal says \
                     {target:?}: it must not be finished before that is understood"
                )));
            }
            self.note(format!("going on with a move that stopped when it was {source}"));
            self.source_state = source;
            return Ok(true);
        }
        if published.contains(&target) {
            self.note(format!("taking back a publication that stopped when it was {target}"));
            self.withdraw(false).await?;
            self.withdraw(true).await?;
        }
        Ok(false)
    }

    /// Freezes again, after the route may have been changed, and looks whether
    /// anything has changed since the user was frozen for the move.
    async fn refreeze(&mut self) -> Result<(), Trouble> {
        self.freeze().await?;
        if [state::RETIRING, state::RETIRED].contains(&self.source_state.as_str()) {
            return Ok(());
        }
        self.source.begin(Op::Scan(v1::Scan { everything: true })).await?;
        let done = loop {
            let frame = self.source.next().await?;
            if frame.kind == Kind::Reply {
                match self.source.decode_reply(&frame)? {
                    Answer::ScanDone(done) => break done,
                    _ => return Err(self.source.unexpected("scan").into()),
                }
            }
        };
        if done.snapshot == self.snapshot {
            return Ok(());
        }
        // The route may or may not lead to the target; make that certain.
        self.run_route_command(&self.change()).await?;
        Err(Trouble::Stragglers)
    }

    async fn copy(&mut self) -> Result<(), Trouble> {
        self.record_both(state::COPYING).await?;
        while !self.ready {
            self.stop_if_asked()?;
            self.report.rounds += 1;
            let began = Instant::now();
            let wants = self.compare(false).await?;
            let nothing = wants.wants.is_empty() && wants.user_files.is_empty();
            self.monitor.event(monitor::Event::Round {
                number: self.report.rounds,
                messages: wants.messages,
                bytes: wants.bytes,
            });
            self.send(wants, true).await?;
            self.judge()?;
            if self.report.rounds == 1 {
                self.rehearse().await?;
            }
            let good = nothing || began.elapsed() < self.options.max_freeze / READY_PART;
            self.ready = good || self.report.rounds >= self.options.max_rounds;
        }
        self.stop_if_asked()
    }

    async fn rehearse(&mut self) -> Result<(), Trouble> {
        let op = Op::Rehearse(v1::Rehearse { skipped: self.skipped() });
        let Answer::Rehearsed(rehearsed) = self.target.call(op).await? else {
            return Err(self.target.unexpected("rehearsal").into());
        };
        for text in &rehearsed.notes {
            self.note(crate::wire::printable(text));
        }
        self.problems(Server::Target, &rehearsed.problems);
        self.judge()
    }

    async fn freeze(&mut self) -> Result<(), Trouble> {
        let limit = self.options.max_freeze;
        let op = Op::Freeze(v1::Freeze {
            limit_ms: limit.as_millis() as u32,
            wait_ms: limit.as_millis() as u32,
        });
        let asked = Instant::now();
        match self.source.call(op).await? {
            Answer::Frozen(frozen) => {
                // The source's own clock began between asking and answering.
                self.frozen_at = Some(asked + Duration::from_millis(u64::from(frozen.waited_ms)));
                Ok(())
            }
            _ => Err(self.source.unexpected("freeze").into()),
        }
    }

    async fn settle(&mut self) -> Result<(), Trouble> {
        let wants = self.compare(true).await?;
        self.send(wants, false).await?;
        self.judge()?;
        let op = Op::Settle(v1::Settle { skipped: self.skipped() });
        let Answer::Prepared(prepared) = self.target.call(op).await? else {
            return Err(self.target.unexpected("comparison").into());
        };
        self.report.records_compared = prepared.records_compared;
        self.problems(Server::Target, &prepared.problems);
        self.judge()?;
        self.stop_if_asked()?;
        self.record(Server::Source, state::PUBLISHING).await?;
        if self.left() < PUBLISH_RESERVE {
            return Err(Trouble::Limit(self.options.max_freeze));
        }
        Ok(())
    }

    async fn publish(&mut self) -> Result<(), Trouble> {
        match self.target.call(Op::Publish(v1::Publish {})).await? {
            Answer::Published(published) => {
                self.report.publish_ms = published.locked_us as f64 / 1000.0;
                Ok(())
            }
            _ => Err(self.target.unexpected("publication").into()),
        }
    }

    async fn route(&mut self) -> Result<(), Trouble> {
        if self.source_state.is_empty() {
            self.record_both(state::ROUTING).await?;
        }
        self.run_route_command(&self.change()).await?;
        fault::point(Point::RouteChanged);
        if [state::RETIRING, state::RETIRED].contains(&self.source_state.as_str()) {
            return Ok(());
        }
        self.record_both(state::ROUTED).await
    }

    async fn run_route_command(&self, change: &route::Change) -> Result<(), Trouble> {
        match &self.options.route_command {
            Some(command) => Ok(change.run(command, self.options.route_timeout).await?),
            None => Ok(()),
        }
    }

    /// Takes the user off the target, in two steps: first the target makes sure
    /// that nothing has changed there, and keeps everybody waiting; then the
    /// route is restored; then everything is taken back.
    async fn unpublish(&mut self) -> Result<(), Trouble> {
        self.withdraw(false).await?;
        self.run_route_command(&self.change().restored()).await?;
        // The route is certain again: a crash from here on goes back.
        self.record(Server::Source, state::COPYING).await?;
        self.withdraw(true).await
    }

    async fn withdraw(&mut self, finally: bool) -> Result<(), Trouble> {
        match self.target.call(Op::Unpublish(v1::Unpublish { hold: !finally })).await? {
            Answer::Unpublished(_) => Ok(()),
            _ => Err(self.target.unexpected("withdrawal").into()),
        }
    }

    async fn retire(&mut self) -> Result<(), Trouble> {
        let op = Op::Retire(v1::Retire { server: self.report.target.clone() });
        let Answer::Retired(retired) = self.source.call(op).await? else {
            return Err(self.source.unexpected("retirement").into());
        };
        retired.notes.iter().for_each(|text| self.note(crate::wire::printable(text)));
        Ok(())
    }

    async fn thaw(&mut self) -> Result<(), Trouble> {
        let Answer::Thawed(thawed) = self.source.call(Op::Thaw(v1::Thaw {})).await? else {
            return Err(self.source.unexpected("thaw").into());
        };
        self.report.freeze_ms = thawed.frozen_us as f64 / 1000.0;
        self.frozen_at = None;
        Ok(())
    }

    /// Ends the move on both servers, or lets the source go, and says so.
    async fn conclude(&mut self, phase: Phase) {
        let dry = self.options.dry_run;
        match phase {
            Phase::Done => {
                for server in [Server::Target, Server::Source] {
                    if server == Server::Source {
                        fault::point(Point::TargetFinished);
                    }
                    if let Err(e) = self.finish(server, true).await {
                        self.note(format!("tidying up failed, which harms nobody: {e}"));
                    }
                }
                let skipped =
                    self.report.problems.iter().any(|p| p.severity == Severity::BadMessage);
                self.report.outcome =
                    if skipped { Outcome::DoneWithSkipped } else { Outcome::Done };
                self.report.failure = None;
                self.report.differences = DIFFERENCES.map(str::to_owned).into();
            }
            Phase::CommitUnknown | Phase::Routed if self.broken => {
                self.report.outcome = Outcome::Resumable;
            }
            Phase::CommitUnknown | Phase::Routed => {
                // A connection that hangs must not keep the report from the admin.
                let _ = tokio::time::timeout(GRACE, self.thaw()).await;
                self.report.outcome = Outcome::Resumable;
            }
            _ if self.report.outcome == Outcome::Planned => {}
            // A connection in the middle of something ends with this process,
            // and with it the freeze.
            _ if self.broken => {}
            _ => {
                if self.frozen_at.is_some() {
                    let _ = tokio::time::timeout(GRACE, self.thaw()).await;
                }
                if !dry && self.report.outcome == Outcome::Refused && self.report.rounds == 0 {
                    for server in [Server::Target, Server::Source] {
                        let _ = tokio::time::timeout(GRACE, self.finish(server, false)).await;
                    }
                }
            }
        }
        // A push that fails early must not deny what an earlier one has done.
        let denied = phase == Phase::Failed && self.route_begun;
        if denied {
            self.report.outcome = Outcome::Resumable;
        }
        self.report.settle_serving(if denied { Phase::Routed } else { phase });
        self.report.next_steps = self.next_steps();
    }

    // ---- pieces of the phases -----------------------------------------------

    /// Has the target compare what the source has now with what it holds.
    async fn compare(&mut self, last: bool) -> Result<v1::Wants, Trouble> {
        self.source.begin(Op::Scan(v1::Scan { everything: false })).await?;
        self.target.begin(Op::Offer(v1::Offer { r#final: last })).await?;
        let done = loop {
            let frame = self.source.next().await?;
            match frame.kind {
                Kind::Part => self.target.relay(Kind::Part, frame.payload).await?,
                Kind::Reply => match self.source.decode_reply(&frame) {
                    Ok(Answer::ScanDone(done)) => break done,
                    Ok(_) => return Err(self.source.unexpected("scan").into()),
                    Err(error) => {
                        // End the target's half too, so that it stays usable.
                        self.target.part(None).await?;
                        let _ = self.target.reply().await;
                        return Err(error.into());
                    }
                },
                _ => return Err(self.source.unexpected("scan").into()),
            }
        };
        self.count(&done.totals.unwrap_or_default());
        self.problems(Server::Source, &done.problems);
        self.target.part(Some(v1::part::Part::ScanDone(done))).await?;
        self.target.part(None).await?;
        match self.target.reply().await? {
            Answer::Wants(wants) => Ok(wants),
            _ => Err(self.target.unexpected("list of what is wanted").into()),
        }
    }

    /// Sends what the target wants.
    async fn send(&mut self, wants: v1::Wants, durable: bool) -> Result<(), Trouble> {
        self.target.begin(Op::Store(v1::Store { durable })).await?;
        self.source
            .begin(Op::SendItems(v1::SendItems {
                wants: wants.wants,
                user_files: wants.user_files,
                rate_limit: self.options.rate_limit,
            }))
            .await?;
        let (mut sent, mut received) = (0, 0);
        let done = loop {
            if self.frozen_at.is_none() {
                self.stop_if_asked()?;
            }
            let frame = self.source.next().await?;
            match frame.kind {
                Kind::Data if !frame.payload.is_empty() => {
                    self.progress(frame.payload.clone());
                    sent += frame.payload.len() as u64;
                    self.target.relay(Kind::Data, frame.payload).await?;
                    while sent.saturating_sub(received) > UNDER_WAY {
                        received = self.receipt().await?;
                    }
                }
                Kind::Reply => break self.source.decode_reply(&frame),
                _ => return Err(self.source.unexpected("bulk data").into()),
            }
        };
        self.target.relay(Kind::Data, bytes::Bytes::new()).await?;
        let stored = loop {
            let frame = self.target.next().await?;
            if frame.kind == Kind::Reply {
                break self.target.decode_reply(&frame)?;
            }
        };
        let Answer::SendDone(done) = done? else {
            return Err(self.source.unexpected("end of bulk data").into());
        };
        let Answer::Stored(stored) = stored else {
            return Err(self.target.unexpected("receipt").into());
        };
        self.problems(Server::Source, &done.problems);
        self.problems(Server::Target, &stored.problems);
        Ok(())
    }

    /// How much the target has taken of what is being sent, in bytes.
    async fn receipt(&mut self) -> Result<u64, Trouble> {
        let frame = self.target.next().await?;
        match (frame.kind, frame.decode::<v1::Part>("receipt").ok().and_then(|p| p.part)) {
            (Kind::Part, Some(v1::part::Part::Received(received))) => Ok(received.bytes),
            _ => Err(self.target.unexpected("receipt").into()),
        }
    }

    fn progress(&mut self, mut payload: bytes::Bytes) {
        while let Ok(chunk) = Chunk::decode(&mut payload) {
            self.report.bytes_sent += chunk.bytes.len() as u64;
            let message = i32::from(chunk.kind) == i32::from(v1::FileKind::Message);
            self.report.messages_sent += u64::from(message && chunk.last && !chunk.gone);
        }
        self.monitor.event(monitor::Event::Progress {
            messages: self.report.messages_sent,
            bytes: self.report.bytes_sent,
        });
    }

    async fn record(&mut self, server: Server, state: &str) -> Result<(), Trouble> {
        let route_command = self.options.route_command.is_some();
        let op = Op::Record(v1::Record { state: state.into(), route_command });
        let peer = self.peer(server);
        match peer.call(op).await? {
            Answer::Recorded(_) => Ok(()),
            _ => Err(peer.unexpected("receipt of the journal").into()),
        }
    }

    async fn record_both(&mut self, state: &str) -> Result<(), Trouble> {
        self.record(Server::Target, state).await?;
        self.record(Server::Source, state).await
    }

    async fn finish(&mut self, server: Server, done: bool) -> Result<(), Trouble> {
        match self.peer(server).call(Op::Finish(v1::Finish { done })).await? {
            Answer::Finished(finished) => {
                finished.notes.iter().for_each(|text| self.note(crate::wire::printable(text)));
                Ok(())
            }
            _ => Err(self.peer(server).unexpected("end").into()),
        }
    }

    fn peer(&mut self, server: Server) -> &mut Peer {
        match server {
            Server::Source => &mut self.source,
            Server::Target => &mut self.target,
        }
    }

    fn change(&self) -> route::Change {
        let place =
            |server: &str, host: &str| route::Place { server: server.into(), host: host.into() };
        route::Change {
            schema: report::SCHEMA,
            move_id: self.report.move_id.clone(),
            user: self.identity.userid.clone(),
            mailbox: self.report.mailbox.clone(),
            old: place(&self.report.source, &self.source.welcome.hostname),
            new: place(&self.report.target, &self.options.destination),
            action: "route",
        }
    }

    /// What is left of the freeze limit.
    fn left(&self) -> Duration {
        let limit = self.options.max_freeze;
        self.frozen_at.map_or(limit, |at| limit.saturating_sub(at.elapsed()))
    }

    fn stop_if_asked(&self) -> Result<(), Trouble> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Trouble::Interrupted) } else { Ok(()) }
    }

    fn skipped(&self) -> Vec<v1::Problem> {
        self.bad_messages.clone()
    }

    // ---- what is told ---------------------------------------------------------

    fn count(&mut self, totals: &v1::Totals) {
        self.report.mailboxes = totals.mailboxes;
        self.report.messages = totals.messages;
        self.report.bytes = totals.bytes;
    }

    fn problems(&mut self, server: Server, problems: &[v1::Problem]) {
        let name = match server {
            Server::Source => self.report.source.clone(),
            Server::Target => self.report.target.clone(),
        };
        for problem in problems {
            let wire = problem;
            let problem = Problem::from_wire(&name, wire);
            if !self.report.problems.contains(&problem) {
                if problem.severity == Severity::BadMessage {
                    self.bad_messages.push(wire.clone());
                }
                self.monitor.event(monitor::Event::Problem(problem.clone()));
                self.report.problems.push(problem);
            }
        }
    }

    fn note(&mut self, text: String) {
        if !self.report.notes.contains(&text) {
            self.monitor.event(monitor::Event::Note { text: text.clone() });
            self.report.notes.push(text);
        }
    }

    /// Decides whether what has been found lets the move go on.
    fn judge(&mut self) -> Result<(), Trouble> {
        let count =
            |severity| self.report.problems.iter().filter(|p| p.severity == severity).count();
        let refusals = count(Severity::Refuse);
        let bad = if self.options.skip_bad { 0 } else { count(Severity::BadMessage) };
        if refusals == 0 && bad == 0 {
            return Ok(());
        }
        let mut text = Vec::new();
        if refusals > 0 {
            text.push(format!("{refusals} problem(s) stand against the move"));
        }
        if bad > 0 {
            text.push(format!(
                "{bad} message(s) cannot be copied; mend them, or go on without them by \
                 --bad-messages=skip"
            ));
        }
        Err(Trouble::Refused(text.join("; ")))
    }

    fn refuse(&mut self, code: &str, text: String, advice: &str) -> Trouble {
        let problem = v1::Problem {
            severity: v1::problem::Severity::Refuse.into(),
            code: code.into(),
            text,
            advice: advice.into(),
            ..v1::Problem::default()
        };
        self.problems(Server::Source, &[problem]);
        Trouble::Refused("1 problem(s) stand against the move".into())
    }

    fn remember(&mut self, phase: Phase, trouble: &Trouble) {
        self.broken |= trouble.breaks_connections();
        let guidance = match trouble {
            Trouble::Peer(e) => e.guidance(),
            _ => None,
        };
        let (state, advice) = guidance.unwrap_or(match phase {
            Phase::Refreezing if matches!(trouble, Trouble::Stragglers) => (
                "the target serves the user; the source has changes that the target has not",
                "carry them over by hand, then remove the source's mailboxes; this version of \
                 mbcopy cannot",
            ),
            Phase::Refreezing | Phase::Retiring | Phase::Thawing => (
                "the target serves the user; the source's copy is not retired yet",
                "run the same push again",
            ),
            Phase::Publishing | Phase::Unpublishing => (
                "it is not known whether the target has committed; the source serves the user \
                 and the route leads to it",
                "run the same push again: it asks the target",
            ),
            _ => (
                "the source serves the user and is unchanged",
                "mend the cause and run the same push again; what was copied is kept",
            ),
        });
        self.report.failure =
            Some(Failure { text: trouble.to_string(), state: state.into(), advice: advice.into() });
        self.report.outcome = match trouble {
            Trouble::Refused(_) => Outcome::Refused,
            Trouble::Interrupted => Outcome::Interrupted,
            Trouble::Peer(e) => match e.kind() {
                Some(v1::failure::Kind::Refused) => Outcome::Refused,
                Some(v1::failure::Kind::Busy) => Outcome::Held,
                _ => Outcome::Failed,
            },
            Trouble::Silence(_) => Outcome::Resumable,
            _ => Outcome::Failed,
        };
    }

    fn next_steps(&self) -> Vec<String> {
        match self.report.outcome {
            Outcome::Done | Outcome::DoneWithSkipped => Vec::new(),
            _ => vec![self.options.command.clone()],
        }
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
