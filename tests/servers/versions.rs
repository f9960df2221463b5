//! Users move between different releases of Cyrus, to newer ones and back to older
//! ones, and are the same but for what is named.

mod brought;
mod converted;
mod frozen;
mod settings;

use crate::support::{Pushed, Servers, fingerprint};
use lab::fingerprint::{self, Fingerprint, Take, volatile};
use lab::host::Host;
use lab::imap::NewMessage;
use lab::lmtp::Outcome;
use lab::seed::{self, Seed, Size};
use lab::workload::{Crew, Route, check};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// A release of Cyrus in the lab.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Release {
    version: &'static str,
    /// Two hosts that run it.
    hosts: [&'static str; 2],
}

const V3_2: Release = Release { version: "3.2.6", hosts: ["bull", "bull2"] };
const V3_6: Release = Release { version: "3.6.1", hosts: ["bw1", "bw2"] };
const V3_10: Release = Release { version: "3.10.2", hosts: ["trix", "trix2"] };
const V3_12: Release = Release { version: "3.12.4", hosts: ["sid", "sid2"] };
const RELEASES: [Release; 4] = [V3_2, V3_6, V3_10, V3_12];

/// What differs after a move from one release to another: all that may, by name.
fn named(from: Release, to: Release) -> Vec<&'static str> {
    let crosses = |side: &[Release]| side.contains(&from) != side.contains(&to);
    let mut named = vec!["lastupdate", "freespace"];
    if crosses(&[V3_2]) {
        named.extend(["mailbox-ids", "sieve-mailbox", "usercounters"]);
    }
    if crosses(&[V3_2, V3_6]) {
        named.extend(["userrawquota", "quota-names"]);
    }
    if crosses(&[V3_6, V3_10]) {
        named.push("namesake-subscriptions");
    }
    if crosses(&[V3_12]) {
        named.push("message-global");
    }
    let schema = |release: Release| match release {
        V3_2 => 9,
        V3_6 => 14,
        _ => 16,
    };
    if schema(to) < schema(from) {
        named.push("jmap-calendar-ids");
    }
    named
}

/// Whether a release shows subscriptions to folders of a user whose name begins as one's
/// own.
fn shows_namesakes(release: Release) -> bool {
    ![V3_6, V3_10].contains(&release)
}

/// Everything that can be observed of a user, with his scripts.
fn look(host: &Host, release: Release, user: &str) -> Fingerprint {
    if release == V3_2 {
        // The first look at a user's counters makes them.
        fingerprint(host, user, &[]);
    }
    let mut print = fingerprint(host, user, &[]);
    if print.sieve.is_empty() {
        // Files that come from 3.2 become messages when somebody asks for a script.
        drop(host.sieve(user).unwrap());
        print.sieve = fingerprint(host, user, &[]).sieve;
    }
    print
}

/// Where the fingerprint shows what a name stands for.
fn keys(name: &str) -> Vec<&'static str> {
    match name {
        "others" => vec!["others"],
        "lastupdate" => vec![volatile::LASTUPDATE],
        "freespace" => volatile::ALWAYS.to_vec(),
        "userrawquota" => vec!["/shared/vendor/cmu/cyrus-imapd/userrawquota"],
        "mailbox-ids" => vec!["mailbox_id"],
        "usercounters" => vec!["/private/vendor/cmu/cyrus-imapd/usercounters"],
        "conversations" => vec![
            "/private/vendor/cmu/cyrus-imapd/usercounters",
            "/private/vendor/cmu/cyrus-imapd/usermodseq",
        ],
        // From 3.6 on scripts are messages of a mailbox, which count.
        "sieve-mailbox" => vec!["quota"],
        "namesake-subscriptions" => {
            vec!["own / lsub / * (appeared)", "own / subscribed / * (appeared)"]
        }
        // Quota resources are compared by their new names; no calendars are looked at.
        "quota-names" | "jmap-calendar-ids" | "message-global" => vec![],
        other => panic!("{other} is not known here"),
    }
}

