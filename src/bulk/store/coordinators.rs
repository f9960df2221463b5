//! Who works on a run, and on whose users.
//!
//! On one machine one process coordinates a run, by a file's lock. Where several
//! machines share a run, each says again and again that it lives; one that has not
//! said so for as long as its lease lasts has lost its users, and they are taken over
//! by whoever can reach their server, its own next start included. It may live all
//! the same: so nothing that it says of such a user later is heard, and its moves
//! hold each user by a lock on his server that no other gets past.

use super::postgres::Repeat;
use super::{DONE_NOW, Result, Store, StoreError};
use crate::moves::journal::now_ms;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::time::{Duration, Instant};

/// The right to start moves of a run on this machine; a kernel lock that ends with
/// the process, and what keeps the lease.
#[derive(Debug)]
pub struct Coordinator {
    _file: File,
    _lease: Repeat,
}

/// A server whose users a coordinator takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Its name.
    pub source: String,
    /// Whether the coordinator is at home on it; users of others are only taken while
    /// no coordinator that is at home there lives.
    pub home: bool,
}

/// How many times within a lease is said that we live.
const SAID_WITHIN_LEASE: u32 = 4;

/// How long a coordinator waits for those who only look whether there is one: they hold
/// its lock for a moment.
const A_LOOK: Duration = Duration::from_millis(200);

/// Why a user is taken up again.
const GONE: &str = "the coordinator that had him is gone";

impl Store {
    /// Takes the right to start this run's moves from here, of one who has all users
    /// that are of no named server.
    pub fn coordinate(&self) -> Result<Coordinator> {
        let all = Served { source: String::new(), home: true };
        self.coordinate_for(&[all], Duration::from_secs(30))
    }

    /// Takes the right to start moves of the users of these servers from here. `lease`:
    /// how long we are believed to live without another word.
    ///
    /// Errors: [`StoreError::Held`] names who has it.
    pub fn coordinate_for(&self, served: &[Served], lease: Duration) -> Result<Coordinator> {
        let file = self.lock()?;
        self.transaction(|| {
            self.execute("DELETE FROM serves WHERE coordinator = ?1", &[(&self.own).into()])?;
            for one in served {
                let values = [(&self.own).into(), (&one.source).into(), one.home.into()];
                self.execute("INSERT INTO serves VALUES (?1, ?2, ?3)", &values)?;
            }
            Ok(())
        })?;
        let live = format!(
            "INSERT INTO coordinator VALUES (?1, {} + ?2) \
             ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until",
            self.database.now()
        );
        let values = [(&self.own).into(), (lease.as_millis() as i64).into()];
        let every = lease / SAID_WITHIN_LEASE;
        let lease = self.database.keep_saying(&live, &values, every).map_err(|e| self.error(e))?;
        Ok(Coordinator { _file: file, _lease: lease })
    }

    /// Gives the lease back: others need not wait for its end.
    pub fn leave(&self, right: Coordinator) -> Result<()> {
        drop(right);
        self.execute("UPDATE coordinator SET alive_until = 0 WHERE id = ?1", &[(&self.own).into()])
            .map(drop)
    }

