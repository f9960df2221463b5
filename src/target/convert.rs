//! What is staged, in the form that this server's Cyrus keeps.
//!
//! Another release writes other versions of some files. Newer ones are read here by
//! nobody, and older ones are brought up by this server's Cyrus itself wherever it does
//! so without harm; the rest is converted here, in the stage only. It is done as soon as
//! a file has arrived, so that under the freeze only what changed last is left to do.

use super::offer::Inventory;
use super::stage::{Stage, StagedDirectory};
use super::staged::StagedMailbox;
use super::user_files::OfferedUserFile;
use super::{archive, by_name};
use crate::cyrus::cache;
use crate::cyrus::index::{self, IndexFile, IndexView, OLDEST_CONVERTED, Record, Time, touched};
use crate::cyrus::name::MailboxName;
use crate::cyrus::release::Release;
use crate::cyrus::subscription;
use crate::inventory::Shape;
use crate::moves::journal::now_ms;
use crate::wire::blocks::Blocks;
use crate::wire::v1::FileKind;
use rusqlite::Connection;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::iter::once;
use std::path::Path;
use std::sync::Arc;

/// A file that stays as it came, and why; it may have been read while it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unconverted {
    /// The mailbox, or the file of the user.
    pub what: String,
    /// What is wrong.
    pub reason: String,
}

/// Converts what has arrived since the last time.
pub fn all(stage: &Stage, inventory: &mut Inventory, release: &Release) -> Vec<Unconverted> {
    let mut failed = Vec::new();
    let inbox = inventory.inbox().map(|mailbox| mailbox.name.clone());
    let owner = inbox.as_ref().and_then(MailboxName::userid);
    for mailbox in inventory.mailboxes.values_mut().filter(|m| m.as_sent) {
        let mut converted = convert_index(stage, mailbox, release);
        if !release.by_id {
            converted = converted.and_then(|()| by_name::mailbox(stage, mailbox, owner.as_ref()));
        }
        match converted {
            Ok(()) => mailbox.as_sent = false,
            Err(reason) => {
                let what = format!("the index of {}", mailbox.name.display());
                failed.push(Unconverted { what, reason });
            }
        }
    }
    for place in std::mem::take(&mut inventory.user_files_as_sent) {
        let file = inventory.user_files.iter().find(|file| file.place == place);
        let (Some(file), Some(inbox)) = (file, &inbox) else { continue };
        if let Err(reason) = convert_user_file(stage, file, inbox, release) {
            let what = file.place.relative.display().to_string();
            failed.push(Unconverted { what, reason });
            inventory.user_files_as_sent.insert(place);
        }
    }
    failed
}

/// Gives the staged index the version that this server's Cyrus writes. What is older
/// than can be converted is left to Cyrus.
fn convert_index(
    stage: &Stage,
    mailbox: &mut StagedMailbox,
    release: &Release,
) -> Result<(), String> {
    let directory = mailbox.meta_directory(stage, FileKind::Index).map_err(|e| e.to_string())?;
    if is_as_here(&directory, mailbox, release)? {
        return Ok(());
    }
    let bytes = directory.read("cyrus.index").map_err(|e| e.to_string())?;
    let mut converted = archive::placed(mailbox, &bytes)?;
    let index = converted.as_ref().unwrap_or(&bytes);
    let view = IndexView::parse(index).map_err(|e| e.to_string())?;
    let minor = view.header().minor;
    if minor >= OLDEST_CONVERTED {
        if minor != release.index {
            let now = u32::try_from(now_ms() / 1000).unwrap_or(u32::MAX);
            let index = index::convert(&view, release.index, Time::from_seconds(now));
            converted = Some(index.map_err(|e| e.to_string())?);
        }
        let index = converted.as_ref().unwrap_or(&bytes);
        converted = without_foreign_cache(stage, mailbox, index, release)?.or(converted);
    }
    match converted {
        Some(converted) => replace(&directory, "cyrus.index", &converted),
        None => Ok(()),
    }
}

