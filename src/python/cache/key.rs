//! What makes two environments the same: the parts of the key, each named, so that a miss can
//! say which of them differs.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::python::Variables;
use crate::python::flags;
use crate::python::interpreter::Interpreter;
use crate::python::requirements::{DEEPEST, Line, List, included};
use crate::python::settings::{Installer, Settings};
use crate::python::tool::mask;

/// Changes when what is kept changes its form.
const FORMAT: &str = "1";

/// Everything that an environment's contents depend on; digests, so that they may be written down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts(BTreeMap<String, String>);

/// What the parts are made from.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub interpreter: &'a Interpreter,
    /// `12.2`; empty where there is none.
    pub cuda: &'a str,
    pub settings: &'a Settings,
    /// With pip, although uv was wanted.
    pub installer: Installer,
}

const LIST: &str = "the list of packages";

impl Parts {
    /// `list` without what is not kept (see [`split`]); `root`: the checkout.
    pub fn new(context: &Context<'_>, list: &List, root: &Path) -> Parts {
        let Context {
            interpreter,
            settings,
            ..
        } = context;
        let mut parts = BTreeMap::new();
        let mut add = |name: &str, lines: Vec<String>| {
            parts.insert(name.to_owned(), digest(&lines));
        };
        add(
            "the interpreter",
            vec![
                FORMAT.into(),
                interpreter.base_executable.to_string_lossy().into_owned(),
                interpreter.full_version(),
                interpreter.implementation.clone(),
                interpreter.library_folder(),
            ],
        );
        add("the platform", vec![interpreter.platform.clone()]);
        add("the CUDA version", vec![context.cuda.to_owned()]);
        let mut installer = vec![format!("{:?}", context.installer)];
        let plain = |flag: &String| mask(&flag.replace(&*root.to_string_lossy(), ""));
        installer.extend(settings.extra_flags.iter().map(plain));
        let files = flags::paths(&settings.extra_flags).into_iter();
        installer.extend(files.map(|(_, path)| contents(Path::new(path))));
        installer.push(settings.force_upgrade.to_string());
        installer.push(settings.best_of_all_indexes.to_string());
        if context.installer == Installer::Pip {
            installer.extend(settings.pip_version.iter().cloned());
            installer.extend(settings.pip_legacy_resolver.iter().cloned());
        }
        installer.push(format!("{:?}", settings.torch));
        installer.push(build_variables(&settings.environment));
        add("the installer and its settings", installer);
        // The checkout is elsewhere in each run.
        let shown = format!("{:?}", settings.indexes.without_credentials());
        let mut indexes = vec![shown.replace(&*root.to_string_lossy(), "")];
        let named = ["UV_CONSTRAINT", "UV_OVERRIDE", "UV_BUILD_CONSTRAINT"];
        let named = named.iter().filter_map(|name| settings.variable(name));
        let links = settings.indexes.find_links.iter().map(|link| link.expose());
        let places = named.flat_map(str::split_whitespace).chain(links);
        let places = places.chain(settings.indexes.constraints.iter().map(String::as_str));
        let files = places.map(Path::new).filter(|path| path.is_absolute());
        indexes.extend(files.map(contents));
        indexes.push(tool_variables(&settings.environment));
        indexes.extend(
            tool_files(settings)
                .iter()
                .map(|text| digest(std::slice::from_ref(text))),
        );
        add("the package indexes", indexes);
        if settings.system_site_packages {
            add("the system's packages", packages_of(interpreter));
        }
        let mut optional = settings.optional_packages.clone();
        optional.sort();
        let listed = list.names();
        optional.retain(|name| listed.contains(name));
        let mut lines = lines_of(list, root);
        lines.extend(optional);
        add(LIST, lines);
        Parts(parts)
    }

    pub fn key(&self) -> String {
        let lines: Vec<String> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        digest(&lines)[..32].to_owned()
    }

