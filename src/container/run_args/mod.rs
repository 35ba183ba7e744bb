//! `docker run`'s language: the flags that tasks and configuration hold, read as docker's client
//! (version 28) reads them, and what they ask the Docker Engine for. A flag that is not known, or
//! can't be for a task, is refused by name. No engine is asked here; the only files that are read are
//! those that flags name (`--env-file`, `--label-file`, seccomp profiles).

mod create;
mod csv;
mod devices;
mod environment;
mod error;
mod file;
mod flags;
mod mount;
mod networks;
mod ports;
mod security;
mod units;
mod volumes;
mod words;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use bollard::models::{ContainerCreateBody, EndpointSettings};
use clap::Parser as _;
use clap::error::{ContextKind, ContextValue};

pub use devices::ULIMITS;
pub use error::{ApiVersion, RunArgsError};
pub use ports::Publication;
#[cfg(test)]
pub(in crate::container) use words::names;
pub use words::{Word, flags, is_named, split, without};

use flags::Flags;

/// What `docker run` flags in tasks and configuration mean.
pub struct RunArgs {
    flags: Flags,
    without_effect: Vec<String>,
}

/// Without the values: variables among them may be secret.
impl fmt::Debug for RunArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunArgs")
            .field("name", &self.name())
            .finish_non_exhaustive()
    }
}

/// Whether the image is fetched: `--pull`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pull {
    Always,
    /// Where the engine does not have it.
    #[default]
    Missing,
    Never,
}

/// The machine that the flags speak of: the agent's.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// What `-e NAME` takes its value from.
    pub env: &'a BTreeMap<String, String>,
    /// Where relative paths begin.
    pub cwd: &'a Path,
}

impl RunArgs {
    /// Reads words as `docker run` does: short clusters, `-eA=b`, `--flag=value`, `--flag value`,
    /// repeated flags (of one that holds one value the last counts), `--init=false`.
    pub fn parse(words: &[String]) -> Result<RunArgs, RunArgsError> {
        let words = words::flags(words)?;
        let normal = words.iter().map(Word::normal);
        let flags = Flags::try_parse_from(normal).map_err(|error| of_clap(&error))?;
        flags.refused()?;
        let no_effect = |word: &&Word| {
            matches!(
                word.name,
                "attach" | "interactive" | "tty" | "rm" | "quiet" | "sig-proxy" | "detach-keys"
            )
        };
        let without_effect = words.iter().filter(no_effect);
        Ok(RunArgs {
            without_effect: without_effect.map(|word| word.flag.clone()).collect(),
            flags,
        })
    }

    /// The Engine API's body for the container. Image and command are the caller's. Reads the files
    /// that flags name.
    pub fn to_create(&self, host: &Host<'_>) -> Result<ContainerCreateBody, RunArgsError> {
        create::body(&self.flags, host)
    }

    /// Networks after the first, to be connected once the container is created.
    pub fn further_networks(&self) -> Result<Vec<(String, EndpointSettings)>, RunArgsError> {
        let networks = networks::all(&self.flags.network)?;
        let further = networks.into_iter().skip(1);
        Ok(further
            .map(|(name, endpoint)| (name, endpoint.unwrap_or_default()))
            .collect())
    }

    /// Refuses flags that an engine with this API does not know: it would leave them out silently.
    pub fn check_engine(&self, has: ApiVersion) -> Result<(), RunArgsError> {
        let needs = create::needs(&self.flags);
        match needs.into_iter().find(|(_, needs)| *needs > has) {
            Some((flag, needs)) => Err(RunArgsError::OldEngine { flag, needs, has }),
            None => Ok(()),
        }
    }

    /// `--publish`
    pub fn published(&self) -> &[Publication] {
        &self.flags.network.publish
    }

    /// Binds the published ports of `body`, which these arguments made, elsewhere.
    pub fn publish_as(
        &mut self,
        publications: Vec<Publication>,
        body: &mut ContainerCreateBody,
    ) -> Result<(), RunArgsError> {
        self.flags.network.publish = publications;
        let (_, bindings) = create::ports(&self.flags.network)?;
        body.host_config.get_or_insert_default().port_bindings = Some(bindings);
        Ok(())
    }

    /// `--network host`: the container's ports are the machine's, and none is published.
    pub fn has_network_of_host(&self) -> bool {
        let networks = networks::all(&self.flags.network).unwrap_or_default();
        networks.first().is_some_and(|(name, _)| name == "host")
    }

    /// `--name`
    pub fn name(&self) -> Option<&str> {
        self.flags.identity.name.as_deref()
    }

    /// `--platform`, as `linux/arm64`
    pub fn platform(&self) -> Option<&str> {
        self.flags.identity.platform.as_deref()
    }

    /// `--pull`
    pub fn pull(&self) -> Pull {
        self.flags.identity.pull.unwrap_or_default()
    }

    /// `--cidfile`: where the container's id is to be written; docker refuses where the file exists.
    pub fn cid_file(&self, cwd: &Path) -> Option<PathBuf> {
        let file = self.flags.identity.cidfile.as_ref()?;
        Some(cwd.join(file))
    }

    /// Flags as they were written that change nothing for a task: nobody is at a terminal (`-it`,
    /// `--detach-keys`), its output is always followed (`--attach`, `--sig-proxy`), its container is
    /// always removed (`--rm`).
    pub fn without_effect(&self) -> &[String] {
        &self.without_effect
    }
}

/// Clap says what is wrong in its own words; the flag, the value and the reason are what counts.
fn of_clap(error: &clap::Error) -> RunArgsError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = text(ContextKind::InvalidArg);
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default();
    let why = match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => "the value is not understood".to_owned(),
    };
    RunArgsError::bad(flag, &text(ContextKind::InvalidValue), why)
}

#[cfg(test)]
mod tests;
