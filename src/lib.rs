//! mbcopy moves mailboxes between Cyrus IMAP servers while the mail keeps flowing.

pub mod agent;
pub mod cyrus;
pub mod moves;
pub mod push;
pub mod wire;
