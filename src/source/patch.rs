//! A task's uncommitted changes as values: what `diff` reads and `apply` makes.

use super::binary::Payload;

/// One file's changes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FilePatch {
    /// Path in the repository before the change; `None` for a new file.
    pub(super) old: Option<String>,
    /// Path after the change; `None` for a deleted file.
    pub(super) new: Option<String>,
    /// The old file stays (a copy) though the paths differ.
    pub(super) copied: bool,
    pub(super) old_mode: Option<Mode>,
    pub(super) new_mode: Option<Mode>,
    /// The diff states (by the blob's id) that the file is empty on this side. A hunk that only
    /// adds lines at the start would fit on any file otherwise.
    pub(super) old_empty: bool,
    pub(super) new_empty: bool,
    /// The id of the old content, as far as the diff states it: what the changes were made on.
    pub(super) old_blob: Option<String>,
    pub(super) body: Body,
    /// Line of the diff at which this file's part begins, from 1.
    pub(super) line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    File,
    Executable,
    Symlink,
    Submodule,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Body {
    /// Nothing but names and modes, and hunks of text.
    Hunks(Vec<Hunk>),
    /// `GIT binary patch`: forward, and backward where it is given.
    Binary(Payload, Option<Payload>),
    /// `Binary files a and b differ`: the content was not recorded.
    BinaryWithoutContent,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Hunk {
    pub(super) old_start: usize,
    pub(super) new_start: usize,
    pub(super) lines: Vec<Line>,
    /// The `@@` line's number in the diff, from 1.
    pub(super) at: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) kind: Kind,
    /// The line with its newline, without one where the file ends so.
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Context,
    Removed,
    Added,
}

impl FilePatch {
    /// The name that a person knows the file by.
    pub(super) fn name(&self) -> &str {
        self.new
            .as_deref()
            .or(self.old.as_deref())
            .unwrap_or_default()
    }

    /// Whether lines are added to a file of which the diff holds nothing. It may be one that is not
    /// there yet: so `clearml-task` has `clearml` added to the `requirements.txt` of any repository.
    pub(super) fn only_adds(&self) -> bool {
        let added = |hunk: &Hunk| hunk.lines.iter().all(|line| line.kind == Kind::Added);
        matches!(&self.body, Body::Hunks(hunks) if !hunks.is_empty() && hunks.iter().all(added))
    }

    /// The change that takes this one back.
    pub(super) fn reversed(&self) -> FilePatch {
        let body = match &self.body {
            Body::Hunks(hunks) => Body::Hunks(hunks.iter().map(Hunk::reversed).collect()),
            Body::Binary(forward, Some(backward)) => {
                Body::Binary(backward.clone(), Some(forward.clone()))
            }
            Body::Binary(_, None) | Body::BinaryWithoutContent => Body::BinaryWithoutContent,
        };
        // Taking a copy back removes it.
        let (old, new) = match self.copied {
            true => (self.new.clone(), None),
            false => (self.new.clone(), self.old.clone()),
        };
        FilePatch {
            old,
            new,
            copied: false,
            old_mode: self.new_mode,
            new_mode: self.old_mode,
            old_empty: self.new_empty,
            new_empty: self.old_empty,
            old_blob: None,
            body,
            line: self.line,
        }
    }
}

impl Hunk {
    fn reversed(&self) -> Hunk {
        let lines = self.lines.iter().map(|line| Line {
            kind: match line.kind {
                Kind::Context => Kind::Context,
                Kind::Removed => Kind::Added,
                Kind::Added => Kind::Removed,
            },
            text: line.text.clone(),
        });
        Hunk {
            old_start: self.new_start,
            new_start: self.old_start,
            lines: lines.collect(),
            at: self.at,
        }
    }
}
