//! Whatever is killed, and wherever: the same command ends the move, and the
//! user is whole on exactly one server before and after.

use crate::shared::kill;
use crate::support::{Pushed, Servers, assert_same, fingerprint, install};
use lab::chaos::Side;
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::lmtp::Outcome;
use lab::seed::Seed;
use mbcopy::fault::Point;
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// What a client sees of the user there: everything, or nothing.
fn sees(host: &Host, user: &str) -> Option<Fingerprint> {
    let mut imap = host.imap(user).unwrap();
    let selected = imap.attempt("EXAMINE INBOX").unwrap();
    imap.logout();
    selected.tagged.is_ok().then(|| fingerprint(host, user, &[]))
}

/// Every file of the user on the source, by content and mode.
fn files(host: &Host, user: &str) -> String {
    let script = format!(
        "cd / && {{ find var/spool/cyrus var/spool/sieve var/lib/cyrus/user var/lib/cyrus/quota \
         -path '*mbcopy*' -prune -o -type f -print0 2>/dev/null; }} | sort -z | \
         xargs -0 -r stat -c '%n %U %a %s' ; find /var/spool/cyrus /var/spool/sieve \
         -path '*mbcopy*' -prune -o -type f -exec sha1sum {{}} + | sort; \
         /usr/lib/cyrus/bin/cyr_dbtool -n /var/lib/cyrus/mailboxes.db twoskip show | grep -a {user}"
    );
    host.run_as_cyrus(&["sh", "-c", &script]).unwrap()
}

/// A user on the source whose push was broken off.
pub struct Killed {
    pub servers: Servers,
    pub user: String,
    pub mailbox: String,
    /// How the push ended.
    pub code: i32,
    before: Fingerprint,
    files: String,
}

impl Killed {
    /// Killed at a point. `restart`: both servers' Cyrus, after the crash.
    pub fn at(point: Point, user: String, restart: bool) -> Killed {
        let killed = Self::by(&format!("{point:?}"), None, user, restart);
        let killed = killed.unwrap_or_else(|| panic!("{point:?} was not reached"));
        assert!(killed.code != 0 || point > Point::Thawed, "{point:?}: {}", killed.code);
        killed
    }

    /// Broken off by a fault, on both servers or on one; `None` if it did not happen.
    pub fn by(fault: &str, on: Option<Side>, user: String, restart: bool) -> Option<Killed> {
        let servers = Servers::fresh();
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let before = fingerprint(&servers.source, &user, &[]);
        let files = files(&servers.source, &user);
        let mailbox = format!("user.{user}");

        match on {
            Some(side) => servers.arm_on(servers.on(side), fault),
            None => servers.arm(fault),
        }
        let killed = servers.push(&mailbox, &["--route-command", "true"]);
        if !servers.disarm() {
            return None;
        }
        println!("{fault} {on:?}: {}: {}", killed.code, killed.last_line());
        let killed = Killed { servers, user, mailbox, code: killed.code, before, files };
        killed.assert_whole(fault, restart);
        Some(killed)
    }

    /// Whoever shows the user shows all of him, and somebody does.
    pub fn assert_whole(&self, what: &str, restart: bool) {
        for host in self.servers.both().into_iter().filter(|_| restart) {
            host.restart_cyrus().unwrap();
        }
        let seen = self.servers.both().map(|host| sees(host, &self.user));
        assert!(seen.iter().any(Option::is_some), "{what}: nobody serves {}", self.user);
        seen.iter().flatten().for_each(|seen| assert_same(&self.before, seen, &[]));
    }

    /// Resumes, or pushes anew what was not begun; the user is moved.
    pub fn resume(&self, what: &str) {
        let on_source = sees(&self.servers.source, &self.user).is_some();
        let again = match self.servers.mbcopy(&["resume", &self.mailbox]) {
            none if none.code == 2 && self.code != 0 => {
                let known = none.stderr.contains("does not remember");
                assert!(known || none.stderr.contains("no unfinished move"), "{}", none.stderr);
                // It may have ended without a word to the coordinator.
                match on_source {
                    true => self.servers.push(&self.mailbox, &["--route-command", "true"]).code,
                    false => 0,
                }
            }
            resumed => resumed.code,
        };
        // There is nothing to resume of a push that has ended in spite of all.
        assert!(again == 0 || self.code == 0, "{what}: {again}");
        self.assert_moved(what);
    }

