//! The disk of an old server on which nothing runs ends as whole users on a new one.

mod captured;
mod kinds;
mod written;

use crate::support::{Servers, assert_same, fingerprint};
use captured::{Captured, Counts, NOTHING};
use lab::fingerprint::{Fingerprint, Take};
use lab::host::Host;
use lab::seed::Seed;
use std::collections::BTreeMap;
use std::path::Path;

/// Archives of real old servers, by the version that wrote them, and what is compared.
const SPOOLS: [(&str, Counts); 7] = [
    (
        "cyrus-2.2.13",
        Counts {
            messages: 232,
            seen: 115,
            views: 16,
            seen_elsewhere: 3,
            acls: 14,
            quotas: 15,
            subscriptions: 5,
            ..NOTHING
        },
    ),
    (
        "cyrus-2.3.1-rich",
        Counts {
            views: 20,
            messages: 442,
            seen: 232,
            seen_elsewhere: 21,
            acls: 16,
            quotas: 18,
            subscriptions: 12,
            annotations: 4,
            scripts: 3,
            ..NOTHING
        },
    ),
    (
        "cyrus-2.3.16",
        Counts {
            messages: 223,
            seen: 132,
            views: 16,
            seen_elsewhere: 3,
            acls: 14,
            quotas: 15,
            subscriptions: 5,
            ..NOTHING
        },
    ),
    (
        "cyrus-2.4.20",
        Counts {
            messages: 239,
            seen: 123,
            views: 16,
            seen_elsewhere: 3,
            acls: 14,
            quotas: 15,
            subscriptions: 5,
            ..NOTHING
        },
    ),
    (
        "cyrus-2.5.17-rich",
        Counts {
            messages: 471,
            seen: 231,
            seen_elsewhere: 23,
            annotations: 9,
            message_annotations: 8,
            special_uses: 2,
            views: 26,
            modseqs: 471,
            acls: 20,
            quotas: 31,
            subscriptions: 14,
            scripts: 4,
        },
    ),
    (
        "cyrus-3.0.18-rich",
        Counts {
            messages: 467,
            seen: 225,
            seen_elsewhere: 24,
            annotations: 10,
            message_annotations: 8,
            special_uses: 3,
            views: 26,
            modseqs: 467,
            acls: 20,
            quotas: 31,
            subscriptions: 14,
            scripts: 4,
        },
    ),
    (
        "cyrus-3.4.9-rich",
        Counts {
            messages: 467,
            seen: 217,
            seen_elsewhere: 24,
            annotations: 10,
            message_annotations: 32,
            special_uses: 3,
            views: 26,
            modseqs: 467,
            acls: 20,
            quotas: 31,
            subscriptions: 14,
            scripts: 4,
        },
    ),
];

/// Inode, size, times and mode of every file of the disk.
const STAT: &str = "find /old-disk -printf '%p %i %s %T@ %C@ %m\\n' | sort";

/// Where the disk is on the source.
const DISK: [&str; 4] = ["--source-conf", "/old-disk/old/imapd.conf", "--source-root", "/old-disk"];

/// Puts a target's options back when a test ends.
struct PutBack(Host);

impl PutBack {
    fn of(servers: &Servers) -> PutBack {
        PutBack(servers.target.clone())
    }
}

impl Drop for PutBack {
    fn drop(&mut self) {
        // What was moved does not fit the options that come back.
        let _ = self.0.empty();
        let _ = self.0.reset_options();
    }
}

/// Unpacks a disk on the source, below `/old-disk`.
fn unpack(host: &Host, archive: &Path) {
    host.install(archive, "/root/old.tar.gz").unwrap();
    let unpack = "rm -rf /old-disk; mkdir -p /old-disk/old; \
                  tar xzf /root/old.tar.gz -C /old-disk/old";
    host.run(&["sh", "-c", unpack]).unwrap();
}

/// Moves everybody off a disk, and looks that it is not touched; what was said.
fn push_all(servers: &Servers, disk: &Captured) -> String {
    let mut said = String::new();
    let before = servers.source.run(&["sh", "-c", STAT]).unwrap();
    for top in disk.tops() {
        let pushed = servers.push(&top, &DISK).expect(0).says(&["nothing is written to it"]);
        said.push_str(&pushed.stderr);
    }
    assert_eq!(servers.source.run(&["sh", "-c", STAT]).unwrap(), before);
    said
}

