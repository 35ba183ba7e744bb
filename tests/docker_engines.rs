//! Engines that are not at this machine's socket: over TCP, with and without TLS, and over ssh. Behind each
//! is the machine's real engine.

#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/docker.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod docker;
#[path = "common/in_container.rs"]
#[allow(dead_code, clippy::unwrap_used)]
mod in_container;
#[path = "common/ssh_server.rs"]
#[allow(clippy::unwrap_used)]
mod ssh_server;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{World, eventually, script};
use docker::block_on;
use in_container::{PYTHON_IMAGE, containers_of, engine, refused_before, start, world};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use ssh_server::SshServer;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, UnixStream};
use tokio_rustls::TlsAcceptor;

const SOCKET: &str = "/var/run/docker.sock";

/// Runs a task there to its good end.
fn runs(world: &World) {
    let id = world.api.create("elsewhere", script("print('far away')\n"));
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(0)
        .prints("caches are not mounted")
        .prints("far away");
    assert_eq!(world.api.status(&id), "completed");
    assert!(containers_of(&id).is_empty());
}

/// A context of docker's, by its name's digest.
fn make_context(world: &World, name: &str, host: &str, tls: Option<&Path>) {
    use sha2::Digest as _;
    let digest: String = sha2::Sha256::digest(name)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let contexts = world.path(".docker/contexts");
    let meta = contexts.join("meta").join(&digest);
    std::fs::create_dir_all(&meta).unwrap();
    let text =
        json!({"Name": name, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": false}}});
    std::fs::write(meta.join("meta.json"), text.to_string()).unwrap();
    if let Some(from) = tls {
        let folder = contexts.join("tls").join(&digest).join("docker");
        std::fs::create_dir_all(&folder).unwrap();
        for name in ["ca.pem", "cert.pem", "key.pem"] {
            std::fs::copy(from.join(name), folder.join(name)).unwrap();
        }
    }
}

/// The engine behind a port of its own.
fn over_tcp(tls: Option<ServerConfig>) -> String {
    let tls = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move {
                    let mut engine = UnixStream::connect(SOCKET).await.unwrap();
                    match tls {
                        None => drop(copy_bidirectional(&mut client, &mut engine).await),
                        Some(tls) => {
                            if let Ok(mut client) = tls.accept(client).await {
                                drop(copy_bidirectional(&mut client, &mut engine).await);
                            }
                        }
                    }
                });
            }
        });
        address
    })
}

#[test]
fn an_engine_elsewhere_is_as_good() {
    if !engine() {
        return;
    }
    let mut world = world();
    let address = over_tcp(None);
    world
        .env
        .insert("DOCKER_HOST".into(), format!("tcp://{address}"));
    // A key agent's socket cannot be mounted there: the keys come.
    std::fs::create_dir(world.path(".ssh")).unwrap();
    std::fs::write(world.path(".ssh/id_test"), "no key").unwrap();
    let socket = world.path("agent.sock");
    let socket = socket.to_str().unwrap().to_owned();
    world.env.insert("SSH_AUTH_SOCK".into(), socket);
    runs(&world);
    let text = "import os\nkeys = os.listdir(os.path.expanduser('~/.ssh'))\n\
                print('keys', keys, os.environ.get('SSH_AUTH_SOCK'))\n";
    let id = world.api.create("keys", script(text));
    world
        .execute(&id, &["--docker", PYTHON_IMAGE])
        .exits(0)
        .prints("keys ['id_test'] None");
}

#[test]
fn a_port_that_only_the_engine_knows_to_be_taken_gives_way() {
    if !engine() {
        return;
    }
    let mut world = world();
    let label = docker::label();
    world.configure(&format!(
        "agent.extra_docker_arguments: [\"--label={label}\"]"
    ));
    let host = format!("tcp://{}", over_tcp(None));
    world.env.insert("DOCKER_HOST".into(), host);
    let taken = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let id = world.api.create("taken", script("print('never')\n"));
    // Without a C library it ends at once, but it has begun.
    let image = format!("{} -p {port}:80", docker::TINY_IMAGE);
    world
        .execute(&id, &["--docker", &image])
        .exits(65)
        .complains("no glibc")
        .prints(&format!("-p {port}:80 gets port 1"));
    let mapping = world.api.task(&id)["runtime"]["_external_host_tcp_port_mapping"].clone();
    let mapping = mapping.as_str().unwrap();
    assert!(
        mapping.ends_with(":80") && !mapping.starts_with(&port.to_string()),
        "{mapping}"
    );
    assert!(containers_of(&id).is_empty());
}

