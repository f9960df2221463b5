//! What a coordinator does next. Pure: what is seen goes in, one step comes out.

use super::window::Windows;
use std::time::Duration;

/// What the admin has asked a run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// To go on.
    Go,
    /// To begin nothing, and to wait.
    Paused,
    /// To begin nothing, and to end when what runs has ended.
    Draining,
}

impl Control {
    /// In a word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Go => "go",
            Self::Paused => "paused",
            Self::Draining => "draining",
        }
    }

    /// The one of that word; any other is a pause, which harms nobody.
    pub fn from_word(word: &str) -> Self {
        match word {
            "go" => Self::Go,
            "draining" => Self::Draining,
            _ => Self::Paused,
        }
    }
}

/// What a run may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Moves at once.
    pub jobs: usize,
    /// Users in trouble with which nothing more begins; none: any number.
    pub max_failures: Option<u64>,
    /// When moves may begin.
    pub windows: Windows,
    /// The first pause after all at once fail.
    pub pause: Duration,
}

/// What is seen of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Situation {
    /// Milliseconds since 1970.
    pub now: i64,
    /// Minutes since midnight, where the coordinator is.
    pub minute: u16,
    /// What the admin has asked for.
    pub control: Control,
    /// Attempts under way.
    pub running: usize,
    /// Attempts that the targets' load allows.
    pub allowed: usize,
    /// Whether other coordinators have users whom we could take if those died.
    pub others: bool,
    /// Users in trouble.
    pub troubled: u64,
    /// When the next user may begin, if any waits: milliseconds since 1970.
    pub waiting_since: Option<i64>,
    /// The same of those whose moves have stopped in between.
    pub unfinished_since: Option<i64>,
    /// Attempts in a row that failed as if the next would fail, too.
    pub failing: u32,
    /// When the last of them ended: milliseconds since 1970.
    pub failed_at: i64,
}

/// What is done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The next user begins; only one whose move has stopped in between, if so.
    Start {
        /// Whether only such a one.
        unfinished_only: bool,
    },
    /// Nothing, until something happens, or until then (milliseconds since 1970).
    Wait(Option<i64>, Reason),
    /// The run ends.
    End(End),
}

/// Why nothing begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// As many as may are at work.
    Busy,
    /// As many as may while a target is loaded.
    Throttled,
    /// The admin has asked for it.
    Paused,
    /// No window is open.
    Window,
    /// Everybody who is left is to be tried later.
    Later,
    /// Everything fails just now.
    Failing,
    /// Nobody is left but those whom other coordinators have.
    Others,
    /// The last ones are at work, and then it ends.
    Ending,
}

impl Reason {
    /// In a sentence.
    pub fn text(self) -> &'static str {
        match self {
            Self::Busy => "as many as may are at work",
            Self::Throttled => "fewer moves at once: the target is loaded, or not known yet",
            Self::Paused => "paused; `mbcopy bulk resume` goes on",
            Self::Window => "waiting for the window to open",
            Self::Later => "waiting for the time of the next user",
            Self::Failing => "one move after the other fails: waiting before the next is tried",
            Self::Others => "waiting for the other coordinators",
            Self::Ending => "waiting for what is under way to end",
        }
    }
}

/// Why a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nobody is left.
    Over,
    /// The admin has asked for it.
    Drained,
    /// Too many are in trouble.
    Failures,
}

/// The longest wait while everything fails.
const LONGEST: Duration = Duration::from_secs(600);

