//! Why there is no environment or no command, in words for a person: what failed, the exact
//! cause, what to do next. And which of a tool's words mean what.

use std::path::PathBuf;
use std::sync::LazyLock;

use regex::Regex;

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
         Put uv on PATH (or name it with CLEARML_BOOTSTRAP_UV_EXEC), or install the interpreter's \
         pip (python3-venv on Debian and Ubuntu)."
    )]
    NoInstaller { uv: String, pip: String },
    #[error("{what}: {cause}")]
    Io { what: String, cause: String },
    #[error("the task says nothing about what to run: its script has no entry point")]
    NoEntryPoint,
    #[error("stopped")]
    Stopped,
}

/// A tool could not install the packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstallFailure {
    /// `uv` or `pip`.
    pub tool: &'static str,
    pub code: Option<i32>,
    pub cause: Cause,
    /// The tool's last lines, masked.
    pub last_lines: Vec<String>,
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
    /// The index (or another host) did not answer as it should.
    Network,
    /// The disk is full.
    DiskFull,
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
            Cause::Network => f.write_str("a download failed")?,
            Cause::DiskFull => f.write_str("no space is left on the disk")?,
            Cause::Other => {
                match self.code {
                    Some(code) => write!(f, "{} ended with exit code {code}", self.tool)?,
                    None => write!(f, "{} was killed by a signal", self.tool)?,
                }
                // The status has room for one line only: the tool's own words on it.
                for word in self.last_lines.iter().filter_map(|line| error_of(line)) {
                    write!(f, ": {word}")?;
                }
            }
        }
        if !self.last_lines.is_empty() {
            write!(f, "\nThe last lines of {}:", self.tool)?;
            for line in &self.last_lines {
                write!(f, "\n    {line}")?;
            }
        }
        let next = match &self.cause {
            Cause::NoSuchPackage(_) => {
                "Check the spelling; for a package of your own index set \
                 agent.package_manager.extra_index_url."
            }
            Cause::NoSuchVersion(_) => {
                "Change the version in the task's installed packages, or run on a Python that \
                 the version supports."
            }
            Cause::Refused { .. } => {
                "Check user and password in the index's address (agent.package_manager.\
                 extra_index_url, pip.conf, PIP_INDEX_URL, …)."
            }
            Cause::Conflict => "Loosen one of the versions named above in the task's packages.",
            Cause::Build(_) => {
                "Install what the build asks for above (compiler, headers), or choose a version \
                 with a wheel for this Python."
            }
            Cause::Network => "Check the index address, the proxy and the network, and try again.",
            Cause::DiskFull => "Free some space, or move agent.venvs_dir to another disk.",
            Cause::Other => return Ok(()),
        };
        write!(f, "\n{next}")
    }
}

/// What a tool's line says of an error or its cause, if it does.
fn error_of(line: &str) -> Option<&str> {
    let line = line.trim();
    let said = ["error: ", "ERROR: ", "cause: "]
        .iter()
        .find_map(|word| line.strip_prefix(word));
    said.map(str::trim)
}

fn pattern(text: &str) -> Regex {
    #[expect(clippy::unwrap_used, reason = "constant patterns, each used by a test")]
    Regex::new(text).unwrap()
}

/// The package of a build whose name the tool does not say.
pub const UNNAMED: &str = "a package";

