//! What becomes here of a message that is new or different on the source. Pure.
//!
//! | on the source | here | what is done |
//! |---|---|---|
//! | new | | appended |
//! | new, and expunged again | | nothing |
//! | flags changed | as it was published | it gets the source's flags |
//! | flags changed | changed, too | it gets the flags of both; \Deleted only if both have it |
//! | expunged | as it was published | expunged |
//! | expunged | changed | kept, and said |
//! | anything | expunged | nothing |
//!
//! So no message is ever lost for a change on one of the two servers that somebody
//! did not know of on the other.

use std::collections::BTreeSet;

/// Flags, as IMAP writes them.
pub type Flags = BTreeSet<Vec<u8>>;

const DELETED: &[u8] = b"\\Deleted";

/// A message as the source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct There {
    /// Whether it is expunged.
    pub expunged: bool,
    /// Its flags.
    pub flags: Flags,
}

/// The same message here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Here {
    /// Whether it is expunged.
    pub expunged: bool,
    /// Its flags.
    pub flags: Flags,
    /// Its MODSEQ.
    pub modseq: u64,
    /// The MODSEQ that it had when it came here or when we changed it last.
    pub ours: u64,
    /// Whether we have begun to expunge it.
    pub expunging: bool,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is as it should be.
    Nothing,
    /// It is appended.
    Append,
    /// Flags are set and removed, if its MODSEQ is still this one.
    Flags {
        /// Flags to set.
        add: Flags,
        /// Flags to remove.
        remove: Flags,
        /// The MODSEQ.
        modseq: u64,
    },
    /// It is expunged, if its MODSEQ is still this one.
    Expunge {
        /// The MODSEQ.
        modseq: u64,
    },
    /// It stays, although the source has expunged it.
    Keep,
}

/// What is done about a message that never came here.
pub fn newcomer(there: &There) -> Action {
    if there.expunged { Action::Nothing } else { Action::Append }
}

/// What is done about a message that is or was here.
pub fn known(there: &There, here: Option<&Here>) -> Action {
    let Some(here) = here.filter(|here| !here.expunged) else { return Action::Nothing };
    let modseq = here.modseq;
    let untouched = here.modseq <= here.ours;
    if there.expunged {
        let begun = here.expunging && here.flags.contains(DELETED);
        return if untouched || begun { Action::Expunge { modseq } } else { Action::Keep };
    }
    let mut add: Flags = there.flags.difference(&here.flags).cloned().collect();
    let mut remove: Flags = here.flags.difference(&there.flags).cloned().collect();
    if !untouched {
        add.retain(|flag| flag != DELETED);
        remove.retain(|flag| flag == DELETED);
    }
    if add.is_empty() && remove.is_empty() {
        return Action::Nothing;
    }
    Action::Flags { add, remove, modseq }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(names: &[&str]) -> Flags {
        names.iter().map(|name| name.as_bytes().to_vec()).collect()
    }

    fn there(names: &[&str]) -> There {
        There { expunged: false, flags: flags(names) }
    }

    fn here(names: &[&str], modseq: u64) -> Here {
        Here { expunged: false, flags: flags(names), modseq, ours: 10, expunging: false }
    }

    fn change(add: &[&str], remove: &[&str], modseq: u64) -> Action {
        Action::Flags { add: flags(add), remove: flags(remove), modseq }
    }

    #[test]
    fn what_nobody_has_touched_here_becomes_what_the_source_has() {
        let here = here(&["\\Seen", "old"], 10);
        assert_eq!(known(&there(&["\\Seen", "new"]), Some(&here)), change(&["new"], &["old"], 10));
        assert_eq!(known(&there(&["\\Seen", "old"]), Some(&here)), Action::Nothing);
        let deleted = there(&["\\Seen", "old", "\\Deleted"]);
        assert_eq!(known(&deleted, Some(&here)), change(&["\\Deleted"], &[], 10));
        let expunged = There { expunged: true, ..there(&[]) };
        assert_eq!(known(&expunged, Some(&here)), Action::Expunge { modseq: 10 });
    }

    #[test]
    fn what_was_changed_on_both_gets_both_and_stays() {
        let here = here(&["mine", "\\Deleted"], 11);
        assert_eq!(
            known(&there(&["theirs"]), Some(&here)),
            change(&["theirs"], &["\\Deleted"], 11)
        );
        let both = there(&["\\Deleted"]);
        assert_eq!(known(&both, Some(&here)), Action::Nothing);
        let undeleted = Here { flags: flags(&["mine"]), ..here.clone() };
        assert_eq!(known(&both, Some(&undeleted)), Action::Nothing);
        let expunged = There { expunged: true, ..there(&[]) };
        assert_eq!(known(&expunged, Some(&here)), Action::Keep);
    }

    #[test]
    fn an_expunge_that_was_begun_is_finished() {
        let expunged = There { expunged: true, ..there(&[]) };
        let begun = Here { expunging: true, ..here(&["\\Deleted"], 12) };
        assert_eq!(known(&expunged, Some(&begun)), Action::Expunge { modseq: 12 });
        // Somebody has undone it meanwhile.
        let undone = Here { flags: flags(&[]), ..begun };
        assert_eq!(known(&expunged, Some(&undone)), Action::Keep);
    }

    #[test]
    fn what_is_gone_here_stays_gone_and_what_never_came_comes() {
        let gone = Here { expunged: true, ..here(&[], 12) };
        assert_eq!(known(&there(&["new"]), Some(&gone)), Action::Nothing);
        assert_eq!(known(&there(&["new"]), None), Action::Nothing);
        assert_eq!(newcomer(&there(&[])), Action::Append);
        assert_eq!(newcomer(&There { expunged: true, ..there(&[]) }), Action::Nothing);
    }
}
