//! Reads `imapd.conf` and answers with Cyrus's own defaults.
//!
//! Syntax and fatal errors follow `lib/libconfig.c:config_read_file` (the same
//! from 2.2 to 3.12); the defaults are those of `lib/imapoptions`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::db::Engine;
use super::name::{Namespace, PartitionName, VirtDomains};

/// Where sieve scripts are, if imapd.conf does not say.
const DEFAULT_SIEVEDIR: &str = "/usr/sieve";

/// `@include` deeper than this is refused.
const MAX_INCLUDE_DEPTH: usize = 16;

/// Whose defaults hold for an option that the file does not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defaults {
    /// Cyrus 2.x: `altnamespace` and `unixhierarchysep` are off, databases are
    /// skiplists (2.5 already writes twoskip and deletes in delayed mode; the
    /// engine is to be recognised by its magic anyway).
    V2,
    /// Cyrus 3.0 and later: both are on, databases are twoskip.
    V3,
}

/// Why an `imapd.conf` was not accepted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A line has no `name:` at its start.
    #[error("line {line} of {file} has no valid option name")]
    BadOptionName {
        /// File of the line.
        file: String,
        /// 1-based line number.
        line: usize,
    },
    /// An option without value.
    #[error("option '{option}' on line {line} of {file} has no value")]
    EmptyValue {
        /// Option name.
        option: String,
        /// File of the line.
        file: String,
        /// 1-based line number.
        line: usize,
    },
    /// Cyrus refuses an option that is given twice, even with equal values.
    #[error("option '{option}' is given twice, again on line {line} of {file}")]
    Duplicate {
        /// Option name.
        option: String,
        /// File of the second occurrence.
        file: String,
        /// 1-based line number of the second occurrence.
        line: usize,
    },
    /// An `@directive` other than `@include`.
    #[error("unknown directive '{directive}' on line {line} of {file}")]
    UnknownDirective {
        /// The directive.
        directive: String,
        /// File of the line.
        file: String,
        /// 1-based line number.
        line: usize,
    },
    /// A file is included twice, or includes itself, or too deeply.
    #[error("{path} is included twice or more than {MAX_INCLUDE_DEPTH} levels deep")]
    IncludedTwice {
        /// The included file.
        path: PathBuf,
    },
    /// The loader could not read an included file.
    #[error("included file {path} could not be read: {reason}")]
    Include {
        /// The included file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// An option that Cyrus cannot start without.
    #[error("option '{option}' is not set")]
    Missing {
        /// Option name.
        option: &'static str,
    },
    /// A value that Cyrus would refuse, too.
    #[error("option '{option}' has the value '{value}', wanted {wanted}")]
    BadValue {
        /// Option name.
        option: String,
        /// The value found.
        value: String,
        /// What would be right.
        wanted: &'static str,
    },
}

type Result<T> = std::result::Result<T, ConfigError>;

/// Loads an included file: gets its path, gives its bytes or a reason.
pub type IncludeLoader<'a> = &'a mut dyn FnMut(&Path) -> std::result::Result<Vec<u8>, String>;

/// A server-wide database whose engine and place are configurable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbKind {
    /// `mailboxes.db`
    Mailboxes,
    /// `annotations.db`
    Annotations,
    /// `quotas.db`, unless the engine is quotalegacy (one file per root).
    Quota,
    /// `user_deny.db`
    UserDeny,
    /// `deliver.db`
    Duplicate,
    /// `statuscache.db`
    Statuscache,
    /// Per user `.seen` files: no server-wide path.
    Seen,
    /// Per user `.sub` files: no server-wide path.
    Subscription,
    /// Per user `.conversations` files: no server-wide path.
    Conversations,
}

