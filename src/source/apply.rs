//! Applies uncommitted changes to a checkout: everything is worked out in memory first, so that
//! a diff that does not fit changes nothing. Hunks are found where their context is, as
//! `git apply` finds them, also when the line numbers are off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use super::binary::{Payload, apply_delta};
use super::diff::{Body, FilePatch, Hunk, Kind, Mode};

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
    /// Submodules whose recorded commit the changes would move.
    pub(super) submodules_not_moved: Vec<String>,
}

/// Applies `patches` to the files under `root`, all or none.
pub(super) fn apply(root: &Path, patches: &[FilePatch]) -> Result<Applied, ApplyError> {
    let pointers =
        |patch: &&FilePatch| [patch.old_mode, patch.new_mode].contains(&Some(Mode::Submodule));
    let submodules_not_moved: Vec<String> = patches
        .iter()
        .filter(pointers)
        .map(|patch| patch.name().to_owned())
        .collect();
    let patches: Vec<&FilePatch> = patches.iter().filter(|patch| !pointers(patch)).collect();
    let applied = |files, already| Applied {
        files,
        already,
        submodules_not_moved,
    };
    let reversed: Vec<FilePatch> = patches.iter().rev().map(|patch| patch.reversed()).collect();
    let reversed: Vec<&FilePatch> = reversed.iter().collect();
    let mut refusal = None;
    for matching in Matching::ALL {
        match compute(root, &patches, matching) {
            Ok(files) => {
                let count = files.len();
                can_be_written(root, &files)?;
                write(root, files)?;
                return Ok(applied(count, false));
            }
            // Of several refusals the one that allowed for moved lines tells most.
            Err(error) if matching != Matching::IgnoringLineEnds => refusal = Some(error),
            Err(_) => {}
        }
        // Before a change is looked for elsewhere: it may be made, right there.
        if matching != Matching::IgnoringLineEnds && compute(root, &reversed, matching).is_ok() {
            return Ok(applied(patches.len(), true));
        }
    }
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(applied(0, false)),
    }
}

/// How a hunk's old lines are looked for, strictest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Matching {
    /// At the line that the hunk names.
    InPlace,
    /// Wherever they are, nearest to that line.
    Anywhere,
    /// As `Anywhere`, for line ends that a form or an editor rewrote on the way.
    IgnoringLineEnds,
}

impl Matching {
    const ALL: [Matching; 3] = [Self::InPlace, Self::Anywhere, Self::IgnoringLineEnds];
}

#[derive(Debug, Clone, PartialEq)]
struct FileState {
    content: Vec<u8>,
    mode: Mode,
}

/// New state of each path; `None` where it goes.
type Outcome = BTreeMap<String, Option<FileState>>;

fn compute(root: &Path, patches: &[&FilePatch], matching: Matching) -> Result<Outcome, ApplyError> {
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
                    None => read(root, old)?,
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
        let after = changed(patch, before.as_ref(), matching)?;
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

/// The file after its change.
fn changed(
    patch: &FilePatch,
    before: Option<&FileState>,
    matching: Matching,
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
            with_hunks(old, hunks, matching).map_err(|(index, hunk)| ApplyError::HunkMismatch {
                file: file(),
                hunk: index + 1,
                line: hunk.at,
                at: hunk.old_start,
            })?
        }
        Body::Binary(Payload::Literal(content), _) => content.clone(),
        Body::Binary(Payload::Delta(delta), _) => {
            apply_delta(old, delta).ok_or_else(|| ApplyError::BinaryMismatch { file: file() })?
        }
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

/// `old` with the hunks applied, or the first that does not fit.
fn with_hunks<'h>(
    old: &[u8],
    hunks: &'h [Hunk],
    matching: Matching,
) -> Result<Vec<u8>, (usize, &'h Hunk)> {
    let mut lines: Vec<Vec<u8>> = split_lines(old);
    // Where the next hunk may begin: behind what earlier ones have changed.
    let mut free_from = 0;
    // How far hunks were found from where they were said to be.
    let mut shift: isize = 0;
    for (index, hunk) in hunks.iter().enumerate() {
        let side = |left_out: Kind| -> Vec<&[u8]> {
            let lines = hunk.lines.iter().filter(|line| line.kind != left_out);
            lines.map(|line| line.text.as_bytes()).collect()
        };
        let before = side(Kind::Added);
        let adds_nothing = hunk.lines.iter().all(|line| line.kind == Kind::Removed);
        // The file's lines up to here are those of the new side already. With no line on that
        // side, its number is that of the line before.
        let expected = match adds_nothing {
            true => hunk.new_start,
            false => hunk.new_start.saturating_sub(1),
        };
        let expected = expected.saturating_add_signed(shift);
        let fits = |at: usize| {
            at >= free_from
                && lines.get(at..at + before.len()).is_some_and(|found| {
                    found
                        .iter()
                        .zip(&before)
                        .all(|(a, b)| same_line(a, b, matching))
                })
        };
        let place = match matching {
            Matching::InPlace => Some(expected).filter(|&at| fits(at)),
            _ => nearest_place(expected, lines.len(), &fits),
        };
        let place = place.ok_or((index, hunk))?;
        shift += place as isize - expected as isize;
        let replacement = replacement(&lines[place..place + before.len()], hunk, matching, &lines);
        let length = replacement.len();
        lines.splice(place..place + before.len(), replacement);
        free_from = place + length;
    }
    // Only the last line may be without its end: a line added behind it gives it one.
    let last = lines.len().saturating_sub(1);
    for line in lines.iter_mut().take(last) {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
    }
    Ok(lines.concat())
}

