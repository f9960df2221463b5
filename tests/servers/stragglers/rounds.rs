//! What is renamed, undone or lost on the source while its late changes are carried over,
//! in several rounds or in spite of a kill.

use super::{append, commands, folders, numbers, seed, stop_at};
use crate::support::{OptionsPutBack, Servers, fingerprint};
use mbcopy::fault::Point;
use std::collections::BTreeMap;

#[test]
fn folders_that_take_the_names_of_others_are_not_mixed_with_them() {
    let servers = Servers::fresh();
    seed(&servers, "reuse");
    let mut there = servers.source.imap("reuse").unwrap();
    for folder in ["a", "b", "b.deep", "empty", "hull", "hull.core", "nest", "nest.deep"] {
        commands(&mut there, &[&format!("CREATE INBOX.{folder}")]);
        append(&mut there, &format!("INBOX.{folder}"), &format!("in-{folder}"), &[]);
    }
    stop_at(&servers, "reuse", Point::Routed);
    commands(
        &mut there,
        &[
            // To a name behind the old one, and to one before it.
            "RENAME INBOX.old INBOX.old-2024",
            "CREATE INBOX.old",
            "RENAME INBOX.work INBOX.awork",
            "CREATE INBOX.work",
            "DELETE INBOX.gone",
            "CREATE INBOX.gone",
            "DELETE INBOX.empty",
            "CREATE INBOX.empty",
            "RENAME INBOX.a INBOX.tmp",
            "RENAME INBOX.b INBOX.a",
            "RENAME INBOX.tmp INBOX.b",
            // None is deleted that has others below it.
            "DELETE INBOX.nest.deep",
            "DELETE INBOX.nest",
            "CREATE INBOX.nest",
            "RENAME INBOX.hull.core INBOX.zcore",
            "DELETE INBOX.hull",
            "CREATE INBOX.hull",
            // Below what has the old name now.
            "RENAME INBOX.both INBOX.tmp",
            "CREATE INBOX.both",
            "RENAME INBOX.tmp INBOX.both.below",
        ],
    );
    for folder in
        ["old", "old-2024", "work", "awork", "gone", "a", "b", "both", "both.below", "nest", "hull"]
    {
        append(&mut there, &format!("INBOX.{folder}"), &format!("late-{folder}"), &[]);
    }
    there.logout();
    let source = folders(&servers.source, "reuse");
    assert_eq!(source["INBOX.a"].len() + source["INBOX.gone"].len(), 3);
    // Whatever was done when it was killed, its ledger does not know of it.
    for passed in [1, 2, 4, 6] {
        servers.arm_on(&servers.target, &format!("LedgerWrite kill {passed}"));
        servers.push("user.reuse", &["--route-command", "true"]);
        assert!(servers.disarm(), "the ledger was not written {passed} times");
    }
    let again = servers.push("user.reuse", &["--route-command", "true", "--json"]).expect(0);
    let report = again.report().unwrap();
    assert_eq!(numbers(&report)[0], 11, "{report:#}");
    assert_eq!(folders(&servers.target, "reuse"), source);
}

