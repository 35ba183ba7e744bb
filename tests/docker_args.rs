//! `docker run`'s flags against docker's own client: what it creates for them and what we create for
//! them is the same container, as the engine describes it.
//!
//! Needs a Docker Engine and docker's client: without them the tests say so and pass.
#![allow(clippy::unwrap_used)]

#[path = "common/docker.rs"]
mod docker;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use bollard::query_parameters::CreateContainerOptions;
use clearml_agent::container::address::DockerConfig;
use clearml_agent::container::proxies;
use clearml_agent::container::run_args::{Host, RunArgs, split};
use serde_json::{Value, json};
use tempfile::TempDir;

use docker::{Container, Engine, Network, TINY_IMAGE, Volume, block_on, docker, label};

/// What the flags of the table speak of.
struct Stage {
    engine: Engine,
    dir: TempDir,
    env: BTreeMap<String, String>,
    network: Network,
    second_network: Network,
    volume: Volume,
    other: Container,
}

/// What the engine made of a request: a container, or a complaint.
enum Made {
    Container(Container),
    Refused(String),
}

impl std::fmt::Debug for Made {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Made::Container(_) => f.write_str("a container"),
            Made::Refused(why) => write!(f, "refused by the engine: {why}"),
        }
    }
}

impl Stage {
    /// `name` tells the tests apart.
    fn new(name: &str) -> Option<Stage> {
        let engine = docker::engine()?;
        let dir = TempDir::new().unwrap();
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).unwrap();
        write(
            "env",
            "\u{feff}# comment\nA=1\n  B= 2 \nHERE\nNOT_HERE\n\nEMPTY=\nQUOTED=\"x y\"\n",
        );
        write("env-bad", "A=1\nB C=2\n");
        write("labels", "a=1\n# b=2\nalone\n  c=x=y\n");
        write(
            "seccomp.json",
            "{ \"defaultAction\": \"SCMP_ACT_ALLOW\",\n  \"b\": 1, \"a\": [1.50, \"x\"] }\n",
        );
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let other = docker(&[
            "create",
            "--label",
            &label(),
            "-v",
            "/shared",
            TINY_IMAGE,
            "true",
        ]);
        Some(Stage {
            engine,
            dir,
            env: BTreeMap::from([("HERE".to_owned(), "of the host".to_owned())]),
            network: Network::create(&format!("{name}-1")),
            second_network: Network::create(&format!("{name}-2")),
            volume: Volume::create(name),
            other: Container {
                id: other.unwrap().trim().to_owned(),
            },
        })
    }

    /// The words of a line, with the stage's names in it.
    fn words(&self, line: &str) -> Vec<String> {
        let line = self.in_place(line);
        split(&format!("--label {} {line}", label())).unwrap()
    }

    fn in_place(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir.path().to_string_lossy())
            .replace("{net}", &self.network.name)
            .replace("{net2}", &self.second_network.name)
            .replace("{ip}", &self.network.prefix)
            .replace("{volume}", &self.volume.name)
            .replace("{other}", &self.other.id)
            .replace("{label}", &label())
    }

    /// As docker's own client makes it, or why it does not.
    fn by_docker(&self, words: &[String]) -> Result<Made, String> {
        let output = Command::new("docker")
            .arg("create")
            .args(words)
            .args([TINY_IMAGE, "true"])
            .current_dir(self.dir.path())
            .env_remove("NOT_HERE")
            .env_remove("DOCKER_CONFIG")
            .envs(&self.env)
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() {
            let container = Container {
                id: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
            };
            return Ok(Made::Container(container));
        }
        match complaint.split_once("Error response from daemon: ") {
            Some((_, why)) => Ok(Made::Refused(why.lines().next().unwrap().to_owned())),
            None => Err(complaint),
        }
    }

    fn read(&self, words: &[String]) -> Result<RunArgs, String> {
        RunArgs::parse(words).map_err(|error| error.to_string())
    }

    /// As we make it, or why we do not.
    fn by_us(&self, words: &[String]) -> Result<Made, String> {
        let args = self.read(words)?;
        let host = Host {
            env: &self.env,
            cwd: self.dir.path(),
        };
        let mut body = args.to_create(&host).map_err(|error| error.to_string())?;
        let docker_host = std::env::var("DOCKER_HOST");
        let docker_host = docker_host.unwrap_or("unix:///var/run/docker.sock".to_owned());
        proxies::add(&mut body, &DockerConfig::read(&self.env), &docker_host);
        let version = self.engine.api.client_version();
        args.check_engine((version.major_version, version.minor_version))
            .map_err(|error| error.to_string())?;
        body.image = Some(TINY_IMAGE.to_owned());
        body.cmd = Some(vec!["true".to_owned()]);
        let options = CreateContainerOptions {
            name: args.name().map(str::to_owned),
            platform: args.platform().unwrap_or_default().to_owned(),
        };
        let created = block_on(async {
            let api = &self.engine.api;
            let created = api.create_container(Some(options), body).await?;
            for (network, endpoint) in args.further_networks().unwrap() {
                let request = bollard::models::NetworkConnectRequest {
                    container: created.id.clone(),
                    endpoint_config: Some(endpoint),
                };
                api.connect_network(&network, request).await?;
            }
            Ok(created)
        });
        match created {
            Ok(created) => {
                let container = Container { id: created.id };
                Ok(Made::Container(container))
            }
            Err(bollard::errors::Error::DockerResponseServerError { message, .. }) => {
                Ok(Made::Refused(message))
            }
            Err(error) => panic!("{words:?}: {error}"),
        }
    }
}

