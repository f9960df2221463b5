//! Further channels to the target, where the way is so long that one, of which sshd lets
//! 2 MiB be under way, would not fill it.

use super::peer::{self, Streams};
use super::window::CHANNEL;
use crate::transport::{Session, TransportError};
use crate::wire::frame::{Kind, MAX_NOISE, OPENING};
use crate::wire::{LANE_OPENING, bulk::Chunk};
use bytes::Bytes;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// The speed that all channels together are to reach, in bytes per second.
const SPEED: f64 = 250e6;

/// Most further channels: sshd allows ten commands on a connection, as it comes.
const MOST: usize = 7;

/// Less is not worth another channel, in bytes.
const LEAST: u64 = 4 << 20;

/// How long what is to be sent waits for the channels, once it is known.
const PATIENCE: Duration = Duration::from_secs(2);

/// The further channels of one connection.
#[derive(Default)]
pub struct Lanes {
    /// How they are opened, until it is tried.
    way: Option<Way>,
    opening: JoinSet<Vec<Lane>>,
    open: Vec<Lane>,
    /// How many of them take part in what is sent now.
    used: usize,
    turn: usize,
}

/// What it takes to start another command on the connection.
struct Way {
    session: Session,
    words: Vec<String>,
    round_trip: JoinHandle<Result<Duration, TransportError>>,
}

/// One of them.
struct Lane {
    number: u32,
    streams: Streams,
}

impl Lanes {
    /// Those that `words...`, followed by the agent's name for them, opens on a connection;
    /// its length is measured meanwhile.
    pub fn on(session: &Session, words: &[&str]) -> Self {
        let session = session.clone();
        let measured = session.clone();
        let round_trip = tokio::spawn(async move { measured.round_trip().await });
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self { way: Some(Way { session, words, round_trip }), ..Self::default() }
    }

    /// Whether they may be of use.
    pub fn are_possible(&self) -> bool {
        self.way.is_some()
    }

    /// Begins to open as many as the way needs; `name` is the agent's for them.
    pub fn open(&mut self, name: &str) {
        let Some(way) = self.way.take().filter(|_| !name.is_empty()) else { return };
        let name = name.to_owned();
        self.opening.spawn(async move {
            let Ok(Ok(round_trip)) = way.round_trip.await else { return Vec::new() };
            let channels = (round_trip.as_secs_f64() * SPEED / CHANNEL as f64).ceil() as usize;
            let mut lanes = JoinSet::new();
            for _ in 0..channels.saturating_sub(1).min(MOST) {
                let (session, mut words) = (way.session.clone(), way.words.clone());
                words.push(name.clone());
                lanes.spawn(async move { Lane::open(&session, &words).await });
            }
            let mut open = Vec::new();
            while let Some(lane) = lanes.join_next().await {
                match lane {
                    Ok(Ok(lane)) => open.push(lane),
                    // One channel is slower, and as good.
                    Ok(Err(error)) => tracing::debug!("a further channel: {error}"),
                    Err(_) => {}
                }
            }
            open
        });
    }

    /// Those that are to take part in sending so many bytes, by their numbers.
    pub async fn begin(&mut self, bytes: u64) -> Vec<u32> {
        self.used = 0;
        if bytes < LEAST {
            return Vec::new();
        }
        if let Ok(Some(open)) = tokio::time::timeout(PATIENCE, self.opening.join_next()).await {
            self.open = open.unwrap_or_default();
        }
        self.opening.abort_all();
        self.used = self.open.len();
        self.open.iter().map(|lane| lane.number).collect()
    }

    /// The queue of the lane on which a payload goes best; none if it goes on the agent's own
    /// channel, whose queue is `own`. The pieces of one file go the same way.
    pub fn choose(&mut self, payload: &Bytes, own: &mpsc::Sender<Bytes>) -> Option<usize> {
        if self.used == 0 {
            return None;
        }
        let all = self.used + 1;
        let at = match Chunk::order_of(payload).ok().flatten() {
            Some(order) => order as usize % all,
            None => {
                self.turn += 1;
                let room = |at: &usize| self.queue(*at).unwrap_or(own).capacity();
                (0..all).map(|n| (self.turn + n) % all).max_by_key(room)?
            }
        };
        (at < self.used).then_some(at)
    }

    /// Sends a payload on a lane; whether it still takes any.
    pub async fn send(&self, at: usize, payload: Bytes) -> bool {
        let Some(queue) = self.queue(at) else { return false };
        peer::write(queue, Kind::Data, 0, payload).await
    }

    /// Ends what was sent, on all lanes that took part; whether they took it.
    pub async fn end(&mut self) -> bool {
        let mut taken = true;
        for at in 0..self.used {
            taken &= self.send(at, Bytes::new()).await;
        }
        self.used = 0;
        taken
    }

    fn queue(&self, at: usize) -> Option<&mpsc::Sender<Bytes>> {
        self.open.get(at).map(|lane| &lane.streams.write)
    }
}

impl Lane {
    async fn open(session: &Session, words: &[String]) -> Result<Self, String> {
        let process = session.exec(words).await.map_err(|e| e.to_string())?;
        let mut streams = Streams::from(process);
        let mut said = Vec::new();
        while !said.ends_with(LANE_OPENING) {
            match streams.read.read_u8().await {
                Ok(byte) if said.len() < MAX_NOISE => said.push(byte),
                _ => return Err((streams.stderr)()),
            }
            if said.ends_with(OPENING) {
                return Err("the key is confined to the agent itself".into());
            }
        }
        let number = streams.read.read_u32().await.map_err(|e| e.to_string())?;
        let _ = streams.write.send(Bytes::from_static(OPENING)).await;
        Ok(Self { number, streams })
    }
}
