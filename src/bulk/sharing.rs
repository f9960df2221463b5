//! The end of what the users of a run have shared on a target.

use super::pulse::{self, Target};
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use std::time::Duration;

/// How long a target may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Has a target remove the links that a run has kept there.
///
/// Errors: why it has not; they only take the room of messages that users delete.
pub async fn end(target: &Target, run: &str) -> Result<(), String> {
    let ended = async {
        let (_session, mut peer) = pulse::connect(target, v1::Role::Target).await?;
        let op = Op::EndSharing(v1::EndSharing { run: run.to_owned() });
        match peer.call(op).await.map_err(|e| e.to_string())? {
            Answer::SharingEnded(_) => Ok(()),
            _ => Err(peer.unexpected("end of sharing").to_string()),
        }
    };
    let silent = |_| Err(format!("no answer within {PATIENCE:?}"));
    tokio::time::timeout(PATIENCE, ended).await.unwrap_or_else(silent)
}
