//! The disk of an old server on which nothing runs ends as a whole user on 3.6.

use crate::support::Servers;
use serde_json::Value;
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
        let number = |field: &str| match &inbox[field] {
            Value::String(text) => text.parse().unwrap(),
            other => other.as_u64().unwrap(),
        };
        let expected = inbox["messages"]
            .as_object()
            .map_or_else(|| inbox["messages"].as_array().unwrap().len(), serde_json::Map::len);
        let mut imap = servers.target.imap("legacy").unwrap();
        let reply = imap.command("SELECT INBOX").unwrap();
        assert_eq!(reply.note("UIDVALIDITY"), Some(number("uidvalidity").to_string().as_str()));
        assert_eq!(reply.note("UIDNEXT"), Some(number("uidnext").to_string().as_str()), "{name}");
        let fetched = imap.command("UID FETCH 1:* (FLAGS)").unwrap();
        assert_eq!(fetched.numbered("FETCH").count(), expected, "{name}");
    }
}
