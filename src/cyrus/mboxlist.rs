//! mailboxes.db: which mailboxes there are.
//!
//! | written by | key | value |
//! |---|---|---|
//! | up to 2.4 | internal name | text `type partition acl` |
//! | 2.5 to 3.4 | internal name | dlist `%(A %(acl) I id P partition [S server] [T type] V .. C .. F .. M ..)` |
//! | 3.6 and later | `N` and database name, `I` and uniqueid | dlist `%(T .. I or N .. P .. A .. [H history])` |
//!
//! Other keys are Cyrus's own lists (`$RUNQ`, `$RACL` up to 3.4, `A...` later).  A server
//! converts the file as a whole at its first start, so the styles do not mix, but
//! values do: 2.5 leaves text records until they change.

pub mod edit;
pub mod mbtype;
mod text;

use bytes::Bytes;

use super::db::{Database, DbError};
use super::dlist::{Dlist, DlistError};
use super::name::{MailboxName, NameError, PartitionName, UniqueId};
use mbtype::{Flag, Mbtype};

/// Why a record of mailboxes.db does not parse.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum RecordError {
    /// A text record is wrong.
    #[error("bad text record at offset {offset}: {reason}")]
    Text {
        /// Byte offset in the value.
        offset: usize,
        /// What is wrong there.
        reason: &'static str,
    },
    /// A dlist record is wrong.
    #[error(transparent)]
    Dlist(#[from] DlistError),
    /// A field has a value that it cannot have.
    #[error("the field {field} has a wrong value")]
    Field {
        /// Its key.
        field: char,
    },
    /// The name, id or partition is no such thing.
    #[error("the {what} is not valid: {reason}")]
    Name {
        /// Which of them.
        what: &'static str,
        /// Why.
        reason: NameError,
    },
}

/// Why the list cannot be read.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum MboxlistError {
    /// The database.
    #[error(transparent)]
    Db(#[from] DbError),
    /// One record.
    #[error("the record '{key}' of mailboxes.db is not understood: {reason}")]
    Record {
        /// Its key, for people.
        key: String,
        /// Why.
        reason: RecordError,
    },
}

/// An access control list: who and what rights, in the order of the record.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Acl(pub Vec<(Vec<u8>, Vec<u8>)>);

impl Acl {
    /// Reads `id TAB rights TAB ...`; an id without rights has none.
    pub fn from_text(text: &[u8]) -> Self {
        let mut fields = text.split(|&c| c == b'\t');
        let mut entries = Vec::new();
        while let Some(id) = fields.next().filter(|id| !id.is_empty()) {
            let rights = fields.next().unwrap_or_default();
            entries.push((id.to_vec(), rights.to_vec()));
        }
        Self(entries)
    }

    /// Writes `id TAB rights TAB ...`.
    pub fn to_text(&self) -> Vec<u8> {
        let entries = self.0.iter();
        entries.flat_map(|(id, rights)| [id, &b"\t"[..], rights, b"\t"].concat()).collect()
    }

    /// The rights of an id, as they are listed.
    pub fn rights(&self, id: &[u8]) -> Option<&[u8]> {
        let found = self.0.iter().find(|(listed, _)| listed == id);
        found.map(|(_, rights)| rights.as_slice())
    }
}

/// One mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailboxEntry {
    /// Its name.
    pub name: MailboxName,
    /// Its type.
    pub mbtype: Mbtype,
    /// Its uniqueid; up to 2.4 it is in cyrus.header only.
    pub uniqueid: Option<UniqueId>,
    /// Its partition; a tombstone or a remote mailbox may have none.
    pub partition: Option<PartitionName>,
    /// The server that has it or will have it, if not this one.
    pub server: Option<String>,
    /// UIDVALIDITY, 0 if the record has none (up to 2.4).
    pub uidvalidity: u32,
    /// MODSEQ of its creation, 0 if the record has none (up to 2.5).
    pub createdmodseq: u64,
    /// MODSEQ of its last change as a folder, 0 if the record has none (up to 2.5).
    pub foldermodseq: u64,
    /// Time of the record's last change, seconds since the epoch, 0 if none.
    pub mtime: u64,
    /// Who may do what.
    pub acl: Acl,
    /// The record's key, as in the file.
    pub key: Bytes,
    /// The record's value, as in the file.
    pub raw: Bytes,
}

