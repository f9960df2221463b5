//! Everything that clients can observe of a mailbox, to be compared before and after a move.

use crate::host::Host;
use crate::imap::{Imap, Refused, Reply, Untagged, Value, quote, readable, unmutf7, words};
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};

/// What to look at.
#[derive(Clone, Debug)]
pub struct Take {
    /// Message bytes, as SHA-1; otherwise the SHA-1 that the server keeps.
    pub bodies: bool,
    /// Sieve scripts.
    pub sieve: bool,
    /// What the administrator sees: rights, quota roots, deleted mailboxes, annotations.
    pub admin: bool,
    /// Messages that are expunged but not removed yet, by `unexpunge -l` in the host.
    pub expunged: bool,
    /// Other users' and shared folders that this user sees belong to the user's own view.
    pub all: bool,
    /// Other users whose views of this user's folders are taken.
    pub others: Vec<String>,
}

impl Default for Take {
    fn default() -> Take {
        Take {
            bodies: true,
            sieve: true,
            admin: true,
            expunged: true,
            all: false,
            others: Vec::new(),
        }
    }
}

impl Take {
    /// Everything, including the views of these other users.
    pub fn with_others(others: &[&str]) -> Take {
        Take { others: others.iter().map(|user| (*user).to_owned()).collect(), ..Take::default() }
    }
}

/// Keys that change without anybody doing anything, or with every copy; for [`diff`]'s ignore list.
pub mod volatile {
    /// When a mailbox was last touched.
    pub const LASTUPDATE: &str = "/shared/vendor/cmu/cyrus-imapd/lastupdate";
    /// The free space on the server's disk, as a server-level annotation.
    pub const FREESPACE: &str = "/shared/vendor/cmu/cyrus-imapd/freespace";
    /// The same for all partitions.
    pub const FREESPACE_TOTAL: &str = "/shared/vendor/cmu/cyrus-imapd/freespace/total";
    /// The same for the partition that has most of it.
    pub const FREESPACE_MOST: &str = "/shared/vendor/cmu/cyrus-imapd/freespace/percent/most";
    /// The server's greeting.
    pub const SERVER: &str = "server";
    /// What differs between any two looks at the same mailbox: the free space.
    pub const ALWAYS: &[&str] = &[FREESPACE, FREESPACE_TOTAL, FREESPACE_MOST];
}

/// Everything that clients can observe of a user's mailbox or of a shared tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// The server's greeting.
    pub server: String,
    /// What was refused or went wrong while looking.
    pub errors: Vec<String>,
    /// The answer to NAMESPACE.
    pub namespace: String,
    /// The user's server-level annotations.
    pub server_metadata: BTreeMap<String, String>,
    /// What the user sees; empty for a shared tree.
    pub own: View,
    /// What other users see of the same mailboxes.
    pub others: BTreeMap<String, View>,
    /// What the administrator sees.
    pub admin: BTreeMap<String, AdminMailbox>,
    /// Sieve scripts by name.
    pub sieve: BTreeMap<String, Script>,
    /// What `unexpunge -l` says of each mailbox that has such messages, by UID.
    pub delayed_expunged: BTreeMap<String, BTreeMap<u32, String>>,
}

/// What one user sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// By name, decoded from modified UTF-7.
    pub mailboxes: BTreeMap<String, Mailbox>,
    /// LSUB's answer: name and attributes.
    pub lsub: BTreeMap<String, String>,
    /// The names that LIST (SUBSCRIBED) shows, with attributes; existing or not.
    pub subscribed: BTreeMap<String, String>,
}

/// A mailbox as a user sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mailbox {
    /// LIST's attributes, special uses and subscription among them.
    pub attributes: BTreeSet<String>,
    /// The user's rights.
    pub rights: String,
    /// Everybody's rights, if the user may know them.
    pub acl: BTreeMap<String, String>,
    /// Quota roots and their usages and limits.
    pub quota: BTreeMap<String, String>,
    /// STATUS's items.
    pub status: BTreeMap<String, String>,
    /// MAILBOXID as EXAMINE tells it, for STATUS returns garbage in 3.6.1.
    pub mailbox_id: String,
    /// UIDVALIDITY, UIDNEXT, HIGHESTMODSEQ and the like as EXAMINE tells them.
    pub examine: BTreeMap<String, String>,
    /// The keywords and flags that the mailbox knows.
    pub flags: BTreeSet<String>,
    /// Annotations, private and shared.
    pub metadata: BTreeMap<String, String>,
    /// How many messages are \Recent.
    pub recent: u32,
    /// By UID.
    pub messages: BTreeMap<u32, Message>,
}

