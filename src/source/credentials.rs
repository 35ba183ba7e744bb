//! Who the agent says it is to a git server. Secrets are handed to libgit2 by callback alone.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;

use git2::{Cred, CredentialType};
use tokio_util::sync::CancellationToken;

use super::netrc;
use super::program;
use super::ssh::on_path;
use super::ssh_config::SshIdentities;
use super::url::{Address, Transport};
use crate::config::Variables;
use crate::secret::Secret;

/// The configured logins: `agent.git_user`, `agent.git_pass` and `agent.git_host` (or their flags and
/// variables), and `agent.git.extra_credentials`.
#[derive(Debug, Clone, Default)]
pub struct GitCredentials {
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Only for this host; unset: for any.
    pub host: Option<String>,
    /// `agent.git_host_match_prefix`: hosts may have a path behind them, which must begin the
    /// repository's.
    pub match_prefix: bool,
    /// Looked at first; each is complete.
    pub extra: Vec<ExtraCredential>,
    pub kind: PasswordKind,
}

/// An entry of `agent.git.extra_credentials`.
#[derive(Debug, Clone)]
pub struct ExtraCredential {
    pub user: String,
    pub password: Secret,
    pub host: String,
}

/// What the configured password is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PasswordKind {
    #[default]
    Basic,
    /// `agent.git_use_azure_pat`: sent with no user name.
    AzurePat,
    /// `agent.git_use_ms_entra_token`: sent as a bearer token.
    EntraToken,
}

/// A user and password, and where it came from (for the words of a refusal).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Secret,
    pub(super) origin: &'static str,
}

const CONFIGURED: &str = "the configured git user and password";
const OF_ADDRESS: &str = "the credentials in the repository's URL";

impl GitCredentials {
    /// The login that is meant for this repository. A token alone is enough: servers that take one
    /// do not look at the other half.
    pub(super) fn for_address(&self, address: &Address) -> Option<Login> {
        let extra = self
            .extra
            .iter()
            .find(|entry| self.matches(&entry.host, address));
        let (user, password) = match extra {
            Some(entry) => (entry.user.clone(), entry.password.clone()),
            None => self.pair(address)?,
        };
        Some(self.login(user, password))
    }

    fn pair(&self, address: &Address) -> Option<(String, Secret)> {
        let pair = self.any_pair()?;
        self.concern_host_of(address).then_some(pair)
    }

    fn any_pair(&self) -> Option<(String, Secret)> {
        let user = self.user.as_deref().filter(|u| !u.is_empty());
        let password = self.password.as_ref().filter(|p| !p.is_empty());
        match (user, password) {
            (None, None) => None,
            (Some(user), Some(password)) => Some((user.to_owned(), password.clone())),
            (Some(user), None) => Some((user.to_owned(), Secret::new(""))),
            (None, Some(password)) => Some(("git".to_owned(), password.clone())),
        }
    }

    /// Whether `agent.git_host` leaves this repository in.
    pub(super) fn concern_host_of(&self, address: &Address) -> bool {
        match self.host.as_deref().filter(|h| !h.trim().is_empty()) {
            Some(wanted) => self.matches(wanted, address),
            None => true,
        }
    }

    /// Whether `wanted` means this repository's host; with `match_prefix` also whether its path begins
    /// the repository's.
    fn matches(&self, wanted: &str, address: &Address) -> bool {
        let Some(host) = address.host.as_deref() else {
            return false;
        };
        let place = Place::parse(wanted);
        place.host == host
            && place.port.is_none_or(|port| address.port == Some(port))
            && (!self.match_prefix || begins_with(address.path(), &place.path))
    }

    /// What is for any host, where git asks for it.
    pub(super) fn for_every_host(&self) -> Option<Login> {
        let (user, password) = self.any_pair().filter(|_| self.host_is_open())?;
        (!self.is_bearer()).then(|| self.login(user, password))
    }

