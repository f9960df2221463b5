//! Whom a plan means, by who is on the source. Pure.

use super::plan::{Line, Whom};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A user of the source, or a mailbox that nobody owns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Top {
    /// As an admin of the source types it.
    pub name: String,
    /// The user's id; empty: nobody owns it.
    pub userid: String,
    /// The server that was asked, by name.
    pub source: String,
    /// Another server that has a mailbox of that name; empty: none.
    pub also_on: String,
    /// Its partition.
    pub partition: String,
    /// The server that it is on by now, or may be; empty: it is here.
    pub away: String,
    /// Mailboxes; of a user all of his, else 1.
    pub mailboxes: u64,
    /// Messages in them.
    pub messages: u64,
    /// Their size, in bytes.
    pub bytes: u64,
}

/// One user of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The top mailbox.
    pub mailbox: String,
    /// The server that has him, by name; of whom none has: the first that was asked.
    pub source: String,
    /// Where to: an SSH destination.
    pub destination: String,
    /// The partition there, if one is named.
    pub partition: Option<String>,
    /// Not before: milliseconds since 1970.
    pub not_before: i64,
    /// Whether the source has him.
    pub known: bool,
    /// Mailboxes, messages and bytes, as far as the source told.
    pub size: (u64, u64, u64),
}

/// Why nobody is moved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// There is no user in it.
    #[error("the plan names nobody")]
    Empty,
    /// Patterns and partitions that match nobody.
    #[error("{}", .0.join("\n"))]
    Nobody(Vec<String>),
    /// Users whose destination is not known.
    #[error("{0} has no destination: name one by --to, or in the plan")]
    NoDestination(String),
    /// Two of the servers have him.
    #[error("{mailbox} is on {first} and on {second}: plan for one of them at a time")]
    TwoSources {
        /// The user.
        mailbox: String,
        /// One server.
        first: String,
        /// The other.
        second: String,
    },
    /// One user has two destinations.
    #[error("{mailbox} is to go to {first} and to {second}")]
    TwoPlaces {
        /// The user.
        mailbox: String,
        /// One place.
        first: String,
        /// The other.
        second: String,
    },
}

/// Everybody whom the lines mean, each once, in their order.
///
/// A name that the source does not have stays in the plan, and its move will be
/// refused by name; a pattern that matches nobody is an error, and so is a plan of
/// which the source has nobody.
pub fn resolve(
    lines: &[Line],
    tops: &[Top],
    unix_separator: bool,
    to: Option<&str>,
) -> Result<Vec<Planned>, ResolveError> {
    let (planned, nobody) = resolve_again(lines, tops, unix_separator, to)?;
    if nobody.is_empty() { Ok(planned) } else { Err(ResolveError::Nobody(nobody)) }
}

/// The same for a run that has begun: whom it has moved is not found any more, and
/// so what matches nobody is only told.
pub fn resolve_again(
    lines: &[Line],
    tops: &[Top],
    unix_separator: bool,
    to: Option<&str>,
) -> Result<(Vec<Planned>, Vec<String>), ResolveError> {
    if lines.is_empty() {
        return Err(ResolveError::Empty);
    }
    let source = Source::new(tops, unix_separator);
    let first_source = tops.first().map_or("", |top| top.source.as_str());
    let mut planned: Vec<Planned> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut nobody = Vec::new();
    for line in lines {
        let found = source.find(&line.whom);
        if found.is_empty() {
            nobody.push(source.why_nobody(line));
        }
        for (mailbox, top) in found {
            let size = top.map(|top| source.size(top));
            if let Some(top) = top.filter(|top| !top.also_on.is_empty()) {
                return Err(ResolveError::TwoSources {
                    first: top.source.clone(),
                    second: top.also_on.clone(),
                    mailbox,
                });
            }
            let destination = line.destination.as_deref().or(to);
            let destination =
                destination.ok_or_else(|| ResolveError::NoDestination(mailbox.clone()))?;
            let user = Planned {
                destination: destination.to_owned(),
                partition: line.partition.clone(),
                not_before: line.not_before,
                known: size.is_some(),
                size: size.unwrap_or_default(),
                source: top.map_or(first_source, |top| &top.source).to_owned(),
                mailbox,
            };
            match places.get(&user.mailbox).and_then(|at| planned.get(*at)) {
                None => {
                    places.insert(user.mailbox.clone(), planned.len());
                    planned.push(user);
                }
                Some(first) if first.place() == user.place() => {}
                Some(first) => {
                    return Err(ResolveError::TwoPlaces {
                        first: first.place(),
                        second: user.place(),
                        mailbox: user.mailbox,
                    });
                }
            }
        }
    }
    if nobody.is_empty() && !planned.iter().any(|user| user.known) {
        let names: Vec<&str> = planned.iter().take(3).map(|u| u.mailbox.as_str()).collect();
        let more = if planned.len() > names.len() { ", …" } else { "" };
        nobody.push(format!("the source has nobody of the plan: {}{more}", names.join(", ")));
    }
    Ok((planned, nobody))
}

