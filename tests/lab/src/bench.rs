//! `lab bench`: push beside rsync, XFER and sync_client, side by side in one run.

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::state_dir;
use lab::seed::{Seed, Size};
use lab::workload::{self, Route};
use lab::{ADMIN, Host};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// How often the appender appends.
const APPEND_EVERY: Duration = Duration::from_millis(5);
/// ext4 avoids inodes that were deleted less than a minute ago, and files are created ten times
/// slower meanwhile.
const DELETED_ARE_FORGOTTEN: Duration = Duration::from_secs(65);

#[derive(Args)]
pub struct BenchArgs {
    /// The program to measure.
    #[arg(long)]
    mbcopy: PathBuf,
    /// The host that has the mailboxes.
    #[arg(long, default_value = "bw1")]
    source: String,
    /// The host that gets them.
    #[arg(long, default_value = "bw2")]
    target: String,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only these methods, and nothing of what clients notice.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Method>,
    /// A tenth of the messages and one round: only to see whether it works.
    #[arg(long)]
    quick: bool,
    /// Writes the result to this file too.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A user with one INBOX.
#[derive(Clone, Copy)]
struct Mailbox {
    user: &'static str,
    messages: usize,
    size: Size,
}

/// A way to bring a user from one server to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Method {
    Push,
    Rsync,
    RsyncReconstruct,
    Xfer,
    SyncClient,
}

impl Method {
    const ALL: [Method; 5] =
        [Method::Push, Method::Rsync, Method::RsyncReconstruct, Method::Xfer, Method::SyncClient];
    /// Those that also switch the user over.
    const MOVES: [Method; 2] = [Method::Push, Method::Xfer];

    fn name(self) -> &'static str {
        match self {
            Method::Push => "mbcopy push",
            Method::Rsync => "rsync -a",
            Method::RsyncReconstruct => "rsync -a --fsync, reconstruct",
            Method::Xfer => "XFER",
            Method::SyncClient => "sync_client",
        }
    }
}

/// How long a client waited while a user was moved, and what mbcopy says of it.
struct Block {
    longest: f64,
    freeze: Option<f64>,
    appended: u32,
}

pub fn run(args: &BenchArgs) -> Result<()> {
    let (rounds, part) = if args.quick { (1, 10) } else { (args.rounds.max(1), 1) };
    let mailboxes = [
        Mailbox { user: "small", messages: 20_000 / part, size: Size::Median(8192) },
        Mailbox { user: "large", messages: 200 / part, size: Size::Fixed(5 << 20) },
    ];
    let methods = if args.only.is_empty() { Method::ALL.to_vec() } else { args.only.clone() };
    let mut bench = Bench::prepare(args, &mailboxes)?;
    let mut seconds: BTreeMap<(&str, Method), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        bench.make_room()?;
        for mailbox in &mailboxes {
            // Nobody is always the first.
            let mut order = methods.clone();
            order.rotate_left(round % methods.len());
            for method in order {
                let took = bench.measure(method, mailbox).with_context(|| {
                    format!("measuring {} of {}, round {}", method.name(), mailbox.user, round + 1)
                })?;
                eprintln!("round {}: {}, {}: {took:.2} s", round + 1, mailbox.user, method.name());
                seconds.entry((mailbox.user, method)).or_default().push(took);
            }
        }
    }
    let mut blocks: BTreeMap<(&str, Method), Vec<Block>> = BTreeMap::new();
    let blocked = if args.only.is_empty() { rounds.min(3) } else { 0 };
    for round in 0..blocked {
        bench.make_room()?;
        for mailbox in &mailboxes {
            for method in Method::MOVES {
                let block = bench.block(method, mailbox).with_context(|| {
                    format!("working during {} of {}", method.name(), mailbox.user)
                })?;
                eprintln!(
                    "clients, round {}: {}, {}: {:.3} s, {} appended",
                    round + 1,
                    mailbox.user,
                    method.name(),
                    block.longest,
                    block.appended
                );
                blocks.entry((mailbox.user, method)).or_default().push(block);
            }
        }
    }
    let result = bench.table(&mailboxes, &seconds, &blocks)?;
    print!("{result}");
    if let Some(file) = &args.out {
        std::fs::write(file, &result).with_context(|| format!("writing {}", file.display()))?;
    }
    bench.finish()
}