    /// What is for certain places (`https://host:port/path`), as git's configuration has them: the one
    /// that counts most last. A place without a port is meant with all of these addresses' ports.
    pub(super) fn by_place(&self, known: &[&Address]) -> Vec<(String, Login)> {
        let host = self.host.as_deref().filter(|_| !self.host_is_open());
        let pair = host.zip(self.any_pair());
        let pair = pair.map(|(host, (user, password))| (host, self.login(user, password)));
        let extra = self.extra.iter().rev().map(|entry| {
            let login = self.login(entry.user.clone(), entry.password.clone());
            (entry.host.as_str(), login)
        });
        let mut found = Vec::new();
        for (host, login) in pair.into_iter().chain(extra) {
            let place = Place::parse(host);
            let mut ports = BTreeSet::from([place.port]);
            if place.port.is_none() {
                let same = |a: &&&Address| a.host.as_deref() == Some(&*place.host);
                ports.extend(known.iter().filter(same).map(|address| address.port));
            }
            let path = match self.match_prefix && !place.path.is_empty() {
                true => format!("/{}", place.path),
                false => String::new(),
            };
            for port in ports {
                let port = port.map_or_else(String::new, |port| format!(":{port}"));
                let at = ["https", "http"].map(|scheme| {
                    (
                        format!("{scheme}://{}{port}{path}", place.host),
                        login.clone(),
                    )
                });
                found.extend(at);
            }
        }
        found
    }

    /// Whether the login for this repository names its host.
    pub(super) fn has_place_of(&self, address: &Address) -> bool {
        !self.host_is_open()
            || self
                .extra
                .iter()
                .any(|entry| self.matches(&entry.host, address))
    }

    /// Whether `agent.git_user` and its password are for any host.
    fn host_is_open(&self) -> bool {
        self.host.as_deref().is_none_or(|h| h.trim().is_empty())
    }

    pub(super) fn is_bearer(&self) -> bool {
        self.kind == PasswordKind::EntraToken
    }

    fn login(&self, user: String, password: Secret) -> Login {
        Login {
            user: match self.kind {
                PasswordKind::AzurePat => String::new(),
                PasswordKind::Basic | PasswordKind::EntraToken => user,
            },
            password,
            origin: CONFIGURED,
        }
    }
}

/// A place as it is configured: a host, `host:port` or a whole URL, perhaps with the beginning of a path.
#[derive(Debug, PartialEq)]
struct Place {
    host: String,
    port: Option<u16>,
    path: String,
}

impl Place {
    fn parse(wanted: &str) -> Self {
        let wanted = wanted.trim();
        let wanted = wanted.split_once("://").map_or(wanted, |(_, rest)| rest);
        let wanted = wanted.rsplit_once('@').map_or(wanted, |(_, rest)| rest);
        let (wanted, path) = match wanted.split_once('/') {
            Some((wanted, path)) => (wanted, path),
            // `host:group`, as in an scp-like address.
            None => match wanted.split_once(':') {
                Some((host, path)) if path.parse::<u16>().is_err() => (host, path),
                _ => (wanted, ""),
            },
        };
        let (host, port) = match wanted.rsplit_once(':') {
            Some((name, number)) if number.parse::<u16>().is_ok() => (name, number.parse().ok()),
            _ => (wanted, None),
        };
        Self {
            host: host.to_ascii_lowercase(),
            port,
            path: path.trim_matches('/').to_owned(),
        }
    }
}

impl Login {
    /// Whether it stood in the repository's address.
    pub(super) fn is_of_address(&self) -> bool {
        self.origin == OF_ADDRESS
    }
}

/// Whether `prefix` is the first folders of `path`, in any letters.
fn begins_with(path: &str, prefix: &str) -> bool {
    let parts = |text: &str| -> Vec<String> {
        let text = text.trim_matches('/').to_lowercase();
        let text = text.strip_suffix(".git").unwrap_or(&text);
        text.split('/')
            .filter(|p| !p.is_empty())
            .map(str::to_owned)
            .collect()
    };
    parts(path).starts_with(&parts(prefix))
}

/// The logins to offer to the server of `address` over http(s), best first. Credentials in the
/// task's own address win.
pub(super) fn logins(
    address: &Address,
    configured: &GitCredentials,
    env: &Variables,
) -> Vec<Login> {
    let mut logins = Vec::new();
    let from_url = |user: &String, password: Secret| Login {
        user: user.clone(),
        password,
        origin: OF_ADDRESS,
    };
    if let (Some(user), Some(password)) = (&address.user, &address.password) {
        logins.push(from_url(user, password.clone()));
    }
    let is_web = matches!(address.transport, Transport::Http | Transport::Https);
    if is_web {
        logins.extend(configured.for_address(address));
        let host = address.host.as_deref().unwrap_or_default();
        logins.extend(netrc::login(env, host, address.user.as_deref()));
    }
    if let (Some(user), None, true) = (&address.user, &address.password, is_web) {
        logins.push(from_url(user, Secret::new("")));
    }
    logins
}

