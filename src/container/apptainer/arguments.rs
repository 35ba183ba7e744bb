//! What `docker run` flags come to in an Apptainer container. Pure: files and folders that are named are
//! looked at by who starts it.

use std::collections::BTreeMap;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigCgroupnsModeEnum, Mount, MountType,
    PortBinding,
};

use super::handling::{Handling, handling};
use super::limits::Limit;
use crate::container::run_args::{RunArgsError, Word};

/// A file or folder of this machine in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: String,
    pub target: String,
    pub read_only: bool,
    /// As docker's engine does for `-v`: the folder is made where it is not there.
    pub make: bool,
}

/// A new folder of the run's own, gone with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fresh {
    pub target: String,
    pub mode: u32,
}

/// Who starts the container, and is in it.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// All of them.
    pub groups: Vec<u32>,
    /// This machine's `/etc/passwd` and `/etc/group`, for names.
    pub passwd: String,
    pub group: String,
}

impl Caller {
    /// Who runs the agent.
    pub fn this() -> Caller {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let groups = rustix::process::getgroups().unwrap_or_default();
        Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: groups.into_iter().map(|group| group.as_raw()).collect(),
            passwd: read("/etc/passwd"),
            group: read("/etc/group"),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Translated {
    /// Apptainer's own words.
    pub flags: Vec<String>,
    pub working_dir: Option<String>,
    pub variables: BTreeMap<String, String>,
    /// Variables of the image that are taken away.
    pub unset: Vec<String>,
    pub binds: Vec<Bind>,
    pub fresh: Vec<Fresh>,
    /// More lines of `/etc/hosts`.
    pub hosts: Vec<String>,
    pub limits: Vec<Limit>,
    pub gpus: Vec<DeviceRequest>,
    /// Flags, as they were written, that change nothing.
    pub without_effect: Vec<String>,
}

fn bad(flag: &str, value: &str, why: impl Into<String>) -> RunArgsError {
    RunArgsError::BadValue {
        flag: flag.to_owned(),
        value: Some(value.to_owned()),
        why: why.into(),
    }
}

/// The first word that cannot have its effect, whatever its value.
fn refused(words: &[Word]) -> Result<(), RunArgsError> {
    for word in words {
        if let Some(Handling::Refused(why)) = handling(word.name) {
            return Err(RunArgsError::Refused {
                flag: word.flag.clone(),
                why,
            });
        }
    }
    Ok(())
}

/// `words` are the flags, `body` what docker's engine would be asked for them.
pub fn translate(
    words: &[Word],
    body: &ContainerCreateBody,
    caller: &Caller,
) -> Result<Translated, RunArgsError> {
    refused(words)?;
    let default = HostConfig::default();
    let host = body.host_config.as_ref().unwrap_or(&default);
    let mut made = Translated {
        working_dir: body.working_dir.clone().filter(|dir| !dir.is_empty()),
        gpus: host.device_requests.clone().unwrap_or_default(),
        ..Translated::default()
    };
    environment(body, &mut made);
    user(body, host, caller)?;
    namespaces(body, host, &mut made)?;
    rights(host, &mut made)?;
    limits(host, &mut made);
    storage(body, host, &mut made)?;
    devices(host, &mut made)?;
    network(host, &mut made)?;
    machine(words, host)?;
    let without_effect = words
        .iter()
        .filter(|word| handling(word.name) == Some(Handling::NothingToDo))
        .map(|word| word.flag.clone());
    made.without_effect.extend(without_effect);
    made.without_effect.dedup();
    Ok(made)
}

fn environment(body: &ContainerCreateBody, made: &mut Translated) {
    for entry in body.env.iter().flatten() {
        match entry.split_once('=') {
            Some((name, value)) => {
                made.unset.retain(|unset| unset != name);
                made.variables.insert(name.to_owned(), value.to_owned());
            }
            None => {
                made.variables.remove(entry);
                made.unset.push(entry.clone());
            }
        }
    }
}

/// The number that `name` has in a file like `/etc/passwd`; a number is itself.
fn id_of(name: &str, file: &str) -> Option<u32> {
    if let Ok(number) = name.parse() {
        return Some(number);
    }
    let row = file
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    row.split(':').nth(2)?.parse().ok()
}

const AS_CALLER: &str = "Apptainer runs containers as who starts them, with that one's groups";

fn user(
    body: &ContainerCreateBody,
    host: &HostConfig,
    caller: &Caller,
) -> Result<(), RunArgsError> {
    if let Some(asked) = body.user.as_deref().filter(|user| !user.is_empty()) {
        is_caller(asked, caller).map_err(|why| bad("--user", asked, why))?;
    }
    for group in host.group_add.iter().flatten() {
        let is_theirs = id_of(group, &caller.group)
            .is_some_and(|id| id == caller.gid || caller.groups.contains(&id));
        if !is_theirs {
            return Err(bad(
                "--group-add",
                group,
                format!("{AS_CALLER}, and this user is not in it"),
            ));
        }
    }
    Ok(())
}

/// Whether `asked` (docker's form: `USER`, `USER:GROUP`) is who runs the container anyway.
pub fn is_caller(asked: &str, caller: &Caller) -> Result<(), String> {
    let (user, group) = asked.split_once(':').unwrap_or((asked, ""));
    let same_user = user.is_empty() || id_of(user, &caller.passwd) == Some(caller.uid);
    let same_group = group.is_empty() || id_of(group, &caller.group) == Some(caller.gid);
    match same_user && same_group {
        true => Ok(()),
        false => Err(format!("{AS_CALLER}: here {}:{}", caller.uid, caller.gid)),
    }
}

fn namespaces(
    body: &ContainerCreateBody,
    host: &HostConfig,
    made: &mut Translated,
) -> Result<(), RunArgsError> {
    if let Some(name) = body.hostname.clone().filter(|name| !name.is_empty()) {
        made.flags.extend(["--hostname".into(), name]);
    }
    match host.pid_mode.as_deref().unwrap_or_default() {
        "host" => {}
        "" => made.flags.push("--pid".into()),
        other => {
            return Err(bad(
                "--pid",
                other,
                "expected host: there are no containers to share with",
            ));
        }
    }
    match host.ipc_mode.as_deref().unwrap_or_default() {
        "host" => {}
        "" | "private" | "shareable" => made.flags.push("--ipc".into()),
        other => {
            return Err(bad(
                "--ipc",
                other,
                "expected host or private: there are no containers to share with",
            ));
        }
    }
    if host.cgroupns_mode == Some(HostConfigCgroupnsModeEnum::PRIVATE) {
        return Err(bad(
            "--cgroupns",
            "private",
            "Apptainer's containers are in their caller's",
        ));
    }
    match host.runtime.as_deref() {
        // The way in which GPUs were asked for in the past; they are there all the same.
        None | Some("" | "runc" | "nvidia") => Ok(()),
        Some(other) => Err(bad("--runtime", other, "Apptainer is the runtime")),
    }
}

fn rights(host: &HostConfig, made: &mut Translated) -> Result<(), RunArgsError> {
    if host.privileged == Some(true) {
        return Err(RunArgsError::Refused {
            flag: "--privileged".into(),
            why: "an Apptainer container has its caller's rights; leave it out",
        });
    }
    for (flag, names) in [
        ("--add-caps", &host.cap_add),
        ("--drop-caps", &host.cap_drop),
    ] {
        if let Some(names) = names.as_ref().filter(|names| !names.is_empty()) {
            let names = names.iter().map(|name| match name.as_str() {
                "ALL" => "all",
                name => name,
            });
            let names: Vec<&str> = names.collect();
            made.flags.extend([flag.to_owned(), names.join(",")]);
        }
    }
    for option in host.security_opt.iter().flatten() {
        let is_so = [
            "no-new-privileges",
            "no-new-privileges=true",
            "no-new-privileges:true",
            "seccomp=unconfined",
            "seccomp:unconfined",
            "apparmor=unconfined",
            "apparmor:unconfined",
            "label=disable",
            "label:disable",
        ]
        .contains(&option.as_str());
        if !is_so {
            // A profile's text is long.
            let shown: String = option.chars().take(40).collect();
            return Err(bad(
                "--security-opt",
                &shown,
                "Apptainer gives no rights beyond the caller's (no-new-privileges), and sets no profile",
            ));
        }
    }
    Ok(())
}

fn limits(host: &HostConfig, made: &mut Translated) {
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            made.flags.extend([format!("--{name}"), value]);
        }
    };
    let number = |value: Option<i64>| {
        value
            .filter(|value| *value != 0)
            .map(|value| value.to_string())
    };
    let text = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    flag("memory", number(host.memory));
    flag("memory-reservation", number(host.memory_reservation));
    flag("memory-swap", number(host.memory_swap));
    flag("pids-limit", number(host.pids_limit));
    flag("cpu-shares", number(host.cpu_shares));
    flag("cpuset-cpus", text(&host.cpuset_cpus));
    flag("cpuset-mems", text(&host.cpuset_mems));
    flag("cpus", host.nano_cpus.filter(|nano| *nano != 0).map(cpus));
    flag(
        "blkio-weight",
        host.blkio_weight
            .filter(|weight| *weight != 0)
            .map(|weight| weight.to_string()),
    );
    for device in host.blkio_weight_device.iter().flatten() {
        if let (Some(path), Some(weight)) = (&device.path, device.weight) {
            flag("blkio-weight-device", Some(format!("{path}:{weight}")));
        }
    }
    if host.oom_kill_disable == Some(true) {
        made.flags.push("--oom-kill-disable".into());
    }
    let limits = host.ulimits.iter().flatten().filter_map(|limit| {
        let bound = |number: Option<i64>| number.and_then(|number| u64::try_from(number).ok());
        Some(Limit {
            name: limit.name.clone()?,
            soft: bound(limit.soft),
            hard: bound(limit.hard),
        })
    });
    made.limits.extend(limits);
}

