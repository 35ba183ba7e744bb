//! What the git is told that others start, as uv and pip do for requirements: the ways and the logins
//! that the task's own repository would have there. All of it goes by the environment. A login that
//! stands in an address is for that address; for others of its server only where nothing else is known
//! and no other login is named for it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use git2::Repository;
use tokio_util::sync::CancellationToken;

use super::Servers;
use super::credentials::Login;
use super::error::SourceError;
use super::git_program::{OF_ANOTHER_REPOSITORY, complaint, login_helper};
use super::network::Network;
use super::program;
use super::ssh::on_path;
use super::url::{Address, Transport};
use crate::config::Variables;
use crate::console::Console;
use crate::secret::Secret;

/// Addresses of repositories, with whatever login stands in them.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// The task's own; may be empty.
    pub repository: String,
    pub requirements: Vec<String>,
}

/// What is lent for one installation.
#[derive(Debug, Clone, Default)]
pub struct Lent {
    settings: Vec<(String, Secret)>,
    variables: Vec<(String, Secret)>,
    logins: usize,
}

impl Lent {
    /// The variables for git, added to those that are there already.
    pub fn environment(&self, env: &Variables) -> Variables {
        let before = env
            .get("GIT_CONFIG_COUNT")
            .and_then(|n| n.trim().parse().ok());
        let before: usize = before.unwrap_or(0);
        let mut told = Variables::from([("GIT_TERMINAL_PROMPT".to_owned(), "0".to_owned())]);
        let variables = self.variables.iter();
        told.extend(variables.map(|(name, value)| (name.clone(), value.expose().to_owned())));
        for (number, (key, value)) in (before..).zip(&self.settings) {
            told.insert(format!("GIT_CONFIG_KEY_{number}"), key.clone());
            let value = value.expose().to_owned();
            told.insert(format!("GIT_CONFIG_VALUE_{number}"), value);
        }
        let count = before + self.settings.len();
        if count > 0 {
            told.insert("GIT_CONFIG_COUNT".into(), count.to_string());
        }
        told
    }

    fn set(&mut self, key: String, value: impl Into<String>) {
        self.settings.push((key, Secret::new(value)));
    }

    /// A login for the repositories at and below `place` (`https://host/path`; nothing: all of them).
    fn offer(&mut self, place: Option<&str>, login: &Login, standing: Standing) {
        let key = |name: &str| match place {
            Some(place) => format!("credential.{place}.{name}"),
            None => format!("credential.{name}"),
        };
        match standing {
            // Takes those away that the user has configured.
            Standing::InPlace => self.set(key("helper"), ""),
            Standing::BehindUsers => self.set(key("username"), login.user.clone()),
            Standing::Behind => {}
        }
        let name = format!("CLEARML_AGENT_GIT_LOGIN_{}", self.logins);
        self.logins += 1;
        self.set(key("helper"), login_helper(&name));
        self.variables
            .push((format!("{name}_USER"), Secret::new(login.user.clone())));
        self.variables
            .push((format!("{name}_PASS"), login.password.clone()));
    }

    fn bear(&mut self, place: &str, token: &Secret) {
        let header = format!("Authorization: Bearer {}", token.expose());
        self.set(format!("http.{place}.extraHeader"), header);
        // git would send it to wherever the server points, too.
        self.set(format!("http.{place}.followRedirects"), "false");
    }
}

/// How a login stands to what git itself knows (by helpers and `.netrc`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// In its place.
    InPlace,
    /// Behind what it knows of this user, who may also be a token.
    BehindUsers,
    /// Behind it.
    Behind,
}

/// A repository that is needed, and how git is to get there.
#[derive(Debug, Clone)]
struct Reached {
    asked: Address,
    way: Address,
    /// With the certificate authorities that are configured, and not the machine's.
    bundle: bool,
}

/// Finds out what git has to be told. Where there is more than one way to a repository, it is asked.
pub fn lend(
    needs: &Needs,
    servers: &Servers,
    env: &Variables,
    console: &Console,
    stop: &CancellationToken,
) -> Result<Lent, SourceError> {
    let network = Network::new(servers, env, false, console, stop)?;
    let folder = tempfile::tempdir().map_err(SourceError::io("creating", "a temporary folder"))?;
    // Empty; for what the user's configuration says of addresses.
    let config = Repository::init_bare(folder.path())
        .map_err(SourceError::git("reading git's configuration"))?;
    let own = Address::parse(&needs.repository);
    let mut reached: Vec<Reached> = Vec::new();
    for asked in needs.requirements.iter().map(|text| Address::parse(text)) {
        let is_far = !matches!(asked.transport, Transport::Local | Transport::Git);
        if is_far && !reached.iter().any(|known| known.asked == asked) {
            reached.push(reach(&network, &config, &own, asked, console));
        }
    }
    let mut lent = Lent::default();
    offer_logins(&mut lent, &network, &own, &reached);
    set_trust(&mut lent, &network, &reached);
    let own_ways = network.ways(&config, &own);
    let own = match own_ways.as_slice() {
        [only] if own.host.is_some() => Some((&own, &only.address)),
        _ => None,
    };
    for (base, instead_of) in rules(&network, own, &reached) {
        lent.set(format!("url.{base}.insteadOf"), instead_of);
    }
    call_ssh(&mut lent, &network);
    Ok(lent)
}

