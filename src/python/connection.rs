//! How package indexes are reached: by which proxy, and whose certificates are trusted. pip, uv and
//! the libraries below them have settings of their own for that. Here each counts for all three
//! that ask an index: uv, pip, and the agent itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::{Identity, NoProxy, Proxy};
use url::Url;

use super::Variables;
use super::failure::host;
use super::settings::Settings;
use super::uv::client_for;
use crate::api::tls::{Trust, client_builder};
use crate::secret::Secret;

/// What pip's own settings say, which come before the variables that are for all programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Connection {
    /// `proxy`, with its scheme.
    pub proxy: Option<Secret>,
    /// `cert`: a PEM file, or a folder as OpenSSL has it.
    pub authorities: Option<PathBuf>,
    /// `client-cert`: a PEM file of certificate and key.
    pub client_certificate: Option<PathBuf>,
    pub trusted_hosts: Vec<String>,
}

/// Where the certificates of trusted authorities are.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Authorities {
    File(PathBuf),
    Folder(PathBuf),
}

impl Authorities {
    fn at(path: &Path) -> Authorities {
        match path.is_dir() {
            true => Authorities::Folder(path.to_owned()),
            false => Authorities::File(path.to_owned()),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Authorities::File(path) | Authorities::Folder(path) => path,
        }
    }
}

