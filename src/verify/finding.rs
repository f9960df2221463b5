//! What a comparison found, and how it is told.

use serde::Serialize;
use std::fmt::Write;

/// One of the two copies that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The copy on this server.
    Here,
    /// The copy on the other one.
    There,
}

impl Side {
    /// Both.
    pub const BOTH: [Side; 2] = [Side::Here, Side::There];

    /// The other one.
    pub fn other(self) -> Side {
        match self {
            Side::Here => Side::There,
            Side::There => Side::Here,
        }
    }
}

/// How the two copies belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "relation", content = "in_use")]
pub enum Relation {
    /// Both are in use: they should be equal.
    BothLive,
    /// One is in use; the other is the stage of a move that has not got there:
    /// what it lacks was not copied yet.
    BeforeSwitch(Side),
    /// One is in use; the other was put away when the user was switched over.
    AfterSwitch(Side),
}

impl Relation {
    /// The copy that has gone on since the other was as it is.
    pub fn later(self) -> Option<Side> {
        match self {
            Relation::BothLive => None,
            Relation::BeforeSwitch(side) | Relation::AfterSwitch(side) => Some(side),
        }
    }

    /// Whether the copy on `side` may lack what was not copied yet.
    pub fn incomplete(self, side: Side) -> bool {
        matches!(self, Relation::BeforeSwitch(later) if later != side)
    }

    /// How what is newer on one side is called.
    pub fn later_word(self) -> &'static str {
        match self {
            Relation::BothLive => "newer",
            Relation::BeforeSwitch(_) => "not copied yet",
            Relation::AfterSwitch(_) => "since the move",
        }
    }
}

/// What a finding is about; its word in JSON is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A mailbox.
    Mailbox,
    /// The name of a mailbox.
    Name,
    /// The id of a mailbox.
    UniqueId,
    /// A mailbox that cannot be read.
    UnreadableMailbox,
    /// UIDVALIDITY.
    UidValidity,
    /// The highest UID, from which UIDNEXT comes.
    LastUid,
    /// HIGHESTMODSEQ.
    HighestModseq,
    /// The highest UID that is not \Recent.
    RecentUid,
    /// A message.
    Message,
    /// A message's size.
    Size,
    /// A message's SHA-1, as the index has it.
    Guid,
    /// A message's INTERNALDATE.
    InternalDate,
    /// A message's SAVEDATE.
    SaveDate,
    /// A message's flags and keywords.
    Flags,
    /// Whether a message is expunged.
    Expunged,
    /// A message's MODSEQ.
    Modseq,
    /// An annotation of a message.
    MessageAnnotation,
    /// A message's file is not there.
    MissingFile,
    /// A message's file has another size than the index says.
    FileSize,
    /// A message's file cannot be read.
    UnreadableFile,
    /// A message's file has not the SHA-1 that the index says.
    RottenFile,
    /// The bytes of a message's two files.
    Content,
    /// The rights of somebody on a mailbox.
    Rights,
    /// A property of a mailbox.
    Property,
    /// The name of a keyword that a mailbox knows.
    Keyword,
    /// An annotation of a mailbox or of the server.
    Annotation,
    /// A subscription.
    Subscription,
    /// What the user has read in a mailbox of somebody else.
    Seen,
    /// A sieve script.
    SieveScript,
    /// Which sieve script is active.
    ActiveSieveScript,
    /// A limit of a quota root.
    QuotaLimit,
    /// Something else, of a newer program on the other side.
    Other,
    /// A file of the user that cannot be read.
    UnreadableData,
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Mailbox => "the mailbox",
            Kind::Name => "its name",
            Kind::UniqueId => "its id",
            Kind::UnreadableMailbox => "it cannot be read",
            Kind::UidValidity => "UIDVALIDITY",
            Kind::LastUid => "the last UID",
            Kind::HighestModseq => "HIGHESTMODSEQ",
            Kind::RecentUid => "the last UID that is not \\Recent",
            Kind::Message => "it",
            Kind::Size => "size",
            Kind::Guid => "SHA-1 in the index",
            Kind::InternalDate => "INTERNALDATE",
            Kind::SaveDate => "SAVEDATE",
            Kind::Flags => "flags",
            Kind::Expunged => "state",
            Kind::Modseq => "MODSEQ",
            Kind::MessageAnnotation | Kind::Annotation => "the annotation",
            Kind::MissingFile => "its file is missing",
            Kind::FileSize => "its file has another size",
            Kind::UnreadableFile => "its file cannot be read",
            Kind::RottenFile => "its file has rotted",
            Kind::Content => "BLAKE3 of its file",
            Kind::Rights => "the ACL entry of",
            Kind::Property => "the property",
            Kind::Keyword => "the keyword",
            Kind::Subscription => "the subscription to",
            Kind::Seen => "what was read in",
            Kind::SieveScript => "the sieve script",
            Kind::ActiveSieveScript => "the active sieve script",
            Kind::QuotaLimit => "the quota limit",
            Kind::Other => "the entry",
            Kind::UnreadableData => "a file of the user cannot be read",
        }
    }
}

