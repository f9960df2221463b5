//! Putting aside what is on the wrong server: it is retired, as a move would.

use super::{Session, unchanged};
use crate::agent;
use crate::cyrus::config::MetaFile;
use crate::cyrus::mboxlist::MailboxList;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::inspect::examine::{self, Found};
use crate::moves::journal::{Entry, state};
use crate::source::inventory::Listing;
use crate::source::retire::{RetireError, Retirement, sends_to};
use crate::source::sessions;
use crate::wire::v1::{self, failure::Kind};

impl Session {
    /// Puts all that is here of the user aside, and sends his clients to `server`; or
    /// ends what an interrupted repair has begun. The user is held.
    pub(super) fn put_aside(
        &mut self,
        host: &Host,
        aside: &v1::PutAside,
    ) -> Result<v1::PutAsideDone, v1::Failure> {
        let freeze = self.freeze.take().ok_or_else(|| agent::protocol("nobody is held"))?;
        let over = || {
            v1::Failure::new(
                Kind::Limit,
                "the user was kept waiting for too long",
                "nothing was put aside",
                "repair again",
            )
        };
        let done = freeze.pinned(|| self.retire(host, aside));
        drop(freeze);
        done.unwrap_or_else(|| Err(over()))
    }

    fn retire(
        &mut self,
        host: &Host,
        aside: &v1::PutAside,
    ) -> Result<v1::PutAsideDone, v1::Failure> {
        if let Some(before) = self.put_aside_before()? {
            return self.finish(host, before);
        }
        let mut listing = left(host, self, &aside.ids).map_err(unchanged)?;
        with_id_records(host, &mut listing).map_err(unchanged)?;
        let mailboxes = listing.mailboxes.len() as u32;
        if mailboxes == 0 {
            return Ok(v1::PutAsideDone { mailboxes });
        }
        let id = self.entry.id.clone();
        let planned = Retirement::new(host, &listing, &id, &sends_to(host, &aside.server));
        let planned = planned.map_err(|e| unchanged(e.to_string()))?;
        if let Some(path) = planned.crossings().first() {
            return Err(unchanged(format!(
                "{} is on another filesystem than its root, and cannot be put aside",
                path.display()
            )));
        }
        planned.save(host, &id).map_err(|e| unchanged(e.to_string()))?;
        self.record(state::RETIRING)?;
        fault::point(Point::RetireBegun);
        self.execute(host, &planned)?;
        Ok(v1::PutAsideDone { mailboxes })
    }

    fn execute(&mut self, host: &Host, planned: &Retirement) -> Result<(), v1::Failure> {
        planned.execute(host).map_err(half_way)?;
        self.record(state::RETIRED)?;
        fault::point(Point::Retired);
        sessions::tell(host, &self.top);
        self.record(state::DONE)
    }

    /// A repair that stopped while it put aside.
    fn put_aside_before(&self) -> Result<Option<Entry>, v1::Failure> {
        let begun = [state::RETIRING, state::RETIRED];
        Ok(self.unfinished()?.filter(|entry| begun.contains(&entry.state.as_str())))
    }

    /// Ends a repair that stopped: forward if its transaction has happened.
    fn finish(&mut self, host: &Host, before: Entry) -> Result<v1::PutAsideDone, v1::Failure> {
        self.entry = before;
        let planned = Retirement::load(host, &self.entry.id).map_err(half_way)?;
        if planned.has_happened(host).map_err(half_way)? {
            self.execute(host, &planned)?;
        } else {
            planned.take_back().map_err(half_way)?;
            self.record(state::ABORTED)?;
        }
        Ok(v1::PutAsideDone { mailboxes: 0 })
    }
}

fn half_way(error: RetireError) -> v1::Failure {
    v1::Failure::new(
        Kind::UnknownOutcome,
        error.to_string(),
        "the user is whole on the other server; what this one has is not put aside completely",
        "mend the cause and repair again",
    )
}

/// All that is left here of the user: what clients can use, and what nothing leads to.
fn left(host: &Host, session: &Session, ids: &[String]) -> Result<Listing, String> {
    let found = examine::find(host, &session.top, ids)?;
    let here = |found: &&Found| {
        let index = found.file(host, MetaFile::Index).is_some_and(|path| path.exists());
        let nothing = found.entry.mbtype.has(Flag::Deleted) || found.unnamed;
        !found.is_put_away() && (index || !nothing)
    };
    let mut listing = examine::listing(host, &session.top, found.iter().filter(here));
    // Up to 3.4 directories are renamed first.
    listing.converted = (!host.keeps_by_id()).then(Default::default);
    Ok(listing)
}

fn with_id_records(host: &Host, listing: &mut Listing) -> Result<(), String> {
    let database = host.mailboxes().map_err(|e| e.to_string())?;
    let list = MailboxList::from_database(&database).map_err(|e| e.to_string())?;
    for mailbox in &mut listing.mailboxes {
        if let Some(record) = list.id_record(&mailbox.id).map_err(|e| e.to_string())? {
            mailbox.id_record = record;
        }
    }
    Ok(())
}
