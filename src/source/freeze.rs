//! Freezing a user: Cyrus's own kernel lock, with a limit that this process
//! keeps by itself, whatever becomes of its coordinator.

use super::locks::Locks;
use crate::cyrus::name::MailboxName;
use crate::host::Host;
use crate::host::imapd::Instance;
use crate::host::userlock::{LockError, UserLock, hand_down};
use crate::host::waiters;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a user's lock is waited for to prove it; a user who works holds it
/// for moments.
const PROOF_WAIT: Duration = Duration::from_secs(5);

/// How long Cyrus's program may take to reach the lock.
const PROOF_LIMIT: Duration = Duration::from_secs(5);

/// A freeze that is held, until its limit or until it is let go.
#[derive(Debug)]
pub struct Freeze {
    shared: Arc<Shared>,
    limit: Duration,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    locks: Option<Held>,
    /// When the locks are let go of.
    end: Instant,
    /// A step that must not be thawed half way is under way.
    pinned: bool,
    by_limit: bool,
}

/// The locks that make a freeze.
#[derive(Debug)]
struct Held {
    user: UserLock,
    /// The user's own databases, which his lock does not protect.
    files: Vec<File>,
}

/// What a freeze was.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// How long it lasted.
    pub lasted: Duration,
    /// Whether the limit ended it.
    pub by_limit: bool,
}

impl Freeze {
    /// Freezes by locks: nobody reads or writes the mailboxes until the returned
    /// value is dropped, thawed, or `limit` is over.
    pub fn hold(user: UserLock, limit: Duration) -> Result<Self, LockError> {
        let since = user.since();
        let locks = Some(Held { user, files: Vec::new() });
        let state = State { locks, end: since + limit, pinned: false, by_limit: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let watched = Arc::clone(&shared);
        let watch =
            std::thread::Builder::new().name("freeze-limit".into()).spawn(move || watched.watch());
        match watch {
            Ok(_) => Ok(Self { shared, limit, since }),
            // Without a watch there is no freeze: dropping lets go.
            Err(source) => Err(LockError::Io { path: PathBuf::from("a thread"), source }),
        }
    }

    /// Whether it still holds.
    pub fn holds(&self) -> bool {
        self.shared.state().locks.is_some()
    }

    /// Keeps further files locked as long as it lasts.
    pub fn also(&self, files: Vec<File>) {
        if let Some(locks) = &mut self.shared.state().locks {
            locks.files.extend(files);
        }
    }

    /// Makes sure that it lasts for some time from now on; `false` when the
    /// limit has ended it already.
    pub fn extend(&self, time: Duration) -> bool {
        let mut state = self.shared.state();
        state.end = state.end.max(Instant::now() + time);
        state.locks.is_some()
    }

    /// Keeps the limit from ending it while `step` is done, which must not stop half way;
    /// `None` when the limit has ended it already. A program that `step` has started holds
    /// it to its own end, even if this process is killed before.
    pub fn pinned<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        let pin = |on: bool| {
            let mut state = self.shared.state();
            state.pinned = on && state.locks.is_some();
            if let Some(locks) = &state.locks {
                hand_down(locks.user.files().iter().chain(&locks.files), on);
            }
            state.pinned
        };
        let done = pin(true).then(step);
        pin(false);
        self.shared.changed.notify_all();
        done
    }

