//! Publishing: the one step that makes the user exist on this server.
//!
//! In this order, under Cyrus's own lock on the user:
//!
//! 1. directories are renamed from the stage into their live places. Nobody
//!    can reach them: no record names them yet.
//! 2. quota roots and annotations are written. They belong to mailboxes that
//!    do not exist yet.
//! 3. **one transaction** adds all the user's records to mailboxes.db: the
//!    commit point. Before it nobody sees anything, after it the user is whole.
//!
//! Each part can be done again after a crash (a directory that is in its live
//! place already was renamed before), and taken back: [`Publication::undo`]
//! removes the records in one transaction first, and then goes backwards.

use super::base::Base;
use super::offer::Inventory;
use super::plan::is_vacant;
use super::stage::Stage;
use crate::cyrus::config::DbKind;
use crate::cyrus::dlist::Dlist;
use crate::cyrus::index::IndexFile;
use crate::cyrus::mboxlist::{MailboxEntry, MailboxList};
use crate::cyrus::name::MailboxName;
use crate::fault::{self, Point, Sabotage, sabotaged};
use crate::host::Host;
use crate::host::durable;
use crate::host::tools::DbOp;
use crate::host::userlock::{UserLock, hand_down};
use crate::moves::sealed::PathBytes;
use crate::murder;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};

/// A key and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Everything that publishing does, fixed before it begins, so that it can be
/// finished or taken back by another process.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Publication {
    /// Renames, in order: staged place, live place.
    pub renames: Vec<(PathBytes, PathBytes)>,
    /// Files of quota roots: live place, content (engine quotalegacy).
    pub quota_files: Vec<(PathBytes, Vec<u8>)>,
    /// Records of quota roots (any other engine).
    pub quota_records: Vec<KeyValue>,
    /// Records of the annotations database.
    pub annotations: Vec<KeyValue>,
    /// Records of the annotations database that must go.
    pub stale_annotations: Vec<KeyValue>,
    /// What is in the way, and is kept: live place, where it is put aside.
    #[serde(default)]
    pub aside: Vec<(PathBytes, PathBytes)>,
    /// Whether taking it back begins with the directories: where whoever waits for a
    /// mailbox has looked it up already.
    #[serde(default)]
    pub directories_first: bool,
    /// Records of mailboxes.db.
    pub records: Vec<KeyValue>,
    /// Records of mailboxes.db that must go: they send the user's clients away. Sorted.
    pub stale_records: Vec<KeyValue>,
    /// What takes the place of records that are taken back after the route was
    /// changed: who is still on his way here is deferred, and not refused for good.
    pub deferring: Vec<KeyValue>,
    /// The published indexes and their BLAKE3: who finds another has found a
    /// mailbox that was changed since.
    pub indexes: Vec<(PathBytes, [u8; 32])>,
    /// On a backend of a Murder: BLAKE3 of their records alone, which are the same
    /// after `ctl_mboxlist -m` has renamed a mailbox.
    #[serde(default)]
    pub index_records: Vec<[u8; 32]>,
    /// On a backend of a Murder: what `ctl_mboxlist -m` had taken away since.
    #[serde(default)]
    pub taken_away: TakenAway,
}

/// What the live mailboxes.db has of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All of it.
    Committed,
    /// Not all of it any more.
    Changed,
    /// Nothing of it.
    Absent,
}

/// How a user is not as he was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// Clients have used a mailbox, or made one; which.
    Used(String),
    /// What was published cannot be read; why.
    Unreadable(String),
}

/// Why publishing or taking it back stopped.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
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
    /// Something is where a mailbox should go.
    #[error("{} is in the way", .0.display())]
    InTheWay(PathBuf),
    /// Neither the staged nor the live directory is there.
    #[error("{} is neither staged nor published", .0.display())]
    Lost(PathBuf),
    /// A database refuses.
    #[error("{database}: {reason}")]
    Database {
        /// Which.
        database: PathBuf,
        /// Why.
        reason: String,
    },
    /// The transaction's outcome cannot be read back.
    #[error("{}: what was committed cannot be read back: {reason}", database.display())]
    Unknown {
        /// Which.
        database: PathBuf,
        /// Why.
        reason: String,
    },
    /// The records are not those that were published.
    #[error("the user's records on this server have changed since they were published")]
    Changed,
}

