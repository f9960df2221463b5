//! Folders, messages, subscriptions and quotas.

use std::collections::BTreeSet;

use bytes::Bytes;
use mbcopy::cyrus::guid::Guid;
use mbcopy::cyrus::header::MailboxHeader;
use mbcopy::cyrus::index::{IndexView, Record, compare, system, write_index};
use mbcopy::cyrus::name::MailboxName;
use mbcopy::cyrus::quota::Quota;
use mbcopy::cyrus::subscription::Subscriptions;
use serde_json::Value;

use crate::Counts;
use crate::server::{Server, bytes, internal, number};

/// A mailbox's directory.
pub struct Mailbox<'a> {
    pub view: IndexView<'a>,
    pub header: MailboxHeader,
    pub directory: &'a str,
}

/// Reads all indexes and headers, and checks what needs no client.
pub fn read_all(server: &Server, counts: &mut Counts) {
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

pub fn check_file(server: &Server, directory: &str, record: &Record, counts: &mut Counts) {
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
pub fn compare_view(
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
pub fn messages(value: &Value) -> Vec<(u32, &Value)> {
    let uid = |n: u64| u32::try_from(n).unwrap();
    let mut list: Vec<_> = match value {
        Value::Object(map) => map.iter().map(|(k, v)| (k.parse().unwrap(), v)).collect(),
        Value::Array(list) => list.iter().map(|v| (uid(number(&v["uid"])), v)).collect(),
        _ => panic!("no messages"),
    };
    list.sort_by_key(|(uid, _)| *uid);
    list
}

pub fn flags(record: &Record, seen: bool, header: &MailboxHeader) -> BTreeSet<String> {
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

pub fn expected_flags(value: &Value) -> BTreeSet<String> {
    let flags: Vec<&str> = match value {
        Value::String(text) => text.split_whitespace().collect(),
        Value::Array(list) => list.iter().map(|flag| flag.as_str().unwrap()).collect(),
        _ => panic!("no flags"),
    };
    let flags = flags.into_iter().filter(|flag| *flag != "\\Recent");
    flags.map(str::to_owned).collect()
}

pub fn compare_subscriptions(server: &Server, user: &str, seen_by: &Value) -> usize {
    let Some(file) = server.user_file(user, ".sub") else {
        assert!(seen_by["lsub"].as_array().unwrap().is_empty());
        return 0;
    };
    let inbox = format!("user.{}", user.replace('.', "^"));
    let inbox = MailboxName::from_internal(inbox.as_bytes()).unwrap();
    let all = Subscriptions::parse(file.clone(), &inbox).unwrap();
    assert_eq!(all.to_flat(&inbox), *file);
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

pub fn compare_quotas(server: &Server) -> usize {
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
