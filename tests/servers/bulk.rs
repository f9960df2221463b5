//! Many users at once: a run that is killed wherever it is ends all the same, nobody
//! is moved twice or forgotten, and whoever cannot be moved is told why.

use crate::support::{Pushed, Servers, assert_same, fingerprint, look_at};
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::seed::{Seed, Size};
use std::collections::BTreeMap;
use std::process::Child;
use std::time::{Duration, Instant};

/// Where the tests' runs are kept, on the source.
pub(crate) const STORE: &str = "/var/tmp/mbcopy-bulk";

/// Users with a few messages, what they are, and a file that lists them.
pub(crate) struct Run {
    pub(crate) servers: Servers,
    pub(crate) users: Vec<String>,
    before: BTreeMap<String, Fingerprint>,
}

impl Run {
    pub(crate) fn of(prefix: &str, count: usize) -> Run {
        let servers = Servers::fresh();
        let users: Vec<String> = (0..count).map(|n| format!("{prefix}{n:02}")).collect();
        servers.accounts(&users.iter().map(String::as_str).collect::<Vec<_>>());
        for (n, user) in users.iter().enumerate() {
            let seed = Seed::new(&servers.source, user).seed(n as u64 + 1);
            seed.bulk(10 + 3 * (n % 7), Size::Median(3000), 1 + n % 3).unwrap();
        }
        let print = |user: &String| (user.clone(), fingerprint(&servers.source, user, &[]));
        let before = users.iter().map(print).collect();
        shell(&servers.source, &format!("rm -rf {STORE} /tmp/users"));
        let run = Run { servers, users, before };
        run.list(&run.users.iter().map(|user| format!("user.{user}")).collect::<Vec<_>>());
        run
    }

    pub(crate) fn list(&self, lines: &[String]) {
        shell(&self.servers.source, &format!("echo '{}' > /tmp/users", lines.join("\n")));
    }

    pub(crate) fn bulk(&self, arguments: &[&str]) -> Pushed {
        self.servers.mbcopy(&[&["bulk"], arguments, &["--store", STORE]].concat())
    }

    pub(crate) fn start(&self, options: &[&str]) -> Pushed {
        self.servers.mbcopy(&self.command(options)[1..])
    }

