//! Folders of this machine that runs in containers share: what was downloaded or built once is not
//! again. What is built for one image is never seen by another image or by the host.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::settings::HostMount;
use super::user::User;

/// One cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The folder on this machine.
    pub host: PathBuf,
    /// Where it is in the container; `~` is the home of whoever runs there.
    pub inside: String,
    pub keyed: Keyed,
    /// The configuration key by which the inner agent and the SDK find it.
    pub tells: Option<&'static str>,
}

/// Who shares a folder below the cache's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyed {
    /// Everybody, the host too: data only.
    Nothing,
    /// All containers that run with one user id: others could not write.
    User,
    /// One image's runs: what is built in it holds for it alone.
    Image,
    /// One run at a time: apt locks the folder and does not wait.
    OneRun,
}

/// Whose runs they are.
#[derive(Debug, Clone, Copy)]
pub struct Image<'a> {
    pub id: &'a str,
    /// As the task or the configuration has it.
    pub name: &'a str,
}

/// A cache that can be mounted, and is, as long as this lives.
#[derive(Debug)]
pub struct Mounted {
    /// As the engine knows the folder.
    pub source: String,
    pub target: String,
    pub tells: Option<&'static str>,
    /// Locked, so that nobody tidies it up meanwhile.
    _claim: Option<File>,
}

/// A folder that was not used for so long goes: its image is not used any more, most likely.
const KEPT: Duration = Duration::from_secs(60 * 24 * 3600);
const OF_IMAGE: &str = "image-";
const OF_USER: &str = "container-user-";
/// The folder with a file for each image that had a folder of its own, named as those are: what the image
/// was called. Containers do not see it.
const NAMES: &str = "names";

impl Mounted {
    #[cfg(test)]
    pub(super) fn for_test(source: &str, target: &str) -> Mounted {
        Mounted {
            source: source.into(),
            target: target.into(),
            tells: None,
            _claim: None,
        }
    }
}

/// How many runs at once may have an apt cache of their own.
const MOST_AT_ONCE: u32 = 64;

/// The folder's name below the cache's own, for caches that are shared by some only.
fn sub_folder(keyed: Keyed, image: &str, user: &User) -> Option<String> {
    match keyed {
        Keyed::Nothing => None,
        // Not the host's own, even for the same user: git believes what a repository configures.
        Keyed::User => Some(format!("{OF_USER}{}", user.uid)),
        Keyed::Image => Some(format!("{OF_IMAGE}{}-user-{}", short(image), user.uid)),
        Keyed::OneRun => Some(format!("user-{}", user.uid)),
    }
}

/// So much of an image's id tells it from others.
fn short(image: &str) -> &str {
    let digest = image.strip_prefix("sha256:").unwrap_or(image);
    digest.get(..16).unwrap_or(digest)
}

/// What one image's runs share, as it is found on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfImage {
    pub folder: PathBuf,
    /// What the image was called when it was last used; its id, where that is not known.
    pub image: String,
    /// Who ran in it.
    pub user: String,
}

/// The folders of images in a cache's `host` folder, by the images' names.
pub fn of_images(host: &Path) -> Vec<OfImage> {
    let entries = fs::read_dir(host).into_iter().flatten().flatten();
    let mut found: Vec<OfImage> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (digest, user) = name.strip_prefix(OF_IMAGE)?.rsplit_once("-user-")?;
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let called = fs::read_to_string(host.join(NAMES).join(digest)).ok();
            is_folder.then(|| OfImage {
                folder: entry.path(),
                image: called.unwrap_or_else(|| digest.to_owned()),
                user: user.to_owned(),
            })
        })
        .collect();
    found.sort_by(|one, other| (&one.image, &one.user).cmp(&(&other.image, &other.user)));
    found
}

/// The folders in a cache's `host` folder that containers of one user share, with that user's number.
pub fn of_users(host: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(host).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.strip_prefix(OF_USER)?.to_owned(), entry.path()))
        })
        .collect();
    found.sort();
    found
}

/// Writes down what the image is called, for people.
fn remember(host: &Path, image: &Image<'_>) {
    let file = host.join(NAMES).join(short(image.id));
    if fs::read_to_string(&file).is_ok_and(|known| known == image.name) {
        return;
    }
    let written = fs::create_dir_all(host.join(NAMES)).and_then(|()| fs::write(&file, image.name));
    if let Err(error) = written {
        tracing::debug!(%error, file = %file.display(), "an image's name is not kept");
    }
}

