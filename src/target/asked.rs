//! What the target asks for: nothing else may arrive.

use super::receive::{Expected, Item, ItemKey, Size};
use super::stage::StagedDirectory;
use super::staged::message_name;
use crate::wire::bulk;
use crate::wire::manifest;
use crate::wire::v1::{self, FileKind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A message that is wanted: a mailbox may have millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its UID.
    pub uid: u32,
    size: [u8; 8],
}

impl Wanted {
    /// Of a message of `size` bytes.
    pub fn new(uid: u32, size: u64) -> Self {
        Self { uid, size: size.to_ne_bytes() }
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        u64::from_ne_bytes(self.size)
    }
}

/// What is wanted of one mailbox.
#[derive(Debug, Default)]
pub struct MailboxWants {
    /// Messages, in UID order.
    pub messages: Arc<Vec<Wanted>>,
    /// Metadata files.
    pub files: Vec<FileKind>,
}

impl MailboxWants {
    /// Wants a message of a larger UID than all before.
    pub fn add(&mut self, message: Wanted) {
        Arc::make_mut(&mut self.messages).push(message);
    }

    /// Wants some messages more.
    pub fn add_all(&mut self, more: impl Iterator<Item = Wanted>) {
        let messages = Arc::make_mut(&mut self.messages);
        let before = messages.len();
        messages.extend(more);
        if before > 0 && before < messages.len() {
            messages.sort_unstable_by_key(|message| message.uid);
        }
    }

    /// As the source is told.
    pub fn to_wire(&self, mailbox: u32, bases: Vec<v1::Base>) -> v1::Want {
        v1::Want {
            mailbox,
            bases,
            uid_runs: manifest::runs(self.messages.iter().map(|e| e.uid)),
            files: self.files.iter().map(|k| i32::from(*k)).collect(),
        }
    }

    /// Bytes of the wanted messages.
    pub fn bytes(&self) -> u64 {
        self.messages.iter().fold(0, |all, message| all.saturating_add(message.size()))
    }

    /// Whether nothing is wanted.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.files.is_empty()
    }
}

/// What was asked of the source and may arrive.
pub struct Asked {
    /// By mailbox.
    pub(super) messages: BTreeMap<u32, AskedMessages>,
    /// All other files.
    pub(super) files: BTreeMap<ItemKey, Item>,
}

/// Messages of one mailbox.
pub(super) struct AskedMessages {
    /// Where they go.
    pub directory: Arc<StagedDirectory>,
    /// Which, in UID order.
    pub wanted: Arc<Vec<Wanted>>,
    /// Where some go instead, and which.
    pub archive: Option<(Arc<StagedDirectory>, BTreeSet<u32>)>,
}

impl Asked {
    /// The versions that the source may patch, of the files of a mailbox.
    pub fn bases(&self, mailbox: u32) -> Vec<v1::Base> {
        let of_mailbox = self.files.range((mailbox, 0, 0)..=(mailbox, u8::MAX, u32::MAX));
        let bases = of_mailbox.filter_map(|((_, kind, _), item)| {
            let blake3 = Bytes::copy_from_slice(&item.base.as_ref()?.blocks.blake3());
            Some(v1::Base { kind: i32::from(*kind), number: 0, blake3 })
        });
        bases.collect()
    }
}

impl Expected for Asked {
    fn item(&self, key: ItemKey) -> Option<Item> {
        let (mailbox, kind, uid) = key;
        if kind == FileKind::Message as u8 {
            let AskedMessages { directory, wanted, archive } = self.messages.get(&mailbox)?;
            let at = wanted.binary_search_by_key(&uid, |message| message.uid).ok()?;
            let size = wanted.get(at)?.size();
            let archived = archive.as_ref().filter(|(_, uids)| uids.contains(&uid));
            return Some(Item {
                directory: Arc::clone(archived.map_or(directory, |(archive, _)| archive)),
                name: message_name(uid),
                size: Size::Exactly(size),
                replaces: false,
                base: None,
            });
        }
        self.files.get(&key).cloned()
    }
}

/// How large a file besides messages may be. What is read whole here has to fit into
/// memory; a cache, which is not, has some kilobytes of each message.
pub(super) fn largest(kind: FileKind) -> Size {
    Size::AtMost(match kind {
        FileKind::Header | FileKind::SieveBytecode | FileKind::SieveScript => 64 << 20,
        FileKind::Cache => (manifest::MAX_MESSAGES as u64) << 14,
        _ => 4 << 30,
    })
}

// Chunks name kinds by one byte; the largest kind must fit.
const _: () = assert!((FileKind::SieveScript as i32) < 256 && bulk::CHUNK_HEADER == 72);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_be_added_are_too_many_bytes() {
        let messages = Arc::new(vec![Wanted::new(1, u64::MAX - 5); 3]);
        let wants = MailboxWants { messages, files: Vec::new() };
        assert_eq!(wants.bytes(), u64::MAX);
    }

    #[test]
    fn what_is_wanted_again_takes_its_place() {
        let mut wants = MailboxWants::default();
        wants.add(Wanted::new(7, 1));
        wants.add_all([Wanted::new(3, 2), Wanted::new(9, 1 << 40)].into_iter());
        let uids: Vec<u32> = wants.messages.iter().map(|message| message.uid).collect();
        assert_eq!((uids.as_slice(), wants.bytes()), (&[3, 7, 9][..], 3 + (1 << 40)));
        assert_eq!(size_of::<Wanted>(), 12);
    }
}
