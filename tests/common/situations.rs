//! Lists of packages as tasks have them, and what the Python agent installs for each: the table in
//! `tests/data/requirements.json`, and the indexes, wheels and repositories that it speaks of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use clearml_agent::python::requirements::normalise;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tempfile::TempDir;

use crate::git_http::{GitServer, TestRepo};
use crate::index::{Package, PackageIndex, Shelf, project, sha256, wheel};

/// What `main.py` of each situation says.
pub const SCRIPT: &str = "\
import importlib.metadata, json, os, sys
own = os.path.realpath(sys.prefix)
found = set()
for d in importlib.metadata.distributions():
    if os.path.realpath(str(d.locate_file(''))).startswith(own):
        found.add(d.metadata['Name'] + '==' + d.version)
print('PACKAGES ' + json.dumps(sorted(found)), flush=True)
";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// What the Python agent's column was recorded with.
    pub reference: Map<String, Value>,
    pub situations: Vec<Situation>,
}

/// One task's packages, and what is installed for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Situation {
    pub name: String,
    /// `script.requirements`
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub requirements: Map<String, Value>,
    /// Of the repository, beside `main.py`. `WHEEL name version` is a wheel; under a folder's name,
    /// `PROJECT name version` is a project.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub files: Map<String, Value>,
    /// Where `main.py` is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Keys below `agent.` in `clearml.conf`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub config: Map<String, Value>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// What the Python agent installs.
    pub python_agent: Outcome,
    /// What this one does, where that is another thing, and why: a sentence of the README.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ours: Option<Outcome>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// The packages that are there in the end, or `fails`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Outcome {
    Packages(Vec<String>),
    Fails(Failed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failed {
    #[serde(rename = "fails")]
    Fails,
}

impl Outcome {
    pub const FAILS: Outcome = Outcome::Fails(Failed::Fails);

    /// From the output of [`SCRIPT`]. The installers themselves do not count, but for versions that
    /// the table's own index has.
    pub fn of(output: &str) -> Outcome {
        let line = output.lines().find_map(|line| {
            let (_, list) = line.split_once("PACKAGES ")?;
            serde_json::from_str::<Vec<String>>(list).ok()
        });
        let Some(found) = line else {
            return Outcome::FAILS;
        };
        let mut packages: Vec<String> = found
            .iter()
            .filter_map(|package| {
                let (name, version) = package.split_once("==")?;
                let name = normalise(name);
                let is_tool = ["pip", "setuptools", "wheel"].contains(&name.as_str());
                (!is_tool || version == OF_THE_TABLE).then(|| format!("{name}=={version}"))
            })
            .collect();
        packages.sort();
        Outcome::Packages(packages)
    }
}

/// The version of packages that an environment may have anyhow.
const OF_THE_TABLE: &str = "99.0";

pub fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/requirements.json")
}

pub fn table() -> Table {
    let text = std::fs::read_to_string(file()).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", file().display()))
}

/// The places that packages come from in the table.
pub struct Places {
    index: PackageIndex,
    extra: PackageIndex,
    git: GitServer,
    repository: TestRepo,
    folder: TempDir,
}

/// On the index that is asked first.
fn shelf() -> Shelf {
    let new = Package::new;
    Shelf::new(&[
        new("alpha", "1.0"),
        new("alpha", "1.1"),
        new("alpha", "2.0"),
        new("alpha", "2.1rc1"),
        new("beta", "1.0").requires("alpha<2"),
        new("gamma", "1.0")
            .extra("fast", "delta>=1")
            .extra("slow", "epsilon"),
        new("delta", "1.0"),
        new("epsilon", "1.0"),
        new("withdrawn", "1.0"),
        new("withdrawn", "1.1").yanked(),
        new("young", "1.0"),
        new("young", "2.0").requires_python(">=3.99"),
        new("local-build", "1.0"),
        new("local-build", "1.0+cu121"),
        new("left", "1.0").requires("shared==1.0"),
        new("right", "1.0").requires("shared==2.0"),
        new("shared", "1.0"),
        new("shared", "2.0"),
        new("only-pre", "0.1rc1"),
        new("Mixed_Case.Name", "1.0"),
        new("twofold", "1.0"),
        new("twofold", "1.1").source(),
        new("bad-build", "1.0").broken_source(),
        new("numpy", "1.0"),
        new("horovod", "1.0"),
        new("torch", "2.3.1"),
        new("torch", "2.3.1+cpu"),
        new("setuptools", OF_THE_TABLE),
        new("wheel", OF_THE_TABLE),
        new("clearml", "1.0").module(CLEARML),
        new("clearml", "1.1").module(CLEARML),
    ])
}