/// A message as a user sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Flags and keywords without \Recent.
    pub flags: BTreeSet<String>,
    /// INTERNALDATE
    pub date: String,
    /// RFC822.SIZE
    pub size: u64,
    /// MODSEQ
    pub modseq: u64,
    /// The SHA-1 of its bytes; `NIL` if the server would not hand them out.
    pub sha1: String,
    /// The header field Message-ID.
    pub message_id: String,
    /// SAVEDATE, where the server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub savedate: Option<String>,
    /// EMAILID, where the server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email_id: Option<String>,
    /// Annotations, such as `/comment value.priv`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A mailbox as the administrator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdminMailbox {
    /// LIST's attributes.
    pub attributes: BTreeSet<String>,
    /// Everybody's rights.
    pub acl: BTreeMap<String, String>,
    /// Usages and limits, if it is a quota root.
    pub quota: String,
    /// Shared annotations.
    pub metadata: BTreeMap<String, String>,
}

/// A Sieve script.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Script {
    /// Whether it is the active one.
    pub active: bool,
    /// Its text.
    pub text: String,
}

impl Fingerprint {
    /// Looks at everything of a user's mailbox without changing anything.
    pub fn take(host: &Host, user: &str, take: &Take) -> Result<Fingerprint> {
        let mut print = Fingerprint::default();
        let mut look = Look::new(host, user, take)?;
        print.server = look.imap.greeting.to_string();
        let namespace = look.imap.command("NAMESPACE")?;
        print.namespace = namespace
            .of("NAMESPACE")
            .map(|values| Value::List(values[1..].to_vec()).to_string())
            .collect();
        let prefix = namespace
            .of("NAMESPACE")
            .find_map(|values| values.get(1)?.list().first()?.list().first())
            .map_or(String::new(), Value::to_string);
        let personal = |name: &str| name == "INBOX" || name.starts_with(&prefix);
        print.server_metadata = look.metadata(b"\"\"", &["/private", "/shared"])?;
        // Subscriptions are the user's own, whosever the mailbox is.
        print.own = look.view("*", |name| take.all || personal(name), |_| true)?;
        look.finish(&mut print);
        let others: Vec<&str> = take.others.iter().map(String::as_str).collect();
        print.rest(host, &["user", user], &others, take)?;
        if take.sieve && may_look_for_scripts(host, user, &print.server)? {
            match scripts(host, user) {
                Ok(scripts) => print.sieve = scripts,
                Err(error) => print.errors.push(format!("sieve: {error:#}")),
            }
        }
        Ok(print)
    }

    /// Looks at everything of a shared tree such as `team.sales`, as these users see it.
    pub fn take_tree(host: &Host, root: &str, users: &[&str], take: &Take) -> Result<Fingerprint> {
        let mut print = Fingerprint::default();
        let parts: Vec<&str> = root.split('.').collect();
        print.rest(host, &parts, users, take)?;
        Ok(print)
    }

    /// All messages, with the mailbox and the UID of each.
    pub fn messages(&self) -> impl Iterator<Item = (&str, u32, &Message)> {
        self.own.mailboxes.iter().flat_map(|(name, mailbox)| {
            let messages = mailbox.messages.iter();
            messages.map(move |(uid, message)| (name.as_str(), *uid, message))
        })
    }

    /// What others and the administrator see of a tree of mailboxes.
    fn rest(&mut self, host: &Host, root: &[&str], others: &[&str], take: &Take) -> Result<()> {
        for other in others {
            let mut look = Look::new(host, other, take)?;
            let root = root.join(&look.separator);
            let below = format!("{root}{}", look.separator);
            let within = |name: &str| name == root || name.starts_with(&below);
            self.server = look.imap.greeting.to_string();
            let view = look.view(&format!("{root}*"), within, within)?;
            self.others.insert((*other).to_owned(), view);
            look.finish(self);
        }
        if !(take.admin || take.expunged) {
            return Ok(());
        }
        let mut look = Look::new(host, crate::ADMIN, take)?;
        let raw = look.administer(root, &mut self.admin)?;
        look.finish(self);
        if take.expunged {
            self.delayed_expunged = expunged(host, &raw)?;
        }
        if !take.admin {
            self.admin.clear();
        }
        Ok(())
    }
}

