//! Whom a plan means, and `mbcopy bulk plan`: what a run would do.

use super::sources::Sources;
use super::{Done, Failure, Whom};
use crate::bulk::attempt::Launcher;
use crate::bulk::plan::{self, Line};
use crate::bulk::resolve::{self, Planned, ResolveError};
use crate::bulk::state::Outcome;
use crate::bulk::survey::Survey;
use crate::cli::Common;
use crate::cli::push::MoveOptions;
use crate::push::report::SCHEMA;
use crate::transport::Destination;
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::Duration;

/// Most of a plan that is read, in bytes.
const MAX_PLAN: u64 = 256 << 20;

/// What is assumed of servers of which nothing is known yet: bytes per second of one
/// move, and seconds that each takes besides.
const ASSUMED: (f64, f64) = (10e6, 2.0);

/// Arguments of `mbcopy bulk plan`.
#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    whom: Whom,
    /// Only count; ask neither server what stands against each move
    #[arg(long)]
    quick: bool,
    /// Moves at once: for the expected time, and asked about at once
    #[arg(short, long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    #[command(flatten)]
    each: MoveOptions,
    /// Print one JSON document per line on standard output
    #[arg(long)]
    json: bool,
}

/// What a run would do.
#[derive(Debug, Serialize)]
struct Sum {
    event: &'static str,
    schema: u32,
    users: u64,
    not_on_the_source: u64,
    mailboxes: u64,
    messages: u64,
    bytes: u64,
    destinations: BTreeMap<String, u64>,
    expected_seconds: u64,
    /// Users that were asked about; zero with --quick.
    asked: u64,
    refused: u64,
}

/// What stands against one user's move.
#[derive(Debug, Serialize)]
struct Finding<'a> {
    event: &'static str,
    schema: u32,
    mailbox: &'a str,
    destination: String,
    outcome: Outcome,
    text: &'a str,
    advice: &'a str,
}

/// The lines of a plan.
pub(super) fn lines(whom: &Whom) -> Result<Vec<Line>, Failure> {
    let typed = whom.plan.as_deref().unwrap_or_default();
    let text = if typed == "-" {
        if std::io::stdin().is_terminal() {
            eprintln!("mbcopy: reading users from the terminal; end with Ctrl-D");
        }
        read(std::io::stdin(), "standard input")?
    } else if Path::new(typed).is_file() {
        read(
            std::fs::File::open(typed).map_err(|e| Failure::usage(format!("{typed}: {e}")))?,
            typed,
        )?
    } else {
        return match plan::Whom::parse(typed) {
            plan::Whom::Name(_) => Err(Failure::usage(format!(
                "there is no file {typed:?}; a pattern has * or %, and one user is moved by \
                 `mbcopy push`"
            ))),
            whom => Ok(vec![Line::alone(whom)]),
        };
    };
    plan::parse(&text, &jiff::tz::TimeZone::system())
        .map_err(|e| Failure::usage(format!("{typed}: {e}")))
}

fn read(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = from.take(MAX_PLAN).read_to_string(&mut text);
    read.map_err(|e| Failure::usage(format!("{name}: {e}")))?;
    match text.len() as u64 == MAX_PLAN {
        true => Err(Failure::usage(format!("{name} is too large for a plan"))),
        false => Ok(text),
    }
}

/// Whom the lines mean on the servers that were asked; `begun`: of a run that has begun, what
/// matches nobody is returned besides.
pub(super) fn resolve(
    lines: &[Line],
    survey: &Survey,
    whom: &Whom,
    begun: bool,
) -> Result<(Vec<Planned>, Vec<String>), Failure> {
    let to = whom.to.as_deref();
    let (planned, nobody) = match begun {
        true => resolve::resolve_again(lines, &survey.tops, survey.unix_separator, to),
        false => resolve::resolve(lines, &survey.tops, survey.unix_separator, to)
            .map(|p| (p, Vec::new())),
    }
    .map_err(|e: ResolveError| Failure::usage(e))?;
    let mut seen = std::collections::HashSet::new();
    for user in &planned {
        let place = user.place();
        if seen.insert(place.clone()) {
            Destination::parse_with_partition(&place).map_err(Failure::usage)?;
        }
    }
    Ok((planned, nobody))
}

pub(super) fn plan(common: &Common, args: PlanArgs) -> Done {
    let lines = lines(&args.whom)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(Failure::failed)?.block_on(async {
        let sources = Sources::ask(common, true, &[]).await?;
        let (planned, _) = resolve(&lines, &sources.survey, &args.whom, false)?;
        let mut sum = sum(&planned, args.jobs, args.each.bwlimit);
        if !args.quick {
            let launcher = super::start::launcher(
                common,
                &sources.all,
                dry(&args.each),
                std::env::temp_dir(),
            )?;
            sum.refused = ask_about(&planned, &launcher, &args).await?;
            sum.asked = sum.users;
        }
        tell(&sum, args.json);
        Ok(if sum.refused > 0 || sum.not_on_the_source > 0 { 4 } else { 0 })
    })
}

