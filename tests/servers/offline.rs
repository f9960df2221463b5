//! The disk of an old server on which nothing runs ends as a whole user on 3.6.

use crate::support::{Servers, fingerprint};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Archives of old servers, by the version that wrote them.
const SPOOLS: [&str; 7] = [
    "cyrus-2.2.13",
    "cyrus-2.3.1-rich",
    "cyrus-2.3.16",
    "cyrus-2.4.20",
    "cyrus-2.5.17-rich",
    "cyrus-3.0.18-rich",
    "cyrus-3.4.9-rich",
];

/// Inode, size, times and mode of every file of the disk.
const STAT: &str = "find /old-disk -printf '%p %i %s %T@ %C@ %m\\n' | sort";

#[test]
fn old_disks_are_moved_and_not_touched() {
    let servers = Servers::fresh();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spools");
    for name in SPOOLS {
        servers.target.empty().unwrap();
        servers.target.add_users(&["legacy"]).unwrap();
        let archive = fixtures.join(format!("{name}.tar.gz"));
        servers.source.install(&archive, "/root/old.tar.gz").unwrap();
        let unpack = "rm -rf /old-disk; mkdir -p /old-disk/old; \
                      tar xzf /root/old.tar.gz -C /old-disk/old";
        servers.source.run(&["sh", "-c", unpack]).unwrap();
        let before = servers.source.run(&["sh", "-c", STAT]).unwrap();
        let disk = ["--source-conf", "/old-disk/old/imapd.conf", "--source-root", "/old-disk"];
        servers.push("user.legacy", &disk).expect(0).says(&["nothing is written to it"]);
        assert_eq!(servers.source.run(&["sh", "-c", STAT]).unwrap(), before, "{name}");

        let seen_by = std::fs::read(fixtures.join(format!("{name}.json"))).unwrap();
        let seen_by: Value = serde_json::from_slice(&seen_by).unwrap();
        let users = seen_by.get("users").unwrap_or(&seen_by);
        let inbox = &users["legacy"]["mailboxes"]["INBOX"];
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Array(words) => {
                words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
            }
            other => other.to_string(),
        };
        let print = fingerprint(&servers.target, "legacy", &[]);
        let found = &print.own.mailboxes["INBOX"];
        assert_eq!(found.status["UIDVALIDITY"], text(&inbox["uidvalidity"]), "{name}");
        assert_eq!(found.status["UIDNEXT"], text(&inbox["uidnext"]), "{name}");
        let wanted: BTreeMap<u32, &Value> = match &inbox["messages"] {
            Value::Array(list) => {
                list.iter().map(|m| (m["uid"].as_u64().unwrap() as u32, m)).collect()
            }
            map => {
                map.as_object().unwrap().iter().map(|(uid, m)| (uid.parse().unwrap(), m)).collect()
            }
        };
        assert!(found.messages.keys().eq(wanted.keys()), "{name}: other UIDs");
        for (uid, wanted) in wanted {
            let is = &found.messages[&uid];
            let flags: BTreeSet<String> = text(&wanted["flags"])
                .split_whitespace()
                .filter(|flag| *flag != "\\Recent")
                .map(str::to_owned)
                .collect();
            assert_eq!(is.flags, flags, "{name}: the flags of {uid}");
            assert_eq!(is.sha1, text(&wanted["sha1"]), "{name}: the bytes of {uid}");
            let date =
                if wanted["date"].is_null() { &wanted["internaldate"] } else { &wanted["date"] };
            assert_eq!(seconds(&is.date), seconds(&text(date)), "{name}: the date of {uid}");
        }
    }
}

/// An INTERNALDATE, in seconds since 1970.
fn seconds(date: &str) -> i64 {
    let date = date.trim_matches(['"', ' ']);
    jiff::fmt::strtime::parse("%d-%b-%Y %H:%M:%S %z", date)
        .and_then(|parsed| parsed.to_timestamp())
        .unwrap_or_else(|e| panic!("{date}: {e}"))
        .as_second()
}
