//! A run in a file.

use super::database::{Database, DatabaseError, Row, Value};
use super::postgres::Repeat;
use super::tables::{SCHEMA, TABLES};
use crate::host::sqlite;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ToSql, params_from_iter};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long another process may keep the database.
const WAIT: Duration = Duration::from_secs(20);

/// Until somebody says more, the one coordinator takes users of no named server.
const ONE: &str = "INSERT OR IGNORE INTO serves VALUES ('', '', 1);";

type Result<T> = std::result::Result<T, DatabaseError>;

/// A connection to a file.
pub struct Sqlite {
    path: PathBuf,
    connection: Connection,
}

impl Sqlite {
    /// Opens it, or makes it; and the version of its tables.
    pub fn open(path: &Path) -> Result<(Self, i64)> {
        let connection = sqlite::open(path, WAIT)?;
        let mut version = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            connection.execute_batch(&format!(
                "BEGIN IMMEDIATE; {TABLES} {ONE} PRAGMA user_version = {SCHEMA}; COMMIT;"
            ))?;
            version = SCHEMA;
        }
        Ok((Self { path: path.into(), connection }, version))
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

fn row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Row> {
    let columns = 0..row.as_ref().column_count();
    let values = columns.map(|at| {
        Ok(match row.get_ref(at)? {
            ValueRef::Integer(number) => Value::Integer(number),
            ValueRef::Real(number) => Value::Real(number),
            ValueRef::Text(text) => Value::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Null | ValueRef::Blob(_) => Value::Null,
        })
    });
    Ok(Row(values.collect::<rusqlite::Result<_>>()?))
}

impl Database for Sqlite {
    fn at(&self) -> String {
        self.path.display().to_string()
    }

    fn execute(&self, statement: &str, values: &[Value]) -> Result<u64> {
        let mut statement = self.connection.prepare_cached(statement)?;
        Ok(statement.execute(params_from_iter(values))? as u64)
    }

    fn query(&self, query: &str, values: &[Value]) -> Result<Vec<Row>> {
        let mut query = self.connection.prepare_cached(query)?;
        let rows = query.query_map(params_from_iter(values), row)?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    fn each(&self, query: &str, tell: &mut dyn FnMut(Row)) -> Result<()> {
        let mut query = self.connection.prepare(query)?;
        let mut rows = query.query([])?;
        while let Some(next) = rows.next()? {
            tell(row(next)?);
        }
        Ok(())
    }

    fn begin(&self) -> Result<()> {
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    fn commit(&self) -> Result<()> {
        Ok(self.connection.execute_batch("COMMIT")?)
    }

    fn rollback(&self) -> Result<()> {
        Ok(self.connection.execute_batch("ROLLBACK")?)
    }

    fn now(&self) -> &'static str {
        "CAST(unixepoch('subsec') * 1000 AS INTEGER)"
    }

    fn keep_saying(&self, statement: &str, values: &[Value], _: Duration) -> Result<Repeat> {
        // Its one coordinator holds a file's lock, which ends with him.
        self.execute(statement, values).map(|_| Repeat::never())
    }

    fn for_us_alone(&self) -> &'static str {
        // A transaction that writes is alone anyway.
        ""
    }
}
