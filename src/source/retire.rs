//! Retiring: making the source's copy unreachable, keeping every byte of it.
//!
//! Under the freeze, in this order:
//!
//! 1. the old records are written to a file, durably, so that they can be put back;
//! 2. **one transaction** marks the live mailboxes as moving to the new server,
//!    and removes the records of those that delayed delete keeps: from here on
//!    every new lookup defers or refers, and nothing bounces (unless the admin has
//!    asked for something else: [`leads_away`]);
//! 3. directories and quota roots are renamed into the holding place on the same
//!    filesystem, so that whoever waited inside the old ones fails instead of
//!    writing there;
//! 4. sessions that have the user open are told to go.
//!
//! Each part can be done again: a directory that is in the holding place
//! already was renamed before.
//!
//! Up to 3.4 the mailboxes' directories are renamed *before* the transaction: whoever
//! waits for the lock of an index has looked the mailbox up already, and would go on
//! in the old directory if this process died between the two. Until the transaction
//! has happened they can be brought back, and are, before anything else is done. There
//! the sieve scripts are files that Cyrus serves without a look at the record; a file
//! in the place of their directory keeps it from making another.

use super::inventory::{Listing, SourceMailbox, user_places};
use crate::cyrus::config::DbKind;
use crate::cyrus::db::Engine;
use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::mboxlist::edit::{RecordEdit, ServerEdit};
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::name::{MailboxName, PartitionName};
use crate::cyrus::path::Layout;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::host::durable;
use crate::moves::MoveId;
use crate::moves::sealed::{self, PathBytes};
use crate::murder;
use crate::wire::v1::OldServer;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A partition that no server has. Cyrus does not look at the type of a parent when
/// it creates a folder, but takes the parent's partition (imap/mboxlist.c:
/// mboxlist_create_partition): so nothing can be created below a retired mailbox,
/// where nobody would see it.
pub(crate) const NOWHERE: &str = "mbcopy-retired";

/// A key of mailboxes.db, the record that was, and what it becomes (none: removed).
type Change = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);

/// From where to where.
type Renaming = (PathBytes, PathBytes);

/// Everything that retiring does, fixed before it begins, so that it can be
/// finished by another process, or put back.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Retirement {
    changes: Vec<Change>,
    renames: Vec<Renaming>,
    /// Up to 3.4: the mailboxes' directories, which are renamed first.
    #[serde(default)]
    first: Vec<Renaming>,
    /// Up to 3.4: where an empty file is put, so that no directory can be made.
    #[serde(default)]
    blocked: Vec<PathBytes>,
}

/// Why retiring stopped.
#[derive(Debug, thiserror::Error)]
pub enum RetireError {
    /// A file or directory fails.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A record cannot be changed.
    #[error("{0}")]
    Record(String),
    /// mailboxes.db cannot be read, or was not changed as it should be.
    #[error("{0}")]
    Database(String),
}

impl Retirement {
    /// What retiring the listed mailboxes will do, whose records are changed by `away`.
    pub fn new(
        host: &Host,
        listing: &Listing,
        id: &MoveId,
        away: &RecordEdit,
    ) -> Result<Self, RetireError> {
        let record = |e: &dyn std::fmt::Display| RetireError::Record(e.to_string());
        let mut changes = Vec::new();
        for mailbox in &listing.mailboxes {
            let mut records = Vec::new();
            match &mailbox.converted {
                Some(conversion) => {
                    records.push((mailbox.entry.key.to_vec(), conversion.record.to_vec()));
                }
                None => {
                    records.push((mailbox.entry.key.to_vec(), mailbox.entry.raw.to_vec()));
                    records.push((mailbox.id_record.0.to_vec(), mailbox.id_record.1.to_vec()));
                }
            }
            // Of a mailbox that only its id leads to, both are one.
            records.dedup();
            for (key, old) in records.into_iter().filter(|(key, _)| !key.is_empty()) {
                let new = if mailbox.deleted {
                    None
                } else {
                    Some(away.apply(&old).map_err(|e| record(&e))?)
                };
                changes.push((key, old, new));
            }
            if mailbox.deleted && mailbox.converted.is_some() {
                changes.extend(by_id(host, mailbox)?);
            }
        }
        let directory = host
            .config
            .configdirectory()
            .map_err(|e| record(&e))?
            .join("mbcopy/moves")
            .join(id.as_str());
        let Renames { mailboxes, others } =
            renames(host, listing, id, &directory).map_err(|e| record(&e))?;
        let (first, renames) = match listing.converted {
            Some(_) => (mailboxes, others),
            None => (Vec::new(), mailboxes.into_iter().chain(others).collect()),
        };
        let mut blocked = Vec::new();
        if let Some(inbox) = listing.inbox().filter(|_| listing.converted.is_some())
            && let Some(sieve) = sieve_dir(host, inbox)
        {
            blocked.push(PathBytes::from(sieve.as_path()));
        }
        Ok(Self { changes, renames, first, blocked })
    }

