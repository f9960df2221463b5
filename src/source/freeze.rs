//! Freezing a user: Cyrus's own kernel lock, with a limit that this process
//! keeps by itself, whatever becomes of its coordinator.

use crate::cyrus::name::MailboxName;
use crate::host::Host;
use crate::host::userlock::{LockError, UserLock};
use std::fs::File;
use std::path::PathBuf;
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
    locks: Option<Locks>,
    /// A step that must not be thawed half way is under way.
    pinned: bool,
    by_limit: bool,
}

/// The locks that make a freeze.
#[derive(Debug)]
struct Locks {
    _user: UserLock,
    /// The user's own databases, which his lock does not protect.
    _files: Vec<File>,
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
    /// Freezes by the locks at `paths`: nobody reads or writes the mailboxes
    /// until the returned value is dropped, thawed, or `limit` is over.
    ///
    /// `databases` are files of the user's that are locked against writers, too.
    pub fn take(
        paths: &[PathBuf],
        databases: Vec<File>,
        wait: Duration,
        limit: Duration,
    ) -> Result<Self, LockError> {
        let user = UserLock::take(paths, wait)?;
        let since = Instant::now();
        let locks = Some(Locks { _user: user, _files: databases });
        let shared = Arc::new(Shared {
            state: Mutex::new(State { locks, pinned: false, by_limit: false }),
            changed: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        let watch = std::thread::Builder::new()
            .name("freeze-limit".into())
            .spawn(move || watched.thaw_at(since + limit));
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

    /// Keeps the limit from ending it, for a step that must not stop half way;
    /// `false` when the limit has ended it already.
    pub fn pin(&self) -> bool {
        let mut state = self.shared.state();
        state.pinned = state.locks.is_some();
        state.pinned
    }

    /// The limit.
    pub fn limit(&self) -> Duration {
        self.limit
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

    /// Waits until `end` or until the freeze is over, and lets go then.
    fn thaw_at(&self, end: Instant) {
        let mut state = self.state();
        while state.locks.is_some() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if !state.pinned {
                    state.locks = None;
                    state.by_limit = true;
                }
                return;
            }
            state =
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
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
        "the freeze lock {} does not make this server's own Cyrus wait: mbexamine read the mailbox \
         while the lock was held", .0.display()
    )]
    StopsNobody(PathBuf),
    /// It cannot be told.
    #[error("whether the freeze lock {} stops this server's own Cyrus cannot be told: {reason}", lock.display())]
    Undecided {
        /// The lock.
        lock: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Shows that this server's own Cyrus waits for the lock that freezes `top`:
/// holds it for a moment and has `mbexamine` open the mailbox.
pub fn prove(host: &Host, top: &MailboxName, paths: &[PathBuf]) -> Result<Proof, ProofError> {
    let path = paths.first().cloned().unwrap_or_default();
    let undecided = |reason: String| ProofError::Undecided { lock: path.clone(), reason };
    let lock = UserLock::take(paths, PROOF_WAIT)?;
    let began = Instant::now();
    let name = String::from_utf8_lossy(top.as_bytes()).into_owned();
    let child = host.tools.start(&host.conf, "mbexamine", &["-u", "1", name.as_str()]);
    let mut child = child.map_err(|e| undecided(e.to_string()))?;
    let waits = wait_for_waiter(&mut child, began);
    let frozen = began.elapsed();
    drop(lock);
    let _ = child.kill();
    let _ = child.wait();
    match waits.map_err(undecided)? {
        true => Ok(Proof { lock: path, frozen }),
        false => Err(ProofError::StopsNobody(path)),
    }
}

/// Whether the child waits for a lock before it ends.
fn wait_for_waiter(child: &mut Child, began: Instant) -> Result<bool, String> {
    let pid = child.id().to_string();
    loop {
        // In /proc/locks the lines of those who wait have an arrow.
        let locks = std::fs::read_to_string("/proc/locks").map_err(|e| e.to_string())?;
        let waits = |line: &str| {
            let mut words = line.split_whitespace();
            words.nth(1) == Some("->") && words.any(|word| word == pid)
        };
        if locks.lines().any(waits) {
            return Ok(true);
        }
        if let Some(status) = child.try_wait().map_err(|e| e.to_string())? {
            return match status.success() {
                true => Ok(false),
                false => Err(format!("mbexamine ended with {status}")),
            };
        }
        if began.elapsed() > PROOF_LIMIT {
            return Err("mbexamine neither waited nor ended".into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
