//! Applies uncommitted changes to a checkout: everything is worked out in memory first, so that
//! a diff that does not fit changes nothing. Hunks are found where their context is, as
//! `git apply` finds them, also when the line numbers are off.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use super::binary::{Payload, apply_delta};
use super::files::{FileState, Outcome, exists, read, write};
use super::filters::Conversion;
use super::hunks::{Matching, with_hunks};
use super::patch::{Body, FilePatch, Hunk, Mode};
use super::paths::{behind_link, can_be_written, check_parents, check_path, is_behind_link};

#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    #[error(
        "{file}: hunk {hunk} (line {line} of the changes, at line {at} of the file) does not match"
    )]
    HunkMismatch {
        file: String,
        /// From 1.
        hunk: usize,
        line: usize,
        at: usize,
    },
    #[error("{file}: the file is not there")]
    Missing { file: String },
    #[error("{file}: the file to be created is there already, with other content")]
    Exists { file: String },
    #[error(
        "{file}: a binary file was changed, but its content is not recorded in the task; \
         commit and push it"
    )]
    BinaryWithoutContent { file: String },
    #[error("{file}: the binary change was made on other content")]
    BinaryMismatch { file: String },
    #[error("{file}: git cannot write it as .gitattributes asks for: {cause}")]
    Filter { file: String, cause: String },
    #[error("{file}: {problem}")]
    Path { file: String, problem: &'static str },
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
}

/// What came of the changes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Applied {
    /// Files changed.
    pub(super) files: usize,
    /// The changes were in the checkout before.
    pub(super) already: bool,
    /// Files in which the changes were merged with those that the commit has over the one that they were
    /// made on.
    pub(super) merged: Vec<String>,
    /// Submodules whose recorded commit the changes would move.
    pub(super) submodules_not_moved: Vec<String>,
}

/// The content of a blob by its (abbreviated) id, where it is at hand.
pub(super) type Blobs<'b> = &'b dyn Fn(&str) -> Option<Vec<u8>>;

/// Applies `patches` to the files under `root`, all or none. Changes are made to files as git stores them,
/// and `conversion` knows those that stand otherwise in the work tree.
pub(super) fn apply(
    root: &Path,
    patches: &[FilePatch],
    blobs: Blobs<'_>,
    conversion: Option<&Conversion<'_>>,
) -> Result<Applied, ApplyError> {
    let pointers =
        |patch: &&FilePatch| [patch.old_mode, patch.new_mode].contains(&Some(Mode::Submodule));
    let submodules_not_moved: Vec<String> = patches
        .iter()
        .filter(pointers)
        .map(|patch| patch.name().to_owned())
        .collect();
    let patches: Vec<&FilePatch> = patches.iter().filter(|patch| !pointers(patch)).collect();
    let applied = |files, already, merged| Applied {
        files,
        already,
        merged,
        submodules_not_moved,
    };
    let reversed: Vec<FilePatch> = patches.iter().rev().map(|patch| patch.reversed()).collect();
    let reversed: Vec<&FilePatch> = reversed.iter().collect();
    let exact = |matching| matches!(matching, Matching::InPlace | Matching::Anywhere);
    let mut refusal = None;
    for matching in Matching::ALL {
        let mut merged = Vec::new();
        let mut work = Work {
            root,
            matching,
            blobs,
            conversion,
            merged: &mut merged,
        };
        match work.compute(&patches) {
            Ok(mut files) => {
                let count = files.len();
                if let Some(conversion) = conversion {
                    to_work_tree(&mut files, conversion)?;
                }
                can_be_written(root, &files)?;
                write(root, &files)?;
                return Ok(applied(count, false, merged));
            }
            // Of several refusals the one that allowed for moved lines tells most.
            Err(error) if exact(matching) => refusal = Some(error),
            Err(_) => {}
        }
        // Before a change is looked for elsewhere: it may be made, right there.
        if exact(matching) && work.compute(&reversed).is_ok() {
            return Ok(applied(patches.len(), true, vec![]));
        }
    }
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(applied(0, false, vec![])),
    }
}

/// One way of working the changes out.
struct Work<'w> {
    root: &'w Path,
    matching: Matching,
    blobs: Blobs<'w>,
    conversion: Option<&'w Conversion<'w>>,
    merged: &'w mut Vec<String>,
}

fn to_work_tree(files: &mut Outcome, conversion: &Conversion<'_>) -> Result<(), ApplyError> {
    for (path, state) in files.iter_mut() {
        let Some(state) = state.as_mut().filter(|state| state.is_file()) else {
            continue;
        };
        let converted = conversion.to_work_tree(path, &state.content);
        let converted = converted.map_err(|cause| ApplyError::Filter {
            file: path.clone(),
            cause,
        })?;
        if let Some(content) = converted {
            state.content = content;
        }
    }
    Ok(())
}

