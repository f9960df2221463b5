//! What clients of a real old server saw, and whether clients of the new one see it.

use lab::fingerprint::{Fingerprint, Mailbox, Message, Take};
use lab::host::Host;
use lab::imap::unmutf7;
use lab::sieve::Sieve;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What Cyrus computes or keeps by itself, wherever the mailbox is.
const COMPUTED: [&str; 8] = [
    "uniqueid",
    "sharedseen",
    "pop3newuidl",
    "duplicatedeliver",
    "synccrcs",
    "foldermodseq",
    "hasalarms",
    "annotsize",
];

/// An old server's disk, with what its clients saw.
pub struct Captured {
    name: String,
    seen_by: Value,
}

/// How much was compared, so that nothing passes for want of data.
#[derive(Debug, PartialEq, Eq)]
pub struct Counts {
    /// Folders as one user saw them.
    pub views: usize,
    /// Messages in those.
    pub messages: usize,
    /// \Seen flags on those.
    pub seen: usize,
    /// Of these, in folders of others and shared ones.
    pub seen_elsewhere: usize,
    /// Modification sequences.
    pub modseqs: usize,
    /// ACLs.
    pub acls: usize,
    /// Usages and limits of quota roots.
    pub quotas: usize,
    /// Subscriptions.
    pub subscriptions: usize,
    /// Annotations of mailboxes.
    pub annotations: usize,
    /// Annotations of messages.
    pub message_annotations: usize,
    /// Special uses.
    pub special_uses: usize,
    /// Sieve scripts.
    pub scripts: usize,
}

/// Nothing was compared.
pub const NOTHING: Counts = Counts {
    views: 0,
    messages: 0,
    seen: 0,
    seen_elsewhere: 0,
    modseqs: 0,
    acls: 0,
    quotas: 0,
    subscriptions: 0,
    annotations: 0,
    message_annotations: 0,
    special_uses: 0,
    scripts: 0,
};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spools")
}

impl Captured {
    /// The disk of `tests/fixtures/spools` with this name.
    pub fn open(name: &str) -> Captured {
        let json = std::fs::read(fixtures().join(format!("{name}.json"))).unwrap();
        Captured { name: name.to_owned(), seen_by: serde_json::from_slice(&json).unwrap() }
    }

    /// The disk's files.
    pub fn archive(&self) -> PathBuf {
        fixtures().join(format!("{}.tar.gz", self.name))
    }

    /// The options that give names their form, as the old server had them.
    pub fn naming(&self) -> [(&'static str, &'static str); 2] {
        ["altnamespace", "unixhierarchysep"].map(|option| {
            let value = &self.seen_by["imapd_conf"][option];
            (option, if value == "yes" { "yes" } else { "no" })
        })
    }

    fn users(&self) -> &serde_json::Map<String, Value> {
        self.seen_by.get("users").unwrap_or(&self.seen_by).as_object().unwrap()
    }

    /// Who had an account.
    pub fn user_names(&self) -> Vec<&str> {
        self.users().keys().map(String::as_str).collect()
    }

    /// What is moved by itself, as an admin types it: all users, and what nobody owns.
    pub fn tops(&self) -> Vec<String> {
        let separator = if self.naming()[1].1 == "yes" { "/" } else { "." };
        let users = self.users().keys().map(|user| format!("user{separator}{user}"));
        let shared = |name: &str| name.trim_start_matches("Shared Folders/") == "announce";
        let shared = self.users().values().any(|u| boxes(u).any(|(name, _)| shared(name)));
        users.chain(shared.then(|| "announce".to_owned())).collect()
    }

