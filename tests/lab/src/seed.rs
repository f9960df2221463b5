//! Fills mailboxes through the protocols that real clients use.

use crate::host::Host;
use crate::imap::{Imap, NewMessage, Refused, Reply, mutf7, quote, words};
use crate::lmtp;
use crate::message::Messages;
pub use crate::message::Size;
use anyhow::{Context, Result};
use rand::{Rng, seq::IndexedRandom};

/// What a seeding did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Messages appended or delivered.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
    /// What this server refused to do; the rest was done.
    pub warnings: Vec<String>,
}

/// Fills a user's mailbox; for the same seed and user always alike.
///
/// UIDVALIDITY, MODSEQ and whatever else the server's clock decides differ of course, and what
/// comes by LMTP bears headers of the server's own.
#[derive(Clone, Debug)]
pub struct Seed<'a> {
    host: &'a Host,
    user: &'a str,
    seed: u64,
}

/// The folders of [`Seed::rich`] besides INBOX and those for special uses.
const FOLDERS: &[&[&str]] = &[
    &["Archive", "2018"],
    &["Archive", "2019"],
    &["Archive", "2020"],
    &["Archive", "2021"],
    &["Archive", "2022"],
    &["Archive", "2023"],
    &["Archive", "2024"],
    &["Projekte"],
    &["Projekte", "Überprüfung & Co"],
    &["Projekte", "Überprüfung & Co", "Größe"],
    &["日本語"],
    &["日本語", "メール箱"],
    &["Списки"],
    &["with space"],
    &["with space", "quote's (and)"],
    &["Shared"],
    &["Shared", "team"],
    &["SharedSeen"],
    &["d1"],
    &["d1", "d2"],
    &["d1", "d2", "d3"],
    &["d1", "d2", "d3", "d4"],
    &["d1", "d2", "d3", "d4", "d5"],
    &["only-expunged"],
    &["MiXeD"],
    &["emoji 📬"],
    &["1234"],
    &["toberenamed"],
    &["tobedeleted"],
    &["empty"],
];
/// The folders for special uses.
const SPECIAL: &[&str] = &["Sent", "Drafts", "Trash", "Junk", "Archive"];
/// The folders of [`Seed::rich`] that the other user has rights to.
const SHARED: &[(&[&str], &str)] =
    &[(&["Shared"], "lrswipkxten"), (&["Shared", "team"], "lrsn"), (&["SharedSeen"], "lrswi")];

impl<'a> Seed<'a> {
    /// Seed 1 for this user, who need not exist yet.
    pub fn new(host: &'a Host, user: &'a str) -> Seed<'a> {
        Seed { host, user, seed: 1 }
    }

    /// Another seed.
    pub fn seed(self, seed: u64) -> Seed<'a> {
        Seed { seed, ..self }
    }

    /// A mailbox with a bit of everything that Cyrus can keep, of about `count` messages; `other`
    /// is a second user who gets mail of their own and shares some of this one's folders.
    pub fn rich(&self, other: &str, count: usize) -> Result<Report> {
        let mut filling = Filling::new(self, Size::Mixed(8192))?;
        self.host.add_users(&[other])?;
        let mut theirs = Filling::new(&Seed { user: other, ..self.clone() }, Size::Mixed(4096))?;
        filling.quotas()?;
        filling.folders()?;
        filling.spread(count)?;
        filling.duplicates()?;
        filling.edges()?;
        filling.later_flags()?;
        filling.annotations()?;
        filling.expunges()?;
        filling.metadata()?;
        filling.subscriptions()?;
        filling.rights(other)?;
        filling.scripts()?;
        filling.rename_and_delete()?;
        filling.deliveries()?;
        filling.visit(&mut theirs)?;
        let mut report = filling.report;
        report.messages += theirs.report.messages;
        report.bytes += theirs.report.bytes;
        report.warnings.append(&mut theirs.report.warnings);
        Ok(report)
    }

    /// Five folders with some fifty messages, flags, an active script and a quota.
    pub fn small(&self) -> Result<Report> {
        let mut filling = Filling::new(self, Size::Median(2048))?;
        filling.quotas()?;
        filling.create(&["Sent"], "\\Sent")?;
        for folder in [&["Größe"][..], &["a"], &["a", "b"]] {
            filling.create(folder, "")?;
        }
        for (folder, count) in
            [(&[][..], 30), (&["Sent"], 8), (&["Größe"], 6), (&["a"], 4), (&["a", "b"], 2)]
        {
            filling.fill(folder, count)?;
        }
        filling.later_flags()?;
        let folder = quote(filling.name(&["a"]));
        filling.attempt(&words(&[b"SUBSCRIBE", &folder]))?;
        filling.set_metadata(&["a"], "/private/comment", "a comment")?;
        filling.put_scripts(&["main"])?;
        Ok(filling.report)
    }

    /// Many messages, evenly over INBOX and `folders - 1` folders named `bulk001` and so on.
    pub fn bulk(&self, count: usize, size: Size, folders: usize) -> Result<Report> {
        let mut filling = Filling::new(self, size)?;
        let folders = folders.max(1);
        filling.fill(&[], count - count / folders * (folders - 1))?;
        for i in 1..folders {
            let name = format!("bulk{i:03}");
            filling.create(&[&name], "")?;
            filling.fill(&[&name], count / folders)?;
        }
        Ok(filling.report)
    }
}

