//! uv, the program that installs packages: found on the machine, or fetched once as a wheel from
//! the configured package index, checked against the index's hash and kept.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::known::Question;
use super::settings::Settings;
use super::tool;
use crate::console::Console;
use crate::secret::mask_url_password;

/// A uv older than this lacks variables that the agent uses (`UV_OVERRIDE`, `UV_FIND_LINKS`).
const OLDEST: (u32, u32, u32) = (0, 5, 0);
/// For the connection, and for each pause in the answer.
const PATIENCE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uv {
    pub program: PathBuf,
    pub version: String,
}

/// uv for this run. The error is the reason in a few words.
pub async fn find_or_fetch(
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Uv, String> {
    let mut passed_over = Vec::new();
    for path in candidates(settings) {
        match version_of(&path, settings).await {
            Ok(version) if numbers(&version).is_some_and(|found| found >= OLDEST) => {
                return Ok(Uv {
                    program: path,
                    version,
                });
            }
            Ok(version) => passed_over.push(format!("{} is version {version}", path.display())),
            Err(reason) => passed_over.push(format!("{}: {reason}", path.display())),
        }
    }
    if !passed_over.is_empty() {
        console.say(format!("uv passed over: {}.", passed_over.join("; ")));
    }
    if settings.indexes.no_index {
        return Err("uv is not on this machine, and pip's no-index forbids to fetch it".into());
    }
    tokio::select! {
        fetched = fetch_once(settings, console) => fetched.map_err(|e| format!("uv could not be fetched: {e}")),
        () = stop.cancelled() => Err("stopped".into()),
    }
}

/// Of several runs that have no uv, one fetches it and the others wait for it.
async fn fetch_once(settings: &Settings, console: &Console) -> Result<Uv, String> {
    let folder = kept(settings);
    let failed = |e: io::Error| format!("{}: {e}", folder.display());
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let lock = std::fs::File::create(folder.join(".lock")).map_err(failed)?;
    while let Err(std::fs::TryLockError::WouldBlock) = lock.try_lock() {
        tokio::time::sleep(LOCK_POLL).await;
    }
    if let Some(path) = fetched_before(settings)
        .into_iter()
        .find(|path| tool::is_program(path))
        && let Ok(version) = version_of(&path, settings).await
        && numbers(&version).is_some_and(|found| found >= OLDEST)
    {
        return Ok(Uv {
            program: path,
            version,
        });
    }
    fetch(settings, console).await
}

/// Where uv may be, in the order of trial: named, beside the agent, on PATH, fetched before.
fn candidates(settings: &Settings) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = settings.uv_program.iter().cloned().collect();
    if let Ok(agent) = std::env::current_exe()
        && let Some(folder) = agent.parent()
    {
        paths.push(folder.join("uv"));
    }
    paths.extend(
        settings
            .search_path()
            .iter()
            .map(|folder| folder.join("uv")),
    );
    paths.extend(fetched_before(settings));
    paths.retain(|path| tool::is_program(path));
    paths
}

/// The newest first.
fn fetched_before(settings: &Settings) -> Vec<PathBuf> {
    let mut fetched = Vec::new();
    if let Ok(entries) = std::fs::read_dir(kept(settings)) {
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(version) = name.strip_prefix("uv-") {
                fetched.push((numbers(version), entry.path().join("uv")));
            }
        }
    }
    fetched.sort();
    fetched.into_iter().rev().map(|(_, path)| path).collect()
}

/// The folder that fetched versions are kept in, as `uv-VERSION/uv`.
fn kept(settings: &Settings) -> PathBuf {
    settings.cache.join("uv")
}

async fn version_of(program: &Path, settings: &Settings) -> Result<String, String> {
    let question = Question {
        program,
        args: &["--version"],
        env: settings.environment.clone(),
        patience: PATIENCE,
        cache: &settings.cache,
    };
    let said = question.ask().await?;
    let mut words = said.split_whitespace();
    match (words.next(), words.next()) {
        (Some("uv"), Some(version)) => Ok(version.to_owned()),
        _ => Err("is no uv".into()),
    }
}

/// `0.13.9` as numbers; pre-releases and other words are `None`.
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let mut parts = version.split('.').map(|part| part.parse().ok());
    let numbers = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(numbers)
}

/// One file of the index's page.
#[derive(Debug, Clone, PartialEq, Eq)]
struct IndexFile {
    name: String,
    url: String,
    sha256: Option<String>,
    yanked: bool,
}

#[derive(Deserialize)]
struct JsonPage {
    files: Vec<JsonFile>,
}

#[derive(Deserialize)]
struct JsonFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: std::collections::BTreeMap<String, String>,
    #[serde(default)]
    yanked: serde_json::Value,
}

