//! Comparing what the source has with what the stage holds.
//!
//! The target alone knows what it has: it is told everything and answers with
//! what it wants. A file counts as held once its bytes were verified in this
//! session; what an earlier session left is verified by its GUID first.

use super::asked::{Asked, AskedMessages, MailboxWants, largest};
use super::earlier;
use super::earlier::Earlier;
use super::receive::{Arrived, Held, Item, ItemKey};
use super::stage::{Stage, StageError, StagedDirectory, Trace};
use super::staged::{StagedMailbox, hash, meta_name};
use super::user_files::{OfferedUserFile, USER_KINDS, UserPlace, stage_root, user_place};
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::release::Release;
use crate::wire::USER;
use crate::wire::manifest;
use crate::wire::v1::{self, FileKind};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Threads that open what an earlier session has left.
const OPENERS: usize = 8;

/// What the peer offered that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// A breach of the protocol.
    #[error("the source offers {0}")]
    Nonsense(String),
    /// The stage fails.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The layout of this server is not known.
    #[error("{0}")]
    Layout(String),
}

/// Everything that is staged of a move.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The mailboxes by ordinal.
    pub mailboxes: BTreeMap<u32, StagedMailbox>,
    /// What an earlier session has left, and what this server's Cyrus is.
    earlier: Option<(Earlier, &'static Release)>,
    /// The user's files of the last offer.
    pub user_files: Vec<OfferedUserFile>,
    /// BLAKE3 of the user's files that are staged, as they came.
    staged_user_files: BTreeMap<UserPlace, [u8; 32]>,
    /// Whether they are what an earlier session has left.
    user_files_as_earlier: bool,
    /// Those of them that can be patched.
    held_user_files: BTreeMap<UserPlace, Held>,
    /// The user's files that are as the source wrote them, since they arrived.
    pub user_files_as_sent: BTreeSet<UserPlace>,
    /// Quota roots, annotations and the active script of the last offer.
    pub rest: v1::ScanDone,
}

impl Inventory {
    /// Takes the source's list of mailboxes: new ones get a place in the
    /// stage, those that are not listed any more leave the move.
    pub fn table(
        &mut self,
        stage: &Stage,
        table: v1::Table,
        check: impl Fn(&v1::Mailbox) -> Result<Checked, OfferError>,
    ) -> Result<(), OfferError> {
        if table.mailboxes.len() > manifest::MAX_MAILBOXES {
            let most = manifest::MAX_MAILBOXES;
            return Err(OfferError::Nonsense(format!("more than {most} mailboxes")));
        }
        let mut known = std::mem::take(&mut self.mailboxes);
        let mut new = Vec::new();
        for mailbox in table.mailboxes {
            let ordinal = mailbox.ordinal;
            let checked = check(&mailbox)?;
            let same = known
                .remove(&mailbox.ordinal)
                .filter(|m| m.id == checked.id && m.partition == checked.partition);
            let Some(mut staged) = same else {
                new.push((mailbox, checked));
                continue;
            };
            staged.dirty |= staged.name != checked.name;
            staged.name = checked.name;
            staged.name_only = mailbox.partition.is_empty();
            staged.name_record = mailbox.name_record.to_vec();
            staged.id_record = mailbox.id_record.to_vec();
            self.add(ordinal, staged)?;
        }
        for (ordinal, staged) in self.open_all(stage, new)? {
            self.add(ordinal, staged)?;
        }
        Ok(())
    }

    fn add(&mut self, ordinal: u32, mailbox: StagedMailbox) -> Result<(), OfferError> {
        match self.mailboxes.insert(ordinal, mailbox) {
            None => Ok(()),
            Some(_) => Err(OfferError::Nonsense(format!("ordinal {ordinal} twice"))),
        }
    }

