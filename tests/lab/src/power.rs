//! The power of one server, or of both, fails during a move; the same command finishes the move,
//! and the user is whole on exactly one server.
//!
//! Each [`Trial`] moves a user of its own between two hosts whose data lie on a [`Disk`] each.
//! At some instant the disk is cut off, then the network, then all processes end. On the server
//! that has survived mbcopy is killed too, or lives on until it finds out.

use crate::disk::{Disk, Kind};
use crate::fingerprint::{self, Fingerprint, Take, volatile};
use crate::host::{Host, state_dir};
use crate::lmtp::{self, Outcome};
use crate::medium::{Fate, Loss};
use crate::seed::Seed;
use crate::workload::Route;
use anyhow::{Context, Result, ensure};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// How long a push may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// Exit code of a push that would not touch what it found.
const REFUSED: i32 = 4;
/// Between two deliveries.
const MAIL_EVERY: Duration = Duration::from_millis(30);
/// Where most goes wrong if anything does, as `/run/mbcopy-fault` calls these places.
pub const PLACES: [&str; 18] = [
    "Frozen",
    "Settled",
    "PublishBegun",
    "PublishRenamedOne",
    "PublishRenamed",
    "PublishAnnotated",
    "PublishCommitted",
    "PublishRecorded",
    "Published",
    "RouteChanged",
    "Routed",
    "RetireBegun",
    "RetireCommitted",
    "RetireRenamedOne",
    "RetireRenamed",
    "Retired",
    "Thawed",
    "TargetFinished",
];

/// Whose power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// That of the server that has the user.
    Source,
    /// That of the server that gets him.
    Target,
    /// That of both at the same instant.
    Together,
}

/// When the power fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// So long after the push was started.
    After(Duration),
    /// When a process has just died at this place.
    At(&'static str),
    /// When the push has just said that the user is moved.
    Ended,
}

/// What the admin does when the power is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The same push.
    Again,
    /// `mbcopy abort`.
    Abort,
}

/// One power cut.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Whose.
    pub side: Side,
    /// When.
    pub when: When,
    /// How long after the push was started again the power fails once more.
    pub once_more: Option<Duration>,
    /// What becomes of what was in the disks' caches.
    pub fate: Fate,
    /// Whether mail arrives all the time.
    pub mail: bool,
    /// Whether the kernel writes back all the time, so that more is under way when it happens.
    pub busy: bool,
    /// Whether mbcopy goes on on the server that has power, and must find out by itself.
    pub lives: bool,
    /// What is done then.
    pub recovery: Recovery,
    /// What mbcopy is told to leave undone until then; words for `/run/mbcopy-sabotage`.
    pub sabotage: String,
}

/// What a trial has shown.
#[derive(Debug)]
pub struct Finding {
    /// Exit code of the push whose power was cut last.
    pub first: i32,
    /// Who showed the user when the power was back: source, target.
    pub between: [bool; 2],
    /// What the disks lost.
    pub loss: Loss,
    /// Messages that were accepted and had to be there in the end.
    pub mail: usize,
    /// Whether Cyrus had to reconstruct what it had been writing when its power failed.
    pub reconstructed: bool,
    /// What is not as promised.
    pub violations: Vec<String>,
    /// How long all of it took.
    pub took: Duration,
}

impl Finding {
    /// Whether the move could not be finished because the source, thawed by its agent's death, had
    /// taken mail that waited there: no loss of power is needed for that.
    pub fn stragglers(&self) -> bool {
        self.violations.iter().any(|v| v.contains("received mail or changes after it was frozen"))
    }
}

/// Two servers on disks that can be cut.
pub struct Rig {
    source: Host,
    target: Host,
    mbcopy: PathBuf,
    kind: Kind,
    /// The source's and the target's.
    disks: Vec<Disk>,
    number: u32,
    /// Somebody who was moved before, and must not be touched by anything that comes.
    before: Option<(String, Fingerprint)>,
}

impl Rig {
    /// Brings both hosts up, empty, on new disks, with this mbcopy. They are stopped, and have
    /// their former data, when this is dropped.
    pub fn new(source: &Host, target: &Host, mbcopy: &Path, kind: Kind) -> Result<Rig> {
        let mut rig = Rig {
            source: source.clone(),
            target: target.clone(),
            mbcopy: mbcopy.to_owned(),
            kind,
            disks: Vec::new(),
            number: 0,
            before: None,
        };
        rig.renew()?;
        Ok(rig)
    }

