//! The screen of `mbcopy bulk status`: lines made of a status, and put into a terminal.

use crate::bulk::pulse::Pace;
use crate::bulk::status::{Current, Status};
use crate::bulk::store::User;
use console::{Term, measure_text_width, truncate_str};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::io::{self, Write};
use std::time::Duration;

/// How wide the bar is.
const BAR: u64 = 40;

/// What is drawn of a run, in the order of its weight.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Screen {
    /// How far it is.
    head: Vec<String>,
    /// What is under way, below a headline; nothing: none.
    current: Vec<String>,
    /// Who got into trouble last, below a headline; nobody: none.
    troubles: Vec<String>,
}

impl Screen {
    pub(super) fn of(status: &Status) -> Self {
        Self { head: head(status), current: current(status), troubles: troubles(status) }
    }

    /// All of it, as long as it is.
    pub(super) fn text(&self) -> String {
        self.lines().join("\n")
    }

    fn lines(&self) -> Vec<String> {
        [&self.head[..], &self.current, &self.troubles].concat()
    }

    /// The same, so that nothing scrolls away and no line wraps: of what does not fit is
    /// told how much it is.
    fn fitted(mut self, rows: usize, columns: usize) -> Vec<String> {
        let room = rows.saturating_sub(self.head.len());
        if self.current.len() + self.troubles.len() > room {
            let of_troubles = (room / 3).max(room.saturating_sub(self.current.len()));
            cut(&mut self.troubles, of_troubles);
            cut(&mut self.current, room - self.troubles.len());
        }
        let mut lines = self.lines();
        lines.truncate(rows);
        lines.iter().map(|line| truncate_str(line, columns, "...").into_owned()).collect()
    }

    /// Draws it over what was drawn before; without a terminal, below.
    pub(super) fn draw(self, terminal: &Term) -> io::Result<()> {
        let Some((rows, columns)) = terminal.size_checked() else {
            return writeln!(io::stdout(), "{}\n", self.text());
        };
        // The cursor stands in the last row.
        let rows = usize::from(rows).saturating_sub(1);
        let lines = self.fitted(rows, usize::from(columns));
        // Home; each line up to its end; and what is below. Nothing flickers.
        let all: String = lines.iter().map(|line| format!("{line}\x1b[K\r\n")).collect();
        let mut out = io::stdout().lock();
        write!(out, "\x1b[H{all}\x1b[J")?;
        out.flush()
    }
}

/// At most so many lines; the last one says how many more there are.
fn cut(lines: &mut Vec<String>, most: usize) {
    if lines.len() <= most {
        return;
    }
    let kept = most.saturating_sub(1);
    let more = lines.len() - kept;
    lines.truncate(kept);
    // A headline alone says nothing.
    if kept > 0 {
        lines.push(format!("  and {more} more"));
    }
}

fn head(status: &Status) -> Vec<String> {
    let doing = match (status.coordinated, status.control) {
        (true, "go") => "at work",
        (true, control) => control,
        (false, "paused") => "paused; nobody is at work on it",
        (false, _) if status.ended == status.users => "over",
        (false, _) => "nobody is at work on it; `mbcopy bulk resume` goes on",
    };
    let mut lines = vec![format!("{} ({}): {doing}", status.run, status.mode)];
    if status.control != "paused" {
        lines.extend(status.waits.iter().map(|why| format!("  {why}")));
    }
    let (ended, users) = (HumanCount(status.ended), HumanCount(status.users));
    let part =
        |of: u64| (u128::from(status.ended) * u128::from(of)) / u128::from(status.users.max(1));
    let done = part(BAR) as usize;
    let bar =
        format!("[{}{}]", "#".repeat(done), "-".repeat(BAR as usize - done.min(BAR as usize)));
    lines.push(format!("  {bar} {ended} of {users} users ended ({}%)", part(100)));
    let mut pace = Vec::new();
    if status.users_per_hour > 0.0 {
        let users = HumanCount(status.users_per_hour.round() as u64);
        pace.push(format!(
            "lately {users} users an hour, {}/s",
            bytes(status.bytes_per_second as u64)
        ));
    }
    if let Some(end) = status.end_unix_ms {
        let left = HumanDuration(span(end - status.at_unix_ms));
        pace.push(format!("about {left} left, until {}", clock(end, status.at_unix_ms)));
    }
    if !pace.is_empty() {
        lines.push(format!("  {}", pace.join("; ")));
    }
    for count in &status.states {
        lines.push(format!(
            "  {:<18} {:>9} users {:>13} messages {:>12}",
            count.state.word(),
            HumanCount(count.users).to_string(),
            HumanCount(count.messages).to_string(),
            bytes(count.bytes)
        ));
    }
    lines.extend(status.paces.iter().map(pace_line));
    lines
}

