//! `mbcopy purge`: removes what this server keeps of users that were moved away.

use super::push::{USAGE, duration, local_agent};
use super::request::Request;
use super::{Common, status};
use crate::moves::journal::{now_ms, state};
use crate::push::report::SCHEMA;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `mbcopy purge`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false, args = ["mailbox", "older_than", "due"])]
pub(super) struct PurgeArgs {
    /// The user whose kept copies are removed
    mailbox: Option<String>,
    /// All kept copies of moves that ended longer ago than this
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<Duration>,
    /// All kept copies that were pushed with --purge-after, and whose time has come
    #[arg(long)]
    due: bool,
    /// Print one JSON document per move
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    schema: u32,
    move_id: &'a str,
    mailbox: &'a str,
    peer: &'a str,
    purged: bool,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) fn run(common: &Common, args: PurgeArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    let moves = match status::ask(common, args.mailbox.clone().unwrap_or_default()) {
        Ok(moves) => moves.moves,
        Err(error) => {
            eprintln!("mbcopy: {error}");
            return ExitCode::FAILURE;
        }
    };
    let chosen: Vec<_> = moves.into_iter().filter(|m| args.chooses(m)).collect();
    if chosen.is_empty() {
        if let Some(mailbox) = &args.mailbox {
            eprintln!("mbcopy: this server keeps nothing of {mailbox}");
            return ExitCode::from(USAGE);
        }
        return ExitCode::SUCCESS;
    }
    match purge(common, &chosen, args.json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mbcopy: {error}");
            ExitCode::FAILURE
        }
    }
}

impl PurgeArgs {
    fn chooses(&self, known: &v1::MoveRecord) -> bool {
        if known.role() != v1::Role::Source || known.state != state::DONE {
            return false;
        }
        let asked = || Request::load(&known.move_id).ok()?.options.purge_after;
        let age = match (self.due, self.older_than) {
            (true, _) => asked(),
            (false, older_than) => Some(older_than.unwrap_or_default()),
        };
        let since = Duration::from_millis((now_ms() - known.updated_unix_ms).max(0) as u64);
        age.is_some_and(|age| since >= age)
    }
}

/// Purges each; whether all were.
fn purge(
    common: &Common,
    chosen: &[v1::MoveRecord],
    json: bool,
) -> Result<bool, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_child, mut agent) = local_agent(common, v1::Role::Source).await?;
        let mut all = true;
        for known in chosen {
            let op = Op::Purge(v1::Purge { move_id: known.move_id.clone() });
            let answer = agent.call(op).await;
            let bytes = match &answer {
                Ok(Answer::Purged(purged)) => purged.bytes,
                _ => 0,
            };
            let error = answer.err().map(|e| e.to_string());
            all &= error.is_none();
            if error.is_none() {
                Request::forget(&known.move_id);
            }
            let mailbox = known.identity.as_ref().map(|i| i.display.as_str()).unwrap_or_default();
            let line = Line {
                schema: SCHEMA,
                move_id: &known.move_id,
                mailbox,
                peer: &known.peer,
                purged: error.is_none(),
                bytes,
                error,
            };
            match serde_json::to_string(&line) {
                Ok(text) if json => println!("{text}"),
                _ => println!("{line}"),
            }
        }
        Ok(all)
    })
}

impl std::fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Line { mailbox, peer, move_id, bytes, error, .. } = self;
        match error {
            None => write!(
                f,
                "{mailbox}: what was kept of the move to {peer} ({move_id}) is removed, {} freed",
                HumanBytes(*bytes)
            ),
            Some(error) => {
                write!(f, "{mailbox}: what is kept of the move to {peer} stays: {error}")
            }
        }
    }
}
