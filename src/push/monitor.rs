//! What a move tells about itself while it goes on.

use crate::moves::Phase;
use serde::Serialize;

/// Something that happened in a move.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Both agents answered.
    Connected {
        /// servername of the source.
        source: String,
        /// servername of the target.
        target: String,
        /// Cyrus's version on the source.
        source_cyrus: String,
        /// Cyrus's version on the target.
        target_cyrus: String,
    },
    /// What is to be moved.
    Planned {
        /// The move's id.
        move_id: String,
        /// Mailboxes, those kept by delayed delete included.
        mailboxes: u64,
        /// Messages, delayed-expunged ones included.
        messages: u64,
        /// Their size, in bytes.
        bytes: u64,
    },
    /// A problem that preflight or copying found.
    Problem(super::report::Problem),
    /// A round of copying begins.
    Round {
        /// 1 for the first.
        number: u32,
        /// Messages to send.
        messages: u64,
        /// Bytes to send.
        bytes: u64,
    },
    /// Bulk data has been sent.
    Progress {
        /// Messages since the start of the move.
        messages: u64,
        /// Their bytes; what else is sent is not counted.
        bytes: u64,
    },
    /// The move enters a phase.
    Phase {
        /// The phase.
        phase: PhaseName,
    },
    /// Something that every admin must know.
    Warning {
        /// The sentence.
        text: String,
    },
    /// Something worth telling.
    Note {
        /// What.
        text: String,
    },
}

/// A phase, as JSON and people see it.
#[derive(Debug, Clone, Copy)]
pub struct PhaseName(pub Phase);

impl PhaseName {
    /// The phase in a word.
    pub fn word(self) -> &'static str {
        match self.0 {
            Phase::Planning => "planning",
            Phase::Copying => "copying",
            Phase::Freezing => "freezing",
            Phase::Refreezing => "refreezing",
            Phase::Settling => "settling",
            Phase::Publishing => "publishing",
            Phase::Routing => "routing",
            Phase::Unpublishing => "unpublishing",
            Phase::Retiring => "retiring",
            Phase::Thawing => "thawing",
            Phase::Done => "done",
            Phase::Failed => "failed",
            Phase::CommitUnknown => "commit-unknown",
            Phase::Routed => "routed",
        }
    }
}

impl Serialize for PhaseName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

/// Where events go: a terminal, a file, a test.
pub trait Monitor: Send + Sync {
    /// Takes one event.
    fn event(&self, event: Event);
}
