use super::*;
use crate::bulk::resolve::Planned;
use crate::bulk::state::Retries;
use std::time::Duration;

const RETRIES: Retries = Retries { attempts: 2, pause: Duration::from_secs(30) };

fn planned(name: &str, bytes: u64) -> Planned {
    Planned {
        mailbox: format!("user.{name}"),
        source: String::new(),
        destination: "bw2".into(),
        partition: None,
        not_before: 0,
        known: true,
        size: (1, bytes / 10, bytes),
    }
}

fn users(names: &[&str]) -> Vec<Planned> {
    names.iter().zip(1..).map(|(name, n)| planned(name, n * 100)).collect()
}

fn run(names: &[&str]) -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::create(root.path(), "test").unwrap();
    store.add(&users(names), Mode::Move, false).unwrap();
    store.begin(Mode::Move).unwrap();
    store.order(Order::Listed).unwrap();
    (root, store)
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
        text: String::new(),
        advice: String::new(),
        detail: String::new(),
        at: 1_000,
    }
}

fn claim(store: &Store) -> Job {
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

#[test]
fn each_user_is_claimed_once_in_order() {
    let (root, store) = run(&["a", "b", "c"]);
    store.order(Order::Largest).unwrap();
    let order: Vec<_> = (0..3).map(|_| claim(&store).mailbox).collect();
    assert_eq!(order, ["user.c", "user.b", "user.a"]);
    assert_eq!(store.claim(1_000_000, false).unwrap(), None);
    // After a crash they are known to be under way.
    let again = Store::open(root.path(), "test").unwrap();
    assert_eq!(again.under_way().unwrap().len(), 3);
    assert_eq!(again.open_users().unwrap(), 3);
}

#[test]
fn what_has_ended_is_counted_and_never_claimed_again() {
    let (_root, store) = run(&["a", "b"]);
    let job = claim(&store);
    store.begun(job.attempt, 77).unwrap();
    assert_eq!(store.under_way().unwrap()[0].pid, 77);
    assert_eq!(store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap(), Some(State::Moved));
    assert_eq!(claim(&store).mailbox, "user.b");
    assert_eq!(store.claim(i64::MAX, false).unwrap(), None);
    let counts = store.counts().unwrap();
    let moved = counts.iter().find(|count| count.state == State::Moved).unwrap();
    assert_eq!((moved.users, moved.messages, moved.bytes), (1, 20, 200));
    assert_eq!(store.done_since(0).unwrap(), (1, 200, Some(1_000_000)));
}

#[test]
fn failures_are_tried_again_later_and_then_no_more() {
    let (_root, store) = run(&["a"]);
    let job = claim(&store);
    assert_eq!(store.ended(&job, &ended(Outcome::Failed), &RETRIES).unwrap(), Some(State::Waiting));
    assert_eq!(store.next_turn(State::Waiting).unwrap(), Some(31_000));
    assert_eq!(store.claim(30_999, false).unwrap(), None);
    let job = store.claim(31_000, false).unwrap().unwrap();
    assert_eq!(store.ended(&job, &ended(Outcome::Failed), &RETRIES).unwrap(), Some(State::Failed));
    assert_eq!((store.troubled().unwrap(), store.open_users().unwrap()), (1, 0));
    assert_eq!(store.retry(None).unwrap(), 1);
    assert_eq!(claim(&store).mailbox, "user.a");
}

#[test]
fn what_stopped_in_between_comes_first_and_what_was_interrupted_does_not_count() {
    let (_root, store) = run(&["a", "b"]);
    let job = claim(&store);
    let state = store.ended(&job, &ended(Outcome::Unfinished), &RETRIES).unwrap().unwrap();
    assert_eq!(state, State::Unfinished);
    assert_eq!(store.claim(1_000, true).unwrap(), None);
    let job = store.claim(6_000, true).unwrap().unwrap();
    assert_eq!(job.mailbox, "user.a");
    let state = store.ended(&job, &ended(Outcome::Interrupted), &RETRIES).unwrap().unwrap();
    assert_eq!(state, State::Waiting);
    let job = claim(&store);
    let state = store.ended(&job, &ended(Outcome::Unfinished), &RETRIES).unwrap().unwrap();
    assert_eq!(state, State::Stuck);
    assert_eq!(store.retry(Some("user.a")).unwrap(), 1);
    assert_eq!(state_of(&store, "a"), State::Unfinished);
}

#[test]
fn an_attempt_that_never_began_leaves_nothing() {
    let (_root, store) = run(&["a"]);
    let job = claim(&store);
    store.not_begun(&job).unwrap();
    assert_eq!(store.under_way().unwrap(), []);
    let job = claim(&store);
    store.ended(&job, &ended(Outcome::Failed), &RETRIES).unwrap();
    assert_eq!(state_of(&store, "a"), State::Waiting, "it was the first attempt");
}

#[test]
fn copies_are_made_pass_by_pass_and_cut_over_once() {
    let (_root, store) = run(&["a", "b"]);
    assert!(store.begin(Mode::Copy).unwrap());
    assert!(!store.begin(Mode::Copy).unwrap(), "it goes on");
    for outcome in [Outcome::Done, Outcome::Refused] {
        let job = claim(&store);
        assert_eq!(job.task, Task::Copy);
        store.ended(&job, &ended(outcome), &RETRIES).unwrap();
    }
    assert_eq!(state_of(&store, "a"), State::Copied);
    assert!(store.begin(Mode::Copy).unwrap(), "the next night");
    for _ in 0..2 {
        let job = claim(&store);
        let outcome = if job.mailbox == "user.a" { Outcome::Done } else { Outcome::Refused };
        store.ended(&job, &ended(outcome), &RETRIES).unwrap();
    }
    store.add(&users(&["a", "b", "c"]), Mode::Copy, false).unwrap();
    assert!(store.begin(Mode::Cutover).unwrap());
    assert_eq!(state_of(&store, "c"), State::Refused, "he was never copied");
    let job = claim(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.a", Task::Move));
    store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
    assert_eq!(store.claim(i64::MAX, false).unwrap(), None);
    assert!(!store.begin(Mode::Cutover).unwrap());
    assert!(store.begin(Mode::Move).unwrap());
    let job = claim(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.c", Task::Move));
    assert_eq!(state_of(&store, "a"), State::Moved, "nobody is moved twice");
}

#[test]
fn a_changed_plan_adds_and_takes_out_whom_nothing_was_done_with() {
    let (_root, store) = run(&["a", "b", "c"]);
    let job = claim(&store);
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

#[test]
fn who_is_taken_out_or_back_is_what_the_admin_says() {
    let (_root, store) = run(&["a", "b"]);
    assert!(store.skip("user.b").unwrap());
    assert!(!store.skip("user.nobody").unwrap());
    let job = claim(&store);
    assert!(!store.skip("user.a").unwrap(), "he is worked on");
    store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap();
    assert!(!store.skip("user.a").unwrap(), "he is moved");
    assert_eq!(store.reverse(None).unwrap(), 1);
    assert!(store.begin(Mode::Copy).unwrap());
    let job = claim(&store);
    assert_eq!((job.mailbox.as_str(), job.task), ("user.a", Task::Reverse));
    assert_eq!(store.ended(&job, &ended(Outcome::Done), &RETRIES).unwrap(), Some(State::Reversed));
    assert_eq!(store.reverse(None).unwrap(), 0);
    assert_eq!(store.retry(Some("user.b")).unwrap(), 1);
    assert_eq!(claim(&store).mailbox, "user.b");
}

#[test]
fn one_process_coordinates_and_the_others_are_told() {
    let (root, store) = run(&["a"]);
    assert!(!store.is_coordinated().unwrap());
    let held = store.coordinate().unwrap();
    let other = Store::open(root.path(), "test").unwrap();
    assert!(other.is_coordinated().unwrap());
    let error = other.coordinate().unwrap_err().to_string();
    assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
    other.set_control(Control::Paused).unwrap();
    assert_eq!(store.control().unwrap(), Control::Paused);
    drop(held);
    other.coordinate().unwrap();
    assert_eq!(Store::runs(root.path()).unwrap(), ["test"]);
    assert!(matches!(Store::open(root.path(), "none"), Err(StoreError::NoRun(_))));
}
