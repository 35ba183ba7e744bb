//! What can be wrong with a configuration, in words that say where to repair it.

use std::path::PathBuf;

use super::hocon::HoconError;
use crate::mask::BadPattern;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(
        "configuration file {path} does not exist (named by {named_by})\n\
         Correct {named_by}, or leave it out to use ~/clearml.conf."
    )]
    NoSuchFile {
        path: PathBuf,
        named_by: &'static str,
    },
    #[error("configuration file not understood: {0}")]
    BadFile(HoconError),
    /// The value is not shown: it may be a secret.
    #[error(
        "environment variable {variable} does not hold a value of clearml.conf: found {found}, expected {expected}\n\
         Put text with special characters in double quotes inside the value: {variable}='\"…\"'."
    )]
    BadOverride {
        variable: String,
        found: String,
        expected: String,
    },
    #[error("{key} is {found}, expected {expected} ({origin})")]
    WrongType {
        key: String,
        found: String,
        expected: &'static str,
        origin: String,
    },
    #[error(transparent)]
    BadPattern(BadPattern),
    #[error(
        "no API server is configured ({origin})\n\
         Set api.api_server in ~/clearml.conf, for example to https://api.clear.ml, with api.credentials beside \
         it; or set CLEARML_API_HOST, CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY."
    )]
    NoServer { origin: String },
    #[error(
        "api.api_server is {value:?}, which is not the address of an API server: {cause} ({origin})\n\
         It looks like https://api.clear.ml, or http://HOST:8008 for a server of your own."
    )]
    BadServer {
        value: String,
        cause: String,
        origin: String,
    },
    #[error(
        "no {missing} for the API server {server} ({origin})\n\
         Make a key pair in the ClearML web application (Settings, Workspace, App Credentials) and put it into \
         ~/clearml.conf as api.credentials.access_key and api.credentials.secret_key, or set \
         CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or set CLEARML_AUTH_TOKEN."
    )]
    NoCredentials {
        missing: &'static str,
        server: String,
        origin: String,
    },
}
