//! Old servers that were set up otherwise than those whose spools we have.

use super::written::{
    DELETED, Disk, EXPUNGED, Entries, FLAGGED, Folder, Message, SEEN, SHAREDSEEN, annotation, flat,
    message, seen, skiplist,
};
use super::{DISK, PutBack, STAT};
use crate::support::Servers;
use lab::fingerprint::{Fingerprint, Take};

/// The hash of `fulldirhash`, of what precedes the first dot.
fn hash(name: &str) -> char {
    let start = name.bytes().take_while(|c| *c != b'.');
    let sum = start.fold(0_u32, |n, c| ((n << 3) ^ (n >> 5)) ^ u32::from(c));
    char::from(b'A' + (sum % 23) as u8)
}

fn entries<const N: usize>(list: [(&str, &[u8]); N]) -> Entries {
    list.into_iter().map(|(key, value)| (key.as_bytes().to_vec(), value.to_vec())).collect()
}

/// Moves these off a disk that must not be touched meanwhile.
fn push_off(servers: &Servers, disk: &Disk, options: &[&str], tops: &[&str]) {
    disk.install(&servers.source, "/old-disk/old");
    let before = servers.source.run(&["sh", "-c", STAT]).unwrap();
    for top in tops {
        servers.push(top, options).expect(0);
    }
    assert_eq!(servers.source.run(&["sh", "-c", STAT]).unwrap(), before);
}

/// A target, empty and with these options and accounts.
fn target(name: &str, options: &[(&str, &str)], users: &[&str]) -> (Servers, PutBack) {
    let servers = Servers::between("bw1", name);
    let put_back = PutBack::of(&servers);
    servers.target.configure(options).unwrap();
    servers.target.empty().unwrap();
    servers.target.add_users(users).unwrap();
    (servers, put_back)
}

const DOMAINS: &str = "\
configdirectory: /old/conf
partition-default: /old/spool
partition-fast: /old/fast
defaultpartition: default
servername: old
admins: cyrus
hashimapspool: yes
fulldirhash: yes
virtdomains: yes
defaultdomain: home.org
mboxlist_db: flat
seenstate_db: flat
subscription_db: flat
annotation_db: skiplist
";

/// 2.2 with domains, every directory hashed in full, two partitions, text databases.
#[test]
fn an_old_disk_with_domains_and_partitions() {
    with_domains_and_partitions("bw2");
}

