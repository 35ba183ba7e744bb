//! Which repositories the packages come from, and that the git which uv and pip start gets at them as
//! the agent gets at the task's own. No login stays in the list: git would have it in an argument, which
//! every user of the machine can see.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;
use tokio_util::sync::CancellationToken;

use super::PythonError;
use super::failure::{Cause, InstallFailure};
use super::obtain::Job;
use super::requirements::{Line, List};
use super::settings::Settings;
use super::tool::{find_program, mask};
use super::tools::Kind;
use crate::console::Console;
use crate::source::{self, Lent, Needs};

/// The task's repository, and those of the list, whose logins leave it.
pub fn needs_of(list: &mut List, repository: &str) -> Needs {
    needs(repository, take_from(list))
}

/// The login in the task's own address is lent only where packages come from repositories at all: what is
/// built has it in its environment, too.
fn needs(repository: &str, requirements: Vec<String>) -> Needs {
    let repository = match requirements.is_empty() {
        true => String::new(),
        false => repository.to_owned(),
    };
    Needs {
        repository,
        requirements,
    }
}

/// The addresses of the list's repositories as they are written. Those that stay in the list are as git
/// is going to see them.
fn take_from(list: &mut List) -> Vec<String> {
    let mut found = Vec::new();
    for line in &mut list.lines {
        let Line::Reference { text, .. } = line else {
            continue;
        };
        let Some((start, end, mut url)) = address_in(text) else {
            continue;
        };
        let (path, revision) = match url.path().rsplit_once('@') {
            Some((path, revision)) => (path.to_owned(), format!("@{revision}")),
            None => (url.path().to_owned(), String::new()),
        };
        url.set_path(&path);
        found.push(url.to_string());
        // Neither can fail: the address has a host.
        let _ = url.set_password(None);
        if url.scheme() != "ssh" {
            let _ = url.set_username("");
        }
        text.replace_range(start..end, &format!("{url}{revision}"));
    }
    found
}

/// The address of a repository in a requirement, and where it stands.
fn address_in(text: &str) -> Option<(usize, usize, url::Url)> {
    static KIND: LazyLock<Regex> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant pattern, used by a test")]
        Regex::new(r"(?:^|[\s@])git\+((?:https?|ssh)://[^\s#]+)").unwrap()
    });
    let place = KIND.captures(text)?.get(1)?;
    let url = url::Url::parse(place.as_str()).ok()?;
    url.has_host().then_some((place.start(), place.end(), url))
}

/// What git is told for these.
pub async fn lent(
    needs: Needs,
    settings: &Settings,
    console: &Console,
    stop: &CancellationToken,
) -> Lent {
    let (servers, env) = (settings.git.clone(), settings.environment.clone());
    let (said, token) = (console.clone(), stop.clone());
    let is_needed = !needs.requirements.is_empty();
    // Where there are several ways git is asked, which blocks.
    let lending = move || source::lend(&needs, &servers, &env, &said, &token);
    match tokio::task::spawn_blocking(lending).await {
        Ok(Ok(lent)) => lent,
        Ok(Err(error)) => {
            if is_needed {
                console.say(format!("Note: git gets no login for packages: {error}."));
            }
            Lent::default()
        }
        Err(_) => Lent::default(),
    }
}

/// The same for a project, whose files name its repositories.
pub(super) async fn for_project(job: &Job<'_>, folder: &Path) -> Lent {
    let files = ["pyproject.toml", "uv.lock", "poetry.lock"];
    let texts = files.map(|name| std::fs::read_to_string(folder.join(name)).unwrap_or_default());
    let found = texts.iter().flat_map(|text| addresses_of_project(text));
    let needs = needs(job.repository, found.collect());
    lent(needs, job.settings, job.console, job.stop).await
}