    /// Aborts; the user is as before, or moved if it was too late.
    pub fn abort(&self, what: &str) {
        let on_source = sees(&self.servers.source, &self.user).is_some();
        let mut aborted = self.servers.mbcopy(&["abort", &self.mailbox]);
        if aborted.code == 2 && aborted.stderr.contains("does not remember") {
            aborted = self.servers.mbcopy(&["abort", &self.mailbox, "bw2"]);
        }
        match aborted.code {
            0 => self.assert_as_before(what),
            2 if on_source => {
                aborted.says(&["no unfinished move"]);
                self.assert_as_before(what);
            }
            _ if !on_source => {
                aborted.says(&["bw2 serves the user now"]);
                self.resume(what);
            }
            _ => panic!("{what}: {}{}", aborted.stdout, aborted.stderr),
        }
    }

    /// Another command on the move, with its route command.
    pub fn again(&self, command: &str) -> Pushed {
        self.servers.mbcopy(&[command, &self.mailbox, "--route-command", "true"])
    }

    /// The user is whole on the target, and the source shows nothing of him.
    pub fn assert_moved(&self, what: impl Debug) {
        let Killed { servers, user, before, .. } = self;
        assert_same(before, &fingerprint(&servers.target, user, &[]), &[]);
        assert!(sees(&servers.source, user).is_none(), "{what:?}: the source still serves {user}");
        self.assert_no_stage(what);
    }

    /// The user is on the source as he was, down to his files, and nowhere else.
    pub fn assert_as_before(&self, what: impl Debug) {
        let Killed { servers, user, before, .. } = self;
        assert_same(before, &fingerprint(&servers.source, user, &[]), &[]);
        assert_eq!(self.files, files(&servers.source, user), "{what:?}: the source's files");
        assert!(sees(&servers.target, user).is_none(), "{what:?}: the target shows {user}");
        self.assert_no_stage(what);
    }

    fn assert_no_stage(&self, what: impl Debug) {
        let stage = "find /var/spool/cyrus /var/lib/cyrus/mbcopy/moves /var/spool/sieve \
                     -path '*mbcopy*' -type f 2>/dev/null | wc -l";
        let left = self.servers.target.run(&["sh", "-c", stage]).unwrap();
        assert_eq!(left.trim(), "0", "{what:?}: the target keeps a stage");
    }
}

/// Those that a push reaches.
fn points_of_a_push() -> impl Iterator<Item = (usize, Point)> {
    Point::STEPS.iter().copied().filter(|point| *point != Point::TargetGaveUp).enumerate()
}

#[test]
fn a_move_that_is_killed_at_any_point_is_finished_by_resume() {
    for (n, point) in points_of_a_push() {
        let killed = Killed::at(point, format!("crash{n}"), n % 2 == 0);
        // The same command does the same.
        let again = match n % 3 {
            0 => killed.servers.push(&killed.mailbox, &["--route-command", "true", "-v"]),
            _ => killed.servers.mbcopy(&["resume", &killed.mailbox, "-v"]),
        };
        let again = again.expect(0);
        assert_eq!(
            again.last_line(),
            format!("{}: moved; bw2 serves the user now", killed.mailbox)
        );
        killed.assert_moved(point);
    }
}

