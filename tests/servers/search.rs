//! Search indexes: that of Xapian does not move, and is made anew.

use crate::support::{Pushed, PutBack, Servers, assert_same, fingerprint};
use lab::host::Host;
use lab::imap::NewMessage;
use lab::seed::Seed;

/// A server whose users have an index.
const XAPIAN: &[(&str, &str)] = &[
    ("search_engine", "xapian"),
    ("conversations", "yes"),
    ("defaultsearchtier", "t1"),
    ("t1searchpartition-default", "/var/spool/cyrus/search"),
    ("t1searchpartition-p2", "/var/spool/cyrus/search-p2"),
    ("sync_log", "yes"),
    ("sync_log_channels", "squatter"),
];

/// The same, whose squatter goes through all mailboxes now and then.
const NIGHTLY: &[(&str, &str)] = &[
    ("search_engine", "xapian"),
    ("conversations", "yes"),
    ("defaultsearchtier", "t1"),
    ("t1searchpartition-default", "/var/spool/cyrus/search"),
    ("t1searchpartition-p2", "/var/spool/cyrus/search-p2"),
];

fn servers(options: [&[(&str, &str)]; 2], names: [&str; 2]) -> (Servers, PutBack) {
    let (servers, put_back) = Servers::with_options((names[0], options[0]), (names[1], options[1]));
    for host in servers.both() {
        for directory in ["search", "search-p2"] {
            let path = format!("/var/spool/cyrus/{directory}");
            host.run_as_cyrus(&["mkdir", "-p", &path]).unwrap();
        }
    }
    (servers, put_back)
}

/// How many messages a client finds by a word in the index.
fn found(host: &Host, user: &str, word: &str) -> usize {
    let mut imap = host.imap(user).unwrap();
    imap.command("EXAMINE INBOX").unwrap();
    let reply = imap.command(format!("UID SEARCH FUZZY BODY \"{word}\"")).unwrap();
    let count = reply.of("SEARCH").next().map_or(0, |line| line.len().saturating_sub(1));
    imap.logout();
    count
}

/// The files of all users' indexes, but for what mbcopy keeps.
fn index_files(host: &Host) -> usize {
    let find = "cd /var/spool/cyrus && find search search-p2 -name .mbcopy -prune -o \
                -type f -print";
    host.run(&["sh", "-c", find]).unwrap().lines().count()
}

fn squatter(host: &Host, options: &[&str]) {
    let command = [&["/usr/lib/cyrus/bin/squatter"], options].concat();
    host.run_as_cyrus(&command).unwrap();
}

/// What waits for squatter.
fn log(host: &Host) -> String {
    let read = "cat /var/lib/cyrus/sync/squatter/log 2>/dev/null || true";
    host.run(&["sh", "-c", read]).unwrap()
}

fn seed(servers: &Servers) {
    servers.accounts(&["finder"]);
    Seed::new(&servers.source, "finder").small().unwrap();
    let text = b"From: a@example.org\r\nSubject: needle\r\n\r\nthe needles of a haystack\r\n";
    let message = NewMessage { bytes: text.to_vec(), ..NewMessage::default() };
    let mut imap = servers.source.imap("finder").unwrap();
    imap.append("INBOX", &[message.clone(), message]).unwrap();
    imap.command("CREATE \"INBOX.half (off)\"").unwrap();
    imap.logout();
    squatter(&servers.source, &["-i", "-u", "finder"]);
    assert_eq!(found(&servers.source, "finder", "needle"), 2);
    assert!(index_files(&servers.source) > 0, "there is no index");
}

fn moves(servers: &Servers) -> Pushed {
    let before = fingerprint(&servers.source, "finder", &[]);
    let pushed = servers.push("user.finder", &["-v"]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "finder", &[]), &[]);
    assert_eq!(index_files(&servers.source), 0, "the old index is left in place");
    pushed
}

#[test]
fn squatter_is_told_of_who_has_come() {
    let (servers, _put_back) = servers([XAPIAN, XAPIAN], ["bw1", "bw2"]);
    seed(&servers);
    moves(&servers);
    assert_eq!(index_files(&servers.target), 0, "an index has come");
    let waiting = log(&servers.target);
    for line in
        ["APPEND user.finder", "APPEND user.finder.Sent", "APPEND \"user.finder.half (off)\""]
    {
        let there = waiting.lines().any(|l| l.replace('"', "") == line.replace('"', ""));
        assert!(there, "no {line} in {waiting}");
    }
    let path = "/var/lib/cyrus/sync/squatter/log";
    squatter(&servers.target, &["-i", "-f", path]);
    assert!(index_files(&servers.target) > 0, "squatter has made nothing");
    assert_eq!(found(&servers.target, "finder", "needle"), 2);

    // Back, and what he was there for is put away, too.
    servers.mbcopy(&["reverse", "user.finder"]).expect(0);
    assert_eq!([index_files(&servers.source), index_files(&servers.target)], [0, 0]);
    squatter(&servers.source, &["-i", "-f", path]);
    assert_eq!(found(&servers.source, "finder", "needle"), 2);
}

#[test]
#[ignore = "long: for `make matrix`"]
fn the_admin_is_told_where_nobody_tells_squatter() {
    let (servers, _put_back) = servers([NIGHTLY, NIGHTLY], ["bw1", "bw2"]);
    seed(&servers);
    // An index that he once had there.
    let id =
        servers.source.run(&["sh", "-c", "cd /var/spool/cyrus/search/user/uuid && echo */*/*"]);
    let old = format!("/var/spool/cyrus/search/user/uuid/{}/xapian", id.unwrap().trim());
    servers.target.run_as_cyrus(&["mkdir", "-p", &old]).unwrap();
    servers.target.run_as_cyrus(&["touch", &format!("{old}/old")]).unwrap();
    moves(&servers).says(&["squatter -i -u finder"]);
    assert_eq!(index_files(&servers.target), 0, "the old index is there");
    squatter(&servers.target, &["-i", "-u", "finder"]);
    assert_eq!(found(&servers.target, "finder", "needle"), 2);
}

#[test]
#[ignore = "long: for `make versions`"]
fn versions_3_6_to_3_12_with_an_index() {
    let (servers, _put_back) = servers([XAPIAN, NIGHTLY], ["bw1", "sid"]);
    servers.accounts(&["finder"]);
    seed(&servers);
    servers.push("user.finder", &["-v"]).expect(0).says(&["squatter -i -u finder"]);
    assert_eq!(index_files(&servers.target), 0, "an index has come");
    squatter(&servers.target, &["-i", "-u", "finder"]);
    assert_eq!(found(&servers.target, "finder", "needle"), 2);
    servers.mbcopy(&["reverse", "user.finder"]).expect(0);
    squatter(&servers.source, &["-i", "-u", "finder"]);
    assert_eq!(found(&servers.source, "finder", "needle"), 2);
}
