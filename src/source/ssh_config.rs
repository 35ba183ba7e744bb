//! `~/.ssh/config` for libgit2's own ssh, which reads none: what is needed to reach a host where the
//! machine has no ssh program. Only what can be done without it; a host behind a jump host is refused
//! in so many words.

use std::fs;
use std::path::{Path, PathBuf};

use super::url::{Address, Transport};
use crate::config::Variables;

/// How deep included files may include others, as for OpenSSH.
const INCLUDE_DEPTH: usize = 16;

/// What ssh could identify itself with: a running agent, and key files.
#[derive(Debug, Clone, Default)]
pub(super) struct SshIdentities {
    pub(super) agent: bool,
    pub(super) keys: Vec<PathBuf>,
    /// Who to be where the address does not say.
    pub(super) user: String,
}

impl SshIdentities {
    pub(super) fn any(&self) -> bool {
        self.agent || !self.keys.is_empty()
    }
}

/// What the configuration says of one host; the first value of each kind counts.
#[derive(Debug, Default, PartialEq)]
struct HostConfig {
    host_name: Option<String>,
    user: Option<String>,
    port: Option<u16>,
    identity_files: Vec<String>,
    identities_only: Option<bool>,
    proxy: Option<String>,
}

/// The address as `~/.ssh/config` means it, and what to log in with. The error says what only the ssh
/// program can do.
pub(super) fn resolve(
    address: &Address,
    env: &Variables,
) -> Result<(Address, SshIdentities), String> {
    let host = match (address.transport, address.host_as_given()) {
        (Transport::Ssh, Some(host)) => host,
        _ => return Ok((address.clone(), SshIdentities::default())),
    };
    let home = env.get("HOME").map(PathBuf::from);
    let mut found = HostConfig::default();
    if let Some(home) = &home {
        let file = home.join(".ssh/config");
        read(&file, home, host, &mut found, INCLUDE_DEPTH);
    }
    if let Some(proxy) = found.proxy.filter(|proxy| proxy != "none") {
        return Err(format!(
            "~/.ssh/config reaches {host} through another host ({proxy}), which needs the ssh \
             program; install it (openssh-client)"
        ));
    }
    let with_home = |path: &str| match (path.strip_prefix("~/"), &home) {
        (Some(rest), Some(home)) => home.join(rest),
        (None, Some(home)) if !path.starts_with('/') => home.join(".ssh").join(path),
        _ => PathBuf::from(path),
    };
    let usual = ["id_ed25519", "id_ecdsa", "id_rsa", "id_dsa"].map(|name| format!("~/.ssh/{name}"));
    let named = match found.identity_files.is_empty() {
        true => &usual[..],
        false => &found.identity_files,
    };
    let keys = named.iter().map(|path| with_home(path));
    let agent = env
        .get("SSH_AUTH_SOCK")
        .is_some_and(|s| Path::new(s).exists());
    let login_name = ["LOGNAME", "USER"]
        .into_iter()
        .find_map(|name| env.get(name));
    let identities = SshIdentities {
        agent: agent && found.identities_only != Some(true),
        keys: keys.filter(|key| key.is_file()).collect(),
        user: found
            .user
            .clone()
            .or_else(|| login_name.cloned())
            .unwrap_or_else(|| "git".to_owned()),
    };
    // libgit2 knows no scp-like address with a port.
    let is_plain = address.port.is_none() || address.text().contains("://");
    let unchanged = found.host_name.is_none() && found.port.is_none() && is_plain;
    if unchanged {
        return Ok((address.clone(), identities));
    }
    let name = found.host_name.map(|name| name.replace("%h", host));
    let name = name.as_deref().unwrap_or(host);
    let user = address.user.as_deref().unwrap_or(&identities.user);
    let port = address.port.or(found.port).unwrap_or(22);
    // An scp-like path begins in the home folder, which a URL says with `~`.
    let path = match address.text().contains("://") || address.path().starts_with('/') {
        true => address.path().to_owned(),
        false => format!("/~/{}", address.path()),
    };
    let mut resolved = Address::parse(&format!("ssh://{user}@{name}:{port}{path}"));
    resolved.password.clone_from(&address.password);
    Ok((resolved, identities))
}

fn read(file: &Path, home: &Path, host: &str, found: &mut HostConfig, depth: usize) {
    let Ok(text) = fs::read_to_string(file) else {
        return;
    };
    // Lines before the first `Host` are for all.
    let mut applies = true;
    for line in text.lines() {
        let line = line.trim();
        let end = line
            .find(|c: char| c.is_whitespace() || c == '=')
            .unwrap_or(line.len());
        let (keyword, rest) = line.split_at(end);
        let rest = rest.trim_start().strip_prefix('=').unwrap_or(rest).trim();
        let keyword = keyword.to_ascii_lowercase();
        if keyword.is_empty() || keyword.starts_with('#') {
            continue;
        }
        let words = shlex::split(rest).unwrap_or_else(|| vec![rest.to_owned()]);
        match keyword.as_str() {
            "host" => applies = matches_any(&words, host),
            // Conditions that run programs or look at the session; only the plainest is known here.
            "match" => {
                applies = words
                    .first()
                    .is_some_and(|word| word.eq_ignore_ascii_case("all"))
            }
            "include" if applies && depth > 0 => {
                for word in &words {
                    let path = match word.strip_prefix("~/") {
                        Some(rest) => home.join(rest),
                        None => home.join(".ssh").join(word),
                    };
                    for path in matching_files(&path) {
                        read(&path, home, host, found, depth - 1);
                    }
                }
            }
            _ if applies => found.set(&keyword, words),
            _ => {}
        }
    }
}

