//! Repository addresses: URLs, scp-like forms and local paths, taken apart without losing a
//! character that git would have seen, and with the credentials held separately.

use std::path::Path;

use crate::secret::{Secret, mask_url_password};
use percent_encoding::percent_decode_str;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Http,
    Https,
    Ssh,
    /// `git://`, which knows no authentication.
    Git,
    /// A path or `file://`.
    Local,
}

/// A repository's address. `text` is what goes to libgit2 and into `.git/config`: it never holds
/// a password, nor for http(s) a user name (a lone one is often a token).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Address {
    text: String,
    pub(super) transport: Transport,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    /// What follows the host (or the whole path of a local repository).
    path: String,
    /// The host in the letters that were written: an alias of `~/.ssh/config` has them.
    host_as_given: Option<String>,
}

impl Address {
    pub(super) fn parse(given: &str) -> Address {
        let given = given.trim();
        if let Some((scheme, rest)) = given.split_once("://") {
            let transport = match scheme.to_ascii_lowercase().as_str() {
                "http" | "git+http" => Transport::Http,
                "https" | "git+https" => Transport::Https,
                "ssh" | "git+ssh" | "ssh+git" => Transport::Ssh,
                "git" => Transport::Git,
                _ => return Self::local(given),
            };
            return Self::with_authority(transport, rest);
        }
        match split_scp(given) {
            Some((user, host, port, path)) => Self {
                text: given.to_owned(),
                transport: Transport::Ssh,
                user: user.map(str::to_owned),
                password: None,
                host: Some(host.to_ascii_lowercase()),
                port,
                path: path.to_owned(),
                host_as_given: Some(host.to_owned()),
            },
            None => Self::local(given),
        }
    }

    fn local(given: &str) -> Address {
        let path = given.strip_prefix("file://").unwrap_or(given);
        Address {
            text: given.to_owned(),
            transport: Transport::Local,
            user: None,
            password: None,
            host: None,
            port: None,
            path: path.to_owned(),
            host_as_given: None,
        }
    }

