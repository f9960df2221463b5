//! Reads spools that real servers of old versions wrote, and compares what the
//! parsers see with what IMAP clients of those servers saw.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use mbcopy::cyrus::annotation::{AnnotationKey, AnnotationValue, Scope};
use mbcopy::cyrus::db::{Database, Engine};
use mbcopy::cyrus::guid::Guid;
use mbcopy::cyrus::header::MailboxHeader;
use mbcopy::cyrus::index::{IndexView, Record, compare, system, write_index};
use mbcopy::cyrus::quota::Quota;
use mbcopy::cyrus::seen::Seen;
use mbcopy::cyrus::subscription::Subscriptions;
use serde_json::Value;

/// What was compared; all of it is asserted, so that nothing passes for want of data.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Minor version of all indexes.
    minor: u32,
    /// Indexes and headers read.
    indexes: usize,
    /// Records in them.
    records: usize,
    /// Records of expunged messages in them.
    expunged: usize,
    /// Records in cyrus.expunge files.
    expunge_files: usize,
    /// Indexes written again, to the same bytes.
    written: usize,
    /// Folders as one user saw them.
    views: usize,
    /// Messages in those.
    messages: usize,
    /// \Seen flags on those.
    seen: usize,
    /// Keywords on those.
    keywords: usize,
    /// Modification sequences of those.
    modseqs: usize,
    /// Records with a GUID.
    guids: usize,
    /// Values in seen databases.
    seen_records: usize,
    /// Subscriptions of users whose list was compared.
    subscriptions: usize,
    /// Quota roots.
    quotas: usize,
    /// Annotations of mailboxes.
    annotations: usize,
    /// Annotations of messages.
    message_annotations: usize,
}

/// A server's files, by path below `/old`.
struct Server {
    files: BTreeMap<String, Bytes>,
    /// Users, with what their clients saw.
    users: serde_json::Map<String, Value>,
}

/// A mailbox's directory.
struct Mailbox<'a> {
    view: IndexView<'a>,
    header: MailboxHeader,
    directory: &'a str,
}

impl Server {
    fn open(name: &str) -> Self {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spools");
        let archive = std::fs::File::open(base.join(format!("{name}.tar.gz"))).unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
        let mut files = BTreeMap::<String, Bytes>::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let plain = |path: &Path| {
                let path = path.to_str().unwrap();
                path.trim_start_matches("./").to_owned()
            };
            let path = plain(&entry.path().unwrap());
            let kind = entry.header().entry_type();
            if kind.is_hard_link() {
                // A message that was delivered to several folders.
                let first = plain(&entry.link_name().unwrap().unwrap());
                let bytes = files[&first].clone();
                files.insert(path, bytes);
            } else if kind.is_file() {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                files.insert(path, Bytes::from(bytes));
            }
        }
        let json = std::fs::read(base.join(format!("{name}.json"))).unwrap();
        let json: Value = serde_json::from_slice(&json).unwrap();
        let users = json.get("users").unwrap_or(&json).as_object().unwrap().clone();
        Self { files, users }
    }

    fn option(&self, name: &str) -> Option<String> {
        let conf = String::from_utf8(self.files["imapd.conf"].to_vec()).unwrap();
        let mut lines = conf.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| *key == name);
        found.map(|(_, value)| value.trim_start_matches("/old/").to_owned())
    }

    /// Internal names and directories of all mailboxes.
    fn directories(&self) -> BTreeMap<String, &str> {
        let root = self.option("partition-default").unwrap() + "/";
        let hashed = self.option("hashimapspool").as_deref() == Some("yes");
        let paths = self.files.keys().filter_map(|path| path.strip_suffix("/cyrus.index"));
        paths
            .map(|directory| {
                let below = directory.strip_prefix(&root).unwrap();
                let name = if hashed { &below[2..] } else { below };
                (name.replace('/', "."), directory)
            })
            .collect()
    }

    fn file(&self, directory: &str, name: &str) -> Option<&Bytes> {
        self.files.get(&format!("{directory}/{name}"))
    }

    /// The only file of a name, in which `.` may be `^`.
    fn user_file(&self, name: &str, suffix: &str) -> Option<&Bytes> {
        let names = [format!("/{name}{suffix}"), format!("/{}{suffix}", name.replace('.', "^"))];
        let mut found = self.files.iter().filter(|(p, _)| names.iter().any(|n| p.ends_with(n)));
        found.next().map(|(_, bytes)| bytes)
    }

    fn seen(&self, user: &str) -> BTreeMap<Bytes, Seen> {
        let Some(file) = self.user_file(user, ".seen") else {
            return BTreeMap::new();
        };
        let db = Database::open(file.clone(), &Engine::Flat).unwrap();
        let entries = db.entries().unwrap().into_iter();
        entries
            .map(|(key, value)| {
                let seen = Seen::parse(&value).unwrap();
                // Not always the same bytes: 2.3 wrote `1,5,6:7`.
                assert_eq!(Seen::parse(&seen.to_bytes()).unwrap(), seen);
                (key, seen)
            })
            .collect()
    }
}

