//! An engine that is spoken to over TLS (`DOCKER_TLS_VERIFY`, contexts with certificates): whose
//! certificate it must have, who this client is, and what it means where the two do not come together.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::{Authority, Tls};

/// The client's side of it.
#[derive(Clone)]
pub(super) struct Client {
    connector: TlsConnector,
    address: String,
    name: ServerName<'static>,
    identity: Arc<Identity>,
}

/// What a failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The engine refuses this client, and not this client the engine.
    pub not_let_in: bool,
    pub next: String,
}

/// What is wrong with the files.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("{}: {cause}", .path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error("{} and {} do not go together: {cause}", .cert.display(), .key.display())]
    Unfit {
        cert: PathBuf,
        key: PathBuf,
        cause: String,
    },
    #[error("{0}")]
    Other(String),
}

impl Client {
    pub fn new(address: &str, tls: &Tls) -> Result<Client, FileError> {
        crate::api::tls::install_provider();
        let other = |cause: String| FileError::Other(cause);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(host.clone())
            .map_err(|error| other(format!("{host:?} cannot be in a certificate: {error}")))?;
        let identity = Arc::new(Identity::read(tls, &provider)?);
        let config = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| other(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier(tls, &provider)?)
            .with_client_cert_resolver(identity.clone());
        Ok(Client {
            connector: TlsConnector::from(Arc::new(config)),
            address: address.to_owned(),
            name,
            identity,
        })
    }

    pub async fn open(self) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        self.connector.connect(self.name, stream).await
    }

    /// The engine wanted to know who this is, and there was nothing to show.
    pub fn was_asked_in_vain(&self) -> bool {
        self.identity.key.is_none() && self.identity.asked.load(Ordering::Relaxed)
    }
}

/// What to do about `error`; `None` where it is none of TLS.
pub(super) fn trouble(
    error: Option<&rustls::Error>,
    asked_in_vain: bool,
    tls: &Tls,
) -> Option<Trouble> {
    let folder = tls.folder.display();
    let trusted = || match &tls.verify {
        Some(Authority::File(file)) => format!(
            "The authority that signed it must be in {}, and the name in it the one in the address",
            file.display()
        ),
        _ => {
            "This machine must trust the authority that signed it, and the name in it must be the \
              one in the address"
                .to_owned()
        }
    };
    let unwanted = || Trouble {
        not_let_in: true,
        next: match &tls.identity {
            None => format!(
                "It wants a client's certificate: put cert.pem and key.pem into {folder} \
                 (DOCKER_CERT_PATH, or the context's own)"
            ),
            Some((cert, _)) => format!(
                "It does not accept the certificate {}: is it signed by the authority that the engine was \
                 given (--tlscacert), and still valid?",
                cert.display()
            ),
        },
    };
    let refuses = |alert: &AlertDescription| {
        use AlertDescription as A;
        matches!(
            alert,
            A::CertificateRequired
                | A::NoCertificate
                | A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateRevoked
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::UnknownCA
                | A::AccessDenied
                | A::DecryptError
                | A::HandshakeFailure
        )
    };
    match error {
        _ if asked_in_vain => Some(unwanted()),
        Some(rustls::Error::AlertReceived(alert)) if refuses(alert) => Some(unwanted()),
        Some(rustls::Error::InvalidCertificate(_)) => Some(Trouble {
            not_let_in: false,
            next: format!("Its certificate is not trusted. {}", trusted()),
        }),
        Some(rustls::Error::InvalidMessage(_)) => Some(Trouble {
            not_let_in: false,
            next: "Does it speak TLS at this port? Without, take out DOCKER_TLS_VERIFY".to_owned(),
        }),
        _ => None,
    }
}

fn verifier(
    tls: &Tls,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ServerCertVerifier>, FileError> {
    let mut roots = RootCertStore::empty();
    match &tls.verify {
        None => return Ok(Arc::new(Anyone(provider.clone()))),
        Some(Authority::File(file)) => {
            let unreadable = |cause: String| FileError::Unreadable {
                path: file.clone(),
                cause,
            };
            for certificate in certificates(file)? {
                let added = roots.add(certificate);
                added.map_err(|error| unreadable(error.to_string()))?;
            }
        }
        Some(Authority::OfTheMachine) => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map(|verifier| -> Arc<dyn ServerCertVerifier> { verifier })
        .map_err(|error| FileError::Other(format!("nobody's certificate is trusted: {error}")))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let unreadable = |cause: String| FileError::Unreadable {
        path: file.to_owned(),
        cause,
    };
    let text = std::fs::read(file).map_err(|error| unreadable(error.to_string()))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(unreadable("there is no certificate in it".into())),
        Ok(found) => Ok(found),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

/// Who this client is, told to an engine that asks.
#[derive(Debug)]
struct Identity {
    key: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl Identity {
    fn read(tls: &Tls, provider: &CryptoProvider) -> Result<Identity, FileError> {
        let key = match &tls.identity {
            None => None,
            Some((cert, key)) => {
                let chain = certificates(cert)?;
                let unreadable = |cause: String| FileError::Unreadable {
                    path: key.clone(),
                    cause,
                };
                let text = std::fs::read(key).map_err(|error| unreadable(error.to_string()))?;
                let private = PrivateKeyDer::from_pem_slice(&text)
                    .map_err(|error| unreadable(error.to_string()))?;
                let certified = CertifiedKey::from_der(chain, private, provider);
                Some(Arc::new(certified.map_err(|error| FileError::Unfit {
                    cert: cert.clone(),
                    key: key.clone(),
                    cause: error.to_string(),
                })?))
            }
        };
        Ok(Identity {
            key,
            asked: AtomicBool::new(false),
        })
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// `SkipTLSVerify`, and `DOCKER_TLS` alone: encrypted, and whoever is at the other end.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
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
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{CertificateError, InvalidMessage};

    #[test]
    fn what_a_failure_means() {
        let alone = Tls {
            folder: "/certs".into(),
            verify: Some(Authority::File("/certs/ca.pem".into())),
            identity: None,
        };
        let known = Tls {
            identity: Some(("/certs/cert.pem".into(), "/certs/key.pem".into())),
            ..alone.clone()
        };
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let plain = rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType);
        let wanted = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        let refused = rustls::Error::AlertReceived(AlertDescription::UnknownCA);
        for (error, vain, tls, expected) in [
            (
                Some(&unknown),
                false,
                &known,
                Some((false, "/certs/ca.pem")),
            ),
            (Some(&plain), false, &known, Some((false, "speak TLS"))),
            (
                Some(&wanted),
                false,
                &alone,
                Some((true, "cert.pem and key.pem into /certs")),
            ),
            (
                Some(&refused),
                false,
                &known,
                Some((true, "/certs/cert.pem")),
            ),
            // The connection was reset before the engine's word came.
            (None, true, &alone, Some((true, "client's certificate"))),
            (None, false, &alone, None),
        ] {
            let found = trouble(error, vain, tls);
            let is_as_expected = match (&found, expected) {
                (None, None) => true,
                (Some(found), Some((not_let_in, word))) => {
                    found.not_let_in == not_let_in && found.next.contains(word)
                }
                _ => false,
            };
            assert!(is_as_expected, "{error:?} {vain}: {found:?}");
        }
    }
}
