//! `mbcopy resume`, `cutover`, `abort` and `reverse`: what becomes of a move that an
//! earlier push has begun.

use super::push::{MoveOptions, Output, Task, USAGE, near_host, perform};
use super::request::Request;
use super::{Common, status};
use crate::bulk::attempt::without_partition;
use crate::moves::journal::state;
use crate::push::report::{Outcome, SCHEMA};
use crate::wire::v1;
use clap::Args;
use std::io::Write as _;
use std::process::ExitCode;

/// Arguments of `mbcopy resume`.
#[derive(Debug, Args)]
pub(super) struct ResumeArgs {
    /// The top mailbox
    #[arg(required_unless_present = "all")]
    mailbox: Option<String>,
    /// Where to, if this machine does not remember it any more; then the other
    /// options count, too, as with push
    #[arg(value_name = "DEST[:PARTITION]", conflicts_with = "all")]
    destination: Option<String>,
    /// All moves that are not finished, but those that only copy
    #[arg(long, conflicts_with = "mailbox")]
    all: bool,
    #[command(flatten)]
    options: MoveOptions,
    #[command(flatten)]
    output: Output,
}

/// Arguments of `mbcopy cutover`, `abort` and `reverse`.
#[derive(Debug, Args)]
pub(super) struct OneArgs {
    /// The top mailbox
    mailbox: String,
    /// Where to, if this machine does not remember it any more; then the other
    /// options count, too, as with push
    #[arg(value_name = "DEST[:PARTITION]")]
    destination: Option<String>,
    #[command(flatten)]
    options: MoveOptions,
    #[command(flatten)]
    output: Output,
}

pub(super) fn resume(common: &Common, args: ResumeArgs) -> ExitCode {
    let push = Task::Push { dry_run: false };
    if let Some(mailbox) = args.mailbox {
        let one = OneArgs {
            mailbox,
            destination: args.destination,
            options: args.options,
            output: args.output,
        };
        return on_one(common, one, push, |_| {});
    }
    let moves = match unfinished(common) {
        Ok(moves) => moves,
        Err(error) => return failed(&error),
    };
    let mut worst = 0;
    for known in moves {
        let code = match Request::load(&known.move_id) {
            // It has done what it was asked for.
            Ok(request) if request.options.copy_only && copies(&known.state) => continue,
            Ok(request) => perform(common, push, &request, args.output),
            Err(error) => {
                eprintln!("mbcopy: {}", unknown(&known, &error));
                1
            }
        };
        worst = worst.max(code);
    }
    ExitCode::from(worst)
}

pub(super) fn cutover(common: &Common, args: OneArgs) -> ExitCode {
    on_one(common, args, Task::Push { dry_run: false }, |request| {
        request.options.copy_only = false;
        request.options.postpone_file = None;
    })
}

pub(super) fn abort(common: &Common, args: OneArgs) -> ExitCode {
    on_one(common, args, Task::Abort, |_| {})
}

/// Moves a user back, whom an earlier push has moved away from here.
pub(super) fn reverse(common: &Common, args: OneArgs) -> ExitCode {
    let request = match args.destination {
        Some(destination) => {
            Request { mailbox: args.mailbox, destination, options: args.options, reverse: true }
        }
        None => {
            let moves = match status::ask(common, args.mailbox.clone()) {
                Ok(moves) => moves.moves,
                Err(error) => return failed(&error),
            };
            let away = |m: &&v1::MoveRecord| m.role() == v1::Role::Source && m.state == state::DONE;
            let Some(known) = moves.iter().filter(away).max_by_key(|m| m.updated_unix_ms) else {
                eprintln!(
                    "mbcopy: this server knows no finished move of {} to another server\n  next: \
                     `mbcopy status {}` shows what it knows",
                    args.mailbox, args.mailbox
                );
                return ExitCode::from(USAGE);
            };
            match Request::load(&known.move_id) {
                Ok(Request { mailbox, destination, options, .. }) => {
                    let options = options.back();
                    // A partition was one of the other server.
                    let destination = without_partition(&destination).to_owned();
                    Request { mailbox, destination, options, reverse: true }
                }
                Err(error) => {
                    eprintln!("mbcopy: {}", unknown(known, &error));
                    return ExitCode::from(USAGE);
                }
            }
        }
    };
    ExitCode::from(perform(common, Task::Push { dry_run: false }, &request, args.output))
}

