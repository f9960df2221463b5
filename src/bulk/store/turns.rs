//! Whose turn it is, and what his attempt has come to.

use super::{Ended, Job, Result, Store};
use crate::bulk::state::{Outcome, Retries, State, Task, after};
use rusqlite::{OptionalExtension, TransactionBehavior, params};

impl Store {
    /// Users with whom something is to be done still.
    pub fn open_users(&self) -> Result<u64> {
        let query = "SELECT count(*) FROM user WHERE state IN ('waiting','running','unfinished')";
        self.try_to(|db| db.query_row(query, [], |row| row.get(0)))
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

    /// An attempt that was noted and never began. His last one may have stopped in
    /// between.
    pub fn not_begun(&self, job: &Job) -> Result<()> {
        self.try_to(|db| {
            let transaction = db.unchecked_transaction()?;
            transaction.execute("DELETE FROM attempt WHERE id = ?1", [job.attempt])?;
            transaction.execute(
                "UPDATE user SET state = iif(attempts > 1, 'unfinished', 'waiting'), \
                 attempts = max(attempts - 1, 0) WHERE id = ?1 AND state = 'running'",
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
}
