//! Uncommitted changes: what `git diff` writes is applied to a fresh checkout and must give the
//! very tree that it was taken from.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use clearml_agent::source::{SourceError, Sources};
use clearml_agent::task::Script;
use git_http::{TestRepo, git_command, git_in, tree};
use source_host::{Host, assert_says, script};

/// A committed state with files of many kinds.
fn base() -> TestRepo {
    let repo = TestRepo::empty();
    let numbered: String = (1..=60).map(|n| format!("line {n}\n")).collect();
    repo.write("train.py", "print('training')\n");
    repo.write("numbers.txt", &numbered);
    repo.write("src/deep/module.py", "def f():\n    return 1\n");
    repo.write("no_end.txt", "one\ntwo");
    repo.write("crlf.txt", numbered.replace('\n', "\r\n"));
    repo.write("empty.txt", "");
    repo.write("with blank é.txt", "text\n");
    repo.write("run.sh", "echo\n");
    repo.write(
        "binary.bin",
        (0..2000u32)
            .map(|n| (n * n % 251) as u8)
            .collect::<Vec<_>>(),
    );
    repo.write("repeated.txt", "a\nb\n".repeat(30));
    symlink("train.py", repo.folder.join("link")).unwrap();
    repo.commit("base");
    repo
}

type Edit = fn(&TestRepo);

const EDITS: &[(&str, Edit)] = &[
    ("ordinary edit", |r| {
        r.write("train.py", "import os\nprint('changed')\n")
    }),
    ("edits far apart", |r| {
        let text = fs::read_to_string(r.folder.join("numbers.txt")).unwrap();
        let text = text
            .replace("line 3\n", "")
            .replace("line 30\n", "thirty\n30\n");
        r.write("numbers.txt", text + "line 61\n");
    }),
    ("in repeated lines", |r| {
        let mut lines = ["a", "b"].repeat(30);
        lines.remove(41);
        lines.insert(20, "c");
        lines.remove(7);
        r.write("repeated.txt", lines.join("\n") + "\n");
    }),
    ("new file", |r| r.write("new.py", "1\n2\n")),
    ("new empty file", |r| r.write("new_empty", "")),
    ("new file in new folder", |r| r.write("x/y z/new.py", "1\n")),
    ("file emptied", |r| r.write("train.py", "")),
    ("empty file filled", |r| r.write("empty.txt", "text\n")),
    ("file deleted", |r| {
        fs::remove_file(r.folder.join("src/deep/module.py")).unwrap()
    }),
    ("empty file deleted", |r| {
        fs::remove_file(r.folder.join("empty.txt")).unwrap()
    }),
    ("renamed", |r| {
        fs::rename(r.folder.join("numbers.txt"), r.folder.join("src/n.txt")).unwrap()
    }),
    ("renamed and edited", |r| {
        let text = fs::read_to_string(r.folder.join("numbers.txt")).unwrap();
        fs::remove_file(r.folder.join("numbers.txt")).unwrap();
        r.write("other/n.txt", text.replace("line 7\n", "seven\n"));
    }),
    ("copied and edited", |r| {
        let text = fs::read_to_string(r.folder.join("numbers.txt")).unwrap();
        r.write("copy.txt", text.replace("line 50\n", "fifty\n"));
        r.write("numbers.txt", text.replace("line 8\n", "eight\n"));
    }),
    ("names swapped", |r| {
        let swap = |a: &str, b: &str| {
            let text = fs::read(r.folder.join(a)).unwrap();
            fs::rename(r.folder.join(b), r.folder.join(a)).unwrap();
            r.write(b, text);
        };
        swap("numbers.txt", "crlf.txt");
        swap("binary.bin", "repeated.txt");
    }),
    ("made executable", |r| {
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(r.folder.join("run.sh"), mode).unwrap();
    }),
    ("made executable and edited", |r| {
        r.write("run.sh", "echo 2\n");
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(r.folder.join("run.sh"), mode).unwrap();
    }),
    ("new link", |r| {
        symlink("src/deep", r.folder.join("to_deep")).unwrap()
    }),
    ("link moved", |r| {
        fs::remove_file(r.folder.join("link")).unwrap();
        symlink("run.sh", r.folder.join("link")).unwrap();
    }),
    ("link becomes file", |r| {
        fs::remove_file(r.folder.join("link")).unwrap();
        r.write("link", "a file\n");
    }),
    ("file becomes link", |r| {
        fs::remove_file(r.folder.join("run.sh")).unwrap();
        symlink("train.py", r.folder.join("run.sh")).unwrap();
    }),
    ("file becomes folder", |r| {
        fs::remove_file(r.folder.join("run.sh")).unwrap();
        r.write("run.sh/inside", "1\n");
    }),
    ("folder becomes file", |r| {
        fs::remove_dir_all(r.folder.join("src")).unwrap();
        r.write("src", "1\n");
    }),
    ("end of file gets a newline", |r| {
        r.write("no_end.txt", "one\ntwo\n")
    }),
    ("end of file loses its newline", |r| {
        r.write("train.py", "print('training')")
    }),
    ("lines behind no newline", |r| {
        r.write("no_end.txt", "one\ntwo\nthree")
    }),
    ("edited before no newline", |r| {
        r.write("no_end.txt", "1\ntwo")
    }),
    ("CRLF file edited", |r| {
        let text = fs::read_to_string(r.folder.join("crlf.txt")).unwrap();
        r.write("crlf.txt", text.replace("line 9\r\n", "nine\r\nand\r\n"));
    }),
    ("name with blank and accent", |r| {
        r.write("with blank é.txt", "changed\n")
    }),
    ("new name with quotes", |r| {
        r.write("a \"quoted\"\tname", "1\n")
    }),
    ("lines that look like a diff", |r| {
        r.write(
            "train.py",
            "-- a\n++ b\n@@ -1 +1 @@\ndiff --git a/x b/x\n\\ No newline\n\n",
        );
    }),
    ("several at once", |r| {
        r.write("train.py", "2\n");
        r.write("new/one", "1\n");
        fs::remove_file(r.folder.join("empty.txt")).unwrap();
        fs::rename(r.folder.join("numbers.txt"), r.folder.join("moved.txt")).unwrap();
    }),
];

