//! A run in PostgreSQL: a schema of its own in a database that several coordinators
//! share.
//!
//! The rest of the store waits for its database; so this connection lives in a
//! runtime of its own, wherever it is used from.

use super::database::{Database, DatabaseError, Row, Value};
use super::encryption;
use super::tables::{SCHEMA, for_postgres};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio_postgres::types::{IsNull, ToSql, Type, private::BytesMut, to_sql_checked};
use tokio_postgres::{Client, Config, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long an answer is waited for; the server gives up before.
const PATIENCE: Duration = Duration::from_secs(75);

/// What every connection is told: how long a statement may take, and that what it
/// has committed is on the disk.
const SESSION: &str = "SET statement_timeout = '60s'; SET idle_in_transaction_session_timeout = \
                       '60s'; SET synchronous_commit = on";

/// The beginning of the schemas' names.
const PREFIX: &str = "mbcopy:";

/// Rows that are fetched at once where there may be many.
const FETCHED: u32 = 500;

/// The longest name of a run, so that its schema's name is whole, in bytes.
pub const LONGEST_NAME: usize = 63 - PREFIX.len();

type Result<T> = std::result::Result<T, DatabaseError>;

/// A connection, made anew when it breaks.
pub struct Postgres {
    door: Door,
    at: String,
    runtime: Option<Runtime>,
    session: RefCell<Option<Session>>,
    /// Within a transaction no other connection takes this one's place.
    within: Cell<bool>,
}

/// How to get in.
#[derive(Clone)]
struct Door {
    config: Config,
    tls: MakeRustlsConnect,
    /// Of the run, quoted; empty: none.
    schema: String,
}

/// One connection and what was prepared in it.
#[derive(Clone)]
struct Session {
    client: Arc<Client>,
    prepared: Arc<Mutex<HashMap<String, Statement>>>,
}

/// Runs a statement again and again, until it is dropped.
#[derive(Debug)]
pub struct Repeat(Option<tokio::task::JoinHandle<()>>);

impl Repeat {
    /// Nothing that would have to be said again.
    pub fn never() -> Self {
        Self(None)
    }
}

impl Drop for Repeat {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Postgres {
    /// A database by its URL; nothing is connected yet. Of a run, or of none.
    pub fn new(url: &str, run: Option<&str>) -> Result<Self> {
        let (url, tls) = encryption::of(url).map_err(DatabaseError::Url)?;
        let parsed = url.parse::<Config>();
        let mut config = parsed.map_err(|e| DatabaseError::Url(e.to_string()))?;
        if config.get_password().is_none()
            && let Some(password) = std::env::var_os("PGPASSWORD")
        {
            config.password(password.as_encoded_bytes());
        }
        config.application_name("mbcopy").connect_timeout(Duration::from_secs(10));
        config.keepalives_idle(Duration::from_secs(20)).tcp_user_timeout(Duration::from_secs(30));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("postgres")
            .enable_all()
            .build()
            .map_err(|e| DatabaseError::Silent(format!("cannot start: {e}")))?;
        // Never the password.
        let hosts: Vec<String> =
            config.get_hosts().iter().map(|host| format!("{host:?}")).collect();
        let at = format!(
            "PostgreSQL at {} (database {})",
            hosts.join(", "),
            config.get_dbname().unwrap_or("of the user's name")
        );
        let schema =
            run.map_or(String::new(), |run| format!("\"{PREFIX}{}\"", run.replace('"', "\"\"")));
        let (session, within) = (RefCell::new(None), Cell::new(false));
        let door = Door { config, tls, schema };
        Ok(Self { door, at, runtime: Some(runtime), session, within })
    }

    /// The names of the runs.
    pub fn runs(&self) -> Result<Vec<String>> {
        let query = "SELECT CAST(nspname AS TEXT) FROM pg_namespace \
                     WHERE starts_with(nspname, ?1) ORDER BY nspname";
        let rows = self.query(query, &[PREFIX.into()])?;
        let name = |row: Row| row.text(0).strip_prefix(PREFIX).map(str::to_owned);
        Ok(rows.into_iter().filter_map(name).collect())
    }

    /// Makes the run's tables, if they are not there.
    pub fn make(&self) -> Result<()> {
        let schema = &self.door.schema;
        // One at a time: making what may be there is no single step.
        let made = self.batch(format!(
            "BEGIN; SELECT pg_advisory_xact_lock(x'6d62636f7079'::bigint); \
             CREATE SCHEMA IF NOT EXISTS {schema}; SET search_path TO {schema}; {} \
             INSERT INTO run VALUES ('schema', '{SCHEMA}') ON CONFLICT (key) DO NOTHING; COMMIT",
            for_postgres()
        ));
        if made.is_err() {
            // With what it has begun.
            self.session.borrow_mut().take();
        }
        made
    }

    /// The version of the run's tables.
    pub fn version(&self) -> Result<i64> {
        let rows = self.query("SELECT value FROM run WHERE key = 'schema'", &[])?;
        Ok(rows.first().and_then(|row| row.text(0).parse().ok()).unwrap_or(0))
    }

    /// The connection at hand, or a new one.
    fn session(&self) -> Result<Session> {
        if let Some(session) = &*self.session.borrow()
            && !session.client.is_closed()
        {
            return Ok(session.clone());
        }
        if self.within.get() {
            return Err(DatabaseError::Silent("the connection broke within a transaction".into()));
        }
        let door = self.door.clone();
        let session = self.wait(async move { Session::open(&door).await })?;
        *self.session.borrow_mut() = Some(session.clone());
        Ok(session)
    }

    /// Waits for what is done in the connection's own runtime.
    fn wait<T: Send + 'static>(
        &self,
        does: impl Future<Output = std::result::Result<T, tokio_postgres::Error>> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = sync_channel(1);
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        let task = runtime.spawn(async move {
            // Nobody listens any more: he has waited too long.
            let _ = tell.send(does.await);
        });
        match told.recv_timeout(PATIENCE) {
            Ok(result) => Ok(result?),
            Err(why) => {
                task.abort();
                // What it says next belongs to nobody.
                self.session.borrow_mut().take();
                let text = match why {
                    RecvTimeoutError::Timeout => format!("no answer within {PATIENCE:?}"),
                    RecvTimeoutError::Disconnected => "the connection is gone".to_owned(),
                };
                Err(DatabaseError::Silent(text))
            }
        }
    }

    fn batch(&self, statements: String) -> Result<()> {
        let session = self.session()?;
        self.wait(async move { session.client.batch_execute(&statements).await })
    }
}

fn gone() -> DatabaseError {
    DatabaseError::Silent("the connection is gone".into())
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Also where no runtime may be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Session {
    async fn open(door: &Door) -> std::result::Result<Self, tokio_postgres::Error> {
        let (client, connection) = door.config.connect(door.tls.clone()).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to PostgreSQL ended: {error}");
            }
        });
        let path = match door.schema.as_str() {
            "" => String::new(),
            schema => format!("; SET search_path TO {schema}"),
        };
        client.batch_execute(&format!("{SESSION}{path}")).await?;
        Ok(Self { client: Arc::new(client), prepared: Arc::default() })
    }

    async fn prepare(
        &self,
        statement: &str,
        values: &[Value],
    ) -> std::result::Result<Statement, tokio_postgres::Error> {
        let known = |prepared: &Mutex<HashMap<String, Statement>>| {
            prepared.lock().unwrap_or_else(PoisonError::into_inner).get(statement).cloned()
        };
        if let Some(prepared) = known(&self.prepared) {
            return Ok(prepared);
        }
        let types: Vec<Type> = values.iter().map(Value::postgres_type).collect();
        // The values' places are written otherwise.
        let text = statement.replace('?', "$");
        let prepared = self.client.prepare_typed(&text, &types).await?;
        let mut all = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(statement.to_owned(), prepared.clone());
        Ok(prepared)
    }

    async fn execute(
        &self,
        statement: &str,
        values: &[Value],
    ) -> std::result::Result<u64, tokio_postgres::Error> {
        let prepared = self.prepare(statement, values).await?;
        self.client.execute_raw(&prepared, values).await
    }
}

