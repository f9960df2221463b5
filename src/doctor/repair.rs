//! Carrying a repair out: the agents do the steps, one after the other, and after them
//! both servers are looked at again, until nothing is wrong.

use super::diagnose::{Both, Diagnosis, State, diagnose};
use super::look;
use super::plan::{self, Carried, NoPlan, Plan};
use super::seen::{Seen, Standing};
use crate::fault::{self, Point};
use crate::host::imap::is_flag;
use crate::moves::MoveId;
use crate::push::peer::{Peer, PeerError};
use crate::verify::finding::Side;
use crate::wire::MAX_MESSAGE;
use crate::wire::frame::Kind;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeSet;

/// How often both servers are looked at before it is given up.
const ROUNDS: usize = 6;

/// The longest that clients of the copy that is put aside wait.
const HELD_MS: u32 = 60_000;

/// Bytes of one data frame.
const CHUNK: usize = 256 << 10;

/// The agents of both servers, and the name by which the other one was asked for.
pub struct Peers<'a> {
    /// This server's.
    pub here: &'a mut Peer,
    /// The other one's.
    pub there: &'a mut Peer,
    /// What the admin calls the other server.
    pub destination: &'a str,
}

/// What both servers have of a user.
#[derive(Debug, Clone)]
pub struct Case {
    /// The user, as an admin types him.
    pub mailbox: String,
    /// His internal name.
    pub name: Bytes,
    /// What this server has.
    pub here: Seen,
    /// What the other one has.
    pub there: Seen,
}

impl Case {
    /// For a diagnosis.
    pub fn both(&self) -> Both<'_> {
        Both { here: &self.here, there: &self.there }
    }
}

/// What a repair has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Done {
    /// Records that are live again or removed.
    pub records: usize,
    /// Messages that were carried over.
    pub messages: usize,
    /// Mailboxes that were made for them.
    pub mailboxes: usize,
    /// Mailboxes that were put aside.
    pub put_aside: usize,
    /// Mailboxes for which a Murder's list was made right.
    pub listed: usize,
    /// Mailboxes that a Murder's list has forgotten.
    pub forgotten: usize,
}

/// Why a repair stopped.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A step failed.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// There is no plan any more.
    #[error("{0}")]
    Stopped(String),
}

/// Looks at both servers: each is also asked for what no record of its own leads to.
pub async fn look(peers: &mut Peers<'_>, ask: v1::Examine) -> Result<Case, PeerError> {
    let (mut here, identity) = look::examine(peers.here, ask, "").await?;
    let ask = |ids| v1::Examine { name: identity.name.clone(), ids, ..v1::Examine::default() };
    let (there, _) = look::examine(peers.there, ask(ids(&here)), peers.destination).await?;
    let known: BTreeSet<&str> = here.mailboxes.iter().map(|m| m.id.as_str()).collect();
    let theirs = ids(&there);
    if theirs.iter().any(|id| !known.contains(id.as_str())) {
        here = look::examine(peers.here, ask(theirs), "").await?.0;
    }
    let mailbox = crate::wire::printable(&identity.display);
    Ok(Case { mailbox, name: identity.name, here, there })
}

/// The ids of all that has files.
fn ids(seen: &Seen) -> Vec<String> {
    let all = seen.mailboxes.iter().filter(|m| m.has_index && !m.id.is_empty());
    all.map(|m| m.id.clone()).collect()
}

/// Carries repairs out until the user is whole; whether a push is to end it.
pub async fn repair(
    peers: &mut Peers<'_>,
    name: &Bytes,
    to: Option<Side>,
    tell: &dyn Fn(&str),
) -> Result<(Done, bool), RepairError> {
    let mut done = Done::default();
    let mut push = false;
    let case = look(peers, named(name)).await?;
    begin(peers, &case).await?;
    for _ in 0..ROUNDS {
        // Now nobody else works on the user.
        let case = look(peers, named(name)).await?;
        let diagnosis = diagnose(case.both());
        let plan = match plan::plan(case.both(), &diagnosis, to) {
            Ok(plan) => plan,
            Err(NoPlan::Other(_)) if diagnosis.state == State::Nobody && done.forgotten > 0 => {
                return Ok((done, false));
            }
            Err(NoPlan::Nothing) => {
                // A push that follows works on him.
                for side in Side::BOTH {
                    end(peers, side, true).await?;
                }
                return Ok((done, push && !is_on(&case, to)));
            }
            Err(NoPlan::Other(text)) => return Err(RepairError::Stopped(text)),
        };
        push |= plan.push;
        let murder = diagnosis.list.is_some();
        let mut run = Run { peers: &mut *peers, tell, done: &mut done, murder };
        run.once(&case, &diagnosis, plan).await?;
    }
    Err(RepairError::Stopped("something changes again and again: look at it once more".into()))
}