const SHAPES: &[(&str, &[&str])] = &[
    ("plain", &[]),
    ("without context", &["-U0"]),
    ("much context", &["-U100"]),
    ("mnemonic prefixes", &["-c", "diff.mnemonicPrefix=true"]),
    ("no prefix", &["--no-prefix"]),
    (
        "other prefixes",
        &["--src-prefix=before/", "--dst-prefix=after/"],
    ),
    ("no renames", &["--no-renames"]),
    ("copies", &["--find-copies-harder"]),
    ("rewrites", &["--break-rewrites"]),
    ("as the SDK", &["--submodule=diff"]),
    ("unquoted names", &["-c", "core.quotePath=false"]),
    ("patience", &["--patience"]),
];

/// The repository's uncommitted changes, new files included.
fn diff_of(repo: &TestRepo, shape: &[&str]) -> String {
    repo.git(&["add", "--all"]);
    let (config, options): (&[&str], &[&str]) = match shape {
        ["-c", ..] => (shape, &[]),
        _ => (&[], shape),
    };
    let args = [
        config,
        &["diff", "--cached", "--binary"],
        options,
        &["HEAD"],
    ]
    .concat();
    repo.git(&args)
}

/// Applies `diff` to a checkout of `repo`'s commit.
fn applied(host: &Host, repo: &TestRepo, diff: &str) -> Result<Sources, SourceError> {
    host.fetch(&Script {
        version_num: repo.git(&["rev-parse", "HEAD"]).trim().to_owned(),
        entry_point: "-m anything".into(),
        diff: diff.to_owned(),
        ..script(&repo.url())
    })
}

