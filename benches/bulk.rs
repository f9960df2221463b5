//! A hundred thousand users on paper: how long planning, keeping, showing and
//! reporting them takes.

use criterion::{Criterion, criterion_group, criterion_main};
use mbcopy::bulk::resolve::{self, Planned, Top};
use mbcopy::bulk::store::{Mode, Order, Store};
use mbcopy::bulk::{plan, report, status::Status};
use std::hint::black_box;

const USERS: usize = 100_000;

fn tops() -> Vec<Top> {
    let top = |n| Top {
        name: format!("user.u{n:06}"),
        userid: format!("u{n:06}"),
        partition: "default".into(),
        mailboxes: 8,
        messages: 5000,
        bytes: 400_000_000,
        ..Top::default()
    };
    (0..USERS).map(top).collect()
}

fn planned(text: &str, tops: &[Top]) -> Vec<Planned> {
    let lines = plan::parse(text, &jiff::tz::TimeZone::UTC).unwrap_or_default();
    resolve::resolve(&lines, tops, false, Some("mail2")).unwrap_or_default()
}

fn on_paper(c: &mut Criterion) {
    let tops = tops();
    let file: String = tops.iter().map(|top| format!("{},mail2,,\n", top.userid)).collect();
    let mut group = c.benchmark_group("bulk");
    group.sample_size(10);
    group.bench_function("a file of 100,000", |b| b.iter(|| black_box(planned(&file, &tops))));
    group.bench_function("a pattern for 100,000", |b| {
        b.iter(|| black_box(planned("user.u*", &tops)))
    });
    let users = planned(&file, &tops);
    assert_eq!(users.len(), USERS);
    let fresh = || -> Option<(tempfile::TempDir, Store)> {
        let dir = tempfile::tempdir().ok()?;
        let store = Store::create(dir.path(), "bench").ok()?;
        Some((dir, store))
    };
    let keep = |store: &Store| {
        let added = store.add(&users, Mode::Move, false);
        added.is_ok() && store.begin(Mode::Move).is_ok() && store.order(Order::Smallest).is_ok()
    };
    group.bench_function("keeping 100,000", |b| {
        b.iter_with_setup(fresh, |made| assert!(made.is_some_and(|(_dir, store)| keep(&store))))
    });
    if let Some((_dir, store)) = fresh() {
        assert!(keep(&store));
        group.bench_function("status of 100,000", |b| {
            b.iter(|| black_box(Status::of(&store, 1_760_000_000_000).is_ok()))
        });
        group.bench_function("page of 100,000", |b| {
            b.iter(|| report::html(&store, 1_760_000_000_000, &mut std::io::sink()).is_ok())
        });
    }
    group.finish();
}

criterion_group!(benches, on_paper);
criterion_main!(benches);
