//! This server's own imapd, started for us alone.
//!
//! Cyrus's services can talk to their standard input and output (`-X`), and imapd
//! can do without a password (`-N`): nobody but the process that started it can
//! reach it, and it ends when that one does. It runs on the live data with the
//! live configuration, so that all it does is what a client of this server
//! would do, locks, quota counts and replication logs included.

use super::Host;
use super::imap::Imap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What syslog and `cyr_info proc` call it, and the prefix of its own options.
const SERVICE: &str = "mbcopy";

/// How long any one answer may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long it may take to end by itself.
const END_WAIT: Duration = Duration::from_secs(5);

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// It does not run.
    #[error("cannot start imapd: {0}")]
    Start(String),
    /// It turns us away.
    #[error("imapd does not let {identity} in: {said}")]
    Refused {
        /// Who wanted in.
        identity: String,
        /// What it said.
        said: String,
    },
}

/// A running imapd and the session with it.
pub struct Instance {
    /// The session.
    pub imap: Imap,
    child: Child,
    conf: PathBuf,
}

impl Instance {
    /// Starts an imapd that keeps its configuration in `directory`, and logs in as
    /// `identity`, who is an admin for this session: so mailboxes have the same
    /// names for everybody, and he may make and rename them.
    pub fn start(host: &Host, directory: &Path, identity: &str) -> Result<Self, InstanceError> {
        let failed = |e: &dyn std::fmt::Display| InstanceError::Start(e.to_string());
        if identity.is_empty() || identity.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(failed(&format!("{identity:?} cannot log in")));
        }
        let conf = directory.join("carry.conf");
        configure(&conf, &host.conf, identity).map_err(|e| failed(&e))?;
        let program = host.tools.find("imapd").map_err(|e| failed(&e))?;
        let (ours, theirs) = UnixStream::pair().map_err(|e| failed(&e))?;
        let output = theirs.try_clone().map_err(|e| failed(&e))?;
        let child = Command::new(program)
            .arg("-C")
            .arg(&conf)
            .args(["-X", "-N", "-q", "-p", "2"])
            .env_clear()
            .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
            .env("CYRUS_SERVICE", SERVICE)
            .env("CYRUS_ID", "0")
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| failed(&e))?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(|e| failed(&e))?;
        ours.set_write_timeout(Some(PATIENCE)).map_err(|e| failed(&e))?;
        // From here on dropping ends the child.
        let mut instance = Self { imap: Imap::new(ours), child, conf };
        let refused = |said: String| InstanceError::Refused { identity: identity.into(), said };
        instance.imap.greeting().map_err(|e| refused(e.to_string()))?;
        let answer = instance.imap.command("LOGIN", &[identity.as_bytes(), b"-"]);
        let answer = answer.map_err(|e| refused(e.to_string()))?;
        if answer.ok { Ok(instance) } else { Err(refused(answer.text)) }
    }
}

impl Instance {
    /// Its process.
    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Ends it at once, whatever it does.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.imap.close();
        let began = Instant::now();
        while let Ok(None) = self.child.try_wait() {
            if began.elapsed() > END_WAIT {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = std::fs::remove_file(&self.conf);
    }
}

/// Writes a configuration that is the live one but for what keeps a message or us
/// out. What a service's own name stands before counts for that service alone.
fn configure(path: &Path, live: &Path, identity: &str) -> io::Result<()> {
    let text = format!(
        "@include: {}\n{SERVICE}_admins: {identity}\n{SERVICE}_tls_required: no\n\
         {SERVICE}_maxmessagesize: 0\n",
        live.display()
    );
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}