const CLEARML: &str =
    "class Task:\n    @staticmethod\n    def init(*args, **kwargs):\n        pass\n";

impl Places {
    /// `more`: further files of the index.
    pub async fn new(more: Vec<(String, Vec<u8>)>) -> Places {
        let mut shelf = shelf();
        for (name, bytes) in more {
            let project = name.split('-').next().unwrap_or_default().to_owned();
            shelf.add(&project, name, bytes);
        }
        let index = PackageIndex::of(shelf, None).await;
        let extra = PackageIndex::start(&[("alpha", "3.0"), ("only-extra", "1.0")], None).await;

        let folder = tempfile::tempdir().unwrap();
        for (name, version) in [("alpha", "1.5"), ("only-links", "1.0")] {
            let (name, bytes) = wheel(name, version);
            let links = folder.path().join("links");
            std::fs::create_dir_all(&links).unwrap();
            std::fs::write(links.join(name), bytes).unwrap();
        }

        let repository = TestRepo::new();
        for (path, text) in project("of-git", "0.1") {
            repository.write(&path, text);
        }
        for (path, text) in project("of-folder", "0.1") {
            repository.write(&format!("inner/{path}"), text);
        }
        repository.commit("one");
        repository.git(&["tag", "v0.1"]);
        for (path, text) in project("of-git", "0.2") {
            repository.write(&path, text);
        }
        repository.commit("two");

        let certificate = folder.path().join("git.pem");
        let key = folder.path().join("git.key");
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes"])
            .args(["-days", "2", "-subj", "/CN=test"])
            .args(["-addext", "subjectAltName=DNS:localhost"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let git = GitServer::start_tls(repository.served_root(), &certificate, &key);
        Places {
            index,
            extra,
            git,
            repository,
            folder,
        }
    }

    /// The environment of an agent that is to install from here.
    pub fn environment(&self, home: &Path) -> BTreeMap<String, String> {
        // pyenv's stand-ins look for their Pythons in the home folder.
        let path = std::env::var("PATH").unwrap();
        let folders = std::env::split_paths(&path).filter(|folder| !folder.ends_with("shims"));
        let path = std::env::join_paths(folders).unwrap().into_string();
        let certificate = self.folder.path().join("git.pem");
        [
            ("PATH", path.unwrap()),
            ("HOME", home.to_string_lossy().into_owned()),
            ("LANG", "C.UTF-8".into()),
            ("PIP_INDEX_URL", self.index.url()),
            ("PIP_CONFIG_FILE", "/dev/null".into()),
            ("GIT_SSL_CAINFO", certificate.to_string_lossy().into_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    /// The situation with the addresses of these places in it.
    pub fn fill_in(&self, situation: &Situation) -> Situation {
        let text = serde_json::to_string(situation).unwrap();
        let links = self.folder.path().join("links");
        let hash = |name: &str, version: &str| sha256(&wheel(name, version).1);
        let text = [
            ("@INDEX@", self.index.url()),
            ("@FILES@", self.index.files()),
            ("@CUDA@", self.index.cuda_template()),
            ("@EXTRA@", self.extra.url()),
            ("@LINKS@", links.to_string_lossy().into_owned()),
            ("@GIT@", format!("localhost:{}/up/.git", self.git.port())),
            ("@GITFOLDER@", self.repository.url()),
            ("@HASH-alpha-1.0@", hash("alpha", "1.0")),
        ]
        .into_iter()
        .fold(text, |text, (place, value)| text.replace(place, &value));
        serde_json::from_str(&text).unwrap()
    }
}

/// Puts the situation's files into its repository.
pub fn write_files(situation: &Situation, root: &Path) {
    let working_dir = root.join(&situation.working_dir);
    std::fs::create_dir_all(&working_dir).unwrap();
    std::fs::write(working_dir.join("main.py"), SCRIPT).unwrap();
    let write = |path: &str, bytes: &[u8]| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    for (path, text) in &situation.files {
        let text = text.as_str().unwrap();
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["WHEEL", name, version] => write(path, &wheel(name, version).1),
            ["PROJECT", name, version] => {
                for (inner, text) in project(name, version) {
                    write(&format!("{path}/{inner}"), text.as_bytes());
                }
            }
            _ => write(path, text.as_bytes()),
        }
    }
}
