//! Uncommitted changes: what `git diff` writes is applied to a fresh checkout and must give the
//! very tree that it was taken from.

// A test fails by panicking, in its helpers too.
#![allow(clippy::unwrap_used)]

#[path = "common/git_http.rs"]
mod git_http;
#[path = "common/source_edits.rs"]
mod source_edits;
#[path = "common/source_host.rs"]
mod source_host;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use clearml_agent::task::Script;
use git_http::{TestRepo, git_command, git_in, tree};
use source_edits::{EDITS, SHAPES, applied, base, diff_of};
use source_host::{Host, assert_says, script};

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

#[test]
fn coloured_changes_are_changes() {
    for (name, edit) in EDITS {
        let repo = base();
        edit(&repo);
        let diff = diff_of(&repo, &["--color=always"]);
        assert!(diff.starts_with('\x1b'), "{diff}");
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
fn changes_are_merged_with_what_the_branch_has_become() {
    let repo = base();
    let numbers = fs::read_to_string(repo.folder.join("numbers.txt")).unwrap();
    repo.write("numbers.txt", numbers.replace("line 20\n", "twenty\n"));
    let diff = diff_of(&repo, &[]);
    repo.git(&["reset", "--quiet", "--hard"]);
    // In the context of the change, but not in the changed line.
    repo.write("numbers.txt", numbers.replace("line 17\n", "seventeen\n"));
    repo.commit("moved on");
    let host = Host::new();
    let sources = applied(&host, &repo, &diff).unwrap();
    let text = fs::read_to_string(sources.root.join("numbers.txt")).unwrap();
    let expected = numbers
        .replace("line 17\n", "seventeen\n")
        .replace("line 20\n", "twenty\n");
    assert_eq!(text, expected);
    assert_says(&host.said(), &["numbers.txt is not at the state", "merged"]);
    // Both have changed the same line.
    repo.write("numbers.txt", numbers.replace("line 20\n", "other\n"));
    let commit = repo.commit("in the way");
    let refusal = applied(&host, &repo, &diff).unwrap_err().to_string();
    assert_says(
        &refusal,
        &["numbers.txt: hunk 1", &commit, "is on the remote"],
    );
}

/// Runs this test program's test `role` again, in a mount namespace of its own where `dir` is a file
/// system of `size`; `None` where this machine lets nobody have one.
fn on_a_small_disk(role: &str, dir: &Path, size: &str) -> Option<std::process::Output> {
    let unshare = [["-m", "--"], ["-rm", "--"]].into_iter().find(|flags| {
        let mut probe = std::process::Command::new("unshare");
        probe.args(flags).arg("true");
        probe.output().is_ok_and(|output| output.status.success())
    })?;
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={size} none \"$1\" && exec \"$2\" --exact {role} --nocapture"
    );
    let output = std::process::Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &script, "sh"])
        .args([dir, &program])
        .env("ROLE_DIR", dir)
        .output()
        .unwrap();
    Some(output)
}

#[test]
fn a_full_disk_leaves_the_checkout_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let Some(output) = on_a_small_disk("role_full_disk", dir.path(), "1m") else {
        println!("not tried: this machine allows no mount namespace");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn role_full_disk() {
    let Ok(dir) = std::env::var("ROLE_DIR") else {
        return;
    };
    let repo = base();
    let before = tree(&repo.folder);
    repo.write("train.py", "print('changed')\n");
    fs::remove_file(repo.folder.join("run.sh")).unwrap();
    repo.write("z_large.txt", "line\n".repeat(400_000));
    let diff = diff_of(&repo, &[]);
    repo.git(&["reset", "--quiet", "--hard"]);
    let host = Host::new();
    let mut request = host.request(&Script {
        diff,
        ..script(&repo.url())
    });
    request.work_dir = Path::new(&dir).to_owned();
    let refusal = host.fetch_request(&request).unwrap_err().to_string();
    assert_says(
        &refusal,
        &["nothing was changed", "z_large.txt", "No space left"],
    );
    assert!(tree(&Path::new(&dir).join("task_repository/up")) == before);
}
