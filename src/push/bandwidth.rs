//! A limit of bandwidth that several processes keep together: a file holds when their line
//! is free again. Whoever sends takes his turn by putting that off, and waits for it; so
//! nothing is lost on who has nothing to send, and nobody has to count the others.

use rustix::fs::FlockOperation;
use rustix::time::{ClockId, clock_gettime};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

/// What was not used for so long is gone.
const BURST: Duration = Duration::from_millis(200);

/// The line.
#[derive(Debug)]
pub struct Bandwidth {
    file: File,
    /// Bytes per second.
    rate: u64,
}

impl Bandwidth {
    /// The line of this file, made if it is not there.
    pub fn open(path: &Path, rate: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(Self { file: options.open(path)?, rate: rate.max(1) })
    }

    /// Takes a turn for so many bytes; how long to wait before they are sent. Where the file
    /// fails, the limit is kept alone.
    pub fn take(&self, bytes: u64) -> Duration {
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
        self.turn(takes).unwrap_or(takes)
    }

    fn turn(&self, takes: Duration) -> io::Result<Duration> {
        rustix::fs::flock(&self.file, FlockOperation::LockExclusive)?;
        let taken = self.turn_locked(takes);
        rustix::fs::flock(&self.file, FlockOperation::Unlock)?;
        taken
    }

    fn turn_locked(&self, takes: Duration) -> io::Result<Duration> {
        let mut line = [[0; 8]; 2];
        // A new one is empty.
        let known = self.file.read_at(line.as_flattened_mut(), 0)? == line.as_flattened().len();
        let line = if known { line } else { Default::default() };
        let line = line.map(|time| Duration::from_nanos(u64::from_be_bytes(time)));
        let clock = clock_gettime(ClockId::Monotonic);
        let now = Duration::new(clock.tv_sec.unsigned_abs(), clock.tv_nsec.unsigned_abs() as u32);
        let (free, wait) = turn(line, now, takes);
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let line = [free, now].map(|time| nanoseconds(time).to_be_bytes());
        self.file.write_all_at(line.as_flattened(), 0)?;
        Ok(wait)
    }
}

/// When the line is free again after somebody has taken it for so long, and how long he
/// waits for it. `free`: when it was to be free, and when that was said; what was said later
/// than now is of before a reboot.
fn turn([free, said]: [Duration; 2], now: Duration, takes: Duration) -> (Duration, Duration) {
    let begins = match said > now {
        true => now,
        false => free.max(now.saturating_sub(BURST)),
    };
    (begins + takes, begins.saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_one_does_not_take_another_one_gets() {
        let seconds = Duration::from_secs;
        // Nobody was there for long: at once, and no more than that is saved up.
        let line = |free, said| turn([free, said].map(seconds), seconds(100), seconds(1));
        assert_eq!(line(3, 2), (seconds(101) - BURST, seconds(0)));
        assert_eq!(line(102, 99), (seconds(103), seconds(2)));
        // Many wait for a narrow one.
        assert_eq!(line(900, 99), (seconds(901), seconds(800)));
        // Of before a reboot.
        assert_eq!(line(900, 898), (seconds(101), seconds(0)));
    }

    #[test]
    fn several_keep_the_limit_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("line");
        let several: Vec<_> = (0..3).map(|_| Bandwidth::open(&path, 1_000_000).unwrap()).collect();
        let waits: Vec<f64> = (0..30).map(|n| several[n % 3].take(100_000).as_secs_f64()).collect();
        // Three megabytes at one a second: the last one waits for 2.9 s, but for the burst
        // and the time that this took.
        assert!(waits[0] < 0.001 && (1.5..2.95).contains(&waits[29]), "{waits:?}");
        assert!(waits.is_sorted(), "{waits:?}");
    }

    proptest! {
        #[test]
        fn never_more_than_the_limit(takes in prop::collection::vec((0..5_000_u64, 1..2_000_u64), 1..50)) {
            let (mut now, mut free, mut sent) = (Duration::from_secs(1000), Duration::ZERO, Duration::ZERO);
            let (began, mut said) = (now, now);
            for (later, cost) in takes {
                now += Duration::from_millis(later);
                let cost = Duration::from_millis(cost);
                let (next, wait) = turn([free, said], now, cost);
                (free, said) = (next, now);
                // Each waits before he comes again.
                now += wait;
                prop_assert!(sent <= now - began + BURST);
                sent += cost;
            }
        }
    }
}
