//! The last look before publishing: is what is staged exactly what the source
//! has, record by record; and what publishing will do, as a plan.

use super::by_name;
use super::offer::Inventory;
use super::publish::{KeyValue, Publication, TakenAway, hash_of_records};
use super::shadow::{Shadow, Top};
use super::stage::Stage;
use super::staged::{Compared, StagedMailbox};
use super::user_files::script_name;
use crate::cyrus::annotation::{self, AnnotationKey, Scope};
use crate::cyrus::config::{DbKind, MetaFile};
use crate::cyrus::db::{Database, Engine, flat, twoskip};
use crate::cyrus::index::{Header, IndexFile, IndexView, Record, touched};
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::{DirStyle, Layout};
use crate::cyrus::release::Release;
use crate::cyrus::sieve;
use crate::host::Host;
use crate::inventory::{GROUP, Groups, Shape};
use crate::moves::sealed::PathBytes;
use crate::murder;
use crate::source::retire::sends_to;
use crate::wire::v1::{self, FileKind, problem::Severity};
use std::collections::BTreeSet;
use std::iter::once;
use std::path::Path;
use std::time::Duration;

/// Compares the staged mailboxes that changed since they were last compared
/// with what the source says of them.
pub fn compare(stage: &Stage, inventory: &mut Inventory, skipped: &[v1::Problem]) -> v1::Prepared {
    let mut prepared = v1::Prepared::default();
    if !inventory.user_files_complete() {
        prepared.problems.push(v1::Problem::new(
            Severity::Refuse,
            "incomplete-user-files",
            "the user's own files changed while they were copied".into(),
            "run the same push again",
        ));
    }
    // A file without a record is skipped, too, and lacks nowhere.
    let may_lack: BTreeSet<(u32, u32)> = skipped
        .iter()
        .filter(|p| p.code != "orphan-file")
        .map(|p| (p.mailbox_ordinal, p.uid))
        .collect();
    for (ordinal, mailbox) in
        inventory.mailboxes.iter_mut().filter(|(_, m)| m.dirty && !m.name_only)
    {
        let may_lack = |uid: u32| may_lack.contains(&(*ordinal, uid));
        match compare_mailbox(stage, mailbox, may_lack) {
            Ok(records) => {
                if let Ok(directory) = mailbox.meta_directory(stage, FileKind::Index) {
                    crate::fault::lose_a_flag(&directory.path().join("cyrus.index"));
                }
                mailbox.dirty = false;
                prepared.mailboxes_compared += 1;
                prepared.records_compared += records;
            }
            Err(text) => prepared.problems.push(v1::Problem {
                mailbox: mailbox.name.display(),
                ..v1::Problem::new(
                    Severity::Refuse,
                    "not-equal",
                    format!("what was copied is not what the source has: {text}"),
                    "run the same push again; if it stays, report it",
                )
            }),
        }
    }
    prepared
}

/// Reads the records that have arrived with their messages, so that under the freeze only
/// those are read that change after this. An index that came while it was written to may be
/// of no moment: what is wrong with it now is not yet wrong with the copy.
pub fn look_ahead(stage: &Stage, inventory: &mut Inventory) {
    for mailbox in inventory.mailboxes.values_mut().filter(|m| m.dirty && !m.name_only) {
        let _ = read_staged(stage, mailbox, |_| false);
    }
}

/// Compares one mailbox; the number of records of it.
fn compare_mailbox(
    stage: &Stage,
    mailbox: &mut StagedMailbox,
    may_lack: impl Fn(u32) -> bool,
) -> Result<u64, String> {
    if !mailbox.files_complete() {
        return Err("one of its cyrus.* files is another".into());
    }
    let Staged { header, digest, missing } = read_staged(stage, mailbox, may_lack)?;
    let offered = &mailbox.offered;
    let same = header.uidvalidity == offered.uidvalidity
        && header.last_uid == offered.last_uid
        && header.highestmodseq == offered.highestmodseq
        && header.num_records == offered.records;
    if !same {
        return Err("UIDVALIDITY, UIDNEXT, HIGHESTMODSEQ or the number of records differs".into());
    }
    if digest.as_slice() != offered.records_blake3 {
        return Err("a record differs".into());
    }
    if let Some(uid) = missing {
        return Err(format!("the message {uid} is missing"));
    }
    Ok(u64::from(header.num_records))
}