/// An external name as a user saw it, to the internal one.
fn internal(user: &str, name: &str, namespace: &Value) -> String {
    let part = |n: usize| namespace[n][0][0].as_str();
    let dotted = user.replace('.', "^");
    let prefix = part(0).unwrap_or("INBOX.");
    let separator = namespace[0][0][1].as_str().unwrap_or(".");
    let flat = |name: &str| match separator {
        "/" => name.replace('.', "^").replace('/', "."),
        _ => name.to_owned(),
    };
    if name == "INBOX" {
        return format!("user.{dotted}");
    }
    let others = part(1).unwrap_or("user.");
    if let Some(rest) = name.strip_prefix(others) {
        return format!("user.{}", flat(rest));
    }
    let shared = part(2).unwrap_or("");
    if !shared.is_empty() && name.starts_with(shared) {
        return flat(&name[shared.len()..]);
    }
    match name.strip_prefix(prefix) {
        Some(rest) => format!("user.{dotted}.{}", flat(rest)),
        None => flat(name),
    }
}

fn number(value: &Value) -> u64 {
    let text = value.as_str().map(|text| text.parse().unwrap());
    text.or(value.as_u64()).unwrap()
}

fn bytes(text: Option<&[u8]>) -> String {
    String::from_utf8(text.unwrap_or_default().to_vec()).unwrap()
}

/// Reads all indexes and headers, and checks what needs no client.
fn read_all(server: &Server, counts: &mut Counts) {
    for directory in server.directories().values() {
        let raw = server.file(directory, "cyrus.index").unwrap();
        let view = IndexView::parse(raw).unwrap();
        let header_file = server.file(directory, "cyrus.header").unwrap();
        let fits = view.header_file_fits(header_file);
        assert_eq!(fits, (view.header().minor >= 12).then_some(true), "{directory}");
        let records: Vec<Record> = view.records().map(|r| r.unwrap()).collect();
        assert!(counts.minor == 0 || counts.minor == view.header().minor);
        counts.minor = view.header().minor;
        counts.indexes += 1;
        counts.records += records.len();
        let live = records.iter().filter(|r| !r.is_expunged()).count();
        assert_eq!(live, view.header().exists as usize);
        assert_eq!(view.live().count(), live);
        counts.expunged += records.len() - live;
        for record in &records {
            check_file(server, directory, record, counts);
            assert!(record.uid <= view.header().last_uid);
            assert!(record.modseq <= view.header().highestmodseq);
            assert_eq!(view.find(record.uid).unwrap().as_ref(), Some(record));
        }
        if view.header().minor >= 12 {
            let again = write_index(view.header().minor, view.header(), records.clone());
            assert_eq!(again.unwrap(), *raw, "{directory}");
            counts.written += 1;
            for minor in view.header().minor..=20 {
                let other = write_index(minor, view.header(), records.clone()).unwrap();
                assert_eq!(compare(&view, &IndexView::parse(&other).unwrap()), []);
            }
        }
        let header = MailboxHeader::parse(header_file).unwrap();
        assert_eq!(header.to_bytes(), *header_file, "{directory}");
        let Some(raw) = server.file(directory, "cyrus.expunge") else {
            continue;
        };
        let expunge = IndexView::parse_expunge(raw).unwrap();
        for record in expunge.records() {
            let record = record.unwrap();
            assert_ne!(record.system_flags & system::DELETED, 0);
            assert_eq!(view.find(record.uid).unwrap(), None);
            check_file(server, directory, &record, counts);
            counts.expunge_files += 1;
        }
    }
}

