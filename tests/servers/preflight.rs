//! What preflight finds, before anything changes, and what it says.

use crate::support::{Pushed, Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::seed::Seed;

/// Servers with a small user on the source.
fn with_user(user: &str) -> Servers {
    let servers = Servers::fresh();
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    servers
}

/// The directory of a mailbox on a host.
fn directory(host: &Host, mailbox: &str) -> String {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", mailbox]).unwrap().trim().to_owned()
}

fn shell(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

/// A refused push leaves no trace on the target and the user as he was.
#[track_caller]
fn refused(servers: &Servers, user: &str, options: &[&str], says: &[&str]) -> Pushed {
    let before = fingerprint(&servers.source, user, &[]);
    let pushed = servers.push(&format!("user.{user}"), options).expect(4).says(says);
    let last = format!("user.{user}: refused, not moved; bw1 serves the user now");
    assert_eq!(pushed.last_line(), last);
    assert_same(&before, &fingerprint(&servers.source, user, &[]), &[]);
    let left = shell(&servers.target, "find /var/spool/cyrus -path '*.mbcopy/*' | wc -l");
    assert_eq!(left.trim(), "0");
    pushed
}

#[test]
fn directories_that_are_filesystems_of_their_own() {
    let servers = with_user("mounts");
    let inbox = directory(&servers.source, "user.mounts");
    let (below, _) = inbox.rsplit_once('/').unwrap();
    let mount = format!("mount -t tmpfs -o mode=700,uid=$(id -u cyrus) x {below}");
    let copied = format!("cp -a {below} /root/kept && {mount} && cp -a /root/kept/. {below}/");
    let made = format!("mkdir -p {below} && chown -R cyrus:mail /var/spool/cyrus/mail && {mount}");
    for (host, prepare) in servers.both().into_iter().zip([copied, made]) {
        shell(host, &format!("set -e; rm -rf /root/kept; {prepare}"));
        refused(&servers, "mounts", &[], &[below, "is on another filesystem"]);
        shell(host, &format!("umount -l {below}"));
    }
}

/// A program of Cyrus that is not there as long as this value lives.
struct Missing<'a>(&'a Host, String);

impl<'a> Missing<'a> {
    fn new(host: &'a Host, program: &str) -> Self {
        let path = format!("/usr/lib/cyrus/bin/{program}");
        shell(host, &format!("mount --bind /dev/null {path}"));
        Self(host, path)
    }
}

impl Drop for Missing<'_> {
    fn drop(&mut self) {
        let _ = self.0.run(&["umount", &self.1]);
    }
}

#[test]
fn servers_that_lack_programs_of_cyrus() {
    let servers = with_user("bare");
    for program in ["reconstruct", "cyr_dbtool"] {
        let _missing = Missing::new(&servers.target, program);
        let says = format!("Cyrus's program {program} was not found");
        refused(&servers, "bare", &[], &[&says, "--cyrus-bin"]);
    }
    {
        let _missing = Missing::new(&servers.source, "cyr_dbtool");
        refused(&servers, "bare", &[], &["Cyrus's program cyr_dbtool was not found"]);
    }
    // What only serves clients is needed by nobody here.
    let before = fingerprint(&servers.source, "bare", &[]);
    let without = ["httpd", "squatter", "cyr_synclog", "sync_client"];
    let _missing = without.map(|program| Missing::new(&servers.target, program));
    servers.push("user.bare", &[]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "bare", &[]), &[]);
}

