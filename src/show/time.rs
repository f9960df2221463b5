//! Times as people read them, in UTC.

use crate::cyrus::index::Time;
use serde::{Serialize, Serializer};
use std::fmt;

/// A point in time; unknown or never is null, and a dash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct When(pub Time);

impl When {
    /// From seconds since 1970, as databases have them; what does not fit is unknown.
    pub fn from_seconds(seconds: i64) -> Self {
        Self(Time::from_nanoseconds(seconds.checked_mul(1_000_000_000).unwrap_or(0)))
    }

    /// Whether it is unknown or never.
    pub fn is_never(&self) -> bool {
        self.0.is_zero()
    }

    fn timestamp(self) -> Option<jiff::Timestamp> {
        let known = (!self.is_never()).then(|| i128::from(self.0.nanoseconds()));
        known.and_then(|n| jiff::Timestamp::from_nanosecond(n).ok())
    }
}

impl fmt::Display for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.timestamp() {
            Some(at) => at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            None => "-".into(),
        };
        f.pad(&text)
    }
}

impl Serialize for When {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.timestamp().map(|at| at.to_string()).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        let at = When(Time::from_seconds(1_795_442_171));
        assert_eq!(at.to_string(), "2026-11-23 13:56:11");
        assert_eq!(serde_json::to_string(&at).ok().as_deref(), Some("\"2026-11-23T13:56:11Z\""));
        for never in [When(Time::ZERO), When::from_seconds(i64::MAX)] {
            assert_eq!(never.to_string(), "-");
            assert_eq!(serde_json::to_string(&never).ok().as_deref(), Some("null"));
        }
    }
}
