//! Freezing a user: Cyrus's own kernel lock, with a limit that this process
//! keeps by itself, whatever becomes of its coordinator.

use crate::cyrus::name::MailboxName;
use crate::fault::{Sabotage, sabotaged};
use crate::host::Host;
use crate::host::userlock::{LockError, UserLock};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
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
    /// When the locks are let go of.
    end: Instant,
    /// A step that must not be thawed half way is under way.
    pinned: bool,
    by_limit: bool,
}

/// The locks that make a freeze.
#[derive(Debug)]
struct Locks {
    _user: UserLock,
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
    /// Freezes by the locks at `paths`: nobody reads or writes the mailboxes
    /// until the returned value is dropped, thawed, or `limit` is over.
    pub fn take(paths: &[PathBuf], wait: Duration, limit: Duration) -> Result<Self, LockError> {
        let paths = if sabotaged(Sabotage::SkipFreeze) { &[] } else { paths };
        let user = UserLock::take(paths, wait)?;
        let since = Instant::now();
        let locks = Some(Locks { _user: user, files: Vec::new() });
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

    /// Keeps the limit from ending it while `step` is done, which must not stop
    /// half way; `None` when the limit has ended it already.
    pub fn pinned<T>(&self, step: impl FnOnce() -> T) -> Option<T> {
        let pin = |on: bool| {
            let mut state = self.shared.state();
            state.pinned = on && state.locks.is_some();
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
    // A name that it does not know is no error of its: it would wait for nothing.
    let name = host.external(top);
    let child = host.tools.start(&host.conf, "mbexamine", &["-u", "1", name.as_str()]);
    let mut child = child.map_err(|e| undecided(e.to_string()))?;
    let waits = wait_for_waiter(&mut child, paths, began);
    let frozen = began.elapsed();
    drop(lock);
    let _ = child.kill();
    let _ = child.wait();
    match waits.map_err(undecided)? {
        true => Ok(Proof { lock: path, frozen }),
        false => Err(ProofError::StopsNobody(path)),
    }
}

/// Whether the child waits for one of our locks before it ends.
fn wait_for_waiter(child: &mut Child, paths: &[PathBuf], began: Instant) -> Result<bool, String> {
    let pid = child.id().to_string();
    let inodes: Vec<String> = paths
        .iter()
        .filter_map(|path| std::fs::metadata(path).ok())
        .map(|stat| format!(":{}", stat.ino()))
        .collect();
    loop {
        // In /proc/locks the lines of those who wait have an arrow.
        let locks = std::fs::read_to_string("/proc/locks").map_err(|e| e.to_string())?;
        let waits = |line: &str| {
            let mut words = line.split_whitespace();
            words.nth(1) == Some("->")
                && words.any(|word| word == pid)
                && words.any(|word| inodes.iter().any(|inode| word.ends_with(inode)))
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
