//! What comes is staged, and this server's Cyrus looks at it.

use super::asked::MailboxWants;
use super::base::Base;
use super::by_name::View;
use super::carry::{CarryError, Carrying};
use super::earlier::{self, Earlier};
use super::offer::{Checked, OfferError};
use super::receive::{Intake, Writers};
use super::shadow::Shadow;
use super::share::Share;
use super::stage::Stage;
use super::staged::Listing;
use super::sync::Syncing;
use super::{
    Session, carry, check, convert, internal, plan, remove_stage, settle, stage, sync, this_release,
};
use crate::agent::lanes::Lane;
use crate::agent::{self, Link, LinkError};
use crate::cyrus::index::IndexFile;
use crate::cyrus::name::PartitionName;
use crate::cyrus::path::{DirStyle, Layout};
use crate::host::{Host, priority};
use crate::moves::verdict::has_user;
use crate::wire::v1::{self, failure::Kind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

impl Session {
    pub(super) fn offer(
        &mut self,
        host: &Host,
        link: &mut Link,
        last: bool,
    ) -> Result<v1::Wants, v1::Failure> {
        self.writable()?;
        if !self.staged {
            self.inventory.take_up(&self.stage, this_release(host).ok());
            self.staged = true;
        }
        self.stage
            .make(&host.config)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        let mut wants: BTreeMap<u32, MailboxWants> = BTreeMap::new();
        let mut listing = Listing::default();
        while let Some(part) = link.next_part()? {
            let taken = match part {
                v1::part::Part::Table(table) => {
                    let check = |m: &v1::Mailbox| {
                        let checked = check(&self.top, &self.partitions, host, m)?;
                        self.base.as_ref().map_or(Ok(()), |base| {
                            seed(host, &self.stage, base, &checked)
                                .map_err(|e| OfferError::Layout(e.to_string()))
                        })?;
                        Ok(checked)
                    };
                    self.inventory.table(&self.stage, table, check)
                }
                v1::part::Part::MailboxScan(scan) => {
                    let wants = wants.entry(scan.mailbox).or_default();
                    match self.inventory.mailboxes.get_mut(&scan.mailbox) {
                        Some(mailbox) => {
                            if let Some(share) = self.share.as_mut().filter(|_| !last) {
                                share.offered(host, mailbox, &scan);
                            }
                            mailbox.scan_part(&scan, &mut listing, wants)
                        }
                        None => Err(OfferError::Nonsense(format!(
                            "a scan of mailbox {}, which it did not list",
                            scan.mailbox
                        ))),
                    }
                }
                v1::part::Part::ScanDone(done) => self.inventory.scan_done(&self.stage, done),
                _ => Err(OfferError::Nonsense("something else within a scan".into())),
            };
            taken.map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        }
        // Proving takes time that a freeze has not.
        self.wants(host, wants, !last)
    }

    /// Links what the source has proven to have, too; what is left to be sent.
    pub(super) fn take_shared(
        &mut self,
        host: &Host,
        take: &v1::TakeShared,
    ) -> Result<v1::Wants, v1::Failure> {
        self.writable()?;
        if let Some(share) = &mut self.share {
            let taken = share.take(host, &self.inventory, &take.proofs);
            self.inventory.arrived(&taken, &[]);
        }
        self.wants(host, BTreeMap::new(), true)
    }

    /// Asks for what is new and for what has not come yet.
    fn wants(
        &mut self,
        host: &Host,
        mut wants: BTreeMap<u32, MailboxWants>,
        share: bool,
    ) -> Result<v1::Wants, v1::Failure> {
        // Also of those of which nothing new was told.
        for (ordinal, mailbox) in &mut self.inventory.mailboxes {
            mailbox.want_again(wants.entry(*ordinal).or_default());
        }
        wants.retain(|_, wants| !wants.is_empty());
        self.check_room(host, &wants)?;
        let user_files = self.inventory.wanted_user_files();
        let asked = self
            .inventory
            .asked(&self.stage, &wants, &user_files)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        let to_wire = |(ordinal, wants): (&u32, &MailboxWants)| {
            wants.to_wire(*ordinal, asked.bases(*ordinal))
        };
        let ask = |share: &mut Share| share.ask(&self.inventory, &wants);
        let prove = self.share.as_mut().filter(|_| share).and_then(ask);
        let answer = v1::Wants {
            prove,
            links: true,
            messages: wants.values().map(|w| w.messages.len() as u64).sum(),
            bytes: wants.values().fold(0, |all, wants| all.saturating_add(wants.bytes())),
            wants: wants.iter().map(to_wire).collect(),
            user_bases: self.inventory.user_bases(&self.stage, &user_files),
            user_files,
        };
        self.unchanged = wants.is_empty() && answer.user_files.is_empty();
        self.asked = Some(Arc::new(asked));
        for (ordinal, wants) in wants {
            if let Some(mailbox) = self.inventory.mailboxes.get_mut(&ordinal) {
                mailbox.remember(wants);
            }
        }
        Ok(answer)
    }

    /// Refuses to ask for more than the partitions have room for.
    pub(super) fn check_room(
        &self,
        host: &Host,
        wants: &BTreeMap<u32, MailboxWants>,
    ) -> Result<(), v1::Failure> {
        let mut bytes: BTreeMap<&PartitionName, u64> = BTreeMap::new();
        for (ordinal, wants) in wants {
            let Some(mailbox) = self.inventory.mailboxes.get(ordinal) else { continue };
            let sum = bytes.entry(&mailbox.partition).or_default();
            *sum = sum.saturating_add(wants.bytes());
        }
        plan::room_for(host, &bytes).map_err(|text| {
            v1::Failure::new(
                Kind::Internal,
                text,
                "the source serves the user; what arrived before is kept in the stage",
                "make room and run the same push again",
            )
        })
    }

    /// Hears what has reached the source since the user was published here.
    pub(super) fn offer_stragglers(
        &mut self,
        host: &Host,
        link: &mut Link,
    ) -> Result<v1::Wants, v1::Failure> {
        self.writable()?;
        if !has_user(&self.entry.state) {
            return Err(agent::protocol("stragglers of a user who was not published"));
        }
        let mut offer = carry::Offer::default();
        while let Some(part) = link.next_part()? {
            match part {
                v1::part::Part::StragglerMailbox(part) => {
                    let mailbox = part.mailbox.clone().unwrap_or_default();
                    let checked = check(&self.top, &self.partitions, host, &mailbox);
                    let checked = checked.map_err(|e| agent::protocol(e.to_string()))?;
                    offer.mailbox(part, checked).map_err(|e| not_carried(&e))?;
                }
                v1::part::Part::StragglersFound(found) => offer.found(found),
                _ => return Err(agent::protocol("something else among stragglers")),
            }
        }
        let carrying = Carrying::begin(host, &self.stage, &self.top, offer);
        let carrying = carrying.map_err(|e| not_carried(&e))?;
        let (wants, asked) = carrying.wants().map_err(|e| not_carried(&e))?;
        (self.asked, self.unchanged) = (Some(asked), false);
        self.carrying = Some(carrying);
        Ok(wants)
    }

    /// Carries over what was offered, and whose messages have arrived.
    pub(super) fn carry(&mut self, host: &Host) -> Result<v1::Carried, v1::Failure> {
        let mut carrying = self
            .carrying
            .take()
            .ok_or_else(|| agent::protocol("carrying over what was not offered"))?;
        carrying.run(host, &self.top).map_err(|e| not_carried(&e))
    }

    pub(super) fn store(
        &mut self,
        host: &Host,
        link: &mut Link,
        store: &v1::Store,
        lanes: &mut [Lane],
    ) -> Result<v1::Stored, v1::Failure> {
        self.writable()?;
        let asked =
            self.asked.take().ok_or_else(|| agent::protocol("bulk data that was not asked for"))?;
        let broken = |text: String| {
            v1::Failure::new(
                Kind::Internal,
                text,
                "the source serves the user; what arrived before is kept in the stage",
                "mend the cause and run the same push again",
            )
        };
        let writers =
            Writers::start(&asked, &link.pool(), store.nice).map_err(|e| broken(e.to_string()))?;
        // What is asked for is all that can come.
        let durable = store.durable && !self.unchanged;
        if durable {
            self.syncing = Some(Syncing::start(self.synced_roots(), self.syncing.take()));
        }
        let intake = Intake::new(&writers, link.sender());
        let shadow = std::thread::scope(|scope| -> Result<_, v1::Failure> {
            // Built while the first files come: later it would wait for their sync.
            let first = durable && self.shadow.is_none();
            let (stage, inventory) = (&self.stage, &self.inventory);
            let building =
                first.then(|| scope.spawn(|| Shadow::build(host, stage, inventory).ok()));
            let lanes: Vec<_> = lanes
                .iter_mut()
                .map(|lane| scope.spawn(|| intake.take_all(|| lane.next_data())))
                .collect();
            let mut taken = intake.take_all(|| link.next_data());
            for lane in lanes {
                taken = taken.and(lane.join().unwrap_or(Err(LinkError::Gone)));
            }
            taken?;
            Ok(building.and_then(|thread| thread.join().ok()?))
        })?;
        let failed = intake.failure();
        self.shadow = shadow.or(self.shadow.take());
        let mut received = match (writers.finish(), failed) {
            (Ok(received), None) => received,
            // The writers' own error is the cause of one in handing over.
            (Err(error), _) | (Ok(_), Some(error)) => return Err(broken(error.to_string())),
        };
        let left = received.link(&*asked);
        let messages: usize = received.messages.values().map(Vec::len).sum();
        if let Some(share) = &mut self.share {
            share.came(&received.linked);
        }
        self.inventory.arrived(&received.messages, &received.files);
        self.inventory.torn(&received.torn);
        if let Ok(release) = this_release(host) {
            // What fails may have been read while it changed; it comes again, or the
            // settlement says so.
            convert::all(&self.stage, &mut self.inventory, release);
        }
        if store.durable && !store.copy_only {
            settle::look_ahead(&self.stage, &mut self.inventory);
        }
        if let Some(syncing) = &mut self.syncing {
            syncing.all_is_there();
        }
        Ok(v1::Stored {
            items: (messages + received.files.len()) as u64,
            bytes: received.bytes,
            problems: Vec::new(),
            torn: received.torn.len() as u64 + left,
        })
    }

    /// Puts the whole stage onto stable storage. A failure is final for what
    /// was written: what it has left in the cache looks right and is not.
    pub(super) fn sync(&mut self) -> Result<(), v1::Failure> {
        let before = self.syncing.take().map_or(Ok(()), Syncing::finish);
        before.and_then(|()| sync::all(&self.synced_roots())).map_err(|text| {
            remove_stage(&self.stage);
            internal(text, "the source serves the user; what was copied is thrown away")
        })
    }

    pub(super) fn synced_roots(&self) -> Vec<PathBuf> {
        self.stage.roots().into_iter().filter(|root| root.is_dir()).collect()
    }

    pub(super) fn rehearse(
        &mut self,
        host: &Host,
        rehearse: &v1::Rehearse,
    ) -> Result<v1::Rehearsed, v1::Failure> {
        // Of a copy that goes no further: a move has its shadow made before the freeze.
        if rehearse.copy_only && rehearse.skipped.is_empty() && self.inventory.is_as_earlier() {
            return Ok(v1::Rehearsed::default());
        }
        let shadow = self.current_shadow(host)?;
        let view = self.view(host)?;
        self.convert_indexes(host)?;
        if rehearse.skipped.is_empty() {
            let changing = self.inventory.mailboxes.values().filter(|m| !m.is_consistent());
            let changing: Vec<_> = changing.map(|m| host.external(&m.name)).collect();
            let examine = || {
                if rehearse.nice {
                    priority::yield_to_others();
                }
                shadow.examine(host, &self.stage, &self.tool_names, &changing)
            };
            // Of its own, since a thread that yields does so for good.
            let examined = std::thread::scope(|scope| scope.spawn(examine).join());
            let failed = |e: String| internal(e, "the source serves the user");
            examined
                .map_err(|_| failed("the examination has died".into()))?
                .map_err(|e| failed(e.to_string()))?;
        }
        self.shadow = Some(shadow);
        drop(view);
        // Nothing of this is left to do under the freeze.
        let failed = |e: std::io::Error| {
            let text = format!("cannot write down what is staged: {e}");
            internal(text, "the source serves the user; what was copied is kept in the stage")
        };
        let taken = earlier::now_of_files(&self.stage).map_err(failed)?;
        self.sync()?;
        let accepted = this_release(host).ok().filter(|_| rehearse.skipped.is_empty());
        Earlier::save(&self.stage, &self.inventory, taken, accepted).map_err(failed)?;
        if let Some(share) = &mut self.share {
            share.give(host, &self.inventory);
        }
        Ok(v1::Rehearsed::default())
    }

    /// The stage as Cyrus's programs of this server look for mailboxes.
    pub(super) fn view(&self, host: &Host) -> Result<View, v1::Failure> {
        let view = View::make(host, &self.stage, &self.inventory);
        view.map_err(|e| internal(format!("the shadow: {e}"), "the source serves the user"))
    }

    /// Makes sure that everything is in the form of this server's Cyrus.
    pub(super) fn converted(&mut self, host: &Host) -> Result<(), v1::Failure> {
        let release = this_release(host)?;
        match convert::all(&self.stage, &mut self.inventory, release).first() {
            None => Ok(()),
            Some(failed) => Err(internal(
                format!(
                    "{} is not as this server's Cyrus keeps it: {}",
                    failed.what, failed.reason
                ),
                "the source serves the user",
            )),
        }
    }

    /// The shadow of the mailboxes as they are now.
    pub(super) fn current_shadow(&mut self, host: &Host) -> Result<Shadow, v1::Failure> {
        match self.shadow.take().filter(|shadow| shadow.is_of(host, &self.inventory)) {
            Some(shadow) => Ok(shadow),
            None => self.build_shadow(host),
        }
    }

    /// Has this server's Cyrus bring staged indexes of older versions to its own:
    /// such a repack keeps what clients see, and makes the cache of old ones anew.
    pub(super) fn convert_indexes(&self, host: &Host) -> Result<(), v1::Failure> {
        let failed = |text: String| internal(text, "nothing was changed but the stage");
        let newest = this_release(host)?.index;
        let older = || -> Result<Option<String>, String> {
            for mailbox in self.inventory.mailboxes.values().filter(|m| !m.name_only) {
                let directory = mailbox.meta_directory(&self.stage, v1::FileKind::Index);
                let file = directory.map_err(|e| e.to_string())?.open("cyrus.index");
                let file = match file {
                    // It has not come yet.
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                    file => file.map_err(|e| format!("cyrus.index: {e}"))?,
                };
                let index = match IndexFile::open(&file) {
                    // Read while Cyrus was writing: it comes again.
                    Err(_) if !mailbox.files_complete() => continue,
                    index => index.map_err(|e| format!("cyrus.index: {e}"))?,
                };
                if index.header().minor < newest {
                    return Ok(Some(mailbox.name.display()));
                }
            }
            Ok(None)
        };
        if older().map_err(failed)?.is_none() {
            return Ok(());
        }
        let said = settle::to_own_version(host, &self.stage, &self.tool_names).map_err(failed)?;
        match older().map_err(failed)? {
            None => Ok(()),
            Some(name) => Err(failed(format!(
                "this server's Cyrus has not brought the index of {name} to its version: {said}"
            ))),
        }
    }

    pub(super) fn build_shadow(&self, host: &Host) -> Result<Shadow, v1::Failure> {
        Shadow::build(host, &self.stage, &self.inventory)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))
    }
}

