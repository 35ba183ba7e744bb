//! Who the agent says it is to a git server. Secrets are handed to libgit2 by callback alone.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use git2::{Cred, CredentialType};

use super::url::{Address, Transport};
use crate::secret::Secret;

/// `agent.git_user`, `agent.git_pass` and `agent.git_host` (or their flags and variables).
#[derive(Debug, Clone, Default)]
pub struct GitCredentials {
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// Only for this host; unset: for any.
    pub host: Option<String>,
}

/// A user and password, and where it came from (for the words of a refusal).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: Secret,
    pub(super) origin: &'static str,
}

impl GitCredentials {
    /// The pair, if it is meant for `host`. A token alone is enough: servers that take one
    /// do not look at the other half.
    pub(super) fn for_host(&self, host: Option<&str>, port: Option<u16>) -> Option<Login> {
        let user = self.user.as_deref().filter(|u| !u.is_empty());
        let password = self.password.as_ref().filter(|p| !p.is_empty());
        let (user, password) = match (user, password) {
            (None, None) => return None,
            (Some(user), Some(password)) => (user.to_owned(), password.clone()),
            (Some(user), None) => (user.to_owned(), Secret::new("")),
            (None, Some(password)) => ("git".to_owned(), password.clone()),
        };
        if let Some(wanted) = self.host.as_deref().filter(|h| !h.trim().is_empty())
            && !host_matches(wanted, host?, port)
        {
            return None;
        }
        Some(Login {
            user,
            password,
            origin: "the configured git user and password",
        })
    }
}

/// Whether `git_host`, written as a host, `host:port` or a whole URL, means this host.
fn host_matches(wanted: &str, host: &str, port: Option<u16>) -> bool {
    let wanted = wanted.trim();
    let wanted = wanted.split_once("://").map_or(wanted, |(_, rest)| rest);
    let wanted = wanted.split('/').next().unwrap_or_default();
    match wanted.rsplit_once(':') {
        Some((name, number)) if number.parse::<u16>().is_ok() => {
            name.eq_ignore_ascii_case(host) && number.parse::<u16>().ok() == port
        }
        _ => wanted.eq_ignore_ascii_case(host),
    }
}

/// The logins to offer to the server of `address` over http(s), best first. Credentials in the
/// task's own address win.
pub(super) fn logins(address: &Address, configured: &GitCredentials) -> Vec<Login> {
    let mut logins = Vec::new();
    let from_url = |user: &String, password: Secret| Login {
        user: user.clone(),
        password,
        origin: "the credentials in the repository's URL",
    };
    if let (Some(user), Some(password)) = (&address.user, &address.password) {
        logins.push(from_url(user, password.clone()));
    }
    logins.extend(configured.for_host(address.host.as_deref(), address.port));
    if let (Some(user), None) = (&address.user, &address.password) {
        logins.push(from_url(user, Secret::new("")));
    }
    logins
}

/// The ways to reach `address`, in the order they are tried: as it was stored, and for an ssh
/// address of a host whose user and password are known also over https. With no key to offer,
/// ssh is not tried at all then: it could only fail, slowly.
pub(super) fn ways_to(
    address: &Address,
    configured: &GitCredentials,
    have_ssh_identity: bool,
) -> Vec<Address> {
    let https = (address.transport == Transport::Ssh)
        .then(|| configured.for_host(address.host.as_deref(), None))
        .flatten()
        .filter(|login| !login.password.is_empty())
        .and_then(|_| address.over_https());
    match https {
        Some(https) if have_ssh_identity => vec![address.clone(), https],
        Some(https) => vec![https],
        None => vec![address.clone()],
    }
}

/// What ssh could identify itself with: a running agent, and the usual key files.
#[derive(Debug, Clone, Default)]
pub(super) struct SshIdentities {
    agent: bool,
    keys: Vec<PathBuf>,
}

impl SshIdentities {
    pub(super) fn find() -> Self {
        let agent = std::env::var_os("SSH_AUTH_SOCK").is_some_and(|s| Path::new(&s).exists());
        let keys = std::env::home_dir().map_or_else(Vec::new, |home| {
            ["id_ed25519", "id_ecdsa", "id_rsa", "id_dsa"]
                .iter()
                .map(|name| home.join(".ssh").join(name))
                .filter(|key| key.is_file())
                .collect()
        });
        Self { agent, keys }
    }

    pub(super) fn any(&self) -> bool {
        self.agent || !self.keys.is_empty()
    }
}

/// Answers libgit2's questions for one connection. Each answer is given once: a second question
/// means that the first answer was refused.
pub(super) struct Answers {
    address: Address,
    logins: Vec<Login>,
    ssh: SshIdentities,
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

impl Answers {
    pub(super) fn new(address: &Address, configured: &GitCredentials, ssh: SshIdentities) -> Self {
        Self {
            address: address.clone(),
            logins: logins(address, configured),
            ssh,
            state: RefCell::default(),
        }
    }

    /// Whether a password may be sent, so that redirects to another host must not be followed.
    pub(super) fn hold_secrets(&self) -> bool {
        !self.logins.is_empty()
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
        let user = user_in_url.unwrap_or("git");
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
            if !state.helper_given && self.address.transport != Transport::Ssh {
                state.helper_given = true;
                let config = git2::Config::open_default()?;
                if let Ok(cred) = Cred::credential_helper(&config, asking_url, user_in_url) {
                    state.offered.push("git's credential helper".to_owned());
                    return Ok(cred);
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
            let found = logins(&Address::parse(url), &pair(git_host));
            assert_eq!(!found.is_empty(), given, "{git_host:?} {url}");
        }
    }

    #[test]
    fn the_urls_own_credentials_come_first_and_a_lone_user_last() {
        let users = |url| -> Vec<String> {
            let found = logins(&Address::parse(url), &pair(None));
            found.into_iter().map(|login| login.user).collect()
        };
        assert_eq!(users("https://u:p@h/a"), ["u", "bob"]);
        assert_eq!(users("https://token@h/a"), ["bob", "token"]);
        assert_eq!(users("https://h/a"), ["bob"]);
    }

    #[test]
    fn an_ssh_address_is_also_tried_over_https_where_a_password_is_known() {
        let ways = |url, credentials: &GitCredentials, ssh| -> Vec<String> {
            let ways = ways_to(&Address::parse(url), credentials, ssh);
            ways.iter().map(|way| way.text().to_owned()).collect()
        };
        let none = GitCredentials::default();
        assert_eq!(ways("git@h:a", &none, false), ["git@h:a"]);
        assert_eq!(
            ways("git@h:a", &pair(None), true),
            ["git@h:a", "https://h/a"]
        );
        assert_eq!(ways("git@h:a", &pair(Some("h")), false), ["https://h/a"]);
        assert_eq!(ways("git@h:a", &pair(Some("other")), false), ["git@h:a"]);
        assert_eq!(ways("https://h/a", &pair(None), false), ["https://h/a"]);
    }
}
