//! Points in time as an index keeps them.

/// A point in time, in nanoseconds since 1970-01-01 00:00 UTC.
///
/// Up to minor version 19 indexes hold unsigned 32-bit seconds, minor 20 holds
/// signed 64-bit nanoseconds.  Zero means "unknown" or "never".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(i64);

const NANOS: i64 = 1_000_000_000;

impl Time {
    /// Unknown or never.
    pub const ZERO: Self = Self(0);

    /// From seconds since the epoch, as stored up to minor version 19.
    pub fn from_seconds(seconds: u32) -> Self {
        // 2^32 seconds are 4.3e18 nanoseconds, below 2^63.
        Self(i64::from(seconds) * NANOS)
    }

    /// From nanoseconds since the epoch, as stored by minor version 20.
    pub fn from_nanoseconds(nanoseconds: i64) -> Self {
        Self(nanoseconds)
    }

    /// Whole seconds since the epoch, rounded down.
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(NANOS)
    }

    /// Nanoseconds since the epoch.
    pub fn nanoseconds(self) -> i64 {
        self.0
    }

    /// The same time without its fraction of a second.
    pub fn whole(self) -> Self {
        Self(self.0.saturating_sub(self.0.rem_euclid(NANOS)))
    }

    /// Whether it is unknown or never.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}
