//! Changes a record of mailboxes.db without touching what it does not understand.

use super::mbtype::Flag;
use super::{RecordError, text};
use crate::cyrus::dlist::Dlist;
use crate::cyrus::name::PartitionName;

/// What to do with the name of the server in a record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServerEdit {
    /// Leave it.
    #[default]
    Keep,
    /// Set it.
    Set(String),
    /// Take it out.
    Remove,
}

/// Changes to a record; the same change fits the `N` and the `I` record of a mailbox.
///
/// Everything else stays as it is, byte by byte: unknown fields, their order, the
/// history, `M`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RecordEdit {
    /// Another partition.
    pub partition: Option<PartitionName>,
    /// The server.
    pub server: ServerEdit,
    /// Flags to set.
    pub add: Vec<Flag>,
    /// Flags to clear; what is also in `add` is set.
    pub remove: Vec<Flag>,
    /// Counters that are put in where the record has none, or 0.
    pub fill: Counters,
}

/// The counters of a record; 0 for one that is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// MODSEQ of the mailbox's creation.
    pub createdmodseq: u64,
    /// MODSEQ of its last change as a folder.
    pub foldermodseq: u64,
}

impl Counters {
    fn into_list(self, list: &mut Dlist) {
        let counters: [(&[u8], u64); 3] = [
            (b"V", self.uidvalidity.into()),
            (b"C", self.createdmodseq),
            (b"F", self.foldermodseq),
        ];
        for (key, value) in counters {
            let now = list.get(key).and_then(Dlist::as_u64).unwrap_or_default();
            if now == 0 && value > 0 {
                let value = Dlist::string(value.to_string().as_bytes());
                list.set(key, value, &[b"A", b"I", b"P", b"S", b"T", b"V", b"C"]);
            }
        }
    }
}

impl RecordEdit {
    /// Applies the changes to a record's value in any version's format.
    ///
    /// Fails if the record does not parse, or a text record cannot hold the change.
    pub fn apply(&self, value: &[u8]) -> Result<Vec<u8>, RecordError> {
        if value.starts_with(b"%") { self.apply_dlist(value) } else { self.apply_text(value) }
    }

    fn apply_dlist(&self, value: &[u8]) -> Result<Vec<u8>, RecordError> {
        let mut list = Dlist::parse(value)?;
        if let Some(partition) = &self.partition {
            let value = Dlist::string(partition.as_str().as_bytes());
            list.set(b"P", value, &[b"I", b"N"]);
        }
        match &self.server {
            ServerEdit::Keep => {}
            ServerEdit::Set(server) => {
                let value = Dlist::string(server.as_bytes());
                list.set(b"S", value, &[b"I", b"N", b"P"]);
            }
            ServerEdit::Remove => list.remove(b"S"),
        }
        if !self.add.is_empty() || !self.remove.is_empty() {
            let old = list.get(b"T").and_then(Dlist::as_bytes).unwrap_or_default();
            let new = self.letters(old);
            if new.is_empty() {
                list.remove(b"T");
            } else if new != old {
                list.set(b"T", Dlist::string(&new), &[b"A", b"I", b"P", b"S"]);
            }
        }
        self.fill.into_list(&mut list);
        Ok(list.to_bytes())
    }

    /// Kind first, then flags in Cyrus's order; unknown letters keep their place
    /// between the two.
    fn letters(&self, old: &[u8]) -> Vec<u8> {
        let flag = |c: u8| Flag::ALL.into_iter().find(|f| f.letter() == c);
        let mut flags: Vec<Flag> = old.iter().filter_map(|&c| flag(c)).collect();
        flags.retain(|f| !self.remove.contains(f));
        flags.extend(&self.add);
        flags.sort_unstable();
        flags.dedup();
        let mut new: Vec<u8> = old.iter().copied().filter(|&c| flag(c).is_none()).collect();
        new.extend(flags.into_iter().map(Flag::letter));
        new
    }