/// What the engine calls `folder`; `None` where it cannot see it.
fn for_engine(folder: &Path, mount: Option<&HostMount>) -> Option<String> {
    let folder = folder.to_str()?;
    // docker takes a colon for the end of the path.
    if folder.contains(':') {
        return None;
    }
    match mount {
        None => Some(folder.to_owned()),
        Some(mount) => folder
            .contains(&mount.pod)
            .then(|| folder.replacen(&mount.pod, &mount.node, 1)),
    }
}

/// The path in the container: `~`, and the usual `/root` where somebody else runs, are their home.
pub fn at_home(inside: &str, user: &User) -> String {
    let home = user.home.trim_end_matches('/');
    let below = inside
        .strip_prefix("~")
        .or_else(|| inside.strip_prefix("/root").filter(|_| user.uid != 0));
    match below {
        Some(below) if below.is_empty() || below.starts_with('/') => format!("{home}{below}"),
        _ => inside.to_owned(),
    }
}

/// Makes the folder of `cache` and says how it is mounted. The error is why it is not.
pub fn mount(
    cache: &Cache,
    image: &Image<'_>,
    user: &User,
    host_mount: Option<&HostMount>,
) -> Result<Mounted, String> {
    let shown = |error: io::Error| format!("{}: {error}", cache.host.display());
    let me = u64::from(rustix::process::geteuid().as_raw());
    let folder = match sub_folder(cache.keyed, image.id, user) {
        Some(name) => cache.host.join(name),
        None => cache.host.clone(),
    };
    let (folder, claim) = match cache.keyed {
        Keyed::OneRun => claim(&folder)
            .map(|(f, claim)| (f, Some(claim)))
            .map_err(shown)?,
        _ => (folder, None),
    };
    make_for(&folder, user, me).map_err(shown)?;
    if cache.keyed == Keyed::Image {
        remember(&cache.host, image);
    }
    let claim = match cache.keyed {
        Keyed::Image => in_use(&folder),
        _ => claim,
    };
    let source = for_engine(&folder, host_mount)
        .ok_or_else(|| format!("{}: the engine cannot see that folder", folder.display()))?;
    Ok(Mounted {
        source,
        target: at_home(&cache.inside, user),
        tells: cache.tells,
        _claim: claim,
    })
}

/// The folder with a lock that is shared by all that use it; `None` where there are no locks.
fn in_use(folder: &Path) -> Option<File> {
    let held = File::open(folder).ok()?;
    held.lock_shared().ok()?;
    // Somebody else's folder is as young as it is.
    let _ = held.set_modified(SystemTime::now());
    Some(held)
}

/// Removes what `cache` holds for images that were not used for long, as far as this user may. `visit` is
/// called for each of the folders that stay.
pub fn tidy(cache: &Cache, visit: &dyn Fn(&Path)) {
    if cache.keyed != Keyed::Image {
        return;
    }
    for entry in fs::read_dir(&cache.host).into_iter().flatten().flatten() {
        let folder = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(OF_IMAGE) {
            continue;
        }
        let is_old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|used| used.elapsed().is_ok_and(|age| age > KEPT));
        let lock = File::open(&folder).ok();
        let lock = lock.filter(|folder| is_old && folder.try_lock().is_ok());
        if lock.is_none() {
            visit(&folder);
        } else if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::debug!(%error, folder = %folder.display(), "an old cache stays");
        }
    }
}

/// The first folder below `parent` that no other run has.
fn claim(parent: &Path) -> io::Result<(PathBuf, File)> {
    fs::create_dir_all(parent)?;
    for number in 0..MOST_AT_ONCE {
        let lock = File::create(parent.join(format!("{number}.lock")))?;
        if lock.try_lock().is_ok() {
            return Ok((parent.join(number.to_string()), lock));
        }
    }
    Err(io::Error::other("too many runs at once"))
}