/// Fills a shared tree, such as `team.sales`, that the administrator creates and that these users
/// (who need not exist yet) have rights to: the first one most, the others the more usual ones.
pub fn shared_tree(host: &Host, root: &str, users: &[&str]) -> Result<Report> {
    let [writer, readers @ ..] = users else {
        anyhow::bail!("a shared tree needs a user who fills it");
    };
    let mut filling = Filling::new(&Seed::new(host, writer), Size::Mixed(4096))?;
    host.add_users(users)?;
    let folders = ["", ".Angebote", ".Angebote.Größe", ".empty", ".closed"]
        .map(|folder| format!("{root}{}", mutf7(folder)));
    for folder in &folders {
        let reply = filling.admin.attempt(words(&[b"CREATE", &quote(folder)]))?;
        filling.check(reply, folder);
        for (who, rights) in readers.iter().map(|reader| (*reader, "lrsip")).chain([
            (*writer, "lrswipkxtean"),
            ("anyone", "lp"),
            ("-mallory", "r"),
        ]) {
            filling.as_admin(&[b"SETACL", &quote(folder), who.as_bytes(), rights.as_bytes()])?;
        }
    }
    if let Some(reader) = readers.first() {
        filling.as_admin(&[b"SETACL", &quote(&folders[4]), reader.as_bytes(), b"\"\""])?;
    }
    filling.as_admin(&[b"SETQUOTA", &quote(root), b"(STORAGE 100000 MESSAGE 5000)"])?;
    let root_quoted = quote(root);
    for (user, entry) in [
        (crate::ADMIN, "/shared/comment \"sales team\""),
        (crate::ADMIN, "/shared/vendor/cmu/cyrus-imapd/expire \"90\""),
        (writer, "/private/comment \"mine\""),
    ] {
        let entry = format!("({entry})");
        let command = words(&[b"SETMETADATA", &root_quoted, entry.as_bytes()]);
        expendable(host, user, &command, &mut filling.report.warnings)?;
    }
    for (folder, count) in folders.iter().zip([20, 12, 5, 0, 4]) {
        filling.fill_named(folder, count)?;
    }
    filling.imap.command(words(&[b"SELECT", &quote(root)]))?;
    filling.attempt(b"UID STORE 1:4 +FLAGS (\\Flagged shared-keyword)")?;
    filling.attempt(b"UID STORE 2,5 +FLAGS (\\Deleted)")?;
    filling.attempt(b"UID EXPUNGE 2,5")?;
    filling.attempt(b"UNSELECT")?;
    for _ in 0..3 {
        let message = filling.messages.sized(2000);
        filling.deliver(&format!("+{root}"), &message.bytes)?;
    }
    for user in users {
        let mut imap = host.imap(user)?;
        let warnings = &mut filling.report.warnings;
        for command in [
            words(&[b"SUBSCRIBE", &quote(root)]),
            words(&[b"SELECT", &quote(root)]),
            b"STORE 1:3,7 +FLAGS (\\Seen)".to_vec(),
            b"STORE 4 +FLAGS (\\Seen)".to_vec(),
            b"UNSELECT".to_vec(),
        ] {
            warn(imap.attempt(&command)?, &format!("{user}: {}", show(&command)), warnings);
        }
        imap.logout();
    }
    Ok(filling.report)
}

