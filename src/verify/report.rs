//! What a comparison came to: the last thing that people and programs are told.

use super::compare::Later;
use super::finding::{Kind, Relation};
use crate::push::report::Failure;
use serde::Serialize;
use std::collections::BTreeMap;

/// How a comparison ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing is different that should be the same.
    Same,
    /// Something is.
    Different,
    /// It could not be compared.
    Failed,
    /// There are no two copies to compare.
    Refused,
}

impl Outcome {
    /// The exit code, as `docs/operations.md` lists them.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Same => 0,
            Self::Failed => 1,
            Self::Refused => 4,
            Self::Different => 8,
        }
    }
}

/// One of the two copies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CopyName {
    /// The server's name.
    pub server: String,
    /// Which copy: `live`, `retired` or `stage`; empty when none was chosen.
    pub copy: String,
    /// The move that it belongs to, of a stage and of a retired copy.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub move_id: String,
    /// The other server of that move, as this one knows it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub peer: String,
    /// More about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
}

impl std::fmt::Display for CopyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}", self.server, self.copy)?;
        if !self.move_id.is_empty() {
            let direction = if self.copy == "retired" { "to" } else { "from" };
            write!(f, " of move {} {direction} {}", self.move_id, self.peer)?;
        }
        if !self.state.is_empty() {
            write!(f, ", {}", self.state)?;
        }
        write!(f, ")")
    }
}

/// What is later on one side, in all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LaterTotals {
    /// Mailboxes with anything later.
    pub mailboxes: u64,
    /// Messages.
    #[serde(flatten)]
    pub messages: Later,
    /// Anything else: rights, subscriptions, whole mailboxes, ...
    pub other: u64,
}

/// Everything that is worth knowing about a comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// The top mailbox.
    pub mailbox: String,
    /// What of this server was compared.
    pub here: CopyName,
    /// What of the other.
    pub there: CopyName,
    /// How the two belong together.
    #[serde(flatten)]
    pub relation: Option<Relation>,
    /// Whether the messages' bytes were compared.
    pub content: bool,
    /// Mailboxes that were compared.
    pub mailboxes: u64,
    /// Messages that were compared, delayed-expunged ones included.
    pub messages: u64,
    /// Bytes that were read on both sides and compared.
    pub bytes: u64,
    /// What is not the same and should be.
    pub differences: u64,
    /// The same by kind.
    pub kinds: BTreeMap<Kind, u64>,
    /// What is later on the side that is in use.
    pub later: LaterTotals,
    /// How long it took, in milliseconds.
    pub total_ms: f64,
    /// What failed, with the state things are in and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl Report {
    /// A report of nothing yet.
    pub fn new(mailbox: &str, content: bool) -> Self {
        Self {
            outcome: Outcome::Failed,
            mailbox: crate::wire::printable(mailbox),
            here: CopyName::default(),
            there: CopyName::default(),
            relation: None,
            content,
            mailboxes: 0,
            messages: 0,
            bytes: 0,
            differences: 0,
            kinds: BTreeMap::new(),
            later: LaterTotals::default(),
            total_ms: 0.0,
            failure: None,
        }
    }

    /// The last line: the verdict.
    pub fn last_line(&self) -> String {
        let verdict = match self.outcome {
            Outcome::Failed | Outcome::Refused => return format!("{}: not compared", self.mailbox),
            Outcome::Same => "no differences".to_owned(),
            Outcome::Different => count(self.differences, "difference"),
        };
        let (here, there) = (&self.here.server, &self.there.server);
        let mut line = format!("{}: {verdict} between {here} and {there}", self.mailbox);
        if let Some(relation) = self.relation
            && let Some(later) = later_text(self.later.messages)
        {
            let mailboxes = count_es(self.later.mailboxes, "mailbox");
            line += &format!("; {}: {later} in {mailboxes}", relation.later_word());
            if self.later.other > 0 {
                line += &format!(", and {}", count(self.later.other, "other change"));
            }
        } else if let Some(relation) = self.relation
            && self.later.other > 0
        {
            let changes = count(self.later.other, "change");
            line += &format!("; {}: {changes} besides messages", relation.later_word());
        }
        line
    }
}

/// Counts of messages in words; none when nothing is later.
pub fn later_text(later: Later) -> Option<String> {
    let parts = [
        (later.new > 0).then(|| count(later.new, "new message")),
        (later.changed > 0).then(|| format!("{} changed", later.changed)),
        (later.expunged > 0).then(|| format!("{} expunged", later.expunged)),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn count(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn count_es(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}es") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::finding::Side;

    #[test]
    fn no_key_of_the_document_is_there_twice() {
        let mut report = Report::new("user.x", true);
        report.relation = Some(Relation::AfterSwitch(Side::There));
        report.failure = Some(Failure { text: "t".into(), state: "s".into(), advice: "a".into() });
        let text = serde_json::to_string(&report).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read.to_string().len(), text.len(), "{text}");
    }

    #[test]
    fn exit_codes_are_as_documented() {
        let codes = [Outcome::Same, Outcome::Failed, Outcome::Refused, Outcome::Different];
        assert_eq!(codes.map(Outcome::exit_code), [0, 1, 4, 8]);
    }

    #[test]
    fn the_last_line_is_the_verdict() {
        let mut report = Report::new("user.x", false);
        assert_eq!(report.last_line(), "user.x: not compared");
        report.outcome = Outcome::Same;
        report.here.server = "bw1".into();
        report.there.server = "bw2".into();
        report.relation = Some(Relation::BeforeSwitch(Side::Here));
        assert_eq!(report.last_line(), "user.x: no differences between bw1 and bw2");
        report.later.mailboxes = 1;
        report.later.messages = Later { new: 3, changed: 1, expunged: 0 };
        assert_eq!(
            report.last_line(),
            "user.x: no differences between bw1 and bw2; not copied yet: 3 new messages, 1 changed \
             in 1 mailbox"
        );
        report.outcome = Outcome::Different;
        report.differences = 1;
        report.relation = Some(Relation::AfterSwitch(Side::There));
        report.later = LaterTotals { other: 2, ..LaterTotals::default() };
        assert_eq!(
            report.last_line(),
            "user.x: 1 difference between bw1 and bw2; since the move: 2 changes besides messages"
        );
    }
}
