//! What the store tells; whatever may be long is told one by one.

use super::{Count, Result, Store, User};
use crate::bulk::state::{State, Task};
use rusqlite::{OptionalExtension, Row};

impl Store {
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
