//! What became of a move, and which promises it broke.

use crate::fingerprint::{self, Fingerprint, volatile};
use crate::workload::{AHEAD, Observation, Step, Thing, Violation};
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The ways in which promises are broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Kind {
    /// Somebody was shown a part of the user.
    Half,
    /// Nobody showed the user, or both servers do in the end.
    Serving,
    /// Something acknowledged is not there.
    Lost,
    /// Something is there twice, or was deleted and is there.
    Undead,
    /// A client was told for good that there is no such mailbox.
    Bounced,
    /// A server said OK to what did not happen, or a UID changed its meaning.
    Lie,
    /// A folder that nobody touched is another.
    Quiet,
    /// The move could not be ended.
    Stuck,
    /// Mail or changes reached the source between route and retire, and nobody carried them over.
    Stragglers,
    /// A folder that was made on the source after it was retired: Cyrus lets that happen to whoever
    /// waited through the freeze.
    LateCreate,
    /// A push failed though nobody disturbed it.
    Unprovoked,
    /// Somebody blocks the user, or has blocked him for longer than a freeze may last.
    Locked,
    /// A command that nobody disturbed took very long.
    Slow,
    /// A process of mbcopy is left.
    Process,
    /// A stage is left.
    Stage,
    /// The runner itself failed: it cannot tell.
    Harness,
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which.
    pub kind: Kind,
    /// How.
    pub text: String,
}

impl Finding {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Finding {
        Finding { kind, text: text.into() }
    }
}

/// What a violation of what clients were told means; `late`: folders that the retired source has.
pub(super) fn finding(violation: &Violation, late: &BTreeSet<String>) -> Finding {
    match violation {
        Violation::WrongThing { thing: Thing::Folder(name), .. } if late.contains(name) => {
            Finding::new(Kind::LateCreate, violation.to_string())
        }
        _ => Finding::from(violation),
    }
}

impl From<&Violation> for Finding {
    fn from(violation: &Violation) -> Finding {
        let kind = match violation {
            Violation::Missing(_) | Violation::WrongFlags { .. } | Violation::WrongThing { .. } => {
                Kind::Lost
            }
            Violation::Doubled(..) | Violation::Undead(_) => Kind::Undead,
            Violation::OtherUid(_) | Violation::Lie(_) => Kind::Lie,
            Violation::Bounced(_) => Kind::Bounced,
            Violation::InBetween(_) => Kind::Half,
        };
        Finding::new(kind, violation.to_string())
    }
}

/// What nobody works on, and therefore never changes.
pub(super) fn is_quiet(folder: &str) -> bool {
    let moving = ["new", "ren", "del", "sub"];
    match folder.strip_prefix("INBOX.") {
        Some(below) => !moving.contains(&below.split('.').next().unwrap_or_default()),
        None => false,
    }
}

/// What a watcher saw at once of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Nobody answered, or only to refuse.
    Unknown,
    None,
    Part,
    Whole,
}

/// The same look over some time.
#[derive(Clone, Copy, Debug)]
struct Phase {
    look: Look,
    first: Duration,
    last: Duration,
    times: u32,
}

/// A watch of one server, reduced to what it means.
pub(super) struct Watch {
    phases: Vec<Phase>,
    /// An example of what was seen of a part.
    part: Option<Step>,
}

impl Watch {
    /// `quiet`: the folders that nobody works on, and how many messages are in each.
    pub fn new(steps: &[Step], quiet: &BTreeMap<String, u64>) -> Watch {
        Watch::reduce(steps, |found| look(found, quiet))
    }

    /// A watch of names alone.
    pub fn of_names(steps: &[Step], quiet: &BTreeMap<String, u64>) -> Watch {
        Watch::reduce(steps, |found| look_at_names(found, quiet))
    }