/// The same onto any host.
pub fn with_domains_and_partitions(onto: &str) {
    let options = [("virtdomains", "userid"), ("defaultdomain", "home.org")];
    let users = ["ann@one.org", "bob@one.org", "joe"];
    let (servers, _put_back) = target(onto, &options, &users);
    let domain = format!("domain/{}/one.org", hash("one.org"));
    let place = |root: &str, user: &str| format!("{root}/{domain}/{}/user/{user}", hash(user));
    let mut disk = Disk::new(DOMAINS);
    let inbox = Folder {
        partition: "fast",
        id: "0000000100000001",
        acl: "ann@one.org lrswipcda",
        quota_root: "one.org!user.ann",
        ..Folder::new("one.org!user.ann", &place("fast", "ann"), 6)
    };
    disk.folder(&inbox, &[("ann@one.org", "INBOX", &[2, 3])]);
    let shared = Folder {
        id: "0000000200000002",
        acl: "ann@one.org lrswipcda bob@one.org lrs",
        quota_root: "one.org!user.ann",
        uidvalidity: 77,
        ..Folder::new("one.org!user.ann.Shared", &format!("{}/Shared", place("spool", "ann")), 6)
    };
    let views: &[(&str, &str, &[u32])] =
        &[("ann@one.org", "INBOX.Shared", &[11]), ("bob@one.org", "user.ann.Shared", &[2, 7])];
    disk.folder(&shared, views);
    let bob = Folder {
        id: "0000000300000003",
        acl: "bob@one.org lrswipcda",
        ..Folder::new("one.org!user.bob", &place("spool", "bob"), 6)
    };
    disk.folder(&bob, &[("bob@one.org", "INBOX", &[])]);
    let staff = Folder {
        id: "0000000400000004",
        acl: "anyone lrs",
        ..Folder::new("one.org!staff", &format!("spool/{domain}/{}/staff", hash("staff")), 6)
    };
    let views: &[(&str, &str, &[u32])] =
        &[("ann@one.org", "staff", &[3]), ("bob@one.org", "staff", &[7, 11])];
    disk.folder(&staff, views);
    let joe = Folder {
        id: "0000000500000005",
        acl: "joe lrswipcda",
        quota_root: "user.joe",
        ..Folder::new("user.joe", &format!("spool/{}/user/joe", hash("joe")), 6)
    };
    disk.folder(&joe, &[("joe", "INBOX", &[2, 3, 7, 11])]);
    let file = |user: &str, kind| format!("conf/{domain}/user/{}/{user}.{kind}", hash(user));
    let of_ann = entries([
        ("0000000100000001", &seen(20, "1:3")),
        ("0000000200000002", &seen(20, "11")),
        ("0000000400000004", &seen(20, "3,5")),
    ]);
    disk.file(&file("ann", "seen"), flat(&of_ann));
    let of_bob =
        entries([("0000000200000002", &seen(20, "2,7")), ("0000000400000004", &seen(20, "7:20"))]);
    disk.file(&file("bob", "seen"), flat(&of_bob));
    let of_joe = entries([("0000000500000005", &seen(20, "1:20"))]);
    disk.file(&format!("conf/user/{}/joe.seen", hash("joe")), flat(&of_joe));
    let subscribed = entries([("one.org!user.ann", b""), ("one.org!user.ann.Shared", b"")]);
    disk.file(&file("ann", "sub"), flat(&subscribed));
    let root = |user: &str| format!("quota/{}/user.{user}", hash(user));
    disk.file(&format!("conf/{domain}/{}", root("ann")), b"4711\n1000\n".to_vec());
    disk.file(&format!("conf/{}", root("joe")), b"4711\n-1\n".to_vec());
    let (key, value) = annotation("one.org!user.ann.Shared", "/comment", "ann@one.org", "mine");
    let (shared_key, shared_value) = annotation("one.org!user.ann.Shared", "/comment", "", "ours");
    let (server_key, server_value) = annotation("", "/comment", "ann@one.org", "of all");
    let annotations = [(key, value), (shared_key, shared_value), (server_key, server_value)].into();
    disk.file("conf/annotations.db", skiplist(&annotations));
    disk.file("conf/mailboxes.db", flat(&disk.mailboxes));

    let tops = ["user.ann@one.org", "user.bob@one.org", "staff@one.org", "user.joe"];
    // Where its imapd.conf says that it is.
    servers.source.run(&["ln", "-sfn", "/old-disk/old", "/old"]).unwrap();
    push_off(&servers, &disk, &["--source-conf", "/old/imapd.conf"], &tops);
    let now = disk.compare(&servers.target);
    assert_eq!(now["ann@one.org"].server_metadata["/private/comment"], "of all");
    let ann = &now["ann@one.org"].own;
    let subscribed: Vec<_> = ann.lsub.keys().map(String::as_str).collect();
    assert_eq!(subscribed, ["INBOX", "INBOX.Shared"]);
    let shared = &ann.mailboxes["INBOX.Shared"];
    assert_eq!(shared.metadata["/private/comment"], "mine");
    assert_eq!(shared.metadata["/shared/comment"], "ours");
    let limits: Vec<_> = shared.quota.values().map(String::as_str).collect();
    assert!(matches!(limits[..], [one] if one.contains("STORAGE 0 1000")), "{limits:?}");
    assert!(
        !now["bob@one.org"].own.mailboxes["user.ann.Shared"]
            .metadata
            .contains_key("/private/comment")
    );
}

const UPGRADED: &str = "\
configdirectory: /old/conf
partition-default: /old/spool
metapartition-default: /old/meta
metapartition_files: header index cache expunge
defaultpartition: default
servername: old
admins: cyrus
unixhierarchysep: yes
hashimapspool: no
mboxlist_db: skiplist
quota_db: skiplist
quota_db_path: {configdirectory}/quotas.db
subscription_db: skiplist
";

/// 2.4 that was upgraded from all before it, and has not opened every folder since: each
/// is as another version left it.
#[test]
fn an_old_disk_in_the_midst_of_upgrades() {
    in_the_midst_of_upgrades("bw2");
}

