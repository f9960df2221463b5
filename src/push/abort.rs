//! Giving a move up: everything is put back as it was before.

use super::monitor::Monitor;
use super::peer::Peer;
use super::report::{Failure, Outcome, Report};
use super::trouble::Trouble;
use super::{Interrupt, Options, Push, millis};
use crate::fault::{self, Point};
use crate::moves::journal::state;
use crate::moves::verdict::{self, OnAbort, route_is_changed};
use crate::moves::{Phase, Server};
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use std::time::Instant;

/// Gives the unfinished move of a user up. Never fails without saying, in the
/// report, who serves him.
pub async fn abort(
    options: &Options,
    source: Peer,
    target: Peer,
    monitor: &dyn Monitor,
    interrupt: &Interrupt,
) -> Report {
    let began = Instant::now();
    let mut push = Push::new(options, source, target, monitor, interrupt);
    let given_up = push.give_up().await;
    let phase = match given_up {
        Ok(()) => {
            push.report.outcome = Outcome::Aborted;
            Phase::Failed
        }
        Err(trouble) => {
            let text = trouble.to_string();
            push.remember(Phase::Unpublishing, &trouble);
            let over = [state::DONE, state::PURGED].contains(&push.source_state.as_str());
            let routed = route_is_changed(&push.source_state) || over;
            let (now, advice) = match (&trouble, routed) {
                (Trouble::Refused(_), false) if push.recalled => (
                    "the source serves the user, and the target shows nothing of him; mail may \
                     still be held",
                    "",
                ),
                (Trouble::Refused(_), false) => ("nothing was changed", ""),
                (Trouble::Refused(_), true) => ("the target serves the user", ""),
                (_, true) => (
                    "the move is where it was: its route leads to the target",
                    "mend the cause and abort again, or finish the move: mbcopy resume",
                ),
                (_, false) => (
                    "the source serves the user and is unchanged",
                    "mend the cause and abort again",
                ),
            };
            let (now, advice) = match &trouble {
                Trouble::Peer(e) => e.guidance_beside((now, advice), routed),
                _ => (now, advice),
            };
            push.report.failure = Some(Failure { text, state: now.into(), advice: advice.into() });
            if push.route_begun && !over {
                push.report.outcome = match trouble {
                    Trouble::Refused(_) => Outcome::Refused,
                    _ => Outcome::Resumable,
                };
            }
            if routed { Phase::Routed } else { Phase::Failed }
        }
    };
    // Also of one that cannot be given up.
    if push.report.outcome != Outcome::Aborted {
        push.let_mail_flow().await;
    }
    push.report.settle_serving(phase, push.offline);
    push.report.next_steps = push.next_steps();
    push.report.total_ms = millis(began.elapsed());
    push.report
}

impl Push<'_> {
    async fn give_up(&mut self) -> Result<(), Trouble> {
        let attach = v1::Attach { mailbox: self.options.mailbox.clone(), ..v1::Attach::default() };
        let Some(known) = self.attach(Server::Source, attach).await? else {
            let mailbox = &self.options.mailbox;
            return Err(Trouble::Refused(format!("this server knows no move of {mailbox}")));
        };
        self.identity = known.identity.clone().unwrap_or_default();
        self.report.mailbox = crate::wire::printable(&self.identity.display);
        self.report.move_id = crate::wire::printable(&known.move_id);
        self.source_state = known.state.clone();
        if self.taken_away {
            let mailbox = &self.report.mailbox;
            return Err(Trouble::Refused(format!(
                "the source was started again since the route was changed, and its ctl_mboxlist -m \
                 has taken its copy of {mailbox} away: it is put back, but the use of its quota \
                 and what delayed delete kept are not as before; finish the move (mbcopy resume \
                 {mailbox}), then take it back (mbcopy reverse {mailbox})"
            )));
        }
        let attach = v1::Attach {
            move_id: known.move_id.clone(),
            identity: known.identity,
            ..v1::Attach::default()
        };
        let there = match verdict::on_abort(&known.state, state::PUBLISHED) {
            OnAbort::TooLate | OnAbort::Over => None,
            _ => self.attach(Server::Target, attach).await?,
        };
        let there = there.map(|m| m.state);
        let mailbox = self.report.mailbox.clone();
        let verdict = verdict::on_abort(&known.state, there.as_deref().unwrap_or_default());
        self.route_begun =
            route_is_changed(&known.state) || matches!(verdict, OnAbort::Recall | OnAbort::Restore);
        match verdict {
            OnAbort::GiveUp if known.state == state::PUBLISHING => {
                self.record(Server::Source, state::COPYING).await?;
            }
            OnAbort::GiveUp => {}
            OnAbort::Withdraw => {
                self.withdraw(false).await?;
                self.withdraw(true).await?;
                self.record(Server::Source, state::COPYING).await?;
            }
            OnAbort::Recall => {
                let patience = self.patience_of_route();
                let recalled = tokio::time::timeout(patience, self.unpublish()).await;
                recalled.unwrap_or(Err(Trouble::Silence(patience)))?;
            }
            OnAbort::Restore => {
                self.change_route(&self.change().restored()).await?;
                self.record(Server::Source, state::COPYING).await?;
            }
            OnAbort::TooLate => {
                return Err(Trouble::Refused(format!(
                    "the move of {mailbox} is past its last point of return: the source's copy is \
                     retired; `mbcopy reverse {mailbox}` moves the user back"
                )));
            }
            OnAbort::Over => {
                return Err(Trouble::Refused(format!("the last move of {mailbox} is over")));
            }
            OnAbort::Contradiction => {
                return Err(Trouble::Refused(format!(
                    "this move was {} on the source, but the target's journal says {:?}: it must \
                     not be ended before that is understood",
                    known.state,
                    there.unwrap_or_default()
                )));
            }
        }
        self.source_state = state::COPYING.into();
        self.recalled = true;
        self.release_mail().await?;
        if there.is_some() {
            self.finish(Server::Target, false).await?;
        }
        fault::point(Point::TargetGaveUp);
        self.finish(Server::Source, false).await
    }

    async fn attach(
        &mut self,
        server: Server,
        attach: v1::Attach,
    ) -> Result<Option<v1::MoveRecord>, Trouble> {
        match self.peer(server).call(Op::Attach(attach)).await? {
            Answer::Attached(attached) => {
                self.murder |= attached.murder_route;
                self.taken_away |= attached.taken_away;
                self.mail_held |= attached.r#move.as_ref().is_some_and(|m| m.mail_held);
                Ok(attached.r#move)
            }
            _ => Err(self.peer(server).unexpected("move").into()),
        }
    }
}
