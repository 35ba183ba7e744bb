//! A driver library of the tests' own in the place of NVIDIA's (`tests/nvml/stand_in.c`), found the
//! way the real one is: on `LD_LIBRARY_PATH`.

#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// The library, and the file that says what it answers.
pub struct Driver {
    dir: TempDir,
}

impl Driver {
    pub fn new(spec: &str) -> Driver {
        Self::built(spec, &[])
    }

    /// As before version 510.
    pub fn old(spec: &str) -> Driver {
        Self::built(spec, &["-DOLD"])
    }

    fn built(spec: &str, flags: &[&str]) -> Driver {
        let dir = tempfile::tempdir().unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nvml/stand_in.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"])
            .args(flags)
            .arg(source)
            .arg("-o")
            .arg(dir.path().join("libnvidia-ml.so.1"))
            .arg("-lpthread")
            .status()
            .expect("a C compiler");
        assert!(built.success());
        let driver = Driver { dir };
        driver.says(spec);
        driver
    }

    /// Changes what it answers from now on.
    pub fn says(&self, spec: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, spec).unwrap();
        std::fs::rename(new, self.spec()).unwrap();
    }

    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    fn spec(&self) -> PathBuf {
        self.dir.path().join("spec")
    }

    /// What a process needs that is to find it.
    pub fn env(&self) -> [(&'static str, String); 2] {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        [
            ("LD_LIBRARY_PATH", text(self.dir.path())),
            ("NVML_STAND_IN", text(&self.spec())),
        ]
    }
}

/// So many devices; number n has n·10 % usage, 40+n °C, n GiB used.
pub fn gpus(count: u32) -> String {
    (0..count)
        .map(|n| {
            format!(
                "gpu {n} util={} total=81920 used={} temp={} power={} sm=1980 mem=2619 ecc=0\n",
                n * 10,
                n * 1024,
                40 + n,
                100_500 + n * 1000
            )
        })
        .collect()
}
