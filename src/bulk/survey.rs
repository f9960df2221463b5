//! Who is on the source, as its inspecting agent tells.

use super::resolve::Top;
use crate::push::peer::{Peer, PeerError};
use crate::wire::frame::{FrameError, Kind};
use crate::wire::printable;
use crate::wire::v1::{self, part::Part, reply::Result as Answer, request::Op};

/// Everybody that could be moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// Users, and mailboxes that nobody owns.
    pub tops: Vec<Top>,
    /// Whether `/` separates there.
    pub unix_separator: bool,
}

/// Asks an inspecting agent; with how many messages and bytes, if `sizes`.
pub async fn survey(peer: &mut Peer, sizes: bool) -> Result<Survey, PeerError> {
    peer.begin(Op::ListTops(v1::ListTops { sizes })).await?;
    let mut survey = Survey::default();
    loop {
        let frame = peer.next().await?;
        match frame.kind {
            Kind::Part => {
                let part: v1::Part = frame.decode("part").map_err(|e| malformed(peer, e))?;
                match part.part {
                    Some(Part::TopList(list)) => survey.tops.extend(list.tops.into_iter().map(top)),
                    _ => return Err(peer.unexpected("list of users")),
                }
            }
            _ => match peer.decode_reply(&frame)? {
                Answer::TopsListed(listed) => {
                    survey.unix_separator = listed.unix_separator;
                    return Ok(survey);
                }
                _ => return Err(peer.unexpected("list of users")),
            },
        }
    }
}

fn malformed(peer: &Peer, source: FrameError) -> PeerError {
    PeerError::Protocol { server: peer.server().to_owned(), source }
}

fn top(top: v1::Top) -> Top {
    Top {
        name: printable(&top.display),
        userid: printable(&top.userid),
        partition: printable(&top.partition),
        away: printable(&top.away),
        mailboxes: top.mailboxes,
        messages: top.messages,
        bytes: top.bytes,
    }
}
