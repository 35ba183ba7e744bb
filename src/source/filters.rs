//! What `.gitattributes` asks for and libgit2 does not do: the `filter` drivers of the user's git
//! configuration, `working-tree-encoding`, and all of `ident`. The machine's own git does it. A
//! repository names a driver and never says what that runs; Git LFS is `lfs`'s.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use git2::build::CheckoutBuilder;
use git2::{AttrCheckFlags, AttrValue, Repository};

use super::attributes::change_contents;
use super::error::SourceError;
use super::git_program;
use super::lfs;
use super::mirror::Mirrors;
use super::network::Network;
use super::program;
use super::ssh::on_path;

const FILE: &str = ".gitattributes";
const ENCODING: &str = "working-tree-encoding";

/// What a file's attributes ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asked {
    filter: Option<String>,
    encoding: Option<String>,
    ident: bool,
    /// `eol=crlf`, which libgit2 does when it checks out.
    crlf: bool,
}

/// A `filter.<name>` of git's configuration that has a command, for one way or the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Driver {
    /// It has a command for the way to the work tree.
    runs: bool,
    required: bool,
}

/// Who writes a file.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Writer {
    /// libgit2 has done it.
    Nobody,
    Git {
        /// Why, where it cannot go without.
        needed_for: Option<String>,
    },
    /// This filter must not be left out, and there is nothing to run.
    Commandless(String),
}

impl Asked {
    fn writer(&self, drivers: &BTreeMap<String, Driver>) -> Writer {
        let encoding = self.encoding.as_ref().map(|e| format!("{ENCODING}={e}"));
        let git = |needed_for| Writer::Git { needed_for };
        match self.driver(drivers) {
            Some((name, driver)) if driver.required && !driver.runs => {
                Writer::Commandless(name.to_owned())
            }
            Some((name, driver)) if driver.required => {
                git(encoding.or_else(|| Some(format!("filter={name}"))))
            }
            Some((_, driver)) if driver.runs => git(encoding),
            _ if encoding.is_some() || self.ident => git(encoding),
            _ => Writer::Nobody,
        }
    }

    fn driver(&self, drivers: &BTreeMap<String, Driver>) -> Option<(&str, Driver)> {
        let name = self.filter.as_deref().filter(|name| *name != lfs::NAME)?;
        Some((name, drivers.get(name).copied()?))
    }

    /// The filter that nothing is known of here: the file stays as it is stored.
    fn unconfigured(&self, drivers: &BTreeMap<String, Driver>) -> Option<&str> {
        let name = self.filter.as_deref().filter(|name| *name != lfs::NAME)?;
        (!drivers.contains_key(name)).then_some(name)
    }
}

/// Whether a `.gitattributes` file has something for this module.
fn has_work(text: &[u8], crlf_too: bool) -> bool {
    let text = String::from_utf8_lossy(text);
    let mut words = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace);
    words.any(|word| {
        word == "ident"
            || word.starts_with("working-tree-encoding=")
            || (crlf_too && word == "eol=crlf")
            || word
                .strip_prefix("filter=")
                .is_some_and(|name| name != lfs::NAME)
    })
}

/// The attributes of one file.
fn asked(repository: &Repository, path: &str) -> Result<Asked, git2::Error> {
    let value = |name: &str| -> Result<AttrValue<'_>, git2::Error> {
        let flags = AttrCheckFlags::FILE_THEN_INDEX;
        let value = repository.get_attr(Path::new(path), name, flags)?;
        Ok(AttrValue::from_string(value))
    };
    let text = |name: &str| -> Result<Option<String>, git2::Error> {
        Ok(match value(name)? {
            AttrValue::String(text) => Some(text.to_owned()),
            _ => None,
        })
    };
    Ok(Asked {
        filter: text("filter")?,
        // Everything is stored in UTF-8, and git converts nothing to it.
        encoding: text(ENCODING)?.filter(|name| {
            !name.is_empty()
                && !name.eq_ignore_ascii_case("utf-8")
                && !name.eq_ignore_ascii_case("utf8")
        }),
        ident: value("ident")? == AttrValue::True,
        crlf: text("eol")?.as_deref() == Some("crlf"),
    })
}

