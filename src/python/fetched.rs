//! A Python that this machine lacks, got by uv into a folder of its own: when that is allowed, how
//! long it may take, and what is remembered of a failure. Called by
//! [`find_tools`](super::tools::find_tools) where no interpreter fits.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::choice;
use super::filling::base_variables;
use super::interpreter::{Interpreter, Version, probe};
use super::settings::Settings;
use super::tool::{self, Call};
use super::tools::Tools;
use super::uv::{self, Uv};
use super::{PythonError, Variables};
use crate::console::Console;

/// A machine without the internet is not made to wait again for so long.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);
/// uv's own defaults add up to minutes where packets are lost on the way; seconds each, unless the
/// user has set them.
const BOUNDS: [(&str, &str); 3] = [
    ("UV_HTTP_CONNECT_TIMEOUT", "3"),
    ("UV_HTTP_TIMEOUT", "10"),
    ("UV_HTTP_RETRIES", "1"),
];
/// For a host that sends a byte now and then.
const LONGEST: Duration = Duration::from_secs(15 * 60);

/// Why no Python may be fetched.
pub fn forbidden(settings: &Settings) -> Option<String> {
    if settings.standalone.is_some() {
        return Some("--standalone-mode fetches nothing".into());
    }
    if settings.indexes.no_index {
        return Some("pip's no-index says that nothing is to be fetched".into());
    }
    let offline = settings.variable("UV_OFFLINE").map(str::to_lowercase);
    if offline.is_some_and(|v| ["1", "true", "yes", "y", "on", "t"].contains(&v.as_str())) {
        return Some("UV_OFFLINE is set".into());
    }
    let (said, by) = match settings.variable("UV_PYTHON_DOWNLOADS") {
        Some(said) => (said.to_owned(), "UV_PYTHON_DOWNLOADS".to_owned()),
        None => of_files(settings)?,
    };
    matches!(said.as_str(), "never" | "manual" | "false").then(|| format!("{by} is {said}"))
}

/// `python-downloads` of uv's configuration files; the last one counts.
fn of_files(settings: &Settings) -> Option<(String, String)> {
    let said = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).ok()?;
        let value = text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == "python-downloads").then_some(value)
        })?;
        let value = value.split('#').next().unwrap_or(value);
        let value = value.trim().trim_matches(['"', '\'']).to_owned();
        Some((value, format!("python-downloads in {}", path.display())))
    };
    settings.tool_files().into_iter().rev().find_map(said)
}

/// Where fetched Pythons are kept.
pub fn folder(settings: &Settings) -> PathBuf {
    match settings.variable("UV_PYTHON_INSTALL_DIR") {
        Some(folder) => folder.into(),
        None => settings.cache.join("python"),
    }
}

/// Fetches a Python of this version. The inner error says why there is none, in a few words.
pub(super) async fn fetch(
    version: Version,
    tools: &Tools,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Result<Interpreter, String>, PythonError> {
    if let Some(why) = forbidden(settings) {
        return Ok(Err(format!("not fetched, because {why}")));
    }
    let folder = folder(settings);
    let memory = Memory::of(version, &folder, settings);
    if let Some((age, why)) = memory.recall() {
        return Ok(Err(format!(
            "fetching it failed {} min ago and is tried again {} min after that: {why}",
            age.as_secs() / 60,
            REMEMBERED.as_secs() / 60,
        )));
    }
    let uv = match (&tools.uv, &tools.uv_missing) {
        (Some(uv), _) => Ok(uv.clone()),
        (None, Some(why)) => Err(why.clone()),
        (None, None) => uv::find_or_fetch(settings, console, stop).await,
    };
    let installing = Installing {
        folder: &folder,
        settings,
        console,
        stop,
    };
    let why = match uv {
        Err(_) if stop.is_cancelled() => return Err(PythonError::Stopped),
        Err(why) => why,
        Ok(uv) => match installing.install(&uv, version).await? {
            Ok(found) => return Ok(Ok(found)),
            // That will not be another thing in an hour, but it costs no time either.
            Err(why) if why.contains("No download found") => return Ok(Err(why)),
            Err(why) => why,
        },
    };
    memory.keep(&why);
    Ok(Err(why))
}

struct Installing<'a> {
    folder: &'a Path,
    settings: &'a Settings,
    console: &'a Console,
    stop: &'a CancellationToken,
}