#[test]
fn what_was_carried_over_and_is_undone_on_the_source_is_undone_again() {
    drop(OptionsPutBack);
    let servers = Servers::fresh();
    let _put_back = OptionsPutBack;
    servers.source.set_option("expunge_mode", "immediate").unwrap();
    seed(&servers, "undo");
    let before = fingerprint(&servers.source, "undo", &[]);
    let had = folders(&servers.source, "undo");
    stop_at(&servers, "undo", Point::Routed);
    let mut there = servers.source.imap("undo").unwrap();
    append(&mut there, "INBOX", "late", &[]);
    commands(
        &mut there,
        &[
            "CREATE INBOX.made",
            "RENAME INBOX.old INBOX.renamed",
            "SUBSCRIBE INBOX.both",
            "UNSUBSCRIBE INBOX.work",
            "SETACL INBOX.both bob lrs",
        ],
    );
    append(&mut there, "INBOX.made", "late-made", &[]);
    // All of it is on the target when this ends: before the source is retired.
    stop_at(&servers, "undo", Point::RetireBegun);
    let carried = folders(&servers.target, "undo");
    assert!(carried["INBOX"].len() == 8 && carried["INBOX.made"].len() == 1, "{carried:?}");
    commands(
        &mut there,
        &[
            "SELECT INBOX",
            "UID STORE 8 +FLAGS (\\Deleted)",
            "UID EXPUNGE 8",
            "SELECT INBOX.made",
            "UID STORE 1 +FLAGS (\\Deleted)",
            "UID EXPUNGE 1",
            "UNSELECT",
            "RENAME INBOX.renamed INBOX.old",
            "UNSUBSCRIBE INBOX.both",
            "SUBSCRIBE INBOX.work",
            "DELETEACL INBOX.both bob",
        ],
    );
    there.logout();
    let again = servers.push("user.undo", &["--route-command", "true", "--json"]).expect(0);
    println!("{}", again.report().unwrap()["carried"]);
    let mut found = folders(&servers.target, "undo");
    assert_eq!(found.remove("INBOX.made"), Some(BTreeMap::new()));
    assert_eq!(found, had);
    let after = fingerprint(&servers.target, "undo", &[]);
    let subscribed =
        |of: &lab::fingerprint::Fingerprint| of.own.subscribed.keys().cloned().collect::<Vec<_>>();
    assert_eq!(subscribed(&after), subscribed(&before));
    let acl = |of: &lab::fingerprint::Fingerprint| of.own.mailboxes["INBOX.both"].acl.clone();
    assert_eq!(acl(&after), acl(&before));
}

#[test]
fn scripts_that_do_not_arrive_are_said_and_those_that_are_deleted_again_go_again() {
    let servers = Servers::fresh();
    seed(&servers, "filters");
    stop_at(&servers, "filters", Point::Routed);
    let mut there = servers.source.sieve("filters").unwrap();
    there.put("fresh", "stop;\r\n").unwrap();
    there.put("brief", "keep; # brief\r\n").unwrap();
    stop_at(&servers, "filters", Point::RetireBegun);
    let names = || {
        let print = fingerprint(&servers.target, "filters", &[]);
        print.sieve.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(), ["brief", "changed", "dropped", "fresh", "kept"]);
    there.delete("brief").unwrap();
    there.put("fresh", "keep;\r\nstop;\r\n").unwrap();
    there.put("lost", "keep; # lost\r\n").unwrap();
    // Its message is not there any more.
    let remove = "grep -rl '# lost' /var/spool/cyrus /var/lib/cyrus | grep '\\.$' | xargs rm";
    servers.source.run(&["sh", "-c", remove]).unwrap();
    let again = servers.push("user.filters", &["--route-command", "true"]).expect(3);
    again.says(&["a sieve script whose name is not known is not carried over"]);
    assert_eq!(names(), ["changed", "dropped", "fresh", "kept"]);
    let print = fingerprint(&servers.target, "filters", &[]);
    assert_eq!(print.sieve["fresh"].text, "keep;\r\nstop;\r\n");
}

#[test]
fn flags_that_were_removed_stay_so_if_the_rest_is_killed() {
    let servers = Servers::fresh();
    seed(&servers, "flags");
    stop_at(&servers, "flags", Point::Routed);
    let mut there = servers.source.imap("flags").unwrap();
    commands(&mut there, &["SELECT INBOX", "UID STORE 2 FLAGS (\\Answered a]b)"]);
    append(&mut there, "INBOX", "late", &["[late]", "}"]);
    there.logout();
    let source = folders(&servers.source, "flags");
    stop_at(&servers, "flags", Point::CarryFlagged);
    servers.push("user.flags", &["--route-command", "true"]).expect(0);
    let found = folders(&servers.target, "flags");
    assert_eq!(found, source);
    let b2 = ("b2".to_owned(), vec!["\\Answered".to_owned(), "a]b".to_owned()], true);
    assert!(found["INBOX"].contains_key(&b2), "{found:?}");
}
