//! What must hold for any uncommitted changes, for the fuzz targets `diff` and `patch`.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::{apply, binary, diff};

/// Changes are made wholly or not at all, and nowhere but under the root.
///
/// The input may begin with files, each below a line `=== path`, or `=== path > target` for a link;
/// a line `===` ends them. The rest is the diff.
pub fn diff(input: &[u8]) {
    let input = String::from_utf8_lossy(input);
    let (files, text) = match input.starts_with("=== ") {
        true => input.split_once("\n===\n").unwrap_or((&input, "")),
        false => ("", input.as_ref()),
    };
    let Ok(patches) = diff::parse(text) else {
        return;
    };
    let base = folder();
    let root = base.path().join("root");
    fs::create_dir(&root).expect("a folder in memory");
    fs::write(base.path().join("outside"), "outside\n").expect("a file in memory");
    for (path, content) in [("a", "1\n2\n3\n"), ("d/b", "x\n"), ("empty", "")] {
        make(&root, path, content);
    }
    symlink("../outside", root.join("link")).expect("a link");
    symlink("..", root.join("up")).expect("a link");
    for file in files.split("=== ").skip(1) {
        let (path, content) = file.split_once('\n').unwrap_or((file, ""));
        make(&root, path, content);
    }

    let before = snapshot(&root);
    match apply::apply(&root, &patches, &|_| None, None) {
        Err(_) => assert_eq!(before, snapshot(&root), "half of the changes are made"),
        Ok(applied) if applied.already => assert_eq!(before, snapshot(&root)),
        Ok(_) => {
            for path in patches.iter().filter_map(|patch| patch.new.as_deref()) {
                // What there is no folder for is a submodule.
                if let Some(Ok(real)) = root.join(path).parent().map(fs::canonicalize) {
                    assert!(real.starts_with(&root), "{path} is at {}", real.display());
                }
            }
        }
    }
    let around = snapshot_of(base.path(), &root);
    let outside = (base.path().join("outside"), 0o644, b"outside\n".to_vec());
    assert_eq!(around, [outside]);
}

/// What git writes about two contents makes the second of the first. The first byte says with how
/// many lines of context; a zero byte divides the contents, or two where there are binary ones.
pub fn patch(input: &[u8]) {
    let Some((context, contents)) = input.split_first() else {
        return;
    };
    let divider: &[u8] = if context & 8 == 8 { &[0, 0] } else { &[0] };
    let middle = contents.windows(divider.len()).position(|w| w == divider);
    let Some(middle) = middle else {
        // The decoder alone, without the sums and sizes that git's parts have.
        let half = contents.len() / 2;
        binary::apply_delta(&contents[..half], &contents[half..]);
        return;
    };
    let (old, new) = (&contents[..middle], &contents[middle + divider.len()..]);
    let mut options = git2::DiffOptions::new();
    options
        .context_lines(u32::from(context % 4))
        .show_binary(true);
    let path = Some(Path::new("f"));
    let mut patch = git2::Patch::from_buffers(old, path, new, path, Some(&mut options))
        .expect("git compares anything");
    let text = patch.to_buf().expect("git writes what it found");
    let Some(text) = text.as_str().ok().filter(|text| !text.is_empty()) else {
        return;
    };
    let base = folder();
    fs::write(base.path().join("f"), old).expect("a file in memory");
    let patches = diff::parse(text).unwrap_or_else(|e| panic!("{e}:\n{text}"));
    let applied = apply::apply(base.path(), &patches, &|_| None, None)
        .unwrap_or_else(|e| panic!("{e}:\n{text}"));
    assert!(!applied.already, "{text}");
    let content = fs::read(base.path().join("f")).unwrap_or_default();
    assert!(content == new, "{text}\ngave {content:?}, not {new:?}");
}

/// A folder in memory.
fn folder() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    let place = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    tempfile::tempdir_in(place).expect("a temporary folder")
}

/// A file or a link within `root`; what is not possible is not made.
fn make(root: &Path, path: &str, content: &str) {
    let (path, target) = match path.split_once(" > ") {
        Some((path, target)) => (path, Some(target)),
        None => (path, None),
    };
    let within = |path: &str| {
        Path::new(path)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    };
    let full = root.join(path);
    let Some(parent) = full.parent().filter(|_| !path.is_empty() && within(path)) else {
        return;
    };
    let behind_link = parent.ancestors().any(|folder| folder.is_symlink());
    if behind_link || full.is_symlink() || fs::create_dir_all(parent).is_err() {
        return;
    }
    let _ = match target {
        None => fs::write(&full, content),
        Some(target) if within(target) || target == ".." => symlink(target, &full),
        Some(_) => Ok(()),
    };
}

/// Path, permissions, and the file's text or the link's target.
type State = (PathBuf, u32, Vec<u8>);

fn snapshot(folder: &Path) -> Vec<State> {
    snapshot_of(folder, Path::new(""))
}

/// All that is in `folder` and not in `but`.
fn snapshot_of(folder: &Path, but: &Path) -> Vec<State> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let mode = entry.metadata().expect("an entry").permissions().mode() & 0o777;
        if path == but {
        } else if path.is_symlink() {
            let target = fs::read_link(&path).expect("a link");
            all.push((path, mode, target.as_os_str().as_bytes().to_vec()));
        } else if path.is_dir() {
            all.extend(snapshot_of(&path, but));
        } else {
            let text = fs::read(&path).expect("a file");
            all.push((path, mode, text));
        }
    }
    all.sort();
    all
}
