//! What a run in a container is to be: image, arguments, name and scripts, from the task, the
//! configuration and the machine; and what of it the task is told.

use std::collections::BTreeMap;

use bollard::models::ContainerCreateBody;
use serde_json::Value;

use super::job_env::{Gpus, Variables};
use super::not_run::NotRun;
use super::run::Run;
use super::settings::SettingsError;
use crate::api::{ApiError, Session, queues, tasks};
use crate::container::address::DockerConfig;
use crate::container::apptainer::arguments::{Caller, translate};
use crate::container::choice::{self, Choice, Facts, Request, choose};
use crate::container::engine::Engine;
use crate::container::error::ContainerError;
use crate::container::gpus::{self, Asked};
use crate::container::name;
use crate::container::run_args::{self, Host, Pull, RunArgs, Word, flags, without};
use crate::container::settings::{ContainerRuntime, Settings};

/// All that is decided before the engine is asked.
#[derive(Debug)]
pub(super) struct Plan {
    pub image: String,
    pub arguments: RunArgs,
    /// What the arguments come to.
    pub body: ContainerCreateBody,
    pub name: Option<String>,
    /// What the task's container section is to become.
    pub write_back: Option<choice::Container>,
    pub pull: Pull,
    /// `NVIDIA_VISIBLE_DEVICES`, where it is to be set.
    pub visible_devices: Option<String>,
    /// The configuration's lines and the task's.
    pub setup_script: String,
}

/// What can be known before the task is touched: whether the typed arguments are ones, and whether there
/// is an engine.
pub(super) async fn check(settings: &Settings, env: &Variables) -> Result<(), NotRun> {
    let option = settings.runtime.option();
    if let Some((first, rest)) = settings.words.split_first() {
        let usage = |cause: String| {
            let cause = format!(
                "{option}: {cause}. The image comes first, docker run's flags after it: \
                 {option} \"IMAGE --ipc=host\""
            );
            NotRun::Settings(SettingsError::Usage(cause))
        };
        let words = run_args::split(first).map_err(|error| usage(error.to_string()))?;
        let mut words = words.into_iter();
        match words.next() {
            None => return Err(usage("there is no image".into())),
            Some(image) if image.starts_with('-') => {
                return Err(usage(format!("{image:?} is no image")));
            }
            Some(_) => {}
        }
        let arguments: Vec<String> = words.chain(rest.iter().cloned()).collect();
        let parsed = RunArgs::parse(&arguments).map_err(|error| usage(error.to_string()))?;
        if settings.runtime == ContainerRuntime::Apptainer {
            let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
            let translated = parsed
                .to_create(&Host { env, cwd: &cwd })
                .and_then(|body| translate(&flags(&arguments)?, &body, &Caller::this()));
            translated.map_err(|error| usage(error.to_string()))?;
        }
    }
    if settings.runtime == ContainerRuntime::Apptainer {
        let found = settings.reached.apptainer(env).await;
        return found.map(drop).map_err(NotRun::Container);
    }
    let config = DockerConfig::read(env);
    let connected = settings.reached.engine(env, &config).await;
    connected.map(drop).map_err(NotRun::Container)
}

/// Image and arguments, whatever runs the container.
pub(super) struct Chosen {
    pub choice: Choice,
    pub words: Vec<Word>,
    document: Value,
}

impl Chosen {
    /// The configuration's lines and the task's.
    pub fn setup_script(&self, settings: &Settings) -> String {
        let lines = settings.scripts.iter().chain(&self.choice.setup_script);
        lines.cloned().collect::<Vec<_>>().join("\n")
    }
}

pub(super) async fn choose_container(
    run: &Run,
    settings: &Settings,
) -> Result<Chosen, ContainerError> {
    let asking = Known::ask(run, settings);
    let known = tokio::select! {
        known = asking => known.map_err(|error| ContainerError::Task(error.to_string()))?,
        _ = run.stop.requested() => return Err(ContainerError::Stopped),
    };
    let env = &run.settings.job.inherited;
    let option = settings.runtime.option();
    let choice = choose(&Request {
        option,
        command_line: &settings.words,
        task: &known.facts,
        settings: &settings.choice,
        env,
        advanced: run.session.has_feature_set("advanced").await,
        template: &|name| known.value_of(name, run),
    })?;
    let words = flags(&choice.arguments)?;
    hide_variables(run, settings, &words);
    for note in &choice.notes {
        run.console.say(format!("Note: {note}"));
    }
    if !settings.words.is_empty() && !choice.is_default {
        run.console.say(format!(
            "Note: {option} {} is not used: the task names its own image ({}). Clear that in the task, or set \
             agent.disable_task_docker_override",
            settings.words.join(" "),
            choice.image
        ));
    }
    Ok(Chosen {
        choice,
        words,
        document: known.document,
    })
}

