//! A run inside an Apptainer container, seen from the host: the run's folder, the container as a child
//! process with the inner agent in it, its output into the journal, stop requests to it, and how it ended.

mod plan;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::plan::{Plan, plan};
use crate::container::apptainer::arguments::Bind;
use crate::container::apptainer::command::{self, Call};
use crate::container::apptainer::failure::failure;
use crate::container::apptainer::folder;
use crate::container::caches::{self, Keyed, Mounted};
use crate::container::error::ContainerError;
use crate::container::handover;
use crate::container::programs::{self, Surroundings};
use crate::container::run_args::RunArgsError;
use crate::container::settings::{Settings, Ssh};
use crate::container::user::User;
use crate::execute::carry_out::Ran;
use crate::execute::container_plan;
use crate::execute::follow::{grace, send_leftovers};
use crate::execute::in_container::around;
use crate::execute::in_container::follow::{INNER_GRACE, reported};
use crate::execute::in_container::parcel::{self, Place, Programs};
use crate::execute::inside::{self, Order};
use crate::execute::outcome::{Outcome, Stage, StopCause};
use crate::execute::run::Run;
use crate::execute::run_dir::{self, RunDir};
use crate::process::{self, Account, Ended, Job, signal};

/// How long Apptainer may take to end before the agent inside has begun.
const BEFORE_IT_BEGINS: Duration = Duration::from_secs(3);

/// From the image to the end of the container. The run's folder is given back to be removed.
pub(super) async fn run(run: &Run, settings: &Settings) -> Ran {
    // All of it is the task's log, as with the Python agent.
    run.journal.release_setup();
    let runs_dir = &run.settings.runs_dir;
    let (outcome, run_dir) = match RunDir::create(runs_dir, &run.task.id) {
        Ok(run_dir) => (attempt(run, settings, run_dir.path()).await, Some(run_dir)),
        Err(error) => {
            let cause = format!("{} (`agent.venvs_dir`): {error}", runs_dir.display());
            (Err(ContainerError::Folder(io::Error::other(cause))), None)
        }
    };
    let outcome = match (outcome, run.stop.cause()) {
        (Ok(outcome), _) => outcome,
        (Err(_), Some(cause)) => Outcome::Stopped(cause),
        (Err(error), None) => Outcome::Failed {
            stage: Stage::Container(error.kind()),
            cause: error.to_string(),
        },
    };
    Ran {
        run_dir,
        ..Ran::from(outcome)
    }
}

async fn attempt(run: &Run, settings: &Settings, dir: &Path) -> Result<Outcome, ContainerError> {
    let (program, uv) = tokio::join!(
        settings.reached.apptainer(&run.settings.job.inherited),
        around::program_for_packages(run)
    );
    let plan = plan(run, settings, program?.clone()).await?;
    tracing::debug!(version = plan.program.version, "Apptainer");
    let caches = mount_caches(run, settings, &plan);
    let around = Surroundings {
        engine_is_local: true,
        in_container: false,
        selinux: false,
    };
    let programs = Programs {
        agent: programs::agent(around),
        uv: uv.map(|uv| programs::uv(uv, around)),
    };
    let command = lay_out(run, settings, &plan, &caches, &programs, dir)
        .await
        .map_err(|error| match error {
            LayOut::Io(error) => ContainerError::Folder(error),
            LayOut::Container(error) => error,
        })?;
    let mut shown = vec![plan.program.path.to_string_lossy().into_owned()];
    shown.extend(command.args.iter().cloned());
    container_plan::say_call(run, &shown, &plan.chosen.choice);
    follow(run, settings, &plan, command, dir).await
}

fn mount_caches(run: &Run, settings: &Settings, plan: &Plan) -> Vec<Mounted> {
    let id = plan.image.id();
    let image = caches::Image {
        id: &id,
        name: &plan.chosen.choice.image,
    };
    // What apt downloads is of use to root alone.
    let of_use = |cache: &&caches::Cache| cache.keyed != Keyed::OneRun || plan.user.uid == 0;
    let mounted = settings.caches.iter().filter(of_use).filter_map(|cache| {
        caches::mount(cache, &image, &plan.user, None)
            .inspect_err(|cause| {
                run.console
                    .say(format!("Note: a cache is not mounted: {cause}"));
            })
            .ok()
    });
    mounted.collect()
}

enum LayOut {
    Io(io::Error),
    Container(ContainerError),
}

impl From<io::Error> for LayOut {
    fn from(error: io::Error) -> Self {
        LayOut::Io(error)
    }
}

