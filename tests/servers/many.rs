//! The long forms of a run's tests: `make bulk USERS=1000`, also to a newer release:
//! `TARGET=trix`. Users of realistic sizes (`SIZES=40,300,1500`: smaller ones, for a smaller
//! disk), by eight moves at once.

use crate::bulk::{
    STORE, assert_each_once, assert_healthy, directory, documents, kill_until_done, serves, shell,
};
use crate::support::{Servers, assert_same, look_at};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::Host;
use lab::seed::{Seed, Size};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Most users that XFER moves beside a run.
const XFERRED: usize = 200;

/// Users from which on a run is compared with XFER: before, its start counts.
const ENOUGH: usize = 100;

/// Users of the source, and what they were.
struct Many {
    servers: Servers,
    target: String,
    users: Vec<String>,
    before: BTreeMap<String, Fingerprint>,
    /// Those whose messages are compared byte by byte.
    tenth: BTreeSet<usize>,
}

/// Under what name the lab keeps what the first of the tests has seeded.
const SEEDED: &str = "many";

/// How many messages users have: `SIZES=`, or these.
static SIZES: LazyLock<[usize; 3]> = LazyLock::new(|| {
    let given = std::env::var("SIZES").unwrap_or_else(|_| "200,1500,10000".into());
    let sizes: Vec<usize> = given.split(',').map(|size| size.parse().unwrap()).collect();
    sizes.try_into().expect("three SIZES")
});

/// Most are small, some are large: as in a server's life.
fn messages(n: usize) -> usize {
    let [small, middle, large] = *SIZES;
    match n % 20 {
        0 => large,
        1..=4 => middle,
        _ => small,
    }
}

fn seed(host: &Host, user: &str, n: usize) {
    let seed = Seed::new(host, user).seed(n as u64 + 1);
    seed.bulk(messages(n), Size::Median(8000), 2 + n % 7).unwrap();
}

/// Does something with each of so many, some at once.
fn each(count: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        break;
                    }
                    work(n);
                }
            });
        }
    });
}

/// So many of these numbers, at random; `SEED=` has it choose the same again.
fn at_random(some: usize, of: usize) -> BTreeSet<usize> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random: u64 = given.unwrap_or(now).max(1);
    println!("chosen with SEED={random}");
    let mut chosen = BTreeSet::new();
    while chosen.len() < some.min(of) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        chosen.insert((random >> 11) as usize % of);
    }
    chosen
}