/// What became of mailboxes that `ctl_mboxlist -m` has taken away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TakenAway {
    /// How many were put back.
    pub mailboxes: usize,
    /// How many that delayed delete kept are gone.
    pub lost: usize,
    /// Whether the quota is to be counted again.
    pub uncounted: bool,
}

impl Publication {
    /// The same, in place of what sends the user's clients away from here.
    pub fn over(
        mut self,
        host: &Host,
        base: &Base,
        (stage, inventory): (&Stage, &Inventory),
        top: &MailboxName,
    ) -> Result<Self, String> {
        let by_id = host.keeps_by_id();
        let ids = inventory.mailboxes.values().map(|m| match by_id {
            true => m.id.as_str().as_bytes(),
            false => m.name.as_bytes(),
        });
        let ids: BTreeSet<&[u8]> = ids.collect();
        let user = top.userid();
        let user = user.as_ref().map(|user| user.as_bytes());
        self.stale_annotations = Base::stale_annotations(host, &ids, user, &self.annotations)?;
        self.stale_records = base.stale_records();
        for (number, blocked) in base.blocked().enumerate() {
            let aside = stage.sieve.join(format!("blocked-{number}"));
            self.aside.push((PathBytes::from(blocked), PathBytes::from(aside.as_path())));
        }
        // Files of the user that a late client has made anew.
        let files =
            self.renames.iter().map(|(_, to)| to.path()).filter(|to| !by_id && to.is_file());
        let files: Vec<PathBuf> = files.map(Path::to_owned).collect();
        for (number, live) in files.into_iter().enumerate() {
            let aside = stage.directory.join(format!("aside-{number}"));
            self.aside.push((PathBytes::from(live.as_path()), PathBytes::from(aside.as_path())));
        }
        // Those come back themselves, and defer as well.
        let stale: BTreeSet<&[u8]> = self.stale_records.iter().map(|(k, _)| k.as_slice()).collect();
        self.deferring.retain(|(key, _)| !stale.contains(key.as_slice()));
        Ok(self)
    }

    /// Whether it replaces this entry of mailboxes.db.
    pub fn replaces(&self, entry: &MailboxEntry) -> bool {
        self.is_stale(&entry.key, &entry.raw)
    }

    fn is_stale(&self, key: &[u8], value: &[u8]) -> bool {
        let at = self.stale_records.binary_search_by(|(k, _)| k.as_slice().cmp(key)).ok();
        at.and_then(|at| self.stale_records.get(at)).is_some_and(|(_, v)| v == value)
    }

    /// Publishes. The caller holds the user's lock.
    pub fn execute(&self, host: &Host) -> Result<(), PublishError> {
        for (live, aside) in &self.aside {
            // What is in the way after a crash is what was published.
            if aside.path().symlink_metadata().is_err() && live.path().symlink_metadata().is_ok() {
                rename(live.path(), aside.path())?;
            }
        }
        for (from, to) in &self.renames {
            rename(from.path(), to.path())?;
            fault::point(Point::PublishRenamedOne);
        }
        fault::point(Point::PublishRenamed);
        for (path, content) in &self.quota_files {
            write_file(path.path(), content)?;
        }
        let parents = self.renames.iter().flat_map(|(from, to)| [from, to]);
        sync_parents(parents.chain(self.quota_files.iter().map(|(path, _)| path)))?;
        change(host, DbKind::Quota, self.quota_records.iter().map(set).collect())?;
        let stale = self.stale_annotations.iter().map(delete);
        change(host, DbKind::Annotations, stale.chain(self.annotations.iter().map(set)).collect())?;
        fault::point(Point::PublishAnnotated);
        self.commit(host)
    }

    fn commit(&self, host: &Host) -> Result<(), PublishError> {
        let stale = self.stale_records.iter().map(delete);
        let ops: Vec<_> = stale.chain(self.records.iter().map(set)).collect();
        let at_once = if sabotaged(Sabotage::RenameWithoutTransaction) { 1 } else { ops.len() };
        let mut parts = ops.chunks(at_once.max(1));
        let changed = parts.try_for_each(|ops| host.change(DbKind::Mailboxes, ops));
        // Only what is read back tells whether the transaction happened.
        match self.standing(host)? == Standing::Committed {
            true => Ok(()),
            false => {
                let (database, reason) = match changed {
                    Err(e) => (e.path, e.reason),
                    Ok(()) => (PathBuf::from("mailboxes.db"), "the records are not there".into()),
                };
                Err(PublishError::Database { database, reason })
            }
        }
    }

