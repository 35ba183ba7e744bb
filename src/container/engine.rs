//! The connection to a container engine.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use bollard::models::SystemInfo;
use bollard::{API_DEFAULT_VERSION, Docker};

use super::address::{Address, Host, Variables};
use super::error::{ContainerError, cause_of, system_error, words};
use super::run_args::ApiVersion;
use super::ssh::{self, SshError, Why};
use super::{dial, tls};

/// For an answer to begin. Those that wait for something by their nature (a pull, the end of a
/// container) have no limit: they are stopped otherwise.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to an engine that has answered.
#[derive(Debug, Clone)]
pub struct Engine {
    docker: Docker,
    address: Address,
    api_version: ApiVersion,
}

impl Engine {
    /// Connects and asks for a sign of life. `env` is what programs inherit that lead there.
    pub async fn connect(address: Address, env: &Variables) -> Result<Engine, ContainerError> {
        let mut with_tls = None;
        let (version, seconds) = (API_DEFAULT_VERSION, PATIENCE.as_secs());
        let docker = match &address.host {
            Host::Unix(path) => {
                Docker::connect_with_unix(&path.to_string_lossy(), seconds, version)
                    .map_err(|error| unreachable(&address, &error, false))?
            }
            Host::Tcp {
                address: at,
                tls: None,
            } => Docker::connect_with_http(at, seconds, version)
                .map_err(|error| unreachable(&address, &error, false))?,
            Host::Tcp {
                address: at,
                tls: Some(tls),
            } => {
                let client = tls::Client::new(at, tls).map_err(|error| {
                    ContainerError::BadAddress(format!(
                        "the container engine at {} ({}) is to be reached over TLS, and that cannot be: \
                         {error}. DOCKER_CERT_PATH names the folder of ca.pem, cert.pem and key.pem",
                        address.host, address.named_by
                    ))
                })?;
                with_tls = Some(client.clone());
                dial::docker(move || client.clone().open(), at, PATIENCE)?
            }
            Host::Ssh(to) => {
                let (to, env) = (to.clone(), Arc::new(env.clone()));
                let open = move || std::future::ready(ssh::open(&to, &env));
                // As docker's client calls an engine whose name it cannot know.
                dial::docker(open, "docker.example.com", PATIENCE)?
            }
        };
        let docker = docker.with_request_modifier(with_url_safe_auth);
        let mut tries = 1;
        let answer = loop {
            match docker.version().await {
                Err(error) if tries < TRIES && was_closed_before(&error) => tries += 1,
                answer => break answer,
            }
        };
        match answer {
            Ok(version) => Ok(Engine {
                docker,
                address,
                api_version: api_version(&version.api_version.unwrap_or_default()),
            }),
            Err(error) => {
                let asked_in_vain = with_tls.is_some_and(|tls| tls.was_asked_in_vain());
                Err(unreachable(&address, &error, asked_in_vain))
            }
        }
    }

    /// As `DOCKER_HOST` has it: `unix:///var/run/docker.sock`.
    pub fn host(&self) -> String {
        self.address.host.to_string()
    }

    /// The name or number of the engine's machine, where that is not this one.
    pub fn machine(&self) -> Option<&str> {
        self.address.host.machine()
    }

    /// What the engine understands.
    pub fn api_version(&self) -> ApiVersion {
        self.api_version
    }

