//! Documents for a terminal.

use super::databases::{Right, Root};
use super::index::{Index, Record};
use super::{Content, Document, Flaw};
use std::fmt::Write;

/// A document as lines of text.
pub type Lines = Vec<String>;

/// How many records of a file are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown(pub usize);

impl Shown {
    /// What is left out, as a last line.
    fn rest(self, all: usize) -> Option<String> {
        let rest = all.saturating_sub(self.0);
        (rest > 0).then(|| format!("and {rest} more (--all)"))
    }
}

/// Columns, aligned; a head that begins with `>` is of a column of numbers.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> Lines {
    let plain = |head: &str| head.trim_start_matches('>').to_owned();
    let mut widths: Vec<usize> = heads.iter().map(|h| plain(h).chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String]| {
        let mut line = String::new();
        for ((cell, width), head) in row.iter().zip(&widths).zip(heads) {
            let _ = match head.starts_with('>') {
                true => write!(line, "{cell:>width$}  "),
                false => write!(line, "{cell:<width$}  "),
            };
        }
        line.trim_end().to_owned()
    };
    let head: Vec<String> = heads.iter().map(|head| plain(head)).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

/// Names and values, aligned.
fn fields(all: &[(&str, String)]) -> Lines {
    let width = all.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let said = all.iter().filter(|(_, value)| !value.is_empty() && value != "-");
    said.map(|(name, value)| format!("{name:<width$}  {value}")).collect()
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(record) = &self.record {
            write!(f, "record {record}: ")?;
        }
        if let Some(offset) = self.offset {
            write!(f, "offset {offset}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl Document {
    /// What the file is, in some words.
    pub fn title(&self) -> String {
        let records = |n: usize| if n == 1 { "1 record".into() } else { format!("{n} records") };
        match &self.content {
            Content::Index(index) => {
                format!("index, version {} ({})", index.minor, index.written_by)
            }
            Content::Expunge(index) => {
                format!("expunged messages, version {} ({})", index.minor, index.written_by)
            }
            Content::Header(header) => format!("mailbox header, {} form", header.form),
            Content::Seen(seen) => {
                format!("seen state, {}, {}", seen.file.engine, records(seen.records.len()))
            }
            Content::Subscriptions(list) => format!("{} subscriptions", list.names.len()),
            Content::Quota(_) => "quota".into(),
            Content::Annotations(all) => {
                format!("annotations, {}, {}", all.file.engine, records(all.records.len()))
            }
            Content::Mailboxes(all) => format!(
                "list of mailboxes, {}, {}, and {} of Cyrus's own",
                all.file.engine,
                records(all.records.len()),
                all.other_records
            ),
            Content::Database(all) => {
                format!("database, {}, {}", all.file.engine, records(all.records.len()))
            }
        }
    }

    /// The content for a terminal.
    pub fn lines(&self, shown: Shown) -> Lines {
        let (mut lines, torn) = match &self.content {
            Content::Index(index) => (of_index(index, shown), None),
            Content::Expunge(index) => (records(index, shown), None),
            Content::Header(header) => {
                let text = |value: &Option<String>| value.clone().unwrap_or_default();
                let keywords = header.keywords.iter().enumerate();
                let keywords =
                    keywords.filter_map(|(n, name)| Some(format!("{n}={}", name.as_ref()?)));
                let all = [
                    ("name", text(&header.name)),
                    ("uniqueid", text(&header.uniqueid)),
                    ("type", text(&header.mbtype)),
                    ("quota root", text(&header.quota_root)),
                    ("keywords", keywords.collect::<Vec<_>>().join(" ")),
                    ("rights", header.acl.as_deref().map(rights).unwrap_or_default()),
                ];
                (fields(&all), None)
            }
            Content::Seen(seen) => {
                let rows = seen.records.iter().take(shown.0).map(|r| {
                    let uids = cut(&r.uids, 60);
                    let numbers = [r.count.to_string(), r.last_uid.to_string()];
                    let [count, last] = numbers;
                    vec![r.uniqueid.clone(), count, last, r.last_read.to_string(), uids]
                });
                let heads = ["mailbox", ">seen", ">last UID", "last read", "UIDs"];
                let mut lines = table(&heads, &rows.collect::<Vec<_>>());
                lines.extend(shown.rest(seen.records.len()));
                (lines, seen.file.torn_tail)
            }
            Content::Subscriptions(list) => {
                let mut lines: Lines = list.names.iter().take(shown.0).cloned().collect();
                lines.extend(shown.rest(list.names.len()));
                lines.extend(list.odd.iter().map(|key| format!("{key}  (no mailbox name)")));
                (lines, None)
            }
            Content::Quota(quotas) => (quota(&quotas.roots, shown), None),
            Content::Annotations(all) => {
                let rows = all.records.iter().take(shown.0).map(|r| {
                    let uid = r.uid.map(|uid| uid.to_string());
                    let of = r.mailbox.clone().or(uid).unwrap_or_else(|| "server".into());
                    let modseq = r.modseq.map(|m| m.to_string()).unwrap_or_default();
                    let value = if r.deleted { "(deleted)".into() } else { cut(&r.value, 60) };
                    vec![of, r.entry.clone(), r.userid.clone(), modseq, value]
                });
                let heads = ["of", "entry", "whose", ">MODSEQ", "value"];
                let mut lines = table(&heads, &rows.collect::<Vec<_>>());
                lines.extend(shown.rest(all.records.len()));
                (lines, all.file.torn_tail)
            }
            Content::Mailboxes(all) => {
                let rows = all.records.iter().take(shown.0).map(|m| {
                    let mut kind = vec![m.r#type];
                    kind.extend(&m.states);
                    let server = m.server.as_ref().map(|s| format!("{s}!")).unwrap_or_default();
                    let partition = m.partition.clone().unwrap_or_default();
                    vec![
                        m.name.clone(),
                        kind.join(" "),
                        format!("{server}{partition}"),
                        m.uniqueid.clone().unwrap_or_default(),
                        m.uidvalidity.to_string(),
                        m.changed.to_string(),
                        rights(&m.acl),
                    ]
                });
                let heads =
                    ["name", "type", "partition", "uniqueid", ">UIDVALIDITY", "changed", "rights"];
                let mut lines = table(&heads, &rows.collect::<Vec<_>>());
                lines.extend(shown.rest(all.records.len()));
                (lines, all.file.torn_tail)
            }
            Content::Database(all) => {
                let rows = all.records.iter().take(shown.0);
                let rows = rows.map(|(key, value)| vec![cut(key, 80), cut(value, 120)]);
                let mut lines = table(&["key", "value"], &rows.collect::<Vec<_>>());
                lines.extend(shown.rest(all.records.len()));
                (lines, all.file.torn_tail)
            }
        };
        if let Some(offset) = torn {
            lines.push(format!("from offset {offset} on it was never committed: a crash left it"));
        }
        lines
    }
}

fn of_index(index: &Index, shown: Shown) -> Lines {
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let time = |t: Option<super::time::When>| t.map(|t| t.to_string()).unwrap_or_default();
    let counts = [
        (index.unseen, "without \\Seen"),
        (index.answered, "\\Answered"),
        (index.flagged, "\\Flagged"),
        (index.deleted, "\\Deleted"),
    ];
    let counts = counts.iter().filter_map(|(n, what)| Some(format!("{} {what}", (*n)?)));
    let unlisted = index.num_records.saturating_sub(index.exists);
    let expunged = (unlisted > 0).then(|| format!(", and {unlisted} expunged"));
    let mut used = vec![format!("{} in messages", index.quota_mailbox_used)];
    let more = [
        (index.quota_annot_used, "in annotations"),
        (index.quota_deleted_used, "with \\Deleted"),
        (index.quota_expunged_used, "expunged"),
    ];
    used.extend(more.iter().filter_map(|(n, what)| Some(format!("{} {what}", (*n)?))));
    let crcs = [
        (index.header_file_crc, "cyrus.header"),
        (index.sync_crc, "sync"),
        (index.sync_crc_annot, "annotations"),
    ];
    let crcs = crcs.iter().filter_map(|(n, what)| Some(format!("{what} {}", (*n)?)));
    let all = [
        ("UIDVALIDITY", index.uidvalidity.to_string()),
        ("last UID", index.last_uid.to_string()),
        (
            "messages",
            format!(
                "{}{} ({})",
                index.exists,
                expunged.unwrap_or_default(),
                counts.collect::<Vec<_>>().join(", ")
            ),
        ),
        ("bytes", used.join(", ")),
        ("highest MODSEQ", number(index.highestmodseq)),
        ("expunges since MODSEQ", number(index.deletedmodseq)),
        ("created at MODSEQ", number(index.createdmodseq)),
        ("last append", index.last_appenddate.to_string()),
        ("last POP3 login", index.pop3_last_login.to_string()),
        ("POP3 shows after", time(index.pop3_show_after)),
        ("\\Recent above UID", number(index.recentuid.map(u64::from))),
        ("owner last here", time(index.recenttime)),
        ("first expunged", time(index.first_expunged)),
        ("last repack", time(index.last_repack_time)),
        ("changes known since", time(index.changes_epoch)),
        ("options", index.options.join(" ")),
        ("generation", index.generation.to_string()),
        ("leaked cache", index.leaked_cache.to_string()),
        ("checksums", crcs.collect::<Vec<_>>().join(", ")),
    ];
    let mut lines = fields(&all);
    if !index.records.is_empty() {
        lines.push(String::new());
        lines.extend(records(index, shown));
    }
    lines
}

fn records(index: &Index, shown: Shown) -> Lines {
    let row = |r: &Record| {
        let mut flags = r.flags.clone();
        flags.extend(r.internal_flags.iter().map(|flag| format!("[{flag}]")));
        vec![
            r.uid.to_string(),
            r.internaldate.to_string(),
            r.size.to_string(),
            flags.join(" "),
            r.modseq.map(|m| m.to_string()).unwrap_or_default(),
            r.guid.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = index.records.iter().take(shown.0).map(row).collect();
    let heads = [">UID", "date (UTC)", ">size", "flags", ">MODSEQ", "GUID"];
    let mut lines = if rows.is_empty() { Lines::new() } else { table(&heads, &rows) };
    lines.extend(shown.rest(index.records.len()));
    lines
}

fn quota(roots: &[Root], shown: Shown) -> Lines {
    let mut rows = Vec::new();
    for root in roots.iter().take(shown.0) {
        for (n, used) in root.resources.iter().enumerate() {
            let name = root.name.clone().filter(|_| n == 0).unwrap_or_default();
            let unit = if used.resource.ends_with("STORAGE") { " KiB" } else { "" };
            let limit = used.limit.map_or_else(|| "none".into(), |n| format!("{n}{unit}"));
            rows.push(vec![name, used.resource.to_owned(), used.used.to_string(), limit]);
        }
    }
    let mut lines = table(&["root", "resource", ">used", ">limit"], &rows);
    lines.extend(shown.rest(roots.len()));
    let scanning = roots.iter().filter(|root| root.scanning);
    lines.extend(scanning.map(|root| {
        let name = root.name.as_deref().unwrap_or("it");
        format!("{name} is being counted, or a count was broken off")
    }));
    lines
}

fn rights(all: &[Right]) -> String {
    all.iter().map(|r| format!("{}:{}", r.id, r.rights)).collect::<Vec<_>>().join(" ")
}

/// The beginning of a long text.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}
