//! Pythons for uv to fetch: archives as uv's own are packed, and the list that names them.

#![allow(dead_code, reason = "each test file uses its part")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use sha2::Digest as _;
use tempfile::TempDir;

/// The variable that names the list.
pub const LIST: &str = "UV_PYTHON_DOWNLOADS_JSON_URL";

/// Packs the Python in `folder` into `place`, and gives the list there that has it; `at`: the address
/// that the list says, if not that of the file.
pub fn offer(place: &Path, folder: &Path, version: (u32, u32, u32), at: Option<&str>) -> PathBuf {
    let archive = place.join("python.tar.gz");
    let mut command = Command::new("tar");
    command.arg("-C").arg(folder);
    command.arg("--use-compress-program=gzip -1");
    command.args([
        "--exclude=__pycache__",
        "--exclude=*/test",
        "--exclude=*/config-*",
        "--exclude=*/site-packages/*",
        "--exclude=*/idlelib",
    ]);
    let packed = command
        .arg("-cf")
        .arg(&archive)
        .args(["python/bin", "python/lib"])
        .status();
    assert!(packed.unwrap().success());
    let hash = sha2::Sha256::digest(std::fs::read(&archive).unwrap());
    let hash: String = hash.iter().map(|b| format!("{b:02x}")).collect();
    let (major, minor, patch) = version;
    let arch = std::env::consts::ARCH;
    let key = format!("cpython-{major}.{minor}.{patch}-linux-{arch}-gnu");
    let url = at.map_or_else(|| format!("file://{}", archive.display()), str::to_owned);
    let list = json!({key: {
        "name": "cpython", "arch": {"family": arch, "variant": null}, "os": "linux", "libc": "gnu",
        "major": major, "minor": minor, "patch": patch, "prerelease": "", "variant": null,
        "url": url, "sha256": hash, "build": "20261110",
    }});
    let file = place.join("pythons.json");
    std::fs::write(&file, list.to_string()).unwrap();
    file
}

/// `real`, but that it says of itself that it is Python 3.98.4.
pub fn pretender(real: &Path) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("python/bin/python3.98");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    let library = folder.path().join("python/lib/python3.98");
    std::fs::create_dir_all(&library).unwrap();
    // uv writes the new place into it.
    let build = library.join("_sysconfigdata__linux_x86_64-linux-gnu.py");
    let head = "# system configuration generated and used by the sysconfig module";
    std::fs::write(build, format!("{head}\nbuild_time_vars = {{}}\n")).unwrap();
    let text = format!(
        "#!/bin/sh\n'{}' \"$@\" | /bin/sed 's/^3\\.[0-9]*\\.[0-9]*$/3.98.4/'\n",
        real.display()
    );
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}
