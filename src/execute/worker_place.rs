//! The id of a worker that stands for a place on this machine (`--full-monitoring`): `host:gpu0,1`,
//! `host:cpu:0`, `host:0`. Of several runs at once each gets one that is free.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use sha2::{Digest as _, Sha256};

use super::job_env::Variables;

/// A place that is taken for as long as this lives. The kernel gives it free, however the agent ends.
#[derive(Debug)]
pub struct Place {
    pub id: String,
    /// Nobody connects to it; two cannot have the same name on one machine.
    _taken: Option<UnixListener>,
}

/// The first free one; `id` and `name` are `agent.worker_id` and `agent.worker_name`, `env` what
/// the job gets.
pub fn take(id: Option<&str>, name: &str, env: &Variables) -> Place {
    /// More are not tried: something else is wrong then.
    const MOST: usize = 4096;
    let mut last = None;
    for id in candidates(id, name, visible(env).as_deref()).take(MOST) {
        let address = SocketAddr::from_abstract_name(address(&id));
        match address.and_then(|address| UnixListener::bind_addr(&address)) {
            Ok(taken) => {
                return Place {
                    id,
                    _taken: Some(taken),
                };
            }
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => last = Some(id),
            Err(error) => {
                tracing::debug!(%error, "places of workers cannot be taken here");
                return Place { id, _taken: None };
            }
        }
    }
    Place {
        id: last.unwrap_or_else(|| name.to_owned()),
        _taken: None,
    }
}

/// The variable that says which GPUs the job has, as the Python agent words it in ids.
fn visible(env: &Variables) -> Option<String> {
    let set = |name: &str| env.get(name).filter(|value| !value.is_empty());
    let value = set("NVIDIA_VISIBLE_DEVICES").or_else(|| set("CUDA_VISIBLE_DEVICES"));
    value.map(|value| value.replace(':', "."))
}

fn candidates(
    id: Option<&str>,
    name: &str,
    visible: Option<&str>,
) -> impl Iterator<Item = String> + use<> {
    // A first one that has no number, and what goes before the number.
    let (first, numbered) = match (id, visible) {
        (Some(id), _) => (Some(id.to_owned()), id.to_owned()),
        (None, Some(none)) if none.eq_ignore_ascii_case("none") => (None, format!("{name}:cpu")),
        (None, Some(gpus)) => {
            let id = format!("{name}:gpu{gpus}");
            (Some(id.clone()), id)
        }
        (None, None) => (None, name.to_owned()),
    };
    let begin = usize::from(first.is_some());
    let more = (begin..).map(move |number| format!("{numbered}:{number}"));
    first.into_iter().chain(more)
}

/// Not longer than a socket's name may be.
fn address(id: &str) -> Vec<u8> {
    let digest = Sha256::digest(id.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("clearml-agent/worker/{hex}").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_what_the_worker_has() {
        for (id, visible, expected) in [
            (None, None, ["n:0", "n:1", "n:2"]),
            (None, Some("none"), ["n:cpu:0", "n:cpu:1", "n:cpu:2"]),
            (None, Some("0,1"), ["n:gpu0,1", "n:gpu0,1:1", "n:gpu0,1:2"]),
            (None, Some("all"), ["n:gpuall", "n:gpuall:1", "n:gpuall:2"]),
            (Some("w"), Some("0"), ["w", "w:1", "w:2"]),
        ] {
            let found: Vec<String> = candidates(id, "n", visible).take(3).collect();
            assert_eq!(found, expected);
        }
        let env = |pairs: &[(&str, &str)]| -> Variables {
            let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
            pairs.iter().map(owned).collect()
        };
        const NVIDIA: &str = "NVIDIA_VISIBLE_DEVICES";
        const CUDA: &str = "CUDA_VISIBLE_DEVICES";
        assert_eq!(visible(&env(&[])), None);
        assert_eq!(
            visible(&env(&[(NVIDIA, ""), (CUDA, "1")])).as_deref(),
            Some("1")
        );
        assert_eq!(
            visible(&env(&[(NVIDIA, "0:1"), (CUDA, "1")])).as_deref(),
            Some("0.1")
        );
    }

    #[test]
    fn a_place_is_free_again_when_its_run_ends() {
        let name = format!("test-{}", uuid::Uuid::new_v4());
        let env = Variables::new();
        let first = take(None, &name, &env);
        let second = take(None, &name, &env);
        assert_eq!(
            (first.id, second.id.as_str()),
            (format!("{name}:0"), format!("{name}:1").as_str())
        );
        drop(first._taken);
        assert_eq!(take(None, &name, &env).id, format!("{name}:0"));
    }
}
