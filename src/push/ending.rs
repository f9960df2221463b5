//! What is told of a move, while it goes on and when it has ended.

use super::peer::Peer;
use super::report::{Failure, Outcome, Problem, Severity};
use super::trouble::Trouble;
use super::{GRACE, Push, monitor};
use crate::cyrus::release::{self, Release};
use crate::fault::{self, Point};
use crate::moves::{Phase, Server};
use crate::wire::v1;

impl Push<'_> {
    /// What Cyrus itself makes different on the other server, by name.
    fn differences(&self) -> Vec<String> {
        let release = |peer: &Peer| Release::parse(&peer.welcome.cyrus_version);
        let target = release(&self.target).unwrap_or_else(|| Release::of((3, 6)));
        // Of a disk on which nothing runs nobody knows what wrote it.
        let source = release(&self.source).unwrap_or(target);
        let mut differences = release::differences(source, target);
        let [before, after] = [&self.source, &self.target].map(|peer| peer.welcome.conversations);
        differences.extend((before != after).then_some("conversations"));
        differences.into_iter().map(str::to_owned).collect()
    }

    /// Ends the move on both servers, or lets the source go, and says so.
    pub(super) async fn conclude(&mut self, phase: Phase) {
        let dry = self.options.dry_run;
        match phase {
            Phase::Done => {
                self.report.failure = None;
                let mut ended = self.release_mail().await;
                if ended.is_ok() {
                    ended = self.finish(Server::Target, true).await;
                }
                fault::point(Point::TargetFinished);
                if ended.is_ok() {
                    ended = self.finish(Server::Source, true).await;
                }
                let left = self.report.carried.is_some_and(|carried| carried.left > 0);
                let skipped =
                    left || self.report.problems.iter().any(|p| p.severity == Severity::BadMessage);
                self.report.outcome =
                    if skipped { Outcome::DoneWithSkipped } else { Outcome::Done };
                // The source still knows of the move: it has to tell the target to end it.
                if let Err(trouble) = ended {
                    self.report.outcome = Outcome::Resumable;
                    self.report.failure = Some(Failure {
                        text: format!("the move could not be ended: {trouble}"),
                        state: "the target serves the user; both servers keep what they need to \
                                end the move"
                            .into(),
                        advice: "run the same push again: it only tidies up".into(),
                    });
                }
                self.report.differences = self.differences();
            }
            Phase::CommitUnknown | Phase::Routed if self.broken => {
                self.let_mail_flow().await;
                self.report.outcome = Outcome::Resumable;
            }
            Phase::CommitUnknown | Phase::Routed => {
                // A connection that hangs must not keep the report from the admin.
                let _ = tokio::time::timeout(GRACE, self.thaw()).await;
                self.let_mail_flow().await;
                self.report.outcome = Outcome::Resumable;
            }
            _ if matches!(self.report.outcome, Outcome::Planned | Outcome::Copied) => {}
            // A connection in the middle of something ends with this process,
            // and with it the freeze.
            _ if self.broken => self.let_mail_flow().await,
            _ => {
                if self.frozen_at.is_some() {
                    let _ = tokio::time::timeout(GRACE, self.thaw()).await;
                }
                self.let_mail_flow().await;
                if phase == Phase::Failed && self.recalled {
                    // Best tried; the next command on this move does it, too.
                    let _ = tokio::time::timeout(GRACE, self.withdraw(true)).await;
                }
                // What an earlier push has copied is kept.
                if !dry && self.fresh && self.report.outcome == Outcome::Refused {
                    for server in [Server::Target, Server::Source] {
                        let _ = tokio::time::timeout(GRACE, self.finish(server, false)).await;
                    }
                }
            }
        }
        // A push that fails early must not deny what an earlier one has done.
        let denied = phase == Phase::Failed && self.route_begun;
        if denied && self.report.outcome != Outcome::Held {
            self.report.outcome = Outcome::Resumable;
        }
        let phase = match denied {
            _ if self.led_here => Phase::CommitUnknown,
            true => Phase::Routed,
            false => phase,
        };
        self.report.settle_serving(phase, self.offline);
        self.report.next_steps = self.next_steps();
    }

    pub(super) fn count(&mut self, totals: &v1::Totals) {
        self.report.mailboxes = totals.mailboxes;
        self.report.messages = totals.messages;
        self.report.bytes = totals.bytes;
    }

    pub(super) fn problems(&mut self, server: Server, problems: &[v1::Problem]) {
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

    pub(super) fn note(&mut self, text: String) {
        if !self.report.notes.contains(&text) {
            self.monitor.event(monitor::Event::Note { text: text.clone() });
            self.report.notes.push(text);
        }
    }

    /// Decides whether what has been found lets the move go on.
    pub(super) fn judge(&mut self) -> Result<(), Trouble> {
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

    pub(super) fn refuse(&mut self, code: &str, text: String, advice: &str) -> Trouble {
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

    pub(super) fn remember(&mut self, phase: Phase, trouble: &Trouble) {
        self.broken |= trouble.breaks_connections();
        let (state, advice) = match phase {
            _ if self.led_here => (
                "both servers have the user, and the route leads to the source as far as is known",
                "run the same push again: it goes forward",
            ),
            Phase::Refreezing | Phase::Retiring | Phase::Thawing => (
                "the target serves the user; the source's copy is not retired yet",
                "run the same push again",
            ),
            _ if self.route_begun => (
                "the route leads to the target; the source's copy is not retired yet",
                "mend the cause and run the same push again",
            ),
            Phase::Unpublishing if matches!(trouble, Trouble::Route(_)) => (
                "both servers have the user, and the route may lead to either",
                "mend the route command and run the same push again: it goes forward",
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
        };
        let (state, advice) = match trouble {
            Trouble::Peer(e) => {
                let routed = self.route_begun || phase.serving() == Server::Target;
                e.guidance_beside((state, advice), routed)
            }
            Trouble::Contradiction { state, advice, .. } => (*state, advice.as_str()),
            _ => (state, advice),
        };
        self.report.failure =
            Some(Failure { text: trouble.to_string(), state: state.into(), advice: advice.into() });
        self.report.outcome = match trouble {
            Trouble::Refused(_) | Trouble::Contradiction { .. } => Outcome::Refused,
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

    pub(super) fn next_steps(&self) -> Vec<String> {
        match self.report.outcome {
            Outcome::Done | Outcome::DoneWithSkipped | Outcome::Aborted => Vec::new(),
            _ => vec![self.options.command.clone()],
        }
    }
}
