//! One message's record in an index.

use super::codec::{Codec, Reader};
use super::layout::{Layout, RecordLayout};
use super::time::Time;
use crate::cyrus::guid::Guid;

/// Bits of [`Record::system_flags`] (`imap/mailbox.h:FLAG_*`).
pub mod system {
    /// \Answered
    pub const ANSWERED: u16 = 1 << 0;
    /// \Flagged
    pub const FLAGGED: u16 = 1 << 1;
    /// \Deleted
    pub const DELETED: u16 = 1 << 2;
    /// \Draft
    pub const DRAFT: u16 = 1 << 3;
    /// \Seen: the owner's, or everybody's if shared; from minor 12 on.
    pub const SEEN: u16 = 1 << 4;
}

/// Bits of [`Record::internal_flags`], which clients do not see
/// (`imap/mailbox.h:FLAG_INTERNAL_*`).
pub mod internal {
    /// A snoozed message (3.1 and later).
    pub const SNOOZED: u16 = 1 << 10;
    /// Moved to another conversation when one became too long.
    pub const SPLIT_CONVERSATION: u16 = 1 << 11;
    /// The record needs cleanup.
    pub const NEEDS_CLEANUP: u16 = 1 << 12;
    /// The file is on the archive partition (3.0 and later).
    pub const ARCHIVED: u16 = 1 << 13;
    /// The file is removed.
    pub const UNLINKED: u16 = 1 << 14;
    /// The message is expunged.
    pub const EXPUNGED: u16 = 1 << 15;
}

/// Number of user flags that a mailbox can have.
pub const MAX_USER_FLAGS: usize = 128;

/// One message's record, the same for all minor versions.
///
/// A field that the file's version does not have is zero, unless it says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Record {
    /// UID; never 0 in what a parser gives.
    pub uid: u32,
    /// IMAP's INTERNALDATE; zero is unknown (Cyrus takes the file's mtime).
    pub internaldate: Time,
    /// Day of the Date header.
    pub sentdate: Time,
    /// Size of the message file in bytes.
    pub size: u64,
    /// Size of the message's header in bytes.
    pub header_size: u32,
    /// Time of the Date header; from minor 12 on.
    pub gmtime: Time,
    /// Offset of the message's record in cyrus.cache.
    pub cache_offset: u64,
    /// Last change of this record; in cyrus.expunge the time of the expunge.
    pub last_updated: Time,
    /// Flags that clients see: bits of [`system`].
    pub system_flags: u16,
    /// Flags that clients do not see: bits of [`internal`]; none before minor 12.
    pub internal_flags: u16,
    /// Keywords: flag `n` is bit `n % 32` of word `n / 32`, its name is the `n`th
    /// in cyrus.header.
    pub user_flags: [u32; 4],
    /// Number of lines; up to minor 14.
    pub content_lines: u32,
    /// When the message came into this mailbox; from minor 15 on.
    pub savedate: Time,
    /// Version of the cache record.
    pub cache_version: u16,
    /// SHA-1 of the message file; `None` is unknown: always so before minor 10, and
    /// usual in minor 10.
    pub guid: Option<Guid>,
    /// Modification sequence; 1 if the version has none.
    pub modseq: u64,
    /// Conversation; from minor 13 on.
    pub cid: u64,
    /// Modification sequence of the message's creation; from minor 16 on.
    pub createdmodseq: u64,
    /// Conversation that this one was split from; from minor 20 on.
    pub basecid: u64,
    /// CRC-32 of the message's cache record; from minor 12 on.
    pub cache_crc: u32,
}

/// What is the same for ever about a message as its clients see it, until a client
/// changes it.  Cyrus itself changes none of it when it repacks, archives or
/// upgrades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// UID.
    pub uid: u32,
    /// Size in bytes.
    pub size: u64,
    /// SHA-1 of the message file, if known.
    pub guid: Option<Guid>,
    /// INTERNALDATE.
    pub internaldate: Time,
    /// When the message came into this mailbox.
    pub savedate: Time,
    /// Bits of [`system`].
    pub system_flags: u16,
    /// Keywords by number.
    pub user_flags: [u32; 4],
    /// Modification sequence.
    pub modseq: u64,
}

impl Record {
    /// Whether the message is expunged: clients do not see it.
    pub fn is_expunged(&self) -> bool {
        self.internal_flags & internal::EXPUNGED != 0
    }

    /// Whether the message's file is removed.
    pub fn is_unlinked(&self) -> bool {
        self.internal_flags & internal::UNLINKED != 0
    }

