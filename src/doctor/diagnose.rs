//! Which known state a user is in: a pure function of what both servers have.

use super::list::{self, Standings};
use super::seen::{Mailbox, Seen, Standing};
use crate::moves::journal::state;
use crate::verify::finding::Side;
use serde::Serialize;
use std::collections::BTreeSet;

/// Records that were written within so many seconds of each other tell nothing: XFER
/// writes those of the original again when it recovers, and clocks differ.
const NEAR: i64 = 600;

/// The states that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// One server serves him, and nothing of another move is in the way.
    Well,
    /// Neither server has him.
    Nobody,
    /// A part of him was copied to the other server, where it is live.
    PartialCopy,
    /// All of him was copied to the other server, where it is live, too.
    SecondCopy,
    /// The move stopped when the first server had begun to send clients away.
    StoppedSwitching,
    /// The move stopped when the first server had begun to delete.
    StoppedDeleting,
    /// The move is complete; the first server keeps files and records that nothing removes.
    Leftovers,
    /// A new, empty user was made on the server that he has left.
    NewInbox,
    /// Records lead to the other server, and his folders are here and there.
    Scattered,
    /// A move by mbcopy is not over.
    OurMove,
    /// A repair by this command is not over.
    OurRepair,
    /// One server serves him, but a Murder's list says something else.
    ListWrong,
    /// Neither server has him, but a Murder's list says so.
    ListStale,
    /// His mailboxes are in use here and there, and each server has lost some.
    Split,
    /// Records, or a Murder's list, name a server that was not asked.
    Elsewhere,
    /// None of these.
    Unknown,
}

/// What one server has, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Has {
    /// What it calls itself.
    pub server: String,
    /// Mailboxes that clients can use.
    pub live: usize,
    /// Mailboxes whose records send clients away.
    pub away: usize,
    /// Tombstones with files.
    pub deleted: usize,
    /// Mailboxes that mbcopy has put away.
    pub put_away: usize,
    /// Mailboxes that only their ids lead to, with files.
    pub unnamed: usize,
    /// Messages of all that has files.
    pub messages: usize,
    /// When the newest of them came, seconds since 1970; 0: none.
    pub newest: u32,
    /// Messages that the other server has never had.
    pub alone: usize,
    /// Of these, how many came after the move stopped.
    pub since: usize,
    /// Messages that cannot be read, and mailboxes.
    pub bad: Vec<String>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// The state.
    pub state: State,
    /// The server that had the user before; of a repair that is not over the one whose copy
    /// is put aside.
    #[serde(skip)]
    pub origin: Side,
    /// Since when, seconds since 1970; 0: not known.
    pub since: i64,
    /// What this server has.
    pub here: Has,
    /// What the other has.
    pub there: Has,
    /// Servers that records or a Murder's list name and that were not asked.
    pub elsewhere: Vec<String>,
    /// How a Murder's list compares with that; none: neither server is of a Murder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub list: Option<Standings>,
}

impl Diagnosis {
    /// What a server has.
    pub fn has(&self, side: Side) -> &Has {
        match side {
            Side::Here => &self.here,
            Side::There => &self.there,
        }
    }

    /// Whether there is anything that should not be.
    pub fn is_wrong(&self) -> bool {
        self.state != State::Well || self.list.as_ref().is_some_and(|l| !l.trouble.is_empty())
    }
}

/// What both servers have; none: the other server was not asked.
#[derive(Debug, Clone, Copy)]
pub struct Both<'a> {
    /// This server.
    pub here: &'a Seen,
    /// The other one.
    pub there: &'a Seen,
}

impl<'a> Both<'a> {
    /// One of them.
    pub fn on(self, side: Side) -> &'a Seen {
        match side {
            Side::Here => self.here,
            Side::There => self.there,
        }
    }
}

