//! `mbcopy push`: moves one user.

use super::Common;
use super::console::{Console, Style};
use super::request::Request;
use crate::cyrus::name::PartitionName;
use crate::moves::Phase;
use crate::moves::journal::state;
use crate::push::bandwidth::Bandwidth;
use crate::push::lanes::Lanes;
use crate::push::monitor::{Event, Monitor};
use crate::push::peer::Peer;
use crate::push::report::{Failure, Outcome, Report};
use crate::push::{self, Interrupt, Options, local};
use crate::transport::{ConnectOptions, Destination, Session, upload};
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The exit code of a command that cannot be understood.
pub(super) const USAGE: u8 = 2;

/// Arguments of `mbcopy push`.
#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The top mailbox, with either separator: user.x, user/x, team.sales
    mailbox: String,
    /// Where to: an SSH destination, and optionally a partition there
    #[arg(value_name = "DEST[:PARTITION]")]
    destination: String,
    #[command(flatten)]
    options: MoveOptions,
    /// Print what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

#[cfg(test)]
impl PushArgs {
    /// What a test compares.
    pub(super) fn options_as_json(&self) -> serde_json::Value {
        serde_json::to_value(&self.options).unwrap()
    }
}

/// How a move is done.
#[derive(Debug, Clone, Args, Serialize, Deserialize)]
pub(super) struct MoveOptions {
    /// What to do about messages that cannot be read
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    bad_messages: BadMessages,
    /// What is on the source's partition OLD goes to the target's NEW, whatever DEST
    /// says; may be given several times
    #[arg(long, value_name = "OLD=NEW", value_parser = partition_pair)]
    #[serde(default)]
    pub(super) partition_map: Vec<(String, String)>,
    /// Stop before the freeze; push again, or cutover, does the rest
    #[arg(long)]
    pub(super) copy_only: bool,
    /// Hold a move that is ready before its freeze, as long as FILE exists
    #[arg(long, value_name = "FILE")]
    pub(super) postpone_file: Option<PathBuf>,
    /// Let `mbcopy purge --due` remove what is kept here, this long after the move
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) purge_after: Option<Duration>,
    /// Longest time that the user may be frozen
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    max_freeze: Duration,
    /// Between backends of a Murder: how long frontends may need to learn of the change;
    /// who still comes to the old backend waits so long, and is then sent away to come
    /// again, within --max-freeze
    #[arg(long, value_name = "TIME", default_value = "300ms", value_parser = duration)]
    #[serde(default)]
    frontend_lag: Duration,
    /// Most rounds of copying before the freeze is tried
    #[arg(long, value_name = "N", default_value_t = 5)]
    max_rounds: u32,
    /// Command that points the world at the new server; it is told where by
    /// MBCOPY_* in its environment and by JSON on its input, and must be idempotent
    #[arg(long, value_name = "COMMAND")]
    route_command: Option<String>,
    /// How long the route command may take
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    route_timeout: Duration,
    /// Command that has the MTA hold the user's mail, run before each freeze; it is told
    /// as the route command is, and must be idempotent
    #[arg(long, value_name = "COMMAND", requires = "thaw_command")]
    #[serde(default)]
    freeze_command: Option<String>,
    /// Command that lets the mail flow again, run after the thaw, and by `resume` and
    /// `abort` if it could not be run then; it must be idempotent
    #[arg(long, value_name = "COMMAND", requires = "freeze_command")]
    #[serde(default)]
    thaw_command: Option<String>,
    /// How long the freeze command, and the thaw command, may take
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    #[serde(default = "hold_timeout")]
    hold_timeout: Duration,
    /// What the old server does with clients and deliveries that come after the move
    #[arg(long, value_name = "WHAT", default_value = "defer")]
    #[serde(default)]
    pub(super) old_server: OldServer,
    /// Limit of the copy, in bytes per second, or with a K, M or G of 1024; 0: none
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = bytes)]
    pub(super) bwlimit: u64,
    /// Let other users of both servers go first: the copy has a lower priority, and the disk
    /// gets each message at once instead of many in a burst. A freeze is as short as ever
    #[arg(long)]
    #[serde(default)]
    pub(super) nice: bool,
    /// Link messages on the target that others have, too, who are moved with the same name
    /// here: of one delivery to several users; `bulk` gives the name of its run
    #[arg(long, value_name = "NAME")]
    #[serde(default)]
    pub(super) share: Option<String>,
    /// Keep --bwlimit together with all moves of this machine that have the same file
    #[arg(long, value_name = "FILE")]
    #[serde(default)]
    pub(super) bwlimit_file: Option<PathBuf>,
    /// mbcopy on the target
    #[arg(long, value_name = "PROGRAM", default_value = "mbcopy")]
    remote_program: String,
    /// Where that is missing, or does not understand this one, bring FILE there first;
    /// what `make static` makes starts on every server
    #[arg(long, value_name = "FILE", requires = "remote_program")]
    upload: Option<PathBuf>,
    /// Cyrus's configuration on the target
    #[arg(long, value_name = "FILE", default_value = "/etc/imapd.conf")]
    remote_config: String,
}

