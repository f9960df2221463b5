//! A PostgreSQL server of the machine's own packages, for one test.

use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Whom the lab's hosts reach at this address.
const IN_LAB: &str = "10.77.0.1";

/// The user that the server runs as, and its only role.
const USER: &str = "postgres";

/// A running server; stopped and removed when dropped.
pub struct Postgres {
    child: Child,
    directory: PathBuf,
    in_lab: bool,
}

impl Postgres {
    /// Starts one that is reached by a socket only, or from the lab's hosts, whose network must
    /// be up.
    pub fn start(in_lab: bool) -> Result<Postgres> {
        let name = format!("mbcopy-postgres-{}-{in_lab}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory)?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777))?;
        std::fs::write(directory.join("password"), crate::PASSWORD)?;
        let programs = programs()?;
        let at = |name: &str| directory.join(name).display().to_string();
        let initdb = programs.join("initdb").display().to_string();
        let made = as_postgres(Command::new("setpriv"))
            .args([&initdb, "-D", &at("data"), "-U", USER, "-E", "UTF8", "--no-sync"])
            .args(["--auth-local=trust", "--auth-host=scram-sha-256"])
            .arg(format!("--pwfile={}", at("password")))
            .output()
            .context("setpriv initdb")?;
        ensure!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        if in_lab {
            let hba = directory.join("data/pg_hba.conf");
            let rules = std::fs::read_to_string(&hba)?;
            std::fs::write(&hba, format!("{rules}host all all {IN_LAB}/24 scram-sha-256\n"))?;
        }
        let child = serve(&directory, &programs, in_lab)?;
        let mut server = Postgres { child, directory, in_lab };
        server.await_answer(&programs)?;
        Ok(server)
    }

    /// Kills it, leaves it dead for some seconds, and starts it on what it has left.
    pub fn restart(&mut self) -> Result<()> {
        self.quit();
        std::thread::sleep(Duration::from_secs(4));
        let programs = programs()?;
        self.child = serve(&self.directory, &programs, self.in_lab)?;
        self.await_answer(&programs)
    }

    fn quit(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            // At once, and its children with it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
        let _ = self.child.wait();
    }

    /// The URL of its database, by its socket.
    pub fn local_url(&self) -> String {
        format!("postgres://{USER}@/{USER}?host={}", self.directory.display())
    }

    /// The same for the lab's hosts.
    pub fn lab_url(&self) -> String {
        format!("postgres://{USER}:{}@{IN_LAB}/{USER}", crate::PASSWORD)
    }

    fn await_answer(&mut self, programs: &Path) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut ready = Command::new(programs.join("pg_isready"));
            let ready = ready.arg("-q").arg("-h").arg(&self.directory).status()?;
            if ready.success() {
                return Ok(());
            }
            if self.child.try_wait()?.is_some() || began.elapsed() > Duration::from_secs(60) {
                let log = std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
                bail!("postgres does not answer: {log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.quit();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The server itself, on a directory that is made.
fn serve(directory: &Path, programs: &Path, in_lab: bool) -> Result<Child> {
    let mut command = Command::new(if in_lab { "nsenter" } else { "setpriv" });
    if in_lab {
        command.arg(format!("--net={}", crate::net::client_netns().display())).arg("setpriv");
    }
    as_postgres(command)
        .arg(programs.join("postgres"))
        .arg("-D")
        .arg(directory.join("data"))
        .arg("-k")
        .arg(directory)
        .args(["-h", if in_lab { IN_LAB } else { "" }])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log"))?)
        .spawn()
        .context("starting postgres")
}

/// It refuses to run as root.
fn as_postgres(mut setpriv: Command) -> Command {
    if rustix::process::geteuid().is_root() {
        setpriv.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--init-groups"]);
    }
    setpriv.arg("--");
    setpriv.current_dir("/");
    setpriv
}

/// Where Debian puts the newest version's programs.
fn programs() -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql");
    let versions = versions.context("no PostgreSQL here; `make tools` installs it")?;
    let newest = versions.flatten().max_by_key(|version| {
        version.file_name().to_string_lossy().parse::<u32>().unwrap_or_default()
    });
    Ok(newest.context("no version of PostgreSQL")?.path().join("bin"))
}
