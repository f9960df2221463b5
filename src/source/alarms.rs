//! Alarms that Cyrus itself sends (calalarmd): when it next looks at which event is in a
//! database of the server. It does not move; the target's `dav_reconstruct` makes it anew
//! of the events.

use super::inventory::Listing;
use crate::host::Host;
use crate::wire::v1::{self, problem::Severity};
use rusqlite::{Connection, OpenFlags};

/// A note, if there are any of the user's.
pub fn note(host: &Host, listing: &Listing) -> Option<v1::Problem> {
    let user = listing.top.userid()?;
    let user = String::from_utf8_lossy(user.as_bytes()).into_owned();
    let path = host.config.configdirectory().ok()?.join("caldav_alarm.sqlite3");
    let database = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok()?;
    // Up to now by the mailbox's name in every version (imap/caldav_alarm.c: CMD_CREATE).
    let mut query = database.prepare("SELECT count(*) FROM events WHERE mboxname = ?1").ok()?;
    let names = listing.mailboxes.iter().map(|m| m.entry.name.as_bytes());
    let count = names
        .map(|name| query.query_row([String::from_utf8_lossy(name)], |row| row.get::<_, u64>(0)))
        .sum::<Result<u64, _>>()
        .ok()?;
    (count > 0).then(|| v1::Problem {
        severity: Severity::Note.into(),
        code: "alarms".into(),
        text: format!("{count} alarms that Cyrus itself sends are not known to the target"),
        advice: format!("if calalarmd runs there, when he has moved: dav_reconstruct {user}"),
        ..v1::Problem::default()
    })
}
