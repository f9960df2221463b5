//! Messages that several users of one run have: one delivery to many recipients.
//!
//! What came with several names on the source gets one more here, by its GUID, in a
//! directory of the run on the same filesystem. The next user whose index names that GUID
//! gets the file by a link, and nothing crosses the wire. But a GUID is no secret: whoever
//! names one has to show first that he has the content, by its BLAKE3 under a key that
//! nobody knew before. What is linked counts only if that is the content's here, too.

use super::asked::MailboxWants;
use super::offer::Inventory;
use super::stage::{OUR_DIRECTORY, StagedDirectory};
use super::staged::{StagedMailbox, message_name};
use crate::cyrus::name::PartitionName;
use crate::host::Host;
use crate::wire::manifest::{self, Entry};
use crate::wire::v1;
use bytes::Bytes;
use sha1::{Digest, Sha1};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The directory of all runs' links, below [`OUR_DIRECTORY`].
const SHARED: &str = "shared";

/// Messages that are to be proven at a time.
const AT_A_TIME: usize = 8192;

/// Most messages of one move that others may have by a link: each is an entry of a
/// directory until the run ends.
const MOST: usize = 200_000;

/// Longest name of a run.
const LONGEST_NAME: usize = 128;

/// A message: mailbox and UID.
type Key = (u32, u32);

/// What one move shares with others of its run.
#[derive(Debug)]
pub struct Share {
    run: String,
    /// What the source has offered, and others of the run have.
    offered: BTreeMap<Key, Entry>,
    /// What the source was asked to prove, and under which key.
    asked: BTreeMap<Key, Entry>,
    key: [u8; 32],
    /// What came with several names.
    came: BTreeSet<Key>,
}

impl Share {
    /// Of a run of this name; `None` if that cannot be a directory's.
    pub fn of(run: &str) -> Option<Self> {
        let fits = |c: char| c.is_alphanumeric() || "._-@".contains(c);
        let good = !run.is_empty() && run.len() <= LONGEST_NAME && run.chars().all(fits);
        (good && !run.starts_with('.')).then(|| Self {
            run: run.to_owned(),
            offered: BTreeMap::new(),
            asked: BTreeMap::new(),
            key: [0; 32],
            came: BTreeSet::new(),
        })
    }

    fn pool(&self, host: &Host, partition: &PartitionName) -> Option<Pool> {
        Some(Pool(pools(&host.config.partition(partition)?).join(&self.run)))
    }

    /// Notes which of the messages that are offered others of the run have.
    pub fn offered(&mut self, host: &Host, mailbox: &StagedMailbox, scan: &v1::MailboxScan) {
        let pool = self.pool(host, &mailbox.partition).filter(|pool| pool.0.is_dir());
        let (Some(pool), Some(entries)) = (pool, manifest::entries(&scan.manifest)) else { return };
        for entry in entries {
            if self.offered.len() < MOST && !mailbox.has(entry.uid) && pool.has(&entry) {
                self.offered.insert((scan.mailbox, entry.uid), entry);
            }
        }
    }

    /// Those of the wanted messages that others of the run may have, for the source to
    /// prove that it has them, too.
    pub fn ask(
        &mut self,
        inventory: &Inventory,
        wants: &BTreeMap<u32, MailboxWants>,
    ) -> Option<v1::ProveContents> {
        self.asked.clear();
        for (ordinal, wanted) in wants {
            let Some(mailbox) = inventory.mailboxes.get(ordinal) else { continue };
            for message in wanted.messages.iter() {
                let key = (*ordinal, message.uid);
                let place = mailbox.message_directory(message.uid);
                if self.asked.len() < AT_A_TIME
                    && place.path() == mailbox.directory.path()
                    && let Some(entry) = self.offered.remove(&key)
                {
                    self.asked.insert(key, entry);
                }
            }
        }
        if self.asked.is_empty() {
            return None;
        }
        self.key = fresh_key().ok()?;
        let mut by_mailbox: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (ordinal, uid) in self.asked.keys() {
            by_mailbox.entry(*ordinal).or_default().push(*uid);
        }
        let want = |(mailbox, uids)| v1::Want {
            mailbox,
            uid_runs: manifest::runs(uids),
            ..v1::Want::default()
        };
        Some(v1::ProveContents {
            key: Bytes::copy_from_slice(&self.key),
            wants: by_mailbox.into_iter().map(want).collect(),
        })
    }

