//! The database engines of the two sides may differ.

use crate::support::{OptionsPutBack, Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::seed::Seed;

/// Has a stopped server use another engine for one of its databases.
fn convert(host: &Host, file: &str, option: &str, from: &str, to: &str) {
    let convert = format!(
        "cd /var/lib/cyrus && if [ -e {file} ]; then \
         /usr/lib/cyrus/bin/cvt_cyrusdb $PWD/{file} {from} $PWD/{file}.new {to} && \
         mv {file}.new {file}; fi"
    );
    host.stop_cyrus().unwrap();
    host.run_as_cyrus(&["sh", "-c", &convert]).unwrap();
    host.set_option(option, to).unwrap();
}

#[test]
fn a_user_moves_from_skiplist_and_flat_to_twoskip_and_back() {
    drop(OptionsPutBack);
    let servers = Servers::fresh();
    let _put_back = OptionsPutBack;
    servers.accounts(&["mixed", "plain"]);
    Seed::new(&servers.source, "mixed").rich("plain", 60).unwrap();
    let before = fingerprint(&servers.source, "mixed", &["plain"]);
    let others = fingerprint(&servers.source, "plain", &[]);

    convert(&servers.source, "mailboxes.db", "mboxlist_db", "twoskip", "skiplist");
    convert(&servers.source, "annotations.db", "annotation_db", "twoskip", "skiplist");
    servers.target.set_option("quota_db", "twoskip").unwrap();
    servers.push("user.mixed", &[]).expect(0);
    servers.mbcopy(&["verify", "user.mixed", "bw2", "--content"]).expect(0);
    let moved = fingerprint(&servers.target, "mixed", &[]);
    assert_same(
        &lab::fingerprint::Fingerprint { others: Default::default(), ..before },
        &moved,
        &[],
    );

    convert(&servers.source, "mailboxes.db", "mboxlist_db", "skiplist", "flat");
    servers.push("user.plain", &[]).expect(0);
    servers.mbcopy(&["verify", "user.plain", "bw2"]).expect(0);
    assert_same(&others, &fingerprint(&servers.target, "plain", &[]), &[]);

    // The other way round: quota records become files, twoskip becomes flat.
    let there = fingerprint(&servers.target, "mixed", &["plain"]);
    let back = Servers { source: Host::new("bw2"), target: Host::new("bw1") };
    back.target.empty().unwrap();
    back.push("user.mixed", &[]).expect(0);
    back.mbcopy(&["verify", "user.mixed", "bw1"]).expect(0);
    let again = fingerprint(&back.target, "mixed", &[]);
    assert_same(
        &lab::fingerprint::Fingerprint { others: Default::default(), ..there },
        &again,
        &[],
    );
}