/// What is done next.
///
/// A move that stopped in between is taken up outside of the windows, too: it
/// may have switched the user already. A pause holds that back as well.
pub fn next(seen: &Situation, limits: &Limits) -> Step {
    let end = |end| match seen.running {
        0 => Step::End(end),
        _ => Step::Wait(None, Reason::Ending),
    };
    let nobody = seen.waiting_since.is_none() && seen.unfinished_since.is_none();
    match seen.control {
        // With nobody left there is nothing to wait for.
        Control::Paused if nobody && !seen.others => return end(End::Over),
        Control::Paused => return Step::Wait(None, Reason::Paused),
        Control::Draining => return end(End::Drained),
        Control::Go => {}
    }
    if limits.max_failures.is_some_and(|most| seen.troubled >= most) {
        return end(End::Failures);
    }
    let (waiting, unfinished) = (seen.waiting_since, seen.unfinished_since);
    if nobody && seen.others {
        return Step::Wait(None, Reason::Others);
    }
    if nobody {
        return end(End::Over);
    }
    if seen.running >= limits.jobs {
        return Step::Wait(None, Reason::Busy);
    }
    if seen.running >= seen.allowed {
        return Step::Wait(None, Reason::Throttled);
    }
    if let Some(until) = holds_back(seen, limits).filter(|until| *until > seen.now) {
        return Step::Wait(Some(until), Reason::Failing);
    }
    if unfinished.is_some_and(|since| since <= seen.now) {
        return Step::Start { unfinished_only: true };
    }
    let open = limits.windows.is_open(seen.minute);
    match waiting {
        Some(since) if since <= seen.now && open => Step::Start { unfinished_only: false },
        Some(since) if since <= seen.now => {
            let minutes = i64::from(limits.windows.opens_in(seen.minute));
            let opens = seen.now + minutes * 60_000 - seen.now.rem_euclid(60_000);
            Step::Wait(Some(unfinished.map_or(opens, |u| u.min(opens))), Reason::Window)
        }
        _ => {
            let next = [waiting, unfinished].into_iter().flatten().min();
            Step::Wait(next, Reason::Later)
        }
    }
}

