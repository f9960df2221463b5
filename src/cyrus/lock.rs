//! Names of Cyrus's lock files.  Only names: who takes them is elsewhere.
//!
//! All are below `mboxname_lockpath`, hashed like a mailbox's directory, and end in
//! `.lock` (`imap/mboxname.c:mboxname_lockpath`).  A wrong name freezes nothing: prove
//! a lock on the server before relying on it.

use std::path::PathBuf;

use super::config::Config;
use super::name::{MailboxName, UniqueId, UserId};
use super::path::{DirStyle, Layout, PathError};
use super::release::Release;

/// How a server names the user namespace lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserLockNaming {
    /// Up to 3.1: there is none.
    None,
    /// 3.2 to 3.10: `*U*` and the user id with `^` for dots
    /// (`imap/user.c:_namelock_name_from_userid`).
    UserId,
    /// 3.12 and later: `*U*` and the internal name of the INBOX.
    Inbox,
}

impl UserLockNaming {
    /// The naming of a release, as (major, minor).  The development releases 3.3 to
    /// 3.11 were not looked at one by one: prove the lock.
    pub fn of_version(version: (u32, u32)) -> Self {
        Release::of(version).user_lock
    }
}

/// Whether everything that opens a user's mailbox takes his lock first (3.4 and later:
/// imap/mailbox.c:mailbox_open_advanced).
pub fn opens_take_user_lock(version: (u32, u32)) -> bool {
    version >= (3, 4)
}

/// Lock file names of one server.
#[derive(Debug, Clone, Copy)]
pub struct Locks<'a> {
    config: &'a Config,
}

impl<'a> Locks<'a> {
    /// Names on the server with this configuration.
    pub fn new(config: &'a Config) -> Self {
        Self { config }
    }

    fn file(&self, name: &MailboxName) -> Result<PathBuf, PathError> {
        let root = self.config.mboxname_lockpath()?;
        let path = Layout::new(self.config).name_dir(&root, name)?;
        let mut path = path.into_os_string();
        path.push(".lock");
        Ok(PathBuf::from(path))
    }

    /// The user namespace lock of the owner of `inbox`; none where the version has none.
    ///
    /// 3.2: held by create, delete and rename.  3.4 and later: held by everything that
    /// opens a mailbox, exclusively to write.
    pub fn user(
        &self,
        inbox: &MailboxName,
        naming: UserLockNaming,
    ) -> Result<Option<PathBuf>, PathError> {
        let no_user = || PathError::NoUser(inbox.clone());
        let mut name = b"*U*".to_vec();
        match naming {
            UserLockNaming::None => return Ok(None),
            UserLockNaming::UserId => {
                let user = inbox.userid().ok_or_else(no_user)?;
                name.extend(escaped(&user));
            }
            UserLockNaming::Inbox => {
                let inbox = inbox.inbox().ok_or_else(no_user)?;
                name.extend_from_slice(inbox.as_bytes());
            }
        }
        let name = MailboxName::from_internal(&name).map_err(|_| no_user())?;
        self.file(&name).map(Some)
    }

    /// The lock of all mailboxes that belong to no user: `*U*.lock` (3.2 and later).
    pub fn shared(&self) -> Result<PathBuf, PathError> {
        self.fixed(b"*U*")
    }

    /// The lock that creating a mailbox takes up to 3.0: `$CREATE.lock`.
    pub fn create(&self) -> Result<PathBuf, PathError> {
        self.fixed(b"$CREATE")
    }

    fn fixed(&self, name: &[u8]) -> Result<PathBuf, PathError> {
        let root = self.config.mboxname_lockpath()?;
        match MailboxName::from_internal(name) {
            Ok(name) => self.file(&name),
            Err(_) => Ok(root),
        }
    }

    /// The lock of one mailbox: by its name up to 3.4 and with legacy directories
    /// (2.4 and later have it), else by its uniqueid.
    pub fn mailbox(&self, name: &MailboxName, style: DirStyle<'_>) -> Result<PathBuf, PathError> {
        match style {
            DirStyle::Name => self.file(name),
            DirStyle::Id(id) => self.file(&id_as_name(id, name)?),
        }
    }
}

/// Cyrus hashes the id as if it were a mailbox's name.
fn id_as_name(id: &UniqueId, name: &MailboxName) -> Result<MailboxName, PathError> {
    let id = MailboxName::from_internal(id.as_str().as_bytes());
    id.map_err(|_| PathError::NoUniqueId(name.clone()))
}

fn escaped(user: &UserId) -> impl Iterator<Item = u8> {
    user.as_bytes().iter().map(|&c| if c == b'.' { b'^' } else { c })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::cyrus::config::Defaults;
    use std::path::Path;

    fn config(more: &str) -> Config {
        let text = format!("configdirectory: /c\n{more}");
        Config::parse(text.as_bytes(), Defaults::V3, &mut |_| Err(String::new())).unwrap()
    }

    fn name(text: &str) -> MailboxName {
        MailboxName::from_internal(text.as_bytes()).unwrap()
    }

    #[test]
    fn user_locks_of_each_version() {
        let c = config("hashimapspool: yes\nvirtdomains: userid\n");
        let lock = |n: &str, version| {
            let naming = UserLockNaming::of_version(version);
            Locks::new(&c).user(&name(n), naming).unwrap()
        };
        assert_eq!(lock("user.rr", (3, 0)), None);
        for (n, version, path) in [
            ("user.x", (3, 6), "/c/lock/q/*U*x.lock"),
            ("user.rr", (3, 12), "/c/lock/r/*U*user/rr.lock"),
            ("user.rr.Sent", (3, 12), "/c/lock/r/*U*user/rr.lock"),
            ("example.com!user.joe^smith", (3, 10), "/c/lock/q/*U*joe^smith@example^com.lock"),
        ] {
            assert_eq!(lock(n, version).unwrap(), Path::new(path));
        }
        let none = Locks::new(&c).user(&name("shared"), UserLockNaming::UserId);
        assert!(matches!(none, Err(PathError::NoUser(_))));
    }

    #[test]
    fn other_locks() {
        let c = config("mboxname_lockpath: /run/l\n");
        let locks = Locks::new(&c);
        let id = UniqueId::new(b"3ee19b1b-3a55").unwrap();
        for (got, path) in [
            (locks.shared(), "/run/l/*U*.lock"),
            (locks.create(), "/run/l/$CREATE.lock"),
            (locks.mailbox(&name("user.x.A"), DirStyle::Name), "/run/l/user/x/A.lock"),
            (locks.mailbox(&name("user.x"), DirStyle::Id(&id)), "/run/l/3ee19b1b-3a55.lock"),
        ] {
            assert_eq!(got.unwrap(), Path::new(path));
        }
    }
}
