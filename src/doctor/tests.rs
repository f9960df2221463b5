//! Tables of what two servers can have, and what becomes of it.

use super::diagnose::{Both, State, diagnose};
use super::list::{List, Listed};
use super::plan::{NoPlan, Plan, plan};
use super::report::Report;
use super::seen::{Mailbox, Message, Move, Seen, Standing};
use crate::moves::journal::state;
use crate::verify::finding::Side;
use crate::wire::v1::{self, FileKind};

/// A server; each line is a mailbox: standing, name, id, messages by content. Content 7
/// came at 700 seconds; `!` is one that is expunged. Records were changed at 1, or `@`, in
/// hundreds of seconds, too.
/// A standing with `-` is one without files.
fn server(name: &str, lines: &[&str]) -> Seen {
    let mut seen = Seen { names: vec![name.into()], repairable: true, ..Seen::default() };
    for line in lines {
        let (line, changed) = line.split_once(" @").unwrap_or((line, "1"));
        let mut words = line.split(' ');
        let mut next = || words.next().unwrap_or_default();
        let (standing, mailbox, id, contents) = (next(), next(), next(), next());
        let files = !standing.ends_with('-');
        let standing = match standing.trim_end_matches('-') {
            "live" => Standing::Live,
            "moving" => Standing::Moving,
            "remote" => Standing::Remote,
            "deleted" => Standing::Deleted,
            "gone" => Standing::Gone,
            "away" => Standing::PutAway,
            "unnamed" => Standing::Unnamed,
            "reserved" => Standing::Reserved,
            other => panic!("{other}"),
        };
        let contents: Vec<&str> = contents.split(',').filter(|c| !c.is_empty()).collect();
        let leads = matches!(standing, Standing::Moving | Standing::Remote);
        let messages = contents.iter().enumerate().map(|(n, content)| {
            let number: u8 = content.trim_start_matches('!').parse().unwrap();
            Message {
                uid: n as u32 + 1,
                expunged: content.starts_with('!'),
                saved: u32::from(number) * 100,
                guid: [number; 20],
            }
        });
        seen.mailboxes.push(Mailbox {
            name: mailbox.as_bytes().to_vec(),
            display: mailbox.into(),
            id: id.into(),
            standing,
            has_index: files && standing != Standing::Gone,
            server: if leads { "two!default".into() } else { String::new() },
            changed: changed.parse::<i64>().unwrap() * 100,
            messages: messages.collect(),
            ..Mailbox::default()
        });
    }
    seen
}

fn case(here: &[&str], there: &[&str]) -> (Seen, Seen) {
    (server("one", here), server("two", there))
}

fn found(here: &Seen, there: &Seen, to: Option<Side>) -> (State, Side, Result<Plan, NoPlan>) {
    let both = Both { here, there };
    let diagnosis = diagnose(both);
    let plan = plan(both, &diagnosis, to);
    // Whatever it is, it can be told.
    let report = Report::new("user.x", both, diagnosis.clone(), &plan);
    assert!(!report.to_string().is_empty() && serde_json::to_string(&report).is_ok());
    (diagnosis.state, diagnosis.origin, plan)
}

/// What is carried: from which mailbox to which, whether it is made, which contents.
fn carried(plan: &Plan) -> Vec<String> {
    let line = |c: &super::plan::Carried| {
        let contents: Vec<String> = c.messages.iter().map(|(_, g)| g[0].to_string()).collect();
        let made = if c.create { " made" } else { "" };
        let (from, to) = (&c.display, String::from_utf8_lossy(&c.to));
        format!("{from} {to}{made} {}", contents.join(","))
    };
    plan.carry.iter().map(line).collect()
}

