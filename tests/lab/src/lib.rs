//! Real Cyrus servers on one machine, and the clients that exercise them.
//!
//! [`Host`] is the handle on one server; [`Seed`] fills mailboxes; [`Fingerprint`] is
//! everything a client can observe of them; [`workload`] keeps clients busy while a
//! mailbox moves and judges afterwards whether any promise to them was broken; [`power`] cuts
//! servers' power.

#![warn(missing_docs)]

pub mod browser;
pub mod chaos;
pub mod dav;
pub mod disk;
pub mod fingerprint;
pub mod host;
pub mod imap;
pub mod lmtp;
pub mod medium;
mod message;
pub mod net;
pub mod postgres;
pub mod power;
pub mod seed;
pub mod sieve;
pub mod workload;

pub use fingerprint::{Fingerprint, Take, diff};
pub use host::Host;
pub use imap::Imap;
pub use seed::Seed;

/// The password of every account on every lab host.
pub const PASSWORD: &str = "pw";
/// The administrator of every lab host.
pub const ADMIN: &str = "cyrus";
