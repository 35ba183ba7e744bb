//! The talk with git servers: libgit2's settings, callbacks and limits, the same for every fetch.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use git2::{
    AutotagOption, CertificateCheckStatus, Direction, FetchOptions, Oid, ProxyOptions,
    RemoteCallbacks, RemoteRedirect, Repository,
};
use tokio_util::sync::CancellationToken;

use super::credentials::{Answers, GitCredentials, Login, bearer, logins};
use super::error::SourceError;
use super::git_program;
use super::ssh::{self, SshProgram};
use super::url::{Address, Transport};
use super::ways::{Protocol, Way, ways_to};
use super::{Servers, ssh_config};
use crate::config::Variables;
use crate::console::Console;
use crate::secret::Secret;

/// A server that does not take a connection within this time is unreachable.
const CONNECT_LIMIT_MS: i32 = 15_000;
/// A server that is silent for this long is gone; one that packs a large repository says so.
const SILENCE_LIMIT_MS: i32 = 60_000;
/// How often a long fetch says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Network<'a> {
    pub(super) credentials: &'a GitCredentials,
    pub(super) protocol: &'a Protocol,
    pub(super) env: &'a Variables,
    ssh: Option<SshProgram>,
    pub(super) ca_bundle: Option<&'a Path>,
    pub(super) accept_any_certificate: bool,
    /// Nothing but repositories on this machine's own disks.
    offline: bool,
    console: &'a Console,
    pub(super) stop: &'a CancellationToken,
}

/// What to fetch.
#[derive(Debug, Clone, Copy)]
pub(super) enum Get<'r> {
    /// What these refspecs name, with its history. References that the remote no longer has are
    /// removed beforehand (`prune`): a branch `a` that became `a/b` would be in the way.
    References {
        refspecs: &'r [&'r str],
        prune: bool,
    },
    /// This commit without its history.
    Alone(Oid),
}

impl<'a> Network<'a> {
    pub(super) fn new(
        servers: &'a Servers,
        env: &'a Variables,
        offline: bool,
        console: &'a Console,
        stop: &'a CancellationToken,
    ) -> Result<Self, SourceError> {
        prepare_libgit2(servers.ca_bundle.as_deref())
            .map_err(SourceError::git("setting up libgit2"))?;
        check_configuration().map_err(SourceError::git("reading git's configuration"))?;
        let ssh_command = match git_program::answer(env, &["config", "core.sshCommand"]) {
            Some(answer) => answer,
            None => git2::Config::open_default()
                .and_then(|config| config.get_string("core.sshCommand"))
                .ok(),
        };
        Ok(Self {
            credentials: &servers.credentials,
            protocol: &servers.protocol,
            env,
            ssh: SshProgram::find(env, ssh_command),
            ca_bundle: servers.ca_bundle.as_deref(),
            accept_any_certificate: servers.accept_any_certificate,
            offline,
            console,
            stop,
        })
    }

    pub(super) fn is_offline(&self) -> bool {
        self.offline
    }

    /// What is known for the server of `address` over http(s).
    pub(super) fn logins(&self, address: &Address) -> Vec<Login> {
        logins(address, self.credentials, self.env)
    }

    /// The header in place of a login, where that is a token.
    pub(super) fn bearer(&self, address: &Address) -> Option<Secret> {
        bearer(&self.logins(address), self.credentials.kind)
    }

    /// The ways to `address`, as the user's git configuration (`url.….insteadOf`) means it.
    pub(super) fn ways(&self, into: &Repository, address: &Address) -> Vec<Way> {
        let meant = match git_program::answer(
            self.env,
            &["ls-remote", "--get-url", "--", address.text()],
        ) {
            Some(answer) => answer,
            None => {
                let anonymous = into.remote_anonymous(address.text()).ok();
                anonymous.and_then(|remote| remote.url().ok().map(str::to_owned))
            }
        };
        let meant = meant.filter(|url| url != address.text());
        let meant = meant.map(|url| Address::parse(&url));
        ways_to(
            meant.as_ref().unwrap_or(address),
            self.protocol,
            self.credentials,
            &|web| {
                self.logins(web)
                    .iter()
                    .any(|login| !login.password.is_empty())
            },
            &|ssh| self.has_key(ssh),
        )
    }

