//! mbcopy moves mailboxes between Cyrus IMAP servers while the mail keeps flowing.

pub mod agent;
pub mod cli;
pub mod cyrus;
pub mod host;
pub mod inventory;
pub mod moves;
pub mod push;
pub mod source;
pub mod target;
pub mod transport;
pub mod wire;
