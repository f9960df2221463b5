//! `lab link`: a way to a server that is far or slow, for ssh's ProxyCommand: there is nothing in
//! the kernel here that delays packets.

use anyhow::{Context, Result};
use clap::Args;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

/// Where the program is installed on the host that the way begins at.
pub const PROGRAM: &str = "/usr/local/bin/lab-link";

/// How much is taken at a time, in bytes.
const PIECE: usize = 16 << 10;

/// Pieces that are under way at most: 64 MiB, more than any sender has waiting for an answer.
const UNDER_WAY: usize = 4096;

#[derive(Args)]
pub struct LinkArgs {
    /// Address and port of the server.
    to: String,
    /// Milliseconds to the server and back.
    #[arg(long, default_value_t = 0)]
    round_trip: u64,
    /// Bytes per second, each way.
    #[arg(long)]
    rate: Option<u64>,
}

/// Carries standard input to the server, and what it answers to standard output.
pub fn run(args: &LinkArgs) -> Result<()> {
    let to = TcpStream::connect(&args.to).with_context(|| format!("connecting to {}", args.to))?;
    to.set_nodelay(true)?;
    let from = to.try_clone()?;
    let delay = Duration::from_millis(args.round_trip) / 2;
    let rate = args.rate;
    let back = std::thread::spawn(move || carry(from, std::io::stdout(), delay, rate));
    let there = carry(std::io::stdin(), &to, delay, rate);
    to.shutdown(Shutdown::Write)?;
    there?;
    back.join().map_err(|_| anyhow::anyhow!("the way back has died"))?
}

/// Carries bytes; each arrives `delay` after it has passed, and they pass no faster than `rate`.
fn carry(
    mut from: impl Read + Send,
    mut to: impl Write,
    delay: Duration,
    rate: Option<u64>,
) -> Result<()> {
    let (send, pieces) = sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    std::thread::scope(|scope| {
        let reading = scope.spawn(move || -> Result<()> {
            let mut free = Instant::now();
            let mut piece = vec![0; PIECE];
            loop {
                let length = from.read(&mut piece)?;
                if length == 0 {
                    return Ok(());
                }
                if let Some(rate) = rate {
                    let takes = Duration::from_secs_f64(length as f64 / rate as f64);
                    free = free.max(Instant::now()) + takes;
                    std::thread::sleep(free.saturating_duration_since(Instant::now()));
                }
                if send.send((Instant::now() + delay, piece[..length].to_vec())).is_err() {
                    return Ok(());
                }
            }
        });
        for (due, piece) in pieces {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            to.write_all(&piece)?;
            to.flush()?;
        }
        reading.join().map_err(|_| anyhow::anyhow!("what reads has died"))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds until all has arrived.
    fn took(bytes: usize, delay: Duration, rate: Option<u64>) -> f64 {
        let sent: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
        let mut arrived = Vec::new();
        let began = Instant::now();
        carry(sent.as_slice(), &mut arrived, delay, rate).unwrap();
        assert!(arrived == sent);
        began.elapsed().as_secs_f64()
    }

    #[test]
    fn nothing_arrives_before_its_time() {
        assert!(took(1 << 20, Duration::from_millis(50), None) >= 0.05);
        assert!(took(1 << 20, Duration::ZERO, Some(4 << 20)) >= 0.24);
    }
}
