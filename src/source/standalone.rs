//! Scripts that are recorded in the task itself (notebooks, single files), not in a repository.

use std::fs;
use std::path::Path;

use super::diff::without_colours;
use super::entry_point::{first_word, is_script};
use super::error::SourceError;
use crate::task::Script;

/// What `script.diff` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    None,
    /// Changes to files of the repository.
    Patch,
    /// The text of the script itself.
    Script,
    /// The SDK's note in place of changes that are too large for the task.
    TooLarge,
}

/// The SDK's note begins with this.
const TOO_LARGE: &str = "# warning! git diff too large to store";

impl Changes {
    pub(super) fn of(diff: &str) -> Changes {
        let text = without_colours(diff);
        let mut lines = text.trim_start().lines().map(str::to_lowercase);
        let first = lines.next().unwrap_or_default();
        let second = lines.next().unwrap_or_default();
        let (first, second) = (first.as_str(), second.as_str());
        if first.is_empty() {
            Changes::None
        } else if first.starts_with(TOO_LARGE) {
            Changes::TooLarge
        } else if first.starts_with("diff ")
            || (is_letter_head(first) && has_changes_below(&text))
            || (first.starts_with("--- ") && second.starts_with("+++ "))
            || (first.starts_with("submodule ") && is_submodule_header(first, second))
        {
            Changes::Patch
        } else {
            Changes::Script
        }
    }
}

fn is_submodule_header(first: &str, second: &str) -> bool {
    second.starts_with("diff ")
        || second.starts_with("submodule ")
        || first.ends_with(" contains modified content")
        || first.ends_with(" contains untracked content")
        || first.contains("..")
}

/// `git format-patch` and `git show` write a letter above the changes, svn a line of its own.
fn is_letter_head(first: &str) -> bool {
    let mut words = first.split_whitespace();
    let id = |word: &str| word.len() >= 7 && word.bytes().all(|b| b.is_ascii_hexdigit());
    match words.next() {
        Some("from" | "commit") => words.next().is_some_and(id),
        Some("index:") => true,
        _ => false,
    }
}

fn has_changes_below(text: &str) -> bool {
    let mut below = text.lines().zip(text.lines().skip(1));
    below.any(|(line, next)| {
        next.starts_with("diff --git ") || (line.starts_with("--- ") && next.starts_with("+++ "))
    })
}

/// What a text can be that is no diff, in a task whose code is a repository's.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InRepository {
    /// The entry script (the SDK records notebooks so): it takes the place of the repository's.
    Script,
    /// Comments alone, as somebody leaves them who cleared the changes.
    Remarks,
    Neither {
        first_line: String,
    },
}

impl InRepository {
    pub(super) fn of(script: &Script) -> InRepository {
        let text = script.diff.as_str();
        let lines = || text.lines().map(str::trim_end);
        let is_code = |line: &&str| !line.is_empty() && !line.trim_start().starts_with('#');
        let Some(first) = lines().find(is_code) else {
            return match lines().any(|line| line.starts_with("#!")) {
                true => InRepository::Script,
                false => InRepository::Remarks,
            };
        };
        let part_of_a_diff = ["@@ -", "--- ", "+++ ", "<<<<<<<", "index "];
        let can_be = !part_of_a_diff.iter().any(|begin| first.starts_with(begin))
            && (is_shell(script) || (can_begin_python(first) && does_something(text)));
        match can_be {
            true => InRepository::Script,
            false => InRepository::Neither {
                first_line: first.chars().take(80).collect(),
            },
        }
    }
}

/// Whether Python reads this as the first line of code: two plain words in a row it does not.
fn can_begin_python(line: &str) -> bool {
    const BEFORE: [&str; 24] = [
        "import", "from", "def", "class", "if", "for", "while", "with", "async", "await", "assert",
        "raise", "return", "yield", "del", "global", "nonlocal", "lambda", "not", "match", "case",
        "type", "print", "exec",
    ];
    const BETWEEN: [&str; 7] = ["is", "in", "and", "or", "not", "if", "for"];
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let line = line.trim_start();
    let mut words = line.split_whitespace();
    let first = words.next().unwrap_or_default();
    // Of the second word only its beginning: `import os,sys`.
    let second = words.next().unwrap_or_default();
    let second = second.split(|c| !is_name(c)).next().unwrap_or_default();
    !line.starts_with('<')
        && (!first.chars().all(is_name)
            || second.is_empty()
            || BEFORE.contains(&first)
            || BETWEEN.contains(&second))
}

