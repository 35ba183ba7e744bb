//! The talk with git servers: libgit2's settings, callbacks and limits, the same for every fetch.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use git2::{
    AutotagOption, CertificateCheckStatus, Direction, FetchOptions, ProxyOptions, RemoteCallbacks,
    RemoteRedirect, Repository,
};
use tokio_util::sync::CancellationToken;

use super::credentials::{Answers, GitCredentials, SshIdentities, ways_to};
use super::error::SourceError;
use super::url::{Address, Transport};
use crate::console::Console;

/// A server that does not take a connection within this time is unreachable.
const CONNECT_LIMIT_MS: i32 = 15_000;
/// A server that is silent for this long is gone; one that packs a large repository says so.
const SILENCE_LIMIT_MS: i32 = 60_000;
/// How often a long fetch says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Network<'a> {
    credentials: &'a GitCredentials,
    ssh: SshIdentities,
    accept_any_certificate: bool,
    /// Nothing but repositories on this machine's own disks.
    offline: bool,
    console: &'a Console,
    stop: &'a CancellationToken,
}

impl<'a> Network<'a> {
    pub(super) fn new(
        credentials: &'a GitCredentials,
        ca_bundle: Option<&Path>,
        accept_any_certificate: bool,
        console: &'a Console,
        stop: &'a CancellationToken,
    ) -> Result<Self, SourceError> {
        prepare_libgit2(ca_bundle).map_err(SourceError::git("setting up libgit2"))?;
        Ok(Self {
            credentials,
            ssh: SshIdentities::find(),
            accept_any_certificate,
            offline: false,
            console,
            stop,
        })
    }

    pub(super) fn offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    pub(super) fn is_offline(&self) -> bool {
        self.offline
    }

    /// Fetches `refspecs` from `address` into `into`, in whichever way works first. References
    /// that the remote no longer has are removed beforehand: a branch `a` that became `a/b`
    /// would be in the way. Returns the remote's default branch (`refs/heads/…`).
    pub(super) fn fetch(
        &self,
        into: &Repository,
        address: &Address,
        refspecs: &[&str],
        prune: bool,
    ) -> Result<Option<String>, SourceError> {
        if self.offline && address.transport != Transport::Local {
            return Err(SourceError::Offline {
                url: address.shown(),
            });
        }
        let mut failure = None;
        for way in ways_to(address, self.credentials, self.ssh.any()) {
            if failure.is_some() {
                self.console.say(format!("Trying {} instead", way.shown()));
            }
            match self.fetch_by(into, &way, refspecs, prune) {
                Ok(default_branch) => return Ok(default_branch),
                Err(SourceError::Stopped) => return Err(SourceError::Stopped),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(SourceError::Stopped))
    }

    fn fetch_by(
        &self,
        into: &Repository,
        way: &Address,
        refspecs: &[&str],
        prune: bool,
    ) -> Result<Option<String>, SourceError> {
        let answers = Answers::new(way, self.credentials, self.ssh.clone());
        self.fetch_with(into, way, refspecs, prune, &answers)
            .map_err(|error| match self.stop.is_cancelled() {
                true => SourceError::Stopped,
                false => SourceError::remote(way, &error, &answers.offered()),
            })
    }

    fn fetch_with(
        &self,
        into: &Repository,
        way: &Address,
        refspecs: &[&str],
        prune: bool,
        answers: &Answers,
    ) -> Result<Option<String>, git2::Error> {
        let mut remote = into.remote_anonymous(way.text())?;
        let mut connection = remote.connect_auth(
            Direction::Fetch,
            Some(self.callbacks(answers)),
            Some(proxy()),
        )?;
        let default_branch = connection
            .default_branch()
            .ok()
            .and_then(|name| name.as_str().ok().map(str::to_owned));
        let remote = connection.remote();
        let mut options = FetchOptions::new();
        options
            .remote_callbacks(self.callbacks(answers))
            .proxy_options(proxy())
            .download_tags(AutotagOption::None)
            .update_fetchhead(false)
            .follow_redirects(match answers.hold_secrets() {
                true => RemoteRedirect::None,
                false => RemoteRedirect::Initial,
            });
        remote.download(refspecs, Some(&mut options))?;
        if prune {
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

    fn callbacks<'c>(&'c self, answers: &'c Answers) -> RemoteCallbacks<'c> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(move |url, user, allowed| {
            if self.stop.is_cancelled() {
                return Err(git2::Error::from_str("stopped"));
            }
            answers.answer(url, user, allowed)
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
