//! Further channels for bulk data. sshd lets no more than 2 MiB be under way on each, which on
//! a far way is less than fits on it.
//!
//! Each is one more command on the connection, `mbcopy agent --lane NAME`, which hands its
//! standard input over to the agent and does nothing else.

use super::{Link, LinkError};
use crate::moves::MoveId;
use crate::wire::LANE_OPENING;
use crate::wire::frame::{FrameReader, Kind};
use crate::wire::pool::Pool;
use bytes::Bytes;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lanes that may be there at the same time: sshd allows ten commands on a connection.
const MOST: usize = 9;

/// How long whoever connects may take to hand over what it has.
const HAND_OVER: Duration = Duration::from_secs(10);

/// The lanes of one agent.
pub struct Lanes {
    name: String,
    attached: Arc<Mutex<BTreeMap<u32, Lane>>>,
}

/// A channel for bulk data.
pub struct Lane {
    /// Not read from yet.
    fresh: Option<(File, Pool)>,
    input: Option<FrameReader<File>>,
    number: u32,
    /// Whether what is being stored has ended here.
    ended: bool,
    /// The command that the channel belongs to ends when this does.
    _command: UnixStream,
}

impl Lanes {
    /// Waits for lanes from now on; their data frames use the pool's buffers.
    ///
    /// Errors: the system has no such socket.
    pub fn listen(pool: &Pool) -> io::Result<Self> {
        let name = format!("mbcopy-{}", MoveId::random());
        let listener = UnixListener::bind_addr(&address(&name)?)?;
        let attached = Arc::new(Mutex::new(BTreeMap::new()));
        let (lanes, pool) = (Arc::clone(&attached), pool.clone());
        std::thread::Builder::new().name("lanes".into()).spawn(move || {
            for (stream, number) in listener.incoming().flatten().filter(is_ours).zip(1..) {
                let (lanes, pool) = (Arc::clone(&lanes), pool.clone());
                // Whoever is slow keeps nobody else waiting.
                let attach = move || {
                    if let Err(error) = attach(stream, number, pool, &lanes) {
                        tracing::debug!("a lane did not come: {error}");
                    }
                };
                if number as usize > MOST || std::thread::Builder::new().spawn(attach).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { name, attached })
    }

    /// Where lanes are waited for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Takes those lanes, for what is stored now; `None` if one of them is not there.
    pub fn take(&self, numbers: &[u32]) -> Option<Vec<Lane>> {
        let mut lanes = lock(&self.attached);
        numbers.iter().map(|number| Some(Lane { ended: false, ..lanes.remove(number)? })).collect()
    }

    /// Puts lanes back that will be used again, after reading what a failed request has left.
    ///
    /// Errors: a channel is broken, and none of them is of use any more.
    pub fn put(&self, mut lanes: Vec<Lane>, link: &mut Link) -> Result<(), LinkError> {
        // At once, since the coordinator waits for each of them.
        std::thread::scope(|scope| {
            let left = lanes.iter_mut().filter(|lane| !lane.ended);
            let left: Vec<_> = left.map(|lane| scope.spawn(|| lane.skip_rest())).collect();
            let mut skipped = if left.is_empty() { Ok(()) } else { link.skip_rest() };
            for lane in left {
                skipped = skipped.and(lane.join().unwrap_or(Err(LinkError::Gone)));
            }
            skipped
        })?;
        lock(&self.attached).extend(lanes.into_iter().map(|lane| (lane.number, lane)));
        Ok(())
    }
}

impl Lane {
    /// The next data frame's payload; `None` at the end of what is stored.
    ///
    /// Errors: the channel has ended, or brings something else.
    pub fn next_data(&mut self) -> Result<Option<Bytes>, LinkError> {
        if let Some((file, pool)) = self.fresh.take() {
            self.input = Some(FrameReader::open(file, pool)?);
        }
        match self.input.as_mut().ok_or(LinkError::Gone)?.next_frame()? {
            Some(frame) if frame.kind == Kind::Data => {
                self.ended = frame.payload.is_empty();
                Ok(Some(frame.payload).filter(|payload| !payload.is_empty()))
            }
            Some(frame) => Err(LinkError::OutOfTurn(frame.kind)),
            None => Err(LinkError::Gone),
        }
    }

    fn skip_rest(&mut self) -> Result<(), LinkError> {
        while self.next_data()?.is_some() {}
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(name)
}

/// Any local user could connect: only root and this process's own count.
fn is_ours(stream: &UnixStream) -> bool {
    let peer = rustix::net::sockopt::socket_peercred(stream);
    peer.is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid())
}

fn attach(
    stream: UnixStream,
    number: u32,
    pool: Pool,
    lanes: &Mutex<BTreeMap<u32, Lane>>,
) -> io::Result<()> {
    stream.set_read_timeout(Some(HAND_OVER))?;
    let file = receive(&stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut tells = stream.try_clone()?;
    let fresh = Some((file.into(), pool));
    let lane = Lane { fresh, input: None, number, ended: true, _command: stream };
    lock(lanes).insert(number, lane);
    // Whoever has heard the number may use it.
    tells.write_all(&number.to_be_bytes())
}

/// The file that comes over a socket.
fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [IoSliceMut::new(&mut byte)];
    rustix::net::recvmsg(stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => Some(files),
        _ => None,
    });
    Ok(rights.flatten().next())
}

fn send(stream: &UnixStream, file: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let files = [file];
    control.push(SendAncillaryMessage::ScmRights(&files));
    rustix::net::sendmsg(stream, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What a further channel's command does: hands its input over to the agent that waits under
/// that name, tells by its output which lane it is, and stays until the agent ends.
///
/// Errors: no such agent is there, or it does not want us.
pub fn hand_over(name: &str, input: impl AsFd, output: &mut impl Write) -> io::Result<()> {
    let mut agent = UnixStream::connect_addr(&address(name)?)?;
    send(&agent, input.as_fd())?;
    drop(input);
    let mut number = [0; 4];
    agent.read_exact(&mut number)?;
    output.write_all(LANE_OPENING)?;
    output.write_all(&number)?;
    output.flush()?;
    agent.read_to_end(&mut Vec::new()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Frame, OPENING};

    #[test]
    fn an_input_that_is_handed_over_brings_frames_until_its_end() {
        let lanes = Lanes::listen(&Pool::default()).unwrap();
        assert!(lanes.take(&[1]).is_none());
        let (input, mut writer) = io::pipe().unwrap();
        let (output, mut says) = io::pipe().unwrap();
        let name = lanes.name().to_owned();
        let command = std::thread::spawn(move || hand_over(&name, input, &mut says));
        let mut said = [0; LANE_OPENING.len() + 4];
        (&output).read_exact(&mut said).unwrap();
        assert_eq!(said, *[&LANE_OPENING[..], &[0, 0, 0, 1]].concat());
        writer.write_all(OPENING).unwrap();
        for payload in [&b"abc"[..], b""] {
            let frame = Frame::data(7, Bytes::from_static(payload));
            writer.write_all(&frame.encode()).unwrap();
        }
        let mut taken = lanes.take(&[1]).unwrap();
        let lane = &mut taken[0];
        assert_eq!(lane.next_data().unwrap().unwrap(), b"abc"[..]);
        assert_eq!(lane.next_data().unwrap(), None);
        drop(writer);
        assert!(matches!(lane.next_data(), Err(LinkError::Gone)));
        drop(taken);
        command.join().unwrap().unwrap();
    }
}
