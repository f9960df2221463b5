//! What reaches the source after the target has the user comes to the target, once,
//! and harms nothing that has come there since.

use crate::support::{Servers, fingerprint};
use lab::host::Host;
use lab::imap::{Imap, NewMessage};
use lab::seed::{Seed, Size};
use mbcopy::fault::Point;
use std::collections::{BTreeMap, BTreeSet};

/// INTERNALDATE of all that is appended.
const DATE: &str = "03-Feb-2003 04:05:06 +0000";

fn message(id: &str) -> Vec<u8> {
    format!("From: a@x\r\nSubject: {id}\r\nMessage-ID: <{id}@x>\r\n\r\n{id}\r\n").into_bytes()
}

fn append(imap: &mut Imap, folder: &str, id: &str, flags: &[&str]) {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let new = NewMessage { flags, date: Some(DATE.into()), bytes: message(id) };
    imap.append(folder, &[new]).unwrap();
}

fn deliver(host: &Host, user: &str, id: &str) {
    lab::lmtp::deliver(host, user, &message(id)).accepted().unwrap();
}

fn commands(imap: &mut Imap, commands: &[&str]) {
    for command in commands {
        imap.command(command).unwrap();
    }
}

/// What a folder has: how often each message, with which flags and date.
type Folders = BTreeMap<String, BTreeMap<(String, Vec<String>, bool), usize>>;

fn folders(host: &Host, user: &str) -> Folders {
    let print = fingerprint(host, user, &[]);
    let mut folders = Folders::new();
    for (name, mailbox) in &print.own.mailboxes {
        let folder = folders.entry(name.clone()).or_default();
        for found in mailbox.messages.values() {
            let id = found.message_id.trim().trim_matches(['<', '>']).replace("@x", "");
            let flags = found.flags.iter().cloned().collect();
            let old = found.date.trim().trim_start_matches('"').contains("Feb-2003 04:05:06 +0000");
            *folder.entry((id, flags, old)).or_default() += 1;
        }
    }
    folders
}

