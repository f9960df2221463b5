//! What an old server's files say, in the form that Cyrus 3.6 and later keep.
//!
//! A mailbox up to 2.3 has a cyrus.index without checksums, expunged messages in a
//! cyrus.expunge beside it, and its owner's \Seen in his seen database; an index of
//! minor version 12 has all three.  Newer indexes keep their version: Cyrus converts
//! them upwards by itself, without a change that clients see.

use super::dlist::{Dlist, Scalar};
use super::guid::Guid;
use super::header::{HeaderForm, MailboxHeader};
use super::index::{
    IndexError, IndexView, Record, Time, WriteError, internal, options, system, write_index,
};
use super::mboxlist::MailboxEntry;
use super::mboxlist::mbtype::Flag;
use super::name::{MailboxName, UniqueId};
use super::quota::Quota;
use super::seen::Seen;
use std::collections::BTreeMap;

/// The lowest minor version that holds all that an old server kept elsewhere.
const LOWEST: u32 = 12;

/// Why an index cannot be converted.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum UpgradeError {
    /// One of the two files does not parse.
    #[error("{file}: {error}")]
    Parse {
        /// cyrus.index or cyrus.expunge.
        file: &'static str,
        /// Where and why.
        error: IndexError,
    },
    /// The result cannot be written.
    #[error("cyrus.index: {0}")]
    Write(#[from] WriteError),
}

/// What a message's file tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// SHA-1 of its content, if it was wanted.
    pub guid: Option<Guid>,
    /// When it was written.
    pub modified: Time,
}

/// What belongs to a mailbox besides its index.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Its cyrus.expunge.
    pub expunge: Option<&'a IndexView<'a>>,
    /// What its owner has seen, or everybody if the mailbox shares that.
    pub seen: Option<&'a Seen>,
    /// The cyrus.header that the converted index will belong to.
    pub header_file: &'a [u8],
    /// UIDs, ascending, of messages that are left out.
    pub without: &'a [u32],
}

/// The bytes of a cyrus.index, of minor version 12 or later, that says what the old
/// files say.
///
/// `facts` is asked about a message's file where the index does not tell all; `None`
/// is a file that is not there.  The flag says whether its SHA-1 is wanted.  Of an
/// expunged message without a file nothing remains: it must never come back.
pub fn index(
    old: &IndexView<'_>,
    beside: &Beside<'_>,
    mut facts: impl FnMut(&Record, bool) -> Option<FileFacts>,
) -> Result<Vec<u8>, UpgradeError> {
    let mut header = old.header().clone();
    let converts = header.minor < LOWEST;
    let minor = header.minor.max(LOWEST);
    let mut records = BTreeMap::new();
    if let Some(expunge) = beside.expunge {
        for record in expunge.records() {
            let mut record =
                record.map_err(|error| UpgradeError::Parse { file: "cyrus.expunge", error })?;
            record.internal_flags |= internal::EXPUNGED;
            records.insert(record.uid, record);
        }
    }
    // Last: a message that clients see is not expunged, whatever was left of a crash.
    for record in old.records() {
        let record = record.map_err(|error| UpgradeError::Parse { file: "cyrus.index", error })?;
        records.insert(record.uid, record);
    }
    // Also of what is dropped below: no UID is given twice.
    if let Some((&last, _)) = records.last_key_value() {
        header.last_uid = header.last_uid.max(last);
    }
    let mut known = true;
    let mut kept = Vec::with_capacity(records.len());
    let left_out = |uid: &u32| beside.without.binary_search(uid).is_ok();
    let stays = |record: &Record| !record.is_unlinked() && !left_out(&record.uid);
    for mut record in records.into_values().filter(stays) {
        let wanted = record.guid.is_none();
        if wanted || record.is_expunged() || record.internaldate.is_zero() {
            match facts(&record, wanted) {
                None if record.is_expunged() => continue,
                None => {}
                Some(facts) => {
                    record.guid = record.guid.or(facts.guid);
                    if record.internaldate.is_zero() {
                        record.internaldate = facts.modified;
                    }
                }
            }
        }
        // What is made of the records is made anew where any is another.
        known &= !wanted && beside.without.is_empty();
        if converts {
            let seen = beside.seen.is_some_and(|seen| seen.uids.contains(record.uid));
            record.system_flags &= !system::SEEN;
            record.system_flags |= if seen { system::SEEN } else { 0 };
            // The cache of that time is of no use; Cyrus makes it anew.
            (record.cache_offset, record.cache_version, record.cache_crc) = (0, 0, 0);
        }
        kept.push(record);
    }
    count(&mut header, &kept);
    header.header_file_crc = super::db::crc::crc32(beside.header_file);
    if converts {
        header.options &= options::POP3_NEW_UIDL | options::SHAREDSEEN | options::DUPDELIVER;
        if let Some(seen) = beside.seen {
            header.recentuid = seen.last_uid;
            header.recenttime = Time::from_seconds(u32::try_from(seen.last_read).unwrap_or(0));
        }
    }
    if converts || !known {
        // Made of the records' SHA-1s and flags; zero is not known yet.
        header.sync_crc = 0;
    }
    Ok(write_index(minor, &header, kept)?)
}

