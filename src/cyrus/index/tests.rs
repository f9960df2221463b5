#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;

use super::*;
use crate::cyrus::guid::Guid;

const WRITTEN: [u32; 9] = [12, 13, 14, 15, 16, 17, 18, 19, 20];
const READ: [u32; 18] = [2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20];

/// A file of any version with arbitrary content but right sizes and checksums.
fn image(minor: u32, records: &[(u32, u8)]) -> Vec<u8> {
    let layout = Layout::of(minor).unwrap();
    let (head, size) = (usize::from(layout.header_size), usize::from(layout.record_size));
    let mut file = vec![0; head + size * records.len()];
    let put = |file: &mut [u8], at: usize, word: u32| {
        file[at..at + 4].copy_from_slice(&word.to_be_bytes());
    };
    put(&mut file, 8, minor);
    put(&mut file, 12, head as u32);
    put(&mut file, 16, size as u32);
    put(&mut file, 20, records.len() as u32);
    if layout.crc {
        let crc = crc32(&file[..head - 4]);
        put(&mut file, head - 4, crc);
    }
    for (index, &(uid, fill)) in records.iter().enumerate() {
        let at = head + index * size;
        file[at + 4..at + size].fill(fill);
        put(&mut file, at, uid);
        if layout.crc {
            let crc = crc32(&file[at..at + size - 4]);
            put(&mut file, at + size - 4, crc);
        }
    }
    file
}

fn uids(view: &IndexView<'_>) -> Vec<u32> {
    view.records().map(|r| r.unwrap().uid).collect()
}

#[test]
fn layouts_overlap_nowhere() {
    /// Notes the bytes of every field.
    struct Map(Vec<u8>);
    impl Map {
        fn mark(&mut self, name: &str, start: u16, len: usize) {
            for byte in &mut self.0[usize::from(start)..][..len] {
                *byte += 1;
                assert_eq!(*byte, 1, "{name} overlaps another field");
            }
        }
        fn at(&mut self, name: &str, at: At) {
            match at {
                At::No => {}
                At::Word(o) | At::Seconds(o) => self.mark(name, o, 4),
                At::Long(o) | At::Nanos(o) => {
                    assert_eq!(o % 4, 0, "{name}");
                    self.mark(name, o, 8);
                }
            }
        }
    }
    impl codec::Codec for Map {
        fn word(&mut self, name: &'static str, at: At, _: &mut u32) {
            assert!(!matches!(at, At::Long(_) | At::Nanos(_) | At::Seconds(_)), "{name}");
            self.at(name, at);
        }
        fn long(&mut self, name: &'static str, at: At, _: &mut u64) {
            self.at(name, at);
        }
        fn time(&mut self, name: &'static str, at: At, _: &mut Time) {
            assert!(!matches!(at, At::Word(_) | At::Long(_)), "{name}");
            self.at(name, at);
        }
        fn guid(&mut self, at: Option<u16>, _: &mut Option<Guid>) {
            if let Some(offset) = at {
                self.mark("guid", offset, 20);
            }
        }
    }
    for minor in READ {
        let layout = Layout::of(minor).unwrap();
        let crc = if layout.crc { 4 } else { 0 };
        let mut fields = layout.header;
        if minor < 12 {
            fields.exists = At::No;
        }
        let mut map = Map(vec![0; usize::from(layout.header_size) - crc]);
        Header::default().visit(&fields, &mut map);
        let used = if minor < 6 { map.0.len().min(60) } else { 64 };
        assert!(map.0[..used].iter().all(|&n| n == 1), "header of minor {minor} has a hole");
        if minor >= 19 {
            // Only minor 19 and 20 use all of the header.
            assert!(map.0.iter().all(|&n| n == 1), "header of minor {minor} has a hole");
        }
        let mut map = Map(vec![0; usize::from(layout.record_size) - crc]);
        Record::default().visit(&layout.record, &mut map);
        if minor >= 12 {
            assert!(map.0.iter().all(|&n| n == 1), "record of minor {minor} has a hole");
        }
    }
    assert!([0, 1, 11, 21].iter().all(|minor| Layout::of(*minor).is_none()));
}

