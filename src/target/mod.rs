//! The target agent: stages what comes, has this server's Cyrus look at it,
//! and publishes it.

mod announce;
mod archive;
mod asked;
mod base;
mod begin;
mod by_name;
mod carry;
mod convert;
mod dav;
mod earlier;
mod features;
mod fill;
mod offer;
mod own_index;
mod plan;
mod publish;
mod quota;
mod receive;
mod settle;
mod shadow;
pub(crate) mod share;
pub(crate) mod stage;
mod staged;
mod sync;
mod user_files;

pub use plan::{crossing, programs};
pub use stage::OUR_DIRECTORY;

use crate::agent::lanes::Lanes;
use crate::agent::{self, Handler, Link};
use crate::cyrus::lock::opens_take_user_lock;
use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::name::{MailboxName, PartitionName, UniqueId};
use crate::cyrus::release::Release;
use crate::fault::{self, Point, Sabotage, sabotaged};
use crate::host::userlock::UserLock;
use crate::host::{Host, indexlock};
use crate::moves::journal::{Entry, Hold, JournalError, now_ms, state};
use crate::moves::verdict::{has_user, route_is_changed};
use crate::moves::{Journal, sealed};
use crate::murder;
use crate::wire::pool::Pool;
use crate::wire::v1::{self, failure::Kind, reply::Result as Answer, request::Op};
use base::Base;
use carry::Carrying;
use offer::{Checked, Inventory, OfferError};
use publish::{Changed, Publication};
use receive::Expected;
use shadow::{Shadow, Top};
use share::Share;
use stage::Stage;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sync::Syncing;

/// How long the lock of the user is waited for; nobody should hold it, since
/// the user does not exist here.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How long a delivery may be on its way here after the route was restored: a mail
/// server looks the route up just before it connects.
const ON_THE_WAY: Duration = Duration::from_secs(5);

/// Cyrus's programs without which nobody can be published.
const PROGRAMS: [&str; 3] = ["cyr_dbtool", "ctl_cyrusdb", "reconstruct"];

/// What the journal says of a user whom clients have used here since he was published,
/// wherever the route leads: as after its change, the move goes forward, or what came
/// here would be lost.
const USED: &str = state::ROUTING;

/// The target's side of one move.
pub struct Target {
    host: Host,
    session: Option<Session>,
    /// Further channels for bulk data.
    lanes: Option<Lanes>,
}

/// A move that this agent works on.
struct Session {
    top: MailboxName,
    tool_names: Top,
    entry: Entry,
    journal: Option<Journal>,
    _hold: Option<Hold>,
    partitions: BTreeMap<String, PartitionName>,
    stage: Stage,
    inventory: Inventory,
    asked: Option<Arc<dyn Expected>>,
    shadow: Option<Shadow>,
    publication: Option<Publication>,
    /// What is kept here of an earlier time of the user.
    base: Option<Base>,
    /// Held between the two steps of taking a publication back.
    withdrawing: Option<UserLock>,
    /// Since when those who are still on their way here are deferred.
    deferring: Option<Instant>,
    /// What puts the stage onto stable storage in the background.
    syncing: Option<Syncing>,
    /// Whether this session has begun to stage.
    staged: bool,
    /// Whether nothing was asked for last.
    unchanged: bool,
    /// What has reached the source since and is to be carried over.
    carrying: Option<Carrying>,
    /// What is shared with others of the same run.
    share: Option<Share>,
}

impl Target {
    /// The agent of this server.
    pub fn new(host: Host) -> Self {
        Self { host, session: None, lanes: None }
    }

    /// The name under which further channels find this agent; none if they cannot.
    fn wait_for_lanes(&mut self, pool: &Pool) -> String {
        if self.lanes.is_none() {
            self.lanes = Lanes::listen(pool)
                .inspect_err(|error| tracing::debug!("no further channels: {error}"))
                .ok();
        }
        self.lanes.as_ref().map_or(String::new(), |lanes| lanes.name().to_owned())
    }
}

impl Handler for Target {
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure> {
        match hello.role() {
            v1::Role::Target => Ok(self.host.welcome()),
            _ => Err(agent::protocol("this agent is the target of moves, not the source")),
        }
    }