/// What a staged index says.
struct Staged {
    header: Header,
    /// The digest of its records.
    digest: [u8; 32],
    /// A message that it lists, and that is not there.
    missing: Option<u32>,
}

/// Reads the records of a staged index, but those that were read before, lie in blocks that
/// are the same since, and have their messages.
fn read_staged(
    stage: &Stage,
    mailbox: &mut StagedMailbox,
    may_lack: impl Fn(u32) -> bool,
) -> Result<Staged, String> {
    let unreadable = |e: &dyn std::fmt::Display| format!("cyrus.index: {e}");
    let directory = mailbox.meta_directory(stage, FileKind::Index).map_err(|e| e.to_string())?;
    let file = directory.open("cyrus.index").map_err(|e| unreadable(&e))?;
    let mut index = IndexFile::open(&file).map_err(|e| unreadable(&e))?;
    let header = index.header().clone();
    let (shape, count) = (Shape::of(&header), header.num_records);
    let blocks = mailbox.blocks(FileKind::Index, &file);
    let before = mailbox.compared.as_ref().filter(|b| b.shape == shape && b.count <= count);
    let (mut groups, mut lacking, numbers) = match (before, &blocks) {
        (Some(before), Some(blocks)) if header.has_modseqs() => {
            let records = |from: u32, to: u32| header.place(from)..header.place(to.min(count));
            let mut ranges = blocks.differing(&before.blocks);
            let lacking = before.lacking.iter().map(|group| group * GROUP);
            ranges.extend(lacking.map(|first| records(first, first.saturating_add(GROUP))));
            (
                before.groups.clone(),
                before.lacking.clone(),
                touched(&header, before.count, ranges, GROUP),
            )
        }
        _ => (Groups::default(), BTreeSet::new(), once(0..count).collect()),
    };
    groups.resize(count);
    let mut missing = None;
    let mut grouping = groups.grouping();
    for numbers in numbers {
        lacking.retain(|group| !numbers.contains(&(group * GROUP)));
        let read = index.each(numbers, |number, record| {
            grouping.add(number, &record);
            // A message that is expunged and whose file has gone is no loss.
            let needed = !record.is_expunged() && !record.is_unlinked();
            if needed && !mailbox.has(record.uid) {
                lacking.insert(number / GROUP);
                if !may_lack(record.uid) {
                    missing.get_or_insert(record.uid);
                }
            }
        });
        read.map_err(|e| unreadable(&e))?;
    }
    grouping.close();
    let digest = groups.digest();
    mailbox.compared = blocks.map(|blocks| Compared { shape, count, blocks, groups, lacking });
    Ok(Staged { header, digest, missing })
}

/// Has this server's Cyrus take messages that were skipped out of the staged
/// indexes, so that nobody is shown a message without bytes.
pub fn drop_skipped(
    host: &Host,
    stage: &Stage,
    top: &Top,
    inventory: &Inventory,
) -> Option<v1::Problem> {
    lacking(stage, inventory)?;
    let arguments: Vec<&str> = match &top.userid {
        Some(userid) => vec!["-q", "-u", userid],
        None => vec!["-q", "-r", &top.external],
    };
    let limit = Duration::from_secs(3600);
    let ran = host.tools.run(&stage.imapd_conf, "reconstruct", &arguments, Vec::new(), limit);
    let problem = |text: String| {
        v1::Problem::new(
            Severity::Refuse,
            "skipping-failed",
            text,
            "mend the messages on the source",
        )
    };
    if let Err(error) = ran {
        return Some(problem(error.to_string()));
    }
    lacking(stage, inventory).map(|(mailbox, uid)| {
        let name = mailbox.name.display();
        problem(format!("{name}: message {uid} is still listed although it was skipped"))
    })
}

