//! Why there is no environment or no command, in words for a person: what failed, the exact
//! cause, what to do next.

use std::path::PathBuf;

mod words;

pub use words::{UNNAMED, classify, detail, host, may_pass};

use super::conda::words::CondaFailure;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PythonError {
    #[error(
        "no Python found for this task: {wanted} is wanted and nothing that runs was found.\n\
         {tried}\n\
         Install {wanted} on this machine, or name an interpreter with agent.python_binary in \
         clearml.conf."
    )]
    NoInterpreter { wanted: String, tried: String },
    #[error(
        "agent.package_manager.type is conda, and there is no conda to be used: {0}.\n\
         Install Miniforge (or micromamba) and put it on PATH or name it with CONDA_EXE; or set \
         CLEARML_AGENT__AGENT__PACKAGE_MANAGER__TYPE=pip to install the task's packages without it."
    )]
    NoConda(String),
    #[error("{0}")]
    Conda(CondaFailure),
    #[error(
        "the conda environment can't be used ({place}): {cause}.\n\
         See agent.package_manager.conda_env_as_base_docker, use_conda_base_env and \
         CLEARML_CONDA_ENV_PACKAGE."
    )]
    CondaPackage { place: String, cause: String },
    #[error(
        "the repository is a project ({file}) whose packages can't be installed: {cause}.\n\
         See its words above; or set agent.package_manager.type to pip to install the task's list \
         of packages."
    )]
    Project { file: String, cause: String },
    #[error("the environment {dir} can't be created: {cause}\n{next}")]
    Create {
        dir: PathBuf,
        cause: String,
        next: String,
    },
    #[error("requirement {line:?} ({origin}): {cause}")]
    Requirement {
        line: String,
        origin: String,
        cause: String,
    },
    #[error("{0}")]
    Install(InstallFailure),
    #[error(
        "neither uv nor pip can be used to install the packages: {uv}; {pip}.\n\
         {next}"
    )]
    NoInstaller {
        uv: String,
        pip: String,
        next: String,
    },
    #[error("{what}: {cause}")]
    Io { what: String, cause: String },
    #[error("the task says nothing about what to run: its script has no entry point")]
    NoEntryPoint,
    #[error("stopped")]
    Stopped,
}

/// A tool could not install the packages. Its own words are in the log already, said as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallFailure {
    /// `uv` or `pip`.
    pub tool: &'static str,
    pub code: Option<i32>,
    pub cause: Cause,
    /// The same may succeed at another time, with nothing changed here or in the list.
    pub may_pass: bool,
    /// Of the tool's words those that name the cause, masked.
    pub detail: String,
    pub place: Place,
}

/// Where the agent runs: what is to be set is set elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    #[default]
    Host,
    Container,
}

/// What the tool's words mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// No index has a package of this name.
    NoSuchPackage(String),
    /// The package is there, but not in a version that is wanted.
    NoSuchVersion(String),
    /// An index refuses the credentials, and so nothing is known of the package.
    Refused {
        index: String,
        name: String,
    },
    /// Requirements exclude each other.
    Conflict,
    /// A package had to be built here, and that failed.
    Build(String),
    /// This comes from a git repository, and the git program is not there.
    NoGit(String),
    /// Who answers at an address is not believed to be it.
    Certificate {
        asked: Asked,
        doubt: Doubt,
    },
    /// The way out of this network.
    Proxy,
    /// The index (or another host) did not answer as it should.
    Network,
    /// The disk is full.
    DiskFull,
    Other,
}

/// Who did not trust a certificate; git has settings of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    Index,
    Git,
}

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// Nobody known here has signed it.
    Authority,
    /// It is for another host.
    Name,
    /// It is not valid now.
    Time,
    Other,
}

impl std::fmt::Display for InstallFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("could not install the task's packages: ")?;
        match &self.cause {
            Cause::NoSuchPackage(name) => write!(f, "no package index has {name}")?,
            Cause::NoSuchVersion(what) => write!(f, "no version fits {what}")?,
            Cause::Refused { index, name } => write!(
                f,
                "the package index {index} refuses these credentials, and no other has {name}"
            )?,
            Cause::Conflict => f.write_str("the requirements exclude each other")?,
            Cause::Build(name) => write!(f, "{name} could not be built")?,
            Cause::NoGit(what) => write!(
                f,
                "{what} comes from a git repository, and the git program, which uv and pip fetch \
                 it with, is not on PATH"
            )?,
            Cause::Certificate { asked, doubt } => {
                let whose = match asked {
                    Asked::Index => "the package index",
                    Asked::Git => "the git server",
                };
                f.write_str(match doubt {
                    Doubt::Authority => "nobody who is trusted here has signed the certificate of ",
                    Doubt::Name => "the certificate is for another host than ",
                    Doubt::Time => {
                        "out of date (or ahead of this machine's clock) is the certificate of "
                    }
                    Doubt::Other => "there is something wrong with the certificate of ",
                })?;
                f.write_str(whose)?;
            }
            Cause::Proxy => f.write_str("the proxy does not let the download through")?,
            Cause::Network => f.write_str("a download failed")?,
            Cause::DiskFull => f.write_str("no space is left on the disk")?,
            Cause::Other => match self.code {
                Some(code) => write!(f, "{} ended with exit code {code}", self.tool)?,
                None => write!(f, "{} was killed by a signal", self.tool)?,
            },
        }
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        match advice(&self.cause, self.place) {
            Some(advice) => write!(f, "\n{advice}"),
            None => Ok(()),
        }
    }
}

