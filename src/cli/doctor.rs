//! `mbcopy doctor`: what has become of a user whose move has failed, and its repair.

use super::Common;
use super::push::{agent_there, local_agent};
use crate::doctor::diagnose::{Both, State, diagnose};
use crate::doctor::look;
use crate::doctor::plan::{NoPlan, Plan, plan};
use crate::doctor::report::Report;
use crate::doctor::seen::{Seen, Standing};
use crate::push::peer::Peer;
use crate::transport::{ConnectOptions, Destination, Session};
use crate::verify::finding::Side;
use crate::wire::v1;
use clap::Args;
use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

/// Something is wrong; the report says what.
const WRONG: u8 = 9;
/// Nothing is done: the state is not known, or needs a choice.
#[allow(dead_code)]
const REFUSED: u8 = 4;

type Error = Box<dyn std::error::Error>;

/// Arguments of `mbcopy doctor`.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// The top mailbox, with either separator: user.x, user/x, team.sales
    #[arg(required_unless_present = "all")]
    mailbox: Option<String>,
    /// The other server: an SSH destination [default: the one that records or journals name]
    #[arg(value_name = "DEST")]
    destination: Option<String>,
    /// Look at all users of both servers, and tell of those with whom something is wrong
    #[arg(long)]
    all: bool,
    /// mbcopy on the other server
    #[arg(long, value_name = "PROGRAM", default_value = "mbcopy")]
    remote_program: String,
    /// Cyrus's configuration on the other server
    #[arg(long, value_name = "FILE", default_value = "/etc/imapd.conf")]
    remote_config: String,
    /// Print one JSON document per user on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn run(common: &Common, mut args: DoctorArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    if args.all && args.destination.is_none() {
        // There is no mailbox to name.
        args.destination = args.mailbox.take();
    }
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("mbcopy: cannot start: {error}");
                return ExitCode::FAILURE;
            }
        };
    let ended = runtime.block_on(Doctor { common, args: &args }.run());
    runtime.shutdown_timeout(Duration::from_millis(200));
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("mbcopy: {error}\n  now: nothing was changed");
            ExitCode::FAILURE
        }
    }
}

struct Doctor<'a> {
    common: &'a Common,
    args: &'a DoctorArgs,
}

/// An agent, with what keeps it.
struct Agent<T> {
    peer: Peer,
    _keeps: T,
}

type Here = Agent<tokio::process::Child>;
type There = Agent<Session>;

/// A user, as both servers have him.
struct Case {
    mailbox: String,
    here: Seen,
    there: Seen,
}

