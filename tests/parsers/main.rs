//! Every parser is total: any bytes give a value or an error, without a panic, an
//! endless loop or memory that the input's size does not justify. The same checks run
//! for longer as fuzz targets (`make fuzz`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checks;
mod measure;
mod sealed;
mod seeds;

use bytes::Bytes;
use checks::{Check, FORMATS};
use measure::within_reason;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

#[global_allocator]
static COUNTING: measure::Counting = measure::Counting;

fn seeds() -> &'static seeds::Seeds {
    static SEEDS: OnceLock<seeds::Seeds> = OnceLock::new();
    SEEDS.get_or_init(|| {
        seeds::all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/spools"))
    })
}

fn fuzz(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder)
}

#[test]
fn files_of_real_servers_hold_what_must_hold() {
    for (name, check) in FORMATS {
        let seeds = seeds().get(name).unwrap_or_else(|| panic!("no file of {name}"));
        assert!(seeds.len() >= 3, "{name}: {}", seeds.len());
        seeds.iter().for_each(|bytes| within_reason(name, check, bytes));
    }
}

/// What fuzzing has found stays mended.
#[test]
fn what_was_found_stays_mended() {
    let mut tried = 0;
    for (name, check) in FORMATS {
        let Ok(found) = std::fs::read_dir(fuzz("found").join(name)) else { continue };
        for file in found {
            within_reason(name, check, &std::fs::read(file.unwrap().path()).unwrap());
            tried += 1;
        }
    }
    println!("{tried} inputs");
}

#[test]
fn every_format_has_a_fuzz_target() {
    for (name, _) in FORMATS {
        let target = fuzz("fuzz_targets").join(format!("{name}.rs"));
        let text = std::fs::read_to_string(&target).unwrap();
        assert!(text.contains(&format!("\"{name}\"")), "{}", target.display());
    }
}

/// A change to a file.
#[derive(Debug, Clone)]
enum Damage {
    Byte(usize, u8),
    Word(usize, u32),
    Cut(usize),
    Remove(usize, usize),
    Repeat(usize, usize),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let at = |n: usize| n % bytes.len().max(1);
        match *self {
            _ if bytes.is_empty() => {}
            Self::Byte(n, value) => {
                let n = at(n);
                bytes[n] = value;
            }
            Self::Word(n, value) => {
                let n = at(n) & !3;
                if let Some(place) = bytes.get_mut(n..n + 4) {
                    place.copy_from_slice(&value.to_be_bytes());
                }
            }
            Self::Cut(n) => bytes.truncate(at(n)),
            Self::Remove(n, length) => {
                let n = at(n);
                bytes.drain(n..(n + length).min(bytes.len()));
            }
            Self::Repeat(n, length) => {
                let n = at(n);
                let part = bytes[n..(n + length).min(bytes.len())].to_vec();
                bytes.splice(n..n, part);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let length = 0..100usize;
    let small = prop_oneof![0..200u32, any::<u32>(), Just(u32::MAX)];
    let one = prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(n, value)| Damage::Byte(n, value)),
        (any::<usize>(), small).prop_map(|(n, value)| Damage::Word(n, value)),
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), length.clone()).prop_map(|(n, length)| Damage::Remove(n, length)),
        (any::<usize>(), length).prop_map(|(n, length)| Damage::Repeat(n, length)),
    ];
    proptest::collection::vec(one, 1..5)
}

fn damaged() -> impl Strategy<Value = (&'static str, Check, Vec<u8>)> {
    let formats = proptest::sample::select(&FORMATS[..]);
    (formats, any::<proptest::sample::Index>(), damage()).prop_map(
        |((name, check), which, damage)| {
            let files: Vec<&Bytes> = seeds()[name].iter().collect();
            let mut bytes = files[which.index(files.len())].to_vec();
            damage.iter().for_each(|damage| damage.apply(&mut bytes));
            (name, check, bytes)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn damaged_files_hold_what_must_hold((name, check, bytes) in damaged()) {
        within_reason(name, check, &bytes);
    }

    #[test]
    fn any_bytes_hold_what_must_hold(
        (name, check) in proptest::sample::select(&FORMATS[..]),
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
    ) {
        within_reason(name, check, &bytes);
    }
}
