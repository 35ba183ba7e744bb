//! All the flags together as the body of the Engine API's request for a new container. Nothing is
//! left to chance where docker's client says something: what it sends is sent here too.

use std::collections::{HashMap, HashSet};

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HealthConfig, HostConfig, HostConfigIsolationEnum,
    HostConfigLogConfig, NetworkingConfig, PortBinding, RestartPolicy, RestartPolicyNameEnum,
};

use super::devices::Device;
use super::environment::{self, pair};
use super::error::{ApiVersion, RunArgsError};
use super::flags::{Flags, Network, Watching};
use super::{Host, mount, networks, security};

pub(super) fn body(flags: &Flags, host: &Host<'_>) -> Result<ContainerCreateBody, RunArgsError> {
    let Flags {
        identity, process, ..
    } = flags;
    let (network_mode, networking) = first_network(&flags.network)?;
    let (exposed, bindings) = ports(&flags.network)?;
    let anonymous = flags.storage.volume.iter();
    let anonymous = anonymous.filter_map(|volume| volume.anonymous().map(str::to_owned));
    let labels = environment::labels(&identity.label_file, &identity.label, host)?;
    Ok(ContainerCreateBody {
        hostname: identity.hostname.clone(),
        domainname: identity.domainname.clone(),
        user: process.user.clone(),
        attach_stdin: Some(false),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        exposed_ports: Some(exposed),
        tty: Some(false),
        open_stdin: Some(false),
        stdin_once: Some(false),
        env: Some(environment::variables(
            &process.env_file,
            &process.env,
            host,
        )?),
        healthcheck: health(&flags.watching)?,
        volumes: Some(distinct(anonymous)),
        working_dir: process.workdir.clone(),
        // An empty one takes the image's away.
        entrypoint: process.entrypoint.clone().map(|program| vec![program]),
        labels: Some(labels.into_iter().collect()),
        stop_signal: process.stop_signal.clone(),
        stop_timeout: process.stop_timeout,
        host_config: Some(host_config(flags, network_mode, bindings, host)?),
        networking_config: Some(networking),
        ..ContainerCreateBody::default()
    })
}