    fn lock(&self) -> Result<File> {
        let path = self.directory.join("lock");
        let io = |verb| {
            let path = path.clone();
            move |source| StoreError::Io { verb, path, source }
        };
        let options =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(&path).map_err(io("open"))?;
        let began = Instant::now();
        let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        while rustix::fs::flock(&file, exclusive).is_err() {
            if began.elapsed() < A_LOOK {
                std::thread::sleep(A_LOOK / 20);
                continue;
            }
            let mut holder = String::new();
            let _ = file.take(200).read_to_string(&mut holder);
            let holder = crate::wire::printable(holder.trim());
            return Err(StoreError::Held { name: self.name.clone(), holder });
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(io("write"))?;
        write!(file, "process {}", std::process::id()).map_err(io("write"))?;
        Ok(file)
    }

    /// Whether a coordinator is at work on this machine.
    pub fn is_coordinated_here(&self) -> bool {
        let Ok(file) = File::open(self.directory.join("lock")) else { return false };
        let shared = rustix::fs::FlockOperation::NonBlockingLockShared;
        rustix::fs::flock(&file, shared).is_err()
    }

    /// Whether a coordinator is at work, wherever.
    pub fn is_coordinated(&self) -> Result<bool> {
        if !self.shared {
            return Ok(self.is_coordinated_here());
        }
        let now = self.database.now();
        let query = format!("SELECT count(*) FROM coordinator WHERE alive_until > {now}");
        Ok(self.number(&query, &[])? > 0)
    }

    /// Whether another one than this machine is at work.
    pub fn is_coordinated_elsewhere(&self) -> Result<bool> {
        if !self.shared {
            return Ok(false);
        }
        let now = self.database.now();
        let query =
            format!("SELECT count(*) FROM coordinator WHERE alive_until > {now} AND id <> ?1");
        Ok(self.number(&query, &[(&self.own).into()])? > 0)
    }

    /// The servers whose users may be taken now, those first of whose users the fewest
    /// are in our hands.
    pub(super) fn takeable(&self) -> Result<Vec<String>> {
        let query = format!(
            "SELECT s.source FROM serves s WHERE s.coordinator = ?1 AND (s.home = 1 OR NOT EXISTS \
             (SELECT 1 FROM serves h JOIN coordinator c ON c.id = h.coordinator \
              WHERE h.source = s.source AND h.home = 1 AND c.id <> ?1 AND c.alive_until > {})) \
             ORDER BY (SELECT count(*) FROM users u WHERE u.state = 'running' \
                       AND u.source = s.source AND u.holder = ?1), s.source",
            self.database.now()
        );
        let rows = self.all(&query, &[(&self.own).into()])?;
        Ok(rows.into_iter().map(|row| row.text(0)).collect())
    }

    /// Whether users of servers that we serve are left to others as yet.
    pub fn waits_for_others(&self) -> Result<bool> {
        if !self.shared {
            return Ok(false);
        }
        let query = format!(
            "SELECT count(*) FROM users u JOIN serves s ON s.source = u.source \
             WHERE s.coordinator = ?1 AND {DONE_NOW} AND (u.state IN ('waiting', 'unfinished') \
             OR u.state = 'running' AND u.holder <> ?1)"
        );
        Ok(self.number(&query, &[(&self.own).into()])? > 0)
    }

    /// Takes users over whose coordinators are gone; how many.
    pub fn take_over(&self) -> Result<u64> {
        if !self.shared {
            return Ok(0);
        }
        let gone = format!(
            "NOT EXISTS (SELECT 1 FROM coordinator c WHERE c.id = holder AND c.alive_until > {})",
            self.database.now()
        );
        let (now, own) = (now_ms(), &self.own);
        self.transaction(|| {
            let mut taken = 0;
            for source in self.takeable()? {
                let ends = format!(
                    "UPDATE attempt SET ended = ?1, outcome = 'died', reason = ?2 \
                     WHERE ended IS NULL AND holder <> ?3 AND {gone} AND of_user IN \
                     (SELECT id FROM users WHERE state = 'running' AND source = ?4)"
                );
                let values = [now.into(), GONE.into(), own.into(), (&source).into()];
                self.execute(&ends, &values)?;
                let takes = format!(
                    "UPDATE users SET state = 'unfinished', holder = '', next_at = 0, reason = ?2, \
                     advice = '', updated = ?1, \
                     attempts = CASE WHEN attempts > 0 THEN attempts - 1 ELSE 0 END \
                     WHERE state = 'running' AND source = ?4 AND holder <> ?3 AND {gone}"
                );
                taken += self.execute(&takes, &values)?;
            }
            Ok(taken)
        })
    }
}
