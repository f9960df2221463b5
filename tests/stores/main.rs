//! A run's store, on both of its engines: SQLite, and a PostgreSQL that the test starts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cases;

use lab::postgres::Postgres;
use mbcopy::bulk::attempt::Launcher;
use mbcopy::bulk::resolve::Planned;
use mbcopy::bulk::run::{Event, Finish, Options, Stop, Watcher, run};
use mbcopy::bulk::schedule::{End, Limits};
use mbcopy::bulk::state::{Outcome, Retries, State};
use mbcopy::bulk::store::{Ended, Job, Mode, NOT_FOUND, Order, Place, Served, Store, StoreError};
use mbcopy::bulk::window::Windows;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const RETRIES: Retries = Retries { attempts: 2, pause: Duration::from_secs(30) };
const LONG: Duration = Duration::from_secs(60);
/// Long enough to be kept on a busy machine.
const SHORT: Duration = Duration::from_secs(3);

/// Whom this source is found to have; empty: nobody has found him.
fn planned(source: &str, mailbox: String) -> Planned {
    Planned {
        mailbox,
        source: source.into(),
        destination: "bw2".into(),
        partition: None,
        not_before: 0,
        known: !source.is_empty(),
        size: (1, 10, 100),
    }
}

fn several(source: &str, prefix: &str, count: usize) -> Vec<Planned> {
    (0..count).map(|n| planned(source, format!("user.{prefix}{n:04}"))).collect()
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

#[test]
fn a_run_is_the_same_in_a_file_and_in_a_shared_database() {
    let dir = tempfile::tempdir().unwrap();
    cases::all(&Place::Directory(dir.path().join("file")));
    let server = Postgres::start(false).unwrap();
    let place = |machine: &str| Place::Postgres {
        url: server.local_url(),
        directory: dir.path().join(machine),
    };
    cases::all(&place("one"));
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
    store.add(&several("bw1", "b", 60), Mode::Move, false).unwrap();
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
    one.add(&several("bw1", "one", 3), Mode::Move, false).unwrap();
    two.add(&several("bw3", "two", 1), Mode::Move, false).unwrap();
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
    assert_eq!((first.user, first.resumes), (lost.user, true));
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
    let mut plan = several("bw1", "here", 1);
    plan.extend(several("", "there", 1));
    one.add(&plan, Mode::Move, false).unwrap();
    assert_eq!(one.state_of("user.there0000").unwrap(), Some(State::Refused));
    assert_eq!((one.troubled().unwrap(), one.retry(None).unwrap()), (0, 0));
    assert_eq!(one.last_troubles(1).unwrap()[0].reason, NOT_FOUND);
    let mut plan = several("", "here", 1);
    plan.extend(several("bw3", "there", 1));
    let added = two.add(&plan, Mode::Move, false).unwrap();
    assert_eq!((added.known, added.elsewhere, added.gone), (2, 0, 0));
    assert_eq!(one.state_of("user.here0000").unwrap(), Some(State::Waiting));
    assert_eq!(claim(&two).unwrap().mailbox, "user.there0000");
    // Who is on two servers stays with the first.
    let twice = two.add(&several("bw3", "here", 1), Mode::Move, false).unwrap();
    assert_eq!(twice.elsewhere, 1);
}

/// Stops whoever moves as soon as the store is away, if it is to.
struct WhileAway<'a> {
    stop: Option<&'a Stop>,
    away: u32,
}

impl Watcher for WhileAway<'_> {
    fn event(&mut self, event: Event<'_>) {
        if let Event::Away(_) = event {
            self.away += 1;
            self.stop.iter().for_each(|stop| stop.store(1, Ordering::Relaxed));
        }
    }
}

