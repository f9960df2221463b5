//! `mbcopy inspect` on a server that runs.

use crate::support::{Servers, assert_same, fingerprint};
use lab::seed::Seed;
use serde_json::Value;

#[test]
fn a_running_server_is_shown_as_its_clients_see_it() {
    let servers = Servers::fresh();
    servers.accounts(&["open", "other"]);
    Seed::new(&servers.source, "open").rich("other", 60).unwrap();
    let before = fingerprint(&servers.source, "open", &["other"]);

    let shown = servers.mbcopy(&["inspect", "user.open", "--json"]).expect(0);
    assert_eq!(shown.stderr, "");
    let documents: Vec<Value> =
        shown.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |event: &str| documents.iter().filter(|d| d["event"] == event).collect::<Vec<_>>();
    let live = |index: &Value| {
        let records = index["records"].as_array().unwrap().iter();
        records.filter(|r| r.get("internal_flags").is_none()).count()
    };
    let own = |name: &&&Value| {
        let name = name["record"]["name"].as_str().unwrap();
        name.starts_with("user.open") && !name.ends_with(".#sieve")
    };
    let mailboxes = of("mailbox");
    let messages = mailboxes.iter().filter(own).filter_map(|mailbox| {
        let files = mailbox["files"].as_array().unwrap().iter();
        Some(live(files.into_iter().find(|f| f["kind"] == "index")?))
    });
    assert_eq!(messages.sum::<usize>(), before.messages().count());
    let file = |kind: &str| of("file").into_iter().find(|d| d["kind"] == kind).unwrap();
    assert!(!file("subscriptions")["names"].as_array().unwrap().is_empty());
    assert!(file("quota")["roots"][0]["resources"].as_array().unwrap().len() >= 2);
    assert!(!of("part")[0]["records"].as_array().unwrap().is_empty(), "no annotations");

    // Files of it, by path, and what is no mailbox.
    let list = "/var/lib/cyrus/mailboxes.db";
    servers.mbcopy(&["inspect", list, "--all"]).expect(0).says(&["list of mailboxes, twoskip"]);
    let inbox = ["/usr/lib/cyrus/bin/mbpath", "user.open"];
    let inbox = servers.source.run_as_cyrus(&inbox).unwrap();
    let said = servers.mbcopy(&["inspect", inbox.trim()]).expect(0);
    said.says(&["version 17 (3.4 to 3.8)", "mailbox header, dlist form"]);
    servers.mbcopy(&["inspect", "user.nobody"]).expect(1).says(&["no such mailbox"]);
    assert_same(&before, &fingerprint(&servers.source, "open", &["other"]), &[]);
}
