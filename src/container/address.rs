//! Where the container engine is, as docker's own client finds it: `DOCKER_HOST`, `DOCKER_CONTEXT`, the
//! context that its configuration names, the usual socket.

use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use url::Url;

use super::error::ContainerError;

pub type Variables = std::collections::BTreeMap<String, String>;

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

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
    Tcp {
        /// `HOST:PORT`
        address: String,
        tls: Option<Tls>,
    },
    Ssh(SshHost),
}

/// How an engine is spoken to over TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Where the files are, for messages.
    pub folder: PathBuf,
    /// Whose signature its certificate must have: that of `ca.pem`, else one that this machine trusts.
    /// `None`: any certificate will do.
    pub verify: Option<Authority>,
    /// `cert.pem` and `key.pem`: who this client is.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authority {
    File(PathBuf),
    OfTheMachine,
}

/// An engine that is reached as `ssh HOST docker system dial-stdio`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshHost {
    pub user: Option<String>,
    pub host: String,
    pub port: Option<u16>,
    /// The engine's socket there, where it is not the usual one.
    pub socket: Option<String>,
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Unix(path) => write!(f, "unix://{}", path.display()),
            Host::Tcp { address, .. } => write!(f, "tcp://{address}"),
            Host::Ssh(ssh) => write!(f, "ssh://{ssh}"),
        }
    }
}

impl fmt::Display for SshHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.host.contains(':') {
            true => write!(f, "[{}]", self.host)?,
            false => f.write_str(&self.host)?,
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(self.socket.as_deref().unwrap_or_default())
    }
}

impl Host {
    /// The machine's name or number, where it is not this one.
    pub fn machine(&self) -> Option<&str> {
        match self {
            Host::Unix(_) => None,
            Host::Tcp { address, .. } => {
                let host = address
                    .rsplit_once(':')
                    .map_or(&**address, |(host, _)| host);
                Some(host.trim_start_matches('[').trim_end_matches(']'))
            }
            Host::Ssh(ssh) => Some(&ssh.host),
        }
    }
}

