//! What reaches the source after the target has the user comes to the target, once,
//! and harms nothing that has come there since.

mod rounds;

use crate::failures::Pushing;
use crate::support::{OptionsPutBack, Servers, assert_same, fingerprint};
use lab::chaos::Side;
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

/// A message as a test writes it down: id and flags.
type Written<'a> = (&'a str, &'a [&'a str]);

/// The same, as a test writes it down; only what was appended has our date.
fn expected(list: &[(&str, &[Written<'_>])]) -> Folders {
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
            "SETACL INBOX.new bob lr",
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

/// What each UID means to clients, by folder and UIDVALIDITY.
fn uids(host: &Host, user: &str) -> BTreeMap<(String, String, u32), String> {
    let print = fingerprint(host, user, &[]);
    let mut uids = BTreeMap::new();
    for (folder, mailbox) in &print.own.mailboxes {
        for (uid, message) in &mailbox.messages {
            let validity = mailbox.status["UIDVALIDITY"].clone();
            uids.insert((folder.clone(), validity, *uid), message.message_id.clone());
        }
    }
    uids
}

/// The numbers of a report.
fn numbers(report: &serde_json::Value) -> [u64; 6] {
    ["messages", "flags", "expunged", "mailboxes", "other", "left"]
        .map(|name| report["carried"][name].as_u64().unwrap_or(u64::MAX))
}

/// Finishes the move, and looks that everything is on the target and nobody on the source.
/// `flags`: how many messages are known to have got the source's.
fn finish(servers: &Servers, user: &str, flags: u64) {
    let mailbox = format!("user.{user}");
    let told = servers.both().map(|host| uids(host, user));
    let again = servers.push(&mailbox, &["--route-command", "true", "--json"]).expect(0);
    let report = again.report().unwrap();
    assert_eq!(numbers(&report), [7, flags, 1, 4, 7, 0], "{report:#}");
    assert_eq!(folders(&servers.target, user), everything());
    // No UID that a client of either server knows means another message now.
    let now = uids(&servers.target, user);
    for (place, message) in told.iter().flatten() {
        assert!(now.get(place).is_none_or(|is| is == message), "{place:?} was {message}: {now:?}");
    }
    let print = fingerprint(&servers.target, user, &[]);
    let subscribed: Vec<_> = print.own.subscribed.keys().collect();
    assert_eq!(subscribed, ["INBOX.new"]);
    let bob = |folder: &str| print.own.mailboxes[folder].acl.get("bob").map(String::as_str);
    assert_eq!((bob("INBOX.work"), bob("INBOX.new")), (Some("lrs"), Some("lr")));
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
        finish(&servers, "late", 3);
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
    for point in Point::OF_STRAGGLERS.iter().copied().chain(more) {
        stop_at(&servers, "again", point);
    }
    // Whose flags were set when it was killed has them already.
    finish(&servers, "again", 2);
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
fn flags_that_are_set_while_others_are_carried_over_stay() {
    let servers = Servers::fresh();
    seed(&servers, "race");
    stop_at(&servers, "race", Point::Routed);
    let mut there = servers.source.imap("race").unwrap();
    commands(&mut there, &["SELECT INBOX", "UID STORE 2 FLAGS (\\Answered \\Deleted)"]);
    there.logout();
    let pushing = Pushing::until(&servers, Side::Target, "CarryFlagged wait", "user.race");
    let mut here = servers.target.imap("race").unwrap();
    commands(&mut here, &["SELECT INBOX", "UID STORE 2 FLAGS (\\Seen \\Flagged)"]);
    here.logout();
    pushing.go_on().expect(0);
    let mut here = servers.target.imap("race").unwrap();
    commands(&mut here, &["SELECT INBOX"]);
    for flag in ["SEEN", "FLAGGED", "ANSWERED"] {
        let found = here.command(format!("UID SEARCH UID 2 {flag}")).unwrap();
        assert!(found.of("SEARCH").any(|uids| uids.len() > 1), "{flag} is lost");
    }
    // It was changed on both.
    let found = here.command("UID SEARCH UID 2 DELETED").unwrap();
    assert!(!found.of("SEARCH").any(|uids| uids.len() > 1));
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
    println!("{} {} ms frozen of {}", report["carried"], report["freeze_ms"], report["total_ms"]);
    assert_eq!(numbers(&report)[0], 1000);
    assert!(report["freeze_ms"].as_f64().unwrap() < 2000.0);
    assert_eq!(folders(&servers.target, "many"), source);
}

/// The SHA-1 of every message of a user, as often as he has it.
fn contents(host: &Host, user: &str) -> Vec<String> {
    let print = fingerprint(host, user, &[]);
    let mut all: Vec<_> = print.messages().map(|(_, _, m)| m.sha1.clone()).collect();
    all.sort();
    all
}

#[test]
fn messages_that_are_hardly_messages_are_carried_over_as_they_are() {
    let servers = Servers::fresh();
    seed(&servers, "odd");
    stop_at(&servers, "odd", Point::Routed);
    let long = [b"Subject: long\r\n\r\n", "y".repeat(70_000).as_bytes(), b"\r\n"].concat();
    let odd: [&[u8]; 10] = [
        b"x",
        b"no header, no end",
        b"Subject: only a header\r\n",
        b"\r\nonly a body\r\n",
        b"Subject: \xe4\xf6\xfc\r\n\r\n\xff\xfe\r\n",
        b"Subject: lone\r\n\r\na\rb\nc\r\r\n",
        b"From x@y Mon Jan  1 00:00:00 2001\r\nSubject: mbox\r\n\r\nz\r\n",
        b"Subject: nothing\r\nthis is no field\r\n\r\nz\r\n",
        b"Subject : space\r\n\r\nz\r\n",
        &long,
    ];
    let mut accepted = 0;
    for message in odd {
        let outcome = lab::lmtp::deliver(&servers.source, "odd", message);
        println!("{:?}: {outcome:?}", String::from_utf8_lossy(&message[..message.len().min(30)]));
        accepted += usize::from(outcome.accepted().is_ok());
    }
    assert!(accepted > 5, "only {accepted} were accepted");
    let source = contents(&servers.source, "odd");
    let again = servers.push("user.odd", &["--route-command", "true", "--json"]);
    println!("{}", again.stdout);
    again.expect(0);
    assert_eq!(contents(&servers.target, "odd"), source);
}

#[test]
fn names_and_namespaces_and_expunge_modes_make_no_difference() {
    drop(OptionsPutBack);
    let servers = Servers::fresh();
    let _put_back = OptionsPutBack;
    servers.source.set_option("expunge_mode", "immediate").unwrap();
    servers.target.set_option("unixhierarchysep", "yes").unwrap();
    servers.target.set_option("altnamespace", "yes").unwrap();
    seed(&servers, "names");
    stop_at(&servers, "names", Point::Routed);
    let mut there = servers.source.imap("names").unwrap();
    commands(
        &mut there,
        &[
            "SELECT INBOX",
            "UID STORE 3:4 +FLAGS (\\Deleted)",
            "UID EXPUNGE 3:4",
            "UNSELECT",
            "CREATE \"INBOX.a b.&APY-l (x)\"",
            "SUBSCRIBE \"INBOX.a b.&APY-l (x)\"",
        ],
    );
    append(&mut there, "INBOX.a b.&APY-l (x)", "late-odd", &["$x"]);
    append(&mut there, "INBOX.work", "late-work", &[]);
    there.logout();
    let mut here = servers.target.imap("names").unwrap();
    commands(&mut here, &["SELECT INBOX", "UID STORE 4 +FLAGS (\\Flagged)", "UNSELECT"]);
    // The fourth was changed here, and stays; the parent of the new one is made, too.
    let again = servers.push("user.names", &["--route-command", "true", "--json"]).expect(3);
    assert_eq!(numbers(&again.report().unwrap()), [2, 0, 1, 2, 1, 1]);
    let mut uids = |folder: &str| {
        here.command(format!("EXAMINE \"{folder}\"")).unwrap();
        let found = here.command("UID SEARCH ALL").unwrap();
        let uids = found.of("SEARCH").flat_map(|words| &words[1..]).filter_map(|w| w.number());
        uids.collect::<Vec<_>>()
    };
    assert_eq!(uids("INBOX"), [1, 2, 4, 5, 6, 7]);
    assert_eq!(uids("work"), [1, 2]);
    assert_eq!(uids("a b/&APY-l (x)"), [1]);
}

#[test]
fn a_shared_tree_gets_its_stragglers_by_somebody_who_may_write_there() {
    let servers = Servers::fresh();
    servers.accounts(&["carl", "dora"]);
    Seed::new(&servers.source, "carl").small().unwrap();
    lab::seed::shared_tree(&servers.source, "team.sales", &["carl", "dora"]).unwrap();
    servers.arm(&format!("{:?}", Point::Routed));
    servers.push("team.sales", &["--route-command", "true"]);
    assert!(servers.disarm());
    let mut carl = servers.source.imap("carl").unwrap();
    append(&mut carl, "team.sales", "late-team", &["\\Flagged", "\\Seen"]);
    append(&mut carl, "team.sales.empty", "late-empty", &["$x"]);
    let started =
        ["SELECT team.sales", "UID STORE 1 -FLAGS (\\Flagged)", "UID STORE 3 +FLAGS (new)"];
    commands(&mut carl, &started);
    commands(&mut carl, &["UID STORE 4 +FLAGS (\\Deleted)", "UID EXPUNGE 4", "UNSELECT"]);
    commands(&mut carl, &["CREATE team.sales.made"]);
    append(&mut carl, "team.sales.made", "late-made", &[]);
    carl.logout();
    let look = |host: &Host| {
        let users = ["carl", "dora"];
        let take = lab::fingerprint::Take::default();
        let print = lab::fingerprint::Fingerprint::take_tree(host, "team.sales", &users, &take);
        let mut seen = BTreeMap::new();
        for (name, mailbox) in &print.unwrap().others["carl"].mailboxes {
            let mut messages: Vec<_> = mailbox.messages.values().cloned().collect();
            for message in &mut messages {
                // What carl has seen is his own, and stays where he is.
                message.flags.remove("\\Seen");
                *message = lab::fingerprint::Message {
                    modseq: 0,
                    savedate: None,
                    email_id: None,
                    ..message.clone()
                };
            }
            messages.sort_by(|a, b| a.sha1.cmp(&b.sha1));
            seen.insert(name.clone(), messages);
        }
        seen
    };
    let source = look(&servers.source);
    let again = servers.push("team.sales", &["--route-command", "true", "--json"]).expect(0);
    assert_eq!(numbers(&again.report().unwrap()), [3, 2, 1, 1, 0, 0]);
    assert_eq!(look(&servers.target), source);
    // Who wrote there was lent his name alone: he can still come.
    let carl = fingerprint(&servers.source, "carl", &[]);
    servers.push("user.carl", &[]).expect(0);
    assert_same(&carl, &fingerprint(&servers.target, "carl", &[]), &[]);
}

/// Takes the target's imapd away, and puts it back when dropped.
struct NoImapd<'a>(&'a Servers);

impl<'a> NoImapd<'a> {
    fn new(servers: &'a Servers) -> Self {
        let broken = "cd /usr/lib/cyrus/bin && mv imapd imapd.real && \
                      printf '#!/bin/sh\\nexit 1\\n' > imapd && chmod 755 imapd";
        servers.target.run(&["sh", "-c", broken]).unwrap();
        Self(servers)
    }
}

impl Drop for NoImapd<'_> {
    fn drop(&mut self) {
        let mend = "cd /usr/lib/cyrus/bin && mv imapd.real imapd";
        let _ = self.0.target.run(&["sh", "-c", mend]);
    }
}

#[test]
fn a_target_that_cannot_take_them_leaves_the_source_as_it_is() {
    let servers = Servers::fresh();
    seed(&servers, "wait");
    stop_at(&servers, "wait", Point::Routed);
    deliver(&servers.source, "wait", "late-lmtp");
    let source = contents(&servers.source, "wait");
    let broken = NoImapd::new(&servers);
    let again = servers.push("user.wait", &["--route-command", "true"]).expect(5);
    again.says(&["cannot be carried over", "imapd", "bw2 serves the user now"]);
    drop(broken);
    assert_eq!(contents(&servers.source, "wait"), source);
    servers.push("user.wait", &["--route-command", "true"]).expect(0).says(&["new messages 1,"]);
    assert_eq!(contents(&servers.target, "wait"), source);
}

#[test]
fn mail_that_comes_while_it_is_carried_over_comes_once() {
    let servers = Servers::fresh();
    seed(&servers, "flow");
    stop_at(&servers, "flow", Point::Routed);
    Seed::new(&servers.source, "flow").bulk(500, Size::Fixed(4000), 2).unwrap();
    let source = servers.source.clone();
    let deliverer = std::thread::spawn(move || {
        let mut accepted = Vec::new();
        for n in 0.. {
            let id = format!("flow{n}-lmtp");
            match lab::lmtp::deliver(&source, "flow", &message(&id)) {
                lab::lmtp::Outcome::Accepted(_) => accepted.push(id),
                lab::lmtp::Outcome::Refused(_, reply) => {
                    assert_eq!(reply.code / 100, 4, "{reply:?}");
                    break;
                }
                lost => panic!("{lost:?}"),
            }
        }
        accepted
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    let again = servers.push("user.flow", &["--route-command", "true", "--json"]).expect(0);
    let accepted = deliverer.join().unwrap();
    assert!(accepted.len() > 20, "only {} came meanwhile", accepted.len());
    assert_eq!(numbers(&again.report().unwrap())[0], 500 + accepted.len() as u64);
    let found = folders(&servers.target, "flow");
    for id in &accepted {
        assert_eq!(found["INBOX"].get(&(id.clone(), Vec::new(), false)), Some(&1), "{id}");
    }
}

#[test]
fn a_move_whose_beginning_is_not_known_any_more_is_left_to_the_admin() {
    let servers = Servers::fresh();
    seed(&servers, "lost");
    stop_at(&servers, "lost", Point::Routed);
    deliver(&servers.source, "lost", "late-lmtp");
    let target = contents(&servers.target, "lost");
    let baseline = "/var/lib/cyrus/mbcopy/moves/*/baseline";
    let damage = format!("for file in {baseline}; do echo x >> $file; done");
    servers.source.run(&["sh", "-c", &damage]).unwrap();
    let push = || servers.push("user.lost", &["--route-command", "true"]).expect(5);
    push().says(&["baseline", "damaged", "bw2 serves the user now"]);
    servers.source.run(&["sh", "-c", &format!("rm {baseline}")]).unwrap();
    push().says(&["baseline is missing", "by hand", "bw2 serves the user now"]);
    assert_eq!(contents(&servers.target, "lost"), target);
}
