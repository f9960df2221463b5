//! `lab demo`: a user moves while clients work and mail arrives; every promise is checked.

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lab::fingerprint::{self, Fingerprint, Take, volatile};
use lab::workload::{self, Crew, History, Observation, Route, Step};
use lab::{Host, Seed};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Where mbcopy is installed on the hosts.
const PROGRAM: &str = "/usr/local/bin/mbcopy";
/// The user who moves while everything goes on.
const ANNA: &str = "anna";
/// The user whom nobody disturbs.
const BERT: &str = "bert";

#[derive(Args)]
pub struct DemoArgs {
    /// The program to install on both hosts.
    #[arg(long)]
    mbcopy: PathBuf,
    /// The host that has the users.
    #[arg(long, default_value = "bw1")]
    source: String,
    /// The host that gets them.
    #[arg(long, default_value = "bw2")]
    target: String,
}

pub fn run(args: &DemoArgs) -> Result<ExitCode> {
    let mbcopy = args.mbcopy.canonicalize();
    let mbcopy = mbcopy.with_context(|| format!("no mbcopy at {}", args.mbcopy.display()))?;
    let mut steps = Steps::default();

    steps.next("Two Cyrus servers come up on this machine, empty, with mbcopy installed.");
    let [source, target] = [&args.source, &args.target].map(|name| {
        let up = || -> Result<Host> {
            Host::new(name).up()?;
            let host = Host::new(name); // a new one's address is known only now
            host.empty()?;
            host.add_users(&[ANNA, BERT])?;
            host.install(&mbcopy, PROGRAM)?;
            println!("{name} at {}: {}", host.ip(), host.admin()?.greeting.text);
            Ok(host)
        };
        up().with_context(|| format!("bringing {name} up"))
    });
    let (source, target) = (source?, target?);

    steps.next("Two users get mail: Anna a bit of all that Cyrus can keep, Bert shares with her.");
    let seeded = Seed::new(&source, ANNA).rich(BERT, 1500)?;
    ensure!(seeded.warnings.is_empty(), "seeding: {:?}", seeded.warnings);
    let before = Before {
        anna: Fingerprint::take(&source, ANNA, &Take::with_others(&[BERT]))?,
        bert: Fingerprint::take(&source, BERT, &Take::default())?,
    };
    println!("{} messages, {:.1} MB", seeded.messages, megabytes(seeded.bytes as u64));

    steps.next(
        "Clients start to work in Anna's INBOX: they append, flag, expunge, read; mail arrives.",
    );
    let (route, route_command) = Route::commanded(ANNA, &source)?;
    let crew = Crew::start(&route, Duration::from_millis(10))?;
    let watcher = workload::watcher(&target, ANNA, Duration::from_millis(5));
    std::thread::sleep(Duration::from_secs(2));
    println!("Another client keeps asking {target} what it shows of Anna.");

    steps.next("Anna moves. The route command points mail and logins at the new server.");
    let took = push(&source, &["user.anna", target.name(), "--route-command", &route_command])?;

    steps.next("The clients go on for three seconds on the new server, then stop.");
    std::thread::sleep(Duration::from_secs(3));
    let watched = watcher.stop()?;
    let history = crew.stop()?;
    let report = last_report(&source, "user.anna")?;
    for (kind, latency) in &history.latency {
        let longest = latency.longest.as_millis();
        println!("{:>8} {:6} times, longest wait {longest} ms", kind, latency.count);
    }

    steps.next("Bert moves too; nobody disturbs him, so he must be exactly what he was.");
    push(&source, &["user.bert", target.name()])?;

    steps.next("Everything is compared with what was promised.");
    let after = Before {
        anna: Fingerprint::take(&target, ANNA, &Take::with_others(&[BERT]))?,
        bert: Fingerprint::take(&target, BERT, &Take::default())?,
    };
    let mut verdict = Verdict::default();
    verdict.fact("mailboxes that Anna sees", before.anna.own.mailboxes.len());
    verdict.fact("messages moved, expunged ones too", &report["messages"]);
    let bytes: u64 = report["bytes"].parse().context("bytes")?;
    verdict.fact("their size", format!("{:.1} MB", megabytes(bytes)));
    verdict.fact("push, from start to end", format!("{:.2} s", took.as_secs_f64()));
    let freeze: f64 = report["freeze_ms"].parse().context("freeze_ms")?;
    let broken = if freeze < 1000.0 { vec![] } else { vec!["a second or more".to_owned()] };
    verdict.promise("freeze", format!("{freeze} ms"), broken);
    judge_history(&mut verdict, &history, &after.anna);
    judge_watch(&mut verdict, &watched, &before.anna);
    judge_quiet(&mut verdict, &before, &after)?;
    judge_serving(&mut verdict, &source, &target)?;
    println!();
    verdict.print();

    println!(
        "\nBoth servers still run. To look around (every password is \"{}\"):\n",
        lab::PASSWORD
    );
    println!("    tests/lab/lab.sh shell {target}");
    println!("    tests/lab/lab.sh log {source} 20");
    println!(
        "    tests/lab/lab.sh exec {source} ls /var/spool/cyrus/mail/.mbcopy    # every byte of the old copy"
    );
    println!(
        "    cargo run -p mbcopy-lab -- imap {target} {ANNA} 'LIST \"\" *' 'STATUS INBOX (MESSAGES)'"
    );
    println!("\nTo stop them: make lab-down");
    Ok(ExitCode::from(u8::from(!verdict.kept())))
}

