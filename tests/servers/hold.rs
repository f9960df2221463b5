//! The admin's commands that have the MTA hold mail while a user is frozen.

use crate::support::{Servers, assert_same, fingerprint};
use lab::seed::Seed;
use mbcopy::fault::Point;

/// Where the commands of the tests write what they are told, and whether mail is held.
const LOG: &str = "/run/holds";
const HELD: &str = "/run/held";

/// Options of a push that holds mail.
fn options(freeze: &str) -> Vec<String> {
    let said = format!("echo \"$MBCOPY_ACTION $MBCOPY_USER $MBCOPY_NEW_SERVER\" >> {LOG}");
    let both = [
        ("--freeze-command", format!("{said}; touch {HELD}; {freeze}")),
        ("--thaw-command", format!("{said}; rm -f {HELD}")),
        ("--route-command", said.clone()),
    ];
    both.into_iter().flat_map(|(option, value)| [option.into(), value]).collect()
}

struct Holding {
    servers: Servers,
    user: String,
    mailbox: String,
}

impl Holding {
    fn new(user: &str) -> Self {
        let servers = Servers::fresh();
        servers.accounts(&[user]);
        Seed::new(&servers.source, user).small().unwrap();
        servers.source.run(&["rm", "-f", LOG, HELD]).unwrap();
        Self { servers, user: user.into(), mailbox: format!("user.{user}") }
    }

    fn push(&self, freeze: &str, more: &[&str]) -> crate::support::Pushed {
        let options = options(freeze);
        let options: Vec<&str> =
            options.iter().map(String::as_str).chain(more.iter().copied()).collect();
        self.servers.push(&self.mailbox, &options)
    }

    /// What the commands were told, in order; forgotten then.
    fn told(&self) -> Vec<String> {
        let script = format!("cat {LOG} 2>/dev/null; rm -f {LOG}");
        let text = self.servers.source.run(&["sh", "-c", &script]).unwrap();
        text.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
    }

    fn is_held(&self) -> bool {
        self.servers.source.exec(&["test", "-e", HELD]).unwrap().status.success()
    }

    /// What `status` says on both servers of mail that is held.
    fn status(&self) -> [bool; 2] {
        self.servers.both().map(|host| {
            let status = ["/usr/local/bin/mbcopy", "status", &self.mailbox, "--json"];
            let said = host.run(&status).unwrap();
            let last = said.lines().last().unwrap_or("{}").to_owned();
            let last: serde_json::Value = serde_json::from_str(&last).unwrap();
            last["mail_held"] == true
        })
    }
}

#[test]
fn mail_is_held_before_the_freeze_and_flows_after_it() {
    let holding = Holding::new("holds");
    let before = fingerprint(&holding.servers.source, "holds", &[]);
    holding.push("true", &[]).expect(0);
    assert_eq!(holding.told(), ["freeze", "route", "thaw"]);
    assert_eq!((holding.is_held(), holding.status()), (false, [false; 2]));
    assert_same(&before, &fingerprint(&holding.servers.target, "holds", &[]), &[]);

    // Back again, where the coordinator is beside the target.
    holding.servers.mbcopy(&["reverse", &holding.mailbox]).expect(0);
    assert_eq!(holding.told(), ["freeze", "route", "thaw"]);
    assert_same(&before, &fingerprint(&holding.servers.source, "holds", &[]), &[]);
    // One without the other would hold for ever, or nothing.
    holding
        .servers
        .push(&holding.mailbox, &["--freeze-command", "true"])
        .expect(2)
        .says(&["--thaw-command"]);
}

#[test]
fn a_freeze_command_that_fails_or_hangs_freezes_nobody() {
    let holding = Holding::new("fails");
    let before = fingerprint(&holding.servers.source, "fails", &[]);
    let failed = holding.push("echo no queue >&2; exit 3", &["--json"]).expect(1);
    let report = failed.report().unwrap();
    let text = report["failure"]["text"].as_str().unwrap();
    assert!(text.contains("the freeze command") && text.contains("no queue"), "{text}");
    assert_eq!((&report["serving"], &report["freeze_ms"]), (&"bw1".into(), &0.0.into()));
    assert_eq!(holding.told(), ["freeze", "thaw"]);
    assert_eq!((holding.is_held(), holding.status()), (false, [false; 2]));
    let hangs = holding.push("sleep 60", &["--hold-timeout", "300ms"]).expect(1);
    hangs.says(&["the freeze command", "did not end within 300ms"]);
    assert_eq!((holding.told(), holding.is_held()), (vec!["freeze".into(), "thaw".into()], false));
    assert_same(&before, &fingerprint(&holding.servers.source, "fails", &[]), &[]);
    // A route that fails: mail flows again when the source does.
    let options = options("true");
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    *options.last_mut().unwrap() = "test $MBCOPY_ACTION = restore";
    holding.servers.push(&holding.mailbox, &options).expect(1);
    assert_eq!((holding.told(), holding.is_held()), (vec!["freeze".into(), "thaw".into()], false));
    assert_same(&before, &fingerprint(&holding.servers.source, "fails", &[]), &[]);
}

