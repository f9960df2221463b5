//! What each release of Cyrus does: the one table of what differs between them.
//!
//! Read from the sources of every release named here; the numbers are those of the
//! last patch level.  A release in development (an odd minor number) is taken for the
//! stable one before it, unless it has a row of its own: what it does changed while it
//! was written.

use super::cache::misreads_global;
use super::lock::UserLockNaming;
use super::mboxlist::mbtype::Mbtype;

/// What a release does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Release {
    /// The first (major, minor) that does all this.
    pub since: (u32, u32),
    /// Minor version of the cyrus.index that it writes, which is also the newest that
    /// it opens (`imap/mailbox.h:MAILBOX_MINOR_VERSION`).
    pub index: u32,
    /// Version of the records that it writes into cyrus.cache
    /// (`imap/mailbox.h:MAILBOX_CACHE_MINOR_VERSION`).  It reads all others, too, but
    /// for messages of which [`misreads_global`] tells.
    pub cache: u16,
    /// How it names the lock on a user (`imap/user.c:_namelock_name_from_userid`).
    pub user_lock: UserLockNaming,
    /// Whether it keeps mailboxes, users' files and annotations by uniqueid, and
    /// mailboxes.db as N and I records.
    pub by_id: bool,
    /// Version of a subscription database (`imap/mboxlist.c:SUBDB_VERSION_NUM`); 0 is
    /// names without a version.  A newer one than its own ends 3.12 by an assertion.
    pub subscriptions: u32,
    /// Version of dav.db (`imap/dav_db.c:DB_VERSION`); 0: its schema is not known here.
    pub dav: u32,
    /// Letters of the kinds of mailboxes that it knows; from 3.6 on any other ends its
    /// programs by an assertion (`imap/mboxlist.c:mboxlist_string_to_mbtype`).
    pub kinds: &'static [u8],
    /// Whether GETMETADATA shows `userrawquota`.
    pub raw_quota: bool,
    /// Whether quota resources have the names of RFC 9208 (`imap/quota_db.c:quota_names`).
    pub quota_names: bool,
}

const OLDEST: Release = Release {
    since: (2, 0),
    index: 10,
    cache: 2,
    user_lock: UserLockNaming::None,
    by_id: false,
    subscriptions: 0,
    dav: 0,
    kinds: b"en",
    raw_quota: false,
    quota_names: false,
};
const V2_4: Release = Release { since: (2, 4), index: 12, cache: 3, ..OLDEST };
const V2_5: Release = Release { since: (2, 5), index: 13, kinds: b"acen", ..V2_4 };
const V3_0: Release = Release { since: (3, 0), cache: 6, dav: 6, kinds: b"abcen", ..V2_5 };
const V3_1: Release = Release { since: (3, 1), index: 16, kinds: b"abcenps", ..V3_0 };
const V3_2: Release =
    Release { since: (3, 2), cache: 10, user_lock: UserLockNaming::UserId, dav: 9, ..V3_1 };
const V3_4: Release = Release { since: (3, 4), index: 17, dav: 10, ..V3_2 };
const V3_6: Release = Release {
    since: (3, 6),
    cache: 11,
    by_id: true,
    subscriptions: 2,
    dav: 14,
    kinds: b"abcefnps",
    ..V3_4
};
const V3_8: Release =
    Release { since: (3, 8), dav: 15, kinds: b"abcefjnps", raw_quota: true, ..V3_6 };
const V3_10: Release = Release { since: (3, 9), index: 19, dav: 16, quota_names: true, ..V3_8 };
const V3_12: Release = Release {
    since: (3, 12),
    cache: 13,
    user_lock: UserLockNaming::Inbox,
    subscriptions: 3,
    ..V3_10
};
const V3_13: Release = Release { since: (3, 13), index: 20, cache: 14, dav: 19, ..V3_12 };

/// All rows, oldest first.
static RELEASES: [Release; 12] =
    [OLDEST, V2_4, V2_5, V3_0, V3_1, V3_2, V3_4, V3_6, V3_8, V3_10, V3_12, V3_13];

impl Release {
    /// What (major, minor) does; what is newer than the table is taken for its last row.
    pub fn of(version: (u32, u32)) -> &'static Self {
        let row = RELEASES.iter().rev().find(|release| release.since <= version);
        row.unwrap_or(&OLDEST)
    }

    /// What the version that a server says it has does, such as `3.6.1`.
    pub fn parse(version: &str) -> Option<&'static Self> {
        let mut numbers = version.split('.').map(str::parse);
        Some(Self::of((numbers.next()?.ok()?, numbers.next()?.ok()?)))
    }

    /// Whether it knows what such a mailbox holds.
    pub fn knows(&self, mbtype: &Mbtype) -> bool {
        mbtype.unknown.is_empty() && self.kinds.contains(&mbtype.kind.letter())
    }
}

/// What is not the same for a client after a move between two releases, by the names
/// that `docs/cyrus.md` explains.
pub fn differences(source: &Release, target: &Release) -> Vec<&'static str> {
    let by_pair = [
        ("mailbox-ids", source.by_id != target.by_id),
        ("sieve-mailbox", source.by_id != target.by_id),
        ("usercounters", source.by_id != target.by_id),
        ("userrawquota", source.raw_quota != target.raw_quota),
        ("quota-names", source.quota_names != target.quota_names),
        ("namesake-subscriptions", (source.subscriptions == 2) != (target.subscriptions == 2)),
        ("message-global", misreads_global(target.cache, source.cache)),
        ("jmap-calendar-ids", target.dav < source.dav && target.dav > 0),
    ];
    let always = ["lastupdate", "freespace"].into_iter();
    always
        .chain(by_pair.into_iter().filter_map(|(name, differs)| differs.then_some(name)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_in_order_and_found_by_version() {
        assert!(RELEASES.is_sorted_by_key(|release| release.since));
        for (version, index) in [
            ("2.2.13", 10),
            ("2.3.16", 10),
            ("2.4.20", 12),
            ("3.0.18", 13),
            ("3.2.6", 16),
            ("3.4.9", 17),
            ("3.6.1", 17),
            ("3.8.6", 17),
            ("3.10.2", 19),
            ("3.12.4", 19),
            ("3.13.7", 20),
            ("4.0.0", 20),
        ] {
            assert_eq!(Release::parse(version).map(|r| r.index), Some(index), "{version}");
        }
        assert_eq!(Release::of((1, 6)), &OLDEST);
        assert_eq!(Release::parse("three"), None);
    }

    #[test]
    fn an_older_release_does_not_know_every_kind() {
        let notifications = Mbtype::from_letters(b"j");
        assert!(!Release::of((3, 6)).knows(&notifications));
        assert!(Release::of((3, 10)).knows(&notifications));
        assert!(!Release::of((3, 12)).knows(&Mbtype::from_letters(b"ex")));
        for letters in [&b"e"[..], b"fm", b"cd"] {
            assert!(Release::of((3, 6)).knows(&Mbtype::from_letters(letters)));
        }
    }

    #[test]
    fn the_same_release_differs_in_what_no_copy_can_keep() {
        let [old, new] = [(3, 6), (3, 12)].map(Release::of);
        assert_eq!(differences(old, old), ["lastupdate", "freespace"]);
        let names = [
            "lastupdate",
            "freespace",
            "userrawquota",
            "quota-names",
            "namesake-subscriptions",
            "message-global",
        ];
        assert_eq!(differences(old, new), names);
        assert!(differences(new, old).contains(&"jmap-calendar-ids"));
        assert!(differences(Release::of((3, 2)), old).contains(&"sieve-mailbox"));
    }
}
