//! What a repair does: a pure function of the diagnosis and of what was seen.

use super::diagnose::{Both, Diagnosis, State};
use super::list::{self, Standings};
use super::seen::{Mailbox, Seen, Standing};
use crate::verify::finding::Side;
use crate::wire::v1::FileKind;
use std::collections::{BTreeMap, BTreeSet};

/// A record to be made live again, or to be removed since it leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// Internal name.
    pub name: Vec<u8>,
    /// Uniqueid.
    pub id: String,
    /// Nothing is there: the record is removed.
    pub remove: bool,
    /// MODSEQs that its record has lost and that of the copy has.
    pub modseqs: [u64; 2],
}

/// Messages of one mailbox that are carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// The mailbox that has them: internal name.
    pub name: Vec<u8>,
    /// Its uniqueid.
    pub id: String,
    /// As an admin types it.
    pub display: String,
    /// The mailbox that gets them: internal name.
    pub to: Vec<u8>,
    /// It has to be made first.
    pub create: bool,
    /// The messages, and their contents.
    pub messages: Vec<(u32, [u8; 20])>,
}

/// What is done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The server on which the user is whole afterwards.
    pub right: Side,
    /// Records of that server.
    pub restore: Vec<Restored>,
    /// Whether a Murder's list is made to name that server for all that it has.
    pub list: bool,
    /// What a Murder's list forgets, by the server that it names.
    pub forget: Vec<(Side, Vec<Vec<u8>>)>,
    /// From the other server to that one.
    pub carry: Vec<Carried>,
    /// The ids of mailboxes of the other server that were taken from that one: no record
    /// says that the user has deleted them or what is in them.
    pub taken: BTreeSet<String>,
    /// Whether all that the other server has is put away.
    pub put_aside: bool,
    /// Whether a push ends it.
    pub push: bool,
    /// What the admin must agree to.
    pub asks: Vec<String>,
}

/// Why nothing is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoPlan {
    /// Nothing is wrong.
    Nothing,
    /// Something else is to be done; what.
    Other(String),
}

/// Plans the repair after which the user is whole on `to`, or wherever that is
/// possible.
pub fn plan(both: Both<'_>, diagnosis: &Diagnosis, to: Option<Side>) -> Result<Plan, NoPlan> {
    let list = diagnosis.list.as_ref();
    if let Some(list) = list.filter(|list| !list.trouble.is_empty()) {
        return Err(NoPlan::Other(format!(
            "mend what keeps the servers from asking their mupdate master: {}",
            list.trouble
        )));
    }
    let plan = of_servers(both, diagnosis, to)?;
    // Records first: until they are right, nobody may be led to them.
    let list = list.is_some_and(Standings::keeps_away) && plan.right_has_him(both);
    Ok(Plan { list, ..plan })
}

fn of_servers(both: Both<'_>, diagnosis: &Diagnosis, to: Option<Side>) -> Result<Plan, NoPlan> {
    let origin = diagnosis.origin;
    let mailbox = both.on(origin).mailboxes.first().map(|m| m.display.clone()).unwrap_or_default();
    let other = |text: &str| Err(NoPlan::Other(text.replace("{}", &mailbox)));
    match diagnosis.state {
        State::Well => Err(NoPlan::Nothing),
        State::Nobody => other("look at the name of the mailbox"),
        State::Elsewhere => other("name the server that is named: mbcopy doctor {} DEST"),
        State::Unknown => {
            other("this is not touched: look at what each server has, and decide by hand")
        }
        State::OurMove => other(
            "finish it: mbcopy resume {} (on the server that has begun it); or give it up: mbcopy \
             abort {}; `mbcopy status {}` says what each would do",
        ),
        State::OurRepair => Ok(begun(both, origin.other(), to)),
        _ if Side::BOTH.iter().any(|side| !both.on(*side).repairable) => {
            other("a repair needs Cyrus 3.2 or later, in use, on both servers")
        }
        State::ListWrong | State::ListStale => {
            let right = match both.here.any(Standing::Live) {
                true => Side::Here,
                false => Side::There,
            };
            let forget = list::stale(both).into_iter().filter(|(_, names)| !names.is_empty());
            Ok(Plan { forget: forget.collect(), ..Plan::of(right) })
        }
        State::Split => split(both, origin, to).map_err(NoPlan::Other),
        State::PartialCopy | State::SecondCopy => Ok(onto(both, origin, to)),
        State::Leftovers | State::NewInbox if to == Some(origin) => other(
            "the user is on the other server: repair without --to, then take him back: mbcopy \
             reverse {} DEST",
        ),
        State::Leftovers => Ok(Plan { put_aside: true, ..Plan::of(origin.other()) }),
        State::NewInbox => Ok(onto(both, origin.other(), None)),
        State::StoppedSwitching | State::StoppedDeleting | State::Scattered => {
            stopped(both, diagnosis, to).map_or_else(|text| other(&text), Ok)
        }
    }
}

