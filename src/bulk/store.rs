//! What is known of a run: one SQLite database, `run.sqlite`, in the run's own
//! directory. Durable before each step that it describes; the truth about each
//! move is in the journals of its servers.
//!
//! Whoever starts moves holds the file `lock` of the directory; others may change
//! what the admin decides (control, skip, retry) at any time.

mod admin;
mod tell;
mod turns;

use super::schedule::Control;
use super::state::{Outcome, State, Task};
use crate::host::sqlite;
use rusqlite::{Connection, OptionalExtension, Row};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The version of the tables.
const SCHEMA: i64 = 1;

/// How long another process may keep the database.
const WAIT: Duration = Duration::from_secs(20);

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database fails.
    #[error("{path}: {source}", path = path.display())]
    Database {
        /// The database.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A file or directory fails.
    #[error("cannot {verb} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// Another version of mbcopy has made it.
    #[error("{path} is of another version of mbcopy", path = .0.display())]
    Version(PathBuf),
    /// There is no such run.
    #[error("there is no run {0:?}")]
    NoRun(String),
    /// Another process starts its moves.
    #[error("{holder} is at work on the run {name:?}")]
    Held {
        /// The run.
        name: String,
        /// Who, as he wrote it down.
        holder: String,
    },
}

type Result<T> = std::result::Result<T, StoreError>;

/// What a pass of a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Everybody is copied.
    Copy,
    /// Everybody is moved.
    Move,
    /// Those who are copied are moved.
    Cutover,
}

impl Mode {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Move => "move",
            Self::Cutover => "cutover",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Copy, Self::Move, Self::Cutover].into_iter().find(|mode| mode.word() == word)
    }

    fn task(self) -> Task {
        match self {
            Self::Copy => Task::Copy,
            Self::Move | Self::Cutover => Task::Move,
        }
    }
}

/// In which order users are taken.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
pub enum Order {
    /// The smallest first.
    Smallest,
    /// The largest first.
    Largest,
    /// As the plan lists them.
    Listed,
}

/// The state of a run.
pub struct Store {
    name: String,
    directory: PathBuf,
    database: Connection,
}

/// The right to start moves of a run; a kernel lock that ends with the process.
#[derive(Debug)]
pub struct Coordinator {
    _file: File,
}

/// An attempt that is under way, or begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its number in the run.
    pub attempt: i64,
    /// The number of its user.
    pub user: i64,
    /// The top mailbox.
    pub mailbox: String,
    /// The destination, as push takes it.
    pub place: String,
    /// What is done.
    pub task: Task,
    /// The process that does it; 0: not known.
    pub pid: i32,
    /// When it began: milliseconds since 1970.
    pub started: i64,
}

/// What an attempt has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
    /// The move's id; empty: it got none.
    pub move_id: String,
    /// Mailboxes, messages and bytes of the user; zero: not known.
    pub size: (u64, u64, u64),
    /// What crossed the wire.
    pub sent: (u64, u64),
    /// How long he was frozen, in milliseconds; zero: not at all, or not known.
    pub freeze_ms: f64,
    /// How long it took, in milliseconds.
    pub total_ms: f64,
    /// Who serves the user, by name; empty: not known.
    pub serving: String,
    /// What went wrong; empty: nothing.
    pub text: String,
    /// What to do about it.
    pub advice: String,
    /// Problems, differences and notes of the report, as JSON.
    pub detail: String,
    /// When it ended: milliseconds since 1970.
    pub at: i64,
}

/// A user as the store has him.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct User {
    /// The top mailbox.
    pub mailbox: String,
    /// Where to, as push takes it.
    pub destination: String,
    /// What is done with him.
    pub task: Task,
    /// Where he stands.
    pub state: State,
    /// Attempts in this pass.
    pub attempts: u32,
    /// When he may begin, or be tried again: milliseconds since 1970.
    pub next_unix_ms: i64,
    /// The id of his last move.
    pub move_id: String,
    /// Mailboxes.
    pub mailboxes: u64,
    /// Messages.
    pub messages: u64,
    /// Their size.
    pub bytes: u64,
    /// Messages that crossed the wire, in all attempts.
    pub messages_sent: u64,
    /// Bytes that crossed the wire, in all attempts.
    pub bytes_sent: u64,
    /// How long he was frozen in the last attempt, in milliseconds.
    pub freeze_ms: f64,
    /// Who serves him, as the last attempt said.
    pub serving: String,
    /// Why he is where he is; empty: all went well.
    pub reason: String,
    /// What to do about it.
    pub advice: String,
    /// When that was: milliseconds since 1970.
    pub updated_unix_ms: i64,
    /// Problems, differences and notes of his last attempt, as JSON.
    #[serde(skip)]
    pub detail: String,
}

/// Users of one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Count {
    /// The state.
    pub state: State,
    /// Users.
    pub users: u64,
    /// Their messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What became of users by an admin's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Added {
    /// New in the run.
    pub new: u64,
    /// In it before.
    pub known: u64,
    /// Taken out, because the plan does not name them any more.
    pub gone: u64,
}