    /// Links what the source has proven to have; which messages are there now, by mailbox.
    pub fn take(
        &mut self,
        host: &Host,
        inventory: &Inventory,
        proofs: &[v1::Proof],
    ) -> BTreeMap<u32, Vec<u32>> {
        let mut asked = std::mem::take(&mut self.asked);
        let mut taken: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for proof in proofs {
            let Some(entry) = asked.remove(&(proof.mailbox, proof.uid)) else { continue };
            let Some(mailbox) = inventory.mailboxes.get(&proof.mailbox) else { continue };
            let Some(pool) = self.pool(host, &mailbox.partition) else { continue };
            // What does not work is sent.
            if let Ok(true) = pool.take(&entry, (&self.key, &proof.blake3), &mailbox.directory) {
                taken.entry(proof.mailbox).or_default().push(proof.uid);
            }
        }
        taken
    }

    /// Notes which of the messages that have just come have several names on the source.
    pub fn came(&mut self, messages: &[Key]) {
        let room = MOST.saturating_sub(self.came.len());
        self.came.extend(messages.iter().take(room));
    }

    /// Has others of the run find what came, only once it is on stable storage; and makes one
    /// file of what came more than once, for this user or for others at the same time.
    pub fn give(&mut self, host: &Host, inventory: &Inventory) {
        for (ordinal, uid) in std::mem::take(&mut self.came) {
            let Some(mailbox) = inventory.mailboxes.get(&ordinal) else { continue };
            let directory = mailbox.message_directory(uid);
            if let Some(pool) = self.pool(host, &mailbox.partition)
                && directory.path() == mailbox.directory.path()
            {
                // What does not work stays a file of its own.
                let _ = pool.give(directory, &message_name(uid));
            }
        }
    }
}

/// The links of one run on one partition.
#[derive(Debug)]
struct Pool(PathBuf);

impl Pool {
    fn file(&self, guid: &[u8; 20]) -> PathBuf {
        let mut name = String::with_capacity(40);
        for byte in guid {
            let _ = write!(name, "{byte:02x}");
        }
        self.0.join(name.get(..2).unwrap_or_default()).join(name)
    }

    fn has(&self, entry: &Entry) -> bool {
        let found = std::fs::symlink_metadata(self.file(&entry.guid));
        entry.guid != [0; 20] && found.is_ok_and(|m| m.is_file() && m.len() == entry.size)
    }

    /// Links the message, if it is what was proven: `proof` is a key and the content's BLAKE3
    /// under it.
    fn take(
        &self,
        entry: &Entry,
        (key, proof): (&[u8; 32], &[u8]),
        to: &StagedDirectory,
    ) -> io::Result<bool> {
        let path = self.file(&entry.guid);
        let (mut keyed, mut sha1) = (blake3::Hasher::new_keyed(key), Sha1::new());
        read(&path, &mut |piece| {
            keyed.update(piece);
            sha1.update(piece);
        })?;
        let proven = blake3::Hash::from_slice(proof).is_ok_and(|proof| proof == keyed.finalize());
        if !proven || sha1.finalize().as_slice() != entry.guid {
            return Ok(false);
        }
        let name = message_name(entry.uid);
        to.remove(&name);
        to.link(&path, name.as_ref())?;
        Ok(true)
    }

    fn give(&self, staged: &StagedDirectory, name: &str) -> io::Result<()> {
        let mut sha1 = Sha1::new();
        read(&staged.path().join(name), &mut |piece| sha1.update(piece))?;
        let file = self.file(&sha1.finalize().into());
        if let Some(directory) = file.parent() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        match std::fs::hard_link(staged.path().join(name), &file) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => join(&file, staged, name),
            linked => linked,
        }
    }
}

/// Where the runs' links on a partition are.
fn pools(partition: &Path) -> PathBuf {
    partition.join(OUR_DIRECTORY).join(SHARED)
}

/// Removes the links of a run, or of all runs. They are nobody's only copy, and whoever
/// misses one has the message sent.
pub fn forget(host: &Host, run: Option<&str>) -> io::Result<()> {
    let run = match run {
        Some(run) => match Share::of(run) {
            Some(share) => Some(share.run),
            None => return Ok(()),
        },
        None => None,
    };
    for partition in host.config.partitions().unwrap_or_default().into_values() {
        let pools = pools(&partition);
        let place = run.as_ref().map_or_else(|| pools.clone(), |run| pools.join(run));
        match std::fs::remove_dir_all(&place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        // Those above go when nothing else is in them.
        for above in [pools, partition.join(OUR_DIRECTORY)] {
            let _ = std::fs::remove_dir(above);
        }
    }
    Ok(())
}

/// Nobody knew it before.
fn fresh_key() -> io::Result<[u8; 32]> {
    let mut key = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut key)?;
    Ok(key)
}

