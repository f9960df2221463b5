//! The Murder: many backends that users see as one, since a master (mupdate) tells
//! the frontends which backend has which mailbox.
//!
//! A move between two backends changes that list as its route step. Each agent says
//! only what its own server has, under its own server's name, with the credentials
//! of its own imapd.conf: [`take`] makes the master name this server for all that it
//! has of a user. Records are overwritten, never removed in between: at no time does
//! the master know nothing of a mailbox, and none is ever reserved.

mod client;
mod protocol;
mod tls;
pub mod wiped;

pub use client::{Client, MupdateError};
pub use protocol::{Entry, Line, LineError, parse};

use crate::cyrus::config::Config;
use crate::cyrus::mboxlist::mbtype::Flag;
use crate::cyrus::mboxlist::{MailboxEntry, MailboxList};
use crate::cyrus::name::MailboxName;
use crate::cyrus::release::Release;
use crate::fault::{self, Point};
use crate::host::Host;
use crate::wire::v1::{self, failure::Kind};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// How a server reaches the master, by its imapd.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `mupdate_server`.
    pub server: String,
    /// `mupdate_port`.
    pub port: u16,
    /// `mupdate_username`: who it acts as; may be empty.
    pub username: String,
    /// `mupdate_authname`: who it logs in as.
    pub authname: String,
    /// `mupdate_password`.
    pub password: String,
    /// `tls_server_ca_file` and `tls_server_ca_dir`: without any, the master's
    /// certificate is not checked, as Cyrus's own programs do not.
    pub authorities: Vec<PathBuf>,
    /// `mupdate_config`.
    pub config: String,
}

impl Settings {
    /// Those of a member of a Murder.
    pub fn of(config: &Config) -> Option<Self> {
        let word = |option: &str| config.get(option).unwrap_or_default();
        let (authname, realm) = (word("mupdate_authname"), word("mupdate_realm"));
        let in_realm = !realm.is_empty() && !authname.contains('@');
        let authorities = ["tls_server_ca_file", "tls_server_ca_dir"];
        Some(Self {
            server: config.mupdate_server()?,
            port: word("mupdate_port").parse().unwrap_or(3905),
            username: word("mupdate_username"),
            authname: if in_realm { format!("{authname}@{realm}") } else { authname },
            password: word("mupdate_password"),
            authorities: authorities.iter().filter_map(|o| config.get(o)).map(Into::into).collect(),
            config: config.get("mupdate_config").unwrap_or_else(|| "standard".into()),
        })
    }
}

/// Whether a server is a member of a Murder.
pub fn is_member(host: &Host) -> bool {
    host.offline.is_none() && host.config.mupdate_server().is_some()
}

/// What preflight finds: the master's own name (empty: it does not answer), and what
/// stands against a move. `source`: the master must say that the user is here.
pub fn look(host: &Host, source: Option<&MailboxName>) -> (String, Vec<v1::Problem>) {
    let Some(settings) = Settings::of(&host.config).filter(|_| is_member(host)) else {
        return (String::new(), Vec::new());
    };
    if settings.config != "standard" {
        let text = format!("mupdate_config is {} on this server", settings.config);
        let advice = "in such a Murder every server keeps a copy of the list for itself; mbcopy \
                      moves between backends of a standard one only";
        return (String::new(), vec![v1::Problem::refuse("mupdate-config", text, advice)]);
    }
    let by_id = host.release().is_some_and(|release| Release::of(release).by_id);
    if !by_id {
        let text = "this backend's Cyrus is older than 3.6".to_owned();
        let advice = "its ctl_mboxlist -m copies what it takes away, which mbcopy cannot put back";
        return (String::new(), vec![v1::Problem::refuse("murder-release", text, advice)]);
    }
    let mut client = match Client::connect(&settings) {
        Ok(client) => client,
        Err(error) => {
            let advice = "mend mupdate_server, mupdate_authname and mupdate_password in this \
                          server's imapd.conf, or the master";
            return (
                String::new(),
                vec![v1::Problem::refuse("mupdate-unusable", error.to_string(), advice)],
            );
        }
    };
    let problems = match source.map(|top| standing(host, top, &mut client)) {
        None => Vec::new(),
        Some(Ok(problems)) => problems,
        Some(Err(error)) => {
            vec![v1::Problem::refuse("mupdate-unusable", error, "look at the master's log")]
        }
    };
    (client.master().to_owned(), problems)
}

