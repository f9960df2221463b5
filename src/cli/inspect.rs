//! `mbcopy inspect`: shows what mbcopy reads in a file, a mailbox's directory, or a
//! whole user. Reads only.

mod places;

use super::Common;
use super::push::USAGE;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::imap_set::UidSet;
use crate::cyrus::index::IndexView;
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::Layout;
use crate::host::offline::{self, Disk};
use crate::host::{load_config, read_locked};
use crate::show::{self, Beside, Content, Document, Flaw, Kind, Lines, SCHEMA, Shown};
use bytes::Bytes;
use clap::Args;
use places::{MailboxPlaces, UserPlaces};
use serde::Serialize;
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::ErrorKind::{InvalidFilename, NotFound};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a file is waited for that Cyrus writes.
const WAIT: Duration = Duration::from_secs(5);

/// How many records of a file are shown, if nothing else is asked for.
const SHOWN: usize = 20;

/// Arguments of `mbcopy inspect`.
#[derive(Debug, Args)]
pub(super) struct InspectArgs {
    /// A file of Cyrus's, a mailbox's directory, or a mailbox of this server by name
    /// with all below it: user.x, user/x, team.sales
    #[arg(value_name = "PATH|MAILBOX")]
    what: PathBuf,
    /// Show this many records of each file [default: 20; of a user none; with --json all]
    #[arg(long, value_name = "N")]
    records: Option<usize>,
    /// Show all records
    #[arg(long, conflicts_with = "records")]
    all: bool,
    /// What the file is, if its name does not say it
    #[arg(long = "as", value_name = "KIND")]
    kind: Option<Kind>,
    /// Print one JSON document per line on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(common: &Common, args: InspectArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    let printer = Printer::new(common, &args);
    let typed = args.what.to_string_lossy();
    let is_path = args.what.is_absolute() || typed.starts_with('.') || args.what.exists();
    let shown = match (is_path, args.what.is_dir()) {
        (true, true) => directory(&args.what, &printer),
        (true, false) => file(&args.what, args.kind, &printer),
        (false, _) if args.kind.is_some() => {
            eprintln!("mbcopy: --as is for a file; there is no {typed}");
            return ExitCode::from(USAGE);
        }
        (false, _) => user(common, &typed, &printer),
    };
    if let Err(error) = shown {
        eprintln!("mbcopy: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::from(u8::from(printer.flawed.get() > 0))
}

/// Why nothing can be shown.
type Failed = Box<dyn std::error::Error>;

/// A file's bytes, of one moment; none if there is no file.
fn read(path: &Path) -> Result<Option<Bytes>, Flaw> {
    match read_locked(path, WAIT) {
        Ok(bytes) => Ok(Some(bytes)),
        // Of a mailbox with a very long name there can be no file of a quota root.
        Err(e) if [NotFound, InvalidFilename].contains(&e.kind()) => Ok(None),
        Err(e) => Err(Flaw { offset: None, record: None, reason: e.to_string() }),
    }
}

fn file(path: &Path, kind: Option<Kind>, printer: &Printer) -> Result<(), Failed> {
    let bytes = read_locked(path, WAIT).map_err(|e| format!("{}: {e}", path.display()))?;
    let kind = kind.or_else(|| Kind::recognise(path, &bytes)).ok_or_else(|| {
        format!("{}: the file is of no kind that is known; say it by --as", path.display())
    })?;
    // The names of keywords are in the header, which usually lies beside the index.
    let beside = path.with_file_name("cyrus.header");
    let header = read(&beside).ok().flatten().and_then(|b| MailboxHeader::parse(&b).ok());
    let beside = Beside { header: header.as_ref(), inbox: None };
    match show::read(kind, &bytes, &beside) {
        Ok(document) => printer.file(path, &document),
        Err(flaw) => printer.unread(path, &flaw),
    }
    Ok(())
}

/// A directory that holds a mailbox's files.
fn directory(path: &Path, printer: &Printer) -> Result<(), Failed> {
    let places = MailboxPlaces::in_directory(path);
    let mailbox = Mailbox::read(None, &places, printer);
    if mailbox.files.is_empty() && mailbox.flaws.is_empty() {
        return Err(format!("{}: the directory holds no cyrus.* file", path.display()).into());
    }
    printer.mailbox(&path.display().to_string(), &mailbox);
    Ok(())
}

/// A user, or a shared tree, of the server that is configured.
fn user(common: &Common, typed: &str, printer: &Printer) -> Result<(), Failed> {
    let disk = Disk::new(common.source_conf.as_deref(), common.source_root.as_deref());
    let config = match &disk {
        Some(disk) => disk.config()?,
        None => load_config(&common.config)?,
    };
    let list_path = Layout::new(&config).mailboxes_db()?;
    let in_list = |e: &dyn std::fmt::Display| format!("{}: {e}", list_path.display());
    let list = read_locked(&list_path, WAIT).map_err(|e| in_list(&e))?;
    let config = config.with_defaults(offline::defaults_of(&list));
    let top = MailboxName::from_external(typed.as_bytes(), &config.namespace()?)
        .map_err(|e| format!("{typed}: there is no such file, and {e}"))?;
    let places = UserPlaces::find(&config, &list, &top).map_err(|e| in_list(&e))?;
    if places.mailboxes.is_empty() {
        let text = format!("{typed}: there is no such file, and no such mailbox on this server");
        return Err(text.into());
    }
    let mut rows = Vec::new();
    for (entry, place) in &places.mailboxes {
        let record = show::mailbox(entry);
        let mailbox = match place {
            Some(place) => Mailbox::read(Some(record), place, printer),
            None => Mailbox { record: Some(record), ..Mailbox::default() },
        };
        rows.push(mailbox.row());
        printer.mailbox(&entry.name.display(), &mailbox);
    }
    let heads = [
        "mailbox",
        "type",
        "partition",
        ">version",
        ">UIDVALIDITY",
        ">messages",
        ">expunged",
        ">bytes",
        ">MODSEQ",
    ];
    printer.section("", show::table(&heads, &rows));
    let beside = Beside { header: None, inbox: Some(&top) };
    for (kind, path) in &places.files {
        match read(path) {
            Ok(None) => {}
            Ok(Some(bytes)) => match show::read(*kind, &bytes, &beside) {
                Ok(document) => printer.file(path, &document),
                Err(flaw) => printer.unread(path, &flaw),
            },
            Err(flaw) => printer.unread(path, &flaw),
        }
    }
    for (path, document) in places.parts(&config) {
        match document {
            Ok(document) => printer.part(&path, &document),
            Err(flaw) => printer.unread(&path, &flaw),
        }
    }
    printer.others(&places.others()?);
    Ok(())
}

/// A file that was read.
#[derive(Debug, Serialize)]
struct Read {
    path: String,
    #[serde(flatten)]
    document: Document,
}

/// A mailbox: its record, if it was found by one, and its files.
#[derive(Debug, Default, Serialize)]
struct Mailbox {
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<show::Mailbox>,
    directory: Option<String>,
    /// Messages' files.
    message_files: u64,
    files: Vec<Read>,
    /// What could not be read at all, and files that do not fit the index.
    flaws: Vec<FlawIn>,
}

/// What is wrong in a file or a directory.
#[derive(Debug, Serialize)]
struct FlawIn {
    path: String,
    #[serde(flatten)]
    flaw: Flaw,
}

impl Mailbox {
    fn read(record: Option<show::Mailbox>, places: &MailboxPlaces, printer: &Printer) -> Self {
        let mut mailbox = Self { record, ..Self::default() };
        let directory = places.messages.display().to_string();
        let mut header = None;
        let mut listed: Option<Listed> = None;
        // The header first: it names the keywords of the index.
        for (kind, path) in &places.files {
            let shown = path.display().to_string();
            let bytes = match read(path) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(flaw) => {
                    mailbox.flaws.push(FlawIn { path: shown, flaw });
                    continue;
                }
            };
            if *kind == Kind::Header {
                header = MailboxHeader::parse(&bytes).ok();
            }
            match kind {
                Kind::Index => listed = IndexView::parse(&bytes).ok().map(|v| Listed::of(&v)),
                Kind::Expunge => {
                    let view = IndexView::parse_expunge(&bytes).ok();
                    listed.iter_mut().zip(view).for_each(|(l, view)| l.also(&view));
                }
                _ => {}
            }
            match show::read(*kind, &bytes, &Beside { header: header.as_ref(), inbox: None }) {
                Ok(document) => mailbox.files.push(Read { path: shown, document }),
                Err(flaw) => mailbox.flaws.push(FlawIn { path: shown, flaw }),
            }
        }
        match message_files(&places.messages) {
            Ok(files) => {
                mailbox.message_files = files.len() as u64;
                let flaws = listed.map(|l| l.compare(&files)).unwrap_or_default().into_iter();
                let of = |flaw| FlawIn { path: directory.clone(), flaw };
                mailbox.flaws.extend(flaws.map(of));
            }
            // Metadata on its own, of a metapartition.
            Err(e) if e.kind() == io::ErrorKind::NotFound && mailbox.record.is_none() => {}
            Err(e) => {
                let flaw = Flaw { offset: None, record: None, reason: e.to_string() };
                mailbox.flaws.push(FlawIn { path: directory.clone(), flaw });
            }
        }
        mailbox.directory = Some(directory);
        printer.count(&mailbox);
        mailbox
    }

    fn index(&self) -> Option<&show::Index> {
        self.files.iter().find_map(|file| match &file.document.content {
            Content::Index(index) => Some(index),
            _ => None,
        })
    }

    /// A line of a user's mailboxes.
    fn row(&self) -> Vec<String> {
        let record = self.record.as_ref();
        let kind = record.map(|r| [&[r.r#type], r.states.as_slice()].concat().join(" "));
        let mut row = vec![
            record.map(|r| r.name.clone()).unwrap_or_default(),
            kind.unwrap_or_default(),
            record.and_then(|r| r.partition.clone()).unwrap_or_default(),
        ];
        if let Some(index) = self.index() {
            let expunged = index.num_records.saturating_sub(index.exists);
            row.extend([
                index.minor.to_string(),
                index.uidvalidity.to_string(),
                index.exists.to_string(),
                expunged.to_string(),
                index.quota_mailbox_used.to_string(),
                index.highestmodseq.map(|m| m.to_string()).unwrap_or_default(),
            ]);
        }
        row
    }
}

/// What an index says about files.
struct Listed {
    /// Messages that must have a file here.
    needed: BTreeSet<u32>,
    /// All records.
    known: BTreeSet<u32>,
}

impl Listed {
    fn of(view: &IndexView<'_>) -> Self {
        let mut listed = Self { needed: BTreeSet::new(), known: BTreeSet::new() };
        for record in view.records().flatten() {
            listed.known.insert(record.uid);
            if !record.is_expunged() && !record.is_archived() {
                listed.needed.insert(record.uid);
            }
        }
        listed
    }

    /// Up to 2.3 expunged messages are in a file of their own.
    fn also(&mut self, expunged: &IndexView<'_>) {
        self.known.extend(expunged.records().flatten().map(|r| r.uid));
    }

    fn compare(&self, files: &BTreeSet<u32>) -> Vec<Flaw> {
        let missing = UidSet::from_uids(self.needed.difference(files).copied());
        let orphans = UidSet::from_uids(files.difference(&self.known).copied());
        let flaw = |uids: &UidSet, what: &str| {
            let reason = format!("{what}: {uids}");
            (!uids.is_empty()).then_some(Flaw { offset: None, record: None, reason })
        };
        [
            flaw(&missing, "messages that the index lists have no file"),
            flaw(&orphans, "messages' files have no record in the index"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The UIDs of the messages' files in a directory.
fn message_files(directory: &Path) -> io::Result<BTreeSet<u32>> {
    let mut uids = BTreeSet::new();
    for entry in std::fs::read_dir(directory)? {
        let name = entry?.file_name();
        let uid: Option<u32> = name.to_str().and_then(|n| n.strip_suffix('.')?.parse().ok());
        uids.extend(uid);
    }
    Ok(uids)
}

/// Tells people or programs what was read.
struct Printer {
    json: bool,
    quiet: bool,
    /// How many records of a single file, and of those of a user.
    shown: Shown,
    in_users: Option<Shown>,
    flawed: Cell<u64>,
}

#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    schema: u32,
    event: &'a str,
    #[serde(flatten)]
    content: T,
}

impl Printer {
    fn new(common: &Common, args: &InspectArgs) -> Self {
        let asked = args.all.then_some(usize::MAX).or(args.records).map(Shown);
        Self {
            json: args.json,
            quiet: common.quiet,
            shown: asked.unwrap_or(Shown(SHOWN)),
            in_users: asked,
            flawed: Cell::new(0),
        }
    }

    fn say(&self, text: &str) {
        if !self.quiet {
            // Who has stopped reading wants no more.
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    fn document(&self, event: &str, content: impl Serialize) {
        if let Ok(text) = serde_json::to_string(&Line { schema: SCHEMA, event, content }) {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    fn flaw(&self, path: &str, flaw: &Flaw) {
        self.flawed.set(self.flawed.get() + 1);
        eprintln!("mbcopy: {path}: {flaw}");
    }

    /// Tells the flaws of a mailbox, once.
    fn count(&self, mailbox: &Mailbox) {
        mailbox.flaws.iter().for_each(|found| self.flaw(&found.path, &found.flaw));
        for file in &mailbox.files {
            file.document.flaws.iter().for_each(|flaw| self.flaw(&file.path, flaw));
        }
    }

    fn unread(&self, path: &Path, flaw: &Flaw) {
        self.flaw(&path.display().to_string(), flaw);
        if self.json {
            #[derive(Serialize)]
            struct Unread<'a> {
                path: String,
                #[serde(flatten)]
                flaw: &'a Flaw,
            }
            self.document("unread", Unread { path: path.display().to_string(), flaw });
        }
    }

    fn file(&self, path: &Path, document: &Document) {
        let shown = path.display().to_string();
        document.flaws.iter().for_each(|flaw| self.flaw(&shown, flaw));
        if self.json {
            self.document("file", Read { path: shown, document: document.clone() });
        } else {
            let title = format!("{shown}: {}", document.title());
            self.section(&title, document.lines(self.shown));
        }
    }

    /// Part of a file: what of it is the user's.
    fn part(&self, path: &Path, document: &Document) {
        let shown = path.display().to_string();
        document.flaws.iter().for_each(|flaw| self.flaw(&shown, flaw));
        if self.json {
            self.document("part", Read { path: shown, document: document.clone() });
        } else {
            let title = format!("of {shown}: {}", document.title());
            self.section(&title, document.lines(self.shown));
        }
    }

    fn mailbox(&self, name: &str, mailbox: &Mailbox) {
        if self.json {
            self.document("mailbox", mailbox);
            return;
        }
        let shown = match (&mailbox.record, self.in_users) {
            (None, _) => self.shown,
            (Some(_), Some(shown)) => shown,
            (Some(_), None) => return,
        };
        self.section(&format!("{name}: {} messages' files", mailbox.message_files), Lines::new());
        for file in &mailbox.files {
            let title = format!("{}: {}", file.path, file.document.title());
            self.section(&title, file.document.lines(shown));
        }
    }

    fn others(&self, others: &[(String, u64)]) {
        if self.json {
            #[derive(Serialize)]
            struct Other<'a> {
                path: &'a str,
                size: u64,
            }
            for (path, size) in others {
                self.document("other", Other { path, size: *size });
            }
        } else if !others.is_empty() {
            let rows: Vec<_> =
                others.iter().map(|(path, size)| vec![path.clone(), size.to_string()]).collect();
            self.section("other files", show::table(&["path", ">bytes"], &rows));
        }
    }

    /// A title, and lines below it.
    fn section(&self, title: &str, lines: Lines) {
        if self.json {
            return;
        }
        if !title.is_empty() {
            self.say(title);
        }
        lines.iter().for_each(|line| match line.is_empty() {
            true => self.say(""),
            false => self.say(&format!("  {line}")),
        });
        self.say("");
    }
}
