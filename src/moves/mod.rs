//! A move: its phases and transitions (pure), and the journal that each server
//! keeps of it.

mod held;
pub mod id;
pub mod journal;
pub mod phase;
pub mod sealed;
#[cfg(test)]
mod search;
pub mod verdict;

pub use id::MoveId;
pub use journal::{Journal, JournalError};
pub use phase::{Event, Phase, Server};