impl Doctor<'_> {
    async fn run(&self) -> Result<u8, Error> {
        let role = v1::Role::Inspect;
        let (child, peer) = local_agent(self.common, role).await?;
        let mut here = Here { peer, _keeps: child };
        let mut there = match &self.args.destination {
            Some(destination) => Some(self.connect(destination, role).await?),
            None => None,
        };
        self.distinct(&here, there.as_ref())?;
        let Some(mailbox) = &self.args.mailbox else { return self.all(&mut here, &mut there).await };
        let case = self.look(mailbox, &mut here, &mut there, role).await?;
        let report = self.tell(&case, None);
        Ok(if report.wrong { WRONG } else { 0 })
    }

    async fn connect(&self, destination: &str, role: v1::Role) -> Result<There, Error> {
        let destination = Destination::parse(destination)?;
        let session = Session::connect(&destination, &ConnectOptions::from_env()).await?;
        let program = (self.args.remote_program.as_str(), self.args.remote_config.as_str());
        let peer = agent_there(&session, program, role).await?;
        Ok(There { peer, _keeps: session })
    }

    fn distinct(&self, here: &Here, there: Option<&There>) -> Result<(), Error> {
        match there {
            Some(there) if there.peer.welcome.machine_id == here.peer.welcome.machine_id => {
                Err(format!("{} is this server: name the other one", there.peer.server()).into())
            }
            _ => Ok(()),
        }
    }

    /// What both servers have; the other one is found by records and journals if it was
    /// not named.
    async fn look(
        &self,
        mailbox: &str,
        here: &mut Here,
        there: &mut Option<There>,
        role: v1::Role,
    ) -> Result<Case, Error> {
        let ask = v1::Examine { mailbox: mailbox.into(), ..v1::Examine::default() };
        let (seen, identity) = look::examine(&mut here.peer, ask, "").await?;
        if there.is_none()
            && let Some(named) = named(&seen)
        {
            let found = self.connect(&named, role).await.map_err(|error| {
                format!("the records name {named}, which cannot be asked: {error}; name it by DEST")
            })?;
            self.distinct(here, Some(&found))?;
            *there = Some(found);
        }
        let other = match there {
            Some(there) => {
                let ask = v1::Examine { name: identity.name, ..v1::Examine::default() };
                let known_as = there.peer.server().to_owned();
                look::examine(&mut there.peer, ask, host_of(&known_as)).await?.0
            }
            None => Seen { names: vec!["the other server".into()], ..Seen::default() },
        };
        let mailbox = crate::wire::printable(&identity.display);
        Ok(Case { mailbox, here: seen, there: other })
    }

    /// Says what was found.
    fn tell(&self, case: &Case, to: Option<Side>) -> Report {
        let both = Both { here: &case.here, there: &case.there };
        let diagnosis = diagnose(both);
        let plan: Result<Plan, NoPlan> = plan(both, &diagnosis, to);
        let report = Report::new(&case.mailbox, both, diagnosis, &plan);
        match serde_json::to_string(&report) {
            Ok(text) if self.args.json => println!("{text}"),
            _ => println!("{report}"),
        }
        report
    }

    /// Tells of every user with whom something is wrong.
    async fn all(&self, here: &mut Here, there: &mut Option<There>) -> Result<u8, Error> {
        let mut users: BTreeMap<String, [v1::UserState; 2]> = BTreeMap::new();
        for user in look::states(&mut here.peer).await? {
            let name = user.display.clone();
            users.entry(name).or_default()[0] = user;
        }
        if let Some(there) = there.as_mut() {
            for user in look::states(&mut there.peer).await? {
                // A user has the same internal name on both.
                let known = users.values_mut().find(|both| both[0].name == user.name);
                match known {
                    Some(both) => both[1] = user,
                    None => {
                        let name = user.display.clone();
                        users.entry(name).or_default()[1] = user;
                    }
                }
            }
        }
        let suspects: BTreeSet<String> = users
            .into_iter()
            .filter(|(_, both)| is_suspect(both))
            .map(|(name, _)| name)
            .collect();
        let mut wrong = 0;
        for name in &suspects {
            let case = self.look(name, here, there, v1::Role::Inspect).await?;
            let both = Both { here: &case.here, there: &case.there };
            if diagnose(both).state == State::Well {
                continue;
            }
            wrong += usize::from(self.tell(&case, None).wrong);
        }
        if !self.args.json {
            println!("{wrong} users with whom something is wrong");
        }
        Ok(if wrong > 0 { WRONG } else { 0 })
    }
}

/// Whether records, without a look at files, tell that something may be wrong.
fn is_suspect([here, there]: &[v1::UserState; 2]) -> bool {
    let odd = |user: &v1::UserState| user.away > 0 || user.deleted > 0 || user.unfinished;
    odd(here) || odd(there) || here.live > 0 && there.live > 0
}

/// The other server, by what this one's records and journal say.
fn named(seen: &Seen) -> Option<String> {
    let away = [Standing::Moving, Standing::Remote];
    let by_record = seen.mailboxes.iter().find(|m| away.contains(&m.standing));
    let by_record = by_record.map(|m| m.server.split('!').next().unwrap_or_default().to_owned());
    let by_journal = || Some(seen.moves.last()?.peer.clone());
    by_record.or_else(by_journal).filter(|name| !name.is_empty())
}

/// The host of an SSH destination as it is shown: `root@bw2:22`.
fn host_of(shown: &str) -> &str {
    let host = shown.rsplit('@').next().unwrap_or(shown);
    host.split(':').next().unwrap_or(host)
}
