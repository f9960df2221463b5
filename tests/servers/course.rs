//! The course of a run: hours in which it may begin, limits that end it, terminals and
//! machines that it loses, targets that do not answer or are loaded.

use crate::bulk::{Run, assert_each_once, directory, documents, most_at_once, serves, shell};
use crate::clock;
use crate::shared::kill;
use crate::support::Pushed;
use lab::host::Host;
use lab::seed::Seed;
use rustix::fs::{FlockOperation, fcntl_lock};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

fn ended(status: &serde_json::Value) -> u64 {
    status["ended"].as_u64().unwrap()
}

/// Has the clock of mbcopy say this time of a day, so many days from now.
fn it_is(host: &Host, days: i64, hour: i64, minute: i64) {
    let now = shell(host, "date '+%H %M %S'");
    let now: Vec<i64> = now.split_whitespace().map(|part| part.parse().unwrap()).collect();
    let seconds = (days * 24 + hour - now[0]) * 3600 + (minute - now[1]) * 60 - now[2];
    clock::set(host, &format!("{seconds:+}"));
}

#[test]
fn they_are_cut_over_while_the_window_is_open_and_the_largest_first() {
    let run = Run::of("night", 6);
    let source = &run.servers.source;
    clock::make_settable(source);
    it_is(source, 1, 21, 30);
    let copied = documents(&run.start(&["--copy-only", "--json"]).expect(0));
    let size = |mailbox: &str| {
        let ends = |end: &&serde_json::Value| end["event"] == "ended" && end["mailbox"] == mailbox;
        copied.iter().find(ends).unwrap()["bytes"].as_u64().unwrap()
    };
    let window = ["--cutover-only", "--window=22:00-05:00", "--order=largest"];
    let slowly = ["--jobs=1", "--json", "--route-command=sleep 1"];
    let running = run.spawn(&[&window[..], &slowly].concat());
    let waits = serde_json::json!(["waiting for the window to open"]);
    run.until("it does not say why it waits", |status| status["waits"] == waits);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ended(&run.until("", |_| true)), 0, "the window is not open yet");
    it_is(source, 1, 22, 0);
    run.until("the window is open, and nobody is moved", |status| ended(status) >= 2);
    it_is(source, 2, 5, 0);
    let rests = |status: &serde_json::Value| status["current"] == serde_json::json!([]);
    let closed = run.until("who was under way does not end", rests);
    assert!(ended(&closed) < 6, "{closed}");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(ended(&run.until("", |_| true)), ended(&closed), "the window is closed");
    it_is(source, 2, 23, 30);
    let all = documents(&Pushed::from(running.wait_with_output().unwrap()).expect(0));
    let moved: Vec<&str> = all
        .iter()
        .filter(|document| document["event"] == "ended")
        .map(|document| document["mailbox"].as_str().unwrap())
        .collect();
    assert_eq!(moved.len(), 6);
    assert!(moved.is_sorted_by_key(|mailbox| std::cmp::Reverse(size(mailbox))), "{moved:?}");
    let waited = |why: &str| all.iter().filter(|document| document["reason"] == why).count();
    assert!(waited("waiting for the window to open") >= 2, "{all:?}");
    run.users.iter().for_each(|user| run.assert_moved(user));
}

#[test]
fn too_many_failures_end_a_run_and_losses_are_told_by_the_exit_code() {
    let run = Run::of("fail", 6);
    let source = &run.servers.source;
    let message = |user: &str| format!("{}/2.", directory(source, &format!("user.{user}")));
    for user in ["fail00", "fail01", "fail04"] {
        shell(source, &format!("chmod 000 {}", message(user)));
    }
    let most = run.start(&["--jobs=1", "--max-failures=2"]).expect(1);
    most.says(&["4 waiting, 2 refused; too many users are in trouble"]);
    assert!(run.users[2..].iter().all(|user| serves(source, user)), "somebody was moved");

    let skip = ["--jobs=2", "--bad-messages=skip"];
    run.start(&skip).expect(1).says(&["3 moved", "1 moved-with-losses", "2 refused; over"]);
    shell(source, &format!("chmod 600 {}", message("fail00")));
    run.bulk(&["retry-failed"]).expect(3).says(&["4 moved", "2 moved-with-losses; over"]);
    for user in ["fail00", "fail02", "fail03", "fail05"] {
        run.assert_moved(user);
    }
    let told = documents(&run.bulk(&["report", "--format=json", "-o", "-"]).expect(0));
    let lost = told.iter().filter(|user| user["state"] == "moved-with-losses");
    let lost: Vec<(&serde_json::Value, &serde_json::Value)> =
        lost.map(|user| (&user["mailbox"], &user["detail"]["problems"][0]["uid"])).collect();
    let two: &serde_json::Value = &2.into();
    assert_eq!(lost, [(&"user.fail01".into(), two), (&"user.fail04".into(), two)]);
}

