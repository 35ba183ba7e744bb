//! What becomes of each flag of `docker run` in an Apptainer container. The README's table says the same.

/// A flag's fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    /// It has its effect: see `arguments`.
    Taken,
    /// What it asks for is so anyway, or there is nobody whom it concerns.
    NothingToDo,
    /// It cannot have its effect.
    Refused(&'static str),
}

const NO_ENGINE: &str = "there is no engine that would keep it";
const OWN_NETWORK: &str = "Apptainer's containers share the machine's network";
const NO_SUCH_LIMIT: &str =
    "Apptainer has no such limit; --memory and --cpus, and the batch system's own, are there";
const OWN_NAMESPACE: &str = "Apptainer cannot set it for a container";

/// By the flag's full name. `None` of a flag that docker does not know either.
pub(super) fn handling(name: &str) -> Option<Handling> {
    use Handling::{NothingToDo, Refused, Taken};
    Some(match name {
        "add-host"
        | "blkio-weight"
        | "blkio-weight-device"
        | "cap-add"
        | "cap-drop"
        | "cpu-shares"
        | "cpus"
        | "cpuset-cpus"
        | "cpuset-mems"
        | "device"
        | "dns"
        | "env"
        | "env-file"
        | "gpus"
        | "group-add"
        | "hostname"
        | "ipc"
        | "memory"
        | "memory-reservation"
        | "memory-swap"
        | "mount"
        | "network"
        | "oom-kill-disable"
        | "pid"
        | "pids-limit"
        | "platform"
        | "publish"
        | "privileged"
        | "pull"
        | "read-only"
        | "runtime"
        | "security-opt"
        | "tmpfs"
        | "ulimit"
        | "user"
        | "volume"
        | "workdir"
        | "cgroupns" => Taken,
        // The agent is what runs; its own options say how it is stopped.
        "entrypoint" | "stop-signal" | "stop-timeout" | "init" => NothingToDo,
        "name" | "label" | "label-file" | "annotation" => NothingToDo,
        "log-driver"
        | "log-opt"
        | "health-cmd"
        | "health-interval"
        | "health-timeout"
        | "health-start-period"
        | "health-start-interval"
        | "health-retries"
        | "no-healthcheck" => NothingToDo,
        // /dev/shm has no limit of its own there; ports are the machine's.
        "shm-size" | "expose" | "publish-all" => NothingToDo,
        "userns" | "uts" | "isolation" | "restart" | "disable-content-trust" => NothingToDo,
        "attach" | "interactive" | "tty" | "rm" | "quiet" | "sig-proxy" | "detach-keys" => {
            NothingToDo
        }
        "cidfile" => Refused("an Apptainer container has no id"),
        "volumes-from" => Refused("there are no other containers whose volumes could be had"),
        "volume-driver" | "storage-opt" => Refused(NO_ENGINE),
        "memory-swappiness" | "oom-score-adj" | "cpu-period" | "cpu-quota" | "cpu-rt-period"
        | "cpu-rt-runtime" | "device-read-bps" | "device-write-bps" | "device-read-iops"
        | "device-write-iops" => Refused(NO_SUCH_LIMIT),
        "network-alias" | "link" | "ip" | "ip6" | "link-local-ip" | "mac-address"
        | "dns-option" | "dns-search" => Refused(OWN_NETWORK),
        "domainname" | "sysctl" | "cgroup-parent" | "device-cgroup-rule" => Refused(OWN_NAMESPACE),
        // Refused for every container, with reasons of their own.
        "detach" | "use-api-socket" | "help" | "kernel-memory" | "cpu-count" | "cpu-percent"
        | "io-maxbandwidth" | "io-maxiops" => Refused("it is not for a task's container"),
        _ => return None,
    })
}
