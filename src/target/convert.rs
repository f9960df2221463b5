//! What is staged, in the form that this server's Cyrus keeps.
//!
//! Another release writes other versions of some files. Newer ones are read here by
//! nobody, and older ones are brought up by this server's Cyrus itself wherever it does
//! so without harm; the rest is converted here, in the stage only. It is done as soon as
//! a file has arrived, so that under the freeze only what changed last is left to do.

use super::offer::Inventory;
use super::stage::{Stage, StagedDirectory};
use super::user_files::OfferedUserFile;
use super::{by_name, own_index};
use crate::cyrus::name::MailboxName;
use crate::cyrus::release::Release;
use crate::cyrus::subscription;
use crate::wire::v1::FileKind;
use rusqlite::Connection;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

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
        let header = match release.by_id {
            true => Ok(None),
            false => by_name::mailbox(stage, mailbox, owner.as_ref()).map(Some),
        };
        match header.and_then(|header| own_index::make(stage, mailbox, release, header)) {
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
