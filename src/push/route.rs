//! Telling the world where the user now is: the admin's own command.

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use std::io::{Read, Seek};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// What the command is told, in its environment and as JSON on its input.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// The version of this document.
    pub schema: u32,
    /// The move's id.
    pub move_id: String,
    /// The user id; empty for a shared tree.
    pub user: String,
    /// The top mailbox, as an admin types it.
    pub mailbox: String,
    /// Where the user was.
    pub old: Place,
    /// Where the user is from now on.
    pub new: Place,
    /// `route`, or `restore` when an earlier `route` failed; `freeze` and `thaw` of the
    /// commands around the freeze.
    pub action: &'static str,
}

/// A location.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// servername of the Cyrus server.
    pub server: String,
    /// The host as the admin names it.
    pub host: String,
}

/// Why one of the admin's commands did not do what it is for.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// It does not start.
    #[error("the {what} command {command:?} does not start: {source}")]
    Start {
        /// Whose: `route`, `freeze` or `thaw`.
        what: &'static str,
        /// The command.
        command: String,
        /// Why.
        source: std::io::Error,
    },
    /// It failed.
    #[error("the {what} command {command:?} ended with {status}: {output}")]
    Status {
        /// Whose: `route`, `freeze` or `thaw`.
        what: &'static str,
        /// The command.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it printed.
        output: String,
    },
    /// It took too long.
    #[error("the {what} command {command:?} did not end within {limit:?} and was killed")]
    Timeout {
        /// Whose: `route`, `freeze` or `thaw`.
        what: &'static str,
        /// The command.
        command: String,
        /// How long it was allowed.
        limit: Duration,
    },
}

impl Change {
    /// The same change the other way round, after a failure.
    pub fn restored(&self) -> Self {
        Self { old: self.new.clone(), new: self.old.clone(), action: "restore", ..self.clone() }
    }

    /// Whether it brings the user back to where he was.
    pub fn is_restored(&self) -> bool {
        self.action == "restore"
    }

    /// Runs `command` by the shell, as the admin who started the move.
    pub async fn run(&self, command: &str, limit: Duration) -> Result<(), RouteError> {
        let what = if self.is_restored() { "route" } else { self.action };
        let start = |source| RouteError::Start { what, command: command.into(), source };
        let json = serde_json::to_vec(self).map_err(|e| start(e.into()))?;
        // A file, not a pipe: a daemon that the command starts may keep it open.
        let output = tempfile::tempfile().map_err(start)?;
        let guard = Guard::set().map_err(start)?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", command])
            .env("MBCOPY_MOVE_ID", &self.move_id)
            .env("MBCOPY_ACTION", self.action)
            .env("MBCOPY_USER", &self.user)
            .env("MBCOPY_MAILBOX", &self.mailbox)
            .env("MBCOPY_OLD_SERVER", &self.old.server)
            .env("MBCOPY_OLD_HOST", &self.old.host)
            .env("MBCOPY_NEW_SERVER", &self.new.server)
            .env("MBCOPY_NEW_HOST", &self.new.host)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().map_err(start)?)
            .stderr(output.try_clone().map_err(start)?)
            .process_group(guard.group)
            .spawn()
            .map_err(start)?;
        if let Some(mut input) = child.stdin.take() {
            // A command that reads only its environment may close its input.
            let _ = input.write_all(&json).await;
        }
        match tokio::time::timeout(limit, child.wait()).await {
            Err(_) => Err(RouteError::Timeout { what, command: command.into(), limit }),
            Ok(Err(source)) => Err(start(source)),
            Ok(Ok(status)) => {
                guard.release();
                match status.success() {
                    true => Ok(()),
                    false => Err(RouteError::Status {
                        what,
                        command: command.into(),
                        status,
                        output: said(output),
                    }),
                }
            }
        }
    }
}

/// Kills a command, and all that it has started, unless it has ended: also when this
/// process is killed, or it could change the route after the next command has brought
/// it back.
struct Guard {
    /// A shell that waits for this process, at the head of the command's process group.
    shell: Child,
    group: i32,
    released: bool,
}

impl Guard {
    /// The shell's input ends with this process, whatever kills it.
    fn set() -> std::io::Result<Self> {
        let shell = Command::new("/bin/sh")
            .args(["-c", "read -r gone; kill -KILL 0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let id = shell.id().and_then(|id| i32::try_from(id).ok());
        let group = id.ok_or_else(|| std::io::Error::other("a shell without a number"))?;
        Ok(Self { shell, group, released: false })
    }

    /// The command has ended; what it has left running goes on.
    fn release(mut self) {
        self.released = true;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.group).filter(|_| !self.released);
        let _ = group.map(|group| kill_process_group(group, Signal::KILL));
        // Before its input is closed.
        let _ = self.shell.start_kill();
    }
}

/// The beginning of what a command printed.
fn said(mut output: std::fs::File) -> String {
    let mut bytes = Vec::new();
    let read = output.rewind().and_then(|()| output.take(16 << 10).read_to_end(&mut bytes));
    match read {
        Ok(_) => crate::wire::printable(String::from_utf8_lossy(&bytes).trim()),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> Change {
        let place = |name: &str| Place { server: name.into(), host: name.into() };
        Change {
            schema: 1,
            move_id: "0011223344556677".into(),
            user: "x".into(),
            mailbox: "user.x".into(),
            old: place("a"),
            new: place("b"),
            action: "route",
        }
    }

    #[tokio::test]
    async fn the_command_sees_the_change_in_its_environment_and_on_its_input() {
        let test = r#"read json; case "$json" in *'"new":{"server":"b"'*) ;; *) exit 3;; esac
                      test "$MBCOPY_OLD_SERVER-$MBCOPY_NEW_SERVER-$MBCOPY_USER" = a-b-x"#;
        change().run(test, Duration::from_secs(10)).await.unwrap();
        let restored = r#"test "$MBCOPY_ACTION-$MBCOPY_NEW_HOST" = restore-a"#;
        change().restored().run(restored, Duration::from_secs(10)).await.unwrap();
    }

    #[tokio::test]
    async fn a_failing_or_hanging_command_is_an_error_that_says_so() {
        let error = change().run("echo no such map >&2; exit 4", Duration::from_secs(10)).await;
        let text = error.unwrap_err().to_string();
        assert!(text.contains("no such map") && text.contains("exit status: 4"), "{text}");
        let error = change().run("sleep 60 | sleep 60", Duration::from_millis(100)).await;
        assert!(matches!(error, Err(RouteError::Timeout { .. })));
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_goes_on_unless_it_is_ended_itself() {
        let place = tempfile::tempdir().unwrap();
        let command = |name: &str, more: &str| {
            let path = place.path().join(name);
            format!("(sleep 0.5; : > {}) >/dev/null 2>&1 </dev/null & {more}", path.display())
        };
        change().run(&command("kept", ""), Duration::from_secs(10)).await.unwrap();
        let ended = change().run(&command("ended", "sleep 60"), Duration::from_millis(200)).await;
        assert!(matches!(ended, Err(RouteError::Timeout { .. })));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(place.path().join("kept").exists() && !place.path().join("ended").exists());
    }
}