impl Connection {
    /// `values` are pip's settings by their long names.
    pub(super) fn from_pip(values: &BTreeMap<String, String>) -> Connection {
        let one = |name: &str| values.get(name).map(|value| value.trim().to_owned());
        let one = |name: &str| one(name).filter(|value| !value.is_empty());
        let with_scheme = |proxy: String| match proxy.contains("://") {
            true => proxy,
            false => format!("http://{proxy}"),
        };
        let hosts = values.get("trusted-host").map(String::as_str);
        Connection {
            proxy: one("proxy").map(with_scheme).map(Secret::new),
            authorities: one("cert").map(PathBuf::from),
            client_certificate: one("client-cert").map(PathBuf::from),
            trusted_hosts: hosts
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Whose certificates count: variables come before files, pip's and uv's before those of the
    /// libraries below pip. `None`: nobody said.
    fn authorities(&self, env: &Variables) -> Option<Authorities> {
        let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
        let at = |name: &str| set(name).map(|path| Authorities::at(Path::new(path)));
        let of_folders = || {
            let folders = set("SSL_CERT_DIR")?;
            let folder = std::env::split_paths(folders).find(|folder| folder.is_dir());
            folder.map(Authorities::Folder)
        };
        at("PIP_CERT")
            .or_else(|| at("SSL_CERT_FILE"))
            .or_else(of_folders)
            .or_else(|| self.authorities.as_deref().map(Authorities::at))
            .or_else(|| at("REQUESTS_CA_BUNDLE"))
            .or_else(|| at("CURL_CA_BUNDLE"))
    }

    /// The path that says whose certificates are trusted, where somebody named one.
    pub fn named_authorities(&self, env: &Variables) -> Option<PathBuf> {
        let named = self.authorities(env)?;
        Some(named.path().to_owned())
    }

    /// What uv is told, where it would not find it by itself.
    pub fn for_uv(&self, env: &Variables) -> Variables {
        let mut told = Variables::new();
        let set = |name: &str| env.get(name).is_some_and(|value| !value.is_empty());
        let by_itself = !set("PIP_CERT") && (set("SSL_CERT_FILE") || set("SSL_CERT_DIR"));
        if !by_itself && let Some(authorities) = self.authorities(env) {
            let (name, other) = match &authorities {
                Authorities::File(_) => ("SSL_CERT_FILE", "SSL_CERT_DIR"),
                Authorities::Folder(_) => ("SSL_CERT_DIR", "SSL_CERT_FILE"),
            };
            told.insert(name.into(), text(authorities.path()));
            if set(other) {
                // Empty is unset: pip's setting stands alone.
                told.insert(other.into(), String::new());
            }
        }
        if let Some(path) = &self.client_certificate {
            told.insert("SSL_CLIENT_CERT".into(), text(path));
        }
        if let Some(proxy) = &self.proxy {
            for name in PROXIES {
                told.insert(name.into(), proxy.expose().to_owned());
            }
        }
        told
    }

    /// What pip is told, where it would not find it by itself.
    pub fn for_pip(&self, env: &Variables) -> Variables {
        let mut told = Variables::new();
        if let Some(authorities) = self.authorities(env)
            && self.authorities.as_deref() != Some(authorities.path())
        {
            told.insert("PIP_CERT".into(), text(authorities.path()));
        }
        let of_uv = env.get("SSL_CLIENT_CERT").filter(|path| !path.is_empty());
        if let (None, Some(path)) = (&self.client_certificate, of_uv) {
            told.insert("PIP_CLIENT_CERT".into(), path.clone());
        }
        if let Some(proxy) = &self.proxy {
            // Not every pip takes one without a scheme.
            told.insert("PIP_PROXY".into(), proxy.expose().to_owned());
        }
        told
    }

    /// A client of the agent's own for this address.
    pub fn client(&self, url: &Url, env: &Variables) -> Result<reqwest::ClientBuilder, String> {
        let of_uv = env.get("UV_INSECURE_HOST").map(String::as_str);
        let trusted = url.host_str().is_some_and(|host| {
            let hosts = self.trusted_hosts.iter().map(String::as_str);
            let hosts = hosts.chain(of_uv.unwrap_or_default().split_whitespace());
            is_trusted(host, url.port(), hosts)
        });
        let trust = match self.authorities(env) {
            _ if trusted || url.scheme() == "http" => Trust::Anything,
            Some(Authorities::File(bundle)) => Trust::Bundle(bundle),
            // The machine's own, as the TLS library finds it.
            Some(Authorities::Folder(_)) | None => Trust::System,
        };
        let mut builder = client_builder(&trust)?.no_proxy();
        for proxy in self.proxies(env)? {
            builder = builder.proxy(proxy);
        }
        let of_env = env.get("SSL_CLIENT_CERT").filter(|path| !path.is_empty());
        let identity = self.client_certificate.clone();
        if let Some(path) = identity.or_else(|| of_env.map(PathBuf::from)) {
            let unusable = |e: String| format!("client certificate {}: {e}", path.display());
            let pem = std::fs::read(&path).map_err(|e| unusable(e.to_string()))?;
            let identity = Identity::from_pem(&pem).map_err(|e| unusable(e.to_string()))?;
            builder = builder.identity(identity);
        }
        Ok(builder)
    }

    /// From the environment that is handed to uv and pip, which need not be this process's.
    fn proxies(&self, env: &Variables) -> Result<Vec<Proxy>, String> {
        let set = |name: &str| {
            let upper = env.get(&name.to_uppercase());
            upper.or_else(|| env.get(name)).filter(|v| !v.is_empty())
        };
        let past = set("no_proxy").and_then(|hosts| NoProxy::from_string(hosts));
        let own = self.proxy.as_ref().map(Secret::expose);
        type Kind = fn(&str) -> reqwest::Result<Proxy>;
        let kinds: [(&str, Kind); 3] = [
            ("https_proxy", |url| Proxy::https(url)),
            ("http_proxy", |url| Proxy::http(url)),
            ("all_proxy", |url| Proxy::all(url)),
        ];
        let mut proxies = Vec::new();
        for (name, proxy) in kinds {
            let Some(url) = own.or_else(|| set(name).map(String::as_str)) else {
                continue;
            };
            let proxy = proxy(url).map_err(|_| {
                let name = own.map_or(name, |_| "pip's proxy");
                format!("{name} is no address of a proxy")
            })?;
            proxies.push(proxy.no_proxy(past.clone()));
        }
        Ok(proxies)
    }
}

const PROXIES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// pip's `trusted-host`: a host, or host and port.
fn is_trusted<'a>(
    host: &str,
    port: Option<u16>,
    trusted: impl IntoIterator<Item = &'a str>,
) -> bool {
    trusted
        .into_iter()
        .any(|entry| match entry.rsplit_once(':') {
            Some((name, number)) => name == host && number.parse().ok() == port,
            None => entry == host,
        })
}

/// What lets uv trust what the machine trusts: of today's uv, and of older ones.
pub(super) const SYSTEM_CERTIFICATES: [&str; 2] = ["UV_SYSTEM_CERTS", "UV_NATIVE_TLS"];

/// Whether the address that uv does not trust is one that this machine trusts. uv brings
/// certificates of its own, which count where nobody has said whose do.
pub(super) async fn machine_trusts(lines: &[String], settings: &Settings) -> bool {
    let connection = &settings.indexes.connection;
    let named = connection.named_authorities(&settings.environment);
    let said = |name: &&str| settings.variable(name).is_some();
    if named.is_some() || SYSTEM_CERTIFICATES.iter().any(said) {
        return false;
    }
    let Some(url) = host(lines) else {
        return false;
    };
    match client_for(&url, settings) {
        Ok(client) => client.head(url).send().await.is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(pairs: &[(&str, &str)]) -> Variables {
        let owned = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        pairs.iter().map(owned).collect()
    }

    #[test]
    fn each_tool_is_told_what_it_does_not_read_itself() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().to_str().unwrap();
        let several = format!("/no/such/folder:{folder}");
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        // pip's settings and the environment; what uv and pip are told.
        let cases: [(Pairs<'_>, Pairs<'_>, Pairs<'_>, Pairs<'_>); 11] = [
            (&[], &[], &[], &[]),
            (&[("cert", "/ca")], &[], &[("SSL_CERT_FILE", "/ca")], &[]),
            (
                &[("cert", "/ca")],
                &[("SSL_CERT_FILE", "/other")],
                &[],
                &[("PIP_CERT", "/other")],
            ),
            (
                &[("cert", "/ca")],
                &[
                    ("PIP_CERT", "/ca"),
                    ("SSL_CERT_FILE", "/other"),
                    ("SSL_CERT_DIR", "/d"),
                ],
                &[("SSL_CERT_FILE", "/ca"), ("SSL_CERT_DIR", "")],
                &[],
            ),
            (&[("cert", folder)], &[], &[("SSL_CERT_DIR", folder)], &[]),
            (
                &[],
                &[("SSL_CERT_FILE", "/ca")],
                &[],
                &[("PIP_CERT", "/ca")],
            ),
            (
                &[],
                &[("SSL_CERT_DIR", &several)],
                &[],
                &[("PIP_CERT", folder)],
            ),
            (
                &[],
                &[("REQUESTS_CA_BUNDLE", "/r"), ("CURL_CA_BUNDLE", "/c")],
                &[("SSL_CERT_FILE", "/r")],
                &[("PIP_CERT", "/r")],
            ),
            (
                &[("client-cert", "/me")],
                &[],
                &[("SSL_CLIENT_CERT", "/me")],
                &[],
            ),
            (
                &[],
                &[("SSL_CLIENT_CERT", "/me")],
                &[],
                &[("PIP_CLIENT_CERT", "/me")],
            ),
            (
                &[("proxy", "u:p@proxy:3128")],
                &[("HTTPS_PROXY", "http://other"), ("NO_PROXY", "h")],
                &PROXIES.map(|name| (name, "http://u:p@proxy:3128")),
                &[("PIP_PROXY", "http://u:p@proxy:3128")],
            ),
        ];
        for (pip, env, uv_told, pip_told) in cases {
            let connection = Connection::from_pip(&vars(pip));
            assert_eq!(
                connection.for_uv(&vars(env)),
                vars(uv_told),
                "{pip:?} {env:?}"
            );
            assert_eq!(
                connection.for_pip(&vars(env)),
                vars(pip_told),
                "{pip:?} {env:?}"
            );
        }
    }

    #[test]
    fn trusted_hosts_are_pips() {
        let trusted = ["a", "b:8080"];
        assert!(is_trusted("a", Some(99), trusted));
        assert!(is_trusted("b", Some(8080), trusted));
        assert!(!is_trusted("b", None, trusted));
        assert!(!is_trusted("c", None, trusted));
    }
}
