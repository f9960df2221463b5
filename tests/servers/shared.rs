//! Coordinators on several servers that share one run in PostgreSQL.

use crate::bulk::{assert_each_once, documents, serves, shell};
use crate::support::{Pushed, Servers, assert_same, fingerprint, install};
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::postgres::Postgres;
use lab::seed::{Seed, Size};
use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

/// Two source servers, one target, and a database that all of them reach.
pub(crate) struct Shared {
    pub(crate) servers: Servers,
    pub(crate) other: Host,
    pub(crate) database: Postgres,
    /// Where each user was, and what he was there.
    pub(crate) before: BTreeMap<String, Fingerprint>,
}

impl Shared {
    /// So many users on each source, and a plan of them all on both.
    pub(crate) fn of(count: usize) -> Shared {
        let servers = Servers::fresh();
        let other = Host::new("bw3");
        install(&other);
        let database = Postgres::start(true).unwrap();
        let mut before = BTreeMap::new();
        for (host, prefix) in [(&servers.source, "one"), (&other, "two")] {
            for n in 0..count {
                let user = format!("{prefix}{n:02}");
                host.add_users(&[&user]).unwrap();
                servers.target.add_users(&[&user]).unwrap();
                let seed = Seed::new(host, &user).seed(n as u64 + 1);
                seed.bulk(10 + 3 * (n % 7), Size::Median(3000), 1 + n % 3).unwrap();
            }
        }
        // Who tells the free space of partitions seeds the random numbers of ids anew.
        for (host, prefix) in [(&servers.source, "one"), (&other, "two")] {
            for user in (0..count).map(|n| format!("{prefix}{n:02}")) {
                before.insert(user.clone(), fingerprint(host, &user, &[]));
            }
        }
        let plan: Vec<String> = before.keys().map(|user| format!("user.{user}")).collect();
        let plan = format!("echo '{}\nuser.nobody' > /tmp/users", plan.join("\n"));
        for host in [&servers.source, &other] {
            shell(host, &format!("rm -rf /var/lib/mbcopy/bulk /tmp/watched; {plan}"));
        }
        Shared { servers, other, database, before }
    }

    fn start(&self, host: &Host, from: &[&str]) -> Child {
        let url = self.database.lab_url();
        let common = ["mbcopy", "bulk", "/tmp/users", "--to", "bw2", "--jobs=2", "--json"];
        let times = ["--lease=4s", "--retry-after=1s", "--route-command=sleep 0.5"];
        let store = ["--store", &url];
        host.spawn(&[&common[..], &times, &store, from].concat()).unwrap()
    }

