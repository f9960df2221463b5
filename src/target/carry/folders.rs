//! Mailboxes that were made, renamed or deleted on the source, their rights, and
//! what the user subscribes to.

use super::imap::quoted;
use super::ledger::{Deed, Line};
use super::live::{Mailbox, Tree, id_of};
use super::{Offered, Result, Run};
use crate::cyrus::mboxlist::MailboxEntry;
use crate::cyrus::mboxlist::mbtype::{Flag, Kind};
use crate::cyrus::name::MailboxName;
use crate::wire::v1::{self, problem::Severity};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

const NO_ADMIN: &str = "imapd.conf of this server names no admin";

/// Makes sure that the offered mailboxes are here, under the names that they have on the
/// source now, unless they have got others here. Parents come first. Who is to get a name
/// that another one of them still has waits until that one has left it.
pub fn place(run: &mut Run<'_>, all: &[&Offered]) -> Result<()> {
    let (mut over, mut aside) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let (done, waiting) = pass(run, all, &mut over)?;
        if done > 0 {
            continue;
        }
        // Each waits for another, as where two have swapped their names.
        let moves = |o: &&&Offered| run.here(o).is_some() && !aside.contains(o.id.as_str());
        let Some(next) = waiting.iter().find(moves) else {
            for offered in waiting {
                let text = "it cannot get its name, which another one has here";
                run.leave(Severity::Note, &offered.name, 0, text);
            }
            return Ok(());
        };
        aside.insert(next.id.as_str());
        put_aside(run, next)?;
    }
}

/// What has the name that a mailbox is to get.
enum There {
    /// Nothing, or nothing that was offered.
    Free,
    /// One that will get another name.
    Leaving,
    /// One that was deleted on the source and was changed here: they become one.
    Kept,
    /// One that stays.
    Taken,
}

/// Places whatever can be placed and is not `over`; how many that were, and who waits.
fn pass<'o>(
    run: &mut Run<'_>,
    all: &[&'o Offered],
    over: &mut BTreeSet<&'o str>,
) -> Result<(usize, Vec<&'o Offered>)> {
    let mut waiting: Vec<(&Offered, Option<MailboxName>)> = Vec::new();
    let (mut new, mut done) = (Vec::new(), 0);
    for offered in all.iter().copied().filter(|o| !o.gone && o.kind != Kind::Sieve) {
        let here = run.here(offered).map(|entry| entry.name.clone());
        match &here {
            _ if over.contains(offered.id.as_str()) && here.as_ref() != Some(&offered.name) => {
                continue;
            }
            Some(here) if *here == offered.name => {
                // With its parent, or by the user here, too.
                let renamed = offered.name_then.as_ref().is_some_and(|then| then != here);
                let deed = (Deed::Mailbox, said_of("renamed", here));
                if renamed && !run.ledger.deeds.contains(&deed) {
                    run.write([Line::Did(deed.0, deed.1)])?;
                }
                continue;
            }
            None if offered.name_then.is_some() || offered.name_only => continue,
            _ => {}
        }
        let below = |(other, there): &(&Offered, Option<MailboxName>)| {
            let moves_along = here.as_ref().zip(there.as_ref()).is_some_and(|(a, b)| a.is_below(b));
            offered.name.is_below(&other.name) || moves_along
        };
        if waiting.iter().any(below) {
            waiting.push((offered, here));
            continue;
        }
        if here.is_some() {
            // It may come below one of them.
            make(run, std::mem::take(&mut new))?;
        }
        match (at_name(run, all, over, offered)?, here) {
            (There::Leaving, here) => {
                waiting.push((offered, here));
                continue;
            }
            (There::Taken, None) => {
                let text = "it cannot be made: another one has its name here";
                run.leave(Severity::Note, &offered.name, 0, text);
            }
            (_, None) => new.push(offered),
            (_, Some(here)) => rename(run, all, offered, &here)?,
        }
        over.insert(offered.id.as_str());
        done += 1;
    }
    make(run, new)?;
    Ok((done, waiting.into_iter().map(|(offered, _)| offered).collect()))
}