#[test]
fn every_state_is_told_from_both_sides() {
    let cases: &[(State, &[&str], &[&str])] = &[
        (State::Well, &["live user.x i1 1,2"], &[]),
        (State::Well, &["live user.x i1 1,2"], &["gone user.x i1", "away user.x.a i2"]),
        // What lies there of deleted folders is in nobody's way.
        (State::Well, &["live user.x i1 1", "deleted user.x.old i9 5"], &[]),
        (State::Nobody, &[], &[]),
        (State::Nobody, &["gone user.x i1"], &[]),
        // He was put away, and the other server has nothing of him.
        (State::Unknown, &["away user.x i1"], &[]),
        (
            State::PartialCopy,
            &["live user.x i1 1,2", "live user.x.a i2 3"],
            &["live user.x i1 1,2 @60"],
        ),
        (State::PartialCopy, &["live user.x i1 1,2"], &["live user.x i1 1,70 @60"]),
        // He was moved there before, came back, and was to go again.
        (
            State::PartialCopy,
            &["live user.x i1 1,2", "live user.x.a i2 3"],
            &["live user.x i1 1,2 @60", "deleted user.x.a i2 3"],
        ),
        (State::SecondCopy, &["live user.x i1 1,2"], &["live user.x i1 1,2 @60"]),
        (State::SecondCopy, &["live user.x i1 1,2"], &["live user.x i1 1,2,70 @60"]),
        (
            State::StoppedSwitching,
            &["moving user.x i1 1,2 @70", "live user.x.a i2 3"],
            &["live user.x i1 1,2 @60", "live user.x.a i2 3 @60"],
        ),
        // The other server has lost its copy.
        (State::StoppedSwitching, &["moving user.x i1 1,2"], &[]),
        (
            State::StoppedDeleting,
            &["deleted user.x i1 1,2", "moving user.x.a i2 3"],
            &["live user.x i1 1,2 @60", "live user.x.a i2 3 @60"],
        ),
        // 3.10 removes the files.
        (
            State::StoppedDeleting,
            &["gone user.x i1", "moving user.x.a i2 3"],
            &["live user.x i1 1,2 @60", "live user.x.a i2 3 @60"],
        ),
        (State::Leftovers, &["deleted user.x i1 1,2"], &["live user.x i1 1,2"]),
        (
            State::NewInbox,
            &["live user.x i9 70", "deleted user.x.a i2 3"],
            &["live user.x i1 1", "live user.x.a i2 3"],
        ),
        (
            State::NewInbox,
            &["live user.x i9 70", "gone user.x.a i2"],
            &["live user.x i1 1", "live user.x.a i2 3"],
        ),
        (State::NewInbox, &["live user.x i9", "unnamed user.x i1 1"], &["live user.x i1 1"]),
        // Nothing tells which of them is the user.
        (State::Unknown, &["live user.x i9 70"], &["live user.x i1 1"]),
        (State::Scattered, &["remote- user.x i1", "live user.x.a i2 3"], &["live user.x i1 1,2"]),
        (State::Scattered, &["remote user.x i1 1,2"], &["live user.x i1 1,2"]),
        (State::Unknown, &["remote- user.x i1"], &[]),
        // XFER died while it deleted, and the first backend of a Murder was started.
        (
            State::Split,
            &["deleted user.x i1 1", "live user.x.a i2 3"],
            &["live user.x i1 1 @60", "live user.x.a i2 3 @60"],
        ),
        (
            State::Split,
            &["gone user.x i1", "live user.x.a i2 3"],
            &["live user.x i1 1 @60", "live user.x.a i2 3 @60"],
        ),
        // Then the second one, too.
        (
            State::Split,
            &["deleted user.x i1 1", "live user.x.a i2 3"],
            &["live user.x i1 1 @60", "gone user.x.a i2"],
        ),
        (State::Unknown, &["reserved user.x i1 1"], &["live user.x i1 1"]),
    ];
    for (expected, here, there) in cases {
        let (one, two) = case(here, there);
        let told = found(&one, &two, None);
        assert_eq!((told.0, told.1), (*expected, Side::Here), "{here:?} {there:?}");
        // From the other server it is the same.
        let told = found(&two, &one, None);
        assert_eq!(told.0, *expected, "turned: {here:?} {there:?}");
        if ![State::Nobody, State::Unknown].contains(expected) {
            assert_eq!(told.1, Side::There, "turned: {here:?} {there:?}");
        }
    }
}

