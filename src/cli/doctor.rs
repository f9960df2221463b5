//! `mbcopy doctor`: what has become of a user whose move has failed, and its repair.

use super::push::{Lifeline, agent_there, local_agent};
use super::{Asking, Common};
use crate::doctor::diagnose::{Diagnosis, State, diagnose};
use crate::doctor::look;
use crate::doctor::plan::{NoPlan, Plan, plan};
use crate::doctor::repair::{self, Case, Peers, RepairError, repair};
use crate::doctor::report::{Report, SCHEMA};
use crate::doctor::seen::{Seen, Standing};
use crate::push::peer::Peer;
use crate::transport::{ConnectOptions, Destination, Session};
use crate::verify::finding::Side;
use crate::wire::v1;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// Something is wrong; the report says what.
const WRONG: u8 = 9;
/// Nothing is done: the state is not known, or needs a choice.
const REFUSED: u8 = 4;
/// The repair stopped in between: the same command goes on.
const UNFINISHED: u8 = 5;

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
    /// Put it right, so that he is whole on one server; what is on the other one is put
    /// aside and kept
    #[arg(long, conflicts_with = "all")]
    repair: bool,
    /// Where he is to be then: `source` is the server that had him before, `target` the one
    /// that he was to be moved to [default: source, or where that is not possible any more,
    /// target]
    #[arg(long, value_name = "SIDE", requires = "repair")]
    to: Option<To>,
    /// Agree to everything that a repair would ask
    #[arg(short, long, requires = "repair")]
    yes: bool,
    #[command(flatten)]
    asking: Asking,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum To {
    Source,
    Target,
}

impl To {
    /// Which server that is.
    fn side(self, diagnosis: &Diagnosis) -> Side {
        match self {
            To::Source => diagnosis.origin,
            To::Target => diagnosis.origin.other(),
        }
    }
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
            eprintln!("mbcopy: {error}");
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

type Here = Agent<Lifeline>;
type There = Agent<Session>;

impl Doctor<'_> {
    async fn run(&self) -> Result<u8, Error> {
        let role = if self.args.repair { v1::Role::Repair } else { v1::Role::Inspect };
        let (lifeline, peer) = local_agent(self.common, role).await?;
        let mut here = Here { peer, _keeps: lifeline };
        let mut there = match &self.args.destination {
            Some(destination) => Some(self.connect(destination, role).await?),
            None => None,
        };
        self.distinct(&here, there.as_ref())?;
        let Some(mailbox) = &self.args.mailbox else {
            return self.all(&mut here, &mut there).await;
        };
        let ask = v1::Examine { mailbox: mailbox.clone(), ..v1::Examine::default() };
        let case = self.look(ask, &mut here, &mut there, role).await?;
        let diagnosis = diagnose(case.both());
        let to = self.args.to.map(|to| to.side(&diagnosis));
        let plan = match plan(case.both(), &diagnosis, to) {
            Ok(_) | Err(NoPlan::Other(_)) if needs_both(&diagnosis) && there.is_none() => {
                Err(NoPlan::Other(format!(
                    "a repair needs both servers: name the other one: mbcopy doctor {mailbox} DEST"
                )))
            }
            plan => plan,
        };
        let report = self.tell(&case, diagnosis, &plan);
        match (plan, there.as_mut()) {
            (Ok(plan), Some(there)) if self.args.repair => {
                self.repair(&case, &plan, to, &mut here, there).await
            }
            (Err(NoPlan::Other(_)), _) if self.args.repair => Ok(REFUSED),
            _ => Ok(if report.wrong { WRONG } else { 0 }),
        }
    }

