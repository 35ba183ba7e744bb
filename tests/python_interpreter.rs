//! Which interpreter a task gets, and the empty environment that is made of it.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use bench::{Bench, Done, SYSTEM_PATH};
use clearml_agent::python::Installed;
use clearml_agent::python::choice::choose;
use clearml_agent::python::settings::{Installer, SkipVenv};
use clearml_agent::python::tools::Kind;
use serde_json::json;
#[tokio::test]
async fn the_environment_is_a_real_one_with_pip_inside() {
    let bench = Bench::new();
    let done = bench.runs("", json!({})).await;
    let folder = done.env.folder.clone().unwrap();
    assert_eq!(
        done.python("import sys; print(sys.prefix)"),
        folder.to_string_lossy()
    );
    assert_eq!(
        done.python("import sys; print(sys.prefix != sys.base_prefix, sys.flags.no_site)"),
        "True 0"
    );
    // Nothing of the base interpreter's packages, and nothing to record but an empty list.
    assert_eq!(
        done.python("import sysconfig, sys; print(sysconfig.get_path('purelib') in sys.path)"),
        "True"
    );
    assert_eq!(done.recorded(), json!({"pip": []}));
    for program in ["python -m pip", "pip", "pip3"] {
        let output = Command::new("/bin/sh")
            .arg("-c")
            .arg(format!(
                ". '{0}/bin/activate' && {program} --version",
                folder.display()
            ))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            text.contains(&*folder.to_string_lossy()),
            "{program}: {text} {output:?}"
        );
    }
    // pip is whole: it can remove itself, its programs too.
    let output = Command::new(folder.join("bin/pip"))
        .args(["uninstall", "-y", "pip"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!folder.join("bin/pip").exists());
    assert!(!done.env.has_pip());
}

#[tokio::test]
async fn pip_is_unpacked_once_and_each_environment_can_change_its_own() {
    use std::os::unix::fs::MetadataExt as _;
    let home = tempfile::tempdir().unwrap();
    let made = async || {
        let mut bench = Bench::new();
        bench.settings.cache = home.path().to_owned();
        let done = bench.runs("", json!({})).await;
        let package = done.env.site_packages[0].join("pip");
        (done, package)
    };
    let inode = |package: &Path| package.join("__init__.py").metadata().unwrap().ino();
    let (first, package) = made().await;
    let (second, other) = made().await;
    assert_eq!(inode(&package), inode(&other), "the files are shared");

    // It removes itself from one environment, and works in the other and in the next.
    let pip = |done: &Done, words: &[&str]| {
        let pip = done.env.folder.as_ref().unwrap().join("bin/pip");
        Command::new(pip).args(words).output().unwrap()
    };
    let removed = pip(&first, &["uninstall", "-y", "pip"]);
    assert!(removed.status.success() && !package.exists(), "{removed:?}");
    // A kept file that a crash has cut off is not used.
    let kept = std::fs::read_dir(home.path().join("pip")).unwrap();
    for folder in kept.flatten() {
        std::fs::remove_file(folder.path().join("pip/__main__.py")).unwrap();
        std::fs::write(folder.path().join("pip/__main__.py"), "").unwrap();
    }
    let (third, _) = made().await;
    for done in [&second, &third] {
        let shown = pip(done, &["--version"]);
        assert!(shown.status.success(), "{shown:?}");
        assert!(done.env.has_pip());
    }
    let text = std::fs::read_to_string(third.env.site_packages[0].join("pip/__main__.py"));
    assert!(!text.unwrap().is_empty());
}

#[tokio::test]
async fn pythons_of_pyenv_are_found() {
    let bench = Bench::new();
    let home = bench.settings.home.clone().unwrap_or_default();
    let versions = std::fs::read_dir(home.join(".pyenv/versions"));
    let mut names: Vec<String> = versions
        .map(|entries| {
            entries
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .collect()
        })
        .unwrap_or_default();
    names.retain(|name| name.starts_with("3."));
    if names.is_empty() {
        eprintln!("skipped: pyenv has no Python 3 on this machine");
        return;
    }
    for name in names {
        let mut parts = name.split('.');
        let minor: u32 = parts.nth(1).unwrap().parse().unwrap();
        let bench = Bench::new();
        let done = bench
            .runs(&format!("python3.{minor}"), json!({"pip": "six==1.16.0"}))
            .await;
        let code = "import sys, six, pip; print('%d.%d' % sys.version_info[:2], six.__version__)";
        assert_eq!(done.python(code), format!("3.{minor} 1.16.0"));
        assert!(!bench.said().contains("Note:"), "{}", bench.said());
    }
}

