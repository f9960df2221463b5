//! `mbcopy verify`: what it finds, what it excuses, and what it says.

use crate::support::{OptionsPutBack, Pushed, Servers};
use lab::host::Host;
use lab::seed::{self, Seed, Size};
use lab::workload::{Crew, Route};
use mbcopy::fault::Point;
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

fn verify(servers: &Servers, mailbox: &str, options: &[&str]) -> Pushed {
    let arguments = ["verify", mailbox, servers.target.name()];
    servers.mbcopy(&[&arguments, options].concat())
}

/// The JSON documents of one kind.
fn events(said: &Pushed, event: &str) -> Vec<Value> {
    let lines = said.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|document| document["event"] == event).collect()
}

/// Kind, mailbox, UID and what of each difference.
fn differences(said: &Pushed) -> Vec<String> {
    let told = events(said, "difference").into_iter().map(|d| {
        let text = |key: &str| d[key].as_str().unwrap_or_default().to_owned();
        let uid = d["uid"].as_u64().unwrap_or_default();
        format!("{} {} {uid} {}", text("kind"), text("mailbox"), text("what"))
    });
    told.map(|line| line.trim_end().to_owned()).collect()
}

/// A push that dies as soon as any of its processes reaches the point.
fn push_until(servers: &Servers, mailbox: &str, point: Point) {
    let script = format!("echo {point:?} > /run/mbcopy-fault; chmod 666 /run/mbcopy-fault");
    for host in servers.both() {
        host.run(&["sh", "-c", &script]).unwrap();
    }
    assert_ne!(servers.push(mailbox, &[]).code, 0);
    for host in servers.both() {
        host.run(&["rm", "-f", "/run/mbcopy-fault"]).unwrap();
    }
}

fn with_user(user: &str) -> Servers {
    let servers = Servers::fresh();
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    servers
}

/// A user who is live on both servers: the push died when the target had him.
fn with_two_copies(user: &str) -> Servers {
    let servers = with_user(user);
    push_until(&servers, &format!("user.{user}"), Point::Published);
    servers
}

fn directory(host: &Host, mailbox: &str) -> String {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", mailbox]).unwrap().trim().to_owned()
}

