//! What the old server does with clients and deliveries that come after the move, and that
//! the user comes back from each of it.

use crate::support::{PutBack, Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::lmtp::{Outcome, Stage, deliver};
use lab::seed::Seed;

const ROUTE: [&str; 2] = ["--route-command", "true"];

/// A user who was moved, with those who come late treated so.
fn moved(servers: &Servers, user: &str, old_server: &str) {
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    let before = fingerprint(&servers.source, user, &[]);
    let options = [&ROUTE[..], &["--old-server", old_server]].concat();
    servers.push(&format!("user.{user}"), &options).expect(0);
    assert_same(&before, &fingerprint(&servers.target, user, &[]), &[]);
}

/// A late delivery's answer: its code and text.
fn delivered(host: &Host, user: &str) -> (u16, String) {
    match deliver(host, user, b"Subject: late\r\n\r\nlate\r\n") {
        Outcome::Accepted(reply) | Outcome::Refused(Stage::Recipient, reply) => {
            (reply.code, reply.text)
        }
        other => panic!("{other:?}"),
    }
}

/// What a late client is told who wants his INBOX.
fn selected(host: &Host, user: &str) -> String {
    let mut imap = host.imap(user).unwrap();
    let answer = imap.attempt("SELECT INBOX").unwrap();
    imap.logout();
    answer.tagged.to_string()
}

/// Nothing is wrong with him, and he comes back with all that he has there.
fn comes_back(servers: &Servers, user: &str) {
    let mailbox = format!("user.{user}");
    servers.mbcopy(&["doctor", &mailbox, "bw2"]).expect(0);
    servers.mbcopy(&["status", &mailbox]).expect(0).says(&["the target serves the user"]);
    let known = servers.mbcopy(&["abort", &mailbox]);
    assert_eq!(known.code, 4, "{}", known.stderr);
    servers.mbcopy(&["verify", &mailbox, "bw2"]).expect(0);
    let there = fingerprint(&servers.target, user, &[]);
    let back = servers.mbcopy(&["reverse", &mailbox]).expect(0);
    assert_eq!(back.last_line(), format!("{mailbox}: moved; bw1 serves the user now"));
    assert_same(&there, &fingerprint(&servers.source, user, &[]), &[]);
    // There the old server is another one, of which nothing was said.
    let late = deliver(&servers.target, user, b"Subject: late\r\n\r\nlate\r\n");
    assert!(matches!(&late, Outcome::Refused(Stage::Recipient, r) if r.code == 451), "{late:?}");
    deliver(&servers.source, user, b"Subject: home\r\n\r\nhome\r\n").accepted().unwrap();
}

#[test]
fn late_ones_are_deferred() {
    let servers = Servers::fresh();
    moved(&servers, "deferred", "defer");
    let (code, text) = delivered(&servers.source, "deferred");
    assert_eq!((code, text.contains("moved to another server")), (451, true), "{text}");
    let said = selected(&servers.source, "deferred");
    assert!(said.starts_with("NO [REFERRAL imap://;AUTH=*@bw2/INBOX]"), "{said}");
    comes_back(&servers, "deferred");
}

#[test]
fn late_ones_are_refused() {
    let servers = Servers::fresh();
    moved(&servers, "refused", "refuse");
    let (code, text) = delivered(&servers.source, "refused");
    assert_eq!((code, text.contains("User unknown")), (550, true), "{text}");
    let said = selected(&servers.source, "refused");
    assert_eq!(said, "NO Mailbox does not exist");
    let mut imap = servers.source.imap("refused").unwrap();
    assert!(!imap.attempt("CREATE INBOX.new").unwrap().tagged.is_ok());
    let listed = imap.attempt("LIST \"\" *").unwrap();
    assert_eq!(listed.of("LIST").count(), 0, "he still has mailboxes here");
    // Those of whom a nightly job cleans up after stay as they are.
    let expire = ["/usr/lib/cyrus/bin/cyr_expire", "-E", "1", "-D", "0", "-X", "0"];
    servers.source.run_as_cyrus(&expire).unwrap();
    servers.source.restart_cyrus().unwrap();
    assert_eq!(delivered(&servers.source, "refused").0, 550);
    comes_back(&servers, "refused");

    let mailbox = "user.refused";
    let inboxes = [("autocreate_quota", "1000")];
    let _back = PutBack(vec![servers.source.clone()]);
    servers.source.configure(&inboxes).unwrap();
    let pushed = servers.push(mailbox, &["--old-server=refuse", "--json"]).expect(4);
    let report = pushed.report().unwrap();
    let problems = report["problems"].as_array().unwrap();
    assert!(problems.iter().any(|p| p["code"] == "autocreate"), "{problems:?}");
}

/// The new server's lmtpd lets nobody in who has not logged in.
fn with_logins(host: &Host) {
    host.run(&["sed", "-i", "s/lmtpd -a/lmtpd/", "/etc/cyrus.conf"]).unwrap();
    host.restart_cyrus().unwrap();
}

#[test]
fn late_ones_are_forwarded() {
    let servers = Servers::fresh();
    let _back = PutBack(servers.both().map(Host::clone).to_vec());
    let refused = |code: &str| {
        let options = [&ROUTE[..], &["--old-server=forward", "--json"]].concat();
        let report = servers.push("user.forwarded", &options).expect(4).report().unwrap();
        let problems = report["problems"].as_array().unwrap();
        assert!(problems.iter().any(|p| p["code"] == code), "no {code}: {problems:?}");
    };
    servers.accounts(&["forwarded"]);
    Seed::new(&servers.source, "forwarded").small().unwrap();
    refused("forward-preauthorized");
    with_logins(&servers.target);
    for (host, option, wrong, code) in [
        (&servers.source, "proxy_authname", "", "forward-settings"),
        (&servers.source, "proxy_password", "wrong", "forward-login"),
        (&servers.target, "proxyservers", "other", "forward-proxyservers"),
    ] {
        let edit = |script: String| {
            host.run(&["sed", "-i", &script, "/etc/imapd.conf"]).unwrap();
        };
        let was = host.run(&["sed", "-n", &format!("s/^{option}: //p"), "/etc/imapd.conf"]);
        let was = was.unwrap().trim().to_owned();
        let mark = if wrong.is_empty() { "#" } else { "" };
        edit(format!("s/^{option}: .*/{mark}{option}: {wrong}/; s/^admins: cyrus/admins: none/"));
        refused(code);
        edit(format!("s/^#\\?{option}:.*/{option}: {was}/; s/^admins: none/admins: cyrus/"));
    }
    moved_and_forwarded(&servers);
    comes_back_forwarded(&servers);
}

fn moved_and_forwarded(servers: &Servers) {
    let options = [&ROUTE[..], &["--old-server=forward"]].concat();
    let before = fingerprint(&servers.source, "forwarded", &[]);
    servers.push("user.forwarded", &options).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "forwarded", &[]), &[]);
    // A client that knows nothing works on as if it were at the new server.
    let mut late = servers.source.imap("forwarded").unwrap();
    let selected = late.command("SELECT INBOX").unwrap();
    assert_eq!(selected.numbered("EXISTS").count(), 1, "{selected:?}");
    late.command("STORE 1 +FLAGS (late)").unwrap();
    // Outside of a Murder Cyrus makes a folder where it is told to, if it can.
    let made = late.attempt("CREATE INBOX.late").unwrap();
    assert!(!made.tagged.is_ok(), "a folder was made where nobody sees it");
    late.logout();
    assert_eq!(delivered(&servers.source, "forwarded").0, 250);
    let mut there = servers.target.imap("forwarded").unwrap();
    there.command("SELECT INBOX").unwrap();
    for search in ["SEARCH SUBJECT late", "SEARCH KEYWORD late"] {
        let found = there.command(search).unwrap();
        assert!(found.of("SEARCH").any(|uids| uids.len() > 1), "{search}: {found:?}");
    }
    there.logout();
}

fn comes_back_forwarded(servers: &Servers) {
    servers.source.restart_cyrus().unwrap();
    assert_eq!(delivered(&servers.source, "forwarded").0, 250);
    servers
        .target
        .run(&["sed", "-i", "s/cmd=.lmtpd. /cmd=\"lmtpd -a\" /", "/etc/cyrus.conf"])
        .unwrap();
    servers.target.restart_cyrus().unwrap();
    comes_back(servers, "forwarded");
}
