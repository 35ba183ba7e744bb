//! `--security-opt`, and which namespaces and kernel settings may be named.

use std::collections::BTreeSet;
use std::path::Path;

use bollard::models::HostConfigCgroupnsModeEnum;

use super::error::RunArgsError;

pub(super) fn option(text: &str) -> Result<String, String> {
    let (name, value) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .unwrap_or((text, ""));
    match value.is_empty() && name != "no-new-privileges" {
        true => Err("expected NAME=VALUE, or no-new-privileges".into()),
        false => Ok(text.to_owned()),
    }
}

/// What the engine is given for `--security-opt`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Options {
    pub options: Vec<String>,
    /// `systempaths=unconfined`: no path of /proc and /sys is hidden or read-only.
    pub open_system_paths: bool,
}

/// A seccomp profile is a file of this machine, whose contents the engine gets.
pub(super) fn options(given: &[String], cwd: &Path) -> Result<Options, RunArgsError> {
    let mut all = Options::default();
    for option in given {
        let profile = option
            .strip_prefix("seccomp=")
            .or_else(|| option.strip_prefix("seccomp:"));
        match profile {
            Some(file) if file != "unconfined" && file != "builtin" => {
                all.options.push(format!("seccomp={}", seccomp(file, cwd)?));
            }
            _ if option == "systempaths=unconfined" => all.open_system_paths = true,
            _ => all.options.push(option.clone()),
        }
    }
    Ok(all)
}

fn seccomp(file: &str, cwd: &Path) -> Result<String, RunArgsError> {
    const FLAG: &str = "--security-opt";
    let path = cwd.join(file);
    let text = super::file::read(FLAG, &path)?;
    let text = String::from_utf8_lossy(&text);
    match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        Ok(_) => Ok(compact(&text)),
        Err(error) => Err(RunArgsError::bad(
            FLAG,
            &format!("seccomp={file}"),
            format!("the file is no JSON: {error}"),
        )),
    }
}

/// JSON without blanks between its parts, else as it is written.
fn compact(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let (mut in_text, mut escaped) = (false, false);
    for c in json.chars() {
        if !in_text && c.is_ascii_whitespace() {
            continue;
        }
        compact.push(c);
        in_text ^= c == '"' && !escaped;
        escaped = in_text && c == '\\' && !escaped;
    }
    compact
}

/// Capabilities by their full names, each once, in order.
pub(super) fn capabilities(given: &[String]) -> Option<Vec<String>> {
    let full = given.iter().map(|name| match name.trim().to_uppercase() {
        name if name == "ALL" || name.starts_with("CAP_") => name,
        name => format!("CAP_{name}"),
    });
    let names: BTreeSet<String> = full.collect();
    (!names.is_empty()).then(|| names.into_iter().collect())
}

/// `--uts`, `--userns`.
pub(super) fn host_only(text: &str) -> Result<String, String> {
    match text {
        "" | "host" => Ok(text.to_owned()),
        _ => Err("expected host".into()),
    }
}

fn is_container(text: &str) -> bool {
    text.strip_prefix("container:")
        .is_some_and(|name| !name.is_empty())
}

pub(super) fn pid(text: &str) -> Result<String, String> {
    match matches!(text, "" | "host") || is_container(text) {
        true => Ok(text.to_owned()),
        false => Err("expected host or container:NAME".into()),
    }
}

pub(super) fn ipc(text: &str) -> Result<String, String> {
    let known = matches!(text, "" | "none" | "private" | "shareable" | "host");
    match known || is_container(text) {
        true => Ok(text.to_owned()),
        false => Err("expected none, private, shareable, host or container:NAME".into()),
    }
}

pub(super) fn cgroupns(text: &str) -> Result<HostConfigCgroupnsModeEnum, String> {
    match text {
        "" => Ok(HostConfigCgroupnsModeEnum::EMPTY),
        "host" => Ok(HostConfigCgroupnsModeEnum::HOST),
        "private" => Ok(HostConfigCgroupnsModeEnum::PRIVATE),
        _ => Err("expected host or private".into()),
    }
}

pub(super) fn isolation(text: &str) -> Result<String, String> {
    match text {
        "" | "default" => Ok(text.to_owned()),
        _ => Err("on Linux there is default alone".into()),
    }
}

/// The settings that a container has its own of.
pub(super) fn sysctl(text: &str) -> Result<String, String> {
    const NAMES: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let Some((name, _)) = text.split_once('=') else {
        return Err("expected NAME=VALUE".into());
    };
    let own = ["net.", "fs.mqueue."];
    match NAMES.contains(&name) || own.iter().any(|prefix| name.starts_with(prefix)) {
        true => Ok(text.to_owned()),
        false => Err(
            "a container has no setting of its own of that name; those of net., \
                      fs.mqueue., kernel.msg*, kernel.sem and kernel.shm* can be set"
                .into(),
        ),
    }
}
