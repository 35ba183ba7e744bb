//! What conda found for a list, kept so that the next run need not let it search again: the files of all
//! packages, by address and hash (conda's own `@EXPLICIT` form), which it links from its package cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Conda;
use super::prefix;
use crate::python::settings::Settings;

/// A file that no run has written for so long goes.
const KEPT: Duration = Duration::from_secs(60 * 24 * 3600);

/// An answer of conda's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Solved {
    /// The packages' files; `URL#MD5`.
    pub files: Vec<String>,
    /// What it could not have, by name.
    pub left: Vec<String>,
}

impl Solved {
    /// What is in a prefix now; `None` where a record does not say where its package is from.
    pub fn of(prefix: &Path, left: Vec<String>) -> Option<Solved> {
        let records = prefix::records(prefix);
        let files: Option<Vec<String>> = records
            .into_iter()
            .map(|record| {
                let url = record.url.filter(|url| !url.contains(['<', '*', ' ']))?;
                Some(match record.md5 {
                    Some(md5) => format!("{url}#{md5}"),
                    None => url,
                })
            })
            .collect();
        files
            .filter(|files| !files.is_empty())
            .map(|files| Solved { files, left })
    }

    /// The text of a file for conda.
    pub fn explicit(&self) -> String {
        format!("@EXPLICIT\n{}\n", self.files.join("\n"))
    }
}

/// Where one answer is kept.
pub struct Place {
    file: PathBuf,
    /// An older answer does not count.
    fresh: Option<Duration>,
}

impl Place {
    /// `None`: nothing is kept. `asked`: the list; all else that the answer depends on is added.
    pub fn of(conda: &Conda, settings: &Settings, asked: &[String]) -> Option<Place> {
        let cache = settings.venvs_cache.as_ref()?;
        let home = settings.home.as_deref();
        let own = [
            home.map(|home| home.join(".condarc")),
            home.map(|home| home.join(".mambarc")),
            settings.variable("CONDARC").map(PathBuf::from),
            Some("/etc/conda/.condarc".into()),
            // The C library and its kin are a part of what conda looks at.
            Some("/etc/os-release".into()),
        ];
        let own = own.into_iter().flatten().map(fs::read_to_string);
        let own = own.map(Result::unwrap_or_default);
        let machine = [conda.name, &conda.version, std::env::consts::ARCH];
        let mut hash = Sha256::new();
        let parts = machine.into_iter().map(str::to_owned).chain(own);
        for part in parts.chain(settings.conda.channels.iter().cloned()) {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let mut asked = asked.to_vec();
        asked.sort();
        for line in asked {
            hash.update(line.len().to_le_bytes());
            hash.update(line);
        }
        let hash = hash.finalize();
        let name: String = hash.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Some(Place {
            file: settings.cache.join("conda").join(format!("{name}.json")),
            fresh: cache.resolve_after,
        })
    }

    pub fn read(&self) -> Option<(Solved, Duration)> {
        let written = fs::metadata(&self.file).ok()?.modified().ok()?;
        let age = SystemTime::now()
            .duration_since(written)
            .unwrap_or_default();
        if self.fresh.is_some_and(|fresh| age > fresh) {
            return None;
        }
        let solved = serde_json::from_slice(&fs::read(&self.file).ok()?).ok()?;
        Some((solved, age))
    }

    /// In one step, and for nobody else to read: addresses of private channels may hold tokens. Where it
    /// can't be written, the next run searches again.
    pub fn write(&self, solved: &Solved) {
        let written = || -> std::io::Result<()> {
            let folder = self.file.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(folder)?;
            let file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer(&file, solved)?;
            file.persist(&self.file)?;
            tidy(folder);
            Ok(())
        };
        if let Err(error) = written() {
            tracing::debug!(%error, "conda's answer is not kept");
        }
    }

    /// It can't be had any more.
    pub fn forget(&self) {
        let _ = fs::remove_file(&self.file);
    }
}

fn tidy(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in entries {
        let written = entry.metadata().and_then(|meta| meta.modified());
        let age = written.map(|at| SystemTime::now().duration_since(at).unwrap_or_default());
        if age.is_ok_and(|age| age > KEPT) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::cache::settings::CacheSettings;
    use crate::python::conda::Dialect;

    #[test]
    fn an_answer_is_kept_for_the_question_that_it_answers() {
        let dir = tempfile::tempdir().unwrap();
        let conda = Conda {
            program: "/c/bin/conda".into(),
            name: "conda",
            version: "24.1.2".into(),
            dialect: Dialect::Conda,
        };
        let mut settings = Settings {
            cache: dir.path().to_owned(),
            venvs_cache: Some(CacheSettings::at(dir.path().join("venvs"))),
            ..Settings::default()
        };
        let asked = |lines: &[&str]| lines.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
        let place = |settings: &Settings, lines: &[&str]| {
            Place::of(&conda, settings, &asked(lines)).unwrap()
        };
        let meta = dir.path().join("p/conda-meta");
        fs::create_dir_all(&meta).unwrap();
        let record =
            r#"{"name": "a", "version": "1", "url": "https://h/a-1.conda", "md5": "c0ffee"}"#;
        fs::write(meta.join("a-1-0.json"), record).unwrap();
        let solved = Solved::of(&dir.path().join("p"), vec!["b".into()]).unwrap();
        assert_eq!(solved.explicit(), "@EXPLICIT\nhttps://h/a-1.conda#c0ffee\n");

        place(&settings, &["a", "b"]).write(&solved);
        assert_eq!(place(&settings, &["b", "a"]).read().unwrap().0, solved);
        assert!(place(&settings, &["a"]).read().is_none());
        settings.conda.channels.push("ours".into());
        assert!(place(&settings, &["a", "b"]).read().is_none());
        settings.conda.channels.pop();
        // Not for ever.
        if let Some(cache) = &mut settings.venvs_cache {
            cache.resolve_after = Some(Duration::ZERO);
        }
        assert!(place(&settings, &["a", "b"]).read().is_none());
        settings.venvs_cache = None;
        assert!(Place::of(&conda, &settings, &asked(&["a", "b"])).is_none());

        // A record without a place: such an environment can't be made again.
        fs::write(meta.join("b-1-0.json"), r#"{"name": "b"}"#).unwrap();
        assert_eq!(Solved::of(&dir.path().join("p"), Vec::new()), None);
    }
}