/// The description without what differs between any two containers.
fn plain(mut document: Value) -> Value {
    let id = document["Id"].as_str().unwrap().to_owned();
    let name = document["Name"].as_str().unwrap().to_owned();
    // It is in links too.
    let text = document
        .to_string()
        .replace(&format!("{name}/"), "/(its name)/");
    document = serde_json::from_str(&text).unwrap();
    let top = document.as_object_mut().unwrap();
    for key in [
        "Id",
        "Created",
        "Name",
        "ResolvConfPath",
        "HostnamePath",
        "HostsPath",
        "LogPath",
        "GraphDriver",
    ] {
        top.remove(key);
    }
    let config = &mut document["Config"];
    // Without --hostname it is the id's beginning.
    if config["Hostname"]
        .as_str()
        .is_some_and(|name| id.starts_with(name))
    {
        config["Hostname"] = json!("(its id)");
    }
    // The name and the place of a volume without a name.
    for mount in document["Mounts"].as_array_mut().unwrap() {
        let anonymous =
            |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if mount["Name"].as_str().is_some_and(anonymous) {
            mount["Name"] = json!("(a new one)");
            mount["Source"] = json!("(a new one)");
        }
    }
    // Docker's client keeps these in a map, in no order.
    sort(&mut document["Config"]["Env"]);
    sort(&mut document["Mounts"]);
    sort(&mut document["HostConfig"]["Binds"]);
    sort(&mut document["HostConfig"]["Ulimits"]);
    let networks = document["NetworkSettings"]["Networks"].as_object_mut();
    for endpoint in networks.unwrap().values_mut() {
        // The short id is an alias in networks of one's own.
        if let Some(aliases) = endpoint["Aliases"].as_array_mut() {
            aliases.retain(|alias| {
                !alias
                    .as_str()
                    .is_some_and(|alias| alias.len() == 12 && id.starts_with(alias))
            });
        }
    }
    document
}

fn sort(list: &mut Value) {
    if let Some(list) = list.as_array_mut() {
        list.sort_by_key(Value::to_string);
    }
}

/// Where docker's container and ours differ.
fn differences(docker: &Container, ours: &Container) -> Vec<String> {
    let documents = docker::inspect(&[docker, ours]);
    let [docker, ours] = documents.as_slice() else {
        panic!("{} documents", documents.len());
    };
    let mut found = Vec::new();
    compare("", &plain(docker.clone()), &plain(ours.clone()), &mut found);
    found
}

fn compare(path: &str, docker: &Value, ours: &Value, found: &mut Vec<String>) {
    match (docker, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let of = |map: &serde_json::Map<String, Value>| {
                    map.get(key).cloned().unwrap_or_else(|| json!("(absent)"))
                };
                compare(&format!("{path}.{key}"), &of(a), &of(b), found);
            }
        }
        _ if docker == ours => {}
        _ => found.push(format!("{path}: docker {docker}, ours {ours}")),
    }
}

/// The lines of a table that are no comments.
fn table(text: &str) -> Vec<&str> {
    let lines = text.lines();
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Runs `check` for each line, several at a time; what it found wrong.
fn each(lines: &[&str], check: impl Fn(&str) -> Option<String> + Sync) -> String {
    let next = AtomicUsize::new(0);
    let wrong = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(line) = lines.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(found) = check(line) {
                        wrong.lock().unwrap().push(found);
                    }
                }
            });
        }
    });
    wrong.into_inner().unwrap().join("\n")
}

#[test]
fn docker_and_we_create_the_same_containers() {
    let Some(stage) = Stage::new("same") else {
        return;
    };
    let mut lines = table(include_str!("data/docker_flags/same.txt"));
    // No flags at all.
    lines.push("");
    let created = AtomicUsize::new(0);
    let wrong = each(&lines, |line| {
        let words = stage.words(line);
        match (stage.by_docker(&words), stage.by_us(&words)) {
            (Ok(Made::Container(docker)), Ok(Made::Container(ours))) => {
                created.fetch_add(1, Ordering::Relaxed);
                let found = differences(&docker, &ours);
                (!found.is_empty()).then(|| format!("{line}\n    {}", found.join("\n    ")))
            }
            // This engine can't do it: it must say the same to both.
            (Ok(Made::Refused(docker)), Ok(Made::Refused(ours))) if docker == ours => {
                eprintln!("refused by this engine: {line}: {ours}");
                None
            }
            (docker, ours) => Some(format!("{line}\n    docker {docker:?}\n    ours {ours:?}")),
        }
    });
    let created = created.into_inner();
    eprintln!("{created} of {} containers are the same", lines.len());
    assert!(wrong.is_empty(), "{wrong}");
    assert!(created >= 60, "{created} containers");
}

