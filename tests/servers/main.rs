//! Moves between real Cyrus servers of the lab, as an admin would run them.
//!
//! Needs root, and the roots that `make lab` builds once. The tests use the
//! same hosts and run one after the other (`--test-threads=1`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod archive;
mod bulk;
mod chaos;
mod clock;
mod commands;
mod crash;
mod dav;
mod doctor;
mod engines;
mod failures;
mod forgotten;
mod inspect;
mod layouts;
mod live;
mod many;
mod murder;
mod offline;
mod old_live;
mod power;
mod preflight;
mod repeat;
mod reverse;
mod rich;
mod search;
mod shared;
mod stragglers;
mod support;
mod verify;
mod versions;
mod wrecks;
