//! What the coordinator does in each phase.

use super::peer::{Peer, PeerError};
use super::report::Outcome;
use super::trouble::Trouble;
use super::{Options, Push, monitor, route, was_routed};
use crate::fault::{self, Point, Sabotage, sabotaged};
use crate::moves::journal::state;
use crate::moves::verdict::{self, OnAbort, OnPush, route_is_changed};
use crate::moves::{MoveId, Server};
use crate::wire::frame::Kind;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use std::time::{Duration, Instant};

/// What must be left of the freeze limit for publish, route and retire to start.
const PUBLISH_RESERVE: Duration = Duration::from_millis(500);

/// A round that took less than this part of the freeze limit is good enough.
const READY_PART: u32 = 4;

/// Rounds after which the target's Cyrus must accept what was copied.
const REHEARSALS: u32 = 4;

/// How often a postponed move copies what has arrived.
const POSTPONED_ROUND: Duration = Duration::from_secs(60);

/// How often the file of a postponed move is looked for.
const POSTPONED_LOOK: Duration = Duration::from_millis(500);

fn is_nothing(wants: &v1::Wants) -> bool {
    wants.wants.is_empty() && wants.user_files.is_empty()
}

/// The request for a source's plan.
fn plan_of(options: &Options, move_id: String, adopt: bool) -> Op {
    Op::PlanSource(v1::PlanSource {
        mailbox: options.mailbox.clone(),
        move_id,
        destination: options.destination.clone(),
        dry_run: options.dry_run,
        skip_bad: options.skip_bad,
        adopt,
    })
}

/// Has the source plan while its target is still being connected to.
///
/// Errors: the source's agent is gone.
pub async fn plan_ahead(options: &Options, source: &mut Peer) -> Result<(), PeerError> {
    source.begin(plan_of(options, MoveId::random().to_string(), false)).await
}

