//! Real files of each format, out of the spools of real servers, and messages of the
//! wire about them.

use bytes::{Bytes, BytesMut};
use mbcopy::cyrus::db::{Database, Engine, recognise};
use mbcopy::cyrus::header::MailboxHeader;
use mbcopy::cyrus::index::{IndexView, write_index};
use mbcopy::cyrus::mboxlist::MailboxList;
use mbcopy::cyrus::name::UniqueId;
use mbcopy::cyrus::upgrade;
use mbcopy::wire::bulk::Chunk;
use mbcopy::wire::frame::{Frame, Kind};
use mbcopy::wire::manifest::Entry;
use mbcopy::wire::v1;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

/// Larger ones tell a fuzzer nothing more, in bytes.
const LARGEST: usize = 16 << 10;

/// How many of one format one server gives.
const OF_EACH: usize = 8;

/// Files by format.
pub type Seeds = BTreeMap<&'static str, BTreeSet<Bytes>>;

/// The seeds of all spools in a folder.
pub fn all(folder: &Path) -> Seeds {
    let mut seeds = Seeds::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "gz") {
            let of_one = of_server(&unpack(&path));
            for (format, mut files) in of_one {
                files.retain(|f| f.len() <= LARGEST);
                // The smallest and, of what is left, the largest.
                files.sort_by_key(Bytes::len);
                let most = files.len().saturating_sub(OF_EACH / 2);
                let kept = files.iter().take(OF_EACH / 2).chain(files.iter().skip(most));
                seeds.entry(format).or_default().extend(kept.cloned());
            }
        }
    }
    seeds
}

fn unpack(path: &Path) -> BTreeMap<String, Bytes> {
    let archive = std::fs::File::open(path).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let mut files = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.header().entry_type().is_file() {
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes.into());
        }
    }
    files
}

fn of_server(files: &BTreeMap<String, Bytes>) -> BTreeMap<&'static str, Vec<Bytes>> {
    let mut found = BTreeMap::<&'static str, Vec<Bytes>>::new();
    for (path, bytes) in files {
        let mut add = |format: &'static str, bytes: &[u8]| {
            found.entry(format).or_default().push(Bytes::copy_from_slice(bytes));
        };
        match recognise(bytes) {
            Some(Engine::Twoskip) => add("twoskip", bytes),
            Some(Engine::Skiplist) => add("skiplist", bytes),
            _ => {}
        }
        let values = |bytes: &Bytes| {
            let db = Database::open(bytes.clone(), &Engine::Flat);
            db.and_then(|db| db.entries()).unwrap_or_default()
        };
        let name = path.rsplit('/').next().unwrap_or_default();
        match name {
            "cyrus.index" => {
                index(bytes, &mut add);
                let beside = path.replace("cyrus.index", "cyrus.cache");
                if let Some(cache) = files.get(&beside) {
                    cached(bytes, cache, &mut add);
                }
            }
            "cyrus.expunge" => add("expunge", bytes),
            "cyrus.header" => add("header", bytes),
            "imapd.conf" => add("imapd_conf", bytes),
            "mailboxes.db" => mailboxes(bytes, &mut add),
            "annotations.db" | "cyrus.annotations" => {
                for (key, value) in values(bytes) {
                    add("annotations", &key);
                    add("annotations", &value);
                }
            }
            _ if name.ends_with(".script") => {
                let head = format!("From: a@example.org\r\nSubject: {name}\r\n\r\n");
                add("sieve_script", &[head.as_bytes(), bytes].concat());
            }
            _ if path.contains("/quota/") => {
                add("quota", bytes);
                if bytes.starts_with(b"%") {
                    add("dlist", bytes);
                }
            }
            _ if name.ends_with(".sub") => {
                add("subscriptions", bytes);
                add("flat", bytes);
            }
            _ if name.ends_with(".seen") => {
                values(bytes).iter().for_each(|(_, value)| add("seen", value));
            }
            _ if name.ends_with('.') && bytes.len() < 2000 => message(bytes, &mut add),
            _ => {}
        }
    }
    found
}