    fn reduce(steps: &[Step], look: impl Fn(&Observation) -> Look) -> Watch {
        let mut watch = Watch { phases: Vec::new(), part: None };
        // Nobody knows what was shown meanwhile.
        let mut gap = false;
        for step in steps {
            let look = look(&step.found);
            if look == Look::Part && watch.part.is_none() {
                watch.part = Some(step.clone());
            }
            match watch.phases.last_mut() {
                _ if look == Look::Unknown => {
                    gap = true;
                    continue;
                }
                Some(phase) if phase.look == look && !gap => {
                    phase.last = step.last;
                    phase.times += step.times;
                }
                _ => {
                    let Step { first, last, times, .. } = *step;
                    watch.phases.push(Phase { look, first, last, times });
                }
            }
            gap = false;
        }
        watch
    }

    /// Parts that were seen. One look takes several commands: one that began before the
    /// switch and ended after it proves nothing.
    pub fn parts(&self, name: &str) -> Vec<Finding> {
        let neighbour = |at: Option<usize>| Some(self.phases.get(at?)?.look);
        let bad = self.phases.iter().enumerate().filter(|(at, phase)| {
            let before = neighbour(at.checked_sub(1));
            let after = neighbour(Some(at + 1));
            let straddles = matches!(
                (before, after),
                // The first look of all may be such a one, too.
                (Some(Look::None) | None, Some(Look::Whole))
                    | (Some(Look::Whole) | None, Some(Look::None))
            );
            phase.look == Look::Part && !(straddles && phase.times == 1)
        });
        bad.map(|(_, phase)| {
            let Phase { first, last, times, .. } = phase;
            let example = self
                .part
                .as_ref()
                .map(|step| format!("{:?}", step.found).chars().take(400).collect::<String>());
            Finding::new(
                Kind::Half,
                format!(
                    "{name} showed a part of the user {times} times from {first:?} to {last:?}: {}",
                    example.unwrap_or_default()
                ),
            )
        })
        .collect()
    }

    /// Times at which neither server showed the user.
    pub fn nobody(&self, other: &Watch) -> Vec<Finding> {
        let none = |watch: &Watch| -> Vec<(Duration, Duration)> {
            let none = watch.phases.iter().filter(|phase| phase.look == Look::None);
            none.map(|phase| (phase.first, phase.last)).collect()
        };
        let mut found = Vec::new();
        for (first, last) in none(self) {
            for (other_first, other_last) in none(other) {
                let (from, to) = (first.max(other_first), last.min(other_last));
                if from < to {
                    let text = format!("neither server showed the user from {from:?} to {to:?}");
                    found.push(Finding::new(Kind::Serving, text));
                }
            }
        }
        found
    }

    /// How often was looked.
    pub fn looks(&self) -> u32 {
        self.phases.iter().map(|phase| phase.times).sum()
    }
}

fn look(found: &Observation, quiet: &BTreeMap<String, u64>) -> Look {
    let Observation::Mailboxes(found) = found else { return Look::Unknown };
    let right = |(name, count): (&String, &u64)| found.get(name) == Some(&Some(*count));
    let inbox = found.get("INBOX").is_some_and(Option::is_some);
    // Cyrus lists the names of mailboxes that have moved away, and refuses all else.
    let hollow = || !inbox && quiet.keys().all(|name| found.get(name).is_none_or(Option::is_none));
    let first = || quiet.keys().next().is_some_and(|name| found.contains_key(name));
    match found.is_empty() {
        true => Look::None,
        false if inbox && quiet.iter().all(right) => Look::Whole,
        false if hollow() && first() => Look::None,
        false => Look::Part,
    }
}

fn look_at_names(found: &Observation, quiet: &BTreeMap<String, u64>) -> Look {
    let Observation::Mailboxes(found) = found else { return Look::Unknown };
    let all = found.contains_key("INBOX") && quiet.keys().all(|name| found.contains_key(name));
    match found.is_empty() {
        true => Look::None,
        false if all => Look::Whole,
        false => Look::Part,
    }
}

/// Refusals that tell a client that the mailbox is not there at all: he may give it up. One that
/// he has made late cannot be there yet.
pub(super) fn denials(setbacks: &BTreeMap<String, u32>) -> Vec<Finding> {
    let final_words = ["does not exist", "TRYCREATE", "NONEXISTENT"];
    let denied = |reason: &&String| {
        final_words.iter().any(|word| reason.contains(word)) && !reason.contains(AHEAD)
    };
    setbacks.keys().filter(denied).map(|reason| Finding::new(Kind::Bounced, reason)).collect()
}