/// What has the name that this one is to get. What was deleted on the source and is as it
/// was published is deleted now, and not in the way any more.
fn at_name(
    run: &mut Run<'_>,
    all: &[&Offered],
    over: &BTreeSet<&str>,
    offered: &Offered,
) -> Result<There> {
    let Some(there) = run.tree.by_name(&offered.name).filter(|entry| !is_place_only(entry)) else {
        return Ok(There::Free);
    };
    let id = id_of(there);
    let is_it = |o: &&&Offered| o.id != offered.id && run.id_here(o) == id;
    let Some(other) = all.iter().find(is_it) else { return Ok(There::Free) };
    if !other.gone {
        let stays = over.contains(other.id.as_str()) || there.name == other.name;
        let by_the_user = there.name != other.name && other.name_then.as_ref() == Some(&other.name);
        return Ok(match (stays, by_the_user) {
            (false, _) => There::Leaving,
            // As good as one that he has made here.
            (true, true) => There::Free,
            (true, false) => There::Taken,
        });
    }
    if !is_as_it_was(run, other)? {
        return Ok(There::Kept);
    }
    // None is deleted that has others below it.
    let name = there.name.clone();
    let is_below = |o: &&&Offered| run.here(o).is_some_and(|here| here.name.is_below(&name));
    let below: Vec<&Offered> = all.iter().filter(is_below).copied().collect();
    let leaves = |o: &&Offered| {
        let stays = run.here(o).is_none_or(|here| here.name == o.name);
        !o.gone && !stays && !over.contains(o.id.as_str())
    };
    if below.iter().any(leaves) {
        return Ok(There::Leaving);
    }
    for gone in below.into_iter().rev().filter(|o| o.gone) {
        if is_as_it_was(run, gone)? {
            delete(run, gone)?;
        }
    }
    delete(run, other)?;
    let left = run.tree.by_name(&offered.name).is_some_and(|entry| !is_place_only(entry));
    Ok(if left { There::Taken } else { There::Free })
}

/// Whether it is only a place in the hierarchy: a mailbox can be made there.
fn is_place_only(entry: &MailboxEntry) -> bool {
    entry.mbtype.has(Flag::Intermediate)
}

/// Gives a mailbox a name that nothing has, so that another one can get the one it has.
fn put_aside(run: &mut Run<'_>, offered: &Offered) -> Result<()> {
    let Some(here) = run.here(offered).map(|entry| entry.name.clone()) else { return Ok(()) };
    let name = |n: u32| {
        MailboxName::from_internal(&[here.as_bytes(), format!("-{n}").as_bytes()].concat())
    };
    let free = |name: &MailboxName| run.tree.by_name(name).is_none();
    let Some(aside) = (1..100).filter_map(|n| name(n).ok()).find(free) else { return Ok(()) };
    // Before it is done: a name that nobody knows would be taken for one given by the user.
    run.write([Line::Did(Deed::Begun, said_of("renamed", &aside))])?;
    let (from, to) = (run.external(&here)?, run.external(&aside)?);
    let said = administer(run, "RENAME", &[&from, &to])?;
    run.tree = Tree::read(run.host, run.top)?;
    if let Some(said) = said {
        let to = run.host.external(&aside);
        run.leave(Severity::Note, &here, 0, format!("it cannot be renamed to {to}: {said}"));
    }
    Ok(())
}

/// Makes mailboxes, without waiting for one before the next.
fn make(run: &mut Run<'_>, new: Vec<&Offered>) -> Result<()> {
    // Made here by the user in the meantime is as good.
    let missing = |offered: &&Offered| run.tree.by_name(&offered.name).is_none_or(is_place_only);
    let made: Vec<&Offered> = new.iter().copied().filter(missing).collect();
    let mut said = BTreeMap::new();
    if let (Some(owner), false) = (run.owner(), made.is_empty()) {
        let mut lines = Vec::new();
        for offered in &made {
            lines.push([b"CREATE ", &quoted(&run.external(&offered.name)?)[..]].concat());
        }
        let answers = run.session(&owner)?.all(&lines)?;
        let names = made.iter().map(|offered| &offered.name);
        said.extend(names.zip(answers).map(|(name, answer)| (name, answer.text)));
        run.tree = Tree::read(run.host, run.top)?;
    }
    let mut lines = Vec::new();
    for offered in new {
        let name = &offered.name;
        let there = run.tree.by_name(name).filter(|entry| !is_place_only(entry));
        match there.map(id_of) {
            Some(here) => {
                lines.push(Line::Placed(offered.id.as_str().to_owned(), here));
                if said.contains_key(name) {
                    lines.push(Line::Did(Deed::Mailbox, said_of("made", name)));
                }
            }
            None => {
                let why = said.get(name).map_or(NO_ADMIN, String::as_str);
                run.leave(Severity::Note, name, 0, format!("it cannot be made: {why}"));
            }
        }
    }
    run.write(lines)
}