/// Says which state it is.
pub fn diagnose(both: Both<'_>) -> Diagnosis {
    let (state, origin) = known(both);
    let list = list::compare(both);
    let ours = [State::OurMove, State::OurRepair, State::Elsewhere];
    let state = match (state, &list) {
        (state, _) if !ours.contains(&state) && !list::taken_away(both).is_empty() => {
            State::Unknown
        }
        (State::Well, Some(list)) if list.is_wrong() => State::ListWrong,
        (State::Nobody, Some(list)) if list.is_wrong() => State::ListStale,
        (state, _) => state,
    };
    let since = since(both, state, origin);
    let has = |side: Side| numbers(both.on(side), both.on(side.other()), since);
    let (here, there) = (has(Side::Here), has(Side::There));
    Diagnosis { state, origin, since, here, there, elsewhere: elsewhere(both), list }
}

fn known(both: Both<'_>) -> (State, Side) {
    let mut begun = None;
    for side in Side::BOTH {
        match both.on(side).unfinished() {
            Some(known) if !known.repair => return (State::OurMove, side),
            // It has made records live again there.
            Some(known) if known.state == state::PLANNED => begun = Some(side.other()),
            Some(_) => return (State::OurRepair, side),
            None => {}
        }
    }
    let any = |standing| Side::BOTH.iter().any(|side| both.on(*side).any(standing));
    if any(Standing::Reserved) || any_unreadable(both) {
        return (State::Unknown, Side::Here);
    }
    if !elsewhere(both).is_empty() {
        return (State::Elsewhere, Side::Here);
    }
    let found = Side::BOTH.into_iter().find_map(|origin| {
        let pair = Pair { origin: both.on(origin), other: both.on(origin.other()) };
        Some((pair.away().or_else(|| pair.deleted())?, origin))
    });
    // Records that are live again tell no more what is left to be done.
    let begun = begun.map(|wrong| (State::OurRepair, wrong));
    found.or(begun).unwrap_or_else(|| live(both))
}

/// Records of neither server send clients away.
fn live(both: Both<'_>) -> (State, Side) {
    let lives = Side::BOTH.map(|side| both.on(side).any(Standing::Live));
    match lives {
        [true, false] => return (State::Well, Side::Here),
        [false, true] => return (State::Well, Side::There),
        [false, false] => {
            // What mbcopy has put away must be somewhere.
            let known = Side::BOTH.iter().any(|s| both.on(*s).any(Standing::PutAway));
            return (if known { State::Unknown } else { State::Nobody }, Side::Here);
        }
        [true, true] => {}
    }
    if let Some(origin) = split(both) {
        return (State::Split, origin);
    }
    if shared(both, Side::Here) == 0 {
        // Whose ids were once on the other server is the one who has moved.
        let made_anew = |side: &Side| {
            let was = |m: &&Mailbox| {
                m.standing != Standing::Live && has_live_id(both.on(side.other()), m)
            };
            both.on(*side).mailboxes.iter().any(|m| was(&m))
        };
        let anew: Vec<Side> = Side::BOTH.into_iter().filter(made_anew).collect();
        return match anew.as_slice() {
            [side] => (State::NewInbox, *side),
            _ => (State::Unknown, Side::Here),
        };
    }
    let origin = older(both);
    let lacks = both.on(origin).of(Standing::Live).any(|m| !holds(both.on(origin.other()), m));
    (if lacks { State::PartialCopy } else { State::SecondCopy }, origin)
}

/// Whether parts of him are in use here and there, as after an XFER that was killed in its
/// deletion and restarts of the backends of a Murder (imap/ctl_mboxlist.c:do_pop_mupdate):
/// the server that had him.
fn split(both: Both<'_>) -> Option<Side> {
    let deleting = Side::BOTH.map(|side| deletes(both.on(side), both.on(side.other())));
    match deleting {
        [true, false] if lacks(both, Side::Here) => Some(Side::Here),
        [false, true] if lacks(both, Side::There) => Some(Side::There),
        [true, true] if shared(both, Side::Here) == 0 => Some(older(both)),
        _ => None,
    }
}

/// Whether the other server has not all either; else whether this one is the elder, and not
/// one that he has left, and was to go to again.
fn lacks(both: Both<'_>, side: Side) -> bool {
    let (seen, other) = (both.on(side), both.on(side.other()));
    match shared(both, side) {
        0 => live_was_there(seen, other),
        _ => older(both) == side,
    }
}

