//! The engines' common ground: statements with values in, rows out.
//!
//! Statements are written once, in what SQLite and PostgreSQL have in common, with
//! values as `?1`, `?2`, …; the few words in which they differ are asked for.

use super::postgres::Repeat;
use std::io::ErrorKind;
use std::time::Duration;

/// What a database says.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// SQLite fails.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL refuses, or fails.
    #[error("{}", told(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// The URL of PostgreSQL is not understood, or what it names cannot be read.
    #[error("the URL of --store: {0}")]
    Url(String),
    /// PostgreSQL does not answer.
    #[error("{0}")]
    Silent(String),
}

/// What PostgreSQL says, which is in the source of its error.
fn told(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Whether an error comes of a connection that cannot be made, or breaks. A certificate that
/// is not believed is another matter.
fn breaks(error: &tokio_postgres::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return !matches!(io.kind(), ErrorKind::InvalidData | ErrorKind::InvalidInput);
        }
        source = cause.source();
    }
    false
}

impl DatabaseError {
    /// Whether it may be reached again later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Sqlite(_) | Self::Url(_) => false,
            Self::Silent(_) => true,
            Self::Postgres(error) => match error.code() {
                // Connection exceptions, insufficient resources, operator intervention,
                // and transactions that got in each other's way.
                Some(code) => {
                    ["08", "53", "57", "40"].iter().any(|class| code.code().starts_with(class))
                }
                // The connection, and not what was said in it.
                None => error.is_closed() || breaks(error),
            },
        }
    }
}

/// A value of a statement, or of a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// None.
    Null,
    /// A number.
    Integer(i64),
    /// A number with a fraction.
    Real(f64),
    /// Text.
    Text(String),
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u32> for Value {
    fn from(number: u32) -> Self {
        Self::Integer(number.into())
    }
}

impl From<bool> for Value {
    fn from(is: bool) -> Self {
        Self::Integer(is.into())
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        // PostgreSQL has no place for it.
        Self::Text(text.replace('\0', ""))
    }
}

impl From<&String> for Value {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

/// A row, by the places of its columns. What is not there, or of another kind, is
/// nothing: the tables have one kind in each column.
#[derive(Debug, Clone, PartialEq)]
pub struct Row(pub Vec<Value>);

impl Row {
    /// A number.
    pub fn integer(&self, at: usize) -> i64 {
        self.known_integer(at).unwrap_or(0)
    }

    /// A number, if it is there.
    pub fn known_integer(&self, at: usize) -> Option<i64> {
        match self.0.get(at) {
            Some(Value::Integer(number)) => Some(*number),
            _ => None,
        }
    }

    /// A number that is not negative.
    pub fn count(&self, at: usize) -> u64 {
        u64::try_from(self.integer(at)).unwrap_or(0)
    }

    /// A number with a fraction.
    pub fn real(&self, at: usize) -> f64 {
        match self.0.get(at) {
            Some(Value::Real(number)) => *number,
            Some(Value::Integer(number)) => *number as f64,
            _ => 0.0,
        }
    }

    /// Text.
    pub fn text(&self, at: usize) -> String {
        match self.0.get(at) {
            Some(Value::Text(text)) => text.clone(),
            _ => String::new(),
        }
    }
}

type Result<T> = std::result::Result<T, DatabaseError>;

/// One connection to one run's tables.
pub trait Database {
    /// Where it is, for messages.
    fn at(&self) -> String;

    /// Runs a statement; how many rows it has changed.
    fn execute(&self, statement: &str, values: &[Value]) -> Result<u64>;

    /// The rows of a query, all at once.
    fn query(&self, query: &str, values: &[Value]) -> Result<Vec<Row>>;

    /// The rows of a query, one by one; none is kept.
    fn each(&self, query: &str, tell: &mut dyn FnMut(Row)) -> Result<()>;

    /// Begins a transaction that will write.
    fn begin(&self) -> Result<()>;

    /// Ends it.
    fn commit(&self) -> Result<()>;

    /// Takes it back.
    fn rollback(&self) -> Result<()>;

    /// Milliseconds since 1970 by the database's own clock, in its words.
    fn now(&self) -> &'static str;

    /// Runs a statement at once and then every so often, whatever else is done, until
    /// what is returned is dropped.
    fn keep_saying(&self, statement: &str, values: &[Value], every: Duration) -> Result<Repeat>;

    /// What is said after a query for a user that others shall not get meanwhile.
    fn for_us_alone(&self) -> &'static str;
}
