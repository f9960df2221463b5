//! Whose turn it is, and what his attempt has come to.

use super::{DONE_NOW, Ended, Job, Mode, Result, Row, Store, Value};
use crate::bulk::state::{Outcome, Retries, State, Task, after};

/// What is told of an attempt under way, in the order in which [`job`] reads it.
const JOB: &str = "a.id, a.of_user, u.mailbox, u.source, u.destination, a.task, a.pid, a.started, \
                   a.resumes FROM attempt a JOIN users u ON u.id = a.of_user \
                   WHERE a.ended IS NULL";

impl Store {
    /// Users with whom something is to be done still.
    pub fn open_users(&self) -> Result<u64> {
        let query = format!(
            "SELECT count(*) FROM users WHERE state IN ('waiting','running','unfinished') \
             AND (state = 'running' OR {DONE_NOW})"
        );
        Ok(self.number(&query, &[])?.unsigned_abs())
    }

    /// Whose turn it is: he is running from now on, and ours, durably.
    pub fn claim(&self, now: i64, unfinished_only: bool) -> Result<Option<Job>> {
        let state = if unfinished_only { State::Unfinished } else { State::Waiting };
        self.transaction(|| {
            for source in self.takeable()? {
                let query = format!(
                    "SELECT id, mailbox, destination, task FROM users \
                     WHERE state = ?1 AND next_at <= ?2 AND source = ?3 AND {DONE_NOW} \
                     ORDER BY rank, id LIMIT 1 {}",
                    self.database.for_us_alone()
                );
                let values = [state.word().into(), now.into(), (&source).into()];
                if let Some(next) = self.one(&query, &values)? {
                    return self.take(&next, source, state, now).map(Some);
                }
            }
            Ok(None)
        })
    }

    fn take(&self, next: &Row, source: String, state: State, now: i64) -> Result<Job> {
        let (user, task) = (next.integer(0), next.text(3));
        self.execute(
            "UPDATE users SET state = 'running', holder = ?3, attempts = attempts + 1, updated = ?2 \
             WHERE id = ?1",
            &[user.into(), now.into(), (&self.own).into()],
        )?;
        let resumes = state == State::Unfinished;
        let insert = "INSERT INTO attempt (of_user, holder, task, resumes, pid, started, outcome, \
                      messages_sent, bytes_sent, freeze_ms, total_ms, reason) \
                      VALUES (?1, ?2, ?3, ?5, 0, ?4, '', 0, 0, 0.0, 0.0, '') RETURNING id";
        let values = [user.into(), (&self.own).into(), (&task).into(), now.into(), resumes.into()];
        Ok(Job {
            attempt: self.number(insert, &values)?,
            user,
            mailbox: next.text(1),
            source,
            place: next.text(2),
            task: Task::from_word(&task).unwrap_or(Task::Move),
            pid: 0,
            started: now,
            resumes,
        })
    }

    /// Notes which process does it.
    pub fn begun(&self, attempt: i64, pid: i32) -> Result<()> {
        let update = "UPDATE attempt SET pid = ?2 WHERE id = ?1";
        self.execute(update, &[attempt.into(), i64::from(pid).into()]).map(drop)
    }

    /// Attempts of which no end is known, oldest first.
    pub fn under_way(&self) -> Result<Vec<Job>> {
        let query = format!("SELECT {JOB} ORDER BY a.id");
        Ok(self.all(&query, &[])?.iter().map(job).collect())
    }

    /// Those of this machine.
    pub fn under_way_here(&self) -> Result<Vec<Job>> {
        let query = format!("SELECT {JOB} AND a.holder = ?1 ORDER BY a.id");
        Ok(self.all(&query, &[(&self.own).into()])?.iter().map(job).collect())
    }

