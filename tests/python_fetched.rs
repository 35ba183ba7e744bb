//! A Python that this machine lacks, fetched by a real uv from archives that the test has made.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/pythons.rs"]
mod pythons;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use bench::{Bench, SYSTEM_PATH};
use clearml_agent::python::choice::choose;
use clearml_agent::python::interpreter::Interpreter;
use clearml_agent::python::{PythonError, find_tools};
use clearml_agent::task::Script;
use pythons::LIST;
use serde_json::json;

/// As on a machine with the system's Pythons alone.
fn bare_bench() -> Bench {
    let mut bench = Bench::new();
    bench.settings.home = Some(bench.dir.path().to_owned());
    let pythons = bench.dir.path().join("pythons").display().to_string();
    let env = &mut bench.settings.environment;
    env.retain(|name, _| !name.starts_with("UV_"));
    for (name, value) in [
        ("PATH", SYSTEM_PATH),
        ("PYENV_ROOT", "/nowhere"),
        ("UV_PYTHON_INSTALL_DIR", &pythons),
    ] {
        env.insert(name.into(), value.into());
    }
    bench
}

/// Lists it where uv looks.
fn offer(bench: &mut Bench, folder: &Path, version: (u32, u32, u32), at: Option<&str>) {
    let list = pythons::offer(bench.dir.path(), folder, version, at);
    let list = list.display().to_string();
    bench.settings.environment.insert(LIST.into(), list);
}

async fn offer_a_pretender(bench: &mut Bench, at: Option<&str>) {
    let (real, _) = choose("", &bench.settings).await.unwrap();
    let folder = pythons::pretender(&real.base_executable);
    offer(bench, folder.path(), (3, 98, 4), at);
}

async fn found(bench: &Bench, binary: &str) -> Result<Interpreter, PythonError> {
    let script: Script = serde_json::from_value(json!({
        "binary": binary, "entry_point": "main.py", "repository": "https://h/r.git",
    }))
    .unwrap();
    let tools = find_tools(&script, &bench.settings, &bench.console(), &bench.stop).await?;
    Ok(tools.interpreter.unwrap())
}

#[tokio::test]
async fn the_version_that_is_asked_for_is_fetched_once() {
    let mut bench = bare_bench();
    offer_a_pretender(&mut bench, None).await;
    // With another patch version than the one that there is.
    for binary in ["python3.98.1", "python3.98"] {
        let python = found(&bench, binary).await.unwrap();
        assert_eq!(python.full_version(), "3.98.4", "{}", bench.said());
    }
    let said = bench.said();
    assert_eq!(
        said.matches("Fetching Python 3.98 with uv").count(),
        1,
        "{said}"
    );
    let note =
        "Note: the task asks for Python 3.98.1, which is not on this machine: using Python 3.98.4";
    assert!(said.contains(note), "{said}");
    assert!(!said.contains("instead"), "{said}");
}

