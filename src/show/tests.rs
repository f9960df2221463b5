#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::cyrus::db::twoskip;
use crate::cyrus::guid::Guid;
use crate::cyrus::index::{self, Record, Time, internal, system, write_index};

fn header() -> MailboxHeader {
    let flags = vec![Some(b"$Forwarded".to_vec()), None, Some("größe".as_bytes().to_vec())];
    MailboxHeader { user_flags: flags, uniqueid: Some(b"1234".to_vec()), ..Default::default() }
}

fn file(minor: u32) -> Bytes {
    let live = Record {
        uid: 7,
        internaldate: Time::from_seconds(1_795_442_171),
        size: 1234,
        system_flags: system::SEEN | system::ANSWERED,
        user_flags: [0b101, 0, 0, 1],
        modseq: 5,
        guid: Some(Guid::of(b"x")),
        ..Record::default()
    };
    let gone = Record { uid: 9, internal_flags: internal::EXPUNGED, ..live };
    let header = index::Header {
        uidvalidity: 17,
        last_uid: 9,
        exists: 1,
        highestmodseq: 6,
        options: index::options::SHAREDSEEN | 1 << 20,
        ..Default::default()
    };
    write_index(minor, &header, [live, gone]).unwrap().into()
}

#[test]
fn an_index_is_told_in_words_and_in_json() {
    let names = header();
    let beside = Beside { header: Some(&names), inbox: None };
    let document = read(Kind::Index, &file(17), &beside).unwrap();
    assert!(document.flaws.is_empty(), "{:?}", document.flaws);
    let json = serde_json::to_value(&document).unwrap();
    assert_eq!(json["kind"], "index");
    assert_eq!((&json["minor"], &json["written_by"]), (&17.into(), &"3.4 to 3.8".into()));
    assert_eq!(json["options"], serde_json::json!(["shared-seen", "0x100000"]));
    let record = &json["records"][0];
    let flags = serde_json::json!(["\\Answered", "\\Seen", "$Forwarded", "größe", "#96"]);
    assert_eq!(record["flags"], flags);
    assert_eq!(record["guid"], Guid::of(b"x").to_string());
    assert_eq!(record["internaldate"], "2026-11-23T13:56:11Z");
    assert!(record["savedate"].is_null() && record.get("content_lines").is_none());
    assert_eq!(json["records"][1]["internal_flags"], serde_json::json!(["expunged"]));

    let text = document.lines(Shown(1)).join("\n");
    for part in [
        "UIDVALIDITY",
        "1, and 1 expunged (0 without \\Seen",
        "2026-11-23 13:56:11",
        "\\Answered \\Seen $Forwarded größe #96",
        "and 1 more (--all)",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(document.lines(Shown(9)).join("\n").contains("[expunged]"));
}

#[test]
fn what_a_version_does_not_have_is_left_out() {
    for minor in 12..=20 {
        let json = read(Kind::Index, &file(minor), &Beside::default()).unwrap();
        let json = serde_json::to_value(&json).unwrap();
        assert_eq!(json.get("unseen").is_some(), minor >= 14, "{minor}");
        assert_eq!(json.get("createdmodseq").is_some(), minor >= 16, "{minor}");
        assert_eq!(json["records"][0].get("savedate").is_some(), minor >= 15, "{minor}");
    }
}

#[test]
fn a_bad_record_is_named_and_hides_no_other() {
    let mut bytes = file(17).to_vec();
    bytes[160 + 112 + 12] ^= 1;
    let document = read(Kind::Index, &bytes.into(), &Beside::default()).unwrap();
    let Content::Index(index) = &document.content else { panic!("{document:?}") };
    assert_eq!(index.records.len(), 1);
    assert_eq!(document.flaws[0].offset, Some(160 + 112));
    let text = document.flaws[0].to_string();
    assert_eq!(text, "offset 272: the checksum of the record of UID 9 is wrong");

    let flaw = read(Kind::Index, &Bytes::from_static(b"short"), &Beside::default()).unwrap_err();
    assert_eq!(flaw.to_string(), "offset 5: the file has 5 bytes and needs 12");
}

#[test]
fn files_are_recognised_by_name_and_by_content() {
    let of = |path: &str, bytes: &[u8]| Kind::recognise(Path::new(path), bytes);
    for (path, kind) in [
        ("/s/cyrus.index", Kind::Index),
        ("/s/cyrus.expunge", Kind::Expunge),
        ("/c/user/j/joe.smith.seen", Kind::Seen),
        ("/c/user/uuid/a/b/ab/sub.db", Kind::Subscriptions),
        ("/c/quota/x/user.x", Kind::Quota),
        ("/c/domain/d/d.org/quota/user.x", Kind::Quota),
        ("/c/annotations.db", Kind::Annotations),
    ] {
        assert_eq!(of(path, b""), Some(kind), "{path}");
    }
    let list = twoskip::write(&[(&b"Nuser\x1fx"[..], &b"%(T e I ab P default V 1 A %())"[..])]);
    let other = twoskip::write(&[(&b"<1@x>"[..], &b"1"[..])]);
    assert_eq!(of("copy", &list), Some(Kind::Mailboxes));
    assert_eq!(of("copy", &other), Some(Kind::Database));
    assert_eq!(of("copy", &file(12)), Some(Kind::Index));
    assert_eq!(of("copy", &header().to_bytes()), Some(Kind::Header));
    assert_eq!(of("copy", b"user.x\t\nuser.y\t\n"), Some(Kind::Database));
    assert_eq!((of("copy", b"hello"), of("copy", b"")), (None, None));
}

#[test]
fn databases_are_told_record_by_record() {
    let seen = twoskip::write(&[
        (&b"1234"[..], &b"1 1795442171 97 1795442173 1:5,9"[..]),
        (b"5678", b"2 x"),
    ]);
    let document = read(Kind::Seen, &seen.into(), &Beside::default()).unwrap();
    let json = serde_json::to_value(&document).unwrap();
    assert_eq!((&json["records"][0]["count"], &json["engine"]), (&6.into(), &"twoskip".into()));
    assert_eq!(document.flaws[0].to_string(), "record 5678: offset 0: the version is not 1");

    let list = twoskip::write(&[
        (&b"I1234"[..], &b"%(T c N \"user\x1fx\" P default V 1 A %(x lrs))"[..]),
        (b"Nuser\x1fx", b"%(T cm I 1234 P default S new.example V 7 M 1795442171 A %(x lrs))"),
        (b"Nuser\x1fy", b"%(T e V x)"),
    ]);
    let document = read(Kind::Mailboxes, &list.into(), &Beside::default()).unwrap();
    let json = serde_json::to_value(&document).unwrap();
    assert_eq!(json["other_records"], 1);
    let record = &json["records"][0];
    assert_eq!((&record["name"], &record["type"]), (&"user.x".into(), &"calendar".into()));
    assert_eq!(
        (&record["states"][0], &record["server"]),
        (&"moving".into(), &"new.example".into())
    );
    assert_eq!(document.flaws.len(), 1);
    let text = document.lines(Shown(5)).join("\n");
    assert!(text.contains("calendar moving") && text.contains("x:lrs"), "{text}");

    let quota = read(Kind::Quota, &Bytes::from_static(b"7\n500\n"), &Beside::default()).unwrap();
    let text = quota.lines(Shown(5)).join("\n");
    assert!(text.contains("STORAGE") && text.contains("500 KiB"), "{text}");

    let subscriptions = Bytes::from_static(b"\x1fVER\x1f\t2\nNINBOX\t\nNINBOX\x1fA\t\n");
    let inbox = MailboxName::from_internal(b"user.x").unwrap();
    let beside = Beside { header: None, inbox: Some(&inbox) };
    let document = read(Kind::Subscriptions, &subscriptions, &beside).unwrap();
    assert_eq!(document.lines(Shown(9)), ["user.x", "user.x.A"]);
    let document = read(Kind::Subscriptions, &subscriptions, &Beside::default()).unwrap();
    assert_eq!(document.lines(Shown(9)), ["INBOX", "INBOX.A"]);
}

#[test]
fn text_of_a_file_cannot_reach_the_terminal() {
    assert_eq!(printed("\\Sent ä\x1b[2J".as_bytes()), "\\Sent ä\\u{1b}[2J");
    assert_eq!(printed(b"a\xffb"), "a\\xffb");
}