/// The first way that the server takes; the first of all, if none is.
fn reach(
    network: &Network<'_>,
    config: &Repository,
    own: &Address,
    asked: Address,
    console: &Console,
) -> Reached {
    let ways = network.ways(config, &asked);
    let tries: Vec<(Reached, bool)> = ways
        .into_iter()
        .flat_map(|way| {
            let certificates = way.address.transport == Transport::Https;
            let with_bundle = certificates && network.ca_bundle.is_some();
            let reached = |bundle| Reached {
                asked: asked.clone(),
                way: way.address.clone(),
                bundle,
            };
            let mut tries = vec![(reached(false), way.after_refusal)];
            tries.extend(with_bundle.then(|| (reached(true), false)));
            tries
        })
        .collect();
    let as_it_is = Reached {
        way: asked.clone(),
        asked,
        bundle: false,
    };
    let first = tries.first().map_or(as_it_is, |(first, _)| first.clone());
    if tries.len() < 2 {
        return first;
    }
    let mut last: Option<String> = None;
    for (reached, after_refusal) in tries {
        let said = last.as_deref().unwrap_or_default().to_lowercase();
        if after_refusal && !wants_a_login(&said) || reached.bundle && !said.contains("certificate")
        {
            continue;
        }
        match ask(network, own, &reached) {
            None => return first,
            Some(Ok(())) => {
                if let (Some(why), false) = (&last, reached.way.text() == first.way.text()) {
                    let (asked, way) = (reached.asked.shown(), reached.way.shown());
                    console.say(format!("{asked}: {why}; {way} is taken instead"));
                }
                return reached;
            }
            Some(Err(why)) => last = Some(why),
        }
    }
    first
}

/// Whether git lets us in this way. Nothing where that cannot be found out.
fn ask(network: &Network<'_>, own: &Address, reached: &Reached) -> Option<Result<(), String>> {
    let mut lent = Lent::default();
    let reached = std::slice::from_ref(reached);
    offer_logins(&mut lent, network, own, reached);
    set_trust(&mut lent, network, reached);
    for (base, instead_of) in rules(network, None, reached) {
        lent.set(format!("url.{base}.insteadOf"), instead_of);
    }
    call_ssh(&mut lent, network);
    // A server that says nothing for so long (seconds) is given up.
    lent.set("http.lowSpeedLimit".into(), "1");
    lent.set("http.lowSpeedTime".into(), "30");
    let mut command = Command::new(on_path(network.env, "git")?);
    command
        .args([
            "ls-remote",
            "--quiet",
            "--",
            reached[0].asked.text(),
            "HEAD",
        ])
        .current_dir("/")
        .env_clear()
        .envs(network.env)
        .envs(lent.environment(network.env));
    for name in OF_ANOTHER_REPOSITORY {
        command.env_remove(name);
    }
    let finished = program::run(command, b"", network.stop, &|_| {}).ok()?;
    if network.stop.is_cancelled() {
        return None;
    }
    Some(match finished.success {
        true => Ok(()),
        false => Err(complaint(&finished.errors)),
    })
}

/// What git says where a server wants to know who asks.
fn wants_a_login(said: &str) -> bool {
    [
        "could not read username",
        "could not read password",
        "authentication failed",
        "error: 401",
        "error: 403",
    ]
    .iter()
    .any(|words| said.contains(words))
}

