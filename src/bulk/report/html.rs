//! The report as one page that needs nothing else.

use super::{BARS, FREEZES, Figures, Found, ReportError, differences, each, time};
use crate::bulk::state::State;
use crate::bulk::status::Status;
use crate::bulk::store::{Store, User};
use indicatif::{HumanBytes, HumanCount};
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write;

/// Problems of one user that the page names.
const MAX_PROBLEMS: usize = 50;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// Writes the page; `now` is in milliseconds since 1970.
pub fn html(store: &Store, now: i64, to: &mut dyn Write) -> Result<(), ReportError> {
    let status = Status::of(store, now)?;
    let figures = Figures::of(store)?;
    let run = escaped(&status.run);
    write!(
        to,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>mbcopy: {run}</title><style>{STYLE}</style></head><body>\n\
         <header><h1>{run}</h1><p>{}</p></header>\n<main>\n",
        escaped(&summary(&status, now))
    )?;
    tiles(&status, &figures, to)?;
    write!(to, "<div class=\"plots\">")?;
    throughput(&figures, to)?;
    freezes(&figures, to)?;
    writeln!(to, "</div>")?;
    named_differences(store, to)?;
    users(store, &status, to)?;
    writeln!(to, "</main><script>{SCRIPT}</script></body></html>")?;
    Ok(())
}

fn summary(status: &Status, now: i64) -> String {
    let left = status.users - status.ended;
    let rest = match left {
        0 => "nothing is left to do".to_owned(),
        n => format!("{} users are left", HumanCount(n)),
    };
    let trouble = match status.troubled {
        0 => "nobody is in trouble".to_owned(),
        1 => "1 user is in trouble".to_owned(),
        n => format!("{} users are in trouble", HumanCount(n)),
    };
    format!("As of {}: {rest}, {trouble}.", time(now))
}

fn tiles(status: &Status, figures: &Figures, to: &mut dyn Write) -> std::io::Result<()> {
    write!(to, "<section class=\"tiles\">")?;
    let mut tile = |name: &str, value: String| {
        write!(to, "<div class=\"tile\"><b>{value}</b><span>{name}</span></div>")
    };
    let done = [State::Moved, State::MovedWithLosses, State::Copied, State::Reversed];
    let done = status.states.iter().filter(|count| done.contains(&count.state));
    let (users, messages, bytes) =
        done.fold((0, 0, 0), |sum, c| (sum.0 + c.users, sum.1 + c.messages, sum.2 + c.bytes));
    tile("users done", format!("{} of {}", HumanCount(users), HumanCount(status.users)))?;
    tile("in trouble", HumanCount(status.troubled).to_string())?;
    tile("messages of those done", HumanCount(messages).to_string())?;
    tile("their size", HumanBytes(bytes).to_string())?;
    tile("crossed the wire", HumanBytes(figures.bytes_sent).to_string())?;
    if let Some((first, last)) = figures.span {
        tile("from the first to the last", span((last - first) as f64))?;
    }
    if let Some((middle, most, longest)) = figures.freeze {
        tile("frozen: half less than", span(middle))?;
        tile("frozen: 95 of 100 less than", span(most))?;
        tile("frozen at most", span(longest))?;
    }
    writeln!(to, "</section>")
}

fn throughput(figures: &Figures, to: &mut dyn Write) -> std::io::Result<()> {
    let Some((first, last)) = figures.span else { return Ok(()) };
    let most = figures.throughput.iter().copied().fold(0.0, f64::max);
    let mut bars = String::new();
    for (at, rate) in figures.throughput.iter().enumerate() {
        let height = if most > 0.0 { rate / most * 100.0 } else { 0.0 };
        let begin = first + (last - first) * at as i64 / BARS as i64;
        let _ = write!(
            bars,
            "<rect x=\"{}\" y=\"{:.2}\" width=\"8\" height=\"{height:.2}\"><title>{}: {}/s</title></rect>",
            at * 10 + 1,
            100.0 - height,
            time(begin),
            HumanBytes(*rate as u64)
        );
    }
    writeln!(
        to,
        "<figure id=\"throughput\"><figcaption>Throughput, at most {}/s</figcaption>\
         <svg viewBox=\"0 0 {} 100\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"bytes per second over time\">{bars}</svg>\
         <div class=\"ends\"><span>{}</span><span>{}</span></div></figure>",
        HumanBytes(most as u64),
        BARS * 10,
        time(first),
        time(last)
    )
}

fn freezes(figures: &Figures, to: &mut dyn Write) -> std::io::Result<()> {
    if figures.freeze.is_none() {
        return Ok(());
    }
    let most = figures.freezes.iter().copied().max().unwrap_or(0).max(1) as f64;
    write!(
        to,
        "<figure id=\"freezes\"><figcaption>How long users were frozen</figcaption><table>"
    )?;
    let used = figures.freezes.iter().rposition(|count| *count > 0).unwrap_or(0);
    for (at, count) in figures.freezes.iter().enumerate().take(used + 1) {
        let class = match FREEZES.get(at) {
            Some(end) => format!("≤ {}", span(*end)),
            None => "longer".to_owned(),
        };
        write!(
            to,
            "<tr><th>{class}</th><td><i style=\"width:{:.1}%\"></i></td><td class=\"n\">{}</td></tr>",
            *count as f64 / most * 100.0,
            HumanCount(*count)
        )?;
    }
    writeln!(to, "</table></figure>")
}

