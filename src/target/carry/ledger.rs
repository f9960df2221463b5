//! What carrying over has done, so that it is done once: each line is on stable
//! storage before the step that it announces.
//!
//! A file that only grows. Each line is sealed by a hash: a last line that is torn
//! was never acted upon, and any other that is not as it was written is refused.

use crate::fault::{self, Point};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A message of the source: its mailbox's uniqueid, and its UID. One that is here
/// and gets a new UID has ` here` after the mailbox's.
pub type Message = (String, u32);

/// A line of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Line {
    /// A message is about to be appended.
    Appending(Message, Appending),
    /// It is there.
    Appended(Message, Appended),
    /// Messages of this mailbox are about to be expunged, by their UIDs here.
    Expunging(String, Vec<u32>),
    /// What was changed on the source is settled here.
    Settled(Message, Settled),
    /// A mailbox of the source is that one here, by their uniqueids.
    Placed(String, String),
    /// Something else was done, by a text that names it.
    Did(Deed, String),
    /// The user subscribes to that mailbox now, or not any more; whether he did when he was
    /// published.
    Subscribed(Vec<u8>, bool, bool),
    /// Rights in a mailbox of the source were changed: whose, and what they were when it was
    /// published.
    Rights(String, Vec<u8>, Vec<u8>),
    /// A sieve script of the source was put here, under this name.
    Put(Message, String),
    /// Something of a message that was carried over was left behind: its mailbox, its UID,
    /// and what.
    Left(String, u32, String),
}

/// A message that is about to be appended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Appending {
    /// The uniqueid of the mailbox here.
    pub to: String,
    /// The lowest UID that it can get.
    pub from: u32,
    /// SHA-1 of its bytes, as text.
    pub guid: String,
    /// Its INTERNALDATE, in seconds since 1970.
    pub date: i64,
}

/// A message that was appended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Appended {
    /// The uniqueid of the mailbox here.
    pub to: String,
    /// Its UID here.
    pub uid: u32,
    /// Its MODSEQ on the source.
    pub modseq: u64,
}

/// What was made of a change on the source.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Settled {
    /// The MODSEQ on the source that this is about.
    pub modseq: u64,
    /// The MODSEQ here afterwards; 0: not known.
    pub here: u64,
    /// What was made of it.
    pub how: How,
}

/// What was made of a change on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum How {
    /// It has the source's flags, or both servers'.
    Flags,
    /// It is expunged.
    Expunged,
    /// It was as it should be already.
    Same,
    /// It is expunged on the source, was changed here, and stays.
    Kept,
}

/// What else was done.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Deed {
    /// A mailbox was made, renamed or deleted.
    Mailbox,
    /// Rights, subscriptions or sieve scripts were changed.
    Other,
    /// Something was begun; does not count.
    Begun,
}

/// The ledger of a move.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    /// Appends that were announced and of which no more is known.
    pub pending: BTreeMap<Message, Appending>,
    /// Messages that were appended.
    pub appended: BTreeMap<Message, Appended>,
    /// Changes that were settled.
    pub settled: BTreeMap<Message, Settled>,
    /// Messages here that were to be expunged, by the mailbox on the source.
    pub expunging: BTreeSet<Message>,
    /// Mailboxes here of mailboxes of the source.
    pub placed: BTreeMap<String, String>,
    /// What else was done.
    pub deeds: BTreeSet<(Deed, String)>,
    /// Mailboxes whose subscriptions were changed: what they are now, and what they were.
    pub subscribed: BTreeMap<Vec<u8>, (bool, bool)>,
    /// Rights that were changed, by the mailbox on the source and by whose they are: what
    /// they were.
    pub rights: BTreeMap<(String, Vec<u8>), Vec<u8>>,
    /// The names of sieve scripts that were put here.
    pub scripts: BTreeMap<Message, String>,
    /// What was left behind of messages that were carried over.
    pub left: BTreeSet<(String, u32, String)>,
}