/// Nothing that was expunged comes back, whatever Cyrus's own programs do.
fn stays_expunged(host: &Host, disk: &Captured, user: &str) {
    expire_and_reconstruct(host, user);
    let take = Take { all: true, bodies: false, admin: false, expunged: false, ..Take::default() };
    let now = Fingerprint::take(host, user, &take).unwrap().own.mailboxes;
    let now: BTreeMap<_, _> = now
        .into_iter()
        .filter(|(name, mailbox)| !mailbox.status.is_empty() && !name.ends_with("#sieve"))
        .map(|(name, mailbox)| (name, mailbox.messages.into_keys().collect()))
        .collect();
    assert_eq!(now, disk.uids(user));
}

/// Has the host's Cyrus look at every file, remove what is expunged, and look again.
fn expire_and_reconstruct(host: &Host, user: &str) {
    let programs: [&[&str]; 3] = [
        &["reconstruct", "-G", "-u", user],
        &["cyr_expire", "-a", "-E", "1", "-X", "0", "-D", "0"],
        &["reconstruct", "-u", user],
    ];
    for program in programs {
        let path = format!("/usr/lib/cyrus/bin/{}", program[0]);
        let command: Vec<&str> = [&*path].iter().chain(&program[1..]).copied().collect();
        host.run_as_cyrus(&command).unwrap();
    }
}

fn all_onto(target: &str) {
    const OLD_FLAGS: &str = "\"imapflags\"";
    let servers = Servers::between("bw1", target);
    let _put_back = PutBack::of(&servers);
    for (name, mut wanted) in SPOOLS {
        let disk = Captured::open(name);
        servers.target.configure(&disk.naming()).unwrap();
        servers.target.empty().unwrap();
        servers.target.add_users(&disk.user_names()).unwrap();
        unpack(&servers.source, &disk.archive());
        let said = push_all(&servers, &disk);
        // Cyrus 3.8 and later do not know it.
        let loses = target != "bw2" && name == "cyrus-2.3.1-rich";
        wanted.scripts -= usize::from(loses);
        assert_eq!(said.contains("script main requires imapflags"), loses, "{name}: {said}");
        let knows = |script: &str| target == "bw2" || !script.contains(OLD_FLAGS);
        assert_eq!(disk.compare(&servers.target, knows), wanted, "{name}");
        stays_expunged(&servers.target, &disk, "legacy");
        println!("{name} is whole on {target}");
    }
}

#[test]
fn old_disks_are_moved_and_not_touched() {
    all_onto("bw2");
}

/// The copy of a disk of today, on which nothing can be written.
#[test]
fn the_copy_of_a_disk_of_3_6_is_moved() {
    struct Mounted(Host);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = self.0.run(&["umount", "-l", "/old-disk"]);
        }
    }
    let servers = Servers::fresh();
    servers.accounts(&["twin", "friend"]);
    let seeded = Seed::new(&servers.source, "twin").rich("friend", 40).unwrap();
    assert!(seeded.warnings.is_empty(), "{:?}", seeded.warnings);
    let before = fingerprint(&servers.source, "twin", &[]);
    assert!(before.messages().count() > 0 && before.errors.is_empty(), "{:?}", before.errors);
    let copy = "rm -rf /old-disk && mkdir -p /old-disk/etc /old-disk/var/lib /old-disk/var/spool \
                && cp -L /etc/imapd.conf /old-disk/etc && cp -a /var/lib/cyrus /old-disk/var/lib \
                && cp -a /var/spool/cyrus /var/spool/sieve /old-disk/var/spool \
                && mount --bind /old-disk /old-disk && mount -o remount,bind,ro /old-disk";
    servers.source.run(&["sh", "-c", copy]).unwrap();
    let _mounted = Mounted(servers.source.clone());
    servers.push("user.twin", &["--source-root", "/old-disk"]).expect(0);
    assert_same(&before, &fingerprint(&servers.target, "twin", &[]), &[]);
}

/// Onto later releases: `make versions` runs them.
mod versions {
    #[test]
    #[ignore = "minutes; make versions"]
    fn old_disks_move_to_3_10() {
        super::all_onto("trix");
        super::kinds::with_domains_and_partitions("trix");
        super::kinds::in_the_midst_of_upgrades("trix");
        super::kinds::with_folders_from_before("trix");
    }

    #[test]
    #[ignore = "minutes; make versions"]
    fn old_disks_move_to_3_12() {
        super::all_onto("sid");
        super::kinds::with_domains_and_partitions("sid");
        super::kinds::in_the_midst_of_upgrades("sid");
        super::kinds::with_folders_from_before("sid");
    }
}