    /// Whether ssh has something to identify itself with there.
    pub(super) fn has_key(&self, ssh: &Address) -> bool {
        match &self.ssh {
            Some(program) if ssh.password.is_none() => program.has_identity(ssh),
            _ => {
                ssh.password.is_some()
                    || ssh_config::resolve(ssh, self.env).is_ok_and(|(_, found)| found.any())
            }
        }
    }

    /// How a git that the agent does not talk through itself is to call ssh, where the user has not
    /// said it: nobody is there to answer its questions.
    pub(super) fn ssh_command(&self) -> Option<&'static str> {
        let own = self.ssh.as_ref().is_some_and(SshProgram::is_the_users);
        (!own).then_some("ssh -oBatchMode=yes -oConnectTimeout=15")
    }

    /// Fetches from `address` into `into`, in whichever way works first. Returns the remote's default
    /// branch (`refs/heads/…`).
    pub(super) fn fetch(
        &self,
        into: &Repository,
        address: &Address,
        get: Get<'_>,
    ) -> Result<Option<String>, SourceError> {
        if self.offline && address.transport != Transport::Local {
            return Err(SourceError::Offline {
                url: address.shown(),
            });
        }
        let mut failures: Vec<(String, SourceError)> = Vec::new();
        for way in self.ways(into, address) {
            let refused = |error: &SourceError| matches!(error, SourceError::Authentication { .. });
            if way.after_refusal && !failures.last().is_some_and(|(_, error)| refused(error)) {
                continue;
            }
            let way = way.address;
            if let Some((_, error)) = failures.last() {
                let why = error.to_string();
                let why = why.lines().next().unwrap_or_default();
                self.console
                    .say(format!("{why}; trying {} instead", way.shown()));
            }
            let fetched = self.fetch_by(into, &way, get);
            match fetched.or_else(|error| self.fetch_by_git(into, &way, get, error)) {
                Ok(default_branch) => return Ok(default_branch),
                Err(SourceError::Stopped) => return Err(SourceError::Stopped),
                Err(error) => failures.push((way.shown(), error)),
            }
        }
        Err(SourceError::no_way(address, failures))
    }

    fn fetch_by(
        &self,
        into: &Repository,
        way: &Address,
        get: Get<'_>,
    ) -> Result<Option<String>, SourceError> {
        if let (Transport::Ssh, Some(program), None) = (way.transport, &self.ssh, &way.password) {
            return self.fetch_by_ssh_program(into, way, get, program);
        }
        let (target, identities) =
            ssh_config::resolve(way, self.env).map_err(|cause| SourceError::Unreachable {
                url: way.shown(),
                cause,
            })?;
        let known = self.logins(&target);
        let answers =
            |logins, identities| Answers::new(&target, logins, identities, self.env, self.stop);
        let first = answers(known, identities);
        let mut failed_with = first.offered();
        let result = self.fetch_with(into, target.text(), get, Some(&first));
        let result = match result {
            // Nobody elsewhere is told what is meant for this host.
            Err(error) if error.message().starts_with("cannot redirect from") => {
                self.fetch_with(into, target.text(), get, None)
            }
            result => {
                failed_with = first.offered();
                result
            }
        };
        result.map_err(|error| match self.stop.is_cancelled() {
            true => SourceError::Stopped,
            false => SourceError::remote(way, &error, &failed_with),
        })
    }

    /// Another try by git itself, where libgit2 was not understood or not let in.
    fn fetch_by_git(
        &self,
        into: &Repository,
        way: &Address,
        get: Get<'_>,
        error: SourceError,
    ) -> Result<Option<String>, SourceError> {
        let is_web = matches!(way.transport, Transport::Http | Transport::Https);
        let may_help = match &error {
            SourceError::Authentication { .. } | SourceError::HostIdentity { .. } => is_web,
            // libgit2 does not know all of curl's.
            SourceError::Unreachable { .. } => is_web && self.names_a_proxy(into),
            // Other formats than libgit2's, and bundles.
            SourceError::PathNotFound { .. } => way.is_there(),
            // A commit without its history is to be had quickly or not at all.
            SourceError::Fetch { damaged, .. } => !*damaged && !matches!(get, Get::Alone(_)),
            _ => false,
        };
        if !may_help {
            return Err(error);
        }
        match git_program::fetch(self, into, way, get) {
            None => Err(error),
            Some(_) if self.stop.is_cancelled() => Err(SourceError::Stopped),
            Some(Ok(default_branch)) => {
                self.console
                    .say(format!("{} was fetched by git itself", way.shown()));
                Ok(default_branch)
            }
            Some(Err(said)) => Err(match (get, SourceError::git_program(way, &said)) {
                // It was reached; the history may be had where the commit alone is not.
                (Get::Alone(_), refusal @ SourceError::Fetch { .. }) => refusal,
                _ => error.also(&said),
            }),
        }
    }

    /// Whether git would go by a proxy, to whatever address.
    fn names_a_proxy(&self, into: &Repository) -> bool {
        let variables = ["http_proxy", "https_proxy", "all_proxy"];
        let is_set = |name: &str| self.env.get(name).is_some_and(|value| !value.is_empty());
        if variables
            .iter()
            .any(|name| is_set(name) || is_set(&name.to_uppercase()))
        {
            return true;
        }
        let pattern = r"^http\.(.*\.)?proxy$";
        match git_program::answer(self.env, &["config", "--get-regexp", pattern]) {
            Some(answer) => answer.is_some(),
            None => into.config().is_ok_and(|config| {
                let entries = config.entries(Some(pattern));
                entries.is_ok_and(|mut entries| entries.next().is_some())
            }),
        }
    }

    fn fetch_by_ssh_program(
        &self,
        into: &Repository,
        way: &Address,
        get: Get<'_>,
        program: &SshProgram,
    ) -> Result<Option<String>, SourceError> {
        let call = ssh::Call::new(program, way, self.stop);
        let result = call.during(|| self.fetch_with(into, &ssh::Call::address(), get, None));
        result.map_err(|error| match (self.stop.is_cancelled(), call.complaint()) {
            (true, _) => SourceError::Stopped,
            (false, Some(said)) => SourceError::ssh(way, &said),
            (false, None) => SourceError::remote(way, &error, &[]),
        })
    }

    /// `answers`: what to say to a server that asks who is there; to none, if it was reached by a
    /// redirect to another host.
    fn fetch_with(
        &self,
        into: &Repository,
        url: &str,
        get: Get<'_>,
        answers: Option<&Answers<'_>>,
    ) -> Result<Option<String>, git2::Error> {
        // libgit2 takes this from the configuration alone while it connects. A redirect on the same
        // host is followed all the same.
        let follow = if answers.is_some() {
            "false"
        } else {
            "initial"
        };
        into.config()?.set_str("http.followRedirects", follow)?;
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks(answers))
            .proxy_options(proxy())
            .download_tags(AutotagOption::None)
            .update_fetchhead(false)
            .follow_redirects(match answers {
                Some(_) => RemoteRedirect::None,
                None => RemoteRedirect::Initial,
            });
        let header = answers.and_then(|answers| bearer(answers.logins(), self.credentials.kind));
        if let Some(header) = &header {
            options.custom_headers(&[header.expose()]);
        }
        let mut remote = into.remote_anonymous(url)?;
        // A header cannot be told while connecting; `download` connects by itself.
        let mut connection = match header {
            Some(_) => None,
            None => Some(remote.connect_auth(
                Direction::Fetch,
                Some(self.callbacks(answers)),
                Some(proxy()),
            )?),
        };
        let mut headed;
        let remote = match &mut connection {
            Some(connection) => connection.remote(),
            None => {
                headed = into.remote_anonymous(url)?;
                &mut headed
            }
        };
        let advertised = match (get, remote.connected()) {
            (Get::Alone(commit), true) => name_of(remote, commit)?,
            _ => None,
        };
        match get {
            Get::References { refspecs, .. } => remote.download(refspecs, Some(&mut options))?,
            Get::Alone(commit) => {
                options.depth(1);
                // By its id only where it has no name: not every server gives commits by their ids.
                let source = advertised.unwrap_or_else(|| commit.to_string());
                let refspec = format!("+{source}:refs/commits/{commit}");
                remote.download(&[refspec], Some(&mut options))?;
            }
        }
        let default_branch = remote
            .default_branch()
            .ok()
            .and_then(|name| name.as_str().ok().map(str::to_owned));
        if let Get::References { prune: true, .. } = get {
            remote.prune(None)?;
        }
        remote.update_tips(
            Some(&mut self.callbacks(answers)),
            git2::RemoteUpdateFlags::empty(),
            AutotagOption::None,
            None,
        )?;
        remote.disconnect()?;
        Ok(default_branch)
    }

    fn callbacks<'c>(&'c self, answers: Option<&'c Answers<'_>>) -> RemoteCallbacks<'c> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(move |url, user, allowed| {
            if self.stop.is_cancelled() {
                return Err(git2::Error::from_str("stopped"));
            }
            match answers {
                Some(answers) => answers.answer(url, user, allowed),
                None => Err(git2::Error::new(
                    git2::ErrorCode::Auth,
                    git2::ErrorClass::Callback,
                    "the server that it was redirected to wants a login; set the new address in the task",
                )),
            }
        });
        let last_said = Cell::new(Instant::now());
        callbacks.transfer_progress(move |progress| {
            if last_said.get().elapsed() >= PROGRESS_EVERY {
                last_said.set(Instant::now());
                self.console.say(format!(
                    "Fetching: {} of {} objects, {} MiB",
                    progress.received_objects(),
                    progress.total_objects(),
                    progress.received_bytes() >> 20,
                ));
            }
            !self.stop.is_cancelled()
        });
        callbacks.sideband_progress(move |_| !self.stop.is_cancelled());
        let accept_any = self.accept_any_certificate;
        callbacks.certificate_check(move |certificate, _host| {
            // Only for https: an ssh host's key is judged by known_hosts, as ssh itself does.
            Ok(match accept_any && certificate.as_x509().is_some() {
                true => CertificateCheckStatus::CertificateOk,
                false => CertificateCheckStatus::CertificatePassthrough,
            })
        });
        callbacks
    }
}

