//! Clients at work while a mailbox moves, and the verdict on what became of their work.
//!
//! Every worker is a thread that follows a [`Route`], as mail servers and proxies do: when
//! something fails, it looks up where the user lives and tries again. What a server has
//! acknowledged goes into the [`History`]; [`check`] compares that with the [`Fingerprint`] taken
//! in the end.

mod things;

pub use things::{
    Thing, folder_creator, folder_deleter, folder_renamer, script_editor, subscriber,
};

use crate::fingerprint::{Fingerprint, message_id};
use crate::host::Host;
use crate::imap::{Imap, NewMessage, Refused, Value, quote, unmutf7, words};
use crate::lmtp::{self, Outcome};
use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a watcher looks again, until it has found the same twice.
const LOOKS: u32 = 5;
/// How long a worker waits before it tries again.
const RETRY: Duration = Duration::from_millis(20);
/// How long a worker waits for an answer before it gives the connection up.
const PATIENCE: Duration = Duration::from_secs(120);

/// What stands before the reason of a setback that a client has met on the new server before his
/// late changes were carried over there.
pub const AHEAD: &str = "ahead of what is carried over: ";

/// Where a user lives at the moment.
#[derive(Clone, Debug)]
pub struct Route {
    user: String,
    map: Map,
    /// Whether a crash may leave sessions on a server that it leads away from.
    crashes: bool,
}

#[derive(Clone, Debug)]
enum Map {
    Memory(Arc<RwLock<String>>),
    File(PathBuf),
}

impl Route {
    /// A route that this process keeps; clones share it.
    pub fn shared(user: &str, host: &str) -> Route {
        let map = Map::Memory(Arc::new(RwLock::new(host.to_owned())));
        Route { user: user.to_owned(), map, crashes: false }
    }

    /// A route in a file of lines `user host`, which is read each time.
    pub fn file(user: &str, path: impl Into<PathBuf>) -> Route {
        Route { user: user.to_owned(), map: Map::File(path.into()), crashes: false }
    }

    /// A route in a file on `host`, where the user lives, and the shell command that makes it
    /// follow a move: to be mbcopy's route command there.
    pub fn commanded(user: &str, host: &Host) -> Result<(Route, String)> {
        let file = "/var/lib/cyrus/route.map";
        let route = Route::file(user, host.root()?.join(file.trim_start_matches('/')));
        route.set(host.name())?;
        let command =
            format!(r#"sed -i "s/^$MBCOPY_USER .*/$MBCOPY_USER $MBCOPY_NEW_SERVER/" {file}"#);
        Ok((route, command))
    }

    /// The same route for clients that may be late: the move will be harmed.
    pub fn with_crashes(self) -> Route {
        Route { crashes: true, ..self }
    }

    /// Whose route it is.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The host where the user lives now.
    pub fn host(&self) -> Result<Host> {
        match &self.map {
            Map::Memory(host) => {
                Ok(Host::new(host.read().unwrap_or_else(PoisonError::into_inner).clone()))
            }
            Map::File(path) => {
                let map = std::fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?;
                map.lines()
                    .filter_map(|line| line.split_once(char::is_whitespace))
                    .find(|(user, _)| *user == self.user)
                    .map(|(_, host)| Host::new(host.trim()))
                    .ok_or_else(|| anyhow!("{} has no route", self.user))
            }
        }
    }

    /// Moves the route to another host.
    pub fn set(&self, host: &str) -> Result<()> {
        match &self.map {
            Map::Memory(current) => {
                host.clone_into(&mut current.write().unwrap_or_else(PoisonError::into_inner));
            }
            Map::File(path) => {
                let map = std::fs::read_to_string(path).unwrap_or_default();
                let others =
                    map.lines().filter(|line| line.split_whitespace().next() != Some(&self.user));
                let mut lines: String = others.map(|line| format!("{line}\n")).collect();
                lines.push_str(&format!("{} {host}\n", self.user));
                let new = path.with_extension("new");
                std::fs::write(&new, lines)?;
                std::fs::rename(&new, path)?;
            }
        }
        Ok(())
    }
}

/// What servers promised about one message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fate {
    /// How often it was acknowledged as stored: never or once.
    pub accepted: u32,
    /// How often the connection was lost when it may or may not have been stored.
    pub maybe: u32,
    /// Its flags may be any of these: those acknowledged last, and those of later changes whose
    /// outcome is unknown. If there are none, its flags do not matter.
    pub flags: Vec<BTreeSet<String>>,
    /// Whether it was expunged.
    pub expunged: Expunged,
}

/// Whether a message was expunged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Expunged {
    /// It must be there.
    #[default]
    No,
    /// The connection was lost when it may or may not have been expunged.
    Maybe,
    /// It must not be there.
    Yes,
}