    fn handle(&mut self, op: Op, link: &mut Link) -> Result<Answer, v1::Failure> {
        match &op {
            Op::PlanTarget(plan) => {
                let mut planned = self.plan(plan)?;
                if plan.lanes {
                    planned.lanes = self.wait_for_lanes(&link.pool());
                }
                return Ok(Answer::TargetPlan(planned));
            }
            Op::Attach(attach) => return self.attach(attach).map(Answer::Attached),
            Op::EndSharing(end) => {
                let ended = share::forget(&self.host, Some(&end.run));
                let ended = ended.map_err(|e| internal(e.to_string(), "nobody's mail is touched"));
                return ended.map(|()| Answer::SharingEnded(v1::SharingEnded {}));
            }
            _ => {}
        }
        let host = &self.host;
        let session = self
            .session
            .as_mut()
            .ok_or_else(|| agent::protocol("a step of a move that was not planned"))?;
        match op {
            Op::Offer(offer) => session.offer(host, link, offer.r#final).map(Answer::Wants),
            Op::TakeShared(take) => session.take_shared(host, &take).map(Answer::Wants),
            Op::Store(store) => {
                let lanes = match &self.lanes {
                    Some(lanes) => lanes.take(&store.lanes),
                    None => store.lanes.is_empty().then(Vec::new),
                };
                let unknown = || agent::protocol("a channel for bulk data that is not there");
                let mut taken = lanes.ok_or_else(unknown)?;
                let stored = session.store(host, link, &store, &mut taken);
                let put = self.lanes.as_ref().map_or(Ok(()), |lanes| lanes.put(taken, link));
                let stored = stored?;
                put.map(|()| Answer::Stored(stored)).map_err(v1::Failure::from)
            }
            Op::Rehearse(rehearse) => session.rehearse(host, &rehearse).map(Answer::Rehearsed),
            Op::Settle(settle) => session.settle(host, &settle).map(Answer::Prepared),
            Op::Publish(_) => session.publish(host).map(Answer::Published),
            Op::OfferStragglers(_) => session.offer_stragglers(host, link).map(Answer::Wants),
            Op::Carry(_) => session.carry(host).map(Answer::Carried),
            Op::Unpublish(step) => session.unpublish(host, step.hold).map(Answer::Unpublished),
            Op::TakeRoute(_) => session.take_route(host).map(Answer::RouteTaken),
            Op::Record(record) => {
                session.record(&record.state)?;
                Ok(Answer::Recorded(v1::Recorded {}))
            }
            Op::HoldMail(hold) => {
                session.entry.set_mail_held(hold.held);
                let state = session.entry.state.clone();
                session.record(&state)?;
                Ok(Answer::Recorded(v1::Recorded {}))
            }
            Op::PlanOldServer(plan) => {
                let problems = plan::proxies(host, &plan.authname).into_iter().collect();
                Ok(Answer::OldServerPlan(v1::OldServerPlan { problems, ..Default::default() }))
            }
            Op::Finish(finish) => session.finish(host, finish.done).map(Answer::Finished),
            _ => Err(agent::unknown_request()),
        }
    }
}

impl Session {
    fn settle(&mut self, host: &Host, settle: &v1::Settle) -> Result<v1::Prepared, v1::Failure> {
        self.writable()?;
        self.converted(host)?;
        let mut prepared = match sabotaged(Sabotage::PublishBeforeCompare) {
            true => v1::Prepared::default(),
            false => settle::compare(&self.stage, &mut self.inventory, &settle.skipped),
        };
        if prepared.problems.iter().any(|p| p.severity() == v1::problem::Severity::Refuse) {
            return Ok(prepared);
        }
        if !settle.skipped.is_empty() {
            let _view = self.view(host)?;
            prepared.problems.extend(settle::drop_skipped(
                host,
                &self.stage,
                &self.tool_names,
                &self.inventory,
            ));
        }
        let shadow = self.current_shadow(host)?;
        prepared.problems.extend(dav::make(host, &self.stage, &self.inventory, &self.tool_names));
        let adopted = quota::adopt(host, &self.stage, &self.inventory, &self.top);
        prepared.problems.extend(adopted.map_err(|e| internal(e, "the source serves the user"))?);
        let release = this_release(host)?;
        prepared.problems.extend(settle::unknown_scripts(&self.stage, &self.inventory, release));
        let ends = (&self.top, self.entry.peer.as_str());
        let publication = settle::user_databases(host, &self.stage, &self.inventory)
            .and_then(|()| settle::publication(host, &self.stage, &self.inventory, &shadow, ends))
            .and_then(|publication| match &self.base {
                Some(base) => {
                    publication.over(host, base, (&self.stage, &self.inventory), &self.top)
                }
                None => Ok(publication),
            })
            .map_err(|e| internal(e, "the source serves the user"))?;
        self.shadow = Some(shadow);
        self.inventory.forget_as_sent(&self.stage);
        self.sync()?;
        sealed::save(&self.stage.publication(), &publication)
            .map_err(|e| internal(e.to_string(), "the source serves the user"))?;
        self.publication = Some(publication);
        self.entry.set_note(&String::from_utf8_lossy(&settle.snapshot));
        self.record(state::PREPARED)?;
        Ok(prepared)
    }

