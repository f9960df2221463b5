//! Moves between real Cyrus servers of the lab, as an admin would run them.
//!
//! Needs root, and the roots that `make lab` builds once. The tests use the
//! same hosts and run one after the other (`--test-threads=1`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod again;
mod archive;
mod bulk;
mod chaos;
mod clock;
mod commands;
mod course;
mod crash;
mod dav;
mod doctor;
mod engines;
mod failures;
mod forgotten;
mod hold;
mod inspect;
mod late;
mod layouts;
mod links;
mod live;
mod many;
mod murder;
mod offline;
mod old_live;
mod plans;
mod power;
mod preflight;
mod repeat;
mod reverse;
mod rich;
mod routing;
mod scheduler;
mod search;
mod shared;
mod stragglers;
mod support;
mod told;
mod verify;
mod versions;
mod ways;
mod wrecks;
