//! Where each minor version keeps each field: the one description of the format.
//!
//! Reader and writer both go by these tables.  Each row is its predecessor and what
//! that version changed (`imap/index_file.c` 3.13.7; `imap/mailbox.h` before).

/// Where a field is, and how it is stored.  All numbers are big endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// This version does not have the field.
    No,
    /// 32 bits at an offset.
    Word(u16),
    /// 64 bits at an offset.
    Long(u16),
    /// 32-bit seconds since the epoch.
    Seconds(u16),
    /// 64-bit signed nanoseconds since the epoch.
    Nanos(u16),
}

use At::{Long, Nanos, No, Seconds, Word};

/// Offset of the minor version in every header.
pub(super) const MINOR: usize = 8;

/// One minor version.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) minor: u32,
    pub(super) header_size: u16,
    pub(super) record_size: u16,
    /// The last four bytes of the header and of each record are a CRC-32 of the rest.
    pub(super) crc: bool,
    pub(super) header: HeaderLayout,
    pub(super) record: RecordLayout,
}

/// Fields of the header.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeaderLayout {
    pub(super) generation: At,
    pub(super) format: At,
    pub(super) minor: At,
    pub(super) start_offset: At,
    pub(super) record_size: At,
    pub(super) num_records: At,
    pub(super) last_appenddate: At,
    pub(super) last_uid: At,
    pub(super) quota_mailbox_used: At,
    pub(super) pop3_last_login: At,
    pub(super) uidvalidity: At,
    pub(super) deleted: At,
    pub(super) answered: At,
    pub(super) flagged: At,
    pub(super) exists: At,
    pub(super) options: At,
    pub(super) leaked_cache: At,
    pub(super) highestmodseq: At,
    pub(super) deletedmodseq: At,
    pub(super) first_expunged: At,
    pub(super) last_repack_time: At,
    pub(super) header_file_crc: At,
    pub(super) sync_crc: At,
    pub(super) recentuid: At,
    pub(super) recenttime: At,
    pub(super) pop3_show_after: At,
    pub(super) quota_annot_used: At,
    pub(super) sync_crc_annot: At,
    pub(super) unseen: At,
    pub(super) createdmodseq: At,
    pub(super) changes_epoch: At,
    pub(super) quota_deleted_used: At,
    pub(super) quota_expunged_used: At,
}

/// Fields of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordLayout {
    pub(super) uid: At,
    pub(super) internaldate: At,
    pub(super) sentdate: At,
    pub(super) size: At,
    pub(super) header_size: At,
    pub(super) gmtime: At,
    pub(super) cache_offset: At,
    pub(super) last_updated: At,
    pub(super) system_flags: At,
    /// Four words from here.
    pub(super) user_flags: u16,
    pub(super) content_lines: At,
    pub(super) savedate: At,
    pub(super) cache_version: At,
    /// Twenty bytes from here.
    pub(super) guid: Option<u16>,
    pub(super) modseq: At,
    pub(super) cid: At,
    pub(super) createdmodseq: At,
    pub(super) basecid: At,
    pub(super) cache_crc: At,
}

/// 1.4: exists is num_records, counts are made of the records.
const HEADER_2: HeaderLayout = HeaderLayout {
    generation: Word(0),
    format: Word(4),
    minor: Word(8),
    start_offset: Word(12),
    record_size: Word(16),
    num_records: Word(20),
    last_appenddate: Seconds(24),
    last_uid: Word(28),
    quota_mailbox_used: Word(32),
    pop3_last_login: Seconds(36),
    uidvalidity: Word(40),
    deleted: No,
    answered: No,
    flagged: No,
    exists: Word(20),
    options: No,
    leaked_cache: No,
    highestmodseq: No,
    deletedmodseq: No,
    first_expunged: No,
    last_repack_time: No,
    header_file_crc: No,
    sync_crc: No,
    recentuid: No,
    recenttime: No,
    pop3_show_after: No,
    quota_annot_used: No,
    sync_crc_annot: No,
    unseen: No,
    createdmodseq: No,
    changes_epoch: No,
    quota_deleted_used: No,
    quota_expunged_used: No,
};

/// 1.6.23: counts.
const HEADER_3: HeaderLayout =
    HeaderLayout { deleted: Word(44), answered: Word(48), flagged: Word(52), ..HEADER_2 };

/// 2.1.4: how POP3 makes UIDLs, a bool.
const HEADER_4: HeaderLayout = HeaderLayout { options: Word(56), ..HEADER_3 };

