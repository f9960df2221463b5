//! What a store does, whatever keeps it: each case with a run of its own.

use super::{LONG, RETRIES, ended, home};
use mbcopy::bulk::pulse::Pace;
use mbcopy::bulk::resolve::Planned;
use mbcopy::bulk::schedule::Control;
use mbcopy::bulk::state::{Outcome, Retries, State, Task};
use mbcopy::bulk::store::{Added, Coordinator, Job, Mode, Order, Place, Store, StoreError};
use mbcopy::bulk::{report, status::Status};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// Every one of them, on this place.
pub fn all(place: &Place) {
    each_user_is_claimed_once_in_order(place);
    what_has_ended_is_counted_and_never_claimed_again(place);
    failures_are_tried_again_later_and_then_no_more(place);
    what_stopped_in_between_comes_first_and_what_was_interrupted_does_not_count(place);
    who_stopped_in_between_stays_there_whatever_his_next_tries_come_to(place);
    an_attempt_that_never_began_leaves_nothing(place);
    copies_are_made_pass_by_pass_and_cut_over_once(place);
    whose_copy_ends_after_its_pass_is_moved_all_the_same(place);
    a_changed_plan_adds_and_takes_out_whom_nothing_was_done_with(place);
    who_is_taken_out_or_back_is_what_the_admin_says(place);
    nobody_is_moved_forward_beside_a_rollback(place);
    who_is_taken_out_of_a_reverse_stays_on_the_target(place);
    one_coordinates_and_the_others_are_told(place);
    a_whole_run_is_shown_and_reported(place);
}

fn planned(name: &str, bytes: u64) -> Planned {
    Planned { size: (1, bytes / 10, bytes), ..super::planned("bw1", format!("user.{name}")) }
}

fn users(names: &[&str]) -> Vec<Planned> {
    names.iter().zip(1..).map(|(name, n)| planned(name, n * 100)).collect()
}

/// A run of these users that has begun, and the right to coordinate it.
fn run(place: &Place, names: &[&str]) -> (Store, Coordinator) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("case{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let store = place.create(&name).unwrap();
    let right = store.coordinate_for(&[home("bw1")], LONG).unwrap();
    store.add(&users(names), Mode::Move, false).unwrap();
    store.begin(Mode::Move).unwrap();
    store.order(Order::Listed).unwrap();
    (store, right)
}

fn next(store: &Store) -> Job {
    store.claim(1_000_000, false).unwrap().unwrap()
}

fn states(store: &Store) -> Vec<(String, State)> {
    let mut states = Vec::new();
    store.each_user(|user| states.push((user.mailbox, user.state))).unwrap();
    states.sort();
    states
}

fn state_of(store: &Store, name: &str) -> State {
    store.state_of(&format!("user.{name}")).unwrap().unwrap()
}

fn each_user_is_claimed_once_in_order(place: &Place) {
    let in_order = |order| {
        let (store, right) = run(place, &["a", "b", "c"]);
        store.add(&[planned("a", 250)], Mode::Move, true).unwrap();
        store.order(order).unwrap();
        let taken: Vec<_> = (0..3).map(|_| next(&store).mailbox).collect();
        (store, right, taken)
    };
    assert_eq!(in_order(Order::Listed).2, ["user.a", "user.b", "user.c"]);
    assert_eq!(in_order(Order::Smallest).2, ["user.b", "user.a", "user.c"]);
    let (store, _right, taken) = in_order(Order::Largest);
    assert_eq!(taken, ["user.c", "user.a", "user.b"]);
    assert_eq!(store.claim(1_000_000, false).unwrap(), None);
    // After a crash they are known to be under way.
    let again = place.open(store.name()).unwrap();
    assert_eq!(again.under_way().unwrap().len(), 3);
    assert_eq!(again.open_users().unwrap(), 3);
}

