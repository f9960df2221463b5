//! The repairing agent: puts right on this server what a move by XFER has left. It
//! decides nothing: what is to be done, `mbcopy doctor` has found out from both servers,
//! and each request is refused where the records are not as it says.
//!
//! Whatever is taken away is put aside exactly as a move from here would retire it, and
//! is in the journal as such: `status`, `reverse`, `purge` and the next push find it.

mod aside;
mod messages;
pub mod restore;

use crate::agent::{self, Handler, Link};
use crate::cyrus::name::MailboxName;
use crate::host::Host;
use crate::host::imapd::Instance;
use crate::host::userlock::UserLock;
use crate::inspect::{Inspector, examine};
use crate::moves::journal::{Entry, Hold, REPAIR, now_ms, state};
use crate::moves::{Journal, MoveId};
use crate::murder;
use crate::source::freeze::Freeze;
use crate::source::journal_failure;
use crate::source::locks::Locks;
use crate::wire::v1::{self, failure::Kind, reply::Result as Answer, request::Op};
use std::time::Duration;

/// How long the user's lock is waited for: whoever has it works for moments.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The longest that a user is kept waiting.
const MAX_HELD: Duration = Duration::from_secs(120);

/// Puts things right.
pub struct Repairer {
    host: Host,
    inspector: Inspector,
    session: Option<Session>,
}

/// A repair of one user.
struct Session {
    top: MailboxName,
    entry: Entry,
    journal: Journal,
    _hold: Hold,
    freeze: Option<Freeze>,
    imapd: Option<Instance>,
}

impl Repairer {
    /// The agent of this server.
    pub fn new(host: Host) -> Self {
        Self { inspector: Inspector::new(host.clone()), host, session: None }
    }

    fn begin(&mut self, begin: &v1::BeginRepair) -> Result<v1::RepairBegun, v1::Failure> {
        self.session = None;
        let host = &self.host;
        let top = MailboxName::from_internal(&begin.name)
            .map_err(|e| agent::protocol(format!("the name of the mailbox: {e}")))?;
        let shown = host.external(&top);
        if !host.allows(&top) {
            return Err(refused(format!("this agent is not allowed to touch {shown}")));
        }
        if !examine::is_repairable(host) {
            return Err(refused(
                "a repair needs Cyrus 3.2 or later, in use: this server has something else".into(),
            ));
        }
        let id: MoveId = begin
            .move_id
            .parse()
            .map_err(|e: crate::moves::id::NotAnId| agent::protocol(e.to_string()))?;
        let directory = host.state_directory().map_err(|e| refused(e.to_string()))?;
        let journal = Journal::open(&directory).map_err(|e| journal_failure(&e))?;
        let holder = format!("process {}, a repair", std::process::id());
        let hold = journal.hold(top.as_bytes(), &holder).map_err(|e| journal_failure(&e))?;
        let entry = Entry {
            id,
            role: v1::Role::Source,
            name: top.as_bytes().to_vec(),
            display: shown,
            peer: crate::wire::printable(&begin.peer),
            state: String::new(),
            detail: REPAIR.into(),
            started: now_ms(),
            updated: now_ms(),
        };
        self.session =
            Some(Session { top, entry, journal, _hold: hold, freeze: None, imapd: None });
        Ok(v1::RepairBegun {})
    }
}

impl Handler for Repairer {
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure> {
        match hello.role() {
            v1::Role::Repair => Ok(self.host.welcome()),
            _ => Err(agent::protocol("this agent repairs; it moves nothing")),
        }
    }