fn pace_line(pace: &Pace) -> String {
    let canary = match pace.canary_ms {
        0.0 => String::new(),
        ms => format!(", a client waits {ms:.0} ms"),
    };
    let known = match pace.trouble.as_str() {
        "" => format!("load {:.2} for each processor{canary}", pace.load),
        trouble => format!("not known: {trouble}"),
    };
    format!("  {}: {known}; {} at once", pace.target, pace.allowed)
}

fn current(status: &Status) -> Vec<String> {
    let rows = status.current.iter().map(|current| {
        let Current { progress, .. } = current;
        let phase = if progress.phase.is_empty() { "starting" } else { &progress.phase };
        let part = match progress.bytes_in_all {
            0 => String::new(),
            all => {
                let part = u128::from(progress.bytes) * 100 / u128::from(all);
                format!("{:>3}% of {}", part.min(100), bytes(all))
            }
        };
        [
            current.mailbox.clone(),
            format!("to {}", current.destination),
            phase.to_owned(),
            part,
            format!("since {:#}", HumanDuration(span(current.since_ms))),
        ]
    });
    table("under way:", rows.collect())
}

fn troubles(status: &Status) -> Vec<String> {
    let now = status.at_unix_ms;
    let state = |user: &User| match user.next_unix_ms > now && !user.state.is_end() {
        true => format!(
            "{}, again in {:#}",
            user.state.word(),
            HumanDuration(span(user.next_unix_ms - now))
        ),
        false => user.state.word().to_owned(),
    };
    let rows = status.troubles.iter().map(|user| {
        [
            user.mailbox.clone(),
            format!("{:#} ago", HumanDuration(span(now - user.updated_unix_ms))),
            format!("{}: {}", state(user), user.reason),
        ]
    });
    table("last troubles:", rows.collect())
}

/// A headline and rows whose columns stand below each other; nothing of no rows.
fn table<const N: usize>(headline: &str, rows: Vec<[String; N]>) -> Vec<String> {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = measure_text_width(cell).max(*width);
        }
    }
    let mut lines = Vec::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str("  ");
            line.push_str(cell);
            line.push_str(&" ".repeat(width - measure_text_width(cell)));
        }
        line.truncate(line.trim_end().len());
        lines.push(line);
    }
    if !lines.is_empty() {
        lines.insert(0, headline.to_owned());
    }
    lines
}

fn bytes(bytes: u64) -> String {
    HumanBytes(bytes).to_string()
}

fn span(milliseconds: i64) -> Duration {
    Duration::from_millis(milliseconds.max(0).unsigned_abs())
}

