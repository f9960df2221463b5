//! What Cyrus IMAP keeps on disk, read natively.
//!
//! Everything here is pure: bytes in, values out, no input or output.  Every
//! parser is total: any bytes give either a value or an error that names the
//! offset and the reason.

pub mod annotation;
pub mod cache;
pub mod config;
pub mod db;
pub mod dlist;
pub mod downgrade;
pub mod guid;
pub mod header;
pub mod imap_set;
pub mod index;
pub mod lock;
pub mod mboxlist;
pub mod name;
pub mod path;
pub mod quota;
pub mod release;
pub mod seen;
pub mod sieve;
pub mod subscription;
pub mod upgrade;
