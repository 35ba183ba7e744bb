//! Where the container engine is, and the connection to it: as docker's own client finds it
//! (`DOCKER_HOST`, `DOCKER_CONTEXT`, the context that its configuration names, the usual socket).

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use bollard::{API_DEFAULT_VERSION, Docker};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::error::{ContainerError, system_error, words};
use super::run_args::ApiVersion;

pub type Variables = std::collections::BTreeMap<String, String>;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
/// For an answer to begin. Those that wait for something by their nature (a pull, the end of a
/// container) have no limit: they are stopped otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

/// docker's own folder of settings.
#[derive(Debug, Clone)]
pub struct DockerConfig {
    dir: Option<PathBuf>,
    json: Value,
}

impl DockerConfig {
    /// `DOCKER_CONFIG`, else `~/.docker`. A file that is not there or not JSON is an empty one, as for
    /// docker.
    pub fn read(env: &Variables) -> DockerConfig {
        let named = set(env, "DOCKER_CONFIG").map(PathBuf::from);
        let dir = named.or_else(|| Some(Path::new(set(env, "HOME")?).join(".docker")));
        let text = dir
            .as_ref()
            .and_then(|dir| std::fs::read_to_string(dir.join("config.json")).ok());
        let json = text
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or(Value::Null);
        DockerConfig { dir, json }
    }

    pub(super) fn json(&self) -> &Value {
        &self.json
    }

    #[cfg(test)]
    pub(super) fn of(json: Value) -> DockerConfig {
        DockerConfig { dir: None, json }
    }
}

fn set<'a>(env: &'a Variables, name: &str) -> Option<&'a str> {
    env.get(name)
        .map(|value| value.trim())
        .filter(|v| !v.is_empty())
}

/// Where an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: Host,
    /// What said so, for messages.
    pub named_by: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Unix(PathBuf),
    /// `HOST:PORT`, and with TLS the folder of `ca.pem`, `cert.pem` and `key.pem`.
    Tcp {
        address: String,
        tls: Option<PathBuf>,
    },
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Host::Unix(path) => write!(f, "unix://{}", path.display()),
            Host::Tcp { address, .. } => write!(f, "tcp://{address}"),
        }
    }
}

/// What `env` and docker's configuration say.
pub fn address(env: &Variables, config: &DockerConfig) -> Result<Address, ContainerError> {
    let folder = config.dir.as_deref();
    if let Some(host) = set(env, "DOCKER_HOST") {
        // Any value but the empty one, as docker has it.
        let verified = set(env, "DOCKER_TLS_VERIFY").is_some();
        let certificates = set(env, "DOCKER_CERT_PATH")
            .map(PathBuf::from)
            .or_else(|| folder.map(Path::to_owned));
        let tls = certificates.filter(|_| verified);
        return host_of(host, tls, "DOCKER_HOST");
    }
    let context = set(env, "DOCKER_CONTEXT").map(|name| (name, "DOCKER_CONTEXT"));
    let current = config.json["currentContext"].as_str();
    let context = context.or(current.map(|name| (name, "docker's current context")));
    match context {
        Some((name, named_by)) if name != "default" && !name.is_empty() => {
            of_context(folder, name, named_by)
        }
        _ => Ok(Address {
            host: Host::Unix(DEFAULT_SOCKET.into()),
            named_by: "the usual place; DOCKER_HOST names another".into(),
        }),
    }
}

fn host_of(host: &str, tls: Option<PathBuf>, named_by: &str) -> Result<Address, ContainerError> {
    let bad = |why: &str| {
        Err(ContainerError::BadAddress(format!(
            "{named_by} is {host:?}: {why}. unix:///path/to/socket and tcp://host:port are understood"
        )))
    };
    let host = match host.split_once("://") {
        Some(("unix", path)) if path.starts_with('/') => Host::Unix(path.into()),
        Some(("tcp" | "http" | "https", rest)) => {
            let address = rest.trim_end_matches('/');
            let port = if tls.is_some() { 2376 } else { 2375 };
            let has_port = address
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            Host::Tcp {
                address: match has_port {
                    true => address.to_owned(),
                    false => format!("{address}:{port}"),
                },
                tls,
            }
        }
        Some(("ssh", _)) => {
            return bad("engines are not reached over ssh; forward the socket \
                 (ssh -L /tmp/docker.sock:/var/run/docker.sock HOST) and name that");
        }
        _ => return bad("that is no address of an engine"),
    };
    Ok(Address {
        host,
        named_by: named_by.to_owned(),
    })
}

/// A context's endpoint: docker keeps each in a folder named by the digest of its name.
fn of_context(
    folder: Option<&Path>,
    name: &str,
    named_by: &str,
) -> Result<Address, ContainerError> {
    let bad = |why: String| ContainerError::BadAddress(format!("{named_by} {name:?}: {why}"));
    let contexts = folder
        .ok_or_else(|| bad("HOME is not set".into()))?
        .join("contexts");
    let digest: String = Sha256::digest(name.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let meta = contexts.join("meta").join(&digest).join("meta.json");
    let text = std::fs::read_to_string(&meta)
        .map_err(|error| bad(format!("{}: {error}", meta.display())))?;
    let json: Value =
        serde_json::from_str(&text).map_err(|error| bad(format!("{}: {error}", meta.display())))?;
    let host = json["Endpoints"]["docker"]["Host"]
        .as_str()
        .ok_or_else(|| bad(format!("{} names no host", meta.display())))?;
    let certificates = contexts.join("tls").join(&digest).join("docker");
    let tls = certificates.join("ca.pem").exists().then_some(certificates);
    host_of(host, tls, &format!("{named_by} {name}"))
}

/// A connection to an engine that has answered.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    address: Address,
    api_version: ApiVersion,
}