/// Fails unless both are the same but for these names.
#[track_caller]
fn assert_same(before: &Fingerprint, after: &Fingerprint, names: &[&str]) {
    let ignored: Vec<&str> =
        names.iter().flat_map(|name| keys(name)).chain([volatile::SERVER]).collect();
    let [before, after] = [before, after].map(|print| {
        let mut text = serde_json::to_string(print).unwrap();
        if names.contains(&"quota-names") {
            text = text.replace("X-NUM-FOLDERS", "MAILBOX");
            text = text.replace("X-ANNOTATION-STORAGE", "ANNOTATION-STORAGE");
        }
        let mut print: Fingerprint = serde_json::from_str(&text).unwrap();
        if names.contains(&"sieve-mailbox") {
            print.own.mailboxes.remove("INBOX.#sieve");
            print.admin.retain(|name, _| !name.ends_with("#sieve"));
        }
        print
    });
    let differences = fingerprint::diff(&before, &after, &ignored).unwrap();
    assert!(differences.is_empty(), "{}", fingerprint::report(&differences));
}

/// A host of each release, different ones.
fn servers(from: Release, to: Release) -> Servers {
    let target = usize::from(from == to);
    let servers = Servers::between(from.hosts[0], to.hosts[target]);
    for (host, release) in servers.both().into_iter().zip([from, to]) {
        let version = host.run(&["/usr/lib/cyrus/bin/cyr_info", "version"]).unwrap();
        assert!(version.contains(release.version), "{host} has {version}");
    }
    servers
}

/// What this host's own Cyrus would mend of a user's mailboxes.
fn complaints(host: &Host, user: &str) -> String {
    let reconstruct = "/usr/lib/cyrus/bin/reconstruct";
    let said = [&["-n", "-q", "-u", user][..], &["-n", "-q", "-G", "-u", user]].map(|options| {
        let command: Vec<&str> = [reconstruct].iter().chain(options).copied().collect();
        let output = host.exec_as_cyrus(&command).unwrap();
        [output.stdout, output.stderr]
            .map(|out| String::from_utf8_lossy(&out).into_owned())
            .concat()
    });
    let said = said.concat();
    let odd = said.lines().filter(|line| {
        let harmless = ["mismatch: sentdate", "mismatch: gmtime"];
        !line.trim().is_empty() && !harmless.iter().any(|text| line.contains(text))
    });
    odd.collect::<Vec<_>>().join("\n")
}

/// Limits on everything that has a quota, by the names that the server uses.
fn all_quotas(servers: &Servers, from: Release, user: &str) {
    let [annotations, folders] = match from.version {
        "3.2.6" | "3.6.1" => ["X-ANNOTATION-STORAGE", "X-NUM-FOLDERS"],
        _ => ["ANNOTATION-STORAGE", "MAILBOX"],
    };
    let limits = format!("STORAGE 2000000 MESSAGE 500000 {annotations} 9000 {folders} 900");
    let mut admin = servers.source.admin().unwrap();
    admin.command(format!("SETQUOTA user.{user} ({limits})")).unwrap();
}

/// Subscribes to a folder of a user whose name begins as this one's, which 3.6 to 3.10
/// write in another way, and do not show.
fn subscribe_to_namesake(servers: &Servers, user: &str) -> String {
    let namesake = format!("{user}bel");
    servers.accounts(&[&namesake]);
    for host in servers.both() {
        let mut admin = host.admin().unwrap();
        admin.command(format!("CREATE user.{namesake}")).unwrap();
        admin.command(format!("SETACL user.{namesake} {user} lrs")).unwrap();
    }
    let mut imap = servers.source.imap(user).unwrap();
    imap.command(format!("SUBSCRIBE user.{namesake}")).unwrap();
    imap.logout();
    format!("user.{namesake}")
}