/// The header that is sent at once, without being asked, where the configured password is a bearer
/// token.
pub(super) fn bearer(logins: &[Login], kind: PasswordKind) -> Option<Secret> {
    let is_token = |login: &&Login| login.origin == CONFIGURED && !login.password.is_empty();
    let login = logins.iter().find(is_token)?;
    (kind == PasswordKind::EntraToken)
        .then(|| Secret::new(format!("Authorization: Bearer {}", login.password.expose())))
}

/// What git's own credential helpers know of `address`: those that the user's configuration names.
fn from_helpers(address: &Address, env: &Variables, stop: &CancellationToken) -> Option<Login> {
    let scheme = match address.transport {
        Transport::Http => "http",
        Transport::Https => "https",
        _ => return None,
    };
    let host = address.host.as_deref()?;
    let port = address
        .port
        .map_or_else(String::new, |port| format!(":{port}"));
    let path = address.path().trim_start_matches('/');
    let mut question = format!("protocol={scheme}\nhost={host}{port}\npath={path}\n");
    if let Some(user) = &address.user {
        question.push_str(&format!("username={user}\n"));
    }
    let mut command = Command::new(on_path(env, "git")?);
    command
        .args(["credential", "fill"])
        .current_dir("/")
        .env_clear()
        .envs(env)
        .env("GIT_TERMINAL_PROMPT", "0");
    question.push('\n');
    let finished = program::run(command, question.as_bytes(), stop, &|_| {}).ok()?;
    let answer = String::from_utf8(finished.output).ok()?;
    let value = |name: &str| {
        let mut lines = answer.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    };
    let (user, password) = (value("username")?, value("password")?);
    (finished.success && !password.is_empty()).then(|| Login {
        user: user.to_owned(),
        password: Secret::new(password),
        origin: "git's credential helper",
    })
}

/// Answers libgit2's questions for one connection. Each answer is given once: a second question
/// means that the first answer was refused.
pub(super) struct Answers<'a> {
    address: Address,
    logins: Vec<Login>,
    ssh: SshIdentities,
    env: &'a Variables,
    stop: &'a CancellationToken,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    logins_given: usize,
    agent_given: bool,
    keys_given: usize,
    helper_given: bool,
    /// What the server refused, for the error's words.
    offered: Vec<String>,
}

