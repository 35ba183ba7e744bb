//! The HTTP client every module starts from: TLS provider, trusted certificates, proxies.

use std::error::Error;
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

/// Chooses the TLS provider, for every client of this process.
pub fn install_provider() {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // An error only says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
}

/// A client builder with this trust; proxies come from the usual environment variables.
pub fn client_builder(trust: &Trust) -> Result<reqwest::ClientBuilder, String> {
    install_provider();
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

/// What to set where `error` says that the two sides do not speak the same TLS: that does not mend with
/// time. `None` for all other failures.
pub fn remedy(error: &reqwest::Error) -> Option<&'static str> {
    match tls_error(error)? {
        rustls::Error::InvalidCertificate(_) => Some(
            "Set `api.verify_certificate` in clearml.conf or CLEARML_API_HOST_VERIFY_CERT to the file of the \
             authority that signed the server's certificate, or to false to trust any",
        ),
        rustls::Error::InvalidMessage(_) => Some(
            "Does the server speak https at this address? `api.api_server` in clearml.conf or \
             CLEARML_API_HOST may need http://",
        ),
        _ => None,
    }
}

fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    if let Some(found) = error.downcast_ref() {
        return Some(found);
    }
    // What an `io::Error` wraps is not its source.
    tls_error(match error.downcast_ref::<std::io::Error>() {
        Some(wrapper) => wrapper.get_ref()?,
        None => error.source()?,
    })
}
