//! Random runs that try to break a move.
//!
//! A run is drawn from a number, its [`Plan`]: a small user at work, a push, harm to it at random
//! times and places, recovery as an admin would do it, and a verdict from what servers have
//! acknowledged and what is there in the end. The [`Arena`] are the two servers of many runs.

mod cli;
mod harm;
mod plan;
mod tamper;
mod verdict;

pub use cli::{ChaosArgs, run as run_many};
pub use plan::{Harm, POINTS, Plan, Recovery, Side, Strike, Victim, When};
pub use tamper::Tamper;
pub use verdict::{Finding, Kind};

use crate::fingerprint::{Fingerprint, Take};
use crate::host::{Host, state_dir};
use crate::imap::NewMessage;
use crate::seed::Seed;
use crate::workload::{self, Crew, History, Observation, Route, Step};
use anyhow::{Context, Result, bail};
use harm::{Field, Place};
use rustix::process::Signal;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use verdict::Watch;

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// Commands without harm after which a move must have ended.
const TRIES: usize = 6;
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long a command may take that nobody disturbs, on a machine that is busy.
const SLOW: Duration = Duration::from_secs(15);
/// And for each mailbox: where a harm lasts for minutes, clients make hundreds.
const SLOW_EACH: Duration = Duration::from_millis(20);
/// What clients may wait beyond the limit of the freeze, on a machine that is busy.
const LATE: Duration = Duration::from_secs(5);
/// How long anything may still be blocked when all is over, on a machine that is busy.
const BLOCKED: Duration = Duration::from_secs(5);
/// Looks of a watcher that prove something.
const LOOKS: u32 = 10;
/// What a client pauses between two operations.
const PAUSE: Duration = Duration::from_millis(10);

/// A command and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Attempt {
    /// What it was.
    pub command: Recovery,
    /// Its exit code; -1 where there is none.
    pub code: i32,
    /// How long it took.
    pub seconds: f64,
    /// How many mailboxes its report names.
    pub mailboxes: u32,
    /// The harms that were done to it.
    pub harms: Vec<String>,
    /// What it said last.
    pub said: String,
}

/// A run and its verdict.
#[derive(Debug, Serialize)]
pub struct Run {
    /// The number that repeats it.
    pub seed: u64,
    /// The plan in words.
    pub plan: String,
    /// The source.
    pub source: String,
    /// The target.
    pub target: String,
    /// Everything that was tried, in order.
    pub attempts: Vec<Attempt>,
    /// The kinds of harm that were done.
    pub harms: Vec<String>,
    /// Who serves the user in the end.
    pub serving: String,
    /// How many operations were acknowledged.
    pub acknowledged: u32,
    /// Why attempts of clients failed, and how often.
    pub setbacks: std::collections::BTreeMap<String, u32>,
    /// The longest wait of any client, in seconds.
    pub longest_wait: f64,
    /// How often the watchers looked.
    pub looks: u32,
    /// Promises that were broken.
    pub findings: Vec<Finding>,
    /// How long the run took.
    pub seconds: f64,
    /// What explains the findings.
    pub evidence: Option<PathBuf>,
}

/// How a move ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Moved,
    Aborted,
    /// It has not ended; the findings tell.
    Not,
}

/// Two servers on which runs follow each other.
pub struct Arena {
    hosts: [Host; 2],
    accounts: BTreeSet<String>,
    tamper: Option<Tamper>,
}

/// What a run has gathered when its verdict is due.
struct Course {
    attempts: Vec<Attempt>,
    ending: Ending,
    findings: Vec<Finding>,
}

impl Arena {
    /// Brings both hosts up, empty, with the program installed.
    pub fn new(names: [&str; 2], mbcopy: &Path) -> Result<Arena> {
        let hosts = names.map(Host::new);
        for host in &hosts {
            // A runner that was interrupted may have left it cut off; a new one has no cable yet.
            let _ = host.heal();
            host.up()?;
            host.empty()?;
            host.install(mbcopy, PROGRAM)?;
        }
        let hosts = names.map(Host::new);
        let [source, target] = &hosts;
        Field { source: Place::new(source)?, target: Place::new(target)? }.clear()?;
        Ok(Arena { hosts, accounts: BTreeSet::new(), tamper: None })
    }

