//! How loaded this server is, and how long a client of it waits. Changes nothing.

use super::unreadable;
use crate::host::Host;
use crate::host::imapd::Instance;
use crate::wire::v1;
use std::time::Instant;

/// Feels it. The canary logs in by this server's own imapd, and looks at his INBOX.
pub fn feel(host: &Host, ask: &v1::FeelPulse) -> Result<v1::Pulse, v1::Failure> {
    let path = "/proc/loadavg";
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(format!("{path}: {e}")))?;
    let load = text.split(' ').next().and_then(|minute| minute.parse::<f64>().ok());
    let load = load.ok_or_else(|| unreadable(format!("{path} says {text:?}")))?;
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let canary_us = match ask.canary.as_str() {
        "" => 0,
        user => canary(host, user).map_err(|e| unreadable(format!("the canary {user}: {e}")))?,
    };
    Ok(v1::Pulse { load: load / processors as f64, canary_us })
}

/// How long it took, in microseconds.
fn canary(host: &Host, user: &str) -> Result<u64, Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let began = Instant::now();
    let mut instance = Instance::start(host, directory.path(), user)?;
    let inbox = instance.imap.command("EXAMINE", &[b"INBOX"])?;
    if !inbox.ok {
        return Err(format!("his INBOX does not open: {}", inbox.text).into());
    }
    let fetched = instance.imap.command("FETCH", &[b"1:*", b"(UID FLAGS)"]);
    // Of an empty one nothing can be fetched.
    fetched?;
    Ok(began.elapsed().as_micros() as u64)
}
