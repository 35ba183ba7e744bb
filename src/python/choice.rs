//! Which interpreter a task gets: what is asked for, in which order the machine's interpreters
//! are tried, and what is said when it is not the one asked for.

use std::path::{Path, PathBuf};

use super::interpreter::{Interpreter, Version, probe};
use super::settings::Settings;
use super::tool::{find_program, is_program};
use super::{PythonError, Variables, conda, fetched};

/// What is asked for, and by whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// A path or a program's name that is tried before all else.
    pub program: Option<String>,
    pub version: Option<Version>,
    /// "the task", "agent.python_binary", …
    pub by: &'static str,
}

impl Wish {
    /// Major and minor version, where both are asked for.
    fn asked(&self) -> Option<(u32, u32)> {
        let version = self.version?;
        Some((version.major, version.minor?))
    }

    fn words(&self) -> String {
        match (&self.version, &self.program) {
            (Some(version), _) => format!("Python {version}"),
            (None, Some(program)) => program.clone(),
            (None, None) => "Python 3".into(),
        }
    }
}

/// The wish that counts. A version recorded with the task is stronger than
/// `agent.python_binary`, unless the configuration says to ignore it: the SDK records one always.
pub fn wish(binary: &str, settings: &Settings) -> Wish {
    if !settings.ignore_requested_version {
        let version = Version::of_program(binary);
        let path = binary
            .contains('/')
            .then(|| binary.to_owned())
            .filter(|path| is_python_name(path));
        if version.is_some() || path.is_some() {
            return Wish {
                program: path,
                version,
                by: "the task",
            };
        }
    }
    if let Some(program) = &settings.python_binary {
        return Wish {
            program: Some(program.clone()),
            version: Version::of_program(program),
            by: "agent.python_binary",
        };
    }
    let default = settings.default_python.as_deref();
    if let Some(version) =
        default.and_then(|d| Version::parse(d).or_else(|| Version::of_program(d)))
    {
        return Wish {
            program: None,
            version: Some(version),
            by: "agent.default_python",
        };
    }
    Wish {
        program: None,
        version: None,
        by: "nobody",
    }
}

fn is_python_name(path: &str) -> bool {
    path.rsplit('/')
        .next()
        .is_some_and(|name| name.starts_with("python"))
}

/// The interpreters that a look at the disk shows; none has been run.
#[derive(Debug, Default)]
pub struct Seen {
    /// What the wish names: the path itself, or that name on PATH.
    pub named: Option<PathBuf>,
    /// `python3`, then `python` on PATH.
    pub plain: Vec<PathBuf>,
    /// Those whose name or folder tells their version: `pythonX.Y` on PATH, pyenv's, uv's, conda's.
    pub versioned: Vec<(PathBuf, Version)>,
}

/// The order of trial. With what is asked for first, and then, nearest first, all that could
/// stand in for it.
pub fn order(wish: &Wish, seen: &Seen) -> Vec<PathBuf> {
    let mut order: Vec<PathBuf> = seen.named.iter().cloned().collect();
    let asked = wish.asked();
    let patch = wish.version.and_then(|version| version.patch);
    let exact = |path: &PathBuf| {
        let of = seen.versioned.iter().find(|(other, _)| other == path);
        patch.is_some() && of.is_some_and(|(_, version)| version.patch == patch)
    };
    let mut others: Vec<(u32, PathBuf)> = Vec::new();
    for (path, version) in &seen.versioned {
        let minor = version.minor.unwrap_or_default();
        match asked {
            Some((major, asked)) if version.major == major && minor == asked => {
                order.push(path.clone());
            }
            Some(_) => others.push((distance(asked, version.major, minor), path.clone())),
            None => others.push((u32::MAX - minor, path.clone())),
        }
    }
    if let Some(first) = order.iter().position(exact) {
        // Before others of the same minor version, but not before what is named.
        let path = order.remove(first);
        order.insert(usize::from(seen.named.is_some()), path);
    }
    order.extend(seen.plain.iter().cloned());
    others.sort_by_key(|(distance, _)| *distance);
    order.extend(others.into_iter().map(|(_, path)| path));
    let mut unique = Vec::new();
    order.retain(|path| {
        let new = !unique.contains(path);
        unique.push(path.clone());
        new
    });
    order
}

