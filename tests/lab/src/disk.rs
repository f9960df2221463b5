//! A host's data on a disk whose power can be cut.
//!
//! The disk is a file that this process serves by FUSE; a loop device and a filesystem lie on top
//! of it. So each write and each flush comes by here, in the order in which the kernel issues
//! them, and what a machine finds on its disk after a power cut can be told for every instant:
//! all that a flush has covered, and of the rest whatever [`Fate`] says. What the kernel held in
//! its page cache never arrived here, and is lost as it would be.

use crate::host::{Host, state_dir};
use crate::medium::{Fate, Loss, Medium};
use anyhow::{Context, Result, bail, ensure};
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, Session, WriteFlags,
};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, UNIX_EPOCH};

/// Its size in bytes; only what is written takes memory. XFS wants 300 MB at least.
const SIZE: u64 = 512 << 20;
/// How long the kernel may take to let go of a disk.
const PATIENCE: Duration = Duration::from_secs(20);

/// The filesystem on a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What Debian installs.
    Ext4,
    /// What many mail servers have.
    Xfs,
}

/// The disk of one host, in use from [`Disk::insert`] until it is dropped.
pub struct Disk {
    host: Host,
    wire: Arc<Wire>,
    device: PathBuf,
    /// What the disk was when its power was cut, until the host is down.
    held: Option<Medium>,
    kind: Kind,
}

impl Disk {
    /// Copies what the host holds to a new disk, on which it runs from now on. When the disk is
    /// dropped the host is left stopped, with the data that it had before.
    pub fn insert(host: &Host, kind: Kind) -> Result<Disk> {
        host.down()?;
        let (wire, device) = attach(host, Medium::default())?;
        let disk = Disk { host: host.clone(), wire, device, held: None, kind };
        let device = disk.device.as_os_str();
        match kind {
            Kind::Ext4 => run("mkfs.ext4", &[OsStr::new("-q"), device])?,
            Kind::Xfs => run("mkfs.xfs", &[OsStr::new("-q"), OsStr::new("-K"), device])?,
        }
        // In a namespace of its own, so that no other host keeps hold of the mount.
        let copy = r#"mount "$0" /mnt; rm -rf /mnt/lost+found; cp -a "$1/." /mnt/; umount /mnt"#;
        let data = host.data();
        let shell = ["--mount", "sh", "-ec", copy].map(OsStr::new);
        run("unshare", &[&shell[..], &[device, data.as_os_str()]].concat())?;
        disk.start()?;
        Ok(disk)
    }

    /// Cuts the disk's power now: nothing that is under way reaches it any more, and nobody is
    /// told. [`Disk::fall`] must follow.
    pub fn cut(&mut self) {
        self.held = Some(self.wire.hold());
    }

    /// Has the rest of the host lose its power too: the network falls silent, then all processes
    /// end. What was left in the disk's own cache has this fate.
    pub fn fall(&mut self, fate: Fate) -> Result<Loss> {
        let medium = self.held.take().context("the power is on")?;
        let pid = self.host.pid()?;
        let pid = rustix::process::Pid::from_raw(pid as i32).context("no pid")?;
        self.host.cut()?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
        // Who waits for the disk can end only when it answers; he is to be killed by then.
        std::thread::sleep(Duration::from_millis(20));
        self.wire.fail();
        self.host.kill()?;
        detached(&self.device)?;
        let (medium, loss) = medium.without_power(fate);
        (self.wire, self.device) = attach(&self.host, medium)?;
        self.check().context("no real disk would have been left like this")?;
        Ok(loss)
    }

