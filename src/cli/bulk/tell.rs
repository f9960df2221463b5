//! What people, programs and Prometheus are told of a run that goes on.

use super::{Failure, How};
use crate::bulk::metrics;
use crate::bulk::run::{Event, Finish, Watcher};
use crate::bulk::schedule::{End, Reason};
use crate::bulk::status::Status;
use crate::bulk::store::Store;
use crate::cli::Common;
use crate::cli::log::Syslog;
use crate::moves::journal::now_ms;
use crate::push::report::SCHEMA;
use indicatif::{HumanBytes, HumanCount};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How often metrics are taken.
const METRICS_EVERY: Duration = Duration::from_secs(5);

/// Tells people, programs and the system's log.
pub(super) struct Teller {
    json: bool,
    quiet: bool,
    verbose: bool,
    syslog: Syslog,
    pub(super) metrics: Option<Metrics>,
    /// For the metrics.
    pub(super) store: Option<Store>,
}

impl Teller {
    pub(super) fn new(common: &Common, json: bool) -> Self {
        Self {
            json,
            quiet: common.quiet,
            verbose: common.verbose > 0,
            syslog: Syslog::open(),
            metrics: None,
            store: None,
        }
    }

    pub(super) fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    fn document(&self, mut document: serde_json::Value) {
        if self.json {
            document["schema"] = SCHEMA.into();
            let _ = writeln!(std::io::stdout(), "{document}");
        }
    }

    /// The store is away.
    pub(super) fn away(&self, error: &dyn std::fmt::Display) {
        let reason = error.to_string();
        self.document(json!({ "event": "away", "reason": reason }));
        self.say(&format!("{reason}\n  next: it is tried again"));
    }

    pub(super) fn metrics_now(&mut self, status: &Status) {
        if let Some(metrics) = &mut self.metrics
            && let Err(error) = metrics.set(status)
        {
            let _ = writeln!(std::io::stderr(), "mbcopy: the metrics cannot be written: {error}");
        }
    }

    /// The last line, and for programs the last document.
    pub(super) fn summary(&mut self, finish: Finish, status: &Status, took: Duration, code: u8) {
        let why = match finish {
            Finish::Ended(End::Over) => "over",
            Finish::Ended(End::Drained) => "drained",
            Finish::Ended(End::Failures) => "too many users are in trouble",
            Finish::Interrupted => "interrupted",
            Finish::Abandoned => "interrupted; what was under way goes on by itself",
        };
        self.syslog.info(&format!("bulk run={} end={why:?} {}", status.run, status.line()));
        self.document(json!({
            "event": "summary",
            "end": why,
            "exit_code": code,
            "took_ms": took.as_millis() as u64,
            "status": status,
        }));
        if self.json {
            return;
        }
        let run = &status.run;
        if status.troubled > 0 {
            self.say(&format!(
                "why, and what to do: mbcopy bulk report --run {run}\n\
                               to try them again: mbcopy bulk retry-failed --run {run}"
            ));
        } else if status.ended < status.users {
            self.say(&format!("to go on: the same command, or mbcopy bulk resume --run {run}"));
        }
        let _ = writeln!(std::io::stdout(), "{}; {why}", status.line());
    }
}

impl Watcher for Teller {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Found(job) => {
                self.document(
                    json!({ "event": "found", "mailbox": job.mailbox, "attempt": job.attempt }),
                );
                self.say(&format!("{}: is under way already", job.mailbox));
            }
            Event::Begun(job) => {
                self.document(json!({
                    "event": "begun", "mailbox": job.mailbox, "destination": job.place,
                    "source": job.source, "task": job.task, "attempt": job.attempt,
                }));
                if self.verbose {
                    self.say(&format!("{}: {} to {}", job.mailbox, job.task.word(), job.place));
                }
            }
            Event::Ended(job, state, ended) => {
                self.document(json!({
                    "event": "ended", "mailbox": job.mailbox, "source": job.source,
                    "destination": job.place,
                    "task": job.task, "attempt": job.attempt, "outcome": ended.outcome,
                    "state": state, "serving": ended.serving, "messages": ended.size.1,
                    "bytes": ended.size.2, "messages_sent": ended.sent.0,
                    "bytes_sent": ended.sent.1, "freeze_ms": ended.freeze_ms,
                    "total_ms": ended.total_ms, "reason": ended.text, "advice": ended.advice,
                }));
                if !ended.text.is_empty() {
                    self.syslog.error(&format!(
                        "bulk mailbox={} state={} reason={:?}",
                        job.mailbox,
                        state.word(),
                        ended.text
                    ));
                    if !self.json {
                        let _ = writeln!(
                            std::io::stderr(),
                            "{}: {}: {}",
                            job.mailbox,
                            state.word(),
                            ended.text
                        );
                    }
                } else {
                    self.say(&format!(
                        "{}: {} ({} messages, {}, frozen {:.0} ms)",
                        job.mailbox,
                        state.word(),
                        HumanCount(ended.size.1),
                        HumanBytes(ended.size.2),
                        ended.freeze_ms
                    ));
                }
            }
            Event::Unknown(pace) => {
                self.document(json!({
                    "event": "unknown", "target": pace.target, "reason": pace.trouble,
                }));
                self.say(&format!("{}: not known how it fares: {}", pace.target, pace.trouble));
            }
            Event::Waiting(reason, _) => {
                self.document(json!({ "event": "waiting", "reason": reason.text() }));
                if reason != Reason::Busy {
                    self.say(reason.text());
                }
            }
            Event::Away(error) => self.away(error),
            Event::TakenOver(users) => {
                self.document(json!({ "event": "taken-over", "users": users }));
                self.say(&format!("{users} users of coordinators that are gone are taken over"));
            }
            Event::Tick => {
                let due = self.metrics.as_ref().is_some_and(Metrics::is_due);
                if let Some(store) = self.store.as_ref().filter(|_| due)
                    && let Ok(status) = Status::of(store, now_ms())
                {
                    self.metrics_now(&status);
                }
            }
        }
    }
}

/// Where metrics go.
pub(super) struct Metrics {
    server: Option<metrics::Server>,
    file: Option<PathBuf>,
    taken: Option<Instant>,
}

impl Metrics {
    pub(super) fn start(how: &How) -> Result<Option<Self>, Failure> {
        if how.metrics.is_none() && how.metrics_file.is_none() {
            return Ok(None);
        }
        let server = how.metrics.as_ref().map(|address| {
            metrics::Server::start(address).map_err(|e| Failure::usage(format!("{address}: {e}")))
        });
        let server = server.transpose()?;
        if let Some(server) = &server {
            tracing::info!("metrics at {}", server.address());
        }
        Ok(Some(Self { server, file: how.metrics_file.clone(), taken: None }))
    }

    fn is_due(&self) -> bool {
        self.taken.is_none_or(|at| at.elapsed() >= METRICS_EVERY)
    }

    fn set(&mut self, status: &Status) -> std::io::Result<()> {
        self.taken = Some(Instant::now());
        let text = metrics::text(status);
        let written = self.file.as_ref().map_or(Ok(()), |file| metrics::write(file, &text));
        if let Some(server) = &self.server {
            server.set(text);
        }
        written
    }
}