#[test]
fn messages_that_cannot_be_copied_are_named_or_skipped() {
    let servers = with_user("bad");
    let inbox = directory(&servers.source, "user.bad");
    shell(&servers.source, &format!("chmod 000 {inbox}/1. && chown root:root {inbox}/2."));
    shell(&servers.source, &format!("mv {inbox}/3. /root/ && echo more >> {inbox}/4."));
    shell(&servers.source, &format!("cp -p {inbox}/6. {inbox}/999."));
    // Found by its SHA-1 alone: the size is as it was.
    shell(&servers.source, &format!("printf X | dd of={inbox}/5. conv=notrunc status=none"));

    let path = |n: u32| format!("{inbox}/{n}.");
    refused(
        &servers,
        "bad",
        &[],
        &[
            &path(1),
            &path(2),
            &path(3),
            &path(4),
            &path(999),
            "cannot be read",
            "is missing",
            "--bad-messages=skip",
        ],
    );

    let before = fingerprint(&servers.source, "bad", &[]);
    let pushed = servers.push("user.bad", &["--bad-messages=skip", "--json"]).expect(3);
    let report = pushed.report().unwrap();
    assert_eq!(report["outcome"], "done-with-skipped");
    let bad: Vec<_> = report["problems"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|p| p["severity"] == "bad-message")
        .map(|p| (p["code"].as_str().unwrap().to_owned(), p["uid"].as_u64().unwrap()))
        .collect();
    for (code, uid) in [
        ("unreadable-message", 1),
        ("unreadable-message", 2),
        ("missing-message", 3),
        ("wrong-size-message", 4),
        ("rotten-message", 5),
        ("orphan-file", 999),
    ] {
        assert!(bad.contains(&(code.to_owned(), uid)), "{code} {uid} not in {bad:?}");
    }
    let after = fingerprint(&servers.target, "bad", &[]);
    let uids = |print: &lab::fingerprint::Fingerprint| {
        print.own.mailboxes["INBOX"].messages.keys().copied().collect::<Vec<_>>()
    };
    let expected: Vec<u32> = uids(&before).into_iter().filter(|uid| *uid > 5).collect();
    assert_eq!(uids(&after), expected);
    assert!(after.messages().all(|(_, _, m)| m.sha1 != "NIL"), "a message without bytes is shown");
}

#[test]
fn a_user_who_exists_on_the_target_is_never_merged() {
    let servers = with_user("twin");
    servers.target.admin().unwrap().command("CREATE user.twin").unwrap();
    refused(&servers, "twin", &[], &["user.twin exists on this server", "never merges"]);
}

#[test]
fn a_tombstone_on_the_target_is_replaced_and_named() {
    let servers = with_user("grave");
    let mut admin = servers.target.admin().unwrap();
    admin.command("CREATE user.grave").unwrap();
    admin.command("SETACL user.grave cyrus lrswipkxtecda").unwrap();
    admin.command("DELETE user.grave").unwrap();
    servers.push("user.grave", &["-v"]).expect(0).says(&["records of deleted mailboxes"]);
}

#[test]
fn what_a_failed_xfer_left_is_recognised() {
    let servers = with_user("wreck");
    let victim = format!("{}/1.", directory(&servers.source, "user.wreck.Sent"));
    shell(&servers.source, &format!("chmod 000 {victim}"));
    let answer = servers.source.admin().unwrap().attempt("XFER user.wreck bw2");
    drop(answer);
    shell(&servers.source, &format!("chmod 600 {victim}"));
    refused(&servers, "wreck", &[], &["earlier XFER", "the same ids as the source's"]);
}

#[test]
fn what_an_xfer_away_left_behind_is_recognised() {
    // 3.6.1 leaves all files and records that no tool removes.
    let servers = with_user("orphan");
    servers.source.admin().unwrap().attempt("XFER user.orphan bw2").unwrap();
    let back = Servers { source: Host::new("bw2"), target: Host::new("bw1") };
    refused_from(&back, "orphan", &["marked as deleted on this server", "still name a partition"]);
}

#[track_caller]
fn refused_from(servers: &Servers, user: &str, says: &[&str]) {
    servers.push(&format!("user.{user}"), &[]).expect(4).says(says);
}

#[test]
fn a_place_that_cannot_take_the_user_is_refused() {
    let servers = with_user("room");
    let push = |destination: &str| servers.mbcopy(&["push", "user.room", destination]);
    push("bw2:nowhere").expect(4).says(&["no partition \"nowhere\"", "it has: default, p2"]);
    push("bw1").expect(4).says(&["the destination bw1 is this server"]);
    push("no-such-host").expect(1).says(&["no-such-host", "this command has changed nothing"]);
    servers
        .mbcopy(&["push", "user.nobody", "bw2"])
        .expect(4)
        .says(&["user.nobody", "does not exist"]);
    // A filesystem of 8 MB in place of the partition.
    shell(
        &servers.target,
        "mount -t tmpfs -o size=8m,mode=700,uid=$(id -u cyrus) x /var/spool/cyrus/p2",
    );
    let small = push("bw2:p2");
    shell(&servers.target, "umount /var/spool/cyrus/p2");
    small.expect(4).says(&["bytes free", "make room, or name another partition"]);
    // One with room, but for a few files only.
    shell(
        &servers.target,
        "mount -t tmpfs -o nr_inodes=500,mode=700,uid=$(id -u cyrus) x /var/spool/cyrus/p2",
    );
    let few = push("bw2:p2");
    shell(&servers.target, "umount /var/spool/cyrus/p2");
    few.expect(4).says(&["inodes free"]);
    push("bw2:p2").expect(0);
}

