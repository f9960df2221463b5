//! The long forms of a run's tests: `make bulk USERS=1000`, also to a newer release:
//! `TARGET=trix`. Users of realistic sizes, by eight moves at once.

use crate::bulk::{
    STORE, assert_each_once, assert_healthy, directory, documents, kill_until_done, serves, shell,
};
use crate::support::{Servers, assert_same};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::Host;
use lab::seed::{Seed, Size};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Users of the source, and what they were.
struct Many {
    servers: Servers,
    target: String,
    users: Vec<String>,
    before: BTreeMap<String, Fingerprint>,
}

/// Of every tenth user the bytes of all messages; of others what the server says of them.
fn take(n: usize) -> Take {
    Take { bodies: n % 10 == 3, ..Take::default() }
}

/// Most are small, some are large: as in a server's life.
fn seed(host: &Host, user: &str, n: usize) {
    let messages = match n % 20 {
        0 => 1500,
        1..=4 => 300,
        _ => 40,
    };
    let seed = Seed::new(host, user).seed(n as u64 + 1);
    seed.bulk(messages, Size::Median(8000), 1 + n % 8).unwrap();
}

impl Many {
    fn of(prefix: &str) -> Many {
        let count: usize = std::env::var("USERS").ok().and_then(|n| n.parse().ok()).unwrap_or(40);
        let target = std::env::var("TARGET").unwrap_or_else(|_| "bw2".into());
        let servers = Servers::between("bw1", &target);
        let users: Vec<String> = (0..count).map(|n| format!("{prefix}{n:04}")).collect();
        let began = Instant::now();
        for (n, user) in users.iter().enumerate() {
            servers.accounts(&[user]);
            seed(&servers.source, user, n);
        }
        let print = |(n, user): (usize, &String)| {
            (user.clone(), Fingerprint::take(&servers.source, user, &take(n)).unwrap())
        };
        let before = users.iter().enumerate().map(print).collect();
        println!("{count} users seeded and looked at in {:?}", began.elapsed());
        shell(&servers.source, &format!("rm -rf {STORE}"));
        Many { servers, target, users, before }
    }

    fn command<'a>(&'a self, pattern: &'a str) -> Vec<&'a str> {
        let to = ["mbcopy", "bulk", pattern, "--to", &self.target, "--jobs=8"];
        [&to[..], &["--attempts=60", "--retry-after=1s", "--store", STORE]].concat()
    }

    /// Everybody of these is whole on the target, and only there; the target is healthy.
    #[track_caller]
    fn assert_moved(&self, users: &[String]) {
        // A newer release shows one key more (tests/servers/versions.rs).
        let known: &[&str] = match self.target.as_str() {
            "bw2" => &[],
            _ => &["/shared/vendor/cmu/cyrus-imapd/userrawquota"],
        };
        for (n, user) in self.users.iter().enumerate().filter(|(_, user)| users.contains(user)) {
            let after = Fingerprint::take(&self.servers.target, user, &take(n)).unwrap();
            assert_same(&self.before[user], &after, known);
            assert!(!serves(&self.servers.source, user), "the source still serves {user}");
        }
        assert_healthy(&self.servers.target, users);
        let list = "su -s /bin/sh cyrus -c '/usr/lib/cyrus/bin/ctl_mboxlist -v' 2>&1";
        let said = shell(&self.servers.target, list);
        let complaints = ["no such", "missing", "corrupt", "not found", "mismatch"];
        assert!(
            !complaints.iter().any(|c| said.to_lowercase().contains(c)),
            "ctl_mboxlist: {said}"
        );
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
        println!("the neighbour worked {} times", turns.load(Ordering::Relaxed));
        done
    })
}