/// When that is, on this machine's clock; with the day where it is another one.
fn clock(at: i64, now: i64) -> String {
    let local = |ms| {
        let time = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
        time.to_zoned_datetime(jiff::tz::TimeZone::system())
    };
    let (at, now) = (local(at), local(now));
    let form = if at.date() == now.date() { "%H:%M" } else { "%a %d %b, %H:%M" };
    at.strftime(form).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::attempt::Progress;
    use crate::bulk::state::{State, Task};
    use crate::bulk::store::Count;

    const NOW: i64 = 1_700_000_000_000;

    fn user(n: usize, state: State, reason: &str) -> User {
        User {
            mailbox: format!("user.x{n}"),
            source: String::new(),
            destination: "bw2".into(),
            task: Task::Move,
            state,
            attempts: 1,
            next_unix_ms: if state.is_end() { 0 } else { NOW + 12_000 },
            move_id: String::new(),
            mailboxes: 1,
            messages: 1,
            bytes: 1,
            messages_sent: 0,
            bytes_sent: 0,
            freeze_ms: 0.0,
            serving: String::new(),
            reason: reason.into(),
            advice: String::new(),
            updated_unix_ms: NOW - 180_000,
            detail: String::new(),
        }
    }

    fn status(current: usize, troubles: usize) -> Status {
        let one = |n: usize| Current {
            mailbox: format!("user.{}", "y".repeat(n + 1)),
            source: String::new(),
            destination: "bw2".into(),
            task: Task::Move,
            since_ms: 3000,
            progress: Progress {
                phase: "copying".into(),
                messages: 1,
                messages_in_all: 2,
                bytes: 450,
                bytes_in_all: 1000,
            },
        };
        let pace = Pace {
            target: "bw2".into(),
            allowed: 2,
            load: 0.5,
            canary_ms: 48.4,
            trouble: String::new(),
        };
        Status {
            schema: 1,
            run: "autumn".into(),
            mode: "move",
            control: "go",
            coordinated: true,
            users: 1200,
            ended: 300,
            troubled: 1,
            states: vec![Count { state: State::Waiting, users: 892, messages: 9, bytes: 2048 }],
            users_per_hour: 3599.6,
            bytes_per_second: 2048.0,
            end_unix_ms: Some(NOW + 900_000),
            paces: vec![pace],
            waits: vec!["waiting for the window to open".into()],
            current: (0..current).map(one).collect(),
            troubles: (0..troubles).map(|n| user(n, State::Refused, "it is so")).collect(),
            at_unix_ms: NOW,
        }
    }

    #[test]
    fn it_says_what_there_is_in_columns() {
        let mut status = status(2, 1);
        status.troubles.push(user(22, State::Waiting, "not now"));
        let text = Screen::of(&status).text();
        let until = clock(NOW + 900_000, NOW);
        let wanted = format!(
            "autumn (move): at work\n  \
             waiting for the window to open\n  \
             [##########------------------------------] 300 of 1,200 users ended (25%)\n  \
             lately 3,600 users an hour, 2.00 KiB/s; about 15 minutes left, until {until}\n  \
             waiting                  892 users             9 messages     2.00 KiB\n  \
             bw2: load 0.50 for each processor, a client waits 48 ms; 2 at once\n\
             under way:\n  \
             user.y   to bw2  copying   45% of 1000 B  since 3s\n  \
             user.yy  to bw2  copying   45% of 1000 B  since 3s\n\
             last troubles:\n  \
             user.x0   3m ago  refused: it is so\n  \
             user.x22  3m ago  waiting, again in 12s: not now"
        );
        assert_eq!(text, wanted);
        let paused = Status { control: "paused", ..status };
        assert!(Screen::of(&paused).text().starts_with("autumn (move): paused\n  [##"));
    }

    #[test]
    fn it_fits_into_every_terminal_and_tells_what_does_not() {
        let all = Screen::of(&status(8, 8));
        assert_eq!(all.clone().fitted(24, 80).len(), 24);
        assert_eq!(all.clone().fitted(40, 200), all.lines());
        for rows in 0..40 {
            for columns in [1, 20, 80] {
                let lines = all.clone().fitted(rows, columns);
                assert!(lines.len() <= rows, "{rows}: {lines:?}");
                assert!(lines.iter().all(|line| measure_text_width(line) <= columns.max(3)));
                let told = |what: &str| lines.iter().any(|line| line.starts_with(what));
                let told = (told("under way:"), told("last troubles:"));
                assert!(rows < 14 || columns < 20 || told == (true, true), "{rows}: {lines:?}");
            }
        }
        // All are told of, or counted.
        let lines = all.fitted(15, 80);
        let named = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
        let more: usize = lines
            .iter()
            .filter_map(|line| {
                line.strip_prefix("  and ")?.strip_suffix(" more")?.parse::<usize>().ok()
            })
            .sum();
        assert_eq!(named("user.y") + named("user.x") + more, 16, "{lines:?}");
    }
}