#[test]
fn while_the_store_is_away_moves_go_on_and_stop_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Postgres::start(false).unwrap();
    let url = server.local_url();
    let place = Place::Postgres { url, directory: dir.path().join("one") };
    let program = dir.path().join("mbcopy");
    let script = format!(
        "#!/bin/sh\ncd {}; trap 'touch stopped; exit 7' TERM; touch began\n\
         while ! test -e go; do sleep 0.1 & wait $!; done\n\
         echo '{{\"event\":\"report\",\"outcome\":\"done\"}}'\n",
        dir.path().display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (name, stops) in [("stops", true), ("waits", false)] {
        let store = place.create(name).unwrap();
        let right = store.coordinate_for(&[home("bw1")], LONG).unwrap();
        store.add(&several("bw1", name, 1), Mode::Move, false).unwrap();
        store.begin(Mode::Move).unwrap();
        let options = Options {
            limits: Limits {
                jobs: 1,
                max_failures: None,
                windows: Windows::default(),
                pause: Duration::ZERO,
            },
            retries: RETRIES,
            launcher: Launcher {
                program: program.clone(),
                common: Vec::new(),
                push: Vec::new(),
                back: Vec::new(),
                outputs: store.attempts(),
                from: Default::default(),
            },
            paces: Vec::new(),
        };
        let (began, stopped) = (dir.path().join("began"), dir.path().join("stopped"));
        let stop = Stop::default();
        let mut watcher = WhileAway { stop: stops.then_some(&stop), away: 0 };
        let finish = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !began.exists() {
                    std::thread::sleep(Duration::from_millis(10));
                }
                server.restart().unwrap();
                if !stops {
                    std::fs::write(dir.path().join("go"), "").unwrap();
                }
            });
            runtime.block_on(run(&store, &right, &options, &mut watcher, &stop)).unwrap()
        });
        assert!(watcher.away > 0, "it was there all the time");
        let since = Instant::now();
        while stops && !stopped.exists() {
            assert!(since.elapsed() < Duration::from_secs(20), "what was under way goes on");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (end, state) = match stops {
            true => (Finish::Abandoned, State::Running),
            false => (Finish::Ended(End::Over), State::Moved),
        };
        assert_eq!((finish, stopped.exists()), (end, stops), "{name}");
        assert_eq!(store.state_of(&format!("user.{name}0000")).unwrap(), Some(state));
        let _ = (std::fs::remove_file(&began), std::fs::remove_file(&stopped));
    }
    // What cannot become better is not waited for.
    for url in ["postgres://x@/x?port=none", "postgres://x@localhost/x?connect_timeout=never"] {
        let place = Place::Postgres { url: url.into(), directory: dir.path().into() };
        assert!(!place.runs().unwrap_err().is_passing(), "{url}");
    }
}

#[test]
fn a_shared_database_is_spoken_to_by_tls_and_its_certificate_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let server = Postgres::start_encrypted().unwrap();
    let certificate = server.certificate().display().to_string();
    let place = |host: &str, parameters: &str| Place::Postgres {
        url: server.tls_url(host, parameters),
        directory: dir.path().to_owned(),
    };
    let checked = format!("sslmode=verify-full&sslrootcert={certificate}");
    let store = place("localhost", &checked).create("tls").unwrap();
    store.add(&several("bw1", "t", 2), Mode::Move, false).unwrap();
    let runs = |host: &str, parameters: &str| {
        place(host, parameters).runs().map_err(|error| {
            assert!(!error.is_passing(), "{host} {parameters}: it is tried for ever: {error}");
            error.to_string()
        })
    };
    let found = Ok(vec!["tls".to_owned()]);
    for parameters in [checked.as_str(), "sslmode=require", "sslmode=prefer", ""] {
        assert_eq!(runs("localhost", parameters), found, "{parameters}");
    }
    assert_eq!(runs("127.0.0.1", "sslmode=require"), found);
    for (host, parameters, says) in [
        // The server takes nobody without TLS.
        ("localhost", "sslmode=disable", "no encryption"),
        // The system's authorities do not know it.
        ("localhost", "sslmode=verify-full", "certificate"),
        // It is of another name.
        ("127.0.0.1", checked.as_str(), "certificate"),
        ("localhost", "sslmode=verify-full&sslrootcert=/nowhere.pem", "/nowhere.pem"),
        ("localhost", "sslmode=verify-ca", "verify-full"),
    ] {
        let error = runs(host, parameters).unwrap_err();
        assert!(error.contains(says), "{host} {parameters}: {error}");
    }
}
