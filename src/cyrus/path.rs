//! Where Cyrus keeps what: pure path rules.
//!
//! Up to 3.4 everything is found by name; from 3.6 by the mailbox's uniqueid,
//! unless its record has the flag for legacy directories.  Sources:
//! `imap/mboxname.c` (mboxname_hash, mboxname_id_hash, mboxname_metapath,
//! mboxname_conf_getpath), `imap/user.c` (user_sieve_path),
//! `lib/cyrusdb_quotalegacy.c` (hash_quota), `lib/util.c` (dir_hash_c).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::config::{Config, ConfigError, DbKind, Defaults, MetaFile};
use super::name::{MailboxName, PartitionName, UniqueId, UserId, VirtDomains};

/// Why there is no path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PathError {
    /// The partition is in mailboxes.db but not in imapd.conf.
    #[error("partition-{0} is not set in imapd.conf")]
    NoPartition(PartitionName),
    /// A mailbox that is found by its id has none.
    #[error("the mailbox {0} has no uniqueid, and its directory is named by it")]
    NoUniqueId(MailboxName),
    /// Only users have such files.
    #[error("{0} belongs to no user")]
    NoUser(MailboxName),
    /// The configuration does not say.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

type Result<T> = std::result::Result<T, PathError>;

/// How a mailbox's directories are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirStyle<'a> {
    /// By name: up to 3.4, and from 3.6 with the flag for legacy directories.
    Name,
    /// By uniqueid: from 3.6.
    Id(&'a UniqueId),
}

/// The character of a hash directory (`lib/util.c:dir_hash_c`).
///
/// Without `full`: the lower-cased first character, `q` if it is no letter.  With
/// `full`: `A` to `W`, computed of what precedes the first dot.
pub fn dir_hash_c(name: &[u8], full: bool) -> char {
    if full {
        let mut n: u32 = 0;
        for &c in name.iter().take_while(|&&c| c != b'.') {
            n = (n << 3) ^ (n >> 5) ^ u32::from(c);
        }
        char::from(b'A' + (n % 23) as u8)
    } else {
        match name.first().map(u8::to_ascii_lowercase) {
            Some(c @ b'a'..=b'z') => char::from(c),
            _ => 'q',
        }
    }
}

/// `<root>/uuid/<a>/<b>/<id>` (`imap/mboxname.c:mboxname_id_hash`, 3.6 and later).
pub fn id_dir(root: &Path, id: &UniqueId) -> PathBuf {
    let mut chars = id.as_str().chars();
    let mut dir = root.join("uuid");
    for c in [chars.next(), chars.next()].into_iter().flatten() {
        dir.push(c.to_string());
    }
    dir.join(id.as_str())
}

fn dots(internal: &[u8]) -> Vec<u8> {
    internal.iter().map(|&c| if c == b'^' { b'.' } else { c }).collect()
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

/// The path rules of one server.
#[derive(Debug, Clone, Copy)]
pub struct Layout<'a> {
    config: &'a Config,
}

impl<'a> Layout<'a> {
    /// Rules of the server with this configuration; its
    /// [`Defaults`](super::config::Defaults) say whether it is a 2.x.
    pub fn new(config: &'a Config) -> Self {
        Self { config }
    }

    fn old(&self) -> bool {
        self.config.defaults() == Defaults::V2
    }

    fn hash(&self, name: &[u8]) -> Result<String> {
        Ok(dir_hash_c(name, self.config.fulldirhash()?).to_string())
    }

    fn domains(&self) -> Result<bool> {
        Ok(self.config.virtdomains()? != VirtDomains::Off)
    }