/// How far a version is from the one asked for; of two as far, the newer is nearer.
fn distance(asked: Option<(u32, u32)>, major: u32, minor: u32) -> u32 {
    match asked {
        Some((same, asked)) if same == major => {
            asked.abs_diff(minor) * 2 + u32::from(minor < asked)
        }
        _ => u32::MAX,
    }
}

/// Looks at PATH, pyenv's versions, uv's interpreters and conda's environments.
pub fn look(wish: &Wish, settings: &Settings) -> Seen {
    let folders = settings.search_path();
    let pyenv = settings
        .variable("PYENV_ROOT")
        .map(PathBuf::from)
        .or_else(|| Some(settings.home.as_ref()?.join(".pyenv")));
    let on_path = |name: &str| -> Option<PathBuf> {
        let shims = pyenv.as_deref().map(|root| root.join("shims"));
        let mut found = Vec::new();
        for folder in &folders {
            if shims.as_deref() == Some(folder) {
                // A shim is a shell script that starts pyenv, which looks for the same file; and
                // it fails (exit 127) for a version that is there but not chosen.
                let chosen = chosen_by_pyenv(pyenv.as_deref()?, &settings.environment);
                found.extend(
                    chosen
                        .into_iter()
                        .map(|version| version.join("bin").join(name)),
                );
            } else {
                found.push(folder.join(name));
            }
        }
        found.into_iter().find(|path| is_program(path))
    };
    let mut seen = Seen::default();
    if let Some(program) = &wish.program {
        seen.named = match program.contains('/') {
            true => Some(PathBuf::from(program)).filter(|path| is_program(path)),
            false => on_path(program),
        };
    }
    seen.plain.extend(
        ["python3", "python"]
            .iter()
            .filter_map(|name| on_path(name)),
    );
    // The system's own python3 where the first one on PATH does not run.
    seen.plain.extend(find_program(
        "python3",
        &["/usr/local/bin".into(), "/usr/bin".into()],
    ));

    for folder in &folders {
        for name in names_in(folder) {
            let version = name.strip_prefix("python").and_then(Version::parse);
            if let Some(version) = version.filter(|version| version.minor.is_some())
                && let Some(path) = on_path(&name)
            {
                seen.versioned.push((path, version));
            }
        }
    }
    let uv = {
        let data = settings.variable("XDG_DATA_HOME").map(PathBuf::from);
        let data = data.or_else(|| Some(settings.home.as_ref()?.join(".local/share")));
        data.map(|data| data.join("uv/python"))
    };
    let pyenv = pyenv.map(|root| managed(&root.join("versions"), ""));
    let fetched = [Some(fetched::folder(settings)), uv];
    let fetched = fetched.into_iter().flatten();
    seen.versioned.extend(pyenv.into_iter().flatten());
    seen.versioned
        .extend(fetched.flat_map(|folder| managed(&folder, "cpython-")));
    // The last: packages of such an environment need libraries that a venv of it does not have.
    seen.versioned.extend(conda::pythons(settings));
    seen.versioned.retain(|(_, version)| version.major >= 3);
    seen
}

/// The interpreters in a folder of theirs, as `PREFIX3.11.7…/bin/python3.11`; the newest patch first.
pub fn managed(folder: &Path, prefix: &str) -> Vec<(PathBuf, Version)> {
    let mut names = names_in(folder);
    names.sort_by_key(|name| std::cmp::Reverse(patch_of(name)));
    let found = |name: String| {
        let numbers = name.strip_prefix(prefix)?.split(['-', '+']).next()?;
        let version = Version::parse(numbers).filter(|version| version.minor.is_some())?;
        let program = format!("python{version}");
        let path = folder.join(&name).join("bin").join(program);
        is_program(&path).then_some((path, version))
    };
    names.into_iter().filter_map(found).collect()
}

