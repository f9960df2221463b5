//! What passes between the two agents, through the coordinator.

use super::peer::Peer;
use super::trouble::Trouble;
use super::window::Window;
use super::{Push, monitor};
use crate::moves::Server;
use crate::wire::bulk::Chunk;
use crate::wire::frame::Kind;
use crate::wire::v1::{self, FileKind, reply::Result as Answer, request::Op};
use std::time::{Duration, Instant};

/// How often who waits for his turn looks whether he is to stop.
const A_MOMENT: Duration = Duration::from_millis(200);

impl Push<'_> {
    /// Has the target compare what the source has now with what it holds.
    pub(super) async fn compare(&mut self, last: bool) -> Result<v1::Wants, Trouble> {
        self.source.begin(Op::Scan(v1::Scan { everything: false })).await?;
        self.target.begin(Op::Offer(v1::Offer { r#final: last })).await?;
        let done = loop {
            let frame = self.source.next().await?;
            match frame.kind {
                Kind::Part => self.target.relay(Kind::Part, frame.payload).await?,
                Kind::Reply => match self.source.decode_reply(&frame) {
                    Ok(Answer::ScanDone(done)) => break done,
                    Ok(_) => return Err(self.source.unexpected("scan").into()),
                    Err(error) => {
                        // End the target's half too, so that it stays usable.
                        self.target.part(None).await?;
                        let _ = self.target.reply().await;
                        return Err(error.into());
                    }
                },
                _ => return Err(self.source.unexpected("scan").into()),
            }
        };
        self.count(&done.totals.unwrap_or_default());
        self.problems(Server::Source, &done.problems);
        self.snapshot = done.snapshot.clone();
        self.target.part(Some(v1::part::Part::ScanDone(done))).await?;
        self.target.part(None).await?;
        match self.target.reply().await? {
            Answer::Wants(wants) => Ok(wants),
            _ => Err(self.target.unexpected("list of what is wanted").into()),
        }
    }

    /// Sends what the target wants; how many files it wants once more, and whole, since
    /// patches did not make them what they are.
    pub(super) async fn send(&mut self, wants: v1::Wants, durable: bool) -> Result<u64, Trouble> {
        let lanes = self.target.lanes.begin(wants.bytes).await;
        let mut window = Window::over(1 + lanes.len());
        let nice = self.options.nice && self.frozen_at.is_none();
        let copy_only = self.options.copy_only;
        self.target.begin(Op::Store(v1::Store { durable, lanes, nice, copy_only })).await?;
        self.source
            .begin(Op::SendItems(v1::SendItems {
                wants: wants.wants,
                user_files: wants.user_files,
                user_bases: wants.user_bases,
                lend: self.source.is_readable(),
                links: wants.links,
                nice,
                rate_limit: if self.options.line.is_some() { 0 } else { self.options.rate_limit },
            }))
            .await?;
        let done = loop {
            if self.frozen_at.is_none() {
                self.stop_if_asked()?;
            }
            let frame = self.source.next().await?;
            match frame.kind {
                Kind::Data if !frame.payload.is_empty() => {
                    self.progress(frame.payload.clone());
                    self.await_turn(frame.payload.len() as u64).await;
                    window.send(frame.payload.len() as u64, Instant::now());
                    self.target.bulk(frame.payload).await?;
                    while window.is_full() {
                        window.receive(self.receipt().await?, Instant::now());
                    }
                }
                Kind::Reply => break self.source.decode_reply(&frame),
                _ => return Err(self.source.unexpected("bulk data").into()),
            }
        };
        self.target.end_bulk().await?;
        let stored = loop {
            let frame = self.target.next().await?;
            if frame.kind == Kind::Reply {
                break self.target.decode_reply(&frame)?;
            }
        };
        let Answer::SendDone(done) = done? else {
            return Err(self.source.unexpected("end of bulk data").into());
        };
        let Answer::Stored(stored) = stored else {
            return Err(self.target.unexpected("receipt").into());
        };
        self.problems(Server::Source, &done.problems);
        self.problems(Server::Target, &stored.problems);
        Ok(stored.torn)
    }

    /// Waits until so many bytes may be sent. Whoever is frozen does not wait, but counts.
    async fn await_turn(&self, bytes: u64) {
        if let Some(line) = &self.options.line {
            let wait = line.take(bytes);
            let until = Instant::now() + wait;
            while self.frozen_at.is_none() && self.stop_if_asked().is_ok() {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                tokio::time::sleep(left.min(A_MOMENT)).await;
            }
        }
    }

    /// How much the target has taken of what is being sent, in bytes.
    pub(super) async fn receipt(&mut self) -> Result<u64, Trouble> {
        let frame = self.target.next().await?;
        match (frame.kind, frame.decode::<v1::Part>("receipt").ok().and_then(|p| p.part)) {
            (Kind::Part, Some(v1::part::Part::Received(received))) => Ok(received.bytes),
            _ => Err(self.target.unexpected("receipt").into()),
        }
    }

    pub(super) fn progress(&mut self, mut payload: bytes::Bytes) {
        while let Ok(chunk) = Chunk::decode(&mut payload) {
            self.report.bytes_sent += chunk.bytes.len() as u64;
            if i32::from(chunk.kind) == i32::from(FileKind::Message) {
                // It may be compressed.
                self.message_bytes += if chunk.last { chunk.size } else { 0 };
                self.report.messages_sent += u64::from(chunk.last && !chunk.gone);
            }
        }
        self.monitor.event(monitor::Event::Progress {
            messages: self.report.messages_sent,
            bytes: self.message_bytes,
        });
    }

    pub(super) async fn record(&mut self, server: Server, state: &str) -> Result<(), Trouble> {
        let op = self.record_op(state);
        let peer = self.peer(server);
        match peer.call(op).await? {
            Answer::Recorded(_) => Ok(()),
            _ => Err(peer.unexpected("receipt of the journal").into()),
        }
    }

    pub(super) fn record_op(&self, state: &str) -> Op {
        let route_command = self.options.route_command.is_some();
        Op::Record(v1::Record { state: state.into(), route_command, murder_route: self.murder })
    }

    pub(super) async fn record_both(&mut self, state: &str) -> Result<(), Trouble> {
        self.record(Server::Target, state).await?;
        self.record(Server::Source, state).await
    }

    pub(super) async fn finish(&mut self, server: Server, done: bool) -> Result<(), Trouble> {
        match self.peer(server).call(Op::Finish(v1::Finish { done })).await? {
            Answer::Finished(finished) => {
                finished.notes.iter().for_each(|text| self.note(crate::wire::printable(text)));
                Ok(())
            }
            _ => Err(self.peer(server).unexpected("end").into()),
        }
    }

    pub(super) fn peer(&mut self, server: Server) -> &mut Peer {
        match server {
            Server::Source => &mut self.source,
            Server::Target => &mut self.target,
        }
    }
}
