//! Messages that others of the run have on the target already: the source proves that it
//! has them, too, and they are not sent.

use super::Push;
use super::trouble::Trouble;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};

impl Push<'_> {
    /// What is left to be sent of what is wanted.
    pub(super) async fn share(&mut self, mut wants: v1::Wants) -> Result<v1::Wants, Trouble> {
        while let Some(ask) = wants.prove.take() {
            self.stop_if_asked()?;
            let Answer::ContentsProven(proven) = self.source.call(Op::ProveContents(ask)).await?
            else {
                return Err(self.source.unexpected("proof of contents").into());
            };
            let before = wants.messages;
            let take = v1::TakeShared { proofs: proven.proofs };
            let Answer::Wants(left) = self.target.call(Op::TakeShared(take)).await? else {
                return Err(self.target.unexpected("list of what is wanted").into());
            };
            self.report.messages_shared += before.saturating_sub(left.messages);
            wants = left;
        }
        Ok(wants)
    }
}