/// An authority with the certificates that it signed, in a folder as docker wants them.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    fn new() -> Authority {
        let authority = Authority {
            folder: tempfile::tempdir().unwrap(),
        };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=authority",
            "-keyout",
            "ca-key.pem",
            "-out",
            "ca.pem",
        ]);
        authority.sign("cert.pem", "key.pem", "extendedKeyUsage=clientAuth");
        authority.sign(
            "server.pem",
            "server-key.pem",
            "subjectAltName=IP:127.0.0.1",
        );
        authority
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, words: &[&str]) {
        let output = Command::new("openssl")
            .args(words)
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {said}");
    }

    fn sign(&self, cert: &str, key: &str, extension: &str) {
        self.openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-subj",
            "/CN=x",
            "-keyout",
            key,
            "-out",
            "request.pem",
        ]);
        std::fs::write(self.path("extensions"), extension).unwrap();
        self.openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
            "-CAcreateserial",
            "-extfile",
            "extensions",
            "-out",
            cert,
        ]);
    }

    /// For an engine that lets in only whom this authority knows.
    fn server(&self) -> ServerConfig {
        clearml_agent::api::tls::install_provider();
        let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
            let found = CertificateDer::pem_file_iter(self.path(name)).unwrap();
            found.map(Result::unwrap).collect()
        };
        let mut known = RootCertStore::empty();
        known.add_parsable_certificates(certificates("ca.pem"));
        let clients = WebPkiClientVerifier::builder(Arc::new(known))
            .build()
            .unwrap();
        let key = PrivateKeyDer::from_pem_file(self.path("server-key.pem")).unwrap();
        ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(certificates("server.pem"), key)
            .unwrap()
    }

    /// A folder with these files, each taken from an authority under its name there.
    fn folder(files: &[(&str, &Authority, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, authority, from) in files {
            std::fs::copy(authority.path(from), folder.path().join(name)).unwrap();
        }
        folder
    }
}

#[test]
fn an_engine_over_tls_knows_its_clients_and_they_know_it() {
    if !engine() {
        return;
    }
    let (ours, others) = (Authority::new(), Authority::new());
    let address = over_tcp(Some(ours.server()));
    let host = format!("tcp://{address}");
    let port = address.rsplit_once(':').unwrap().1;
    let mut world = world();
    make_context(&world, "lab", &host, Some(ours.folder.path()));
    world.env.insert("DOCKER_CONTEXT".into(), "lab".into());
    runs(&world);
    world.env.remove("DOCKER_CONTEXT");

    let (ca, cert, key) = ("ca.pem", "cert.pem", "key.pem");
    let all = [(ca, &ours, ca), (cert, &ours, cert), (key, &ours, key)];
    let tls = |world: &mut World, host: &str, verify: &str, folder: &Path| {
        for (name, value) in [
            ("DOCKER_HOST", host),
            ("DOCKER_TLS_VERIFY", verify),
            ("DOCKER_TLS", "1"),
            ("DOCKER_CERT_PATH", folder.to_str().unwrap()),
        ] {
            world.env.insert(name.into(), value.into());
        }
    };
    let folder = Authority::folder(&all);
    tls(&mut world, &host, "1", folder.path());
    runs(&world);

    let named = format!("tcp://localhost:{port}");
    let plain = format!("tcp://{}", over_tcp(None));
    let unknown = [(ca, &others, ca), all[1], all[2]];
    let strange = [all[0], (cert, &others, cert), (key, &others, key)];
    let mixed = [all[0], all[1], (key, &others, key)];
    for (files, host, code, reason, word) in [
        (
            &unknown[..],
            &host,
            74,
            "no_engine",
            "certificate is not trusted",
        ),
        // The certificate has the number in it, not the name.
        (
            &all[..],
            &named,
            74,
            "no_engine",
            "certificate is not trusted",
        ),
        (
            &all[..1],
            &host,
            77,
            "engine_not_allowed",
            "put cert.pem and key.pem into",
        ),
        (
            &strange[..],
            &host,
            77,
            "engine_not_allowed",
            "does not accept the certificate",
        ),
        (&all[1..], &host, 74, "no_engine", "ca.pem: No such file"),
        (&all[..2], &host, 74, "no_engine", "key.pem: No such file"),
        (&mixed[..], &host, 74, "no_engine", "do not go together"),
        (&all[..], &plain, 74, "no_engine", "speak TLS"),
    ] {
        let folder = Authority::folder(files);
        tls(&mut world, host, "1", folder.path());
        refused_before(&world, PYTHON_IMAGE, code, reason).complains(word);
    }
    // TLS alone is content with any certificate: what fails is the image's.
    let folder = Authority::folder(&unknown);
    tls(&mut world, &host, "", folder.path());
    let id = world.api.create("any", script("print('never')\n"));
    world
        .execute(&id, &["--docker", "no-such-image --pull=never"])
        .exits(66)
        .complains("no-such-image is not on this machine");
}

