//! Why a phase of a move did not succeed, and what that means for the move.

use super::peer::PeerError;
use super::route;
use crate::moves::{Event, Phase};
use crate::wire::v1;
use std::time::Duration;

/// Why a phase did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Route(#[from] route::RouteError),
    #[error("{0}")]
    Refused(String),
    /// What the journals say does not fit together.
    #[error("{text}")]
    Contradiction { text: String, state: &'static str, advice: String },
    #[error("interrupted")]
    Interrupted,
    #[error("the freeze limit of {0:?} was reached")]
    Limit(Duration),
    #[error("the other side did not answer within {0:?}")]
    Silence(Duration),
}

impl Trouble {
    pub(super) fn event(&self, phase: Phase) -> Event {
        match self {
            Self::Limit(_) => Event::LimitReached,
            Self::Peer(e) if e.kind() == Some(v1::failure::Kind::Limit) => Event::LimitReached,
            Self::Peer(e) if e.outcome_unknown() => lost(phase),
            Self::Silence(_) => lost(phase),
            _ => Event::Failed,
        }
    }

    /// Whether a step was given up in its middle: what such a connection says
    /// next belongs to something else.
    pub(super) fn breaks_connections(&self) -> bool {
        matches!(self, Self::Silence(_) | Self::Interrupted)
    }
}

/// What it means for a phase that its answer never came.
fn lost(phase: Phase) -> Event {
    match phase {
        Phase::Publishing | Phase::Unpublishing | Phase::Retiring => Event::OutcomeUnknown,
        _ => Event::Failed,
    }
}