/// Beside it XFER of as many others of the same kind, one after another.
#[test]
#[ignore = "takes long: make bulk"]
fn many_users_and_xfer_beside_it() {
    let many = Many::of("many");
    let (source, target) = (&many.servers.source, &many.servers.target);
    let theirs: Vec<String> = (0..many.users.len()).map(|n| format!("xfer{n:04}")).collect();
    for (n, user) in theirs.iter().enumerate() {
        many.servers.accounts(&[user]);
        seed(source, user, n);
    }
    let command = many.command("user.many*");
    let began = Instant::now();
    neighbour(target, || many.servers.mbcopy(&command[1..]).expect(0));
    let bulk = began.elapsed();
    let mut admin = source.admin().unwrap();
    admin.set_patience(Duration::from_secs(600)).unwrap();
    let began = Instant::now();
    for user in &theirs {
        let reply = admin.attempt(format!("XFER user.{user} {}", many.target)).unwrap();
        let told = format!("USER {user}");
        assert!(reply.notes.iter().any(|n| n.is_ok() && n.text == told), "{:?}", reply.notes);
    }
    let xfer = began.elapsed();
    println!(
        "{} users: bulk {:.1} s, XFER one after another {:.1} s: {:.2} times as fast",
        many.users.len(),
        bulk.as_secs_f64(),
        xfer.as_secs_f64(),
        xfer.as_secs_f64() / bulk.as_secs_f64()
    );
    many.assert_moved(&many.users);
    assert_each_once(target, many.users.len());
}

#[test]
#[ignore = "takes long: make bulk"]
fn many_users_whatever_is_killed() {
    let many = Many::of("kill");
    let limit = Duration::from_secs(900) + Duration::from_secs(10) * many.users.len() as u32;
    kill_until_done(&many.servers, &many.command("user.kill*"), limit);
    many.assert_moved(&many.users);
    assert_each_once(&many.servers.target, many.users.len());
}

/// One of twenty has something wrong, of five kinds.
#[test]
#[ignore = "takes long: make bulk"]
fn many_users_of_whom_some_cannot_be_moved() {
    let many = Many::of("part");
    let (source, target) = (&many.servers.source, &many.servers.target);
    let mut reasons = BTreeMap::new();
    let mut plan = Vec::new();
    for (n, user) in many.users.iter().enumerate() {
        let inbox = || directory(source, &format!("user.{user}"));
        let mut partition = "";
        if n % 20 == 7 {
            let reason = match n / 20 % 5 {
                0 => {
                    shell(source, &format!("chmod 000 {}/2.", inbox()));
                    "message 2: "
                }
                1 => {
                    target.admin().unwrap().command(format!("CREATE user.{user}")).unwrap();
                    "exists on this server"
                }
                2 => {
                    shell(source, &format!("truncate -s 50 {}/cyrus.index", inbox()));
                    "cyrus.index"
                }
                3 => {
                    partition = "nowhere";
                    "no partition \"nowhere\""
                }
                _ => {
                    let folder = directory(source, &format!("user.{user}.bulk002"));
                    shell(source, &format!("chmod 000 {folder}/1."));
                    let _ = source
                        .admin()
                        .unwrap()
                        .attempt(format!("XFER user.{user} {}", many.target));
                    shell(source, &format!("chmod 600 {folder}/1."));
                    "earlier XFER"
                }
            };
            reasons.insert(format!("user.{user}"), reason);
        }
        plan.push(format!("user.{user},{},{partition},", many.target));
    }
    assert!(!reasons.is_empty(), "use at least 8 USERS");
    let root = source.root().unwrap();
    std::fs::write(root.join("tmp/users"), plan.join("\n")).unwrap();
    let command = many.command("/tmp/users");
    let ended = many.servers.mbcopy(&[&command[1..], &["--json"]].concat()).expect(1);
    let mut ends: BTreeMap<String, serde_json::Value> = BTreeMap::new();
    for document in documents(&ended).into_iter().filter(|document| document["event"] == "ended") {
        ends.insert(document["mailbox"].as_str().unwrap().to_owned(), document);
    }
    assert_eq!(ends.len(), many.users.len());
    for (user, reason) in &reasons {
        let end = &ends[user];
        assert_eq!(end["state"], "refused", "{end}");
        assert!(end["reason"].as_str().unwrap().contains(reason), "{reason}: {end}");
        assert!(!end["advice"].as_str().unwrap().is_empty(), "{end}");
    }
    let well = |user: &&String| !reasons.contains_key(&format!("user.{user}"));
    let moved: Vec<String> = many.users.iter().filter(well).cloned().collect();
    assert!(moved.iter().all(|user| ends[&format!("user.{user}")]["state"] == "moved"), "{ends:?}");
    many.assert_moved(&moved);
    println!("{} of {} cannot be moved, each with its reason", reasons.len(), many.users.len());
}
