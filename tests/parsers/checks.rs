//! What must hold of every format, whatever the bytes: they give a value or an error,
//! never a panic, and what is read and written again reads as the same. The property
//! tests and the fuzz targets both run these.

use crate::sealed;
use bytes::{Bytes, BytesMut};
use mbcopy::cyrus::annotation::{AnnotationKey, AnnotationValue};
use mbcopy::cyrus::cache;
use mbcopy::cyrus::config::{Config, DbKind, Defaults, MetaFile};
use mbcopy::cyrus::db::{Database, Engine, twoskip};
use mbcopy::cyrus::dlist::Dlist;
use mbcopy::cyrus::guid::Guid;
use mbcopy::cyrus::header::MailboxHeader;
use mbcopy::cyrus::imap_set::UidSet;
use mbcopy::cyrus::index::{self, Header, IndexView, Record, Time, write_index};
use mbcopy::cyrus::mboxlist::edit::{RecordEdit, ServerEdit};
use mbcopy::cyrus::mboxlist::mbtype::Flag;
use mbcopy::cyrus::mboxlist::{MailboxEntry, MailboxList};
use mbcopy::cyrus::name::{MailboxName, Namespace, UniqueId, VirtDomains};
use mbcopy::cyrus::path::{DirStyle, Layout};
use mbcopy::cyrus::quota::Quota;
use mbcopy::cyrus::seen::Seen;
use mbcopy::cyrus::sieve;
use mbcopy::cyrus::subscription::Subscriptions;
use mbcopy::cyrus::upgrade::{self, Beside, FileFacts, QuotaUse};
use mbcopy::wire::bulk::Chunk;
use mbcopy::wire::frame::{FrameReader, OPENING};
use mbcopy::wire::pool::Pool;
use mbcopy::wire::{manifest, v1};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A check of one format.
pub type Check = fn(&[u8]);

/// All formats that are read from disks and from peers.
pub const FORMATS: [(&str, Check); 19] = [
    ("index", index),
    ("expunge", expunge),
    ("header", header),
    ("dlist", dlist),
    ("twoskip", twoskip),
    ("skiplist", skiplist),
    ("flat", flat),
    ("seen", seen),
    ("quota", quota),
    ("subscriptions", subscriptions),
    ("annotations", annotations),
    ("imapd_conf", imapd_conf),
    ("mailbox_list", mailbox_list),
    ("names", names),
    ("cache", cache),
    ("sieve_script", sieve_script),
    ("frames", frames),
    ("manifest", manifest),
    ("bulk", bulk),
];

/// cyrus.index, as it is and with right checksums.
pub fn index(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed::index(bytes)] {
        let Ok(view) = IndexView::parse(&bytes) else { continue };
        let records: Vec<_> = view.records().collect();
        assert_eq!(records.len(), view.len() as usize);
        for record in records.iter().flatten().take(8) {
            let _ = view.find(record.uid);
        }
        let _ = (view.header_file_fits(&bytes), index::compare(&view, &view));
        upgraded(&view, None);
        if let Ok(records) = records.into_iter().collect::<Result<Vec<_>, _>>() {
            written(&view, &records);
        }
    }
}

/// An index that is written again, where its version is written, reads as the same.
fn written(view: &IndexView<'_>, records: &[Record]) {
    let header = view.header();
    // Version 19 with the records of 20 holds what a plain 19 does not.
    let out = match write_index(header.minor, header, records.iter().copied()) {
        Ok(out) => out,
        Err(_) if header.minor < 12 || (header.minor, header.record_size) == (19, 144) => return,
        Err(error) => panic!("what was read is not written: {error}"),
    };
    let back = IndexView::parse(&out).unwrap();
    let record_size = back.header().record_size;
    assert_eq!(*back.header(), Header { record_size, ..header.clone() });
    let again: Vec<_> = back.records().collect::<Result<_, _>>().unwrap();
    if header.record_size == record_size {
        assert_eq!(again, records);
    }
}