/// `git = "https://…"` of uv and Poetry, `url = "…"` of Poetry's lock, and requirements.
fn addresses_of_project(text: &str) -> Vec<String> {
    static NAMED: LazyLock<Regex> = LazyLock::new(|| {
        #[expect(clippy::unwrap_used, reason = "a constant pattern, used by a test")]
        Regex::new(
            r#"(?:\bgit\s*=\s*["']|type\s*=\s*["']git["']\s*\nurl\s*=\s*["']|git\+)((?:https?|ssh)://[^\s"'?#]+)"#,
        )
        .unwrap()
    });
    let mut found: Vec<String> = NAMED
        .captures_iter(text)
        .map(|named| {
            let whole = &named[1];
            let path = whole.rfind('/').unwrap_or_default();
            // A requirement's revision.
            let end = whole[path..].find('@').map_or(whole.len(), |at| path + at);
            whole[..end].to_owned()
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Fails where the list has a repository and there is no git program to fetch it with: minutes
/// before uv or pip would, which come to it when they have resolved the rest.
pub fn check_program(list: &List, kind: Kind, settings: &Settings) -> Result<(), PythonError> {
    // What an interpreter's own packages have already, nobody fetches.
    if kind != Kind::Own || settings.system_site_packages {
        return Ok(());
    }
    match list.lines.iter().find_map(repository) {
        Some(line) if find_program("git", &settings.search_path()).is_none() => {
            Err(PythonError::Install(InstallFailure {
                tool: "uv",
                code: None,
                cause: Cause::NoGit(mask(line)),
                may_pass: false,
                detail: String::new(),
                place: settings.place,
            }))
        }
        _ => Ok(()),
    }
}

/// The line of a repository that git must fetch; whether one with a marker counts is known to uv and
/// pip alone.
fn repository(line: &Line) -> Option<&str> {
    match line {
        Line::Reference { text, original, .. } => {
            let counts = text.contains("git+") && !text.contains(" ;");
            counts.then_some(original)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::Variables;
    use crate::python::requirements::{Reading, parse};

    fn list_of(text: &str) -> List {
        let env = Variables::new();
        let reading = Reading {
            origin: "test",
            folder: Path::new("/"),
            root: Path::new("/"),
            env: &env,
            original: None,
        };
        parse(text, &reading).unwrap()
    }

    #[test]
    fn logins_leave_the_addresses() {
        let text = "x @ git+https://u:p%40ss@H:8443/o/x.git@main#subdirectory=s ; python_version > '3'\n\
                    git+https://tok@g/o/y@v1/a\ngit+https://h:443/o/z\ngit+ssh://git:pw@h/o/w\nsix\n\
                    git+git@h:o/v.git";
        let mut list = list_of(text);
        assert_eq!(
            take_from(&mut list),
            [
                "https://u:p%40ss@h:8443/o/x.git",
                "https://tok@g/o/y",
                "https://h/o/z",
                "ssh://git:pw@h/o/w",
                "ssh://git@h/o/v.git",
            ]
        );
        assert_eq!(
            list.file(),
            "x @ git+https://h:8443/o/x.git@main#subdirectory=s ; python_version > '3'\n\
             git+https://g/o/y@v1/a\ngit+https://h/o/z\ngit+ssh://git@h/o/w\nsix\n\
             git+ssh://git@h/o/v.git\n"
        );
    }

    #[test]
    fn a_projects_repositories() {
        for (text, found) in [
            (
                "x = { git = \"https://h/o/x.git\", rev = \"main\" }",
                "https://h/o/x.git",
            ),
            (
                "source = { git = \"ssh://git@h/o/x?rev=main#0123\" }",
                "ssh://git@h/o/x",
            ),
            ("x = { git = 'https://h/o/x.git' }", "https://h/o/x.git"),
            (
                "dependencies = [\"x @ git+https://h/o/x@v1\"]",
                "https://h/o/x",
            ),
            (
                "[package.source]\ntype = \"git\"\nurl = \"https://h/o/x.git\"\n",
                "https://h/o/x.git",
            ),
        ] {
            assert_eq!(addresses_of_project(text), [found], "{text}");
        }
    }

    #[test]
    fn which_lines_git_must_fetch() {
        for (line, fetched) in [
            ("git+https://h/o/x.git@main#egg=x", true),
            ("x @ git+ssh://git@h/o/x", true),
            ("-e git+https://h/o/x", true),
            ("git://h/o/x", true),
            ("x @ git+https://h/o/x ; python_version < '3'", false),
            ("x @ https://h/o/x/archive/main.zip", false),
            ("six", false),
        ] {
            let list = list_of(line);
            assert_eq!(repository(&list.lines[0]).is_some(), fetched, "{line}");
        }
    }
}
