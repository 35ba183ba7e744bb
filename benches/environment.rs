//! How long a run waits for its environment, beside the same by hand in the same run:
//! `cargo bench --bench environment`. It downloads numpy and requests from the package index.
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/python.rs"]
mod bench;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench::Bench;
use clearml_agent::python::cache::settings::{CacheSettings, LinkMode};
use clearml_agent::python::cache::store::{Entry, Store};
use clearml_agent::python::cache::tree::Tree;
use clearml_agent::python::{Settings, uv};
use serde_json::json;

const LIST: &str = "numpy\nrequests\n";
const AT_ONCE: usize = 16;
const FILES: usize = 50_000;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn row(name: &str, took: Duration, beside: Option<(&str, Duration)>) {
    print!("{name:<58} {:>7.3} s", took.as_secs_f64());
    if let Some((what, other)) = beside {
        let ratio = took.as_secs_f64() / other.as_secs_f64();
        print!("   {ratio:.2} x {what} ({:.3} s)", other.as_secs_f64());
    }
    println!();
}

/// One machine: its caches stay from run to run.
struct Machine {
    folder: PathBuf,
    uv: PathBuf,
}

impl Machine {
    fn bench(&self) -> Bench {
        let mut bench = Bench::new();
        bench.settings.uv_program = Some(self.uv.clone());
        bench.settings.cache = self.folder.join("clearml");
        bench.settings.venvs_cache = Some(CacheSettings {
            free_space: 0,
            ..CacheSettings::at(self.folder.join("venvs-cache"))
        });
        bench
    }

    /// From the task to the packages that can be imported: interpreter, uv, environment.
    async fn run(&self) -> (Duration, Bench) {
        let bench = self.bench();
        let started = Instant::now();
        drop(bench.runs("", json!({"pip": LIST})).await);
        (started.elapsed(), bench)
    }

    fn kept(&self) -> Store {
        Store::look(&CacheSettings::at(self.folder.join("venvs-cache")))
    }

    /// The kept environment, once nothing is done to it in the background.
    async fn compiled(&self) -> Entry {
        loop {
            let entry = self.kept().entries().remove(0);
            if entry.manifest.compiled {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn by_hand(&self, to: &Path, settings: &Settings) -> Duration {
        let env = settings.indexes.for_uv(&settings.environment);
        let started = Instant::now();
        let run = |words: &[&str]| {
            let status = Command::new(&self.uv)
                .args(words)
                .envs(&env)
                .env("UV_CACHE_DIR", self.folder.join("clearml/uv-cache"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            assert!(status.unwrap().success());
        };
        let python = to.join("bin/python");
        run(&["venv", &to.to_string_lossy()]);
        let python = python.to_string_lossy();
        run(&["pip", "install", "--python", &python, "numpy", "requests"]);
        started.elapsed()
    }
}

fn cp_al(from: &Path, to: &Path) -> Duration {
    let started = Instant::now();
    let status = Command::new("cp").arg("-al").arg(from).arg(to).status();
    assert!(status.unwrap().success());
    started.elapsed()
}

#[tokio::main]
async fn main() {
    // Where the runs' folders are, too: on one disk.
    let temp = tempfile::tempdir().unwrap();
    let said = clearml_agent::console::Console::new(|_| ());
    let stop = tokio_util::sync::CancellationToken::new();
    let uv = uv::find_or_fetch(&Bench::new().settings, &said, &stop).await;
    let uv = uv.unwrap().program;
    let machine = |name: &str| Machine {
        folder: temp.path().join(name),
        uv: uv.clone(),
    };

    // Empty caches: one alone, then many at once.
    // No run's folder goes before the end: for minutes, ext4 steps over each file that was deleted, one by
    // one, to make a new one, and the copies by hand stay, too.
    let mut all_runs = Vec::new();
    let alone = machine("alone");
    let (cold, run) = alone.run().await;
    all_runs.push(run);
    row("empty caches, one run", cold, None);
    alone.compiled().await;
    let crowd = Arc::new(machine("crowd"));
    let started = Instant::now();
    let runs: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let crowd = crowd.clone();
            tokio::spawn(async move { crowd.run().await.1 })
        })
        .collect();
    let mut done = Vec::new();
    for run in runs {
        done.push(run.await.unwrap());
    }
    let took = started.elapsed();
    let said: String = done.iter().map(Bench::said).collect();
    assert_eq!(said.matches("Environment: built and kept").count(), 1);
    row(
        &format!("empty caches, {AT_ONCE} runs at once, one build"),
        took,
        Some(("one alone", cold)),
    );
    all_runs.extend(done);

    // Packages in uv's cache only.
    let mut times = Vec::new();
    let mut by_hand = Vec::new();
    for round in 0..7 {
        let entry = alone.compiled().await;
        alone.kept().give_up(&entry.manifest.key).unwrap();
        let (took, run) = alone.run().await;
        times.push(took);
        all_runs.push(run);
        let hand = temp.path().join(format!("hand-{round}"));
        by_hand.push(alone.by_hand(&hand, &alone.bench().settings));
    }
    row(
        "packages in uv's cache, environment not kept yet",
        median(times),
        Some(("uv venv + uv pip install", median(by_hand))),
    );

    // A kept environment.
    let entry = alone.compiled().await;
    let (mut times, mut copies, mut links) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..15 {
        let (took, run) = alone.run().await;
        times.push(took);
        all_runs.push(run);
        links.push(cp_al(
            &entry.environment(),
            &temp.path().join(format!("cp-{round}")),
        ));
        let to = temp.path().join(format!("copy-{round}"));
        let started = Instant::now();
        let tree = entry.files().unwrap();
        tree.copy(&entry.environment(), &to, LinkMode::Auto)
            .unwrap();
        copies.push(started.elapsed());
    }
    let links = median(links);
    row(
        &format!("kept environment, {} files: the copy", entry.manifest.files),
        median(copies),
        Some(("cp -al", links)),
    );
    row(
        "kept environment: all, from the task to its packages",
        median(times),
        Some(("cp -al", links)),
    );

    // As many files as an environment with torch has.
    let large = temp.path().join("large");
    for folder in 0..FILES / 100 {
        let folder = large.join(format!(
            "lib/python3.11/site-packages/p{}/m{folder}",
            folder % 50
        ));
        std::fs::create_dir_all(&folder).unwrap();
        for file in 0..100 {
            std::fs::write(folder.join(format!("f{file}.py")), "x = 1\n").unwrap();
        }
    }
    let text = Tree::scan(&large).unwrap().text();
    let (mut copies, mut links) = (Vec::new(), Vec::new());
    for round in 0..3 {
        links.push(cp_al(
            &large,
            &temp.path().join(format!("large-cp-{round}")),
        ));
        let to = temp.path().join(format!("large-copy-{round}"));
        let started = Instant::now();
        let tree = Tree::parse(&text).unwrap();
        tree.copy(&large, &to, LinkMode::Auto).unwrap();
        copies.push(started.elapsed());
    }
    row(
        &format!("an environment of {FILES} files: the copy"),
        median(copies),
        Some(("cp -al", median(links))),
    );
}