/// A mailbox being filled.
struct Filling<'a> {
    host: &'a Host,
    user: &'a str,
    imap: Imap,
    admin: Imap,
    /// What stands before the user's folders' names: `INBOX.` or nothing.
    prefix: String,
    separator: String,
    messages: Messages,
    report: Report,
}

impl<'a> Filling<'a> {
    /// Logs in; account and INBOX are created if they are not there.
    fn new(seed: &Seed<'a>, size: Size) -> Result<Filling<'a>> {
        let Seed { host, user, seed } = *seed;
        host.add_users(&[user])?;
        let mut admin = host.admin()?;
        let listed = admin.command("LIST \"\" \"\"")?;
        let separator = listed
            .of("LIST")
            .next()
            .and_then(|list| list.get(2))
            .context("no hierarchy separator")?
            .to_string();
        admin.attempt(format!("CREATE user{separator}{user}"))?;
        let mut imap = host.imap(user)?;
        let namespace = imap.command("NAMESPACE")?;
        let prefix = namespace
            .of("NAMESPACE")
            .next()
            .and_then(|namespace| {
                Some(namespace.get(1)?.list().first()?.list().first()?.to_string())
            })
            .unwrap_or_default();
        Ok(Filling {
            host,
            user,
            imap,
            admin,
            prefix,
            separator,
            messages: Messages::new(seed, user, size),
            report: Report::default(),
        })
    }

    /// A folder's name as the user calls it; the empty path is INBOX.
    fn name(&self, path: &[&str]) -> String {
        if path.is_empty() {
            return "INBOX".to_owned();
        }
        let parts: Vec<String> = path.iter().map(|part| mutf7(part)).collect();
        format!("{}{}", self.prefix, parts.join(&self.separator))
    }

    /// A folder's name as everybody else calls it.
    fn full_name(&self, path: &[&str]) -> String {
        ["user", self.user]
            .into_iter()
            .map(str::to_owned)
            .chain(path.iter().map(|part| mutf7(part)))
            .collect::<Vec<_>>()
            .join(&self.separator)
    }

    fn check(&mut self, reply: Reply, what: &str) -> bool {
        warn(reply, what, &mut self.report.warnings)
    }

    /// A command of the user that this server may refuse.
    fn attempt(&mut self, command: &[u8]) -> Result<bool> {
        let reply = self.imap.attempt(command)?;
        Ok(self.check(reply, &show(command)))
    }

    /// A command of the administrator that this server may refuse.
    fn as_admin(&mut self, parts: &[&[u8]]) -> Result<bool> {
        let command = words(parts);
        let reply = self.admin.attempt(&command)?;
        Ok(self.check(reply, &format!("admin: {}", show(&command))))
    }

    /// Creates a folder; one that exists is fine.
    fn create(&mut self, path: &[&str], special_use: &str) -> Result<()> {
        let name = self.name(path);
        let mut command = words(&[b"CREATE", &quote(&name)]);
        if !special_use.is_empty() {
            command.extend_from_slice(format!(" (USE ({special_use}))").as_bytes());
        }
        let reply = self.imap.attempt(&command)?;
        if !reply.tagged.text.contains("exist") {
            self.check(reply, &show(&command));
        }
        Ok(())
    }

    fn fill(&mut self, path: &[&str], count: usize) -> Result<()> {
        self.fill_named(&self.name(path), count)
    }

    /// Appends this many messages in batches.
    fn fill_named(&mut self, mailbox: &str, count: usize) -> Result<()> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for i in 1..=count {
            let message = self.messages.next();
            bytes += message.bytes.len();
            batch.push(message);
            if batch.len() >= 200 || bytes >= 8 << 20 || i == count {
                self.append(mailbox, &batch)?;
                batch.clear();
                bytes = 0;
            }
        }
        Ok(())
    }

    fn append(&mut self, mailbox: &str, batch: &[NewMessage]) -> Result<()> {
        self.imap.append(mailbox, batch)?;
        self.report.messages += batch.len();
        self.report.bytes += batch.iter().map(|message| message.bytes.len()).sum::<usize>();
        Ok(())
    }

