//! Finds what differs between two indexes of one mailbox.

use std::cmp::Ordering;
use std::fmt;

use super::header::Header;
use super::record::{Record, system};
use super::{IndexError, IndexView, Records};

/// One of the two indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The first.
    Left,
    /// The second.
    Right,
}

/// A field that clients can observe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aspect {
    /// The mailbox's UIDVALIDITY.
    UidValidity,
    /// The mailbox's highest UID, from which UIDNEXT comes.
    LastUid,
    /// The mailbox's number of messages.
    Exists,
    /// The mailbox's highest modification sequence.
    HighestModseq,
    /// A message's size.
    Size,
    /// A message's content.
    Guid,
    /// A message's INTERNALDATE.
    InternalDate,
    /// A message's SAVEDATE.
    SaveDate,
    /// A message's system flags.
    SystemFlags,
    /// A message's keywords, by number.
    UserFlags,
    /// A message's modification sequence.
    Modseq,
    /// Whether a message is expunged.
    Expunged,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UidValidity => "UIDVALIDITY",
            Self::LastUid => "last UID",
            Self::Exists => "number of messages",
            Self::HighestModseq => "highest modification sequence",
            Self::Size => "size",
            Self::Guid => "content",
            Self::InternalDate => "internal date",
            Self::SaveDate => "save date",
            Self::SystemFlags => "system flags",
            Self::UserFlags => "keywords",
            Self::Modseq => "modification sequence",
            Self::Expunged => "expunged state",
        })
    }
}

/// One difference between two indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexDifference {
    /// The headers differ.
    Header(Aspect),
    /// Only one index has the message.
    Only {
        /// Which.
        side: Side,
        /// UID.
        uid: u32,
    },
    /// The message differs.
    Message {
        /// UID.
        uid: u32,
        /// In what.
        aspect: Aspect,
    },
    /// A record cannot be read; its message is not compared.
    Damaged {
        /// In which index.
        side: Side,
        /// Where and why.
        error: IndexError,
    },
}

impl fmt::Display for IndexDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let which = |side: &Side| match side {
            Side::Left => "first",
            Side::Right => "second",
        };
        match self {
            Self::Header(aspect) => write!(f, "the mailboxes differ in their {aspect}"),
            Self::Only { side, uid } => write!(f, "only the {} index has UID {uid}", which(side)),
            Self::Message { uid, aspect } => write!(f, "UID {uid} differs in its {aspect}"),
            Self::Damaged { side, error } => write!(f, "the {} index: {error}", which(side)),
        }
    }
}

/// What to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompareOptions {
    /// Compare expunged messages too; else only what clients see.  Default: false.
    pub expunged: bool,
    /// Compare modification sequences, if both indexes have them.  Default: true.
    pub modseqs: bool,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { expunged: false, modseqs: true }
    }
}

/// All differences that clients can observe, in the order of the UIDs; see
/// [`compare_with`].
pub fn compare(left: &IndexView<'_>, right: &IndexView<'_>) -> Vec<IndexDifference> {
    let mut found = Vec::new();
    compare_with(left, right, &CompareOptions::default(), |difference| found.push(difference));
    found
}

