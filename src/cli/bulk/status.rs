//! `mbcopy bulk status` and `report`: what is known of a run.

use super::{Done, Failure, Of};
use crate::bulk::pulse::Pace;
use crate::bulk::report;
use crate::bulk::status::{Current, Status};
use crate::moves::journal::now_ms;
use clap::{Args, ValueEnum};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

/// How often the screen is drawn.
const DRAWN_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `mbcopy bulk status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    of: Of,
    /// Draw it again every second, until the run ends
    #[arg(short, long)]
    watch: bool,
    /// Print one JSON document (with --watch: one per second)
    #[arg(long)]
    json: bool,
}

/// Arguments of `mbcopy bulk report`.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    of: Of,
    /// In which form
    #[arg(long, value_name = "FORM", default_value = "html")]
    format: Format,
    /// Where to; - for standard output [default: RUN.html and the like]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One page for a browser
    Html,
    /// A table, one user a line
    Csv,
    /// One JSON document per line: the run, then each user
    Json,
}

pub(super) fn status(args: StatusArgs) -> Done {
    if args.of.run.is_none() && !args.watch {
        let place = args.of.place()?;
        let runs = place.runs()?;
        if runs.len() > 1 {
            for name in runs {
                let status = Status::of(&place.open(&name)?, now_ms())?;
                show(&status, args.json, true);
            }
            return Ok(0);
        }
    }
    let store = args.of.open()?;
    loop {
        let status = Status::of(&store, now_ms())?;
        if args.watch && !args.json {
            // Home, and clear what is below.
            print!("\x1b[H\x1b[2J");
        }
        show(&status, args.json, false);
        if !args.watch || status.ended == status.users && !status.coordinated {
            return Ok(0);
        }
        std::thread::sleep(DRAWN_EVERY);
    }
}

fn show(status: &Status, json: bool, short: bool) {
    let text = match (json, short) {
        (true, _) => serde_json::to_string(status).unwrap_or_default(),
        (_, true) => status.line(),
        _ => screen(status),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn screen(status: &Status) -> String {
    let mut text = String::new();
    let doing = match (status.coordinated, status.control) {
        (true, "go") => "at work".to_owned(),
        (true, control) => control.to_owned(),
        (false, "paused") => "paused; nobody is at work on it".to_owned(),
        (false, _) if status.ended == status.users => "over".to_owned(),
        (false, _) => "nobody is at work on it; `mbcopy bulk resume` goes on".to_owned(),
    };
    let _ = writeln!(text, "{} ({}): {doing}", status.run, status.mode);
    for count in &status.states {
        let _ = writeln!(
            text,
            "  {:<18} {:>9} users {:>13} messages {:>12}",
            count.state.word(),
            HumanCount(count.users).to_string(),
            HumanCount(count.messages).to_string(),
            HumanBytes(count.bytes).to_string()
        );
    }
    let _ =
        write!(text, "{} of {} users ended", HumanCount(status.ended), HumanCount(status.users));
    if status.users_per_hour > 0.0 {
        let _ = write!(
            text,
            "; lately {:.0} an hour, {}/s",
            status.users_per_hour,
            HumanBytes(status.bytes_per_second as u64)
        );
    }
    if let Some(end) = status.end_unix_ms {
        let left = Duration::from_millis((end - status.at_unix_ms).max(0) as u64);
        let _ = write!(text, "; about {} left", HumanDuration(left));
    }
    text.push('\n');
    for pace in &status.paces {
        let _ = writeln!(text, "  {}", pace_line(pace));
    }
    for current in &status.current {
        let _ = writeln!(text, "  {}", line(current));
    }
    if !status.troubles.is_empty() {
        let _ = writeln!(text, "last troubles:");
    }
    for user in &status.troubles {
        let _ = writeln!(text, "  {} ({}): {}", user.mailbox, user.state.word(), user.reason);
    }
    text.truncate(text.trim_end().len());
    text
}

fn pace_line(pace: &Pace) -> String {
    let canary = match pace.canary_ms {
        0.0 => String::new(),
        ms => format!(", a client waits {ms:.0} ms"),
    };
    let known = match pace.trouble.as_str() {
        "" => format!("load {:.2} for each processor{canary}", pace.load),
        trouble => format!("not known: {trouble}"),
    };
    format!("{}: {known}; {} moves at once", pace.target, pace.allowed)
}

fn line(current: &Current) -> String {
    let progress = &current.progress;
    let part = match progress.bytes_in_all {
        0 => String::new(),
        all => format!(
            "{:>3}% of {}",
            (progress.bytes.saturating_mul(100) / all).min(100),
            HumanBytes(all)
        ),
    };
    let phase = if progress.phase.is_empty() { "starting" } else { &progress.phase };
    let since = HumanDuration(Duration::from_millis(current.since_ms as u64));
    format!("{} to {}: {phase} {part} since {since}", current.mailbox, current.destination)
}

pub(super) fn report(args: ReportArgs) -> Done {
    let store = args.of.open()?;
    let suffix = match args.format {
        Format::Html => "html",
        Format::Csv => "csv",
        Format::Json => "jsonl",
    };
    let path = args.output.unwrap_or_else(|| format!("{}.{suffix}", store.name()).into());
    let write = |to: &mut dyn Write| match args.format {
        Format::Html => report::html(&store, now_ms(), to),
        Format::Csv => report::csv(&store, to),
        Format::Json => report::json(&store, now_ms(), to),
    };
    if path.as_os_str() == "-" {
        let mut to = BufWriter::new(std::io::stdout().lock());
        write(&mut to).map_err(Failure::failed)?;
        to.flush().map_err(Failure::failed)?;
        return Ok(0);
    }
    let failed = |e: std::io::Error| Failure::failed(format!("{}: {e}", path.display()));
    let mut to = BufWriter::new(File::create(&path).map_err(failed)?);
    write(&mut to).map_err(Failure::failed)?;
    to.flush().map_err(failed)?;
    println!("{}", path.display());
    Ok(0)
}
