//! Preflight on the target: everything that would stop the move later.

use super::base::Base;
use super::by_name;
use super::stage::OUR_DIRECTORY;
use crate::cyrus::dlist::Dlist;
use crate::cyrus::mboxlist::mbtype::{Kind, Mbtype};
use crate::cyrus::mboxlist::{MailboxList, MboxlistError};
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::path::Layout;
use crate::cyrus::release::Release;
use crate::host::{DatabaseError, Host};
use crate::wire::v1::{self, problem::Severity};
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Free space that must be left on a partition, in bytes.
const SPACE_RESERVE: u64 = 64 << 20;

/// Which partition of this server each partition of the source becomes.
pub fn partitions(
    host: &Host,
    plan: &v1::PlanTarget,
    problems: &mut Vec<v1::Problem>,
) -> BTreeMap<String, PartitionName> {
    let known = host.config.partitions().unwrap_or_default();
    let names = || known.keys().map(PartitionName::as_str).collect::<Vec<_>>().join(", ");
    let wanted: BTreeSet<&str> = plan.mailboxes.iter().map(|m| m.partition.as_str()).collect();
    let mut map = BTreeMap::new();
    for source in wanted {
        let named = plan.partition_map.get(source).map(String::as_str);
        let named = named.or((!plan.partition.is_empty()).then_some(plan.partition.as_str()));
        let asked = named.unwrap_or(source);
        let found = PartitionName::new(asked).ok().filter(|name| known.contains_key(name));
        let fallback = || {
            // A partition that the admin did not name may have another name here.
            named.is_none().then(|| host.config.defaultpartition()).flatten()
        };
        match found.or_else(fallback).filter(|name| known.contains_key(name)) {
            Some(name) => {
                map.insert(source.to_owned(), name);
            }
            None => problems.push(v1::Problem::refuse(
                "unknown-partition",
                format!("this server has no partition {asked:?}; it has: {}", names()),
                "name one of them, as in: mbcopy push MAILBOX DEST:PARTITION, or by \
                 --partition-map OLD=NEW",
            )),
        }
    }
    map
}

/// What stands in the way of the mailboxes in this server's mailboxes.db and on
/// its disks.
pub fn conflicts(
    host: &Host,
    top: &MailboxName,
    mailboxes: &[v1::Mailbox],
    partitions: &BTreeMap<String, PartitionName>,
    base: Option<&Base>,
) -> Result<Vec<v1::Problem>, DatabaseError> {
    let database = host.mailboxes()?;
    let failed = |e: String| DatabaseError { path: host.conf.clone(), reason: e };
    let list = MailboxList::from_database(&database).map_err(|e| failed(e.to_string()))?;
    let there = There::count(&list, top, mailboxes, base).map_err(|e| failed(e.to_string()))?;
    let mut problems = there.problems(&host.external(top));
    let mut mounts = BTreeSet::new();
    for mailbox in mailboxes {
        let (Ok(id), Ok(name)) = (
            UniqueId::new(mailbox.unique_id.as_bytes()),
            MailboxName::from_internal(&mailbox.name),
        ) else {
            continue;
        };
        let other = list.name_of_id(&id).map_err(|e| failed(e.to_string()))?;
        // It may have been renamed while it was away.
        let away = other.as_ref().filter(|other| **other != name).map(|other| list.get(other));
        let away = away.transpose().map_err(|e| failed(e.to_string()))?.flatten();
        let away = away.is_some_and(|entry| base.is_some_and(|base| base.left_entry(&entry)));
        let other = other.filter(|_| !away);
        if let Some(other) = other.filter(|other| *other != name) {
            problems.push(v1::Problem::refuse(
                "uniqueid-in-use",
                format!(
                    "the id {} of {} belongs to {} on this server",
                    id.as_str(),
                    host.external(&name),
                    host.external(&other)
                ),
                "if that is a deleted mailbox, expire it first: cyr_expire -D 0",
            ));
        } else if there.live == 0 && there.tombstones_with_files == 0 {
            let partition = partitions.get(&mailbox.partition);
            mounts.extend(partition.and_then(|p| mounted_below(host, &name, &id, p)));
            problems.extend(leftovers(host, top, &name, &id, (partition, base)));
        }
    }
    problems.extend(mounts.iter().map(|path| crossing(path)));
    Ok(problems)
}