/// Until when nothing begins because as many as run at once have failed in a row.
fn holds_back(seen: &Situation, limits: &Limits) -> Option<i64> {
    let over = seen.failing.checked_sub((limits.jobs as u32).max(3))?;
    let pause = limits.pause.saturating_mul(2_u32.saturating_pow(over.min(20))).min(LONGEST);
    Some(seen.failed_at.saturating_add(pause.as_millis() as i64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits {
            jobs: 2,
            max_failures: Some(3),
            windows: Windows::default(),
            pause: Duration::from_secs(1),
        }
    }

    fn seen() -> Situation {
        Situation {
            now: 1_000_000,
            minute: 12 * 60,
            control: Control::Go,
            running: 0,
            allowed: 9,
            others: false,
            troubled: 0,
            waiting_since: Some(0),
            unfinished_since: None,
            failing: 0,
            failed_at: 0,
        }
    }

    const START: Step = Step::Start { unfinished_only: false };

    #[test]
    fn it_starts_as_many_as_may_and_ends_when_nobody_is_left() {
        assert_eq!(next(&seen(), &limits()), START);
        let busy = Situation { running: 2, ..seen() };
        assert_eq!(next(&busy, &limits()), Step::Wait(None, Reason::Busy));
        let throttled = Situation { running: 1, allowed: 1, ..seen() };
        assert_eq!(next(&throttled, &limits()), Step::Wait(None, Reason::Throttled));
        let last = Situation { running: 1, waiting_since: None, ..seen() };
        assert_eq!(next(&last, &limits()), Step::Wait(None, Reason::Ending));
        assert_eq!(next(&Situation { running: 0, ..last }, &limits()), Step::End(End::Over));
        let others = Situation { running: 0, others: true, ..last };
        assert_eq!(next(&others, &limits()), Step::Wait(None, Reason::Others));
    }

    #[test]
    fn the_admin_is_heard() {
        let paused = Situation { control: Control::Paused, ..seen() };
        assert_eq!(next(&paused, &limits()), Step::Wait(None, Reason::Paused));
        let over = Situation { waiting_since: None, ..paused };
        assert_eq!(next(&over, &limits()), Step::End(End::Over));
        let last = Situation { running: 1, ..over };
        assert_eq!(next(&last, &limits()), Step::Wait(None, Reason::Ending));
        let draining = Situation { control: Control::Draining, running: 1, ..seen() };
        assert_eq!(next(&draining, &limits()), Step::Wait(None, Reason::Ending));
        let drained = Situation { running: 0, ..draining };
        assert_eq!(next(&drained, &limits()), Step::End(End::Drained));
    }

    #[test]
    fn too_many_failures_end_it() {
        let bad = Situation { troubled: 3, running: 1, ..seen() };
        assert_eq!(next(&bad, &limits()), Step::Wait(None, Reason::Ending));
        assert_eq!(next(&Situation { running: 0, ..bad }, &limits()), Step::End(End::Failures));
        let any = Limits { max_failures: None, ..limits() };
        assert_eq!(next(&bad, &any), START);
    }

    #[test]
    fn outside_of_the_window_only_what_stopped_in_between_goes_on() {
        let night = Limits { windows: "22:00-05:00".parse().unwrap(), ..limits() };
        let now = seen().now;
        let opens = now - now % 60_000 + 600 * 60_000;
        assert_eq!(next(&seen(), &night), Step::Wait(Some(opens), Reason::Window));
        let stopped = Situation { unfinished_since: Some(now), ..seen() };
        assert_eq!(next(&stopped, &night), Step::Start { unfinished_only: true });
        let soon = Situation { unfinished_since: Some(now + 5), ..seen() };
        assert_eq!(next(&soon, &night), Step::Wait(Some(now + 5), Reason::Window));
        assert_eq!(next(&Situation { minute: 23 * 60, ..seen() }, &night), START);
    }

    #[test]
    fn retries_are_waited_for() {
        let later = Situation { waiting_since: Some(seen().now + 7), ..seen() };
        assert_eq!(next(&later, &limits()), Step::Wait(Some(seen().now + 7), Reason::Later));
    }

    #[test]
    fn when_everything_fails_it_slows_down() {
        let now = seen().now;
        let failing = |failing| Situation { failing, failed_at: now, ..seen() };
        assert_eq!(next(&failing(2), &limits()), START);
        assert_eq!(next(&failing(3), &limits()), Step::Wait(Some(now + 1000), Reason::Failing));
        assert_eq!(next(&failing(5), &limits()), Step::Wait(Some(now + 4000), Reason::Failing));
        assert_eq!(next(&failing(99), &limits()), Step::Wait(Some(now + 600_000), Reason::Failing));
    }

    proptest! {
        /// Whatever is seen, nothing begins that may not, and nothing waits for ever
        /// but for the admin, for what is under way, or for other coordinators.
        #[test]
        fn no_rule_is_broken(
            minute in 0..1440_u16, running in 0..4_usize, troubled in 0..5_u64, failing in 0..9_u32,
            waiting in proptest::option::of(0..2_000_000_i64),
            unfinished in proptest::option::of(0..2_000_000_i64), control in 0..3,
            others in any::<bool>(), allowed in 1..4_usize,
        ) {
            let control = [Control::Go, Control::Paused, Control::Draining][control as usize];
            let limits = Limits { windows: "22:00-05:00".parse().unwrap(), ..limits() };
            let seen = Situation {
                minute, control, running, allowed, others, troubled, failing, failed_at: 999_000,
                waiting_since: waiting, unfinished_since: unfinished, ..seen()
            };
            match next(&seen, &limits) {
                Step::Start { unfinished_only } => {
                    prop_assert!(running < limits.jobs.min(allowed) && troubled < 3);
                    prop_assert_eq!(control, Control::Go);
                    let since = if unfinished_only { unfinished } else { waiting };
                    prop_assert!(since.is_some_and(|since| since <= seen.now));
                    prop_assert!(unfinished_only || limits.windows.is_open(minute));
                }
                Step::Wait(None, _) => {
                    prop_assert!(running > 0 || others || control == Control::Paused);
                }
                Step::Wait(Some(until), _) => prop_assert!(until > seen.now),
                Step::End(_) => prop_assert_eq!(running, 0),
            }
        }
    }
}
