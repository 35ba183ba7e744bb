//! Pulls, from a registry of the tests' own: it speaks as much of the registry API as the engine asks
//! for. What is pulled has a shell and no C library, so a run that came as far says that.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::get;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use common::{World, script};
use docker::{block_on, docker};
use in_container::{containers_of, engine, world};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// With all that the engine's base64 for addresses writes in another way than the usual one.
const PASSWORD: &str = "pass~~~word>>>?";
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// A registry with one image, `NAME:1`.
struct Registry {
    address: String,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: Vec<u8>,
    /// `user:password`, where it lets in nobody else.
    login: Option<String>,
    /// Layers come half, and then nothing.
    stalls: bool,
    pulls: AtomicUsize,
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

impl Registry {
    fn start(login: Option<&str>, stalls: bool) -> Registry {
        // One of its own for each registry: the engine keeps layers.
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mark = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::SeqCst)
        );
        let mut layer = tar::Builder::new(Vec::new());
        let busybox = ["/bin/busybox", "/usr/bin/busybox"];
        let busybox = busybox
            .iter()
            .find(|p| std::path::Path::new(p).exists())
            .unwrap();
        layer.append_path_with_name(busybox, "bin/sh").unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(mark.len() as u64);
        layer
            .append_data(&mut header, "mark", mark.as_bytes())
            .unwrap();
        let layer = layer.into_inner().unwrap();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]}, "history": [{"created_by": "test"}]})
        .to_string()
        .into_bytes();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
                       "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                        "size": layer.len(), "digest": digest(&layer)}]});
        let served = Arc::new(Served {
            blobs: [(digest(&layer), layer), (digest(&config), config)].into(),
            manifest: manifest.to_string().into_bytes(),
            login: login.map(str::to_owned),
            stalls,
            pulls: AtomicUsize::new(0),
        });
        let routes = axum::Router::new()
            .route("/v2/", get(root))
            .route("/v2/{name}/manifests/{reference}", get(manifest_of))
            .route("/v2/{name}/blobs/{digest}", get(blob))
            .with_state(served.clone());
        let address = block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            tokio::spawn(async move { axum::serve(listener, routes).await });
            address
        });
        Registry { address, served }
    }

    fn image(&self) -> String {
        format!("{}/tiny:1", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = docker(&["rmi", "--force", &self.image()]);
    }
}