/// How long clients waited for one kind of operation, from the first attempt to the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// How many were acknowledged.
    pub count: u32,
    /// All their time.
    pub total: Duration,
    /// The longest wait, with all its attempts.
    pub longest: Duration,
}

/// What workers did and what servers answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct History {
    /// By Message-ID.
    pub messages: BTreeMap<String, Fate>,
    /// Deliveries that were refused for good, after which a mail server would bounce.
    pub bounces: Vec<String>,
    /// Answers of OK to what did not happen.
    pub lies: Vec<String>,
    /// What folders, subscriptions and scripts may be: what was acknowledged last, and what later
    /// changes whose outcome is unknown would have made of it.
    pub things: BTreeMap<Thing, Vec<Option<String>>>,
    /// Things whose last acknowledged change but one, or an earlier one, was late.
    #[serde(skip)]
    pub late: BTreeSet<Thing>,
    /// The Message-IDs that clients know by folder, UIDVALIDITY and UID.
    #[serde(skip)]
    pub uids: BTreeMap<(String, String, u32), BTreeSet<String>>,
    /// By kind of operation: APPEND, STORE, EXPUNGE, FETCH, LMTP.
    pub latency: BTreeMap<String, Latency>,
    /// Why attempts failed, and how often; all were repeated.
    pub setbacks: BTreeMap<String, u32>,
}

impl History {
    /// Adds the history of another worker.
    pub fn merge(&mut self, other: History) {
        self.messages.extend(other.messages);
        self.bounces.extend(other.bounces);
        self.lies.extend(other.lies);
        self.things.extend(other.things);
        self.late.extend(other.late);
        for (key, ids) in other.uids {
            self.uids.entry(key).or_default().extend(ids);
        }
        for (kind, latency) in other.latency {
            let sum = self.latency.entry(kind).or_default();
            sum.count += latency.count;
            sum.total += latency.total;
            sum.longest = sum.longest.max(latency.longest);
        }
        for (reason, count) in other.setbacks {
            *self.setbacks.entry(reason).or_default() += count;
        }
    }

    /// The longest that any client waited for anything.
    pub fn longest(&self) -> Duration {
        self.latency.values().map(|latency| latency.longest).max().unwrap_or_default()
    }

    fn fate(&mut self, id: &str) -> &mut Fate {
        self.messages.entry(id.to_owned()).or_default()
    }

    /// Remembers what a UID means to a client. To clients of two servers, while a move was broken
    /// off, it may mean two messages; then it must not be any message's in the end.
    fn know(&mut self, key: (String, String, u32), id: &str) {
        self.uids.entry(key).or_default().insert(id.to_owned());
    }

    fn setback(&mut self, kind: &str, reason: &str) {
        *self.setbacks.entry(format!("{kind}: {reason}")).or_default() += 1;
    }

    fn done(&mut self, kind: &str, start: Instant) {
        let waited = start.elapsed();
        let latency = self.latency.entry(kind.to_owned()).or_default();
        latency.count += 1;
        latency.total += waited;
        latency.longest = latency.longest.max(waited);
    }
}

/// A client at work in a thread of its own.
pub struct Worker<T = History> {
    stop: Arc<AtomicBool>,
    /// How often a watcher has been answered.
    looks: Arc<AtomicU32>,
    thread: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Worker<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Worker { stop, looks: Arc::default(), thread: std::thread::spawn(move || work(&told)) }
    }

    /// How often it has been answered, if it is a watcher.
    pub fn looks(&self) -> u32 {
        self.looks.load(Ordering::Relaxed)
    }

    /// Ends the work and returns what it brought; what is still failing is not tried again.
    pub fn stop(self) -> Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("a worker panicked"))?
    }
}

/// One of each kind of worker.
pub struct Crew(Vec<Worker>);

impl Crew {
    /// Starts a deliverer, an appender, a flag changer, an expunger and a reader in INBOX.
    pub fn start(route: &Route, pause: Duration) -> Result<Crew> {
        Ok(Crew(vec![
            deliverer(route, pause),
            appender(route, "INBOX", pause),
            flag_changer(route, "INBOX", 20, pause)?,
            expunger(route, "INBOX", 300, pause)?,
            reader(route, "INBOX", pause),
        ]))
    }

    /// The same, but fewer messages to expunge, and somebody who makes folders, renames them,
    /// deletes them, subscribes to them, and edits a script.
    pub fn start_all(route: &Route, pause: Duration) -> Result<Crew> {
        Ok(Crew(vec![
            deliverer(route, pause),
            appender(route, "INBOX", pause),
            flag_changer(route, "INBOX", 20, pause)?,
            expunger(route, "INBOX", 80, pause * 4)?,
            reader(route, "INBOX", pause),
            folder_creator(route, pause * 15),
            folder_renamer(route, pause * 15)?,
            folder_deleter(route, 8, pause * 30)?,
            subscriber(route, pause * 2)?,
            script_editor(route, pause * 5),
        ]))
    }