/// A directory in the place of the mailbox, or above it and below its root, on another
/// filesystem than the root.
fn mounted_below(
    host: &Host,
    name: &MailboxName,
    id: &UniqueId,
    partition: &PartitionName,
) -> Option<PathBuf> {
    let there = |path: &Path| path.ancestors().find(|p| p.exists()).map(Path::to_owned);
    let device = |path: &Path| Some(there(path)?.metadata().ok()?.dev());
    let dirs = Layout::new(&host.config).mailbox_dirs(name, host.style(id), partition).ok()?;
    let crosses = |(root, dir): &&(PathBuf, PathBuf)| device(root) != device(dir);
    dirs.iter().find(crosses).and_then(|(_, dir)| there(dir))
}

/// What mailboxes.db has of the user on this server.
#[derive(Debug, Default)]
struct There {
    live: u32,
    /// Live ones with the ids that the source's have: copies.
    same_id: u32,
    tombstones: u32,
    tombstones_with_files: u32,
}

impl There {
    fn count(
        list: &MailboxList<'_>,
        top: &MailboxName,
        mailboxes: &[v1::Mailbox],
        base: Option<&Base>,
    ) -> Result<Self, MboxlistError> {
        let ours: BTreeMap<&[u8], &str> =
            mailboxes.iter().map(|m| (&*m.name, m.unique_id.as_str())).collect();
        let mut there = Self::default();
        for entry in list.tree(top)? {
            if base.is_some_and(|base| base.left_entry(&entry)) {
                continue;
            }
            match (entry.is_deleted(), entry.partition.is_some()) {
                (true, false) => there.tombstones += 1,
                (true, true) => there.tombstones_with_files += 1,
                (false, _) => {
                    there.live += 1;
                    let id = entry.uniqueid.as_ref().map(UniqueId::as_str);
                    let same = id.is_some() && ours.get(entry.name.as_bytes()).copied() == id;
                    there.same_id += u32::from(same);
                }
            }
        }
        Ok(there)
    }

    fn problems(&self, shown: &str) -> Vec<v1::Problem> {
        let mut problems = Vec::new();
        if self.same_id > 0 {
            problems.push(v1::Problem::refuse(
                "xfer-leftover",
                format!(
                    "{shown} exists on this server, and {} of its {} mailboxes have the same ids \
                     as the source's: it is what an earlier XFER or copy has left, and clients \
                     and deliveries can reach it",
                    self.same_id, self.live
                ),
                &format!(
                    "let it be named and put right, with the mail that has arrived in it: mbcopy \
                     doctor {shown} DEST, on the source"
                ),
            ));
        } else if self.live > 0 {
            problems.push(v1::Problem::refuse(
                "exists-on-target",
                format!("{shown} exists on this server, with {} mailboxes of its own", self.live),
                "rename or delete it there first; mbcopy never merges two users",
            ));
        }
        if self.tombstones_with_files > 0 {
            problems.push(v1::Problem::refuse(
                "tombstone-with-files",
                format!(
                    "{} mailboxes of {shown} are marked as deleted on this server, but their \
                     records still name a partition: an XFER away from here (3.6) leaves this, \
                     with all files, which no tool of Cyrus removes",
                    self.tombstones_with_files
                ),
                &format!("put them aside: mbcopy doctor {shown} DEST --repair, on this server"),
            ));
        }
        if self.tombstones > 0 {
            problems.push(v1::Problem::new(
                Severity::Note,
                "tombstones",
                format!(
                    "{} records of deleted mailboxes of {shown} on this server will be replaced",
                    self.tombstones
                ),
                "",
            ));
        }
        problems
    }
}

