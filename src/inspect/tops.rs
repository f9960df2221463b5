//! Who and what could be moved from this server, and how much that is.

use super::{gone, unreadable};
use crate::agent::Sender;
use crate::cyrus::config::MetaFile;
use crate::cyrus::index::IndexView;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::mboxlist::{KeyStyle, MailboxEntry, MailboxList};
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::{DirStyle, Layout};
use crate::host::Host;
use crate::wire::v1;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

/// Users of one part of the list.
const PART: usize = 1000;

/// More than the header of any version's index, in bytes.
const HEADER: u64 = 512;

/// Tells every user of this server, and every mailbox that nobody owns; with how
/// many messages and bytes, if `sizes`. Memory grows with the number of users.
pub fn tell(host: &Host, sizes: bool, to: &Sender) -> Result<v1::TopsListed, v1::Failure> {
    let failed = |e: &dyn std::fmt::Display| unreadable(e.to_string());
    let namespace = host.namespace().map_err(|e| failed(&e))?;
    let database = host.mailboxes().map_err(|e| failed(&e))?;
    let list = MailboxList::from_database(&database).map_err(|e| failed(&e))?;
    // From 3.6 on directories are named by ids.
    let by_id = list.style() == KeyStyle::Typed;
    let mut tops: BTreeMap<MailboxName, v1::Top> = BTreeMap::new();
    let deleted = format!("{}.", host.config.deletedprefix());
    let each = list.each(|entry| {
        let name = &entry.name;
        let is_kept = name.without_domain().starts_with(deleted.as_bytes());
        let top = name.inbox().unwrap_or_else(|| name.clone());
        if is_kept || entry.is_deleted() || !host.allows(&top) {
            return;
        }
        let is_top = *name == top;
        let told = tops.entry(top).or_default();
        told.mailboxes += 1;
        if is_top {
            describe(host, &entry, told);
        }
        if sizes && let Some((messages, bytes)) = size(host, &entry, by_id) {
            told.messages += messages;
            told.bytes += bytes;
        }
    });
    each.map_err(|e| failed(&e))?;
    // Folders whose INBOX is gone are nobody that could be moved.
    let tops: Vec<v1::Top> = tops.into_values().filter(|top| !top.display.is_empty()).collect();
    for part in tops.chunks(PART) {
        let part = v1::TopList { tops: part.to_vec() };
        to.part(v1::part::Part::TopList(part)).map_err(gone)?;
    }
    Ok(v1::TopsListed { unix_separator: namespace.unix_separator })
}

fn describe(host: &Host, entry: &MailboxEntry, told: &mut v1::Top) {
    told.display = host.external(&entry.name);
    let user = entry.name.userid();
    told.userid =
        user.map(|u| String::from_utf8_lossy(u.as_bytes()).into_owned()).unwrap_or_default();
    told.partition = entry.partition.as_ref().map(|p| p.as_str().to_owned()).unwrap_or_default();
    if [Flag::Moving, Flag::Remote, Flag::Reserve].iter().any(|flag| entry.mbtype.has(*flag)) {
        told.away = entry.server.clone().unwrap_or_else(|| "another server".into());
    }
}

/// Messages and bytes, by the header of the index; none where it cannot be read:
/// the move itself will say why.
fn size(host: &Host, entry: &MailboxEntry, by_id: bool) -> Option<(u64, u64)> {
    let partition = entry.partition.as_ref()?;
    let style = match &entry.uniqueid {
        Some(id) if by_id && !entry.mbtype.has(Flag::LegacyDirs) => DirStyle::Id(id),
        _ => DirStyle::Name,
    };
    let layout = Layout::new(&host.config);
    let path = layout.meta_file(MetaFile::Index, &entry.name, style, partition).ok()?;
    let mut beginning = Vec::with_capacity(HEADER as usize);
    File::open(path).ok()?.take(HEADER).read_to_end(&mut beginning).ok()?;
    let header = IndexView::peek(&beginning).ok()?;
    Some((u64::from(header.exists), header.quota_mailbox_used))
}