    /// Ends the work and returns everything that happened.
    pub fn stop(self) -> Result<History> {
        for worker in &self.0 {
            worker.stop.store(true, Ordering::Relaxed);
        }
        let mut history = History::default();
        for worker in self.0 {
            history.merge(worker.stop()?);
        }
        Ok(history)
    }
}

/// Starts delivering mail as a mail server does: what fails for now is tried again until it is
/// accepted or refused for good.
pub fn deliverer(route: &Route, pause: Duration) -> Worker {
    let route = route.clone();
    Worker::start(move |stop| {
        let mut history = History::default();
        let label = label("deliver");
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (id, bytes) = message(&label, number);
            let start = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                let outcome = match route.host() {
                    Ok(host) => lmtp::deliver(&host, route.user(), &bytes),
                    Err(error) => Outcome::Lost(lmtp::Stage::Greeting, error),
                };
                let ambiguous = outcome.is_ambiguous();
                match outcome {
                    Outcome::Accepted(_) => {
                        history.fate(&id).accepted += 1;
                        history.done("LMTP", start);
                        break;
                    }
                    Outcome::Refused(stage, reply) if reply.code >= 500 => {
                        let bounce = format!("{id}: {stage:?}: {} {}", reply.code, reply.text);
                        history.bounces.push(bounce);
                        break;
                    }
                    Outcome::Refused(stage, reply) => {
                        let reason = format!("{stage:?}: {} {}", reply.code, reply.text);
                        history.setback("LMTP", &reason);
                    }
                    Outcome::Lost(stage, error) => {
                        if ambiguous {
                            history.fate(&id).maybe += 1;
                        }
                        history.setback("LMTP", &format!("{stage:?}: {}", error.root_cause()));
                    }
                }
                std::thread::sleep(RETRY);
            }
            std::thread::sleep(pause);
        }
        Ok(history)
    })
}

/// Starts appending messages to a folder.
pub fn appender(route: &Route, folder: &str, pause: Duration) -> Worker {
    let mut client = Client::new(route, folder);
    Worker::start(move |stop| {
        let label = label("append");
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let (id, bytes) = message(&label, number);
            let messages = [NewMessage { bytes, ..NewMessage::default() }];
            let folder = client.folder.clone();
            let outcome = client.persist("APPEND", stop, |imap| imap.append(&folder, &messages));
            if let Some([uid]) = outcome.value.as_deref() {
                client.know(*uid, &id);
            }
            let fate = client.history.fate(&id);
            fate.accepted = u32::from(outcome.value.is_some());
            fate.maybe = outcome.ambiguous;
            std::thread::sleep(pause);
        }
        Ok(client.history)
    })
}

/// Appends some messages of its own to a folder and starts changing their flags.
pub fn flag_changer(route: &Route, folder: &str, count: u32, pause: Duration) -> Result<Worker> {
    let mut client = Client::new(route, folder);
    let own = client.prepare("flag", count)?;
    Ok(Worker::start(move |stop| {
        let mut random = SmallRng::seed_from_u64(1);
        for (id, _) in &own {
            client.history.fate(id).flags = vec![BTreeSet::new()];
        }
        // What each may be on a server that the route does not lead to any more.
        let mut late = BTreeMap::<&str, Vec<BTreeSet<String>>>::new();
        while !stop.load(Ordering::Relaxed) {
            let Some((id, uid)) = own.choose(&mut random) else {
                break;
            };
            // Few keywords, for a mailbox holds no more than 128.
            let flags: BTreeSet<String> = ["\\Seen", "\\Flagged", "\\Answered", "w0", "w1", "w2"]
                .into_iter()
                .filter(|_| random.random_bool(0.5))
                .map(str::to_owned)
                .collect();
            let list = flags.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
            let outcome = client.persist("STORE", stop, |imap| {
                imap.command(format!("UID STORE {uid} FLAGS ({list})"))?;
                // STORE's own answer tells nothing if the flags were these before.
                let reply = imap.command(format!("UID FETCH {uid} (UID FLAGS)"))?;
                // What others change meanwhile is told, too.
                let is_it = |data: &&Value| {
                    data.get("UID").and_then(Value::number) == Some(u64::from(*uid))
                };
                let told = reply.numbered("FETCH").filter_map(|(_, data)| data.first());
                let told = told.filter(is_it).filter_map(|data| data.get("FLAGS")).last();
                let told = told.map_or(&[][..], |told| told.list()).iter();
                let told = told.map(ToString::to_string).filter(|flag| flag != "\\Recent");
                Ok(told.collect::<BTreeSet<String>>())
            });
            if outcome.late {
                late.insert(id, vec![flags.clone()]);
            } else if outcome.maybe_late {
                late.entry(id).or_default().push(flags.clone());
            }
            // What was changed on both servers gets the flags of both.
            let mut may = vec![flags.clone()];
            if let Some(there) = late.get(id.as_str()).filter(|_| !outcome.late) {
                may.extend(there.iter().map(|there| flags.union(there).cloned().collect()));
            }
            match outcome.value {
                Some(told) if may.contains(&told) => client.history.fate(id).flags = may,
                Some(told) => {
                    let lie = format!(
                        "STORE of UID {uid}, {id}: OK, but it has {told:?} instead of one of {may:?}"
                    );
                    client.history.lies.push(lie);
                }
                None if outcome.ambiguous > 0 => client.history.fate(id).flags.push(flags),
                None => {}
            }
            std::thread::sleep(pause);
        }
        Ok(client.history)
    }))
}