    /// What the live mailboxes.db holds of the user's records: all as they were published,
    /// none, or something between, which only clients can make.
    ///
    /// Errors: a part of them is there and a part is not, which no client can have made.
    pub fn standing(&self, host: &Host) -> Result<Standing, PublishError> {
        let unknown =
            |database: PathBuf, reason: String| PublishError::Unknown { database, reason };
        let database = host.mailboxes().map_err(|e| unknown(e.path, e.reason))?;
        let deferring: BTreeMap<&[u8], &[u8]> =
            self.deferring.iter().map(|(k, v)| (k.as_slice(), v.as_slice())).collect();
        let (mut held, mut missing, mut changed, mut gone) = (0, false, false, false);
        for (key, value) in &self.records {
            let found = database
                .get(key)
                .map_err(|e| unknown(PathBuf::from("mailboxes.db"), e.to_string()))?;
            let Some(found) = found else {
                missing = true;
                continue;
            };
            let defers = deferring.get(key.as_slice()) == Some(&found.as_ref());
            match found.as_ref() == value.as_slice() {
                true => held += 1,
                false if defers || self.is_stale(key, &found) => {}
                // It was there before, and is as good as nothing; so is a mailbox that
                // somebody has made under the same name.
                false if is_tombstone(&found) => gone |= is_same_mailbox(value, &found),
                false => changed |= key.starts_with(b"I") || is_same_mailbox(value, &found),
            }
        }
        match held {
            all if all == self.records.len() => Ok(Standing::Committed),
            0 if !changed => Ok(Standing::Absent),
            // Who renames or deletes a mailbox leaves a trace of it.
            _ if changed || gone || !missing => Ok(Standing::Changed),
            _ => Err(PublishError::Changed),
        }
    }

    /// What has changed since it was published, if anything has.
    pub fn changed_since(
        &self,
        host: &Host,
        top: &MailboxName,
    ) -> Result<Option<Changed>, PublishError> {
        if self.standing(host)? == Standing::Changed {
            let what = format!("{} in mailboxes.db", host.external(top));
            return Ok(Some(Changed::Used(what)));
        }
        let mut missing = None;
        for (path, hash) in &self.indexes {
            let path = path.path();
            match std::fs::read(path) {
                Ok(bytes) if blake3::hash(&bytes).as_bytes() == hash => {}
                Ok(_) => return Ok(Some(Changed::Used(path.display().to_string()))),
                Err(e) => missing = Some(Changed::Unreadable(format!("{}: {e}", path.display()))),
            }
        }
        let unknown = |reason: String| {
            let database = PathBuf::from("mailboxes.db");
            PublishError::Unknown { database, reason }
        };
        let database = host.mailboxes().map_err(|e| unknown(e.reason))?;
        let list = MailboxList::from_database(&database).map_err(|e| unknown(e.to_string()))?;
        let owned =
            list.owned(top, &host.config.deletedprefix()).map_err(|e| unknown(e.to_string()))?;
        let ours = |key: &[u8]| self.records.iter().any(|(k, _)| k == key);
        let new = owned.iter().find(|e| !e.is_deleted() && !ours(&e.key));
        Ok(new.map(|entry| Changed::Used(host.external(&entry.name))).or(missing))
    }

    /// Whether directories are on the stage again.
    pub fn has_moved_back(&self) -> bool {
        self.renames.iter().any(|(from, _)| !is_vacant(from.path()))
    }

