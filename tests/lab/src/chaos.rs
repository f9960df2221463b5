//! Moves with harm at random: processes are killed or stopped, Cyrus dies, the network is cut,
//! several times within one move, while clients work and mail arrives. What was acknowledged must
//! be there in the end, once, on exactly one server.
//!
//! Everything that is random follows from the seed of a [`Plan`].

use crate::fingerprint::{Fingerprint, Take};
use crate::host::Host;
use crate::seed::Seed;
use crate::workload::{self, Crew, Observation, Route, Step};
use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// How long clients wait between two operations, and watchers between two looks.
const PAUSE: Duration = Duration::from_millis(15);
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often an admin tries before he calls it stuck.
const TRIES: usize = 4;

/// Who is harmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// `mbcopy push` and whatever command follows it.
    Coordinator,
    /// The agent on the source.
    SourceAgent,
    /// The agent on the target.
    TargetAgent,
    /// The process of sshd that serves the coordinator.
    Session,
    /// Cyrus on the source: the master and all its children.
    SourceCyrus,
    /// Cyrus on the target.
    TargetCyrus,
    /// The network cable of the target.
    Network,
    /// All of mbcopy, on both servers.
    Everybody,
}

/// What is done to him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// SIGKILL; Cyrus is started again at once.
    Kill,
    /// SIGSTOP, or cut off, for so long.
    Hold(Duration),
}

/// One harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Harm {
    /// After the start of the command that is harmed.
    pub at: Duration,
    /// Who.
    pub who: Who,
    /// What.
    pub what: What,
}

/// What the admin does after a command that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// The same push.
    Again,
    /// `mbcopy resume`.
    Resume,
    /// `mbcopy abort`, and then a push.
    Abort,
}

/// One run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What everything follows from.
    pub seed: u64,
    /// Harm to the push.
    pub harms: Vec<Harm>,
    /// Harm to the first command after it, if there is one.
    pub later: Vec<Harm>,
    /// What the admin does.
    pub recovery: Recovery,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Plan {
        let mut random = SmallRng::seed_from_u64(seed);
        let count = *[0, 1, 1, 1, 1, 2, 2, 3].choose(&mut random).unwrap_or(&1);
        let harms = (0..count).map(|_| harm(&mut random)).collect();
        let later = (0..random.random_range(0..2)).map(|_| harm(&mut random)).collect();
        let all = [Recovery::Again, Recovery::Resume, Recovery::Abort];
        let recovery = *all.choose(&mut random).unwrap_or(&Recovery::Again);
        Plan { seed, harms, later, recovery }
    }
}

fn harm(random: &mut SmallRng) -> Harm {
    let all = [
        Who::Coordinator,
        Who::Coordinator,
        Who::SourceAgent,
        Who::SourceAgent,
        Who::TargetAgent,
        Who::TargetAgent,
        Who::Session,
        Who::SourceCyrus,
        Who::TargetCyrus,
        Who::Network,
        Who::Everybody,
        Who::Everybody,
    ];
    let who = *all.choose(random).unwrap_or(&Who::Coordinator);
    let time = Duration::from_millis(random.random_range(100..4000));
    let holds = random.random_range(0..4) == 0;
    let what = match who {
        Who::Network => What::Hold(time),
        Who::SourceCyrus | Who::TargetCyrus | Who::Session => What::Kill,
        _ if holds => What::Hold(time),
        _ => What::Kill,
    };
    // A small user's push takes about half a second.
    Harm { at: Duration::from_millis(random.random_range(0..700)), who, what }
}

/// What a run has come to.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Exit codes of the commands, in order.
    pub codes: Vec<i32>,
    /// Operations that were acknowledged.
    pub operations: u32,
    /// What is not as promised.
    pub violations: Vec<String>,
    /// What the commands said.
    pub said: String,
    /// Seconds.
    pub took: f64,
}

/// Two servers and a way to harm them.
pub struct Chaos {
    source: Host,
    target: Host,
}

impl Chaos {
    /// Brings both hosts up, empty, with this mbcopy.
    pub fn new(source: &Host, target: &Host, mbcopy: &std::path::Path) -> Result<Chaos> {
        for host in [source, target] {
            host.up()?;
            host.empty()?;
            host.install(mbcopy, PROGRAM)?;
            host.run(&["rm", "-f", "/run/mbcopy-fault", "/run/mbcopy-sabotage"])?;
        }
        Ok(Chaos { source: source.clone(), target: target.clone() })
    }

    /// What mbcopy leaves undone; empty: nothing.
    pub fn sabotage(&self, word: &str) -> Result<()> {
        for host in [&self.source, &self.target] {
            let script = r#"echo "$0" > /run/mbcopy-sabotage; chmod 644 /run/mbcopy-sabotage"#;
            host.run(&["sh", "-c", script, word])?;
        }
        Ok(())
    }

