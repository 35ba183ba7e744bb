//! How the agent's own file and uv come into a container: mounted where that is sure to work, since it
//! takes no time, else copied.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Where they are in the container.
pub const AGENT: &str = "/.clearml-agent/bin/clearml-agent";
pub const UV: &str = "/.clearml-agent/bin/uv";

/// One program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The engine has this file, too.
    Mounted(String),
    Copied(PathBuf),
}

/// What stands between a file here and a container.
#[derive(Debug, Clone, Copy)]
pub struct Surroundings {
    pub engine_is_local: bool,
    /// The agent is in a container itself: the engine sees other files under the same paths.
    pub in_container: bool,
    /// SELinux forbids containers what is not labelled for them.
    pub selinux: bool,
}

impl Surroundings {
    pub fn look(engine_is_local: bool) -> Surroundings {
        let there = |path: &str| Path::new(path).exists();
        let enforcing = std::fs::read_to_string("/sys/fs/selinux/enforce");
        Surroundings {
            engine_is_local,
            in_container: there("/.dockerenv")
                || there("/run/.containerenv")
                || there("/var/run/secrets/kubernetes.io"),
            selinux: enforcing.is_ok_and(|enforcing| enforcing.trim() == "1"),
        }
    }
}

/// This very program.
pub fn agent(around: Surroundings) -> Program {
    let running = PathBuf::from("/proc/self/exe");
    // Of a file that was replaced meanwhile only the running one is the right one.
    let path = std::fs::read_link(&running).ok();
    let path = path.filter(|path| is_same_file(path, &running));
    match path.and_then(|path| mountable(&path, around)) {
        Some(source) => Program::Mounted(source),
        None => Program::Copied(running),
    }
}

pub fn uv(program: PathBuf, around: Surroundings) -> Program {
    let path = program.canonicalize().ok();
    match path.and_then(|path| mountable(&path, around)) {
        Some(source) => Program::Mounted(source),
        None => Program::Copied(program),
    }
}

fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let place = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.dev(), found.ino()))
    };
    place(one).is_some_and(|place_of_one| place(other) == Some(place_of_one))
}

fn mountable(path: &Path, around: Surroundings) -> Option<String> {
    if !around.engine_is_local || around.in_container || around.selinux {
        return None;
    }
    // Whoever runs in the container has to read and execute it.
    let mode = std::fs::metadata(path).ok()?.permissions().mode();
    let text = path.to_str().filter(|text| !text.contains(':'))?;
    (mode & 0o005 == 0o005).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Surroundings = Surroundings {
        engine_is_local: true,
        in_container: false,
        selinux: false,
    };

    #[test]
    fn what_is_mounted_and_what_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("uv");
        std::fs::write(&file, "").unwrap();
        for (mode, around, mounted) in [
            (0o755, PLAIN, true),
            (0o700, PLAIN, false),
            (0o754, PLAIN, false),
            (
                0o755,
                Surroundings {
                    engine_is_local: false,
                    ..PLAIN
                },
                false,
            ),
            (
                0o755,
                Surroundings {
                    in_container: true,
                    ..PLAIN
                },
                false,
            ),
            (
                0o755,
                Surroundings {
                    selinux: true,
                    ..PLAIN
                },
                false,
            ),
        ] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = uv(file.clone(), around);
            assert_eq!(
                matches!(found, Program::Mounted(_)),
                mounted,
                "{mode:o} {around:?}"
            );
        }
        let colon = dir.path().join("a:b");
        std::fs::copy(&file, &colon).unwrap();
        std::fs::set_permissions(&colon, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(uv(colon.clone(), PLAIN), Program::Copied(colon));
    }
}
