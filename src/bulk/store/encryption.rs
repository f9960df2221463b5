//! Whether the connection to PostgreSQL is encrypted, and whom it believes, by its URL: as
//! libpq reads `sslmode` and `sslrootcert`, of which tokio-postgres knows a part.

use crate::tls;
use std::path::PathBuf;
use tokio_postgres_rustls::MakeRustlsConnect;

/// Where Debian and others keep the certificates that every program believes.
const OF_THE_SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How a connection is encrypted, and the rest of its URL.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    /// As tokio-postgres reads it.
    url: String,
    /// Certificates that vouch for the server; none: it is not checked.
    authorities: Vec<PathBuf>,
}

/// What makes connections, and the URL without what tokio-postgres does not know.
///
/// Errors: what is wrong with it.
pub fn of(url: &str) -> Result<(String, MakeRustlsConnect), String> {
    let Wanted { url, authorities } = read(url)?;
    Ok((url, MakeRustlsConnect::new(tls::config(&authorities)?)))
}

fn read(url: &str) -> Result<Wanted, String> {
    let (before, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut root, mut rest) = ("prefer", None, Vec::new());
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("sslmode", value)) => mode = value,
            Some(("sslrootcert", value)) => root = Some(value),
            _ => rest.push(pair),
        }
    }
    let (known, checked) = match mode {
        "disable" | "prefer" | "require" => (mode, false),
        "verify-full" => ("require", true),
        other => {
            return Err(format!(
                "sslmode={other} is not known here: use disable, prefer, require or verify-full"
            ));
        }
    };
    let authorities = match (checked, root) {
        (true, None | Some("system")) => vec![OF_THE_SYSTEM.into()],
        (true, Some(file)) => vec![PathBuf::from(plain(file)?)],
        (false, None) => Vec::new(),
        (false, Some(_)) => {
            return Err(format!(
                "sslrootcert has no meaning with sslmode={mode}: use sslmode=verify-full"
            ));
        }
    };
    let mode = format!("sslmode={known}");
    rest.push(&mode);
    Ok(Wanted { url: format!("{before}?{}", rest.join("&")), authorities })
}

/// A value of a URL's query as it is meant.
fn plain(value: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match (byte, code.map(|two| u8::from_str_radix(two, 16))) {
            (b'%', Some(Ok(code))) => {
                bytes.push(code);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'%', _) => return Err(format!("{value:?}: % stands before two hexadecimal digits")),
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).map_err(|_| format!("{value:?} is no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_how_much_is_checked() {
        let system = PathBuf::from(OF_THE_SYSTEM);
        for (url, known, authorities) in [
            ("postgres://db/x", "postgres://db/x?sslmode=prefer", vec![]),
            ("postgres://db/x?sslmode=disable", "postgres://db/x?sslmode=disable", vec![]),
            ("postgres://db/x?sslmode=require&a=b", "postgres://db/x?a=b&sslmode=require", vec![]),
            ("postgres://db?sslmode=verify-full", "postgres://db?sslmode=require", vec![system]),
            (
                "postgres://db?sslrootcert=/etc/my%20ca.pem&sslmode=verify-full",
                "postgres://db?sslmode=require",
                vec![PathBuf::from("/etc/my ca.pem")],
            ),
        ] {
            let wanted = Wanted { url: known.into(), authorities };
            assert_eq!(read(url), Ok(wanted), "{url}");
        }
    }

    #[test]
    fn what_would_check_less_than_it_says_is_refused() {
        for url in [
            "postgres://db?sslmode=verify-ca",
            "postgres://db?sslmode=verifyfull",
            "postgres://db?sslmode=",
            "postgres://db?sslrootcert=/ca.pem",
            "postgres://db?sslmode=require&sslrootcert=/ca.pem",
            "postgres://db?sslmode=verify-full&sslrootcert=/ca%2.pem",
        ] {
            assert!(read(url).is_err(), "{url}");
        }
        assert!(of("postgres://db?sslmode=verify-full&sslrootcert=/nowhere.pem").is_err());
    }
}