    /// `<root>[/domain/[h/]<domain>]/[h/]<components>` (`imap/mboxname.c:mboxname_hash`).
    ///
    /// 2.x hashes the component as it is on disk, 3.0 and later with its dots: with
    /// `fulldirhash` this differs for dotted users.
    pub fn name_dir(&self, root: &Path, name: &MailboxName) -> Result<PathBuf> {
        let hashed = self.config.hashimapspool()?;
        let mut dir = root.to_owned();
        if let Some(domain) = name.domain() {
            dir.push("domain");
            if hashed {
                dir.push(self.hash(domain)?);
            }
            dir.push(os(domain));
        }
        if hashed {
            let mut parts = name.components();
            let first = parts.next().unwrap_or_default();
            let index = parts.next().unwrap_or(first);
            if self.old() {
                dir.push(self.hash(index)?);
            } else {
                dir.push(self.hash(&dots(index))?);
            }
        }
        dir.extend(name.components().map(os));
        Ok(dir)
    }

    fn styled(&self, root: &Path, name: &MailboxName, style: DirStyle<'_>) -> Result<PathBuf> {
        match style {
            DirStyle::Name => self.name_dir(root, name),
            DirStyle::Id(id) => Ok(id_dir(root, id)),
        }
    }

    fn partition(&self, partition: &PartitionName) -> Result<PathBuf> {
        let root = self.config.partition(partition);
        root.ok_or_else(|| PathError::NoPartition(partition.clone()))
    }

    /// Directory of a mailbox's message files.
    pub fn mailbox_dir(
        &self,
        name: &MailboxName,
        style: DirStyle<'_>,
        partition: &PartitionName,
    ) -> Result<PathBuf> {
        self.styled(&self.partition(partition)?, name, style)
    }

    /// Directory of the message files that are marked as archived (3.0 and later).
    pub fn archive_dir(
        &self,
        name: &MailboxName,
        style: DirStyle<'_>,
        partition: &PartitionName,
    ) -> Result<PathBuf> {
        let root = match self.config.archivepartition(partition)? {
            Some(root) => root,
            None => self.partition(partition)?,
        };
        self.styled(&root, name, style)
    }

    /// All directories of a mailbox, each with the root that it is below: of its messages,
    /// of those that are archived, and of its own files.
    pub fn mailbox_dirs(
        &self,
        name: &MailboxName,
        style: DirStyle<'_>,
        partition: &PartitionName,
    ) -> Result<Vec<(PathBuf, PathBuf)>> {
        let mut roots = vec![self.partition(partition)?];
        roots.extend(self.config.archivepartition(partition)?);
        for file in MetaFile::ALL {
            roots.push(self.meta_root(file, partition)?);
        }
        let dirs = roots.into_iter().map(|root| {
            let dir = self.styled(&root, name, style)?;
            Ok((root, dir))
        });
        dirs.collect()
    }

    /// Path of one of a mailbox's own files (`imap/mboxname.c:mboxname_metapath`).
    pub fn meta_file(
        &self,
        file: MetaFile,
        name: &MailboxName,
        style: DirStyle<'_>,
        partition: &PartitionName,
    ) -> Result<PathBuf> {
        let root = self.meta_root(file, partition)?;
        Ok(self.styled(&root, name, style)?.join(file.file_name()))
    }

    /// Root of the partition below which a kind of file lies.
    pub fn meta_root(&self, file: MetaFile, partition: &PartitionName) -> Result<PathBuf> {
        if let Some(root) = self.config.metadir(file, partition) {
            return Ok(root);
        }
        if self.config.metapartition_files(file)
            && let Some(root) = self.config.metapartition(partition)
        {
            return Ok(root);
        }
        if file == MetaFile::ArchiveCache
            && let Some(root) = self.config.archivepartition(partition)?
        {
            return Ok(root);
        }
        self.partition(partition)
    }

    /// Directory of a user's files that are named by id: `user/uuid/<a>/<b>/<id>`
    /// with the id of his INBOX (`imap/mboxname.c:mboxid_conf_getpath`).
    pub fn user_dir(&self, inbox_id: &UniqueId) -> Result<PathBuf> {
        Ok(id_dir(&self.config.configdirectory()?.join("user"), inbox_id))
    }

