//! `lab growth`: what a move costs by the number of messages: how long clients wait, memory,
//! time; as a table and a plot.

mod plot;

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::Host;
use lab::seed::{Seed, Size};
use lab::workload::{self, Route};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// Between two operations of each client: about a hundred changes in the last round.
const EVERY: Duration = Duration::from_millis(10);
/// Messages that one COPY makes: more would take longer than is waited for an answer.
const MOST_COPIED: usize = 100_000;
/// Between two looks at processes.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct GrowthArgs {
    /// The program to measure.
    #[arg(long)]
    mbcopy: PathBuf,
    /// The two hosts between which users go to and fro.
    #[arg(long, value_delimiter = ',', default_values = ["bw1", "bw2"])]
    hosts: Vec<String>,
    /// How many messages.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    sizes: Vec<usize>,
    /// Moves of each.
    #[arg(long, default_value_t = 6)]
    moves: usize,
    /// How often the clients' connections are cut while nobody is moved, to compare with.
    #[arg(long, default_value_t = 3)]
    cuts: usize,
    /// Median of the messages' sizes, in bytes.
    #[arg(long, default_value_t = 2000)]
    median: usize,
    /// How many messages are appended: the others are copied from them by IMAP, so that Cyrus
    /// links their files, which takes a hundredth of the time.
    #[arg(long, default_value_t = 100_000)]
    distinct: usize,
    /// Writes the table to this file too.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Writes a plot (SVG) to this file.
    #[arg(long)]
    plot: Option<PathBuf>,
}

/// Resident memory at its largest, in bytes, by process.
type Memory = BTreeMap<&'static str, f64>;

/// What was measured of a mailbox of one size.
#[derive(Default)]
struct Measured {
    messages: f64,
    /// Seconds that the first copy took, which is the first move's.
    first: f64,
    /// Seconds of a copy that finds nothing changed.
    again: Vec<f64>,
    /// There, and back: between two releases they are not the same.
    ways: [Way; 2],
    /// The longest wait of any client whose connection is cut while nobody is moved, in seconds:
    /// what Cyrus takes by itself until clients are at work again.
    cut: Vec<f64>,
    memory: Memory,
}

/// What was measured of the moves from one host to another, in seconds.
#[derive(Default)]
struct Way {
    name: String,
    /// The freezes, as reports say.
    freezes: Vec<f64>,
    /// The longest wait of any client for any operation, in each move.
    waits: Vec<f64>,
}

