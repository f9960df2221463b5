//! A run's store, on both of its engines: SQLite, and a PostgreSQL that the test starts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use lab::postgres::Postgres;
use mbcopy::bulk::resolve::Planned;
use mbcopy::bulk::schedule::Control;
use mbcopy::bulk::state::{Outcome, Retries, State};
use mbcopy::bulk::store::{Ended, Job, Mode, NOT_FOUND, Order, Place, Served, Store, StoreError};
use mbcopy::bulk::{report, status::Status};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const RETRIES: Retries = Retries { attempts: 2, pause: Duration::from_secs(30) };
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(1);

fn planned(source: &str, names: impl IntoIterator<Item = String>) -> Vec<Planned> {
    let one = |mailbox| Planned {
        mailbox,
        source: source.into(),
        destination: "bw2".into(),
        partition: None,
        not_before: 0,
        known: !source.is_empty(),
        size: (1, 10, 100),
    };
    names.into_iter().map(one).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("user.{prefix}{n:04}")).collect()
}

fn ended(outcome: Outcome) -> Ended {
    Ended {
        outcome,
        move_id: "0011223344556677".into(),
        size: (2, 20, 200),
        sent: (20, 200),
        freeze_ms: 12.5,
        total_ms: 500.0,
        serving: "bw2".into(),
        text: if outcome == Outcome::Done { "" } else { "a \"reason\", with\u{0} all" }.into(),
        advice: "mend it".into(),
        detail: "{}".into(),
        at: 1_000,
    }
}

fn home(source: &str) -> Served {
    Served { source: source.into(), home: true }
}

fn away(source: &str) -> Served {
    Served { source: source.into(), home: false }
}

fn claim(store: &Store) -> Option<Job> {
    store.claim(i64::MAX, false).unwrap()
}

