//! Every form of a plan, from what it would do to the end; what a run shows meanwhile, and
//! the limit that its moves keep together.

use crate::bulk::{Run, STORE, documents, shell};
use crate::support::Pushed;
use lab::host::Host;
use lab::seed::{Seed, Size};
use std::io::Write;
use std::time::{Duration, Instant};

/// What a command of bulk that reads its plan from standard input prints.
fn of_input(host: &Host, input: &str, arguments: &[&str]) -> Pushed {
    let mut child = host.spawn(&[&["mbcopy", "bulk"], arguments].concat()).unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    Pushed::from(child.wait_with_output().unwrap())
}

/// All of Cyrus's files, with their times.
fn everything(host: &Host) -> String {
    let find = "find /var/lib/cyrus /var/spool/cyrus /var/spool/sieve -type f \
                -not -path '*/mbcopy/*' -not -path '/var/lib/cyrus/db/*' -not -name 'log.*' \
                -not -name '*.db' -not -path '*/proc/*' -not -name 'deliver*' \
                -not -path '*/socket/*' -printf '%p %s %T@\\n' | sort";
    shell(host, find)
}

#[test]
fn every_form_of_a_plan_means_whom_it_says_and_planning_changes_nothing() {
    let run = Run::of("form", 5);
    let source = &run.servers.source;
    let own: Vec<&str> = run.users.iter().map(String::as_str).collect();
    let lines: Vec<String> = own.iter().map(|user| format!("user.{user}")).collect();
    let before = [source, &run.servers.target].map(everything);
    let counted = |plan: &str, input: &str, options: &[&str]| {
        let words = ["plan", plan, "--json"];
        let planned = of_input(source, input, &[&words[..], options].concat()).expect(0);
        let sum = documents(&planned).pop().unwrap();
        assert!(sum["messages"].as_u64().unwrap() >= 10 && sum["bytes"].as_u64().unwrap() > 0);
        assert_eq!((&sum["refused"], &sum["not_on_the_source"]), (&0.into(), &0.into()), "{sum}");
        (sum["users"].as_u64().unwrap(), sum["expected_seconds"].as_u64().unwrap(), sum)
    };
    let to = ["--to", "bw2", "--quick"];
    assert_eq!(counted("/tmp/users", "", &to).0, 5);
    assert_eq!(counted("user.form*", "", &to).0, 5);
    assert_eq!(counted("user.form0%", "", &to).0, 5);
    assert_eq!(counted("partition:default", "", &to).0, 5);
    assert_eq!(counted("-", "form00\nuser/form03\n# nobody\n", &to).0, 2);
    let csv = "user,destination,partition,when\nform01,bw2,p2,\nform02,bw2,,2020-01-01\n";
    let (users, _, sum) = counted("-", csv, &[]);
    let places = serde_json::json!({ "bw2": 1, "bw2:p2": 1 });
    assert_eq!((users, &sum["destinations"], &sum["asked"]), (2, &places, &2.into()), "{sum}");
    // A limit is reckoned with.
    let slow = counted("user.form*", "", &[&to[..], &["--bwlimit=1000"]].concat());
    assert!(slow.1 >= slow.2["bytes"].as_u64().unwrap() / 1000, "{slow:?}");
    let told = run.servers.mbcopy(&["bulk", "plan", "user.form*", "--to", "bw2"]).expect(0);
    told.says(&["5 users (5 to bw2)", "preflight: 5 could move, 0 could not", "expected: "]);
    for (host, before) in [source, &run.servers.target].into_iter().zip(&before) {
        assert_eq!(&everything(host), before, "{host}");
    }

    // And they are moved, to the end, under a name that is needed there.
    let options = ["-", "--to", "bw2", "--store", STORE];
    of_input(source, csv, &options).expect(2).says(&["--run NAME"]);
    let whole = format!("{csv}{}\n", lines[0]);
    let named = [&options[..], &["--run=typed", "--order=smallest"]].concat();
    of_input(source, &whole, &named).expect(0).says(&["3 users: 3 moved; over"]);
    // Whoever has changed his partition shows another one.
    let moved = |users: &[&str]| {
        let same = users.iter().filter(|user| **user != "form01");
        same.for_each(|user| run.assert_moved(user));
    };
    moved(&own[..3]);
    let at = shell(
        &run.servers.target,
        "su -s /bin/sh cyrus -c '/usr/lib/cyrus/bin/mbpath user.form01'",
    );
    assert!(at.contains("/p2/"), "{at}");
    run.bulk(&["partition:default", "--to", "bw2", "--run=rest"])
        .expect(0)
        .says(&["2 moved; over"]);
    moved(&own);
}

#[test]
fn a_run_keeps_its_limit_together_and_is_watched_meanwhile() {
    const LIMIT: u64 = 400_000;
    let run = Run::of("rate", 4);
    // One has far more than the others: he has all of the line when they are done.
    let seed = Seed::new(&run.servers.source, "rate00").seed(77);
    let large = seed.bulk(60, Size::Median(60_000), 1).unwrap();
    let limit = format!("--bwlimit={LIMIT}");
    let began = Instant::now();
    let mut running = run.spawn(&["--jobs=4", "--json", &limit]);
    let began_to_run = |status: &Pushed| status.code == 0 && status.stdout.contains("\"running\"");
    while !began_to_run(&run.bulk(&["status", "--json"])) {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not begin");
        assert!(running.try_wait().unwrap().is_none(), "it is over already");
        std::thread::sleep(Duration::from_millis(100));
    }
    let watch = ["status", "--watch", "--json"];
    let watched = run.bulk(&watch).expect(0);
    let ended = Pushed::from(running.wait_with_output().unwrap()).expect(0);
    let took = began.elapsed();
    let ends: Vec<_> = documents(&ended).into_iter().filter(|d| d["event"] == "ended").collect();
    let sent: u64 = ends.iter().map(|end| end["bytes_sent"].as_u64().unwrap()).sum();
    assert!(sent > large.bytes as u64, "{sent} of {}", large.bytes);
    let least = Duration::from_secs_f64(sent as f64 / LIMIT as f64);
    assert!(took > least.mul_f64(0.9), "{sent} bytes in {took:?}");
    // Divided evenly, the large one alone would take four times his bytes.
    let alone = Duration::from_secs_f64(4.0 * large.bytes as f64 / LIMIT as f64);
    assert!(took < alone, "{took:?}, and {alone:?} with a quarter of the line");
    println!("{sent} bytes in {took:?}, at least {least:?}");

    let seen = documents(&watched);
    assert!(seen.len() >= 2, "it is not watched: {}", watched.stdout);
    assert!(seen.is_sorted_by_key(|status| status["ended"].as_u64()), "{}", watched.stdout);
    let last = seen.last().unwrap();
    assert_eq!((&last["ended"], &last["coordinated"]), (&4.into(), &false.into()));
    assert!(seen.iter().any(|status| {
        status["current"].as_array().is_some_and(|all| all.iter().any(|one| one["phase"] != ""))
    }));
    run.users[1..].iter().for_each(|user| run.assert_moved(user));
}
