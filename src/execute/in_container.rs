//! A run inside a container, seen from the host: the image, the container with the inner agent in it,
//! its output into the journal, stop requests to it, and how it ended.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::container_plan::{self, Plan};
use super::follow::{self, send_leftovers};
use super::inside;
use super::outcome::{Outcome, Stage, StopCause};
use super::report::Report;
use super::run::Run;
use super::run_dir;
use super::timeline::Phase;
use crate::api::Trust;
use crate::container::archive::{self, Item};
use crate::container::caches::{self, Mounted};
use crate::container::engine::{self, DockerConfig, Engine};
use crate::container::error::ContainerError;
use crate::container::handover::{self, Handover, Parcel};
use crate::container::image::{self, Wanted};
use crate::container::lifecycle::{Attached, Container, Ended, Input};
use crate::container::owner::{self, Agent};
use crate::container::programs::{self, Program, Surroundings};
use crate::container::proxies;
use crate::container::settings::{Settings, Ssh};
use crate::container::spec::{self, Additions};
use crate::container::user::User;
use crate::process::signal;
use crate::python::{settings::Installer, uv};

/// How much longer than the script's own grace the inner agent may take to end.
const INNER_GRACE: Duration = Duration::from_secs(10);
/// The rest of the output, once the container has ended.
const REST_OF_OUTPUT: Duration = Duration::from_secs(10);

/// From the image to the end of the container.
pub(super) async fn run(run: &Run, settings: &Settings) -> Outcome {
    // All of it is the task's log, as with the Python agent.
    run.journal.release_setup();
    match attempt(run, settings).await {
        Ok(outcome) => outcome,
        Err(error) => failed(run, error),
    }
}

fn failed(run: &Run, error: ContainerError) -> Outcome {
    match (run.stop.cause(), error) {
        (Some(cause), _) => Outcome::Stopped(cause),
        (None, error) => Outcome::Failed {
            stage: Stage::Container(error.kind()),
            cause: error.to_string(),
        },
    }
}

/// Ends where a stop was asked for.
fn go_on(run: &Run) -> Result<(), ContainerError> {
    match run.stop.cause() {
        Some(_) => Err(ContainerError::Stopped),
        None => Ok(()),
    }
}

async fn attempt(run: &Run, settings: &Settings) -> Result<Outcome, ContainerError> {
    let env = &run.settings.job.inherited;
    let mut plan = container_plan::plan(run, settings).await?;
    let config = DockerConfig::read(env);
    let engine = tokio::select! {
        engine = Engine::connect(engine::address(env, &config)?) => engine?,
        _ = run.stop.requested() => return Err(ContainerError::Stopped),
    };
    let me = Agent::this(run.settings.config.machine());
    if let Some(me) = me.clone() {
        let engine = engine.clone();
        tokio::spawn(async move {
            let removed = owner::remove_abandoned(&engine, &me).await;
            tracing::debug!(removed, "containers of killed agents");
        });
    }
    let wanted = Wanted {
        image: &plan.image,
        policy: plan.pull,
        platform: plan.arguments.platform(),
        config: &config,
        env,
    };
    let token = run.stop.token();
    let (image, uv) = tokio::join!(
        image::ensure(&engine, &wanted, &run.console, token),
        program_for_packages(run)
    );
    let image = image?;
    go_on(run)?;
    plan.arguments.check_engine(engine.api_version())?;
    proxies::add(&mut plan.body, &config, &engine.host());

    let of_image = image.config.unwrap_or_default();
    let image_id = image.id.unwrap_or_default();
    let asked_user = plan.body.user.clone().filter(|user| !user.is_empty());
    let user = asked_user
        .or_else(|| settings.user.clone())
        .or(of_image.user)
        .unwrap_or_default();

    // Names of users are the image's matter, and the image can be looked into only as a container. Most
    // run as root, for whom there is nothing to look up.
    let known = match user.as_str() {
        "" | "0" | "root" | "0:0" => User::resolve("0:0", "", "").ok(),
        _ => None,
    };
    let looked_up = match known {
        Some(user) => user,
        None => look_up(&engine, &plan.image, &user).await?,
    };
    let mounts = mount_caches(run, settings, &engine, &image_id, &looked_up);
    let words = inside::words(run, follow::grace(run).await);
    let around = Surroundings::look(engine.is_local());
    let programs = Programs {
        agent: programs::agent(around),
        uv: uv.map(|uv| programs::uv(uv, around)),
    };
    let mounted = programs.mounted();
    let body = complete(
        run,
        settings,
        &plan,
        &engine,
        (&mounts, mounted),
        me.as_ref(),
        words,
    );
    let container = Container::create(
        &engine,
        plan.name.as_deref(),
        plan.arguments.platform(),
        body,
    )
    .await?;
    tracing::debug!(id = container.id(), "container created");
    write_id(&container, &plan)?;
    connect_networks(&container, &plan).await?;
    let place = Place {
        settings,
        mounts: &mounts,
        user: &looked_up,
        programs,
        script: &plan.setup_script,
    };
    let outcome = fill_and_follow(run, &container, &plan, place).await;
    if let Err(cause) = container.remove().await {
        run.console
            .say(format!("Note: the container could not be removed: {cause}"));
    }
    outcome
}

