//! One attempt: a `mbcopy push` (or `reverse`) of its own process.
//!
//! Its standard output, one JSON document a line, is a file, which it keeps locked
//! through that very descriptor. So the coordinator may die: the attempt goes on,
//! the next coordinator sees by the lock that it does, waits for it, and reads
//! from the file what it has come to. Nothing rests on a process id.

use super::state::{Outcome, Task};
use super::store::{Ended, Job};
use crate::moves::journal::{now_ms, state};
use crate::transport::Destination;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Most of a report that is read, in bytes.
const MAX_REPORT: u64 = 16 << 20;

/// Where the beginning of an output says what is to be moved, in bytes.
const BEGINNING: u64 = 64 << 10;

/// Where the end of an output says how far it is, in bytes.
const TAIL: u64 = 16 << 10;

/// Problems of one attempt that are kept.
const MAX_PROBLEMS: usize = 200;

/// How often an attempt of an earlier coordinator is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// The option of pushes that leave bad messages out.
const SKIPS: &str = "--bad-messages=skip";

/// How long a journal is waited for.
const ASK_LIMIT: Duration = Duration::from_secs(60);

/// How attempts are started.
#[derive(Debug, Clone)]
pub struct Launcher {
    /// This program.
    pub program: PathBuf,
    /// Options of every command.
    pub common: Vec<OsString>,
    /// Options of every push.
    pub push: Vec<OsString>,
    /// Options of every move back.
    pub back: Vec<OsString>,
    /// The directory of outputs.
    pub outputs: PathBuf,
    /// How servers that have users are reached, by name; those not named: this one.
    pub from: BTreeMap<String, String>,
}

/// How far an attempt is.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// Its phase, in a word; empty: it has none yet.
    pub phase: String,
    /// Messages that were sent.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages of the user.
    pub messages_in_all: u64,
    /// Their bytes.
    pub bytes_in_all: u64,
}