impl From<ContainerError> for LayOut {
    fn from(error: ContainerError) -> Self {
        LayOut::Container(error)
    }
}

/// The parts of the run's folder that are the container's.
struct Parts {
    /// [`handover::FOLDER`] in it.
    agent: PathBuf,
    home: PathBuf,
    /// Its `/tmp` and `/var/tmp`.
    work: PathBuf,
}

impl Parts {
    fn make(dir: &Path, home: &str) -> io::Result<Parts> {
        let work = dir.join("work");
        // A home in /tmp: Apptainer mounts that one over it.
        let home = match Path::new(home).strip_prefix("/tmp") {
            Ok(below) => work.join("tmp").join(below),
            Err(_) => dir.join("home"),
        };
        let agent = dir.join("agent");
        folder::private(&work)?;
        // As Apptainer would make them.
        for name in ["tmp", "var_tmp"] {
            folder::with_mode(&work.join(name), 0o1777)?;
        }
        folder::private(&agent)?;
        folder::private(&home)?;
        Ok(Parts { agent, home, work })
    }
}

/// Makes all of it, and the call.
async fn lay_out(
    run: &Run,
    settings: &Settings,
    plan: &Plan,
    caches: &[Mounted],
    programs: &Programs,
    dir: &Path,
) -> Result<process::Command, LayOut> {
    let parts = Parts::make(dir, &plan.user.home)?;
    let place = Place {
        settings,
        mounts: caches,
        user: &plan.user,
        programs,
        script: &plan.chosen.setup_script(settings),
    };
    let variables = variables(run, settings, plan);
    let items = parcel::parcel(run, place, |letter| {
        letter.variables.extend(variables);
        letter.unset.extend(plan.asked.unset.iter().cloned());
        letter
            .unset
            .extend(plan.gpus.unset.iter().map(|name| (*name).to_owned()));
        letter.limits.clone_from(&plan.asked.limits);
        letter.orders_alone = true;
    })?;
    let binds = binds(run, settings, plan, caches, programs, &parts, dir)?;
    let home = home_items(run, settings, &plan.user);
    let folder_of_agent = parts.agent.clone();
    let folder_of_home = parts.home.clone();
    // The programs may have to be copied.
    tokio::task::spawn_blocking(move || {
        folder::place(&folder_of_agent, items)?;
        folder::place(&folder_of_home, home)
    })
    .await
    .map_err(io::Error::other)??;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let home = Bind {
        source: text(&parts.home),
        target: plan.user.home.clone(),
        read_only: false,
        make: false,
    };
    for bind in &binds {
        folder::mount_point(&parts.agent, handover::FOLDER, bind)?;
        folder::mount_point(&parts.home, &plan.user.home, bind)?;
        folder::mount_point(&parts.work.join("tmp"), "/tmp", bind)?;
        folder::mount_point(&parts.work.join("var_tmp"), "/var/tmp", bind)?;
    }
    let call = Call {
        work: &text(&parts.work),
        home: (&home.source, &home.target),
        flags: &plan.asked.flags,
        gpus: &plan.gpus.flags,
        working_dir: plan.asked.working_dir.as_deref(),
        binds: &binds,
        pull_always: plan.pull_always,
        image: plan.image.word(),
        words: inside::words(run, grace(run).await),
    };
    let own_uv_cache = plan.asked.variables.contains_key("UV_CACHE_DIR");
    Ok(process::Command {
        program: plan.program.path.clone(),
        args: call.words(),
        working_dir: std::env::current_dir().unwrap_or_else(|_| "/".into()),
        env: command::environment(
            &run.settings.job.inherited,
            plan.program.brand,
            &run.settings.run,
            (!own_uv_cache).then_some(handover::UV_CACHE),
            plan.gpus.none,
        ),
    })
}