impl Plan {
    fn of(right: Side) -> Self {
        Self {
            right,
            restore: Vec::new(),
            list: false,
            forget: Vec::new(),
            carry: Vec::new(),
            taken: BTreeSet::new(),
            put_aside: false,
            push: false,
            asks: Vec::new(),
        }
    }

    /// Whether anything of him is or becomes usable on the right server.
    pub fn right_has_him(&self, both: Both<'_>) -> bool {
        both.on(self.right).any(Standing::Live) || !self.restore.is_empty()
    }
}

/// A repair that was to make the user whole on `right` has stopped.
fn begun(both: Both<'_>, right: Side, to: Option<Side>) -> Plan {
    let (wrong, seen) = (both.on(right.other()), both.on(right));
    // Its journal is written before its records are.
    let restore: Vec<Restored> = deleted(seen, wrong).map(|m| restored(m, wrong)).collect();
    let taken = seen.taken.clone();
    Plan {
        carry: carry(wrong, seen, &restore, Gone::Copied, &taken),
        restore,
        taken,
        ..onto(both, right, to)
    }
}

/// The mailboxes that were deleted on a server, whose files it still has, and that are in
/// use on the other one only.
fn deleted<'a>(seen: &'a Seen, other: &'a Seen) -> impl Iterator<Item = &'a Mailbox> {
    seen.mailboxes.iter().filter(|m| {
        let there = other.of(Standing::Live).any(|o| o.id == m.id);
        let here = seen.of(Standing::Live).any(|o| o.id == m.id || o.name == m.name);
        m.standing == Standing::Deleted && m.has_files() && there && !here
    })
}

/// The user is whole on `right`: what only the other server has is carried over.
fn onto(both: Both<'_>, right: Side, to: Option<Side>) -> Plan {
    Plan {
        carry: carry(both.on(right.other()), both.on(right), &[], Gone::Copied, &NONE),
        put_aside: true,
        push: to.is_some_and(|to| to != right),
        ..Plan::of(right)
    }
}

/// Parts of him are in use here and there: whole he becomes where all of him still is.
fn split(both: Both<'_>, side: Side, to: Option<Side>) -> Result<Plan, String> {
    let (origin, other) = (both.on(side), both.on(side.other()));
    let has_all = |seen: &Seen, of: &Seen, deleted: bool| {
        let usable = |m: &Mailbox| {
            m.standing == Standing::Live && !m.kept
                || deleted && m.standing == Standing::Deleted && m.has_files()
        };
        of.of(Standing::Live)
            .all(|live| seen.mailboxes.iter().any(|m| usable(m) && m.id == live.id))
    };
    let push = |plan: Plan| Plan { push: to.is_some_and(|to| to != plan.right), ..plan };
    if has_all(other, origin, false) {
        // What clients have changed on the part here since is carried over as mail.
        let carry = carry(origin, other, &[], Gone::Deleted, &NONE);
        return Ok(push(Plan { carry, put_aside: true, ..Plan::of(side.other()) }));
    }
    let restore: Vec<Restored> = deleted(origin, other).map(|m| restored(m, other)).collect();
    let plan = with_restored(both, side, to, &restore, &NONE);
    if has_all(origin, other, true) && has_his_own(origin, other) {
        return Ok(plan);
    }
    let right = to.unwrap_or(side);
    let restore = if right == side { restore } else { Vec::new() };
    let (from, onto) = (both.on(right.other()), both.on(right));
    let taken: BTreeSet<String> = from.of(Standing::Live).map(|m| m.id.clone()).collect();
    let carry = carry(from, onto, &restore, Gone::Copied, &taken);
    let mut plan = Plan { restore, carry, taken, put_aside: true, ..Plan::of(right) };
    plan.asks.extend(made_anew(both, &plan));
    plan.asks.extend(has_lost(both, &plan));
    Ok(plan)
}

