//! Feeling the pulse of the targets of a run: how loaded they are, and how long a
//! client of theirs waits.

use super::throttle::{Beat, Ceiling, allowed, fewer};
use crate::push::peer::Peer;
use crate::transport::{ConnectOptions, Destination, Session};
use crate::wire::{printable, v1};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use v1::{reply::Result as Answer, request::Op};

/// How often.
const EVERY: Duration = Duration::from_secs(3);

/// How often is looked at an answer that is overdue.
const OVERDUE_EVERY: Duration = Duration::from_secs(1);

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// How a target is asked.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its SSH destination.
    pub destination: Destination,
    /// mbcopy there.
    pub program: String,
    /// Cyrus's configuration there.
    pub config: String,
    /// The user whom the canary logs in as; empty: there is none.
    pub canary: String,
}

/// What is known, and what follows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Pace {
    /// The target that was asked.
    pub target: String,
    /// Moves that may be under way at once.
    pub allowed: usize,
    /// Its load average of a minute, for each processor.
    pub load: f64,
    /// How long the canary took, in milliseconds; zero: there is none.
    pub canary_ms: f64,
    /// Why it is not known; empty: it is.
    pub trouble: String,
}

/// Asks a target again and again, until nobody listens any more. One move is allowed
/// before the first answer; fewer are while an answer is overdue, or where none comes.
pub fn watch(target: Target, ceiling: Ceiling, jobs: usize) -> watch::Receiver<Pace> {
    let name = target.destination.host().to_owned();
    let (tell, told) =
        watch::channel(Pace { target: name, allowed: 1.min(jobs), ..Pace::default() });
    tokio::spawn(async move {
        let mut connection = None;
        while !tell.is_closed() {
            let overdue = |waited: Duration| {
                if ceiling.is_overdue(waited) {
                    tell.send_modify(|pace| {
                        pace.allowed = fewer(pace.allowed);
                        pace.canary_ms = milliseconds(waited);
                    });
                }
            };
            let beat = answer(ask(&target, &mut connection), overdue).await;
            if beat.is_err() {
                connection = None;
            }
            tell.send_modify(|pace| match beat {
                Ok(beat) => {
                    pace.allowed = allowed(pace.allowed, jobs, &ceiling, &beat);
                    pace.load = beat.load;
                    pace.canary_ms = milliseconds(beat.latency.unwrap_or_default());
                    pace.trouble.clear();
                }
                Err(trouble) => {
                    pace.allowed = fewer(pace.allowed);
                    pace.trouble = printable(&trouble);
                }
            });
            tokio::time::sleep(EVERY).await;
        }
    });
    told
}

/// Waits for an answer, and tells meanwhile how long that has lasted: a target that is
/// slow enough would answer too late to hold anything back.
async fn answer(
    asked: impl Future<Output = Result<Beat, String>>,
    waits: impl Fn(Duration),
) -> Result<Beat, String> {
    let began = Instant::now();
    let mut asked = std::pin::pin!(asked);
    loop {
        match tokio::time::timeout(OVERDUE_EVERY, &mut asked).await {
            Ok(beat) => return beat,
            Err(_) if began.elapsed() >= PATIENCE => {
                return Err(format!("no answer within {PATIENCE:?}"));
            }
            Err(_) => waits(began.elapsed()),
        }
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

async fn ask(target: &Target, connection: &mut Option<(Session, Peer)>) -> Result<Beat, String> {
    let (_, peer) = match connection {
        Some(open) => open,
        None => connection.insert(connect(target, v1::Role::Inspect).await?),
    };
    let op = Op::FeelPulse(v1::FeelPulse { canary: target.canary.clone() });
    match peer.call(op).await.map_err(|e| e.to_string())? {
        Answer::Pulse(pulse) => Ok(Beat {
            load: if pulse.load.is_finite() { pulse.load.max(0.0) } else { 0.0 },
            latency: (!target.canary.is_empty()).then(|| Duration::from_micros(pulse.canary_us)),
        }),
        _ => Err(peer.unexpected("pulse").to_string()),
    }
}

/// Starts an agent there that only tells what it sees, or that is the target of moves.
pub(super) async fn connect(target: &Target, role: v1::Role) -> Result<(Session, Peer), String> {
    let word = if role == v1::Role::Target { "target" } else { "inspect" };
    let session = Session::connect(&target.destination, &ConnectOptions::from_env()).await;
    let session = session.map_err(|e| e.to_string())?;
    let words = [&target.program, "agent", "--role", word, "--config", &target.config];
    let process = session.exec(&words).await.map_err(|e| e.to_string())?;
    let peer = Peer::greet(session.at(), role, process.into()).await;
    Ok((session, peer.map_err(|e| e.to_string())?))
}
