//! Where packages and uv itself come from.

#![expect(clippy::unwrap_used, reason = "a failed expectation ends the test")]

#[path = "common/python.rs"]
mod bench;
#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/index.rs"]
mod index;

use bench::{Bench, path_without_uv};
use clearml_agent::python::Settings;
use clearml_agent::python::settings::Installer;
use index::PackageIndex;
use serde_json::{Value, json};
#[tokio::test]
async fn pip_stands_in_where_uv_cannot_be_had_and_its_errors_are_understood() {
    let mut bench = Bench::new();
    bench.settings.uv_program = None;
    bench.settings.cache = bench.dir.path().join("cache");
    // An index that has no uv.
    let index = PackageIndex::start(&[("ours-only", "1.2")], None).await;
    bench.settings.indexes.url = Some(clearml_agent::secret::Secret::new(index.url()));
    let env = &mut bench.settings.environment;
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
    assert!(said.contains("127.0.0.1"), "{said}");
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

const LOGIN: Option<(&str, &str)> = Some(("bob", "s3cr3t$pw"));

/// With `config` and these variables and no cache of downloads of other tests.
fn bench_with(config: &Value, variables: &[(&str, &str)]) -> Bench {
    let mut bench = Bench::new();
    let mut env = bench.settings.environment.clone();
    for (name, value) in variables {
        env.insert((*name).into(), (*value).into());
    }
    let uv = bench.settings.uv_program.clone();
    bench.settings = Settings::from_lookup(&|key| config.get(key).cloned(), &env).unwrap();
    bench.settings.venvs_cache = None;
    bench.settings.cache = bench.dir.path().join("clearml");
    bench.settings.uv_program = uv;
    bench
}

#[tokio::test]
async fn a_private_index_is_used_by_uv_and_pip_wherever_it_is_configured() {
    let index = PackageIndex::start(&[("ours-only", "1.2")], LOGIN).await;
    let none = json!({});
    let extra = json!({"agent.package_manager.extra_index_url": [index.url()]});
    let pip = json!({
        "agent.package_manager.extra_index_url": index.url(),
        "agent.package_manager.uv_replace_pip": false,
        "agent.package_manager.pip_version": "",
    });
    let file = tempfile::tempdir().unwrap();
    let file = file.path().join("pip.conf");
    std::fs::write(&file, format!("[global]\nindex-url = {}\n", index.url())).unwrap();
    let file = file.to_string_lossy();
    let url = index.url();
    type Case<'a> = (&'a Value, &'a [(&'a str, &'a str)], Installer);
    let cases: [Case<'_>; 6] = [
        (&extra, &[], Installer::Uv),
        (&pip, &[], Installer::Pip),
        (&none, &[("PIP_INDEX_URL", &url)], Installer::Uv),
        (&none, &[("PIP_EXTRA_INDEX_URL", &url)], Installer::Uv),
        (&none, &[("PIP_CONFIG_FILE", &file)], Installer::Uv),
        (&none, &[("UV_DEFAULT_INDEX", &url)], Installer::Uv),
    ];
    for (config, variables, installer) in cases {
        let bench = bench_with(config, variables);
        assert_eq!(bench.settings.installer, installer);
        let done = bench.runs("", json!({"pip": "ours-only==1.2"})).await;
        assert_eq!(
            done.python("import ours_only; print(ours_only.VERSION)"),
            "1.2"
        );
        assert_eq!(done.recorded()["pip"], json!(["ours-only==1.2"]));
        let words = format!("{:?} {}", done.installed, bench.said());
        assert!(!words.contains("s3cr3t"), "{words}");
    }
    // Named in the list itself.
    let bench = bench_with(&none, &[]);
    let list = format!("--extra-index-url {url}\nours-only");
    let done = bench.runs("", json!({ "pip": list })).await;
    assert_eq!(done.recorded()["pip"], json!(["ours-only==1.2"]));
    assert!(!bench.said().contains("s3cr3t"));
}

#[tokio::test]
async fn a_refused_login_names_the_index_and_shows_no_password() {
    let index = PackageIndex::start(&[("ours-only", "1.2")], LOGIN).await;
    let url = index.url().replace("s3cr3t$pw", "wr0ngpw");
    let bench = bench_with(&json!({}), &[("PIP_INDEX_URL", &url)]);
    let words = bench.fails(json!({"pip": "ours-only"})).await.to_string();
    assert!(words.contains("refuses these credentials"), "{words}");
    assert!(words.contains("http://bob:****@127.0.0.1"), "{words}");
    assert!(!words.contains("wr0ngpw"), "{words}");
}

#[tokio::test]
async fn the_best_version_of_all_indexes_is_taken() {
    let index = PackageIndex::start(&[("six", "1.9")], None).await;
    for (best, version) in [(true, "1.1"), (false, "1.9")] {
        let config = json!({
            "agent.package_manager.extra_index_url": index.url(),
            "agent.package_manager.uv_unsafe_best_match": best,
        });
        let bench = bench_with(&config, &[]);
        let done = bench.runs("", json!({"pip": "six<1.17"})).await;
        let found = done.recorded()["pip"][0].as_str().unwrap().to_owned();
        assert!(
            found.starts_with(&format!("six=={version}")),
            "{best}: {found}"
        );
    }
}

#[tokio::test]
async fn several_options_on_a_line_quotes_and_utf_16_are_read_as_pip_reads_them() {
    let mut bench = Bench::new();
    let first = PackageIndex::start(&[("ours-one", "1.2"), ("ours-one", "1.3")], None).await;
    let second = PackageIndex::start(&[("ours-two", "2.0")], None).await;
    let text = format!(
        "\u{feff}--index-url {} --extra-index-url=\"{}\" --find-links 'our wheels'\r\n\
         -c \"our limits.txt\"\r\nours-one\r\nours-two\r\nours-three # \u{e4}\r\n",
        first.url(),
        second.url()
    );
    let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    std::fs::write(bench.repository().join("requirements.txt"), text).unwrap();
    bench.file("our limits.txt", "ours-one<1.3\n");
    bench.file("our wheels/kept", "");
    let (name, bytes) = index::wheel("ours-three", "3.0");
    std::fs::write(bench.repository().join("our wheels").join(name), bytes).unwrap();
    for installer in [Installer::Uv, Installer::Pip] {
        bench.settings.installer = installer;
        let done = bench.runs("", json!({})).await;
        assert_eq!(
            done.recorded()["pip"],
            json!(["ours-one==1.2", "ours-three==3.0", "ours-two==2.0"]),
            "{installer:?}"
        );
        std::fs::remove_dir_all(bench.dir.path().join("venv")).unwrap();
    }
}

#[tokio::test]
async fn no_index_means_the_folders_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (name, bytes) = index::wheel("ours-only", "2.0");
    std::fs::write(folder.path().join(name), bytes).unwrap();
    let links = folder.path().to_string_lossy();
    let env = [("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", &*links)];
    let bench = bench_with(&json!({}), &env);
    let done = bench.runs("", json!({"pip": "ours-only"})).await;
    assert_eq!(done.recorded()["pip"], json!(["ours-only==2.0"]));
    let bench = bench_with(&json!({}), &env);
    let words = bench
        .fails(json!({"pip": "ours-only\nsix"}))
        .await
        .to_string();
    assert!(words.contains("no package index has six"), "{words}");
}

