//! Whatever fails, and wherever: a message that never arrives, a write that the disk refuses, a
//! file that cannot be read, an agent that stops.

use crate::crash::Killed;
use crate::support::{OptionsPutBack, Pushed, Servers, assert_same, fingerprint};
use lab::chaos::Side;
use lab::disk::{Disk, Kind};
use lab::fingerprint::Fingerprint;
use lab::imap::NewMessage;
use lab::seed::{self, Seed};
use lab::workload::{self, Route};
use mbcopy::fault::Point;
use rustix::process::{Pid, Signal, kill_process};
use std::process::Child;
use std::time::{Duration, Instant};

/// What may happen to a write.
const OUTCOMES: [&str; 5] = ["EIO", "ENOSPC", "kill", "EDQUOT", "EACCES"];

/// On which server the places are that a push passes.
fn places() -> impl Iterator<Item = (Point, Side)> {
    let sides = |point| match point {
        Point::StageWrite | Point::StageSync | Point::QuotaWrite => &[Side::Target][..],
        Point::SourceRead => &[Side::Source],
        _ => &[Side::Source, Side::Target],
    };
    let places = Point::WRITES.iter().chain(Point::READS).copied();
    places.flat_map(move |p| sides(p).iter().map(move |side| (p, *side)))
}

/// Breaks a push at each time that a place is passed, resumes or aborts it, and says how often
/// that was. Of many times only some are tried.
fn each_time(point: Point, side: Side, outcomes: &[&str], abort: bool) -> usize {
    let mut tried = 0;
    // A stage has many files.
    let most = if point == Point::StageWrite { 3 } else { 40 };
    for n in (0..most).chain([50, 60]) {
        let outcome = outcomes[(n + usize::from(abort)) % outcomes.len()];
        let fault = format!("{point:?} {outcome} {n}");
        let user = format!("f{n}");
        let Some(killed) = Killed::by(&fault, Some(side), user, n % 4 == 3) else { break };
        tried += 1;
        match abort {
            true => killed.abort(&fault),
            false => killed.resume(&fault),
        }
    }
    println!("{point:?} {side:?}: {tried}");
    tried
}

#[test]
#[ignore = "takes long: make matrix"]
fn every_message_of_a_push_may_be_lost() {
    for point in Point::MESSAGES.iter().copied() {
        for abort in [false, true] {
            assert!(each_time(point, Side::Source, &["EIO"], abort) > 8, "{point:?}");
        }
    }
}

#[test]
#[ignore = "takes long: make matrix"]
fn every_write_and_every_read_may_fail() {
    for (point, side) in places() {
        for abort in [false, true] {
            assert!(each_time(point, side, &OUTCOMES, abort) > 0, "{point:?} {side:?}");
        }
    }
}

/// The source has listed what it has, and is about to be asked for it.
const BEFORE_SENDING: &str = "SourceAsked wait 5";

/// A push that runs, and waits where it is armed to.
pub struct Pushing<'a> {
    servers: &'a Servers,
    child: Child,
}

impl<'a> Pushing<'a> {
    /// Returns when it waits.
    pub fn until(servers: &'a Servers, side: Side, fault: &str, mailbox: &str) -> Pushing<'a> {
        Self::routed_by("true", servers, side, fault, mailbox)
    }

    /// The same, with a route command.
    fn routed_by(
        route: &str,
        servers: &'a Servers,
        side: Side,
        fault: &str,
        mailbox: &str,
    ) -> Pushing<'a> {
        servers.arm_on(servers.on(side), fault);
        let words = ["mbcopy", "push", mailbox, servers.target.name(), "--route-command", route];
        let child = servers.source.spawn(&words).unwrap();
        let began = Instant::now();
        while !servers.struck() {
            assert!(began.elapsed() < Duration::from_secs(30), "{fault} was not reached");
            std::thread::sleep(Duration::from_millis(20));
        }
        Pushing { servers, child }
    }

    /// Goes on, to its end.
    pub fn go_on(self) -> Pushed {
        self.servers.disarm();
        Pushed::from(self.child.wait_with_output().unwrap())
    }
}