/// The records of a cache that an index leads to.
fn cached(index: &Bytes, cache: &Bytes, add: &mut impl FnMut(&'static str, &[u8])) {
    let view = IndexView::parse(index).unwrap();
    for record in view.records().take(3) {
        let at = record.unwrap().cache_offset as usize;
        let rest = cache.get(at..).unwrap_or_default();
        add("cache", &rest[..rest.len().min(2000)]);
    }
}

/// An index, the same in every newer version, and what the wire says of it.
fn index(bytes: &Bytes, add: &mut impl FnMut(&'static str, &[u8])) {
    add("index", bytes);
    let view = IndexView::parse(bytes).unwrap();
    let records: Vec<_> = view.records().map(Result::unwrap).collect();
    if view.len() < 4 {
        for minor in view.header().minor.max(12)..=20 {
            add("index", &write_index(minor, view.header(), records.clone()).unwrap());
        }
    }
    let mut manifest = BytesMut::new();
    for record in &records {
        let guid = record.guid.map_or([0; 20], |g| *g.as_bytes());
        let expunged = record.is_expunged();
        Entry {
            uid: record.uid,
            expunged,
            archived: record.is_archived(),
            size: record.size,
            guid,
        }
        .encode(&mut manifest);
    }
    add("manifest", &manifest);
    let scan = v1::MailboxScan {
        manifest: manifest.freeze(),
        first: true,
        last: true,
        uidvalidity: view.header().uidvalidity,
        records: view.len(),
        ..v1::MailboxScan::default()
    };
    let part = v1::Part { part: Some(v1::part::Part::MailboxScan(scan)) };
    let op = v1::request::Op::Freeze(v1::Freeze { limit_ms: 10_000, wait_ms: 2_000 });
    let request = v1::Request { op: Some(op) };
    let stream = [
        Frame::message(Kind::Request, 1, &request).encode(),
        Frame::message(Kind::Part, 1, &part).encode(),
        Frame::data(1, Bytes::from_static(b"data")).encode(),
    ];
    add("frames", &stream.concat());
}

/// The list of mailboxes, its values, and the same as 3.6 has them.
fn mailboxes(bytes: &Bytes, add: &mut impl FnMut(&'static str, &[u8])) {
    // One server has a Berkeley database.
    let Ok(db) = Database::open(bytes.clone(), &Engine::Flat) else { return };
    add("mailbox_list", bytes);
    let mut lines = Vec::new();
    for (key, value) in db.entries().unwrap().into_iter().take(6) {
        add("names", &key);
        add("mailbox_list", &value);
        if value.starts_with(b"%") {
            add("dlist", &value);
        }
        lines.extend([&key[..], b"\t", &value, b"\n"].concat());
    }
    add("flat", &lines);
    let list = MailboxList::from_database(&db).unwrap();
    let id = UniqueId::new(b"87a80841-b747-4d10-a1b2-0123456789ab").unwrap();
    for entry in list.all().unwrap().iter().take(3) {
        let (by_name, by_id) = upgrade::records(entry, &id, 7, 8);
        add("mailbox_list", &by_name);
        add("dlist", &by_id);
        add("header", &upgrade::header_file(&MailboxHeader::default(), entry, &id));
    }
}

/// A message on its way, compressed and not.
fn message(bytes: &Bytes, add: &mut impl FnMut(&'static str, &[u8])) {
    let plain = Chunk {
        mailbox: 1,
        kind: 1,
        uid: 7,
        last: true,
        gone: false,
        compressed: false,
        patch: false,
        linked: false,
        same: None,
        size: bytes.len() as u64,
        offset: 0,
        mtime: 1_700_000_000,
        blake3: *blake3::hash(bytes).as_bytes(),
        bytes: bytes.clone(),
    };
    let packed = zstd::bulk::compress(bytes, 3).unwrap();
    let packed = Chunk { compressed: true, bytes: packed.into(), ..plain.clone() };
    let mut frame = BytesMut::new();
    plain.encode(&mut frame);
    packed.encode(&mut frame);
    add("bulk", &frame);
}
