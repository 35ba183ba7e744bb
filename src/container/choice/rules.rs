//! `agent.default_docker.match_rules`: the container for tasks that are like this and that.

use std::fmt;

use regex::Regex;
use serde_json::{Map, Value};

use super::packages;
use super::settings::{text, texts, truth, wrong};
use super::{ChoiceError, Container, Facts, Settings, joined};

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its place in the list, from 1 on; 0 for those that are built in.
    place: usize,
    /// Key → patterns, all of which must be found in the task's value of it.
    terms: Vec<(&'static str, Vec<String>)>,
    /// Package → versions, for each kind of list.
    packages: Vec<(PackageList, Vec<(String, String)>)>,
    container: Container,
    pub update_back_task: Option<bool>,
    /// `force_container_rules`: it counts for tasks that name an image too.
    pub force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PackageList {
    Pip,
    Conda,
}

/// For people: where an image comes from.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            0 => write!(
                f,
                "the built-in rule for a task of {}",
                self.terms
                    .first()
                    .and_then(|(_, patterns)| patterns.first())
                    .map_or("Python", |pattern| pattern.trim_end_matches('$'))
            ),
            place => write!(f, "rule {place} of agent.default_docker.match_rules"),
        }
    }
}

const KEYS: [&str; 8] = [
    "project",
    "project_id",
    "script.repository",
    "script.branch",
    "script.binary",
    "user_id",
    "container",
    "tags",
];

pub(super) fn read(rules: &Value) -> Result<Vec<Rule>, ChoiceError> {
    const KEY: &str = "agent.default_docker.match_rules";
    let Value::Array(rules) = rules else {
        return Err(wrong(KEY, "expected a list of rules"));
    };
    let rules = rules.iter().enumerate().map(|(place, rule)| {
        let key = format!("{KEY}[{place}]");
        match rule {
            Value::Object(rule) => read_one(&key, place + 1, rule),
            _ => Err(wrong(&key, "expected a section")),
        }
    });
    rules.collect()
}

fn read_one(key: &str, place: usize, rule: &Map<String, Value>) -> Result<Rule, ChoiceError> {
    let given = |name: &str| rule.get(name).filter(|value| !value.is_null());
    let in_rule = |name: &str| format!("{key}.{name}");
    let in_match = |name: &str| format!("{key}.match.{name}");
    let mut terms = Vec::new();
    let mut packages = Vec::new();
    if let Some(conditions) = given("match") {
        let Value::Object(conditions) = conditions else {
            return Err(wrong(&in_rule("match"), "expected a section"));
        };
        for name in KEYS {
            if let Some(value) = at(conditions, name) {
                terms.push((name, texts(&in_match(name), value)?));
            }
        }
        for (name, list) in [
            ("script.requirements.pip", PackageList::Pip),
            ("script.requirements.conda", PackageList::Conda),
        ] {
            if let Some(Value::Object(wanted)) = at(conditions, name) {
                let wanted = wanted.iter().map(|(package, versions)| {
                    Ok((package.clone(), text(&in_match(name), versions)?))
                });
                packages.push((list, wanted.collect::<Result<_, ChoiceError>>()?));
            }
        }
    }
    terms.retain(|(_, patterns)| !patterns.is_empty());
    let flag = |name: &str| match given(name) {
        None => Ok(None),
        Some(value) => match truth(value) {
            Some(flag) => Ok(Some(flag)),
            None => Err(wrong(&in_rule(name), "expected true or false")),
        },
    };
    let lines = |name: &str| match given(name) {
        None => Ok(String::new()),
        Some(value) => texts(&in_rule(name), value).map(|lines| lines.join("\n")),
    };
    Ok(Rule {
        place,
        terms,
        packages,
        container: Container {
            image: match given("image") {
                None => String::new(),
                Some(value) => text(&in_rule("image"), value)?,
            },
            arguments: match given("arguments") {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(value) => joined(&texts(&in_rule("arguments"), value)?),
            },
            setup_shell_script: lines("setup_shell_script")?,
        },
        update_back_task: flag("update_back_task")?,
        force: flag("force_container_rules")?.unwrap_or(false),
    })
}

/// A dotted key, whether it is written in sections or as one key in quotes.
fn at<'a>(section: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    let nested = key.split_once('.').and_then(|(first, rest)| {
        let section = section.get(first)?.as_object()?;
        at(section, rest)
    });
    nested
        .or_else(|| section.get(key))
        .filter(|value| !value.is_null())
}

/// Those of the Python agent: the official Python image for a task's Python.
fn built_in() -> impl Iterator<Item = Rule> {
    (6..=13).map(|minor| Rule {
        place: 0,
        terms: vec![("script.binary", vec![format!("python3.{minor}$")])],
        packages: Vec::new(),
        container: Container {
            image: format!("python:3.{minor}-bullseye"),
            arguments: "--ipc=host".to_owned(),
            setup_shell_script: String::new(),
        },
        update_back_task: None,
        force: false,
    })
}

/// The first rule that the task is like. The configuration's rules take the place of those that are
/// built in.
pub(super) fn first(
    settings: &Settings,
    task: &Facts,
    advanced: bool,
    notes: &mut Vec<String>,
) -> Option<Rule> {
    match (settings.rules.is_empty(), advanced) {
        (false, _) => {
            let mut rules = settings.rules.iter();
            rules.find(|rule| rule.matches(task, notes)).cloned()
        }
        (true, true) => built_in().find(|rule| rule.matches(task, notes)),
        (true, false) => None,
    }
}

impl Rule {
    /// The task's container with the rule's values where it has none, or over them.
    pub(super) fn applied(&self, own: &Container) -> Container {
        let pick = |own: &str, rule: &str| match own.is_empty() || self.force {
            true => rule.to_owned(),
            false => own.to_owned(),
        };
        let rule = &self.container;
        Container {
            image: pick(&own.image, &rule.image),
            arguments: pick(&own.arguments, &rule.arguments),
            setup_shell_script: pick(&own.setup_shell_script, &rule.setup_shell_script),
        }
    }

    fn matches(&self, task: &Facts, notes: &mut Vec<String>) -> bool {
        // A rule with no condition is for no task.
        (!self.terms.is_empty() || !self.packages.is_empty())
            && self.terms.iter().all(|(key, patterns)| {
                let values = values(task, key);
                let mut patterns = patterns.iter();
                patterns.all(|pattern| match Regex::new(pattern) {
                    Ok(pattern) => values.iter().any(|value| pattern.is_match(value)),
                    Err(_) => {
                        notes.push(format!("{self} matches nothing: {pattern:?} is no pattern"));
                        false
                    }
                })
            })
            && self.packages.iter().all(|(list, wanted)| {
                let list = match list {
                    PackageList::Pip => &task.pip,
                    PackageList::Conda => &task.conda,
                };
                let mut wanted = wanted.iter();
                wanted.all(|(package, versions)| packages::may_hold(list, package, versions))
            })
    }
}

fn values<'a>(task: &'a Facts, key: &str) -> Vec<&'a str> {
    match key {
        "project" => vec![&task.project_name],
        "project_id" => vec![&task.project_id],
        "script.repository" => vec![&task.repository],
        "script.branch" => vec![&task.branch],
        "script.binary" => vec![&task.binary],
        "user_id" => vec![&task.user_id],
        "container" => vec![&task.container.image],
        _ => task.tags.iter().map(String::as_str).collect(),
    }
}