    async fn repair(
        &self,
        case: &Case,
        plan: &Plan,
        to: Option<Side>,
        here: &mut Here,
        there: &mut There,
    ) -> Result<u8, Error> {
        if !plan.asks.is_empty() && !self.args.yes && !agrees()? {
            eprintln!("mbcopy: nothing was changed: it needs --yes");
            return Ok(REFUSED);
        }
        let destination = host_of(there.peer.server()).to_owned();
        let mut peers =
            Peers { here: &mut here.peer, there: &mut there.peer, destination: &destination };
        let quiet = self.args.asking.json || self.common.quiet;
        let tell = |text: &str| {
            if !quiet {
                eprintln!("{text}");
            }
        };
        let (done, push) = match repair(&mut peers, &case.name, to, &tell).await {
            Ok(done) => done,
            Err(error) => {
                eprintln!("mbcopy: {error}");
                if let RepairError::Peer(e) = &error
                    && let Some((state, advice)) = e.guidance()
                {
                    let [state, advice] = [state, advice].map(crate::wire::printable);
                    eprintln!("  now: {state}\n  next: {advice}");
                }
                eprintln!("  next: the same command goes on; mbcopy doctor says how far it is");
                return Ok(UNFINISHED);
            }
        };
        let serving = case.both().on(plan.right).server();
        let mut text = match plan.right_has_him(case.both()) {
            true => format!("{}: repaired; {serving} has him whole", case.mailbox),
            false => format!("{}: repaired; nothing names him any more", case.mailbox),
        };
        let mut separator = ':';
        for (count, what) in [
            (Some(done.records), "records made right"),
            (Some(done.messages), "messages carried over"),
            (Some(done.put_aside), "mailboxes put aside"),
            (Some(done.listed).filter(|n| *n > 0), "in the list of the Murder"),
            (Some(done.forgotten).filter(|n| *n > 0), "forgotten by it"),
        ] {
            if let Some(count) = count {
                text.push_str(&format!("{separator} {count} {what}"));
                separator = ',';
            }
        }
        match self.args.asking.json {
            true => println!(
                "{}",
                serde_json::json!({
                    "schema": SCHEMA, "event": "repaired", "mailbox": case.mailbox,
                    "server": serving, "records": done.records, "messages": done.messages,
                    "mailboxes_made": done.mailboxes, "put_aside": done.put_aside, "push": push,
                    "listed": done.listed, "forgotten": done.forgotten,
                })
            ),
            false => println!("{text}"),
        }
        if push { self.push(case, plan.right) } else { Ok(0) }
    }

