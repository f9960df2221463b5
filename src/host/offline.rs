//! A server that is only a disk: of a machine that is dead, or a copy. Nothing runs
//! on it and nothing is written to it, so what mbcopy must remember of it is kept in
//! a place of this machine's own.

use super::{Host, HostError, load_config};
use crate::agent::privileges;
use crate::cyrus::config::{Config, Defaults};
use crate::cyrus::db::{Database, Engine};
use crate::cyrus::mboxlist::{KeyStyle, MailboxList};
use crate::transport::join_quoted;
use bytes::Bytes;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Where root keeps what it knows of such disks.
const STATE: &str = "/var/lib/mbcopy-sources";

/// The file, beside a disk's journal, of the options that name the disk.
const OPTIONS: &str = "options";

/// Where a disk is, and how its server was configured.
#[derive(Debug, Clone)]
pub struct Disk {
    conf: PathBuf,
    root: Option<PathBuf>,
}

/// Why a disk cannot be a source.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Its imapd.conf.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A directory.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Disk {
    /// The disk that these options name, if they name one.
    pub fn new(conf: Option<&Path>, root: Option<&Path>) -> Option<Self> {
        let conf = match (conf, root) {
            (Some(conf), _) => conf.to_owned(),
            (None, Some(root)) => root.join("etc/imapd.conf"),
            (None, None) => return None,
        };
        Some(Self { conf, root: root.map(Path::to_owned) })
    }

    /// Its imapd.conf, with all paths where the disk is.
    pub fn config(&self) -> Result<Config, HostError> {
        let config = load_config(&self.conf)?;
        Ok(match &self.root {
            Some(root) => config.below(root),
            None => config,
        })
    }

    /// Its server, after becoming the user that its files belong to.
    pub fn open(&self, allow: Vec<String>) -> Result<Host, DiskError> {
        let config = self.config()?;
        let mut host = Host::new(self.conf.clone(), config, None, allow);
        let directory = host
            .config
            .configdirectory()
            .map_err(|source| HostError::Config { path: self.conf.clone(), source })?;
        let io = |verb, path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Io { verb, path, source }
        };
        let owner = std::fs::metadata(&directory).map_err(io("read", &directory))?;
        let state = self.state_directory(&directory);
        let parent = state.parent().unwrap_or(&state);
        let made = DirBuilder::new().recursive(true).mode(0o711).create(parent);
        made.map_err(io("make", parent))?;
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&state);
        made.map_err(io("make", &state))?;
        // So that `status` without the options can name them.
        let _ = std::fs::write(state.join(OPTIONS), self.options());
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&state, Some(owner.uid()), Some(owner.gid()))
                .map_err(io("give away", &state))?;
        }
        privileges::become_owner(&directory).map_err(io("become the owner of", &directory))?;
        host.offline = Some(state);
        let defaults = recognise(&host);
        host.config = host.config.clone().with_defaults(defaults);
        Ok(host)
    }

    /// The options that name it, as a shell takes them.
    fn options(&self) -> String {
        let conf = Some(("--source-conf", self.conf.as_path()));
        let root = self.root.as_deref().map(|root| ("--source-root", root));
        let named = conf.into_iter().chain(root);
        let words = named.flat_map(|(option, path)| [option.to_owned(), absolute(path)]);
        join_quoted(&words.collect::<Vec<_>>())
    }

    /// Named by what it is of: the same disk has the same journal.
    fn state_directory(&self, configdirectory: &Path) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let real = std::fs::canonicalize(configdirectory);
        let real = real.unwrap_or_else(|_| configdirectory.to_owned());
        let hash = blake3::hash(real.as_os_str().as_bytes()).to_hex();
        base().join(hash.get(..16).unwrap_or_default())
    }
}

/// Where what is known of all disks is.
fn base() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(STATE);
    }
    std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("mbcopy-sources")
}

/// The options of every disk that there was a move of: their moves are known only with
/// these.
pub fn known() -> Vec<String> {
    let directories = std::fs::read_dir(base()).into_iter().flatten().flatten();
    let options = directories.map(|entry| std::fs::read_to_string(entry.path().join(OPTIONS)));
    let mut options: Vec<String> = options.filter_map(Result::ok).collect();
    options.sort();
    options
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// Which defaults a server had.
fn recognise(host: &Host) -> Defaults {
    host.mailboxes().map_or(Defaults::V2, |database| defaults_by(&database))
}

/// Whose defaults a server has, by the bytes of its mailboxes.db.
pub fn defaults_of(mailboxes: &Bytes) -> Defaults {
    let database = Database::open(mailboxes.clone(), &Engine::Flat);
    database.map_or(Defaults::V2, |database| defaults_by(&database))
}

/// From 3.0 on records have modification sequences.
fn defaults_by(database: &Database) -> Defaults {
    let Ok(list) = MailboxList::from_database(database) else { return Defaults::V2 };
    let new = list.style() == KeyStyle::Typed
        || list.all().is_ok_and(|all| all.iter().any(|e| e.foldermodseq + e.createdmodseq > 0));
    if new { Defaults::V3 } else { Defaults::V2 }
}
