//! Proving to the target that messages are here which others of the run have, too: it links
//! them then, and they are not sent.

use super::{Session, agent, mailbox, send};
use crate::host::Host;
use crate::wire::v1;
use bytes::Bytes;
use std::io::{self, Read};

impl Session {
    /// BLAKE3 of each message under the target's key; what cannot be read is left out, and
    /// is told of when it is sent.
    pub(super) fn prove_contents(
        &self,
        host: &Host,
        ask: &v1::ProveContents,
    ) -> Result<v1::ContentsProven, v1::Failure> {
        self.check_freeze()?;
        let key: [u8; 32] =
            ask.key.as_ref().try_into().map_err(|_| agent::protocol("a key of another length"))?;
        let mut proofs = Vec::new();
        for (want, mailbox, places) in self.wanted(host, &ask.wants)? {
            let (meta, nothing) = (mailbox::meta_paths(host, mailbox), Default::default());
            let messages = v1::Want { files: Vec::new(), ..want.clone() };
            for job in send::jobs_of(&messages, mailbox, places, meta, &nothing) {
                if let Ok(blake3) = job.open().and_then(|file| keyed(&key, file)) {
                    let blake3 = Bytes::copy_from_slice(blake3.as_bytes());
                    proofs.push(v1::Proof { mailbox: want.mailbox, uid: job.uid, blake3 });
                }
            }
        }
        Ok(v1::ContentsProven { proofs })
    }
}

fn keyed(key: &[u8; 32], file: impl Read) -> io::Result<blake3::Hash> {
    Ok(blake3::Hasher::new_keyed(key).update_reader(file)?.finalize())
}
