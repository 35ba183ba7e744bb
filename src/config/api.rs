//! The API server's address, the credentials for it and whose certificates are trusted.

use std::path::PathBuf;

use url::Url;

use super::{Config, ConfigError, bool_of, environment, expand};
use crate::api::tls::Trust;
use crate::api::{Credentials, Endpoint};
use crate::secret::Secret;

impl Config {
    /// Where to log in, and as whom. A ready token is stronger than a key pair.
    pub fn endpoint(&self, worker: &str) -> Result<Endpoint, ConfigError> {
        let api_server = self.api_server()?;
        let credentials = match &self.auth_token {
            Some(token) => Credentials::Token(token.clone()),
            None => self.key_pair(&api_server)?,
        };
        Ok(Endpoint {
            api_server,
            credentials,
            trust: self.trust()?,
            worker: worker.to_owned(),
        })
    }

    fn api_server(&self) -> Result<Url, ConfigError> {
        let Some(value) = self.text("api.api_server") else {
            return Err(ConfigError::NoServer {
                origin: self.origin(),
            });
        };
        let bad = |cause: String| ConfigError::BadServer {
            value: crate::secret::mask_url_password(&value),
            cause,
            origin: self.origin(),
        };
        if !value.contains("://") {
            return Err(bad("it does not begin with http:// or https://".into()));
        }
        let url = Url::parse(value.trim()).map_err(|e| bad(e.to_string()))?;
        match url.scheme() {
            "http" | "https" => Ok(url),
            other => Err(bad(format!("{other}:// is neither http:// nor https://"))),
        }
    }

    fn key_pair(&self, server: &Url) -> Result<Credentials, ConfigError> {
        let access_key = self.text("api.credentials.access_key");
        let secret_key = self.text("api.credentials.secret_key");
        let missing = match (access_key, secret_key) {
            (Some(access_key), Some(secret_key)) => {
                return Ok(Credentials::KeyPair {
                    access_key: Secret::new(access_key),
                    secret_key: Secret::new(secret_key),
                });
            }
            (None, None) => "credentials",
            (None, Some(_)) => "access key",
            (Some(_), None) => "secret key",
        };
        Err(ConfigError::NoCredentials {
            missing,
            server: crate::secret::mask_url_password(server.as_str().trim_end_matches('/')),
            origin: self.origin(),
        })
    }

    /// `api.verify_certificate`: a boolean, or the path of a certificate bundle. Where it names none,
    /// the bundle that Python's HTTP library takes from the environment counts, as it does in the job.
    pub fn trust(&self) -> Result<Trust, ConfigError> {
        let key = "api.verify_certificate";
        let Some(text) = self.text(key) else {
            // A section or a list has no text and is refused here.
            self.flag(key)?;
            return Ok(self.system_trust());
        };
        Ok(match bool_of(&text) {
            Some(true) => self.system_trust(),
            Some(false) => Trust::Anything,
            None => Trust::Bundle(expand(&text, &self.env, self.home.as_deref())),
        })
    }

    fn system_trust(&self) -> Trust {
        let variables = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];
        let bundle = environment::first_set(&self.env, &variables).map(PathBuf::from);
        match bundle.filter(|bundle| bundle.is_file()) {
            Some(bundle) => Trust::Bundle(bundle),
            None => Trust::System,
        }
    }
}
