//! Where packages come from: what pip would read from its environment variables and
//! configuration files, so that uv, which ignores pip's settings, installs from the same places.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Variables;
use super::connection::Connection;
use crate::secret::Secret;

/// The index used when nothing is configured.
pub const PYPI: &str = "https://pypi.org/simple";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes {
    pub url: Option<Secret>,
    /// In the order in which they are to be asked.
    pub extra_urls: Vec<Secret>,
    pub find_links: Vec<Secret>,
    pub no_index: bool,
    pub connection: Connection,
    pub timeout: Option<String>,
    pub constraints: Vec<String>,
    pub pre_releases: bool,
    /// Names of packages, `:all:`, `:none:`.
    pub no_binary: Vec<String>,
    pub only_binary: Vec<String>,
    pub no_deps: bool,
    pub require_hashes: bool,
    /// uv has nothing like it.
    pub prefer_binary: bool,
    pub retries: Option<String>,
}

impl Indexes {
    /// pip's settings on this machine.
    pub fn of_pip(env: &Variables, home: Option<&Path>) -> Indexes {
        let files: Vec<String> = pip_files(env, home)
            .iter()
            .filter_map(|path| std::fs::read_to_string(path).ok())
            .collect();
        Indexes::from_pip(env, &files)
    }

    /// `files` are pip's configuration files, the strongest last; `PIP_…` variables are stronger.
    fn from_pip(env: &Variables, files: &[String]) -> Indexes {
        let mut values = BTreeMap::new();
        // [install] is stronger than [global], in whatever file.
        for wanted in ["global", "install"] {
            for file in files {
                values.extend(section(file, wanted));
            }
        }
        for (name, value) in env {
            if let Some(name) = name.strip_prefix("PIP_")
                && !value.is_empty()
            {
                values.insert(name.to_lowercase().replace('_', "-"), value.clone());
            }
        }
        let one = |name: &str| values.get(name).map(|value| value.trim().to_owned());
        let words = |name: &str| -> Vec<String> {
            let words = values.get(name).map(String::as_str).unwrap_or_default();
            words.split_whitespace().map(str::to_owned).collect()
        };
        let names = |name: &str| -> Vec<String> {
            let names = values.get(name).map(String::as_str).unwrap_or_default();
            let names = names.split([',', ' ', '\n']).map(str::trim);
            let names = names.filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        };
        let is_on = |name: &str| {
            one(name).is_some_and(|v| {
                matches!(
                    v.to_lowercase().as_str(),
                    "1" | "true" | "yes" | "on" | "y" | "t"
                )
            })
        };
        Indexes {
            url: one("index-url").map(Secret::new),
            extra_urls: words("extra-index-url")
                .into_iter()
                .map(Secret::new)
                .collect(),
            find_links: words("find-links").into_iter().map(Secret::new).collect(),
            no_index: is_on("no-index"),
            connection: Connection::from_pip(&values),
            timeout: one("timeout").or_else(|| one("default-timeout")),
            constraints: words("constraint"),
            pre_releases: is_on("pre"),
            no_binary: names("no-binary"),
            only_binary: names("only-binary"),
            no_deps: is_on("no-deps"),
            require_hashes: is_on("require-hashes"),
            prefer_binary: is_on("prefer-binary"),
            retries: one("retries"),
        }
    }