/// A message within a message, as one and the other release parse it into their caches.
fn append_nested(host: &Host, user: &str) {
    let nested = "From: n@x\r\nSubject: n\u{e4}sted\r\nMIME-Version: 1.0\r\n\
        Content-Type: multipart/mixed; boundary=B\r\n\r\n\
        --B\r\n\r\none\r\n--B\r\n\r\ntwo\r\n--B--\r\n";
    let messages = ["rfc822", "global"].map(|subtype| {
        let text = format!(
            "From: a@b\r\nMessage-ID: <{subtype}@nested>\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/mixed; boundary=A\r\n\r\n--A\r\n\r\nouter\r\n--A\r\n\
             Content-Type: message/{subtype}\r\n\r\n{nested}\r\n--A\r\n\r\nlast\r\n--A--\r\n"
        );
        NewMessage { bytes: text.into_bytes(), ..NewMessage::default() }
    });
    host.imap(user).unwrap().append("INBOX", &messages).unwrap();
}

/// Clients ask for parts of messages, which the server knows from its cache.
fn ask_for_parts(host: &Host, user: &str) {
    let mut imap = host.imap(user).unwrap();
    imap.command("EXAMINE INBOX").unwrap();
    let parts = "BODY.PEEK[1] BODY.PEEK[2] BODY.PEEK[2.HEADER] BODY.PEEK[2.1] BODY.PEEK[3]";
    for what in ["ENVELOPE BODYSTRUCTURE", parts] {
        imap.command(format!("UID FETCH 1:* ({what})")).unwrap();
    }
    imap.command("UID SEARCH HEADER Message-ID nested BODY two").unwrap();
    imap.logout();
}

/// What becomes of those who come late to a server that the user has left.
fn assert_gone(host: &Host, user: &str) {
    let late = lab::lmtp::deliver(host, user, b"Subject: late\r\n\r\nx\r\n");
    assert!(matches!(&late, Outcome::Refused(_, reply) if reply.code / 100 == 4), "{late:?}");
    let mut imap = host.imap(user).unwrap();
    for command in ["EXAMINE INBOX", "CREATE INBOX.late", "CREATE INBOX.Archive.late"] {
        let reply = imap.attempt(command).unwrap();
        assert!(!reply.tagged.is_ok(), "{host} says OK to {command}");
    }
}

/// He uses his new home.
fn use_home(host: &Host, user: &str) {
    let text = b"Subject: new home\r\n\r\nhello\r\n";
    lab::lmtp::deliver(host, user, text).accepted().unwrap();
    let mut imap = host.imap(user).unwrap();
    for command in [
        "SELECT INBOX",
        "STORE 1:3 +FLAGS (\\Flagged brandnew)",
        "STORE 5 +FLAGS (\\Deleted)",
        "EXPUNGE",
        "STORE 6 +FLAGS (\\Deleted)",
        "UNSELECT",
        "CREATE INBOX.later",
        "SUBSCRIBE INBOX.later",
        "RENAME INBOX.Junk INBOX.junked",
        "DELETE INBOX.1234",
    ] {
        imap.command(command).unwrap();
    }
    imap.logout();
    let mut sieve = host.sieve(user).unwrap();
    sieve.put("newer", "keep;\r\n").unwrap();
    sieve.activate("newer").unwrap();
}