pub(super) async fn plan(
    run: &Run,
    settings: &Settings,
    engine: &Engine,
) -> Result<Plan, ContainerError> {
    let env = &run.settings.job.inherited;
    let chosen = choose_container(run, settings).await?;
    let setup_script = chosen.setup_script(settings);
    let Chosen {
        choice,
        words,
        document,
    } = chosen;
    let mut asked = asked(run, settings);
    if asked.devices.is_none() {
        asked.driver = engine.has_nvidia().await;
    }
    let granted = gpus::grant(asked);
    let (words, use_ours, left_out) = gpus::apply(&granted, words);
    if let Some(word) = left_out {
        run.console.say(format!(
            "Note: docker argument {} is left out: the agent was told which GPUs to use",
            word.flag
        ));
    }
    let mut arguments = without(&words, |_| false);
    if use_ours {
        arguments.splice(0..0, granted.words.iter().cloned());
    }
    say(run, &choice, &arguments, "docker");
    let mut call = vec!["docker".to_owned(), "run".to_owned()];
    call.extend(arguments.iter().cloned());
    call.push(choice.image.clone());
    say_call(run, &call, &choice);
    let parsed = RunArgs::parse(&arguments)?;
    if !parsed.without_effect().is_empty() {
        run.console.say(format!(
            "Note: without effect for a task: {}",
            parsed.without_effect().join(", ")
        ));
    }
    let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
    let body = parsed.to_create(&Host { env, cwd: &cwd })?;
    let name = match parsed.name() {
        Some(name) => Some(name.to_owned()),
        None => container_name(run, settings, &document),
    };
    Ok(Plan {
        image: choice.image,
        write_back: choice.write_back,
        pull: match (&settings.standalone, settings.force_pull) {
            (Some(_), _) => Pull::Never,
            (None, true) => Pull::Always,
            (None, false) => parsed.pull(),
        },
        body,
        arguments: parsed,
        name,
        visible_devices: granted.visible,
        setup_script,
    })
}

/// What only the server knows.
struct Known {
    document: Value,
    facts: Facts,
    queue_name: Option<String>,
}

impl Known {
    async fn ask(run: &Run, settings: &Settings) -> Result<Known, ApiError> {
        let document = tasks::document(&run.session, &run.task.id).await?;
        // Only rules ask for the project's name, only templates for the queue's.
        let project = document["project"].as_str().unwrap_or_default();
        let project_name = match settings.choice.rules.is_empty() {
            true => String::new(),
            false => crate::api::projects::name(&run.session, project).await?,
        };
        let facts = Facts::of_document(&document, &project_name);
        const QUEUE_NAME: &str = "CLEARML_QUEUE_NAME";
        let texts = settings
            .choice
            .extra_arguments
            .iter()
            .chain(&settings.choice.default_arguments)
            .chain(&settings.words)
            .chain([&facts.container.arguments, &facts.docker_cmd]);
        let queue_name = match texts.into_iter().any(|text| text.contains(QUEUE_NAME)) {
            true => queue_name(&run.session, &document).await?,
            false => None,
        };
        Ok(Known {
            document,
            facts,
            queue_name,
        })
    }

    /// What `${CLEARML_NAME}` stands for.
    fn value_of(&self, name: &str, run: &Run) -> Option<String> {
        match name {
            "QUEUE_NAME" => self.queue_name.clone(),
            "QUEUE_ID" => text_at(&self.document, "execution.queue"),
            "WORKER_ID" => Some(run.settings.endpoint.worker.clone()),
            _ => text_at(&self.document, name.strip_prefix("TASK.")?),
        }
    }
}

async fn queue_name(session: &Session, document: &Value) -> Result<Option<String>, ApiError> {
    let Some(id) = text_at(document, "execution.queue") else {
        return Ok(None);
    };
    let queues = queues::get_all(session).await?;
    let queue = queues.into_iter().find(|queue| queue.id == id);
    Ok(queue.map(|queue| queue.name))
}

