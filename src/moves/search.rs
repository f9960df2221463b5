//! A search through everything that can happen to a move: every order of steps,
//! crashes before and after each of them, answers that are lost, steps that fail,
//! freezes that end, clients that write wherever they can, any sequence of pushes
//! and aborts, and a disk that loses the last write of a journal. The phases are those of [`Phase::after`], the decisions
//! those of [`verdict`]; what a step does to the two servers is written down here.

use super::journal::state;
use super::verdict::{self, OnAbort, OnPush};
use super::{Event, Phase, Server};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};

/// The two servers, the world around them, and whoever moves the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct World {
    source: &'static str,
    target: &'static str,
    /// What they said before the last write.
    before: (&'static str, &'static str),
    /// Whether a disk has lost such a write; it happens once.
    forgot: bool,
    /// mailboxes.db of the target has the user.
    published: bool,
    /// mailboxes.db of the source sends clients away.
    retired: bool,
    route: Server,
    frozen: bool,
    /// The target keeps everybody from the user, to take him back.
    held: bool,
    /// The source has what the target has not.
    source_ahead: bool,
    /// The target has what the source has not.
    target_ahead: bool,
    at_work: Option<Work>,
}

/// A coordinator within a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Work {
    goal: Goal,
    phase: Phase,
    /// Steps of the phase that are done.
    done: usize,
    begun: Begun,
}

/// How far an earlier push has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Begun {
    Nothing,
    /// It has published, and not begun to change the route.
    Publishing,
    Routing,
    Retiring,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Goal {
    Push,
    Abort,
}

/// One thing that happens on one server, or to the route, at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Source(&'static str),
    Target(&'static str),
    Freeze,
    /// The last differences cross; the target has all that the source has.
    Settle,
    Commit,
    Route(Server),
    Hold,
    Undo,
    /// What came to the source after the freeze is carried to the target.
    Carry,
    Retire,
    Thaw,
}

/// A step that does not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Limit,
    /// Clients have used what was published.
    Used,
}

const START: World = World {
    source: "",
    target: "",
    before: ("", ""),
    forgot: false,
    published: false,
    retired: false,
    route: Server::Source,
    frozen: false,
    held: false,
    source_ahead: true,
    target_ahead: false,
    at_work: None,
};

/// What commands do, by the journals.
#[derive(Clone, Copy)]
struct Rules {
    on_push: fn(&str, &str) -> OnPush,
    on_abort: fn(&str, &str) -> OnAbort,
}

const RULES: Rules = Rules { on_push: verdict::on_push, on_abort: verdict::on_abort };

/// What a push does in a phase.
fn steps(phase: Phase, begun: Begun) -> &'static [Step] {
    use Server::{Source as Old, Target as New};
    use Step::{Carry, Commit, Freeze, Hold, Retire, Route, Settle, Source, Target, Thaw, Undo};
    match phase {
        Phase::Copying => &[Target(state::COPYING), Source(state::COPYING)],
        Phase::Freezing => &[Freeze],
        Phase::Refreezing if begun == Begun::Retiring => &[Freeze],
        Phase::Refreezing => &[Freeze, Carry],
        Phase::Settling => &[Settle, Target(state::PREPARED), Source(state::PUBLISHING)],
        Phase::Publishing => &[Target(state::PUBLISHING), Commit, Target(state::PUBLISHED)],
        Phase::Routing if begun == Begun::Retiring => &[Route(New)],
        Phase::Routing => &[
            Source(state::ROUTING),
            Target(state::ROUTING),
            Route(New),
            Source(state::ROUTED),
            Target(state::ROUTED),
        ],
        Phase::Unpublishing if begun == Begun::Publishing => {
            &[Hold, Target(state::UNPUBLISHING), Undo, Target(state::PREPARED)]
        }
        Phase::Unpublishing if begun == Begun::Routing => &[Route(Old), Source(state::COPYING)],
        Phase::Unpublishing => &[
            Hold,
            Route(Old),
            Source(state::COPYING),
            Target(state::UNPUBLISHING),
            Undo,
            Target(state::PREPARED),
        ],
        Phase::Retiring if begun == Begun::Retiring => &[Retire, Source(state::RETIRED)],
        Phase::Retiring => &[Source(state::RETIRING), Retire, Source(state::RETIRED)],
        Phase::Thawing => &[Thaw],
        Phase::Done => &[Target(state::DONE), Source(state::DONE)],
        _ => &[],
    }
}

