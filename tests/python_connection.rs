//! How a package index is reached: through proxies, with certificates of a company's own; by uv, by pip
//! and by the agent itself.
#![allow(clippy::unwrap_used)]

#[path = "common/python.rs"]
mod bench;
mod common;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "common/docker.rs"]
mod docker;
#[allow(dead_code, reason = "each test file uses its part")]
#[path = "common/in_container.rs"]
mod in_container;
#[path = "common/index.rs"]
mod index;
#[path = "common/tls.rs"]
mod tls;

use std::path::{Path, PathBuf};

use bench::{Bench, path_without_uv, shared_cache};
use clearml_agent::python::{Settings, Variables, uv};
use common::{World, script};
use futures_util::StreamExt as _;
use index::{Package, PackageIndex, Shelf};
use serde_json::json;
use tls::{Authority, Proxy, TlsIndex};

fn shelf() -> Shelf {
    Shelf::new(&[Package::new("ours-only", "1.2")])
}

/// The variables that speak of the connection in the environment of the tests.
fn without_own(env: &Variables) -> Variables {
    let of_connection = |name: &str| {
        let upper = name.to_uppercase();
        upper.ends_with("_PROXY")
            || upper.starts_with("PIP_")
            || upper.starts_with("UV_")
            || upper.starts_with("SSL_")
            || upper.ends_with("_CA_BUNDLE")
    };
    let kept = env.iter().filter(|(name, _)| !of_connection(name));
    kept.map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// An agent with these variables, a `pip.conf` with this text, and no other setting of the machine.
fn bench_with(with_pip: bool, variables: &[(&str, &str)], pip_conf: &str) -> Bench {
    let mut bench = Bench::new();
    // Without one, not the machine's either.
    let mut file = PathBuf::from("/dev/null");
    if !pip_conf.is_empty() {
        file = bench.dir.path().join("pip.conf");
        std::fs::write(&file, format!("[global]\n{pip_conf}\n")).unwrap();
    }
    let mut env = without_own(&bench.settings.environment);
    let home = bench.dir.path().to_string_lossy().into_owned();
    env.insert("UV_CACHE_DIR".into(), format!("{home}/uv-cache"));
    env.insert("HOME".into(), home);
    env.insert("PIP_CONFIG_FILE".into(), file.to_string_lossy().into());
    // What fails is not tried again.
    env.insert("PIP_RETRIES".into(), "0".into());
    env.insert("UV_HTTP_RETRIES".into(), "0".into());
    for (name, value) in variables {
        env.insert((*name).into(), (*value).into());
    }
    let config = json!({
        "agent.package_manager.uv_replace_pip": !with_pip, "agent.package_manager.pip_version": "",
    });
    let uv = bench.settings.uv_program.clone();
    bench.settings = Settings::from_lookup(&|key| config.get(key).cloned(), &env).unwrap();
    bench.settings.cache = shared_cache();
    bench.settings.uv_program = uv;
    bench
}

/// One way to say how the index is reached, for uv and for pip.
#[derive(Clone)]
struct Way {
    variables: Vec<(&'static str, String)>,
    pip_conf: String,
}

fn way(variables: &[(&'static str, &str)], pip_conf: &str) -> Way {
    let owned = |(name, value): &(&'static str, &str)| (*name, (*value).to_owned());
    Way {
        variables: variables.iter().map(owned).collect(),
        pip_conf: pip_conf.into(),
    }
}

/// Installs by each way, with uv and with pip; every one of them must lead there.
async fn all_lead_there(index: &str, ways: Vec<Way>) {
    let runs = ways
        .into_iter()
        .flat_map(|way| [(way.clone(), false), (way, true)]);
    let failures: Vec<String> = futures_util::stream::iter(runs)
        .map(|(way, with_pip)| async move {
            let mut variables = vec![("PIP_INDEX_URL", index)];
            variables.extend(way.variables.iter().map(|(n, v)| (*n, v.as_str())));
            let bench = bench_with(with_pip, &variables, &way.pip_conf);
            let done = bench.run("", json!({"pip": "ours-only==1.2"})).await;
            let tool = if with_pip { "pip" } else { "uv" };
            let by_tool = bench
                .said()
                .contains(&format!("Installing packages with {tool}"));
            let words = match done {
                Ok(done) if done.recorded()["pip"] == json!(["ours-only==1.2"]) && by_tool => {
                    return None;
                }
                Ok(done) => format!("{done:?}"),
                Err(error) => error.to_string(),
            };
            Some(format!(
                "{tool} {:?} {}\n{words}\n{}",
                way.variables,
                way.pip_conf,
                bench.said()
            ))
        })
        .buffer_unordered(4)
        .filter_map(|failure| async { failure })
        .collect()
        .await;
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_trusted_wherever_it_is_named() {
    let authority = Authority::new();
    let index = TlsIndex::start(shelf(), &authority.issue("localhost"), None);
    let (file, folder) = (authority.certificate(), authority.hashed_folder());
    let (file, folder) = (file.to_str().unwrap(), folder.to_str().unwrap());
    let host = format!("localhost:{}", index.address.port());
    // An empty bundle that another setting comes before.
    let other = tempfile::NamedTempFile::new().unwrap();
    let other = other.path().to_str().unwrap();
    all_lead_there(
        &index.url(),
        vec![
            way(&[("SSL_CERT_FILE", file)], ""),
            way(&[("SSL_CERT_DIR", folder)], ""),
            way(&[("REQUESTS_CA_BUNDLE", file)], ""),
            way(&[("CURL_CA_BUNDLE", file)], ""),
            way(&[("PIP_CERT", file)], ""),
            way(&[("PIP_CERT", file), ("SSL_CERT_FILE", other)], ""),
            way(&[("SSL_CERT_FILE", file)], &format!("cert = {other}")),
            way(&[("PIP_CERT", folder)], ""),
            way(&[], &format!("cert = {file}")),
            way(&[], "trusted-host = localhost"),
            way(&[("PIP_TRUSTED_HOST", &host)], ""),
            way(&[("UV_INSECURE_HOST", &host)], ""),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_wherever_it_is_named() {
    let authority = Authority::new();
    let server = authority.issue("localhost");
    let index = TlsIndex::start(shelf(), &server, Some(&authority));
    let me = authority.issue("me");
    let me = me.to_str().unwrap();
    let file = authority.certificate();
    let trust = ("SSL_CERT_FILE", file.to_str().unwrap());
    all_lead_there(
        &index.url(),
        vec![
            way(&[trust, ("SSL_CLIENT_CERT", me)], ""),
            way(&[trust, ("PIP_CLIENT_CERT", me)], ""),
            way(&[], &format!("cert = {}\nclient-cert = {me}", trust.1)),
        ],
    )
    .await;
    for with_pip in [false, true] {
        let url = index.url();
        let bench = bench_with(with_pip, &[trust, ("PIP_INDEX_URL", &url)], "");
        bench.fails(json!({"pip": "ours-only"})).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_is_used_wherever_it_is_named() {
    let authority = Authority::new();
    // No name server knows it.
    let index = TlsIndex::start(shelf(), &authority.issue("packages.test"), None);
    let proxy = Proxy::start(index.address, Some("bob:s3cr3tpw"));
    let login = format!("bob:s3cr3tpw@{}", proxy.address());
    let url = format!("http://{login}");
    let file = authority.certificate();
    let trust = ("PIP_CERT", file.to_str().unwrap());
    all_lead_there(
        "https://packages.test/simple",
        vec![
            way(&[trust, ("HTTPS_PROXY", &url)], ""),
            way(&[trust, ("https_proxy", &url)], ""),
            way(&[trust, ("ALL_PROXY", &url)], ""),
            way(&[trust, ("PIP_PROXY", &url)], ""),
            way(&[trust], &format!("proxy = {login}")),
            way(
                &[trust, ("HTTPS_PROXY", "http://127.0.0.1:9")],
                &format!("proxy = {url}"),
            ),
        ],
    )
    .await;
    let asked = proxy.asked();
    assert!(asked.len() >= 12, "{asked:?}");
    let connect = "CONNECT packages.test:443";
    assert!(asked.iter().all(|words| words == connect), "{asked:?}");

    for with_pip in [false, true] {
        let wrong = url.replace("s3cr3tpw", "wr0ngpw");
        let variables = [
            trust,
            ("HTTPS_PROXY", &*wrong),
            ("PIP_INDEX_URL", "https://packages.test/simple"),
        ];
        let bench = bench_with(with_pip, &variables, "");
        let words = bench.fails(json!({"pip": "ours-only"})).await.to_string();
        let said = format!("{words}\n{}", bench.said());
        // pip tells of it only where it tries again.
        assert!(with_pip || words.contains("the proxy does not"), "{said}");
        assert!(!said.contains("wr0ngpw"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_http_goes_by_the_proxy_too_and_past_it_where_that_is_said() {
    let behind = PackageIndex::start(&[("ours-only", "1.2")], None).await;
    let address = behind.files();
    let address = address
        .trim_start_matches("http://")
        .trim_end_matches("/files");
    let proxy = Proxy::start(address.parse().unwrap(), None);
    let url = format!("http://{}", proxy.address());
    all_lead_there(
        "http://packages.test/simple",
        vec![
            way(
                &[("HTTP_PROXY", &url), ("PIP_TRUSTED_HOST", "packages.test")],
                "",
            ),
            way(&[("http_proxy", &url)], "trusted-host = packages.test"),
            way(&[], &format!("proxy = {url}\ntrusted-host = packages.test")),
        ],
    )
    .await;
    let asked = proxy.asked();
    let page = "GET http://packages.test/simple/ours-only/".to_owned();
    assert!(asked.contains(&page), "{asked:?}");

    let near = PackageIndex::start(&[("ours-only", "1.2")], None).await;
    let none = ("HTTP_PROXY", "http://127.0.0.1:9");
    all_lead_there(
        &near.url(),
        vec![
            way(&[none, ("NO_PROXY", "other.test,127.0.0.1")], ""),
            way(&[none, ("no_proxy", "127.0.0.1")], ""),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_fetches_uv_the_same_way() {
    let authority = Authority::new();
    let platform = format!("musllinux_1_1_{}", std::env::consts::ARCH);
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    archive
        .start_file("uv-99.0.0.data/scripts/uv", options)
        .unwrap();
    std::io::Write::write_all(&mut archive, b"#!/bin/sh\necho uv 99.0.0\n").unwrap();
    let mut shelf = shelf();
    shelf.add(
        "uv",
        format!("uv-99.0.0-py3-none-{platform}.whl"),
        archive.finish().unwrap().into_inner(),
    );
    let server = authority.issue("packages.test");
    let index = TlsIndex::start(shelf, &server, Some(&authority));
    let proxy = Proxy::start(index.address, Some("bob:s3cr3tpw"));
    let url = format!("http://bob:s3cr3tpw@{}", proxy.address());
    let (file, me) = (authority.certificate(), authority.issue("me"));
    let (file, me) = (file.to_str().unwrap(), me.to_str().unwrap());
    let named = format!("proxy = {url}\ncert = {file}\nclient-cert = {me}");
    let place = ("PIP_INDEX_URL", "https://packages.test/simple");
    let by_variables = [
        place,
        ("https_proxy", &*url),
        ("SSL_CERT_FILE", file),
        ("SSL_CLIENT_CERT", me),
    ];
    for (variables, pip_conf) in [(&by_variables[..], ""), (&[place], &*named)] {
        let mut bench = bench_with(false, variables, pip_conf);
        bench.settings.uv_program = None;
        bench.settings.cache = bench.dir.path().join("clearml");
        let path = path_without_uv(&bench.settings.environment);
        bench.settings.environment.insert("PATH".into(), path);
        let found = uv::find_or_fetch(&bench.settings, &bench.console(), &bench.stop).await;
        let found = found.unwrap_or_else(|e| panic!("{e}\n{}", bench.said()));
        assert_eq!(found.version, "99.0.0");
    }
}

/// A home whose agents install from `index` and know nobody's certificates.
fn world_of(index: &str) -> World {
    let mut world = World::new();
    for (name, value) in [
        ("PIP_INDEX_URL", index),
        ("PIP_CONFIG_FILE", "/dev/null"),
        ("UV_HTTP_RETRIES", "0"),
        ("PIP_CERT", ""),
        ("PIP_FIND_LINKS", ""),
        ("SSL_CERT_FILE", ""),
        ("SSL_CERT_DIR", ""),
        ("REQUESTS_CA_BUNDLE", ""),
        ("CURL_CA_BUNDLE", ""),
    ] {
        world.env.insert(name.into(), value.into());
    }
    world
}

fn task_with(world: &World, list: &str) -> String {
    let mut script = script("import ours_only\nprint('imported')\n");
    script["requirements"] = json!({ "pip": list });
    world.api.create("packages", script)
}

#[test]
fn an_unknown_certificate_is_told_once_with_what_to_set() {
    let authority = Authority::new();
    let index = TlsIndex::start(shelf(), &authority.issue("localhost"), None);
    let mut world = world_of(&index.url());
    let id = task_with(&world, "ours-only");
    let ended = world.execute(&id, &["--full-monitoring"]).exits(72);
    let log = world.api.log(&id);
    for text in [&log, &ended.stdout] {
        assert_eq!(text.matches("error: Failed to fetch").count(), 1, "{text}");
        assert!(text.contains("SSL_CERT_FILE (or `cert`"), "{text}");
    }
    let reason = world.api.reason(&id);
    assert!(
        reason.contains("UnknownIssuer") && reason.contains("SSL_CERT_FILE"),
        "{reason}"
    );
    // What it advises helps.
    let file = authority.certificate().to_string_lossy().into_owned();
    world.env.insert("SSL_CERT_FILE".into(), file);
    let id = task_with(&world, "ours-only");
    world.execute(&id, &[]).exits(0).prints("imported");
}

#[test]
fn in_a_container_the_advice_is_to_mount_it_and_that_helps() {
    if !in_container::engine() {
        return;
    }
    let authority = Authority::new();
    let index = TlsIndex::start(shelf(), &authority.issue("localhost"), None);
    let world = in_container::world();
    let run = |more: &[String]| {
        let mut arguments = vec![
            "--network=host".to_owned(),
            format!("--label={}", docker::label()),
            format!("--env=PIP_INDEX_URL={}", index.url()),
            "--env=UV_HTTP_RETRIES=0".into(),
        ];
        arguments.extend_from_slice(more);
        let cache = world.path("docker-cache");
        world.configure(&format!(
            "agent {{ extra_docker_arguments: {arguments:?}, docker_cache: {cache:?} }}"
        ));
        let id = task_with(&world, "ours-only");
        (
            id.clone(),
            world.execute(&id, &["--docker", in_container::PYTHON_IMAGE]),
        )
    };
    let (id, ended) = run(&[]);
    let ended = ended.exits(72);
    let reason = world.api.reason(&id);
    assert!(
        reason.contains("UnknownIssuer") && reason.contains("agent.extra_docker_arguments"),
        "{reason}"
    );
    let errors = ended.stdout.matches("error: Failed to fetch").count();
    assert_eq!(errors, 1, "{}", ended.stdout);
    let file = authority.certificate();
    let (_, ended) = run(&[
        format!("--volume={}:/ca.pem:ro", file.display()),
        "--env=SSL_CERT_FILE=/ca.pem".into(),
    ]);
    ended.exits(0).prints("imported");
}

/// Another view of the machine's folders, in which its own bundle of certificates is `bundle`.
fn with_bundle_of_the_machine(bundle: &Path, command: std::process::Command) -> Option<String> {
    let place = "/etc/ssl/certs/ca-certificates.crt";
    let script = format!(
        "mount --bind '{}' {place} && exec \"$0\" \"$@\"",
        bundle.display()
    );
    let mut around = std::process::Command::new("unshare");
    around
        .args(["--mount", "sh", "-c", &script])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => around.env(name, value),
            None => around.env_remove(name),
        };
    }
    let may = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .status();
    if !may.is_ok_and(|status| status.success()) || !Path::new(place).exists() {
        eprintln!("not tested here: no namespace can be made");
        return None;
    }
    let output = around.output().unwrap();
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn what_the_machine_trusts_is_trusted() {
    let authority = Authority::new();
    let index = TlsIndex::start(shelf(), &authority.issue("localhost"), None);
    let mut world = world_of(&index.url());
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        world.env.remove(name);
    }
    let id = task_with(&world, "ours-only");
    let mut command = world.command(&["execute", "--id", &id]);
    for name in ["SSL_CERT_FILE", "SSL_CERT_DIR"] {
        command.env_remove(name);
    }
    let Some(output) = with_bundle_of_the_machine(&authority.certificate(), command) else {
        return;
    };
    assert!(output.contains("imported"), "{output}");
    assert!(
        output.contains("certificates that this machine trusts"),
        "{output}"
    );
}
