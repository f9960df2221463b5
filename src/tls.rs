//! How this program makes a TLS client: whom it believes.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A client that believes what these certificates vouch for, by files or directories of
/// files; none: anybody, so that the connection is encrypted only.
///
/// Errors: why they cannot be read.
pub fn config(authorities: &[PathBuf]) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let config = match roots(authorities)? {
        Some(roots) => config.with_root_certificates(roots),
        None => config.dangerous().with_custom_certificate_verifier(Arc::new(Unchecked(provider))),
    };
    Ok(config.with_no_client_auth())
}

/// The certificates of files and of directories' files; none: nothing is checked.
fn roots(authorities: &[PathBuf]) -> Result<Option<RootCertStore>, String> {
    if authorities.is_empty() {
        return Ok(None);
    }
    let mut store = RootCertStore::empty();
    for path in authorities {
        let failed = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let files = match path.is_dir() {
            true => std::fs::read_dir(path)
                .map_err(|e| failed(&e))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect(),
            false => vec![path.clone()],
        };
        for file in files {
            add(&mut store, &file).map_err(|e| failed(&e))?;
        }
    }
    match store.is_empty() {
        true => {
            let places: Vec<_> = authorities.iter().map(|p| p.display().to_string()).collect();
            Err(format!("no certificate is in {}", places.join(", ")))
        }
        false => Ok(Some(store)),
    }
}

fn add(store: &mut RootCertStore, file: &Path) -> Result<(), String> {
    for certificate in CertificateDer::pem_file_iter(file).map_err(|e| e.to_string())? {
        store.add(certificate.map_err(|e| e.to_string())?).map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Takes any certificate; that the server has its key is checked all the same.
#[derive(Debug)]
struct Unchecked(Arc<CryptoProvider>);

impl ServerCertVerifier for Unchecked {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