#[tokio::test]
async fn what_cannot_be_fetched_is_stood_in_for_and_the_log_says_why() {
    for (variable, value, why) in [
        (
            "UV_PYTHON_DOWNLOADS",
            "never",
            "UV_PYTHON_DOWNLOADS is never",
        ),
        (
            "UV_PYTHON_DOWNLOADS",
            "manual",
            "UV_PYTHON_DOWNLOADS is manual",
        ),
        ("UV_OFFLINE", "1", "UV_OFFLINE is set"),
    ] {
        let mut bench = bare_bench();
        offer_a_pretender(&mut bench, None).await;
        bench
            .settings
            .environment
            .insert(variable.into(), value.into());
        let python = found(&bench, "python3.98").await.unwrap();
        assert!(python.version.1 < 98);
        let said = bench.said();
        let note = format!(
            "using Python {} ({}) instead.",
            python.full_version(),
            python.executable.display()
        );
        assert!(said.contains(&note), "{said}");
        let why = format!("uv can't get it: not fetched, because {why}.");
        assert!(said.contains(&why), "{said}");
    }
    let mut bench = bare_bench();
    offer_a_pretender(&mut bench, None).await;
    bench.settings.standalone = Some("/nowhere".into());
    assert!(found(&bench, "python3.98").await.unwrap().version.1 < 98);
    assert!(!bench.said().contains("Fetching"), "{}", bench.said());
    // No archive of it is known.
    bench.settings.standalone = None;
    assert!(found(&bench, "python3.97").await.unwrap().version.1 < 97);
    let said = bench.said();
    assert!(
        said.contains("uv can't get it: No download found"),
        "{said}"
    );
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_not_waited_for_twice() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    silent.set_nonblocking(true).unwrap();
    let asked = || std::iter::from_fn(|| silent.accept().ok()).count();
    let mut bench = bare_bench();
    let url = format!("http://{}/python.tar.gz", silent.local_addr().unwrap());
    offer_a_pretender(&mut bench, Some(&url)).await;
    let env = &mut bench.settings.environment;
    for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
        env.remove(name);
    }
    env.insert("UV_HTTP_TIMEOUT".into(), "1".into());
    env.insert("UV_HTTP_RETRIES".into(), "0".into());
    assert!(found(&bench, "python3.98").await.unwrap().version.1 < 98);
    let said = bench.said();
    assert!(
        said.contains("uv can't get it: Failed to install cpython-3.98.4"),
        "{said}"
    );
    assert!(asked() > 0, "{said}");
    assert!(found(&bench, "python3.98").await.unwrap().version.1 < 98);
    assert_eq!(asked(), 0, "{}", bench.said());
    assert!(
        bench.said().contains("fetching it failed 0 min ago"),
        "{}",
        bench.said()
    );
    // From another place it is another matter.
    offer_a_pretender(&mut bench, None).await;
    let moved = bench.dir.path().join("moved.json");
    std::fs::rename(bench.dir.path().join("pythons.json"), &moved).unwrap();
    let moved = moved.display().to_string();
    let env = &mut bench.settings.environment;
    env.insert(LIST.into(), moved);
    assert_eq!(
        found(&bench, "python3.98").await.unwrap().full_version(),
        "3.98.4"
    );
}

/// A Python of pyenv's that the system has not.
fn another_python() -> Option<(PathBuf, (u32, u32, u32))> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let root = root.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".pyenv")))?;
    std::fs::read_dir(root.join("versions"))
        .ok()?
        .flatten()
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let mut numbers = name.split('.').map(|part| part.parse::<u32>());
            let mut number = || numbers.next()?.ok();
            let version = (number()?, number()?, number()?);
            let of_system = std::env::split_paths(SYSTEM_PATH).any(|folder| {
                folder
                    .join(format!("python{}.{}", version.0, version.1))
                    .exists()
            });
            (version >= (3, 9, 0) && !of_system).then(|| (entry.path(), version))
        })
}

#[tokio::test]
async fn a_fetched_python_runs_tasks() {
    let Some((python, version)) = another_python() else {
        eprintln!("skipped: pyenv has no Python here that the system lacks");
        return;
    };
    let mut bench = bare_bench();
    // tar goes behind the link.
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&python, folder.path().join("python")).unwrap();
    offer(&mut bench, folder.path(), version, None);
    let asked = format!("python{}.{}", version.0, version.1);
    let done = bench.runs(&asked, json!({"pip": "six==1.16.0"})).await;
    let code = "import sys, six; print('%d.%d.%d' % sys.version_info[:3], sys.base_prefix)";
    let printed = done.python(code);
    let expected = format!("{}.{}.{} ", version.0, version.1, version.2);
    let folder = bench.dir.path().join("pythons");
    assert!(printed.starts_with(&expected), "{printed}");
    assert!(printed.contains(&*folder.to_string_lossy()), "{printed}");
    assert!(done.env.has_pip());
}