impl Value {
    fn postgres_type(&self) -> Type {
        match self {
            Self::Null | Self::Text(_) => Type::TEXT,
            Self::Integer(_) => Type::INT8,
            Self::Real(_) => Type::FLOAT8,
        }
    }
}

impl ToSql for Value {
    fn to_sql(
        &self,
        of: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Self::Null => Ok(IsNull::Yes),
            Self::Integer(number) => number.to_sql(of, out),
            Self::Real(number) => number.to_sql(of, out),
            Self::Text(text) => text.to_sql(of, out),
        }
    }

    fn accepts(of: &Type) -> bool {
        [Type::TEXT, Type::INT8, Type::FLOAT8].contains(of)
    }

    to_sql_checked!();
}

fn row(row: &tokio_postgres::Row) -> std::result::Result<Row, tokio_postgres::Error> {
    let value = |at: usize, of: &Type| {
        Ok(match *of {
            Type::INT8 => row.try_get::<_, Option<i64>>(at)?.map(Value::Integer),
            Type::INT4 => row.try_get::<_, Option<i32>>(at)?.map(|n| Value::Integer(n.into())),
            Type::BOOL => row.try_get::<_, Option<bool>>(at)?.map(Value::from),
            Type::FLOAT8 => row.try_get::<_, Option<f64>>(at)?.map(Value::Real),
            Type::TEXT => row.try_get::<_, Option<String>>(at)?.map(Value::Text),
            _ => None,
        }
        .unwrap_or(Value::Null))
    };
    let columns = row.columns().iter().enumerate();
    Ok(Row(columns
        .map(|(at, column)| value(at, column.type_()))
        .collect::<std::result::Result<_, tokio_postgres::Error>>()?))
}

