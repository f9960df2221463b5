//! Manifests: which messages a mailbox has.

use bytes::{BufMut, BytesMut};

/// Length of one entry, in bytes.
pub const ENTRY: usize = 36;

/// Most entries of one part.
pub const MAX_ENTRIES: usize = 65_536;

/// Most messages of one mailbox that a peer may list.
pub const MAX_MESSAGES: usize = 1 << 24;

/// Most mailboxes of one move that a peer may list.
pub const MAX_MAILBOXES: usize = 1_000_000;

/// A message as a manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// UID of the message.
    pub uid: u32,
    /// Expunged, but still on disk (delayed expunge).
    pub expunged: bool,
    /// On the source's archive partition.
    pub archived: bool,
    /// Size of the message, in bytes.
    pub size: u64,
    /// SHA-1 of the message; zero when the source does not know it.
    pub guid: [u8; 20],
}

impl Entry {
    /// Appends the entry to a manifest.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u32(self.uid);
        out.put_u32(u32::from(self.expunged) | u32::from(self.archived) << 1);
        out.put_u64(self.size);
        out.put_slice(&self.guid);
    }
}

/// The entries of a manifest; `None` when its length is not a whole number of
/// entries or above the limit.
pub fn entries(manifest: &[u8]) -> Option<impl Iterator<Item = Entry> + '_> {
    let (entries, rest) = manifest.as_chunks::<ENTRY>();
    (rest.is_empty() && entries.len() <= MAX_ENTRIES).then(|| entries.iter().map(parse))
}

fn parse(entry: &[u8; ENTRY]) -> Entry {
    let [u0, u1, u2, u3, _, _, _, flags, s0, s1, s2, s3, s4, s5, s6, s7, guid @ ..] = *entry;
    Entry {
        uid: u32::from_be_bytes([u0, u1, u2, u3]),
        expunged: flags & 1 != 0,
        archived: flags & 2 != 0,
        size: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        guid,
    }
}

/// Packs ascending UIDs into runs of (first, count).
pub fn runs(uids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut runs: Vec<u32> = Vec::new();
    for uid in uids {
        match runs.as_mut_slice() {
            [.., first, count] if first.checked_add(*count) == Some(uid) => *count += 1,
            _ => runs.extend([uid, 1]),
        }
    }
    runs
}

/// Runs of (first, count) as inclusive ranges, in any order. They are never counted
/// out: eight bytes of a peer may stand for four billion UIDs. What goes beyond the
/// largest UID is left out.
pub fn ranges(runs: &[u32]) -> Vec<(u32, u32)> {
    let ranges = runs.as_chunks::<2>().0.iter();
    ranges
        .filter_map(|&[first, count]| Some((first, first.saturating_add(count.checked_sub(1)?))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were() {
        let all = [
            Entry { uid: 1, expunged: false, archived: true, size: 77, guid: [9; 20] },
            Entry { uid: u32::MAX, expunged: true, archived: false, size: 1 << 40, guid: [0; 20] },
        ];
        let mut out = BytesMut::new();
        all.iter().for_each(|e| e.encode(&mut out));
        assert_eq!(entries(&out).unwrap().collect::<Vec<_>>(), all);
        assert!(entries(&out[1..]).is_none());
    }

    #[test]
    fn runs_pack_and_unpack() {
        let list = [1, 2, 3, 7, 9, 10, u32::MAX];
        assert_eq!(runs(list), [1, 3, 7, 1, 9, 2, u32::MAX, 1]);
        assert_eq!(ranges(&runs(list)), [(1, 3), (7, 7), (9, 10), (u32::MAX, u32::MAX)]);
        assert_eq!(
            ranges(&[u32::MAX, 5, 4, 0, 2, u32::MAX, 7]),
            [(u32::MAX, u32::MAX), (2, u32::MAX)]
        );
    }
}
