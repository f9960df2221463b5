//! The report of a run, at its end or at any time: a page, CSV, or JSON.
//!
//! Users are written one after the other as the store tells them: memory grows
//! neither with their number nor with what was wrong with them.

mod html;

pub use html::html;

use super::status::Status;
use super::store::{Store, StoreError, User};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{self, Write};

/// Bars of the plot of throughput.
const BARS: usize = 60;

/// Upper ends of the classes of freeze times, in milliseconds; one more is open.
const FREEZES: [f64; 10] =
    [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 30_000.0];

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be written.
    #[error("cannot write the report: {0}")]
    Write(#[from] io::Error),
}

/// What the plots show.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// When the first attempt began and the last one ended: milliseconds since 1970.
    pub span: Option<(i64, i64)>,
    /// Bytes per second in equal parts of that time.
    pub throughput: Vec<f64>,
    /// Bytes that crossed the wire.
    pub bytes_sent: u64,
    /// Attempts that have ended.
    pub attempts: u64,
    /// How many users were frozen for so long, by class.
    pub freezes: Vec<u64>,
    /// The middle, the 95th of 100, and the longest, in milliseconds.
    pub freeze: Option<(f64, f64, f64)>,
}

impl Figures {
    /// The figures of a run.
    pub fn of(store: &Store) -> Result<Self, StoreError> {
        let mut figures = Self {
            freezes: vec![0; FREEZES.len() + 1],
            throughput: vec![0.0; BARS],
            ..Self::default()
        };
        let mut freezes: Vec<f64> = Vec::new();
        store.each_attempt(|started, ended, sent, freeze| {
            let (first, last) = figures.span.unwrap_or((started, ended));
            figures.span = Some((first.min(started), last.max(ended)));
            figures.bytes_sent += sent;
            figures.attempts += 1;
            if freeze > 0.0 {
                let class = FREEZES.iter().take_while(|end| freeze > **end).count();
                if let Some(count) = figures.freezes.get_mut(class) {
                    *count += 1;
                }
                freezes.push(freeze);
            }
        })?;
        freezes.sort_unstable_by(f64::total_cmp);
        let part =
            |of: f64| freezes.get(((freezes.len() as f64 - 1.0) * of).round() as usize).copied();
        figures.freeze = part(0.5).zip(part(0.95)).zip(part(1.0)).map(|((m, p), x)| (m, p, x));
        if let Some((first, last)) = figures.span {
            let width = ((last - first) as f64 / BARS as f64).max(1.0);
            store.each_attempt(|started, ended, sent, _| {
                spread(
                    &mut figures.throughput,
                    (started - first) as f64,
                    (ended - first) as f64,
                    width,
                    sent,
                );
            })?;
        }
        Ok(figures)
    }
}

/// Adds what was sent between two times evenly to the bars of this width.
fn spread(bars: &mut [f64], from: f64, to: f64, width: f64, sent: u64) {
    let length = (to - from).max(1.0);
    for (at, bar) in bars.iter_mut().enumerate() {
        let begin = at as f64 * width;
        let shared = to.max(from + 1.0).min(begin + width) - from.max(begin);
        if shared > 0.0 {
            // Milliseconds.
            *bar += sent as f64 * (shared / length) / (width / 1000.0);
        }
    }
}

/// A table for spreadsheets, one user a line.
pub fn csv(store: &Store, to: &mut dyn Write) -> Result<(), ReportError> {
    writeln!(
        to,
        "user,source,destination,task,state,attempts,serving,mailboxes,messages,bytes,messages_sent,\
         bytes_sent,freeze_ms,move_id,updated,bad_messages,reason,advice"
    )?;
    each(store, |user| {
        let bad = Found::of(&user).bad_messages;
        writeln!(
            to,
            "{},{},{},{},{},{},{},{},{},{},{},{},{:.1},{},{},{bad},{},{}",
            field(&user.mailbox),
            field(&user.source),
            field(&user.destination),
            user.task.word(),
            user.state.word(),
            user.attempts,
            field(&user.serving),
            user.mailboxes,
            user.messages,
            user.bytes,
            user.messages_sent,
            user.bytes_sent,
            user.freeze_ms,
            user.move_id,
            time(user.updated_unix_ms),
            field(&user.reason),
            field(&user.advice),
        )
    })
}

