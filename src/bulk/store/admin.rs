//! What an admin decides: who is in a run, what is done with everybody, and with one.

use super::{Added, BACK, Mode, NOT_COPIED, NOT_FOUND, ONLY, Order, Result, Store, Value};
use crate::bulk::resolve::Planned;
use crate::bulk::state::State;
use crate::moves::journal::now_ms;

/// The reason of those whom the plan does not name any more.
const TAKEN_OUT: &str = "the plan does not name him any more";

/// The reason of those who were to be moved back.
const NOT_BACK: &str = "not moved back: the admin has taken him out of it";

impl Store {
    /// Puts users into the run who are not in it. Whoever is in it, is not named
    /// any more, and has not begun, is taken out, unless `keep`; of the servers only
    /// whose users we may take.
    ///
    /// Where several coordinators share a run, each finds some of the plan's users.
    /// Whom none has found yet is refused, and waits again as soon as one does.
    pub fn add(&self, users: &[Planned], mode: Mode, keep: bool) -> Result<Added> {
        self.transaction(|| {
            let now = now_ms();
            let mut added = Added::default();
            let sources = self.takeable()?;
            for source in &sources {
                let forget = "UPDATE users SET planned = 0 WHERE source = ?1";
                self.execute(forget, &[source.into()])?;
            }
            for user in users {
                self.add_one(user, mode, now, &mut added)?;
            }
            for source in sources.iter().filter(|_| !keep) {
                added.gone += self.execute(
                    "UPDATE users SET state = 'skipped', reason = ?1, updated = ?2 \
                     WHERE planned = 0 AND state = 'waiting' AND attempts = 0 AND copied = 0 \
                     AND task <> 'reverse' AND source = ?3",
                    &[TAKEN_OUT.into(), now.into(), source.into()],
                )?;
            }
            Ok(added)
        })
    }

    fn add_one(&self, user: &Planned, mode: Mode, now: i64, added: &mut Added) -> Result<()> {
        let lost = self.shared && !user.known;
        let source = if lost { "" } else { user.source.as_str() };
        let (state, reason) = if lost { (State::Refused, NOT_FOUND) } else { (State::Waiting, "") };
        let (mailboxes, messages, bytes) = user.size;
        let place = user.place();
        let values: [Value; 10] = [
            (&user.mailbox).into(),
            (&place).into(),
            mailboxes.into(),
            messages.into(),
            bytes.into(),
            mode.task().word().into(),
            user.not_before.into(),
            now.into(),
            source.into(),
            state.word().into(),
        ];
        let insert = "INSERT INTO users (mailbox, destination, mailboxes, messages, bytes, task, \
                      next_at, updated, source, state, rank, holder, attempts, copied, move_id, \
                      messages_sent, bytes_sent, freeze_ms, serving, reason, advice, detail, planned) \
                      VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, '', 0, 0, '', \
                      0, 0, 0.0, '', '', '', '', 1) ON CONFLICT (mailbox) DO NOTHING";
        if self.execute(insert, &values)? > 0 {
            added.new += 1;
            if lost {
                let why = "UPDATE users SET reason = ?2, \
                           advice = 'look at his name, and start a coordinator for his server' \
                           WHERE mailbox = ?1";
                self.execute(why, &[(&user.mailbox).into(), reason.into()])?;
            }
            return Ok(());
        }
        added.known += 1;
        if lost {
            let named = "UPDATE users SET planned = 1 WHERE mailbox = ?1";
            return self.execute(named, &[(&user.mailbox).into()]).map(drop);
        }
        // Found at last.
        let found = "UPDATE users SET source = ?2, state = 'waiting', reason = '', advice = '', \
                     attempts = 0, next_at = 0 WHERE mailbox = ?1 AND source = '' AND reason = ?3";
        let known = [(&user.mailbox).into(), source.into(), NOT_FOUND.into()];
        self.execute(found, &known)?;
        // A size that is not known does not replace one that is.
        let update = "UPDATE users SET planned = 1, \
             destination = CASE WHEN state = 'waiting' AND attempts = 0 THEN ?2 ELSE destination END, \
             next_at = CASE WHEN state = 'waiting' AND attempts = 0 THEN ?3 ELSE next_at END, \
             mailboxes = CASE WHEN ?4 > 0 THEN ?4 ELSE mailboxes END, \
             messages = CASE WHEN ?4 > 0 THEN ?5 ELSE messages END, \
             bytes = CASE WHEN ?4 > 0 THEN ?6 ELSE bytes END, \
             state = CASE WHEN state = 'skipped' AND reason = ?7 THEN 'waiting' ELSE state END \
             WHERE mailbox = ?1 AND (source = ?8 OR ?9 = 0)";
        let values = [
            (&user.mailbox).into(),
            (&place).into(),
            user.not_before.into(),
            mailboxes.into(),
            messages.into(),
            bytes.into(),
            TAKEN_OUT.into(),
            source.into(),
            user.known.into(),
        ];
        if self.execute(update, &values)? == 0 {
            added.elsewhere += 1;
        }
        Ok(())
    }

    /// Begins a pass, if none is under way that does the same; whether it did. Each
    /// server whose users we may take has passes of its own.
    ///
    /// One that copies is over when everybody is copied; then it copies again what
    /// has come since. Nobody is moved twice.
    pub fn begin(&self, mode: Mode) -> Result<bool> {
        let mut begun = false;
        for source in self.takeable()? {
            begun |= self.begin_at(&source, mode)?;
        }
        self.set_remark("mode", mode.word())?;
        Ok(begun)
    }