/// The processes that lead to `server`.
fn connections_to(server: &SshServer) -> Vec<String> {
    let port = format!("-p {} ", server.port);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok())
        .map(|words| words.replace('\0', " "))
        .filter(|words| words.contains(&port) && words.contains("dial-stdio"))
        .collect()
}

#[test]
fn an_engine_behind_ssh() {
    if !engine() {
        return;
    }
    let server = SshServer::start();
    let mut world = world();
    let with_programs = |world: &mut World| {
        let path = std::env::var("PATH").unwrap();
        let path = format!("{}:{path}", server.programs().display());
        world.env.insert("PATH".into(), path);
    };
    with_programs(&mut world);
    let host = server.url(Path::new(""));
    make_context(&world, "lab", &host, None);
    world.env.insert("DOCKER_CONTEXT".into(), "lab".into());
    runs(&world);
    eventually("nothing leads there", || connections_to(&server).is_empty());

    // The way there stays open until the container is stopped and gone.
    world.env.remove("DOCKER_CONTEXT");
    let socket = server.url(Path::new(SOCKET));
    world.env.insert("DOCKER_HOST".into(), socket);
    let text = "import time\nprint('ready', flush=True)\ntime.sleep(600)\n";
    let id = world.api.create("stops", script(text));
    let running = start(&world, &id, &[], "ready");
    assert!(!connections_to(&server).is_empty());
    running.signal("INT");
    let _ = running.wait().exits(130);
    assert_eq!(world.api.status(&id), "stopped");
    assert!(containers_of(&id).is_empty());
    eventually("nothing leads there", || connections_to(&server).is_empty());

    // An agent that is killed takes them with it.
    let id = world.api.create("killed", script(text));
    let running = start(&world, &id, &[], "ready");
    running.signal("KILL");
    let _ = running.wait();
    eventually("nothing leads there", || connections_to(&server).is_empty());
    eventually("the container has ended", || {
        let all = containers_of(&id);
        let state = ["inspect", "--format", "{{.State.Running}}"];
        all.iter().all(|container| {
            let words: Vec<&str> = state.into_iter().chain([container.as_str()]).collect();
            docker::docker(&words).is_ok_and(|running| running.trim() == "false")
        })
    });
    for container in containers_of(&id) {
        docker::docker(&["rm", "--force", "--volumes", &container]).unwrap();
    }

    let nowhere = server.url(Path::new("/nowhere.sock"));
    for (host, code, reason, word) in [
        (nowhere.as_str(), 74, "no_engine", "dial unix /nowhere.sock"),
        ("ssh://127.0.0.1:1", 74, "no_engine", "Connection refused"),
    ] {
        world.env.insert("DOCKER_HOST".into(), host.into());
        refused_before(&world, PYTHON_IMAGE, code, reason)
            .complains(word)
            .complains("docker version` must work");
    }
    world.env.insert("DOCKER_HOST".into(), host);
    server.forget_host();
    refused_before(&world, PYTHON_IMAGE, 74, "no_engine").complains("known_hosts");
    server.know_host();
    let other = server.home().join(".ssh/other_key");
    server.configure(&format!(
        "IdentityFile {}\nIdentitiesOnly yes\n",
        other.display()
    ));
    with_programs(&mut world);
    refused_before(&world, PYTHON_IMAGE, 77, "engine_not_allowed")
        .complains("Permission denied")
        .complains("must work without a question");
    world.env.insert("PATH".into(), "/nowhere".into());
    refused_before(&world, PYTHON_IMAGE, 74, "no_engine").complains("Install OpenSSH");
}