/// A branch or tag of the remote that is at this commit.
fn name_of(remote: &git2::Remote<'_>, commit: Oid) -> Result<Option<String>, git2::Error> {
    let heads = remote.list()?;
    let at_commit = heads.iter().filter(|head| head.oid() == commit);
    let mut names = at_commit.map(|head| head.name().trim_end_matches("^{}"));
    Ok(names
        .find(|name| name.starts_with("refs/"))
        .map(str::to_owned))
}

/// A key without a value, which git refuses, and which libgit2 would not survive.
fn check_configuration() -> Result<(), git2::Error> {
    // One that cannot be read is said where it is needed.
    let Ok(config) = git2::Config::open_default() else {
        return Ok(());
    };
    let mut entries = config.entries(Some(r"^url\..*\.(push)?insteadof$"))?;
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if !entry.has_value() {
            let name = entry.name().unwrap_or("url.….insteadOf");
            return Err(git2::Error::from_str(&format!("{name} has no value")));
        }
    }
    Ok(())
}

/// The proxy that git's configuration or the environment names.
fn proxy<'p>() -> ProxyOptions<'p> {
    let mut proxy = ProxyOptions::new();
    proxy.auto();
    proxy
}

/// Sets what libgit2 keeps for the whole process: time limits, no ownership check (a cache on a
/// shared disk often belongs to somebody else, and the user's git configuration is not ours to
/// change), and the bundle of certificate authorities.
#[allow(unsafe_code)]
fn prepare_libgit2(ca_bundle: Option<&Path>) -> Result<(), git2::Error> {
    static DONE: Mutex<Option<Vec<PathBuf>>> = Mutex::new(None);
    let mut done = DONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if done.is_none() {
        // SAFETY: these write process-wide integers of libgit2. Every user of libgit2 in this
        // program comes through here first, one at a time by the lock, so nothing reads them
        // while they are written.
        unsafe {
            git2::opts::set_verify_owner_validation(false)?;
            git2::opts::set_server_connect_timeout_in_milliseconds(CONNECT_LIMIT_MS)?;
            git2::opts::set_server_timeout_in_milliseconds(SILENCE_LIMIT_MS)?;
        }
        // As git does: what is read from a pack has a checksum of its own, and what a server sends is
        // hashed when it arrives.
        git2::opts::strict_hash_verification(false);
        ssh::register()?;
        *done = Some(Vec::new());
    }
    let bundles = done.get_or_insert_default();
    if let Some(bundle) = ca_bundle
        && !bundles.iter().any(|known| known == bundle)
    {
        // SAFETY: adds certificates to OpenSSL's store, which has its own lock; ours keeps two
        // such calls apart.
        unsafe { git2::opts::set_ssl_cert_file(bundle)? };
        bundles.push(bundle.to_owned());
    }
    Ok(())
}