impl MoveOptions {
    /// mbcopy and Cyrus's configuration on the target.
    pub(super) fn remote(&self) -> (String, String) {
        (self.remote_program.clone(), self.remote_config.clone())
    }

    /// Those of a move back of who was moved with these.
    pub(super) fn back(mut self) -> Self {
        (self.copy_only, self.postpone_file) = (false, None);
        // It was said of the old server, not of the one that is left now.
        self.old_server = OldServer::default();
        self.partition_map.iter_mut().for_each(|(old, new)| std::mem::swap(old, new));
        self
    }

    /// The same, as a command line has them.
    pub(super) fn to_arguments(&self) -> Vec<OsString> {
        let time = |time: Duration| format!("{}ms", time.as_millis());
        let mut arguments: Vec<OsString> = Vec::new();
        let mut put = |option: &str, value: OsString| {
            let mut argument = OsString::from(format!("--{option}="));
            argument.push(value);
            arguments.push(argument);
        };
        if self.bad_messages == BadMessages::Skip {
            put("bad-messages", "skip".into());
        }
        for (old, new) in &self.partition_map {
            put("partition-map", format!("{old}={new}").into());
        }
        if let Some(file) = &self.postpone_file {
            put("postpone-file", file.into());
        }
        if let Some(after) = self.purge_after {
            put("purge-after", time(after).into());
        }
        put("max-freeze", time(self.max_freeze).into());
        put("frontend-lag", time(self.frontend_lag).into());
        put("max-rounds", self.max_rounds.to_string().into());
        if let Some(command) = &self.route_command {
            put("route-command", command.into());
        }
        put("route-timeout", time(self.route_timeout).into());
        for (option, command) in
            [("freeze-command", &self.freeze_command), ("thaw-command", &self.thaw_command)]
        {
            if let Some(command) = command {
                put(option, command.into());
            }
        }
        put("hold-timeout", time(self.hold_timeout).into());
        match self.old_server {
            OldServer::Defer => {}
            OldServer::Forward => put("old-server", "forward".into()),
            OldServer::Refuse => put("old-server", "refuse".into()),
        }
        put("bwlimit", self.bwlimit.to_string().into());
        if let Some(file) = &self.bwlimit_file {
            put("bwlimit-file", file.into());
        }
        if let Some(run) = &self.share {
            put("share", run.into());
        }
        put("remote-program", self.remote_program.clone().into());
        put("remote-config", self.remote_config.clone().into());
        if let Some(file) = &self.upload {
            put("upload", file.into());
        }
        if self.nice {
            arguments.push("--nice".into());
        }
        if self.copy_only {
            arguments.push("--copy-only".into());
        }
        arguments
    }
}

/// How a move is told.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Output {
    /// Print one JSON document per line on standard output
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
enum BadMessages {
    /// Name them and change nothing
    Refuse,
    /// Go on without them, and name them in the report
    Skip,
}

/// What an old server does with those who come late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum OldServer {
    /// Defer deliveries, and send clients away
    #[default]
    Defer,
    /// Pass on to the new server what comes, by Cyrus's own proxying
    Forward,
    /// Say that there is no such user
    Refuse,
}

fn hold_timeout() -> Duration {
    Duration::from_secs(30)
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::Span = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    let days = jiff::SpanRelativeTo::days_are_24_hours();
    let exact = span.to_duration(days).map_err(|e| e.to_string())?;
    Duration::try_from(exact).map_err(|e| e.to_string())
}