/// 2.2.1: cache records that nothing uses.
const HEADER_5: HeaderLayout = HeaderLayout { leaked_cache: Word(60), ..HEADER_4 };

/// 2.1.16 and 2.2.2: a word for larger quotas before what the messages use, which is
/// 0 until 2.3 needs it, so that both are one number.
const HEADER_6: HeaderLayout = HeaderLayout {
    quota_mailbox_used: Long(32),
    pop3_last_login: Seconds(40),
    uidvalidity: Word(44),
    deleted: Word(48),
    answered: Word(52),
    flagged: Word(56),
    options: Word(60),
    leaked_cache: Word(64),
    ..HEADER_5
};

/// 2.3.4: modification sequences.
const HEADER_8: HeaderLayout = HeaderLayout { highestmodseq: Long(68), ..HEADER_6 };

/// 2.4: expunged records stay in the index, the owner's seen state moves in.
const HEADER_12: HeaderLayout = HeaderLayout {
    deletedmodseq: Long(76),
    exists: Word(84),
    first_expunged: Seconds(88),
    last_repack_time: Seconds(92),
    header_file_crc: Word(96),
    sync_crc: Word(100),
    recentuid: Word(104),
    recenttime: Seconds(108),
    ..HEADER_8
};

/// 2.5: annotations count.
const HEADER_13: HeaderLayout = HeaderLayout {
    pop3_show_after: Seconds(112),
    quota_annot_used: Word(116),
    sync_crc_annot: Word(120),
    ..HEADER_12
};

/// 3.1: number of unseen messages.
const HEADER_14: HeaderLayout = HeaderLayout { unseen: Word(124), ..HEADER_13 };

/// 3.2: modification sequence of the mailbox's creation.
const HEADER_16: HeaderLayout = HeaderLayout { createdmodseq: Long(128), ..HEADER_14 };

/// 3.4: since when changes are known.
const HEADER_17: HeaderLayout = HeaderLayout { changes_epoch: Seconds(136), ..HEADER_16 };

/// 3.9: quota of what is deleted.
const HEADER_18: HeaderLayout =
    HeaderLayout { quota_deleted_used: Long(140), quota_expunged_used: Long(148), ..HEADER_17 };

/// 3.10: rearranged, so that 64-bit fields are aligned.
const HEADER_19: HeaderLayout = HeaderLayout {
    exists: Word(60),
    options: Word(64),
    leaked_cache: Word(68),
    highestmodseq: Long(72),
    deletedmodseq: Long(80),
    quota_deleted_used: Long(136),
    quota_expunged_used: Long(144),
    changes_epoch: Seconds(152),
    ..HEADER_16
};

/// 3.13: times in nanoseconds, rearranged again.
const HEADER_20: HeaderLayout = HeaderLayout {
    last_appenddate: Nanos(24),
    pop3_last_login: Nanos(40),
    last_uid: Word(88),
    uidvalidity: Word(92),
    recenttime: Nanos(104),
    pop3_show_after: Nanos(112),
    quota_deleted_used: Long(136),
    quota_expunged_used: Long(144),
    quota_annot_used: Long(152),
    changes_epoch: Nanos(160),
    first_expunged: Nanos(168),
    last_repack_time: Nanos(176),
    recentuid: Word(184),
    ..HEADER_19
};

/// 1.4.  The word at 20 is a content offset until minor 12, and not read.
const RECORD_2: RecordLayout = RecordLayout {
    uid: Word(0),
    internaldate: Seconds(4),
    sentdate: Seconds(8),
    size: Word(12),
    header_size: Word(16),
    gmtime: No,
    cache_offset: Word(24),
    last_updated: Seconds(28),
    system_flags: Word(32),
    user_flags: 36,
    content_lines: No,
    savedate: No,
    cache_version: No,
    guid: None,
    modseq: No,
    cid: No,
    createdmodseq: No,
    basecid: No,
    cache_crc: No,
};

/// 2.2.1: number of lines.
const RECORD_5: RecordLayout = RecordLayout { content_lines: Word(52), ..RECORD_2 };

/// 2.1.16 and 2.2.2: version of the cache record.
/// Minors 7 to 9 have an identifier of 12 bytes at 60 that says nothing about the
/// content, and is not read.
const RECORD_6: RecordLayout = RecordLayout { cache_version: Word(56), ..RECORD_5 };

/// 2.3.4: modification sequence.
const RECORD_8: RecordLayout = RecordLayout { modseq: Long(72), ..RECORD_6 };

