use serde_json::{Value, json};

use super::*;

const OPTION: &str = "--docker";

/// Decides for a configuration (dotted keys), a task's document and `--docker`'s words.
struct Case {
    config: Value,
    task: Value,
    docker: Vec<String>,
    env: Variables,
    advanced: bool,
}

fn case(config: Value, task: Value) -> Case {
    Case {
        config,
        task,
        docker: Vec::new(),
        env: Variables::new(),
        advanced: false,
    }
}

impl Case {
    fn docker(mut self, words: &[&str]) -> Case {
        self.docker = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    fn env(mut self, name: &str, value: &str) -> Case {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    fn try_choose(&self) -> Result<Choice, ChoiceError> {
        let settings = Settings::from_lookup(&|key| self.config.get(key).cloned(), &self.env)?;
        choose(&Request {
            option: OPTION,
            command_line: &self.docker,
            task: &Facts::of_document(&self.task, "team/project"),
            settings: &settings,
            env: &self.env,
            advanced: self.advanced,
            template: &|name| (name == "QUEUE_NAME").then(|| "gpu".to_owned()),
        })
    }

    fn choose(&self) -> Choice {
        self.try_choose().unwrap_or_else(|error| panic!("{error}"))
    }

    /// Image, arguments in one text, and why.
    #[track_caller]
    fn is(&self, image: &str, arguments: &str, why: &str) {
        let choice = self.choose();
        let arguments_of = joined(&choice.arguments);
        assert_eq!(
            (
                choice.image.as_str(),
                arguments_of.as_str(),
                choice.why.as_str()
            ),
            (image, arguments, why),
            "{choice:?}"
        );
    }
}

const IMAGE: &str = "agent.default_docker.image";
const ARGUMENTS: &str = "agent.default_docker.arguments";
const EXTRA: &str = "agent.extra_docker_arguments";
const RULES: &str = "agent.default_docker.match_rules";
const FORBIDDEN: &str = "agent.forbidden_docker_args";

fn with_container(image: &str, arguments: &str) -> Value {
    json!({"container": {"image": image, "arguments": arguments}})
}

#[test]
fn the_image_comes_from_the_task_then_the_command_line_then_the_configuration() {
    let config = json!({IMAGE: "configured", ARGUMENTS: ["--ipc=host"]});
    let bare = json!({});
    let own = with_container("own:1", "-e 'A=b c' --init");
    let old = json!({"execution": {"docker_cmd": "old:1 -e A=1"}});
    case(config.clone(), bare.clone()).is("configured", "--ipc host", "agent.default_docker");
    case(config.clone(), own.clone()).is("own:1", "-e 'A=b c' --init", TASK);
    case(config.clone(), old.clone()).is("old:1", "-e A=1", OLD_TASK);
    // The section is newer than the one line.
    let both = json!({
        "container": {"image": "own:1"}, "execution": {"docker_cmd": "old:1 -e A=1"}
    });
    case(config.clone(), both).is("own:1", "", TASK);
    // The task's own image is stronger than `--docker`.
    let typed = &["typed:1", "--init"];
    case(config.clone(), own.clone())
        .docker(typed)
        .is("own:1", "-e 'A=b c' --init", TASK);
    case(config.clone(), bare.clone())
        .docker(typed)
        .is("typed:1", "--init", OPTION);
    case(config.clone(), bare.clone())
        .docker(&["typed:1 --init -e 'A=b c'"])
        .is("typed:1", "--init -e 'A=b c'", OPTION);
    // An image without arguments has the configuration's.
    case(config.clone(), bare.clone())
        .docker(&["typed:1"])
        .is("typed:1", "--ipc host", OPTION);
    case(config.clone(), bare.clone())
        .env("CLEARML_DOCKER_IMAGE", "of-env:1")
        .is("of-env:1", "--ipc host", "CLEARML_DOCKER_IMAGE");
    case(config.clone(), bare.clone())
        .env("CLEARML_DOCKER_IMAGE", "of-env:1")
        .docker(typed)
        .is("typed:1", "--init", OPTION);
    case(json!({}), bare.clone()).is(
        "nvidia/cuda:12.6.3-cudnn-runtime-ubuntu20.04",
        "",
        "agent.default_docker",
    );
    case(json!({IMAGE: "x", ARGUMENTS: "--ipc=host -e A=1"}), bare).is(
        "x",
        "--ipc host -e A=1",
        "agent.default_docker",
    );
    let forced = json!({IMAGE: "configured", "agent.disable_task_docker_override": true});
    case(forced.clone(), own.clone()).is("configured", "", "agent.default_docker");
    case(forced.clone(), own.clone())
        .docker(typed)
        .is("typed:1", "--init", OPTION);
    let notes = case(forced, own).choose().notes.join(" ");
    assert!(notes.contains("disable_task_docker_override"), "{notes}");
}

#[test]
fn without_an_image_nothing_runs() {
    let error = case(json!({IMAGE: ""}), json!({}))
        .try_choose()
        .unwrap_err();
    assert!(matches!(error, ChoiceError::NoImage), "{error}");
}

#[test]
fn what_is_written_back_to_the_task() {
    let config = json!({IMAGE: "configured", ARGUMENTS: ["-e", "A=b c"], EXTRA: ["--init"]});
    let written = |config: &Value, task: Value| case(config.clone(), task).choose().write_back;
    let default = Container {
        image: "configured".into(),
        arguments: "-e 'A=b c'".into(),
        setup_shell_script: "echo 1".into(),
    };
    let task = json!({"container": {"setup_shell_script": "echo 1"}});
    assert_eq!(written(&config, task), Some(default.clone()));
    // It is there already.
    let task = json!({"container": {
        "image": "", "arguments": "-e X=1", "setup_shell_script": "echo 1"
    }});
    let choice = case(config.clone(), task).choose();
    assert_eq!(choice.write_back, Some(default));
    assert!(choice.is_default);
    assert!(
        choice.notes[0].contains("names no image"),
        "{:?}",
        choice.notes
    );
    assert_eq!(written(&config, with_container("own:1", "")), None);
    let same = json!({IMAGE: "configured", "agent.disable_task_docker_override": "yes"});
    assert_eq!(written(&same, with_container("configured", "")), None);

    let rule = |update: Value| {
        json!({IMAGE: "configured", "agent.default_docker.update_back_task": false, RULES: [{
            "match": {"script": {"binary": "python3"}},
            "image": "ruled", "arguments": ["-e", "A=b c"], "update_back_task": update,
        }]})
    };
    let task = json!({"script": {"binary": "python3.10"}});
    assert_eq!(written(&rule(Value::Null), task.clone()), None);
    assert_eq!(
        written(&rule(json!(true)), task).map(|container| container.arguments),
        Some("-e 'A=b c'".into())
    );
}

#[test]
fn rules_that_a_task_is_like() {
    let task = json!({
        "project": "id1", "user": "ann", "tags": ["one", "two"],
        "script": {
            "repository": "https://git.example/team/code.git", "branch": "main",
            "binary": "/usr/bin/python3.10",
            "requirements": {"pip": "torch==2.1.0\nnumpy", "conda": ["cuda==11.8"]},
        },
    });
    let rule = |condition: Value| {
        json!({IMAGE: "configured", RULES: [
            {"match": {}, "image": "nothing"},
            {"match": condition, "image": "ruled"},
        ]})
    };
    for (condition, matches) in [
        (json!({"project": "^team/"}), true),
        (json!({"project": "^project"}), false),
        (json!({"project_id": "id1"}), true),
        (json!({"user_id": "^ann$"}), true),
        (json!({"user_id": "^an$"}), false),
        (json!({"tags": ["^one$", "two"]}), true),
        (json!({"tags": ["^one$", "three"]}), false),
        (json!({"tags": "tw"}), true),
        (json!({"script": {"binary": "python3.10$"}}), true),
        (json!({"script.binary": "python3.10$"}), true),
        (json!({"script": {"binary": "python3.1$"}}), false),
        (
            json!({"script": {"binary": "python3.10$", "branch": "dev"}}),
            false,
        ),
        (
            json!({"script": {"repository": "code", "branch": "^main$"}}),
            true,
        ),
        (
            json!({"script": {"requirements": {"pip": {"torch": ">=2"}}}}),
            true,
        ),
        (
            json!({"script": {"requirements": {"pip": {"torch": "<2"}}}}),
            false,
        ),
        (
            json!({"script": {"requirements": {"pip": {"jax": ""}}}}),
            false,
        ),
        (
            json!({"script": {"requirements": {"conda": {"cuda": "~=11.0"}}}}),
            true,
        ),
        (json!({"script": {"binary": "("}}), false),
    ] {
        let choice = case(rule(condition.clone()), task.clone()).choose();
        let expected = match matches {
            true => ("ruled", "rule 2 of agent.default_docker.match_rules"),
            false => ("configured", "agent.default_docker"),
        };
        assert_eq!(
            (choice.image.as_str(), choice.why.as_str()),
            expected,
            "{condition}"
        );
    }
}

#[test]
fn when_rules_count() {
    let rules = |force: bool| {
        json!({IMAGE: "configured", RULES: [{
            "match": {"script": {"binary": "python"}},
            "image": "ruled", "arguments": "-e A=1", "setup_shell_script": ["echo 1", "echo 2"],
            "force_container_rules": force,
        }]})
    };
    let why = "rule 1 of agent.default_docker.match_rules";
    let bare = json!({"script": {"binary": "python"}});
    let own = json!({"script": {"binary": "python"}, "container": {"image": "own"}});
    let half = json!({"script": {"binary": "python"}, "container": {"arguments": "-e B=1"}});
    case(rules(false), bare.clone()).is("ruled", "-e A=1", why);
    case(rules(false), half.clone()).is("ruled", "-e B=1", why);
    case(rules(true), half).is("ruled", "-e A=1", why);
    case(rules(false), own.clone()).is("own", "", TASK);
    case(rules(true), own.clone()).is("ruled", "-e A=1", why);
    case(rules(false), bare.clone())
        .docker(&["typed"])
        .is("typed", "", OPTION);
    case(rules(true), bare.clone())
        .docker(&["typed"])
        .is("ruled", "-e A=1", why);
    case(rules(true), own)
        .docker(&["typed"])
        .is("own", "", TASK);
    let choice = case(rules(false), bare).choose();
    assert_eq!(choice.setup_script, ["echo 1", "echo 2"]);
    // Those that are built in.
    let python = json!({"script": {"binary": "python3.11"}});
    let mut server = case(json!({IMAGE: "configured"}), python);
    server.is("configured", "", "agent.default_docker");
    server.advanced = true;
    server.is(
        "python:3.11-bullseye",
        "--ipc host",
        "the built-in rule for a task of python3.11",
    );
}

#[test]
fn extra_arguments_and_what_is_left_out() {
    let task = |arguments: &str| with_container("own", arguments);
    let merged = |config: Value, arguments: &str| {
        let choice = case(config, task(arguments)).env("HERE", "host").choose();
        joined(&choice.arguments)
    };
    let extra = json!({EXTRA: ["--network=host", "-e", "A=$HERE", "-v", "/a:/b"]});
    // The extra ones are first, and what is protected in them is theirs alone.
    assert_eq!(
        merged(extra.clone(), "--net none -e A=2 -e B=$HERE --ipc=private"),
        "--network host -e A=host -v /a:/b -e A=2 -e 'B=$HERE' --ipc private"
    );
    let mut task_first = extra.clone();
    task_first["agent.docker_args_extra_precedes_task"] = json!(false);
    assert_eq!(
        merged(task_first, "--net none -e A=2"),
        "--net none -e A=2 -e A=host -v /a:/b"
    );
    assert_eq!(
        merged(
            json!({"agent.docker_allow_host_environ": true}),
            "-e B=$HERE/${HERE}"
        ),
        "-e B=host/host"
    );
    assert_eq!(merged(json!({EXTRA: "-e 'A=b c'"}), ""), "-e 'A=b c'");
    // The entry point is the agent's own; whatever the form.
    for arguments in ["--entrypoint sh --init", "--init --entrypoint=sh"] {
        let choice = case(json!({EXTRA: "--entrypoint=x"}), task(arguments)).choose();
        assert_eq!(joined(&choice.arguments), "--init");
        assert_eq!(choice.notes.len(), 2, "{:?}", choice.notes);
        assert!(
            choice.notes[0].contains("forbidden_docker_args"),
            "{:?}",
            choice.notes
        );
    }
    assert_eq!(
        merged(json!({FORBIDDEN: []}), "--entrypoint sh"),
        "--entrypoint sh"
    );
    // By any name, in any cluster.
    let forbidden = json!({FORBIDDEN: ["v", "--network", "privileged"]});
    assert_eq!(
        merged(
            forbidden,
            "-itv /:/host --net=host --privileged --volume=/x:/y --init=false"
        ),
        "-i -t --init=false"
    );
    let filters = json!({"agent.docker_args_filters": ["^--env$", "^-e$", "^--shm-size=[1-8]g"]});
    assert_eq!(
        merged(
            filters,
            "-eA=1 --env B=2 --env=C=3 -v /a:/b --shm-size 4g --privileged"
        ),
        "-e A=1 --env B=2 --env C=3 --shm-size 4g"
    );
    assert_eq!(
        merged(
            json!({}),
            "-e Q=${CLEARML_QUEUE_NAME} -e P=${CLEARML_TASK.x:y}"
        ),
        "-e Q=gpu -e P=y"
    );
    let variable = case(extra, task("")).env("CLEARML_AGENT_EXTRA_DOCKER_ARGS", "-e 'X=1 2'");
    assert_eq!(joined(&variable.choose().arguments), "-e 'X=1 2'");
}

#[test]
fn what_can_not_be_read() {
    for (config, task, message) in [
        (
            json!({}),
            with_container("own", "--foo"),
            "the task's container section: docker arguments: --foo is no flag of docker run",
        ),
        (
            json!({}),
            with_container("own", "-e 'A"),
            "the task's container section: docker arguments: unbalanced quotes",
        ),
        (
            json!({EXTRA: ["-e"]}),
            json!({}),
            "agent.extra_docker_arguments: docker arguments: -e needs a value",
        ),
        (
            json!({RULES: {"match": {}}}),
            json!({}),
            "agent.default_docker.match_rules: expected a list of rules",
        ),
        (
            json!({RULES: [{"match": {"tags": [{}]}}]}),
            json!({}),
            "agent.default_docker.match_rules[0].match.tags: expected a text, found {}",
        ),
        (
            json!({"agent.docker_args_filters": ["("]}),
            json!({}),
            "agent.docker_args_filters: \"(\" is no regular expression",
        ),
        (
            json!({"agent.disable_task_docker_override": "maybe"}),
            json!({}),
            "agent.disable_task_docker_override: expected true or false, found \"maybe\"",
        ),
    ] {
        let error = case(config, task).try_choose().unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }
}