    /// Of an environment that lacks these packages: another one than the whole.
    pub fn lacking(mut self, names: &[String]) -> Parts {
        if !names.is_empty() {
            self.0.insert("what it lacks".into(), digest(names));
        }
        self
    }

    /// The parts in which the other differs.
    pub fn differing<'a>(&'a self, other: &Parts) -> Vec<&'a str> {
        let differs = |(name, value): &(&String, &String)| other.0.get(*name) != Some(value);
        let mut names: Vec<&str> = self
            .0
            .iter()
            .filter(differs)
            .map(|(n, _)| n.as_str())
            .collect();
        // One has a part that the other lacks.
        if names.is_empty() && self.0.len() != other.0.len() {
            names.push("the system's packages");
        }
        names
    }
}

/// Why nothing is kept for these parts: the nearest of what is there.
pub fn why_missing<'a>(wanted: &Parts, kept: impl Iterator<Item = &'a Parts>) -> String {
    let nearest = kept
        .map(|parts| wanted.differing(parts))
        .min_by_key(|names| names.len());
    match nearest.as_deref() {
        None => "the cache is empty".into(),
        Some([]) => "it was removed".into(),
        Some([LIST]) => "no run here had this list of packages".into(),
        Some([one]) if !one.is_empty() => format!("it is there, but for another state of {one}"),
        Some(names) if !names.contains(&LIST) => {
            format!("it is there, but for another state of {}", names.join(", "))
        }
        Some(_) => "no run here had this list of packages".into(),
    }
}

fn digest(lines: &[String]) -> String {
    let mut hash = Sha256::new();
    for line in lines {
        hash.update(line.len().to_le_bytes());
        hash.update(line.as_bytes());
    }
    hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

/// The list in a form in which order, case and comments make no difference, and with what stands in
/// the checkout by its contents: the checkout's own path is new in each run.
fn lines_of(list: &List, root: &Path) -> Vec<String> {
    let mut packages = Vec::new();
    let mut settings = Vec::new();
    for line in &list.lines {
        match line {
            Line::Package { name, text, .. } => {
                let rest = text.get(name.len()..).unwrap_or_default();
                let plain: String = rest.chars().filter(|c| !c.is_whitespace()).collect();
                packages.push(format!("{name}{plain}"));
            }
            Line::Reference { text, .. } => packages.push(mask(text)),
            Line::Setting(text) => {
                let path = text.split_once(' ').map(|(_, path)| Path::new(path));
                let contents = path.filter(|path| path.is_absolute()).map(contents);
                let text = text.replace(&*root.to_string_lossy(), "");
                settings.push(format!("{} {}", mask(&text), contents.unwrap_or_default()));
            }
        }
    }
    packages.sort();
    packages.dedup();
    // Of settings the order counts.
    settings.extend(packages);
    settings
}

/// A file's text, with that of the files that it includes; a folder's names and lengths.
fn contents(path: &Path) -> String {
    if path.is_file() {
        let mut text = String::new();
        add_text(&mut text, path, 0);
        return text;
    }
    let Ok(entries) = fs::read_dir(path) else {
        return String::new();
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| {
            let length = entry.metadata().map_or(0, |meta| meta.len());
            format!("{}:{length}", entry.file_name().to_string_lossy())
        })
        .collect();
    names.sort();
    names.join("\n")
}

fn add_text(text: &mut String, path: &Path, depth: usize) {
    let bytes = fs::read(path).unwrap_or_default();
    // Whatever it is in: what counts is that it is another.
    text.push_str(&String::from_utf8_lossy(&bytes));
    if let Some(folder) = path.parent()
        && depth < DEEPEST
    {
        for file in included(&bytes) {
            add_text(text, &folder.join(file), depth + 1);
        }
    }
}

/// `UV_…` and `PIP_…` variables that can change what is installed.
fn tool_variables(env: &Variables) -> String {
    const HARMLESS: [&str; 12] = [
        "UV_CACHE_DIR",
        "UV_CONCURRENT",
        "UV_HTTP",
        "UV_LINK_MODE",
        "UV_NO_PROGRESS",
        "UV_PYTHON_",
        "UV_REQUEST_TIMEOUT",
        "UV_TOOL_",
        "PIP_CACHE_DIR",
        "PIP_RETRIES",
        "PIP_DEFAULT_TIMEOUT",
        "PIP_DISABLE_PIP_VERSION_CHECK",
    ];
    let counts = |name: &str| {
        (name.starts_with("UV_") || name.starts_with("PIP_"))
            && !HARMLESS.iter().any(|start| name.starts_with(start))
            && !["PASSWORD", "USERNAME"]
                .iter()
                .any(|end| name.ends_with(end))
    };
    shown(env, counts)
}

/// What compilers and build scripts read.
fn build_variables(env: &Variables) -> String {
    const NAMES: [&str; 10] = [
        "CC",
        "CXX",
        "CFLAGS",
        "CXXFLAGS",
        "LDFLAGS",
        "CMAKE_ARGS",
        "FORCE_CUDA",
        "CUDA_HOME",
        "TORCH_CUDA_ARCH_LIST",
        "ROCM_PATH",
    ];
    shown(env, |name| NAMES.contains(&name))
}

fn shown(env: &Variables, counts: impl Fn(&str) -> bool) -> String {
    env.iter()
        .filter(|(name, value)| counts(name) && !value.is_empty())
        .map(|(name, value)| format!("{name}={}\n", mask(value)))
        .collect()
}

/// uv's and pip's configuration files.
fn tool_files(settings: &Settings) -> Vec<String> {
    settings
        .tool_files()
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .map(|text| mask(&text))
        .collect()
}

/// What an environment with the system's packages sees of them.
fn packages_of(interpreter: &Interpreter) -> Vec<String> {
    let mut names: Vec<String> = interpreter
        .site_packages
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with("-info"))
        .collect();
    names.sort();
    names
}

