//! Sessions that have the user open, and telling them to go.

use crate::cyrus::name::MailboxName;
use crate::host::Host;
use crate::host::waiters;
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long somebody may take from looking a mailbox up to waiting for its lock.
const UNDER_WAY: Duration = Duration::from_millis(100);

/// Tells each of Cyrus's processes that serves the user, or has one of his
/// mailboxes open, to end its session (SIGQUIT: master/service.c, signals.c);
/// how many were told.
///
/// `<proc_path>/<pid>` holds service, host, user, mailbox and command, with
/// tabs between (imap/proc.c:proc_register, 3.x).
pub fn tell(host: &Host, top: &MailboxName) -> u32 {
    let Ok(directory) = host.config.proc_path() else { return 0 };
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let userid = top.userid();
    let mut told = 0;
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path()) else { continue };
        let mut fields = line.split(|b| *b == b'\t').skip(2);
        let user = fields.next().unwrap_or_default();
        let mailbox = fields.next().unwrap_or_default();
        let theirs = userid.as_ref().is_some_and(|id| user.trim_ascii_end() == id.as_bytes());
        let open = MailboxName::from_internal(mailbox.trim_ascii_end())
            .is_ok_and(|name| name == *top || name.is_below(top));
        // A file that a dead process left must not hit a stranger.
        if (theirs || open)
            && is_cyrus(pid)
            && let Some(pid) = Pid::from_raw(pid)
        {
            told += u32::from(kill_process(pid, Signal::QUIT).is_ok());
        }
    }
    told
}

/// Ends every process of Cyrus's that waits for one of these locks.
///
/// On a backend of a Murder, whoever has looked a mailbox up before it was retired and has
/// waited since would find a tombstone there, and refuse a delivery for good (imap/mailbox.c:
/// mailbox_open_advanced). A session that breaks is tried again, and finds where the user is.
pub fn end_waiting(paths: &[PathBuf]) {
    let began = Instant::now();
    loop {
        let waiting = waiters::of(paths).unwrap_or_default();
        for pid in waiting.into_iter().filter(|pid| is_cyrus(*pid)).filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
        }
        if began.elapsed() > UNDER_WAY {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn comm(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim().to_owned()
}

/// Whether a process is one of Cyrus's services.
fn is_cyrus(pid: i32) -> bool {
    ["imapd", "pop3d", "httpd", "nntpd", "lmtpd", "timsieved"].contains(&comm(pid).as_str())
}