/// A field of the task's document, by its dotted path; numbers are places in lists.
fn text_at(document: &Value, path: &str) -> Option<String> {
    let found = path
        .split('.')
        .try_fold(document, |value, step| match value {
            Value::Array(items) => items.get(step.parse::<usize>().ok()?),
            other => other.get(step),
        })?;
    match found {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// Variables among the arguments whose names say that they are secret are so everywhere.
fn hide_variables(run: &Run, settings: &Settings, words: &[Word]) {
    let variables: Vec<(String, String)> = words
        .iter()
        .filter(|word| word.name == "env")
        .filter_map(|word| word.value.as_deref()?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    run.settings.mask.extend(|secrets| {
        let pairs = variables.iter().map(|(name, value)| (name, value));
        secrets.add_environment(pairs, &settings.hidden_variables, &|path| {
            std::path::Path::new(path).exists()
        });
    });
}

pub(super) fn asked<'a>(run: &'a Run, settings: &Settings) -> Asked<'a> {
    let env = &run.settings.job.inherited;
    let visible = || {
        let of = |name: &str| env.get(name).map(|v| v.trim()).filter(|v| !v.is_empty());
        of("NVIDIA_VISIBLE_DEVICES").or_else(|| of("CUDA_VISIBLE_DEVICES"))
    };
    Asked {
        devices: match &run.settings.job.gpus {
            Gpus::Inherited => visible(),
            Gpus::None => Some("none"),
            Gpus::All => Some("all"),
            Gpus::Only(list) => Some(list),
        },
        variable_only: settings.gpus_by_variable,
        driver: false,
    }
}

/// In the Python agent's words: other tools look for them.
pub(super) fn say(run: &Run, choice: &Choice, arguments: &[String], runtime: &str) {
    let default = if choice.is_default { "default " } else { "" };
    run.console.say(format!(
        "Running Task {} inside {default}{runtime}: {} arguments: {arguments:?}",
        run.task.id, choice.image
    ));
    if !choice.setup_script.is_empty() {
        run.console.say(format!(
            "custom_setup_bash_script:\n{}",
            choice.setup_script.join("\n")
        ));
    }
}

/// The command that does the same.
pub(super) fn say_call(run: &Run, words: &[String], choice: &Choice) {
    run.console.say(format!(
        "Executing: {} (image of {})",
        at_a_shell(words),
        choice.why
    ));
}

/// What could be typed there.
fn at_a_shell(words: &[String]) -> String {
    let words = words.iter().map(|word| shlex::try_quote(word));
    words.filter_map(Result::ok).collect::<Vec<_>>().join(" ")
}

/// Records the container in the task, once it runs: one that cannot would only be in the way.
pub(super) async fn write_back(run: &Run, container: Option<&choice::Container>) {
    let Some(container) = container else {
        return;
    };
    let choice::Container {
        image,
        arguments,
        setup_shell_script,
    } = container;
    let id = &run.task.id;
    let written = tasks::set_container(&run.session, id, image, arguments, setup_shell_script);
    if let Err(error) = written.await {
        run.console.say(format!(
            "Note: the container is not recorded in the task: {error}"
        ));
    }
}

/// `agent.docker_container_name_format`. A format that gives no name is said, and left out, as the Python
/// agent does.
fn container_name(run: &Run, settings: &Settings, document: &Value) -> Option<String> {
    let format = settings.name_format.as_deref()?;
    let random = uuid::Uuid::new_v4().simple().to_string();
    let letters = random.bytes().map(|b| char::from(b'a' + (b % 26)));
    let mut fields = BTreeMap::from([
        ("task_id".to_owned(), name::cleaned(&run.task.id)),
        (
            "worker_id".to_owned(),
            name::cleaned(&run.settings.endpoint.worker),
        ),
        ("rand_string".to_owned(), letters.collect()),
    ]);
    for (field, path) in &settings.name_fields {
        let value = text_at(document, path).unwrap_or_else(|| "None".to_owned());
        fields.insert(field.clone(), value);
    }
    match name::filled(format, &fields) {
        Ok(name) => Some(name),
        Err(cause) => {
            run.console.say(format!(
                "Note: agent.docker_container_name_format is not used: {cause}"
            ));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_one_that_a_shell_understands() {
        for (words, expected) in [
            (&["docker", "run", "img"][..], "docker run img"),
            (&["docker", "-e", "A=b c"], "docker -e 'A=b c'"),
        ] {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(at_a_shell(&words), expected);
        }
    }

    #[test]
    fn fields_of_the_task_are_found_by_path() {
        let task = serde_json::json!({"tags": ["a", "b"], "script": {"branch": "main"}, "n": 3});
        for (path, expected) in [
            ("script.branch", Some("main")),
            ("tags.1", Some("b")),
            ("n", Some("3")),
            ("tags", None),
            ("tags.9", None),
            ("script.none.x", None),
        ] {
            assert_eq!(text_at(&task, path).as_deref(), expected, "{path}");
        }
    }
}
