//! Clocks that jump by a day, in both directions, in the middle of a move.
//!
//! mbcopy's processes on both servers see a clock of the test's own (libfaketime); Cyrus
//! and the kernel keep theirs.

use crate::failures::Pushing;
use crate::support::{Servers, assert_same, fingerprint, program};
use lab::chaos::Side;
use lab::host::Host;
use lab::seed::Seed;
use std::path::{Path, PathBuf};

/// Where Debian's libfaketime is on this machine.
const LIBRARY: &str = "usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// mbcopy, with the clock that `/run/clock` says. Only what the calendar says jumps, as
/// when an admin or a time server sets it.
const WRAPPER: &str = "#!/bin/sh\n\
    export LD_PRELOAD=/usr/local/lib/libfaketime.so.1 FAKETIME_TIMESTAMP_FILE=/run/clock \
    FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1\n\
    exec /usr/local/bin/mbcopy.real \"$@\"\n";

/// Servers on which mbcopy's clock can be set.
fn with_clocks(user: &str) -> Servers {
    let servers = Servers::fresh();
    servers.accounts(&[user]);
    servers.both().into_iter().for_each(make_settable);
    servers
}

/// Gives mbcopy on this host a clock that can be set.
pub(crate) fn make_settable(host: &Host) {
    let library = Path::new("/").join(LIBRARY);
    assert!(library.exists(), "{} is missing: make tools", library.display());
    host.install(&library, "/usr/local/lib/libfaketime.so.1").unwrap();
    host.install(program(), "/usr/local/bin/mbcopy.real").unwrap();
    let wrapper = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mbcopy-with-clock");
    std::fs::write(&wrapper, WRAPPER).unwrap();
    host.install(&wrapper, "/usr/local/bin/mbcopy").unwrap();
    set(host, "+0");
}

/// Sets it, so much later (`+1d`) or earlier than it is.
pub(crate) fn set(host: &Host, clock: &str) {
    host.run(&["sh", "-c", &format!("echo '{clock}' > /run/clock")]).unwrap();
}

#[test]
fn a_clock_that_jumps_harms_no_move() {
    let servers = with_clocks("clock");
    // It is really mbcopy's clock.
    set(&servers.source, "-3650d");
    Seed::new(&servers.source, "clock").small().unwrap();
    servers.push("user.clock", &["--copy-only"]).expect(0);
    let status = servers.mbcopy(&["status", "user.clock", "--json"]).expect(0).stdout;
    let known: serde_json::Value = serde_json::from_str(status.lines().last().unwrap()).unwrap();
    let year = servers.source.run(&["date", "+%Y"]).unwrap().trim().parse::<u32>().unwrap() - 10;
    assert!(known["since"].as_str().unwrap().starts_with(&year.to_string()), "{known}");
    servers.mbcopy(&["abort", "user.clock"]).expect(0);
    set(&servers.source, "+0");

    let jumps = [
        ("SourceAsked wait 5", "+1d", "-1d"),
        ("Copied wait", "-1d", "+1d"),
        ("Frozen wait", "+1d", "+1d"),
        ("Published wait", "-1d", "-1d"),
        ("Routed wait", "+1d", "-1d"),
    ];
    for (n, (fault, at_source, at_target)) in jumps.into_iter().enumerate() {
        let user = format!("clock{n}");
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let before = fingerprint(&servers.source, &user, &[]);
        let mailbox = format!("user.{user}");
        let pushing = Pushing::until(&servers, Side::Source, fault, &mailbox);
        set(&servers.source, at_source);
        set(&servers.target, at_target);
        pushing.go_on().expect(0);
        assert_same(&before, &fingerprint(&servers.target, &user, &[]), &[]);
        // And back again, over what is kept, with the clocks set right.
        set(&servers.source, "+0");
        set(&servers.target, "+0");
        servers.mbcopy(&["reverse", &mailbox, "--route-command", "true"]).expect(0);
        assert_same(&before, &fingerprint(&servers.source, &user, &[]), &[]);
    }
}