    fn deliver(&mut self, recipient: &str, message: &[u8]) -> Result<()> {
        match lmtp::deliver(self.host, recipient, message).accepted() {
            Ok(_) => {
                self.report.messages += 1;
                self.report.bytes += message.len();
            }
            Err(error) => {
                let warning = format!("delivery to {recipient}: {error:#}");
                self.report.warnings.push(warning);
            }
        }
        Ok(())
    }

    fn quotas(&mut self) -> Result<()> {
        let inbox = quote(self.full_name(&[]));
        self.as_admin(&[b"SETQUOTA", &inbox, b"(STORAGE 2000000 MESSAGE 500000)"])?;
        Ok(())
    }

    fn folders(&mut self) -> Result<()> {
        for folder in SPECIAL {
            self.create(&[folder], &format!("\\{folder}"))?;
        }
        for folder in FOLDERS {
            self.create(folder, "")?;
        }
        let archive = quote(self.full_name(&["Archive"]));
        self.as_admin(&[b"SETQUOTA", &archive, b"(STORAGE 1000000)"])?;
        Ok(())
    }

    /// Messages in every folder but the empty one: most in the first ones, at least three in each.
    fn spread(&mut self, count: usize) -> Result<()> {
        let targets: Vec<Vec<&str>> = std::iter::once(vec![])
            .chain(SPECIAL.iter().map(|folder| vec![*folder]))
            .chain(FOLDERS.iter().map(|folder| folder.to_vec()))
            .filter(|folder| *folder != ["empty"])
            .collect();
        let total: f64 = (1..=targets.len()).map(|rank| 1.0 / rank as f64).sum();
        for (i, folder) in targets.iter().enumerate() {
            let share = count as f64 / (i + 1) as f64 / total;
            // INBOX must have the messages that the following steps work on.
            self.fill(folder, (share as usize).max(if i == 0 { 70 } else { 3 }))?;
        }
        Ok(())
    }

    /// The same message in several folders: by COPY, and appended again.
    fn duplicates(&mut self) -> Result<()> {
        self.attempt(b"SELECT INBOX")?;
        for (uids, folder) in [("1:20", &["Archive", "2020"][..]), ("5,7,9", &["Projekte"])] {
            let folder = quote(self.name(folder));
            self.attempt(&words(&[b"UID COPY", uids.as_bytes(), &folder]))?;
        }
        let message = self.messages.sized(12_000);
        let seen = NewMessage { flags: vec!["\\Seen".to_owned()], ..message.clone() };
        for folder in [&[][..], &["Shared"], &["Shared", "team"]] {
            self.append(&self.name(folder), &[seen.clone(), message.clone()])?;
        }
        Ok(())
    }

    /// Sizes and dates at the edges of what is allowed.
    fn edges(&mut self) -> Result<()> {
        let tiny = NewMessage {
            date: Some(" 1-Jan-1980 00:00:00 +0000".to_owned()),
            bytes: b"From: a@b\r\n\r\n".to_vec(),
            ..NewMessage::default()
        };
        let dateless =
            NewMessage { bytes: b"Subject: tiny\r\n\r\nx\r\n".to_vec(), ..NewMessage::default() };
        let large = self.messages.sized(3 << 20);
        self.append("INBOX", &[tiny, dateless, large])
    }

    /// Flags changed later, so that modseqs differ; and a keyword set and removed again.
    fn later_flags(&mut self) -> Result<()> {
        self.attempt(b"SELECT INBOX")?;
        for uid in (1..30).step_by(3) {
            let later = format!("later-{}", uid % 4);
            let choices = ["\\Flagged", &later, "\\Answered \\Seen"];
            let choice = choices.choose(&mut self.messages.random).unwrap_or(&"\\Seen");
            self.attempt(format!("UID STORE {uid} +FLAGS.SILENT ({choice})").as_bytes())?;
        }
        self.attempt(b"UID STORE 2,6,10 +FLAGS.SILENT (gone)")?;
        self.attempt(b"UID STORE 2,6,10 -FLAGS.SILENT (gone)")?;
        self.attempt(b"UNSELECT")?;
        Ok(())
    }

