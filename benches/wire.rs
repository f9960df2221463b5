//! How fast bulk data passes: the copy's own share of the work.
#![allow(clippy::unwrap_used)]

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mbcopy::wire::bulk::Chunk;
use mbcopy::wire::frame::{Frame, FrameReader, OPENING};
use mbcopy::wire::manifest::{self, Entry};
use mbcopy::wire::pool::Pool;
use sha1::{Digest, Sha1};
use std::hint::black_box;

/// Size of a usual message, in bytes.
const MESSAGE: usize = 8 << 10;
/// Messages of one frame.
const PACKED: usize = 30;

fn frame() -> Bytes {
    let bytes = Bytes::from(vec![7; MESSAGE]);
    let mut frame = BytesMut::new();
    for uid in 0..PACKED as u32 {
        let chunk = Chunk {
            mailbox: 1,
            kind: 1,
            uid,
            last: true,
            gone: false,
            compressed: false,
            patch: false,
            linked: false,
            same: None,
            size: MESSAGE as u64,
            offset: 0,
            mtime: 0,
            blake3: [0; 32],
            bytes: bytes.clone(),
        };
        chunk.encode(&mut frame);
    }
    frame.freeze()
}

fn bulk(c: &mut Criterion) {
    let payload = frame();
    let mut stream = OPENING.to_vec();
    for request in 0..40 {
        stream.extend_from_slice(&Frame::data(request, payload.clone()).encode());
    }
    let mut group = c.benchmark_group("bulk data");
    group.throughput(Throughput::Bytes(stream.len() as u64));
    group.bench_function("frames and chunks", |b| {
        let pool = Pool::default();
        b.iter(|| {
            let mut reader = FrameReader::open(black_box(&stream[..]), pool.clone()).unwrap();
            let mut bytes = 0;
            while let Some(frame) = reader.next_frame().unwrap() {
                let mut rest = frame.payload.clone();
                while !rest.is_empty() {
                    bytes += Chunk::decode(&mut rest).unwrap().bytes.len();
                }
                drop(rest);
                pool.put(frame.payload);
            }
            bytes
        });
    });
    group.finish();

    let message = vec![7; MESSAGE];
    let mut group = c.benchmark_group("hashes of a message");
    group.throughput(Throughput::Bytes(MESSAGE as u64));
    group.bench_function("BLAKE3", |b| b.iter(|| blake3::hash(black_box(&message))));
    group.bench_function("SHA-1", |b| b.iter(|| Sha1::digest(black_box(&message))));
    group.finish();
}

fn manifests(c: &mut Criterion) {
    let count = 20_000;
    let mut encoded = BytesMut::new();
    for uid in 1..=count {
        Entry { uid, expunged: false, archived: false, size: 8192, guid: [3; 20] }
            .encode(&mut encoded);
    }
    let mut group = c.benchmark_group("manifest");
    group.throughput(Throughput::Elements(count.into()));
    group.bench_function("entries", |b| {
        b.iter(|| manifest::entries(black_box(&encoded)).unwrap().map(|e| e.size).sum::<u64>());
    });
    group.finish();
}

criterion_group!(benches, bulk, manifests);
criterion_main!(benches);