/// A folder that the container's user can write to.
fn make_for(folder: &Path, user: &User, me: u64) -> io::Result<()> {
    let is_new = !folder.exists();
    fs::create_dir_all(folder)?;
    let owner = |id: u64| u32::try_from(id).ok();
    if is_new && me == 0 {
        chown(folder, owner(user.uid), owner(user.gid))?;
    }
    let writable = user.uid == 0 || u64::from(fs::metadata(folder)?.uid()) == user.uid;
    match writable {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "user {} of the container could not write there",
            user.uid
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(uid: u64, home: &str) -> User {
        User {
            uid,
            gid: uid,
            home: home.into(),
        }
    }

    #[test]
    fn host_and_images_never_mix() {
        let image = "sha256:0123456789abcdef0123456789abcdef";
        let root = user(0, "/root");
        for (keyed, user, expected) in [
            (Keyed::Nothing, &root, None),
            (Keyed::User, &root, Some("container-user-0")),
            (Keyed::Image, &root, Some("image-0123456789abcdef-user-0")),
            (Keyed::OneRun, &root, Some("user-0")),
        ] {
            let name = sub_folder(keyed, image, user);
            assert_eq!(name.as_deref(), expected, "{keyed:?}");
        }
    }

    #[test]
    fn paths_in_the_container_are_its_users() {
        for (inside, uid, home, expected) in [
            ("~/.ssh", 0, "/root", "/root/.ssh"),
            ("/root/.cache/pip", 0, "/root", "/root/.cache/pip"),
            (
                "/root/.cache/pip",
                1000,
                "/home/app",
                "/home/app/.cache/pip",
            ),
            ("/root/.cache/pip", 5000, "/", "/.cache/pip"),
            ("/rooted/x", 1000, "/home/app", "/rooted/x"),
            (
                "/clearml_agent_cache",
                1000,
                "/home/app",
                "/clearml_agent_cache",
            ),
        ] {
            assert_eq!(at_home(inside, &user(uid, home)), expected);
        }
    }

    #[test]
    fn folders_are_translated_for_an_engine_outside_the_pod() {
        let mount = HostMount {
            node: "/mnt/host/data".into(),
            pod: "/root/.clearml".into(),
        };
        let folder = Path::new("/root/.clearml/vcs-cache");
        assert_eq!(
            for_engine(folder, None).as_deref(),
            Some("/root/.clearml/vcs-cache")
        );
        assert_eq!(
            for_engine(folder, Some(&mount)).as_deref(),
            Some("/mnt/host/data/vcs-cache")
        );
        assert_eq!(for_engine(Path::new("/elsewhere"), Some(&mount)), None);
        assert_eq!(for_engine(Path::new("/with:colon"), None), None);
    }

    #[test]
    fn what_no_image_uses_any_more_goes() {
        let dir = tempfile::tempdir().unwrap();
        let folders = [
            "image-a-user-0",
            "image-b-user-0",
            "image-c-user-0",
            "other",
        ];
        let [old, used, young, other] = folders.map(|name| {
            let folder = dir.path().join(name);
            fs::create_dir_all(folder.join("uv")).unwrap();
            folder
        });
        let held = in_use(&used).unwrap();
        for folder in [&old, &used, &other] {
            let long_ago = SystemTime::now() - 2 * KEPT;
            File::open(folder).unwrap().set_modified(long_ago).unwrap();
        }
        let cache = Cache {
            host: dir.path().to_owned(),
            inside: "/x".into(),
            keyed: Keyed::Image,
            tells: None,
        };
        let visited = std::cell::Cell::new(0);
        tidy(&cache, &|_| visited.set(visited.get() + 1));
        assert!(!old.exists());
        assert!(used.exists() && young.exists() && other.exists());
        assert_eq!(visited.get(), 2);
        drop(held);
    }

    #[test]
    fn what_images_have_is_found_by_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in [
            "image-0123456789abcdef-user-0",
            "image-ffff-user-7",
            "other",
        ] {
            fs::create_dir(at(name)).unwrap();
        }
        std::os::unix::fs::symlink("/", at("image-link-user-0")).unwrap();
        let id = "sha256:0123456789abcdef0123456789abcdef";
        for name in ["python:3.11", "python:3.12"] {
            remember(dir.path(), &Image { id, name });
        }
        let expected = [
            ("image-ffff-user-7", "ffff", "7"),
            ("image-0123456789abcdef-user-0", "python:3.12", "0"),
        ];
        let expected = expected.map(|(folder, image, user)| OfImage {
            folder: at(folder),
            image: image.into(),
            user: user.into(),
        });
        assert_eq!(of_images(dir.path()), expected);
    }

    #[test]
    fn runs_at_once_have_apt_folders_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let (first, held) = claim(dir.path()).unwrap();
        let (second, _also) = claim(dir.path()).unwrap();
        assert_ne!(first, second);
        drop(held);
        assert_eq!(claim(dir.path()).unwrap().0, first);
    }
}