    /// Directories that cannot be renamed to where they would be kept, since that is on
    /// another filesystem.
    pub fn crossings(&self) -> Vec<PathBuf> {
        let device = |path: &Path| path.ancestors().find_map(|p| Some(p.metadata().ok()?.dev()));
        let crosses = |(from, to): &&Renaming| {
            device(from.path()).is_some_and(|d| device(to.path()) != Some(d))
        };
        let all = self.first.iter().chain(&self.renames).filter(crosses);
        all.map(|(from, _)| from.path().to_owned()).collect()
    }

    /// Whether an earlier process was about to do it.
    pub fn is_planned(host: &Host, id: &MoveId) -> Result<bool, RetireError> {
        Ok(Self::path(host, id)?.exists())
    }

    /// Reads what an earlier process was about to do.
    pub fn load(host: &Host, id: &MoveId) -> Result<Self, RetireError> {
        let path = Self::path(host, id)?;
        sealed::load(&path).map_err(io("read", &path))
    }

    /// The records as they were before: key and value.
    pub fn records(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.changes.iter().map(|(key, old, _)| (key.as_slice(), old.as_slice()))
    }

    fn path(host: &Host, id: &MoveId) -> Result<PathBuf, RetireError> {
        let directory =
            host.config.configdirectory().map_err(|e| RetireError::Record(e.to_string()))?;
        Ok(directory.join("mbcopy/moves").join(id.as_str()).join("retirement"))
    }

