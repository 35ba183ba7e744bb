//! What is installed, read from the packages' own metadata: `pip freeze` without pip.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::requirements::normalise;
use super::tool::mask;

/// One installed package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// What stands behind the name in the list: `==1.0` or ` @ https://…`.
    pub source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Index,
    /// An address, without credentials.
    Url(String),
    /// A folder that is used in place.
    Editable(String),
}

impl Package {
    /// The line of the list.
    pub fn line(&self) -> String {
        match &self.source {
            Source::Index => format!("{}=={}", self.name, self.version),
            Source::Url(url) => format!("{} @ {url}", self.name),
            Source::Editable(url) => {
                let path = url.strip_prefix("file://").unwrap_or(url);
                format!("-e {path}")
            }
        }
    }
}

/// `direct_url.json` (PEP 610).
#[derive(Deserialize)]
struct DirectUrl {
    url: String,
    #[serde(default)]
    subdirectory: Option<String>,
    #[serde(default)]
    dir_info: Option<DirInfo>,
    #[serde(default)]
    vcs_info: Option<VcsInfo>,
    #[serde(default)]
    archive_info: Option<ArchiveInfo>,
}

#[derive(Deserialize)]
struct DirInfo {
    #[serde(default)]
    editable: bool,
}

#[derive(Deserialize)]
struct VcsInfo {
    vcs: String,
    commit_id: String,
}

#[derive(Deserialize)]
struct ArchiveInfo {
    #[serde(default)]
    hash: Option<String>,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

impl DirectUrl {
    fn source(self) -> Source {
        let url = without_credentials(&self.url);
        if self.dir_info.as_ref().is_some_and(|info| info.editable) {
            return Source::Editable(url);
        }
        let mut text = url;
        let mut fragment = Vec::new();
        if let Some(vcs) = self.vcs_info {
            text = format!("{}+{text}@{}", vcs.vcs, vcs.commit_id);
        }
        if let Some(archive) = self.archive_info {
            let sha256 = archive
                .hashes
                .get("sha256")
                .map(|hash| format!("sha256={hash}"));
            fragment.extend(sha256.or(archive.hash));
        }
        if let Some(folder) = self.subdirectory {
            fragment.push(format!("subdirectory={folder}"));
        }
        if !fragment.is_empty() {
            text = format!("{text}#{}", fragment.join("&"));
        }
        Source::Url(text)
    }
}

fn without_credentials(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) if url.password().is_some() || url.scheme().starts_with("http") => {
            // Neither can fail for an address with a host.
            let _ = url.set_password(None);
            if url.scheme().starts_with("http") {
                let _ = url.set_username("");
            }
            url.to_string()
        }
        _ => mask(text),
    }
}

/// The packages in these folders, sorted by name. The first folder that has a package counts.
pub fn installed(folders: &[PathBuf]) -> Vec<Package> {
    let mut packages: BTreeMap<String, Package> = BTreeMap::new();
    for folder in folders {
        let Ok(entries) = std::fs::read_dir(folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if let Some(package) = read(&path) {
                packages.entry(normalise(&package.name)).or_insert(package);
            }
        }
    }
    packages.into_values().collect()
}

/// The files below an environment that have not the hash that their package's record has.
pub fn differing(environment: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for library in ["lib", "lib64"].map(|name| environment.join(name)) {
        if library.is_symlink() {
            continue;
        }
        for python in children(&library) {
            let site = python.join("site-packages");
            for package in children(&site) {
                let record = std::fs::read_to_string(package.join("RECORD"));
                for line in record.unwrap_or_default().lines() {
                    if let Some(path) = differs(environment, &site, line) {
                        let shown = path.strip_prefix(environment).unwrap_or(&path);
                        found.push(shown.to_string_lossy().into_owned());
                    }
                }
            }
        }
    }
    found
}

fn children(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}

/// A line of a record is `path,sha256=HASH,length`; the path may be in quotes. Gives the file if it is
/// there and differs.
fn differs(environment: &Path, site: &Path, line: &str) -> Option<PathBuf> {
    use base64::Engine as _;
    use sha2::Digest as _;
    let (rest, _) = line.rsplit_once(',')?;
    let (path, hash) = rest.rsplit_once(',')?;
    let wanted = hash.strip_prefix("sha256=")?;
    let path: PathBuf = site.join(path.trim_matches('"'));
    // `../../../bin/x` is to be read as what it means.
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    // The record may be anybody's: no other file is looked into.
    let is_file = std::fs::symlink_metadata(&plain).is_ok_and(|found| found.is_file());
    (is_file && plain.starts_with(environment)).then_some(())?;
    let found = sha2::Sha256::digest(std::fs::read(&plain).ok()?);
    let found = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(found);
    (found != wanted).then_some(plain)
}