    /// Puts back what this backend's `ctl_mboxlist -m` has taken away since: it was
    /// started again before mupdate named it. What delayed delete keeps it has really
    /// deleted; the source has that still. Whether anything has changed here.
    pub fn put_back(&mut self, host: &Host) -> Result<bool, String> {
        let mailboxes = murder::wiped::put_back(host, &self.records)?;
        if mailboxes == 0 {
            return Ok(false);
        }
        let database = host.mailboxes().map_err(|e| e.to_string())?;
        let mut records = Vec::new();
        self.taken_away.mailboxes += mailboxes;
        self.taken_away.uncounted = true;
        for record in std::mem::take(&mut self.records) {
            match database.get(&record.0).map_err(|e| e.to_string())? {
                Some(_) => records.push(record),
                None => self.taken_away.lost += usize::from(record.0.starts_with(b"N")),
            }
        }
        self.records = records;
        if self.index_records.len() != self.indexes.len() {
            return Ok(true);
        }
        let indexes = std::mem::take(&mut self.indexes);
        let known = std::mem::take(&mut self.index_records);
        for ((path, whole), records) in indexes.into_iter().zip(known) {
            let read = File::open(path.path())
                .and_then(|file| Ok((hash_of_records(&file)?, hash_from(&file, 0)?)));
            let Ok((found, now)) = read else { continue };
            // Renamed only; else the old hash tells that it was used.
            let whole = if found == records { now } else { whole };
            self.indexes.push((path, whole));
            self.index_records.push(records);
        }
        Ok(true)
    }

    /// Takes everything back; `defer`: for those who are still on their way here.
    /// The caller has seen, under the user's `lock`, that nothing has changed since. The
    /// program that changes the records holds it, too.
    pub fn undo(&self, host: &Host, lock: &UserLock, defer: bool) -> Result<(), PublishError> {
        hand_down(lock.files(), true);
        let standing = self.standing(host)?;
        if standing == Standing::Changed {
            return Err(PublishError::Changed);
        }
        if self.directories_first {
            self.rename_back()?;
        }
        if standing == Standing::Committed {
            let removed = self.records.iter().map(delete);
            let deferring = self.deferring.iter().filter(|_| defer).map(set);
            let restored = self.stale_records.iter().map(set);
            let ops = removed.chain(deferring).chain(restored).collect();
            change(host, DbKind::Mailboxes, ops)?;
            if self.standing(host)? != Standing::Absent {
                return Err(PublishError::Changed);
            }
        }
        let restored = self.stale_annotations.iter().map(set);
        let removed = self.annotations.iter().map(delete);
        change(host, DbKind::Annotations, removed.chain(restored).collect())?;
        change(host, DbKind::Quota, self.quota_records.iter().map(delete).collect())?;
        for (path, content) in &self.quota_files {
            if std::fs::read(path.path()).is_ok_and(|now| now == *content) {
                remove_file(path.path())?;
            }
        }
        self.rename_back()?;
        for (live, aside) in self.aside.iter().rev() {
            let [aside, live] = [aside.path(), live.path()];
            if aside.symlink_metadata().is_ok() && live.symlink_metadata().is_err() {
                rename(aside, live)?;
            }
        }
        sync_parents(self.renames.iter().chain(&self.aside).flat_map(|(from, to)| [from, to]))
    }

    fn rename_back(&self) -> Result<(), PublishError> {
        for (from, to) in self.renames.iter().rev() {
            bring_back(to.path(), from.path())?;
        }
        Ok(())
    }

    /// Makes whole again what clients have used while some directories were on their way
    /// back. The caller holds the locks of [`undo`](Self::undo).
    pub fn bring_forward(&self) -> Result<(), PublishError> {
        for (staged, live) in &self.renames {
            bring_forward(staged.path(), live.path())?;
        }
        sync_parents(self.renames.iter().flat_map(|(from, to)| [from, to]))
    }
}

impl Publication {
    /// Removes what defers those who are on their way here; whether there was any.
    /// The caller holds the user's lock.
    pub fn stop_deferring(&self, host: &Host) -> Result<bool, PublishError> {
        let unknown =
            |database: PathBuf, reason: String| PublishError::Unknown { database, reason };
        let database = host.mailboxes().map_err(|e| unknown(e.path, e.reason))?;
        let mut ops = Vec::new();
        for record in &self.deferring {
            let found = database
                .get(&record.0)
                .map_err(|e| unknown(PathBuf::from("mailboxes.db"), e.to_string()))?;
            if found.as_deref() == Some(record.1.as_slice()) {
                ops.push(delete(record));
            }
        }
        let any = !ops.is_empty();
        change(host, DbKind::Mailboxes, ops)?;
        for (from, to) in &self.renames {
            put_aside(to.path(), from.path())?;
        }
        Ok(any)
    }
}

