//! Which image a task's container is made of, and with which `docker run` arguments: `--docker`, the
//! task's `container` section, the rules and defaults of `clearml.conf`, in the Python agent's order.
//! A function of values: what it is told of task and configuration it decides by, and nothing is
//! asked or written here.

mod arguments;
mod packages;
mod rules;
mod settings;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use rules::Rule;
pub use settings::Settings;

use super::run_args::{RunArgsError, split};
use crate::config::Variables;

/// What is asked.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// `--docker`, or the option in its place.
    pub option: &'static str,
    /// The words after it: image and arguments, also as one word; none where it stands alone.
    pub command_line: &'a [String],
    pub task: &'a Facts,
    pub settings: &'a Settings,
    /// The agent's environment.
    pub env: &'a Variables,
    /// Whether the server has the feature set `advanced`: the Python agent's built-in rules hold
    /// there alone.
    pub advanced: bool,
    /// The value of what `${CLEARML_NAME}` names, without the prefix: `QUEUE_NAME`, `TASK.project`.
    pub template: &'a dyn Fn(&str) -> Option<String>,
}

/// The `container` section of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    pub image: String,
    /// One text, as a shell splits it.
    pub arguments: String,
    pub setup_shell_script: String,
}

/// What the decision needs to know of the task. Texts are empty where the task has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub container: Container,
    /// `execution.docker_cmd`: image and arguments of tasks that are older than the section.
    pub docker_cmd: String,
    pub repository: String,
    pub branch: String,
    pub binary: String,
    pub project_id: String,
    /// The full name; only rules ask for it.
    pub project_name: String,
    pub user_id: String,
    pub tags: Vec<String>,
    /// `script.requirements.pip` and `.conda`
    pub pip: String,
    pub conda: String,
}

impl Facts {
    /// From the server's document of the task. The project's name is not in it.
    pub fn of_document(task: &Value, project_name: &str) -> Facts {
        let text = |path: &str| match task.pointer(path) {
            Some(Value::String(text)) => text.trim().to_owned(),
            Some(Value::Array(lines)) => {
                let lines: Vec<&str> = lines.iter().filter_map(Value::as_str).collect();
                lines.join("\n")
            }
            _ => String::new(),
        };
        let tags = task.get("tags").and_then(Value::as_array);
        let tags = tags.into_iter().flatten().filter_map(Value::as_str);
        Facts {
            container: Container {
                image: text("/container/image"),
                arguments: text("/container/arguments"),
                setup_shell_script: text("/container/setup_shell_script"),
            },
            docker_cmd: text("/execution/docker_cmd"),
            repository: text("/script/repository"),
            branch: text("/script/branch"),
            binary: text("/script/binary"),
            project_id: text("/project"),
            project_name: project_name.to_owned(),
            user_id: text("/user"),
            tags: tags.map(str::to_owned).collect(),
            pip: text("/script/requirements/pip"),
            conda: text("/script/requirements/conda"),
        }
    }
}

/// What was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    pub image: String,
    /// Words for [`super::run_args::RunArgs::parse`]: the task's, the configuration's, what is
    /// forbidden left out.
    pub arguments: Vec<String>,
    /// The set-up script's lines that are commands, the configuration's own not among them.
    pub setup_script: Vec<String>,
    /// Where the image comes from, for people: "the task's container section".
    pub why: String,
    /// The agent's default and not the task's own (the log's "default docker").
    pub is_default: bool,
    /// What the task's `container` section is to become on the server.
    pub write_back: Option<Container>,
    /// What a person should know: arguments that were left out, rules that can't be read.
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    #[error(
        "no container image: give one with `--docker IMAGE`, in the task's container section, or as \
         agent.default_docker.image in clearml.conf"
    )]
    NoImage,
    #[error("{place}: {error}")]
    Arguments {
        place: &'static str,
        error: RunArgsError,
    },
    #[error("{key}: {why}")]
    Setting { key: String, why: String },
}

const TASK: &str = "the task's container section";
const OLD_TASK: &str = "the task's execution.docker_cmd";

/// Image and arguments that apply where the task has none of its own.
struct Fallback {
    image: String,
    arguments: Vec<String>,
    place: &'static str,
}