/// Flags, as a test writes them down.
type Flags<'a> = &'a [&'a str];

/// The same, as a test writes it down: id and flags; delivered ones have no date.
fn expected(list: &[(&str, &[(&str, Flags)])]) -> Folders {
    let mut folders = Folders::new();
    for (folder, messages) in list {
        let of = folders.entry((*folder).to_owned()).or_default();
        for (id, flags) in *messages {
            let flags: BTreeSet<String> = flags.iter().map(|f| (*f).to_owned()).collect();
            let old = !id.ends_with("-lmtp");
            *of.entry(((*id).to_owned(), flags.into_iter().collect(), old)).or_default() += 1;
        }
    }
    folders
}

/// A user with some folders.
fn seed(servers: &Servers, user: &str) {
    servers.accounts(&[user, "bob"]);
    let mut admin = servers.source.admin().unwrap();
    admin.command(format!("CREATE user.{user}")).unwrap();
    let mut imap = servers.source.imap(user).unwrap();
    for id in ["b1", "b2", "b3", "b4", "b5", "b6", "b7"] {
        append(&mut imap, "INBOX", id, if id == "b2" { &["\\Seen"] } else { &[] });
    }
    for folder in ["work", "old", "old.deep", "gone", "both"] {
        imap.command(format!("CREATE INBOX.{folder}")).unwrap();
        append(&mut imap, &format!("INBOX.{folder}"), &format!("in-{folder}"), &[]);
    }
    imap.command("SUBSCRIBE INBOX.work").unwrap();
    imap.logout();
    let mut sieve = servers.source.sieve(user).unwrap();
    for name in ["kept", "changed", "dropped"] {
        sieve.put(name, "keep;\r\n").unwrap();
    }
    sieve.activate("kept").unwrap();
}

/// Stops a move of the user between route and retire.
fn stop_at(servers: &Servers, user: &str, point: Point) {
    servers.arm(&format!("{:?}", point));
    let killed = servers.push(&format!("user.{user}"), &["--route-command", "true"]);
    assert!(servers.disarm(), "{point:?} was not reached: {}", killed.stderr);
    assert!(killed.code != 0);
}

/// What happens on the source that still lives.
fn use_source(servers: &Servers, user: &str) {
    let host = &servers.source;
    deliver(host, user, "late-lmtp");
    let mut imap = host.imap(user).unwrap();
    append(&mut imap, "INBOX", "late", &["\\Seen", "$label"]);
    append(&mut imap, "INBOX", "twin", &[]);
    append(&mut imap, "INBOX", "twin", &[]);
    append(&mut imap, "INBOX", "short", &[]);
    append(&mut imap, "INBOX.work", "late-work", &["\\Answered"]);
    commands(
        &mut imap,
        &[
            "SELECT INBOX",
            "UID STORE 1 +FLAGS (\\Flagged)",
            "UID STORE 2 -FLAGS (\\Seen)",
            "UID STORE 4 +FLAGS (\\Answered)",
            // 12 is the one that is gone as soon as it has come.
            "UID STORE 3,12 +FLAGS (\\Deleted)",
            "UID EXPUNGE 3,12",
            "UNSELECT",
            "RENAME INBOX.old INBOX.renamed",
            "CREATE INBOX.new",
            "SUBSCRIBE INBOX.new",
            "UNSUBSCRIBE INBOX.work",
            "DELETE INBOX.gone",
            "SETACL INBOX.work bob lrs",
        ],
    );
    append(&mut imap, "INBOX.new", "late-new", &["\\Flagged"]);
    append(&mut imap, "INBOX.renamed", "late-renamed", &[]);
    imap.logout();
    let mut sieve = host.sieve(user).unwrap();
    sieve.put("changed", "discard;\r\n").unwrap();
    sieve.put("my new", "stop;\r\n").unwrap();
    sieve.delete("dropped").unwrap();
    sieve.activate("my new").unwrap();
}

/// What happens on the target meanwhile.
fn use_target(servers: &Servers, user: &str) {
    let host = &servers.target;
    deliver(host, user, "target-lmtp");
    let mut imap = host.imap(user).unwrap();
    append(&mut imap, "INBOX", "target", &["\\Draft"]);
    commands(
        &mut imap,
        &[
            "SELECT INBOX",
            "UID STORE 4 +FLAGS (\\Draft)",
            "UID STORE 7 +FLAGS (\\Flagged)",
            "UID STORE 6 +FLAGS (\\Deleted)",
            "UID EXPUNGE 6",
        ],
    );
    imap.logout();
}

/// What the target must have afterwards.
fn everything() -> Folders {
    expected(&[
        (
            "INBOX",
            &[
                ("b1", &["\\Flagged"]),
                ("b2", &[]),
                ("b4", &["\\Answered", "\\Draft"]),
                ("b5", &[]),
                ("b7", &["\\Flagged"]),
                ("late-lmtp", &[]),
                ("late", &["\\Seen", "$label"]),
                ("twin", &[]),
                ("twin", &[]),
                ("target-lmtp", &[]),
                ("target", &["\\Draft"]),
            ],
        ),
        ("INBOX.both", &[("in-both", &[])]),
        ("INBOX.new", &[("late-new", &["\\Flagged"])]),
        ("INBOX.renamed", &[("in-old", &[]), ("late-renamed", &[])]),
        ("INBOX.renamed.deep", &[("in-old.deep", &[])]),
        ("INBOX.work", &[("in-work", &[]), ("late-work", &["\\Answered"])]),
    ])
}

/// The numbers of a report.
fn numbers(report: &serde_json::Value) -> [u64; 6] {
    ["messages", "flags", "expunged", "mailboxes", "other", "left"]
        .map(|name| report["carried"][name].as_u64().unwrap_or(u64::MAX))
}

/// Finishes the move, and looks that everything is on the target and nobody on the source.
fn finish(servers: &Servers, user: &str) {
    let mailbox = format!("user.{user}");
    let again = servers.push(&mailbox, &["--route-command", "true", "--json"]).expect(0);
    let report = again.report().unwrap();
    assert_eq!(numbers(&report), [7, 3, 1, 4, 6, 0], "{report:#}");
    assert_eq!(folders(&servers.target, user), everything());
    let print = fingerprint(&servers.target, user, &[]);
    let subscribed: Vec<_> = print.own.subscribed.keys().collect();
    assert_eq!(subscribed, ["INBOX.new"]);
    let bob = print.own.mailboxes["INBOX.work"].acl.get("bob").map(String::as_str);
    assert_eq!(bob, Some("lrs"));
    let scripts =
        print.sieve.iter().map(|(name, script)| (name.as_str(), script.text.trim(), script.active));
    let scripts: Vec<_> = scripts.collect();
    let wanted =
        [("changed", "discard;", false), ("kept", "keep;", false), ("my new", "stop;", true)];
    assert_eq!(scripts, wanted);
    let refused = servers.source.imap(user).unwrap().attempt("EXAMINE INBOX").unwrap();
    assert!(!refused.tagged.is_ok(), "the source still serves {user}");
    // Nothing of it stays behind, and nobody is left who could use it.
    let left =
        servers.target.run(&["sh", "-c", "find /var/lib/cyrus/mbcopy/moves -type f | wc -l"]);
    assert_eq!(left.unwrap().trim(), "0");
    let running = servers.target.run(&["sh", "-c", "pgrep -fc '[i]mapd.*carry' || true"]).unwrap();
    assert_eq!(running.trim(), "0");
}

#[test]
fn mail_and_changes_that_reach_the_source_after_the_route_are_carried_over() {
    for point in [Point::RouteChanged, Point::Routed] {
        let servers = Servers::fresh();
        seed(&servers, "late");
        stop_at(&servers, "late", point);
        use_source(&servers, "late");
        use_target(&servers, "late");
        finish(&servers, "late");
    }
}

#[test]
fn carrying_over_that_is_killed_is_finished_and_nothing_comes_twice() {
    let servers = Servers::fresh();
    seed(&servers, "again");
    stop_at(&servers, "again", Point::Routed);
    use_source(&servers, "again");
    use_target(&servers, "again");
    let more = [Point::Carried, Point::Carrying, Point::Carried];
    for point in Point::OF_STRAGGLERS.into_iter().chain(more) {
        stop_at(&servers, "again", point);
    }
    finish(&servers, "again");
}

#[test]
fn what_was_changed_on_both_servers_is_kept_and_said() {
    let servers = Servers::fresh();
    seed(&servers, "both");
    stop_at(&servers, "both", Point::Routed);
    let mut there = servers.source.imap("both").unwrap();
    commands(
        &mut there,
        &[
            "SELECT INBOX",
            "UID STORE 5 +FLAGS (\\Deleted)",
            "UID EXPUNGE 5",
            "UNSELECT",
            "RENAME INBOX.old INBOX.one",
            "DELETE INBOX.gone",
            "SETACL INBOX.work bob lrs",
        ],
    );
    there.logout();
    let mut here = servers.target.imap("both").unwrap();
    commands(
        &mut here,
        &[
            "SELECT INBOX",
            "UID STORE 5 +FLAGS (\\Flagged)",
            "UNSELECT",
            "RENAME INBOX.old INBOX.two",
            "SETACL INBOX.work bob lrswi",
        ],
    );
    append(&mut here, "INBOX.gone", "used", &[]);
    here.logout();

    let again = servers.push("user.both", &["--route-command", "true", "--json"]).expect(3);
    let again = again.says(&["expunged on the source and changed here", "renamed on both servers"]);
    let report = again.report().unwrap();
    assert_eq!(report["outcome"], "done-with-skipped");
    // The folder below the renamed one is told by itself.
    assert_eq!(numbers(&report), [0, 0, 0, 0, 0, 5], "{report:#}");
    let found = folders(&servers.target, "both");
    assert!(found["INBOX"].contains_key(&("b5".into(), vec!["\\Flagged".into()], true)));
    assert!(found.contains_key("INBOX.two") && !found.contains_key("INBOX.one"));
    assert_eq!(found["INBOX.gone"].len(), 2);
}

#[test]
fn many_stragglers_come_in_rounds_while_the_source_is_in_use() {
    let servers = Servers::fresh();
    seed(&servers, "many");
    stop_at(&servers, "many", Point::Routed);
    Seed::new(&servers.source, "many").bulk(1000, Size::Fixed(8000), 3).unwrap();
    let mut imap = servers.source.imap("many").unwrap();
    commands(&mut imap, &["SELECT INBOX", "UID STORE 1:* +FLAGS ($all)", "UNSELECT"]);
    imap.logout();
    let source = folders(&servers.source, "many");
    let options = ["--route-command", "true", "--json", "--max-freeze", "2s"];
    let again = servers.push("user.many", &options).expect(0);
    let report = again.report().unwrap();
    println!("{} {} ms frozen", report["carried"], report["freeze_ms"]);
    assert_eq!(numbers(&report)[0], 1000);
    assert!(report["freeze_ms"].as_f64().unwrap() < 2000.0);
    assert_eq!(folders(&servers.target, "many"), source);
}
