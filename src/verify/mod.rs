//! `mbcopy verify`: compares what two servers have of a user.
//!
//! An agent on each server ([`crate::inspect`]) streams its copy, mailbox by
//! mailbox; here both streams are merged and compared. Nothing is changed on
//! either server, and no more is held in memory than a part of each stream.

pub mod choose;
pub mod compare;
pub mod finding;
pub mod report;

use crate::push::peer::{Peer, PeerError};
use crate::push::report::Failure;
use crate::wire::frame::Kind as FrameKind;
use crate::wire::printable;
use crate::wire::v1::{self, part::Part, reply::Result as Answer, request::Op};
use choose::Offer;
use compare::{Later, MailboxComparison, Pair, Sink};
use finding::{Finding, Kind, Relation, Side};
use report::{CopyName, Outcome, Report};
use std::time::Instant;

/// What the admin asks for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The top mailbox, as typed.
    pub mailbox: String,
    /// The other server, as typed.
    pub destination: String,
    /// Compare the messages' bytes.
    pub content: bool,
}

/// Something that a comparison tells while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// Which copies are compared.
    Copies(&'a Report),
    /// Something that should be the same is not.
    Difference(&'a Finding),
    /// Something besides messages is later on the side that is in use.
    Later(&'a Finding, Relation),
    /// Messages of a mailbox are later there.
    Messages {
        /// The mailbox.
        mailbox: &'a str,
        /// How many.
        later: Later,
        /// How the copies belong together.
        relation: Relation,
    },
    /// How far it is.
    Progress {
        /// Mailboxes compared.
        mailboxes: u64,
        /// Of how many.
        of: u64,
        /// Messages compared.
        messages: u64,
        /// Their bytes, where those are compared.
        bytes: u64,
    },
}

/// Where events go.
pub trait Monitor {
    /// Takes one event.
    fn event(&self, event: Event<'_>);
}

/// Why there is no verdict.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{0}")]
    Refused(String),
    #[error("the agent on {server}: {source}")]
    OutOfOrder { server: String, source: compare::OutOfOrder },
}

/// Compares; both agents have been greeted.
pub async fn verify(options: &Options, here: Peer, there: Peer, monitor: &dyn Monitor) -> Report {
    let began = Instant::now();
    let mut report = Report::new(&options.mailbox, options.content);
    let ended = Verify { options, peers: [here, there], monitor, report: &mut report }.run().await;
    report.total_ms = began.elapsed().as_secs_f64() * 1000.0;
    match ended {
        Ok(()) if report.differences == 0 => report.outcome = Outcome::Same,
        Ok(()) => report.outcome = Outcome::Different,
        Err(trouble) => fail(&mut report, &trouble),
    }
    report
}

/// The report of a comparison that could not begin.
pub fn stillborn(options: &Options, text: String, advice: &str) -> Report {
    let mut report = Report::new(&options.mailbox, options.content);
    report.failure =
        Some(Failure { text, state: "nothing was changed".into(), advice: advice.into() });
    report
}

fn fail(report: &mut Report, trouble: &Trouble) {
    let refused = match trouble {
        Trouble::Refused(_) => true,
        Trouble::Peer(e) => e.kind() == Some(v1::failure::Kind::Refused),
        Trouble::OutOfOrder { .. } => false,
    };
    report.outcome = if refused { Outcome::Refused } else { Outcome::Failed };
    let guidance = match trouble {
        Trouble::Peer(e) => e.guidance(),
        _ => None,
    };
    let (state, advice) = guidance.unwrap_or((
        "nothing was changed on either server",
        match trouble {
            Trouble::Refused(_) => "look at `mbcopy status` on both servers",
            _ => "mend the cause and compare again",
        },
    ));
    report.failure = Some(Failure {
        text: trouble.to_string(),
        state: printable(state),
        advice: printable(advice),
    });
}

/// A copy as its agent has listed it.
#[derive(Default)]
struct Listed {
    mailboxes: Vec<v1::CopyMailbox>,
    groups: Vec<v1::CopyGroup>,
}

struct Verify<'a> {
    options: &'a Options,
    peers: [Peer; 2],
    monitor: &'a dyn Monitor,
    report: &'a mut Report,
}

/// Counts findings and hands them on.
struct Counter<'a> {
    report: &'a mut Report,
    monitor: &'a dyn Monitor,
    relation: Relation,
    /// Whether something was later since this was last reset.
    later: bool,
}

