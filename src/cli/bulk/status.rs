//! `mbcopy bulk status` and `report`: what is known of a run.

use super::screen::Screen;
use super::{Done, Failure, Of};
use crate::bulk::report;
use crate::bulk::status::Status;
use crate::bulk::store::Store;
use crate::moves::journal::now_ms;
use clap::{Args, ValueEnum};
use console::Term;
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
    if args.watch {
        return watch(&store, args.json);
    }
    show(&Status::of(&store, now_ms())?, args.json, false);
    Ok(0)
}

/// Shows it again and again, until the run is over, also where its store is away meanwhile.
fn watch(store: &Store, json: bool) -> Done {
    let terminal = Term::stdout();
    loop {
        match Status::of(store, now_ms()) {
            Ok(status) => {
                if json {
                    show(&status, true, false);
                } else {
                    Screen::of(&status).draw(&terminal).map_err(Failure::failed)?;
                }
                if status.ended == status.users && !status.coordinated {
                    return Ok(0);
                }
            }
            Err(error) if error.is_passing() => eprintln!("{error}"),
            Err(error) => return Err(error.into()),
        }
        std::thread::sleep(DRAWN_EVERY);
    }
}

fn show(status: &Status, json: bool, short: bool) {
    let text = match (json, short) {
        (true, _) => serde_json::to_string(status).unwrap_or_default(),
        (_, true) => status.line(),
        _ => Screen::of(status).text(),
    };
    let _ = writeln!(std::io::stdout(), "{text}");
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
