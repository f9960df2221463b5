//! Places where a test can kill the process, to see what a crash there leaves,
//! and steps that it can have left out, to see that their lack is noticed.
//!
//! Compiled in by the feature `faults` only. A process that reaches the point
//! whose name stands in the file `/run/mbcopy-fault` ends there at once, as if
//! killed; the file is removed first, so that it happens once.

/// Every such place. A test goes through all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// The coordinator has planned.
    Planned,
    /// The coordinator has copied.
    Copied,
    /// The source is frozen.
    Frozen,
    /// The target says that it is prepared.
    Settled,
    /// The target's journal says that it publishes.
    PublishBegun,
    /// The target has renamed one directory.
    PublishRenamedOne,
    /// The target has renamed all directories.
    PublishRenamed,
    /// The target has written annotations and quota roots.
    PublishAnnotated,
    /// The target has committed, its journal does not know it yet.
    PublishCommitted,
    /// The target's journal says that it has published.
    PublishRecorded,
    /// The coordinator knows that the target has published.
    Published,
    /// The route was changed, no journal knows it yet.
    RouteChanged,
    /// Both journals know that the route was changed.
    Routed,
    /// The source's journal says that it retires.
    RetireBegun,
    /// The source's records are changed.
    RetireCommitted,
    /// The source has renamed one directory.
    RetireRenamedOne,
    /// The source has renamed all directories.
    RetireRenamed,
    /// The source's journal says that it is retired.
    Retired,
    /// The source is thawed.
    Thawed,
    /// The target has ended the move, the source has not.
    TargetFinished,
}

impl Point {
    /// Every place.
    pub const ALL: [Point; 20] = [
        Point::Planned,
        Point::Copied,
        Point::Frozen,
        Point::Settled,
        Point::PublishBegun,
        Point::PublishRenamedOne,
        Point::PublishRenamed,
        Point::PublishAnnotated,
        Point::PublishCommitted,
        Point::PublishRecorded,
        Point::Published,
        Point::RouteChanged,
        Point::Routed,
        Point::RetireBegun,
        Point::RetireCommitted,
        Point::RetireRenamedOne,
        Point::RetireRenamed,
        Point::Retired,
        Point::Thawed,
        Point::TargetFinished,
    ];
}

/// Ends the process here if a test wants it to.
pub fn point(point: Point) {
    #[cfg(feature = "faults")]
    {
        const FILE: &str = "/run/mbcopy-fault";
        let wanted = std::fs::read_to_string(FILE).unwrap_or_default();
        if wanted.trim() == format!("{point:?}") {
            // An agent is not root, but the test makes the file writable; a
            // directory it cannot write to keeps the file, so empty it, too.
            let _ = std::fs::write(FILE, "");
            let me = rustix::process::getpid();
            let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
        }
    }
    let _ = point;
}

/// Things that a test can have left undone, to see that their lack is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The target does not put its stage onto stable storage.
    SkipSync,
    /// The journal is not put onto stable storage.
    JournalUnsynced,
}

impl Sabotage {
    /// The word for it in the file `/run/mbcopy-sabotage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::SkipSync => "skip-sync",
            Self::JournalUnsynced => "journal-unsynced",
        }
    }
}

/// Whether a test wants this left undone; never in a release.
pub fn sabotaged(sabotage: Sabotage) -> bool {
    #[cfg(feature = "faults")]
    return std::fs::read_to_string("/run/mbcopy-sabotage")
        .is_ok_and(|words| words.split_whitespace().any(|word| word == sabotage.as_str()));
    #[cfg(not(feature = "faults"))]
    {
        let _ = sabotage;
        false
    }
}