/// A message that a staged index lists and that is not staged.
fn lacking<'a>(stage: &Stage, inventory: &'a Inventory) -> Option<(&'a StagedMailbox, u32)> {
    inventory.mailboxes.values().filter(|m| !m.name_only).find_map(|mailbox| {
        let directory = mailbox.meta_directory(stage, FileKind::Index).ok()?;
        let bytes = directory.read("cyrus.index").ok()?;
        let index = IndexView::parse(&bytes).ok()?;
        let listed = |r: &Record| !r.is_expunged() && !r.is_unlinked();
        let mut records = index.records().filter_map(Result::ok);
        let lacks = records.find(|r| listed(r) && !mailbox.has(r.uid))?;
        Some((mailbox, lacks.uid))
    })
}

/// Has this server's Cyrus bring all staged indexes to its own version; what it said.
pub fn to_own_version(host: &Host, stage: &Stage, top: &Top) -> Result<String, String> {
    let arguments: Vec<&str> = match &top.userid {
        Some(userid) => vec!["-q", "-V", "max", "-u", userid],
        None => vec!["-q", "-V", "max", "-r", &top.external],
    };
    let limit = Duration::from_secs(3600);
    let ran = host.tools.run(&stage.imapd_conf, "reconstruct", &arguments, Vec::new(), limit);
    let output = ran.map_err(|e| e.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    Ok(crate::wire::printable(String::from_utf8_lossy(&said).trim()))
}

/// Writes the staged databases of the user's own anew that this server could not read.
/// Cyrus recognises an engine by the file's first bytes, but lines of text by its
/// configuration alone, and takes any file for them (lib/cyrusdb.c: _myopen).
pub fn user_databases(host: &Host, stage: &Stage, inventory: &Inventory) -> Result<(), String> {
    for file in inventory.user_files.iter().filter(|file| !file.place.sieve) {
        let kind = match file.place.relative.file_name().and_then(|name| name.to_str()) {
            Some(name) if name == "sub.db" || name.ends_with(".sub") => DbKind::Subscription,
            Some(name) if name == "seen.db" || name.ends_with(".seen") => DbKind::Seen,
            _ => continue,
        };
        let path = file.place.path(stage);
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let bytes = std::fs::read(&path).map_err(|e| failed(&e))?;
        let database = Database::open(bytes.into(), &Engine::Flat).map_err(|e| failed(&e))?;
        let flat = host.config.db_engine(kind) == Engine::Flat;
        if database.engine().is_none_or(|engine| flat == (engine == Engine::Flat)) {
            continue;
        }
        let entries = database.entries().map_err(|e| failed(&e))?;
        let new = if flat { flat::write(&entries) } else { twoskip::write(&entries) };
        std::fs::write(&path, new).map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Scripts that this server's Cyrus will not show to the user any more.
pub fn unknown_scripts(
    stage: &Stage,
    inventory: &Inventory,
    release: &Release,
) -> Vec<v1::Problem> {
    let scripts = inventory.user_files.iter().filter(|f| f.kind == FileKind::SieveScript);
    scripts
        .filter_map(|file| {
            let text = std::fs::read(file.place.path(stage)).ok()?;
            let extension = sieve::unknown_extension(&text, release)?;
            let name = file.place.relative.file_stem()?.to_string_lossy();
            let (major, minor) = release.since;
            let text = format!(
                "the sieve script {name} requires {extension}, which Cyrus {major}.{minor} and \
                 later do not know: no client is shown the script"
            );
            let advice = "have it written anew with imap4flags; its file is kept";
            Some(v1::Problem::new(Severity::Note, "unknown-sieve-extension", text, advice))
        })
        .collect()
}

/// What publishing will do.
pub fn publication(
    host: &Host,
    stage: &Stage,
    inventory: &Inventory,
    shadow: &Shadow,
    (top, source): (&MailboxName, &str),
) -> Result<Publication, String> {
    let mut renames: Vec<(PathBytes, PathBytes)> = Vec::new();
    let mut added = BTreeSet::new();
    let mut add = |from: &Path, to: &Path| {
        let new = added.insert((from.to_owned(), to.to_owned()));
        if new && from != to && from.exists() {
            renames.push((PathBytes::from(from), PathBytes::from(to)));
        }
    };
    let by_id = host.keeps_by_id();
    if !by_id {
        by_name::scripts(stage, inventory)?;
    }
    let live = Layout::new(&host.config);
    let staged = Layout::new(&stage.config);
    let (mut indexes, mut index_records, mut aside) = (Vec::new(), Vec::new(), Vec::new());
    let mailboxes = by_name::in_order(inventory).filter(|m| m.is_published(host));
    for mailbox in mailboxes.filter(|m| !m.name_only) {
        let (id, here) = (DirStyle::Id(&mailbox.id), host.style(&mailbox.id));
        let (name, partition) = (&mailbox.name, &mailbox.partition);
        let from = staged.mailbox_dirs(name, id, partition).map_err(|e| e.to_string())?;
        let to = live.mailbox_dirs(name, here, partition).map_err(|e| e.to_string())?;
        from.iter().zip(&to).for_each(|((_, from), (_, to))| add(from, to));
        let index = |layout: &Layout<'_>, style| {
            let path = layout.meta_file(MetaFile::Index, name, style, partition);
            path.map_err(|e| e.to_string())
        };
        let (from, to) = (index(&staged, id)?, index(&live, here)?);
        let failed = |e: std::io::Error| format!("{}: {e}", from.display());
        let blake3 = index_hash(mailbox, &from).map_err(failed)?;
        indexes.push((PathBytes::from(to.as_path()), blake3));
        if murder::is_member(host) {
            let hash = std::fs::File::open(&from).and_then(|file| hash_of_records(&file));
            index_records.push(hash.map_err(failed)?);
        }
        if mailbox.name.inbox().as_ref() == Some(&mailbox.name) {
            let user = |layout: &Layout<'_>, style, suffix| {
                let path = layout.user_file(&mailbox.name, style, suffix);
                path.map_err(|e| e.to_string())
            };
            if by_id {
                let directory = |layout: &Layout<'_>| layout.user_dir(&mailbox.id);
                add(
                    &directory(&staged).map_err(|e| e.to_string())?,
                    &directory(&live).map_err(|e| e.to_string())?,
                );
            } else {
                for suffix in by_name::USER_SUFFIXES {
                    add(&user(&staged, id, suffix)?, &user(&live, here, suffix)?);
                }
            }
            for (root, place) in &stage.search {
                let index =
                    live.search_dir(&mailbox.name, here, root).map_err(|e| e.to_string())?;
                if index.exists() {
                    aside
                        .push((PathBytes::from(index.as_path()), PathBytes::from(place.as_path())));
                }
            }
            let sieve = |layout: &Layout<'_>, style| {
                let user = mailbox.name.userid()?;
                layout.sieve_dir(&user, style).ok().flatten()
            };
            if let (Some(from), Some(to)) = (sieve(&staged, id), sieve(&live, here)) {
                activate_script(&from, &inventory.rest.active_sieve)?;
                add(&from, &to);
            }
        }
    }
    let Quotas { files: quota_files, records: quota_records } =
        quotas(host, (stage, inventory), top)?;
    let records = publishable(host, &shadow.records)?;
    let deferred = sends_to(host, source);
    let deferring = records.iter().filter(|(key, _)| is_of_mailbox(host, key));
    let deferring = deferring.filter_map(|(k, v)| Some((k.clone(), deferred.apply(v).ok()?)));
    Ok(Publication {
        deferring: deferring.collect(),
        renames,
        quota_files,
        quota_records,
        annotations: annotations(host, inventory)?,
        aside,
        directories_first: !by_id,
        records,
        stale_annotations: Vec::new(),
        stale_records: Vec::new(),
        indexes,
        index_records,
        taken_away: TakenAway::default(),
    })
}