/// Whether the master says that all mailboxes of a user are on this server.
fn standing(
    host: &Host,
    top: &MailboxName,
    client: &mut Client,
) -> Result<Vec<v1::Problem>, String> {
    let kept = host.config.deletedprefix();
    let live = owned(host, top)?;
    let live: Vec<_> =
        live.into_iter().filter(|e| e.name.deleted_original(&kept).is_none()).collect();
    let names: Vec<&[u8]> = live.iter().map(|e| e.name.as_bytes()).collect();
    let found = client.find(&names).map_err(|e| e.to_string())?;
    let here = host.welcome().servername;
    let mut problems = Vec::new();
    let (mut missing, mut reserved, mut elsewhere) = (0, 0, Vec::new());
    for entry in &found {
        match entry {
            None => missing += 1,
            Some(entry) if entry.server() != here => {
                elsewhere.push(crate::wire::printable(&entry.server()));
            }
            Some(entry) if entry.acl.is_none() => reserved += 1,
            Some(_) => {}
        }
    }
    let all = found.len();
    let shown = host.external(top);
    if let Some(other) = elsewhere.first() {
        problems.push(v1::Problem::refuse(
            "mupdate-elsewhere",
            format!(
                "mupdate says of {} of the {all} mailboxes of {shown} that they are on {other}, \
                 but they are here as well: what an XFER that failed has left",
                elsewhere.len()
            ),
            "look which copy is the user's before anything else (mbcopy doctor)",
        ));
    }
    if reserved > 0 {
        problems.push(v1::Problem::refuse(
            "mupdate-reserved",
            format!(
                "mupdate has {reserved} of the {all} mailboxes of {shown} reserved: nobody \
                     can reach them, as after an XFER that was killed"
            ),
            "look what it is, and put it right: mbcopy doctor",
        ));
    }
    if missing > 0 {
        problems.push(v1::Problem::refuse(
            "mupdate-missing",
            format!("mupdate knows nothing of {missing} of the {all} mailboxes of {shown}"),
            "look what it is, and put it right: mbcopy doctor",
        ));
    }
    Ok(problems)
}

/// Makes the master name this server for all that it has of a user, and sees that it
/// does; how many mailboxes. Doing it again changes nothing.
pub fn take(host: &Host, top: &MailboxName) -> Result<v1::RouteTaken, v1::Failure> {
    let failed = |text: String| {
        v1::Failure::new(
            Kind::Internal,
            format!("mupdate could not be changed: {text}"),
            "mupdate may name one server for some mailboxes of the user and the other for others",
            "mend the cause and run the same command again",
        )
    };
    let settings = Settings::of(&host.config).filter(|_| is_member(host));
    let settings = settings.ok_or_else(|| {
        failed("imapd.conf names no mupdate_server, and this move began in a Murder".into())
    })?;
    let entries: Vec<Entry> = owned(host, top)
        .map_err(failed)?
        .iter()
        .map(|entry| Entry::active(&host.welcome().servername, entry))
        .collect();
    if !entries.iter().any(|entry| entry.name == top.as_bytes()) {
        return Err(failed(format!("{} is not on this server", host.external(top))));
    }
    // What delayed delete keeps comes first: from a backend that starts in between,
    // `ctl_mboxlist -m` removes for good what of it the list has elsewhere.
    let kept = host.config.deletedprefix();
    let is_kept = |e: &Entry| {
        let name = MailboxName::from_internal(&e.name).ok();
        name.is_some_and(|name| name.deleted_original(&kept).is_some())
    };
    let (kept, live): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(is_kept);
    let first_live = kept.len() + 1;
    let entries = [kept, live].concat();
    let mut client = Client::connect(&settings).map_err(|e| failed(e.to_string()))?;
    // All in one go: a process that dies cannot leave a part of it unsaid.
    let in_between = fault::is_armed(Point::MupdateTakenOne);
    let (first, rest) = entries.split_at(if in_between { first_live } else { entries.len() });
    client.activate(first).map_err(|e| failed(e.to_string()))?;
    if in_between {
        fault::point(Point::MupdateTakenOne);
        client.activate(rest).map_err(|e| failed(e.to_string()))?;
    }
    fault::point(Point::MupdateTaken);
    let names: Vec<&[u8]> = entries.iter().map(|e| e.name.as_slice()).collect();
    let found = client.find(&names).map_err(|e| failed(e.to_string()))?;
    let other = entries.iter().zip(&found).find(|(ours, found)| found.as_ref() != Some(ours));
    if let Some((ours, found)) = other {
        let name = String::from_utf8_lossy(&ours.name).into_owned();
        let found = found.as_ref().map(|f| String::from_utf8_lossy(&f.location).into_owned());
        return Err(failed(format!("it says {found:?} of {name}, although it took another")));
    }
    Ok(v1::RouteTaken { mailboxes: entries.len() as u32 })
}

