//! What the store tells; whatever may be long is told one by one.

use super::{Count, NOT_FOUND, Result, Row, Store, User, Value};
use crate::bulk::state::{State, Task};

/// What is told of a user, in the order in which [`user`] reads it.
const USER: &str = "mailbox, source, destination, task, state, attempts, next_at, move_id, \
                    mailboxes, messages, bytes, messages_sent, bytes_sent, freeze_ms, serving, \
                    reason, advice, updated, detail";

impl Store {
    /// Users in trouble; whom no coordinator has found yet is none's failure.
    pub fn troubled(&self) -> Result<u64> {
        let query = "SELECT count(*) FROM users \
                     WHERE state IN ('refused','failed','stuck') AND reason <> ?1";
        Ok(self.number(query, &[NOT_FOUND.into()])?.unsigned_abs())
    }

    /// Users, messages and bytes of each state that somebody is in.
    pub fn counts(&self) -> Result<Vec<Count>> {
        self.count("", &[])
    }

    /// The same of the servers whose users we take, and of those whom nobody has found.
    pub fn counts_of_ours(&self) -> Result<Vec<Count>> {
        let ours = "WHERE source = '' OR source IN \
                    (SELECT source FROM serves WHERE coordinator = ?1)";
        self.count(ours, &[(&self.own).into()])
    }

    fn count(&self, which: &str, values: &[Value]) -> Result<Vec<Count>> {
        let query = format!(
            "SELECT state, count(*), CAST(sum(messages) AS BIGINT), CAST(sum(bytes) AS BIGINT) \
             FROM users {which} GROUP BY state"
        );
        let count = |row: Row| Count {
            state: state(&row.text(0)),
            users: row.count(1),
            messages: row.count(2),
            bytes: row.count(3),
        };
        let mut counts: Vec<Count> = self.all(&query, values)?.into_iter().map(count).collect();
        counts.sort_by_key(|count| count.state);
        Ok(counts)
    }

    /// The state of one user.
    pub fn state_of(&self, mailbox: &str) -> Result<Option<State>> {
        let query = "SELECT state FROM users WHERE mailbox = ?1";
        Ok(self.one(query, &[mailbox.into()])?.map(|row| state(&row.text(0))))
    }

    /// Tells every user, those in trouble first, and keeps none.
    pub fn each_user(&self, mut tell: impl FnMut(User)) -> Result<()> {
        let query = format!(
            "SELECT {USER} FROM users ORDER BY state NOT IN ('stuck','failed','refused'), \
             state NOT IN ('running','unfinished'), id"
        );
        let told = self.database.each(&query, &mut |row| tell(user(&row)));
        told.map_err(|e| self.error(e))
    }

    /// The last users who got into trouble, the newest first.
    pub fn last_troubles(&self, most: u32) -> Result<Vec<User>> {
        let query = format!(
            "SELECT {USER} FROM users WHERE reason <> '' AND state <> 'skipped' \
             ORDER BY updated DESC LIMIT ?1"
        );
        Ok(self.all(&query, &[most.into()])?.iter().map(user).collect())
    }

    /// Tells when each ended attempt began and ended (milliseconds since 1970), what
    /// it sent, and how long its user was frozen, in order of their ends.
    pub fn each_attempt(&self, mut tell: impl FnMut(i64, i64, u64, f64)) -> Result<()> {
        let query = "SELECT started, ended, bytes_sent, freeze_ms FROM attempt \
                     WHERE ended IS NOT NULL ORDER BY ended";
        let told = self.database.each(query, &mut |row| {
            tell(row.integer(0), row.integer(1), row.count(2), row.real(3));
        });
        told.map_err(|e| self.error(e))
    }

    /// Users that ended well since then (milliseconds since 1970), and their bytes;
    /// and when the first of them began.
    pub fn done_since(&self, since: i64) -> Result<(u64, u64, Option<i64>)> {
        let query = "SELECT count(*), CAST(coalesce(sum(u.bytes), 0) AS BIGINT), min(a.started) \
                     FROM attempt a JOIN users u ON u.id = a.of_user \
                     WHERE a.ended >= ?1 AND a.outcome IN ('done', 'done-with-losses')";
        let row = self.one(query, &[since.into()])?;
        Ok(row.map_or((0, 0, None), |row| (row.count(0), row.count(1), row.known_integer(2))))
    }
}

/// A state that this version does not know is one that nobody touches.
fn state(word: &str) -> State {
    State::from_word(word).unwrap_or(State::Stuck)
}

fn user(row: &Row) -> User {
    User {
        mailbox: row.text(0),
        source: row.text(1),
        destination: row.text(2),
        task: Task::from_word(&row.text(3)).unwrap_or(Task::Move),
        state: state(&row.text(4)),
        attempts: row.count(5) as u32,
        next_unix_ms: row.integer(6),
        move_id: row.text(7),
        mailboxes: row.count(8),
        messages: row.count(9),
        bytes: row.count(10),
        messages_sent: row.count(11),
        bytes_sent: row.count(12),
        freeze_ms: row.real(13),
        serving: row.text(14),
        reason: row.text(15),
        advice: row.text(16),
        updated_unix_ms: row.integer(17),
        detail: row.text(18),
    }
}