/// One user with a small mailbox on the source.
fn small(user: &str) -> (Servers, String) {
    let servers = Servers::fresh();
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    (servers, format!("user.{user}"))
}

/// The user is whole on the target as he was seen on the source.
#[track_caller]
fn assert_moved(servers: &Servers, user: &str, before: &Fingerprint) {
    assert_same(before, &fingerprint(&servers.target, user, &[]), &[]);
    let gone = servers.source.imap(user).unwrap().attempt("EXAMINE INBOX").unwrap();
    assert!(!gone.tagged.is_ok(), "the source still serves {user}");
}

#[test]
fn what_clients_do_while_it_is_copied_is_moved() {
    for (n, commands) in [
        &["SELECT INBOX", "UID STORE 3:9 +FLAGS (\\Deleted)", "UID EXPUNGE 3:9"][..],
        &["RENAME INBOX.a.b INBOX.c"],
        &["RENAME INBOX.a INBOX.new"],
        &["DELETE INBOX.a.b"],
        &["DELETE INBOX.a.b", "CREATE INBOX.a.b"],
        &["CREATE INBOX.more", "SUBSCRIBE INBOX.more"],
    ]
    .into_iter()
    .enumerate()
    {
        drop(OptionsPutBack);
        let user = format!("alive{n}");
        let (servers, mailbox) = small(&user);
        let _put_back = OptionsPutBack;
        servers.source.set_option("expunge_mode", "immediate").unwrap();
        servers.source.set_option("delete_mode", "immediate").unwrap();
        let pushing = Pushing::until(&servers, Side::Source, BEFORE_SENDING, &mailbox);
        let mut imap = servers.source.imap(&user).unwrap();
        commands.iter().for_each(|command| drop(imap.command(command).unwrap()));
        imap.logout();
        let before = fingerprint(&servers.source, &user, &[]);
        let pushed = pushing.go_on();
        assert_eq!(pushed.code, 0, "{commands:?}: {}{}", pushed.stdout, pushed.stderr);
        assert_moved(&servers, &user, &before);
    }
}

#[test]
fn a_shared_mailbox_that_is_made_while_its_tree_is_copied_is_frozen_with_it() {
    let servers = Servers::fresh();
    servers.accounts(&["gerd"]);
    seed::shared_tree(&servers.source, "team.late", &["gerd"]).unwrap();
    let route = "touch /run/routing; while test -e /run/routing; do sleep 0.01; done";
    let pushing = Pushing::routed_by(route, &servers, Side::Source, "Copied wait", "team.late");
    let mut admin = servers.source.admin().unwrap();
    admin.command("CREATE team.late.new").unwrap();
    admin.command("SETACL team.late.new gerd lrswipkxte").unwrap();
    let mut gerd = servers.source.imap("gerd").unwrap();
    gerd.set_patience(Duration::from_secs(1)).unwrap();
    servers.disarm();
    let frozen = servers.source.root().unwrap().join("run/routing");
    while !frozen.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let bytes = b"Message-ID: <late@x>\r\nSubject: late\r\n\r\nlate\r\n".to_vec();
    let late = gerd.append("team.late.new", &[NewMessage { bytes, ..NewMessage::default() }]);
    std::fs::remove_file(frozen).unwrap();
    pushing.go_on().expect(0);
    assert!(late.is_err(), "a message was taken that nobody will see: {late:?}");
    let mut gerd = servers.target.imap("gerd").unwrap();
    assert!(gerd.attempt("SELECT team.late.new").unwrap().tagged.is_ok());
}

