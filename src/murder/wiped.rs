//! Putting back what `ctl_mboxlist -m` has taken away.
//!
//! A backend runs it at every start. Whatever it has and mupdate has on another server,
//! it renames below `DELETED` (imap/ctl_mboxlist.c:do_pop_mupdate). When a move stops
//! between publishing and routing that is the target's unrouted copy, between routing
//! and retiring it is the source's: either is the other server's user, whole, and the
//! copy has only other records. They are put back as they were, in one transaction, and
//! the move goes on as if nothing had been.
//!
//! A folder that the user himself has deleted looks the same, but mupdate knows nothing
//! of it any more: that one stays deleted.

use super::{Client, Settings, is_member};
use crate::cyrus::db::Database;
use crate::cyrus::dlist::Dlist;
use crate::cyrus::name::MailboxName;
use crate::host::Host;
use std::time::Duration;

/// How long the mailboxes of one user may take to be counted.
const COUNTING: Duration = Duration::from_secs(120);

/// A key of mailboxes.db and its value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// Puts back those of `records` (of mailboxes.db of 3.6 and later, as they were) that
/// were taken away; how many mailboxes. The caller keeps others from moving the user.
///
/// Errors: nothing was changed, or it is not known.
pub fn put_back(host: &Host, records: &[KeyValue]) -> Result<usize, String> {
    if !is_member(host) || !host.keeps_by_id() {
        return Ok(0);
    }
    let database = host.mailboxes().map_err(|e| e.to_string())?;
    let mut wiped = wiped(&database, records)?;
    if wiped.is_empty() {
        return Ok(0);
    }
    let settings = Settings::of(&host.config).ok_or("imapd.conf names no mupdate_server")?;
    let mut client = Client::connect(&settings).map_err(|e| e.to_string())?;
    let names: Vec<&[u8]> = wiped.iter().map(|w| w.name.as_slice()).collect();
    let found = client.find(&names).map_err(|e| e.to_string())?;
    let mut known = found.iter().map(Option::is_some);
    wiped.retain(|_| known.next().unwrap_or(false));
    if wiped.is_empty() {
        return Ok(0);
    }
    let changes = wiped.iter().flat_map(|w| {
        let set = w.records.iter().map(|(key, value)| (&key[..], Some(&value[..])));
        set.chain([(&w.kept_as[..], None)])
    });
    host.change_records(changes).map_err(|e| e.to_string())?;
    Ok(wiped.len())
}

/// Counts the user's mailboxes into their quota roots again: those that are taken away are
/// counted out of them, and name none any more (imap/mboxlist.c:mboxlist_renamemailbox).
/// Nobody may hold the user's lock.
pub fn count_again(host: &Host, top: &MailboxName) -> Result<(), String> {
    let userid = top.userid().map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
    let whom = match userid {
        Some(userid) => vec!["-u".to_owned(), userid],
        None => vec![host.external(top)],
    };
    let arguments = [vec!["-f".to_owned()], whom].concat();
    let output = host.tools.run(&host.conf, "quota", &arguments, Vec::new(), COUNTING);
    let output = output.map_err(|e| e.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("quota: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// A mailbox whose records were changed.
#[derive(Debug, PartialEq, Eq)]
struct Wiped {
    /// Its internal name.
    name: Vec<u8>,
    /// Its records by id and by name, as they were.
    records: [KeyValue; 2],
    /// The key of the record by which it is kept.
    kept_as: Vec<u8>,
}

/// The mailboxes whose record by id names another mailbox now, and whose record by
/// name is a tombstone.
fn wiped(database: &Database, records: &[KeyValue]) -> Result<Vec<Wiped>, String> {
    let get = |key: &[u8]| database.get(key).map_err(|e| e.to_string());
    let field = |record: &[u8], field: &[u8]| {
        Some(Dlist::parse(record).ok()?.get(field)?.as_bytes()?.to_vec())
    };
    let mut found = Vec::new();
    for (key, value) in records {
        if key.first() != Some(&b'I') {
            continue;
        }
        let Some(was) = field(value, b"N") else { continue };
        let name_key = [b"N", was.as_slice()].concat();
        let Some(by_name) = records.iter().find(|(key, _)| *key == name_key) else { continue };
        let now = get(key)?.and_then(|now| field(&now, b"N")).filter(|now| *now != was);
        let tombstone = get(&name_key)?
            .and_then(|now| field(&now, b"T"))
            .is_some_and(|letters| letters.contains(&b'd'));
        if let (Some(now), true) = (now, tombstone) {
            let name = MailboxName::from_db_key(&was).map_err(|e| e.to_string())?;
            found.push(Wiped {
                name: name.as_bytes().to_vec(),
                records: [(key.clone(), value.clone()), by_name.clone()],
                kept_as: [b"N", now.as_slice()].concat(),
            });
        }
    }
    Ok(found)
}