    fn annotations(&mut self) -> Result<()> {
        if !self.imap.can("ANNOTATE-EXPERIMENT") {
            self.report.warnings.push("no message annotations".to_owned());
            return Ok(());
        }
        self.attempt(b"SELECT INBOX")?;
        for uid in [1, 3, 5, 8] {
            self.attempt(
                format!(
                    "UID STORE {uid} ANNOTATION (/comment (value.priv \"private note {uid}\" \
                     value.shared \"shared note {uid}\"))"
                )
                .as_bytes(),
            )?;
        }
        self.attempt(b"UID STORE 9 ANNOTATION (/altsubject (value.priv \"alt subject\"))")?;
        self.attempt(b"UNSELECT")?;
        Ok(())
    }

    /// Messages that are expunged but kept for a while: some, the first ones, and all of a folder.
    fn expunges(&mut self) -> Result<()> {
        for (folder, set) in [
            (&[][..], "UID STORE 40:60"),
            (&["Archive", "2019"], "STORE 1:2"),
            (&["only-expunged"], "STORE 1:*"),
        ] {
            let folder = quote(self.name(folder));
            self.attempt(&words(&[b"SELECT", &folder]))?;
            self.attempt(format!("{set} +FLAGS.SILENT (\\Deleted)").as_bytes())?;
            match set.strip_prefix("UID STORE ") {
                Some(uids) => self.attempt(format!("UID EXPUNGE {uids}").as_bytes())?,
                None => self.attempt(b"EXPUNGE")?,
            };
        }
        self.attempt(b"UNSELECT")?;
        Ok(())
    }

    fn metadata(&mut self) -> Result<()> {
        for (folder, key, value) in [
            (&[][..], "/private/comment", "my inbox ünïcode"),
            (&["Projekte"], "/shared/comment", "shared comment \"quoted\""),
            (&["Projekte"], "/private/vendor/lab/x", "v1"),
            (&["日本語"], "/private/comment", "日本"),
            (&["Archive"], "/shared/vendor/lab/y", "multi\r\nline"),
            (&["Archive", "2018"], "/shared/vendor/cmu/cyrus-imapd/expire", "365"),
            (&["SharedSeen"], "/shared/vendor/cmu/cyrus-imapd/sharedseen", "true"),
        ] {
            self.set_metadata(folder, key, value)?;
        }
        for (key, value) in
            [("/private/comment", "server level private"), ("/private/vendor/lab/z", "srv")]
        {
            self.attempt(format!("SETMETADATA \"\" ({key} \"{value}\")").as_bytes())?;
        }
        let trash = quote(self.full_name(&["Trash"]));
        let expire = b"(/shared/vendor/cmu/cyrus-imapd/expire \"30\")";
        self.as_admin(&[b"SETMETADATA", &trash, expire])?;
        Ok(())
    }

    fn set_metadata(&mut self, folder: &[&str], key: &str, value: &str) -> Result<bool> {
        let folder = quote(self.name(folder));
        let entry = format!("({key} {{{}+}}\r\n{value})", value.len());
        self.attempt(&words(&[b"SETMETADATA", &folder, entry.as_bytes()]))
    }

    /// Subscriptions; two go stale by [`Filling::rename_and_delete`].
    fn subscriptions(&mut self) -> Result<()> {
        for folder in [
            &[][..],
            &["Sent"],
            &["Archive"],
            &["Projekte"],
            &["日本語", "メール箱"],
            &["toberenamed"],
            &["tobedeleted"],
        ] {
            let folder = quote(self.name(folder));
            self.attempt(&words(&[b"SUBSCRIBE", &folder]))?;
        }
        Ok(())
    }

    fn rights(&mut self, other: &str) -> Result<()> {
        let shared = SHARED.iter().map(|(folder, rights)| (*folder, other, *rights));
        let more = [
            (&["Projekte"][..], "anyone", "lr"),
            (&["Projekte"], "-mallory", "w"),
            (&["Archive"], "ghost", "lrs"),
            (&[], "anyone", "p"),
        ];
        for (folder, who, rights) in shared.chain(more) {
            let folder = quote(self.name(folder));
            self.attempt(&words(&[b"SETACL", &folder, who.as_bytes(), rights.as_bytes()]))?;
        }
        Ok(())
    }

    fn scripts(&mut self) -> Result<()> {
        self.put_scripts(&["main", "ferien", "empty-ish"])
    }

