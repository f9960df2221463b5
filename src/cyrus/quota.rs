//! Quotas: how much a tree of mailboxes holds and may hold.
//!
//! Up to 2.4 one file per root with two lines, or an entry `used limit` of a
//! database; from 2.5 on a dlist `%(S (used limit) M (used limit) ...)`, in a file per
//! root or a database.  All are read by the same function.

use super::dlist::Dlist;

/// Where and why a quota does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad quota at offset {offset}: {reason}")]
pub struct QuotaError {
    /// Byte offset.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

type Result<T> = std::result::Result<T, QuotaError>;

/// Use and limit of one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resource {
    /// What is used: bytes, or a number of things.  Negative only after a bug of Cyrus.
    pub used: i64,
    /// What is allowed: KiB, or a number of things; `None` is no limit.
    pub limit: Option<u64>,
}

/// The quota of one root.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Quota {
    /// Size of messages: bytes used, KiB allowed.
    pub storage: Option<Resource>,
    /// Number of messages.
    pub message: Option<Resource>,
    /// Size of annotations: bytes used, KiB allowed.
    pub annotation_storage: Option<Resource>,
    /// Number of folders.
    pub num_folders: Option<Resource>,
    /// Modification sequence of the quota, from 3.0 on.
    pub modseq: Option<u64>,
    /// A count by `quota -f` was under way, or was broken off.
    pub scanning: bool,
}

impl Quota {
    /// Parses a quota file or the value of a database
    /// (`imap/quota_db.c:quota_parseval`).
    ///
    /// Nothing is no quota.  Fails if it is neither form.
    pub fn parse(value: &[u8]) -> Result<Option<Self>> {
        match value.first() {
            None => Ok(None),
            Some(b'%') => Self::parse_dlist(value).map(Some),
            Some(_) => Self::parse_words(value).map(Some),
        }
    }

    fn parse_dlist(value: &[u8]) -> Result<Self> {
        let end = value.iter().rposition(|&c| c != 0).map_or(0, |last| last + 1);
        let list = Dlist::parse(value.get(..end).unwrap_or_default());
        let list =
            list.map_err(|error| QuotaError { offset: error.offset, reason: error.reason })?;
        let mut quota = Self {
            modseq: list.get(b"MODSEQ").and_then(Dlist::as_u64),
            scanning: list.get(b"SCAN").is_some(),
            ..Self::default()
        };
        for name in [b"S".as_slice(), b"M", b"AS", b"NF"] {
            let Some(pair) = list.get(name) else { continue };
            let numbers = pair.as_list().map(|items| items.iter().map(signed));
            let numbers: Option<Vec<_>> = numbers.and_then(Iterator::collect);
            let Some(numbers) = numbers else {
                return fail(0, "a resource is no list of numbers");
            };
            let used = numbers.first().copied().unwrap_or(0);
            let limit = numbers.get(1).copied().and_then(|limit| u64::try_from(limit).ok());
            if let Some(resource) = quota.resource(name) {
                *resource = Some(Resource { used, limit });
            }
        }
        Ok(quota)
    }

    /// `used limit [left over] [NAME used limit [left over]]...`
    fn parse_words(value: &[u8]) -> Result<Self> {
        let mut quota = Self::default();
        let mut name: &[u8] = b"S";
        let mut words = Words { value, at: 0 };
        loop {
            let used = words.number("the use is missing")?;
            let limit = words.number("the limit is missing")?;
            let limit = u64::try_from(limit).ok();
            let (offset, _) = words.peek();
            match quota.resource(name) {
                Some(resource) => *resource = Some(Resource { used, limit }),
                None => return fail(offset, "the resource is not known"),
            }
            // `quota -f` that was broken off leaves a third number.
            if words.number("").is_ok() {
                quota.scanning = true;
            }
            let (offset, word) = words.peek();
            if word.is_empty() {
                return Ok(quota);
            }
            name = word;
            words.at = offset + word.len();
            if quota.resource(name).is_none() {
                return fail(offset, "the resource is not known");
            }
        }
    }

    fn resource(&mut self, name: &[u8]) -> Option<&mut Option<Resource>> {
        match name.to_ascii_uppercase().as_slice() {
            b"S" | b"STORAGE" => Some(&mut self.storage),
            b"M" | b"MESSAGE" => Some(&mut self.message),
            b"AS" | b"ANNOTATION-STORAGE" | b"X-ANNOTATION-STORAGE" => {
                Some(&mut self.annotation_storage)
            }
            b"NF" | b"MAILBOX" | b"X-NUM-FOLDERS" => Some(&mut self.num_folders),
            _ => None,
        }
    }
}

fn fail<T>(offset: usize, reason: &'static str) -> Result<T> {
    Err(QuotaError { offset, reason })
}

fn signed(item: &Dlist) -> Option<i64> {
    std::str::from_utf8(item.as_bytes()?).ok()?.parse().ok()
}