/// Appends some messages of its own to a folder and starts expunging them one by one.
pub fn expunger(route: &Route, folder: &str, count: u32, pause: Duration) -> Result<Worker> {
    let mut client = Client::new(route, folder);
    let own = client.prepare("expunge", count)?;
    Ok(Worker::start(move |stop| {
        for (id, uid) in own {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let outcome = client.persist("EXPUNGE", stop, |imap| {
                imap.command(format!("UID STORE {uid} +FLAGS.SILENT (\\Deleted)"))?;
                imap.command(format!("UID EXPUNGE {uid}"))?;
                let reply = imap.command(format!("UID SEARCH UID {uid}"))?;
                Ok(reply.of("SEARCH").all(|found| found.len() == 1))
            });
            match outcome.value {
                Some(true) => client.history.fate(&id).expunged = Expunged::Yes,
                Some(false) => {
                    let lie = format!("EXPUNGE of UID {uid}, {id}: OK, but it is still there");
                    client.history.lies.push(lie);
                }
                None if outcome.ambiguous > 0 => {
                    client.history.fate(&id).expunged = Expunged::Maybe;
                }
                None => {}
            }
            std::thread::sleep(pause);
        }
        Ok(client.history)
    }))
}

/// Starts reading the newest message of a folder again and again, and once in a while which
/// message each UID is.
pub fn reader(route: &Route, folder: &str, pause: Duration) -> Worker {
    let mut client = Client::new(route, folder);
    Worker::start(move |stop| {
        for round in 0u32.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            client.persist("FETCH", stop, |imap| {
                imap.command("NOOP")?;
                imap.command("UID FETCH * (FLAGS BODY.PEEK[])")
            });
            if round % 10 == 0 {
                let ids = "UID FETCH 1:* (UID BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])";
                let told = client.persist("FETCH", stop, |imap| imap.command(ids)).value;
                for (_, data) in told.iter().flat_map(|reply| reply.numbered("FETCH")) {
                    client.read(data);
                }
            }
            std::thread::sleep(pause);
        }
        Ok(client.history)
    })
}

/// An IMAP client that works in one folder, wherever the route leads.
struct Client {
    route: Route,
    /// Its raw name.
    folder: String,
    session: Option<Imap>,
    /// The host of the session.
    host: Option<Host>,
    /// Whether the last operation that was acknowledged was late.
    late: bool,
    uidvalidity: Option<String>,
    history: History,
}

/// What came of an operation with all its attempts.
///
/// One is *late* that the old server has acknowledged, over a session that stayed there, when
/// the route led to the new one already: a crash has thawed the old one. It is carried over when
/// the move goes on; until then who comes to the new server cannot see it there.
struct Persisted<T> {
    /// The acknowledged result; none if the work was stopped before.
    value: Option<T>,
    /// How many attempts ended with the connection lost.
    ambiguous: u32,
    /// Whether it was late.
    late: bool,
    /// Whether an attempt that ended with the connection lost may have been late.
    maybe_late: bool,
}

impl Client {
    fn new(route: &Route, folder: &str) -> Client {
        Client {
            route: route.clone(),
            folder: crate::imap::mutf7(folder),
            session: None,
            host: None,
            late: false,
            uidvalidity: None,
            history: History::default(),
        }
    }

    /// Logs in and selects the folder, which must be the one that it was.
    fn open(&mut self) -> Result<Imap> {
        let host = self.route.host()?;
        let mut imap = host.imap(self.route.user())?;
        self.host = Some(host);
        imap.set_patience(PATIENCE)?;
        let reply = imap.command(words(&[b"SELECT", &quote(&self.folder)]))?;
        let told = reply.note("UIDVALIDITY").unwrap_or_default();
        let known = self.uidvalidity.get_or_insert_with(|| told.to_owned());
        if known != told {
            let lie = format!("UIDVALIDITY of {} was {known} and is {told}", self.folder);
            if !self.history.lies.contains(&lie) {
                self.history.lies.push(lie.clone());
            }
            bail!(lie);
        }
        Ok(imap)
    }