    /// Makes Cyrus parse the message again when it needs to.
    pub fn forget_cache(&mut self) {
        (self.cache_offset, self.cache_version, self.cache_crc) = (0, 0, 0);
    }

    /// Whether the message's file is on the archive partition.
    pub fn is_archived(&self) -> bool {
        self.internal_flags & internal::ARCHIVED != 0
    }

    /// Whether the record's \Seen bit is set; means something only if
    /// [`Header::has_seen`](super::Header::has_seen).
    pub fn is_seen(&self) -> bool {
        self.system_flags & system::SEEN != 0
    }

    /// Name of the message's file in the data or archive directory
    /// (`imap/mailbox.c:mailbox_record_fname`).
    pub fn file_name(&self) -> String {
        format!("{}.", self.uid)
    }

    /// Numbers of the keywords that are set, ascending.
    pub fn user_flag_numbers(&self) -> impl Iterator<Item = usize> + use<> {
        let words = self.user_flags;
        let bits = words.into_iter().flat_map(|word| (0..32).map(move |bit| word >> bit & 1 == 1));
        bits.enumerate().filter_map(|(number, set)| set.then_some(number))
    }

    /// The stable fields that a client can observe.
    pub fn identity(&self) -> Identity {
        Identity {
            uid: self.uid,
            size: self.size,
            guid: self.guid,
            internaldate: self.internaldate,
            savedate: self.savedate,
            system_flags: self.system_flags,
            user_flags: self.user_flags,
            modseq: self.modseq,
        }
    }

    /// Reads a record whose length and checksum were checked.
    pub(super) fn read(bytes: &[u8], layout: &Layout, highestmodseq: u64) -> Self {
        let mut record = Self::default();
        record.visit(&layout.record, &mut Reader { bytes });
        if layout.minor < 12 {
            record.internal_flags = 0;
            record.modseq = old_modseq(record.modseq, highestmodseq);
        }
        record
    }

    pub(super) fn visit(&mut self, l: &RecordLayout, codec: &mut impl Codec) {
        codec.word("UID", l.uid, &mut self.uid);
        codec.time("internal date", l.internaldate, &mut self.internaldate);
        codec.time("sent date", l.sentdate, &mut self.sentdate);
        codec.long("size", l.size, &mut self.size);
        codec.word("header size", l.header_size, &mut self.header_size);
        codec.time("date", l.gmtime, &mut self.gmtime);
        codec.time("last update", l.last_updated, &mut self.last_updated);
        let mut flags = u32::from(self.internal_flags) << 16 | u32::from(self.system_flags);
        codec.word("system flags", l.system_flags, &mut flags);
        (self.internal_flags, self.system_flags) = halves(flags);
        for (word, offset) in self.user_flags.iter_mut().zip((l.user_flags..).step_by(4)) {
            codec.word("user flags", super::layout::At::Word(offset), word);
        }
        codec.word("lines", l.content_lines, &mut self.content_lines);
        codec.time("save date", l.savedate, &mut self.savedate);
        // 3.12 keeps bits 32 to 47 of the offset in the upper half of the version;
        // older versions have zeros there.
        let mut low = self.cache_offset & 0xffff_ffff;
        codec.long("cache offset", l.cache_offset, &mut low);
        let mut version = u32::from(halves((self.cache_offset >> 16) as u32).0) << 16
            | u32::from(self.cache_version);
        codec.word("cache version", l.cache_version, &mut version);
        let (high, version) = halves(version);
        self.cache_offset = u64::from(high) << 32 | low;
        self.cache_version = version;
        codec.guid(l.guid, &mut self.guid);
        codec.long("modseq", l.modseq, &mut self.modseq);
        codec.long("conversation", l.cid, &mut self.cid);
        codec.long("created modseq", l.createdmodseq, &mut self.createdmodseq);
        codec.long("base conversation", l.basecid, &mut self.basecid);
        codec.word("cache CRC", l.cache_crc, &mut self.cache_crc);
    }
}

/// The upper and the lower 16 bits.
fn halves(word: u32) -> (u16, u16) {
    let [a, b, c, d] = word.to_be_bytes();
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// 2.3 may have written 0; 2.5 and later, writing minor 9, put the low word first
/// (2.5.17 `imap/mailbox.c:mailbox_index_record_to_buf`).
fn old_modseq(stored: u64, highest: u64) -> u64 {
    let swapped = stored > highest && stored & 0xffff_ffff == 0;
    let modseq = if swapped { stored >> 32 } else { stored };
    modseq.clamp(1, highest.max(1))
}