/// Directories that no record names, where those of the mailbox will be.
fn leftovers(
    host: &Host,
    top: &MailboxName,
    name: &MailboxName,
    id: &UniqueId,
    (partition, base): (Option<&PartitionName>, Option<&Base>),
) -> Vec<v1::Problem> {
    let layout = Layout::new(&host.config);
    let style = host.style(id);
    let dirs = partition.and_then(|p| layout.mailbox_dirs(name, style, p).ok());
    let dirs: BTreeSet<_> = dirs.unwrap_or_default().into_iter().map(|(_, dir)| dir).collect();
    let mut places: Vec<_> = dirs.into_iter().map(Some).collect();
    if name == top && name.is_user() {
        match host.keeps_by_id() {
            true => places.push(layout.user_dir(id).ok()),
            // What late clients have made since he left is put aside.
            false if base.is_some() => {}
            false => places.extend(
                by_name::USER_SUFFIXES.map(|suffix| layout.user_file(name, style, suffix).ok()),
            ),
        }
        places.push(name.userid().and_then(|user| layout.sieve_dir(&user, style).ok().flatten()));
        places.retain(|place| {
            !base.is_some_and(|b| b.blocked().any(|blocked| Some(blocked) == place.as_deref()))
        });
    }
    let shown = host.external(name);
    let occupied = places.into_iter().flatten().filter(|place| !is_vacant(place));
    let refusal = |place: std::path::PathBuf| v1::Problem {
        path: place.display().to_string(),
        mailbox: shown.clone(),
        ..v1::Problem::refuse(
            "leftover-directory",
            format!("{} is in the way of {shown}", place.display()),
            "no record names it; look at it, and move it away",
        )
    };
    occupied.map(refusal).collect()
}

/// Whether there is nothing, or an empty directory.
pub fn is_vacant(path: &Path) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_none(),
        Err(e) => e.kind() == std::io::ErrorKind::NotFound,
    }
}

/// What this server's release of Cyrus cannot keep.
pub fn release(host: &Host, mailboxes: &[v1::Mailbox]) -> Vec<v1::Problem> {
    let Some(version) = host.release() else {
        return vec![v1::Problem::refuse(
            "no-cyrus",
            "Cyrus's programs were not found on this server, or do not answer".into(),
            "name their directory by --cyrus-bin",
        )];
    };
    let release = Release::of(version);
    let version = format!("{}.{}", version.0, version.1);
    // Before it nobody locked a user.
    if release.since < (3, 2) {
        return vec![v1::Problem::refuse(
            "target-too-old",
            format!("this server's Cyrus {version} has no lock on a user"),
            "move to a server with Cyrus 3.2 or later",
        )];
    }
    if !release.by_id && host.config.improved_mboxlist_sort().unwrap_or(false) {
        return vec![v1::Problem::refuse(
            "improved-mboxlist-sort",
            "this server has improved_mboxlist_sort, and other databases of users for it".into(),
            "move to another server; from this one users can be moved",
        )];
    }
    let unknown = |mailbox: &&v1::Mailbox| {
        let record = Dlist::parse(&mailbox.name_record).ok();
        let letters = record.as_ref().and_then(|r| r.get(b"T")).and_then(Dlist::as_bytes);
        letters.map(Mbtype::from_letters).is_some_and(|mbtype| match release.by_id {
            true => !release.knows(&mbtype),
            // Scripts become files; nothing else of later releases has a place here.
            false => ![Kind::Email, Kind::News, Kind::Sieve].contains(&mbtype.kind),
        })
    };
    let unknown = mailboxes.iter().filter(unknown);
    let problem = |mailbox: &v1::Mailbox| v1::Problem {
        mailbox: String::from_utf8_lossy(&mailbox.name).into_owned(),
        ..v1::Problem::refuse(
            "unknown-mailbox-type",
            format!(
                "this server's Cyrus {version} does not know what the mailbox holds, and its \
                 programs end where they meet such a record"
            ),
            "delete that mailbox on the source if nobody needs it (JMAP makes \
             #jmapnotification anew), or move to a newer Cyrus",
        )
    };
    unknown.map(problem).collect()
}

/// Which of Cyrus's programs are not there that a move needs.
pub fn programs(host: &Host, needed: &[&str]) -> Vec<v1::Problem> {
    let missing = needed.iter().filter_map(|program| host.tools.find(program).err());
    let advice = "install it, or name the directory of Cyrus's programs by --cyrus-bin";
    missing.map(|error| v1::Problem::refuse("missing-program", error.to_string(), advice)).collect()
}

