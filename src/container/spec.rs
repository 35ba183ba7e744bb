//! The container as the engine is to create it: what the arguments say, and over it what makes it a run
//! of the agent. Pure.

use std::collections::HashMap;

use bollard::models::{
    ContainerCreateBody, HostConfig, Mount, MountType, MountVolumeOptions, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::caches::Mounted;
use super::handover;

/// What the agent adds to the arguments.
#[derive(Debug, Default)]
pub struct Additions<'a> {
    pub image: &'a str,
    /// The inner agent's arguments.
    pub words: Vec<String>,
    /// Nothing secret: `docker inspect` shows them. They replace those of the arguments.
    pub variables: Vec<(&'a str, String)>,
    /// Variables where the arguments set none.
    pub defaults: Vec<(&'a str, &'a str)>,
    pub labels: Vec<(String, String)>,
    pub user: Option<&'a str>,
    pub mounts: &'a [Mounted],
    /// Files of this machine, and where they are in the container, which cannot write to them.
    pub programs: Vec<(String, &'static str)>,
    /// A socket of this machine that is in the container under the same path.
    pub socket: Option<&'a str>,
}

/// `asked` with the additions. A mount point of the arguments stays theirs.
pub fn complete(mut asked: ContainerCreateBody, more: &Additions<'_>) -> ContainerCreateBody {
    asked.image = Some(more.image.to_owned());
    asked.entrypoint = Some(handover::entrypoint());
    asked.cmd = Some(more.words.clone());
    if asked.user.as_deref().is_none_or(str::is_empty) {
        asked.user = more.user.map(str::to_owned);
    }
    // Both streams of the inner agent come one after the other already; its standard input tells it
    // that this agent lives.
    asked.tty = Some(false);
    asked.open_stdin = Some(true);
    asked.stdin_once = Some(true);
    asked.attach_stdin = Some(true);
    asked.attach_stdout = Some(true);
    asked.attach_stderr = Some(true);

    let env = asked.env.get_or_insert_default();
    let sets = |entry: &String, name: &str| entry.split('=').next() == Some(name);
    for (name, value) in &more.variables {
        env.retain(|entry| !sets(entry, name));
        env.push(format!("{name}={value}"));
    }
    for (name, value) in &more.defaults {
        if !env.iter().any(|entry| sets(entry, name)) {
            env.push(format!("{name}={value}"));
        }
    }
    let labels = asked.labels.get_or_insert_default();
    labels.extend(more.labels.iter().cloned());

    let mut host = asked.host_config.take().unwrap_or_default();
    // The result is read after the end, and a container that starts again would run the task again.
    host.auto_remove = Some(false);
    host.restart_policy = Some(RestartPolicy {
        name: Some(RestartPolicyNameEnum::NO),
        maximum_retry_count: None,
    });
    let taken = mount_points(&host);
    let mounts = host.mounts.get_or_insert_default();
    mounts.push(own_volume());
    let mut binds = Vec::new();
    for mount in more.mounts {
        if !taken.contains(&mount.target) {
            binds.push(format!("{}:{}", mount.source, mount.target));
        }
    }
    for (file, target) in &more.programs {
        binds.push(format!("{file}:{target}:ro"));
    }
    if let Some(socket) = more
        .socket
        .filter(|s| !taken.iter().any(|point| point == s))
    {
        binds.push(format!("{socket}:{socket}"));
    }
    host.binds.get_or_insert_default().extend(binds);
    asked.host_config = Some(host);
    asked
}

/// A volume without a name: it goes with the container.
fn own_volume() -> Mount {
    Mount {
        target: Some(handover::FOLDER.to_owned()),
        typ: Some(MountType::VOLUME),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            ..MountVolumeOptions::default()
        }),
        ..Mount::default()
    }
}

/// Where the arguments mount something already.
fn mount_points(host: &HostConfig) -> Vec<String> {
    let of_binds = host.binds.iter().flatten().filter_map(|bind| {
        let mut parts = bind.split(':');
        let source = parts.next()?;
        Some(parts.next().unwrap_or(source).to_owned())
    });
    let of_mounts = host
        .mounts
        .iter()
        .flatten()
        .filter_map(|m| m.target.clone());
    let of_tmpfs = host
        .tmpfs
        .iter()
        .flatten()
        .map(|(target, _)| target.clone());
    of_binds
        .chain(of_mounts)
        .chain(of_tmpfs)
        .map(|point| match point.trim_end_matches('/') {
            "" => "/".to_owned(),
            trimmed => trimmed.to_owned(),
        })
        .collect()
}

/// `KEY=VALUE`, or a key alone.
pub fn label(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

/// The labels of a container by which agents are found, in the Python agent's words and this one's.
pub fn labels(worker: &str, owner: Option<&str>, extra: &[String]) -> Vec<(String, String)> {
    let mut labels: HashMap<String, String> = extra.iter().map(|text| label(text)).collect();
    labels.insert("clearml-worker-id".into(), worker.to_owned());
    labels.insert("clearml-parent-worker-id".into(), worker.to_owned());
    if let Some(owner) = owner {
        labels.insert(super::owner::LABEL.into(), owner.to_owned());
    }
    let mut labels: Vec<_> = labels.into_iter().collect();
    labels.sort();
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_completed() {
        let asked = ContainerCreateBody {
            env: Some(vec![
                "CLEARML_TASK_ID=mine".into(),
                "A=1".into(),
                "B".into(),
            ]),
            tty: Some(true),
            user: Some("1000:1000".into()),
            host_config: Some(HostConfig {
                binds: Some(vec!["/data:/root/.cache/pip/".into()]),
                auto_remove: Some(true),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let mounted = |target: &str| Mounted::for_test("/host", target);
        let made = complete(
            asked,
            &Additions {
                programs: vec![("/usr/bin/uv".into(), "/.clearml-agent/bin/uv")],
                image: "img",
                words: vec!["execute".into()],
                variables: vec![
                    ("CLEARML_TASK_ID", "t1".into()),
                    ("CLEARML_WORKER_ID", "w".into()),
                ],
                defaults: vec![("A", "2"), ("C", "3")],
                labels: labels("w", Some("me"), &["team=x".into()]),
                user: Some("root"),
                mounts: &[mounted("/root/.cache/pip"), mounted("/cache")],
                socket: Some("/run/agent.sock"),
            },
        );
        assert_eq!(
            made.env.unwrap(),
            [
                "A=1",
                "B",
                "CLEARML_TASK_ID=t1",
                "CLEARML_WORKER_ID=w",
                "C=3"
            ]
        );
        assert_eq!(made.user.as_deref(), Some("1000:1000"));
        assert_eq!((made.tty, made.stdin_once), (Some(false), Some(true)));
        assert_eq!(made.entrypoint.unwrap()[0], "/bin/sh");
        let labels = made.labels.unwrap();
        assert_eq!(labels["team"], "x");
        assert_eq!(labels[super::super::owner::LABEL], "me");
        let host = made.host_config.unwrap();
        assert_eq!(host.auto_remove, Some(false));
        assert_eq!(
            host.binds.unwrap(),
            [
                "/data:/root/.cache/pip/",
                "/host:/cache",
                "/usr/bin/uv:/.clearml-agent/bin/uv:ro",
                "/run/agent.sock:/run/agent.sock"
            ]
        );
        assert_eq!(
            host.mounts.unwrap()[0].target.as_deref(),
            Some(handover::FOLDER)
        );
    }
}
