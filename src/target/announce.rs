//! Telling this server's own squatter and replicas of a user who has come, by Cyrus's log
//! of changes: nothing that was published has gone through it.
//!
//! The search index does not move. Xapian's is of the user and of this server's search
//! partitions and tiers; squatter makes it anew when it is told of each mailbox, or when
//! it next goes through all of them.

use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::name::MailboxName;
use crate::host::Host;
use std::time::Duration;

/// Most bytes of lines that are given to `cyr_synclog` at once: it formats them in 4096.
const MOST: usize = 3000;

/// How long `cyr_synclog` may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Tells them; what the admin must know of it.
pub fn announce(host: &Host, top: &MailboxName) -> Vec<String> {
    let engine = host.config.get("search_engine").unwrap_or_else(|| "none".into());
    let user = top.userid().map(|user| String::from_utf8_lossy(user.as_bytes()).into_owned());
    let shown = host.external(top);
    let by_hand = match &user {
        Some(user) => format!("squatter -i -u {user}"),
        None => format!("squatter -i -r {shown}"),
    };
    let logs = host.config.switch("sync_log", false).unwrap_or(false);
    let told = host.config.get("sync_log_channels").unwrap_or_default();
    let rolling = logs && told.split_ascii_whitespace().any(|channel| channel == "squatter");
    let mut notes = Vec::new();
    if logs && let Err(reason) = tell(host, top, user.as_deref()) {
        notes.push(format!("this server's log of changes does not know of {shown}: {reason}"));
    } else if rolling {
        return notes;
    }
    if engine != "none" {
        notes.push(format!(
            "the search index is not moved: squatter makes it anew when it next runs, or now by: \
             {by_hand}"
        ));
    }
    notes
}

fn tell(host: &Host, top: &MailboxName, user: Option<&str>) -> Result<(), String> {
    let database = host.mailboxes().map_err(|e| e.to_string())?;
    let list = MailboxList::from_database(&database).map_err(|e| e.to_string())?;
    let tree = list.tree(top).map_err(|e| e.to_string())?;
    let names = tree.iter().filter(|e| e.partition.is_some() && !e.is_deleted());
    for lines in lines(user, names.map(|entry| entry.name.as_bytes())) {
        let ran = host.tools.run(&host.conf, "cyr_synclog", &[lines], Vec::new(), LIMIT);
        let output = ran.map_err(|e| e.to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("cyr_synclog: {}", crate::wire::printable(said.trim())));
        }
    }
    Ok(())
}

/// Lines of the log, as many as fit into one call: the user for replicas, and each mailbox
/// for squatter, which looks at nothing else (imap/squatter.c: do_rolling).
fn lines<'a>(user: Option<&str>, names: impl Iterator<Item = &'a [u8]>) -> Vec<String> {
    let user = user.map(|user| format!("USER {}", quoted(user)));
    let appended = names.map(|name| format!("APPEND {}", quoted(&String::from_utf8_lossy(name))));
    let mut all: Vec<String> = Vec::new();
    for line in user.into_iter().chain(appended) {
        match all.last_mut() {
            Some(last) if last.len() + line.len() < MOST => {
                last.push('\n');
                last.push_str(&line);
            }
            _ => all.push(line),
        }
    }
    all
}

/// A name as a word of the log (imap/sync_log.c: sync_quote_name); what is given to
/// `cyr_synclog` is a format.
fn quoted(name: &str) -> String {
    let mut text = String::from("\"");
    for c in name.chars() {
        match c {
            '\\' | '"' | '{' | '}' => text.extend(['\\', c]),
            '%' => text.push_str("%%"),
            c if c.is_control() => {}
            c => text.push(c),
        }
    }
    text.push('"');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_and_many_fit_into_one_call() {
        let names: [&[u8]; 3] = [b"user.x", b"user.x.50% off", b"user.x.a\"b{1}"];
        let lines = lines(Some("x"), names.into_iter());
        let expected = "USER \"x\"\nAPPEND \"user.x\"\nAPPEND \"user.x.50%% off\"\n\
                        APPEND \"user.x.a\\\"b\\{1\\}\"";
        assert_eq!(lines, [expected]);
        let many: Vec<Vec<u8>> = (0..1000).map(|n| format!("user.x.f{n}").into_bytes()).collect();
        let lines = super::lines(None, many.iter().map(Vec::as_slice));
        assert!(lines.len() > 5 && lines.iter().all(|l| l.len() < MOST));
        assert_eq!(lines.iter().flat_map(|l| l.lines()).count(), 1000);
    }
}
