//! Metrics for Prometheus: its text format, by HTTP or as a file for
//! node_exporter's textfile collector.

use super::pulse::Pace;
use super::state::State;
use super::status::Status;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a client may take to ask; others wait meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// Most of a request that is read, in bytes.
const MAX_REQUEST: u64 = 8 << 10;

/// The text format of what is known of a run.
pub fn text(status: &Status) -> String {
    let mut text = String::new();
    let run = escaped(&status.run);
    let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, f64)]| {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{{run=\"{run}\"{labels}}} {value}");
        }
    };
    let by_state = |of: &dyn Fn(State) -> u64| -> Vec<(String, f64)> {
        let sample = |state: &State| (format!(",state=\"{}\"", state.word()), of(*state) as f64);
        State::ALL.iter().map(sample).collect()
    };
    let count = |state| status.states.iter().find(|count| count.state == state);
    let alone = |value: f64| [(String::new(), value)];
    let users = by_state(&|state| status.in_state(state));
    family("mbcopy_bulk_users", "gauge", "Users by state.", &users);
    let messages = by_state(&|state| count(state).map_or(0, |c| c.messages));
    family("mbcopy_bulk_messages", "gauge", "Messages of users by state.", &messages);
    let bytes = by_state(&|state| count(state).map_or(0, |c| c.bytes));
    family("mbcopy_bulk_bytes", "gauge", "Bytes of users by state.", &bytes);
    let current = alone(status.current.len() as f64);
    family("mbcopy_bulk_moves_under_way", "gauge", "Moves that are under way.", &current);
    let rate = alone(status.users_per_hour / 3600.0);
    family("mbcopy_bulk_users_per_second", "gauge", "Users that ended well, lately.", &rate);
    let bytes = alone(status.bytes_per_second);
    family("mbcopy_bulk_bytes_per_second", "gauge", "Their bytes.", &bytes);
    let by_target = |of: &dyn Fn(&Pace) -> f64| -> Vec<(String, f64)> {
        let label = |pace: &Pace| format!(",target=\"{}\"", escaped(&pace.target));
        status.paces.iter().map(|pace| (label(pace), of(pace))).collect()
    };
    let allowed = by_target(&|pace| pace.allowed as f64);
    family("mbcopy_bulk_moves_allowed", "gauge", "Moves that a target's load allows.", &allowed);
    let load = by_target(&|pace| pace.load);
    family("mbcopy_bulk_target_load", "gauge", "Its load average for each processor.", &load);
    let canary = by_target(&|pace| pace.canary_ms / 1000.0);
    family("mbcopy_bulk_canary_seconds", "gauge", "How long a client of it waits.", &canary);
    let up = alone(f64::from(u8::from(status.coordinated)));
    family("mbcopy_bulk_coordinated", "gauge", "Whether a coordinator is at work.", &up);
    let paused = alone(f64::from(u8::from(status.control == "paused")));
    family("mbcopy_bulk_paused", "gauge", "Whether the admin has paused it.", &paused);
    let at = alone(status.at_unix_ms as f64 / 1000.0);
    family("mbcopy_bulk_updated_seconds", "gauge", "When these were taken.", &at);
    text
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Puts the text into a file, whole or not at all.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(readable)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// Serves the text by HTTP, whatever is asked for, until the process ends.
#[derive(Debug)]
pub struct Server {
    text: Arc<Mutex<String>>,
    address: SocketAddr,
}

impl Server {
    /// Begins to serve at an address.
    pub fn start(address: &str) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        std::thread::Builder::new().name("metrics".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                let text = shared.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // One who goes away is no concern of ours.
                let _ = answer(stream, &text);
            }
        })?;
        Ok(Self { text, address })
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it serves from now on.
    pub fn set(&self, text: String) {
        *self.text.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

fn answer(mut stream: TcpStream, text: &str) -> io::Result<()> {
    let began = Instant::now();
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && (request.len() as u64) < MAX_REQUEST
    {
        let left = PATIENCE.checked_sub(began.elapsed()).filter(|left| !left.is_zero());
        stream.set_read_timeout(Some(left.ok_or(io::ErrorKind::TimedOut)?))?;
        match stream.read(&mut buffer)? {
            0 => break,
            n => request.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{text}",
        text.len()
    )?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::resolve::Planned;
    use crate::bulk::store::{Mode, Store};

    #[test]
    fn the_text_is_served_and_written() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), "a \"run\"").unwrap();
        let user = Planned {
            mailbox: "user.x".into(),
            source: String::new(),
            destination: "bw2".into(),
            partition: None,
            not_before: 0,
            known: true,
            size: (1, 2, 3),
        };
        store.add(&[user], Mode::Move, false).unwrap();
        let text = text(&Status::of(&store, 1_000_000).unwrap());
        let users = "mbcopy_bulk_users{run=\"a \\\"run\\\"\",state=\"waiting\"} 1\n";
        assert!(text.contains(users), "{text}");
        assert!(text.contains("mbcopy_bulk_bytes{run=\"a \\\"run\\\"\",state=\"waiting\"} 3\n"));

        let file = dir.path().join("mbcopy.prom");
        write(&file, &text).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);

        let server = Server::start("127.0.0.1:0").unwrap();
        server.set(text.clone());
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with(&text), "{answer}");

        // One who asks a byte at a time keeps nobody out for long.
        let mut slow = TcpStream::connect(server.address()).unwrap();
        let began = Instant::now();
        while slow.write_all(b"x").is_ok() && began.elapsed() < PATIENCE * 3 {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(began.elapsed() < PATIENCE * 2, "{:?}", began.elapsed());
    }
}
