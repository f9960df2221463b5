//! mbcopy

pub mod transport;