#[test]
fn an_index_that_the_target_cannot_read_is_refused() {
    let servers = with_user("newer");
    let index = format!("{}/cyrus.index", directory(&servers.source, "user.newer"));
    // The minor version is at 8; 19 is what 3.10 writes.
    shell(
        &servers.source,
        &format!(
            "printf '\\000\\000\\000\\023' | dd of={index} bs=1 seek=8 conv=notrunc status=none"
        ),
    );
    let pushed = servers.push("user.newer", &[]);
    pushed.expect(4).says(&["cyrus.index"]);
}

#[test]
fn a_lock_that_stops_nobody_is_found_before_it_is_relied_upon() {
    let servers = with_user("prove");
    // A Cyrus that locks elsewhere than its configuration says.
    shell(
        &servers.source,
        "sed 's#^mboxname_lockpath:.*#mboxname_lockpath: /run/cyrus/elsewhere#' /etc/imapd.conf \
         > /etc/imapd-other.conf && install -d -o cyrus -g mail /run/cyrus/elsewhere && \
         mv /usr/lib/cyrus/bin/mbexamine /usr/lib/cyrus/bin/mbexamine.real && \
         printf '#!/bin/sh\\nshift 2\\nexec /usr/lib/cyrus/bin/mbexamine.real -C /etc/imapd-other.conf \"$@\"\\n' \
         > /usr/lib/cyrus/bin/mbexamine && chmod 755 /usr/lib/cyrus/bin/mbexamine",
    );
    let pushed = servers.push("user.prove", &[]);
    shell(&servers.source, "mv /usr/lib/cyrus/bin/mbexamine.real /usr/lib/cyrus/bin/mbexamine");
    pushed.expect(4).says(&["does not make this server's own Cyrus wait"]);
    servers.push("user.prove", &[]).expect(0);
}

#[test]
fn two_moves_of_one_user_are_one() {
    let servers = Servers::fresh();
    servers.accounts(&["once"]);
    Seed::new(&servers.source, "once").bulk(3000, lab::seed::Size::Fixed(20_000), 1).unwrap();
    let mut first = servers
        .source
        .spawn(&["/usr/local/bin/mbcopy", "push", "user.once", "bw2", "--bwlimit", "5000000"])
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    servers.push("user.once", &[]).expect(6).says(&["somebody else is moving this user"]);
    assert!(first.wait().unwrap().success());
}

/// Where no `defaultpartition` is set, each imapd seeds its random numbers by the second in
/// which it chooses one first: whatever two of them make in the same second has one uniqueid.
#[test]
fn two_users_to_whom_cyrus_has_given_one_directory_are_refused() {
    let (servers, _put_back) =
        Servers::with_options(("bw1", &[("defaultpartition", "")]), ("bw2", &[]));
    let source = &servers.source;
    let made = (0..10).find_map(|n| {
        let users = [format!("same{n}"), format!("twin{n}")];
        servers.accounts(&users.each_ref().map(String::as_str));
        // Processes that have chosen nothing yet.
        source.restart_cyrus().unwrap();
        let mut sessions = [source.admin().unwrap(), source.admin().unwrap()];
        for (session, user) in sessions.iter_mut().zip(&users) {
            session.command(format!("CREATE user.{user}")).unwrap();
        }
        let at = users.each_ref().map(|user| directory(source, &format!("user.{user}")));
        (at[0] == at[1]).then_some(users)
    });
    let [one, two] = made.expect("Cyrus gives each his own directory");
    lab::lmtp::deliver(source, &one, b"Subject: to one\r\n\r\nhello\r\n").accepted().unwrap();
    for user in [&one, &two] {
        // Those of an earlier try may have it, too.
        let says =
            [&format!("user.{user} and user."), "have the same uniqueid", "Copy the messages"];
        servers.push(&format!("user.{user}"), &[]).expect(4).says(&says);
    }
    // The other's mail is where it was.
    assert!(
        shell(source, &format!("ls {}", directory(source, &format!("user.{two}")))).contains("1.")
    );
}
