//! Places where a test can break things, to see what that leaves, and steps that
//! it can have left out, to see that their lack is noticed.
//!
//! Compiled in by the feature `faults` only. The file `/run/mbcopy-fault` holds
//! the name of a place, what is to happen there (`kill`, `hang`, `stop` until
//! SIGCONT, `wait` until the file is removed, or the error that the call returns:
//! `EIO`, `ENOSPC`, `EDQUOT`, `EACCES`), and how many times the place is passed
//! before (`0`). The file is emptied first, so that it happens once.
//!
//! The file `/run/mbcopy-sabotage` holds the name of a promise to break, to show
//! that a test notices.

use std::io;

/// Makes the places and the lists that tests go through of one table, so that no
/// place can be added that no test goes to.
macro_rules! points {
    ($( $(#[$about:meta])* $list:ident { $( $(#[$what:meta])* $point:ident, )+ } )+) => {
        /// Every such place, in the order of [`STEPS`](Point::STEPS) and so on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Point {
            $($( $(#[$what])* $point, )+)+
        }

        impl Point {
            $( $(#[$about])* pub const $list: &[Point] = &[$( Point::$point ),+]; )+
        }
    };
}

points! {
    /// The boundaries between two steps.
    STEPS {
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
        /// The source's journal knows that the route was changed, and the target is told.
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
        /// In an abort: the target has given the move up, the source has not.
        TargetGaveUp,
    }

    /// The places that are reached only when the source has stragglers.
    OF_STRAGGLERS {
        /// The target has set flags of stragglers, or removed them; its ledger does not know.
        CarryFlagged,
        /// The target has marked what it will expunge as the source has.
        CarryExpunging,
        /// The target's ledger says that it appends a straggler.
        Carrying,
        /// The target has appended a straggler, its ledger does not know it yet.
        Carried,
        /// The target's ledger of stragglers is written.
        LedgerWrite,
    }

    /// The places of a repair by `mbcopy doctor`, beside those of retiring.
    OF_REPAIR {
        /// What the records were is written down.
        RestoreSaved,
        /// The records are live again, the journal does not know it yet.
        RestoreCommitted,
        /// A mailbox is made that the other server has.
        MailboxMade,
        /// A message is carried over, the coordinator does not know it yet.
        MessageAppended,
        /// The coordinator has carried over what there was.
        RepairCarried,
        /// The other server is frozen, and the rest is carried over.
        RepairHeld,
    }

    /// The places that are reached only between backends of a Murder.
    OF_MURDERS {
        /// mupdate names this server for the first of the user's mailboxes.
        MupdateTakenOne,
        /// mupdate names this server for all of them.
        MupdateTaken,
    }

    /// The places that are reached only where a command has the MTA hold mail.
    OF_HOLDS {
        /// Both journals say that mail is held; the freeze command has not run.
        HoldNoted,
        /// The freeze command has run.
        MailHeld,
        /// The thaw command has run, the journals do not know it yet.
        MailReleased,
    }

    /// The place of a repair by `mbcopy doctor` that is reached only in a Murder.
    OF_REPAIR_IN_MURDERS {
        /// mupdate names the server on which the user becomes whole.
        RepairListed,
    }

    /// The writes that must be durable, or fail.
    WRITES {
        /// A journal is written.
        JournalWrite,
        /// A plan of publishing or retiring is written.
        SealedWrite,
        /// The target creates a file in the stage.
        StageWrite,
        /// The target puts the stage onto stable storage.
        StageSync,
        /// One of Cyrus's databases is changed.
        DatabaseWrite,
        /// A directory is renamed into its place, or out of it.
        Rename,
        /// The target writes the file of a quota root.
        QuotaWrite,
        /// The entries of a directory are put onto stable storage.
        DirectorySync,
    }

    /// The reads that may fail.
    READS {
        /// The source opens a file to send it.
        SourceRead,
    }

    /// The messages that a broken connection may swallow.
    MESSAGES {
        /// The coordinator sends a request to the source's agent.
        SourceAsked,
        /// The coordinator receives a reply of the source's agent.
        SourceAnswered,
        /// The coordinator sends a request to the target's agent.
        TargetAsked,
        /// The coordinator receives a reply of the target's agent.
        TargetAnswered,
    }
}

/// A boundary between two steps.
pub fn point(point: Point) {
    let _ = check(point);
}

/// Whether something is to happen at a place the next time it is passed: what is done in
/// one go is done in two then, so that there is a place in between.
pub fn is_armed(point: Point) -> bool {
    #[cfg(feature = "faults")]
    {
        let wanted = std::fs::read_to_string("/run/mbcopy-fault").unwrap_or_default();
        wanted.split_whitespace().next() == Some(&format!("{point:?}"))
    }
    #[cfg(not(feature = "faults"))]
    {
        let _ = point;
        false
    }
}

/// A write that may fail.
pub fn check(point: Point) -> io::Result<()> {
    #[cfg(feature = "faults")]
    {
        const FILE: &str = "/run/mbcopy-fault";
        let wanted = std::fs::read_to_string(FILE).unwrap_or_default();
        let mut words = wanted.split_whitespace();
        if words.next() != Some(&format!("{point:?}")) {
            return Ok(());
        }
        let action = words.next().unwrap_or("kill");
        let before: u32 = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        // An agent is not root, but the test makes the file writable; it could
        // not remove it.
        if before > 0 {
            return std::fs::write(FILE, format!("{point:?} {action} {}", before - 1));
        }
        let _ = std::fs::write(FILE, "");
        let errno = match action {
            "EIO" => rustix::io::Errno::IO,
            "ENOSPC" => rustix::io::Errno::NOSPC,
            "EDQUOT" => rustix::io::Errno::DQUOT,
            "EACCES" => rustix::io::Errno::ACCESS,
            "stop" => {
                let me = rustix::process::getpid();
                return Ok(rustix::process::kill_process(me, rustix::process::Signal::STOP)?);
            }
            "wait" => {
                while std::path::Path::new(FILE).exists() {
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                return Ok(());
            }
            "hang" => loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            },
            _ => {
                let me = rustix::process::getpid();
                let _ = rustix::process::kill_process(me, rustix::process::Signal::KILL);
                return Ok(());
            }
        };
        Err(errno.into())
    }
    #[cfg(not(feature = "faults"))]
    {
        let _ = point;
        Ok(())
    }
}

/// Promises that a test can have broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The source says that the user is frozen, and he is not.
    SkipFreeze,
    /// What changed since the last round is neither sent nor compared.
    PublishBeforeCompare,
    /// Nobody looks what reached the source after its freeze ended.
    ForgetStragglers,
    /// The records of a user are published one by one.
    RenameWithoutTransaction,
    /// In each mailbox the flags of one message are lost on the way.
    LoseAFlag,
    /// The target does not put its stage onto stable storage.
    SkipSync,
    /// The journal is not put onto stable storage.
    JournalUnsynced,
    /// Moves change a server's shared databases without waiting for each other.
    CommitTogether,
}

impl Sabotage {
    /// All of them, by name.
    pub const ALL: [(Sabotage, &str); 8] = [
        (Sabotage::SkipFreeze, "skip-freeze"),
        (Sabotage::PublishBeforeCompare, "publish-before-compare"),
        (Sabotage::ForgetStragglers, "forget-stragglers"),
        (Sabotage::RenameWithoutTransaction, "rename-without-transaction"),
        (Sabotage::LoseAFlag, "lose-a-flag"),
        (Sabotage::SkipSync, "skip-sync"),
        (Sabotage::JournalUnsynced, "journal-unsynced"),
        (Sabotage::CommitTogether, "commit-together"),
    ];
}

impl Sabotage {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(sabotage, _)| *sabotage == self).map_or("", |(_, name)| name)
    }
}

/// Whether this promise is to be broken; never in a release.
pub fn sabotaged(what: Sabotage) -> bool {
    #[cfg(feature = "faults")]
    {
        let word = std::fs::read_to_string("/run/mbcopy-sabotage").unwrap_or_default();
        Sabotage::ALL.contains(&(what, word.trim()))
    }
    #[cfg(not(feature = "faults"))]
    {
        let _ = what;
        false
    }
}

/// Takes the flags from the first message in a staged index that has some, if
/// this promise is to be broken.
pub fn lose_a_flag(path: &std::path::Path) {
    #[cfg(feature = "faults")]
    if sabotaged(Sabotage::LoseAFlag) {
        use crate::cyrus::index::{IndexView, write_index};
        let bytes = std::fs::read(path).unwrap_or_default();
        let Ok(index) = IndexView::parse(&bytes) else { return };
        let mut records: Vec<_> = index.records().flatten().collect();
        if let Some(record) = records.iter_mut().find(|record| record.system_flags != 0) {
            record.system_flags = 0;
        }
        let header = index.header();
        if let Ok(changed) = write_index(header.minor, header, records) {
            let _ = std::fs::write(path, changed);
        }
    }
    let _ = path;
}
