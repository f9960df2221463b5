//! `mbcopy agent`: one side of a move.

use super::Common;
use crate::agent::{self, Handler, Link, lanes, privileges};
use crate::host::offline::Disk;
use crate::host::{self, Host};
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use crate::{inspect, repair, source, target};
use clap::{Args, ValueEnum};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::ExitCode;

/// Arguments of `mbcopy agent`.
#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// What this agent may be: a side of a move, one that only tells what is there, or
    /// one that puts right what a failed move has left; may be given several times
    #[arg(long, required_unless_present = "lane")]
    role: Vec<Role>,
    /// Serve only mailboxes that match; may be given several times
    #[arg(long, value_name = "PATTERN", default_value = "*")]
    allow: Vec<String>,
    /// Hand the standard input over to the agent that waits under this name: one more
    /// channel for a long way. mbcopy itself starts this
    #[arg(long, value_name = "NAME", hide = true, conflicts_with = "role")]
    lane: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    Source,
    Target,
    Inspect,
    Repair,
}

impl Role {
    fn handler(self, host: Host) -> Box<dyn Handler> {
        match self {
            Role::Source => Box::new(source::Source::new(host)),
            Role::Target => Box::new(target::Target::new(host)),
            Role::Inspect => Box::new(inspect::Inspector::new(host)),
            Role::Repair => Box::new(repair::Repairer::new(host)),
        }
    }

    /// The role that a coordinator asks for.
    fn asked(hello: &v1::Hello) -> Option<Role> {
        match hello.role() {
            v1::Role::Source => Some(Role::Source),
            v1::Role::Target => Some(Role::Target),
            v1::Role::Inspect => Some(Role::Inspect),
            v1::Role::Repair => Some(Role::Repair),
            v1::Role::Unspecified => None,
        }
    }
}

/// An agent that takes the one of its roles that the coordinator asks for.
struct Agent {
    host: Host,
    roles: Vec<Role>,
    handler: Option<Box<dyn Handler>>,
}

impl Handler for Agent {
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure> {
        let role = Role::asked(hello).filter(|role| self.roles.contains(role));
        let role = role.ok_or_else(|| {
            let names = |role: &Role| format!("{role:?}").to_lowercase();
            let ours: Vec<String> = self.roles.iter().map(names).collect();
            v1::Failure::new(
                v1::failure::Kind::Refused,
                format!("this agent may only be: {}", ours.join(", ")),
                "nothing was changed",
                "if authorized_keys confines the key, its command may have --role several times: \
                 --role target --role inspect",
            )
        })?;
        let handler = self.handler.insert(role.handler(self.host.clone()));
        handler.welcome(hello)
    }

    fn handle(&mut self, op: Op, link: &mut Link) -> Result<Answer, v1::Failure> {
        match &mut self.handler {
            Some(handler) => handler.handle(op, link),
            None => Err(agent::protocol("a request came before the greeting")),
        }
    }
}

pub(super) fn run(common: &Common, args: AgentArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    // Pipes of 64 KiB would cut each frame of bulk data into pieces.
    for pipe in [std::io::stdin().as_fd(), std::io::stdout().as_fd()] {
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, 1 << 20);
    }
    let confined = std::env::var("SSH_ORIGINAL_COMMAND").ok();
    let served = match args.lane.clone().or_else(|| asked_lane(&confined?)) {
        Some(name) => lanes::hand_over(&name, std::io::stdin(), &mut std::io::stdout())
            .map_err(|e| format!("no agent takes this channel: {e}").into()),
        None => serve(common, args),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The coordinator shows this when the connection breaks.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// The lane that the coordinator asks for by a key which authorized_keys confines to an agent.
fn asked_lane(command: &str) -> Option<String> {
    let mut words = command.split_whitespace().skip_while(|word| *word != "--lane");
    words.nth(1).map(str::to_owned)
}

fn serve(common: &Common, args: AgentArgs) -> Result<(), Box<dyn std::error::Error>> {
    let host = match Disk::new(common.source_conf.as_deref(), common.source_root.as_deref()) {
        Some(disk) => {
            if args.role.contains(&Role::Target) {
                return Err("a disk on which nothing runs can only be a source".into());
            }
            disk.open(args.allow)?
        }
        None => {
            let config = host::load_config(&common.config)?;
            privileges::become_user(&config.cyrus_user())
                .map_err(|e| format!("cannot become {}: {e}", config.cyrus_user()))?;
            Host::new(common.config.clone(), config, common.cyrus_bin.clone(), args.allow)
        }
    };
    // Unbuffered, unlike the standard library's: frames are large and whole.
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let output = File::from(std::io::stdout().as_fd().try_clone_to_owned()?);
    agent::serve(input, output, &mut Agent { host, roles: args.role, handler: None })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::config::{Config, Defaults};

    #[test]
    fn a_confined_key_may_open_lanes() {
        let lane = asked_lane("mbcopy agent --lane mbcopy-80f31a91a181d80c");
        assert_eq!(lane.unwrap(), "mbcopy-80f31a91a181d80c");
        assert_eq!(asked_lane("mbcopy agent --role target --config /etc/imapd.conf"), None);
        assert_eq!(asked_lane("mbcopy agent --lane"), None);
    }

    #[test]
    fn an_agent_takes_only_the_roles_that_it_was_given() {
        let config = Config::parse(b"configdirectory: /nowhere\n", Defaults::V3, &mut |_| {
            Err("nothing is included".into())
        });
        let host = Host::new("/nowhere".into(), config.unwrap(), None, vec!["*".into()]);
        let hello = |role: v1::Role| v1::Hello { role: role.into(), ..v1::Hello::default() };
        let mut agent = Agent { host, roles: vec![Role::Target, Role::Inspect], handler: None };
        assert!(agent.welcome(&hello(v1::Role::Inspect)).is_ok());
        assert!(agent.welcome(&hello(v1::Role::Target)).is_ok());
        let refused = agent.welcome(&hello(v1::Role::Source)).unwrap_err();
        assert_eq!(refused.text, "this agent may only be: target, inspect");
        assert!(agent.welcome(&hello(v1::Role::Unspecified)).is_err());
    }
}