    /// Directory of a user's search index below one of the search partitions
    /// (`imap/user.c:user_hash_xapian`; up to 3.4 `imap/search_xapian.c:xapian_basedir`).
    pub fn search_dir(
        &self,
        inbox: &MailboxName,
        style: DirStyle<'_>,
        root: &Path,
    ) -> Result<PathBuf> {
        if let DirStyle::Id(id) = style {
            return Ok(id_dir(&root.join("user"), id));
        }
        let internal = inbox.components().nth(1).filter(|_| inbox.is_user());
        let local = dots(internal.ok_or_else(|| PathError::NoUser(inbox.clone()))?);
        let mut dir = root.to_owned();
        if let Some(domain) = inbox.domain() {
            dir.extend([OsStr::new("domain"), os(self.hash(domain)?.as_bytes()), os(domain)]);
        }
        dir.extend([os(self.hash(&local)?.as_bytes()), OsStr::new("user"), os(&local)]);
        Ok(dir)
    }

    /// A user's file of a kind (`seen`, `sub`, `conversations`, `counters`, ...).
    ///
    /// By id: `<user_dir>/<suffix>.db`.  By name:
    /// `[domain/<h>/<domain>/]user/<h>/<user>.<suffix>`, where 2.x writes `^` for a
    /// dot in the user's name and 3.0 a dot.
    pub fn user_file(
        &self,
        inbox: &MailboxName,
        style: DirStyle<'_>,
        suffix: &str,
    ) -> Result<PathBuf> {
        if let DirStyle::Id(id) = style {
            return Ok(self.user_dir(id)?.join(format!("{suffix}.db")));
        }
        let no_user = || PathError::NoUser(inbox.clone());
        if !inbox.is_user() {
            return Err(no_user());
        }
        let internal = inbox.components().nth(1).ok_or_else(no_user)?;
        let local = if self.old() { internal.to_vec() } else { dots(internal) };
        let mut file = local.clone();
        file.push(b'.');
        file.extend_from_slice(suffix.as_bytes());
        let mut dir = self.config.configdirectory()?;
        if let Some(domain) = inbox.domain() {
            dir.extend([OsStr::new("domain"), os(self.hash(domain)?.as_bytes()), os(domain)]);
        }
        dir.extend([OsStr::new("user"), os(self.hash(&local)?.as_bytes()), os(&file)]);
        Ok(dir)
    }

    /// A file of the owner of no user's mailboxes: `shared.<suffix>` (3.0 and later).
    pub fn shared_file(&self, domain: Option<&[u8]>, suffix: &str) -> Result<PathBuf> {
        let mut dir = self.config.configdirectory()?;
        if let Some(domain) = domain {
            dir.extend([OsStr::new("domain"), os(self.hash(domain)?.as_bytes()), os(domain)]);
        }
        Ok(dir.join(format!("shared.{suffix}")))
    }

    /// Directory of a user's sieve scripts; none if they are in his home directory
    /// (`sieveusehomedir`).
    pub fn sieve_dir(&self, user: &UserId, style: DirStyle<'_>) -> Result<Option<PathBuf>> {
        if self.config.sieveusehomedir()? {
            return Ok(None);
        }
        let mut dir = self.config.sievedir();
        if let DirStyle::Id(id) = style {
            return Ok(Some(id_dir(&dir, id)));
        }
        let (mut local, domain) = user.split();
        match domain {
            Some(domain) if self.domains()? => {
                dir.extend([OsStr::new("domain"), os(self.hash(domain)?.as_bytes()), os(domain)]);
            }
            _ => local = user.as_bytes(),
        }
        dir.push(self.hash(local)?);
        dir.push(os(local));
        Ok(Some(dir))
    }