    /// Takes the places out of pip's command-line flags; the other flags are given back.
    pub fn take_from_flags(&mut self, flags: Vec<String>) -> Result<Vec<String>, String> {
        let mut others = Vec::new();
        let mut words = flags.into_iter();
        while let Some(word) = words.next() {
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (word.as_str(), None),
            };
            if !matches!(
                name,
                "--extra-index-url" | "--index-url" | "-i" | "--find-links" | "-f"
            ) {
                others.push(word);
                continue;
            }
            let value = inline
                .or_else(|| words.next())
                .ok_or_else(|| format!("extra pip install flags: {name} needs an address"))?;
            let value = Secret::new(value);
            match name {
                "--extra-index-url" => self.extra_urls.push(value),
                "--find-links" | "-f" => self.find_links.push(value),
                _ => self.url = Some(value),
            }
        }
        Ok(others)
    }

    /// The same places, whoever asks for them.
    pub fn without_credentials(&self) -> Vec<String> {
        let urls = self.url.iter().map(|url| ("index", url));
        let extra = self.extra_urls.iter().map(|url| ("extra", url));
        let links = self.find_links.iter().map(|url| ("links", url));
        let mut places: Vec<String> = urls
            .chain(extra)
            .chain(links)
            .map(|(kind, url)| format!("{kind} {}", without_user(url.expose())))
            .collect();
        places.push(format!(
            "{} {} {} {} {} {:?} {:?}",
            self.no_index,
            self.prefer_binary,
            self.pre_releases,
            self.no_deps,
            self.require_hashes,
            self.no_binary,
            self.only_binary
        ));
        places.extend(self.constraints.iter().cloned());
        places
    }

    /// The index that uv itself is fetched from.
    pub fn main_url(&self, env: &Variables) -> Secret {
        ["UV_DEFAULT_INDEX", "UV_INDEX_URL"]
            .iter()
            .find_map(|name| env.get(*name).filter(|url| !url.is_empty()))
            .map(|url| Secret::new(url.clone()))
            .or_else(|| self.url.clone())
            .unwrap_or_else(|| Secret::new(PYPI))
    }

    /// The indexes that uv asks where it is `told` this, without users and passwords: a lock names
    /// them so.
    pub fn known(&self, told: &Variables, env: &Variables) -> Vec<String> {
        let names = ["UV_EXTRA_INDEX_URL", "UV_INDEX"];
        let more = names
            .iter()
            .filter_map(|name| told.get(*name).or_else(|| env.get(*name)))
            .flat_map(|list| list.split_whitespace().map(plain_index));
        let main = self.main_url(env);
        let all = std::iter::once(main.expose()).chain(more);
        all.map(without_user).collect()
    }

    /// What uv is told, as variables: an argument would be seen by every user of the machine.
    /// A `UV_…` variable that the user has set stays, and a list is added to.
    pub fn for_uv(&self, env: &Variables) -> Variables {
        let mut told = Variables::new();
        let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
        let mut tell = |name: &str, value: String| {
            if !value.is_empty() && set(name).is_none() {
                told.insert(name.to_owned(), value);
            }
        };
        if set("UV_INDEX_URL").is_none()
            && let Some(url) = &self.url
        {
            tell("UV_DEFAULT_INDEX", url.expose().to_owned());
        }
        tell("UV_HTTP_TIMEOUT", self.timeout.clone().unwrap_or_default());
        tell("UV_HTTP_RETRIES", self.retries.clone().unwrap_or_default());
        if self.pre_releases {
            tell("UV_PRERELEASE", "allow".into());
        }
        for (name, values, by) in [
            ("UV_EXTRA_INDEX_URL", exposed(&self.extra_urls), " "),
            ("UV_FIND_LINKS", exposed(&self.find_links), ","),
            (
                "UV_INSECURE_HOST",
                words(&self.connection.trusted_hosts),
                " ",
            ),
            ("UV_CONSTRAINT", words(&self.constraints), " "),
        ] {
            if !values.is_empty() {
                let all: Vec<&str> = set(name)
                    .map(String::as_str)
                    .into_iter()
                    .chain(values)
                    .collect();
                told.insert(name.to_owned(), all.join(by));
            }
        }
        told.extend(self.connection.for_uv(env));
        told
    }

    /// For what uv has no variables.
    pub fn arguments_for_uv(&self) -> Vec<String> {
        let mut args = Vec::new();
        for (is_on, flag) in [
            (self.no_index, "--no-index"),
            (self.no_deps, "--no-deps"),
            (self.require_hashes, "--require-hashes"),
        ] {
            if is_on {
                args.push(flag.to_owned());
            }
        }
        for (flag, names) in [
            ("--no-binary", &self.no_binary),
            ("--only-binary", &self.only_binary),
        ] {
            args.extend(names.iter().map(|name| format!("{flag}={name}")));
        }
        args
    }

    /// What pip is told: what it reads by itself, the places that the agent's configuration adds,
    /// and those of uv's variables.
    pub fn for_pip(&self, env: &Variables) -> Variables {
        let mut told = Variables::new();
        let of_uv = |name: &str| env.get(name).map(String::as_str).unwrap_or_default();
        let main = ["UV_DEFAULT_INDEX", "UV_INDEX_URL"].map(of_uv);
        let main = main
            .into_iter()
            .find(|url| !url.is_empty())
            .map(plain_index);
        if let Some(url) = self.url.as_ref().map(Secret::expose).or(main) {
            told.insert("PIP_INDEX_URL".into(), url.to_owned());
        }
        let more = |names: &[&str], by: &[char]| -> Vec<&str> {
            let lists = names.iter().flat_map(|name| of_uv(name).split(by));
            lists
                .map(plain_index)
                .filter(|word| !word.is_empty())
                .collect()
        };
        for (name, values, of_uv) in [
            (
                "PIP_EXTRA_INDEX_URL",
                exposed(&self.extra_urls),
                more(&["UV_INDEX", "UV_EXTRA_INDEX_URL"], &[' ', '\n']),
            ),
            (
                "PIP_FIND_LINKS",
                exposed(&self.find_links),
                more(&["UV_FIND_LINKS"], &[',']),
            ),
            (
                "PIP_TRUSTED_HOST",
                words(&self.connection.trusted_hosts),
                more(&["UV_INSECURE_HOST"], &[' ']),
            ),
        ] {
            let all: Vec<&str> = values.into_iter().chain(of_uv).collect();
            if !all.is_empty() {
                told.insert(name.into(), all.join(" "));
            }
        }
        let timeout = of_uv("UV_HTTP_TIMEOUT");
        if self.timeout.is_none() && !timeout.is_empty() {
            told.insert("PIP_DEFAULT_TIMEOUT".into(), timeout.to_owned());
        }
        let retries = of_uv("UV_HTTP_RETRIES");
        if self.retries.is_none() && !retries.is_empty() {
            told.insert("PIP_RETRIES".into(), retries.to_owned());
        }
        if of_uv("UV_PRERELEASE") == "allow" {
            told.insert("PIP_PRE".into(), "1".into());
        }
        if !of_uv("UV_CONSTRAINT").is_empty() {
            let constraints = words(&self.constraints);
            let all: Vec<&str> = constraints
                .into_iter()
                .chain(of_uv("UV_CONSTRAINT").split_whitespace())
                .collect();
            told.insert("PIP_CONSTRAINT".into(), all.join(" "));
        }
        told.extend(self.connection.for_pip(env));
        told
    }
}