fn rename(
    run: &mut Run<'_>,
    all: &[&Offered],
    offered: &Offered,
    here: &MailboxName,
) -> Result<()> {
    let deed = |deed, verb| run.ledger.deeds.contains(&(deed, said_of(verb, here)));
    let ours = deed(Deed::Mailbox, "made")
        || deed(Deed::Mailbox, "renamed")
        || deed(Deed::Begun, "renamed")
        || all.iter().any(|other| came_along(other, offered, here));
    if Some(&offered.name) == offered.name_then.as_ref() && !ours {
        // Here alone, by the user.
        return Ok(());
    }
    if Some(here) != offered.name_then.as_ref() && !ours {
        let text = "it was renamed on both servers, and keeps its name here";
        run.leave(Severity::Note, here, 0, text);
        return Ok(());
    }
    let (from, to) = (run.external(here)?, run.external(&offered.name)?);
    let said = administer(run, "RENAME", &[&from, &to])?;
    run.tree = Tree::read(run.host, run.top)?;
    match said {
        Some(said) => {
            let to = run.host.external(&offered.name);
            run.leave(Severity::Note, here, 0, format!("it cannot be renamed to {to}: {said}"));
            Ok(())
        }
        None => run.write([Line::Did(Deed::Mailbox, said_of("renamed", &offered.name))]),
    }
}

/// Whether `here` is the name that a mailbox has got because `parent`, which it was below,
/// was renamed.
fn came_along(parent: &Offered, offered: &Offered, here: &MailboxName) -> bool {
    let below = |name: &MailboxName, parent: &MailboxName| {
        let rest = name.as_bytes().strip_prefix(parent.as_bytes())?;
        rest.starts_with(b".").then(|| rest.to_vec())
    };
    let then = offered.name_then.as_ref().zip(parent.name_then.as_ref());
    let rest = then.and_then(|(name, parent)| below(name, parent));
    rest.is_some() && rest == below(here, &parent.name)
}

/// Whether a mailbox is as it was published: nobody has used it here.
fn is_as_it_was(run: &Run<'_>, offered: &Offered) -> Result<bool> {
    let Some(here) = run.here(offered) else { return Ok(true) };
    let untouched = match &here.partition {
        Some(_) => {
            let mailbox = Mailbox::read(run.host, here)?;
            mailbox.view()?.header().highestmodseq <= offered.highestmodseq
        }
        None => true,
    };
    Ok(here.name != *run.top && untouched && Some(&here.name) == offered.name_then.as_ref())
}

/// Deletes a mailbox that was deleted on the source, if nobody has used it here.
pub fn delete(run: &mut Run<'_>, offered: &Offered) -> Result<()> {
    // Its children are left: there is nothing more to delete.
    let here = run.here(offered).filter(|entry| !is_place_only(entry)).cloned();
    let Some(here) = here else { return Ok(()) };
    if !is_as_it_was(run, offered)? {
        let text = "it was deleted on the source and changed here; it stays";
        run.leave(Severity::Note, &here.name, 0, text);
        return Ok(());
    }
    let said = administer(run, "DELETE", &[&run.external(&here.name)?])?;
    run.tree = Tree::read(run.host, run.top)?;
    match said {
        Some(said) => {
            run.leave(Severity::Note, &here.name, 0, format!("it cannot be deleted: {said}"));
            Ok(())
        }
        None => run.write([Line::Did(Deed::Mailbox, said_of("deleted", &here.name))]),
    }
}