/// One JSON document a line: the run, and then each user with all that was found.
pub fn json(store: &Store, now: i64, to: &mut dyn Write) -> Result<(), ReportError> {
    let status = serde_json::to_value(Status::of(store, now)?).unwrap_or_default();
    let figures = Figures::of(store)?;
    let line = serde_json::json!({
        "event": "run",
        "status": status,
        "bytes_sent": figures.bytes_sent,
        "attempts": figures.attempts,
        "freeze_ms": figures.freeze.map(|(middle, most, longest)| {
            serde_json::json!({ "median": middle, "percentile_95": most, "max": longest })
        }),
    });
    writeln!(to, "{line}")?;
    each(store, |user| {
        let mut line = serde_json::to_value(&user).unwrap_or_default();
        line["event"] = "user".into();
        line["detail"] = serde_json::from_str(&user.detail).unwrap_or_default();
        writeln!(to, "{line}")
    })
}

/// Writes each user, until one cannot be written.
fn each(store: &Store, mut write: impl FnMut(User) -> io::Result<()>) -> Result<(), ReportError> {
    let mut result = Ok(());
    store.each_user(|user| {
        if result.is_ok() {
            result = write(user);
        }
    })?;
    Ok(result?)
}

/// What a user's last attempt has found.
#[derive(Debug, Default)]
struct Found {
    /// What is kept of it, what weighs first.
    problems: Vec<Value>,
    /// How much there was.
    in_all: u64,
    /// Messages that could not be copied.
    bad_messages: u64,
}

impl Found {
    fn of(user: &User) -> Self {
        let mut detail: Value = serde_json::from_str(&user.detail).unwrap_or_default();
        let count = |key: &str| detail[key].as_u64().unwrap_or(0);
        let (in_all, bad_messages) = (count("problems_in_all"), count("bad_messages"));
        match detail.get_mut("problems").map(Value::take) {
            Some(Value::Array(problems)) => Self { problems, in_all, bad_messages },
            _ => Self::default(),
        }
    }
}

