//! A finished move is taken back, with all that has come since.

use crate::support::{Servers, assert_same, fingerprint};
use lab::seed::{Seed, Size};

const ROUTE: [&str; 2] = ["--route-command", "true"];

/// Moves a user with many messages, and has him use his new home.
fn moved_and_used(servers: &Servers, user: &str) {
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).bulk(400, Size::Median(4000), 4).unwrap();
    let mailbox = format!("user.{user}");
    servers.push(&mailbox, &ROUTE).expect(0);
    let text = b"Subject: new home\r\n\r\nhello\r\n";
    lab::lmtp::deliver(&servers.target, user, text).accepted().unwrap();
    let mut imap = servers.target.imap(user).unwrap();
    imap.command("SELECT INBOX").unwrap();
    imap.command("STORE 1:3 +FLAGS (\\Flagged brandnew)").unwrap();
    imap.command("STORE 5 +FLAGS (\\Deleted)").unwrap();
    imap.command("EXPUNGE").unwrap();
    imap.command("CREATE INBOX.later").unwrap();
    imap.command("SUBSCRIBE INBOX.later").unwrap();
    imap.command("RENAME INBOX.bulk001 INBOX.renamed").unwrap();
    imap.command("DELETE INBOX.bulk002").unwrap();
    imap.logout();
}

#[test]
fn a_moved_user_comes_back_with_what_has_come_since_and_can_go_again() {
    let servers = Servers::fresh();
    moved_and_used(&servers, "home");
    let there = fingerprint(&servers.target, "home", &[]);
    let report = servers.mbcopy(&["reverse", "user.home", "--json"]).expect(0).report().unwrap();
    assert_eq!((&report["outcome"], &report["serving"]), (&"done".into(), &"bw1".into()));
    assert_eq!(report["messages_sent"], 1, "what was kept is used");
    assert_same(&there, &fingerprint(&servers.source, "home", &[]), &[]);
    let gone = servers.target.imap("home").unwrap().attempt("EXAMINE INBOX").unwrap();
    assert!(!gone.tagged.is_ok(), "the server he came from still shows him");

    servers.push("user.home", &["--dry-run"]).expect(0);
    let again = servers.push("user.home", &["--json"]).expect(0).report().unwrap();
    assert_eq!(again["messages_sent"], 0, "what was kept there is used, too");
    assert_same(&there, &fingerprint(&servers.target, "home", &[]), &[]);
}

#[test]
fn a_reverse_that_is_killed_is_finished_by_resume_or_put_back_by_abort() {
    for (n, point) in
        ["Copied", "PublishRenamedOne", "PublishCommitted", "Routed", "RetireCommitted"]
            .into_iter()
            .enumerate()
    {
        let servers = Servers::fresh();
        let user = format!("half{n}");
        let mailbox = format!("user.{user}");
        moved_and_used(&servers, &user);
        let there = fingerprint(&servers.target, &user, &[]);
        servers.arm(point);
        servers.mbcopy(&["reverse", &mailbox]);
        assert!(servers.disarm(), "{point} was not reached");
        if point != "RetireCommitted" {
            servers.mbcopy(&["abort", &mailbox]).expect(0).says(&["bw2 serves the user now"]);
            assert_same(&there, &fingerprint(&servers.target, &user, &[]), &[]);
            let here = servers.source.imap(&user).unwrap().attempt("EXAMINE INBOX").unwrap();
            assert!(!here.tagged.is_ok(), "{point}: both servers show him");
            servers.arm(point);
            let again = servers.mbcopy(&["reverse", &mailbox]);
            assert!(servers.disarm(), "{point} was not reached again: {}", again.stderr);
        }
        let resumed = servers.mbcopy(&["resume", &mailbox]).expect(0);
        assert_eq!(resumed.last_line(), format!("{mailbox}: moved; bw1 serves the user now"));
        assert_same(&there, &fingerprint(&servers.source, &user, &[]), &[]);
    }
}

#[test]
fn only_what_was_moved_away_comes_back() {
    let servers = Servers::fresh();
    servers.accounts(&["stays"]);
    Seed::new(&servers.source, "stays").small().unwrap();
    servers
        .mbcopy(&["reverse", "user.stays"])
        .expect(2)
        .says(&["this server knows no finished move of user.stays"]);
}

#[test]
fn what_is_kept_is_removed_only_when_asked_for() {
    let servers = Servers::fresh();
    servers.accounts(&["old"]);
    Seed::new(&servers.source, "old").small().unwrap();
    servers.push("user.old", &["--purge-after", "1s"]).expect(0);
    let kept = || {
        let find = "find /var/spool/cyrus /var/spool/sieve /var/lib/cyrus/mbcopy/moves \
                    -path '*mbcopy*' -type f ! -name retirement | wc -l";
        servers.source.run(&["sh", "-c", find]).unwrap().trim().parse::<u32>().unwrap()
    };
    let all = kept();
    assert!(all > 20, "{all} files are kept");
    servers.mbcopy(&["purge"]).expect(2);
    servers.mbcopy(&["purge", "user.other"]).expect(2).says(&["keeps nothing of user.other"]);
    servers.mbcopy(&["purge", "--older-than", "14d"]).expect(0);
    assert_eq!(kept(), all);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    servers.mbcopy(&["purge", "--due"]).expect(0).says(&["user.old: what was kept", "freed"]);
    assert_eq!(kept(), 0);
    servers.mbcopy(&["status", "user.old"]).expect(0).says(&["purged", "keeps nothing of him"]);
    servers.mbcopy(&["purge", "user.old"]).expect(2);
    // With nothing kept, everything has to cross again; that is all.
    servers.mbcopy(&["reverse", "user.old"]).expect(2);
    let there = fingerprint(&servers.target, "old", &[]);
    servers.mbcopy(&["reverse", "user.old", "bw2"]).expect(0);
    assert_same(&there, &fingerprint(&servers.source, "old", &[]), &[]);
}
