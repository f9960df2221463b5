//! Layouts and settings that differ between the two servers, and users that are unusual.
//! A user moves each way, so that each setting is once the source's and once the target's.

use crate::support::{OptionsPutBack, Pushed, Servers, assert_same, fingerprint};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::Host;
use lab::imap::{NewMessage, mutf7, quote, words};
use lab::seed::{self, Seed};

/// Options of imapd.conf.
type Options = &'static [(&'static str, &'static str)];

/// The partition that a mailbox is on, as Cyrus tells it.
const PARTITION: &str = "/shared/vendor/cmu/cyrus-imapd/partition";

/// Servers with these options, and the same servers the other way round.
struct Layout {
    there: Servers,
    back: Servers,
    _put_back: OptionsPutBack,
}

impl Layout {
    fn of(source: Options, target: Options) -> Layout {
        drop(OptionsPutBack);
        let there = Servers::fresh();
        for (host, options) in [(&there.source, source), (&there.target, target)] {
            host.configure(options).unwrap();
            // What is there already may be of another engine.
            host.empty().unwrap();
        }
        let back = Servers { source: there.target.clone(), target: there.source.clone() };
        Layout { there, back, _put_back: OptionsPutBack }
    }

    /// A rich user moves there, a small one back, and both stay as they were.
    fn move_both_ways(&self, known: &[&str]) {
        self.there.accounts(&["there", "friend", "back"]);
        let seeded = Seed::new(&self.there.source, "there").rich("friend", 40).unwrap();
        assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
        Seed::new(&self.back.source, "back").small().unwrap();
        moves(&self.there, "there", &[], known);
        moves(&self.back, "back", &[], known);
    }
}

/// Moves a user, and looks that he is the same.
#[track_caller]
fn moves(servers: &Servers, user: &str, options: &[&str], known: &[&str]) -> Pushed {
    let before = fingerprint(&servers.source, user, &[]);
    assert!(before.errors.is_empty(), "{:?}", before.errors);
    assert!(before.messages().count() > 0, "{user} has no messages");
    let pushed = servers.push(&format!("user/{user}"), options).expect(0);
    assert_same(&before, &fingerprint(&servers.target, user, &[]), known);
    accepted(&servers.target, &["-u", user]);
    pushed
}

/// The server's own Cyrus finds nothing to mend.
#[track_caller]
fn accepted(host: &Host, what: &[&str]) {
    let reconstruct = ["/usr/lib/cyrus/bin/reconstruct", "-n", "-q"];
    let arguments: Vec<&str> = reconstruct.iter().chain(what).copied().collect();
    let output = host.exec_as_cyrus(&arguments).unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    // A date that it would derive in another way is no difference that anybody sees.
    let complaints = said.lines().filter(|line| !line.contains("mismatch: sentdate"));
    assert_eq!(complaints.collect::<Vec<_>>(), Vec::<&str>::new());
}

