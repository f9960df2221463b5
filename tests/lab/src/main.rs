//! The lab's clients by hand, the demonstration, the measurements.

mod bench;
mod demo;
mod growth;
mod power_command;
mod svg;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::fingerprint::{self, Fingerprint, Take};
use lab::imap::{Untagged, Value};
use lab::seed::{self, Seed, Size};
use lab::workload::{self, Crew, Route};
use lab::{Host, diff};
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Fills, observes and compares mailboxes on lab hosts.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fills a mailbox, the same way for the same seed and user.
    Seed(SeedArgs),
    /// Prints everything that clients can observe, as JSON.
    Fingerprint(FingerprintArgs),
    /// Compares two fingerprints; exits with 1 if they differ.
    Diff {
        before: PathBuf,
        after: PathBuf,
        /// A key to leave out, such as "modseq"; may be given several times.
        #[arg(long)]
        ignore: Vec<String>,
    },
    /// Sends IMAP commands as a user and prints the answers.
    Imap { host: String, user: String, commands: Vec<String> },
    /// Lets clients work in a user's INBOX while a shell command runs, and judges the outcome;
    /// exits with 1 if a promise was broken.
    Work {
        host: String,
        user: String,
        /// The command; it may move the user if it writes "user host" into the file $ROUTE.
        #[arg(long, default_value = "sleep 3")]
        during: String,
        /// Milliseconds between two operations of a client.
        #[arg(long, default_value_t = 10)]
        pause: u64,
    },
    /// Moves a user while clients work and mail arrives, and checks all that mbcopy promises;
    /// exits with 1 if anything is not as promised. What the two hosts hold is lost.
    Demo(demo::DemoArgs),
    /// Measures push beside rsync, XFER, sync_client and tar: near, far, over a slow way, from a
    /// cold disk, again, and what users and others notice. What the two hosts hold is lost.
    Bench(bench::BenchArgs),
    /// Measures what moves cost by the number of messages: how long clients wait, memory, time.
    /// What the two hosts hold is lost.
    Growth(growth::GrowthArgs),
    /// Moves small users at work, does random harm to each move, and checks all that mbcopy promises;
    /// exits with 1 if a promise was broken. What the two hosts hold is lost.
    Chaos(lab::chaos::ChaosArgs),
    /// Cuts the power of one server in the middle of a move, many times, and checks that the same
    /// command finishes each; exits with 1 if anything is not as promised. What the two hosts hold
    /// is lost.
    Power(power_command::PowerArgs),
    /// Carries standard input and output to a server and back, late or slowly: for ssh's
    /// ProxyCommand.
    Link(bench::link::LinkArgs),
    /// Delivers a message from a file by LMTP.
    Deliver { host: String, recipient: String, file: PathBuf },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Everything that Cyrus can keep.
    Rich,
    /// Many messages.
    Bulk,
    /// Some fifty messages.
    Small,
    /// A shared tree.
    Tree,
}

#[derive(Args)]
struct SeedArgs {
    kind: Kind,
    #[arg(long)]
    host: String,
    /// The user; for a tree, all its users, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    user: Vec<String>,
    /// rich: the second user.
    #[arg(long, default_value = "other")]
    other: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// rich and bulk: the number of messages.
    #[arg(long, default_value_t = 600)]
    count: usize,
    /// bulk: the median of the messages' sizes.
    #[arg(long, default_value_t = 8192)]
    median: usize,
    /// bulk: the size of every message.
    #[arg(long)]
    fixed: Option<usize>,
    /// bulk: the number of folders.
    #[arg(long, default_value_t = 1)]
    folders: usize,
    /// tree: its root.
    #[arg(long, default_value = "team.sales")]
    root: String,
}

#[derive(Args)]
struct FingerprintArgs {
    #[arg(long)]
    host: String,
    /// The user; for a tree, all its users, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    user: Vec<String>,
    /// Looks at this shared tree instead of the user's mailbox.
    #[arg(long)]
    tree: Option<String>,
    /// Other users whose views of the user's folders are taken.
    #[arg(long, value_delimiter = ',')]
    other: Vec<String>,
    /// Without the administrator's view.
    #[arg(long)]
    no_admin: bool,
    /// Without Sieve scripts.
    #[arg(long)]
    no_sieve: bool,
    /// Without delayed-expunged messages.
    #[arg(long)]
    no_expunged: bool,
    /// The SHA-1 that the server keeps instead of that of the bytes.
    #[arg(long)]
    no_bodies: bool,
    /// With other users' and shared folders in the user's own view.
    #[arg(long)]
    all: bool,
}