/// What the words of uv or pip mean. `lines` are the last ones, in order.
pub fn classify(lines: &[String]) -> Cause {
    // uv breaks its long sentences over lines.
    let text = lines
        .iter()
        .map(|line| line.trim())
        .collect::<Vec<_>>()
        .join(" ");
    type Rule = (Regex, fn(String) -> Cause);
    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
        vec![
            (pattern("(No space left on device)"), |_| Cause::DiskFull),
            (
                pattern(
                    r"Failed to build (?:installable wheels for some pyproject.toml based projects )?[`']?([^`'\s(]+)",
                ),
                Cause::Build,
            ),
            (pattern(r"Failed building wheel for (\S+)"), Cause::Build),
            (
                pattern(
                    r"(The build backend returned an error|metadata-generation-failed|setup\.py (?:egg_info|install) .*exit(?:ed)? )",
                ),
                |_| Cause::Build(UNNAMED.into()),
            ),
            (
                pattern(
                    r"(?:Because|And because|and) (\S+) was not found in the (?:package registry|provided package locations|cache)",
                ),
                Cause::NoSuchPackage,
            ),
            // pip's last attempt: what it finds nowhere then may be just there.
            (pattern(r"(Retrying \(Retry\(total=0)"), |_| Cause::Network),
            (
                pattern(r"satisfies the requirement (\S+).*?\(from versions: none\)"),
                Cause::NoSuchPackage,
            ),
            (
                pattern(r"satisfies the requirement (\S+).*?\(from versions: "),
                Cause::NoSuchVersion,
            ),
            (
                pattern(
                    r"(?:there is no version of|there are no versions of|only .{1,400} (?:is|are) available and you require) ([^ ,]+)",
                ),
                Cause::NoSuchVersion,
            ),
            (
                pattern(
                    "(error sending request|Failed to fetch|Connection refused|Max retries exceeded|timed out|dns error|Temporary failure in name resolution|Name or service not known)",
                ),
                |_| Cause::Network,
            ),
            (
                pattern(
                    "(No solution found|conflicting dependencies|ResolutionImpossible|unsatisfiable)",
                ),
                |_| Cause::Conflict,
            ),
        ]
    });
    for (rule, cause) in RULES.iter() {
        if let Some(found) = rule.captures(&text).and_then(|c| c.get(1)) {
            return cause(found.as_str().trim_end_matches(['.', ',']).to_owned());
        }
    }
    Cause::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_uv_and_pip_are_understood() {
        for (words, cause) in [
            (
                "error: No solution found when resolving dependencies\n  cause: Because \
                 nonexistent-zz was not found in the package registry and you require \
                 nonexistent-zz>1, we can conclude that your requirements are unsatisfiable.",
                Cause::NoSuchPackage("nonexistent-zz".into()),
            ),
            (
                "  cause: Because there is no version of six==99.0 and you require six==99.0, we \
                 can conclude that your requirements are unsatisfiable.",
                Cause::NoSuchVersion("six==99.0".into()),
            ),
            (
                "error: No solution found when resolving dependencies\n  cause: Because \
                 requests==2.31.0 depends on idna>=2.5,<4 and you require requests==2.31.0, we \
                 can conclude that you require idna>=2.5,<4.",
                Cause::Conflict,
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement nope>1 (from \
                 -r /tmp/x.txt (line 1)) (from versions: none)\nERROR: No matching distribution found for nope>1",
                Cause::NoSuchPackage("nope>1".into()),
            ),
            (
                "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by \
                 'NewConnectionError'\nERROR: Could not find a version that satisfies the \
                 requirement six (from versions: none)",
                Cause::Network,
            ),
            (
                "ERROR: Could not find a version that satisfies the requirement six==99.0 (from \
                 versions: 0.9.0, 1.17.0)",
                Cause::NoSuchVersion("six==99.0".into()),
            ),
            (
                "RuntimeError: boom\nERROR: Failed to build 'file:///x/bad' when getting \
                 requirements to build wheel",
                Cause::Build("file:///x/bad".into()),
            ),
            (
                "error: Failed to build `bad @ file:///x/bad`\n  cause: The build backend",
                Cause::Build("bad".into()),
            ),
            (
                "error: The build backend returned an error\n  cause: Call to `x` failed",
                Cause::Build(UNNAMED.into()),
            ),
            (
                "error: Request failed after 3 retries in 10.2s\n  cause: Failed to fetch: \
                 http://127.0.0.1:9/simple/wheel/",
                Cause::Network,
            ),
            (
                "write failed: No space left on device (os error 28)",
                Cause::DiskFull,
            ),
            ("something else", Cause::Other),
        ] {
            let lines: Vec<String> = words.lines().map(str::to_owned).collect();
            assert_eq!(classify(&lines), cause, "{words}");
        }
    }

    #[test]
    fn a_failure_says_cause_last_lines_and_next_step() {
        let failure = InstallFailure {
            tool: "uv",
            code: Some(1),
            cause: Cause::NoSuchPackage("nope".into()),
            last_lines: vec!["error: x".into()],
        };
        assert_eq!(
            PythonError::Install(failure).to_string(),
            "could not install the task's packages: no package index has nope\n\
             The last lines of uv:\n    error: x\n\
             Check the spelling; for a package of your own index set \
             agent.package_manager.extra_index_url."
        );
    }

    #[test]
    fn what_is_not_understood_is_quoted() {
        let failure = InstallFailure {
            tool: "uv",
            code: Some(1),
            cause: Cause::Other,
            last_lines: vec![
                "Resolved 1 package".into(),
                "error: Failed to download `x`".into(),
                "  cause: Hash mismatch for `x`".into(),
            ],
        };
        let text = PythonError::Install(failure).to_string();
        let first = text.lines().next().unwrap();
        assert!(
            first.ends_with(
                "uv ended with exit code 1: Failed to download `x`: Hash mismatch for `x`"
            ),
            "{first}"
        );
    }
}