impl DbKind {
    /// Option of the engine, option of the path, file name below configdirectory.
    fn facts(self) -> (&'static str, Option<(&'static str, &'static str)>) {
        match self {
            Self::Mailboxes => ("mboxlist_db", Some(("mboxlist_db_path", "mailboxes.db"))),
            Self::Annotations => ("annotation_db", Some(("annotation_db_path", "annotations.db"))),
            Self::Quota => ("quota_db", Some(("quota_db_path", "quotas.db"))),
            Self::UserDeny => ("userdeny_db", Some(("userdeny_db_path", "user_deny.db"))),
            Self::Duplicate => ("duplicate_db", Some(("duplicate_db_path", "deliver.db"))),
            Self::Statuscache => {
                ("statuscache_db", Some(("statuscache_db_path", "statuscache.db")))
            }
            Self::Seen => ("seenstate_db", None),
            Self::Subscription => ("subscription_db", None),
            Self::Conversations => ("conversations_db", None),
        }
    }
}

/// A file of a mailbox that `metapartition_files` or `metadir-*` can move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MetaFile {
    /// `cyrus.header`
    Header,
    /// `cyrus.index`
    Index,
    /// `cyrus.cache`
    Cache,
    /// `cyrus.expunge` (2.3)
    Expunge,
    /// `cyrus.squat`
    Squat,
    /// `cyrus.annotations` (2.5 and later)
    Annotations,
    /// `cyrus.dav` (2.5)
    Dav,
    /// `cyrus.cache` of the archive partition (3.0 and later)
    ArchiveCache,
}

impl MetaFile {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Header,
        Self::Index,
        Self::Cache,
        Self::Expunge,
        Self::Squat,
        Self::Annotations,
        Self::Dav,
        Self::ArchiveCache,
    ];

    /// Word in `metapartition_files`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Index => "index",
            Self::Cache => "cache",
            Self::Expunge => "expunge",
            Self::Squat => "squat",
            Self::Annotations => "annotations",
            Self::Dav => "dav",
            Self::ArchiveCache => "archivecache",
        }
    }

    /// Name of the file in the mailbox's directory.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Header => "cyrus.header",
            Self::Index => "cyrus.index",
            Self::Cache | Self::ArchiveCache => "cyrus.cache",
            Self::Expunge => "cyrus.expunge",
            Self::Squat => "cyrus.squat",
            Self::Annotations => "cyrus.annotations",
            Self::Dav => "cyrus.dav",
        }
    }

    /// The `<kind>` of `metadir-<kind>-<partition>`; annotations follow the index
    /// (`imap/mboxname.c:mboxname_metapath`).
    fn metadir_kind(self) -> Option<&'static str> {
        match self {
            Self::Expunge => None,
            Self::Annotations => Some("index"),
            other => Some(other.word()),
        }
    }
}

/// The options of one `imapd.conf`, includes resolved.
///
/// Option names are lower-cased as Cyrus does.  A value with bytes that are not
/// UTF-8 keeps replacement characters in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    options: BTreeMap<String, String>,
    defaults: Defaults,
}

impl Config {
    /// Parses `text`; `include` loads what `@include` names.
    ///
    /// Fails where Cyrus would refuse to start: bad names, empty values, options
    /// given twice, unknown directives, no `configdirectory`.
    pub fn parse(text: &[u8], defaults: Defaults, include: IncludeLoader<'_>) -> Result<Self> {
        let mut options = BTreeMap::new();
        let mut seen = BTreeSet::new();
        read_file(text, "imapd.conf", 0, &mut seen, include, &mut options)?;
        let config = Self { options, defaults };
        config.configdirectory()?;
        Ok(config)
    }

    /// The same server with all its files below `root`: the disk of another
    /// machine, mounted here.
    pub fn below(mut self, root: &Path) -> Self {
        let prefixes = ["partition-", "metapartition-", "archivepartition-", "metadir-"];
        self.options.entry("sievedir".to_owned()).or_insert_with(|| DEFAULT_SIEVEDIR.to_owned());
        for (option, value) in &mut self.options {
            let path = ["configdirectory", "sievedir"].contains(&option.as_str())
                || option.ends_with("db_path")
                || prefixes.iter().any(|prefix| option.starts_with(prefix));
            if let Some(below) = value.strip_prefix('/').filter(|_| path) {
                *value = root.join(below.trim_start_matches('/')).display().to_string();
            }
        }
        self
    }

