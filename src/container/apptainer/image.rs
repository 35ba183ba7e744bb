//! What an image's name means to Apptainer: a file, a folder, or an address to fetch it from.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// One image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Image {
    /// A `.sif` file or a sandbox folder of this machine.
    Local(PathBuf),
    /// `docker://…`, `oras://…`, `library://…`.
    Address(String),
}

/// A path is one that begins like a path, or ends like an image file; a bare name is one for a registry, as
/// in tasks that run with docker.
pub fn image(text: &str, cwd: &Path) -> Image {
    let begins = |start: &str| text.starts_with(start);
    let of_file = [".sif", ".sqsh", ".simg", ".img"];
    let is_path = begins("/")
        || begins("./")
        || begins("../")
        || text == "."
        || text == ".."
        || (of_file.iter().any(|end| text.ends_with(end)) && !text.contains(':'));
    // `docker-archive:/path`, `oci:/path`: an address of a kind that has no slashes of its own.
    let is_address = text.split_once(':').is_some_and(|(kind, rest)| {
        rest.starts_with("//")
            || matches!(
                kind,
                "docker-archive" | "docker-daemon" | "oci" | "oci-archive"
            )
    });
    match () {
        () if is_address => Image::Address(text.to_owned()),
        () if is_path => Image::Local(cwd.join(text)),
        () => Image::Address(format!("docker://{text}")),
    }
}

impl Image {
    /// The word for Apptainer's command line.
    pub fn word(&self) -> String {
        match self {
            Image::Local(path) => path.to_string_lossy().into_owned(),
            Image::Address(address) => address.clone(),
        }
    }

    /// By what its caches are told from those of others: a file by its very state, an address by itself
    /// (what is behind it is known only when it is there).
    pub fn id(&self) -> String {
        let mut hash = Sha256::new_with_prefix("apptainer\0");
        hash.update(self.word());
        if let Image::Local(path) = self
            && let Ok(found) = std::fs::metadata(path)
        {
            use std::os::unix::fs::MetadataExt as _;
            let state = [
                found.dev(),
                found.ino(),
                found.len(),
                found.mtime().unsigned_abs(),
            ];
            for number in state {
                hash.update(number.to_le_bytes());
            }
        }
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        let address = |text: &str| Image::Address(text.to_owned());
        let local = |text: &str| Image::Local(text.into());
        for (text, expected) in [
            ("python:3.12-slim", address("docker://python:3.12-slim")),
            (
                "nvcr.io/nvidia/pytorch:24.01-py3",
                address("docker://nvcr.io/nvidia/pytorch:24.01-py3"),
            ),
            (
                "host:5000/team/image",
                address("docker://host:5000/team/image"),
            ),
            ("docker://alpine", address("docker://alpine")),
            ("oras://ghcr.io/a/b:1", address("oras://ghcr.io/a/b:1")),
            ("library://a/b/c", address("library://a/b/c")),
            (
                "docker-archive:/images/x.tar",
                address("docker-archive:/images/x.tar"),
            ),
            ("/images/torch.sif", local("/images/torch.sif")),
            ("torch.sif", local("/home/u/torch.sif")),
            ("images/torch.sif", local("/home/u/images/torch.sif")),
            ("./box", local("/home/u/./box")),
            ("/images/a:b.sif", local("/images/a:b.sif")),
        ] {
            assert_eq!(image(text, Path::new("/home/u")), expected, "{text}");
        }
    }

    #[test]
    fn a_file_that_changed_is_another_image() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.sif");
        std::fs::write(&file, "one").unwrap();
        let image = Image::Local(file.clone());
        let before = image.id();
        assert_eq!(before, image.id());
        std::fs::write(&file, "two!").unwrap();
        assert_ne!(before, image.id());
    }
}
