//! What other users notice: one appends and fetches all the time, and how long he waits is noted.

use super::machine::Sample;
use anyhow::{Context, Result};
use lab::Host;
use lab::imap::NewMessage;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The user.
pub const USER: &str = "canary";

/// Between two operations.
const EVERY: Duration = Duration::from_millis(10);

/// A user at work.
pub struct Canary {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<f64>>>,
}

impl Canary {
    /// Begins to append to and to fetch from his INBOX, which is there.
    pub fn start(host: &Host) -> Result<Canary> {
        let mut imap = host.imap(USER)?;
        imap.command("SELECT INBOX")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let bytes = [b"Subject: canary\r\n\r\n".as_slice(), &[b'x'; 2000], b"\r\n"].concat();
        let thread = std::thread::spawn(move || {
            let mut waits = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let message = NewMessage { flags: Vec::new(), date: None, bytes: bytes.clone() };
                imap.append("INBOX", &[message])?;
                waits.push(began.elapsed().as_secs_f64());
                let began = Instant::now();
                imap.command("FETCH * (FLAGS BODY.PEEK[])")?;
                waits.push(began.elapsed().as_secs_f64());
                std::thread::sleep(EVERY);
            }
            imap.logout();
            Ok(waits)
        });
        Ok(Canary { stop, thread })
    }

    /// Ends it; how long he waited for each answer, in seconds.
    pub fn stop(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the canary has died")?
    }
}

/// The wait that one in a hundred was longer than, in milliseconds.
pub fn worst(waits: &[f64]) -> f64 {
    Sample::percentile(waits, 0.99) * 1e3
}
