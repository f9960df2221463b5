//! What is known of a run, durable before each step that it describes; the truth
//! about each move is in the journals of its servers.
//!
//! One set of statements for two engines ([`database`]): SQLite, one database
//! `run.sqlite` in the run's own directory, for a run of one coordinator; and
//! PostgreSQL, a schema of its own for each run, for one that several share. Each
//! coordinator takes users of the servers that it can reach, one by one, and keeps
//! them by a lease ([`coordinators`]); others may change what the admin decides
//! (control, skip, retry) at any time.

mod admin;
mod coordinators;
mod database;
mod encryption;
mod place;
mod postgres;
mod sqlite;
mod tables;
mod tell;
mod turns;

pub use coordinators::{Coordinator, Served};
pub use place::Place;

use super::pulse::Pace;
use super::schedule::Control;
use super::state::{Outcome, State, Task};
use database::{Database, DatabaseError, Row, Value};
use std::path::{Path, PathBuf};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database fails.
    #[error("{at}: {source}")]
    Database {
        /// The database.
        at: String,
        /// What it says.
        source: DatabaseError,
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
    #[error("{0} is of another version of mbcopy")]
    Version(String),
    /// The name does not fit into that of a schema.
    #[error("{0:?} is too long for the name of a run in PostgreSQL: use at most {longest} bytes", longest = postgres::LONGEST_NAME)]
    LongName(String),
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

impl StoreError {
    /// Whether the database cannot be reached just now, and may be later.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Database { source, .. } if source.is_passing())
    }
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
    place: Place,
    /// Of this machine: the outputs of its attempts, and its lock.
    directory: PathBuf,
    /// Who we are among the coordinators of the run; empty with SQLite, which has one.
    own: String,
    /// Whether there may be others.
    shared: bool,
    database: Box<dyn Database>,
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
    /// The server that has him, by name; empty: this one.
    pub source: String,
    /// The destination, as push takes it.
    pub place: String,
    /// What is done.
    pub task: Task,
    /// The process that does it; 0: not known.
    pub pid: i32,
    /// When it began: milliseconds since 1970.
    pub started: i64,
    /// Whether it takes up one that had stopped in between.
    pub resumes: bool,
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
    /// The server that had him when the plan was made, by name.
    pub source: String,
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
    /// In the run as users of other servers than those that have them now.
    pub elsewhere: u64,
}

/// The remark under which it is kept that only those are moved who are moved back.
const ONLY: &str = "only";

/// The task of those, in that remark, too.
const BACK: &str = "reverse";

/// What is said of a user so that his task is one that is done now: beside a rollback
/// nobody is moved forward.
const DONE_NOW: &str = "(task = 'reverse' OR NOT EXISTS \
                        (SELECT 1 FROM run WHERE key = 'only' AND value = 'reverse'))";

/// The remark under which it is kept how the targets fare.
const PACES: &str = "paces";

/// The remark under which it is kept why nothing begins.
const WAITS: &str = "waits";

/// The reason of those that a cut-over leaves out.
pub const NOT_COPIED: &str = "he was not copied before";

/// The reason of those whom no server has that a coordinator of the run can reach.
pub const NOT_FOUND: &str = "no server of this run has him";

impl Store {
    /// Opens the run `name` below the directory `root`, or makes it there.
    pub fn create(root: &Path, name: &str) -> Result<Self> {
        Place::Directory(root.into()).create(name)
    }

    /// Opens the run `name` below the directory `root`.
    pub fn open(root: &Path, name: &str) -> Result<Self> {
        Place::Directory(root.into()).open(name)
    }

    /// The runs below the directory `root`, by name.
    pub fn runs(root: &Path) -> Result<Vec<String>> {
        Place::Directory(root.into()).runs()
    }

    /// The run's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether coordinators on several machines may share it.
    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// The same by another connection.
    pub fn again(&self) -> Result<Self> {
        self.place.open(&self.name)
    }

    /// The run's own directory on this machine.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the outputs of attempts of this machine are.
    pub fn attempts(&self) -> PathBuf {
        self.directory.join("attempts")
    }

    /// A remark about the run; none: it was never made.
    pub fn remark(&self, key: &str) -> Result<Option<String>> {
        let found = self.one("SELECT value FROM run WHERE key = ?1", &[key.into()])?;
        Ok(found.map(|row| row.text(0)))
    }

    /// Makes a remark about the run.
    pub fn set_remark(&self, key: &str, value: &str) -> Result<()> {
        let put = "INSERT INTO run VALUES (?1, ?2) \
                   ON CONFLICT (key) DO UPDATE SET value = excluded.value";
        self.execute(put, &[key.into(), value.into()]).map(drop)
    }

    /// A remark about what this machine does for the run.
    pub fn own_remark(&self, key: &str) -> Result<Option<String>> {
        self.remark(&self.own_key(key))
    }