#[test]
fn reads_every_version() {
    for minor in READ {
        let file = image(minor, &[(1, 0), (7, 0xff), (9, 1)]);
        let view = IndexView::parse(&file).unwrap();
        assert_eq!(uids(&view), [1, 7, 9], "minor {minor}");
        assert_eq!(view.header().num_records, 3);
        assert_eq!(view.header().highestmodseq, 1);
        assert_eq!(view.header().has_seen(), minor >= 12);
        let live = view.live().count();
        assert_eq!(live, if minor < 12 { 3 } else { 2 }, "minor {minor}");
        let last = view.record(1).unwrap();
        assert_eq!(last.is_archived() && last.is_unlinked(), minor >= 12);
        assert_eq!(view.record(0).unwrap().guid, None);
        assert_eq!(view.record(2).unwrap().guid.is_some(), minor >= 10);
        assert_eq!(view.find(7).unwrap(), Some(last));
        assert_eq!(view.find(8).unwrap(), None);
        assert_eq!(view.record(3).unwrap_err().damage, Damage::NoRecord(3));
    }
}

#[test]
fn a_tail_is_ignored_and_a_short_file_refused() {
    for minor in READ {
        let mut file = image(minor, &[(1, 2), (2, 3)]);
        let full = file.len();
        for len in 0..full {
            let error = IndexView::parse(&file[..len]).unwrap_err();
            assert!(matches!(error.damage, Damage::Short { .. }), "{error}");
        }
        file.extend([0xaa; 99]);
        assert_eq!(uids(&IndexView::parse(&file).unwrap()), [1, 2]);
    }
}

