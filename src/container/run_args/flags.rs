//! Every flag of `docker run` (version 28) with what its value must look like. The values are checked
//! here, one by one, as docker's client does; what they mean together is [`super::create`]'s.

use std::path::PathBuf;

use bollard::models::{
    DeviceRequest, HostConfigCgroupnsModeEnum, Mount, ResourcesBlkioWeightDevice, ResourcesUlimits,
    ThrottleDevice,
};
use clap::{Args, Parser};

use super::devices::{self, Device};
use super::error::RunArgsError;
use super::networks::{self, Attachment};
use super::ports::{self, Exposed, Publication};
use super::units::{boolean, bytes, bytes_or_unlimited, cpus, duration, integer, weight};
use super::volumes::{self, Volume};
use super::{Pull, environment, mount, security};

#[derive(Debug, Parser)]
#[command(
    no_binary_name = true,
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true
)]
pub(super) struct Flags {
    #[command(flatten)]
    pub identity: Identity,
    #[command(flatten)]
    pub process: Process,
    #[command(flatten)]
    pub limits: Limits,
    #[command(flatten)]
    pub storage: Storage,
    #[command(flatten)]
    pub network: Network,
    #[command(flatten)]
    pub isolation: Isolation,
    #[command(flatten)]
    pub watching: Watching,
    #[command(flatten)]
    pub no_effect: NoEffect,
    #[command(flatten)]
    pub refused: Refused,
}

/// What it is called and how it is told apart.
#[derive(Debug, Args)]
pub(super) struct Identity {
    #[arg(long)]
    pub name: Option<String>,
    #[arg(long, short = 'h')]
    pub hostname: Option<String>,
    #[arg(long)]
    pub domainname: Option<String>,
    #[arg(long, short = 'l', value_parser = environment::label)]
    pub label: Vec<String>,
    #[arg(long)]
    pub label_file: Vec<PathBuf>,
    #[arg(long, value_parser = annotation)]
    pub annotation: Vec<String>,
    #[arg(long)]
    pub cidfile: Option<PathBuf>,
    #[arg(long)]
    pub platform: Option<String>,
    #[arg(long, value_parser = pull)]
    pub pull: Option<Pull>,
}

/// What runs in it, and with which variables.
#[derive(Debug, Args)]
pub(super) struct Process {
    #[arg(long, short = 'e', value_parser = environment::variable)]
    pub env: Vec<String>,
    #[arg(long)]
    pub env_file: Vec<PathBuf>,
    #[arg(long, short = 'u')]
    pub user: Option<String>,
    #[arg(long)]
    pub group_add: Vec<String>,
    #[arg(long, short = 'w')]
    pub workdir: Option<String>,
    #[arg(long)]
    pub entrypoint: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub init: Option<bool>,
    #[arg(long)]
    pub stop_signal: Option<String>,
    #[arg(long, value_parser = integer)]
    pub stop_timeout: Option<i64>,
    #[arg(long, value_parser = restart)]
    pub restart: Option<String>,
    #[arg(long, value_parser = devices::ulimit)]
    pub ulimit: Vec<ResourcesUlimits>,
}

/// Memory, CPUs and I/O.
#[derive(Debug, Args)]
pub(super) struct Limits {
    #[arg(long, short = 'm', value_parser = bytes)]
    pub memory: Option<i64>,
    #[arg(long, value_parser = bytes_or_unlimited)]
    pub memory_swap: Option<i64>,
    #[arg(long, value_parser = bytes)]
    pub memory_reservation: Option<i64>,
    #[arg(long, value_parser = swappiness)]
    pub memory_swappiness: Option<i64>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub oom_kill_disable: Option<bool>,
    #[arg(long, value_parser = oom_score)]
    pub oom_score_adj: Option<i64>,
    #[arg(long, value_parser = bytes)]
    pub shm_size: Option<i64>,
    #[arg(long, value_parser = integer)]
    pub pids_limit: Option<i64>,
    #[arg(long, value_parser = cpus)]
    pub cpus: Option<i64>,
    #[arg(long, short = 'c', value_parser = integer)]
    pub cpu_shares: Option<i64>,
    #[arg(long, value_parser = integer)]
    pub cpu_period: Option<i64>,
    #[arg(long, value_parser = integer)]
    pub cpu_quota: Option<i64>,
    #[arg(long, value_parser = integer)]
    pub cpu_rt_period: Option<i64>,
    #[arg(long, value_parser = integer)]
    pub cpu_rt_runtime: Option<i64>,
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    #[arg(long, value_parser = weight)]
    pub blkio_weight: Option<u16>,
    #[arg(long, value_parser = devices::weight)]
    pub blkio_weight_device: Vec<ResourcesBlkioWeightDevice>,
    #[arg(long, value_parser = devices::bytes_per_second)]
    pub device_read_bps: Vec<ThrottleDevice>,
    #[arg(long, value_parser = devices::bytes_per_second)]
    pub device_write_bps: Vec<ThrottleDevice>,
    #[arg(long, value_parser = devices::operations_per_second)]
    pub device_read_iops: Vec<ThrottleDevice>,
    #[arg(long, value_parser = devices::operations_per_second)]
    pub device_write_iops: Vec<ThrottleDevice>,
}