impl Planned {
    /// The destination as push takes it.
    pub fn place(&self) -> String {
        match &self.partition {
            Some(partition) => format!("{}:{partition}", self.destination),
            None => self.destination.clone(),
        }
    }
}

/// Mailboxes, messages and bytes.
type Size = (u64, u64, u64);

/// The source's list, to be looked up.
struct Source<'a> {
    separator: char,
    by_name: BTreeMap<&'a str, &'a Top>,
    by_user: HashMap<&'a str, &'a Top>,
}

impl<'a> Source<'a> {
    fn new(tops: &'a [Top], unix_separator: bool) -> Self {
        let users = tops.iter().filter(|top| !top.userid.is_empty());
        Self {
            separator: if unix_separator { '/' } else { '.' },
            by_name: tops.iter().map(|top| (top.name.as_str(), top)).collect(),
            by_user: users.map(|top| (top.userid.as_str(), top)).collect(),
        }
    }

    /// Whom it means, and what the source says of those that it has.
    fn find(&self, whom: &Whom) -> Vec<(String, Option<&'a Top>)> {
        let has = |top: &'a Top| (top.name.clone(), Some(top));
        match whom {
            Whom::Name(typed) => {
                let name = self.own_form(typed);
                let found = self.by_name.get(name.as_str()).or_else(|| self.by_user.get(&**typed));
                match found {
                    Some(top) => vec![has(top)],
                    // A word is a user's id, as long as no such mailbox is there.
                    None if !typed.contains(['.', '/']) => vec![(format!("user/{typed}"), None)],
                    None => vec![(typed.clone(), None)],
                }
            }
            Whom::Pattern(pattern) => {
                let pattern: Vec<char> = self.own_form(pattern).chars().collect();
                self.topmost(|top| matches(&pattern, &top.name, self.separator)).map(has).collect()
            }
            Whom::Partition(partition) => {
                self.topmost(|top| top.partition == *partition).map(has).collect()
            }
        }
    }

