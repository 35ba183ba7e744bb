//! The files of a kept environment: their list, the copy that a run gets, and whether they are
//! still what they were.
//!
//! A copy shares the files' contents by reflink or hard link where the disk can do that. What
//! tools write into in place, and what holds the environment's own path, is always a file of the
//! run's own. A hard link that a script writes through changes the kept file, too: that shows in
//! its size or time when the next run copies it, and such an environment is given up.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::settings::LinkMode;

/// One entry of the list, its path below the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Folder(String),
    Link(String),
    File {
        path: String,
        size: u64,
        /// Nanoseconds since 1970.
        changed: i128,
        /// It is copied in every way of sharing.
        own: bool,
    },
}

/// The list of an environment's files; parents stand before what is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    pub items: Vec<Item>,
}

/// Why a copy could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The kept environment is not what it was.
    #[error("{0} was changed since it was kept")]
    Changed(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// How the files of a copy came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Reflink,
    HardLink,
    Copy,
}

impl Way {
    pub fn words(self) -> &'static str {
        match self {
            Way::Reflink => "shared by reflink",
            Way::HardLink => "hard-linked",
            Way::Copy => "copied",
        }
    }
}

/// A larger file is no script.
const LARGEST_SCRIPT: u64 = 1 << 20;

impl Tree {
    /// Lists `root`. Names that are no text are an error: nothing that pip or uv installs has one.
    pub fn scan(root: &Path) -> io::Result<Tree> {
        let mut tree = Tree::default();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            if !folder.is_empty() {
                tree.items.push(Item::Folder(folder.clone()));
            }
            for entry in fs::read_dir(root.join(&folder))? {
                let entry = entry?;
                let name = entry.file_name().into_string().ok();
                let name = name.filter(|name| !name.contains('\n')).ok_or_else(|| {
                    io::Error::other(format!("{} has no usable name", entry.path().display()))
                })?;
                let path = match folder.is_empty() {
                    true => name,
                    false => format!("{folder}/{name}"),
                };
                let meta = entry.metadata()?;
                if meta.is_dir() {
                    folders.push(path);
                } else if meta.is_symlink() {
                    tree.items.push(Item::Link(path));
                } else {
                    tree.items.push(Item::File {
                        own: is_written_in_place(&path),
                        path,
                        size: meta.len(),
                        changed: changed(&meta),
                    });
                }
            }
        }
        Ok(tree)
    }

    /// The files that hold `prefix`, the environment's own path.
    pub fn files_with(&self, root: &Path, prefix: &Path) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for item in &self.items {
            let Item::File { path, size, .. } = item else {
                continue;
            };
            if *size > LARGEST_SCRIPT || !may_hold_the_prefix(path) {
                continue;
            }
            let bytes = fs::read(root.join(path))?;
            let needle = prefix.as_os_str().as_bytes();
            if !bytes.contains(&0) && memchr::memmem::find(&bytes, needle).is_some() {
                found.push(path.clone());
            }
        }
        Ok(found)
    }

    /// Files and bytes.
    pub fn extent(&self) -> (u64, u64) {
        self.items
            .iter()
            .fold((0, 0), |(files, bytes), item| match item {
                Item::File { size, .. } => (files + 1, bytes + size),
                _ => (files, bytes),
            })
    }

    /// As text, one line for each.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for item in &self.items {
            let line = match item {
                Item::Folder(path) => format!("d {path}\n"),
                Item::Link(path) => format!("l {path}\n"),
                Item::File {
                    path,
                    size,
                    changed,
                    own,
                } => {
                    let kind = if *own { 'o' } else { 'f' };
                    format!("{kind} {size} {changed} {path}\n")
                }
            };
            text.push_str(&line);
        }
        text
    }

    pub fn parse(text: &str) -> Option<Tree> {
        let item = |line: &str| -> Option<Item> {
            let (kind, rest) = line.split_once(' ')?;
            match kind {
                "d" => Some(Item::Folder(rest.to_owned())),
                "l" => Some(Item::Link(rest.to_owned())),
                "f" | "o" => {
                    let (size, rest) = rest.split_once(' ')?;
                    let (changed, path) = rest.split_once(' ')?;
                    Some(Item::File {
                        path: path.to_owned(),
                        size: size.parse().ok()?,
                        changed: changed.parse().ok()?,
                        own: kind == "o",
                    })
                }
                _ => None,
            }
        };
        let items: Option<Vec<Item>> = text.lines().map(item).collect();
        items.map(|items| Tree { items })
    }

    /// Makes `to`, which must not exist, the same as `from`.
    pub fn copy(&self, from: &Path, to: &Path, mode: LinkMode) -> Result<Way, CopyError> {
        fs::create_dir(to)?;
        let mut files = Vec::new();
        for item in &self.items {
            match item {
                Item::Folder(path) => fs::create_dir(to.join(path))?,
                Item::Link(path) => symlink(fs::read_link(from.join(path))?, to.join(path))?,
                Item::File { .. } => files.push(item),
            }
        }
        let sharing = Sharing::new(mode);
        // Creating names is a matter of the kernel's locks on folders: neighbours go together.
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), CopyError> {
            loop {
                let start = next.fetch_add(BATCH, Ordering::Relaxed);
                let Some(rest) = files.get(start..).filter(|rest| !rest.is_empty()) else {
                    return Ok(());
                };
                for item in rest.iter().take(BATCH) {
                    copy_file(item, from, to, &sharing)?;
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(MOST_THREADS).min(files.len().div_ceil(BATCH));
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut ended = work();
            for other in others {
                let other = other
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a copying thread panicked").into()));
                ended = ended.and(other);
            }
            ended
        })?;
        Ok(sharing.way())
    }

    /// The files that are not as they were listed.
    pub fn changed_files(&self, root: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for item in &self.items {
            let (path, same) = match item {
                Item::Folder(path) => (path, root.join(path).is_dir()),
                Item::Link(path) => (path, root.join(path).is_symlink()),
                Item::File {
                    path,
                    size,
                    changed: at,
                    ..
                } => {
                    let meta = fs::symlink_metadata(root.join(path));
                    let same = meta.is_ok_and(|m| m.len() == *size && changed(&m) == *at);
                    (path, same)
                }
            };
            if !same {
                found.push(path.clone());
            }
        }
        found
    }
}

