//! cyrus.header: a mailbox's identity and the names of its keywords.
//!
//! Three lines of magic in all versions, then up to 3.4 three lines of text, from 3.6
//! on one line of dlist; 3.6 still reads the text.  Always replaced by a rename:
//! read it after taking the index's lock (2.4 and later) or its own (before).

use super::dlist::{Dlist, Scalar};
use super::index::MAX_USER_FLAGS;
use super::mboxlist::Acl;

/// What every cyrus.header begins with (`imap/mailbox.h:MAILBOX_HEADER_MAGIC`).
pub const MAGIC: &[u8] = b"\xa1\x02\x8b\x0dCyrus mailbox header\n\
\"The best thing about this system was that it had lots of goals.\"\n\
\t--Jim Morris on Andrew\n";

/// Where and why a cyrus.header does not parse.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("bad cyrus.header at offset {offset}: {reason}")]
pub struct HeaderError {
    /// Byte offset.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

type Result<T> = std::result::Result<T, HeaderError>;

/// How a cyrus.header is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HeaderForm {
    /// Three lines, up to 3.4.
    #[default]
    Text,
    /// One dlist, from 3.6 on.
    Dlist,
}

/// What a cyrus.header says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MailboxHeader {
    /// How it was written.
    pub form: HeaderForm,
    /// Internal name of the mailbox; from 3.6 on.
    pub name: Option<Vec<u8>>,
    /// Unique id; only headers from before 2.0 lack it.
    pub uniqueid: Option<Vec<u8>>,
    /// Quota root that the mailbox is under.
    pub quota_root: Option<Vec<u8>>,
    /// Type letters as in mailboxes.db; from 3.6 on.
    pub mbtype: Option<Vec<u8>>,
    /// Names of keywords; the index is the number of the flag, `None` is a number
    /// that is not in use.  At most [`MAX_USER_FLAGS`], the last one is in use.
    pub user_flags: Vec<Option<Vec<u8>>>,
    /// A copy of the access rights; mailboxes.db is what counts.
    pub acl: Option<Acl>,
}