/// A number of bytes: `800`, `30M`, `1.5G`.
fn bytes(text: &str) -> Result<u64, String> {
    let wanted = || "wanted: a number of bytes, or one with K, M or G".to_owned();
    let unit = text.chars().last().and_then(|last| "KMG".find(last.to_ascii_uppercase()));
    let Some(unit) = unit else { return text.parse().map_err(|_| wanted()) };
    let number = text.get(..text.len() - 1).and_then(|number| number.parse::<f64>().ok());
    let all = number.map(|number| number * 1024_f64.powi(unit as i32 + 1));
    // What is more than nothing, and less than a byte, would mean no limit.
    let all = all.filter(|all| *all == 0.0 || (1.0..1e18).contains(all));
    all.map(|all| all as u64).ok_or_else(wanted)
}

fn partition_pair(text: &str) -> Result<(String, String), String> {
    let (old, new) = text.split_once('=').ok_or("wanted: OLD=NEW")?;
    let name = |name: &str| PartitionName::new(name).map(|name| name.to_string());
    match (name(old), name(new)) {
        (Ok(old), Ok(new)) => Ok((old, new)),
        (Err(e), _) | (_, Err(e)) => Err(format!("no name of a partition: {e}")),
    }
}

pub(super) fn run(common: &Common, args: PushArgs) -> ExitCode {
    let request = Request {
        mailbox: args.mailbox,
        destination: args.destination,
        options: args.options,
        reverse: false,
    };
    ExitCode::from(perform(common, Task::Push { dry_run: args.dry_run }, &request, args.output))
}

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// The user is moved, or goes on to be.
    Push {
        /// Only plan.
        dry_run: bool,
    },
    /// The move is given up.
    Abort,
}

/// Does it; the exit code.
pub(super) fn perform(common: &Common, task: Task, request: &Request, output: Output) -> u8 {
    super::log::to_stderr(common.verbose);
    let style = match (output.json, common.quiet, common.verbose) {
        (true, ..) => Style::Json,
        (_, true, _) => Style::Quiet,
        (_, _, 0) => Style::Normal,
        _ => Style::Verbose,
    };
    let (destination, partition) = match Destination::parse_with_partition(&request.destination) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("mbcopy: {error}");
            return USAGE;
        }
    };
    let how = &request.options;
    let line = how.bwlimit_file.as_ref().filter(|_| how.bwlimit > 0);
    let line = line.map(|path| Bandwidth::open(path, how.bwlimit).map_err(|e| (path, e)));
    let line = match line.transpose() {
        Ok(line) => line.map(Arc::new),
        Err((path, error)) => {
            eprintln!("mbcopy: {}: {error}", path.display());
            return USAGE;
        }
    };
    let options = Options {
        mailbox: request.mailbox.clone(),
        destination: match request.reverse {
            true => near_host(common),
            false => destination.host().to_owned(),
        },
        partition,
        partition_map: how.partition_map.clone(),
        offline: common.is_offline() && !request.reverse,
        dry_run: task == Task::Push { dry_run: true },
        copy_only: how.copy_only,
        postpone_file: how.postpone_file.clone(),
        skip_bad: how.bad_messages == BadMessages::Skip,
        max_freeze: how.max_freeze,
        frontend_lag: how.frontend_lag,
        max_rounds: how.max_rounds,
        freeze_attempts: 5,
        route_command: how.route_command.clone(),
        route_timeout: how.route_timeout,
        freeze_command: how.freeze_command.clone(),
        thaw_command: how.thaw_command.clone(),
        hold_timeout: how.hold_timeout,
        old_server: match how.old_server {
            OldServer::Defer => v1::OldServer::Defer,
            OldServer::Forward => v1::OldServer::Forward,
            OldServer::Refuse => v1::OldServer::Refuse,
        },
        rate_limit: how.bwlimit,
        line,
        nice: how.nice,
        share: how.share.clone().unwrap_or_default(),
        command: typed_command(),
    };
    let console = Console::new(style);
    // One has the connection, and this thread the move; more would only wake each other.
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("mbcopy: cannot start: {error}");
                return 1;
            }
        };
    let monitor = Remembering { console: &console, request, keep: !options.dry_run };
    let report = runtime.block_on(connect(common, task, request, &destination, &options, &monitor));
    console.report(&report);
    if report.outcome == Outcome::Aborted {
        Request::forget(&report.move_id);
    }
    // A connection that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    report.outcome.exit_code()
}