#[test]
fn a_server_that_was_not_asked_is_named() {
    let (mut one, two) = case(&["moving user.x i1 1"], &["live user.x i1 1"]);
    one.mailboxes[0].server = "three.example.org!ssd".into();
    let (state, _, plan) = found(&one, &two, None);
    assert_eq!(state, State::Elsewhere);
    assert!(matches!(plan, Err(NoPlan::Other(_))));
    // A short name is enough.
    one.mailboxes[0].server = "two.example.org".into();
    assert_eq!(found(&one, &two, None).0, State::StoppedSwitching);
}

#[test]
fn moves_and_repairs_that_are_not_over_come_first() {
    let known = |state: &str, repair| Move {
        id: "0".into(),
        role: v1::Role::Source,
        peer: "two".into(),
        state: state.into(),
        updated: 0,
        repair,
    };
    let (one, two) = case(&["live user.x i1 1"], &["live user.x i1 1"]);
    let with = |moved: Move| Seen { moves: vec![moved], ..two.clone() };
    let told = found(&one, &with(known(state::COPYING, false)), None);
    assert_eq!(told.0, State::OurMove);
    assert!(matches!(told.2, Err(NoPlan::Other(_))));
    assert_eq!(found(&one, &with(known(state::DONE, false)), None).0, State::SecondCopy);
    let (state, wrong, plan) = found(&one, &with(known(state::RETIRING, true)), None);
    assert_eq!((state, wrong), (State::OurRepair, Side::There));
    assert_eq!(plan.unwrap().right, Side::Here);
    // Records were made live again on the second server: it gets what the first has.
    let two = server("two", &["live user.x.b i3 7"]);
    let one = server("one", &["live user.x i1 1"]);
    let begun = Seen { moves: vec![known(state::PLANNED, true)], ..two };
    let (state, wrong, plan) = found(&one, &begun, None);
    assert_eq!((state, wrong), (State::OurRepair, Side::Here));
    assert_eq!(carried(&plan.unwrap()), ["user.x user.x made 1"]);
}

#[test]
fn only_what_came_to_the_copy_is_carried_over_and_each_once() {
    let (one, two) = case(
        &[
            "live user.x i1 1,!2,3,3,61",
            "live user.x.a i2 4",
            "gone user.x.b i3",
            "gone user.x.c i4",
        ],
        &[
            // 2 was expunged, 5 expunged and cleaned up; one more 3, 62 and 63 came.
            "live user.x i1 1,2,3,3,3,5,62,!64 @60",
            "live user.x.a i2 4 @60",
            "live user.x.b i3 6 @60",
            "live user.x.c i4 7,63 @60",
            "live user.x.new i5 65 @61",
            "live user.x.#sieve i6 66 @60",
            "live user.x.empty i7 @61",
        ],
    );
    let (state, _, plan) = found(&one, &two, None);
    assert_eq!(state, State::PartialCopy);
    let plan = plan.unwrap();
    let expected = [
        "user.x user.x 62",
        "user.x.c user.x.c made 63",
        "user.x.empty user.x.empty made ",
        "user.x.new user.x.new made 65",
    ];
    assert_eq!(carried(&plan), expected);
    assert!(plan.put_aside && !plan.push && plan.restore.is_empty());
    let (.., plan) = found(&one, &two, Some(Side::There));
    assert!(plan.unwrap().push);
}

#[test]
fn a_folder_that_was_renamed_gets_its_mail_by_its_id() {
    let (one, two) = case(
        &["live user.x i1 1", "live user.x.new i2 3"],
        &["live user.x i1 1 @60", "live user.x.old i2 3,70 @60"],
    );
    assert_eq!(carried(&found(&one, &two, None).2.unwrap()), ["user.x.old user.x.new 70"]);
}