fn what_has_ended_is_counted_and_never_claimed_again(place: &Place) {
    let (store, _right) = run(place, &["a", "b"]);
    let job = next(&store);
    store.begun(job.attempt, 77).unwrap();
    assert_eq!(store.under_way().unwrap()[0].pid, 77);
    assert_eq!(store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap(), Some(State::Moved));
    assert_eq!(next(&store).mailbox, "user.b");
    assert_eq!(store.claim(i64::MAX, false).unwrap(), None);
    let counts = store.counts().unwrap();
    let moved = counts.iter().find(|count| count.state == State::Moved).unwrap();
    assert_eq!((moved.users, moved.messages, moved.bytes), (1, 20, 200));
    assert_eq!(store.done_since(0).unwrap(), (1, 200, Some(1_000_000)));
}

fn failures_are_tried_again_later_and_then_no_more(place: &Place) {
    let (store, _right) = run(place, &["a"]);
    let job = next(&store);
    assert_eq!(store.ended(&job, &ended(Outcome::Failed), &RETRIES).unwrap(), Some(State::Waiting));
    assert_eq!(store.next_turn(State::Waiting).unwrap(), Some(31_000));
    assert_eq!(store.claim(30_999, false).unwrap(), None);
    let job = store.claim(31_000, false).unwrap().unwrap();
    assert_eq!(store.ended(&job, &ended(Outcome::Failed), &RETRIES).unwrap(), Some(State::Failed));
    assert_eq!((store.troubled().unwrap(), store.open_users().unwrap()), (1, 0));
    assert_eq!(store.retry(None).unwrap(), 1);
    assert_eq!(next(&store).mailbox, "user.a");
}

fn what_stopped_in_between_comes_first_and_what_was_interrupted_does_not_count(place: &Place) {
    let (store, _right) = run(place, &["a", "b"]);
    let job = next(&store);
    let state = store.ended(&job, &ended(Outcome::Unfinished), &RETRIES).unwrap().unwrap();
    assert_eq!(state, State::Unfinished);
    assert_eq!(store.claim(1_000, true).unwrap(), None);
    let job = store.claim(6_000, true).unwrap().unwrap();
    assert_eq!(job.mailbox, "user.a");
    let state = store.ended(&job, &ended(Outcome::Interrupted), &RETRIES).unwrap().unwrap();
    assert_eq!(state, State::Unfinished);
    let job = store.claim(1_000, true).unwrap().unwrap();
    let state = store.ended(&job, &ended(Outcome::Unfinished), &RETRIES).unwrap().unwrap();
    assert_eq!(state, State::Stuck);
    assert_eq!(store.retry(Some("user.a")).unwrap(), 1);
    assert_eq!(state_of(&store, "a"), State::Unfinished);
}

fn who_stopped_in_between_stays_there_whatever_his_next_tries_come_to(place: &Place) {
    let many = Retries { attempts: 6, ..RETRIES };
    let (store, _right) = run(place, &["a"]);
    let first = next(&store);
    assert!(!first.resumes && !store.under_way().unwrap()[0].resumes);
    store.ended(&first, &ended(Outcome::Unfinished), &many).unwrap();
    for (outcome, state) in [
        (Outcome::Failed, State::Unfinished),
        (Outcome::Held, State::Unfinished),
        (Outcome::Interrupted, State::Unfinished),
        (Outcome::Refused, State::Stuck),
    ] {
        let job = store.claim(i64::MAX, true).unwrap().unwrap();
        // The next coordinator knows it, too.
        let found = place.open(store.name()).unwrap().under_way().unwrap();
        assert!(job.resumes && found[0].resumes, "{outcome:?}");
        let became = store.ended(&job, &ended(outcome), &many).unwrap();
        assert_eq!(became, Some(state), "{outcome:?}");
        assert!(!store.skip("user.a").unwrap(), "the target may have him");
    }
    assert_eq!(store.retry(None).unwrap(), 1);
    let job = store.claim(i64::MAX, true).unwrap().unwrap();
    store.not_begun(&job).unwrap();
    assert_eq!(state_of(&store, "a"), State::Unfinished);
    let last = store.claim(i64::MAX, true).unwrap().unwrap();
    let once = Retries { attempts: 1, ..RETRIES };
    assert_eq!(store.ended(&last, &ended(Outcome::Failed), &once).unwrap(), Some(State::Stuck));
}

