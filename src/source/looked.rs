//! What an earlier session of the move has looked at: where a directory has got and lost no
//! file since, its messages are not looked at again, one by one; nor is the index for the
//! plan, if it is the same.
//!
//! A message's file never changes, and one that is damaged later matters only if the target
//! does not have it yet: then it is read, and found out.

use super::mailbox::{Places, Stamp, now, stamp};
use crate::moves::sealed;
use crate::wire::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// The file that tells it, in the move's directory.
pub(super) const FILE: &str = "looked";

/// A look at a mailbox whose messages are all as its index says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
    /// Its directories, just before.
    directories: Vec<Option<Stamp>>,
    /// Its index.
    index: Option<Stamp>,
    /// When the stamps were taken, in seconds since 1970.
    taken: i64,
    /// The largest UID.
    checked: u32,
    messages: u64,
    bytes: u64,
    expunged: u64,
    archived: u64,
}

impl Look {
    /// Begins one, before anything is read.
    pub fn begin(places: &Places, index: Option<&Path>) -> Self {
        let taken = now();
        let directories = [Some(&places.messages), places.archived.as_ref()];
        Self {
            directories: directories.into_iter().flatten().map(|path| stamp(path)).collect(),
            index: index.and_then(stamp),
            taken,
            checked: 0,
            messages: 0,
            bytes: 0,
            expunged: 0,
            archived: 0,
        }
    }

    /// With nothing wrong in any message up to a UID, and what all of them are.
    pub fn ended(self, checked: u32, totals: &v1::Totals) -> Self {
        let v1::Totals { messages, bytes, expunged, archived, .. } = *totals;
        Self { checked, messages, bytes, expunged, archived, ..self }
    }

    /// Up to which UID no message has to be looked at `now`.
    pub fn checked(&self, now: &Self) -> Option<u32> {
        let settled = self.directories.iter().flatten().all(|stamp| stamp.is_settled(self.taken));
        (settled && self.directories == now.directories).then_some(self.checked)
    }

    /// What all messages are, if the index has not changed either.
    pub fn totals(&self, now: &Self) -> Option<v1::Totals> {
        let settled = self.index.is_some_and(|index| index.is_settled(self.taken));
        let same = settled && self.index == now.index && self.checked(now).is_some();
        same.then_some(v1::Totals {
            mailboxes: 1,
            messages: self.messages,
            bytes: self.bytes,
            expunged: self.expunged,
            archived: self.archived,
        })
    }
}

/// What was looked at, by uniqueid; nothing if there is no such file, or it is damaged.
pub(super) fn load(path: &Path) -> BTreeMap<String, Look> {
    sealed::load(path).unwrap_or_default()
}

/// Writes it down. Whoever does not find it looks again, so nobody waits for the disk.
pub(super) fn save(path: &Path, looked: &BTreeMap<&str, &Look>) -> io::Result<()> {
    sealed::save_in_time(path, looked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_holds_until_a_file_comes_or_goes() {
        let root = tempfile::tempdir().unwrap();
        let [messages, archived] = ["messages", "archived"].map(|name| root.path().join(name));
        let places = Places { messages: messages.clone(), archived: Some(archived.clone()) };
        let index = root.path().join("cyrus.index");
        std::fs::write(&index, "index").unwrap();
        let totals = v1::Totals { mailboxes: 1, messages: 2, bytes: 6, ..v1::Totals::default() };
        let look = || Look::begin(&places, Some(&index));
        // Time enough for a change to have another time.
        let later = || Look { taken: now() + 10, ..look() }.ended(7, &totals);
        for directory in [&messages, &archived] {
            std::fs::create_dir(directory).unwrap();
            std::fs::write(directory.join("1."), "one").unwrap();
        }
        let young = look().ended(7, &totals);
        assert_eq!(young.checked(&look()), None, "it may change in this very second");
        let before = later();
        assert_eq!(before.checked(&look()), Some(7));
        std::fs::write(messages.join("1."), "another").unwrap();
        assert_eq!(before.checked(&look()), Some(7), "no message's file changes");
        assert_eq!(before.totals(&look()), Some(totals));
        std::fs::write(&index, "another").unwrap();
        assert_eq!((before.totals(&look()), before.checked(&look())), (None, Some(7)));
        for directory in [&messages, &archived] {
            let before = later();
            std::fs::write(directory.join("2."), "two").unwrap();
            assert_eq!(before.checked(&look()), None);
            let before = later();
            std::fs::remove_file(directory.join("2.")).unwrap();
            assert_eq!(before.checked(&look()), None);
            let before = later();
            std::fs::rename(directory, root.path().join("away")).unwrap();
            assert_eq!(before.checked(&look()), None);
            std::fs::rename(root.path().join("away"), directory).unwrap();
        }
    }

    #[test]
    fn what_is_damaged_was_never_looked_at() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(FILE);
        assert!(load(&path).is_empty());
        let places = Places { messages: root.path().to_owned(), archived: None };
        let look = Look::begin(&places, None).ended(3, &v1::Totals::default());
        save(&path, &BTreeMap::from([("abc", &look)])).unwrap();
        assert_eq!(load(&path), BTreeMap::from([("abc".to_owned(), look)]));
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, bytes.get(..bytes.len() - 1).unwrap()).unwrap();
        assert!(load(&path).is_empty());
    }
}
