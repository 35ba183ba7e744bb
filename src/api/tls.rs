//! The HTTP client every module starts from: TLS provider, trusted certificates, proxies.

use std::path::PathBuf;
use std::sync::Once;

/// Whose certificates are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trust {
    /// The machine's store (`SSL_CERT_FILE` and `SSL_CERT_DIR` are honoured).
    #[default]
    System,
    /// The machine's store and the PEM bundle in this file.
    Bundle(PathBuf),
    /// Any certificate: `api.verify_certificate: false`.
    Anything,
}

/// A client builder with this trust; proxies come from the usual environment variables.
pub fn client_builder(trust: &Trust) -> Result<reqwest::ClientBuilder, String> {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error only says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    let builder = reqwest::Client::builder();
    Ok(match trust {
        Trust::System => builder,
        Trust::Anything => builder.tls_danger_accept_invalid_certs(true),
        Trust::Bundle(path) => {
            let unusable =
                |cause: String| format!("certificate bundle {}: {cause}", path.display());
            let pem = std::fs::read(path).map_err(|e| unusable(e.to_string()))?;
            let certificates =
                reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| unusable(e.to_string()))?;
            builder.tls_certs_merge(certificates)
        }
    })
}