fn restored(mailbox: &Mailbox, other: &Seen) -> Restored {
    Restored {
        name: mailbox.name.clone(),
        id: mailbox.id.clone(),
        remove: !mailbox.has_files(),
        modseqs: other.twin(mailbox).map(|twin| twin.modseqs).unwrap_or_default(),
    }
}

/// What the admin must agree to where folders have to be made.
fn made_anew(both: Both<'_>, plan: &Plan) -> Option<String> {
    let made = plan.carry.iter().filter(|c| c.create).map(|c| c.display.as_str());
    let made: Vec<&str> = made.collect();
    (!made.is_empty()).then(|| {
        format!(
            "{} folders are only on {} and are made anew on {}, so that their messages get new \
             UIDs and clients load them again: {}",
            made.len(),
            both.on(plan.right.other()).server(),
            both.on(plan.right).server(),
            shortened(&made)
        )
    })
}

/// What the admin must agree to where the right server has not what is the user's besides
/// his mailboxes.
fn has_lost(both: Both<'_>, plan: &Plan) -> Option<String> {
    let (from, onto) = (both.on(plan.right.other()), both.on(plan.right));
    (!has_his_own(onto, from)).then(|| {
        format!(
            "{} has lost subscriptions, scripts or quota roots that {} has: they have to be set \
             again",
            onto.server(),
            from.server()
        )
    })
}

/// The first server has begun to send clients away, or to delete.
fn stopped(both: Both<'_>, diagnosis: &Diagnosis, to: Option<Side>) -> Result<Plan, String> {
    let side = diagnosis.origin;
    let (origin, other) = (both.on(side), both.on(side.other()));
    let gone_away = [Standing::Moving, Standing::Remote, Standing::Deleted];
    let changed = || origin.mailboxes.iter().filter(|m| gone_away.contains(&m.standing));
    let restore: Vec<Restored> = changed().map(|m| restored(m, other)).collect();
    // All that the other has in use has its files here, too.
    let has_twin = |m: &Mailbox| origin.mailboxes.iter().any(|o| o.id == m.id && o.has_files());
    let split = |m: &&Mailbox| !m.kept && !has_twin(m) && !m.id.is_empty();
    let lost: Vec<&Mailbox> = other.of(Standing::Live).filter(split).collect();
    // A folder that was made there since is carried over as any mail.
    let made_since =
        |m: &Mailbox| !origin.mailboxes.iter().any(|o| o.id == m.id || o.name == m.name);
    // What is his besides mailboxes goes with the first of them that is deleted, or later.
    let own = diagnosis.state == State::StoppedSwitching || has_his_own(origin, other);
    if own && lost.iter().all(|m| made_since(m)) {
        return Ok(with_restored(both, side, to, &restore, &NONE));
    }
    let whole_there = changed().all(|m| other.of(Standing::Live).any(|o| o.id == m.id))
        && origin.of(Standing::Live).all(|m| other.of(Standing::Live).any(|o| o.id == m.id));
    if whole_there && to != Some(side) {
        // What clients could change here since is carried over as mail.
        return Ok(Plan {
            carry: carry(origin, other, &[], Gone::Deleted, &NONE),
            put_aside: true,
            ..Plan::of(side.other())
        });
    }
    if whole_there {
        return Err("this server has lost a part of him: repair with --to target, then take him \
                    back: mbcopy reverse {} DEST"
            .into());
    }
    let right = to.unwrap_or(side);
    // Nobody but the move has deleted what is in use there and has no files here.
    let taken = lost.iter().filter(|m| !made_since(m)).map(|m| m.id.clone()).collect();
    let mut plan = match right == side {
        true => with_restored(both, side, None, &restore, &taken),
        false => Plan {
            carry: carry(origin, other, &[], Gone::Deleted, &NONE),
            put_aside: true,
            ..Plan::of(right)
        },
    };
    plan.asks.extend(made_anew(both, &plan));
    plan.asks.extend(has_lost(both, &plan));
    Ok(plan)
}

fn with_restored(
    both: Both<'_>,
    right: Side,
    to: Option<Side>,
    restore: &[Restored],
    taken: &BTreeSet<String>,
) -> Plan {
    let wrong = both.on(right.other());
    Plan {
        restore: restore.to_vec(),
        carry: carry(wrong, both.on(right), restore, Gone::Copied, taken),
        taken: taken.clone(),
        put_aside: wrong.mailboxes.iter().any(|m| m.standing == Standing::Live),
        push: to.is_some_and(|to| to != right),
        ..Plan::of(right)
    }
}