    /// Whether its transaction has happened, whatever clients have done before
    /// or since: nobody else makes the records that it makes.
    pub fn has_happened(&self, host: &Host) -> Result<bool, RetireError> {
        let failed = |e: String| RetireError::Database(e);
        let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
        for (key, _, new) in &self.changes {
            let Some(new) = new else { continue };
            let now = database.get(key).map_err(|e| failed(e.to_string()))?;
            if now.as_deref() == Some(new) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A mailbox of the user that this would leave behind: somebody made it although
    /// he was frozen.
    pub fn left_behind(
        &self,
        host: &Host,
        top: &MailboxName,
    ) -> Result<Option<MailboxName>, RetireError> {
        let failed = |e: &dyn std::fmt::Display| RetireError::Database(e.to_string());
        let database = host.mailboxes().map_err(|e| failed(&e))?;
        let list = MailboxList::from_database(&database).map_err(|e| failed(&e))?;
        let owned = list.owned(top, &host.config.deletedprefix()).map_err(|e| failed(&e))?;
        let known: BTreeSet<&[u8]> = self.changes.iter().map(|(key, ..)| &key[..]).collect();
        let stranger = owned.into_iter().find(|e| !e.is_deleted() && !known.contains(&e.key[..]));
        Ok(stranger.map(|entry| entry.name))
    }

    /// Writes down what is about to be done, durably.
    pub fn save(&self, host: &Host, id: &MoveId) -> Result<(), RetireError> {
        let path = Self::path(host, id)?;
        sealed::save(&path, self).map_err(io("write", &path))
    }

    /// Retires. The caller holds the freeze, and has saved this.
    pub fn execute(&self, host: &Host) -> Result<(), RetireError> {
        if let Err(error) = rename_all(&self.first).and_then(|()| self.commit(host)) {
            // What is not known to have failed stays as it is.
            if matches!(self.is_committed(host), Ok(false)) {
                self.take_back()?;
            }
            return Err(error);
        }
        fault::point(Point::RetireCommitted);
        rename_all(&self.renames)?;
        self.block()?;
        fault::point(Point::RetireRenamed);
        sync_parents(self.first.iter().chain(&self.renames))
    }

    /// Brings back what was renamed although nothing is committed; nothing if all is
    /// where it was.
    pub fn take_back(&self) -> Result<(), RetireError> {
        self.first.iter().rev().try_for_each(|(from, to)| bring_back(from.path(), to.path()))?;
        sync_parents(self.first.iter())
    }

    fn commit(&self, host: &Host) -> Result<(), RetireError> {
        let changed = host.change_records(self.left());
        changed.map_err(|e| RetireError::Database(e.to_string()))
    }

    /// What becomes of each record.
    fn left(&self) -> impl Iterator<Item = (&[u8], Option<&[u8]>)> + Clone {
        self.changes.iter().map(|(key, _, new)| (&key[..], new.as_deref()))
    }

    /// The files that keep directories from being made, as they were left.
    pub fn blocked(&self) -> impl Iterator<Item = &Path> {
        self.blocked.iter().map(PathBytes::path)
    }

    /// Keeps directories from being made in some places.
    fn block(&self) -> Result<(), RetireError> {
        for path in self.blocked.iter().map(PathBytes::path) {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(io("make", parent))?;
            }
            match File::create_new(path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => drop(made.map_err(io("make", path))?),
            }
        }
        Ok(())
    }

    /// The records that send clients away, as they were left.
    pub fn left_records(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        self.changes.iter().filter_map(|(key, _, new)| Some((key.clone(), new.clone()?)))
    }

    /// Where the content of a directory that was live is kept.
    pub fn kept(&self, live: &Path) -> Option<PathBuf> {
        let all = self.first.iter().chain(&self.renames);
        let kept = |(from, to): &Renaming| match live.strip_prefix(from.path()) {
            Ok(below) if below.as_os_str().is_empty() => Some(to.path().to_owned()),
            Ok(below) => Some(to.path().join(below)),
            Err(_) => None,
        };
        all.filter_map(kept).next()
    }

    /// Whether mailboxes.db is as this has left it.
    pub fn is_committed(&self, host: &Host) -> Result<bool, RetireError> {
        host.holds(self.left()).map_err(|e| RetireError::Database(e.to_string()))
    }
}

/// Makes a record one that sends clients to `server`: deliveries are deferred, and
/// everything else is refused.
///
/// On a backend of a Murder it is a reserved, remote tombstone, and nothing else would
/// do. At a record that is moving, `ctl_mboxlist -m` fails, and then the backend does not
/// start at all (3.6.1). From tombstones it keeps its hands off, as `ctl_cyrusdb -r` does
/// from reserved ones among them, but a late delivery would be refused for good: reserved,
/// it is deferred, for that is looked at first (imap/mboxlist.c:mboxlist_mylookup). And
/// what is remote, `cyr_expire` does not remove.
pub(crate) fn sends_to(host: &Host, server: &str) -> RecordEdit {
    let (add, remove) = match murder::is_member(host) {
        true => (vec![Flag::Deleted, Flag::Remote, Flag::Reserve], Vec::new()),
        // Of what XFER has left (`repair`): a tombstone would have mail refused for good.
        false => (vec![Flag::Moving], vec![Flag::Deleted, Flag::Remote]),
    };
    RecordEdit {
        partition: PartitionName::new(NOWHERE).ok(),
        server: ServerEdit::Set(server.to_owned()),
        add,
        remove,
        ..RecordEdit::default()
    }
}

/// Makes a record of a retired mailbox what `manner` asks for. To forward it is remote, and
/// Cyrus itself passes on what comes. To refuse it is a tombstone, which everybody takes
/// for no mailbox; remote, too, since those `cyr_expire` does not remove.
pub(crate) fn leads_away(host: &Host, server: &str, manner: OldServer) -> RecordEdit {
    let (add, remove) = match manner {
        OldServer::Defer => return sends_to(host, server),
        OldServer::Forward => {
            (vec![Flag::Remote], vec![Flag::Deleted, Flag::Moving, Flag::Reserve])
        }
        OldServer::Refuse => (vec![Flag::Deleted, Flag::Remote], vec![Flag::Moving, Flag::Reserve]),
    };
    RecordEdit { add, remove, ..sends_to(host, server) }
}

/// The record that leads from the id of a mailbox to its name (3.4, by
/// `imap/mboxlist.c:mboxlist_update_runiqueid`), to be removed with the mailbox's.
fn by_id(host: &Host, mailbox: &SourceMailbox) -> Result<Option<Change>, RetireError> {
    let failed = |e: &dyn std::fmt::Display| RetireError::Record(e.to_string());
    let name = mailbox.entry.name.as_bytes();
    let id = mailbox.entry.uniqueid.as_ref().unwrap_or(&mailbox.id);
    let key = [b"$RUNQ$", id.as_str().as_bytes(), b"$", name].concat();
    let database = host.mailboxes().map_err(|e| failed(&e))?;
    let value = database.get(&key).map_err(|e| failed(&e))?;
    Ok(value.map(|value| (key, value.to_vec(), None)))
}

/// Which directories and files go where.
struct Renames {
    /// The mailboxes' directories; those that lie in one of them go with it.
    mailboxes: Vec<Renaming>,
    others: Vec<Renaming>,
}

/// What is put away: below a holding place on the same filesystem, with the path that
/// it has below its root.
fn renames(
    host: &Host,
    listing: &Listing,
    id: &MoveId,
    directory: &Path,
) -> Result<Renames, String> {
    let layout = Layout::new(&host.config);
    let configdirectory = host.config.configdirectory().map_err(|e| e.to_string())?;
    let ours = |root: &Path| root.join(".mbcopy").join(id.as_str());
    let (mut mailboxes, mut others) = (Held::default(), Held::default());
    for mailbox in &listing.mailboxes {
        let Some(partition) = &mailbox.entry.partition else { continue };
        let name = &mailbox.entry.name;
        let dirs = layout.mailbox_dirs(name, mailbox.style(), partition);
        for (root, path) in dirs.map_err(|e| e.to_string())? {
            mailboxes.hold(&path, &root, &ours(&root));
        }
        if !mailbox.deleted && host.config.db_engine(DbKind::Quota) == Engine::QuotaLegacy {
            let path = layout.quota_file(name).map_err(|e| e.to_string())?;
            others.hold(&path, &configdirectory, directory);
        }
    }
    if let Some(inbox) = listing.inbox() {
        for path in user_places(host, inbox).map_err(|e| e.to_string())? {
            others.hold(&path, &configdirectory, directory);
        }
        if let Some(sieve) = sieve_dir(host, inbox) {
            let root = host.config.sievedir();
            others.hold(&sieve, &root, &ours(&root));
        }
        for root in host.config.search_roots() {
            let index = layout.search_dir(&inbox.entry.name, inbox.style(), &root);
            others.hold(&index.map_err(|e| e.to_string())?, &root, &ours(&root));
        }
    }
    Ok(Renames { mailboxes: mailboxes.renames, others: others.renames })
}

/// What is to be renamed; nothing within it is to be renamed itself.
#[derive(Default)]
struct Held {
    renames: Vec<Renaming>,
    places: BTreeSet<PathBuf>,
}

impl Held {
    /// Adds what is at `path` below `root`, unless it goes along with something else.
    fn hold(&mut self, path: &Path, root: &Path, place: &Path) {
        let Ok(relative) = path.strip_prefix(root) else { return };
        let held = path.ancestors().any(|above| self.places.contains(above));
        if !held && path.symlink_metadata().is_ok() {
            let to = place.join("retired").join(relative);
            self.renames.push((PathBytes::from(path), PathBytes::from(to.as_path())));
            self.places.insert(path.to_owned());
        }
    }
}

fn sieve_dir(host: &Host, inbox: &SourceMailbox) -> Option<PathBuf> {
    let user = inbox.entry.name.userid()?;
    Layout::new(&host.config).sieve_dir(&user, inbox.style()).ok()?
}

fn rename_all(renames: &[Renaming]) -> Result<(), RetireError> {
    for (from, to) in renames {
        rename(from.path(), to.path())?;
        fault::point(Point::RetireRenamedOne);
    }
    Ok(())
}

fn rename(from: &Path, to: &Path) -> Result<(), RetireError> {
    // What is in its holding place was renamed before; a late client may have made
    // an empty one of that name since, as he does with subscriptions.
    if from.symlink_metadata().is_err() || to.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(io("make", parent))?;
    }
    fault::check(Point::Rename).and_then(|()| std::fs::rename(from, to)).map_err(io("rename", from))
}