/// A filesystem in memory, on a directory of a host.
struct Mounted(Host, &'static str);

impl Mounted {
    fn new(host: &Host, path: &'static str) -> Mounted {
        shell(host, &format!("mount -t tmpfs -o mode=700 none {path} && chown cyrus:mail {path}"));
        Mounted(host.clone(), path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = self.0.run(&["umount", "-l", self.1]);
    }
}

fn shell(host: &Host, script: &str) -> String {
    host.run(&["sh", "-c", script]).unwrap()
}

/// A message with this subject.
fn message(subject: &str) -> NewMessage {
    let text = format!("From: a@example.org\r\nSubject: {subject}\r\n\r\n{subject}\r\n");
    NewMessage { bytes: text.into_bytes(), ..NewMessage::default() }
}

/// Makes folders as the user, each with one message.
fn folders(host: &Host, user: &str, names: &[String]) {
    let mut imap = host.imap(user).unwrap();
    for name in names {
        let raw = mutf7(name);
        imap.command(words(&[b"CREATE", &quote(&raw)])).unwrap();
        imap.append(&raw, &[message("one")]).unwrap();
    }
    imap.logout();
}

#[test]
fn directories_are_hashed_otherwise() {
    let layout = Layout::of(
        &[("hashimapspool", "no"), ("fulldirhash", "yes")],
        &[("hashimapspool", "yes"), ("fulldirhash", "no")],
    );
    layout.move_both_ways(&[]);
    // A shared tree, too.
    let servers = &layout.there;
    seed::shared_tree(&servers.source, "team.sales", &["back", "friend"]).unwrap();
    let look = |host| {
        let take = Take { expunged: true, ..Take::default() };
        Fingerprint::take_tree(host, "team.sales", &[], &take).unwrap()
    };
    let before = look(&servers.source);
    assert!(before.admin.len() >= 4, "{:?}", before.admin.keys());
    servers.push("team.sales", &[]).expect(0);
    assert_same(&before, &look(&servers.target), &[]);
    accepted(&servers.target, &["-r", "team.sales"]);
}

#[test]
fn conversations_and_reverse_acls_are_on_on_one_side() {
    // Told by a server only if it keeps conversations.
    let known = [
        "/private/vendor/cmu/cyrus-imapd/usercounters",
        "/private/vendor/cmu/cyrus-imapd/usermodseq",
    ];
    let on: Options = &[("conversations", "yes"), ("reverseacls", "yes")];
    Layout::of(on, &[]).move_both_ways(&known);
}

#[test]
fn conversations_and_reverse_acls_are_on_on_both_sides() {
    let on: Options = &[("conversations", "yes"), ("reverseacls", "yes")];
    let layout = Layout::of(on, on);
    layout.move_both_ways(&[]);
    let check = "/usr/lib/cyrus/bin/ctl_conversationsdb -A there 2>&1";
    let said = layout.there.target.run_as_cyrus(&["sh", "-c", check]).unwrap();
    assert!(!said.contains("BROKEN"), "{said}");
}

#[test]
fn databases_are_of_other_engines() {
    Layout::of(
        &[("mboxlist_db", "flat"), ("quota_db", "twoskip"), ("subscription_db", "twoskip")],
        &[
            ("mboxlist_db", "skiplist"),
            ("quota_db", "skiplist"),
            ("annotation_db", "skiplist"),
            ("seenstate_db", "skiplist"),
        ],
    )
    .move_both_ways(&[]);
}

#[test]
fn expunge_and_delete_are_immediate_on_one_side() {
    Layout::of(&[("expunge_mode", "immediate"), ("delete_mode", "immediate")], &[])
        .move_both_ways(&[]);
}

#[test]
fn directories_are_named_by_name_on_one_side() {
    Layout::of(&[("mailbox_legacy_dirs", "yes")], &[]).move_both_ways(&[]);
}

#[test]
fn metadata_are_on_partitions_of_their_own() {
    let layout = Layout::of(
        &[
            ("metapartition_files", "header index cache expunge annotations"),
            ("metapartition-default", "/var/spool/cyrus/meta"),
            ("metapartition-p2", "/var/spool/cyrus/meta-p2"),
        ],
        &[],
    );
    let source = &layout.there.source;
    source.run_as_cyrus(&["mkdir", "-p", "/var/spool/cyrus/meta"]).unwrap();
    // On a filesystem of its own, as for what such partitions are made.
    let _mounted = Mounted::new(source, "/var/spool/cyrus/meta");
    source
        .run_as_cyrus(&["mkdir", "-p", "/var/spool/cyrus/meta", "/var/spool/cyrus/meta-p2"])
        .unwrap();
    layout.move_both_ways(&[]);
    let indexes = "find /var/spool/cyrus/meta -path '*.mbcopy*' -prune -o -name cyrus.index -print";
    assert!(shell(source, indexes).lines().count() >= 5, "no index is on the metapartition");
}

#[test]
fn names_are_told_otherwise() {
    let unix: Options = &[("altnamespace", "yes"), ("unixhierarchysep", "yes")];
    let layout = Layout::of(unix, &[]);
    let users = ["slash", "dots", "pal"];
    layout.there.accounts(&users);
    Seed::new(&layout.there.source, "slash").rich("pal", 40).unwrap();
    Seed::new(&layout.back.source, "dots").small().unwrap();
    for (servers, user, options) in [(&layout.there, "slash", unix), (&layout.back, "dots", &[])] {
        let before = fingerprint(&servers.source, user, &[]);
        servers.push(&format!("user.{user}"), &[]).expect(0);
        accepted(&servers.target, &["-u", user]);
        let there = fingerprint(&servers.target, user, &[]);
        assert_eq!(before.messages().count(), there.messages().count());
        // What is told in the same way is the same.
        let other: Options = if options.is_empty() { unix } else { &[] };
        servers.target.configure(options).unwrap();
        assert_same(&before, &fingerprint(&servers.target, user, &[]), &[]);
        servers.target.configure(other).unwrap();
    }
}

#[test]
fn users_of_two_domains_and_with_dots() {
    let both: Options = &[
        ("virtdomains", "userid"),
        ("defaultdomain", "home.example"),
        ("unixhierarchysep", "yes"),
        ("altnamespace", "yes"),
    ];
    let layout = Layout::of(both, both);
    let servers = &layout.there;
    let users = ["joe.smith@a.example", "joe.smith@b.example", "joe.smith"];
    servers.accounts(&users);
    for (n, user) in users.iter().enumerate() {
        Seed::new(&servers.source, user).seed(n as u64).small().unwrap();
    }
    let take = |host, user: &str| {
        // The admin of the lab is one of the default domain.
        let take = Take { admin: false, expunged: false, sieve: false, ..Take::default() };
        Fingerprint::take(host, user, &take).unwrap()
    };
    let before = users.map(|user| take(&servers.source, user));
    assert_ne!(before[0].own, before[1].own);
    for (user, before) in users.iter().zip(&before) {
        let (local, domain) = user.split_once('@').unwrap_or((user, ""));
        let at = if domain.is_empty() { String::new() } else { format!("@{domain}") };
        servers.push(&format!("user/{local}{at}"), &[]).expect(0);
        assert_same(before, &take(&servers.target, user), &[]);
        accepted(&servers.target, &["-u", user]);
        let script = servers.target.sieve(user).unwrap().list().unwrap();
        assert_eq!(script.len(), 1, "{user}: {script:?}");
    }
}

#[test]
fn partitions_are_mapped() {
    let layout = Layout::of(
        &[("partition-old", "/var/spool/cyrus/old")],
        &[("partition-ssd", "/var/spool/cyrus/ssd"), ("partition-hdd", "/var/spool/cyrus/hdd")],
    );
    let servers = &layout.there;
    servers.accounts(&["parts"]);
    for (host, names) in [(&servers.source, "old"), (&servers.target, "ssd hdd")] {
        for name in names.split(' ') {
            host.run_as_cyrus(&["mkdir", "-p", &format!("/var/spool/cyrus/{name}")]).unwrap();
        }
    }
    Seed::new(&servers.source, "parts").small().unwrap();
    let mut admin = servers.source.admin().unwrap();
    for (folder, partition) in [("user.parts.a", "old"), ("user.parts.Sent", "p2")] {
        admin.command(format!("RENAME {folder} {folder} {partition}")).unwrap();
    }
    admin.logout();

    servers
        .push("user.parts", &["--partition-map", "old=none"])
        .expect(4)
        .says(&["this server has no partition \"none\"", "default, hdd, p2, ssd"]);
    let map = ["--partition-map", "old=ssd", "--partition-map", "default=hdd"];
    moves(servers, "parts", &map, &[PARTITION]);
    let on = |folder: &str| {
        let mbpath = "/usr/lib/cyrus/bin/mbpath";
        servers.target.run_as_cyrus(&[mbpath, folder]).unwrap()
    };
    for (folder, partition) in
        [("user.parts", "hdd"), ("user.parts.a", "ssd"), ("user.parts.a.b", "ssd")]
    {
        let path = on(folder);
        assert!(path.starts_with(&format!("/var/spool/cyrus/{partition}/")), "{folder}: {path}");
    }
    assert!(on("user.parts.Sent").starts_with("/var/spool/cyrus/p2/"));

    // Back to where he came from, by the same map.
    let there = fingerprint(&servers.target, "parts", &[]);
    servers.mbcopy(&["reverse", "user.parts"]).expect(0);
    assert_same(&there, &fingerprint(&servers.source, "parts", &[]), &[PARTITION]);
    let path = servers.source.run_as_cyrus(&["/usr/lib/cyrus/bin/mbpath", "user.parts.a"]).unwrap();
    assert!(path.starts_with("/var/spool/cyrus/old/"), "{path}");
}

#[test]
fn nobody_gets_a_new_inbox_where_autocreate_is_on() {
    let auto: Options = &[
        ("autocreate_quota", "0"),
        ("autocreate_inbox_folders", "Sent|Trash"),
        ("autocreate_post", "yes"),
    ];
    let layout = Layout::of(&[], auto);
    let servers = &layout.there;
    servers.accounts(&["early", "late"]);
    for user in ["early", "late"] {
        Seed::new(&servers.source, user).small().unwrap();
    }
    moves(servers, "late", &[], &[]);

    // Who logs in at the wrong server too early gets a mailbox, and stays where he is.
    servers.push("user.early", &["--copy-only"]).expect(0);
    let before = fingerprint(&servers.source, "early", &[]);
    servers.target.imap("early").unwrap().logout();
    servers
        .mbcopy(&["cutover", "user.early"])
        .expect(4)
        .says(&["user.early exists on this server", "bw1 serves the user now"]);
    assert_same(&before, &fingerprint(&servers.source, "early", &[]), &[]);
}

#[test]
fn quota_roots_at_and_below_and_above_the_user() {
    let servers = Servers::fresh();
    servers.accounts(&["roots", "under"]);
    Seed::new(&servers.source, "roots").small().unwrap();
    let mut admin = servers.source.admin().unwrap();
    admin.command("SETQUOTA user.roots.a (STORAGE 50000 MESSAGE 1000)").unwrap();
    admin.logout();
    moves(&servers, "roots", &[], &[]);
    let mut admin = servers.target.admin().unwrap();
    let reply = admin.command("GETQUOTA user.roots.a").unwrap();
    let quota = reply.of("QUOTA").next().unwrap()[2].to_string();
    assert!(quota.contains("50000") && quota.contains("1000"), "{quota}");
    counted(&servers.target, "roots");

    // A tree that is under the root of a larger one.
    let mut admin = servers.source.admin().unwrap();
    for command in ["CREATE team", "CREATE team.sales", "SETQUOTA team (STORAGE 900000)"] {
        admin.command(command).unwrap();
    }
    admin.command("SETACL team.sales under lrswipkxte").unwrap();
    admin.logout();
    folders(&servers.source, "under", &["team.sales.a".into(), "team.sales.up^down".into()]);
    let look = |host| {
        let take = Take::default();
        Fingerprint::take_tree(host, "team.sales", &["under"], &take).unwrap()
    };
    let before = look(&servers.source);
    servers.push("team.sales", &[]).expect(0);
    let before = Fingerprint { errors: Vec::new(), ..before };
    let after = look(&servers.target);
    let roots = after.errors.iter().filter(|error| error.contains("GETQUOTAROOT"));
    assert_eq!(roots.count(), 0, "{:?}", after.errors);
    assert_same(&before, &after, &["quota", "quotaroot"]);
    accepted(&servers.target, &["-r", "team.sales"]);
}

/// The server's own Cyrus counts what its quota roots say.
#[track_caller]
fn counted(host: &Host, user: &str) {
    let said = host.run_as_cyrus(&["/usr/lib/cyrus/bin/quota", "-f", "-q", "-u", user]).unwrap();
    assert!(!said.contains("usage was"), "{said}");
}

#[test]
fn unusual_names_and_empty_mailboxes() {
    let both: Options = &[("unixhierarchysep", "yes"), ("altnamespace", "yes")];
    let layout = Layout::of(both, both);
    let servers = &layout.there;
    let users = ["first.last", "nothing"];
    servers.accounts(&users);
    let long = "x".repeat(200);
    let deep: String = (0..40).map(|n| format!("level{n}")).collect::<Vec<_>>().join("/");
    let names: Vec<String> = [
        "a.b.c",
        "with space",
        "Entwürfe",
        "日本語/メール",
        "a&b",
        "~home",
        "emoji 📬",
        "-dash",
        "+plus",
    ]
    .iter()
    .map(|name| (*name).to_owned())
    .chain([long, deep])
    .collect();
    for user in ["first.last", "nothing"] {
        let mut admin = servers.source.admin().unwrap();
        admin.command(format!("CREATE user/{user}")).unwrap();
        admin.logout();
    }
    folders(&servers.source, "first.last", &names);
    moves(servers, "first.last", &[], &[]);

    let before = fingerprint(&servers.source, "nothing", &[]);
    servers.push("user/nothing", &[]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "nothing", &[]), &[]);
    accepted(&servers.target, &["-u", "nothing"]);
}

#[test]
#[ignore = "long: for `make matrix`"]
fn a_user_with_two_thousand_folders() {
    let servers = Servers::fresh();
    servers.accounts(&["many"]);
    Seed::new(&servers.source, "many").small().unwrap();
    let names: Vec<String> = (0..2000).map(|n| format!("INBOX.f{}.n{n}", n % 20)).collect();
    folders(&servers.source, "many", &names);
    // What the admin sees of each takes a process.
    let take = Take { admin: false, expunged: false, ..Take::default() };
    let look = |host| Fingerprint::take(host, "many", &take).unwrap();
    let before = look(&servers.source);
    let pushed = servers.push("user.many", &["--json"]).expect(0);
    assert_same(&before, &look(&servers.target), &[]);
    accepted(&servers.target, &["-u", "many"]);
    let report = pushed.report().unwrap();
    println!("2,000 folders: frozen for {} ms", report["freeze_ms"]);
}

#[test]
#[ignore = "long: for `make matrix`"]
fn a_message_of_two_hundred_megabytes() {
    let servers = Servers::fresh();
    servers.accounts(&["large"]);
    Seed::new(&servers.source, "large").small().unwrap();
    let mut large = message("large");
    let line = [&[b'x'; 76][..], b"\r\n"].concat();
    large.bytes.extend(line.repeat((200 << 20) / line.len()));
    servers.source.imap("large").unwrap().append("INBOX", &[large]).unwrap();
    moves(&servers, "large", &[], &[]);
}