#[test]
fn every_shape_of_diff_gives_the_tree_it_was_made_from() {
    for (edit_name, edit) in EDITS {
        let repo = base();
        edit(&repo);
        let host = Host::new();
        for (shape_name, shape) in SHAPES {
            let diff = diff_of(&repo, shape);
            let case = format!("{edit_name}, {shape_name}");
            let sources = applied(&host, &repo, &diff)
                .unwrap_or_else(|error| panic!("{case}: {error}\n{diff}"));
            assert!(
                tree(&sources.root) == tree(&repo.folder),
                "{case}: differs\n{diff}"
            );
        }
    }
}

#[test]
fn a_diff_that_lost_its_ends_applies_all_the_same() {
    for (name, edit) in EDITS {
        let repo = base();
        edit(&repo);
        let host = Host::new();
        let diff = diff_of(&repo, &[]);
        // Trimmed text, as forms leave it; not where the last line is a blank that counts.
        let sources = applied(&host, &repo, diff.trim())
            .unwrap_or_else(|error| panic!("{name}: {error}\n{diff}"));
        assert!(
            tree(&sources.root) == tree(&repo.folder),
            "{name}: differs\n{diff}"
        );
    }
}

#[test]
fn changes_that_are_there_already_are_no_error() {
    for (name, edit) in EDITS {
        let repo = base();
        edit(&repo);
        let diff = diff_of(&repo, &[]);
        repo.commit("changed");
        let host = Host::new();
        let sources =
            applied(&host, &repo, &diff).unwrap_or_else(|error| panic!("{name}: {error}\n{diff}"));
        assert!(
            tree(&sources.root) == tree(&repo.folder),
            "{name}: differs\n{diff}"
        );
    }
}

#[test]
fn hunks_are_found_where_git_finds_them() {
    let repo = base();
    let numbers = fs::read_to_string(repo.folder.join("numbers.txt")).unwrap();
    repo.write(
        "numbers.txt",
        numbers
            .replace("line 20\n", "twenty\n")
            .replace("line 40\n", ""),
    );
    let diff = diff_of(&repo, &[]);
    repo.git(&["reset", "--quiet", "--hard"]);
    // The file moved on: lines above, between and below.
    let moved = format!("top\n{}", numbers.replace("line 30\n", "line 30\nx\ny\n")) + "end\n";
    repo.write("numbers.txt", moved);
    repo.commit("moved on");
    let host = Host::new();
    let sources = applied(&host, &repo, &diff).unwrap();
    git_apply(&repo, &diff);
    assert_eq!(tree(&sources.root), tree(&repo.folder));
}

#[test]
fn rewritten_line_ends_do_not_matter() {
    let repo = base();
    let edit = |name: &str| {
        let text = fs::read_to_string(repo.folder.join(name)).unwrap();
        let line = text.lines().nth(9).unwrap();
        let end = if text.contains('\r') { "\r\n" } else { "\n" };
        repo.write(
            name,
            text.replace(&format!("{line}{end}"), &format!("ten{end}more{end}")),
        );
    };
    edit("numbers.txt");
    edit("crlf.txt");
    let diff = diff_of(&repo, &[]);
    let host = Host::new();
    for changed in [
        diff.replace('\r', ""),
        diff.replace("\r\n", "\n").replace('\n', "\r\n"),
    ] {
        let sources = applied(&host, &repo, &changed).unwrap();
        assert_eq!(tree(&sources.root), tree(&repo.folder));
    }
}

#[test]
fn diffs_without_gits_header_apply() {
    let repo = base();
    let hunk = "@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n";
    for header in [
        "--- a/src/deep/module.py\n+++ b/src/deep/module.py\n",
        "--- src/deep/module.py\t2024-01-01 00:00:00\n+++ src/deep/module.py\t2024-01-02\n",
        "diff -u src/deep/module.py src/deep/module.py\n--- src/deep/module.py\n+++ src/deep/module.py\n",
    ] {
        let host = Host::new();
        let sources = applied(&host, &repo, &format!("{header}{hunk}")).unwrap();
        let text = fs::read_to_string(sources.root.join("src/deep/module.py")).unwrap();
        assert_eq!(text, "def f():\n    return 2\n", "{header}");
    }
    let new = "--- /dev/null\n+++ b/x/new.py\n@@ -0,0 +1 @@\n+1\n";
    let host = Host::new();
    let sources = applied(&host, &repo, new).unwrap();
    assert_eq!(
        fs::read_to_string(sources.root.join("x/new.py")).unwrap(),
        "1\n"
    );
}