#[tokio::test]
async fn a_python_that_is_not_there_is_replaced_and_said() {
    let bench = Bench::new();
    let done = bench.runs("python3.99", json!({})).await;
    assert_eq!(done.python("import sys; print(sys.version_info[0])"), "3");
    let said = bench.said();
    assert!(
        said.contains("Note: the task asks for Python 3.99, which is not on this machine"),
        "{said}"
    );
}

#[tokio::test]
async fn the_nearest_python_stands_in() {
    let mut bench = Bench::new();
    let folder = bench.dir.path().join("bin");
    std::fs::create_dir(&folder).unwrap();
    let (python, _) = choose("", &bench.settings).await.unwrap();
    // They only say that they are of another version.
    for (name, minor) in [
        ("python3", 90),
        ("python3.28", 28),
        ("python3.31", 31),
        ("python3.33", 33),
    ] {
        let script = format!(
            "#!/bin/sh\n'{}' \"$@\" | /bin/sed 's/^3\\.[0-9]*\\.[0-9]*$/3.{minor}.0/'\n",
            python.executable.display()
        );
        let path = folder.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let home = bench.dir.path().to_owned();
    let env = &mut bench.settings.environment;
    env.insert("PATH".into(), folder.display().to_string());
    env.insert("PYENV_ROOT".into(), "/nowhere".into());
    bench.settings.home = Some(home);
    for (asked, used) in [
        ("python3.30", "3.31"),
        ("python3.29", "3.28"),
        ("python3.99", "3.90"),
    ] {
        let (found, note) = choose(asked, &bench.settings).await.unwrap();
        assert_eq!(found.minor_version(), used, "{asked}");
        assert!(note.unwrap().contains("which is not on this machine"));
    }
}

#[tokio::test]
async fn the_systems_python_gets_an_environment_for_uv_and_pip_alike() {
    if !Path::new("/usr/bin/python3").exists() {
        eprintln!("skipped: this machine has no /usr/bin/python3");
        return;
    }
    for installer in [Installer::Uv, Installer::Pip] {
        let mut bench = Bench::new();
        bench.settings.installer = installer;
        let env = &mut bench.settings.environment;
        env.insert("PATH".into(), SYSTEM_PATH.into());
        env.insert("PYENV_ROOT".into(), "/nowhere".into());
        let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
        let site = done.env.site_packages[0].join("six.py");
        assert_eq!(
            done.python("import six; print(six.__file__)"),
            site.to_string_lossy()
        );
    }
}

#[tokio::test]
async fn programs_that_fail_are_passed_over_and_named_when_nothing_is_left() {
    use std::os::unix::fs::PermissionsExt;
    let mut bench = Bench::new();
    let bin = bench.dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    for name in ["python3", "python3.11"] {
        std::fs::write(
            bin.join(name),
            "#!/bin/sh\necho not this one >&2\nexit 127\n",
        )
        .unwrap();
        std::fs::set_permissions(bin.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{SYSTEM_PATH}", bin.display());
    bench.settings.environment.insert("PATH".into(), path);
    let has_system_python = Path::new("/usr/bin/python3").exists();
    match bench.run("python3.11", json!({})).await {
        Ok(done) => assert_eq!(done.python("print('ok')"), "ok"),
        Err(error) => {
            assert!(!has_system_python, "{error}");
            assert!(
                error.to_string().contains("exit code 127 not this one"),
                "{error}"
            );
        }
    }
}

#[tokio::test]
async fn the_skip_switches() {
    let mut bench = Bench::new();
    bench.settings.skip_python_env = true;
    let done = bench
        .runs(
            "",
            json!({"pip": "no-such-package-for-clearml-agent-tests"}),
        )
        .await;
    assert_eq!(done.env.kind, Kind::AsItIs);
    assert_eq!(done.installed, Installed::default());
}

#[tokio::test]
async fn packages_go_into_the_interpreter_that_is_named() {
    // A virtual environment stands for an image's own Python.
    let image = Bench::new();
    let image = image.runs("", json!({"pip": "tabulate"})).await;
    let python = image.env.python.clone().unwrap();
    let mut bench = Bench::new();
    bench.settings.skip_venv = SkipVenv::Into(python.to_string_lossy().into_owned());
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.env.kind, Kind::Shared);
    assert_eq!(
        image.python("import six, tabulate; print(six.__version__)"),
        "1.16.0"
    );
    // The whole environment is recorded.
    let lines = done.recorded()["pip"].to_string();
    assert!(
        lines.contains("six==1.16.0") && lines.contains("tabulate=="),
        "{lines}"
    );
}