fn an_attempt_that_never_began_leaves_nothing(place: &Place) {
    let (store, _right) = run(place, &["a"]);
    let job = next(&store);
    store.not_begun(&job).unwrap();
    assert_eq!(store.under_way().unwrap(), []);
    let job = next(&store);
    store.ended(&job, &ended(Outcome::Failed), &RETRIES).unwrap();
    assert_eq!(state_of(&store, "a"), State::Waiting, "it was the first attempt");
}

fn copies_are_made_pass_by_pass_and_cut_over_once(place: &Place) {
    let (store, _right) = run(place, &["a", "b"]);
    assert!(store.begin(Mode::Copy).unwrap());
    assert!(!store.begin(Mode::Copy).unwrap(), "it goes on");
    for outcome in [Outcome::Done, Outcome::Refused] {
        let job = next(&store);
        assert_eq!(job.task, Task::Copy);
        store.ended(&job, &ended(outcome), &RETRIES).unwrap();
    }
    assert_eq!(state_of(&store, "a"), State::Copied);
    assert!(store.begin(Mode::Copy).unwrap(), "the next night");
    for _ in 0..2 {
        let job = next(&store);
        let outcome = if job.mailbox == "user.a" { Outcome::Done } else { Outcome::Refused };
        store.ended(&job, &ended(outcome), &RETRIES).unwrap();
    }
    store.add(&users(&["a", "b", "c"]), Mode::Copy, false).unwrap();
    assert!(store.begin(Mode::Cutover).unwrap());
    assert_eq!(state_of(&store, "c"), State::Refused, "he was never copied");
    let job = next(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.a", Task::Move));
    store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
    assert_eq!(store.claim(i64::MAX, false).unwrap(), None);
    assert!(!store.begin(Mode::Cutover).unwrap());
    assert!(store.begin(Mode::Move).unwrap());
    let job = next(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.c", Task::Move));
    assert_eq!(state_of(&store, "a"), State::Moved, "nobody is moved twice");
}

/// One is copied by a move that outlived its coordinator, one is copied in a second try, one
/// after the admin has had him tried again.
fn whose_copy_ends_after_its_pass_is_moved_all_the_same(place: &Place) {
    for mode in [Mode::Move, Mode::Cutover] {
        let (store, _right) = run(place, &["a", "b", "c"]);
        store.begin(Mode::Copy).unwrap();
        let [orphan, second, third] = [(); 3].map(|()| next(&store));
        store.ended(&second, &ended(Outcome::Unfinished), &RETRIES).unwrap();
        let once = Retries { attempts: 1, ..RETRIES };
        store.ended(&third, &ended(Outcome::Unfinished), &once).unwrap();
        assert_eq!(state_of(&store, "c"), State::Stuck);
        assert!(store.begin(mode).unwrap());
        let copied = store.ended(&orphan, &ended(Outcome::Done), &RETRIES).unwrap();
        assert_eq!(copied, Some(State::Waiting), "nothing takes him further");
        assert_eq!(store.retry(Some("user.c")).unwrap(), 1);
        for name in ["user.b", "user.c"] {
            let copy = store.claim(i64::MAX, true).unwrap().unwrap();
            assert_eq!((copy.mailbox.as_str(), copy.task), (name, Task::Copy));
            store.ended(&copy, &ended(Outcome::Done), &RETRIES).unwrap();
        }
        for name in ["user.a", "user.b", "user.c"] {
            let job = next(&store);
            assert_eq!((job.mailbox.as_str(), job.task), (name, Task::Move));
            store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
        }
        assert_eq!(store.open_users().unwrap(), 0);
    }
}

fn a_changed_plan_adds_and_takes_out_whom_nothing_was_done_with(place: &Place) {
    let (store, _right) = run(place, &["a", "b", "c"]);
    let job = next(&store);
    let again = users(&["b", "d"]);
    let added = store.add(&again, Mode::Move, false).unwrap();
    assert_eq!(added, Added { new: 1, known: 1, gone: 1, elsewhere: 0 });
    assert_eq!(state_of(&store, "a"), State::Running);
    assert_eq!(state_of(&store, "c"), State::Skipped);
    store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
    store.add(&users(&["c"]), Mode::Move, true).unwrap();
    assert_eq!(state_of(&store, "c"), State::Waiting, "he is named again");
    assert_eq!(state_of(&store, "b"), State::Waiting, "kept");
    let moved = State::Moved;
    store.add(&users(&["a"]), Mode::Move, false).unwrap();
    assert_eq!(states(&store)[0], ("user.a".to_owned(), moved));
}

fn who_is_taken_out_or_back_is_what_the_admin_says(place: &Place) {
    let (store, _right) = run(place, &["a", "b"]);
    assert!(store.skip("user.b").unwrap());
    assert!(!store.skip("user.nobody").unwrap());
    let job = next(&store);
    assert!(!store.skip("user.a").unwrap(), "he is worked on");
    store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
    assert!(!store.skip("user.a").unwrap(), "he is moved");
    assert_eq!(store.reverse(None).unwrap(), 1);
    assert!(store.begin(Mode::Copy).unwrap());
    let job = next(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.a", Task::Reverse));
    assert_eq!(store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap(), Some(State::Reversed));
    assert_eq!(store.reverse(None).unwrap(), 0);
    store.go_forward().unwrap();
    assert_eq!(store.retry(Some("user.b")).unwrap(), 1);
    assert_eq!(next(&store).mailbox, "user.b");
}

fn nobody_is_moved_forward_beside_a_rollback(place: &Place) {
    let (store, _right) = run(place, &["a", "b", "c"]);
    for outcome in [Outcome::Done, Outcome::Unfinished] {
        let job = next(&store);
        store.ended(&job, &ended(outcome), &RETRIES).unwrap();
    }
    assert_eq!((store.reverse(None).unwrap(), store.rolls_back().unwrap()), (1, true));
    assert_eq!(store.open_users().unwrap(), 1);
    let job = next(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.a", Task::Reverse));
    for unfinished in [true, false] {
        assert_eq!(store.claim(i64::MAX, unfinished).unwrap(), None);
    }
    store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
    // As if nobody were left.
    for state in [State::Waiting, State::Unfinished] {
        assert_eq!(store.next_turn(state).unwrap(), None);
    }
    assert_eq!((store.open_users().unwrap(), store.waits_for_others().unwrap()), (0, false));
    store.go_forward().unwrap();
    assert_eq!(store.claim(i64::MAX, true).unwrap().unwrap().mailbox, "user.b");
    assert_eq!(next(&store).mailbox, "user.c");
}

fn who_is_taken_out_of_a_reverse_stays_on_the_target(place: &Place) {
    let (store, _right) = run(place, &["a", "b", "c"]);
    for outcome in [Outcome::Done, Outcome::DoneWithLosses, Outcome::Refused] {
        let job = next(&store);
        store.ended(&job, &ended(outcome), &RETRIES).unwrap();
    }
    for name in ["user.a", "user.b"] {
        assert_eq!(store.reverse(Some(name)).unwrap(), 1);
    }
    // One waits, the other could not be moved back.
    let job = store.claim(i64::MAX, false).unwrap().unwrap();
    store.ended(&job, &ended(Outcome::Refused), &RETRIES).unwrap();
    let was = [state_of(&store, "a"), state_of(&store, "b")];
    assert_eq!(was, [State::Refused, State::Waiting]);
    for name in ["user.a", "user.b", "user.c"] {
        assert!(store.skip(name).unwrap(), "{name}");
    }
    let is = ["a", "b", "c"].map(|name| state_of(&store, name));
    assert_eq!(is, [State::Moved, State::MovedWithLosses, State::Skipped]);
    assert_eq!(store.claim(i64::MAX, false).unwrap(), None);
    assert_eq!(store.reverse(Some("user.b")).unwrap(), 1, "he can be moved back still");
}

fn one_coordinates_and_the_others_are_told(place: &Place) {
    assert!(matches!(place.open("none"), Err(StoreError::NoRun(_))));
    let (store, right) = run(place, &["a"]);
    assert!(store.is_coordinated().unwrap() && store.is_coordinated_here());
    let other = place.create(store.name()).unwrap();
    assert!(other.is_coordinated().unwrap());
    let error = other.coordinate().unwrap_err();
    assert!(matches!(error, StoreError::Held { .. }));
    assert!(error.to_string().contains(&format!("process {}", std::process::id())), "{error}");
    other.set_control(Control::Paused).unwrap();
    assert_eq!(store.control().unwrap(), Control::Paused);
    store.set_waits("paused").unwrap();
    store.set_paces(&[Pace { target: "bw2".into(), ..Pace::default() }]).unwrap();
    assert_eq!((other.waits().unwrap().len(), other.paces().unwrap().len()), (1, 1));
    store.leave(right).unwrap();
    assert!(!store.is_coordinated().unwrap());
    let said = (other.waits().unwrap(), other.paces().unwrap());
    assert_eq!(said, (vec![], vec![]), "what one said who is gone is nothing");
    // Who only looks whether there is one holds the lock for a moment, and keeps nobody out.
    let (done, name) = (AtomicBool::new(false), store.name());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = place.open(name).unwrap();
            while !done.load(Ordering::Relaxed) {
                store.is_coordinated_here();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let all: Result<(), _> = (0..50).try_for_each(|_| other.leave(other.coordinate()?));
        done.store(true, Ordering::Relaxed);
        all.unwrap();
    });
    other.coordinate().unwrap();
    assert!(place.runs().unwrap().iter().any(|run| run == store.name()));
}

fn a_whole_run_is_shown_and_reported(place: &Place) {
    let (store, _right) = run(place, &["a", "b", "c"]);
    let moved = next(&store);
    assert_eq!(store.under_way_here().unwrap(), store.under_way().unwrap());
    store.ended(&moved, &ended(Outcome::Done), &RETRIES).unwrap();
    // What it says again is said to nobody.
    assert_eq!(store.ended(&moved, &ended(Outcome::Failed), &RETRIES).unwrap(), None);
    let refused = next(&store);
    store.ended(&refused, &ended(Outcome::Refused), &RETRIES).unwrap();
    assert_eq!(store.last_troubles(1).unwrap()[0].reason, "a \"reason\", with all");
    // Where there may be others, whoever waits to be taken may be taken by them.
    let shared = matches!(place, Place::Postgres { .. });
    assert_eq!((store.take_over().unwrap(), store.waits_for_others().unwrap()), (0, shared));
    assert_eq!(store.mode().unwrap(), Some(Mode::Move));
    assert_eq!(store.counts_of_ours().unwrap(), store.counts().unwrap());
    let status = Status::of(&store, 2_000).unwrap();
    assert_eq!((status.users, status.ended, status.coordinated), (3, 2, true));
    let mut csv = Vec::new();
    report::csv(&store, &mut csv).unwrap();
    assert_eq!(String::from_utf8(csv).unwrap().lines().count(), 4);
    report::html(&store, 2_000, &mut std::io::sink()).unwrap();
}