/// Renames what is kept to where it was. Somebody may have made a directory there
/// since: then it keeps what it has.
fn bring_back(live: &Path, kept: &Path) -> Result<(), RetireError> {
    if kept.symlink_metadata().is_err() {
        return Ok(());
    }
    if live.symlink_metadata().is_err() {
        return std::fs::rename(kept, live).map_err(io("rename", kept));
    }
    if !(live.is_dir() && kept.is_dir()) {
        return Err(io("bring back", kept)(io::ErrorKind::AlreadyExists.into()));
    }
    for entry in std::fs::read_dir(kept).map_err(io("read", kept))? {
        let name = entry.map_err(io("read", kept))?.file_name();
        bring_back(&live.join(&name), &kept.join(&name))?;
    }
    std::fs::remove_dir(kept).map_err(io("remove", kept))
}

/// Puts the entries of all directories that have changed onto stable storage.
fn sync_parents<'a>(renames: impl Iterator<Item = &'a Renaming>) -> Result<(), RetireError> {
    let parents: BTreeSet<&Path> = renames
        .flat_map(|(from, to)| [from.path().parent(), to.path().parent()])
        .flatten()
        .collect();
    durable::directories(&parents).map_err(|e| RetireError::Io {
        verb: "sync",
        path: e.path,
        source: e.source,
    })
}