    fn publish(&mut self, host: &Host) -> Result<v1::Published, v1::Failure> {
        let publication = self
            .publication
            .clone()
            .ok_or_else(|| agent::protocol("publishing what was not prepared"))?;
        let lock = lock(host, &self.top)?;
        let began = Instant::now();
        self.refuse_newcomer(host, &publication)?;
        self.record(state::PUBLISHING)?;
        fault::point(Point::PublishBegun);
        if let Err(error) = publication.execute(host) {
            let unknown = matches!(error, publish::PublishError::Unknown { .. });
            // Before the commit everything goes back, so that the failure is plain.
            let undone = if unknown { Err(error.to_string()) } else { self.take_back(host, &lock) };
            return Err(match undone {
                Ok(()) => v1::Failure::new(
                    Kind::Internal,
                    format!("publishing failed: {error}"),
                    "the source serves the user; this server shows nothing of him",
                    "mend the cause and run the same push again",
                ),
                Err(also) => v1::Failure::new(
                    Kind::UnknownOutcome,
                    format!("publishing failed: {error}; taking it back failed too: {also}"),
                    "the source serves the user",
                    "run the same push again: it asks this server",
                ),
            });
        }
        fault::point(Point::PublishCommitted);
        self.record(state::PUBLISHED)?;
        fault::point(Point::PublishRecorded);
        drop(lock);
        Ok(v1::Published {
            locked_us: began.elapsed().as_micros() as u64,
            mailboxes: self.inventory.mailboxes.len() as u32,
        })
    }

    /// Points mupdate at this server. Nobody may make or delete a mailbox meanwhile.
    fn take_route(&self, host: &Host) -> Result<v1::RouteTaken, v1::Failure> {
        let _lock = lock(host, &self.top)?;
        murder::take(host, &self.top)
    }

    fn take_back(&mut self, host: &Host, lock: &UserLock) -> Result<(), String> {
        let publication = self.publication.clone().ok_or("there is no plan of it")?;
        publication.undo(host, lock, false).map_err(|e| e.to_string())?;
        self.record(state::PREPARED).map_err(|f| f.text)
    }

    fn unpublish(&mut self, host: &Host, hold: bool) -> Result<v1::Unpublished, v1::Failure> {
        if self.deferring.is_some() {
            return self.stop_deferring(host).map(|()| v1::Unpublished {});
        }
        let lock = match self.withdrawing.take() {
            Some(lock) => lock,
            None => lock_published(host, &self.top, self.publication.as_ref())?,
        };
        let unknown = |text: String| {
            v1::Failure::new(
                Kind::UnknownOutcome,
                text,
                "both servers have a copy of the user",
                "look at this server's copy before anything else",
            )
        };
        let publication = self
            .publication
            .clone()
            .ok_or_else(|| agent::protocol("taking back what was not published"))?;
        match publication.changed_since(host, &self.top).map_err(|e| unknown(e.to_string()))? {
            None => {}
            Some(Changed::Unreadable(text)) => return Err(unknown(text)),
            Some(Changed::Used(what)) => {
                let name = host.external(&self.top);
                if !route_is_changed(&self.entry.state) {
                    self.record(USED)?;
                }
                return Err(v1::Failure::new(
                    Kind::UnknownOutcome,
                    format!("{what} has changed on this server since it was published"),
                    "both servers have the user, and clients have used him on the target",
                    format!(
                        "finish the move, which keeps what came to either: mbcopy resume {name}; \
                         mbcopy reverse {name} moves him back then"
                    ),
                ));
            }
        }
        if hold {
            self.withdrawing = Some(lock);
            return Ok(v1::Unpublished {});
        }
        // The route may have led here until a moment ago.
        let defer = [state::ROUTING, state::ROUTED].contains(&self.entry.state.as_str());
        self.record(state::UNPUBLISHING)?;
        publication.undo(host, &lock, defer).map_err(|e| unknown(e.to_string()))?;
        self.deferring = defer.then(Instant::now);
        self.record(state::PREPARED)?;
        drop(lock);
        // What was replaced is there again.
        self.base = self
            .journal
            .as_ref()
            .map_or(Ok(None), |journal| Base::find(host, journal, self.top.as_bytes()))
            .map_err(|e| journal_failure(&e))?;
        Ok(v1::Unpublished {})
    }