/// A Python program with no call, no assignment and no import does nothing that anybody records.
fn does_something(text: &str) -> bool {
    const STATEMENTS: [&str; 5] = ["import", "from", "raise", "assert", "print"];
    text.lines().any(|line| {
        let first = line.split_whitespace().next().unwrap_or_default();
        // A notebook in JSON is converted.
        line.contains(['(', '=']) || first.starts_with('{') || STATEMENTS.contains(&first)
    })
}

fn is_shell(script: &Script) -> bool {
    matches!(
        script.binary.rsplit('/').next().unwrap_or_default().trim(),
        "bash" | "zsh" | "sh"
    )
}

/// The name of the file for a script's text, and the entry point that runs it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ScriptFile {
    /// Relative to the working directory.
    pub(super) name: String,
    pub(super) entry_point: String,
}

impl ScriptFile {
    /// `entry_point` and `working_dir` are the normalised ones. `has_folder` tells whether a folder
    /// is in the working directory: a script of a repository imports what lies beside it.
    pub(super) fn of(
        script: &Script,
        entry_point: &str,
        working_dir: &str,
        has_folder: &dyn Fn(&str) -> bool,
    ) -> ScriptFile {
        let untitled = if is_shell(script) {
            "untitled.sh"
        } else {
            "untitled.py"
        };
        let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        if entry_point.is_empty() {
            let name = untitled.to_owned();
            return ScriptFile {
                entry_point: name.clone(),
                name,
            };
        }
        if entry_point.starts_with("-m ") || entry_point.starts_with("-c ") {
            // `dir:file` says which file the module is.
            let named = working_dir.split_once(':').map(|(_, file)| base(file));
            let name = named.filter(|name| !name.is_empty());
            return ScriptFile {
                name: name.unwrap_or_else(|| untitled.to_owned()),
                entry_point: entry_point.to_owned(),
            };
        }
        match first_word(entry_point) {
            Some((word, arguments)) if is_script(&word) => {
                let mut name = match word.rsplit_once('/') {
                    Some((folder, _)) if has_folder(folder) => word,
                    _ => base(&word),
                };
                // Python text under a notebook's name runs as what it is.
                if let Some(stem) = name.strip_suffix(".ipynb")
                    && !script.diff.trim_start().starts_with('{')
                {
                    name = format!("{stem}.py");
                }
                let entry_point = match arguments.trim().is_empty() {
                    true => name.clone(),
                    false => format!("{}{arguments}", quoted(&name)),
                };
                ScriptFile { name, entry_point }
            }
            _ => {
                let name = base(entry_point);
                let name = if name.is_empty() {
                    untitled.to_owned()
                } else {
                    name
                };
                ScriptFile {
                    entry_point: name.clone(),
                    name,
                }
            }
        }
    }

    /// Whether it takes the place of another text.
    pub(super) fn write(&self, folder: &Path, text: &str) -> Result<bool, SourceError> {
        let path = folder.join(&self.name);
        let replaces = fs::read(&path).is_ok_and(|earlier| earlier != text.as_bytes());
        // A link in a repository could lead anywhere.
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_symlink()) {
            fs::remove_file(&path).map_err(SourceError::io("replacing", &path))?;
        }
        fs::write(&path, text).map_err(SourceError::io("writing", &path))?;
        Ok(replaces)
    }
}