    fn with_authority(transport: Transport, rest: &str) -> Address {
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user_info, host_port) = match authority.rsplit_once('@') {
            Some((user_info, host_port)) => (Some(user_info), host_port),
            None => (None, authority),
        };
        let (user, password) =
            match user_info.map(|info| info.split_once(':').unwrap_or((info, ""))) {
                Some((user, password)) => (
                    Some(percent_decoded(user)).filter(|u| !u.is_empty()),
                    Some(percent_decoded(password))
                        .filter(|p| !p.is_empty())
                        .map(Secret::new),
                ),
                None => (None, None),
            };
        let (host, port_text) = split_port(host_port);
        let (port, path) = match port_text.parse::<u16>() {
            Ok(port) => (Some(port), path.to_owned()),
            // `ssh://git@host:group/repo` is a mix-up of the URL and the scp-like form.
            Err(_) if transport == Transport::Ssh => (None, format!("{port_text}{path}")),
            Err(_) => (None, path.to_owned()),
        };
        let no_port = port.is_none() && !port_text.is_empty();
        let scp_like = no_port && transport == Transport::Ssh;
        let shown_user = match (&user, transport) {
            (Some(user), Transport::Ssh) => format!("{user}@"),
            _ => String::new(),
        };
        let scheme = scheme(transport);
        let text = match port {
            _ if scp_like => format!("{shown_user}{host}:{path}"),
            Some(port) => format!("{scheme}://{shown_user}{host}:{port}{path}"),
            // It leads nowhere, and not to a host of another name.
            None if no_port => format!("{scheme}://{shown_user}{host}:{port_text}{path}"),
            None => format!("{scheme}://{shown_user}{host}{path}"),
        };
        Address {
            text,
            transport,
            user,
            password,
            host: Some(host.to_ascii_lowercase()),
            port,
            path,
            host_as_given: Some(host.to_owned()),
        }
    }

    /// The address without credentials.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Same as [`Self::text`], and safe for a person's eyes whatever form it has.
    pub(super) fn shown(&self) -> String {
        mask_url_password(&self.text)
    }

    /// Last part of the path, as git names a clone's folder but with its `.git`.
    pub(super) fn name(&self) -> String {
        let name: String = self
            .path
            .trim_end_matches('/')
            .rsplit(['/', ':'])
            .next()
            .unwrap_or_default()
            .split(['?', '#'])
            .next()
            .unwrap_or_default()
            .chars()
            .map(|c| if c.is_control() { '_' } else { c })
            .collect();
        match name.as_str() {
            "" | "." | ".." | ".git" => "repository".to_owned(),
            _ => name,
        }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Whether something is at the path of this machine that it names, wherever it is asked from.
    pub(super) fn is_there(&self) -> bool {
        let path = Path::new(&self.path);
        self.transport == Transport::Local && path.is_absolute() && path.exists()
    }

    pub(super) fn host_as_given(&self) -> Option<&str> {
        self.host_as_given.as_deref()
    }

    /// The http(s) address of a repository given by its ssh address; `None` for other kinds.
    /// The ssh port means nothing to a web server and is left out.
    pub(super) fn over_https(&self, scheme: &str) -> Option<Address> {
        let host = self.host.as_deref()?;
        if self.transport != Transport::Ssh {
            return None;
        }
        let path = self.path.trim_start_matches('/');
        // Azure DevOps serves ssh from a host that speaks no https; its paths differ as well.
        if host.starts_with("ssh.dev.azure.") {
            let mut parts = path.splitn(4, '/');
            let (version, organisation) = (parts.next()?, parts.next()?);
            let (project, repository) = (parts.next()?, parts.next()?);
            let host = host.trim_start_matches("ssh.");
            let url = format!("{scheme}://{host}/{organisation}/{project}/_git/{repository}");
            return version.starts_with('v').then(|| Self::parse(&url));
        }
        let mut address = Self::parse(&format!("{scheme}://{host}/{path}"));
        if self.password.is_some() {
            (address.user, address.password) = (self.user.clone(), self.password.clone());
        }
        Some(address)
    }

    /// The ssh address of a repository given by its https address; `None` for other kinds. The web
    /// server's port means nothing to ssh.
    pub(super) fn over_ssh(&self, user: Option<&str>, port: Option<u16>) -> Option<Address> {
        let host = self.host.as_deref()?;
        if self.transport != Transport::Https {
            return None;
        }
        let user = user.unwrap_or("git");
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let path = &self.path;
        Some(Self::parse(&format!("ssh://{user}@{host}{port}{path}")))
    }

    /// An ssh URL with another user or port. Not an scp-like one, which has no place for a port.
    pub(super) fn with_ssh(&self, user: Option<&str>, port: Option<u16>) -> Option<Address> {
        let host = self.host_as_given.as_deref()?;
        if self.transport != Transport::Ssh || !self.text.contains("://") {
            return None;
        }
        let user = user.or(self.user.as_deref());
        let user = user.map_or_else(String::new, |user| format!("{user}@"));
        let port = port.or(self.port);
        let port = port.map_or_else(String::new, |port| format!(":{port}"));
        let path = &self.path;
        Some(Self::parse(&format!("ssh://{user}{host}{port}{path}")))
    }

    /// A submodule's address: a relative one (`./x`, `../x`) is resolved against the address of
    /// the repository that holds it. On the same server that one's own credentials hold too.
    pub(super) fn submodule(&self, given: &str) -> Address {
        let mut address = match given.starts_with("./") || given.starts_with("../") {
            true => Self::parse(&self.relative(given)),
            false => Self::parse(given),
        };
        let server = |a: &Address| (a.transport, a.host.clone(), a.port);
        if server(&address) == server(self) && address.user.is_none() {
            address.user = self.user.clone();
            address.password = self.password.clone();
        }
        address
    }

    fn relative(&self, given: &str) -> String {
        let mut base = self.text.trim_end_matches('/').to_owned();
        let mut rest = given;
        loop {
            if let Some(next) = rest.strip_prefix("./") {
                rest = next;
            } else if let Some(next) = rest.strip_prefix("../") {
                rest = next;
                match base.rfind(['/', ':']) {
                    // `host:repo` keeps its colon, and `scheme://host` its host.
                    Some(at) if base.as_bytes().get(at) == Some(&b':') => base.truncate(at + 1),
                    Some(at) if !base[..at].ends_with(":/") => base.truncate(at),
                    _ => {}
                }
            } else {
                break;
            }
        }
        let separator = if base.ends_with([':', '/']) { "" } else { "/" };
        format!("{base}{separator}{rest}")
    }
}