/// BLAKE3 of a staged index, which is known if it is as it came.
fn index_hash(mailbox: &StagedMailbox, path: &Path) -> std::io::Result<[u8; 32]> {
    let file = std::fs::File::open(path)?;
    if let Some(blocks) = mailbox.blocks(FileKind::Index, &file) {
        return Ok(blocks.blake3());
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok(*hasher.finalize().as_bytes())
}

/// The records to publish. Reverse ACLs (keys with A) go only where the live
/// database keeps them, and never the version key, which is everybody's.
fn publishable(host: &Host, records: &[KeyValue]) -> Result<Vec<KeyValue>, String> {
    // Up to 3.4: `imap/mboxlist.c:mboxlist_set_racls`.
    let version: &[u8] = if host.keeps_by_id() { b"AS\x1e" } else { b"$RACL" };
    let live = host.mailboxes().map_err(|e| e.to_string())?;
    let reverse = live.get(version).map_err(|e| e.to_string())?.is_some();
    let wanted = |key: &[u8]| is_of_mailbox(host, key) || (reverse && key != version);
    Ok(records.iter().filter(|(key, _)| wanted(key)).cloned().collect())
}

/// Whether a key of mailboxes.db is of a mailbox, and not of one of Cyrus's own lists.
fn is_of_mailbox(host: &Host, key: &[u8]) -> bool {
    match host.keeps_by_id() {
        true => matches!(key.first(), Some(b'N' | b'I')),
        false => key.first() != Some(&b'$'),
    }
}

/// Points `defaultbc` at the active script (imap/sieve_db.c, timsieved/actions.c).
fn activate_script(directory: &Path, active: &[u8]) -> Result<(), String> {
    let link = directory.join("defaultbc");
    match std::fs::remove_file(&link) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("{}: {e}", link.display()));
        }
        _ => {}
    }
    if active.is_empty() || !directory.is_dir() {
        return Ok(());
    }
    let name = script_name(active).ok_or("the active sieve script has an impossible name")?;
    std::os::unix::fs::symlink(format!("{name}.bc"), &link)
        .map_err(|e| format!("{}: {e}", link.display()))
}

