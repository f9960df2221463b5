//! What will be done to one move, all of it drawn from one number.

use clap::ValueEnum;
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use serde::Serialize;
use std::time::Duration;

/// The places where mbcopy can be stopped to harm it just there: how they are called, and how
/// often they are passed before, at most.
pub const POINTS: &[(&str, u32)] = &[
    ("Planned", 0),
    ("Copied", 0),
    ("Frozen", 0),
    ("Settled", 0),
    ("PublishBegun", 0),
    ("PublishRenamedOne", 6),
    ("PublishRenamed", 0),
    ("PublishAnnotated", 0),
    ("PublishCommitted", 0),
    ("PublishRecorded", 0),
    ("Published", 0),
    ("RouteChanged", 0),
    ("Routed", 0),
    ("RetireBegun", 0),
    ("RetireCommitted", 0),
    ("RetireRenamedOne", 6),
    ("RetireRenamed", 0),
    ("Retired", 0),
    ("Thawed", 0),
    ("TargetFinished", 0),
    ("TargetGaveUp", 0),
    ("JournalWrite", 12),
    ("SealedWrite", 1),
    ("StageWrite", 60),
    ("StageSync", 1),
    ("DatabaseWrite", 3),
    ("Rename", 12),
    ("QuotaWrite", 0),
    ("DirectorySync", 8),
];

/// One of the two servers of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Side {
    /// The one that has the user.
    Source,
    /// The one that gets him.
    Target,
}

/// A process of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Victim {
    /// `mbcopy push`, or whatever recovers.
    Coordinator,
    /// The agent on the source.
    SourceAgent,
    /// The agent on the target.
    TargetAgent,
    /// All three at once.
    Everybody,
}

impl std::fmt::Display for Victim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Victim::Coordinator => "coordinator",
            Victim::SourceAgent => "source agent",
            Victim::TargetAgent => "target agent",
            Victim::Everybody => "everybody",
        })
    }
}

/// What is done to a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Harm {
    /// SIGKILL to a process of mbcopy.
    Kill(Victim),
    /// SIGKILL to sshd's process that serves the connection on the target.
    KillSession,
    /// SIGKILL to Cyrus's master and all its children; it is started again after that long.
    KillCyrus(Side, Duration),
    /// The target's network cable is out for that long.
    Cut(Duration),
    /// SIGSTOP to a process of mbcopy for that long; then SIGKILL, or SIGCONT.
    Stop(Victim, Duration, bool),
}

impl Harm {
    /// What it is called in tables.
    pub fn kind(&self) -> String {
        match self {
            Harm::Kill(victim) => format!("kill {victim}"),
            Harm::KillSession => "kill sshd's session".into(),
            Harm::KillCyrus(side, _) => format!("kill {side:?}'s Cyrus").to_lowercase(),
            Harm::Cut(_) => "cut the network".into(),
            Harm::Stop(victim, _, false) => format!("stop {victim}"),
            Harm::Stop(victim, _, true) => format!("stop and kill {victim}"),
        }
    }

    /// Whether clients may have to wait for longer than a freeze lasts.
    pub(super) fn is_outage(&self) -> bool {
        !matches!(self, Harm::Kill(_) | Harm::KillSession)
    }

    fn draw(random: &mut SmallRng) -> Harm {
        let victims = [Victim::Coordinator, Victim::SourceAgent, Victim::TargetAgent];
        let victim = *victims.choose(random).unwrap_or(&Victim::Coordinator);
        match random.random_range(0..20) {
            0..9 => Harm::Kill(victim),
            9..11 => Harm::KillSession,
            11..13 => Harm::KillCyrus(Side::Source, millis(random, 0, 1500)),
            13..15 => Harm::KillCyrus(Side::Target, millis(random, 0, 1500)),
            15..17 => Harm::Cut(seconds(random)),
            _ => Harm::Stop(victim, seconds(random), random.random_bool(0.5)),
        }
    }
}

fn millis(random: &mut SmallRng, least: u64, most: u64) -> Duration {
    Duration::from_millis(random.random_range(least..=most))
}

/// Between a half second and fifteen, mostly short; rarely minutes.
fn seconds(random: &mut SmallRng) -> Duration {
    match random.random_range(0..50) {
        0 => millis(random, 60_000, 150_000),
        1..6 => millis(random, 4000, 15_000),
        _ => millis(random, 500, 3000),
    }
}

impl std::fmt::Display for Harm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.kind())?;
        match self {
            Harm::KillCyrus(_, time) | Harm::Cut(time) | Harm::Stop(_, time, _) => {
                write!(f, " for {} ms", time.as_millis())
            }
            _ => Ok(()),
        }
    }
}