impl Installing<'_> {
    async fn install(
        &self,
        uv: &Uv,
        version: Version,
    ) -> Result<Result<Interpreter, String>, PythonError> {
        self.console.say(format!(
            "Fetching Python {version} with uv (once): this machine has none"
        ));
        let mut why = String::new();
        // A patch version that is no longer offered is not worth another minor version.
        let exact = version.patch.map(|patch| format!("{version}.{patch}"));
        let quiet = Console::new(|_| ());
        let exact = exact.map(|request| (request, &quiet));
        let any_patch = (version.to_string(), self.console);
        for (request, console) in exact.into_iter().chain([any_patch]) {
            why = match self.run(uv, &request, console).await? {
                Ok(()) => match self.find(version).await {
                    Some(found) => return Ok(Ok(found)),
                    None => "what uv has fetched does not run here".into(),
                },
                Err(why) => why,
            };
            if !why.contains("No download found") {
                break;
            }
        }
        Ok(Err(why))
    }

    /// The inner error is uv's own.
    async fn run(
        &self,
        uv: &Uv,
        request: &str,
        console: &Console,
    ) -> Result<Result<(), String>, PythonError> {
        let mut args: Vec<String> = ["python", "install", "--no-progress", "--color", "never"]
            .map(str::to_owned)
            .to_vec();
        args.push(request.to_owned());
        let call = Call {
            program: uv.program.clone(),
            args,
            env: tool::environment(&self.settings.environment, self.variables()),
            // Not the repository: its pyproject.toml is not asked.
            dir: "/".into(),
        };
        let run = tool::run(&call, console, self.stop);
        let Ok(finished) = tokio::time::timeout(LONGEST, run).await else {
            let minutes = LONGEST.as_secs() / 60;
            return Ok(Err(format!("it was not there after {minutes} min")));
        };
        let finished = finished?;
        Ok(match finished.succeeded() {
            true => Ok(()),
            false => Err(words(&finished.last_lines)),
        })
    }

    fn variables(&self) -> Variables {
        let mut told = base_variables(self.settings);
        // What the user has set is uv's to read.
        told.remove("UV_PYTHON_DOWNLOADS");
        for (name, bound) in BOUNDS {
            if self.settings.variable(name).is_none() {
                told.entry(name.into()).or_insert_with(|| bound.into());
            }
        }
        let folder = self.folder.to_string_lossy().into_owned();
        told.insert("UV_PYTHON_INSTALL_DIR".into(), folder);
        // Nothing is put on anybody's PATH.
        told.insert("UV_PYTHON_INSTALL_BIN".into(), "0".into());
        told
    }

    async fn find(&self, version: Version) -> Option<Interpreter> {
        for (path, of) in choice::managed(self.folder, "cpython-") {
            if version.accepts((of.major, of.minor.unwrap_or_default(), 0))
                && let Ok(found) =
                    probe(&path, &self.settings.environment, &self.settings.cache).await
                && version.accepts(found.version)
            {
                return Some(found);
            }
        }
        None
    }
}

/// uv's words for an error in one line: what failed, and the innermost cause.
fn words(lines: &[String]) -> String {
    let said = |start: &str| {
        let of = |line: &String| line.trim().strip_prefix(start).map(str::to_owned);
        lines.iter().filter_map(of).collect::<Vec<_>>()
    };
    let (errors, causes) = (said("error: "), said("cause: "));
    let first = errors.into_iter().next().or_else(|| lines.last().cloned());
    let first = first.unwrap_or_else(|| "uv said nothing".into());
    match causes.last() {
        Some(cause) => format!("{first}: {cause}"),
        None => first,
    }
}

/// A failure in a file, for the runs that come next.
struct Memory {
    file: PathBuf,
}

impl Memory {
    /// Another place to fetch from is another try.
    fn of(version: Version, folder: &Path, settings: &Settings) -> Memory {
        let mut hash = Sha256::new();
        for name in [
            "UV_PYTHON_INSTALL_MIRROR",
            "UV_PYTHON_DOWNLOADS_JSON_URL",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
        ] {
            let value = settings.variable(name).unwrap_or_default();
            hash.update(value.len().to_le_bytes());
            hash.update(value);
        }
        let place = &hash.finalize()[..8];
        let place: String = place.iter().map(|b| format!("{b:02x}")).collect();
        Memory {
            file: folder.join(format!(".failed-{version}-{place}")),
        }
    }

    fn recall(&self) -> Option<(Duration, String)> {
        let written = std::fs::metadata(&self.file).ok()?.modified().ok()?;
        let age = SystemTime::now()
            .duration_since(written)
            .unwrap_or_default();
        let why = std::fs::read_to_string(&self.file).ok()?;
        (age < REMEMBERED).then_some((age, why))
    }

    /// Where it can't be written, the next run tries again.
    fn keep(&self, why: &str) {
        let folder = self.file.parent().map(std::fs::create_dir_all);
        if let Some(Ok(())) = folder
            && let Err(error) = std::fs::write(&self.file, why)
        {
            tracing::debug!(%error, "a failed fetch is not remembered");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_a_python_may_be_fetched() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("uv.toml");
        std::fs::write(
            &file,
            "offline = false\npython-downloads = \"manual\" # so\n",
        )
        .unwrap();
        let file = file.to_str().unwrap();
        for (variables, allowed) in [
            (&[][..], true),
            (&[("UV_PYTHON_DOWNLOADS", "automatic")], true),
            (&[("UV_PYTHON_DOWNLOADS", "never")], false),
            (&[("UV_PYTHON_DOWNLOADS", "manual")], false),
            (&[("UV_OFFLINE", "1")], false),
            (&[("UV_OFFLINE", "0")], true),
            (&[("UV_CONFIG_FILE", file)], false),
            (
                &[
                    ("UV_CONFIG_FILE", file),
                    ("UV_PYTHON_DOWNLOADS", "automatic"),
                ],
                true,
            ),
        ] {
            let mut settings = Settings::default();
            for (name, value) in variables {
                let value = (*value).to_owned();
                settings.environment.insert((*name).to_owned(), value);
            }
            let found = forbidden(&settings);
            assert_eq!(found.is_none(), allowed, "{variables:?} {found:?}");
        }
        let standalone = Settings {
            standalone: Some("/venvs".into()),
            ..Settings::default()
        };
        assert!(forbidden(&standalone).is_some());
    }

    #[test]
    fn uvs_words_in_one_line() {
        for (lines, expected) in [
            (
                &[
                    "error: Failed to install cpython-3.14.0-linux-x86_64-gnu",
                    "  cause: Failed to download `https://h/x`",
                    "  cause: dns error",
                ][..],
                "Failed to install cpython-3.14.0-linux-x86_64-gnu: dns error",
            ),
            (
                &["error: No download found for request: cpython-3.6"],
                "No download found for request: cpython-3.6",
            ),
            (&["warning: x", "what else"], "what else"),
            (&[], "uv said nothing"),
        ] {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            assert_eq!(words(&lines), expected);
        }
    }
}
