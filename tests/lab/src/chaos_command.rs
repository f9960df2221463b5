//! `lab chaos`: many moves with harm at random.

use anyhow::{Context, Result};
use clap::Args;
use lab::Host;
use lab::chaos::{Chaos, Plan};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Args)]
pub struct ChaosArgs {
    /// The program to try.
    #[arg(long)]
    mbcopy: PathBuf,
    /// The host that has the users.
    #[arg(long, default_value = "bw1")]
    source: String,
    /// The host that gets them.
    #[arg(long, default_value = "bw2")]
    target: String,
    /// How many runs.
    #[arg(long, default_value_t = 500)]
    runs: u64,
    /// The seed of the first run; the next has the next.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Writes a JSON line per run to this file.
    #[arg(long)]
    out: Option<PathBuf>,
    /// What mbcopy leaves undone, to see that it is noticed; with the feature `faults`.
    #[arg(long, default_value = "")]
    sabotage: String,
}

pub fn run(args: &ChaosArgs) -> Result<ExitCode> {
    let mut out = args.out.as_ref().map(std::fs::File::create).transpose()?;
    let chaos = Chaos::new(&Host::new(&args.source), &Host::new(&args.target), &args.mbcopy)?;
    chaos.sabotage(&args.sabotage)?;
    let mut kinds: BTreeMap<String, u32> = BTreeMap::new();
    let mut harms: BTreeMap<String, u32> = BTreeMap::new();
    let mut codes: BTreeMap<i32, u32> = BTreeMap::new();
    let (mut broken, mut operations) = (0, 0);
    for seed in args.seed..args.seed + args.runs {
        let plan = Plan::new(seed);
        let verdict = chaos.run(&plan).with_context(|| plan.to_string())?;
        for harm in plan.harms.iter().chain(&plan.later) {
            *harms.entry(format!("{:?}", harm.who)).or_default() += 1;
        }
        for code in &verdict.codes {
            *codes.entry(*code).or_default() += 1;
        }
        operations += verdict.operations;
        println!(
            "{plan}; exit {:?}, {} operations, {:.1} s",
            verdict.codes, verdict.operations, verdict.took
        );
        for violation in &verdict.violations {
            println!("    VIOLATION: {violation}");
            let kind = violation.split(':').next().unwrap_or_default();
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        if !verdict.violations.is_empty() {
            broken += 1;
            println!("{}", verdict.said);
        }
        if let Some(out) = &mut out {
            let line = serde_json::json!({
                "seed": seed, "plan": plan.to_string(), "codes": verdict.codes,
                "operations": verdict.operations, "violations": verdict.violations,
                "seconds": verdict.took,
            });
            writeln!(out, "{line}")?;
        }
    }
    println!("{} runs, {broken} with violations, {operations} operations acknowledged", args.runs);
    println!("harm done: {harms:?}");
    println!("exit codes: {codes:?}");
    println!("violations: {kinds:?}");
    chaos.sabotage("")?;
    Ok(ExitCode::from(u8::from(broken > 0)))
}