/// What is left to be carried over by a plan whose records are live again.
pub fn rest(both: Both<'_>, plan: &Plan) -> Vec<Carried> {
    carry(both.on(plan.right.other()), both.on(plan.right), &[], Gone::Copied, &plan.taken)
}

/// The first names, and how many there are more.
pub fn shortened(names: &[&str]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
}

/// Whether a server still has what is the user's besides his mailboxes, as far as the
/// other one has it.
fn has_his_own(seen: &Seen, other: &Seen) -> bool {
    let kept = [
        FileKind::UserSubscriptions,
        FileKind::UserSeen,
        FileKind::SieveScript,
        FileKind::SieveBytecode,
    ];
    let has = |kind: &FileKind| seen.files.contains(kind) || !other.files.contains(kind);
    kept.iter().all(has) && seen.quota_roots >= other.quota_roots
}

/// What a mailbox of the wrong server is, of which the right one has no more than a trace.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// A copy: what is older than the copy was expunged or deleted on the right server.
    Copied,
    /// What was deleted on the right server, or has come since.
    Deleted,
}

/// Nothing was taken.
const NONE: BTreeSet<String> = BTreeSet::new();

/// What `wrong` has and `right` has never had, by content. Of what XFER or `ctl_mboxlist -m`
/// has `taken` from `right` it tells nothing that a record of it is left there.
fn carry(
    wrong: &Seen,
    right: &Seen,
    restore: &[Restored],
    gone: Gone,
    taken: &BTreeSet<String>,
) -> Vec<Carried> {
    // What came with the copy is older than the copy: if the original does not list it
    // any more, it was expunged there.
    let copied = wrong.of(Standing::Live).map(|m| m.changed).min();
    let copied = copied.filter(|_| gone == Gone::Copied).unwrap_or_default();
    let mut all = Vec::new();
    let usable = |m: &&Mailbox| matches!(m.standing, Standing::Live | Standing::Moving);
    for mailbox in wrong.mailboxes.iter().filter(usable) {
        if mailbox.kept || mailbox.name_only || is_special(mailbox) {
            continue;
        }
        let usable = |m: &&Mailbox| {
            m.standing == Standing::Live
                || restore.iter().any(|r| !r.remove && r.name == m.name && r.id == m.id)
        };
        let same = |m: &&Mailbox| !mailbox.id.is_empty() && m.id == mailbox.id;
        let twin = right.mailboxes.iter().filter(usable).find(same);
        let removed = |m: &&Mailbox| restore.iter().any(|r| r.remove && r.name == m.name);
        let known = !taken.contains(&mailbox.id)
            && right.mailboxes.iter().any(|m| same(&m) && !removed(&m));
        let by_name = || right.mailboxes.iter().filter(usable).find(|m| m.name == mailbox.name);
        let twin = twin.or_else(by_name);
        let mut had: BTreeMap<[u8; 20], usize> = twin.map(Mailbox::guids).unwrap_or_default();
        let mut messages = Vec::new();
        for message in mailbox.present() {
            if let Some(count) = had.get_mut(&message.guid).filter(|count| **count > 0) {
                *count -= 1;
                continue;
            }
            if !known || came_since(message.saved, copied) {
                messages.push((message.uid, message.guid));
            }
        }
        let to = twin.map_or_else(|| mailbox.name.clone(), |m| m.name.clone());
        let create = twin.is_none();
        // A folder that was deleted there stays deleted, unless mail has come since.
        if messages.is_empty() && (!create || known) {
            continue;
        }
        let (name, id) = (mailbox.name.clone(), mailbox.id.clone());
        let display = mailbox.display.clone();
        all.push(Carried { name, id, display, to, create, messages });
    }
    // Parents first.
    all.sort_by(|a, b| a.to.cmp(&b.to));
    all
}

fn came_since(saved: u32, copied: i64) -> bool {
    copied == 0 || saved == 0 || i64::from(saved) >= copied
}

/// Whether Cyrus keeps something else than mail in it: scripts, calendars and the like.
fn is_special(mailbox: &Mailbox) -> bool {
    mailbox.name.split(|b| *b == b'.').any(|part| part.starts_with(b"#"))
}
