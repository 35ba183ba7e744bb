//! `--gpus`, `--device` and what limits devices: rates, weights, rules; `--ulimit`.

use std::collections::HashMap;

use bollard::models::{
    DeviceMapping, DeviceRequest, ResourcesBlkioWeightDevice, ResourcesUlimits, ThrottleDevice,
};

use super::{csv, units};

/// `--device`: one of the host's, or a name of the Container Device Interface (`nvidia.com/gpu=0`).
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Device {
    Mapped(DeviceMapping),
    Named(String),
}

/// `--gpus`: `all`, a count, `"device=0,1"`, with `driver=`, `capabilities=` and `options=`.
pub(super) fn gpus(text: &str) -> Result<DeviceRequest, String> {
    let mut request = DeviceRequest {
        driver: Some(String::new()),
        count: Some(0),
        device_ids: None,
        capabilities: Some(vec![vec!["gpu".into()]]),
        options: Some(HashMap::new()),
    };
    let mut seen = Vec::new();
    let mut counted = false;
    for field in csv::fields(text)? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            // `--gpus device=0,1` without the quotes around it.
            None if request.device_ids.is_some() => {
                return Err(
                    "several devices need quotes around them, for docker to keep them \
                            together: '\"device=0,1\"'"
                        .into(),
                );
            }
            None => ("count".to_owned(), field),
        };
        if seen.contains(&key) {
            return Err(format!("{key:?} twice"));
        }
        let list = || value.split(',').map(str::to_owned);
        match key.as_str() {
            "count" => {
                counted = true;
                request.count = Some(match value.as_str() {
                    "all" => -1,
                    number => number
                        .parse()
                        .map_err(|_| format!("{number:?}: expected all or a number of GPUs"))?,
                });
            }
            "driver" => request.driver = Some(value),
            "device" => request.device_ids = Some(list().collect()),
            "capabilities" => {
                request.capabilities = Some(vec![list().chain(["gpu".into()]).collect()]);
            }
            "options" => {
                let pairs = csv::fields(&value)?.into_iter().map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((&pair, ""));
                    (name.to_owned(), value.to_owned())
                });
                request.options = Some(pairs.collect());
            }
            _ => return Err(format!("{key:?} is no key of it")),
        }
        seen.push(key);
    }
    if counted && request.count != Some(0) && request.device_ids.is_some() {
        return Err("either a count or devices".into());
    }
    if !counted && request.device_ids.is_none() {
        request.count = Some(1);
    }
    Ok(request)
}

pub(super) fn device(text: &str) -> Result<Device, String> {
    if is_cdi_name(text) {
        return Ok(Device::Named(text.to_owned()));
    }
    let parts: Vec<&str> = text.split(':').collect();
    let (host, container, rights) = match parts.as_slice() {
        [host] => (*host, *host, "rwm"),
        [host, rights] if are_rights(rights) => (*host, *host, *rights),
        [host, container] => (*host, *container, "rwm"),
        [host, container, rights] if are_rights(rights) => (*host, *container, *rights),
        [_, _, rights] => return Err(format!("{rights:?}: expected a mixture of r, w and m")),
        _ => return Err("expected DEVICE[:PATH][:RIGHTS]".into()),
    };
    let container = match container {
        "" => host,
        container => container,
    };
    match host.is_empty() || !container.starts_with('/') {
        true => Err(format!("{container:?} is no absolute path of a device")),
        false => Ok(Device::Mapped(DeviceMapping {
            path_on_host: Some(host.to_owned()),
            path_in_container: Some(container.to_owned()),
            cgroup_permissions: Some(rights.to_owned()),
        })),
    }
}

/// Letters of `rwm`, each once at most.
fn are_rights(text: &str) -> bool {
    !text.is_empty()
        && text.chars().all(|c| "rwm".contains(c))
        && "rwm".chars().all(|c| text.matches(c).count() < 2)
}

/// `vendor.com/class=name`.
fn is_cdi_name(text: &str) -> bool {
    let part = |text: &str, extra: &str, letter_first: bool| {
        let plain = |c: char| c.is_ascii_alphanumeric();
        text.starts_with(|c: char| match letter_first {
            true => c.is_ascii_alphabetic(),
            false => plain(c),
        }) && text.ends_with(plain)
            && text.chars().all(|c| plain(c) || extra.contains(c))
    };
    text.split_once('/')
        .and_then(|(vendor, rest)| Some((vendor, rest.split_once('=')?)))
        .is_some_and(|(vendor, (class, name))| {
            part(vendor, "_-.", true) && part(class, "_-", true) && part(name, "_-.:", false)
        })
}

pub(super) fn cgroup_rule(text: &str) -> Result<String, String> {
    let number = |text: &str| text == "*" || text.parse::<u32>().is_ok();
    let parts: Vec<&str> = text.split(' ').collect();
    match parts.as_slice() {
        ["a" | "c" | "b", numbers, rights]
            if numbers
                .split_once(':')
                .is_some_and(|(major, minor)| number(major) && number(minor))
                && (1..=3).contains(&rights.len())
                && rights.chars().all(|c| "rwm".contains(c)) =>
        {
            Ok(text.to_owned())
        }
        _ => Err("expected TYPE MAJOR:MINOR RIGHTS, like \"c 1:3 mr\"".into()),
    }
}

pub(super) fn bytes_per_second(text: &str) -> Result<ThrottleDevice, String> {
    let (path, rate) = device_and_number(text)?;
    Ok(ThrottleDevice {
        path: Some(path),
        rate: Some(units::bytes(rate)?),
    })
}

pub(super) fn operations_per_second(text: &str) -> Result<ThrottleDevice, String> {
    let (path, rate) = device_and_number(text)?;
    match rate.parse::<u32>() {
        Ok(rate) => Ok(ThrottleDevice {
            path: Some(path),
            rate: Some(i64::from(rate)),
        }),
        Err(_) => Err("expected DEVICE:NUMBER".into()),
    }
}

pub(super) fn weight(text: &str) -> Result<ResourcesBlkioWeightDevice, String> {
    let (path, weight) = device_and_number(text)?;
    Ok(ResourcesBlkioWeightDevice {
        path: Some(path),
        weight: Some(usize::from(units::weight(weight)?)),
    })
}

fn device_and_number(text: &str) -> Result<(String, &str), String> {
    match text.split_once(':') {
        Some((path, number)) if path.starts_with("/dev/") => Ok((path.to_owned(), number)),
        _ => Err("expected /dev/NAME:NUMBER".into()),
    }
}

/// The limits that `--ulimit` takes.
pub const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// `--ulimit`: `nofile=1024` or `nofile=1024:2048`, `-1` for no limit.
pub(super) fn ulimit(text: &str) -> Result<ResourcesUlimits, String> {
    let (name, limits) = text
        .split_once('=')
        .ok_or("expected NAME=SOFT or NAME=SOFT:HARD")?;
    if !ULIMITS.contains(&name) {
        return Err(format!("{name:?}: expected one of {}", ULIMITS.join(", ")));
    }
    let number = |text: &str| {
        text.parse::<i64>()
            .map_err(|_| format!("{text:?} is no whole number"))
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (number(soft)?, number(hard)?);
    match hard != -1 && (soft == -1 || soft > hard) {
        true => Err("the soft limit is above the hard one".into()),
        false => Ok(ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: Some(soft),
            hard: Some(hard),
        }),
    }
}