    /// Stores these scripts and makes the first one active.
    fn put_scripts(&mut self, names: &[&str]) -> Result<()> {
        let mut sieve = self.host.sieve(self.user)?;
        let junk = self.name(&["Junk"]);
        for name in names {
            let text = match *name {
                "main" => format!(
                    "require [\"fileinto\",\"imap4flags\"];\r\n# Umlaut: äöü\r\n\
                     if header :contains \"X-Spam\" \"yes\" {{ fileinto \"{junk}\"; stop; }}\r\n\
                     if header :contains \"subject\" \"flagme\" {{ addflag \"\\\\Flagged\"; keep; }}\r\n"
                ),
                "ferien" => "require \"vacation\";\r\nvacation :days 7 :subject \"Urlaub\" \
                             \"Ich bin bis März weg. Grüße\";\r\n"
                    .to_owned(),
                _ => "# nothing\r\nkeep;\r\n".to_owned(),
            };
            if let Err(error) = sieve.put(name, &text) {
                self.report.warnings.push(format!("script {name}: {error:#}"));
            }
        }
        if let Some(first) = names.first() {
            sieve.activate(first)?;
        }
        Ok(())
    }

    fn rename_and_delete(&mut self) -> Result<()> {
        let [old, new, gone] = [&["toberenamed"][..], &["renamed", "to here"], &["tobedeleted"]]
            .map(|folder| quote(self.name(folder)));
        self.attempt(&words(&[b"RENAME", &old, &new]))?;
        self.attempt(&words(&[b"DELETE", &gone]))?;
        Ok(())
    }

    /// Mail by LMTP: plain, filed and flagged by the script.
    fn deliveries(&mut self) -> Result<()> {
        for i in 0..7 {
            let mut message = self.messages.sized(2000).bytes;
            match i {
                5 => drop(message.splice(0..0, *b"X-Spam: yes\r\n")),
                6 => {
                    let subject = b"\r\nSubject: ";
                    let at = message.windows(subject.len()).position(|w| w == subject);
                    let at = at.map_or(0, |at| at + subject.len());
                    drop(message.splice(at..at, *b"flagme "));
                }
                _ => {}
            }
            self.deliver(self.user, &message)?;
        }
        Ok(())
    }

    /// The other user's own mail, and what they keep about the shared folders: seen state,
    /// subscriptions, private annotations.
    fn visit(&mut self, theirs: &mut Filling) -> Result<()> {
        theirs.fill(&[], 20)?;
        for (folder, _) in SHARED {
            let folder = quote(self.full_name(folder));
            if !theirs.attempt(&words(&[b"SELECT", &folder]))? {
                continue;
            }
            let seen = theirs.messages.random.random_range(1..3);
            theirs.attempt(format!("STORE 1:{seen} +FLAGS (\\Seen)").as_bytes())?;
            theirs.attempt(b"STORE 3 -FLAGS (\\Seen)")?;
            if theirs.imap.can("ANNOTATE-EXPERIMENT") {
                theirs
                    .attempt(b"STORE 1 ANNOTATION (/comment (value.priv \"the other's note\"))")?;
            }
            theirs.attempt(&words(&[b"SUBSCRIBE", &folder]))?;
            let comment = b"(/private/comment \"other's private comment\")";
            theirs.attempt(&words(&[b"SETMETADATA", &folder, comment]))?;
        }
        theirs.attempt(b"UNSELECT")?;
        Ok(())
    }
}

/// A command in a session of its own, for 3.6.1's imapd dies of any SETMETADATA of a mailbox that is
/// no user's: "assertion failed: imap/mboxlist.c: 1088: user_isnamespacelocked(userid)".
fn expendable(host: &Host, user: &str, command: &[u8], warnings: &mut Vec<String>) -> Result<()> {
    let what = format!("{user}: {}", show(command));
    match host.imap(user)?.attempt(command) {
        Ok(reply) => drop(warn(reply, &what, warnings)),
        Err(error) => warnings.push(format!("{what} -> {error:#}")),
    }
    Ok(())
}

/// Notes a refusal as a warning; whether the command succeeded.
fn warn(reply: Reply, what: &str, warnings: &mut Vec<String>) -> bool {
    let done = reply.tagged.is_ok();
    if !done {
        let refused = Refused { command: what.to_owned(), status: reply.tagged };
        warnings.push(refused.to_string());
    }
    done
}

fn show(command: &[u8]) -> String {
    String::from_utf8_lossy(command).replace("\r\n", "\u{21b5}")
}