impl MailboxHeader {
    /// Parses a cyrus.header of any version.
    ///
    /// Fails if the magic is wrong, or a line does not end.  Bytes behind the last
    /// line are ignored, and so is a missing third line of the text form, as before
    /// 2.0 (`imap/mailbox.c:mailbox_read_header`).
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(body) = bytes.strip_prefix(MAGIC) else {
            let same = bytes.iter().zip(MAGIC).take_while(|(a, b)| a == b).count();
            return fail(same, "the file does not begin as a mailbox header");
        };
        if body.first() == Some(&b'%') {
            return Self::parse_dlist(body);
        }
        let (first, rest) = line(body, MAGIC.len(), "the line of the quota root does not end")?;
        let offset = MAGIC.len() + first.len() + 1;
        let (second, rest) = line(rest, offset, "the line of the flags does not end")?;
        let mut words = first.split(|&c| c == b'\t');
        let quota_root = words.next().filter(|root| !root.is_empty());
        let uniqueid = words.next();
        if uniqueid.is_some_and(<[u8]>::is_empty) {
            return fail(offset - 1, "the unique id is empty");
        }
        let flags = second.split(|&c| c == b' ').take(MAX_USER_FLAGS);
        let flags = flags.map(|name| (!name.is_empty()).then(|| name.to_vec()));
        let acl = rest.iter().position(|&c| c == b'\n').and_then(|end| rest.get(..end));
        Ok(Self {
            form: HeaderForm::Text,
            name: None,
            uniqueid: uniqueid.map(<[u8]>::to_vec),
            quota_root: quota_root.map(<[u8]>::to_vec),
            mbtype: None,
            user_flags: without_unused_end(flags.collect()),
            acl: acl.map(Acl::from_text),
        })
    }

    /// `imap/mailbox.c:_parse_header_data` (3.6.1).
    fn parse_dlist(body: &[u8]) -> Result<Self> {
        let (list, end) = Dlist::parse_prefix(body).map_err(|error| HeaderError {
            offset: MAGIC.len() + error.offset,
            reason: error.reason,
        })?;
        if !matches!(body.get(end), Some(b'\n' | b'\r')) {
            return fail(MAGIC.len() + end, "the line does not end");
        }
        let text = |key: &[u8]| list.get(key)?.as_bytes().map(<[u8]>::to_vec);
        let flags = list.get(b"U").and_then(Dlist::as_list).unwrap_or_default();
        let flags = flags.iter().take(MAX_USER_FLAGS);
        let acl = list.get(b"A").and_then(Dlist::as_kv).map(|pairs| {
            let pairs = pairs.iter().filter_map(|(id, rights)| {
                Some((id.as_bytes().to_vec(), rights.as_bytes()?.to_vec()))
            });
            Acl(pairs.collect())
        });
        Ok(Self {
            form: HeaderForm::Dlist,
            name: text(b"N"),
            uniqueid: text(b"I"),
            quota_root: text(b"Q"),
            mbtype: text(b"T"),
            user_flags: without_unused_end(
                flags.map(|flag| flag.as_bytes().map(<[u8]>::to_vec)).collect(),
            ),
            acl,
        })
    }

    /// The name of a keyword by its number, as in a record's `user_flags`.
    pub fn user_flag(&self, number: usize) -> Option<&[u8]> {
        self.user_flags.get(number)?.as_deref()
    }

    /// The file's bytes in the form that `form` says, as Cyrus writes them
    /// (`imap/mailbox.c:mailbox_commit_header`, 3.4 and 3.6.1).
    ///
    /// The text form has no name and no type.  Where the dlist form wants a value
    /// that is not there it writes NIL, and such a file is not fit for use.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        match self.form {
            HeaderForm::Text => self.write_text(&mut out),
            HeaderForm::Dlist => {
                out.extend(self.to_dlist().to_bytes());
                out.push(b'\n');
            }
        }
        out
    }

    fn write_text(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.quota_root.as_deref().unwrap_or_default());
        if let Some(id) = &self.uniqueid {
            out.push(b'\t');
            out.extend_from_slice(id);
        }
        out.push(b'\n');
        for flag in &self.user_flags {
            out.extend_from_slice(flag.as_deref().unwrap_or_default());
            out.push(b' ');
        }
        out.push(b'\n');
        if let Some(acl) = &self.acl {
            out.extend(acl.to_text());
            out.push(b'\n');
        }
    }

    fn to_dlist(&self) -> Dlist {
        let value = |text: &Option<Vec<u8>>| text.as_deref().map_or(Dlist::Nil, Dlist::string);
        let mut pairs = vec![
            (Scalar::new(b"T"), value(&self.mbtype)),
            (Scalar::new(b"N"), value(&self.name)),
            (Scalar::new(b"I"), value(&self.uniqueid)),
        ];
        if self.quota_root.is_some() {
            pairs.push((Scalar::new(b"Q"), value(&self.quota_root)));
        }
        if let Some(acl) = &self.acl {
            let entries = acl.0.iter();
            let entries = entries.map(|(id, rights)| (Scalar::new(id), Dlist::string(rights)));
            pairs.push((Scalar::new(b"A"), Dlist::Kv(entries.collect())));
        }
        if !self.user_flags.is_empty() {
            let flags = self.user_flags.iter().map(value).collect();
            pairs.push((Scalar::new(b"U"), Dlist::List(flags)));
        }
        Dlist::Kv(pairs)
    }
}

fn fail<T>(offset: usize, reason: &'static str) -> Result<T> {
    Err(HeaderError { offset, reason })
}

/// A line without its end, and what follows.
fn line<'a>(bytes: &'a [u8], offset: usize, reason: &'static str) -> Result<(&'a [u8], &'a [u8])> {
    let end = bytes.iter().position(|&c| c == b'\n');
    let split = end.and_then(|end| bytes.split_at_checked(end));
    match split {
        Some((line, rest)) => Ok((line, rest.get(1..).unwrap_or_default())),
        None => fail(offset + bytes.len(), reason),
    }
}