    /// An attempt has ended; what becomes of its user. None: he was taken over by
    /// another coordinator, and this attempt means nothing to him any more.
    pub fn ended(&self, job: &Job, ended: &Ended, retries: &Retries) -> Result<Option<State>> {
        self.transaction(|| {
            let query = "SELECT attempts FROM users \
                         WHERE id = ?1 AND state = 'running' AND holder = ?2";
            let Some(row) = self.one(query, &[job.user.into(), (&self.own).into()])? else {
                return Ok(None);
            };
            let attempts = row.count(0) as u32;
            let (end, pause) = after(job.task, ended.outcome, attempts, retries, job.resumes);
            // The pass that copied him was over before he was.
            let to_move = end == State::Copied && self.moves(&job.source)?;
            let (state, task) =
                if to_move { (State::Waiting, Task::Move) } else { (end, job.task) };
            let uncounted = match ended.outcome {
                _ if to_move => attempts,
                Outcome::Interrupted => 1,
                _ => 0,
            };
            let (mailboxes, messages, bytes) = ended.size;
            self.execute(
                "UPDATE attempt SET ended = ?2, outcome = ?3, messages_sent = ?4, bytes_sent = ?5, \
                 freeze_ms = ?6, total_ms = ?7, reason = ?8 WHERE id = ?1",
                &[
                    job.attempt.into(),
                    ended.at.into(),
                    ended.outcome.word().into(),
                    ended.sent.0.into(),
                    ended.sent.1.into(),
                    ended.freeze_ms.into(),
                    ended.total_ms.into(),
                    (&ended.text).into(),
                ],
            )?;
            let next_at = pause.map_or(0, |pause| ended.at + pause.as_millis() as i64);
            let values: [Value; 19] = [
                job.user.into(),
                state.word().into(),
                uncounted.into(),
                next_at.into(),
                (end == State::Copied).into(),
                ended.at.into(),
                (&ended.move_id).into(),
                mailboxes.into(),
                messages.into(),
                bytes.into(),
                ended.sent.0.into(),
                ended.sent.1.into(),
                ended.freeze_ms.into(),
                (&ended.serving).into(),
                (&ended.text).into(),
                (&ended.advice).into(),
                (&ended.detail).into(),
                (&self.own).into(),
                task.word().into(),
            ];
            let changed = self.execute(
                "UPDATE users SET state = ?2, attempts = attempts - ?3, next_at = ?4, holder = '', \
                 copied = CASE WHEN ?5 = 1 THEN ?6 ELSE copied END, \
                 move_id = CASE WHEN ?7 <> '' THEN ?7 ELSE move_id END, \
                 mailboxes = CASE WHEN ?8 > 0 THEN ?8 ELSE mailboxes END, \
                 messages = CASE WHEN ?8 > 0 THEN ?9 ELSE messages END, \
                 bytes = CASE WHEN ?8 > 0 THEN ?10 ELSE bytes END, \
                 messages_sent = messages_sent + ?11, bytes_sent = bytes_sent + ?12, \
                 freeze_ms = ?13, serving = CASE WHEN ?14 <> '' THEN ?14 ELSE serving END, \
                 reason = ?15, advice = ?16, detail = ?17, updated = ?6, task = ?19 \
                 WHERE id = ?1 AND state = 'running' AND holder = ?18",
                &values,
            )?;
            Ok((changed > 0).then_some(state))
        })
    }

    /// Whether the pass at hand moves the users of this server.
    fn moves(&self, source: &str) -> Result<bool> {
        let mode = self.remark(&format!("mode:{source}"))?;
        Ok(mode.is_some_and(|mode| mode != Mode::Copy.word()))
    }

    /// An attempt that was noted and never began: he is where the last one left him.
    pub fn not_begun(&self, job: &Job) -> Result<()> {
        self.transaction(|| {
            self.execute("DELETE FROM attempt WHERE id = ?1", &[job.attempt.into()])?;
            let state = if job.resumes { State::Unfinished } else { State::Waiting };
            self.execute(
                "UPDATE users SET state = ?3, \
                 attempts = CASE WHEN attempts > 0 THEN attempts - 1 ELSE 0 END, holder = '' \
                 WHERE id = ?1 AND state = 'running' AND holder = ?2",
                &[job.user.into(), (&self.own).into(), state.word().into()],
            )?;
            Ok(())
        })
    }

    /// When the next user of a state may begin, whom we may take: milliseconds since
    /// 1970.
    pub fn next_turn(&self, state: State) -> Result<Option<i64>> {
        let query = format!(
            "SELECT min(next_at) FROM users WHERE state = ?1 AND source = ?2 AND {DONE_NOW}"
        );
        let mut next: Option<i64> = None;
        for source in self.takeable()? {
            let row = self.one(&query, &[state.word().into(), (&source).into()])?;
            let at = row.and_then(|row| row.known_integer(0));
            next = next.into_iter().chain(at).min();
        }
        Ok(next)
    }
}

fn job(row: &Row) -> Job {
    Job {
        attempt: row.integer(0),
        user: row.integer(1),
        mailbox: row.text(2),
        source: row.text(3),
        place: row.text(4),
        task: Task::from_word(&row.text(5)).unwrap_or(Task::Move),
        pid: row.integer(6) as i32,
        started: row.integer(7),
        resumes: row.integer(8) > 0,
    }
}
