//! The task's list of packages: where it comes from, and its lines made such that uv and pip read
//! them alike. Nothing that a line says is dropped without a word, and a line that can't be read
//! fails here, before anything is installed.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

use super::tool::mask;
use super::{PythonError, Variables};

mod list;
mod text;

pub use list::{Line, List};
use text::{decode, expand, logical_lines, options};

/// A package's name as indexes compare it (PEP 503).
pub fn normalise(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for c in name.trim().chars() {
        match c {
            '-' | '_' | '.' => {
                if !normal.ends_with('-') {
                    normal.push('-');
                }
            }
            c => normal.extend(c.to_lowercase()),
        }
    }
    normal
}

/// What a list is read with.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    /// For people: "the task's packages", or the file.
    pub origin: &'a str,
    /// The folder that holds the file; `-r` and `-c` are looked for here first.
    pub folder: &'a Path,
    /// What `./package` stands in: the repository's root.
    pub root: &'a Path,
    /// For `${NAME}`.
    pub env: &'a Variables,
    /// The list that the task was first recorded with, for versions that the current one lost.
    pub original: Option<&'a str>,
}

/// Reads a list.
pub fn parse(text: &str, reading: &Reading<'_>) -> Result<List, PythonError> {
    let mut list = List::default();
    parse_into(&mut list, text, reading, 0)?;
    keep_last(&mut list);
    Ok(list)
}

/// Reads files, as one list.
pub fn parse_files(files: &[PathBuf], reading: &Reading<'_>) -> Result<List, PythonError> {
    let mut list = List::default();
    for file in files {
        include(&mut list, file, &file.to_string_lossy(), reading, 0)?;
    }
    keep_last(&mut list);
    Ok(list)
}

/// The files that a requirements file names by `-r` and `-c`.
pub fn included(bytes: &[u8]) -> Vec<String> {
    let lines = logical_lines(&decode(bytes.to_vec()).unwrap_or_default());
    let lines = lines.iter().filter(|line| line.starts_with('-'));
    lines
        .filter_map(|line| options(line))
        .flatten()
        .filter(|(name, _)| {
            matches!(
                name.as_str(),
                "-r" | "--requirement" | "-c" | "--constraint"
            )
        })
        .filter_map(|(_, file)| file)
        .collect()
}

/// `-r` within `-r` within …: beyond this it is a circle.
pub const DEEPEST: usize = 10;

fn parse_into(
    list: &mut List,
    text: &str,
    reading: &Reading<'_>,
    depth: usize,
) -> Result<(), PythonError> {
    for raw in logical_lines(text) {
        let expanded = expand(&raw, reading.env);
        let line = expanded.trim();
        let refused = |cause: &str| PythonError::Requirement {
            line: mask(&raw),
            origin: reading.origin.to_owned(),
            cause: cause.to_owned(),
        };
        if line.is_empty() {
            continue;
        }
        if !line.starts_with('-') {
            let parsed = requirement(line, &raw, reading, list).ok_or_else(|| {
                refused("it is no requirement; write NAME, NAME==VERSION, a path or an address")
            })?;
            list.lines.push(parsed);
            continue;
        }
        let options = options(line).ok_or_else(|| refused("a quote is not closed"))?;
        for (name, value) in &options {
            add_option(list, (name, value.as_deref()), &raw, reading, depth)?;
        }
    }
    Ok(())
}