fn host_config(
    flags: &Flags,
    network_mode: String,
    bindings: Bindings,
    host: &Host<'_>,
) -> Result<HostConfig, RunArgsError> {
    let Flags {
        limits,
        storage,
        network,
        isolation,
        watching,
        ..
    } = flags;
    let security = security::options(&isolation.security_opt, host.cwd)?;
    let system_paths = security.open_system_paths.then(Vec::new);
    let binds = storage.volume.iter().filter_map(|v| v.bind(host.cwd));
    let mounts = storage.mount.iter().map(|m| mount::placed(m, host.cwd));
    let mut devices = Vec::new();
    let mut device_requests = isolation.gpus.clone();
    let mut named = Vec::new();
    for device in &isolation.device {
        match device {
            Device::Mapped(mapping) => devices.push(mapping.clone()),
            Device::Named(name) => named.push(name.clone()),
        }
    }
    if !named.is_empty() {
        device_requests.push(DeviceRequest {
            driver: Some("cdi".into()),
            device_ids: Some(named),
            ..DeviceRequest::default()
        });
    }
    let cid_file = flags.identity.cidfile.as_ref();
    Ok(HostConfig {
        memory: limits.memory,
        memory_swap: limits.memory_swap,
        memory_reservation: limits.memory_reservation,
        memory_swappiness: Some(limits.memory_swappiness.unwrap_or(-1)),
        oom_kill_disable: Some(limits.oom_kill_disable.unwrap_or(false)),
        oom_score_adj: limits.oom_score_adj,
        shm_size: limits.shm_size,
        pids_limit: Some(limits.pids_limit.unwrap_or(0)),
        nano_cpus: limits.cpus,
        cpu_shares: limits.cpu_shares,
        cpu_period: limits.cpu_period,
        cpu_quota: limits.cpu_quota,
        cpu_realtime_period: limits.cpu_rt_period,
        cpu_realtime_runtime: limits.cpu_rt_runtime,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        blkio_weight: limits.blkio_weight,
        blkio_weight_device: Some(limits.blkio_weight_device.clone()),
        blkio_device_read_bps: Some(limits.device_read_bps.clone()),
        blkio_device_write_bps: Some(limits.device_write_bps.clone()),
        blkio_device_read_iops: Some(limits.device_read_iops.clone()),
        blkio_device_write_iops: Some(limits.device_write_iops.clone()),
        ulimits: Some(ulimits(flags)),
        cgroup_parent: isolation.cgroup_parent.clone(),
        devices: Some(devices),
        device_cgroup_rules: list(&isolation.device_cgroup_rule),
        device_requests: (!device_requests.is_empty()).then_some(device_requests),
        init: flags.process.init,
        binds: list(&distinct(binds)),
        container_id_file: cid_file.map(|file| file.to_string_lossy().into_owned()),
        log_config: Some(HostConfigLogConfig {
            typ: Some(watching.log_driver.clone().unwrap_or_default()),
            config: Some(log_options(watching)?),
        }),
        network_mode: Some(network_mode),
        port_bindings: Some(bindings),
        // Others are refused: see `Flags::refused`.
        restart_policy: Some(RestartPolicy {
            name: Some(RestartPolicyNameEnum::NO),
            maximum_retry_count: Some(0),
        }),
        auto_remove: Some(false),
        volume_driver: storage.volume_driver.clone(),
        volumes_from: list(&storage.volumes_from),
        mounts: list(&mounts.collect::<Vec<_>>()),
        annotations: some_map(&flags.identity.annotation),
        cap_add: security::capabilities(&isolation.cap_add),
        cap_drop: security::capabilities(&isolation.cap_drop),
        cgroupns_mode: isolation.cgroupns,
        dns: Some(network.dns.clone()),
        dns_options: Some(network.dns_option.clone()),
        dns_search: Some(network.dns_search.clone()),
        extra_hosts: list(&network.add_host),
        group_add: list(&flags.process.group_add),
        ipc_mode: isolation.ipc.clone(),
        links: list(&network.link),
        pid_mode: isolation.pid.clone(),
        privileged: Some(isolation.privileged.unwrap_or(false)),
        publish_all_ports: Some(network.publish_all.unwrap_or(false)),
        readonly_rootfs: Some(storage.read_only.unwrap_or(false)),
        security_opt: (!isolation.security_opt.is_empty()).then_some(security.options),
        storage_opt: some_map(&storage.storage_opt),
        tmpfs: some_tmpfs(&storage.tmpfs),
        uts_mode: isolation.uts.clone(),
        userns_mode: isolation.userns.clone(),
        sysctls: some_map(&isolation.sysctl),
        runtime: isolation.runtime.clone(),
        isolation: isolation.isolation.as_deref().map(|name| match name {
            "default" => HostConfigIsolationEnum::DEFAULT,
            _ => HostConfigIsolationEnum::EMPTY,
        }),
        masked_paths: system_paths.clone(),
        readonly_paths: system_paths,
        ..HostConfig::default()
    })
}

/// The container's network mode, and what is asked of that network.
fn first_network(flags: &Network) -> Result<(String, NetworkingConfig), RunArgsError> {
    let mut networks = networks::all(flags)?;
    let (name, endpoint) = networks.swap_remove(0);
    let endpoints = endpoint.map(|endpoint| (name.clone(), endpoint));
    let networking = NetworkingConfig {
        endpoints_config: Some(endpoints.into_iter().collect()),
    };
    Ok((name, networking))
}

pub(super) type Bindings = HashMap<String, Option<Vec<PortBinding>>>;

/// The ports that are exposed, and where those that are published are bound.
pub(super) fn ports(flags: &Network) -> Result<(Vec<String>, Bindings), RunArgsError> {
    /// All ports of all protocols.
    const MOST: u32 = 3 << 16;
    let count = flags.publish.iter().map(|publication| publication.count());
    if count.fold(0, u32::saturating_add) > MOST {
        return Err(RunArgsError::Conflict {
            flag: "--publish",
            other: "--publish",
            why: "together they are more ports than there are",
        });
    }
    let mut bindings = Bindings::new();
    let mut exposed = Vec::new();
    for (port, binding) in flags
        .publish
        .iter()
        .flat_map(|publication| publication.bindings())
    {
        exposed.push(port.clone());
        let of_port = bindings.entry(port).or_default();
        of_port.get_or_insert_default().push(binding);
    }
    let more = flags.expose.iter().flat_map(|exposed| exposed.ports());
    Ok((distinct(exposed.into_iter().chain(more)), bindings))
}

