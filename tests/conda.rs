//! `agent.package_manager.type: conda`, with a stand-in for conda itself: how it is called, what becomes
//! of its environments, what is left for pip, and what is said when it fails.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
mod common;
#[path = "common/conda.rs"]
mod stand_in;

use std::path::Path;
use std::process::Command;

use bench::Bench;
use clearml_agent::python::PythonError;
use clearml_agent::python::cache::settings::CacheSettings;
use clearml_agent::python::choice::choose;
use clearml_agent::python::settings::Manager;
use clearml_agent::python::tools::Kind;
use common::World;
use serde_json::{Value, json};
use stand_in::{CondaStandIn, python_version};

/// A run's Python side with this conda.
fn bench_with(conda: &CondaStandIn) -> Bench {
    let mut bench = Bench::new();
    bench.settings.manager = Manager::Conda;
    let env = &mut bench.settings.environment;
    for name in ["CONDA_EXE", "MAMBA_EXE", "CONDA_PREFIX"] {
        env.remove(name);
    }
    env.extend([conda.variable()]);
    bench
}

#[tokio::test]
async fn conda_gets_what_it_has_and_pip_the_rest() {
    for name in ["conda", "micromamba"] {
        let conda = CondaStandIn::new(name, json!({"six": "1.16.0", "zlib": "1.3"}));
        let mut bench = bench_with(&conda);
        bench.settings.conda.channels = vec![
            "https://h/t/tk-secret-token/ours".into(),
            "conda-forge".into(),
        ];
        bench.settings.conda.full_env_update = true;
        let list = "six==1.16.0\ntabulate==0.9.0\nclearml-no-such-package ; python_version < '3'\n";
        let done = bench
            .runs(&format!("python{}", python_version()), json!({"pip": list}))
            .await;

        // One environment, which is this run's own.
        let prefix = bench.dir.path().join("venv");
        assert_eq!(
            done.python("import sys; print(sys.prefix)"),
            prefix.to_string_lossy()
        );
        assert_eq!(done.env.kind, Kind::Own);
        assert_eq!(
            done.python(
                "import six, tabulate; print(six.BY, six.__version__, tabulate.__version__)"
            ),
            "conda 1.16.0 0.9.0"
        );
        assert_eq!(conda.asked_for().last().unwrap(), "six~=1.16.0");
        let calls = conda.calls();
        let words = |call: &Value| {
            let words = call["args"].as_array().unwrap().iter();
            words
                .filter_map(Value::as_str)
                .collect::<Vec<_>>()
                .join(" ")
        };
        let place = prefix.display();
        let version = python_version();
        let all: Vec<String> = calls.iter().map(words).collect();
        let (made, filled) = match name {
            "conda" => (
                format!("create --yes --quiet --prefix {place} python={version} pip"),
                format!("env update --quiet --prefix {place} --file "),
            ),
            _ => (
                format!("create --yes --quiet --prefix {place} --file "),
                format!("install --yes --quiet --prefix {place} --file "),
            ),
        };
        assert!(all[0].starts_with(&made), "{all:?}");
        assert!(
            all[1].starts_with(&filled) && all[2].starts_with(&filled),
            "{all:?}"
        );
        // Channels come by the file, which nobody else can read, and by the environment.
        assert_eq!(calls[1]["mode"], "0o600");
        assert_eq!(
            calls[1]["file"]["channels"],
            json!(bench.settings.conda.channels)
        );
        assert_eq!(
            calls[0]["channels"],
            "https://h/t/tk-secret-token/ours,conda-forge"
        );
        assert_eq!(calls[0]["prefix"], Value::Null);
        let said = bench.said();
        assert!(!said.contains("tk-secret-token"), "{said}");
        assert!(!all.join(" ").contains("tk-secret-token"), "{all:?}");
        assert!(
            said.contains(&format!("Note: {name} can't have tabulate: trying without")),
            "{said}"
        );

        // What is recorded is read back as the same.
        let recorded = done.recorded();
        assert_eq!(recorded["org_pip"], list);
        let conda_list = recorded["conda"].as_array().unwrap();
        assert!(conda_list.contains(&json!("six==1.16.0")), "{recorded}");
        let pip: Vec<&str> = recorded["pip"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let text = pip.join("\n");
        assert!(text.starts_with("# Conda Packages\n\n"), "{text}");
        assert!(
            text.ends_with("\n\n# pip Packages\n\ntabulate==0.9.0"),
            "{text}"
        );
        let exported: Value =
            serde_json::from_str(recorded["conda_env_json"].as_str().unwrap()).unwrap();
        assert_eq!(exported, json!({"dependencies": ["python=3"]}));

        let conda = CondaStandIn::new(name, json!({"six": "1.16.0"}));
        let mut again = bench_with(&conda);
        again.settings.conda.channels = vec!["conda-forge".into()];
        let mut lists = recorded;
        lists["conda_env_json"] = json!("no json");
        let done = again.runs("", lists).await;
        assert_eq!(conda.asked_for(), ["six~=1.16.0"]);
        assert_eq!(
            done.python("import six, tabulate; print(six.BY, tabulate.__version__)"),
            "conda 0.9.0"
        );
        // Nothing is recorded unless the configuration says so.
        assert!(done.installed.requirements_to_record.is_none());
        assert!(
            done.installed
                .summary
                .contains(&"tabulate==0.9.0".to_owned())
        );
    }
}

#[tokio::test]
async fn what_conda_found_is_not_searched_for_again() {
    let home = tempfile::tempdir().unwrap();
    let conda = CondaStandIn::new("conda", json!({"six": "1.16.0", "zlib": "1.3"}));
    let run = async || {
        let mut bench = bench_with(&conda);
        bench.settings.cache = home.path().to_owned();
        bench.settings.venvs_cache = Some(CacheSettings::at(home.path().join("venvs")));
        let done = bench
            .runs("", json!({"pip": "six==1.16.0\ntabulate==0.9.0"}))
            .await;
        let code = "import sys, six, tabulate; print(six.BY, six.__version__, sys.prefix)";
        let prefix = bench.dir.path().join("venv");
        assert_eq!(
            done.python(code),
            format!("conda 1.16.0 {}", prefix.display())
        );
        bench.said()
    };
    let searches = || conda.asked_for().len();
    let said = run().await;
    assert_eq!(searches(), 2, "{said}");
    let said = run().await;
    assert_eq!(searches(), 2, "{said}");
    assert!(
        said.contains("Packages: by conda: the 3 that it found 0 min ago"),
        "{said}"
    );
    let calls = conda.calls();
    let explicit: Vec<&Value> = calls
        .iter()
        .filter_map(|call| call.get("explicit"))
        .collect();
    assert_eq!(explicit.len(), 2, "{calls:?}");
    let lines = explicit[1].as_array().unwrap();
    assert!(lines.contains(&json!("https://h/conda-forge/six-1.16.0-0.conda#c0ffee")));

    // A package that is no longer there: conda searches anew.
    std::fs::write(conda.root().join("channel.json"), r#"{"zlib": "1.3"}"#).unwrap();
    let mut bench = bench_with(&conda);
    bench.settings.cache = home.path().to_owned();
    bench.settings.venvs_cache = Some(CacheSettings::at(home.path().join("venvs")));
    let done = bench
        .runs("", json!({"pip": "six==1.16.0\ntabulate==0.9.0"}))
        .await;
    assert_eq!(
        done.python("import six; print(hasattr(six, 'BY'))"),
        "False"
    );
    assert!(
        bench.said().contains("it searches anew"),
        "{}",
        bench.said()
    );
    assert_eq!(searches(), 3);
}

#[tokio::test]
async fn an_exported_environment_is_restored_or_gives_way_to_the_lists() {
    let exported = json!({"dependencies": ["six=1.16.0=py_0", {"pip": ["tabulate==0.9.0"]}]});
    for (has, asked, noted) in [
        (json!({"six": "1.16.0"}), vec!["six=1.16.0=py_0"], false),
        (json!({}), vec!["six=1.16.0=py_0"], true),
    ] {
        let conda = CondaStandIn::new("conda", has);
        let bench = bench_with(&conda);
        let lists =
            json!({"pip": "tabulate==0.9.0", "conda": "", "conda_env_json": exported.to_string()});
        let done = bench.runs("", lists).await;
        assert_eq!(conda.asked_for(), asked);
        assert_eq!(
            done.python("import tabulate; print(tabulate.__version__)"),
            "0.9.0"
        );
        let said = bench.said();
        assert_eq!(
            said.contains("conda_env_json can't be installed here"),
            noted,
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_failure_is_told_in_condas_own_words_and_with_what_to_do() {
    let conda = CondaStandIn::new("conda", json!({"six": "1.16.0"}));
    for (channel, binary, list, told) in [
        (
            "https://u:pw@h/down",
            "",
            json!({"pip": "six"}),
            &[
                "conda could not make the environment: a download failed",
                "    CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://u:****@h/down/",
                "Check the channels (agent.package_manager.conda_channels",
            ][..],
        ),
        ("terms", "", json!({"pip": "six"}), &["conda tos accept"]),
        (
            "strict",
            "",
            json!({"pip": "six"}),
            &["exclude each other", "package a requires b"],
        ),
        (
            "conda-forge",
            "python3.99",
            json!({"pip": "six"}),
            &[
                "no channel has python",
                "PackagesNotFoundError",
                "conda_channels",
            ],
        ),
    ] {
        let mut bench = bench_with(&conda);
        bench.settings.conda.channels = vec![channel.into()];
        let error = bench.run(binary, list).await.unwrap_err().to_string();
        for words in told {
            assert!(error.contains(words), "{words}\n---\n{error}");
        }
        assert!(!error.contains("pw@"), "{error}");
        assert!(!bench.said().contains("pw@"), "{}", bench.said());
    }

    // None is there at all.
    let mut bench = bench_with(&conda);
    let nowhere = Path::new("/nowhere");
    bench.settings.home = Some(nowhere.into());
    let env = &mut bench.settings.environment;
    env.insert("CONDA_EXE".into(), "/nowhere/bin/conda".into());
    env.insert("PATH".into(), "/nowhere".into());
    match bench.run("", json!({"pip": "six"})).await {
        Err(PythonError::NoConda(_)) => {}
        other => assert!(Path::new("/opt/conda").exists(), "{other:?}"),
    }
}

#[tokio::test]
async fn a_stop_ends_conda_and_what_it_started() {
    let conda = CondaStandIn::new("conda", json!({"hang": "1"}));
    let bench = bench_with(&conda);
    let held = conda.root().join("held");
    let made = Command::new("mkfifo").arg(&held).status();
    assert!(made.unwrap().success());
    let stop = bench.stop.clone();
    // It ends when the last process that has it open for writing has ended.
    let ended = tokio::task::spawn_blocking(move || {
        let mut held = std::fs::File::open(held).unwrap();
        let mut said = [0; 3];
        std::io::Read::read_exact(&mut held, &mut said).unwrap();
        stop.cancel();
        std::io::Read::read_to_end(&mut held, &mut Vec::new()).unwrap()
    });
    let error = bench.run("", json!({"conda": "hang"})).await.unwrap_err();
    assert_eq!(error, PythonError::Stopped);
    assert_eq!(ended.await.unwrap(), 0);
}

#[tokio::test]
async fn environments_that_are_there_already() {
    let conda = CondaStandIn::new("conda", json!({"six": "1.16.0"}));
    let list = json!({"pip": "six==1.16.0\ntabulate==0.9.0"});
    let code = "import sys; print(sys.prefix)";

    // The base environment, changed.
    conda.environment(conda.root());
    let mut bench = bench_with(&conda);
    bench.settings.conda.use_base_env = true;
    let done = bench.runs("", list.clone()).await;
    assert_eq!(done.python(code), conda.root().to_string_lossy());
    assert_eq!(done.python("import six, tabulate; print(six.BY)"), "conda");
    assert!(
        bench
            .said()
            .contains("Environment: the base environment of conda")
    );

    // A folder, as it is.
    let folder = tempfile::tempdir().unwrap();
    let made = folder.path().join("made");
    conda.environment(&made);
    let mut bench = bench_with(&conda);
    bench.settings.conda.as_base_docker = true;
    bench.settings.conda.package = Some(made.clone());
    let done = bench.runs("", list.clone()).await;
    assert_eq!(done.env.kind, Kind::AsItIs);
    assert_eq!(done.python(code), made.to_string_lossy());
    let there = "import importlib.util; print(importlib.util.find_spec('tabulate'))";
    assert_eq!(done.python(there), "None");

    // An archive, as this run's own.
    let unpack = "import sys\nopen(sys.prefix + '/unpacked', 'w').write(sys.argv[0])\n";
    std::fs::write(made.join("bin/conda-unpack"), unpack).unwrap();
    let archive = folder.path().join("made.tar.gz");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&made)
        .arg("-czf")
        .arg(&archive)
        .arg(".")
        .status();
    assert!(packed.unwrap().success());
    let mut bench = bench_with(&conda);
    bench.settings.conda.as_base_docker = true;
    bench.settings.conda.package = Some(archive);
    let done = bench.runs("", list).await;
    let prefix = bench.dir.path().join("venv");
    assert_eq!(done.python(code), prefix.to_string_lossy());
    assert!(prefix.join("unpacked").is_file());
    assert_eq!(done.python("import six, tabulate; print(six.BY)"), "conda");

    // What is named is not there.
    let mut bench = bench_with(&conda);
    bench.settings.conda.as_base_docker = true;
    for (package, told) in [
        (
            None,
            "neither CLEARML_CONDA_ENV_PACKAGE nor the task's container image names one",
        ),
        (
            Some("/nowhere/env".into()),
            "it is no folder and no file on this machine",
        ),
    ] {
        bench.settings.conda.package = package;
        let error = bench.fails(json!({"pip": "six"})).await.to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn pythons_of_condas_environments_are_found_last() {
    let conda = CondaStandIn::new("conda", json!({}));
    let home = tempfile::tempdir().unwrap();
    // One in the usual place, one that conda has written down.
    let (usual, elsewhere) = (
        home.path().join("miniforge3/envs/one"),
        home.path().join("two"),
    );
    for (prefix, version) in [(&usual, "3.97.1"), (&elsewhere, "3.98.2")] {
        conda.environment(prefix);
        let minor = version.rsplit_once('.').unwrap().0;
        let real = prefix.join("bin/python").canonicalize().unwrap();
        // It only says that it is of another version.
        let script = format!(
            "#!/bin/sh\n'{}' \"$@\" | sed 's/^3\\.[0-9]*\\.[0-9]*$/{version}/'\n",
            real.display()
        );
        let program = prefix.join(format!("bin/python{minor}"));
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        for entry in std::fs::read_dir(prefix.join("conda-meta"))
            .unwrap()
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with("python-") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
        std::fs::write(
            prefix.join(format!("conda-meta/python-{version}-h1_0.json")),
            "{}",
        )
        .unwrap();
    }
    std::fs::create_dir(home.path().join(".conda")).unwrap();
    let known = format!("{}\n", elsewhere.display());
    std::fs::write(home.path().join(".conda/environments.txt"), known).unwrap();
    let mut bench = Bench::new();
    bench.settings.home = Some(home.path().to_owned());
    for (asked, found) in [("python3.97", "3.97.1"), ("python3.98", "3.98.2")] {
        let (python, note) = choose(asked, &bench.settings).await.unwrap();
        assert_eq!((python.full_version().as_str(), note), (found, None));
    }
}

#[test]
fn the_script_runs_in_an_activated_environment() {
    let conda = CondaStandIn::new("conda", json!({"six": "1.16.0"}));
    let mut world = World::new();
    world.env.extend([conda.variable()]);
    world.env.insert("CONDA_PREFIX".into(), "/elsewhere".into());
    world.configure("agent.package_manager.type: conda");
    let id = world.api.create(
        "conda",
        json!({
            "entry_point": "main.py", "working_dir": ".", "binary": "python3",
            "requirements": {"pip": "six", "conda": "six==1.16.0"},
            "diff": "import os, sys, six\nfrom os import environ as e\n\
                     p = e['CONDA_PREFIX']\n\
                     print('in it:', sys.prefix == p == e['CONDA_DEFAULT_ENV'], six.BY)\n\
                     print('path:', e['PATH'].split(':')[0] == p + '/bin')\n\
                     print('data:', e['STAND_IN_DATA'] == p + '/share', e['CONDA_EXE'])\n",
        }),
    );
    world
        .execute(&id, &[])
        .exits(0)
        .prints("in it: True conda")
        .prints("path: True")
        .prints(&format!("data: True {}", conda.program.display()));
    // As the Python agent: what was installed is not recorded.
    let requirements = world.api.task(&id)["script"]["requirements"].clone();
    assert_eq!(requirements, json!({"pip": "six", "conda": "six==1.16.0"}));
}
