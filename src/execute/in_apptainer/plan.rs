//! What a run in an Apptainer container will be, decided before anything of it is made.

use std::path::Path;

use crate::container::apptainer::arguments::{self, Caller, Translated};
use crate::container::apptainer::gpus::{self, Granted, Machine};
use crate::container::apptainer::image::{self, Image};
use crate::container::apptainer::limits;
use crate::container::apptainer::program::Program;
use crate::container::error::ContainerError;
use crate::container::run_args::{Host, Pull, RunArgs, RunArgsError, without};
use crate::container::settings::Settings;
use crate::container::user::User;
use crate::execute::container_plan::{self, Chosen};
use crate::execute::job_env::Gpus;
use crate::execute::run::Run;

/// What is decided before anything is made.
pub(super) struct Plan {
    pub program: Program,
    pub chosen: Chosen,
    pub image: Image,
    pub asked: Translated,
    pub gpus: Granted,
    pub pull_always: bool,
    pub user: User,
}

pub(super) async fn plan(
    run: &Run,
    settings: &Settings,
    program: Program,
) -> Result<Plan, ContainerError> {
    let chosen = container_plan::choose_container(run, settings).await?;
    let choice = &chosen.choice;
    let words = without(&chosen.words, |_| false);
    container_plan::say(run, choice, &words, "apptainer");
    let parsed = RunArgs::parse(&words)?;
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let body = parsed.to_create(&Host {
        env: &run.settings.job.inherited,
        cwd: &cwd,
    })?;
    let caller = Caller::this();
    let asked = arguments::translate(&chosen.words, &body, &caller)?;
    if let Some(user) = &settings.user
        && let Err(why) = arguments::is_caller(user, &caller)
    {
        let cause = format!("CLEARML_AGENT_EXEC_USER is {user:?}: {why}");
        return Err(ContainerError::BadArguments { cause });
    }
    for limit in &asked.limits {
        limits::check(limit).map_err(|why| RunArgsError::BadValue {
            flag: "--ulimit".into(),
            value: Some(limit.name.clone()),
            why,
        })?;
    }
    if !asked.without_effect.is_empty() {
        run.console.say(format!(
            "Note: without effect in an Apptainer container: {}",
            asked.without_effect.join(", ")
        ));
    }
    let job = &run.settings.job;
    let gpus = gpus::grant(&gpus::Request {
        asked: container_plan::asked(run, settings),
        is_explicit: job.gpus != Gpus::Inherited,
        cuda: job
            .inherited
            .get("CUDA_VISIBLE_DEVICES")
            .map(String::as_str),
        arguments: &asked.gpus,
        machine: machine(),
    })
    .map_err(ContainerError::Gpus)?;
    if gpus.overrules {
        run.console
            .say("Note: docker argument --gpus is left out: the agent was told which GPUs to use");
    }
    let image = image::image(&choice.image, &cwd);
    let pull = match (&settings.standalone, settings.force_pull) {
        (Some(_), _) => Pull::Never,
        (None, true) => Pull::Always,
        (None, false) => parsed.pull(),
    };
    if let (Image::Address(address), Pull::Never) = (&image, pull) {
        return Err(ContainerError::NotPulled {
            image: address.clone(),
            why: match settings.standalone {
                Some(_) => "--standalone-mode",
                None => "--pull=never",
            },
        });
    }
    let home = run.settings.config.in_home("");
    let home = home.and_then(|home| home.to_str().map(str::to_owned));
    Ok(Plan {
        program,
        image,
        asked,
        gpus,
        pull_always: pull == Pull::Always,
        user: User {
            uid: caller.uid.into(),
            gid: caller.gid.into(),
            home: match home.as_deref().map(|home| home.trim_end_matches('/')) {
                Some(home) if !home.is_empty() => home.to_owned(),
                _ if caller.uid == 0 => "/root".to_owned(),
                _ => "/home/task".to_owned(),
            },
        },
        chosen,
    })
}

fn machine() -> Machine {
    let there = |path: &str| Path::new(path).exists();
    match () {
        () if there("/proc/driver/nvidia/version") => Machine::Nvidia,
        () if there("/dev/kfd") => Machine::Amd,
        () => Machine::None,
    }
}