/// Gives and takes the rights that were given and taken on the source.
pub fn rights(run: &mut Run<'_>, offered: &Offered) -> Result<()> {
    let id = offered.id.as_str().to_owned();
    let mut changes = offered.rights.clone();
    // What was changed and is as it was again: only what we did is taken back.
    for ((_, identifier), then) in run.ledger.rights.iter().filter(|((of, _), _)| *of == id) {
        if !changes.iter().any(|change| change.identifier == identifier) {
            let [identifier, then] = [identifier, then].map(|bytes| Bytes::copy_from_slice(bytes));
            changes.push(v1::RightsChange { identifier, now: then.clone(), then });
        }
    }
    for change in &changes {
        let Some(here) = run.here(offered).cloned() else { return Ok(()) };
        let whose = &change.identifier;
        let now = here.acl.rights(whose).unwrap_or_default();
        let shown = crate::wire::printable(&String::from_utf8_lossy(whose));
        if now == change.now {
            continue;
        }
        let what = |rights: &[u8]| {
            let rights = crate::wire::printable(&String::from_utf8_lossy(rights));
            format!("{} of {shown}: {rights}", said_of("rights", &here.name))
        };
        let did = |deed, what| run.ledger.deeds.contains(&(deed, what));
        let ours = did(Deed::Other, what(now)) || did(Deed::Mailbox, said_of("made", &here.name));
        if change.now == change.then && !ours {
            continue;
        }
        if now != change.then && !ours {
            let text = format!("the rights of {shown} were changed on both servers");
            run.leave(Severity::Note, &here.name, 0, text);
            continue;
        }
        let name = run.external(&here.name)?;
        let said = match change.now.is_empty() {
            true => administer(run, "DELETEACL", &[&name, whose])?,
            false => administer(run, "SETACL", &[&name, whose, &change.now])?,
        };
        run.tree = Tree::read(run.host, run.top)?;
        let set = run
            .here(offered)
            .is_some_and(|entry| entry.acl.rights(whose).unwrap_or_default() == change.now);
        if set {
            let then = Line::Rights(id.clone(), change.identifier.to_vec(), change.then.to_vec());
            run.write([Line::Did(Deed::Other, what(&change.now)), then])?;
        } else {
            let text = format!(
                "the rights of {shown}, {} on the source, are not the same here: {}",
                crate::wire::printable(&String::from_utf8_lossy(&change.now)),
                said.unwrap_or_default()
            );
            run.leave(Severity::Note, &here.name, 0, text);
        }
    }
    Ok(())
}

/// Subscribes the user to what he has subscribed to on the source.
pub fn subscribe(run: &mut Run<'_>, found: &v1::StragglersFound) -> Result<()> {
    for (name, (now, then)) in subscriptions(&run.ledger.subscribed, found) {
        // Once: he may have changed his mind here.
        if run.ledger.subscribed.get(&name).is_some_and(|(done, _)| *done == now) {
            continue;
        }
        let Ok(mailbox) = MailboxName::from_internal(&name) else { continue };
        let command = if now { "SUBSCRIBE" } else { "UNSUBSCRIBE" };
        let what = said_of(&command.to_lowercase(), &mailbox);
        match administer(run, command, &[&run.external(&mailbox)?])? {
            None => {
                run.write([Line::Did(Deed::Other, what), Line::Subscribed(name, now, then)])?;
            }
            Some(said) => {
                let verb = command.to_lowercase();
                run.leave(Severity::Note, &mailbox, 0, format!("he cannot {verb}: {said}"));
            }
        }
    }
    Ok(())
}

/// Whether he subscribes to a mailbox, and whether he did when he was published.
type Subscriptions = BTreeMap<Vec<u8>, (bool, bool)>;

/// What is different on the source, and, of what was `done` before, what is not any more.
fn subscriptions(done: &Subscriptions, found: &v1::StragglersFound) -> Subscriptions {
    let again = done.iter().map(|(name, (_, then))| (name.clone(), (*then, *then)));
    let on = found.subscribed.iter().map(|name| (name.to_vec(), (true, false)));
    let off = found.unsubscribed.iter().map(|name| (name.to_vec(), (false, true)));
    again.chain(on).chain(off).collect()
}

/// Has the owner, or an admin, do something; what the server said if it did not.
fn administer(run: &mut Run<'_>, verb: &str, words: &[&[u8]]) -> Result<Option<String>> {
    let Some(owner) = run.owner() else {
        return Ok(Some(NO_ADMIN.into()));
    };
    let answer = run.session(&owner)?.command(verb, words)?;
    Ok((!answer.ok).then_some(answer.text))
}

fn said_of(verb: &str, name: &MailboxName) -> String {
    format!("{verb} {}", name.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_that_is_as_it_was_again_is_put_back() {
        let name = |text: &str| text.as_bytes().to_vec();
        let done = Subscriptions::from([
            (name("user.x.a"), (true, false)),
            (name("user.x.b"), (false, true)),
            (name("user.x.c"), (true, false)),
        ]);
        let found = v1::StragglersFound {
            subscribed: vec![name("user.x.c").into()],
            unsubscribed: vec![name("user.x.d").into()],
            ..v1::StragglersFound::default()
        };
        let expected = Subscriptions::from([
            (name("user.x.a"), (false, false)),
            (name("user.x.b"), (true, true)),
            (name("user.x.c"), (true, false)),
            (name("user.x.d"), (false, true)),
        ]);
        assert_eq!(subscriptions(&done, &found), expected);
    }
}