#[test]
fn changes_in_submodules_apply_there() {
    let inner = TestRepo::new();
    let outer = base();
    outer.git(&["submodule", "--quiet", "add", &inner.url(), "lib/inner"]);
    outer.commit("with submodule");
    outer.write("lib/inner/train.py", "print('changed')\n");
    outer.write("train.py", "import lib\n");
    let diff = outer.git(&["diff", "--submodule=diff", "HEAD"]);
    assert!(diff.contains("Submodule lib/inner"), "{diff}");
    let host = Host::new();
    let sources = applied(&host, &outer, &diff).unwrap();
    assert_eq!(tree(&sources.root), tree(&outer.folder));
    // A commit of its own in the submodule: only the pointer is in the plain diff.
    outer.write("train.py", "print('training')\n");
    git_in(
        &outer.folder.join("lib/inner"),
        &["commit", "--quiet", "-am", "own"],
    );
    let host = Host::new();
    applied(&host, &outer, &outer.git(&["diff", "HEAD"])).unwrap();
    assert_says(&host.said(), &["Warning", "submodule lib/inner"]);
}

#[test]
fn a_submodule_with_edits_that_are_not_in_the_diff_is_pointed_out() {
    let inner = TestRepo::new();
    let outer = base();
    outer.git(&["submodule", "--quiet", "add", &inner.url(), "lib/inner"]);
    outer.commit("with submodule");
    outer.write("lib/inner/train.py", "print('changed')\n");
    outer.write("train.py", "import lib\n");
    let diff = outer.git(&["diff", "HEAD"]);
    assert!(diff.contains("-dirty"), "{diff}");
    let host = Host::new();
    let sources = applied(&host, &outer, &diff).unwrap();
    assert_says(&host.said(), &["Warning", "submodule lib/inner"]);
    let text = fs::read_to_string(sources.root.join("train.py")).unwrap();
    assert_eq!(text, "import lib\n");
}

#[test]
fn what_clearml_task_adds_to_a_repository_applies() {
    let (repo, host) = (base(), Host::new());
    // No `new file mode`: clearml-task cannot know whether the repository has one.
    let diff = "diff --git a/requirements.txt b/requirements.txt\n--- a/requirements.txt\n\
                +++ b/requirements.txt\n@@ -0,0 +1,1 @@\n+clearml\n\
                diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n\
                @@ -0,0 +1,4 @@\n+try: from allegroai import Task\n\
                +except ImportError: from clearml import Task\n\
                +(__name__ != \"__main__\") or Task.init()\n+\n";
    let sources = applied(&host, &repo, diff).unwrap();
    let read = |name: &str| fs::read_to_string(sources.root.join(name)).unwrap();
    assert_eq!(read("requirements.txt"), "clearml\n");
    assert!(read("train.py").ends_with("Task.init()\n\nprint('training')\n"));

    repo.write("requirements.txt", "six\n");
    repo.commit("with requirements");
    let sources = applied(&host, &repo, diff).unwrap();
    let text = fs::read_to_string(sources.root.join("requirements.txt")).unwrap();
    assert_eq!(text, "clearml\nsix\n");
}

#[test]
fn what_does_not_fit_changes_nothing_and_is_named() {
    let repo = base();
    repo.write("train.py", "print('changed')\n");
    repo.write("numbers.txt", "line 1\nother\nline 3\n");
    repo.write("new.txt", "1\n");
    let good = diff_of(&repo, &[]);
    repo.git(&["reset", "--quiet", "--hard"]);
    repo.write("numbers.txt", "nothing\nlike\nthat\n");
    repo.commit("changed otherwise");
    let host = Host::new();
    let request = host.request(&Script {
        entry_point: "train.py".into(),
        diff: good,
        ..script(&repo.url())
    });
    let refusal = host.fetch_request(&request).unwrap_err().to_string();
    assert_says(
        &refusal,
        &["numbers.txt: hunk 1", "nothing was changed", "Next:"],
    );
    assert_eq!(
        tree(&request.work_dir.join("task_repository/up")),
        tree(&repo.folder)
    );
}