/// Keeps the request as soon as the move has an id, so that it can be resumed.
struct Remembering<'a> {
    console: &'a Console,
    request: &'a Request,
    keep: bool,
}

impl Monitor for Remembering<'_> {
    fn event(&self, event: Event) {
        if let Event::Planned { move_id, .. } = &event
            && self.keep
            && let Err(error) = self.request.keep(move_id)
        {
            let text = format!("`mbcopy resume` will not know this push: {error}");
            self.console.event(Event::Note { text });
        }
        self.console.event(event);
    }
}

async fn connect(
    common: &Common,
    task: Task,
    request: &Request,
    destination: &Destination,
    options: &Options,
    monitor: &Remembering<'_>,
) -> Report {
    let interrupt = Interrupt::new(AtomicBool::new(false));
    tokio::spawn(watch_signals(Arc::clone(&interrupt)));
    let failure = |error: &dyn std::fmt::Display, advice: &str| Failure {
        text: error.to_string(),
        state: "this command has changed nothing".into(),
        advice: advice.into(),
    };
    let (here, there) = match request.reverse {
        true => (v1::Role::Target, v1::Role::Source),
        false => (v1::Role::Source, v1::Role::Target),
    };
    let ahead = matches!(task, Task::Push { .. }) && !request.reverse;
    let local = async {
        let (child, mut local) = local_agent(common, here).await?;
        if ahead {
            push::plan_ahead(options, &mut local).await?;
        }
        Ok::<_, Box<dyn std::error::Error>>((child, local))
    };
    // All at once: connecting takes as long as all the planning.
    let (local, remote) = tokio::join!(local, remote_agent(destination, &request.options, there));
    let (_child, local) = match local {
        Ok(local) => local,
        Err(error) => {
            let failure = failure(&error, "mend the cause and run the same command again");
            return push::stillborn(options, None, failure).await;
        }
    };
    let (_session, remote) = match remote {
        Ok(remote) => remote,
        Err((error, advice)) if request.reverse => {
            let report = push::stillborn(options, None, failure(&error, advice)).await;
            return unreached(common, destination.host(), report).await;
        }
        Err((error, advice)) => {
            return push::stillborn(options, Some(local), failure(&error, advice)).await;
        }
    };
    let (source, target) = if request.reverse { (remote, local) } else { (local, remote) };
    match task {
        Task::Push { .. } => push::push(options, source, target, monitor, &interrupt).await,
        Task::Abort => push::abort::abort(options, source, target, monitor, &interrupt).await,
    }
}

/// The report of a move back whose user is on a server that cannot be reached: by what this
/// one's journal says of a move that had begun.
async fn unreached(common: &Common, source: &str, mut report: Report) -> Report {
    let list = v1::ListMoves { mailbox: report.mailbox.clone() };
    let known = async {
        let (_lifeline, mut agent) = local_agent(common, v1::Role::Source).await.ok()?;
        let Ok(Answer::Moves(known)) = agent.call(Op::ListMoves(list)).await else { return None };
        known.moves.into_iter().max_by_key(|known| known.updated_unix_ms)
    };
    let here = [state::PUBLISHED, state::ROUTING, state::ROUTED];
    let begun = known.await.is_some_and(|known| {
        known.role() == v1::Role::Target && here.contains(&known.state.as_str())
    });
    report.source = source.to_owned();
    let phase = if begun { Phase::CommitUnknown } else { Phase::Failed };
    if begun {
        report.outcome = Outcome::Resumable;
    }
    report.settle_serving(phase, false);
    report
}

/// The server that has the user, as others reach it.
pub(super) fn near_host(common: &Common) -> String {
    match common.from.first().map(|from| Destination::parse(from)) {
        Some(Ok(from)) => from.host().to_owned(),
        _ => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    }
}

/// What an agent lives as long as.
pub(super) enum Lifeline {
    /// A child of ours.
    Child { _child: tokio::process::Child },
    /// A connection.
    Session { _session: Session },
}

