//! What is said of a diagnosis, in words and as a document.

use super::diagnose::{Both, Diagnosis, Has, State};
use super::list::{self, Standings};
use super::plan::{NoPlan, Plan};
use crate::verify::finding::Side;
use serde::Serialize;

/// The version of the document.
pub const SCHEMA: u32 = 1;

/// A diagnosis as a document.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The version of this document.
    pub schema: u32,
    /// Always `doctor`.
    pub event: &'static str,
    /// The user.
    pub mailbox: String,
    /// What was found.
    #[serde(flatten)]
    pub diagnosis: Diagnosis,
    /// What that is.
    pub meaning: String,
    /// Since when, in words; empty: not known.
    pub since_utc: String,
    /// What clients and deliveries experience on each server.
    pub experience: Vec<String>,
    /// Further facts.
    pub notes: Vec<String>,
    /// What the repair would do, step by step; empty: none.
    pub repair: Vec<String>,
    /// What else is to be done.
    pub advice: String,
    /// Whether a repair has to be agreed to.
    pub asks: Vec<String>,
    /// Whether something is wrong.
    pub wrong: bool,
}

impl Report {
    /// What is said of it.
    pub fn new(
        mailbox: &str,
        both: Both<'_>,
        diagnosis: Diagnosis,
        plan: &Result<Plan, NoPlan>,
    ) -> Self {
        let origin = both.on(diagnosis.origin).server();
        let other = both.on(diagnosis.origin.other()).server();
        let [meaning, on_origin, on_other] = explain(diagnosis.state);
        let words = |text: &str| text.replace("{origin}", origin).replace("{other}", other);
        let experience = [(origin, on_origin), (other, on_other)]
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(server, text)| format!("on {server}: {}", words(text)));
        let (repair, advice, asks) = match plan {
            Ok(plan) => (steps(both, plan), String::new(), plan.asks.clone()),
            Err(NoPlan::Nothing) => (Vec::new(), String::new(), Vec::new()),
            Err(NoPlan::Other(text)) => (Vec::new(), text.clone(), Vec::new()),
        };
        Self {
            schema: SCHEMA,
            event: "doctor",
            mailbox: mailbox.to_owned(),
            meaning: words(meaning),
            since_utc: utc(diagnosis.since),
            experience: experience.collect(),
            notes: notes(both, &diagnosis),
            repair,
            advice,
            asks,
            wrong: diagnosis.is_wrong(),
            diagnosis,
        }
    }
}

fn utc(seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(seconds).ok().filter(|_| seconds > 0);
    time.map(|time| format!("{time:.0}")).unwrap_or_default()
}