#[test]
fn a_lost_terminal_and_a_power_cut_lose_nobody() {
    let run = Run::of("lost", 9);
    let source = &run.servers.source;
    let options = ["--jobs=2", "--route-command=sleep 3"];
    let command = run.command(&options);
    let line: Vec<String> = command.iter().map(|word| format!("'{word}'")).collect();
    // A terminal of its own, which goes away as that of a dropped SSH session does.
    // Whoever runs the tests may have them ignore that.
    let line = line.join(" ");
    let terminal = ["env", "--default-signal=HUP", "script", "-qec", &line, "/tmp/typescript"];
    let mut terminal = source.spawn(&terminal).unwrap();
    let is_on = |least: u64| {
        move |status: &serde_json::Value| {
            let works = |one: &serde_json::Value| one["phase"] != "";
            ended(status) >= least
                && status["current"].as_array().is_some_and(|all| all.iter().any(works))
        }
    };
    run.until("it does not begin", is_on(1));
    source.pids("^script -qec").unwrap().into_iter().for_each(kill);
    terminal.wait().unwrap();
    let began = Instant::now();
    while !source.pids("^mbcopy bulk /tmp/users").unwrap().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(20), "it outlives its terminal");
        std::thread::sleep(Duration::from_millis(50));
    }
    let left = run.until("nobody coordinates it", |status| status["coordinated"] == false);
    assert!(ended(&left) < 9, "{left}");

    // On another terminal it goes on; then the machine loses its power.
    let resumed = ["mbcopy", "bulk", "resume", "--store", crate::bulk::STORE];
    let mut resumed = source.spawn(&resumed).unwrap();
    run.until("it does not go on", is_on(ended(&left) + 1));
    source.kill().unwrap();
    resumed.wait().unwrap();
    source.up().unwrap();
    run.list(&run.users.iter().map(|user| format!("user.{user}")).collect::<Vec<_>>());
    let left = run.until("the run is not found", |status| status["users"] == 9);
    assert!(ended(&left) < 9, "{left}");
    run.start(&options).expect(0).says(&["going on with the run", "9 users: 9 moved; over"]);
    run.users.iter().for_each(|user| run.assert_moved(user));
    assert_each_once(&run.servers.target, 9);
}

#[test]
fn whoever_cannot_be_reached_is_tried_again_ever_later() {
    let run = Run::of("away", 2);
    let target = &run.servers.target;
    target.pids("^sshd: /usr/sbin/sshd").unwrap().into_iter().for_each(kill);
    let mut running = run.spawn(&["--jobs=2", "--json", "--attempts=9", "--retry-after=1s"]);
    let mut begun: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    let mut why = Vec::new();
    for line in BufReader::new(running.stdout.take().unwrap()).lines() {
        let document: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        let user = document["mailbox"].as_str().unwrap_or_default().to_owned();
        match document["event"].as_str() {
            Some("begun") => begun.entry(user).or_default().push(Instant::now()),
            Some("ended") if document["state"] == "waiting" => {
                why.push(document["reason"].as_str().unwrap().to_owned());
                if why.len() == 6 {
                    shell(target, "/usr/sbin/sshd");
                }
            }
            _ => {}
        }
    }
    assert_eq!(running.wait().unwrap().code(), Some(0));
    assert!(why.len() >= 6 && why.iter().all(|why| why.contains("bw2")), "{why:?}");
    for (user, times) in begun {
        let gaps: Vec<Duration> = times.windows(2).map(|two| two[1] - two[0]).collect();
        println!("{user}: tried again after {gaps:?}");
        assert!(gaps.len() >= 2 && gaps.is_sorted(), "{user}: {gaps:?}");
        for (gap, least) in gaps.iter().zip([1, 2, 4]) {
            assert!(*gap >= Duration::from_secs(least), "{user}: {gaps:?}");
        }
    }
    run.users.iter().for_each(|user| run.assert_moved(user));
}

