//! Indexes and the headers of mailboxes.

use super::time::When;
use super::{Beside, Flaw, printed};
use crate::cyrus::header::{HeaderError, HeaderForm, MailboxHeader};
use crate::cyrus::index::{self, IndexError, IndexView, MAX_USER_FLAGS, internal, options, system};
use serde::Serialize;

/// cyrus.index or cyrus.expunge. A field that its version does not have is left out.
#[derive(Debug, Clone, Serialize)]
pub struct Index {
    /// Minor version of the format.
    pub minor: u32,
    /// Which Cyrus wrote it.
    pub written_by: &'static str,
    /// Changed by every repack.
    pub generation: u32,
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// Highest UID given; UIDNEXT is one more.
    pub last_uid: u32,
    /// Records, those of expunged messages too.
    pub num_records: u32,
    /// Messages.
    pub exists: u32,
    /// Of those, \Answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answered: Option<u32>,
    /// Of those, \Deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u32>,
    /// Of those, \Flagged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flagged: Option<u32>,
    /// Of those, without \Seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unseen: Option<u32>,
    /// Bytes of messages.
    pub quota_mailbox_used: u64,
    /// Bytes of annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_annot_used: Option<u64>,
    /// Bytes of messages with \Deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_deleted_used: Option<u64>,
    /// Bytes of expunged messages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_expunged_used: Option<u64>,
    /// Highest modification sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub highestmodseq: Option<u64>,
    /// Up to here expunges may be forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletedmodseq: Option<u64>,
    /// Modification sequence of the mailbox's creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub createdmodseq: Option<u64>,
    /// When the last message came.
    pub last_appenddate: When,
    /// Last login by POP3.
    pub pop3_last_login: When,
    /// POP3 shows only what came later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pop3_show_after: Option<When>,
    /// When the oldest expunged message was expunged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_expunged: Option<When>,
    /// Last repack.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_repack_time: Option<When>,
    /// Highest UID that the owner was told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recentuid: Option<u32>,
    /// When the owner was last here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recenttime: Option<When>,
    /// Since when changes are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes_epoch: Option<When>,
    /// Names of the options that are set.
    pub options: Vec<String>,
    /// Cache records that nothing uses.
    pub leaked_cache: u32,
    /// CRC-32 of cyrus.header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header_file_crc: Option<Hex32>,
    /// Checksum for replication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_crc: Option<Hex32>,
    /// Checksum for replication, of annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sync_crc_annot: Option<Hex32>,
    /// Offset of the first record, in bytes.
    pub start_offset: u32,
    /// Distance of records, in bytes.
    pub record_size: u32,
    /// The messages, in the order of the file.
    pub records: Vec<Record>,
}

/// 32 bits in hexadecimal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex32(pub u32);

impl std::fmt::Display for Hex32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl Serialize for Hex32 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A message's record. A field that its version does not have is left out.
#[derive(Debug, Clone, Serialize)]
pub struct Record {
    /// UID.
    pub uid: u32,
    /// INTERNALDATE.
    pub internaldate: When,
    /// Size of the message, in bytes.
    pub size: u64,
    /// System flags and keywords, as clients see them.
    pub flags: Vec<String>,
    /// Flags that clients do not see.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub internal_flags: Vec<&'static str>,
    /// Modification sequence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modseq: Option<u64>,
    /// Modification sequence of the message's creation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub createdmodseq: Option<u64>,
    /// SHA-1 of the message; absent: not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guid: Option<String>,
    /// Conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thrid: Option<String>,
    /// Conversation that this one was split from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basethrid: Option<String>,
    /// Day of the Date header.
    pub sentdate: When,
    /// Time of the Date header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gmtime: Option<When>,
    /// When the message came into this mailbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub savedate: Option<When>,
    /// Last change of the record; in cyrus.expunge the expunge.
    pub last_updated: When,
    /// Size of the message's header, in bytes.
    pub header_size: u32,
    /// Lines of the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_lines: Option<u32>,
    /// Offset in cyrus.cache, in bytes.
    pub cache_offset: u64,
    /// Version of the cache record.
    pub cache_version: u16,
    /// CRC-32 of the cache record.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_crc: Option<Hex32>,
}