impl Sink for Counter<'_> {
    fn difference(&mut self, finding: Finding) {
        self.report.differences += 1;
        *self.report.kinds.entry(finding.kind).or_default() += 1;
        self.monitor.event(Event::Difference(&finding));
    }

    fn later(&mut self, finding: Finding) {
        self.report.later.other += 1;
        self.later = true;
        self.monitor.event(Event::Later(&finding, self.relation));
    }
}

impl Counter<'_> {
    /// Ends a mailbox: whatever is later in it is counted once.
    fn end_mailbox(&mut self, mailbox: &str, later: Later) {
        if !later.is_empty() {
            self.report.later.messages += later;
            let relation = self.relation;
            self.monitor.event(Event::Messages { mailbox, later, relation });
        }
        self.report.later.mailboxes += u64::from(!later.is_empty() || self.later);
        self.later = false;
    }
}

impl Verify<'_> {
    async fn run(mut self) -> Result<(), Trouble> {
        let (copies, relation) = self.choose().await?;
        let [here, there] = &mut self.peers;
        let [copy_here, copy_there] = &copies;
        let (here, there) = tokio::join!(open(here, copy_here), open(there, copy_there));
        let listed = [here?, there?];
        let pairs = compare::pair(&listed[0].mailboxes, &listed[1].mailboxes);
        for side in Side::BOTH {
            let at = side as usize;
            let ordinals = pairs.iter().filter_map(|pair| pair.0[at]);
            let ordinals = ordinals.map(|n| listed[at].mailboxes[n].ordinal).collect();
            let scan = v1::InspectScan { mailboxes: ordinals, content: self.options.content };
            self.peers[at].begin(Op::InspectScan(scan)).await?;
        }
        let mut counter =
            Counter { report: self.report, monitor: self.monitor, relation, later: false };
        let top = counter.report.mailbox.clone();
        let groups = [0, 1].map(|at| listed[at].groups.as_slice());
        compare::compare_groups(relation, &top, groups, &mut counter);
        counter.later = false;
        for (done, pair) in pairs.iter().enumerate() {
            one_mailbox(&mut self.peers, &listed, *pair, &mut counter).await?;
            counter.report.mailboxes += 1;
            counter.progress(done as u64 + 1, pairs.len() as u64);
        }
        for peer in &mut self.peers {
            match peer.reply().await? {
                Answer::Inspected(_) => {}
                _ => return Err(peer.unexpected("end of a comparison").into()),
            }
        }
        Ok(())
    }

    /// Asks both what they have, and chooses.
    async fn choose(&mut self) -> Result<([v1::UserCopy; 2], Relation), Trouble> {
        let [here, there] = &mut self.peers;
        let same_machine = here.welcome.machine_id == there.welcome.machine_id;
        if same_machine {
            return Err(Trouble::Refused(format!(
                "the destination {} is this server",
                self.options.destination
            )));
        }
        self.report.here.server = printable(&here.welcome.servername);
        self.report.there.server = printable(&there.welcome.servername);
        if self.report.here.server == self.report.there.server {
            self.report.there.server.clone_from(&self.options.destination);
        }
        let mailbox = self.options.mailbox.clone();
        let ours = inspect(here, v1::Inspect { mailbox, ..v1::Inspect::default() }).await?;
        let identity = ours.identity.clone().unwrap_or_default();
        self.report.mailbox = printable(&identity.display);
        let ask = v1::Inspect { name: identity.name, ..v1::Inspect::default() };
        let theirs = inspect(there, ask).await?;
        let names =
            |welcome: &v1::Welcome| [&welcome.servername, &welcome.hostname].map(Clone::clone);
        let mut offers = [
            Offer { copies: &ours.copies, names: names(&here.welcome).into() },
            Offer { copies: &theirs.copies, names: names(&there.welcome).into() },
        ];
        offers[1].names.push(self.options.destination.clone());
        let [here, there] = &offers;
        let Some((at, relation)) = choose::choose(here, there) else {
            return Err(Trouble::Refused(format!(
                "there are no two copies of {} to compare: {} has {}, {} has {}",
                self.report.mailbox,
                self.report.here.server,
                shown(&ours.copies),
                self.report.there.server,
                shown(&theirs.copies)
            )));
        };
        let copies = [ours.copies[at[0]].clone(), theirs.copies[at[1]].clone()];
        for (name, copy) in [&mut self.report.here, &mut self.report.there].into_iter().zip(&copies)
        {
            *name = CopyName {
                server: std::mem::take(&mut name.server),
                copy: word(copy.kind()).into(),
                move_id: printable(&copy.move_id),
                peer: printable(&copy.peer),
                state: printable(&copy.state),
            };
        }
        self.report.relation = Some(relation);
        self.monitor.event(Event::Copies(self.report));
        Ok((copies, relation))
    }
}