/// Moves a user with everything there, and back, and there again.
fn there_and_back(from: Release, to: Release) {
    let servers = servers(from, to);
    servers.accounts(&["anna", "bert"]);
    let seeded = Seed::new(&servers.source, "anna").rich("bert", 300).unwrap();
    assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
    all_quotas(&servers, from, "anna");
    append_nested(&servers.source, "anna");
    let namesake = subscribe_to_namesake(&servers, "anna");
    let before = look(&servers.source, from, "anna");
    assert!(before.own.mailboxes.len() >= 35, "{} folders", before.own.mailboxes.len());
    let shown = before.own.lsub.contains_key(&namesake);
    assert_eq!(shown, shows_namesakes(from), "{:?}", before.own.lsub);
    assert!(!before.delayed_expunged.is_empty(), "nothing is kept by delayed expunge");
    assert!(!before.sieve.is_empty(), "no sieve scripts");

    let pushed = servers.push("user.anna", &["--json", "--route-command", "true"]).expect(0);
    let report = pushed.report().unwrap();
    assert_eq!(report["differences"], serde_json::json!(named(from, to)));
    let moved = look(&servers.target, to, "anna");
    assert_same(&before, &moved, &named(from, to));
    assert_eq!(moved.own.lsub.contains_key(&namesake), shown || shows_namesakes(to));
    assert_eq!(complaints(&servers.target, "anna"), "");
    if ![from, to].contains(&V3_2) {
        servers.mbcopy(&["verify", "user.anna", servers.target.name(), "--content"]).expect(0);
    }
    ask_for_parts(&servers.target, "anna");
    assert_gone(&servers.source, "anna");

    use_home(&servers.target, "anna");
    append_nested(&servers.target, "anna");
    let there = look(&servers.target, to, "anna");
    let back = servers.mbcopy(&["reverse", "user.anna", "--json"]).expect(0).report().unwrap();
    assert_eq!(back["differences"], serde_json::json!(named(to, from)));
    let home = look(&servers.source, from, "anna");
    assert_same(&there, &home, &named(to, from));
    assert_eq!(complaints(&servers.source, "anna"), "");
    ask_for_parts(&servers.source, "anna");
    assert_gone(&servers.target, "anna");

    // A release that meets its own files again, after an older one has had them.
    servers.push("user.anna", &["--route-command", "true"]).expect(0);
    assert_same(&home, &look(&servers.target, to, "anna"), &named(from, to));
}

/// Moves a user while his clients work and mail arrives.
fn at_work(from: Release, to: Release) {
    let servers = servers(from, to);
    servers.accounts(&["flow"]);
    Seed::new(&servers.source, "flow").bulk(800, Size::Median(8192), 6).unwrap();
    let (route, command) = Route::commanded("flow", &servers.source).unwrap();
    let crew = Crew::start(&route, Duration::from_millis(5)).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let pushed = servers.push("user.flow", &["--route-command", &command, "--json"]);
    std::thread::sleep(Duration::from_secs(1));
    let history = crew.stop().unwrap();
    let report = pushed.expect(0).report().unwrap();
    assert_eq!(report["outcome"], "done");
    let end = fingerprint(&servers.target, "flow", &[]);
    assert_eq!(check(&history, &end), [], "setbacks: {:?}", history.setbacks);
    let accepted = history.messages.values().filter(|fate| fate.accepted > 0).count();
    assert!(accepted > 50, "only {accepted} messages were accepted");
    assert!(history.bounces.is_empty(), "{:?}", history.bounces);
    assert_eq!(complaints(&servers.target, "flow"), "");
}

#[test]
fn from_3_6_to_3_12_and_back() {
    there_and_back(V3_6, V3_12);
}

#[test]
fn from_3_12_to_3_6_and_back() {
    there_and_back(V3_12, V3_6);
}

#[test]
fn from_3_10_to_3_12_and_back() {
    there_and_back(V3_10, V3_12);
}

#[test]
fn from_3_6_to_3_12_at_work() {
    at_work(V3_6, V3_12);
}

#[test]
fn from_3_12_to_3_6_at_work() {
    at_work(V3_12, V3_6);
}