/// One user's session for looking around.
struct Look<'a> {
    take: &'a Take,
    user: &'a str,
    imap: Imap,
    separator: String,
    errors: Vec<String>,
}

impl<'a> Look<'a> {
    fn new(host: &Host, user: &'a str, take: &'a Take) -> Result<Look<'a>> {
        let mut imap = host.imap(user)?;
        let listed = imap.command("LIST \"\" \"\"")?;
        let separator = listed
            .of("LIST")
            .next()
            .and_then(|list| list.get(2))
            .context("no hierarchy separator")?
            .to_string();
        Ok(Look { take, user, imap, separator, errors: Vec::new() })
    }

    fn finish(self, print: &mut Fingerprint) {
        print.errors.extend(self.errors);
        self.imap.logout();
    }

    /// A command whose refusal is one of the things to note.
    fn ask(&mut self, parts: &[&[u8]]) -> Result<Reply> {
        let command = words(parts);
        let reply = self.imap.attempt(&command)?;
        if !reply.tagged.is_ok() {
            let status = reply.tagged.clone();
            let command = readable(&command);
            self.errors.push(format!("{}: {}", self.user, Refused { command, status }));
        }
        Ok(reply)
    }

    /// Raw names and attributes that LIST or LSUB answer.
    fn list(&mut self, command: &str) -> Result<Vec<(String, BTreeSet<String>)>> {
        let reply = self.ask(&[command.as_bytes()])?;
        let verb = command.split(' ').next().unwrap_or_default();
        Ok(reply
            .of(verb)
            .filter_map(|list| {
                let attributes = list.get(1)?.list().iter().map(Value::to_string).collect();
                Some((list.get(3)?.to_string(), attributes))
            })
            .collect())
    }

    fn view(
        &mut self,
        pattern: &str,
        wanted: impl Fn(&str) -> bool,
        subscription_wanted: impl Fn(&str) -> bool,
    ) -> Result<View> {
        let mut view = View::default();
        let names = |listed: Vec<(String, BTreeSet<String>)>| {
            listed
                .into_iter()
                .filter(|(name, _)| subscription_wanted(name))
                .map(|(name, attributes)| {
                    let attributes: Vec<String> = attributes.into_iter().collect();
                    (unmutf7(&name), attributes.join(" "))
                })
                .collect()
        };
        view.lsub = names(self.list("LSUB \"\" \"*\"")?);
        view.subscribed = names(self.list("LIST (SUBSCRIBED) \"\" \"*\"")?);
        let list = format!("LIST \"\" \"{pattern}\" RETURN (SPECIAL-USE CHILDREN SUBSCRIBED)");
        for (name, attributes) in self.list(&list)? {
            if wanted(&name) {
                let mailbox = self.mailbox(&name, attributes)?;
                view.mailboxes.insert(unmutf7(&name), mailbox);
            }
        }
        Ok(view)
    }

    fn mailbox(&mut self, name: &str, attributes: BTreeSet<String>) -> Result<Mailbox> {
        let quoted = quote(name);
        let mut mailbox = Mailbox { attributes, ..Mailbox::default() };
        let unreal = |attribute: &String| {
            ["\\noselect", "\\nonexistent"].contains(&attribute.to_ascii_lowercase().as_str())
        };
        if mailbox.attributes.iter().any(unreal) {
            return Ok(mailbox);
        }
        let reply = self.ask(&[b"MYRIGHTS", &quoted])?;
        let rights = reply.of("MYRIGHTS").next().and_then(|values| values.get(2));
        mailbox.rights = rights.map_or(String::new(), Value::to_string);
        if mailbox.rights.contains('a') {
            mailbox.acl = self.acl(&quoted)?;
        }
        let reply = self.ask(&[b"GETQUOTAROOT", &quoted])?;
        for quota in reply.of("QUOTA") {
            if let [_, root, usage, ..] = quota {
                mailbox.quota.insert(unmutf7(&root.to_string()), usage.to_string());
            }
        }
        let size = if self.imap.can("STATUS=SIZE") { " SIZE" } else { "" };
        let items = format!("(MESSAGES UIDNEXT UIDVALIDITY UNSEEN HIGHESTMODSEQ{size})");
        let reply = self.ask(&[b"STATUS", &quoted, items.as_bytes()])?;
        if let Some([_, _, items, ..]) = reply.of("STATUS").next() {
            mailbox.status = items.pairs().map(|(key, value)| (key, value.to_string())).collect();
        }
        mailbox.metadata = self.metadata(&quoted, &["/private", "/shared"])?;
        if mailbox.rights.contains('r') {
            self.content(&quoted, &mut mailbox)
                .with_context(|| format!("looking into {}", unmutf7(name)))?;
        }
        Ok(mailbox)
    }

    /// What EXAMINE and FETCH tell.
    fn content(&mut self, quoted: &[u8], mailbox: &mut Mailbox) -> Result<()> {
        let reply = self.ask(&[b"EXAMINE", quoted])?;
        if !reply.tagged.is_ok() {
            return Ok(());
        }
        if let Some([_, flags, ..]) = reply.of("FLAGS").next() {
            mailbox.flags = flags.list().iter().map(Value::to_string).collect();
        }
        mailbox.mailbox_id = reply.note("MAILBOXID").unwrap_or_default().to_owned();
        for item in ["UIDVALIDITY", "UIDNEXT", "HIGHESTMODSEQ", "ANNOTATIONS"] {
            if let Some(value) = reply.note(item) {
                mailbox.examine.insert(item.to_owned(), value.to_owned());
            }
        }
        for item in ["EXISTS", "RECENT"] {
            if let Some((number, _)) = reply.numbered(item).next() {
                mailbox.examine.insert(item.to_owned(), number.to_string());
            }
        }
        self.fetch(mailbox)?;
        self.ask(&[b"UNSELECT"])?;
        Ok(())
    }

    fn fetch(&mut self, mailbox: &mut Mailbox) -> Result<()> {
        let mut items = "UID FLAGS INTERNALDATE RFC822.SIZE MODSEQ".to_owned();
        for (capability, item) in [
            ("SAVEDATE", " SAVEDATE"),
            ("OBJECTID", " EMAILID"),
            ("ANNOTATE-EXPERIMENT", " ANNOTATION (/* (value.priv value.shared))"),
        ] {
            if self.imap.can(capability) {
                items.push_str(item);
            }
        }
        items.push_str(if self.take.bodies {
            " BODY.PEEK[]"
        } else {
            " DIGEST.SHA1 BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)]"
        });
        let errors = &mut self.errors;
        let user = self.user;
        let tagged = self.imap.stream(format!("UID FETCH 1:* ({items})"), |untagged| {
            match untagged {
                Untagged::Data(values) => {
                    if let [_, fetch, data] = values.as_slice()
                        && fetch.is("FETCH")
                    {
                        let (uid, message, recent) = message(data)?;
                        mailbox.recent += u32::from(recent);
                        mailbox.messages.insert(uid, message);
                    }
                }
                Untagged::Status(status) if status.is_ok() => {}
                Untagged::Status(status) => errors.push(format!("{user}: FETCH: {status}")),
            }
            Ok(())
        })?;
        if !tagged.is_ok() {
            errors.push(format!("{user}: FETCH: {tagged}"));
        }
        let exists = mailbox.examine.get("EXISTS").map_or("", String::as_str);
        if exists != mailbox.messages.len().to_string() {
            let fetched = mailbox.messages.len();
            errors.push(format!("{user}: {fetched} messages fetched where {exists} exist"));
        }
        Ok(())
    }

    fn acl(&mut self, quoted: &[u8]) -> Result<BTreeMap<String, String>> {
        let reply = self.ask(&[b"GETACL", quoted])?;
        let entries = reply.of("ACL").flat_map(|acl| acl.get(2..).unwrap_or_default());
        let entries: Vec<String> = entries.map(Value::to_string).collect();
        Ok(entries
            .as_chunks::<2>()
            .0
            .iter()
            .map(|[who, rights]| {
                let mut rights: Vec<char> = rights.chars().collect();
                rights.sort_unstable();
                (who.clone(), rights.into_iter().collect())
            })
            .collect())
    }

    fn metadata(&mut self, quoted: &[u8], scopes: &[&str]) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::new();
        for scope in scopes {
            let reply = self.ask(&[b"GETMETADATA (DEPTH infinity)", quoted, scope.as_bytes()])?;
            let entries = reply.of("METADATA").filter_map(|values| values.get(2));
            for (key, value) in entries.flat_map(Value::pairs) {
                if *value != Value::Nil {
                    metadata.insert(key, value.to_string());
                }
            }
        }
        Ok(metadata)
    }

    /// Looks as the administrator at a tree and at what was deleted of it; returns the raw names.
    fn administer(
        &mut self,
        root: &[&str],
        seen: &mut BTreeMap<String, AdminMailbox>,
    ) -> Result<Vec<String>> {
        let separator = self.separator.clone();
        let root = root.join(&separator);
        let below = format!("{root}{separator}");
        let deleted = format!("DELETED{separator}{root}{separator}");
        let mut listed = self.list(&format!("LIST \"\" \"{root}*\""))?;
        listed.retain(|(name, _)| *name == root || name.starts_with(&below));
        listed.extend(self.list(&format!("LIST \"\" \"{deleted}*\""))?);
        let mut raw = Vec::new();
        for (name, attributes) in listed {
            let quoted = quote(&name);
            let mut mailbox = AdminMailbox { attributes, ..AdminMailbox::default() };
            let before = self.errors.len();
            mailbox.acl = self.acl(&quoted)?;
            // The session would not survive GETMETADATA of a mailbox that is being moved away.
            let moving = self.errors[before..].iter().any(|error| error.contains("REFERRAL"));
            if !moving {
                mailbox.metadata = self.metadata(&quoted, &["/shared"])?;
                // Most mailboxes are no quota roots, for which the answer is NO.
                let reply = self.imap.attempt(words(&[b"GETQUOTA", &quoted]))?;
                let quota = reply.of("QUOTA").next().and_then(|values| values.get(2));
                mailbox.quota = quota.map_or(String::new(), Value::to_string);
            }
            seen.insert(unmutf7(&name), mailbox);
            raw.push(name);
        }
        Ok(raw)
    }
}

