//! `lab chaos`: many runs, one after the other, and a table of what came of them.

use super::{Arena, Kind, Plan, Recovery, Run, Tamper};
use anyhow::{Context, Result};
use clap::Args;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Arguments of `lab chaos`.
#[derive(Args)]
pub struct ChaosArgs {
    /// The program to install on both hosts, built with its feature `faults`
    #[arg(long)]
    mbcopy: PathBuf,
    /// How many runs
    #[arg(long, default_value_t = 10)]
    runs: u64,
    /// The number of the first run; the next has the next number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What is tried after a push that ended early
    #[arg(long, value_delimiter = ',', default_value = "again")]
    recoveries: Vec<Recovery>,
    /// Append a JSON document per run to this file
    #[arg(long)]
    out: Option<PathBuf>,
    /// The two hosts; what they hold is lost
    #[arg(long, value_delimiter = ',', default_value = "bw1,bw2")]
    hosts: Vec<String>,
    /// Have mbcopy break this promise, and stop when that is noticed
    #[arg(long)]
    sabotage: Option<String>,
    /// Break a promise in the runner, and stop when that is noticed
    #[arg(long)]
    tamper: Option<Tamper>,
}

/// Does the runs; fails if a promise was broken, or if none was that should have been.
pub fn run(args: &ChaosArgs) -> Result<ExitCode> {
    let mbcopy = args.mbcopy.canonicalize();
    let mbcopy = mbcopy.with_context(|| format!("no mbcopy at {}", args.mbcopy.display()))?;
    let [first, second] = args.hosts.as_slice() else {
        anyhow::bail!("two hosts are needed: --hosts bw1,bw2");
    };
    let mut out = match &args.out {
        Some(path) => Some(
            File::options()
                .append(true)
                .create(true)
                .open(path)
                .with_context(|| format!("opening {}", path.display()))?,
        ),
        None => None,
    };
    let mut arena = Arena::new([first, second], &mbcopy)?;
    arena.sabotage(args.sabotage.as_deref())?;
    arena.tamper(args.tamper);
    let expected = args.sabotage.is_some() || args.tamper.is_some();
    let mut table = Table::default();
    for number in 0..args.runs {
        let seed = args.seed + number;
        if number % 50 == 0 {
            let last = args.runs.min(number + 50);
            arena.accounts((number..last).map(|n| format!("c{}", args.seed + n)))?;
        }
        let run = arena.run(&Plan::new(seed, &args.recoveries));
        print(&run);
        if let Some(out) = &mut out {
            serde_json::to_writer(&mut *out, &run)?;
            writeln!(out)?;
        }
        table.add(&run);
        if expected && run.findings.iter().any(|finding| finding.kind != Kind::Harness) {
            break;
        }
    }
    arena.sabotage(None)?;
    println!("\n{table}");
    let failed = match expected {
        true => table.findings.keys().all(|kind| kind == "Harness"),
        false => !table.findings.is_empty(),
    };
    if expected && failed {
        println!("A promise was broken on purpose, and nobody noticed.");
    }
    Ok(ExitCode::from(u8::from(failed)))
}

fn print(run: &Run) {
    println!("{} -> {}, {:.1} s", run.plan, run.serving, run.seconds);
    let harmless = run.attempts.len() == 1 && run.findings.is_empty();
    for attempt in run.attempts.iter().filter(|_| !harmless) {
        let command = format!("{:?}", attempt.command).to_lowercase();
        let harms = attempt.harms.join(", ");
        println!(
            "    {command} [{harms}] {:.1} s: {} {}",
            attempt.seconds, attempt.code, attempt.said
        );
    }
    for finding in &run.findings {
        println!("    VIOLATION {:?}: {}", finding.kind, finding.text);
    }
    if let Some(evidence) = &run.evidence {
        println!("    kept in {}", evidence.display());
    }
}

/// What came of all runs.
#[derive(Default)]
struct Table {
    began: Option<Instant>,
    runs: u32,
    broken: u32,
    acknowledged: u64,
    looks: u64,
    longest_wait: f64,
    harms: BTreeMap<String, u32>,
    commands: BTreeMap<String, u32>,
    tries: BTreeMap<usize, u32>,
    /// In how many runs.
    findings: BTreeMap<String, u32>,
    setbacks: BTreeMap<String, u32>,
}

impl Table {
    fn add(&mut self, run: &Run) {
        self.began.get_or_insert_with(Instant::now);
        self.runs += 1;
        self.broken += u32::from(!run.findings.is_empty());
        self.acknowledged += u64::from(run.acknowledged);
        self.looks += u64::from(run.looks);
        self.longest_wait = self.longest_wait.max(run.longest_wait);
        for harm in &run.harms {
            *self.harms.entry(harm.clone()).or_default() += 1;
        }
        for attempt in &run.attempts {
            let command = format!("{:?}, exit code {}", attempt.command, attempt.code);
            *self.commands.entry(command.to_lowercase()).or_default() += 1;
        }
        *self.tries.entry(run.attempts.len()).or_default() += 1;
        let kinds: std::collections::BTreeSet<Kind> =
            run.findings.iter().map(|finding| finding.kind).collect();
        for kind in kinds {
            *self.findings.entry(format!("{kind:?}")).or_default() += 1;
        }
        for (reason, count) in &run.setbacks {
            *self.setbacks.entry(reason.clone()).or_default() += count;
        }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Table { runs, broken, acknowledged, looks, longest_wait, .. } = self;
        writeln!(
            f,
            "{runs} runs, {broken} with violations; {acknowledged} acknowledged operations,"
        )?;
        writeln!(f, "{looks} looks of watchers, longest wait of a client {longest_wait:.1} s")?;
        let mut section = |title: &str, rows: Vec<(String, u32)>| -> std::fmt::Result {
            if rows.is_empty() {
                return Ok(());
            }
            writeln!(f, "{title}")?;
            rows.iter().try_for_each(|(name, count)| writeln!(f, "{count:8}  {name}"))
        };
        let rows = |map: &BTreeMap<String, u32>| -> Vec<(String, u32)> {
            map.iter().map(|(name, count)| (name.clone(), *count)).collect()
        };
        section("harms", rows(&self.harms))?;
        section("commands", rows(&self.commands))?;
        let tries =
            self.tries.iter().map(|(tries, runs)| (format!("runs of {tries} tries"), *runs));
        section("tries", tries.collect())?;
        let mut setbacks = rows(&self.setbacks);
        setbacks.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        setbacks.truncate(20);
        section("what clients were told, and tried again", setbacks)?;
        section("runs with violations, by kind", rows(&self.findings))
    }
}
