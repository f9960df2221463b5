//! The admin's own commands around the freeze: one has the MTA hold the user's mail, the
//! other lets it flow again.
//!
//! Both journals say that mail is held before the first is run, and go on to say so until
//! the second has succeeded. So whatever dies in between, the next command on the move
//! runs it, and `status` says that it is due.

use super::peer::Peer;
use super::report::Outcome;
use super::route::{Change, Place};
use super::trouble::Trouble;
use super::{Options, Push, report};
use crate::fault::{self, Point};
use crate::moves::Server;
use crate::wire::v1::{self, reply::Result as Answer, request::Op};

impl Push<'_> {
    /// Runs the freeze command.
    ///
    /// Errors: it failed. Mail may be held in part: the thaw command is due.
    pub(super) async fn hold_mail(&mut self) -> Result<(), Trouble> {
        let Some(command) = &self.options.freeze_command else { return Ok(()) };
        for server in [Server::Source, Server::Target] {
            note(self.peer(server), true).await?;
        }
        self.mail_held = true;
        fault::point(Point::HoldNoted);
        self.change().named("freeze").run(command, self.options.hold_timeout).await?;
        fault::point(Point::MailHeld);
        Ok(())
    }

    /// Runs the thaw command, if it is due.
    ///
    /// Errors: it failed, or is not known. It remains due.
    pub(super) async fn release_mail(&mut self) -> Result<(), Trouble> {
        if !self.mail_held {
            return Ok(());
        }
        self.change().named("thaw").run(known(self.options)?, self.options.hold_timeout).await?;
        fault::point(Point::MailReleased);
        self.mail_held = false;
        let again = "the next command on this move runs the thaw command again";
        if self.broken {
            self.note(format!("mail is not held any more; the journals do not know: {again}"));
            return Ok(());
        }
        for server in [Server::Source, Server::Target] {
            if let Err(error) = note(self.peer(server), false).await {
                self.note(format!("mail is not held any more, but {error}: {again}"));
            }
        }
        Ok(())
    }

    /// The same at the end of a push that did not come to the end of the move: that it
    /// fails is told beside what has failed already, and that there is something to do.
    pub(super) async fn let_mail_flow(&mut self) {
        if let Err(trouble) = self.release_mail().await {
            self.note(format!("mail may still be held: {trouble}"));
            self.report.outcome = Outcome::Resumable;
        }
    }
}

impl Change {
    /// The same, told to another of the admin's commands.
    fn named(&self, action: &'static str) -> Self {
        Self { action, ..self.clone() }
    }
}

/// Lets mail flow that an earlier push has held, where the move itself cannot go on: the
/// other server is not reached. What could not be done is told.
pub(super) async fn release_alone(
    options: &Options,
    source: &mut Peer,
    plan: &v1::SourcePlan,
) -> Option<String> {
    if !plan.mail_held {
        return None;
    }
    let place = |server: &str, host: &str| Place { server: server.into(), host: host.into() };
    let change = Change {
        schema: report::SCHEMA,
        move_id: crate::wire::printable(&plan.move_id),
        user: plan.identity.clone().unwrap_or_default().userid,
        mailbox: options.mailbox.clone(),
        old: place(&source.welcome.servername, &source.welcome.hostname),
        new: place(&options.destination, &options.destination),
        action: "thaw",
    };
    let run = async {
        change.run(known(options)?, options.hold_timeout).await?;
        Ok::<(), Trouble>(note(source, false).await?)
    };
    match run.await {
        Ok(()) => Some("an earlier push held mail: it flows again".into()),
        Err(trouble) => Some(format!("mail may still be held: {trouble}")),
    }
}

fn known(options: &Options) -> Result<&str, Trouble> {
    options.thaw_command.as_deref().ok_or_else(|| {
        Trouble::Refused(
            "an earlier push holds mail by its freeze command, and the thaw command is missing \
             now: give the same --freeze-command and --thaw-command"
                .into(),
        )
    })
}

async fn note(peer: &mut Peer, held: bool) -> Result<(), super::peer::PeerError> {
    match peer.call(Op::HoldMail(v1::HoldMail { held })).await? {
        Answer::Recorded(_) => Ok(()),
        _ => Err(peer.unexpected("receipt of the journal")),
    }
}