impl Counter<'_> {
    fn progress(&self, mailboxes: u64, of: u64) {
        let (messages, bytes) = (self.report.messages, self.report.bytes);
        self.monitor.event(Event::Progress { mailboxes, of, messages, bytes });
    }
}

fn word(kind: v1::CopyKind) -> &'static str {
    match kind {
        v1::CopyKind::Live => "live",
        v1::CopyKind::Retired => "retired",
        v1::CopyKind::Stage => "stage",
        v1::CopyKind::Unspecified => "unknown",
    }
}

fn shown(copies: &[v1::UserCopy]) -> String {
    match copies {
        [] => "none".into(),
        copies => copies.iter().map(|c| word(c.kind())).collect::<Vec<_>>().join(" and "),
    }
}

async fn inspect(peer: &mut Peer, inspect: v1::Inspect) -> Result<v1::UserCopies, Trouble> {
    match peer.call(Op::Inspect(inspect)).await? {
        Answer::UserCopies(copies) => Ok(copies),
        _ => Err(peer.unexpected("list of copies").into()),
    }
}

/// Opens a copy and takes its lists.
async fn open(peer: &mut Peer, copy: &v1::UserCopy) -> Result<Listed, Trouble> {
    let open = v1::OpenCopy { kind: copy.kind, move_id: copy.move_id.clone() };
    peer.begin(Op::OpenCopy(open)).await?;
    let mut listed = Listed::default();
    loop {
        let frame = peer.next().await?;
        match frame.kind {
            FrameKind::Part => match frame.decode::<v1::Part>("part").ok().and_then(|p| p.part) {
                Some(Part::CopyList(list)) => {
                    listed.mailboxes.extend(list.mailboxes);
                    listed.groups.extend(list.groups);
                }
                _ => return Err(peer.unexpected("list of a copy").into()),
            },
            _ => match peer.decode_reply(&frame)? {
                Answer::CopyOpened(_) => return Ok(listed),
                _ => return Err(peer.unexpected("end of a list").into()),
            },
        }
    }
}

