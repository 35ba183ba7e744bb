//! A repository with files of many kinds, edits of it, and the shapes in which `git diff` writes them.

// Not every test file uses all of it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use clearml_agent::source::{SourceError, Sources};
use clearml_agent::task::Script;

use crate::git_http::TestRepo;
use crate::source_host::{Host, script};

/// A committed state with files of many kinds.
pub fn base() -> TestRepo {
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

pub type Edit = fn(&TestRepo);

pub const EDITS: &[(&str, Edit)] = &[
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

pub const SHAPES: &[(&str, &[&str])] = &[
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
pub fn diff_of(repo: &TestRepo, shape: &[&str]) -> String {
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
pub fn applied(host: &Host, repo: &TestRepo, diff: &str) -> Result<Sources, SourceError> {
    host.fetch(&Script {
        version_num: repo.git(&["rev-parse", "HEAD"]).trim().to_owned(),
        entry_point: "-m anything".into(),
        diff: diff.to_owned(),
        ..script(&repo.url())
    })
}
