//! A server's archive, and names as its clients saw them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use mbcopy::cyrus::db::{Database, Engine};
use mbcopy::cyrus::seen::Seen;
use serde_json::Value;

/// A server's files, by path below `/old`.
pub struct Server {
    pub files: BTreeMap<String, Bytes>,
    /// Users, with what their clients saw.
    pub users: serde_json::Map<String, Value>,
}

impl Server {
    pub fn open(name: &str) -> Self {
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

    pub fn option(&self, name: &str) -> Option<String> {
        let conf = String::from_utf8(self.files["imapd.conf"].to_vec()).unwrap();
        let mut lines = conf.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| *key == name);
        found.map(|(_, value)| value.trim_start_matches("/old/").to_owned())
    }

    /// Internal names and directories of all mailboxes.
    pub fn directories(&self) -> BTreeMap<String, &str> {
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

    pub fn file(&self, directory: &str, name: &str) -> Option<&Bytes> {
        self.files.get(&format!("{directory}/{name}"))
    }

    /// The only file of a name, in which `.` may be `^`.
    pub fn user_file(&self, name: &str, suffix: &str) -> Option<&Bytes> {
        let names = [format!("/{name}{suffix}"), format!("/{}{suffix}", name.replace('.', "^"))];
        let mut found = self.files.iter().filter(|(p, _)| names.iter().any(|n| p.ends_with(n)));
        found.next().map(|(_, bytes)| bytes)
    }

    pub fn seen(&self, user: &str) -> BTreeMap<Bytes, Seen> {
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
pub fn internal(user: &str, name: &str, namespace: &Value) -> String {
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

pub fn number(value: &Value) -> u64 {
    let text = value.as_str().map(|text| text.parse().unwrap());
    text.or(value.as_u64()).unwrap()
}

pub fn bytes(text: Option<&[u8]>) -> String {
    String::from_utf8(text.unwrap_or_default().to_vec()).unwrap()
}