/// When it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum When {
    /// That long after the command began, or after the harm before.
    After(Duration),
    /// When mbcopy reaches this place after having passed it so many times; it waits there until
    /// the harm is done.
    At(String, u32),
}

impl std::fmt::Display for When {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            When::After(time) => write!(f, "after {} ms", time.as_millis()),
            When::At(point, 0) => write!(f, "at {point}"),
            When::At(point, before) => write!(f, "at {point} number {}", before + 1),
        }
    }
}

/// One harm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Strike {
    /// When.
    pub when: When,
    /// What.
    pub harm: Harm,
}

/// What is done about a move that ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
pub enum Recovery {
    /// The same push.
    Again,
    /// `mbcopy resume`
    Resume,
    /// `mbcopy abort`
    Abort,
}

/// Everything about one run that chance decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// From which all of it was drawn.
    pub seed: u64,
    /// Whether the second host is the source.
    pub backwards: bool,
    /// The push's limit of the freeze, in seconds.
    pub max_freeze: u64,
    /// The harms, in order.
    pub strikes: Vec<Strike>,
    /// What is tried first, second and so on.
    pub recoveries: Vec<Recovery>,
    /// Whether a move that was aborted is tried once more.
    pub again_after_abort: bool,
}

impl Plan {
    /// The plan of that number; what recoveries may be does not change the harms.
    pub fn new(seed: u64, recoveries: &[Recovery]) -> Plan {
        let mut random = SmallRng::seed_from_u64(seed);
        let backwards = random.random_bool(0.5);
        let max_freeze = *[2, 5, 10].choose(&mut random).unwrap_or(&10);
        let count = match random.random_range(0..20) {
            0..2 => 0,
            2..11 => 1,
            11..16 => 2,
            16..18 => 3,
            _ => 4,
        };
        let strikes = (0..count).map(|_| Plan::strike(&mut random)).collect();
        let again_after_abort = random.random_bool(0.5);
        let recoveries = (0..12).filter_map(|_| recoveries.choose(&mut random).copied()).collect();
        Plan { seed, backwards, max_freeze, strikes, recoveries, again_after_abort }
    }

    /// A plan with only this harm.
    pub fn with(seed: u64, strikes: Vec<Strike>) -> Plan {
        Plan { strikes, ..Plan::new(seed, &[Recovery::Again]) }
    }

    fn strike(random: &mut SmallRng) -> Strike {
        let when = match (random.random_bool(0.6), POINTS.choose(random)) {
            (true, Some((point, most))) => {
                When::At((*point).to_owned(), random.random_range(0..=*most))
            }
            _ => When::After(millis(random, 0, 1300)),
        };
        Strike { when, harm: Harm::draw(random) }
    }

    /// The user of this run.
    pub fn user(&self) -> String {
        format!("c{}", self.seed)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.backwards { "backwards" } else { "forwards" };
        write!(f, "seed {}: {direction}, freeze {} s", self.seed, self.max_freeze)?;
        for Strike { when, harm } in &self.strikes {
            write!(f, "; {when} {harm}")?;
        }
        if self.strikes.is_empty() {
            f.write_str("; no harm")?;
        }
        if self.recoveries.iter().any(|recovery| *recovery != Recovery::Again) {
            let tries = self.recoveries.iter().take(4);
            let tries: Vec<_> = tries.map(|r| format!("{r:?}").to_lowercase()).collect();
            write!(f, "; then {}", tries.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_means_the_same() {
        for seed in 0..50 {
            let plan = Plan::new(seed, &[Recovery::Again]);
            assert_eq!(plan, Plan::new(seed, &[Recovery::Again]));
            let other = Plan::new(seed, &[Recovery::Resume, Recovery::Abort]);
            assert_eq!(plan.strikes, other.strikes);
            assert!(plan.to_string().starts_with(&format!("seed {seed}: ")));
        }
    }

    #[test]
    fn all_harms_and_no_harm_occur() {
        let plans: Vec<Plan> = (0..500).map(|seed| Plan::new(seed, &[Recovery::Again])).collect();
        assert!(plans.iter().any(|plan| plan.strikes.is_empty()));
        let kinds: std::collections::BTreeSet<String> =
            plans.iter().flat_map(|plan| &plan.strikes).map(|s| s.harm.kind()).collect();
        assert_eq!(kinds.len(), 3 + 1 + 2 + 1 + 6, "{kinds:?}");
    }
}