fn check_file(server: &Server, directory: &str, record: &Record, counts: &mut Counts) {
    let Some(message) = server.file(directory, &record.file_name()) else {
        assert!(record.is_unlinked(), "{directory} {}", record.uid);
        return;
    };
    assert_eq!(record.size, message.len() as u64);
    if let Some(guid) = record.guid {
        assert_eq!(guid, Guid::of(message));
        counts.guids += 1;
    }
}

/// Compares a folder with what a user's client saw of it.
fn compare_view(
    server: &Server,
    mailbox: &Mailbox<'_>,
    user: &str,
    name: &str,
    seen_by: &Value,
) -> Counts {
    let mut counts = Counts { views: 1, ..Counts::default() };
    let header = mailbox.view.header();
    let at = format!("{user}: {name}");
    assert_eq!(u64::from(header.uidvalidity), number(&seen_by["uidvalidity"]), "{at}");
    assert_eq!(u64::from(header.last_uid) + 1, number(&seen_by["uidnext"]), "{at}");
    if let Some(modseq) = seen_by.get("highestmodseq") {
        assert!(header.has_modseqs(), "{at}");
        assert_eq!(header.highestmodseq, number(modseq), "{at}");
    } else if seen_by.get("nomodseq").is_some() {
        assert!(!header.has_modseqs(), "{at}");
    }
    if let Some(defined) = seen_by["flags_defined"].as_array() {
        let defined = defined.iter().map(|flag| flag.as_str().unwrap());
        let defined: Vec<_> = defined.filter(|flag| !flag.starts_with('\\')).collect();
        let names: Vec<_> = mailbox.header.user_flags.iter().flatten().collect();
        assert_eq!(names, defined.iter().map(|f| f.as_bytes()).collect::<Vec<_>>(), "{at}");
    }
    let owner = name.strip_prefix("user.").and_then(|n| n.split('.').next());
    let owns = owner == Some(&user.replace('.', "^"));
    let internal = header.has_seen() && (owns || header.shares_seen());
    let seen_user = if header.shares_seen() { "anyone" } else { user };
    let id = Bytes::copy_from_slice(mailbox.header.uniqueid.as_deref().unwrap());
    let seen = server.seen(seen_user).remove(&id).unwrap_or_default();

    let expected = messages(&seen_by["messages"]);
    let records: Vec<Record> = mailbox.view.live().map(|r| r.unwrap()).collect();
    let uids = |list: &mut dyn Iterator<Item = u32>| list.collect::<Vec<_>>();
    assert_eq!(
        uids(&mut records.iter().map(|r| r.uid)),
        uids(&mut expected.iter().map(|(uid, _)| *uid)),
        "{at}"
    );
    for (record, (uid, message)) in records.iter().zip(&expected) {
        let at = format!("{at}: UID {uid}");
        assert_eq!(record.size, number(&message["size"]), "{at}");
        let date = message.get("internaldate").or(message.get("date")).unwrap();
        let time = jiff::Timestamp::from_second(record.internaldate.seconds()).unwrap();
        let time = time.strftime("%e-%b-%Y %H:%M:%S +0000").to_string();
        assert_eq!(time, date.as_str().unwrap(), "{at}");
        let file = server.file(mailbox.directory, &record.file_name()).unwrap();
        assert_eq!(Guid::of(file).to_string(), message["sha1"].as_str().unwrap(), "{at}");
        if let Some(modseq) = message.get("modseq") {
            assert_eq!(record.modseq, number(modseq), "{at}");
            counts.modseqs += 1;
        }
        let is_seen = if internal { record.is_seen() } else { seen.uids.contains(*uid) };
        let found = flags(record, is_seen, &mailbox.header);
        assert_eq!(found, expected_flags(&message["flags"]), "{at}");
        counts.messages += 1;
        counts.seen += usize::from(is_seen);
        counts.keywords += found.iter().filter(|flag| !flag.starts_with('\\')).count();
    }
    counts
}