/// The package that installed the file, whose path is that below the environment.
pub fn owner(folders: &[PathBuf], file: &str) -> Option<String> {
    let (_, inside) = file.split_once("site-packages/")?;
    let start = format!("{inside},");
    folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.path())
        .find(|path| {
            let record = std::fs::read_to_string(path.join("RECORD")).unwrap_or_default();
            record.lines().any(|line| line.starts_with(&start))
        })
        .and_then(|path| Some(read(&path)?.name))
}

fn read(path: &Path) -> Option<Package> {
    let metadata = match path.extension()?.to_str()? {
        "dist-info" => path.join("METADATA"),
        "egg-info" if path.is_dir() => path.join("PKG-INFO"),
        "egg-info" => path.to_owned(),
        _ => return None,
    };
    let metadata = std::fs::read(metadata).ok()?;
    let metadata = String::from_utf8_lossy(&metadata);
    let header = |name: &str| {
        metadata
            .lines()
            .take_while(|line| !line.is_empty())
            .find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
    };
    let direct_url = std::fs::read(path.join("direct_url.json")).ok();
    let direct_url: Option<DirectUrl> =
        direct_url.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    Some(Package {
        name: header("Name")?,
        version: header("Version")?,
        source: direct_url.map_or(Source::Index, DirectUrl::source),
    })
}

/// Whether pip leaves a package out of its list: its own tools, unless they were asked for.
pub fn left_out(name: &str, python: (u32, u32, u32), requested: &[String]) -> bool {
    let name = normalise(name);
    if requested.contains(&name) {
        return false;
    }
    match name.as_str() {
        "pip" | "clearml-agent" => true,
        "setuptools" | "wheel" | "distribute" => python < (3, 12, 0),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn put(site: &Path, folder: &str, name: &str, version: &str, direct_url: Option<Value>) {
        let folder = site.join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nText\n");
        std::fs::write(folder.join("METADATA"), metadata).unwrap();
        if let Some(value) = direct_url {
            std::fs::write(folder.join("direct_url.json"), value.to_string()).unwrap();
        }
    }

    #[test]
    fn the_list_is_pips() {
        let site = tempfile::tempdir().unwrap();
        let url = |value| Some(value);
        put(site.path(), "six-1.17.0.dist-info", "six", "1.17.0", None);
        put(site.path(), "Zed-1.dist-info", "Zed", "1", None);
        put(
            site.path(),
            "a-1.dist-info",
            "a",
            "1",
            url(json!({"url": "https://u:p@h/a.git", "subdirectory": "s",
                       "vcs_info": {"vcs": "git", "commit_id": "c0ffee"}})),
        );
        put(
            site.path(),
            "b-1.dist-info",
            "b",
            "1",
            url(json!({"url": "https://tok@h/b-1.whl",
                       "archive_info": {"hash": "sha256=ab", "hashes": {"sha256": "ab"}}})),
        );
        put(
            site.path(),
            "c-1.dist-info",
            "c",
            "1",
            url(json!({"url": "file:///src/c", "dir_info": {"editable": true}})),
        );
        put(
            site.path(),
            "d-1.dist-info",
            "d",
            "1",
            url(json!({"url": "file:///src/d", "dir_info": {}})),
        );
        std::fs::create_dir(site.path().join("broken.dist-info")).unwrap();
        let old = site.path().join("old-2.egg-info");
        std::fs::write(old, "Name: old\nVersion: 2\n").unwrap();
        let lines: Vec<String> = installed(&[site.path().to_owned()])
            .iter()
            .map(Package::line)
            .collect();
        assert_eq!(
            lines,
            [
                "a @ git+https://h/a.git@c0ffee#subdirectory=s",
                "b @ https://h/b-1.whl#sha256=ab",
                "-e /src/c",
                "d @ file:///src/d",
                "old==2",
                "six==1.17.0",
                "Zed==1",
            ]
        );
    }

    #[test]
    fn pips_own_tools_are_left_out_as_pip_does() {
        let asked = ["setuptools".to_owned()];
        for (name, python, requested, out) in [
            ("pip", (3, 12, 1), &[][..], true),
            ("setuptools", (3, 11, 7), &[][..], true),
            ("setuptools", (3, 12, 1), &[][..], false),
            ("setuptools", (3, 11, 7), &asked[..], false),
            ("wheel", (3, 9, 0), &asked[..], true),
            ("six", (3, 9, 0), &[][..], false),
        ] {
            assert_eq!(left_out(name, python, requested), out, "{name} {python:?}");
        }
    }
}