#[test]
fn whoever_cannot_be_moved_back_is_said_to_be_where_he_is() {
    let run = Run::of("back", 3);
    let (source, target) = (&run.servers.source, &run.servers.target);
    run.start(&["--jobs=2", "--attempts=1", "--partition-map=default=default"]).expect(0);
    // Asked for by another machine, he is not remembered here.
    shell(source, "rm -r /var/lib/mbcopy/requests");
    run.bulk(&["reverse", "user.back00"]).expect(0).says(&["2 moved, 1 reversed; over"]);
    assert!(serves(source, "back00") && !serves(target, "back00"));
    // One has stopped in between, the other has not begun.
    run.servers.arm("Routed");
    run.bulk(&["reverse", "user.back01"]).expect(1).says(&["1 stuck"]);
    assert!(run.servers.disarm());
    let daemons = target.pids("^sshd: /usr/sbin/sshd").unwrap();
    daemons.into_iter().for_each(kill);
    for (user, outcome) in [("back01", "resumable"), ("back02", "failed")] {
        let mailbox = format!("user.{user}");
        let told = run.servers.mbcopy(&["reverse", &mailbox, "bw2", "--json"]).report().unwrap();
        let said = [&told["outcome"], &told["source"], &told["serving"]].map(|s| s.as_str());
        assert_eq!(said, [Some(outcome), Some("bw2"), Some("bw2")], "{user}");
    }
    run.bulk(&["reverse", "user.back02"]).expect(1).says(&["1 failed"]);
    let report = run.bulk(&["report", "--format=csv", "-o", "-"]).expect(0);
    report.says(&["user.back02,bw1,bw2,reverse,failed,1,bw2,"]);
    shell(target, "/usr/sbin/sshd");
    run.bulk(&["retry-failed"]).expect(0).says(&["3 reversed; over"]);
    assert!(run.users.iter().all(|user| serves(source, user) && !serves(target, user)));
}

#[test]
fn the_load_average_of_the_target_holds_a_run_back() {
    let run = Run::of("busy", 4);
    // While this runs, no machine is as idle as that.
    let ended = run.start(&["--jobs=4", "--json", "--max-load=0.001"]).expect(0);
    let ended = ended.says(&["the target is loaded"]);
    let documents = documents(&ended);
    let events: Vec<&str> = documents
        .iter()
        .filter_map(|document| document["event"].as_str())
        .filter(|event| ["begun", "ended"].contains(event))
        .collect();
    assert_eq!(events, ["begun", "ended"].repeat(4), "more than one at once");
    run.users.iter().for_each(|user| run.assert_moved(user));
}

#[test]
fn a_canary_whom_nobody_knows_is_told_and_one_is_moved_at_once() {
    let run = Run::of("mute", 3);
    let watched = ["--jobs=3", "--json", "--canary=nobody", "--max-latency=10s"];
    let running = run.spawn(&[&watched[..], &["--route-command=sleep 1"]].concat());
    let told = |status: &serde_json::Value| {
        let trouble = status["paces"][0]["trouble"].as_str();
        trouble.is_some_and(|trouble| trouble.contains("nobody"))
    };
    let shown = run.until("it is not shown", told);
    assert_eq!(shown["paces"][0]["allowed"], 1, "{shown}");
    let told = documents(&Pushed::from(running.wait_with_output().unwrap()).expect(0));
    let unknown: Vec<_> = told.iter().filter(|document| document["event"] == "unknown").collect();
    let reason = unknown[0]["reason"].as_str().unwrap();
    assert!(unknown.len() == 1 && reason.contains("the canary nobody"), "{unknown:?}");
    assert_eq!(most_at_once(&told), 1, "{told:?}");
}

#[test]
fn a_canary_that_waits_slows_a_run_down_until_it_does_not() {
    let run = Run::of("slow", 16);
    let target = &run.servers.target;
    target.add_users(&["canary"]).unwrap();
    Seed::new(target, "canary").small().unwrap();
    let watched = ["--jobs=2", "--json", "--canary=canary", "--max-latency=1s"];
    let running = run.spawn(&[&watched[..], &["--route-command=sleep 2"]].concat());
    let at_once = |status: &serde_json::Value| {
        let current = status["current"].as_array().map_or(0, Vec::len);
        (status["paces"][0]["allowed"].as_u64().unwrap_or(0), current)
    };
    run.until("it does not use what it may", |status| at_once(status) == (2, 2));

    // Somebody has the canary's INBOX locked: whoever looks at it waits, and gets no answer.
    let index = format!("{}/cyrus.index", directory(target, "user.canary"));
    let index = target.root().unwrap().join(index.trim_start_matches('/'));
    let locked = || {
        let index = File::options().read(true).write(true).open(&index).unwrap();
        fcntl_lock(&index, FlockOperation::LockExclusive).unwrap();
        index
    };
    let waits =
        |status: &serde_json::Value| status["paces"][0]["canary_ms"].as_f64() > Some(1000.0);
    let lock = locked();
    let slow = run.until("it is not slowed down", |status| at_once(status) == (1, 1));
    assert!(waits(&slow), "{slow}");
    let goes_on = run.until("it stands still", |status| ended(status) > ended(&slow));
    assert!(at_once(&goes_on).1 <= 1, "{goes_on}");
    drop(lock);
    let fast = run.until("it does not speed up again", |status| at_once(status) == (2, 2));
    assert!(!waits(&fast), "{fast}");

    // A run that is over does not wait for an answer.
    let _lock = locked();
    run.until("it is not asked again", waits);
    run.bulk(&["drain"]).expect(0);
    let began = Instant::now();
    let drained = Pushed::from(running.wait_with_output().unwrap());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    drained.expect(5).says(&["the target is loaded", "drained"]);
}
