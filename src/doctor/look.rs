//! Asking an agent what its server has.

use super::list::{List, Listed};
use super::seen::{Mailbox, Message, Move, Seen, Standing};
use crate::push::peer::{Peer, PeerError};
use crate::wire::frame::Kind;
use crate::wire::printable;
use crate::wire::v1::{self, part::Part, reply::Result as Answer, request::Op};

/// What a server has of a user, and how the user is called.
pub async fn examine(
    peer: &mut Peer,
    ask: v1::Examine,
    known_as: &str,
) -> Result<(Seen, v1::Identity), PeerError> {
    peer.begin(Op::Examine(ask)).await?;
    let mut seen = Seen::default();
    let done = loop {
        let frame = peer.next().await?;
        if frame.kind != Kind::Part {
            match peer.decode_reply(&frame)? {
                Answer::Examined(done) => break done,
                _ => return Err(peer.unexpected("account of what a server has")),
            }
        }
        match frame.decode::<v1::Part>("part").ok().and_then(|part| part.part) {
            Some(Part::SeenMailbox(told)) => take(&mut seen.mailboxes, told),
            _ => return Err(peer.unexpected("account of a mailbox")),
        }
    };
    let welcome = &peer.welcome;
    seen.names = [&welcome.servername, &welcome.hostname].map(|name| printable(name)).into();
    if !known_as.is_empty() {
        seen.names.push(known_as.to_owned());
    }
    seen.version = printable(&welcome.cyrus_version);
    seen.files = done.files().collect();
    seen.quota_roots = done.quota_roots;
    seen.repairable = done.repairable;
    seen.taken = done.taken.into_iter().collect();
    seen.moves = done.moves.iter().map(of_move).collect();
    let in_murder = !done.master.is_empty() || !done.list_trouble.is_empty();
    seen.list = in_murder.then(|| List {
        master: printable(&done.master),
        trouble: printable(&done.list_trouble),
        entries: done.listed.into_iter().map(of_list).collect(),
    });
    Ok((seen, done.identity.unwrap_or_default()))
}

/// Every user of a server, with the states of his records; and why a Murder's list cannot
/// be read, if it cannot.
pub async fn states(peer: &mut Peer) -> Result<(Vec<v1::UserState>, String), PeerError> {
    peer.begin(Op::ListStates(v1::ListStates {})).await?;
    let mut users = Vec::new();
    loop {
        let frame = peer.next().await?;
        if frame.kind != Kind::Part {
            return match peer.decode_reply(&frame)? {
                Answer::StatesListed(end) => Ok((users, printable(&end.list_trouble))),
                _ => Err(peer.unexpected("list of users")),
            };
        }
        match frame.decode::<v1::Part>("part").ok().and_then(|part| part.part) {
            Some(Part::StateList(list)) => users.extend(list.users),
            _ => return Err(peer.unexpected("list of users")),
        }
    }
}

/// Adds what was told; a mailbox with many messages comes in several parts.
fn take(mailboxes: &mut Vec<Mailbox>, told: v1::SeenMailbox) {
    let messages = Message::unpack(&told.messages);
    let goes_on = told.display.is_empty();
    if let Some(last) = mailboxes.last_mut().filter(|m| goes_on && m.name == *told.name) {
        last.messages.extend(messages);
        return;
    }
    mailboxes.push(Mailbox {
        messages: messages.collect(),
        standing: standing(&told),
        name: told.name.into(),
        display: printable(&told.display),
        id: told.unique_id,
        partition: told.partition,
        server: printable(&told.server),
        name_only: told.name_only,
        kept: told.kept,
        original: told.original.into(),
        changed: told.changed,
        modseqs: [told.folder_modseq, told.created_modseq],
        has_index: told.has_index,
        unreadable: printable(&told.unreadable),
        uidvalidity: told.uidvalidity,
        last_uid: told.last_uid,
        bad: told.bad.iter().map(|text| printable(text)).collect(),
    });
}

fn standing(told: &v1::SeenMailbox) -> Standing {
    match told {
        _ if told.unnamed => Standing::Unnamed,
        _ if told.put_away => Standing::PutAway,
        // A place without a directory is as good as none.
        _ if told.deleted && told.has_index => Standing::Deleted,
        _ if told.deleted => Standing::Gone,
        _ if told.reserved => Standing::Reserved,
        _ if told.remote => Standing::Remote,
        _ if told.moving => Standing::Moving,
        _ => Standing::Live,
    }
}

fn of_list(told: v1::Listed) -> Listed {
    Listed {
        name: told.name.into(),
        display: printable(&told.display),
        server: printable(&told.server),
        reserved: told.reserved,
    }
}

fn of_move(told: &v1::MoveRecord) -> Move {
    Move {
        id: printable(&told.move_id),
        role: told.role(),
        peer: printable(&told.peer),
        state: printable(&told.state),
        updated: told.updated_unix_ms,
        repair: !told.detail.is_empty(),
    }
}
