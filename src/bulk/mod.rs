//! Moves of many users: a scheduler above single moves, which never weakens what
//! they promise.
//!
//! Pure: [`plan`] (what an admin wrote), [`resolve`] (whom he means), [`state`]
//! (what becomes of each user), [`schedule`] (what to do next), [`window`], [`throttle`] (how many at
//! once). Around them, thin: [`store`] (what is known, in SQLite or PostgreSQL),
//! [`attempt`] (one move, a process of its own), [`run`] (the coordinator), [`survey`]
//! (who is on the source), [`pulse`] (how the target fares), [`sharing`], [`status`], [`report`] and
//! [`metrics`].
//!
//! Every move is a `mbcopy push` of its own process, whose standard output is a
//! file: the coordinator may die at any point, and the moves go on to their end,
//! or to where the next push takes them up. What a move has come to is in the
//! journals of the two servers, as ever; the store only says whose turn it is.

pub mod attempt;
pub mod metrics;
pub mod plan;
pub mod pulse;
pub mod report;
pub mod resolve;
pub mod run;
pub mod schedule;
pub mod sharing;
pub mod state;
pub mod status;
pub mod store;
pub mod survey;
pub mod throttle;
pub mod window;
