//! Clients that change what is not a message: folders, subscriptions, scripts.

use super::{Client, History, Persisted, Route, Violation, Worker, label, message};
use crate::fingerprint::Fingerprint;
use crate::imap::{Imap, NewMessage, Refused, Value, quote, words};
use anyhow::{Context, Result, bail};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Something that clients change; its value is a text, or none where it is not there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    /// A folder, by name; its text is empty.
    Folder(String),
    /// The folder in which the message with this Message-ID is.
    Place(String),
    /// A subscription, by name; its text is empty.
    Subscription(String),
    /// A Sieve script, by name.
    Script(String),
}

impl std::fmt::Display for Thing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Thing::Folder(name) => write!(f, "the folder {name}"),
            Thing::Place(id) => write!(f, "the folder of {id}"),
            Thing::Subscription(name) => write!(f, "the subscription to {name}"),
            Thing::Script(name) => write!(f, "the script {name}"),
        }
    }
}

impl Serialize for Thing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn there() -> Option<String> {
    Some(String::new())
}

impl History {
    /// What is known of a thing after a change to `value`. Of what was changed on both servers
    /// nobody can tell which change was the last.
    fn changed<T>(&mut self, thing: Thing, value: Option<String>, outcome: &Persisted<T>) {
        let late = self.late.contains(&thing);
        if outcome.late {
            self.late.insert(thing.clone());
        }
        let may = self.things.entry(thing).or_insert_with(|| vec![None]);
        if outcome.value.is_some() {
            may.retain(|_| late && !outcome.late);
            may.push(value);
        } else if outcome.ambiguous > 0 && !may.contains(&value) {
            may.push(value);
        }
    }

    /// What a thing was made before others could disturb it.
    fn made(&mut self, thing: Thing, value: Option<String>) {
        self.things.insert(thing, vec![value]);
    }
}

/// The names of the user's folders as the server tells them; an error from one that does not
/// serve him, whose answers mean nothing.
fn names(imap: &mut Imap) -> Result<Vec<String>> {
    let reply = imap.command("LIST \"\" \"INBOX*\"")?;
    let names: Vec<String> =
        reply.of("LIST").filter_map(|list| list.get(3).map(Value::to_string)).collect();
    if !names.iter().any(|name| name == "INBOX") {
        bail!("the server does not show the user");
    }
    Ok(names)
}

/// Sends a command that changes folders. If it is refused because an earlier attempt, whose
/// answer was lost, has done it already, it is done.
fn change(imap: &mut Imap, parts: &[&[u8]], done: impl Fn(&[String]) -> bool) -> Result<()> {
    let refused = match imap.command(words(parts)) {
        Ok(_) => return Ok(()),
        Err(error) if error.is::<Refused>() => error,
        Err(error) => return Err(error),
    };
    match names(imap) {
        Ok(names) if done(&names) => Ok(()),
        _ => Err(refused),
    }
}

fn has(names: &[String], name: &str) -> bool {
    names.iter().any(|known| known == name)
}

/// Starts making folders.
pub fn folder_creator(route: &Route, pause: Duration) -> Worker {
    let mut client = Client::new(route, "INBOX");
    Worker::start(move |stop| {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let name = format!("INBOX.new.c{number}");
            let made = client.persist("CREATE", stop, |imap| {
                change(imap, &[b"CREATE", &quote(&name)], |names| has(names, &name))
            });
            client.history.changed(Thing::Folder(name), there(), &made);
            std::thread::sleep(pause);
        }
        Ok(client.history)
    })
}

/// Makes folders and starts deleting them one by one.
pub fn folder_deleter(route: &Route, count: u32, pause: Duration) -> Result<Worker> {
    let mut client = Client::new(route, "INBOX");
    let folders: Vec<String> = (0..count).map(|number| format!("INBOX.del.d{number}")).collect();
    client.make(&folders)?;
    Ok(Worker::start(move |stop| {
        for name in folders {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let gone = client.persist("DELETE", stop, |imap| {
                change(imap, &[b"DELETE", &quote(&name)], |names| !has(names, &name))
            });
            client.history.changed(Thing::Folder(name), None, &gone);
            std::thread::sleep(pause);
        }
        Ok(client.history)
    }))
}

