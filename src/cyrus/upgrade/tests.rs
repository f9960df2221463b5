#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::cyrus::db::crc::crc32;
use crate::cyrus::imap_set::UidSet;
use crate::cyrus::index::Header;
use crate::cyrus::mboxlist::Acl;
use crate::cyrus::mboxlist::mbtype::Mbtype;
use crate::cyrus::quota::Resource;
use bytes::Bytes;

/// A cyrus.index or cyrus.expunge of 2.3.16 (version 10) with these UIDs and flags.
fn old(records: &[(u32, u16)]) -> Vec<u8> {
    let mut out = vec![0; 96];
    let mut put = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_be_bytes());
    let last = records.iter().map(|(uid, _)| *uid).max().unwrap_or(0);
    for (at, value) in [(8, 10), (12, 96), (16, 88), (20, records.len() as u32), (28, last)] {
        put(at, value);
    }
    put(44, 7_000_000);
    put(72, 40); // The low word of the highest modification sequence.
    put(60, options::POP3_NEW_UIDL | options::CONDSTORE);
    for (uid, flags) in records {
        let mut record = [0; 88];
        let mut put = |at: usize, value: u32| {
            record[at..at + 4].copy_from_slice(&value.to_be_bytes());
        };
        for (at, value) in [(0, *uid), (4, 1000 + uid), (12, 10 * uid), (24, 999), (28, 2000 + uid)]
        {
            put(at, value);
        }
        put(32, u32::from(*flags));
        put(84, 20 + uid);
        out.extend(record);
    }
    out
}

fn facts(record: &Record, wanted: bool) -> Option<FileFacts> {
    let guid = wanted.then(|| Guid::of(&record.uid.to_be_bytes()));
    Some(FileFacts { guid, modified: Time::from_seconds(77) })
}

fn upgraded(index_file: &[u8], beside: &Beside<'_>) -> Vec<u8> {
    index(&IndexView::parse(index_file).unwrap(), beside, facts).unwrap()
}

fn records_of(file: &[u8]) -> Vec<Record> {
    IndexView::parse(file).unwrap().records().map(Result::unwrap).collect()
}

fn uids(records: &[Record], with: impl Fn(&Record) -> bool) -> Vec<u32> {
    records.iter().filter(|r| with(r)).map(|r| r.uid).collect()
}

#[test]
fn what_2_3_kept_in_three_files_is_in_one() {
    let expunged = old(&[(5, system::DELETED), (2, system::DELETED)]);
    let expunged = IndexView::parse_expunge(&expunged).unwrap();
    let seen =
        Seen { last_read: 555, last_uid: 6, uids: UidSet::from_uids([1, 4, 5]), ..Seen::default() };
    let beside = Beside {
        expunge: Some(&expunged),
        seen: Some(&seen),
        header_file: b"its header",
        without: &[],
    };
    // The \Seen of the record means nothing in 2.3.
    let old = old(&[(1, system::FLAGGED), (4, 0), (9, system::SEEN | system::ANSWERED)]);
    let new = upgraded(&old, &beside);

    let view = IndexView::parse(&new).unwrap();
    let header = view.header();
    assert_eq!((header.minor, header.uidvalidity, header.last_uid), (12, 7_000_000, 9));
    assert_eq!((header.num_records, header.exists), (5, 3));
    assert_eq!((header.answered, header.flagged, header.deleted), (1, 1, 0));
    assert_eq!(header.quota_mailbox_used, 10 + 40 + 90);
    assert_eq!(header.highestmodseq, 40);
    assert_eq!((header.recentuid, header.recenttime), (6, Time::from_seconds(555)));
    assert_eq!(header.first_expunged, Time::from_seconds(2002));
    assert_eq!(header.header_file_crc, crc32(b"its header"));
    assert_eq!(header.sync_crc, 0);
    assert_eq!(header.options, options::POP3_NEW_UIDL);

    let records = records_of(&new);
    assert_eq!(uids(&records, |_| true), [1, 2, 4, 5, 9]);
    assert_eq!(uids(&records, Record::is_expunged), [2, 5]);
    assert_eq!(uids(&records, Record::is_seen), [1, 4, 5]);
    for record in &records {
        assert_eq!(record.internaldate, Time::from_seconds(1000 + record.uid));
        assert_eq!(record.size, u64::from(10 * record.uid));
        assert_eq!(record.modseq, u64::from(20 + record.uid));
        assert_eq!(record.guid, Some(Guid::of(&record.uid.to_be_bytes())));
        assert_eq!((record.cache_offset, record.cache_version), (0, 0));
    }
}