#[test]
fn what_docker_refuses_we_refuse_and_name_the_flag() {
    let Some(stage) = Stage::new("bad") else {
        return;
    };
    let lines = table(include_str!("data/docker_flags/refused.txt"));
    let wrong = each(&lines, |line| {
        let (line, message) = line.split_once("  =>  ").unwrap();
        let words = stage.words(line);
        let message = stage.in_place(message);
        let accepted = matches!(stage.by_docker(&words), Ok(Made::Container(_)));
        match stage.by_us(&words) {
            _ if accepted => Some(format!("{line}: docker takes it")),
            Err(ours) if ours.contains(&message) => None,
            ours => Some(format!("{line}: {ours:?}, not {message:?}")),
        }
    });
    assert!(wrong.is_empty(), "{wrong}");
}

/// Flags that an engine may be too old for: docker's client refuses them, or passes them on and they
/// are lost.
#[test]
fn flags_of_newer_engines_are_refused_by_name() {
    let Some(stage) = Stage::new("new") else {
        return;
    };
    let has = stage.engine.api.client_version();
    for (line, needs) in [
        ("--annotation a=b", 43),
        ("--health-start-interval 1s", 44),
        ("--mac-address 92:d0:c6:0a:29:33 --network {net}", 44),
        (
            "--mount type=volume,src={volume},dst=/a,volume-subpath=b",
            45,
        ),
        ("--mount type=image,src=clearml-agent-test:tiny,dst=/a", 48),
        ("--network name={net},gw-priority=1", 48),
    ] {
        let words = stage.words(line);
        match (has.major_version, stage.by_us(&words)) {
            (1, Err(why)) if has.minor_version < needs => {
                assert!(
                    why.contains(&format!("API 1.{needs} or later")),
                    "{line}: {why}"
                );
            }
            (_, ours) => {
                let docker = stage.by_docker(&words);
                let (Ok(Made::Container(docker)), Ok(Made::Container(ours))) = (docker, ours)
                else {
                    panic!("{line}");
                };
                let found = differences(&docker, &ours);
                assert!(found.is_empty(), "{line}: {found:?}");
            }
        }
    }
}

#[test]
fn dockers_own_proxies_are_given_too() {
    let Some(mut stage) = Stage::new("proxies") else {
        return;
    };
    let config = stage.dir.path().join("docker");
    std::fs::create_dir(&config).unwrap();
    let docker_config = config.to_string_lossy().into_owned();
    stage.env.insert("DOCKER_CONFIG".to_owned(), docker_config);
    let here = json!({"httpProxy": "http://here:1", "noProxy": "a,b", "allProxy": ""});
    let elsewhere = json!({"httpProxy": "http://elsewhere:1"});
    for proxies in [
        json!({"default": here, "tcp://elsewhere:2376": elsewhere}),
        json!({"default": elsewhere, "unix:///var/run/docker.sock": here}),
        json!({"tcp://elsewhere:2376": elsewhere}),
    ] {
        let text = json!({ "proxies": proxies }).to_string();
        std::fs::write(config.join("config.json"), text).unwrap();
        for line in ["", "-e http_proxy=mine -e NO_PROXY="] {
            let words = stage.words(line);
            let (docker, ours) = (stage.by_docker(&words), stage.by_us(&words));
            let (Ok(Made::Container(docker)), Ok(Made::Container(ours))) = (docker, ours) else {
                panic!("{line}");
            };
            let found = differences(&docker, &ours);
            assert!(found.is_empty(), "{proxies} {line}: {found:?}");
        }
    }
}

#[test]
fn further_networks_are_connected() {
    let Some(stage) = Stage::new("further") else {
        return;
    };
    let words = stage.words("--network {net} --network name={net2},alias=b --network-alias a");
    let Ok(Made::Container(container)) = stage.by_us(&words) else {
        panic!("not created");
    };
    let document = docker::inspect(&[&container]).remove(0);
    let networks = &document["NetworkSettings"]["Networks"];
    let has = |network: &Network, alias: &str| {
        let aliases = networks[&network.name]["Aliases"].as_array().unwrap();
        aliases.contains(&json!(alias))
    };
    assert!(has(&stage.network, "a"), "{networks}");
    assert!(!has(&stage.network, "b"), "{networks}");
    assert!(has(&stage.second_network, "b"), "{networks}");
}

#[test]
fn a_container_has_the_name_that_is_given() {
    let Some(stage) = Stage::new("name") else {
        return;
    };
    let name = format!("clearml-agent-test-{}", std::process::id());
    let words = stage.words(&format!("--name {name} --name={name}-2 --pull never"));
    let Ok(Made::Container(container)) = stage.by_us(&words) else {
        panic!("not created");
    };
    let document = docker::inspect(&[&container]).remove(0);
    assert_eq!(document["Name"], format!("/{name}-2"));
}