#[test]
fn records_are_restored_where_the_first_server_still_has_everything() {
    let (mut one, mut two) = case(
        &["deleted user.x i1 1,2", "moving user.x.a i2 3"],
        &["live user.x i1 1,2,70 @60", "live user.x.a i2 3 @60"],
    );
    let plan = found(&one, &two, None).2.unwrap();
    let restored: Vec<_> = plan.restore.iter().map(|r| (r.id.as_str(), r.remove)).collect();
    assert_eq!(restored, [("i1", false), ("i2", false)]);
    assert_eq!((plan.right, carried(&plan)), (Side::Here, vec!["user.x user.x 70".into()]));
    assert!(found(&one, &two, Some(Side::There)).2.unwrap().push);
    // His subscriptions are gone: he is whole on the second server only.
    two.files.insert(FileKind::UserSubscriptions);
    let plan = found(&one, &two, None).2.unwrap();
    assert_eq!((plan.right, plan.put_aside, plan.push), (Side::There, true, false));
    assert!(plan.restore.is_empty());
    assert!(matches!(found(&one, &two, Some(Side::Here)).2, Err(NoPlan::Other(_))));
    one.files.insert(FileKind::UserSubscriptions);
    assert_eq!(found(&one, &two, None).2.unwrap().right, Side::Here);
    two.quota_roots = 1;
    assert_eq!(found(&one, &two, None).2.unwrap().right, Side::There);
}

#[test]
fn scattered_folders_come_together_if_the_admin_agrees() {
    let (one, two) = case(
        &["remote- user.x i1", "live user.x.a i2 3", "remote user.x.b i3 4"],
        &["live user.x i1 1,2", "live user.x.b i3 4"],
    );
    let plan = found(&one, &two, None).2.unwrap();
    assert_eq!(plan.right, Side::Here);
    let restored: Vec<_> = plan.restore.iter().map(|r| (r.id.as_str(), r.remove)).collect();
    assert_eq!(restored, [("i1", true), ("i3", false)]);
    assert_eq!(carried(&plan), ["user.x user.x made 1,2"]);
    assert_eq!(plan.asks.len(), 1);
    let plan = found(&one, &two, Some(Side::There)).2.unwrap();
    assert_eq!(
        (plan.right, carried(&plan)),
        (Side::There, vec!["user.x.a user.x.a made 3".into()])
    );
}

/// A repair of a server that has written down what it makes of its records.
fn begun(seen: Seen, taken: &[&str]) -> Seen {
    let repair = Move {
        id: "0".into(),
        role: v1::Role::Source,
        peer: "two".into(),
        state: state::PLANNED.into(),
        updated: 0,
        repair: true,
    };
    Seen { moves: vec![repair], taken: taken.iter().map(|id| (*id).into()).collect(), ..seen }
}

#[test]
fn what_a_killed_deletion_has_taken_was_not_deleted_by_the_user() {
    let there = ["live user.x i1 1 @60", "live user.x.a i2 3 @60"];
    let (one, mut two) =
        case(&["gone user.x i1", "moving user.x.a i2 3", "moving user.x.b i3 4"], &there);
    let (state, _, plan) = found(&one, &two, None);
    let plan = plan.unwrap();
    let made = vec!["user.x user.x made 1".to_owned()];
    assert_eq!((state, plan.right, carried(&plan)), (State::StoppedDeleting, Side::Here, made));
    assert!(plan.put_aside && plan.restore.len() == 2 && plan.taken.contains("i1"));
    assert_eq!(plan.asks.len(), 1);
    two.files.insert(FileKind::UserSubscriptions);
    assert_eq!(found(&one, &two, None).2.unwrap().asks.len(), 2);
    // Killed when its records were right.
    let restored = server("one", &["gone user.x i1", "live user.x.a i2 3", "live user.x.b i3 4"]);
    let (state, _, again) = found(&begun(restored, &["i1"]), &two, None);
    let again = again.unwrap();
    assert_eq!((state, again.right, &again.carry), (State::OurRepair, Side::Here, &plan.carry));
    assert_eq!(again.taken, plan.taken);
}

