//! What the old server does with clients and deliveries that come after the move, and
//! whether it can: looked at before anything is copied.
//!
//! To forward is Cyrus's own proxying. A record of type *remote* is enough for its imapd
//! and lmtpd to pass on what comes, in a Murder or not (imap/proxy.c:proxy_mlookup,
//! imap/lmtpd.c:deliver_remote); how they reach the other server and log in there is in
//! imapd.conf.

use crate::host::Host;
use crate::murder;
use crate::wire::v1::{self, OldServer};
use russh::keys::ssh_encoding::base64::{Base64, Encoding};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// How long the new server may take to answer anything.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest answer that is read, in lines.
const LINES: usize = 100;

/// What stands against it on this server.
pub(super) fn look(host: &Host, plan: &v1::PlanOldServer) -> v1::OldServerPlan {
    let manner = plan.old_server();
    if manner == OldServer::Defer {
        return v1::OldServerPlan::default();
    }
    let one = |problem: Box<v1::Problem>| v1::OldServerPlan {
        problems: vec![*problem],
        authname: String::new(),
    };
    if host.offline.is_some() {
        return one(refuse(
            "old-server-stopped",
            "nothing runs on the source's disk: nobody comes there late".into(),
            "leave --old-server out",
        ));
    }
    if murder::is_member(host) {
        return one(refuse(
            "old-server-in-murder",
            "in a Murder the frontends follow; what still comes to a backend is deferred".into(),
            "leave --old-server out",
        ));
    }
    match manner {
        OldServer::Refuse => {
            let problems = makes_inboxes(host).into_iter().map(|problem| *problem).collect();
            v1::OldServerPlan { problems, authname: String::new() }
        }
        _ => match Proxy::of(host, &plan.server) {
            Ok(proxy) => {
                let problems = proxy.look().err().into_iter().map(|problem| *problem).collect();
                v1::OldServerPlan { problems, authname: proxy.authname }
            }
            Err(problem) => one(problem),
        },
    }
}

/// Who is refused must not get a new INBOX instead.
fn makes_inboxes(host: &Host) -> Option<Box<v1::Problem>> {
    let quota = host.config.get("autocreate_quota").unwrap_or_else(|| "-1".into());
    let off = quota.trim().starts_with('-');
    (!off).then(|| {
        refuse(
            "autocreate",
            format!(
                "autocreate is on here (autocreate_quota: {quota}): who is refused would get a \
                 new, empty INBOX at his next login"
            ),
            "set autocreate_quota: -1 in imapd.conf, or leave --old-server=refuse out",
        )
    })
}

/// How this server's Cyrus logs in at another one.
#[derive(Debug)]
struct Proxy {
    server: String,
    authname: String,
    password: String,
}

impl Proxy {
    /// As imapd.conf has it (imap/backend.c:backend_authenticate).
    fn of(host: &Host, server: &str) -> Result<Self, Box<v1::Problem>> {
        let short = server.split('.').next().unwrap_or_default();
        let own = format!("{short}_password");
        let get = |option: &str| host.config.get(option).filter(|value| !value.is_empty());
        let password = get(&own).or_else(|| get("proxy_password"));
        match (get("proxy_authname"), password) {
            (Some(authname), Some(password)) => {
                Ok(Self { server: server.to_owned(), authname, password })
            }
            (authname, password) => {
                let authname = authname.is_none().then_some("proxy_authname");
                let password = password.is_none().then_some(own.as_str());
                let missing: Vec<&str> = authname.into_iter().chain(password).collect();
                Err(refuse(
                    "forward-settings",
                    format!(
                        "imapd.conf does not say how Cyrus logs in at {server}: {} missing",
                        missing.join(" and ")
                    ),
                    &format!(
                        "set proxy_authname, and {own} or proxy_password, in imapd.conf here; \
                         name that account in proxyservers at {server}"
                    ),
                ))
            }
        }
    }

