//! Disks of old servers, written here byte by byte as those servers wrote them, so that
//! what is expected of them is known from no parser of mbcopy's.

use super::captured::seconds;
use lab::fingerprint::{Fingerprint, Take};
use lab::host::Host;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Flags of a record.
pub const ANSWERED: u32 = 1;
/// \Flagged
pub const FLAGGED: u32 = 2;
/// \Deleted
pub const DELETED: u32 = 4;
/// \Draft
pub const DRAFT: u32 = 8;
/// \Seen, from minor 12 on.
pub const SEEN: u32 = 16;
/// Expunged, from minor 12 on.
pub const EXPUNGED: u32 = 1 << 31;
/// Everybody shares what is seen; an option of the index.
pub const SHAREDSEEN: u32 = 1 << 2;

/// When the disk's files were written.
const WRITTEN: i64 = 1_200_000_000;

/// What everything before the body of a cyrus.header is.
const HEADER: &[u8] = b"\xa1\x02\x8b\x0dCyrus mailbox header\n\
\"The best thing about this system was that it had lots of goals.\"\n\
\t--Jim Morris on Andrew\n";

/// A message of a folder.
#[derive(Clone)]
pub struct Message {
    pub uid: u32,
    /// INTERNALDATE in seconds since 1970; 0 is not known.
    pub date: u32,
    pub flags: u32,
    /// Numbers of keywords.
    pub keywords: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A plain message.
pub fn message(uid: u32, flags: u32, keywords: &[usize]) -> Message {
    let bytes = format!(
        "From: <a{uid}@example.org>\r\nSubject: number {uid}\r\n\
         Message-ID: <{uid}.{flags}@example.org>\r\n\r\nText of {uid}.\r\n"
    );
    let date = 1_000_000_000 + uid * 86_400;
    Message { uid, date, flags, keywords: keywords.to_vec(), bytes: bytes.into_bytes() }
}

/// A folder of the disk.
#[derive(Clone)]
pub struct Folder {
    /// Internal.
    pub name: &'static str,
    /// Its directory, below the disk's root; that of its messages.
    pub directory: String,
    /// That of its metadata, if it is another one.
    pub metadata: Option<String>,
    pub partition: &'static str,
    pub minor: u32,
    pub uidvalidity: u32,
    pub last_uid: u32,
    pub options: u32,
    pub id: &'static str,
    pub quota_root: &'static str,
    pub keywords: &'static [&'static str],
    /// `id rights id rights`
    pub acl: &'static str,
    pub messages: Vec<Message>,
    /// In its cyrus.expunge.
    pub expunged: Vec<Message>,
}

impl Folder {
    /// A folder with some messages.
    pub fn new(name: &'static str, directory: &str, minor: u32) -> Folder {
        Folder {
            name,
            directory: directory.to_owned(),
            metadata: None,
            partition: "default",
            minor,
            uidvalidity: 1_000_000 + minor,
            last_uid: 20,
            options: 0,
            id: "",
            quota_root: "",
            keywords: &["$Label1", "", "Work"],
            acl: "",
            messages: vec![
                message(2, ANSWERED, &[]),
                message(3, FLAGGED | DELETED, &[0]),
                message(7, DRAFT, &[0, 2]),
                message(11, 0, &[2]),
            ],
            expunged: Vec::new(),
        }
    }

    fn header(&self) -> Vec<u8> {
        let flags: String = self.keywords.iter().map(|keyword| format!("{keyword} ")).collect();
        let acl: String = self.acl.split(' ').map(|word| format!("{word}\t")).collect();
        // Before 2.0 there was none.
        let id = if self.id.is_empty() { String::new() } else { format!("\t{}", self.id) };
        let text = format!("{}{id}\n{flags}\n{acl}\n", self.quota_root);
        [HEADER, text.as_bytes()].concat()
    }
}

