//! Sieve scripts: from 3.6 on each is a message of a mailbox of its own, whose
//! subject is the script's name. They are put here by the commands of Cyrus's own
//! replication, which keep all that belongs to a script.
//!
//! The scripts are one thing: if one of them was changed on both servers, none is
//! carried over.

use super::imap::quoted;
use super::ledger::{Deed, How, Line};
use super::live::{self, Mailbox};
use super::messages::{Different, unreadable};
use super::{Offered, Result, Run, STAGE, file_name};
use crate::cyrus::mboxlist::MailboxEntry;
use crate::cyrus::sieve::script;
use crate::wire::v1::{self, problem::Severity};
use std::collections::{BTreeMap, BTreeSet};

/// Carries the scripts over that were put, removed or activated on the source.
pub fn carry(
    run: &mut Run<'_>,
    ordinal: u32,
    offered: &Offered,
    found: &v1::StragglersFound,
) -> Result<()> {
    let settled = |run: &Run<'_>, s: &v1::Straggler| {
        let before = run.ledger.settled.get(&offered.message(s.uid));
        before.is_some_and(|before| before.modseq >= s.modseq)
    };
    let news: Vec<_> = offered.stragglers.iter().filter(|s| !settled(run, s)).cloned().collect();
    // What was put here, and is gone from the source without a trace.
    let gone = run.ledger.scripts_of(offered.id.as_str());
    let gone = gone.filter(|(uid, _)| offered.stragglers.iter().all(|s| s.uid != *uid));
    let gone = gone.map(|(uid, _)| v1::Straggler {
        uid,
        modseq: u64::MAX,
        expunged: true,
        ..v1::Straggler::default()
    });
    let gone: Vec<_> = gone.filter(|s| !settled(run, s)).collect();
    let news = [news, gone].concat();
    let (Some(owner), false) = (run.owner(), news.is_empty()) else { return Ok(()) };
    let here = run.tree.by_name(&offered.name).cloned();
    let begun = (Deed::Begun, "sieve".to_owned());
    if let Some(here) = here.as_ref().filter(|_| !run.ledger.deeds.contains(&begun)) {
        let mailbox = Mailbox::read(run.host, here)?;
        if mailbox.view()?.header().highestmodseq > offered.highestmodseq {
            let text = "sieve scripts were changed on both servers; those here stay";
            run.leave(Severity::Note, &offered.name, 0, text);
            return Ok(());
        }
    }
    run.write([Line::Did(begun.0, begun.1)])?;
    let mut put = BTreeMap::new();
    // What each of the news is about, if anything has to be done for it.
    let (mut names, mut unknown) = (BTreeMap::new(), BTreeSet::new());
    for straggler in &news {
        let uid = straggler.uid;
        let bytes = match (uid > offered.last_uid, straggler.expunged) {
            (true, false) => {
                let path = run.directory.join(STAGE).join(ordinal.to_string());
                std::fs::read(path.join(file_name(uid))).ok()
            }
            (true, true) => {
                // Put here before, or never here.
                let name = run.ledger.scripts.get(&offered.message(uid));
                names.extend(name.map(|name| (uid, name.clone())));
                continue;
            }
            (false, true) => match here.as_ref() {
                Some(here) if is_there(run, here, uid)? => live::message(run.host, here, uid),
                _ => continue,
            },
            // Only activated or deactivated.
            (false, false) => continue,
        };
        match bytes.as_deref().and_then(script) {
            Some((name, text)) => {
                if !straggler.expunged {
                    put.insert(name.clone(), (uid, text.to_vec()));
                }
                names.insert(uid, name);
            }
            None => {
                unknown.insert(uid);
                let text = "a sieve script whose name is not known is not carried over";
                run.leave(Severity::Note, &offered.name, uid, text);
            }
        }
    }
    let expunged = news.iter().filter(|s| s.expunged).filter_map(|s| names.get(&s.uid));
    let mut removed: BTreeSet<String> = expunged.cloned().collect();
    // One that was put again has the name still.
    let stays = |uid: u32| offered.stragglers.iter().any(|s| s.uid == uid && !s.expunged);
    for (uid, name) in run.ledger.scripts_of(offered.id.as_str()) {
        if stays(uid) {
            removed.remove(name);
        }
    }
    let user = quoted(owner.as_bytes());
    let mut commands = Vec::new();
    for (name, (_, text)) in &put {
        let file = quoted(format!("{name}.script").as_bytes());
        let head =
            [b"SIEVE %(USERID ", &user[..], b" FILENAME ", &file, b" LAST_UPDATE 0 CONTENT "];
        let literal = format!("{{{}+}}\r\n", text.len());
        commands.push((name.as_str(), [&head.concat(), literal.as_bytes(), text, b")"].concat()));
    }
    for name in removed.iter().filter(|name| !put.contains_key(*name)) {
        let file = quoted(format!("{name}.script").as_bytes());
        let command = [b"UNSIEVE %(USERID ", &user[..], b" FILENAME ", &file, b")"].concat();
        commands.push((name, command));
    }
    let active = String::from_utf8_lossy(&found.active_sieve).into_owned();
    commands.push(match active.is_empty() {
        true => ("", [b"UNACTIVATE_SIEVE %(USERID ", &user[..], b")"].concat()),
        false => {
            let file = quoted(format!("{active}.bc").as_bytes());
            let head = [b"ACTIVATE_SIEVE %(USERID ", &user[..], b" FILENAME ", &file, b")"];
            ("", head.concat())
        }
    });
    let (mut done, mut refused) = (BTreeSet::new(), false);
    for (name, command) in commands {
        let answer = run.session(&owner)?.raw(b"SYNCAPPLY ", &command)?;
        if !answer.ok {
            let text = format!("the sieve script {name} is not carried over: {}", answer.text);
            run.leave(Severity::Note, &offered.name, 0, text);
            refused |= name.is_empty();
            continue;
        }
        if !name.is_empty() {
            let put = put.get(name).map(|(uid, _)| Line::Put(offered.message(*uid), name.into()));
            let did = Line::Did(Deed::Other, format!("sieve script {name}"));
            run.write([did].into_iter().chain(put))?;
        }
        done.insert(name);
    }
    // The rest is tried again: in the last round, or by the next push.
    let settled = |s: &&v1::Straggler| {
        let name = names.get(&s.uid);
        let kept = name.is_some_and(|name| !put.contains_key(name) && !removed.contains(name));
        !refused
            && !unknown.contains(&s.uid)
            && (kept || name.is_none_or(|name| done.contains(name.as_str())))
    };
    let lines = news
        .iter()
        .filter(settled)
        .map(|s| offered.settled(&Different { uid: s.uid, modseq: s.modseq }, 0, How::Same));
    let lines: Vec<_> = lines.collect();
    run.write(lines)
}

/// Whether a script is in the mailbox here still.
fn is_there(run: &Run<'_>, here: &MailboxEntry, uid: u32) -> Result<bool> {
    let mailbox = Mailbox::read(run.host, here)?;
    let record = mailbox.view()?.find(uid).map_err(unreadable)?;
    Ok(record.is_some_and(|record| !record.is_expunged() && !record.is_unlinked()))
}
