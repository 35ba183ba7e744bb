//! Whose container it is: labels that say which agent runs it, so that the next run on that machine can
//! remove what a killed agent left. An agent is known by its machine, boot, process namespace, user,
//! process id and start time: a number that is given to another process later is not taken for it.

use std::collections::{BTreeMap, HashMap};
use std::fs;

use bollard::query_parameters::{ListContainersOptions, RemoveContainerOptions};

use super::engine::Engine;

/// The label that holds the agent; containers without it are nobody's business here.
pub const LABEL: &str = "ai.clear.agent.run-by";

/// An agent's process, among all that there are and were.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    pub machine: String,
    pub boot: String,
    pub namespace: String,
    pub user: u32,
    pub pid: u32,
    /// In clock ticks since boot.
    pub started: u64,
}

impl Agent {
    /// This process. `None` where there is no `/proc` to tell: then its containers are left to people.
    pub fn this(machine: &str) -> Option<Agent> {
        let pid = std::process::id();
        let id = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Some(Agent {
            machine: format!("{machine}-{}", id.trim()).replace('/', "-"),
            boot: fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .ok()?
                .trim()
                .to_owned(),
            namespace: fs::read_link("/proc/self/ns/pid")
                .ok()?
                .to_string_lossy()
                .into_owned(),
            user: rustix::process::geteuid().as_raw(),
            pid,
            started: started(pid)?,
        })
    }

    pub fn label(&self) -> String {
        let Agent {
            machine,
            boot,
            namespace,
            user,
            pid,
            started,
        } = self;
        format!("{machine}/{boot}/{namespace}/{user}/{pid}/{started}")
    }

    pub fn from_label(label: &str) -> Option<Agent> {
        let parts: Vec<&str> = label.split('/').collect();
        let [machine, boot, namespace, user, pid, started] = parts[..] else {
            return None;
        };
        Some(Agent {
            machine: machine.to_owned(),
            boot: boot.to_owned(),
            namespace: namespace.to_owned(),
            user: user.parse().ok()?,
            pid: pid.parse().ok()?,
            started: started.parse().ok()?,
        })
    }
}

/// The start time of a process; `None` where it is gone.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have anything in it.
    let after = stat.rsplit_once(')')?.1;
    after.split_whitespace().nth(19)?.parse().ok()
}

/// Whether `other`, seen by `me`, is certainly dead. Whoever cannot be seen from here (another machine,
/// another process namespace, another user where processes are hidden) counts as alive.
fn is_dead(other: &Agent, me: &Agent, started: impl Fn(u32) -> Option<u64>) -> bool {
    if other.machine != me.machine {
        return false;
    }
    if other.boot != me.boot {
        return true;
    }
    let visible = other.namespace == me.namespace && other.user == me.user;
    visible && started(other.pid) != Some(other.started)
}

/// Removes the containers of this machine's dead agents; gives how many there were. Best effort: what
/// stays now goes next time.
pub async fn remove_abandoned(engine: &Engine, me: &Agent) -> usize {
    let options = ListContainersOptions {
        all: true,
        filters: Some(HashMap::from([(
            "label".to_owned(),
            vec![LABEL.to_owned()],
        )])),
        ..ListContainersOptions::default()
    };
    let listed = match engine.docker().list_containers(Some(options)).await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::debug!(%error, "containers that killed agents left");
            return 0;
        }
    };
    let mut removed = 0;
    for container in listed {
        let labels: BTreeMap<String, String> =
            container.labels.unwrap_or_default().into_iter().collect();
        let owner = labels.get(LABEL).and_then(|label| Agent::from_label(label));
        let (Some(owner), Some(id)) = (owner, container.id) else {
            continue;
        };
        // Machines that share an engine may have one name, but not one boot.
        let here = engine.is_local() || owner.boot == me.boot;
        if !here || !is_dead(&owner, me, started) {
            continue;
        }
        match engine.docker().remove_container(&id, Some(removal())).await {
            Ok(()) => removed += 1,
            Err(error) => tracing::debug!(%error, id, "a killed agent's container stays"),
        }
    }
    removed
}

/// With all that is the container's alone.
pub(super) fn removal() -> RemoveContainerOptions {
    RemoveContainerOptions {
        v: true,
        force: true,
        link: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Agent {
        Agent {
            machine: "node7-abc".into(),
            boot: "b1".into(),
            namespace: "pid:[4026531836]".into(),
            user: 1000,
            pid: 7,
            started: 99,
        }
    }

    #[test]
    fn only_a_certainly_dead_agent_is_dead() {
        let me = Agent {
            pid: 8,
            started: 120,
            ..agent()
        };
        let lives = |pid: u32| (pid == 7).then_some(99_u64);
        let reused = |pid: u32| (pid == 7).then_some(500_u64);
        let gone = |_: u32| None;
        for (other, started, dead) in [
            (agent(), &lives as &dyn Fn(u32) -> Option<u64>, false),
            (agent(), &reused, true),
            (agent(), &gone, true),
            (
                Agent {
                    boot: "b0".into(),
                    ..agent()
                },
                &gone,
                true,
            ),
            (
                Agent {
                    machine: "node8".into(),
                    ..agent()
                },
                &gone,
                false,
            ),
            (
                Agent {
                    machine: "node8".into(),
                    boot: "b0".into(),
                    ..agent()
                },
                &gone,
                false,
            ),
            (
                Agent {
                    namespace: "pid:[1]".into(),
                    ..agent()
                },
                &gone,
                false,
            ),
            (Agent { user: 0, ..agent() }, &gone, false),
        ] {
            assert_eq!(is_dead(&other, &me, started), dead, "{other:?}");
        }
    }

    #[test]
    fn a_label_is_read_as_it_was_written() {
        let me = Agent::this("host/with/slashes").unwrap();
        assert_eq!(Agent::from_label(&me.label()), Some(me.clone()));
        assert!(!is_dead(&me, &me, started));
        assert_eq!(Agent::from_label("x/y"), None);
    }
}