fn put(out: &mut [u8], at: usize, value: u32) {
    out[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(out: &mut [u8], at: usize, value: u64) {
    out[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn crc(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

/// A cyrus.index, or a cyrus.expunge, of minor 2 to 13.
fn index(folder: &Folder, messages: &[Message], header_file: &[u8]) -> Vec<u8> {
    let minor = folder.minor;
    let (header_size, record_size) = match minor {
        2 => (44, 52),
        3 => (56, 52),
        4 => (76, 52),
        5 => (76, 56),
        6 => (76, 60),
        7 => (76, 72),
        8 => (92, 80),
        9 => (96, 80),
        10 => (96, 88),
        12 => (128, 96),
        13 => (128, 104),
        other => panic!("minor {other}"),
    };
    let live = |m: &&Message| m.flags & EXPUNGED == 0;
    let count = |flag: u32| messages.iter().filter(live).filter(|m| m.flags & flag != 0).count();
    let used: usize = messages.iter().filter(live).map(|m| m.bytes.len()).sum();
    let mut out = vec![0; header_size];
    put(&mut out, 0, 4);
    put(&mut out, 8, minor);
    put(&mut out, 12, header_size as u32);
    put(&mut out, 16, record_size as u32);
    put(&mut out, 20, messages.len() as u32);
    put(&mut out, 24, 1_000_000_000);
    put(&mut out, 28, folder.last_uid);
    // Up to 5 there is one word less for what is used.
    let shorter = if minor < 6 { 4 } else { 0 };
    put(&mut out, 36 - shorter, used as u32);
    put(&mut out, 44 - shorter, folder.uidvalidity);
    if minor >= 3 {
        put(&mut out, 48 - shorter, count(DELETED) as u32);
        put(&mut out, 52 - shorter, count(ANSWERED) as u32);
        put(&mut out, 56 - shorter, count(FLAGGED) as u32);
    }
    if minor >= 4 {
        put(&mut out, 60 - shorter, folder.options | 1);
    }
    if minor >= 8 {
        put64(&mut out, 68, 50);
    }
    if minor >= 12 {
        put(&mut out, 84, messages.iter().filter(live).count() as u32);
        put(&mut out, 96, crc(header_file));
        put(&mut out, 104, folder.last_uid);
        let sum = crc(&out[..124]);
        put(&mut out, 124, sum);
    }
    for message in messages {
        let mut record = vec![0; record_size];
        put(&mut record, 0, message.uid);
        put(&mut record, 4, message.date);
        put(&mut record, 8, message.date);
        put(&mut record, 12, message.bytes.len() as u32);
        put(&mut record, 16, 60);
        put(&mut record, 20, if minor >= 12 { message.date } else { 60 });
        put(&mut record, 28, 1_100_000_000);
        put(&mut record, 32, message.flags);
        let mut keywords = [0_u32; 4];
        message.keywords.iter().for_each(|n| keywords[n / 32] |= 1 << (n % 32));
        keywords.iter().enumerate().for_each(|(n, word)| put(&mut record, 36 + 4 * n, *word));
        if minor >= 5 {
            put(&mut record, 52, 1);
        }
        match minor {
            8 | 9 => put64(&mut record, 72, 40),
            10.. => put64(&mut record, 80, 40),
            _ => {}
        }
        if minor >= 12 {
            record[60..80].copy_from_slice(&Sha1::digest(&message.bytes));
            let sum = crc(&record[..record_size - 4]);
            put(&mut record, record_size - 4, sum);
        }
        out.extend(record);
    }
    out
}

/// Keys and values of a database.
pub type Entries = BTreeMap<Vec<u8>, Vec<u8>>;

/// Lines of text.
pub fn flat(entries: &Entries) -> Vec<u8> {
    entries.iter().flat_map(|(key, value)| [key, &b"\t"[..], value, b"\n"].concat()).collect()
}

/// A skiplist: half of it in its list, half in its log, and at its end what a killed
/// process has begun to write and not committed.
pub fn skiplist(entries: &Entries) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
    let padded = |bytes: &[u8]| {
        let mut out = bytes.to_vec();
        out.resize(bytes.len().next_multiple_of(4), 0);
        out
    };
    let record = |kind: u32, key: &[u8], value: &[u8], next: u32| {
        let lengths = [words(&[kind, key.len() as u32]), words(&[value.len() as u32])];
        let [head, middle] = lengths;
        [head, padded(key), middle, padded(value), words(&[next, u32::MAX])].concat()
    };
    let (listed, logged): (Vec<_>, Vec<_>) =
        entries.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let dummy = [words(&[257, 0, 0]), words(&[0; 20]), words(&[u32::MAX])].concat();
    let mut list = Vec::new();
    for (_, (key, value)) in &listed {
        list.extend(record(1, key, value, 0));
    }
    let mut log = Vec::new();
    for (_, (key, value)) in &logged {
        log.extend(record(2, key, value, 0));
        log.extend(words(&[255]));
    }
    log.extend(record(2, b"user.nobody", b"0 default nobody\tlrs\t", 0));
    let start = 48 + dummy.len() + list.len();
    let head = words(&[1, 2, 20, 1, listed.len() as u32, start as u32, 1_000_000_000]);
    [b"\xa1\x02\x8b\x0dskiplist file\0\0\0".to_vec(), head, dummy, list, log].concat()
}

/// A value of a seen database.
pub fn seen(last_uid: u32, uids: &str) -> Vec<u8> {
    format!("1 1100000000 {last_uid} 1100000000 {uids}").into_bytes()
}

/// An annotation: key and value as a 32-bit machine wrote it.
pub fn annotation(mailbox: &str, entry: &str, user: &str, value: &str) -> (Vec<u8>, Vec<u8>) {
    let key = format!("{mailbox}\0{entry}\0{user}\0").into_bytes();
    let length = (value.len() as u32).to_be_bytes().to_vec();
    let text = format!("{value}\0text/plain\0").into_bytes();
    (key, [length, text, 1_100_000_000_u32.to_be_bytes().to_vec()].concat())
}

/// The disk of an old server, with what its users saw.
#[derive(Default)]
pub struct Disk {
    files: BTreeMap<String, Vec<u8>>,
    /// mailboxes.db
    pub mailboxes: Entries,
    expected: BTreeMap<(String, String), View>,
}

/// What a user saw of a folder: UIDVALIDITY, and of each message flags, date and SHA-1.
type View = (u32, BTreeMap<u32, (BTreeSet<String>, i64, String)>);

impl Disk {
    /// A disk with this imapd.conf.
    pub fn new(conf: &str) -> Disk {
        let mut disk = Disk::default();
        disk.file("imapd.conf", conf.as_bytes().to_vec());
        disk
    }

    /// Adds a file, below the disk's root.
    pub fn file(&mut self, path: &str, bytes: Vec<u8>) {
        self.files.insert(path.to_owned(), bytes);
    }

    /// Takes a file away.
    pub fn remove(&mut self, path: &str) {
        self.files.remove(path).unwrap();
    }

    /// Adds a folder. `seen_by` says who saw it, as what, and which messages he had read.
    pub fn folder(&mut self, folder: &Folder, seen_by: &[(&str, &str, &[u32])]) {
        let metadata = folder.metadata.as_ref().unwrap_or(&folder.directory);
        let header = folder.header();
        self.file(&format!("{metadata}/cyrus.index"), index(folder, &folder.messages, &header));
        if !folder.expunged.is_empty() {
            let expunge = index(folder, &folder.expunged, &header);
            self.file(&format!("{metadata}/cyrus.expunge"), expunge);
        }
        self.file(&format!("{metadata}/cyrus.header"), header);
        for message in folder.messages.iter().chain(&folder.expunged) {
            self.file(&format!("{}/{}.", folder.directory, message.uid), message.bytes.clone());
        }
        let acl: String = folder.acl.split(' ').map(|word| format!("{word}\t")).collect();
        let record = format!("0 {} {acl}", folder.partition);
        self.mailboxes.insert(folder.name.as_bytes().to_vec(), record.into_bytes());
        for (user, shown, read) in seen_by {
            let messages = folder.messages.iter().filter(|m| m.flags & EXPUNGED == 0);
            let messages = messages.map(|message| {
                let mut flags = flag_names(message.flags & !SEEN);
                let keywords = message.keywords.iter().map(|n| folder.keywords[*n].to_owned());
                flags.extend(keywords);
                flags.extend(read.contains(&message.uid).then(|| "\\Seen".to_owned()));
                // One that is not known is that of the file.
                let date = if message.date == 0 { WRITTEN } else { i64::from(message.date) };
                (message.uid, (flags, date, hex(&Sha1::digest(&message.bytes))))
            });
            let view = (folder.uidvalidity, messages.collect());
            self.expected.insert(((*user).to_owned(), (*shown).to_owned()), view);
        }
    }

    /// Puts the disk on a host, below a directory, with files that belong to Cyrus.
    pub fn install(&self, host: &Host, root: &str) {
        let place = tempfile::tempdir().unwrap();
        let archive = place.path().join("disk.tar");
        let mut tar = tar::Builder::new(std::fs::File::create(&archive).unwrap());
        for (path, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(WRITTEN as u64);
            tar.append_data(&mut header, Path::new(path), &bytes[..]).unwrap();
        }
        tar.finish().unwrap();
        drop(tar);
        host.install(&archive, "/root/disk.tar").unwrap();
        let unpack = format!(
            "rm -rf {root}; mkdir -p {root}; tar xf /root/disk.tar -C {root}; \
             chown -R cyrus:mail {root}"
        );
        host.run(&["sh", "-c", &unpack]).unwrap();
    }

    /// Looks that everybody sees what he saw; what each user sees now.
    pub fn compare(&self, host: &Host) -> BTreeMap<String, Fingerprint> {
        let users: BTreeSet<&String> = self.expected.keys().map(|(user, _)| user).collect();
        let mut all = BTreeMap::new();
        for user in users {
            let take = Take { all: true, admin: false, expunged: false, ..Take::default() };
            let now = Fingerprint::take(host, user, &take).unwrap();
            assert!(now.errors.is_empty(), "{user}: {:?}", now.errors);
            let folders =
                now.own.mailboxes.iter().filter(|(_, mailbox)| !mailbox.status.is_empty());
            let folders = folders.map(|(name, mailbox)| {
                let uidvalidity = mailbox.status["UIDVALIDITY"].parse().unwrap();
                let messages = mailbox.messages.iter().map(|(uid, message)| {
                    let date = seconds(&message.date);
                    (*uid, (message.flags.clone(), date, message.sha1.clone()))
                });
                (name.clone(), (uidvalidity, messages.collect()))
            });
            let folders: BTreeMap<String, View> = folders.collect();
            let wanted = self.expected.iter().filter(|((who, _), _)| who == user);
            let wanted: BTreeMap<String, View> =
                wanted.map(|((_, name), view)| (name.clone(), view.clone())).collect();
            assert_eq!(folders, wanted, "{user}");
            all.insert(user.clone(), now);
        }
        all
    }
}

fn flag_names(flags: u32) -> BTreeSet<String> {
    let all = [
        (ANSWERED, "\\Answered"),
        (FLAGGED, "\\Flagged"),
        (DELETED, "\\Deleted"),
        (DRAFT, "\\Draft"),
    ];
    all.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
