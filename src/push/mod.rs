//! The coordinator: moves one user by driving the two agents through the
//! phases of [`crate::moves::phase`].
//!
//! Everything that a step may leave half done is the business of the agent
//! that does it, and in its journal. The coordinator holds no state that
//! matters: it can die at any point.

pub mod abort;
pub mod bandwidth;
mod ending;
mod exchange;
mod hold;
pub mod lanes;
pub mod local;
mod memory;
pub mod monitor;
pub mod peer;
mod phases;
pub mod report;
pub mod route;
mod share;
mod stragglers;
mod trouble;
mod window;

use crate::fault::{self, Point};
use crate::moves::journal::state;
use crate::moves::verdict::route_is_changed;
use crate::moves::{Event, Phase};
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use bandwidth::Bandwidth;
use monitor::{Monitor, PhaseName};
use peer::Peer;
pub use phases::plan_ahead;
use report::{Failure, Outcome, Report};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use trouble::Trouble;

/// What the admin asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The top mailbox, as typed.
    pub mailbox: String,
    /// The destination, as typed, for messages and for the route command.
    pub destination: String,
    /// The partition on the target; `None`: as the source's is named.
    pub partition: Option<String>,
    /// Partitions of the source, and what becomes of them on the target.
    pub partition_map: Vec<(String, String)>,
    /// The source is a disk on which nothing runs.
    pub offline: bool,
    /// Only plan.
    pub dry_run: bool,
    /// Stop before the freeze, with all that there is copied.
    pub copy_only: bool,
    /// Hold a ready move before its freeze as long as this file exists.
    pub postpone_file: Option<PathBuf>,
    /// Go on without messages that cannot be read.
    pub skip_bad: bool,
    /// Longest freeze.
    pub max_freeze: Duration,
    /// In a Murder: how long after the change of the list clients who still come to the old
    /// backend are kept waiting.
    pub frontend_lag: Duration,
    /// Most rounds of copying before a freeze is tried all the same.
    pub max_rounds: u32,
    /// Freezes that are tried before giving up.
    pub freeze_attempts: u32,
    /// The admin's route command.
    pub route_command: Option<String>,
    /// How long the route command may take.
    pub route_timeout: Duration,
    /// The admin's command that has the MTA hold mail, before each freeze.
    pub freeze_command: Option<String>,
    /// The one that lets it flow again.
    pub thaw_command: Option<String>,
    /// How long either of them may take.
    pub hold_timeout: Duration,
    /// What the source does with those who come after the move.
    pub old_server: v1::OldServer,
    /// Bytes per second; 0: as fast as it goes.
    pub rate_limit: u64,
    /// That limit, kept together with other processes.
    pub line: Option<Arc<Bandwidth>>,
    /// Whether other users of both servers go first, while this one is not frozen.
    pub nice: bool,
    /// The run with whose users messages are shared on the target; empty: with nobody.
    pub share: String,
    /// The command that the admin typed, to be typed again.
    pub command: String,
}

/// Set when the admin wants to stop; looked at wherever stopping is safe.
pub type Interrupt = Arc<AtomicBool>;

/// How long an agent may take beyond the freeze limit before its connection is
/// given up, so that nobody waits for a stopped machine. What is done under the
/// freeze needs some time on a slow disk even when the limit is nearly over.
const GRACE: Duration = Duration::from_secs(10);

/// Longest freeze of a source from which the route command has led everybody away:
/// whoever still comes there is late, and has to be sent away all the same.
const LATE_LIMIT: Duration = Duration::from_secs(30);