impl Work<'_> {
    fn compute(&mut self, patches: &[&FilePatch]) -> Result<Outcome, ApplyError> {
        let root = self.root;
        // Paths that some part of the patch takes away; another part may use their names.
        let leaving: BTreeSet<&str> = patches
            .iter()
            .filter(|patch| patch.old != patch.new && !patch.copied)
            .filter_map(|patch| patch.old.as_deref())
            .collect();
        let mut outcome = Outcome::new();
        for patch in patches {
            for path in [&patch.old, &patch.new].into_iter().flatten() {
                check_path(path)?;
            }
            let moved = patch.old.is_some() && patch.new.is_some() && patch.old != patch.new;
            let before = match &patch.old {
                None => None,
                Some(old) => {
                    // Renames and copies are of the file as it was before the whole patch.
                    let earlier = outcome.get(old).filter(|_| !moved).cloned();
                    let state = match earlier {
                        Some(state) => state,
                        None if is_behind_link(root, old) => return Err(behind_link(old)),
                        None => self.read(old)?,
                    };
                    if state.is_none() && !(patch.only_adds() && patch.old == patch.new) {
                        return Err(ApplyError::Missing { file: old.clone() });
                    }
                    state
                }
            };
            if let Some(new) = patch.new.as_deref().filter(|_| patch.old != patch.new) {
                let there = match outcome.get(new) {
                    Some(state) => state.is_some(),
                    None => !leaving.contains(new) && exists(root, new)?,
                };
                if there {
                    return Err(ApplyError::Exists {
                        file: new.to_owned(),
                    });
                }
            }
            let after = self.changed(patch, before.as_ref())?;
            match &patch.new {
                Some(new) => {
                    outcome.insert(new.clone(), Some(after));
                }
                None if !after.content.is_empty() => {
                    // What the diff deletes is not all that the file holds.
                    let first = match &patch.body {
                        Body::Hunks(hunks) => hunks.first().map_or(patch.line, |hunk| hunk.at),
                        _ => patch.line,
                    };
                    return Err(ApplyError::HunkMismatch {
                        file: patch.name().to_owned(),
                        hunk: 1,
                        line: first,
                        at: 1,
                    });
                }
                None => {}
            }
            if let Some(old) = patch
                .old
                .as_ref()
                .filter(|_| patch.old != patch.new && !patch.copied)
            {
                // Not if another part has put a file there (two files that swap names).
                let refilled = moved && matches!(outcome.get(old), Some(Some(_)));
                if !refilled {
                    outcome.insert(old.clone(), None);
                }
            }
        }
        // At the end, because any part of the patch may put a link where an earlier one has put a folder.
        for (path, _) in outcome.iter().filter(|(_, state)| state.is_some()) {
            check_parents(root, path, &outcome)?;
        }
        Ok(outcome)
    }

    fn read(&self, path: &str) -> Result<Option<FileState>, ApplyError> {
        let mut state = read(self.root, path)?;
        if let Some(state) = state.as_mut().filter(|state| state.is_file())
            && let Some(stored) = self.conversion.and_then(|c| c.stored(path))
        {
            state.content = stored;
        }
        Ok(state)
    }

    /// The file after its change.
    fn changed(
        &mut self,
        patch: &FilePatch,
        before: Option<&FileState>,
    ) -> Result<FileState, ApplyError> {
        let file = || patch.name().to_owned();
        let old = before.map_or(&[][..], |state| &state.content);
        if patch.old_empty && !old.is_empty() {
            return Err(ApplyError::HunkMismatch {
                file: file(),
                hunk: 1,
                line: patch.line,
                at: 1,
            });
        }
        let content = match &patch.body {
            Body::Hunks(hunks) => {
                let fitted = with_hunks(old, hunks, self.matching);
                let fitted = fitted.map_err(|(index, hunk)| ApplyError::HunkMismatch {
                    file: file(),
                    hunk: index + 1,
                    line: hunk.at,
                    at: hunk.old_start,
                });
                match fitted {
                    Err(refusal) if self.matching == Matching::ThreeWay => {
                        let merged = self.merged(patch, hunks, old).ok_or(refusal)?;
                        self.merged.push(file());
                        merged
                    }
                    fitted => fitted?,
                }
            }
            Body::Binary(Payload::Literal(content), _) => content.clone(),
            Body::Binary(Payload::Delta(delta), _) => apply_delta(old, delta)
                .ok_or_else(|| ApplyError::BinaryMismatch { file: file() })?,
            Body::BinaryWithoutContent => {
                return Err(ApplyError::BinaryWithoutContent { file: file() });
            }
        };
        // A binary change is told to fit only by its way back.
        if let (Body::Binary(_, Some(backward)), Some(_)) = (&patch.body, before) {
            let restored = match backward {
                Payload::Literal(content) => Some(content.clone()),
                Payload::Delta(delta) => apply_delta(&content, delta),
            };
            if restored.as_deref() != Some(old) {
                return Err(ApplyError::BinaryMismatch { file: file() });
            }
        }
        // `index … 100644` repeats the recorded mode; only a real change is to be made.
        let mode = match (before, patch.old_mode == patch.new_mode) {
            (Some(state), true) => state.mode,
            (Some(state), false) => patch.new_mode.unwrap_or(state.mode),
            (None, _) => patch.new_mode.unwrap_or(Mode::File),
        };
        Ok(FileState { content, mode })
    }

    /// `ours` merged with what the hunks make of the content that they were made on; nothing where that is
    /// not known, or where both have changed the same lines.
    fn merged(&self, patch: &FilePatch, hunks: &[Hunk], ours: &[u8]) -> Option<Vec<u8>> {
        let base = (self.blobs)(patch.old_blob.as_deref()?)?;
        let theirs = with_hunks(&base, hunks, Matching::InPlace).ok()?;
        let side = |content| {
            let mut input = git2::MergeFileInput::new();
            input.content(content);
            input
        };
        let result = git2::merge_file(&side(&base), &side(ours), &side(&theirs), None).ok()?;
        result.is_automergeable().then(|| result.content().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::source::diff;

    #[test]
    fn changes_that_exclude_each_other_change_nothing() {
        let new = |path: &str| {
            format!(
                "diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n\
                 @@ -0,0 +1 @@\n+x\n"
            )
        };
        let long = "n".repeat(256);
        for paths in [["b", "b/n"], ["c", "a/n"], ["c", "d"], ["c", &long]] {
            let root = tempfile::tempdir().unwrap();
            fs::write(root.path().join("a"), "a file\n").unwrap();
            fs::create_dir(root.path().join("d")).unwrap();
            fs::write(root.path().join("d/e"), "in a folder\n").unwrap();
            let patches = diff::parse(&paths.map(new).concat()).unwrap();
            apply(root.path(), &patches, &|_| None, None).unwrap_err();
            let mut left: Vec<_> = fs::read_dir(root.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            left.sort();
            assert_eq!(left, ["a", "d"], "{paths:?}");
        }
    }

    fn link(path: &str, target: &str) -> String {
        format!(
            "diff --git a/{path} b/{path}\nnew file mode 120000\n--- /dev/null\n+++ b/{path}\n\
             @@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"
        )
    }

    #[test]
    fn no_link_of_the_patch_leads_out() {
        let new = |path: &str| {
            format!(
                "diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n\
                 @@ -0,0 +1 @@\n+evil\n"
            )
        };
        for changes in [
            // In either order, and under another spelling.
            link("x", "..") + &new("x/evil"),
            new("x/evil") + &link("x", ".."),
            link("./x", "..") + &new("x/evil"),
            new("./x/evil") + &link("x", ".."),
            link("d/.//x", "../..") + &new("d/x/evil"),
        ] {
            let base = tempfile::tempdir().unwrap();
            let root = base.path().join("root");
            fs::create_dir(&root).unwrap();
            let refusal =
                apply(&root, &diff::parse(&changes).unwrap(), &|_| None, None).unwrap_err();
            assert!(
                matches!(refusal, ApplyError::Path { .. }),
                "{changes}: {refusal}"
            );
            assert!(!base.path().join("evil").exists(), "{changes}");
            assert!(fs::read_dir(&root).unwrap().next().is_none(), "{changes}");
        }
    }

    #[test]
    fn a_folder_becomes_a_link() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/b"), "b\n").unwrap();
        let gone = "diff --git a/d/b b/d/b\ndeleted file mode 100644\n--- a/d/b\n+++ /dev/null\n\
                    @@ -1 +0,0 @@\n-b\n";
        let changes = link("d", "elsewhere") + gone;
        apply(
            root.path(),
            &diff::parse(&changes).unwrap(),
            &|_| None,
            None,
        )
        .unwrap();
        let target = fs::read_link(root.path().join("d")).unwrap();
        assert_eq!(target, Path::new("elsewhere"));
    }
}