impl MailboxEntry {
    /// Parses a value, of any version, of the mailbox `name`.
    pub fn parse(name: MailboxName, key: Bytes, raw: Bytes) -> Result<Self, RecordError> {
        let mut entry = Self {
            name,
            mbtype: Mbtype::default(),
            uniqueid: None,
            partition: None,
            server: None,
            uidvalidity: 0,
            createdmodseq: 0,
            foldermodseq: 0,
            mtime: 0,
            acl: Acl::default(),
            key,
            raw: raw.clone(),
        };
        if raw.starts_with(b"%") {
            entry.fill_from_dlist(&Dlist::parse(&raw)?)?;
        } else {
            entry.fill_from_text(&text::Record::parse(&raw)?)?;
        }
        Ok(entry)
    }

    fn fill_from_text(&mut self, record: &text::Record<'_>) -> Result<(), RecordError> {
        self.mbtype = Mbtype::from_bits(record.bits);
        self.uniqueid = record.uniqueid().map(unique_id).transpose()?;
        self.server = record.server.map(lossy);
        if record.server.is_none() && self.mbtype.has(Flag::Remote) {
            self.server = Some(lossy(record.partition));
        } else {
            self.partition = partition(record.partition)?;
        }
        self.acl = Acl::from_text(record.acl);
        Ok(())
    }

