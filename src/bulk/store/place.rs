//! Where runs are kept.

use super::database::{Database, DatabaseError};
use super::postgres::{LONGEST_NAME, Postgres};
use super::sqlite::Sqlite;
use super::tables::SCHEMA;
use super::{Result, Store, StoreError};
use crate::moves::MoveId;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Where runs are kept.
#[derive(Debug, Clone)]
pub enum Place {
    /// Each in a directory below this one, all of it.
    Directory(PathBuf),
    /// In a database that several machines share.
    Postgres {
        /// The database's URL.
        url: String,
        /// Where this machine keeps the outputs of its attempts, a directory a run.
        directory: PathBuf,
    },
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "{}", directory.display()),
            // Its URL may have a password.
            Self::Postgres { .. } => f.write_str("the PostgreSQL database of --store"),
        }
    }
}

impl Place {
    /// The run `name`, made if it is not there, by one who may coordinate it.
    pub fn create(&self, name: &str) -> Result<Store> {
        let directory = self.local().join(name);
        let io = |source| StoreError::Io { verb: "make", path: directory.clone(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory.join("attempts"))
            .map_err(io)?;
        if let Self::Postgres { url, .. } = self {
            if name.len() > LONGEST_NAME {
                return Err(StoreError::LongName(name.to_owned()));
            }
            own_name(&directory, true)?;
            let database = Postgres::new(url, Some(name)).map_err(|e| at(url, e))?;
            database.make().map_err(|e| at(&database.at(), e))?;
        }
        self.connect(name)
    }

    /// The run `name`.
    pub fn open(&self, name: &str) -> Result<Store> {
        let there = match self {
            Self::Directory(root) => root.join(name).join("run.sqlite").is_file(),
            Self::Postgres { .. } => self.runs()?.iter().any(|run| run == name),
        };
        if there { self.connect(name) } else { Err(StoreError::NoRun(name.to_owned())) }
    }

    /// The runs, by name.
    pub fn runs(&self) -> Result<Vec<String>> {
        let root = match self {
            Self::Directory(root) => root,
            Self::Postgres { url, .. } => {
                let database = Postgres::new(url, None).map_err(|e| at("the store", e))?;
                return database.runs().map_err(|e| at(&database.at(), e));
            }
        };
        let io = |source| StoreError::Io { verb: "read", path: root.into(), source };
        let entries = match std::fs::read_dir(root) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io)?,
        };
        let mut runs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io)?;
            if entry.path().join("run.sqlite").is_file() {
                runs.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        runs.sort();
        Ok(runs)
    }

    fn local(&self) -> &Path {
        match self {
            Self::Directory(directory) | Self::Postgres { directory, .. } => directory,
        }
    }

    fn connect(&self, name: &str) -> Result<Store> {
        let directory = self.local().join(name);
        let (own, database, version): (_, Box<dyn Database>, _) = match self {
            Self::Directory(_) => {
                let path = directory.join("run.sqlite");
                let opened = Sqlite::open(&path);
                let (database, version) = opened.map_err(|e| at(&path.display().to_string(), e))?;
                (String::new(), Box::new(database), version)
            }
            Self::Postgres { url, .. } => {
                let database = Postgres::new(url, Some(name)).map_err(|e| at("the store", e))?;
                let version = database.version().map_err(|e| at(&database.at(), e))?;
                (own_name(&directory, false)?, Box::new(database), version)
            }
        };
        if version != SCHEMA {
            return Err(StoreError::Version(database.at()));
        }
        let shared = matches!(self, Self::Postgres { .. });
        let place = self.clone();
        Ok(Store { name: name.to_owned(), place, directory, own, shared, database })
    }
}

fn at(place: &str, source: DatabaseError) -> StoreError {
    StoreError::Database { at: place.to_owned(), source }
}

/// Who this machine is among the coordinators of a run, the same after a restart;
/// empty: it was none yet, and is not made one.
fn own_name(directory: &Path, make: bool) -> Result<String> {
    let path = directory.join("coordinator");
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.trim().is_empty() => return Ok(name.trim().to_owned()),
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(StoreError::Io { verb: "read", path, source: e });
        }
        _ if !make => return Ok(String::new()),
        _ => {}
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let name = format!("{host} {}", MoveId::random());
    let written = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        std::io::Write::write_all(&mut file, name.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(&path)?;
        Ok(())
    };
    written().map_err(|source| StoreError::Io { verb: "write", path: path.clone(), source })?;
    Ok(name)
}
