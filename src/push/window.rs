//! How much may be under way: as little as keeps the way full. More would only
//! fill the buffers of sshd, which it grows by copying them again and again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Under way at least, in bytes.
const LEAST: u64 = 1 << 20;

/// Under way at most, in bytes: sshd's own window bounds it, too.
const MOST: u64 = 64 << 20;

/// What sshd takes on one channel, in bytes.
pub const CHANNEL: u64 = 2 << 20;

/// Receipts over which the speed is measured.
const RECEIPTS: usize = 8;

/// What is under way, and how much may be.
#[derive(Debug)]
pub struct Window {
    size: u64,
    sent: u64,
    received: u64,
    /// When that much had been sent; the oldest first.
    marks: VecDeque<(u64, Instant)>,
    /// When that much was known to be received; the oldest first.
    receipts: VecDeque<(u64, Instant)>,
    /// The shortest time from sending to a receipt.
    trip: Option<Duration>,
}

impl Window {
    /// Nothing is under way. Several channels are there only where the way is long: it need
    /// not be found out how much fits on it.
    pub fn over(channels: usize) -> Self {
        Self {
            size: if channels > 1 { CHANNEL * channels as u64 } else { LEAST },
            sent: 0,
            received: 0,
            marks: VecDeque::new(),
            receipts: VecDeque::new(),
            trip: None,
        }
    }

    /// That many bytes more are under way.
    pub fn send(&mut self, bytes: u64, now: Instant) {
        self.sent += bytes;
        self.marks.push_back((self.sent, now));
    }

    /// The peer has taken that many bytes in all.
    ///
    /// Twice what fits on the way at the speed of the last receipts: while the
    /// window is what limits the speed, it doubles; where anything else does,
    /// it stays.
    pub fn receive(&mut self, bytes: u64, now: Instant) {
        self.received = self.received.max(bytes);
        while let Some(&(_, sent_at)) = self.marks.front().filter(|mark| mark.0 <= self.received) {
            self.marks.pop_front();
            let trip = now.saturating_duration_since(sent_at);
            self.trip = Some(self.trip.map_or(trip, |before| before.min(trip)));
        }
        self.receipts.push_back((self.received, now));
        if self.receipts.len() > RECEIPTS
            && let Some((before, then)) = self.receipts.pop_front()
            && let Some(trip) = self.trip
        {
            let seconds = now.saturating_duration_since(then).as_secs_f64().max(1e-6);
            let speed = self.received.saturating_sub(before) as f64 / seconds;
            let fits = (2.0 * speed * trip.as_secs_f64()) as u64;
            self.size = fits.clamp(LEAST, MOST);
        }
    }

    /// Whether nothing more should be sent before a receipt.
    pub fn is_full(&self) -> bool {
        self.sent.saturating_sub(self.received) > self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECEIPT_EVERY: u64 = 256 << 10;

    /// Sends over a link of that many bytes per second and that round trip, and
    /// a target that gives receipts; the window at the end and bytes per second.
    fn link(speed: f64, trip: Duration) -> (u64, f64) {
        let began = Instant::now();
        let mut window = Window::over(1);
        let mut now = began;
        // When each receipt arrives: what the link carries one after the other.
        let mut arrivals = VecDeque::new();
        let (mut free, mut unsaid) = (began, 0);
        while window.sent < 1 << 30 {
            while window.is_full() {
                let Some((bytes, at)) = arrivals.pop_front() else { panic!("no receipt") };
                now = now.max(at);
                window.receive(bytes, now);
            }
            let frame = 256 << 10;
            window.send(frame, now);
            free = free.max(now) + Duration::from_secs_f64(frame as f64 / speed);
            unsaid += frame;
            if unsaid >= RECEIPT_EVERY {
                unsaid = 0;
                arrivals.push_back((window.sent, free + trip));
            }
        }
        (window.size, window.sent as f64 / now.duration_since(began).as_secs_f64())
    }

    #[test]
    fn a_near_target_gets_little_at_once() {
        let (size, speed) = link(250e6, Duration::from_micros(200));
        assert!(size <= 4 << 20, "{size}");
        assert!(speed > 0.95 * 250e6, "{speed}");
    }

    #[test]
    fn a_far_target_gets_as_much_as_fits_on_the_way() {
        let (size, speed) = link(250e6, Duration::from_millis(80));
        assert!(size >= 20_000_000, "{size}");
        assert!(speed > 0.8 * 250e6, "{speed}");
    }

    #[test]
    fn a_slow_link_is_not_flooded() {
        let (size, speed) = link(1e6, Duration::from_millis(80));
        assert!(size <= 8 << 20, "{size}");
        assert!(speed > 0.95 * 1e6, "{speed}");
    }

    #[test]
    fn a_receipt_of_more_than_was_sent_ends_the_wait() {
        let mut window = Window::over(1);
        window.send(3 << 20, Instant::now());
        assert!(window.is_full());
        window.receive(u64::MAX, Instant::now());
        assert!(!window.is_full());
    }
}