pub fn run(args: &GrowthArgs) -> Result<()> {
    let mut all = Vec::new();
    for size in &args.sizes {
        let measured = measure(args, *size).with_context(|| format!("{size} messages"))?;
        all.push(measured);
        let table = table(&all)?;
        print!("{table}");
        if let Some(file) = &args.out {
            std::fs::write(file, &table).with_context(|| format!("writing {}", file.display()))?;
        }
    }
    if let Some(file) = &args.plot {
        std::fs::write(file, plot(&all)).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn measure(args: &GrowthArgs, messages: usize) -> Result<Measured> {
    let user = "growth";
    let mut hosts = Vec::new();
    for name in &args.hosts {
        Host::new(name).up()?;
        let host = Host::new(name); // a new one's address is known only now
        host.empty()?;
        host.add_users(&[user])?;
        host.install(&args.mbcopy, PROGRAM)?;
        hosts.push(host);
    }
    let [first, second] = &hosts[..] else { anyhow::bail!("two hosts are needed") };
    eprintln!("seeding {messages} messages");
    let mut there = messages.min(args.distinct.max(1));
    let report = Seed::new(first, user).bulk(there, Size::Median(args.median), 1)?;
    ensure!(report.warnings.is_empty(), "seeding: {:?}", report.warnings);
    let mut imap = first.imap(user)?;
    imap.command("SELECT INBOX")?;
    while there < messages {
        let more = (messages - there).min(there).min(MOST_COPIED);
        imap.command(format!("COPY 1:{more} INBOX"))?;
        there += more;
    }
    drop(imap);
    let mut measured = Measured { messages: messages as f64, ..Measured::default() };
    let watch = Watch::start(&hosts)?;
    // A first copy that nobody disturbs, and one that finds nothing new.
    for round in 0..3 {
        let began = Instant::now();
        push(first, second, user, &["--copy-only"])?;
        match round {
            0 => measured.first = began.elapsed().as_secs_f64(),
            _ => measured.again.push(began.elapsed().as_secs_f64()),
        }
    }
    for number in 0..args.moves.max(1) {
        let (from, to) = if number % 2 == 0 { (first, second) } else { (second, first) };
        let (route, command) = Route::commanded(user, from)?;
        let options = ["--route-command", &command];
        let (report, waits) = at_work(&route, || push(from, to, user, &options))?;
        let ms = report["freeze_ms"].as_f64().context("no freeze_ms in the report")?;
        eprintln!("{messages} messages, move {}: freeze {ms:.0} ms, waits {waits:.3?}", number + 1);
        let [there, back] = &mut measured.ways;
        let way = if number % 2 == 0 { there } else { back };
        way.name = format!("{} to {}", from.name(), to.name());
        way.freezes.push(ms / 1000.0);
        way.waits.push(longest(&waits));
    }
    measured.memory = watch.stop()?;
    let host = if args.moves.max(1).is_multiple_of(2) { first } else { second };
    for number in 0..args.cuts {
        let (route, _) = Route::commanded(user, host)?;
        let waits = at_work(&route, || host.run(&["pkill", "-x", "imapd"]))?.1;
        eprintln!("{messages} messages, cut {}: waits {waits:.3?}", number + 1);
        measured.cut.push(longest(&waits));
    }
    Ok(measured)
}

/// Does something while clients append and change flags; what came of it, and their longest
/// waits in seconds, by operation.
fn at_work<T>(
    route: &Route,
    something: impl FnOnce() -> Result<T>,
) -> Result<(T, BTreeMap<String, f64>)> {
    let appender = workload::appender(route, "INBOX", EVERY);
    let changer = workload::flag_changer(route, "INBOX", 200, EVERY)?;
    std::thread::sleep(Duration::from_secs(1));
    let result = something()?;
    std::thread::sleep(Duration::from_secs(1));
    let histories = [appender.stop()?, changer.stop()?];
    let latencies = histories.iter().flat_map(|history| &history.latency);
    let waits = latencies.map(|(what, waited)| (what.clone(), waited.longest.as_secs_f64()));
    Ok((result, waits.collect()))
}

fn longest(waits: &BTreeMap<String, f64>) -> f64 {
    waits.values().copied().fold(0.0, f64::max)
}

fn push(from: &Host, to: &Host, user: &str, options: &[&str]) -> Result<serde_json::Value> {
    let mailbox = format!("user.{user}");
    let mut command = vec![PROGRAM, "push", &mailbox, to.name(), "--json"];
    command.extend(options);
    let Output { status, stdout, stderr } = from.exec(&command)?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "push: {status}: {stdout}{stderr}");
    Ok(serde_json::from_str(stdout.lines().last().unwrap_or_default())?)
}

/// Looks at the memory of mbcopy's processes on both hosts.
struct Watch {
    stop: std::sync::Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Memory>,
}

impl Watch {
    fn start(hosts: &[Host]) -> Result<Watch> {
        let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
        let mut namespaces = Vec::new();
        for host in hosts {
            namespaces.push(namespace(host.pid()?)?);
        }
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut memory = Memory::new();
            while !stopped.load(Ordering::Relaxed) {
                let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
                let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
                for pid in pids {
                    let Some((role, peak)) = of_process(pid) else { continue };
                    if namespace(pid).is_ok_and(|found| namespaces.contains(&found)) {
                        let most = memory.entry(role).or_default();
                        *most = most.max(peak);
                    }
                }
                std::thread::sleep(LOOK);
            }
            memory
        });
        Ok(Watch { stop, thread })
    }

    fn stop(self) -> Result<Memory> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watching thread died"))
    }
}