    /// Does what is planned.
    pub fn run(&self, plan: &Plan) -> Result<Verdict> {
        let began = Instant::now();
        let user = format!("c{}x{}", plan.seed, std::process::id());
        for host in [&self.source, &self.target] {
            host.add_users(&[&user])?;
        }
        Seed::new(&self.source, &user).seed(plan.seed).small()?;
        let before = Fingerprint::take(&self.source, &user, &Take::default())?;
        let (route, command) = Route::commanded(&user, &self.source)?;
        let watcher = workload::watcher(&self.target, &user, PAUSE);
        let crew = Crew::start(&route, PAUSE)?;
        std::thread::sleep(Duration::from_millis(200));

        let mut verdict = Verdict::default();
        self.commands(plan, &user, &command, &mut verdict)?;
        std::thread::sleep(Duration::from_millis(200));
        let history = crew.stop()?;
        let steps = watcher.stop()?;
        verdict.operations = history.latency.values().map(|latency| latency.count).sum();

        let wrong = &mut verdict.violations;
        let serving = route.host()?;
        let (good, other) = match serving.name() == self.target.name() {
            true => (&self.target, &self.source),
            false => (&self.source, &self.target),
        };
        if good.name() != self.target.name() {
            wrong.push("stuck: the user was not moved in the end".into());
        }
        if shows(other, &user)? {
            wrong.push(format!("half: {other} shows the user, too"));
        }
        if shows(good, &user)? {
            let end = Fingerprint::take(good, &user, &Take::default())?;
            wrong.extend(workload::check(&history, &end).iter().map(|v| format!("lost: {v}")));
            wrong.extend(quiet(&before, &end));
        } else {
            wrong.push(format!("half: {good}, which the route leads to, does not show the user"));
        }
        wrong.extend(parts(&steps, &before).map(|found| format!("half: a watcher saw {found:?}")));
        wrong.extend(self.leftovers()?);
        verdict.took = began.elapsed().as_secs_f64();
        Ok(verdict)
    }

    /// The push, and what the admin does until the user is moved.
    fn commands(
        &self,
        plan: &Plan,
        user: &str,
        route_command: &str,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let mailbox = format!("user.{user}");
        let push = vec!["push", &mailbox, self.target.name(), "--route-command", route_command];
        let mut next = push.clone();
        let mut aborting = false;
        for number in 0..=TRIES {
            let harms = match number {
                0 => &plan.harms[..],
                1 => &plan.later[..],
                _ => &[],
            };
            let output = self.command(&next, harms)?;
            let code = output.status.code().unwrap_or(-1);
            verdict.codes.push(code);
            for text in [&output.stdout, &output.stderr] {
                let _ = write!(verdict.said, "{}", String::from_utf8_lossy(text));
            }
            if code == 0 && !aborting {
                return Ok(());
            }
            // What an abort has put back is moved after it; what it cannot put back, too.
            let over = aborting && [0, 2, 4, 5].contains(&code);
            aborting = plan.recovery == Recovery::Abort && !over;
            next = match (aborting, plan.recovery) {
                (true, _) => vec!["abort", &mailbox],
                (false, Recovery::Resume) if code != 2 => vec!["resume", &mailbox],
                _ => push.clone(),
            };
        }
        verdict.violations.push(format!("stuck: exit codes {:?}", verdict.codes));
        Ok(())
    }

    /// Runs mbcopy on the source and harms it.
    fn command(&self, arguments: &[&str], harms: &[Harm]) -> Result<Output> {
        let words: Vec<&str> = [PROGRAM].iter().chain(arguments).copied().collect();
        let mut command = self.source.command(&words);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let began = Instant::now();
        let child = command.spawn().context("starting mbcopy")?;
        let mut harms = harms.to_vec();
        harms.sort_by_key(|harm| harm.at);
        for harm in harms {
            std::thread::sleep(harm.at.saturating_sub(began.elapsed()));
            self.harm(harm)?;
        }
        let waited = std::thread::spawn(move || child.wait_with_output());
        while !waited.is_finished() && began.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !waited.is_finished() {
            self.signal(Who::Everybody, "KILL")?;
        }
        Ok(waited.join().map_err(|_| anyhow::anyhow!("waiting for mbcopy"))??)
    }

    fn harm(&self, harm: Harm) -> Result<()> {
        match (harm.who, harm.what) {
            (Who::SourceCyrus, _) => restart(&self.source),
            (Who::TargetCyrus, _) => restart(&self.target),
            (Who::Network, What::Hold(time)) => {
                self.target.cut()?;
                std::thread::sleep(time);
                self.target.heal()
            }
            (who, What::Hold(time)) => {
                self.signal(who, "STOP")?;
                std::thread::sleep(time);
                self.signal(who, "CONT")
            }
            (who, What::Kill) => self.signal(who, "KILL"),
        }
    }

