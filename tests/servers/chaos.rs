//! The short form of the chaos runner: some runs, and proof that it notices
//! broken promises. `make chaos` does many more.

use clap::ValueEnum;
use lab::chaos::{
    Arena, Harm, Kind, POINTS, Plan, Recovery, Run, Side, Strike, Tamper, Victim, When,
};
use mbcopy::fault::{Point, Sabotage};
use std::path::Path;
use std::time::Duration;

/// What is known to be broken still; see docs/design.md.
const KNOWN: &[Kind] = &[];

fn arena() -> Arena {
    Arena::new(["bw1", "bw2"], Path::new(env!("CARGO_BIN_EXE_mbcopy"))).unwrap()
}

fn at(point: Point, harm: Harm) -> Vec<Strike> {
    vec![Strike { when: When::At(format!("{point:?}"), 0), harm }]
}

fn told(run: &Run) -> String {
    let findings = run.findings.iter().map(|f| format!("\n  {:?}: {}", f.kind, f.text));
    format!("{}{}\n  {:?}", run.plan, findings.collect::<String>(), run.attempts)
}

#[test]
fn the_runner_knows_all_points_and_no_others() {
    let here = Point::STEPS.iter().chain(Point::WRITES).map(|point| format!("{point:?}"));
    let there = POINTS.iter().map(|(point, _)| (*point).to_owned());
    assert_eq!(here.collect::<Vec<_>>(), there.collect::<Vec<_>>());
}

#[test]
fn whatever_is_harmed_nothing_is_lost_and_the_move_ends() {
    let mut arena = arena();
    let harms = [
        Vec::new(),
        at(Point::Copied, Harm::Kill(Victim::Coordinator)),
        at(Point::Frozen, Harm::Stop(Victim::Coordinator, Duration::from_secs(2), true)),
        at(Point::Settled, Harm::KillSession),
        at(Point::PublishCommitted, Harm::Kill(Victim::TargetAgent)),
        at(Point::TargetFinished, Harm::Kill(Victim::Coordinator)),
    ];
    for (seed, strikes) in (1..).zip(harms) {
        let harmed = strikes.len();
        let run = arena.run(&Plan::with(seed, strikes));
        println!("{}: {:.1} s", run.plan, run.seconds);
        assert_eq!(run.harms.len(), harmed, "{}", told(&run));
        let unknown = run.findings.iter().find(|finding| !KNOWN.contains(&finding.kind));
        assert!(unknown.is_none(), "{}", told(&run));
        assert!(run.acknowledged > 100, "{}", told(&run));
    }
}

/// Each process, wherever any of them is, and each way to go on; every other time Cyrus is
/// killed and started again on both servers in between.
#[test]
#[ignore = "takes a quarter of an hour: make matrix"]
fn each_process_dies_at_each_point() {
    let mut arena = arena();
    let victims =
        [Victim::Coordinator, Victim::SourceAgent, Victim::TargetAgent, Victim::Everybody];
    let (mut seed, mut runs, mut broken) = (5000, 0, Vec::new());
    // Only an abort passes the last one; the tests of crashes have it.
    let points = Point::STEPS.iter().copied().filter(|point| *point != Point::TargetGaveUp);
    for (n, point) in (0..).zip(points) {
        for victim in victims {
            for recovery in [Recovery::Resume, Recovery::Abort] {
                seed += 1;
                let mut strikes = at(point, Harm::Kill(victim));
                let restarted = [Side::Source, Side::Target].map(|side| {
                    let harm = Harm::KillCyrus(side, Duration::ZERO);
                    Strike { when: When::After(Duration::ZERO), harm }
                });
                strikes.extend(restarted.into_iter().filter(|_| (seed + n) % 2 == 0));
                let run =
                    arena.run(&Plan { recoveries: vec![recovery], ..Plan::with(seed, strikes) });
                runs += 1;
                println!("{}: {:.1} s", run.plan, run.seconds);
                if run.harms.is_empty() || !run.findings.is_empty() {
                    broken.push(told(&run));
                }
            }
        }
    }
    println!("{runs} runs");
    assert!(broken.is_empty(), "{} of {runs}:\n{}", broken.len(), broken.join("\n"));
}

/// Runs until a promise of this kind is found to be broken.
fn caught(arena: &mut Arena, kinds: &[Kind], strikes: &[Strike], what: &str) {
    let mut last = String::new();
    for seed in 20..24 {
        let plan = Plan { recoveries: vec![Recovery::Again], ..Plan::with(seed, strikes.to_vec()) };
        let run = arena.run(&plan);
        if let Some(finding) = run.findings.iter().find(|f| kinds.contains(&f.kind)) {
            println!("{what}: {:?}: {:.90}", finding.kind, finding.text);
            return;
        }
        last = told(&run);
    }
    panic!("{what} was not noticed: {last}");
}

#[test]
fn a_build_that_breaks_a_promise_is_caught() {
    for (sabotage, word) in Sabotage::ALL {
        let (kinds, strikes): (&[Kind], _) = match sabotage {
            // What changes under its eyes the target refuses, if it sees it.
            Sabotage::SkipFreeze => (&[Kind::Lost, Kind::Unprovoked], Vec::new()),
            Sabotage::PublishBeforeCompare => (&[Kind::Lost], Vec::new()),
            Sabotage::ForgetStragglers => {
                (&[Kind::Lost], at(Point::Routed, Harm::Kill(Victim::SourceAgent)))
            }
            Sabotage::RenameWithoutTransaction => (&[Kind::Half], Vec::new()),
            Sabotage::LoseAFlag => (&[Kind::Quiet], Vec::new()),
            // Only a power cut can show what these leave.
            Sabotage::SkipSync | Sabotage::JournalUnsynced | Sabotage::CommitTogether => continue,
        };
        // Its users are named by their seeds, and begin anew.
        let mut arena = arena();
        arena.sabotage(Some(word)).unwrap();
        caught(&mut arena, kinds, &strikes, word);
        arena.sabotage(None).unwrap();
    }
}

#[test]
fn each_checker_can_fail() {
    let mut arena = arena();
    for (seed, tamper) in (40..).zip(Tamper::value_variants().iter().copied()) {
        arena.tamper(Some(tamper));
        let run = arena.run(&Plan::with(seed, Vec::new()));
        let found = run.findings.iter().find(|finding| finding.kind == tamper.kind());
        let found = found.unwrap_or_else(|| panic!("{tamper:?} was not noticed: {}", told(&run)));
        println!("{tamper:?}: {:.90}", found.text);
    }
}