/// 2.3.10: SHA-1 of the message.
const RECORD_10: RecordLayout = RecordLayout { guid: Some(60), modseq: Long(80), ..RECORD_6 };

/// 2.4: checksums.
const RECORD_12: RecordLayout =
    RecordLayout { gmtime: Seconds(20), cache_crc: Word(88), ..RECORD_10 };

/// 2.5: conversations.
const RECORD_13: RecordLayout = RecordLayout { cid: Long(88), cache_crc: Word(96), ..RECORD_12 };

/// 3.1: the date of saving takes the place of the number of lines.
const RECORD_15: RecordLayout =
    RecordLayout { content_lines: No, savedate: Seconds(52), ..RECORD_13 };

/// 3.2: modification sequence of the message's creation.
const RECORD_16: RecordLayout =
    RecordLayout { createdmodseq: Long(96), cache_crc: Word(104), ..RECORD_15 };

/// 3.13: 64-bit sizes and times.
const RECORD_20: RecordLayout = RecordLayout {
    uid: Word(0),
    cache_offset: Word(4),
    internaldate: Nanos(8),
    sentdate: Nanos(16),
    size: Long(24),
    header_size: Word(32),
    system_flags: Word(36),
    user_flags: 40,
    content_lines: No,
    cache_version: Word(56),
    guid: Some(60),
    modseq: Long(80),
    cid: Long(88),
    createdmodseq: Long(96),
    gmtime: Nanos(104),
    last_updated: Nanos(112),
    savedate: Nanos(120),
    basecid: Long(128),
    cache_crc: Word(136),
};

const fn row(
    minor: u32,
    (header_size, header): (u16, HeaderLayout),
    (record_size, record): (u16, RecordLayout),
) -> Layout {
    Layout { minor, header_size, record_size, crc: minor >= 12, header, record }
}

/// Every minor version that servers wrote, or kept of a server before them: 2.2
/// converts a mailbox only when somebody opens it (`imap/mailbox.c:
/// mailbox_read_index_header`).  11 was internal to one company.
static LAYOUTS: [Layout; 18] = [
    row(2, (44, HEADER_2), (52, RECORD_2)),      // 1.4 to 1.6.22
    row(3, (56, HEADER_3), (52, RECORD_2)),      // 1.6.23 to 2.1.3
    row(4, (76, HEADER_4), (52, RECORD_2)),      // 2.1.4 to 2.1.15, 2.2.0
    row(5, (76, HEADER_5), (56, RECORD_5)),      // 2.2.1
    row(6, (76, HEADER_6), (60, RECORD_6)),      // 2.1.16 to 2.1.18, 2.2.2 to 2.2.13
    row(7, (76, HEADER_6), (72, RECORD_6)),      // 2.3.0 to 2.3.3
    row(8, (92, HEADER_8), (80, RECORD_8)),      // 2.3.4 to 2.3.6
    row(9, (96, HEADER_8), (80, RECORD_8)),      // 2.3.7 to 2.3.9
    row(10, (96, HEADER_8), (88, RECORD_10)),    // 2.3.10 to 2.3.19
    row(12, (128, HEADER_12), (96, RECORD_12)),  // 2.4
    row(13, (128, HEADER_13), (104, RECORD_13)), // 2.5, 3.0
    row(14, (160, HEADER_14), (104, RECORD_13)), // 3.1 in development
    row(15, (160, HEADER_14), (104, RECORD_15)), // 3.1 in development
    row(16, (160, HEADER_16), (112, RECORD_16)), // 3.2
    row(17, (160, HEADER_17), (112, RECORD_16)), // 3.4, 3.6, 3.8
    row(18, (160, HEADER_18), (112, RECORD_16)), // 3.9 in development
    row(19, (160, HEADER_19), (112, RECORD_16)), // 3.10, 3.12
    row(20, (192, HEADER_20), (144, RECORD_20)), // 3.13
];

impl Layout {
    /// The layout of a minor version, if there is one.
    pub(super) fn of(minor: u32) -> Option<&'static Self> {
        LAYOUTS.iter().find(|layout| layout.minor == minor)
    }

    /// Whether records may be this far apart.  3.13 also reads files of version 19
    /// whose records have the room of version 20's (`imap/mailbox.c:
    /// mailbox_buf_to_index_header`).
    pub(super) fn allows_record_size(&self, size: u32) -> bool {
        size == u32::from(self.record_size) || (self.minor == 19 && size == 144)
    }
}