/// Takes the right to work on the user on both servers.
async fn begin(peers: &mut Peers<'_>, case: &Case) -> Result<(), PeerError> {
    let id = MoveId::random();
    for side in Side::BOTH {
        let begin = v1::BeginRepair {
            name: case.name.clone(),
            move_id: id.to_string(),
            peer: case.both().on(side.other()).server().to_owned(),
        };
        peers.call(side, Op::BeginRepair(begin), |a| matches!(a, Answer::RepairBegun(_))).await?;
    }
    Ok(())
}

async fn end(peers: &mut Peers<'_>, side: Side, leave: bool) -> Result<(), PeerError> {
    let op = Op::EndRepair(v1::EndRepair { leave });
    peers.call(side, op, |a| matches!(a, Answer::RepairEnded(_))).await.map(drop)
}

/// A question for a user by his internal name.
pub fn named(name: &Bytes) -> v1::Examine {
    v1::Examine { name: name.clone(), ..v1::Examine::default() }
}

/// Whether the user is on that server.
fn is_on(case: &Case, to: Option<Side>) -> bool {
    to.is_none_or(|side| case.both().on(side).any(Standing::Live))
}

impl Peers<'_> {
    fn on(&mut self, side: Side) -> &mut Peer {
        match side {
            Side::Here => self.here,
            Side::There => self.there,
        }
    }

    async fn call(
        &mut self,
        side: Side,
        op: Op,
        is_due: impl Fn(&Answer) -> bool,
    ) -> Result<Answer, PeerError> {
        let peer = self.on(side);
        let answer = peer.call(op).await?;
        if is_due(&answer) { Ok(answer) } else { Err(peer.unexpected("answer")) }
    }
}

struct Run<'a, 'p> {
    peers: &'a mut Peers<'p>,
    tell: &'a dyn Fn(&str),
    done: &'a mut Done,
    /// Whether the servers are of a Murder.
    murder: bool,
}

impl Run<'_, '_> {
    /// One plan, from its first step to its last.
    async fn once(
        &mut self,
        case: &Case,
        diagnosis: &Diagnosis,
        plan: Plan,
    ) -> Result<(), RepairError> {
        let (right, wrong) = (plan.right, plan.right.other());
        if !plan.restore.is_empty() || !plan.taken.is_empty() {
            let restored = plan.restore.iter().map(|r| v1::Restored {
                name: r.name.clone().into(),
                unique_id: r.id.clone(),
                remove: r.remove,
                folder_modseq: r.modseqs[0],
                created_modseq: r.modseqs[1],
            });
            let mailboxes = restored.collect();
            let taken = plan.taken.iter().cloned().collect();
            let op = Op::Restore(v1::Restore { mailboxes, taken });
            self.peers.call(right, op, |a| matches!(a, Answer::RestoreDone(_))).await?;
            self.done.records += plan.restore.len();
        }
        if !plan.restore.is_empty() {
            (self.tell)(&format!("{} records are made right", plan.restore.len()));
        }
        if plan.list {
            // What frontends reach again is right, if not yet all that there is.
            let op = Op::TakeRoute(v1::TakeRoute {});
            let taken = self.peers.call(right, op, |a| matches!(a, Answer::RouteTaken(_))).await?;
            if let Answer::RouteTaken(taken) = taken {
                self.done.listed = taken.mailboxes as usize;
                let server = case.both().on(right).server();
                (self.tell)(&format!("the list leads to {server}: {} mailboxes", taken.mailboxes));
            }
            fault::point(Point::RepairListed);
        }
        for (side, names) in &plan.forget {
            self.forget(*side, names).await?;
        }
        // First while both are in use, then the rest of it.
        self.carry(&plan).await?;
        fault::point(Point::RepairCarried);
        if plan.put_aside {
            let op = Op::HoldUser(v1::HoldUser { limit_ms: HELD_MS });
            self.peers.call(wrong, op, |a| matches!(a, Answer::UserHeld(_))).await?;
            let again = look(self.peers, named(&case.name)).await?;
            let now = diagnose(again.both());
            let rest = plan::rest(again.both(), &plan);
            if diagnosis.state != State::OurRepair && now.state == State::Unknown {
                let text = "the state is another one now: nothing was put aside";
                return Err(RepairError::Stopped(text.into()));
            }
            self.carry(&Plan { carry: rest, ..plan.clone() }).await?;
            fault::point(Point::RepairHeld);
            let server = case.both().on(right).server().to_owned();
            let ids = ids(again.both().on(right));
            let op = Op::PutAside(v1::PutAside { server, ids });
            let answer =
                self.peers.call(wrong, op, |a| matches!(a, Answer::PutAsideDone(_))).await?;
            if let Answer::PutAsideDone(aside) = answer {
                self.done.put_aside += aside.mailboxes as usize;
                (self.tell)(&format!("{} mailboxes are put aside", aside.mailboxes));
            }
        }
        end(self.peers, right, false).await?;
        Ok(())
    }