/// Whether a staged index is as this server's Cyrus would write it. Only records that are
/// not as they were at the last look are read.
fn is_as_here(
    directory: &StagedDirectory,
    mailbox: &mut StagedMailbox,
    release: &Release,
) -> Result<bool, String> {
    let file = directory.open("cyrus.index").map_err(|e| e.to_string())?;
    let mut index = IndexFile::open(&file).map_err(|e| e.to_string())?;
    let header = index.header().clone();
    // Where messages are staged changes without the index.
    let archives = mailbox.archive.is_some();
    if header.minor != release.index || !mailbox.looked.global.is_empty() || archives {
        return Ok(false);
    }
    let shape = Shape::of(&header);
    let blocks = mailbox.blocks(FileKind::Index, &file);
    let numbers = match (&mailbox.looked.seen, &blocks) {
        (Some((before, shape_then)), Some(blocks)) if *shape_then == shape => {
            touched(&header, &blocks.differing(before), 1)
        }
        _ => once(0..header.num_records).collect(),
    };
    let mut foreign = false;
    for numbers in numbers {
        let look = |_, record: Record| {
            let version = record.cache_version;
            foreign |= record.cache_offset > 0 && cache::misreads_global(release.cache, version);
            foreign |= record.is_archived();
        };
        index.each(numbers, look).map_err(|e| e.to_string())?;
    }
    if !foreign {
        mailbox.looked.seen = blocks.map(|blocks| (blocks, shape));
    }
    Ok(!foreign)
}

/// What is known of the messages of a mailbox, which never change.
#[derive(Debug, Default)]
pub struct Looked {
    /// An index that is as this server's Cyrus would write it, and where its records are.
    seen: Option<(Arc<Blocks>, Shape)>,
    /// UIDs up to this one were looked at.
    upto: u32,
    /// Those that have a message/global.
    global: BTreeSet<u32>,
}

/// The index without the places in cyrus.cache of records that this server's Cyrus would
/// misread: it parses their messages when it is asked for them.
fn without_foreign_cache(
    stage: &Stage,
    mailbox: &mut StagedMailbox,
    index: &[u8],
    release: &Release,
) -> Result<Option<Vec<u8>>, String> {
    let view = IndexView::parse(index).map_err(|e| e.to_string())?;
    let foreign = |r: &Record| cache::misreads_global(release.cache, r.cache_version);
    let looked = &mailbox.looked;
    let new: Vec<Record> = view
        .records()
        .filter_map(Result::ok)
        .filter(|r| r.uid > looked.upto && r.cache_offset > 0 && foreign(r))
        .collect();
    for (kind, archived) in [(FileKind::Cache, false), (FileKind::ArchiveCache, true)] {
        let mut of_file = new.iter().filter(|r| r.is_archived() == archived).peekable();
        if of_file.peek().is_none() {
            continue;
        }
        let directory = mailbox.meta_directory(stage, kind);
        let file = directory.map_err(|e| e.to_string())?.open("cyrus.cache");
        let file = file.map_err(|e| format!("cyrus.cache: {e}"))?;
        for record in of_file {
            let offset = record.cache_offset;
            if has_global(&file, offset).map_err(|e| format!("cyrus.cache: {e}"))? {
                mailbox.looked.global.insert(record.uid);
            }
        }
    }
    mailbox.looked.upto = new.last().map_or(mailbox.looked.upto, |last| last.uid);
    if mailbox.looked.global.is_empty() {
        return Ok(None);
    }
    let stale = |r: &Record| foreign(r) && mailbox.looked.global.contains(&r.uid);
    index::without_cache(&view, stale).map_err(|e| e.to_string())
}

