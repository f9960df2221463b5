//! What a server remembers of the moves it takes part in, durable before each
//! step that it describes.
//!
//! One SQLite database per server, `<configdirectory>/mbcopy/journal.sqlite`.
//! Every row carries a seal, a hash over its fields: a row that the disk has
//! changed is refused, never misread.

use super::MoveId;
use crate::fault::{self, Point, Sabotage};
use crate::host::sqlite;
use crate::wire::v1;
use rusqlite::{Connection, OptionalExtension, Row, params};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long an agent whose coordinator is gone may take to end.
const ORPHAN_ENDS: Duration = Duration::from_secs(10);

/// How long it is asked to; then it is killed, which harms no more than any crash.
const ORPHAN_HEARS: Duration = Duration::from_secs(3);

/// What [`Entry::detail`] says of a repair by `mbcopy doctor`.
pub const REPAIR: &str = "doctor";

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database fails.
    #[error("the journal {path} fails: {source}")]
    Database {
        /// The journal.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// A file or directory beside it fails.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A row is not what was written.
    #[error("the journal {path} is damaged: the record of move {id} does not match its seal")]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// The move.
        id: String,
    },
    /// Another process works on this user.
    #[error("somebody else is moving this user: {holder}")]
    Held {
        /// Who, as he wrote it down.
        holder: String,
    },
}

/// One move as one server's journal has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The move.
    pub id: MoveId,
    /// This server's part in it.
    pub role: v1::Role,
    /// Internal name of the top mailbox.
    pub name: Vec<u8>,
    /// The name as an admin types it.
    pub display: String,
    /// The other server.
    pub peer: String,
    /// What was last done or is being done; a word of [`state`].
    pub state: String,
    /// More about it: text for people, or what resuming needs.
    pub detail: String,
    /// Milliseconds since 1970.
    pub started: i64,
    /// Milliseconds since 1970.
    pub updated: i64,
}

/// The states that journals hold. Those of the source say what has become of
/// its copy, those of the target what has become of the new one.
pub mod state {
    /// Nothing but the journal has been written.
    pub const PLANNED: &str = "planned";
    /// Copies are being staged.
    pub const COPYING: &str = "copying";
    /// All is staged, compared and durable, under the source's freeze.
    pub const PREPARED: &str = "prepared";
    /// The target moves directories and then commits: ask its mailboxes.db.
    pub const PUBLISHING: &str = "publishing";
    /// The target has committed.
    pub const PUBLISHED: &str = "published";
    /// The target takes its commit back.
    pub const UNPUBLISHING: &str = "unpublishing";
    /// The route is being changed.
    pub const ROUTING: &str = "routing";
    /// The route leads to the target.
    pub const ROUTED: &str = "routed";
    /// The source's records and directories are being changed.
    pub const RETIRING: &str = "retiring";
    /// The source's copy is out of reach and whole.
    pub const RETIRED: &str = "retired";
    /// The move is over; the target serves.
    pub const DONE: &str = "done";
    /// The move is over; the source serves.
    pub const ABORTED: &str = "aborted";
    /// The move is over; the target serves, and the source keeps nothing more.
    pub const PURGED: &str = "purged";

    /// Whether nothing is left to do for a move in this state.
    pub fn is_over(state: &str) -> bool {
        matches!(state, DONE | ABORTED | PURGED)
    }
}

/// Below the configdirectory.
const DIRECTORY: &str = "mbcopy";

/// The database.
const FILE: &str = "journal.sqlite";

/// The journal of this server.
pub struct Journal {
    directory: PathBuf,
    database: Connection,
}

/// A row as SQLite gives it, with its seal, which is not checked yet.
type RawRow = rusqlite::Result<(Entry, Vec<u8>)>;

/// The right to work on a user; a kernel lock that ends with the process.
#[derive(Debug)]
pub struct Hold {
    _file: File,
}