/// Says no to whoever is not to be let in.
fn refusal(served: &Served, headers: &HeaderMap) -> Option<Response> {
    let login = served.login.as_ref()?;
    let expected = format!("Basic {}", BASE64_STANDARD.encode(login));
    if headers
        .get(header::AUTHORIZATION)
        .is_some_and(|given| *given == expected)
    {
        return None;
    }
    let body = json!({"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]});
    let response = Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .header(header::WWW_AUTHENTICATE, "Basic realm=\"test\"")
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into());
    Some(response.unwrap())
}

async fn root(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response {
    refusal(&served, &headers).unwrap_or_else(|| Response::new("{}".into()))
}

async fn manifest_of(
    State(served): State<Arc<Served>>,
    Path((_, reference)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&served, &headers) {
        return refusal;
    }
    if reference != "1" && reference != digest(&served.manifest) {
        let body = json!({"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]});
        return Response::builder()
            .status(StatusCode::NOT_FOUND)
            .header(header::CONTENT_TYPE, "application/json")
            .body(body.to_string().into())
            .unwrap();
    }
    served.pulls.fetch_add(1, Ordering::SeqCst);
    Response::builder()
        .header(header::CONTENT_TYPE, MANIFEST)
        .header("Docker-Content-Digest", digest(&served.manifest))
        .body(served.manifest.clone().into())
        .unwrap()
}

async fn blob(
    State(served): State<Arc<Served>>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = refusal(&served, &headers) {
        return refusal;
    }
    let bytes = served.blobs[&name].clone();
    let response = Response::builder().header(header::CONTENT_LENGTH, bytes.len());
    let is_layer = bytes.len() > 100_000;
    let body = match served.stalls && is_layer {
        false => Body::from(bytes),
        true => {
            use futures_util::StreamExt as _;
            let half = bytes[..bytes.len() / 2].to_vec();
            let first = futures_util::stream::iter([Ok::<_, std::io::Error>(half)]);
            Body::from_stream(first.chain(futures_util::stream::pending()))
        }
    };
    response.body(body).unwrap()
}

/// docker's configuration of the world's user.
fn log_in(world: &World, registry: &str, login: &str) {
    let config = json!({"auths": {registry: {"auth": BASE64_STANDARD.encode(login)}}});
    std::fs::create_dir_all(world.path(".docker")).unwrap();
    std::fs::write(world.path(".docker/config.json"), config.to_string()).unwrap();
}

fn reason_in(path: &std::path::Path) -> String {
    let result: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    result["reason"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_is_pulled_once_and_again_where_that_is_wanted() {
    if !engine() {
        return;
    }
    let registry = Registry::start(None, false);
    let world = world();
    let run = |words: &str, code| {
        let id = world.api.create("pull", script("print(1)\n"));
        let image = format!("{} {words}", registry.image());
        let ended = world.execute(&id, &["--docker", &image]).exits(code);
        assert!(containers_of(&id).is_empty());
        ended
    };
    run("--pull=never", 66).complains("--pull=never");
    run("", 65)
        .prints("Pulling image")
        .prints("Pulled image")
        .complains("glibc");
    let pulls = registry.served.pulls.load(Ordering::SeqCst);
    let again = run("", 65);
    assert!(!again.stdout.contains("Pulling image"), "{}", again.stdout);
    assert_eq!(registry.served.pulls.load(Ordering::SeqCst), pulls);
    run("--pull=always", 65).prints("Pulling image");
    assert!(registry.served.pulls.load(Ordering::SeqCst) > pulls);
    world.configure("agent.docker_force_pull: true");
    run("", 65).prints("Pulling image");
}

#[test]
fn a_registry_that_wants_a_login_is_given_the_one_that_docker_has() {
    if !engine() {
        return;
    }
    let login = format!("someone:{PASSWORD}");
    let registry = Registry::start(Some(&login), false);
    let world = world();
    let result = world.path("result.json");
    let run = |code| {
        let id = world.api.create("login", script("print(1)\n"));
        let words = [
            "--docker",
            &registry.image(),
            "--result",
            result.to_str().unwrap(),
        ];
        world.execute(&id, &words).exits(code)
    };
    run(77)
        .complains("docker login")
        .complains("without credentials");
    assert_eq!(reason_in(&result), "pull_denied");
    log_in(&world, &registry.address, "someone:wrong");
    run(77).complains("to user someone");
    log_in(&world, &registry.address, &login);
    let ended = run(65).prints("Pulled image");
    assert!(!format!("{ended:?}").contains(PASSWORD));
}

#[test]
fn what_is_not_there_is_not_found() {
    if !engine() {
        return;
    }
    let registry = Registry::start(None, false);
    let world = world();
    let result = world.path("result.json");
    let gone = format!("{}/tiny:2", registry.address);
    for (image, code, reason) in [
        (gone.as_str(), 66, "no_such_image"),
        ("127.0.0.1:1/tiny:1", 69, "registry_unreachable"),
        ("Not/A:Name:1", 66, "no_such_image"),
    ] {
        let id = world.api.create("not there", script("print(1)\n"));
        let words = ["--docker", image, "--result", result.to_str().unwrap()];
        world.execute(&id, &words).exits(code);
        assert_eq!(reason_in(&result), reason, "{image}");
        assert_eq!(world.api.status(&id), "failed");
        assert!(
            world
                .api
                .reason(&id)
                .starts_with("failed running the container")
        );
    }
}

#[test]
fn a_stop_ends_a_pull_that_hangs() {
    if !engine() {
        return;
    }
    let registry = Registry::start(None, true);
    let world = world();
    let id = world.api.create("hangs", script("print(1)\n"));
    let mut running = world.start_execute(&id, &["--docker", &registry.image()]);
    running.line_with("Pulling image");
    running.signal("TERM");
    let _ = running.wait().exits(143);
    assert_eq!(world.api.status(&id), "stopped");
}