    /// Makes a remark about what this machine does for the run.
    pub fn set_own_remark(&self, key: &str, value: &str) -> Result<()> {
        self.set_remark(&self.own_key(key), value)
    }

    fn own_key(&self, key: &str) -> String {
        if self.own.is_empty() { key.to_owned() } else { format!("{key} of {}", self.own) }
    }

    /// What the admin has asked for.
    pub fn control(&self) -> Result<Control> {
        Ok(self.remark("control")?.map_or(Control::Go, |word| Control::from_word(&word)))
    }

    /// Asks for it.
    pub fn set_control(&self, control: Control) -> Result<()> {
        self.set_remark("control", control.word())
    }

    /// Whether everybody is being moved back, and nobody is moved forward meanwhile.
    pub fn rolls_back(&self) -> Result<bool> {
        Ok(self.remark(ONLY)?.is_some_and(|only| only == BACK))
    }

    /// Moves forward again.
    pub fn go_forward(&self) -> Result<()> {
        self.set_remark(ONLY, "")
    }

    /// What the pass at hand does; none: no pass has begun. Of several servers: what
    /// was begun last.
    pub fn mode(&self) -> Result<Option<Mode>> {
        Ok(self.remark("mode")?.and_then(|word| Mode::from_word(&word)))
    }

    /// Notes how the targets of this machine's moves fare.
    pub fn set_paces(&self, paces: &[Pace]) -> Result<()> {
        self.set_own_remark(PACES, &serde_json::to_string(paces).unwrap_or_default())
    }

    /// How the targets fare, as each coordinator sees it.
    pub fn paces(&self) -> Result<Vec<Pace>> {
        let read = |text: String| serde_json::from_str::<Vec<Pace>>(&text).unwrap_or_default();
        Ok(self.remarks_of_each(PACES)?.into_iter().flat_map(read).collect())
    }

    /// Notes why this machine begins nothing; empty: it does.
    pub fn set_waits(&self, why: &str) -> Result<()> {
        self.set_own_remark(WAITS, why)
    }

    /// Why coordinators begin nothing, each reason once.
    pub fn waits(&self) -> Result<Vec<String>> {
        let mut reasons = self.remarks_of_each(WAITS)?;
        reasons.retain(|why| !why.is_empty());
        reasons.sort();
        reasons.dedup();
        Ok(reasons)
    }

    /// The remarks of this kind of all coordinators that live.
    fn remarks_of_each(&self, key: &str) -> Result<Vec<String>> {
        if !self.shared {
            let own = if self.is_coordinated_here() { self.remark(key)? } else { None };
            return Ok(own.into_iter().collect());
        }
        let query = format!(
            "SELECT r.value FROM run r JOIN coordinator c ON r.key = ?1 || c.id \
             WHERE c.alive_until > {} ORDER BY r.key",
            self.database.now()
        );
        let rows = self.all(&query, &[format!("{key} of ").as_str().into()])?;
        Ok(rows.into_iter().map(|row| row.text(0)).collect())
    }

    /// Where those are to go with whom something is to be done still.
    pub fn destinations(&self) -> Result<Vec<String>> {
        let query = "SELECT DISTINCT destination FROM users \
                     WHERE state IN ('waiting', 'running', 'unfinished') ORDER BY destination";
        Ok(self.all(query, &[])?.into_iter().map(|row| row.text(0)).collect())
    }

    /// Where anything was done with anybody.
    pub fn reached(&self) -> Result<Vec<String>> {
        let query =
            "SELECT DISTINCT destination FROM users WHERE attempts > 0 ORDER BY destination";
        Ok(self.all(query, &[])?.into_iter().map(|row| row.text(0)).collect())
    }

    fn error(&self, source: DatabaseError) -> StoreError {
        StoreError::Database { at: self.database.at(), source }
    }

    fn execute(&self, statement: &str, values: &[Value]) -> Result<u64> {
        self.database.execute(statement, values).map_err(|e| self.error(e))
    }

    fn all(&self, query: &str, values: &[Value]) -> Result<Vec<Row>> {
        self.database.query(query, values).map_err(|e| self.error(e))
    }

    fn one(&self, query: &str, values: &[Value]) -> Result<Option<Row>> {
        Ok(self.all(query, values)?.into_iter().next())
    }

    /// The number that a query gives.
    fn number(&self, query: &str, values: &[Value]) -> Result<i64> {
        Ok(self.one(query, values)?.map_or(0, |row| row.integer(0)))
    }

    /// All of it, or nothing.
    fn transaction<T>(&self, does: impl FnOnce() -> Result<T>) -> Result<T> {
        self.database.begin().map_err(|e| self.error(e))?;
        match does() {
            Ok(value) => {
                self.database.commit().map_err(|e| self.error(e))?;
                Ok(value)
            }
            Err(error) => {
                // Whatever that says, the first error is the one to tell.
                let _ = self.database.rollback();
                Err(error)
            }
        }
    }
}