    /// Compares what each user sees now. Scripts that require something that the new
    /// server knows no more are shown to nobody.
    pub fn compare(&self, host: &Host, knows: impl Fn(&str) -> bool) -> Counts {
        let mut counts = NOTHING;
        let mut different = Vec::new();
        let take =
            Take { all: true, admin: false, expunged: false, sieve: false, ..Take::default() };
        for (user, then) in self.users() {
            let now = Fingerprint::take(host, user, &take).unwrap();
            // Who may only see that a folder is there.
            let refused = |error: &&String| !error.ends_with("NO Permission denied");
            let errors: Vec<_> = now.errors.iter().filter(refused).collect();
            assert!(errors.is_empty(), "{}: {user}: {errors:?}", self.name);
            let mut comparing = Comparing { user, counts: &mut counts, different: &mut different };
            comparing.user(then, &now);
        }
        // Last: files become messages of a folder when somebody asks for a script.
        for (user, then) in self.users().iter().filter(|(_, then)| then.get("sieve").is_some()) {
            let mut comparing = Comparing { user, counts: &mut counts, different: &mut different };
            comparing.scripts(then, host.sieve(user).unwrap(), &knows);
        }
        assert!(different.is_empty(), "{}:\n{}", self.name, different.join("\n"));
        counts
    }

    /// The UIDs that each of a user's folders had.
    pub fn uids(&self, user: &str) -> BTreeMap<String, BTreeSet<u32>> {
        let all = boxes(&self.users()[user]).map(|(name, folder)| {
            let uids = messages(&folder["messages"]).into_keys().collect();
            (unmutf7(name), uids)
        });
        all.collect()
    }
}

struct Comparing<'a> {
    user: &'a str,
    counts: &'a mut Counts,
    different: &'a mut Vec<String>,
}

