//! Users move away from a server of Cyrus 3.2 that goes on working.

use crate::support::{Servers, assert_same, fingerprint};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::Host;
use lab::lmtp::Outcome;
use lab::seed::{self, Seed, Size};
use lab::workload::{
    Crew, History, Observation, Route, appender, check, deliverer, expunger, folder_creator,
    folder_deleter, folder_renamer, none_then_whole, reader, subscriber, watcher,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// Where a move is killed: there 3.2 goes another way than later releases.
const POINTS: [&str; 8] = [
    "Frozen",
    "PublishCommitted",
    "RouteChanged",
    "RetireBegun",
    // The directories are renamed before the records change.
    "RetireRenamedOne",
    "RetireCommitted",
    "RetireRenamed",
    "TargetFinished",
];

/// A server of 3.2.6 and one of 3.6.1.
fn servers() -> Servers {
    let servers = Servers::between("bull", "bw2");
    let version = servers.source.run(&["/usr/lib/cyrus/bin/cyr_info", "version"]).unwrap();
    assert!(version.contains("3.2.6"), "{version}");
    servers
}

/// Fails unless both are the same but for what is named.
///
/// `sieve-mailbox`: from 3.6 on scripts are messages, which count. Cyrus makes them of
/// the files that come from 3.2 when somebody asks for a script, and so after all else
/// was compared.
/// `mailbox-ids`: SELECT of 3.2 does not tell the id of a mailbox. `usercounters` begin with
/// the number of their version.
#[track_caller]
fn assert_moved(servers: &Servers, user: &str, before: &Fingerprint, others: &[&str]) {
    let mut after = fingerprint(&servers.target, user, others);
    if after.sieve.is_empty() {
        drop(servers.target.sieve(user).unwrap());
        after.sieve = fingerprint(&servers.target, user, &[]).sieve;
    }
    assert_same(before, &after, &["mailbox_id", USERCOUNTERS]);
}

/// A fingerprint on a server of 3.2, where the first look at a user's counters makes them.
fn second_look(host: &Host, user: &str, others: &[&str]) -> Fingerprint {
    fingerprint(host, user, &[]);
    fingerprint(host, user, others)
}

/// What becomes of those who come late.
fn assert_gone(host: &Host, user: &str) {
    let late = lab::lmtp::deliver(host, user, b"Subject: late\r\n\r\nx\r\n");
    assert!(matches!(&late, Outcome::Refused(_, reply) if reply.code / 100 == 4), "{late:?}");
    let mut imap = host.imap(user).unwrap();
    for command in ["EXAMINE INBOX", "CREATE INBOX.late", "CREATE INBOX.Sent.late"] {
        let reply = imap.attempt(command).unwrap();
        assert!(!reply.tagged.is_ok(), "{host} says OK to {command}");
    }
    assert!(host.sieve(user).is_err(), "scripts can be edited where nobody sees them");
}

#[test]
fn a_rich_user_leaves_a_server_of_3_2_that_goes_on_working() {
    let servers = servers();
    servers.accounts(&["anna", "bert"]);
    let seeded = Seed::new(&servers.source, "anna").rich("bert", 300).unwrap();
    assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
    let before = fingerprint(&servers.source, "anna", &["bert"]);
    let report = servers.push("user.anna", &["--json"]).expect(0).report().unwrap();
    assert_eq!(report["outcome"], "done");
    assert_gone(&servers.source, "anna");
    servers.mbcopy(&["verify", "user.anna", "bw2"]).expect(0);
    servers.push("user.bert", &[]).expect(0);
    assert_moved(&servers, "anna", &before, &["bert"]);
}

#[test]
#[ignore = "part of the full matrix"]
fn mail_flows_while_a_user_leaves_a_server_of_3_2() {
    let servers = servers();
    servers.accounts(&["flow"]);
    Seed::new(&servers.source, "flow").bulk(1000, Size::Median(8192), 10).unwrap();
    let (route, command) = Route::commanded("flow", &servers.source).unwrap();
    let pause = Duration::from_millis(5);
    let crew = Crew::start(&route, pause).unwrap();
    // Folders come, go and change their names: they are listed again under the lock.
    let others = [
        folder_creator(&route, pause * 15),
        folder_renamer(&route, pause * 15).unwrap(),
        folder_deleter(&route, 8, pause * 30).unwrap(),
        subscriber(&route, pause * 2).unwrap(),
    ];
    std::thread::sleep(Duration::from_secs(1));
    let pushed = servers.push("user.flow", &["--route-command", &command, "--json"]);
    std::thread::sleep(Duration::from_secs(2));
    let mut history = crew.stop().unwrap();
    others.into_iter().for_each(|worker| history.merge(worker.stop().unwrap()));
    let report = pushed.expect(0).report().unwrap();
    assert_eq!(report["outcome"], "done");
    let end = fingerprint(&servers.target, "flow", &[]);
    assert_eq!(check(&history, &end), [], "setbacks: {:?}", history.setbacks);
    let accepted = history.messages.values().filter(|fate| fate.accepted > 0).count();
    assert!(accepted > 100, "only {accepted} messages were accepted");
    assert!(history.bounces.is_empty(), "{:?}", history.bounces);
    // The freeze has a limit.
    assert!(history.longest() < Duration::from_secs(10), "blocked for {:?}", history.longest());
    // Nothing new lies in the copy that was put away.
    assert_gone(&servers.source, "flow");
}

#[test]
#[ignore = "part of the full matrix"]
fn a_shared_tree_leaves_a_server_of_3_2_and_comes_back() {
    let servers = servers();
    servers.accounts(&["carl", "dora"]);
    for user in ["carl", "dora"] {
        Seed::new(&servers.source, user).small().unwrap();
    }
    seed::shared_tree(&servers.source, "team.sales", &["carl", "dora"]).unwrap();
    let look = |host: &Host, users: &[&str]| {
        Fingerprint::take_tree(host, "team.sales", users, &Take::default()).unwrap()
    };
    let before = look(&servers.source, &["carl", "dora"]);
    servers.push("team.sales", &[]).expect(0);
    // What they have read there, and that they subscribed, comes with them.
    servers.push("user.carl", &[]).expect(0);
    servers.push("user.dora", &[]).expect(0);
    assert_same(&before, &look(&servers.target, &["carl", "dora"]), &["mailbox_id"]);
    for mailbox in ["user.dora", "user.carl", "team.sales"] {
        servers.mbcopy(&["reverse", mailbox]).expect(0);
    }
    assert_same(&before, &look(&servers.source, &["carl", "dora"]), &[]);
}

#[test]
#[ignore = "part of the full matrix"]
fn a_script_that_is_edited_in_the_moment_of_the_freeze_is_told_of() {
    let servers = servers();
    servers.accounts(&["edits"]);
    Seed::new(&servers.source, "edits").small().unwrap();
    servers.arm_on(&servers.source, "Settled wait");
    std::thread::scope(|scope| {
        let push = scope.spawn(|| servers.push("user.edits", &["-v"]));
        while !servers.struck() && !push.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        servers.source.sieve("edits").unwrap().put("main", "discard;\r\n").unwrap();
        servers.disarm();
        push.join().unwrap().expect(0).says(&["main.script was edited in the moment"]);
    });
}

#[test]
#[ignore = "part of the full matrix"]
fn a_watcher_sees_the_whole_user_of_3_2_and_then_nothing_of_him() {
    let servers = servers();
    servers.accounts(&["seen"]);
    Seed::new(&servers.source, "seen").bulk(1000, Size::Median(4096), 40).unwrap();
    let at_target = watcher(&servers.target, "seen", Duration::from_millis(2));
    std::thread::sleep(Duration::from_millis(300));
    servers.push("user.seen", &[]).expect(0);
    std::thread::sleep(Duration::from_millis(300));
    let target = at_target.stop().unwrap();
    let whole = Observation::of(&fingerprint(&servers.target, "seen", &[]));
    assert_eq!(none_then_whole(&target, &whole), []);
}

#[test]
#[ignore = "part of the full matrix"]
fn a_move_from_3_2_that_is_killed_is_finished_by_resume() {
    for (n, point) in POINTS.into_iter().enumerate() {
        let servers = servers();
        let user = format!("crash{n}");
        let mailbox = format!("user.{user}");
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let (route, command) = Route::commanded(&user, &servers.source).unwrap();
        // Flags that are changed on both servers at once are those of both.
        let pause = Duration::from_millis(25);
        let workers = [
            deliverer(&route, pause),
            appender(&route, "INBOX", pause),
            expunger(&route, "INBOX", 100, pause).unwrap(),
            reader(&route, "INBOX", pause),
        ];
        std::thread::sleep(Duration::from_millis(500));
        servers.arm(point);
        let killed = servers.push(&mailbox, &["--route-command", &command]);
        assert!(servers.disarm(), "{point} was not reached: {}", killed.stderr);
        std::thread::sleep(Duration::from_millis(500));
        if n % 2 == 0 {
            servers.source.restart_cyrus().unwrap();
        }
        let resumed = servers.mbcopy(&["resume", &mailbox, "--route-command", &command, "-v"]);
        println!("{point}: {}", resumed.stderr);
        assert_eq!(resumed.code, 0, "{point}: {}", resumed.stderr);
        std::thread::sleep(Duration::from_millis(500));
        let mut history = History::default();
        workers.into_iter().for_each(|worker| history.merge(worker.stop().unwrap()));
        let end = fingerprint(&servers.target, &user, &[]);
        assert_eq!(check(&history, &end), [], "{point}: setbacks: {:?}", history.setbacks);
        assert!(history.bounces.is_empty(), "{point}: {:?}", history.bounces);
        assert_gone(&servers.source, &user);
    }
}

#[test]
#[ignore = "part of the full matrix"]
fn a_move_from_3_2_that_is_killed_is_put_back_by_abort() {
    for (n, point) in POINTS.into_iter().enumerate() {
        let servers = servers();
        let user = format!("abort{n}");
        let mailbox = format!("user.{user}");
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let before = second_look(&servers.source, &user, &[]);
        servers.arm(point);
        let killed = servers.push(&mailbox, &["--route-command", "true"]);
        assert!(servers.disarm(), "{point} was not reached: {}", killed.stderr);
        let aborted = servers.mbcopy(&["abort", &mailbox, "-v"]);
        match point {
            "TargetFinished" => {
                aborted.expect(4).says(&["mbcopy reverse", "bw2 serves the user now"]);
            }
            "RetireCommitted" | "RetireRenamed" => {
                aborted.expect(4).says(&["mbcopy reverse", "bw2 serves the user now"]);
                servers.mbcopy(&["resume", &mailbox]).expect(0);
                assert_moved(&servers, &user, &before, &[]);
            }
            _ => {
                aborted.expect(0).says(&["bull serves the user now"]);
                assert_same(&before, &fingerprint(&servers.source, &user, &[]), &[]);
                let gone = servers.target.imap(&user).unwrap().attempt("EXAMINE INBOX").unwrap();
                assert!(!gone.tagged.is_ok(), "{point}: both servers show him");
            }
        }
    }
}

/// What differs after a move from a later server to one of 3.2: `mailbox-ids`;
/// `usercounters`; and `sieve-mailbox`, which does not count here.
const NAMED: [&str; 3] = ["mailbox_id", USERCOUNTERS, "quota"];

/// The user's counters, as an annotation.
const USERCOUNTERS: &str = "/private/vendor/cmu/cyrus-imapd/usercounters";

/// Fails if Cyrus counts something else than a user's quota roots say, or would mend his
/// mailboxes.
#[track_caller]
fn assert_in_order(host: &Host, user: &str) {
    let quota = || host.run_as_cyrus(&["/usr/lib/cyrus/bin/quota", "-u", user]).unwrap();
    let before = quota();
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/quota", "-f", "-u", user]).unwrap();
    assert_eq!(before, quota());
    for options in [&["-n", "-q", "-u", user][..], &["-n", "-q", "-G", "-u", user]] {
        let command: Vec<&str> =
            ["/usr/lib/cyrus/bin/reconstruct"].iter().chain(options).copied().collect();
        let said = host.run_as_cyrus(&command).unwrap();
        let harmless = ["mismatch: sentdate", "mismatch: gmtime"];
        let odd = said.lines().find(|line| !harmless.iter().any(|text| line.contains(text)));
        assert_eq!(odd, None);
    }
}

#[test]
#[ignore = "part of the full matrix"]
fn a_user_comes_back_to_a_server_of_3_2_with_what_has_come_since() {
    let servers = servers();
    servers.accounts(&["anna", "bert"]);
    let seeded = Seed::new(&servers.source, "anna").rich("bert", 200).unwrap();
    assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
    let before = second_look(&servers.source, "anna", &[]);
    servers.push("user.anna", &[]).expect(0);
    servers.mbcopy(&["reverse", "user.anna"]).expect(0).says(&["bull serves the user now"]);
    assert_same(&before, &second_look(&servers.source, "anna", &[]), &[]);
    let gone = servers.target.imap("anna").unwrap().attempt("EXAMINE INBOX").unwrap();
    assert!(!gone.tagged.is_ok(), "the server he came from still shows him");

    // Again, and he uses his new home.
    servers.push("user.anna", &[]).expect(0);
    let text = b"Subject: new home\r\n\r\nhello\r\n";
    lab::lmtp::deliver(&servers.target, "anna", text).accepted().unwrap();
    let mut imap = servers.target.imap("anna").unwrap();
    for command in [
        "SELECT INBOX",
        "STORE 1:3 +FLAGS (\\Flagged brandnew)",
        "STORE 5 +FLAGS (\\Deleted)",
        "EXPUNGE",
        "CREATE INBOX.later",
        "SUBSCRIBE INBOX.later",
        "RENAME INBOX.Junk INBOX.junked",
        "DELETE INBOX.1234",
    ] {
        imap.command(command).unwrap();
    }
    imap.logout();
    let mut sieve = servers.target.sieve("anna").unwrap();
    sieve.put("made there", "keep;\r\n").unwrap();
    sieve.activate("made there").unwrap();
    drop(sieve);
    let mut there = fingerprint(&servers.target, "anna", &[]);
    servers.mbcopy(&["reverse", "user.anna"]).expect(0);
    there.own.mailboxes.remove("INBOX.#sieve");
    there.admin.retain(|name, _| !name.ends_with("#sieve"));
    assert_same(&there, &second_look(&servers.source, "anna", &[]), &NAMED);
    assert_in_order(&servers.source, "anna");
    let late = lab::lmtp::deliver(&servers.source, "anna", b"Subject: late\r\n\r\nx\r\n");
    late.accepted().unwrap();
}

#[test]
#[ignore = "part of the full matrix"]
fn users_move_to_a_server_of_3_2() {
    for source in ["bull2", "bw1"] {
        let servers = Servers::between(source, "bull");
        servers.accounts(&["anna", "bert"]);
        let seeded = Seed::new(&servers.source, "anna").rich("bert", 200).unwrap();
        assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
        let mut before = second_look(&servers.source, "anna", &["bert"]);
        servers.push("user.anna", &[]).expect(0);
        servers.push("user.bert", &[]).expect(0);
        before.own.mailboxes.remove("INBOX.#sieve");
        before.admin.retain(|name, _| !name.ends_with("#sieve"));
        assert_same(&before, &second_look(&servers.target, "anna", &["bert"]), &NAMED);
        assert_in_order(&servers.target, "anna");
        let (route, command) = Route::commanded("flow", &servers.source).unwrap();
        servers.accounts(&["flow"]);
        Seed::new(&servers.source, "flow").bulk(500, Size::Median(4096), 5).unwrap();
        let crew = Crew::start(&route, Duration::from_millis(5)).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let pushed = servers.push("user.flow", &["--route-command", &command]);
        std::thread::sleep(Duration::from_secs(1));
        let history = crew.stop().unwrap();
        pushed.expect(0);
        let end = fingerprint(&servers.target, "flow", &[]);
        assert_eq!(check(&history, &end), [], "setbacks: {:?}", history.setbacks);
        assert!(history.bounces.is_empty(), "{:?}", history.bounces);
    }
}

/// Where a move to a server of 3.2 is killed.
const POINTS_OF_TARGET: [&str; 7] = [
    "Copied",
    "PublishBegun",
    "PublishRenamedOne",
    "PublishRenamed",
    "PublishCommitted",
    "Routed",
    "RetireCommitted",
];

#[test]
#[ignore = "part of the full matrix"]
fn a_move_to_3_2_that_is_killed_is_put_back_by_abort_or_finished_by_resume() {
    for (n, point) in POINTS_OF_TARGET.into_iter().enumerate() {
        let servers = Servers::between("bw1", "bull");
        let user = format!("half{n}");
        let mailbox = format!("user.{user}");
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let mut before = fingerprint(&servers.source, &user, &[]);
        let route = ["--route-command", "true"];
        servers.arm(point);
        servers.push(&mailbox, &route);
        assert!(servers.disarm(), "{point} was not reached");
        if point != "RetireCommitted" {
            servers.mbcopy(&["abort", &mailbox]).expect(0).says(&["bw1 serves the user now"]);
            assert_same(&before, &fingerprint(&servers.source, &user, &[]), &[]);
            let there = servers.target.imap(&user).unwrap().attempt("EXAMINE INBOX").unwrap();
            assert!(!there.tagged.is_ok(), "{point}: both servers show him");
            let left = "find /var/spool/cyrus/mail /var/spool/sieve /var/lib/cyrus/user \
                        /var/lib/cyrus/quota -type f | wc -l";
            let left = servers.target.run(&["sh", "-c", left]).unwrap();
            assert_eq!(left.trim(), "0", "{point}: files are left");
            servers.arm(point);
            let again = servers.push(&mailbox, &route);
            assert!(servers.disarm(), "{point} was not reached again: {}", again.stderr);
        }
        servers.target.restart_cyrus().unwrap();
        servers.mbcopy(&["resume", &mailbox, "--route-command", "true"]).expect(0);
        before.own.mailboxes.remove("INBOX.#sieve");
        before.admin.retain(|name, _| !name.ends_with("#sieve"));
        assert_same(&before, &second_look(&servers.target, &user, &[]), &NAMED);
        assert_in_order(&servers.target, &user);
    }
}

/// How many messages each mailbox has.
fn counts(of: &Fingerprint) -> BTreeMap<String, usize> {
    of.own.mailboxes.iter().map(|(name, m)| (name.clone(), m.messages.len())).collect()
}

/// Clients come to a target of 3.2 while its directories are on their way back: it is
/// whole again, with what they did, and the move goes forward.
#[test]
#[ignore = "part of the full matrix"]
fn a_target_of_3_2_that_is_used_while_it_is_taken_back_is_finished_forward() {
    // Folders go back first, beginning with the deepest, and the records go last. What a
    // client does, and which mailbox is not there any more then, and which is new.
    let cases = [
        ("Rename kill 1", "", "", ""),
        ("Rename kill 1", "RENAME INBOX.Sent INBOX.New", "INBOX.Sent", "INBOX.New"),
        ("Rename kill 2", "DELETE INBOX.Gr&APYA3w-e", "INBOX.Größe", ""),
        ("DatabaseWrite", "CREATE INBOX.New", "", "INBOX.New"),
    ];
    for (n, (back, command, gone, new)) in cases.into_iter().enumerate() {
        let servers = Servers::between("bw1", "bull");
        let user = format!("partly{n}");
        let mailbox = format!("user.{user}");
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let mut expected = counts(&fingerprint(&servers.source, &user, &[]));
        let again = |command| servers.mbcopy(&[command, &mailbox, "--route-command", "true"]);
        servers.arm("Routed");
        servers.push(&mailbox, &["--route-command", "true"]);
        assert!(servers.disarm(), "the push was not killed");
        servers.arm_on(&servers.target, back);
        again("abort").expect(5);
        assert!(servers.disarm(), "{back}: the abort was not killed");
        if command.is_empty() {
            let message = b"From: a@x\r\nSubject: late\r\n\r\nlate\r\n";
            lab::lmtp::deliver(&servers.target, &user, message).accepted().unwrap();
            *expected.get_mut("INBOX").unwrap() += 1;
        } else {
            servers.target.imap(&user).unwrap().command(command).unwrap();
        }
        let moved = expected.remove(gone);
        assert_eq!(moved.is_some(), !gone.is_empty());
        if !new.is_empty() {
            expected.insert(new.into(), moved.unwrap_or(0));
        }
        again("abort").expect(5).says(&["has changed on this server since it was published"]);
        again("resume").expect(0);
        let there = servers.source.imap(&user).unwrap().attempt("EXAMINE INBOX").unwrap();
        assert!(!there.tagged.is_ok(), "{back} {command}: the source still serves him");
        expected.remove("INBOX.#sieve");
        let found = counts(&second_look(&servers.target, &user, &[]));
        assert_eq!(found, expected, "{back} {command}");
        assert_in_order(&servers.target, &user);
    }
}

#[test]
#[ignore = "part of the full matrix"]
fn stragglers_are_carried_to_a_server_of_3_2() {
    let servers = Servers::between("bw1", "bull");
    servers.accounts(&["late"]);
    Seed::new(&servers.source, "late").small().unwrap();
    let (route, command) = Route::commanded("late", &servers.source).unwrap();
    let pause = Duration::from_millis(5);
    let workers = [
        deliverer(&route, pause),
        appender(&route, "INBOX", pause),
        expunger(&route, "INBOX", 100, pause).unwrap(),
        reader(&route, "INBOX", pause),
    ];
    std::thread::sleep(Duration::from_millis(500));
    servers.arm("RouteChanged");
    servers.push("user.late", &["--route-command", &command]);
    assert!(servers.disarm(), "it was not killed");
    std::thread::sleep(Duration::from_millis(500));
    servers.mbcopy(&["resume", "user.late", "--route-command", &command]).expect(0);
    std::thread::sleep(Duration::from_millis(500));
    let mut history = History::default();
    workers.into_iter().for_each(|worker| history.merge(worker.stop().unwrap()));
    let end = fingerprint(&servers.target, "late", &[]);
    assert_eq!(check(&history, &end), [], "setbacks: {:?}", history.setbacks);
    assert!(history.bounces.is_empty(), "{:?}", history.bounces);
}
