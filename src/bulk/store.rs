//! What is known of a run: one SQLite database, `run.sqlite`, in the run's own
//! directory. Durable before each step that it describes; the truth about each
//! move is in the journals of its servers.
//!
//! Whoever starts moves holds the file `lock` of the directory; others may change
//! what the admin decides (control, skip, retry) at any time.

use super::resolve::Planned;
use super::schedule::Control;
use super::state::{Outcome, Retries, State, Task, after};
use crate::moves::journal::now_ms;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, params};
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

/// The reason of those whom the plan does not name any more.
const TAKEN_OUT: &str = "the plan does not name him any more";

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
            let database = Connection::open(&path)?;
            database.busy_timeout(WAIT)?;
            database.pragma_update(None, "journal_mode", "WAL")?;
            database.pragma_update(None, "synchronous", "FULL")?;
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

    /// Puts users into the run who are not in it. Whoever is in it, is not named
    /// any more, and has not begun, is taken out, unless `keep`.
    pub fn add(&self, users: &[Planned], mode: Mode, keep: bool) -> Result<Added> {
        self.try_to(|db| {
            let transaction = db.unchecked_transaction()?;
            let now = now_ms();
            let (mut new, mut known) = (0, 0);
            {
                transaction.execute("UPDATE user SET planned = 0", [])?;
                // A size that is not known does not replace one that is.
                let mut insert = transaction.prepare(
                    "INSERT INTO user VALUES (NULL,?1,?2,?3,?4,?5,0,?6,'waiting',0,?7,0,'',0,0,0,\
                     '','','','',?8,1) ON CONFLICT (mailbox) DO NOTHING",
                )?;
                let mut update = transaction.prepare(
                    "UPDATE user SET planned = 1, \
                     destination = iif(state = 'waiting' AND attempts = 0, ?2, destination), \
                     next_at = iif(state = 'waiting' AND attempts = 0, ?7, next_at), \
                     mailboxes = iif(?3 > 0, ?3, mailboxes), messages = iif(?3 > 0, ?4, messages), \
                     bytes = iif(?3 > 0, ?5, bytes), \
                     state = iif(state = 'skipped' AND reason = ?9, 'waiting', state) \
                     WHERE mailbox = ?1",
                )?;
                for user in users {
                    let (mailboxes, messages, bytes) = user.size;
                    let place = user.place();
                    let task = mode.task().word();
                    let row = insert.execute(params![
                        user.mailbox,
                        place,
                        mailboxes,
                        messages,
                        bytes,
                        task,
                        user.not_before,
                        now
                    ])?;
                    new += row as u64;
                    if row == 0 {
                        known += 1;
                        update.execute(params![
                            user.mailbox,
                            place,
                            mailboxes,
                            messages,
                            bytes,
                            task,
                            user.not_before,
                            now,
                            TAKEN_OUT
                        ])?;
                    }
                }
            }
            let gone = match keep {
                true => 0,
                false => transaction.execute(
                    "UPDATE user SET state = 'skipped', reason = ?1, updated = ?2 \
                     WHERE planned = 0 AND state = 'waiting' AND attempts = 0 AND copied = 0 \
                     AND task <> 'reverse'",
                    params![TAKEN_OUT, now],
                )?,
            };
            transaction.commit()?;
            Ok(Added { new, known, gone: gone as u64 })
        })
    }

    /// Begins a pass, if none is under way that does the same; whether it did.
    ///
    /// One that copies is over when everybody is copied; then it copies again what
    /// has come since. Nobody is moved twice.
    pub fn begin(&self, mode: Mode) -> Result<bool> {
        let before = self.mode()?;
        let open = self.open_users()? > 0;
        if before == Some(mode) && (open || mode != Mode::Copy) {
            return Ok(false);
        }
        self.try_to(|db| {
            let transaction = db.unchecked_transaction()?;
            let now = now_ms();
            let reset = "UPDATE user SET state = 'waiting', attempts = 0, next_at = 0, reason = '', \
                         advice = '', updated = ?1 WHERE ";
            transaction.execute(&format!("{reset} state = 'copied'"), [now])?;
            let left_out = format!("{reset} state = 'refused' AND reason = ?2");
            transaction.execute(&left_out, params![now, NOT_COPIED])?;
            if mode == Mode::Copy {
                transaction.execute(&format!("{reset} state IN ('failed', 'refused')"), [now])?;
            }
            transaction.execute(
                "UPDATE user SET task = ?1 WHERE state = 'waiting' AND task <> 'reverse'",
                [mode.task().word()],
            )?;
            if mode == Mode::Cutover {
                transaction.execute(
                    "UPDATE user SET state = 'refused', reason = ?1, updated = ?2, \
                     advice = 'copy him first: the same command with --copy-only' \
                     WHERE state = 'waiting' AND copied = 0 AND task <> 'reverse'",
                    params![NOT_COPIED, now],
                )?;
            }
            let remark = "INSERT OR REPLACE INTO run VALUES (?1, ?2)";
            transaction.execute(remark, ["mode", mode.word()])?;
            transaction.commit()?;
            Ok(true)
        })
    }

    /// Users with whom something is to be done still.
    pub fn open_users(&self) -> Result<u64> {
        let query = "SELECT count(*) FROM user WHERE state IN ('waiting','running','unfinished')";
        self.try_to(|db| db.query_row(query, [], |row| row.get(0)))
    }

    /// Puts users into an order.
    pub fn order(&self, order: Order) -> Result<()> {
        let rank = match order {
            Order::Smallest => "bytes",
            Order::Largest => "-bytes",
            Order::Listed => "id",
        };
        self.try_to(|db| db.execute(&format!("UPDATE user SET rank = {rank}"), []).map(drop))
    }

    /// Whose turn it is: he is running from now on, durably.
    pub fn claim(&self, now: i64, unfinished_only: bool) -> Result<Option<Job>> {
        let state = if unfinished_only { State::Unfinished } else { State::Waiting };
        self.try_to(|db| {
            let transaction =
                rusqlite::Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
            let next = transaction
                .query_row(
                    "SELECT id, mailbox, destination, task FROM user \
                     WHERE state = ?1 AND next_at <= ?2 ORDER BY rank, id LIMIT 1",
                    params![state.word(), now],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get::<_, String>(3)?)),
                )
                .optional()?;
            let Some((user, mailbox, place, task)) = next else { return Ok(None) };
            transaction.execute(
                "UPDATE user SET state = 'running', attempts = attempts + 1, updated = ?2 \
                 WHERE id = ?1",
                params![user, now],
            )?;
            transaction.execute(
                "INSERT INTO attempt VALUES (NULL, ?1, ?2, 0, ?3, NULL, '', 0, 0, 0, 0, '')",
                params![user, task, now],
            )?;
            let attempt = transaction.last_insert_rowid();
            transaction.commit()?;
            let task = Task::from_word(&task).unwrap_or(Task::Move);
            Ok(Some(Job { attempt, user, mailbox, place, task, pid: 0, started: now }))
        })
    }

    /// Notes which process does it.
    pub fn begun(&self, attempt: i64, pid: i32) -> Result<()> {
        let update = "UPDATE attempt SET pid = ?2 WHERE id = ?1";
        self.try_to(|db| db.execute(update, params![attempt, pid]).map(drop))
    }

    /// Attempts of which no end is known, oldest first.
    pub fn under_way(&self) -> Result<Vec<Job>> {
        let query = "SELECT a.id, a.user, u.mailbox, u.destination, a.task, a.pid, a.started \
                     FROM attempt a JOIN user u ON u.id = a.user WHERE a.ended IS NULL ORDER BY a.id";
        self.all(query, [], |row| {
            let task: String = row.get(4)?;
            Ok(Job {
                attempt: row.get(0)?,
                user: row.get(1)?,
                mailbox: row.get(2)?,
                place: row.get(3)?,
                task: Task::from_word(&task).unwrap_or(Task::Move),
                pid: row.get(5)?,
                started: row.get(6)?,
            })
        })
    }

    /// An attempt has ended; what becomes of its user.
    pub fn ended(&self, job: &Job, ended: &Ended, retries: &Retries) -> Result<State> {
        self.try_to(|db| {
            let transaction =
                rusqlite::Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
            let attempts: u32 = transaction.query_row(
                "SELECT attempts FROM user WHERE id = ?1",
                [job.user],
                |row| row.get(0),
            )?;
            let (state, pause) = after(job.task, ended.outcome, attempts, retries);
            let uncounted = u32::from(ended.outcome == Outcome::Interrupted);
            let (mailboxes, messages, bytes) = ended.size;
            transaction.execute(
                "UPDATE attempt SET ended = ?2, outcome = ?3, messages_sent = ?4, bytes_sent = ?5, \
                 freeze_ms = ?6, total_ms = ?7, text = ?8 WHERE id = ?1",
                params![
                    job.attempt,
                    ended.at,
                    ended.outcome.word(),
                    ended.sent.0,
                    ended.sent.1,
                    ended.freeze_ms,
                    ended.total_ms,
                    ended.text
                ],
            )?;
            transaction.execute(
                "UPDATE user SET state = ?2, attempts = attempts - ?3, next_at = ?4, \
                 copied = iif(?5, ?6, copied), move_id = iif(?7 <> '', ?7, move_id), \
                 mailboxes = iif(?8 > 0, ?8, mailboxes), messages = iif(?8 > 0, ?9, messages), \
                 bytes = iif(?8 > 0, ?10, bytes), messages_sent = messages_sent + ?11, \
                 bytes_sent = bytes_sent + ?12, freeze_ms = ?13, \
                 serving = iif(?14 <> '', ?14, serving), reason = ?15, advice = ?16, detail = ?17, \
                 updated = ?18 WHERE id = ?1",
                params![
                    job.user,
                    state.word(),
                    uncounted,
                    pause.map_or(0, |pause| ended.at + pause.as_millis() as i64),
                    state == State::Copied,
                    ended.at,
                    ended.move_id,
                    mailboxes,
                    messages,
                    bytes,
                    ended.sent.0,
                    ended.sent.1,
                    ended.freeze_ms,
                    ended.serving,
                    ended.text,
                    ended.advice,
                    ended.detail,
                    ended.at,
                ],
            )?;
            transaction.commit()?;
            Ok(state)
        })
    }

    /// An attempt that was noted and never began.
    pub fn not_begun(&self, job: &Job) -> Result<()> {
        self.try_to(|db| {
            let transaction = db.unchecked_transaction()?;
            transaction.execute("DELETE FROM attempt WHERE id = ?1", [job.attempt])?;
            transaction.execute(
                "UPDATE user SET state = 'waiting', attempts = max(attempts - 1, 0) \
                 WHERE id = ?1 AND state = 'running'",
                [job.user],
            )?;
            transaction.commit()
        })
    }

    /// When the next user of a state may begin: milliseconds since 1970.
    pub fn next_turn(&self, state: State) -> Result<Option<i64>> {
        let query = "SELECT min(next_at) FROM user WHERE state = ?1";
        self.try_to(|db| db.query_row(query, [state.word()], |row| row.get(0)))
    }

    /// Users in trouble.
    pub fn troubled(&self) -> Result<u64> {
        let query = "SELECT count(*) FROM user WHERE state IN ('refused','failed','stuck')";
        self.try_to(|db| db.query_row(query, [], |row| row.get(0)))
    }

    /// Users, messages and bytes of each state that somebody is in.
    pub fn counts(&self) -> Result<Vec<Count>> {
        let query = "SELECT state, count(*), sum(messages), sum(bytes) FROM user GROUP BY state";
        let mut counts = self.all(query, [], |row| {
            Ok(Count {
                state: state(row.get(0)?),
                users: row.get(1)?,
                messages: row.get(2)?,
                bytes: row.get(3)?,
            })
        })?;
        counts.sort_by_key(|count| count.state);
        Ok(counts)
    }

    /// Takes a user out, if nothing of his move is under way; whether it did.
    pub fn skip(&self, mailbox: &str) -> Result<bool> {
        let update = "UPDATE user SET state = 'skipped', reason = 'taken out by the admin', \
                      advice = '', updated = ?2 \
                      WHERE mailbox = ?1 AND state IN ('waiting', 'copied', 'refused', 'failed')";
        self.try_to(|db| Ok(db.execute(update, params![mailbox, now_ms()])? > 0))
    }

    /// Has those tried again who are in trouble, or one user, even one who was taken
    /// out or came back; how many.
    pub fn retry(&self, mailbox: Option<&str>) -> Result<u64> {
        let task = self.mode()?.unwrap_or(Mode::Move).task();
        let update = "UPDATE user SET state = iif(state = 'stuck', 'unfinished', 'waiting'), \
                      task = iif(state = 'stuck' OR task = 'reverse' AND \
                      state IN ('failed', 'refused'), task, ?1), \
                      attempts = 0, next_at = 0, reason = '', advice = '', updated = ?2 WHERE ";
        self.try_to(|db| match mailbox {
            None => {
                let which = "state IN ('failed', 'refused', 'stuck')";
                db.execute(&format!("{update} {which}"), params![task.word(), now_ms()])
            }
            Some(mailbox) => {
                let which = "mailbox = ?3 AND state IN \
                             ('failed', 'refused', 'stuck', 'reversed', 'skipped')";
                db.execute(&format!("{update} {which}"), params![task.word(), now_ms(), mailbox])
            }
        })
        .map(|n| n as u64)
    }

    /// Has everybody who was moved taken back, or one user; how many.
    pub fn reverse(&self, mailbox: Option<&str>) -> Result<u64> {
        let update = "UPDATE user SET state = 'waiting', task = 'reverse', attempts = 0, \
                      next_at = 0, reason = '', advice = '', updated = ?1 \
                      WHERE state IN ('moved', 'moved-with-losses')";
        self.try_to(|db| match mailbox {
            None => db.execute(update, [now_ms()]),
            Some(mailbox) => {
                db.execute(&format!("{update} AND mailbox = ?2"), params![now_ms(), mailbox])
            }
        })
        .map(|n| n as u64)
    }

    /// The state of one user.
    pub fn state_of(&self, mailbox: &str) -> Result<Option<State>> {
        let query = "SELECT state FROM user WHERE mailbox = ?1";
        self.try_to(|db| db.query_row(query, [mailbox], |row| Ok(state(row.get(0)?))).optional())
    }

    /// Tells every user, those in trouble first, and keeps none.
    pub fn each_user(&self, mut tell: impl FnMut(User)) -> Result<()> {
        self.try_to(|db| {
            let mut query = db.prepare(
                "SELECT * FROM user ORDER BY state NOT IN ('stuck','failed','refused'), \
                 state NOT IN ('running','unfinished'), id",
            )?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                tell(user(row)?);
            }
            Ok(())
        })
    }

    /// The last users who got into trouble, the newest first.
    pub fn last_troubles(&self, most: u32) -> Result<Vec<User>> {
        let query = "SELECT * FROM user WHERE reason <> '' AND state <> 'skipped' \
                     ORDER BY updated DESC LIMIT ?1";
        self.all(query, [most], user)
    }

    /// Tells when each ended attempt began and ended (milliseconds since 1970), what
    /// it sent, and how long its user was frozen, in order of their ends.
    pub fn each_attempt(&self, mut tell: impl FnMut(i64, i64, u64, f64)) -> Result<()> {
        self.try_to(|db| {
            let mut query = db.prepare(
                "SELECT started, ended, bytes_sent, freeze_ms FROM attempt \
                 WHERE ended IS NOT NULL ORDER BY ended",
            )?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                tell(row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            }
            Ok(())
        })
    }

    /// Users that ended well since then (milliseconds since 1970), and their bytes;
    /// and when the first of them began.
    pub fn done_since(&self, since: i64) -> Result<(u64, u64, Option<i64>)> {
        let query = "SELECT count(*), coalesce(sum(u.bytes), 0), min(a.started) \
                     FROM attempt a JOIN user u ON u.id = a.user \
                     WHERE a.ended >= ?1 AND a.outcome IN ('done', 'done-with-losses')";
        self.try_to(|db| db.query_row(query, [since], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?))))
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

/// A state that this version does not know is one that nobody touches.
fn state(word: String) -> State {
    State::from_word(&word).unwrap_or(State::Stuck)
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        mailbox: row.get("mailbox")?,
        destination: row.get("destination")?,
        task: Task::from_word(&row.get::<_, String>("task")?).unwrap_or(Task::Move),
        state: state(row.get("state")?),
        attempts: row.get("attempts")?,
        next_unix_ms: row.get("next_at")?,
        move_id: row.get("move_id")?,
        mailboxes: row.get("mailboxes")?,
        messages: row.get("messages")?,
        bytes: row.get("bytes")?,
        messages_sent: row.get("messages_sent")?,
        bytes_sent: row.get("bytes_sent")?,
        freeze_ms: row.get("freeze_ms")?,
        serving: row.get("serving")?,
        reason: row.get("reason")?,
        advice: row.get("advice")?,
        updated_unix_ms: row.get("updated")?,
        detail: row.get("detail")?,
    })
}

#[cfg(test)]
mod tests;