/// UID, message and whether it is \Recent, of a FETCH response.
fn message(data: &Value) -> Result<(u32, Message, bool)> {
    let text = |item: &str| data.get(item).map(Value::to_string);
    let number = |item: &str| data.get(item).and_then(Value::number);
    let uid = number("UID").ok_or_else(|| anyhow!("a FETCH response without UID"))?;
    let mut flags: BTreeSet<String> = data
        .get("FLAGS")
        .map(Value::list)
        .unwrap_or_default()
        .iter()
        .map(Value::to_string)
        .collect();
    let recent = flags.remove("\\Recent");
    let body = data.get("BODY[]");
    let header = data.get("BODY[HEADER.FIELDS (MESSAGE-ID)]");
    let mut annotations = BTreeMap::new();
    for (entry, values) in data.get("ANNOTATION").into_iter().flat_map(Value::pairs) {
        for (kind, value) in values.pairs() {
            // The size is told for every message anyway.
            if *value != Value::Nil && entry != "/size" {
                annotations.insert(format!("{entry} {kind}"), value.to_string());
            }
        }
    }
    let sha1 = match body {
        Some(Value::Text(bytes)) => hex(&Sha1::digest(bytes)),
        Some(_) => "NIL".to_owned(),
        None => text("DIGEST.SHA1").unwrap_or_default(),
    };
    let message = Message {
        flags,
        date: text("INTERNALDATE").unwrap_or_default(),
        size: number("RFC822.SIZE").unwrap_or_default(),
        modseq: data
            .get("MODSEQ")
            .and_then(|modseq| modseq.list().first()?.number())
            .unwrap_or_default(),
        sha1,
        message_id: message_id(body.or(header).map_or(b"", Value::bytes)),
        savedate: text("SAVEDATE"),
        email_id: text("EMAILID"),
        annotations,
    };
    Ok((u32::try_from(uid)?, message, recent))
}

