//! Where a mailbox's and a user's files are, on a server of any version.

use crate::cyrus::annotation::{AnnotationKey, Scope};
use crate::cyrus::config::{Config, DbKind, MetaFile};
use crate::cyrus::db::{Database, Engine};
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::mboxlist::{KeyStyle, MailboxEntry, MailboxList};
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::{DirStyle, Layout};
use crate::show::{self, Document, Flaw, Kind};
use bytes::Bytes;
use std::path::{Path, PathBuf};

/// Whether a record of a shared database is the user's, by its key.
type Wanted<'a> = dyn Fn(&[u8]) -> bool + 'a;

type Failed = Box<dyn std::error::Error>;

/// The files of a mailbox, in the order in which they are read.
const META: [(Kind, MetaFile); 4] = [
    (Kind::Header, MetaFile::Header),
    (Kind::Index, MetaFile::Index),
    (Kind::Expunge, MetaFile::Expunge),
    (Kind::MessageAnnotations, MetaFile::Annotations),
];

/// A user's own files that are not shown record by record.
const OTHERS: [&str; 6] =
    ["conversations", "counters", "dav", "mboxkey", "xapianactive", "caldav_alarms"];

/// Where a mailbox's files are.
#[derive(Debug)]
pub(super) struct MailboxPlaces {
    /// The directory of its messages.
    pub messages: PathBuf,
    /// Its metadata; not all need be there.
    pub files: Vec<(Kind, PathBuf)>,
}

impl MailboxPlaces {
    /// All in one directory.
    pub fn in_directory(path: &Path) -> Self {
        let files = META.iter().map(|(kind, file)| (*kind, path.join(file.file_name())));
        Self { messages: path.to_owned(), files: files.collect() }
    }

    fn find(layout: &Layout<'_>, entry: &MailboxEntry, style: DirStyle<'_>) -> Option<Self> {
        let partition = entry.partition.as_ref()?;
        let messages = layout.mailbox_dir(&entry.name, style, partition).ok()?;
        let place = |file| layout.meta_file(file, &entry.name, style, partition);
        let files = META.iter().filter_map(|(kind, file)| Some((*kind, place(*file).ok()?)));
        Some(Self { messages, files: files.collect() })
    }
}

/// Where all of a user, or of a shared tree, is.
#[derive(Debug)]
pub(super) struct UserPlaces {
    top: MailboxName,
    /// The mailboxes; none of a name only has a place.
    pub mailboxes: Vec<(MailboxEntry, Option<MailboxPlaces>)>,
    /// Files that are shown record by record.
    pub files: Vec<(Kind, PathBuf)>,
    other_files: Vec<PathBuf>,
    sieve: Option<PathBuf>,
    style: KeyStyle,
}

impl UserPlaces {
    /// Looks a mailbox and all that belongs to it up in mailboxes.db.
    pub fn find(config: &Config, list: &Bytes, top: &MailboxName) -> Result<Self, Failed> {
        let database = Database::open(list.clone(), &Engine::Flat)?;
        let list = MailboxList::from_database(&database)?;
        let layout = Layout::new(config);
        let mut places = Self {
            top: top.clone(),
            mailboxes: Vec::new(),
            files: Vec::new(),
            other_files: Vec::new(),
            sieve: None,
            style: list.style(),
        };
        for entry in list.owned(top, &config.deletedprefix())? {
            let style = dir_style(list.style(), &entry);
            let place = (!entry.is_deleted()).then(|| MailboxPlaces::find(&layout, &entry, style));
            if entry.name == *top && top.is_user() && !entry.is_deleted() {
                places.add_user_files(&layout, style)?;
            }
            places.mailboxes.push((entry, place.flatten()));
        }
        if config.db_engine(DbKind::Quota) == Engine::QuotaLegacy {
            for (entry, _) in &places.mailboxes {
                places.files.push((Kind::Quota, layout.quota_file(&entry.name)?));
            }
        }
        Ok(places)
    }

    fn add_user_files(&mut self, layout: &Layout<'_>, style: DirStyle<'_>) -> Result<(), Failed> {
        let file = |suffix: &str| layout.user_file(&self.top, style, suffix);
        self.files.push((Kind::Subscriptions, file("sub")?));
        self.files.push((Kind::Seen, file("seen")?));
        for suffix in OTHERS {
            self.other_files.push(file(suffix)?);
        }
        let user = self.top.userid();
        self.sieve = user.and_then(|user| layout.sieve_dir(&user, style).ok().flatten());
        Ok(())
    }

    /// What of the server's shared databases is the user's.
    pub fn parts(&self, config: &Config) -> Vec<(PathBuf, Result<Document, Flaw>)> {
        let annotations = |key: &[u8]| self.owns_annotation(key);
        let quotas = |key: &[u8]| self.mailboxes.iter().any(|(e, _)| e.name.as_bytes() == key);
        let mut wanted: Vec<(DbKind, Kind, &Wanted<'_>)> =
            vec![(DbKind::Annotations, Kind::Annotations, &annotations)];
        if config.db_engine(DbKind::Quota) != Engine::QuotaLegacy {
            wanted.push((DbKind::Quota, Kind::Quota, &quotas));
        }
        let layout = Layout::new(config);
        let mut parts = Vec::new();
        for (database, kind, wanted) in wanted {
            let Ok(path) = layout.server_db(database) else { continue };
            let part = match super::read(&path) {
                Ok(None) => continue,
                Ok(Some(bytes)) => show::read_part(kind, &bytes, wanted),
                Err(flaw) => Err(flaw),
            };
            parts.push((path, part));
        }
        parts
    }

    fn owns_annotation(&self, key: &[u8]) -> bool {
        let Ok(key) = AnnotationKey::parse(key) else { return false };
        match &key.scope {
            Scope::Server => {
                let user = self.top.userid();
                user.is_some_and(|user| user.as_bytes() == key.userid)
            }
            Scope::Mailbox(of) => self.mailboxes.iter().any(|(entry, _)| match self.style {
                KeyStyle::Name => entry.name.as_bytes() == of,
                KeyStyle::Typed => {
                    entry.uniqueid.as_ref().is_some_and(|id| id.as_str().as_bytes() == of)
                }
            }),
            Scope::Message(_) => false,
        }
    }

    /// Paths and sizes in bytes of the user's other files; of a link where it leads.
    pub fn others(&self) -> Result<Vec<(String, u64)>, Failed> {
        let mut found = Vec::new();
        let mut add = |path: &Path| {
            if let Ok(stat) = path.symlink_metadata() {
                let leads = std::fs::read_link(path).ok();
                let leads = leads.map(|to| format!(" -> {}", to.display())).unwrap_or_default();
                found.push((format!("{}{leads}", path.display()), stat.len()));
            }
        };
        self.other_files.iter().for_each(|path| add(path));
        if let Some(sieve) = &self.sieve
            && let Ok(entries) = std::fs::read_dir(sieve)
        {
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            paths.iter().filter(|path| !path.is_dir()).for_each(|path| add(path));
        }
        Ok(found)
    }
}

/// How a mailbox's directories are named: by id from 3.6 on, unless they are older.
fn dir_style(keys: KeyStyle, entry: &MailboxEntry) -> DirStyle<'_> {
    match &entry.uniqueid {
        Some(id) if keys == KeyStyle::Typed && !entry.mbtype.has(Flag::LegacyDirs) => {
            DirStyle::Id(id)
        }
        _ => DirStyle::Name,
    }
}