#[test]
fn a_message_that_clients_see_is_not_expunged_by_what_a_crash_left() {
    let expunged = old(&[(4, system::DELETED)]);
    let expunged = IndexView::parse_expunge(&expunged).unwrap();
    let beside = Beside { expunge: Some(&expunged), ..Beside::default() };
    let records = records_of(&upgraded(&old(&[(3, 0), (4, 0)]), &beside));
    assert_eq!(uids(&records, |r| !r.is_expunged()), [3, 4]);
}

#[test]
fn of_an_expunged_message_without_a_file_nothing_remains_but_its_uid_is_not_given_again() {
    let expunged = old(&[(9, system::DELETED), (8, system::DELETED)]);
    let expunged = IndexView::parse_expunge(&expunged).unwrap();
    let beside = Beside { expunge: Some(&expunged), ..Beside::default() };
    let old = old(&[(1, 0), (2, 0)]);
    let view = IndexView::parse(&old).unwrap();
    let there = |record: &Record, wanted| facts(record, wanted).filter(|_| record.uid != 9);
    let new = index(&view, &beside, there).unwrap();
    assert_eq!(uids(&records_of(&new), |_| true), [1, 2, 8]);
    assert_eq!(IndexView::parse(&new).unwrap().header().last_uid, 9);
    // One that is left out is counted nowhere, and its UID is not given again either.
    let new = index(&view, &Beside { without: &[2], ..Beside::default() }, facts).unwrap();
    let header = IndexView::parse(&new).unwrap().header().clone();
    assert_eq!(uids(&records_of(&new), |_| true), [1]);
    assert_eq!((header.exists, header.quota_mailbox_used, header.last_uid), (1, 10, 2));
    // A message that the index lists stays, and is found to be missing later.
    let new = index(&view, &Beside::default(), |_, _| None).unwrap();
    assert_eq!(uids(&records_of(&new), |_| true), [1, 2]);
}

#[test]
fn a_date_that_is_not_known_is_that_of_the_file() {
    let mut old = old(&[(3, 0)]);
    old[96 + 4..96 + 8].fill(0);
    let records = records_of(&upgraded(&old, &Beside::default()));
    assert_eq!(records[0].internaldate, Time::from_seconds(77));
}

#[test]
fn newer_indexes_keep_version_flags_and_checksums() {
    let record = Record {
        uid: 3,
        system_flags: system::SEEN,
        guid: Some(Guid::of(b"x")),
        internaldate: Time::from_seconds(5),
        modseq: 9,
        cache_offset: 4,
        ..Record::default()
    };
    let header = Header { highestmodseq: 9, sync_crc: 123, recentuid: 2, ..Header::default() };
    for minor in 12..=20 {
        let file = write_index(minor, &header, [record]).unwrap();
        let seen = Seen::default();
        let new = upgraded(&file, &Beside { seen: Some(&seen), ..Beside::default() });
        let view = IndexView::parse(&new).unwrap();
        assert_eq!((view.header().minor, view.header().sync_crc), (minor, 123));
        assert_eq!((view.header().recentuid, view.header().unseen.min(1)), (2, 0));
        let kept = records_of(&new)[0];
        assert!(kept.is_seen());
        assert_eq!((kept.guid, kept.cache_offset), (record.guid, 4));
    }
}

#[test]
fn sizes_that_cannot_be_do_not_overflow() {
    let record = Record { guid: Some(Guid::of(b"x")), size: u64::MAX, ..Record::default() };
    let records = [1, 2].map(|uid| Record { uid, ..record });
    let file = write_index(20, &Header::default(), records).unwrap();
    let new = upgraded(&file, &Beside::default());
    assert_eq!(IndexView::parse(&new).unwrap().header().quota_mailbox_used, u64::MAX);
}