    /// The same options with another version's defaults.
    pub fn with_defaults(mut self, defaults: Defaults) -> Self {
        self.defaults = defaults;
        self
    }

    /// Whose defaults are used.
    pub fn defaults(&self) -> Defaults {
        self.defaults
    }

    /// The value of `option` as written, without defaults; a leading
    /// `{configdirectory}` is replaced as Cyrus does.
    pub fn get(&self, option: &str) -> Option<String> {
        const PLACE: &str = "{configdirectory}";
        let value = self.options.get(&option.to_ascii_lowercase())?;
        let head = value.get(..PLACE.len());
        if option != "configdirectory" && head.is_some_and(|h| h.eq_ignore_ascii_case(PLACE)) {
            let base = self.options.get("configdirectory")?;
            let rest = value.get(PLACE.len()..).unwrap_or_default();
            return Some(format!("{base}{rest}"));
        }
        Some(value.clone())
    }

    /// All options as written, sorted by name.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    fn path(&self, option: &str) -> Option<PathBuf> {
        self.get(option).map(PathBuf::from)
    }

    fn string_or(&self, option: &str, default: &str) -> String {
        self.get(option).unwrap_or_else(|| default.to_owned())
    }

    /// An on/off option (`lib/libconfig.c:config_parse_switch`).
    pub fn switch(&self, option: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(option) else {
            return Ok(default);
        };
        let low = value.to_ascii_lowercase();
        match low.as_bytes() {
            [b'0' | b'n' | b'f', ..] | [b'o', b'f', ..] => Ok(false),
            [b'1' | b'y' | b't', ..] | [b'o', b'n', ..] => Ok(true),
            _ => {
                Err(ConfigError::BadValue { option: option.to_owned(), value, wanted: "yes or no" })
            }
        }
    }

    /// `configdirectory`.
    pub fn configdirectory(&self) -> Result<PathBuf> {
        self.path("configdirectory").ok_or(ConfigError::Missing { option: "configdirectory" })
    }

    fn below_configdirectory(&self, option: &str, name: &str) -> Result<PathBuf> {
        match self.path(option) {
            Some(path) => Ok(path),
            None => Ok(self.configdirectory()?.join(name)),
        }
    }

    fn named(&self, prefix: &str) -> Result<BTreeMap<PartitionName, PathBuf>> {
        let mut found = BTreeMap::new();
        for key in self.options.keys() {
            let Some(name) = key.strip_prefix(prefix) else {
                continue;
            };
            let name = PartitionName::new(name).map_err(|_| ConfigError::BadValue {
                option: key.clone(),
                value: name.to_owned(),
                wanted: "a partition name",
            })?;
            if let Some(path) = self.path(key) {
                found.insert(name, path);
            }
        }
        Ok(found)
    }

    /// The data directories: `partition-NAME`.
    pub fn partitions(&self) -> Result<BTreeMap<PartitionName, PathBuf>> {
        self.named("partition-")
    }

    /// `partition-NAME`.
    pub fn partition(&self, name: &PartitionName) -> Option<PathBuf> {
        self.path(&format!("partition-{name}"))
    }

    /// `metapartition-NAME`.
    pub fn metapartition(&self, name: &PartitionName) -> Option<PathBuf> {
        self.path(&format!("metapartition-{name}"))
    }

    /// `archivepartition-NAME`, which Cyrus ignores unless `archive_enabled` is on
    /// (`lib/libconfig.c:config_archivepartitiondir`, 3.2 and later; 3.0 does not ask,
    /// but archives nothing either).
    pub fn archivepartition(&self, name: &PartitionName) -> Result<Option<PathBuf>> {
        if !self.switch("archive_enabled", false)? {
            return Ok(None);
        }
        Ok(self.path(&format!("archivepartition-{name}")))
    }

    /// `metadir-KIND-NAME` of one kind of file (2.5 and later).
    pub fn metadir(&self, file: MetaFile, name: &PartitionName) -> Option<PathBuf> {
        self.path(&format!("metadir-{}-{name}", file.metadir_kind()?))
    }

    /// What mailboxes have apart from their partitions, by option: metadata
    /// (`metapartition-NAME` and `metadir-KIND-NAME`) and archived messages
    /// (`archivepartition-NAME`, where `archive_enabled` is on).
    pub fn further_roots(&self) -> Vec<(String, PathBuf)> {
        let archive = self.switch("archive_enabled", false).unwrap_or(false);
        let ours = |option: &&String| {
            let metadata =
                ["metapartition-", "metadir-"].iter().any(|prefix| option.starts_with(prefix));
            metadata || (archive && option.starts_with("archivepartition-"))
        };
        let options = self.options.keys().filter(ours);
        options.filter_map(|option| Some((option.clone(), self.path(option)?))).collect()
    }

    /// Where search indexes of users are: `TIERsearchpartition-NAME` (2.5 and later).
    pub fn search_roots(&self) -> Vec<PathBuf> {
        let ours = |option: &&String| option.contains("searchpartition-");
        self.options.keys().filter(ours).filter_map(|option| self.path(option)).collect()
    }

    /// Whether `metapartition_files` lists `file`.
    pub fn metapartition_files(&self, file: MetaFile) -> bool {
        self.get("metapartition_files")
            .is_some_and(|v| v.split_ascii_whitespace().any(|w| w == file.word()))
    }

    /// `sievedir`, by default `/usr/sieve`.
    pub fn sievedir(&self) -> PathBuf {
        PathBuf::from(self.string_or("sievedir", DEFAULT_SIEVEDIR))
    }

    /// `sieveusehomedir`: scripts are in the users' home directories.
    pub fn sieveusehomedir(&self) -> Result<bool> {
        self.switch("sieveusehomedir", false)
    }

    /// `mboxname_lockpath`, by default `<configdirectory>/lock`.
    pub fn mboxname_lockpath(&self) -> Result<PathBuf> {
        self.below_configdirectory("mboxname_lockpath", "lock")
    }

    /// `proc_path`, by default `<configdirectory>/proc`.
    pub fn proc_path(&self) -> Result<PathBuf> {
        self.below_configdirectory("proc_path", "proc")
    }

    /// `servername`; Cyrus falls back to the host's name.
    pub fn servername(&self) -> Option<String> {
        self.get("servername")
    }

    /// `defaultpartition`, lower-cased as Cyrus does.
    pub fn defaultpartition(&self) -> Option<PartitionName> {
        let name = self.get("defaultpartition")?.to_ascii_lowercase();
        PartitionName::new(&name).ok()
    }

    /// `hashimapspool`, by default off.
    pub fn hashimapspool(&self) -> Result<bool> {
        self.switch("hashimapspool", false)
    }

    /// `fulldirhash`, by default off.
    pub fn fulldirhash(&self) -> Result<bool> {
        self.switch("fulldirhash", false)
    }

    /// `virtdomains`, by default off.
    pub fn virtdomains(&self) -> Result<VirtDomains> {
        let Some(value) = self.get("virtdomains") else {
            return Ok(VirtDomains::Off);
        };
        match value.to_ascii_lowercase().as_str() {
            "userid" => Ok(VirtDomains::Userid),
            "on" | "1" | "yes" | "t" | "true" => Ok(VirtDomains::On),
            "off" | "0" | "no" | "f" | "false" => Ok(VirtDomains::Off),
            _ => Err(ConfigError::BadValue {
                option: "virtdomains".to_owned(),
                value,
                wanted: "off, userid or on",
            }),
        }
    }

    /// `defaultdomain`.
    pub fn defaultdomain(&self) -> Option<String> {
        self.get("defaultdomain")
    }

    /// `unixhierarchysep`: off in 2.x, on from 3.0.
    pub fn unixhierarchysep(&self) -> Result<bool> {
        self.switch("unixhierarchysep", self.defaults == Defaults::V3)
    }

    /// `altnamespace`: off in 2.x, on from 3.0.
    pub fn altnamespace(&self) -> Result<bool> {
        self.switch("altnamespace", self.defaults == Defaults::V3)
    }

    /// How external names look on this server.
    pub fn namespace(&self) -> Result<Namespace> {
        Ok(Namespace {
            unix_separator: self.unixhierarchysep()?,
            virtdomains: self.virtdomains()?,
            default_domain: self.defaultdomain(),
        })
    }

    /// Engine of a database; a hint only, files are recognised by their magic.
    pub fn db_engine(&self, kind: DbKind) -> Engine {
        if let Some(name) = self.get(kind.facts().0) {
            return Engine::from_name(&name);
        }
        match (kind, self.defaults) {
            (DbKind::Subscription | DbKind::UserDeny, _) => Engine::Flat,
            (DbKind::Quota, _) => Engine::QuotaLegacy,
            (DbKind::Conversations, _) | (_, Defaults::V2) => Engine::Skiplist,
            (_, Defaults::V3) => Engine::Twoskip,
        }
    }

    /// Path of a server-wide database; none for per-user kinds.
    pub fn db_path(&self, kind: DbKind) -> Result<Option<PathBuf>> {
        match kind.facts().1 {
            Some((option, name)) => self.below_configdirectory(option, name).map(Some),
            None => Ok(None),
        }
    }

    /// `userdeny_db_path`, by default `<configdirectory>/user_deny.db`.
    pub fn userdeny_db_path(&self) -> Result<PathBuf> {
        self.below_configdirectory("userdeny_db_path", "user_deny.db")
    }

    /// `deletedprefix`, by default `DELETED`.
    pub fn deletedprefix(&self) -> String {
        self.string_or("deletedprefix", "DELETED")
    }

    /// `delete_mode`: whether a deleted mailbox is kept below `DELETED`
    /// (default: 2.x no, although 2.5 does; 3.x yes).
    pub fn delete_delayed(&self) -> bool {
        match self.get("delete_mode") {
            Some(mode) => mode == "delayed",
            None => self.defaults == Defaults::V3,
        }
    }

    /// `expunge_mode` as a word.
    pub fn expunge_mode(&self) -> String {
        self.string_or(
            "expunge_mode",
            match self.defaults {
                Defaults::V2 => "default",
                Defaults::V3 => "delayed",
            },
        )
    }

    /// `admins`.
    pub fn admins(&self) -> Vec<String> {
        let text = self.get("admins").unwrap_or_default();
        text.split_ascii_whitespace().map(str::to_owned).collect()
    }

    /// `mupdate_server`: set on the members of a Murder.
    pub fn mupdate_server(&self) -> Option<String> {
        self.get("mupdate_server")
    }

    /// `conversations`, by default off (3.0 and later).
    pub fn conversations(&self) -> Result<bool> {
        self.switch("conversations", false)
    }

    /// `reverseacls`, by default off (3.0 and later).
    pub fn reverseacls(&self) -> Result<bool> {
        self.switch("reverseacls", false)
    }

    /// `improved_mboxlist_sort`: mailboxes.db is sorted with `.` lowest (up to 3.4).
    pub fn improved_mboxlist_sort(&self) -> Result<bool> {
        self.switch("improved_mboxlist_sort", false)
    }

    /// `mailbox_legacy_dirs`: new mailboxes get directories by name (3.6 and later).
    pub fn mailbox_legacy_dirs(&self) -> Result<bool> {
        self.switch("mailbox_legacy_dirs", false)
    }

    /// `umask`, by default 077.
    pub fn umask(&self) -> Result<u32> {
        let value = self.string_or("umask", "077");
        match u32::from_str_radix(&value, 8) {
            Ok(mask) if mask <= 0o777 => Ok(mask),
            _ => Err(ConfigError::BadValue {
                option: "umask".to_owned(),
                value,
                wanted: "an octal number up to 777",
            }),
        }
    }

    /// `syslog_prefix`.
    pub fn syslog_prefix(&self) -> Option<String> {
        self.get("syslog_prefix")
    }

    /// `cyrus_user`, by default `cyrus`.
    pub fn cyrus_user(&self) -> String {
        self.string_or("cyrus_user", "cyrus")
    }

    /// The text of a private `imapd.conf`, made from this one, for Cyrus's tools on
    /// a shadow tree (`-C`).
    ///
    /// Options in `overrides` replace the live ones and must name
    /// `configdirectory` and `sievedir`, whose default is outside the shadow.
    /// Left out are: every live path of data that is not overridden, whatever
    /// talks to other processes (`mupdate_*`, `sync_log*`, `event_notifier`,
    /// `*socket`), and secrets (`sasl_*`, passwords).  Each option appears once.
    pub fn shadow(&self, overrides: &BTreeMap<String, String>) -> Result<String> {
        for option in ["configdirectory", "sievedir"] {
            if !overrides.contains_key(option) {
                return Err(ConfigError::Missing { option });
            }
        }
        let mut lines: BTreeMap<String, &str> = BTreeMap::new();
        for (option, value) in &self.options {
            if !left_out_of_shadow(option) {
                lines.insert(option.clone(), value);
            }
        }
        for (option, value) in overrides {
            let bad_name = option.is_empty() || !option.bytes().all(is_option_char);
            if bad_name || value.trim().is_empty() || value.contains(['\n', '\r', '\0']) {
                return Err(ConfigError::BadValue {
                    option: option.clone(),
                    value: value.clone(),
                    wanted: "an option name and a value on one line",
                });
            }
            lines.insert(option.to_ascii_lowercase(), value);
        }
        // It would take the next line with it; only the end of a file allows it.
        if let Some((option, value)) = lines.iter().find(|(_, value)| value.ends_with('\\')) {
            return Err(ConfigError::BadValue {
                option: option.clone(),
                value: (*value).to_owned(),
                wanted: "one that does not end with a backslash",
            });
        }
        let mut text = String::from("# private configuration, made by mbcopy\n");
        for (option, value) in lines {
            text.push_str(&option);
            text.push_str(": ");
            text.push_str(value);
            text.push('\n');
        }
        Ok(text)
    }
}