/// Longest time that the last steps may take with a source on which nothing runs.
const OFFLINE_LIMIT: Duration = Duration::from_secs(24 * 3600);

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
        if matches!(push.report.outcome, Outcome::Planned | Outcome::Copied) {
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
            if let Err(trouble) = push.release_mail().await {
                push.remember(Phase::Copying, &trouble);
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

/// A report of a push that ended before both agents answered. `source` is asked,
/// where it is there, whether an earlier push has changed the route.
pub async fn stillborn(options: &Options, source: Option<Peer>, failure: Failure) -> Report {
    let name = source.as_ref().map_or("this server", |s| &s.welcome.servername).to_owned();
    let mut report = blank(options, &name, &options.destination);
    report.failure = Some(failure);
    let mut phase = Phase::Failed;
    if let Some(mut source) = source {
        if source.is_asked()
            && let Ok(Answer::SourcePlan(plan)) = source.reply().await
        {
            report.notes.extend(hold::release_alone(options, &mut source, &plan).await);
            if plan.state == state::PLANNED && !options.dry_run {
                // It was to be a new move, of which nobody needs to know.
                let _ = source.call(Op::Finish(v1::Finish { done: false })).await;
            }
        }
        if was_routed(&mut source, &options.mailbox).await {
            phase = Phase::Routed;
            report.outcome = Outcome::Resumable;
        }
    }
    report.settle_serving(phase, options.offline);
    report
}

/// Whether the source's journal says that an earlier push has changed the route.
async fn was_routed(source: &mut Peer, mailbox: &str) -> bool {
    let op = Op::ListMoves(v1::ListMoves { mailbox: mailbox.to_owned() });
    match source.call(op).await {
        Ok(Answer::Moves(moves)) => {
            moves.moves.last().is_some_and(|last| route_is_changed(&last.state))
        }
        _ => false,
    }
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
        messages_shared: 0,
        rounds: 0,
        freeze_ms: 0.0,
        publish_ms: 0.0,
        total_ms: 0.0,
        records_compared: 0,
        carried: None,
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
    /// Whether no earlier push has begun this move.
    fresh: bool,
    /// Whether the route is restored; the target may defer those who are on their way to it.
    recalled: bool,
    /// Whether the target's Cyrus has accepted what was copied.
    rehearsed: bool,
    /// Whether a connection may be in the middle of something.
    broken: bool,
    /// Bytes of messages that were sent, for the progress.
    message_bytes: u64,
    /// Messages that cannot be copied, as the agents named them.
    bad_messages: Vec<v1::Problem>,
    /// Whether an earlier push has begun to change the route.
    route_begun: bool,
    /// Whether this push goes forward although the source's journal says that the route
    /// leads there, and has not changed it yet.
    led_here: bool,
    /// Whether the route command has run again, and leads to the target for certain.
    led_away: bool,
    /// How far an earlier push had come, if its route was begun.
    source_state: String,
    /// What the user was when an earlier push had him published.
    snapshot: bytes::Bytes,
    /// Whether the source is a disk on which nothing runs.
    offline: bool,
    /// Whether the route is changed by mupdate.
    murder: bool,
    /// Whether a backend's start has taken the source's copy away meanwhile.
    taken_away: bool,
    /// Whether the thaw command is due.
    mail_held: bool,
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
            fresh: false,
            recalled: false,
            rehearsed: false,
            broken: false,
            message_bytes: 0,
            bad_messages: Vec::new(),
            route_begun: false,
            led_here: false,
            led_away: false,
            source_state: String::new(),
            snapshot: bytes::Bytes::new(),
            offline: options.offline,
            murder: false,
            taken_away: false,
            mail_held: false,
        }
    }

    async fn perform(&mut self, phase: Phase) -> Result<(), Trouble> {
        // The source keeps the freeze limit by itself. A peer that stops
        // answering must not keep the admin waiting much longer than that.
        let patience = match phase {
            Phase::Routing | Phase::Unpublishing => Some(self.patience_of_route()),
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

    /// How long the freeze may last; where nobody is frozen, as long as it takes.
    fn limit(&self) -> Duration {
        if self.offline {
            OFFLINE_LIMIT
        } else if self.led_away {
            self.options.max_freeze.max(LATE_LIMIT)
        } else {
            self.options.max_freeze
        }
    }

    /// What is left of the freeze limit.
    fn left(&self) -> Duration {
        let limit = self.limit();
        self.frozen_at.map_or(limit, |at| limit.saturating_sub(at.elapsed()))
    }

    /// How long a change of the route, to and fro, may take.
    fn patience_of_route(&self) -> Duration {
        self.options.route_timeout * 2 + GRACE
    }

    fn stop_if_asked(&self) -> Result<(), Trouble> {
        if self.interrupt.load(Ordering::Relaxed) { Err(Trouble::Interrupted) } else { Ok(()) }
    }

    fn skipped(&self) -> Vec<v1::Problem> {
        self.bad_messages.clone()
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