/// The image and the arguments of the task's container.
pub fn choose(request: &Request<'_>) -> Result<Choice, ChoiceError> {
    let Request { task, settings, .. } = *request;
    let mut notes = Vec::new();
    let default = default(request)?;
    let (own, own_place) = own(task)?;

    // A rule counts for a task without an image, and one that says `force_container_rules` for all;
    // `--docker IMAGE` leaves the first kind out.
    let overridden = !request.command_line.is_empty();
    let skip_rules = overridden && !own.image.is_empty();
    let rule = match skip_rules {
        true => None,
        false => rules::first(settings, task, request.advanced, &mut notes),
    };
    let rule = rule.filter(|rule| rule.force || (own.image.is_empty() && !overridden));
    let ruled = rule.as_ref().map(|rule| rule.applied(&own));
    let container = ruled.as_ref().unwrap_or(&own);

    let is_default = settings.task_override_disabled || container.image.is_empty();
    let (image, own_arguments, arguments_place, why) = if is_default {
        let own_is_left_out = own.image.is_empty() && !own.arguments.is_empty();
        if settings.task_override_disabled && !own.image.is_empty() {
            notes.push(format!(
                "the task's own container ({}) is not used: agent.disable_task_docker_override",
                own.image
            ));
        } else if own_is_left_out {
            notes.push(format!(
                "the task's container arguments are not used: it names no image, so that image and \
                 arguments of {} apply",
                default.place
            ));
        }
        (
            default.image.clone(),
            default.arguments.clone(),
            default.place,
            default.place.to_owned(),
        )
    } else {
        let (place, why) = match &rule {
            Some(rule) => ("agent.default_docker.match_rules", rule.to_string()),
            None => (own_place, own_place.to_owned()),
        };
        let words = words(place, &container.arguments)?;
        (container.image.clone(), words, place, why)
    };
    if image.trim().is_empty() {
        return Err(ChoiceError::NoImage);
    }

    let written = match (is_default, &rule) {
        (true, _) => Some(Container {
            image: image.clone(),
            arguments: joined(&own_arguments),
            setup_shell_script: container.setup_shell_script.clone(),
        }),
        (false, Some(rule)) if rule.update_back_task.unwrap_or(settings.update_back_task) => {
            ruled.clone()
        }
        (false, _) => None,
    };
    let arguments = arguments::merge(request, arguments_place, &own_arguments, &mut notes)?;
    Ok(Choice {
        image: image.trim().to_owned(),
        arguments,
        setup_script: commands(&container.setup_shell_script),
        why,
        is_default,
        write_back: written.filter(|written| *written != task.container),
        notes,
    })
}

/// `--docker IMAGE ARGUMENTS`, else `CLEARML_DOCKER_IMAGE`, else the configuration. An image that
/// comes without arguments has the configuration's.
fn default(request: &Request<'_>) -> Result<Fallback, ChoiceError> {
    let variable = ["CLEARML_DOCKER_IMAGE", "TRAINS_DOCKER_IMAGE"]
        .into_iter()
        .find_map(|name| request.env.get(name).filter(|text| !text.is_empty()));
    let (text, place) = match (request.command_line.first(), variable) {
        (Some(word), _) => (word.as_str(), request.option),
        (None, Some(text)) => (text.as_str(), "CLEARML_DOCKER_IMAGE"),
        (None, None) => (
            request.settings.default_image.as_str(),
            "agent.default_docker",
        ),
    };
    let mut words = words(place, text)?.into_iter();
    let image = words.next().unwrap_or_default();
    let mut arguments: Vec<String> = words.collect();
    arguments.extend(request.command_line.iter().skip(1).cloned());
    if arguments.is_empty() {
        arguments.clone_from(&request.settings.default_arguments);
    }
    Ok(Fallback {
        image,
        arguments,
        place,
    })
}

/// The task's own container, and where it stands in the task.
fn own(task: &Facts) -> Result<(Container, &'static str), ChoiceError> {
    let section = &task.container;
    if task.docker_cmd.is_empty() || !section.image.is_empty() || !section.arguments.is_empty() {
        return Ok((section.clone(), TASK));
    }
    let words = words(OLD_TASK, &task.docker_cmd)?;
    let (image, arguments) = match words.split_first() {
        Some((image, arguments)) => (image.clone(), joined(arguments)),
        None => (String::new(), String::new()),
    };
    let container = Container {
        image,
        arguments,
        setup_shell_script: section.setup_shell_script.clone(),
    };
    Ok((container, OLD_TASK))
}

fn words(place: &'static str, text: &str) -> Result<Vec<String>, ChoiceError> {
    split(text).map_err(|error| ChoiceError::Arguments { place, error })
}

/// One text that a shell splits into the same words. (A NUL, which no argument can hold, is left out.)
fn joined(words: &[String]) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let quoted = words.iter().map(|word| match word.replace('\0', "") {
        word if !word.is_empty() && word.chars().all(is_plain) => word,
        word => match shlex::try_quote(&word) {
            Ok(quoted) => quoted.into_owned(),
            Err(_) => word,
        },
    });
    quoted.collect::<Vec<_>>().join(" ")
}

fn commands(script: &str) -> Vec<String> {
    let lines = script.lines().map(str::trim_end);
    lines
        .filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
        .map(str::to_owned)
        .collect()
}
