//! `mbcopy status`: the moves that this server knows.

use super::Common;
use crate::host::offline;
use crate::moves::journal::{REPAIR, state};
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
    /// What `resume`, or the same push again, would do; empty: nothing.
    on_resume: &'static str,
    /// What `abort` would do; empty: nothing.
    on_abort: &'static str,
    /// Whether mail is held by the freeze command, and the thaw command is due.
    mail_held: bool,
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
            if !args.json {
                if moves.moves.is_empty() {
                    println!("no moves are known here");
                }
                if !common.is_offline() {
                    of_disks().iter().for_each(|line| println!("{line}"));
                }
            }
            ExitCode::from(u8::from(!moves.damaged.is_empty()))
        }
        Err(error) => {
            eprintln!("mbcopy: {error}");
            ExitCode::FAILURE
        }
    }
}

pub(super) fn ask(
    common: &Common,
    mailbox: String,
) -> Result<v1::Moves, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (_child, mut agent) = super::push::local_agent(common, v1::Role::Source).await?;
        match agent.call(Op::ListMoves(v1::ListMoves { mailbox })).await? {
            Answer::Moves(moves) => {
                for text in &moves.damaged {
                    eprintln!(
                        "mbcopy: {}\n  now: the other moves are not touched by it\n  next: the \
                         journal of the other server knows of the move, too: run its push again",
                        crate::wire::printable(text)
                    );
                }
                Ok(moves)
            }
            _ => Err("the agent answered something else".into()),
        }
    })
}

/// Where moves of old servers' disks are known, if there were any.
pub(super) fn of_disks() -> Vec<String> {
    let disks = offline::known().into_iter();
    disks
        .map(|options| format!("moves from an old server's disk are known with {options}"))
        .collect()
}

impl Line {
    fn new(record: &v1::MoveRecord) -> Self {
        let source = record.role() == v1::Role::Source;
        let [meaning, on_resume, on_abort] = match record.detail == REPAIR {
            true if !state::is_over(&record.state) => {
                ["a repair by mbcopy doctor is not over; mbcopy doctor --repair goes on", "", ""]
            }
            _ => explain(source, &record.state),
        };
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
            on_resume,
            on_abort,
            mail_held: record.mail_held && !state::is_over(&record.state),
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
        if self.mail_held {
            let hint = "mail may be held: the freeze command has been run, and the thaw command \
                        is due; resume and abort run it";
            write!(f, "\n  {hint}")?;
        }
        for (command, does) in [("resume", self.on_resume), ("abort", self.on_abort)] {
            if !does.is_empty() {
                write!(f, "\n  {command}: {does}")?;
            }
        }
        Ok(())
    }
}

/// What a state means, what resume would do, and what abort would do.
fn explain(source: bool, word: &str) -> [&'static str; 3] {
    const ON_SOURCE: &str = "is done on the source";
    match word {
        state::PLANNED | state::COPYING if source => [
            "this server serves the user and is unchanged",
            "goes on with what was copied",
            "removes the copies on the target",
        ],
        state::PUBLISHING if source => [
            "this server serves the user; what the target has is in the target's journal",
            "asks the target, and goes on",
            "takes the user off the target, and removes the copies",
        ],
        state::ROUTING if source => [
            "the target has the user; the route may lead to either server",
            "changes the route, and goes on",
            "brings the route back and takes the user off the target, unless mail has come there",
        ],
        state::ROUTED if source => [
            "the target serves the user; this server's copy is not put away",
            "puts it away",
            "brings the route back and takes the user off the target, unless mail has come there",
        ],
        state::RETIRING | state::RETIRED if source => [
            "the target serves the user; this server's copy is being put away",
            "puts it away completely",
            "refuses: only a reverse move leads back",
        ],
        state::PLANNED | state::COPYING | state::PREPARED => [
            "nobody sees anything of the user here; copies of him are in the stage",
            ON_SOURCE,
            ON_SOURCE,
        ],
        state::PUBLISHING | state::UNPUBLISHING => [
            "directories of the user are being moved; mailboxes.db tells whether he is here",
            ON_SOURCE,
            ON_SOURCE,
        ],
        state::PUBLISHED | state::ROUTING | state::ROUTED => [
            "the user is here, whole; the source's journal tells whether it still serves him",
            ON_SOURCE,
            ON_SOURCE,
        ],
        state::DONE if source => ["the target serves the user; this server keeps his copy", "", ""],
        state::DONE => ["this server serves the user", "", ""],
        state::PURGED => ["the target serves the user; this server keeps nothing of him", "", ""],
        state::ABORTED => ["the source serves the user", "", ""],
        _ => ["a state that this version of mbcopy does not know", "", ""],
    }
}
