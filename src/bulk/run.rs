//! The coordinator of a run: starts attempts when [`super::schedule`] says so, and
//! writes down what they come to.
//!
//! It can die at any point. A user is *running* in the store before his attempt
//! begins, and stays so until its end is written down: the next coordinator waits
//! for what still runs, and reads what has ended meanwhile.

use super::attempt::Launcher;
use super::pulse::Pace;
use super::schedule::{Control, End, Limits, Reason, Situation, Step, next};
use super::state::{Outcome, Retries, State};
use super::store::{Coordinator, Ended, Job, Store, StoreError};
use crate::moves::journal::now_ms;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How often is looked what the admin says, and whose time has come.
const TICK: Duration = Duration::from_millis(500);

/// How long a store that does not answer is let rest.
pub const STORE_AGAIN: Duration = Duration::from_secs(5);

/// How often is looked whether another coordinator has died.
const LOOK_FOR_THE_DEAD: Duration = Duration::from_secs(2);

/// How a run is done.
#[derive(Debug, Clone)]
pub struct Options {
    /// What it may do.
    pub limits: Limits,
    /// How often is tried again.
    pub retries: Retries,
    /// How attempts are started.
    pub launcher: Launcher,
    /// How each target fares that is watched.
    pub paces: Vec<watch::Receiver<Pace>>,
}

