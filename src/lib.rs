//! mbcopy

pub mod cyrus;