/// Quota roots as this server's engine keeps them.
#[derive(Default)]
struct Quotas {
    files: Vec<(PathBytes, Vec<u8>)>,
    records: Vec<KeyValue>,
}

fn quotas(
    host: &Host,
    (stage, inventory): (&Stage, &Inventory),
    top: &MailboxName,
) -> Result<Quotas, String> {
    let layout = Layout::new(&host.config);
    let legacy = host.config.db_engine(DbKind::Quota) == Engine::QuotaLegacy;
    let mut quotas = Quotas::default();
    for root in &inventory.rest.quota_roots {
        let name = MailboxName::from_internal(&root.name).map_err(|e| e.to_string())?;
        if name != *top && !name.is_below(top) {
            return Err(format!("the quota root {} is not part of the move", name.display()));
        }
        let mut record = root.record.trim_ascii_end().to_vec();
        if !host.keeps_by_id() {
            record = by_name::quota(stage, inventory, &name, &record)?;
        }
        if legacy {
            // A line of text in a file of its own (lib/cyrusdb_quotalegacy.c).
            record.push(b'\n');
            let path = layout.quota_file(&name).map_err(|e| e.to_string())?;
            quotas.files.push((PathBytes::from(path.as_path()), record));
        } else {
            quotas.records.push((name.as_bytes().to_vec(), record));
        }
    }
    Ok(quotas)
}

