//! What the source has of the user, told and sent.

use super::ahead::ToRead;
use super::inventory::SourceMailbox;
use super::retire::{Retirement, sends_to};
use super::stragglers::{Baseline, Search};
use super::{Session, alarms, inventory, looked, mailbox, place, quota, send, stragglers};
use crate::agent::{self, Link};
use crate::cyrus::index::IndexFile;
use crate::host::Host;
use crate::moves::sealed;
use crate::moves::verdict::route_is_changed;
use crate::murder;
use crate::wire::v1::{self, FileKind, failure::Kind, problem::Severity};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::PathBuf;

impl Session {
    /// Looks at everything once, for the plan.
    pub(super) fn look(&mut self, host: &Host) -> v1::SourcePlan {
        // Nothing of a disk is renamed.
        let crossings = if host.offline.is_none() { host.crossings() } else { Vec::new() };
        let mut problems: Vec<_> =
            crossings.iter().map(|path| crate::target::crossing(path)).collect();
        if host.offline.is_none() {
            problems.extend(crate::target::programs(host, &["cyr_dbtool", "mbexamine"]));
        }
        let mut minors = BTreeMap::new();
        let looked = place(host, &self.id, looked::FILE);
        let mut looked = looked.map(|path| looked::load(&path)).unwrap_or_default();
        let mut to_read = ToRead::default();
        for mailbox in &self.listing.mailboxes {
            let known = self.known.entry(mailbox.ordinal).or_default();
            if mailbox.converted.is_none() {
                known.looked = looked.remove(mailbox.id.as_str());
            }
            if mailbox.entry.partition.is_some() {
                let found = mailbox::look(host, mailbox, known, &mut to_read);
                if found.is_empty() || !mailbox.has_gone(host) {
                    problems.extend(found);
                }
            }
            minors.insert(mailbox.ordinal, index_minor(host, mailbox));
        }
        self.ahead = to_read.begin();
        problems.extend(alarms::note(host, &self.listing));
        problems.extend(quota::notes(host, &self.listing));
        if host.offline.is_none() {
            // Any directory can be a mount.
            let away = sends_to(host, "");
            let planned = Retirement::new(host, &self.listing, &self.id, &away);
            let crossings = planned.map(|planned| planned.crossings()).unwrap_or_default();
            problems.extend(crossings.iter().map(|path| crate::target::crossing(path)));
        }
        // Once the route may have changed, mupdate may rightly say anything.
        let here = (!route_is_changed(&self.entry.state)).then_some(&self.top);
        let (mupdate, found) = murder::look(host, here);
        problems.extend(found);
        let mailboxes = self.listing.mailboxes.iter().map(|m| {
            let mut wire = to_wire(m);
            wire.index_minor = minors.get(&m.ordinal).copied().unwrap_or_default();
            wire
        });
        v1::SourcePlan {
            identity: Some(self.identity(host)),
            mailboxes: mailboxes.collect(),
            totals: Some(self.totals()),
            problems,
            move_id: self.id.to_string(),
            state: self.entry.state.clone(),
            snapshot: Bytes::copy_from_slice(self.detail().snapshot.as_bytes()),
            route_command: self.detail().route_command,
            offline: host.offline.is_some(),
            murder: murder::is_member(host),
            mupdate,
            murder_route: self.detail().murder_route,
            mail_held: self.entry.mail_is_held(),
        }
    }

    pub(super) fn identity(&self, host: &Host) -> v1::Identity {
        let user = self.top.userid();
        v1::Identity {
            name: Bytes::copy_from_slice(self.top.as_bytes()),
            userid: user
                .map(|u| String::from_utf8_lossy(u.as_bytes()).into_owned())
                .unwrap_or_default(),
            display: host.external(&self.top),
        }
    }

    pub(super) fn totals(&self) -> v1::Totals {
        let mut totals = v1::Totals::default();
        for mailbox in &self.listing.mailboxes {
            let known = self.known.get(&mailbox.ordinal).map(|k| k.totals).unwrap_or_default();
            totals.mailboxes += 1;
            totals.messages += known.messages;
            totals.bytes += known.bytes;
            totals.expunged += known.expunged;
            totals.archived += known.archived;
        }
        totals
    }

    pub(super) fn scan(&mut self, host: &Host, link: &Link) -> Result<v1::ScanDone, v1::Failure> {
        let sender = link.sender();
        self.survey(host, &|part| {
            sender.part(part).map_err(|e| v1::Failure::from(crate::agent::LinkError::from(e)))
        })
    }

