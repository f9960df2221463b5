//! The handle on one lab host, a container with a Cyrus server that `lab.sh` runs.

use crate::{ADMIN, PASSWORD, dav::Dav, imap::Imap, sieve::Sieve};
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The hosts of the lab and their addresses.
const HOSTS: &[(&str, &str)] = &[
    ("bw1", "10.77.0.11"),
    ("bw2", "10.77.0.12"),
    ("bw3", "10.77.0.13"),
    ("bull", "10.77.0.21"),
    ("trix", "10.77.0.22"),
    ("sid", "10.77.0.23"),
    ("bull2", "10.77.0.31"),
    ("trix2", "10.77.0.32"),
    ("sid2", "10.77.0.33"),
    ("mup", "10.77.0.41"),
    ("be1", "10.77.0.42"),
    ("be2", "10.77.0.43"),
    ("fe1", "10.77.0.44"),
];

/// One lab host, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    name: String,
    ip: String,
}

impl Host {
    /// The host of that name; nothing is started.
    ///
    /// A host that is none of the usual ones must have been brought up before, for only then its
    /// address is known; without one, the name is taken for the address itself.
    pub fn new(name: impl Into<String>) -> Host {
        let name = name.into();
        let usual = HOSTS.iter().find(|(usual, _)| *usual == name);
        let ip = match usual {
            Some((_, ip)) => (*ip).to_owned(),
            None => {
                match std::fs::read_to_string(state_dir().join("hosts").join(&name).join("ip")) {
                    Ok(ip) => ip.trim().to_owned(),
                    Err(_) => name.clone(),
                }
            }
        };
        Host { name, ip }
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The host's address in the lab's network.
    pub fn ip(&self) -> &str {
        &self.ip
    }

    /// The directory, outside the host, of its Cyrus data: `lib`, `spool` and `sieve` in it are
    /// mounted in the host, so they must stay; what they hold may change while Cyrus is stopped.
    pub fn data(&self) -> PathBuf {
        state_dir().join("hosts").join(&self.name).join("data")
    }

    /// Starts the host with its Cyrus server; returns when clients can log in, which can take some
    /// seconds after a restart, until its new hardware address is known.
    pub fn up(&self) -> Result<()> {
        self.lab("up", &[])?;
        self.await_imap(Duration::from_secs(30))
    }

    /// Starts a host that has no Cyrus.
    pub fn up_alone(&self) -> Result<()> {
        self.lab("up", &[])
    }

    /// Starts the host with the filesystem on this device for its data, until it stops.
    pub fn up_on(&self, device: &Path) -> Result<()> {
        self.lab("up", &["--disk", &device.display().to_string()])?;
        self.await_imap(Duration::from_secs(30))
    }

    /// Ends all processes of the host at once, as when its power fails.
    pub fn kill(&self) -> Result<()> {
        self.lab("kill", &[])
    }

    /// Stops the host; its data stay.
    pub fn down(&self) -> Result<()> {
        self.lab("down", &[])
    }

    /// Starts Cyrus on a running host.
    pub fn start_cyrus(&self) -> Result<()> {
        self.lab("startcyrus", &[])
    }

    /// Stops Cyrus in good order.
    pub fn stop_cyrus(&self) -> Result<()> {
        self.lab("stopcyrus", &[])
    }

    /// Stops and starts Cyrus.
    pub fn restart_cyrus(&self) -> Result<()> {
        self.lab("restartcyrus", &[])
    }

    /// Kills every Cyrus process with SIGKILL.
    pub fn kill_cyrus(&self) -> Result<()> {
        self.lab("killcyrus", &[])
    }

    /// Cuts the host off the network; packets are lost without a word.
    pub fn cut(&self) -> Result<()> {
        self.lab("cut", &[])
    }

    /// Connects the host to the network again.
    pub fn heal(&self) -> Result<()> {
        self.lab("heal", &[])
    }

    /// Sets an option in the host's `imapd.conf` and restarts Cyrus; no value leaves it out.
    pub fn set_option(&self, option: &str, value: &str) -> Result<()> {
        self.lab("set", &[&format!("{option}: {value}")])
    }

    /// Sets options in the host's `imapd.conf`, all others back to the lab's, and restarts Cyrus.
    pub fn configure(&self, options: &[(&str, &str)]) -> Result<()> {
        let lines: Vec<String> = options.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        let lines = lines.iter().map(String::as_str);
        self.lab("set", &std::iter::once("--reset").chain(lines).collect::<Vec<_>>())
    }

    /// Sets all options in the host's `imapd.conf` back to the lab's and restarts Cyrus.
    pub fn reset_options(&self) -> Result<()> {
        self.lab("set", &["--reset"])
    }

    /// Keeps the host's data under a name, to be brought back by [`Host::unsnap`].
    pub fn snap(&self, name: &str) -> Result<()> {
        self.lab("snap", &[name])
    }

    /// Replaces the host's data by what [`Host::snap`] kept.
    pub fn unsnap(&self, name: &str) -> Result<()> {
        self.lab("unsnap", &[name])
    }

    /// Removes every mailbox and all of Cyrus's state, as after installing it.
    pub fn empty(&self) -> Result<()> {
        self.lab("empty", &[])
    }

    /// Creates accounts, each with [`PASSWORD`]; no mailboxes are made.
    pub fn add_users(&self, users: &[&str]) -> Result<()> {
        self.lab("adduser", users)
    }

    /// The host's root directory as seen from outside.
    ///
    /// Beware that absolute symbolic links below it lead out of it.
    pub fn root(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(self.ask("root")?))
    }

