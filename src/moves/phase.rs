//! The phases of a move and the one table of its transitions. Pure: the
//! coordinator does what a phase asks for and feeds back what came of it.
//!
//! ```text
//! Planning ─► Copying ◄─────────────┐ (freeze limit reached,
//!                │                  │  or not ready in time)
//!                ▼                  │
//!             Freezing ─► Settling ─┤
//!                                   │
//!                  Publishing ◄─────┘ prepared
//!            ┌────────┼──────────────┐
//!            ▼        ▼              ▼
//!   CommitUnknown   Routing ──► Unpublishing ─► Failed (source serves)
//!                     │  route failed
//!                     ▼
//!                  Retiring ─► Thawing ─► Done (target serves)
//! ```
//!
//! A move that stopped after its route was changed goes on from `Planning` by
//! `Refreezing` to `Routing`.
//!
//! The commit point of the target is inside `Publishing`; the point after which
//! a move only goes forward is the end of `Routing`. Until then the route leads
//! to the source, from then on to the target: at no time to both or to none.

/// What the coordinator is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Phase {
    /// Compare both servers and look for whatever would stop the move.
    Planning,
    /// Copy in rounds, with the source in full use.
    Copying,
    /// Take the source's locks.
    Freezing,
    /// Take the source's locks again, for a move that stopped after its route
    /// was changed, and see that nothing has changed since.
    Refreezing,
    /// Send the last differences, compare, make durable: ends *prepared*.
    Settling,
    /// Let the target commit the user.
    Publishing,
    /// Point the world at the target.
    Routing,
    /// Take the user off the target again; the route has failed.
    Unpublishing,
    /// Make the source's copy unreachable, keeping every byte of it.
    Retiring,
    /// Let the waiting go.
    Thawing,
    /// The move is over; the target serves.
    Done,
    /// The move is over; nothing has changed; the source serves.
    Failed,
    /// Nobody knows whether the target has committed. The source serves and
    /// the route leads to it.
    CommitUnknown,
    /// The route leads to the target; the source is not retired yet.
    Routed,
}

/// What came of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The phase did what it is for.
    Succeeded,
    /// It did not, and has left no trace.
    Failed,
    /// The freeze limit was reached: the source is thawed.
    LimitReached,
    /// The connection to the target broke and the outcome is not known.
    OutcomeUnknown,
    /// The journals tell that the route leads to the target already.
    RouteBegun,
}

/// A server of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Server {
    /// Where the user was.
    Source,
    /// Where the user goes.
    Target,
}

impl Phase {
    /// The phase that follows; `None` when `event` cannot happen in this phase.
    pub fn after(self, event: Event) -> Option<Phase> {
        use Event::{LimitReached, OutcomeUnknown, RouteBegun, Succeeded};
        use Phase::*;
        Some(match (self, event) {
            (Planning, Succeeded) => Copying,
            (Planning, RouteBegun) => Refreezing,
            (Refreezing, Succeeded) => Routing,
            (Refreezing, Event::Failed | LimitReached) => Routed,
            (Copying, Succeeded) => Freezing,
            (Freezing, Succeeded) => Settling,
            (Settling, Succeeded) => Publishing,
            (Freezing | Settling, LimitReached) => Copying,
            (Planning | Copying | Freezing | Settling, Event::Failed) => Failed,

            (Publishing, Succeeded) => Routing,
            (Publishing, Event::Failed) => Failed,
            (Publishing | Unpublishing, OutcomeUnknown) => CommitUnknown,

            (Routing, Succeeded) => Retiring,
            (Routing, Event::Failed | LimitReached) => Unpublishing,
            (Routing, OutcomeUnknown) => Routed,
            (Unpublishing, Succeeded) => Failed,
            (Unpublishing, Event::Failed) => CommitUnknown,

            (Retiring, Succeeded) => Thawing,
            (Retiring, Event::Failed | LimitReached | OutcomeUnknown) => Routed,
            (Thawing, Succeeded | Event::Failed) => Done,
            _ => return None,
        })
    }

    /// The server that the route leads to while this phase is under way. In
    /// `Routing` the answer is the last certain one.
    pub fn serving(self) -> Server {
        match self {
            Phase::Refreezing | Phase::Retiring | Phase::Thawing | Phase::Done | Phase::Routed => {
                Server::Target
            }
            _ => Server::Source,
        }
    }

    /// Whether the coordinator has nothing left to do.
    pub fn is_final(self) -> bool {
        matches!(self, Phase::Done | Phase::Failed | Phase::CommitUnknown | Phase::Routed)
    }

    /// Whether the source is frozen while this phase is under way.
    pub fn is_frozen(self) -> bool {
        use Phase::{Publishing, Retiring, Routing, Settling, Thawing, Unpublishing};
        matches!(self, Settling | Publishing | Routing | Unpublishing | Retiring | Thawing)
    }

    /// Every phase.
    pub const ALL: [Phase; 14] = [
        Phase::Planning,
        Phase::Copying,
        Phase::Freezing,
        Phase::Refreezing,
        Phase::Settling,
        Phase::Publishing,
        Phase::Routing,
        Phase::Unpublishing,
        Phase::Retiring,
        Phase::Thawing,
        Phase::Done,
        Phase::Failed,
        Phase::CommitUnknown,
        Phase::Routed,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: [Event; 5] = [
        Event::Succeeded,
        Event::Failed,
        Event::LimitReached,
        Event::OutcomeUnknown,
        Event::RouteBegun,
    ];

    #[test]
    fn a_phase_goes_on_exactly_when_it_is_not_final() {
        for phase in Phase::ALL {
            let goes_on = EVENTS.iter().any(|e| phase.after(*e).is_some());
            assert_eq!(goes_on, !phase.is_final(), "{phase:?}");
            if goes_on {
                assert!(phase.after(Event::Succeeded).is_some(), "{phase:?} can succeed");
            }
        }
    }

    #[test]
    fn the_server_changes_only_when_routing_succeeds() {
        for phase in Phase::ALL {
            for event in EVENTS {
                let Some(next) = phase.after(event) else { continue };
                if phase.serving() != next.serving() {
                    // The other two tell of a route that an earlier run changed.
                    assert!(
                        matches!(
                            (phase, event),
                            (Phase::Routing, Event::Succeeded | Event::OutcomeUnknown)
                                | (Phase::Planning, Event::RouteBegun)
                                | (Phase::Refreezing, Event::Succeeded)
                        ),
                        "{phase:?} {event:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_end_can_be_reached_and_nothing_else_is_an_end() {
        let mut reached = vec![Phase::Planning];
        let mut at = 0;
        while let Some(phase) = reached.get(at).copied() {
            at += 1;
            for next in EVENTS.iter().filter_map(|e| phase.after(*e)) {
                if !reached.contains(&next) {
                    reached.push(next);
                }
            }
        }
        assert_eq!(reached.len(), Phase::ALL.len());
    }
}
