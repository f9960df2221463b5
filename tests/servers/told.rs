//! What is told of a run while it goes on: to Prometheus, and to who watches its screen.

use crate::bulk::{Run, STORE, directory, documents, shell};
use crate::support::Pushed;
use lab::host::Host;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::Duration;

/// The samples of a page of metrics, by name and labels without the run's; each must be of a
/// family that was described before.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let (mut described, mut samples) = (BTreeSet::new(), BTreeMap::new());
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            described.insert(kind.strip_suffix(" gauge").unwrap().to_owned());
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let (family, labels) = name.strip_suffix('}').unwrap().split_once('{').unwrap();
            assert!(described.contains(family), "{line}");
            let labels = labels.split_once(',').map_or("", |(run, others)| {
                assert_eq!(run, "run=\"users-to-bw2\"");
                others
            });
            let name = family.strip_prefix("mbcopy_bulk_").unwrap();
            samples.insert(format!("{name}{{{labels}}}"), value.parse().unwrap());
        }
    }
    samples
}

/// The metrics as Prometheus gets them; none: nobody serves them.
fn scraped(host: &Host) -> Option<String> {
    let mut stream = lab::net::connect(host.ip(), 9477, Duration::from_secs(5)).ok()?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: bw1:9477\r\nAccept: text/plain\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(head.contains(&format!("Content-Length: {}\r\n", page.len())), "{head}");
    Some(page.to_owned())
}

/// Users, messages and bytes of a state.
fn of_state(status: &serde_json::Value, state: &str) -> [f64; 3] {
    let count = status["states"].as_array().unwrap().iter().find(|count| count["state"] == state);
    ["users", "messages", "bytes"]
        .map(|key| count.map_or(0.0, |count| count[key].as_f64().unwrap()))
}

