//! A hundred thousand users on paper: no server runs, nobody is moved. And the report
//! of a run, in a real browser.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use lab::browser::{self, SCREENS};
use mbcopy::bulk::resolve::Planned;
use mbcopy::bulk::state::{Outcome, Retries};
use mbcopy::bulk::store::{Ended, Mode, Order, Store};
use mbcopy::bulk::{report, status::Status};
use std::fmt::Write as _;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const USERS: usize = 100_000;

/// Far more than is needed, far less than what grows with messages would take.
const MOST_MEMORY: u64 = 400 << 20;

/// Seconds, not minutes, also of a build that is not optimized on a machine with other work.
const LONGEST: Duration = Duration::from_secs(60);

/// What a program printed, how it ended, and the most memory that it had, in bytes.
#[allow(clippy::zombie_processes)] // wait4 does wait
fn measured(command: &mut Command) -> (String, ExitStatus, u64) {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let mut status = 0;
    // SAFETY: both pointers are to values that live; a zeroed rusage is a valid one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::wait4(child.id() as i32, &mut status, 0, &mut usage), child.id() as i32);
        usage
    };
    (text, ExitStatus::from_raw(status), usage.ru_maxrss as u64 * 1024)
}

fn mbcopy(arguments: &[&str]) -> (String, u64) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mbcopy"));
    let began = Instant::now();
    let (text, status, memory) = measured(command.args(arguments));
    let took = began.elapsed();
    assert!(status.success(), "{arguments:?}: {status}: {text}");
    assert!(took < LONGEST, "{arguments:?} took {took:?}");
    println!("{:?}: {took:.1?}", &arguments[..arguments.len().min(5)]);
    assert!(memory < MOST_MEMORY, "{arguments:?} took {} MB", memory >> 20);
    (text, memory)
}

/// A run in which most are moved and some are in each other state.
fn run(root: &Path, users: usize) -> Store {
    let store = Store::create(root, "paper").unwrap();
    let planned: Vec<Planned> = (0..users)
        .map(|n| Planned {
            mailbox: format!("user.u{n:06}"),
            source: String::new(),
            destination: "mail2.example.org".into(),
            partition: None,
            not_before: 0,
            known: true,
            size: (8, 5_000, 400_000_000),
        })
        .collect();
    store.add(&planned, Mode::Move, false).unwrap();
    store.begin(Mode::Move).unwrap();
    store.order(Order::Listed).unwrap();
    let start = 1_760_000_000_000_i64;
    for n in 0..40_i64 {
        let began = start + n * 9_000;
        let mut job = store.claim(began, false).unwrap().unwrap();
        job.started = began;
        let (outcome, text, detail) = match n {
            3 => (
                Outcome::DoneWithLosses,
                "bw1: user.u000003: message 7: it cannot be read (/var/spool/cyrus/mail/uuid/a/b/abcdef/7.)",
                r#"{"problems":[{"severity":"bad-message","server":"bw1","mailbox":"user.u000003","uid":7,"path":"/var/spool/cyrus/mail/uuid/a/b/abcdef/7.","text":"it cannot be read","advice":"mend it"}],"problems_in_all":1,"bad_messages":1,"differences":["lastupdate"]}"#,
            ),
            5 => (Outcome::Refused, "bw2: user.u000005 exists on this server", ""),
            8 => (Outcome::Failed, "the connection to the agent on mail2.example.org broke", ""),
            9 => (Outcome::Unfinished, "the other side did not answer within 20s", ""),
            _ => (Outcome::Done, "", r#"{"problems":[],"differences":["lastupdate","freespace"]}"#),
        };
        let good = text.is_empty();
        let ended = Ended {
            outcome,
            move_id: format!("{n:016x}"),
            size: (8, 5_000, 400_000_000),
            sent: (5_000, if good { 400_000_000 } else { 0 }),
            freeze_ms: if good { 30.0 * 1.13_f64.powi(n as i32) } else { 0.0 },
            total_ms: 40_000.0,
            serving: if good { "bw2" } else { "bw1" }.into(),
            text: text.into(),
            advice: if good { "" } else { "mend the cause, and mbcopy bulk retry-failed" }.into(),
            detail: detail.into(),
            at: began + 40_000 + n % 7 * 3_000,
        };
        let once = Retries { attempts: 1, pause: Duration::ZERO };
        store.ended(&job, &ended, &once).unwrap();
    }
    store
}

/// Has all users ended as the first of them did, as if there had been time for it.
fn all_ended(store: &Store) {
    let path = store.directory().join("run.sqlite");
    let database = rusqlite::Connection::open(path).unwrap();
    database
        .execute_batch(
            "UPDATE users SET state = 'moved', attempts = 1, move_id = '0011223344556677',
               detail = (SELECT detail FROM users WHERE id = 1), freeze_ms = 40 + id % 900
             WHERE state = 'waiting';
             INSERT INTO attempt SELECT NULL, id, '', 'move', 0, 1, 1760000000000 + id * 100,
               1760000000000 + id * 100 + 30000, 'done', 5000, 400000000, 40 + id % 900, 30000, ''
             FROM users WHERE id > 40;",
        )
        .unwrap();
}

#[test]
fn a_hundred_thousand_users_are_planned_by_the_disk_of_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("lib")).unwrap();
    std::fs::create_dir_all(at("spool")).unwrap();
    let conf = format!(
        "configdirectory: {0}/lib\npartition-default: {0}/spool\ndefaultpartition: default\n\
         mboxlist_db: flat\n",
        dir.path().display()
    );
    std::fs::write(at("imapd.conf"), conf).unwrap();
    let mut list = String::new();
    for n in 0..USERS {
        for folder in ["", ".Sent"] {
            writeln!(list, "user.u{n:06}{folder}\t0 default u{n:06}\tlrswipkxtecda\t").unwrap();
        }
    }
    std::fs::write(at("lib/mailboxes.db"), list).unwrap();
    let conf = at("imapd.conf").display().to_string();
    let plan = |words: &[&str]| {
        let common = ["--source-conf", &conf, "bulk", "plan", "--quick", "--json", "--to", "bw2"];
        let (text, memory) = mbcopy(&[&common[..], words].concat());
        println!("{words:?}: {} MB", memory >> 20);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()
    };
    let sum = plan(&["user.*"]);
    assert_eq!((&sum["users"], &sum["mailboxes"]), (&USERS.into(), &(2 * USERS).into()));
    let names: Vec<String> = (0..USERS).map(|n| format!("u{n:06}")).collect();
    std::fs::write(at("users"), names.join("\n")).unwrap();
    let sum = plan(&[at("users").to_str().unwrap()]);
    assert_eq!((&sum["users"], &sum["not_on_the_source"]), (&USERS.into(), &0.into()));
}

