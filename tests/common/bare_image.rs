//! A Docker image of nothing, for containers that use this machine's own /usr.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const IMAGE: &str = "clearml-agent-test-bare";

/// An image that has nothing but mount points, for a container that uses this machine's /usr; made
/// once on a machine.
pub fn image() -> Result<&'static str, String> {
    static MADE: OnceLock<Result<(), String>> = OnceLock::new();
    MADE.get_or_init(make_image).clone().map(|()| IMAGE)
}

fn make_image() -> Result<(), String> {
    let there = Command::new("docker")
        .args(["image", "inspect", IMAGE])
        .output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    let version = Command::new("docker").args(["version"]).output();
    if !version.is_ok_and(|output| output.status.success()) {
        return Err("Docker does not answer".into());
    }
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name);
    for name in ["usr", "proc", "sys", "dev", "tmp"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        let Ok(target) = std::fs::read_link(Path::new("/").join(name)) else {
            return Err(format!("/{name} of this machine is not a part of /usr"));
        };
        std::os::unix::fs::symlink(target, path(name)).unwrap();
    }
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(root.path())
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let import = Command::new("docker")
        .args(["import", "-", IMAGE])
        .stdin(tar.stdout.take().unwrap())
        .output()
        .unwrap();
    assert!(tar.wait().unwrap().success());
    if !import.status.success() {
        return Err(String::from_utf8_lossy(&import.stderr).into_owned());
    }
    Ok(())
}