fn io<'a>(verb: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RetireError + 'a {
    move |source| RetireError::Io { verb, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(path: &Path) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }

    #[test]
    fn what_is_brought_back_leaves_what_was_made_since() {
        let dir = tempfile::tempdir().unwrap();
        let (live, kept) = (dir.path().join("user/x"), dir.path().join("kept/x"));
        for file in ["cyrus.index", "Sent/cyrus.index"] {
            write(&live.join(file));
        }
        rename(&live, &kept).unwrap();
        assert!(!live.exists() && kept.join("Sent/cyrus.index").exists());
        // Again is no error, and nor is what was never away.
        rename(&live, &kept).unwrap();
        bring_back(&kept, &dir.path().join("nothing")).unwrap();
        write(&live.join("Sent/new/cyrus.index"));
        bring_back(&live, &kept).unwrap();
        assert!(!kept.exists());
        for file in ["cyrus.index", "Sent/cyrus.index", "Sent/new/cyrus.index"] {
            assert!(live.join(file).exists(), "{file}");
        }
    }

    #[test]
    fn what_is_brought_back_overwrites_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (live, kept) = (dir.path().join("user/x"), dir.path().join("kept/x"));
        write(&kept.join("cyrus.index"));
        write(&live.join("cyrus.index"));
        assert!(bring_back(&live, &kept).is_err());
        assert!(kept.join("cyrus.index").exists() && live.join("cyrus.index").exists());
    }
}
