//! Opening SQLite's databases that several processes may be the first to open.

use rusqlite::{Connection, ErrorCode};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a refused change of the journal's mode is let rest.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens a database, with a log that readers and a writer share, synced at each
/// commit. `wait`: how long others may keep it.
pub fn open(path: &Path, wait: Duration) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.busy_timeout(wait)?;
    let began = Instant::now();
    // Of those who make it at once, SQLite turns all but one away here without
    // waiting: each has read the file, and none could go on before the others end.
    loop {
        match database.pragma_update(None, "journal_mode", "WAL") {
            Err(e) if is_busy(&e) && began.elapsed() < wait => std::thread::sleep(PAUSE),
            done => break done?,
        }
    }
    database.pragma_update(None, "synchronous", "FULL")?;
    Ok(database)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn whoever_makes_it_at_once_waits_for_the_others() {
        for _ in 0..30 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("a.sqlite");
            let together = Barrier::new(8);
            std::thread::scope(|scope| {
                for n in 0..8 {
                    let (path, together) = (&path, &together);
                    scope.spawn(move || {
                        together.wait();
                        let database = open(path, Duration::from_secs(10)).unwrap();
                        database
                            .execute_batch("CREATE TABLE IF NOT EXISTS a (n INTEGER) STRICT")
                            .unwrap();
                        database.execute("INSERT INTO a VALUES (?1)", [n]).unwrap();
                    });
                }
            });
            let database = open(&path, Duration::ZERO).unwrap();
            let all: i64 = database.query_row("SELECT count(*) FROM a", [], |r| r.get(0)).unwrap();
            assert_eq!(all, 8);
        }
    }
}
