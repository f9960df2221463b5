//! Carrying over what reached the source after the user was published on the
//! target: first while the source is in use, then the rest of it while it is
//! frozen, so that the freeze is short.

use super::Push;
use super::report::Carried;
use super::trouble::Trouble;
use crate::moves::Server;
use crate::wire::frame::Kind;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use std::time::{Duration, Instant};

/// A round that took less than this part of the freeze limit is followed by the
/// last one.
const READY_PART: u32 = 4;

impl Push<'_> {
    /// Carries over what the source has and the target has not. The source is
    /// frozen before and after.
    pub(super) async fn carry_over(&mut self) -> Result<(), Trouble> {
        self.thaw().await?;
        let mut before = Duration::MAX;
        for _ in 0..self.options.max_rounds {
            self.stop_if_asked()?;
            let began = Instant::now();
            self.carry_round().await?;
            let took = began.elapsed();
            // Where about as much comes as is carried, only a freeze ends it, the sooner
            // the shorter.
            if took < self.options.max_freeze / READY_PART || took > before / 2 {
                break;
            }
            before = took;
        }
        self.freeze().await?;
        let (found, carried) = self.carry_round().await?;
        let left = (found.problems.len() + carried.problems.len()) as u64;
        self.problems(Server::Source, &found.problems);
        self.problems(Server::Target, &carried.problems);
        let v1::Carried { messages, flags, expunged, mailboxes, other, .. } = carried;
        let carried = Carried { messages, flags, expunged, mailboxes, other, left };
        self.report.carried = Some(carried);
        self.note(carried.to_string());
        Ok(())
    }

    async fn carry_round(&mut self) -> Result<(v1::StragglersFound, v1::Carried), Trouble> {
        self.source.begin(Op::FindStragglers(v1::FindStragglers {})).await?;
        self.target.begin(Op::OfferStragglers(v1::OfferStragglers {})).await?;
        let found = loop {
            let frame = self.source.next().await?;
            match frame.kind {
                Kind::Part => self.target.relay(Kind::Part, frame.payload).await?,
                Kind::Reply => match self.source.decode_reply(&frame) {
                    Ok(Answer::StragglersFound(found)) => break found,
                    Ok(_) => return Err(self.source.unexpected("list of stragglers").into()),
                    Err(error) => {
                        // End the target's half too, so that it stays usable.
                        self.target.part(None).await?;
                        let _ = self.target.reply().await;
                        return Err(error.into());
                    }
                },
                _ => return Err(self.source.unexpected("list of stragglers").into()),
            }
        };
        let part = v1::part::Part::StragglersFound(found.clone());
        self.target.part(Some(part)).await?;
        self.target.part(None).await?;
        let Answer::Wants(wants) = self.target.reply().await? else {
            return Err(self.target.unexpected("list of what is wanted").into());
        };
        self.send(wants, false).await?;
        match self.target.call(Op::Carry(v1::Carry {})).await? {
            Answer::Carried(carried) => Ok((found, carried)),
            _ => Err(self.target.unexpected("account of what was carried over").into()),
        }
    }
}
