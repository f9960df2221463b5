//! `mbcopy doctor`: wrecks made by the real XFER, named and put right.

use crate::support::{Pushed, Servers, assert_same, fingerprint};
use anyhow::Result;
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::imap::NewMessage;
use lab::seed::{Seed, Size};
use mbcopy::fault::Point;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::time::Duration;

fn shell(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

fn directory(host: &Host, mailbox: &str) -> String {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", mailbox]).unwrap().trim().to_owned()
}

/// Every file of mail and metadata with its size and times.
fn files(host: &Host) -> Vec<String> {
    let list = "cd /var && find lib/cyrus/user lib/cyrus/quota lib/cyrus/mailboxes.db \
                lib/cyrus/annotations.db lib/cyrus/mbcopy/moves spool/cyrus spool/sieve \
                -type f -printf '%p %s %T@ %C@ %m %u\\n' 2>/dev/null | sort; true";
    shell(host, list).lines().map(str::to_owned).collect()
}

/// Servers with a user who has some folders.
fn with_user(user: &str) -> Servers {
    let servers = Servers::fresh();
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    servers
}

/// Servers of other releases, with such a user.
fn between((source, target): (&str, &str), user: &str) -> Servers {
    let servers = Servers::between(source, target);
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    servers
}

/// What XFER says besides its tagged answer, which is worth nothing; nothing when it dies.
fn xfer(servers: &Servers, user: &str) -> Vec<String> {
    let mut admin = servers.source.admin().unwrap();
    admin.set_patience(Duration::from_secs(300)).unwrap();
    let reply = admin.attempt(format!("XFER user.{user} {}", servers.target.name()));
    let notes = reply.map(|reply| reply.notes).unwrap_or_default();
    notes
        .iter()
        .map(|note| format!("{} {}", if note.is_ok() { "OK" } else { "NO" }, note.text))
        .collect()
}

/// The mailboxes of a user by the type of their records.
pub type Records = BTreeMap<String, usize>;

/// Lets XFER run for some milliseconds at a time and kills it when the records on the source
/// and on the target say what is wanted; whether they did before it was over.
pub fn xfer_killed(
    servers: &Servers,
    user: &str,
    wanted: impl Fn(&Records, &Records) -> bool,
) -> bool {
    let script = "tail -n0 -F /var/log/messages | while read -r l; do case \"$l\" in \
                  *'XFER: initial sync of user'*) \
                  p=${l#*imap[}; p=${p%%]*}; kill -STOP $p; echo $p; exit;; esac; done";
    let mut stopper = servers.source.spawn(&["timeout", "60", "bash", "-c", script]).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    std::thread::scope(|scope| {
        let xfer = scope.spawn(|| xfer(servers, user));
        let mut pid = String::new();
        let mut said = BufReader::new(stopper.stdout.take().unwrap());
        said.read_line(&mut pid).unwrap();
        // It ends with the next line.
        shell(&servers.source, "logger ended");
        stopper.wait().unwrap();
        let pid = pid.trim();
        let mut killed = false;
        let mut step = "0.05";
        while !killed && !xfer.is_finished() {
            // It may have been stopped while it has the list locked.
            if let [Ok(old), Ok(new)] = servers.both().map(|host| records(host, user)) {
                killed = wanted(&old, &new);
                // It deletes a hundred in no time.
                let near = old.contains_key("em") && old.get("e").is_none_or(|rest| *rest < 20);
                step = if near { "0" } else { step };
            }
            let next = if killed { "KILL" } else { &format!("CONT $p; sleep {step}; kill -STOP") };
            shell(&servers.source, &format!("p={pid}; kill -{next} $p || true"));
        }
        xfer.join().unwrap().is_empty() && killed
    })
}

/// A user with many folders whose XFER was killed, so that his records on the source say
/// what is wanted; and what he was before. A busy machine may need several tries.
fn wreck(
    pair: (&str, &str),
    user: &str,
    wanted: impl Fn(&Records, &Records) -> bool,
) -> (Servers, Fingerprint) {
    for _ in 0..6 {
        let servers = between(pair, user);
        Seed::new(&servers.source, user).bulk(300, Size::Median(1000), 120).unwrap();
        let before = fingerprint(&servers.source, user, &[]);
        if xfer_killed(&servers, user, &wanted) {
            return (servers, before);
        }
    }
    panic!("XFER is never killed in time");
}

/// # Errors
///
/// If the list cannot be read now.
fn records(host: &Host, user: &str) -> Result<Records> {
    let dump = ["timeout", "1", "/usr/sbin/cyrus", "ctl_mboxlist", "-d"];
    let text = host.run_as_cyrus(&dump)?;
    let types: Vec<(String, String)> = match serde_json::from_str::<Value>(&text) {
        Ok(all) => {
            let all = all.as_object().unwrap().iter();
            let mbtype = |record: &Value| record["mbtype"].as_str().unwrap_or("?").to_owned();
            all.map(|(name, record)| (name.clone(), mbtype(record))).collect()
        }
        // Up to 3.4 it is lines, with a number of bits (imap/mboxlist.h).
        Err(_) => {
            let fields = |line: &str| {
                let (name, rest) = line.split_once('\t')?;
                let bits: u32 = rest.split(' ').next()?.parse().ok()?;
                let flags = [(0, "e"), (16, "d"), (8, "m")];
                let set = flags.iter().filter(|(bit, _)| bits & bit == *bit);
                Some((name.to_owned(), set.map(|(_, letter)| *letter).collect()))
            };
            text.lines().filter_map(fields).collect()
        }
    };
    let mut counts = Records::new();
    for (name, mbtype) in types {
        if name == format!("user.{user}") || name.starts_with(&format!("user.{user}.")) {
            *counts.entry(mbtype).or_default() += 1;
        }
    }
    println!("records on {}: {counts:?}", host.name());
    Ok(counts)
}

pub fn doctor(servers: &Servers, user: &str, options: &[&str]) -> Pushed {
    let mailbox = format!("user.{user}");
    let arguments = ["doctor", &mailbox, servers.target.name()];
    servers.mbcopy(&[&arguments, options].concat())
}

/// The document that it prints.
pub fn document(servers: &Servers, user: &str, code: i32) -> Value {
    let said = doctor(servers, user, &["--json"]).expect(code);
    serde_json::from_str(said.last_line()).unwrap()
}

#[track_caller]
pub fn is(document: &Value, state: &str) {
    assert_eq!(document["state"], state, "{document:#}");
}

/// Message-IDs of what comes while the wreck lies there.
pub const LATE: &str = "@late.example";

pub fn letter(what: &str) -> Vec<u8> {
    format!(
        "From: a@example.org\r\nTo: b@example.org\r\nSubject: {what}\r\n\
         Message-ID: <{what}{LATE}>\r\n\r\n{what}\r\n"
    )
    .into_bytes()
}

pub fn deliver(host: &Host, user: &str, what: &str) {
    lab::lmtp::deliver(host, user, &letter(what)).accepted().unwrap();
}

/// Mail and a folder that a user of the target makes, who does not know that it is a copy;
/// what of it must be found, by folder.
pub fn work_on_the_copy(servers: &Servers, user: &str) -> BTreeSet<(String, String)> {
    for what in ["one", "two"] {
        deliver(&servers.target, user, what);
    }
    let came = [("INBOX", "one"), ("INBOX", "two")];
    let came = came.map(|(folder, what)| (folder.to_owned(), format!("<{what}{LATE}>")));
    came.into_iter().chain(work_by_imap(&servers.target, user)).collect()
}

/// The same, by IMAP only.
pub fn work_by_imap(host: &Host, user: &str) -> BTreeSet<(String, String)> {
    let mut imap = host.imap(user).unwrap();
    imap.command("CREATE INBOX.Neu").unwrap();
    for (folder, what) in [("INBOX", "three"), ("INBOX.Neu", "four")] {
        let message = NewMessage {
            flags: vec!["\\Flagged".into(), "$Kept".into()],
            date: Some("01-Feb-2024 03:04:05 +0000".into()),
            bytes: letter(what),
        };
        imap.append(folder, &[message]).unwrap();
    }
    imap.logout();
    let came = [("INBOX", "three"), ("INBOX.Neu", "four")];
    came.map(|(folder, what)| (folder.to_owned(), format!("<{what}{LATE}>"))).into()
}

/// Fails unless all is as before, but for these messages, each of which is there once.
#[track_caller]
pub fn assert_whole(
    before: &Fingerprint,
    after: &Fingerprint,
    came: &BTreeSet<(String, String)>,
    known: &[&str],
) {
    let mut rest = after.clone();
    let mut found = Vec::new();
    let mut touched: BTreeSet<String> = BTreeSet::new();
    for (name, mailbox) in &mut rest.own.mailboxes {
        mailbox.messages.retain(|_, message| {
            let late = message.message_id.contains(LATE);
            if late {
                found.push((name.clone(), message.message_id.clone()));
                touched.insert(name.clone());
                if message.message_id.starts_with("<three") {
                    let flags = ["$Kept", "\\Flagged"].map(String::from);
                    assert!(flags.iter().all(|flag| message.flags.contains(flag)), "{message:?}");
                    assert!(message.date.contains("Feb-2024 03:04:05"), "{message:?}");
                }
            }
            !late
        });
    }
    found.sort();
    assert_eq!(found, came.iter().cloned().collect::<Vec<_>>());
    // What a message more changes about a mailbox.
    for name in touched {
        match before.own.mailboxes.get(&name) {
            None => drop(rest.own.mailboxes.remove(&name)),
            Some(was) => {
                let mailbox = rest.own.mailboxes.get_mut(&name).unwrap();
                assert_eq!(mailbox.examine["UIDVALIDITY"], was.examine["UIDVALIDITY"]);
                mailbox.status.clone_from(&was.status);
                mailbox.examine.clone_from(&was.examine);
                mailbox.flags.clone_from(&was.flags);
                mailbox.recent = was.recent;
            }
        }
    }
    if !came.is_empty() {
        rest.admin.retain(|name, _| before.admin.contains_key(name));
        for (name, mailbox) in &mut rest.own.mailboxes {
            mailbox.quota.clone_from(&before.own.mailboxes[name].quota);
        }
        for (name, mailbox) in &mut rest.admin {
            mailbox.quota.clone_from(&before.admin[name].quota);
        }
    }
    let size = "/shared/vendor/cmu/cyrus-imapd/size";
    let crcs = "/shared/vendor/cmu/cyrus-imapd/synccrcs";
    let quota = "/shared/vendor/cmu/cyrus-imapd/userrawquota";
    let more: &[&str] = if came.is_empty() { &[] } else { &[size, crcs, quota] };
    assert_same(before, &rest, &[known, more].concat());
}

/// Repairs, and looks that nothing is wrong then and that the copy is out of the way.
#[track_caller]
pub fn repair(servers: &Servers, user: &str, options: &[&str]) -> Pushed {
    let said = doctor(servers, user, &[&["--repair"], options].concat()).expect(0);
    is(&document(servers, user, 0), "well");
    said
}

#[test]
fn a_part_that_is_live_on_the_target_is_put_aside_and_its_mail_comes_home() {
    let servers = with_user("part");
    let victim = format!("{}/1.", directory(&servers.source, "user.part.Sent"));
    is(&document(&servers, "part", 0), "well");
    let before = fingerprint(&servers.source, "part", &[]);
    shell(&servers.source, &format!("chmod 000 {victim}"));
    assert_eq!(xfer(&servers, "part"), ["NO USER part (Bad protocol)"]);
    let came = work_on_the_copy(&servers, "part");
    let files = servers.both().map(files);
    let said = document(&servers, "part", 9);
    is(&said, "partial-copy");
    assert_eq!((&said["here"]["live"], &said["there"]["live"]), (&6.into(), &5.into()));
    assert_eq!(said["there"]["since"], 4, "{said:#}");
    assert!(said["notes"][0].as_str().unwrap().contains(&victim), "{said:#}");
    let text = doctor(&servers, "part", &[]).expect(9);
    println!("{}", text.stdout);
    text.says(&[
        "user.part: partial-copy, since 20",
        "deliveries are accepted into that part",
        "carry 4 messages of 2 mailboxes from bw2 to bw1",
        "put what bw2 has aside",
    ]);
    let all = servers.mbcopy(&["doctor", "--all", "bw2"]).expect(9);
    assert!(all.stdout.ends_with("1 users with whom something is wrong\n"), "{}", all.stdout);
    assert_eq!(files, servers.both().map(self::files), "looking has changed something");
    servers.push("user.part", &[]).expect(4).says(&["mbcopy doctor user.part"]);
    shell(&servers.source, &format!("chmod 600 {victim}"));
    repair(&servers, "part", &[]).says(&["4 messages carried over"]);
    let after = fingerprint(&servers.source, "part", &[]);
    assert_whole(&before, &after, &came, &[]);
    // The target defers, and keeps what it had; a push uses it.
    let reply = lab::lmtp::deliver(&servers.target, "part", &letter("later"));
    assert!(format!("{reply:?}").contains("451"), "{reply:?}");
    servers.push("user.part", &[]).expect(0);
    assert_same(&after, &fingerprint(&servers.target, "part", &[]), &[]);
}

#[test]
fn what_is_ours_is_named_and_what_is_not_known_is_not_touched() {
    let servers = with_user("ours");
    servers.arm("Copied kill");
    assert_ne!(servers.push("user.ours", &[]).code, 0);
    servers.disarm();
    is(&document(&servers, "ours", 9), "our-move");
    // The journal knows the other server.
    let said = servers.mbcopy(&["doctor", "user.ours"]).expect(9);
    said.says(&["mbcopy resume user.ours", "mbcopy abort user.ours", "when it was copying"]);
    doctor(&servers, "ours", &["--repair"]).expect(4);
    servers.mbcopy(&["resume", "user.ours"]).expect(0);
    is(&document(&servers, "ours", 0), "well");

    is(&document(&servers, "nobody", 9), "nobody");
    for host in servers.both() {
        host.admin().unwrap().command("CREATE user.both").unwrap();
    }
    let before = servers.both().map(files);
    let said = doctor(&servers, "both", &["--repair", "--yes"]).expect(4);
    said.says(&["unknown", "bw1 has 1 live mailboxes", "bw2 has 1 live mailboxes", "not touched"]);
    assert_eq!(before, servers.both().map(files));
    let all = servers.mbcopy(&["doctor", "--all", "bw2", "--json"]).expect(9);
    let all: Vec<Value> = all.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(all.len(), 1);
    assert_eq!((&all[0]["mailbox"], &all[0]["state"]), (&"user.both".into(), &"unknown".into()));
}

/// XFER is killed, the user works on the copy, and is whole on the source again.
fn killed(
    pair: (&str, &str),
    user: &str,
    state: &str,
    wanted: impl Fn(&Records, &Records) -> bool,
) {
    let (servers, before) = wreck(pair, user, wanted);
    let came = work_on_the_copy(&servers, user);
    is(&document(&servers, user, 9), state);
    println!("{}", doctor(&servers, user, &[]).expect(9).stdout);
    repair(&servers, user, &[]);
    // 3.2 counts a user's mailboxes only from his next change on.
    let counters = "/private/vendor/cmu/cyrus-imapd/usercounters";
    let known: &[&str] = if pair.0 == OLDER.0 { &[counters] } else { &[] };
    assert_whole(&before, &fingerprint(&servers.source, user, &[]), &came, known);
}

/// Two servers of 3.6.
const ALIKE: (&str, &str) = ("bw1", "bw2");

/// From 3.2 to 3.6.
const OLDER: (&str, &str) = ("bull", "bw1");

/// From 3.10 to 3.12.
const LATER: (&str, &str) = ("trix", "sid");

/// A part is on the target.
fn is_being_copied(old: &Records, new: &Records) -> bool {
    !new.is_empty() && new.values().sum::<usize>() < old.values().sum()
}

fn is_reserved(old: &Records, _: &Records) -> bool {
    old.contains_key("em") && !old.contains_key("ed")
}

fn is_being_deleted(old: &Records, _: &Records) -> bool {
    old.contains_key("em") && old.contains_key("ed")
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_initial_sync() {
    killed(ALIKE, "b", "partial-copy", is_being_copied);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_final_sync() {
    killed(ALIKE, "c", "stopped-switching", is_reserved);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_initial_sync_by_3_2() {
    killed(OLDER, "b2", "partial-copy", is_being_copied);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_final_sync_by_3_2() {
    killed(OLDER, "c2", "stopped-switching", is_reserved);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_final_sync_towards_3_2() {
    killed((OLDER.1, OLDER.0), "e2", "stopped-switching", is_reserved);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_initial_sync_by_a_later_release() {
    killed(LATER, "b10", "partial-copy", is_being_copied);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_final_sync_by_a_later_release() {
    killed(LATER, "c10", "stopped-switching", is_reserved);
}

#[test]
fn killed_in_the_deletion() {
    killed(ALIKE, "d", "stopped-deleting", is_being_deleted);
}

#[test]
fn what_xfer_leaves_is_put_aside_and_the_user_comes_back() {
    let servers = with_user("left");
    assert_eq!(xfer(&servers, "left"), ["OK USER left"]);
    let moved = fingerprint(&servers.target, "left", &[]);
    let refused = lab::lmtp::deliver(&servers.source, "left", &letter("bounced"));
    assert!(format!("{refused:?}").contains("550"), "{refused:?}");
    let said = document(&servers, "left", 9);
    is(&said, "leftovers");
    assert_eq!((&said["here"]["deleted"], &said["there"]["live"]), (&6.into(), &6.into()));
    doctor(&servers, "left", &["--repair", "--to", "source"]).expect(4).says(&["mbcopy reverse"]);
    repair(&servers, "left", &[]).says(&["bw2 has him whole", "6 mailboxes put aside"]);
    let deferred = lab::lmtp::deliver(&servers.source, "left", &letter("deferred"));
    assert!(format!("{deferred:?}").contains("451"), "{deferred:?}");
    assert_same(&moved, &fingerprint(&servers.target, "left", &[]), &[]);
    let kept =
        shell(&servers.source, "find /var/spool/cyrus -path '*/.mbcopy/*' -name '*.' | wc -l");
    assert!(kept.trim().parse::<u32>().unwrap() >= 50, "{kept}");
    servers.mbcopy(&["reverse", "user.left", "bw2"]).expect(0);
    assert_same(&moved, &fingerprint(&servers.source, "left", &[]), &[]);
    is(&document(&servers, "left", 0), "well");
}

/// What happens when the user comes back to what XFER has left, by XFER.
#[test]
#[ignore = "make matrix"]
fn what_xfer_leaves_when_it_brings_him_back() {
    let servers = with_user("again");
    assert_eq!(xfer(&servers, "again"), ["OK USER again"]);
    let back = Servers { source: Host::new("bw2"), target: Host::new("bw1") };
    assert_eq!(xfer(&back, "again"), ["OK USER again"]);
    let before = fingerprint(&servers.source, "again", &[]);
    let said = document(&servers, "again", 9);
    is(&said, "leftovers");
    assert_eq!((&said["here"]["live"], &said["there"]["deleted"]), (&6.into(), &6.into()));
    repair(&servers, "again", &[]).says(&["bw1 has him whole"]);
    assert_same(&before, &fingerprint(&servers.source, "again", &[]), &[]);
}

#[test]
fn a_new_inbox_is_merged_into_the_real_one() {
    let servers = with_user("twice");
    assert_eq!(xfer(&servers, "twice"), ["OK USER twice"]);
    let moved = fingerprint(&servers.target, "twice", &[]);
    servers.source.set_option("autocreate_quota", "0").unwrap();
    servers.source.imap("twice").unwrap().logout();
    servers.source.set_option("autocreate_quota", "-1").unwrap();
    for what in ["one", "two"] {
        deliver(&servers.source, "twice", what);
    }
    let said = document(&servers, "twice", 9);
    is(&said, "new-inbox");
    println!("{}", doctor(&servers, "twice", &[]).expect(9).stdout);
    // The directory of the old INBOX is there without any record.
    assert_eq!((&said["here"]["unnamed"], &said["here"]["deleted"]), (&1.into(), &5.into()));
    repair(&servers, "twice", &[]).says(&["bw2 has him whole", "2 messages carried over"]);
    let came = [("INBOX", "one"), ("INBOX", "two")];
    let came = came.map(|(folder, what)| (folder.to_owned(), format!("<{what}{LATE}>"))).into();
    assert_whole(&moved, &fingerprint(&servers.target, "twice", &[]), &came, &[]);
    servers.mbcopy(&["reverse", "user.twice", "bw2"]).expect(0);
    let back = fingerprint(&servers.source, "twice", &[]);
    assert_whole(&moved, &back, &came, &[]);
}

/// Changes records of mailboxes.db as an admin would: dump, edit, load.
fn edit_records(host: &Host, edit: impl Fn(&str, &mut Value) -> bool) {
    let text = host.run_as_cyrus(&["/usr/sbin/cyrus", "ctl_mboxlist", "-d"]).unwrap();
    let mut all: Value = serde_json::from_str(&text).unwrap();
    all.as_object_mut().unwrap().retain(|name, record| edit(name, record));
    let path = host.root().unwrap().join("tmp/records.json");
    std::fs::write(path, all.to_string()).unwrap();
    shell(host, "chmod 644 /tmp/records.json");
    host.run_as_cyrus(&["sh", "-c", "/usr/sbin/cyrus ctl_mboxlist -u < /tmp/records.json"])
        .unwrap();
}

/// As 2.2 and 2.3 left it: INBOX has gone to the other server, whose name its record has,
/// and the other folders have stayed.
#[test]
fn folders_here_and_there_come_together() {
    let servers = with_user("split");
    let before = fingerprint(&servers.source, "split", &[]);
    let victim = format!("{}/1.", directory(&servers.source, "user.split.Sent"));
    shell(&servers.source, &format!("chmod 000 {victim}"));
    assert_eq!(xfer(&servers, "split"), ["NO USER split (Bad protocol)"]);
    shell(&servers.source, &format!("chmod 600 {victim}"));
    let mut admin = servers.target.admin().unwrap();
    for folder in ["Sent", "a.b", "a", "Gr&APYA3w-e"] {
        let mailbox = format!("user.split.{folder}");
        drop(admin.attempt(format!("SETACL {mailbox} cyrus lrswipkxtecda")));
        drop(admin.attempt(format!("DELETE {mailbox}")));
    }
    let inbox = directory(&servers.source, "user.split");
    edit_records(&servers.source, |name, record| {
        if name != "user.split" {
            return false;
        }
        let record = record.as_object_mut().unwrap();
        record.insert("mbtype".into(), "er".into());
        record.insert("server".into(), "bw2".into());
        true
    });
    shell(&servers.source, &format!("rm -r {inbox}"));
    println!("{:?} {:?}", records(&servers.source, "split"), records(&servers.target, "split"));
    let text = doctor(&servers, "split", &[]).expect(9);
    println!("{}", text.stdout);
    is(&document(&servers, "split", 9), "scattered");
    doctor(&servers, "split", &["--repair"]).expect(4).says(&["needs --yes"]);
    repair(&servers, "split", &["--yes"]);
    let after = fingerprint(&servers.source, "split", &[]);
    let contents = |print: &Fingerprint| {
        let all = print.messages();
        let mut all: Vec<_> = all
            .map(|(folder, _, m)| {
                (folder.to_owned(), m.sha1.clone(), m.flags.clone(), m.date.clone())
            })
            .collect();
        all.sort();
        all
    };
    assert_eq!(contents(&before), contents(&after));
    let [was, is] = [&before, &after].map(|print| &print.own.mailboxes["INBOX.Sent"]);
    assert_eq!((&was.messages, &was.examine), (&is.messages, &is.examine));
}

#[test]
#[ignore = "make matrix"]
fn the_move_is_finished_by_a_push_if_that_is_wanted() {
    let (servers, before) = wreck(ALIKE, "onward", is_being_deleted);
    let came = work_on_the_copy(&servers, "onward");
    is(&document(&servers, "onward", 9), "stopped-deleting");
    doctor(&servers, "onward", &["--repair", "--to", "target"])
        .expect(0)
        .says(&["bw1 has him whole", "bw2 serves the user now"]);
    is(&document(&servers, "onward", 0), "well");
    assert_whole(&before, &fingerprint(&servers.target, "onward", &[]), &came, &[]);
}

/// XFER was killed by a release that deletes the files as it goes: he is whole on the
/// target only.
fn killed_in_the_deletion_for_good(pair: (&str, &str), user: &str) {
    let (servers, _) = wreck(pair, user, is_being_deleted);
    let before = fingerprint(&servers.target, user, &[]);
    println!("{}", doctor(&servers, user, &[]).expect(9).stdout);
    is(&document(&servers, user, 9), "stopped-deleting");
    doctor(&servers, user, &["--repair", "--to", "source"]).expect(4).says(&["--to target"]);
    repair(&servers, user, &[]).says(&[&format!("{} has him whole", pair.1)]);
    assert_same(&before, &fingerprint(&servers.target, user, &[]), &[]);
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_deletion_by_3_2() {
    killed_in_the_deletion_for_good(OLDER, "late2");
}

#[test]
#[ignore = "make matrix"]
fn killed_in_the_deletion_by_a_later_release() {
    killed_in_the_deletion_for_good(LATER, "late");
}

/// Every step of a repair is interrupted, and every write fails once; the same command
/// goes on, and nothing is lost or doubled.
#[test]
#[ignore = "make matrix"]
fn a_repair_that_is_interrupted_goes_on() {
    let servers = with_user("torn");
    let before = fingerprint(&servers.source, "torn", &[]);
    let victim = format!("{}/1.", directory(&servers.source, "user.torn.Sent"));
    shell(&servers.source, &format!("chmod 000 {victim}"));
    assert_eq!(xfer(&servers, "torn"), ["NO USER torn (Bad protocol)"]);
    shell(&servers.source, &format!("chmod 600 {victim}"));
    // As if it had died some steps later.
    edit_records(&servers.source, |name, record| {
        let record = record.as_object_mut().unwrap();
        record.insert("mbtype".into(), "em".into());
        record.insert("server".into(), "bw2".into());
        ["user.torn", "user.torn.a"].contains(&name)
    });
    let came = work_on_the_copy(&servers, "torn");
    servers.both().iter().for_each(|host| host.snap("doctor").unwrap());
    let retiring = [
        Point::RetireBegun,
        Point::RetireCommitted,
        Point::RetireRenamedOne,
        Point::RetireRenamed,
        Point::Retired,
    ];
    let writes = [
        Point::JournalWrite,
        Point::SealedWrite,
        Point::DatabaseWrite,
        Point::Rename,
        Point::DirectorySync,
    ];
    let everywhere = |fault: String| servers.both().map(|host| (host, fault.clone()));
    let kills = Point::OF_REPAIR.iter().chain(&retiring);
    let kills = kills.map(|point| (None, format!("{point:?} kill")));
    let fails = writes.iter().flat_map(|point| everywhere(format!("{point:?} EIO")));
    let again = everywhere("JournalWrite EIO 1".into());
    let fails = fails.chain(again).map(|(host, fault)| (Some(host), fault));
    let mut struck = 0;
    for (host, fault) in kills.chain(fails) {
        servers.both().iter().for_each(|host| host.unsnap("doctor").unwrap());
        match host {
            Some(host) => servers.arm_on(host, &fault),
            None => servers.arm(&fault),
        }
        let said = doctor(&servers, "torn", &["--repair"]);
        let reached = servers.disarm();
        println!("{fault} on {}: {reached} {}", host.map_or("both", |h| h.name()), said.code);
        assert!(reached || host.is_some(), "{fault} is not passed");
        assert_eq!(said.code != 0, reached, "{fault}: {}\n{}", said.stdout, said.stderr);
        struck += u32::from(reached);
        if reached {
            servers.both().iter().for_each(|host| host.restart_cyrus().unwrap());
            let named = document(&servers, "torn", 9);
            println!("  then {}", named["state"]);
            repair(&servers, "torn", &[]);
        }
        assert_whole(&before, &fingerprint(&servers.source, "torn", &[]), &came, &[]);
    }
    // Nothing is renamed on the source.
    assert!(struck >= 19, "{struck}");
}
