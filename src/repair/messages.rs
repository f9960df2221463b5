//! Mail that arrived on the wrong server: read there, and appended here by this
//! server's own imapd.

use super::{Session, refused, unchanged};
use crate::agent::{self, Link, LinkError};
use crate::cyrus::config::MetaFile;
use crate::cyrus::guid::Guid;
use crate::cyrus::header::MailboxHeader;
use crate::cyrus::index::{IndexView, Record};
use crate::cyrus::name::MailboxName;
use crate::cyrus::path::Layout;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::host::imap::{Imap, ImapError, Letter, internal_date, is_flag};
use crate::host::imapd::Instance;
use crate::inspect::examine::{self, Found};
use crate::source::mailbox::read_index;
use crate::wire::MAX_MESSAGE;
use crate::wire::v1::{self, failure::Kind};
use bytes::Bytes;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;

/// Bytes of one data frame.
const CHUNK: usize = 256 << 10;

impl Session {
    /// Sends one message.
    pub(super) fn read(
        &mut self,
        host: &Host,
        read: &v1::ReadMessage,
        link: &Link,
    ) -> Result<v1::MessageRead, v1::Failure> {
        let found = examine::find(host, &self.top, &[]).map_err(unchanged)?;
        let wanted = |f: &&Found| {
            let id = f.entry.uniqueid.as_ref().map(|id| id.as_str()).unwrap_or_default();
            f.entry.name.as_bytes() == read.name && id == read.unique_id
        };
        let found = found.iter().find(wanted);
        let found = found.ok_or_else(|| refused("a mailbox that is not here".into()))?;
        let held = self.freeze.is_some();
        let Some((record, flags)) = record(host, found, read.uid, held).map_err(unchanged)? else {
            return Ok(v1::MessageRead { gone: true, ..v1::MessageRead::default() });
        };
        let layout = Layout::new(&host.config);
        let partition = found.entry.partition.as_ref();
        let directory = partition.and_then(|partition| {
            let (name, style) = (&found.entry.name, found.style(host));
            match record.is_archived() {
                true => layout.archive_dir(name, style, partition).ok(),
                false => layout.mailbox_dir(name, style, partition).ok(),
            }
        });
        let path = directory.unwrap_or_default().join(record.file_name());
        let bytes =
            std::fs::read(&path).map_err(|e| unchanged(format!("{}: {e}", path.display())))?;
        let guid = Guid::of(&bytes);
        if record.guid.is_some_and(|its| its != guid) {
            return Err(unchanged(format!("the SHA-1 of {} is not the index's", path.display())));
        }
        let bytes = Bytes::from(bytes);
        let sender = link.sender();
        for at in (0..bytes.len()).step_by(CHUNK) {
            let chunk = bytes.slice(at..bytes.len().min(at + CHUNK));
            sender.data(chunk).map_err(|e| v1::Failure::from(LinkError::from(e)))?;
        }
        Ok(v1::MessageRead {
            gone: false,
            internaldate: record.internaldate.seconds(),
            flags,
            guid: Bytes::copy_from_slice(guid.as_bytes()),
        })
    }

    /// Makes a mailbox, as its owner would.
    pub(super) fn make(&mut self, host: &Host, make: &v1::MakeMailbox) -> Result<(), v1::Failure> {
        let name = self.external(host, &make.name)?;
        let answer = self.imap(host)?.command("CREATE", &[&name]).map_err(failed)?;
        if !answer.ok && !answer.text.contains("already exists") {
            return Err(unchanged(format!(
                "cannot make {}: {}",
                String::from_utf8_lossy(&name),
                answer.text
            )));
        }
        fault::point(Point::MailboxMade);
        Ok(())
    }