impl World {
    /// Does a step, if the servers allow it.
    fn take(mut self, step: Step) -> Result<World, Refusal> {
        match step {
            // From here on the freeze must last, and may be over already.
            Step::Source(state::ROUTING) if !self.frozen => return Err(Refusal::Limit),
            Step::Source(state::RETIRING) if !self.frozen => return Err(Refusal::Limit),
            Step::Settle if !self.frozen => return Err(Refusal::Limit),
            Step::Source(word) => (self.before.0, self.source) = (self.source, word),
            Step::Target(word) => (self.before.1, self.target) = (self.target, word),
            Step::Freeze => self.frozen = true,
            Step::Settle => self.source_ahead = false,
            Step::Commit => self.published = true,
            Step::Route(server) => self.route = server,
            Step::Hold if self.target_ahead => return Err(Refusal::Used),
            Step::Hold => self.held = true,
            Step::Undo => {
                assert!(!self.target_ahead, "mail on the target is lost: {self:?}");
                self.published = false;
            }
            Step::Carry if !self.frozen => return Err(Refusal::Limit),
            Step::Carry => self.source_ahead = false,
            Step::Retire => {
                assert!(!self.source_ahead, "mail on the source is lost: {self:?}");
                self.retired = true;
            }
            Step::Thaw => self.frozen = false,
        }
        self.check();
        Ok(self)
    }

    /// Never two serving by route, never none.
    fn check(&self) {
        match self.route {
            Server::Source => assert!(!self.retired, "nobody serves: {self:?}"),
            Server::Target => assert!(self.published, "nobody serves: {self:?}"),
        }
        let over = self.source == state::DONE;
        assert!(!over || (self.retired && self.route == Server::Target), "not moved: {self:?}");
        let stages = [state::PLANNED, state::COPYING, state::PREPARED].contains(&self.target);
        assert!(!(stages && self.published), "a copy that nobody knows of: {self:?}");
        let given_up = self.source == state::ABORTED;
        assert!(!given_up || !self.published, "half given up: {self:?}");
    }

    /// All processes of the move die; the kernel lets go of what they locked.
    fn crashed(self) -> World {
        World { at_work: None, frozen: false, held: false, ..self }
    }

    /// Dies, and one of the disks has lost the journal's last write.
    fn forgetful(self) -> impl Iterator<Item = World> {
        let dead = World { forgot: true, ..self.crashed() };
        let (source, target) = self.before;
        [World { source, ..dead }, World { target, ..dead }]
            .into_iter()
            .filter(move |_| !self.forgot)
    }

    /// What agents find out of themselves when they take a move up.
    fn settled(mut self) -> World {
        if self.target == state::PREPARED && self.published {
            self.target = state::PUBLISHED;
        }
        if verdict::has_user(self.target) && !self.published {
            self.target = state::PREPARED;
        }
        if self.source == state::ROUTED && self.retired {
            self.source = state::RETIRING;
        }
        if [state::PUBLISHING, state::UNPUBLISHING].contains(&self.target) {
            let kept = self.target_ahead || self.target == state::PUBLISHING;
            self.published &= kept;
            self.target = if self.published { state::PUBLISHED } else { state::PREPARED };
        }
        if self.target == state::PUBLISHED {
            self = self.used();
        }
        if self.source == state::RETIRING && !self.retired {
            self.source = state::ROUTED;
        }
        self
    }

    /// Whom clients have used on the target is not taken off it any more.
    fn used(self) -> World {
        match self.target_ahead && !verdict::route_is_changed(self.target) {
            true => World { before: (self.before.0, self.target), target: state::ROUTING, ..self },
            false => self,
        }
    }

    /// A command refuses to do anything: what the journals say does not fit
    /// together, or not with what is there.
    fn refuses(self) -> World {
        assert!(self.forgot, "the journals contradict each other: {self:?}");
        World { at_work: None, ..self }
    }

    /// A command begins.
    fn begin(self, goal: Goal, rules: Rules) -> World {
        let mut world = self.settled();
        let fresh = ["", state::DONE, state::ABORTED].contains(&world.source);
        if fresh && goal == Goal::Push {
            (world.source, world.target) = (state::PLANNED, state::PLANNED);
        }
        let work = |phase, begun| Some(Work { goal, phase, done: 0, begun });
        let begun = match world.source {
            state::RETIRING | state::RETIRED => Begun::Retiring,
            _ => Begun::Routing,
        };
        world.at_work = match goal {
            Goal::Push => match (rules.on_push)(world.source, world.target) {
                OnPush::Begin => work(Phase::Copying, Begun::Nothing),
                OnPush::Withdraw => work(Phase::Unpublishing, Begun::Publishing),
                OnPush::Forward => work(Phase::Refreezing, begun),
                OnPush::Contradiction => return world.refuses(),
            },
            Goal::Abort => match (rules.on_abort)(world.source, world.target) {
                OnAbort::GiveUp => {
                    (world.source, world.target) = (state::ABORTED, state::ABORTED);
                    None
                }
                OnAbort::Withdraw | OnAbort::Recall => work(Phase::Unpublishing, Begun::Nothing),
                OnAbort::Restore => work(Phase::Unpublishing, Begun::Routing),
                OnAbort::TooLate | OnAbort::Over => None,
                OnAbort::Contradiction => return world.refuses(),
            },
        };
        world
    }