/// Compares two indexes message by message, in one pass over both.
///
/// What one of them cannot say is not compared: SHA-1s that are not known, save dates
/// that are not known, the \Seen bit and modification sequences before minor 12,
/// fractions of a second before minor 20.  Keywords are compared by number, so the
/// two cyrus.header must give the same names to the same numbers.
pub fn compare_with(
    left: &IndexView<'_>,
    right: &IndexView<'_>,
    options: &CompareOptions,
    mut report: impl FnMut(IndexDifference),
) {
    let rules = Rules::new(left.header(), right.header(), options);
    rules.headers(left.header(), right.header(), |a| report(IndexDifference::Header(a)));
    let mut sides = [Side::Left, Side::Right].map(|side| Cursor {
        records: match side {
            Side::Left => left.records(),
            Side::Right => right.records(),
        },
        side,
        expunged: options.expunged,
    });
    let [l, r] = &mut sides;
    let (mut a, mut b) = (l.next(&mut report), r.next(&mut report));
    loop {
        let order = match (&a, &b) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => x.uid.cmp(&y.uid),
        };
        match (order, &a, &b) {
            (Ordering::Less, Some(x), _) => {
                report(IndexDifference::Only { side: Side::Left, uid: x.uid })
            }
            (Ordering::Greater, _, Some(y)) => {
                report(IndexDifference::Only { side: Side::Right, uid: y.uid })
            }
            (_, Some(x), Some(y)) => {
                let uid = x.uid;
                rules.messages(x, y, |aspect| report(IndexDifference::Message { uid, aspect }));
            }
            _ => {}
        }
        if order.is_le() {
            a = l.next(&mut report);
        }
        if order.is_ge() {
            b = r.next(&mut report);
        }
    }
}

/// Gives the readable records that are to be compared, and reports the others.
struct Cursor<'v, 'a> {
    records: Records<'v, 'a>,
    side: Side,
    expunged: bool,
}

impl Cursor<'_, '_> {
    fn next(&mut self, report: &mut impl FnMut(IndexDifference)) -> Option<Record> {
        for record in self.records.by_ref() {
            match record {
                Ok(record) if self.expunged || !record.is_expunged() => return Some(record),
                Ok(_) => {}
                Err(error) => report(IndexDifference::Damaged { side: self.side, error }),
            }
        }
        None
    }
}

/// What both indexes can say.
struct Rules {
    system_flags: u16,
    savedate: bool,
    modseqs: bool,
    fractions: bool,
}

impl Rules {
    fn new(a: &Header, b: &Header, options: &CompareOptions) -> Self {
        let minor = a.minor.min(b.minor);
        Self {
            system_flags: if minor >= 12 { !0 } else { !system::SEEN },
            savedate: minor >= 15,
            modseqs: options.modseqs && a.has_modseqs() && b.has_modseqs(),
            fractions: minor >= 20,
        }
    }

    fn headers(&self, a: &Header, b: &Header, mut differs: impl FnMut(Aspect)) {
        let modseq = !self.modseqs || a.highestmodseq == b.highestmodseq;
        for (aspect, same) in [
            (Aspect::UidValidity, a.uidvalidity == b.uidvalidity),
            (Aspect::LastUid, a.last_uid == b.last_uid),
            (Aspect::Exists, a.exists == b.exists),
            (Aspect::HighestModseq, modseq),
        ] {
            if !same {
                differs(aspect);
            }
        }
    }

    fn messages(&self, a: &Record, b: &Record, mut differs: impl FnMut(Aspect)) {
        let (a_gone, b_gone) = (a.is_expunged(), b.is_expunged());
        let (a, b) = (a.identity(), b.identity());
        let guid = a.guid.zip(b.guid).is_none_or(|(a, b)| a == b);
        let time = |a: super::Time, b: super::Time| match self.fractions {
            true => a == b,
            false => a.whole() == b.whole(),
        };
        let known = self.savedate && !a.savedate.is_zero() && !b.savedate.is_zero();
        let flags = (a.system_flags ^ b.system_flags) & self.system_flags == 0;
        for (aspect, same) in [
            (Aspect::Size, a.size == b.size),
            (Aspect::Guid, guid),
            (Aspect::InternalDate, time(a.internaldate, b.internaldate)),
            (Aspect::SaveDate, !known || time(a.savedate, b.savedate)),
            (Aspect::SystemFlags, flags),
            (Aspect::UserFlags, a.user_flags == b.user_flags),
            (Aspect::Modseq, !self.modseqs || a.modseq == b.modseq),
            (Aspect::Expunged, a_gone == b_gone),
        ] {
            if !same {
                differs(aspect);
            }
        }
    }
}
