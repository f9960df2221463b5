//! What a Murder's list says of a user, and what of it is wrong: pure.
//!
//! The mupdate master tells the frontends which backend has which mailbox. What it says
//! must be what the backends have: each mailbox in use where it is in use, and nothing
//! else.

use super::diagnose::Both;
use super::seen::{Mailbox, Seen, Standing};
use crate::verify::finding::Side;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What the list says of a mailbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Internal name.
    pub name: Vec<u8>,
    /// As an admin types it.
    pub display: String,
    /// The server that has it.
    pub server: String,
    /// Whether it is reserved: nobody can reach it.
    pub reserved: bool,
}

/// What a server was told of the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct List {
    /// What the master calls itself.
    pub master: String,
    /// What it says of the user.
    pub entries: Vec<Listed>,
    /// Why it cannot be asked.
    pub trouble: String,
}

/// How the list compares with what the servers have, in numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Standings {
    /// What the master calls itself.
    pub master: String,
    /// Mailboxes that it lists.
    pub mailboxes: usize,
    /// Of these: reserved.
    pub reserved: usize,
    /// Of those in use: not in the list.
    pub missing: usize,
    /// Of those in use: listed on a server where they are not in use.
    pub elsewhere: usize,
    /// Listed on a server that was asked, and in use on neither.
    pub stale: usize,
    /// Why the master cannot be asked.
    pub trouble: String,
}

impl Standings {
    /// Whether anything is to be changed.
    pub fn is_wrong(&self) -> bool {
        self.keeps_away() || self.stale > 0
    }

    /// Whether clients of frontends do not reach what there is.
    pub fn keeps_away(&self) -> bool {
        self.reserved + self.missing + self.elsewhere > 0
    }
}

/// What both servers were told, by name; none: neither is of a Murder.
fn merged(both: Both<'_>) -> Option<BTreeMap<&[u8], &Listed>> {
    let lists: Vec<&List> =
        Side::BOTH.iter().filter_map(|side| both.on(*side).list.as_ref()).collect();
    let entries = lists.iter().flat_map(|list| &list.entries).map(|e| (e.name.as_slice(), e));
    (!lists.is_empty()).then(|| entries.collect())
}

/// Compares the list with what the servers have; none: neither is of a Murder.
pub fn compare(both: Both<'_>) -> Option<Standings> {
    let listed = merged(both)?;
    let lists = || Side::BOTH.iter().filter_map(|side| both.on(*side).list.as_ref());
    let first = |text: fn(&List) -> &String| {
        lists().map(text).find(|text| !text.is_empty()).cloned().unwrap_or_default()
    };
    let mut standings = Standings {
        master: first(|list| &list.master),
        trouble: first(|list| &list.trouble),
        mailboxes: listed.len(),
        reserved: listed.values().filter(|entry| entry.reserved).count(),
        ..Standings::default()
    };
    if !standings.trouble.is_empty() {
        return Some(standings);
    }
    let in_use =
        |seen: &Seen, name: &[u8]| seen.of(Standing::Live).any(|m| m.name == name && !m.name_only);
    let names: BTreeSet<&[u8]> = Side::BOTH
        .iter()
        .flat_map(|side| both.on(*side).of(Standing::Live))
        .filter(|m| !m.name_only)
        .map(|m| m.name.as_slice())
        .collect();
    for name in names {
        let right = |entry: &Listed| {
            let seen = Side::BOTH.map(|side| both.on(side));
            seen.iter().any(|seen| seen.is_called(&entry.server) && in_use(seen, name))
        };
        match listed.get(name) {
            None => standings.missing += 1,
            Some(entry) => standings.elsewhere += usize::from(!entry.reserved && !right(entry)),
        }
    }
    standings.stale = stale(both).iter().map(|(_, names)| names.len()).sum();
    Some(standings)
}

/// What is listed on a server that was asked, and is in use nowhere, by that server.
pub fn stale(both: Both<'_>) -> [(Side, Vec<Vec<u8>>); 2] {
    let listed = merged(both).unwrap_or_default();
    let is_live = |name: &[u8]| {
        let live = |m: &Mailbox| m.standing == Standing::Live && m.name == name;
        Side::BOTH.iter().any(|side| both.on(*side).mailboxes.iter().any(live))
    };
    Side::BOTH.map(|side| {
        let ours = listed.values().filter(|e| both.on(side).is_called(&e.server));
        (side, ours.filter(|e| !is_live(&e.name)).map(|e| e.name.clone()).collect())
    })
}

/// What `ctl_mboxlist -m` has taken away although no other server has it any more: kept
/// below DELETED on one server, while the list has it on another one, which has lost it.
pub fn taken_away(both: Both<'_>) -> Vec<&Mailbox> {
    let listed = merged(both).unwrap_or_default();
    let usable = |m: &&Mailbox| {
        let here = [Standing::Live, Standing::Moving, Standing::Deleted];
        here.contains(&m.standing) && m.has_files()
    };
    let is_somewhere = |name: &[u8]| {
        let mut all = Side::BOTH.iter().flat_map(|side| &both.on(*side).mailboxes);
        all.any(|m| m.name == name && usable(&m))
    };
    let mut taken = Vec::new();
    for seen in Side::BOTH.map(|side| both.on(side)) {
        for mailbox in seen.mailboxes.iter().filter(|m| m.kept && usable(m)) {
            let entry = listed.get(mailbox.original.as_slice());
            let elsewhere = entry.is_some_and(|entry| !seen.is_called(&entry.server));
            if elsewhere && !is_somewhere(&mailbox.original) {
                taken.push(mailbox);
            }
        }
    }
    taken
}

/// Servers that the list names, and that were not asked.
pub fn strangers(both: Both<'_>) -> BTreeSet<String> {
    let listed = merged(both).unwrap_or_default();
    let asked = |e: &Listed| Side::BOTH.iter().any(|side| both.on(*side).is_called(&e.server));
    listed.into_values().filter(|e| !asked(e)).map(|e| e.server.clone()).collect()
}
