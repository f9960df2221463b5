//! The command line: parses, calls one function of the library, prints.

mod agent;
mod bulk;
mod console;
mod doctor;
mod inspect;
mod log;
mod purge;
mod push;
mod request;
mod resume;
mod status;
mod verify;

use clap::{ArgAction, Args, Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Move mailboxes between Cyrus IMAP servers while the mail keeps flowing
#[derive(Debug, Parser)]
#[command(name = "mbcopy", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// How another server is asked, and how what it has is told.
#[derive(Debug, Clone, Args)]
struct Asking {
    /// mbcopy on the other server
    #[arg(long, value_name = "PROGRAM", default_value = "mbcopy")]
    remote_program: String,
    /// Cyrus's configuration on the other server
    #[arg(long, value_name = "FILE", default_value = "/etc/imapd.conf")]
    remote_config: String,
    /// Print JSON on standard output, one document per line
    #[arg(long)]
    json: bool,
}

impl Asking {
    /// The program and the configuration there.
    fn program(&self) -> (&str, &str) {
        (&self.remote_program, &self.remote_config)
    }
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
struct Common {
    /// Cyrus's configuration on this server
    #[arg(short = 'C', long = "config", global = true, default_value = "/etc/imapd.conf")]
    #[arg(value_name = "FILE")]
    config: PathBuf,
    /// imapd.conf of a server whose disk is here, on which nothing runs: it is the
    /// source, and nothing is written to it
    #[arg(long, global = true, value_name = "FILE")]
    source_conf: Option<PathBuf>,
    /// Where the root of that disk is: all paths of its imapd.conf lie below DIR
    /// (without --source-conf: DIR/etc/imapd.conf)
    #[arg(long, global = true, value_name = "DIR")]
    source_root: Option<PathBuf>,
    /// The server that has the user, if it is not this one: its agent is started over
    /// SSH, and this machine needs no Cyrus (of `bulk`: may be given several times)
    #[arg(long, global = true, value_name = "HOST")]
    from: Vec<String>,
    /// mbcopy on that server
    #[arg(long, global = true, value_name = "PROGRAM", default_value = "mbcopy")]
    from_program: String,
    /// Where Cyrus's own programs are, if not where packages put them
    #[arg(long, global = true, value_name = "DIR")]
    cyrus_bin: Option<PathBuf>,
    /// Say more; twice: even more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    /// Print errors and the last line only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
}

impl Common {
    /// Whether the source is a disk on which nothing runs.
    fn is_offline(&self) -> bool {
        self.source_conf.is_some() || self.source_root.is_some()
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Move a user, or a shared mailbox tree, to another server
    Push(push::PushArgs),
    /// Finish a move that an earlier push has begun, as it was asked for then
    Resume(resume::ResumeArgs),
    /// Switch over a user who was only copied so far, or whose move is postponed
    Cutover(resume::OneArgs),
    /// Give a move up, and put everything back as it was before
    Abort(resume::OneArgs),
    /// Move a user back, whom an earlier push has moved away from here, with all
    /// that has come since
    Reverse(resume::OneArgs),
    /// Remove for good what this server keeps of users that were moved away
    Purge(purge::PurgeArgs),
    /// Move many users, as far as they can be moved, and go on wherever it stopped
    Bulk(Box<bulk::BulkArgs>),
    /// Show the moves that this server knows, and what their states mean
    Status(status::StatusArgs),
    /// Compare what this server and another one have of a user; changes nothing
    Verify(verify::VerifyArgs),
    /// Say what has become of a user whose move by XFER has failed, and put it right
    Doctor(doctor::DoctorArgs),
    /// Show what mbcopy reads in a file or a mailbox of Cyrus's, or in a whole user, of
    /// any version; changes nothing
    Inspect(inspect::InspectArgs),
    /// Serve one side of a move on standard input and output
    #[command(hide = true)]
    Agent(agent::AgentArgs),
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.common.from.len() > 1 && !matches!(cli.command, Command::Bulk(_)) {
        eprintln!("mbcopy: only `bulk` takes several servers: name one by --from");
        return ExitCode::from(push::USAGE);
    }
    match cli.command {
        Command::Push(args) => push::run(&cli.common, args),
        Command::Resume(args) => resume::resume(&cli.common, args),
        Command::Cutover(args) => resume::cutover(&cli.common, args),
        Command::Abort(args) => resume::abort(&cli.common, args),
        Command::Reverse(args) => resume::reverse(&cli.common, args),
        Command::Purge(args) => purge::run(&cli.common, args),
        Command::Bulk(args) => bulk::run(&cli.common, *args),
        Command::Status(args) => status::run(&cli.common, args),
        Command::Verify(args) => verify::run(&cli.common, args),
        Command::Doctor(args) => doctor::run(&cli.common, args),
        Command::Inspect(args) => inspect::run(&cli.common, args),
        Command::Agent(args) => agent::run(&cli.common, args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Cli {
        Cli::try_parse_from(["mbcopy"].iter().chain(words)).unwrap()
    }

    #[test]
    fn a_limit_is_a_number_of_bytes_with_or_without_a_unit() {
        let limit = |text: &str| {
            let words = ["mbcopy", "push", "--bwlimit", text, "user.x", "bw2"];
            let Command::Push(push) = Cli::try_parse_from(words).ok()?.command else { return None };
            push.options_as_json()["bwlimit"].as_u64()
        };
        let told = [("0", 0), ("800", 800), ("2K", 2048), ("30m", 30 << 20), ("1.5G", 3 << 29)];
        for (text, bytes) in told {
            assert_eq!(limit(text), Some(bytes), "{text}");
        }
        for text in ["", "M", "-1", "-1M", "0.1", "0.0001K", "1e30G", "nanK", "10 M", "3T", "1é"] {
            assert_eq!(limit(text), None, "{text}");
        }
    }

    #[test]
    fn each_move_of_a_run_is_told_every_option_of_the_run() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let options = [
            "--bad-messages=skip",
            "--partition-map=a=b",
            "--partition-map=c=d",
            "--purge-after=2d",
            "--max-freeze=1500ms",
            "--frontend-lag=700ms",
            "--max-rounds=7",
            "--route-command=postmap \"$X\"",
            "--route-timeout=3s",
            "--freeze-command=hold",
            "--thaw-command=let go",
            "--hold-timeout=4s",
            "--old-server=refuse",
            "--bwlimit=800",
            "--bwlimit-file=/x/line",
            "--nice",
            "--share=autumn",
            "--remote-program=/opt/mbcopy",
            "--remote-config=/opt/imapd.conf",
            "--upload=/root/mbcopy",
        ];
        let run = [&["bulk", "user.*", "--to", "bw2", "-j", "8"], &options[..]].concat();
        let Command::Bulk(run) = parsed(&run).command else { panic!("no run") };
        let told = run.told_to_each();
        let told: Vec<&str> = told.iter().map(|word| word.to_str().unwrap()).collect();
        let told_words = told.clone();
        let push = [&["push"], &told[..], &["--", "user.x", "bw2"]].concat();
        let Command::Push(push) = parsed(&push).command else { panic!("no push") };
        let typed = [&["push"], &options[..], &["user.x", "bw2"]].concat();
        let Command::Push(typed) = parsed(&typed).command else { panic!("no push") };
        let [told, typed] = [push, typed].map(|push| push.options_as_json());
        assert_eq!(told, typed);
        // And back: nothing that was said of one server is said of the other.
        let back = run.told_to_each_back();
        let back: Vec<&str> = back.iter().map(|word| word.to_str().unwrap()).collect();
        let reverse = [&["reverse"], &back[..], &["--", "user.x", "bw2"]].concat();
        assert!(matches!(parsed(&reverse).command, Command::Reverse(_)));
        let swapped = ["--partition-map=b=a", "--partition-map=d=c"];
        let left_out = ["--old-server", "--share", "--partition-map", "--copy-only"];
        let kept = |word: &&&str| !left_out.iter().any(|option| word.starts_with(option));
        for word in told_words.iter().filter(kept).chain(&swapped) {
            assert!(back.contains(word), "{word}: {back:?}");
        }
        assert_eq!(back.len(), told_words.len() - 2, "{back:?}");
        // All of them are there.
        let defaults = parsed(&["push", "user.x", "bw2"]).command;
        let Command::Push(defaults) = defaults else { panic!("no push") };
        let defaults = defaults.options_as_json();
        let same = ["copy_only", "postpone_file"];
        for (name, value) in told.as_object().unwrap() {
            assert_eq!(defaults[name] == *value, same.contains(&name.as_str()), "{name}");
        }
    }
}