/// Volumes, mounts and file systems.
#[derive(Debug, Args)]
pub(super) struct Storage {
    #[arg(long, short = 'v', value_parser = volumes::volume)]
    pub volume: Vec<Volume>,
    #[arg(long, value_parser = mount::mount)]
    pub mount: Vec<Mount>,
    #[arg(long, value_parser = volumes::tmpfs)]
    pub tmpfs: Vec<String>,
    #[arg(long)]
    pub volumes_from: Vec<String>,
    #[arg(long)]
    pub volume_driver: Option<String>,
    #[arg(long, value_parser = key_value)]
    pub storage_opt: Vec<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub read_only: Option<bool>,
}

/// Networks, names and ports.
#[derive(Debug, Args)]
pub(super) struct Network {
    #[arg(long, alias = "net", value_parser = networks::attachment)]
    pub network: Vec<Attachment>,
    #[arg(long, alias = "net-alias")]
    pub network_alias: Vec<String>,
    #[arg(long, value_parser = networks::link)]
    pub link: Vec<String>,
    #[arg(long, value_parser = networks::ipv4)]
    pub ip: Option<String>,
    #[arg(long, value_parser = networks::ipv6)]
    pub ip6: Option<String>,
    #[arg(long, value_parser = networks::address)]
    pub link_local_ip: Vec<String>,
    #[arg(long, value_parser = networks::mac)]
    pub mac_address: Option<String>,
    #[arg(long, short = 'p', value_parser = ports::publication)]
    pub publish: Vec<Publication>,
    #[arg(long, short = 'P', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub publish_all: Option<bool>,
    #[arg(long, value_parser = ports::exposed)]
    pub expose: Vec<Exposed>,
    #[arg(long, value_parser = networks::host)]
    pub add_host: Vec<String>,
    #[arg(long, value_parser = networks::address)]
    pub dns: Vec<String>,
    #[arg(long, alias = "dns-opt")]
    pub dns_option: Vec<String>,
    #[arg(long, value_parser = networks::search_domain)]
    pub dns_search: Vec<String>,
}

/// Namespaces, rights and devices.
#[derive(Debug, Args)]
pub(super) struct Isolation {
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub privileged: Option<bool>,
    #[arg(long)]
    pub cap_add: Vec<String>,
    #[arg(long)]
    pub cap_drop: Vec<String>,
    #[arg(long, value_parser = security::option)]
    pub security_opt: Vec<String>,
    #[arg(long, value_parser = security::host_only)]
    pub userns: Option<String>,
    #[arg(long, value_parser = security::host_only)]
    pub uts: Option<String>,
    #[arg(long, value_parser = security::pid)]
    pub pid: Option<String>,
    #[arg(long, value_parser = security::ipc)]
    pub ipc: Option<String>,
    #[arg(long, value_parser = security::cgroupns)]
    pub cgroupns: Option<HostConfigCgroupnsModeEnum>,
    #[arg(long)]
    pub cgroup_parent: Option<String>,
    #[arg(long, value_parser = security::sysctl)]
    pub sysctl: Vec<String>,
    #[arg(long)]
    pub runtime: Option<String>,
    #[arg(long, value_parser = security::isolation)]
    pub isolation: Option<String>,
    #[arg(long, value_parser = devices::gpus)]
    pub gpus: Vec<DeviceRequest>,
    #[arg(long, value_parser = devices::device)]
    pub device: Vec<Device>,
    #[arg(long, value_parser = devices::cgroup_rule)]
    pub device_cgroup_rule: Vec<String>,
}

/// Logs and health.
#[derive(Debug, Args)]
pub(super) struct Watching {
    #[arg(long)]
    pub log_driver: Option<String>,
    #[arg(long)]
    pub log_opt: Vec<String>,
    #[arg(long)]
    pub health_cmd: Option<String>,
    #[arg(long, value_parser = duration)]
    pub health_interval: Option<i64>,
    #[arg(long, value_parser = duration)]
    pub health_timeout: Option<i64>,
    #[arg(long, value_parser = duration)]
    pub health_start_period: Option<i64>,
    #[arg(long, value_parser = duration)]
    pub health_start_interval: Option<i64>,
    #[arg(long, value_parser = retries)]
    pub health_retries: Option<i64>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub no_healthcheck: Option<bool>,
}