impl Engine {
    /// Connects and asks for a sign of life.
    pub async fn connect(address: Address) -> Result<Engine, ContainerError> {
        let version = API_DEFAULT_VERSION;
        let seconds = PATIENCE.as_secs();
        let docker = match &address.host {
            Host::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), seconds, version)
            }
            Host::Tcp {
                address, tls: None, ..
            } => Docker::connect_with_http(address, seconds, version),
            Host::Tcp {
                address,
                tls: Some(folder),
            } => {
                crate::api::tls::install_provider();
                let file = |name: &str| folder.join(name);
                let (key, cert, ca) = (file("key.pem"), file("cert.pem"), file("ca.pem"));
                Docker::connect_with_ssl(address, &key, &cert, &ca, seconds, version)
            }
        };
        let docker = docker.map_err(|error| unreachable(&address, &error))?;
        let docker = docker.with_request_modifier(with_url_safe_auth);
        match docker.version().await {
            Ok(version) => Ok(Engine {
                docker,
                address,
                api_version: api_version(&version.api_version.unwrap_or_default()),
            }),
            Err(error) => Err(unreachable(&address, &error)),
        }
    }

    /// As `DOCKER_HOST` has it: `unix:///var/run/docker.sock`.
    pub fn host(&self) -> String {
        self.address.host.to_string()
    }

    /// What the engine understands.
    pub fn api_version(&self) -> ApiVersion {
        self.api_version
    }

    pub fn docker(&self) -> &Docker {
        &self.docker
    }

    /// For calls whose answer may take as long as it likes.
    pub(super) fn patient(&self) -> Docker {
        const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
        self.docker.clone().with_timeout(FOR_EVER)
    }

    /// Whether the engine has this machine's files: folders can be mounted.
    pub fn is_local(&self) -> bool {
        matches!(self.address.host, Host::Unix(_))
    }
}

/// `1.41` as numbers.
fn api_version(text: &str) -> ApiVersion {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn unreachable(address: &Address, error: &bollard::errors::Error) -> ContainerError {
    match system_error(error) {
        Some(std::io::ErrorKind::PermissionDenied) => ContainerError::NotAllowed {
            address: address.host.to_string(),
        },
        _ => ContainerError::NoEngine {
            address: address.host.to_string(),
            named_by: address.named_by.clone(),
            cause: words(error),
        },
    }
}

/// The engine reads registry credentials in the alphabet for addresses, bollard writes them in the
/// usual one: the two differ for some passwords.
fn with_url_safe_auth(mut request: bollard::BollardRequest) -> bollard::BollardRequest {
    const HEADER: &str = "X-Registry-Auth";
    let headers = request.headers_mut();
    let rewritten = headers
        .get(HEADER)
        .and_then(|value| BASE64_STANDARD.decode(value.as_bytes()).ok())
        .and_then(|plain| BASE64_URL_SAFE.encode(plain).parse().ok());
    if let Some(value) = rewritten {
        headers.insert(HEADER, value);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_engine_is_where_docker_finds_it() {
        for (env, expected) in [
            (vec![], "unix:///var/run/docker.sock"),
            (vec![("DOCKER_HOST", "")], "unix:///var/run/docker.sock"),
            (
                vec![("DOCKER_HOST", "unix:///run/user/1000/podman/podman.sock")],
                "unix:///run/user/1000/podman/podman.sock",
            ),
            (vec![("DOCKER_HOST", "tcp://engine")], "tcp://engine:2375"),
            (vec![("DOCKER_HOST", "tcp://engine:99/")], "tcp://engine:99"),
            (
                vec![
                    ("DOCKER_HOST", "tcp://engine"),
                    ("DOCKER_TLS_VERIFY", "1"),
                    ("DOCKER_CERT_PATH", "/certs"),
                ],
                "tcp://engine:2376",
            ),
            (
                vec![("DOCKER_CONTEXT", "default")],
                "unix:///var/run/docker.sock",
            ),
        ] {
            let found = address(&vars(&env), &DockerConfig::of(Value::Null)).unwrap();
            assert_eq!(found.host.to_string(), expected, "{env:?}");
        }
        for host in ["ssh://me@engine", "engine", "unix://relative"] {
            let env = vars(&[("DOCKER_HOST", host)]);
            let error = address(&env, &DockerConfig::of(Value::Null)).unwrap_err();
            assert!(error.to_string().contains("DOCKER_HOST"), "{error}");
        }
    }

    #[test]
    fn a_context_names_the_engine_and_its_certificates() {
        let home = tempfile::tempdir().unwrap();
        let env = vars(&[("HOME", home.path().to_str().unwrap())]);
        let write = |name: &str, text: &str| {
            let path = home.path().join(".docker").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("config.json", r#"{"currentContext": "lab"}"#);
        let error = address(&env, &DockerConfig::read(&env)).unwrap_err();
        assert!(error.to_string().contains("lab"), "{error}");

        // printf lab | sha256sum
        let folder = "a51146d38077ff992eba84cf1d5e9b249073503eb74868699016153b031a38f7";
        let meta = json!({"Name": "lab", "Endpoints": {"docker": {"Host": "tcp://lab:2376"}}});
        write(
            &format!("contexts/meta/{folder}/meta.json"),
            &meta.to_string(),
        );
        write(&format!("contexts/tls/{folder}/docker/ca.pem"), "");
        let found = address(&env, &DockerConfig::read(&env)).unwrap();
        assert_eq!(
            found.host,
            Host::Tcp {
                address: "lab:2376".into(),
                tls: Some(
                    home.path()
                        .join(format!(".docker/contexts/tls/{folder}/docker"))
                ),
            }
        );
    }
}