#[test]
fn a_source_that_breaks_while_it_is_copied_is_named_and_can_be_mended() {
    for (n, (harm, mend, says)) in [
        ("chmod 0 7.", "chmod 600 7.", "7. cannot be read"),
        ("mv 7. /run/7.", "mv /run/7. 7.", "message 7 is missing"),
        ("cp -p 7. /run/7.; printf x >> 7.", "mv /run/7. 7.", "the index says"),
        ("cp -p 7. /run/7.; tr a-m n-z < /run/7. > 7.", "mv /run/7. 7.", "its SHA-1"),
        ("chmod 0 .", "chmod 700 .", "cannot"),
        ("mv cyrus.index /run/", "mv /run/cyrus.index .", "cyrus.index"),
    ]
    .into_iter()
    .enumerate()
    {
        let user = format!("breaks{n}");
        let (servers, mailbox) = small(&user);
        let before = fingerprint(&servers.source, &user, &[]);
        let inbox = servers.source.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", &mailbox]).unwrap();
        let there = |script: &str| {
            let script = format!("cd {} && {{ {script}; }}", inbox.trim());
            servers.source.run(&["sh", "-ec", &script]).unwrap();
        };
        let pushing = Pushing::until(&servers, Side::Source, BEFORE_SENDING, &mailbox);
        there(harm);
        let pushed = pushing.go_on();
        println!("{harm}: {}: {}{}", pushed.code, pushed.stderr, pushed.last_line());
        assert!([1, 4].contains(&pushed.code), "{}{}", pushed.stdout, pushed.stderr);
        pushed.says(&[says, "bw1 serves the user now"]);
        there(mend);
        servers.push(&mailbox, &["--route-command", "true"]).expect(0);
        assert_moved(&servers, &user, &before);
    }
}

/// What may run out on the target's disk.
const EXHAUST: [(&str, &str); 2] = [
    (
        "blocks",
        "fallocate -l $(($(stat -f -c '%f * %S' .))) fill 2>/dev/null || \
         fallocate -l $(($(stat -f -c '(%f - 400) * %S' .))) fill; \
         i=0; while head -c 4096 /dev/zero > fill$i 2>/dev/null; do i=$((i+1)); done",
    ),
    (
        "inodes",
        "i=0; while mkdir -p fills/$i && touch $(seq -f fills/$i/%g 500) 2>/dev/null; \
                do i=$((i+1)); done",
    ),
];

/// The target's disk is full from this point on; what follows is mended by room.
fn full(disk: &Servers, fault: &str, exhaust: &str, user: &str, abort: bool) {
    let servers = disk;
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    let mailbox = format!("user.{user}");
    let before = fingerprint(&servers.source, user, &[]);
    let at_spool = |script: &str| {
        let script = format!("cd /var/spool/cyrus && {{ {script}; }}");
        servers.target.run(&["sh", "-c", &script]).unwrap();
    };
    let pushing = Pushing::until(servers, Side::Target, fault, &mailbox);
    at_spool(exhaust);
    let pushed = pushing.go_on();
    println!("{fault} {user}: {}: {}{}", pushed.code, pushed.stderr, pushed.last_line());
    at_spool("rm -rf fill*");
    match (pushed.code, abort) {
        (0, _) => {}
        (_, false) => drop(servers.push(&mailbox, &["--route-command", "true"]).expect(0)),
        (_, true) => {
            let aborted = servers.mbcopy(&["abort", &mailbox]);
            assert!([0, 2].contains(&aborted.code), "{}{}", aborted.stdout, aborted.stderr);
            assert_same(&before, &fingerprint(&servers.source, user, &[]), &[]);
            servers.push(&mailbox, &["--route-command", "true"]).expect(0);
        }
    }
    assert_moved(servers, user, &before);
}

/// Runs the target on a small disk of its own, and fills that.
fn fill_the_disk(faults: &[&str]) {
    let servers = Servers::fresh();
    let disk = Disk::insert(&servers.target, Kind::Ext4).unwrap();
    servers.target.install(crate::support::program(), "/usr/local/bin/mbcopy").unwrap();
    servers.accounts(&["canary"]);
    Seed::new(&servers.target, "canary").small().unwrap();
    let canary = fingerprint(&servers.target, "canary", &[]);
    for (n, fault) in faults.iter().enumerate() {
        for (what, exhaust) in EXHAUST {
            full(&servers, fault, exhaust, &format!("full{n}{what}"), n % 2 == 1);
            assert_same(&canary, &fingerprint(&servers.target, "canary", &[]), &[]);
        }
    }
    drop(disk);
    servers.target.up().unwrap();
}