    /// Has mbcopy betray its promises from now on; it must be built to do so.
    pub fn sabotage(&self, word: Option<&str>) -> Result<()> {
        self.hosts.iter().try_for_each(|host| Place::new(host)?.sabotage(word))
    }

    /// From now on the runner itself breaks a promise at the end of each run, to show that
    /// it is noticed.
    pub fn tamper(&mut self, tamper: Option<Tamper>) {
        self.tamper = tamper;
    }

    /// Makes the accounts of some runs at once.
    pub fn accounts(&mut self, users: impl Iterator<Item = String>) -> Result<()> {
        let new: Vec<String> = users.filter(|user| !self.accounts.contains(user)).collect();
        let names: Vec<&str> = new.iter().map(String::as_str).collect();
        if !names.is_empty() {
            self.hosts.iter().try_for_each(|host| host.add_users(&names))?;
        }
        self.accounts.extend(new);
        Ok(())
    }

    /// Does one run. Whatever goes wrong is among its findings.
    pub fn run(&mut self, plan: &Plan) -> Run {
        let began = Instant::now();
        let [source, target] = match plan.backwards {
            false => [&self.hosts[0], &self.hosts[1]],
            true => [&self.hosts[1], &self.hosts[0]],
        };
        let mut run = Run {
            seed: plan.seed,
            plan: plan.to_string(),
            source: source.name().into(),
            target: target.name().into(),
            attempts: Vec::new(),
            harms: Vec::new(),
            serving: String::new(),
            acknowledged: 0,
            setbacks: Default::default(),
            longest_wait: 0.0,
            looks: 0,
            findings: Vec::new(),
            seconds: 0.0,
            evidence: None,
        };
        let directory = state_dir().join("chaos").join(plan.seed.to_string());
        let new_account = self.accounts(std::iter::once(plan.user()));
        let scene = Scene {
            source: self.hosts[usize::from(plan.backwards)].clone(),
            target: self.hosts[usize::from(!plan.backwards)].clone(),
            user: plan.user(),
            directory: directory.clone(),
            tamper: self.tamper,
        };
        let done = new_account.and_then(|()| scene.play(plan, &mut run));
        if let Err(error) = done {
            run.findings.push(Finding::new(Kind::Harness, format!("{error:#}")));
            // The next run must find servers that work.
            let _ = scene.field().and_then(|field| field.mend());
        }
        run.seconds = began.elapsed().as_secs_f64();
        match run.findings.is_empty() {
            true => drop(std::fs::remove_dir_all(&directory)),
            false => run.evidence = Some(scene.keep_evidence(&run)),
        }
        run
    }
}

/// The place, the actor and the time of one run.
struct Scene {
    source: Host,
    target: Host,
    user: String,
    /// Where everything is kept that explains the run.
    directory: PathBuf,
    tamper: Option<Tamper>,
}