/// Whether XFER has begun to delete mailboxes that are in use on the other server: nobody
/// deletes his INBOX, and what he deletes leaves no tombstones with files.
fn deletes(seen: &Seen, other: &Seen) -> bool {
    let top = seen.mailboxes.iter().find(|m| !m.kept).map(|m| m.name.as_slice());
    let taken = |m: &Mailbox| match m.standing {
        Standing::Deleted => true,
        Standing::Gone => Some(m.name.as_slice()) == top,
        _ => false,
    };
    let lives = |m: &Mailbox| seen.of(Standing::Live).any(|live| live.id == m.id);
    seen.mailboxes.iter().any(|m| taken(m) && !lives(m) && has_live_id(other, m))
}

/// Whether the other server has had mailboxes that are in use on this one.
fn live_was_there(seen: &Seen, other: &Seen) -> bool {
    let known = |m: &Mailbox| !m.id.is_empty() && other.mailboxes.iter().any(|o| o.id == m.id);
    seen.of(Standing::Live).any(known)
}

/// How many mailboxes are in use on both servers.
fn shared(both: Both<'_>, side: Side) -> usize {
    let other = both.on(side.other());
    both.on(side).of(Standing::Live).filter(|m| has_live_id(other, m)).count()
}

/// Which of two live copies is the original.
fn older(both: Both<'_>) -> Side {
    // The records of a copy were written when it was made.
    let born = Side::BOTH.map(|side| born(both.on(side)));
    let known = born.iter().all(|time| *time > 0);
    match born {
        [here, there] if known && there + NEAR < here => return Side::There,
        [here, there] if known && here + NEAR < there => return Side::Here,
        _ => {}
    }
    // The original has all that is older than the copy.
    let fits = Side::BOTH.map(|origin| {
        let copied = born[origin.other() as usize];
        both.on(origin.other()).of(Standing::Live).all(|mailbox| {
            let twin = both.on(origin).twin(mailbox).map(Mailbox::guids).unwrap_or_default();
            let mut old = mailbox.present().filter(|m| i64::from(m.saved) < copied);
            old.all(|m| twin.contains_key(&m.guid))
        })
    });
    if fits == [false, true] { Side::There } else { Side::Here }
}

/// The server that had the user, and the one that was to get him.
struct Pair<'a> {
    origin: &'a Seen,
    other: &'a Seen,
}

impl Pair<'_> {
    /// Records of the origin send clients to the other server.
    fn away(&self) -> Option<State> {
        let remote = self.origin.any(Standing::Remote);
        if !remote && !self.origin.any(Standing::Moving) {
            return None;
        }
        // Something must be to be had somewhere.
        let mut away = self.origin.of(Standing::Moving).chain(self.origin.of(Standing::Remote));
        let lost = away.any(|m| !m.has_files() && !has_live_id_or_name(self.other, m));
        if lost {
            return Some(State::Unknown);
        }
        let only_there = self.origin.of(Standing::Moving).any(|m| !m.has_files());
        if remote || only_there {
            return Some(State::Scattered);
        }
        let begun = self.origin.any(Standing::Deleted) || self.has_lost();
        Some(if begun { State::StoppedDeleting } else { State::StoppedSwitching })
    }

    /// Tombstones of the origin have files.
    fn deleted(&self) -> Option<State> {
        if !self.origin.of(Standing::Deleted).any(|m| has_live_id(self.other, m)) {
            return None;
        }
        let mut live = self.origin.of(Standing::Live);
        // What lies there of an earlier move beside a copy is put aside with the copy.
        let copy = live.clone().any(|m| has_live_id(self.other, m));
        match live.next() {
            None => Some(State::Leftovers),
            Some(_) if copy => None,
            // What is in use here has been there, too: that is no new user.
            Some(_) if live_was_there(self.origin, self.other) => None,
            Some(_) => Some(State::NewInbox),
        }
    }

    /// Whether mailboxes of the other server are tombstones without files here.
    fn has_lost(&self) -> bool {
        self.origin.of(Standing::Gone).any(|m| has_live_id(self.other, m))
    }
}

/// Whether a server has a live mailbox of the same id.
fn has_live_id(seen: &Seen, mailbox: &Mailbox) -> bool {
    !mailbox.id.is_empty() && seen.of(Standing::Live).any(|m| m.id == mailbox.id)
}

