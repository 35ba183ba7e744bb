//! A small control group and a small disk, for jobs that need more.

use std::process::{Command, Stdio};

use clearml_agent::process::cgroup::{self, Place, Version};
use tempfile::TempDir;

/// The limit of the groups and containers that jobs are killed in.
pub const SMALL: u64 = 64 << 20;

pub fn me() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// A group below this process' own, with a memory limit; gone when dropped.
pub struct Limited(Place);

impl Limited {
    pub fn create() -> Result<Limited, String> {
        let own = cgroup::of_memory(me()).ok_or("no memory control groups")?;
        let place = own.below(&format!("test-{}-{}", me(), uuid::Uuid::new_v4().simple()));
        std::fs::create_dir(&place.dir).map_err(|error| error.to_string())?;
        let group = Limited(place);
        let limit = match group.0.version {
            Version::V1 => "memory.limit_in_bytes",
            Version::V2 => "memory.max",
        };
        group
            .write(limit, &SMALL.to_string())
            .map_err(|error| format!("{limit}: {error}"))?;
        // Nor to the swap disk, where there is one.
        let _ = group.write("memory.memsw.limit_in_bytes", &SMALL.to_string());
        let _ = group.write("memory.swap.max", "0");
        Ok(group)
    }

    fn write(&self, file: &str, text: &str) -> std::io::Result<()> {
        std::fs::write(self.0.dir.join(file), text)
    }

    /// Runs `command`, which is to wait for the end of its input first; what it printed.
    pub fn run(&self, mut command: Command) -> String {
        let procs = self.0.dir.join("cgroup.procs");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(procs, child.id().to_string()).unwrap();
        let output = child.stdout.take().unwrap();
        // It waits for the end of its input, so that all it does is done in the group.
        drop(child.stdin.take());
        let text = std::io::read_to_string(output).unwrap();
        assert!(child.wait().unwrap().success(), "{text}");
        text
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0.dir);
        assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
    }
}

/// A file system of one megabyte.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    pub fn mount(options: &str) -> Option<Tmpfs> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Tmpfs(dir))
    }

    pub fn path(&self) -> &std::path::Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0.path()).status().unwrap();
        assert!(status.success() || std::thread::panicking());
    }
}
