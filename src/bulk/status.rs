//! How far a run is: one document, of which screens and metrics are views.

use super::attempt::{Progress, progress};
use super::pulse::Pace;
use super::state::{State, Task};
use super::store::{Count, Store, StoreError, User};
use crate::push::report::SCHEMA;
use serde::Serialize;

/// Over how long the rate is taken, in milliseconds.
const RATE_OVER: i64 = 15 * 60_000;

/// Users in trouble that are named.
const TROUBLES: u32 = 8;

/// How far a run is.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The version of this document.
    pub schema: u32,
    /// The run.
    pub run: String,
    /// What the pass at hand does: copy, move, cutover.
    pub mode: &'static str,
    /// What the admin has asked for: go, paused, draining.
    pub control: &'static str,
    /// Whether a coordinator is at work.
    pub coordinated: bool,
    /// Users in all.
    pub users: u64,
    /// Those for whom nothing more is to be done in this pass.
    pub ended: u64,
    /// Those in trouble.
    pub troubled: u64,
    /// By state.
    pub states: Vec<Count>,
    /// Users in an hour, lately; zero: not known.
    pub users_per_hour: f64,
    /// Bytes of users in a second, lately.
    pub bytes_per_second: f64,
    /// When it may be over: milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_unix_ms: Option<i64>,
    /// How the targets fare, where that is watched.
    pub paces: Vec<Pace>,
    /// Why nothing begins just now, as each coordinator says that begins nothing.
    pub waits: Vec<String>,
    /// What is under way.
    pub current: Vec<Current>,
    /// Who got into trouble last, or is to be tried again.
    pub troubles: Vec<User>,
    /// When this was: milliseconds since 1970.
    pub at_unix_ms: i64,
}

/// An attempt that is under way.
#[derive(Debug, Clone, Serialize)]
pub struct Current {
    /// The user's top mailbox.
    pub mailbox: String,
    /// The server that has him, by name.
    pub source: String,
    /// Where to.
    pub destination: String,
    /// What is done.
    pub task: Task,
    /// For how long, in milliseconds.
    pub since_ms: i64,
    /// How far it is.
    #[serde(flatten)]
    pub progress: Progress,
}

impl Status {
    /// Looks at a run; `now` is in milliseconds since 1970.
    pub fn of(store: &Store, now: i64) -> Result<Self, StoreError> {
        let states = store.counts()?;
        let sum = |which: &dyn Fn(State) -> bool| -> u64 {
            states.iter().filter(|count| which(count.state)).map(|count| count.users).sum()
        };
        let (users, ended) = (sum(&|_| true), sum(&State::is_end));
        let (done, bytes, first) = store.done_since(now - RATE_OVER)?;
        // A run that has just begun has not lasted as long.
        let seconds = (now - first.unwrap_or(now).max(now - RATE_OVER)).max(1000) as f64 / 1000.0;
        let rate = done as f64 / seconds;
        let left = (users - ended) as f64;
        let end = (rate > 0.0 && left > 0.0).then(|| now + (left / rate * 1000.0) as i64);
        let outputs = store.attempts();
        let current = store.under_way()?.into_iter().map(|job| Current {
            since_ms: (now - job.started).max(0),
            progress: progress(&outputs, job.attempt),
            mailbox: job.mailbox,
            source: job.source,
            destination: job.place,
            task: job.task,
        });
        Ok(Self {
            schema: SCHEMA,
            run: store.name().to_owned(),
            mode: store.mode()?.map_or("none", |mode| mode.word()),
            control: store.control()?.word(),
            coordinated: store.is_coordinated()?,
            users,
            ended,
            troubled: sum(&State::is_trouble),
            users_per_hour: rate * 3600.0,
            bytes_per_second: bytes as f64 / seconds,
            end_unix_ms: end,
            paces: store.paces()?,
            waits: store.waits()?,
            current: current.collect(),
            troubles: store.last_troubles(TROUBLES)?,
            states,
            at_unix_ms: now,
        })
    }

    /// Users of a state.
    pub fn in_state(&self, state: State) -> u64 {
        self.states.iter().find(|count| count.state == state).map_or(0, |count| count.users)
    }

    /// The run in one line: how many of how many, and what is wrong.
    pub fn line(&self) -> String {
        let counts =
            self.states.iter().map(|count| format!("{} {}", count.users, count.state.word()));
        let counts: Vec<String> = counts.collect();
        format!("{}: {} users: {}", self.run, self.users, counts.join(", "))
    }
}