/// Both forms of the JSON: an object by UID, or a list.
fn messages(value: &Value) -> Vec<(u32, &Value)> {
    let uid = |n: u64| u32::try_from(n).unwrap();
    let mut list: Vec<_> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.parse().unwrap(), v)).collect(),
        Value::Array(list) => list.iter().map(|v| (uid(number(&v["uid"])), v)).collect(),
        _ => panic!("no messages"),
    };
    list.sort_by_key(|(uid, _)| *uid);
    list
}

fn flags(record: &Record, seen: bool, header: &MailboxHeader) -> BTreeSet<String> {
    let keywords = record.user_flag_numbers();
    let keywords = keywords.map(|n| bytes(Some(header.user_flag(n).expect("a flag without name"))));
    let mut flags: BTreeSet<String> = keywords.collect();
    for (bit, name) in [
        (system::ANSWERED, "\\Answered"),
        (system::FLAGGED, "\\Flagged"),
        (system::DELETED, "\\Deleted"),
        (system::DRAFT, "\\Draft"),
    ] {
        if record.system_flags & bit != 0 {
            flags.insert(name.to_owned());
        }
    }
    if seen {
        flags.insert("\\Seen".to_owned());
    }
    flags
}

fn expected_flags(value: &Value) -> BTreeSet<String> {
    let flags: Vec<&str> = match value {
        Value::String(text) => text.split_whitespace().collect(),
        Value::Array(list) => list.iter().map(|flag| flag.as_str().unwrap()).collect(),
        _ => panic!("no flags"),
    };
    let flags = flags.into_iter().filter(|flag| *flag != "\\Recent");
    flags.map(str::to_owned).collect()
}

fn compare_subscriptions(server: &Server, user: &str, seen_by: &Value) -> usize {
    let Some(file) = server.user_file(user, ".sub") else {
        assert!(seen_by["lsub"].as_array().unwrap().is_empty());
        return 0;
    };
    let all = Subscriptions::parse(file.clone()).unwrap();
    assert_eq!(all.to_flat(), *file);
    assert!(all.odd.is_empty());
    let names = all.names.iter().map(|name| bytes(Some(name.as_bytes())));
    // LSUB leaves out folders that are gone.
    let directories = server.directories();
    let names: BTreeSet<_> = names.filter(|name| directories.contains_key(name)).collect();
    let listed = seen_by["lsub"].as_array().unwrap().iter().map(|item| {
        let name = item.get("name").unwrap_or(item).as_str().unwrap();
        internal(user, name.trim_matches('"'), &seen_by["namespace"])
    });
    assert_eq!(names, listed.collect(), "{user}");
    names.len()
}