/// The files of a checkout that have attributes for this module.
fn files_with_work(
    repository: &Repository,
    root: &Path,
    network: &Network<'_>,
) -> Result<Vec<(String, Asked)>, git2::Error> {
    let index = repository.index()?;
    let entries: Vec<_> = index
        .iter()
        .filter(is_file)
        .filter_map(|entry| String::from_utf8(entry.path).ok())
        .collect();
    if !is_in_use(&entries, root, network, false) {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for path in entries {
        let asked = asked(repository, &path)?;
        if asked != Asked::default() {
            files.push((path, asked));
        }
    }
    Ok(files)
}

fn is_in_use(paths: &[String], root: &Path, network: &Network<'_>, crlf_too: bool) -> bool {
    let own = paths
        .iter()
        .filter(|path| path.rsplit('/').next() == Some(FILE))
        .map(|path| root.join(path));
    own.chain(of_the_machine(network))
        .any(|path| fs::read(path).is_ok_and(|text| has_work(&text, crlf_too)))
}

/// Files with attributes for every repository of this user.
fn of_the_machine(network: &Network<'_>) -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/gitattributes")];
    let home = network.env.get("HOME").map(PathBuf::from);
    let config = network.env.get("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| Some(home?.join(".config")));
    files.extend(config.map(|folder| folder.join("git/attributes")));
    let named = git2::Config::open_default().and_then(|c| c.get_path("core.attributesFile"));
    files.extend(named.ok());
    files
}

/// Writes the files that libgit2 has not written as git would.
pub(super) fn write_files(
    mirrors: &Mirrors<'_>,
    repository: &Repository,
) -> Result<(), SourceError> {
    let Some(root) = repository.workdir() else {
        return Ok(());
    };
    let (network, console) = (&mirrors.network, mirrors.console);
    let reading = || SourceError::git("reading .gitattributes");
    before_their_attributes(repository).map_err(reading())?;
    let files = files_with_work(repository, root, network).map_err(reading())?;
    if files.is_empty() {
        return Ok(());
    }
    let git = on_path(network.env, "git");
    let drivers = drivers(network, git.as_deref(), root);
    let mut by_git = Vec::new();
    let mut unconfigured: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, asked) in &files {
        if let Some(name) = asked.unconfigured(&drivers) {
            unconfigured.entry(name).or_default().push(path);
        }
        match asked.writer(&drivers) {
            Writer::Nobody => {}
            Writer::Git { needed_for } => match (&git, needed_for) {
                (None, Some(what)) => {
                    return Err(SourceError::AttributeNeedsGit {
                        file: path.clone(),
                        what,
                    });
                }
                _ => by_git.push(path.as_str()),
            },
            Writer::Commandless(name) => {
                return Err(SourceError::FilterWithoutCommand {
                    file: path.clone(),
                    name,
                });
            }
        }
    }
    for (name, files) in unconfigured {
        console.say(format!(
            "{} {} the filter \"{name}\", which git's configuration here does not define: stored \
             content stays as it is",
            some_of(&files),
            if files.len() == 1 { "has" } else { "have" },
        ));
    }
    match (git, by_git.is_empty()) {
        (_, true) => Ok(()),
        (Some(git), false) => by_git_itself(mirrors, repository, root, &git, &by_git),
        (None, false) => {
            console.say(format!(
                "Warning: there is no git on this machine for the filter or ident of {}",
                some_of(&by_git)
            ));
            Ok(())
        }
    }
}

/// libgit2 writes files in their order, and one that comes before the `.gitattributes` beside it
/// without its attributes.
fn before_their_attributes(repository: &Repository) -> Result<(), git2::Error> {
    let index = repository.index()?;
    let is_one = |path: &[u8]| {
        let folder = path.strip_suffix(FILE.as_bytes());
        folder.is_some_and(|folder| folder.is_empty() || folder.ends_with(b"/"))
    };
    let attributes = index.iter().map(|entry| entry.path);
    let attributes: Vec<Vec<u8>> = attributes.filter(|path| is_one(path)).collect();
    let root = repository.workdir().unwrap_or(repository.path());
    let config = repository.config()?.snapshot()?;
    let matter = |path: &Vec<u8>| {
        let text = fs::read(root.join(OsStr::from_bytes(path)));
        text.is_ok_and(|text| change_contents(&text))
    };
    let line_ends = ["core.autocrlf", "core.eol"];
    let configured = || line_ends.iter().any(|key| config.get_entry(key).is_ok());
    if attributes.is_empty() || !(configured() || attributes.iter().any(matter)) {
        return Ok(());
    }
    let comes_first = |path: &[u8]| {
        attributes.iter().any(|file| {
            path <= file.as_slice() && path.starts_with(&file[..file.len() - FILE.len()])
        })
    };
    let early = index
        .iter()
        .filter(|entry| is_file(entry) && comes_first(&entry.path));
    let early: Vec<Vec<u8>> = early.map(|entry| entry.path).collect();
    if early.is_empty() {
        return Ok(());
    }
    let mut options = CheckoutBuilder::new();
    options.force().disable_pathspec_match(true);
    for path in &early {
        let path = Path::new(OsStr::from_bytes(path));
        // What is as the index has it would be left alone.
        let _ = fs::remove_file(root.join(path));
        options.path(path);
    }
    repository.checkout_index(None, Some(&mut options))
}

/// Neither a link nor a submodule: only files have contents to convert.
fn is_file(entry: &git2::IndexEntry) -> bool {
    entry.mode & 0o170_000 == 0o100_000
}

fn some_of(files: &[&str]) -> String {
    match files {
        [] => String::new(),
        [one] => format!("1 file ({one})"),
        [first, ..] => format!("{} files ({first}, …)", files.len()),
    }
}

fn by_git_itself(
    mirrors: &Mirrors<'_>,
    repository: &Repository,
    root: &Path,
    git: &Path,
    files: &[&str],
) -> Result<(), SourceError> {
    let failed = |cause: String| SourceError::Filter {
        files: some_of(files),
        cause,
    };
    for path in files {
        let full = root.join(path);
        // git leaves a file alone that is as the index has it.
        fs::remove_file(&full).map_err(SourceError::io("replacing", full))?;
    }
    let mut command = Command::new(git);
    command
        .args(["checkout-index", "--force", "--index", "-z", "--stdin"])
        .current_dir(root);
    git_program::on_this_machine(&mut command, mirrors.network.env);
    let input: String = files.iter().map(|path| format!("{path}\0")).collect();
    let finished = program::run(command, input.as_bytes(), mirrors.stop, &|_| {})
        .map_err(|error| failed(error.to_string()))?;
    if mirrors.stop.is_cancelled() {
        return Err(SourceError::Stopped);
    }
    let said = finished
        .errors
        .iter()
        .filter(|line| !line.trim().is_empty());
    let missing = files
        .iter()
        .any(|path| fs::symlink_metadata(root.join(path)).is_err());
    if !finished.success || missing {
        let mut said: Vec<&str> = said.map(String::as_str).collect();
        let last = said.split_off(said.len().saturating_sub(5));
        return Err(failed(last.join("; ")));
    }
    // As at a shell: a filter that is not required may fail, and says so.
    for line in said {
        mirrors.console.say(format!("git: {line}"));
    }
    let reading = SourceError::git("reading the index");
    let reread = repository.index().and_then(|mut index| index.read(true));
    reread.map_err(reading)
}

/// What git's configuration for this user and machine (and no repository's) says of filters.
fn drivers(network: &Network<'_>, git: Option<&Path>, root: &Path) -> BTreeMap<String, Driver> {
    let Some(git) = git else {
        let mut pairs = Vec::new();
        let entries = git2::Config::open_default().and_then(|config| {
            config.entries(Some("filter\\..*"))?.for_each(|entry| {
                let value = entry.has_value().then(|| entry.value().unwrap_or_default());
                if let Ok(name) = entry.name() {
                    pairs.push((name.to_owned(), value.map(str::to_owned)));
                }
            })
        });
        // One that cannot be read configures nothing.
        drop(entries);
        return drivers_of(pairs.iter().map(|(k, v)| (k.as_str(), v.as_deref())));
    };
    let mut command = Command::new(git);
    command
        .args(["config", "--null", "--get-regexp", r"^filter\."])
        .current_dir(root);
    git_program::on_this_machine(&mut command, network.env);
    let finished = program::run(command, b"", network.stop, &|_| {});
    let output = finished.map_or_else(|_| Vec::new(), |finished| finished.output);
    let text = String::from_utf8_lossy(&output);
    drivers_of(
        text.split_terminator('\0')
            .map(|entry| match entry.split_once('\n') {
                Some((key, value)) => (key, Some(value)),
                None => (entry, None),
            }),
    )
}

fn drivers_of<'e>(
    entries: impl Iterator<Item = (&'e str, Option<&'e str>)>,
) -> BTreeMap<String, Driver> {
    let mut drivers: BTreeMap<String, Driver> = BTreeMap::new();
    let mut required: BTreeMap<String, bool> = BTreeMap::new();
    for (key, value) in entries {
        let Some((name, what)) = key
            .strip_prefix("filter.")
            .and_then(|rest| rest.rsplit_once('.'))
        else {
            continue;
        };
        let name = name.to_owned();
        let has_command = value.is_some_and(|value| !value.is_empty());
        match what {
            "smudge" | "process" => drivers.entry(name).or_default().runs |= has_command,
            "clean" => drop(drivers.entry(name).or_default()),
            // A key without a value is switched on.
            "required" => {
                let on = value.is_none_or(|value| {
                    ["true", "yes", "on"].contains(&value.to_lowercase().as_str())
                        || value.parse::<i64>().is_ok_and(|number| number != 0)
                });
                required.insert(name, on);
            }
            _ => {}
        }
    }
    // Of a driver with no command at all git takes no notice.
    for (name, driver) in &mut drivers {
        driver.required = required.get(name).copied().unwrap_or_default();
    }
    drivers
}

