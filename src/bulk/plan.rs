//! What an admin wrote: whom to move, where to, and when. Pure.
//!
//! A plan is a pattern, `partition:NAME`, or the text of a file: one user a line,
//! or CSV with the columns user, destination, partition, when. A line may name a
//! user (`joe`), a mailbox (`user.joe`, `user/joe`, `team.sales`), a pattern
//! (`user.a*`), or a partition; what follows a `#` at the start of a line is a
//! remark.

use jiff::civil;
use jiff::tz::TimeZone;

/// The columns of CSV, in their order where no header names them.
const COLUMNS: [&str; 4] = ["user", "destination", "partition", "when"];

/// Whom one line means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Whom {
    /// A mailbox, or the id of a user.
    Name(String),
    /// All that match: `*` stands for any text, `%` for any without separators.
    Pattern(String),
    /// Everybody whose top mailbox is on this partition of the source.
    Partition(String),
}

impl Whom {
    /// What a word means.
    pub fn parse(word: &str) -> Self {
        match word.strip_prefix("partition:") {
            Some(partition) => Self::Partition(partition.to_owned()),
            None if word.contains(['*', '%']) => Self::Pattern(word.to_owned()),
            None => Self::Name(word.to_owned()),
        }
    }
}

impl std::fmt::Display for Whom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name:?}"),
            Self::Pattern(pattern) => write!(f, "the pattern {pattern:?}"),
            Self::Partition(partition) => write!(f, "the partition {partition:?}"),
        }
    }
}

/// One line of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Whom it means.
    pub whom: Whom,
    /// Where to, if it says so: an SSH destination.
    pub destination: Option<String>,
    /// The partition there, if it says so.
    pub partition: Option<String>,
    /// Not before: milliseconds since 1970; 0: at once.
    pub not_before: i64,
    /// Where it stands, from 1; 0: not in a file.
    pub number: usize,
}

/// What cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {number}: {what}")]
pub struct PlanError {
    /// The line, from 1.
    pub number: usize,
    /// What is wrong.
    pub what: String,
}

impl Line {
    /// One that stands alone.
    pub fn alone(whom: Whom) -> Self {
        Self { whom, destination: None, partition: None, not_before: 0, number: 0 }
    }
}

/// Reads a file of users. `zone`: where times without a zone are meant.
///
/// Errors: the first line that cannot be understood. A file without users is no
/// error here.
pub fn parse(text: &str, zone: &TimeZone) -> Result<Vec<Line>, PlanError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = Vec::new();
    let mut columns: Option<Vec<usize>> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let error = |what: String| PlanError { number, what };
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            continue;
        }
        if trimmed.contains(|c: char| c.is_control()) {
            return Err(error("it holds control characters".into()));
        }
        let fields = fields(trimmed).map_err(error)?;
        let known = match &columns {
            Some(columns) => columns,
            None => {
                let header = header(&fields).map_err(error)?;
                let is_header = header.is_some();
                let order = header.unwrap_or_else(|| (0..COLUMNS.len()).collect());
                let order = columns.insert(order);
                if is_header {
                    continue;
                }
                order
            }
        };
        if fields.len() > known.len() {
            return Err(error(format!("{} fields, where {} are known", fields.len(), known.len())));
        }
        let mut found = [const { None }; COLUMNS.len()];
        for (field, column) in fields.into_iter().zip(known) {
            if let Some(place) = found.get_mut(*column)
                && !field.is_empty()
            {
                *place = Some(field);
            }
        }
        let [user, destination, partition, when] = found;
        let user = user.ok_or_else(|| error("it names no user".into()))?;
        let not_before = when.map_or(Ok(0), |when| time(&when, zone)).map_err(error)?;
        let whom = Whom::parse(&user);
        lines.push(Line { whom, destination, partition, not_before, number });
    }
    Ok(lines)
}

/// The columns that a header names; none: it is no header.
fn header(fields: &[String]) -> Result<Option<Vec<usize>>, String> {
    let column = |field: &String| COLUMNS.iter().position(|c| c.eq_ignore_ascii_case(field));
    if !fields.iter().any(|field| field.eq_ignore_ascii_case("user")) {
        return Ok(None);
    }
    let columns = fields.iter().map(|field| {
        column(field)
            .ok_or_else(|| format!("{field:?} is no column; there are {}", COLUMNS.join(", ")))
    });
    let columns: Vec<usize> = columns.collect::<Result<_, _>>()?;
    let twice =
        columns.iter().enumerate().find(|(at, c)| columns.iter().take(*at).any(|o| o == *c));
    match twice {
        Some((at, _)) => Err(format!("the column {:?} is there twice", fields[at])),
        None => Ok(Some(columns)),
    }
}