fn compare_quotas(server: &Server) -> usize {
    let mut seen = BTreeSet::new();
    for folder in server.users["legacy"]["mailboxes"].as_object().unwrap().values() {
        // Older JSON has the server's answer as text.
        let answer = folder.get("quotaroot").and_then(Value::as_str).unwrap_or_default();
        let Some((_, numbers)) = answer.split_once("user.legacy (STORAGE ") else {
            continue;
        };
        let (used, limit) = numbers.split_once(')').unwrap().0.split_once(' ').unwrap();
        let file = server.user_file("user.legacy", "").unwrap();
        let storage = Quota::parse(file).unwrap().unwrap().storage.unwrap();
        assert_eq!((storage.used / 1024).to_string(), used);
        assert_eq!(storage.limit.map(|limit| limit.to_string()).as_deref(), Some(limit));
        seen.insert("user.legacy".to_owned());
    }
    for (user, seen_by) in &server.users {
        for (name, folder) in seen_by["mailboxes"].as_object().unwrap() {
            let Some(quotas) = folder.get("quota").and_then(Value::as_object) else {
                continue;
            };
            for (root, limits) in quotas {
                // Clients of Cyrus see a root as a folder of theirs.
                let root = internal(user, root, &seen_by["namespace"]);
                let suffix = format!("/{root}");
                let mut files = server.files.iter().filter(|(path, _)| path.contains("/quota/"));
                let (_, file) = files.find(|(path, _)| path.ends_with(&suffix)).expect(name);
                let quota = Quota::parse(file).unwrap().unwrap();
                let shown = |kind: &str| {
                    let pair = limits.get(kind)?;
                    Some((number(&pair[0]), number(&pair[1])))
                };
                let storage = quota.storage.unwrap();
                let used = u64::try_from(storage.used).unwrap() / 1024;
                let storage = storage.limit.map(|limit| (used, limit));
                assert_eq!(storage, shown("STORAGE"), "{root}");
                let message = quota.message.and_then(|m| Some((m.used.try_into().ok()?, m.limit?)));
                assert_eq!(message, shown("MESSAGE"), "{root}");
                seen.insert(root);
            }
        }
    }
    seen.len()
}

/// Mailbox, name with `/shared` or `/private`, user, value.
type Annotation = (String, String, String, String);

/// What annotations.db has of mailboxes.
fn stored_annotations(server: &Server) -> BTreeSet<Annotation> {
    let mut files = server.files.iter().filter(|(path, _)| path.ends_with("/annotations.db"));
    let (_, file) = files.find(|(path, _)| !path.contains("backup")).unwrap();
    let entries = Database::open(file.clone(), &Engine::Flat).unwrap().entries().unwrap();
    let mut found = BTreeSet::new();
    for (raw_key, raw) in entries {
        let key = AnnotationKey::parse(&raw_key).unwrap();
        assert_eq!(key.to_bytes(), raw_key);
        let value = AnnotationValue::parse(&raw).unwrap();
        assert_eq!(value.to_bytes().unwrap(), raw);
        if let (Scope::Mailbox(name), false) = (key.scope, value.is_deleted()) {
            if name.starts_with(b"DELETED.") {
                continue;
            }
            let user = bytes(Some(&key.userid));
            let kind = if user.is_empty() { "/shared" } else { "/private" };
            let entry = format!("{kind}{}", bytes(Some(&key.entry)));
            found.insert((bytes(Some(&name)), entry, user, bytes(Some(&value.value))));
        }
    }
    found
}

/// What clients saw, without what the server computes, by ANNOTATEMORE or METADATA.
fn shown_annotations(server: &Server) -> BTreeSet<Annotation> {
    let mut shown = BTreeSet::new();
    for (user, seen_by) in &server.users {
        for (name, folder) in seen_by["mailboxes"].as_object().unwrap() {
            let mailbox = internal(user, name, &seen_by["namespace"]);
            let mut add = |entry: String, value: &Value| {
                let computed = entry.contains("/vendor/") && !entry.ends_with("/expire");
                if !computed {
                    let private = entry.starts_with("/private");
                    let user = if private { user.clone() } else { String::new() };
                    let value = value.as_str().unwrap().to_owned();
                    shown.insert((mailbox.clone(), entry, user, value));
                }
            };
            for (entry, values) in
                folder.get("annotations").and_then(Value::as_object).into_iter().flatten()
            {
                for (kind, value) in values.as_object().unwrap() {
                    let kind = if kind == "value.priv" { "/private" } else { "/shared" };
                    add(format!("{kind}{entry}"), value);
                }
            }
            for (entry, value) in
                folder.get("metadata").and_then(Value::as_object).into_iter().flatten()
            {
                add(entry.clone(), value);
            }
        }
    }
    shown
}