fn has_live_id_or_name(seen: &Seen, mailbox: &Mailbox) -> bool {
    has_live_id(seen, mailbox) || seen.of(Standing::Live).any(|m| m.name == mailbox.name)
}

/// Whether a server has all messages of a mailbox.
fn holds(seen: &Seen, mailbox: &Mailbox) -> bool {
    let Some(twin) = seen.twin(mailbox).filter(|m| m.standing == Standing::Live) else {
        return mailbox.name_only;
    };
    let guids = twin.guids();
    mailbox.present().all(|m| guids.contains_key(&m.guid))
}

/// When the first of the records was written.
fn born(seen: &Seen) -> i64 {
    seen.of(Standing::Live).map(|m| m.changed).filter(|t| *t > 0).min().unwrap_or_default()
}

/// Servers that records name, and that were not asked.
fn elsewhere(both: Both<'_>) -> Vec<String> {
    let mut names = BTreeSet::new();
    for side in Side::BOTH {
        let (seen, other) = (both.on(side), both.on(side.other()));
        for mailbox in seen.of(Standing::Moving).chain(seen.of(Standing::Remote)) {
            if !mailbox.server.is_empty() && !other.is_called(&mailbox.server) {
                names.insert(mailbox.server.clone());
            }
        }
    }
    names.extend(list::strangers(both));
    names.into_iter().collect()
}

fn any_unreadable(both: Both<'_>) -> bool {
    Side::BOTH.iter().any(|s| both.on(*s).mailboxes.iter().any(|m| !m.unreadable.is_empty()))
}

/// When the state began, as far as records tell.
fn since(both: Both<'_>, state: State, origin: Side) -> i64 {
    let (origin, other) = (both.on(origin), both.on(origin.other()));
    let of = |seen: &Seen, standing: &[Standing]| -> Vec<i64> {
        let all = seen.mailboxes.iter().filter(|m| standing.contains(&m.standing));
        all.map(|m| m.changed).filter(|t| *t > 0).collect()
    };
    let copied = of(other, &[Standing::Live]).into_iter().min();
    let told = match state {
        State::PartialCopy | State::SecondCopy => copied,
        State::StoppedSwitching | State::StoppedDeleting | State::Scattered | State::Split => {
            let away = [Standing::Moving, Standing::Remote, Standing::Deleted];
            of(origin, &away).into_iter().min().or(copied)
        }
        State::Leftovers => of(origin, &[Standing::Deleted]).into_iter().max(),
        State::NewInbox => of(origin, &[Standing::Live]).into_iter().min(),
        State::OurMove | State::OurRepair => origin.unfinished().map(|m| m.updated / 1000),
        _ => None,
    };
    told.unwrap_or_default()
}

fn numbers(seen: &Seen, other: &Seen, since: i64) -> Has {
    let mut has = Has { server: seen.server().to_owned(), ..Has::default() };
    for mailbox in seen.mailboxes.iter().filter(|m| !m.kept) {
        let count = match mailbox.standing {
            Standing::Live => Some(&mut has.live),
            Standing::Moving | Standing::Remote | Standing::Reserved => Some(&mut has.away),
            Standing::Deleted => Some(&mut has.deleted),
            Standing::PutAway => Some(&mut has.put_away),
            Standing::Unnamed => mailbox.has_index.then_some(&mut has.unnamed),
            Standing::Gone => None,
        };
        let Some(count) = count else { continue };
        *count += 1;
        if mailbox.standing == Standing::Unnamed {
            continue;
        }
        let guids = other.twin(mailbox).map(Mailbox::guids).unwrap_or_default();
        for message in mailbox.present() {
            has.messages += 1;
            has.newest = has.newest.max(message.saved);
            let alone = !guids.contains_key(&message.guid);
            has.alone += usize::from(alone);
            has.since += usize::from(alone && since > 0 && i64::from(message.saved) >= since);
        }
        has.bad.extend(mailbox.bad.iter().map(|bad| format!("{}: {bad}", mailbox.display)));
        if !mailbox.unreadable.is_empty() {
            has.bad.push(format!("{}: {}", mailbox.display, mailbox.unreadable));
        }
    }
    has
}
