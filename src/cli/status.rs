//! `mbcopy status`: the moves that this server knows.

use super::Common;
use crate::moves::journal::state;
use crate::push::report::SCHEMA;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use clap::Args;
use serde::Serialize;
use std::process::ExitCode;

/// Arguments of `mbcopy status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Only the moves of this mailbox
    mailbox: Option<String>,
    /// Print one JSON document per move
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    schema: u32,
    move_id: String,
    mailbox: String,
    role: &'static str,
    peer: String,
    state: String,
    since: String,
    meaning: &'static str,
    on_push: &'static str,
}

pub(super) fn run(common: &Common, args: StatusArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    match ask(common, args.mailbox.unwrap_or_default()) {
        Ok(moves) => {
            for line in moves.moves.iter().map(Line::new) {
                match serde_json::to_string(&line) {
                    Ok(json) if args.json => println!("{json}"),
                    _ => println!("{line}"),
                }
            }
            if moves.moves.is_empty() && !args.json {
                println!("no moves are known here");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("mbcopy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ask(common: &Common, mailbox: String) -> Result<v1::Moves, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_child, mut agent) = super::push::local_agent(common).await?;
        match agent.call(Op::ListMoves(v1::ListMoves { mailbox })).await? {
            Answer::Moves(moves) => Ok(moves),
            _ => Err("the agent answered something else".into()),
        }
    })
}

impl Line {
    fn new(record: &v1::MoveRecord) -> Self {
        let source = record.role() == v1::Role::Source;
        let (meaning, on_push) = explain(source, &record.state);
        let since = jiff::Timestamp::from_millisecond(record.updated_unix_ms);
        Self {
            schema: SCHEMA,
            move_id: record.move_id.clone(),
            mailbox: record.identity.as_ref().map(|i| i.display.clone()).unwrap_or_default(),
            role: if source { "source" } else { "target" },
            peer: record.peer.clone(),
            state: record.state.clone(),
            since: since.map(|t| format!("{t:.0}")).unwrap_or_default(),
            meaning,
            on_push,
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let direction = if self.role == "source" { "to" } else { "from" };
        write!(
            f,
            "{} {direction} {}: {} since {} (move {})\n  {}",
            self.mailbox, self.peer, self.state, self.since, self.move_id, self.meaning
        )?;
        if self.on_push.is_empty() { Ok(()) } else { write!(f, "\n  {}", self.on_push) }
    }
}

/// What a state means, and what the same push would do.
fn explain(source: bool, word: &str) -> (&'static str, &'static str) {
    match word {
        state::PLANNED | state::COPYING if source => (
            "this server serves the user and is unchanged",
            "the same push goes on with what was copied",
        ),
        state::PUBLISHING | state::ROUTING if source => (
            "this server serves the user; what the target has is in the target's journal",
            "the same push asks the target, and goes on",
        ),
        state::ROUTED | state::RETIRING | state::RETIRED if source => (
            "the target serves the user; this server's copy is not put away completely",
            "the same push puts it away",
        ),
        state::PLANNED | state::COPYING | state::PREPARED => (
            "nobody sees anything of the user here; copies of him are in the stage",
            "the same push, on the source, uses them",
        ),
        state::PUBLISHING | state::UNPUBLISHING => (
            "directories of the user are being moved; mailboxes.db tells whether he is here",
            "the same push, on the source, finds out",
        ),
        state::PUBLISHED | state::ROUTING | state::ROUTED => (
            "the user is here, whole; the source's journal tells whether it still serves him",
            "the same push, on the source, goes on",
        ),
        state::DONE if source => ("the target serves the user; this server keeps his copy", ""),
        state::DONE => ("this server serves the user", ""),
        state::ABORTED => ("the source serves the user", ""),
        _ => ("a state that this version of mbcopy does not know", ""),
    }
}