fn offer_logins(lent: &mut Lent, network: &Network<'_>, own: &Address, reached: &[Reached]) {
    let credentials = network.credentials;
    if let Some(login) = credentials.for_every_host() {
        lent.offer(None, &login, Standing::Behind);
    }
    let known: Vec<&Address> = std::iter::once(own)
        .chain(reached.iter().map(|reached| &reached.way))
        .filter(|address| is_web(address))
        .collect();
    for (place, login) in credentials.by_place(&known) {
        match credentials.is_bearer() {
            true => lent.bear(&place, &login.password),
            false => lent.offer(Some(&place), &login, Standing::InPlace),
        }
    }
    // What stands in the addresses, for others of the same server.
    let mut of_servers: BTreeMap<String, Vec<Login>> = BTreeMap::new();
    for address in &known {
        let login = network
            .logins(address)
            .into_iter()
            .find(Login::is_of_address);
        if let (Some(login), None) = (login, credentials.for_address(address)) {
            let logins = of_servers.entry(server(address)).or_default();
            if !logins.contains(&login) {
                logins.push(login);
            }
        }
    }
    for (server, logins) in &of_servers {
        if let [only] = logins.as_slice() {
            lent.offer(Some(server), only, Standing::Behind);
        }
    }
    let mut done = BTreeSet::new();
    for address in known {
        let Some(login) = network.logins(address).into_iter().next() else {
            continue;
        };
        if !done.insert(address.text().to_owned()) {
            continue;
        }
        let place = address.text();
        let configured = !login.is_of_address() && credentials.for_address(address).is_some();
        if configured && credentials.is_bearer() {
            lent.bear(place, &login.password);
        } else if address.password.is_some() || configured && credentials.has_place_of(address) {
            lent.offer(Some(place), &login, Standing::InPlace);
        } else if !configured {
            let standing = match login.is_of_address() {
                true => Standing::BehindUsers,
                false => Standing::Behind,
            };
            lent.offer(Some(place), &login, standing);
        }
    }
}

fn set_trust(lent: &mut Lent, network: &Network<'_>, reached: &[Reached]) {
    if network.accept_any_certificate {
        lent.set("http.sslVerify".into(), "false");
    }
    let Some(bundle) = network.ca_bundle else {
        return;
    };
    for reached in reached.iter().filter(|reached| reached.bundle) {
        let key = format!("http.{}.sslCAInfo", server(&reached.way));
        lent.set(key, bundle.display().to_string());
    }
}

fn call_ssh(lent: &mut Lent, network: &Network<'_>) {
    if let Some(command) = network.ssh_command() {
        let name = "GIT_SSH_COMMAND".to_owned();
        lent.variables.push((name, Secret::new(command)));
    }
}

fn is_web(address: &Address) -> bool {
    matches!(address.transport, Transport::Http | Transport::Https)
}

/// `https://host:port`
fn server(address: &Address) -> String {
    let text = address.text();
    text[..text.len() - address.path().len()].to_owned()
}

