//! Right checksums for wrong files: chance never meets them, and behind them lies most
//! of what a parser does.

fn crc32(bytes: &[u8]) -> [u8; 4] {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum().to_be_bytes()
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?) as usize)
}

fn long(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?)).ok()
}

/// Puts the checksum of what comes before into the last four bytes.
fn seal(bytes: &mut [u8]) {
    if let Some((rest, place)) = bytes.split_last_chunk_mut::<4>() {
        *place = crc32(rest);
    }
}

/// An index whose header and records have right checksums, if its version has any.
pub fn index(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let sizes = || Some((word(bytes, 8)?, word(bytes, 12)?, word(bytes, 16)?));
    if let Some((minor, header, record)) = sizes()
        && minor >= 12
        && let Some((header, records)) = out.split_at_mut_checked(header)
    {
        seal(header);
        records.chunks_exact_mut(record.max(1)).for_each(seal);
    }
    out
}

/// A twoskip file whose header and records have right checksums.
pub fn twoskip(bytes: &[u8]) -> Vec<u8> {
    let mut out = bytes.to_vec();
    if let Some(header) = out.get_mut(..64) {
        seal(header);
    }
    let mut at = 64;
    while let Some(next) = seal_record(&mut out, at) {
        at = next;
    }
    out
}

/// Seals the record at an offset; where the next one may be.
fn seal_record(out: &mut [u8], at: usize) -> Option<usize> {
    let level = usize::from(*out.get(at + 1)?);
    let mut head = at + 8;
    let mut key = usize::from(u16::from_be_bytes(*out.get(at + 2..)?.first_chunk()?));
    if key == 0xffff {
        key = long(out, head)?;
        head += 8;
    }
    let mut value = word(out, at + 4)?;
    if value == 0xffff_ffff {
        value = long(out, head)?;
        head += 8;
    }
    head += 8 * (level + 1);
    let tail = key.checked_add(value)?.checked_next_multiple_of(8)?;
    let end = (head + 8).checked_add(tail)?;
    let sums = [crc32(out.get(at..head)?), crc32(out.get(head + 8..end)?)].concat();
    out.get_mut(head..head + 8)?.copy_from_slice(&sums);
    Some(end)
}
