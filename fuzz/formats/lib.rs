//! mbcopy's formats and its wire alone, the same files: fuzzing needs nothing of what
//! touches a machine, which is most of the program and nearly all of its build.

#[path = "../../src/cyrus/mod.rs"]
pub mod cyrus;
#[path = "../../src/wire/mod.rs"]
pub mod wire;