/// How many users have each named difference.
fn differences(store: &Store) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut named: BTreeMap<String, u64> = BTreeMap::new();
    store.each_user(|user| {
        if !matches!(user.state, super::state::State::Moved | super::state::State::MovedWithLosses)
        {
            return;
        }
        let detail: Value = serde_json::from_str(&user.detail).unwrap_or_default();
        for name in detail["differences"].as_array().into_iter().flatten() {
            *named.entry(name.as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
    })?;
    Ok(named)
}

/// A field of CSV. What a spreadsheet would take for a formula is made text.
fn field(text: &str) -> String {
    let formula = text.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let text = if formula { format!("'{text}") } else { text.to_owned() };
    match text.contains([',', '"', '\n', '\r']) || formula {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    }
}

/// Milliseconds since 1970 as people write it here.
fn time(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms)
        .map(|time| {
            time.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%F %T").to_string()
        })
        .unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::bulk::resolve::Planned;
    use crate::bulk::state::{Outcome, Retries};
    use crate::bulk::store::{Ended, Mode, Order};
    use std::time::Duration;

    /// A run with somebody in most states.
    pub(in crate::bulk) fn run(root: &std::path::Path) -> Store {
        let store = Store::create(root, "test-run").unwrap();
        let names = ["anna", "ben", "carla<script>", "dave", "emil", "=formula", "greta", "hans"];
        let users: Vec<Planned> = names
            .iter()
            .map(|name| Planned {
                mailbox: format!("user.{name}"),
                source: String::new(),
                destination: "bw2".into(),
                partition: None,
                not_before: 0,
                known: true,
                size: (3, 100, 1_000_000),
            })
            .collect();
        store.add(&users, Mode::Move, false).unwrap();
        store.begin(Mode::Move).unwrap();
        store.order(Order::Listed).unwrap();
        store.skip("user.hans").unwrap();
        let outcomes = [
            Outcome::Done,
            Outcome::DoneWithLosses,
            Outcome::Refused,
            Outcome::Failed,
            Outcome::Unfinished,
            Outcome::Done,
        ];
        for (at, outcome) in (0..).zip(outcomes) {
            let started = 1_700_000_000_000 + at * 20_000;
            let mut job = store.claim(started, false).unwrap().unwrap();
            job.started = started;
            let good = matches!(outcome, Outcome::Done | Outcome::DoneWithLosses);
            let detail = match outcome {
                Outcome::Done => r#"{"differences":["lastupdate"],"problems":[]}"#,
                Outcome::DoneWithLosses => {
                    r#"{"differences":["lastupdate","freespace"],"problems":[{"severity":"bad-message",
                    "server":"bw1","mailbox":"user.ben","uid":7,"path":"/spool/7.",
                    "text":"it cannot be read","advice":"mend it"}],"problems_in_all":310,
                    "bad_messages":301}"#
                }
                _ => "",
            };
            let ended = Ended {
                outcome,
                move_id: "0011223344556677".into(),
                size: (3, 100, 1_000_000),
                sent: (100, if good { 1_000_000 } else { 0 }),
                freeze_ms: if good { 40.0 * (at + 1) as f64 } else { 0.0 },
                total_ms: 30_000.0,
                serving: if good { "bw2" } else { "bw1" }.into(),
                text: if outcome == Outcome::Done {
                    String::new()
                } else {
                    format!("{outcome:?}: \"why\"")
                },
                advice: "do <this>".into(),
                detail: detail.into(),
                at: started + 30_000,
            };
            let once = Retries { attempts: 1, pause: Duration::ZERO };
            store.ended(&job, &ended, &once).unwrap();
        }
        store
    }

    fn text(write: impl FnOnce(&mut Vec<u8>) -> Result<(), ReportError>) -> String {
        let mut bytes = Vec::new();
        write(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn csv_has_every_user_and_no_formula() {
        let dir = tempfile::tempdir().unwrap();
        let store = run(dir.path());
        let csv = text(|to| csv(&store, to));
        assert_eq!(csv.lines().count(), 9);
        assert!(csv.lines().nth(1).is_some_and(|line| line.contains(",refused,")), "{csv}");
        assert!(csv.contains("user.ben,,bw2,move,moved-with-losses,1,bw2,3,100,1000000,"), "{csv}");
        assert!(csv.contains(",301,\"DoneWithLosses: \"\"why\"\"\",do <this>"), "{csv}");
        assert_eq!(field("=1+1"), "\"'=1+1\"");
    }

    #[test]
    fn json_has_the_run_and_every_user() {
        let dir = tempfile::tempdir().unwrap();
        let store = run(dir.path());
        let json = text(|to| json(&store, 1_700_000_200_000, to));
        let lines: Vec<Value> = json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["status"]["users"]), (9, &8.into()));
        let ben = lines.iter().find(|line| line["mailbox"] == "user.ben").unwrap();
        assert_eq!(ben["detail"]["problems"][0]["uid"], 7);
    }

    #[test]
    fn figures_count_every_byte_and_freeze() {
        let dir = tempfile::tempdir().unwrap();
        let figures = Figures::of(&run(dir.path())).unwrap();
        assert_eq!((figures.attempts, figures.bytes_sent), (6, 3_000_000));
        let (first, last) = figures.span.unwrap();
        assert_eq!(last - first, 130_000);
        let seconds = 130.0 / BARS as f64;
        let sum: f64 = figures.throughput.iter().map(|rate| rate * seconds).sum();
        assert!((sum - 3_000_000.0).abs() < 1.0, "{sum}");
        assert_eq!(figures.freezes.iter().sum::<u64>(), 3);
        assert_eq!(figures.freeze, Some((80.0, 240.0, 240.0)));
    }

    #[test]
    fn a_run_that_has_not_begun_has_a_report() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::create(dir.path(), "empty").unwrap();
        assert_eq!(text(|to| csv(&store, to)).lines().count(), 1);
        assert!(text(|to| html(&store, 0, to)).contains("</html>"));
    }
}