/// The version folders that pyenv's shims would use: `PYENV_VERSION`, else the global file.
fn chosen_by_pyenv(root: &Path, env: &Variables) -> Vec<PathBuf> {
    let names = match env.get("PYENV_VERSION").filter(|names| !names.is_empty()) {
        Some(names) => names.replace(':', "\n"),
        None => std::fs::read_to_string(root.join("version")).unwrap_or_default(),
    };
    names
        .split_whitespace()
        .filter(|name| *name != "system")
        .map(|name| root.join("versions").join(name))
        .collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn patch_of(name: &str) -> u32 {
    let patch = name.split('.').nth(2).unwrap_or_default();
    let digits: String = patch.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_default()
}

/// The interpreter for the task, and a note where it is not the one asked for.
pub async fn choose(
    binary: &str,
    settings: &Settings,
) -> Result<(Interpreter, Option<String>), PythonError> {
    let wish = wish(binary, settings);
    let seen = look(&wish, settings);
    let distance_of =
        |found: &Interpreter| distance(wish.asked(), found.version.0, found.version.1);
    let mut stand_in: Option<Interpreter> = None;
    let mut tried: Vec<String> = Vec::new();
    for path in &order(&wish, &seen) {
        // By its name it is no nearer than the one that is there already.
        if let Some(other) = &stand_in
            && !could_match(&wish, path, &seen)
            && distance_by_name(&wish, path, &seen) >= distance_of(other)
        {
            continue;
        }
        match probe(path, &settings.environment, &settings.cache).await {
            Ok(found) if found.version < (3, 4, 0) => tried.push(format!(
                "{} is Python {}: too old",
                path.display(),
                found.full_version()
            )),
            Ok(found) if wish.version.is_none_or(|v| v.accepts(found.version)) => {
                let note =
                    missing_program(&wish, &seen, &found).or_else(|| other_patch(&wish, &found));
                return Ok((found, note));
            }
            Ok(found) => {
                tried.push(format!(
                    "{} is Python {}",
                    path.display(),
                    found.full_version()
                ));
                if stand_in
                    .as_ref()
                    .is_none_or(|other| distance_of(&found) < distance_of(other))
                {
                    stand_in = Some(found);
                }
            }
            Err(reason) => tried.push(format!("{}: {reason}", path.display())),
        }
    }
    match stand_in {
        Some(found) => {
            let note = stand_in_note(&wish, &found);
            Ok((found, Some(note)))
        }
        None => Err(PythonError::NoInterpreter {
            wanted: wish.words(),
            tried: match tried.is_empty() {
                true => "PATH has no python3.".into(),
                false => format!("Tried: {}.", tried.join("; ")),
            },
        }),
    }
}

/// The version that is asked for and that what was chosen has not; of no matter which version, where
/// nothing was found at all.
pub fn missing(
    wish: &Wish,
    chosen: &Result<(Interpreter, Option<String>), PythonError>,
) -> Option<Version> {
    let any = Version {
        major: 3,
        minor: None,
        patch: None,
    };
    let wanted = wish.version.unwrap_or(any);
    match chosen {
        Ok((found, _)) => (!wanted.accepts(found.version)).then_some(wanted),
        Err(PythonError::NoInterpreter { .. }) => Some(wanted),
        Err(_) => None,
    }
    .filter(|wanted| wanted.major >= 3)
}

/// Whether running `path` could still show the version asked for.
fn could_match(wish: &Wish, path: &Path, seen: &Seen) -> bool {
    let known = seen.versioned.iter().find(|(p, _)| p == path);
    match (known, wish.version) {
        (Some((_, version)), Some(asked)) => {
            asked.accepts((version.major, version.minor.unwrap_or_default(), 0))
        }
        _ => true,
    }
}

fn distance_by_name(wish: &Wish, path: &Path, seen: &Seen) -> u32 {
    let known = seen.versioned.iter().find(|(p, _)| p == path);
    known.map_or(u32::MAX, |(_, version)| {
        distance(
            wish.asked(),
            version.major,
            version.minor.unwrap_or_default(),
        )
    })
}

fn stand_in_note(wish: &Wish, found: &Interpreter) -> String {
    format!(
        "Note: {} asks for {}, which is not on this machine: using Python {} ({}) instead. \
         Install {} here, or set agent.ignore_requested_python_version: true if any will do.",
        wish.by,
        wish.words(),
        found.full_version(),
        found.executable.display(),
        wish.words(),
    )
}

/// Another patch of the version was asked for.
pub fn other_patch(wish: &Wish, found: &Interpreter) -> Option<String> {
    let version = wish.version?;
    let patch = version.patch.filter(|patch| *patch != found.version.2)?;
    Some(format!(
        "Note: {} asks for Python {version}.{patch}, which is not on this machine: using Python \
         {} ({}).",
        wish.by,
        found.full_version(),
        found.executable.display()
    ))
}

/// The version fits, but the program that was named is not there.
fn missing_program(wish: &Wish, seen: &Seen, found: &Interpreter) -> Option<String> {
    let program = wish.program.as_ref()?;
    // A path recorded with the task is another machine's.
    if seen.named.is_some() || wish.by == "the task" {
        return None;
    }
    Some(format!(
        "Note: {} names {program}, which is not on this machine: using Python {} ({}).",
        wish.by,
        found.full_version(),
        found.executable.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap()
    }

    #[test]
    fn whose_wish_counts() {
        let plain = Settings::default();
        let configured = Settings {
            python_binary: Some("/opt/py/bin/python3.9".into()),
            default_python: Some("3.8".into()),
            ..Settings::default()
        };
        let ignoring = Settings {
            ignore_requested_version: true,
            ..configured.clone()
        };
        let default_only = Settings {
            default_python: Some("3.8".into()),
            ..Settings::default()
        };
        for (binary, settings, by, wanted) in [
            ("python3.11", &plain, "the task", "Python 3.11"),
            ("/usr/bin/python3.9", &plain, "the task", "Python 3.9"),
            (
                "/opt/conda/bin/python",
                &plain,
                "the task",
                "/opt/conda/bin/python",
            ),
            ("python", &plain, "nobody", "Python 3"),
            ("", &plain, "nobody", "Python 3"),
            ("python3.11", &configured, "the task", "Python 3.11"),
            ("python", &configured, "agent.python_binary", "Python 3.9"),
            ("python3.11", &ignoring, "agent.python_binary", "Python 3.9"),
            ("", &default_only, "agent.default_python", "Python 3.8"),
            ("bash", &plain, "nobody", "Python 3"),
        ] {
            let wish = wish(binary, settings);
            assert_eq!((wish.by, wish.words().as_str()), (by, wanted), "{binary}");
        }
    }

    #[test]
    fn what_is_asked_for_comes_first_then_the_usual_then_the_nearest() {
        let seen = Seen {
            named: None,
            plain: vec!["/b/python3".into(), "/b/python".into()],
            versioned: ["3.1", "3.10", "3.9", "3.13", "3.11"]
                .map(|v| (PathBuf::from(format!("/v/{v}")), version(v)))
                .to_vec(),
        };
        for (asked, expected) in [
            (
                Some("3.10"),
                "/v/3.10 /b/python3 /b/python /v/3.11 /v/3.9 /v/3.13 /v/3.1",
            ),
            (
                Some("3.12"),
                "/b/python3 /b/python /v/3.13 /v/3.11 /v/3.10 /v/3.9 /v/3.1",
            ),
            (
                Some("3"),
                "/b/python3 /b/python /v/3.13 /v/3.11 /v/3.10 /v/3.9 /v/3.1",
            ),
            (
                None,
                "/b/python3 /b/python /v/3.13 /v/3.11 /v/3.10 /v/3.9 /v/3.1",
            ),
        ] {
            let wish = Wish {
                program: None,
                version: asked.map(version),
                by: "the task",
            };
            let order: Vec<String> = order(&wish, &seen)
                .iter()
                .map(|path| path.display().to_string())
                .collect();
            assert_eq!(order.join(" "), expected, "{asked:?}");
        }
    }
}