/// The records of the annotations database, as this server keys them.
pub fn annotations(host: &Host, inventory: &Inventory) -> Result<Vec<KeyValue>, String> {
    let by_id = host.keeps_by_id();
    let userid = inventory
        .mailboxes
        .values()
        .find_map(|m| m.name.userid().map(|user| user.as_bytes().to_vec()));
    let mut records = Vec::new();
    for record in &inventory.rest.annotations {
        let scope = if record.server {
            // The server's own annotations are nobody's to move.
            if record.userid.is_empty() || Some(record.userid.to_vec()) != userid {
                return Err("an annotation of the server that is not the user's".into());
            }
            Scope::Server
        } else {
            let mailbox = inventory
                .mailboxes
                .get(&record.mailbox)
                .ok_or("an annotation of a mailbox that is not part of the move")?;
            if !mailbox.is_published(host) {
                continue;
            }
            Scope::Mailbox(match by_id {
                true => mailbox.id.as_str().as_bytes().to_vec(),
                false => mailbox.name.as_bytes().to_vec(),
            })
        };
        let userid = match (record.owner, by_id, &userid) {
            (false, ..) => &record.userid[..],
            (true, true, _) => annotation::OWNER,
            (true, false, Some(owner)) => owner,
            (true, false, None) => return Err("an owner's annotation of a shared tree".into()),
        };
        let key = AnnotationKey { scope, entry: record.entry.to_vec(), userid: userid.to_vec() };
        let bytes = key.to_bytes();
        // Names that hold a NUL would be another annotation's key.
        if AnnotationKey::parse(&bytes).ok().as_ref() != Some(&key) {
            return Err("an annotation with an impossible name".into());
        }
        records.push((bytes, record.value.to_vec()));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::super::offer::Checked;
    use super::super::receive::Held;
    use super::super::stage::Trace;
    use super::*;
    use crate::cyrus::config::{Config, Defaults};
    use crate::cyrus::index::{internal, write_index};
    use crate::cyrus::name::{PartitionName, UniqueId};
    use crate::moves::MoveId;
    use crate::wire::blocks::Blocks;
    use std::sync::Arc;

    fn mailbox_in(root: &Path) -> (Stage, StagedMailbox) {
        let root = root.display();
        let conf = format!(
            "configdirectory: {root}/conf\npartition-default: {root}/spool\n\
             sievedir: {root}/sieve\ndefaultpartition: default\n"
        );
        let config = Config::parse(conf.as_bytes(), Defaults::V3, &mut |_| Err(String::new()));
        let stage = Stage::new(&config.unwrap(), &MoveId::random()).unwrap();
        let checked = Checked {
            name: MailboxName::from_internal(b"user.x").unwrap(),
            id: UniqueId::new(b"3ee19b1b-3a55").unwrap(),
            partition: PartitionName::new("default").unwrap(),
        };
        let mailbox = StagedMailbox::open(&stage, &v1::Mailbox::default(), checked, None);
        (stage, mailbox.unwrap())
    }

    /// Puts an index into the stage, as it would come.
    fn put(mailbox: &mut StagedMailbox, records: &[Record]) {
        let header = Header { exists: records.len() as u32, ..Header::default() };
        let bytes = write_index(17, &header, records.iter().copied()).unwrap();
        let path = mailbox.directory.path().join("cyrus.index");
        std::fs::write(&path, &bytes).unwrap();
        let trace = Trace::of(&std::fs::File::open(&path).unwrap()).unwrap();
        mailbox.file_arrived(FileKind::Index, Held { blocks: Arc::new(Blocks::of(&bytes)), trace });
    }

    #[test]
    fn what_was_read_ahead_is_compared_as_if_all_was_read() {
        let dir = tempfile::tempdir().unwrap();
        let (stage, mut mailbox) = mailbox_in(dir.path());
        let last = GROUP * 20 + 3;
        let mut records: Vec<_> =
            (1..=last).map(|uid| Record { uid, size: 10, ..Record::default() }).collect();
        let uids: Vec<u32> = (1..=last).collect();
        // All that is told, and whether it is as if nothing had been read before.
        let read = |mailbox: &mut StagedMailbox, may_lack: &dyn Fn(u32) -> bool| {
            let ahead = read_staged(&stage, mailbox, may_lack).unwrap();
            let kept = mailbox.compared.take();
            let whole = read_staged(&stage, mailbox, may_lack).unwrap();
            assert!(kept.is_some());
            mailbox.compared = kept;
            assert_eq!((ahead.digest, ahead.missing), (whole.digest, whole.missing));
            ahead.missing
        };
        let none = |_| false;
        put(&mut mailbox, &records);
        assert_eq!(read(&mut mailbox, &none), Some(1));
        mailbox.arrived(&uids[..uids.len() - 1]);
        assert_eq!(read(&mut mailbox, &none), Some(last));
        // That it may lack once does not make it be there.
        assert_eq!(read(&mut mailbox, &|uid| uid == last), None);
        assert_eq!(read(&mut mailbox, &none), Some(last));
        records[5].modseq = 9;
        records[GROUP as usize * 9].internal_flags = internal::EXPUNGED;
        records.push(Record { uid: last + 1, size: 10, ..Record::default() });
        put(&mut mailbox, &records);
        assert_eq!(read(&mut mailbox, &none), Some(last));
        mailbox.arrived(&[last, last + 1]);
        assert_eq!(read(&mut mailbox, &none), None);
        // One that cannot be read does not spoil what is known.
        let path = mailbox.directory.path().join("cyrus.index");
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(read_staged(&stage, &mut mailbox, none).is_err());
        put(&mut mailbox, &records);
        assert_eq!(read(&mut mailbox, &none), None);
    }
}