    fn fill_from_dlist(&mut self, list: &Dlist) -> Result<(), RecordError> {
        let pairs = list.as_kv().ok_or(RecordError::Field { field: '%' })?;
        for (key, value) in pairs {
            let &[key] = key.as_bytes() else { continue };
            let field = char::from(key);
            let bytes = || value.as_bytes().ok_or(RecordError::Field { field });
            let number = || value.as_u64().ok_or(RecordError::Field { field });
            match (key, value) {
                (_, Dlist::Nil) => {}
                (b'T', _) => self.mbtype = Mbtype::from_letters(bytes()?),
                (b'I', _) => self.uniqueid = Some(unique_id(bytes()?)?),
                (b'P', _) => self.partition = partition(bytes()?)?,
                (b'S', _) => self.server = Some(lossy(bytes()?)),
                (b'V', _) => {
                    let value = u32::try_from(number()?);
                    self.uidvalidity = value.map_err(|_| RecordError::Field { field })?;
                }
                (b'C', _) => self.createdmodseq = number()?,
                (b'F', _) => self.foldermodseq = number()?,
                (b'M', _) => self.mtime = number()?,
                (b'A', Dlist::Kv(pairs)) => {
                    self.acl.0.clear();
                    for (id, rights) in pairs {
                        let rights = rights.as_bytes().unwrap_or_default();
                        self.acl.0.push((id.as_bytes().to_vec(), rights.to_vec()));
                    }
                }
                (b'A', _) => return Err(RecordError::Field { field }),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the record is a tombstone.
    pub fn is_deleted(&self) -> bool {
        self.mbtype.has(Flag::Deleted)
    }
}

fn unique_id(id: &[u8]) -> Result<UniqueId, RecordError> {
    let what = "uniqueid";
    UniqueId::new(id).map_err(|reason| RecordError::Name { what, reason })
}

fn partition(name: &[u8]) -> Result<Option<PartitionName>, RecordError> {
    let what = "partition";
    if name.is_empty() {
        return Ok(None);
    }
    let name = PartitionName::new(&lossy(name));
    name.map(Some).map_err(|reason| RecordError::Name { what, reason })
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How the keys of a mailboxes.db are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStyle {
    /// Up to 3.4: the internal name.
    Name,
    /// 3.6 and later: `N` and the database name, `I` and the uniqueid.
    Typed,
}

impl KeyStyle {
    /// Recognises the style; there is no version record.
    ///
    /// From 3.6 an `I` record names its mailbox in a field `N`, and an `N` key of a
    /// user has the separator 0x1f: no older file has either.  Cyrus itself
    /// (`imap/mboxlist.c:_check_rec_cb`) is misled by a shared mailbox `News`.
    pub fn recognise(db: &Database) -> Result<Self, DbError> {
        if !db.prefix_limited(b"Nuser\x1f", 1)?.is_empty()
            || !db.prefix_limited(b"AS\x1e", 1)?.is_empty()
        {
            return Ok(Self::Typed);
        }
        for (_, value) in db.prefix_limited(b"I", 1)? {
            let list = Dlist::parse(&value);
            if list.is_ok_and(|list| list.get(b"N").is_some()) {
                return Ok(Self::Typed);
            }
        }
        Ok(Self::Name)
    }

    /// The key of a mailbox's record.
    pub fn key(self, name: &MailboxName) -> Vec<u8> {
        match self {
            Self::Name => name.as_bytes().to_vec(),
            Self::Typed => [b"N", name.to_db_key().as_slice()].concat(),
        }
    }

    /// Reads a record; none if it is of Cyrus's own lists.
    pub fn read(self, key: Bytes, value: Bytes) -> Option<Result<MailboxEntry, RecordError>> {
        let what = "name";
        let name = self.name(&key)?.map_err(|reason| RecordError::Name { what, reason });
        Some(name.and_then(|name| MailboxEntry::parse(name, key, value)))
    }

    fn separator(self) -> u8 {
        match self {
            Self::Name => b'.',
            Self::Typed => 0x1f,
        }
    }

    /// The name in a key; none if the key is of Cyrus's own lists.
    fn name(self, key: &[u8]) -> Option<Result<MailboxName, NameError>> {
        match self {
            Self::Name if key.starts_with(b"$") || key.is_empty() => None,
            Self::Name => Some(MailboxName::from_internal(key)),
            Self::Typed => Some(MailboxName::from_db_key(key.strip_prefix(b"N")?)),
        }
    }
}

/// The mailboxes of a server.
#[derive(Debug, Clone)]
pub struct MailboxList<'a> {
    db: &'a Database,
    style: KeyStyle,
}

impl<'a> MailboxList<'a> {
    /// Recognises the style of the keys.
    pub fn from_database(db: &'a Database) -> Result<Self, MboxlistError> {
        let style = KeyStyle::recognise(db)?;
        Ok(Self { db, style })
    }

    /// How the keys are made.
    pub fn style(&self) -> KeyStyle {
        self.style
    }

    /// One mailbox by name, tombstones too.
    pub fn get(&self, name: &MailboxName) -> Result<Option<MailboxEntry>, MboxlistError> {
        let key = self.style.key(name);
        let Some(value) = self.db.get(&key)? else {
            return Ok(None);
        };
        self.entry(key.into(), value)
    }

    /// The raw `I` record of a uniqueid: its key and value (3.6 and later).
    pub fn id_record(&self, id: &UniqueId) -> Result<Option<(Bytes, Bytes)>, MboxlistError> {
        if self.style != KeyStyle::Typed {
            return Ok(None);
        }
        let key = Bytes::from(format!("I{id}"));
        let value = self.db.get(&key)?;
        Ok(value.map(|value| (key, value)))
    }

    /// The name in the `I` record of a uniqueid (3.6 and later).
    pub fn name_of_id(&self, id: &UniqueId) -> Result<Option<MailboxName>, MboxlistError> {
        let Some((key, value)) = self.id_record(id)? else {
            return Ok(None);
        };
        let list = Dlist::parse(&value).map_err(|e| bad_record(&key, e.into()))?;
        let Some(name) = list.get(b"N").and_then(Dlist::as_bytes) else {
            return Err(bad_record(&key, RecordError::Field { field: 'N' }));
        };
        let what = "name";
        let name = MailboxName::from_db_key(name);
        let name = name.map_err(|reason| bad_record(&key, RecordError::Name { what, reason }));
        name.map(Some)
    }

    /// Other mailboxes than `name` that have its uniqueid, too (3.6 and later): by the `I`
    /// record, which names the one that was written last, and those before it.
    pub fn sharers(
        &self,
        id: &UniqueId,
        name: &MailboxName,
    ) -> Result<Vec<MailboxName>, MboxlistError> {
        let Some((key, value)) = self.id_record(id)? else {
            return Ok(Vec::new());
        };
        let list = Dlist::parse(&value).map_err(|e| bad_record(&key, e.into()))?;
        let before = list.get(b"H").and_then(Dlist::as_list).unwrap_or_default();
        let names = before.iter().chain([&list]).filter_map(|entry| entry.get(b"N"));
        let mut sharers = Vec::new();
        for name_there in names.filter_map(Dlist::as_bytes) {
            let Ok(other) = MailboxName::from_db_key(name_there) else { continue };
            if other == *name || sharers.contains(&other) {
                continue;
            }
            // Whoever was renamed has left his name, or a tombstone.
            let entry = self.get(&other)?.filter(|entry| !entry.is_deleted());
            if entry.is_some_and(|entry| entry.uniqueid.as_ref() == Some(id)) {
                sharers.push(other);
            }
        }
        Ok(sharers)
    }

    /// All mailboxes, tombstones too.
    pub fn all(&self) -> Result<Vec<MailboxEntry>, MboxlistError> {
        self.parse_all(self.db.entries()?)
    }

    /// Tells each mailbox, tombstones too, in the order of the keys, and keeps none.
    pub fn each(&self, mut tell: impl FnMut(MailboxEntry)) -> Result<(), MboxlistError> {
        for (key, value) in self.db.entries()? {
            if let Some(entry) = self.entry(key, value)? {
                tell(entry);
            }
        }
        Ok(())
    }

    /// A mailbox and all below it, tombstones too.
    pub fn tree(&self, root: &MailboxName) -> Result<Vec<MailboxEntry>, MboxlistError> {
        let mut key = self.style.key(root);
        let mut found: Vec<_> = self.get(root)?.into_iter().collect();
        key.push(self.style.separator());
        found.extend(self.parse_all(self.db.prefix(&key)?)?);
        Ok(found)
    }

    /// What belongs to a user or a shared tree: the mailbox, all below it, and what
    /// was deleted of it and is kept below `deletedprefix`.  Tombstones too.
    pub fn owned(
        &self,
        root: &MailboxName,
        deletedprefix: &str,
    ) -> Result<Vec<MailboxEntry>, MboxlistError> {
        let mut found = self.tree(root)?;
        let mut deleted = root.domain().map_or_else(Vec::new, |d| [d, b"!"].concat());
        deleted.extend_from_slice(deletedprefix.as_bytes());
        deleted.push(b'.');
        deleted.extend_from_slice(root.without_domain());
        if let Ok(deleted) = MailboxName::from_internal(&deleted) {
            let below = self.tree(&deleted)?.into_iter();
            found.extend(below.filter(|e| e.name.deleted_original(deletedprefix).is_some()));
        }
        Ok(found)
    }

    fn parse_all(&self, all: Vec<(Bytes, Bytes)>) -> Result<Vec<MailboxEntry>, MboxlistError> {
        let entries = all.into_iter();
        entries.filter_map(|(key, value)| self.entry(key, value).transpose()).collect()
    }

    fn entry(&self, key: Bytes, value: Bytes) -> Result<Option<MailboxEntry>, MboxlistError> {
        let entry = self.style.read(key.clone(), value).transpose();
        entry.map_err(|reason| bad_record(&key, reason))
    }
}

fn bad_record(key: &[u8], reason: RecordError) -> MboxlistError {
    let key = key.escape_ascii().to_string();
    MboxlistError::Record { key, reason }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::mbtype::Kind;
    use super::*;
    use crate::cyrus::db::{Engine, twoskip};
    use proptest::prelude::*;

    fn name(text: &str) -> MailboxName {
        MailboxName::from_internal(text.as_bytes()).unwrap()
    }

    fn parse(value: &str) -> Result<MailboxEntry, RecordError> {
        MailboxEntry::parse(name("user.x"), Bytes::new(), Bytes::copy_from_slice(value.as_bytes()))
    }

    fn database(records: &[(&str, &str)]) -> Database {
        let mut records: Vec<_> =
            records.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        records.sort_unstable();
        Database::open(twoskip::tests::write(&records).into(), &Engine::Twoskip).unwrap()
    }

    fn names(entries: Vec<MailboxEntry>) -> Vec<String> {
        entries.iter().map(|e| String::from_utf8_lossy(e.name.as_bytes()).into_owned()).collect()
    }

    #[test]
    fn records_of_each_version() {
        let old = parse("0 default legacy\tlrswipkxtecda\tother\tlr\t").unwrap();
        assert_eq!(old.partition.unwrap().as_str(), "default");
        assert_eq!(old.acl.rights(b"other").unwrap(), b"lr");
        assert_eq!(old.acl.to_text(), b"legacy\tlrswipkxtecda\tother\tlr\t");
        let moving = parse("8 new.host!default x\tlrs\t").unwrap();
        assert!(moving.mbtype.has(Flag::Moving));
        assert_eq!(moving.server.unwrap(), "new.host");
        let remote = parse("1 new.host x\tlrs\t").unwrap();
        assert_eq!((remote.server.as_deref(), remote.partition), (Some("new.host"), None));
        let extended = parse("(uniqueid 7a2b specialuse x) 0 default ").unwrap();
        assert_eq!(extended.uniqueid.unwrap().as_str(), "7a2b");
        let list = parse("%(A %(x lrs y \"\") I 87a80841-b747 P default V 1795441886 C 1 F 2 M 3)");
        let list = list.unwrap();
        assert_eq!(
            (list.uidvalidity, list.createdmodseq, list.foldermodseq),
            (1_795_441_886, 1, 2)
        );
        assert_eq!((list.mtime, list.acl.0.len(), list.mbtype.kind), (3, 2, Kind::Email));
        let dead = parse("%(T fd I 7a V 1 A %())").unwrap();
        assert!(dead.is_deleted());
        assert_eq!((dead.mbtype.kind, dead.partition), (Kind::Sieve, None));
    }

    #[test]
    fn wrong_records_say_why() {
        for (value, text) in [
            ("", "bad text record at offset 0: the type is missing"),
            ("x default a", "bad text record at offset 0: the type is no number"),
            ("0  a", "bad text record at offset 2: the partition is missing"),
            ("%(V x)", "the field V has a wrong value"),
            ("%(V 4294967296)", "the field V has a wrong value"),
            (
                "%(I ../x)",
                "the uniqueid is not valid: byte 0x2e at offset 0 cannot be part of the name",
            ),
            ("%(I ab", "bad dlist at offset 6: the list does not end"),
        ] {
            assert_eq!(parse(value).unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn lists_up_to_3_4() {
        let value = "%(A %(x lrs) I 7a P default V 1)";
        let db = database(&[
            ("user.x", value),
            ("user.x.Sent", value),
            ("user.x y", value),
            ("user.xy", value),
            ("DELETED.user.x.5F3C1A2B", value),
            ("DELETED.user.x.Sent.5F3C1A2B", value),
            ("DELETED.user.xy.5F3C1A2B", value),
            ("$RUNQ", "1"),
            ("$RUNQ$7a$user.x", "1"),
            ("News", "0 default a\tl\t"),
            ("d.org!user.x", value),
        ]);
        let list = MailboxList::from_database(&db).unwrap();
        assert_eq!(list.style(), KeyStyle::Name);
        assert_eq!(list.all().unwrap().len(), 9);
        assert_eq!(
            names(list.owned(&name("user.x"), "DELETED").unwrap()),
            ["user.x", "user.x.Sent", "DELETED.user.x.5F3C1A2B", "DELETED.user.x.Sent.5F3C1A2B"]
        );
        assert_eq!(list.get(&name("user.z")).unwrap(), None);
    }

    #[test]
    fn lists_from_3_6() {
        let n = "%(T e I 7a P default V 1 A %(x lrs))";
        let i = "%(T e N user\x1fjoe.s P default V 1 A %(x lrs) H ())";
        let db = database(&[
            ("AS\x1e", "1"),
            ("I7a", i),
            ("Nuser\x1fjoe.s", n),
            ("Nuser\x1fjoe.s\x1fSent", n),
            ("Nuser\x1fjoe", n),
            ("NDELETED\x1fuser\x1fjoe.s\x1fSent\x1f5F3C1A2B", n),
            ("Nd.org\x1duser\x1fjoe.s", n),
        ]);
        let list = MailboxList::from_database(&db).unwrap();
        assert_eq!(list.style(), KeyStyle::Typed);
        assert_eq!(
            names(list.owned(&name("user.joe^s"), "DELETED").unwrap()),
            ["user.joe^s", "user.joe^s.Sent", "DELETED.user.joe^s.Sent.5F3C1A2B"]
        );
        assert_eq!(names(list.owned(&name("d.org!user.joe^s"), "DELETED").unwrap()).len(), 1);
        let id = UniqueId::new(b"7a").unwrap();
        assert_eq!(list.name_of_id(&id).unwrap(), Some(name("user.joe^s")));
    }

    #[test]
    fn mailboxes_of_one_id_are_known_of_each_other() {
        let id = "%(T e N user\x1fjoe P default H (%(N user\x1fann T e) %(N user\x1fold T e) \
                  %(N user\x1fgone T e) %(N user\x1fjoe T e)))";
        let live = "%(T e I 7a P default V 1)";
        let db = database(&[
            ("I7a", id),
            ("Nuser\x1fjoe", live),
            ("Nuser\x1fann", live),
            // Renamed and made anew, and deleted.
            ("Nuser\x1fold", "%(T e I 7b P default V 1)"),
            ("Nuser\x1fgone", "%(T d I 7a)"),
        ]);
        let list = MailboxList::from_database(&db).unwrap();
        let id = UniqueId::new(b"7a").unwrap();
        assert_eq!(list.sharers(&id, &name("user.joe")).unwrap(), [name("user.ann")]);
        assert_eq!(list.sharers(&id, &name("user.ann")).unwrap(), [name("user.joe")]);
        let other = UniqueId::new(b"7b").unwrap();
        assert_eq!(list.sharers(&other, &name("user.old")).unwrap(), []);
    }

    #[test]
    fn style_of_a_server_with_shared_mailboxes_only() {
        let db = database(&[("I7a", "%(T e N News P default)"), ("NNews", "%(T e I 7a)")]);
        assert_eq!(KeyStyle::recognise(&db).unwrap(), KeyStyle::Typed);
        let db = database(&[("Info", "%(I 7a P default)"), ("News", "%(I 7b P default)")]);
        assert_eq!(KeyStyle::recognise(&db).unwrap(), KeyStyle::Name);
    }

    proptest! {
        #[test]
        fn never_panics(raw in proptest::collection::vec(any::<u8>(), 0..80)) {
            let raw = Bytes::from(raw);
            let _ = MailboxEntry::parse(name("user.x"), raw.clone(), raw.clone());
            let _ = Acl::from_text(&raw);
        }

        #[test]
        fn never_panics_on_fields(raw in "%\\(([A-Z] (\"\"|[a-z0-9!./-]{0,4}|%\\([a ]{0,4}\\)) ?){0,4}\\)") {
            let _ = parse(&raw);
        }
    }
}
