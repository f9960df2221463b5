//! Sieve scripts: from 3.6 on each is a message of a mailbox of its own, whose
//! subject is the script's name. They are put here by the commands of Cyrus's own
//! replication, which keep all that belongs to a script.
//!
//! The scripts are one thing: if one of them was changed on both servers, none is
//! carried over.

use super::imap::quoted;
use super::ledger::{Deed, How, Line};
use super::live::{self, Mailbox};
use super::messages::Different;
use super::{Offered, Result, Run, STAGE, file_name};
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
    let news: Vec<_> = offered.stragglers.iter().filter(|s| !settled(run, s)).collect();
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
    let (mut put, mut removed) = (BTreeMap::new(), BTreeSet::new());
    for straggler in &news {
        let new = straggler.uid > offered.last_uid;
        let path = run.directory.join(STAGE).join(ordinal.to_string());
        let bytes = match (new, straggler.expunged) {
            (true, false) => std::fs::read(path.join(file_name(straggler.uid))).ok(),
            (false, true) => {
                here.as_ref().and_then(|here| live::message(run.host, here, straggler.uid))
            }
            // Never here and gone already, or only activated or deactivated.
            _ => continue,
        };
        match bytes.as_deref().and_then(script) {
            Some((name, text)) if new => {
                put.insert(name, text.to_vec());
            }
            Some((name, _)) => {
                removed.insert(name);
            }
            None => {
                let text = "a sieve script whose name is not known is not carried over";
                run.leave(Severity::Note, &offered.name, straggler.uid, text);
            }
        }
    }
    let user = quoted(owner.as_bytes());
    let mut commands = Vec::new();
    for (name, text) in &put {
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
    for (name, command) in commands {
        let answer = run.session(&owner)?.raw(b"SYNCAPPLY ", &command)?;
        if !answer.ok {
            let text = format!("the sieve script {name} is not carried over: {}", answer.text);
            run.leave(Severity::Note, &offered.name, 0, text);
        } else if !name.is_empty() {
            run.write([Line::Did(Deed::Other, format!("sieve script {name}"))])?;
        }
    }
    let lines: Vec<_> = news
        .iter()
        .map(|s| offered.settled(&Different { uid: s.uid, modseq: s.modseq }, 0, How::Same))
        .collect();
    run.write(lines)
}
