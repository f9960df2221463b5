//! This server: its Cyrus configuration, its databases, its programs and its
//! locks. What both agents need of the machine they run on.

pub mod commit;
pub mod durable;
pub mod imap;
pub mod imapd;
pub mod indexlock;
pub mod installed;
pub mod ofd;
pub mod offline;
pub mod priority;
pub mod sqlite;
pub mod tools;
pub mod userlock;
pub mod waiters;

use crate::cyrus::config::{Config, ConfigError, DbKind, Defaults};
use crate::cyrus::db::Database;
use crate::cyrus::name::{MailboxName, Namespace};
use crate::cyrus::path::Layout;
use crate::fault::{self, Point, Sabotage};
use crate::wire::v1;
use bytes::Bytes;
use commit::CommitLock;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;
use tools::{DbOp, Tools};

/// How long a lock on a shared database is waited for.
const DATABASE_WAIT: Duration = Duration::from_secs(10);

/// How long other moves may keep this one from changing a database: each needs
/// the time of one short transaction.
const COMMIT_WAIT: Duration = Duration::from_secs(60);

/// This server.
#[derive(Debug, Clone)]
pub struct Host {
    /// Cyrus's imapd.conf.
    pub conf: PathBuf,
    /// Its content.
    pub config: Config,
    /// Cyrus's programs.
    pub tools: Tools,
    /// Where mbcopy keeps what it knows, of a server that is only a disk: nothing
    /// runs on it, and nothing is written to it.
    pub offline: Option<PathBuf>,
    allow: Vec<String>,
    version: OnceLock<Option<String>>,
}

/// A database that cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct DatabaseError {
    /// The database.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It cannot be read.
    #[error("cannot read Cyrus's configuration {}: {source}; name it by --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It cannot be understood.
    #[error("{}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ConfigError,
    },
}

/// Reads imapd.conf with what it includes.
pub fn load_config(path: &Path) -> Result<Config, HostError> {
    let text = std::fs::read(path)
        .map_err(|source| HostError::Unreadable { path: path.into(), source })?;
    let mut include = |included: &Path| std::fs::read(included).map_err(|e| e.to_string());
    Config::parse(&text, Defaults::V3, &mut include)
        .map_err(|source| HostError::Config { path: path.into(), source })
}

impl Host {
    /// The server whose configuration was read from `conf`. `allow` holds the
    /// patterns (`*` for any text) of mailboxes that may be touched.
    pub fn new(
        conf: PathBuf,
        config: Config,
        cyrus_bin: Option<PathBuf>,
        allow: Vec<String>,
    ) -> Self {
        let tools = Tools::new(cyrus_bin);
        Self { conf, config, tools, offline: None, allow, version: OnceLock::new() }
    }

    /// The directory below which mbcopy keeps its journal.
    pub fn state_directory(&self) -> Result<PathBuf, ConfigError> {
        match &self.offline {
            Some(directory) => Ok(directory.clone()),
            None => self.config.configdirectory(),
        }
    }

    /// How mailbox names look here.
    pub fn namespace(&self) -> Result<Namespace, ConfigError> {
        self.config.namespace()
    }

    /// A mailbox as this server's admins type it.
    pub fn external(&self, name: &MailboxName) -> String {
        match self.namespace() {
            Ok(namespace) => String::from_utf8_lossy(&name.to_external(&namespace)).into_owned(),
            Err(_) => name.display(),
        }
    }

    /// Whether this agent may touch the mailbox.
    pub fn allows(&self, name: &MailboxName) -> bool {
        let name = name.as_bytes();
        self.allow.iter().any(|pattern| matches(pattern.as_bytes(), name))
    }