impl Comparing<'_> {
    fn same<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, then: T, now: T) {
        if then != now {
            let user = self.user;
            self.different.push(format!("{user}: {what}: {then:?} is now {now:?}"));
        }
    }

    fn user(&mut self, then: &Value, now: &Fingerprint) {
        let listed = now.own.mailboxes.iter().filter(|(_, m)| !m.status.is_empty());
        let listed: BTreeSet<String> = listed.map(|(name, _)| name.clone()).collect();
        let had: BTreeSet<String> = boxes(then).map(|(name, _)| unmutf7(name)).collect();
        self.same("the folders", &had, &listed);
        for (name, folder) in boxes(then) {
            let name = unmutf7(name);
            let Some(mailbox) = now.own.mailboxes.get(&name) else { continue };
            self.folder(&name, folder, mailbox);
        }
        let names = then["lsub"].as_array().unwrap().iter();
        let names = names.map(|item| item.get("name").unwrap_or(item).as_str().unwrap());
        let names: BTreeSet<String> = names.map(|n| unmutf7(n.trim_matches('"'))).collect();
        self.counts.subscriptions += names.len();
        // A name that is only above a subscribed one is marked.
        let lsub = now.own.lsub.iter();
        let lsub = lsub.filter(|(_, a)| !a.to_ascii_lowercase().contains("\\noselect"));
        self.same("subscriptions", names, lsub.map(|(name, _)| name.clone()).collect());
        let then_uses = then["special_use"].as_array().into_iter().flatten();
        for (name, attributes) in then_uses.map(|s| (&s["name"], &s["attrs"])) {
            let name = unmutf7(name.as_str().unwrap());
            for wanted in words(attributes).iter().filter(|a| !a.starts_with("\\Has")) {
                let found = now.own.mailboxes[&name].attributes.contains(wanted);
                self.same(&format!("{name}: {wanted}"), true, found);
                self.counts.special_uses += 1;
            }
        }
    }

    fn scripts(&mut self, then: &Value, mut now: Sieve, knows: &impl Fn(&str) -> bool) {
        let plain = |text: &str| text.replace("\r\n", "\n");
        let then = then["sieve"].as_object().unwrap().iter();
        let then = then.map(|(name, script)| {
            let text = plain(script["script"].as_str().unwrap());
            (name.clone(), (script["active"] == true, text))
        });
        let then: BTreeMap<_, _> = then.filter(|(_, (_, text))| knows(text)).collect();
        self.counts.scripts += then.len();
        let listed = now.list().unwrap();
        let now = listed.into_iter().map(|(name, active)| {
            let text = plain(&now.get(&name).unwrap());
            (name, (active, text))
        });
        let now: BTreeMap<_, _> = now.collect();
        self.same("sieve scripts", then, now);
    }

    fn folder(&mut self, name: &str, then: &Value, now: &Mailbox) {
        self.counts.views += 1;
        let status = |item: &str| now.status.get(item).cloned().unwrap_or_default();
        self.same(
            &format!("{name}: UIDVALIDITY"),
            text(&then["uidvalidity"]),
            status("UIDVALIDITY"),
        );
        self.same(&format!("{name}: UIDNEXT"), text(&then["uidnext"]), status("UIDNEXT"));
        if let Some(modseq) = then.get("highestmodseq") {
            self.same(&format!("{name}: HIGHESTMODSEQ"), text(modseq), status("HIGHESTMODSEQ"));
        }
        let had = messages(&then["messages"]);
        let uids = |of: &mut dyn Iterator<Item = u32>| of.collect::<Vec<_>>();
        self.same(
            &format!("{name}: UIDs"),
            uids(&mut had.keys().copied()),
            uids(&mut now.messages.keys().copied()),
        );
        let elsewhere = !now.rights.contains('a') || name == "Shared Folders/announce";
        for (uid, then) in had {
            let Some(now) = now.messages.get(&uid) else { continue };
            self.message(&format!("{name}: {uid}"), elsewhere, then, now);
        }
        if let Some(acl) = acl(&then["acl"]).filter(|_| now.rights.contains('a')) {
            let now = now.acl.iter().map(|(id, rights)| (id.clone(), modern(rights)));
            self.same(&format!("{name}: ACL"), acl, now.collect());
            self.counts.acls += 1;
        }
        for (root, limits) in quotas(then) {
            // Clients of 2.x were told the root's internal name.
            let mut roots = now.quota.iter();
            let own = format!("user.{}", self.user);
            let shown = match root.strip_prefix(&own) {
                Some(rest) => format!("INBOX{rest}"),
                None => root.clone(),
            };
            let found = roots.find(|(name, _)| [&root, &shown].contains(name));
            let found = found.map(|(_, usage)| usage.clone()).unwrap_or_default();
            for (kind, used, limit) in limits {
                let wanted = format!("{kind} {used} {limit}");
                let there = found.trim_matches(['(', ')']).contains(&wanted);
                if !there {
                    self.same(&format!("{name}: quota of {root}"), wanted, found.clone());
                }
                self.counts.quotas += 1;
            }
        }
        for (entry, value) in annotations(then) {
            let found = now.metadata.get(&entry).cloned().unwrap_or_default();
            self.same(&format!("{name}: {entry}"), value, found);
            self.counts.annotations += 1;
        }
    }

    fn message(&mut self, at: &str, elsewhere: bool, then: &Value, now: &Message) {
        let flags: BTreeSet<String> =
            words(&then["flags"]).into_iter().filter(|flag| flag != "\\Recent").collect();
        let seen = usize::from(flags.contains("\\Seen"));
        self.counts.messages += 1;
        self.counts.seen += seen;
        self.counts.seen_elsewhere += if elsewhere { seen } else { 0 };
        self.same(&format!("{at}: flags"), &flags, &now.flags);
        self.same(&format!("{at}: bytes"), text(&then["sha1"]), now.sha1.clone());
        self.same(&format!("{at}: size"), then["size"].as_u64(), Some(now.size));
        let date = then.get("date").or(then.get("internaldate")).unwrap();
        self.same(&format!("{at}: date"), seconds(&text(date)), seconds(&now.date));
        if let Some(modseq) = then.get("modseq") {
            self.same(&format!("{at}: MODSEQ"), modseq.as_u64(), Some(now.modseq));
            self.counts.modseqs += 1;
        }
        // entry (kind value kind value) entry (...)
        let list = then["annotations"].as_array();
        for pair in list.into_iter().flat_map(|list| list.chunks(2)) {
            for value in pair[1].as_array().unwrap().chunks(2) {
                let (kind, value) = (text(&value[0]), text(&value[1]));
                let entry = format!("{} {kind}", text(&pair[0]));
                let found = now.annotations.get(&entry).cloned();
                let found = found.unwrap_or_else(|| "NIL".to_owned());
                self.same(&format!("{at}: {entry}"), value, found);
                self.counts.message_annotations += 1;
            }
        }
    }
}

