//! `lab bench`: push beside rsync, XFER, sync_client and tar, side by side in one run.

mod bars;
mod canary;
pub mod link;
mod machine;

use anyhow::{Context, Result, bail, ensure};
use canary::Canary;
use clap::{Args, ValueEnum};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::state_dir;
use lab::seed::{Seed, Size};
use lab::workload::{self, Route};
use lab::{ADMIN, Host};
use machine::{CLONE, Sample, THROW_AWAY, cpu_times, drop_caches, shell, touch_memory};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// In which the kernel counts processors' time, by the second, on every Linux.
const TICKS: f64 = 100.0;
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
    /// Only these methods.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Method>,
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// A tenth of the messages and one round: only to see whether it works.
    #[arg(long)]
    quick: bool,
    /// Writes the result to this file too.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Writes a plot (SVG) to this file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Part {
    /// First copies, with everything near and in memory.
    First,
    /// First copies over ways that are far or slow.
    Ways,
    /// First copies of files that are not in memory.
    Cold,
    /// Copies that find nothing changed.
    Again,
    /// How long the user waits.
    Waits,
    /// How long other users wait.
    Others,
}

impl Part {
    const ALL: [Part; 6] =
        [Part::First, Part::Ways, Part::Cold, Part::Again, Part::Waits, Part::Others];
}

/// How the target is reached, and what is known before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    Near,
    /// Milliseconds there and back.
    Far(u64),
    /// Bytes per second.
    Slow(u64),
    Cold,
    Again,
}

impl Case {
    fn name(self) -> String {
        match self {
            Case::Near => "near".into(),
            Case::Far(ms) => format!("round trip of {ms} ms"),
            Case::Slow(rate) => format!("{} MB/s", rate / 1_000_000),
            Case::Cold => "files not in memory".into(),
            Case::Again => "nothing changed".into(),
        }
    }

    /// The options of `lab link`.
    fn way(self) -> Option<String> {
        match self {
            Case::Far(ms) => Some(format!("--round-trip {ms}")),
            Case::Slow(rate) => Some(format!("--rate {rate}")),
            _ => None,
        }
    }
}

/// A user with so many messages in so many folders.
#[derive(Clone, Copy)]
struct Mailbox {
    user: &'static str,
    messages: usize,
    size: Size,
    folders: usize,
}

impl Mailbox {
    /// The names of its folders, as the user sees them.
    fn names(&self) -> impl Iterator<Item = String> {
        let further = (1..self.folders).map(|n| format!("bulk{n:03}"));
        std::iter::once("INBOX".to_owned()).chain(further)
    }
}

/// What a measurement took: seconds, and seconds of processors on the whole machine.
struct Took {
    wall: f64,
    cpu: f64,
}

/// A way to bring a user from one server to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Method {
    Push,
    Rsync,
    RsyncReconstruct,
    Xfer,
    SyncClient,
    Tar,
}

impl Method {
    const ALL: [Method; 6] = [
        Method::Push,
        Method::Rsync,
        Method::RsyncReconstruct,
        Method::Xfer,
        Method::SyncClient,
        Method::Tar,
    ];
    /// Those that also switch the user over.
    const MOVES: [Method; 2] = [Method::Push, Method::Xfer];

    fn name(self) -> &'static str {
        match self {
            Method::Push => "mbcopy push",
            Method::Rsync => "rsync -a",
            Method::RsyncReconstruct => "rsync -a --fsync, reconstruct",
            Method::Xfer => "XFER",
            Method::SyncClient => "sync_client",
            Method::Tar => "tar over ssh",
        }
    }
}

/// How long a client waited while a user was moved, and what mbcopy says of it.
struct Block {
    longest: f64,
    freeze: Option<f64>,
    appended: u32,
}