    /// The file of a quota root with the engine quotalegacy.
    pub fn quota_file(&self, root: &MailboxName) -> Result<PathBuf> {
        let mut dir = self.config.configdirectory()?;
        let mut name = root.as_bytes();
        if let Some(domain) = root.domain()
            && self.domains()?
        {
            dir.extend([OsStr::new("domain"), os(self.hash(domain)?.as_bytes()), os(domain)]);
            name = root.without_domain();
        }
        let dot = name.iter().position(|&c| c == b'.');
        let index = dot.and_then(|at| name.get(at + 1..)).unwrap_or(name);
        dir.extend([OsStr::new("quota"), os(self.hash(index)?.as_bytes()), os(name)]);
        Ok(dir)
    }

    /// `mailboxes.db`.
    pub fn mailboxes_db(&self) -> Result<PathBuf> {
        self.server_db(DbKind::Mailboxes)
    }

    /// The global `annotations.db`.
    pub fn annotations_db(&self) -> Result<PathBuf> {
        self.server_db(DbKind::Annotations)
    }

    /// A server-wide database.  Fails for kinds that every user has his own of.
    pub fn server_db(&self, kind: DbKind) -> Result<PathBuf> {
        let path = self.config.db_path(kind)?;
        Ok(path.ok_or(ConfigError::Missing { option: "a server-wide database of this kind" })?)
    }