/// Whether a live option has no place in a shadow.  A service prefix
/// (`reconstruct_sievedir`) does not hide an option.
fn left_out_of_shadow(option: &str) -> bool {
    let services = option.match_indices('_').filter_map(|(at, _)| option.get(at + 1..));
    std::iter::once(option).chain(services).any(|name| {
        let prefixes = [
            "partition-",
            "metapartition-",
            "archivepartition-",
            "backuppartition-",
            "metadir-",
            "mupdate_",
            "sync_log",
            "sasl_",
        ];
        let names = [
            "configdirectory",
            "sievedir",
            "proc_path",
            "mboxname_lockpath",
            "temp_path",
            "event_notifier",
        ];
        prefixes.iter().any(|p| name.starts_with(p))
            || names.contains(&name)
            || name.contains("searchpartition-")
            || name.contains("passw")
            || name.ends_with("db_path")
            || name.ends_with("socket")
    })
}

fn is_option_char(c: u8) -> bool {
    c.is_ascii_alphanumeric() || c == b'-' || c == b'_'
}

fn is_space(c: &u8) -> bool {
    c.is_ascii_whitespace() || *c == 0x0b
}

/// Joins lines that end in a backslash; gives (number of the last line, text).
fn logical_lines(text: &[u8]) -> Vec<(usize, Vec<u8>)> {
    let mut lines = Vec::new();
    let mut pending = Vec::new();
    for (index, line) in text.split(|&c| c == b'\n').enumerate() {
        match line.strip_suffix(b"\\") {
            Some(head) => pending.extend_from_slice(head),
            None => {
                pending.extend_from_slice(line);
                lines.push((index + 1, std::mem::take(&mut pending)));
            }
        }
    }
    if !pending.is_empty() {
        lines.push((lines.len() + 1, pending));
    }
    lines
}