fn entry() -> MailboxEntry {
    let name = MailboxName::from_internal(b"user.joe^smith.Sent").unwrap();
    let raw = Bytes::from_static(b"0 default joe.smith\tlrs\tother\tlr\t");
    MailboxEntry::parse(name, Bytes::new(), raw).unwrap()
}

fn id() -> UniqueId {
    UniqueId::new(b"70c03a6b044298").unwrap()
}

#[test]
fn records_of_3_6_say_what_the_old_one_said() {
    let (by_id_value, by_name_value) = records(&entry(), &id(), 17, 99);
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    assert_eq!(
        text(&by_id_value),
        "%(T e I 70c03a6b044298 P default V 17 M 99 A %(joe.smith lrs other lr))"
    );
    assert_eq!(
        text(&by_name_value),
        "%(T e N \"user\u{1f}joe.smith\u{1f}Sent\" P default V 17 M 99 A %(joe.smith lrs other lr))"
    );
    let read = MailboxEntry::parse(entry().name, Bytes::new(), by_id_value.into()).unwrap();
    assert_eq!((read.acl, read.uidvalidity, read.mtime), (entry().acl, 17, 99));
    // What the record says itself counts more; no mailbox is named by name any more.
    let mbtype = Mbtype::from_letters(b"cl");
    let newer = MailboxEntry { mtime: 5, createdmodseq: 3, foldermodseq: 4, mbtype, ..entry() };
    let (value, _) = records(&newer, &id(), 17, 99);
    assert!(text(&value).starts_with("%(T c I 70c03a6b044298 P default V 17 C 3 F 4 M 5 A"));
}

#[test]
fn a_header_of_3_6_has_the_keywords_of_the_old_one() {
    let old = MailboxHeader {
        quota_root: Some(b"user.joe^smith".to_vec()),
        user_flags: vec![Some(b"$Forwarded".to_vec()), None, Some(b"NonJunk".to_vec())],
        acl: Some(Acl::from_text(b"stale\tlrs\t")),
        ..MailboxHeader::default()
    };
    let new = MailboxHeader::parse(&header_file(&old, &entry(), &id())).unwrap();
    assert_eq!(new.form, HeaderForm::Dlist);
    assert_eq!(new.name.as_deref(), Some(&b"user.joe^smith.Sent"[..]));
    assert_eq!(new.uniqueid.as_deref(), Some(&b"70c03a6b044298"[..]));
    assert_eq!((new.user_flags, new.quota_root), (old.user_flags, old.quota_root));
    // mailboxes.db is what counts.
    assert_eq!(new.acl, Some(entry().acl));
}

#[test]
fn an_id_is_made_up_in_the_same_way_each_time() {
    let name = |text: &str| MailboxName::from_internal(text.as_bytes()).unwrap();
    let made = made_up_id(&name("user.x"), 5).unwrap();
    assert_eq!(Some(&made), made_up_id(&name("user.x"), 5).as_ref());
    assert_ne!(Some(&made), made_up_id(&name("user.x"), 6).as_ref());
    assert_ne!(Some(&made), made_up_id(&name("user.y"), 5).as_ref());
    assert_eq!(made.as_str().len(), 36);
}

#[test]
fn a_quota_keeps_its_limits_and_says_what_is_used_now() {
    let limit = |used, limit| Some(Resource { used, limit });
    let old = Quota { storage: limit(5, Some(100)), message: limit(1, None), ..Quota::default() };
    let used = QuotaUse { storage: 2048, messages: 3, annotations: 4, folders: 2 };
    let value = quota(&old, &used);
    assert_eq!(value, b"%(S (2048 100) M (3) AS (4) NF (2))");
    let read = Quota::parse(&value).unwrap().unwrap();
    assert_eq!((read.storage, read.message), (limit(2048, Some(100)), limit(3, None)));
}