/// For changes to files that do not stand in the work tree as git stores them: they are made to the
/// stored content, as `git apply` makes them.
pub(super) struct Conversion<'a> {
    network: &'a Network<'a>,
    repository: &'a Repository,
    git: PathBuf,
    drivers: BTreeMap<String, Driver>,
    submodules: Vec<String>,
}

impl<'a> Conversion<'a> {
    /// Nothing where no file of the checkout is converted, or there is no git to do it.
    pub(super) fn of(network: &'a Network<'a>, repository: &'a Repository) -> Option<Self> {
        let root = repository.workdir()?;
        let git = on_path(network.env, "git")?;
        let index = repository.index().ok()?;
        let (mut paths, mut submodules) = (Vec::new(), Vec::new());
        for entry in index.iter() {
            let Ok(path) = String::from_utf8(entry.path) else {
                continue;
            };
            match entry.mode {
                0o160_000 => submodules.push(format!("{path}/")),
                _ => paths.push(path),
            }
        }
        is_in_use(&paths, root, network, true).then(|| Self {
            drivers: drivers(network, Some(&git), root),
            network,
            repository,
            git,
            submodules,
        })
    }

    fn concerns(&self, path: &str) -> bool {
        if self
            .submodules
            .iter()
            .any(|folder| path.starts_with(folder))
        {
            return false;
        }
        asked(self.repository, path).is_ok_and(|asked| {
            asked.crlf || matches!(asked.writer(&self.drivers), Writer::Git { .. })
        })
    }

