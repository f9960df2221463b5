//! A user with everything that Cyrus can hold is the same after the move.

use crate::support::{Servers, assert_same, fingerprint};
use lab::fingerprint::{Fingerprint, Take};
use lab::lmtp::Outcome;
use lab::seed::{self, Seed};

#[test]
fn a_rich_user_and_then_a_second_user_move_and_nothing_changes() {
    let servers = Servers::fresh();
    servers.accounts(&["anna", "bert"]);
    let seeded = Seed::new(&servers.source, "anna").rich("bert", 600).unwrap();
    assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
    let anna = fingerprint(&servers.source, "anna", &["bert"]);
    let bert = fingerprint(&servers.source, "bert", &[]);
    assert!(anna.own.mailboxes.len() >= 36, "{} folders", anna.own.mailboxes.len());
    assert!(anna.messages().count() >= 500, "{} messages", anna.messages().count());
    assert!(!anna.delayed_expunged.is_empty(), "nothing is kept by delayed expunge");
    assert!(anna.errors.is_empty(), "{:?}", anna.errors);

    let pushed = servers.push("user.anna", &["--json"]).expect(0);
    let report = pushed.report().unwrap();
    assert_eq!(report["outcome"], "done");
    assert_eq!(report["serving"], "bw2");
    assert!(report["freeze_ms"].as_f64().unwrap() > 0.0, "he was never frozen: {report}");
    let moved = fingerprint(&servers.target, "anna", &[]);
    assert_same(&Fingerprint { others: Default::default(), ..anna.clone() }, &moved, &[]);

    // The second user's own state in the first user's folders comes with him.
    servers.push("user/bert", &[]).expect(0).says(&["user.bert: moved; bw2 serves the user now"]);
    assert_same(&bert, &fingerprint(&servers.target, "bert", &[]), &[]);
    assert_same(&anna, &fingerprint(&servers.target, "anna", &["bert"]), &[]);
}

#[test]
fn a_shared_tree_moves_with_its_rights_and_messages() {
    let servers = Servers::fresh();
    servers.accounts(&["carl", "dora"]);
    for user in ["carl", "dora"] {
        Seed::new(&servers.source, user).small().unwrap();
    }
    seed::shared_tree(&servers.source, "team.sales", &["carl", "dora"]).unwrap();
    let look = |host| {
        Fingerprint::take_tree(host, "team.sales", &["carl", "dora"], &Take::default()).unwrap()
    };
    let before = look(&servers.source);
    assert!(!before.others["carl"].mailboxes.is_empty());
    servers.push("team.sales", &[]).expect(0);
    // What they have read there, and that they subscribed, comes with them.
    servers.push("user.carl", &[]).expect(0);
    servers.push("user/dora", &[]).expect(0);
    assert_same(&before, &look(&servers.target), &[]);
}

#[test]
fn nothing_of_the_source_is_deleted() {
    let servers = Servers::fresh();
    servers.accounts(&["emil"]);
    Seed::new(&servers.source, "emil").small().unwrap();
    let messages = || {
        let list = "find /var/spool/cyrus/mail -type f -name '[0-9]*.' -exec sha1sum {} + \
                    | cut -c1-40 | sort";
        servers.source.run(&["sh", "-c", list]).unwrap()
    };
    let before = messages();
    assert!(before.lines().count() >= 40, "{before}");
    servers.push("user.emil", &[]).expect(0);
    assert_eq!(before, messages());
    let kept = servers.source.run(&["sh", "-c", "ls -d /var/spool/cyrus/mail/.mbcopy/*"]).unwrap();
    assert_eq!(kept.lines().count(), 1, "{kept}");
    // Late deliveries are deferred, and so is whoever still opens the mailbox.
    let late = lab::lmtp::deliver(&servers.source, "emil", b"Subject: late\r\n\r\nx\r\n");
    assert!(matches!(&late, Outcome::Refused(_, reply) if reply.code / 100 == 4), "{late:?}");
}