    pub(crate) fn bulk(&self, host: &Host, arguments: &[&str]) -> Pushed {
        let url = self.database.lab_url();
        let command = [&["mbcopy", "bulk"], arguments, &["--store", &url]].concat();
        Pushed::from(host.exec(&command).unwrap())
    }
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[test]
fn who_dies_and_never_comes_back_loses_his_users_to_who_can_reach_them() {
    let shared = Shared::of(7);
    let (one, two) = (&shared.servers.source, &shared.other);
    let mut first = shared.start(one, &[]);
    let second = shared.start(two, &["--from", ".", "--from", "bw1"]);
    // Until some of the first one's users are moved, and others are under way.
    let began = Instant::now();
    let mut seen = serde_json::Value::Null;
    loop {
        assert!(began.elapsed() < Duration::from_secs(120), "it does not begin: {seen}");
        let said = shared.bulk(two, &["status", "--json"]);
        seen = serde_json::from_str(&said.stdout).unwrap_or_default();
        let ended = seen["ended"].as_u64().unwrap_or(0);
        let current =
            seen["current"].as_array().is_some_and(|all| all.iter().any(|c| c["source"] == "bw1"));
        let moves = one.pids("mbcopy .*push --json").unwrap().len();
        if ended >= 3 && current && moves >= 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The coordinator, and one of its moves; the other goes on by itself.
    one.pids("mbcopy bulk /tmp/users").unwrap().into_iter().for_each(kill);
    one.pids("mbcopy .*push --json").unwrap().into_iter().take(1).for_each(kill);
    first.wait().unwrap();

    let ended = Pushed::from(second.wait_with_output().unwrap()).expect(1);
    let told = documents(&ended);
    assert!(told.iter().any(|document| document["event"] == "taken-over"), "{told:?}");
    let taken = told.iter().filter(|d| d["event"] == "ended" && d["source"] == "bw1");
    assert!(taken.count() >= 2, "nobody of the other server was moved: {told:?}");
    let sum = &told.last().unwrap()["status"];
    assert_eq!(
        (&sum["users"], &sum["ended"], &sum["troubled"]),
        (&15.into(), &15.into(), &1.into()),
        "{sum}"
    );
    // Whom nobody has is told, and everybody else is on the target, whole, once.
    assert_eq!(sum["troubles"][0]["mailbox"], "user.nobody", "{sum}");
    assert_eq!(sum["troubles"][0]["reason"], "no server of this run has him");
    for (user, before) in &shared.before {
        assert_same(before, &fingerprint(&shared.servers.target, user, &[]), &[]);
        let source = if user.starts_with("one") { one } else { two };
        assert!(!serves(source, user), "{source} still serves {user}");
    }
    assert_each_once(&shared.servers.target, shared.before.len());
    shared
        .bulk(two, &["report", "--format=csv", "-o", "-"])
        .expect(0)
        .says(&["user.one00,bw1,bw2"]);
}

#[test]
fn a_run_is_coordinated_from_a_machine_that_is_no_source_through_a_store_that_goes_away() {
    let mut shared = Shared::of(3);
    let two = shared.other.clone();
    // bw3 moves users of bw1 only, of whom it has no disk.
    let running = shared.start(&two, &["--from", "bw1"]);
    let began = Instant::now();
    while two.pids("mbcopy .*push --json").unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
    let url = shared.database.lab_url();
    let watch = format!("exec mbcopy bulk status --watch --json --store {url} >/tmp/watched");
    let watching = two.spawn(&["sh", "-c", &watch]).unwrap();
    let watched = || shell(&two, "cat /tmp/watched");
    while !two.root().unwrap().join("tmp/watched").exists() || watched().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is shown");
        std::thread::sleep(Duration::from_millis(50));
    }
    shared.database.restart().unwrap();
    let ended = Pushed::from(running.wait_with_output().unwrap()).expect(1);
    // Who watches goes on when the store is there again, and sees the end.
    let quit = Pushed::from(watching.wait_with_output().unwrap()).expect(0);
    assert!(quit.stderr.contains("database"), "nothing was told: {}", quit.stderr);
    let seen = watched();
    let last: serde_json::Value = serde_json::from_str(seen.lines().last().unwrap()).unwrap();
    assert_eq!((&last["ended"], &last["coordinated"]), (&7.into(), &false.into()), "{last}");
    let sum = &documents(&ended).pop().unwrap()["status"];
    assert_eq!(
        (&sum["users"], &sum["ended"], &sum["troubled"]),
        (&7.into(), &7.into(), &4.into()),
        "{sum}"
    );
    for (user, before) in shared.before.iter().filter(|(user, _)| user.starts_with("one")) {
        assert_same(before, &fingerprint(&shared.servers.target, user, &[]), &[]);
    }
    // One that is started while the store is away waits for it; without a source it is over.
    let command = ["mbcopy", "bulk", "/tmp/users", "--to", "bw2", "--json", "--store", &url];
    let again = std::thread::scope(|scope| {
        let restarted = scope.spawn(|| shared.database.restart().unwrap());
        std::thread::sleep(Duration::from_secs(1));
        let again = Pushed::from(two.exec(&[&command[..], &["--from", "bw1"]].concat()).unwrap());
        restarted.join().unwrap();
        again.expect(1)
    });
    assert!(
        documents(&again).iter().any(|document| document["event"] == "away"),
        "{}",
        again.stdout
    );
    let away = Pushed::from(two.exec(&[&command[..], &["--from", "bw99"]].concat()).unwrap());
    away.expect(75).says(&["bw99"]);
    // A move of its own, back and forth, by another server than the two.
    let run = |arguments: &[&str]| {
        Pushed::from(two.exec(&[&["mbcopy", "--from", "bw1"], arguments].concat()).unwrap())
    };
    run(&["reverse", "user.one00"]).expect(0);
    run(&["status", "user.one00"]).expect(0).says(&["from bw2: done"]);
    assert_same(&shared.before["one00"], &fingerprint(&shared.servers.source, "one00", &[]), &[]);
    run(&["push", "user.one00", "bw2"]).expect(0);
    run(&["--from", "bw2", "push", "user.one00", "bw2"]).expect(2).says(&["only `bulk`"]);
}
