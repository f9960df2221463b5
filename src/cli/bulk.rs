//! `mbcopy bulk`: moves of many users.

mod admin;
mod plan;
mod screen;
mod sources;
mod start;
mod status;
mod tell;

use super::Common;
use super::push::{MoveOptions, USAGE, duration};
use crate::bulk::pulse;
use crate::bulk::store::{Mode, Order, Place, Store, StoreError};
use crate::bulk::throttle::Ceiling;
use crate::bulk::window::Windows;
use crate::transport::Destination;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// The exit code of a run that was stopped before its end.
const NOT_FINISHED: u8 = 5;

/// The exit code when a server cannot be reached as yet (EX_TEMPFAIL).
const LATER: u8 = 75;

/// The exit code of a run that was interrupted.
const INTERRUPTED: u8 = 7;

/// The exit code when another process is at work on the run.
const HELD: u8 = 6;

/// Arguments of `mbcopy bulk`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BulkArgs {
    #[command(subcommand)]
    command: Option<BulkCommand>,
    #[command(flatten)]
    start: StartArgs,
}

#[cfg(test)]
impl BulkArgs {
    /// What a test compares.
    pub(super) fn told_to_each(&self) -> Vec<OsString> {
        self.start.how.of_each("run", Path::new("/run"))
    }

    /// The same of moves back.
    pub(super) fn told_to_each_back(&self) -> Vec<OsString> {
        self.start.how.of_each_back(Path::new("/run"))
    }
}

/// Arguments that begin a run, or go on with it.
#[derive(Debug, Args)]
struct StartArgs {
    #[command(flatten)]
    whom: Whom,
    #[command(flatten)]
    of: Of,
    #[command(flatten)]
    how: How,
    /// Print one JSON document per line on standard output
    #[arg(long)]
    json: bool,
}

/// Whom a run is about.
#[derive(Debug, Clone, Args)]
struct Whom {
    /// A file of users, one a line, or CSV (user, destination, partition, when); a
    /// pattern such as 'user.a*'; partition:NAME; or - for standard input
    #[arg(required = true)]
    plan: Option<String>,
    /// Where to, for whom the plan does not say it: an SSH destination, and optionally
    /// a partition there
    #[arg(long, value_name = "DEST[:PARTITION]")]
    to: Option<String>,
}

/// Which run.
#[derive(Debug, Clone, Args)]
struct Of {
    /// The run's name [default: made of the plan's and the destination's, or the only one]
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
    /// Where runs are kept: a directory, or the URL of a PostgreSQL database that
    /// coordinators on several servers share (its password may be in PGPASSWORD)
    #[arg(long, value_name = "DIR|postgres://…")]
    store: Option<String>,
}

/// How a run is done.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
struct How {
    /// Moves at once; --bwlimit is that of all of them
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Only switch over those whom an earlier --copy-only has copied
    #[arg(long, conflicts_with_all = ["copy_only", "postpone_file"])]
    cutover_only: bool,
    /// When moves may begin, on this machine's clock; several with commas
    #[arg(long, value_name = "22:00-05:00", value_parser = window)]
    window: Option<String>,
    /// Who is first
    #[arg(long, value_name = "ORDER", default_value = "listed")]
    order: Order,
    /// Begin nothing more once so many users are in trouble
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    max_failures: Option<u64>,
    /// Fewer moves at once while a target's load average of a minute is above N for each
    /// of its processors
    #[arg(long, value_name = "N", value_parser = positive)]
    max_load: Option<f64>,
    /// A user of the targets, as whom it is tried how long a client waits
    #[arg(long, value_name = "USER", requires = "max_latency")]
    canary: Option<String>,
    /// Fewer moves at once while the canary's login and look at his INBOX take longer
    #[arg(long, value_name = "TIME", requires = "canary", value_parser = duration)]
    max_latency: Option<Duration>,
    /// How often each user is tried, where it is worth it
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    attempts: u32,
    /// How long another coordinator of a shared run waits for a word of this one before
    /// it takes its users over
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    lease: Duration,
    /// The pause after a first failure; it doubles each time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    retry_after: Duration,
    /// Serve metrics for Prometheus by HTTP at this address
    #[arg(long, value_name = "ADDR")]
    metrics: Option<String>,
    /// Keep metrics in this file, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    metrics_file: Option<PathBuf>,
    #[command(flatten)]
    each: MoveOptions,
}

#[derive(Debug, Subcommand)]
enum BulkCommand {
    /// Show what a run would do, and what stands against it; changes nothing
    Plan(Box<plan::PlanArgs>),
    /// Show how far a run is
    Status(status::StatusArgs),
    /// Write the report of a run
    Report(status::ReportArgs),
    /// Begin no more moves, and stop those under way where it is safe, until `resume`
    Pause(admin::OfArgs),
    /// Begin no more moves, and end the run when those under way have ended
    Drain(admin::OfArgs),
    /// Go on with a run as it was started last
    Resume(admin::GoArgs),
    /// Try those again who are in trouble, or the named ones, even if taken out or back
    RetryFailed(admin::RetryArgs),
    /// Take users out of a run, whose moves have not begun or have failed
    Skip(admin::SkipArgs),
    /// Move users back who were moved, with all that has come since
    Reverse(admin::ReverseArgs),
}