    /// Opens the places of mailboxes in the stage, several at once: an earlier session may
    /// have left many files to look at.
    fn open_all(
        &self,
        stage: &Stage,
        mailboxes: Vec<(v1::Mailbox, Checked)>,
    ) -> Result<Vec<(u32, StagedMailbox)>, OfferError> {
        let earlier = self.earlier.as_ref().map(|(earlier, release)| (earlier, *release));
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(OPENERS));
        let left = Mutex::new(mailboxes.into_iter());
        let open = || {
            let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
            std::iter::from_fn(next)
                .map(|(mailbox, checked)| {
                    let staged = StagedMailbox::open(stage, &mailbox, checked, earlier)?;
                    Ok((mailbox.ordinal, staged))
                })
                .collect::<Result<Vec<_>, OfferError>>()
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(open)).collect();
            let mut all = open()?;
            for other in others {
                let panicked = |_| OfferError::Layout("opening the stage has failed".into());
                all.extend(other.join().map_err(panicked)??);
            }
            Ok(all)
        })
    }

    /// Takes up what an earlier session has left, before anything is offered.
    pub fn take_up(&mut self, stage: &Stage, release: Option<&'static Release>) {
        self.earlier = Earlier::load(stage).zip(release);
        let held = self.earlier.as_ref().map(|(earlier, r)| earlier.user_files(stage, r));
        let held = held.unwrap_or_default();
        // They may be gone by now.
        earlier::remove_others(stage, &held);
        self.staged_user_files = held.into_iter().collect();
        self.user_files_as_earlier = true;
    }

    /// Whether all that is staged is what an earlier session has left, and this server's Cyrus
    /// accepted it then.
    pub fn is_as_earlier(&self) -> bool {
        let Some((earlier, release)) = &self.earlier else { return false };
        let mut mailboxes = self.mailboxes.values().filter(|m| !m.name_only);
        earlier.is_accepted(release)
            && mailboxes.clone().count() == earlier.count()
            && mailboxes.all(|m| m.as_earlier && m.is_consistent())
            && self.user_files_as_earlier
            && self.user_files_complete()
    }

    /// The user's files that are staged in the form of this server's Cyrus, with their BLAKE3
    /// as they came.
    pub fn staged_user_files(&self) -> impl Iterator<Item = (&UserPlace, &[u8; 32])> {
        let files = self.staged_user_files.iter();
        files.filter(|(place, _)| !self.user_files_as_sent.contains(place))
    }

    /// The user's INBOX; none of a shared tree.
    pub fn inbox(&self) -> Option<&StagedMailbox> {
        self.mailboxes.values().find(|m| m.name.inbox().as_ref() == Some(&m.name))
    }

    /// Takes the end of an offer: files of the user, and what has no files.
    pub fn scan_done(&mut self, stage: &Stage, done: v1::ScanDone) -> Result<(), OfferError> {
        let inbox = self.inbox();
        let mut offered = Vec::new();
        for file in &done.user_files {
            let Some(inbox) = inbox else {
                return Err(OfferError::Nonsense("files of a user without an INBOX".into()));
            };
            offered.push(OfferedUserFile {
                number: file.number,
                kind: file.kind(),
                blake3: hash(&file.blake3)?,
                place: user_place(stage, inbox, file)?,
            });
        }
        // A file that the source has no more must not be published.
        let places: BTreeSet<_> = offered.iter().map(|f| &f.place).collect();
        self.staged_user_files.retain(|place, _| {
            let keep = places.contains(place);
            if !keep {
                self.user_files_as_earlier = false;
                let _ = std::fs::remove_file(place.path(stage));
            }
            keep
        });
        self.user_files = offered;
        self.rest = done;
        Ok(())
    }

    /// Leaves nothing in the stage but what is published.
    pub fn forget_as_sent(&self, stage: &Stage) {
        self.mailboxes.values().for_each(|mailbox| mailbox.forget_as_sent(stage));
    }

    /// The user's files that are not staged as the source has them.
    pub fn wanted_user_files(&self) -> Vec<u32> {
        let staged = |f: &&OfferedUserFile| self.staged_user_files.get(&f.place) != Some(&f.blake3);
        self.user_files.iter().filter(staged).map(|f| f.number).collect()
    }

    /// Turns wants into the list of what may arrive.
    pub fn asked(
        &self,
        stage: &Stage,
        wants: &BTreeMap<u32, MailboxWants>,
        user_files: &[u32],
    ) -> Result<Asked, OfferError> {
        let mut asked = Asked { messages: BTreeMap::new(), files: BTreeMap::new() };
        for (ordinal, wants) in wants {
            let Some(mailbox) = self.mailboxes.get(ordinal) else { continue };
            let messages = AskedMessages {
                directory: Arc::clone(&mailbox.directory),
                wanted: Arc::clone(&wants.messages),
                archive: mailbox.archive.as_ref().map(|archive| {
                    let wanted = wants.messages.iter().map(|e| e.uid);
                    let there = wanted.filter(|uid| archive.uids().contains(uid)).collect();
                    (Arc::clone(&archive.directory), there)
                }),
            };
            asked.messages.insert(*ordinal, messages);
            for kind in &wants.files {
                let item = Item {
                    directory: mailbox.meta_directory(stage, *kind)?,
                    name: meta_name(*kind).to_owned(),
                    size: largest(*kind),
                    replaces: true,
                    base: mailbox.base(stage, *kind),
                };
                asked.files.insert((*ordinal, *kind as u8, 0), item);
            }
        }
        for file in self.user_files.iter().filter(|f| user_files.contains(&f.number)) {
            let path = file.place.path(stage);
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
            let root = stage_root(stage, &file.place);
            let directory =
                StagedDirectory::make(root, parent.strip_prefix(root).unwrap_or(parent)).map_err(
                    |source| StageError::Io { verb: "make", path: parent.into(), source },
                )?;
            let item = Item {
                directory: Arc::new(directory),
                name: name.to_string_lossy().into_owned(),
                size: largest(file.kind),
                replaces: true,
                base: self.user_base(stage, file),
            };
            // The kind is part of the key that the source uses; any kind fits.
            for kind in USER_KINDS {
                asked.files.insert((USER, kind as u8, file.number), item.clone());
            }
        }
        Ok(asked)
    }

    /// What is held, as it came, of a file of the user.
    fn user_base(&self, stage: &Stage, file: &OfferedUserFile) -> Option<Held> {
        let held = self.held_user_files.get(&file.place)?;
        let there = std::fs::File::open(file.place.path(stage)).ok()?;
        (Trace::of(&there).ok()? == held.trace).then(|| held.clone())
    }

    /// The versions that the source may patch, of the user's files that are wanted.
    pub fn user_bases(&self, stage: &Stage, wanted: &[u32]) -> Vec<v1::Base> {
        let files = self.user_files.iter().filter(|file| wanted.contains(&file.number));
        let bases = files.filter_map(|file| {
            let blake3 = self.user_base(stage, file)?.blocks.blake3();
            let blake3 = Bytes::copy_from_slice(&blake3);
            Some(v1::Base { kind: 0, number: file.number, blake3 })
        });
        bases.collect()
    }

    /// Notes which files a patch has spoilt: they are wanted whole.
    pub fn torn(&mut self, keys: &[ItemKey]) {
        for (ordinal, kind, number) in keys {
            if *ordinal == USER {
                if let Some(file) = self.user_files.iter().find(|f| f.number == *number) {
                    self.staged_user_files.remove(&file.place);
                    self.held_user_files.remove(&file.place);
                }
            } else if let Some(mailbox) = self.mailboxes.get_mut(ordinal)
                && let Ok(kind) = FileKind::try_from(i32::from(*kind))
            {
                mailbox.file_torn(kind);
            }
        }
    }

    /// Notes what has arrived: messages by mailbox, and other files.
    pub fn arrived(&mut self, messages: &BTreeMap<u32, Vec<u32>>, files: &[Arrived]) {
        for arrived in files {
            let (ordinal, kind, number) = arrived.key;
            if ordinal == USER {
                if let Some(file) = self.user_files.iter().find(|f| f.number == number) {
                    let blake3 = arrived.held.blocks.blake3();
                    self.user_files_as_earlier = false;
                    self.staged_user_files.insert(file.place.clone(), blake3);
                    self.held_user_files.insert(file.place.clone(), arrived.held.clone());
                    self.user_files_as_sent.insert(file.place.clone());
                }
            } else if let Some(mailbox) = self.mailboxes.get_mut(&ordinal) {
                match FileKind::try_from(i32::from(kind)) {
                    Ok(kind) => mailbox.file_arrived(kind, arrived.held.clone()),
                    Err(_) => mailbox.dirty = true,
                }
            }
        }
        for (ordinal, uids) in messages {
            if let Some(mailbox) = self.mailboxes.get_mut(ordinal) {
                mailbox.arrived(uids);
            }
        }
    }

    /// The staged content of the user's files agrees with the last offer.
    pub fn user_files_complete(&self) -> bool {
        self.wanted_user_files().is_empty()
    }
}

/// A mailbox's identity after the checks of the receiver.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Its name, within the moved tree.
    pub name: MailboxName,
    /// Its uniqueid.
    pub id: UniqueId,
    /// Its partition on this server.
    pub partition: PartitionName,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cyrus::config::{Config, Defaults};
    use crate::moves::MoveId;

    #[test]
    fn no_more_mailboxes_are_listed_than_there_can_be() {
        let conf = b"configdirectory: /nowhere\npartition-default: /nowhere/spool\n";
        let config = Config::parse(conf, Defaults::V3, &mut |_| Err(String::new())).unwrap();
        let stage = Stage::new(&config, &MoveId::random()).unwrap();
        let mailboxes = vec![v1::Mailbox::default(); manifest::MAX_MAILBOXES + 1];
        let table = v1::Table { mailboxes, ..v1::Table::default() };
        let check = |_: &v1::Mailbox| Err(OfferError::Nonsense("what was looked at".into()));
        let error = Inventory::default().table(&stage, table, check).unwrap_err();
        assert_eq!(error.to_string(), "the source offers more than 1000000 mailboxes");
    }
}
