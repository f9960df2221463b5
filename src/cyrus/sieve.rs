//! A sieve script as 3.6 and later keep it: a message of a mailbox of its own, whose
//! subject is the script's name (`imap/sieve_db.c:sieve_script_store`).

use super::release::Release;

/// An extension that a script requires and a release does not know: from 3.8 on
/// `imapflags`, the draft before `imap4flags` (`sieve/interp.c`).  Such a script that is
/// a file becomes no message, and no client is shown it (`imap/sieve_db.c:migrate_cb`).
pub fn unknown_extension(script: &[u8], release: &Release) -> Option<&'static str> {
    const OLD: &[u8] = b"\"imapflags\"";
    let required = || script.windows(OLD.len()).any(|word| word.eq_ignore_ascii_case(OLD));
    (release.since >= (3, 8) && required()).then_some("imapflags")
}

/// Name and text of a script's message; `None` if it is not told plainly.
pub fn script(message: &[u8]) -> Option<(String, &[u8])> {
    let end = message.windows(4).position(|window| window == b"\r\n\r\n")?;
    let (head, text) = (message.get(..end)?, message.get(end + 4..)?);
    let head = std::str::from_utf8(head).ok()?;
    let subject = head.lines().find_map(|line| line.strip_prefix("Subject: "))?;
    let next = head.split("Subject: ").nth(1)?.lines().nth(1).unwrap_or_default();
    let folded = next.starts_with([' ', '\t']);
    let plain = !subject.is_empty() && !subject.contains("=?") && !subject.contains('/');
    (plain && !folded).then(|| (subject.to_owned(), text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_release_knows_no_more_is_named() {
        let old = b"require [\"fileinto\", \"ImapFlags\"];";
        assert_eq!(unknown_extension(old, Release::of((3, 6))), None);
        assert_eq!(unknown_extension(old, Release::of((3, 8))), Some("imapflags"));
        assert_eq!(unknown_extension(b"require \"imap4flags\";", Release::of((3, 12))), None);
    }

    #[test]
    fn a_script_is_read_from_its_message() {
        let message = b"From: a\r\nSubject: my rules\r\nX: y\r\n\r\nkeep;\r\n\r\nstop;";
        let (name, text) = script(message).unwrap();
        assert_eq!((name.as_str(), text), ("my rules", &b"keep;\r\n\r\nstop;"[..]));
        for odd in [
            &b"Subject: a"[..],
            b"Subject: =?utf-8?q?x?=\r\n\r\nkeep;",
            b"Subject: a\r\n b\r\n\r\nkeep;",
            b"Subject: ../a\r\n\r\nkeep;",
            b"X: y\r\n\r\nSubject: a\r\n",
            b"\xff\r\n\r\n",
        ] {
            assert!(script(odd).is_none(), "{odd:?}");
        }
    }
}
