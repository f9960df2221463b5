//! A push that ended early is finished by the same command.

use crate::support::{Servers, assert_same, fingerprint};
use lab::seed::{Seed, Size};
use std::time::Duration;

#[test]
fn a_push_that_is_killed_while_it_copies_goes_on_where_it_was() {
    let servers = Servers::fresh();
    servers.accounts(&["again"]);
    Seed::new(&servers.source, "again").bulk(4000, Size::Fixed(10_000), 4).unwrap();
    let before = fingerprint(&servers.source, "again", &[]);
    let mut first = servers
        .source
        .spawn(&["/usr/local/bin/mbcopy", "push", "user.again", "bw2", "--bwlimit", "4000000"])
        .unwrap();
    std::thread::sleep(Duration::from_millis(2000));
    servers.source.run(&["pkill", "-KILL", "-f", "mbcopy push"]).unwrap();
    first.wait().unwrap();
    assert_same(&before, &fingerprint(&servers.source, "again", &[]), &[]);

    let report = servers.push("user.again", &["--json"]).expect(0).report().unwrap();
    let sent = report["messages_sent"].as_u64().unwrap();
    assert!(sent > 0 && sent < 3900, "{sent} of 4000 messages were sent again");
    assert_same(&before, &fingerprint(&servers.target, "again", &[]), &[]);
}

#[test]
fn an_interrupted_push_stops_at_a_safe_point_and_says_so() {
    let servers = Servers::fresh();
    servers.accounts(&["stop"]);
    Seed::new(&servers.source, "stop").bulk(3000, Size::Fixed(20_000), 1).unwrap();
    let push = "mbcopy push user.stop bw2 --bwlimit 4000000 & sleep 1.2; kill -INT $!; wait $!; \
                echo \"code $?\"";
    let said = servers.source.run(&["bash", "-c", push]).unwrap();
    assert!(said.contains("user.stop: interrupted, not moved; bw1 serves the user now"), "{said}");
    assert!(said.contains("code 7"), "{said}");
    servers.push("user.stop", &[]).expect(0);
}

#[test]
fn a_failing_route_command_leaves_everything_as_it_was() {
    let servers = Servers::fresh();
    servers.accounts(&["back"]);
    Seed::new(&servers.source, "back").small().unwrap();
    let before = fingerprint(&servers.source, "back", &[]);
    servers.source.run(&["rm", "-f", "/tmp/routes"]).unwrap();
    let failing =
        r#"echo "$MBCOPY_ACTION $MBCOPY_NEW_SERVER" >> /tmp/routes; test $MBCOPY_ACTION = restore"#;
    servers
        .push("user.back", &["--route-command", failing])
        .expect(1)
        .says(&["route command", "user.back: not moved; bw1 serves the user now"]);
    let routes = servers.source.run(&["cat", "/tmp/routes"]).unwrap();
    assert_eq!(routes, "route bw2\nrestore bw1\n");
    assert_same(&before, &fingerprint(&servers.source, "back", &[]), &[]);
    let list = servers.target.admin().unwrap().command("LIST \"\" user.back*").unwrap();
    assert_eq!(list.of("LIST").count(), 0, "the target still shows the user");
    // The same command, with a route that works, moves him.
    servers.push("user.back", &["--route-command", "true"]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "back", &[]), &[]);
}

#[test]
fn a_freeze_that_cannot_be_had_is_given_up_and_nobody_stays_blocked() {
    let servers = Servers::fresh();
    servers.accounts(&["held"]);
    Seed::new(&servers.source, "held").small().unwrap();
    // Somebody holds the user's lock for longer than we are willing to wait.
    let holder = r#"perl -e 'use Fcntl; open(my $f, ">>", "/run/cyrus/lock/q/*U*held.lock") or die;
                    my $lock = pack("ssx4qqlx4", F_WRLCK, 0, 0, 0, 0);
                    fcntl($f, F_SETLKW, $lock) or die; sleep 8'"#;
    let mut holder = servers.source.spawn(&["bash", "-c", holder]).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let pushed = servers.push("user.held", &["--max-freeze", "1s"]);
    pushed.expect(1).says(&["stays with another process", "user.held: not moved; bw1 serves"]);
    holder.wait().unwrap();
    servers.push("user.held", &[]).expect(0);
}

/// Makes the source's database program fail, as a full disk would, and works
/// again when dropped.
struct BrokenDbtool<'a>(&'a Servers);

impl<'a> BrokenDbtool<'a> {
    fn new(servers: &'a Servers) -> Self {
        let broken = "cd /usr/lib/cyrus/bin && mv cyr_dbtool cyr_dbtool.real && \
                      printf '#!/bin/sh\\nexit 1\\n' > cyr_dbtool && chmod 755 cyr_dbtool";
        servers.source.run(&["sh", "-c", broken]).unwrap();
        Self(servers)
    }
}

impl Drop for BrokenDbtool<'_> {
    fn drop(&mut self) {
        let mend = "cd /usr/lib/cyrus/bin && mv cyr_dbtool.real cyr_dbtool";
        let _ = self.0.source.run(&["sh", "-c", mend]);
    }
}

#[test]
fn a_move_that_could_not_retire_the_source_only_goes_forward() {
    let servers = Servers::fresh();
    servers.accounts(&["half"]);
    Seed::new(&servers.source, "half").small().unwrap();
    let before = fingerprint(&servers.source, "half", &[]);
    let push = |route: &str| servers.push("user.half", &["--route-command", route]);
    let broken = BrokenDbtool::new(&servers);
    push("true").expect(5).says(&["retiring the source's copy failed", "bw2 serves the user now"]);
    drop(broken);
    // A route command that fails now must not take the user off the target.
    push("false").expect(5).says(&["route command", "bw2 serves the user now"]);
    assert_same(&before, &fingerprint(&servers.target, "half", &[]), &[]);
    // Nor may the command be forgotten.
    servers.push("user.half", &[]).says(&["give the same --route-command"]);
    push("true").expect(0);
    assert_same(&before, &fingerprint(&servers.target, "half", &[]), &[]);
}

#[test]
fn mail_that_reaches_a_source_that_was_not_retired_is_carried_over() {
    let servers = Servers::fresh();
    servers.accounts(&["late"]);
    Seed::new(&servers.source, "late").small().unwrap();
    let broken = BrokenDbtool::new(&servers);
    servers.push("user.late", &[]).expect(5);
    drop(broken);
    let message = b"Subject: late\r\nMessage-ID: <late@x>\r\n\r\nlate\r\n";
    lab::lmtp::deliver(&servers.source, "late", message).accepted().unwrap();
    let source = fingerprint(&servers.source, "late", &[]);

    servers.push("user.late", &[]).expect(0).says(&["new messages 1,", "bw2 serves the user now"]);
    let target = fingerprint(&servers.target, "late", &[]);
    let of = |print: &lab::fingerprint::Fingerprint| {
        let mut all: Vec<_> = print.messages().map(|(_, _, m)| m.sha1.clone()).collect();
        all.sort();
        all
    };
    assert_eq!(of(&source), of(&target));
}
