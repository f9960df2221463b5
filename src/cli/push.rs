//! `mbcopy push`: moves one user.

use super::Common;
use super::console::{Console, Style};
use crate::push::peer::{Peer, PeerError};
use crate::push::report::{Failure, Report};
use crate::push::{self, Interrupt, Options, local};
use crate::transport::{ConnectOptions, Destination, Session};
use crate::wire::v1;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Arguments of `mbcopy push`.
#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// The top mailbox, with either separator: user.x, user/x, team.sales
    mailbox: String,
    /// Where to: an SSH destination, and optionally a partition there
    #[arg(value_name = "DEST[:PARTITION]")]
    destination: String,
    /// Print what would be done, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// What to do about messages that cannot be read
    #[arg(long, value_name = "WHAT", default_value = "refuse")]
    bad_messages: BadMessages,
    /// Longest time that the user may be frozen
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = duration)]
    max_freeze: Duration,
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
    /// Limit of the copy, in bytes per second; 0: none
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    bwlimit: u64,
    /// mbcopy on the target
    #[arg(long, value_name = "PROGRAM", default_value = "mbcopy")]
    remote_program: String,
    /// Cyrus's configuration on the target
    #[arg(long, value_name = "FILE", default_value = "/etc/imapd.conf")]
    remote_config: String,
    /// Print one JSON document per line on standard output
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BadMessages {
    /// Name them and change nothing
    Refuse,
    /// Go on without them, and name them in the report
    Skip,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration = text.parse().map_err(|e: jiff::Error| e.to_string())?;
    Duration::try_from(parsed).map_err(|e| e.to_string())
}

pub(super) fn run(common: &Common, args: PushArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    let style = match (args.json, common.quiet, common.verbose) {
        (true, ..) => Style::Json,
        (_, true, _) => Style::Quiet,
        (_, _, 0) => Style::Normal,
        _ => Style::Verbose,
    };
    let (destination, partition) = match Destination::parse_with_partition(&args.destination) {
        Ok(parsed) => parsed,
        Err(error) => {
            eprintln!("mbcopy: {error}");
            return ExitCode::from(2);
        }
    };
    let options = Options {
        mailbox: args.mailbox.clone(),
        destination: destination.host().to_owned(),
        partition,
        dry_run: args.dry_run,
        skip_bad: args.bad_messages == BadMessages::Skip,
        max_freeze: args.max_freeze,
        max_rounds: args.max_rounds,
        freeze_attempts: 5,
        route_command: args.route_command.clone(),
        route_timeout: args.route_timeout,
        rate_limit: args.bwlimit,
        command: typed_command(),
    };
    let console = Console::new(style);
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("mbcopy: cannot start: {error}");
                return ExitCode::FAILURE;
            }
        };
    let report =
        runtime.block_on(connect_and_push(common, &args, &destination, &options, &console));
    console.report(&report);
    // A connection that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    ExitCode::from(report.outcome.exit_code())
}

async fn connect_and_push(
    common: &Common,
    args: &PushArgs,
    destination: &Destination,
    options: &Options,
    console: &Console,
) -> Report {
    let interrupt = Interrupt::new(AtomicBool::new(false));
    tokio::spawn(watch_signals(Arc::clone(&interrupt)));
    let failure = |error: &dyn std::fmt::Display, advice: &str| Failure {
        text: error.to_string(),
        state: "this push has changed nothing".into(),
        advice: advice.into(),
    };
    let (_child, source) = match local_agent(common).await {
        Ok(source) => source,
        Err(error) => {
            let failure = failure(&error, "mend the cause and run push again");
            return push::stillborn(options, None, failure).await;
        }
    };
    let session = match Session::connect(destination, &ConnectOptions::from_env()).await {
        Ok(session) => session,
        Err(error) => {
            let failure = failure(&error, "mend the connection and run push again");
            return push::stillborn(options, Some(source), failure).await;
        }
    };
    match remote_target(&session, args).await {
        Ok(target) => push::push(options, source, target, console, &interrupt).await,
        Err(error) => {
            let advice =
                "install mbcopy on the target where SSH finds it, or name it by --remote-program";
            push::stillborn(options, Some(source), failure(&error, advice)).await
        }
    }
}

/// The source agent: a child of ours, so that it can run as Cyrus's user.
pub(super) async fn local_agent(
    common: &Common,
) -> Result<(tokio::process::Child, Peer), Box<dyn std::error::Error>> {
    agent_here(common, "source", v1::Role::Source).await
}

/// An agent on this server in the role of that name.
pub(super) async fn agent_here(
    common: &Common,
    word: &str,
    role: v1::Role,
) -> Result<(tokio::process::Child, Peer), Box<dyn std::error::Error>> {
    let mut arguments: Vec<OsString> =
        ["agent", "--role", word, "--config"].map(OsString::from).into();
    arguments.push(common.config.clone().into());
    if let Some(directory) = &common.cyrus_bin {
        arguments.extend(["--cyrus-bin".into(), directory.clone().into()]);
    }
    let (child, streams) = local::spawn(std::env::current_exe()?.into(), &arguments)?;
    Ok((child, Peer::greet("this server", role, streams).await?))
}

async fn remote_target(
    session: &Session,
    args: &PushArgs,
) -> Result<Peer, Box<dyn std::error::Error>> {
    let program = (args.remote_program.as_str(), args.remote_config.as_str());
    agent_there(session, program, "target", v1::Role::Target).await
}

/// An agent on the other server in the role of that name; `program` and
/// Cyrus's configuration there.
pub(super) async fn agent_there(
    session: &Session,
    (program, config): (&str, &str),
    word: &str,
    role: v1::Role,
) -> Result<Peer, Box<dyn std::error::Error>> {
    let process = session.exec(&[program, "agent", "--role", word, "--config", config]).await?;
    let server = session.at().to_owned();
    let peer: Result<Peer, PeerError> = Peer::greet(&server, role, process.into()).await;
    Ok(peer?)
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
    tokio::select! {
        _ = int.recv() => {}
        _ = term.recv() => {}
    }
    interrupt.store(true, Ordering::Relaxed);
}
