//! The demo's private folder: a home of its own, so that neither the user's configuration nor their
//! caches are touched. It goes when the demo ends.

use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;

use crate::config::Variables;

/// In the home folder: where packages come from, and with what password. They are lent to the demo,
/// which only reads them.
const LENT: [&str; 4] = [
    ".config/pip/pip.conf",
    ".pip/pip.conf",
    ".config/uv/uv.toml",
    ".netrc",
];
/// Caches and files outside the home folder, which would stay behind.
const NOT_PASSED_ON: [&str; 4] = [
    "UV_CACHE_DIR",
    "PIP_CACHE_DIR",
    "XDG_CACHE_HOME",
    "XDG_STATE_HOME",
];

#[derive(Debug)]
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// Makes the folder, which only this user can enter.
    pub fn new() -> anyhow::Result<Place> {
        let folder = tempfile::Builder::new()
            .prefix("clearml-demo-")
            .tempdir()
            .with_context(|| {
                let parent = std::env::temp_dir();
                format!(
                    "cannot make a folder in {}: TMPDIR names another place for it",
                    parent.display()
                )
            })?;
        Ok(Place { folder })
    }

    pub fn repository(&self) -> PathBuf {
        self.folder.path().join("train.git")
    }

    /// Makes the home folder with this `clearml.conf`; gives the environment of a program that is
    /// to live in it.
    pub fn furnish(&self, configuration: &str, inherited: &Variables) -> anyhow::Result<Variables> {
        let (home, temporary) = (
            self.folder.path().join("home"),
            self.folder.path().join("tmp"),
        );
        for folder in [&home, &temporary] {
            let made = std::fs::create_dir(folder);
            made.with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let file = home.join("clearml.conf");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        options
            .open(&file)
            .and_then(|mut file| file.write_all(configuration.as_bytes()))
            .with_context(|| format!("cannot write {}", file.display()))?;
        if let Some(users_home) = inherited.get("HOME") {
            lend(Path::new(users_home), &home).context("cannot lend the package settings")?;
        }
        Ok(environment(inherited, &home, &temporary))
    }

    /// Removes the folder and all in it.
    pub fn clear(self) -> anyhow::Result<()> {
        let path = self.folder.path().to_owned();
        self.folder
            .close()
            .with_context(|| format!("the demo's folder {} could not be removed", path.display()))
    }
}

fn lend(users_home: &Path, home: &Path) -> std::io::Result<()> {
    for name in LENT {
        let (theirs, ours) = (users_home.join(name), home.join(name));
        if !theirs.is_file() {
            continue;
        }
        if let Some(folder) = ours.parent() {
            std::fs::create_dir_all(folder)?;
        }
        symlink(std::path::absolute(theirs)?, ours)?;
    }
    Ok(())
}

/// What is inherited (proxies, indexes, certificates, `PATH`) but for the settings of the user's own
/// ClearML and the ways to their caches.
fn environment(inherited: &Variables, home: &Path, temporary: &Path) -> Variables {
    let mut environment = inherited.clone();
    environment.retain(|name, _| {
        !["CLEARML_", "TRAINS_"]
            .iter()
            .any(|of| name.starts_with(of))
            && !NOT_PASSED_ON.contains(&name.as_str())
    });
    for (name, folder) in [("HOME", home), ("TMPDIR", temporary)] {
        environment.insert(name.into(), folder.to_string_lossy().into_owned());
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_own_clearml_and_caches_are_left_out() {
        let inherited = [
            ("HOME", "/home/u"),
            ("PATH", "/usr/bin"),
            ("TMPDIR", "/scratch"),
            ("CLEARML_API_ACCESS_KEY", "key"),
            ("CLEARML_AGENT__AGENT__VENVS_DIR", "/scratch/venvs"),
            ("TRAINS_CONFIG_FILE", "/home/u/trains.conf"),
            ("UV_CACHE_DIR", "/scratch/uv"),
            ("XDG_CACHE_HOME", "/scratch/cache"),
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("PIP_INDEX_URL", "https://index/simple"),
            ("UV_INDEX_URL", "https://index/simple"),
            ("SSL_CERT_FILE", "/etc/ca.pem"),
        ];
        let inherited = inherited.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let found = environment(&inherited.into(), Path::new("/d/home"), Path::new("/d/tmp"));
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let expected = [
            ("HOME", "/d/home"),
            ("HTTPS_PROXY", "http://proxy:3128"),
            ("PATH", "/usr/bin"),
            ("PIP_INDEX_URL", "https://index/simple"),
            ("SSL_CERT_FILE", "/etc/ca.pem"),
            ("TMPDIR", "/d/tmp"),
            ("UV_INDEX_URL", "https://index/simple"),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn package_settings_are_lent_and_stay_when_the_folder_goes() {
        use std::os::unix::fs::PermissionsExt as _;
        let users_home = tempfile::tempdir().unwrap();
        let settings = users_home.path().join(".config/pip/pip.conf");
        std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
        std::fs::write(&settings, "[global]\nindex-url = https://index/simple\n").unwrap();
        let home = users_home.path().to_string_lossy().into_owned();
        let place = Place::new().unwrap();
        let environment = place
            .furnish("api {}", &[("HOME".to_owned(), home)].into())
            .unwrap();
        let home = Path::new(&environment["HOME"]);
        let lent = std::fs::read_to_string(home.join(".config/pip/pip.conf")).unwrap();
        assert!(lent.contains("https://index/simple"));
        let mode = std::fs::metadata(home.join("clearml.conf"))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        let home = home.to_owned();
        place.clear().unwrap();
        assert!(!home.exists() && settings.exists());
    }
}