/// Mailbox, UID, entry, user, value.
type MessageAnnotation = (String, u32, String, String, String);

/// All annotations of messages that there are.
fn message_annotations(server: &Server) -> BTreeSet<MessageAnnotation> {
    let mut found = BTreeSet::new();
    for (name, directory) in server.directories() {
        let Some(file) = server.file(directory, "cyrus.annotations") else {
            continue;
        };
        for (raw_key, raw) in
            Database::open(file.clone(), &Engine::Twoskip).unwrap().entries().unwrap()
        {
            let key = AnnotationKey::parse_message(&raw_key).unwrap();
            assert_eq!(key.to_bytes(), raw_key);
            let value = AnnotationValue::parse(&raw).unwrap();
            assert_eq!(value.to_bytes().unwrap(), raw);
            let Scope::Message(uid) = key.scope else {
                panic!("no UID");
            };
            let (entry, user) = (bytes(Some(&key.entry)), bytes(Some(&key.userid)));
            found.insert((name.clone(), uid, entry, user, bytes(Some(&value.value))));
        }
    }
    found
}

fn shown_message_annotations(server: &Server) -> BTreeSet<MessageAnnotation> {
    let mut shown = BTreeSet::new();
    for (user, seen_by) in &server.users {
        for (name, folder) in seen_by["mailboxes"].as_object().unwrap() {
            let name = internal(user, name, &seen_by["namespace"]);
            let list = folder.get("messages").map(messages).unwrap_or_default();
            for (uid, message) in list {
                // entry (kind value kind value) entry (...)
                let annotations = message.get("annotations").and_then(Value::as_array);
                for pair in annotations.into_iter().flat_map(|list| list.chunks(2)) {
                    let entry = pair[0].as_str().unwrap().to_owned();
                    for value in pair[1].as_array().unwrap().chunks(2) {
                        let (kind, value) =
                            (value[0].as_str().unwrap(), value[1].as_str().unwrap());
                        let user = if kind == "value.priv" { user.clone() } else { String::new() };
                        if value != "NIL" {
                            shown.insert((
                                name.clone(),
                                uid,
                                entry.clone(),
                                user,
                                value.to_owned(),
                            ));
                        }
                    }
                }
            }
        }
    }
    shown
}

fn check(name: &str) -> Counts {
    let server = Server::open(name);
    let mut counts = Counts::default();
    read_all(&server, &mut counts);
    let directories = server.directories();
    for (user, seen_by) in &server.users {
        counts.seen_records += server.seen(user).len();
        counts.subscriptions += compare_subscriptions(&server, user, seen_by);
        for (external, folder) in seen_by["mailboxes"].as_object().unwrap() {
            if folder.get("messages").is_none() {
                continue;
            }
            let name = internal(user, external, &seen_by["namespace"]);
            let directory = directories.get(&name).unwrap_or_else(|| panic!("no {name}"));
            let mailbox = Mailbox {
                view: IndexView::parse(server.file(directory, "cyrus.index").unwrap()).unwrap(),
                header: MailboxHeader::parse(server.file(directory, "cyrus.header").unwrap())
                    .unwrap(),
                directory,
            };
            let found = compare_view(&server, &mailbox, user, &name, folder);
            counts.views += found.views;
            counts.messages += found.messages;
            counts.seen += found.seen;
            counts.keywords += found.keywords;
            counts.modseqs += found.modseqs;
        }
    }
    counts.quotas = compare_quotas(&server);
    if server.users.values().next().unwrap().get("namespace").is_some() {
        let stored = stored_annotations(&server);
        assert_eq!(stored, shown_annotations(&server));
        counts.annotations = stored.len();
    }
    let messages = message_annotations(&server);
    assert_eq!(messages, shown_message_annotations(&server));
    counts.message_annotations = messages.len();
    counts
}

