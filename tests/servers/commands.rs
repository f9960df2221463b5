//! Copying long before, switching over when the admin wants, and journals
//! that were lost.

use crate::support::{Servers, assert_same, fingerprint};
use lab::imap::NewMessage;
use lab::seed::{Seed, Size};
use std::time::Duration;

fn deliver(servers: &Servers, user: &str, subject: &str) {
    let text = format!("Subject: {subject}\r\n\r\nhello\r\n");
    lab::lmtp::deliver(&servers.source, user, text.as_bytes()).accepted().unwrap();
}

#[test]
fn copies_are_made_again_and_again_and_cutover_sends_what_is_new() {
    let servers = Servers::fresh();
    servers.accounts(&["early"]);
    Seed::new(&servers.source, "early").bulk(300, Size::Median(4000), 3).unwrap();
    let copy = ["--copy-only", "--json"];
    let first = servers.push("user.early", &copy).expect(0).report().unwrap();
    assert_eq!((&first["outcome"], &first["serving"]), (&"copied".into(), &"bw1".into()));
    assert_eq!(first["messages_sent"], 300);
    for n in 1..=2 {
        deliver(&servers, "early", &format!("later {n}"));
        let next = servers.push("user.early", &copy).expect(0).report().unwrap();
        assert_eq!(next["messages_sent"], 1, "only the new message is sent");
    }
    // It has done what it was asked for.
    servers.mbcopy(&["resume", "--all"]).expect(0);
    servers.mbcopy(&["status", "user.early"]).expect(0).says(&["copying", "resume: goes on"]);
    let seen = servers.target.imap("early").unwrap().attempt("EXAMINE INBOX").unwrap();
    assert!(!seen.tagged.is_ok(), "the target shows the user");

    deliver(&servers, "early", "last");
    let before = fingerprint(&servers.source, "early", &[]);
    let cutover = servers.mbcopy(&["cutover", "user.early", "--json"]).expect(0).report().unwrap();
    assert_eq!((&cutover["outcome"], &cutover["messages_sent"]), (&"done".into(), &1.into()));
    assert_same(&before, &fingerprint(&servers.target, "early", &[]), &[]);
}

#[test]
fn a_postponed_move_waits_for_its_file_to_go_away() {
    let servers = Servers::fresh();
    servers.accounts(&["wait"]);
    Seed::new(&servers.source, "wait").small().unwrap();
    servers.source.run(&["touch", "/tmp/not-yet"]).unwrap();
    let arguments =
        ["/usr/local/bin/mbcopy", "push", "user.wait", "bw2", "--postpone-file", "/tmp/not-yet"];
    let mut push = servers.source.spawn(&arguments).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(push.try_wait().unwrap().is_none(), "it did not wait");
    let source = fingerprint(&servers.source, "wait", &[]);
    deliver(&servers, "wait", "meanwhile");
    servers.source.run(&["rm", "/tmp/not-yet"]).unwrap();
    assert!(push.wait().unwrap().success());
    let target = fingerprint(&servers.target, "wait", &[]);
    assert_eq!(target.messages().count(), source.messages().count() + 1);
}

#[test]
fn the_targets_journal_is_enough_when_the_source_has_lost_its_own() {
    let servers = Servers::fresh();
    servers.accounts(&["lost"]);
    Seed::new(&servers.source, "lost").bulk(300, Size::Median(4000), 3).unwrap();
    let before = fingerprint(&servers.source, "lost", &[]);
    servers.push("user.lost", &["--copy-only"]).expect(0);
    servers.source.run(&["rm", "-rf", "/var/lib/cyrus/mbcopy", "/var/lib/mbcopy"]).unwrap();
    servers.mbcopy(&["resume", "user.lost"]).expect(2).says(&["no unfinished move of user.lost"]);
    let again = servers.mbcopy(&["resume", "user.lost", "bw2", "--json"]).expect(0);
    let report = again.report().unwrap();
    assert_eq!(report["messages_sent"], 0, "what was copied is used");
    assert_same(&before, &fingerprint(&servers.target, "lost", &[]), &[]);
}

#[test]
fn an_abort_after_mail_has_come_to_the_target_refuses() {
    let servers = Servers::fresh();
    servers.accounts(&["late"]);
    Seed::new(&servers.source, "late").small().unwrap();
    servers.arm("Routed");
    servers.push("user.late", &["--route-command", "true"]);
    assert!(servers.disarm());
    let bytes = b"Message-ID: <new@home>\r\nSubject: new home\r\n\r\nhello\r\n".to_vec();
    let message = NewMessage { flags: Vec::new(), date: None, bytes };
    servers.target.imap("late").unwrap().append("INBOX", &[message]).unwrap();
    servers
        .mbcopy(&["abort", "user.late"])
        .expect(5)
        .says(&["has changed on this server since it was published", "bw2 serves the user now"]);
    servers.mbcopy(&["resume", "user.late"]).expect(0);
    let all = fingerprint(&servers.target, "late", &[]);
    assert!(all.messages().any(|(_, _, m)| m.message_id.contains("new@home")), "the new message");
}