    /// Directories that lie on another filesystem than the root they belong to:
    /// into and out of them nothing can be renamed.
    pub fn crossings(&self) -> Vec<PathBuf> {
        let partitions = self.config.partitions().unwrap_or_default().into_values();
        let further = self.config.further_roots().into_iter().map(|(_, root)| root);
        let mut pairs: Vec<(PathBuf, &str)> =
            partitions.chain(further).map(|root| (root, "uuid")).collect();
        if let Ok(root) = self.config.configdirectory() {
            pairs.extend(["user", "user/uuid", "quota", "mbcopy"].map(|d| (root.clone(), d)));
        }
        pairs.push((self.config.sievedir(), "uuid"));
        let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev()).ok();
        let crosses = |(root, below): &(PathBuf, &str)| {
            let (above, below) = (device(root), device(&root.join(below)));
            above.is_some() && below.is_some() && above != below
        };
        pairs.into_iter().filter(crosses).map(|(root, below)| root.join(below)).collect()
    }

    /// What this server says of itself.
    pub fn welcome(&self) -> v1::Welcome {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        v1::Welcome {
            servername: self.config.servername().unwrap_or_else(|| hostname.clone()),
            hostname,
            cyrus_version: self.cyrus_version().unwrap_or_default(),
            machine_id: Bytes::copy_from_slice(&self.machine_id()),
            clock_unix_ms: crate::moves::journal::now_ms(),
            conversations: self.config.conversations().unwrap_or(false),
            ..v1::Welcome::default()
        }
    }

    /// The version of Cyrus's installed programs, as `3.6.1`.
    pub fn cyrus_version(&self) -> Option<String> {
        self.version.get_or_init(|| self.ask_version()).clone()
    }

    fn ask_version(&self) -> Option<String> {
        if self.offline.is_some() {
            return None;
        }
        let state = self.state_directory().ok().map(|directory| directory.join("mbcopy"));
        installed::version(&self.tools, &self.conf, state.as_deref())
    }

    /// Spares the next process to ask for the version, once there is a journal.
    pub fn keep_version(&self) {
        if let (Ok(state), Some(version)) = (self.state_directory(), self.cyrus_version()) {
            installed::keep(&self.tools, &state.join("mbcopy"), &version);
        }
    }

    /// The same on two servers only if they are one: the same configdirectory
    /// of the same running kernel.
    fn machine_id(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default());
        let stat = self.config.configdirectory().ok().and_then(|d| std::fs::metadata(d).ok());
        if let Some(stat) = stat {
            hasher.update(&stat.dev().to_be_bytes()).update(&stat.ino().to_be_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// The committed state of mailboxes.db.
    pub fn mailboxes(&self) -> Result<Database, DatabaseError> {
        self.database(DbKind::Mailboxes)
    }

    /// The same, after Cyrus has opened it if it cannot be read: a process of Cyrus that
    /// was killed while it wrote leaves it to the next one to put it in order.
    pub fn mailboxes_recovered(&self) -> Result<Database, DatabaseError> {
        let damaged = match self.mailboxes() {
            Err(damaged) if self.offline.is_none() => damaged,
            read => return read,
        };
        let kind = DbKind::Mailboxes;
        let (path, engine) = (self.database_path(kind)?, self.config.db_engine(kind));
        let get = [path.as_os_str(), engine.name().as_ref(), "get".as_ref(), "$".as_ref()];
        match self.tools.run(&self.conf, "cyr_dbtool", &get, Vec::new(), DATABASE_WAIT) {
            Ok(_) => self.mailboxes(),
            Err(_) => Err(damaged),
        }
    }

    /// The committed state of one of the server's databases; an absent one is empty.
    pub fn database(&self, kind: DbKind) -> Result<Database, DatabaseError> {
        let path = self.database_path(kind)?;
        let error = |reason: String| DatabaseError { path: path.clone(), reason };
        let bytes = match read_locked(&path, DATABASE_WAIT) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Bytes::new(),
            Err(e) => return Err(error(e.to_string())),
        };
        Database::open(bytes, &self.config.db_engine(kind)).map_err(|e| error(e.to_string()))
    }

    /// Changes one of the server's databases in one transaction of Cyrus's own,
    /// while no other move changes any of them. What it did must be read back: it
    /// may say nothing and have done nothing.
    pub fn change(&self, kind: DbKind, ops: &[DbOp<'_>]) -> Result<(), DatabaseError> {
        let path = self.database_path(kind)?;
        fault::check(Point::DatabaseWrite)
            .map_err(|e| DatabaseError { path: path.clone(), reason: e.to_string() })?;
        let engine = self.config.db_engine(kind);
        let failed = |reason: String| DatabaseError { path: path.clone(), reason };
        let directory = self.state_directory().map_err(|e| failed(e.to_string()))?;
        let lock = || CommitLock::take(&directory, COMMIT_WAIT).map_err(|e| failed(e.to_string()));
        let together = fault::sabotaged(Sabotage::CommitTogether);
        let _lock = if together { None } else { Some(lock()?) };
        let mut options = Vec::new();
        if !path.exists() {
            options.push("-n");
        }
        // Up to 3.4 the file may have another order.
        let sorted = !self.keeps_by_id() && self.config.improved_mboxlist_sort().unwrap_or(false);
        if kind == DbKind::Mailboxes && sorted {
            options.push("-M");
        }
        self.tools
            .change_database(&self.conf, &path, engine.name(), &options, ops)
            .map_err(|e| DatabaseError { path, reason: e.to_string() })
    }

    /// Changes records of mailboxes.db in one transaction, and reads back that it has
    /// happened. Each is a key and what becomes of it; none: it is removed.
    ///
    /// Errors: it has not happened, or that cannot be read.
    pub fn change_records<'a>(
        &self,
        changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    ) -> Result<(), DatabaseError> {
        let op = |(key, new)| match new {
            Some(new) => DbOp::Set(key, new),
            None => DbOp::Delete(key),
        };
        let said = self.change(DbKind::Mailboxes, &changes.clone().map(op).collect::<Vec<_>>());
        // Only what is read back tells whether the transaction happened.
        match (self.holds(changes)?, said) {
            (true, _) => Ok(()),
            (false, Err(error)) => Err(error),
            (false, Ok(())) => Err(DatabaseError {
                path: self.database_path(DbKind::Mailboxes)?,
                reason: "it was not changed: the records are as before".into(),
            }),
        }
    }

    /// Whether mailboxes.db is as these changes leave it.
    pub fn holds<'a>(
        &self,
        mut changes: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<bool, DatabaseError> {
        let database = self.mailboxes()?;
        let path = self.database_path(DbKind::Mailboxes)?;
        changes.try_fold(true, |all, (key, new)| {
            let now = database.get(key);
            let now =
                now.map_err(|e| DatabaseError { path: path.clone(), reason: e.to_string() })?;
            Ok(all && now.as_deref() == new)
        })
    }

    fn database_path(&self, kind: DbKind) -> Result<PathBuf, DatabaseError> {
        Layout::new(&self.config)
            .server_db(kind)
            .map_err(|e| DatabaseError { path: self.conf.clone(), reason: e.to_string() })
    }
}

/// Reads a whole database file under a lock that keeps its writers away, and
/// makes sure that it still is the file of that name (a repack replaces it).
pub fn read_locked(path: &Path, wait: Duration) -> io::Result<Bytes> {
    loop {
        let mut file = File::open(path)?;
        if !ofd::lock(&file, ofd::Mode::Shared, wait)? {
            return Err(ofd::stays_locked(wait));
        }
        let opened = file.metadata()?;
        let named = std::fs::metadata(path)?;
        if (opened.dev(), opened.ino()) == (named.dev(), named.ino()) {
            let mut bytes = Vec::with_capacity(opened.len() as usize);
            file.read_to_end(&mut bytes)?;
            return Ok(bytes.into());
        }
    }
}

/// Matches a pattern in which `*` stands for any text.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
        Some((c, rest)) => {
            text.split_first().is_some_and(|(t, tail)| t == c && matches(rest, tail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("*", "user.x", true),
            ("user.*", "user.x", true),
            ("user.*", "team.sales", false),
            ("user.a*b", "user.aXb", true),
            ("user.a", "user.ab", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
    }
}