    /// Has the filesystem recover, and looks whether it is sound then: it must be, if the disk has
    /// kept what it was told to flush, as it would have to be on any machine.
    fn check(&self) -> Result<()> {
        let check = match self.kind {
            Kind::Ext4 => "e2fsck -fn",
            Kind::Xfs => "xfs_repair -n",
        };
        let script = format!(r#"mount "$0" /mnt; umount /mnt; {check} "$0""#);
        let shell = ["--mount", "sh", "-ec", &script].map(OsStr::new);
        run("unshare", &[&shell[..], &[self.device.as_os_str()]].concat())
    }

    /// Starts the host again.
    pub fn start(&self) -> Result<()> {
        let up = self.host.up_on(&self.device);
        // Whatever comes, the device goes when the last one lets go of it.
        run("losetup", &[OsStr::new("--detach"), self.device.as_os_str()])?;
        up
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.held.is_some() {
            self.wire.fail();
        }
        let down = self.host.down().and_then(|()| detached(&self.device));
        if let Err(error) = down {
            eprintln!("taking the disk out of {}: {error:#}", self.host);
        }
        self.wire.fail();
    }
}

/// Serves a medium and puts a loop device on top of it.
fn attach(host: &Host, medium: Medium) -> Result<(Arc<Wire>, PathBuf)> {
    let place = state_dir().join("run").join(format!("disk-{host}"));
    std::fs::create_dir_all(&place)?;
    let wire = Arc::new(Wire {
        state: Mutex::new(State { medium, power: Power::On }),
        change: Condvar::new(),
    });
    let session = Session::new(Plug(Arc::clone(&wire)), &place, &Config::default())
        .with_context(|| format!("mounting {}", place.display()))?;
    std::thread::Builder::new().name(format!("disk-{host}")).spawn(move || session.run())?;
    let find = Command::new("losetup").args(["--find", "--show"]).arg(place.join(NAME)).output()?;
    // The loop device holds the file; nobody else is to find it.
    run("umount", &[OsStr::new("--lazy"), place.as_os_str()])?;
    std::fs::remove_dir(&place)?;
    ensure!(find.status.success(), "losetup: {}", String::from_utf8_lossy(&find.stderr).trim());
    let device = PathBuf::from(String::from_utf8_lossy(&find.stdout).trim());
    Ok((wire, device))
}

/// Waits until nothing uses the loop device any more.
fn detached(device: &Path) -> Result<()> {
    let name = device.file_name().context("no device")?;
    let backing = Path::new("/sys/block").join(name).join("loop/backing_file");
    let start = Instant::now();
    while backing.exists() {
        ensure!(start.elapsed() < PATIENCE, "{} stays in use", device.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn run(program: &str, arguments: &[&OsStr]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("starting {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {arguments:?}: {}: {}", output.status, said.trim());
    }
    Ok(())
}

/// What the kernel and the one who cuts the power share.
struct Wire {
    state: Mutex<State>,
    change: Condvar,
}

struct State {
    medium: Medium,
    power: Power,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// Nothing is answered.
    Held,
    /// Everything fails.
    Off,
}

impl Wire {
    /// From now on nothing is answered; what the medium is at this instant.
    fn hold(&self) -> Medium {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.power = Power::Held;
        state.medium.clone()
    }

    fn fail(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).power = Power::Off;
        self.change.notify_all();
    }

    /// The state while there is power; waits while the disk is held.
    fn powered(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let held = |state: &mut State| state.power == Power::Held;
        let state = self.change.wait_while(state, held).unwrap_or_else(PoisonError::into_inner);
        (state.power == Power::On).then_some(state)
    }
}

/// The name of the only file.
const NAME: &str = "disk";
/// Its number.
const FILE: INodeNo = INodeNo(2);
/// How long the kernel may believe what it was told.
const TTL: Duration = Duration::from_secs(3600);

/// A filesystem that holds one file, the disk.
struct Plug(Arc<Wire>);

impl Filesystem for Plug {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Nothing between the loop device and us may keep anything.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.0.powered() {
            Some(state) => {
                let length = u64::from(size).min(SIZE.saturating_sub(offset));
                reply.data(&state.medium.read(offset, length as usize));
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.0.powered() {
            Some(mut state) => {
                state.medium.write(offset, data);
                reply.written(data.len() as u32);
            }
            None => reply.error(Errno::EIO),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok(); // a close, which promises nothing
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.powered() {
            Some(mut state) => {
                state.medium.flush();
                reply.ok();
            }
            None => reply.error(Errno::EIO),
        }
    }
}

fn attributes(ino: INodeNo) -> FileAttr {
    let file = ino == FILE;
    FileAttr {
        ino,
        size: if file { SIZE } else { 0 },
        blocks: if file { SIZE / 512 } else { 0 },
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if file { FileType::RegularFile } else { FileType::Directory },
        perm: 0o700,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        flags: 0,
        blksize: 4096,
    }
}
