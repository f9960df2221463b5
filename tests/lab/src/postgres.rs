//! A PostgreSQL server of the machine's own packages, for one test.

use anyhow::{Context, Result, bail, ensure};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Whom the lab's hosts reach at this address.
const IN_LAB: &str = "10.77.0.1";

/// The user that the server runs as, and its only role.
const USER: &str = "postgres";

/// From where a server is reached, beside its socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Socket,
    /// From the lab's hosts.
    Lab,
    /// From this machine at this port, by TLS only.
    Tls(u16),
}

/// A running server; stopped and removed when dropped.
pub struct Postgres {
    child: Child,
    directory: PathBuf,
    reach: Reach,
}

impl Postgres {
    /// Starts one that is reached by a socket only, or from the lab's hosts, whose network must
    /// be up.
    pub fn start(in_lab: bool) -> Result<Postgres> {
        Self::start_for(if in_lab { Reach::Lab } else { Reach::Socket })
    }

    /// Starts one that is reached by a socket, and at `localhost` by nothing but TLS.
    pub fn start_encrypted() -> Result<Postgres> {
        // Free again once its listener is gone.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        Self::start_for(Reach::Tls(port))
    }

    fn start_for(reach: Reach) -> Result<Postgres> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mbcopy-postgres-{}-{number}", std::process::id());
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
        let hba = directory.join("data/pg_hba.conf");
        let rules = std::fs::read_to_string(&hba)?;
        match reach {
            Reach::Socket => {}
            Reach::Lab => {
                std::fs::write(&hba, format!("{rules}host all all {IN_LAB}/24 scram-sha-256\n"))?;
            }
            Reach::Tls(_) => {
                let rule = "local all all trust\nhostssl all all 127.0.0.1/32 scram-sha-256\n";
                std::fs::write(&hba, rule)?;
                certify(&directory)?;
            }
        }
        let child = serve(&directory, &programs, reach)?;
        let mut server = Postgres { child, directory, reach };
        server.await_answer(&programs)?;
        Ok(server)
    }

    /// Kills it, leaves it dead for some seconds, and starts it on what it has left.
    pub fn restart(&mut self) -> Result<()> {
        self.quit();
        std::thread::sleep(Duration::from_secs(4));
        let programs = programs()?;
        self.child = serve(&self.directory, &programs, self.reach)?;
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
        let port = match self.reach {
            Reach::Tls(port) => format!("&port={port}"),
            _ => String::new(),
        };
        format!("postgres://{USER}@/{USER}?host={}{port}", self.directory.display())
    }

    /// The same for the lab's hosts.
    pub fn lab_url(&self) -> String {
        format!("postgres://{USER}:{}@{IN_LAB}/{USER}", crate::PASSWORD)
    }

    /// The same by TLS, for a host of this name or address, with these further parameters.
    pub fn tls_url(&self, host: &str, parameters: &str) -> String {
        let Reach::Tls(port) = self.reach else { return self.local_url() };
        format!("postgres://{USER}:{}@{host}:{port}/{USER}?{parameters}", crate::PASSWORD)
    }

    /// The certificate that it shows, which vouches for itself: of `localhost`.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("server.pem")
    }

    fn await_answer(&mut self, programs: &Path) -> Result<()> {
        let began = Instant::now();
        loop {
            let mut ready = Command::new(programs.join("pg_isready"));
            ready.arg("-q").arg("-h").arg(&self.directory);
            if let Reach::Tls(port) = self.reach {
                ready.arg("-p").arg(port.to_string());
            }
            let ready = ready.status()?;
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
fn serve(directory: &Path, programs: &Path, reach: Reach) -> Result<Child> {
    let mut command = Command::new(if reach == Reach::Lab { "nsenter" } else { "setpriv" });
    if reach == Reach::Lab {
        command.arg(format!("--net={}", crate::net::client_netns().display())).arg("setpriv");
    }
    let mut command = as_postgres(command);
    command
        .arg(programs.join("postgres"))
        .arg("-D")
        .arg(directory.join("data"))
        .arg("-k")
        .arg(directory)
        .args([
            "-h",
            match reach {
                Reach::Socket => "",
                Reach::Lab => IN_LAB,
                Reach::Tls(_) => "127.0.0.1",
            },
        ]);
    if let Reach::Tls(port) = reach {
        let (certificate, key) = (directory.join("server.pem"), directory.join("server.key"));
        command.arg("-p").arg(port.to_string()).args(["-c", "ssl=on"]);
        command.arg("-c").arg(format!("ssl_cert_file={}", certificate.display()));
        command.arg("-c").arg(format!("ssl_key_file={}", key.display()));
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(directory.join("log"))?)
        .spawn()
        .context("starting postgres")
}

/// Makes a key, and a certificate of `localhost` that nobody else vouches for.
fn certify(directory: &Path) -> Result<()> {
    let (key, certificate) = (directory.join("server.key"), directory.join("server.pem"));
    // Written by whom the server runs as, which takes no key of others.
    let made = as_postgres(Command::new("setpriv"))
        .args(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .context("setpriv openssl")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(())
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
