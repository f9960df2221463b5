//! What is set otherwise than usual, between two releases.

use super::{Release, V3_2, V3_6, V3_12, ask_for_parts, assert_same, complaints, look, named};
use crate::archive::ARCHIVES;
use crate::support::Servers;
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::seed::Seed;

/// Conversations and reverse ACLs are kept by one of two releases, or by both.
fn with_lists(from: Release, to: Release, on: [bool; 2]) {
    let options: &[(&str, &str)] = &[("conversations", "yes"), ("reverseacls", "yes")];
    let [source, target] = on.map(|on| if on { options } else { &[] });
    let hosts = (from.hosts[0], to.hosts[0]);
    let (servers, _put_back) = Servers::with_options((hosts.0, source), (hosts.1, target));
    servers.accounts(&["list", "pal"]);
    let seeded = Seed::new(&servers.source, "list").rich("pal", 80).unwrap();
    assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
    let mut known = vec!["conversations"];
    let told = |report: serde_json::Value, names: &[&str]| {
        let told = report["differences"].as_array().unwrap().contains(&"conversations".into());
        assert_eq!(told, on[0] != on[1], "{report}");
        for name in names {
            assert!(report["differences"].as_array().unwrap().contains(&(*name).into()), "{name}");
        }
    };
    known.extend(named(from, to));
    let before = look(&servers.source, from, "list");
    let report = servers.push("user.list", &["--json"]).expect(0).report().unwrap();
    told(report, &named(from, to));
    let there = look(&servers.target, to, "list");
    assert_same(&before, &there, &known);
    assert_eq!(complaints(&servers.target, "list"), "");
    in_order(&servers.target, on[1]);
    // Messages that belong to conversations now have changed.
    let there = look(&servers.target, to, "list");
    let report = servers.mbcopy(&["reverse", "user.list", "--json"]).expect(0).report().unwrap();
    told(report, &named(to, from));
    let known = [&["conversations"][..], &named(to, from)].concat();
    assert_same(&there, &look(&servers.source, from, "list"), &known);
    assert_eq!(complaints(&servers.source, "list"), "");
    in_order(&servers.source, on[0]);
}

/// A server that keeps conversations finds those of the user right, when it has looked.
#[track_caller]
fn in_order(host: &Host, keeps: bool) {
    if !keeps {
        return;
    }
    let program = "/usr/lib/cyrus/bin/ctl_conversationsdb";
    host.run_as_cyrus(&["sh", "-c", &format!("{program} -b list && {program} -R list")]).unwrap();
    let said = host.run_as_cyrus(&["sh", "-c", &format!("{program} -A list 2>&1")]).unwrap();
    assert!(!said.contains("BROKEN"), "{said}");
}

/// Archives what is old or large, as each night; how many messages lie in the archive.
fn archive(host: &Host) -> u32 {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/cyr_expire", "-A", "1d"]).unwrap();
    let count = "find /var/spool/cyrus/archive -name .mbcopy -prune -o -name '[0-9]*.' \
                 -print | wc -l";
    host.run(&["sh", "-c", count]).unwrap().trim().parse().unwrap()
}

/// Archived messages, between two releases of which both archive, or one.
fn with_archives(from: Release, to: Release, archives: [bool; 2]) {
    println!("{} to {}, {archives:?}", from.version, to.version);
    let [source, target] = archives.map(|archives| if archives { ARCHIVES } else { &[] });
    let hosts = (from.hosts[0], to.hosts[0]);
    let (servers, _put_back) = Servers::with_options((hosts.0, source), (hosts.1, target));
    for host in servers.both() {
        let make = "mkdir -p /var/spool/cyrus/archive /var/spool/cyrus/archive-p2";
        host.run_as_cyrus(&["sh", "-c", make]).unwrap();
    }
    servers.accounts(&["arch", "pal"]);
    Seed::new(&servers.source, "arch").rich("pal", 80).unwrap();
    assert_eq!(archive(&servers.source) > 20, archives[0]);
    let before = look(&servers.source, from, "arch");
    servers.push("user.arch", &[]).expect(0);
    let there = look(&servers.target, to, "arch");
    let shown = |print: &Fingerprint| {
        if archives[0] == archives[1] { print.clone() } else { unquoted(print) }
    };
    assert_same(&shown(&before), &shown(&there), &named(from, to));
    assert_eq!(complaints(&servers.target, "arch"), "");
    ask_for_parts(&servers.target, "arch");
    assert_eq!(archive(&servers.target) > 20, archives[1]);
    // Scripts that came as files have become messages since.
    assert_same(&there, &look(&servers.target, to, "arch"), &named(from, to));
    servers.mbcopy(&["reverse", "user.arch"]).expect(0);
    let home = look(&servers.source, from, "arch");
    assert_same(&shown(&there), &shown(&home), &named(to, from));
    assert_eq!(complaints(&servers.source, "arch"), "");
    ask_for_parts(&servers.source, "arch");
}

/// `unexpunge -l` tells what is cached of a message: 3.12 puts names into quotation marks
/// where it has parsed the message itself, as it does where one leaves the archive.
fn unquoted(print: &Fingerprint) -> Fingerprint {
    let mut print = print.clone();
    for text in print.delayed_expunged.values_mut().flat_map(|all| all.values_mut()) {
        text.retain(|c| c != '"');
    }
    print
}

#[test]
#[ignore = "long: make versions"]
fn archived_messages_between_releases() {
    for (from, to) in [(V3_6, V3_12), (V3_12, V3_6)] {
        with_archives(from, to, [true, true]);
    }
}

/// 3.2 finds an archive by name, too.
#[test]
#[ignore = "long: make versions"]
fn archived_messages_from_and_to_3_2() {
    with_archives(V3_2, V3_6, [true, true]);
    with_archives(V3_12, V3_2, [true, true]);
    with_archives(V3_2, V3_12, [true, false]);
}

#[test]
#[ignore = "long: make versions"]
fn conversations_and_reverse_acls_between_releases() {
    for (from, to) in [(V3_6, V3_12), (V3_12, V3_6)] {
        // The way back is of the other kind.
        for on in [[true, false], [true, true]] {
            println!("{} to {}, {on:?}", from.version, to.version);
            with_lists(from, to, on);
        }
    }
}

#[test]
#[ignore = "long: make versions"]
fn conversations_and_reverse_acls_from_and_to_3_2() {
    for (from, to) in [(V3_2, V3_6), (V3_12, V3_2)] {
        for on in [[true, false], [false, true], [true, true]] {
            println!("{} to {}, {on:?}", from.version, to.version);
            with_lists(from, to, on);
        }
    }
}