struct Bench {
    source: Host,
    target: Host,
    /// The data of both hosts as they were seeded, and what is thrown away.
    store: PathBuf,
    thrown_away: u32,
    /// What all mailboxes have, by user.
    bytes: BTreeMap<&'static str, u64>,
    /// Each user's directory, on any host.
    directories: BTreeMap<&'static str, String>,
    /// How busy the machine was before each measurement, in per cent.
    busy: Vec<f64>,
}

impl Bench {
    /// Brings both hosts up, seeds the mailboxes, keeps what both hosts hold.
    fn prepare(args: &BenchArgs, mailboxes: &[Mailbox]) -> Result<Bench> {
        let users: Vec<&str> = mailboxes.iter().map(|mailbox| mailbox.user).collect();
        let mbcopy = args.mbcopy.canonicalize();
        let mbcopy = mbcopy.with_context(|| format!("no mbcopy at {}", args.mbcopy.display()))?;
        let [source, target] = [&args.source, &args.target].map(|name| -> Result<Host> {
            Host::new(name).up()?;
            let host = Host::new(name); // a new one's address is known only now
            host.empty()?;
            host.add_users(&users)?;
            host.install(&mbcopy, PROGRAM)?;
            Ok(host)
        });
        let mut bench = Bench {
            source: source?,
            target: target?,
            store: state_dir().join("bench"),
            thrown_away: 0,
            bytes: BTreeMap::new(),
            directories: BTreeMap::new(),
            busy: Vec::new(),
        };
        bench.forget()?;
        for mailbox in mailboxes {
            eprintln!("seeding {}: {} messages", mailbox.user, mailbox.messages);
            let seed = Seed::new(&bench.source, mailbox.user);
            let report = seed.bulk(mailbox.messages, mailbox.size, 1)?;
            ensure!(report.warnings.is_empty(), "seeding: {:?}", report.warnings);
            bench.bytes.insert(mailbox.user, report.bytes as u64);
            let name = format!("user.{}", mailbox.user);
            let path = bench.source.run_as_cyrus(&["/usr/sbin/cyrus", "mbpath", &name])?;
            bench.directories.insert(mailbox.user, path.trim().to_owned());
        }
        bench.keep_mailbox_records(mailboxes)?;
        for host in [&bench.source, &bench.target] {
            host.stop_cyrus()?;
            shell(CLONE, &[&host.data(), &bench.kept(host)])?;
            host.start_cyrus()?;
        }
        Ok(bench)
    }

