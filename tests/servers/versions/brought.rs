//! One program runs on every release's Debian, and is brought to a server that has none.

use super::{RELEASES, V3_2, V3_6, servers};
use crate::support::{assert_same, fingerprint, portable_program};
use lab::host::Host;
use lab::seed::Seed;

/// Where it is brought to.
const THERE: &str = "/opt/mbcopy";

#[test]
#[ignore = "builds the program anew: make versions"]
fn the_static_program_starts_on_every_server() {
    for release in RELEASES {
        let host = Host::new(release.hosts[0]);
        host.up().unwrap();
        host.install(portable_program(), THERE).unwrap();
        let said = host.run(&[THERE, "--version"]).unwrap();
        assert_eq!(said.trim(), format!("mbcopy {}", env!("CARGO_PKG_VERSION")));
        host.run(&["rm", "-f", THERE]).unwrap();
    }
}

#[test]
#[ignore = "builds the program anew: make versions"]
fn a_program_is_brought_to_a_server_that_has_none() {
    let servers = servers(V3_6, V3_2);
    servers.accounts(&["bring"]);
    Seed::new(&servers.source, "bring").small().unwrap();
    servers.source.install(portable_program(), "/root/static").unwrap();
    servers.target.run(&["rm", "-rf", THERE]).unwrap();
    let there = ["--remote-program", THERE];
    servers.push("user.bring", &there).expect(1).says(&["--upload"]);
    let bring = |file: &'static str| [&there[..], &["--upload", file, "--dry-run"]].concat();
    servers.push("user.bring", &bring("/root/static")).expect(0);
    let brought = servers.target.run(&["stat", "-c", "%a %i", THERE]).unwrap();
    assert!(brought.starts_with("755 "), "{brought}");
    // It is there: nothing is brought again.
    let mut before = fingerprint(&servers.source, "bring", &[]);
    servers.push("user.bring", &bring("/root/static")[..4]).expect(0);
    assert_eq!(servers.target.run(&["stat", "-c", "%a %i", THERE]).unwrap(), brought);
    let known = ["mailbox_id", "quota", "/private/vendor/cmu/cyrus-imapd/usercounters"];
    before.own.mailboxes.remove("INBOX.#sieve");
    before.admin.retain(|name, _| !name.ends_with("#sieve"));
    fingerprint(&servers.target, "bring", &[]);
    assert_same(&before, &fingerprint(&servers.target, "bring", &[]), &known);
    servers.target.run(&["rm", "-f", THERE]).unwrap();
}