/// Takes out of the list what is not kept, because it is another thing in each run: folders and
/// files of the checkout, and branches of repositories. Gives whether something was taken out.
pub fn split(list: &mut List) -> bool {
    let before = list.lines.len();
    list.lines.retain(is_kept);
    list.lines.len() != before
}

/// The same in each run.
pub fn is_kept(line: &Line) -> bool {
    match line {
        Line::Reference { text, local, .. } => local.is_none() && is_fixed(text),
        _ => true,
    }
}

/// A whole commit id is the same for ever, and so is an address that is no repository's, as far as
/// anybody relies on it.
fn is_fixed(text: &str) -> bool {
    let is_repository = ["git+", "hg+", "svn+", "bzr+"]
        .iter()
        .any(|vcs| text.contains(vcs));
    if !is_repository {
        return true;
    }
    let place = text
        .split(['#', ' '])
        .rfind(|word| word.contains('@') && word.contains('+'));
    let place = place.unwrap_or(text);
    place
        .rsplit_once('@')
        .is_some_and(|(_, rev)| rev.len() == 40 && rev.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::requirements::{Reading, parse};

    fn list(text: &str) -> List {
        let env = Variables::new();
        let root = Path::new("/checkout");
        let reading = Reading {
            origin: "test",
            folder: root,
            root,
            env: &env,
            original: None,
        };
        parse(text, &reading).unwrap()
    }

    fn parts(text: &str, change: impl Fn(&mut Settings, &mut Interpreter)) -> Parts {
        let mut settings = Settings::default();
        let mut interpreter = Interpreter::sample();
        change(&mut settings, &mut interpreter);
        let context = Context {
            interpreter: &interpreter,
            cuda: "",
            settings: &settings,
            installer: Installer::Uv,
        };
        Parts::new(&context, &list(text), Path::new("/checkout"))
    }

    #[test]
    fn what_makes_another_environment() {
        let same = |_: &mut Settings, _: &mut Interpreter| ();
        let one = parts("six==1.16.0\nNumpy >= 1\n", same);
        for (text, equal) in [
            ("# comment\nnumpy>=1\nsix == 1.16.0", true),
            ("six==1.16.0\nnumpy>=2", false),
            ("--pre\nsix==1.16.0\nnumpy>=1", false),
        ] {
            assert_eq!(parts(text, same).key() == one.key(), equal, "{text}");
        }
        type Change = fn(&mut Settings, &mut Interpreter);
        let changes: [(Change, &[&str]); 4] = [
            (|_, i| i.version.2 += 1, &["the interpreter"]),
            (
                |_, i| i.platform = "Linux aarch64".into(),
                &["the platform"],
            ),
            (
                |s, _| s.indexes.url = Some(crate::secret::Secret::new("https://h/s")),
                &["the package indexes"],
            ),
            (
                |s, _| s.force_upgrade = true,
                &["the installer and its settings"],
            ),
        ];
        for (change, differing) in changes {
            let other = parts("six==1.16.0\nnumpy>=1", change);
            assert_eq!(one.differing(&other), differing);
            assert_ne!(one.key(), other.key());
        }
    }

    #[test]
    fn the_files_of_flags_and_lists_count_by_their_contents() {
        let root = tempfile::tempdir().unwrap();
        let file = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        let flag = || {
            parts("six", |s, _| {
                s.extra_flags = vec!["-c".into(), file("c.txt")]
            })
        };
        let list = || parts(&format!("six\n-c {}", file("c.txt")), |_, _| ());
        fs::write(file("c.txt"), "-r more.txt\nsix<2").unwrap();
        fs::write(file("more.txt"), "tabulate<2").unwrap();
        let before = (flag(), list());
        assert_eq!(before, (flag(), list()));
        // Not UTF-8.
        for (name, text) in [("more.txt", &b"tabulate<3"[..]), ("c.txt", b"six<3 # \xe4")] {
            let before = (flag(), list());
            fs::write(file(name), text).unwrap();
            assert_ne!(before.0.key(), flag().key(), "{name}");
            assert_ne!(before.1.key(), list().key(), "{name}");
        }
    }

    #[test]
    fn a_new_password_makes_no_other_environment() {
        let with = |url: &'static str| {
            parts("six", move |s, _| {
                s.indexes.url = Some(crate::secret::Secret::new(url));
                s.environment
                    .insert("UV_EXTRA_INDEX_URL".into(), url.into());
            })
        };
        assert_eq!(with("https://u:one@h/s"), with("https://u:two@h/s"));
        assert_ne!(with("https://u:one@h/s"), with("https://u:one@h/t"));
    }

    #[test]
    fn why_a_miss() {
        let same = |_: &mut Settings, _: &mut Interpreter| ();
        let wanted = parts("six", same);
        let kept = [parts("numpy", same), parts("six", |_, i| i.version.2 += 1)];
        assert_eq!(why_missing(&wanted, [].iter()), "the cache is empty");
        assert_eq!(
            why_missing(&wanted, kept[..1].iter()),
            "no run here had this list of packages"
        );
        assert_eq!(
            why_missing(&wanted, kept[1..].iter()),
            "it is there, but for another state of the interpreter"
        );
        let far = [parts("numpy", |_, i| i.version.2 += 1)];
        assert_eq!(
            why_missing(&wanted, far.iter()),
            "no run here had this list of packages"
        );
    }

    #[test]
    fn what_is_not_kept() {
        let commit = "0123456789012345678901234567890123456789";
        for (line, kept) in [
            ("six", true),
            ("https://h/x-1.0-py3-none-any.whl", true),
            ("-e .", false),
            ("./pkg", false),
            ("git+https://h/r@main", false),
            ("x @ git+https://u@h/r", false),
            (&format!("git+https://h/r@{commit}"), true),
            (
                &format!("x @ git+ssh://git@h/r@{commit}#subdirectory=s"),
                true,
            ),
        ] {
            let mut list = list(line);
            assert_eq!(!split(&mut list), kept, "{line}");
        }
    }
}
