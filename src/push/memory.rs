//! The memory of an agent that is a child of ours, from which we read its bulk data.

use crate::wire::frame::Lent;
use bytes::Bytes;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::io::{self, IoSliceMut};

/// Payloads of which we know until they can be used again.
const KEPT: usize = 16;

/// A child's memory.
pub struct Memory {
    child: Pid,
    /// What was read last; who has sent the oldest of it needs it no more.
    read: VecDeque<Bytes>,
}

impl Memory {
    /// That of a child which has not been waited for, so that its number is no other's.
    pub fn of(child: u32) -> Self {
        Self { child: Pid::from_raw(child as i32), read: VecDeque::new() }
    }

    /// Reads what the child lends.
    ///
    /// Errors: the child is gone, has nothing there, or the system does not allow it
    /// (`CAP_SYS_PTRACE`, or one user for both).
    pub fn read(&mut self, at: Lent) -> io::Result<Bytes> {
        let is_free = self.read.front().is_some_and(Bytes::is_unique);
        let free = if is_free { self.read.pop_front() } else { None };
        let mut buffer = free.map(Vec::from).unwrap_or_default();
        buffer.resize(at.length, 0);
        let remote = RemoteIoVec { base: at.address as usize, len: at.length };
        let read = process_vm_readv(self.child, &mut [IoSliceMut::new(&mut buffer)], &[remote])?;
        if read < at.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let payload = Bytes::from(buffer);
        self.read.push_back(payload.clone());
        self.read.truncate(KEPT);
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_read_and_what_is_not_there_is_an_error() {
        let mut memory = Memory::of(std::process::id());
        for length in [0, 5, 100_000, 7] {
            let lent: Vec<u8> = (0..length).map(|n| n as u8).collect();
            assert_eq!(memory.read(Lent::of(&lent)).unwrap(), lent);
        }
        assert!(memory.read(Lent { address: 8, length: 16 }).is_err());
        assert!(Memory::of(0x3fff_ffff).read(Lent { address: 8, length: 16 }).is_err());
    }
}