/// Taken, and without effect: what they ask for is so anyway, or means nothing without a person at a terminal.
#[derive(Debug, Args)]
pub(super) struct NoEffect {
    #[arg(long, short = 'a', value_parser = stream)]
    pub attach: Vec<String>,
    #[arg(long, short = 'i', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub interactive: Option<bool>,
    #[arg(long, short = 't', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub tty: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub rm: Option<bool>,
    #[arg(long, short = 'q', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub quiet: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub sig_proxy: Option<bool>,
    #[arg(long)]
    pub detach_keys: Option<String>,
}

/// Flags of docker's that are refused, see [`Flags::refused`].
#[derive(Debug, Args)]
pub(super) struct Refused {
    #[arg(long, short = 'd', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub detach: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub use_api_socket: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub disable_content_trust: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = boolean)]
    pub help: Option<bool>,
    #[arg(long)]
    pub kernel_memory: Option<String>,
    #[arg(long)]
    pub cpu_count: Option<String>,
    #[arg(long)]
    pub cpu_percent: Option<String>,
    #[arg(long)]
    pub io_maxbandwidth: Option<String>,
    #[arg(long)]
    pub io_maxiops: Option<String>,
}
impl Flags {
    /// The first flag that is refused, with the reason.
    pub fn refused(&self) -> Result<(), RunArgsError> {
        const WINDOWS: &str = "it is for containers of Windows";
        let refused = &self.refused;
        let on = |flag: Option<bool>| flag == Some(true);
        let table = [
            (
                "--detach",
                on(refused.detach),
                "the agent follows its container until it ends",
            ),
            (
                "--use-api-socket",
                on(refused.use_api_socket),
                "it copies this machine's registry passwords into the container; where the engine \
                 is needed there, mount its socket: -v /var/run/docker.sock:/var/run/docker.sock",
            ),
            (
                "--disable-content-trust=false",
                refused.disable_content_trust == Some(false),
                "signatures of images are checked by docker's own client alone; name the image by \
                 its digest instead: IMAGE@sha256:…",
            ),
            (
                "--help",
                on(refused.help),
                "it runs nothing; `docker run --help` lists the flags",
            ),
            (
                "--kernel-memory",
                refused.kernel_memory.is_some(),
                "kernels have no such limit any more; --memory counts the kernel's memory too",
            ),
            ("--cpu-count", refused.cpu_count.is_some(), WINDOWS),
            ("--cpu-percent", refused.cpu_percent.is_some(), WINDOWS),
            (
                "--io-maxbandwidth",
                refused.io_maxbandwidth.is_some(),
                WINDOWS,
            ),
            ("--io-maxiops", refused.io_maxiops.is_some(), WINDOWS),
            (
                "--restart",
                !matches!(self.process.restart.as_deref(), None | Some("" | "no")),
                "a container that starts again would run its task again; put the task in a queue \
                 again instead",
            ),
        ];
        match table.into_iter().find(|(_, is_refused, _)| *is_refused) {
            Some((flag, _, why)) => Err(RunArgsError::Refused {
                flag: flag.to_owned(),
                why,
            }),
            None => Ok(()),
        }
    }
}

fn pull(text: &str) -> Result<Pull, String> {
    match text {
        "always" => Ok(Pull::Always),
        "missing" | "" => Ok(Pull::Missing),
        "never" => Ok(Pull::Never),
        _ => Err("expected always, missing or never".into()),
    }
}

fn key_value(text: &str) -> Result<String, String> {
    match text.contains('=') {
        true => Ok(text.to_owned()),
        false => Err("expected NAME=VALUE".into()),
    }
}

fn annotation(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.trim().is_empty() => Ok(text.to_owned()),
        _ => Err("expected NAME=VALUE".into()),
    }
}

fn restart(text: &str) -> Result<String, String> {
    let (policy, count) = text.split_once(':').unwrap_or((text, ""));
    let known = matches!(
        policy,
        "" | "no" | "always" | "unless-stopped" | "on-failure"
    );
    let counted = count.is_empty() || (policy == "on-failure" && count.parse::<u32>().is_ok());
    match known && counted && !text.starts_with(':') {
        true => Ok(text.to_owned()),
        false => Err("expected no, on-failure[:COUNT], always or unless-stopped".into()),
    }
}

fn swappiness(text: &str) -> Result<i64, String> {
    match integer(text) {
        Ok(number @ -1..=100) => Ok(number),
        _ => Err("expected a number between 0 and 100, or -1 for the engine's own".into()),
    }
}

fn oom_score(text: &str) -> Result<i64, String> {
    match integer(text) {
        Ok(number @ -1000..=1000) => Ok(number),
        _ => Err("expected a number between -1000 and 1000".into()),
    }
}

fn retries(text: &str) -> Result<i64, String> {
    match integer(text) {
        Ok(number) if number >= 0 => Ok(number),
        _ => Err("expected a number of retries".into()),
    }
}

fn stream(text: &str) -> Result<String, String> {
    match text.to_lowercase().as_str() {
        "stdin" | "stdout" | "stderr" => Ok(text.to_owned()),
        _ => Err("expected stdin, stdout or stderr".into()),
    }
}