    /// The move itself, now that nothing is in its way.
    fn push(&self, case: &Case, right: Side) -> Result<u8, Error> {
        let destination = self.args.destination.clone().or_else(|| named(&case.here));
        let (Some(destination), Side::Here) = (destination, right) else {
            eprintln!(
                "mbcopy: push him from {}: mbcopy push {} {}",
                case.there.server(),
                case.mailbox,
                case.here.server()
            );
            return Ok(UNFINISHED);
        };
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(["push", &case.mailbox, &destination]);
        command.args(["--remote-program", &self.args.asking.remote_program]);
        command.args(["--remote-config", &self.args.asking.remote_config]);
        command.arg("--config").arg(&self.common.config);
        if let Some(directory) = &self.common.cyrus_bin {
            command.arg("--cyrus-bin").arg(directory);
        }
        if self.args.asking.json {
            command.arg("--json");
        }
        let status = command.status()?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(UNFINISHED))
    }

    async fn connect(&self, destination: &str, role: v1::Role) -> Result<There, Error> {
        let destination = Destination::parse(destination)?;
        let session = Session::connect(&destination, &ConnectOptions::from_env()).await?;
        let program = self.args.asking.program();
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
        ask: v1::Examine,
        here: &mut Here,
        there: &mut Option<There>,
        role: v1::Role,
    ) -> Result<Case, Error> {
        if there.is_none() {
            let (seen, identity) = look::examine(&mut here.peer, ask.clone(), "").await?;
            let mailbox = crate::wire::printable(&identity.display);
            let Some(named) = named(&seen) else {
                if seen.any(Standing::Deleted) {
                    return Err(format!(
                        "{mailbox} is deleted here, but his files are not: name the server that \
                         he may have gone to: mbcopy doctor {mailbox} DEST"
                    )
                    .into());
                }
                let there = Seen { names: vec!["the other server".into()], ..Seen::default() };
                return Ok(Case { mailbox, name: identity.name, here: seen, there });
            };
            let found = self.connect(&named, role).await.map_err(|error| {
                format!("the records name {named}, which cannot be asked: {error}; name it by DEST")
            })?;
            self.distinct(here, Some(&found))?;
            *there = Some(found);
        }
        let there = there.as_mut().ok_or("the other server is not connected")?;
        let destination = host_of(there.peer.server()).to_owned();
        let mut peers =
            Peers { here: &mut here.peer, there: &mut there.peer, destination: &destination };
        Ok(repair::look(&mut peers, ask).await?)
    }

    /// Says what was found.
    fn tell(&self, case: &Case, diagnosis: Diagnosis, plan: &Result<Plan, NoPlan>) -> Report {
        let report = Report::new(&case.mailbox, case.both(), diagnosis, plan);
        match serde_json::to_string(&report) {
            Ok(text) if self.args.asking.json => println!("{text}"),
            _ => println!("{report}"),
        }
        report
    }

    /// Tells of every user with whom something is wrong.
    async fn all(&self, here: &mut Here, there: &mut Option<There>) -> Result<u8, Error> {
        // A user has the same internal name on both.
        let mut users: BTreeMap<Bytes, [v1::UserState; 2]> = BTreeMap::new();
        let mut trouble = false;
        for user in self.states(&mut here.peer, &mut trouble).await? {
            let name = user.name.clone();
            users.entry(name).or_default()[0] = user;
        }
        if let Some(there) = there.as_mut() {
            for user in self.states(&mut there.peer, &mut trouble).await? {
                let name = user.name.clone();
                users.entry(name).or_default()[1] = user;
            }
        }
        users.retain(|_, both| is_suspect(both));
        let mut wrong = 0;
        for name in users.keys() {
            let ask = repair::named(name);
            let case = self.look(ask, here, there, v1::Role::Inspect).await?;
            let diagnosis = diagnose(case.both());
            if diagnosis.state == State::Well {
                continue;
            }
            let plan = plan(case.both(), &diagnosis, None);
            wrong += usize::from(self.tell(&case, diagnosis, &plan).wrong);
        }
        if !self.args.asking.json {
            println!("{wrong} users with whom something is wrong");
        }
        Ok(if wrong > 0 || trouble { WRONG } else { 0 })
    }

    /// Every user of a server; `trouble` is set if a Murder's list cannot be read.
    async fn states(
        &self,
        peer: &mut Peer,
        trouble: &mut bool,
    ) -> Result<Vec<v1::UserState>, Error> {
        let (users, text) = look::states(peer).await?;
        if !text.is_empty() {
            *trouble = true;
            eprintln!("mbcopy: {}: {text}", peer.welcome.servername);
        }
        Ok(users)
    }
}

/// Whether nothing is done as long as only one server is asked.
fn needs_both(diagnosis: &Diagnosis) -> bool {
    matches!(diagnosis.state, State::ListWrong | State::ListStale)
}

/// Whether records, without a look at files, tell that something may be wrong.
fn is_suspect([here, there]: &[v1::UserState; 2]) -> bool {
    let odd = |user: &v1::UserState| {
        let counts = [user.away, user.deleted, user.unlisted, user.listed_only];
        user.unfinished || counts.iter().any(|count| *count > 0)
    };
    odd(here) || odd(there) || here.live > 0 && there.live > 0
}

/// The other server, by what this one's records, its journal and a Murder's list say.
fn named(seen: &Seen) -> Option<String> {
    let away = [Standing::Moving, Standing::Remote, Standing::PutAway];
    let by_record = seen.mailboxes.iter().find(|m| away.contains(&m.standing));
    let by_record = by_record.map(|m| m.server.split('!').next().unwrap_or_default().to_owned());
    let by_journal = || Some(seen.unfinished()?.peer.clone());
    let by_list = || {
        let entries = &seen.list.as_ref()?.entries;
        entries.iter().map(|e| e.server.clone()).find(|server| !seen.is_called(server))
    };
    by_record.or_else(by_journal).or_else(by_list).filter(|name| !name.is_empty())
}

/// The host of an SSH destination as it is shown: `root@bw2:22`.
fn host_of(shown: &str) -> &str {
    let host = shown.rsplit('@').next().unwrap_or(shown);
    host.split(':').next().unwrap_or(host)
}

/// Asks on a terminal; without one nobody agrees.
fn agrees() -> std::io::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("go on? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
