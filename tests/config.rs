//! `clearml.conf` as users have it, and what the ClearML SDK makes of what the agent hands on.

// What the tests share is outside of test functions, where clippy would have no unwrap.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use clearml_agent::api::Credentials;
use clearml_agent::config::{self, Config, ConfigError, Lookup, Variables, hocon};
use serde_json::{Value, json};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name)
}

fn vars(pairs: &[(&str, &str)]) -> Variables {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn load(file: Option<&Path>, env: &[(&str, &str)], home: &Path) -> Result<Config, ConfigError> {
    config::load(&Lookup {
        config_file: file,
        env: &vars(env),
        home: Some(home),
    })
}

/// A Python with the ClearML SDK: the one named by `CLEARML_TEST_PYTHON`, or one made once for all
/// test runs.
fn sdk_python() -> PathBuf {
    if let Some(python) = std::env::var_os("CLEARML_TEST_PYTHON") {
        return python.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let lock = std::fs::File::create(folder.join("config-sdk.lock")).unwrap();
    lock.lock().unwrap();
    let venv = folder.join("config-sdk");
    let python = venv.join("bin/python");
    let ready = venv.join("ready");
    if !ready.exists() {
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "clearml"]));
        std::fs::write(ready, "").unwrap();
    }
    python
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    stdout
}

/// The last line that `script` prints, as JSON. The environment is that of the test without any
/// ClearML setting, and `env`.
fn sdk_says(script: &str, args: &[&Path], env: &[(&str, &str)]) -> Value {
    let mut command = Command::new(sdk_python());
    for (name, _) in std::env::vars() {
        if name.starts_with("CLEARML") || name.starts_with("TRAINS") {
            command.env_remove(name);
        }
    }
    let out = run(command
        .args(["-c", script])
        .args(args)
        .envs(env.iter().copied()));
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

#[test]
fn a_file_of_real_size_means_what_the_reference_reads_in_it() {
    let object = hocon::parse_file(&data("clearml.conf"), &BTreeMap::new()).unwrap();
    let recorded: Value =
        serde_json::from_str(&std::fs::read_to_string(data("clearml.json")).unwrap()).unwrap();
    assert_eq!(object.to_json(), recorded);
}

#[test]
fn a_file_of_real_size_is_used() {
    let home = tempfile::tempdir().unwrap();
    let config = load(Some(&data("clearml.conf")), &[], home.path()).unwrap();
    assert_eq!(config.file(), Some(data("clearml.conf").as_path()));
    assert_eq!(
        config.path("agent.venvs_cache.path"),
        Some(home.path().join(".clearml/venvs-cache"))
    );
    assert_eq!(
        config
            .list("agent.package_manager.pip_version")
            .unwrap()
            .len(),
        3
    );
    assert_eq!(
        config
            .number("agent.venvs_cache.free_space_threshold_gb")
            .unwrap(),
        Some(2.0)
    );
    assert_eq!(config.text("agent.git_pass").as_deref(), Some("p#ss, word"));
    assert_eq!(
        *config.job_variables(),
        vars(&[
            ("GREETING", "hello, world"),
            ("WORKERS", "4"),
            ("HTTP_PROXY", "http://proxy.example:3128")
        ])
    );
    let endpoint = config.endpoint("w").unwrap();
    assert_eq!(endpoint.api_server.as_str(), "http://clearml.example:8008/");
    match endpoint.credentials {
        Credentials::KeyPair { secret_key, .. } => assert_eq!(secret_key.expose(), "s3cr#t!key=="),
        Credentials::Token(_) => panic!("there is no token"),
    }
}

/// The configuration files in the SDK's own package (and the Python agent's, if it is there), read by its parser and by ours.
#[test]
fn the_sdk_files_mean_what_the_sdk_reads_in_them() {
    let said = sdk_says(
        r#"
import glob, json, os, sys, clearml
from clearml.utilities.pyhocon import ConfigFactory
packages = os.path.dirname(os.path.dirname(clearml.__file__))
files = glob.glob(packages + "/clearml*/**/*.conf", recursive=True) + sys.argv[1:]
print(json.dumps({f: ConfigFactory.parse_file(f).as_plain_ordered_dict() for f in files}, default=lambda null: None))
"#,
        &[&data("clearml.conf")],
        &[],
    );
    let files = said.as_object().unwrap();
    assert!(files.len() >= 4, "{:?}", files.keys());
    for (file, expected) in files {
        let object = hocon::parse_file(Path::new(file), &BTreeMap::new()).unwrap();
        assert_eq!(object.to_json(), *expected, "{file}");
    }
}

#[test]
fn the_sdk_finds_server_and_credentials_in_the_job_file() {
    let home = tempfile::tempdir().unwrap();
    let env = [
        ("CLEARML_API_HOST", "http://127.0.0.1:8008/"),
        ("CLEARML_API_ACCESS_KEY", "E0KEY"),
        ("CLEARML_API_HOST_VERIFY_CERT", "no"),
        ("CLEARML_AGENT_GIT_PASS", "hidden"),
        (
            "CLEARML_AGENT__SDK__DEVELOPMENT__DEFAULT_OUTPUT_URI",
            r#""s3://b/ü \"x\"\\""#,
        ),
    ];
    let config = load(Some(&data("clearml.conf")), &env, home.path()).unwrap();
    let file = home.path().join("job.conf");
    std::fs::write(&file, config.for_job()).unwrap();

    let said = sdk_says(
        r#"
import json
from clearml.backend_api import Session
from clearml.backend_api.config import load
config = load()
print(json.dumps({
    "host": Session.get_api_server_host(config=config),
    "web": Session.get_app_server_host(config=config),
    "files": Session.get_files_server_host(config=config),
    "verify": config.get("api.verify_certificate"),
    "access_key": config.get("api.credentials.access_key"),
    "secret_key": config.get("api.credentials.secret_key"),
    "uri": config.get("sdk.development.default_output_uri"),
    "everything": config.to_dict(),
}, default=lambda null: None))
"#,
        &[],
        &[("CLEARML_CONFIG_FILE", file.to_str().unwrap())],
    );
    for (key, value) in [
        ("host", json!("http://127.0.0.1:8008")),
        ("web", json!("http://clearml.example:8080")),
        ("files", json!("http://clearml.example:8081")),
        ("verify", json!(false)),
        ("access_key", json!("E0KEY")),
        ("secret_key", json!("s3cr#t!key==")),
        ("uri", json!("s3://b/ü \"x\"\\")),
    ] {
        assert_eq!(said[key], value, "{key}");
    }
    // The SDK lays the file over its own defaults; nothing of the file is changed by that.
    let written: Value = serde_json::from_str(&config.for_job()).unwrap();
    assert_within(&written, &said["everything"], "");
    for secret in ["p#ss, word", "hidden", "\"p2\""] {
        assert!(!config.for_job().contains(secret), "{secret}");
    }
}

fn assert_within(part: &Value, whole: &Value, key: &str) {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                assert_within(value, &whole[name.as_str()], &format!("{key}.{name}"));
            }
        }
        part => assert_eq!(part, whole, "{key}"),
    }
}

