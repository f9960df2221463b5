//! The layouts against what Cyrus's own source says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::codec::Codec;
use super::layout::{At, Layout};
use super::{Header, Record, Time};
use crate::cyrus::guid::Guid;
use std::collections::BTreeMap;

/// Where each version keeps each field, computed from Cyrus's source.
const OFFSETS: &str = include_str!("../../../tests/fixtures/index-offsets.txt");

/// Names of fields, and where they are.
#[derive(Default)]
struct Places(BTreeMap<String, u16>);

impl Places {
    fn at(&mut self, name: &str, at: At) {
        let offset = match at {
            At::No => return,
            At::Word(o) | At::Seconds(o) | At::Long(o) | At::Nanos(o) => o,
        };
        // Four words of flags: the first one is what counts.
        self.0.entry(name.to_owned()).or_insert(offset);
    }
}

impl Codec for Places {
    fn word(&mut self, name: &'static str, at: At, _: &mut u32) {
        self.at(name, at);
    }
    fn long(&mut self, name: &'static str, at: At, _: &mut u64) {
        self.at(name, at);
    }
    fn time(&mut self, name: &'static str, at: At, _: &mut Time) {
        self.at(name, at);
    }
    fn guid(&mut self, at: Option<u16>, _: &mut Option<Guid>) {
        self.at("guid", at.map_or(At::No, At::Word));
    }
}

/// Of each minor version and part, its fields as Cyrus has them.
fn of_cyrus() -> BTreeMap<(u32, &'static str), BTreeMap<String, u16>> {
    let mut all: BTreeMap<_, BTreeMap<String, u16>> = BTreeMap::new();
    for line in OFFSETS.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.split(" | ").collect();
        let [minor, part, name, offset] = words[..] else { panic!("{line}") };
        let place = all.entry((minor.parse().unwrap(), part)).or_default();
        place.insert(name.to_owned(), offset.parse().unwrap());
    }
    all
}

#[test]
fn every_field_is_where_cyrus_keeps_it() {
    let all = of_cyrus();
    let minors: Vec<u32> =
        all.keys().filter(|(_, part)| *part == "header").map(|(minor, _)| *minor).collect();
    assert_eq!(minors, (2..=20).filter(|minor| *minor != 11).collect::<Vec<_>>());
    for ((minor, part), wanted) in all {
        let layout = Layout::of(minor).unwrap();
        let mut places = Places::default();
        let size = if part == "header" {
            Header::default().visit(&layout.header, &mut places);
            layout.header_size
        } else {
            Record::default().visit(&layout.record, &mut places);
            layout.record_size
        };
        if minor < 12 {
            // The number of records, under another name.
            places.0.remove("exists");
        }
        places.0.insert("whole".into(), size);
        assert_eq!(places.0, wanted, "{part} of minor {minor}");
    }
}