    /// Has a Murder's list forget what it has on a server.
    async fn forget(&mut self, side: Side, names: &[Vec<u8>]) -> Result<(), RepairError> {
        let names = names.iter().map(|name| Bytes::copy_from_slice(name)).collect();
        let op = Op::ForgetListed(v1::ForgetListed { names });
        let answer = self.peers.call(side, op, |a| matches!(a, Answer::ListedForgotten(_))).await?;
        if let Answer::ListedForgotten(forgotten) = answer
            && forgotten.mailboxes > 0
        {
            self.done.forgotten += forgotten.mailboxes as usize;
            (self.tell)(&format!("the list has forgotten {} mailboxes", forgotten.mailboxes));
        }
        Ok(())
    }

    async fn carry(&mut self, plan: &Plan) -> Result<(), RepairError> {
        for mailbox in &plan.carry {
            if mailbox.create {
                if self.murder {
                    // No server makes a mailbox that the list has on another one.
                    self.forget(plan.right.other(), std::slice::from_ref(&mailbox.to)).await?;
                }
                let name = mailbox.to.clone().into();
                let op = Op::MakeMailbox(v1::MakeMailbox { name });
                self.peers.call(plan.right, op, |a| matches!(a, Answer::MailboxMade(_))).await?;
                self.done.mailboxes += 1;
            }
            for (uid, _) in &mailbox.messages {
                self.carry_one(plan.right, mailbox, *uid).await?;
            }
            (self.tell)(&format!("{}: {} messages", mailbox.display, mailbox.messages.len()));
        }
        Ok(())
    }

    async fn carry_one(
        &mut self,
        right: Side,
        mailbox: &Carried,
        uid: u32,
    ) -> Result<(), RepairError> {
        let from = self.peers.on(right.other());
        let read = v1::ReadMessage {
            name: mailbox.name.clone().into(),
            unique_id: mailbox.id.clone(),
            uid,
        };
        from.begin(Op::ReadMessage(read)).await?;
        let mut message = BytesMut::new();
        let read = loop {
            let frame = from.next().await?;
            if frame.kind == Kind::Data {
                if message.len() + frame.payload.len() > MAX_MESSAGE {
                    return Err(from.unexpected("message").into());
                }
                message.extend_from_slice(&frame.payload);
                continue;
            }
            match from.decode_reply(&frame)? {
                Answer::MessageRead(read) => break read,
                _ => return Err(from.unexpected("message").into()),
            }
        };
        if read.gone {
            return Ok(());
        }
        for flag in read.flags.iter().filter(|flag| !is_flag(flag)) {
            let flag = crate::wire::printable(&String::from_utf8_lossy(flag));
            let of = format!("{} message {uid}", mailbox.display);
            (self.tell)(&format!("{of}: its flag {flag:.100} cannot be given, and is left out"));
        }
        let to = self.peers.on(right);
        let append = v1::AppendMessage {
            name: mailbox.to.clone().into(),
            guid: read.guid,
            internaldate: read.internaldate,
            flags: read.flags,
        };
        to.begin(Op::AppendMessage(append)).await?;
        let mut message = message.freeze();
        while !message.is_empty() {
            let chunk = message.split_to(message.len().min(CHUNK));
            to.relay(Kind::Data, chunk).await?;
        }
        to.relay(Kind::Data, Bytes::new()).await?;
        match to.reply().await? {
            Answer::MessageAppended(_) => self.done.messages += 1,
            _ => return Err(to.unexpected("answer").into()),
        }
        Ok(())
    }
}