    /// Tries an operation until it is acknowledged or the work is stopped.
    fn persist<T>(
        &mut self,
        kind: &str,
        stop: &AtomicBool,
        mut operation: impl FnMut(&mut Imap) -> Result<T>,
    ) -> Persisted<T> {
        let start = Instant::now();
        let (mut ambiguous, mut maybe_late) = (0, false);
        loop {
            // A connection that is found closed has nothing ambiguous about it.
            let session = self.session.take().filter(Imap::is_alive);
            match session.map_or_else(|| self.open(), Ok) {
                Err(error) => self.history.setback(kind, &format!("opening: {}", short(&error))),
                Ok(mut imap) => match operation(&mut imap) {
                    Ok(value) => {
                        self.session = Some(imap);
                        self.history.done(kind, start);
                        self.late = self.is_astray();
                        let (value, late) = (Some(value), self.late);
                        return Persisted { value, ambiguous, late, maybe_late };
                    }
                    Err(error) => {
                        let astray = self.is_astray();
                        if !error.is::<Refused>() {
                            ambiguous += 1;
                            maybe_late |= astray;
                        }
                        let ahead = if self.late && !astray { AHEAD } else { "" };
                        self.history.setback(kind, &format!("{ahead}{}", short(&error)));
                    }
                },
            }
            if stop.load(Ordering::Relaxed) {
                return Persisted { value: None, ambiguous, late: false, maybe_late };
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Whether the session is with a server that the route does not lead to any more.
    fn is_astray(&self) -> bool {
        let elsewhere = |host| self.host.as_ref() != Some(&host);
        self.route.crashes && self.route.host().is_ok_and(elsewhere)
    }

    /// Remembers what a UID means.
    fn know(&mut self, uid: u32, id: &str) {
        if let Some(validity) = &self.uidvalidity {
            self.history.know((unmutf7(&self.folder), validity.clone(), uid), id);
        }
    }

    /// Remembers what a FETCH response with a message's UID and Message-ID tells.
    fn read(&mut self, data: &[Value]) {
        let Some(data) = data.first() else { return };
        let uid = data.get("UID").and_then(Value::number).and_then(|uid| u32::try_from(uid).ok());
        let header = data.get("BODY[HEADER.FIELDS (MESSAGE-ID)]");
        if let (Some(uid), Some(header)) = (uid, header) {
            self.know(uid, &message_id(header.bytes()));
        }
    }

    /// Appends messages to work on; returns their Message-IDs and UIDs.
    fn prepare(&mut self, verb: &str, count: u32) -> Result<Vec<(String, u32)>> {
        let label = label(verb);
        let (ids, messages): (Vec<_>, Vec<_>) = (0..count)
            .map(|number| message(&label, number))
            .map(|(id, bytes)| (id, NewMessage { bytes, ..NewMessage::default() }))
            .unzip();
        let mut imap = self.open()?;
        let uids = imap.append(&self.folder, &messages)?;
        ensure!(uids.len() == ids.len(), "{} UIDs for {} messages", uids.len(), ids.len());
        self.session = Some(imap);
        for (id, uid) in ids.iter().zip(&uids) {
            self.history.fate(id).accepted = 1;
            self.know(*uid, id);
        }
        Ok(ids.into_iter().zip(uids).collect())
    }
}

/// The reason without what differs each time.
fn short(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Refused>() {
        Some(refused) => refused.status.to_string(),
        None => error.root_cause().to_string(),
    }
}

/// A name that no other worker has.
fn label(verb: &str) -> String {
    static WORKERS: AtomicU32 = AtomicU32::new(0);
    let worker = WORKERS.fetch_add(1, Ordering::Relaxed);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{verb}-{worker}-{}", since.as_micros())
}

/// A message and its Message-ID.
fn message(label: &str, number: u32) -> (String, Vec<u8>) {
    let id = format!("<{number}.{label}@work.example.org>");
    let text = format!(
        "From: <work@example.org>\r\nTo: <user@lab>\r\nSubject: {label} {number}\r\n\
         Message-ID: {id}\r\n\r\nThis is message {number}.\r\n"
    );
    (id, text.into_bytes())
}

/// What a client who logs in finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Observation {
    /// Nobody answers.
    Unreachable,
    /// The login, or anything after it, is refused.
    Refused,
    /// The mailboxes with the number of messages in each, if it can be told.
    Mailboxes(BTreeMap<String, Option<u64>>),
}

impl Observation {
    /// What a watcher must find of a mailbox whose fingerprint this is.
    pub fn of(print: &Fingerprint) -> Observation {
        let count = |messages: usize| Some(messages as u64);
        Observation::Mailboxes(
            print
                .own
                .mailboxes
                .iter()
                .map(|(name, mailbox)| (name.clone(), count(mailbox.messages.len())))
                .collect(),
        )
    }

    /// Logs in and looks.
    pub fn make(host: &Host, user: &str) -> Observation {
        let Ok(mut imap) = Imap::connect(host.ip(), Duration::from_secs(2)) else {
            return Observation::Unreachable;
        };
        let list = |imap: &mut Imap| -> Result<BTreeMap<String, Option<u64>>> {
            let reply = imap.command("LIST \"\" \"INBOX*\" RETURN (STATUS (MESSAGES))")?;
            let mut found: BTreeMap<String, Option<u64>> = reply
                .of("LIST")
                .filter_map(|list| Some((unmutf7(&list.get(3)?.to_string()), None)))
                .collect();
            for status in reply.of("STATUS") {
                if let [_, name, items, ..] = status {
                    let messages = items.get("MESSAGES").and_then(|value| value.number());
                    found.insert(unmutf7(&name.to_string()), messages);
                }
            }
            Ok(found)
        };
        // A LIST reads record by record: one that is under way at the instant of a switch has
        // something of both sides of it. Only what two of them find is a state.
        let look = |imap: &mut Imap| -> Result<BTreeMap<String, Option<u64>>> {
            imap.login(user, crate::PASSWORD)?;
            let mut found = list(imap)?;
            for _ in 0..LOOKS {
                let again = list(imap)?;
                if again == found {
                    break;
                }
                found = again;
            }
            Ok(found)
        };
        match look(&mut imap) {
            Ok(found) => {
                imap.logout();
                Observation::Mailboxes(found)
            }
            Err(error) if error.downcast_ref::<Refused>().is_some() => Observation::Refused,
            Err(_) => Observation::Unreachable,
        }
    }

    /// Whether nothing of the user is there.
    pub fn is_none(&self) -> bool {
        match self {
            Observation::Unreachable | Observation::Refused => true,
            Observation::Mailboxes(found) => found.is_empty(),
        }
    }
}

/// The same observation a number of times in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What was found.
    pub found: Observation,
    /// When the first look that found it ended, since the watch began.
    pub first: Duration,
    /// When the last look that found it began; before `first` if there was only one.
    pub last: Duration,
    /// How often.
    pub times: u32,
}

/// Starts logging in at one host, wherever the user lives, and looking what is there.
pub fn watcher(host: &Host, user: &str, pause: Duration) -> Worker<Vec<Step>> {
    let (host, user) = (host.clone(), user.to_owned());
    observer(pause, move || Observation::make(&host, &user))
}

fn observer(
    pause: Duration,
    mut look: impl FnMut() -> Observation + Send + 'static,
) -> Worker<Vec<Step>> {
    let looks = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&looks);
    let worker = Worker::start(move |stop| {
        let start = Instant::now();
        let mut steps: Vec<Step> = Vec::new();
        while !stop.load(Ordering::Relaxed) {
            let began = start.elapsed();
            let found = look();
            let answered = matches!(found, Observation::Mailboxes(_));
            counted.fetch_add(u32::from(answered), Ordering::Relaxed);
            match steps.last_mut() {
                Some(step) if step.found == found => {
                    step.last = began;
                    step.times += 1;
                }
                _ => steps.push(Step { found, first: start.elapsed(), last: began, times: 1 }),
            }
            std::thread::sleep(pause);
        }
        Ok(steps)
    });
    Worker { looks, ..worker }
}

