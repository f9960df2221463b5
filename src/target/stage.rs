//! The stage: where everything of a move lies until it is published.
//!
//! It has the shape of the live server, below directories of its own on the
//! same filesystems, so that publishing is renaming:
//!
//! | live | stage |
//! |---|---|
//! | `<partition>` | `<partition>/.mbcopy/<move>/spool` |
//! | `<metapartition>`, `<metadir>`, `<archivepartition>` | the same below each of them |
//! | `<configdirectory>` | `<configdirectory>/mbcopy/moves/<move>/conf` |
//! | `<sievedir>` | `<sievedir>/.mbcopy/<move>` |
//!
//! The shadow, a private instance of Cyrus, runs on it.

use super::receive;
use crate::cyrus::config::Config;
use crate::cyrus::name::PartitionName;
use crate::fault::{self, Point};
use crate::moves::MoveId;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// The name of our directory below partitions and the sieve directory.
pub const OUR_DIRECTORY: &str = ".mbcopy";

/// Where a move's stage is on this server.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The move's own directory, `<configdirectory>/mbcopy/moves/<move>`.
    pub directory: PathBuf,
    /// The shadow's configdirectory.
    pub conf: PathBuf,
    /// The shadow's sievedir.
    pub sieve: PathBuf,
    /// The shadow's partitions.
    pub partitions: BTreeMap<PartitionName, PathBuf>,
    /// The shadow's partitions of metadata or archived messages alone.
    further: Vec<PathBuf>,
    /// The live search partitions, and where an index is put aside that is in the way.
    pub search: Vec<(PathBuf, PathBuf)>,
    /// The shadow's imapd.conf.
    pub imapd_conf: PathBuf,
    /// The shadow's configuration.
    pub config: Config,
}

/// Why a stage cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The live configuration lacks something.
    #[error("imapd.conf: {0}")]
    Config(#[from] crate::cyrus::config::ConfigError),
    /// A directory or file fails.
    #[error("cannot {verb} {}: {source}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl Stage {
    /// Lays out the stage of a move; writes nothing.
    pub fn new(live: &Config, id: &MoveId) -> Result<Self, StageError> {
        let directory = live.configdirectory()?.join("mbcopy/moves").join(id.as_str());
        let conf = directory.join("conf");
        let sieve = live.sievedir().join(OUR_DIRECTORY).join(id.as_str());
        let partitions: BTreeMap<_, _> = live
            .partitions()?
            .into_iter()
            .map(|(name, path)| {
                let spool = path.join(OUR_DIRECTORY).join(id.as_str()).join("spool");
                (name, spool)
            })
            .collect();
        let mut overrides = BTreeMap::new();
        let mut set = |option: String, path: &Path| {
            overrides.insert(option, path.display().to_string());
        };
        set("configdirectory".into(), &conf);
        set("sievedir".into(), &sieve);
        set("proc_path".into(), &conf.join("proc"));
        set("mboxname_lockpath".into(), &conf.join("lock"));
        set("temp_path".into(), &conf.join("temp"));
        for (name, path) in &partitions {
            set(format!("partition-{}", name.as_str()), path);
        }
        // Each on the filesystem of its own: they are renamed into place.
        let mut further = Vec::new();
        for (option, path) in live.further_roots() {
            let spool = path.join(OUR_DIRECTORY).join(id.as_str()).join("spool");
            set(option, &spool);
            further.push(spool);
        }
        let aside = |root: PathBuf| {
            let aside = root.join(OUR_DIRECTORY).join(id.as_str()).join("aside");
            (root, aside)
        };
        let search = live.search_roots().into_iter().map(aside).collect();
        overrides.insert("syslog_prefix".into(), "mbcopy".into());
        let text = live.shadow(&overrides)?;
        let config = Config::parse(text.as_bytes(), live.defaults(), &mut |_| {
            Err("a shadow includes nothing".into())
        })?;
        let imapd_conf = directory.join("imapd.conf");
        Ok(Self { directory, conf, sieve, partitions, further, search, imapd_conf, config })
    }

    /// Makes the directories that Cyrus's tools expect, and the private imapd.conf.
    pub fn make(&self, live: &Config) -> Result<(), StageError> {
        let sub = ["db", "proc", "lock", "log", "sync", "quota", "user", "temp"];
        let conf = sub.iter().map(|name| self.conf.join(name));
        let used = [self.sieve.clone()].into_iter();
        for path in conf.chain(used) {
            std::fs::create_dir_all(&path).map_err(|source| StageError::Io {
                verb: "make",
                path,
                source,
            })?;
        }
        let mut overrides = BTreeMap::new();
        for (option, value) in self.config.options() {
            overrides.insert(option.to_owned(), value.to_owned());
        }
        let text = live.shadow(&overrides)?;
        std::fs::write(&self.imapd_conf, text).map_err(|source| StageError::Io {
            verb: "write",
            path: self.imapd_conf.clone(),
            source,
        })
    }

    /// Where the plan of the publication is kept.
    pub fn publication(&self) -> PathBuf {
        self.directory.join("publication")
    }

    /// Every directory that belongs to this stage alone.
    pub fn roots(&self) -> Vec<PathBuf> {
        let aside = self.search.iter().map(|(_, aside)| aside);
        let spools = self.partitions.values().chain(&self.further).chain(aside);
        let spools = spools.filter_map(|p| p.parent().map(Path::to_path_buf));
        spools.chain([self.sieve.clone(), self.directory.clone()]).collect()
    }
}