impl Scene {
    fn field(&self) -> Result<Field<'_>> {
        Ok(Field { source: Place::new(&self.source)?, target: Place::new(&self.target)? })
    }

    fn mailbox(&self) -> String {
        format!("user.{}", self.user)
    }

    /// The run, from an empty mailbox to the verdict.
    fn play(&self, plan: &Plan, run: &mut Run) -> Result<()> {
        let _ = std::fs::remove_dir_all(&self.directory);
        std::fs::create_dir_all(&self.directory)?;
        let field = self.field()?;
        let seeded = Seed::new(&self.source, &self.user).seed(plan.seed).small()?;
        anyhow::ensure!(seeded.warnings.is_empty(), "seeding: {:?}", seeded.warnings);
        let before = Fingerprint::take(&self.source, &self.user, &Take::default())?;
        let stages = self.stages();
        let (mut route, command) = Route::commanded(&self.user, &self.source)?;
        if !plan.strikes.is_empty() {
            route = route.with_crashes();
        }
        let crew = Crew::start_all(&route, PAUSE)?;
        let watchers = [&self.source, &self.target]
            .map(|host| workload::watcher(host, &self.user, Duration::from_millis(5)));
        let listers = [&self.source, &self.target]
            .map(|host| workload::lister(host, &self.user, Duration::from_millis(3)));
        std::thread::sleep(Duration::from_millis(300));

        let course = self.drive(plan, &field, &command);
        let harmless = course.as_ref().is_ok_and(|c| c.attempts.iter().all(|a| a.harms.is_empty()));
        let mended = if harmless { Ok(()) } else { field.mend() };
        std::thread::sleep(Duration::from_millis(400));
        // A short move on a busy machine.
        let enough = Instant::now() + SLOW;
        while watchers.iter().any(|watcher| watcher.looks() < LOOKS) && Instant::now() < enough {
            std::thread::sleep(Duration::from_millis(50));
        }
        let history = crew.stop()?;
        let [source, target] = watchers.map(|watcher| watcher.stop());
        let [source_names, target_names] = listers.map(|lister| lister.stop());
        mended?;
        let Course { attempts, ending, findings } = course?;
        run.harms = attempts.iter().flat_map(|attempt| attempt.harms.clone()).collect();
        run.attempts = attempts;
        run.findings = findings;
        run.acknowledged = history.latency.values().map(|latency| latency.count).sum();
        run.longest_wait = history.longest().as_secs_f64();
        run.setbacks = history.setbacks.clone();
        let outage = plan.strikes.iter().any(|strike| strike.harm.is_outage());
        if !outage && history.longest() > Duration::from_secs(plan.max_freeze) + LATE {
            let text = format!("a client waited for {:?}", history.longest());
            run.findings.push(Finding::new(Kind::Locked, text));
        }
        self.save("history.json", &history)?;

        run.findings.extend(verdict::denials(&history.setbacks));
        self.judge_watch(run, &before, [source?, target?], [source_names?, target_names?])?;
        let end = match ending {
            Ending::Moved => &self.target,
            Ending::Aborted => &self.source,
            // What follows would only say the same in many words.
            Ending::Not => return Ok(()),
        };
        run.serving = end.name().to_owned();
        if let Some(tamper) = self.tamper {
            tamper.perform(self, end)?;
        }
        let late = self.judge_end(run, end, &route)?;
        self.judge_rest(run, &field, &stages);
        self.judge_history(run, end, &before, &history, &late)
    }

    /// Pushes, does harm, and recovers.
    fn drive(&self, plan: &Plan, field: &Field, route_command: &str) -> Result<Course> {
        let mut course = Course { attempts: Vec::new(), ending: Ending::Not, findings: Vec::new() };
        let mut strikes = plan.strikes.iter().peekable();
        let mut command = Recovery::Again;
        let mut quiet = 0;
        for number in 0.. {
            let attempt =
                self.attempt(number, command, plan, field, &mut strikes, route_command)?;
            let harmed = !attempt.harms.is_empty();
            quiet = if harmed { 0 } else { quiet + 1 };
            let Attempt { code, command: was, seconds, mailboxes, ref said, .. } = attempt;
            if !harmed && seconds > (SLOW + SLOW_EACH * mailboxes).as_secs_f64() {
                let text = format!("a command without harm took {seconds:.1} s: {said}");
                course.findings.push(Finding::new(Kind::Slow, text));
            }
            let said = said.clone();
            course.attempts.push(attempt);
            let stragglers = said.contains("received mail or changes after it was frozen");
            let ended = code == 0 || self.is_over_silently(code, number)?;
            if ended && was != Recovery::Abort {
                course.ending = Ending::Moved;
                break;
            }
            if code == 0 && !plan.again_after_abort {
                course.ending = Ending::Aborted;
                break;
            }
            if stragglers {
                course.findings.push(Finding::new(Kind::Stragglers, said));
                break;
            }
            if number == 0 && !harmed {
                let text = format!("the push ended with {code}: {said}");
                course.findings.push(Finding::new(Kind::Unprovoked, text));
            }
            if quiet > TRIES {
                let text = format!("after {quiet} tries without harm: {code}: {said}");
                course.findings.push(Finding::new(Kind::Stuck, text));
                break;
            }
            // Resume and abort may know of no move, or come too late.
            let refused = was != Recovery::Again && [0, 2, 4, 5].contains(&code);
            let next = plan.recoveries.get(number % plan.recoveries.len().max(1));
            command = match next {
                Some(next) if !refused => *next,
                _ => Recovery::Again,
            };
            std::thread::sleep(Duration::from_millis(100 + 100 * quiet as u64));
        }
        field.disarm();
        Ok(course)
    }

    /// Whether the move was over before the command that was refused: the command before was
    /// killed when it had nothing left to do.
    fn is_over_silently(&self, code: i32, number: usize) -> Result<bool> {
        if number == 0 || ![2, 4].contains(&code) {
            return Ok(false);
        }
        let status = self.status(&self.source);
        let last = status.lines().last().unwrap_or_default();
        let last: serde_json::Value = serde_json::from_str(last).unwrap_or_default();
        Ok(last["role"] == "source" && last["state"] == "done")
    }

    fn status(&self, host: &Host) -> String {
        let status = host.exec(&[PROGRAM, "status", &self.mailbox(), "--json"]);
        status.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
    }

    fn arguments(&self, command: Recovery, plan: &Plan, route_command: &str) -> Vec<String> {
        let mailbox = self.mailbox();
        let max_freeze = format!("{}s", plan.max_freeze);
        let target = self.target.name();
        let words: &[&str] = match command {
            Recovery::Again => &[
                "push",
                &mailbox,
                target,
                "--json",
                "--max-freeze",
                &max_freeze,
                "--route-command",
                route_command,
            ],
            Recovery::Resume => &["resume", &mailbox, "--json"],
            Recovery::Abort => &["abort", &mailbox, "--json"],
        };
        // The shell stays between: nsenter stops for good when its own child is stopped.
        let shell = ["sh", "-c", "\"$@\"; exit $?", "sh", PROGRAM];
        shell.iter().chain(words).map(|word| (*word).to_owned()).collect()
    }

    /// Runs one command and does the harms that are due meanwhile.
    fn attempt<'p>(
        &self,
        number: usize,
        command: Recovery,
        plan: &Plan,
        field: &Field,
        strikes: &mut std::iter::Peekable<impl Iterator<Item = &'p Strike>>,
        route_command: &str,
    ) -> Result<Attempt> {
        let file = |what: &str| self.directory.join(format!("{number}.{what}"));
        let mut child = self
            .source
            .command(&self.arguments(command, plan, route_command))
            .stdin(Stdio::null())
            .stdout(File::create(file("stdout"))?)
            .stderr(File::create(file("stderr"))?)
            .spawn()
            .context("starting mbcopy")?;
        let began = Instant::now();
        let mut harms = Vec::new();
        while let Some(Strike { when, harm }) = strikes.peek() {
            let strike = Instant::now();
            if let When::At(point, before) = when {
                field.arm(point, *before)?;
            }
            let struck = loop {
                if child.try_wait()?.is_some() || began.elapsed() > PATIENCE {
                    break false;
                }
                let (due, stopped) = match when {
                    When::After(time) => (strike.elapsed() >= *time, Vec::new()),
                    When::At(..) => {
                        let stopped = field.stopped();
                        (!stopped.is_empty(), stopped)
                    }
                };
                if due {
                    // The other server's may not stop later, when nobody waits for it.
                    field.disarm();
                    let done = field.perform(*harm);
                    field.wake();
                    if done? || !stopped.is_empty() {
                        break true;
                    }
                }
                std::thread::sleep(Duration::from_millis(3));
            };
            if !struck {
                break;
            }
            harms.push(harm.kind());
            strikes.next();
        }
        let code = wait(&mut child, (began + PATIENCE).saturating_duration_since(Instant::now()))?;
        // Nor may an agent that has outlived its coordinator stop for ever where this was to happen.
        field.disarm();
        field.wake();
        let seconds = began.elapsed().as_secs_f64();
        let report = report(&file("stdout"))?;
        let said = match code {
            Some(_) => last_words(&report, &file("stderr"))?,
            None => {
                // As an admin would at last.
                field.perform(Harm::Kill(Victim::Coordinator))?;
                let _ = child.wait();
                format!("it did not end within {PATIENCE:?}")
            }
        };
        let mailboxes = report["mailboxes"].as_u64().unwrap_or_default().try_into()?;
        Ok(Attempt { command, code: code.unwrap_or(-1), seconds, mailboxes, harms, said })
    }

    /// What was shown of the user meanwhile.
    fn judge_watch(
        &self,
        run: &mut Run,
        before: &Fingerprint,
        steps: [Vec<Step>; 2],
        names: [Vec<Step>; 2],
    ) -> Result<()> {
        self.save("watch.json", &steps)?;
        self.save("names.json", &names)?;
        let quiet = verdict::quiet_counts(before);
        let [source, target] = names.map(|steps| Watch::of_names(&steps, &quiet));
        run.looks = source.looks() + target.looks();
        run.findings.extend(source.parts(self.source.name()));
        run.findings.extend(target.parts(self.target.name()));
        let [source, target] = steps.map(|steps| Watch::new(&steps, &quiet));
        run.looks += source.looks() + target.looks();
        run.findings.extend(source.parts(self.source.name()));
        run.findings.extend(target.parts(self.target.name()));
        run.findings.extend(source.nobody(&target));
        if source.looks() < LOOKS || target.looks() < LOOKS {
            run.findings.push(Finding::new(Kind::Harness, "the watchers hardly looked"));
        }
        Ok(())
    }

    /// Who shows the user in the end, and whether he can work there.
    ///
    /// Returns the folders that were made on the source after it was retired.
    fn judge_end(&self, run: &mut Run, end: &Host, route: &Route) -> Result<BTreeSet<String>> {
        let mut late = BTreeSet::new();
        if route.host()? != *end {
            let text = format!("{end} has the user, and the route leads to {}", route.host()?);
            run.findings.push(Finding::new(Kind::Serving, text));
        }
        for host in [&self.source, &self.target] {
            let mut imap = host.imap(&self.user)?;
            imap.set_patience(BLOCKED)?;
            let opened = match imap.attempt("SELECT INBOX") {
                Ok(reply) => reply.tagged.is_ok(),
                Err(error) => {
                    let text = format!("{host} does not open the INBOX: {error:#}");
                    run.findings.push(Finding::new(Kind::Locked, text));
                    continue;
                }
            };
            if opened != (host == end) {
                let does = if opened { "opens" } else { "does not open" };
                let text = format!("{host} {does} the INBOX, and {end} should");
                run.findings.push(Finding::new(Kind::Serving, text));
            }
            if host != end {
                for name in verdict::still_shown(&Observation::make(host, &self.user)) {
                    match name.starts_with("INBOX.new.") && *host == self.source {
                        true => drop(late.insert(name)),
                        false => {
                            let text = format!("{host} still shows {name}");
                            run.findings.push(Finding::new(Kind::Serving, text));
                        }
                    }
                }
            }
        }
        let mut imap = end.imap(&self.user)?;
        imap.set_patience(BLOCKED)?;
        let bytes = b"Message-ID: <end@chaos>\r\nSubject: end\r\n\r\nend\r\n".to_vec();
        if let Err(error) = imap.append("INBOX", &[NewMessage { bytes, ..Default::default() }]) {
            let text = format!("{end} does not take a message within {BLOCKED:?}: {error:#}");
            run.findings.push(Finding::new(Kind::Locked, text));
        }
        Ok(late)
    }

    /// What must not be left.
    fn judge_rest(&self, run: &mut Run, field: &Field, stages: &BTreeSet<PathBuf>) {
        for process in field.left(BLOCKED) {
            run.findings.push(Finding::new(Kind::Process, format!("left: {process}")));
            process.send(Signal::KILL);
        }
        for stage in self.stages().difference(stages) {
            let text = format!("{} keeps {}", self.target, stage.display());
            run.findings.push(Finding::new(Kind::Stage, text));
        }
    }

    /// What clients were told, against what is there.
    fn judge_history(
        &self,
        run: &mut Run,
        end: &Host,
        before: &Fingerprint,
        history: &History,
        late: &BTreeSet<String>,
    ) -> Result<()> {
        let after = Fingerprint::take(end, &self.user, &Take::default())?;
        self.save("end.json", &after)?;
        let violations = workload::check(history, &after);
        run.findings.extend(violations.iter().map(|v| verdict::finding(v, late)));
        run.findings.extend(verdict::compare_quiet(&self.user, before, &after)?);
        for error in &after.errors {
            run.findings.push(Finding::new(Kind::Lost, format!("looking at the end: {error}")));
        }
        Ok(())
    }

    /// The files of stages on the target, but not what it keeps of users moved away.
    fn stages(&self) -> BTreeSet<PathBuf> {
        let data = self.target.data();
        let roots = ["spool/mail/.mbcopy", "spool/p2/.mbcopy", "sieve/.mbcopy", "lib/mbcopy/moves"];
        let moves = roots.iter().flat_map(|root| entries(&data.join(root)));
        let parts = moves.flat_map(|one| entries(&one));
        let kept = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            ["retired", "retirement"].contains(&name)
        };
        parts.filter(|path| !kept(path) && holds_a_file(path)).collect()
    }

    fn save(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let file = File::create(self.directory.join(name))?;
        Ok(serde_json::to_writer(std::io::BufWriter::new(file), value)?)
    }

    /// Adds to the run's directory what explains its findings; returns it.
    fn keep_evidence(&self, run: &Run) -> PathBuf {
        let write = |name: String, text: &[u8]| {
            let _ = std::fs::write(self.directory.join(name), text);
        };
        let _ = self.save("run.json", run);
        for host in [&self.source, &self.target] {
            write(format!("{host}.status"), self.status(host).as_bytes());
            let log = host.exec(&["tail", "-n", "400", "/var/log/messages"]);
            write(format!("{host}.syslog"), &log.map(|o| o.stdout).unwrap_or_default());
        }
        self.directory.clone()
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn holds_a_file(path: &Path) -> bool {
    match path.is_dir() {
        true => entries(path).iter().any(|entry| holds_a_file(entry)),
        false => true,
    }
}

/// The exit code of a child; none if it does not end.
fn wait(child: &mut Child, patience: Duration) -> Result<Option<i32>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status.code().unwrap_or(-1)));
        }
        if start.elapsed() > patience {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What mbcopy said in the end: of its report what matters, or what it wrote to stderr.
fn last_words(report: &serde_json::Value, stderr: &Path) -> Result<String> {
    if report["event"] == "report" {
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        let failure = text(&report["failure"]["text"]);
        let problems = report["problems"].as_array().cloned().unwrap_or_default();
        let problems: Vec<String> = problems.iter().map(|p| text(&p["text"])).collect();
        return Ok(format!(
            "{}; {} serves; {failure} {}",
            text(&report["outcome"]),
            text(&report["serving"]),
            problems.join("; ")
        ));
    }
    let err = std::fs::read_to_string(stderr)?;
    Ok(err.lines().last().unwrap_or_default().to_owned())
}

/// The last line of what a command has told, which is its report if it came so far.
fn report(stdout: &Path) -> Result<serde_json::Value> {
    let out = std::fs::read_to_string(stdout)?;
    Ok(serde_json::from_str(out.lines().last().unwrap_or_default()).unwrap_or_default())
}

/// Fails unless a run broke no promise.
pub fn kept(run: &Run) -> Result<()> {
    if run.findings.is_empty() {
        return Ok(());
    }
    let found: Vec<String> =
        run.findings.iter().map(|f| format!("{:?}: {}", f.kind, f.text)).collect();
    bail!("{}\n{}", run.plan, found.join("\n"))
}
