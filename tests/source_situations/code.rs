//! What is in the checkout: submodules, files as they are meant, changes, the script.

use clearml_agent::task::Script;

use crate::access::with_login;
use crate::source_host::script;
use crate::{Commit, Files, Refused, Situation, TRAIN, open, tip};

fn entry(script: Script, working_dir: &str, entry_point: &str) -> Script {
    Script {
        working_dir: working_dir.to_owned(),
        entry_point: entry_point.to_owned(),
        ..script
    }
}

fn diff(script: Script, diff: &str) -> Script {
    Script {
        diff: diff.to_owned(),
        ..script
    }
}

const LIB: &[(&str, &str)] = &[("lib/train.py", "print('training')\n")];
const NESTED: &[(&str, &str)] = &[("lib/lib/train.py", "print('training')\n")];
const CHANGED: &[(&str, &str)] = &[("train.py", "print('changed')\n")];
const RECORDED: &[(&str, &str)] = &[("train.py", "print(2)\n")];

const CHANGE: &str = "diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n\
                      @@ -1 +1 @@\n-print('training')\n+print('changed')\n";
const OTHER: &str = "diff --git a/train.py b/train.py\n--- a/train.py\n+++ b/train.py\n\
                     @@ -1 +1 @@\n-print('something')\n+print('changed')\n";
const LETTER: &str = "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n\
                      Subject: [PATCH] change\n\n---\n train.py | 2 +-\n\n";

pub const SITUATIONS: &[Situation] = &[
    (
        "a relative submodule",
        |w, _| script(&w.open.url("relative.git")),
        Files(LIB),
    ),
    (
        "a relative submodule behind a login",
        |w, _| script(&with_login(&w.closed, "relative.git")),
        Files(LIB),
    ),
    (
        "a relative submodule over ssh",
        |w, _| script(&w.ssh.url(&w.root().join("relative.git"))),
        Files(LIB),
    ),
    (
        "a submodule in a submodule",
        |w, _| script(&w.open.url("nested.git")),
        Files(NESTED),
    ),
    (
        "a submodule in a submodule behind a login",
        |w, _| script(&with_login(&w.closed, "nested.git")),
        Files(NESTED),
    ),
    (
        "a submodule that is gone",
        |w, _| script(&w.open.url("broken.git")),
        Refused(&["submodule lib", "not found"]),
    ),
    (
        "a submodule that nobody wants",
        |w, _| script(&w.open.url("unused.git")),
        Files(TRAIN),
    ),
    (
        "line ends by .gitattributes",
        |w, _| open(w),
        Files(&[("run.bat", "echo 1\r\necho 2\r\n")]),
    ),
    (
        "a link",
        |w, _| open(w),
        Files(&[("link.py", "print(1)\n")]),
    ),
    (
        "a working directory that is not there",
        |w, _| entry(open(w), "srcs", "job.py"),
        Refused(&["did you mean src?"]),
    ),
    (
        "an entry point that is not there",
        |w, _| entry(open(w), "", "job.py"),
        Refused(&["did you mean src/job.py?"]),
    ),
    (
        "changes",
        |w, _| diff(open(w), CHANGE),
        Commit(tip, CHANGED),
    ),
    (
        "changes in a letter",
        |w, _| diff(open(w), &format!("{LETTER}{CHANGE}")),
        Commit(tip, CHANGED),
    ),
    (
        "changes that do not fit",
        |w, _| diff(open(w), OTHER),
        Refused(&["train.py: hunk 1", "is on the remote"]),
    ),
    (
        "remarks for changes",
        |w, _| diff(open(w), "# cleared\n"),
        Commit(tip, TRAIN),
    ),
    (
        "neither changes nor a script",
        |w, _| diff(open(w), "garbage"),
        Refused(&[
            "neither a diff",
            "nor a script",
            "\"garbage\"",
            "Next: clear",
        ]),
    ),
    (
        "a part of changes",
        |w, _| {
            diff(
                open(w),
                "@@ -1 +1 @@\n-print('training')\n+print('changed')\n",
            )
        },
        Refused(&["neither a diff", "\"@@ -1 +1 @@\""]),
    ),
    (
        "a script in a repository",
        |w, _| diff(open(w), "print(2)\n"),
        Commit(tip, RECORDED),
    ),
    (
        "a script alone",
        |_, _| diff(script(""), "print(2)\n"),
        Files(RECORDED),
    ),
    (
        "neither changes nor a script, and no repository",
        |_, _| diff(script(""), "garbage"),
        Files(&[("train.py", "garbage")]),
    ),
    (
        "nothing at all",
        |_, _| script(""),
        Refused(&["nothing to run"]),
    ),
];