/// The releases that write a minor version (`imap/mailbox.h` of each).
pub fn written_by(minor: u32) -> &'static str {
    match minor {
        2 => "1.4 to 1.6.22",
        3 => "1.6.23 to 2.1.3",
        4 => "2.1.4 to 2.1.15",
        5 => "2.2.1",
        6 => "2.1.16 to 2.2.13",
        7 => "2.3.0 to 2.3.3",
        8 => "2.3.4 to 2.3.6",
        9 => "2.3.7 to 2.3.9",
        10 => "2.3.10 to 2.3.19",
        12 => "2.4",
        13 => "2.5 and 3.0",
        14 | 15 => "3.1",
        16 => "3.2",
        17 => "3.4 to 3.8",
        18 => "3.9",
        19 => "3.10 to 3.12",
        20 => "3.13",
        _ => "no known release",
    }
}

pub(super) fn index(
    bytes: &[u8],
    beside: &Beside<'_>,
    flaws: &mut Vec<Flaw>,
) -> Result<Index, Flaw> {
    let view = IndexView::parse(bytes)?;
    let document = describe(&view, beside, flaws);
    let live = document.records.iter().filter(|r| !r.internal_flags.contains(&"expunged"));
    let live = live.count();
    if flaws.is_empty() && live != document.exists as usize {
        let exists = document.exists;
        flaws.push(Flaw::new(format!("the header counts {exists} messages, there are {live}")));
    }
    Ok(document)
}

pub(super) fn expunge(
    bytes: &[u8],
    beside: &Beside<'_>,
    flaws: &mut Vec<Flaw>,
) -> Result<Index, Flaw> {
    Ok(describe(&IndexView::parse_expunge(bytes)?, beside, flaws))
}

impl From<IndexError> for Flaw {
    fn from(error: IndexError) -> Self {
        Self::at(error.offset, error.damage)
    }
}

fn describe(view: &IndexView<'_>, beside: &Beside<'_>, flaws: &mut Vec<Flaw>) -> Index {
    let header = view.header();
    let since = |minor: u32| header.minor >= minor;
    let mut records = Vec::new();
    for found in view.records() {
        match found {
            Ok(found) => records.push(record(&found, header, beside.header)),
            Err(error) => flaws.push(error.into()),
        }
    }
    Index {
        minor: header.minor,
        written_by: written_by(header.minor),
        generation: header.generation,
        uidvalidity: header.uidvalidity,
        last_uid: header.last_uid,
        num_records: view.len(),
        exists: header.exists,
        answered: since(3).then_some(header.answered),
        deleted: since(3).then_some(header.deleted),
        flagged: since(3).then_some(header.flagged),
        unseen: since(14).then_some(header.unseen),
        quota_mailbox_used: header.quota_mailbox_used,
        quota_annot_used: since(13).then_some(header.quota_annot_used),
        quota_deleted_used: since(18).then_some(header.quota_deleted_used),
        quota_expunged_used: since(18).then_some(header.quota_expunged_used),
        highestmodseq: since(8).then_some(header.highestmodseq),
        deletedmodseq: since(12).then_some(header.deletedmodseq),
        createdmodseq: since(16).then_some(header.createdmodseq),
        last_appenddate: When(header.last_appenddate),
        pop3_last_login: When(header.pop3_last_login),
        pop3_show_after: since(13).then_some(When(header.pop3_show_after)),
        first_expunged: since(12).then_some(When(header.first_expunged)),
        last_repack_time: since(12).then_some(When(header.last_repack_time)),
        recentuid: since(12).then_some(header.recentuid),
        recenttime: since(12).then_some(When(header.recenttime)),
        changes_epoch: since(17).then_some(When(header.changes_epoch)),
        options: option_names(header.options),
        leaked_cache: header.leaked_cache,
        header_file_crc: since(12).then_some(Hex32(header.header_file_crc)),
        sync_crc: since(12).then_some(Hex32(header.sync_crc)),
        sync_crc_annot: since(13).then_some(Hex32(header.sync_crc_annot)),
        start_offset: header.start_offset,
        record_size: header.record_size,
        records,
    }
}

