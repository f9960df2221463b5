//! Bulk data that the coordinator, whose child this agent is, reads from the agent's memory: a
//! pipe would copy it twice, and take pages for it.

use bytes::Bytes;
use std::collections::VecDeque;
use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Payloads that are lent at the same time; as much as the pipe would hold.
const MOST: usize = 4;

/// What is lent. It stays as it is until it is returned.
#[derive(Default)]
pub struct Loans {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lent: VecDeque<Bytes>,
    returned: VecDeque<Bytes>,
    /// The coordinator has closed its side.
    gone: bool,
}

impl Loans {
    /// Waits until there is room, keeps the payload, and has `tell` say where it is; an
    /// earlier one that has come back.
    ///
    /// Errors: the coordinator is gone.
    pub fn lend(
        &self,
        payload: Bytes,
        tell: impl FnOnce(&[u8]) -> io::Result<()>,
    ) -> io::Result<Option<Bytes>> {
        let mut state = self.state();
        while state.lent.len() >= MOST && !state.gone {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.gone {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.lent.push_back(payload.clone());
        let back = state.returned.pop_front();
        drop(state);
        tell(&payload)?;
        Ok(back)
    }

    /// The oldest has come back; whether anything was lent.
    pub fn returned(&self) -> bool {
        let mut state = self.state();
        let Some(payload) = state.lent.pop_front() else { return false };
        state.returned.push_back(payload);
        self.changed.notify_all();
        true
    }

    /// Nothing will come back any more.
    pub fn end(&self) {
        self.state().gone = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lend(loans: &Loans, byte: u8) -> io::Result<Option<Bytes>> {
        loans.lend(Bytes::copy_from_slice(&[byte]), |_| Ok(()))
    }

    #[test]
    fn what_comes_back_is_handed_out_in_order_and_whoever_is_gone_is_not_waited_for() {
        let loans = Loans::default();
        assert!(!loans.returned());
        for byte in 0..MOST as u8 {
            assert_eq!(lend(&loans, byte).unwrap(), None);
        }
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| lend(&loans, 9));
            assert!(loans.returned());
            assert_eq!(waits.join().unwrap().unwrap().unwrap(), [0][..]);
            let waits = scope.spawn(|| lend(&loans, 10));
            loans.end();
            assert_eq!(waits.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        });
    }
}