/// What becomes of an old index shows the same messages.
fn upgraded(old: &IndexView<'_>, expunge: Option<&IndexView<'_>>) {
    let seen = Seen { uids: UidSet::from_ranges(vec![(1, 5), (9, 9)]), ..Seen::default() };
    let beside = Beside { expunge, seen: Some(&seen), header_file: b"header", without: &[] };
    let facts = |record: &Record, wanted: bool| {
        let guid = wanted.then(|| Guid::of(b"message"));
        let there = !record.uid.is_multiple_of(3);
        there.then_some(FileFacts { guid, modified: Time::from_seconds(7) })
    };
    let Ok(out) = upgrade::index(old, &beside, facts) else { return };
    let new = IndexView::parse(&out).unwrap();
    assert!(new.header().minor >= 12 && new.header().minor >= old.header().minor);
    let live = |view: &IndexView<'_>| -> BTreeSet<u32> {
        let records = view.live().map(|r| r.unwrap());
        records.filter(|r| !r.is_unlinked()).map(|r| r.uid).collect()
    };
    assert_eq!(live(old), live(&new));
    assert_eq!(new.header().exists as usize, live(&new).len());
}

/// cyrus.expunge, alone and beside an index.
pub fn expunge(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed::index(bytes)] {
        let Ok(view) = IndexView::parse_expunge(&bytes) else { continue };
        assert_eq!(view.records().count(), view.len() as usize);
        let _ = view.find(3);
        let minor = view.header().minor.max(12);
        let Ok(empty) = write_index(minor, view.header(), []) else { continue };
        upgraded(&IndexView::parse(&empty).unwrap(), Some(&view));
    }
}

/// cyrus.header of both forms.
pub fn header(bytes: &[u8]) {
    if let Ok(header) = MailboxHeader::parse(bytes) {
        assert!(header.user_flags.len() <= index::MAX_USER_FLAGS);
        let again = MailboxHeader::parse(&header.to_bytes()).unwrap();
        assert_eq!(again, header);
    }
}

/// The notation of records and headers.
pub fn dlist(bytes: &[u8]) {
    if let Ok(list) = Dlist::parse(bytes) {
        assert_eq!(Dlist::parse(&list.to_bytes()).unwrap(), list);
    }
    if let Ok((_, end)) = Dlist::parse_prefix(bytes) {
        assert!(end <= bytes.len());
    }
}

/// twoskip, as it is and with right checksums.
pub fn twoskip(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), sealed::twoskip(bytes)] {
        let Ok(db @ Database::Twoskip(_)) = Database::open(bytes.into(), &Engine::Twoskip) else {
            continue;
        };
        let Ok(entries) = db.entries() else { continue };
        for (key, _) in entries.iter().take(16) {
            let _ = (db.get(key), db.prefix_limited(key, 1));
        }
        let _ = (db.get(b"user.x"), db.prefix(b"user."));
        let map: BTreeMap<Bytes, Bytes> = entries.into_iter().collect();
        let entries: Vec<_> = map.into_iter().collect();
        let again = Database::open(twoskip::write(&entries).into(), &Engine::Twoskip).unwrap();
        assert_eq!(again.entries().unwrap(), entries);
    }
}

/// skiplist.
pub fn skiplist(bytes: &[u8]) {
    let Ok(db) = Database::open(Bytes::copy_from_slice(bytes), &Engine::Skiplist) else { return };
    if let Database::Skiplist(_) = db {
        let entries = db.entries().unwrap();
        assert!(entries.is_sorted_by(|(a, _), (b, _)| a < b));
        for (key, value) in &entries {
            assert_eq!(db.get(key).unwrap().as_ref(), Some(value));
        }
        assert!(db.torn_tail().is_none_or(|at| at < bytes.len() as u64));
    }
}

/// Lines of text.
pub fn flat(bytes: &[u8]) {
    let Ok(db) = Database::open(Bytes::copy_from_slice(bytes), &Engine::Flat) else { return };
    let Ok(entries) = db.entries() else { return };
    for (key, _) in entries.iter().take(16) {
        assert!(db.get(key).unwrap().is_some());
        assert!(!db.prefix(key).unwrap().is_empty());
    }
}

/// The value of a seen database.
pub fn seen(bytes: &[u8]) {
    if let Ok(seen) = Seen::parse(bytes) {
        assert_eq!(Seen::parse(&seen.to_bytes()).unwrap(), seen);
    }
}

