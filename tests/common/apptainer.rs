//! Apptainer: the machine's own where there is one, else a stand-in that really runs the command in the
//! image's folder (`tests/apptainer/apptainer`); and an image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::common::{World, shared_cache};

/// The folder of an image with Debian's Python; why not, where it cannot be had.
pub fn image() -> Result<PathBuf, String> {
    static MADE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(make_image).clone()
}

fn make_image() -> Result<PathBuf, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("debootstrap and namespaces need root".into());
    }
    let root = shared_cache().with_file_name("python-root");
    // One test program makes it; others wait for it here.
    std::fs::create_dir_all(shared_cache()).unwrap();
    let lock = std::fs::File::create(root.with_extension("lock")).unwrap();
    lock.lock().unwrap();
    let ready = root.join("usr/bin/python3");
    if ready.exists() {
        return Ok(root);
    }
    let being_made = root.with_extension("new");
    let _ = std::fs::remove_dir_all(&being_made);
    // Another test's image, where it is there already, else as that one is made.
    let script = format!(
        "set -e; new={new}; mkdir -p $new; PATH=$PATH:/usr/sbin:/sbin
         if id=$(docker create clearml-agent-test/debian-python:bookworm true 2>/dev/null); then
             docker export $id | tar -x -C $new; docker rm $id >/dev/null
         else
             debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm $new
         fi >&2",
        new = being_made.display()
    );
    let made = Command::new("sh").args(["-c", &script]).status();
    if !made.is_ok_and(|status| status.success()) {
        return Err("debootstrap makes no Debian image".into());
    }
    std::fs::rename(&being_made, &root).map_err(|error| error.to_string())?;
    Ok(root)
}

/// The folder of the program that is called: `None` for the machine's own.
pub fn stand_in() -> Option<PathBuf> {
    let own = Command::new("apptainer").arg("--version").output();
    let is_there = own.is_ok_and(|answer| answer.status.success());
    (!is_there).then(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apptainer"))
}

/// A world in which Apptainer is found, and whose runs find packages and uv; `None` (said) where this machine cannot have it.
pub fn world() -> Option<World> {
    let root = match image() {
        Ok(root) => root,
        Err(why) => {
            eprintln!("not tested here: {why}");
            return None;
        }
    };
    let mut world = World::new();
    if let Some(folder) = stand_in() {
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        world.env.insert("PATH".into(), path);
        let image = root.to_str().unwrap().to_owned();
        world.env.insert("APPTAINER_TEST_IMAGE".into(), image);
    }
    for name in [
        "NVIDIA_VISIBLE_DEVICES",
        "CUDA_VISIBLE_DEVICES",
        "SSH_AUTH_SOCK",
    ] {
        world.env.insert(name.into(), String::new());
    }
    configure(&world, "");
    Some(world)
}

/// As a user behind a proxy would have it, and `more`.
pub fn configure(world: &World, more: &str) {
    let mut arguments = Vec::new();
    if let Ok(bundle) = std::env::var("SSL_CERT_FILE") {
        arguments.push(format!("--volume={bundle}:{bundle}:ro"));
        arguments.push(format!("--env=SSL_CERT_FILE={bundle}"));
    }
    world.configure(&format!(
        "agent.extra_docker_arguments: {arguments:?}\n{more}"
    ));
}

/// Hands the home over to a user who is nobody special.
pub fn give_home_to(world: &World, uid: u32) {
    let home = world.home.path();
    for path in [home.to_owned(), home.join("clearml.conf")] {
        std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
    }
}