impl<'a> Answers<'a> {
    pub(super) fn new(
        address: &Address,
        logins: Vec<Login>,
        ssh: SshIdentities,
        env: &'a Variables,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            address: address.clone(),
            logins,
            ssh,
            env,
            stop,
            state: RefCell::default(),
        }
    }

    pub(super) fn logins(&self) -> &[Login] {
        &self.logins
    }

    /// What was offered and refused.
    pub(super) fn offered(&self) -> Vec<String> {
        self.state.borrow().offered.clone()
    }

    pub(super) fn answer(
        &self,
        asking_url: &str,
        user_in_url: Option<&str>,
        allowed: CredentialType,
    ) -> Result<Cred, git2::Error> {
        let mut state = self.state.borrow_mut();
        let user = user_in_url.unwrap_or(&self.ssh.user);
        if allowed.contains(CredentialType::USERNAME) {
            return Cred::username(user);
        }
        if allowed.contains(CredentialType::SSH_KEY) {
            if self.ssh.agent && !state.agent_given {
                state.agent_given = true;
                state.offered.push("the keys of the ssh agent".to_owned());
                return Cred::ssh_key_from_agent(user);
            }
            if let Some(key) = self.ssh.keys.get(state.keys_given) {
                state.keys_given += 1;
                state.offered.push(key.display().to_string());
                return Cred::ssh_key(user, None, key, None);
            }
        }
        if allowed.contains(CredentialType::USER_PASS_PLAINTEXT) {
            // A redirect may have led elsewhere; what is known is for the address's own host.
            let same_host = Address::parse(asking_url).host == self.address.host;
            if same_host && let Some(login) = self.logins.get(state.logins_given) {
                state.logins_given += 1;
                state.offered.push(login.origin.to_owned());
                return Cred::userpass_plaintext(&login.user, login.password.expose());
            }
            if !state.helper_given && same_host {
                state.helper_given = true;
                let found = from_helpers(&self.address, self.env, self.stop);
                if let Some(login) = found {
                    state.offered.push(login.origin.to_owned());
                    return Cred::userpass_plaintext(&login.user, login.password.expose());
                }
            }
        }
        Err(git2::Error::new(
            git2::ErrorCode::Auth,
            git2::ErrorClass::Callback,
            "no further credentials to offer",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(host: Option<&str>) -> GitCredentials {
        GitCredentials {
            user: Some("bob".into()),
            password: Some(Secret::new("pw")),
            host: host.map(str::to_owned),
            ..GitCredentials::default()
        }
    }

    #[test]
    fn the_pair_goes_only_to_its_host() {
        for (git_host, url, given) in [
            (None, "https://any/a", true),
            (Some(""), "https://any/a", true),
            (Some("H.example"), "https://h.EXAMPLE/a", true),
            (Some("h"), "https://h.evil/a", false),
            (Some("h"), "https://evil/h", false),
            (Some("https://h/"), "https://h/a", true),
            (Some("h:8443"), "https://h:8443/a", true),
            (Some("h:8443"), "https://h/a", false),
            (Some("h"), "https://h:8443/a", true),
        ] {
            let found = logins(&Address::parse(url), &pair(git_host), &Variables::new());
            assert_eq!(!found.is_empty(), given, "{git_host:?} {url}");
        }
    }

    #[test]
    fn the_urls_own_credentials_come_first_and_a_lone_user_last() {
        let users = |url| -> Vec<String> {
            let found = logins(&Address::parse(url), &pair(None), &Variables::new());
            found.into_iter().map(|login| login.user).collect()
        };
        assert_eq!(users("https://u:p@h/a"), ["u", "bob"]);
        assert_eq!(users("https://token@h/a"), ["bob", "token"]);
        assert_eq!(users("https://h/a"), ["bob"]);
    }

    #[test]
    fn of_several_logins_the_one_for_the_place_is_taken() {
        let entry = |user: &str, host: &str| ExtraCredential {
            user: user.into(),
            password: Secret::new("x"),
            host: host.into(),
        };
        let mut credentials = pair(None);
        credentials.extra = vec![
            entry("a", "https://GitHub.com/Org-A"),
            entry("b", "github.com/org-b/"),
            entry("c", "git@gitlab.com:group"),
        ];
        for (prefix, url, user) in [
            (true, "https://github.com/org-a/x.git", "a"),
            (true, "https://github.com/Org-B/x", "b"),
            (true, "https://github.com/org-bb/x", "bob"),
            (true, "https://gitlab.com/group/x", "c"),
            (true, "https://gitlab.com/x", "bob"),
            (false, "https://github.com/org-b/x", "a"),
            (false, "https://other.com/x", "bob"),
        ] {
            credentials.match_prefix = prefix;
            let found = credentials.for_address(&Address::parse(url)).unwrap();
            assert_eq!(found.user, user, "{prefix} {url}");
        }
    }

    #[test]
    fn netrc_stands_behind_what_is_configured() {
        let home = tempfile::tempdir().unwrap();
        let netrc = "machine h login n password x";
        std::fs::write(home.path().join(".netrc"), netrc).unwrap();
        let env: Variables = [("HOME".to_owned(), home.path().display().to_string())].into();
        for (configured, url, expected) in [
            (pair(None), "https://h/a", &["bob", "n"][..]),
            (pair(Some("x")), "https://h:1/a", &["n"]),
            (pair(Some("x")), "ssh://h/a", &[]),
            (pair(Some("x")), "git://h/a", &[]),
        ] {
            let found = logins(&Address::parse(url), &configured, &env);
            let users: Vec<_> = found.iter().map(|login| login.user.as_str()).collect();
            assert_eq!(users, expected, "{url}");
        }
    }
}
