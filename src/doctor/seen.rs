//! What was seen on one server of a user: values only.

use super::list::List;
use crate::wire::v1;
use std::collections::{BTreeMap, BTreeSet};

/// A message of an index, expunged ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Its UID.
    pub uid: u32,
    /// Whether it is expunged.
    pub expunged: bool,
    /// When it came into this mailbox, seconds since 1970.
    pub saved: u32,
    /// SHA-1 of its content; zeros: not known.
    pub guid: [u8; 20],
}

/// Bytes of one packed message.
const PACKED: usize = 29;

impl Message {
    /// Appends the form that it has on the wire.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.uid.to_be_bytes());
        out.push(u8::from(self.expunged));
        out.extend_from_slice(&self.saved.to_be_bytes());
        out.extend_from_slice(&self.guid);
    }

    /// Reads a list; a rest that is no whole message is left out.
    pub fn unpack(packed: &[u8]) -> impl Iterator<Item = Message> + '_ {
        packed.as_chunks::<PACKED>().0.iter().map(|bytes| {
            let [a, b, c, d, expunged, e, f, g, h, guid @ ..] = bytes;
            Message {
                uid: u32::from_be_bytes([*a, *b, *c, *d]),
                expunged: *expunged != 0,
                saved: u32::from_be_bytes([*e, *f, *g, *h]),
                guid: *guid,
            }
        })
    }
}

/// What a record of mailboxes.db makes of a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Standing {
    /// In use.
    #[default]
    Live,
    /// Marked as moving to another server.
    Moving,
    /// On another server.
    Remote,
    /// A tombstone that still names a partition.
    Deleted,
    /// A tombstone.
    Gone,
    /// mbcopy has put it away; the record sends clients away.
    PutAway,
    /// No name leads to it, only its id.
    Unnamed,
    /// Reserved.
    Reserved,
}

/// A mailbox as one server has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mailbox {
    /// Internal name.
    pub name: Vec<u8>,
    /// As an admin types it.
    pub display: String,
    /// Uniqueid; empty when the record has none.
    pub id: String,
    /// Where it is.
    pub partition: String,
    /// The server that its record names.
    pub server: String,
    /// What its record makes of it.
    pub standing: Standing,
    /// Only a place in the hierarchy.
    pub name_only: bool,
    /// Kept by delayed delete.
    pub kept: bool,
    /// The name that it had before it was.
    pub original: Vec<u8>,
    /// When its record was changed, seconds since 1970; 0: not known.
    pub changed: i64,
    /// MODSEQs of its last change as a folder and of its creation; 0: its record has none.
    pub modseqs: [u64; 2],
    /// Whether its index is there and can be read.
    pub has_index: bool,
    /// Why its files cannot be read.
    pub unreadable: String,
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// The last UID that was given.
    pub last_uid: u32,
    /// Its messages, UIDs ascending.
    pub messages: Vec<Message>,
    /// Messages whose files cannot be read.
    pub bad: Vec<String>,
}

impl Mailbox {
    /// Messages that are not expunged.
    pub fn present(&self) -> impl Iterator<Item = &Message> {
        self.messages.iter().filter(|m| !m.expunged)
    }

    /// Whether its files are here, whatever its record says.
    pub fn has_files(&self) -> bool {
        self.has_index || self.name_only
    }

    /// The contents of all that was ever in it and is still listed.
    pub fn guids(&self) -> BTreeMap<[u8; 20], usize> {
        let mut guids = BTreeMap::new();
        for message in &self.messages {
            *guids.entry(message.guid).or_default() += 1;
        }
        guids
    }
}

/// A move that a journal knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Its id.
    pub id: String,
    /// This server's part in it.
    pub role: v1::Role,
    /// The other server.
    pub peer: String,
    /// Its state, a word of the journal.
    pub state: String,
    /// When that was written, milliseconds since 1970.
    pub updated: i64,
    /// Whether it is a repair of the doctor's.
    pub repair: bool,
}

/// One server, and all it has of the user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// What it calls itself; then other names of it.
    pub names: Vec<String>,
    /// Its version of Cyrus.
    pub version: String,
    /// The mailboxes, by name, the top one first.
    pub mailboxes: Vec<Mailbox>,
    /// Kinds of the user's own files.
    pub files: BTreeSet<v1::FileKind>,
    /// How many quota roots he has.
    pub quota_roots: u32,
    /// The moves that its journal knows, oldest first.
    pub moves: Vec<Move>,
    /// The ids of mailboxes that a move has taken from this server, as a repair that is not
    /// over has found out: they are to come back whole.
    pub taken: BTreeSet<String>,
    /// Whether a repair is possible on this release of Cyrus.
    pub repairable: bool,
    /// What it was told of a Murder's list; none: it is of no Murder.
    pub list: Option<List>,
}

impl Seen {
    /// How messages call it.
    pub fn server(&self) -> &str {
        self.names.first().map_or("this server", String::as_str)
    }

    /// Whether a record names this server.
    pub fn is_called(&self, name: &str) -> bool {
        let short = |name: &str| name.split(['.', '!']).next().unwrap_or_default().to_lowercase();
        !name.is_empty() && self.names.iter().any(|ours| ours == name || short(ours) == short(name))
    }

    /// The mailboxes whose records say this, but those that delayed delete keeps.
    pub fn of(&self, standing: Standing) -> impl Iterator<Item = &Mailbox> + Clone {
        self.mailboxes.iter().filter(move |m| m.standing == standing && !m.kept)
    }

    /// Whether there is a mailbox of this kind.
    pub fn any(&self, standing: Standing) -> bool {
        self.of(standing).next().is_some()
    }

    /// The mailbox that corresponds to one of another server: by its id, else by its name.
    pub fn twin(&self, other: &Mailbox) -> Option<&Mailbox> {
        let by_id = |m: &&Mailbox| !other.id.is_empty() && m.id == other.id;
        let by_name = |m: &&Mailbox| {
            m.name == other.name && !matches!(m.standing, Standing::Gone | Standing::Unnamed)
        };
        self.mailboxes.iter().find(by_id).or_else(|| self.mailboxes.iter().find(by_name))
    }

    /// The move that is not over.
    pub fn unfinished(&self) -> Option<&Move> {
        self.moves.iter().rfind(|m| !crate::moves::journal::state::is_over(&m.state))
    }
}
