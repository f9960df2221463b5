//! How many moves may be under way at once while the target has other work. Pure.

use std::time::Duration;

/// What the target may be loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ceiling {
    /// The load average of a minute, for each of its processors; none: any.
    pub load: Option<f64>,
    /// How long a client's login and look at his INBOX may take; none: any.
    pub latency: Option<Duration>,
}

/// What was seen of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Beat {
    /// The load average of a minute, for each of its processors.
    pub load: f64,
    /// How long the canary took; none: there is none.
    pub latency: Option<Duration>,
}

/// From this part of a ceiling on no more are under way than before.
const NEAR: f64 = 0.8;

impl Ceiling {
    /// Whether anything is to be watched.
    pub fn is_any(&self) -> bool {
        self.load.is_some() || self.latency.is_some()
    }

    /// Whether a client waits too long already, however long it will be.
    pub fn is_overdue(&self, waited: Duration) -> bool {
        self.latency.is_some_and(|most| waited > most)
    }

    /// The part of the ceiling that is reached, of the one that is nearest; 1: all of it.
    fn reached(&self, beat: &Beat) -> f64 {
        let load = self.load.map(|most| beat.load / most);
        let latency = self.latency.zip(beat.latency);
        let latency = latency.map(|(most, took)| took.as_secs_f64() / most.as_secs_f64());
        load.into_iter().chain(latency).fold(0.0, f64::max)
    }
}

/// How many moves may be under way from now on, of at most `jobs`, where it were
/// `allowed`. Half as many above the ceiling, but always one, so that every run ends;
/// twice as many well below it.
pub fn allowed(allowed: usize, jobs: usize, ceiling: &Ceiling, beat: &Beat) -> usize {
    let next = match ceiling.reached(beat) {
        reached if reached > 1.0 => fewer(allowed),
        reached if reached < NEAR => allowed.saturating_mul(2),
        _ => allowed,
    };
    next.clamp(1, jobs.max(1))
}

/// How many may be under way from now on, where a target is too slow or does not say.
pub fn fewer(allowed: usize) -> usize {
    (allowed / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CEILING: Ceiling = Ceiling { load: Some(2.0), latency: Some(Duration::from_millis(200)) };

    fn beat(load: f64, ms: u64) -> Beat {
        Beat { load, latency: Some(Duration::from_millis(ms)) }
    }

    #[test]
    fn fewer_above_the_ceiling_and_more_below_it() {
        for (now, seen, then) in [
            (1, beat(0.1, 10), 2),
            (4, beat(1.5, 10), 8),
            (8, beat(1.5, 10), 8),
            (8, beat(1.8, 10), 8),
            (8, beat(2.1, 10), 4),
            (8, beat(0.1, 201), 4),
            (1, beat(9.0, 999), 1),
            (4, Beat { load: 0.1, latency: None }, 8),
        ] {
            assert_eq!(allowed(now, 8, &CEILING, &seen), then, "{now} {seen:?}");
        }
        let any = Ceiling::default();
        assert!(!any.is_any() && CEILING.is_any());
        assert_eq!(allowed(4, 8, &any, &beat(99.0, 9999)), 8);
        assert_eq!([8, 3, 1, 0].map(fewer), [4, 1, 1, 1]);
        let waits = |ms| Duration::from_millis(ms);
        assert!(CEILING.is_overdue(waits(201)) && !CEILING.is_overdue(waits(200)));
        assert!(!any.is_overdue(waits(9999)));
    }

    proptest! {
        #[test]
        fn it_is_never_none_and_never_too_many(
            now in 0..300_usize, jobs in 1..257_usize, load in 0.0..1e9_f64, ms in any::<u64>(),
        ) {
            let next = allowed(now, jobs, &CEILING, &beat(load, ms));
            prop_assert!(next >= 1 && next <= jobs);
        }
    }
}