fn without_unused_end(mut flags: Vec<Option<Vec<u8>>>) -> Vec<Option<Vec<u8>>> {
    let used = flags.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    flags.truncate(used);
    flags
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn file(body: &[u8]) -> Vec<u8> {
        [MAGIC, body].concat()
    }

    fn names(header: &MailboxHeader) -> Vec<&str> {
        let names = header.user_flags.iter();
        names.map(|n| n.as_ref().map_or("-", |n| std::str::from_utf8(n).unwrap())).collect()
    }

    #[test]
    fn text_form() {
        let raw = file(b"user.x\t70c03a6b044298\n$MDNSent  NonJunk \nother\tlrs\tx\tl\t\n");
        let header = MailboxHeader::parse(&raw).unwrap();
        assert_eq!(header.quota_root.as_deref(), Some(&b"user.x"[..]));
        assert_eq!(header.uniqueid.as_deref(), Some(&b"70c03a6b044298"[..]));
        assert_eq!(names(&header), ["$MDNSent", "-", "NonJunk"]);
        assert_eq!(header.user_flag(2), Some(&b"NonJunk"[..]));
        assert_eq!((header.user_flag(1), header.user_flag(9)), (None, None));
        assert_eq!(header.acl.as_ref().unwrap().0.len(), 2);
        assert_eq!(header.to_bytes(), raw);

        let ancient = MailboxHeader::parse(&file(b"user.x\nA B\n")).unwrap();
        assert_eq!((ancient.uniqueid, ancient.acl), (None, None));
        let extra = MailboxHeader::parse(&file(b"\tid\tmore\n\n\n")).unwrap();
        assert_eq!((extra.quota_root, extra.uniqueid), (None, Some(b"id".to_vec())));
        assert!(extra.user_flags.is_empty());
    }

    #[test]
    fn dlist_form() {
        let raw = file(b"%(T e N user.x I 87a80841-b747 Q user.x A %(x lrs) U (A NIL $B))\n");
        let header = MailboxHeader::parse(&raw).unwrap();
        assert_eq!(header.name.as_deref(), Some(&b"user.x"[..]));
        assert_eq!(header.mbtype.as_deref(), Some(&b"e"[..]));
        assert_eq!(names(&header), ["A", "-", "$B"]);
        assert_eq!(header.acl.as_ref().unwrap().to_text(), b"x\tlrs\t");
        assert_eq!(header.to_bytes(), raw);

        // As 3.6.1 wrote it.
        let real = file(
            b"%(T e N user.fmt1.Drafts I 34fxe7jv7y4yucjzd48zdqry Q user.fmt1 \
              A %(fmt1 lrswipkxtecdan) U (NonJunk Junk projekt-x $MDNSent))\n",
        );
        let header = MailboxHeader::parse(&real).unwrap();
        assert_eq!(names(&header), ["NonJunk", "Junk", "projekt-x", "$MDNSent"]);
        assert_eq!(header.to_bytes(), real);
    }

    #[test]
    fn no_more_flags_than_an_index_has_bits_for() {
        let text = file(&[&b"\tid\n"[..], &b"F ".repeat(200), b"\n\n"].concat());
        assert_eq!(MailboxHeader::parse(&text).unwrap().user_flags.len(), 128);
        let dlist = file(&[&b"%(U (F"[..], &b" F".repeat(200), b"))\n"].concat());
        assert_eq!(MailboxHeader::parse(&dlist).unwrap().user_flags.len(), 128);
    }

    #[test]
    fn errors_say_where() {
        let base = MAGIC.len();
        for (body, offset) in [
            (&b""[..], base),
            (b"abc", base + 3),
            (b"a\tid\nflags", base + 10),
            (b"a\t\n\n\n", base + 2),
            (b"%(T", base + 3),
            (b"%(T e)", base + 6),
            (b"%(T e) x\n", base + 6),
        ] {
            assert_eq!(MailboxHeader::parse(&file(body)).unwrap_err().offset, offset, "{body:?}");
        }
        assert_eq!(MailboxHeader::parse(b"\xa1\x02x").unwrap_err().offset, 2);
    }

    fn any_header() -> impl Strategy<Value = MailboxHeader> {
        let word = "[!-$&-~]{1,9}".prop_map(String::into_bytes);
        let id = "[a-z0-9]{1,9}".prop_map(String::into_bytes);
        let root = proptest::option::of(word.clone());
        let flags = proptest::collection::vec(proptest::option::of(word.clone()), 0..9);
        let acl = proptest::collection::vec((word.clone(), word), 0..3);
        (root, id, flags, acl, any::<bool>()).prop_map(|(root, id, flags, acl, text)| {
            let form = if text { HeaderForm::Text } else { HeaderForm::Dlist };
            MailboxHeader {
                form,
                name: (!text).then(|| id.clone()),
                uniqueid: Some(id),
                quota_root: root,
                mbtype: (!text).then(|| b"e".to_vec()),
                user_flags: without_unused_end(flags),
                acl: Some(Acl(acl)),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(header in any_header()) {
            let raw = header.to_bytes();
            let back = MailboxHeader::parse(&raw).unwrap();
            prop_assert_eq!(back.to_bytes(), raw);
            prop_assert_eq!(back, header);
        }

        #[test]
        fn never_panics(body in "[%( )ATUQNI\t\na{}0-9\"]{0,60}", cut in 0..200usize) {
            let raw = file(body.as_bytes());
            let _ = MailboxHeader::parse(&raw);
            let _ = MailboxHeader::parse(&raw[..cut.min(raw.len())]);
        }
    }
}