/// The Message-ID of a message, with its angle brackets; empty if it has none.
pub(crate) fn message_id(bytes: &[u8]) -> String {
    for line in bytes.split(|b| *b == b'\n') {
        if line.trim_ascii_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_at_checked(11)
            && name.eq_ignore_ascii_case(b"message-id:")
        {
            return readable(value.trim_ascii());
        }
    }
    String::new()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a ManageSieve login would leave no trace: from 3.6 on it creates the mailbox `#sieve`,
/// where scripts are kept, so there is nothing to look for if that does not exist.
fn may_look_for_scripts(host: &Host, user: &str, greeting: &str) -> Result<bool> {
    if greeting.contains("Cyrus IMAP 3.2") {
        return Ok(true);
    }
    let take = Take::default();
    let mut look = Look::new(host, crate::ADMIN, &take)?;
    let name = ["user", user, "#sieve"].join(&look.separator);
    let listed = look.list(&format!("LIST \"\" \"{name}\""))?;
    look.imap.logout();
    Ok(!listed.is_empty())
}

fn scripts(host: &Host, user: &str) -> Result<BTreeMap<String, Script>> {
    let mut sieve = host.sieve(user)?;
    let mut scripts = BTreeMap::new();
    for (name, active) in sieve.list()? {
        let text = sieve.get(&name)?;
        scripts.insert(name, Script { active, text });
    }
    Ok(scripts)
}

/// What `unexpunge -l` lists for these mailboxes.
fn expunged(host: &Host, names: &[String]) -> Result<BTreeMap<String, BTreeMap<u32, String>>> {
    let script = r#"for mailbox; do echo "== $mailbox"; /usr/lib/cyrus/bin/unexpunge -l "$mailbox"; done; true"#;
    let mut command = vec!["sh", "-c", script, "expunged"];
    command.extend(names.iter().map(String::as_str));
    let output = host.exec_as_cyrus(&command)?;
    let listed = readable(&output.stdout);
    if !output.status.success() {
        return Err(anyhow!("unexpunge: {}{listed}", readable(&output.stderr)));
    }
    let mut found: BTreeMap<String, BTreeMap<u32, String>> = BTreeMap::new();
    let (mut mailbox, mut uid) = (String::new(), 0);
    for line in listed.lines() {
        if let Some(name) = line.strip_prefix("== ") {
            mailbox = unmutf7(name);
        } else if let Some(number) = line.strip_prefix("UID:") {
            uid = number.trim().parse().context("unexpunge: a strange UID")?;
            found.entry(mailbox.clone()).or_default().insert(uid, String::new());
        } else if let Some(text) = found.get_mut(&mailbox).and_then(|uids| uids.get_mut(&uid)) {
            text.push_str(line.trim());
            text.push('\n');
        }
    }
    Ok(found)
}

/// Differences of one kind between two fingerprints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The path to what differs, with `*` for names of mailboxes and numbers of messages.
    pub kind: String,
    /// Every place where it differs.
    pub places: Vec<Place>,
}