    /// Looks at everything that has changed since the last time, and tells it.
    pub(super) fn survey(
        &mut self,
        host: &Host,
        tell: &dyn Fn(v1::part::Part) -> Result<(), v1::Failure>,
    ) -> Result<v1::ScanDone, v1::Failure> {
        let frozen = self.check_freeze()?;
        if let Some(old) = &mut self.old {
            old.begin(frozen);
        }
        self.listing = inventory::list(host, &self.top, &mut self.ordinals, self.old.as_mut())?;
        let table = v1::Table {
            identity: Some(self.identity(host)),
            mailboxes: self.listing.mailboxes.iter().map(to_wire).collect(),
        };
        tell(v1::part::Part::Table(table))?;
        if let Some(ahead) = self.ahead.take() {
            ahead.take(&mut self.known, &mut self.contents);
        }
        let mut done = v1::ScanDone::default();
        for mailbox in &self.listing.mailboxes {
            if mailbox.entry.partition.is_none() {
                continue;
            }
            let known = self.known.entry(mailbox.ordinal).or_default();
            let Some(found) = mailbox::scan(host, mailbox, known, &mut self.contents, frozen)
            else {
                done.unchanged.push(mailbox.ordinal);
                continue;
            };
            if !found.problems.is_empty() && !frozen && mailbox.has_gone(host) {
                known.forget();
                continue;
            }
            for part in found.parts() {
                tell(v1::part::Part::MailboxScan(part))?;
            }
            done.problems.extend(found.problems);
        }
        let unreadable = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                text,
                "the source serves the user and is unchanged",
                "mend it on this server, and push again",
            )
        };
        self.user_files = self.listing.user_files(host).map_err(unreadable)?;
        self.scripts.clear();
        for (number, (kind, name, path)) in self.user_files.files.iter().enumerate() {
            let found = self
                .contents
                .find(path, 0)
                .and_then(|found| found.ok_or_else(|| std::io::ErrorKind::NotFound.into()));
            let found = found.map_err(|e| unreadable(format!("{}: {e}", path.display())))?;
            if *kind == FileKind::SieveScript {
                self.scripts.insert(path.clone(), found.blake3().into());
            }
            done.user_files.push(v1::UserFile {
                number: number as u32,
                kind: (*kind).into(),
                name: Bytes::copy_from_slice(name),
                size: found.size(),
                blake3: Bytes::copy_from_slice(&found.blake3()),
            });
        }
        done.problems.extend(self.user_files.notes.iter().map(|text| v1::Problem {
            severity: Severity::Note.into(),
            code: "unknown-user-file".into(),
            text: text.clone(),
            ..v1::Problem::default()
        }));
        done.active_sieve = Bytes::copy_from_slice(self.user_files.active_sieve.as_bytes());
        done.quota_roots = self.listing.quota_roots(host).map_err(unreadable)?;
        done.annotations = self.listing.annotations(host).map_err(unreadable)?;
        done.totals = Some(self.totals());
        self.snapshot = self.take_snapshot(&done);
        done.snapshot = Bytes::copy_from_slice(self.snapshot.as_bytes());
        if frozen {
            self.baseline = Baseline::of(&self.listing, &self.known, &self.user_files, &done);
        } else if !std::mem::replace(&mut self.looks_are_kept, true) {
            self.keep_looks(host);
        }
        Ok(done)
    }

    /// Tells what is different from what was published.
    pub(super) fn find_stragglers(
        &mut self,
        host: &Host,
        link: &Link,
    ) -> Result<v1::StragglersFound, v1::Failure> {
        let failed = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                format!(
                    "the source has changes that the target has not, which cannot be found: {text}"
                ),
                "the target serves the user; the source's copy is not retired yet",
                "mend the cause and run the same push again",
            )
        };
        let path = self.baseline_path(host)?;
        let baseline: Baseline = sealed::load(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => v1::Failure {
                advice: "an older mbcopy began this move: carry the changes over by hand, then \
                         remove the source's mailboxes"
                    .into(),
                ..failed(format!("{} is missing", path.display()))
            },
            _ => failed(format!("{}: {e}", path.display())),
        })?;
        let done = self.survey(host, &|_| Ok(()))?;
        let search = Search {
            host,
            listing: &self.listing,
            known: &self.known,
            files: &self.user_files,
            rest: &done,
            baseline: &baseline,
            to: &link.sender(),
            frozen: self.freeze.is_some(),
        };
        search.find().map_err(failed)
    }

    /// Writes down what was looked at, for a later session, which can do without.
    fn keep_looks(&self, host: &Host) {
        let Ok(path) = place(host, &self.id, looked::FILE) else { return };
        let as_they_are = self.listing.mailboxes.iter().filter(|m| m.converted.is_none());
        let looks = as_they_are.filter_map(|mailbox| {
            Some((mailbox.id.as_str(), self.known.get(&mailbox.ordinal)?.looked.as_ref()?))
        });
        if self.journal.is_some()
            && let Err(error) = looked::save(&path, &looks.collect())
        {
            tracing::debug!("{}: {error}", path.display());
        }
    }

    pub(super) fn baseline_path(&self, host: &Host) -> Result<PathBuf, v1::Failure> {
        place(host, &self.id, stragglers::FILE)
    }

    /// A digest of all that the user is, as text.
    pub(super) fn take_snapshot(&self, done: &v1::ScanDone) -> String {
        use prost::Message;
        let mut hasher = blake3::Hasher::new();
        for mailbox in &self.listing.mailboxes {
            hasher.update(&mailbox.entry.raw);
            hasher.update(mailbox.id.as_str().as_bytes());
            if let Some(known) = self.known.get(&mailbox.ordinal) {
                hasher.update(&known.observable);
            }
        }
        let rest = v1::ScanDone {
            user_files: done.user_files.clone(),
            quota_roots: done.quota_roots.clone(),
            annotations: done.annotations.clone(),
            active_sieve: done.active_sieve.clone(),
            ..v1::ScanDone::default()
        };
        hasher.update(&rest.encode_to_vec()).finalize().to_hex().to_string()
    }

    /// The mailboxes of which something is wanted, and where their messages are.
    pub(super) fn wanted<'a>(
        &'a self,
        host: &Host,
        wants: &'a [v1::Want],
    ) -> Result<Vec<(&'a v1::Want, &'a SourceMailbox, mailbox::Places)>, v1::Failure> {
        let one = |want: &'a v1::Want| {
            let mailbox = self.listing.mailboxes.iter().find(|m| m.ordinal == want.mailbox);
            let found = mailbox.and_then(|m| Some((want, m, mailbox::Places::of(host, m)?)));
            found.ok_or_else(|| agent::protocol(format!("mailbox {} was not listed", want.mailbox)))
        };
        wants.iter().map(one).collect()
    }

    pub(super) fn send(
        &mut self,
        host: &Host,
        items: &v1::SendItems,
        link: &Link,
    ) -> Result<v1::SendDone, v1::Failure> {
        self.check_freeze()?;
        let wants = self.wanted(host, &items.wants)?;
        let mut of_user = Vec::new();
        for number in &items.user_files {
            let file = self.user_files.files.get(*number as usize);
            let (kind, _, path) =
                file.ok_or_else(|| agent::protocol("a file of the user that was not listed"))?;
            let base = items.user_bases.iter().find(|base| base.number == *number);
            let difference = base.and_then(|b| self.contents.difference(path, &b.blake3));
            of_user.push(send::user_job(*number, *kind, path.clone(), difference));
        }
        let contents = &self.contents;
        let of_mailboxes = wants.into_iter().flat_map(|(want, mailbox, places)| {
            let meta = mailbox::meta_paths(host, mailbox);
            send::jobs_of(want, mailbox, places, meta, contents)
        });
        let jobs = of_mailboxes.chain(of_user);
        let sender = link.sender().lending(items.lend);
        let mut sent = send::send(
            host,
            &self.listing.mailboxes,
            jobs,
            (items.rate_limit, &self.pace),
            (items.links.then(send::Names::default).as_ref(), items.nice),
            &sender,
        )
        .map_err(|e| v1::Failure::from(crate::agent::LinkError::from(e)))?;
        for (path, blocks) in std::mem::take(&mut sent.files) {
            self.contents.sent(path, blocks);
        }
        let ordinals: BTreeSet<u32> = sent.problems.iter().map(|p| p.mailbox_ordinal).collect();
        let gone = self.listing.mailboxes.iter().filter(|m| ordinals.contains(&m.ordinal));
        let gone: BTreeSet<u32> = gone.filter(|m| m.has_gone(host)).map(|m| m.ordinal).collect();
        sent.problems.retain(|problem| !gone.contains(&problem.mailbox_ordinal));
        // What turned out to be bad is not offered again.
        for problem in &sent.problems {
            if let Some(known) = self.known.get_mut(&problem.mailbox_ordinal)
                && problem.uid > 0
            {
                known.bad.insert(problem.uid);
                known.forget();
                let mut all = self.listing.mailboxes.iter();
                let mailbox = all.find(|m| m.ordinal == problem.mailbox_ordinal);
                if let (Some(old), Some(mailbox)) = (&mut self.old, mailbox) {
                    old.leave_out(&mailbox.entry.name, problem.uid);
                }
            }
        }
        Ok(v1::SendDone { items: sent.items, bytes: sent.bytes, problems: sent.problems })
    }
}

pub(super) fn to_wire(mailbox: &SourceMailbox) -> v1::Mailbox {
    let partition = mailbox.entry.partition.as_ref();
    v1::Mailbox {
        ordinal: mailbox.ordinal,
        name: Bytes::copy_from_slice(mailbox.entry.name.as_bytes()),
        unique_id: mailbox.id.as_str().to_owned(),
        partition: partition.map(|p| p.as_str().to_owned()).unwrap_or_default(),
        deleted: mailbox.deleted,
        name_record: mailbox.entry.raw.clone(),
        id_record: mailbox.id_record.1.clone(),
        index_minor: 0,
    }
}

fn index_minor(host: &Host, mailbox: &SourceMailbox) -> u32 {
    let meta = mailbox::meta_paths(host, mailbox);
    let path = mailbox::path_of(&meta, FileKind::Index);
    path.and_then(|path| {
        let file = File::open(path).ok()?;
        Some(IndexFile::open(&file).ok()?.header().minor)
    })
    .unwrap_or_default()
}