    fn signal(&self, who: Who, signal: &str) -> Result<()> {
        let (host, pattern) = match who {
            Who::Coordinator => (&self.source, "^/usr/local/bin/mbcopy (push|resume|abort)"),
            Who::SourceAgent => (&self.source, "mbcopy agent --role source"),
            Who::TargetAgent => (&self.target, "mbcopy agent --role target"),
            Who::Session => (&self.target, "^sshd: root"),
            _ => {
                self.signal(Who::Coordinator, signal)?;
                self.signal(Who::SourceAgent, signal)?;
                return self.signal(Who::TargetAgent, signal);
            }
        };
        // Nobody of that name is no failure.
        host.exec(&["pkill", &format!("-{signal}"), "-f", pattern])?;
        if signal == "CONT" {
            // Who runs a command in a host stops with it, and has to be told by himself.
            Command::new("pkill").args(["-CONT", "nsenter"]).status()?;
        }
        Ok(())
    }

    /// What a move must not leave behind.
    fn leftovers(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for host in [&self.source, &self.target] {
            // An agent whose connection has just ended needs a moment.
            let end = Instant::now() + Duration::from_secs(3);
            let mut pids = host.pids("mbcopy (push|resume|abort|agent)")?;
            while !pids.is_empty() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(50));
                pids = host.pids("mbcopy (push|resume|abort|agent)")?;
            }
            if !pids.is_empty() {
                wrong.push(format!("left: {} processes of mbcopy on {host}", pids.len()));
                self.signal(Who::Everybody, "KILL")?;
            }
        }
        let find = "find /var/spool/cyrus /var/lib/cyrus/mbcopy/moves /var/spool/sieve \
                    -path '*mbcopy*' -type f 2>/dev/null | head -n 5";
        let left = self.target.run(&["sh", "-c", find])?;
        if !left.is_empty() {
            wrong.push(format!("left: a stage on {}: {}", self.target, left.trim()));
        }
        Ok(wrong)
    }
}

fn restart(host: &Host) -> Result<()> {
    host.kill_cyrus()?;
    std::thread::sleep(Duration::from_millis(50));
    host.start_cyrus()
}

fn shows(host: &Host, user: &str) -> Result<bool> {
    let mut imap = host.imap(user)?;
    let shown = imap.attempt("EXAMINE INBOX")?.tagged.is_ok();
    imap.logout();
    Ok(shown)
}

/// What is not as it was in the folders that nobody has worked in.
fn quiet(before: &Fingerprint, end: &Fingerprint) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, mailbox) in before.own.mailboxes.iter().filter(|(name, _)| *name != "INBOX") {
        match end.own.mailboxes.get(name) {
            Some(now) if now.messages == mailbox.messages => {}
            Some(_) => wrong.push(format!("changed: the messages of {name}")),
            None => wrong.push(format!("lost: the folder {name}")),
        }
    }
    // What was in INBOX before has kept its UID.
    let uids = |print: &Fingerprint| -> BTreeSet<(u32, String)> {
        let inbox = print.own.mailboxes.get("INBOX");
        let messages = inbox.into_iter().flat_map(|inbox| &inbox.messages);
        messages.map(|(uid, message)| (*uid, message.message_id.clone())).collect()
    };
    let (old, now) = (uids(before), uids(end));
    let gone = old.difference(&now).count();
    if gone > 0 {
        wrong.push(format!("changed: {gone} messages of INBOX have not kept their UIDs"));
    }
    wrong
}

/// What a watcher saw that is neither nothing nor the whole user.
fn parts<'a>(
    steps: &'a [Step],
    before: &'a Fingerprint,
) -> impl Iterator<Item = &'a Observation> + 'a {
    let whole = |found: &Observation| match found {
        Observation::Mailboxes(found) => before.own.mailboxes.iter().all(|(name, mailbox)| {
            let there = found.get(name).copied().flatten();
            let all = mailbox.messages.len() as u64;
            // In INBOX more may have come.
            there.is_some_and(|there| if name == "INBOX" { there >= all } else { there == all })
        }),
        _ => false,
    };
    steps.iter().map(|step| &step.found).filter(move |found| !found.is_none() && !whole(found))
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {}:", self.seed)?;
        for (harms, word) in [(&self.harms, ""), (&self.later, " later")] {
            for Harm { at, who, what } in harms {
                write!(f, "{word} {who:?}+{}ms", at.as_millis())?;
                match what {
                    What::Kill => f.write_str(" killed,")?,
                    What::Hold(time) => write!(f, " held {} ms,", time.as_millis())?,
                }
            }
        }
        write!(f, " then {:?}", self.recovery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_and_all_kinds_of_harm_are_planned() {
        assert_eq!(Plan::new(7).to_string(), Plan::new(7).to_string());
        let plans: Vec<_> = (0..500).map(Plan::new).collect();
        let harmed = |who| plans.iter().filter(|p| p.harms.iter().any(|h| h.who == who)).count();
        for who in [Who::Coordinator, Who::SourceAgent, Who::TargetAgent, Who::Session] {
            assert!(harmed(who) > 20, "{who:?}");
        }
        for who in [Who::SourceCyrus, Who::TargetCyrus, Who::Network, Who::Everybody] {
            assert!(harmed(who) > 20, "{who:?}");
        }
        assert!(plans.iter().any(|p| p.harms.is_empty()));
    }
}