/// A place where two fingerprints differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The path with all names and numbers.
    pub path: String,
    /// What stands there in the first fingerprint, as JSON.
    pub before: Option<String>,
    /// What stands there in the second.
    pub after: Option<String>,
}

/// The kind with its number of places, and three of them.
impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:6} x {}", self.places.len(), self.kind)?;
        for place in self.places.iter().take(3) {
            let show = |value: &Option<String>| match value {
                Some(json) => json.chars().take(140).collect(),
                None => "nothing".to_owned(),
            };
            let (before, after) = (show(&place.before), show(&place.after));
            writeln!(f, "           {}: {before} -> {after}", place.path)?;
        }
        Ok(())
    }
}

/// Compares two fingerprints; what stands under one of the `ignored` keys, or is one of the
/// `ignored` kinds, is left out.
pub fn diff(
    before: &Fingerprint,
    after: &Fingerprint,
    ignored: &[&str],
) -> Result<Vec<Difference>> {
    let mut comparison = Comparison { ignored, path: Vec::new(), found: BTreeMap::new() };
    comparison.walk(&serde_json::to_value(before)?, &serde_json::to_value(after)?);
    Ok(comparison.found.into_iter().map(|(kind, places)| Difference { kind, places }).collect())
}

/// Differences for humans to read.
pub fn report(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "IDENTICAL\n".to_owned();
    }
    differences.iter().map(Difference::to_string).collect()
}

struct Comparison<'a> {
    ignored: &'a [&'a str],
    path: Vec<String>,
    found: BTreeMap<String, Vec<Place>>,
}