/// What was measured, by case, user and method.
type Measured = BTreeMap<(Case, &'static str, Method), Vec<Took>>;

pub fn run(args: &BenchArgs) -> Result<()> {
    let (rounds, part) = if args.quick { (1, 10) } else { (args.rounds.max(1), 1) };
    let is_asked = |part| args.parts.is_empty() || args.parts.contains(&part);
    let (size, folders) = (Size::Median(8192), 1);
    let small = Mailbox { user: "small", messages: 20_000 / part, size, folders };
    let large =
        Mailbox { user: "large", messages: 200 / part, size: Size::Fixed(5 << 20), folders };
    let many = Mailbox { user: "many", messages: 50_000 / part, size, folders: 100 };
    let size = Size::Median(2000);
    let full = Mailbox { user: "full", messages: 100_000 / part, size, folders };
    let waiting = [small, large, full];
    let mut cases: Vec<(Case, Mailbox, &[Method])> = Vec::new();
    let (all, files) = (&Method::ALL, &[Method::Push, Method::Rsync, Method::Tar][..]);
    for part in Part::ALL.into_iter().filter(|part| is_asked(*part)) {
        match part {
            Part::First => cases.extend([(Case::Near, small, &all[..]), (Case::Near, large, all)]),
            Part::Ways => cases.extend(
                [Case::Far(20), Case::Far(80), Case::Slow(10_000_000)]
                    .map(|way| (way, small, files)),
            ),
            Part::Cold => cases.push((Case::Cold, many, files)),
            Part::Again => cases.push((Case::Again, many, &files[..2])),
            Part::Waits | Part::Others => {}
        }
    }
    let others = is_asked(Part::Others).then_some(small);
    let used = cases.iter().map(|(_, mailbox, _)| *mailbox).chain(others);
    let used = used.chain(waiting.into_iter().filter(|_| is_asked(Part::Waits)));
    let mailboxes: BTreeMap<_, _> = used.map(|mailbox| (mailbox.user, mailbox)).collect();
    let mailboxes: Vec<Mailbox> = mailboxes.into_values().collect();
    let mut bench = Bench::prepare(args, &mailboxes)?;
    let mut measured = Measured::new();
    for round in 0..rounds {
        bench.make_room()?;
        for (case, mailbox, methods) in &cases {
            let of_case = |m: &&Method| args.only.is_empty() || args.only.contains(*m);
            let mut order: Vec<Method> = methods.iter().filter(of_case).copied().collect();
            // Nobody is always the first.
            let turn = round % order.len().max(1);
            order.rotate_left(turn);
            for method in order {
                let (name, round) = (method.name(), round + 1);
                let what = format!("round {round}: {}, {}, {name}", case.name(), mailbox.user);
                let took = bench.measure(*case, method, mailbox).with_context(|| what.clone())?;
                eprintln!("{what}: {:.2} s, {:.2} s of processors", took.wall, took.cpu);
                measured.entry((*case, mailbox.user, method)).or_default().push(took);
            }
        }
    }
    let mut blocks: BTreeMap<(&str, Method), Vec<Block>> = BTreeMap::new();
    let blocked = if is_asked(Part::Waits) { rounds.min(3) } else { 0 };
    for round in 0..blocked {
        bench.make_room()?;
        for mailbox in waiting {
            for method in Method::MOVES {
                let block = bench.block(method, &mailbox).with_context(|| {
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
    let mut others = Others::default();
    for _ in 0..if is_asked(Part::Others) { rounds } else { 0 } {
        bench.make_room()?;
        for (all, beside) in others.iter_mut().zip(BESIDE) {
            let [source, target, took] =
                bench.others(beside, &small).context("watching other users")?;
            let name = beside_name(beside);
            eprintln!("others, {name}: {source:.1} and {target:.1} ms, in {took:.2} s");
            all.iter_mut().zip([source, target, took]).for_each(|(all, one)| all.push(one));
        }
    }
    let result = bench.table(&mailboxes, &measured, &blocks, &others)?;
    print!("{result}");
    if let Some(file) = &args.out {
        std::fs::write(file, &result).with_context(|| format!("writing {}", file.display()))?;
    }
    if let Some(file) = &args.plot {
        std::fs::write(file, plot(&measured))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    bench.finish()
}

fn plot(measured: &Measured) -> String {
    let mut groups: Vec<bars::Group<'_>> = Vec::new();
    for ((case, user, method), all) in measured {
        let name = format!("{}, {user}", case.name());
        let median = Sample::of(&all.iter().map(|took| took.wall).collect::<Vec<_>>()).median;
        match groups.last_mut().filter(|group| group.0 == name) {
            Some(group) => group.1.push((method.name(), median)),
            None => groups.push((name, vec![(method.name(), median)])),
        }
    }
    bars::draw("Seconds, medians; each group to a scale of its own", &groups)
}

/// Beside what others are watched: nothing, or a method with options.
const BESIDE: [Option<(Method, &[&str])>; 6] = [
    None,
    Some((Method::Rsync, &[])),
    Some((Method::RsyncReconstruct, &[])),
    Some((Method::Push, &[])),
    Some((Method::Push, &["--nice"])),
    Some((Method::Push, &["--bwlimit", "30000000"])),
];

fn beside_name(beside: Option<(Method, &[&str])>) -> String {
    beside.map_or("nothing".to_owned(), |(method, options)| {
        std::iter::once(method.name()).chain(options.iter().copied()).collect::<Vec<_>>().join(" ")
    })
}

/// For each of [`BESIDE`], by rounds: the waits of other users on the source and on the target
/// that one in a hundred is longer than, in milliseconds, and the seconds that it took.
type Others = [[Vec<f64>; 3]; BESIDE.len()];

struct Bench {
    source: Host,
    target: Host,
    /// The data of both hosts as they were seeded, and what is thrown away.
    store: PathBuf,
    thrown_away: u32,
    /// What all mailboxes have, by user.
    bytes: BTreeMap<&'static str, u64>,
    /// The directories of each user's mailboxes, on any host.
    directories: BTreeMap<&'static str, Vec<String>>,
    /// How busy the machine was before each measurement, in per cent.
    busy: Vec<f64>,
}

impl Bench {
    /// Brings both hosts up, seeds the mailboxes, keeps what both hosts hold.
    fn prepare(args: &BenchArgs, mailboxes: &[Mailbox]) -> Result<Bench> {
        let mut users: Vec<&str> = mailboxes.iter().map(|mailbox| mailbox.user).collect();
        users.push(canary::USER);
        let mbcopy = args.mbcopy.canonicalize();
        let mbcopy = mbcopy.with_context(|| format!("no mbcopy at {}", args.mbcopy.display()))?;
        let [source, target] = [&args.source, &args.target].map(|name| -> Result<Host> {
            Host::new(name).up()?;
            let host = Host::new(name); // a new one's address is known only now
            host.empty()?;
            host.add_users(&users)?;
            host.install(&mbcopy, PROGRAM)?;
            host.install(&std::env::current_exe()?, link::PROGRAM)?;
            Seed::new(&host, canary::USER).bulk(1, Size::Fixed(2000), 1)?;
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
            let report = seed.bulk(mailbox.messages, mailbox.size, mailbox.folders)?;
            ensure!(report.warnings.is_empty(), "seeding: {:?}", report.warnings);
            bench.bytes.insert(mailbox.user, report.bytes as u64);
            let mut command = vec!["/usr/sbin/cyrus".to_owned(), "mbpath".into()];
            command.extend(mailbox.names().map(|name| match name.as_str() {
                "INBOX" => format!("user.{}", mailbox.user),
                name => format!("user.{}.{name}", mailbox.user),
            }));
            let paths = bench.source.run_as_cyrus(&command)?;
            let paths: Vec<String> = paths.lines().map(str::to_owned).collect();
            ensure!(paths.len() == mailbox.folders, "mbpath: {paths:?}");
            bench.directories.insert(mailbox.user, paths);
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
            let below = format!("{name}.");
            let is_own = |key: &str| key == name || key.starts_with(&below);
            let own: serde_json::Map<_, _> =
                records.iter().filter(|(key, _)| is_own(key)).map(own).collect();
            ensure!(own.len() >= mailbox.folders, "records of {name}: {own:?}");
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

    /// What a method takes; what it brought is checked.
    fn measure(&mut self, case: Case, method: Method, mailbox: &Mailbox) -> Result<Took> {
        self.fresh()?;
        let user = mailbox.user;
        let way = case.way().map_or(String::new(), |options| {
            let (name, to) = (self.target.name(), self.target.ip());
            format!("Host {name}\n  ProxyCommand {} link {to}:22 {options}\n", link::PROGRAM)
        });
        let config = self.source.root()?.join("etc/ssh/ssh_config.d/bench.conf");
        std::fs::create_dir_all(config.parent().context("no directory")?)?;
        std::fs::write(&config, way)?;
        if case == Case::Again {
            self.copy(method, mailbox, &["--copy-only"])?;
        }
        if case == Case::Cold {
            drop_caches()?;
        }
        let options: &[&str] = if case == Case::Again { &["--copy-only"] } else { &[] };
        let (before, start) = (cpu_times()?, Instant::now());
        self.copy(method, mailbox, options)?;
        let wall = start.elapsed().as_secs_f64();
        let after = cpu_times()?;
        let ticks = (after.0 - before.0).saturating_sub(after.1 - before.1);
        std::fs::write(&config, "")?;
        let load = self.load(mailbox);
        if let Method::Rsync | Method::Tar = method {
            self.target.run_as_cyrus(&["sh", "-c", &load])?;
        }
        if (case, method) != (Case::Again, Method::Push) {
            let found = messages(&self.target, mailbox)?;
            let expected = mailbox.messages as u64;
            ensure!(found == expected, "{found} of {expected} messages of {user} on the target");
        }
        Ok(Took { wall, cpu: ticks as f64 / TICKS })
    }

    /// Puts the records of a mailbox whose files were copied into mailboxes.db.
    fn load(&self, mailbox: &Mailbox) -> String {
        format!("/usr/sbin/cyrus ctl_mboxlist -u < {}", record_file(mailbox))
    }

    fn copy(&self, method: Method, mailbox: &Mailbox, options: &[&str]) -> Result<()> {
        let user = mailbox.user;
        let directories = &self.directories[user];
        let rsync = |option: &str| -> Result<()> {
            let there = format!("{}:/", self.target);
            let mut command = vec!["rsync", "-aR", "-e", "ssh"];
            command.extend(Some(option).filter(|option| !option.is_empty()));
            command.extend(directories.iter().map(String::as_str));
            command.push(&there);
            self.source.run(&command).map(drop)
        };
        match method {
            Method::Push => drop(self.push(user, options)?),
            Method::Rsync => rsync("")?,
            Method::RsyncReconstruct => {
                rsync("--fsync")?;
                let load = self.load(mailbox);
                let reconstruct =
                    format!("{load} && /usr/sbin/cyrus reconstruct -r -f user.{user}");
                self.target.run_as_cyrus(&["sh", "-c", &reconstruct])?;
            }
            Method::Xfer => self.xfer(user)?,
            Method::SyncClient => {
                let program = "/usr/lib/cyrus/bin/sync_client";
                self.source.run_as_cyrus(&[program, "-S", self.target.name(), "-u", user])?;
            }
            Method::Tar => {
                let script = "set -o pipefail; there=$1; shift; tar -C / -cf - \"${@#/}\" | \
                              ssh $there tar -C / -xf -";
                let mut command = vec!["bash", "-c", script, "tar", self.target.name()];
                command.extend(directories.iter().map(String::as_str));
                self.source.run(&command)?;
            }
        }
        Ok(())
    }

    /// How long others wait on both servers while somebody is moved, or nobody: see [`Others`].
    fn others(&mut self, beside: Option<(Method, &[&str])>, mailbox: &Mailbox) -> Result<[f64; 3]> {
        self.fresh()?;
        let canaries = [Canary::start(&self.source)?, Canary::start(&self.target)?];
        std::thread::sleep(Duration::from_secs(1));
        let start = Instant::now();
        match beside {
            Some((method, options)) => self.copy(method, mailbox, options)?,
            None => std::thread::sleep(Duration::from_secs(5)),
        }
        let took = start.elapsed().as_secs_f64();
        let [source, target] = canaries.map(|canary| canary.stop().map(|all| canary::worst(&all)));
        Ok([source?, target?, took])
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
        let outcome = if options.contains(&"--copy-only") { "copied" } else { "done" };
        ensure!(report["outcome"] == outcome, "push: {report}");
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
        measured: &Measured,
        blocks: &BTreeMap<(&str, Method), Vec<Block>>,
        others: &Others,
    ) -> Result<String> {
        let mut text = String::new();
        writeln!(text, "{}\n", self.circumstances()?)?;
        for mailbox in mailboxes {
            let megabytes = self.bytes[mailbox.user] as f64 / 1e6;
            let Mailbox { user, messages, folders, .. } = mailbox;
            writeln!(
                text,
                "- {user}: {messages} messages in {folders} folders, {megabytes:.0} MB"
            )?;
        }
        writeln!(
            text,
            "\n| circumstances | mailbox | what | n | median s | min | max | processors s | : rsync -a | : XFER |\n\
             |---|---|---|---|---|---|---|---|---|---|"
        )?;
        for ((case, user, method), all) in measured {
            let of = |all: &[Took], what: &dyn Fn(&Took) -> f64| {
                Sample::of(&all.iter().map(what).collect::<Vec<_>>())
            };
            let sample = of(all, &|took| took.wall);
            let to = |other: Method| {
                let other = measured.get(&(*case, *user, other));
                let ratio = other.map(|other| sample.median / of(other, &|took| took.wall).median);
                ratio.map_or("-".to_owned(), |ratio| format!("{ratio:.2}"))
            };
            writeln!(
                text,
                "| {} | {user} | {} | {} | {:.2} | {} | {} |",
                case.name(),
                method.name(),
                sample.show(2),
                of(all, &|took| took.cpu).median,
                to(Method::Rsync),
                to(Method::Xfer)
            )?;
        }
        if !others[0][0].is_empty() {
            text.push_str(
                "\nHow long others wait who append and fetch, in ms: what one in a hundred of their \
                 waits is longer than, median of the rounds:\n\n\
                 | beside | on the source | on the target | which takes s |\n|---|---|---|---|\n",
            );
            for (beside, all) in BESIDE.into_iter().zip(others) {
                let [source, target, took] = all.each_ref().map(|all| Sample::of(all).median);
                let name = beside_name(beside);
                writeln!(text, "| {name} | {source:.1} | {target:.1} | {took:.2} |")?;
            }
        }
        if blocks.is_empty() {
            return Ok(text);
        }
        text.push_str(
            "\nHow long a client waited who appends every 5 ms, in runs of their own:\n\n",
        );
        writeln!(text, "| mailbox | what | n | median s | min | max |\n|---|---|---|---|---|---|")?;
        for ((user, method), all) in blocks {
            let mut row = |what: &str, values: Vec<f64>| match values.is_empty() {
                true => Ok(()),
                false => {
                    let shown = Sample::of(&values).show(3);
                    writeln!(text, "| {user} | {}: {what} | {shown} |", method.name())
                }
            };
            row("longest APPEND", all.iter().map(|block| block.longest).collect())?;
            row("freeze by its report", all.iter().filter_map(|b| b.freeze).collect())?;
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

/// On the target.
fn record_file(mailbox: &Mailbox) -> String {
    format!("/tmp/{}.json", mailbox.user)
}

fn own((key, value): (&String, &serde_json::Value)) -> (String, serde_json::Value) {
    (key.clone(), value.clone())
}

/// How many messages a user has there.
fn messages(host: &Host, mailbox: &Mailbox) -> Result<u64> {
    let mut imap = host.imap(mailbox.user)?;
    let mut all = 0;
    for name in mailbox.names() {
        let shown = if name == "INBOX" { name } else { format!("INBOX.{name}") };
        let reply = imap.command(format!("STATUS {shown} (MESSAGES)"))?;
        let status = reply.of("STATUS").next().and_then(|status| status.get(2));
        let count = status.and_then(|items| items.get("MESSAGES")?.number());
        all += count.context("no MESSAGES in the answer to STATUS")?;
    }
    Ok(all)
}
