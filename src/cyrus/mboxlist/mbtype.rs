//! A mailbox's type: what it holds, and what state its record is in.

/// What a mailbox holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Mail; the default.
    #[default]
    Email,
    /// Netnews, no longer used.
    News,
    /// CalDAV calendar.
    Calendar,
    /// CardDAV addressbook.
    Addressbook,
    /// WebDAV collection.
    Collection,
    /// JMAP submissions.
    Submission,
    /// JMAP push subscriptions.
    PushSubscription,
    /// Sieve scripts (3.6 and later).
    Sieve,
    /// JMAP notifications (3.8 and later).
    Notification,
}

impl Kind {
    /// Its letter in dlist records of 3.6 and later.
    pub fn letter(self) -> u8 {
        match self {
            Self::Email => b'e',
            Self::News => b'n',
            Self::Calendar => b'c',
            Self::Addressbook => b'a',
            Self::Collection => b'b',
            Self::Submission => b's',
            Self::PushSubscription => b'p',
            Self::Sieve => b'f',
            Self::Notification => b'j',
        }
    }
}

/// A state of a record.  The order is that of Cyrus's letters
/// (`imap/mboxlist.c:mboxlist_mbtype_to_string`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flag {
    /// `d`: a tombstone.
    Deleted,
    /// `m`: being moved to another server, which the record names.
    Moving,
    /// `r`: on another server.
    Remote,
    /// `z`: reserved.
    Reserve,
    /// `i`: a place holder in the hierarchy (3.2 and later).
    Intermediate,
    /// `l`: its directories are named by name (3.6 and later).
    LegacyDirs,
}

impl Flag {
    /// All flags in Cyrus's order.
    pub const ALL: [Self; 6] = [
        Self::Deleted,
        Self::Moving,
        Self::Remote,
        Self::Reserve,
        Self::Intermediate,
        Self::LegacyDirs,
    ];

    /// Its letter in dlist records.
    pub fn letter(self) -> u8 {
        match self {
            Self::Deleted => b'd',
            Self::Moving => b'm',
            Self::Remote => b'r',
            Self::Reserve => b'z',
            Self::Intermediate => b'i',
            Self::LegacyDirs => b'l',
        }
    }

    /// Its bit in text records (2.4.20:`imap/mboxlist.h`); none for newer flags.
    pub fn bit(self) -> Option<u32> {
        match self {
            Self::Remote => Some(1),
            Self::Reserve => Some(2),
            Self::Moving => Some(8),
            Self::Deleted => Some(16),
            Self::Intermediate | Self::LegacyDirs => None,
        }
    }
}

/// A mailbox's type.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mbtype {
    /// What it holds.
    pub kind: Kind,
    flags: Vec<Flag>,
    /// Letters that are not known.
    pub unknown: Vec<u8>,
}

impl Mbtype {
    /// Reads the letters of a dlist record, of any version.
    pub fn from_letters(letters: &[u8]) -> Self {
        let mut mbtype = Self::default();
        for &letter in letters {
            match letter {
                b'e' => mbtype.kind = Kind::Email,
                b'n' => mbtype.kind = Kind::News,
                b'c' => mbtype.kind = Kind::Calendar,
                b'a' => mbtype.kind = Kind::Addressbook,
                b'b' => mbtype.kind = Kind::Collection,
                b's' => mbtype.kind = Kind::Submission,
                b'p' => mbtype.kind = Kind::PushSubscription,
                b'f' => mbtype.kind = Kind::Sieve,
                b'j' => mbtype.kind = Kind::Notification,
                other => match Flag::ALL.into_iter().find(|f| f.letter() == other) {
                    Some(flag) if !mbtype.has(flag) => mbtype.flags.push(flag),
                    Some(_) => {}
                    None if !mbtype.unknown.contains(&other) => mbtype.unknown.push(other),
                    None => {}
                },
            }
        }
        mbtype.flags.sort_unstable();
        mbtype
    }

    /// Reads the number of a text record (up to 2.4).
    pub fn from_bits(bits: u32) -> Self {
        let flags = Flag::ALL.into_iter();
        Self {
            kind: if bits & 4 == 0 { Kind::Email } else { Kind::News },
            flags: flags.filter(|f| f.bit().is_some_and(|b| bits & b != 0)).collect(),
            unknown: Vec::new(),
        }
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: Flag) -> bool {
        self.flags.contains(&flag)
    }

    /// Its flags, in Cyrus's order.
    pub fn flags(&self) -> &[Flag] {
        &self.flags
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_bits() {
        let t = Mbtype::from_letters(b"cldx");
        assert_eq!(t.kind, Kind::Calendar);
        assert_eq!(t.flags(), [Flag::Deleted, Flag::LegacyDirs]);
        assert_eq!(t.unknown, b"x");
        assert_eq!(Mbtype::from_letters(b"fm").kind, Kind::Sieve);
        assert_eq!(Mbtype::from_bits(8 | 1).flags(), [Flag::Moving, Flag::Remote]);
        assert_eq!(Mbtype::from_bits(0), Mbtype::default());
    }
}