/// Whether the message of the cache record at `offset` has a message/global; or there is
/// no such record, and nobody can tell.
fn has_global(file: &File, offset: u64) -> io::Result<bool> {
    // Nearly all that is looked for lies within the first length.
    for length in [4 << 10, 1 << 20] {
        let mut bytes = Vec::with_capacity(length.min(4 << 10));
        let mut at = file;
        at.seek(SeekFrom::Start(offset))?;
        at.take(length as u64).read_to_end(&mut bytes)?;
        if let Some(parsed) = cache::bodystructure(&bytes) {
            return Ok(cache::has_global(parsed));
        }
    }
    Ok(true)
}

/// Replaces a file of a staged mailbox by what was made of it; it stays beside, as it came,
/// for the next patch. It keeps its time of modification, which clients of calendars are
/// told (imap/http_dav.c: getlastmodified).
pub fn replace(directory: &StagedDirectory, name: &str, content: &[u8]) -> Result<(), String> {
    let new = format!("{name}.mbcopy-new");
    let write = || -> io::Result<()> {
        let modified = directory.open(name).and_then(|old| old.metadata()?.modified());
        let mut file = File::from(directory.create(&new)?);
        file.write_all(content)?;
        if let Ok(modified) = modified {
            file.set_modified(modified)?;
        }
        directory.keep_as_sent(name)?;
        directory.rename(&new, name)
    };
    write().map_err(|e| format!("{name}: {e}"))
}

fn convert_user_file(
    stage: &Stage,
    file: &OfferedUserFile,
    inbox: &MailboxName,
    release: &Release,
) -> Result<(), String> {
    let path = file.place.path(stage);
    if !release.by_id {
        return by_name::user_file(&path, file.kind, inbox);
    }
    match file.kind {
        FileKind::UserSubscriptions if release.subscriptions == 2 => {
            let bytes = std::fs::read(&path).map_err(|e| e.to_string())?;
            match subscription::as_version_2(&bytes) {
                Some(older) => std::fs::write(&path, older).map_err(|e| e.to_string()),
                None => Ok(()),
            }
        }
        FileKind::UserDav => lower_dav(&path, release.dav),
        _ => Ok(()),
    }
}

/// From version 16 of dav.db to 15 (imap/dav_db.c: CMD_DBUPGRADEv16, backwards).
const FROM_16: &str = "DROP TABLE IF EXISTS jscard_cache;
    CREATE TABLE IF NOT EXISTS vcard_jmapcache (rowid INTEGER NOT NULL PRIMARY KEY,
        jmapversion INTEGER NOT NULL, jmapdata TEXT NOT NULL,
        FOREIGN KEY (rowid) REFERENCES vcard_objs (rowid) ON DELETE CASCADE);";

/// From version 15 of dav.db to 14 (imap/dav_db.c: CMD_DBUPGRADEv15, backwards).
const FROM_15: &str = "DROP TABLE IF EXISTS jscal_cache;
    DROP TABLE IF EXISTS jscal_objs;
    CREATE TABLE IF NOT EXISTS ical_jmapcache (rowid INTEGER NOT NULL, userid TEXT NOT NULL,
        jmapversion INTEGER NOT NULL, jmapdata TEXT NOT NULL, PRIMARY KEY (rowid, userid),
        FOREIGN KEY (rowid) REFERENCES ical_objs (rowid) ON DELETE CASCADE);";