impl Many {
    /// Seeds them, or has what another test has seeded brought back.
    fn of_all() -> Many {
        static BEFORE: OnceLock<(BTreeMap<String, Fingerprint>, BTreeSet<usize>)> = OnceLock::new();
        let count: usize = std::env::var("USERS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
        let target = std::env::var("TARGET").unwrap_or_else(|_| "bw2".into());
        let servers = Servers::between("bw1", &target);
        let users: Vec<String> = (0..count).map(Wrong::name).collect();
        let began = Instant::now();
        servers.accounts(&users.iter().map(String::as_str).collect::<Vec<_>>());
        let (before, tenth) = (BTreeMap::new(), at_random(count.div_ceil(10), count));
        let mut many = Many { servers, target, users, before, tenth };
        let source = &many.servers.source;
        if let Some((before, tenth)) = BEFORE.get() {
            source.unsnap(SEEDED).unwrap();
            (many.before, many.tenth) = (before.clone(), tenth.clone());
            println!("{count} users brought back in {:?}", began.elapsed());
        } else {
            each(count, |n| seed(source, &many.users[n], n));
            let seeded = began.elapsed();
            many.before = many.fingerprints(source, &many.users);
            println!("{count} users seeded in {seeded:?}, looked at by {:?}", began.elapsed());
            source.snap(SEEDED).unwrap();
            let _ = BEFORE.set((many.before.clone(), many.tenth.clone()));
        }
        let plan: Vec<String> = many.users.iter().map(|user| format!("user.{user}\n")).collect();
        std::fs::write(source.root().unwrap().join("tmp/users"), plan.concat()).unwrap();
        shell(source, &format!("rm -rf {STORE}"));
        many
    }

    /// What these are on this server: of a tenth the bytes of all messages, of others what
    /// the server says of them.
    fn fingerprints(&self, host: &Host, users: &[String]) -> BTreeMap<String, Fingerprint> {
        let all = std::sync::Mutex::new(BTreeMap::new());
        let users: BTreeSet<&String> = users.iter().collect();
        each(self.users.len(), |n| {
            let user = &self.users[n];
            if !users.contains(user) || !serves(host, user) {
                return;
            }
            let take = Take { bodies: self.tenth.contains(&n), ..Take::default() };
            let print = Fingerprint::take(host, user, &take).unwrap();
            all.lock().unwrap().insert(user.clone(), print);
        });
        all.into_inner().unwrap()
    }

    fn command(&self) -> Vec<&str> {
        let to = ["mbcopy", "bulk", "/tmp/users", "--to", &self.target, "--jobs=8"];
        [&to[..], &["--attempts=60", "--retry-after=1s", "--store", STORE]].concat()
    }

    fn messages(&self) -> usize {
        (0..self.users.len()).map(messages).sum()
    }

    /// Everybody of these is whole on the target, and only there; the target is healthy.
    #[track_caller]
    fn assert_moved(&self, users: &[String]) {
        // A newer release shows one key more (tests/servers/versions.rs).
        let known: &[&str] = match self.target.as_str() {
            "bw2" => &[],
            _ => &["/shared/vendor/cmu/cyrus-imapd/userrawquota"],
        };
        let after = self.fingerprints(&self.servers.target, users);
        for user in users {
            let after = after.get(user).unwrap_or_else(|| panic!("nobody serves {user}"));
            assert_same(&self.before[user], after, known);
            assert!(!serves(&self.servers.source, user), "the source still serves {user}");
        }
        assert_healthy(&self.servers.target, users);
        // That of 3.6 does not know directories by id, and names every mailbox.
        if self.target != "bw2" {
            let list = "su -s /bin/sh cyrus -c '/usr/lib/cyrus/bin/ctl_mboxlist -v' 2>&1";
            let said = shell(&self.servers.target, list);
            let all = users.len() == self.users.len();
            let about = |line: &&str| all || users.iter().any(|user| line.contains(user.as_str()));
            let complaints: Vec<&str> = said.lines().filter(about).collect();
            assert!(complaints.is_empty(), "ctl_mboxlist -v: {complaints:?}");
        }
    }
}

/// Another user of the target, who works there all the time; how often, and with what
/// trouble.
fn neighbour<T>(host: &Host, meanwhile: impl FnOnce() -> T) -> T {
    host.add_users(&["neighbour"]).unwrap();
    host.admin().unwrap().command("CREATE user.neighbour").unwrap();
    let (stop, turns) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        let works = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let message = b"Subject: hello\r\n\r\nneighbour\r\n";
                lab::lmtp::deliver(host, "neighbour", message).accepted().unwrap();
                let mut imap = host.imap("neighbour").unwrap();
                imap.command("SELECT INBOX").unwrap();
                imap.command("STORE 1:* +FLAGS (\\Seen)").unwrap();
                imap.command("FETCH 1:* (UID FLAGS)").unwrap();
                turns.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let done = meanwhile();
        stop.store(true, Ordering::Relaxed);
        works.join().expect("the target's other users can work");
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns > 0, "the neighbour did nothing");
        println!("the neighbour worked {turns} times");
        done
    })
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_unstable_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Beside it XFER of others of the same kind, one after another, and by the message: of as
/// many, or of some at random.
#[test]
#[ignore = "takes long: make bulk"]
fn many_users_and_xfer_beside_it() {
    let many = Many::of_all();
    let (source, target) = (&many.servers.source, &many.servers.target);
    let count = many.users.len();
    let chosen: Vec<usize> = at_random(XFERRED, count).into_iter().collect();
    let theirs: Vec<String> = chosen.iter().map(|n| format!("xfer{n:04}")).collect();
    many.servers.accounts(&theirs.iter().map(String::as_str).collect::<Vec<_>>());
    // An imapd that was asked for the free space of partitions, as for a fingerprint, has set
    // its random numbers anew by the time of day: several would give the same uniqueids.
    source.restart_cyrus().unwrap();
    each(chosen.len(), |at| seed(source, &theirs[at], chosen[at]));

    let mut admin = source.admin().unwrap();
    admin.set_patience(Duration::from_secs(1800)).unwrap();
    let mut xfer = |users: &[String]| {
        let mut each = Vec::new();
        for user in users {
            let began = Instant::now();
            let reply = admin.attempt(format!("XFER user.{user} {}", many.target)).unwrap();
            let told = format!("USER {user}");
            assert!(reply.notes.iter().any(|n| n.is_ok() && n.text == told), "{:?}", reply.notes);
            each.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        each
    };
    // One half before the run and one after it: other work of the machine comes and goes.
    let (first, second) = theirs.split_at(theirs.len() / 2);
    let mut each_xfer = xfer(first);
    let command = many.command();
    let began = Instant::now();
    let told = [&command[1..], &["--json"]].concat();
    let told = documents(&neighbour(target, || many.servers.mbcopy(&told).expect(0)));
    let bulk = began.elapsed();
    each_xfer.extend(xfer(second));
    let xfer = Duration::from_secs_f64(each_xfer.iter().sum::<f64>() / 1000.0);
    let xferred: usize = chosen.iter().map(|n| messages(*n)).sum();
    let each_ms = |took: Duration, messages: usize| took.as_secs_f64() * 1000.0 / messages as f64;
    let (bulk_ms, xfer_ms) = (each_ms(bulk, many.messages()), each_ms(xfer, xferred));
    let times = xfer_ms / bulk_ms;
    println!(
        "bulk: {count} users, {} messages, {:.1} s; XFER one after another: {} users, {xferred} \
         messages, {:.1} s; {bulk_ms:.2} and {xfer_ms:.2} ms for a message: {times:.2} times as fast",
        many.messages(),
        bulk.as_secs_f64(),
        theirs.len(),
        xfer.as_secs_f64(),
    );
    let of_each = |key: &str| {
        let ends = told.iter().filter(|document| document["event"] == "ended");
        median(ends.map(|end| end[key].as_f64().unwrap()).collect())
    };
    println!(
        "half of the users take less than: {:.0} ms of a run, {:.0} ms of them frozen; {:.0} ms of XFER",
        of_each("total_ms"),
        of_each("freeze_ms"),
        median(each_xfer),
    );
    many.assert_moved(&many.users);
    assert_each_once(target, count);
    assert!(count < ENOUGH || times >= 3.0, "it is not 3 times as fast as XFER");
}

#[test]
#[ignore = "takes long: make bulk"]
fn many_users_whatever_is_killed() {
    let many = Many::of_all();
    let limit = Duration::from_secs(900) + Duration::from_secs(10) * many.users.len() as u32;
    kill_until_done(&many.servers, &many.command(), limit);
    many.assert_moved(&many.users);
    assert_each_once(&many.servers.target, many.users.len());
}

/// What can be wrong with a user, and what is told then.
#[derive(Debug, Clone, Copy)]
enum Wrong {
    UnreadableFile,
    ExistsOnTarget,
    BadIndex,
    NoSuchPartition,
    XferWreck,
    RefusedName,
    OverQuota,
}

const WRONGS: [Wrong; 7] = [
    Wrong::UnreadableFile,
    Wrong::ExistsOnTarget,
    Wrong::BadIndex,
    Wrong::NoSuchPartition,
    Wrong::XferWreck,
    Wrong::RefusedName,
    Wrong::OverQuota,
];

impl Wrong {
    /// One of twenty users has something wrong; of few users more, so that everything is there.
    fn of(n: usize) -> Option<Wrong> {
        let users: usize = std::env::var("USERS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
        let every = (users / WRONGS.len()).clamp(2, 20);
        (n % every == every / 2).then(|| WRONGS[n / every % WRONGS.len()])
    }

    fn name(n: usize) -> String {
        match Wrong::of(n) {
            Some(Wrong::RefusedName) => format!("strange{n:04}"),
            _ => format!("many{n:04}"),
        }
    }

    fn make(self, servers: &Servers, user: &str) {
        let (source, target) = (&servers.source, &servers.target);
        match self {
            Wrong::UnreadableFile => {
                let inbox = directory(source, &format!("user.{user}"));
                shell(source, &format!("chmod 000 {inbox}/2."));
            }
            Wrong::ExistsOnTarget => {
                target.admin().unwrap().command(format!("CREATE user.{user}")).unwrap();
            }
            Wrong::BadIndex => {
                let inbox = directory(source, &format!("user.{user}"));
                shell(source, &format!("truncate -s 50 {inbox}/cyrus.index"));
            }
            Wrong::XferWreck => {
                let folder = directory(source, &format!("user.{user}.bulk001"));
                shell(source, &format!("chmod 000 {folder}/1."));
                let xfer = format!("XFER user.{user} {}", target.name());
                let _ = source.admin().unwrap().attempt(xfer);
                shell(source, &format!("chmod 600 {folder}/1."));
            }
            Wrong::OverQuota => {
                let quota = format!("SETQUOTA user.{user} (STORAGE 1)");
                source.admin().unwrap().command(quota).unwrap();
            }
            // By the plan, and by what the target's agent allows.
            Wrong::NoSuchPartition | Wrong::RefusedName => {}
        }
    }

    /// What the report says; of whom is over his quota as a note, for he can be moved.
    fn reason(self) -> &'static str {
        match self {
            Wrong::UnreadableFile => "message 2: ",
            Wrong::ExistsOnTarget => "exists on this server",
            Wrong::BadIndex => "cyrus.index",
            Wrong::NoSuchPartition => "no partition \"nowhere\"",
            Wrong::XferWreck => "earlier XFER",
            Wrong::RefusedName => "not allowed to receive",
            Wrong::OverQuota => "over its quota",
        }
    }
}

/// Each of them is in the report with his own reason and what to do; the others are moved.
#[test]
#[ignore = "takes long: make bulk"]
fn many_users_of_whom_some_cannot_be_moved() {
    let mut many = Many::of_all();
    let (source, target) = (&many.servers.source, &many.servers.target);
    let mut wrong = BTreeMap::new();
    let mut plan = Vec::new();
    for (n, user) in many.users.iter().enumerate() {
        let is = Wrong::of(n);
        if let Some(is) = is {
            is.make(&many.servers, user);
            wrong.insert(user.clone(), is);
        }
        let partition = if matches!(is, Some(Wrong::NoSuchPartition)) { "nowhere" } else { "" };
        plan.push(format!("user.{user},{},{partition},", many.target));
    }
    assert!(wrong.len() >= WRONGS.len(), "use at least 14 USERS");
    for user in wrong.iter().filter(|(_, is)| matches!(is, Wrong::OverQuota)).map(|(user, _)| user)
    {
        let print = Fingerprint::take(source, user, &Take::default()).unwrap();
        many.before.insert(user.clone(), print);
    }
    let root = source.root().unwrap();
    std::fs::write(root.join("tmp/users"), plan.join("\n")).unwrap();
    let only = "/usr/local/bin/mbcopy-only";
    shell(
        target,
        &format!(
            "printf '%s\\n' '#!/bin/sh' \
             'exec /usr/local/bin/mbcopy \"$@\" --allow \"user.many*\"' > {only} && chmod 755 {only}"
        ),
    );
    let command = many.command();
    let remote = ["--json", "--remote-program=mbcopy-only"];
    let ended = many.servers.mbcopy(&[&command[1..], &remote].concat()).expect(1);
    let mut ends: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for document in documents(&ended).into_iter().filter(|document| document["event"] == "ended") {
        ends.insert(document["mailbox"].as_str().unwrap().to_owned(), document);
    }
    assert_eq!(ends.len(), many.users.len());

    let report = |format: &str| {
        let format = format!("--format={format}");
        many.servers.mbcopy(&["bulk", "report", &format, "-o", "-", "--store", STORE]).expect(0)
    };
    let page = report("html").stdout;
    let users: BTreeMap<String, serde_json::Value> = documents(&report("json"))
        .into_iter()
        .filter(|line| line["event"] == "user")
        .map(|line| (line["mailbox"].as_str().unwrap().to_owned(), line))
        .collect();
    for (user, is) in &wrong {
        let line = &users[&format!("user.{user}")];
        let (state, told) = match is {
            Wrong::OverQuota => {
                let problems = line["detail"]["problems"].as_array().unwrap();
                let note = problems.iter().find(|p| p["code"] == "over-quota");
                let note = note.unwrap_or_else(|| panic!("{is:?} is not told: {line}"));
                ("moved", (note["text"].as_str().unwrap(), note["advice"].as_str().unwrap()))
            }
            _ => {
                let text = |key: &str| line[key].as_str().unwrap();
                ("refused", (text("reason"), text("advice")))
            }
        };
        assert_eq!(line["state"], state, "{is:?}: {line}");
        assert!(told.0.contains(is.reason()) && !told.1.is_empty(), "{is:?}: {line}");
        let row = page.lines().find(|line| line.contains(&format!("<td>user.{user}</td>")));
        let escaped = is.reason().replace('"', "&quot;");
        assert!(row.is_some_and(|row| row.contains(&escaped)), "{is:?}: {row:?}");
    }
    let stays = |user: &&String| wrong.get(*user).is_none_or(|is| matches!(is, Wrong::OverQuota));
    let moved: Vec<String> = many.users.iter().filter(stays).cloned().collect();
    assert!(moved.iter().all(|user| ends[&format!("user.{user}")]["state"] == "moved"), "{ends:?}");
    many.assert_moved(&moved);
    for seen in look_at(&page, "many") {
        let refused =
            wrong.len() - wrong.values().filter(|is| matches!(is, Wrong::OverQuota)).count();
        let shown = (&seen["rows"], &seen["pressed"]["refused"]);
        assert_eq!(shown, (&many.users.len().into(), &refused.into()), "{seen}");
    }
    println!("{} of {} have something wrong, each is told", wrong.len(), many.users.len());
}