/// Something that is not the same on both sides, or is damaged on one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// The mailbox, or the user's top mailbox.
    pub mailbox: String,
    /// The message; 0 when it is not about one.
    #[serde(skip_serializing_if = "is_zero")]
    pub uid: u32,
    /// Which of several: an identifier, the name of an annotation; or of
    /// damage, more about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// The damaged side, of damage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// What this server has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub here: Option<String>,
    /// What the other server has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub there: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // the form that serde asks for
fn is_zero(uid: &u32) -> bool {
    *uid == 0
}

impl Finding {
    /// A thing that one side has otherwise than the other, or not at all.
    pub fn differs(
        kind: Kind,
        mailbox: &str,
        uid: u32,
        what: impl Into<String>,
        [here, there]: [Option<String>; 2],
    ) -> Self {
        Self { kind, mailbox: mailbox.into(), uid, what: what.into(), side: None, here, there }
    }

    /// Damage on one side.
    pub fn damage(kind: Kind, mailbox: &str, uid: u32, side: Side, what: String) -> Self {
        Self { kind, mailbox: mailbox.into(), uid, what, side: Some(side), here: None, there: None }
    }

    /// One line for people; `names` are the servers', this one's first.
    pub fn line(&self, names: &[String; 2]) -> String {
        let name = |side: Side| names[side as usize].as_str();
        let mut line = format!("{}: ", self.mailbox);
        if self.uid != 0 {
            let _ = write!(line, "message {}: ", self.uid);
        }
        line.push_str(self.kind.noun());
        if let Some(side) = self.side {
            let _ = write!(line, " on {}", name(side));
            if !self.what.is_empty() {
                let _ = write!(line, ": {}", self.what);
            }
            return line;
        }
        if !self.what.is_empty() {
            let _ = write!(line, " {}", self.what);
        }
        let values = [(Side::Here, &self.here), (Side::There, &self.there)];
        let lacking = values.iter().find(|(_, value)| value.is_none());
        let having = values.iter().find_map(|(side, value)| Some((*side, value.as_ref()?)));
        match (lacking, having) {
            (Some((side, _)), Some((other, value))) => {
                let _ = write!(line, " is missing on {}", name(*side));
                if !value.is_empty() {
                    let _ = write!(line, "; {} has {value}", name(other));
                }
            }
            _ => {
                let shown = |value: &Option<String>| match value.as_deref() {
                    None | Some("") => "nothing".to_owned(),
                    Some(value) => value.to_owned(),
                };
                let (here, there) = (shown(&self.here), shown(&self.there));
                let [a, b] = names;
                let _ = write!(line, ": {a} has {here}, {b} has {there}");
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_mailbox_message_and_side() {
        let names = ["bw1".to_owned(), "bw2".to_owned()];
        let both = |a: &str, b: &str| [Some(a.to_owned()), Some(b.to_owned())];
        let line = |f: Finding| f.line(&names);
        assert_eq!(
            line(Finding::differs(Kind::Flags, "user.x", 3, "", both("\\Seen", ""))),
            "user.x: message 3: flags: bw1 has \\Seen, bw2 has nothing"
        );
        assert_eq!(
            line(Finding::differs(Kind::Rights, "user.x", 0, "anna", [None, Some("lrs".into())])),
            "user.x: the ACL entry of anna is missing on bw1; bw2 has lrs"
        );
        assert_eq!(
            line(Finding::damage(Kind::MissingFile, "user.x", 3, Side::There, "/p/3.".into())),
            "user.x: message 3: its file is missing on bw2: /p/3."
        );
        assert_eq!(
            line(Finding::differs(Kind::Message, "user.x", 3, "", [Some(String::new()), None])),
            "user.x: message 3: it is missing on bw2"
        );
    }
}