    /// Lets go.
    pub fn thaw(self) -> Ended {
        let mut state = self.shared.state();
        state.locks = None;
        let by_limit = state.by_limit;
        drop(state);
        let lasted = self.since.elapsed();
        Ended { lasted: if by_limit { lasted.min(self.limit) } else { lasted }, by_limit }
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        self.shared.state().locks = None;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the limit or until the freeze is over, and lets go then.
    fn watch(&self) {
        let mut state = self.state();
        while state.locks.is_some() {
            let left = match state.end.saturating_duration_since(Instant::now()) {
                Duration::ZERO if !state.pinned => {
                    state.locks = None;
                    state.by_limit = true;
                    return;
                }
                // Looked at again when the step that pins it has ended.
                Duration::ZERO => Duration::from_millis(50),
                left => left,
            };
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// How a lock was proven.
#[derive(Debug)]
pub struct Proof {
    /// The lock.
    pub lock: PathBuf,
    /// How long the user was frozen for it.
    pub frozen: Duration,
}

/// Why a lock is not to be relied upon.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// It was not had.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Nobody waits for it.
    #[error(
        "the freeze lock {} does not make this server's own Cyrus wait: {who} while the lock was \
         held", lock.display()
    )]
    StopsNobody {
        /// The lock.
        lock: PathBuf,
        /// Who did what.
        who: &'static str,
    },
    /// It cannot be told.
    #[error("whether the freeze lock {} stops this server's own Cyrus cannot be told: {reason}", lock.display())]
    Undecided {
        /// The lock.
        lock: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Shows that this server's own Cyrus waits for the locks that freeze `top`: holds
/// them for a moment, and has `mbexamine` open the mailbox. Where that waits for the
/// mailbox's index, imapd must wait for the user's lock, too; what it needs to run is
/// kept in `scratch`.
pub fn prove(
    host: &Host,
    top: &MailboxName,
    locks: &Locks,
    scratch: &Path,
) -> Result<Proof, ProofError> {
    let (held, paths) = locks.take_top(host, PROOF_WAIT)?;
    let began = Instant::now();
    let lock = paths.first().cloned().unwrap_or_default();
    let undecided = |reason: String| ProofError::Undecided { lock: lock.clone(), reason };
    // A name that it does not know is no error of its: it would wait for nothing.
    let name = host.external(top);
    let child = host.tools.start(&host.conf, "mbexamine", &["-u", "1", name.as_str()]);
    let mut child = child.map_err(|e| undecided(e.to_string()))?;
    let waits = wait_for_waiter("mbexamine", &mut child, &paths, began);
    let mut frozen = began.elapsed();
    drop(held);
    let _ = child.kill();
    let _ = child.wait();
    if !waits.map_err(undecided)? {
        return Err(ProofError::StopsNobody { lock, who: "mbexamine read the mailbox" });
    }
    if let Locks::Indexes { user, .. } = locks {
        frozen += prove_user_lock(host, top, user, scratch)?;
    }
    Ok(Proof { lock, frozen })
}

/// Shows that imapd waits for the user's lock when a client wants a mailbox to be made:
/// one that is there, so that nothing happens if it does not.
fn prove_user_lock(
    host: &Host,
    top: &MailboxName,
    lock: &Path,
    scratch: &Path,
) -> Result<Duration, ProofError> {
    let undecided = |reason: String| ProofError::Undecided { lock: lock.into(), reason };
    let admin = host.config.admins().into_iter().next().unwrap_or_else(|| "cyrus".into());
    let client = Instance::start(host, scratch, &admin);
    let mut client = client.map_err(|e| undecided(e.to_string()))?;
    let paths = [lock.to_owned()];
    let held = UserLock::take(&paths, PROOF_WAIT)?;
    let began = Instant::now();
    let asked = client.imap.begin("CREATE", &[host.external(top).as_bytes()]);
    let waits = asked
        .map_err(|e| e.to_string())
        .and_then(|()| wait_for_waiter("imapd", client.process(), &paths, began));
    // Before it can go on.
    client.kill();
    let frozen = began.elapsed();
    drop(held);
    match waits.map_err(undecided)? {
        true => Ok(frozen),
        false => Err(ProofError::StopsNobody { lock: lock.into(), who: "imapd made a mailbox" }),
    }
}

/// Whether the child waits for one of our locks before it ends.
fn wait_for_waiter(
    program: &str,
    child: &mut Child,
    paths: &[PathBuf],
    began: Instant,
) -> Result<bool, String> {
    loop {
        let waiters = waiters::of(paths).map_err(|e| e.to_string())?;
        if waiters.contains(&child.id().cast_signed()) {
            return Ok(true);
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return match status.success() {
                true => Ok(false),
                false => Err(format!("{program} ended with {status}")),
            };
        }
        if began.elapsed() > PROOF_LIMIT {
            return Err(format!("{program} neither waited nor ended"));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