    /// Starts over with empty servers on new disks.
    pub fn renew(&mut self) -> Result<()> {
        self.disks.clear();
        self.before = None;
        for host in [&self.source, &self.target] {
            host.up()?;
            host.empty()?;
            host.install(&self.mbcopy, PROGRAM)?;
            self.disks.push(Disk::insert(host, self.kind)?);
        }
        Ok(())
    }

    fn hosts(&self) -> [&Host; 2] {
        [&self.source, &self.target]
    }

    /// How long a move takes when nothing happens to it.
    pub fn usual(&mut self) -> Result<Duration> {
        let (user, _) = self.newcomer()?;
        let route = self.route(&user)?;
        let start = Instant::now();
        let mut push = self.push(&user, &route.command)?;
        let code = push.ended()?.unwrap_or_default();
        ensure!(code == 0, "an undisturbed push ends with {code}:\n{}", push.said());
        Ok(start.elapsed())
    }

    /// A new user on the source, whose mail has been on stable storage for long.
    fn newcomer(&mut self) -> Result<(String, Fingerprint)> {
        self.number += 1;
        let user = format!("power{}", self.number);
        for host in self.hosts() {
            host.add_users(&[&user])?;
        }
        let report = Seed::new(&self.source, &user).seed(u64::from(self.number)).small()?;
        ensure!(report.warnings.is_empty(), "seeding: {:?}", report.warnings);
        for host in self.hosts() {
            host.run(&["sync", "-f", "/var/lib/cyrus"])?;
        }
        let print = take(&self.source, &user)?;
        Ok((user, print))
    }

    /// The user's route, kept where no power is cut, and the command that changes it.
    fn route(&self, user: &str) -> Result<Routed> {
        let name = format!("route-{user}");
        let route = Route::file(user, state_dir().join("run/shared").join(&name));
        route.set(self.source.name())?;
        let command = format!(
            r#"sed -i "s/^$MBCOPY_USER .*/$MBCOPY_USER $MBCOPY_NEW_SERVER/" /run/lab/{name}"#
        );
        Ok(Routed { route, command })
    }

    fn push(&self, user: &str, route_command: &str) -> Result<Running> {
        let mailbox = format!("user.{user}");
        let target = self.target.name();
        Running::start(
            &self.source,
            &["push", &mailbox, target, "--route-command", route_command, "-v"],
        )
    }

