//! `mbcopy doctor`: what has become of a user whose move by XFER has failed, and how
//! he is made whole again.
//!
//! The agents tell what both servers have ([`seen`]), whatever state it is in;
//! [`diagnose`] is a pure function of that. A repair ([`repair`]) is a few steps, each
//! of which leads from one state that is known to another: what is interrupted is
//! diagnosed again.

pub mod diagnose;
pub mod list;
pub mod look;
pub mod plan;
pub mod repair;
pub mod report;
pub mod seen;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests;
