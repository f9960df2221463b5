//! `lab power`: many power cuts, in many instants of many moves.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use lab::Host;
use lab::disk::Kind;
use lab::power::{self, PLACES, Recovery, Rig, Side, Trial, When};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// After how many trials the servers get new disks: each move leaves a copy on the small ones
/// that they have, which were full after 248.
const TRIALS_OF_A_DISK: usize = 100;

#[derive(Args)]
pub struct PowerArgs {
    /// The program to try; with the feature `faults`.
    #[arg(long)]
    mbcopy: PathBuf,
    /// The host that has the users.
    #[arg(long, default_value = "bw1")]
    source: String,
    /// The host that gets them.
    #[arg(long, default_value = "bw2")]
    target: String,
    /// How many power cuts of each side.
    #[arg(long, default_value_t = 100)]
    runs: usize,
    /// Whose power fails.
    #[arg(long, value_enum, default_value = "both")]
    side: Sides,
    /// What the admin does then.
    #[arg(long, value_enum, default_value = "again")]
    recovery: Then,
    /// Let mbcopy live on on the server that has power.
    #[arg(long)]
    lives: bool,
    /// The filesystem on the disks.
    #[arg(long, value_enum, default_value = "ext4")]
    filesystem: On,
    /// Only at these places, as src/fault.rs names them, or "Ended".
    #[arg(long, value_delimiter = ',')]
    at: Vec<String>,
    /// Other instants and other losses.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What mbcopy leaves undone, to see that it is noticed: skip-sync, journal-unsynced.
    #[arg(long, default_value = "")]
    sabotage: String,
    /// Stop at the first violation and leave the servers as they are until Enter is pressed.
    #[arg(long)]
    stop: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Sides {
    Source,
    Target,
    /// Each of them in turn, one at a time.
    Both,
    /// Both at the same instant.
    Together,
}

#[derive(Clone, Copy, ValueEnum)]
enum Then {
    /// The same push.
    Again,
    /// `mbcopy abort`.
    Abort,
}

#[derive(Clone, Copy, ValueEnum)]
enum On {
    Ext4,
    Xfs,
}

pub fn run(args: &PowerArgs) -> Result<ExitCode> {
    let mbcopy = args.mbcopy.canonicalize();
    let mbcopy = mbcopy.with_context(|| format!("no mbcopy at {}", args.mbcopy.display()))?;
    let kind = match args.filesystem {
        On::Ext4 => Kind::Ext4,
        On::Xfs => Kind::Xfs,
    };
    let sides = match args.side {
        Sides::Source => vec![Side::Source],
        Sides::Target => vec![Side::Target],
        Sides::Both => vec![Side::Source, Side::Target],
        Sides::Together => vec![Side::Together],
    };
    let start = Instant::now();
    let mut rig = Rig::new(&Host::new(&args.source), &Host::new(&args.target), &mbcopy, kind)?;
    let usual = rig.usual()?;
    println!("An undisturbed move takes {} ms.", usual.as_millis());
    let mut broken = 0;
    for side in sides {
        let (mut violated, mut lost, mut stragglers) = (0, 0, 0);
        for (n, trial) in trials(args, side, usual)?.iter().enumerate() {
            if n > 0 && n.is_multiple_of(TRIALS_OF_A_DISK) {
                rig.renew()?;
            }
            let finding = rig.run(trial).with_context(|| format!("{trial}"))?;
            println!("{n:3} {trial}: {finding}");
            lost += usize::from(finding.loss.lost > 0);
            if !finding.violations.is_empty() {
                violated += 1;
                stragglers += usize::from(finding.stragglers());
                if args.stop {
                    println!("Both servers are as they are now until you press Enter.");
                    std::io::stdin().read_line(&mut String::new())?;
                    return Ok(ExitCode::FAILURE);
                }
                rig.renew()?; // what is broken must not count twice
            }
        }
        println!(
            "{side:?}: {} power cuts, {lost} with losses in the disk's cache, {violated} not as \
             promised ({stragglers} of them: mail had reached the source after the switch)",
            args.runs
        );
        broken += violated;
    }
    println!("{:.0} s in all", start.elapsed().as_secs_f64());
    Ok(ExitCode::from(u8::from(broken > 0)))
}

fn trials(args: &PowerArgs, side: Side, usual: std::time::Duration) -> Result<Vec<Trial>> {
    let mut trials = power::plan(side, args.runs, usual, args.seed);
    let known = |name: &String| match PLACES.into_iter().find(|place| place == name) {
        None if name == "Ended" => Some(When::Ended),
        place => place.map(When::At),
    };
    let at: Option<Vec<_>> = args.at.iter().map(known).collect();
    let at = at.with_context(|| format!("the places are {}, Ended", PLACES.join(", ")))?;
    for (n, trial) in trials.iter_mut().enumerate() {
        if !at.is_empty() {
            trial.when = at[n % at.len()].clone();
        }
        trial.lives = args.lives;
        trial.sabotage.clone_from(&args.sabotage);
        trial.recovery = match args.recovery {
            Then::Again => Recovery::Again,
            Then::Abort => Recovery::Abort,
        };
    }
    Ok(trials)
}