    /// The phase has come to an end.
    fn after(self, work: Work, event: Event) -> World {
        let event = match (work.phase, event) {
            (Phase::Routing, Event::Failed | Event::LimitReached)
                if work.begun >= Begun::Routing || self.route == Server::Target =>
            {
                Event::OutcomeUnknown
            }
            (_, event) => event,
        };
        // These two are not a push that begins anew.
        let next = match (work.goal, work.phase, event) {
            (Goal::Abort, Phase::Unpublishing, Event::Succeeded) => {
                let over = World { source: state::ABORTED, target: state::ABORTED, ..self };
                return over.crashed();
            }
            (Goal::Push, Phase::Unpublishing, Event::Succeeded)
                if work.begun == Begun::Publishing =>
            {
                let copying =
                    Work { phase: Phase::Copying, done: 0, begun: Begun::Nothing, ..work };
                return World { at_work: Some(copying), held: false, ..self };
            }
            (_, phase, event) => {
                phase.after(event).or(phase.after(Event::Failed)).unwrap_or(Phase::Failed)
            }
        };
        if next.is_final() && next != Phase::Done {
            return self.crashed();
        }
        let frozen = self.frozen && !(event == Event::LimitReached && next == Phase::Copying);
        World { at_work: Some(Work { phase: next, done: 0, ..work }), frozen, ..self }
    }

    /// Everything that can happen next.
    fn successors(self, rules: Rules) -> Vec<World> {
        let mut next = Vec::new();
        let reaches_source = !self.frozen && !self.retired;
        if reaches_source {
            next.push(World { source_ahead: true, ..self });
        }
        // Also of those who were led there for a moment, or go wherever they like.
        if self.published && !self.held {
            next.push(World { target_ahead: true, ..self });
        }
        let Some(work) = self.at_work else {
            next.extend([Goal::Push, Goal::Abort].map(|goal| self.begin(goal, rules)));
            return next;
        };
        next.push(self.crashed());
        next.extend(self.forgetful());
        // The limit of a freeze, until the route is to be changed.
        if self.frozen && !verdict::route_is_changed(self.source) {
            next.push(World { frozen: false, ..self });
        }
        match steps(work.phase, work.begun).get(work.done) {
            None if work.phase == Phase::Done => next.push(self.crashed()),
            None => next.push(self.after(work, Event::Succeeded)),
            Some(step) => {
                let went_on = World { at_work: Some(Work { done: work.done + 1, ..work }), ..self };
                let unknown = lost(work.phase);
                match went_on.take(*step) {
                    Ok(done) => {
                        next.push(done);
                        // Its answer is lost, or never came.
                        next.push(World { at_work: None, ..done }.after(work, unknown));
                        next.push(self.after(work, unknown));
                        next.push(self.after(work, Event::Failed));
                        next.push(done.crashed());
                        next.extend(done.forgetful());
                    }
                    Err(Refusal::Limit) => next.push(self.after(work, Event::LimitReached)),
                    Err(Refusal::Used) => {
                        next.push(self.used().after(work, Event::OutcomeUnknown));
                    }
                }
            }
        }
        next
    }

    /// A command that nothing disturbs; where it ends.
    fn undisturbed(self, goal: Goal) -> World {
        let mut world = self.begin(goal, RULES);
        for _ in 0..100 {
            let Some(work) = world.at_work else { return world };
            world = match steps(work.phase, work.begun).get(work.done) {
                None if work.phase == Phase::Done => world.crashed(),
                None => world.after(work, Event::Succeeded),
                Some(step) => {
                    let went_on =
                        World { at_work: Some(Work { done: work.done + 1, ..work }), ..world };
                    match went_on.take(*step) {
                        Ok(done) => done,
                        Err(Refusal::Limit) => world.after(work, Event::LimitReached),
                        Err(Refusal::Used) => world.used().after(work, Event::OutcomeUnknown),
                    }
                }
            };
        }
        panic!("it goes on for ever: {self:?}");
    }
}