struct Words<'a> {
    value: &'a [u8],
    at: usize,
}

impl<'a> Words<'a> {
    /// The next word and its offset; no word is the end.
    fn peek(&self) -> (usize, &'a [u8]) {
        let space = |c: &u8| c.is_ascii_whitespace() || *c == 0;
        let rest = self.value.get(self.at..).unwrap_or_default();
        let spaces = rest.iter().take_while(|c| space(c)).count();
        let rest = rest.get(spaces..).unwrap_or_default();
        let len = rest.iter().take_while(|c| !space(c)).count();
        (self.at + spaces, rest.get(..len).unwrap_or_default())
    }

    fn number(&mut self, reason: &'static str) -> Result<i64> {
        let (offset, word) = self.peek();
        let number = std::str::from_utf8(word).ok().and_then(|word| word.parse().ok());
        let number = number.ok_or(QuotaError { offset, reason })?;
        self.at = offset + word.len();
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Quota {
        Quota::parse(text.as_bytes()).unwrap().unwrap()
    }

    fn resource(used: i64, limit: Option<u64>) -> Option<Resource> {
        Some(Resource { used, limit })
    }

    #[test]
    fn old_forms() {
        let quota = parse("1015425\n500000\n");
        assert_eq!(quota.storage, resource(1_015_425, Some(500_000)));
        assert_eq!((quota.message, quota.scanning), (None, false));
        assert_eq!(parse("7 -1").storage, resource(7, None));
        assert_eq!(parse("-7 0\0").storage, resource(-7, Some(0)));
        let quota = parse("7 8 99 MESSAGE 1 2 nf 3 4 5\n");
        assert_eq!(quota.storage, resource(7, Some(8)));
        assert_eq!(quota.message, resource(1, Some(2)));
        assert_eq!(quota.num_folders, resource(3, Some(4)));
        assert!(quota.scanning);
        assert_eq!(Quota::parse(b"").unwrap(), None);
    }

    #[test]
    fn dlist() {
        let text = "%(S (2315855 200000) M (228 5000) AS (61) NF (11) MODSEQ 294)\n";
        let quota = parse(text);
        assert_eq!(quota.storage, resource(2_315_855, Some(200_000)));
        assert_eq!(quota.message, resource(228, Some(5000)));
        assert_eq!(quota.annotation_storage, resource(61, None));
        assert_eq!(quota.num_folders, resource(11, None));
        assert_eq!((quota.modseq, quota.scanning), (Some(294), false));
        let quota = parse("%(S (-5 -1) SCAN %(MBOX user.x S 5))");
        assert_eq!((quota.storage, quota.scanning), (resource(-5, None), true));
    }

    #[test]
    fn errors_say_where() {
        for (text, offset) in [
            ("\n", 1),
            ("5", 1),
            ("5 x", 2),
            ("5 6 7 8", 6),
            ("5 6 FOO 7 8", 4),
            ("5 6 M 7", 7),
            ("%(S", 3),
            ("%(S 5)", 0),
            ("%(S (a))", 0),
        ] {
            let error = Quota::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
    }

    fn any_resource() -> impl Strategy<Value = Option<Resource>> {
        let limit = proptest::option::of(0..=i64::MAX as u64);
        let one = (any::<i64>(), limit).prop_map(|(used, limit)| Resource { used, limit });
        proptest::option::of(one)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            all in proptest::array::uniform4(any_resource()),
            modseq in proptest::option::of(any::<u64>()),
        ) {
            let [storage, message, annotation_storage, num_folders] = all;
            let quota = Quota {
                storage, message, annotation_storage, num_folders, modseq, scanning: false,
            };
            // As 3.x writes it (imap/quota_db.c: quota_write).
            let names = ["S", "M", "AS", "NF"].into_iter().zip(all);
            let mut text = String::from("%(");
            for (name, resource) in names {
                let Some(Resource { used, limit }) = resource else { continue };
                let limit = limit.map(|limit| format!(" {limit}")).unwrap_or_default();
                text.push_str(&format!("{name} ({used}{limit}) "));
            }
            if let Some(modseq) = modseq {
                text.push_str(&format!("MODSEQ {modseq}"));
            }
            prop_assert_eq!(parse(&format!("{})", text.trim_end())), quota);
            // And as 2.x did.
            if let Some(Resource { used, limit }) = storage {
                let limit = limit.map_or(-1, |limit| limit as i64);
                let read = parse(&format!("{used}\n{limit}\n"));
                prop_assert_eq!(read.storage, storage);
            }
        }

        #[test]
        fn never_panics(raw in "[%]?[( )SMANF0-9\n-]{0,40}", bytes in any::<[u8; 12]>()) {
            let _ = (Quota::parse(raw.as_bytes()), Quota::parse(&bytes));
        }
    }
}