/// Every statement of the store, with what it must come to.
fn all_of_a_run(place: &Place) {
    assert!(matches!(place.open("all"), Err(StoreError::NoRun(_))));
    let store = place.create("all").unwrap();
    drop(place.create("all").unwrap());
    assert_eq!(place.runs().unwrap(), ["all"]);
    let right = store.coordinate_for(&[home("bw1")], LONG).unwrap();
    assert!(matches!(store.coordinate(), Err(StoreError::Held { .. })));
    assert!(store.is_coordinated().unwrap() && store.is_coordinated_here());

    let mut users = planned("bw1", names("a", 6));
    users[1].size = (1, 10, 5_000_000_000);
    let added = store.add(&users, Mode::Copy, false).unwrap();
    assert_eq!((added.new, added.known, added.gone, added.elsewhere), (6, 0, 0, 0));
    assert!(store.begin(Mode::Copy).unwrap() && !store.begin(Mode::Copy).unwrap());
    store.order(Order::Largest).unwrap();
    let first = claim(&store).unwrap();
    assert_eq!((first.mailbox.as_str(), first.source.as_str()), ("user.a0001", "bw1"));
    store.begun(first.attempt, 77).unwrap();
    assert_eq!(store.under_way_here().unwrap(), store.under_way().unwrap());
    assert_eq!(store.under_way().unwrap()[0].pid, 77);
    assert_eq!(store.ended(&first, &ended(Outcome::Done), &RETRIES).unwrap(), Some(State::Copied));
    // What it says again is said to nobody.
    assert_eq!(store.ended(&first, &ended(Outcome::Failed), &RETRIES).unwrap(), None);
    let failing = claim(&store).unwrap();
    let waits = store.ended(&failing, &ended(Outcome::Failed), &RETRIES).unwrap();
    assert_eq!(waits, Some(State::Waiting));
    assert_eq!(store.next_turn(State::Waiting).unwrap(), Some(0));
    let dropped = claim(&store).unwrap();
    store.not_begun(&dropped).unwrap();
    let stopped = claim(&store).unwrap();
    store.ended(&stopped, &ended(Outcome::Unfinished), &RETRIES).unwrap();
    assert!(store.claim(5_999, true).unwrap().is_none());
    let again = store.claim(6_000, true).unwrap().unwrap();
    assert!(again.again && again.user == stopped.user);
    store.ended(&again, &ended(Outcome::Refused), &RETRIES).unwrap();
    assert_eq!(store.troubled().unwrap(), 1);
    assert_eq!(store.last_troubles(1).unwrap()[0].reason, "a \"reason\", with all");
    assert!(store.skip("user.a0005").unwrap() && !store.skip("user.nobody").unwrap());
    assert_eq!(store.retry(None).unwrap(), 1);
    let fewer = store.add(&users[..5], Mode::Copy, false).unwrap();
    assert_eq!((fewer.new, fewer.known), (0, 5));
    assert!(store.begin(Mode::Cutover).unwrap());
    assert_eq!(store.state_of("user.a0001").unwrap(), Some(State::Waiting));
    let moved = claim(&store).unwrap();
    assert_eq!(moved.mailbox, "user.a0001");
    store.ended(&moved, &ended(Outcome::Done), &RETRIES).unwrap();
    assert_eq!(store.done_since(0).unwrap().0, 2);
    assert_eq!(store.reverse(Some("user.a0001")).unwrap(), 1);
    assert_eq!(store.reverse(None).unwrap(), 0);
    // He, and whose second attempt never began: his first may have stopped in between.
    assert_eq!(store.open_users().unwrap(), 2);
    store.set_control(Control::Paused).unwrap();
    assert_eq!(place.open("all").unwrap().control().unwrap(), Control::Paused);
    assert_eq!(store.mode().unwrap(), Some(Mode::Cutover));
    assert_eq!(
        (store.take_over().unwrap(), store.waits_for_others().unwrap()),
        (0, place_is_shared(place))
    );
    let status = Status::of(&store, 2_000).unwrap();
    assert_eq!((status.users, status.coordinated), (6, true));
    assert_eq!(store.counts_of_ours().unwrap(), store.counts().unwrap());
    let mut csv = Vec::new();
    report::csv(&store, &mut csv).unwrap();
    assert_eq!(String::from_utf8(csv).unwrap().lines().count(), 7);
    report::html(&store, 2_000, &mut std::io::sink()).unwrap();
    store.leave(right).unwrap();
    assert!(!store.is_coordinated().unwrap());
}

/// Where there may be others, whoever waits to be taken may be taken by them.
fn place_is_shared(place: &Place) -> bool {
    matches!(place, Place::Postgres { .. })
}

#[test]
fn a_run_is_the_same_in_a_file_and_in_a_shared_database() {
    let dir = tempfile::tempdir().unwrap();
    all_of_a_run(&Place::Directory(dir.path().join("file")));
    let server = Postgres::start(false).unwrap();
    let place = |machine: &str| Place::Postgres {
        url: server.local_url(),
        directory: dir.path().join(machine),
    };
    all_of_a_run(&place("one"));
    each_user_is_taken_once(&place);
    who_dies_loses_his_users(&place);
    whom_nobody_has_found_waits_for_who_does(&place);
    let long = "x".repeat(57);
    assert!(matches!(place("one").create(&long), Err(StoreError::LongName(_))));
}