    /// Puts each mailbox's record into a file on the target, for those who copy files only.
    fn keep_mailbox_records(&self, mailboxes: &[Mailbox]) -> Result<()> {
        let dump = self.source.run_as_cyrus(&["/usr/sbin/cyrus", "ctl_mboxlist", "-d"])?;
        let records: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&dump).context("what ctl_mboxlist -d wrote")?;
        for mailbox in mailboxes {
            let name = format!("user.{}", mailbox.user);
            let own: serde_json::Map<_, _> =
                records.iter().filter(|(key, _)| **key == name).map(own).collect();
            ensure!(own.len() == 1, "no record of {name}");
            let file = self.target.root()?.join(&record_file(mailbox)[1..]);
            std::fs::write(&file, serde_json::to_string_pretty(&own)?)?;
        }
        Ok(())
    }

    fn kept(&self, host: &Host) -> PathBuf {
        self.store.join("kept").join(host.name())
    }

    /// Both hosts as they were seeded, everything in the page cache, nothing left to write.
    ///
    /// Nothing is deleted here, see [`DELETED_ARE_FORGOTTEN`]; and no messages are copied: they are
    /// linked, for neither Cyrus nor anybody else changes them in place.
    fn fresh(&mut self) -> Result<()> {
        for host in [&self.source, &self.target] {
            host.stop_cyrus()?;
            self.thrown_away += 1;
            let trash = self.store.join("trash").join(self.thrown_away.to_string());
            shell(THROW_AWAY, &[&host.data(), &trash])?;
            shell(CLONE, &[&self.kept(host), &host.data()])?;
            host.start_cyrus()?;
            host.await_imap(Duration::from_secs(30))?;
        }
        shell("find \"$1\" -type f -exec cat {} + >/dev/null", &[&self.source.data()])?;
        rustix::fs::sync();
        touch_memory();
        std::thread::sleep(Duration::from_secs(1));
        let before = cpu_times()?;
        std::thread::sleep(Duration::from_secs(1));
        let after = cpu_times()?;
        let all = (after.0 - before.0).max(1) as f64;
        self.busy.push(100.0 * (1.0 - (after.1 - before.1) as f64 / all));
        Ok(())
    }

    /// Seconds that a method takes; what it brought is checked.
    fn measure(&mut self, method: Method, mailbox: &Mailbox) -> Result<f64> {
        self.fresh()?;
        let user = mailbox.user;
        let directory = &self.directories[user];
        let load = format!("/usr/sbin/cyrus ctl_mboxlist -u < {}", record_file(mailbox));
        if let Method::Rsync | Method::RsyncReconstruct = method {
            self.target.run_as_cyrus(&["mkdir", "-p", directory])?;
        }
        let there = format!("{}:{directory}/", self.target);
        let here = format!("{directory}/");
        let start = Instant::now();
        match method {
            Method::Push => drop(self.push(user, &[])?),
            Method::Rsync => {
                drop(self.source.run(&["rsync", "-a", "-e", "ssh", &here, &there])?);
            }
            Method::RsyncReconstruct => {
                self.source.run(&["rsync", "-a", "--fsync", "-e", "ssh", &here, &there])?;
                let reconstruct =
                    format!("{load} && /usr/sbin/cyrus reconstruct -r -f user.{user}");
                self.target.run_as_cyrus(&["sh", "-c", &reconstruct])?;
            }
            Method::Xfer => self.xfer(user)?,
            Method::SyncClient => {
                let program = "/usr/lib/cyrus/bin/sync_client";
                self.source.run_as_cyrus(&[program, "-S", self.target.name(), "-u", user])?;
            }
        }
        let took = start.elapsed().as_secs_f64();
        if method == Method::Rsync {
            self.target.run_as_cyrus(&["sh", "-c", &load])?;
        }
        let found = messages(&self.target, user)?;
        let expected = mailbox.messages as u64;
        ensure!(found == expected, "{found} instead of {expected} messages on {}", self.target);
        Ok(took)
    }

    /// How long a client who keeps appending to the INBOX waits while its user is moved.
    fn block(&mut self, method: Method, mailbox: &Mailbox) -> Result<Block> {
        self.fresh()?;
        let (route, command) = Route::commanded(mailbox.user, &self.source)?;
        let appender = workload::appender(&route, "INBOX", APPEND_EVERY);
        std::thread::sleep(Duration::from_secs(1));
        let mut freeze = None;
        match method {
            Method::Push => {
                let report = self.push(mailbox.user, &["--route-command", &command])?;
                let ms = report["freeze_ms"].as_f64().context("no freeze_ms in the report")?;
                freeze = Some(ms / 1000.0);
            }
            _ => {
                self.xfer(mailbox.user)?;
                // XFER has nothing like a route command: its caller does it.
                route.set(self.target.name())?;
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        let history = appender.stop()?;
        let look =
            Take { bodies: false, sieve: false, admin: false, expunged: false, ..Take::default() };
        let end = Fingerprint::take(&self.target, mailbox.user, &look)?;
        if let Some(violation) = workload::check(&history, &end).first() {
            bail!("{violation}");
        }
        let appends = history.latency.get("APPEND").copied().unwrap_or_default();
        let expected = mailbox.messages + appends.count as usize;
        let found = end.messages().count();
        ensure!(found >= expected, "{found} instead of {expected} messages on {}", self.target);
        Ok(Block { longest: appends.longest.as_secs_f64(), freeze, appended: appends.count })
    }

    fn push(&self, user: &str, options: &[&str]) -> Result<serde_json::Value> {
        let mailbox = format!("user.{user}");
        let mut command = vec![PROGRAM, "push", &mailbox, self.target.name(), "--json"];
        command.extend(options);
        let Output { status, stdout, stderr } = self.source.exec(&command)?;
        let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        ensure!(status.success(), "push: {status}: {stdout}{stderr}");
        let report: serde_json::Value =
            serde_json::from_str(stdout.lines().last().unwrap_or_default())?;
        ensure!(report["outcome"] == "done", "push: {report}");
        Ok(report)
    }

    fn xfer(&self, user: &str) -> Result<()> {
        let mut admin = self.source.imap(ADMIN)?;
        let reply = admin.attempt(format!("XFER user.{user} {}", self.target))?;
        // The tagged answer says OK to failures too.
        let told = format!("USER {user}");
        let done = reply.notes.iter().any(|note| note.is_ok() && note.text == told);
        ensure!(done && reply.tagged.is_ok(), "XFER: {:?} {}", reply.notes, reply.tagged);
        Ok(())
    }

    /// Deletes what was thrown away, if the next round might not find room.
    fn make_room(&self) -> Result<()> {
        let all: u64 = self.bytes.values().sum();
        let room = rustix::fs::statvfs(&self.store)?;
        if room.f_bavail * room.f_frsize > 6 * all + (4 << 30) {
            return Ok(());
        }
        eprintln!("deleting what was thrown away, for there is little room left");
        let trash = self.store.join("trash");
        shell("rm -rf --one-file-system \"$1\"", &[&trash])?;
        rustix::fs::sync();
        std::thread::sleep(DELETED_ARE_FORGOTTEN);
        let room = rustix::fs::statvfs(&self.store)?;
        let free = room.f_bavail * room.f_frsize;
        ensure!(free > 6 * all + (1 << 30), "only {free} bytes are free");
        Ok(())
    }

    /// Deletes what an earlier run left.
    fn forget(&self) -> Result<()> {
        if self.store.exists() {
            shell("rm -rf --one-file-system \"$1\"", &[&self.store])?;
            rustix::fs::sync();
            std::thread::sleep(DELETED_ARE_FORGOTTEN);
        }
        Ok(std::fs::create_dir_all(self.store.join("trash"))?)
    }

    /// Leaves both hosts running and empty.
    fn finish(self) -> Result<()> {
        for host in [&self.source, &self.target] {
            host.empty()?;
        }
        shell("rm -rf --one-file-system \"$1\"", &[&self.store])
    }

    fn table(
        &self,
        mailboxes: &[Mailbox],
        seconds: &BTreeMap<(&str, Method), Vec<f64>>,
        blocks: &BTreeMap<(&str, Method), Vec<Block>>,
    ) -> Result<String> {
        let mut text = String::new();
        writeln!(text, "{}\n", self.circumstances()?)?;
        for mailbox in mailboxes {
            let megabytes = self.bytes[mailbox.user] as f64 / 1e6;
            let Mailbox { user, messages, .. } = mailbox;
            writeln!(text, "- {user}: one INBOX of {messages} messages, {megabytes:.0} MB")?;
        }
        writeln!(text, "\n| mailbox | what | n | median s | min | max | : rsync -a | : XFER |")?;
        writeln!(text, "|---|---|---|---|---|---|---|---|")?;
        for mailbox in mailboxes {
            let of = |method| seconds.get(&(mailbox.user, method)).map(|all| Sample::of(all));
            for method in Method::ALL {
                let Some(sample) = of(method) else { continue };
                let to = |other: Method| {
                    let ratio = of(other).map(|other| sample.median / other.median);
                    ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
                };
                writeln!(
                    text,
                    "| {} | {} | {} | {} | {} |",
                    mailbox.user,
                    method.name(),
                    sample.show(2),
                    to(Method::Rsync),
                    to(Method::Xfer)
                )?;
            }
        }
        if blocks.is_empty() {
            return Ok(text);
        }
        text.push_str(
            "\nHow long a client waited who appends every 5 ms, in runs of their own:\n\n",
        );
        writeln!(text, "| mailbox | what | n | median s | min | max |\n|---|---|---|---|---|---|")?;
        for mailbox in mailboxes {
            for method in Method::MOVES {
                let all = &blocks[&(mailbox.user, method)];
                let mut row = |what: &str, values: Vec<f64>| match values.is_empty() {
                    true => Ok(()),
                    false => {
                        let shown = Sample::of(&values).show(3);
                        let name = method.name();
                        writeln!(text, "| {} | {name}: {what} | {shown} |", mailbox.user)
                    }
                };
                row("longest APPEND", all.iter().map(|block| block.longest).collect())?;
                row("freeze by its report", all.iter().filter_map(|b| b.freeze).collect())?;
            }
        }
        Ok(text)
    }

    fn circumstances(&self) -> Result<String> {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let model = model.map_or("", |(_, model)| model);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let greeting = self.source.admin()?.greeting.text;
        let cyrus = greeting.split_whitespace().skip_while(|word| *word != "IMAP").nth(1);
        let rsync = self.source.run(&["rsync", "--version"])?;
        let rsync = rsync.split_whitespace().nth(2).unwrap_or("?").to_owned();
        let mbcopy = self.source.run(&[PROGRAM, "--version"])?;
        let busy = Sample::of(&self.busy);
        Ok(format!(
            "{}, rsync {rsync}, Cyrus IMAP {} on both servers, one machine and one disk for both: \
             {} cores ({model}), Linux {}.\n\
             Each method starts from the same state, with the source's files in the page cache. \
             When they end, push and rsync --fsync have everything on the disk, and XFER and \
             sync_client have synced each message; rsync -a leaves that to the kernel. \
             Before the measurements the machine was busy with other things \
             for {:.0} % of its time (median; at most {:.0} %).",
            mbcopy.trim(),
            cyrus.unwrap_or("?"),
            std::thread::available_parallelism()?,
            kernel.trim(),
            busy.median,
            busy.max,
        ))
    }
}

/// Takes memory and gives it back: on a virtual machine the first use of a page may wait for the
/// host, which would be charged to whatever is measured first.
fn touch_memory() {
    let mut memory = vec![0u8; 3 << 30];
    memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

/// Copies lib, spool and sieve; messages are linked.
const CLONE: &str = r#"
for part in lib spool sieve; do
  mkdir -p "$2/$part"
  cp -al "$1/$part/." "$2/$part/"
  cd "$1/$part"
  find . -type f -regextype posix-extended ! -regex '.*/[0-9]+\.' -print0 |
    xargs -0r cp -a --parents --remove-destination -t "$2/$part"
done"#;

/// Moves what lib, spool and sieve hold out of the way.
const THROW_AWAY: &str = r#"
for part in lib spool sieve; do
  mkdir -p "$2/$part"
  find "$1/$part" -mindepth 1 -maxdepth 1 -exec mv -t "$2/$part" {} +
done"#;

fn shell(script: &str, arguments: &[&Path]) -> Result<()> {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script, "bench"]).args(arguments);
    let output = command.stdin(Stdio::null()).output().context("starting bash")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, stderr.trim());
    Ok(())
}

