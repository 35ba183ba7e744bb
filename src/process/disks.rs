//! How full the disks are that a job writes to, at its end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A file system, under the name of a folder on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub folder: PathBuf,
    /// Why the job has this folder, e.g. `TMPDIR`.
    pub role: Role,
    pub size: u64,
    /// What an ordinary user could still write.
    pub free: u64,
    /// No file can be made, however small (no inodes are left).
    pub no_more_files: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The job's own words name a file in it.
    Named,
    WorkingDir,
    Temporary,
    Home,
    SharedMemory,
}

const SHARED_MEMORY: &str = "/dev/shm";

/// Looks at the file systems of `named` files, the working folder, `TMPDIR`, `HOME` and shared
/// memory, in this order; at each once. A dead network share makes this wait for ever: call it where
/// that can be given up.
pub fn look(named: &[PathBuf], working_dir: &Path, env: &BTreeMap<String, String>) -> Vec<Disk> {
    let of_env = |name: &str| env.get(name).filter(|value| !value.is_empty());
    let temporary = of_env("TMPDIR").map_or("/tmp", String::as_str);
    let named = named.iter().map(|file| {
        let file = working_dir.join(file);
        let role = if file.starts_with(SHARED_MEMORY) {
            Role::SharedMemory
        } else {
            Role::Named
        };
        (role, file.parent().unwrap_or(&file).to_path_buf())
    });
    let home = of_env("HOME").map(|home| (Role::Home, home.into()));
    let candidates = named
        .chain([
            (Role::WorkingDir, working_dir.to_path_buf()),
            (Role::Temporary, temporary.into()),
        ])
        .chain(home)
        .chain([(Role::SharedMemory, SHARED_MEMORY.into())]);
    let mut seen = Vec::new();
    candidates
        .filter_map(|(role, folder)| {
            use std::os::unix::fs::MetadataExt as _;
            let device = std::fs::metadata(&folder).ok()?.dev();
            if seen.contains(&device) {
                return None;
            }
            seen.push(device);
            let stat = rustix::fs::statvfs(&folder).ok()?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            Some(Disk {
                folder,
                role,
                size: bytes(stat.f_blocks),
                free: bytes(stat.f_bavail),
                // Some file systems have no such count, which reads as none at all.
                no_more_files: stat.f_files > 0 && stat.f_favail == 0,
            })
        })
        .collect()
}

impl Disk {
    /// Whether a job may well have failed for want of space here. Some is often left when it is
    /// looked at: the last piece did not fit, or was removed again.
    pub fn is_full(&self) -> bool {
        const LITTLE: u64 = 1 << 30;
        self.size > 0 && (self.no_more_files || (self.free < LITTLE && self.free < self.size / 20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_is_almost_nothing_left() {
        const MIB: u64 = 1 << 20;
        for (size, free, no_more_files, full) in [
            (100 * MIB, 0, false, true),
            (100 * MIB, 4 * MIB, false, true),
            (100 * MIB, 6 * MIB, false, false),
            (1 << 40, 2 << 30, false, false),
            (1 << 40, 900 * MIB, false, true),
            (1 << 40, 1 << 39, true, true),
            (0, 0, false, false),
        ] {
            let disk = Disk {
                folder: "/".into(),
                role: Role::WorkingDir,
                size,
                free,
                no_more_files,
            };
            assert_eq!(disk.is_full(), full, "{disk:?}");
        }
    }

    #[test]
    fn each_file_system_is_looked_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("x");
        std::fs::create_dir(&inside).unwrap();
        let text = |path: &Path| path.display().to_string();
        let env = BTreeMap::from([
            ("TMPDIR".to_owned(), text(&inside)),
            ("HOME".to_owned(), "/no/such/folder".to_owned()),
        ]);
        let disks = look(&["x/file".into()], dir.path(), &env);
        let first = disks.first().unwrap();
        assert_eq!((first.role, &first.folder), (Role::Named, &inside));
        let shared = look(&["/dev/shm/x".into()], dir.path(), &env);
        assert_eq!(
            shared.first().unwrap().role == Role::SharedMemory,
            Path::new(SHARED_MEMORY).exists()
        );
        assert!(
            disks[1..]
                .iter()
                .all(|disk| disk.role == Role::SharedMemory)
        );
    }
}