/// The same onto any host.
pub fn in_the_midst_of_upgrades(onto: &str) {
    let options = [("unixhierarchysep", "yes")];
    let (servers, _put_back) = target(onto, &options, &["jane.doe", "max"]);
    let mut disk = Disk::new(UPGRADED);
    let of_jane = |name: &'static str, id, minor| {
        let path = name.replace('.', "/");
        Folder {
            metadata: Some(format!("meta/{path}")),
            id,
            acl: "jane.doe lrswipkxtecda max lrs",
            quota_root: "user.jane^doe",
            ..Folder::new(name, &format!("spool/{path}"), minor)
        }
    };
    let mut all_seen = Entries::new();
    let mut of_max = Entries::new();
    let mut read = |id: &str, uids: &str| {
        all_seen.insert(id.as_bytes().to_vec(), seen(12, uids));
    };

    // The index has it by now; what the database says is of before.
    let mut inbox = of_jane("user.jane^doe", "id-inbox", 12);
    inbox.messages[0].flags |= SEEN;
    inbox.messages.insert(2, Message { date: 5, ..message(5, EXPUNGED | DELETED, &[]) });
    disk.folder(&inbox, &[("jane.doe", "INBOX", &[2]), ("max", "user/jane.doe", &[])]);
    read("id-inbox", "3,7,11");

    // Expunged in another order than they came, and one twice.
    let mut ten = of_jane("user.jane^doe.Ten", "id-ten", 10);
    ten.expunged = vec![
        message(9, DELETED, &[]),
        message(4, DELETED | FLAGGED, &[0]),
        message(9, DELETED, &[]),
    ];
    let views: &[(&str, &str, &[u32])] =
        &[("jane.doe", "INBOX/Ten", &[2, 11]), ("max", "user/jane.doe/Ten", &[3])];
    disk.folder(&ten, views);
    read("id-ten", "1:2,9:20");
    of_max.insert(b"id-ten".to_vec(), seen(12, "3:5"));

    // One of them has no file any more.
    let mut seven = of_jane("user.jane^doe.Se^ven", "id-seven", 7);
    seven.expunged = vec![message(5, DELETED, &[]), message(20, DELETED, &[])];
    let views: &[(&str, &str, &[u32])] =
        &[("jane.doe", "INBOX/Se.ven", &[7]), ("max", "user/jane.doe/Se.ven", &[])];
    disk.folder(&seven, views);
    disk.remove("spool/user/jane^doe/Se^ven/20.");
    read("id-seven", "7");

    let plain: [(&'static str, &'static str, &'static str, u32); 4] = [
        ("user.jane^doe.Nine", "id-nine", "Nine", 9),
        ("user.jane^doe.Eight", "id-eight", "Eight", 8),
        ("user.jane^doe.Six", "id-six", "Six", 6),
        ("user.jane^doe.Thirteen", "id-thirteen", "Thirteen", 13),
    ];
    for (name, id, shown, minor) in plain {
        let folder = of_jane(name, id, minor);
        let (own, others) = (format!("INBOX/{shown}"), format!("user/jane.doe/{shown}"));
        let by_index: &[u32] = if minor < 12 { &[3] } else { &[] };
        disk.folder(&folder, &[("jane.doe", &own, by_index), ("max", &others, &[])]);
        read(id, "3");
    }

    // What anybody has read, all have read.
    let shared = Folder { options: SHAREDSEEN, ..of_jane("user.jane^doe.Team", "id-team", 10) };
    let views: &[(&str, &str, &[u32])] =
        &[("jane.doe", "INBOX/Team", &[2, 7]), ("max", "user/jane.doe/Team", &[2, 7])];
    disk.folder(&shared, views);
    read("id-team", "3");
    let anyone = entries([("id-team", &seen(12, "2,7"))]);
    disk.file("conf/user/a/anyone.seen", skiplist(&anyone));

    // A message whose date is not known; the INBOX's id again.
    let mut odd = of_jane("user.jane^doe.Odd", "id-inbox", 10);
    odd.messages[2].date = 0;
    let views: &[(&str, &str, &[u32])] =
        &[("jane.doe", "INBOX/Odd", &[3, 7, 11]), ("max", "user/jane.doe/Odd", &[])];
    disk.folder(&odd, views);

    let deleted = of_jane("DELETED.user.jane^doe.Gone.4B3C2D1E", "id-gone", 12);
    disk.folder(&deleted, &[]);
    let lists = Folder {
        metadata: Some("meta/lists/dev^ops".into()),
        id: "id-lists",
        acl: "anyone lrs",
        ..Folder::new("lists.dev^ops", "spool/lists/dev^ops", 10)
    };
    let views: &[(&str, &str, &[u32])] =
        &[("jane.doe", "lists/dev.ops", &[2]), ("max", "lists/dev.ops", &[2, 3, 11])];
    disk.folder(&lists, views);
    read("id-lists", "2");
    of_max.insert(b"id-lists".to_vec(), seen(12, "1:3,11"));
    let own =
        Folder { quota_root: "", acl: "max lrswipkxtecda", ..of_jane("user.max", "id-max", 10) };
    disk.folder(&own, &[("max", "INBOX", &[])]);

    disk.file("conf/user/j/jane^doe.seen", skiplist(&all_seen));
    disk.file("conf/user/m/max.seen", skiplist(&of_max));
    let subscribed = entries([
        ("user.jane^doe.Se^ven", b""),
        ("user.jane^doe.Ten", b""),
        ("lists.dev^ops", b""),
    ]);
    disk.file("conf/user/j/jane^doe.sub", skiplist(&subscribed));
    disk.file("conf/quotas.db", skiplist(&entries([("user.jane^doe", b"123 5000 77")])));
    let (key, value) = annotation("user.jane^doe.Ten", "/comment", "", "of many messages");
    disk.file("conf/annotations.db", skiplist(&[(key, value)].into()));
    disk.file("conf/mailboxes.db", skiplist(&disk.mailboxes));

    push_off(&servers, &disk, &DISK, &["user/jane.doe", "user/max", "lists/dev.ops"]);
    let now = disk.compare(&servers.target);
    let jane = &now["jane.doe"].own;
    let subscribed: Vec<_> = jane.lsub.keys().map(String::as_str).collect();
    assert_eq!(subscribed, ["INBOX/Se.ven", "INBOX/Ten", "lists/dev.ops"]);
    let ten = &jane.mailboxes["INBOX/Ten"];
    assert_eq!(ten.metadata["/shared/comment"], "of many messages");
    assert!(ten.quota.values().any(|usage| usage.contains(" 5000")), "{:?}", ten.quota);

    // What was expunged can be had back, and comes by itself never.
    let take = Take { bodies: false, ..Take::default() };
    let kept = Fingerprint::take(&servers.target, "jane.doe", &take).unwrap().delayed_expunged;
    let kept = kept.iter().map(|(name, uids)| (name.as_str(), uids.keys().copied().collect()));
    let kept: Vec<(&str, Vec<u32>)> = kept.collect();
    let wanted = [
        ("user/jane.doe", vec![5]),
        ("user/jane.doe/Se.ven", vec![5]),
        ("user/jane.doe/Ten", vec![4, 9]),
    ];
    assert_eq!(kept, wanted);
    super::expire_and_reconstruct(&servers.target, "jane.doe");
    disk.compare(&servers.target);
}

