//! Moves fields between a value and its bytes, in either direction.

use super::layout::At;
use super::time::Time;
use crate::cyrus::guid::Guid;

/// Visits the fields of a header or record; one visitor reads, the other writes, so
/// the list of fields is written down once per kind.
pub(super) trait Codec {
    /// A number of 32 bits.
    fn word(&mut self, name: &'static str, at: At, value: &mut u32);
    /// A number of 64 bits, stored in 32 by some versions.
    fn long(&mut self, name: &'static str, at: At, value: &mut u64);
    /// A point in time.
    fn time(&mut self, name: &'static str, at: At, value: &mut Time);
    /// A message's SHA-1; zeros are unknown.
    fn guid(&mut self, at: Option<u16>, value: &mut Option<Guid>);
}

/// Reads fields; one that the version does not have keeps its value.
pub(super) struct Reader<'a> {
    /// As long as the layout wants it; what is missing reads as zero.
    pub(super) bytes: &'a [u8],
}

impl Reader<'_> {
    fn array<const N: usize>(&self, offset: u16) -> [u8; N] {
        let rest = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        rest.first_chunk().copied().unwrap_or([0; N])
    }

    /// The number at `at`, if the version has it.
    pub(super) fn number(&self, at: At) -> Option<u64> {
        match at {
            At::No => None,
            At::Word(o) | At::Seconds(o) => Some(u32::from_be_bytes(self.array(o)).into()),
            At::Long(o) | At::Nanos(o) => Some(u64::from_be_bytes(self.array(o))),
        }
    }
}

impl Codec for Reader<'_> {
    fn word(&mut self, _: &'static str, at: At, value: &mut u32) {
        if let Some(number) = self.number(at) {
            // The tables have words at 32-bit places only.
            *value = u32::try_from(number).unwrap_or(u32::MAX);
        }
    }

    fn long(&mut self, _: &'static str, at: At, value: &mut u64) {
        if let Some(number) = self.number(at) {
            *value = number;
        }
    }

    fn time(&mut self, _: &'static str, at: At, value: &mut Time) {
        match at {
            At::No => {}
            At::Nanos(o) => *value = Time::from_nanoseconds(i64::from_be_bytes(self.array(o))),
            At::Word(o) | At::Seconds(o) | At::Long(o) => {
                *value = Time::from_seconds(u32::from_be_bytes(self.array(o)));
            }
        }
    }

    fn guid(&mut self, at: Option<u16>, value: &mut Option<Guid>) {
        if let Some(offset) = at {
            *value = Guid::from_stored(self.array(offset));
        }
    }
}

/// Writes fields; remembers the first that does not fit.
pub(super) struct Writer<'a> {
    /// As long as the layout wants it.
    pub(super) bytes: &'a mut [u8],
    /// Name of the first field whose value this version cannot hold.
    pub(super) misfit: Option<&'static str>,
}

impl Writer<'_> {
    fn put(&mut self, offset: u16, raw: &[u8]) {
        let start = usize::from(offset);
        if let Some(place) = self.bytes.get_mut(start..start + raw.len()) {
            place.copy_from_slice(raw);
        }
    }

    fn number(&mut self, name: &'static str, at: At, value: u64) {
        match at {
            At::No => {}
            At::Word(o) | At::Seconds(o) => match u32::try_from(value) {
                Ok(small) => self.put(o, &small.to_be_bytes()),
                Err(_) => self.misfit = self.misfit.or(Some(name)),
            },
            At::Long(o) | At::Nanos(o) => self.put(o, &value.to_be_bytes()),
        }
    }
}

impl Codec for Writer<'_> {
    fn word(&mut self, name: &'static str, at: At, value: &mut u32) {
        self.number(name, at, (*value).into());
    }

    fn long(&mut self, name: &'static str, at: At, value: &mut u64) {
        self.number(name, at, *value);
    }

    fn time(&mut self, name: &'static str, at: At, value: &mut Time) {
        match at {
            At::No => {}
            At::Nanos(o) => self.put(o, &value.nanoseconds().to_be_bytes()),
            _ => match u64::try_from(value.seconds()) {
                Ok(seconds) => self.number(name, at, seconds),
                Err(_) => self.misfit = self.misfit.or(Some(name)),
            },
        }
    }

    fn guid(&mut self, at: Option<u16>, value: &mut Option<Guid>) {
        if let Some(offset) = at {
            let raw = value.map_or([0; Guid::LEN], |guid| *guid.as_bytes());
            self.put(offset, &raw);
        }
    }
}