/// The reason of those that a cut-over leaves out.
pub const NOT_COPIED: &str = "he was not copied before";

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS run (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS user (
        id INTEGER PRIMARY KEY, mailbox TEXT NOT NULL UNIQUE, destination TEXT NOT NULL,
        mailboxes INTEGER NOT NULL, messages INTEGER NOT NULL, bytes INTEGER NOT NULL,
        rank INTEGER NOT NULL, task TEXT NOT NULL, state TEXT NOT NULL,
        attempts INTEGER NOT NULL, next_at INTEGER NOT NULL, copied INTEGER NOT NULL,
        move_id TEXT NOT NULL, messages_sent INTEGER NOT NULL, bytes_sent INTEGER NOT NULL,
        freeze_ms REAL NOT NULL, serving TEXT NOT NULL, reason TEXT NOT NULL,
        advice TEXT NOT NULL, detail TEXT NOT NULL, updated INTEGER NOT NULL,
        planned INTEGER NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS user_turn ON user (state, rank, id);
    CREATE INDEX IF NOT EXISTS user_time ON user (state, next_at);
    CREATE TABLE IF NOT EXISTS attempt (
        id INTEGER PRIMARY KEY, user INTEGER NOT NULL, task TEXT NOT NULL,
        pid INTEGER NOT NULL, started INTEGER NOT NULL, ended INTEGER, outcome TEXT NOT NULL,
        messages_sent INTEGER NOT NULL, bytes_sent INTEGER NOT NULL, freeze_ms REAL NOT NULL,
        total_ms REAL NOT NULL, text TEXT NOT NULL) STRICT;
    CREATE INDEX IF NOT EXISTS attempt_end ON attempt (ended);
    CREATE INDEX IF NOT EXISTS attempt_user ON attempt (user);";

impl Store {
    /// Opens the run `name` below `root`, or makes it.
    pub fn create(root: &Path, name: &str) -> Result<Self> {
        let directory = root.join(name);
        let io = |source| StoreError::Io { verb: "make", path: directory.clone(), source };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory.join("attempts"))
            .map_err(io)?;
        Self::at(name, directory)
    }

    /// Opens the run `name` below `root`.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        let directory = root.join(name);
        match directory.join("run.sqlite").is_file() {
            true => Self::at(name, directory),
            false => Err(StoreError::NoRun(name.to_owned())),
        }
    }

    /// The runs below `root`, by name.
    pub fn runs(root: &Path) -> Result<Vec<String>> {
        let io = |source| StoreError::Io { verb: "read", path: root.into(), source };
        let entries = match std::fs::read_dir(root) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
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

    fn at(name: &str, directory: PathBuf) -> Result<Self> {
        let path = directory.join("run.sqlite");
        let connect = || -> rusqlite::Result<(Connection, i64)> {
            let database = sqlite::open(&path, WAIT)?;
            let version = database.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if version == 0 {
                database.execute_batch(&format!(
                    "BEGIN IMMEDIATE; {TABLES}; PRAGMA user_version = {SCHEMA}; COMMIT;"
                ))?;
            }
            Ok((database, version))
        };
        let failed = |source| StoreError::Database { path: path.clone(), source };
        let (database, version) = connect().map_err(failed)?;
        match version {
            0 | SCHEMA => Ok(Self { name: name.to_owned(), directory, database }),
            _ => Err(StoreError::Version(path)),
        }
    }

    /// The run's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The run's own directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the outputs of attempts are.
    pub fn attempts(&self) -> PathBuf {
        self.directory.join("attempts")
    }

    /// Takes the right to start this run's moves.
    ///
    /// Errors: [`StoreError::Held`] names who has it.
    pub fn coordinate(&self) -> Result<Coordinator> {
        let path = self.directory.join("lock");
        let io = |verb| {
            let path = path.clone();
            move |source| StoreError::Io { verb, path, source }
        };
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(&path).map_err(io("open"))?;
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = file.take(200).read_to_string(&mut holder);
            let holder = crate::wire::printable(holder.trim());
            return Err(StoreError::Held { name: self.name.clone(), holder });
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io("write"))?;
        write!(file, "process {}", std::process::id()).map_err(io("write"))?;
        Ok(Coordinator { _file: file })
    }

    /// Whether a coordinator is at work.
    pub fn is_coordinated(&self) -> bool {
        let Ok(file) = File::open(self.directory.join("lock")) else { return false };
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&file, shared).is_err()
    }

    /// A remark about the run; none: it was never made.
    pub fn remark(&self, key: &str) -> Result<Option<String>> {
        let query = "SELECT value FROM run WHERE key = ?1";
        self.try_to(|db| db.query_row(query, [key], |row| row.get(0)).optional())
    }

    /// Makes a remark about the run.
    pub fn set_remark(&self, key: &str, value: &str) -> Result<()> {
        self.try_to(|db| {
            db.execute("INSERT OR REPLACE INTO run VALUES (?1, ?2)", [key, value]).map(drop)
        })
    }

    /// What the admin has asked for.
    pub fn control(&self) -> Result<Control> {
        Ok(self.remark("control")?.map_or(Control::Go, |word| Control::from_word(&word)))
    }

    /// Asks for it.
    pub fn set_control(&self, control: Control) -> Result<()> {
        self.set_remark("control", control.word())
    }

    /// What the pass at hand does; none: no pass has begun.
    pub fn mode(&self) -> Result<Option<Mode>> {
        Ok(self.remark("mode")?.and_then(|word| Mode::from_word(&word)))
    }

    fn all<T>(
        &self,
        query: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>> {
        self.try_to(|db| db.prepare(query)?.query_map(parameters, read)?.collect())
    }

    fn try_to<T>(&self, does: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        does(&self.database).map_err(|source| StoreError::Database {
            path: self.directory.join("run.sqlite"),
            source,
        })
    }
}

#[cfg(test)]
mod tests;
