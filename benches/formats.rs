//! How fast Cyrus's files are read: what a scan of a large mailbox costs.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mbcopy::cyrus::db::{Database, Engine};
use mbcopy::cyrus::guid::Guid;
use mbcopy::cyrus::index::{Header, IndexView, Record, write_index};
use mbcopy::cyrus::mboxlist::MailboxList;
use mbcopy::cyrus::name::MailboxName;
use mbcopy::inventory::Groups;
use std::hint::black_box;

/// Messages of the large mailbox.
const MESSAGES: u32 = 100_000;
/// Mailboxes of the server.
const MAILBOXES: u32 = 10_000;

fn index(c: &mut Criterion) {
    let record = |uid: u32| Record {
        uid,
        size: 8192,
        guid: Guid::from_stored([uid as u8 | 1; 20]),
        modseq: u64::from(uid) + 7,
        ..Record::default()
    };
    let header = Header { last_uid: MESSAGES, uidvalidity: 1, ..Header::default() };
    let file = write_index(17, &header, (1..=MESSAGES).map(record)).unwrap();
    let mut group = c.benchmark_group("cyrus.index");
    group.throughput(Throughput::Elements(MESSAGES.into()));
    group.bench_function("records", |b| {
        b.iter(|| {
            let view = IndexView::parse(black_box(&file)).unwrap();
            view.records().map(|record| record.unwrap().size).sum::<u64>()
        });
    });
    group.bench_function("digest", |b| {
        b.iter(|| {
            let view = IndexView::parse(black_box(&file)).unwrap();
            let mut groups = Groups::default();
            groups.resize(view.len());
            let mut grouping = groups.grouping();
            (0..).zip(view.records()).for_each(|(n, record)| grouping.add(n, &record.unwrap()));
            grouping.close();
            groups.digest()
        });
    });
    group.finish();
}

/// A mailboxes.db as a flat file: a hundred mailboxes for each of a hundred users.
fn mailboxes(c: &mut Criterion) {
    let record = |n: u32| {
        let name = format!("Nuser\x1fu{:03}\x1ff{:03}", n / 100, n % 100);
        let value =
            format!("%(A %(u{0} lrswipkxtecdan) I id{n} P default V 1 M 1 C 1 F 1)", n / 100);
        format!("{name}\t{value}\n")
    };
    let mut lines: Vec<String> = (0..MAILBOXES).map(record).collect();
    lines.sort();
    let file = Bytes::from(lines.concat());
    let user = MailboxName::from_internal(b"user.u050").unwrap();
    let mut group = c.benchmark_group("mailboxes.db");
    group.bench_function("one user of 100, flat", |b| {
        b.iter(|| {
            let database = Database::open(black_box(file.clone()), &Engine::Flat).unwrap();
            MailboxList::from_database(&database).unwrap().tree(&user).unwrap().len()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = index, mailboxes
}
criterion_main!(benches);