/// Compares one mailbox, or counts what only one side has.
async fn one_mailbox(
    peers: &mut [Peer; 2],
    listed: &[Listed; 2],
    Pair(at): Pair,
    counter: &mut Counter<'_>,
) -> Result<(), Trouble> {
    let mailbox = |side: Side| at[side as usize].map(|n| &listed[side as usize].mailboxes[n]);
    let (Some(here), Some(there)) = (mailbox(Side::Here), mailbox(Side::There)) else {
        for side in Side::BOTH {
            let Some(mailbox) = mailbox(side) else { continue };
            let header = header(&mut peers[side as usize]).await?;
            let messages = drain(&mut peers[side as usize], counter).await?;
            let name = printable(&mailbox.display);
            unreadable(&name, side, &header, counter);
            let later = counter.report.later.other;
            let others = &listed[side.other() as usize].mailboxes;
            let relation = counter.relation;
            compare::single_mailbox(relation, side, mailbox, others, messages, counter);
            let excused = counter.report.later.other > later;
            let came = relation.later() == Some(side);
            let later = match (excused, came) {
                (true, true) => Later { new: messages, ..Later::default() },
                (true, false) => Later { expunged: messages, ..Later::default() },
                (false, _) => Later::default(),
            };
            counter.end_mailbox(&name, later);
        }
        return Ok(());
    };
    let name = printable(&here.display);
    compare::compare_mailboxes(counter.relation, here, there, counter);
    let mut headers: [v1::CopyHeader; 2] = Default::default();
    for side in Side::BOTH {
        headers[side as usize] = header(&mut peers[side as usize]).await?;
        unreadable(&name, side, &headers[side as usize], counter);
    }
    let told = |h: &v1::CopyHeader| !h.gone && h.unreadable.is_empty();
    if !headers.iter().all(told) {
        let mut messages = [0; 2];
        for side in Side::BOTH {
            messages[side as usize] = drain(&mut peers[side as usize], counter).await?;
        }
        let later = half_there(&name, &headers, messages, counter);
        counter.end_mailbox(&name, later);
        return Ok(());
    }
    let relation = counter.relation;
    let mut comparison = MailboxComparison::new(relation, &name, headers, counter);
    let (messages, bytes) = (counter.report.messages, counter.report.bytes);
    while let Some(side) = comparison.needs() {
        let peer = &mut peers[side as usize];
        let part = records(peer).await?;
        comparison
            .take(side, part, counter)
            .map_err(|source| Trouble::OutOfOrder { server: peer.server().to_owned(), source })?;
        counter.report.messages = messages + comparison.messages;
        counter.report.bytes = bytes + comparison.bytes;
        counter.progress(counter.report.mailboxes, 0);
    }
    counter.end_mailbox(&name, comparison.later);
    Ok(())
}

fn unreadable(name: &str, side: Side, header: &v1::CopyHeader, counter: &mut Counter<'_>) {
    if !header.unreadable.is_empty() {
        let what = printable(&header.unreadable);
        counter.difference(Finding::damage(Kind::UnreadableMailbox, name, 0, side, what));
    }
}

/// A mailbox that both list and one has not: of a stage it is still to come.
fn half_there(
    name: &str,
    headers: &[v1::CopyHeader; 2],
    messages: [u64; 2],
    counter: &mut Counter<'_>,
) -> Later {
    let gone = headers.each_ref().map(|header| header.gone);
    let lacking = match gone {
        [true, false] => Side::Here,
        [false, true] => Side::There,
        _ => return Later::default(),
    };
    let has = lacking.other() as usize;
    if counter.relation.incomplete(lacking) {
        return Later { new: messages[has], ..Later::default() };
    }
    let mut values = [None, None];
    values[has] = Some(format!("{} messages", messages[has]));
    let finding = Finding::differs(Kind::Mailbox, name, 0, "", values);
    // It went while this was under way.
    if counter.relation.later() == Some(lacking) {
        counter.later(finding);
    } else {
        counter.difference(finding);
    }
    Later::default()
}

async fn part(peer: &mut Peer) -> Result<Part, Trouble> {
    let frame = peer.next().await?;
    if frame.kind != FrameKind::Part {
        // A failure says more than that it was not due.
        peer.decode_reply(&frame)?;
        return Err(peer.unexpected("part of a mailbox").into());
    }
    let part = frame.decode::<v1::Part>("part").ok().and_then(|part| part.part);
    part.ok_or_else(|| peer.unexpected("part of a mailbox").into())
}

async fn header(peer: &mut Peer) -> Result<v1::CopyHeader, Trouble> {
    match part(peer).await? {
        Part::CopyHeader(header) => Ok(header),
        _ => Err(peer.unexpected("header of a mailbox").into()),
    }
}

async fn records(peer: &mut Peer) -> Result<v1::CopyRecords, Trouble> {
    match part(peer).await? {
        Part::CopyRecords(records) => Ok(records),
        _ => Err(peer.unexpected("list of messages").into()),
    }
}

/// Reads the rest of a mailbox that is not compared; the messages that clients
/// see in it.
async fn drain(peer: &mut Peer, counter: &mut Counter<'_>) -> Result<u64, Trouble> {
    let mut messages = 0;
    loop {
        let part = records(peer).await?;
        messages += part.records.iter().filter(|r| !r.expunged).count() as u64;
        counter.report.messages += part.records.len() as u64;
        if part.last {
            return Ok(messages);
        }
    }
}