    /// Cuts the power once, and judges what becomes of the move.
    pub fn run(&mut self, trial: &Trial) -> Result<Finding> {
        let start = Instant::now();
        let (user, before) = self.newcomer()?;
        let Routed { route, command } = self.route(&user)?;
        let mut judge = Judge { before: before.clone(), mail: trial.mail };
        let mail = trial.mail.then(|| Deliverer::start(&route));
        let mut violations = Vec::new();

        if !trial.sabotage.is_empty() {
            self.tell("mbcopy-sabotage", &trial.sabotage)?;
        }
        let mut blow = self.strike(trial, &trial.when, &user, &command)?;
        let mut reconstructed = self.stand_up(trial, &user, &route, &mut judge)?;
        let mut between = self.look(&user, &judge, &mut violations)?;
        if let (Some(time), true) = (trial.once_more, blow.code != 0) {
            let second = self.strike(trial, &When::After(time), &user, &command)?;
            let loss = blow.loss.and(second.loss);
            blow = Blow { loss, at: blow.at, ..second };
            reconstructed |= self.stand_up(trial, &user, &route, &mut judge)?;
            between = self.look(&user, &judge, &mut violations)?;
        }
        let Blow { code: first, loss, at: cut, back, push } = blow;

        // Where the move had ended, there is nothing left to finish.
        if first != 0 {
            let mut failed = self.recover(trial.recovery, &user, &command, &push)?;
            if let Some((Some(REFUSED), _)) = failed
                && self.reconstruct(trial, &user, &route, &mut judge)?
            {
                reconstructed = true;
                failed = self.recover(trial.recovery, &user, &command, &push)?;
            }
            violations.extend(failed.map(|(_, text)| text));
        }
        let history = mail.map(Deliverer::stop).unwrap_or_default();

        let mut end = None;
        for host in self.hosts() {
            let Some(seen) = sees(host, &user)? else { continue };
            let wrong = judge.differences(&seen)?;
            violations.extend(wrong.iter().map(|w| format!("in the end {host} has {w}")));
            if end.is_some() {
                violations.push("in the end both servers show the user".to_owned());
            }
            end = Some((host.clone(), seen));
        }
        let moved = trial.recovery == Recovery::Again;
        match &end {
            None => violations.push("in the end nobody serves the user".to_owned()),
            Some((host, _)) if moved && *host != self.target => {
                violations.push(format!("in the end {host} serves the user"));
            }
            _ => {}
        }
        let mut accepted = 0;
        if let Some((_, seen)) = &end {
            // What Cyrus accepted just before its own power failed is Cyrus's to keep.
            let counts = |sent: &&Sent| {
                let target = sent.host == self.target.name();
                !fails(trial.side, target)
                    || sent.at > back
                    || sent.at + Duration::from_secs(5) < cut
            };
            let due: Vec<_> =
                history.iter().filter(|s| s.bounce.is_none()).filter(counts).collect();
            accepted = due.len();
            let there = |id: &str| seen.messages().any(|(.., message)| message.message_id == id);
            let missing: Vec<_> = due.into_iter().filter(|sent| !there(&sent.id)).collect();
            if let Some(Sent { id, host, .. }) = missing.first() {
                let more = missing.len() - 1;
                violations
                    .push(format!("{id}, which {host} had accepted, and {more} more are missing"));
            }
        }
        for Sent { id, host, bounce, .. } in &history {
            violations.extend(bounce.iter().map(|b| format!("{host} bounced {id}: {b}")));
        }
        violations.extend(self.leftovers()?);
        if let Some((other, print)) = &self.before {
            let judge = Judge { before: print.clone(), mail: false };
            let wrong = judge.differences(&take(&self.target, other)?)?;
            let other = |w: &String| format!("{other}, who was moved before, has {w}");
            violations.extend(wrong.iter().map(other));
        }
        if !trial.mail {
            self.before = Some((user, before));
        }
        let (mail, took) = (accepted, start.elapsed());
        Ok(Finding { first, between, loss, mail, reconstructed, violations, took })
    }

    /// Starts a push, cuts the power at the instant, and brings it back.
    fn strike(&mut self, trial: &Trial, when: &When, user: &str, route: &str) -> Result<Blow> {
        if let When::At(place) = when {
            self.tell("mbcopy-fault", place)?;
        }
        let hosts = self.hosts().into_iter();
        let failing = hosts.filter(|host| fails(trial.side, *host == &self.target));
        let writers = failing.filter(|_| trial.busy).map(WriteBack::start);
        let _writers = writers.collect::<Result<Vec<_>>>()?;
        let mut push = self.push(user, route)?;
        self.await_instant(when, &mut push)?;
        let at = Instant::now();
        let loss = self.cut(trial)?;
        for (host, disk) in self.hosts().into_iter().zip(&self.disks) {
            if fails(trial.side, host == &self.target) {
                disk.start()?;
            } else {
                self.forget(host, trial.lives)?;
            }
        }
        let code = push.ended()?.unwrap_or(-1);
        Ok(Blow { push, code, loss, at, back: Instant::now() })
    }

    /// Who shows the user; whoever does must show all of him.
    fn look(&self, user: &str, judge: &Judge, wrong: &mut Vec<String>) -> Result<[bool; 2]> {
        let mut shown = [false, false];
        for (host, shown) in self.hosts().into_iter().zip(&mut shown) {
            if let Some(seen) = sees(host, user)? {
                *shown = true;
                let differences = judge.differences(&seen)?;
                wrong.extend(differences.iter().map(|w| format!("after the cut {host} has {w}")));
            }
        }
        if shown == [false, false] {
            wrong.push("after the cut nobody serves the user".to_owned());
        }
        Ok(shown)
    }

    /// Has Cyrus reconstruct a mailbox that it cannot open any more.
    fn stand_up(
        &self,
        trial: &Trial,
        user: &str,
        route: &Route,
        judge: &mut Judge,
    ) -> Result<bool> {
        for host in self.hosts() {
            if sees(host, user)?.is_some() {
                return Ok(false);
            }
        }
        self.reconstruct(trial, user, route, judge)
    }