    /// Directory of the files that name who has which mailbox open.
    pub fn proc_dir(&self) -> Result<PathBuf> {
        Ok(self.config.proc_path()?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn config(more: &str, defaults: Defaults) -> Config {
        let text = format!("configdirectory: /c\npartition-default: /p\nsievedir: /s\n{more}");
        Config::parse(text.as_bytes(), defaults, &mut |_| Err(String::new())).unwrap()
    }

    fn name(text: &str) -> MailboxName {
        MailboxName::from_internal(text.as_bytes()).unwrap()
    }

    fn part() -> PartitionName {
        PartitionName::new("default").unwrap()
    }

    #[test]
    fn search_indexes() {
        let c = config("virtdomains: userid\n", Defaults::V3);
        let l = Layout::new(&c);
        let dir = |n: &str, style| l.search_dir(&name(n), style, Path::new("/s")).unwrap();
        let id = UniqueId::new(b"3ee19b1b-3a55").unwrap();
        let by_id = "/s/user/uuid/3/e/3ee19b1b-3a55";
        assert_eq!(dir("user.x", DirStyle::Id(&id)), Path::new(by_id));
        assert_eq!(dir("user.joe^smith", DirStyle::Name), Path::new("/s/j/user/joe.smith"));
        assert_eq!(dir("a.b!user.x", DirStyle::Name), Path::new("/s/domain/a/a.b/x/user/x"));
        assert!(l.search_dir(&name("team"), DirStyle::Name, Path::new("/s")).is_err());
    }

    // Worked examples of a real server's mbpath, hashimapspool on.
    #[test]
    fn by_name() {
        let c = config("hashimapspool: yes\nvirtdomains: userid\n", Defaults::V3);
        let l = Layout::new(&c);
        let dir = |n: &str| l.mailbox_dir(&name(n), DirStyle::Name, &part()).unwrap();
        assert_eq!(dir("user.x"), Path::new("/p/x/user/x"));
        assert_eq!(dir("user.1x.Sent"), Path::new("/p/q/user/1x/Sent"));
        assert_eq!(dir("shared"), Path::new("/p/s/shared"));
        assert_eq!(dir("DELETED.user.x.5F3C1A2B"), Path::new("/p/u/DELETED/user/x/5F3C1A2B"));
        assert_eq!(
            dir("example.com!user.joe^smith"),
            Path::new("/p/domain/e/example.com/j/user/joe^smith")
        );
        let inbox = name("example.com!user.joe^smith");
        assert_eq!(
            l.user_file(&inbox, DirStyle::Name, "sub").unwrap(),
            Path::new("/c/domain/e/example.com/user/j/joe.smith.sub")
        );
        assert_eq!(
            l.sieve_dir(&inbox.userid().unwrap(), DirStyle::Name).unwrap().unwrap(),
            Path::new("/s/domain/e/example.com/j/joe.smith")
        );
        assert_eq!(
            l.quota_file(&inbox).unwrap(),
            Path::new("/c/domain/e/example.com/quota/j/user.joe^smith")
        );
        assert_eq!(
            l.quota_file(&name("user.x.Sent")).unwrap(),
            Path::new("/c/quota/x/user.x.Sent")
        );
    }

    #[test]
    fn by_name_without_hash_and_in_2_x() {
        let c = config("virtdomains: userid\n", Defaults::V2);
        let l = Layout::new(&c);
        let inbox = name("example.com!user.joe^smith");
        assert_eq!(
            l.mailbox_dir(&inbox, DirStyle::Name, &part()).unwrap(),
            Path::new("/p/domain/example.com/user/joe^smith")
        );
        assert_eq!(
            l.user_file(&inbox, DirStyle::Name, "seen").unwrap(),
            Path::new("/c/domain/e/example.com/user/j/joe^smith.seen")
        );
        let none = PartitionName::new("other").unwrap();
        let error = l.mailbox_dir(&inbox, DirStyle::Name, &none).unwrap_err();
        assert_eq!(error.to_string(), "partition-other is not set in imapd.conf");
    }

    #[test]
    fn full_hash_of_dotted_users_changed_in_3_0() {
        let more = "hashimapspool: yes\nfulldirhash: yes\n";
        let (old, new) = (config(more, Defaults::V2), config(more, Defaults::V3));
        let n = name("user.joe^smith");
        let dir = |c| Layout::new(c).mailbox_dir(&n, DirStyle::Name, &part()).unwrap();
        let joe = dir_hash_c(b"joe", true);
        assert_eq!(dir(&new), PathBuf::from(format!("/p/{joe}/user/joe^smith")));
        let all = dir_hash_c(b"joe^smith", true);
        assert_eq!(dir(&old), PathBuf::from(format!("/p/{all}/user/joe^smith")));
    }

    #[test]
    fn by_id() {
        let more = "metapartition-default: /m\nmetapartition_files: header index\n\
            archive_enabled: yes\narchivepartition-default: /a\nmetadir-cache-default: /k\n";
        let c = config(more, Defaults::V3);
        let l = Layout::new(&c);
        let id = UniqueId::new(b"3ee19b1b-3a55").unwrap();
        let (n, style) = (name("user.x"), DirStyle::Id(&id));
        let end = "uuid/3/e/3ee19b1b-3a55";
        let dir = l.mailbox_dir(&n, style, &part()).unwrap();
        assert_eq!(dir, Path::new("/p").join(end));
        assert_eq!(l.archive_dir(&n, style, &part()).unwrap(), Path::new("/a").join(end));
        for (file, root) in [
            (MetaFile::Header, "/m"),
            (MetaFile::Cache, "/k"),
            (MetaFile::Annotations, "/p"),
            (MetaFile::ArchiveCache, "/a"),
        ] {
            let path = l.meta_file(file, &n, style, &part()).unwrap();
            assert_eq!(path, Path::new(root).join(end).join(file.file_name()));
        }
        assert_eq!(
            l.user_file(&n, style, "seen").unwrap(),
            Path::new("/c/user").join(end).join("seen.db")
        );
        let sieve = l.sieve_dir(&n.userid().unwrap(), style).unwrap().unwrap();
        assert_eq!(sieve, Path::new("/s").join(end));
    }

    proptest! {
        #[test]
        fn stays_below_its_root(raw in proptest::collection::vec(any::<u8>(), 1..40)) {
            let c = config("hashimapspool: yes\nvirtdomains: on\n", Defaults::V3);
            if let Ok(n) = MailboxName::from_internal(&raw) {
                let dir = Layout::new(&c).mailbox_dir(&n, DirStyle::Name, &part()).unwrap();
                prop_assert!(dir.starts_with("/p"));
                let normal = dir.components().skip(1)
                    .all(|p| matches!(p, std::path::Component::Normal(_)));
                prop_assert!(normal);
            }
        }
    }
}
