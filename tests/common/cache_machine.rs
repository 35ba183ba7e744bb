//! A machine that keeps environments, for tests of them. The file beside it is `python.rs`, as `bench`.

#![allow(dead_code, reason = "each test file uses its part")]

use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

use clearml_agent::python::cache::settings::CacheSettings;
use clearml_agent::python::cache::store::{Entry, Store};
use serde_json::json;

use super::bench::{Bench, Done};

/// A machine with a cache, on which several runs come and go.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub change: fn(&mut CacheSettings),
}

impl Machine {
    pub fn new() -> Machine {
        Machine {
            dir: tempfile::tempdir().unwrap(),
            change: |_| (),
        }
    }

    pub fn settings(&self) -> CacheSettings {
        let mut settings = CacheSettings::at(self.dir.path().join("venvs-cache"));
        settings.free_space = 0;
        (self.change)(&mut settings);
        settings
    }

    pub fn bench(&self) -> Bench {
        let mut bench = Bench::new();
        bench.settings.venvs_cache = Some(self.settings());
        // What is written through a link must reach no other test by uv's cache.
        bench.settings.cache = self.dir.path().join("clearml");
        bench
    }

    pub async fn run(&self, list: &str) -> (Done, String) {
        let bench = self.bench();
        let done = bench.runs("", json!({"pip": list})).await;
        (done, bench.said())
    }

    pub fn entries(&self) -> Vec<Entry> {
        Store::look(&self.settings()).entries()
    }

    /// Until nothing is done to the one environment in the background.
    pub async fn compiled(&self) {
        while !self.entries()[0].manifest.compiled {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `clearml-agent cache …` with this cache; exit code and output.
    pub fn command(&self, words: &[&str]) -> (i32, String) {
        let cache = self.settings().path;
        self.command_with(words, "CLEARML_AGENT_VENV_CACHE_PATH", cache.as_os_str())
    }

    pub fn command_with(&self, words: &[&str], name: &str, value: &OsStr) -> (i32, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_clearml-agent"))
            .arg("cache")
            .args(words)
            .env_clear()
            .env("HOME", self.dir.path())
            .env(name, value)
            .env(
                "CLEARML_AGENT__AGENT__VENVS_CACHE__FREE_SPACE_THRESHOLD_GB",
                "0",
            )
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.code().unwrap(),
            String::from_utf8(text).unwrap(),
        )
    }
}