/// A quota root, and what becomes of it on a newer server.
pub fn quota(bytes: &[u8]) {
    let Ok(Some(old)) = Quota::parse(bytes) else { return };
    let used = QuotaUse { storage: 1, messages: 2, annotations: 3, folders: 4 };
    let new = Quota::parse(&upgrade::quota(&old, &used)).unwrap().unwrap();
    let limits = |q: &Quota| {
        let all = [q.storage, q.message, q.annotation_storage, q.num_folders];
        all.map(|resource| resource.and_then(|r| r.limit))
    };
    assert_eq!(limits(&old), limits(&new));
}

/// Subscriptions of both forms.
pub fn subscriptions(bytes: &[u8]) {
    let inbox = MailboxName::from_internal(b"user.jan").unwrap();
    let Ok(read) = Subscriptions::parse(Bytes::copy_from_slice(bytes), &inbox) else { return };
    let again = Subscriptions::parse(read.to_flat(&inbox).into(), &inbox).unwrap();
    let set = |s: &Subscriptions| s.names.iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(set(&read), set(&again));
    assert!(again.odd.is_empty());
}

/// Keys and values of annotations.
pub fn annotations(bytes: &[u8]) {
    if let Ok(key) = AnnotationKey::parse(bytes) {
        assert_eq!(AnnotationKey::parse(&key.to_bytes()).unwrap(), key);
    }
    if let Ok(key) = AnnotationKey::parse_message(bytes) {
        assert_eq!(AnnotationKey::parse_message(&key.to_bytes()).unwrap(), key);
    }
    if let Ok(value) = AnnotationValue::parse(bytes) {
        assert_eq!(value.to_bytes().unwrap(), bytes);
    }
}

/// imapd.conf, the paths that it leads to, and the private one made from it.
pub fn imapd_conf(bytes: &[u8]) {
    for defaults in [Defaults::V2, Defaults::V3] {
        let mut include = |_: &Path| Ok(b"included: yes\n".to_vec());
        let Ok(config) = Config::parse(bytes, defaults, &mut include) else { continue };
        let _ = (config.namespace(), config.umask(), config.admins(), config.expunge_mode());
        let _ = (config.delete_delayed(), config.conversations(), config.reverseacls());
        let _ = (config.partitions(), config.defaultpartition(), config.db_engine(DbKind::Quota));
        let layout = Layout::new(&config);
        let name = MailboxName::from_internal(b"d.org!user.x.A").unwrap();
        let id = UniqueId::new(b"0123-4567").unwrap();
        for partition in config.partitions().unwrap_or_default().into_keys() {
            for style in [DirStyle::Name, DirStyle::Id(&id)] {
                let _ = layout.mailbox_dir(&name, style, &partition);
                for file in MetaFile::ALL {
                    let _ = layout.meta_file(file, &name, style, &partition);
                }
            }
        }
        let overrides = [("configdirectory", "/s/conf"), ("sievedir", "/s/sieve")];
        let overrides = overrides.map(|(option, value)| (option.to_owned(), value.to_owned()));
        // Such a value would take the next line of the shadow with it.
        let swallows = config.options().any(|(_, value)| value.ends_with('\\'));
        let Ok(shadow) = config.shadow(&overrides.into()) else {
            assert!(swallows, "the shadow of {:?}", bytes.escape_ascii().to_string());
            continue;
        };
        let shadow = Config::parse(shadow.as_bytes(), defaults, &mut |_| Err("none".into()));
        assert_eq!(shadow.unwrap().configdirectory().unwrap(), Path::new("/s/conf"));
        let _ = config.below(Path::new("/mnt")).configdirectory();
    }
}

/// mailboxes.db as a whole, and a value of it.
pub fn mailbox_list(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    let top = MailboxName::from_internal(b"user.x").unwrap();
    let parse = |raw: Bytes| MailboxEntry::parse(top.clone(), Bytes::new(), raw);
    if let Ok(entry) = parse(bytes.clone()) {
        // A record that Cyrus has no room for is not written.
        if let Ok(same) = RecordEdit::default().apply(&bytes) {
            let same = MailboxEntry { raw: bytes.clone(), ..parse(same.into()).unwrap() };
            assert_eq!(same, entry);
        }
        let server = ServerEdit::Set("new.example.org".into());
        let edit = RecordEdit { server, add: vec![Flag::Moving], ..RecordEdit::default() };
        if let Ok(moving) = edit.apply(&bytes) {
            let moving = parse(moving.into()).unwrap();
            assert!(moving.mbtype.has(Flag::Moving));
            assert_eq!(moving.acl, entry.acl);
        }
    }
    let Ok(db) = Database::open(bytes, &Engine::Flat) else { return };
    let Ok(list) = MailboxList::from_database(&db) else { return };
    let _ = (list.owned(&top, "DELETED"), list.get(&top));
    for entry in list.all().unwrap_or_default().iter().take(16) {
        if let Some(id) = &entry.uniqueid {
            let _ = list.name_of_id(id);
        }
    }
}

