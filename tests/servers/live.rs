//! Mail flows through the whole move, and somebody watches both servers.

use crate::support::{Servers, fingerprint};
use lab::seed::{Seed, Size};
use lab::workload::{Crew, Observation, Route, check, none_then_whole, watcher};
use std::time::Duration;

/// Turns the workers' map by the route command, as an MTA's map would be: the
/// file is seen by the hosts and by the workers outside.
fn route_by_file(servers: &Servers, user: &str) -> (Route, String) {
    let inside = "/var/lib/cyrus/route.map";
    let outside = servers.source.root().unwrap().join("var/lib/cyrus/route.map");
    std::fs::write(&outside, format!("{user} {}\n", servers.source.name())).unwrap();
    let command =
        format!("sed -i \"s/^$MBCOPY_USER .*/$MBCOPY_USER $MBCOPY_NEW_SERVER/\" {inside}");
    (Route::file(user, outside), command)
}

#[test]
fn mail_flows_through_the_move_and_nothing_is_lost_or_doubled() {
    let servers = Servers::fresh();
    servers.accounts(&["flow"]);
    Seed::new(&servers.source, "flow").bulk(2000, Size::Median(8192), 10).unwrap();
    let (route, command) = route_by_file(&servers, "flow");
    let crew = Crew::start(&route, Duration::from_millis(5)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pushed = servers.push("user.flow", &["--route-command", &command, "--json"]);
    std::thread::sleep(Duration::from_secs(2));
    let history = crew.stop().unwrap();
    let report = pushed.expect(0).report().unwrap();
    assert_eq!(report["outcome"], "done");

    let end = fingerprint(&servers.target, "flow", &[]);
    assert_eq!(check(&history, &end), [], "setbacks: {:?}", history.setbacks);
    let accepted = history.messages.values().filter(|fate| fate.accepted > 0).count();
    assert!(accepted > 100, "only {accepted} messages were accepted");
    assert!(history.bounces.is_empty(), "{:?}", history.bounces);
    assert!(
        history.longest() < Duration::from_secs(2),
        "somebody was blocked for {:?}",
        history.longest()
    );
}

#[test]
fn a_watcher_sees_no_user_and_then_the_whole_user() {
    let servers = Servers::fresh();
    servers.accounts(&["seen"]);
    Seed::new(&servers.source, "seen").bulk(2000, Size::Median(4096), 40).unwrap();
    let whole = Observation::of(&fingerprint(&servers.source, "seen", &[]));
    let at_target = watcher(&servers.target, "seen", Duration::from_millis(2));
    let at_source = watcher(&servers.source, "seen", Duration::from_millis(2));
    std::thread::sleep(Duration::from_millis(300));
    servers.push("user.seen", &[]).expect(0);
    std::thread::sleep(Duration::from_millis(300));
    let target = at_target.stop().unwrap();
    let source = at_source.stop().unwrap();
    assert_eq!(none_then_whole(&target, &whole), []);
    assert!(target.iter().map(|step| step.times).sum::<u32>() > 20, "too few looks: {target:?}");
    assert!(target.last().is_some_and(|step| step.found == whole), "{target:?}");
    assert!(source.first().is_some_and(|step| step.found == whole), "{source:?}");
    // Until the switch the source shows all of him; afterwards no part of him.
    let seen_whole = source.iter().filter(|step| step.found == whole).count();
    assert_eq!(seen_whole, 1, "{source:?}");
}