/// As the coordinator takes it, when an answer never comes.
fn lost(phase: Phase) -> Event {
    match phase {
        Phase::Publishing | Phase::Unpublishing | Phase::Retiring => Event::OutcomeUnknown,
        _ => Event::Failed,
    }
}

/// Every world that can come to be, with the one that it came from.
fn reachable(rules: Rules) -> HashMap<World, World> {
    let mut seen = HashMap::from([(START, START)]);
    let mut queue = VecDeque::from([START]);
    while let Some(world) = queue.pop_front() {
        // A user who was moved, or given up, begins again elsewhere.
        if world.at_work.is_none() && world.source == state::DONE {
            continue;
        }
        for next in world.successors(rules) {
            if let Entry::Vacant(place) = seen.entry(next) {
                place.insert(world);
                queue.push_back(next);
            }
        }
    }
    seen
}

fn story(seen: &HashMap<World, World>, mut world: World) -> String {
    let mut lines = Vec::new();
    while world != START {
        lines.push(format!("{world:?}"));
        world = seen[&world];
    }
    lines.reverse();
    lines.join("\n")
}

#[test]
fn whatever_happens_one_server_serves_and_nothing_is_lost() {
    // The checks are in the steps.
    let seen = reachable(RULES);
    let phases: HashSet<Phase> = seen.keys().filter_map(|w| Some(w.at_work?.phase)).collect();
    for phase in Phase::ALL.into_iter().filter(|p| !p.is_final() && *p != Phase::Planning) {
        assert!(phases.contains(&phase), "{phase:?} was never reached");
    }
    assert!(seen.len() > 300, "only {} worlds", seen.len());
}

#[test]
fn resume_finishes_from_everywhere() {
    let seen = reachable(RULES);
    let mut refused = 0;
    for world in seen.keys().filter(|w| w.at_work.is_none() && w.source != state::DONE) {
        let end = world.undisturbed(Goal::Push);
        if world.forgot && end.source != state::DONE {
            // The source believes that its route was changed, and the target has nothing:
            // an admin says what is to be done.
            assert!(verdict::route_is_changed(end.source) && !end.published, "{end:?}");
            assert_eq!(end.undisturbed(Goal::Abort).source, state::ABORTED, "{end:?}");
            refused += 1;
            continue;
        }
        assert_eq!(end.source, state::DONE, "{}\n{end:?}", story(&seen, *world));
        assert!(!end.frozen && !end.source_ahead, "{end:?}");
    }
    assert!(refused > 0, "no disk has lost a write that matters");
}

#[test]
fn abort_puts_everything_back_or_leaves_a_move_that_resume_finishes() {
    let seen = reachable(RULES);
    for world in seen.keys().filter(|w| w.at_work.is_none() && w.source != state::DONE) {
        let end = world.undisturbed(Goal::Abort);
        if end.source == state::ABORTED || world.source.is_empty() {
            let back = !end.published && !end.retired && end.route == Server::Source;
            assert!(back, "{}\n{end:?}", story(&seen, *world));
            continue;
        }
        let allowed = world.retired || world.target_ahead;
        assert!(allowed, "an abort that refuses:\n{}\n{end:?}", story(&seen, *world));
        assert_eq!(end.undisturbed(Goal::Push).source, state::DONE);
    }
}

#[test]
fn a_wrong_rule_is_found() {
    let withdraw_what_was_routed = Rules {
        on_push: |source, target| match (source, verdict::on_push(source, target)) {
            (state::ROUTING | state::ROUTED, OnPush::Forward) => OnPush::Withdraw,
            (_, right) => right,
        },
        ..RULES
    };
    let abort_what_was_retired = Rules {
        on_abort: |source, target| match verdict::on_abort(source, target) {
            OnAbort::TooLate if source != state::DONE => OnAbort::Recall,
            right => right,
        },
        ..RULES
    };
    let begin_over_what_was_published = Rules {
        on_push: |source, target| match verdict::on_push(source, target) {
            OnPush::Withdraw => OnPush::Begin,
            right => right,
        },
        on_abort: |source, target| match verdict::on_abort(source, target) {
            OnAbort::Withdraw => OnAbort::GiveUp,
            right => right,
        },
    };
    let believe_the_source_alone = Rules {
        on_push: |source, target| match (source, verdict::on_push(source, target)) {
            (state::PUBLISHING, OnPush::Forward) => OnPush::Withdraw,
            (_, right) => right,
        },
        ..RULES
    };
    let wrong = [
        withdraw_what_was_routed,
        abort_what_was_retired,
        begin_over_what_was_published,
        believe_the_source_alone,
    ];
    for rules in wrong {
        assert!(std::panic::catch_unwind(|| reachable(rules)).is_err(), "it was not found");
    }
}
