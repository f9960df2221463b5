//! Whatever is killed, and wherever: the same command ends the move, and the
//! user is whole on exactly one server before and after.

use crate::support::{Servers, assert_same, fingerprint};
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::lmtp::Outcome;
use lab::seed::Seed;
use mbcopy::fault::Point;

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

/// A user on the source whose push died at a point.
pub struct Killed {
    pub servers: Servers,
    pub user: String,
    pub mailbox: String,
    before: Fingerprint,
    files: String,
}

impl Killed {
    /// `restart`: both servers' Cyrus, after the crash.
    pub fn at(point: Point, user: String, restart: bool) -> Killed {
        let servers = Servers::fresh();
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let before = fingerprint(&servers.source, &user, &[]);
        let files = files(&servers.source, &user);
        let mailbox = format!("user.{user}");

        servers.arm(&format!("{point:?}"));
        let killed = servers.push(&mailbox, &["--route-command", "true"]);
        assert!(servers.disarm(), "{point:?} was not reached");
        assert!(killed.code != 0 || point > Point::Thawed, "{point:?}: {}", killed.stdout);
        println!("{point:?}: {}", killed.code);

        // Whoever shows the user shows all of him.
        for host in servers.both().into_iter().filter(|_| restart) {
            host.restart_cyrus().unwrap();
        }
        let on_source = sees(&servers.source, &user);
        let on_target = sees(&servers.target, &user);
        assert!(on_source.is_some() || on_target.is_some(), "{point:?}: nobody serves {user}");
        let whole = [&on_source, &on_target];
        whole.iter().copied().flatten().for_each(|seen| assert_same(&before, seen, &[]));
        Killed { servers, user, mailbox, before, files }
    }

    /// The user is whole on the target, and the source shows nothing of him.
    pub fn assert_moved(&self, point: Point) {
        let Killed { servers, user, before, .. } = self;
        assert_same(before, &fingerprint(&servers.target, user, &[]), &[]);
        assert!(sees(&servers.source, user).is_none(), "{point:?}: the source still serves {user}");
        self.assert_no_stage(point);
    }

    /// The user is on the source as he was, down to his files, and nowhere else.
    pub fn assert_as_before(&self, point: Point) {
        let Killed { servers, user, before, .. } = self;
        assert_same(before, &fingerprint(&servers.source, user, &[]), &[]);
        assert_eq!(self.files, files(&servers.source, user), "{point:?}: the source's files");
        assert!(sees(&servers.target, user).is_none(), "{point:?}: the target shows {user}");
        self.assert_no_stage(point);
    }

    fn assert_no_stage(&self, point: Point) {
        let stage = "find /var/spool/cyrus /var/lib/cyrus/mbcopy/moves /var/spool/sieve \
                     -path '*mbcopy*' -type f 2>/dev/null | wc -l";
        let left = self.servers.target.run(&["sh", "-c", stage]).unwrap();
        assert_eq!(left.trim(), "0", "{point:?}: the target keeps a stage");
    }
}

/// Those that a push reaches.
fn points_of_a_push() -> impl Iterator<Item = (usize, Point)> {
    Point::STEPS.into_iter().filter(|point| *point != Point::TargetGaveUp).enumerate()
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