/// What the master says of a user on this server, and of whatever this server has of him;
/// and the master's own name. None: this is no member of a Murder.
pub fn listed(host: &Host, top: &MailboxName) -> Option<Result<(String, Vec<Entry>), String>> {
    let settings = Settings::of(&host.config).filter(|_| is_member(host))?;
    Some(read_list(host, top, &settings))
}

fn read_list(
    host: &Host,
    top: &MailboxName,
    settings: &Settings,
) -> Result<(String, Vec<Entry>), String> {
    let kept = host.config.deletedprefix();
    let mut client = client(settings)?;
    let mut entries = Vec::new();
    let take = |entry: Entry| {
        let Ok(name) = MailboxName::from_internal(&entry.name) else { return };
        let name = name.deleted_original(&kept).map_or(name, |(original, _)| original);
        if name == *top || name.is_below(top) {
            entries.push(entry);
        }
    };
    client.list(&host.welcome().servername, take).map_err(|e| e.to_string())?;
    let here = owned(host, top)?;
    let listed: BTreeSet<&[u8]> = entries.iter().map(|e| e.name.as_slice()).collect();
    let names = here.iter().map(|e| e.name.as_bytes());
    let others: Vec<&[u8]> = names.filter(|name| !listed.contains(name)).collect();
    let found = client.find(&others).map_err(|e| e.to_string())?;
    entries.extend(found.into_iter().flatten());
    Ok((client.master().to_owned(), entries))
}

/// Gives `take` all that the master says of this server; none: no member of a Murder.
pub fn list_all(host: &Host, take: impl FnMut(Entry)) -> Option<Result<(), String>> {
    let settings = Settings::of(&host.config).filter(|_| is_member(host))?;
    let server = host.welcome().servername;
    Some(client(&settings).and_then(|mut c| c.list(&server, take).map_err(|e| e.to_string())))
}

/// Makes the master forget what it says of these mailboxes on this server; how many.
pub fn forget(host: &Host, names: &[&[u8]]) -> Result<usize, String> {
    let settings = Settings::of(&host.config).filter(|_| is_member(host));
    let settings = settings.ok_or("imapd.conf names no mupdate_server")?;
    client(&settings)?.forget(&host.welcome().servername, names).map_err(|e| e.to_string())
}

/// A connection to the master of a standard Murder.
fn client(settings: &Settings) -> Result<Client, String> {
    match settings.config.as_str() {
        "standard" => Client::connect(settings).map_err(|e| e.to_string()),
        other => Err(format!("mupdate_config is {other}, which is not looked into")),
    }
}

/// What this server tells the master of a user: whatever has a place here, what
/// delayed delete keeps included (imap/ctl_mboxlist.c:pop_mupdate_cb).
fn owned(host: &Host, top: &MailboxName) -> Result<Vec<MailboxEntry>, String> {
    let database = host.mailboxes().map_err(|e| e.to_string())?;
    let list = MailboxList::from_database(&database).map_err(|e| e.to_string())?;
    let owned = list.owned(top, &host.config.deletedprefix()).map_err(|e| e.to_string())?;
    let others = [Flag::Deleted, Flag::Moving, Flag::Remote, Flag::Reserve, Flag::Intermediate];
    let ours = |e: &MailboxEntry| e.partition.is_some() && !others.iter().any(|f| e.mbtype.has(*f));
    Ok(owned.into_iter().filter(ours).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::cyrus::config::Defaults;

    fn settings(text: &str) -> Option<Settings> {
        let text = format!("configdirectory: /c\n{text}");
        let config = Config::parse(text.as_bytes(), Defaults::V3, &mut |_| Err(String::new()));
        Settings::of(&config.unwrap())
    }

    #[test]
    fn who_logs_in_where_is_in_imapd_conf() {
        assert_eq!(settings("servername: be1\n"), None);
        let plain =
            settings("mupdate_server: m\nmupdate_authname: a\nmupdate_password: p\n").unwrap();
        assert_eq!((plain.port, plain.authname.as_str()), (3905, "a"));
        assert_eq!((plain.config.as_str(), plain.username.as_str()), ("standard", ""));
        let realm = "mupdate_server: m\nmupdate_authname: a\nmupdate_realm: r\nmupdate_port: 4000\n\
                     mupdate_config: unified\ntls_server_ca_file: /ca.pem\n";
        let realm = settings(realm).unwrap();
        assert_eq!((realm.port, realm.authname.as_str()), (4000, "a@r"));
        assert_eq!(realm.config, "unified");
        assert_eq!(realm.authorities, [PathBuf::from("/ca.pem")]);
    }
}
