//! What conda is asked for and what pip: the task's lists, divided by the Python agent's rules. Pure.

use serde_json::Value;

use crate::python::cuda;
use crate::python::requirements::{Line, List, normalise};

/// What the rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `agent.package_manager.conda_channels`
    pub channels: &'a [String],
    pub cuda: Option<cuda::Version>,
}

impl Facts<'_> {
    fn has_channel(&self, name: &str) -> bool {
        let last = |channel: &String| channel.rsplit('/').next() == Some(name);
        self.channels.iter().any(last)
    }
}

/// What becomes of a package that conda does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Otherwise {
    /// pip gets this line.
    Pip(Line),
    /// It was not asked for by the task.
    Dropped,
}

/// One package for conda.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    pub name: String,
    /// As conda writes it, with its operators; empty: any.
    pub version: String,
    pub otherwise: Otherwise,
}

impl Spec {
    pub fn text(&self) -> String {
        format!("{}{}", self.name, self.version)
    }

    /// What pip gets in its place.
    pub fn line(self) -> Option<Line> {
        match self.otherwise {
            Otherwise::Pip(line) => Some(line),
            Otherwise::Dropped => None,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Divided {
    pub conda: Vec<Spec>,
    pub pip: List,
}

/// `conda`: the task's list of that name; `None` where it has none, and then conda is asked for
/// everything that it could have. A list that is empty means pip alone.
pub fn divide(mut pip: List, conda: Option<&str>, facts: Facts<'_>) -> Divided {
    let mut specs: Vec<Spec> = Vec::new();
    if let Some(text) = conda {
        specs.extend(text.lines().filter_map(|line| listed(line, facts)));
    }
    pip.lines.retain(|line| {
        let Line::Package { text, .. } = line else {
            return true;
        };
        let (name, version) = name_and_version(text);
        if is_never_listed(name) {
            return false;
        }
        let found = version.and_then(conda_version);
        let Some(version) = found.filter(|_| !is_for_pip(name, facts)) else {
            return true;
        };
        let spec = Spec {
            name: conda_name(name, facts),
            version,
            otherwise: Otherwise::Pip(line.clone()),
        };
        let same = |other: &&mut Spec| alike(&other.name, &spec.name);
        match (specs.iter_mut().find(same), conda) {
            // The list of pip is the one that people change.
            (Some(other), _) => {
                other.version = spec.version;
                other.otherwise = spec.otherwise;
                false
            }
            (None, None) => {
                specs.push(spec);
                false
            }
            (None, Some(_)) => true,
        }
    });
    for_this_machine(&mut specs, facts);
    Divided { conda: specs, pip }
}

/// One line of the list `conda`.
fn listed(line: &str, facts: Facts<'_>) -> Option<Spec> {
    let line = line.split('#').next().unwrap_or(line).trim();
    let (name, version) = name_and_version(line);
    // Names with a line in front are conda's own: what the machine is.
    if name.is_empty() || name.starts_with('_') || is_never_listed(name) {
        return None;
    }
    let rest = line[name.len()..].trim();
    let version = match (version, rest.strip_prefix('=')) {
        (Some(version), _) => conda_version(version)?,
        // `name=1.2=build`: of the build nothing is asked, it is another one on other machines.
        (None, Some(version)) => format!("={}", version.split('=').next()?.trim()),
        (None, None) => return None,
    };
    let pinned = version.trim_start_matches(['~', '=']);
    let text = match version.starts_with(['~', '=']) {
        true => format!("{name}=={pinned}"),
        false => format!("{name}{version}"),
    };
    let text = match is_for_pip(name, facts) {
        true => return None,
        false => text,
    };
    Some(Spec {
        name: conda_name(name, facts),
        version,
        otherwise: Otherwise::Pip(Line::Package {
            name: normalise(name),
            text,
            pin: None,
            has_marker: false,
        }),
    })
}

/// The name that a line begins with, and what stands behind it if that is nothing but versions.
fn name_and_version(line: &str) -> (&str, Option<&str>) {
    let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let end = line.find(|c| !inside(c)).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim();
    let operators = ["==", ">=", "<=", "~=", "!=", ">", "<"];
    let is_version = rest
        .split(',')
        .all(|part| operators.iter().any(|op| part.trim().starts_with(op)));
    // Extras, markers and hashes are unknown to conda.
    let foreign = rest.contains(['[', ';', '@']) || rest.contains("--") || rest.contains("===");
    let plain = rest.is_empty() || (is_version && !foreign);
    (name, plain.then_some(rest))
}

/// conda is given some room: another build of the same version often has another last number.
fn conda_version(text: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let at = part.find(|c: char| c.is_ascii_alphanumeric())?;
        let (operator, version) = part.split_at(at);
        if version.contains('+') {
            // Just this build, which an index of pip has.
            return None;
        }
        let version = version.split(".post").next().unwrap_or(version);
        let numbers = version.chars().all(|c| c.is_ascii_digit() || c == '.');
        parts.push(match (operator.trim(), version.strip_suffix(".*")) {
            ("==", Some(start)) => format!("={start}"),
            ("==", None) if numbers && version.contains('.') => format!("~={version}"),
            ("==", None) if numbers => format!("~={version}.0"),
            (operator, _) => format!("{operator}{version}"),
        });
    }
    Some(parts.join(","))
}

/// The Python is chosen apart, conda brings pip along, and nobody needs the third.
fn is_never_listed(name: &str) -> bool {
    matches!(normalise(name).as_str(), "python" | "pip" | "virtualenv")
}

fn is_for_pip(name: &str, facts: Facts<'_>) -> bool {
    name.to_lowercase().contains("clearml") && !facts.has_channel("clearml")
}

fn conda_name(name: &str, facts: Facts<'_>) -> String {
    match normalise(name).as_str() {
        "torch" => "pytorch".into(),
        "tensorflow" | "tensorflow-gpu" => match facts.cuda {
            Some(_) => "tensorflow-gpu".into(),
            None => "tensorflow".into(),
        },
        _ => name.to_lowercase().replace('_', "-"),
    }
}

/// Whether two names are of one package.
pub fn alike(one: &str, other: &str) -> bool {
    let plain = |name: &str| match normalise(name).as_str() {
        "torch" => "pytorch".to_owned(),
        "tensorflow-gpu" => "tensorflow".to_owned(),
        other => other.to_owned(),
    };
    plain(one) == plain(other)
}

/// CUDA's own packages, as the machine has it.
fn for_this_machine(specs: &mut Vec<Spec>, facts: Facts<'_>) {
    let is_toolkit = |spec: &Spec| matches!(spec.name.as_str(), "cudatoolkit" | "cuda-toolkit");
    // The toolkit brings the versions that go with it.
    specs.retain(|spec| !matches!(spec.name.as_str(), "cudnn" | "cupti"));
    specs.retain_mut(|spec| {
        if !is_toolkit(spec) {
            return true;
        }
        let digits = spec
            .version
            .trim_start_matches(|c: char| !c.is_ascii_digit());
        let mut numbers = digits.split('.').map_while(|part| part.parse::<u32>().ok());
        let (major, minor) = (numbers.next(), numbers.next());
        match (facts.cuda, major) {
            (None, _) => return false,
            (Some(cuda), Some(major)) if major > cuda.0 => return false,
            (Some(_), Some(major)) => {
                spec.version = match minor {
                    Some(minor) => format!("={major}.{minor}"),
                    None => format!("={major}"),
                };
            }
            (Some(_), None) => {}
        }
        spec.otherwise = Otherwise::Dropped;
        true
    });
    let has = |name: &str| specs.iter().any(|spec| spec.name == name);
    let added = |name: &str, version: String| Spec {
        name: name.into(),
        version,
        otherwise: Otherwise::Dropped,
    };
    let more = match facts.cuda {
        Some(cuda) if has("pytorch") || has("tensorflow-gpu") => {
            let name = match facts.has_channel("nvidia") {
                true => "cuda-toolkit",
                false => "cudatoolkit",
            };
            let there = specs.iter().any(is_toolkit);
            (!there).then(|| added(name, format!("={cuda}")))
        }
        None if has("pytorch") && facts.has_channel("pytorch") && !has("cpuonly") => {
            Some(added("cpuonly", String::new()))
        }
        _ => None,
    };
    specs.extend(more);
}

/// A whole environment as conda exported it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exported {
    pub dependencies: Vec<String>,
    pub pip: Vec<String>,
    /// `3.11`
    pub python: Option<String>,
}

/// From `conda_env_json`.
pub fn exported(json: &str, facts: Facts<'_>) -> Option<Exported> {
    let document: Value = serde_json::from_str(json).ok()?;
    let mut exported = Exported::default();
    for entry in document.get("dependencies")?.as_array()? {
        let Some(line) = entry.as_str() else {
            let of_pip = entry.get("pip").and_then(Value::as_array);
            let lines = of_pip.into_iter().flatten().filter_map(Value::as_str);
            let lines = lines.filter(|line| !is_never_listed(name_and_version(line).0));
            exported.pip.extend(lines.map(str::to_owned));
            continue;
        };
        let (name, rest) = line.trim().split_once('=').unwrap_or((line.trim(), ""));
        let version = rest.trim_start_matches('=').split('=').next().unwrap_or("");
        match name.to_lowercase().as_str() {
            "pip" | "cudnn" | "cupti" => {}
            name if name.starts_with('_') => {}
            "python" => {
                let minor: Vec<&str> = version.splitn(3, '.').take(2).collect();
                exported.python = Some(minor.join("."));
            }
            "tensorflow" | "tensorflow-gpu" => {
                let name = conda_name("tensorflow", facts);
                exported.dependencies.push(format!("{name}={version}"));
            }
            _ => exported.dependencies.push(line.trim().to_owned()),
        }
    }
    Some(exported)
}

/// The Python of a list `conda`: `3.11`.
pub fn python_of(list: &str) -> Option<String> {
    list.lines().find_map(|line| {
        let rest = line.trim().strip_prefix("python")?.trim();
        let version = rest.trim_start_matches(['=', '~', '>', ' ']);
        let minor: Vec<&str> = version.splitn(3, '.').take(2).collect();
        let known = rest.starts_with(['=', '~', '>']) && minor.len() == 2;
        known.then(|| minor.join("."))
    })
}

#[cfg(test)]
mod tests;