fn without_user(text: &str) -> String {
    let Ok(mut url) = url::Url::parse(text) else {
        return text.to_owned();
    };
    // Neither can fail for an address with a host.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

/// uv lets an index have a name: `NAME=https://…`.
fn plain_index(word: &str) -> &str {
    match word.split_once('=') {
        Some((name, url)) if !name.contains([':', '/']) => url,
        _ => word,
    }
}

fn exposed(values: &[Secret]) -> Vec<&str> {
    values.iter().map(Secret::expose).collect()
}

fn words(values: &[String]) -> Vec<&str> {
    values.iter().map(String::as_str).collect()
}

/// pip's configuration files, the weakest first.
pub(super) fn pip_files(env: &Variables, home: Option<&Path>) -> Vec<PathBuf> {
    let named = env.get("PIP_CONFIG_FILE").filter(|path| !path.is_empty());
    if named.is_some_and(|path| path == "/dev/null") {
        return Vec::new();
    }
    let mut files = Vec::new();
    let shared = env.get("XDG_CONFIG_DIRS").filter(|dirs| !dirs.is_empty());
    let shared = shared.map_or("/etc/xdg", String::as_str);
    files.extend(std::env::split_paths(shared).map(|dir| dir.join("pip/pip.conf")));
    files.push("/etc/pip.conf".into());
    if let Some(home) = home {
        files.push(home.join(".pip/pip.conf"));
        let own = env.get("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty());
        let own = own.map_or_else(|| home.join(".config"), PathBuf::from);
        files.push(own.join("pip/pip.conf"));
    }
    files.extend(named.map(PathBuf::from));
    files
}

/// The options of one section of an INI file; a value's continuation lines are joined by blanks.
fn section(file: &str, wanted: &str) -> BTreeMap<String, String> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut inside = false;
    let mut last: Option<String> = None;
    for line in file.lines() {
        let text = line.trim();
        if text.is_empty() || text.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
            inside = name.trim() == wanted;
            last = None;
        } else if !inside {
        } else if line.starts_with([' ', '\t']) && last.is_some() {
            let value = last.as_ref().and_then(|name| values.get_mut(name));
            if let Some(value) = value {
                value.push(' ');
                value.push_str(text);
            }
        } else if let Some((name, value)) = text.split_once(['=', ':']) {
            let name = name.trim().to_lowercase().replace('_', "-");
            values.insert(name.clone(), value.trim().to_owned());
            last = Some(name);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn pips_files_and_variables_are_translated() {
        let site = "[global]\nindex-url = https://site/simple\ntimeout=5\n".to_owned();
        let user = "[global]\nextra-index-url =\n    https://u:p@a/simple\n    https://b/simple\n\
                    [install]\n# comment\ntrusted_host: a\nno-index = false\n"
            .to_owned();
        let env = vars(&[("PIP_DEFAULT_TIMEOUT", "9"), ("PIP_FIND_LINKS", "/w1 /w2")]);
        let indexes = Indexes::from_pip(&env, &[site, user]);
        assert_eq!(
            indexes.for_uv(&Variables::new()),
            vars(&[
                ("UV_DEFAULT_INDEX", "https://site/simple"),
                (
                    "UV_EXTRA_INDEX_URL",
                    "https://u:p@a/simple https://b/simple"
                ),
                ("UV_FIND_LINKS", "/w1,/w2"),
                ("UV_INSECURE_HOST", "a"),
                ("UV_HTTP_TIMEOUT", "5"),
            ])
        );
        assert_eq!(
            indexes.for_pip(&vars(&[
                ("UV_INDEX", "ours=https://c/simple"),
                ("UV_DEFAULT_INDEX", "https://not-this/simple"),
            ])),
            vars(&[
                ("PIP_INDEX_URL", "https://site/simple"),
                (
                    "PIP_EXTRA_INDEX_URL",
                    "https://u:p@a/simple https://b/simple https://c/simple"
                ),
                ("PIP_FIND_LINKS", "/w1 /w2"),
                ("PIP_TRUSTED_HOST", "a"),
            ])
        );
    }

    #[test]
    fn variables_are_stronger_than_files_and_uvs_own_stronger_still() {
        let file = "[global]\nindex-url = https://file/simple\n".to_owned();
        let env = vars(&[("PIP_INDEX_URL", "https://pip/simple")]);
        let indexes = Indexes::from_pip(&env, &[file]);
        assert_eq!(indexes.main_url(&env).expose(), "https://pip/simple");
        let env = vars(&[("UV_INDEX_URL", "https://uv/simple")]);
        assert_eq!(indexes.main_url(&env).expose(), "https://uv/simple");
        assert_eq!(indexes.for_uv(&env), Variables::new());
        let env = vars(&[("UV_EXTRA_INDEX_URL", "https://mine/simple")]);
        let mut indexes = Indexes::default();
        indexes.extra_urls.push(Secret::new("https://conf/simple"));
        assert_eq!(
            indexes.for_uv(&env)["UV_EXTRA_INDEX_URL"],
            "https://mine/simple https://conf/simple"
        );
    }

    #[test]
    fn uvs_variables_are_translated_for_pip() {
        let indexes = Indexes::from_pip(&vars(&[("PIP_CONSTRAINT", "/c1")]), &[]);
        let env = vars(&[
            ("UV_DEFAULT_INDEX", "named=https://uv/simple"),
            ("UV_EXTRA_INDEX_URL", "https://more/simple"),
            ("UV_HTTP_TIMEOUT", "7"),
            ("UV_HTTP_RETRIES", "2"),
            ("UV_PRERELEASE", "allow"),
            ("UV_CONSTRAINT", "/c2"),
        ]);
        assert_eq!(
            indexes.for_pip(&env),
            vars(&[
                ("PIP_INDEX_URL", "https://uv/simple"),
                ("PIP_EXTRA_INDEX_URL", "https://more/simple"),
                ("PIP_DEFAULT_TIMEOUT", "7"),
                ("PIP_RETRIES", "2"),
                ("PIP_PRE", "1"),
                ("PIP_CONSTRAINT", "/c1 /c2"),
            ])
        );
        // pip's own come first.
        let own = vars(&[("PIP_DEFAULT_TIMEOUT", "1"), ("PIP_RETRIES", "1")]);
        let told = Indexes::from_pip(&own, &[]).for_pip(&env);
        assert!(!told.contains_key("PIP_DEFAULT_TIMEOUT") && !told.contains_key("PIP_RETRIES"));
    }

    #[test]
    fn places_in_flags_are_taken_out() {
        let flags = "--no-deps -i https://u:p@h/s --extra-index-url=https://x/s -f /w --pre";
        let mut indexes = Indexes::default();
        let others = indexes.take_from_flags(shlex::split(flags).unwrap());
        assert_eq!(others.unwrap(), ["--no-deps", "--pre"]);
        assert_eq!(indexes.url, Some(Secret::new("https://u:p@h/s")));
        assert_eq!(indexes.extra_urls, [Secret::new("https://x/s")]);
        assert_eq!(indexes.find_links, [Secret::new("/w")]);
        assert!(indexes.take_from_flags(vec!["--index-url".into()]).is_err());
    }

    #[test]
    fn without_settings_it_is_pypi() {
        let indexes = Indexes::from_pip(&Variables::new(), &[]);
        assert_eq!(indexes, Indexes::default());
        assert_eq!(indexes.main_url(&Variables::new()).expose(), PYPI);
    }
}
