//! Repositories that are uv or Poetry projects, with the real tools.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/index.rs"]
mod index;

use std::process::Command;

use bench::{Bench, uv_of_this_machine};
use clearml_agent::python::index::Indexes;
use clearml_agent::python::settings::Manager;
use index::PackageIndex;
use serde_json::json;

const PYPROJECT: &str = "[project]\nname = \"theirs\"\nversion = \"0.1\"\nrequires-python = \">=3.8\"\n\
                         dependencies = [\"six<1.17\"]\n";

/// A repository with that project, whose lock is made by uv where one is wanted.
fn project(lock: bool) -> Option<Bench> {
    let mut bench = Bench::new();
    bench.settings.manager = Manager::Uv;
    bench.file("pyproject.toml", PYPROJECT);
    if lock {
        let uv = uv_of_this_machine()?;
        let mut command = Command::new(uv);
        command
            .args(["lock", "--quiet"])
            .current_dir(bench.repository());
        let indexes = &bench.settings.indexes;
        command.envs(indexes.for_uv(&bench.settings.environment));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    Some(bench)
}

#[tokio::test]
async fn a_uv_project_is_synced_from_its_lock() {
    let Some(bench) = project(true) else {
        eprintln!("skipped: CLEARML_TEST_PYTHON has no uv beside it");
        return;
    };
    // Twice, as on a machine where the task ran before.
    for _ in 0..2 {
        let _ = std::fs::remove_dir_all(bench.dir.path().join("venv"));
        let done = bench.runs("", json!({"pip": "tabulate"})).await;
        assert_eq!(done.python("import six; print(six.__version__)"), "1.16.0");
        assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
        assert!(done.env.has_pip());
    }
    let said = bench.said();
    assert!(
        said.contains("Packages: the repository's uv.lock, because"),
        "{said}"
    );
    assert!(!bench.repository().join(".venv").exists());

    // The lock no longer fits: that is said, and it goes on without.
    bench.file(
        "pyproject.toml",
        &PYPROJECT.replace("six<1.17", "six==1.15.0"),
    );
    let _ = std::fs::remove_dir_all(bench.dir.path().join("venv"));
    let done = bench.runs("", json!({})).await;
    assert_eq!(done.python("import six; print(six.__version__)"), "1.15.0");
    assert!(
        bench.said().contains("uv.lock does not fit"),
        "{}",
        bench.said()
    );
}

/// What a run on a machine with this index alone says of a lock that was made with another, and the
/// version of the package that it gets.
async fn with_index(index: &PackageIndex, pyproject: &str, lock: &str) -> (String, String) {
    let mut bench = project(false).unwrap();
    bench.settings.cache = bench.dir.path().join("clearml");
    let env = &mut bench.settings.environment;
    env.retain(|name, _| !name.starts_with("PIP_") && !name.starts_with("UV_"));
    env.insert("PIP_INDEX_URL".into(), index.url());
    env.insert("UV_HTTP_RETRIES".into(), "0".into());
    bench.settings.indexes = Indexes::of_pip(env, None);
    bench.file("pyproject.toml", pyproject);
    bench.file("uv.lock", lock);
    let done = bench.runs("", json!({})).await;
    let kept = std::fs::read_to_string(bench.repository().join("uv.lock")).unwrap();
    let said = bench.said();
    assert_eq!(kept == lock, !said.contains("without --locked"), "{said}");
    (said, done.python("import mylib; print(mylib.VERSION)"))
}

#[tokio::test]
async fn a_lock_made_with_another_index_fits() {
    let Some(uv) = uv_of_this_machine() else {
        eprintln!("skipped: CLEARML_TEST_PYTHON has no uv beside it");
        return;
    };
    let theirs = PackageIndex::start(&[("mylib", "1.0")], None).await;
    let ours = PackageIndex::start(&[("mylib", "1.0"), ("mylib", "1.1")], None).await;
    let pyproject = PYPROJECT.replace("six<1.17", "mylib");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pyproject.toml"), &pyproject).unwrap();
    let output = tokio::process::Command::new(uv)
        .args(["lock", "--quiet", "--no-cache"])
        .current_dir(folder.path())
        .env("UV_DEFAULT_INDEX", theirs.url())
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let lock = std::fs::read_to_string(folder.path().join("uv.lock")).unwrap();
    assert!(lock.contains(&theirs.url()), "{lock}");

    let (said, version) = with_index(&ours, &pyproject, &lock).await;
    assert_eq!(version, "1.0", "{said}");
    assert!(!said.contains("Note:"), "{said}");

    // One that is stale is so whatever the index.
    let newer = pyproject.replace("mylib", "mylib>1.0");
    let (said, version) = with_index(&ours, &newer, &lock).await;
    assert_eq!(version, "1.1", "{said}");
    assert!(said.contains("uv.lock does not fit"), "{said}");

    // Nobody is at the lock's index: the configured one has the same versions.
    let gone = lock.replace(&theirs.url(), "http://127.0.0.1:1/simple");
    let gone = gone.replace(&theirs.files(), "http://127.0.0.1:1/files");
    let (said, version) = with_index(&ours, &pyproject, &gone).await;
    assert_eq!(version, "1.0", "{said}");
    assert!(
        said.contains("from the package index that is configured here"),
        "{said}"
    );
}

#[tokio::test]
async fn a_project_that_cannot_be_synced_gives_way_to_the_list() {
    let bench = project(false).unwrap();
    bench.file(
        "pyproject.toml",
        &PYPROJECT.replace("six<1.17", "no-such-package-for-clearml-agent-tests"),
    );
    let done = bench.runs("", json!({"pip": "tabulate==0.9.0"})).await;
    assert_eq!(done.recorded()["pip"], json!(["tabulate==0.9.0"]));
    let said = bench.said();
    assert!(said.contains("Note: the project can't be used"), "{said}");
    // With a lock, that is what the user means.
    bench.file("uv.lock", "version = 1\nnonsense\n");
    let _ = std::fs::remove_dir_all(bench.dir.path().join("venv"));
    let words = bench
        .fails(json!({"pip": "tabulate==0.9.0"}))
        .await
        .to_string();
    assert!(
        words.contains("the repository is a project (uv.lock)"),
        "{words}"
    );
}

#[tokio::test]
async fn a_project_is_looked_at_for_its_own_manager_alone() {
    let mut bench = project(false).unwrap();
    bench.settings.manager = Manager::Pip;
    let done = bench.runs("", json!({"pip": "tabulate==0.9.0"})).await;
    assert_eq!(done.recorded()["pip"], json!(["tabulate==0.9.0"]));
}

#[tokio::test]
async fn a_poetry_project_is_installed_by_a_poetry_of_the_agents_own() {
    let mut bench = Bench::new();
    bench.settings.manager = Manager::Poetry;
    bench.settings.poetry.install_args = vec!["--no-root".into()];
    // Not one of this machine's.
    bench.settings.poetry.version = Some(String::new());
    // Poetry knows nothing of pip's index, and a mirror need not have all that it asks of pypi.org.
    let index = bench.settings.indexes.main_url(&bench.settings.environment);
    bench.file(
        "pyproject.toml",
        &format!(
            "[tool.poetry]\nname = \"theirs\"\nversion = \"0.1\"\ndescription = \"\"\nauthors = []\n\
             [tool.poetry.dependencies]\npython = \">=3.8\"\nsix = \"1.16.0\"\n\
             [[tool.poetry.source]]\nname = \"index\"\nurl = \"{}/\"\npriority = \"primary\"\n",
            index.expose()
        ),
    );
    let done = bench.runs("", json!({"pip": "tabulate"})).await;
    let said = bench.said();
    assert!(said.contains("Environment: filled by poetry"), "{said}");
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]), "{said}");
    assert_eq!(done.python("import six; print(six.__version__)"), "1.16.0");
}
