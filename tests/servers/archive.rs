//! Messages on archive partitions.

use crate::support::{PutBack, Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::imap::NewMessage;
use lab::seed::Seed;
use std::collections::BTreeSet;

/// Options of a server that archives, to partitions below `/var/spool/cyrus`.
pub const ARCHIVES: &[(&str, &str)] = &[
    ("archive_enabled", "yes"),
    ("archive_after", "1d"),
    ("archive_maxsize", "20"),
    ("archivepartition-default", "/var/spool/cyrus/archive"),
    ("archivepartition-p2", "/var/spool/cyrus/archive-p2"),
];

fn servers(source: &str, target: &str, archives: [bool; 2]) -> (Servers, PutBack) {
    let options = archives.map(|archives| if archives { ARCHIVES } else { &[] });
    let (servers, put_back) = Servers::with_options((source, options[0]), (target, options[1]));
    for (host, archives) in servers.both().into_iter().zip(archives) {
        for directory in ["archive", "archive-p2"].into_iter().filter(|_| archives) {
            let path = format!("/var/spool/cyrus/{directory}");
            host.run_as_cyrus(&["mkdir", "-p", &path]).unwrap();
        }
    }
    (servers, put_back)
}

/// How many messages lie in the archive, and how many in the spool alone: Cyrus may leave
/// a copy there for a while.
fn counts(host: &Host) -> [usize; 2] {
    let [archived, ordinary] = ["archive", "mail"].map(|directory| {
        let find = format!(
            "cd /var/spool/cyrus/{directory} 2>/dev/null && find . -name .mbcopy -prune -o \
             -name '[0-9]*.' -print || true"
        );
        let found = host.run(&["sh", "-c", &find]).unwrap();
        found.lines().map(str::to_owned).collect::<BTreeSet<String>>()
    });
    [archived.len(), ordinary.difference(&archived).count()]
}

/// Archives what is old or large, as each night.
fn archive(host: &Host) {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/cyr_expire", "-A", "1d"]).unwrap();
}

/// The server's own Cyrus finds nothing to mend, not even by parsing all messages.
#[track_caller]
fn accepted(host: &Host, user: &str) {
    for options in [&["-n", "-q", "-u", user][..], &["-n", "-q", "-G", "-u", user]] {
        let command = [&["/usr/lib/cyrus/bin/reconstruct"], options].concat();
        let output = host.exec_as_cyrus(&command).unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let harmless = ["mismatch: sentdate", "mismatch: gmtime"];
        let odd = said.lines().filter(|line| !harmless.iter().any(|text| line.contains(text)));
        assert_eq!(odd.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}

/// Clients ask for what the server knows from its caches.
fn read_all(host: &Host, user: &str) {
    let mut imap = host.imap(user).unwrap();
    for folder in ["INBOX", "INBOX.Sent"] {
        imap.command(format!("EXAMINE {folder}")).unwrap();
        imap.command("UID FETCH 1:* (ENVELOPE BODYSTRUCTURE BODY.PEEK[1])").unwrap();
    }
    imap.logout();
}

fn large(subject: &str) -> NewMessage {
    let mut text = format!("From: a@example.org\r\nSubject: {subject}\r\n\r\n").into_bytes();
    text.extend(b"0123456789 0123456789 0123456789 0123456789\r\n".repeat(1000));
    NewMessage { bytes: text, ..NewMessage::default() }
}

fn there_and_back(source: &str, target: &str, archives: [bool; 2], rich: bool) {
    let (servers, _put_back) = servers(source, target, archives);
    servers.accounts(&["arch", "pal"]);
    match rich {
        true => drop(Seed::new(&servers.source, "arch").rich("pal", 120).unwrap()),
        false => drop(Seed::new(&servers.source, "arch").small().unwrap()),
    }
    servers.source.imap("arch").unwrap().append("INBOX", &[large("large")]).unwrap();
    archive(&servers.source);
    // Some have come since.
    servers.source.imap("arch").unwrap().append("INBOX", &[large("new")]).unwrap();
    let [archived, ordinary] = counts(&servers.source);
    assert_eq!(archived > 20, archives[0], "{archived} archived, {ordinary} not");

    let before = fingerprint(&servers.source, "arch", &[]);
    // One that is archived after it was copied.
    servers.push("user.arch", &["--copy-only"]).expect(0);
    archive(&servers.source);
    servers.push("user.arch", &[]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "arch", &[]), &[]);
    accepted(&servers.target, "arch");
    read_all(&servers.target, "arch");
    // What stays is his friend's.
    let (there, left) = (counts(&servers.target), counts(&servers.source));
    assert!(left.iter().sum::<usize>() <= if rich { 20 } else { 0 }, "{left:?} are left");
    let all: usize = there.iter().chain(&left).sum();
    assert_eq!(all, archived + ordinary);
    assert_eq!(there[0], if archives[1] { archived - left[0] } else { 0 });

    archive(&servers.target);
    servers.target.imap("arch").unwrap().append("INBOX", &[large("newer")]).unwrap();
    let moved = fingerprint(&servers.target, "arch", &[]);
    servers.mbcopy(&["reverse", "user.arch"]).expect(0);
    assert_same(&moved, &fingerprint(&servers.source, "arch", &[]), &[]);
    accepted(&servers.source, "arch");
    read_all(&servers.source, "arch");
    archive(&servers.source);
    accepted(&servers.source, "arch");
    assert_same(&moved, &fingerprint(&servers.source, "arch", &[]), &[]);
    servers.mbcopy(&["purge", "--older-than", "0d"]);
}

#[test]
fn archived_messages_go_to_the_archive() {
    there_and_back("bw1", "bw2", [true, true], false);
}

#[test]
#[ignore = "long: for `make matrix`"]
fn archived_messages_of_all_kinds_go_to_the_archive() {
    there_and_back("bw1", "bw2", [true, true], true);
}

#[test]
#[ignore = "long: for `make matrix`"]
fn archived_messages_go_where_there_is_no_archive() {
    there_and_back("bw1", "bw2", [true, false], true);
}

#[test]
#[ignore = "long: for `make matrix`"]
fn messages_go_to_a_server_that_archives() {
    there_and_back("bw1", "bw2", [false, true], true);
}
