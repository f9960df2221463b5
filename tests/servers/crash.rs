//! Whatever is killed, and wherever: the same command ends the move, and the
//! user is whole on exactly one server before and after.

use crate::support::{Servers, assert_same, fingerprint};
use lab::fingerprint::Fingerprint;
use lab::host::Host;
use lab::seed::Seed;
use mbcopy::fault::Point;

/// Where the next process that reaches the point dies.
pub fn arm(servers: &Servers, point: Point) {
    for host in servers.both() {
        let script = format!("echo {point:?} > /run/mbcopy-fault; chmod 666 /run/mbcopy-fault");
        host.run(&["sh", "-c", &script]).unwrap();
    }
}

/// Whether the point was reached on one of the hosts; nothing is armed after.
pub fn disarm(servers: &Servers) -> bool {
    let spent = |host: &&Host| host.run(&["cat", "/run/mbcopy-fault"]).unwrap().trim().is_empty();
    let reached = servers.both().iter().any(spent);
    for host in servers.both() {
        host.run(&["rm", "-f", "/run/mbcopy-fault"]).unwrap();
    }
    reached
}

/// What a client sees of the user there: everything, or nothing.
fn sees(host: &Host, user: &str) -> Option<Fingerprint> {
    let mut imap = host.imap(user).unwrap();
    let selected = imap.attempt("EXAMINE INBOX").unwrap();
    imap.logout();
    selected.tagged.is_ok().then(|| fingerprint(host, user, &[]))
}

#[test]
fn a_move_that_is_killed_at_any_point_is_finished_by_the_same_command() {
    // What only stragglers reach is tried with them.
    let reached = |point: &Point| !Point::OF_STRAGGLERS.contains(point);
    for (n, point) in Point::ALL.into_iter().filter(reached).enumerate() {
        let servers = Servers::fresh();
        let user = format!("crash{n}");
        servers.accounts(&[&user]);
        Seed::new(&servers.source, &user).small().unwrap();
        let before = fingerprint(&servers.source, &user, &[]);
        let mailbox = format!("user.{user}");

        arm(&servers, point);
        let killed = servers.push(&mailbox, &["--route-command", "true"]);
        assert!(disarm(&servers), "{point:?} was not reached");
        assert!(killed.code != 0 || point > Point::Thawed, "{point:?}: {}", killed.stdout);

        // Restarted or not, whoever shows the user shows all of him.
        for host in servers.both().into_iter().filter(|_| n % 2 == 0) {
            host.restart_cyrus().unwrap();
        }
        let on_source = sees(&servers.source, &user);
        let on_target = sees(&servers.target, &user);
        assert!(on_source.is_some() || on_target.is_some(), "{point:?}: nobody serves {user}");
        let whole = [&on_source, &on_target];
        whole.iter().copied().flatten().for_each(|seen| assert_same(&before, seen, &[]));

        let again = servers.push(&mailbox, &["--route-command", "true", "-v"]);
        println!("{point:?}: {} then {}", killed.code, again.code);
        let again = again.expect(0);
        assert_eq!(again.last_line(), format!("{mailbox}: moved; bw2 serves the user now"));
        assert_same(&before, &fingerprint(&servers.target, &user, &[]), &[]);
        assert!(
            sees(&servers.source, &user).is_none(),
            "{point:?}: the source still serves {user}"
        );
        let stage = "find /var/spool/cyrus /var/lib/cyrus/mbcopy/moves /var/spool/sieve \
                     -path '*mbcopy*' -type f | wc -l";
        let left = servers.target.run(&["sh", "-c", stage]).unwrap();
        assert_eq!(left.trim(), "0", "{point:?}: the target keeps a stage");
    }
}