impl Journal {
    /// Opens the journal below a configdirectory, making it where it is missing.
    pub fn open(configdirectory: &Path) -> Result<Self, JournalError> {
        let directory = configdirectory.join(DIRECTORY);
        make_directory(&directory)?;
        let path = directory.join(FILE);
        let database = Self::connect(&path)
            .map_err(|source| JournalError::Database { path: path.clone(), source })?;
        Ok(Self { directory, database })
    }

    /// Opens the journal below a configdirectory, if there is one.
    pub fn open_existing(configdirectory: &Path) -> Result<Option<Self>, JournalError> {
        let exists = configdirectory.join(DIRECTORY).join(FILE).exists();
        exists.then(|| Self::open(configdirectory)).transpose()
    }

    fn connect(path: &Path) -> rusqlite::Result<Connection> {
        let database = sqlite::open(path, Duration::from_secs(10))?;
        if fault::sabotaged(Sabotage::JournalUnsynced) {
            database.pragma_update(None, "synchronous", "OFF")?;
        }
        database.execute_batch(
            "CREATE TABLE IF NOT EXISTS move (
                 id TEXT PRIMARY KEY, role INTEGER NOT NULL, name BLOB NOT NULL,
                 display TEXT NOT NULL, peer TEXT NOT NULL, state TEXT NOT NULL,
                 detail TEXT NOT NULL, started INTEGER NOT NULL, updated INTEGER NOT NULL,
                 seal BLOB NOT NULL) STRICT;
             CREATE TABLE IF NOT EXISTS event (
                 id TEXT NOT NULL, at INTEGER NOT NULL, state TEXT NOT NULL,
                 detail TEXT NOT NULL) STRICT;",
        )?;
        Ok(database)
    }

    /// Where files of this move may be kept; not made.
    pub fn move_directory(&self, id: &MoveId) -> PathBuf {
        self.directory.join("moves").join(id.as_str())
    }

    /// Takes the right to work on the user whose top mailbox is `name`.
    ///
    /// Errors: [`JournalError::Held`] names who has it.
    pub fn hold(&self, name: &[u8], holder: &str) -> Result<Hold, JournalError> {
        make_directory(&self.directory.join("locks"))?;
        let path = self.lock_path(name);
        let io = |verb| {
            let path = path.clone();
            move |source| JournalError::Io { verb, path, source }
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(io("open"))?;
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut text = String::new();
            let _ = file.take(1000).read_to_string(&mut text);
            let holder = crate::wire::printable(text.lines().next().unwrap_or_default());
            return Err(JournalError::Held { holder });
        }
        // Inherited by every program that is started: a move is held until the
        // last of them is dead, even if the agent is killed before.
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())
            .map_err(|e| io("keep")(e.into()))?;
        file.set_len(0).and_then(|()| file.rewind()).map_err(io("write"))?;
        file.write_all(holder.as_bytes()).map_err(io("write"))?;
        Ok(Hold { _file: file })
    }

    /// Takes the right to work on a user for the move `id`. Whoever else has it
    /// for the same move works for a coordinator that is gone, and does not know
    /// yet: the network has not told him. He is ended.
    ///
    /// Errors: as of [`Journal::hold`], for another move.
    pub fn hold_for(&self, name: &[u8], holder: &str, id: &MoveId) -> Result<Hold, JournalError> {
        let me = std::process::id();
        let text = format!("{holder}\n{me} {}\n", id.as_str());
        let began = Instant::now();
        loop {
            let held = self.hold(name, &text);
            let orphan = match &held {
                Err(JournalError::Held { .. }) if began.elapsed() < ORPHAN_ENDS => {
                    self.orphan(name, id)
                }
                _ => return held,
            };
            match orphan {
                Some(process) => {
                    // One that is stopped does not even hear that it should end.
                    let signal = match began.elapsed() < ORPHAN_HEARS {
                        true => rustix::process::Signal::TERM,
                        false => rustix::process::Signal::KILL,
                    };
                    let _ = rustix::process::kill_process(process, signal);
                    std::thread::sleep(Duration::from_millis(20));
                }
                None => return held,
            }
        }
    }

    /// The agent that holds a user for this very move.
    fn orphan(&self, name: &[u8], id: &MoveId) -> Option<rustix::process::Pid> {
        let text = std::fs::read_to_string(self.lock_path(name)).ok()?;
        let (pid, of) = text.lines().nth(1)?.split_once(' ')?;
        let pid: i32 = pid.parse().ok().filter(|_| of == id.as_str())?;
        // A number may belong to somebody else by now.
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let agent = command.split(|byte| *byte == 0).any(|word| word == b"agent");
        rustix::process::Pid::from_raw(pid).filter(|_| agent)
    }

    fn lock_path(&self, name: &[u8]) -> PathBuf {
        self.directory.join("locks").join(format!("{}.lock", blake3::hash(name).to_hex()))
    }

    /// Writes a new move, or the new state of a known one; durable on return.
    pub fn write(&self, entry: &Entry) -> Result<(), JournalError> {
        fault::check(Point::JournalWrite).map_err(|source| JournalError::Io {
            verb: "write",
            path: self.path(),
            source,
        })?;
        let write = || -> rusqlite::Result<()> {
            let transaction = self.database.unchecked_transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO move VALUES (?1,?2,?3,?4,?5,?6,?7,?8,?9,?10)",
                params![
                    entry.id.as_str(),
                    i32::from(entry.role),
                    entry.name,
                    entry.display,
                    entry.peer,
                    entry.state,
                    entry.detail,
                    entry.started,
                    entry.updated,
                    entry.seal().as_slice(),
                ],
            )?;
            transaction.execute(
                "INSERT INTO event VALUES (?1,?2,?3,?4)",
                params![entry.id.as_str(), entry.updated, entry.state, entry.detail],
            )?;
            transaction.commit()
        };
        write().map_err(|source| self.error(source))
    }

    /// The newest move in which this server has this part, of the user whose top
    /// mailbox is `name`, that is not over.
    pub fn unfinished(&self, name: &[u8], role: v1::Role) -> Result<Option<Entry>, JournalError> {
        let open = |e: &Entry| e.role == role && !state::is_over(&e.state);
        Ok(self.of(name)?.into_iter().rfind(open))
    }

    /// One move.
    pub fn find(&self, id: &MoveId) -> Result<Option<Entry>, JournalError> {
        let row = self
            .database
            .query_row("SELECT * FROM move WHERE id = ?1", params![id.as_str()], |row| {
                Ok(Self::read(row))
            })
            .optional()
            .map_err(|source| self.error(source))?;
        row.map(|entry| self.sealed(entry)).transpose()
    }

    /// The moves of the user whose top mailbox is `name`, oldest first. A damaged
    /// record of another user does not matter.
    pub fn of(&self, name: &[u8]) -> Result<Vec<Entry>, JournalError> {
        let rows = self.rows("SELECT * FROM move WHERE name = ?1 ORDER BY started, id", [name])?;
        rows.into_iter().map(|entry| self.sealed(entry)).collect()
    }

    /// All moves, oldest first, and what is wrong with the records that are damaged.
    pub fn moves(&self) -> Result<(Vec<Entry>, Vec<JournalError>), JournalError> {
        let (mut moves, mut damaged) = (Vec::new(), Vec::new());
        for row in self.rows("SELECT * FROM move ORDER BY started, id", [])? {
            match self.sealed(row) {
                Ok(entry) => moves.push(entry),
                Err(error) => damaged.push(error),
            }
        }
        Ok((moves, damaged))
    }

    fn rows(
        &self,
        query: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<RawRow>, JournalError> {
        let read = || -> rusqlite::Result<Vec<_>> {
            let mut query = self.database.prepare(query)?;
            query.query_map(parameters, |row| Ok(Self::read(row)))?.collect()
        };
        read().map_err(|source| self.error(source))
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<(Entry, Vec<u8>)> {
        let id: String = row.get(0)?;
        let bad = |e: super::id::NotAnId| {
            rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e))
        };
        let entry = Entry {
            id: id.parse().map_err(bad)?,
            role: v1::Role::try_from(row.get::<_, i32>(1)?).unwrap_or_default(),
            name: row.get(2)?,
            display: row.get(3)?,
            peer: row.get(4)?,
            state: row.get(5)?,
            detail: row.get(6)?,
            started: row.get(7)?,
            updated: row.get(8)?,
        };
        Ok((entry, row.get(9)?))
    }

    fn sealed(&self, row: RawRow) -> Result<Entry, JournalError> {
        let (entry, seal) = row.map_err(|source| self.error(source))?;
        if entry.seal().as_slice() == seal {
            Ok(entry)
        } else {
            Err(JournalError::Damaged { path: self.path(), id: entry.id.to_string() })
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join(FILE)
    }

    fn error(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Database { path: self.path(), source }
    }
}