    /// Somebody may have made the user since preflight: an autocreate, an admin.
    /// And no record of anybody else may be overwritten, whatever the source says.
    fn refuse_newcomer(&self, host: &Host, publication: &Publication) -> Result<(), v1::Failure> {
        let failed = |e: String| internal(e, "the source serves the user");
        let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
        let list = MailboxList::from_database(&database).map_err(|e| failed(e.to_string()))?;
        let owned = list
            .owned(&self.top, &host.config.deletedprefix())
            .map_err(|e| failed(e.to_string()))?;
        let newcomer = owned
            .iter()
            .filter(|e| !publication.replaces(e))
            .find(|e| !e.is_deleted() && (e.name == self.top || e.name.is_below(&self.top)))
            .map(|e| host.external(&e.name));
        let taken = || -> Result<Option<String>, v1::Failure> {
            for (key, _) in &publication.records {
                let Some(id) = key.strip_prefix(b"I").and_then(|id| UniqueId::new(id).ok()) else {
                    continue;
                };
                let named = list.name_of_id(&id).map_err(|e| failed(e.to_string()))?;
                let ours = |name: &MailboxName| {
                    publication.records.iter().any(|(k, _)| *k == name_key(name))
                };
                let Some(name) = named.filter(|name| !ours(name)) else { continue };
                let entry = list.get(&name).map_err(|e| failed(e.to_string()))?;
                if !entry.is_some_and(|entry| publication.replaces(&entry)) {
                    return Ok(Some(host.external(&name)));
                }
            }
            Ok(None)
        };
        match newcomer.map_or_else(taken, |name| Ok(Some(name)))? {
            None => Ok(()),
            Some(name) => Err(v1::Failure::new(
                Kind::Refused,
                format!("{name} came into being on this server while the user was copied"),
                "the source serves the user and is unchanged",
                "switch autocreate off on this server, delete the new mailbox, and push again",
            )),
        }
    }

    /// Ends the move and removes its stage: never while the stage may be the
    /// only copy here, or while what was published has not been taken back.
    fn finish(&mut self, host: &Host, done: bool) -> Result<v1::Finished, v1::Failure> {
        let here = self.has_user(host)?;
        if done != here && (done || began_to_publish(&self.entry.state)) {
            return Err(v1::Failure::new(
                Kind::Refused,
                format!(
                    "ending the move as {} while {} {} on this server",
                    if done { state::DONE } else { state::ABORTED },
                    host.external(&self.top),
                    if here { "is" } else { "is not" }
                ),
                "the stage is kept",
                "run the same push again",
            ));
        }
        self.stop_deferring(host)?;
        let notes = if done { announce::announce(host, &self.top) } else { Vec::new() };
        self.record(if done { state::DONE } else { state::ABORTED })?;
        remove_stage(&self.stage);
        Ok(v1::Finished { notes })
    }

    /// Once nobody can be on his way here any more, he is as unknown as before.
    fn stop_deferring(&mut self, host: &Host) -> Result<(), v1::Failure> {
        let (Some(since), Some(publication)) = (self.deferring.take(), &self.publication) else {
            return Ok(());
        };
        std::thread::sleep(ON_THE_WAY.saturating_sub(since.elapsed()));
        let _lock = lock(host, &self.top)?;
        let stopped = publication.stop_deferring(host);
        stopped.map(drop).map_err(|e| internal(e.to_string(), "the source serves the user"))
    }

    /// Whether this server's Cyrus has the user.
    fn has_user(&self, host: &Host) -> Result<bool, v1::Failure> {
        let failed = |e: String| internal(e, "the stage is kept");
        let database = host.mailboxes().map_err(|e| failed(e.to_string()))?;
        let list = MailboxList::from_database(&database).map_err(|e| failed(e.to_string()))?;
        let top = list.get(&self.top).map_err(|e| failed(e.to_string()))?;
        Ok(top.is_some_and(|entry| !entry.is_deleted() && entry.server.is_none()))
    }

    fn record(&mut self, state: &str) -> Result<(), v1::Failure> {
        let Some(journal) = &self.journal else {
            return Err(agent::protocol("a change in a move that is only planned"));
        };
        self.entry.state = state.into();
        self.entry.updated = now_ms();
        journal.write(&self.entry).map_err(|e| journal_failure(&e))
    }

