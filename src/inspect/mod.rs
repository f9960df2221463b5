//! The inspecting agent: tells what a server has of a user, and changes
//! nothing. Either server runs one when copies are compared.

mod copy;
mod data;
pub(crate) mod examine;
mod messages;
mod pulse;
mod tops;

use crate::agent::{self, Handler, Link, LinkError};
use crate::cyrus::name::MailboxName;
use crate::host::Host;
use crate::wire::v1::{self, failure::Kind, reply::Result as Answer, request::Op};
use copy::Copy;

/// Mailboxes of one part of a list.
const LIST_PART: usize = 1000;

/// Tells what this server has.
pub struct Inspector {
    host: Host,
    /// The user that was asked for.
    top: Option<MailboxName>,
    copy: Option<Copy>,
    /// This process keeps everybody from the user: the locks of indexes may be its own.
    pub(crate) holds_user: bool,
}

impl Inspector {
    /// The agent of this server.
    pub fn new(host: Host) -> Self {
        Self { host, top: None, copy: None, holds_user: false }
    }
}

impl Handler for Inspector {
    fn welcome(&mut self, hello: &v1::Hello) -> Result<v1::Welcome, v1::Failure> {
        match hello.role() {
            v1::Role::Inspect => Ok(self.host.welcome()),
            _ => Err(agent::protocol("this agent only tells what it has; it moves nothing")),
        }
    }

    fn handle(&mut self, op: Op, link: &mut Link) -> Result<Answer, v1::Failure> {
        match op {
            Op::Inspect(inspect) => self.inspect(&inspect).map(Answer::UserCopies),
            Op::OpenCopy(open) => self.open(&open, link).map(Answer::CopyOpened),
            Op::InspectScan(scan) => self.scan(&scan, link).map(Answer::Inspected),
            Op::ListTops(list) => {
                tops::tell(&self.host, list.sizes, &link.sender()).map(Answer::TopsListed)
            }
            Op::FeelPulse(ask) => pulse::feel(&self.host, &ask).map(Answer::Pulse),
            Op::Examine(examine) => {
                let top = self.top(&examine.mailbox, &examine.name)?;
                let (host, held) = (&self.host, self.holds_user);
                examine::tell(host, &top, &examine.ids, held, &link.sender()).map(Answer::Examined)
            }
            Op::ListStates(_) => {
                examine::states(&self.host, &link.sender()).map(Answer::StatesListed)
            }
            _ => Err(agent::unknown_request()),
        }
    }
}

impl Inspector {
    /// The user or shared tree that is meant, by what was typed or its internal name.
    fn top(&self, typed: &str, name: &[u8]) -> Result<MailboxName, v1::Failure> {
        let host = &self.host;
        let top = match name.is_empty() {
            true => crate::source::top_of(host, typed)?,
            false => MailboxName::from_internal(name)
                .map_err(|e| agent::protocol(format!("the name of the mailbox: {e}")))?,
        };
        let shown = host.external(&top);
        if !host.allows(&top) {
            return Err(refused(
                format!("this agent is not allowed to tell of {shown}"),
                "look at --allow in the authorized_keys of that server",
            ));
        }
        if top.is_user() && top.inbox().as_ref() != Some(&top) {
            return Err(refused(
                format!("{shown} is a folder of a user; a user is looked at as a whole"),
                "name the user's top mailbox: user.x",
            ));
        }
        Ok(top)
    }

    fn inspect(&mut self, inspect: &v1::Inspect) -> Result<v1::UserCopies, v1::Failure> {
        let top = self.top(&inspect.mailbox, &inspect.name)?;
        let host = &self.host;
        let copies = copy::of_user(host, &top)?;
        let identity = v1::Identity {
            name: bytes::Bytes::copy_from_slice(top.as_bytes()),
            userid: String::new(),
            display: host.external(&top),
        };
        self.top = Some(top);
        self.copy = None;
        Ok(v1::UserCopies { identity: Some(identity), copies })
    }

    fn open(&mut self, open: &v1::OpenCopy, link: &Link) -> Result<v1::CopyOpened, v1::Failure> {
        let top = self.top.as_ref().ok_or_else(|| agent::protocol("a copy of nobody"))?;
        let copy = Copy::open(&self.host, top, open)?;
        let sender = link.sender();
        let send = |list| sender.part(v1::part::Part::CopyList(list)).map_err(gone);
        let mut mailboxes = data::mailboxes(&copy).map_err(unreadable)?;
        while !mailboxes.is_empty() {
            let rest = mailboxes.split_off(mailboxes.len().min(LIST_PART));
            send(v1::CopyList { mailboxes, groups: Vec::new() })?;
            mailboxes = rest;
        }
        for group in data::user(&copy) {
            send(v1::CopyList { mailboxes: Vec::new(), groups: vec![group] })?;
        }
        self.copy = Some(copy);
        Ok(v1::CopyOpened {})
    }

    fn scan(&mut self, scan: &v1::InspectScan, link: &Link) -> Result<v1::Inspected, v1::Failure> {
        let copy = self.copy.as_ref().ok_or_else(|| agent::protocol("a copy was not opened"))?;
        for ordinal in &scan.mailboxes {
            let mailbox = copy
                .listing
                .mailboxes
                .get(*ordinal as usize)
                .ok_or_else(|| agent::protocol("a mailbox that was not listed"))?;
            messages::tell(copy, mailbox, scan.content, &link.sender()).map_err(gone)?;
        }
        Ok(v1::Inspected {})
    }
}

fn gone(error: std::io::Error) -> v1::Failure {
    LinkError::from(error).into()
}

fn refused(text: String, advice: &str) -> v1::Failure {
    v1::Failure::new(Kind::Refused, text, "nothing was changed", advice)
}

fn unreadable(text: String) -> v1::Failure {
    v1::Failure::new(
        Kind::Internal,
        text,
        "nothing was changed",
        "mend it on that server, and compare again",
    )
}