/// Makes a folder with a message in it and starts giving it one name after the other.
pub fn folder_renamer(route: &Route, pause: Duration) -> Result<Worker> {
    let mut client = Client::new(route, "INBOX");
    let mut name = "INBOX.ren.r0".to_owned();
    client.make(std::slice::from_ref(&name))?;
    let (id, bytes) = message(&label("rename"), 0);
    let mut imap = client.open()?;
    imap.append(&name, &[NewMessage { bytes, ..NewMessage::default() }])?;
    client.session = Some(imap);
    client.history.fate(&id).accepted = 1;
    client.history.made(Thing::Place(id.clone()), Some(name.clone()));
    Ok(Worker::start(move |stop| {
        for number in 1.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let new = format!("INBOX.ren.r{number}");
            let renamed = client.persist("RENAME", stop, |imap| {
                change(imap, &[b"RENAME", &quote(&name), &quote(&new)], |names| {
                    has(names, &new) && !has(names, &name)
                })
            });
            let place = Thing::Place(id.clone());
            client.history.changed(place, Some(new.clone()), &renamed);
            client.history.changed(Thing::Folder(new.clone()), there(), &renamed);
            client.history.changed(Thing::Folder(name), None, &renamed);
            name = new;
            std::thread::sleep(pause);
        }
        Ok(client.history)
    }))
}

/// Makes some folders and starts subscribing and unsubscribing them.
pub fn subscriber(route: &Route, pause: Duration) -> Result<Worker> {
    let mut client = Client::new(route, "INBOX");
    let folders: Vec<String> = (0..4).map(|number| format!("INBOX.sub.s{number}")).collect();
    client.make(&folders)?;
    Ok(Worker::start(move |stop| {
        let mut on = false;
        'work: loop {
            on = !on;
            for name in &folders {
                if stop.load(Ordering::Relaxed) {
                    break 'work;
                }
                let verb: &[u8] = if on { b"SUBSCRIBE" } else { b"UNSUBSCRIBE" };
                let done = client
                    .persist("SUBSCRIBE", stop, |imap| imap.command(words(&[verb, &quote(name)])));
                let value = on.then(String::new);
                client.history.changed(Thing::Subscription(name.clone()), value, &done);
                std::thread::sleep(pause);
            }
        }
        Ok(client.history)
    }))
}

/// Starts storing new versions of a Sieve script.
pub fn script_editor(route: &Route, pause: Duration) -> Worker {
    let mut client = Client::new(route, "INBOX");
    Worker::start(move |stop| {
        let label = label("script");
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let text = format!("# version {number} of {label}\r\nkeep;\r\n");
            let stored = client.store_script("edited", &text, stop);
            client.history.changed(Thing::Script("edited".into()), Some(text), &stored);
            std::thread::sleep(pause);
        }
        Ok(client.history)
    })
}

impl Client {
    /// Makes folders to work on.
    fn make(&mut self, folders: &[String]) -> Result<()> {
        let mut imap = self.open()?;
        for name in folders {
            imap.command(words(&[b"CREATE", &quote(name)]))
                .with_context(|| format!("making {name}"))?;
            self.history.made(Thing::Folder(name.clone()), there());
        }
        self.session = Some(imap);
        Ok(())
    }

    /// Stores a script, by a connection of its own for each attempt.
    fn store_script(&mut self, name: &str, text: &str, stop: &AtomicBool) -> Persisted<()> {
        let start = Instant::now();
        let mut ambiguous = 0;
        loop {
            let sieve = self.route.host().and_then(|host| host.sieve(self.route.user()));
            match sieve {
                Err(error) => {
                    self.history.setback("SIEVE", &format!("opening: {}", super::short(&error)));
                }
                Ok(mut sieve) => match sieve.put(name, text) {
                    Ok(()) => {
                        self.history.done("SIEVE", start);
                        return Persisted {
                            value: Some(()),
                            ambiguous,
                            late: false,
                            maybe_late: false,
                        };
                    }
                    Err(error) => {
                        ambiguous += u32::from(!error.is::<Refused>());
                        self.history.setback("SIEVE", &super::short(&error));
                    }
                },
            }
            if stop.load(Ordering::Relaxed) {
                return Persisted { value: None, ambiguous, late: false, maybe_late: false };
            }
            std::thread::sleep(super::RETRY);
        }
    }
}

