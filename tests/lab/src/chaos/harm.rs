//! Doing harm to a move, and looking what is left of it.

use super::plan::{Harm, Side, Victim};
use crate::host::Host;
use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Where a place to stop at is written, and how mbcopy is to betray its promises.
const FAULT: &str = "run/mbcopy-fault";
const SABOTAGE: &str = "run/mbcopy-sabotage";

/// The two servers of a move as they are seen from outside.
pub(super) struct Field<'a> {
    pub source: Place<'a>,
    pub target: Place<'a>,
}

/// One server.
pub(super) struct Place<'a> {
    pub host: &'a Host,
    root: PathBuf,
    /// Its pid namespace, as /proc tells it.
    namespace: PathBuf,
}

/// A process on a server.
pub(super) struct Process {
    pid: i32,
    arguments: Vec<String>,
}

impl Process {
    fn is_mbcopy(&self) -> bool {
        self.arguments.first().is_some_and(|program| program.ends_with("mbcopy"))
    }

    fn is(&self, victim: Victim) -> bool {
        let role = |role: &str| {
            self.arguments.windows(2).any(|pair| pair[0] == "--role" && pair[1] == role)
        };
        let command = self.arguments.get(1).map_or("", String::as_str);
        self.is_mbcopy()
            && match victim {
                Victim::Coordinator => ["push", "resume", "abort"].contains(&command),
                Victim::SourceAgent => role("source"),
                Victim::TargetAgent => role("target"),
                Victim::Everybody => true,
            }
    }

    /// Whether it is stopped by a signal.
    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    pub fn send(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // It may have ended by itself.
            let _ = kill_process(pid, signal);
        }
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.arguments.join(" "))
    }
}

impl<'a> Place<'a> {
    pub fn new(host: &'a Host) -> Result<Place<'a>> {
        let namespace = format!("/proc/{}/ns/pid", host.pid()?);
        let namespace = std::fs::read_link(&namespace).context(namespace)?;
        Ok(Place { host, root: host.root()?, namespace })
    }

    /// Its processes.
    fn processes(&self) -> Vec<Process> {
        let numbers = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|ns| ns == self.namespace)
        })
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let text = String::from_utf8_lossy(&line);
            let arguments = text.split_terminator('\0').map(str::to_owned).collect();
            Some(Process { pid, arguments })
        })
        .collect()
    }

    /// Its processes of mbcopy.
    pub fn mbcopies(&self) -> Vec<Process> {
        self.processes().into_iter().filter(Process::is_mbcopy).collect()
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = self.root.join(file);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?)
    }

    fn remove(&self, file: &str) {
        let _ = std::fs::remove_file(self.root.join(file));
    }

    /// Has mbcopy betray a promise, or none.
    pub fn sabotage(&self, word: Option<&str>) -> Result<()> {
        match word {
            Some(word) => self.write(SABOTAGE, word),
            None => {
                self.remove(SABOTAGE);
                Ok(())
            }
        }
    }
}

impl<'a> Field<'a> {
    fn both(&self) -> [&Place<'a>; 2] {
        [&self.source, &self.target]
    }

    /// Has whoever reaches this place stop there.
    pub fn arm(&self, point: &str, before: u32) -> Result<()> {
        self.both()
            .into_iter()
            .try_for_each(|place| place.write(FAULT, &format!("{point} stop {before}")))
    }

    /// Nobody is to stop anywhere any more.
    pub fn disarm(&self) {
        for place in self.both() {
            place.remove(FAULT);
        }
    }

    /// Whoever has stopped goes on.
    pub fn wake(&self) {
        let all = self.both().into_iter().flat_map(|place| place.mbcopies());
        all.filter(Process::is_stopped).for_each(|process| process.send(Signal::CONT));
    }

    /// Whoever has stopped at the place; none if nobody has reached it yet.
    pub fn stopped(&self) -> Vec<Process> {
        let spent = |place: &&&Place| {
            std::fs::read_to_string(place.root.join(FAULT)).is_ok_and(|t| t.trim().is_empty())
        };
        let both = self.both();
        let spent = both.iter().filter(spent);
        spent.flat_map(|p| p.mbcopies()).filter(Process::is_stopped).collect()
    }

    fn find(&self, victim: Victim) -> Vec<Process> {
        let places: &[&Place<'_>] = match victim {
            Victim::TargetAgent => &[&self.target],
            Victim::Everybody => &self.both(),
            _ => &[&self.source],
        };
        let all = places.iter().flat_map(|place| place.processes());
        all.filter(|process| process.is(victim)).collect()
    }

    /// Does the harm, with all that it takes; false if there is nobody to be harmed yet.
    pub fn perform(&self, harm: Harm) -> Result<bool> {
        let harmed = |victims: Vec<Process>, signal: Signal| {
            victims.iter().for_each(|victim| victim.send(signal));
            !victims.is_empty()
        };
        match harm {
            Harm::Kill(victim) => return Ok(harmed(self.find(victim), Signal::KILL)),
            Harm::KillSession => {
                let session = |p: &Process| {
                    p.arguments.first().is_some_and(|name| name.starts_with("sshd: root"))
                };
                let sessions = self.target.processes().into_iter().filter(session).collect();
                return Ok(harmed(sessions, Signal::KILL));
            }
            Harm::KillCyrus(side, time) => {
                let host = match side {
                    Side::Source => self.source.host,
                    Side::Target => self.target.host,
                };
                host.kill_cyrus()?;
                std::thread::sleep(time);
                host.start_cyrus()?;
            }
            Harm::Cut(time) => {
                self.target.host.cut()?;
                std::thread::sleep(time);
                self.target.host.heal()?;
            }
            Harm::Stop(victim, time, kill) => {
                let victims = self.find(victim);
                victims.iter().for_each(|victim| victim.send(Signal::STOP));
                if victims.is_empty() {
                    return Ok(false);
                }
                std::thread::sleep(time);
                return Ok(harmed(victims, if kill { Signal::KILL } else { Signal::CONT }));
            }
        }
        Ok(true)
    }

    /// Takes away what an earlier runner may have left.
    pub fn clear(&self) -> Result<()> {
        self.disarm();
        for place in self.both() {
            place.mbcopies().iter().for_each(|process| process.send(Signal::KILL));
            place.sabotage(None)?;
        }
        Ok(())
    }

    /// Takes every harm back that could last.
    pub fn mend(&self) -> Result<()> {
        self.disarm();
        self.target.host.heal()?;
        self.wake();
        self.both().into_iter().try_for_each(|place| place.host.start_cyrus())
    }

    /// Processes of mbcopy that do not end by themselves.
    pub fn left(&self, patience: Duration) -> Vec<Process> {
        let start = Instant::now();
        loop {
            let left: Vec<Process> =
                self.both().into_iter().flat_map(|place| place.mbcopies()).collect();
            if left.is_empty() || start.elapsed() > patience {
                return left;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
