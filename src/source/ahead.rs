//! What is read before the first scan, while the target is still being connected to: of
//! mailboxes that have not changed since an earlier session, for which the plan read nothing.

use super::contents::Contents;
use super::mailbox::{self, Known};
use super::records::{Listed, Records};
use crate::wire::v1::FileKind;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread::JoinHandle;

/// Messages of which so much is held at a time.
const MOST: u64 = 200_000;

/// Mailboxes that are to be read.
#[derive(Debug, Default)]
pub(super) struct ToRead {
    mailboxes: Vec<(u32, Vec<(FileKind, PathBuf)>)>,
    messages: u64,
}

impl ToRead {
    /// Adds a mailbox of so many messages, if it is not too much.
    pub fn add(&mut self, ordinal: u32, messages: u64, paths: Vec<(FileKind, PathBuf)>) {
        let all = self.messages.saturating_add(messages);
        if all <= MOST {
            self.messages = all;
            self.mailboxes.push((ordinal, paths));
        }
    }

    /// Begins to read them; `None` if there is nothing to read, or it cannot be begun.
    pub fn begin(self) -> Option<Ahead> {
        let read = move || {
            let mut contents = Contents::default();
            let read = self.mailboxes.into_iter().filter_map(|(ordinal, paths)| {
                let read = mailbox::read_ahead(&paths, &mut contents)?;
                if let Some(cache) = mailbox::path_of(&paths, FileKind::Cache) {
                    // What goes wrong is found out by the scan.
                    let _ = contents.find(cache, read.0.cached());
                }
                Some((ordinal, read))
            });
            (read.collect(), contents)
        };
        let thread = std::thread::Builder::new().name("ahead".into());
        (self.messages > 0).then(|| thread.spawn(read).ok()).flatten().map(Ahead)
    }
}

type ByOrdinal = BTreeMap<u32, (Records, Vec<Listed>)>;

/// What is being read.
pub(super) struct Ahead(JoinHandle<(ByOrdinal, Contents)>);

impl Ahead {
    /// Waits for it. Only what has changed since is read again.
    pub fn take(self, known: &mut BTreeMap<u32, Known>, contents: &mut Contents) {
        let Ok((read, found)) = self.0.join() else { return };
        *contents = found;
        for (ordinal, read) in read {
            known.entry(ordinal).or_default().ahead = Some(read);
        }
    }
}