#[tokio::test]
async fn the_index_for_the_machines_cuda_is_asked_and_can_be_left_out() {
    let index = PackageIndex::start(&[("torch", "2.3.1+cu121")], None).await;
    let links = tempfile::tempdir().unwrap();
    let (name, bytes) = index::wheel("torch", "2.3.1");
    std::fs::write(links.path().join(name), bytes).unwrap();
    let empty = PackageIndex::start(&[("other", "1")], None).await;
    let (url, links) = (empty.url(), links.path().to_string_lossy());
    let env = [("PIP_INDEX_URL", &*url), ("PIP_FIND_LINKS", &*links)];
    for (cuda, resolve, version, asked) in [
        ("12.2", "", "2.3.1+cu121", true),
        ("12.2", "none", "2.3.1", false),
        ("0", "", "2.3.1", false),
        // Nothing from 12.0 down.
        ("12.0", "", "2.3.1", true),
    ] {
        let before = index.asked().len();
        let bench = bench_with(
            &json!({
                "agent.cuda_version": cuda,
                "agent.package_manager.pytorch_resolve": resolve,
                "agent.package_manager.extra_index_url_template": index.cuda_template(),
            }),
            &env,
        );
        let done = bench.runs("", json!({"pip": "torch==2.3.1"})).await;
        let line = format!("torch=={version}");
        assert_eq!(
            done.recorded()["pip"],
            json!([line]),
            "{cuda} {}",
            bench.said()
        );
        assert_eq!(index.asked().len() > before, asked, "{cuda} {resolve}");
        assert_eq!(
            bench.said().contains("pytorch_resolve: none"),
            version.contains("cu")
        );
    }
}

#[tokio::test]
async fn a_private_repository_gets_the_agents_credentials_and_shows_none() {
    let repository = git_http::TestRepo::new();
    let setup =
        "from setuptools import setup\nsetup(name='hidden', version='0.1', py_modules=[])\n";
    repository.write("setup.py", setup);
    let commit = repository.commit("one");
    let login = Some(("dev", "g1t $'\"s3cr3t"));
    let server = git_http::GitServer::start(repository.served_root(), login);
    let path = "up/.git";
    let own = clearml_agent::source::GitCredentials {
        user: Some("dev".into()),
        password: Some(clearml_agent::secret::Secret::new("g1t $'\"s3cr3t")),
        host: Some(format!("127.0.0.1:{}", server.port())),
        ..Default::default()
    };
    let in_address = server.url_with("dev:g1t%20%24%27%22s3cr3t", path);
    for (url, credentials) in [(server.url(path), Some(own)), (in_address, None)] {
        for uv_replace_pip in [true, false] {
            let mut bench = bench_with(
                &json!({"agent.package_manager.uv_replace_pip": uv_replace_pip}),
                &[],
            );
            bench.settings.git.credentials = credentials.clone().unwrap_or_default();
            let list = format!("hidden @ git+{url}@main");
            let done = bench.runs("", json!({ "pip": list })).await;
            let plain = format!("hidden @ git+{}@{commit}", server.url(path));
            assert_eq!(done.recorded()["pip"], json!([plain]));
            let words = format!("{:?} {}", done.installed.summary, bench.said());
            assert!(!words.contains("s3cr3t"), "{words}");
        }
    }
    assert!(server.requests().iter().any(|r| r.login.is_some()));
}