/// What the agent inside gets over the image's own variables.
fn variables(run: &Run, settings: &Settings, plan: &Plan) -> Vec<(String, String)> {
    let mut variables: Vec<(String, String)> = plan
        .asked
        .variables
        .iter()
        .filter(|(name, _)| !settings.variables.contains_key(*name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let own = [
        ("CLEARML_WORKER_ID", run.settings.endpoint.worker.clone()),
        ("CLEARML_DOCKER_IMAGE", plan.chosen.choice.image.clone()),
        ("CLEARML_TASK_ID", run.task.id.clone()),
        ("CLEARML_CONFIG_FILE", handover::CONFIG.to_owned()),
    ];
    let gpus = plan.gpus.variables.iter().cloned();
    variables.extend(
        own.into_iter()
            .chain(gpus)
            .map(|(name, value)| (name.to_owned(), value)),
    );
    if let Some(socket) = settings.ssh.socket(true) {
        variables.push((
            "SSH_AUTH_SOCK".into(),
            socket.to_string_lossy().into_owned(),
        ));
    }
    variables
}

/// Keys and git credentials, relative to the home.
fn home_items(run: &Run, settings: &Settings, user: &User) -> Vec<crate::container::archive::Item> {
    let mut items = parcel::home_files(run, settings, user, true);
    let home = format!("{}/", user.home.trim_matches('/'));
    items.retain_mut(|item| match item.path.strip_prefix(&home) {
        Some(below) => {
            item.path = below.to_owned();
            true
        }
        // The home itself, or `docker_internal_mounts.ssh_folder` elsewhere: see `binds`.
        None => false,
    });
    items
}

/// All that is mounted, what is mounted into another after that one. What docker's arguments mount stays theirs.
fn binds(
    run: &Run,
    settings: &Settings,
    plan: &Plan,
    caches: &[Mounted],
    programs: &Programs,
    parts: &Parts,
    dir: &Path,
) -> Result<Vec<Bind>, LayOut> {
    let bind = |source: String, target: &str, read_only| Bind {
        source,
        target: target.to_owned(),
        read_only,
        make: false,
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut binds = Vec::new();
    for asked in &plan.asked.binds {
        if asked.make && !Path::new(&asked.source).exists() {
            std::fs::create_dir_all(&asked.source).map_err(|error| {
                let why = format!("the folder is not there, and cannot be made: {error}");
                ContainerError::Arguments(RunArgsError::BadValue {
                    flag: "--volume".into(),
                    value: Some(asked.source.clone()),
                    why,
                })
            })?;
        }
        binds.push(asked.clone());
    }
    for (number, fresh) in plan.asked.fresh.iter().enumerate() {
        let folder = dir.join(format!("volume-{number}"));
        folder::with_mode(&folder, fresh.mode)?;
        binds.push(bind(text(&folder), &fresh.target, false));
    }
    if !plan.asked.hosts.is_empty() {
        let known = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let file = dir.join("hosts");
        std::fs::write(&file, format!("{known}\n{}\n", plan.asked.hosts.join("\n")))?;
        binds.push(bind(text(&file), "/etc/hosts", false));
    }
    let taken: Vec<String> = binds
        .iter()
        .map(|bind| bind.target.trim_end_matches('/').to_owned())
        .collect();
    let mut add = |more: Bind| {
        if !taken.contains(&more.target) {
            binds.push(more);
        }
    };
    add(bind(text(&parts.agent), handover::FOLDER, false));
    for (file, target) in programs.mounted() {
        add(bind(file, target, true));
    }
    for cache in caches {
        add(bind(cache.source.clone(), &cache.target, false));
    }
    match &settings.ssh {
        Ssh::Agent { socket, .. } => add(bind(text(socket), &text(socket), false)),
        Ssh::Keys { folder: inside } => {
            let target = caches::at_home(inside, &plan.user);
            let keys = run
                .settings
                .config
                .in_home(".ssh")
                .filter(|keys| keys.is_dir());
            let at_home = Path::new(&target).starts_with(&plan.user.home);
            if let Some(keys) = keys.filter(|_| !at_home) {
                add(bind(text(&keys), &target, true));
            }
        }
        Ssh::None => {}
    }
    Ok(binds)
}

/// The container from its start to its end.
async fn follow(
    run: &Run,
    settings: &Settings,
    plan: &Plan,
    command: process::Command,
    dir: &Path,
) -> Result<Outcome, ContainerError> {
    if run.stop.cause().is_some() {
        return Err(ContainerError::Stopped);
    }
    let broken = |cause: String| ContainerError::ApptainerBroken {
        program: plan.program.path.display().to_string(),
        cause,
    };
    let (reader, orders) = io::pipe().map_err(|error| broken(error.to_string()))?;
    let (mut job, output) =
        process::spawn_with(command, reader.into()).map_err(|error| broken(error.to_string()))?;
    run.script.started(job.pid());
    let mut inner = Inner {
        orders,
        letter: dir.join("agent").join(handover::LETTER),
    };
    container_plan::write_back(run, plan.chosen.choice.write_back.as_ref()).await;
    tidy_up(run, settings);
    let leftovers = tokio::spawn(send_leftovers(
        run.session.clone(),
        run.settings.leftovers(),
    ));
    let ending = async {
        loop {
            tokio::select! {
                ended = job.wait() => break (ended, None),
                cause = run.stop.requested() => {
                    break (stop(run, &mut job, &mut inner, &cause).await, Some(cause));
                }
                notice = run.stop.notice() => {
                    inner.say(&Order::Notice { notice });
                }
            }
        }
    };
    let (read, (ended, stopped)) = tokio::join!(run.journal.read_from(output), ending);
    // What is not sent by now, the next run sends.
    leftovers.abort();
    if let Err(error) = read {
        run.console.say(format!(
            "Note: the container's output could not be read to its end: {error}"
        ));
    }
    let said = run.journal.last_lines();
    let said: Vec<&str> = said.iter().map(String::as_str).collect();
    let account = job.account(ended, &said).await;
    match stopped {
        Some(cause) => Ok(Outcome::Stopped(cause)),
        None => outcome(run, plan, (ended, account), inner.has_begun(), &said, dir),
    }
}

/// What earlier runs left, beside this one.
fn tidy_up(run: &Run, settings: &Settings) {
    let caches = settings.caches.clone();
    let runs_dir = run.settings.runs_dir.clone();
    tokio::task::spawn_blocking(move || {
        run_dir::remove_leftovers(&runs_dir);
        for cache in &caches {
            caches::tidy(cache, &|folder| {
                run_dir::remove_leftovers(&folder.join("runs"));
            });
        }
    });
}

/// The agent inside, as far as it can be spoken to.
struct Inner {
    orders: io::PipeWriter,
    /// It takes the letter away as the first thing.
    letter: PathBuf,
}

impl Inner {
    fn has_begun(&self) -> bool {
        !self.letter.exists()
    }

    /// Whether it could be said. An order is short: there is always room for it in the pipe.
    fn say(&mut self, order: &Order) -> bool {
        let said = serde_json::to_string(order)
            .map_err(io::Error::from)
            .and_then(|order| writeln!(self.orders, "{order}"));
        if let Err(error) = &said {
            tracing::debug!(%error, "the inner agent does not listen");
        }
        said.is_ok()
    }
}

/// Asks the inner agent to stop the script as it would be on the host: callback, signal, grace, SIGKILL.
/// One that does not answer, and a second request, end the container at once; one that has not begun is
/// an image on its way.
async fn stop(run: &Run, job: &mut Job, inner: &mut Inner, cause: &StopCause) -> Ended {
    if !inner.has_begun() {
        return job
            .stop(signal::TERM, std::future::ready(BEFORE_IT_BEGINS))
            .await;
    }
    let callback = match cause {
        StopCause::Server { .. } => run.settings.stop.callback_limit,
        _ => Duration::ZERO,
    };
    let grace = grace(run).await;
    let limit = callback.saturating_add(grace).saturating_add(INNER_GRACE);
    let order = Order::Stop {
        cause: cause.clone(),
        grace,
    };
    if inner.say(&order) {
        tokio::select! {
            ended = job.wait() => return ended,
            () = tokio::time::sleep(limit) => run.console.say("The container does not end: SIGKILL"),
            () = run.stop.hurried() => run.console.say("Asked to stop a second time: SIGKILL at once"),
        }
    }
    job.stop(signal::KILL, std::future::ready(Duration::ZERO))
        .await
}

/// How the run ended, by the inner agent's own document where it could write one.
fn outcome(
    run: &Run,
    plan: &Plan,
    (ended, account): (Ended, Account),
    has_begun: bool,
    said: &[&str],
    dir: &Path,
) -> Result<Outcome, ContainerError> {
    let read = |path: &str| {
        let below = path
            .trim_start_matches(handover::FOLDER)
            .trim_start_matches('/');
        std::fs::read(dir.join("agent").join(below)).ok()
    };
    let image = &plan.chosen.choice.image;
    if let Some(document) = read(handover::RESULT) {
        return reported(run, &document);
    }
    if let Some(said) = read(handover::UNSUITABLE) {
        return Err(ContainerError::ImageUnsuitable {
            image: image.clone(),
            cause: handover::why_unsuitable(&String::from_utf8_lossy(&said)),
        });
    }
    let how = match ended {
        Ended::Exited { code } => format!("exit code {code}"),
        Ended::Signalled { signal } => signal::name(signal),
    };
    match (has_begun, account.death) {
        (false, None) => Err(failure(said, image, &how)),
        (_, Some(death)) => Ok(Outcome::of_script(ended, Some(death))),
        (true, None) => Ok(Outcome::Failed {
            stage: Stage::Agent,
            cause: format!(
                "the container was ended from outside ({how}): nobody could say how the script ended"
            ),
        }),
    }
}