#[test]
fn prometheus_is_told_what_the_status_says() {
    let run = Run::of("gauge", 9);
    let source = &run.servers.source;
    shell(source, "rm -f /tmp/mbcopy.prom");
    let told = ["--metrics=0.0.0.0:9477", "--metrics-file=/tmp/mbcopy.prom", "--max-load=1000"];
    let does = ["--jobs=3", "--json", "--route-command=sleep 2"];
    let mut running = run.spawn(&[&told[..], &does].concat());
    let (mut statuses, mut pages) = (Vec::new(), BTreeSet::new());
    let file = || shell(source, "cat /tmp/mbcopy.prom 2>/dev/null || true");
    while running.try_wait().unwrap().is_none() {
        let said = run.bulk(&["status", "--json"]);
        statuses.extend(serde_json::from_str::<serde_json::Value>(&said.stdout));
        let before = file();
        let page = scraped(source).filter(|page| !page.is_empty());
        if let Some(page) = page {
            // The file says the same, unless it was just written.
            assert!(before == page || file() == page || before.is_empty(), "{before}\n{page}");
            pages.insert(page);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let all = documents(&Pushed::from(running.wait_with_output().unwrap()).expect(0));
    let last = &all.last().unwrap()["status"];
    statuses.push(last.clone());
    assert!(scraped(source).is_none(), "nobody is at work, and somebody tells of it");

    let pages: Vec<_> = pages.iter().map(|page| samples(page)).collect();
    let moved = ["users", "messages", "bytes"].map(|what| format!("{what}{{state=\"moved\"}}"));
    for page in &pages {
        let taken = page["updated_seconds{}"] * 1000.0;
        let at = |status: &&serde_json::Value| status["at_unix_ms"].as_f64().unwrap();
        let earlier = statuses.iter().rfind(|status| at(status) <= taken);
        let later = statuses.iter().find(|status| at(status) >= taken).unwrap();
        for (key, name) in moved.iter().enumerate() {
            let least = earlier.map_or(0.0, |status| of_state(status, "moved")[key]);
            let most = of_state(later, "moved")[key];
            assert!((least..=most).contains(&page[name]), "{name}: {page:?}\n{earlier:?}\n{later}");
        }
        let users = page.iter().filter(|(name, _)| name.starts_with("users{"));
        assert_eq!(users.map(|(_, users)| users).sum::<f64>(), 9.0);
        assert_eq!(page["moves_under_way{}"], page["users{state=\"running\"}"]);
        let over = page[&moved[0]] == 9.0;
        assert!(page["coordinated{}"] == 1.0 || over, "{page:?}");
        assert_eq!(page["paused{}"], 0.0);
    }
    let most =
        |name: &str| pages.iter().filter_map(|page| page.get(name).copied()).fold(0.0, f64::max);
    assert!(pages.len() >= 2 && most(&moved[0]) > 0.0, "{pages:?}");
    assert!((1.0..=3.0).contains(&most("moves_under_way{}")), "{pages:?}");
    assert_eq!(most("moves_allowed{target=\"bw2\"}"), 3.0, "{pages:?}");
    assert!(most("users_per_second{}") > 0.0 && most("target_load{target=\"bw2\"}") > 0.0);

    // What node_exporter goes on to tell.
    let end = samples(&file());
    assert_eq!(moved.map(|name| end[&name]), of_state(last, "moved"));
    let rest = ["users{state=\"moved\"}", "moves_under_way{}", "coordinated{}"];
    assert_eq!(rest.map(|name| end[name]), [9.0, 0.0, 0.0]);
    run.users.iter().for_each(|user| run.assert_moved(user));
}

/// What stands on a terminal after each time that it was drawn on.
fn drawn(typed: &str) -> Vec<Vec<String>> {
    let screens = typed.split("\x1b[H").skip(1);
    let lines = |screen: &str| {
        let all = screen.split_once("\x1b[J").expect("what is below is not cleared").0;
        let line = |line: &str| line.strip_suffix("\x1b[K").expect("its end is not cleared").into();
        all.split_terminator("\r\n").map(|text| line(text.trim_end_matches('\r'))).collect()
    };
    screens.map(lines).collect()
}

#[test]
fn who_watches_sees_where_it_is_and_what_went_wrong() {
    let run = Run::of("seen", 10);
    let source = &run.servers.source;
    shell(source, &format!("chmod 000 {}/2.", directory(source, "user.seen03")));
    let running = run.spawn(&["--jobs=8", "--json", "--route-command=sleep 2"]);
    run.until("it does not begin", |status| status["coordinated"] == true);
    let watch = format!("stty rows 24 cols 80; mbcopy bulk status --watch --store {STORE}");
    let watching = source.spawn(&["script", "-qec", &watch, "/dev/null"]).unwrap();
    Pushed::from(running.wait_with_output().unwrap()).expect(1);
    let watched = Pushed::from(watching.wait_with_output().unwrap()).expect(0);
    let screens = drawn(&watched.stdout);
    if std::env::var_os("MBCOPY_SCREENSHOTS").is_some() {
        screens.iter().for_each(|lines| println!("{}\n", lines.join("\n")));
    }
    assert!(screens.len() >= 3, "{screens:?}");
    for lines in &screens {
        assert!(
            lines.len() < 24 && lines.iter().all(|line| line.chars().count() <= 80),
            "{lines:?}"
        );
    }
    let shows = |what: &dyn Fn(&str) -> bool| {
        screens.iter().any(|lines| lines.iter().any(|line| what(line)))
    };
    let at_work = |lines: &&Vec<String>| {
        let moves =
            lines.iter().filter(|line| line.contains(" to bw2 ") && line.contains(" since "));
        lines[0] == "users-to-bw2 (move): at work" && moves.count() >= 3
    };
    assert!(screens.iter().any(|lines| at_work(&lines)), "{screens:?}");
    assert!(shows(&|line| line.contains("  routing  ") && line.contains(" KiB  ")), "{screens:?}");
    assert!(shows(&|line| line.contains(" users an hour, ") && line.contains(" left, until ")));
    let refused = |line: &str| line.contains("user.seen03") && line.contains(" ago  refused:");
    assert!(shows(&refused) && shows(&|line| line.ends_with(" message 2:")), "{screens:?}");
    let last = screens.last().unwrap();
    assert_eq!(last[0], "users-to-bw2 (move): over");
    assert!(last[1].contains("] 10 of 10 users ended (100%)"), "{last:?}");
    assert!(last.iter().all(|line| line != "under way:"), "{last:?}");
}