    fn apply_text(&self, value: &[u8]) -> Result<Vec<u8>, RecordError> {
        let record = text::Record::parse(value)?;
        let mut bits = record.bits;
        for (flags, set) in [(&self.remove, false), (&self.add, true)] {
            for flag in flags {
                match flag.bit() {
                    Some(bit) if set => bits |= bit,
                    Some(bit) => bits &= !bit,
                    None if set => {
                        return Err(RecordError::Text {
                            offset: 0,
                            reason: "a text record cannot hold this flag",
                        });
                    }
                    None => {}
                }
            }
        }
        // Of a remote mailbox there may be the server alone, in the partition's place.
        let is_remote = |bits: u32| Flag::Remote.bit().is_some_and(|bit| bits & bit != 0);
        let (server, partition) = match record.server {
            None if is_remote(record.bits) => (Some(record.partition), None),
            server => (server, Some(record.partition)),
        };
        let server = match &self.server {
            ServerEdit::Keep => server.map(<[u8]>::to_vec),
            ServerEdit::Set(server) => Some(server.clone().into_bytes()),
            ServerEdit::Remove => None,
        };
        let partition = self.partition.as_ref().map(|p| p.as_str().as_bytes()).or(partition);
        let mut new = record.extension.to_vec();
        new.extend_from_slice(bits.to_string().as_bytes());
        new.push(b' ');
        let place = match (server, partition) {
            (Some(server), Some(partition)) => [&server[..], b"!", partition].concat(),
            (Some(server), None) if is_remote(bits) => server,
            (None, Some(partition)) if !is_remote(bits) => partition.to_vec(),
            _ => {
                return Err(RecordError::Text {
                    offset: 0,
                    reason: "a remote mailbox needs a server, any other one a partition",
                });
            }
        };
        // Cyrus's buffer for `host!partition` (`imap/mboxlist.h:MAX_PARTITION_LEN`).
        if place.is_empty() || place.len() >= 64 || place.contains(&b' ') {
            return Err(RecordError::Text {
                offset: 0,
                reason: "server and partition together need 1 to 63 bytes without spaces",
            });
        }
        new.extend_from_slice(&place);
        new.push(b' ');
        new.extend_from_slice(record.acl);
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn moving() -> RecordEdit {
        RecordEdit {
            server: ServerEdit::Set("bw2".into()),
            add: vec![Flag::Moving],
            ..Default::default()
        }
    }

    fn undo() -> RecordEdit {
        RecordEdit { server: ServerEdit::Remove, remove: vec![Flag::Moving], ..Default::default() }
    }

    #[test]
    fn counters_are_put_in_only_where_there_are_none() {
        let fill = Counters { uidvalidity: 7, createdmodseq: 0, foldermodseq: 9 };
        let edit = RecordEdit { fill, ..Default::default() };
        let made = edit.apply(b"%(A %(x lrs) I id P default T e M 5)").unwrap();
        assert_eq!(made, b"%(A %(x lrs) I id P default T e V 7 F 9 M 5)");
        let made = edit.apply(b"%(A %(x lrs) I id P default V 3 C 0 F 0)").unwrap();
        assert_eq!(made, b"%(A %(x lrs) I id P default V 3 C 0 F 9)");
    }

    #[test]
    fn retires_records_of_each_version_and_back() {
        for (old, new) in [
            ("0 default x\tlrs\t", "8 bw2!default x\tlrs\t"),
            (
                "(uniqueid 7a specialuse \\Sent) 0 default x\tlrs\t",
                "(uniqueid 7a specialuse \\Sent) 8 bw2!default x\tlrs\t",
            ),
            (
                "%(A %(x lrs) I 7a P default V 1 C 1 F 2 M 3)",
                "%(A %(x lrs) I 7a P default S bw2 T m V 1 C 1 F 2 M 3)",
            ),
            (
                "%(T el I 7a P default V 1 A %(x lrs))",
                "%(T eml I 7a P default S bw2 V 1 A %(x lrs))",
            ),
            (
                "%(T e N \"user\x1fx\" P default Y (new) A %() H (%(N a T e P b)))",
                "%(T em N \"user\x1fx\" P default S bw2 Y (new) A %() H (%(N a T e P b)))",
            ),
        ] {
            let changed = moving().apply(old.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&changed), new);
            let back = undo().apply(&changed).unwrap();
            assert_eq!(String::from_utf8_lossy(&back), old);
            let same = RecordEdit::default().apply(old.as_bytes()).unwrap();
            assert_eq!(String::from_utf8_lossy(&same), old);
        }
    }

    #[test]
    fn changes_partition_and_layout() {
        let edit = RecordEdit {
            partition: Some(PartitionName::new("two").unwrap()),
            remove: vec![Flag::LegacyDirs],
            ..Default::default()
        };
        let new = edit.apply(b"%(T cl I 7 P default V 1)").unwrap();
        assert_eq!(new, b"%(T c I 7 P two V 1)");
        assert_eq!(edit.apply(b"0 default a\tb\t").unwrap(), b"0 two a\tb\t");
    }

    // Found by fuzzing: the server's name became a partition's.
    #[test]
    fn a_remote_mailbox_may_have_a_server_alone() {
        let edited = |edit: RecordEdit, record: &[u8]| {
            edit.apply(record).map(|new| String::from_utf8(new).unwrap())
        };
        assert_eq!(edited(moving(), b"1 old.example a\tb\t").unwrap(), "9 bw2 a\tb\t");
        assert_eq!(edited(moving(), b"1 old.example!p a\tb\t").unwrap(), "9 bw2!p a\tb\t");
        let same = edited(RecordEdit::default(), b"1 old.example a\tb\t").unwrap();
        assert_eq!(same, "1 old.example a\tb\t");
        let here = RecordEdit { remove: vec![Flag::Remote], ..undo() };
        assert!(edited(here.clone(), b"1 old.example a\tb\t").is_err());
        assert_eq!(edited(here, b"1 old.example!p a\tb\t").unwrap(), "0 p a\tb\t");
        assert!(edited(undo(), b"1 old.example!p a\tb\t").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = moving().apply(&raw);
            let _ = undo().apply(&[b"%(T ", &raw[..], b")"].concat());
        }
    }
}