    /// Those that are here and match, but nothing that is below another of them.
    fn topmost(&self, matches: impl Fn(&Top) -> bool) -> impl Iterator<Item = &'a Top> {
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        let separator = self.separator;
        self.by_name.values().copied().filter(move |top| {
            if !top.away.is_empty() || !matches(top) {
                return false;
            }
            let above = top.name.match_indices(separator).map(|(at, _)| &top.name[..at]);
            let below = top.userid.is_empty() && above.into_iter().any(|a| taken.contains(a));
            if !below && top.userid.is_empty() {
                taken.insert(&top.name);
            }
            !below
        })
    }

    /// Of a shared tree, with all below it.
    fn size(&self, top: &Top) -> Size {
        let own = (top.mailboxes, top.messages, top.bytes);
        if !top.userid.is_empty() {
            return own;
        }
        let prefix = format!("{}{}", top.name, self.separator);
        let below =
            self.by_name.range(prefix.as_str()..).take_while(|(n, _)| n.starts_with(&prefix));
        below.fold(own, |sum, (_, t)| (sum.0 + t.mailboxes, sum.1 + t.messages, sum.2 + t.bytes))
    }

    /// A typed name with this server's separator (as `MailboxName::from_external`).
    fn own_form(&self, typed: &str) -> String {
        let swap = |from: char, to: char, dot: char| {
            let change = |c| {
                if c == from {
                    to
                } else if c == to {
                    dot
                } else {
                    c
                }
            };
            typed.chars().map(change).collect()
        };
        match self.separator {
            '.' if typed.contains('/') => swap('/', '.', '^'),
            '/' if !typed.contains('/') && typed.starts_with("user.") => swap('.', '/', '/'),
            _ => typed.to_owned(),
        }
    }

    fn why_nobody(&self, line: &Line) -> String {
        let whom = &line.whom;
        let place = if line.number > 0 { format!("line {}: ", line.number) } else { String::new() };
        let away = |matches: &dyn Fn(&Top) -> bool| {
            self.by_name.values().filter(|top| !top.away.is_empty() && matches(top)).count()
        };
        let gone = match whom {
            Whom::Name(_) => 0,
            Whom::Pattern(pattern) => {
                let pattern: Vec<char> = self.own_form(pattern).chars().collect();
                away(&|top| matches(&pattern, &top.name, self.separator))
            }
            Whom::Partition(partition) => away(&|top| top.partition == *partition),
        };
        match gone {
            0 => format!("{place}{whom} matches nobody on the source"),
            n => {
                format!("{place}{whom} matches nobody on the source any more; {n} are away by now")
            }
        }
    }
}

