//! The screen of `mbcopy bulk status`: lines made of a status, and put into a terminal.

use crate::bulk::pulse::Pace;
use crate::bulk::status::{Current, Status};
use crate::bulk::store::User;
use console::{Term, measure_text_width, truncate_str};
use indicatif::{HumanBytes, HumanCount, HumanDuration};
use std::io::{self, Write};
use std::time::Duration;

/// How wide the bar is.
const BAR: u64 = 30;

/// What is drawn of a run, in the order of its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Screen {
    /// How far it is.
    head: Vec<String>,
    /// What is under way.
    current: Section,
    /// Who got into trouble last.
    troubles: Section,
}

/// Rows below a headline; nothing at all if there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    headline: &'static str,
    rows: Vec<Row>,
}

/// A line, and what is to be said below it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    line: String,
    below: String,
}

impl Screen {
    pub(super) fn of(status: &Status) -> Self {
        Self { head: head(status), current: current(status), troubles: troubles(status) }
    }

    /// All of it, one row a line.
    pub(super) fn text(&self) -> String {
        let mut lines = self.head.clone();
        for section in [&self.current, &self.troubles] {
            lines.extend(section.drawn(usize::MAX, usize::MAX));
        }
        lines.join("\n")
    }

    /// The same, so that nothing scrolls away and no line wraps: of what does not fit is
    /// told how much it is.
    fn fitted(&self, rows: usize, columns: usize) -> Vec<String> {
        let room = rows.saturating_sub(self.head.len());
        let current = self.current.drawn(usize::MAX, columns).len();
        let troubles = self.troubles.drawn((room / 3).max(room.saturating_sub(current)), columns);
        let mut lines = self.head.clone();
        lines.extend(self.current.drawn(room.saturating_sub(troubles.len()), columns));
        lines.extend(troubles);
        lines.truncate(rows);
        lines.iter().map(|line| truncate_str(line, columns, "...").into_owned()).collect()
    }

    /// Draws it over what was drawn before; without a terminal, below.
    pub(super) fn draw(&self, terminal: &Term) -> io::Result<()> {
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

impl Section {
    /// A section whose columns stand below each other.
    fn of<const N: usize>(headline: &'static str, rows: Vec<([String; N], String)>) -> Self {
        let mut widths = [0; N];
        for (cells, _) in &rows {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = measure_text_width(cell).max(*width);
            }
        }
        let line = |cells: &[String; N]| {
            let pad = |(cell, width): (&String, usize)| {
                format!("  {cell}{}", " ".repeat(width - measure_text_width(cell)))
            };
            cells.iter().zip(widths).map(pad).collect::<String>().trim_end().to_owned()
        };
        let rows =
            rows.iter().map(|(cells, below)| Row { line: line(cells), below: below.clone() });
        Self { headline, rows: rows.collect() }
    }

    /// At most so many lines; the last one says how many rows are left out.
    fn drawn(&self, most: usize, columns: usize) -> Vec<String> {
        let mut lines = vec![self.headline.to_owned()];
        for (at, row) in self.rows.iter().enumerate() {
            let drawn = row.drawn(columns);
            let left = self.rows.len() - at;
            if lines.len() + drawn.len() + usize::from(left > 1) > most {
                lines.push(format!("  and {left} more"));
                break;
            }
            lines.extend(drawn);
        }
        // A headline alone says nothing.
        if lines.len() < 2 || lines.len() > most { Vec::new() } else { lines }
    }
}

impl Row {
    fn drawn(&self, columns: usize) -> Vec<String> {
        let one = match self.below.as_str() {
            "" => self.line.clone(),
            below => format!("{}: {below}", self.line),
        };
        if self.below.is_empty() || measure_text_width(&one) <= columns {
            return vec![one];
        }
        let mut lines = vec![format!("{}:", self.line)];
        let mut line = String::new();
        for word in self.below.split(' ') {
            if !line.is_empty()
                && measure_text_width(&line) + measure_text_width(word) + 5 > columns
            {
                lines.push(format!("    {line}"));
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(format!("    {line}"));
        lines
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
            "  {:<17} {:>9} users {:>11} messages {:>10}",
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

fn current(status: &Status) -> Section {
    let rows = status.current.iter().map(|current| {
        let Current { progress, .. } = current;
        let all = progress.bytes_in_all;
        let (phase, part) = match progress.phase.as_str() {
            "" => ("starting", String::new()),
            "copying" if all > 0 => {
                let part = u128::from(progress.bytes) * 100 / u128::from(all);
                ("copying", format!("{:>3}% of {}", part.min(100), bytes(all)))
            }
            phase => (phase, bytes(all)),
        };
        let cells = [
            current.mailbox.clone(),
            format!("to {}", current.destination),
            phase.to_owned(),
            part,
            format!("since {:#}", HumanDuration(span(current.since_ms))),
        ];
        (cells, String::new())
    });
    Section::of("under way:", rows.collect())
}

fn troubles(status: &Status) -> Section {
    let now = status.at_unix_ms;
    let state = |user: &User| match user.next_unix_ms > now && !user.state.is_end() {
        true => {
            let again = HumanDuration(span(user.next_unix_ms - now));
            format!("{}, again in {again:#}", user.state.word())
        }
        false => user.state.word().to_owned(),
    };
    let rows = status.troubles.iter().map(|user| {
        let ago = format!("{:#} ago", HumanDuration(span(now - user.updated_unix_ms)));
        ([user.mailbox.clone(), ago, state(user)], user.reason.clone())
    });
    Section::of("last troubles:", rows.collect())
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
             [#######-----------------------] 300 of 1,200 users ended (25%)\n  \
             lately 3,600 users an hour, 2.00 KiB/s; about 15 minutes left, until {until}\n  \
             waiting                 892 users           9 messages   2.00 KiB\n  \
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
        assert_eq!(all.fitted(24, 80).len(), 24);
        assert_eq!(all.fitted(40, 200).join("\n"), all.text());
        for rows in 0..40 {
            for columns in [1, 20, 80] {
                let lines = all.fitted(rows, columns);
                assert!(lines.len() <= rows, "{rows}: {lines:?}");
                assert!(lines.iter().all(|line| measure_text_width(line) <= columns.max(3)));
                let told = |what: &str| lines.iter().any(|line| line.starts_with(what));
                let told = (told("under way:"), told("last troubles:"));
                assert!(rows < 14 || columns < 80 || told == (true, true), "{rows}: {lines:?}");
            }
        }
        // All are told of, or counted.
        let lines = all.fitted(15, 80);
        let named = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
        let more = |line: &String| {
            line.strip_prefix("  and ")?.strip_suffix(" more")?.parse::<usize>().ok()
        };
        let more: usize = lines.iter().filter_map(more).sum();
        assert_eq!(named("user.y") + named("user.x") + more, 16, "{lines:?}");
        // A long reason stands below.
        let mut long = status(0, 1);
        long.troubles[0].reason = "so it is ".repeat(7).trim_end().into();
        let drawn = Screen::of(&long).fitted(40, 40);
        let end = [
            "  user.x0  3m ago  refused:",
            "    so it is so it is so it is so it is",
            "    so it is so it is so it is",
        ];
        assert_eq!(drawn[drawn.len() - 3..], end);
    }
}
