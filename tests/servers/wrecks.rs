//! Wrecks of a Murder, made by its real servers: named by `mbcopy doctor`, and put right.

use crate::doctor::{
    LATE, Records, assert_whole, deliver, doctor, document, is, letter, repair, work_by_imap,
    xfer_killed,
};
use crate::murder::Murder;
use crate::support::{assert_same, fingerprint};
use lab::fingerprint::Fingerprint;
use lab::seed::{Seed, Size};
use mbcopy::fault::Point;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A user with many folders whose XFER was killed, so that his records on the source say
/// what is wanted; and what he was before. A busy machine may need several tries.
fn wreck(user: &str, wanted: impl Fn(&Records, &Records) -> bool) -> (Murder, Fingerprint) {
    for _ in 0..6 {
        let murder = Murder::fresh();
        murder.user(user);
        Seed::new(&murder.servers.source, user).bulk(300, Size::Median(1000), 120).unwrap();
        let before = fingerprint(&murder.servers.source, user, &[]);
        if xfer_killed(&murder.servers, user, &wanted) {
            return (murder, before);
        }
    }
    panic!("XFER is never killed in time");
}

impl Murder {
    /// Whether the frontend opens these folders of the user.
    fn opens(&self, user: &str, folders: &[&str]) -> bool {
        let mut imap = self.frontend.imap(user).unwrap();
        let mut opens = |folder: &&str| {
            imap.attempt(format!("SELECT {folder}")).is_ok_and(|reply| reply.tagged.is_ok())
        };
        folders.iter().all(&mut opens)
    }