/// Brings dav.db down to the version of this server's Cyrus. Left as it is, Cyrus would
/// give it its own number and leave its tables, and the next newer Cyrus that upgrades it
/// would fail (lib/sqldb.c: sqldb_open). Upwards Cyrus goes by itself.
fn lower_dav(path: &Path, wanted: u32) -> Result<(), String> {
    let wrong = |e: rusqlite::Error| e.to_string();
    let mut database = Connection::open(path).map_err(wrong)?;
    // Whoever dies here begins with a new copy; and it comes from a peer.
    let pragmas = "PRAGMA journal_mode = MEMORY; PRAGMA synchronous = OFF; \
                   PRAGMA foreign_keys = OFF; PRAGMA trusted_schema = OFF;";
    database.execute_batch(pragmas).map_err(wrong)?;
    let version: u32 =
        database.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(wrong)?;
    if version <= wanted {
        return Ok(());
    }
    let change = database.transaction().map_err(wrong)?;
    for from in (wanted + 1..=version).rev() {
        let step = match from {
            16 => FROM_16,
            15 => FROM_15,
            _ => return Err(format!("its version is {version}, and this server's is {wanted}")),
        };
        change.execute_batch(step).map_err(wrong)?;
    }
    change.execute_batch(&format!("PRAGMA user_version = {wanted}")).map_err(wrong)?;
    change.commit().map_err(wrong)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;

    /// As 3.10 makes it of a database of 3.6, with an event.
    const OF_3_10: &str = "CREATE TABLE ical_objs (rowid INTEGER PRIMARY KEY, mailbox TEXT);
        CREATE TABLE vcard_objs (rowid INTEGER PRIMARY KEY, mailbox TEXT);
        CREATE TABLE sieve_scripts (rowid INTEGER PRIMARY KEY, name TEXT);
        CREATE TABLE jscal_objs (rowid INTEGER NOT NULL, ical_recurid TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (rowid, ical_recurid),
            FOREIGN KEY (rowid) REFERENCES ical_objs (rowid) ON DELETE CASCADE);
        CREATE TABLE jscal_cache (rowid INTEGER NOT NULL);
        CREATE TABLE jscard_cache (rowid INTEGER NOT NULL);
        INSERT INTO ical_objs VALUES (1, 'id'); INSERT INTO jscal_objs VALUES (1, '');
        INSERT INTO sieve_scripts VALUES (1, 'main');
        PRAGMA user_version = 16;";

    /// What 3.10 does to a database of 3.6.
    const UPGRADE: &str = "DROP TABLE ical_jmapcache;
        CREATE TABLE IF NOT EXISTS jscal_objs (rowid INTEGER NOT NULL, ical_recurid TEXT NOT NULL,
            PRIMARY KEY (rowid, ical_recurid));
        INSERT INTO jscal_objs SELECT rowid, '' FROM ical_objs;
        DROP TABLE vcard_jmapcache;";

    fn database() -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("dav.db");
        Connection::open(&path).unwrap().execute_batch(OF_3_10).unwrap();
        (directory, path)
    }

    fn version(path: &Path) -> u32 {
        let open = Connection::open(path).unwrap();
        open.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn dav_goes_down_and_can_be_brought_up_again() {
        let (directory, path) = database();
        lower_dav(&path, 14).unwrap();
        assert_eq!(version(&path), 14);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "a journal is left");
        let open = Connection::open(&path).unwrap();
        open.execute_batch(UPGRADE).unwrap();
        let count = |table| {
            let query = format!("SELECT count(*) FROM {table}");
            open.query_row(&query, [], |row| row.get::<_, u32>(0)).unwrap()
        };
        assert_eq!((count("ical_objs"), count("jscal_objs"), count("sieve_scripts")), (1, 1, 1));
    }

    #[test]
    fn dav_of_the_same_version_or_an_older_one_is_left_alone() {
        let (_directory, path) = database();
        let before = std::fs::read(&path).unwrap();
        lower_dav(&path, 16).unwrap();
        lower_dav(&path, 19).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn dav_of_an_unknown_version_or_torn_is_refused() {
        let (_directory, path) = database();
        let open = Connection::open(&path).unwrap();
        open.execute_batch("PRAGMA user_version = 17").unwrap();
        drop(open);
        assert!(lower_dav(&path, 14).unwrap_err().contains("its version is 17"));
        assert_eq!(version(&path), 17);
        std::fs::write(&path, b"SQLite format 3\0 and then nothing of it").unwrap();
        assert!(lower_dav(&path, 14).is_err());
    }
}