/// Of a name twice the last.
fn ulimits(flags: &Flags) -> Vec<bollard::models::ResourcesUlimits> {
    let mut limits: Vec<bollard::models::ResourcesUlimits> = Vec::new();
    for limit in &flags.process.ulimit {
        limits.retain(|other| other.name != limit.name);
        limits.push(limit.clone());
    }
    limits.sort_by(|a, b| a.name.cmp(&b.name));
    limits
}

fn log_options(flags: &Watching) -> Result<HashMap<String, String>, RunArgsError> {
    match flags.log_driver.as_deref() == Some("none") && !flags.log_opt.is_empty() {
        true => Err(RunArgsError::Conflict {
            flag: "--log-driver none",
            other: "--log-opt",
            why: "that driver has no options",
        }),
        false => Ok(flags.log_opt.iter().map(|option| pair(option)).collect()),
    }
}

fn health(flags: &Watching) -> Result<Option<HealthConfig>, RunArgsError> {
    let command = flags.health_cmd.as_deref().filter(|text| !text.is_empty());
    let set = |value: Option<i64>| value.filter(|number| *number != 0);
    let config = HealthConfig {
        test: command.map(|command| vec!["CMD-SHELL".into(), command.to_owned()]),
        interval: set(flags.health_interval),
        timeout: set(flags.health_timeout),
        retries: set(flags.health_retries),
        start_period: set(flags.health_start_period),
        start_interval: set(flags.health_start_interval),
    };
    match (
        flags.no_healthcheck == Some(true),
        config == HealthConfig::default(),
    ) {
        (false, true) => Ok(None),
        (false, false) => Ok(Some(config)),
        (true, true) => Ok(Some(HealthConfig {
            test: Some(vec!["NONE".into()]),
            ..HealthConfig::default()
        })),
        (true, false) => Err(RunArgsError::Conflict {
            flag: "--no-healthcheck",
            other: "--health-*",
            why: "keep one",
        }),
    }
}

/// Flags that are given, with the API that knows them where not all engines do.
pub(super) fn needs(flags: &Flags) -> Vec<(&'static str, ApiVersion)> {
    let Flags {
        identity,
        storage,
        network,
        watching,
        ..
    } = flags;
    let volume_part = |mount: &bollard::models::Mount| {
        let options = mount.volume_options.as_ref();
        options.is_some_and(|options| options.subpath.is_some())
    };
    let recursive = |mount: &bollard::models::Mount| {
        mount.bind_options.as_ref().is_some_and(|options| {
            options.read_only_force_recursive.is_some() || options.read_only_non_recursive.is_some()
        })
    };
    let image =
        |mount: &bollard::models::Mount| mount.typ == Some(bollard::models::MountType::IMAGE);
    let networks = networks::all(network).unwrap_or_default();
    let endpoints = || {
        networks
            .iter()
            .filter_map(|(_, endpoint)| endpoint.as_ref())
    };
    let needs = [
        ("--annotation", (1, 43), !identity.annotation.is_empty()),
        (
            "--health-start-interval",
            (1, 44),
            watching.health_start_interval.is_some(),
        ),
        (
            "--mac-address",
            (1, 44),
            endpoints().any(|endpoint| endpoint.mac_address.is_some()),
        ),
        (
            "--mount …,bind-recursive=",
            (1, 44),
            storage.mount.iter().any(recursive),
        ),
        (
            "--mount …,volume-subpath=",
            (1, 45),
            storage.mount.iter().any(volume_part),
        ),
        (
            "--mount type=image",
            (1, 48),
            storage.mount.iter().any(image),
        ),
        (
            "--network …,gw-priority=",
            (1, 48),
            endpoints().any(|endpoint| endpoint.gw_priority.is_some()),
        ),
    ];
    let needs = needs.into_iter().filter(|(_, _, given)| *given);
    needs.map(|(flag, version, _)| (flag, version)).collect()
}

fn list<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

fn some_map(pairs: &[String]) -> Option<HashMap<String, String>> {
    (!pairs.is_empty()).then(|| pairs.iter().map(|text| pair(text)).collect())
}

/// `/run:size=64m` → its path and options.
fn some_tmpfs(given: &[String]) -> Option<HashMap<String, String>> {
    let pair = |text: &String| {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        (path.to_owned(), options.to_owned())
    };
    (!given.is_empty()).then(|| given.iter().map(pair).collect())
}

fn distinct(values: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    let values = values.into_iter();
    values.filter(|value| seen.insert(value.clone())).collect()
}
