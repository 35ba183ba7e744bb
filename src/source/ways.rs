//! The ways to a repository: its stored address, and the other protocol where the configuration or
//! the credentials say so. Pure.

use super::credentials::GitCredentials;
use super::url::{Address, Transport};

/// What the configuration says of ssh and https.
#[derive(Debug, Clone, PartialEq)]
pub struct Protocol {
    /// `agent.force_git_ssh_protocol`: https addresses are reached over ssh, and not otherwise.
    pub force_ssh: bool,
    /// `agent.force_git_ssh_user`, for addresses with that switch on.
    pub ssh_user: Option<String>,
    /// `agent.force_git_ssh_port`, likewise.
    pub ssh_port: Option<u16>,
    /// `agent.translate_ssh`: the other protocol may be tried when the stored one fails.
    pub translate: bool,
    /// `agent.translate_ssl_replacement_scheme`: `https`, or `http` for a server without TLS.
    pub web_scheme: String,
}

impl Default for Protocol {
    fn default() -> Self {
        Self {
            force_ssh: false,
            ssh_user: None,
            ssh_port: None,
            translate: true,
            web_scheme: "https".to_owned(),
        }
    }
}

/// A way, and when it is worth trying.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Way {
    pub(super) address: Address,
    /// Only where the server was reached and wants to know who asks: a repository that is not there
    /// or a name that is wrong does not get better over another protocol.
    pub(super) after_refusal: bool,
}

/// In the order in which they are tried. `may_log_in` tells whether a user and password are known for
/// an http(s) address; `has_key` whether ssh has something to identify itself with.
pub(super) fn ways_to(
    address: &Address,
    protocol: &Protocol,
    credentials: &GitCredentials,
    may_log_in: &dyn Fn(&Address) -> bool,
    has_key: &dyn Fn(&Address) -> bool,
) -> Vec<Way> {
    let way = |address: &Address| Way {
        address: address.clone(),
        after_refusal: false,
    };
    let (user, port) = (protocol.ssh_user.as_deref(), protocol.ssh_port);
    if protocol.force_ssh && credentials.concern_host_of(address) {
        let forced = match address.transport {
            Transport::Https => address.over_ssh(user, port),
            _ => address.with_ssh(user, port),
        };
        if let Some(forced) = forced {
            return vec![way(&forced)];
        }
    }
    let stored = way(address);
    if !protocol.translate {
        return vec![stored];
    }
    match address.transport {
        Transport::Ssh => {
            let https = address.over_https(&protocol.web_scheme);
            match https.filter(|https| may_log_in(https)) {
                // With no key to offer, ssh could only fail, slowly.
                Some(https) if !has_key(address) => vec![way(&https)],
                Some(https) => vec![stored, way(&https)],
                None => vec![stored],
            }
        }
        Transport::Https if !may_log_in(address) => {
            let ssh = address.over_ssh(user, port).filter(|ssh| has_key(ssh));
            let ssh = ssh.map(|address| Way {
                address,
                after_refusal: true,
            });
            std::iter::once(stored).chain(ssh).collect()
        }
        _ => vec![stored],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    /// The ways, a `?` behind those after a refusal.
    fn ways(
        url: &str,
        protocol: &Protocol,
        git_host: Option<&str>,
        login: bool,
        key: bool,
    ) -> Vec<String> {
        let credentials = GitCredentials {
            user: login.then(|| "bob".to_owned()),
            password: login.then(|| Secret::new("pw")),
            host: git_host.map(str::to_owned),
            ..GitCredentials::default()
        };
        let may_log_in = |address: &Address| credentials.for_address(address).is_some();
        let found = ways_to(
            &Address::parse(url),
            protocol,
            &credentials,
            &may_log_in,
            &|_| key,
        );
        let mark = |way: &Way| if way.after_refusal { "?" } else { "" };
        found
            .iter()
            .map(|way| format!("{}{}", way.address.text(), mark(way)))
            .collect()
    }

    #[test]
    fn the_stored_address_comes_first_and_the_other_protocol_where_it_may_help() {
        let plain = Protocol::default();
        let fixed = Protocol {
            translate: false,
            ..Protocol::default()
        };
        let http = Protocol {
            web_scheme: "http".into(),
            ..Protocol::default()
        };
        for (url, protocol, host, login, key, expected) in [
            ("git@h:a", &plain, None, false, false, &["git@h:a"][..]),
            (
                "git@h:a",
                &plain,
                None,
                true,
                true,
                &["git@h:a", "https://h/a"],
            ),
            ("git@h:a", &plain, Some("h"), true, false, &["https://h/a"]),
            ("git@h:a", &plain, Some("other"), true, false, &["git@h:a"]),
            ("git@h:a", &fixed, None, true, false, &["git@h:a"]),
            ("git@h:a", &http, None, true, false, &["http://h/a"]),
            (
                "ssh://git@h:2222/a",
                &plain,
                None,
                true,
                false,
                &["https://h/a"],
            ),
            ("https://h/a", &plain, None, true, true, &["https://h/a"]),
            ("https://h/a", &plain, None, false, false, &["https://h/a"]),
            (
                "https://h/a",
                &plain,
                None,
                false,
                true,
                &["https://h/a", "ssh://git@h/a?"],
            ),
            (
                "https://h/a",
                &plain,
                Some("x"),
                true,
                true,
                &["https://h/a", "ssh://git@h/a?"],
            ),
            ("https://h/a", &fixed, None, false, true, &["https://h/a"]),
            ("http://h/a", &plain, None, false, true, &["http://h/a"]),
            ("git://h/a", &plain, None, true, true, &["git://h/a"]),
            ("/srv/a", &plain, None, true, true, &["/srv/a"]),
        ] {
            assert_eq!(
                ways(url, protocol, host, login, key),
                expected,
                "{url} {host:?} {login} {key}"
            );
        }
    }

    #[test]
    fn ssh_can_be_forced() {
        let forced = |user: Option<&str>, ssh_port| Protocol {
            force_ssh: true,
            ssh_user: user.map(str::to_owned),
            ssh_port,
            ..Protocol::default()
        };
        let (plain, bob) = (forced(None, None), forced(Some("bob"), Some(2222)));
        for (url, host, without, with) in [
            (
                "https://h/a/b.git",
                None,
                "ssh://git@h/a/b.git",
                "ssh://bob@h:2222/a/b.git",
            ),
            (
                "https://u:p@h:8443/a",
                None,
                "ssh://git@h/a",
                "ssh://bob@h:2222/a",
            ),
            (
                "https://h/a",
                Some("h"),
                "ssh://git@h/a",
                "ssh://bob@h:2222/a",
            ),
            ("https://h/a", Some("x"), "https://h/a", "https://h/a"),
            (
                "ssh://git@h:1/a",
                None,
                "ssh://git@h:1/a",
                "ssh://bob@h:2222/a",
            ),
            ("http://h/a", None, "http://h/a", "http://h/a"),
            ("git@h:a", None, "git@h:a", "git@h:a"),
            ("/srv/a", None, "/srv/a", "/srv/a"),
        ] {
            assert_eq!(ways(url, &plain, host, false, false), [without], "{url}");
            assert_eq!(ways(url, &bob, host, false, false), [with], "{url}");
        }
    }
}