    /// Appends one message.
    pub(super) fn append(
        &mut self,
        host: &Host,
        append: &v1::AppendMessage,
        link: &mut Link,
    ) -> Result<v1::MessageAppended, v1::Failure> {
        let mut message = Vec::new();
        while let Some(data) = link.next_data()? {
            if message.len() + data.len() > MAX_MESSAGE {
                return Err(refused("a message of more than a gigabyte".into()));
            }
            message.extend_from_slice(&data);
        }
        if *Guid::of(&message).as_bytes() != *append.guid {
            return Err(agent::protocol("a message that is not the one that was announced"));
        }
        let name = self.external(host, &append.name)?;
        let date = internal_date(append.internaldate)
            .ok_or_else(|| agent::protocol("an impossible date"))?;
        let flags = append.flags.iter().map(AsRef::as_ref).filter(|flag| is_flag(flag)).collect();
        let letter = Letter { flags, date: &date, message: &message };
        let answer = self.imap(host)?.append(&name, &letter).map_err(failed)?;
        if !answer.ok {
            return Err(unchanged(format!(
                "this server's imapd does not take a message into {}: {}",
                String::from_utf8_lossy(&name),
                answer.text
            )));
        }
        fault::point(Point::MessageAppended);
        Ok(v1::MessageAppended { uid: answer.appended(1).first().copied().unwrap_or_default() })
    }

    /// A mailbox of the user as imapd has it.
    fn external(&self, host: &Host, name: &[u8]) -> Result<Vec<u8>, v1::Failure> {
        let name = MailboxName::from_internal(name).map_err(|e| agent::protocol(e.to_string()))?;
        if name != self.top && !name.is_below(&self.top) {
            return Err(agent::protocol("a mailbox of somebody else"));
        }
        let namespace = host.namespace().map_err(|e| unchanged(e.to_string()))?;
        Ok(name.to_external(&namespace))
    }

    /// A session of the owner's, or of an admin for a shared tree.
    fn imap(&mut self, host: &Host) -> Result<&mut Imap, v1::Failure> {
        let instance = match self.imapd.take() {
            Some(instance) => instance,
            None => {
                let directory = self.journal.move_directory(&self.entry.id);
                let mut builder = DirBuilder::new();
                let made = builder.recursive(true).mode(0o700).create(&directory);
                made.map_err(|e| unchanged(format!("{}: {e}", directory.display())))?;
                let owner = self.top.userid();
                let owner = owner.map(|id| String::from_utf8_lossy(id.as_bytes()).into_owned());
                let identity = owner.or_else(|| host.config.admins().into_iter().next());
                Instance::start(host, &directory, &identity.unwrap_or_default())
                    .map_err(|e| unchanged(e.to_string()))?
            }
        };
        Ok(&mut self.imapd.insert(instance).imap)
    }
}

/// What the index says of a message, and its flags; none if it is expunged.
fn record(
    host: &Host,
    found: &Found,
    uid: u32,
    held: bool,
) -> Result<Option<(Record, Vec<Bytes>)>, String> {
    let path = |file| found.file(host, file).ok_or("it has no directory");
    let (index, header) = (path(MetaFile::Index)?, path(MetaFile::Header)?);
    let at = |path: &std::path::Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let (bytes, _lock) = read_index(&index, held).map_err(|e| at(&index, &e))?;
    let view = IndexView::parse(&bytes).map_err(|e| at(&index, &e))?;
    let Some(record) = view.find(uid).map_err(|e| at(&index, &e))? else { return Ok(None) };
    if record.is_expunged() || record.is_unlinked() {
        return Ok(None);
    }
    let names = std::fs::read(&header).map_err(|e| at(&header, &e))?;
    let names = MailboxHeader::parse(&names).map_err(|e| at(&header, &e))?;
    let seen = view.header().shares_seen() || found.entry.name.is_user();
    let flags =
        crate::inventory::flags(&record, &names, seen).map(Bytes::copy_from_slice).collect();
    Ok(Some((record, flags)))
}

fn failed(error: ImapError) -> v1::Failure {
    v1::Failure::new(
        Kind::UnknownOutcome,
        error.to_string(),
        "whether that message was carried over is looked at when it is repaired again",
        "mend the cause and repair again",
    )
}
