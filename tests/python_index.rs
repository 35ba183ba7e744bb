//! Where packages and uv itself come from.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;

use bench::{Bench, path_without_uv};
use clearml_agent::python::Settings;
use serde_json::json;
#[tokio::test]
async fn pip_stands_in_where_uv_cannot_be_had_and_its_errors_are_understood() {
    let mut bench = Bench::new();
    bench.settings.uv_program = None;
    bench.settings.cache = bench.dir.path().join("cache");
    // uv's own index is dead, and pip knows nothing of it.
    let env = &mut bench.settings.environment;
    env.insert("UV_INDEX_URL".into(), "http://127.0.0.1:9/simple".into());
    let path = path_without_uv(env);
    env.insert("PATH".into(), path);
    let words = bench
        .fails(json!({"pip": "no-such-package-for-clearml-agent-tests"}))
        .await
        .to_string();
    assert!(
        words.contains("no package index has no-such-package-for-clearml-agent-tests"),
        "{words}"
    );
    let said = bench.said();
    assert!(
        said.contains("Installing with pip, not uv: uv could not be fetched"),
        "{said}"
    );
    assert!(said.contains("127.0.0.1:9"), "{said}");
}

#[tokio::test]
async fn an_extra_index_that_does_not_answer_is_passed_over() {
    let mut bench = Bench::new();
    // Its attempts are not what is tested.
    for (name, value) in [("UV_HTTP_RETRIES", "0"), ("PIP_RETRIES", "0")] {
        bench.settings.environment.insert(name.into(), value.into());
    }
    let list = "--extra-index-url http://127.0.0.1:9/simple\nsix==1.16.0\n";
    let done = bench.runs("", json!({ "pip": list })).await;
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
    let said = bench.said();
    assert!(said.contains("installing with pip"), "{said}");
}

#[tokio::test]
async fn uv_is_fetched_once_from_the_index() {
    let mut bench = Bench::new();
    bench.settings.uv_program = None;
    bench.settings.cache = bench.dir.path().join("cache");
    let path = path_without_uv(&bench.settings.environment);
    bench.settings.environment.insert("PATH".into(), path);
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.python("import six; print(six.__version__)"), "1.16.0");
    assert_eq!(
        bench.said().matches("Fetching uv ").count(),
        1,
        "{}",
        bench.said()
    );
    // Nothing half-done is left, and the next run finds it.
    let kept: Vec<String> = std::fs::read_dir(bench.dir.path().join("cache/uv"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != ".lock")
        .collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    std::fs::remove_dir_all(bench.dir.path().join("venv")).unwrap();
    let done = bench.runs("", json!({"pip": "six==1.16.0"})).await;
    assert_eq!(done.recorded()["pip"], json!(["six==1.16.0"]));
    assert_eq!(
        bench.said().matches("Fetching uv ").count(),
        1,
        "{}",
        bench.said()
    );
}

#[tokio::test]
async fn index_passwords_are_in_no_line_and_in_no_argument() {
    let mut bench = Bench::new();
    let config = json!({
        "agent.package_manager.extra_index_url": "http://bob:s3cr3tpw@127.0.0.1:9/simple",
    });
    let mut env = bench.settings.environment.clone();
    env.insert("UV_HTTP_TIMEOUT".into(), "2".into());
    env.insert("UV_HTTP_RETRIES".into(), "0".into());
    let cache = bench.settings.cache.clone();
    let uv = bench.settings.uv_program.clone();
    bench.settings = Settings::from_lookup(&|key| config.get(key).cloned(), &env).unwrap();
    bench.settings.cache = cache;
    bench.settings.uv_program = uv;
    // uv fails on the dead index, pip passes over it: both name it.
    let done = bench.runs("", json!({"pip": "six"})).await;
    let words = format!("{:?} {}", done.installed, bench.said());
    assert!(words.contains("127.0.0.1:9"), "{words}");
    assert!(!words.contains("s3cr3tpw"), "{words}");
}