impl Launcher {
    /// Starts an attempt.
    pub fn start(&self, job: &Job) -> io::Result<tokio::process::Child> {
        let output = |suffix| {
            let path = self.output(job.attempt, suffix);
            OpenOptions::new().read(true).append(true).create(true).open(path)
        };
        let (out, err) = (output("out")?, output("err")?);
        rustix::fs::flock(&out, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
        tokio::process::Command::new(&self.program)
            .args(self.arguments(job))
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            // A Ctrl-C of the terminal is for the coordinator, which passes it on once.
            .process_group(0)
            .spawn()
    }

    fn arguments(&self, job: &Job) -> Vec<OsString> {
        // A partition is one of the server that he is moved back from.
        let (word, options, place) = match job.task {
            Task::Reverse => ("reverse", &self.back, without_partition(&job.place)),
            _ => ("push", &self.push, job.place.as_str()),
        };
        let mut arguments = self.of_all(job);
        arguments.extend([word, "--json"].map(OsString::from));
        arguments.extend(options.iter().cloned());
        if job.task == Task::Copy {
            arguments.push("--copy-only".into());
        }
        arguments.extend(["--", job.mailbox.as_str(), place].map(OsString::from));
        arguments
    }

    /// Options of every command about this user.
    fn of_all(&self, job: &Job) -> Vec<OsString> {
        let mut arguments = self.common.clone();
        let from = self.from.get(&job.source);
        arguments.extend(from.map(|from| OsString::from(format!("--from={from}"))));
        arguments
    }

    fn output(&self, attempt: i64, suffix: &str) -> PathBuf {
        output(&self.outputs, attempt, suffix)
    }

    /// Whether an attempt was ever started.
    pub fn was_started(&self, job: &Job) -> bool {
        self.output(job.attempt, "out").exists()
    }

    /// Whether its process lives.
    pub fn lives(&self, job: &Job) -> bool {
        let Ok(file) = File::open(self.output(job.attempt, "out")) else { return false };
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        matches!(rustix::fs::flock(&file, shared), Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Waits until the process of an attempt that somebody else has started ends.
    pub async fn outlive(&self, job: &Job) {
        while self.lives(job) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Asks it to stop at the next safe point.
    pub fn stop(&self, job: &Job) {
        // A number may belong to somebody else by now; a path may lead there by another name.
        let file = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        let own = file(&self.output(job.attempt, "out"));
        let its = file(Path::new(&format!("/proc/{}/fd/1", job.pid)));
        if let Some(pid) = rustix::process::Pid::from_raw(job.pid)
            && own.is_some()
            && own == its
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// What an attempt has come to, by its own report, or by the journal of this
    /// server if it died before it could tell, or finds the user gone. `code`: how its
    /// process ended, if that is known.
    pub async fn conclude(&self, job: &Job, code: Option<i32>) -> Ended {
        let said = Output::read(&self.output(job.attempt, "out"));
        match &said.report {
            Some(report) => {
                let mut ended = of_report(report, &said);
                // Where there was something to find, he is not away.
                if ended.outcome == Outcome::Refused
                    && job.task != Task::Copy
                    && weighty(report).is_empty()
                {
                    self.correct(job, &mut ended).await;
                }
                ended
            }
            None => {
                let error = tail(&self.output(job.attempt, "err"), TAIL);
                let mut ended = of_silence(job, code, error.trim(), &said);
                if ended.outcome == Outcome::Died && !ended.move_id.is_empty() {
                    self.correct(job, &mut ended).await;
                }
                ended
            }
        }
    }

    /// Removes what it has written.
    pub fn forget(&self, job: &Job) {
        for suffix in ["out", "err"] {
            let _ = std::fs::remove_file(self.output(job.attempt, suffix));
        }
    }

    /// An attempt that died may have done all that it was to do; and one that is
    /// refused may come after another one, of which nobody was told, that did.
    async fn correct(&self, job: &Job, ended: &mut Ended) {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(self.of_all(job)).args(["status", "--json", "--", &job.mailbox]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let Ok(Ok(output)) = tokio::time::timeout(ASK_LIMIT, command.output()).await else {
            return;
        };
        let back = job.task == Task::Reverse;
        let role = if back { "target" } else { "source" };
        let place = Destination::parse_with_partition(&job.place);
        let host = place.as_ref().map_or("", |(destination, _)| destination.host());
        let known = String::from_utf8_lossy(&output.stdout);
        let moves = known.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let is_done = |line: &Value| line["role"] == role && line["state"] == state::DONE;
        let done = match ended.outcome {
            // His last move, whoever knows its id; it may have led elsewhere.
            Outcome::Refused => moves
                .max_by_key(|m| text(m, "since"))
                .filter(is_done)
                .filter(|line| back || line["peer"] == host),
            _ => moves.filter(is_done).find(|line| line["move_id"] == ended.move_id.as_str()),
        };
        let Some(done) = done else { return };
        ended.move_id = text(&done, "move_id");
        ended.serving = if back { ended.serving.clone() } else { text(&done, "peer") };
        let options = if back { &self.back } else { &self.push };
        if options.iter().any(|option| option == SKIPS) {
            ended.outcome = Outcome::DoneWithLosses;
            ended.text = "the report of his move was lost, which may have named messages that \
                          were left out"
                .into();
            ended.advice = format!(
                "`mbcopy verify {} {}` tells which",
                job.mailbox,
                without_partition(&job.place)
            );
        } else {
            ended.outcome = Outcome::Done;
            (ended.text, ended.advice) = (String::new(), String::new());
        }
    }
}

/// A place without its partition, if it has one.
pub fn without_partition(place: &str) -> &str {
    match Destination::parse_with_partition(place) {
        Ok((_, Some(partition))) => place.strip_suffix(&format!(":{partition}")).unwrap_or(place),
        _ => place,
    }
}

/// How far the attempt of this number is, by the end of what it has written.
pub fn progress(outputs: &Path, attempt: i64) -> Progress {
    let path = output(outputs, attempt, "out");
    let mut progress = Progress::default();
    if let Some(planned) = planned(&path) {
        progress.messages_in_all = number(&planned, "messages");
        progress.bytes_in_all = number(&planned, "bytes");
    }
    for line in tail(&path, TAIL).lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
        match line["event"].as_str() {
            Some("phase") => progress.phase = text(&line, "phase"),
            Some("progress") => {
                progress.messages = number(&line, "messages");
                progress.bytes = number(&line, "bytes");
            }
            _ => {}
        }
    }
    // The beginning of a long copy is not in the end of what was written.
    if progress.phase.is_empty() && progress.bytes > 0 {
        progress.phase = "copying".into();
    }
    progress
}

fn output(outputs: &Path, attempt: i64, suffix: &str) -> PathBuf {
    outputs.join(format!("{attempt}.{suffix}"))
}

/// What an attempt has told of itself.
struct Output {
    planned: Option<Value>,
    report: Option<Value>,
}

impl Output {
    fn read(path: &Path) -> Self {
        let end = tail(path, MAX_REPORT);
        let report = end.lines().next_back().and_then(|line| serde_json::from_str(line).ok());
        let report = report.filter(|line: &Value| line["event"] == "report");
        Self { planned: planned(path), report }
    }
}

/// What was to be moved, by the beginning of the output.
fn planned(path: &Path) -> Option<Value> {
    let mut beginning = Vec::new();
    File::open(path).ok()?.take(BEGINNING).read_to_end(&mut beginning).ok()?;
    let text = String::from_utf8_lossy(&beginning);
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.into_iter().find(|line| line["event"] == "planned")
}

/// The end of a file, as text; a line that begins before it is left out.
fn tail(path: &Path, most: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let skipped = file.metadata()?.len().saturating_sub(most);
        file.seek(SeekFrom::Start(skipped))?;
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes)?;
        if skipped > 0 {
            let begin = bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1);
            bytes.drain(..begin);
        }
        Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

/// Mailboxes, messages and bytes.
fn size(value: &Value) -> (u64, u64, u64) {
    (number(value, "mailboxes"), number(value, "messages"), number(value, "bytes"))
}

/// What was found.
fn problems(report: &Value) -> &[Value] {
    report["problems"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// What of it is more than a note.
fn weighty(report: &Value) -> Vec<&Value> {
    problems(report).iter().filter(|p| p["severity"] != "note").collect()
}

fn of_report(report: &Value, said: &Output) -> Ended {
    let outcome = match report["outcome"].as_str() {
        Some("done" | "copied" | "planned" | "aborted") => Outcome::Done,
        Some("done-with-skipped") => Outcome::DoneWithLosses,
        Some("refused") => Outcome::Refused,
        Some("resumable") => Outcome::Unfinished,
        Some("held") => Outcome::Held,
        Some("interrupted") => Outcome::Interrupted,
        Some("failed") => Outcome::Failed,
        _ => Outcome::Died,
    };
    let problems = problems(report);
    let weighty = weighty(report);
    let (mut why, mut advice) = match &report["failure"] {
        Value::Null => (String::new(), String::new()),
        failure => (text(failure, "text"), text(failure, "advice")),
    };
    if let Some(first) = weighty.first() {
        let more = match weighty.len() {
            1 => String::new(),
            n => format!(" (and {} more)", n - 1),
        };
        let named = format!("{}{more}", problem(first));
        why = if why.is_empty() || outcome == Outcome::Refused {
            named
        } else {
            format!("{why}: {named}")
        };
        if outcome == Outcome::Refused && !text(first, "advice").is_empty() {
            advice = text(first, "advice");
        }
    }
    if outcome == Outcome::DoneWithLosses && why.is_empty() {
        why = "something was left on the source; the report names it".into();
    }
    let notes = report["notes"].as_array().map(Vec::as_slice).unwrap_or_default();
    // Where there are too many, what weighs is kept.
    let light = problems.iter().filter(|p| p["severity"] == "note");
    let kept: Vec<&Value> = weighty.iter().copied().chain(light).take(MAX_PROBLEMS).collect();
    let bad = weighty.iter().filter(|p| p["severity"] == "bad-message").count();
    let detail = json!({
        "problems": kept,
        "problems_in_all": problems.len(),
        "bad_messages": bad,
        "differences": report["differences"],
        "carried": report["carried"],
        "notes": notes.get(..notes.len().min(MAX_PROBLEMS)),
        "state": report["failure"]["state"],
    });
    let float = |key: &str| report[key].as_f64().unwrap_or(0.0);
    let in_report = size(report);
    Ended {
        outcome,
        move_id: text(report, "move_id"),
        size: if in_report.0 > 0 {
            in_report
        } else {
            said.planned.as_ref().map(size).unwrap_or_default()
        },
        sent: (number(report, "messages_sent"), number(report, "bytes_sent")),
        freeze_ms: float("freeze_ms"),
        total_ms: float("total_ms"),
        serving: text(report, "serving"),
        text: crate::wire::printable(&why),
        advice: crate::wire::printable(&advice),
        detail: detail.to_string(),
        at: now_ms(),
    }
}

/// A problem of a report, in a sentence.
fn problem(problem: &Value) -> String {
    let mut sentence = String::new();
    for key in ["server", "mailbox"] {
        let part = text(problem, key);
        if !part.is_empty() {
            sentence.push_str(&part);
            sentence.push_str(": ");
        }
    }
    if let Some(uid) = problem["uid"].as_u64() {
        sentence.push_str(&format!("message {uid}: "));
    }
    let (what, path) = (text(problem, "text"), text(problem, "path"));
    sentence.push_str(&what);
    if !path.is_empty() && !what.contains(&path) {
        sentence.push_str(&format!(" ({path})"));
    }
    sentence
}

/// The end of an attempt that has told none.
fn of_silence(job: &Job, code: Option<i32>, error: &str, said: &Output) -> Ended {
    let at = now_ms();
    let (outcome, why, advice) = match Outcome::of_exit_code(code) {
        Outcome::Refused => (Outcome::Refused, error.to_owned(), "look at the options of the run"),
        // Without a report nothing else that a code says is to be trusted.
        _ => {
            let how = match code {
                Some(code) => format!("its process ended with code {code}, without a report"),
                None => "its process died".to_owned(),
            };
            let last = error.lines().next_back().unwrap_or_default();
            let why = if last.is_empty() { how } else { format!("{how}; it said: {last}") };
            (Outcome::Died, why, "`mbcopy status` tells how far the move has come")
        }
    };
    Ended {
        outcome,
        move_id: said.planned.as_ref().map(|p| text(p, "move_id")).unwrap_or_default(),
        size: said.planned.as_ref().map(size).unwrap_or_default(),
        sent: (0, 0),
        freeze_ms: 0.0,
        total_ms: (at - job.started).max(0) as f64,
        serving: String::new(),
        text: crate::wire::printable(&why),
        advice: advice.into(),
        detail: String::new(),
        at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program in mbcopy's place.
    fn launcher(script: &str) -> (tempfile::TempDir, Launcher) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("mbcopy");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let outputs = dir.path().to_owned();
        let common = vec!["-C".into(), "/etc/imapd.conf".into()];
        let push = vec!["--max-freeze=2000ms".into()];
        let back = vec!["--max-freeze=3000ms".into()];
        let from = [("bw9".to_owned(), "root@bw9".to_owned())].into();
        (dir, Launcher { program, common, push, back, outputs, from })
    }

    fn job(task: Task) -> Job {
        Job {
            attempt: 7,
            user: 1,
            mailbox: "user.x".into(),
            source: String::new(),
            place: "bw2:ssd".into(),
            task,
            pid: 0,
            started: now_ms(),
            resumes: false,
        }
    }

    async fn start(launcher: &Launcher, job: &Job) -> tokio::process::Child {
        // A child that another test is just starting may have the program open for writing.
        loop {
            match launcher.start(job) {
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy => {
                    launcher.forget(job);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                started => return started.unwrap(),
            }
        }
    }

    async fn run(launcher: &Launcher, job: &Job) -> Ended {
        let status = start(launcher, job).await.wait().await.unwrap();
        launcher.conclude(job, status.code()).await
    }

    const PLANNED: &str = r#"{"event":"planned","move_id":"0011223344556677","mailboxes":3,"messages":20,"bytes":200}"#;

    #[tokio::test]
    async fn each_task_has_its_command() {
        let (_dir, launcher) = launcher(r#"echo "$@" >&2; exit 2"#);
        for (task, command) in [
            (Task::Move, "push --json --max-freeze=2000ms -- user.x bw2:ssd"),
            (Task::Copy, "push --json --max-freeze=2000ms --copy-only -- user.x bw2:ssd"),
            (Task::Reverse, "reverse --json --max-freeze=3000ms -- user.x bw2"),
        ] {
            let ended = run(&launcher, &job(task)).await;
            assert_eq!(ended.text, format!("-C /etc/imapd.conf {command}"));
            assert_eq!(ended.outcome, Outcome::Refused);
            launcher.forget(&job(task));
            assert!(!launcher.was_started(&job(task)));
        }
    }

    #[tokio::test]
    async fn the_report_says_what_became_of_it() {
        let report = r#"{"event":"report","outcome":"refused","move_id":"0011223344556677","mailboxes":3,
            "messages":20,"bytes":200,"messages_sent":5,"bytes_sent":50,"freeze_ms":1.5,"total_ms":9,
            "serving":"bw1","differences":[],"notes":[],
            "problems":[{"severity":"note","text":"never mind"},
                {"severity":"bad-message","server":"bw1","mailbox":"user.x","uid":4,"path":"/s/4.",
                 "text":"cannot be read","advice":"mend it"},
                {"severity":"bad-message","server":"bw1","mailbox":"user.x","uid":5,"text":"nor this"}],
            "failure":{"text":"2 message(s) cannot be copied","state":"as before","advice":"again"}}"#;
        let (_dir, launcher) =
            launcher(&format!("cat <<'E'\n{PLANNED}\n{}\nE\nexit 4", report.replace('\n', " ")));
        let ended = run(&launcher, &job(Task::Move)).await;
        assert_eq!(ended.outcome, Outcome::Refused);
        assert_eq!((ended.size, ended.sent), ((3, 20, 200), (5, 50)));
        assert_eq!(ended.text, "bw1: user.x: message 4: cannot be read (/s/4.) (and 1 more)");
        assert_eq!((ended.advice.as_str(), ended.serving.as_str()), ("mend it", "bw1"));
        assert!(ended.detail.contains("nor this"));
    }

    #[test]
    fn of_many_problems_those_that_weigh_are_kept_and_all_are_counted() {
        let note = json!({ "severity": "note", "text": "never mind" });
        let bad = json!({ "severity": "bad-message", "text": "cannot be read" });
        let problems: Vec<Value> = [vec![note; 300], vec![bad; 250]].concat();
        let report = json!({ "outcome": "done-with-skipped", "problems": problems });
        let ended = of_report(&report, &Output { planned: None, report: None });
        let detail: Value = serde_json::from_str(&ended.detail).unwrap();
        let kept = detail["problems"].as_array().unwrap();
        assert!(kept.len() == MAX_PROBLEMS && kept.iter().all(|p| p["severity"] != "note"));
        assert_eq!(
            (&detail["bad_messages"], &detail["problems_in_all"]),
            (&250.into(), &550.into())
        );
    }

    #[tokio::test]
    async fn an_attempt_that_dies_is_known_by_the_journal() {
        let script = |state| {
            format!(
                "case \"$3\" in status) echo '{{\"move_id\":\"0011223344556677\",\"role\":\"source\",\
                 \"state\":\"{state}\"}}';; *) echo '{PLANNED}'; kill -9 $$;; esac"
            )
        };
        for (state, outcome) in [("done", Outcome::Done), ("routed", Outcome::Died)] {
            let (_dir, launcher) = launcher(&script(state));
            let ended = run(&launcher, &job(Task::Move)).await;
            assert_eq!(ended.outcome, outcome, "{state}: {}", ended.text);
            assert_eq!(ended.size, (3, 20, 200));
        }
        // One that is refused, after one of which nobody was told.
        const REFUSED: &str = r#"{"event":"report","outcome":"refused","serving":"bw1"}"#;
        const BAD: &str = r#"{"event":"report","outcome":"refused","serving":"bw1",
            "problems":[{"severity":"bad-message","text":"cannot be read"}]}"#;
        let script = |role, state, peer, report: &str| {
            format!(
                "case \"$4\" in status) echo '{{\"move_id\":\"0011223344556677\",\"role\":\"{role}\",\
                 \"state\":\"{state}\",\"peer\":\"{peer}\",\"since\":\"2026\"}}';; *) echo '{}'; exit 4;; esac",
                report.replace('\n', " ")
            )
        };
        for (task, role, state, peer, report, outcome, serving) in [
            (Task::Move, "source", "done", "bw2", REFUSED, Outcome::Done, "bw2"),
            (Task::Move, "source", "done", "bw2", BAD, Outcome::Refused, "bw1"),
            (Task::Move, "source", "done", "bw3", REFUSED, Outcome::Refused, "bw1"),
            (Task::Move, "target", "done", "bw2", REFUSED, Outcome::Refused, "bw1"),
            (Task::Move, "source", "copying", "bw2", REFUSED, Outcome::Refused, "bw1"),
            (Task::Copy, "source", "done", "bw2", REFUSED, Outcome::Refused, "bw1"),
            (Task::Reverse, "target", "done", "bw2", REFUSED, Outcome::Done, "bw1"),
            (Task::Reverse, "source", "done", "bw2", REFUSED, Outcome::Refused, "bw1"),
        ] {
            let (_dir, mut launcher) = launcher(&script(role, state, peer, report));
            let job = Job { source: "bw9".into(), ..job(task) };
            let ended = run(&launcher, &job).await;
            let said = (ended.outcome, ended.serving.as_str());
            assert_eq!(said, (outcome, serving), "{task:?} {role} {state} {peer} {report}");
            // What was left out nobody has told.
            launcher.push.push(SKIPS.into());
            launcher.back.push(SKIPS.into());
            launcher.forget(&job);
            let ended = run(&launcher, &job).await;
            if outcome == Outcome::Done {
                assert_eq!(ended.outcome, Outcome::DoneWithLosses);
                assert!(ended.advice.contains("mbcopy verify user.x bw2"), "{ended:?}");
            } else {
                assert_eq!(ended.outcome, Outcome::Refused);
            }
        }
        // It never began.
        let (_dir, launcher) = launcher("kill -9 $$");
        let ended = run(&launcher, &job(Task::Move)).await;
        assert_eq!((ended.outcome, ended.move_id.as_str()), (Outcome::Died, ""));
    }

    #[tokio::test]
    async fn an_attempt_outlives_whoever_started_it_and_is_found_again() {
        let (dir, mut launcher) = launcher(&format!(
            "echo '{PLANNED}'; echo '{{\"event\":\"phase\",\"phase\":\"copying\"}}'; \
             echo '{{\"event\":\"progress\",\"messages\":7,\"bytes\":70}}'; exec sleep 60"
        ));
        // The directory of outputs has another name, too.
        std::fs::create_dir(dir.path().join("outputs")).unwrap();
        launcher.outputs = dir.path().join("link");
        std::os::unix::fs::symlink("outputs", &launcher.outputs).unwrap();
        let mut job = job(Task::Move);
        let mut child = start(&launcher, &job).await;
        job.pid = child.id().unwrap() as i32;
        while progress(&launcher.outputs, job.attempt).bytes == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let seen = progress(&launcher.outputs, job.attempt);
        assert_eq!((seen.phase.as_str(), seen.messages, seen.bytes_in_all), ("copying", 7, 200));
        let other = launcher.clone();
        assert!(other.lives(&job));
        assert_eq!(
            other.of_all(&Job { source: "bw9".into(), ..job.clone() })[2],
            "--from=root@bw9"
        );
        // A stranger of that number is left alone.
        other.stop(&Job { attempt: 8, ..job.clone() });
        File::create(other.output(9, "out")).unwrap();
        other.stop(&Job { attempt: 9, ..job.clone() });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(child.try_wait().unwrap().is_none() && other.lives(&job));
        other.stop(&job);
        child.wait().await.unwrap();
        other.outlive(&job).await;
        assert!(!other.lives(&job));
    }
}
