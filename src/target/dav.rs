//! Calendars and address books of a source whose dav.db is of an older form than any that
//! moves (before 3.6 it names mailboxes by name): this server's own `dav_reconstruct` makes
//! it of what is staged. What the messages do not tell it makes anew: the times of creation.

use super::offer::Inventory;
use super::shadow::Top;
use super::stage::Stage;
use super::staged::StagedMailbox;
use crate::cyrus::mboxlist::mbtype::Kind;
use crate::cyrus::path::Layout;
use crate::host::Host;
use crate::wire::v1::{self, FileKind, problem::Severity};
use std::time::Duration;

/// Makes dav.db where it is missing and needed; what could not be made.
pub fn make(host: &Host, stage: &Stage, inventory: &Inventory, top: &Top) -> Option<v1::Problem> {
    let inbox = inventory.inbox()?;
    let kinds = [Kind::Calendar, Kind::Addressbook, Kind::Collection];
    let needed = |m: &StagedMailbox| kinds.contains(&m.kind()) && m.is_published(host);
    let come = inventory.user_files.iter().any(|file| file.kind == FileKind::UserDav);
    if come || !host.keeps_by_id() || !inventory.mailboxes.values().any(needed) {
        return None;
    }
    let user = top.userid.as_deref()?;
    let limit = Duration::from_secs(3600);
    let ran = host.tools.run(&stage.imapd_conf, "dav_reconstruct", &[user], Vec::new(), limit);
    let path = Layout::new(&stage.config).user_dir(&inbox.id).map(|dir| dir.join("dav.db"));
    let why = match ran {
        Err(error) => error.to_string(),
        Ok(_) if path.is_ok_and(|path| path.exists()) => return None,
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("dav_reconstruct made none: {}", crate::wire::printable(said.trim()))
        }
    };
    Some(v1::Problem::new(
        Severity::Note,
        "no-dav-database",
        format!("clients of calendars and address books see none of what is in them yet: {why}"),
        &format!("run on this server, when he has moved: dav_reconstruct {user}"),
    ))
}
