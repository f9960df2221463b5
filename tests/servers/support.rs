//! Two servers and a push between them.

use anyhow::{Context, Result, ensure};
use lab::browser;
use lab::chaos::Side;
use lab::fingerprint::{self, Fingerprint, Take, volatile};
use lab::host::Host;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";

/// Source and target.
pub struct Servers {
    /// Where users are seeded.
    pub source: Host,
    /// Where they are moved to.
    pub target: Host,
}

/// Puts both servers' options back when a test that changed them ends.
pub struct OptionsPutBack;

impl Drop for OptionsPutBack {
    fn drop(&mut self) {
        ["bw1", "bw2"].map(Host::new).iter().for_each(put_back);
    }
}

/// Puts the options of these servers back when a test that changed them ends.
pub struct PutBack(pub Vec<Host>);

impl Drop for PutBack {
    fn drop(&mut self) {
        self.0.iter().for_each(put_back);
    }
}

fn put_back(host: &Host) {
    // What is converted does not fit the options that come back.
    let _ = host.empty();
    let _ = host.reset_options();
    let _ = host.empty();
}

/// How a push ended.
pub struct Pushed {
    /// The exit code.
    pub code: i32,
    /// Standard output: JSON lines with `--json`, else the last line.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Servers {
    /// Both Cyrus 3.6.1, as [`between`](Self::between) brings them up.
    pub fn fresh() -> Servers {
        Self::between("bw1", "bw2")
    }

    /// Brings two hosts of the lab up, empty of what earlier tests left, with the
    /// mbcopy that was just built.
    pub fn between(source: &str, target: &str) -> Servers {
        let servers = Servers { source: Host::new(source), target: Host::new(target) };
        servers.both().into_iter().for_each(install);
        servers
    }

    /// Sets each server's options, for a test that ends when the second value does.
    pub fn with_options(
        source: (&str, &[(&str, &str)]),
        target: (&str, &[(&str, &str)]),
    ) -> (Servers, PutBack) {
        let servers = Self::between(source.0, target.0);
        let put_back = PutBack(servers.both().map(Host::clone).to_vec());
        for (host, (_, options)) in servers.both().into_iter().zip([source, target]) {
            host.configure(options).unwrap();
            // What is there already may be of another engine.
            host.empty().unwrap();
        }
        (servers, put_back)
    }

    /// Both hosts.
    pub fn both(&self) -> [&Host; 2] {
        [&self.source, &self.target]
    }

    /// The host on a side of the move.
    pub fn on(&self, side: Side) -> &Host {
        match side {
            Side::Source => &self.source,
            Side::Target => &self.target,
        }
    }

    /// Makes login accounts on both servers.
    pub fn accounts(&self, users: &[&str]) {
        for host in self.both() {
            host.add_users(users).expect("accounts are made");
        }
    }

    /// What happens at which point, on whichever host passes it first: see
    /// [`mbcopy::fault`].
    pub fn arm(&self, fault: &str) {
        self.both().into_iter().for_each(|host| self.arm_on(host, fault));
    }

    /// The same, on one host only.
    pub fn arm_on(&self, host: &Host, fault: &str) {
        let script = format!("echo {fault} > /run/mbcopy-fault; chmod 666 /run/mbcopy-fault");
        host.run(&["sh", "-c", &script]).unwrap();
    }

    /// Whether something happened at an armed point already.
    pub fn struck(&self) -> bool {
        let spent = "test -e /run/mbcopy-fault && ! test -s /run/mbcopy-fault";
        self.both().iter().any(|host| host.exec(&["sh", "-c", spent]).unwrap().status.success())
    }

    /// Whether the point was reached; nothing is armed after.
    pub fn disarm(&self) -> bool {
        let reached = self.struck();
        for host in self.both() {
            host.run(&["rm", "-f", "/run/mbcopy-fault"]).unwrap();
        }
        reached
    }

    /// Runs mbcopy on the source.
    pub fn mbcopy(&self, arguments: &[&str]) -> Pushed {
        let command: Vec<&str> = [PROGRAM].iter().chain(arguments).copied().collect();
        Pushed::from(self.source.exec(&command).expect("mbcopy runs"))
    }