/// BLAKE3 of what an index says of messages, without its header.
pub fn hash_of_records(index: &File) -> io::Result<[u8; 32]> {
    let records = IndexFile::open(index).map_or(0, |index| index.header().start_offset.into());
    hash_from(index, records)
}

/// BLAKE3 of a file from some byte on.
fn hash_from(mut file: &File, start: u64) -> io::Result<[u8; 32]> {
    file.seek(io::SeekFrom::Start(start))?;
    Ok(*blake3::Hasher::new().update_reader(file)?.finalize().as_bytes())
}

/// One transaction in one of the server's databases; none when there is nothing to do.
fn change(host: &Host, kind: DbKind, ops: Vec<DbOp<'_>>) -> Result<(), PublishError> {
    if ops.is_empty() {
        return Ok(());
    }
    host.change(kind, &ops)
        .map_err(|e| PublishError::Database { database: e.path, reason: e.reason })
}

fn is_tombstone(record: &[u8]) -> bool {
    let parsed = Dlist::parse(record).ok();
    let kind = parsed.as_ref().and_then(|r| r.get(b"T")).and_then(Dlist::as_bytes);
    kind.is_some_and(|kind| kind.contains(&b'd'))
}

/// Whether two records tell of one mailbox.
fn is_same_mailbox(one: &[u8], other: &[u8]) -> bool {
    let id = |record| Some(Dlist::parse(record).ok()?.get(b"I")?.as_bytes()?.to_vec());
    id(one).is_some_and(|one: Vec<u8>| Some(one) == id(other))
}

fn set((key, value): &KeyValue) -> DbOp<'_> {
    DbOp::Set(key, value)
}

fn delete((key, _): &KeyValue) -> DbOp<'_> {
    DbOp::Delete(key)
}

/// Renames a directory; done already counts as done.
fn rename(from: &Path, to: &Path) -> Result<(), PublishError> {
    if from.symlink_metadata().is_err() {
        return match to.symlink_metadata() {
            Ok(_) => Ok(()),
            Err(_) => Err(PublishError::Lost(from.into())),
        };
    }
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(|source| PublishError::Io {
            verb: "make",
            path: parent.into(),
            source,
        })?;
    }
    fault::check(Point::Rename).map_err(|source| PublishError::Io {
        verb: "rename",
        path: from.into(),
        source,
    })?;
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    match rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => {
            // An empty directory may have been left there; it is no loss.
            std::fs::remove_dir(to).map_err(|_| PublishError::InTheWay(to.into()))?;
            std::fs::rename(from, to).map_err(|source| PublishError::Io {
                verb: "rename",
                path: from.into(),
                source,
            })
        }
        Err(e) => Err(PublishError::Io { verb: "rename", path: from.into(), source: e.into() }),
    }
}

/// Renames a live directory back into its place on the stage. Where it is there again
/// already, as after a crash, what is live is of late clients.
fn bring_back(live: &Path, staged: &Path) -> Result<(), PublishError> {
    put_aside(live, staged)?;
    match live.symlink_metadata() {
        Ok(_) if is_vacant(staged) => rename(live, staged),
        _ => Ok(()),
    }
}

/// Renames what is back on the stage into its live place once more. Folders that clients
/// have made below it meanwhile stay; a file of theirs gives way.
fn bring_forward(staged: &Path, live: &Path) -> Result<(), PublishError> {
    if is_vacant(staged) {
        return Ok(());
    }
    if !live.is_dir() {
        put_aside(live, staged)?;
        return rename(staged, live);
    }
    let io = |source| PublishError::Io { verb: "read", path: live.into(), source };
    for entry in std::fs::read_dir(live).map_err(io)? {
        let entry = entry.map_err(io)?;
        rename(&entry.path(), &staged.join(entry.file_name()))?;
    }
    rename(staged, live)
}

