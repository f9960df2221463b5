//! One delivery to several users is one file with several names, on the target, too; and
//! crosses the wire once.

use crate::bulk::{STORE, assert_healthy, documents, shell};
use crate::support::{Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::lmtp;
use lab::seed::{Seed, Size};

const USERS: usize = 6;
const MESSAGES: usize = 5;

/// Bytes of each of the messages that all have.
const LARGE: usize = 200_000;

/// Each file of messages that clients see: how many names it has, its size, and who has it;
/// sorted.
fn files(host: &Host) -> Vec<String> {
    let find = "find /var/spool/cyrus/mail -name .mbcopy -prune -o -type f -name '*.' -printf \
                '%n %s %i\\n' | sort | uniq -c | awk '{print $1, $2, $3}' | sort";
    shell(host, find).lines().map(str::to_owned).collect()
}

/// Users of whom all have some messages by one delivery each, two of them others, and
/// everybody one of his own; one has a copy within his own folders.
fn seeded(prefix: &str) -> (Servers, Vec<String>) {
    let servers = Servers::fresh();
    let users: Vec<String> = (0..USERS).map(|n| format!("{prefix}{n:02}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    servers.accounts(&names);
    let mut admin = servers.source.admin().unwrap();
    for user in &users {
        admin.command(format!("CREATE user.{user}")).unwrap();
    }
    let deliver = |to: &[&str], n: usize, length: usize| {
        let body = format!("line {n}\r\n").repeat(length / 8);
        let text = format!("Subject: {n}\r\nMessage-ID: <{n}@lab>\r\n\r\n{body}");
        lmtp::deliver_to(&servers.source, to, text.as_bytes()).accepted().unwrap();
    };
    (0..MESSAGES).for_each(|n| deliver(&names, n, LARGE));
    deliver(&names[..2], 100, 5000);
    (0..USERS).for_each(|n| deliver(&names[n..=n], 200 + n, 3000));
    let mut imap = servers.source.imap(&users[0]).unwrap();
    imap.command("CREATE INBOX.copies").unwrap();
    imap.command("SELECT INBOX").unwrap();
    imap.command("COPY 7 INBOX.copies").unwrap();
    shell(&servers.source, &format!("rm -rf {STORE}"));
    (servers, users)
}

/// Moves them by so many moves at once; how many messages and bytes crossed the wire.
fn move_all(servers: &Servers, users: &[String], options: &[&str]) -> (u64, u64) {
    let before: Vec<_> = users.iter().map(|user| fingerprint(&servers.source, user, &[])).collect();
    let links = files(&servers.source);
    let shared = format!("{USERS} {USERS} ");
    assert_eq!(
        links.iter().filter(|file| file.starts_with(&shared)).count(),
        MESSAGES,
        "{links:?}"
    );
    let prefix = &users[0][..users[0].len() - 2];
    let pattern = format!("user.{prefix}*");
    let command = ["bulk", &pattern, "--to", "bw2", "--json", "--store", STORE];
    let ended = servers.mbcopy(&[&command[..], options].concat()).expect(0);
    for (user, before) in users.iter().zip(&before) {
        assert_same(before, &fingerprint(&servers.target, user, &[]), &[]);
    }
    assert_eq!(files(&servers.target), links, "the links are others");
    assert_healthy(&servers.target, users);
    assert_eq!(
        shell(&servers.target, "ls -d /var/spool/cyrus/*/.mbcopy 2>/dev/null || true"),
        "",
        "something is left"
    );
    let ended = documents(&ended);
    let ended = ended.iter().filter(|document| document["event"] == "ended");
    ended.fold((0, 0), |sum, document| {
        let number = |key: &str| document[key].as_u64().unwrap();
        (sum.0 + number("messages_sent"), sum.1 + number("bytes_sent"))
    })
}

#[test]
fn what_several_users_have_crosses_once_and_is_one_file_again() {
    let (servers, users) = seeded("once");
    let (messages, bytes) = move_all(&servers, &users, &["--jobs=1"]);
    // All of the first user, with his copy; of the second what the first has not; and so on.
    assert_eq!(messages, (MESSAGES + 2 + 1 + USERS - 1) as u64);
    let apart = (MESSAGES * USERS * LARGE) as u64;
    assert!(bytes < apart / 4, "{bytes} bytes were sent; each for himself would be {apart}");
    println!("{bytes} bytes of {apart} were sent");
}

#[test]
fn by_several_moves_at_once_it_is_one_file_again_too() {
    let (servers, users) = seeded("much");
    let (messages, _) = move_all(&servers, &users, &["--jobs=6"]);
    assert!(messages >= (MESSAGES + 2 + USERS) as u64, "{messages}");
}

/// What a user's mail takes on the disk, in bytes: a file with several names counts once.
fn on_disk(host: &Host, mailboxes: &[&str]) -> u64 {
    let paths = format!("/usr/sbin/cyrus mbpath {}", mailboxes.join(" "));
    let paths = host.run_as_cyrus(&["sh", "-c", &paths]).unwrap().replace('\n', " ");
    let told = shell(host, &format!("du -sb --total {paths} | tail -1 | cut -f1"));
    told.trim().parse().unwrap()
}

#[test]
fn what_one_user_has_several_times_crosses_once_and_is_one_file_again() {
    let servers = Servers::fresh();
    servers.accounts(&["copies"]);
    Seed::new(&servers.source, "copies").bulk(70, Size::Fixed(50_000), 1).unwrap();
    let mut imap = servers.source.imap("copies").unwrap();
    // Three in ten of all are copies; the last of them of one message.
    for (folder, set) in [("a", "1:20"), ("b", "15:22"), ("b", "1"), ("b", "1")] {
        let _ = imap.attempt(format!("CREATE INBOX.{folder}")).unwrap();
        imap.command("SELECT INBOX").unwrap();
        imap.command(format!("COPY {set} INBOX.{folder}")).unwrap();
    }
    let mailboxes = ["user.copies", "user.copies.a", "user.copies.b"];
    let (before, links) = (fingerprint(&servers.source, "copies", &[]), files(&servers.source));
    assert!(links.iter().any(|file| file.starts_with("4 4 ")), "{links:?}");
    let disk = on_disk(&servers.source, &mailboxes);
    let report = servers.push("user.copies", &["--json"]).expect(0).report().unwrap();
    assert_same(&before, &fingerprint(&servers.target, "copies", &[]), &[]);
    assert_eq!(files(&servers.target), links, "the links are others");
    let there = on_disk(&servers.target, &mailboxes);
    println!(
        "{} bytes sent; {disk} on the source's disk, {there} on the target's",
        report["bytes_sent"]
    );
    assert_eq!(report["messages_sent"], 100);
    assert!(report["bytes_sent"].as_u64().unwrap() < 75 * 50_000, "{report}");
    assert!(disk.abs_diff(there) * 50 < disk, "{disk} and {there} bytes");
}