/// Something that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// An attempt of an earlier coordinator is still under way.
    Found(&'a Job),
    /// An attempt begins.
    Begun(&'a Job),
    /// That many users of coordinators that have died are taken over.
    TakenOver(u64),
    /// An attempt has ended.
    Ended(&'a Job, State, &'a Ended),
    /// It is not known how a target fares, though it is watched; told when it changes.
    Unknown(&'a Pace),
    /// Nothing begins now, and why; told when it changes.
    Waiting(Reason, Option<i64>),
    /// The store is away, and is tried again.
    Away(&'a StoreError),
    /// Some time has passed.
    Tick,
}

/// Who is told.
pub trait Watcher {
    /// Takes one event.
    fn event(&mut self, event: Event<'_>);
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By itself.
    Ended(End),
    /// It was interrupted: what was under way has stopped where it is safe.
    Interrupted,
    /// It was interrupted twice, and waited for nothing.
    Abandoned,
}

/// How often the admin has asked to stop.
pub type Stop = std::sync::Arc<AtomicU32>;

/// Does what is to be done, until nothing is. While the store is away nothing begins; what
/// is under way goes on, and is found again.
///
/// Errors: the store fails for good.
pub async fn run(
    store: &Store,
    _right: &Coordinator,
    options: &Options,
    watcher: &mut dyn Watcher,
    stop: &Stop,
) -> Result<Finish, StoreError> {
    let mut run = Run {
        store,
        options,
        attempts: JoinSet::new(),
        jobs: HashMap::new(),
        failing: 0,
        failed_at: 0,
    };
    loop {
        match run.go_on(watcher, stop).await {
            Err(error) if error.is_passing() => watcher.event(Event::Away(&error)),
            finish => return finish,
        }
        let began = Instant::now();
        while began.elapsed() < STORE_AGAIN {
            if stop.load(Ordering::Relaxed) > 0 {
                // What they come to is found by the next coordinator.
                run.jobs.values().for_each(|job| options.launcher.stop(job));
                return Ok(Finish::Abandoned);
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

/// What a coordinator has in its hands.
struct Run<'a> {
    store: &'a Store,
    options: &'a Options,
    /// Ends with the number of an attempt and how its process ended, if that is known.
    attempts: JoinSet<(i64, Option<i32>)>,
    jobs: HashMap<i64, Job>,
    failing: u32,
    failed_at: i64,
}

impl Run<'_> {
    /// Takes up what is under way, and goes on until nothing is left to be done.
    async fn go_on(
        &mut self,
        watcher: &mut dyn Watcher,
        stop: &Stop,
    ) -> Result<Finish, StoreError> {
        self.recover(watcher).await?;
        let mut taken_over: Option<Instant> = None;
        let mut paces = Vec::new();
        let mut waiting = None;
        let mut waits = None;
        let mut told_to_stop = false;
        loop {
            let asked = stop.load(Ordering::Relaxed);
            if asked > 1 {
                return Ok(Finish::Abandoned);
            }
            let control = match asked {
                0 => self.store.control()?,
                _ => Control::Draining,
            };
            let stops = asked > 0 || control == Control::Paused;
            if stops && !told_to_stop {
                self.jobs.values().for_each(|job| self.options.launcher.stop(job));
            }
            told_to_stop = stops;
            if taken_over.is_none_or(|at| at.elapsed() >= LOOK_FOR_THE_DEAD) {
                taken_over = Some(Instant::now());
                match self.store.take_over()? {
                    0 => {}
                    n => watcher.event(Event::TakenOver(n)),
                }
            }
            self.note_paces(&mut paces, watcher)?;
            match next(&self.situation(control)?, &self.options.limits) {
                Step::Start { unfinished_only } => {
                    if self.start(unfinished_only, watcher)? {
                        waiting = None;
                        continue;
                    }
                }
                Step::Wait(until, reason) => {
                    if waiting != Some(reason) {
                        waiting = Some(reason);
                        watcher.event(Event::Waiting(reason, until));
                    }
                }
                Step::End(_) if asked > 0 => return Ok(Finish::Interrupted),
                Step::End(end) => return Ok(Finish::Ended(end)),
            }
            let why = waiting.filter(|reason| *reason != Reason::Busy).map_or("", Reason::text);
            if waits != Some(why) {
                self.store.set_waits(why)?;
                waits = Some(why);
            }
            tokio::select! {
                ended = self.attempts.join_next(), if !self.attempts.is_empty() => {
                    if let Some(Ok((attempt, code))) = ended {
                        self.end(attempt, code, watcher).await?;
                    }
                }
                () = tokio::time::sleep(TICK) => {}
            }
            watcher.event(Event::Tick);
        }
    }

    /// Takes up what an earlier coordinator has begun.
    async fn recover(&mut self, watcher: &mut dyn Watcher) -> Result<(), StoreError> {
        let launcher = &self.options.launcher;
        let under_way = self.store.under_way_here()?;
        let (mut attempts, mut jobs) = (JoinSet::new(), HashMap::new());
        for job in under_way {
            if !launcher.was_started(&job) {
                self.store.not_begun(&job)?;
                continue;
            }
            if launcher.lives(&job) {
                watcher.event(Event::Found(&job));
            }
            let (launcher, known) = (launcher.clone(), job.clone());
            attempts.spawn(async move {
                launcher.outlive(&known).await;
                (known.attempt, None)
            });
            jobs.insert(job.attempt, job);
        }
        // Those in our hands are among them.
        (self.attempts, self.jobs) = (attempts, jobs);
        Ok(())
    }

    /// By the target that fares worst.
    fn allowed(&self) -> usize {
        let each = self.options.paces.iter().map(|pace| pace.borrow().allowed);
        each.min().unwrap_or(usize::MAX)
    }

    /// Writes down how the targets fare, where that has changed.
    fn note_paces(
        &self,
        noted: &mut Vec<Pace>,
        watcher: &mut dyn Watcher,
    ) -> Result<(), StoreError> {
        let now: Vec<Pace> = self.options.paces.iter().map(|pace| pace.borrow().clone()).collect();
        if *noted == now {
            return Ok(());
        }
        self.store.set_paces(&now)?;
        for (at, pace) in now.iter().enumerate().filter(|(_, pace)| !pace.trouble.is_empty()) {
            if noted.get(at).is_none_or(|before| before.trouble != pace.trouble) {
                watcher.event(Event::Unknown(pace));
            }
        }
        *noted = now;
        Ok(())
    }

    fn situation(&self, control: Control) -> Result<Situation, StoreError> {
        let clock = jiff::ZonedDateTime::now();
        Ok(Situation {
            now: now_ms(),
            minute: (clock.hour() as u16) * 60 + clock.minute() as u16,
            control,
            running: self.jobs.len(),
            allowed: self.allowed(),
            others: self.store.waits_for_others()?,
            troubled: self.store.troubled()?,
            waiting_since: self.store.next_turn(State::Waiting)?,
            unfinished_since: self.store.next_turn(State::Unfinished)?,
            failing: self.failing,
            failed_at: self.failed_at,
        })
    }

    /// Starts the next attempt; whether there was one.
    fn start(
        &mut self,
        unfinished_only: bool,
        watcher: &mut dyn Watcher,
    ) -> Result<bool, StoreError> {
        let Some(mut job) = self.store.claim(now_ms(), unfinished_only)? else { return Ok(false) };
        match self.options.launcher.start(&job) {
            Ok(mut child) => {
                job.pid = child.id().unwrap_or(0) as i32;
                let attempt = job.attempt;
                self.attempts.spawn(async move {
                    let code = child.wait().await.ok().and_then(|status| status.code());
                    (attempt, code)
                });
                watcher.event(Event::Begun(&job));
                let noted = self.store.begun(attempt, job.pid);
                self.jobs.insert(attempt, job);
                noted?;
            }
            Err(error) => {
                let ended = did_not_start(&error);
                self.note(&job, &ended, watcher)?;
            }
        }
        Ok(true)
    }

    async fn end(
        &mut self,
        attempt: i64,
        code: Option<i32>,
        watcher: &mut dyn Watcher,
    ) -> Result<(), StoreError> {
        let Some(job) = self.jobs.remove(&attempt) else { return Ok(()) };
        let ended = self.options.launcher.conclude(&job, code).await;
        self.note(&job, &ended, watcher)?;
        // What it has told is in the store by now.
        self.options.launcher.forget(&job);
        Ok(())
    }

    fn note(
        &mut self,
        job: &Job,
        ended: &Ended,
        watcher: &mut dyn Watcher,
    ) -> Result<(), StoreError> {
        let Some(state) = self.store.ended(job, ended, &self.options.retries)? else {
            tracing::warn!("{}: another coordinator has taken him over meanwhile", job.mailbox);
            return Ok(());
        };
        match ended.outcome {
            outcome if outcome.is_contagious() => {
                self.failing += 1;
                self.failed_at = ended.at;
            }
            Outcome::Done | Outcome::DoneWithLosses => self.failing = 0,
            _ => {}
        }
        watcher.event(Event::Ended(job, state, ended));
        Ok(())
    }
}

fn did_not_start(error: &std::io::Error) -> Ended {
    Ended {
        outcome: Outcome::Failed,
        move_id: String::new(),
        size: (0, 0, 0),
        sent: (0, 0),
        freeze_ms: 0.0,
        total_ms: 0.0,
        serving: String::new(),
        text: format!("cannot start mbcopy: {error}"),
        advice: "look at this machine's limits of processes and files".into(),
        detail: String::new(),
        at: now_ms(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::resolve::Planned;
    use crate::bulk::store::{Mode, Order};
    use crate::bulk::window::Windows;
    use std::os::unix::fs::PermissionsExt;

    /// Remembers what it is told, and does something at each event.
    struct Told<'a> {
        lines: Vec<String>,
        most: usize,
        running: usize,
        act: Box<dyn FnMut(&Event<'_>) + 'a>,
    }

    impl Watcher for Told<'_> {
        fn event(&mut self, event: Event<'_>) {
            (self.act)(&event);
            match event {
                Event::Begun(_) | Event::Found(_) => {
                    self.running += 1;
                    self.most = self.most.max(self.running);
                }
                Event::Ended(job, state, _) => {
                    self.running -= 1;
                    self.lines.push(format!("{} {}", job.mailbox, state.word()));
                }
                _ => {}
            }
        }
    }

    fn told<'a>(act: impl FnMut(&Event<'_>) + 'a) -> Told<'a> {
        Told { lines: Vec::new(), most: 0, running: 0, act: Box::new(act) }
    }

    /// A run of users with a program in mbcopy's place, which counts its pushes.
    fn begin(users: &[&str], script: &str) -> (tempfile::TempDir, Store, Options) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("mbcopy");
        let counting = format!(
            "for last; do :; done; user=$(eval echo \\${{$(($# - 1))}})\n\
                                echo $user >> {}/pushed\n{script}\n",
            dir.path().display()
        );
        std::fs::write(&program, format!("#!/bin/sh\n{counting}")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let store = Store::create(dir.path(), "run").unwrap();
        let planned: Vec<Planned> = users
            .iter()
            .map(|name| Planned {
                mailbox: (*name).into(),
                source: String::new(),
                destination: "bw2".into(),
                partition: None,
                not_before: 0,
                known: true,
                size: (1, 1, 1),
            })
            .collect();
        store.add(&planned, Mode::Move, false).unwrap();
        store.begin(Mode::Move).unwrap();
        store.order(Order::Listed).unwrap();
        let options = Options {
            limits: Limits {
                jobs: 3,
                max_failures: None,
                windows: Windows::default(),
                pause: Duration::ZERO,
            },
            retries: Retries { attempts: 3, pause: Duration::ZERO },
            launcher: Launcher {
                program,
                common: Vec::new(),
                push: Vec::new(),
                back: Vec::new(),
                outputs: store.attempts(),
                from: Default::default(),
            },
            paces: Vec::new(),
        };
        (dir, store, options)
    }

    fn pushed(dir: &tempfile::TempDir) -> Vec<String> {
        let text = std::fs::read_to_string(dir.path().join("pushed")).unwrap_or_default();
        let mut users: Vec<String> = text.lines().map(str::to_owned).collect();
        users.sort();
        users
    }

    const DONE: &str = r#"echo '{"event":"report","outcome":"done","mailboxes":1}'"#;

    #[tokio::test]
    async fn everybody_is_moved_once_and_never_more_than_the_jobs_at_once() {
        let users: Vec<String> = (0..10).map(|n| format!("user.{n}")).collect();
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        let (dir, store, options) = begin(&users, &format!("sleep 0.05; {DONE}"));
        let right = store.coordinate().unwrap();
        let mut told = told(|_| {});
        let finish = run(&store, &right, &options, &mut told, &Stop::default()).await.unwrap();
        assert_eq!(finish, Finish::Ended(End::Over));
        assert_eq!((told.most, told.lines.len()), (3, 10));
        assert_eq!(pushed(&dir), users);
        let again = run(&store, &right, &options, &mut told, &Stop::default()).await.unwrap();
        assert_eq!((again, pushed(&dir).len()), (Finish::Ended(End::Over), 10));
        assert_eq!(std::fs::read_dir(store.attempts()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn each_failure_is_tried_as_often_as_it_deserves() {
        let script = format!(
            "case $user in *bad) exit 4;; *down) exit 1;; *died) kill -9 $$;; *) {DONE};; esac"
        );
        let (dir, store, options) = begin(&["a.bad", "a.down", "a.died", "a.good"], &script);
        let right = store.coordinate().unwrap();
        let mut told = told(|_| {});
        run(&store, &right, &options, &mut told, &Stop::default()).await.unwrap();
        let count = |name: &str| pushed(&dir).iter().filter(|user| *user == name).count();
        assert_eq!(["a.bad", "a.down", "a.died", "a.good"].map(count), [1, 3, 3, 1]);
        let state = |name: &str| store.state_of(name).unwrap().unwrap();
        assert_eq!(
            ["a.bad", "a.down", "a.died", "a.good"].map(state),
            [State::Refused, State::Stuck, State::Stuck, State::Moved]
        );
    }

    #[tokio::test]
    async fn who_was_at_work_when_the_coordinator_died_is_waited_for() {
        let (dir, store, options) = begin(&["u.a", "u.b", "u.c"], &format!("sleep 0.3; {DONE}"));
        {
            // A coordinator that dies with one at work, one ended and one noted only.
            let first = store.claim(now_ms(), false).unwrap().unwrap();
            let mut child = options.launcher.start(&first).unwrap();
            child.wait().await.unwrap();
            let second = store.claim(now_ms(), false).unwrap().unwrap();
            std::mem::forget(options.launcher.start(&second).unwrap());
            store.claim(now_ms(), false).unwrap().unwrap();
        }
        let found = std::cell::Cell::new(0);
        let right = store.coordinate().unwrap();
        let mut told = told(|event| {
            found.set(found.get() + u32::from(matches!(event, Event::Found(_))));
        });
        // What has ended is not found at work, and ends all the same.
        told.running = 1;
        let finish = run(&store, &right, &options, &mut told, &Stop::default()).await.unwrap();
        assert_eq!((finish, found.get()), (Finish::Ended(End::Over), 1));
        assert_eq!(pushed(&dir), ["u.a", "u.b", "u.c"], "nobody twice, nobody forgotten");
        assert_eq!(store.counts().unwrap()[0].users, 3);
    }

    #[tokio::test]
    async fn interrupted_it_stops_what_is_under_way_and_goes_on_later() {
        let script = format!(
            "trap 'echo \"{{\\\"event\\\":\\\"report\\\",\\\"outcome\\\":\\\"interrupted\\\"}}\"; exit 7' TERM\n\
             test -e $0.go || {{ sleep 30 & wait $!; }}; {DONE}"
        );
        let (dir, store, options) = begin(&["u.a", "u.b", "u.c", "u.d"], &script);
        let right = store.coordinate().unwrap();
        let stop = Stop::default();
        let mut first = told(|event| {
            if matches!(event, Event::Waiting(Reason::Busy, _)) {
                // All three have set their traps.
                std::thread::sleep(Duration::from_millis(300));
                stop.store(1, Ordering::Relaxed);
            }
        });
        let finish = run(&store, &right, &options, &mut first, &stop).await.unwrap();
        drop(first);
        assert_eq!(finish, Finish::Interrupted);
        assert_eq!(pushed(&dir).len(), 3);
        std::fs::write(dir.path().join("mbcopy.go"), "").unwrap();
        let mut second = told(|_| {});
        let finish = run(&store, &right, &options, &mut second, &Stop::default()).await.unwrap();
        assert_eq!((finish, second.lines.len()), (Finish::Ended(End::Over), 4));
    }

    #[tokio::test]
    async fn too_many_failures_end_it_and_a_drain_does() {
        let (_dir, store, options) = begin(&["u.a", "u.b", "u.c", "u.d", "u.e"], "exit 4");
        let right = store.coordinate().unwrap();
        let limits = Limits { max_failures: Some(2), jobs: 1, ..options.limits.clone() };
        let options = Options { limits, ..options };
        let mut first = told(|_| {});
        let finish = run(&store, &right, &options, &mut first, &Stop::default()).await.unwrap();
        assert_eq!((finish, first.lines.len()), (Finish::Ended(End::Failures), 2));
        let any = Limits { max_failures: None, ..options.limits.clone() };
        let options = Options { limits: any, ..options };
        store.set_control(Control::Draining).unwrap();
        let finish = run(&store, &right, &options, &mut first, &Stop::default()).await.unwrap();
        assert_eq!((finish, first.lines.len()), (Finish::Ended(End::Drained), 2));
    }
}
