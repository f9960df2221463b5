//! What 3.6 and later keep of a mailbox, in the form of 3.2 and 3.4, where everything is
//! found by name: the way back of [`upgrade`](super::upgrade).

use super::annotation::{AnnotationKey, OWNER};
use super::db::crc::crc32;
use super::db::{Database, DbError, Engine, Entry, twoskip};
use super::dlist::{Dlist, Scalar};
use super::header::{HeaderForm, MailboxHeader};
use super::mboxlist::MailboxEntry;
use super::mboxlist::mbtype::{Flag, Kind};
use super::name::{UniqueId, UserId};
use bytes::Bytes;

/// The record of a mailbox under its internal name
/// (3.2.6:`imap/mboxlist.c:mboxlist_entry_cstring`).
pub fn record(entry: &MailboxEntry, id: &UniqueId) -> Vec<u8> {
    let mut pairs = Vec::new();
    if !entry.mbtype.has(Flag::Intermediate) {
        let acl = entry.acl.0.iter();
        let acl = acl.map(|(id, rights)| (Scalar::new(id), Dlist::string(rights))).collect();
        pairs.push((Scalar::new(b"A"), Dlist::Kv(acl)));
    }
    let mut add = |key: &[u8], value: &[u8]| {
        if !value.is_empty() {
            pairs.push((Scalar::new(key), Dlist::string(value)));
        }
    };
    add(b"I", id.as_str().as_bytes());
    add(b"P", entry.partition.as_ref().map_or(b"".as_slice(), |p| p.as_str().as_bytes()));
    add(b"S", entry.server.as_deref().unwrap_or_default().as_bytes());
    add(b"T", &letters(entry));
    let numbers = [
        (b"V", u64::from(entry.uidvalidity)),
        (b"C", entry.createdmodseq),
        (b"F", entry.foldermodseq),
        (b"M", entry.mtime),
    ];
    for (key, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
        add(key, number.to_string().as_bytes());
    }
    Dlist::Kv(pairs).to_bytes()
}

/// The type letters of 3.2: mail has none.
fn letters(entry: &MailboxEntry) -> Vec<u8> {
    let flags = entry.mbtype.flags().iter().filter(|flag| **flag != Flag::LegacyDirs);
    let kind = (entry.mbtype.kind != Kind::Email).then(|| entry.mbtype.kind.letter());
    flags.map(|flag| flag.letter()).chain(kind).collect()
}

/// The cyrus.header of three lines.
pub fn header_file(new: &MailboxHeader) -> Vec<u8> {
    let header = MailboxHeader {
        form: HeaderForm::Text,
        name: None,
        mbtype: None,
        acl: Some(new.acl.clone().unwrap_or_default()),
        ..new.clone()
    };
    header.to_bytes()
}

/// A database of messages' annotations in which the owner's own are under his name.
pub fn message_annotations(bytes: Bytes, owner: &UserId) -> Result<Vec<u8>, DbError> {
    let mut new: Vec<Entry> = Vec::new();
    for (key, value) in Database::open(bytes, &Engine::Twoskip)?.entries()? {
        let own = AnnotationKey::parse_message(&key).ok().filter(|key| key.userid == OWNER);
        let key = match own {
            Some(own) => {
                AnnotationKey { userid: owner.as_bytes().to_vec(), ..own }.to_bytes().into()
            }
            None => key,
        };
        new.push((key, value));
    }
    new.sort();
    Ok(twoskip::write(&new))
}

/// A user's counters in version 5, as 3.2 writes them; `None` if they are no newer.
///
/// Up to version 9 (3.6 to 3.12) newer ones only have more counters before the
/// UIDVALIDITY and the CRC at the end (`imap/mboxname.c:mboxname_counters_to_buf`).
pub fn counters(new: &[u8]) -> Option<Vec<u8>> {
    const OLD: usize = 120;
    const VERSION: u32 = 5;
    let version = u32::from_be_bytes(*new.get(4..)?.first_chunk()?);
    let end = new.len().checked_sub(8)?;
    if version <= VERSION || end < OLD - 8 {
        return None;
    }
    let mut old = new.get(..OLD - 8)?.to_vec();
    old.splice(4..8, VERSION.to_be_bytes());
    old.extend_from_slice(new.get(end..end + 4)?);
    let crc = crc32(&old);
    old.extend(crc.to_be_bytes());
    Some(old)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::cyrus::name::MailboxName;
    use crate::cyrus::upgrade;

    fn entry(value: &str) -> MailboxEntry {
        let name = MailboxName::from_internal(b"user.x.Sent").unwrap();
        MailboxEntry::parse(name, Bytes::new(), Bytes::copy_from_slice(value.as_bytes())).unwrap()
    }

    #[test]
    fn a_record_is_the_same_after_both_ways() {
        for old in [
            "%(A %(x lrs anyone lr) I 7a P default V 1795665821 C 1 F 2 M 3)",
            "%(A %(x lrs) I 7a P default T c V 5 C 1 F 2 M 3)",
            "%(I 7a T i C 1 F 2 M 3)",
        ] {
            let id = UniqueId::new(b"7a").unwrap();
            let before = entry(old);
            let (new, _) = upgrade::records(&before, &id, before.uidvalidity, 0);
            let after = record(&entry(std::str::from_utf8(&new).unwrap()), &id);
            let expected = Dlist::parse(old.as_bytes()).unwrap().to_bytes();
            assert_eq!(String::from_utf8(after).unwrap(), String::from_utf8(expected).unwrap());
        }
    }

    #[test]
    fn a_header_is_the_same_after_both_ways() {
        let text = [super::super::header::MAGIC, b"user.x\t7a\na  b \nx\tlrs\t\n"].concat();
        let old = MailboxHeader::parse(&text).unwrap();
        let entry = entry("%(A %(x lrs) I 7a P default V 1)");
        let new = upgrade::header_file(&old, &entry, &UniqueId::new(b"7a").unwrap());
        let new = MailboxHeader::parse(&new).unwrap();
        assert_eq!(new.form, HeaderForm::Dlist);
        assert_eq!(header_file(&new), text);
    }

    #[test]
    fn counters_lose_those_that_3_2_does_not_know() {
        let mut new: Vec<u8> = (0..=255).chain(0..40).collect();
        new.splice(4..8, 9u32.to_be_bytes());
        let old = counters(&new).unwrap();
        assert_eq!(old.len(), 120);
        assert_eq!((&old[..4], &old[4..8]), (&new[..4], &5u32.to_be_bytes()[..]));
        assert_eq!((&old[8..112], &old[112..116]), (&new[8..112], &new[288..292]));
        assert_eq!(old[116..], crc32(&old[..116]).to_be_bytes());
        assert_eq!(counters(&old), None);
        assert!((0..60).all(|length| counters(&new[..length]).is_none()));
    }

    #[test]
    fn annotations_of_messages_are_their_owners_by_name() {
        let owner = MailboxName::from_internal(b"user.x").unwrap().userid().unwrap();
        let key = |userid: &[u8]| [b"5\0/comment\0", userid, b"\0"].concat();
        let file = twoskip::write(&[(key(b""), "a"), (key(OWNER), "b"), (key(b"y"), "c")]);
        let new = message_annotations(file.into(), &owner).unwrap();
        let entries = Database::open(new.into(), &Engine::Twoskip).unwrap().entries().unwrap();
        let keys: Vec<_> = entries.iter().map(|(key, _)| key.to_vec()).collect();
        assert_eq!(keys, [key(b""), key(b"x"), key(b"y")]);
    }
}