    fn writable(&self) -> Result<(), v1::Failure> {
        match self.journal {
            Some(_) => Ok(()),
            None => Err(agent::protocol("a change in a move that is only planned")),
        }
    }
}

/// What this server's Cyrus does.
fn this_release(host: &Host) -> Result<&'static Release, v1::Failure> {
    host.release().map(Release::of).ok_or_else(|| {
        let text = "the version of this server's Cyrus cannot be told";
        internal(text, "nothing was changed")
    })
}

/// The key of a mailbox's record, in the form of 3.6 and later.
fn name_key(name: &MailboxName) -> Vec<u8> {
    [b"N", name.to_db_key().as_slice()].concat()
}

/// Takes this server's own lock on the user.
fn lock(host: &Host, top: &MailboxName) -> Result<UserLock, v1::Failure> {
    host.user_lock_path(top)
        .and_then(|path| UserLock::take(&[path], LOCK_WAIT))
        .map_err(|e| internal(e.to_string(), "the source serves the user"))
}

/// Keeps everybody waiting who wants to open what was published.
fn lock_published(
    host: &Host,
    top: &MailboxName,
    publication: Option<&Publication>,
) -> Result<UserLock, v1::Failure> {
    let opens = host.release().is_none_or(opens_take_user_lock);
    let Some(publication) = publication.filter(|_| !opens) else {
        return lock(host, top);
    };
    let paths = || {
        let paths = publication.indexes.iter().map(|(path, _)| path.path().to_owned());
        Ok(paths.filter(|path| path.exists()).collect())
    };
    host.user_lock_path(top)
        .and_then(|user| indexlock::take(&[user], &paths, LOCK_WAIT))
        .map_err(|e| internal(e.to_string(), "the source serves the user"))
}

/// Checks what the source says of a mailbox: it must lie in the moved tree.
fn check(
    top: &MailboxName,
    partitions: &BTreeMap<String, PartitionName>,
    host: &Host,
    mailbox: &v1::Mailbox,
) -> Result<Checked, OfferError> {
    let nonsense = |text: String| OfferError::Nonsense(text);
    let name = MailboxName::from_internal(&mailbox.name)
        .map_err(|e| nonsense(format!("a mailbox with an impossible name: {e}")))?;
    let id = UniqueId::new(mailbox.unique_id.as_bytes())
        .map_err(|e| nonsense(format!("a mailbox with an impossible id: {e}")))?;
    let original = name.deleted_original(&host.config.deletedprefix()).map(|(name, _)| name);
    let inside = |n: &MailboxName| n == top || n.is_below(top);
    let deleted_inside = mailbox.deleted && original.as_ref().is_some_and(inside);
    if !inside(&name) && !deleted_inside {
        return Err(nonsense(format!("{}, which is not part of the move", name.display())));
    }
    let partition = partitions
        .get(&mailbox.partition)
        .or_else(|| partitions.values().next())
        .cloned()
        .ok_or_else(|| nonsense("a mailbox on no partition".into()))?;
    Ok(Checked { name, id, partition })
}

/// Removes a stage. What cannot be removed harms nobody, and is tried again.
fn remove_stage(stage: &Stage) {
    for root in stage.roots() {
        let _ = std::fs::remove_dir_all(&root);
        // Our directory above it goes when no other move uses it.
        if let Some(parent) = root.parent() {
            let _ = std::fs::remove_dir(parent);
        }
        // Durable, or a power cut brings it back when no journal knows of it any more.
        let above = root.ancestors().skip(1).find(|above| above.is_dir());
        let _ = above.map(|above| std::fs::File::open(above).and_then(|d| d.sync_all()));
    }
}

fn internal(text: impl Into<String>, state: &str) -> v1::Failure {
    v1::Failure::new(Kind::Internal, text, state, "mend the cause and run the same push again")
}

fn journal_failure(error: &JournalError) -> v1::Failure {
    let kind = match error {
        JournalError::Held { .. } => Kind::Busy,
        _ => Kind::Internal,
    };
    v1::Failure::new(
        kind,
        error.to_string(),
        "nothing was changed by this step",
        match kind {
            Kind::Busy => "wait until that move ends, or stop it",
            _ => "mend the journal's directory and run the same push again",
        },
    )
}

/// Whether this server has the user, or may have parts of him in place.
fn began_to_publish(state: &str) -> bool {
    [state::PUBLISHING, state::UNPUBLISHING].contains(&state) || has_user(state)
}