#[test]
fn a_move_that_is_killed_at_any_point_before_retire_is_put_back_by_abort() {
    for (n, point) in points_of_a_push() {
        let killed = Killed::at(point, format!("abort{n}"), n % 2 == 1);
        let Killed { servers, mailbox, .. } = &killed;
        let aborted = servers.mbcopy(&["abort", mailbox, "-v"]);
        // Once the source's records are changed, only forward.
        if (Point::RetireCommitted..=Point::Thawed).contains(&point) {
            aborted.expect(4).says(&["mbcopy reverse", "bw2 serves the user now"]);
            servers.mbcopy(&["resume", mailbox]).expect(0);
            killed.assert_moved(point);
            continue;
        }
        if point == Point::TargetFinished {
            aborted.expect(4).says(&["mbcopy reverse", "bw2 serves the user now"]);
            continue;
        }
        let last = format!("{mailbox}: given up, everything is as before; bw1 serves the user now");
        assert_eq!(aborted.expect(0).last_line(), last, "{point:?}");
        killed.assert_as_before(point);
        // Nobody is blocked, and the user can be moved all the same.
        servers.push(mailbox, &["--route-command", "true"]).expect(0);
        killed.assert_moved(point);
    }
}

#[test]
fn an_abort_that_is_killed_is_finished_by_abort() {
    let killed = Killed::at(Point::Copied, "twice".into(), false);
    let Killed { servers, user, mailbox, before, .. } = &killed;
    servers.arm("TargetGaveUp");
    servers.mbcopy(&["abort", mailbox]);
    assert!(servers.disarm(), "the abort was not killed");
    servers.mbcopy(&["abort", mailbox]).expect(0);
    servers.mbcopy(&["abort", mailbox]).expect(2).says(&["no unfinished move of user.twice"]);
    assert_same(before, &fingerprint(&servers.source, user, &[]), &[]);
    killed.assert_no_stage(Point::TargetGaveUp);
}

#[test]
fn mail_on_its_way_to_the_target_while_the_route_is_restored_is_deferred() {
    let killed = Killed::at(Point::Routed, "onitsway".into(), false);
    let Killed { servers, user, mailbox, .. } = &killed;
    let message = b"From: a@x\r\nSubject: late\r\n\r\nlate\r\n";
    let route = "echo $MBCOPY_ACTION > /run/restored";
    let program = "/usr/local/bin/mbcopy";
    std::thread::scope(|scope| {
        let abort = ["abort", mailbox, servers.target.name(), "--route-command", route];
        let abort = [&[program], abort.as_slice()].concat();
        let source = &servers.source;
        let abort = scope.spawn(move || source.exec(&abort).unwrap());
        let restored = source.root().unwrap().join("run/restored");
        while !restored.exists() && !abort.is_finished() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let mut answers = Vec::new();
        while !abort.is_finished() && answers.len() < 20 {
            match lab::lmtp::deliver(&servers.target, user, message) {
                Outcome::Refused(_, reply) => answers.push(reply.code),
                other => panic!("{other:?}"),
            }
            // ManageSieve makes directories of a user who is deferred.
            if answers.len() == 1 {
                let _ = servers.target.sieve(user).and_then(|mut sieve| sieve.list());
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        assert!(!answers.is_empty() && answers.iter().all(|code| code / 100 == 4), "{answers:?}");
        let ended = abort.join().unwrap();
        assert!(ended.status.success(), "{ended:?}");
        std::fs::remove_file(restored).unwrap();
    });
    killed.assert_as_before(Point::Routed);
    servers.push(mailbox, &["--route-command", "true"]).expect(0);
    killed.assert_moved(Point::Routed);
}

/// A server whose cyr_dbtool waits for two seconds before it changes mailboxes.db.
struct Slow<'a>(&'a Host);

impl Slow<'_> {
    fn at(host: &Host) -> Slow<'_> {
        let script = "#!/bin/sh\n\
            case \"$*\" in */var/lib/cyrus/mailboxes.db*batch) : >/tmp/changing; sleep 2;; esac\n\
            exec /usr/lib/cyrus/bin/cyr_dbtool.real \"$@\"\n";
        let put = format!(
            "rm -f /tmp/changing; cd /usr/lib/cyrus/bin && mv cyr_dbtool cyr_dbtool.real && \
             printf '%s' '{script}' >cyr_dbtool && chmod 755 cyr_dbtool"
        );
        let slow = Slow(host);
        host.run(&["sh", "-c", &put]).unwrap();
        slow
    }

    /// Kills an agent in the midst of a change for which a delivery waits. What came of the
    /// delivery.
    fn kill(&self, agent: &str, user: &str) -> Outcome {
        let began = Instant::now();
        let changing = self.0.root().unwrap().join("tmp/changing");
        while !changing.exists() {
            assert!(began.elapsed() < Duration::from_secs(30), "no record is changed");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::scope(|scope| {
            let message = b"From: a@x\r\nSubject: waits\r\n\r\nwaits\r\n";
            let delivery = scope.spawn(|| lab::lmtp::deliver(self.0, user, message));
            std::thread::sleep(Duration::from_millis(500));
            assert!(!delivery.is_finished(), "the delivery does not wait: {delivery:?}");
            self.0.pids(&format!("agent --role {agent}")).unwrap().into_iter().for_each(kill);
            delivery.join().unwrap()
        })
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        let back = "cd /usr/lib/cyrus/bin && mv cyr_dbtool.real cyr_dbtool";
        self.0.run(&["sh", "-c", back]).unwrap();
    }
}