#[test]
fn a_repair_of_a_split_user_that_is_killed_carries_the_same_afterwards() {
    let there = ["live user.x i1 1 @60", "gone user.x.a i2", "live user.x.b i3 4 @60"];
    let here = ["deleted user.x i1 1", "live user.x.a i2 3", "gone user.x.b i3"];
    let (one, two) = case(&here, &there);
    let plan = found(&one, &two, None).2.unwrap();
    assert_eq!(carried(&plan), ["user.x.b user.x.b made 4"]);
    assert_eq!((plan.right, plan.restore.len(), plan.asks.len()), (Side::Here, 1, 1));
    let taken: Vec<&str> = plan.taken.iter().map(String::as_str).collect();
    // Before its records were right, after that, and when the folder was made.
    let restored = ["live user.x i1 1", "live user.x.a i2 3"];
    let rest: [(&[&str], usize, &[&str]); 3] = [
        (&here, 1, &["user.x.b user.x.b made 4"]),
        (&[restored[0], restored[1], "gone user.x.b i3"], 0, &["user.x.b user.x.b made 4"]),
        (
            &[restored[0], restored[1], "gone user.x.b i3", "live user.x.b i9"],
            0,
            &["user.x.b user.x.b 4"],
        ),
    ];
    for (here, records, expected) in rest {
        let (state, _, again) = found(&begun(server("one", here), &taken), &two, None);
        let again = again.unwrap();
        assert_eq!((state, again.right, again.put_aside), (State::OurRepair, Side::Here, true));
        assert_eq!(
            (again.restore.len(), carried(&again)),
            (records, expected.iter().map(|s| (*s).to_owned()).collect())
        );
    }
}

#[test]
fn a_new_inbox_is_merged_into_the_old_one() {
    let (one, two) = case(
        &["live user.x i9 70,71", "unnamed user.x i1 1", "deleted user.x.a i2 3"],
        &["live user.x i1 1,2,71", "live user.x.a i2 3"],
    );
    let (state, _, plan) = found(&one, &two, None);
    assert_eq!(state, State::NewInbox);
    let plan = plan.unwrap();
    assert_eq!((plan.right, carried(&plan)), (Side::There, vec!["user.x user.x 70".into()]));
    assert!(matches!(found(&one, &two, Some(Side::Here)).2, Err(NoPlan::Other(_))));
}

#[test]
fn a_user_who_is_split_comes_together_where_all_of_him_still_is() {
    let here = ["deleted user.x i1 1", "live user.x.a i2 3,61"];
    // The second server has all of him.
    let (one, two) = case(&here, &["live user.x i1 1,70 @60", "live user.x.a i2 3 @60"]);
    let plan = found(&one, &two, None).2.unwrap();
    assert!(plan.restore.is_empty() && plan.put_aside && plan.asks.is_empty());
    assert_eq!(
        (plan.right, carried(&plan)),
        (Side::There, vec!["user.x.a user.x.a 61".to_owned()])
    );
    // The second has lost what the first has in use: the first still has the files of all.
    let (one, two) = case(&here, &["live user.x i1 1,70 @60", "gone user.x.a i2"]);
    let plan = found(&one, &two, None).2.unwrap();
    let restored: Vec<_> = plan.restore.iter().map(|r| (r.id.as_str(), r.remove)).collect();
    assert_eq!(restored, [("i1", false)]);
    assert_eq!((plan.right, carried(&plan)), (Side::Here, vec!["user.x user.x 70".to_owned()]));
    assert!(plan.asks.is_empty() && found(&one, &two, Some(Side::There)).2.unwrap().push);
    // Neither has all of him any more.
    let (one, two) = case(
        &["gone user.x i1", "live user.x.a i2 3"],
        &["live user.x i1 1 @60", "gone user.x.a i2"],
    );
    let plan = found(&one, &two, None).2.unwrap();
    assert_eq!((plan.right, carried(&plan)), (Side::Here, vec!["user.x user.x made 1".to_owned()]));
    assert_eq!(plan.asks.len(), 1);
    let plan = found(&one, &two, Some(Side::There)).2.unwrap();
    let made = vec!["user.x.a user.x.a made 3".to_owned()];
    assert_eq!((plan.right, carried(&plan), plan.asks.len()), (Side::There, made, 1));
}

