//! CRC-32 as in zlib (polynomial edb88320), which Cyrus uses everywhere.

const fn table() -> [[u32; 256]; 8] {
    let mut table = [[0u32; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let mut c = n as u32;
        let mut bit = 0;
        while bit < 8 {
            c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
            bit += 1;
        }
        table[0][n] = c;
        n += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut n = 0;
        while n < 256 {
            let before = table[k - 1][n];
            table[k][n] = (before >> 8) ^ table[0][(before & 0xff) as usize];
            n += 1;
        }
        k += 1;
    }
    table
}

static TABLE: [[u32; 256]; 8] = table();

fn step(slice: usize, byte: u32) -> u32 {
    // Both indexes are in range: eight slices, a byte masked to 256 values.
    TABLE.get(slice).and_then(|t| t.get((byte & 0xff) as usize)).copied().unwrap_or(0)
}

/// CRC-32 of `bytes`, eight at a time: a server's mailboxes.db may have 200 MB.
pub fn crc32(bytes: &[u8]) -> u32 {
    let mut c = !0u32;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for &[a, b, d, e, f, g, h, i] in chunks {
        let low = c ^ u32::from_le_bytes([a, b, d, e]);
        let high = u32::from_le_bytes([f, g, h, i]);
        c = step(7, low)
            ^ step(6, low >> 8)
            ^ step(5, low >> 16)
            ^ step(4, low >> 24)
            ^ step(3, high)
            ^ step(2, high >> 8)
            ^ step(1, high >> 16)
            ^ step(0, high >> 24);
    }
    for &byte in rest {
        c = step(0, c ^ u32::from(byte)) ^ (c >> 8);
    }
    !c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(crc32(b""), 0);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let text = b"The quick brown fox jumps over the lazy dog";
        assert_eq!(crc32(text), 0x414f_a339);
    }
}
