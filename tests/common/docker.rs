//! A real Docker Engine for tests: its image, and containers that are gone when a test is.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{LazyLock, OnceLock};

use bollard::Docker;
use bollard::query_parameters::RemoveContainerOptions;
use serde_json::Value;

/// On everything that tests make, with the process id of the test program as its value.
pub const LABEL: &str = "clearml-agent-test";

/// A shell and its tools, nothing else. Made once per machine, and kept.
pub const TINY_IMAGE: &str = "clearml-agent-test:tiny";

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
});

static API: OnceLock<Docker> = OnceLock::new();

/// The engine that `docker` talks to, and docker's own client.
pub struct Engine {
    pub api: Docker,
}

/// The engine, with the tiny image in it; `None`, and the reason on stderr, where this machine has none.
pub fn engine() -> Option<Engine> {
    match find() {
        Ok(engine) => Some(engine),
        Err(why) => {
            eprintln!("not tested here: {why}");
            None
        }
    }
}

fn find() -> Result<Engine, String> {
    // Docker's client reads the same variables as bollard does; a context of its own would lead it to
    // another engine.
    let version = docker(&["version", "--format", "{{.Server.Os}}"])
        .map_err(|why| format!("no Docker Engine and client here ({})", why.trim()))?;
    if version.trim() != "linux" {
        return Err(format!("a Docker Engine for {}", version.trim()));
    }
    let api = Docker::connect_with_defaults().map_err(|error| error.to_string())?;
    let api = block_on(async { api.negotiate_version().await });
    let api = api.map_err(|error| format!("no answer from the Docker Engine: {error}"))?;
    let _ = API.set(api.clone());
    remove_left_overs();
    // One test program makes it; others wait for it here.
    let lock = std::env::temp_dir().join(format!("{LABEL}.lock"));
    let lock = std::fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
    if docker(&["image", "inspect", TINY_IMAGE]).is_err() {
        import_tiny_image()?;
    }
    drop(lock);
    Ok(Engine { api })
}

/// What was left by test programs that were killed.
fn remove_left_overs() {
    for (kind, remove) in [
        ("container", &["rm", "--force", "--volumes"][..]),
        ("network", &["network", "rm"]),
        ("volume", &["volume", "rm"]),
    ] {
        let filter = format!("label={LABEL}");
        let mut list = vec![kind, "ls", "--quiet", "--filter", &filter];
        if kind == "container" {
            list.push("--all");
        }
        for id in docker(&list).unwrap_or_default().lines() {
            let labels = match kind {
                "container" => "{{json .Config.Labels}}",
                _ => "{{json .Labels}}",
            };
            // It may be gone by now.
            let labels = docker(&[kind, "inspect", "--format", labels, id]).unwrap_or_default();
            let labels: Value = serde_json::from_str(&labels).unwrap_or_default();
            let owner = labels[LABEL].as_str().and_then(|id| id.parse::<u32>().ok());
            if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
                let words: Vec<&str> = remove.iter().copied().chain([id]).collect();
                let _ = docker(&words);
            }
        }
    }
}

/// Debian's static busybox and a name for each of its tools.
fn import_tiny_image() -> Result<(), String> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .ok_or("no busybox here (the package busybox-static has it)")?;
    let tools = Command::new(busybox).arg("--list").output();
    let tools = tools.map_err(|error| format!("{busybox}: {error}"))?;
    let mut archive = tar::Builder::new(Vec::new());
    let tools = String::from_utf8_lossy(&tools.stdout).into_owned();
    let fill = |archive: &mut tar::Builder<Vec<u8>>| -> std::io::Result<()> {
        for folder in ["bin/", "etc/", "root/", "tmp/"] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
            header.set_size(0);
            archive.append_data(&mut header, folder, std::io::empty())?;
        }
        let users = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n";
        for (file, text) in [
            ("etc/passwd", users),
            ("etc/group", "root:x:0:\nuser:x:1000:\n"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(text.len() as u64);
            archive.append_data(&mut header, file, text.as_bytes())?;
        }
        archive.append_path_with_name(busybox, "bin/busybox")?;
        for tool in tools.lines().filter(|tool| *tool != "busybox") {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            archive.append_link(&mut header, format!("bin/{tool}"), "busybox")?;
        }
        archive.finish()
    };
    fill(&mut archive).map_err(|error| format!("an archive of {busybox}: {error}"))?;
    let archive = archive.into_inner().map_err(|error| error.to_string())?;
    let mut import = Command::new("docker")
        .args(["import", "--change", "ENV PATH=/bin", "-", TINY_IMAGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("docker: {error}"))?;
    let mut input = import.stdin.take().unwrap();
    let sent = input.write_all(&archive);
    drop(input);
    let done = import.wait().map_err(|error| error.to_string())?;
    match (sent, done.success()) {
        (Ok(()), true) => Ok(()),
        (sent, _) => Err(format!("docker import: {done}, {sent:?}")),
    }
}

/// Runs docker's client; what it prints, or what it complains of.
pub fn docker(words: &[impl AsRef<std::ffi::OsStr>]) -> Result<String, String> {
    let output = Command::new("docker").args(words).output();
    let output = output.map_err(|error| format!("docker: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Waits for the engine's answer.
pub fn block_on<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// The label that a test's containers carry: `--label` for docker's client.
pub fn label() -> String {
    format!("{LABEL}={}", std::process::id())
}

/// A container that is removed with its anonymous volumes when the test is over.
pub struct Container {
    pub id: String,
}

/// The engine's whole documents of containers.
pub fn inspect(containers: &[&Container]) -> Vec<Value> {
    let ids = containers.iter().map(|container| container.id.as_str());
    let words: Vec<&str> = ["container", "inspect"].into_iter().chain(ids).collect();
    serde_json::from_str(&docker(&words).unwrap()).unwrap()
}

impl Drop for Container {
    fn drop(&mut self) {
        let Some(api) = API.get() else { return };
        let options = RemoveContainerOptions {
            force: true,
            v: true,
            ..RemoveContainerOptions::default()
        };
        let _ = block_on(api.remove_container(&self.id, Some(options)));
    }
}

/// A network of the test's own, gone when the test is over.
pub struct Network {
    pub name: String,
    /// Its addresses without the last number: `10.213.7`.
    pub prefix: String,
}

impl Network {
    pub fn create(name: &str) -> Network {
        let name = format!("{LABEL}-{}-{name}", std::process::id());
        let label = label();
        for third in 0..=255 {
            let prefix = format!("10.213.{third}");
            let subnet = format!("{prefix}.0/24");
            let words = [
                "network", "create", "--label", &label, "--subnet", &subnet, &name,
            ];
            match docker(&words) {
                Ok(_) => return Network { name, prefix },
                // Another test's.
                Err(why) if why.contains("overlaps") => {}
                Err(why) => panic!("{why}"),
            }
        }
        panic!("no addresses are left for a network");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = docker(&["network", "rm", &self.name]);
    }
}

/// A named volume of the test's own, gone when the test is over.
pub struct Volume {
    pub name: String,
}

impl Volume {
    pub fn create(name: &str) -> Volume {
        let name = format!("{LABEL}-{}-{name}", std::process::id());
        docker(&["volume", "create", "--label", &label(), &name]).unwrap();
        Volume { name }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = docker(&["volume", "rm", "--force", &self.name]);
    }
}