#[test]
fn the_file_is_looked_for_in_order() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let source = |config: &Config| config.text("source").unwrap_or_default();
    assert_eq!(load(None, &[], home.path()).unwrap().file(), None);

    write("trains.conf", "source: trains, old: 1");
    let config = load(None, &[], home.path()).unwrap();
    assert_eq!(source(&config), "trains");
    write("clearml.conf", "source: clearml");
    let config = load(None, &[], home.path()).unwrap();
    assert_eq!(
        (source(&config), config.text("old")),
        ("clearml".into(), Some("1".into()))
    );

    write("t.conf", "source: trains variable");
    let trains = ("TRAINS_CONFIG_FILE", "~/t.conf");
    assert_eq!(
        source(&load(None, &[trains], home.path()).unwrap()),
        "trains variable"
    );
    write("c.conf", "source: variable");
    let clearml = ("CLEARML_CONFIG_FILE", "~/c.conf");
    let config = load(None, &[trains, clearml], home.path()).unwrap();
    assert_eq!(
        (source(&config), config.text("old")),
        ("variable".into(), None)
    );
    let flag = write("f.conf", "source: flag");
    let config = load(Some(&flag), &[trains, clearml], home.path()).unwrap();
    assert_eq!(source(&config), "flag");
    assert_eq!(config.file(), Some(flag.as_path()));
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("clearml.conf"), "").unwrap();
    for (flag, env, named_by) in [
        (Some(Path::new("/none/x.conf")), vec![], "--config-file"),
        (
            None,
            vec![("CLEARML_CONFIG_FILE", "/none/x.conf")],
            "CLEARML_CONFIG_FILE",
        ),
        (
            None,
            vec![("TRAINS_CONFIG_FILE", "/none/x.conf")],
            "TRAINS_CONFIG_FILE",
        ),
    ] {
        let error = load(flag, &env, home.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "configuration file /none/x.conf does not exist (named by {named_by})\n\
                 Correct {named_by}, or leave it out to use ~/clearml.conf."
            )
        );
    }
}

#[test]
fn a_broken_file_is_shown_where_it_breaks() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("clearml.conf");
    std::fs::write(&file, "api {\n  web_server: x\n  api_server = a@b\n}\n").unwrap();
    let error = load(None, &[], home.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "configuration file not understood: {}, line 3, column 17: found `@`, \
             expected the end of the value (text with `@` in it needs double quotes)\n  \
             3 |   api_server = a@b\n    |                 ^",
            file.display()
        )
    );
}