/// Links what is kept of a mailbox into the stage, the first time.
pub(super) fn seed(
    host: &Host,
    stage: &Stage,
    base: &Base,
    mailbox: &Checked,
) -> std::io::Result<()> {
    let dirs = |config, style| {
        let layout = Layout::new(config);
        layout.mailbox_dirs(&mailbox.name, style, &mailbox.partition)
    };
    let staged = dirs(&stage.config, DirStyle::Id(&mailbox.id));
    let (Ok(staged), Ok(live)) = (staged, dirs(&host.config, host.style(&mailbox.id))) else {
        return Ok(());
    };
    let places: BTreeSet<_> = staged.into_iter().zip(live).collect();
    for ((root, staged), (_, live)) in places.into_iter().filter(|((_, at), _)| !at.exists()) {
        let relative = staged.strip_prefix(&root).unwrap_or(&staged);
        base.seed(&live, &stage::StagedDirectory::make(&root, relative)?)?;
    }
    Ok(())
}

pub(super) fn not_carried(error: &CarryError) -> v1::Failure {
    v1::Failure::new(
        Kind::Internal,
        format!("what has reached the source since cannot be carried over: {error}"),
        "the target serves the user; the source's copy is not retired yet",
        "mend the cause and run the same push again: nothing is carried over twice",
    )
}