fn assert_deferred(delivery: Outcome) {
    match delivery {
        Outcome::Refused(_, reply) => assert_eq!(reply.code / 100, 4, "{reply:?}"),
        other => panic!("what waited is not deferred: {other:?}"),
    }
}

#[test]
fn who_waits_while_a_source_is_retired_is_deferred_although_its_agent_is_killed() {
    let servers = Servers::fresh();
    let user = "orphan";
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    let before = fingerprint(&servers.source, user, &[]);
    let slow = Slow::at(&servers.source);
    let words = ["mbcopy", "push", "user.orphan", "bw2", "--route-command", "true"];
    let pushing = servers.source.spawn(&words).unwrap();
    assert_deferred(slow.kill("source", user));
    Pushed::from(pushing.wait_with_output().unwrap()).expect(5);
    drop(slow);
    servers.push("user.orphan", &["--route-command", "true"]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, user, &[]), &[]);
    assert!(sees(&servers.source, user).is_none(), "the source still serves him");
}

#[test]
fn who_waits_while_a_target_is_taken_back_is_deferred_although_its_agent_is_killed() {
    let killed = Killed::at(Point::Routed, "taken".into(), false);
    let Killed { servers, user, mailbox, .. } = &killed;
    let abort = ["mbcopy", "abort", mailbox, servers.target.name(), "--route-command", "true"];
    let slow = Slow::at(&servers.target);
    let aborting = servers.source.spawn(&abort).unwrap();
    assert_deferred(slow.kill("target", user));
    let ended = Pushed::from(aborting.wait_with_output().unwrap());
    assert!(ended.code != 0, "{}", ended.stdout);
    drop(slow);
    servers.mbcopy(&abort[1..]).expect(0);
    killed.assert_as_before(Point::Routed);
}

/// A target that is about to be taken back: its route is restored already, and its agent
/// was killed before any record changed.
fn about_to_be_taken_back(user: &str) -> Killed {
    let killed = Killed::at(Point::Routed, user.into(), false);
    let servers = &killed.servers;
    servers.arm_on(&servers.target, "DatabaseWrite");
    let aborted = killed.again("abort").expect(5).says(&["bw1 serves the user now"]);
    assert!(!aborted.stderr.contains("leads to the target"), "{}", aborted.stderr);
    assert!(servers.disarm(), "the abort was not killed");
    killed
}