    /// The process id, seen from outside, of the host's init.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.ask("pid")?;
        pid.parse().with_context(|| format!("lab.sh pid said {pid:?}"))
    }

    /// The process ids, seen from outside, of the host's processes whose command lines match.
    pub fn pids(&self, pattern: &str) -> Result<Vec<u32>> {
        let mut pids = lab_sh();
        pids.args(["pids", &self.name, pattern]).stdin(Stdio::null());
        let said = pids.output().context("starting lab.sh pids")?.stdout; // fails if there are none
        Ok(String::from_utf8_lossy(&said).lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// A command that, once spawned, runs in the host as root.
    pub fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = lab_sh();
        command.arg("exec").arg(&self.name).args(args);
        command
    }

    /// Runs a command in the host as root and waits for it, whatever its exit status.
    pub fn exec<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        let mut command = self.command(args);
        command.stdin(Stdio::null());
        command.output().context("starting lab.sh exec")
    }

    /// Runs a command in the host as the user `cyrus` and waits for it, whatever its exit status.
    pub fn exec_as_cyrus<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Output> {
        let mut command = self.command(args);
        command.env("AS", "cyrus").stdin(Stdio::null());
        command.output().context("starting lab.sh exec as cyrus")
    }

    /// Runs a command in the host as root, which must succeed; returns what it wrote to stdout.
    pub fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        succeeded(self.exec(args)?)
    }

    /// Runs a command in the host as `cyrus`, which must succeed; returns what it wrote to stdout.
    pub fn run_as_cyrus<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String> {
        succeeded(self.exec_as_cyrus(args)?)
    }

    /// Starts a command in the host as root, with pipes for stdin, stdout and stderr.
    pub fn spawn<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Child> {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("starting lab.sh exec")
    }

    /// Copies a local file into the host as an executable; one being run there is replaced, not
    /// overwritten.
    pub fn install(&self, file: &Path, destination: &str) -> Result<()> {
        let source =
            std::fs::File::open(file).with_context(|| format!("opening {}", file.display()))?;
        let script =
            r#"set -e; cat > "$1.new"; chmod 755 "$1.new"; mv -f "$1.new" "$1"; stat -c %s "$1""#;
        let size = source.metadata()?.len();
        let mut command = self.command(&["sh", "-c", script, "install", destination]);
        command.stdin(source);
        let arrived = succeeded(command.output().context("starting lab.sh exec")?)?;
        if arrived.trim() != size.to_string() {
            bail!("{destination} on {} has {arrived} bytes instead of {size}", self.name);
        }
        Ok(())
    }

    /// An IMAP session of that user.
    pub fn imap(&self, user: &str) -> Result<Imap> {
        let mut imap = Imap::connect(self.ip(), Duration::from_secs(10))?;
        imap.login(user, PASSWORD)?;
        Ok(imap)
    }

    /// An IMAP session of the administrator.
    pub fn admin(&self) -> Result<Imap> {
        self.imap(ADMIN)
    }

    /// A ManageSieve session of that user.
    pub fn sieve(&self, user: &str) -> Result<Sieve> {
        Sieve::connect(self.ip(), user, PASSWORD)
    }

    /// A CalDAV and CardDAV client of that user; the option `httpmodules` starts the service.
    pub fn dav(&self, user: &str) -> Dav {
        Dav::new(self.ip(), user, PASSWORD)
    }

    /// Waits until the administrator can log in.
    pub fn await_imap(&self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.admin() {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > patience => {
                    return Err(error.context(format!("{} does not answer", self.name)));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn lab(&self, verb: &str, args: &[&str]) -> Result<()> {
        self.lab_output(verb, args).map(drop)
    }

    fn ask(&self, verb: &str) -> Result<String> {
        Ok(self.lab_output(verb, &[])?.trim().to_owned())
    }

    /// The output goes through files, not pipes: a daemon that `lab.sh` leaves behind would hold
    /// a pipe open for ever.
    fn lab_output(&self, verb: &str, args: &[&str]) -> Result<String> {
        let log = std::env::temp_dir().join(format!(
            "lab-{}-{:?}-{verb}",
            std::process::id(),
            std::thread::current().id()
        ));
        let sink = std::fs::File::create(&log)?;
        let status = lab_sh()
            .arg(verb)
            .arg(&self.name)
            .args(args)
            .stdin(Stdio::null())
            .stderr(sink.try_clone()?)
            .stdout(sink)
            .status()
            .context("starting lab.sh")?;
        let said = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        std::fs::remove_file(&log)?;
        if !status.success() {
            bail!("lab.sh {verb} {}: {status}: {}", self.name, said.trim());
        }
        Ok(said)
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

/// Where `lab.sh` keeps everything.
pub fn state_dir() -> PathBuf {
    std::env::var_os("MBCOPY_LAB").map_or_else(|| "/var/tmp/mbcopy-lab".into(), PathBuf::from)
}

/// `lab.sh`, which lies beside this crate's manifest; `$MBCOPY_LAB_SH` names another one.
fn lab_sh() -> Command {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/lab.sh");
    Command::new(std::env::var_os("MBCOPY_LAB_SH").unwrap_or_else(|| beside.into()))
}

fn succeeded(output: Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}{}", output.status, stderr.trim(), stdout.trim());
    }
    Ok(stdout)
}