#[test]
fn cyrus_2_2_13() {
    assert_eq!(
        check("cyrus-2.2.13"),
        Counts {
            minor: 6,
            indexes: 15,
            records: 208,
            views: 16,
            messages: 232,
            seen: 115,
            keywords: 77,
            seen_records: 13,
            subscriptions: 5,
            quotas: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_3_1_rich() {
    assert_eq!(
        check("cyrus-2.3.1-rich"),
        Counts {
            minor: 7,
            indexes: 16,
            records: 337,
            expunge_files: 23,
            views: 20,
            messages: 442,
            seen: 232,
            keywords: 280,
            seen_records: 19,
            subscriptions: 12,
            quotas: 3,
            annotations: 3,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_3_16() {
    assert_eq!(
        check("cyrus-2.3.16"),
        Counts {
            minor: 10,
            indexes: 15,
            records: 208,
            expunge_files: 7,
            views: 16,
            messages: 223,
            seen: 132,
            keywords: 84,
            seen_records: 13,
            subscriptions: 5,
            quotas: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_3_19_bdb_rich() {
    assert_eq!(
        check("cyrus-2.3.19-bdb-rich"),
        Counts {
            minor: 10,
            indexes: 16,
            records: 337,
            expunge_files: 23,
            views: 20,
            messages: 442,
            seen: 219,
            keywords: 306,
            modseqs: 66,
            seen_records: 19,
            subscriptions: 12,
            quotas: 3,
            annotations: 3,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_4_20() {
    assert_eq!(
        check("cyrus-2.4.20"),
        Counts {
            minor: 12,
            indexes: 15,
            records: 215,
            expunged: 7,
            written: 15,
            views: 16,
            messages: 239,
            seen: 123,
            keywords: 71,
            guids: 215,
            seen_records: 1,
            subscriptions: 5,
            quotas: 1,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_2_5_17_rich() {
    assert_eq!(
        check("cyrus-2.5.17-rich"),
        Counts {
            minor: 13,
            indexes: 22,
            records: 392,
            expunged: 27,
            written: 22,
            views: 26,
            messages: 471,
            seen: 231,
            keywords: 300,
            modseqs: 471,
            guids: 392,
            seen_records: 5,
            subscriptions: 14,
            quotas: 3,
            annotations: 7,
            message_annotations: 2,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_3_0_18_rich() {
    assert_eq!(
        check("cyrus-3.0.18-rich"),
        Counts {
            minor: 13,
            indexes: 22,
            records: 392,
            expunged: 27,
            written: 22,
            views: 26,
            messages: 467,
            seen: 225,
            keywords: 307,
            modseqs: 467,
            guids: 392,
            seen_records: 5,
            subscriptions: 14,
            quotas: 3,
            annotations: 8,
            message_annotations: 2,
            ..Counts::default()
        }
    );
}

#[test]
fn cyrus_3_4_9_rich() {
    assert_eq!(
        check("cyrus-3.4.9-rich"),
        Counts {
            minor: 17,
            indexes: 22,
            records: 392,
            expunged: 27,
            written: 22,
            views: 26,
            messages: 467,
            seen: 217,
            keywords: 311,
            modseqs: 467,
            guids: 392,
            seen_records: 5,
            subscriptions: 14,
            quotas: 3,
            annotations: 8,
            message_annotations: 2,
            ..Counts::default()
        }
    );
}