/// What reaches the source after its user was published is carried over by the target's
/// own imapd, whose release is another.
#[test]
fn stragglers_are_carried_over_to_3_12() {
    let servers = servers(V3_6, V3_12);
    servers.accounts(&["late"]);
    Seed::new(&servers.source, "late").small().unwrap();
    servers.arm("Routed");
    let stopped: Pushed = servers.push("user.late", &["--route-command", "true"]);
    assert!(servers.disarm(), "{}", stopped.stderr);
    lab::lmtp::deliver(&servers.source, "late", b"Message-ID: <late@old>\r\n\r\nx\r\n")
        .accepted()
        .unwrap();
    let mut imap = servers.source.imap("late").unwrap();
    for command in ["SELECT INBOX", "STORE 2 +FLAGS (\\Answered later)", "CREATE INBOX.late"] {
        imap.command(command).unwrap();
    }
    imap.logout();
    let source = fingerprint(&servers.source, "late", &[]);
    servers.mbcopy(&["resume", "user.late"]).expect(0);
    let target = fingerprint(&servers.target, "late", &[]);
    let messages = |print: &Fingerprint| {
        let all = print.messages();
        let mut all: Vec<_> = all
            .map(|(folder, uid, m)| (folder.to_owned(), uid, m.flags.clone(), m.sha1.clone()))
            .collect();
        all.sort();
        all
    };
    assert_eq!(messages(&source), messages(&target));
    assert!(target.own.mailboxes.contains_key("INBOX.late"));
    assert_eq!(complaints(&servers.target, "late"), "");
}

/// A tree that nobody owns is locked mailbox by mailbox, by every release.
#[test]
fn a_shared_tree_moves_to_3_12_and_back() {
    let servers = servers(V3_6, V3_12);
    servers.accounts(&["carl", "dora"]);
    seed::shared_tree(&servers.source, "team.sales", &["carl", "dora"]).unwrap();
    let look = |host| {
        Fingerprint::take_tree(host, "team.sales", &["carl", "dora"], &Take::default()).unwrap()
    };
    let before = look(&servers.source);
    assert!(before.admin.len() >= 5, "{} mailboxes", before.admin.len());
    servers.push("team.sales", &["--route-command", "true"]).expect(0);
    // What they have seen there and subscribed to is theirs, and stays.
    let of_users = ["others"];
    let known = [&of_users[..], &named(V3_6, V3_12)].concat();
    assert_same(&before, &look(&servers.target), &known);
    let late = lab::lmtp::deliver(&servers.source, "+team.sales", b"Subject: late\r\n\r\nx\r\n");
    assert!(matches!(&late, Outcome::Refused(_, reply) if reply.code / 100 == 4), "{late:?}");
    servers.mbcopy(&["reverse", "team.sales"]).expect(0);
    assert_same(&before, &look(&servers.source), &named(V3_12, V3_6));
}

/// Between what the generated table stands in `docs/cyrus.md`.
const MARKS: [&str; 2] = ["<!-- make versions: begin -->\n", "<!-- make versions: end -->"];

/// `make versions`: every release to every release; the table of what came of it.
#[test]
#[ignore = "a quarter of an hour: make versions"]
fn every_release_to_every_release() {
    let mut rows = String::from("| from | to | result | what differs, by name |\n");
    rows.push_str("|---|---|---|---|\n");
    let mut failed = Vec::new();
    for from in RELEASES {
        for to in RELEASES {
            let pair = format!("{} to {}", from.version, to.version);
            let done = catch_unwind(AssertUnwindSafe(|| {
                at_work(from, to);
                there_and_back(from, to)
            }));
            let result = match &done {
                Ok(()) => "the same, there and back, and with clients at work",
                Err(_) => "FAILED",
            };
            println!("{pair}: {result}");
            let names = named(from, to).join(", ");
            rows.push_str(&format!("| {} | {} | {result} | {names} |\n", from.version, to.version));
            if done.is_err() {
                failed.push(pair);
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cyrus.md");
    let text = std::fs::read_to_string(path).unwrap();
    let [begin, end] = MARKS.map(|mark| text.find(mark).expect("docs/cyrus.md has its marks"));
    let table = [&text[..begin + MARKS[0].len()], &rows, &text[end..]].concat();
    std::fs::write(path, table).unwrap();
    assert!(failed.is_empty(), "failed: {failed:?}");
}
