//! `mbcopy verify`: compares what two servers have of a user.

use super::push::{agent_there, local_agent};
use super::{Asking, Common};
use crate::push::report::SCHEMA;
use crate::transport::{ConnectOptions, Destination, Session};
use crate::verify::finding::{Finding, Relation};
use crate::verify::report::{CopyName, Report, later_text};
use crate::verify::{self, Event, Monitor, Options};
use crate::wire::v1;
use clap::Args;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How often a program is told how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Arguments of `mbcopy verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The top mailbox, with either separator: user.x, user/x, team.sales
    mailbox: String,
    /// The other server: an SSH destination
    #[arg(value_name = "DEST")]
    destination: String,
    /// Read every message on both servers, and compare byte by byte
    #[arg(long)]
    content: bool,
    /// How many differences are named, the others are only counted [default: 100;
    /// with --json all]
    #[arg(long, value_name = "N")]
    max_differences: Option<u64>,
    #[command(flatten)]
    asking: Asking,
}

pub(super) fn run(common: &Common, args: VerifyArgs) -> ExitCode {
    super::log::to_stderr(common.verbose);
    let destination = match Destination::parse(&args.destination) {
        Ok(destination) => destination,
        Err(error) => {
            eprintln!("mbcopy: {error}");
            return ExitCode::from(2);
        }
    };
    let runtime =
        match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("mbcopy: cannot start: {error}");
                return ExitCode::FAILURE;
            }
        };
    let printer = Printer::new(common, &args);
    let report = runtime.block_on(connect_and_verify(common, &args, &destination, &printer));
    printer.report(&report);
    // A connection that hangs must not keep the process.
    runtime.shutdown_timeout(Duration::from_millis(200));
    ExitCode::from(report.outcome.exit_code())
}

async fn connect_and_verify(
    common: &Common,
    args: &VerifyArgs,
    destination: &Destination,
    printer: &Printer,
) -> Report {
    let options = Options {
        mailbox: args.mailbox.clone(),
        destination: destination.host().to_owned(),
        content: args.content,
    };
    let role = v1::Role::Inspect;
    let (_child, here) = match local_agent(common, role).await {
        Ok(here) => here,
        Err(error) => {
            return verify::stillborn(&options, error.to_string(), "mend the cause");
        }
    };
    let session = match Session::connect(destination, &ConnectOptions::from_env()).await {
        Ok(session) => session,
        Err(error) => {
            return verify::stillborn(&options, error.to_string(), "mend the connection");
        }
    };
    let program = args.asking.program();
    match agent_there(&session, program, role).await {
        Ok(there) => verify::verify(&options, here, there, printer).await,
        Err(error) => {
            let advice = "install the same mbcopy there where SSH finds it, or name it by \
                          --remote-program; a confined key needs --role inspect in its command";
            verify::stillborn(&options, error.to_string(), advice)
        }
    }
}

/// Tells people or programs what is found.
struct Printer {
    json: bool,
    quiet: bool,
    verbose: bool,
    /// How many differences are named.
    limit: u64,
    named: Cell<u64>,
    /// How many later changes were named.
    later: Cell<u64>,
    names: std::cell::RefCell<[String; 2]>,
    bar: ProgressBar,
    progressed: Cell<Option<Instant>>,
}

#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    schema: u32,
    event: &'a str,
    #[serde(flatten)]
    content: T,
}

/// A finding with its text.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    finding: &'a Finding,
    text: String,
}

impl Printer {
    fn new(common: &Common, args: &VerifyArgs) -> Self {
        let draws = std::io::stderr().is_terminal() && !args.asking.json && !common.quiet;
        let target =
            if draws { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} mailboxes") {
            bar.set_style(style);
        }
        Self {
            json: args.asking.json,
            quiet: common.quiet,
            verbose: common.verbose > 0,
            limit: args.max_differences.unwrap_or(if args.asking.json { u64::MAX } else { 100 }),
            named: Cell::new(0),
            later: Cell::new(0),
            names: std::cell::RefCell::default(),
            bar,
            progressed: Cell::new(None),
        }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stdout(), "{text}");
        });
    }

    fn document(&self, event: &str, content: impl Serialize) {
        if let Ok(text) = serde_json::to_string(&Line { schema: SCHEMA, event, content }) {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    fn finding(&self, event: &str, finding: &Finding, prefix: &str) {
        let text = format!("{prefix}{}", finding.line(&self.names.borrow()));
        if self.json {
            self.document(event, Told { finding, text });
        } else if !self.quiet {
            self.line(&text);
        }
    }

    fn report(&self, report: &Report) {
        self.bar.finish_and_clear();
        if self.json {
            self.document("report", report);
            return;
        }
        let unnamed = report.differences.saturating_sub(self.limit);
        if unnamed > 0 && !self.quiet {
            self.line(&format!("and {unnamed} more differences (--max-differences)"));
        }
        if let Some(failure) = &report.failure {
            eprintln!("mbcopy: {}", failure.text);
            eprintln!("  now: {}", failure.state);
            eprintln!("  next: {}", failure.advice);
        } else if !self.quiet {
            let bytes = if report.content {
                format!(", {} read on each server", HumanBytes(report.bytes))
            } else {
                String::new()
            };
            eprintln!(
                "compared: {} mailboxes, {} messages{bytes}, in {:.2} s",
                report.mailboxes,
                HumanCount(report.messages),
                report.total_ms / 1000.0
            );
        }
        let _ = writeln!(std::io::stdout(), "{}", report.last_line());
    }
}

impl Monitor for Printer {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Copies(report) => {
                *self.names.borrow_mut() =
                    [report.here.server.clone(), report.there.server.clone()];
                if self.json {
                    #[derive(Serialize)]
                    struct Copies<'a> {
                        mailbox: &'a str,
                        here: &'a CopyName,
                        there: &'a CopyName,
                        #[serde(flatten)]
                        relation: Option<Relation>,
                    }
                    let Report { mailbox, here, there, relation, .. } = report;
                    self.document("copies", Copies { mailbox, here, there, relation: *relation });
                } else if !self.quiet {
                    eprintln!("{}: {} against {}", report.mailbox, report.here, report.there);
                }
            }
            Event::Difference(finding) => {
                self.named.set(self.named.get() + 1);
                if self.named.get() <= self.limit {
                    self.finding("difference", finding, "");
                }
            }
            Event::Later(finding, relation) => {
                self.later.set(self.later.get() + 1);
                if self.later.get() <= self.limit {
                    self.finding("later", finding, &format!("{}: ", relation.later_word()));
                }
            }
            Event::Messages { mailbox, later, relation } => {
                let text = later_text(later).unwrap_or_default();
                if self.json {
                    #[derive(Serialize)]
                    struct Messages<'a> {
                        mailbox: &'a str,
                        #[serde(flatten)]
                        later: verify::compare::Later,
                        text: String,
                    }
                    let text = messages_line(relation, mailbox, &text);
                    self.document("later-messages", Messages { mailbox, later, text });
                } else if self.verbose {
                    self.line(&messages_line(relation, mailbox, &text));
                }
            }
            Event::Progress { mailboxes, of, messages, bytes } => {
                if of > 0 {
                    self.bar.set_length(of);
                }
                self.bar.set_position(mailboxes);
                let bytes =
                    if bytes > 0 { format!(", {}", HumanBytes(bytes)) } else { String::new() };
                self.bar.set_message(format!("{} messages{bytes}", HumanCount(messages)));
                let due = self.progressed.get().is_none_or(|at| at.elapsed() >= PROGRESS_EVERY);
                if self.json && due {
                    self.progressed.set(Some(Instant::now()));
                    #[derive(Serialize)]
                    struct Progress {
                        mailboxes: u64,
                        messages: u64,
                    }
                    self.document("progress", Progress { mailboxes, messages });
                }
            }
        }
    }
}

fn messages_line(relation: Relation, mailbox: &str, text: &str) -> String {
    format!("{}: {mailbox}: {text}", relation.later_word())
}
