//! What `clearml.conf` and the environment say about images and arguments.

use regex::Regex;
use serde_json::Value;

use super::rules::{self, Rule};
use super::{ChoiceError, split};
use crate::config::{Config, Variables, bool_of};

#[derive(Debug, Clone)]
pub struct Settings {
    /// `agent.default_docker.image`
    pub default_image: String,
    /// `agent.default_docker.arguments`
    pub default_arguments: Vec<String>,
    /// `agent.default_docker.update_back_task`: a container that a rule gave is written to the task.
    pub update_back_task: bool,
    /// `agent.default_docker.match_rules`
    pub rules: Vec<Rule>,
    /// `CLEARML_AGENT_EXTRA_DOCKER_ARGS`, else `agent.extra_docker_arguments`
    pub extra_arguments: Vec<String>,
    /// `CLEARML_AGENT_DOCKER_ARGS_FILTERS`, else `agent.docker_args_filters`: of a task's flags those
    /// alone that one of them matches.
    pub filters: Vec<Regex>,
    /// `agent.forbidden_docker_args`: flags that are left out, whoever gave them.
    pub forbidden: Vec<String>,
    /// `agent.protected_docker_extra_args`: flags that the stronger one of the task's and the extra
    /// arguments takes from the other.
    pub protected: Vec<String>,
    /// `agent.docker_args_extra_precedes_task`: the extra arguments are the stronger ones of these,
    /// and stand first.
    pub extra_precedes_task: bool,
    /// `agent.docker_allow_host_environ`: `-e A=$B` of a task takes the agent's `B`.
    pub task_sees_environment: bool,
    /// `agent.disable_task_docker_override`: the task's own container is not used.
    pub task_override_disabled: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Settings {
            default_image: "nvidia/cuda:12.6.3-cudnn-runtime-ubuntu20.04".to_owned(),
            default_arguments: Vec::new(),
            update_back_task: true,
            rules: Vec::new(),
            extra_arguments: Vec::new(),
            filters: Vec::new(),
            forbidden: list(&["entrypoint"]),
            protected: list(&["privileged", "security-opt", "network", "ipc"]),
            extra_precedes_task: true,
            task_sees_environment: false,
            task_override_disabled: false,
        }
    }
}

impl Settings {
    pub fn of_config(config: &Config, env: &Variables) -> Result<Settings, ChoiceError> {
        Settings::from_lookup(&|key| config.value(key).cloned(), env)
    }

    /// `config` gives the value of a dotted key.
    pub(super) fn from_lookup(
        config: &dyn Fn(&str) -> Option<Value>,
        env: &Variables,
    ) -> Result<Settings, ChoiceError> {
        let built_in = Settings::default();
        let given = |key: &str| config(key).filter(|value| !value.is_null());
        let flag = |key: &str, default: bool| match given(key) {
            None => Ok(default),
            Some(value) => truth(&value)
                .ok_or_else(|| wrong(key, &format!("expected true or false, found {value}"))),
        };
        let words = |key: &str| given(key).map(|value| words(key, &value)).transpose();
        let names = |key: &str, default: Vec<String>| match given(key) {
            None => Ok(default),
            Some(value) => texts(key, &value),
        };
        let variable = |name: &str| {
            let text = env.get(name).filter(|text| !text.trim().is_empty())?;
            Some(split(text).map_err(|error| wrong(name, &error.to_string())))
        };

        const FILTERS: &str = "agent.docker_args_filters";
        let filters = match variable("CLEARML_AGENT_DOCKER_ARGS_FILTERS") {
            Some(words) => words?,
            None => names(FILTERS, Vec::new())?,
        };
        let filters = filters.iter().map(|filter| {
            Regex::new(&format!("^(?:{filter})"))
                .map_err(|_| wrong(FILTERS, &format!("{filter:?} is no regular expression")))
        });
        let extra_arguments = match variable("CLEARML_AGENT_EXTRA_DOCKER_ARGS") {
            Some(words) => words?,
            None => words("agent.extra_docker_arguments")?.unwrap_or_default(),
        };
        Ok(Settings {
            default_image: match given("agent.default_docker.image") {
                None => built_in.default_image,
                Some(value) => text("agent.default_docker.image", &value)?,
            },
            default_arguments: words("agent.default_docker.arguments")?.unwrap_or_default(),
            update_back_task: flag("agent.default_docker.update_back_task", true)?,
            rules: match given("agent.default_docker.match_rules") {
                None => built_in.rules,
                Some(value) => rules::read(&value)?,
            },
            extra_arguments,
            filters: filters.collect::<Result<_, _>>()?,
            forbidden: names("agent.forbidden_docker_args", built_in.forbidden)?,
            protected: names("agent.protected_docker_extra_args", built_in.protected)?,
            extra_precedes_task: flag("agent.docker_args_extra_precedes_task", true)?,
            task_sees_environment: flag("agent.docker_allow_host_environ", false)?,
            task_override_disabled: flag("agent.disable_task_docker_override", false)?,
        })
    }
}

pub(super) fn wrong(key: &str, why: &str) -> ChoiceError {
    ChoiceError::Setting {
        key: key.to_owned(),
        why: why.to_owned(),
    }
}

pub(super) fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => bool_of(&number.to_string()),
        Value::String(text) if text.is_empty() => Some(false),
        Value::String(text) => bool_of(text),
        _ => None,
    }
}

pub(super) fn text(key: &str, value: &Value) -> Result<String, ChoiceError> {
    match value {
        Value::String(text) => Ok(text.trim().to_owned()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        Value::Null => Ok(String::new()),
        _ => Err(wrong(key, &format!("expected a text, found {value}"))),
    }
}

/// A list of texts; one text is a list of one.
pub(super) fn texts(key: &str, value: &Value) -> Result<Vec<String>, ChoiceError> {
    let items = match value {
        Value::Array(items) => items.as_slice(),
        single => std::slice::from_ref(single),
    };
    let texts = items.iter().map(|item| text(key, item));
    let mut texts = texts.collect::<Result<Vec<_>, _>>()?;
    texts.retain(|text| !text.is_empty());
    Ok(texts)
}

/// Arguments: a list has one word in each place, a text is split as a shell does.
pub(super) fn words(key: &str, value: &Value) -> Result<Vec<String>, ChoiceError> {
    match value {
        Value::String(text) => split(text).map_err(|error| wrong(key, &error.to_string())),
        other => texts(key, other),
    }
}