async fn fetch(settings: &Settings, console: &Console) -> Result<Uv, String> {
    let index = settings.indexes.main_url(&settings.environment);
    let shown = mask_url_password(index.expose());
    let page = format!("{}/uv/", index.expose().trim_end_matches('/'));
    let page = Url::parse(&page).map_err(|e| format!("index address {shown}: {e}"))?;
    let client = client_for(&page, settings)?;
    let failed = |e: reqwest::Error| {
        let e = e.without_url();
        // The innermost cause is the one that says something.
        let mut cause: &dyn std::error::Error = &e;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        format!("{shown}: {cause}")
    };
    let answer = client
        .get(page.clone())
        .header(
            "accept",
            "application/vnd.pypi.simple.v1+json, text/html;q=0.5",
        )
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(failed)?;
    let base = answer.url().clone();
    let body = answer.text().await.map_err(failed)?;
    let files = parse_page(&body);
    let (version, file) = best(&files, std::env::consts::ARCH).ok_or_else(|| {
        format!(
            "{shown} has no uv for this machine ({})",
            std::env::consts::ARCH
        )
    })?;
    let sha256 = file
        .sha256
        .clone()
        .ok_or_else(|| format!("{shown} gives no SHA-256 for {}", file.name))?;
    let url = with_credentials(base.join(&file.url).map_err(|e| e.to_string())?, &page);
    console.say(format!("Fetching uv {version} from {shown} (once)"));

    let folder = kept(settings);
    let io_failed = |e: io::Error| format!("{}: {e}", folder.display());
    std::fs::create_dir_all(&folder).map_err(io_failed)?;
    // In the same folder, so that the finished one can be put in its place by a rename.
    let work = tempfile::Builder::new()
        .prefix(".fetching-")
        .tempdir_in(&folder)
        .map_err(io_failed)?;
    let wheel = work.path().join("uv.whl");
    let mut out = std::fs::File::create(&wheel).map_err(io_failed)?;
    let mut hash = Sha256::new();
    let mut answer = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .map_err(failed)?;
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        hash.update(&chunk);
        out.write_all(&chunk).map_err(io_failed)?;
    }
    drop(out);
    let found: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if !found.eq_ignore_ascii_case(&sha256) {
        return Err(format!(
            "{} has the SHA-256 {found} and should have {sha256}: not used",
            file.name
        ));
    }
    let place = folder.join(format!("uv-{version}"));
    let ready = work.path().join("ready");
    tokio::task::spawn_blocking(move || unpack(&wheel, &ready).map(|()| ready))
        .await
        .map_err(|e| e.to_string())?
        .and_then(|ready| match std::fs::rename(&ready, &place) {
            // Another run was faster; its copy is the same.
            Err(_) if place.join("uv").is_file() => Ok(place),
            Err(cause) => Err(cause),
            Ok(()) => Ok(place),
        })
        .map_err(io_failed)
        .map(|place| Uv {
            program: place.join("uv"),
            version,
        })
}

/// A client that reaches this address as pip would.
pub(super) fn client_for(url: &Url, settings: &Settings) -> Result<reqwest::Client, String> {
    settings
        .indexes
        .connection
        .client(url, &settings.environment)?
        .connect_timeout(PATIENCE)
        .read_timeout(PATIENCE)
        .build()
        .map_err(|e| e.to_string())
}

/// The page's credentials for a file on the same host.
fn with_credentials(mut url: Url, page: &Url) -> Url {
    if url.username().is_empty() && url.host() == page.host() && url.port() == page.port() {
        // Neither can fail: the address has a host.
        let _ = url.set_username(page.username());
        let _ = url.set_password(page.password());
    }
    url
}

/// The program of the wheel, into `folder`.
fn unpack(wheel: &Path, folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut archive =
        zip::ZipArchive::new(std::fs::File::open(wheel)?).map_err(io::Error::other)?;
    let name = archive
        .file_names()
        .flatten()
        .find(|name| name.ends_with(".data/scripts/uv"))
        .map(std::borrow::Cow::into_owned)
        .ok_or_else(|| io::Error::other("the wheel holds no uv program"))?;
    let mut entry = archive.by_name(&name).map_err(io::Error::other)?;
    std::fs::create_dir_all(folder)?;
    let mut out = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(folder.join("uv"))?;
    io::copy(&mut entry, &mut out)?;
    out.sync_all()
}