fn shell(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

fn deliver(host: &Host, user: &str, count: usize) {
    for n in 0..count {
        let message = format!("Subject: {n}\r\nMessage-ID: <{n}@verify>\r\n\r\nlate\r\n");
        lab::lmtp::deliver(host, user, message.as_bytes()).accepted().unwrap();
    }
}

fn imap(host: &Host, user: &str, commands: &[&str]) {
    let mut imap = host.imap(user).unwrap();
    for command in commands {
        imap.command(command).unwrap();
    }
    imap.logout();
}

/// Every file of mail and metadata with its size and times; of messages also
/// when they were last read.
fn files(host: &Host) -> BTreeSet<String> {
    let list = "cd /var && find lib/cyrus/user lib/cyrus/quota lib/cyrus/mailboxes.db \
                lib/cyrus/annotations.db lib/cyrus/mbcopy/moves spool/cyrus spool/sieve \
                -type f \\( -name '[0-9]*.' -printf '%p %s %T@ %C@ %A@ %m %u\\n' -o \
                -printf '%p %s %T@ %C@ %m %u\\n' \\) 2>/dev/null; true";
    shell(host, list).lines().map(str::to_owned).collect()
}

#[test]
fn after_a_push_nothing_is_different_and_nothing_is_changed_by_looking() {
    let servers = Servers::fresh();
    servers.accounts(&["anna", "bert"]);
    Seed::new(&servers.source, "anna").rich("bert", 300).unwrap();
    seed::shared_tree(&servers.source, "team.sales", &["anna", "bert"]).unwrap();
    verify(&servers, "user.anna", &[]).expect(4).says(&[
        "no two copies of user.anna",
        "bw1 has live, bw2 has none",
        "not compared",
    ]);
    for mailbox in ["user.anna", "user/bert", "team.sales"] {
        servers.push(mailbox, &[]).expect(0);
    }
    let before = servers.both().map(files);
    let plain = verify(&servers, "user.anna", &[]).expect(0);
    assert_eq!(plain.stdout, "user.anna: no differences between bw1 and bw2\n");
    plain.says(&["user.anna: bw1 (retired of move ", " to bw2, done) against bw2 (live)"]);
    let content = verify(&servers, "user.anna", &["--content", "--json"]).expect(0);
    let report = content.report().unwrap();
    assert_eq!(report["schema"], 1);
    assert_eq!(report["outcome"], "same");
    assert_eq!(report["relation"], "after-switch");
    assert_eq!(report["differences"], 0);
    assert!(report["mailboxes"].as_u64().unwrap() >= 36, "{report}");
    assert!(report["messages"].as_u64().unwrap() >= 300, "{report}");
    assert!(report["bytes"].as_u64().unwrap() > 1_000_000, "{report}");
    assert_eq!(events(&content, "copies")[0]["there"]["copy"], "live");
    for (host, before) in servers.both().into_iter().zip(&before) {
        assert!(before.len() > 500, "{} files", before.len());
        let after = files(host);
        let changed: Vec<_> = before.symmetric_difference(&after).collect();
        assert!(changed.is_empty(), "looking has changed something: {changed:#?}");
    }
    for (mailbox, shown) in [("user/bert", "user.bert"), ("team/sales", "team.sales")] {
        let said = verify(&servers, mailbox, &["--content", "-q"]).expect(0);
        assert_eq!(said.stdout, format!("{shown}: no differences between bw1 and bw2\n"));
        assert_eq!(said.stderr, "");
    }
    // The new server can be asked as well.
    let command = ["/usr/local/bin/mbcopy", "verify", "user.anna", "bw1"];
    let there = Pushed::from(servers.target.exec(&command).unwrap()).expect(0);
    assert_eq!(there.last_line(), "user.anna: no differences between bw2 and bw1");
}

#[test]
fn before_the_switch_it_tells_what_is_not_copied_yet() {
    let servers = with_user("soon");
    push_until(&servers, "user.soon", Point::Copied);
    let said = verify(&servers, "user.soon", &["--content"]).expect(0);
    assert_eq!(said.last_line(), "user.soon: no differences between bw1 and bw2");
    said.says(&["bw1 (live) against bw2 (stage of move ", " from bw1, copying)"]);

    deliver(&servers.source, "soon", 3);
    imap(&servers.source, "soon", &["SELECT INBOX", "STORE 1 +FLAGS (\\Flagged $Later)"]);
    imap(
        &servers.source,
        "soon",
        &["SELECT INBOX.Sent", "STORE 2 +FLAGS (\\Deleted)", "EXPUNGE", "CREATE INBOX.Neu"],
    );
    // Stamps of files count whole seconds.
    std::thread::sleep(Duration::from_millis(1100));
    imap(&servers.source, "soon", &["UNSUBSCRIBE INBOX.a", "SETACL INBOX anybody lr"]);
    let said = verify(&servers, "user.soon", &["--content", "-v"]).expect(0);
    assert_eq!(
        said.last_line(),
        "user.soon: no differences between bw1 and bw2; not copied yet: 3 new messages, \
         1 changed, 1 expunged in 3 mailboxes, and 4 other changes"
    );
    said.says(&[
        "not copied yet: user.soon: 3 new messages, 1 changed\n",
        "not copied yet: user.soon.Sent: 1 expunged\n",
        "not copied yet: user.soon.Neu: the mailbox is missing on bw2",
        "not copied yet: user.soon: the ACL entry of anybody is missing on bw2; bw1 has lr",
        "not copied yet: user.soon: the subscription to user.soon.a is missing on bw1",
        "not copied yet: user.soon: the keyword $Later is missing on bw2",
    ]);

    // What is wrong in the stage is not excused.
    let staged = "f=$(find /var/spool/cyrus/mail/.mbcopy -name 9. -size +0 | head -1); \
                  printf X | dd of=$f conv=notrunc status=none; echo $f";
    let path = shell(&servers.target, staged);
    verify(&servers, "user.soon", &[]).expect(0);
    let said = verify(&servers, "user.soon", &["--content"])
        .expect(8)
        .says(&["user.soon: message 9: its file has rotted on bw2: the SHA-1 of ", path.trim()]);
    assert!(
        said.last_line().starts_with("user.soon: 1 difference between bw1 and bw2; not copied")
    );

    // The same push mends and finishes it.
    servers.push("user.soon", &[]).expect(0);
    let said = verify(&servers, "user.soon", &["--content"]).expect(0);
    assert_eq!(said.last_line(), "user.soon: no differences between bw1 and bw2");
}

#[test]
fn a_stage_of_which_only_a_part_has_come_is_only_behind() {
    let servers = Servers::fresh();
    servers.accounts(&["part"]);
    Seed::new(&servers.source, "part").bulk(3000, Size::Fixed(10_000), 4).unwrap();
    let push = "rm -f /tmp/enough; mbcopy push user.part bw2 --bwlimit 3000000 >/dev/null 2>&1 & \
                until [ -e /tmp/enough ]; do sleep 0.05; done; kill -KILL $!; wait $!; true";
    std::thread::scope(|scope| {
        let pushing = scope.spawn(|| servers.source.run(&["bash", "-c", push]).unwrap());
        let staged = "find /var/spool/cyrus -path '*/.mbcopy/*' -name '*.' | head -n 100 | wc -l";
        let began = Instant::now();
        while servers.target.run(&["sh", "-c", staged]).unwrap().trim() != "100" {
            if pushing.is_finished() || began.elapsed() > Duration::from_secs(60) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        servers.source.run(&["touch", "/tmp/enough"]).unwrap();
    });
    let said = verify(&servers, "user.part", &["--json", "--content"]).expect(0);
    let report = said.report().unwrap();
    assert_eq!(report["differences"], 0);
    let new = report["later"]["new"].as_u64().unwrap();
    assert!(new > 0 && new <= 3000, "{new} of 3000 messages are not copied yet");
    servers.push("user.part", &[]).expect(0);
    verify(&servers, "user.part", &["--content"]).expect(0);
}

#[test]
fn mail_that_flows_meanwhile_is_no_difference() {
    let servers = Servers::fresh();
    servers.accounts(&["flow"]);
    Seed::new(&servers.source, "flow").bulk(500, Size::Median(4096), 3).unwrap();
    push_until(&servers, "user.flow", Point::Copied);
    let crew = Crew::start(&Route::shared("flow", "bw1"), Duration::from_millis(2)).unwrap();
    let mut later = 0;
    for n in 0..12 {
        let options: &[&str] = if n % 2 == 0 { &["--json"] } else { &["--json", "--content"] };
        let said = verify(&servers, "user.flow", options).expect(0);
        later = said.report().unwrap()["later"]["new"].as_u64().unwrap();
    }
    let history = crew.stop().unwrap();
    assert!(later > 20, "only {later} messages came meanwhile");
    let longest = history.longest();
    assert!(longest < Duration::from_secs(1), "somebody was blocked for {longest:?}");
}

#[test]
fn messages_that_are_removed_meanwhile_are_not_missed() {
    let servers = Servers::fresh();
    let _put_back = OptionsPutBack;
    // Files go at once, while they are looked for.
    servers.source.set_option("expunge_mode", "immediate").unwrap();
    servers.accounts(&["away"]);
    Seed::new(&servers.source, "away").bulk(4000, Size::Fixed(500), 1).unwrap();
    push_until(&servers, "user.away", Point::Copied);
    let source = servers.source.clone();
    let expunger = std::thread::spawn(move || {
        let mut imap = source.imap("away").unwrap();
        imap.command("SELECT INBOX").unwrap();
        for first in (1..4000).step_by(20).rev() {
            let set = format!("UID STORE {first}:{} +FLAGS.SILENT (\\Deleted)", first + 19);
            imap.command(set).unwrap();
            imap.command("EXPUNGE").unwrap();
        }
    });
    let mut runs = 0;
    while !expunger.is_finished() {
        let options: &[&str] = if runs % 2 == 0 { &[] } else { &["--content"] };
        verify(&servers, "user.away", options).expect(0);
        runs += 1;
    }
    expunger.join().unwrap();
    assert!(runs > 5, "only {runs} looks");
    let said = verify(&servers, "user.away", &["--json"]).expect(0);
    assert_eq!(said.report().unwrap()["later"]["expunged"], 4000);
}

#[test]
fn after_the_switch_it_tells_what_has_come_since_and_what_was_lost() {
    let servers = with_user("gone");
    servers.push("user.gone", &[]).expect(0);
    deliver(&servers.target, "gone", 2);
    imap(
        &servers.target,
        "gone",
        &["SELECT INBOX", "STORE 1:2 +FLAGS (\\Answered)", "STORE 4 +FLAGS (\\Deleted)", "EXPUNGE"],
    );
    std::thread::sleep(Duration::from_millis(1100));
    imap(
        &servers.target,
        "gone",
        &["SUBSCRIBE INBOX.Sent", "SETACL INBOX.Sent anybody lr", "DELETE INBOX.a.b"],
    );
    servers.target.sieve("gone").unwrap().put("second", "keep;\r\n").unwrap();
    let said = verify(&servers, "user.gone", &["-v", "--content"]).expect(0).says(&[
        "bw1 (retired of move ",
        // One was marked as deleted from the start.
        "since the move: user.gone: 2 new messages, 2 changed, 2 expunged\n",
        "since the move: user.gone: the subscription to user.gone.Sent is missing on bw1\n",
        "since the move: user.gone.Sent: the ACL entry of anybody is missing on bw1; bw2 has lr\n",
        "since the move: user.gone: the sieve script second.bc is missing on bw1",
        "since the move: user.gone.a.b: its name: bw1 has user.gone.a.b, bw2 has DELETED.",
    ]);
    assert!(
        said.last_line().starts_with(
            "user.gone: no differences between bw1 and bw2; since the move: 2 new messages"
        ) || said.last_line().contains("since the move: 3 new messages"),
        "{}",
        said.last_line()
    );

    // A byte that is another in a file of the same size: only its content tells.
    let inbox = directory(&servers.target, "user.gone");
    let flip = format!("printf X | dd of={inbox}/7. conv=notrunc bs=1 seek=40 status=none");
    shell(&servers.target, &flip);
    verify(&servers, "user.gone", &[]).expect(0);
    let said = verify(&servers, "user.gone", &["--content", "--json"]).expect(8);
    assert_eq!(said.report().unwrap()["kinds"]["rotten-file"], 1);
    let told = &events(&said, "difference")[0];
    assert_eq!((&told["uid"], &told["side"]), (&Value::from(7), &Value::from("there")));
    assert_eq!(
        told["text"],
        format!(
            "user.gone: message 7: its file has rotted on bw2: the SHA-1 of {inbox}/7. is not the \
             index's"
        )
    );

    // Nor is anything excused that only looks later: a mailbox that is not there,
    // without a trace that somebody deleted it.
    let lost = "/usr/lib/cyrus/bin/cyr_dbtool /var/lib/cyrus/mailboxes.db twoskip delete \
                \"$(printf 'Nuser\\037gone\\037Sent')\"";
    servers.target.run_as_cyrus(&["sh", "-c", lost]).unwrap();
    let said = verify(&servers, "user.gone", &[]).expect(8);
    said.says(&["user.gone.Sent: the mailbox is missing on bw2; bw1 has 8 messages\n"]);
}

#[test]
fn between_two_live_copies_each_difference_is_found_and_named() {
    let servers = with_two_copies("twin");
    let said = verify(&servers, "user.twin", &["--content"]).expect(0);
    assert_eq!(said.last_line(), "user.twin: no differences between bw1 and bw2");
    said.says(&["user.twin: bw1 (live) against bw2 (live)"]);
    let (source, target) = (&servers.source, &servers.target);

    // One after the other, each alone at its first look.
    let mut expected: Vec<String> = Vec::new();
    let mut found = |more: &[&str], says: &[&str]| {
        expected.extend(more.iter().map(|line| (*line).to_owned()));
        let said = verify(&servers, "user.twin", &["--json"]).expect(8);
        let mut told = differences(&said);
        told.sort();
        expected.sort();
        assert_eq!(told, expected, "{}", said.stdout);
        assert_eq!(said.report().unwrap()["differences"], expected.len());
        said.says(says);
    };
    imap(target, "twin", &["SELECT INBOX", "STORE 3 +FLAGS (\\Draft)"]);
    found(&["flags user.twin 3", "highest-modseq user.twin 0"], &["bw2 has", "\\\\Draft"]);
    let inbox = directory(source, "user.twin");
    shell(source, &format!("mv {inbox}/5. /root/"));
    let text = format!("user.twin: message 5: its file is missing on bw1: {inbox}/5.");
    found(&[&format!("missing-file user.twin 5 {inbox}/5.")], &[&text]);
    imap(target, "twin", &["UNSUBSCRIBE INBOX.a"]);
    found(
        &["subscription user.twin 0 user.twin.a"],
        &["user.twin: the subscription to user.twin.a is missing on bw2"],
    );
    imap(target, "twin", &["SETACL INBOX.Sent anybody lr"]);
    found(
        &["rights user.twin.Sent 0 anybody", "highest-modseq user.twin.Sent 0"],
        &["user.twin.Sent: the ACL entry of anybody is missing on bw1; bw2 has lr"],
    );
    let script = "rm $(find /var/spool/sieve -name main.bc | head -1)";
    shell(target, script);
    found(
        &["sieve-script user.twin 0 main.bc"],
        &["user.twin: the sieve script main.bc is missing on bw2"],
    );
    deliver(source, "twin", 2);
    found(
        &["message user.twin 31", "message user.twin 32", "last-uid user.twin 0"],
        &["user.twin: message 31: it is missing on bw2"],
    );

    // Not more lines than were asked for, and then a count.
    let count = expected.len();
    let said = verify(&servers, "user.twin", &["--max-differences", "2"]).expect(8);
    assert_eq!(said.stdout.lines().count(), 4, "{}", said.stdout);
    let more = format!("and {} more differences", count - 2);
    let last = format!("user.twin: {count} differences between bw1 and bw2");
    assert_eq!(said.last_line(), last);
    said.says(&[&more]);
}

#[test]
fn what_a_failed_xfer_has_left_is_told_copy_against_copy() {
    let servers = with_user("wreck");
    let sent = directory(&servers.source, "user.wreck.Sent");
    shell(&servers.source, &format!("chmod 000 {sent}/1."));
    drop(servers.source.admin().unwrap().attempt("XFER user.wreck bw2"));
    let said = verify(&servers, "user.wreck", &[]).expect(8).says(&[
        "user.wreck: bw1 (live) against bw2 (live)",
        &format!("user.wreck.Sent: message 1: its file cannot be read on bw1: {sent}/1."),
        "user.wreck.Sent: message 8: it is missing on bw2\n",
        "user.wreck.a: the mailbox is missing on bw2; bw1 has 4 messages\n",
        "user.wreck: the subscription to user.wreck.a is missing on bw2\n",
        "user.wreck: the quota limit STORAGE of user.wreck is missing on bw2; bw1 has ",
    ]);
    assert!(said.last_line().ends_with(" differences between bw1 and bw2"), "{}", said.last_line());
}

#[test]
fn what_cannot_be_compared_is_said_in_words_and_by_the_exit_code() {
    let servers = with_user("none");
    servers.push("user.none", &[]).expect(0);
    let ask = |mailbox: &str, dest: &str| servers.mbcopy(&["verify", mailbox, dest]);
    ask("user.none", "bw1").expect(4).says(&["the destination bw1 is this server"]);
    ask("user.nobody", "bw2")
        .expect(4)
        .says(&["no two copies of user.nobody", "bw1 has none, bw2 has none"]);
    ask("user.none.Sent", "bw2").expect(4).says(&["a user is looked at as a whole"]);
    ask("user.none", "no-such-host").expect(1).says(&["no-such-host", "user.none: not compared"]);
    ask("user.none", "bw2:p2").expect(2);
    // An index that cannot be read is a difference of its own, and the others are compared.
    let sent = directory(&servers.target, "user.none.Sent");
    shell(
        &servers.target,
        &format!("printf XXXX | dd of={sent}/cyrus.index conv=notrunc bs=1 seek=200 status=none"),
    );
    let said = verify(&servers, "user.none", &["--json"]).expect(8);
    let told = differences(&said);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("unreadable-mailbox user.none.Sent 0"), "{told:?}");
    said.says(&["user.none.Sent: it cannot be read on bw2", "checksum"]);
}

/// A server before 3.6 has everything in another form; it is compared as it would be moved.
#[test]
#[ignore = "long: for `make versions`"]
fn versions_3_2_on_either_side() {
    for (source, target) in [("bull", "bw1"), ("bw1", "bull"), ("bull", "bull2")] {
        println!("{source} to {target}");
        let servers = Servers::between(source, target);
        servers.accounts(&["vera", "pal"]);
        Seed::new(&servers.source, "vera").rich("pal", 60).unwrap();
        let old_target = target.starts_with("bull");
        servers.push("user.vera", &["--copy-only"]).expect(0);
        if !old_target {
            verify(&servers, "user.vera", &["--content"]).expect(0);
        }
        servers.push("user.vera", &[]).expect(0);
        // Scripts are messages on the newer, and files that nobody has compiled on the older.
        let said = verify(&servers, "user.vera", &["--content", "--json"]);
        let odd = differences(&said).into_iter().filter(|d| !d.contains("sieve"));
        assert_eq!(odd.collect::<Vec<_>>(), Vec::<String>::new());
        if source == "bw1" {
            said.expect(8);
            continue;
        }
        said.expect(0);

        // What has come since is no difference; what has rotted is.
        deliver(&servers.target, "vera", 1);
        verify(&servers, "user.vera", &[]).expect(0).says(&["since the move"]);
        let spoil = "cd /var/spool/cyrus/mail && f=$(find . -path '*retired*' -prune -o \
                     -name '3.' -print | head -1) && printf X | dd of=\"$f\" conv=notrunc status=none";
        shell(&servers.target, spoil);
        verify(&servers, "user.vera", &["--content"]).expect(8);
    }
}
