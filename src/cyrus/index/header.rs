//! The header of an index.

use super::codec::{Codec, Reader};
use super::layout::{HeaderLayout, Layout};
use super::time::Time;

/// Bits of [`Header::options`] (`imap/mailbox.h:OPT_*`).
pub mod options {
    /// POP3 UIDLs are made of UIDVALIDITY and UID.
    pub const POP3_NEW_UIDL: u32 = 1 << 0;
    /// 2.3 only: modification sequences are real.
    pub const CONDSTORE: u32 = 1 << 1;
    /// Everybody shares one \Seen state.
    pub const SHAREDSEEN: u32 = 1 << 2;
    /// Duplicates are delivered.
    pub const DUPDELIVER: u32 = 1 << 3;
    /// There are calendar alarms.
    pub const HAS_ALARMS: u32 = 1 << 4;
    /// Expunged messages have files that are to be removed.
    pub const NEEDS_UNLINK: u32 = 1 << 29;
    /// The index is to be repacked.
    pub const NEEDS_REPACK: u32 = 1 << 30;
    /// The mailbox is deleted and waits for cleanup: it does not exist.
    pub const MAILBOX_DELETED: u32 = 1 << 31;
}

/// The header of an index, the same for all minor versions.
///
/// A field that the file's version does not have is zero, unless it says otherwise.
/// Sizes are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// Changed by every repack; the same in the cache file.
    pub generation: u32,
    /// Always 0.
    pub format: u32,
    /// Minor version of the format.
    pub minor: u32,
    /// Offset of the first record.
    pub start_offset: u32,
    /// Distance of the records.
    pub record_size: u32,
    /// Number of records, expunged ones included.
    pub num_records: u32,
    /// Number of messages; before minor 12 [`num_records`](Self::num_records).
    pub exists: u32,
    /// When the last message came.
    pub last_appenddate: Time,
    /// Highest UID given; UIDNEXT is one more.
    pub last_uid: u32,
    /// Size of all messages.
    pub quota_mailbox_used: u64,
    /// Last login by POP3.
    pub pop3_last_login: Time,
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// Number of messages with \Deleted.
    pub deleted: u32,
    /// Number of messages with \Answered.
    pub answered: u32,
    /// Number of messages with \Flagged.
    pub flagged: u32,
    /// Bits of [`options`]; before minor 8 [`options::POP3_NEW_UIDL`] at most.
    pub options: u32,
    /// Number of cache records that no record uses.
    pub leaked_cache: u32,
    /// Highest modification sequence; at least 1.
    pub highestmodseq: u64,
    /// Modification sequences up to here may lack expunges; before minor 12
    /// [`highestmodseq`](Self::highestmodseq).
    pub deletedmodseq: u64,
    /// When the oldest expunged record was expunged.
    pub first_expunged: Time,
    /// Last repack.
    pub last_repack_time: Time,
    /// CRC-32 of the whole cyrus.header file.
    pub header_file_crc: u32,
    /// Checksum for replication.
    pub sync_crc: u32,
    /// Highest UID the owner has been told of.
    pub recentuid: u32,
    /// When the owner was last here.
    pub recenttime: Time,
    /// POP3 shows only messages that came later.
    pub pop3_show_after: Time,
    /// Size of all annotations.
    pub quota_annot_used: u64,
    /// Checksum for replication, of annotations.
    pub sync_crc_annot: u32,
    /// Number of messages without \Seen.
    pub unseen: u32,
    /// Modification sequence of the mailbox's creation.
    pub createdmodseq: u64,
    /// Since when changes are known.
    pub changes_epoch: Time,
    /// Size of deleted messages.
    pub quota_deleted_used: u64,
    /// Size of expunged messages.
    pub quota_expunged_used: u64,
}

impl Header {
    /// Whether the mailbox is deleted and waits for cleanup: it does not exist.
    pub fn is_deleted(&self) -> bool {
        self.options & options::MAILBOX_DELETED != 0
    }

    /// Whether everybody shares one \Seen state.
    pub fn shares_seen(&self) -> bool {
        self.options & options::SHAREDSEEN != 0
    }