/// The cause in a few words.
pub fn short(cause: &Cause) -> String {
    match cause {
        Cause::NoSuchPackage(name) => format!("no index has {name}"),
        Cause::Refused { index, .. } => format!("{index} refuses the credentials"),
        Cause::NoSuchVersion(what) => format!("no version fits {what}"),
        Cause::Build(_) => "it could not be built".into(),
        _ => "see above".into(),
    }
}

/// What to do about it.
pub fn advice(cause: &Cause, place: Place) -> Option<&'static str> {
    Some(match (cause, place) {
        (Cause::NoSuchPackage(_), _) => {
            "Check the spelling; for a package of your own index set \
             agent.package_manager.extra_index_url."
        }
        (Cause::NoSuchVersion(_), _) => {
            "Change the version in the task's installed packages, or run on a Python that the \
             version supports."
        }
        (Cause::Refused { .. }, _) => {
            "Check user and password in the index's address (agent.package_manager.\
             extra_index_url, pip.conf, PIP_INDEX_URL, …)."
        }
        (Cause::Conflict, _) => "Loosen one of these versions in the task's packages.",
        (Cause::Build(_), _) => {
            "Install what the build asks for above (compiler, headers), or choose a version with \
             a wheel for this Python."
        }
        (Cause::NoGit(_), Place::Host) => {
            "Install git on this machine; or list a wheel, or the https address of an archive of \
             the repository, in its place."
        }
        (Cause::NoGit(_), Place::Container) => {
            "Take an image that has git, or install it in agent.extra_docker_shell_script (apt-get \
             install -y git); or list a wheel, or the https address of an archive of the \
             repository, in its place."
        }
        (
            Cause::Certificate {
                asked: Asked::Index,
                doubt: Doubt::Authority | Doubt::Other,
            },
            Place::Host,
        ) => {
            "Behind a company's proxy or with an index of your own, set SSL_CERT_FILE (or `cert` \
             in pip.conf) to your CA's bundle, a PEM file."
        }
        (
            Cause::Certificate {
                asked: Asked::Index,
                doubt: Doubt::Authority | Doubt::Other,
            },
            Place::Container,
        ) => {
            "The container does not have the machine's CAs: mount your CA's bundle with \
             agent.extra_docker_arguments and set SSL_CERT_FILE to it: [\"--volume=/path/ca.pem:\
             /ca.pem:ro\", \"--env=SSL_CERT_FILE=/ca.pem\"]."
        }
        (
            Cause::Certificate {
                asked: Asked::Git,
                doubt: Doubt::Authority | Doubt::Other,
            },
            Place::Host,
        ) => "Set GIT_SSL_CAINFO (or git's http.sslCAInfo) to your CA's bundle, a PEM file.",
        (
            Cause::Certificate {
                asked: Asked::Git,
                doubt: Doubt::Authority | Doubt::Other,
            },
            Place::Container,
        ) => {
            "The container does not have the machine's CAs: mount your CA's bundle with \
             agent.extra_docker_arguments and set GIT_SSL_CAINFO to it: [\"--volume=/path/ca.pem:\
             /ca.pem:ro\", \"--env=GIT_SSL_CAINFO=/ca.pem\"]."
        }
        (
            Cause::Certificate {
                doubt: Doubt::Name, ..
            },
            _,
        ) => {
            "Use the host's name as its certificate has it, or have a certificate made for this one."
        }
        (
            Cause::Certificate {
                doubt: Doubt::Time, ..
            },
            _,
        ) => "Have the certificate renewed; check this machine's clock.",
        (Cause::Proxy, _) => {
            "Check HTTPS_PROXY and HTTP_PROXY (or `proxy` in pip.conf), with user and password \
             where the proxy wants them; NO_PROXY names the hosts that are reached without it."
        }
        (Cause::Network, _) => "Check the index address, the proxy and the network, and try again.",
        (Cause::DiskFull, _) => "Free some space, or move agent.venvs_dir to another disk.",
        (Cause::Other, _) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_cause_and_next_step() {
        let failure = |cause, detail: &str, place| {
            PythonError::Install(InstallFailure {
                tool: "uv",
                code: Some(1),
                cause,
                may_pass: false,
                detail: detail.into(),
                place,
            })
            .to_string()
        };
        let text = failure(Cause::NoSuchPackage("nope".into()), "", Place::Host);
        assert_eq!(
            text,
            "could not install the task's packages: no package index has nope\n\
             Check the spelling; for a package of your own index set \
             agent.package_manager.extra_index_url."
        );
        let text = failure(Cause::Other, "Hash mismatch for `x`", Place::Host);
        assert_eq!(
            text,
            "could not install the task's packages: uv ended with exit code 1: Hash mismatch for `x`"
        );
        let unknown = |asked| Cause::Certificate {
            asked,
            doubt: Doubt::Authority,
        };
        for (asked, place, words) in [
            (Asked::Index, Place::Host, ["SSL_CERT_FILE", "pip.conf"]),
            (
                Asked::Index,
                Place::Container,
                ["extra_docker_arguments", "=SSL_CERT_FILE="],
            ),
            (
                Asked::Git,
                Place::Host,
                ["GIT_SSL_CAINFO", "http.sslCAInfo"],
            ),
            (
                Asked::Git,
                Place::Container,
                ["extra_docker_arguments", "=GIT_SSL_CAINFO="],
            ),
        ] {
            let text = failure(unknown(asked), "UnknownIssuer", place);
            for word in words {
                assert!(text.contains(word), "{text}");
            }
            assert!(text.contains(": UnknownIssuer\n"), "{text}");
        }
    }
}