fn scheme(transport: Transport) -> &'static str {
    match transport {
        Transport::Http => "http",
        Transport::Https => "https",
        Transport::Ssh => "ssh",
        Transport::Git => "git",
        Transport::Local => "file",
    }
}

/// `[user@]host:path`; a colon after the first slash belongs to a path, as git reads it. In brackets
/// a host may have colons of its own: an IPv6 address, or a port (`[host:22]:path`).
fn split_scp(given: &str) -> Option<(Option<&str>, &str, Option<u16>, &str)> {
    let bracket = given.find('[').filter(|&at| {
        let before = &given[..at];
        before.is_empty() || before.ends_with('@') && !before.contains('/')
    });
    let colon = match bracket {
        Some(at) => at + given[at..].find("]:")? + 1,
        None => given.find(':')?,
    };
    let (before, path) = (&given[..colon], &given[colon + 1..]);
    if before.is_empty() || before.contains('/') || path.is_empty() {
        return None;
    }
    // A folder of a Windows machine, which no host is named as.
    let is_drive = before.bytes().all(|letter| letter.is_ascii_uppercase());
    if before.len() == 1 && (is_drive || path.starts_with('\\')) {
        return None;
    }
    let (user, host) = match before.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, before),
    };
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let (host, port) = match inner.and_then(|inner| inner.split_once(':')) {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
        _ => (host, None),
    };
    (!host.is_empty()).then_some((user, host, port, path))
}

/// Host and port text; the colons of an IPv6 address in brackets are its own.
fn split_port(host_port: &str) -> (&str, &str) {
    let after_bracket = host_port.rfind(']').unwrap_or(0);
    match host_port[after_bracket..].find(':') {
        Some(at) => {
            let at = after_bracket + at;
            (&host_port[..at], &host_port[at + 1..])
        }
        None => (host_port, ""),
    }
}