fn named_differences(store: &Store, to: &mut dyn Write) -> Result<(), ReportError> {
    let named = differences(store)?;
    if named.is_empty() {
        return Ok(());
    }
    write!(to, "<section><h2>What Cyrus itself makes different</h2><ul>")?;
    for (name, users) in named {
        write!(to, "<li><code>{}</code>: {} users</li>", escaped(&name), HumanCount(users))?;
    }
    writeln!(to, "</ul></section>")?;
    Ok(())
}

fn users(store: &Store, status: &Status, to: &mut dyn Write) -> Result<(), ReportError> {
    write!(
        to,
        "<section><h2>Users</h2><nav id=\"filter\" hidden><input type=\"search\" \
         placeholder=\"name or reason\" aria-label=\"filter\">\
         <button data-state=\"\" class=\"on\">all {}</button>",
        HumanCount(status.users)
    )?;
    for count in &status.states {
        let word = count.state.word();
        write!(to, "<button data-state=\"{word}\">{word} {}</button>", HumanCount(count.users))?;
    }
    write!(
        to,
        "</nav><table id=\"users\"><thead><tr><th>state</th><th>user</th><th>to</th>\
         <th class=\"n\">messages</th><th class=\"n\">size</th><th class=\"n\">frozen</th>\
         <th class=\"n\">tries</th><th>why, and what to do</th></tr></thead><tbody>"
    )?;
    each(store, |user| row(&user, to))?;
    writeln!(to, "</tbody></table></section>")?;
    Ok(())
}

fn row(user: &User, to: &mut dyn Write) -> std::io::Result<()> {
    let state = user.state.word();
    let kind = match user.state {
        state if state.is_trouble() => "bad",
        State::Moved | State::Copied | State::Reversed => "good",
        State::MovedWithLosses => "warn",
        _ => "plain",
    };
    let frozen = if user.freeze_ms > 0.0 { span(user.freeze_ms) } else { "–".to_owned() };
    write!(
        to,
        "\n<tr data-state=\"{state}\"><td><span class=\"{kind}\">{state}</span></td><td>{}</td>\
         <td>{}</td><td class=\"n\" data-name=\"messages\">{}</td><td class=\"n\" data-name=\"size\">{}</td>\
         <td class=\"n\" data-name=\"frozen\">{frozen}</td><td class=\"n\" data-name=\"tries\">{}</td><td>",
        escaped(&user.mailbox),
        escaped(&user.destination),
        HumanCount(user.messages),
        HumanBytes(user.bytes),
        user.attempts
    )?;
    if !user.reason.is_empty() {
        write!(to, "{}", escaped(&user.reason))?;
        if !user.advice.is_empty() {
            write!(to, "<br><em>{}</em>", escaped(&user.advice))?;
        }
    }
    details(user, to)?;
    write!(to, "</td></tr>")
}

/// The messages that were bad, and whatever else was found.
fn details(user: &User, to: &mut dyn Write) -> std::io::Result<()> {
    let Found { problems, in_all, .. } = Found::of(user);
    if problems.is_empty() {
        return Ok(());
    }
    write!(to, "<details><summary>{} found</summary><ul>", HumanCount(in_all))?;
    for problem in problems.iter().take(MAX_PROBLEMS) {
        let part = |key: &str| escaped(problem[key].as_str().unwrap_or_default());
        let message = match &problem["uid"] {
            Value::Number(uid) => format!(" message {uid}"),
            _ => String::new(),
        };
        write!(
            to,
            "<li>{} {}{message}: {} <code>{}</code> <em>{}</em></li>",
            part("server"),
            part("mailbox"),
            part("text"),
            part("path"),
            part("advice")
        )?;
    }
    let named = problems.len().min(MAX_PROBLEMS) as u64;
    if in_all > named {
        let kept = match problems.len() as u64 {
            kept if kept == in_all => "the JSON report has them".to_owned(),
            kept if kept > named => format!("the JSON report has {kept} of all"),
            _ => "they are not kept".to_owned(),
        };
        write!(to, "<li>and {} more; {kept}</li>", HumanCount(in_all - named))?;
    }
    write!(to, "</ul></details>")
}

/// Milliseconds for people.
fn span(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.1} s", ms / 1000.0),
        ms if ms < 3_600_000.0 => format!("{:.1} min", ms / 60_000.0),
        ms => format!("{:.1} h", ms / 3_600_000.0),
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_reasons_are_text_and_never_markup() {
        let dir = tempfile::tempdir().unwrap();
        let store = super::super::tests::run(dir.path());
        let mut page = Vec::new();
        html(&store, 1_700_000_200_000, &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains("user.carla&lt;script&gt;") && !page.contains("carla<script>"));
        assert!(page.contains("do &lt;this&gt;"));
        assert!(page.contains("message 7: it cannot be read <code>/spool/7.</code>"));
        assert!(page.contains("310 found") && page.contains("and 309 more; they are not kept"));
        assert_eq!(page.matches("<tr data-state=").count(), 8);
        assert!(!page.contains("http://") && !page.contains("https://"), "it needs nothing else");
    }
}