/// 2.2 that was upgraded from 1.6, 2.0 and 2.1, and whose folders nobody has opened since:
/// it converts each when it is opened.
#[test]
fn an_old_disk_with_folders_from_before_2_2() {
    with_folders_from_before("bw2");
}

/// The same onto any host.
pub fn with_folders_from_before(onto: &str) {
    let (servers, _put_back) = target(onto, &[], &["joe", "sue"]);
    let mut disk = Disk::new(PLAIN);
    let mut read = Entries::new();
    let folders: [(&'static str, &'static str, &'static str, u32, &[u32]); 6] = [
        ("user.joe", "INBOX", "id-six", 6, &[2, 11]),
        ("user.joe.Five", "INBOX.Five", "id-five", 5, &[3]),
        ("user.joe.Four", "INBOX.Four", "id-four", 4, &[7, 11]),
        ("user.joe.Three", "INBOX.Three", "id-three", 3, &[2]),
        // Before 2.0 everybody's was in a file of the folder.
        ("user.joe.Two", "INBOX.Two", "", 2, &[2, 3]),
        ("user.joe.Empty", "INBOX.Empty", "", 2, &[]),
    ];
    for (name, shown, id, minor, seen_by) in folders {
        let directory = format!("spool/{}", name.replace('.', "/"));
        let mut folder = Folder {
            id,
            acl: "joe lrswipcda sue lrs",
            quota_root: "user.joe",
            ..Folder::new(name, &directory, minor)
        };
        folder.messages.retain(|_| shown != "INBOX.Empty");
        disk.folder(&folder, &[("joe", shown, seen_by), ("sue", name, &[])]);
        if !id.is_empty() {
            let uids: Vec<String> = seen_by.iter().map(u32::to_string).collect();
            read.insert(id.as_bytes().to_vec(), seen(12, &uids.join(",")));
        }
    }
    let padding = " ".repeat(30);
    let old = format!("jo\t9 20 9 7,11{padding}\njoe\t9 20 9 2:3,5{padding}\n");
    disk.file("spool/user/joe/Two/cyrus.seen", old.into_bytes());
    disk.file("conf/user/j/joe.seen", skiplist(&read));
    disk.file("conf/quota/j/user.joe", b"4711\n1000\n".to_vec());
    let own = Folder {
        id: "id-sue",
        acl: "sue lrswipcda",
        ..Folder::new("user.sue", "spool/user/sue", 4)
    };
    disk.folder(&own, &[("sue", "INBOX", &[])]);
    disk.file("conf/mailboxes.db", skiplist(&disk.mailboxes));

    push_off(&servers, &disk, &DISK, &["user.joe", "user.sue"]);
    let now = disk.compare(&servers.target);
    let two = &now["joe"].own.mailboxes["INBOX.Two"];
    assert!(two.quota.values().any(|usage| usage.contains(" 1000")), "{:?}", two.quota);
    super::expire_and_reconstruct(&servers.target, "joe");
    disk.compare(&servers.target);
}

const PLAIN: &str = "\
configdirectory: /old/conf
partition-default: /old/spool
defaultpartition: default
servername: old
sievedir: /old/sieve
";

/// A disk of one user of 2.3.
fn of_joe() -> (Disk, Folder) {
    let mut disk = Disk::new(PLAIN);
    let inbox = Folder {
        id: "0000000500000005",
        acl: "joe lrswipcda",
        ..Folder::new("user.joe", "spool/user/joe", 10)
    };
    disk.folder(&inbox, &[("joe", "INBOX", &[])]);
    disk.file("conf/mailboxes.db", skiplist(&disk.mailboxes));
    (disk, inbox)
}

/// Whatever stands against a move is named, and nobody is said to be served by a disk.
#[test]
fn what_is_wrong_with_an_old_disk_is_named() {
    const NOBODY: &str = "nobody serves the user now";
    let servers = Servers::fresh();
    servers.target.add_users(&["joe"]).unwrap();
    let (disk, inbox) = of_joe();
    let refused = |disk: &Disk, says: &[&str]| {
        disk.install(&servers.source, "/old-disk/old");
        servers.push("user.joe", &DISK).expect(4).says(says).says(&[NOBODY])
    };
    disk.install(&servers.source, "/old-disk/old");
    servers.push("user.nobody", &DISK).expect(4).says(&["user.nobody does not exist", NOBODY]);
    let missing = ["--source-root", "/nowhere"];
    servers.push("user.joe", &missing).expect(1).says(&["/nowhere/etc/imapd.conf", NOBODY]);

    // A file of another format, version or place.
    let mut bad = of_joe().0;
    let mut berkeley = vec![0; 512];
    berkeley[12..16].copy_from_slice(&0x0005_3162_u32.to_le_bytes());
    bad.file("conf/mailboxes.db", berkeley);
    refused(&bad, &["/old-disk/old/conf/mailboxes.db", "Berkeley", "cvt_cyrusdb"]);
    let mut bad = of_joe().0;
    bad.remove("spool/user/joe/cyrus.header");
    refused(&bad, &["spool/user/joe/cyrus.header", "mend it in a copy"]);
    let mut bad = of_joe().0;
    let mut index = vec![0; 96];
    index[11] = 11;
    bad.file("spool/user/joe/cyrus.index", index);
    refused(&bad, &["spool/user/joe/cyrus.index", "offset"]);
    let mut bad = of_joe().0;
    bad.file("imapd.conf", PLAIN.replace("partition-default", "partition-other").into_bytes());
    refused(&bad, &["partition-default is not set"]);

    // A crash has left one message empty; its INBOX moves without it.
    let mut disk = Disk::new(PLAIN);
    let mut torn = inbox.clone();
    torn.messages[1].bytes.clear();
    disk.folder(&torn, &[]);
    disk.file("conf/mailboxes.db", skiplist(&disk.mailboxes));
    refused(&disk, &["has not a single byte", "--bad-messages=skip"]);
    let skip: Vec<&str> = DISK.into_iter().chain(["--bad-messages=skip"]).collect();
    servers.push("user.joe", &skip).expect(3);
    let now = Fingerprint::take(&servers.target, "joe", &Take::default()).unwrap();
    let left: Vec<u32> = now.own.mailboxes["INBOX"].messages.keys().copied().collect();
    assert_eq!(left, [2, 7, 11]);

    // What is known of it is known with its options only.
    let status: Vec<&str> = ["status"].into_iter().chain(DISK).collect();
    servers.mbcopy(&status).expect(0).says(&["user.joe to bw2: done"]);
    let hint = ["'--source-conf' '/old-disk/old/imapd.conf' '--source-root' '/old-disk'"];
    servers.mbcopy(&["status"]).expect(0).says(&hint);
    servers.mbcopy(&["resume", "user.joe"]).expect(2).says(&hint);
}