/// `name` as one word for a shell-like split.
fn quoted(name: &str) -> String {
    match shlex::try_quote(name) {
        Ok(quoted) => quoted.into_owned(),
        Err(_) => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_from_scripts() {
        for (diff, kind) in [
            ("", Changes::None),
            (" \n\n", Changes::None),
            ("\n diff --git a/x b/x\n", Changes::Patch),
            (
                "Submodule s contains modified content\ndiff --git a/x b/x",
                Changes::Patch,
            ),
            (
                "Submodule s 1234567..89abcde:\n  > message\n",
                Changes::Patch,
            ),
            ("--- a/x\n+++ b/x\n@@ -1 +1 @@\n", Changes::Patch),
            (
                "# WARNING! git diff too large to store, clear this section\n",
                Changes::TooLarge,
            ),
            (
                "\x1b[1mdiff --git a/x b/x\x1b[m\n\x1b[1mindex 1..2 100644\x1b[m\n",
                Changes::Patch,
            ),
            ("\x1b[32mimport os\x1b[m\n", Changes::Script),
            ("import os\n", Changes::Script),
            ("difference = 1\n", Changes::Script),
            ("# only a remark\n", Changes::Script),
            ("submodule = 1\nprint(submodule)", Changes::Script),
            (
                "From 0123456789abcdef0123456789abcdef01234567 Mon Sep 17 00:00:00 2001\n\
                 Subject: x\n\ndiff --git a/x b/x\n",
                Changes::Patch,
            ),
            (
                "commit 0123456\nAuthor: a\n\ndiff --git a/x b/x\n",
                Changes::Patch,
            ),
            (
                "Index: x\n======\n--- x\t(revision 1)\n+++ x\n",
                Changes::Patch,
            ),
            ("from os import path\n", Changes::Script),
            ("garbage", Changes::Script),
        ] {
            assert_eq!(Changes::of(diff), kind, "{diff:?}");
        }
    }

    #[test]
    fn what_is_no_diff_is_a_script_remarks_or_neither() {
        let of = |diff: &str, binary: &str| {
            let script = Script {
                diff: diff.into(),
                binary: binary.into(),
                ..Script::default()
            };
            match InRepository::of(&script) {
                InRepository::Script => "script",
                InRepository::Remarks => "remarks",
                InRepository::Neither { .. } => "neither",
            }
        };
        for (diff, expected) in [
            ("import os\n", "script"),
            (
                "# coding: utf-8\n\n\"\"\"Some words.\"\"\"\nprint(1)\n",
                "script",
            ),
            ("from clearml import Task\nTask.init()\n", "script"),
            ("x = 1\n", "script"),
            ("async def main(): pass\nmain()", "script"),
            ("import os,sys\n", "script"),
            ("%matplotlib inline\nx = 1", "script"),
            ("'''text'''\nraise SystemExit", "script"),
            ("{\"cells\": [{\"source\": \"print(1)\"}]}", "script"),
            ("{\n \"cells\": []\n}", "script"),
            ("# cleared\n\n", "remarks"),
            ("garbage", "neither"),
            ("this is garbage", "neither"),
            ("Please see the wiki (page 3)\n", "neither"),
            ("<html>\n<body class=\"x\">", "neither"),
            ("@@ -1 +1 @@\n-a\n+b = 1\n", "neither"),
            ("+++ b/train.py\n@@ -1 +1 @@\n+f(x)\n", "neither"),
        ] {
            assert_eq!(of(diff, "python3.11"), expected, "{diff:?}");
        }
        for (diff, expected) in [
            ("make all\n", "script"),
            ("#!/bin/sh\n", "script"),
            ("# nothing\n", "remarks"),
            ("@@ -1 +1 @@\n", "neither"),
        ] {
            assert_eq!(of(diff, "/bin/bash"), expected, "{diff:?}");
        }
    }

    #[test]
    fn names_of_recorded_scripts() {
        for (entry, dir, binary, name, run) in [
            ("hello.py", "", "python3", "hello.py", "hello.py"),
            ("", "", "python3", "untitled.py", "untitled.py"),
            ("", "", "/bin/bash", "untitled.sh", "untitled.sh"),
            ("a/b/c.py", "", "", "c.py", "c.py"),
            ("a/c.py --x 'y z'", "", "", "c.py", "c.py --x 'y z'"),
            ("here/c.py", "", "", "here/c.py", "here/c.py"),
            ("here/nb.ipynb", "", "", "here/nb.py", "here/nb.py"),
            ("'my file.py' -v", "", "", "my file.py", "'my file.py' -v"),
            ("my file.py", "", "", "my file.py", "my file.py"),
            ("nb.ipynb", "", "", "nb.py", "nb.py"),
            ("run.sh 1", "", "bash", "run.sh", "run.sh 1"),
            ("-m mod", "", "", "untitled.py", "-m mod"),
            ("-m mod", "d:x/mod.py", "", "mod.py", "-m mod"),
            ("train", "", "", "train", "train"),
        ] {
            let script = Script {
                binary: binary.into(),
                diff: "print(1)".into(),
                ..Script::default()
            };
            let found = ScriptFile::of(&script, entry, dir, &|folder| folder == "here");
            assert_eq!(
                (found.name.as_str(), found.entry_point.as_str()),
                (name, run),
                "{entry}"
            );
        }
    }
}