/// Counts what the header counts.
fn count(header: &mut super::index::Header, records: &[Record]) {
    let number = |with: &dyn Fn(&Record) -> bool| {
        let live = records.iter().filter(|r| !r.is_expunged() && with(r));
        u32::try_from(live.count()).unwrap_or(u32::MAX)
    };
    header.exists = number(&|_| true);
    header.deleted = number(&|r| r.system_flags & system::DELETED != 0);
    header.answered = number(&|r| r.system_flags & system::ANSWERED != 0);
    header.flagged = number(&|r| r.system_flags & system::FLAGGED != 0);
    header.unseen = number(&|r| !r.is_seen());
    let sizes = records.iter().filter(|r| !r.is_expunged()).map(|r| r.size);
    header.quota_mailbox_used = sizes.fold(0, u64::saturating_add);
    let expunged = records.iter().filter(|r| r.is_expunged()).map(|r| r.last_updated);
    header.first_expunged = expunged.min().unwrap_or(Time::ZERO);
}

/// The cyrus.header of 3.6 for a mailbox of an older server.
pub fn header_file(old: &MailboxHeader, entry: &MailboxEntry, id: &UniqueId) -> Vec<u8> {
    let header = MailboxHeader {
        form: HeaderForm::Dlist,
        name: Some(entry.name.as_bytes().to_vec()),
        uniqueid: Some(id.as_str().as_bytes().to_vec()),
        mbtype: Some(letters(entry)),
        acl: Some(entry.acl.clone()),
        ..old.clone()
    };
    header.to_bytes()
}

/// The N and the I record of 3.6 (`imap/mboxlist.c:mboxlist_entry_dlist`) for a
/// mailbox of an older server. `changed` is when it last changed, in seconds since
/// 1970, for a record that does not say.
pub fn records(
    entry: &MailboxEntry,
    id: &UniqueId,
    uidvalidity: u32,
    changed: u64,
) -> (Vec<u8>, Vec<u8>) {
    let of = |key: &[u8], named: &[u8]| {
        let mut pairs = vec![
            (Scalar::new(b"T"), Dlist::string(&letters(entry))),
            (Scalar::new(key), Dlist::string(named)),
        ];
        if let Some(partition) = &entry.partition {
            pairs.push((Scalar::new(b"P"), Dlist::string(partition.as_str().as_bytes())));
        }
        let mtime = if entry.mtime == 0 { changed } else { entry.mtime };
        let numbers = [
            (b"V", u64::from(uidvalidity)),
            (b"C", entry.createdmodseq),
            (b"F", entry.foldermodseq),
            (b"M", mtime),
        ];
        for (key, number) in numbers.into_iter().filter(|(_, number)| *number > 0) {
            pairs.push((Scalar::new(key), Dlist::string(number.to_string().as_bytes())));
        }
        let acl = entry.acl.0.iter();
        let acl = acl.map(|(id, rights)| (Scalar::new(id), Dlist::string(rights))).collect();
        pairs.push((Scalar::new(b"A"), Dlist::Kv(acl)));
        Dlist::Kv(pairs).to_bytes()
    };
    (of(b"I", id.as_str().as_bytes()), of(b"N", &entry.name.to_db_key()))
}

/// The type letters of 3.6: the kind first.
fn letters(entry: &MailboxEntry) -> Vec<u8> {
    let flags = entry.mbtype.flags().iter().filter(|flag| **flag != Flag::LegacyDirs);
    [entry.mbtype.kind.letter()].into_iter().chain(flags.map(|flag| flag.letter())).collect()
}

/// An id for a mailbox that has none of its own: always the same.
pub fn made_up_id(name: &MailboxName, uidvalidity: u32) -> Option<UniqueId> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"uniqueid of an old mailbox").update(&uidvalidity.to_be_bytes());
    let hex = hasher.update(name.as_bytes()).finalize().to_hex();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    let parts = [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)];
    UniqueId::new(parts.join("-").as_bytes()).ok()
}

/// What the mailboxes below a quota root use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuotaUse {
    /// Bytes of messages.
    pub storage: u64,
    /// Messages.
    pub messages: u64,
    /// Bytes of annotations.
    pub annotations: u64,
    /// Mailboxes.
    pub folders: u64,
}

/// A quota root's record as 3.x writes it (`imap/quota_db.c:quota_write`), with the
/// old limits and what is counted now: up to 2.4 only storage was counted.
pub fn quota(old: &Quota, used: &QuotaUse) -> Vec<u8> {
    let resource = |limit: Option<u64>, used: u64| {
        let limit = limit.map(|limit| limit.to_string());
        let numbers = [Some(used.to_string()), limit].into_iter().flatten();
        Dlist::List(numbers.map(|number| Dlist::string(number.as_bytes())).collect())
    };
    let limit = |of: Option<super::quota::Resource>| of.and_then(|of| of.limit);
    let pairs = vec![
        (Scalar::new(b"S"), resource(limit(old.storage), used.storage)),
        (Scalar::new(b"M"), resource(limit(old.message), used.messages)),
        (Scalar::new(b"AS"), resource(limit(old.annotation_storage), used.annotations)),
        (Scalar::new(b"NF"), resource(limit(old.num_folders), used.folders)),
    ];
    Dlist::Kv(pairs).to_bytes()
}

#[cfg(test)]
mod tests;
