//! Why Apptainer did not start a container, from its own words.

use crate::container::error::{ContainerError, Kind};

/// `said` are the last lines that were printed.
pub fn failure(said: &[&str], image: &str, exit_code: &str) -> ContainerError {
    let said: Vec<String> = said.iter().map(|line| plain(line)).collect();
    let said: Vec<&str> = said
        .iter()
        .map(|line| line.trim())
        .filter(|line| !line.is_empty())
        .collect();
    let is_word = |line: &&&str| {
        ["FATAL", "ERROR", "Error for command"]
            .iter()
            .any(|start| line.starts_with(start))
    };
    let is_news = |line: &&&str| line.starts_with("INFO");
    let line = said.iter().rev().find(is_word);
    let line = line.or(said.iter().rev().find(|line| !is_news(line)));
    let words = match line {
        Some(line) => match line.split_once(':') {
            Some((level, words)) if matches!(level.trim(), "FATAL" | "ERROR") => {
                words.trim().to_owned()
            }
            _ => (*line).to_owned(),
        },
        None => format!("it ended ({exit_code}) and said nothing"),
    };
    let lower = words.to_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let (kind, next) = match () {
        () if has(&["unknown flag", "unknown shorthand"]) => (
            Kind::BadArguments,
            "this version of Apptainer does not know it: leave out the argument that it stands for, or use a newer one",
        ),
        () if has(&["no space left"]) => (
            Kind::DiskFull,
            "images are kept under APPTAINER_CACHEDIR and built under APPTAINER_TMPDIR",
        ),
        () if has(&["/bin/sh"]) && has(&["no such file", "not found", "not exist"]) => {
            return ContainerError::ImageUnsuitable {
                image: image.to_owned(),
                cause: "it has no shell (/bin/sh), which is needed to start the agent in it".into(),
            };
        }
        () if has(&["mount source", "while mounting"]) => (
            Kind::BadArguments,
            "is the folder there, and may this user and Apptainer's configuration mount it?",
        ),
        () if has(&["cgroup"]) => (
            Kind::BadArguments,
            "limits such as --memory and --cpus need control groups that this user may manage; in a batch job \
             leave them out: the job's own hold",
        ),
        () if has(&["unauthorized", "denied", "authentication required", "403"]) => (
            Kind::PullDenied,
            "log in with `apptainer registry login`, or set APPTAINER_DOCKER_USERNAME and APPTAINER_DOCKER_PASSWORD",
        ),
        () if has(&[
            "manifest unknown",
            "404",
            "name unknown",
            "could not open image",
            "not in the library",
        ]) =>
        {
            (Kind::NoSuchImage, "is the name right?")
        }
        () if has(&[
            "dial tcp",
            "no such host",
            "timeout",
            "connection refused",
            "connection reset",
            "tls",
        ]) =>
        {
            (
                Kind::RegistryUnreachable,
                "is the registry reachable from this machine? On nodes without network, pull the image to a .sif file beforehand",
            )
        }
        () => (
            Kind::Engine,
            "`apptainer exec` with the same image at a shell says more",
        ),
    };
    ContainerError::Apptainer {
        kind,
        image: image.to_owned(),
        cause: words.trim_end_matches('.').to_owned(),
        next,
    }
}

/// Without the colours that it has wherever it prints to.
fn plain(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                let _ = chars.by_ref().find(char::is_ascii_alphabetic);
            }
            c => plain.push(c),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_words_are_understood() {
        for (said, kind) in [
            // As Apptainer 1.4.5 says it.
            (
                "FATAL:   While checking container encryption: could not open image /nowhere.sif: failed to retrieve path for /nowhere.sif: lstat /nowhere.sif: no such file or directory",
                Kind::NoSuchImage,
            ),
            (
                "FATAL:   Unable to handle docker://localhost:1/nowhere uri: failed to get checksum for docker://localhost:1/nowhere: pinging container registry localhost:1: Get \"https://localhost:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                Kind::RegistryUnreachable,
            ),
            (
                "Error for command \"exec\": unknown flag: --nonsense",
                Kind::BadArguments,
            ),
            (
                "FATAL:   container creation failed: while applying cgroups config: cannot use cgroups - cannot use systemd cgroups manager, systemd not running as init on this host",
                Kind::BadArguments,
            ),
            (
                "FATAL:   container creation failed: mount hook function failure: mount /nope->/x error: while mounting /nope: mount source /nope doesn't exist",
                Kind::BadArguments,
            ),
            (
                "FATAL:   stat /bin/sh: no such file or directory",
                Kind::ImageUnsuitable,
            ),
            (
                "\u{1b}[91mERROR  : Requesting capability set 0x1ff while permitted capability set is 0x0ff\n\u{1b}[0m",
                Kind::Engine,
            ),
            // As registries and the system say it.
            (
                "FATAL:   While making image from oci registry: error fetching image: unauthorized: authentication required",
                Kind::PullDenied,
            ),
            (
                "FATAL:   While making image from oci registry: reading manifest nope in docker.io/library/alpine: manifest unknown",
                Kind::NoSuchImage,
            ),
            (
                "FATAL:   While performing build: write /tmp/build-temp: no space left on device",
                Kind::DiskFull,
            ),
            ("FATAL:   what nobody has seen", Kind::Engine),
        ] {
            let error = failure(
                &["INFO:    Using cached SIF image", said, "later"],
                "x",
                "exit code 255",
            );
            assert_eq!(error.kind(), kind, "{said}: {error}");
        }
        let error = failure(
            &["\u{1b}[91mERROR  : no rights", "\u{1b}[0m"],
            "x",
            "exit code 1",
        );
        let error = error.to_string();
        assert!(error.contains("image x: no rights. "), "{error}");
        let error = failure(&[], "x", "exit code 255").to_string();
        assert!(error.contains("exit code 255"), "{error}");
    }
}