    /// Whether the other server's imapd and lmtpd are there, and lmtpd takes the login.
    fn look(&self) -> Result<(), Box<v1::Problem>> {
        let server = &self.server;
        let unreachable = |service: &str, e: io::Error| {
            refuse(
                "forward-unreachable",
                format!("{service} of {server} cannot be reached from here: {e}"),
                "Cyrus uses the new server's servername as its host name, and the ports of \
                 /etc/services: both must lead there",
            )
        };
        let mut imap =
            Talk::open(server, port("imap").or(Some(143))).map_err(|e| unreachable("imap", e))?;
        imap.line().map_err(|e| unreachable("imap", e))?;
        let _ = imap.say("a LOGOUT");
        let lmtp = |e| unreachable("lmtp", e);
        let mut talk = Talk::open(server, port("lmtp")).map_err(lmtp)?;
        talk.answer().map_err(lmtp)?;
        let offers = talk.ask("LHLO localhost").map_err(lmtp)?;
        let word = |line: &str| line.get(4..).unwrap_or_default().to_ascii_uppercase();
        let offers: Vec<String> = offers.iter().map(|line| word(line)).collect();
        let auth = offers.iter().filter(|line| line.starts_with("AUTH"));
        let mechanisms: Vec<&str> = auth.flat_map(|line| line.split([' ', '=']).skip(1)).collect();
        // One with -a offers EXTERNAL, which no password is for.
        let none = mechanisms.iter().all(|mechanism| *mechanism == "EXTERNAL");
        if none && !offers.iter().any(|line| line == "STARTTLS") {
            return Err(refuse(
                "forward-preauthorized",
                format!(
                    "lmtpd of {server} lets nobody log in, and Cyrus does not deliver to it then: \
                     it runs with -a, or offers plaintext passwords only within TLS that it has not"
                ),
                "give the new server an lmtpd without -a on the port that /etc/services names, \
                 with sasl_mech_list, and allowplaintext or TLS",
            ));
        }
        // Within TLS, or by another mechanism, Cyrus itself will try.
        if mechanisms.contains(&"PLAIN") {
            let login = format!("\0{}\0{}", self.authname, self.password);
            let login = Base64::encode_string(login.as_bytes());
            let said = talk.ask(&format!("AUTH PLAIN {login}")).map_err(lmtp)?;
            if !said.iter().any(|line| line.starts_with("235")) {
                return Err(refuse(
                    "forward-login",
                    format!(
                        "{server} refuses the login of {}: {}",
                        self.authname,
                        crate::wire::printable(&said.join(" "))
                    ),
                    "make that account there, or mend proxy_authname and its password here",
                ));
            }
        }
        let _ = talk.say("QUIT");
        Ok(())
    }
}

/// A connection on which lines go back and forth.
struct Talk {
    stream: BufReader<TcpStream>,
}

impl Talk {
    fn open(server: &str, port: Option<u16>) -> io::Result<Self> {
        let port = port.ok_or_else(|| io::Error::other("/etc/services does not name it"))?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "its name has no address");
        for address in (server, port).to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok(Self { stream: BufReader::new(stream) });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(format!("{line}\r\n").as_bytes())
    }

    fn ask(&mut self, line: &str) -> io::Result<Vec<String>> {
        self.say(line)?;
        self.answer()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let read = io::Read::take(&mut self.stream, 8192).read_until(b'\n', &mut line)?;
        match read {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
        }
    }

    /// All lines of an answer, as LMTP has them.
    fn answer(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        while lines.len() < LINES {
            let line = self.line()?;
            let last = line.as_bytes().get(3) != Some(&b'-');
            lines.push(line);
            if last {
                return Ok(lines);
            }
        }
        Err(io::Error::other("its answer does not end"))
    }
}

/// The port of a service, by /etc/services, as Cyrus finds it.
fn port(service: &str) -> Option<u16> {
    in_services(&std::fs::read_to_string("/etc/services").ok()?, service)
}

fn in_services(text: &str, service: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let line = line.split('#').next()?;
        let mut words = line.split_whitespace();
        let name = words.next()?;
        let (port, protocol) = words.next()?.split_once('/')?;
        let named = name == service || words.any(|alias| alias == service);
        (named && protocol == "tcp").then(|| port.parse().ok())?
    })
}

/// A problem that stands against the move; boxed, since it is large for an error.
fn refuse(code: &str, text: String, advice: &str) -> Box<v1::Problem> {
    Box::new(v1::Problem::refuse(code, text, advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_found_as_the_system_finds_them() {
        let text = "smtp 25/tcp mail\nimap2 143/tcp imap # Interim\nlmtp 24/udp\nlmtp\t2003/tcp\n";
        assert_eq!(in_services(text, "imap"), Some(143));
        assert_eq!(in_services(text, "lmtp"), Some(2003));
        assert_eq!(in_services(text, "sieve"), None);
        assert_eq!(in_services("x y\nlmtp\n\nlmtp 99999/tcp\n", "lmtp"), None);
    }
}
