//! stub

/// How 3.6 and later spell the owner of a mailbox in keys.
pub const OWNER: &[u8] = b"[.OwNeR.]";

/// key
pub fn key(scope: &[u8], entry: &[u8], userid: &[u8]) -> Option<Vec<u8>> {
    Some([scope, b"\0", entry, b"\0", userid, b"\0"].concat())
}

/// split
pub fn split(key: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let key = key.strip_suffix(b"\0").unwrap_or(key);
    let mut parts = key.splitn(3, |b| *b == 0);
    Some((parts.next()?, parts.next()?, parts.next()?))
}
