//! `mbcopy inspect` shows of each old server's disk what its clients saw, and leaves
//! the disk as it was.

use super::folders::{expected_flags, messages};
use super::server::{Server, internal, number};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

/// Unpacks a spool to `root/old`, where its imapd.conf says that it is.
fn unpack(name: &str, root: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spools");
    let archive = std::fs::File::open(archive.join(format!("{name}.tar.gz"))).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    archive.unpack(root.join("old")).unwrap();
}

fn inspect(root: &Path, arguments: &[&str]) -> Output {
    let conf = root.join("old/imapd.conf");
    Command::new(env!("CARGO_BIN_EXE_mbcopy"))
        .arg("inspect")
        .args(arguments)
        .arg("--source-conf")
        .arg(conf)
        .arg("--source-root")
        .arg(root)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn documents(output: &Output) -> Vec<Value> {
    let text = text(&output.stdout);
    let documents: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(documents.iter().all(|d| d["schema"] == 1));
    documents
}

/// Every path below a directory, with size and time of the last change.
fn state(root: &Path) -> BTreeMap<String, (u64, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        let stat = path.symlink_metadata().unwrap();
        let changed = stat.modified().unwrap();
        found.insert(path.display().to_string(), (stat.len(), changed));
        if stat.is_dir() {
            found.extend(state(&path));
        }
    }
    found
}

fn check(name: &str) {
    let root = tempfile::tempdir().unwrap();
    unpack(name, root.path());
    let before = state(root.path());
    let output = inspect(root.path(), &["user.legacy", "--json"]);
    let complaints = text(&output.stderr);
    let documents = documents(&output);
    let server = Server::open(name);
    let seen_by = &server.users["legacy"];
    let mut mailboxes = BTreeMap::new();
    for document in documents.iter().filter(|d| d["event"] == "mailbox") {
        mailboxes.insert(document["record"]["name"].as_str().unwrap().to_owned(), document);
    }
    let mut compared = 0;
    for (external, folder) in seen_by["mailboxes"].as_object().unwrap() {
        let name = internal("legacy", external, &seen_by["namespace"]);
        if folder.get("messages").is_none() || !name.starts_with("user.legacy") {
            continue;
        }
        let files = mailboxes[&name]["files"].as_array().unwrap();
        let index = files.iter().find(|f| f["kind"] == "index").unwrap();
        assert_eq!(number(&index["uidvalidity"]), number(&folder["uidvalidity"]), "{name}");
        let records = index["records"].as_array().unwrap().iter();
        let live = records.filter(|r| r.get("internal_flags").is_none());
        let live: BTreeMap<u64, &Value> = live.map(|r| (r["uid"].as_u64().unwrap(), r)).collect();
        let shown = messages(&folder["messages"]);
        assert_eq!(live.len(), shown.len(), "{name}");
        for (uid, message) in shown {
            let record = live[&u64::from(uid)];
            assert_eq!(record["size"], message["size"], "{name} {uid}");
            let mut flags = expected_flags(&message["flags"]);
            let mut is: BTreeSet<String> = serde_json::from_value(record["flags"].clone()).unwrap();
            // Up to 2.3 that is in the seen database.
            flags.remove("\\Seen");
            is.remove("\\Seen");
            assert_eq!(is, flags, "{name} {uid}");
            if let Some(guid) = record.get("guid") {
                assert_eq!(guid, &message["sha1"], "{name} {uid}");
            }
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared} messages");
    let has = |kind: &str| documents.iter().any(|d| d["kind"] == kind);
    assert!(has("subscriptions") && has("quota"), "{name}: {complaints}");
    assert_eq!(before, state(root.path()), "{name}: something was changed");

    // The same for people.
    let output = inspect(root.path(), &["user.legacy", "--all"]);
    let said = text(&output.stdout);
    assert!(said.contains("user.legacy") && said.contains("UIDVALIDITY"), "{said}");
}

#[test]
fn every_old_server_is_shown_as_its_clients_saw_it() {
    for name in [
        "cyrus-2.2.13",
        "cyrus-2.3.1-rich",
        "cyrus-2.3.16",
        "cyrus-2.4.20",
        "cyrus-2.5.17-rich",
        "cyrus-3.0.18-rich",
        "cyrus-3.4.9-rich",
    ] {
        check(name);
    }
}

#[test]
fn a_berkeley_database_is_named_with_the_way_to_convert_it() {
    let root = tempfile::tempdir().unwrap();
    unpack("cyrus-2.3.19-bdb-rich", root.path());
    let output = inspect(root.path(), &["user.legacy"]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("mailboxes.db") && said.contains("cvt_cyrusdb"), "{said}");
}

#[test]
fn bad_files_are_named_with_offset_and_reason() {
    let root = tempfile::tempdir().unwrap();
    unpack("cyrus-2.4.20", root.path());
    let inbox = root.path().join("old/spool/l/user/legacy");
    let inbox = if inbox.exists() { inbox } else { find(root.path(), "user/legacy/cyrus.index") };
    let index = inbox.join("cyrus.index");
    let show = |path: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mbcopy"));
        command.arg("inspect").arg(path).output().unwrap()
    };
    let good = show(&index);
    assert_eq!((good.status.code(), text(&good.stderr)), (Some(0), String::new()));
    assert!(text(&good.stdout).contains("index, version 12 (2.4)"), "{}", text(&good.stdout));
    let good = show(&inbox);
    assert!(text(&good.stdout).contains("mailbox header, text form"), "{}", text(&good.stdout));

    // One record is damaged: the others are shown.
    let mut bytes = std::fs::read(&index).unwrap();
    bytes[128 + 96 + 20] ^= 1;
    std::fs::write(&index, &bytes).unwrap();
    let bad = show(&index);
    assert_eq!(bad.status.code(), Some(1));
    let said = text(&bad.stderr);
    let wanted = format!("mbcopy: {}: offset 224: the checksum of the record", index.display());
    assert!(said.starts_with(&wanted), "{said}");
    assert!(text(&bad.stdout).contains("GUID"));

    bytes.truncate(150);
    std::fs::write(&index, &bytes).unwrap();
    let bad = show(&index);
    assert_eq!(bad.status.code(), Some(1));
    assert!(text(&bad.stderr).contains("offset 150: the file has 150 bytes and needs"));

    for (file, content, reason) in [
        ("hello", &b"hello"[..], "of no kind that is known"),
        ("cyrus.header", b"\xa1\x02\x8b\x0dX", "offset 4: the file does not begin as"),
        ("x.seen", b"id\t1 2 x\n", "record id: offset 4: the last UID is missing"),
    ] {
        let path = root.path().join(file);
        std::fs::write(&path, content).unwrap();
        let bad = show(&path);
        assert_eq!(bad.status.code(), Some(1), "{file}");
        let said = text(&bad.stderr);
        assert!(said.contains(reason) && said.contains(file), "{file}: {said}");
    }
    let nothing = show(Path::new("user.nobody"));
    assert_eq!(nothing.status.code(), Some(1));
}

/// The directory of the file whose path ends so.
fn find(root: &Path, end: &str) -> std::path::PathBuf {
    let all = state(root);
    let path = all.keys().find(|path| path.ends_with(end)).expect("the file is there");
    Path::new(path).parent().unwrap().to_owned()
}
