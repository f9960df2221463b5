//! What a command does with a move that an earlier one has begun, by what the
//! journals of the two servers say of it. Pure.
//!
//! Both journals say *routing* before the route may be changed: where either does,
//! the move goes forward, which is safe even if the route was not changed, so that
//! a disk that has lost one journal's last write splits nobody. The target's says so,
//! too, once clients have used what it has published. The target's journal, corrected
//! by its mailboxes.db, decides whether the target has the user.

use super::journal::state;

/// What a push does first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnPush {
    /// Begins, or goes on copying: nobody sees anything of the user on the target.
    Begin,
    /// Takes back what the target has published, unseen, and begins.
    Withdraw,
    /// Goes on from the changed route, only forward.
    Forward,
    /// Does nothing: the journals contradict each other.
    Contradiction,
}

/// What an abort does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAbort {
    /// Removes the stage.
    GiveUp,
    /// Takes back what the target has published, unseen, and removes it.
    Withdraw,
    /// Brings the route back, then the same; unless the target has had mail.
    Recall,
    /// Brings the route back; the target has nothing of the user any more.
    Restore,
    /// Does nothing: the source is retired, only a reverse move leads back.
    TooLate,
    /// Does nothing: the move is over, the source serves the user.
    Over,
    /// Does nothing: the journals contradict each other.
    Contradiction,
}

/// What a push does; `source` is empty when the source has lost its journal of
/// the move, `target` when the target knows nothing of it.
pub fn on_push(source: &str, target: &str) -> OnPush {
    match source {
        "" | state::PLANNED | state::COPYING | state::PUBLISHING if routed(target) => {
            OnPush::Forward
        }
        "" | state::PLANNED | state::COPYING | state::PUBLISHING if has_user(target) => {
            OnPush::Withdraw
        }
        "" | state::PLANNED | state::COPYING | state::PUBLISHING => OnPush::Begin,
        state::ROUTING | state::ROUTED | state::RETIRING | state::RETIRED if has_user(target) => {
            OnPush::Forward
        }
        _ => OnPush::Contradiction,
    }
}

/// What an abort does; the arguments are as for [`on_push`].
pub fn on_abort(source: &str, target: &str) -> OnAbort {
    match source {
        state::RETIRING | state::RETIRED | state::DONE | state::PURGED => OnAbort::TooLate,
        state::ABORTED => OnAbort::Over,
        // A disk has lost what one of them wrote last.
        state::ROUTING | state::ROUTED if knows_of_no_user(target) => OnAbort::Restore,
        _ => match on_push(source, target) {
            OnPush::Begin => OnAbort::GiveUp,
            OnPush::Withdraw => OnAbort::Withdraw,
            OnPush::Forward => OnAbort::Recall,
            OnPush::Contradiction => OnAbort::Contradiction,
        },
    }
}

/// Whether a source's journal says that the route may lead to the target.
pub fn route_is_changed(source: &str) -> bool {
    [state::ROUTING, state::ROUTED, state::RETIRING, state::RETIRED].contains(&source)
}

/// Whether a target's journal says that the route may lead there.
fn routed(target: &str) -> bool {
    [state::ROUTING, state::ROUTED].contains(&target)
}

/// Whether a target knows the move and has not the user.
fn knows_of_no_user(target: &str) -> bool {
    [state::PLANNED, state::COPYING, state::PREPARED].contains(&target)
}

/// Whether a target's journal says that the target has the user.
pub fn has_user(target: &str) -> bool {
    routed(target) || [state::PUBLISHED, state::DONE].contains(&target)
}
