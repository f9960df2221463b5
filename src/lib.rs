//! mbcopy moves mailboxes between Cyrus IMAP servers while the mail keeps flowing.
//!
//! A move has three processes: the coordinator ([`push`]) and an agent on each
//! server ([`source`], [`target`]), which speak the protocol of [`wire`]. What
//! they know of Cyrus is in [`cyrus`], pure; what touches the machine is in
//! [`host`], what speaks with a Murder's master in [`murder`]. [`moves`] says what a move is, and remembers it; [`bulk`] moves many.
//! [`show`] makes documents of what is read, for people.

pub mod agent;
pub mod bulk;
pub mod cli;
pub mod cyrus;
pub mod doctor;
pub mod fault;
pub mod host;
pub mod inspect;
pub mod inventory;
pub mod moves;
pub mod murder;
pub mod push;
pub mod repair;
pub mod show;
pub mod source;
pub mod target;
mod tls;
pub mod transport;
pub mod verify;
pub mod wire;
