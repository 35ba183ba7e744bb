//! `--ulimit`: the container is a child process, so that its limits are those of the agent in it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

/// One limit; `None` for no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub name: String,
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}

/// Refuses what this process could not set: a hard limit is raised by root alone.
pub fn check(limit: &Limit) -> Result<(), String> {
    let resource = resource(&limit.name).ok_or("no such limit")?;
    let most = getrlimit(resource).maximum;
    let above = |wanted: Option<u64>| match (wanted, most) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(wanted), Some(most)) => wanted > most,
    };
    match rustix::process::geteuid().is_root() || !above(limit.hard) {
        true => Ok(()),
        false => Err(format!(
            "this user may have {} at most (`ulimit -H`), and Apptainer runs containers as the caller: \
             ask for less",
            most.map_or("no limit".to_owned(), |most| most.to_string())
        )),
    }
}

/// For this process and all that it starts.
pub fn apply(limits: &[Limit]) -> Result<(), String> {
    for limit in limits {
        let resource = resource(&limit.name).ok_or("no such limit")?;
        let wanted = Rlimit {
            current: limit.soft,
            maximum: limit.hard,
        };
        setrlimit(resource, wanted).map_err(|error| format!("--ulimit {}: {error}", limit.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::run_args::ULIMITS;

    #[test]
    fn every_limit_that_docker_knows_is_known() {
        for name in ULIMITS {
            assert!(resource(name).is_some(), "{name}");
        }
    }
}