/// The name that a file as it came has while another is in its place that was made of it.
fn as_sent(name: &str) -> String {
    format!("{name}.mbcopy-sent")
}

/// What tells that a staged file is the one that came, and that nobody has written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trace {
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Trace {
    /// Of an open file, when all is written.
    pub fn of(file: &std::fs::File) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let stat = file.metadata()?;
        let modified = (stat.mtime(), stat.mtime_nsec());
        Ok(Self { inode: stat.ino(), size: stat.len(), modified })
    }
}

/// A file that an earlier session has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// Its size, in bytes.
    pub size: u64,
    /// When it was changed last, its name included, in nanoseconds since 1970.
    pub changed: i64,
}

impl Left {
    /// The plain file at a path, if there is one.
    pub fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let stat = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
        Some(Self { size: stat.len(), changed: nanoseconds(stat.ctime(), stat.ctime_nsec()) })
    }
}

fn nanoseconds(seconds: i64, more: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(more)
}

/// A directory of the stage, held open so that nothing is looked up twice.
#[derive(Debug)]
pub struct StagedDirectory {
    path: PathBuf,
    fd: OwnedFd,
}

impl StagedDirectory {
    /// Opens `root/relative`, making what is missing below `root` and following
    /// no link there.
    pub fn make(root: &Path, relative: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(root)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        for component in relative.components() {
            let Component::Normal(name) = component else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{} leads out of the stage", relative.display()),
                ));
            };
            match rustix::fs::mkdirat(&fd, name, Mode::RWXU) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            fd = rustix::fs::openat(&fd, name, flags, Mode::empty())?;
        }
        Ok(Self { path: root.join(relative), fd })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a new file; an old one of that name goes away first.
    pub fn create(&self, name: &str) -> io::Result<OwnedFd> {
        receive::create_at(&self.fd, name)
    }

    /// Makes `name` another name of the file at `path`, on the same filesystem.
    pub fn link(&self, path: &Path, name: &std::ffi::OsStr) -> io::Result<()> {
        Ok(rustix::fs::linkat(rustix::fs::CWD, path, &self.fd, name, AtFlags::empty())?)
    }

    /// Removes a file if it is there.
    pub fn remove(&self, name: &str) {
        let _ = rustix::fs::unlinkat(&self.fd, name, AtFlags::empty());
    }

    /// Gives a file another name, in place of an older file of that name.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.fd, from, &self.fd, to)?)
    }

    /// Gives a file that has just come the place of an older one, and of what was kept of
    /// that as it came.
    pub fn replace_as_sent(&self, from: &str, to: &str) -> io::Result<()> {
        self.remove(&as_sent(to));
        self.rename(from, to)
    }

    /// Keeps a file as it came, before another takes its place that is made of it.
    pub fn keep_as_sent(&self, name: &str) -> io::Result<()> {
        match rustix::fs::linkat(&self.fd, name, &self.fd, as_sent(name), AtFlags::empty()) {
            // What is to be replaced now is not as it came any more.
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a file is there as it came.
    pub fn is_as_sent(&self, name: &str, trace: &Trace) -> bool {
        let kept = [&as_sent(name), name].into_iter().find_map(|name| self.open(name).ok());
        kept.is_some_and(|file| Trace::of(&file).is_ok_and(|found| found == *trace))
    }

    /// Opens a file as it came, to write to it. `None` if somebody has touched it.
    pub fn patch_as_sent(&self, name: &str, trace: &Trace) -> io::Result<Option<std::fs::File>> {
        let kept = self.patch(&as_sent(name), trace)?;
        kept.map_or_else(|| self.patch(name, trace), |file| Ok(Some(file)))
    }

    /// Opens a file to write to it. `None` if it is another.
    pub fn patch(&self, name: &str, trace: &Trace) -> io::Result<Option<std::fs::File>> {
        fault::check(Point::StageWrite)?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: std::fs::File = match rustix::fs::openat(&self.fd, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            opened => opened?.into(),
        };
        Ok((Trace::of(&file)? == *trace).then_some(file))
    }

    /// Opens a file as it came, to read it.
    pub fn open_as_sent(&self, name: &str) -> io::Result<std::fs::File> {
        match self.open(&as_sent(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.open(name),
            opened => opened,
        }
    }

    /// Gives a file as it came its name back, from what was made of it.
    pub fn restore_as_sent(&self, name: &str) -> io::Result<()> {
        match self.rename(&as_sent(name), name) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Removes what was kept of files as they came.
    pub fn forget_as_sent(&self, name: &str) {
        self.remove(&as_sent(name));
    }

    /// Removes a file, as it came and what was made of it.
    pub fn remove_as_sent(&self, name: &str) {
        self.remove(&as_sent(name));
        self.remove(name);
    }

    /// Opens a file to read it.
    pub fn open(&self, name: &str) -> io::Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, name, flags, Mode::empty())?.into())
    }

    /// Reads a whole file.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        self.open(name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads a whole file as it came.
    pub fn read_as_sent(&self, name: &str) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut bytes = Vec::new();
        self.open_as_sent(name)?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Has `each` look at the plain files in it, with their names; there may be millions.
    /// Symbolic links go: a shadow by names that was killed has left them.
    pub fn each_file(&self, mut each: impl FnMut(&str, Left)) -> io::Result<()> {
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name();
            let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
            if kind.is_symlink() {
                rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?;
            } else if let (true, Ok(name)) = (kind.is_file(), name.to_str()) {
                let changed = nanoseconds(stat.st_ctime, stat.st_ctime_nsec as i64);
                each(name, Left { size: stat.st_size as u64, changed });
            }
        }
        Ok(())
    }

    /// Puts all that was written on this filesystem onto stable storage.
    pub fn sync_filesystem(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.fd.as_fd())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_staged_directory_stays_in_its_stage() {
        let root = tempfile::tempdir().unwrap();
        let made = StagedDirectory::make(root.path(), Path::new("uuid/a/b/abc")).unwrap();
        assert_eq!(made.path(), root.path().join("uuid/a/b/abc"));
        assert!(StagedDirectory::make(root.path(), Path::new("../x")).is_err());
        std::os::unix::fs::symlink("/tmp", root.path().join("link")).unwrap();
        assert!(StagedDirectory::make(root.path(), Path::new("link/x")).is_err());
    }
}