/// What one of mbcopy's processes does, and its memory at its largest, in bytes.
fn of_process(pid: u32) -> Option<(&'static str, f64)> {
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    if !words.first()?.ends_with(b"mbcopy") {
        return None;
    }
    let role = match (words.contains(&b"agent".as_slice()), words.contains(&b"source".as_slice())) {
        (true, true) => "source agent",
        (true, false) => "target agent",
        _ => "coordinator",
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some((role, kilobytes * 1024.0))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    sorted.get(half).copied().unwrap_or(f64::NAN)
}

fn most(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::NAN, f64::max)
}

fn table(all: &[Measured]) -> Result<String> {
    let mut text = String::new();
    let load = std::fs::read_to_string("/proc/loadavg")?;
    writeln!(text, "Load of the machine at the end: {}\n", load.trim())?;
    text.push_str(
        "| messages | first copy s | again, nothing changed s | coordinator MiB | source agent MiB | target agent MiB |\n\
         |---|---|---|---|---|---|\n",
    );
    for m in all {
        let memory = |role| m.memory.get(role).map_or(f64::NAN, |bytes| bytes / 1048576.0);
        writeln!(
            text,
            "| {} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} |",
            m.messages,
            m.first,
            median(&m.again),
            memory("coordinator"),
            memory("source agent"),
            memory("target agent"),
        )?;
    }
    text.push_str(
        "\n| messages | move | moves | freeze ms: median | most | longest wait of a client ms: median | most |\n\
         |---|---|---|---|---|---|---|\n",
    );
    let ways = all.iter().flat_map(|m| m.ways.iter().map(move |way| (m, way)));
    for (m, way) in ways.filter(|(_, way)| !way.freezes.is_empty()) {
        writeln!(
            text,
            "| {} | {} | {} | {:.0} | {:.0} | {:.0} | {:.0} |",
            m.messages,
            way.name,
            way.freezes.len(),
            median(&way.freezes) * 1e3,
            most(&way.freezes) * 1e3,
            median(&way.waits) * 1e3,
            most(&way.waits) * 1e3,
        )?;
    }
    text.push_str(
        "\n| messages | connections cut, nobody moved: longest wait of a client ms: median | most |\n\
         |---|---|---|\n",
    );
    for m in all.iter().filter(|m| !m.cut.is_empty()) {
        let (middle, most) = (median(&m.cut) * 1e3, most(&m.cut) * 1e3);
        writeln!(text, "| {} | {middle:.0} | {most:.0} |", m.messages)?;
    }
    text.push('\n');
    Ok(text)
}

fn plot(all: &[Measured]) -> String {
    let of = |value: &dyn Fn(&Measured) -> f64| -> Vec<(f64, f64)> {
        all.iter().map(|m| (m.messages, value(m))).collect()
    };
    let both =
        |m: &Measured, of: fn(&Way) -> &Vec<f64>| m.ways.iter().flat_map(of).copied().collect();
    let freezes = |m: &Measured| -> Vec<f64> { both(m, |way| &way.freezes) };
    let waits = |m: &Measured| -> Vec<f64> { both(m, |way| &way.waits) };
    let largest = |m: &Measured| m.memory.values().copied().fold(0.0, f64::max) / 1048576.0;
    plot::logarithmic(
        "What a move costs by the number of messages",
        "messages",
        &[
            ("freeze, ms", of(&|m| median(&freezes(m)) * 1e3)),
            ("longest wait of a client, ms", of(&|m| median(&waits(m)) * 1e3)),
            ("memory of the largest process, MiB", of(&largest)),
            ("first copy, ms for 1,000 messages", of(&|m| m.first * 1e6 / m.messages)),
            ("copy that finds nothing changed, ms", of(&|m| median(&m.again) * 1e3)),
        ],
    )
}