fn dry(each: &MoveOptions) -> Vec<std::ffi::OsString> {
    let mut dry = each.clone();
    dry.copy_only = false;
    let mut arguments = dry.to_arguments();
    arguments.push("--dry-run".into());
    arguments
}

fn sum(planned: &[Planned], jobs: u16, limit: u64) -> Sum {
    let add =
        |sum: (u64, u64, u64), p: &Planned| (sum.0 + p.size.0, sum.1 + p.size.1, sum.2 + p.size.2);
    let (mailboxes, messages, bytes) = planned.iter().fold((0, 0, 0), add);
    let mut destinations = BTreeMap::new();
    planned.iter().for_each(|p| *destinations.entry(p.place()).or_default() += 1);
    Sum {
        event: "plan",
        schema: SCHEMA,
        users: planned.len() as u64,
        not_on_the_source: planned.iter().filter(|p| !p.known).count() as u64,
        mailboxes,
        messages,
        bytes,
        destinations,
        expected_seconds: expected(planned, jobs, limit).as_secs(),
        asked: 0,
        refused: 0,
    }
}

/// How long it may take, by what is assumed: no less than the largest user needs, and than
/// all bytes need that are limited to so many a second (0: to none).
fn expected(planned: &[Planned], jobs: u16, limit: u64) -> Duration {
    let (rate, each) = ASSUMED;
    let one = |p: &Planned| p.size.2 as f64 / rate + each;
    let all: f64 = planned.iter().map(one).sum::<f64>() / f64::from(jobs);
    let longest = planned.iter().map(one).fold(0.0, f64::max);
    let bytes: f64 = planned.iter().map(|p| p.size.2 as f64).sum();
    let limited = if limit > 0 { bytes / limit as f64 } else { 0.0 };
    Duration::from_secs_f64(all.max(longest).max(limited))
}

/// Has preflight look at everybody; how many it refuses. Each is told at once.
async fn ask_about(
    planned: &[Planned],
    launcher: &Launcher,
    args: &PlanArgs,
) -> Result<u64, Failure> {
    let outputs = tempfile::tempdir().map_err(Failure::failed)?;
    let launcher = Launcher { outputs: outputs.path().into(), ..launcher.clone() };
    let mut asked = tokio::task::JoinSet::new();
    let mut left = planned.iter().zip(1..);
    let mut refused = 0;
    loop {
        while asked.len() < usize::from(args.jobs) {
            let Some((user, number)) = left.next() else { break };
            let job = super::start::job(user, number);
            let launcher = launcher.clone();
            asked.spawn(async move {
                let code = match launcher.start(&job) {
                    Ok(mut child) => child.wait().await.ok().and_then(|status| status.code()),
                    Err(_) => None,
                };
                let ended = launcher.conclude(&job, code).await;
                launcher.forget(&job);
                (job, ended)
            });
        }
        let Some(ended) = asked.join_next().await else { return Ok(refused) };
        let (job, ended) = ended.map_err(Failure::failed)?;
        if ended.outcome == Outcome::Done && ended.text.is_empty() {
            continue;
        }
        refused += u64::from(ended.outcome != Outcome::Done);
        let finding = Finding {
            event: "finding",
            schema: SCHEMA,
            mailbox: &job.mailbox,
            destination: job.place.clone(),
            outcome: ended.outcome,
            text: &ended.text,
            advice: &ended.advice,
        };
        match serde_json::to_string(&finding) {
            Ok(json) if args.json => out(&json),
            _ => out(&format!("{}: {}\n  {}", job.mailbox, ended.text, ended.advice)),
        }
    }
}

fn tell(sum: &Sum, json: bool) {
    if json {
        out(&serde_json::to_string(sum).unwrap_or_default());
        return;
    }
    let places = sum.destinations.iter().map(|(place, users)| format!("{users} to {place}"));
    out(&format!(
        "{} users ({}): {} mailboxes, {} messages, {}",
        HumanCount(sum.users),
        places.collect::<Vec<_>>().join(", "),
        HumanCount(sum.mailboxes),
        HumanCount(sum.messages),
        HumanBytes(sum.bytes)
    ));
    if sum.not_on_the_source > 0 {
        out(&format!("{} of them are not on this server", sum.not_on_the_source));
    }
    if sum.asked > 0 {
        out(&format!(
            "preflight: {} could move, {} could not",
            sum.asked - sum.refused,
            sum.refused
        ));
    }
    let (rate, each) = ASSUMED;
    out(&format!(
        "expected: {} (each move at {}/s and {each} s besides; `bulk status` measures)",
        indicatif::HumanDuration(Duration::from_secs(sum.expected_seconds)),
        HumanBytes(rate as u64)
    ));
}

fn out(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