/// `--cidfile`; docker, too, refuses where the file is there already.
fn write_id(container: &Container, plan: &Plan) -> Result<(), ContainerError> {
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let Some(path) = plan.arguments.cid_file(&cwd) else {
        return Ok(());
    };
    let written = std::fs::File::create_new(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, container.id().as_bytes()));
    written.map_err(|error| ContainerError::BadArguments {
        cause: format!("--cidfile {}: {error}", path.display()),
    })
}

/// Networks after the first, which the engine takes one by one.
async fn connect_networks(container: &Container, plan: &Plan) -> Result<(), ContainerError> {
    for (network, endpoint) in plan.arguments.further_networks()? {
        container.join(&network, endpoint).await?;
    }
    Ok(())
}

/// The image's word on who `user` is.
async fn look_up(engine: &Engine, image: &str, user: &str) -> Result<User, ContainerError> {
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
async fn program_for_packages(run: &Run) -> Option<PathBuf> {
    let settings = &run.settings.python;
    if settings.installer == Installer::Pip || settings.skip_python_env {
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

fn mount_caches(
    run: &Run,
    settings: &Settings,
    engine: &Engine,
    image: &str,
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

fn complete(
    run: &Run,
    settings: &Settings,
    plan: &Plan,
    engine: &Engine,
    (mounts, programs): (&[Mounted], Vec<(String, &'static str)>),
    me: Option<&Agent>,
    words: Vec<String>,
) -> bollard::models::ContainerCreateBody {
    let worker = &run.settings.endpoint.worker;
    let socket = match &settings.ssh {
        Ssh::Agent(socket) if engine.is_local() => socket.to_str(),
        _ => None,
    };
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
    variables.extend(socket.map(|socket| ("SSH_AUTH_SOCK", socket.to_owned())));
    let additions = Additions {
        image: &plan.image,
        words,
        variables,
        defaults: vec![("UV_CACHE_DIR", handover::UV_CACHE)],
        labels: spec::labels(worker, me.map(Agent::label).as_deref(), &settings.labels),
        user: settings.user.as_deref(),
        mounts,
        programs,
        socket,
    };
    spec::complete(plan.body.clone(), &additions)
}

/// What is placed in the container, and for whom.
struct Place<'a> {
    settings: &'a Settings,
    mounts: &'a [Mounted],
    user: &'a User,
    programs: Programs,
    script: &'a str,
}

/// What runs in the container that is not the image's.
struct Programs {
    agent: Program,
    /// Without it the inner agent looks for one itself.
    uv: Option<Program>,
}

impl Programs {
    fn mounted(&self) -> Vec<(String, &'static str)> {
        let all = [
            (Some(&self.agent), programs::AGENT),
            (self.uv.as_ref(), programs::UV),
        ];
        let mounted = all
            .into_iter()
            .filter_map(|(program, target)| match program {
                Some(Program::Mounted(file)) => Some((file.clone(), target)),
                _ => None,
            });
        mounted.collect()
    }
}

async fn fill_and_follow(
    run: &Run,
    container: &Container,
    plan: &Plan,
    place: Place<'_>,
) -> Result<Outcome, ContainerError> {
    let engine = container.engine();
    let settings = place.settings;
    let home = home_files(run, settings, place.user);
    let items = parcel(run, place)?;
    let filling = async {
        archive::put(engine, container.id(), handover::FOLDER, items).await?;
        if !home.is_empty()
            && let Err(error) = archive::put(engine, container.id(), "/", home).await
        {
            run.console.say(format!(
                "Note: ssh keys and git credentials are not in the container: {error}"
            ));
        }
        Ok::<(), ContainerError>(())
    };
    // To an engine far away it takes its time.
    tokio::select! {
        filled = filling => filled?,
        _ = run.stop.requested() => return Err(ContainerError::Stopped),
    }
    let attached = container.attach().await?;
    go_on(run)?;
    container.start().await.map_err(|error| match &error {
        // The engine's word for an entry point that is not there.
        ContainerError::BadArguments { cause } | ContainerError::Engine { cause, .. }
            if cause.contains("/bin/sh") =>
        {
            ContainerError::ImageUnsuitable {
                image: plan.image.clone(),
                cause: "it has no shell (/bin/sh), which is needed to start the agent in it".into(),
            }
        }
        _ => error,
    })?;
    if let Some(pid) = container.pid().await {
        run.script.started(pid);
    }
    container_plan::write_back(run, plan).await;
    let caches = settings.caches.clone();
    tokio::task::spawn_blocking(move || {
        for cache in &caches {
            // Runs that were killed may have left theirs beside what uv keeps.
            caches::tidy(cache, &|folder| {
                run_dir::remove_leftovers(&folder.join("runs"));
            });
        }
    });
    let leftovers = tokio::spawn(send_leftovers(
        run.session.clone(),
        run.settings.leftovers(),
    ));
    let followed = follow_to_the_end(run, container, attached).await;
    // What is not sent by now, the next run sends.
    leftovers.abort();
    let (ended, stopped) = followed?;
    if let Some(cause) = stopped {
        return Ok(Outcome::Stopped(cause));
    }
    outcome(run, container, plan, ended).await
}

/// The agent, its configuration and its orders.
fn parcel(run: &Run, place: Place<'_>) -> Result<Vec<Item>, ContainerError> {
    let at = "packing what goes into the container";
    let defect = |cause: String| ContainerError::Engine { at, cause };
    let certificates = match &run.settings.endpoint.trust {
        Trust::Bundle(path) => Some(path.clone()),
        Trust::System | Trust::Anything => None,
    };
    let letter = Handover {
        variables: place.settings.variables.clone(),
        setup_script: place.script.to_owned(),
        rank: run.settings.rank,
        attempt: run.attempt,
        former_end: run.former_end.clone(),
        several: run.several.clone(),
    };
    let parcel = Parcel {
        agent: place.programs.agent,
        uv: place.programs.uv,
        config: config_inside(run, place.settings, place.mounts, certificates.is_some()),
        certificates,
        letter: &letter,
        cache_is_mounted: place
            .mounts
            .iter()
            .any(|mount| mount.target == handover::CACHE),
        user: place.user,
    };
    parcel.items().map_err(|error| defect(error.to_string()))
}

/// The configuration for the agent inside: this one's, with what is this machine's taken out.
fn config_inside(
    run: &Run,
    settings: &Settings,
    mounts: &[Mounted],
    own_certificates: bool,
) -> String {
    let git = &run.settings.git.credentials;
    let mut changes: BTreeMap<&str, String> = BTreeMap::from([
        ("agent.worker_id", run.settings.endpoint.worker.clone()),
        ("agent.venvs_dir", settings.runs.clone()),
        ("agent.journal.path", handover::JOURNAL.to_owned()),
        ("agent.log_file", String::new()),
        ("agent.default_python", String::new()),
        ("agent.python_binary", String::new()),
        ("agent.cuda_version", String::new()),
        ("agent.cudnn_version", String::new()),
    ]);
    if settings.system_site_packages {
        changes.insert("agent.package_manager.system_site_packages", "true".into());
    }
    if settings.caches_environments {
        changes.insert("agent.venvs_cache.path", handover::VENVS_CACHE.to_owned());
    }
    if own_certificates {
        changes.insert("api.verify_certificate", handover::CERTIFICATES.to_owned());
    }
    let git_pass = git.password.as_ref().map(|pass| pass.expose().to_owned());
    changes.extend(git.user.clone().map(|user| ("agent.git_user", user)));
    changes.extend(git_pass.map(|pass| ("agent.git_pass", pass)));
    for mount in mounts {
        changes.extend(mount.tells.map(|key| (key, mount.target.clone())));
    }
    let changes: Vec<_> = changes.into_iter().collect();
    run.settings.config.for_container(&changes)
}

/// Keys and credentials of this user, for git in the container.
fn home_files(run: &Run, settings: &Settings, user: &User) -> Vec<Item> {
    let Some(home) = run.settings.config.in_home("") else {
        return Vec::new();
    };
    let mut items = Vec::new();
    if let Ssh::Keys { folder } = &settings.ssh {
        let into = caches::at_home(folder, user);
        handover::folder_items(&home.join(".ssh"), &into, user, &mut items);
    }
    for name in [".git-credentials", ".gitconfig"] {
        let file = home.join(name);
        if file.is_file() {
            let into = format!("{}/{name}", user.home.trim_end_matches('/'));
            items.push(handover::private_file(&into, file, user));
        }
    }
    items
}

/// Follows the container to its end; says why it was stopped, if it was.
async fn follow_to_the_end(
    run: &Run,
    container: &Container,
    attached: Attached,
) -> Result<(Ended, Option<StopCause>), ContainerError> {
    let Attached { output, mut input } = attached;
    let journal = run.journal.clone();
    let mut reading = tokio::spawn(async move { journal.read_from(output).await });
    let stopped = loop {
        tokio::select! {
            ended = container.wait() => break ended.map(|()| None)?,
            cause = run.stop.requested() => {
                stop(run, container, &mut input, &cause).await?;
                break Some(cause);
            }
            // The agent inside passes it on to the script.
            notice = run.stop.notice() => container.signal(&signal::name(notice)).await,
        }
    };
    let read = tokio::time::timeout(REST_OF_OUTPUT, &mut reading).await;
    let trouble = match read {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(error.to_string()),
        Ok(Err(panic)) => Some(panic.to_string()),
        Err(_) => {
            reading.abort();
            Some("it does not end".to_owned())
        }
    };
    if let Some(trouble) = trouble {
        run.console.say(format!(
            "Note: the container's output could not be read to its end: {trouble}"
        ));
    }
    let ended = container.ended().await?.ok_or(ContainerError::Engine {
        at: "waiting for the container",
        cause: "the engine says that it has ended, and that it runs".into(),
    })?;
    Ok((ended, stopped))
}

/// Asks the inner agent to stop the script as it would be on the host: callback, signal, grace, SIGKILL.
/// One that does not answer, and a second request, end the container at once.
async fn stop(
    run: &Run,
    container: &Container,
    input: &mut Input,
    cause: &StopCause,
) -> Result<(), ContainerError> {
    let settings = &run.settings.stop;
    let callback = match cause {
        StopCause::Server { .. } => settings.callback_limit,
        _ => Duration::ZERO,
    };
    let limit = callback
        .saturating_add(follow::grace(run).await)
        .saturating_add(INNER_GRACE);
    let asked = match serde_json::to_string(cause) {
        Ok(order) => input.line(&order).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = &asked {
        tracing::debug!(%error, "the inner agent does not listen");
    }
    tokio::select! {
        ended = container.wait(), if asked.is_ok() => ended,
        () = tokio::time::sleep(limit), if asked.is_ok() => {
            run.console.say("The container does not end: SIGKILL");
            container.kill().await;
            container.wait().await
        }
        () = run.stop.hurried(), if asked.is_ok() => {
            run.console.say("Asked to stop a second time: SIGKILL at once");
            container.kill().await;
            container.wait().await
        }
        else => {
            container.kill().await;
            container.wait().await
        }
    }
}

/// How the run ended, by the inner agent's own document where it could write one.
async fn outcome(
    run: &Run,
    container: &Container,
    plan: &Plan,
    ended: Ended,
) -> Result<Outcome, ContainerError> {
    let engine = container.engine();
    let get = async |path: &str| archive::get(engine, container.id(), path).await;
    if let Some(document) = get(handover::RESULT).await? {
        let report: Report =
            serde_json::from_slice(&document).map_err(|error| ContainerError::Engine {
                at: "reading how the run ended",
                cause: error.to_string(),
            })?;
        for phase in [
            Phase::CodeReady,
            Phase::EnvironmentReady,
            Phase::ScriptStarted,
            Phase::ScriptEnded,
        ] {
            if let Some(at) = report.times.get(&phase) {
                run.timeline.mark_at(phase, *at);
            }
        }
        return Ok(Outcome::Inside(Arc::new(report)));
    }
    if let Some(said) = get(handover::UNSUITABLE).await? {
        return Err(ContainerError::ImageUnsuitable {
            image: plan.image.clone(),
            cause: handover::why_unsuitable(&String::from_utf8_lossy(&said)),
        });
    }
    if ended.out_of_memory {
        return Err(ContainerError::OutOfMemory);
    }
    Ok(Outcome::Failed {
        stage: Stage::Agent,
        cause: format!(
            "the container was ended from outside (exit code {}): nobody could say how the script ended",
            ended.exit_code
        ),
    })
}