/// The place that fits nearest to `expected`, looking both ways.
fn nearest_place(expected: usize, length: usize, fits: &dyn Fn(usize) -> bool) -> Option<usize> {
    let expected = expected.min(length);
    (0..=length).find_map(|distance| {
        let before = expected.checked_sub(distance).filter(|&at| fits(at));
        before.or_else(|| Some(expected + distance).filter(|&at| at <= length && fits(at)))
    })
}

/// The hunk's new lines; context lines are the file's own.
fn replacement(
    found: &[Vec<u8>],
    hunk: &Hunk,
    matching: Matching,
    lines: &[Vec<u8>],
) -> Vec<Vec<u8>> {
    let crlf = |lines: &[Vec<u8>]| lines.first().map(|line| line.ends_with(b"\r\n"));
    // The surroundings say which line ends the file has.
    let crlf = crlf(found).or_else(|| crlf(lines)).unwrap_or(false);
    let mut found = found.iter();
    let mut result = Vec::with_capacity(hunk.lines.len());
    for line in &hunk.lines {
        match line.kind {
            Kind::Context => result.extend(found.next().cloned()),
            Kind::Removed => {
                found.next();
            }
            Kind::Added if matching == Matching::IgnoringLineEnds => {
                let (text, newline) = match line.text.strip_suffix('\n') {
                    Some(text) => (text, true),
                    None => (line.text.as_str(), false),
                };
                let mut bytes = text.trim_end_matches('\r').as_bytes().to_vec();
                match (newline, crlf) {
                    (true, true) => bytes.extend_from_slice(b"\r\n"),
                    (true, false) => bytes.push(b'\n'),
                    (false, _) => {}
                }
                result.push(bytes);
            }
            Kind::Added => result.push(line.text.as_bytes().to_vec()),
        }
    }
    result
}

fn same_line(file: &[u8], diff: &[u8], matching: Matching) -> bool {
    match matching {
        Matching::InPlace | Matching::Anywhere => file == diff,
        Matching::IgnoringLineEnds => file.trim_ascii_end() == diff.trim_ascii_end(),
    }
}

/// Lines with their newlines; the last may have none.
fn split_lines(content: &[u8]) -> Vec<Vec<u8>> {
    content
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

/// Refuses paths that leave the checkout or reach into git's own folder.
fn check_path(path: &str) -> Result<(), ApplyError> {
    let refuse = |problem| {
        Err(ApplyError::Path {
            file: path.to_owned(),
            problem,
        })
    };
    if path.is_empty() || path.ends_with('/') || path.contains('\0') {
        return refuse("not the name of a file");
    }
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) if name.eq_ignore_ascii_case(".git") => {
                return refuse("git's own files are not to be changed");
            }
            Component::Normal(_) | Component::CurDir => {}
            _ => return refuse("outside of the repository"),
        }
    }
    Ok(())
}

/// Refuses paths behind a symbolic link, on disk or made by this very patch: they could lead out
/// of the checkout.
fn check_parents(root: &Path, path: &str, outcome: &Outcome) -> Result<(), ApplyError> {
    let mut parent = PathBuf::new();
    let parents = Path::new(path).parent().unwrap_or(Path::new(""));
    for component in parents.components() {
        parent.push(component);
        let planned = parent.to_str().and_then(|text| outcome.get(text));
        let link = match planned {
            Some(Some(state)) => state.mode == Mode::Symlink,
            Some(None) => false,
            None => root.join(&parent).is_symlink(),
        };
        if link {
            return Err(behind_link(path));
        }
    }
    Ok(())
}

/// Whether the way to `path` leads through a symbolic link as things are now.
fn is_behind_link(root: &Path, path: &str) -> bool {
    let mut parents = Path::new(path).ancestors().skip(1);
    parents.any(|parent| parent != Path::new("") && root.join(parent).is_symlink())
}

fn behind_link(path: &str) -> ApplyError {
    ApplyError::Path {
        file: path.to_owned(),
        problem: "lies behind a symbolic link",
    }
}

