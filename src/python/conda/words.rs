//! What conda, mamba and micromamba say when they fail, and the words for a person.

use std::sync::LazyLock;

use regex::Regex;

/// How many of its lines an error has.
const SHOWN: usize = 25;

/// What they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// No channel has these, or not in that version; as conda names them.
    Missing(Vec<String>),
    /// What is asked for excludes each other; the names where conda gives them.
    Conflict(Vec<String>),
    /// A channel wants its terms accepted.
    Terms,
    /// A channel is not there or not for these credentials.
    Channel,
    Network,
    DiskFull,
    NotWritable,
    Other,
}

/// conda did not do what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CondaFailure {
    /// `conda`, `mamba` or `micromamba`.
    pub name: &'static str,
    /// "make the environment"
    pub doing: &'static str,
    pub code: Option<i32>,
    pub meaning: Meaning,
    /// Its own, masked.
    pub lines: Vec<String>,
}

impl std::fmt::Display for CondaFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let CondaFailure { name, doing, .. } = self;
        write!(f, "{name} could not {doing}: ")?;
        match &self.meaning {
            Meaning::Missing(names) => write!(f, "no channel has {}", names.join(", "))?,
            Meaning::Conflict(_) => f.write_str("the requirements exclude each other")?,
            Meaning::Terms => f.write_str("a channel's terms of service are not accepted")?,
            Meaning::Channel => f.write_str("a channel is not there, or refuses")?,
            Meaning::Network => f.write_str("a download failed")?,
            Meaning::DiskFull => f.write_str("no space is left on the disk")?,
            Meaning::NotWritable => f.write_str("a folder of conda's can't be written")?,
            Meaning::Other => match self.code {
                Some(code) => write!(f, "it ended with exit code {code}")?,
                None => f.write_str("it was killed by a signal")?,
            },
        }
        if !self.lines.is_empty() {
            write!(f, "\nThe words of {name}:")?;
            for line in &self.lines {
                write!(f, "\n    {line}")?;
            }
        }
        f.write_str(match &self.meaning {
            Meaning::Missing(_) => {
                "\nCheck name and version; for another channel set \
                 agent.package_manager.conda_channels."
            }
            Meaning::Conflict(_) => "\nLoosen one of the versions named above in the task's packages.",
            Meaning::Terms => {
                "\nAccept them on this machine (`conda tos accept`), or take that channel out of \
                 agent.package_manager.conda_channels."
            }
            Meaning::Channel => {
                "\nCheck agent.package_manager.conda_channels and the login in ~/.condarc."
            }
            Meaning::Network => {
                "\nCheck the channels (agent.package_manager.conda_channels, ~/.condarc), the proxy \
                 and the network, and try again."
            }
            Meaning::DiskFull => {
                "\nFree some space, or move agent.venvs_dir and conda's pkgs_dirs to another disk."
            }
            Meaning::NotWritable => {
                "\nName folders of this user's own with CONDA_PKGS_DIRS and CONDA_ENVS_DIRS."
            }
            Meaning::Other => "",
        })
    }
}

fn pattern(text: &str) -> Regex {
    #[expect(clippy::unwrap_used, reason = "constant patterns, each used by a test")]
    Regex::new(text).unwrap()
}

/// What the lines of a failed call mean.
pub fn meaning(lines: &[String]) -> Meaning {
    let text = lines.join("\n");
    let mut missing = missing(lines);
    if !missing.is_empty() {
        missing.dedup();
        return Meaning::Missing(missing);
    }
    static RULES: LazyLock<Vec<(Regex, Meaning)>> = LazyLock::new(|| {
        vec![
            (
                pattern("No space left on device|NoSpaceLeftError"),
                Meaning::DiskFull,
            ),
            (
                pattern("CondaToS|[Tt]erms of [Ss]ervice have not been accepted"),
                Meaning::Terms,
            ),
            (
                pattern(
                    "UnavailableInvalidChannel|InvalidChannel|HTTP 40[134]|401 Unauthorized|403 Forbidden|response code 40[134]|CondaHTTPError: HTTP 40",
                ),
                Meaning::Channel,
            ),
            (
                pattern(
                    "CondaHTTPError|CondaSSLError|ProxyError|ConnectionFailed|Connection(?:Error| failed| refused)|CONNECTION FAILED|Could not resolve host|Download error|timed out|Could not connect",
                ),
                Meaning::Network,
            ),
            (
                pattern("NotWritable|NoWritable|Permission denied|Read-only file system"),
                Meaning::NotWritable,
            ),
        ]
    });
    for (rule, meaning) in RULES.iter() {
        if rule.is_match(&text) {
            return meaning.clone();
        }
    }
    static CONFLICT: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"Unsatisfiable|Could not solve for environment specs|Encountered problems while solving|found to be in conflict|incompatible with each other|ResolvePackageNotFound",
        )
    });
    match CONFLICT.is_match(&text) {
        true => Meaning::Conflict(below(lines, "UnsatisfiableError:")),
        false => Meaning::Other,
    }
}

