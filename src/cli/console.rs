//! What a person or a program sees of a push: progress, lines, or JSON.

use super::log::Syslog;
use crate::moves::Phase;
use crate::push::monitor::{Event, Monitor};
use crate::push::report::{Outcome, Problem, Report, SCHEMA, Severity};
use crate::wire::STRAGGLER_LEFT;
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a program is told how far the copy is.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How much is said, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// Errors and the last line.
    Quiet,
    /// What matters.
    Normal,
    /// Every phase and note.
    Verbose,
    /// One JSON document per line, on standard output.
    Json,
}

/// The monitor of a push that a person or a program runs.
pub(super) struct Console {
    style: Style,
    bar: ProgressBar,
    syslog: Mutex<Syslog>,
    /// When a program was told last how far the copy is, and what it was not told since.
    progress: Mutex<(Option<Instant>, Option<Event>)>,
}

#[derive(Serialize)]
struct Line<'a, T: Serialize> {
    schema: u32,
    #[serde(flatten)]
    content: &'a T,
}

#[derive(Serialize)]
struct ReportLine<'a> {
    event: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

impl Console {
    pub(super) fn new(style: Style) -> Self {
        let draws = std::io::stderr().is_terminal() && !matches!(style, Style::Quiet | Style::Json);
        let target =
            if draws { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta} left";
        if let Ok(drawn) = ProgressStyle::with_template(template) {
            bar.set_style(drawn);
        }
        Self { style, bar, syslog: Mutex::new(Syslog::open()), progress: Mutex::default() }
    }

    /// Prints the report and the last line.
    pub(super) fn report(&self, report: &Report) {
        self.bar.finish_and_clear();
        self.log_report(report);
        if self.style == Style::Json {
            self.json(&ReportLine { event: "report", report });
            return;
        }
        if self.style != Style::Quiet && report.failure.is_none() {
            self.summary(report);
        }
        if let Some(failure) = &report.failure {
            self.line(&format!("mbcopy: {}", failure.text));
            self.line(&format!("  now: {}", failure.state));
            self.line(&format!("  next: {}", failure.advice));
        }
        let _ = writeln!(std::io::stdout(), "{}", report.last_line());
    }

    fn summary(&self, report: &Report) {
        self.line(&format!(
            "{}, {}, {} in {:.2} s; {} sent in {}",
            counted(report.mailboxes, "mailbox", "mailboxes"),
            counted(report.messages, "message", "messages"),
            HumanBytes(report.bytes),
            report.total_ms / 1000.0,
            HumanBytes(report.bytes_sent),
            counted(u64::from(report.rounds), "round", "rounds"),
        ));
        if report.outcome != Outcome::Planned {
            let frozen = match report.freeze_ms > 0.0 {
                true => format!("frozen for {:.0} ms, of it ", report.freeze_ms),
                false => String::new(),
            };
            self.line(&format!(
                "{frozen}{:.0} ms to publish; {} records compared",
                report.publish_ms,
                HumanCount(report.records_compared)
            ));
        }
        if let Some(carried) = &report.carried {
            self.line(&carried.to_string());
        }
        let left = |p: &&Problem| p.severity == Severity::BadMessage || p.code == STRAGGLER_LEFT;
        let skipped = report.problems.iter().filter(left);
        for problem in skipped {
            self.line(&format!("skipped: {problem}"));
        }
    }

    fn log_report(&self, report: &Report) {
        let mut syslog = self.syslog.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failure) = &report.failure {
            syslog.error(&format!(
                "move={} mailbox={} error={:?} now={:?} next={:?}",
                report.move_id, report.mailbox, failure.text, failure.state, failure.advice
            ));
        }
        syslog.info(&format!(
            "move={} mailbox={} source={} target={} outcome={} serving={} messages={} bytes={} \
             freeze_ms={:.0} total_ms={:.0}",
            report.move_id,
            report.mailbox,
            report.source,
            report.target,
            serde_json::to_value(report.outcome)
                .ok()
                .and_then(|v| v.as_str().map(str::to_owned))
                .unwrap_or_default(),
            report.serving,
            report.messages,
            report.bytes,
            report.freeze_ms,
            report.total_ms
        ));
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            let _ = writeln!(std::io::stderr(), "{text}");
        });
    }

    fn json(&self, content: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(&Line { schema: SCHEMA, content }) {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }
}

/// A number of things.
fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", HumanCount(number), if number == 1 { one } else { many })
}

impl Console {
    /// Tells a program: of progress once a second, and how far it was before anything else.
    fn tell(&self, event: Event) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, untold) = &mut *progress;
        if !matches!(event, Event::Progress { .. }) {
            if let Some(untold) = untold.take() {
                self.json(&untold);
            }
        } else if last.is_some_and(|at| at.elapsed() < PROGRESS_EVERY) {
            *untold = Some(event);
            return;
        } else {
            (*last, *untold) = (Some(Instant::now()), None);
        }
        self.json(&event);
    }
}

impl Monitor for Console {
    fn event(&self, event: Event) {
        if let Event::Phase { phase } = &event
            && matches!(phase.0, Phase::Publishing | Phase::Routing | Phase::Retiring)
        {
            let mut syslog = self.syslog.lock().unwrap_or_else(PoisonError::into_inner);
            syslog.info(&format!("phase={}", phase.word()));
        }
        if self.style == Style::Json {
            self.tell(event);
            return;
        }
        match event {
            Event::Connected { source, target, source_cyrus, target_cyrus } => {
                if self.style != Style::Quiet {
                    self.line(&format!(
                        "{source} (Cyrus {source_cyrus}) to {target} (Cyrus {target_cyrus})"
                    ));
                }
            }
            Event::Planned { mailboxes, messages, bytes, .. } => {
                self.bar.set_length(bytes);
                if self.style != Style::Quiet {
                    self.line(&format!(
                        "to move: {}, {}, {}",
                        counted(mailboxes, "mailbox", "mailboxes"),
                        counted(messages, "message", "messages"),
                        HumanBytes(bytes)
                    ));
                }
            }
            Event::Problem(problem) => {
                let shown = match problem.severity {
                    // What the admin can do something about, for the user as a whole.
                    Severity::Note => {
                        let to_do = problem.mailbox.is_empty() && !problem.advice.is_empty();
                        to_do || self.style == Style::Verbose
                    }
                    _ => true,
                };
                if shown {
                    self.line(&problem.to_string());
                }
            }
            Event::Round { number, messages, bytes } => {
                self.bar.set_length(self.bar.position().saturating_add(bytes));
                if self.style != Style::Quiet {
                    self.line(&format!(
                        "round {number}: {}, {} to copy",
                        counted(messages, "message", "messages"),
                        HumanBytes(bytes)
                    ));
                }
            }
            Event::Progress { messages, bytes } => {
                self.bar.set_position(bytes);
                self.bar.set_message(format!("{} messages", HumanCount(messages)));
            }
            Event::Phase { phase } => {
                if self.style == Style::Verbose {
                    self.line(phase.word());
                }
            }
            Event::Warning { text } => self.line(&text),
            Event::Note { text } => {
                if self.style == Style::Verbose {
                    self.line(&text);
                }
            }
        }
    }
}
