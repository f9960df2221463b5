//! What an admin decides: who is in a run, what is done with everybody, and with one.

use super::{Added, Mode, NOT_COPIED, Order, Result, Store};
use crate::bulk::resolve::Planned;
use crate::moves::journal::now_ms;
use rusqlite::params;

/// The reason of those whom the plan does not name any more.
const TAKEN_OUT: &str = "the plan does not name him any more";

impl Store {
    /// Puts users into the run who are not in it. Whoever is in it, is not named
    /// any more, and has not begun, is taken out, unless `keep`.
    pub fn add(&self, users: &[Planned], mode: Mode, keep: bool) -> Result<Added> {
        self.try_to(|db| {
            let transaction = db.unchecked_transaction()?;
            let now = now_ms();
            let (mut new, mut known) = (0, 0);
            {
                transaction.execute("UPDATE user SET planned = 0", [])?;
                let mut insert = transaction.prepare(
                    "INSERT INTO user VALUES (NULL,?1,?2,?3,?4,?5,0,?6,'waiting',0,?7,0,'',0,0,0,\
                     '','','','',?8,1) ON CONFLICT (mailbox) DO NOTHING",
                )?;
                // A size that is not known does not replace one that is.
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

    /// Puts users into an order.
    pub fn order(&self, order: Order) -> Result<()> {
        let rank = match order {
            Order::Smallest => "bytes",
            Order::Largest => "-bytes",
            Order::Listed => "id",
        };
        self.try_to(|db| db.execute(&format!("UPDATE user SET rank = {rank}"), []).map(drop))
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
}