/// Starts asking one host for the names of the user's mailboxes, by a session that stays: many more
/// looks, and none that waits for a mailbox's lock.
pub fn lister(host: &Host, user: &str, pause: Duration) -> Worker<Vec<Step>> {
    let (host, user) = (host.clone(), user.to_owned());
    let mut session: Option<Imap> = None;
    let mut ask = move || -> Result<Observation> {
        let alive = session.take().filter(Imap::is_alive);
        let mut imap = alive.map_or_else(|| host.imap(&user), Ok)?;
        let reply = imap.command("LIST \"\" \"INBOX*\"")?;
        session = Some(imap);
        let names = reply.of("LIST").filter_map(|list| list.get(3).map(Value::to_string));
        Ok(Observation::Mailboxes(names.map(|name| (unmutf7(&name), None)).collect()))
    };
    observer(pause, move || ask().unwrap_or(Observation::Unreachable))
}

/// Everything in a watch that is neither none nor the whole, and every vanishing of the whole.
pub fn none_then_whole(steps: &[Step], whole: &Observation) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut whole_seen = false;
    for step in steps {
        if step.found == *whole {
            whole_seen = true;
        } else if whole_seen || !step.found.is_none() {
            violations.push(Violation::InBetween(step.clone()));
        }
    }
    violations
}

