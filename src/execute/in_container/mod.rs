//! A run inside a container, seen from the host: the image, the container with the inner agent in it,
//! its output into the journal, stop requests to it, and how it ended.

pub(super) mod around;
pub(super) mod follow;
pub(super) mod parcel;
mod ports;

use std::path::{Path, PathBuf};

use super::container_plan::{self, Plan};
use super::follow::{grace, send_leftovers};
use super::inside;
use super::outcome::{Outcome, Stage};
use super::run::Run;
use super::run_dir;
use crate::container::address::DockerConfig;
use crate::container::archive;
use crate::container::caches::{self, Mounted};
use crate::container::engine::Engine;
use crate::container::error::ContainerError;
use crate::container::handover;
use crate::container::image::{self, Wanted};
use crate::container::lifecycle::{Attached, Container};
use crate::container::owner::{self, Agent};
use crate::container::programs::{self, Surroundings};
use crate::container::proxies;
use crate::container::settings::Settings;
use crate::container::user::User;

use parcel::{Place, Programs};
use ports::Ports;

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
    let config = DockerConfig::read(env);
    let engine = tokio::select! {
        engine = settings.reached.engine(env, &config) => engine?.clone(),
        _ = run.stop.requested() => return Err(ContainerError::Stopped),
    };
    let mut plan = container_plan::plan(run, settings, &engine).await?;
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
        offline: settings.standalone.is_some(),
        platform: plan.arguments.platform(),
        config: &config,
        env,
    };
    let token = run.stop.token();
    let (image, uv) = tokio::join!(
        image::ensure(&engine, &wanted, &run.console, token),
        around::program_for_packages(run)
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
        None => around::look_up(&engine, &plan.image, &user).await?,
    };
    let image = caches::Image {
        id: &image_id,
        name: &plan.image,
    };
    let mounts = around::mount_caches(run, settings, &engine, &image, &looked_up);
    let around = Surroundings::look(engine.is_local());
    let programs = Programs {
        agent: programs::agent(around),
        uv: uv.map(|uv| programs::uv(uv, around)),
    };
    let mut ports = Ports::look(run, settings, &plan, &engine).await;
    loop {
        if let Some(ports) = &ports {
            ports.settle(run, &mut plan).await?;
        }
        let made = Made {
            settings,
            mounts: &mounts,
            user: &looked_up,
            programs: &programs,
            me: me.as_ref(),
            host_ip: ports.as_ref().and_then(Ports::host_ip),
        };
        let ended = create_and_follow(run, &engine, &plan, &made).await;
        // Somebody was quicker, or what holds it cannot be seen from here.
        if let (Err(ContainerError::PortTaken { cause }), Some(ports)) = (&ended, &mut ports)
            && ports.learn(cause, &plan)
        {
            go_on(run)?;
            continue;
        }
        return ended;
    }
}

/// All that a container is made of, beside its plan.
struct Made<'a> {
    settings: &'a Settings,
    mounts: &'a [Mounted],
    user: &'a User,
    programs: &'a Programs,
    me: Option<&'a Agent>,
    /// The address of the engine's machine, for containers that publish ports.
    host_ip: Option<&'a str>,
}

async fn create_and_follow(
    run: &Run,
    engine: &Engine,
    plan: &Plan,
    made: &Made<'_>,
) -> Result<Outcome, ContainerError> {
    let id_file = IdFile::of(plan)?;
    let words = inside::words(run, grace(run).await);
    let body = around::complete(run, plan, engine, made, words);
    let container = Container::create(
        engine,
        plan.name.as_deref(),
        plan.arguments.platform(),
        body,
    )
    .await?;
    tracing::debug!(id = container.id(), "container created");
    let place = Place {
        settings: made.settings,
        mounts: made.mounts,
        user: made.user,
        programs: made.programs,
        script: &plan.setup_script,
    };
    let outcome = async {
        connect_networks(&container, plan).await?;
        let attached = fill_and_start(run, &container, plan, place).await?;
        id_file.write(&container)?;
        follow_on(run, &container, plan, made.settings, attached).await
    }
    .await;
    if let Err(cause) = container.remove().await {
        run.console
            .say(format!("Note: the container could not be removed: {cause}"));
    }
    outcome
}

/// `--cidfile`. Docker, too, refuses where the file is there already.
struct IdFile(Option<PathBuf>);

impl IdFile {
    fn of(plan: &Plan) -> Result<IdFile, ContainerError> {
        let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let file = IdFile(plan.arguments.cid_file(&cwd));
        match &file.0 {
            Some(path) if path.exists() => Err(IdFile::bad(path, "it is there already")),
            _ => Ok(file),
        }
    }

    fn write(&self, container: &Container) -> Result<(), ContainerError> {
        let Some(path) = &self.0 else {
            return Ok(());
        };
        let written = std::fs::File::create_new(path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, container.id().as_bytes()));
        written.map_err(|error| IdFile::bad(path, &error.to_string()))
    }

    fn bad(path: &Path, why: &str) -> ContainerError {
        ContainerError::BadArguments {
            cause: format!("--cidfile {}: {why}", path.display()),
        }
    }
}

/// Networks after the first, which the engine takes one by one.
async fn connect_networks(container: &Container, plan: &Plan) -> Result<(), ContainerError> {
    for (network, endpoint) in plan.arguments.further_networks()? {
        container.join(&network, endpoint).await?;
    }
    Ok(())
}

async fn fill_and_start(
    run: &Run,
    container: &Container,
    plan: &Plan,
    place: Place<'_>,
) -> Result<Attached, ContainerError> {
    let engine = container.engine();
    let home = parcel::home_files(run, place.settings, place.user, engine.is_local());
    let items = parcel::parcel(run, place, |_| ())?;
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
    Ok(attached)
}

/// The container runs.
async fn follow_on(
    run: &Run,
    container: &Container,
    plan: &Plan,
    settings: &Settings,
    attached: Attached,
) -> Result<Outcome, ContainerError> {
    container_plan::write_back(run, plan.write_back.as_ref()).await;
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
    let followed = follow::follow_to_the_end(run, container, attached).await;
    // What is not sent by now, the next run sends.
    leftovers.abort();
    let (ended, stopped) = followed?;
    if let Some(cause) = stopped {
        return Ok(Outcome::Stopped(cause));
    }
    follow::outcome(run, container, plan, ended).await
}