impl From<Entry> for v1::MoveRecord {
    fn from(entry: Entry) -> Self {
        Self {
            mail_held: entry.mail_is_held(),
            move_id: entry.id.to_string(),
            role: entry.role.into(),
            identity: Some(v1::Identity {
                name: entry.name.into(),
                userid: String::new(),
                display: entry.display,
            }),
            state: entry.state,
            peer: entry.peer,
            started_unix_ms: entry.started,
            updated_unix_ms: entry.updated,
            holder: String::new(),
            // What resuming needs is nobody else's business.
            detail: if entry.detail == REPAIR { entry.detail } else { String::new() },
        }
    }
}

impl Entry {
    fn seal(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes()).update(bytes);
        };
        field(self.id.as_str().as_bytes());
        field(&i32::from(self.role).to_be_bytes());
        field(&self.name);
        field(self.display.as_bytes());
        field(self.peer.as_bytes());
        field(self.state.as_bytes());
        field(self.detail.as_bytes());
        field(&self.started.to_be_bytes());
        field(&self.updated.to_be_bytes());
        *hasher.finalize().as_bytes()
    }
}

/// Milliseconds since 1970, for the journal and for people; never for decisions.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as i64)
}

fn make_directory(path: &Path) -> Result<(), JournalError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| JournalError::Io {
        verb: "make",
        path: path.into(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: &str) -> Entry {
        Entry {
            id: "00112233aabbccdd".parse().unwrap(),
            role: v1::Role::Source,
            name: b"user.x".to_vec(),
            display: "user.x".into(),
            peer: "bw2".into(),
            state: state.into(),
            detail: String::new(),
            started: 1,
            updated: 2,
        }
    }

    #[test]
    fn a_state_is_there_again_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        Journal::open(dir.path()).unwrap().write(&entry(state::COPYING)).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(
            journal.unfinished(b"user.x", v1::Role::Source).unwrap(),
            Some(entry(state::COPYING))
        );
        assert_eq!(journal.unfinished(b"user.y", v1::Role::Source).unwrap(), None);
        journal.write(&entry(state::DONE)).unwrap();
        assert_eq!(journal.unfinished(b"user.x", v1::Role::Source).unwrap(), None);
        assert_eq!(journal.find(&entry("").id).unwrap(), Some(entry(state::DONE)));
    }

    #[test]
    fn a_changed_row_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&entry(state::PREPARED)).unwrap();
        journal.database.execute("UPDATE move SET state = 'planned'", []).unwrap();
        let other = Entry {
            id: "ffeeddccbbaa9988".parse().unwrap(),
            name: b"user.y".to_vec(),
            ..entry(state::ROUTED)
        };
        journal.write(&other).unwrap();
        let (whole, damaged) = journal.moves().unwrap();
        assert_eq!(whole, std::slice::from_ref(&other));
        assert!(matches!(damaged.as_slice(), [JournalError::Damaged { .. }]), "{damaged:?}");
        assert_eq!(journal.unfinished(b"user.y", v1::Role::Source).unwrap(), Some(other));
        assert!(matches!(
            journal.unfinished(b"user.x", v1::Role::Source),
            Err(JournalError::Damaged { .. })
        ));
    }

    /// A journal with two moves, as its files are while it is open: the database
    /// and, where its last writes are, the log.
    fn files(states: &[&str]) -> [(&'static str, Vec<u8>); 2] {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.write(&other()).unwrap();
        journal.write(&entry(state::PLANNED)).unwrap();
        journal.database.pragma_update(None, "wal_checkpoint", "TRUNCATE").unwrap();
        states.iter().for_each(|state| journal.write(&entry(state)).unwrap());
        ["journal.sqlite", "journal.sqlite-wal"]
            .map(|name| (name, std::fs::read(dir.path().join("mbcopy").join(name)).unwrap()))
    }

    fn other() -> Entry {
        let id = "ffeeddccbbaa9988".parse().unwrap();
        Entry { id, name: b"user.y".to_vec(), ..entry(state::ROUTED) }
    }

    /// What a journal of these files says of the first move; none: it refuses.
    fn said(files: &[(&str, &[u8])]) -> Option<Option<Entry>> {
        // In memory where that can be had: there are some ten thousand of them.
        let memory = Path::new("/dev/shm");
        let dir = match memory.is_dir() {
            true => tempfile::tempdir_in(memory).unwrap(),
            false => tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(dir.path().join("mbcopy")).unwrap();
        for (name, bytes) in files {
            std::fs::write(dir.path().join("mbcopy").join(name), bytes).unwrap();
        }
        let journal = Journal::open(dir.path()).ok()?;
        journal.unfinished(b"user.x", v1::Role::Source).ok()
    }

    /// Whatever a disk does to its files, a journal never says what was never
    /// written: it says what was, something older that was, nothing, or refuses.
    /// The older and the missing are what `moves::search` lets a disk forget.
    #[test]
    fn a_damaged_journal_never_says_what_was_not_written() {
        let written = [state::PLANNED, state::PUBLISHING, state::ROUTING];
        let [(database, main), (log, wal)] = files(&written[1..]);
        assert_eq!(said(&[(database, &main), (log, &wal)]), Some(Some(entry(state::ROUTING))));
        let (mut right, mut older, mut none, mut refused) = (0, 0, 0, 0);
        let mut look = |files: &[(&str, &[u8])], what: &dyn Fn() -> String| match said(files) {
            None => refused += 1,
            Some(None) => none += 1,
            Some(Some(found)) if found == entry(state::ROUTING) => right += 1,
            Some(Some(found)) => {
                assert!(written.iter().any(|s| found == entry(s)), "{}: {found:?}", what());
                older += 1;
            }
        };
        for at in 0..main.len() {
            let mut bad = main.clone();
            bad[at] ^= 1 << (at % 8);
            look(&[(database, &bad), (log, &wal)], &|| format!("database, byte {at} flipped"));
            look(&[(database, &bad)], &|| format!("database alone, byte {at} flipped"));
            look(&[(database, &main[..at])], &|| format!("database torn at {at}"));
        }
        for at in 0..wal.len() {
            let mut bad = wal.clone();
            bad[at] ^= 1 << (at % 8);
            look(&[(database, &main), (log, &bad)], &|| format!("log, byte {at} flipped"));
            look(&[(database, &main), (log, &wal[..at])], &|| format!("log torn at {at}"));
        }
        println!("{right} right, {older} older, {none} missing, {refused} refused");
        assert!(refused > 0 && older > 0 && right > 0);
    }

    #[test]
    fn one_user_is_held_once_and_the_other_is_told_by_whom() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        let hold = journal.hold(b"user.x", "process 77, push to bw2").unwrap();
        let error = journal.hold(b"user.x", "process 78").unwrap_err();
        assert!(error.to_string().contains("process 77, push to bw2"), "{error}");
        journal.hold(b"user.y", "process 78").unwrap();
        drop(hold);
        journal.hold(b"user.x", "process 78").unwrap();
    }
}
