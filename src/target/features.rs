//! What the user has that this server does not serve: it is built or set up without it.
//! His data move all the same, and lie here as they would anywhere.

use crate::cyrus::dlist::Dlist;
use crate::cyrus::mboxlist::mbtype::{Kind, Mbtype};
use crate::host::Host;
use crate::wire::v1::{self, problem::Severity};
use std::collections::BTreeSet;

/// Notes for the plan.
pub fn unserved(host: &Host, mailboxes: &[v1::Mailbox]) -> Vec<v1::Problem> {
    let kinds: BTreeSet<u8> = mailboxes.iter().map(|m| kind(m).letter()).collect();
    let has = |kind: Kind| kinds.contains(&kind.letter());
    let installed = |program: &str| host.tools.find(program).is_ok();
    let modules = host.config.get("httpmodules").unwrap_or_default().to_ascii_lowercase();
    let serves = |module| modules.split_ascii_whitespace().any(|word| word == module);
    let mut notes = Vec::new();
    for (kind, module, what) in
        [(Kind::Calendar, "caldav", "calendars"), (Kind::Addressbook, "carddav", "address books")]
    {
        let why = match (installed("httpd"), serves(module)) {
            (false, _) => "Cyrus's httpd is not installed on this server",
            (true, false) => "httpmodules of this server does not name it",
            (true, true) => continue,
        };
        if has(kind) {
            notes.push(v1::Problem::new(
                Severity::Note,
                &format!("no-{module}"),
                format!(
                    "the user has {what}, and here no client will reach them by {module}: {why}"
                ),
                "install Cyrus's httpd (Debian: cyrus-caldav), and set httpmodules",
            ));
        }
    }
    if has(Kind::Sieve) && !installed("timsieved") {
        notes.push(v1::Problem::new(
            Severity::Note,
            "no-sieve",
            "the user has sieve scripts, and Cyrus's timsieved is not installed on this server"
                .into(),
            "",
        ));
    }
    notes
}

fn kind(mailbox: &v1::Mailbox) -> Kind {
    let record = Dlist::parse(&mailbox.name_record).ok();
    let letters = record.as_ref().and_then(|r| r.get(b"T")).and_then(Dlist::as_bytes);
    Mbtype::from_letters(letters.unwrap_or_default()).kind
}