#[test]
fn a_hundred_thousand_users_are_kept_shown_and_reported() {
    let dir = tempfile::tempdir().unwrap();
    let store = run(dir.path(), USERS);
    assert_eq!(Status::of(&store, 1_760_000_500_000).unwrap().users, USERS as u64);
    assert!(store.skip("user.u050000").unwrap());
    all_ended(&store);
    drop(store);
    let root = dir.path().display().to_string();
    let (status, _) = mbcopy(&["bulk", "status", "--json", "--store", &root]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["ended"], USERS);
    for (format, lines) in [("csv", USERS + 1), ("json", USERS + 1), ("html", USERS)] {
        let words = ["bulk", "report", "--format", format, "--output", "-", "--store", &root];
        let (report, memory) = mbcopy(&words);
        println!("{format}: {} MB of memory, {} MB long", memory >> 20, report.len() >> 20);
        assert!(report.lines().count() >= lines, "{format}");
    }
}

#[test]
fn the_page_is_whole_on_a_desktop_and_on_a_phone() {
    let dir = tempfile::tempdir().unwrap();
    let store = run(dir.path(), 60);
    let page = dir.path().join("report.html");
    report::html(&store, 1_760_000_500_000, &mut std::fs::File::create(&page).unwrap()).unwrap();
    // Kept to be looked at.
    let pictures: Option<PathBuf> = std::env::var_os("MBCOPY_SCREENSHOTS").map(PathBuf::from);
    for screen in SCREENS {
        let seen = browser::look(dir.path(), "report.html", screen).unwrap();
        println!("{}: {seen}", screen.name);
        assert_eq!(browser::unreadable(&seen), Vec::<String>::new(), "{screen:?}");
        assert_eq!((&seen["rows"], &seen["pressed"]["refused"]), (&60.into(), &1.into()));
        assert!(seen["bars"].as_u64().unwrap() > 30, "{screen:?}: {seen}");
        assert!(seen["classes"].as_u64().unwrap() > 3, "{screen:?}: {seen}");
        assert_eq!(seen["head"], u64::from(screen.name == "desktop"));
        if let Some(pictures) = &pictures {
            let to = pictures.join(format!("paper-{}.png", screen.name));
            browser::picture(dir.path(), "report.html", screen, &to).unwrap();
        }
    }
}