/// Does something with the unfinished move of one user, as it was asked for
/// then, or as it is asked for now.
fn on_one(
    common: &Common,
    args: OneArgs,
    task: Task,
    change: impl FnOnce(&mut Request),
) -> ExitCode {
    let mut request = match args.destination {
        Some(destination) => {
            Request { mailbox: args.mailbox, destination, options: args.options, reverse: false }
        }
        None => {
            let moves = match status::ask(common, args.mailbox.clone()) {
                Ok(moves) => moves.moves,
                Err(error) => return failed(&error),
            };
            let unfinished = |m: &&v1::MoveRecord| !state::is_over(&m.state) && began_here(m);
            let Some(known) = moves.iter().rfind(unfinished) else {
                let newest = moves.iter().max_by_key(|m| m.updated_unix_ms);
                let moved = newest.filter(|m| m.state != state::ABORTED && began_here(m));
                if let Some(moved) = moved {
                    return is_over(common, moved, task, args.output);
                }
                eprintln!(
                    "mbcopy: this server knows no unfinished move of {}\n  next: `mbcopy status {}` \
                     shows its last one",
                    args.mailbox, args.mailbox
                );
                if !common.is_offline() {
                    status::of_disks().iter().for_each(|line| eprintln!("  {line}"));
                }
                return ExitCode::from(USAGE);
            };
            match Request::load(&known.move_id) {
                Ok(request) => request,
                Err(error) => {
                    eprintln!("mbcopy: {}", unknown(known, &error));
                    return ExitCode::from(USAGE);
                }
            }
        }
    };
    change(&mut request);
    ExitCode::from(perform(common, task, &request, args.output))
}

/// Says that a move is over: nothing is left of it to be done, or to be given up.
fn is_over(common: &Common, moved: &v1::MoveRecord, task: Task, output: Output) -> ExitCode {
    let mailbox = moved.identity.as_ref().map(|i| i.display.as_str()).unwrap_or_default();
    let serving = match moved.role() {
        v1::Role::Source => moved.peer.clone(),
        _ => near_host(common),
    };
    let (outcome, what) = match task {
        Task::Push { .. } => (Outcome::Done, "moved already"),
        Task::Abort => (Outcome::Refused, "moved, and not put back"),
    };
    if output.json {
        let id = &moved.move_id;
        let line = serde_json::json!({
            "schema": SCHEMA, "event": "report", "outcome": outcome, "move_id": id, "mailbox": mailbox,
            "serving": serving,
        });
        let _ = writeln!(std::io::stdout(), "{line}");
    } else {
        if task == Task::Abort {
            eprintln!(
                "mbcopy: the move of {mailbox} is over: there is nothing to give up\n  next: \
                 `mbcopy reverse {mailbox}` moves the user back"
            );
        }
        let _ = writeln!(std::io::stdout(), "{mailbox}: {what}; {serving} serves the user now");
    }
    ExitCode::from(outcome.exit_code())
}

/// The moves that began here and are not over.
fn unfinished(common: &Common) -> Result<Vec<v1::MoveRecord>, Box<dyn std::error::Error>> {
    let moves = status::ask(common, String::new())?.moves.into_iter();
    Ok(moves.filter(|m| !state::is_over(&m.state) && began_here(m)).collect())
}

/// Of a move that brings a user back this server is the target.
fn began_here(known: &v1::MoveRecord) -> bool {
    let back = || Request::load(&known.move_id).is_ok_and(|request| request.reverse);
    known.role() == v1::Role::Source || back()
}

fn copies(word: &str) -> bool {
    [state::PLANNED, state::COPYING].contains(&word)
}

fn unknown(known: &v1::MoveRecord, error: &std::io::Error) -> String {
    let mailbox = known.identity.as_ref().map(|i| i.display.as_str()).unwrap_or_default();
    format!(
        "this machine does not remember how the move of {mailbox} to {} was asked for: {error}\n  \
         next: name the destination, and the options of that push",
        known.peer
    )
}

fn failed(error: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("mbcopy: {error}");
    ExitCode::FAILURE
}