    /// Moves a mailbox from the source to the target.
    pub fn push(&self, mailbox: &str, options: &[&str]) -> Pushed {
        let arguments: Vec<&str> =
            ["push", mailbox, self.target.name()].iter().chain(options).copied().collect();
        self.mbcopy(&arguments)
    }
}

/// Brings a host up, empty, with the mbcopy that was just built.
pub fn install(host: &Host) {
    host.up().expect("a host of the lab comes up; `make lab` builds it");
    host.empty().expect("a host of the lab can be emptied");
    let old = host.name().starts_with("bull");
    let program = if old { portable_program() } else { program() };
    host.install(program, PROGRAM).expect("mbcopy is installed");
}

impl From<Output> for Pushed {
    fn from(output: Output) -> Pushed {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Pushed {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }
}

impl Pushed {
    /// The last line of standard output.
    pub fn last_line(&self) -> &str {
        self.stdout.lines().last().unwrap_or_default()
    }

    /// Fails the test unless the push ended with this code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Pushed {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Fails the test unless all of these stand in what was printed.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Pushed {
        for text in texts {
            let said = self.stderr.contains(text) || self.stdout.contains(text);
            assert!(said, "no {text:?} in\n{}\n{}", self.stdout, self.stderr);
        }
        self
    }

    /// The report, of a push with `--json`.
    pub fn report(&self) -> Result<serde_json::Value> {
        let report: serde_json::Value = serde_json::from_str(self.last_line())
            .with_context(|| format!("no report: {}\n{}", self.stdout, self.stderr))?;
        ensure!(report["event"] == "report", "the last line is no report: {report}");
        Ok(report)
    }
}

/// Everything that can be observed of a user and of others' views of him.
pub fn fingerprint(host: &Host, user: &str, others: &[&str]) -> Fingerprint {
    Fingerprint::take(host, user, &Take::with_others(others)).expect("the fingerprint is taken")
}

/// Fails the test unless both are the same, but for what no copy can keep.
#[track_caller]
pub fn assert_same(before: &Fingerprint, after: &Fingerprint, known: &[&str]) {
    let always = [volatile::LASTUPDATE, volatile::SERVER];
    let ignored: Vec<&str> = volatile::ALWAYS.iter().chain(&always).chain(known).copied().collect();
    let differences = fingerprint::diff(before, after, &ignored).expect("fingerprints compare");
    assert!(differences.is_empty(), "{}", fingerprint::report(&differences));
}

/// Looks at the page of a run's report as people do, on a desktop and on a phone; what was
/// seen of it on each. `$MBCOPY_SCREENSHOTS` is a directory for pictures.
#[track_caller]
pub fn look_at(page: &str, name: &str) -> Vec<serde_json::Value> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("report.html"), page).unwrap();
    let look = |screen: browser::Screen| {
        let seen = browser::look(directory.path(), "report.html", screen).unwrap();
        if let Some(pictures) = std::env::var_os("MBCOPY_SCREENSHOTS") {
            let file = Path::new(&pictures).join(format!("{name}-{}.png", screen.name));
            browser::picture(directory.path(), "report.html", screen, &file).unwrap();
        }
        assert_eq!(browser::unreadable(&seen), Vec::<String>::new(), "{screen:?}");
        assert!(seen["bars"].as_u64() > Some(0) && seen["classes"].as_u64() > Some(0), "{seen}");
        seen
    };
    browser::SCREENS.map(look).to_vec()
}

/// The program under test: the one that was built with the tests, or `$MBCOPY_PROGRAM`, for
/// what is measured.
pub fn program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let given = std::env::var_os("MBCOPY_PROGRAM").map(PathBuf::from);
        given.unwrap_or_else(|| env!("CARGO_BIN_EXE_mbcopy").into())
    })
}

/// The program under test for hosts whose C library is older than this machine's:
/// `$MBCOPY_PORTABLE`, or built now by `tools/static.sh`.
pub fn portable_program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = std::env::var_os("MBCOPY_PORTABLE") {
            return path.into();
        }
        let built = Path::new(env!("CARGO_BIN_EXE_mbcopy"));
        let target = built.ancestors().nth(2).expect("a target directory");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/static.sh");
        let done = Command::new(&script).arg("--faults").env("CARGO_TARGET_DIR", target).status();
        assert!(done.is_ok_and(|s| s.success()), "{} --faults fails", script.display());
        target.join("static/mbcopy-faults")
    })
}