fn missing(lines: &[String]) -> Vec<String> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"nothing provides requested ([^\s=<>~!]+)|^\W*([A-Za-z0-9_.-]+)\b.* does not exist \(perhaps",
        )
    });
    let named = lines.iter().filter_map(|line| {
        let found = NAMED.captures(line.trim())?;
        let name = found.get(1).or_else(|| found.get(2))?;
        Some(name.as_str().to_owned())
    });
    ["PackagesNotFound", "ResolvePackageNotFound:"]
        .iter()
        .flat_map(|head| below(lines, head))
        .chain(named)
        .collect()
}

/// The names in the first list below a line that begins so.
fn below(lines: &[String], head: &str) -> Vec<String> {
    let after = lines
        .iter()
        .skip_while(|line| !line.trim().starts_with(head));
    after
        .skip(1)
        .map(|line| line.trim())
        .skip_while(|line| !line.starts_with("- "))
        .map_while(|line| line.strip_prefix("- "))
        .map(|spec| name_of(spec).to_owned())
        .collect()
}

/// `conda-forge::numpy[version='>=1']`, `numpy==1.2`, `numpy -> python=3.5`
fn name_of(spec: &str) -> &str {
    let spec = spec.trim();
    let spec = spec.rsplit_once("::").map_or(spec, |(_, rest)| rest);
    let end = spec.find(['=', '<', '>', '~', '!', '[', ' ']);
    &spec[..end.unwrap_or(spec.len())]
}

/// The lines that say what is wrong: from the first one on that speaks of an error.
pub fn trimmed(lines: &[String]) -> Vec<String> {
    static ERROR: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"^(?:[A-Za-z]*(?:Error|NotFound)\b|error\s|critical\s|Encountered problems|Could not solve)",
        )
    });
    let first = lines
        .iter()
        .position(|line| ERROR.is_match(line.trim_start()));
    let first = first.unwrap_or_else(|| lines.len().saturating_sub(SHOWN));
    lines[first..].iter().take(SHOWN).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        // As they are said: without empty ones.
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn the_words_of_conda_and_its_kin() {
        let missing = |names: &[&str]| {
            let names = names.iter().map(|name| (*name).to_owned());
            Meaning::Missing(names.collect())
        };
        for (text, expected) in [
            (
                "Collecting package metadata (repodata.json): done\nSolving environment: failed\n\n\
                 PackagesNotFoundError: The following packages are not available from current \
                 channels:\n\n  - nope==1.0\n  - conda-forge::other[version='>=2']\n\nCurrent \
                 channels:\n\n  - https://conda.anaconda.org/conda-forge/linux-64\n",
                missing(&["nope", "other"]),
            ),
            (
                "Solving environment: failed\n\nResolvePackageNotFound: \n  - nope~=1.0\n",
                missing(&["nope"]),
            ),
            (
                "LibMambaUnsatisfiableError: Encountered problems while solving:\n  - nothing \
                 provides requested nope 1.0**\n\nCould not solve for environment specs\n",
                missing(&["nope"]),
            ),
            (
                "error    libmamba Could not solve for environment specs\n    The following \
                 packages are incompatible\n    ├─ nope ~=1.0.0 does not exist (perhaps a typo or a \
                 missing channel);\n    └─ other =* * does not exist (perhaps a typo or a missing \
                 channel).\n",
                missing(&["nope", "other"]),
            ),
            (
                "UnsatisfiableError: The following specifications were found to be in conflict:\n  \
                 - pandas=0.21.0 -> python[version='>=3.6']\n  - python=3.5\nUse \"conda info\"",
                Meaning::Conflict(vec!["pandas".into(), "python".into()]),
            ),
            (
                "LibMambaUnsatisfiableError: Encountered problems while solving:\n  - package a-1 \
                 requires b >=2, but none of the providers can be installed\n",
                Meaning::Conflict(vec![]),
            ),
            (
                "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://h/x/repodata.json>",
                Meaning::Network,
            ),
            (
                "error    libmamba Download error (6) Could not resolve hostname [https://h/x]",
                Meaning::Network,
            ),
            (
                "UnavailableInvalidChannel: HTTP 404 NOT FOUND for channel ours <https://h/ours>",
                Meaning::Channel,
            ),
            (
                "CondaToSNonInteractiveError: Terms of Service have not been accepted for the \
                 following channels. Please accept or remove them before proceeding:\n    - https://h",
                Meaning::Terms,
            ),
            (
                "NoSpaceLeftError: No space left on devices.",
                Meaning::DiskFull,
            ),
            (
                "NoWritablePkgsDirError: No writeable pkgs directories configured.",
                Meaning::NotWritable,
            ),
            ("what else", Meaning::Other),
        ] {
            assert_eq!(meaning(&lines(text)), expected, "{text}");
        }
    }

    #[test]
    fn an_error_begins_where_conda_says_that_it_is_one() {
        let said = lines("Collecting: done\nSolving: failed\nPackagesNotFoundError: x\n  - nope");
        let failure = CondaFailure {
            name: "conda",
            doing: "make the environment",
            code: Some(1),
            meaning: meaning(&said),
            lines: trimmed(&said),
        };
        assert_eq!(
            failure.to_string(),
            "conda could not make the environment: no channel has nope\nThe words of conda:\n    \
             PackagesNotFoundError: x\n      - nope\nCheck name and version; for another channel \
             set agent.package_manager.conda_channels."
        );
    }
}
