//! Random states of a repository: what `git diff` says of two of them makes one of the other.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_edits.rs"]
mod source_edits;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use git_http::{TestRepo, git_command, tree};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use source_edits::{SHAPES, applied, diff_of};
use source_host::Host;

/// What stands at one of a few paths.
#[derive(Debug, Clone)]
enum Entry {
    Absent,
    Text(String),
    Script(String),
    Binary(Vec<u8>),
    Link(String),
}

const PATHS: [&str; 7] = [
    "train.py",
    "a",
    "b c",
    "src/x.py",
    "src/deep/y",
    "ü\"quoted\".txt",
    "old name",
];

/// Lines that come again and again, in every kind of line end, and ends with none.
fn text() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        4 => (0..12u8).prop_map(|n| format!("line {n}\n")),
        2 => (0..12u8).prop_map(|n| format!("line {n}\r\n")),
        1 => Just("\n".to_owned()),
        1 => Just("  \t\n".to_owned()),
        1 => Just("--- a/x\n".to_owned()),
        1 => Just("@@ -1 +1 @@\n".to_owned()),
        1 => Just("é日本\u{1b}[31m\n".to_owned()),
    ];
    (prop::collection::vec(line, 0..40), any::<bool>()).prop_map(|(lines, whole)| {
        let text = lines.concat();
        match whole {
            true => text,
            false => text.trim_end_matches(['\n', '\r']).to_owned(),
        }
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    prop_oneof![
        2 => Just(Entry::Absent),
        6 => text().prop_map(Entry::Text),
        2 => text().prop_map(Entry::Script),
        2 => prop::collection::vec(any::<u8>(), 0..400).prop_map(|mut bytes| {
            bytes.push(0);
            Entry::Binary(bytes)
        }),
        1 => "[a-z]{1,8}".prop_map(Entry::Link),
    ]
}

/// Two states: in the second each path is as it was, has changed, or has what another one had.
fn states() -> impl Strategy<Value = (Vec<Entry>, Vec<Entry>)> {
    let first = prop::collection::vec(entry(), PATHS.len());
    let change = prop_oneof![
        3 => Just(None),
        3 => entry().prop_map(|entry| Some((entry, None))),
        2 => (entry(), 0..PATHS.len()).prop_map(|(entry, from)| Some((entry, Some(from)))),
    ];
    let changes = prop::collection::vec(change, PATHS.len());
    let edit = prop::collection::vec(any::<prop::sample::Index>(), 0..5);
    (first, changes, edit).prop_map(|(first, changes, edits)| {
        let mut second = first.clone();
        for (at, change) in changes.into_iter().enumerate() {
            match change {
                Some((_, Some(from))) => {
                    second[at] = first[from].clone();
                    second[from] = Entry::Absent;
                }
                Some((entry, None)) => second[at] = entry,
                None => {
                    if let Entry::Text(text) = &mut second[at] {
                        for edit in &edits {
                            let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
                            let place = edit.index(lines.len() + 1);
                            lines.insert(place, "an added line\n");
                            *text = lines.concat();
                        }
                    }
                }
            }
        }
        (first, second)
    })
}

fn put(repo: &TestRepo, state: &[Entry]) {
    for (path, entry) in PATHS.iter().zip(state) {
        let full = repo.folder.join(path);
        let _ = fs::remove_file(&full);
        let execute = |mode| fs::set_permissions(&full, fs::Permissions::from_mode(mode)).unwrap();
        match entry {
            Entry::Absent => {}
            Entry::Text(text) => repo.write(path, text),
            Entry::Script(text) => {
                repo.write(path, text);
                execute(0o755);
            }
            Entry::Binary(bytes) => repo.write(path, bytes),
            Entry::Link(target) => {
                fs::create_dir_all(full.parent().unwrap()).unwrap();
                symlink(target, &full).unwrap();
            }
        }
    }
}

fn git_applies(repo: &TestRepo, diff: &str) -> bool {
    let patch = repo.served_root().join("patch");
    fs::write(&patch, diff).unwrap();
    repo.git(&["reset", "--quiet", "--hard"]);
    repo.git(&["clean", "--quiet", "-fd"]);
    let args = ["apply", "--unidiff-zero", patch.to_str().unwrap()];
    git_command(&repo.folder, &args)
        .output()
        .unwrap()
        .status
        .success()
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        max_shrink_iters: 200,
        failure_persistence: Some(Box::new(FileFailurePersistence::Off)),
        ..ProptestConfig::default()
    })]

    #[test]
    fn applying_the_difference_of_two_states_to_one_gives_the_other(
        (first, second) in states(),
        shape in 0..SHAPES.len(),
    ) {
        let repo = TestRepo::empty();
        put(&repo, &first);
        repo.commit("first");
        put(&repo, &second);
        let diff = diff_of(&repo, SHAPES[shape].1);
        let host = Host::new();
        match applied(&host, &repo, &diff) {
            Ok(sources) => prop_assert!(
                tree(&sources.root) == tree(&repo.folder),
                "differs, {}:\n{diff}",
                SHAPES[shape].0
            ),
            // `--break-rewrites` can lose that a file was there; git refuses such a diff, too.
            Err(error) => prop_assert!(!git_applies(&repo, &diff), "{}: {error}\n{diff}", SHAPES[shape].0),
        }
    }
}