/// Frames behind an opening, and whatever comes before one.
pub fn frames(bytes: &[u8]) {
    let _ = FrameReader::open(bytes, Pool::default());
    let stream = [OPENING, bytes].concat();
    let mut reader = FrameReader::open(&stream[..], Pool::default()).unwrap();
    while let Ok(Some(frame)) = reader.next_frame() {
        let _ = frame.decode::<v1::Request>("request");
        let _ = frame.decode::<v1::Reply>("reply");
        let _ = frame.decode::<v1::Part>("part");
        let again = [OPENING.as_slice(), &frame.encode()].concat();
        let mut again = FrameReader::open(&again[..], Pool::default()).unwrap();
        assert_eq!(again.next_frame().unwrap().unwrap(), frame);
    }
}

/// Names of mailboxes, as databases keep them and as people type them.
pub fn names(bytes: &[u8]) {
    let spaces = [false, true].map(|unix_separator| Namespace {
        unix_separator,
        virtdomains: VirtDomains::Userid,
        default_domain: Some("home.org".into()),
    });
    let read = [MailboxName::from_internal(bytes), MailboxName::from_db_key(bytes)].into_iter();
    let typed = spaces.iter().map(|space| MailboxName::from_external(bytes, space));
    for name in read.chain(typed).flatten() {
        assert_eq!(MailboxName::from_internal(name.as_bytes()).as_ref(), Ok(&name));
        let (_, _, _) = (name.display(), name.userid(), name.deleted_original("DELETED"));
        for component in name.components() {
            assert!(!component.is_empty() && component != b".." && !component.contains(&b'/'));
        }
        if let Some(inbox) = name.inbox() {
            assert!(inbox == name || name.is_below(&inbox));
        }
        spaces.iter().for_each(|space| drop(name.to_external(space)));
    }
}

/// What Cyrus has parsed of a message.
pub fn cache(bytes: &[u8]) {
    if let Some(structure) = cache::bodystructure(bytes) {
        assert!(structure.len() + 8 <= bytes.len());
        let _ = cache::has_global(structure);
    }
}

/// A sieve script that is a message.
pub fn sieve_script(bytes: &[u8]) {
    if let Some((name, text)) = sieve::script(bytes) {
        assert!(!name.is_empty() && !name.contains(['/', '\n']));
        assert!(bytes.ends_with(text));
    }
}

/// Manifests, and runs of UIDs.
pub fn manifest(bytes: &[u8]) {
    if let Some(entries) = manifest::entries(bytes) {
        let entries: Vec<_> = entries.collect();
        let mut out = BytesMut::new();
        entries.iter().for_each(|entry| entry.encode(&mut out));
        assert_eq!(manifest::entries(&out).unwrap().collect::<Vec<_>>(), entries);
    }
    let numbers: Vec<u32> =
        bytes.as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b)).collect();
    let wanted = UidSet::from_ranges(manifest::ranges(&numbers));
    for [first, count] in numbers.as_chunks::<2>().0 {
        assert_eq!(*count > 0, *count > 0 && wanted.contains(*first));
    }
    let uids = numbers.iter().copied().filter(|uid| *uid > 0);
    let uids: BTreeSet<u32> = uids.collect();
    let again = UidSet::from_ranges(manifest::ranges(&manifest::runs(uids.iter().copied())));
    assert_eq!(again, UidSet::from_uids(uids));
}

/// Chunks of files, compressed or not.
pub fn bulk(bytes: &[u8]) {
    let mut frame = Bytes::copy_from_slice(bytes);
    while !frame.is_empty() {
        let Ok(chunk) = Chunk::decode(&mut frame) else { return };
        if let Ok(plain) = chunk.plain() {
            assert!(chunk.gone || plain.len() as u64 <= chunk.size);
        }
        let mut again = BytesMut::new();
        chunk.encode(&mut again);
        assert_eq!(Chunk::decode(&mut again.freeze()).unwrap(), chunk);
    }
}