/// The fields of a line of CSV (RFC 4180), without line breaks in them.
fn fields(line: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, after) = match rest.trim_start().strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => match rest.split_once(',') {
                Some((field, after)) => (field.trim().to_owned(), Some(after)),
                None => (rest.trim().to_owned(), None),
            },
        };
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// A field after its opening quote, and what follows its comma.
fn quoted_field(text: &str) -> Result<(String, Option<&str>), String> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some((part, after)) = rest.split_once('"') else {
            return Err("a quote is not closed".into());
        };
        field.push_str(part);
        if let Some(after) = after.strip_prefix('"') {
            field.push('"');
            rest = after;
            continue;
        }
        let after = after.trim_start();
        return match after.strip_prefix(',') {
            Some(next) => Ok((field, Some(next))),
            None if after.is_empty() => Ok((field, None)),
            None => Err("something follows a closing quote".into()),
        };
    }
}

/// A moment: `2026-11-28`, `2026-11-28 22:00`, or with a zone as RFC 3339.
fn time(text: &str, zone: &TimeZone) -> Result<i64, String> {
    if let Ok(exact) = text.parse::<jiff::Timestamp>() {
        return Ok(exact.as_millisecond());
    }
    let local = text.parse::<civil::DateTime>().map_err(|_| {
        format!("{text:?} is no time; write 2026-11-28 22:00, or 2026-11-28T22:00+01:00")
    })?;
    let zoned = local.to_zoned_datetime(zone.clone()).map_err(|e| e.to_string())?;
    Ok(zoned.timestamp().as_millisecond())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<Line>, PlanError> {
        parse(text, &TimeZone::UTC)
    }

    fn name(line: &Line) -> &str {
        match &line.whom {
            Whom::Name(name) => name,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn one_user_a_line() {
        let lines = read("# those of today\nuser.a\n\n  user/b  \r\njoe.smith\n").unwrap();
        let names: Vec<_> = lines.iter().map(|line| (name(line), line.number)).collect();
        assert_eq!(names, [("user.a", 2), ("user/b", 4), ("joe.smith", 5)]);
        assert!(lines.iter().all(|l| l.destination.is_none() && l.not_before == 0));
        assert_eq!(read("\u{feff}# nobody\n").unwrap(), []);
    }

    #[test]
    fn csv_with_and_without_header() {
        let lines = read("user.a,bw2,ssd,2026-11-28 22:00\nuser.b,,,\nuser.c\n").unwrap();
        let first = &lines[0];
        assert_eq!(first.destination.as_deref(), Some("bw2"));
        assert_eq!(first.partition.as_deref(), Some("ssd"));
        assert_eq!(first.not_before, 1_795_903_200_000);
        assert!(lines[1..].iter().all(|l| l.destination.is_none() && l.partition.is_none()));

        let lines = read("When,\"User\"\n2026-11-28T22:00+01:00,\"a \"\"b\"\"\"\n").unwrap();
        assert_eq!((name(&lines[0]), lines[0].not_before), ("a \"b\"", 1_795_899_600_000));
        let day = read("user,when\nx,2026-11-28\n").unwrap();
        assert_eq!(day[0].not_before, 1_795_824_000_000);
    }

    #[test]
    fn patterns_and_partitions() {
        let lines = read("user.a*\nuser.%\npartition:ssd\n").unwrap();
        let whom: Vec<_> = lines.into_iter().map(|line| line.whom).collect();
        let pattern = |text: &str| Whom::Pattern(text.into());
        assert_eq!(whom, [pattern("user.a*"), pattern("user.%"), Whom::Partition("ssd".into())]);
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (text, number, what) in [
            ("user.a\nuser.b,x,y,2026-11-28,z\n", 2, "5 fields, where 4 are known"),
            ("user,to\nx,y\n", 1, "\"to\" is no column"),
            ("user,when,user\nx,,y\n", 1, "there twice"),
            ("destination,user\nbw2,\n", 2, "names no user"),
            ("user.a,bw2,,tomorrow\n", 1, "\"tomorrow\" is no time"),
            ("\"user.a\n", 1, "not closed"),
            ("\"user.a\" b,c\n", 1, "follows a closing quote"),
            ("user.\x1b[2J\n", 1, "control characters"),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(error.number, number, "{text}");
            assert!(error.what.contains(what), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_field_comes_back(fields in proptest::collection::vec("[^\\p{Cc}]{1,12}", 1..4)) {
            let quoted: Vec<String> =
                fields.iter().map(|f| format!("\"{}\"", f.replace('"', "\"\""))).collect();
            let again = super::fields(&quoted.join(","));
            prop_assert_eq!(again, Ok(fields));
        }

        #[test]
        fn no_text_breaks_it(text in any::<String>()) {
            let _ = read(&text);
        }
    }
}