/// A promise to a client that was broken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Violation {
    /// An acknowledged message is not there.
    Missing(String),
    /// A message is there more often than it can have been stored.
    Doubled(String, usize),
    /// A message that was expunged is there.
    Undead(String),
    /// Acknowledged flags are not what the message has.
    WrongFlags {
        /// Its Message-ID.
        id: String,
        /// What they may be.
        expected: Vec<BTreeSet<String>>,
        /// What they are.
        found: BTreeSet<String>,
    },
    /// A folder, a subscription or a script is not what it was made.
    WrongThing {
        /// Which.
        thing: Thing,
        /// What would have been right.
        expected: Vec<Option<String>>,
        /// What is there.
        found: Option<String>,
    },
    /// A UID that clients know means another message.
    OtherUid(String),
    /// A delivery was refused for good.
    Bounced(String),
    /// A server said OK to what did not happen.
    Lie(String),
    /// A watcher saw what it must not see.
    InBetween(Step),
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Violation::Missing(id) => write!(f, "{id} was acknowledged and is missing"),
            Violation::Doubled(id, copies) => write!(f, "{id} is there {copies} times"),
            Violation::Undead(id) => write!(f, "{id} was expunged and is there"),
            Violation::WrongFlags { id, expected, found } => {
                write!(f, "{id} should have the flags {expected:?} and has {found:?}")
            }
            Violation::WrongThing { thing, expected, found } => {
                let show = |value: &Option<String>| match value {
                    Some(value) => format!("{value:?}"),
                    None => "gone".to_owned(),
                };
                let expected: Vec<String> = expected.iter().map(show).collect();
                write!(f, "{thing} should be {} and is {}", expected.join(" or "), show(found))
            }
            Violation::OtherUid(text) => f.write_str(text),
            Violation::Bounced(answer) => write!(f, "delivery bounced: {answer}"),
            Violation::Lie(lie) => f.write_str(lie),
            Violation::InBetween(step) => {
                write!(f, "seen {} times from {:?} on: {:?}", step.times, step.first, step.found)
            }
        }
    }
}

/// Compares what servers promised with what is there in the end.
pub fn check(history: &History, end: &Fingerprint) -> Vec<Violation> {
    let mut found: BTreeMap<&str, Vec<&BTreeSet<String>>> = BTreeMap::new();
    for (_, _, message) in end.messages() {
        found.entry(&message.message_id).or_default().push(&message.flags);
    }
    let mut violations = Vec::new();
    for (id, fate) in &history.messages {
        let copies = found.get(id.as_str()).map_or(&[][..], Vec::as_slice);
        let most = (fate.accepted + fate.maybe) as usize;
        let least = fate.accepted as usize;
        match fate.expunged {
            Expunged::Yes if !copies.is_empty() => violations.push(Violation::Undead(id.clone())),
            Expunged::No if copies.len() < least => violations.push(Violation::Missing(id.clone())),
            _ if copies.len() > most => {
                violations.push(Violation::Doubled(id.clone(), copies.len()));
            }
            _ => {}
        }
        for flags in copies {
            if !fate.flags.is_empty() && !fate.flags.contains(flags) {
                violations.push(Violation::WrongFlags {
                    id: id.clone(),
                    expected: fate.flags.clone(),
                    found: (*flags).clone(),
                });
            }
        }
    }
    violations.extend(things::check(&history.things, end));
    violations.extend(check_uids(history, end));
    violations.extend(history.bounces.iter().cloned().map(Violation::Bounced));
    violations.extend(history.lies.iter().cloned().map(Violation::Lie));
    violations
}