fn rows(found: &[tokio_postgres::Row]) -> std::result::Result<Vec<Row>, tokio_postgres::Error> {
    found.iter().map(row).collect()
}

impl Database for Postgres {
    fn at(&self) -> String {
        self.at.clone()
    }

    fn execute(&self, statement: &str, values: &[Value]) -> Result<u64> {
        let session = self.session()?;
        let (statement, values) = (statement.to_owned(), values.to_vec());
        self.wait(async move { session.execute(&statement, &values).await })
    }

    fn query(&self, query: &str, values: &[Value]) -> Result<Vec<Row>> {
        let session = self.session()?;
        let (query, values) = (query.to_owned(), values.to_vec());
        self.wait(async move {
            let prepared = session.prepare(&query, &values).await?;
            let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|v| v as _).collect();
            rows(&session.client.query(&prepared, &values).await?)
        })
    }

    fn each(&self, query: &str, tell: &mut dyn FnMut(Row)) -> Result<()> {
        let all = format!("BEGIN READ ONLY; DECLARE told NO SCROLL CURSOR FOR {query}");
        self.batch(all)?;
        self.within.set(true);
        let told = (|| {
            loop {
                let session = self.session()?;
                let fetch = format!("FETCH {FETCHED} FROM told");
                let found =
                    self.wait(async move { rows(&session.client.query(&fetch, &[]).await?) })?;
                if found.is_empty() {
                    return Ok(());
                }
                found.into_iter().for_each(&mut *tell);
            }
        })();
        self.within.set(false);
        let ended = self.batch("ROLLBACK".into());
        told.and(ended)
    }

    fn begin(&self) -> Result<()> {
        self.batch("BEGIN".into())?;
        self.within.set(true);
        Ok(())
    }

    fn commit(&self) -> Result<()> {
        let committed = self.session().map(drop).and_then(|()| self.batch("COMMIT".into()));
        self.within.set(false);
        committed
    }

    fn rollback(&self) -> Result<()> {
        let same = self.session().is_ok();
        self.within.set(false);
        // With a connection that is gone it is taken back already.
        if same { self.batch("ROLLBACK".into()) } else { Ok(()) }
    }

    fn now(&self) -> &'static str {
        "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"
    }

    fn for_us_alone(&self) -> &'static str {
        "FOR UPDATE SKIP LOCKED"
    }

    fn keep_saying(&self, statement: &str, values: &[Value], every: Duration) -> Result<Repeat> {
        // In a connection of its own; a time at which it fails is left out.
        self.execute(statement, values)?;
        let door = self.door.clone();
        let (statement, values) = (statement.to_owned(), values.to_vec());
        let runtime = self.runtime.as_ref().ok_or_else(gone)?;
        Ok(Repeat(Some(runtime.spawn(async move {
            let mut session: Option<Session> = None;
            loop {
                tokio::time::sleep(every).await;
                let once = async {
                    let open = match session.take() {
                        Some(open) => open,
                        None => Session::open(&door).await?,
                    };
                    open.execute(&statement, &values).await?;
                    Ok::<_, tokio_postgres::Error>(open)
                };
                match tokio::time::timeout(every, once).await {
                    Ok(Ok(open)) => session = Some(open),
                    Ok(Err(error)) => tracing::warn!("the lease cannot be renewed: {error}"),
                    Err(_) => tracing::warn!("the lease cannot be renewed: no answer"),
                }
            }
        }))))
    }
}
