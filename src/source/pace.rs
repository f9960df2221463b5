//! Whether compressing pays. It does where the way to the target is what is waited for, and not
//! the processor: so it is tried there, and kept if more gets through.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How much is measured at a time, in bytes of files.
const WINDOW: u64 = 8 << 20;

/// What was made the other way is still under way that long, in bytes.
const SETTLING: u64 = 4 << 20;

/// A way this fast is not what is waited for, in bytes per second.
const FAST: f64 = 60e6;

/// The part of the time that is waited for the way where it is the limit.
const LIMITED: f64 = 0.5;

/// How much more has to get through.
const BETTER: f64 = 1.1;

/// Windows until what did not pay is tried again.
const PATIENCE: u32 = 32;

/// How fast files are sent, and how.
#[derive(Debug)]
pub struct Pace {
    compressing: AtomicBool,
    measuring: Mutex<Measuring>,
}

#[derive(Debug, Default)]
struct Measuring {
    /// When the window began.
    since: Option<Instant>,
    /// Bytes since the last change of mind.
    settled: u64,
    bytes: u64,
    waited: Duration,
    /// Bytes per second as they are.
    plain: f64,
    /// Windows until compressing is tried again.
    patience: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { compressing: AtomicBool::new(false), measuring: Mutex::default() }
    }
}

impl Pace {
    /// Whether to compress now.
    pub fn is_compressing(&self) -> bool {
        self.compressing.load(Ordering::Relaxed)
    }

    /// A sending begins: the time since the last one does not count.
    pub fn begin(&self, now: Instant) {
        let mut measuring = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        measuring.restart(now);
    }

    /// So many bytes of files have been taken by the way, which was waited for so long.
    pub fn sent(&self, bytes: u64, waited: Duration, now: Instant) {
        let mut measuring = self.measuring.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.is_compressing();
        let after = measuring.sent(before, bytes, waited, now);
        self.compressing.store(after, Ordering::Relaxed);
    }
}

impl Measuring {
    fn restart(&mut self, now: Instant) {
        (self.since, self.bytes, self.waited) = (Some(now), 0, Duration::ZERO);
    }

    /// Whether to compress from here on.
    fn sent(&mut self, compressing: bool, bytes: u64, waited: Duration, now: Instant) -> bool {
        if self.settled < SETTLING {
            self.settled += bytes;
            self.restart(now);
            return compressing;
        }
        self.bytes += bytes;
        self.waited += waited;
        let since = *self.since.get_or_insert(now);
        if self.bytes < WINDOW {
            return compressing;
        }
        let seconds = now.saturating_duration_since(since).as_secs_f64().max(1e-6);
        let (rate, part) = (self.bytes as f64 / seconds, self.waited.as_secs_f64() / seconds);
        self.restart(now);
        let limited = part > LIMITED;
        let next = if compressing {
            limited && rate > BETTER * self.plain
        } else {
            self.plain = rate;
            self.patience = self.patience.saturating_sub(1);
            limited && rate < FAST && self.patience == 0
        };
        if next != compressing {
            self.settled = 0;
            self.patience = PATIENCE;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends over a way of so many bytes per second what a processor compresses to a half at
    /// so many; the part of the bytes that was compressed.
    fn over(way: f64, processor: f64) -> f64 {
        let (pace, mut now) = (Pace::default(), Instant::now());
        let (mut all, mut compressed) = (0.0, 0.0);
        pace.begin(now);
        for _ in 0..4000 {
            let bytes = 256e3;
            let compressing = pace.is_compressing();
            // Both go on at the same time.
            let made = if compressing { bytes / processor } else { bytes / 2e9 };
            let sent = if compressing { bytes / 2.0 } else { bytes } / way;
            let waited = Duration::from_secs_f64((sent - made).max(0.0));
            now += Duration::from_secs_f64(made.max(sent));
            pace.sent(bytes as u64, waited, now);
            all += bytes;
            compressed += if compressing { bytes } else { 0.0 };
        }
        compressed / all
    }

    #[test]
    fn a_slow_way_is_worth_it_and_a_fast_one_is_not() {
        assert!(over(10e6, 200e6) > 0.95);
        assert_eq!(over(500e6, 200e6), 0.0);
    }

    #[test]
    fn a_processor_that_is_slower_than_the_way_is_left_alone() {
        assert!(over(50e6, 20e6) < 0.06, "{}", over(50e6, 20e6));
    }
}