const BATCH: usize = 256;
/// More threads wait for each other in the kernel.
const MOST_THREADS: usize = 8;

fn changed(meta: &fs::Metadata) -> i128 {
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// Path files, to which setuptools adds lines; programs, which are small; the environment's own.
fn is_written_in_place(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name == "pyvenv.cfg"
        || [".pth", ".egg-link"].iter().any(|end| name.ends_with(end))
        || (path.starts_with("bin/activate") || path.starts_with("bin/pip"))
}

/// What is outside of the packages, and the notes beside them.
fn may_hold_the_prefix(path: &str) -> bool {
    match path.split_once("site-packages/") {
        None => true,
        Some((_, inside)) => !inside.contains('/') || inside.ends_with("/direct_url.json"),
    }
}

/// The way of sharing that works between two places, found out with the first files.
struct Sharing {
    way: AtomicU8,
    may_fall_back: bool,
}

const WAYS: [Way; 3] = [Way::Reflink, Way::HardLink, Way::Copy];

impl Sharing {
    /// Where one way alone is wanted, the next best is a copy, never the other link.
    fn new(mode: LinkMode) -> Sharing {
        let first = match mode {
            LinkMode::Auto | LinkMode::Reflink => 0,
            LinkMode::HardLink => 1,
            LinkMode::Copy => 2,
        };
        Sharing {
            way: AtomicU8::new(first),
            may_fall_back: mode == LinkMode::Auto,
        }
    }

    fn way(&self) -> Way {
        WAYS[usize::from(self.way.load(Ordering::Relaxed))]
    }

    fn give_up(&self, way: Way) {
        let next = match way {
            Way::Reflink if self.may_fall_back => 1,
            _ => 2,
        };
        self.way.fetch_max(next, Ordering::Relaxed);
    }
}

fn copy_file(item: &Item, from: &Path, to: &Path, sharing: &Sharing) -> Result<(), CopyError> {
    let Item::File {
        path,
        size,
        changed: at,
        own,
    } = item
    else {
        return Ok(());
    };
    let (source, target) = (from.join(path), to.join(path));
    let check = |meta: &fs::Metadata| match meta.len() == *size && changed(meta) == *at {
        true => Ok(()),
        false => Err(CopyError::Changed(path.clone())),
    };
    let missing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => CopyError::Changed(path.clone()),
        _ => error.into(),
    };
    loop {
        let way = sharing.way();
        if way == Way::HardLink && !own {
            match fs::hard_link(&source, &target) {
                Ok(()) => return check(&fs::symlink_metadata(&target)?),
                Err(error) if cannot_share(&error) => {
                    sharing.give_up(way);
                    continue;
                }
                // Its links are used up: this one file is copied.
                Err(error) if is_errno(&error, rustix::io::Errno::MLINK) => {}
                Err(error) => return Err(missing(error)),
            }
        }
        let mut input = File::open(&source).map_err(missing)?;
        let meta = input.metadata()?;
        check(&meta)?;
        let mut output = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(meta.permissions().mode())
            .open(&target)?;
        if way == Way::Reflink && !own {
            match rustix::fs::ioctl_ficlone(&output, &input) {
                Ok(()) => {}
                Err(error) if cannot_share(&error.into()) => {
                    sharing.give_up(way);
                    fs::remove_file(&target)?;
                    continue;
                }
                Err(error) => return Err(io::Error::from(error).into()),
            }
        } else {
            io::copy(&mut input, &mut output)?;
        }
        // Byte code names the time of its source.
        output.set_modified(meta.modified()?)?;
        return Ok(());
    }
}