/// On the target.
fn record_file(mailbox: &Mailbox) -> String {
    format!("/tmp/{}.json", mailbox.user)
}

fn own((key, value): (&String, &serde_json::Value)) -> (String, serde_json::Value) {
    (key.clone(), value.clone())
}

/// How many messages a user has there.
fn messages(host: &Host, user: &str) -> Result<u64> {
    let reply = host.imap(user)?.command("STATUS INBOX (MESSAGES)")?;
    let status = reply.of("STATUS").next().and_then(|status| status.get(2));
    let count = status.and_then(|items| items.get("MESSAGES")?.number());
    count.context("no MESSAGES in the answer to STATUS")
}

/// All of the processors' time since the machine started, and what was idle of it.
fn cpu_times() -> Result<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().unwrap_or_default();
    let times: Vec<u64> = first.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    ensure!(times.len() >= 8, "strange /proc/stat: {first}");
    // user nice system idle iowait irq softirq steal; the rest is part of these
    Ok((times[..8].iter().sum(), times[3] + times[4]))
}

/// What was measured several times.
struct Sample {
    n: usize,
    median: f64,
    min: f64,
    max: f64,
}

impl Sample {
    /// Not of nothing.
    fn of(values: &[f64]) -> Sample {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        let median = (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0;
        Sample { n, median, min: sorted[0], max: sorted[n - 1] }
    }

    fn show(&self, digits: usize) -> String {
        let Sample { n, median, min, max } = self;
        format!("{n} | {median:.digits$} | {min:.digits$} | {max:.digits$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, median) in [(&[3.0][..], 3.0), (&[9.0, 1.0, 2.0], 2.0), (&[1.0, 4.0], 2.5)] {
            assert_eq!(Sample::of(values).median, median);
        }
        let sample = Sample::of(&[2.0, 1.0, 6.0]);
        assert_eq!(sample.show(1), "3 | 2.0 | 1.0 | 6.0");
    }
}