impl Comparison<'_> {
    fn walk(&mut self, before: &serde_json::Value, after: &serde_json::Value) {
        use serde_json::Value::Object;
        match (before, after) {
            (Object(a), Object(b)) => {
                let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for key in keys {
                    if self.ignored.contains(&key.as_str()) {
                        continue;
                    }
                    self.path.push(key.clone());
                    match (a.get(key), b.get(key)) {
                        (Some(a), Some(b)) => self.walk(a, b),
                        (a, b) => self.note(a, b),
                    }
                    self.path.pop();
                }
            }
            (a, b) if a == b => {}
            (a, b) => self.note(Some(a), Some(b)),
        }
    }

    fn note(&mut self, before: Option<&serde_json::Value>, after: Option<&serde_json::Value>) {
        let mut kind = self.kind();
        if before.is_none() {
            kind.push_str(" (appeared)");
        } else if after.is_none() {
            kind.push_str(" (vanished)");
        }
        if self.ignored.contains(&kind.as_str()) {
            return;
        }
        self.found.entry(kind).or_default().push(Place {
            path: self.path.join(" / "),
            before: before.map(ToString::to_string),
            after: after.map(ToString::to_string),
        });
    }

    /// The path with `*` below the maps whose keys are names or numbers.
    fn kind(&self) -> String {
        const MAPS: &[&str] = &[
            "mailboxes",
            "messages",
            "admin",
            "others",
            "sieve",
            "delayed_expunged",
            "quota",
            "lsub",
            "subscribed",
        ];
        let mut kind: Vec<&str> = Vec::new();
        for key in &self.path {
            let named = kind.last().is_some_and(|last| MAPS.contains(last))
                || kind.as_slice() == ["delayed_expunged", "*"];
            kind.push(if named { "*" } else { key });
        }
        kind.join(" / ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Fingerprint {
        let mut print = Fingerprint::default();
        let mailbox = print.own.mailboxes.entry("INBOX".into()).or_default();
        mailbox.metadata.insert(volatile::LASTUPDATE.into(), "yesterday".into());
        for uid in 1..6 {
            mailbox.messages.insert(uid, Message::default());
        }
        print
    }

    fn inbox(print: &mut Fingerprint) -> &mut Mailbox {
        print.own.mailboxes.entry("INBOX".into()).or_default()
    }

    #[test]
    fn equal_fingerprints_do_not_differ() {
        let differences = diff(&sample(), &sample(), &[]).expect("diff");
        assert_eq!(report(&differences), "IDENTICAL\n");
    }

    #[test]
    fn differences_are_grouped_by_kind() {
        let mut changed = sample();
        for uid in [2, 4] {
            let message = inbox(&mut changed).messages.entry(uid).or_default();
            message.flags.insert("\\Seen".into());
        }
        inbox(&mut changed).messages.remove(&5);
        changed.own.mailboxes.insert("new".into(), Mailbox::default());
        let differences = diff(&sample(), &changed, &[]).expect("diff");
        let kinds: Vec<_> = differences.iter().map(|d| (d.kind.as_str(), d.places.len())).collect();
        assert_eq!(
            kinds,
            [
                ("own / mailboxes / * (appeared)", 1),
                ("own / mailboxes / * / messages / * (vanished)", 1),
                ("own / mailboxes / * / messages / * / flags", 2),
            ]
        );
        assert_eq!(differences[2].places[1].path, "own / mailboxes / INBOX / messages / 4 / flags");
        assert_eq!(differences[2].places[1].after.as_deref(), Some("[\"\\\\Seen\"]"));
    }

    #[test]
    fn only_what_the_caller_names_is_ignored() {
        let mut changed = sample();
        inbox(&mut changed).metadata.insert(volatile::LASTUPDATE.into(), "today".into());
        assert_eq!(diff(&sample(), &changed, &[]).expect("diff").len(), 1);
        assert_eq!(diff(&sample(), &changed, &[volatile::LASTUPDATE]).expect("diff"), []);
    }

    #[test]
    fn fingerprints_survive_json() {
        let json = serde_json::to_string(&sample()).expect("to JSON");
        assert_eq!(serde_json::from_str::<Fingerprint>(&json).expect("from JSON"), sample());
    }

    #[test]
    fn message_ids_are_found_in_headers_only() {
        assert_eq!(message_id(b"A: b\r\nMessage-Id: <x@y>\r\n\r\n"), "<x@y>");
        assert_eq!(message_id(b"A: b\r\n\r\nMessage-ID: <x@y>\r\n"), "");
    }
}