    /// The command that moves whoever is listed.
    pub(crate) fn command<'a>(&self, options: &[&'a str]) -> Vec<&'a str> {
        [&["mbcopy", "bulk", "/tmp/users", "--to", "bw2", "--store", STORE], options].concat()
    }

    /// Starts it, and goes on meanwhile.
    pub(crate) fn spawn(&self, options: &[&str]) -> Child {
        self.servers.source.spawn(&self.command(options)).unwrap()
    }

    /// What it is like once it is like that.
    #[track_caller]
    pub(crate) fn until(
        &self,
        what: &str,
        is: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let began = Instant::now();
        loop {
            let said = self.bulk(&["status", "--json"]);
            let status = serde_json::from_str(&said.stdout).unwrap_or_default();
            if said.code == 0 && is(&status) {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The user is whole on the target, and only there.
    #[track_caller]
    pub(crate) fn assert_moved(&self, user: &str) {
        assert_same(&self.before[user], &fingerprint(&self.servers.target, user, &[]), &[]);
        assert!(!serves(&self.servers.source, user), "the source still serves {user}");
    }

    /// The user is whole on the source, and only there.
    #[track_caller]
    fn assert_stayed(&self, user: &str) {
        assert_same(&self.before[user], &fingerprint(&self.servers.source, user, &[]), &[]);
        assert!(!serves(&self.servers.target, user), "the target serves {user}");
    }
}

pub(crate) fn shell(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

pub(crate) fn serves(host: &Host, user: &str) -> bool {
    let seen = host.imap(user).unwrap().attempt("EXAMINE INBOX").unwrap();
    seen.tagged.is_ok()
}

pub(crate) fn directory(host: &Host, mailbox: &str) -> String {
    host.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", mailbox]).unwrap().trim().to_owned()
}

pub(crate) fn documents(pushed: &Pushed) -> Vec<serde_json::Value> {
    pushed.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How many moves of a run were under way at once, at most.
pub(crate) fn most_at_once(told: &[serde_json::Value]) -> i32 {
    let (mut now, mut most) = (0, 0);
    for document in told {
        now += match document["event"].as_str() {
            Some("begun") => 1,
            Some("ended") => -1,
            _ => 0,
        };
        most = most.max(now);
    }
    most
}

/// Has every writer of a server's shared databases leave its marks in a file, and take some
/// time; the options that have an agent there use it.
fn watch_writers(host: &Host) {
    shell(
        host,
        "rm -rf /opt/watched /tmp/writers && mkdir /opt/watched && \
         ln -s /usr/lib/cyrus/bin/* /opt/watched/ && rm /opt/watched/cyr_dbtool && \
         touch /tmp/writers && chmod 666 /tmp/writers && \
         printf '%s\\n' '#!/bin/sh' 'case \"$*\" in */mbcopy/*) false;; *batch*) ;; *) false;; esac || \
            exec /usr/lib/cyrus/bin/cyr_dbtool \"$@\"' \
         'echo begin >> /tmp/writers; sleep 0.02' \
         '/usr/lib/cyrus/bin/cyr_dbtool \"$@\"; code=$?' \
         'echo end >> /tmp/writers; exit $code' > /opt/watched/cyr_dbtool && \
         printf '%s\\n' '#!/bin/sh' 'exec /usr/local/bin/mbcopy \"$@\" --cyrus-bin /opt/watched' \
         > /usr/local/bin/mbcopy-watched && chmod 755 /opt/watched/cyr_dbtool /usr/local/bin/mbcopy-watched",
    );
}

/// How often databases were written, one writer after the other, or where two wrote
/// at once.
fn writers(host: &Host) -> Result<usize, String> {
    let marks = shell(host, "cat /tmp/writers");
    for (n, mark) in marks.lines().enumerate() {
        if mark != if n % 2 == 0 { "begin" } else { "end" } {
            return Err(format!("two writers at once on {host}, at {n}:\n{marks}"));
        }
    }
    Ok(marks.lines().count() / 2)
}

/// Cyrus's own programs find nothing to mend.
#[track_caller]
pub(crate) fn assert_healthy(host: &Host, users: &[String]) {
    let said = shell(host, "su -s /bin/sh cyrus -c '/usr/lib/cyrus/bin/quota -f -n' 2>&1");
    assert!(!said.contains("was"), "quota on {host}: {said}");
    for some in users.chunks(100) {
        let names: Vec<String> = some.iter().map(|user| format!("user.{user}")).collect();
        let command = format!("/usr/lib/cyrus/bin/reconstruct -n -r {}", names.join(" "));
        let said = shell(host, &format!("su -s /bin/sh cyrus -c '{command}' 2>&1"));
        // It names each mailbox; what it would mend is a sentence.
        let complaints: Vec<&str> = said.lines().filter(|line| line.contains(' ')).collect();
        assert!(complaints.is_empty(), "reconstruct on {host}: {complaints:?}");
        let named = said.lines().filter(|line| names.iter().any(|name| name == line)).count();
        assert_eq!(named, names.len(), "reconstruct on {host} did not look at all: {said}");
    }
    shell(host, "su -s /bin/sh cyrus -c '/usr/lib/cyrus/bin/ctl_cyrusdb -c'");
}

#[test]
fn eight_moves_at_once_take_turns_on_each_servers_databases() {
    let run = Run::of("turn", 16);
    run.servers.both().into_iter().for_each(watch_writers);
    let ended = run.start(&[
        "--jobs=8",
        "--json",
        "--remote-program=mbcopy-watched",
        "--cyrus-bin=/opt/watched",
    ]);
    let ended = ended.expect(0);
    let documents = documents(&ended);
    assert_eq!(most_at_once(&documents), 8, "so many were to be moved at once");
    let summary = documents.last().unwrap();
    assert_eq!((&summary["event"], &summary["status"]["ended"]), (&"summary".into(), &16.into()));
    for host in run.servers.both() {
        assert!(writers(host).unwrap() >= 16, "the writers of {host} were not watched");
    }
    run.users.iter().for_each(|user| run.assert_moved(user));
    assert_healthy(&run.servers.target, &run.users);
    // The same command has nothing left to do.
    run.start(&["--jobs=8"]).expect(0).says(&["16 users: 16 moved; over"]);
}

#[test]
fn moves_that_do_not_take_turns_are_noticed() {
    let run = Run::of("rush", 12);
    let target = &run.servers.target;
    watch_writers(target);
    shell(target, "echo commit-together > /run/mbcopy-sabotage");
    let ended = run.start(&["--jobs=8", "--remote-program=mbcopy-watched"]);
    shell(target, "rm /run/mbcopy-sabotage");
    ended.expect(0);
    assert!(writers(target).is_err(), "nobody wrote at once, or it is not noticed");
}

/// Starts a command of bulk on the source again and again, until it ends well, and
/// kills the coordinator, its moves, either agent and the target's Cyrus meanwhile, of
/// each kind at least once; how often each was killed.
pub(crate) fn kill_until_done(servers: &Servers, command: &[&str], limit: Duration) -> [u32; 5] {
    let patterns =
        ["^mbcopy bulk ", "mbcopy .*push --json", "agent --role source", "agent --role target"];
    let mut random = 88_172_645_463_325_252_u64;
    let mut next = move |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let (mut killed, mut turn) = ([0; 5], 0);
    let began = Instant::now();
    let mut coordinator = servers.source.spawn(command).unwrap();
    loop {
        assert!(began.elapsed() < limit, "it does not end: {killed:?}");
        // Ever more seldom: who is the last is not killed again and again.
        std::thread::sleep(Duration::from_millis((100 + next(500)) * (1 + turn as u64 / 40)));
        if let Some(status) = coordinator.try_wait().unwrap() {
            if status.success() {
                break;
            }
            coordinator = servers.source.spawn(command).unwrap();
            continue;
        }
        // One kind after the other, Cyrus more seldom.
        turn += 1;
        let victim = if turn % 9 == 0 { 4 } else { turn % 4 };
        match patterns.get(victim) {
            Some(pattern) => {
                let host = if victim == 3 { &servers.target } else { &servers.source };
                for pid in host.pids(pattern).unwrap().into_iter().take(1 + next(2) as usize) {
                    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
                    let signal = rustix::process::Signal::KILL;
                    killed[victim] += u32::from(rustix::process::kill_process(pid, signal).is_ok());
                }
            }
            None => {
                servers.target.kill_cyrus().unwrap();
                servers.target.start_cyrus().unwrap();
                killed[4] += 1;
            }
        }
    }
    println!("killed {killed:?} in {:?}", began.elapsed());
    assert!(killed.iter().all(|kind| *kind > 0), "not everything was killed: {killed:?}");
    killed
}

/// Each move is in the journal of the target once.
#[track_caller]
pub(crate) fn assert_each_once(target: &Host, users: usize) {
    let moves = shell(target, "mbcopy status --json");
    let done = moves.lines().filter(|line| line.contains("\"state\":\"done\"")).count();
    assert_eq!(done, users, "{moves}");
}

#[test]
fn whatever_is_killed_everybody_is_moved_once() {
    let run = Run::of("kill", 32);
    let much = ["--jobs=8", "--attempts=60", "--retry-after=1s", "--route-command=sleep 0.5"];
    kill_until_done(&run.servers, &run.command(&much), Duration::from_secs(900));
    run.users.iter().for_each(|user| run.assert_moved(user));
    assert_healthy(&run.servers.target, &run.users);
    assert_each_once(&run.servers.target, run.users.len());
}

#[test]
fn the_targets_load_makes_it_do_less_at_once() {
    let run = Run::of("load", 8);
    run.servers.target.add_users(&["canary"]).unwrap();
    Seed::new(&run.servers.target, "canary").small().unwrap();
    // No login is as quick as that, whatever the load is.
    let slow = ["--canary=canary", "--max-latency=1ms", "--route-command=sleep 0.5"];
    let told = ["--jobs=4", "--json", "--metrics-file=/tmp/mbcopy.prom"];
    // Nobody is switched over, and the run does not end, before it was seen.
    shell(&run.servers.source, "touch /tmp/not-yet");
    let running = run.spawn(&[&told[..], &slow, &["--postpone-file=/tmp/not-yet"]].concat());
    let began = Instant::now();
    loop {
        let said = run.bulk(&["status"]);
        let told = shell(&run.servers.source, "cat /tmp/mbcopy.prom 2>/dev/null || true");
        let shown = said.stdout.contains("a client waits") && said.stdout.contains("; 1 at once");
        let measured = told.lines().any(|line| {
            let value = line.split(' ').next_back().and_then(|v| v.parse::<f64>().ok());
            line.starts_with("mbcopy_bulk_canary_seconds{") && value.is_some_and(|v| v > 0.0)
        });
        if shown && measured && told.contains("mbcopy_bulk_moves_allowed{") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "no pulse in {}{told}", said.stdout);
        std::thread::sleep(Duration::from_millis(300));
    }
    shell(&run.servers.source, "rm /tmp/not-yet");
    let ended = Pushed::from(running.wait_with_output().unwrap()).expect(0);
    assert_eq!(most_at_once(&documents(&ended)), 1);
    ended.says(&["the target is loaded"]);
    run.bulk(&["reverse", "--all"]).expect(0);
    // Where there is room, it soon is no more held back.
    run.bulk(&["retry-failed"]).expect(2);
    let room = ["--jobs=4", "--json", "--max-load=1000", "--run=again", "--route-command=sleep 2"];
    let ended = run.start(&room).expect(0);
    assert!(most_at_once(&documents(&ended)) > 1, "{}", ended.stdout);
    run.users.iter().for_each(|user| run.assert_moved(user));
}

#[test]
fn whoever_cannot_be_moved_is_told_why_and_the_others_are_moved() {
    let run = Run::of("some", 12);
    let (source, target) = (&run.servers.source, &run.servers.target);
    let inbox = |user: &str| directory(source, &format!("user.{user}"));
    shell(source, &format!("chmod 000 {}/2.", inbox("some01")));
    target.admin().unwrap().command("CREATE user.some03").unwrap();
    shell(source, &format!("truncate -s 50 {}/cyrus.index", inbox("some05")));
    // An XFER that failed, and has left a part of him on the target.
    let file = format!("{}/1.", directory(source, "user.some11.bulk002"));
    shell(source, &format!("chmod 000 {file}"));
    let _ = source.admin().unwrap().attempt("XFER user.some11 bw2");
    shell(source, &format!("chmod 600 {file}"));
    // Over his quota, which is no reason.
    source.admin().unwrap().command("SETQUOTA user.some02 (STORAGE 1)").unwrap();
    let mut lines: Vec<String> =
        run.users.iter().map(|user| format!("user.{user},bw2,,")).collect();
    lines[7] = "user.some07,bw2,nowhere,".into();
    lines.push("user.nobody,bw2,,".into());
    run.list(&lines);

    // What preflight says, before anything changes.
    let plan = run.servers.mbcopy(&["bulk", "plan", "/tmp/users", "--json"]).expect(4);
    let sum = documents(&plan).pop().unwrap();
    assert_eq!((&sum["users"], &sum["refused"]), (&13.into(), &6.into()), "{sum}");
    assert_eq!(sum["not_on_the_source"], 1);

    let ended = run.bulk(&["/tmp/users", "--jobs=4", "--retry-after=1s", "--json"]).expect(1);
    // What counts is how each has ended at last: an attempt that is worth another is
    // no end.
    let mut ends = BTreeMap::new();
    for document in documents(&ended).into_iter().filter(|document| document["event"] == "ended") {
        if document["state"] == "waiting" {
            println!("tried again: {document}");
        }
        ends.insert(document["mailbox"].as_str().unwrap().to_owned(), document);
    }
    assert_eq!(ends.len(), 13, "{ends:?}");
    let mut why = BTreeMap::new();
    for (mailbox, document) in ends.into_iter().filter(|(_, end)| end["reason"] != "") {
        let text = |key: &str| document[key].as_str().unwrap().to_owned();
        assert_eq!(text("state"), "refused", "{document}");
        assert!(!text("advice").is_empty(), "{document}");
        why.insert(mailbox, text("reason"));
    }
    for (user, reason) in [
        ("some01", "message 2: "),
        ("some03", "exists on this server"),
        ("some05", "cyrus.index"),
        ("some07", "no partition \"nowhere\""),
        ("some11", "earlier XFER"),
        ("nobody", "does not exist on this server"),
    ] {
        let said = &why[&format!("user.{user}")];
        assert!(said.contains(reason), "{user}: {said}");
    }
    assert_eq!(why.len(), 6, "{why:?}");
    let moved: Vec<&String> =
        run.users.iter().filter(|u| !why.contains_key(&format!("user.{u}"))).collect();
    assert_eq!(moved.len(), 7);
    for user in moved.into_iter().filter(|user| *user != "some02") {
        run.assert_moved(user);
    }
    assert!(serves(target, "some02") && !serves(source, "some02"));

    // People read it on a page.
    let page = run.bulk(&["report", "--output=-"]).expect(0).stdout;
    for seen in look_at(&page, "some") {
        let shown = (&seen["rows"], &seen["pressed"]["moved"], &seen["pressed"]["refused"]);
        assert_eq!(shown, (&13.into(), &7.into(), &6.into()), "{seen}");
    }

    // Mended, they are tried again, and nobody else.
    shell(source, &format!("chmod 600 {}/2.", inbox("some01")));
    let others = ["user.nobody", "user.some03", "user.some05", "user.some07", "user.some11"];
    run.bulk(&[&["skip"], &others[..]].concat()).expect(0);
    run.bulk(&["retry-failed"]).expect(0).says(&["8 moved", "5 skipped"]);
    run.assert_moved("some01");
    run.bulk(&["status"]).expect(0).says(&["moved", "13 of 13 users ended"]);
    let csv = run.bulk(&["report", "--format=csv", "-o", "-"]).expect(0);
    assert_eq!(csv.stdout.lines().count(), 14, "{}", csv.stdout);
}

#[test]
fn a_run_is_copied_cut_over_paused_and_taken_back() {
    let run = Run::of("step", 6);
    run.start(&["--copy-only"]).expect(0).says(&["6 copied; over"]);
    run.users.iter().for_each(|user| run.assert_stayed(user));
    // The next night only what is new is sent.
    let text = b"Subject: later\r\n\r\nhello\r\n";
    lab::lmtp::deliver(&run.servers.source, "step00", text).accepted().unwrap();
    let again = run.start(&["--copy-only", "--json"]).expect(0);
    let all = documents(&again);
    let ended: Vec<_> = all.iter().filter(|document| document["event"] == "ended").collect();
    assert_eq!(ended.len(), 6);
    let sent: u64 = ended.iter().map(|document| document["messages_sent"].as_u64().unwrap()).sum();
    assert_eq!(sent, 1, "messages were sent again");

    // A window that is closed now: nobody is moved, and a drain ends the waiting.
    let hour: u32 = shell(&run.servers.source, "date +%H").trim().parse().unwrap();
    let window = format!("--window={:02}:00-{:02}:00", (hour + 5) % 24, (hour + 6) % 24);
    let waiting = run.spawn(&["--cutover-only", &window]);
    let began = Instant::now();
    while !run
        .bulk(&["status", "--json"])
        .stdout
        .contains("\"coordinated\":true,\"users\":6,\"ended\":0")
    {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(200));
    }
    run.start(&["--cutover-only"]).expect(6).says(&["is at work on the run"]);
    run.bulk(&["pause"]).expect(0);
    run.bulk(&["status"]).expect(0).says(&["paused"]);
    run.bulk(&["drain"]).expect(0);
    let drained = Pushed::from(waiting.wait_with_output().unwrap());
    drained.expect(5).says(&["waiting for the window to open", "6 waiting; drained"]);
    run.users[1..].iter().for_each(|user| run.assert_stayed(user));

    run.start(&["--cutover-only", "--jobs=3"]).expect(0).says(&["6 moved; over"]);
    run.users[1..].iter().for_each(|user| run.assert_moved(user));
    run.bulk(&["reverse", "user.step01"]).expect(0).says(&["5 moved, 1 reversed; over"]);
    run.assert_stayed("step01");
    run.bulk(&["reverse", "user.step01"]).expect(2).says(&["he is reversed"]);
    run.bulk(&["reverse", "--all"]).expect(0).says(&["6 reversed; over"]);
    run.users[1..].iter().for_each(|user| run.assert_stayed(user));
}

#[test]
fn paused_or_interrupted_it_stops_where_it_is_safe_and_goes_on() {
    let run = Run::of("stop", 9);
    let route = "--route-command=sleep 1";
    let coordinator = run.spawn(&["--jobs=3", route]);
    let works = |status: &serde_json::Value| {
        status["current"].as_array().is_some_and(|all| all.iter().any(|one| one["phase"] != ""))
    };
    let rests = |status: &serde_json::Value| status["current"] == serde_json::json!([]);
    run.until("it begins", works);
    run.bulk(&["pause"]).expect(0);
    let paused = run.until("it stops", rests);
    assert!(paused["ended"].as_u64().unwrap() < 9, "{paused}");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(run.until("it rests", rests)["ended"], paused["ended"], "somebody was moved");
    run.bulk(&["resume"]).expect(0).says(&["goes on"]);
    run.until("it goes on", works);
    for pid in run.servers.source.pids("^mbcopy bulk /tmp/users").unwrap() {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
    let interrupted = Pushed::from(coordinator.wait_with_output().unwrap());
    interrupted.expect(7).says(&["stopping what is under way where it is safe", "; interrupted"]);
    assert!(run.until("it stopped", rests)["ended"].as_u64().unwrap() < 9);
    // Who starts it again does not lift a pause.
    run.bulk(&["pause"]).expect(0);
    let again = run.spawn(&[route, "--jobs=3"]);
    let waits = serde_json::json!(["paused; `mbcopy bulk resume` goes on"]);
    run.until("it lifts the pause", |status| status["waits"] == waits);
    run.bulk(&["resume"]).expect(0).says(&["goes on"]);
    let again = Pushed::from(again.wait_with_output().unwrap());
    again.expect(0).says(&["paused; `mbcopy bulk resume` goes on", "9 users: 9 moved; over"]);
    run.users.iter().for_each(|user| run.assert_moved(user));
}

#[test]
fn a_plan_that_means_nobody_is_an_error() {
    let run = Run::of("plan", 1);
    for (plan, says) in [
        ("user.zz*", "the pattern \"user.zz*\" matches nobody"),
        ("partition:nowhere", "the partition \"nowhere\" matches nobody"),
        ("/tmp/no-such-file", "there is no file"),
        ("/dev/null", "there is no file"),
    ] {
        run.bulk(&[plan, "--to", "bw2"]).expect(2).says(&[says]);
    }
    run.list(&["# nobody".into()]);
    run.start(&[]).expect(2).says(&["the plan names nobody"]);
    run.list(&["user.noone".into()]);
    run.start(&[]).expect(2).says(&["the source has nobody of the plan"]);
    assert_eq!(
        shell(&run.servers.source, &format!("ls {STORE} 2>/dev/null || true")),
        "",
        "no run is left"
    );
    run.bulk(&["status"]).expect(2).says(&["there is no run"]);
    run.bulk(&["user.plan*", "--to", "bw2"]).expect(0).says(&["1 users: 1 moved; over"]);
    run.bulk(&["user.plan*", "--to", "bw2"]).expect(0).says(&["are away by now", "1 moved; over"]);
}