/// One option of a line.
fn add_option(
    list: &mut List,
    (name, value): (&str, Option<&str>),
    raw: &str,
    reading: &Reading<'_>,
    depth: usize,
) -> Result<(), PythonError> {
    let refused = |cause: &str| PythonError::Requirement {
        line: mask(raw),
        origin: reading.origin.to_owned(),
        cause: cause.to_owned(),
    };
    match (name, value) {
        ("-r" | "--requirement", Some(file)) => {
            if depth >= DEEPEST {
                return Err(refused("requirement files include each other in a circle"));
            }
            let path = locate(file, reading)
                .ok_or_else(|| refused("the file is not in the repository"))?;
            include(list, &path, raw, reading, depth)?;
        }
        ("-c" | "--constraint", Some(file)) if file.contains("://") => {
            list.lines.push(Line::Setting(format!("-c {file}")));
        }
        ("-c" | "--constraint", Some(file)) => {
            let path = locate(file, reading)
                .ok_or_else(|| refused("the file is not in the repository"))?;
            list.lines
                .push(Line::Setting(format!("-c {}", path.display())));
        }
        ("-e" | "--editable", Some(what)) => {
            let parsed = editable(what, raw, reading, list)
                .ok_or_else(|| refused("it is no folder and no repository address"))?;
            list.lines.push(parsed);
        }
        ("-i" | "--index-url" | "--pypi-url", Some(url)) => {
            list.notes.push(format!(
                "the list replaces the package index by {}",
                mask(url)
            ));
            list.lines.push(Line::Setting(format!("--index-url {url}")));
        }
        ("--extra-index-url", Some(value)) => {
            list.lines.push(Line::Setting(format!("{name} {value}")));
        }
        ("-f" | "--find-links", Some(place)) => {
            let place = match locate(place, reading) {
                Some(path) if !place.contains("://") => path.to_string_lossy().into_owned(),
                _ => place.to_owned(),
            };
            list.lines
                .push(Line::Setting(format!("--find-links {place}")));
        }
        ("--trusted-host" | "--no-binary" | "--only-binary", Some(value)) => {
            list.lines.push(Line::Setting(format!("{name} {value}")));
        }
        ("--pre" | "--no-index" | "--require-hashes" | "--prefer-binary", None) => {
            list.lines.push(Line::Setting(name.to_owned()));
        }
        _ if !name.starts_with('-') => {
            return Err(refused(&format!(
                "{} stands behind an option; write it on a line of its own",
                mask(name)
            )));
        }
        _ => return Err(refused("this option is not known in a list of packages")),
    }
    Ok(())
}

/// The lines of a file that the line `raw` names.
fn include(
    list: &mut List,
    path: &Path,
    raw: &str,
    reading: &Reading<'_>,
    depth: usize,
) -> Result<(), PythonError> {
    let bytes = std::fs::read(path).map_err(|e| e.to_string());
    let text = bytes
        .and_then(decode)
        .map_err(|cause| PythonError::Requirement {
            line: mask(raw),
            origin: reading.origin.to_owned(),
            cause: format!("{}: {cause}", path.display()),
        })?;
    let inner = Reading {
        origin: &path.to_string_lossy(),
        folder: path.parent().unwrap_or(reading.root),
        ..*reading
    };
    parse_into(list, &text, &inner, depth + 1)
}

fn locate(file: &str, reading: &Reading<'_>) -> Option<PathBuf> {
    let file = file.strip_prefix("file://").unwrap_or(file);
    [reading.folder, reading.root]
        .iter()
        .map(|folder| folder.join(file))
        .find(|path| path.exists())
}

/// Any requirement that is no option.
fn requirement(line: &str, raw: &str, reading: &Reading<'_>, list: &mut List) -> Option<Line> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        pattern(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*@\s*([^\s#].*)$")
    });
    if let Some(named) = NAMED.captures(line) {
        return Some(named_reference(
            &named[1],
            named.get(2).map_or("", |extras| extras.as_str()),
            &named[3],
            raw,
            reading,
            list,
        ));
    }
    if is_address(line) {
        return Some(Line::Reference {
            name: egg_name(line),
            text: address(line),
            original: raw.to_owned(),
            local: local_path(line),
        });
    }
    if let Some(local) = local_reference(line, raw, reading, "") {
        return Some(local);
    }
    package(line, list)
}

/// `name @ address ; marker`.
fn named_reference(
    name: &str,
    extras: &str,
    target: &str,
    raw: &str,
    reading: &Reading<'_>,
    list: &mut List,
) -> Line {
    // The marker is set off by a blank: a semicolon may be part of an address.
    let (place, marker) = match target.split_once(" ;").or_else(|| target.split_once("; ")) {
        Some((place, marker)) => (place.trim(), format!(" ; {}", marker.trim())),
        None => (target.trim(), String::new()),
    };
    let local = local_path(place);
    if let Some(path) = &local
        && !place.contains('+')
        && !path.exists()
    {
        let version = reading
            .original
            .and_then(|original| original_pin(original, name));
        let text = match &version {
            Some(version) => format!("{name}{extras}=={version}{marker}"),
            None => format!("{name}{extras}{marker}"),
        };
        list.notes.push(format!(
            "{} is not on this machine: {} is taken from the package index instead{}",
            path.display(),
            text.split(" ;").next().unwrap_or(name),
            match version {
                Some(_) => "",
                None => ", in whatever version is newest",
            }
        ));
        return Line::Package {
            name: normalise(name),
            text,
            pin: version,
            has_marker: !marker.is_empty(),
        };
    }
    Line::Reference {
        name: Some(name.to_owned()),
        text: format!("{name}{extras} @ {}{marker}", address(place)),
        original: raw.to_owned(),
        local,
    }
}