/// Room on the partitions: whether the stage can be made, and free space.
pub fn room(
    host: &Host,
    partitions: &BTreeMap<String, PartitionName>,
    totals: &v1::Totals,
    plan: &mut v1::TargetPlan,
) {
    plan.problems.extend(host.crossings().iter().map(|path| crossing(path)));
    let used: BTreeSet<&PartitionName> = partitions.values().collect();
    let archive = |partition| host.config.archivepartition(partition).ok().flatten();
    let all_have_archives = used.iter().all(|partition| archive(partition).is_some());
    let mut places = Vec::new();
    for partition in used {
        let ordinary = match all_have_archives {
            true => totals.bytes.saturating_sub(totals.archived),
            false => totals.bytes,
        };
        places.extend(host.config.partition(partition).map(|path| (partition, path, ordinary)));
        places.extend(archive(partition).map(|path| (partition, path, totals.archived)));
    }
    for (partition, path, bytes) in places {
        let stat = match rustix::fs::statvfs(&path) {
            Ok(stat) => stat,
            Err(e) => {
                plan.problems.push(v1::Problem::refuse(
                    "partition-unusable",
                    format!("the partition {} at {}: {e}", partition.as_str(), path.display()),
                    "make it, owned by the user that Cyrus runs as",
                ));
                continue;
            }
        };
        if rustix::fs::access(&path, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .is_err()
        {
            plan.problems.push(v1::Problem::refuse(
                "partition-unusable",
                format!(
                    "the partition {} at {} is not writable for the user that Cyrus runs as",
                    partition.as_str(),
                    path.display()
                ),
                "mend its owner and mode",
            ));
        }
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        plan.free_bytes = if plan.free_bytes == 0 { free } else { plan.free_bytes.min(free) };
        plan.free_inodes = stat.f_favail;
        // What an earlier try of this move has staged need not come again; to count it takes
        // as long as to copy nothing.
        let staged = || staged_bytes(&path.join(OUR_DIRECTORY).join(&plan.move_id));
        let needed = bytes.saturating_add(SPACE_RESERVE);
        if needed > free && needed > free.saturating_add(staged()) {
            plan.problems.push(v1::Problem::refuse(
                "no-space",
                format!(
                    "{bytes} bytes are to come, and {} at {} has {free} bytes free",
                    partition.as_str(),
                    path.display()
                ),
                "make room, or name another partition",
            ));
        }
        // Some filesystems make inodes as they are needed, and report none.
        let files = totals.messages.saturating_add(totals.mailboxes).saturating_add(1000);
        if stat.f_files > 0 && stat.f_favail < files {
            plan.problems.push(v1::Problem::refuse(
                "no-inodes",
                format!(
                    "{} messages are to come, and {} at {} has {} inodes free",
                    totals.messages,
                    partition.as_str(),
                    path.display(),
                    stat.f_favail
                ),
                "make room, or name another partition",
            ));
        }
    }
}

/// Whether there is room for what is wanted now: more may have come since the plan, and
/// a peer may claim anything. An error says what is missing where.
pub fn room_for(host: &Host, wanted: &BTreeMap<&PartitionName, u64>) -> Result<(), String> {
    for (partition, bytes) in wanted {
        let Some(path) = host.config.partition(partition) else { continue };
        let Ok(stat) = rustix::fs::statvfs(&path) else { continue };
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        if *bytes > free {
            let (partition, path) = (partition.as_str(), path.display());
            return Err(format!(
                "{bytes} bytes are to come, and {partition} at {path} has {free} bytes free"
            ));
        }
    }
    Ok(())
}

/// Why the old server's Cyrus cannot log in here for its users, if it cannot: it would do
/// so as `authname`.
pub fn proxies(host: &Host, authname: &str) -> Option<v1::Problem> {
    let named = host.config.get("proxyservers").unwrap_or_default();
    let may = named.split_whitespace().chain(["*"]).any(|name| name == authname);
    let admin = host.config.admins().iter().any(|name| name == authname);
    (!may && !admin).then(|| {
        v1::Problem::refuse(
            "forward-proxyservers",
            format!("{authname} may not log in for others here: proxyservers does not name it"),
            "set proxyservers in imapd.conf here, and start Cyrus again",
        )
    })
}

/// The problem of a directory on another filesystem than its root.
pub fn crossing(path: &Path) -> v1::Problem {
    v1::Problem::refuse(
        "other-filesystem",
        format!("{} is on another filesystem than what it belongs to", path.display()),
        "mbcopy renames directories into and out of it, which cannot be done across \
         filesystems; this layout is not supported yet",
    )
}

fn staged_bytes(directory: &Path) -> u64 {
    walkdir::WalkDir::new(directory)
        .into_iter()
        .filter_map(|entry| entry.ok()?.metadata().ok())
        .filter(std::fs::Metadata::is_file)
        .map(|m| m.len())
        .sum()
}