impl Push<'_> {
    pub(super) async fn plan(&mut self) -> Result<(), Trouble> {
        let mut source = self.plan_source(MoveId::random().to_string(), false).await?;
        self.fresh = source.state == state::PLANNED;
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
        // A source whose route was begun may have nothing left to freeze.
        let prove = !route_is_changed(&source.state) && !source.offline;
        if prove {
            self.source.begin(Op::ProveFreeze(v1::ProveFreeze {})).await?;
        }
        let target = self.plan_target(&source).await;
        let proof = if prove { Some(self.source.reply().await) } else { None };
        let mut target = target?;
        let mut lost = false;
        if !target.unknown_move_id.is_empty() {
            let id = crate::wire::printable(&target.unknown_move_id);
            self.note(format!("the target knows of this move, {id}, and the source does no more"));
            source = self.plan_source(id, true).await?;
            target = self.plan_target(&source).await?;
            lost = true;
        }
        self.fresh = source.state == state::PLANNED && !lost;
        self.problems(Server::Source, &source.problems);
        self.problems(Server::Target, &target.problems);
        self.one_murder(&source, &target)?;
        self.snapshot = if source.snapshot.is_empty() { target.snapshot } else { source.snapshot };
        let known = if lost { "" } else { source.state.as_str() };
        let forward = self.take_up(known, &target.state, source.route_command).await?;
        self.release_mail().await?;
        if forward {
            return Ok(());
        }
        self.plan_old_server().await?;
        match proof.transpose()? {
            None if self.offline => {}
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

    /// Whether the route is mupdate's to change: both servers must be of one Murder, or
    /// neither of any.
    fn one_murder(
        &mut self,
        source: &v1::SourcePlan,
        target: &v1::TargetPlan,
    ) -> Result<(), Trouble> {
        self.murder = source.murder;
        if source.murder_route && !source.murder {
            return Err(Trouble::Refused(
                "this move changes its route by mupdate, and the source's imapd.conf names no \
                 mupdate_server any more: put it back"
                    .into(),
            ));
        }
        let known = |name: &str| !name.is_empty();
        let one =
            source.mupdate == target.mupdate || !known(&source.mupdate) || !known(&target.mupdate);
        if source.murder == target.murder && one {
            return Ok(());
        }
        let master = |murder: bool, name: &str| match (murder, name) {
            (false, _) => "no Murder".to_owned(),
            (true, "") => "a Murder".to_owned(),
            (true, name) => format!("the Murder of {}", crate::wire::printable(name)),
        };
        let text = format!(
            "{} is of {}, and {} of {}",
            self.report.source,
            master(source.murder, &source.mupdate),
            self.report.target,
            master(target.murder, &target.mupdate)
        );
        let advice = "frontends find a user by the list of his Murder: move between backends of \
                      one, or between servers of none (mupdate_server in imapd.conf)";
        Err(self.refuse("murder-differs", text, advice))
    }

    async fn plan_source(
        &mut self,
        move_id: String,
        adopt: bool,
    ) -> Result<v1::SourcePlan, Trouble> {
        if !self.source.is_asked() {
            self.source.begin(plan_of(self.options, move_id, adopt)).await?;
        }
        let plan = match self.source.reply().await {
            Ok(Answer::SourcePlan(plan)) => plan,
            Ok(_) => return Err(self.source.unexpected("plan").into()),
            Err(error) => {
                self.route_begun = was_routed(&mut self.source, &self.options.mailbox).await;
                return Err(error.into());
            }
        };
        self.offline = plan.offline;
        if plan.offline {
            let text = "the source is a disk on which nothing runs: nobody has to be frozen, and \
                        nothing is written to it";
            self.monitor.event(monitor::Event::Warning { text: text.into() });
            self.report.notes.push(text.into());
        }
        self.mail_held = plan.mail_held;
        // From here on, whatever fails must not deny what an earlier push has done.
        self.route_begun = route_is_changed(&plan.state);
        self.identity = plan.identity.clone().unwrap_or_default();
        self.report.mailbox = crate::wire::printable(&self.identity.display);
        self.report.move_id = crate::wire::printable(&plan.move_id);
        let totals = plan.totals.unwrap_or_default();
        self.count(&totals);
        self.monitor.event(monitor::Event::Planned {
            move_id: self.report.move_id.clone(),
            mailboxes: totals.mailboxes,
            messages: totals.messages,
            bytes: totals.bytes,
        });
        Ok(plan)
    }

    async fn plan_target(&mut self, plan: &v1::SourcePlan) -> Result<v1::TargetPlan, Trouble> {
        let op = Op::PlanTarget(v1::PlanTarget {
            move_id: plan.move_id.clone(),
            identity: plan.identity.clone(),
            mailboxes: plan.mailboxes.clone(),
            totals: plan.totals,
            partition: self.options.partition.clone().unwrap_or_default(),
            partition_map: self.options.partition_map.iter().cloned().collect(),
            source: self.report.source.clone(),
            dry_run: self.options.dry_run,
            fresh: plan.state == state::PLANNED,
            share: self.options.share.clone(),
            lanes: self.target.lanes.are_possible(),
        });
        match self.target.call(op).await? {
            Answer::TargetPlan(plan) => {
                self.mail_held |= plan.mail_held;
                self.target.lanes.open(&plan.lanes);
                Ok(plan)
            }
            _ => Err(self.target.unexpected("plan").into()),
        }
    }

    /// Whether the source can do what is asked for with those who come late.
    async fn plan_old_server(&mut self) -> Result<(), Trouble> {
        let server = self.report.target.clone();
        let mut plan = v1::PlanOldServer { server, ..v1::PlanOldServer::default() };
        plan.set_old_server(self.options.old_server);
        if self.options.old_server == v1::OldServer::Defer {
            return Ok(());
        }
        for server in [Server::Source, Server::Target] {
            let peer = self.peer(server);
            let Answer::OldServerPlan(answer) = peer.call(Op::PlanOldServer(plan.clone())).await?
            else {
                return Err(peer.unexpected("plan for those who come late").into());
            };
            self.problems(server, &answer.problems);
            if answer.authname.is_empty() {
                break;
            }
            plan.authname = answer.authname;
        }
        Ok(())
    }

    /// Takes up a move that an earlier push has begun; whether its route may
    /// lead to the target already. If it certainly does not, what the target
    /// has published is taken back, and is the stage of a new beginning.
    async fn take_up(
        &mut self,
        source: &str,
        target: &str,
        route_command: bool,
    ) -> Result<bool, Trouble> {
        match verdict::on_push(source, target) {
            OnPush::Begin => Ok(false),
            OnPush::Withdraw => {
                self.note(format!("taking back a publication that stopped when it was {target}"));
                self.withdraw(false).await?;
                self.withdraw(true).await?;
                Ok(false)
            }
            OnPush::Forward => {
                if route_command && self.options.route_command.is_none() {
                    return Err(Trouble::Refused(
                        "this move changes its route by a command, which is missing now: give the \
                         same --route-command"
                            .into(),
                    ));
                }
                self.route_begun = true;
                self.led_here = !source.is_empty() && !route_is_changed(source);
                let state = if route_is_changed(source) { source } else { target };
                self.note(format!("going on with a move that stopped when it was {state}"));
                self.source_state = source.into();
                Ok(true)
            }
            OnPush::Contradiction => {
                let text = format!(
                    "this move was {source} on the source, but the target's journal says {target:?}"
                );
                let mailbox = &self.report.mailbox;
                let (state, advice) = match verdict::on_abort(source, target) {
                    OnAbort::Restore => {
                        // Wherever the route leads, only the source can serve.
                        self.route_begun = false;
                        (
                            "the source has the user, whole, and the target has nothing of him; \
                             the route may lead to the target",
                            format!("bring the route back to the source: mbcopy abort {mailbox}"),
                        )
                    }
                    _ => (
                        "nothing was changed",
                        "look on both servers what there is of the user (mbcopy verify), before \
                         anything else"
                            .into(),
                    ),
                };
                Err(Trouble::Contradiction { text, state, advice })
            }
        }
    }

    /// Freezes again, after the route may have been changed, and looks whether
    /// anything has changed since the user was frozen for the move.
    pub(super) async fn refreeze(&mut self) -> Result<(), Trouble> {
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
        if done.snapshot == self.snapshot || sabotaged(Sabotage::ForgetStragglers) {
            return Ok(());
        }
        // The route may or may not lead to the target; make that certain.
        self.change_route(&self.change()).await?;
        self.led_away = self.options.route_command.is_some();
        self.carry_over().await
    }

    pub(super) async fn copy(&mut self) -> Result<(), Trouble> {
        self.record_both(state::COPYING).await?;
        loop {
            self.copy_rounds().await?;
            if self.options.copy_only {
                self.report.outcome = Outcome::Copied;
                return Ok(());
            }
            if !self.postponed().await? {
                return self.stop_if_asked();
            }
            self.ready = false;
        }
    }

    /// Waits while the admin's file exists, but not so long that what has
    /// arrived meanwhile is much; whether it existed.
    async fn postponed(&mut self) -> Result<bool, Trouble> {
        let Some(file) = self.options.postpone_file.as_ref().filter(|file| file.exists()) else {
            return Ok(false);
        };
        self.note(format!("ready; waiting for {} to go away", file.display()));
        let again = Instant::now() + POSTPONED_ROUND;
        while file.exists() && Instant::now() < again {
            self.stop_if_asked()?;
            tokio::time::sleep(POSTPONED_LOOK).await;
        }
        Ok(true)
    }

    /// Copies until little enough is left.
    async fn copy_rounds(&mut self) -> Result<(), Trouble> {
        while !self.ready {
            self.stop_if_asked()?;
            self.report.rounds += 1;
            let began = Instant::now();
            let wants = self.compare(false).await?;
            let nothing = is_nothing(&wants);
            self.monitor.event(monitor::Event::Round {
                number: self.report.rounds,
                messages: wants.messages,
                bytes: wants.bytes,
            });
            let wants = self.share(wants).await?;
            self.send(wants, true).await?;
            self.judge()?;
            if !self.rehearsed {
                match self.rehearse().await {
                    Ok(()) => self.rehearsed = true,
                    // Files of a mailbox in use may be of two moments.
                    Err(Trouble::Peer(PeerError::Failed { failure, .. }))
                        if self.report.rounds < REHEARSALS =>
                    {
                        let text = crate::wire::printable(&failure.text);
                        self.note(format!("it is rehearsed once more: {text}"));
                        continue;
                    }
                    Err(trouble) => return Err(trouble),
                }
            }
            let good = nothing || began.elapsed() < self.options.max_freeze / READY_PART;
            self.ready = good || self.report.rounds >= self.options.max_rounds;
        }
        Ok(())
    }

    pub(super) async fn rehearse(&mut self) -> Result<(), Trouble> {
        let copy_only = self.options.copy_only;
        let op = Op::Rehearse(v1::Rehearse {
            skipped: self.skipped(),
            copy_only,
            nice: self.options.nice,
        });
        let Answer::Rehearsed(rehearsed) = self.target.call(op).await? else {
            return Err(self.target.unexpected("rehearsal").into());
        };
        for text in &rehearsed.notes {
            self.note(crate::wire::printable(text));
        }
        self.problems(Server::Target, &rehearsed.problems);
        self.judge()
    }

    pub(super) async fn freeze(&mut self) -> Result<(), Trouble> {
        // A retired copy takes nothing that would have to be held.
        if ![state::RETIRING, state::RETIRED].contains(&self.source_state.as_str()) {
            self.hold_mail().await?;
        }
        let limit = self.limit();
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

    pub(super) async fn settle(&mut self) -> Result<(), Trouble> {
        if !sabotaged(Sabotage::PublishBeforeCompare) {
            let wants = self.compare(true).await?;
            // Whoever is frozen does not wait for nothing to be sent.
            if !is_nothing(&wants) && self.send(wants, false).await? > 0 {
                let whole = self.compare(true).await?;
                self.send(whole, false).await?;
            }
        }
        self.judge()?;
        let op =
            Op::Settle(v1::Settle { skipped: self.skipped(), snapshot: self.snapshot.clone() });
        let Answer::Prepared(prepared) = self.target.call(op).await? else {
            return Err(self.target.unexpected("comparison").into());
        };
        self.report.records_compared = prepared.records_compared;
        self.problems(Server::Target, &prepared.problems);
        self.judge()?;
        self.stop_if_asked()?;
        self.record(Server::Source, state::PUBLISHING).await?;
        if self.left() < PUBLISH_RESERVE {
            return Err(Trouble::Limit(self.limit()));
        }
        Ok(())
    }

    pub(super) async fn publish(&mut self) -> Result<(), Trouble> {
        match self.target.call(Op::Publish(v1::Publish {})).await? {
            Answer::Published(published) => {
                self.report.publish_ms = published.locked_us as f64 / 1000.0;
                Ok(())
            }
            _ => Err(self.target.unexpected("publication").into()),
        }
    }

    pub(super) async fn route(&mut self) -> Result<(), Trouble> {
        let retiring = [state::RETIRING, state::RETIRED].contains(&self.source_state.as_str());
        if !retiring {
            // First on the source: if it is gone, the next push takes the user off the
            // target and begins again, which is less to do than to carry over.
            self.record(Server::Source, state::ROUTING).await?;
            self.record(Server::Target, state::ROUTING).await?;
        }
        self.change_route(&self.change()).await?;
        // From here on the world goes to the target, whatever fails.
        self.route_begun = true;
        fault::point(Point::RouteChanged);
        if retiring {
            return Ok(());
        }
        self.record(Server::Source, state::ROUTED).await?;
        // Nothing of the target is needed to put the source's copy away, and it has written
        // down already that the route may lead there.
        let routed = self.record_op(state::ROUTED);
        if let Err(error) = self.target.tell(routed).await {
            self.note(format!("the target could not be told that it is routed: {error}"));
        }
        Ok(())
    }

    /// Changes the route: of a Murder's list first, then by the admin's command.
    pub(super) async fn change_route(&mut self, change: &route::Change) -> Result<(), Trouble> {
        if self.murder {
            let server = if change.is_restored() { Server::Source } else { Server::Target };
            let peer = self.peer(server);
            let Answer::RouteTaken(_) = peer.call(Op::TakeRoute(v1::TakeRoute {})).await? else {
                return Err(peer.unexpected("change of the route").into());
            };
        }
        if let Some(command) = &self.options.route_command {
            change.run(command, self.options.route_timeout).await?;
        }
        self.led_here = false;
        Ok(())
    }

    /// Takes the user off the target, in two steps: first the target makes sure
    /// that nothing has changed there, and keeps everybody waiting; then the
    /// route is restored; then everything is taken back.
    pub(super) async fn unpublish(&mut self) -> Result<(), Trouble> {
        self.withdraw(false).await?;
        self.change_route(&self.change().restored()).await?;
        // The route is certain again: a crash from here on goes back.
        self.record(Server::Source, state::COPYING).await?;
        self.source_state = state::COPYING.into();
        self.recalled = true;
        self.withdraw(true).await?;
        Ok(())
    }

    pub(super) async fn withdraw(&mut self, finally: bool) -> Result<(), Trouble> {
        match self.target.call(Op::Unpublish(v1::Unpublish { hold: !finally })).await? {
            Answer::Unpublished(_) => Ok(()),
            _ => Err(self.target.unexpected("withdrawal").into()),
        }
    }

    pub(super) async fn retire(&mut self) -> Result<(), Trouble> {
        // No longer than the admin lets him be frozen.
        let lag = self.options.frontend_lag.min(self.left());
        let op = Op::Retire(v1::Retire {
            server: self.report.target.clone(),
            old_server: self.options.old_server.into(),
            lag_ms: if self.murder { lag.as_millis() as u32 } else { 0 },
        });
        let Answer::Retired(retired) = self.source.call(op).await? else {
            return Err(self.source.unexpected("retirement").into());
        };
        retired.notes.iter().for_each(|text| self.note(crate::wire::printable(text)));
        Ok(())
    }

    pub(super) async fn thaw(&mut self) -> Result<(), Trouble> {
        let Answer::Thawed(thawed) = self.source.call(Op::Thaw(v1::Thaw {})).await? else {
            return Err(self.source.unexpected("thaw").into());
        };
        // On a disk on which nothing runs nobody has waited.
        if !self.offline {
            self.report.freeze_ms = thawed.frozen_us as f64 / 1000.0;
        }
        self.frozen_at = None;
        Ok(())
    }
}
