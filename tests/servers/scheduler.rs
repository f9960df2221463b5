//! The runbook's script for job schedulers, as it is printed there, and its unit for systemd.

use crate::bulk::{assert_each_once, documents, shell};
use crate::shared::{Shared, kill};
use crate::support::{Pushed, assert_same, fingerprint};
use lab::host::Host;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const RUNBOOK: &str = include_str!("../../docs/operations.md");

/// The indented block of the runbook that follows these words.
fn block(words: &str) -> String {
    let (_, rest) = RUNBOOK.split_once(words).expect("the runbook has these words");
    let indented = |line: &&str| line.starts_with("    ");
    let lines = rest.lines().skip_while(|line| !indented(line)).take_while(indented);
    lines.map(|line| format!("{}\n", &line[4..])).collect()
}

/// Has jq of this machine on a host.
fn install_jq(host: &Host) {
    let said = Command::new("ldd").arg("/usr/bin/jq").output().expect("ldd runs");
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let library = |name: &str| {
        said.split_whitespace()
            .find(|word| word.starts_with('/') && word.contains(name))
            .unwrap_or_else(|| panic!("jq is missing (make tools): {said}"))
            .to_owned()
    };
    for name in ["libjq", "libonig"] {
        let path = library(name);
        let file = Path::new(&path).file_name().unwrap().to_str().unwrap();
        host.install(Path::new(&path), &format!("/usr/local/lib/{file}")).unwrap();
    }
    host.install(Path::new("/usr/bin/jq"), "/usr/local/bin/jq").unwrap();
    shell(host, "ldconfig");
}

/// A run of two source servers, and the job that moves the users of one of them from wherever
/// it is started.
struct Job(Shared);

impl Job {
    fn on(&self, host: &Host) -> Child {
        let script = block("By a job scheduler");
        let url = self.0.database.lab_url();
        let hurried = "--lease=4s --jobs=1 --route-command='sleep 1' --json >";
        let script = [
            ("users.csv", "/tmp/users"),
            ("--from mail3", "--from bw1"),
            ("--to mail9", "--to bw2"),
            ("postgres://…", &format!("'{url}'")),
            ("--json >", hurried),
            ("mail3.jsonl", "/tmp/job.jsonl"),
        ]
        .iter()
        .fold(script, |script, (from, to)| {
            assert!(script.contains(from), "no {from:?} in {script}");
            script.replace(from, to)
        });
        host.spawn(&["sh", "-c", &script]).unwrap()
    }

    /// So many users have ended, and somebody is moved.
    #[track_caller]
    fn until(&self, host: &Host, least: u64) {
        let began = Instant::now();
        loop {
            let said = self.0.bulk(host, &["status", "--json", "--run=autumn"]);
            let status: serde_json::Value = serde_json::from_str(&said.stdout).unwrap_or_default();
            let current = status["current"].as_array().is_some_and(|all| !all.is_empty());
            if status["ended"].as_u64().is_some_and(|ended| ended >= least) && current {
                return;
            }
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "it does not begin: {said}",
                said = said.stdout
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// How a job ended, and what it printed.
fn ended(job: Child) -> Pushed {
    Pushed::from(job.wait_with_output().unwrap())
}

#[test]
#[ignore = "takes long: make matrix"]
fn a_job_does_as_the_runbook_says_wherever_it_is_begun_again() {
    let job = Job(Shared::of(5));
    let (one, two) = (job.0.other.clone(), job.0.servers.target.clone());
    install_jq(&one);
    install_jq(&two);
    shell(&two, "rm -rf /var/lib/mbcopy/bulk");
    shell(&one, "cat /tmp/users").lines().for_each(|line| {
        shell(&two, &format!("echo {line} >> /tmp/users.new"));
    });
    shell(&two, "mv /tmp/users.new /tmp/users");

    let first = job.on(&one);
    job.until(&one, 1);
    ended(job.on(&one)).expect(0).says(&["is at work on the run"]);
    job.0.bulk(&one, &["drain", "--run=autumn"]).expect(0);
    ended(first).expect(75);

    // The scheduler begins it again; then its machine dies, and another one has it.
    let mut first = job.on(&one);
    job.until(&one, 2);
    one.pids("mbcopy bulk /tmp/users").unwrap().into_iter().for_each(kill);
    first.kill().unwrap();
    first.wait().unwrap();
    // Those of the other server are nobody's here, and are told: who, why, and what to do.
    let told = documents(&ended(job.on(&two)).expect(1));
    assert_eq!(told.len(), 6, "{told:?}");
    for user in &told {
        let text = |key: &str| user[key].as_str().unwrap();
        assert!(text("mailbox").starts_with("user.two") || text("mailbox") == "user.nobody");
        assert_eq!((text("state"), text("reason")), ("refused", "no server of this run has him"));
        assert!(!text("advice").is_empty());
    }
    let mine = job.0.before.iter().filter(|(user, _)| user.starts_with("one"));
    for (user, before) in mine {
        assert_same(before, &fingerprint(&two, user, &[]), &[]);
    }
    assert_each_once(&two, 5);
}

#[test]
fn the_runbooks_unit_is_one_that_systemd_takes() {
    let directory = tempfile::tempdir().unwrap();
    let unit = block("Under systemd, on each source server");
    assert!(unit.contains("ExecStart=/usr/bin/mbcopy bulk "), "{unit}");
    // Remarks after a value would belong to it.
    assert!(unit.lines().all(|line| line.starts_with('#') || !line.contains('#')), "{unit}");
    let file = directory.path().join("mbcopy-bulk.service");
    let program = crate::support::program().display().to_string();
    std::fs::write(&file, unit.replace("/usr/bin/mbcopy", &program)).unwrap();
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
    let verify = verify.expect("systemd-analyze; `make tools` installs it");
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(verify.status.success() && said.is_empty(), "{said}");
    // Its exit codes are those that end a run; whatever kills it has another one.
    let never: Vec<&str> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("RestartPreventExitStatus="))
        .flat_map(str::split_whitespace)
        .collect();
    assert_eq!(never, ["1", "2", "3", "5", "6"]);
}
