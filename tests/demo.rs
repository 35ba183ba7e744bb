//! `clearml-agent demo`: it shows the whole way, is true, and leaves nothing behind.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Api, Ended, World};
use tempfile::TempDir;

/// A user whose own ClearML settings would break anything that read them.
struct User {
    world: World,
    temporary: TempDir,
    home_before: BTreeMap<PathBuf, Vec<u8>>,
}

impl User {
    fn new() -> User {
        let mut world = World::at(Api {
            url: "http://127.0.0.1:9".into(),
            access_key: "key of the user".into(),
            secret_key: "secret of the user".into(),
        });
        world.configure("this is no configuration {");
        let temporary = tempfile::tempdir().unwrap();
        let mut set = |name: &str, value: String| world.env.insert(name.into(), value);
        set("TMPDIR", temporary.path().to_string_lossy().into_owned());
        set("CLEARML_API_HOST", "http://127.0.0.1:9".into());
        set("CLEARML_AGENT__AGENT__VENVS_DIR", "/nowhere".into());
        set("TRAINS_CONFIG_FILE", "/nowhere/trains.conf".into());
        if let Some(folder) = uv_folder() {
            let path = std::env::var("PATH").unwrap();
            set("PATH", format!("{}:{path}", folder.display()));
        }
        let home_before = files(world.home.path());
        User {
            world,
            temporary,
            home_before,
        }
    }

    /// Nothing of the demo is left: no file, no process.
    fn is_as_before(&self) {
        assert_eq!(files(self.world.home.path()), self.home_before);
        let left: Vec<_> = std::fs::read_dir(self.temporary.path())
            .unwrap()
            .flatten()
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let living = processes_of(self.temporary.path());
        assert!(living.is_empty(), "{living:?}");
    }
}

/// Where a uv is that the tests are told of or that another test has fetched; the demo itself keeps
/// none and would fetch it anew each time.
fn uv_folder() -> Option<PathBuf> {
    let told = std::env::var_os("CLEARML_BOOTSTRAP_UV_EXEC").map(PathBuf::from);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-cache/uv");
    let kept = std::fs::read_dir(kept).into_iter().flatten().flatten();
    let mut programs = told
        .into_iter()
        .chain(kept.map(|entry| entry.path().join("uv")));
    let program = programs.find(|program| program.is_file() && program.ends_with("uv"))?;
    Some(program.parent().unwrap().to_owned())
}

/// All files below `folder` with their contents, and all folders.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
            found.insert(path, Vec::new());
        } else {
            let contents = std::fs::read(&path).unwrap();
            found.insert(path, contents);
        }
    }
    found
}

/// The living processes that were given `folder` in their environment.
fn processes_of(folder: &Path) -> Vec<String> {
    let needle = folder.to_string_lossy().into_owned();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|process| {
        let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
        String::from_utf8_lossy(&environment).contains(&needle)
    })
    .map(|process| process.file_name().to_string_lossy().into_owned())
    .collect()
}

/// What follows the heading `title`, to the next one.
fn section<'a>(ended: &'a Ended, title: &str) -> &'a str {
    let heading = format!("\n== {title}");
    let (_, rest) = ended
        .stdout
        .split_once(&heading)
        .unwrap_or_else(|| panic!("no {heading:?} in:\n{}", ended.stdout));
    rest.split_once("\n== ")
        .map_or(rest, |(section, _)| section)
}

/// The value in the row `label`.
fn row<'a>(section: &'a str, label: &str) -> &'a str {
    let line = section.lines().find_map(|line| {
        let value = line.trim_start().strip_prefix(label)?;
        value.starts_with(' ').then(|| value.trim())
    });
    line.unwrap_or_else(|| panic!("no row {label:?} in:\n{section}"))
}

#[test]
fn the_whole_way_is_shown_and_nothing_stays_behind() {
    let user = User::new();
    let ended = user.world.run(&["demo"]).exits(0);

    let parts = section(&ended, "The demo's parts");
    assert!(
        row(parts, "server").starts_with("http://127.0.0.1:"),
        "{parts}"
    );
    let (task, _) = row(parts, "task").split_once(' ').unwrap();
    let live = section(&ended, "clearml-agent execute");
    assert!(live.contains(task), "{live}");
    // The diff makes eight epochs of the four that are committed.
    for line in [
        "\nepoch 1/8  loss ",
        "\nepoch 8/8  loss ",
        "\ntrained: y = ",
    ] {
        assert_eq!(live.matches(line).count(), 1, "{line:?} in:\n{live}");
    }

    let held = section(&ended, "What the server holds");
    assert_eq!(row(held, "status"), "completed (worker execution done)");
    let commit = row(held, "commit");
    assert!(commit.len() == 40 && live.contains(commit), "{commit}");
    assert!(row(held, "packages").starts_with("tqdm=="), "{held}");
    assert!(row(held, "machine").contains("% CPU"), "{held}");
    assert!(
        row(held, "log").ends_with("lines, of which the last 6:"),
        "{held}"
    );
    for line in [
        "| epoch 8/8  loss ",
        "| trained: y = ",
        "| Process completed successfully",
    ] {
        assert!(held.contains(line), "{line:?} in:\n{held}");
    }

    let went = section(&ended, "How it went");
    assert_eq!(row(went, "exit code"), "0");
    assert!(row(went, "to first line").ends_with(" s"), "{went}");
    let receipt = ended.stderr.strip_prefix("clearml-agent: log: ").unwrap();
    assert!(receipt.ends_with(", all on the server\n"), "{receipt}");
    user.is_as_before();
}

#[test]
fn a_signal_stops_the_run_and_clears_everything_away() {
    let user = User::new();
    let mut running = user.world.start(&["demo"]);
    running.line_with("training with Python");
    assert!(!processes_of(user.temporary.path()).is_empty());
    running.signal("TERM");
    running.wait().exits(143).prints(
        "The demo was stopped by SIGTERM. The task is stopped (the agent received SIGTERM).",
    );
    user.is_as_before();
}

#[test]
fn without_a_package_index_it_says_what_is_needed() {
    let mut user = User::new();
    // A package index that does not answer, and no other place for packages.
    for name in ["PIP_INDEX_URL", "UV_DEFAULT_INDEX"] {
        let nobody = "http://127.0.0.1:9/simple".to_owned();
        user.world.env.insert(name.into(), nobody);
    }
    for name in ["PIP_RETRIES", "UV_HTTP_RETRIES"] {
        user.world.env.insert(name.into(), "0".into());
    }
    for of in ["PIP", "UV"] {
        for place in ["EXTRA_INDEX_URL", "FIND_LINKS"] {
            user.world
                .env
                .insert(format!("{of}_{place}"), String::new());
        }
    }
    let ended = user
        .world
        .run(&["demo"])
        .exits(1)
        .complains("its exit code is 72 and the task's status failed")
        .complains("PIP_INDEX_URL names another index");
    let held = section(&ended, "What the server holds");
    assert!(row(held, "status").starts_with("failed (failed building the Python environment"));
    let went = section(&ended, "How it went");
    assert_eq!(row(went, "exit code"), "72");
    assert_eq!(row(went, "to first line"), "none of the script");
    user.is_as_before();
}