fn read_file(
    text: &[u8],
    file: &str,
    depth: usize,
    seen: &mut BTreeSet<PathBuf>,
    include: IncludeLoader<'_>,
    options: &mut BTreeMap<String, String>,
) -> Result<()> {
    for (line, bytes) in logical_lines(text) {
        let file = file.to_owned();
        let bytes = bytes.trim_ascii();
        if bytes.is_empty() || bytes.starts_with(b"#") {
            continue;
        }
        let directive = bytes.starts_with(b"@");
        let colon = bytes.iter().position(|&c| c == b':');
        let Some((name, value)) = colon.and_then(|at| bytes.split_at_checked(at)) else {
            return Err(ConfigError::BadOptionName { file, line });
        };
        let plain = name.strip_prefix(b"@").unwrap_or(name);
        if !plain.iter().copied().all(is_option_char) {
            return Err(ConfigError::BadOptionName { file, line });
        }
        let option = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = value.get(1..).unwrap_or_default();
        let start = value.iter().position(|c| !is_space(c));
        let end = value.iter().rposition(|c| !is_space(c));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(ConfigError::EmptyValue { option, file, line });
        };
        let value = value.get(start..=end).unwrap_or_default();
        let value = String::from_utf8_lossy(value).into_owned();
        if directive {
            if option != "@include" {
                let directive = option;
                return Err(ConfigError::UnknownDirective { directive, file, line });
            }
            let path = PathBuf::from(&value);
            if depth >= MAX_INCLUDE_DEPTH || !seen.insert(path.clone()) {
                return Err(ConfigError::IncludedTwice { path });
            }
            let text = include(&path).map_err(|reason| ConfigError::Include { path, reason })?;
            read_file(&text, &value, depth + 1, seen, include, options)?;
            continue;
        }
        if options.insert(option.clone(), value).is_some() {
            return Err(ConfigError::Duplicate { option, file, line });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text.as_bytes(), Defaults::V3, &mut |_| Err("none".into()))
    }

    const LIVE: &str = "# live\nConfigDirectory: /var/lib/cyrus\npartition-default: /srv/a\n\
        partition-Two:\t/srv/b \nmetapartition_files: header \\\n index\nmetapartition-two: /m\n\
        metadir-index-default: /i\nsasl_mech_list: PLAIN\nbw2_password: x\nmupdate_server: m\n\
        lmtpsocket: /run/lmtp\nhashimapspool: t\nannotation_db_path: {configdirectory}/x/a.db\n\
        reconstruct_sievedir: /live\nmboxlist_db: skiplist\nvirtdomains: true\n";

    #[test]
    fn reads_what_cyrus_reads() {
        let c = parse(LIVE).unwrap();
        assert_eq!(c.configdirectory().unwrap(), PathBuf::from("/var/lib/cyrus"));
        let two = PartitionName::new("two").unwrap();
        assert_eq!(c.partitions().unwrap().len(), 2);
        assert_eq!(c.partition(&two).unwrap(), PathBuf::from("/srv/b"));
        assert_eq!(c.metapartition(&two).unwrap(), PathBuf::from("/m"));
        assert!(c.metapartition_files(MetaFile::Index));
        assert!(!c.metapartition_files(MetaFile::Cache));
        assert!(c.hashimapspool().unwrap());
        assert!(c.unixhierarchysep().unwrap());
        assert_eq!(c.virtdomains().unwrap(), VirtDomains::On);
        assert_eq!(c.db_engine(DbKind::Mailboxes), Engine::Skiplist);
        assert_eq!(c.db_engine(DbKind::Annotations), Engine::Twoskip);
        assert_eq!(
            c.db_path(DbKind::Annotations).unwrap().unwrap(),
            PathBuf::from("/var/lib/cyrus/x/a.db")
        );
        assert_eq!(c.umask().unwrap(), 0o077);
        let c = c.with_defaults(Defaults::V2);
        assert!(!c.unixhierarchysep().unwrap());
    }

    #[test]
    fn refuses_what_cyrus_refuses() {
        let twice = parse("configdirectory: /a\nadmins: a\nadmins: a\n").unwrap_err();
        assert!(matches!(twice, ConfigError::Duplicate { line: 3, .. }));
        assert!(matches!(
            parse("configdirectory: /a\nnonsense\n").unwrap_err(),
            ConfigError::BadOptionName { line: 2, .. }
        ));
        assert!(matches!(
            parse("configdirectory:  \n").unwrap_err(),
            ConfigError::EmptyValue { .. }
        ));
        assert!(matches!(parse("").unwrap_err(), ConfigError::Missing { .. }));
    }

    #[test]
    fn includes_once() {
        let mut load = |path: &Path| match path.to_str() {
            Some("/b") => Ok(b"sievedir: /s\n".to_vec()),
            Some("/loop") => Ok(b"@include: /loop\n".to_vec()),
            _ => Err("not found".to_owned()),
        };
        let text = b"configdirectory: /a\n@include: /b\n";
        let c = Config::parse(text, Defaults::V3, &mut load).unwrap();
        assert_eq!(c.sievedir(), PathBuf::from("/s"));
        let again = Config::parse(b"@include: /loop\n", Defaults::V3, &mut load);
        assert!(matches!(again, Err(ConfigError::IncludedTwice { .. })));
        let gone = Config::parse(b"@include: /gone\n", Defaults::V3, &mut load);
        assert!(matches!(gone, Err(ConfigError::Include { .. })));
    }

    #[test]
    fn a_value_that_would_swallow_the_next_line_is_not_written() {
        let over = [("configdirectory", "/sh/conf"), ("sievedir", "/sh/sieve")];
        let over = over.map(|(option, value)| (option.to_owned(), value.to_owned())).into();
        let text = b"configdirectory: /a\nadmins: cyrus\\\\";
        let config = Config::parse(text, Defaults::V3, &mut |_| Err(String::new())).unwrap();
        let error = config.shadow(&over).unwrap_err();
        assert!(error.to_string().contains("'admins'"), "{error}");
    }

    #[test]
    fn shadow_shows_nothing_live() {
        let over: BTreeMap<String, String> = [
            ("configdirectory", "/sh/conf"),
            ("sievedir", "/sh/sieve"),
            ("partition-default", "/sh/a"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        let text = parse(LIVE).unwrap().shadow(&over).unwrap();
        assert_eq!(
            text,
            "# private configuration, made by mbcopy\nconfigdirectory: /sh/conf\n\
             hashimapspool: t\nmboxlist_db: skiplist\nmetapartition_files: header  index\n\
             partition-default: /sh/a\nsievedir: /sh/sieve\nvirtdomains: true\n"
        );
        assert!(parse(&text).is_ok());
        assert!(parse(LIVE).unwrap().shadow(&BTreeMap::new()).is_err());
        let mut bad = over;
        bad.insert("x".into(), "a\nadmins: me".into());
        assert!(parse(LIVE).unwrap().shadow(&bad).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Config::parse(&text, Defaults::V2, &mut |_| Ok(text.clone()));
        }

        #[test]
        fn never_panics_on_lines(text in "((@include|[a-z-]{0,5}):? ?[ -~]{0,6}\\\\?\n){0,8}") {
            let text = format!("configdirectory: /x\n{text}");
            if let Ok(c) = parse(&text) {
                let _ = (c.partitions(), c.namespace(), c.umask());
            }
        }
    }
}
