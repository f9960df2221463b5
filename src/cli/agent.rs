//! `mbcopy agent`: one side of a move.

use super::Common;
use crate::agent::{self, privileges};
use crate::host::{self, Host};
use crate::{source, target};
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Arguments of `mbcopy agent`.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Which side of the move this agent is
    #[arg(long)]
    role: Role,
    /// Serve only mailboxes that match; may be given several times
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    allow: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Source,
    Target,
}

pub(super) fn run(common: &Common, args: AgentArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    match serve(common, args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The coordinator shows this when the connection breaks.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(common: &Common, args: AgentArgs) -> Result<(), Box<dyn std::error::Error>> {
    let config = host::load_config(&common.config)?;
    privileges::become_user(&config.cyrus_user())
        .map_err(|e| format!("cannot become {}: {e}", config.cyrus_user()))?;
    let host = Host::new(common.config.clone(), config, common.cyrus_bin.clone(), args.allow);
    // Unbuffered, unlike the standard library's: frames are large and whole.
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    match args.role {
        Role::Source => agent::serve(input, output, &mut source::Source::new(host))?,
        Role::Target => agent::serve(input, output, &mut target::Target::new(host))?,
    }
    Ok(())
}