#[test]
fn a_thaw_command_that_fails_is_due_until_it_succeeds() {
    let holding = Holding::new("due");
    let before = fingerprint(&holding.servers.source, "due", &[]);
    let broken = |on: bool| {
        let script = if on { "touch /run/broken" } else { "rm -f /run/broken" };
        holding.servers.source.run(&["sh", "-c", script]).unwrap();
    };
    broken(true);
    let mut options = options("true");
    options[3] = format!("test ! -e /run/broken || exit 1; {}", options[3]);
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let late = holding.servers.push(&holding.mailbox, &options).expect(5);
    late.says(&["the thaw command", "bw2 serves the user now"]);
    assert_eq!((holding.is_held(), holding.status()), (true, [true; 2]));
    let told = holding.servers.mbcopy(&["status", &holding.mailbox]).expect(0);
    told.says(&["mail may be held", "the thaw command is due"]);
    // A machine that does not remember the commands says so, and nothing else happens.
    holding.servers.mbcopy(&["resume", &holding.mailbox, "bw2"]).expect(5);
    assert!(holding.is_held());
    broken(false);
    let again = [&["resume", holding.mailbox.as_str(), "bw2"], &options[..]].concat();
    holding.servers.mbcopy(&again).expect(0);
    assert_eq!((holding.is_held(), holding.status()), (false, [false; 2]));
    assert_same(&before, &fingerprint(&holding.servers.target, "due", &[]), &[]);
}

/// Kills the coordinator, or an agent, at a point, and ends the move by `verb`.
fn killed(point: Point, user: &str, verb: &str) {
    let holding = Holding::new(user);
    let before = fingerprint(&holding.servers.source, user, &[]);
    holding.servers.arm(&format!("{point:?}"));
    holding.push("true", &[]);
    assert!(holding.servers.disarm(), "{point:?} was not reached");
    let told = holding.told();
    if !told.contains(&"thaw".into()) {
        assert_eq!(holding.status(), [true; 2], "{point:?}: {told:?}");
    }
    let mut ended = holding.servers.mbcopy(&[verb, &holding.mailbox]);
    let mut what = holding.told();
    let late = verb == "abort" && ended.code == 4;
    if late {
        // It lets mail flow even where it is too late for anything else.
        assert!(!holding.is_held(), "{point:?}: {}", ended.stderr);
        ended = holding.servers.mbcopy(&["resume", &holding.mailbox]);
        what.extend(holding.told());
    }
    println!("{verb} {point:?}: {told:?}, then {what:?}: {}", ended.last_line());
    // One that has ended in spite of all.
    assert_eq!(ended.code, 0, "{point:?} {verb}: {}{}", ended.stdout, ended.stderr);
    let thawed = |told: &[String]| told.contains(&"thaw".into());
    assert!(thawed(&told) || thawed(&what), "{point:?} {verb}: {what:?}");
    assert!(!holding.is_held(), "{point:?} {verb}: mail is held for ever");
    assert_eq!(holding.status(), [false; 2], "{point:?} {verb}");
    let home = match verb == "abort" && !late {
        true => &holding.servers.source,
        false => &holding.servers.target,
    };
    assert_same(&before, &fingerprint(home, &holding.user, &[]), &[]);
}

#[test]
fn mail_that_a_killed_push_holds_flows_after_a_resume_and_after_an_abort() {
    killed(Point::MailHeld, "held", "resume");
    killed(Point::Published, "taken", "abort");
}

#[test]
#[ignore = "minutes"]
fn wherever_a_push_is_killed_that_holds_mail_it_flows_in_the_end() {
    let since = |point: &&Point| **point >= Point::Frozen && **point != Point::TargetGaveUp;
    let steps = Point::STEPS.iter().filter(since);
    for (n, point) in Point::OF_HOLDS.iter().chain(steps).enumerate() {
        for verb in ["resume", "abort"] {
            killed(*point, &format!("{verb}{n}"), verb);
        }
    }
}