fn percent_decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_credentials_and_nothing_else() {
        use Transport::*;
        for (given, text, transport, user, password, name) in [
            (
                "https://h/a/b.git",
                "https://h/a/b.git",
                Https,
                None,
                None,
                "b.git",
            ),
            (
                "http://h:80/a/b/",
                "http://h:80/a/b/",
                Http,
                None,
                None,
                "b",
            ),
            (
                "https://u:p@h:8443/a",
                "https://h:8443/a",
                Https,
                Some("u"),
                Some("p"),
                "a",
            ),
            (
                "https://u:p%40%2f@h/a",
                "https://h/a",
                Https,
                Some("u"),
                Some("p@/"),
                "a",
            ),
            (
                "https://u:p@q@h/a",
                "https://h/a",
                Https,
                Some("u"),
                Some("p@q"),
                "a",
            ),
            (
                "https://token@H/a",
                "https://H/a",
                Https,
                Some("token"),
                None,
                "a",
            ),
            (
                "ssh://git@h:2222/a/b",
                "ssh://git@h:2222/a/b",
                Ssh,
                Some("git"),
                None,
                "b",
            ),
            (
                "ssh://git:pw@h/a/b",
                "ssh://git@h/a/b",
                Ssh,
                Some("git"),
                Some("pw"),
                "b",
            ),
            (
                "ssh://git@h:group/b",
                "git@h:group/b",
                Ssh,
                Some("git"),
                None,
                "b",
            ),
            (
                "git@h:a/b.git",
                "git@h:a/b.git",
                Ssh,
                Some("git"),
                None,
                "b.git",
            ),
            ("h:b", "h:b", Ssh, None, None, "b"),
            ("C:/a/b", "C:/a/b", Local, None, None, "b"),
            ("c:\\a", "c:\\a", Local, None, None, "\\a"),
            (
                "https://h:8O80/a",
                "https://h:8O80/a",
                Https,
                None,
                None,
                "a",
            ),
            (
                "http://h:99999/a",
                "http://h:99999/a",
                Http,
                None,
                None,
                "a",
            ),
            ("git://h/a", "git://h/a", Git, None, None, "a"),
            (
                "file:///srv/a.git",
                "file:///srv/a.git",
                Local,
                None,
                None,
                "a.git",
            ),
            ("/srv/a:b/c", "/srv/a:b/c", Local, None, None, "c"),
            (" ./x ", "./x", Local, None, None, "x"),
            (
                "https://[::1]:80/a",
                "https://[::1]:80/a",
                Https,
                None,
                None,
                "a",
            ),
            ("https://h/", "https://h/", Https, None, None, "repository"),
        ] {
            let address = Address::parse(given);
            assert_eq!(address.text(), text, "{given}");
            assert_eq!(address.transport, transport, "{given}");
            assert_eq!(address.user.as_deref(), user, "{given}");
            assert_eq!(
                address.password.as_ref().map(Secret::expose),
                password,
                "{given}"
            );
            assert_eq!(address.name(), name, "{given}");
        }
    }

    #[test]
    fn ssh_addresses_have_an_https_form() {
        for (given, https) in [
            ("git@h:a/b.git", Some("https://h/a/b.git")),
            ("ssh://git@h:2222/a/b", Some("https://h/a/b")),
            ("[git.h:2222]:a/b", Some("https://git.h/a/b")),
            (
                "git@ssh.dev.azure.com:v3/o/p/r",
                Some("https://dev.azure.com/o/p/_git/r"),
            ),
            ("git@ssh.dev.azure.com:o/p", None),
            ("https://h/a", None),
            ("/a/b", None),
        ] {
            let found = Address::parse(given).over_https("https");
            assert_eq!(found.as_ref().map(Address::text), https, "{given}");
        }
    }

    #[test]
    fn https_addresses_have_an_ssh_form() {
        for (given, user, port, ssh) in [
            (
                "https://u:p@h:8443/a/b.git",
                None,
                None,
                Some("ssh://git@h/a/b.git"),
            ),
            (
                "https://h/a",
                Some("bob"),
                Some(22),
                Some("ssh://bob@h:22/a"),
            ),
            ("http://h/a", None, None, None),
            ("git@h:a", None, None, None),
        ] {
            let found = Address::parse(given).over_ssh(user, port);
            assert_eq!(found.as_ref().map(Address::text), ssh, "{given}");
        }
        let forced = |given| Address::parse(given).with_ssh(Some("bob"), Some(2222));
        assert_eq!(
            forced("ssh://git@H/a").unwrap().text(),
            "ssh://bob@H:2222/a"
        );
        assert_eq!(forced("git@h:a"), None);
    }

    #[test]
    fn hosts_in_brackets() {
        for (given, host, port, path) in [
            ("[::1]:a/b", "[::1]", None, "a/b"),
            ("u@[::1]:a", "[::1]", None, "a"),
            ("[h:22]:a", "h", Some(22), "a"),
            ("u@[h:22]:/a", "h", Some(22), "/a"),
        ] {
            let found = Address::parse(given);
            assert_eq!(found.transport, Transport::Ssh, "{given}");
            assert_eq!(found.host.as_deref(), Some(host), "{given}");
            assert_eq!((found.port, found.path()), (port, path), "{given}");
        }
    }

    #[test]
    fn relative_submodule_addresses_follow_the_outer_repository() {
        for (outer, given, text) in [
            ("https://u:p@h/a/b.git", "../c.git", "https://h/a/c.git"),
            ("https://h/a/b.git", "./c", "https://h/a/b.git/c"),
            ("https://h/a/b", "../../x/y", "https://h/x/y"),
            ("https://h/b", "../../../y", "https://h/y"),
            ("git@h:a/b", "../c", "git@h:a/c"),
            ("git@h:b", "../c", "git@h:c"),
            ("/srv/git/a", "../b", "/srv/git/b"),
            ("https://h/a", "https://other/c", "https://other/c"),
        ] {
            assert_eq!(
                Address::parse(outer).submodule(given).text(),
                text,
                "{outer} {given}"
            );
        }
        let inherited = Address::parse("https://u:p@h/a").submodule("../b");
        assert_eq!(inherited.user.as_deref(), Some("u"));
        for other in ["http://h/b", "https://h:8443/b", "https://x/b"] {
            let address = Address::parse("https://u:p@h/a").submodule(other);
            assert_eq!(address.password, None, "{other}");
        }
    }
}