    /// Cyrus's own remedy for what a power cut leaves of a mailbox that it was just writing to:
    /// a file whose record is not on the disk, an index shorter than its header says. Whether
    /// that may be, and it was done. What Cyrus makes of it, an index without flags perhaps, is
    /// what counts from then on.
    fn reconstruct(
        &self,
        trial: &Trial,
        user: &str,
        route: &Route,
        judge: &mut Judge,
    ) -> Result<bool> {
        let host = route.host()?;
        if !trial.mail || !fails(trial.side, host == self.target) {
            return Ok(false);
        }
        let mailbox = format!("user.{user}");
        host.run_as_cyrus(&["/usr/lib/cyrus/bin/reconstruct", "-r", &mailbox])?;
        let now = take(&host, user)?;
        let contents = |print: &Fingerprint| -> BTreeSet<(String, u32, String)> {
            let all = print.messages();
            all.map(|(folder, uid, m)| (folder.to_owned(), uid, m.sha1.clone())).collect()
        };
        let missing = contents(&judge.before).difference(&contents(&now)).count();
        ensure!(missing == 0, "Cyrus itself has lost {missing} messages of {user}");
        judge.before = now;
        Ok(true)
    }

    /// Does what the admin does; how that failed, if it did, and with which exit code.
    fn recover(
        &self,
        recovery: Recovery,
        user: &str,
        route_command: &str,
        before: &Running,
    ) -> Result<Option<(Option<i32>, String)>> {
        let mut again = match recovery {
            Recovery::Again => self.push(user, route_command)?,
            Recovery::Abort => Running::start(&self.source, &["abort", &format!("user.{user}")])?,
        };
        let code = again.ended()?;
        let ended = match code {
            Some(0) => return Ok(None),
            Some(code) => format!("ended with {code}"),
            None => "hangs".to_owned(),
        };
        let (before, said) = (before.said(), again.said());
        let text = format!("{recovery:?} {ended}:\n{said}The push before it:\n{before}");
        Ok(Some((code, text)))
    }

    /// Puts a word where mbcopy looks for it, on both hosts.
    fn tell(&self, file: &str, word: &str) -> Result<()> {
        for host in self.hosts() {
            let script = r#"echo "$1" > "/run/$0"; chmod 666 "/run/$0""#;
            host.run(&["sh", "-c", script, file, word])?;
        }
        Ok(())
    }