/// What a state is, what is experienced on the server that had the user, and what on
/// the other one.
fn explain(state: State) -> [&'static str; 3] {
    match state {
        State::Well => ["one server serves him, and nothing of another move is in the way", "", ""],
        State::Nobody => ["neither server has him", "", ""],
        State::PartialCopy => [
            "an XFER from {origin} to {other} stopped while it copied: {origin} serves him, and \
             {other} has a part of him, which is live",
            "everything works; a message that could not be read is shown, but not to be had",
            "who logs in finds a part of his mail and can change it; deliveries are accepted into \
             that part. Another XFER would give messages new UIDs on both servers",
        ],
        State::SecondCopy => [
            "an XFER from {origin} to {other} stopped after it had copied: both have all of him, \
             and both copies are live",
            "everything works",
            "everything works on a copy that nobody knows of; deliveries are accepted into it",
        ],
        State::StoppedSwitching => [
            "an XFER from {origin} to {other} died in its last copying: some mailboxes of {origin} \
             are marked as moving, and {other} has a copy, which is live",
            "mailboxes that are marked are listed, but SELECT answers NO with a referral to \
             {other}, and deliveries to them are deferred; the others work. Another XFER does \
             nothing, and says OK. reconstruct would destroy flags and UIDs: do not run it",
            "everything works; deliveries are accepted",
        ],
        State::StoppedDeleting => [
            "an XFER from {origin} to {other} died while it deleted {origin}'s copy; {other} has \
             all of him",
            "no mailbox works: some are marked as moving (SELECT answers NO with a referral), some \
             are deleted; deliveries are deferred, or refused for good where INBOX is deleted. \
             Another XFER does nothing, and says OK",
            "everything works; deliveries are accepted",
        ],
        State::Leftovers => [
            "an XFER from {origin} to {other} has succeeded, but {origin} keeps all files, and \
             records of deleted mailboxes that no tool of Cyrus's removes",
            "LIST is empty, or a new empty INBOX is made at login where autocreate is on; \
             deliveries are refused for good",
            "everything works",
        ],
        State::NewInbox => [
            "the user has moved to {other}, and a new user of his name was made on {origin} since, \
             as autocreate does when somebody logs in there",
            "who logs in sees a new mailbox without his mail; deliveries are accepted into it",
            "everything works",
        ],
        State::Scattered => [
            "records of {origin} lead to {other}, and the user's mailboxes are here and there",
            "mailboxes whose records lead away are listed, but do not work; the others do",
            "the mailboxes that are there work; the others are not seen",
        ],
        State::ListWrong => [
            "one server serves him, but the list of the Murder does not say so",
            "who comes directly is served; through the frontends mailboxes are missing, reserved \
             or looked for elsewhere: they cannot be opened, and deliveries to them fail",
            "",
        ],
        State::ListStale => [
            "neither server has him, but the list of the Murder says so",
            "frontends show mailboxes that cannot be opened, and no other server can make a user of his name",
            "",
        ],
        State::Split => [
            "an XFER from {origin} to {other} died while it deleted, and servers were started \
             since: his mailboxes are in use here and there",
            "the mailboxes that are in use there work, the others are not seen",
            "the mailboxes that are in use there work, the others are not seen",
        ],
        State::OurMove => ["a move by mbcopy is not over", "", ""],
        State::OurRepair => ["a repair by mbcopy doctor is not over", "", ""],
        State::Elsewhere => [
            "records of the user, or the list of the Murder, name a server that was not asked",
            "",
            "",
        ],
        State::Unknown => ["a state that mbcopy does not know", "", ""],
    }
}

fn notes(both: Both<'_>, diagnosis: &Diagnosis) -> Vec<String> {
    let mut notes = Vec::new();
    for side in Side::BOTH {
        let (seen, has) = (both.on(side), diagnosis.has(side));
        let server = seen.server();
        for bad in &has.bad {
            notes.push(format!("{server} cannot read {bad}"));
        }
        for known in seen.moves.iter().filter(|m| !crate::moves::journal::state::is_over(&m.state))
        {
            notes.push(format!(
                "{server} knows a {} with {} (move {}), which stopped when it was {}",
                if known.repair { "repair" } else { "move" },
                known.peer,
                known.id,
                known.state
            ));
        }
        if diagnosis.state == State::Well && has.deleted > 0 {
            notes.push(format!(
                "{server} keeps the files of {} deleted mailboxes, which no tool of Cyrus's removes",
                has.deleted
            ));
        }
    }
    if !diagnosis.elsewhere.is_empty() {
        notes.push(format!("what is named is {}", diagnosis.elsewhere.join(", ")));
    }
    notes.extend(diagnosis.list.as_ref().and_then(listed));
    let taken = list::taken_away(both);
    if let Some(first) = taken.first() {
        notes.push(format!(
            "{} mailboxes that no server has in use any more were taken away by ctl_mboxlist -m, \
             and are kept as {} and so on",
            taken.len(),
            first.display
        ));
    }
    let both_since = diagnosis.here.since > 0 && diagnosis.there.since > 0;
    if both_since {
        notes.push("both servers have had mail of their own since".into());
    }
    notes
}