/// What `env` and docker's configuration say.
pub fn address(env: &Variables, config: &DockerConfig) -> Result<Address, ContainerError> {
    let folder = config.dir.as_deref();
    if let Some(host) = set(env, "DOCKER_HOST") {
        // Any value but the empty one, as docker has it.
        let verify = set(env, "DOCKER_TLS_VERIFY").is_some();
        let wanted = verify || set(env, "DOCKER_TLS").is_some();
        let certificates = set(env, "DOCKER_CERT_PATH")
            .map(PathBuf::from)
            .or_else(|| folder.map(Path::to_owned));
        let tls = certificates.filter(|_| wanted).map(|folder| Tls {
            verify: verify.then(|| Authority::File(folder.join("ca.pem"))),
            identity: identity(&folder),
            folder,
        });
        let found = host_of(host, tls, "DOCKER_HOST")?;
        // Never in clear where TLS is asked for.
        if wanted && matches!(found.host, Host::Tcp { tls: None, .. }) {
            return Err(ContainerError::BadAddress(
                "DOCKER_HOST is to be spoken to over TLS (DOCKER_TLS_VERIFY, DOCKER_TLS), and nothing says \
                 where the certificates are: set DOCKER_CERT_PATH, or HOME for ~/.docker"
                    .into(),
            ));
        }
        return Ok(found);
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

/// The client's certificate and its key, where one of them is there: docker does without where both are
/// missing.
fn identity(folder: &Path) -> Option<(PathBuf, PathBuf)> {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    (cert.exists() || key.exists()).then_some((cert, key))
}

fn host_of(host: &str, tls: Option<Tls>, named_by: &str) -> Result<Address, ContainerError> {
    let bad = |why: &str| {
        Err(ContainerError::BadAddress(format!(
            "{named_by} is {host:?}: {why}. unix:///path/to/socket, tcp://host:port and ssh://user@host are \
             understood"
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
        Some(("ssh", _)) => match ssh_host(host) {
            Ok(ssh) => Host::Ssh(ssh),
            // Without the address: a password may be in it.
            Err(why) => {
                return Err(ContainerError::BadAddress(format!(
                    "{named_by} is no address of ssh: {why}. It is ssh://[user@]host[:port][/path/to/socket]"
                )));
            }
        },
        _ => return bad("that is no address of an engine"),
    };
    Ok(Address {
        host,
        named_by: named_by.to_owned(),
    })
}

fn ssh_host(text: &str) -> Result<SshHost, String> {
    let url = Url::parse(text).map_err(|error| error.to_string())?;
    if url.password().is_some() {
        return Err("a password in it is not used, and others could see it; use a key".into());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("what follows ? or # has no meaning".into());
    }
    let plain = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8_lossy().into_owned();
        // ssh would take it for an option.
        match decoded.starts_with('-') {
            true => Err(format!("{decoded:?} begins with a dash")),
            false => Ok(decoded),
        }
    };
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or("it names no host")?;
    let user = Some(url.username()).filter(|user| !user.is_empty());
    let path = url.path();
    Ok(SshHost {
        user: user.map(plain).transpose()?,
        host: plain(host.trim_start_matches('[').trim_end_matches(']'))?,
        port: url.port(),
        socket: match path {
            "" | "/" => None,
            path => Some(plain(path)?),
        },
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
    let endpoint = &json["Endpoints"]["docker"];
    let host = endpoint["Host"]
        .as_str()
        .ok_or_else(|| bad(format!("{} names no host", meta.display())))?;
    let certificates = contexts.join("tls").join(&digest).join("docker");
    let (authority, identity) = (certificates.join("ca.pem"), identity(&certificates));
    let any = endpoint["SkipTLSVerify"].as_bool() == Some(true);
    let tls = (any || authority.exists() || identity.is_some()).then(|| Tls {
        verify: match any {
            true => None,
            false if authority.exists() => Some(Authority::File(authority)),
            false => Some(Authority::OfTheMachine),
        },
        identity,
        folder: certificates,
    });
    host_of(host, tls, &format!("{named_by} {name}"))
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
            (vec![("DOCKER_HOST", "ssh://me@engine")], "ssh://me@engine"),
        ] {
            let found = address(&vars(&env), &DockerConfig::of(Value::Null)).unwrap();
            assert_eq!(found.host.to_string(), expected, "{env:?}");
        }
        for host in [
            "engine",
            "unix://relative",
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-l@host",
            "ssh://me:hunter2@engine",
            "ssh://engine?x=1",
        ] {
            let env = vars(&[("DOCKER_HOST", host)]);
            let error = address(&env, &DockerConfig::of(Value::Null)).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("DOCKER_HOST"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn nothing_is_said_in_clear_where_tls_is_asked_for() {
        let tcp = "tcp://engine";
        for (host, wish, folder, expected) in [
            (tcp, "DOCKER_TLS_VERIFY", None, None),
            (tcp, "DOCKER_TLS", None, None),
            (tcp, "DOCKER_TLS_VERIFY", Some(""), None),
            (tcp, "DOCKER_TLS_VERIFY", Some("/certs"), Some(true)),
            (tcp, "DOCKER_TLS", Some("/certs"), Some(true)),
            (tcp, "OTHER", None, Some(false)),
            ("unix:///socket", "DOCKER_TLS_VERIFY", None, Some(false)),
        ] {
            let mut env = vec![("DOCKER_HOST", host), (wish, "1")];
            env.extend(folder.map(|folder| ("DOCKER_CERT_PATH", folder)));
            let env = vars(&env);
            let found = address(&env, &DockerConfig::read(&env));
            let has_tls = found.ok().map(|found| match found.host {
                Host::Tcp { tls, .. } => tls.is_some(),
                _ => false,
            });
            assert_eq!(has_tls, expected, "{env:?}");
        }
    }

    #[test]
    fn addresses_of_ssh() {
        let ssh = |user: Option<&str>, host: &str, port, socket: Option<&str>| SshHost {
            user: user.map(str::to_owned),
            host: host.to_owned(),
            port,
            socket: socket.map(str::to_owned),
        };
        for (text, expected) in [
            ("ssh://engine", ssh(None, "engine", None, None)),
            ("ssh://engine/", ssh(None, "engine", None, None)),
            (
                "ssh://me@engine:22",
                ssh(Some("me"), "engine", Some(22), None),
            ),
            (
                "ssh://a%40b@10.0.0.1/run/user/7/docker.sock",
                ssh(
                    Some("a@b"),
                    "10.0.0.1",
                    None,
                    Some("/run/user/7/docker.sock"),
                ),
            ),
            (
                "ssh://me@[::1]:2222",
                ssh(Some("me"), "::1", Some(2222), None),
            ),
        ] {
            assert_eq!(ssh_host(text).as_ref(), Ok(&expected), "{text}");
        }
        let shown = Host::Ssh(ssh(Some("me"), "::1", Some(2222), Some("/s")));
        assert_eq!(shown.to_string(), "ssh://me@[::1]:2222/s");
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
        let certificates = home
            .path()
            .join(format!(".docker/contexts/tls/{folder}/docker"));
        let tls = || {
            let meta = address(&env, &DockerConfig::read(&env)).unwrap().host;
            match meta {
                Host::Tcp { address, tls } if address == "lab:2376" || tls.is_none() => tls,
                other => panic!("{other:?}"),
            }
        };
        let meta = |more: Value| {
            let mut endpoint = json!({"Host": "tcp://lab:2376"});
            endpoint
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            let meta = json!({"Name": "lab", "Endpoints": {"docker": endpoint}});
            write(
                &format!("contexts/meta/{folder}/meta.json"),
                &meta.to_string(),
            );
        };
        meta(json!({}));
        assert_eq!(tls(), None);
        let mut expected = Tls {
            folder: certificates.clone(),
            verify: None,
            identity: None,
        };
        meta(json!({"SkipTLSVerify": true}));
        assert_eq!(tls(), Some(expected.clone()));
        meta(json!({"SkipTLSVerify": false}));
        write(&format!("contexts/tls/{folder}/docker/ca.pem"), "");
        expected.verify = Some(Authority::File(certificates.join("ca.pem")));
        assert_eq!(tls(), Some(expected.clone()));
        write(&format!("contexts/tls/{folder}/docker/cert.pem"), "");
        write(&format!("contexts/tls/{folder}/docker/key.pem"), "");
        std::fs::remove_file(certificates.join("ca.pem")).unwrap();
        expected.verify = Some(Authority::OfTheMachine);
        expected.identity = Some((certificates.join("cert.pem"), certificates.join("key.pem")));
        assert_eq!(tls(), Some(expected));
    }

    #[test]
    fn whose_machine_the_engine_is_on() {
        for (host, expected) in [
            ("unix:///var/run/docker.sock", None),
            ("tcp://10.0.0.7:2375", Some("10.0.0.7")),
            ("tcp://[::1]:2375", Some("::1")),
            ("ssh://me@lab:22", Some("lab")),
        ] {
            let address = host_of(host, None, "x").unwrap();
            assert_eq!(address.host.machine(), expected, "{host}");
        }
    }
}