    /// The content of a file as it is stored, where that is not what stands in the work tree.
    pub(super) fn stored(&self, path: &str) -> Option<Vec<u8>> {
        let entry = self.repository.index().ok()?.get_path(Path::new(path), 0)?;
        if !self.concerns(path) {
            return None;
        }
        let blob = self.repository.find_blob(entry.id).ok()?;
        Some(blob.content().to_vec())
    }

    /// The content for the work tree, where that is another than the stored one; the error is what git
    /// said.
    pub(super) fn to_work_tree(
        &self,
        path: &str,
        content: &[u8],
    ) -> Result<Option<Vec<u8>>, String> {
        if !self.concerns(path) {
            return Ok(None);
        }
        let root = self.repository.workdir().unwrap_or(self.repository.path());
        let blob = self.repository.blob(content);
        let blob = blob.map_err(|error| error.message().to_owned())?;
        let mut command = Command::new(&self.git);
        command
            .args(["cat-file", "--filters"])
            .arg(format!("--path={path}"))
            .arg(blob.to_string())
            .current_dir(root);
        git_program::on_this_machine(&mut command, self.network.env);
        let finished = program::run(command, b"", self.network.stop, &|_| {})
            .map_err(|error| error.to_string())?;
        match finished.success {
            true => Ok(Some(finished.output)),
            false => Err(finished.errors.join("; ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_a_file() {
        let driver = |runs, required| Driver { runs, required };
        let drivers = BTreeMap::from([
            ("crypt".to_owned(), driver(true, true)),
            ("sed".to_owned(), driver(true, false)),
            ("clean-only".to_owned(), driver(false, false)),
            ("half".to_owned(), driver(false, true)),
            ("lfs".to_owned(), driver(true, true)),
        ]);
        let git = |needed_for: Option<&str>| Writer::Git {
            needed_for: needed_for.map(str::to_owned),
        };
        let encoded = "working-tree-encoding=UTF-16";
        for (filter, encoding, ident, writer) in [
            (None, None, false, Writer::Nobody),
            (None, None, true, git(None)),
            (None, Some("UTF-16"), false, git(Some(encoded))),
            (Some("crypt"), None, false, git(Some("filter=crypt"))),
            (Some("crypt"), Some("UTF-16"), false, git(Some(encoded))),
            (Some("sed"), None, false, git(None)),
            (Some("sed"), Some("UTF-16"), false, git(Some(encoded))),
            (
                Some("half"),
                None,
                false,
                Writer::Commandless("half".into()),
            ),
            (Some("unknown"), Some("UTF-16"), false, git(Some(encoded))),
            (Some("unknown"), None, true, git(None)),
            (Some("unknown"), None, false, Writer::Nobody),
            (Some("clean-only"), None, false, Writer::Nobody),
            (Some("lfs"), None, false, Writer::Nobody),
        ] {
            let asked = Asked {
                filter: filter.map(str::to_owned),
                encoding: encoding.map(str::to_owned),
                ident,
                crlf: false,
            };
            assert_eq!(asked.writer(&drivers), writer, "{asked:?}");
            let unknown = asked.unconfigured(&drivers).is_some();
            assert_eq!(unknown, filter == Some("unknown"), "{asked:?}");
        }
    }

    #[test]
    fn what_the_configuration_says_of_filters() {
        let drivers = drivers_of(
            [
                ("filter.a.smudge", Some("sed s/a/b/")),
                ("filter.a.required", None),
                ("filter.git.crypt.process", Some("x")),
                ("filter.git.crypt.required", Some("0")),
                ("filter.c.smudge", Some("")),
                ("filter.c.required", Some("TRUE")),
                ("filter.d.clean", Some("x")),
                ("filter.e.required", Some("true")),
            ]
            .into_iter(),
        );
        let found = |name: &str| (drivers[name].runs, drivers[name].required);
        assert_eq!(found("a"), (true, true));
        assert_eq!(found("git.crypt"), (true, false));
        assert_eq!(found("c"), (false, true));
        assert_eq!(found("d"), (false, false));
        assert!(!drivers.contains_key("e"));
    }

    #[test]
    fn attributes_that_libgit2_or_lfs_deals_with_cost_nothing() {
        for (text, work) in [
            ("* text=auto\n*.bat eol=crlf\n", false),
            ("*.bin filter=lfs diff=lfs merge=lfs -text\n", false),
            (
                "# filter=x\n*.a -ident !filter -working-tree-encoding\n",
                false,
            ),
            ("*.a filter=x\n", true),
            ("[attr]secret filter=x\n*.a secret\n", true),
            ("*.a text working-tree-encoding=UTF-16\n", true),
            ("\"a b\" ident\n", true),
        ] {
            assert_eq!(has_work(text.as_bytes(), false), work, "{text}");
        }
        assert!(has_work(b"*.bat eol=crlf", true));
    }
}