#[test]
fn what_came_to_a_target_that_was_about_to_be_taken_back_is_not_lost() {
    let killed = about_to_be_taken_back("late");
    let Killed { servers, user, mailbox, .. } = &killed;
    let deliver = |server: &Host, what: &str| {
        let message = format!("From: a@x\r\nSubject: {what}\r\n\r\n{what}\r\n");
        lab::lmtp::deliver(server, user, message.as_bytes()).accepted().unwrap();
    };
    deliver(&servers.target, "late");
    deliver(&servers.source, "meanwhile");
    let text = "has changed on this server since it was published";
    let resume = format!("mbcopy resume {mailbox}");
    killed.again("abort").expect(5).says(&[text, &resume, "bw1 serves the user now"]);
    let here = |server: &Host, what: &str| {
        let mut session = server.imap(user).unwrap();
        session.command("SELECT INBOX").unwrap();
        let found = session.command(format!("SEARCH SUBJECT {what}")).unwrap();
        found.of("SEARCH").map(|uids| uids.len() - 1).sum::<usize>()
    };
    let both = |server| [here(server, "late"), here(server, "meanwhile")];
    assert_eq!([both(&servers.source), both(&servers.target)], [[0, 1], [1, 0]]);
    // Nobody knows by the source alone that the target has him.
    let elsewhere = Host::new("bw3");
    install(&elsewhere);
    let other = servers.mbcopy(&["push", mailbox, "bw3", "--route-command", "true"]);
    other.expect(4).says(&["to bw2 stopped", "bw1 serves the user now"]);
    killed.again("resume").expect(0);
    assert!(sees(&servers.source, user).is_none(), "the source still serves him");
    assert_eq!(both(&servers.target), [1, 1]);
    killed.again("reverse").expect(0);
    assert!(sees(&servers.target, user).is_none(), "the target still serves him");
    assert_eq!(both(&servers.source), [1, 1]);
}

#[test]
fn folders_that_were_changed_on_a_target_that_was_about_to_be_taken_back_stay_so() {
    for (user, command) in [
        ("renames", "RENAME INBOX.Sent INBOX.New"),
        ("grants", "SETACL INBOX.Sent admin lrs"),
        ("deletes", "DELETE INBOX.a.b"),
    ] {
        let killed = about_to_be_taken_back(user);
        let servers = &killed.servers;
        let target = servers.target.imap(user).unwrap().command(command);
        target.unwrap_or_else(|e| panic!("{command}: {e}"));
        let changed = fingerprint(&servers.target, user, &[]);
        assert!(changed != killed.before, "{command}");
        killed.again("abort").expect(5);
        killed.again("resume").expect(0);
        assert!(sees(&servers.source, user).is_none(), "{command}: the source still serves him");
        assert_same(&changed, &fingerprint(&servers.target, user, &[]), &[]);
    }
}

#[test]
fn a_target_that_clients_have_used_before_its_route_was_changed_is_not_taken_back() {
    let killed = Killed::at(Point::PublishRecorded, "early".into(), false);
    let Killed { servers, user, mailbox, .. } = &killed;
    let message = b"From: a@x\r\nSubject: early\r\n\r\nearly\r\n";
    lab::lmtp::deliver(&servers.target, user, message).accepted().unwrap();
    servers.push(mailbox, &["--route-command", "true"]).expect(0);
    assert!(sees(&servers.source, user).is_none(), "the source still serves him");
    let all = fingerprint(&servers.target, user, &[]);
    assert_eq!(all.messages().count(), killed.before.messages().count() + 1);
}

#[test]
fn a_route_command_ends_with_the_coordinator_that_has_started_it() {
    let servers = Servers::fresh();
    let user = "routing";
    servers.accounts(&[user]);
    Seed::new(&servers.source, user).small().unwrap();
    let before = fingerprint(&servers.source, user, &[]);
    servers.source.run(&["rm", "-f", "/run/begun", "/run/routes"]).unwrap();
    let route = "touch /run/begun; sleep 3; echo $MBCOPY_ACTION >>/run/routes";
    let words = ["mbcopy", "push", "user.routing", "bw2", "--route-command", route];
    let pushing = servers.source.spawn(&words).unwrap();
    let run = servers.source.root().unwrap().join("run");
    let began = Instant::now();
    while !run.join("begun").exists() {
        assert!(began.elapsed() < Duration::from_secs(30), "the route is not changed");
        std::thread::sleep(Duration::from_millis(10));
    }
    servers.source.pids("^mbcopy push").unwrap().into_iter().for_each(kill);
    pushing.wait_with_output().unwrap();
    let at_once = route.replace("sleep 3", ":");
    let words = ["abort", "user.routing", "bw2", "--route-command", &at_once];
    servers.mbcopy(&words).expect(0);
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(std::fs::read_to_string(run.join("routes")).unwrap(), "restore\n");
    assert_same(&before, &fingerprint(&servers.source, user, &[]), &[]);
}
