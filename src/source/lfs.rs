//! Git LFS: libgit2 leaves pointers where the files' content belongs, and a job that opens one
//! fails in a puzzling way.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use git2::Repository;

use crate::console::Console;

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
/// Larger than any pointer is.
const POINTER_LIMIT: u32 = 1024;

/// Says so if files of the checkout are pointers. Looks at nothing where LFS is not in use.
pub(super) fn warn_of_pointers(root: &Path, console: &Console) {
    let attributes = fs::read_to_string(root.join(".gitattributes")).unwrap_or_default();
    if !attributes.contains("filter=lfs") {
        return;
    }
    let Ok(index) = Repository::open(root).and_then(|repository| repository.index()) else {
        return;
    };
    let pointers: Vec<String> = index
        .iter()
        .filter(|entry| entry.file_size < POINTER_LIMIT)
        .filter_map(|entry| String::from_utf8(entry.path).ok())
        .filter(|path| is_pointer(&root.join(path)))
        .collect();
    if let Some(first) = pointers.first() {
        console.say(format!(
            "Warning: {} file(s) of this repository are in Git LFS ({first}, …) and were not \
             downloaded; only their pointers are in the checkout",
            pointers.len()
        ));
    }
}

fn is_pointer(path: &Path) -> bool {
    let mut start = [0; POINTER.len()];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut start))
        .is_ok()
        && start == *POINTER
}