    /// Takes such words back, and kills what is left of mbcopy, unless it lives on.
    fn forget(&self, host: &Host, lives: bool) -> Result<()> {
        let pids = if lives { Vec::new() } else { host.pids("mbcopy (push|agent)")? };
        for pid in pids {
            if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                // It may have ended by itself.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        host.run(&["rm", "-f", "/run/mbcopy-fault", "/run/mbcopy-sabotage"])?;
        Ok(())
    }

    /// Waits for the instant; a push that ends before has it come at once.
    fn await_instant(&self, when: &When, push: &mut Running) -> Result<()> {
        let place = match when {
            When::After(time) => {
                std::thread::sleep(*time);
                return Ok(());
            }
            When::Ended => {
                let code = push.ended()?;
                ensure!(code == Some(0), "the push ended with {code:?}:\n{}", push.said());
                return Ok(());
            }
            When::At(place) => place,
        };
        let mut files = Vec::new();
        for host in self.hosts() {
            files.push(host.root()?.join("run/mbcopy-fault"));
        }
        let spent =
            |file: &PathBuf| std::fs::read_to_string(file).is_ok_and(|word| word.trim().is_empty());
        let start = Instant::now();
        while !files.iter().any(spent) {
            let ended = push.child.try_wait()?.is_some();
            ensure!(!ended || files.iter().any(spent), "{place} was not reached:\n{}", push.said());
            ensure!(start.elapsed() < PATIENCE, "{place} is not reached:\n{}", push.said());
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The instant itself.
    fn cut(&mut self, trial: &Trial) -> Result<Loss> {
        let chosen = [false, true].map(|target| fails(trial.side, target));
        let mut fallen: Vec<_> =
            self.disks.iter_mut().zip(chosen).filter(|(_, f)| *f).map(|(disk, _)| disk).collect();
        fallen.iter_mut().for_each(|disk| disk.cut());
        let mut loss = Loss::default();
        for disk in fallen {
            loss = loss.and(disk.fall(trial.fate)?);
        }
        Ok(loss)
    }

    /// What is left on the target of a stage.
    fn leftovers(&self) -> Result<Option<String>> {
        let find = "find /var/spool/cyrus /var/lib/cyrus/mbcopy/moves /var/spool/sieve \
                    -path '*mbcopy*' -type f 2>/dev/null | head -n 5";
        let left = self.target.run(&["sh", "-c", find])?;
        Ok((!left.is_empty()).then(|| format!("the target keeps a stage: {}", left.trim())))
    }
}

fn fails(side: Side, target: bool) -> bool {
    side == Side::Together || (side == Side::Target) == target
}

/// A power cut that is over.
struct Blow {
    push: Running,
    /// Of the push.
    code: i32,
    loss: Loss,
    at: Instant,
    /// When both servers ran again.
    back: Instant,
}

struct Routed {
    route: Route,
    command: String,
}

/// What the user must be.
struct Judge {
    before: Fingerprint,
    /// Whether more may have come.
    mail: bool,
}

impl Judge {
    fn differences(&self, now: &Fingerprint) -> Result<Vec<String>> {
        if !self.mail {
            let always = [volatile::LASTUPDATE, volatile::SERVER];
            let ignored: Vec<_> = volatile::ALWAYS.iter().chain(&always).copied().collect();
            let found = fingerprint::diff(&self.before, now, &ignored)?;
            return Ok(if found.is_empty() { vec![] } else { vec![fingerprint::report(&found)] });
        }
        let mut wrong = Vec::new();
        let folders =
            |print: &Fingerprint| -> Vec<String> { print.own.mailboxes.keys().cloned().collect() };
        if folders(&self.before) != folders(now) {
            wrong.push(format!("other folders: {:?}", folders(now)));
        }
        let now: std::collections::BTreeMap<_, _> =
            now.messages().map(|(folder, uid, message)| ((folder, uid), message)).collect();
        for (folder, uid, message) in self.before.messages() {
            let found = now.get(&(folder, uid));
            if found != Some(&message) {
                wrong.push(format!("{folder} {uid}: {found:?} instead of {message:?}"));
            }
        }
        Ok(wrong)
    }
}

/// Everything that can be observed of a user.
fn take(host: &Host, user: &str) -> Result<Fingerprint> {
    Fingerprint::take(host, user, &Take::default())
}

/// What a client sees of the user there: everything, or nothing.
fn sees(host: &Host, user: &str) -> Result<Option<Fingerprint>> {
    let mut imap = host.imap(user)?;
    let shown = imap.attempt("EXAMINE INBOX")?.tagged.is_ok();
    imap.logout();
    if shown { take(host, user).map(Some) } else { Ok(None) }
}

/// mbcopy at work on a host.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(host: &Host, arguments: &[&str]) -> Result<Running> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        // Two at a time are of interest.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed) % 2;
        let log = state_dir().join("run").join(format!("power-{number}.log"));
        let sink = std::fs::File::create(&log)?;
        let command: Vec<&str> = [PROGRAM].iter().chain(arguments).copied().collect();
        let mut command = host.command(&command);
        command.stdin(Stdio::null()).stderr(sink.try_clone()?).stdout(sink);
        Ok(Running { child: command.spawn().context("starting lab.sh exec")?, log })
    }

    /// Its exit code; none if it does not end.
    fn ended(&mut self) -> Result<Option<i32>> {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status.code().unwrap_or(-1)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.child.kill()?;
        Ok(None)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Has a host's kernel write back what is dirty, again and again, until its disk fails.
struct WriteBack(Arc<AtomicBool>);

impl WriteBack {
    fn start(host: &Host) -> Result<WriteBack> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, directory) = (Arc::clone(&stop), host.root()?.join("var/lib/cyrus"));
        std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let synced = std::fs::File::open(&directory).map(rustix::fs::syncfs);
                if !matches!(synced, Ok(Ok(()))) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Ok(WriteBack(stop))
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A message that a server has taken, or refused for good.
#[derive(Clone, Debug)]
struct Sent {
    id: String,
    host: String,
    at: Instant,
    bounce: Option<String>,
}

/// Delivers mail along the route.
struct Deliverer {
    stop: Arc<AtomicBool>,
    sent: Arc<Mutex<Vec<Sent>>>,
    thread: JoinHandle<()>,
}

impl Deliverer {
    fn start(route: &Route) -> Deliverer {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, log, route) = (Arc::clone(&stop), Arc::clone(&sent), route.clone());
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                let id = format!("<{number}.{}@power>", route.user());
                let message = format!("Subject: {number}\r\nMessage-ID: {id}\r\n\r\nmail\r\n");
                while !stopped.load(Ordering::Relaxed) {
                    std::thread::sleep(MAIL_EVERY);
                    let Ok(host) = route.host() else { continue };
                    let bounce = match lmtp::deliver(&host, route.user(), message.as_bytes()) {
                        Outcome::Accepted(_) => None,
                        Outcome::Refused(_, reply) if reply.code >= 500 => Some(reply.text),
                        _ => continue,
                    };
                    let host = host.name().to_owned();
                    let sent = Sent { id, host, at: Instant::now(), bounce };
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(sent);
                    break;
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        Deliverer { stop, sent, thread }
    }

    /// What was sent. One that waits for a server that is no more is left behind.
    fn stop(self) -> Vec<Sent> {
        self.stop.store(true, Ordering::Relaxed);
        let start = Instant::now();
        while !self.thread.is_finished() && start.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Trials of one side: half of them spread over a move that usually takes so long, and a little
/// more; the others at the places where most goes wrong. The same ones for the same seed.
pub fn plan(side: Side, runs: usize, usual: Duration, seed: u64) -> Vec<Trial> {
    let mut random = SmallRng::seed_from_u64(seed);
    let trial = |n: usize| {
        let when = match n % 2 {
            0 => {
                When::After(usual.mul_f64(1.2 * (n as f64 + random.random::<f64>()) / runs as f64))
            }
            _ => {
                let place = PLACES.get((n / 2) % (PLACES.len() + 1));
                place.map_or(When::Ended, |place| When::At(place))
            }
        };
        let fate = match random.random_range(0..10) {
            0 => Fate::Kept,
            1..5 => Fate::Lost,
            _ => Fate::Mixed(random.random()),
        };
        let (mail, busy) = (random.random_range(0..3) == 0, random.random_range(0..2) == 0);
        let again = random.random_range(0..4) == 0;
        let once_more = again.then(|| usual.mul_f64(1.2 * random.random::<f64>()));
        let (lives, recovery, sabotage) = (false, Recovery::Again, String::new());
        Trial { side, when, once_more, fate, mail, busy, lives, recovery, sabotage }
    };
    (0..runs).map(trial).collect()
}

impl std::fmt::Display for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = match self.side {
            Side::Source => "source",
            Side::Target => "target",
            Side::Together => "both",
        };
        match &self.when {
            When::After(time) => write!(f, "{side} after {} ms", time.as_millis())?,
            When::At(place) => write!(f, "{side} at {place}")?,
            When::Ended => write!(f, "{side} when the push had ended")?,
        }
        if let Some(time) = self.once_more {
            write!(f, ", once more after {} ms", time.as_millis())?;
        }
        let also = |is: bool, text: &'static str| if is { text } else { "" };
        write!(f, "{}{}", also(self.mail, ", mail flowing"), also(self.busy, ", writing back"))
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Loss { cached, lost } = self.loss;
        let shown = match self.between {
            [true, true] => "both show him",
            [true, false] => "the source shows him",
            [false, true] => "the target shows him",
            [false, false] => "nobody shows him",
        };
        let seconds = self.took.as_secs_f64();
        write!(f, "{lost} of {cached} cached sectors lost, push {}, {shown}", self.first)?;
        if self.mail > 0 {
            write!(f, ", {} messages accepted", self.mail)?;
        }
        if self.reconstructed {
            write!(f, ", Cyrus reconstructed")?;
        }
        write!(f, ", {seconds:.1} s")?;
        self.violations.iter().try_for_each(|text| write!(f, "\n    VIOLATION: {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_covers_the_whole_move_and_all_places() {
        let plan = plan(Side::Source, 100, Duration::from_secs(1), 1);
        for when in PLACES.map(When::At).into_iter().chain([When::Ended]) {
            assert!(plan.iter().any(|t| t.when == when), "{when:?}");
        }
        let after = |t: &Trial| match t.when {
            When::After(time) => Some(time.as_millis()),
            _ => None,
        };
        let mut times: Vec<_> = plan.iter().filter_map(after).collect();
        times.sort();
        assert!(times[0] < 50 && times[49] > 1150 && times[49] < 1200, "{times:?}");
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] < 60), "{times:?}");
        assert!(plan.iter().any(|t| t.mail) && plan.iter().any(|t| !t.mail));
    }
}