/// Coordinators of one server, all at once.
fn each_user_is_taken_once(place: &dyn Fn(&str) -> Place) {
    let store = place("m0").create("once").unwrap();
    let right = store.coordinate_for(&[home("bw1")], LONG).unwrap();
    store.add(&planned("bw1", names("b", 60)), Mode::Move, false).unwrap();
    store.begin(Mode::Move).unwrap();
    let takers: Vec<Place> = (0..4).map(|n| place(&format!("m{}", n + 1))).collect();
    let taken: Vec<Vec<String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = takers
            .iter()
            .map(|place| {
                scope.spawn(move || {
                    let store = place.create("once").unwrap();
                    let _right = store.coordinate_for(&[home("bw1")], LONG).unwrap();
                    std::iter::from_fn(|| claim(&store)).map(|job| job.mailbox).collect()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let all: BTreeSet<&String> = taken.iter().flatten().collect();
    assert_eq!((all.len(), taken.iter().map(Vec::len).sum()), (60, 60), "{taken:?}");
    assert_eq!((store.under_way().unwrap().len(), store.under_way_here().unwrap().len()), (60, 0));
    store.leave(right).unwrap();
}

fn who_dies_loses_his_users(place: &dyn Fn(&str) -> Place) {
    let (one, two) = (place("h1").create("dies").unwrap(), place("h2").create("dies").unwrap());
    let of_one = one.coordinate_for(&[home("bw1")], SHORT).unwrap();
    let _of_two = two.coordinate_for(&[home("bw3"), away("bw1")], LONG).unwrap();
    one.add(&planned("bw1", names("one", 3)), Mode::Move, false).unwrap();
    two.add(&planned("bw3", names("two", 1)), Mode::Move, false).unwrap();
    for store in [&one, &two] {
        store.begin(Mode::Move).unwrap();
        store.order(Order::Listed).unwrap();
    }
    let lost = claim(&one).unwrap();
    // While its own coordinator lives nobody else takes its users, however long that is.
    std::thread::sleep(SHORT * 2);
    let other = claim(&two).unwrap();
    assert_eq!(other.mailbox, "user.two0000");
    assert_eq!((claim(&two), two.take_over().unwrap()), (None, 0));
    assert!(two.waits_for_others().unwrap());

    drop(of_one);
    let began = Instant::now();
    while two.take_over().unwrap() == 0 {
        assert!(began.elapsed() < SHORT * 20, "the dead are believed to live");
        std::thread::sleep(SHORT / 10);
    }
    let first = two.claim(i64::MAX, true).unwrap().unwrap();
    assert_eq!((first.user, first.again), (lost.user, true));
    assert_eq!(claim(&two).unwrap().mailbox, "user.one0001");
    // Alive after all, it is not heard any more.
    assert_eq!(one.ended(&lost, &ended(Outcome::Failed), &RETRIES).unwrap(), None);
    one.not_begun(&lost).unwrap();
    assert_eq!(two.state_of("user.one0000").unwrap(), Some(State::Running));
    let done = two.ended(&first, &ended(Outcome::Done), &RETRIES).unwrap();
    assert_eq!(done, Some(State::Moved));
    // Its next start takes its server's users again.
    let _right = one.coordinate_for(&[home("bw1")], LONG).unwrap();
    assert_eq!((claim(&two), claim(&one).unwrap().mailbox), (None, "user.one0002".into()));
}

fn whom_nobody_has_found_waits_for_who_does(place: &dyn Fn(&str) -> Place) {
    let (one, two) = (place("f1").create("found").unwrap(), place("f2").create("found").unwrap());
    let _of_one = one.coordinate_for(&[home("bw1")], LONG).unwrap();
    let _of_two = two.coordinate_for(&[home("bw3")], LONG).unwrap();
    let mut plan = planned("bw1", names("here", 1));
    plan.extend(planned("", names("there", 1)));
    one.add(&plan, Mode::Move, false).unwrap();
    assert_eq!(one.state_of("user.there0000").unwrap(), Some(State::Refused));
    assert_eq!((one.troubled().unwrap(), one.retry(None).unwrap()), (0, 0));
    assert_eq!(one.last_troubles(1).unwrap()[0].reason, NOT_FOUND);
    let mut plan = planned("", names("here", 1));
    plan.extend(planned("bw3", names("there", 1)));
    let added = two.add(&plan, Mode::Move, false).unwrap();
    assert_eq!((added.known, added.elsewhere, added.gone), (2, 0, 0));
    assert_eq!(one.state_of("user.here0000").unwrap(), Some(State::Waiting));
    assert_eq!(claim(&two).unwrap().mailbox, "user.there0000");
    // Who is on two servers stays with the first.
    let twice = two.add(&planned("bw3", names("here", 1)), Mode::Move, false).unwrap();
    assert_eq!(twice.elsewhere, 1);
}