impl HostConfig {
    fn set(&mut self, keyword: &str, words: Vec<String>) {
        let all = words.join(" ");
        let Some(first) = words.into_iter().next() else {
            return;
        };
        match keyword {
            "hostname" => self.host_name = self.host_name.take().or(Some(first)),
            "user" => self.user = self.user.take().or(Some(first)),
            "port" => self.port = self.port.or(first.parse().ok()),
            "identityfile" => self.identity_files.push(first),
            "identitiesonly" => {
                let only = self
                    .identities_only
                    .unwrap_or(first.eq_ignore_ascii_case("yes"));
                self.identities_only = Some(only);
            }
            "proxyjump" | "proxycommand" => self.proxy = self.proxy.take().or(Some(all)),
            _ => {}
        }
    }
}

/// Whether a `Host` line's patterns mean this host; one with `!` takes it out.
fn matches_any(patterns: &[String], host: &str) -> bool {
    let mut found = false;
    for pattern in patterns {
        match pattern.strip_prefix('!') {
            Some(pattern) if matches(pattern, host) => return false,
            Some(_) => {}
            None => found |= matches(pattern, host),
        }
    }
    found
}

/// `*` stands for any letters, `?` for one.
fn matches(pattern: &str, text: &str) -> bool {
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some('*'), _) => {
            let rest = &pattern[1..];
            let mut tails = text.char_indices().map(|(at, _)| &text[at..]);
            matches(rest, "") && text.is_empty()
                || tails.any(|tail| matches(rest, tail))
                || rest.is_empty()
        }
        (Some(wanted), Some(letter)) if wanted == '?' || wanted.eq_ignore_ascii_case(&letter) => {
            matches(&pattern[wanted.len_utf8()..], &text[letter.len_utf8()..])
        }
        _ => false,
    }
}

/// The files of an `Include`: patterns are for names in one folder.
fn matching_files(path: &Path) -> Vec<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains(['*', '?']) {
        return vec![path.to_owned()];
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| matches(&name, &entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, host, expected) in [
            ("*", "h", true),
            ("*.example.com", "git.example.com", true),
            ("*.example.com", "example.com", false),
            ("git?", "git1", true),
            ("git?", "git", false),
            ("g*t*", "github", true),
            ("GitHub", "github", true),
        ] {
            assert_eq!(matches(pattern, host), expected, "{pattern} {host}");
        }
    }

    #[test]
    fn hosts_are_reached_as_the_file_says() {
        let home = tempfile::tempdir().unwrap();
        let ssh = home.path().join(".ssh");
        fs::create_dir_all(ssh.join("conf.d")).unwrap();
        fs::write(
            ssh.join("config"),
            "Include conf.d/*.conf\n\
             # mine\nHost work other !never\n  HostName git.work.example\n  Port=2222\n\
             \x20 User \"me\"\n  IdentityFile ~/.ssh/work_key\n  IdentitiesOnly yes\n\
             Host behind\n  ProxyJump gate\n\
             Host *\n  User anybody\n  Port 22\n",
        )
        .unwrap();
        fs::write(
            ssh.join("conf.d/a.conf"),
            "Host inc\n  HostName %h.example\n",
        )
        .unwrap();
        fs::write(ssh.join("work_key"), "").unwrap();
        fs::write(ssh.join("id_rsa"), "").unwrap();
        let env: Variables = [
            ("HOME".to_owned(), home.path().display().to_string()),
            ("SSH_AUTH_SOCK".to_owned(), "/".to_owned()),
        ]
        .into();
        for (url, text, user, agent, key) in [
            (
                "work:a/b.git",
                "ssh://me@git.work.example:2222/~/a/b.git",
                "me",
                false,
                "work_key",
            ),
            (
                "git@other:/a",
                "ssh://git@git.work.example:2222/a",
                "me",
                false,
                "work_key",
            ),
            (
                "ssh://work:1/a",
                "ssh://me@git.work.example:1/a",
                "me",
                false,
                "work_key",
            ),
            (
                "ssh://inc/a",
                "ssh://anybody@inc.example:22/a",
                "anybody",
                true,
                "id_rsa",
            ),
        ] {
            let (address, identities) = resolve(&Address::parse(url), &env).unwrap();
            assert_eq!(address.text(), text);
            assert_eq!(identities.user, user, "{url}");
            assert_eq!(identities.agent, agent, "{url}");
            let keys: Vec<_> = identities
                .keys
                .iter()
                .filter_map(|k| k.file_name())
                .collect();
            assert_eq!(keys, [key], "{url}");
        }
        let refusal = resolve(&Address::parse("behind:a"), &env).unwrap_err();
        assert!(refusal.contains("gate"), "{refusal}");
        let none = Variables::new();
        let (address, identities) = resolve(&Address::parse("h:a"), &none).unwrap();
        assert_eq!((address.text(), identities.user.as_str()), ("h:a", "git"));
    }
}