fn is_errno(error: &io::Error, errno: rustix::io::Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

fn cannot_share(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [
        Errno::XDEV,
        Errno::OPNOTSUPP,
        Errno::NOTTY,
        Errno::INVAL,
        Errno::PERM,
        Errno::ACCESS,
        Errno::NOSYS,
    ]
    .iter()
    .any(|errno| is_errno(error, *errno))
}

/// Puts a file with the new path in the place of one with the old; never through a link.
pub fn move_prefix(path: &Path, old: &Path, new: &Path) -> io::Result<()> {
    let mut text = String::new();
    let mut file = File::open(path)?;
    let meta = file.metadata()?;
    file.read_to_string(&mut text)?;
    let text = with_prefix(&text, &old.to_string_lossy(), &new.to_string_lossy());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut moved = tempfile::NamedTempFile::new_in(folder)?;
    moved.write_all(text.as_bytes())?;
    moved.as_file().set_permissions(meta.permissions())?;
    moved.as_file().set_modified(meta.modified()?)?;
    moved.persist(path).map_err(|e| e.error)?;
    Ok(())
}

/// The longest first line that every kernel takes.
const LONGEST_SHEBANG: usize = 127;

fn with_prefix(text: &str, old: &str, new: &str) -> String {
    let moved = text.replace(old, new);
    let (first, rest) = moved.split_once('\n').unwrap_or((&moved, ""));
    let fits = first.len() <= LONGEST_SHEBANG && !new.contains(char::is_whitespace);
    match first.strip_prefix("#!") {
        // As pip does it: the shell starts Python, for which these two lines are a string.
        Some(python) if python.starts_with(new) && !fits => {
            format!("#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n{rest}")
        }
        _ => moved,
    }
}

/// Removes a folder, which another process may be removing as well.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a file in one step, for readers that may come at any time.
pub fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let folder: PathBuf = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut file = tempfile::Builder::new()
        .prefix(".new-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(text.as_bytes())?;
    file.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("env");
        let site = root.join("lib/python3.11/site-packages");
        fs::create_dir_all(site.join("pkg")).unwrap();
        fs::create_dir_all(root.join("bin")).unwrap();
        symlink("/usr/bin/python3", root.join("bin/python")).unwrap();
        fs::write(site.join("pkg/__init__.py"), "x = 1\n").unwrap();
        fs::write(site.join("easy.pth"), "/somewhere\n").unwrap();
        let shebang = format!("#!{}/bin/python\nrun()\n", root.display());
        fs::write(root.join("bin/tool"), shebang).unwrap();
        dir
    }

    #[test]
    fn a_list_survives_being_written() {
        let dir = sample();
        let tree = Tree::scan(&dir.path().join("env")).unwrap();
        assert_eq!(Tree::parse(&tree.text()).unwrap(), tree);
        assert_eq!(tree.extent().0, 3);
        assert_eq!(Tree::parse("q x"), None);
    }

    #[test]
    fn a_copy_shares_what_is_never_written_in_place() {
        let dir = sample();
        let from = dir.path().join("env");
        let tree = Tree::scan(&from).unwrap();
        for mode in [
            LinkMode::Auto,
            LinkMode::HardLink,
            LinkMode::Reflink,
            LinkMode::Copy,
        ] {
            let to = dir.path().join(format!("{mode:?}"));
            let way = tree.copy(&from, &to, mode).unwrap();
            let inode = |root: &Path, name: &str| {
                let path = root.join("lib/python3.11/site-packages").join(name);
                fs::metadata(path).unwrap().ino()
            };
            let shared = inode(&from, "pkg/__init__.py") == inode(&to, "pkg/__init__.py");
            assert_eq!(shared, way == Way::HardLink, "{mode:?}");
            assert_ne!(inode(&from, "easy.pth"), inode(&to, "easy.pth"));
            assert_eq!(
                Tree::scan(&to).unwrap().changed_files(&to),
                Vec::<String>::new()
            );
            assert_eq!(
                tree.changed_files(&to),
                Vec::<String>::new(),
                "times are kept"
            );
        }
    }

    #[test]
    fn what_was_written_through_a_link_is_noticed() {
        let dir = sample();
        let from = dir.path().join("env");
        let tree = Tree::scan(&from).unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        tree.copy(&from, &one, LinkMode::HardLink).unwrap();
        let file = "lib/python3.11/site-packages/pkg/__init__.py";
        fs::write(one.join(file), "x = 2 # patched\n").unwrap();
        assert_eq!(tree.changed_files(&from), [file]);
        for mode in [LinkMode::HardLink, LinkMode::Copy] {
            let error = tree.copy(&from, &two, mode).unwrap_err();
            assert!(matches!(error, CopyError::Changed(path) if path == file));
            fs::remove_dir_all(&two).unwrap();
        }
    }

    #[test]
    fn scripts_get_the_path_of_their_copy() {
        let dir = sample();
        let from = dir.path().join("env");
        let tree = Tree::scan(&from).unwrap();
        assert_eq!(tree.files_with(&from, &from).unwrap(), ["bin/tool"]);
        let to = dir.path().join("run");
        tree.copy(&from, &to, LinkMode::HardLink).unwrap();
        move_prefix(&to.join("bin/tool"), &from, &to).unwrap();
        let text = |root: &Path| fs::read_to_string(root.join("bin/tool")).unwrap();
        assert_eq!(text(&to), format!("#!{}/bin/python\nrun()\n", to.display()));
        assert!(text(&from).starts_with(&format!("#!{}/bin/python\n", from.display())));
        let long = format!("/{}", "x".repeat(LONGEST_SHEBANG));
        assert_eq!(
            with_prefix("#!/a/bin/python\nrun()\n", "/a", &long),
            format!("#!/bin/sh\n'''exec' \"{long}/bin/python\" \"$0\" \"$@\"\n' '''\nrun()\n")
        );
    }
}
