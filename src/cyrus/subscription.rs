//! The folders a user has subscribed to.
//!
//! One database per user, by default flat: up to 3.4 `<user>.sub` with internal names
//! as keys, from 3.6 on `sub.db` with a version record and keys `N<name>` as in
//! mailboxes.db, but with `INBOX` for the key of the user's inbox at the start of the
//! name.  The values are empty.

use bytes::Bytes;

use super::db::{Database, DbError, Engine};
use super::name::MailboxName;

/// Key of the record that tells the version (`imap/mboxlist.c:DB_VERSION_KEY`).
const VERSION_KEY: &[u8] = b"\x1fVER\x1f";
/// Stands for the key of the user's inbox, without a look at what follows: for user
/// `jan` the key of `user.jane` is `NINBOXe` (`imap/mboxlist.c:mboxlist_dbname_to_key`).
const INBOX: &[u8] = b"INBOX";

/// How subscriptions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SubscriptionForm {
    /// Internal names, up to 3.4.
    #[default]
    Names,
    /// A version record and keys much as in mailboxes.db, from 3.6 on.
    Keys,
}

/// The folders a user has subscribed to; they need not exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Subscriptions {
    /// How they were written.
    pub form: SubscriptionForm,
    /// The folders, in the order of the file.
    pub names: Vec<MailboxName>,
    /// Keys that are no mailbox names, and so cannot be carried over.
    pub odd: Vec<Vec<u8>>,
}

impl Subscriptions {
    /// Reads a subscription database of any engine and version.
    ///
    /// `inbox` is the user's inbox.  An empty file is no subscriptions.  Fails if the
    /// database is damaged.
    pub fn parse(file: Bytes, inbox: &MailboxName) -> Result<Self, DbError> {
        let entries = Database::open(file, &Engine::Flat)?.entries()?;
        let keys = entries.iter().map(|(key, _)| key.as_ref());
        Ok(Self::from_keys(keys, inbox))
    }

    /// Makes them of a database's keys (`imap/mboxlist.c:mboxlist_dbname_from_key`).
    pub fn from_keys<'a>(keys: impl IntoIterator<Item = &'a [u8]>, inbox: &MailboxName) -> Self {
        let mut subscriptions = Self::default();
        let mut keys: Vec<_> = keys.into_iter().collect();
        let all = keys.len();
        keys.retain(|key| *key != VERSION_KEY);
        if keys.len() < all {
            subscriptions.form = SubscriptionForm::Keys;
        }
        for key in keys {
            let name = match subscriptions.form {
                SubscriptionForm::Names => MailboxName::from_internal(key).ok(),
                SubscriptionForm::Keys => key.strip_prefix(b"N").and_then(|name| {
                    let own = name.strip_prefix(INBOX);
                    let own = own.map(|rest| [inbox.to_db_key().as_slice(), rest].concat());
                    MailboxName::from_db_key(own.as_deref().unwrap_or(name)).ok()
                }),
            };
            match name {
                Some(name) => subscriptions.names.push(name),
                None => subscriptions.odd.push(key.to_vec()),
            }
        }
        subscriptions
    }

    /// The keys of the database in the form that `form` says, sorted bytewise, without
    /// the version and what is [`odd`](Self::odd); those of version 3 (3.12), which older
    /// releases show, too, while they would hide some of their own.
    pub fn to_keys(&self, inbox: &MailboxName) -> Vec<Vec<u8>> {
        let inbox = inbox.to_db_key();
        let key = |name: &MailboxName| match self.form {
            SubscriptionForm::Names => name.as_bytes().to_vec(),
            SubscriptionForm::Keys => {
                let name = name.to_db_key();
                let own = name.strip_prefix(inbox.as_slice());
                match own.filter(|rest| matches!(rest.first(), None | Some(b'\x1f'))) {
                    Some(rest) => [b"N", INBOX, rest].concat(),
                    None => [b"N", name.as_slice()].concat(),
                }
            }
        };
        let mut keys: Vec<_> = self.names.iter().map(key).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// A flat database of these keys (`lib/cyrusdb_flat.c`).
    pub fn to_flat(&self, inbox: &MailboxName) -> Vec<u8> {
        flat(self.form == SubscriptionForm::Keys, &self.to_keys(inbox))
    }
}

/// A flat database of version 3 (3.12) with the number of version 2; `None` if it is
/// none.
///
/// Up to 3.10 Cyrus does not look at the number and reads both, but writes as version 2
/// does: 3.12 must mend that when it gets the database back.
pub fn as_version_2(file: &[u8]) -> Option<Vec<u8>> {
    let rest = file.strip_prefix(VERSION_KEY)?.strip_prefix(b"\t3\n")?;
    Some([VERSION_KEY, b"\t2\n", rest].concat())
}