    fn handle(&mut self, op: Op, link: &mut Link) -> Result<Answer, v1::Failure> {
        let op = match op {
            Op::Examine(_) | Op::ListStates(_) => {
                let session = self.session.as_ref();
                self.inspector.holds_user = session.is_some_and(|s| s.freeze.is_some());
                return self.inspector.handle(op, link);
            }
            Op::BeginRepair(begin) => return self.begin(&begin).map(Answer::RepairBegun),
            op => op,
        };
        let host = &self.host;
        let session = self
            .session
            .as_mut()
            .ok_or_else(|| agent::protocol("a step of a repair that was not begun"))?;
        match op {
            Op::Restore(wanted) => {
                session.restore(host, &wanted)?;
                Ok(Answer::RestoreDone(v1::RestoreDone {}))
            }
            Op::HoldUser(hold) => {
                session.hold(host, &hold)?;
                Ok(Answer::UserHeld(v1::UserHeld {}))
            }
            Op::ReadMessage(read) => session.read(host, &read, link).map(Answer::MessageRead),
            Op::MakeMailbox(make) => {
                session.make(host, &make)?;
                Ok(Answer::MailboxMade(v1::MailboxMade {}))
            }
            Op::AppendMessage(append) => {
                session.append(host, &append, link).map(Answer::MessageAppended)
            }
            Op::TakeRoute(_) => {
                // Nobody may make or delete a mailbox meanwhile.
                let _lock = session.lock(host)?;
                murder::take(host, &session.top).map(Answer::RouteTaken)
            }
            Op::ForgetListed(forget) => {
                let mailboxes = session.forget(host, &forget.names)?;
                Ok(Answer::ListedForgotten(v1::ListedForgotten { mailboxes }))
            }
            Op::PutAside(aside) => session.put_aside(host, &aside).map(Answer::PutAsideDone),
            Op::EndRepair(end) => {
                session.end()?;
                if end.leave {
                    self.session = None;
                }
                Ok(Answer::RepairEnded(v1::RepairEnded {}))
            }
            _ => Err(agent::unknown_request()),
        }
    }
}

impl Session {
    /// Keeps everybody waiting who wants the user here.
    fn hold(&mut self, host: &Host, hold: &v1::HoldUser) -> Result<(), v1::Failure> {
        self.freeze = None;
        let limit = Duration::from_millis(u64::from(hold.limit_ms)).min(MAX_HELD);
        let lock = self.lock(host)?;
        let freeze = Freeze::hold(lock, limit).map_err(|e| unchanged(e.to_string()))?;
        self.freeze = Some(freeze);
        Ok(())
    }

    /// Has a Murder's list forget mailboxes of the user that it has on this server.
    fn forget(&self, host: &Host, names: &[bytes::Bytes]) -> Result<u32, v1::Failure> {
        let kept = host.config.deletedprefix();
        for name in names {
            let name = MailboxName::from_internal(name);
            let name = name.map_err(|e| agent::protocol(e.to_string()))?;
            let name = name.deleted_original(&kept).map_or(name, |(original, _)| original);
            if name != self.top && !name.is_below(&self.top) {
                return Err(agent::protocol("a mailbox of somebody else"));
            }
        }
        let names: Vec<&[u8]> = names.iter().map(|name| &name[..]).collect();
        let forgotten = murder::forget(host, &names).map_err(unchanged)?;
        Ok(forgotten as u32)
    }

    /// The user's lock, or those of each mailbox of a shared tree.
    fn lock(&self, host: &Host) -> Result<UserLock, v1::Failure> {
        let found = examine::find(host, &self.top, &[]).map_err(unchanged)?;
        let listing = examine::listing(host, &self.top, found.iter());
        let locks = Locks::of(host, &listing).and_then(|locks| locks.take(host, LOCK_WAIT));
        locks.map_err(|e| unchanged(e.to_string()))
    }

    /// The repair that is not over.
    fn unfinished(&self) -> Result<Option<Entry>, v1::Failure> {
        let found = self.journal.unfinished(self.top.as_bytes(), v1::Role::Source);
        let found = found.map_err(|e| journal_failure(&e))?;
        Ok(found.filter(|entry| entry.detail == REPAIR))
    }

    /// Ends what has made records live again here.
    fn end(&mut self) -> Result<(), v1::Failure> {
        while let Some(before) = self.unfinished()? {
            if before.state != state::PLANNED {
                return Err(agent::protocol("what is put aside is not yet put aside completely"));
            }
            self.entry = before;
            self.record(state::ABORTED)?;
        }
        Ok(())
    }

    fn record(&mut self, state: &str) -> Result<(), v1::Failure> {
        self.entry.state = state.into();
        self.entry.updated = now_ms();
        self.journal.write(&self.entry).map_err(|e| journal_failure(&e))
    }
}

fn refused(text: String) -> v1::Failure {
    v1::Failure::new(Kind::Refused, text, "nothing was changed", "look at it with mbcopy doctor")
}

/// A step that failed before it changed anything.
fn unchanged(text: String) -> v1::Failure {
    v1::Failure::new(
        Kind::Internal,
        text,
        "nothing was changed by this step",
        "mend the cause and repair again",
    )
}