    /// Whether the owner's \Seen state (everybody's, if shared) is the records' bit;
    /// before minor 12 it is in the user's seen database
    /// (`imap/mailbox.c:mailbox_internal_seen`).
    pub fn has_seen(&self) -> bool {
        self.minor >= 12
    }

    /// Whether modification sequences mean anything: always from 2.4 on, in 2.3 if
    /// the mailbox was set up for them.
    pub fn has_modseqs(&self) -> bool {
        self.minor >= 12 || (self.minor >= 8 && self.options & options::CONDSTORE != 0)
    }

    /// Whether POP3 UIDLs are made of UIDVALIDITY and UID; always so in an empty
    /// mailbox, where Cyrus sets the bit as it reads.
    pub fn uses_new_uidl(&self) -> bool {
        self.exists == 0 || self.options & options::POP3_NEW_UIDL != 0
    }

    /// Reads a header whose version, length and checksum were checked.
    pub(super) fn read(bytes: &[u8], layout: &Layout) -> Self {
        let mut header = Self::default();
        header.visit(&layout.header, &mut Reader { bytes });
        if layout.minor < 8 {
            header.options &= options::POP3_NEW_UIDL;
        }
        header.highestmodseq = header.highestmodseq.max(1);
        if layout.minor < 12 {
            header.deletedmodseq = header.highestmodseq;
        }
        header
    }

    pub(super) fn visit(&mut self, l: &HeaderLayout, codec: &mut impl Codec) {
        codec.word("generation", l.generation, &mut self.generation);
        codec.word("format", l.format, &mut self.format);
        codec.word("minor version", l.minor, &mut self.minor);
        codec.word("start offset", l.start_offset, &mut self.start_offset);
        codec.word("record size", l.record_size, &mut self.record_size);
        codec.word("number of records", l.num_records, &mut self.num_records);
        codec.time("last append", l.last_appenddate, &mut self.last_appenddate);
        codec.word("last UID", l.last_uid, &mut self.last_uid);
        codec.long("quota use", l.quota_mailbox_used, &mut self.quota_mailbox_used);
        codec.time("last POP3 login", l.pop3_last_login, &mut self.pop3_last_login);
        codec.word("UIDVALIDITY", l.uidvalidity, &mut self.uidvalidity);
        codec.word("deleted", l.deleted, &mut self.deleted);
        codec.word("answered", l.answered, &mut self.answered);
        codec.word("flagged", l.flagged, &mut self.flagged);
        codec.word("exists", l.exists, &mut self.exists);
        codec.word("options", l.options, &mut self.options);
        codec.word("leaked cache", l.leaked_cache, &mut self.leaked_cache);
        codec.long("highest modseq", l.highestmodseq, &mut self.highestmodseq);
        codec.long("deleted modseq", l.deletedmodseq, &mut self.deletedmodseq);
        codec.time("first expunge", l.first_expunged, &mut self.first_expunged);
        codec.time("last repack", l.last_repack_time, &mut self.last_repack_time);
        codec.word("header file CRC", l.header_file_crc, &mut self.header_file_crc);
        codec.word("sync CRC", l.sync_crc, &mut self.sync_crc);
        codec.word("recent UID", l.recentuid, &mut self.recentuid);
        codec.time("recent time", l.recenttime, &mut self.recenttime);
        codec.time("POP3 show after", l.pop3_show_after, &mut self.pop3_show_after);
        codec.long("annotation quota use", l.quota_annot_used, &mut self.quota_annot_used);
        codec.word("annotation sync CRC", l.sync_crc_annot, &mut self.sync_crc_annot);
        codec.word("unseen", l.unseen, &mut self.unseen);
        codec.long("created modseq", l.createdmodseq, &mut self.createdmodseq);
        codec.time("changes epoch", l.changes_epoch, &mut self.changes_epoch);
        codec.long("deleted quota use", l.quota_deleted_used, &mut self.quota_deleted_used);
        codec.long("expunged quota use", l.quota_expunged_used, &mut self.quota_expunged_used);
    }
}
