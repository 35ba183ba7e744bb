//! Environments that see the packages of the Python they are made from: pins hold, and what is kept
//! is for these packages alone.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/index.rs"]
mod index;

use std::path::{Path, PathBuf};
use std::process::Command;

use bench::Bench;
use clearml_agent::python::cache::settings::CacheSettings;
use clearml_agent::python::settings::Installer;
use clearml_agent::secret::Secret;
use index::{Package, PackageIndex, Shelf};
use serde_json::json;

/// What this Python prints.
fn says(python: &Path, code: &str) -> String {
    let output = Command::new(python).args(["-c", code]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A Python of its own, with the library of one that is here and no packages.
fn base_python(folder: &Path) -> PathBuf {
    use std::os::unix::fs::symlink;
    let of = std::env::var_os("CLEARML_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let code = "import os, sys; print(os.path.realpath(sys._base_executable)); \
                print(sys.base_prefix); print('python%d.%d' % sys.version_info[:2])";
    let said = says(Path::new(&of), code);
    let mut lines = said.lines();
    let (program, prefix) = (lines.next().unwrap(), lines.next().unwrap());
    let name = lines.next().unwrap();
    let library = folder.join("lib").join(name);
    std::fs::create_dir_all(folder.join("bin")).unwrap();
    std::fs::create_dir_all(library.join("site-packages")).unwrap();
    let python = folder.join("bin").join(name);
    std::fs::copy(program, &python).unwrap();
    let theirs = Path::new(prefix).join("lib").join(name);
    for entry in std::fs::read_dir(theirs).unwrap().flatten() {
        if entry.file_name() != "site-packages" {
            symlink(entry.path(), library.join(entry.file_name())).unwrap();
        }
    }
    python
}

/// As if it had been installed there.
fn put(site: &Path, name: &str, version: &str) {
    let info = site.join(format!("{name}-{version}.dist-info"));
    std::fs::create_dir_all(&info).unwrap();
    let metadata = format!("Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n");
    std::fs::write(info.join("METADATA"), metadata).unwrap();
    std::fs::write(info.join("INSTALLER"), "pip\n").unwrap();
    std::fs::write(info.join("RECORD"), format!("{name}.py,,\n")).unwrap();
    let module = format!("VERSION = '{version}'\n");
    std::fs::write(site.join(format!("{name}.py")), module).unwrap();
}

fn site(python: &Path) -> PathBuf {
    says(python, "import site; print(site.getsitepackages()[0])").into()
}

fn bench(python: &Path, index: &PackageIndex, installer: Installer) -> Bench {
    let mut bench = Bench::new();
    bench.settings.python_binary = Some(python.to_string_lossy().into_owned());
    bench.settings.system_site_packages = true;
    bench.settings.installer = installer;
    bench.settings.pip_version.clear();
    bench.settings.indexes.url = Some(Secret::new(index.url()));
    bench.settings.cache = bench.dir.path().join("clearml");
    bench.settings.home = Some(bench.dir.path().join("home"));
    bench
}

#[tokio::test]
async fn pins_hold_whatever_the_system_has() {
    let needs = || Package::new("needs", "1").requires("pinned>=1");
    let both = PackageIndex::of(
        Shelf::new(&[
            Package::new("pinned", "1.2"),
            Package::new("pinned", "2"),
            needs(),
        ]),
        None,
    )
    .await;
    let newer = PackageIndex::of(Shelf::new(&[Package::new("pinned", "2"), needs()]), None).await;
    for (index, there, list, own) in [
        (&both, "1.1", "pinned==1.2", true),
        (&both, "1.1", "pinned==1.2\nneeds", true),
        (&both, "2", "pinned==1.2\nneeds", true),
        (&both, "1.2", "pinned==1.2", false),
        // What another package needs does not change it,
        (&both, "1.2", "pinned==1.2\nneeds", false),
        // even where no index has it.
        (&newer, "1.2", "pinned==1.2\nneeds", false),
    ] {
        for installer in [Installer::Uv, Installer::Pip] {
            let dir = tempfile::tempdir().unwrap();
            let python = base_python(dir.path());
            put(&site(&python), "pinned", there);
            let bench = bench(&python, index, installer);
            let done = bench.runs("", json!({ "pip": list })).await;
            let what = format!("{there} {list:?} {installer:?} {}", bench.said());
            let code = "import pinned; print(pinned.VERSION)";
            assert_eq!(done.python(code), "1.2", "{what}");
            let recorded = done.recorded()["pip"].to_string();
            assert!(recorded.contains("pinned==1.2"), "{recorded} {what}");
            assert_eq!(recorded.contains("needs"), list.contains("needs"), "{what}");
            let mine = done.env.site_packages[0].join("pinned.py").exists();
            assert!(mine || !own, "{what}");
        }
    }
}

#[tokio::test]
async fn nothing_is_inherited_from_a_virtual_environment() {
    let index = PackageIndex::start(&[("pinned", "1.2")], None).await;
    let dir = tempfile::tempdir().unwrap();
    let python = base_python(&dir.path().join("base"));
    let venv = dir.path().join("venv");
    let mut command = Command::new(&python);
    command.args(["-m", "venv", "--without-pip"]).arg(&venv);
    assert!(command.status().unwrap().success());
    let inside = venv.join("bin/python");
    put(&site(&inside), "pinned", "1.2");
    let bench = bench(&inside, &index, Installer::Uv);
    let done = bench.runs("", json!({"pip": "pinned==1.2"})).await;
    let code = "import pinned; print(pinned.VERSION)";
    assert_eq!(done.python(code), "1.2");
}

#[tokio::test]
async fn other_packages_of_the_system_make_another_environment() {
    let index = PackageIndex::start(&[("pinned", "1.2")], None).await;
    let dir = tempfile::tempdir().unwrap();
    let python = base_python(&dir.path().join("base"));
    let (site, home) = (site(&python), dir.path().join("home"));
    put(&site, "pinned", "1.2");
    let run = async |expected: &str| {
        let mut bench = bench(&python, &index, Installer::Uv);
        let mut cache = CacheSettings::at(dir.path().join("venvs-cache"));
        cache.free_space = 0;
        bench.settings.venvs_cache = Some(cache);
        bench.settings.home = Some(home.clone());
        let done = bench.runs("", json!({"pip": "pinned==1.2"})).await;
        assert!(bench.said().contains(expected), "{}", bench.said());
        let code = "import pinned; print(pinned.VERSION)";
        assert_eq!(done.python(code), "1.2");
    };
    let other = "for another state of the system's packages";
    run("built and kept").await;
    run("from the cache").await;
    std::fs::remove_dir_all(site.join("pinned-1.2.dist-info")).unwrap();
    put(&site, "pinned", "1.3");
    run(other).await;
    run("from the cache").await;
    // A user's own packages are inherited too.
    let library = site.strip_prefix(dir.path().join("base")).unwrap();
    let users = home.join(".local").join(library);
    std::fs::create_dir_all(&users).unwrap();
    put(&users, "more", "1");
    run(other).await;
}
