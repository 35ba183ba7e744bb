//! What a container is made of beside its arguments: who runs in it, the machine's folders, variables,
//! labels and programs.

use std::path::PathBuf;

use super::super::container_plan::Plan;
use super::super::run::Run;
use super::Made;
use crate::container::archive;
use crate::container::caches::{self, Mounted};
use crate::container::engine::Engine;
use crate::container::error::ContainerError;
use crate::container::handover;
use crate::container::lifecycle::Container;
use crate::container::owner::Agent;
use crate::container::settings::Settings;
use crate::container::spec::{self, Additions};
use crate::container::user::User;
use crate::python::{settings::Installer, uv};

/// The image's word on who `user` is.
pub(super) async fn look_up(
    engine: &Engine,
    image: &str,
    user: &str,
) -> Result<User, ContainerError> {
    let body = bollard::models::ContainerCreateBody {
        image: Some(image.to_owned()),
        entrypoint: Some(handover::entrypoint()),
        ..Default::default()
    };
    let container = Container::create(engine, None, None, body).await?;
    let read = async |path: &str| -> Result<String, ContainerError> {
        let file = archive::get(engine, container.id(), path).await?;
        Ok(String::from_utf8_lossy(&file.unwrap_or_default()).into_owned())
    };
    let found = async {
        let (passwd, group) = (read("/etc/passwd").await?, read("/etc/group").await?);
        User::resolve(user, &passwd, &group).map_err(|unknown| ContainerError::BadArguments {
            cause: format!("image {image} knows no {unknown} (asked for by --user, CLEARML_AGENT_EXEC_USER or the image itself)"),
        })
    }
    .await;
    if let Err(cause) = container.remove().await {
        tracing::debug!(cause, "a container that was only looked into");
    }
    found
}

/// uv, to be placed beside the inner agent; without it the inner one looks for itself.
pub(in super::super) async fn program_for_packages(run: &Run) -> Option<PathBuf> {
    let settings = &run.settings.python;
    let installs = settings.standalone.is_none() && !settings.skip_python_env;
    if settings.installer == Installer::Pip || !installs {
        return None;
    }
    match uv::find_or_fetch(settings, &run.console, run.stop.token()).await {
        Ok(found) => is_binary(&found.program).then_some(found.program),
        Err(cause) => {
            tracing::debug!(cause, "no uv for the container");
            None
        }
    }
}

/// A script that starts the real program would not find it in the container.
fn is_binary(path: &std::path::Path) -> bool {
    use std::io::Read as _;
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    read.is_ok() && magic == *b"\x7fELF"
}

pub(super) fn mount_caches(
    run: &Run,
    settings: &Settings,
    engine: &Engine,
    image: &caches::Image<'_>,
    user: &User,
) -> Vec<Mounted> {
    if !engine.is_local() {
        run.console.say(
            "Note: the container engine is on another machine: this machine's caches are not mounted",
        );
        return Vec::new();
    }
    let mounted = settings.caches.iter().filter_map(|cache| {
        caches::mount(cache, image, user, settings.host_mount.as_ref())
            .inspect_err(|cause| {
                run.console
                    .say(format!("Note: a cache is not mounted: {cause}"));
            })
            .ok()
    });
    mounted.collect()
}

/// The container as the engine is to create it.
pub(super) fn complete(
    run: &Run,
    plan: &Plan,
    engine: &Engine,
    made: &Made<'_>,
    words: Vec<String>,
) -> bollard::models::ContainerCreateBody {
    let settings = made.settings;
    let worker = &run.settings.endpoint.worker;
    let socket = settings.ssh.socket(engine.is_local());
    let socket = socket.and_then(std::path::Path::to_str);
    let mut variables = vec![
        ("CLEARML_WORKER_ID", worker.clone()),
        ("CLEARML_DOCKER_IMAGE", plan.image.clone()),
        ("CLEARML_TASK_ID", run.task.id.clone()),
        ("CLEARML_CONFIG_FILE", handover::CONFIG.to_owned()),
    ];
    variables.extend(
        plan.visible_devices
            .clone()
            .map(|devices| ("NVIDIA_VISIBLE_DEVICES", devices)),
    );
    variables.extend(
        made.host_ip
            .map(|ip| ("CLEARML_AGENT_HOST_IP", ip.to_owned())),
    );
    variables.extend(socket.map(|socket| ("SSH_AUTH_SOCK", socket.to_owned())));
    let additions = Additions {
        image: &plan.image,
        words,
        variables,
        defaults: vec![
            ("UV_CACHE_DIR", handover::UV_CACHE),
            ("UV_PYTHON_INSTALL_DIR", handover::PYTHONS),
        ],
        labels: spec::labels(
            worker,
            made.me.map(Agent::label).as_deref(),
            &settings.labels,
        ),
        user: settings.user.as_deref(),
        mounts: made.mounts,
        programs: made.programs.mounted(),
        socket,
    };
    spec::complete(plan.body.clone(), &additions)
}
