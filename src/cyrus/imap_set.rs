//! Sets of message numbers as IMAP writes them: `1:5,7,9:12`.

use std::fmt;

/// Where and why a set does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad number set at offset {offset}: {reason}")]
pub struct SetError {
    /// Byte offset.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

/// A set of UIDs as ascending ranges that neither overlap nor touch.
///
/// Needs memory for its ranges only, whatever numbers they span.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UidSet {
    ranges: Vec<(u32, u32)>,
}

impl UidSet {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses a set; nothing is the empty set, `*` is the highest number.
    ///
    /// Ranges may come in any order, overlap, or run backwards, as IMAP allows.
    pub fn parse(text: &[u8]) -> Result<Self, SetError> {
        let mut ranges = Vec::new();
        if text.is_empty() {
            return Ok(Self::new());
        }
        let mut offset = 0;
        for part in text.split(|&c| c == b',') {
            let colon = part.iter().position(|&c| c == b':');
            let range = match colon.and_then(|at| part.split_at_checked(at)) {
                Some((first, second)) => {
                    let a = number(first, offset)?;
                    let b = number(second.get(1..).unwrap_or_default(), offset + first.len() + 1)?;
                    (a.min(b), a.max(b))
                }
                None => {
                    let n = number(part, offset)?;
                    (n, n)
                }
            };
            ranges.push(range);
            offset += part.len() + 1;
        }
        Ok(Self::from_ranges(ranges))
    }

    /// Makes a set of inclusive ranges in any order.
    pub fn from_ranges(mut ranges: Vec<(u32, u32)>) -> Self {
        ranges.retain(|(a, b)| a <= b);
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(ranges.len());
        for (a, b) in ranges {
            match merged.last_mut() {
                Some((_, end)) if a <= end.saturating_add(1) => *end = b.max(*end),
                _ => merged.push((a, b)),
            }
        }
        Self { ranges: merged }
    }

    /// Makes a set of single numbers.
    pub fn from_uids(uids: impl IntoIterator<Item = u32>) -> Self {
        Self::from_ranges(uids.into_iter().map(|n| (n, n)).collect())
    }

    /// Whether it has the number.
    pub fn contains(&self, uid: u32) -> bool {
        let after = self.ranges.partition_point(|&(a, _)| a <= uid);
        let range = after.checked_sub(1).and_then(|i| self.ranges.get(i));
        range.is_some_and(|&(_, b)| uid <= b)
    }

    /// Whether it has no number.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many numbers it has.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|&(a, b)| u64::from(b - a) + 1).sum()
    }

    /// The inclusive ranges, ascending.
    pub fn ranges(&self) -> &[(u32, u32)] {
        &self.ranges
    }
}

fn number(text: &[u8], offset: usize) -> Result<u32, SetError> {
    let fail = |reason| Err(SetError { offset, reason });
    if text == b"*" {
        return Ok(u32::MAX);
    }
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return fail("a number is wanted");
    }
    let parsed = std::str::from_utf8(text).ok().and_then(|t| t.parse().ok());
    match parsed {
        Some(n) => Ok(n),
        None => fail("the number does not fit 32 bits"),
    }
}

impl fmt::Display for UidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (a, b)) in self.ranges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            if a == b {
                write!(f, "{comma}{a}")?;
            } else {
                write!(f, "{comma}{a}:{b}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_and_writes() {
        let set = UidSet::parse(b"1:5,7,9:12").unwrap();
        assert_eq!((set.count(), set.to_string().as_str()), (10, "1:5,7,9:12"));
        assert!(set.contains(5) && !set.contains(6) && !set.contains(0) && !set.contains(13));
        assert_eq!(UidSet::parse(b"9:7,6,1,2").unwrap().to_string(), "1:2,6:9");
        assert_eq!(UidSet::parse(b"5:*").unwrap().to_string(), "5:4294967295");
        assert!(UidSet::parse(b"").unwrap().is_empty());
        assert_eq!(UidSet::parse(b"1,x").unwrap_err().offset, 2);
        assert_eq!(UidSet::parse(b"1:99999999999").unwrap_err().offset, 2);
    }

    proptest! {
        #[test]
        fn never_panics(raw in "[0-9:,*x]{0,30}") {
            if let Ok(set) = UidSet::parse(raw.as_bytes()) {
                prop_assert_eq!(UidSet::parse(set.to_string().as_bytes()).unwrap(), set);
            }
        }

        #[test]
        fn agrees_with_a_plain_set(uids in proptest::collection::btree_set(0u32..60, 0..40)) {
            let set = UidSet::from_uids(uids.iter().copied());
            prop_assert_eq!(set.count(), uids.len() as u64);
            for n in 0..70 {
                prop_assert_eq!(set.contains(n), uids.contains(&n));
            }
        }
    }
}
