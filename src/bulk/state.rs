//! What becomes of each user of a run: one table of transitions. Pure.
//!
//! ```text
//!            start                  done, copied, taken back
//!  waiting ────────▶ running ─────────────────────────────▶ moved, copied, …
//!     ▲                │ │ │        not worth another try
//!     │  try again     │ │ └──────────────────────────────▶ refused, failed
//!     └────────────────┘ │ stopped in between
//!                        ▼                     tries are over
//!                    unfinished ─▶ running … ─────────────▶ stuck
//! ```

use std::time::Duration;

/// What is done with a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Task {
    /// He is copied, as often as one likes.
    Copy,
    /// He is moved.
    Move,
    /// He is moved back.
    Reverse,
}

/// Where a user stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// It is not his turn yet, or it was, and will be again.
    Waiting,
    /// He is worked on.
    Running,
    /// His move stopped in between; it is taken up before others begin.
    Unfinished,
    /// He is copied, and served by the source.
    Copied,
    /// The target serves him.
    Moved,
    /// The target serves him; what was left out is in his report.
    MovedWithLosses,
    /// He is back on the source.
    Reversed,
    /// The admin has taken him out.
    Skipped,
    /// Nothing was changed: preflight says no.
    Refused,
    /// It failed as often as is tried; the source serves him.
    Failed,
    /// His move has stopped in between as often as is tried.
    Stuck,
}

/// How an attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did what it was to do.
    Done,
    /// The same, with what the report names.
    DoneWithLosses,
    /// It failed; nothing is changed.
    Failed,
    /// It is not possible as things are.
    Refused,
    /// It stopped in between.
    Unfinished,
    /// Somebody else is moving the user.
    Held,
    /// It was asked to stop, and did.
    Interrupted,
    /// The process died without a word.
    Died,
}

/// How often and when it is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Attempts in all.
    pub attempts: u32,
    /// The pause after the first; each further one is twice as long.
    pub pause: Duration,
}

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// A move that stopped in between waits this part of what others wait.
const UNFINISHED_PART: u32 = 6;

macro_rules! words {
    ($type:ty { $($variant:ident = $word:literal),* $(,)? }) => {
        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// In a word, the same for people, programs and the store.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }

            /// The one of that word.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.word() == word)
            }
        }

        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.word())
            }
        }
    };
}

words!(Task { Copy = "copy", Move = "move", Reverse = "reverse" });

words!(State {
    Waiting = "waiting",
    Running = "running",
    Unfinished = "unfinished",
    Copied = "copied",
    Moved = "moved",
    MovedWithLosses = "moved-with-losses",
    Reversed = "reversed",
    Skipped = "skipped",
    Refused = "refused",
    Failed = "failed",
    Stuck = "stuck",
});

words!(Outcome {
    Done = "done",
    DoneWithLosses = "done-with-losses",
    Failed = "failed",
    Refused = "refused",
    Unfinished = "unfinished",
    Held = "held",
    Interrupted = "interrupted",
    Died = "died",
});

impl Outcome {
    /// What an exit code of `mbcopy push` means (docs/operations.md); none: it did
    /// not end by itself.
    pub fn of_exit_code(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Done,
            Some(3) => Self::DoneWithLosses,
            Some(2 | 4) => Self::Refused,
            Some(5) => Self::Unfinished,
            Some(6) => Self::Held,
            Some(7) => Self::Interrupted,
            Some(1) => Self::Failed,
            _ => Self::Died,
        }
    }

    /// Whether the next user may well meet the same.
    pub fn is_contagious(self) -> bool {
        matches!(self, Self::Failed | Self::Died | Self::Unfinished)
    }
}

impl State {
    /// Whether nothing more is done with the user in this pass.
    pub fn is_end(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running | Self::Unfinished)
    }

    /// Whether an admin has to look.
    pub fn is_trouble(self) -> bool {
        matches!(self, Self::Refused | Self::Failed | Self::Stuck)
    }

    /// Whether an attempt may begin.
    pub fn may_start(self) -> bool {
        matches!(self, Self::Waiting | Self::Unfinished)
    }
}

