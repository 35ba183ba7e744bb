//! How the git program that uv and pip start gets at private repositories: with the agent's git
//! credentials and those that stand in the list's addresses, given by the environment. None is in
//! an argument, which every user of the machine can see, or in a file.

use super::failure::{Cause, InstallFailure};
use super::requirements::{Line, List};
use super::settings::Settings;
use super::tool::{find_program, mask};
use super::tools::Kind;
use super::{PythonError, Variables};
use crate::secret::Secret;
use crate::source::GitCredentials;

/// What is offered to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Login {
    /// `https://host:8443`; `None`: to all that ask.
    place: Option<String>,
    user: String,
    password: Secret,
}

/// The credentials for one installation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitAccess(Vec<Login>);

impl GitAccess {
    /// The agent's own, where both user and password are known.
    pub fn of(configured: &GitCredentials) -> GitAccess {
        let (Some(user), Some(password)) = (&configured.user, &configured.password) else {
            return GitAccess::default();
        };
        let login = |place| Login {
            place,
            user: user.clone(),
            password: password.clone(),
        };
        GitAccess(match configured.host.as_deref() {
            None => vec![login(None)],
            Some(host) => ["https", "http"]
                .map(|scheme| login(Some(format!("{scheme}://{host}"))))
                .to_vec(),
        })
    }

    /// Takes the credentials out of the list's repository addresses. What stands there is meant for
    /// that host, and comes before the agent's.
    pub fn take_from(&mut self, list: &mut List) {
        let mut found = Vec::new();
        for line in &mut list.lines {
            let Line::Reference { text, .. } = line else {
                continue;
            };
            let Some(at) = text.find("git+http") else {
                continue;
            };
            let start = at + "git+".len();
            let end = text[start..]
                .find([' ', '#'])
                .map_or(text.len(), |end| start + end);
            let Ok(mut url) = url::Url::parse(&text[start..end]) else {
                continue;
            };
            let decoded = |text: &str| {
                percent_encoding::percent_decode_str(text)
                    .decode_utf8_lossy()
                    .into_owned()
            };
            let (user, password) = (
                decoded(url.username()),
                decoded(url.password().unwrap_or_default()),
            );
            if user.is_empty() && password.is_empty() {
                continue;
            }
            // Neither can fail: the address has a host.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            found.push(Login {
                place: Some(url.origin().ascii_serialization()),
                user,
                password: Secret::new(password),
            });
            text.replace_range(start..end, url.as_str());
        }
        self.0.splice(0..0, found);
    }

    /// The variables for git, added to those that are there already.
    pub fn variables(&self, env: &Variables) -> Variables {
        let mut told = Variables::from([("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned())]);
        let count = env.get("GIT_CONFIG_COUNT").and_then(|n| n.parse().ok());
        let mut count: usize = count.unwrap_or(0);
        for (number, login) in self.0.iter().enumerate() {
            let name = format!("CLEARML_AGENT_GIT_LOGIN_{number}");
            let key = match &login.place {
                Some(place) => format!("credential.{place}.helper"),
                None => "credential.helper".into(),
            };
            // git has a shell run it; the values come by the environment, whatever is in them.
            let helper = format!(
                "!f() {{ test \"$1\" = get && printf 'username=%s\\npassword=%s\\n' \
                 \"${name}_USER\" \"${name}_PASS\"; }}; f"
            );
            told.insert(format!("{name}_USER"), login.user.clone());
            told.insert(format!("{name}_PASS"), login.password.expose().to_owned());
            told.insert(format!("GIT_CONFIG_KEY_{count}"), key);
            told.insert(format!("GIT_CONFIG_VALUE_{count}"), helper);
            count += 1;
        }
        if count > 0 {
            told.insert("GIT_CONFIG_COUNT".into(), count.to_string());
        }
        told
    }
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
    use crate::python::requirements::{Reading, parse};
    use std::path::Path;

    #[test]
    fn credentials_leave_the_addresses() {
        let env = Variables::new();
        let reading = Reading {
            origin: "test",
            folder: Path::new("/"),
            root: Path::new("/"),
            env: &env,
            original: None,
        };
        let text = "x @ git+https://u:p%40ss@h:8443/o/x.git@main#subdirectory=s ; python_version > '3'\n\
                    git+https://tok@g/o/y\ngit+https://h/o/z\ngit+ssh://git@h/o/w\nsix";
        let mut list = parse(text, &reading).unwrap();
        let mut access = GitAccess::default();
        access.take_from(&mut list);
        assert_eq!(
            list.file(),
            "x @ git+https://h:8443/o/x.git@main#subdirectory=s ; python_version > '3'\n\
             git+https://g/o/y\ngit+https://h/o/z\ngit+ssh://git@h/o/w\nsix\n"
        );
        let places: Vec<_> = access.0.iter().map(|l| l.place.as_deref()).collect();
        assert_eq!(places, [Some("https://h:8443"), Some("https://g")]);
        let told = access.variables(&Variables::from([("GIT_CONFIG_COUNT".into(), "2".into())]));
        assert_eq!(told["GIT_CONFIG_COUNT"], "4");
        assert_eq!(told["CLEARML_AGENT_GIT_LOGIN_0_PASS"], "p@ss");
        assert_eq!(told["GIT_CONFIG_KEY_2"], "credential.https://h:8443.helper");
        assert!(!told["GIT_CONFIG_VALUE_2"].contains("p@ss"));
    }

    #[test]
    fn which_lines_git_must_fetch() {
        let env = Variables::new();
        let reading = Reading {
            origin: "test",
            folder: Path::new("/"),
            root: Path::new("/"),
            env: &env,
            original: None,
        };
        for (line, fetched) in [
            ("git+https://h/o/x.git@main#egg=x", true),
            ("x @ git+ssh://git@h/o/x", true),
            ("-e git+https://h/o/x", true),
            ("git://h/o/x", true),
            ("x @ git+https://h/o/x ; python_version < '3'", false),
            ("x @ https://h/o/x/archive/main.zip", false),
            ("six", false),
        ] {
            let list = parse(line, &reading).unwrap();
            assert_eq!(repository(&list.lines[0]).is_some(), fetched, "{line}");
        }
    }

    #[test]
    fn the_agents_own_are_for_its_host() {
        let mut configured = GitCredentials {
            user: Some("ci".into()),
            password: Some(Secret::new("pw")),
            host: Some("h".into()),
            ..GitCredentials::default()
        };
        let keys = |configured: &GitCredentials| -> Vec<String> {
            let told = GitAccess::of(configured).variables(&Variables::new());
            let keys = told
                .iter()
                .filter(|(name, _)| name.starts_with("GIT_CONFIG_KEY"));
            keys.map(|(_, key)| key.clone()).collect()
        };
        assert_eq!(
            keys(&configured),
            ["credential.https://h.helper", "credential.http://h.helper"]
        );
        configured.host = None;
        assert_eq!(keys(&configured), ["credential.helper"]);
        configured.password = None;
        assert!(keys(&configured).is_empty());
    }
}