    fn begin_at(&self, source: &String, mode: Mode) -> Result<bool> {
        let key = format!("mode:{source}");
        let before = self.remark(&key)?.and_then(|word| Mode::from_word(&word));
        let open = "SELECT count(*) FROM users \
                    WHERE state IN ('waiting', 'running', 'unfinished') AND source = ?1";
        if before == Some(mode) && (mode != Mode::Copy || self.number(open, &[source.into()])? > 0)
        {
            return Ok(false);
        }
        self.transaction(|| {
            let now = now_ms();
            let reset = "UPDATE users SET state = 'waiting', attempts = 0, next_at = 0, reason = '', \
                         advice = '', updated = ?1 WHERE source = ?2 AND ";
            let at = [now.into(), source.into()];
            self.execute(&format!("{reset} state = 'copied'"), &at)?;
            let [now_, source_] = at.clone();
            let left_out = format!("{reset} state = 'refused' AND reason = ?3");
            self.execute(&left_out, &[now_, source_, NOT_COPIED.into()])?;
            if mode == Mode::Copy {
                self.execute(&format!("{reset} state IN ('failed', 'refused')"), &at)?;
            }
            self.execute(
                "UPDATE users SET task = ?1 \
                 WHERE state = 'waiting' AND task <> 'reverse' AND source = ?2",
                &[mode.task().word().into(), source.into()],
            )?;
            if mode == Mode::Cutover {
                self.execute(
                    "UPDATE users SET state = 'refused', reason = ?1, updated = ?2, \
                     advice = 'copy him first: the same command with --copy-only' \
                     WHERE state = 'waiting' AND copied = 0 AND task <> 'reverse' AND source = ?3",
                    &[NOT_COPIED.into(), now.into(), source.into()],
                )?;
            }
            self.set_remark(&key, mode.word())?;
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
        for source in self.takeable()? {
            let update = format!("UPDATE users SET rank = {rank} WHERE source = ?1");
            self.execute(&update, &[(&source).into()])?;
        }
        Ok(())
    }

    /// Takes a user out, if nothing of his move is under way; whether it did. Who was to be
    /// moved back stays where he is.
    pub fn skip(&self, mailbox: &str) -> Result<bool> {
        let stays = "UPDATE users SET task = 'move', reason = ?3, advice = '', updated = ?2, \
             state = CASE WHEN (SELECT a.outcome FROM attempt a WHERE a.of_user = users.id \
             AND a.task = 'move' AND a.outcome IN ('done', 'done-with-losses') \
             ORDER BY a.id DESC LIMIT 1) = 'done-with-losses' \
             THEN 'moved-with-losses' ELSE 'moved' END \
             WHERE mailbox = ?1 AND task = 'reverse' AND state IN ('waiting', 'refused', 'failed')";
        let out = "UPDATE users SET state = 'skipped', reason = ?3, advice = '', updated = ?2 \
                   WHERE mailbox = ?1 AND task <> 'reverse' \
                   AND state IN ('waiting', 'copied', 'refused', 'failed')";
        let values = |why: &str| -> [Value; 3] { [mailbox.into(), now_ms().into(), why.into()] };
        self.transaction(|| {
            let done = self.execute(stays, &values(NOT_BACK))?
                + self.execute(out, &values("taken out by the admin"))?;
            Ok(done > 0)
        })
    }

    /// Has those tried again who are in trouble, or one user, even one who was taken
    /// out or came back; how many.
    pub fn retry(&self, mailbox: Option<&str>) -> Result<u64> {
        // Whom nobody has found is found by a start, not by another try.
        let update = "UPDATE users SET \
             task = CASE WHEN state = 'stuck' OR task = 'reverse' \
             AND state IN ('failed', 'refused') THEN task \
             WHEN (SELECT value FROM run WHERE key = 'mode:' || source) = 'copy' THEN 'copy' \
             ELSE 'move' END, \
             state = CASE WHEN state = 'stuck' THEN 'unfinished' ELSE 'waiting' END, \
             attempts = 0, next_at = 0, reason = '', advice = '', updated = ?1 \
             WHERE reason <> ?2 AND ";
        let (now, lost) = (now_ms().into(), NOT_FOUND.into());
        match mailbox {
            None => {
                let which = "state IN ('failed', 'refused', 'stuck')";
                self.execute(&format!("{update} {which}"), &[now, lost])
            }
            Some(mailbox) => {
                let which = "mailbox = ?3 AND state IN \
                             ('failed', 'refused', 'stuck', 'reversed', 'skipped')";
                self.execute(&format!("{update} {which}"), &[now, lost, mailbox.into()])
            }
        }
    }

    /// Has everybody who was moved taken back, and nobody moved forward until the run is
    /// started or resumed; or one user; how many.
    pub fn reverse(&self, mailbox: Option<&str>) -> Result<u64> {
        let update = "UPDATE users SET state = 'waiting', task = 'reverse', attempts = 0, \
                      next_at = 0, reason = '', advice = '', updated = ?1 \
                      WHERE state IN ('moved', 'moved-with-losses')";
        match mailbox {
            None => self.transaction(|| {
                let back = self.execute(update, &[now_ms().into()])?;
                if back > 0 {
                    self.set_remark(ONLY, BACK)?;
                }
                Ok(back)
            }),
            Some(mailbox) => {
                let one = format!("{update} AND mailbox = ?2");
                self.execute(&one, &[now_ms().into(), mailbox.into()])
            }
        }
    }
}