/// The agent of this server, a child of ours, so that it can run as Cyrus's user; or
/// that of the server that `--from` names, over SSH.
pub(super) async fn local_agent(
    common: &Common,
    role: v1::Role,
) -> Result<(Lifeline, Peer), Box<dyn std::error::Error>> {
    let arguments = agent_arguments(common, role);
    if let Some(from) = common.from.first() {
        let session =
            Session::connect(&Destination::parse(from)?, &ConnectOptions::from_env()).await?;
        let words = arguments.iter().map(|word| word.to_str());
        let words: Option<Vec<&str>> =
            std::iter::once(Some(common.from_program.as_str())).chain(words).collect();
        let words = words.ok_or("an option that is not UTF-8 cannot go over SSH")?;
        let process = session.exec(&words).await?;
        let peer = Peer::greet(session.at(), role, process.into()).await?;
        return Ok((Lifeline::Session { _session: session }, peer));
    }
    let (child, streams) = local::spawn(std::env::current_exe()?.into(), &arguments)?;
    Ok((Lifeline::Child { _child: child }, Peer::greet("this server", role, streams).await?))
}

fn agent_arguments(common: &Common, role: v1::Role) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["agent", "--role", role_name(role), "--config"].map(OsString::from).into();
    arguments.push(common.config.clone().into());
    if role != v1::Role::Target {
        let disk = [("--source-conf", &common.source_conf), ("--source-root", &common.source_root)];
        for (option, value) in disk {
            if let Some(value) = value {
                arguments.extend([option.into(), value.clone().into()]);
            }
        }
    }
    if let Some(directory) = &common.cyrus_bin {
        arguments.extend(["--cyrus-bin".into(), directory.clone().into()]);
    }
    arguments
}

fn role_name(role: v1::Role) -> &'static str {
    match role {
        v1::Role::Target => "target",
        v1::Role::Inspect => "inspect",
        v1::Role::Repair => "repair",
        _ => "source",
    }
}

/// The agent of the other server, over SSH; an error comes with what to do
/// about it.
async fn remote_agent(
    destination: &Destination,
    options: &MoveOptions,
    role: v1::Role,
) -> Result<(Session, Peer), (Box<dyn std::error::Error>, &'static str)> {
    let advice = "mend the connection and run the same command again";
    let session = Session::connect(destination, &ConnectOptions::from_env()).await;
    let session = session.map_err(|e| (e.into(), advice))?;
    let program = (options.remote_program.as_str(), options.remote_config.as_str());
    let advice = "install mbcopy on the target where SSH finds it, or name it by \
                  --remote-program, or bring it there by --upload";
    let peer = match (agent_there(&session, program, role).await, &options.upload) {
        (Err(error), Some(file)) => {
            tracing::debug!("no agent there yet: {error}");
            bring(&session, file, &options.remote_program).await.map_err(|e| (e, advice))?;
            agent_there(&session, program, role).await
        }
        (answer, _) => answer,
    };
    Ok((session, peer.map_err(|e| (e, advice))?))
}

/// Brings a program to the other server; whoever runs what was there goes on with that.
async fn bring(
    session: &Session,
    file: &Path,
    program: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    let there = upload(session, file, program, 0o755).await?;
    let at = session.at();
    tracing::info!("brought {} to {at} as {program}, {} bytes", file.display(), there.size_bytes);
    Ok(())
}

/// An agent on the other server; `program` and Cyrus's configuration there.
pub(super) async fn agent_there(
    session: &Session,
    (program, config): (&str, &str),
    role: v1::Role,
) -> Result<Peer, Box<dyn std::error::Error>> {
    let words = [program, "agent", "--role", role_name(role), "--config", config];
    let process = session.exec(&words).await?;
    // Only a target gets bulk data.
    let lanes = match role {
        v1::Role::Target => Lanes::on(session, &[program, "agent", "--lane"]),
        _ => Lanes::default(),
    };
    let mut peer = Peer::greet(session.at(), role, process.into()).await?;
    peer.lanes = lanes;
    Ok(peer)
}

/// The command as it was typed, so that a shell takes it again.
fn typed_command() -> String {
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    crate::transport::join_quoted(&words)
}

/// SIGINT and SIGTERM ask for a stop at the next safe point.
async fn watch_signals(interrupt: Interrupt) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut asked = async || {
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
        }
    };
    asked().await;
    interrupt.store(true, Ordering::Relaxed);
    eprintln!("mbcopy: stopping where it is safe; once more stops at once");
    asked().await;
    // As safe as any crash: the journals tell how far the move has come.
    eprintln!("mbcopy: stopped at once; `mbcopy status` tells how far the move has come");
    std::process::exit(i32::from(Outcome::Resumable.exit_code()));
}