/// Matches as IMAP's LIST does: `*` any text, `%` any text without separators.
fn matches(pattern: &[char], name: &str, separator: char) -> bool {
    // Whether the text read so far leads to each place of the pattern.
    let mut places = vec![false; pattern.len() + 1];
    let spread = |places: &mut [bool]| {
        for at in 0..pattern.len() {
            if places[at] && matches!(pattern[at], '*' | '%') {
                places[at + 1] = true;
            }
        }
    };
    places[0] = true;
    spread(&mut places);
    for c in name.chars() {
        // From the end, so that each place is read before it is written.
        let mut after = false;
        for at in (0..=pattern.len()).rev() {
            let here = places[at];
            let (stays, goes) = match pattern.get(at) {
                Some('*') => (here, false),
                Some('%') => (here && c != separator, false),
                Some(p) => (false, here && *p == c),
                None => (false, false),
            };
            if at < pattern.len() {
                places[at + 1] = after || goes;
            }
            after = stays;
        }
        places[0] = after;
        spread(&mut places);
    }
    places[pattern.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bulk::plan;
    use jiff::tz::TimeZone;

    fn user(id: &str, separator: &str) -> Top {
        let name = format!("user{separator}{id}");
        Top { name, userid: id.into(), partition: "default".into(), mailboxes: 3, ..Top::default() }
    }

    fn shared(name: &str) -> Top {
        Top {
            name: name.into(),
            partition: "default".into(),
            mailboxes: 1,
            messages: 2,
            bytes: 10,
            ..Top::default()
        }
    }

    fn tops() -> Vec<Top> {
        let mut tops: Vec<Top> = ["anna", "ann", "bob"].iter().map(|id| user(id, ".")).collect();
        tops[2].partition = "ssd".into();
        tops.push(Top { away: "bw2".into(), ..user("alma", ".") });
        tops.extend(["team", "team.sales", "team.sales.2024", "teams"].map(shared));
        tops
    }

    fn names(text: &str, tops: &[Top], unix: bool) -> Result<Vec<String>, ResolveError> {
        let lines = plan::parse(text, &TimeZone::UTC).unwrap();
        let planned = resolve(&lines, tops, unix, Some("bw2"))?;
        Ok(planned.into_iter().map(|user| user.mailbox).collect())
    }

    #[test]
    fn patterns_match_users_and_topmost_shared_mailboxes() {
        let found = |text| names(text, &tops(), false).unwrap();
        assert_eq!(found("user.a*"), ["user.ann", "user.anna"]);
        assert_eq!(found("user/a*"), ["user.ann", "user.anna"]);
        assert_eq!(found("user.%n"), ["user.ann"]);
        assert_eq!(found("%"), ["team", "teams"]);
        assert_eq!(found("team.*"), ["team.sales"]);
        assert_eq!(found("team*"), ["team", "teams"]);
        assert_eq!(found("*"), ["team", "teams", "user.ann", "user.anna", "user.bob"]);
        assert_eq!(found("partition:ssd"), ["user.bob"]);
    }

    #[test]
    fn a_shared_tree_is_as_large_as_all_of_it() {
        let lines = plan::parse("team.%\nteam.sales\n", &TimeZone::UTC).unwrap();
        let planned = resolve(&lines, &tops(), false, Some("bw2")).unwrap();
        assert_eq!(planned.len(), 1);
        assert_eq!(planned[0].size, (2, 4, 20));
    }

    #[test]
    fn names_are_found_in_any_form() {
        let unix = [user("joe.smith", "/"), user("ann", "/")];
        for typed in ["joe.smith", "user/joe.smith"] {
            assert_eq!(names(typed, &unix, true).unwrap(), ["user/joe.smith"], "{typed}");
        }
        assert_eq!(names("user.ann\nann\nuser/ann", &unix, true).unwrap(), ["user/ann"]);
        let dotted = [Top { name: "user.joe^smith".into(), ..user("joe.smith", ".") }];
        for typed in ["joe.smith", "user/joe.smith", "user.joe^smith"] {
            assert_eq!(names(typed, &dotted, false).unwrap(), ["user.joe^smith"], "{typed}");
        }
    }

    #[test]
    fn who_is_not_there_stays_in_the_plan() {
        let found = names("ann\nnoone\nuser.nobody", &tops(), false).unwrap();
        assert_eq!(found, ["user.ann", "user/noone", "user.nobody"]);
    }

    #[test]
    fn nobody_is_an_error() {
        let error = |text| names(text, &tops(), false).unwrap_err().to_string();
        assert_eq!(error("# nobody"), "the plan names nobody");
        assert_eq!(
            error("ann\nuser.z*\npartition:hdd"),
            "line 2: the pattern \"user.z*\" matches nobody on the source\n\
             line 3: the partition \"hdd\" matches nobody on the source"
        );
        assert!(error("user.alm*").ends_with("any more; 1 are away by now"));
        assert!(
            error("nobody\nuser.noone").contains("nobody of the plan: user/nobody, user.noone")
        );
    }

    #[test]
    fn each_user_has_one_destination() {
        let place =
            |text, to| resolve(&plan::parse(text, &TimeZone::UTC).unwrap(), &tops(), false, to);
        let error = place("user.ann", None).unwrap_err();
        assert_eq!(error, ResolveError::NoDestination("user.ann".into()));
        let error = place("user.ann,bw2\nann,bw2,ssd", None).unwrap_err();
        assert_eq!(error.to_string(), "user.ann is to go to bw2 and to bw2:ssd");
        let planned = place("user.ann,bw3\nuser.bob\nann,bw3", Some("bw2")).unwrap();
        let places: Vec<_> = planned.iter().map(Planned::place).collect();
        assert_eq!(places, ["bw3", "bw2"]);
    }

    #[test]
    fn many_stars_are_no_burden() {
        let pattern: Vec<char> = "*a".repeat(40).chars().collect();
        assert!(!matches(&pattern, &"a".repeat(39), '.'));
        assert!(matches(&pattern, &"a".repeat(400), '.'));
    }
}