/// A flat database of these keys, sorted, without values.
fn flat(versioned: bool, keys: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    if versioned {
        // 0x1f comes before `N`, and the engine writes it as it is.
        out.extend_from_slice(VERSION_KEY);
        out.extend_from_slice(b"\t2\n");
    }
    for key in keys {
        for &byte in key {
            out.push(byte);
            if byte == 0xff {
                out.push(byte);
            }
        }
        out.extend_from_slice(b"\t\n");
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn inbox() -> MailboxName {
        MailboxName::from_internal(b"user.jan").unwrap()
    }

    fn parse(file: &[u8]) -> Subscriptions {
        Subscriptions::parse(Bytes::copy_from_slice(file), &inbox()).unwrap()
    }

    fn names(subscriptions: &Subscriptions) -> Vec<&[u8]> {
        subscriptions.names.iter().map(MailboxName::as_bytes).collect()
    }

    #[test]
    fn names_up_to_3_4() {
        let file = b"announce\t\nuser.jane^doe\t\nuser.x.&AOQA9gD8-\t\n";
        let read = parse(file);
        assert_eq!(read.form, SubscriptionForm::Names);
        assert_eq!(names(&read), [&b"announce"[..], b"user.jane^doe", b"user.x.&AOQA9gD8-"]);
        assert_eq!(read.to_flat(&inbox()), file);
        assert_eq!(parse(b""), Subscriptions::default());
    }

    #[test]
    fn keys_from_3_6() {
        let file = b"\x1fVER\x1f\t2\nNINBOX\t\nNINBOX\x1fa.b\t\nNINBOXe\t\nNuser\x1fj.d\x1fa b\t\n";
        let read = parse(file);
        assert_eq!(read.form, SubscriptionForm::Keys);
        assert_eq!(
            names(&read),
            [&b"user.jan"[..], b"user.jan.a^b", b"user.jane", b"user.j^d.a b"]
        );
        let shown =
            b"\x1fVER\x1f\t2\nNINBOX\t\nNINBOX\x1fa.b\t\nNuser\x1fj.d\x1fa b\t\nNuser\x1fjane\t\n";
        assert_eq!(read.to_flat(&inbox()), shown);
    }

    #[test]
    fn version_3_goes_back_to_version_2() {
        let file = b"\x1fVER\x1f\t3\nNINBOX\t\nNINBOX\x1fa.b\t\nNuser\x1fjane\t\n";
        let older = as_version_2(file).unwrap();
        assert!(older.starts_with(b"\x1fVER\x1f\t2\nNINBOX\t\n"));
        assert_eq!(parse(file), parse(&older));
        assert_eq!(names(&parse(&older)), [&b"user.jan"[..], b"user.jan.a^b", b"user.jane"]);
        for as_it_is in [&older[..], b"", b"user.jan\t\n"] {
            assert_eq!(as_version_2(as_it_is), None);
        }
    }

    #[test]
    fn what_is_no_name_is_told() {
        let read = parse(b"a..b\t\nuser.x\t\n");
        assert_eq!((read.names.len(), read.odd), (1, vec![b"a..b".to_vec()]));
        let read = parse(b"\x1fVER\x1f\t2\nuser.x\t\n");
        assert_eq!((read.names.len(), read.odd), (0, vec![b"user.x".to_vec()]));
        assert!(Subscriptions::parse(Bytes::from_static(b"user.x"), &inbox()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            keys in any::<bool>(),
            list in proptest::collection::btree_set("(d[.]e!)?user[.]ja?n?(\\.[a-c^&\u{ff} ]{1,3}){1,3}", 0..6),
        ) {
            let form = if keys { SubscriptionForm::Keys } else { SubscriptionForm::Names };
            let valid = |name: &String| MailboxName::from_internal(name.as_bytes()).ok();
            let names: Vec<_> = list.iter().filter_map(valid).collect();
            let all = Subscriptions { form, names, odd: vec![] };
            let mut back = parse(&all.to_flat(&inbox()));
            back.names.sort_unstable();
            if !all.names.is_empty() {
                prop_assert_eq!(back, all);
            }
        }

        #[test]
        fn never_panics(raw in "[\u{1f}\u{ff}VERN\t\n2a.!^]{0,40}") {
            let _ = Subscriptions::parse(raw.into_bytes().into(), &inbox());
        }
    }
}