#[test]
fn a_full_disk_at_the_target_does_no_harm() {
    fill_the_disk(&["StageWrite wait 10", "DatabaseWrite wait 0"]);
}

#[test]
#[ignore = "takes long: make matrix"]
fn a_full_disk_at_any_moment_does_no_harm() {
    fill_the_disk(&[
        "JournalWrite wait 0",
        "JournalWrite wait 1",
        "StageWrite wait 0",
        "StageWrite wait 20",
        "StageSync wait 0",
        "JournalWrite wait 2",
        "JournalWrite wait 3",
        "SealedWrite wait 0",
        "JournalWrite wait 4",
        "PublishBegun wait",
        "Rename wait 0",
        "Rename wait 3",
        "QuotaWrite wait 0",
        "DirectorySync wait 0",
        "DatabaseWrite wait 0",
        "DatabaseWrite wait 1",
        "PublishCommitted wait",
        "JournalWrite wait 5",
    ]);
}

/// A client appends while the target's agent stops at a point, and does not go on.
fn a_target_that_stops(fault: &str, user: &str) {
    let (servers, mailbox) = small(user);
    let (route, command) = Route::commanded(user, &servers.source).unwrap();
    let worker = workload::appender(&route, "INBOX", Duration::from_millis(10));
    servers.arm_on(&servers.target, fault);
    let options = ["--route-command", command.as_str(), "--max-freeze", "2s"];
    let pushed = servers.push(&mailbox, &options);
    assert!(servers.disarm(), "{fault} was not reached");
    std::thread::sleep(Duration::from_millis(300));
    let history = worker.stop().unwrap();
    let longest = history.latency["APPEND"].longest;
    println!("{fault}: {}, {longest:?}: {}", pushed.code, pushed.last_line());
    assert!(longest < Duration::from_secs(3), "{fault}: blocked for {longest:?}");
    assert!([1, 5].contains(&pushed.code), "{}{}", pushed.stdout, pushed.stderr);
    servers.mbcopy(&["resume", &mailbox]).expect(0);
    let end = fingerprint(&servers.target, user, &[]);
    assert_eq!(workload::check(&history, &end), [], "{fault}");
}

#[test]
fn a_target_that_stops_holds_nobody_longer_than_the_freeze_limit() {
    a_target_that_stops("PublishBegun stop", "held1");
    a_target_that_stops("PublishCommitted stop", "held2");
}

#[test]
#[ignore = "takes long: make matrix"]
fn a_target_that_stops_anywhere_holds_nobody_longer_than_the_freeze_limit() {
    let under_freeze =
        ["PublishRenamedOne", "PublishRenamed", "PublishAnnotated", "PublishRecorded"];
    let writes = ["SealedWrite", "QuotaWrite", "DatabaseWrite", "Rename", "DirectorySync"];
    for (n, point) in under_freeze.into_iter().chain(writes).enumerate() {
        a_target_that_stops(&format!("{point} stop"), &format!("held{n}"));
    }
}

#[test]
fn an_interrupt_after_the_commit_is_heeded_when_the_move_is_done() {
    let (servers, mailbox) = small("toolate");
    let before = fingerprint(&servers.source, "toolate", &[]);
    let routing = "touch /run/routing; sleep 2";
    let words = ["mbcopy", "push", &mailbox, "bw2", "--route-command", routing];
    let child = servers.source.spawn(&words).unwrap();
    let flag = servers.source.root().unwrap().join("run/routing");
    while !flag.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::remove_file(flag).unwrap();
    let pids = servers.source.pids("^mbcopy push").unwrap();
    assert_eq!(pids.len(), 1, "{pids:?}");
    kill_process(Pid::from_raw(pids[0] as i32).unwrap(), Signal::INT).unwrap();
    let pushed = Pushed::from(child.wait_with_output().unwrap()).expect(0);
    assert_eq!(pushed.last_line(), "user.toolate: moved; bw2 serves the user now");
    assert_moved(&servers, "toolate", &before);
}