fn boxes(user: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let all = user["mailboxes"].as_object().unwrap().iter();
    all.filter(|(_, folder)| folder.get("messages").is_some()).map(|(n, f)| (n.as_str(), f))
}

/// Both forms of the JSON: an object by UID, or a list.
fn messages(value: &Value) -> BTreeMap<u32, &Value> {
    match value {
        Value::Array(list) => list.iter().map(|m| (m["uid"].as_u64().unwrap() as u32, m)).collect(),
        map => map.as_object().unwrap().iter().map(|(u, m)| (u.parse().unwrap(), m)).collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn words(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        other => text(other).split_whitespace().map(str::to_owned).collect(),
    }
}

/// An object, or the answer to GETACL: the name and then pairs.
fn acl(value: &Value) -> Option<BTreeMap<String, String>> {
    let pairs: Vec<(String, String)> = match value {
        Value::Object(map) => map.iter().map(|(id, rights)| (id.clone(), text(rights))).collect(),
        Value::String(answer) => {
            let end = if answer.starts_with('"') { answer.rfind('"')? + 1 } else { 0 };
            let rest: Vec<&str> = answer.get(end..)?.split_whitespace().collect();
            let rest = if end == 0 { rest.get(1..)? } else { &rest };
            rest.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
        }
        _ => return None,
    };
    Some(pairs.into_iter().map(|(id, rights)| (id, modern(&rights))).collect())
}

/// Rights as later versions write them, in any order: what was c and d became several.
fn modern(rights: &str) -> String {
    let letters = rights.chars().map(|letter| match letter {
        'c' => "kx".to_owned(),
        'd' => "te".to_owned(),
        other => other.to_string(),
    });
    let letters: BTreeSet<char> = letters.collect::<String>().chars().collect();
    letters.into_iter().collect()
}

/// The quota roots of a folder: resource, usage and limit of each.
fn quotas(folder: &Value) -> BTreeMap<String, Vec<(String, u64, u64)>> {
    if let Some(map) = folder.get("quota").and_then(Value::as_object) {
        let of_root = |limits: &Value| {
            let all = limits.as_object().unwrap().iter();
            all.map(|(kind, pair)| {
                (kind.clone(), pair[0].as_u64().unwrap(), pair[1].as_u64().unwrap())
            })
            .collect()
        };
        return map.iter().map(|(root, limits)| (unmutf7(root), of_root(limits))).collect();
    }
    // [[b'INBOX user.legacy'], [b'user.legacy (STORAGE 991 500000)']]
    let answer = folder.get("quotaroot").and_then(Value::as_str).unwrap_or_default();
    let parse = || {
        let (before, numbers) = answer.split_once(" (STORAGE ")?;
        let root = before.rsplit_once('\'')?.1;
        let (used, limit) = numbers.split_once(')')?.0.split_once(' ')?;
        let limits = vec![("STORAGE".to_owned(), used.parse().ok()?, limit.parse().ok()?)];
        Some((root.to_owned(), limits))
    };
    parse().into_iter().collect()
}

/// Annotations that somebody set, as METADATA names them.
fn annotations(folder: &Value) -> BTreeMap<String, String> {
    let old = folder["annotations"].as_object().into_iter().flatten();
    let old = old.flat_map(|(entry, values)| {
        values.as_object().into_iter().flatten().map(move |(kind, value)| {
            let scope = if kind == "value.priv" { "/private" } else { "/shared" };
            (format!("{scope}{entry}"), text(value))
        })
    });
    let new = folder["metadata"].as_object().into_iter().flatten();
    let all = old.chain(new.map(|(entry, value)| (entry.clone(), text(value))));
    let set = |entry: &str| !COMPUTED.iter().any(|name| entry.ends_with(&format!("/{name}")));
    all.filter(|(entry, _)| set(entry)).collect()
}

/// An INTERNALDATE, in seconds since 1970.
pub fn seconds(date: &str) -> i64 {
    let date = date.trim_matches(['"', ' ']);
    jiff::fmt::strtime::parse("%d-%b-%Y %H:%M:%S %z", date)
        .and_then(|parsed| parsed.to_timestamp())
        .unwrap_or_else(|e| panic!("{date}: {e}"))
        .as_second()
}