#[test]
fn checksums_and_sizes_are_checked() {
    for minor in WRITTEN {
        let good = image(minor, &[(1, 2), (2, 3), (3, 4)]);
        let layout = Layout::of(minor).unwrap();
        let (head, size) = (usize::from(layout.header_size), usize::from(layout.record_size));
        for at in [24, 60, head - 1] {
            let mut file = good.clone();
            file[at] ^= 1;
            let error = IndexView::parse(&file).unwrap_err();
            assert_eq!(error.damage, Damage::HeaderChecksum);
        }
        let mut file = good.clone();
        file[head + size + 10] ^= 1;
        let view = IndexView::parse(&file).unwrap();
        let found: Vec<_> = view.records().collect();
        let error = found[1].unwrap_err();
        assert_eq!(error.damage, Damage::RecordChecksum { uid: 2 });
        assert_eq!(error.offset, (head + size) as u64);
        assert!(found[0].is_ok() && found[2].is_ok());
    }
    for (at, value) in [(8, 11), (8, 21), (8, 1), (12, 64), (16, 0), (16, 1), (16, 104)] {
        let mut file = image(12, &[(1, 2)]);
        file[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
        assert_eq!(IndexView::parse(&file).unwrap_err().offset, at as u64);
    }
}

#[test]
fn order_is_checked_except_in_an_expunge_file() {
    let file = image(10, &[(5, 0), (5, 0), (0, 0), (4, 0), (6, 0)]);
    let view = IndexView::parse(&file).unwrap();
    let damage: Vec<_> = view.records().map(|r| r.err().map(|e| e.damage)).collect();
    let order = |uid| Some(Damage::Order { uid, before: 5 });
    assert_eq!(damage, [None, order(5), Some(Damage::NoUid), order(4), None]);

    let mut file = image(10, &[(5, 1), (3, 2), (5, 3)]);
    file[20..24].copy_from_slice(&1u32.to_be_bytes());
    let view = IndexView::parse_expunge(&file).unwrap();
    assert_eq!(uids(&view), [5, 3, 5]);
    assert_eq!(view.find(3).unwrap().unwrap().uid, 3);
    assert_eq!(view.find(4).unwrap(), None);
}

#[test]
fn a_huge_count_needs_no_memory() {
    let mut file = image(10, &[]);
    file[20..24].fill(0xff);
    let error = IndexView::parse(&file).unwrap_err();
    let need = 96 + 88 * u64::from(u32::MAX);
    assert_eq!(error.damage, Damage::Short { need, have: 96 });
}

#[test]
fn minor_9_modseqs_with_swapped_words() {
    let mut file = image(9, &[(1, 0), (2, 0), (3, 0), (4, 0)]);
    file[68..76].copy_from_slice(&7u64.to_be_bytes());
    for (index, modseq) in [2u64 << 32, 5, 9, 0].into_iter().enumerate() {
        let at = 96 + index * 80 + 72;
        file[at..at + 8].copy_from_slice(&modseq.to_be_bytes());
    }
    let view = IndexView::parse(&file).unwrap();
    let found: Vec<_> = view.records().map(|r| r.unwrap().modseq).collect();
    assert_eq!(found, [2, 5, 7, 1]);
}

#[test]
fn version_19_with_the_record_size_of_20() {
    let mut wide = write_header(19, &Header { num_records: 2, ..Header::default() }).unwrap();
    wide[16..20].copy_from_slice(&144u32.to_be_bytes());
    let crc = crc32(&wide[..156]);
    wide[156..160].copy_from_slice(&crc.to_be_bytes());
    for uid in [3, 4] {
        let record = Record { uid, size: 77, ..Record::default() };
        write_record(19, &record, &mut wide).unwrap();
        wide.extend([0; 32]);
    }
    let view = IndexView::parse(&wide).unwrap();
    assert_eq!(uids(&view), [3, 4]);
    assert_eq!(view.record(1).unwrap().size, 77);
}

#[test]
fn what_does_not_fit_is_refused() {
    let big = Record { uid: 3, size: 1 << 32, ..Record::default() };
    let mut out = vec![1];
    let error = write_record(19, &big, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "the size of UID 3 does not fit minor version 19");
    assert_eq!(out, [1]);
    write_record(20, &big, &mut out).unwrap();
    let early = Header { recenttime: Time::from_nanoseconds(-1), ..Header::default() };
    let error = write_header(16, &early).unwrap_err();
    assert_eq!(error, WriteError::Header { field: "recent time", minor: 16 });
    write_header(20, &early).unwrap();
    for minor in [6, 10, 11, 21] {
        assert_eq!(write_header(minor, &early), Err(WriteError::Version(minor)));
    }
    let twice = [big, big];
    let error = write_index(20, &early, twice).unwrap_err();
    assert_eq!(error, WriteError::Order { uid: 3, before: 3 });
}

fn sample(uid: u32) -> Record {
    Record {
        uid,
        size: 100,
        internaldate: Time::from_seconds(1_000_000 + uid),
        guid: Some(Guid::of(&uid.to_be_bytes())),
        modseq: 9,
        system_flags: system::SEEN,
        ..Record::default()
    }
}

fn index(minor: u32, records: impl IntoIterator<Item = Record>) -> Vec<u8> {
    let header = Header { highestmodseq: 9, uidvalidity: 1, ..Header::default() };
    write_index(minor, &header, records).unwrap()
}

#[test]
fn comparing_names_uid_and_field() {
    let gone = Record { internal_flags: internal::EXPUNGED, ..sample(3) };
    let left = index(17, [sample(1), sample(2), gone, sample(4), sample(6)]);
    let mut changed = sample(2);
    changed.user_flags[3] = 1;
    changed.system_flags |= system::DRAFT;
    changed.modseq = 8;
    let archived = Record {
        internal_flags: internal::ARCHIVED,
        cache_offset: 5,
        last_updated: Time::from_seconds(5),
        ..sample(4)
    };
    let right = index(19, [sample(1), changed, archived, sample(5), sample(6)]);
    let (a, b) = (IndexView::parse(&left).unwrap(), IndexView::parse(&right).unwrap());
    let message = |uid, aspect| IndexDifference::Message { uid, aspect };
    let expected = [
        message(2, Aspect::SystemFlags),
        message(2, Aspect::UserFlags),
        message(2, Aspect::Modseq),
        IndexDifference::Only { side: Side::Right, uid: 5 },
    ];
    assert_eq!(compare(&a, &b), expected);
    assert_eq!(compare(&a, &a), []);
    let mut all = Vec::new();
    let options = CompareOptions { expunged: true, modseqs: false };
    compare_with(&a, &b, &options, |d| all.push(d.to_string()));
    assert_eq!(
        all,
        [
            "UID 2 differs in its system flags",
            "UID 2 differs in its keywords",
            "only the first index has UID 3",
            "only the second index has UID 5"
        ]
    );
}

#[test]
fn comparing_leaves_out_what_one_side_cannot_say() {
    let precise = Record {
        internaldate: Time::from_nanoseconds(1_000_001_000_000_007),
        savedate: Time::from_seconds(4),
        ..sample(1)
    };
    let unknown = Record { guid: None, ..sample(1) };
    let (left, right) = (index(20, [precise]), index(12, [unknown]));
    let (a, b) = (IndexView::parse(&left).unwrap(), IndexView::parse(&right).unwrap());
    assert_eq!(compare(&a, &b), []);
    let again = index(20, [Record { savedate: Time::ZERO, ..sample(1) }]);
    let again = IndexView::parse(&again).unwrap();
    let date = IndexDifference::Message { uid: 1, aspect: Aspect::InternalDate };
    assert_eq!(compare(&a, &again), [date]);
}

#[test]
fn comparing_reports_damage_and_goes_on() {
    let left = index(17, [sample(1), sample(2), sample(3)]);
    let mut right = left.clone();
    right[160 + 112 + 20] ^= 1;
    let (a, b) = (IndexView::parse(&left).unwrap(), IndexView::parse(&right).unwrap());
    let found = compare(&a, &b);
    assert_eq!(found.len(), 2);
    assert!(matches!(found[0], IndexDifference::Damaged { side: Side::Right, .. }));
    assert_eq!(found[1], IndexDifference::Only { side: Side::Left, uid: 2 });
}

fn time(minor: u32) -> BoxedStrategy<Time> {
    match minor {
        20 => any::<i64>().prop_map(Time::from_nanoseconds).boxed(),
        _ => any::<u32>().prop_map(Time::from_seconds).boxed(),
    }
}

/// A record of which `minor` can hold everything.
fn any_record(minor: u32) -> impl Strategy<Value = Record> {
    let times = proptest::collection::vec(time(minor), 5);
    let longs = any::<[u64; 6]>();
    let words = any::<[u32; 9]>();
    let halves = any::<[u16; 3]>();
    (times, longs, words, halves, any::<[u8; 20]>()).prop_map(move |(t, l, w, h, guid)| {
        let from = |first: u32, value: u64| if minor >= first { value } else { 0 };
        Record {
            uid: w[0].max(1),
            internaldate: t[0],
            sentdate: t[1],
            size: if minor >= 20 { l[0] } else { w[1].into() },
            header_size: w[2],
            gmtime: t[2],
            cache_offset: l[1] >> 16,
            last_updated: t[3],
            system_flags: h[0],
            internal_flags: h[1],
            user_flags: [w[3], w[4], w[5], w[6]],
            content_lines: if minor < 15 { w[7] } else { 0 },
            savedate: if minor >= 15 { t[4] } else { Time::ZERO },
            cache_version: h[2],
            guid: Guid::from_stored(guid),
            modseq: l[2],
            cid: from(13, l[3]),
            createdmodseq: from(16, l[4]),
            basecid: from(20, l[5]),
            cache_crc: w[8],
        }
    })
}

fn any_header(minor: u32) -> impl Strategy<Value = Header> {
    let times = proptest::collection::vec(time(minor), 7);
    (times, any::<[u64; 7]>(), any::<[u32; 15]>()).prop_map(move |(t, l, w)| {
        let layout = Layout::of(minor).unwrap();
        let from = |first: u32, value: u64| if minor >= first { value } else { 0 };
        let time = |first: u32, value: Time| if minor >= first { value } else { Time::ZERO };
        let annotations = if minor >= 20 { l[3] } else { w[13].into() };
        Header {
            generation: w[0],
            format: 0,
            minor,
            start_offset: layout.header_size.into(),
            record_size: layout.record_size.into(),
            num_records: 0,
            exists: w[1],
            last_appenddate: t[0],
            last_uid: w[2],
            quota_mailbox_used: l[0],
            pop3_last_login: t[1],
            uidvalidity: w[3],
            deleted: w[4],
            answered: w[5],
            flagged: w[6],
            options: w[7],
            leaked_cache: w[8],
            highestmodseq: l[1].max(1),
            deletedmodseq: l[2],
            first_expunged: t[2],
            last_repack_time: t[3],
            header_file_crc: w[9],
            sync_crc: w[10],
            recentuid: w[11],
            recenttime: t[4],
            pop3_show_after: time(13, t[5]),
            quota_annot_used: from(13, annotations),
            sync_crc_annot: if minor >= 13 { w[12] } else { 0 },
            unseen: if minor >= 14 { w[14] } else { 0 },
            createdmodseq: from(16, l[4]),
            changes_epoch: time(17, t[6]),
            quota_deleted_used: from(18, l[5]),
            quota_expunged_used: from(18, l[6]),
        }
    })
}

fn any_index() -> impl Strategy<Value = (u32, Header, Vec<Record>)> {
    proptest::sample::select(&WRITTEN[..]).prop_flat_map(|minor| {
        let records = proptest::collection::vec(any_record(minor), 0..6);
        (Just(minor), any_header(minor), records).prop_map(|(minor, header, mut records)| {
            records.sort_by_key(|r| r.uid);
            records.dedup_by_key(|r| r.uid);
            (minor, header, records)
        })
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read((minor, header, records) in any_index()) {
        let file = write_index(minor, &header, records.iter().copied()).unwrap();
        let view = IndexView::parse(&file).unwrap();
        let counted = Header { num_records: records.len() as u32, ..header };
        prop_assert_eq!(view.header(), &counted);
        let back: Vec<_> = view.records().map(|r| r.unwrap()).collect();
        prop_assert_eq!(&back, &records);
        prop_assert_eq!(&write_index(minor, view.header(), back).unwrap(), &file);
        prop_assert!(compare(&view, &view).is_empty());
    }

    #[test]
    fn never_panics(
        minor in 0..24u32,
        count in 0..4u32,
        sizes in proptest::sample::select(&READ[..]),
        mut raw in proptest::collection::vec(any::<u8>(), 0..700),
    ) {
        let layout = Layout::of(minor).or(Layout::of(sizes)).unwrap();
        let words = [minor, layout.header_size.into(), layout.record_size.into(), count];
        for (word, at) in words.into_iter().zip((8..).step_by(4)) {
            if let Some(place) = raw.get_mut(at..at + 4) {
                place.copy_from_slice(&word.to_be_bytes());
            }
        }
        for view in [IndexView::parse(&raw), IndexView::parse_expunge(&raw)].into_iter().flatten() {
            let _ = (view.records().count(), view.find(77), view.header_file_fits(b"x"));
            let _ = compare(&view, &view);
            for record in view.records().flatten() {
                let _ = record.user_flag_numbers().count();
            }
        }
    }

    #[test]
    fn damage_never_panics((minor, header, records) in any_index(), at in any::<usize>(), x in 1u8..) {
        let mut file = write_index(minor, &header, records).unwrap();
        let at = at % file.len();
        file[at] ^= x;
        // Every byte is under a checksum, or is one.
        let whole = IndexView::parse(&file).is_ok_and(|view| view.records().all(|r| r.is_ok()));
        prop_assert!(!whole);
    }
}