/// Headings.
#[derive(Default)]
struct Steps(u32);

impl Steps {
    fn next(&mut self, text: &str) {
        self.0 += 1;
        let heading = format!("{}. {text}", self.0);
        if std::io::stdout().is_terminal() {
            println!("\n\x1b[1m{heading}\x1b[0m");
        } else {
            println!("\n{heading}");
        }
    }
}

/// What both users were, or became.
struct Before {
    anna: Fingerprint,
    bert: Fingerprint,
}

/// Runs a push on the host and shows all that it says.
fn push(host: &Host, arguments: &[&str]) -> Result<Duration> {
    let command: Vec<&str> = [PROGRAM, "push"].iter().chain(arguments).copied().collect();
    let quoted = arguments.iter().map(|argument| match argument.contains(' ') {
        true => format!("'{argument}'"),
        false => (*argument).to_owned(),
    });
    println!("{host}# mbcopy push {}", quoted.collect::<Vec<_>>().join(" "));
    let start = Instant::now();
    let status = host.command(&command).status().context("starting mbcopy")?;
    ensure!(status.success(), "mbcopy push ended with {status}");
    Ok(start.elapsed())
}

/// What mbcopy said of a move in the host's syslog, by key.
fn last_report(host: &Host, mailbox: &str) -> Result<BTreeMap<String, String>> {
    let wanted = format!("mailbox={mailbox} .*outcome=done");
    let line = host.run(&["sh", "-c", r#"grep "$0" /var/log/messages | tail -n 1"#, &wanted])?;
    let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
    let report: BTreeMap<_, _> = pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    for key in ["messages", "bytes", "freeze_ms"] {
        if !report.contains_key(key) {
            bail!("no {key} in what {host}'s syslog has of the move: {line:?}");
        }
    }
    Ok(report)
}

/// The table that is printed in the end.
#[derive(Default)]
struct Verdict {
    rows: Vec<(String, String)>,
    broken: Vec<String>,
}

impl Verdict {
    fn fact(&mut self, what: &str, value: impl std::fmt::Display) {
        self.rows.push((what.to_owned(), value.to_string()));
    }

    /// A promise, what was found, and how it was broken, if it was.
    fn promise(&mut self, what: &str, found: impl std::fmt::Display, broken: Vec<String>) {
        let mark = if broken.is_empty() { "as promised" } else { "NOT AS PROMISED" };
        self.rows.push((what.to_owned(), format!("{found}  [{mark}]")));
        self.broken.extend(broken.into_iter().map(|how| format!("{what}: {how}")));
    }

    fn kept(&self) -> bool {
        self.broken.is_empty()
    }

    fn print(&self) {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        for (what, value) in &self.rows {
            println!("  {what:width$}  {value}");
        }
        for how in &self.broken {
            println!("\nNOT AS PROMISED: {how}");
        }
    }
}

fn judge_history(verdict: &mut Verdict, history: &History, end: &Fingerprint) {
    let longest = history.latency.iter().max_by_key(|(_, latency)| latency.longest);
    if let Some((kind, latency)) = longest {
        let longest = latency.longest.as_millis();
        verdict.fact("longest wait of any client", format!("{longest} ms, for {kind}"));
    }
    let sent = history.messages.iter().filter(|(id, fate)| is_delivery(id) && fate.accepted > 0);
    let (sent, found) =
        (sent.count(), end.messages().filter(|(_, _, m)| is_delivery(&m.message_id)));
    let found = found.count();
    let mut broken = Vec::new();
    if sent == 0 || sent > found {
        broken.push("mail is missing, or none was sent".to_owned());
    }
    let bounced = history.bounces.len();
    let counts = format!("{sent} accepted, {found} found, {bounced} bounced");
    verdict.promise("deliveries", counts, broken);
    let acknowledged: u32 = history.latency.values().map(|latency| latency.count).sum();
    let violations: Vec<String> =
        workload::check(history, end).iter().map(ToString::to_string).collect();
    let found = format!("{} violations in {acknowledged} operations", violations.len());
    verdict.promise("what clients were told", found, violations);
}

fn is_delivery(message_id: &str) -> bool {
    message_id.contains(".deliver-")
}

/// Anna's INBOX grows while she is watched: everything that it had counts as the whole.
fn judge_watch(verdict: &mut Verdict, watched: &[Step], before: &Fingerprint) {
    let whole = Observation::of(before);
    let had = before.own.mailboxes.get("INBOX").map_or(0, |inbox| inbox.messages.len() as u64);
    let steps: Vec<Step> = watched
        .iter()
        .map(|step| {
            let mut step = step.clone();
            if let Observation::Mailboxes(found) = &mut step.found
                && let Some(Some(messages)) = found.get_mut("INBOX")
            {
                *messages = had.min(*messages);
            }
            step
        })
        .collect();
    let looks = |what: &dyn Fn(&Observation) -> bool| -> u32 {
        steps.iter().filter(|step| what(&step.found)).map(|step| step.times).sum()
    };
    let none = looks(&|found| found.is_none());
    let all = looks(&|found| *found == whole);
    let total = looks(&|_| true);
    let mut broken: Vec<String> =
        workload::none_then_whole(&steps, &whole).iter().map(ToString::to_string).collect();
    if none == 0 || all == 0 {
        broken.push("the watcher saw only one of the two".to_owned());
    }
    let found =
        format!("{none} times no Anna, then {all} times all of her, {} else", total - none - all);
    verdict.promise("what the new server showed", found, broken);
}

fn judge_quiet(verdict: &mut Verdict, before: &Before, after: &Before) -> Result<()> {
    let differences = |before: &Fingerprint, after: &Fingerprint, known: &[&str]| {
        let always = [volatile::LASTUPDATE, volatile::SERVER];
        let ignored: Vec<&str> =
            volatile::ALWAYS.iter().chain(&always).chain(known).copied().collect();
        let found = fingerprint::diff(before, after, &ignored)?;
        Ok::<_, anyhow::Error>(found.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let bert = before.bert.messages().count();
    verdict.promise(
        "Bert, all that can be seen",
        format!("compared, {bert} messages"),
        differences(&before.bert, &after.bert, &[])?,
    );

    // The clients worked in INBOX, and used up quota.
    let quiet = |print: &Fingerprint| {
        let mut print = print.clone();
        print.own.mailboxes.remove("INBOX");
        print.admin.remove("user.anna");
        print.delayed_expunged.remove("user.anna");
        print
    };
    let (was, is) = (quiet(&before.anna), quiet(&after.anna));
    let folders = was.own.mailboxes.len();
    verdict.promise(
        "Anna's quiet folders",
        format!("{folders} compared, {} messages", was.messages().count()),
        differences(&was, &is, &["quota"])?,
    );
    let inbox = |print: &Fingerprint| {
        print.own.mailboxes.get("INBOX").map(|inbox| inbox.messages.clone()).unwrap_or_default()
    };
    let (had, has) = (inbox(&before.anna), inbox(&after.anna));
    let changed = had.iter().filter(|(uid, message)| has.get(uid) != Some(message));
    let changed: Vec<String> = changed.map(|(uid, _)| format!("UID {uid} is another")).collect();
    verdict.promise(
        "Anna's INBOX as it was",
        format!("{} messages compared: UID, flags, dates, MODSEQ, SHA-1", had.len()),
        changed,
    );
    Ok(())
}

/// The old server shows neither of them any more, and says so for now, not for good.
fn judge_serving(verdict: &mut Verdict, source: &Host, target: &Host) -> Result<()> {
    for (user, name) in [(ANNA, "Anna"), (BERT, "Bert")] {
        let mut broken = Vec::new();
        let late = lab::lmtp::deliver(source, user, b"Subject: late\r\n\r\nlate\r\n");
        let answer = match &late {
            lab::lmtp::Outcome::Refused(_, reply) => format!("{} {}", reply.code, reply.text),
            other => format!("{other:?}"),
        };
        if !answer.starts_with('4') {
            broken.push(answer.clone());
        }
        if source.imap(user)?.attempt("SELECT INBOX")?.tagged.is_ok() {
            broken.push(format!("{source} still opens the INBOX"));
        }
        if !target.imap(user)?.attempt("SELECT INBOX")?.tagged.is_ok() {
            broken.push(format!("{target} does not open the INBOX"));
        }
        verdict.promise(&format!("{name}'s mail at the old server"), answer, broken);
    }
    Ok(())
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::fingerprint::Message;

    /// A look that found that many messages in INBOX and one in another folder.
    fn look(inbox: u64) -> Observation {
        let folders = [("INBOX", inbox), ("INBOX.a", 1)];
        let counted = folders.map(|(name, count)| (name.to_owned(), Some(count)));
        Observation::Mailboxes(BTreeMap::from(counted))
    }

    fn kept(looks: &[Observation]) -> bool {
        let mut before = Fingerprint::default();
        for (name, count) in [("INBOX", 2), ("INBOX.a", 1)] {
            let mailbox = before.own.mailboxes.entry(name.to_owned()).or_default();
            mailbox.messages.extend((1..=count).map(|uid| (uid, Message::default())));
        }
        let step = |found: &Observation| Step {
            found: found.clone(),
            first: Duration::ZERO,
            last: Duration::ZERO,
            times: 1,
        };
        let mut verdict = Verdict::default();
        judge_watch(&mut verdict, &looks.iter().map(step).collect::<Vec<_>>(), &before);
        verdict.kept()
    }

    #[test]
    fn the_whole_may_grow_but_no_part_of_it_may_be_seen() {
        let none = Observation::Mailboxes(BTreeMap::new());
        assert!(kept(&[none.clone(), look(2), look(5)]));
        assert!(!kept(&[none.clone(), look(1), look(2)]));
        assert!(!kept(&[none.clone(), look(2), none.clone()]));
        assert!(!kept(&[none]));
        assert!(!kept(&[look(2)]));
    }
}