pub(super) fn run(common: &Common, args: BulkArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    let done = match args.command {
        None => start::start(common, args.start),
        Some(BulkCommand::Plan(args)) => plan::plan(common, *args),
        Some(BulkCommand::Status(args)) => status::status(args),
        Some(BulkCommand::Report(args)) => status::report(args),
        Some(BulkCommand::Pause(args)) => admin::pause(&args),
        Some(BulkCommand::Drain(args)) => admin::drain(&args),
        Some(BulkCommand::Resume(args)) => admin::resume(common, &args),
        Some(BulkCommand::RetryFailed(args)) => admin::retry(common, &args),
        Some(BulkCommand::Skip(args)) => admin::skip(&args),
        Some(BulkCommand::Reverse(args)) => admin::reverse(common, &args),
    };
    ExitCode::from(done.unwrap_or_else(|failure| {
        eprintln!("mbcopy: {}", failure.text);
        failure.code
    }))
}

/// Why a command did nothing, or not all.
struct Failure {
    text: String,
    code: u8,
    /// The store is away, and may be there later.
    passing: bool,
}

impl Failure {
    /// The command cannot be understood, or means nobody.
    fn usage(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: USAGE, passing: false }
    }

    /// It failed.
    fn failed(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: 1, passing: false }
    }

    /// A server cannot be reached now.
    fn later(text: impl std::fmt::Display) -> Self {
        Self { text: text.to_string(), code: LATER, passing: false }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match error {
            StoreError::Held { .. } => HELD,
            StoreError::NoRun(_) => USAGE,
            _ => 1,
        };
        Self { text: error.to_string(), code, passing: error.is_passing() }
    }
}

type Done = Result<u8, Failure>;

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "no number")?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("it must be above 0".into()) }
}

fn window(text: &str) -> Result<String, String> {
    text.parse::<Windows>().map(|windows| windows.to_string()).map_err(|e| e.to_string())
}

impl How {
    fn mode(&self) -> Mode {
        match (self.each.copy_only, self.cutover_only) {
            (true, _) => Mode::Copy,
            (_, true) => Mode::Cutover,
            _ => Mode::Move,
        }
    }

    fn ceiling(&self) -> Ceiling {
        Ceiling { load: self.max_load, latency: self.max_latency }
    }

    /// How a target is asked how it fares.
    fn watched(&self, destination: Destination) -> pulse::Target {
        let (program, config) = self.each.remote();
        let canary = self.canary.clone().unwrap_or_default();
        pulse::Target { destination, program, config, canary }
    }

    /// The name under which the users of a run share messages on a target.
    fn share_of<'a>(&'a self, store: &'a Store) -> &'a str {
        self.each.share.as_deref().unwrap_or(store.name())
    }

    /// Options of every push of the run: what it shares with the others, too.
    fn of_each(&self, run: &str, directory: &Path) -> Vec<OsString> {
        let mut each = self.each_within(directory);
        each.share.get_or_insert_with(|| run.to_owned());
        each.to_arguments()
    }

    /// Options of every move back.
    fn of_each_back(&self, directory: &Path) -> Vec<OsString> {
        let mut each = self.each_within(directory).back();
        // Nobody would end that on the old servers.
        each.share = None;
        each.to_arguments()
    }

    /// The same of both, with the limit that all moves of this machine keep together.
    fn each_within(&self, directory: &Path) -> MoveOptions {
        let mut each = self.each.clone();
        each.copy_only = false;
        if each.bwlimit > 0 {
            each.bwlimit_file.get_or_insert_with(|| directory.join("bandwidth"));
        }
        each
    }
}

impl Of {
    fn place(&self) -> Result<Place, Failure> {
        let own =
            || super::request::state_directory().map(|d| d.join("bulk")).map_err(Failure::failed);
        match &self.store {
            Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
                Ok(Place::Postgres { url: url.clone(), directory: own()? })
            }
            Some(directory) => Ok(Place::Directory(directory.into())),
            None => Ok(Place::Directory(own()?)),
        }
    }

    /// The run that is named, or the only one.
    fn open(&self) -> Result<Store, Failure> {
        let place = self.place()?;
        if let Some(name) = &self.run {
            return Ok(place.open(name_of(name)?)?);
        }
        let runs = place.runs()?;
        match runs.as_slice() {
            [] => Err(Failure::usage(format!("there is no run in {place}"))),
            [only] => Ok(place.open(only)?),
            several => Err(Failure::usage(format!(
                "there are {} runs, name one by --run: {}",
                several.len(),
                several.join(", ")
            ))),
        }
    }
}

/// A name that is a file's name and nothing else.
fn name_of(name: &str) -> Result<&str, Failure> {
    let fits = |c: char| c.is_alphanumeric() || "._-@".contains(c);
    match !name.is_empty() && name.len() <= 128 && name.chars().all(fits) && !name.starts_with('.')
    {
        true => Ok(name),
        false => Err(Failure::usage(format!(
            "{:?} cannot be the name of a run: use letters, digits, and . _ - @",
            crate::wire::printable(name)
        ))),
    }
}