/// The folders that a server which does not serve the user shows of him all the same.
pub(super) fn still_shown(found: &Observation) -> BTreeSet<String> {
    let Observation::Mailboxes(found) = found else { return BTreeSet::new() };
    found.iter().filter(|(_, count)| count.is_some()).map(|(name, _)| name.clone()).collect()
}

/// The quiet folders and how many messages are in each.
pub(super) fn quiet_counts(print: &Fingerprint) -> BTreeMap<String, u64> {
    let mailboxes = print.own.mailboxes.iter().filter(|(name, _)| is_quiet(name));
    mailboxes.map(|(name, mailbox)| (name.clone(), mailbox.messages.len() as u64)).collect()
}

/// What of the quiet folders is another than before.
pub(super) fn compare_quiet(
    user: &str,
    before: &Fingerprint,
    after: &Fingerprint,
) -> Result<Vec<Finding>> {
    let prefix = format!("user.{user}");
    let quiet = |print: &Fingerprint| {
        let mut quiet = Fingerprint { own: print.own.clone(), ..Fingerprint::default() };
        quiet.own.mailboxes.retain(|name, _| is_quiet(name));
        quiet.own.subscribed.retain(|name, _| is_quiet(name));
        quiet.own.lsub.clear();
        let is_quiet = |name: &str| {
            let own = name.strip_prefix(&prefix).map(|rest| format!("INBOX{rest}"));
            own.is_some_and(|name| is_quiet(&name) && !name.contains("#"))
        };
        quiet.admin = print.admin.clone();
        quiet.admin.retain(|name, _| is_quiet(name));
        quiet.delayed_expunged = print.delayed_expunged.clone();
        quiet.delayed_expunged.retain(|name, _| is_quiet(name));
        quiet.sieve = print.sieve.clone();
        quiet.sieve.retain(|name, _| name == "main");
        quiet
    };
    let known = ["quota", volatile::LASTUPDATE, volatile::SERVER];
    let ignored: Vec<&str> = volatile::ALWAYS.iter().chain(&known).copied().collect();
    let differences = fingerprint::diff(&quiet(before), &quiet(after), &ignored)?;
    Ok(differences.iter().map(|d| Finding::new(Kind::Quiet, d.to_string())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(folders: &[(&str, u64)]) -> Observation {
        let folders = folders.iter().map(|(name, count)| ((*name).to_owned(), Some(*count)));
        Observation::Mailboxes(folders.collect())
    }

    fn watch(looks: &[(Observation, u32)]) -> Watch {
        let quiet = BTreeMap::from([("INBOX.a".to_owned(), 2), ("INBOX.b".to_owned(), 1)]);
        let mut time = Duration::ZERO;
        let mut steps = Vec::new();
        for (found, times) in looks {
            // Each look takes a half of its ten milliseconds.
            let first = time + Duration::from_millis(5);
            time += Duration::from_millis(u64::from(*times) * 10);
            let last = time - Duration::from_millis(10);
            steps.push(Step { found: found.clone(), first, last, times: *times });
        }
        Watch::new(&steps, &quiet)
    }

    #[test]
    fn names_are_all_or_none() {
        let quiet = BTreeMap::from([("INBOX.a".to_owned(), 2), ("INBOX.b".to_owned(), 1)]);
        let named = |names: &[&str]| {
            let names = names.iter().map(|name| ((*name).to_owned(), None));
            look_at_names(&Observation::Mailboxes(names.collect()), &quiet)
        };
        assert_eq!(named(&[]), Look::None);
        assert_eq!(named(&["INBOX", "INBOX.a", "INBOX.b", "INBOX.new.c1"]), Look::Whole);
        assert_eq!(named(&["INBOX", "INBOX.a"]), Look::Part);
        assert_eq!(named(&["INBOX.a", "INBOX.b"]), Look::Part);
    }

    fn none() -> Observation {
        seen(&[])
    }

    fn whole(inbox: u64) -> Observation {
        seen(&[("INBOX", inbox), ("INBOX.a", 2), ("INBOX.b", 1), ("INBOX.new.c1", 0)])
    }

    fn part() -> Observation {
        seen(&[("INBOX", 1), ("INBOX.a", 2)])
    }

    #[test]
    fn a_part_is_half_unless_one_look_straddles_the_switch() {
        let parts = |looks: &[(Observation, u32)]| watch(looks).parts("bw2").len();
        assert_eq!(parts(&[(none(), 3), (whole(1), 2), (whole(2), 2)]), 0);
        assert_eq!(parts(&[(none(), 3), (part(), 1), (whole(1), 2)]), 0);
        assert_eq!(parts(&[(part(), 1), (whole(1), 2)]), 0);
        assert_eq!(parts(&[(part(), 2), (whole(1), 2)]), 1);
        assert_eq!(parts(&[(none(), 3), (part(), 2), (whole(1), 2)]), 1);
        assert_eq!(parts(&[(none(), 3), (part(), 1), (none(), 2)]), 1);
        assert_eq!(parts(&[(whole(1), 3), (part(), 1), (whole(1), 2)]), 1);
        // After the move the source lists names, and nothing can be had of them.
        let hollow = ["INBOX", "INBOX.a", "INBOX.b"].map(|name| (name.to_owned(), None));
        let hollow = Observation::Mailboxes(hollow.into());
        assert_eq!(parts(&[(whole(1), 3), (hollow.clone(), 5)]), 0);
        assert_eq!(still_shown(&hollow).len() + still_shown(&none()).len(), 0);
        assert_eq!(still_shown(&part()).len(), 2);
        // Too few messages are a part, too.
        let fewer = seen(&[("INBOX", 1), ("INBOX.a", 1), ("INBOX.b", 1)]);
        assert_eq!(parts(&[(none(), 1), (fewer, 2), (whole(1), 1)]), 1);
    }

    #[test]
    fn somebody_must_always_show_the_user() {
        let source = watch(&[(whole(1), 3), (none(), 3)]);
        let target = watch(&[(none(), 2), (whole(1), 4)]);
        assert_eq!(source.nobody(&target), []);
        let late = watch(&[(none(), 5), (whole(1), 1)]);
        assert_eq!(source.nobody(&late).len(), 1);
        // What one look of each found may be older than its answer.
        let once = watch(&[(whole(1), 3), (none(), 1)]);
        assert_eq!(once.nobody(&late), []);
        let gap = [(none(), 1), (Observation::Unreachable, 9), (none(), 1)];
        assert_eq!(watch(&gap).nobody(&watch(&[(none(), 20)])), []);
        // A server that is down is not one that denies the user.
        let down = watch(&[(whole(1), 3), (Observation::Unreachable, 3)]);
        assert_eq!(down.nobody(&late), []);
    }

    #[test]
    fn nobody_may_be_told_that_there_is_no_mailbox() {
        let told = |reason: &str| denials(&BTreeMap::from([(reason.to_owned(), 1)])).len();
        assert_eq!(told("APPEND: NO Mailbox has been moved to another server"), 0);
        assert_eq!(told("APPEND: NO [TRYCREATE] Mailbox does not exist"), 1);
        assert_eq!(told("STORE: opening: NO Mailbox does not exist"), 1);
        assert_eq!(told(&format!("RENAME: {AHEAD}NO Mailbox does not exist")), 0);
    }

    #[test]
    fn quiet_folders_may_not_change() {
        let print = |flag: Option<&str>| {
            let mut print = Fingerprint::default();
            for name in ["INBOX.a", "INBOX.new.c1"] {
                let mailbox = print.own.mailboxes.entry(name.into()).or_default();
                let message = mailbox.messages.entry(1).or_default();
                message.flags.extend(flag.filter(|_| name == "INBOX.a").map(str::to_owned));
            }
            print
        };
        assert_eq!(compare_quiet("u", &print(None), &print(None)).expect("compared"), []);
        assert_eq!(compare_quiet("u", &print(None), &print(Some("x"))).expect("compared").len(), 1);
        let mut without = print(None);
        without.own.mailboxes.remove("INBOX.new.c1");
        assert_eq!(compare_quiet("u", &print(None), &without).expect("compared"), []);
    }
}