/// Puts aside what late clients have made where a directory was that is back on the
/// stage: a session of ManageSieve makes databases of a user whose records only send
/// away (3.6.1). It is kept as long as the stage is.
fn put_aside(live: &Path, staged: &Path) -> Result<(), PublishError> {
    if is_vacant(staged) || is_vacant(live) {
        return Ok(());
    }
    let name = staged.file_name().unwrap_or_default().to_string_lossy();
    let aside = |n: u32| staged.with_file_name(format!("{name}.late-{n}"));
    let free = (1..).map(aside).find(|path| path.symlink_metadata().is_err());
    free.map_or(Ok(()), |free| rename(live, &free))
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), PublishError> {
    let io = |verb| move |source| PublishError::Io { verb, path: path.into(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(io("make"))?;
    }
    fault::check(Point::QuotaWrite).map_err(io("write"))?;
    let mut file = File::create(path).map_err(io("make"))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io("write"))
}

fn remove_file(path: &Path) -> Result<(), PublishError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PublishError::Io { verb: "remove", path: path.into(), source })
        }
        _ => Ok(()),
    }
}

fn sync_parents<'a>(paths: impl Iterator<Item = &'a PathBytes>) -> Result<(), PublishError> {
    // The parents of new directories up to the root of the tree are few; a
    // directory that was synced before costs nothing more.
    let mut directories = BTreeSet::new();
    for path in paths {
        directories.extend(path.path().ancestors().skip(1).take(4));
    }
    durable::directories(&directories).map_err(|e| PublishError::Io {
        verb: "sync",
        path: e.path,
        source: e.source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_late_clients_make_is_not_taken_for_what_was_published() {
        let dir = tempfile::tempdir().unwrap();
        let (staged, live) = (dir.path().join("stage/a"), dir.path().join("live/a"));
        std::fs::create_dir_all(&live).unwrap();
        std::fs::create_dir_all(staged.parent().unwrap()).unwrap();
        std::fs::write(live.join("published"), "").unwrap();
        bring_back(&live, &staged).unwrap();
        assert!(staged.join("published").exists() && !live.exists());
        for n in 1..=2 {
            std::fs::create_dir_all(&live).unwrap();
            std::fs::write(live.join("late"), "").unwrap();
            bring_back(&live, &staged).unwrap();
            assert!(staged.join("published").exists() && !live.exists());
            assert!(dir.path().join(format!("stage/a.late-{n}/late")).exists());
        }
        // One that never was live.
        bring_back(&live, &staged).unwrap();
        assert!(staged.join("published").exists());
    }

    #[test]
    fn what_is_brought_forward_again_keeps_what_clients_have_made() {
        let dir = tempfile::tempdir().unwrap();
        let (staged, live) = (dir.path().join("stage/inbox"), dir.path().join("live/x"));
        let write = |path: PathBuf| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, path.as_os_str().as_encoded_bytes()).unwrap();
        };
        // Still live, or never on the stage.
        write(live.join("1."));
        bring_forward(&staged, &live).unwrap();
        assert!(live.join("1.").exists());
        std::fs::create_dir_all(staged.parent().unwrap()).unwrap();
        bring_back(&live, &staged).unwrap();
        write(live.join("new/1."));
        bring_forward(&staged, &live).unwrap();
        bring_forward(&staged, &live).unwrap();
        assert!(live.join("1.").exists() && live.join("new/1.").exists() && !staged.exists());
        // The same of both: nothing is overwritten.
        bring_back(&live, &staged).unwrap();
        write(live.join("1."));
        assert!(matches!(bring_forward(&staged, &live), Err(PublishError::InTheWay(_))));
        let (staged, live) = (dir.path().join("stage/x.sub"), dir.path().join("live/x.sub"));
        write(staged.clone());
        write(live.clone());
        bring_forward(&staged, &live).unwrap();
        assert!(std::fs::read_to_string(live).unwrap().ends_with("stage/x.sub"));
    }

    #[test]
    fn renaming_again_is_no_error_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("stage/a"), dir.path().join("live/uuid/a"));
        std::fs::create_dir_all(&from).unwrap();
        rename(&from, &to).unwrap();
        rename(&from, &to).unwrap();
        std::fs::create_dir_all(&from).unwrap();
        std::fs::write(to.join("1."), "mail").unwrap();
        assert!(matches!(rename(&from, &to), Err(PublishError::InTheWay(_))));
        assert_eq!(std::fs::read(to.join("1.")).unwrap(), b"mail");
        assert!(matches!(
            rename(&dir.path().join("no"), &dir.path().join("where")),
            Err(PublishError::Lost(_))
        ));
    }
}
