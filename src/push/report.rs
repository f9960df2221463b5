//! What a move did: the last thing that people and programs are told.

use crate::moves::{Phase, Server};
use crate::wire::{printable, v1};
use serde::Serialize;

/// The version of the JSON documents; grows when a field changes its meaning
/// or goes away, not when one is added.
pub const SCHEMA: u32 = 1;

/// A problem, as people and programs see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// A stable word for it.
    pub code: String,
    /// The server it was found on.
    pub server: String,
    /// The mailbox, if it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mailbox: String,
    /// The message's UID; 0 when it is not about one.
    #[serde(skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// The file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What is wrong.
    pub text: String,
    /// What to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub advice: String,
}

/// How much a problem matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The move is refused.
    Refuse,
    /// The admin decides: `--bad-messages`.
    BadMessage,
    /// It is only said.
    Note,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form that serde asks for
fn is_zero(uid: &u32) -> bool {
    *uid == 0
}

impl Problem {
    /// A problem that the agent on `server` reported.
    pub fn from_wire(server: &str, problem: &v1::Problem) -> Self {
        Self {
            severity: match problem.severity() {
                v1::problem::Severity::Refuse => Severity::Refuse,
                v1::problem::Severity::BadMessage => Severity::BadMessage,
                v1::problem::Severity::Note => Severity::Note,
            },
            code: printable(&problem.code),
            server: server.into(),
            mailbox: printable(&problem.mailbox),
            uid: problem.uid,
            path: printable(&problem.path),
            text: printable(&problem.text),
            advice: printable(&problem.advice),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: ", self.server)?;
        if !self.mailbox.is_empty() {
            write!(f, "{}: ", self.mailbox)?;
        }
        if self.uid != 0 {
            write!(f, "message {}: ", self.uid)?;
        }
        write!(f, "{}", self.text)?;
        if !self.path.is_empty() && !self.text.contains(&self.path) {
            write!(f, " ({})", self.path)?;
        }
        if !self.advice.is_empty() {
            write!(f, "\n  {}", self.advice)?;
        }
        Ok(())
    }
}

/// How a push ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The user is on the target, whole.
    Done,
    /// The user is on the target; what was skipped is in the report.
    DoneWithSkipped,
    /// Only the plan was asked for.
    Planned,
    /// Only copying was asked for; the source is live and unchanged.
    Copied,
    /// The move was given up; everything is as it was before.
    Aborted,
    /// It failed; the source is live and unchanged.
    Failed,
    /// Preflight said no; nothing was changed.
    Refused,
    /// It stopped in between; the same command finishes it.
    Resumable,
    /// Somebody else is moving this user.
    Held,
    /// It was interrupted at a safe point; the source is live and unchanged.
    Interrupted,
}

impl Outcome {
    /// The exit code, as `docs/operations.md` lists them.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::Planned | Self::Copied | Self::Aborted => 0,
            Self::Failed => 1,
            Self::DoneWithSkipped => 3,
            Self::Refused => 4,
            Self::Resumable => 5,
            Self::Held => 6,
            Self::Interrupted => 7,
        }
    }
}

/// Everything that is worth knowing about a push that has ended.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The phase in which it ended.
    pub phase: super::monitor::PhaseName,
    /// The move's id; empty when it never got one.
    pub move_id: String,
    /// The top mailbox.
    pub mailbox: String,
    /// The source's name.
    pub source: String,
    /// The target's name.
    pub target: String,
    /// The server that serves the user now.
    pub serving: String,
    /// Mailboxes that the move is about.
    pub mailboxes: u64,
    /// Messages that the move is about.
    pub messages: u64,
    /// Their size, in bytes.
    pub bytes: u64,
    /// Messages that crossed the wire.
    pub messages_sent: u64,
    /// Bytes of files that crossed the wire.
    pub bytes_sent: u64,
    /// Messages that others of the run had on the target already, and that were linked.
    pub messages_shared: u64,
    /// Rounds of copying before the freeze.
    pub rounds: u32,
    /// How long the source was frozen, in milliseconds.
    pub freeze_ms: f64,
    /// How long the target held its own lock, in milliseconds.
    pub publish_ms: f64,
    /// How long everything took, in milliseconds.
    pub total_ms: f64,
    /// Records that were compared under the freeze.
    pub records_compared: u64,
    /// What reached the source after it was published, and was carried over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub carried: Option<Carried>,
    /// What is not as it was, by the names that `docs/cyrus.md` explains.
    pub differences: Vec<String>,
    /// Everything that was found, skipped messages included.
    pub problems: Vec<Problem>,
    /// Remarks.
    pub notes: Vec<String>,
    /// What failed, with the state things are in and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Commands that make sense now.
    pub next_steps: Vec<String>,
}

/// What reached the source after the user was published on the target, and was
/// carried over, in this push or in one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Carried {
    /// New messages.
    pub messages: u64,
    /// Messages whose flags were changed.
    pub flags: u64,
    /// Messages that were expunged.
    pub expunged: u64,
    /// Mailboxes that were made, renamed or deleted.
    pub mailboxes: u64,
    /// Rights and subscriptions that were changed.
    pub other: u64,
    /// What is not carried over; the problems name it.
    pub left: u64,
}

impl std::fmt::Display for Carried {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { messages, flags, expunged, mailboxes, other, left } = self;
        write!(
            f,
            "carried over from the source: new messages {messages}, changed flags {flags}, \
             expunged messages {expunged}, changed mailboxes {mailboxes}, rights and \
             subscriptions {other}; left there: {left}"
        )
    }
}

/// What failed.
#[derive(Debug, Clone, Serialize)]
pub struct Failure {
    /// What failed, where.
    pub text: String,
    /// What state things are in now.
    pub state: String,
    /// What to do next.
    pub advice: String,
}

impl Report {
    /// The last line: who serves the user now.
    pub fn last_line(&self) -> String {
        let what = match self.outcome {
            Outcome::Done => "moved",
            Outcome::DoneWithSkipped => "moved, with skipped messages",
            Outcome::Planned => "planned only",
            Outcome::Copied => "copied, not moved",
            Outcome::Aborted => "given up, everything is as before",
            Outcome::Failed => "not moved",
            Outcome::Refused => "refused, not moved",
            Outcome::Resumable => "not finished",
            Outcome::Held => "not moved, somebody else holds the user",
            Outcome::Interrupted => "interrupted, not moved",
        };
        format!("{}: {what}; {} serves the user now", self.mailbox, self.serving)
    }

    /// Fills in who serves, from where the move has come to. On the disk of an old
    /// server nothing runs.
    pub fn settle_serving(&mut self, phase: Phase, offline: bool) {
        const SOURCE: &str = "the source serves the user";
        self.phase = super::monitor::PhaseName(phase);
        self.serving = match phase.serving() {
            Server::Source if offline => "nobody".into(),
            Server::Source => self.source.clone(),
            Server::Target => self.target.clone(),
        };
        if let Some(failure) = self.failure.as_mut().filter(|_| offline) {
            failure.state = failure.state.replace(SOURCE, "the source's disk serves nobody");
        }
    }
}
