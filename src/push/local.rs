//! An agent on this machine: a child of the coordinator, so that it can give
//! up root's rights while the coordinator keeps them for SSH keys and hooks.

use super::memory::Memory;
use super::peer::Streams;
use std::ffi::OsString;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// How much of an agent's standard error is kept, in bytes.
const STDERR_KEPT: usize = 32 << 10;

/// Starts `program arguments...` and connects to it. The child dies with the
/// returned handle.
pub fn spawn(program: OsString, arguments: &[OsString]) -> std::io::Result<(Child, Streams)> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        // A Ctrl-C of the terminal is for the coordinator, which knows when to stop.
        .process_group(0)
        .spawn()?;
    let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
    let mut input = child.stdin.take().ok_or_else(broken)?;
    let output = child.stdout.take().ok_or_else(broken)?;
    let mut errors = child.stderr.take().ok_or_else(broken)?;

    let memory = child.id().map(Memory::of);
    let (write, mut queue) = Streams::queue();
    tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if input.write_all(&bytes).await.is_err() {
                break;
            }
        }
    });
    let stderr = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&stderr);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = errors.read(&mut buffer).await {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_str(&String::from_utf8_lossy(buffer.get(..n).unwrap_or_default()));
            let excess = kept.len().saturating_sub(STDERR_KEPT);
            let cut = (excess..kept.len()).find(|at| kept.is_char_boundary(*at)).unwrap_or(0);
            kept.drain(..cut);
        }
    });
    let stderr = move || stderr.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok((child, Streams { read: Box::new(output), write, stderr: Box::new(stderr), memory }))
}

#[cfg(test)]
mod tests {
    use super::super::peer::Peer;
    use super::*;
    use crate::wire::v1;

    #[tokio::test]
    async fn an_agent_that_ends_is_heard_though_its_reason_comes_late() {
        let script = "exec 1>&-; sleep 0.1; echo there is no such file >&2";
        let (_child, streams) = spawn("/bin/sh".into(), &["-c".into(), script.into()]).unwrap();
        let greeted = Peer::greet("this server", v1::Role::Source, streams).await;
        let error = greeted.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("there is no such file"), "{error}");
    }
}
