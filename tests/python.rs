//! Packages, with real Pythons, a real uv, a real pip and the configured package index: what is
//! installed, how failures are told, what is recorded.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;

use std::path::Path;
use std::process::Command;

use bench::Bench;
use clearml_agent::python::cache::settings::CacheSettings;
use clearml_agent::python::failure::Place;
use clearml_agent::python::install::Code;
use clearml_agent::python::settings::Installer;
use clearml_agent::python::{PythonError, create, find_tools, install, notebook};
use clearml_agent::task::Script;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
#[tokio::test]
async fn packages_are_installed_and_recorded() {
    let bench = Bench::new();
    let done = bench
        .runs(
            "",
            json!({"pip": "# Python 3\nsix==1.16.0\nTabulate", "other": "kept"}),
        )
        .await;
    assert_eq!(
        done.python("import six, tabulate; print(six.__version__)"),
        "1.16.0"
    );
    let recorded = done.recorded();
    assert_eq!(recorded["org_pip"], "# Python 3\nsix==1.16.0\nTabulate");
    assert_eq!(recorded["other"], "kept");
    let lines: Vec<&str> = recorded["pip"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(lines[0], "six==1.16.0");
    assert!(lines[1].starts_with("tabulate=="), "{lines:?}");
    assert_eq!(lines.len(), 2);
    // uv's own words reach the log.
    assert!(bench.said().contains("six==1.16.0"), "{}", bench.said());
}

#[tokio::test]
async fn a_package_that_does_not_exist_is_named() {
    let bench = Bench::new();
    let error = bench
        .fails(json!({"pip": "six\nno-such-package-for-clearml-agent-tests>1"}))
        .await;
    let words = error.to_string();
    assert!(
        words.starts_with(
            "could not install the task's packages: no package index has \
             no-such-package-for-clearml-agent-tests"
        ),
        "{words}"
    );
    assert!(words.contains("extra_index_url"), "{words}");
}

#[tokio::test]
async fn a_version_that_does_not_exist_is_named() {
    let bench = Bench::new();
    let words = bench.fails(json!({"pip": "six==99.0"})).await.to_string();
    assert!(words.contains("no version fits six==99.0"), "{words}");
}

#[tokio::test]
async fn versions_that_exclude_each_other_are_installed_as_listed() {
    let bench = Bench::new();
    let list = "requests==2.31.0\nidna==2.0\n";
    let done = bench.runs("", json!({"pip": list})).await;
    let lines = done.recorded()["pip"].to_string();
    assert!(
        lines.contains("requests==2.31.0") && lines.contains("idna==2.0"),
        "{lines}"
    );
    assert!(lines.contains("urllib3=="), "{lines}");
    assert!(
        bench.said().contains("exclude each other"),
        "{}",
        bench.said()
    );
}

const SETUP: &str = "from setuptools import setup\nsetup(name='localpkg', version='0.3', py_modules=['localpkg'])\n";

#[tokio::test]
async fn local_packages_are_installed_and_recorded_as_they_are_listed() {
    for (line, editable) in [("./pkg", false), ("-e ./pkg", true)] {
        let bench = Bench::new();
        bench.file("pkg/setup.py", SETUP);
        bench.file("pkg/localpkg.py", "WHERE = __file__\n");
        let done = bench.runs("", json!({"pip": format!("{line}\nsix")})).await;
        let place = done.python("import localpkg; print(localpkg.WHERE)");
        let in_repository = Path::new(&place).starts_with(bench.repository());
        assert_eq!(in_repository, editable, "{line}: {place}");
        assert_eq!(done.recorded()["pip"][0], line);
    }
}

#[tokio::test]
async fn a_git_repository_is_installed_at_its_commit() {
    let bench = Bench::new();
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
            .args(args)
            .current_dir(bench.repository())
            .output()
            .unwrap();
        assert!(output.status.success(), "{args:?} {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    bench.file("setup.py", SETUP);
    bench.file("localpkg.py", "");
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    let commit = git(&["rev-parse", "HEAD"]);
    let url = format!("git+file://{}", bench.repository().display());
    let done = bench
        .runs("", json!({"pip": format!("localpkg @ {url}@main")}))
        .await;
    assert_eq!(
        done.recorded()["pip"],
        json!([format!("localpkg @ {url}@{commit}")])
    );
}

#[tokio::test]
async fn without_a_git_program_a_repository_fails_before_anything_is_installed() {
    let mut bench = Bench::new();
    let programs = bench.dir.path().join("programs");
    std::fs::create_dir(&programs).unwrap();
    let found = Command::new("sh")
        .args(["-c", "command -v python3"])
        .output();
    let python = String::from_utf8(found.unwrap().stdout).unwrap();
    std::os::unix::fs::symlink(python.trim(), programs.join("python3")).unwrap();
    let path = programs.to_string_lossy().into_owned();
    bench.settings.environment.insert("PATH".into(), path);
    let kept = CacheSettings::at(bench.dir.path().join("kept"));
    let commit = "0123456789012345678901234567890123456789";
    for (kept, revision, place, advice) in [
        (
            Some(kept.clone()),
            "main",
            Place::Host,
            "Install git on this machine",
        ),
        (
            Some(kept),
            commit,
            Place::Container,
            "extra_docker_shell_script",
        ),
        (None, "main", Place::Host, "Install git on this machine"),
    ] {
        bench.settings.venvs_cache = kept;
        bench.settings.place = place;
        let line = format!("x @ git+https://u:secret@h.invalid/o/x@{revision}");
        let list = json!({"pip": format!("six==1.16.0\n{line}")});
        let words = bench.fails(list).await.to_string();
        let masked = line.replace("secret", "****");
        assert!(
            words.contains(&format!("{masked} comes from a git repository")),
            "{words}"
        );
        assert!(words.contains(advice), "{words}");
        assert!(
            !bench.said().contains("Installing packages"),
            "{}",
            bench.said()
        );
        let _ = std::fs::remove_dir_all(bench.dir.path().join("venv"));
    }
}

#[tokio::test]
async fn a_package_that_cannot_be_built_shows_why() {
    let bench = Bench::new();
    bench.file(
        "bad/setup.py",
        "raise RuntimeError('no compiler on this moon')\n",
    );
    let words = bench.fails(json!({"pip": "./bad"})).await.to_string();
    assert!(words.contains("could not be built"), "{words}");
    assert!(words.contains("no compiler on this moon"), "{words}");
}

#[tokio::test]
async fn without_a_list_the_repositorys_files_count() {
    let mut bench = Bench::new();
    bench.file("requirements.txt", "-r more/base.txt\n");
    bench.file("more/base.txt", "six==1.16.0 # pinned\n");
    bench.file("main.py", "");
    for forced in [false, true] {
        bench.settings.force_repo_requirements_txt = forced;
        let list = if forced { "tabulate" } else { "" };
        let _ = std::fs::remove_dir_all(bench.dir.path().join("venv"));
        let done = bench.runs("", json!({"pip": list})).await;
        assert_eq!(
            done.recorded()["pip"],
            json!(["six==1.16.0"]),
            "forced: {forced}"
        );
    }
}

#[tokio::test]
async fn only_comments_install_nothing() {
    let bench = Bench::new();
    bench.file("requirements.txt", "six\n");
    let done = bench.runs("", json!({"pip": "# nothing"})).await;
    assert_eq!(done.recorded(), json!({"pip": [], "org_pip": "# nothing"}));
    assert!(bench.said().contains("only comments"), "{}", bench.said());
}

#[tokio::test]
async fn pip_installs_where_the_configuration_says_so() {
    let mut bench = Bench::new();
    bench.settings.installer = Installer::Pip;
    bench.settings.pip_version = vec!["23.3 ; python_version >= '3.7'".into()];
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.python("import six; print(six.__version__)"), "1.16.0");
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
    assert_eq!(done.python("import pip; print(pip.__version__)"), "23.3");
    assert!(
        bench.said().contains("Installing with pip, not uv"),
        "{}",
        bench.said()
    );
}

#[tokio::test]
async fn an_unreadable_line_fails_before_anything_is_installed() {
    let bench = Bench::new();
    let words = bench
        .fails(json!({"pip": "six\nfoo bar baz"}))
        .await
        .to_string();
    assert!(
        words.starts_with("requirement \"foo bar baz\" (the task's packages)"),
        "{words}"
    );
    assert!(!bench.said().contains("six=="), "{}", bench.said());
}

#[tokio::test]
async fn a_stop_ends_an_installation() {
    let bench = Bench::new();
    bench.file(
        "slow/setup.py",
        "import time, pathlib\npathlib.Path(__file__).with_name('started').touch()\ntime.sleep(600)\n",
    );
    let started = bench.repository().join("slow/started");
    let watch = async {
        while !started.exists() {
            tokio::task::yield_now().await;
        }
        bench.stop.cancel();
    };
    let requirements = json!({"pip": format!("-e {}/slow", bench.repository().display())});
    let (ended, ()) = tokio::join!(bench.run("", requirements), watch);
    assert_eq!(ended.unwrap_err(), PythonError::Stopped);
}

#[tokio::test]
async fn a_notebook_is_converted_with_packages_of_its_own() {
    let bench = Bench::new();
    let cell = json!({"cell_type": "code", "source": ["print('from a notebook')"], "metadata": {},
                      "outputs": [], "execution_count": null, "id": "a1"});
    let book = json!({"cells": [cell], "metadata": {"language_info": {"name": "python", "file_extension": ".py"}},
                      "nbformat": 4, "nbformat_minor": 5});
    bench.file("book.ipynb", &book.to_string());
    bench.file("script.ipynb", "print('a script')\n");
    let root = bench.repository();
    let script: Script =
        serde_json::from_value(json!({"entry_point": "book.ipynb", "requirements": {"pip": ""}}))
            .unwrap();
    let (console, stop) = (bench.console(), CancellationToken::new());
    let tools = find_tools(&script, &bench.settings, &console, &stop)
        .await
        .unwrap();
    let env = create(
        &tools,
        &script,
        &bench.dir.path().join("venv"),
        &bench.settings,
        &console,
        &stop,
    )
    .await
    .unwrap();
    let code = Code {
        repository: None,
        working_dir: &root,
        entry_point: "book.ipynb",
    };
    install(
        &env,
        &tools,
        &script,
        &code,
        &bench.settings,
        &console,
        &stop,
    )
    .await
    .unwrap();
    for (entry, expected) in [
        ("book.ipynb", "book.py"),
        ("script.ipynb", "script.ipynb"),
        ("a.py", "a.py"),
    ] {
        let found = notebook::convert(&env, &root, entry, &bench.settings, &console, &stop)
            .await
            .unwrap();
        assert_eq!(found, expected, "{}", bench.said());
    }
    let text = std::fs::read_to_string(root.join("book.py")).unwrap();
    assert!(text.contains("from a notebook"), "{text}");
}