/// Compares what was acknowledged of things with what is there in the end.
pub(super) fn check(
    things: &BTreeMap<Thing, Vec<Option<String>>>,
    end: &Fingerprint,
) -> Vec<Violation> {
    let place = |id: &String| {
        let found = end.messages().find(|(_, _, message)| message.message_id == *id);
        found.map(|(folder, _, _)| folder.to_owned())
    };
    let found = |thing: &Thing| match thing {
        Thing::Folder(name) => end.own.mailboxes.contains_key(name).then(String::new),
        Thing::Place(id) => place(id),
        Thing::Subscription(name) => end.own.subscribed.contains_key(name).then(String::new),
        Thing::Script(name) => end.sieve.get(name).map(|script| script.text.clone()),
    };
    things
        .iter()
        .map(|(thing, expected)| (thing, expected, found(thing)))
        .filter(|(_, expected, found)| !expected.contains(found))
        .map(|(thing, expected, found)| Violation::WrongThing {
            thing: thing.clone(),
            expected: expected.clone(),
            found,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fingerprint::{Mailbox, Message, Script};

    fn end() -> Fingerprint {
        let mut end = Fingerprint::default();
        let mut mailbox = Mailbox::default();
        let message = Message { message_id: "<a>".into(), ..Message::default() };
        mailbox.messages.insert(1, message);
        end.own.mailboxes.insert("INBOX.a".into(), mailbox);
        end.own.subscribed.insert("INBOX.a".into(), String::new());
        end.sieve.insert("s".into(), Script { active: false, text: "keep;".into() });
        end
    }

    #[test]
    fn things_are_what_they_were_made() {
        let right = [
            (Thing::Folder("INBOX.a".into()), there()),
            (Thing::Folder("INBOX.b".into()), None),
            (Thing::Place("<a>".into()), Some("INBOX.a".into())),
            (Thing::Subscription("INBOX.a".into()), there()),
            (Thing::Script("s".into()), Some("keep;".into())),
        ];
        for (thing, value) in right {
            let one = |values: Vec<Option<String>>| BTreeMap::from([(thing.clone(), values)]);
            assert_eq!(check(&one(vec![value.clone()]), &end()), [], "{thing}");
            let wrong = Some("otherwise".to_owned());
            assert_eq!(check(&one(vec![wrong.clone()]), &end()).len(), 1, "{thing}");
            assert_eq!(check(&one(vec![wrong, value]), &end()), [], "{thing}");
        }
    }

    #[test]
    fn a_lost_answer_leaves_both_open_and_an_acknowledged_one_does_not() {
        let mut history = History::default();
        let folder = || Thing::Folder("INBOX.a".into());
        let outcome =
            |value, ambiguous, late| Persisted::<()> { value, ambiguous, late, maybe_late: false };
        let may = |history: &History| history.things.get(&folder()).cloned().unwrap_or_default();
        history.changed(folder(), there(), &outcome(None, 0, false));
        assert_eq!(may(&history), [None]);
        history.changed(folder(), there(), &outcome(None, 1, false));
        assert_eq!(may(&history), [None, there()]);
        history.changed(folder(), there(), &outcome(Some(()), 1, false));
        assert_eq!(may(&history), [there()]);
        // What is changed late, and then on the new server, may be either.
        history.changed(folder(), None, &outcome(Some(()), 0, true));
        assert_eq!(may(&history), [None]);
        history.changed(folder(), there(), &outcome(Some(()), 0, false));
        assert_eq!(may(&history), [None, there()]);
    }
}