/// UIDs that mean another message in the end than clients were told.
fn check_uids(history: &History, end: &Fingerprint) -> Vec<Violation> {
    let mut violations = Vec::new();
    for ((folder, validity, uid), ids) in &history.uids {
        let Some(mailbox) = end.own.mailboxes.get(folder) else { continue };
        // With another UIDVALIDITY clients forget their UIDs; that it changed is told as a lie.
        if mailbox.status.get("UIDVALIDITY") != Some(validity) {
            continue;
        }
        let Some(message) = mailbox.messages.get(uid) else { continue };
        let is = &message.message_id;
        for id in ids.iter().filter(|id| *id != is) {
            violations
                .push(Violation::OtherUid(format!("UID {uid} of {folder} was {id} and is {is}")));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::Message;

    fn flags(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// An INBOX of these messages.
    fn end(messages: &[(&str, &[&str])]) -> Fingerprint {
        let mut print = Fingerprint::default();
        let inbox = print.own.mailboxes.entry("INBOX".into()).or_default();
        for (uid, (id, names)) in (1..).zip(messages) {
            let message_id = (*id).to_owned();
            let message = Message { message_id, flags: flags(names), ..Message::default() };
            inbox.messages.insert(uid, message);
        }
        print
    }

    fn history(id: &str, fate: Fate) -> History {
        let messages = BTreeMap::from([(id.to_owned(), fate)]);
        History { messages, ..History::default() }
    }

    fn accepted() -> Fate {
        Fate { accepted: 1, ..Fate::default() }
    }

    #[test]
    fn an_acknowledged_message_is_there_once() {
        let history = history("a", accepted());
        assert_eq!(check(&history, &end(&[("a", &[])])), []);
        assert_eq!(check(&history, &end(&[])), [Violation::Missing("a".into())]);
        let twice = end(&[("a", &[]), ("a", &[])]);
        assert_eq!(check(&history, &twice), [Violation::Doubled("a".into(), 2)]);
    }

    #[test]
    fn an_ambiguous_message_may_be_there() {
        let only = history("a", Fate { maybe: 1, ..Fate::default() });
        assert_eq!(check(&only, &end(&[])), []);
        assert_eq!(check(&only, &end(&[("a", &[])])), []);
        let retried = history("a", Fate { maybe: 1, ..accepted() });
        assert_eq!(check(&retried, &end(&[("a", &[]), ("a", &[])])), []);
        assert_eq!(check(&retried, &end(&[])), [Violation::Missing("a".into())]);
    }

    #[test]
    fn an_expunged_message_is_gone() {
        let gone = history("a", Fate { expunged: Expunged::Yes, ..accepted() });
        assert_eq!(check(&gone, &end(&[])), []);
        assert_eq!(check(&gone, &end(&[("a", &[])])), [Violation::Undead("a".into())]);
        let maybe = history("a", Fate { expunged: Expunged::Maybe, ..accepted() });
        assert_eq!(check(&maybe, &end(&[])), []);
        assert_eq!(check(&maybe, &end(&[("a", &[])])), []);
    }

    #[test]
    fn flags_are_those_of_the_last_change() {
        let allowed = vec![flags(&["w0"]), flags(&["w1"])];
        let history = history("a", Fate { flags: allowed, ..accepted() });
        assert_eq!(check(&history, &end(&[("a", &["w0"])])), []);
        assert_eq!(check(&history, &end(&[("a", &["w1"])])), []);
        let wrong = check(&history, &end(&[("a", &[])]));
        assert!(matches!(wrong.as_slice(), [Violation::WrongFlags { .. }]));
    }

    #[test]
    fn a_uid_never_means_another_message() {
        let key = || ("INBOX".to_owned(), "7".to_owned(), 1);
        let mut known = History::default();
        known.know(key(), "a");
        let mut end = end(&[("a", &[])]);
        let inbox = end.own.mailboxes.get_mut("INBOX").expect("an INBOX");
        inbox.status.insert("UIDVALIDITY".into(), "7".into());
        assert_eq!(check(&known, &end), []);
        let other = History {
            uids: BTreeMap::from([(key(), BTreeSet::from(["b".to_owned()]))]),
            ..known.clone()
        };
        assert!(matches!(check(&other, &end).as_slice(), [Violation::OtherUid(_)]));
        // Two clients were told different things: then it must not be there.
        known.merge(other);
        assert!(matches!(check(&known, &end).as_slice(), [Violation::OtherUid(_)]));
        end.own.mailboxes.get_mut("INBOX").expect("an INBOX").messages.clear();
        assert_eq!(check(&known, &end), []);
    }

    #[test]
    fn bounces_and_lies_are_violations() {
        let mut history = History::default();
        history.bounces.push("550".into());
        history.lies.push("OK".into());
        assert_eq!(check(&history, &end(&[])).len(), 2);
    }

    #[test]
    fn nothing_may_be_between_none_and_the_whole() {
        let mailboxes =
            |count| Observation::Mailboxes(BTreeMap::from([("INBOX".to_owned(), Some(count))]));
        let watch = |seen: &[Observation]| -> Vec<Step> {
            let step = |found: &Observation| Step {
                found: found.clone(),
                first: Duration::ZERO,
                last: Duration::ZERO,
                times: 1,
            };
            seen.iter().map(step).collect()
        };
        let none = Observation::Mailboxes(BTreeMap::new());
        let whole = mailboxes(5);
        assert_eq!(none_then_whole(&watch(&[none.clone(), whole.clone()]), &whole), []);
        let partial = watch(&[none.clone(), mailboxes(3), whole.clone()]);
        assert_eq!(none_then_whole(&partial, &whole).len(), 1);
        let vanished = watch(&[whole.clone(), Observation::Refused]);
        assert_eq!(none_then_whole(&vanished, &whole).len(), 1);
    }

    #[test]
    fn routes_are_followed_in_files_and_in_memory() {
        let path = std::env::temp_dir().join(label("route"));
        let in_file = Route::file("u", &path);
        assert!(in_file.host().is_err());
        for route in [in_file, Route::shared("u", "bw1")] {
            let other = route.clone();
            route.set("bw1").expect("set");
            assert_eq!(other.host().expect("a route"), Host::new("bw1"));
            route.set("bw2").expect("set");
            assert_eq!(other.host().expect("a route"), Host::new("bw2"));
        }
        std::fs::remove_file(&path).expect("remove");
    }
}