/// `url.BASE.insteadOf` for what is needed, and for others of the same servers (submodules, what
/// requirements require). git takes the longest one that fits.
fn rules(
    network: &Network<'_>,
    own: Option<(&Address, &Address)>,
    reached: &[Reached],
) -> Vec<(String, String)> {
    let protocol = network.protocol;
    let pairs = reached.iter().map(|r| (&r.asked, &r.way));
    let mut of_servers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (asked, way) in pairs.chain(own) {
        let is_url = asked.text().contains("://") && way.text().contains("://");
        if is_url && asked.path() == way.path() && asked.path().starts_with('/') {
            let (from, to) = (server(asked), format!("{}/", server(way)));
            let mut froms = vec![format!("{from}/")];
            // As people write it in .gitmodules, too.
            if asked.transport == Transport::Ssh && asked.port.is_none() {
                froms.push(format!("{}:", from.trim_start_matches("ssh://")));
            }
            for from in froms {
                of_servers.entry(from).or_default().insert(to.clone());
            }
        }
        // As for a repository over ssh with no key to offer.
        if protocol.translate
            && !protocol.force_ssh
            && network.credentials.for_address(way).is_some()
            && let Some(ssh) = way.over_ssh(None, None)
            && ssh.over_https("https").as_ref().map(Address::text) == Some(way.text())
            && !network.has_key(&ssh)
        {
            let (from, to) = (server(&ssh), format!("{}/", server(way)));
            let scp = format!("{}:", from.trim_start_matches("ssh://"));
            for from in [format!("{from}/"), scp] {
                of_servers.entry(from).or_default().insert(to.clone());
            }
        }
    }
    // Hosts that are not named are left alone: what builds fetch from there needs no key.
    let mut rules = Vec::new();
    for (from, to) in of_servers {
        // Where two ways lead to one server, it is not known which is the others'.
        let mut to = to.into_iter();
        if let (Some(base), None) = (to.next(), to.next())
            && base != from
        {
            rules.push((base, from));
        }
    }
    let any = !rules.is_empty();
    let exact = reached.iter().map(|r| (r.way.text(), r.asked.text()));
    let exact = exact.filter(|(way, asked)| any || way != asked);
    rules.extend(exact.map(|(way, asked)| (way.to_owned(), asked.to_owned())));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{GitCredentials, PasswordKind, Protocol};

    fn told(servers: &Servers, repository: &str, requirements: &[&str]) -> Vec<(String, String)> {
        let needs = Needs {
            repository: repository.to_owned(),
            requirements: requirements.iter().map(|text| (*text).to_owned()).collect(),
        };
        let console = Console::new(|_| {});
        let stop = CancellationToken::new();
        let lent = lend(&needs, servers, &Variables::new(), &console, &stop).unwrap();
        let settings = lent.settings.iter();
        settings
            .map(|(key, value)| (key.clone(), value.expose().to_owned()))
            .collect()
    }

    #[test]
    fn addresses_over_ssh() {
        let protocol = |ssh_port| Protocol {
            force_ssh: true,
            ssh_port,
            ..Protocol::default()
        };
        for (ssh_port, host, repository, requirements, expected) in [
            (None, None, "", &[][..], &[][..]),
            (
                Some(22),
                None,
                "https://h:8443/o/x",
                &["https://g/y.git"],
                &[
                    ("ssh://git@g:22/", "https://g/"),
                    ("ssh://git@h:22/", "https://h:8443/"),
                    ("ssh://git@g:22/y.git", "https://g/y.git"),
                ],
            ),
            (
                None,
                Some("h"),
                "",
                &["https://h/x", "https://g/y"],
                &[
                    ("ssh://git@h/", "https://h/"),
                    ("ssh://git@h/x", "https://h/x"),
                    ("https://g/y", "https://g/y"),
                ],
            ),
        ] {
            let servers = Servers {
                credentials: GitCredentials {
                    host: host.map(str::to_owned),
                    ..GitCredentials::default()
                },
                protocol: protocol(ssh_port),
                ..Servers::default()
            };
            let expected: Vec<_> = expected
                .iter()
                .map(|(base, from)| (format!("url.{base}.insteadOf"), (*from).to_owned()))
                .collect();
            assert_eq!(told(&servers, repository, requirements), expected);
        }
    }

    #[test]
    fn logins_are_for_their_places() {
        let own = |host: Option<&str>, kind| Servers {
            credentials: GitCredentials {
                user: Some("ci".into()),
                password: Some(Secret::new("pw")),
                host: host.map(str::to_owned),
                kind,
                ..GitCredentials::default()
            },
            protocol: Protocol {
                translate: false,
                ..Protocol::default()
            },
            ..Servers::default()
        };
        let nothing = own(Some("nowhere"), PasswordKind::Basic);
        let (basic, bearer) = (PasswordKind::Basic, PasswordKind::EntraToken);
        for (servers, repository, requirement, place, keys) in [
            (
                own(None, basic),
                "",
                "https://h/x",
                "credential.",
                &["helper"][..],
            ),
            (
                own(Some("h"), basic),
                "",
                "https://h:1/x",
                "credential.https://h:1",
                &[".helper", ".helper", "/x.helper", "/x.helper"],
            ),
            (
                nothing.clone(),
                "",
                "https://h/x",
                "credential.https://h",
                &[],
            ),
            (
                nothing.clone(),
                "https://t:p@h/y",
                "https://h/x",
                "credential.https://h",
                &[".helper", "/y.helper", "/y.helper"],
            ),
            (
                nothing.clone(),
                "https://t:p@h/y",
                "https://u:q@h/x",
                "credential.https://h",
                &["/y.helper", "/y.helper", "/x.helper", "/x.helper"],
            ),
            (
                nothing,
                "",
                "https://token@h/x",
                "credential.https://h",
                &[".helper", "/x.username", "/x.helper"],
            ),
            (
                own(None, bearer),
                "",
                "https://h/x",
                "http.https://h",
                &["/x.extraHeader", "/x.followRedirects"],
            ),
        ] {
            let found: Vec<_> = told(&servers, repository, &[requirement])
                .into_iter()
                .filter_map(|(key, _)| key.strip_prefix(place).map(str::to_owned))
                .collect();
            assert_eq!(found, keys, "{repository} {requirement}");
        }
    }

    #[test]
    fn what_is_lent_comes_behind_what_is_there() {
        let mut lent = Lent::default();
        let login = Login {
            user: "u".into(),
            password: Secret::new("it's"),
            origin: "test",
        };
        lent.offer(Some("https://h/x"), &login, Standing::InPlace);
        let told = lent.environment(&Variables::from([("GIT_CONFIG_COUNT".into(), "2".into())]));
        assert_eq!(told["GIT_CONFIG_COUNT"], "4");
        assert_eq!(told["GIT_CONFIG_KEY_2"], "credential.https://h/x.helper");
        assert_eq!(told["GIT_CONFIG_VALUE_2"], "");
        assert_eq!(told["CLEARML_AGENT_GIT_LOGIN_0_PASS"], "it's");
        assert!(!told["GIT_CONFIG_VALUE_3"].contains("it's"));
        assert!(
            !Lent::default()
                .environment(&Variables::new())
                .contains_key("GIT_CONFIG_COUNT")
        );
    }
}