/// What is wrong with a Murder's list.
fn listed(list: &Standings) -> Option<String> {
    if !list.trouble.is_empty() {
        return Some(format!("what the mupdate master says is not known: {}", list.trouble));
    }
    let counts = [
        (list.reserved, "are reserved: nobody reaches them through a frontend"),
        (list.missing, "are missing: frontends know nothing of them"),
        (list.elsewhere, "are listed on a server where they are not in use"),
        (list.stale, "are listed, and no server has them"),
    ];
    let wrong = counts.iter().filter(|(count, _)| *count > 0);
    let wrong: Vec<String> = wrong.map(|(count, what)| format!("{count} {what}")).collect();
    (!wrong.is_empty()).then(|| format!("in the list of {}: {}", list.master, wrong.join("; ")))
}

/// What a plan does, in words.
fn steps(both: Both<'_>, plan: &Plan) -> Vec<String> {
    let (right, wrong) = (both.on(plan.right).server(), both.on(plan.right.other()).server());
    let mut steps = Vec::new();
    let back = plan.restore.iter().filter(|r| !r.remove).count();
    if back > 0 {
        steps.push(format!("make {back} records on {right} live again, as they were"));
    }
    let removed = plan.restore.len() - back;
    if removed > 0 {
        steps.push(format!("remove {removed} records on {right} that lead to nothing there"));
    }
    if plan.list {
        steps.push(format!("make the list of the Murder say that what {right} has is on {right}"));
    }
    let forgotten: usize = plan.forget.iter().map(|(_, names)| names.len()).sum();
    if forgotten > 0 {
        steps.push(format!("make the list of the Murder forget {forgotten} mailboxes"));
    }
    let messages: usize = plan.carry.iter().map(|c| c.messages.len()).sum();
    if messages > 0 || !plan.carry.is_empty() {
        steps.push(format!(
            "carry {messages} messages of {} mailboxes from {wrong} to {right}",
            plan.carry.len()
        ));
    }
    if plan.put_aside {
        steps.push(format!(
            "put what {wrong} has aside, keeping every byte, and send his clients there to {right}"
        ));
    }
    if plan.push {
        steps.push(format!("push him from {right} to {wrong}"));
    }
    steps
}

impl Has {
    fn line(&self) -> String {
        let mut line = format!("{} has {} live mailboxes", self.server, self.live);
        for (count, what) in [
            (self.away, "that send clients away"),
            (self.deleted, "deleted, but with all files"),
            (self.put_away, "put away by mbcopy"),
            (self.unnamed, "that no name leads to"),
        ] {
            if count > 0 {
                line.push_str(&format!(", {count} {what}"));
            }
        }
        line.push_str(&format!("; {} messages", self.messages));
        if self.newest > 0 {
            line.push_str(&format!(", the newest of {}", utc(i64::from(self.newest))));
        }
        if self.alone > 0 {
            line.push_str(&format!("; {} only here", self.alone));
        }
        if self.since > 0 {
            line.push_str(&format!(", {} of them since", self.since));
        }
        line
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = match self.since_utc.as_str() {
            "" => String::new(),
            since => format!(", since {since}"),
        };
        let state = serde_json::to_value(self.diagnosis.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default().to_owned();
        write!(f, "{}: {state}{since}\n  {}", self.mailbox, self.meaning)?;
        for has in [&self.diagnosis.here, &self.diagnosis.there] {
            write!(f, "\n  {}", has.line())?;
        }
        for line in self.experience.iter().chain(&self.notes) {
            write!(f, "\n  {line}")?;
        }
        for (number, step) in self.repair.iter().enumerate() {
            let word = if number == 0 { "repair" } else { "then" };
            write!(f, "\n  {word}: {step}")?;
        }
        for ask in &self.asks {
            write!(f, "\n  needs --yes: {ask}")?;
        }
        if !self.advice.is_empty() {
            write!(f, "\n  next: {}", self.advice)?;
        }
        Ok(())
    }
}
