//! Who goes first: the users of a server, before what is copied while nobody is frozen.

/// How much less of the processors whoever yields gets, where they are wanted by others.
const NICE: i32 = 10;

/// Lets others go first, for as long as the calling thread lives and in what it starts: only
/// root may take that back.
pub fn yield_to_others() {
    // Whoever may not is as urgent as before.
    let _ = rustix::process::nice(NICE);
}