    /// Whether its machine has NVIDIA's driver; of another machine, whether the engine has NVIDIA's runtime.
    pub async fn has_nvidia(&self) -> bool {
        if self.is_local() {
            return Path::new("/proc/driver/nvidia/version").exists();
        }
        let info = self.docker.info().await;
        let info = info.inspect_err(|error| tracing::debug!(%error, "what the engine has"));
        info.is_ok_and(|info| names_nvidia(&info))
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

fn names_nvidia(info: &SystemInfo) -> bool {
    let runtimes = info.runtimes.iter().flatten();
    let devices = info.discovered_devices.iter().flatten();
    let mut devices = devices.filter_map(|device| device.id.as_deref());
    runtimes.into_iter().any(|(name, _)| name == "nvidia")
        || devices.any(|id| id.starts_with("nvidia.com/gpu"))
}

/// Tries for an engine that hangs up without a word.
const TRIES: u32 = 10;

/// Whether the connection was gone before it was used. With TLS 1.3 an engine that does not accept the
/// certificate closes one that is open already; its word on it is heard only by who is asking by then.
fn was_closed_before(error: &bollard::errors::Error) -> bool {
    cause_of::<hyper::Error>(error as &(dyn Error + 'static)).is_some_and(hyper::Error::is_canceled)
}

/// `1.41` as numbers.
fn api_version(text: &str) -> ApiVersion {
    let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn unreachable(
    address: &Address,
    error: &bollard::errors::Error,
    asked_in_vain: bool,
) -> ContainerError {
    let cause = words(error);
    match &address.host {
        Host::Ssh(to) => {
            if let Some(error) = cause_of::<SshError>(error) {
                return of_ssh(address, &to.host, error);
            }
        }
        Host::Tcp { tls: Some(tls), .. } => {
            let of_tls = cause_of::<rustls::Error>(error as &(dyn Error + 'static));
            // It may have gone away before its word came.
            let answered = matches!(
                error,
                bollard::errors::Error::DockerResponseServerError { .. }
            );
            if let Some(trouble) = tls::trouble(of_tls, asked_in_vain && !answered, tls) {
                let (address, next) = (address.host.to_string(), trouble.next);
                return match trouble.not_let_in {
                    true => ContainerError::NotLetIn {
                        address,
                        cause,
                        next,
                    },
                    false => ContainerError::Unreachable {
                        address,
                        cause,
                        next,
                    },
                };
            }
        }
        Host::Unix(_) | Host::Tcp { tls: None, .. } => {}
    }
    match system_error(error) {
        Some(std::io::ErrorKind::PermissionDenied) => ContainerError::NotAllowed {
            address: address.host.to_string(),
        },
        _ => ContainerError::NoEngine {
            address: address.host.to_string(),
            named_by: address.named_by.clone(),
            cause,
        },
    }
}

fn of_ssh(address: &Address, host: &str, error: &SshError) -> ContainerError {
    let cause = error.said.clone();
    let by = &address.named_by;
    let next = match error.why {
        Why::NoProgram => "Install OpenSSH's client (openssh-client)".to_owned(),
        Why::NotLetIn => format!(
            "`ssh {host} true` must work without a question, as the user that runs the agent: a key in \
             ~/.ssh, or in the agent that SSH_AUTH_SOCK names"
        ),
        Why::UnknownHost => format!(
            "Log in once by hand (`ssh {host}`) and confirm the machine's key, or put it into ~/.ssh/known_hosts"
        ),
        Why::NoDocker => {
            "docker's client (18.09 or later) must be on the PATH there: it leads to the engine"
                .to_owned()
        }
        Why::MayNotUseEngine => {
            "Add the user there to the group that owns the socket (`usermod -aG docker USER`)"
                .to_owned()
        }
        Why::Other => format!("{by} names it, and `ssh {host} docker version` must work"),
    };
    let address = address.host.to_string();
    match error.why {
        Why::NotLetIn | Why::MayNotUseEngine => ContainerError::NotLetIn {
            address,
            cause,
            next,
        },
        Why::NoProgram | Why::UnknownHost | Why::NoDocker | Why::Other => {
            ContainerError::Unreachable {
                address,
                cause,
                next,
            }
        }
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

    #[test]
    fn an_engine_elsewhere_says_whether_it_has_gpus() {
        for (info, expected) in [
            (json!({}), false),
            (json!({"Runtimes": {"runc": {"path": "runc"}}}), false),
            (json!({"Runtimes": {"runc": {}, "nvidia": {}}}), true),
            (
                json!({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}),
                true,
            ),
        ] {
            let read: SystemInfo = serde_json::from_value(info.clone()).unwrap();
            assert_eq!(names_nvidia(&read), expected, "{info}");
        }
    }
}