/// What both servers were told by the mupdate master: `name server`, `!` if it is reserved.
fn in_murder(servers: &mut [&mut Seen; 2], lines: &[&str]) {
    for seen in servers {
        let entry = |line: &&str| {
            let (name, server) = line.split_once(' ').unwrap();
            Listed {
                name: name.into(),
                display: name.into(),
                server: server.trim_end_matches('!').into(),
                reserved: server.ends_with('!'),
            }
        };
        let entries = lines.iter().map(entry).collect();
        seen.list = Some(List { master: "mup".into(), entries, trouble: String::new() });
    }
}

#[test]
fn a_murders_list_is_compared_with_what_the_servers_have() {
    let user: &[&str] = &["live user.x i1 1", "live user.x.a i2 2"];
    type Row<'a> = (State, &'a [&'a str], &'a [&'a str], [usize; 4]);
    let cases: &[Row<'_>] = &[
        (State::Well, user, &["user.x one", "user.x.a one"], [0, 0, 0, 0]),
        (State::ListWrong, user, &["user.x one!", "user.x.a one"], [1, 0, 0, 0]),
        (State::ListWrong, user, &["user.x.a one"], [0, 1, 0, 0]),
        (State::ListWrong, user, &["user.x two", "user.x.a one"], [0, 0, 1, 0]),
        (State::ListWrong, user, &["user.x one", "user.x.a one", "user.x.b two"], [0, 0, 0, 1]),
        (State::ListWrong, user, &[], [0, 2, 0, 0]),
        (State::Nobody, &[], &[], [0, 0, 0, 0]),
        (State::ListStale, &[], &["user.x one", "user.x.a two!"], [1, 0, 0, 2]),
        (State::ListStale, &["gone user.x i1"], &["user.x one"], [0, 0, 0, 1]),
        // Another backend has him, or says so.
        (State::Elsewhere, user, &["user.x three", "user.x.a one"], [0, 0, 1, 0]),
        (State::Elsewhere, &[], &["user.x three"], [0, 0, 0, 0]),
    ];
    for (expected, here, list, counts) in cases {
        let (mut one, mut two) = case(here, &[]);
        in_murder(&mut [&mut one, &mut two], list);
        for (one, two) in [(&one, &two), (&two, &one)] {
            assert_eq!(found(one, two, None).0, *expected, "{here:?} {list:?}");
            let said = diagnose(Both { here: one, there: two }).list.unwrap();
            let said = [said.reserved, said.missing, said.elsewhere, said.stale];
            assert_eq!(said, *counts, "{here:?} {list:?}");
        }
    }
}

#[test]
fn what_a_backends_start_has_taken_away_and_nobody_has_any_more_is_not_forgotten() {
    let (mut one, mut two) = case(&["gone user.x i1", "moving user.x.a i2 3"], &[]);
    let mut kept = server("two", &["live DELETED.user.x.5F i1 1"]).mailboxes.remove(0);
    (kept.kept, kept.original) = (true, b"user.x".to_vec());
    two.mailboxes.push(kept);
    in_murder(&mut [&mut one, &mut two], &["user.x one!", "user.x.a one!"]);
    assert_eq!(found(&one, &two, None).0, State::Unknown);
    // The files are there: the record becomes live again.
    one.mailboxes[0].standing = Standing::Deleted;
    one.mailboxes[0].has_index = true;
    let (state, _, plan) = found(&one, &two, None);
    assert_eq!((state, plan.unwrap().restore.len()), (State::StoppedDeleting, 2));
    // What was deleted on the server that the list names is none of it.
    let (mut one, mut two) = case(&["gone user.x i1"], &[]);
    let mut kept = server("one", &["live DELETED.user.x.5F i1 1"]).mailboxes.remove(0);
    (kept.kept, kept.original) = (true, b"user.x".to_vec());
    one.mailboxes.push(kept);
    in_murder(&mut [&mut one, &mut two], &["user.x one"]);
    assert_eq!(found(&one, &two, None).0, State::ListStale);
}

#[test]
fn a_murders_list_is_made_right_after_the_records() {
    // Where nobody is in the way, only the list is changed.
    let (mut one, mut two) = case(&["live user.x i1 1"], &[]);
    in_murder(&mut [&mut one, &mut two], &["user.x two!", "user.x.old one", "user.x.b two"]);
    let plan = found(&one, &two, None).2.unwrap();
    let forgotten: Vec<(Side, usize)> = plan.forget.iter().map(|(s, n)| (*s, n.len())).collect();
    assert_eq!((plan.right, plan.list), (Side::Here, true));
    assert_eq!(forgotten, [(Side::Here, 1), (Side::There, 1)]);
    assert!(plan.restore.is_empty() && plan.carry.is_empty() && !plan.put_aside);
    // He is nowhere.
    let (mut one, mut two) = case(&[], &[]);
    in_murder(&mut [&mut one, &mut two], &["user.x two"]);
    let plan = found(&one, &two, None).2.unwrap();
    assert_eq!((plan.list, plan.forget), (false, vec![(Side::There, vec![b"user.x".to_vec()])]));
    // XFER was killed.
    let (mut one, mut two) = case(
        &["moving user.x i1 1", "live user.x.a i2 3"],
        &["live user.x i1 1 @60", "live user.x.a i2 3 @60"],
    );
    in_murder(&mut [&mut one, &mut two], &["user.x one!", "user.x.a one!"]);
    let (state, _, plan) = found(&one, &two, None);
    let plan = plan.unwrap();
    assert_eq!((state, plan.right), (State::StoppedSwitching, Side::Here));
    assert!(plan.list && plan.put_aside && plan.forget.is_empty() && plan.restore.len() == 1);
    // A copy that the list knows nothing of is none of its business.
    in_murder(&mut [&mut one, &mut two], &["user.x one", "user.x.a one"]);
    one.mailboxes[0].standing = Standing::Live;
    let (state, _, plan) = found(&one, &two, None);
    assert_eq!((state, plan.unwrap().list), (State::SecondCopy, false));
    // What it says is not known.
    two.list.as_mut().unwrap().trouble = "no answer".into();
    let (.., plan) = found(&one, &two, None);
    assert!(matches!(plan, Err(NoPlan::Other(text)) if text.contains("no answer")));
    assert!(diagnose(Both { here: &one, there: &two }).is_wrong());
}

#[test]
fn what_is_not_known_is_not_touched() {
    let (mut one, two) = case(&["live user.x i1 1"], &["live user.x i1 1"]);
    one.mailboxes[0].unreadable = "bad index".into();
    let (state, _, plan) = found(&one, &two, None);
    assert_eq!(state, State::Unknown);
    assert!(matches!(plan, Err(NoPlan::Other(_))));
    // Nor is a server whose Cyrus this version cannot repair.
    let (mut one, two) = case(&["live user.x i1 1,2"], &["live user.x i1 1 @60"]);
    one.repairable = false;
    assert!(matches!(found(&one, &two, None).2, Err(NoPlan::Other(_))));
}

#[test]
fn messages_cross_the_wire() {
    let message = Message { uid: 7, expunged: true, saved: 1_700_000_000, guid: [9; 20] };
    let mut packed = Vec::new();
    message.pack(&mut packed);
    message.pack(&mut packed);
    packed.push(1);
    assert_eq!(Message::unpack(&packed).collect::<Vec<_>>(), [message, message]);
}
