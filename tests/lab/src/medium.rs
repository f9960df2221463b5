//! What is on a disk that has a cache of its own, as nearly all have: what was written since the
//! last flush may be lost when the power fails, all of it or any part, in any order.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The bytes of a sector: what is written whole or not at all.
pub const SECTOR: usize = 4096;

/// The sectors that are not all zero, by number.
type Sectors = BTreeMap<u64, Arc<[u8; SECTOR]>>;

/// The disk.
#[derive(Clone, Default)]
pub struct Medium {
    /// What is read.
    seen: Sectors,
    /// What no power cut can take away.
    stable: Sectors,
    /// What was written since the last flush, in order.
    cached: Vec<(u64, Arc<[u8; SECTOR]>)>,
}

/// What becomes of the writes that no flush has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// They are lost.
    Lost,
    /// They were just in time.
    Kept,
    /// Some are lost, whatever their order; which ones is drawn by this seed.
    Mixed(u64),
}

/// How many sectors were in the cache, and how many of them were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Written since the last flush.
    pub cached: usize,
    /// Lost of these.
    pub lost: usize,
}

impl Loss {
    /// Both together.
    pub fn and(self, other: Loss) -> Loss {
        Loss { cached: self.cached + other.cached, lost: self.lost + other.lost }
    }
}

impl Medium {
    /// What stands at `offset`.
    pub fn read(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for (sector, from, to) in pieces(offset, length) {
            match self.seen.get(&sector) {
                Some(found) => bytes.extend_from_slice(&found[from..to]),
                None => bytes.resize(bytes.len() + to - from, 0),
            }
        }
        bytes
    }

    /// Writes into the cache.
    pub fn write(&mut self, offset: u64, mut bytes: &[u8]) {
        for (sector, from, to) in pieces(offset, bytes.len()) {
            let mut new = self.seen.get(&sector).map_or([0; SECTOR], |old| **old);
            let (piece, rest) = bytes.split_at(to - from);
            new[from..to].copy_from_slice(piece);
            bytes = rest;
            let new = Arc::new(new);
            self.seen.insert(sector, Arc::clone(&new));
            self.cached.push((sector, new));
        }
    }

    /// Puts the cache onto stable storage.
    pub fn flush(&mut self) {
        self.stable.extend(self.cached.drain(..));
    }

    /// The disk as it is found after a power cut.
    pub fn without_power(mut self, fate: Fate) -> (Medium, Loss) {
        let mut loss = Loss { cached: self.cached.len(), lost: 0 };
        let mut random = match fate {
            Fate::Mixed(seed) => SmallRng::seed_from_u64(seed),
            _ => SmallRng::seed_from_u64(0),
        };
        let share = random.random_range(0.05..0.95);
        for (sector, bytes) in self.cached.drain(..) {
            let lost = match fate {
                Fate::Lost => true,
                Fate::Kept => false,
                Fate::Mixed(_) => random.random_bool(share),
            };
            if lost {
                loss.lost += 1;
            } else {
                self.stable.insert(sector, bytes);
            }
        }
        (Medium { seen: self.stable.clone(), stable: self.stable, cached: Vec::new() }, loss)
    }
}

/// The sectors that a stretch of bytes touches, each with the part of it that is touched.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (sector, from) = (at / SECTOR as u64, (at % SECTOR as u64) as usize);
        let to = SECTOR.min(from + end.saturating_sub(at) as usize);
        at += (to - from) as u64;
        (to > from).then_some((sector, from, to))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_was_flushed_stays() {
        let mut medium = Medium::default();
        medium.write(4000, &[1; 5000]);
        assert_eq!(medium.read(3999, 5002), [&[0][..], &[1; 5000], &[0]].concat());
        medium.flush();
        medium.write(4090, &[2; 10]);
        let (found, loss) = medium.clone().without_power(Fate::Lost);
        assert_eq!(found.read(4000, 5000), [1; 5000]);
        assert_eq!(loss, Loss { cached: 2, lost: 2 });
        let (found, loss) = medium.clone().without_power(Fate::Kept);
        assert_eq!(found.read(4090, 10), [2; 10]);
        assert_eq!(loss, Loss { cached: 2, lost: 0 });
    }

    #[test]
    fn a_mixed_fate_loses_some_sectors_and_the_same_ones_again() {
        let mut medium = Medium::default();
        (0..1000).for_each(|n| medium.write(n * SECTOR as u64, &[7; SECTOR]));
        let (found, loss) = medium.clone().without_power(Fate::Mixed(3));
        assert!(loss.lost > 0 && loss.lost < loss.cached, "{loss:?}");
        let again = medium.without_power(Fate::Mixed(3)).0;
        assert_eq!(found.read(0, 1000 * SECTOR), again.read(0, 1000 * SECTOR));
    }
}
