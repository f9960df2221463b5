//! What changes after the last round is converted, too.

use super::{V3_6, V3_12, assert_same, complaints, look, named, servers};
use lab::seed::{Seed, Size};
use std::time::Duration;

/// Under the freeze only what has changed is converted; and nothing that helps to do so is
/// left among the user's files, whichever push has kept it.
#[test]
fn what_changes_after_the_last_round_is_converted_too() {
    let servers = &servers(V3_6, V3_12);
    servers.accounts(&["early", "grow"]);
    for user in ["early", "grow"] {
        Seed::new(&servers.source, user).bulk(1200, Size::Fixed(500), 1).unwrap();
        // The first look makes the mailbox of his scripts.
        look(&servers.source, V3_6, user);
    }
    servers.push("user.early", &["--copy-only"]).expect(0);
    for user in ["early", "grow"] {
        let mailbox = &format!("user.{user}");
        servers.arm_on(&servers.source, "Copied wait");
        let before = std::thread::scope(|scope| {
            let push = scope.spawn(|| servers.push(mailbox, &["--route-command", "true"]));
            while !servers.struck() && !push.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(!push.is_finished(), "it did not come as far as the freeze");
            let mut imap = servers.source.imap(user).unwrap();
            for command in [
                "SELECT INBOX",
                "STORE 3,700 +FLAGS (\\Deleted later)",
                "STORE 1100 +FLAGS (\\Seen)",
                "UID EXPUNGE 3",
                "COPY 5:205 INBOX",
                "UNSELECT",
            ] {
                imap.command(command).unwrap();
            }
            let before = look(&servers.source, V3_6, user);
            servers.disarm();
            push.join().unwrap().expect(0);
            before
        });
        assert_same(&before, &look(&servers.target, V3_12, user), &named(V3_6, V3_12));
        assert_eq!(complaints(&servers.target, user), "");
    }
    let left = servers.target.run(&["find", "/var/spool/cyrus", "-name", "*.mbcopy-*"]).unwrap();
    assert_eq!(left, "");
}
