//! TLS with the master. Its certificate is checked where imapd.conf says against what
//! (`tls_server_ca_file`, `tls_server_ca_dir`); where it does not, the connection is
//! encrypted only, as that of Cyrus's own programs, which check none
//! (imap/tls.c:tls_init_clientengine).

use crate::tls;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

/// The connection, once both have shaken hands. Errors: why they have not.
pub fn client(
    mut stream: TcpStream,
    server: &str,
    authorities: &[PathBuf],
) -> Result<rustls::StreamOwned<ClientConnection, TcpStream>, String> {
    let config = tls::config(authorities)?;
    let name = ServerName::try_from(server.to_owned()).map_err(|e| e.to_string())?;
    let mut connection =
        ClientConnection::new(Arc::new(config), name).map_err(|e| e.to_string())?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|e| e.to_string())?;
    }
    Ok(rustls::StreamOwned::new(connection, stream))
}