/// The version of a package in the list that the task was first recorded with.
fn original_pin(original: &str, name: &str) -> Option<String> {
    let mut scratch = List::default();
    logical_lines(original)
        .iter()
        .find_map(|line| match package(line, &mut scratch)? {
            Line::Package {
                name: found, pin, ..
            } if found == normalise(name) => pin,
            _ => None,
        })
}

fn editable(what: &str, raw: &str, reading: &Reading<'_>, list: &mut List) -> Option<Line> {
    // Neither uv nor a fresh environment has use for an editable clone.
    if is_address(what) && !what.starts_with("file:") {
        return requirement(what, raw, reading, list);
    }
    local_reference(what.trim_start_matches("file://"), raw, reading, "-e ")
}

const VCS: [&str; 4] = ["git+", "hg+", "svn+", "bzr+"];

fn is_address(text: &str) -> bool {
    VCS.iter().any(|vcs| text.starts_with(vcs))
        || ["http://", "https://", "ftp://", "file:", "git://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
}

/// The address in the form that both uv and pip take: `git+git@host:o/r` is what people write
/// and no URL.
fn address(text: &str) -> String {
    static SCP: LazyLock<Regex> =
        LazyLock::new(|| pattern(r"^git\+(?:ssh://)?([^/@\s]+@[^/:\s]+):([^0-9/\s][^\s]*)(.*)$"));
    if let Some(found) = SCP.captures(text) {
        return format!("git+ssh://{}/{}{}", &found[1], &found[2], &found[3]);
    }
    match text.strip_prefix("git://") {
        Some(rest) => format!("git+git://{rest}"),
        None => text.to_owned(),
    }
}

fn egg_name(text: &str) -> Option<String> {
    let (_, fragment) = text.split_once('#')?;
    let egg = fragment
        .split('&')
        .find_map(|part| part.strip_prefix("egg="))?;
    let end = egg.find(['[', ' ', ';', '-']).unwrap_or(egg.len());
    Some(egg[..end].to_owned()).filter(|name| !name.is_empty())
}

/// The path of a `file:` address.
fn local_path(text: &str) -> Option<PathBuf> {
    let text = text
        .split_once('+')
        .map_or(text, |(vcs, rest)| if vcs.len() <= 4 { rest } else { text });
    let path = text.strip_prefix("file:")?;
    let path = path.split(['#', ' ']).next().unwrap_or(path);
    let url = url::Url::parse(&format!("file://{}", path.trim_start_matches("//"))).ok()?;
    url.to_file_path().ok()
}

/// `./package`, `../package[extra]`, `/abs`, `dist/x.whl`: made absolute, because the list is
/// read from another folder.
fn local_reference(line: &str, raw: &str, reading: &Reading<'_>, prefix: &str) -> Option<Line> {
    let (place, marker) = match line.split_once(" ;") {
        Some((place, marker)) => (place.trim(), format!(" ; {}", marker.trim())),
        None => (line.trim(), String::new()),
    };
    let (path, extras) = match place.find('[') {
        Some(at) if place.ends_with(']') => place.split_at(at),
        _ => (place, ""),
    };
    let is_archive = [".whl", ".tar.gz", ".zip", ".tar.bz2", ".tgz"]
        .iter()
        .any(|suffix| path.ends_with(suffix));
    let looks_local = path.starts_with('.') || path.contains('/') || is_archive;
    // After `-e` a bare word is a folder too.
    let is_meant = looks_local || !prefix.is_empty();
    let place: PathBuf = reading.root.join(path).components().collect();
    let is_words = path.contains(char::is_whitespace) && !place.exists();
    if path.is_empty() || !is_meant || is_words {
        return None;
    }
    let path = place;
    // A path with blanks is no word for pip; its address is.
    let shown = path.to_string_lossy();
    let shown = match shown.contains(char::is_whitespace) {
        true => url::Url::from_file_path(&path).map_or(shown.into_owned(), String::from),
        false => shown.into_owned(),
    };
    Some(Line::Reference {
        name: None,
        text: format!("{prefix}{shown}{extras}{marker}"),
        original: raw.to_owned(),
        local: Some(path),
    })
}

/// The packages whose builds for CUDA carry it in their version (`2.3.1+cu121`).
pub const TORCH: [&str; 5] = [
    "torch",
    "torchvision",
    "torchaudio",
    "torchcsprng",
    "torchtext",
];

/// `name[extras] specifiers ; marker --hash=…`.
fn package(line: &str, list: &mut List) -> Option<Line> {
    static PACKAGE: LazyLock<Regex> = LazyLock::new(|| {
        pattern(
            r"(?x)^ (?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?) \s*
            (?P<extras>\[[^\]]*\])? \s*
            (?P<specs>\(?\s* (?:(?:===|~=|==|!=|<=|>=|<|>)\s*[A-Za-z0-9_.*+!-]+\s*,?\s*)* \)?) \s*
            (?P<marker>;[^\\]*?)? \s*
            (?P<hashes>(?:--hash[=\s][a-z0-9]+:[0-9A-Fa-f]+\s*)*) $",
        )
    });
    let found = PACKAGE.captures(line)?;
    let name = normalise(&found["name"]);
    let part = |group: &str| {
        found
            .name(group)
            .map_or("", |m| m.as_str())
            .trim()
            .to_owned()
    };
    let (extras, mut specs) = (part("extras"), part("specs"));
    let (marker, hashes) = (part("marker"), part("hashes"));
    specs = specs
        .trim_matches(['(', ')'])
        .trim()
        .trim_end_matches(',')
        .to_owned();
    if TORCH.contains(&name.as_str())
        && specs.starts_with("==")
        && let Some((plain, local)) = specs.split_once('+')
        && !plain.contains(',')
    {
        list.notes.push(format!(
            "{name} {specs}: +{local} names a build of another machine; any build of that version \
             is taken"
        ));
        specs = plain.to_owned();
    }
    static PIN: LazyLock<Regex> = LazyLock::new(|| pattern(r"^={2,3}\s*([^\s,*]+)$"));
    let pin = PIN.captures(&specs).map(|pin| pin[1].to_owned());
    let has_marker = !marker.is_empty();
    let mut text = format!("{}{extras}{specs}", &found["name"]);
    for more in [marker, hashes] {
        if !more.is_empty() {
            text.push(' ');
            text.push_str(&more);
        }
    }
    Some(Line::Package {
        name,
        text,
        pin,
        has_marker,
    })
}

