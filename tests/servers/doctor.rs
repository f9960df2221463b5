//! `mbcopy doctor`: wrecks made by the real XFER, named and put right.

use crate::support::{Pushed, Servers};
use lab::host::Host;
use lab::seed::{Seed, Size};
use serde_json::Value;
use std::time::Duration;

fn shell(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

fn directory(host: &Host, mailbox: &str) -> String {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", mailbox]).unwrap().trim().to_owned()
}

/// Servers with a user who has some folders.
fn with_user(user: &str) -> Servers {
    let servers = Servers::fresh();
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    servers
}

/// Servers with a user who has so many folders that XFER can be killed in between.
fn with_many_folders(user: &str) -> Servers {
    let servers = with_user(user);
    Seed::new(&servers.source, user).bulk(200, Size::Median(1000), 60).unwrap();
    servers
}

/// What XFER says besides its tagged answer, which is worth nothing; nothing when it dies.
fn xfer(servers: &Servers, user: &str) -> Vec<String> {
    let mut admin = servers.source.admin().unwrap();
    admin.set_patience(Duration::from_secs(60)).unwrap();
    let reply = admin.attempt(format!("XFER user.{user} {}", servers.target.name()));
    let notes = reply.map(|reply| reply.notes).unwrap_or_default();
    notes.iter().map(|note| format!("{} {}", if note.is_ok() { "OK" } else { "NO" }, note.text)).collect()
}

/// Kills the source's imapd some time after it has written a line to syslog.
fn xfer_killed(servers: &Servers, user: &str, line: &str, delay: f64) {
    let script = format!(
        "tail -n0 -F /var/log/messages | while read -r l; do case \"$l\" in *'{line}'*) \
         p=${{l#*imap[}}; p=${{p%%]*}}; sleep {delay}; kill -9 $p; exit;; esac; done"
    );
    let mut killer = servers.source.spawn(&["timeout", "60", "bash", "-c", &script]).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(xfer(servers, user), Vec::<String>::new(), "XFER was not killed");
    // It ends with the next line.
    shell(&servers.source, "logger ended");
    killer.wait().unwrap();
}

/// The mailboxes of a user by the type of their records.
fn records(host: &Host, user: &str) -> std::collections::BTreeMap<String, usize> {
    let text = host.run_as_cyrus(&["/usr/sbin/cyrus", "ctl_mboxlist", "-d"]).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let mut counts = std::collections::BTreeMap::new();
    for (name, record) in all.as_object().unwrap() {
        if name == &format!("user.{user}") || name.starts_with(&format!("user.{user}.")) {
            *counts.entry(record["mbtype"].as_str().unwrap_or("?").to_owned()).or_default() += 1;
        }
    }
    counts
}

fn doctor(servers: &Servers, user: &str, options: &[&str]) -> Pushed {
    let mailbox = format!("user.{user}");
    let arguments = ["doctor", &mailbox, servers.target.name()];
    servers.mbcopy(&[&arguments, options].concat())
}

/// The document that it prints.
fn document(servers: &Servers, user: &str, code: i32) -> Value {
    let said = doctor(servers, user, &["--json"]).expect(code);
    serde_json::from_str(said.last_line()).unwrap()
}

#[track_caller]
fn is(document: &Value, state: &str) {
    assert_eq!(document["state"], state, "{document:#}");
}

#[test]
fn wrecks_are_named() {
    // a
    let servers = with_user("a");
    let victim = format!("{}/1.", directory(&servers.source, "user.a.Sent"));
    shell(&servers.source, &format!("chmod 000 {victim}"));
    is(&document(&servers, "a", 0), "well");
    println!("{:?}", xfer(&servers, "a"));
    let said = doctor(&servers, "a", &[]).expect(9);
    println!("{}", said.stdout);
    is(&document(&servers, "a", 9), "partial-copy");
    // h
    servers.accounts(&["h"]);
    Seed::new(&servers.source, "h").small().unwrap();
    servers.arm("Copied kill");
    assert_ne!(servers.push("user.h", &[]).code, 0);
    servers.disarm();
    println!("{}", doctor(&servers, "h", &[]).expect(9).stdout);
    // e
    servers.accounts(&["e"]);
    Seed::new(&servers.source, "e").small().unwrap();
    println!("{:?}", xfer(&servers, "e"));
    println!("{:?} {:?}", records(&servers.source, "e"), records(&servers.target, "e"));
    println!("{}", doctor(&servers, "e", &[]).expect(9).stdout);
    // f
    servers.accounts(&["f"]);
    Seed::new(&servers.source, "f").small().unwrap();
    println!("{:?}", xfer(&servers, "f"));
    servers.source.set_option("autocreate_quota", "0").unwrap();
    servers.source.imap("f").unwrap().logout();
    servers.source.set_option("autocreate_quota", "-1").unwrap();
    println!("{:?} {:?}", records(&servers.source, "f"), records(&servers.target, "f"));
    println!("{}", doctor(&servers, "f", &[]).stdout);
    println!("{}", servers.mbcopy(&["doctor", "--all", "bw2"]).expect(9).stdout);
    println!("{}", servers.mbcopy(&["doctor", "user.nobody", "bw2"]).stdout);
}

#[test]
fn killed() {
    for (user, line, delay) in [
        ("b", "XFER: initial sync of user", 0.15),
        ("c", "XFER: final sync of user", 0.1),
        ("d", "XFER: deleting mailboxes on source", 0.05),
    ] {
        let servers = with_many_folders(user);
        xfer_killed(&servers, user, line, delay);
        println!("{:?} {:?}", records(&servers.source, user), records(&servers.target, user));
        println!("{}", doctor(&servers, user, &[]).expect(9).stdout);
    }
}