impl Ledger {
    /// Opens the ledger, making it where it is missing.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        let bytes = std::fs::read(path)?;
        let mut ledger = Self {
            file,
            pending: BTreeMap::new(),
            appended: BTreeMap::new(),
            settled: BTreeMap::new(),
            expunging: BTreeSet::new(),
            placed: BTreeMap::new(),
            deeds: BTreeSet::new(),
            subscribed: BTreeMap::new(),
            rights: BTreeMap::new(),
            scripts: BTreeMap::new(),
            left: BTreeSet::new(),
        };
        let mut good = 0;
        for line in bytes.split_inclusive(|b| *b == b'\n') {
            match unseal(line) {
                Some(line) => ledger.take(line),
                None if good + line.len() == bytes.len() => {
                    ledger.file.set_len(good as u64)?;
                    break;
                }
                None => {
                    let text = format!("{} is damaged at byte {good}", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, text));
                }
            }
            good += line.len();
        }
        Ok(ledger)
    }

    /// Adds lines; durable on return.
    pub fn write(&mut self, lines: impl IntoIterator<Item = Line>) -> io::Result<()> {
        let mut bytes = Vec::new();
        let mut taken = Vec::new();
        for line in lines {
            let json = serde_json::to_vec(&line)?;
            bytes.extend_from_slice(blake3::hash(&json).to_hex().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(&json);
            bytes.push(b'\n');
            taken.push(line);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        fault::check(Point::LedgerWrite)?;
        self.file.write_all(&bytes)?;
        self.file.sync_data()?;
        taken.into_iter().for_each(|line| self.take(line));
        Ok(())
    }

    /// How many messages of the source were appended.
    pub fn carried(&self) -> u64 {
        self.appended.keys().filter(|(mailbox, _)| !mailbox.contains(' ')).count() as u64
    }

    /// How many changes were settled this way.
    pub fn count(&self, how: How) -> u64 {
        self.settled.values().filter(|s| s.how == how).count() as u64
    }

    /// How many things of that kind were done.
    pub fn deeds(&self, deed: Deed) -> u64 {
        self.deeds.iter().filter(|(d, _)| *d == deed).count() as u64
    }

    /// The UIDs on the source of the messages of a mailbox of it that were appended.
    pub fn appended_of(&self, mailbox: &str) -> impl Iterator<Item = u32> + '_ {
        let (first, last) = ((mailbox.to_owned(), 0), (mailbox.to_owned(), u32::MAX));
        self.appended.range(first..=last).map(|((_, uid), _)| *uid)
    }

    /// The scripts of a mailbox of the source that were put here: their UIDs there, and
    /// their names.
    pub fn scripts_of(&self, mailbox: &str) -> impl Iterator<Item = (u32, &String)> + '_ {
        let (first, last) = ((mailbox.to_owned(), 0), (mailbox.to_owned(), u32::MAX));
        self.scripts.range(first..=last).map(|((_, uid), name)| (*uid, name))
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Appending(message, appending) => {
                self.pending.insert(message, appending);
            }
            Line::Appended(message, appended) => {
                self.pending.remove(&message);
                self.appended.insert(message, appended);
            }
            Line::Expunging(mailbox, uids) => {
                self.expunging.extend(uids.into_iter().map(|uid| (mailbox.clone(), uid)));
            }
            Line::Settled(message, settled) => {
                // That there was nothing more to do does not undo what was done.
                let before = self.settled.get(&message).map(|s| s.how);
                let how = before.filter(|_| settled.how == How::Same).unwrap_or(settled.how);
                self.settled.insert(message, Settled { how, ..settled });
            }
            Line::Placed(source, here) => {
                self.placed.insert(source, here);
            }
            Line::Did(deed, what) => {
                self.deeds.insert((deed, what));
            }
            Line::Subscribed(name, now, then) => {
                self.subscribed.insert(name, (now, then));
            }
            Line::Rights(mailbox, identifier, then) => {
                self.rights.entry((mailbox, identifier)).or_insert(then);
            }
            Line::Put(message, name) => {
                self.scripts.insert(message, name);
            }
            Line::Left(mailbox, uid, text) => {
                self.left.insert((mailbox, uid, text));
            }
        }
    }
}

fn unseal(line: &[u8]) -> Option<Line> {
    let (seal, json) = line.strip_suffix(b"\n")?.split_at_checked(64)?;
    let json = json.strip_prefix(b" ")?;
    if blake3::hash(json).to_hex().as_bytes() != seal {
        return None;
    }
    serde_json::from_slice(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines() -> Vec<Line> {
        let message = ("abc".to_owned(), 7);
        let appending = Appending { to: "def".into(), from: 9, guid: "00".into(), date: 5 };
        vec![
            Line::Appending(message.clone(), appending),
            Line::Appended(message.clone(), Appended { to: "def".into(), uid: 9, modseq: 3 }),
            Line::Settled(message, Settled { modseq: 4, here: 0, how: How::Flags }),
        ]
    }

    #[test]
    fn what_was_written_is_known_again_and_a_torn_line_was_never_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Ledger::open(&path).unwrap().write(lines()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let ledger = Ledger::open(&path).unwrap();
        assert!(ledger.pending.is_empty());
        assert_eq!((ledger.appended.len(), ledger.count(How::Flags)), (1, 1));
        let last = whole.split_inclusive(|b| *b == b'\n').next_back().unwrap().len();
        for cut in 1..=last {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let ledger = Ledger::open(&path).unwrap();
            assert_eq!((ledger.appended.len(), ledger.settled.len()), (1, 0), "cut {cut}");
            assert_eq!(std::fs::metadata(&path).unwrap().len() as usize, whole.len() - last);
        }
    }

    #[test]
    fn what_was_before_the_first_change_stays_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        let rights = |then: &[u8]| Line::Rights("abc".into(), b"bob".to_vec(), then.to_vec());
        let put = |id: &str, uid| Line::Put((id.into(), uid), format!("{id}{uid}"));
        let left = Line::Left("user.x".into(), 7, "its flag".into());
        let lines =
            [rights(b"lr"), rights(b"lrs"), put("abc", 1), put("abd", 2), left.clone(), left];
        Ledger::open(&path).unwrap().write(lines).unwrap();
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.rights.into_values().collect::<Vec<_>>(), [b"lr"]);
        assert_eq!(ledger.left.len(), 1);
        let ledger = Ledger::open(&path).unwrap();
        let scripts: Vec<_> = ledger.scripts_of("abc").collect();
        assert_eq!(scripts, [(1, &"abc1".to_owned())]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_lines_or_refused(
            bytes in proptest::prelude::any::<Vec<u8>>(),
            json in "[{}\\[\\]\":,0-9A-Za-z]{0,60}",
        ) {
            let sealed = format!("{} {json}\n", blake3::hash(json.as_bytes()).to_hex());
            let _ = unseal(sealed.as_bytes());
            assert!(unseal(&bytes).is_none());
        }
    }

    #[test]
    fn a_line_that_was_changed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger");
        Ledger::open(&path).unwrap().write(lines()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[80] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Ledger::open(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