/// What becomes of a running user whose attempt number `attempt` (from 1) has
/// ended, and how long he waits for the next. `resumes`: an earlier one had stopped in
/// between, and whatever does not end that leaves him there.
pub fn after(
    task: Task,
    outcome: Outcome,
    attempt: u32,
    retries: &Retries,
    resumes: bool,
) -> (State, Option<Duration>) {
    // Who is only copied is served by the source, wherever that has stopped.
    let resumes = resumes && task != Task::Copy;
    let ends = attempt >= retries.attempts;
    let pause = |part: u32| {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1).min(20));
        Some((retries.pause / part).saturating_mul(doubled).min(LONGEST_PAUSE))
    };
    match outcome {
        Outcome::Done => match task {
            Task::Copy => (State::Copied, None),
            Task::Move => (State::Moved, None),
            Task::Reverse => (State::Reversed, None),
        },
        Outcome::DoneWithLosses => match task {
            Task::Copy => (State::Copied, None),
            Task::Move => (State::MovedWithLosses, None),
            Task::Reverse => (State::Reversed, None),
        },
        Outcome::Refused if resumes => (State::Stuck, None),
        Outcome::Refused => (State::Refused, None),
        // One that died may have done so in between.
        Outcome::Unfinished | Outcome::Died if ends => (State::Stuck, None),
        Outcome::Unfinished | Outcome::Died => (State::Unfinished, pause(UNFINISHED_PART)),
        // Nobody has tried yet.
        Outcome::Interrupted if resumes => (State::Unfinished, Some(Duration::ZERO)),
        Outcome::Interrupted => (State::Waiting, Some(Duration::ZERO)),
        Outcome::Failed | Outcome::Held if resumes && ends => (State::Stuck, None),
        Outcome::Failed | Outcome::Held if resumes => (State::Unfinished, pause(UNFINISHED_PART)),
        Outcome::Failed | Outcome::Held if ends => (State::Failed, None),
        Outcome::Failed | Outcome::Held => (State::Waiting, pause(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRIES: Retries = Retries { attempts: 3, pause: Duration::from_secs(30) };

    #[test]
    fn every_outcome_of_every_task_ends_within_the_attempts() {
        for (task, outcome, resumes) in all() {
            let (state, pause) = after(task, outcome, RETRIES.attempts, &RETRIES, resumes);
            let again = outcome == Outcome::Interrupted;
            assert_eq!(state.is_end(), !again, "{task:?} {outcome:?}");
            assert_eq!(pause.is_some(), again, "{task:?} {outcome:?}");
            let (first, pause) = after(task, outcome, 1, &RETRIES, resumes);
            assert_eq!(first.may_start(), pause.is_some(), "{task:?} {outcome:?}");
            assert!(first.is_end() || first.may_start(), "{task:?} {outcome:?}");
        }
    }

    fn all() -> impl Iterator<Item = (Task, Outcome, bool)> {
        let of = |task| Outcome::ALL.iter().map(move |outcome| (task, *outcome));
        let all = Task::ALL.iter().flat_map(move |task| of(*task));
        all.flat_map(|(task, outcome)| [(task, outcome, false), (task, outcome, true)])
    }

    #[test]
    fn whoever_stopped_in_between_stays_there_until_that_is_done() {
        for (task, outcome, _) in all().filter(|(task, ..)| *task != Task::Copy) {
            if matches!(outcome, Outcome::Done | Outcome::DoneWithLosses) {
                continue;
            }
            for attempt in 1..5 {
                let (state, _) = after(task, outcome, attempt, &RETRIES, true);
                let between = [State::Unfinished, State::Stuck].contains(&state);
                assert!(between, "{task:?} {outcome:?} {attempt}: {state:?}");
            }
        }
        let refused = after(Task::Copy, Outcome::Refused, 1, &RETRIES, true);
        assert_eq!(refused.0, State::Refused, "a copy changes nobody");
    }

    #[test]
    fn only_what_was_done_counts_as_done() {
        let good = [State::Copied, State::Moved, State::MovedWithLosses, State::Reversed];
        for (task, outcome, resumes) in all() {
            let done = matches!(outcome, Outcome::Done | Outcome::DoneWithLosses);
            for attempt in 1..5 {
                let (state, _) = after(task, outcome, attempt, &RETRIES, resumes);
                assert_eq!(good.contains(&state), done, "{task:?} {outcome:?} {attempt}");
            }
        }
    }

    #[test]
    fn pauses_grow_and_are_bounded() {
        let pause = |attempt| {
            let many = Retries { attempts: 100, ..RETRIES };
            after(Task::Move, Outcome::Failed, attempt, &many, false).1.unwrap().as_secs()
        };
        assert_eq!([pause(1), pause(2), pause(3), pause(4)], [30, 60, 120, 240]);
        assert_eq!(pause(90), 3600);
        let (state, pause) = after(Task::Move, Outcome::Unfinished, 1, &RETRIES, false);
        assert_eq!((state, pause), (State::Unfinished, Some(Duration::from_secs(5))));
    }

    #[test]
    fn words_are_found_again() {
        for state in State::ALL {
            assert_eq!(State::from_word(state.word()), Some(*state));
        }
        assert_eq!(Outcome::from_word("died"), Some(Outcome::Died));
        assert_eq!(Task::from_word("nonsense"), None);
    }

    #[test]
    fn exit_codes_mean_what_the_runbook_says() {
        use crate::push::report::Outcome as Push;
        for (push, meant) in [
            (Push::Done, Outcome::Done),
            (Push::Copied, Outcome::Done),
            (Push::DoneWithSkipped, Outcome::DoneWithLosses),
            (Push::Failed, Outcome::Failed),
            (Push::Refused, Outcome::Refused),
            (Push::Resumable, Outcome::Unfinished),
            (Push::Held, Outcome::Held),
            (Push::Interrupted, Outcome::Interrupted),
        ] {
            assert_eq!(Outcome::of_exit_code(Some(i32::from(push.exit_code()))), meant, "{push:?}");
        }
        assert_eq!(Outcome::of_exit_code(None), Outcome::Died);
        assert_eq!(Outcome::of_exit_code(Some(101)), Outcome::Died);
    }
}