/// Billionths as a number with a point.
fn cpus(nano: i64) -> String {
    let text = format!("{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const NO_VOLUMES: &str =
    "Apptainer has no named volumes: write the path of a folder of this machine";

fn storage(
    body: &ContainerCreateBody,
    host: &HostConfig,
    made: &mut Translated,
) -> Result<(), RunArgsError> {
    // As docker's containers: what is written is gone with it.
    if host.readonly_rootfs != Some(true) {
        made.flags.push("--writable-tmpfs".into());
    }
    for bind in host.binds.iter().flatten() {
        made.binds.push(volume(bind)?);
    }
    for mount in host.mounts.iter().flatten() {
        self::mount(mount, made)?;
    }
    let fresh = body.volumes.iter().flatten();
    made.fresh.extend(fresh.map(|target| Fresh {
        target: target.clone(),
        mode: 0o755,
    }));
    for (target, options) in host.tmpfs.iter().flatten() {
        let mode = options
            .split(',')
            .find_map(|option| option.strip_prefix("mode="));
        let mode = match mode.map(|mode| u32::from_str_radix(mode, 8)) {
            None => 0o1777,
            Some(Ok(mode)) => mode,
            Some(Err(_)) => {
                return Err(bad(
                    "--tmpfs",
                    options,
                    "mode=: expected a file mode, like 1770",
                ));
            }
        };
        if options.split(',').any(|option| option.starts_with("size=")) {
            made.without_effect.push(format!("--tmpfs {target}:size=…"));
        }
        made.fresh.push(Fresh {
            target: target.clone(),
            mode,
        });
    }
    made.fresh
        .sort_by(|one, other| one.target.cmp(&other.target));
    Ok(())
}

/// `SOURCE:TARGET[:MODES]`
fn volume(bind: &str) -> Result<Bind, RunArgsError> {
    let bad = |why: String| bad("--volume", bind, why);
    let mut parts = bind.split(':');
    let source = parts.next().unwrap_or_default();
    let target = parts.next().unwrap_or_default();
    if !source.starts_with('/') {
        return Err(bad(NO_VOLUMES.to_owned()));
    }
    let mut read_only = false;
    for mode in parts.next().unwrap_or_default().split(',') {
        match mode {
            "ro" => read_only = true,
            // Labels of SELinux are docker's; the rest is as it is anyway.
            "" | "rw" | "z" | "Z" | "rslave" | "slave" | "rprivate" | "private" | "cached"
            | "consistent" | "delegated" | "default" => {}
            other => return Err(bad(format!("{other}: Apptainer mounts with ro or rw"))),
        }
    }
    Ok(Bind {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only,
        make: true,
    })
}

fn mount(mount: &Mount, made: &mut Translated) -> Result<(), RunArgsError> {
    let target = mount.target.clone().unwrap_or_default();
    let source = mount.source.clone().filter(|source| !source.is_empty());
    let bad = |why: &str| bad("--mount", &target, why);
    match (mount.typ, source) {
        (Some(MountType::BIND), Some(source)) => {
            use bollard::models::MountBindOptionsPropagationEnum::{RSHARED, SHARED};
            let options = mount.bind_options.clone().unwrap_or_default();
            if matches!(options.propagation, Some(SHARED | RSHARED)) {
                return Err(bad(
                    "bind-propagation: Apptainer's mounts do not come back out",
                ));
            }
            if options.non_recursive == Some(true)
                || options.read_only_non_recursive == Some(true)
                || options.read_only_force_recursive == Some(true)
            {
                return Err(bad(
                    "bind-recursive: Apptainer mounts a folder with all that is in it",
                ));
            }
            made.binds.push(Bind {
                source,
                target,
                read_only: mount.read_only == Some(true),
                make: false,
            });
        }
        (Some(MountType::TMPFS), _) => {
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            if options.size_bytes.is_some() {
                made.without_effect
                    .push(format!("--mount {target},tmpfs-size=…"));
            }
            made.fresh.push(Fresh {
                target,
                mode: options
                    .mode
                    .and_then(|mode| u32::try_from(mode).ok())
                    .unwrap_or(0o1777),
            });
        }
        (None | Some(MountType::VOLUME), None) => made.fresh.push(Fresh {
            target,
            mode: 0o755,
        }),
        (None | Some(MountType::VOLUME), Some(_)) => return Err(bad(NO_VOLUMES)),
        _ => {
            return Err(bad(
                "Apptainer mounts folders and files of this machine (type=bind)",
            ));
        }
    }
    Ok(())
}

fn devices(host: &HostConfig, made: &mut Translated) -> Result<(), RunArgsError> {
    for device in host.devices.iter().flatten() {
        let source = device.path_on_host.clone().unwrap_or_default();
        made.binds.push(Bind {
            target: device
                .path_in_container
                .clone()
                .unwrap_or_else(|| source.clone()),
            read_only: device.cgroup_permissions.as_deref() == Some("r"),
            make: false,
            source,
        });
    }
    let named = made
        .gpus
        .iter()
        .find(|request| request.driver.as_deref() == Some("cdi"));
    if let Some(named) = named {
        let names = named.device_ids.clone().unwrap_or_default().join(",");
        return Err(bad(
            "--device",
            &names,
            "Apptainer knows devices by their paths; GPUs are asked for with --gpus",
        ));
    }
    Ok(())
}

fn network(host: &HostConfig, made: &mut Translated) -> Result<(), RunArgsError> {
    match host.network_mode.as_deref().unwrap_or_default() {
        "" | "default" | "host" => {}
        "none" => made
            .flags
            .extend(["--net", "--network", "none"].map(str::to_owned)),
        other => {
            return Err(bad(
                "--network",
                other,
                "Apptainer's containers share the machine's network (host), or have none",
            ));
        }
    }
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let number = port.split('/').next().unwrap_or_default();
        let moved = |binding: &&PortBinding| {
            let wanted = binding.host_port.as_deref().unwrap_or_default();
            !wanted.is_empty() && wanted != number
        };
        let mut bindings = bindings.iter().flatten();
        if let Some(moved) = bindings.find(moved) {
            return Err(bad(
                "--publish",
                &format!("{}:{port}", moved.host_port.as_deref().unwrap_or_default()),
                "an Apptainer container's ports are the machine's own, and cannot be others outside",
            ));
        }
        made.without_effect.push(format!("--publish {port}"));
    }
    made.without_effect.sort();
    let dns = host.dns.clone().unwrap_or_default();
    if !dns.is_empty() {
        made.flags.extend(["--dns".to_owned(), dns.join(",")]);
    }
    for entry in host.extra_hosts.iter().flatten() {
        let (name, address) = entry.split_once(':').unwrap_or((entry, ""));
        let address = match address {
            // The machine's network is the container's.
            "host-gateway" => "127.0.0.1",
            address => address,
        };
        made.hosts.push(format!("{address}\t{name}"));
    }
    Ok(())
}

/// `--platform`: there is one.
fn machine(words: &[Word], _host: &HostConfig) -> Result<(), RunArgsError> {
    let asked = words.iter().rev().find(|word| word.name == "platform");
    let Some(asked) = asked.and_then(|word| word.value.as_deref()) else {
        return Ok(());
    };
    let name = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let mut parts = asked.split('/');
    let is_this = parts.next() == Some("linux") && parts.next().is_none_or(|arch| arch == name);
    match is_this {
        true => Ok(()),
        false => Err(bad(
            "--platform",
            asked,
            format!("this machine is linux/{name}"),
        )),
    }
}

#[cfg(test)]
#[path = "arguments_tests.rs"]
mod tests;