fn record(found: &index::Record, header: &index::Header, names: Option<&MailboxHeader>) -> Record {
    let since = |minor: u32| header.minor >= minor;
    let hex = |n: u64| (n != 0).then(|| format!("{n:016x}"));
    Record {
        uid: found.uid,
        internaldate: When(found.internaldate),
        size: found.size,
        flags: flags(found, names),
        internal_flags: internal_names(found.internal_flags),
        modseq: header.has_modseqs().then_some(found.modseq),
        createdmodseq: since(16).then_some(found.createdmodseq),
        guid: found.guid.map(|guid| guid.to_string()),
        thrid: hex(found.cid),
        basethrid: hex(found.basecid),
        sentdate: When(found.sentdate),
        gmtime: since(12).then_some(When(found.gmtime)),
        savedate: since(15).then_some(When(found.savedate)),
        last_updated: When(found.last_updated),
        header_size: found.header_size,
        content_lines: (since(5) && !since(15)).then_some(found.content_lines),
        cache_offset: found.cache_offset,
        cache_version: found.cache_version,
        cache_crc: since(12).then_some(Hex32(found.cache_crc)),
    }
}

/// A message's flags; a keyword whose name is not known is `#` and its number.
fn flags(record: &index::Record, names: Option<&MailboxHeader>) -> Vec<String> {
    let all = [
        (system::ANSWERED, "\\Answered"),
        (system::FLAGGED, "\\Flagged"),
        (system::DELETED, "\\Deleted"),
        (system::DRAFT, "\\Draft"),
        (system::SEEN, "\\Seen"),
    ];
    let system = all.iter().filter(|(bit, _)| record.system_flags & bit != 0);
    let keyword = |n: usize| match names.and_then(|names| names.user_flag(n)) {
        Some(name) => printed(name),
        None => format!("#{n}"),
    };
    let set = |n: &usize| record.user_flags.get(n / 32).is_some_and(|w| w >> (n % 32) & 1 == 1);
    let keywords = (0..MAX_USER_FLAGS).filter(set).map(keyword);
    system.map(|(_, name)| (*name).to_owned()).chain(keywords).collect()
}

fn internal_names(bits: u16) -> Vec<&'static str> {
    let all = [
        (internal::EXPUNGED, "expunged"),
        (internal::UNLINKED, "unlinked"),
        (internal::ARCHIVED, "archived"),
        (internal::NEEDS_CLEANUP, "needs-cleanup"),
        (internal::SPLIT_CONVERSATION, "split-conversation"),
        (internal::SNOOZED, "snoozed"),
    ];
    all.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect()
}

fn option_names(bits: u32) -> Vec<String> {
    let all = [
        (options::POP3_NEW_UIDL, "pop3-new-uidl"),
        (options::CONDSTORE, "condstore"),
        (options::SHAREDSEEN, "shared-seen"),
        (options::DUPDELIVER, "duplicate-deliver"),
        (options::HAS_ALARMS, "has-alarms"),
        (options::NEEDS_UNLINK, "needs-unlink"),
        (options::NEEDS_REPACK, "needs-repack"),
        (options::MAILBOX_DELETED, "deleted"),
    ];
    let known = all.iter().fold(0, |known, (bit, _)| known | bit);
    let named = all.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| (*name).to_owned());
    let rest = (0..32).map(|n| 1u32 << n).filter(|bit| bits & !known & bit != 0);
    named.chain(rest.map(|bit| format!("0x{bit:x}"))).collect()
}

/// cyrus.header
#[derive(Debug, Clone, Serialize)]
pub struct Header {
    /// `text` up to 3.4, `dlist` from 3.6 on.
    pub form: &'static str,
    /// Internal name of the mailbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its uniqueid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uniqueid: Option<String>,
    /// Its letters of type and state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mbtype: Option<String>,
    /// The quota root that it is under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_root: Option<String>,
    /// Names of keywords by number; null: the number is not in use.
    pub keywords: Vec<Option<String>>,
    /// Who may do what; mailboxes.db is what counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acl: Option<Vec<super::databases::Right>>,
}

impl From<HeaderError> for Flaw {
    fn from(error: HeaderError) -> Self {
        Self::at(error.offset as u64, error.reason)
    }
}

pub(super) fn header(bytes: &[u8]) -> Result<Header, Flaw> {
    let header = MailboxHeader::parse(bytes)?;
    let text = |value: &Option<Vec<u8>>| value.as_deref().map(printed);
    Ok(Header {
        form: match header.form {
            HeaderForm::Text => "text",
            HeaderForm::Dlist => "dlist",
        },
        name: text(&header.name),
        uniqueid: text(&header.uniqueid),
        mbtype: text(&header.mbtype),
        quota_root: text(&header.quota_root),
        keywords: header.user_flags.iter().map(text).collect(),
        acl: header.acl.as_ref().map(super::databases::rights),
    })
}