fn main() -> Result<ExitCode> {
    match Cli::parse().command {
        Command::Seed(args) => fill(&args)?,
        Command::Fingerprint(args) => {
            serde_json::to_writer_pretty(std::io::stdout().lock(), &take(&args)?)?;
            println!();
        }
        Command::Diff { before, after, ignore } => {
            let ignore: Vec<&str> = ignore.iter().map(String::as_str).collect();
            let differences = diff(&load(&before)?, &load(&after)?, &ignore)?;
            print!("{}", fingerprint::report(&differences));
            return Ok(ExitCode::from(u8::from(!differences.is_empty())));
        }
        Command::Imap { host, user, commands } => {
            let mut imap = Host::new(host).imap(&user)?;
            println!("* {}", imap.greeting);
            for command in commands {
                let tagged = imap.stream(&command, |untagged| {
                    match untagged {
                        Untagged::Status(status) => println!("* {status}"),
                        Untagged::Data(values) => {
                            let words: Vec<_> = values.iter().map(Value::to_string).collect();
                            println!("* {}", words.join(" "));
                        }
                    }
                    Ok(())
                })?;
                println!("{command} -> {tagged}");
            }
            imap.logout();
        }
        Command::Work { host, user, during, pause } => {
            return work(&host, &user, &during, Duration::from_millis(pause));
        }
        Command::Demo(args) => return demo::run(&args),
        Command::Bench(args) => bench::run(&args)?,
        Command::Link(args) => bench::link::run(&args)?,
        Command::Growth(args) => growth::run(&args)?,
        Command::Chaos(args) => return lab::chaos::run_many(&args),
        Command::Power(args) => return power_command::run(&args),
        Command::Deliver { host, recipient, file } => {
            let message = std::fs::read(&file)?;
            let reply = lab::lmtp::deliver(&Host::new(host), &recipient, &message).accepted()?;
            println!("{} {}", reply.code, reply.text);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn fill(args: &SeedArgs) -> Result<()> {
    let host = Host::new(&args.host);
    let users: Vec<&str> = args.user.iter().map(String::as_str).collect();
    let user = users.first().context("no user")?;
    let seed = Seed::new(&host, user).seed(args.seed);
    let start = std::time::Instant::now();
    let report = match args.kind {
        Kind::Rich => seed.rich(&args.other, args.count)?,
        Kind::Small => seed.small()?,
        Kind::Bulk => {
            let size = args.fixed.map_or(Size::Median(args.median), Size::Fixed);
            seed.bulk(args.count, size, args.folders)?
        }
        Kind::Tree => seed::shared_tree(&host, &args.root, &users)?,
    };
    for warning in &report.warnings {
        eprintln!("not done: {warning}");
    }
    let megabytes = report.bytes as f64 / 1e6;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{} messages, {megabytes:.1} MB in {seconds:.1} s", report.messages);
    Ok(())
}

fn work(host: &str, user: &str, during: &str, pause: Duration) -> Result<ExitCode> {
    let file = std::env::temp_dir().join(format!("lab-route-{}", std::process::id()));
    let route = Route::file(user, &file);
    route.set(host)?;
    let watcher = workload::watcher(&route.host()?, user, pause);
    let crew = Crew::start(&route, pause)?;
    std::thread::sleep(Duration::from_secs(1));
    let mut shell = std::process::Command::new("sh");
    let status = shell.args(["-c", during]).env("ROUTE", &file).status()?;
    std::thread::sleep(Duration::from_secs(1));
    let history = crew.stop()?;
    let steps = watcher.stop()?;
    let end = route.host()?;
    std::fs::remove_file(&file)?;
    let violations = workload::check(&history, &Fingerprint::take(&end, user, &Take::default())?);
    println!("{status}; {user} ended on {end}; a watcher saw {} states", steps.len());
    for (kind, latency) in &history.latency {
        println!("{kind}: {} done, longest wait {:?}", latency.count, latency.longest);
    }
    for (reason, count) in &history.setbacks {
        println!("{count} times {reason}");
    }
    for violation in &violations {
        println!("VIOLATION: {violation}");
    }
    Ok(ExitCode::from(u8::from(!violations.is_empty())))
}

fn take(args: &FingerprintArgs) -> Result<Fingerprint> {
    let host = Host::new(&args.host);
    let take = Take {
        bodies: !args.no_bodies,
        sieve: !args.no_sieve,
        admin: !args.no_admin,
        expunged: !args.no_expunged,
        all: args.all,
        others: args.other.clone(),
    };
    let users: Vec<&str> = args.user.iter().map(String::as_str).collect();
    match &args.tree {
        Some(root) => Fingerprint::take_tree(&host, root, &users, &take),
        None => Fingerprint::take(&host, users.first().context("no user")?, &take),
    }
}

fn load(path: &Path) -> Result<Fingerprint> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    serde_json::from_reader(BufReader::new(file))
        .with_context(|| format!("reading {}", path.display()))
}