fn read(root: &Path, path: &str) -> Result<Option<FileState>, ApplyError> {
    let full = root.join(path);
    let failed = |source| ApplyError::Io {
        file: path.to_owned(),
        source,
    };
    let meta = match fs::symlink_metadata(&full) {
        Ok(meta) => meta,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if meta.is_symlink() {
        let target = fs::read_link(&full).map_err(failed)?;
        let content = target.into_os_string().into_vec();
        return Ok(Some(FileState {
            content,
            mode: Mode::Symlink,
        }));
    }
    if !meta.is_file() {
        return Ok(None);
    }
    let content = fs::read(&full).map_err(failed)?;
    let executable = meta.permissions().mode() & 0o100 != 0;
    let mode = if executable {
        Mode::Executable
    } else {
        Mode::File
    };
    Ok(Some(FileState { content, mode }))
}

fn exists(root: &Path, path: &str) -> Result<bool, ApplyError> {
    // A folder in the way is one that only holds what the patch removes, or `can_be_written` says so;
    // what lies behind a link is none of the checkout's.
    Ok(!is_behind_link(root, path) && read(root, path)?.is_some())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Linux's limits, with room for the folder that the code is in.
const LONGEST_NAME: usize = 255;
const LONGEST_PATH: usize = 3_000;

/// Refuses changes that no file system takes: written one after the other, some would be made and the
/// rest not.
fn can_be_written(root: &Path, outcome: &Outcome) -> Result<(), ApplyError> {
    let stays = |path: &Path| match outcome.iter().find(|(p, _)| Path::new(p) == path) {
        Some((_, state)) => state.is_some(),
        None => fs::symlink_metadata(root.join(path)).is_ok_and(|found| !found.is_dir()),
    };
    let written = outcome
        .iter()
        .filter_map(|(path, state)| Some((path, state.as_ref()?)));
    for (path, state) in written {
        let refused = |problem| {
            Err(ApplyError::Path {
                file: path.clone(),
                problem,
            })
        };
        if path.len() > LONGEST_PATH || path.split('/').any(|name| name.len() > LONGEST_NAME) {
            return refused("its name is too long");
        }
        let target = &state.content;
        if state.mode == Mode::Symlink
            && (target.is_empty() || target.len() > LONGEST_PATH || target.contains(&0))
        {
            return refused("it would be a symbolic link to no possible path");
        }
        let path_of_file = Path::new(path);
        let below = |(other, state): (&String, &Option<FileState>)| {
            state.is_none() && Path::new(other).starts_with(path_of_file)
        };
        let is_folder = fs::symlink_metadata(root.join(path)).is_ok_and(|found| found.is_dir());
        let parents = path_of_file.ancestors().skip(1);
        let in_a_file = parents
            .filter(|parent| !parent.as_os_str().is_empty())
            .any(stays);
        if in_a_file || is_folder && !outcome.iter().any(|(p, s)| below((p, s))) {
            return refused("it would be a file and a folder at once");
        }
    }
    Ok(())
}

fn write(root: &Path, outcome: Outcome) -> Result<(), ApplyError> {
    let failed = |path: &str| {
        let file = path.to_owned();
        move |source| ApplyError::Io { file, source }
    };
    // Files that go make room for folders, and folders that become empty for files.
    for (path, _) in outcome.iter().filter(|(_, state)| state.is_none()) {
        let full = root.join(path);
        match fs::remove_file(&full) {
            Err(error) if !is_absent(&error) => return Err(failed(path)(error)),
            _ => {}
        }
        let mut folder = full.parent();
        while let Some(empty) = folder.filter(|folder| *folder != root && folder.starts_with(root))
        {
            if fs::remove_dir(empty).is_err() {
                break;
            }
            folder = empty.parent();
        }
    }
    for (path, state) in &outcome {
        if let Some(state) = state {
            write_file(&root.join(path), state).map_err(failed(path))?;
        }
    }
    Ok(())
}

fn write_file(full: &Path, state: &FileState) -> io::Result<()> {
    if let Some(parent) = full.parent() {
        fs::create_dir_all(parent)?;
    }
    let earlier = fs::symlink_metadata(full).ok();
    // A link is never written through; a changed kind is made anew.
    if earlier
        .as_ref()
        .is_some_and(|meta| meta.is_symlink() || state.mode == Mode::Symlink)
    {
        fs::remove_file(full)?;
    }
    if state.mode == Mode::Symlink {
        return std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&state.content), full);
    }
    fs::write(full, &state.content)?;
    let permissions = fs::metadata(full)?.permissions().mode();
    let wanted = match state.mode {
        // Whoever may read may run, as git sets it.
        Mode::Executable => permissions | ((permissions & 0o444) >> 2),
        _ => permissions & !0o111,
    };
    match wanted == permissions {
        true => Ok(()),
        false => fs::set_permissions(full, fs::Permissions::from_mode(wanted)),
    }
}

#[cfg(test)]
mod tests {
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
            apply(root.path(), &patches).unwrap_err();
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
            let refusal = apply(&root, &diff::parse(&changes).unwrap()).unwrap_err();
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
        apply(root.path(), &diff::parse(&changes).unwrap()).unwrap();
        let target = fs::read_link(root.path().join("d")).unwrap();
        assert_eq!(target, Path::new("elsewhere"));
    }
}