#[test]
fn binary_changes_without_their_content_are_refused_by_name() {
    let repo = base();
    repo.write("train.py", "2\n");
    repo.write("binary.bin", [0, 1, 2, 0, 255]);
    let diff = repo.git(&["diff", "HEAD"]);
    let refusal = applied(&Host::new(), &repo, &diff).unwrap_err().to_string();
    assert_says(&refusal, &["binary.bin", "not recorded"]);
}

#[test]
fn no_path_leads_out_of_the_checkout() {
    let repo = base();
    symlink("/tmp", repo.folder.join("outside")).unwrap();
    symlink("src", repo.folder.join("inside")).unwrap();
    repo.commit("links");
    let host = Host::new();
    let new_file = |path: &str| {
        format!(
            "diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n\
             @@ -0,0 +1 @@\n+bad\n"
        )
    };
    for (path, said) in [
        ("../evil.txt", "outside"),
        ("x/../../evil.txt", "outside"),
        ("/tmp/evil.txt", "outside"),
        (".git/hooks/evil", "git's own"),
        ("src/.GIT/config", "git's own"),
        ("outside/evil.txt", "behind a symbolic link"),
        ("inside/evil.txt", "behind a symbolic link"),
    ] {
        let refusal = applied(&host, &repo, &new_file(path))
            .unwrap_err()
            .to_string();
        assert_says(&refusal, &[said]);
    }
    let link = "diff --git a/out b/out\nnew file mode 120000\n--- /dev/null\n+++ b/out\n\
                @@ -0,0 +1 @@\n+/tmp\n\\ No newline at end of file\n";
    let refusal = applied(&host, &repo, &format!("{link}{}", new_file("out/evil.txt")));
    assert_says(
        &refusal.unwrap_err().to_string(),
        &["behind a symbolic link"],
    );
    assert!(!Path::new("/tmp/evil.txt").exists());
}

/// Random edits of random files in many rounds; the seed is fixed, so a failure comes again.
#[test]
fn random_edits_are_carried_over_exactly() {
    let mut random = Random(0x5eed);
    let host = Host::new();
    let repo = base();
    for round in 0..60 {
        repo.git(&["reset", "--quiet", "--hard"]);
        for name in [
            "numbers.txt",
            "repeated.txt",
            "crlf.txt",
            "no_end.txt",
            "made.txt",
        ] {
            let text = fs::read_to_string(repo.folder.join(name)).unwrap_or_default();
            let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
            for _ in 0..random.below(6) {
                let at = random.below(lines.len() + 1);
                match random.below(4) {
                    0 if at < lines.len() => drop(lines.remove(at)),
                    1 if at < lines.len() => lines[at] = format!("changed {round}\n"),
                    2 => lines.insert(
                        at,
                        ["a\n", "b\n", "\n", "  \n", "x\r\n"][random.below(5)].into(),
                    ),
                    _ if at > 1 => lines.swap(at - 1, at - 2),
                    _ => {}
                }
            }
            let mut text = lines.concat();
            if random.below(6) == 0 {
                text.truncate(text.trim_end().len());
            }
            repo.write(name, text);
        }
        let (_, shape) = SHAPES[random.below(SHAPES.len())];
        let diff = diff_of(&repo, shape);
        if diff.is_empty() {
            continue;
        }
        let sources = applied(&host, &repo, &diff)
            .unwrap_or_else(|error| panic!("round {round}: {error}\n{diff}"));
        assert!(
            tree(&sources.root) == tree(&repo.folder),
            "round {round}: differs\n{diff}"
        );
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn git_apply(repo: &TestRepo, diff: &str) {
    let patch = repo.served_root().join("patch");
    fs::write(&patch, diff).unwrap();
    let status = git_command(
        &repo.folder,
        &["apply", "--unidiff-zero", patch.to_str().unwrap()],
    )
    .status()
    .unwrap();
    assert!(status.success());
}
