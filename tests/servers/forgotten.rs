//! A disk that has lost the last write of a journal: what the databases say
//! counts, the other journal is a witness, and what cannot be decided is refused.

use crate::crash::Killed;
use crate::support::Servers;
use lab::host::Host;
use mbcopy::fault::Point;
use mbcopy::moves::Journal;
use mbcopy::moves::journal::state;

/// Has a host's journal say of the user's move what it said before.
fn forget(host: &Host, said: &str, before: &str) {
    host.stop_cyrus().unwrap();
    let journal = Journal::open(&host.data().join("lib")).unwrap();
    let mut entry = journal.moves().unwrap().0.pop().unwrap();
    assert_eq!(entry.state, said, "on {host}");
    entry.state = before.into();
    journal.write(&entry).unwrap();
    drop(journal);
    host.run(&["chown", "-R", "cyrus:mail", "/var/lib/cyrus/mbcopy"]).unwrap();
    host.start_cyrus().unwrap();
}

fn on<'a>(servers: &'a Servers, name: &str) -> &'a Host {
    if servers.source.name() == name { &servers.source } else { &servers.target }
}

#[test]
fn a_move_whose_journal_lost_its_last_write_is_finished_all_the_same() {
    let cases = [
        (Point::PublishCommitted, "bw2", state::PUBLISHING, state::PREPARED),
        (Point::PublishRecorded, "bw2", state::PUBLISHED, state::PUBLISHING),
        (Point::RouteChanged, "bw1", state::ROUTING, state::PUBLISHING),
        (Point::RouteChanged, "bw2", state::ROUTING, state::PUBLISHED),
        (Point::Routed, "bw1", state::ROUTED, state::ROUTING),
        (Point::RetireCommitted, "bw1", state::RETIRING, state::ROUTED),
        (Point::Retired, "bw1", state::RETIRED, state::RETIRING),
    ];
    for (n, (point, host, said, before)) in cases.into_iter().enumerate() {
        let killed = Killed::at(point, format!("forget{n}"), false);
        forget(on(&killed.servers, host), said, before);
        let again = killed.servers.mbcopy(&["resume", &killed.mailbox]).expect(0);
        let line = format!("{}: moved; bw2 serves the user now", killed.mailbox);
        assert_eq!(again.last_line(), line, "{point:?} on {host}");
        killed.assert_moved(point);
    }
}

#[test]
fn a_route_that_may_be_changed_to_a_target_without_the_user_is_refused_and_restored_by_abort() {
    let killed = Killed::at(Point::Settled, "norecall".into(), false);
    let Killed { servers, mailbox, .. } = &killed;
    // As if the route had been restored, and the source had forgotten it.
    forget(&servers.source, state::PUBLISHING, state::ROUTED);
    let route = ["--route-command", "echo $MBCOPY_ACTION >> /run/routes"];
    let refused = [route.as_slice(), &["-v"]].concat();
    servers.push(mailbox, &refused).expect(4).says(&[
        "was routed on the source",
        "prepared",
        "bring the route back",
    ]);
    servers.mbcopy(&["abort", mailbox]).expect(0);
    killed.assert_as_before(Point::Settled);
    servers.push(mailbox, &["--route-command", "true"]).expect(0);
    killed.assert_moved(Point::Settled);
}

#[test]
fn a_retirement_that_nobody_can_read_any_more_is_not_taken_for_a_source_that_serves() {
    let killed = Killed::at(Point::RetireCommitted, "damaged".into(), false);
    let Killed { servers, mailbox, .. } = &killed;
    let plan = "for f in /var/lib/cyrus/mbcopy/moves/*/retirement; do cp $f /run/plan; \
                echo damaged > $f; done";
    servers.source.run(&["sh", "-c", plan]).unwrap();
    let again = servers.push(mailbox, &["--route-command", "true"]).expect(5);
    let again = again.says(&["retirement", "damaged", "the target serves the user"]);
    assert_eq!(again.last_line(), format!("{mailbox}: not finished; bw2 serves the user now"));
    let plan = "cat /run/plan > $(echo /var/lib/cyrus/mbcopy/moves/*/retirement)";
    servers.source.run(&["sh", "-c", plan]).unwrap();
    servers.push(mailbox, &["--route-command", "true"]).expect(0);
    killed.assert_moved(Point::RetireCommitted);
}