/// Gives the place of a staged file to a link to another one of the same content.
fn join(other: &Path, staged: &StagedDirectory, name: &str) -> io::Result<()> {
    let own = staged.path().join(name);
    let (one, two) = (std::fs::symlink_metadata(other)?, std::fs::symlink_metadata(&own)?);
    if one.ino() == two.ino() || one.len() != two.len() || !one.is_file() {
        return Ok(());
    }
    let hash = |path: &Path| -> io::Result<blake3::Hash> {
        let file = crate::source::send::open(path)?;
        Ok(blake3::Hasher::new().update_reader(file)?.finalize())
    };
    if hash(other)? == hash(&own)? {
        let temporary = format!("{name}.mbcopy-new");
        staged.remove(&temporary);
        staged.link(other, temporary.as_ref())?;
        staged.rename(&temporary, name)?;
    }
    Ok(())
}

fn read(path: &Path, give: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut file = crate::source::send::open(path)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => give(buffer.get(..n).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(content: &[u8], uid: u32) -> Entry {
        Entry {
            uid,
            expunged: false,
            archived: false,
            size: content.len() as u64,
            guid: Sha1::digest(content).into(),
        }
    }

    #[test]
    fn who_names_a_guid_gets_nothing_unless_he_has_the_content() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool(dir.path().join("pool"));
        let content = b"Subject: secret\r\n\r\nof another user\r\n";
        let theirs = StagedDirectory::make(dir.path(), Path::new("theirs")).unwrap();
        std::fs::write(dir.path().join("theirs/1."), content).unwrap();
        let secret = entry(content, 7);
        assert!(!pool.has(&secret));
        pool.give(&theirs, "1.").unwrap();
        pool.give(&theirs, "1.").unwrap();
        assert!(pool.has(&secret));
        assert!(!pool.has(&Entry { size: 1, ..secret }), "of another size it is not the message");
        assert!(!pool.has(&Entry { guid: [0; 20], ..secret }));

        let staged = StagedDirectory::make(dir.path(), Path::new("stage")).unwrap();
        let (key, old) = (fresh_key().unwrap(), fresh_key().unwrap());
        assert_ne!(key, old);
        let proof = |key: &[u8; 32], content: &[u8]| *blake3::keyed_hash(key, content).as_bytes();
        let there = || dir.path().join("stage/7.").exists();
        for (what, lie) in [
            ("nothing", vec![]),
            ("its GUID", secret.guid.to_vec()),
            ("its plain hash", blake3::hash(content).as_bytes().to_vec()),
            ("a proof that was heard before", proof(&old, content).to_vec()),
            ("another content", proof(&key, b"Subject: secret\r\n\r\nguessed\r\n").to_vec()),
        ] {
            assert!(!pool.take(&secret, (&key, &lie), &staged).unwrap(), "{what}");
            assert!(!there(), "{what}");
        }
        assert!(pool.take(&secret, (&key, &proof(&key, content)), &staged).unwrap());
        let inode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().ino();
        assert_eq!(inode("stage/7."), inode("theirs/1."));

        // What lies under a wrong GUID is nobody's.
        let wrong = Entry { guid: [9; 20], uid: 8, ..secret };
        let place = pool.file(&wrong.guid);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::hard_link(dir.path().join("theirs/1."), place).unwrap();
        assert!(!pool.take(&wrong, (&key, &proof(&key, content)), &staged).unwrap());
    }

    #[test]
    fn files_of_one_content_become_one_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let staged = StagedDirectory::make(dir.path(), Path::new("stage")).unwrap();
        let at = |name: &str| dir.path().join("stage").join(name);
        for (name, content) in [("1.", "same"), ("2.", "same"), ("3.", "else"), ("4.", "longer")] {
            std::fs::write(at(name), content).unwrap();
        }
        let pool = Pool(dir.path().join("pool"));
        for name in ["1.", "2.", "3.", "4."] {
            pool.give(&staged, name).unwrap();
        }
        // Of one size and one GUID, as nobody has seen them yet.
        join(&pool.file(&Sha1::digest("same").into()), &staged, "3.").unwrap();
        let inode = |name: &str| std::fs::metadata(at(name)).unwrap().ino();
        assert_eq!(inode("1."), inode("2."));
        assert!(inode("1.") != inode("3.") && inode("1.") != inode("4."));
        assert_eq!(std::fs::read_dir(dir.path().join("stage")).unwrap().count(), 4);
    }

    #[test]
    fn a_runs_name_is_a_directorys_or_none() {
        for good in ["users-to-bw2", "a", "_ü.b@c"] {
            assert!(Share::of(good).is_some(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", ".hidden", "a b", &"x".repeat(129)] {
            assert!(Share::of(bad).is_none(), "{bad}");
        }
    }
}