/// The files of a page in either form: JSON (PEP 691) or HTML (PEP 503).
fn parse_page(body: &str) -> Vec<IndexFile> {
    if let Ok(page) = serde_json::from_str::<JsonPage>(body) {
        let file = |file: JsonFile| IndexFile {
            name: file.filename,
            url: file.url,
            sha256: file.hashes.get("sha256").cloned(),
            // `false`, `true`, or the reason as text.
            yanked: !matches!(
                file.yanked,
                serde_json::Value::Bool(false) | serde_json::Value::Null
            ),
        };
        return page.files.into_iter().map(file).collect();
    }
    static LINK: LazyLock<Regex> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant pattern, used by a test")]
        Regex::new(r#"(?is)<a\s([^>]*?)href\s*=\s*["']([^"']+)["']([^>]*)>\s*([^<]*?)\s*</a>"#)
            .unwrap()
    });
    LINK.captures_iter(body)
        .map(|link| {
            let address = link[2].replace("&amp;", "&");
            let (url, fragment) = address.split_once('#').unwrap_or((&address, ""));
            let name = url.rsplit('/').next().unwrap_or(url);
            let name = name.split('?').next().unwrap_or(name);
            IndexFile {
                name: match name.ends_with(".whl") {
                    true => name.to_owned(),
                    false => link[4].to_owned(),
                },
                url: url.to_owned(),
                sha256: fragment
                    .split('&')
                    .find_map(|part| part.strip_prefix("sha256="))
                    .map(str::to_owned),
                yanked: link[1].contains("data-yanked") || link[3].contains("data-yanked"),
            }
        })
        .collect()
}

/// The newest release that runs here. The musl build first: it needs no C library of the
/// machine, and so it runs in any container too.
fn best<'a>(files: &'a [IndexFile], arch: &str) -> Option<(String, &'a IndexFile)> {
    let rank = |platform: &str| match () {
        () if !platform.ends_with(arch) => None,
        () if platform.starts_with("musllinux_1_1") => Some(2),
        () if platform.starts_with("musllinux") => Some(1),
        () if platform.starts_with("manylinux") => Some(0),
        () => None,
    };
    files
        .iter()
        .filter(|file| !file.yanked)
        .filter_map(|file| {
            let mut parts = file.name.strip_suffix(".whl")?.split('-');
            if parts.next()? != "uv" {
                return None;
            }
            let version = parts.next()?;
            // `a.b`: one wheel for several platforms.
            let platform = parts.next_back()?.split('.').filter_map(rank).max()?;
            Some((numbers(version)?, platform, version, file))
        })
        .max_by_key(|(number, platform, _, _)| (*number, *platform))
        .map(|(_, _, version, file)| (version.to_owned(), file))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JSON: &str = r#"{"files": [
        {"filename": "uv-0.9.9-py3-none-musllinux_1_1_x86_64.whl", "url": "a", "hashes": {"sha256": "aa"}, "yanked": false},
        {"filename": "uv-0.10.1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "url": "b", "hashes": {"sha256": "bb"}},
        {"filename": "uv-0.10.1-py3-none-musllinux_1_1_x86_64.whl", "url": "c", "hashes": {"sha256": "cc"}},
        {"filename": "uv-0.10.1-py3-none-musllinux_1_1_aarch64.whl", "url": "d", "hashes": {}},
        {"filename": "uv-0.11.0rc1-py3-none-musllinux_1_1_x86_64.whl", "url": "e", "hashes": {}},
        {"filename": "uv-0.12.0-py3-none-musllinux_1_1_x86_64.whl", "url": "f", "hashes": {}, "yanked": "broken"},
        {"filename": "uv-0.12.1.tar.gz", "url": "g", "hashes": {}}
    ]}"#;

    const HTML: &str = r#"<html><body>
        <a href="../../f/uv-0.10.1-py3-none-musllinux_1_1_x86_64.whl#sha256=cc" data-requires-python="&gt;=3.8">uv-0.10.1-py3-none-musllinux_1_1_x86_64.whl</a><br/>
        <a data-yanked="" href="/f/uv-0.10.2-py3-none-musllinux_1_1_x86_64.whl#sha256=dd">x</a>
        </body></html>"#;

    #[test]
    fn the_newest_release_for_this_machine_is_chosen() {
        for (page, arch, expected) in [
            (JSON, "x86_64", Some(("0.10.1", "c"))),
            (JSON, "aarch64", Some(("0.10.1", "d"))),
            (JSON, "riscv64", None),
            (
                HTML,
                "x86_64",
                Some((
                    "0.10.1",
                    "../../f/uv-0.10.1-py3-none-musllinux_1_1_x86_64.whl",
                )),
            ),
            ("<html></html>", "x86_64", None),
        ] {
            let files = parse_page(page);
            let found = best(&files, arch).map(|(version, file)| (version, file.url.clone()));
            let expected = expected.map(|(v, u)| (v.to_owned(), u.to_owned()));
            assert_eq!(found, expected, "{arch}");
        }
        assert_eq!(parse_page(HTML)[0].sha256.as_deref(), Some("cc"));
    }

    #[test]
    fn credentials_stay_on_their_host() {
        let page = Url::parse("https://u:p@h/simple/uv/").unwrap();
        for (url, expected) in [
            ("https://h/f.whl", "https://u:p@h/f.whl"),
            ("https://other/f.whl", "https://other/f.whl"),
            ("https://h:8443/f.whl", "https://h:8443/f.whl"),
        ] {
            let url = with_credentials(Url::parse(url).unwrap(), &page);
            assert_eq!(url.as_str(), expected);
        }
    }
}