    /// Clients and deliveries of the frontend reach all of the user.
    fn assert_served(&self, user: &str, print: &Fingerprint) {
        let folders: Vec<&str> = print.own.mailboxes.keys().map(String::as_str).collect();
        let plain = |folder: &&str| folder.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.');
        let folders: Vec<&str> = folders.into_iter().filter(plain).collect();
        let began = Instant::now();
        while !self.opens(user, &folders) {
            let waited = began.elapsed();
            assert!(waited < Duration::from_secs(20), "the frontend does not open {folders:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        deliver(&self.frontend, user, "served");
    }
}

fn came(all: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    all.iter().map(|(folder, what)| (folder.to_string(), format!("<{what}{LATE}>"))).collect()
}

/// XFER was killed, the user is locked out, and whole on the source again.
fn locked_out(user: &str, state: &str, wanted: impl Fn(&Records, &Records) -> bool) {
    let (murder, before) = wreck(user, wanted);
    assert!(!murder.opens(user, &["INBOX"]));
    // A backend takes no mail but from frontends.
    let came = work_by_imap(&murder.servers.target, user);
    let said = document(&murder.servers, user, 9);
    is(&said, state);
    assert!(said["list"]["reserved"].as_u64().unwrap() > 0, "{said:#}");
    let text = doctor(&murder.servers, user, &[]).expect(9);
    println!("{}", text.stdout);
    text.says(&["in the list of mup", "are reserved", "make the list of the Murder say"]);
    for point in Point::OF_REPAIR_IN_MURDERS {
        murder.servers.arm(&format!("{point:?} kill"));
        assert_ne!(doctor(&murder.servers, user, &["--repair"]).code, 0);
        assert!(murder.servers.disarm(), "{point:?} is not passed");
        // His clients are served from here on; the folder that he has made is on be2 still.
        assert!(murder.named(user).contains("be1"));
    }
    println!("{}", repair(&murder.servers, user, &[]).stderr);
    assert_eq!(murder.named(user), BTreeSet::from(["be1".to_owned()]));
    assert_whole(&before, &fingerprint(&murder.servers.source, user, &[]), &came, &[]);
    murder.assert_served(user, &before);
    murder.restart(true);
    is(&document(&murder.servers, user, 0), "well");
}

/// One mailbox of his was deleted before.
fn is_being_deleted(old: &Records, _: &Records) -> bool {
    old.contains_key("em") && old.get("ed").is_some_and(|deleted| *deleted > 1)
}

#[test]
#[ignore = "make matrix"]
fn everything_is_reserved_after_xfer_was_killed_in_the_final_sync() {
    locked_out("rsv", "stopped-switching", |old, new| {
        old.contains_key("em") && !old.contains_key("e") && !is_being_deleted(old, new)
    });
}

#[test]
#[ignore = "make matrix"]
fn everything_is_reserved_after_xfer_was_killed_in_the_deletion() {
    locked_out("rsd", "stopped-deleting", is_being_deleted);
}

/// The old backend's start takes what XFER had not deleted yet for its own again.
#[test]
#[ignore = "make matrix"]
fn a_part_is_in_use_twice_after_the_old_backend_was_started() {
    let (murder, before) = wreck("twc", is_being_deleted);
    murder.servers.source.restart_cyrus().unwrap();
    let copy = fingerprint(&murder.servers.target, "twc", &[]);
    let said = document(&murder.servers, "twc", 9);
    println!("{}", doctor(&murder.servers, "twc", &[]).expect(9).stdout);
    is(&said, "split");
    assert!(said["list"]["missing"].as_u64().unwrap() > 0, "{said:#}");
    println!("{}", repair(&murder.servers, "twc", &[]).says(&["be2 has him whole"]).stderr);
    assert_eq!(murder.named("twc"), BTreeSet::from(["be2".to_owned()]));
    let after = fingerprint(&murder.servers.target, "twc", &[]);
    assert_same(&copy, &after, &[]);
    assert!(before.messages().eq(after.messages()), "messages differ");
    murder.assert_served("twc", &before);
}

/// The new backend's start takes away what the list has on the old one, and claims the rest.
#[test]
#[ignore = "make matrix"]
fn a_user_is_split_after_both_backends_were_started() {
    let (murder, mut before) = wreck("splt", is_being_deleted);
    murder.restart(true);
    assert_eq!(murder.named("splt").len(), 2);
    // Frontends serve the parts, and mail comes into one of them.
    let began = Instant::now();
    while lab::lmtp::deliver(&murder.frontend, "splt", &letter("parts")).accepted().is_err() {
        assert!(began.elapsed() < Duration::from_secs(20), "nothing is delivered");
        std::thread::sleep(Duration::from_millis(200));
    }
    let said = document(&murder.servers, "splt", 9);
    let text = doctor(&murder.servers, "splt", &[]).expect(9);
    println!("{}", text.stdout);
    is(&said, "split");
    text.says(&["in use here and there", "records on be1 live again"]);
    println!("{}", repair(&murder.servers, "splt", &[]).stderr);
    assert_eq!(murder.named("splt"), BTreeSet::from(["be1".to_owned()]));
    let after = fingerprint(&murder.servers.source, "splt", &[]);
    // A backend that starts deletes for good what delayed delete keeps, and forgets when
    // what it has made its own again was made.
    before.admin.retain(|name, _| !name.starts_with("DELETED."));
    let made = "/shared/vendor/cmu/cyrus-imapd/foldermodseq";
    assert_whole(&before, &after, &came(&[("INBOX", "parts")]), &[made]);
    murder.assert_served("splt", &before);
    murder.restart(false);
    is(&document(&murder.servers, "splt", 0), "well");
}

#[test]
fn a_list_that_is_wrong_is_made_right_and_what_no_server_has_is_forgotten() {
    let murder = Murder::fresh();
    let servers = &murder.servers;
    servers.accounts(&["top"]);
    murder.frontend.add_users(&["top"]).unwrap();
    let mut admin = servers.source.admin().unwrap();
    // As XFER of 2.x made a user, and died before it told the master.
    admin.command("LOCALCREATE user.top").unwrap();
    let mut imap = servers.source.imap("top").unwrap();
    for folder in ["a", "b"] {
        imap.command(format!("CREATE INBOX.{folder}")).unwrap();
    }
    admin.command("SETACL user.top.b cyrus lrswipkxtecda").unwrap();
    admin.command("LOCALDELETE user.top.b").unwrap();
    let before = fingerprint(&servers.source, "top", &[]);
    assert!(!murder.opens("top", &["INBOX"]));

    let said = document(servers, "top", 9);
    is(&said, "list-wrong");
    let counts = ["reserved", "missing", "elsewhere", "stale"].map(|c| said["list"][c].as_u64());
    assert_eq!(counts, [0, 1, 0, 1].map(Some), "{said:#}");
    let all = servers.mbcopy(&["doctor", "--all", "be2"]).expect(9);
    all.says(&["user.top: list-wrong", "1 users with whom something is wrong"]);
    servers.mbcopy(&["doctor", "user.top", "--repair"]).expect(4).says(&["name the other one"]);
    repair(servers, "top", &[]).says(&["has forgotten 1 mailboxes", "be1 has him whole"]);
    assert_same(&before, &fingerprint(&servers.source, "top", &[]), &[]);
    assert_eq!(murder.named("top"), BTreeSet::from(["be1".to_owned()]));
    murder.assert_served("top", &before);
    servers.mbcopy(&["doctor", "--all", "be2"]).expect(0);

    // Nothing of a user is left, but the list does not know it.
    admin.command("CREATE user.gone").unwrap();
    admin.command("SETACL user.gone cyrus lrswipkxtecda").unwrap();
    admin.command("LOCALDELETE user.gone").unwrap();
    println!("{}", doctor(servers, "gone", &[]).expect(9).stdout);
    is(&document(servers, "gone", 9), "list-stale");
    let made = servers.target.admin().unwrap().attempt("CREATE user.gone").unwrap();
    assert!(!made.tagged.is_ok(), "{made:?}");
    doctor(servers, "gone", &["--repair"]).expect(0).says(&["nothing names him any more"]);
    is(&document(servers, "gone", 9), "nobody");
    admin.command("CREATE user.gone").unwrap();

    // What the list says is not known: then nothing is judged, and nothing done.
    let port = |from: &str, to: &str| {
        let script = format!("s/^mupdate_port: {from}/mupdate_port: {to}/");
        servers.source.run(&["sed", "-i", &script, "/etc/imapd.conf"]).unwrap();
    };
    port("3905", "9");
    let said = doctor(servers, "top", &["--repair"]).expect(4);
    said.says(&["what the mupdate master says is not known", "cannot be reached"]);
    servers.mbcopy(&["doctor", "--all", "be2"]).expect(9).says(&["cannot be reached"]);
    port("9", "3905");
}
