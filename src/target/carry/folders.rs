//! Mailboxes that were made, renamed or deleted on the source, their rights, and
//! what the user subscribes to.

use super::imap::quoted;
use super::ledger::{Deed, Line};
use super::live::{Mailbox, Tree, id_of};
use super::{Offered, Result, Run};
use crate::cyrus::name::MailboxName;
use crate::wire::v1::{self, problem::Severity};
use bytes::Bytes;
use std::collections::BTreeMap;

const NO_ADMIN: &str = "imapd.conf of this server names no admin";

/// Makes sure that the offered mailboxes are here, under the names that they have on the
/// source now, unless they have got others here. Parents come first.
pub fn place<'a>(run: &mut Run<'_>, all: impl Iterator<Item = &'a Offered>) -> Result<()> {
    let mut new = Vec::new();
    for offered in all {
        match run.here(offered).map(|entry| entry.name.clone()) {
            Some(here) if here != offered.name => {
                // It may take a name that one of them frees, or the other way round.
                make(run, std::mem::take(&mut new))?;
                rename(run, offered, &here)?;
            }
            // With its parent, or by the user here, too.
            Some(here) if offered.name_then.as_ref().is_some_and(|then| *then != here) => {
                run.write([Line::Did(Deed::Mailbox, said_of("renamed", &here))])?;
            }
            None if offered.name_then.is_none() && !offered.name_only => new.push(offered),
            _ => {}
        }
    }
    make(run, new)
}

/// Makes mailboxes, without waiting for one before the next.
fn make(run: &mut Run<'_>, new: Vec<&Offered>) -> Result<()> {
    // Made here by the user in the meantime is as good.
    let missing = |offered: &&Offered| run.tree.by_name(&offered.name).is_none();
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
        match run.tree.by_name(name).map(id_of) {
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

fn rename(run: &mut Run<'_>, offered: &Offered, here: &MailboxName) -> Result<()> {
    let named_by_us = |verb| run.ledger.deeds.contains(&(Deed::Mailbox, said_of(verb, here)));
    let ours = named_by_us("made") || named_by_us("renamed");
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

/// Deletes a mailbox that was deleted on the source, if nobody has used it here.
pub fn delete(run: &mut Run<'_>, offered: &Offered) -> Result<()> {
    let Some(here) = run.here(offered).cloned() else { return Ok(()) };
    let untouched = match &here.partition {
        Some(_) => {
            let mailbox = Mailbox::read(run.host, &here)?;
            mailbox.view()?.header().highestmodseq <= offered.highestmodseq
        }
        None => true,
    };
    if here.name == *run.top || !untouched || Some(&here.name) != offered.name_then.as_ref() {
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
    for change in &offered.rights {
        let Some(here) = run.here(offered).cloned() else { return Ok(()) };
        let id = &change.identifier;
        let now = here.acl.rights(id).unwrap_or_default();
        let shown = crate::wire::printable(&String::from_utf8_lossy(id));
        if now == change.now {
            continue;
        }
        let what = |rights: &[u8]| {
            let rights = crate::wire::printable(&String::from_utf8_lossy(rights));
            format!("{} of {shown}: {rights}", said_of("rights", &here.name))
        };
        let did = |deed, what| run.ledger.deeds.contains(&(deed, what));
        let ours = did(Deed::Other, what(now)) || did(Deed::Mailbox, said_of("made", &here.name));
        if now != change.then && !ours {
            let text = format!("the rights of {shown} were changed on both servers");
            run.leave(Severity::Note, &here.name, 0, text);
            continue;
        }
        let name = run.external(&here.name)?;
        let said = match change.now.is_empty() {
            true => administer(run, "DELETEACL", &[&name, id])?,
            false => administer(run, "SETACL", &[&name, id, &change.now])?,
        };
        run.tree = Tree::read(run.host, run.top)?;
        let set = run
            .here(offered)
            .is_some_and(|entry| entry.acl.rights(id).unwrap_or_default() == change.now);
        if set {
            run.write([Line::Did(Deed::Other, what(&change.now))])?;
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
    let changes: [(&str, &[Bytes]); 2] =
        [("SUBSCRIBE", &found.subscribed), ("UNSUBSCRIBE", &found.unsubscribed)];
    for (command, names) in changes {
        for name in names {
            let Ok(name) = MailboxName::from_internal(name) else { continue };
            let verb = command.to_lowercase();
            let what = said_of(&verb, &name);
            // Once: he may have changed his mind here.
            if run.ledger.deeds.contains(&(Deed::Other, what.clone())) {
                continue;
            }
            match administer(run, command, &[&run.external(&name)?])? {
                None => run.write([Line::Did(Deed::Other, what)])?,
                Some(said) => {
                    run.leave(Severity::Note, &name, 0, format!("he cannot {verb}: {said}"));
                }
            }
        }
    }
    Ok(())
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