/// Of several lines for one package the last one counts, as with the Python agent; uv and newer
/// pips would refuse them.
fn keep_last(list: &mut List) {
    let mut kept: Vec<Line> = Vec::with_capacity(list.lines.len());
    for line in std::mem::take(&mut list.lines).into_iter().rev() {
        let Line::Package {
            name,
            text,
            has_marker: false,
            ..
        } = &line
        else {
            kept.push(line);
            continue;
        };
        let later = kept.iter().find_map(|k| match k {
            Line::Package {
                name: other,
                text,
                has_marker: false,
                ..
            } if other == name => Some(text.clone()),
            _ => None,
        });
        match later {
            None => kept.push(line),
            Some(later) if later == *text => {}
            Some(later) => list.notes.push(format!(
                "{text} is in the list as {later} too: the last one counts"
            )),
        }
    }
    kept.reverse();
    list.lines = kept;
}

/// Every `requirements.txt` from the repository's root down to the entry point's folder.
pub fn files_in_repository(root: &Path, working_dir: &Path, entry_point: &str) -> Vec<PathBuf> {
    let file = match working_dir.join(entry_point).is_file() {
        true => entry_point.to_owned(),
        false => shlex::split(entry_point)
            .and_then(|words| words.into_iter().next())
            .unwrap_or_default(),
    };
    let mut folder = working_dir.to_owned();
    if !file.starts_with('-')
        && let Some(parent) = Path::new(&file).parent()
    {
        folder = folder.join(parent);
    }
    let folder: PathBuf = folder.components().collect();
    let mut files: Vec<PathBuf> = folder
        .ancestors()
        .take_while(|ancestor| ancestor.starts_with(root))
        .map(|ancestor| ancestor.join("requirements.txt"))
        .filter(|path| path.is_file())
        .collect();
    files.reverse();
    files
}

fn pattern(text: &str) -> Regex {
    #[expect(clippy::unwrap_used, reason = "constant patterns, each used by a test")]
    Regex::new(text).unwrap()
}

#[cfg(test)]
mod tests;
