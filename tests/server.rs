//! The embedded server beside the real one: the recorded exchanges, replayed in their order, must be
//! answered alike. And what it keeps in a folder.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::ops::Range;
use std::process::{Child, Command, Stdio};

use common::{Api, World, script};
use serde_json::{Value, json};

/// Recorded ids and names → this server's.
type Names = BTreeMap<String, String>;

fn renamed(text: &str, names: &Names) -> String {
    let mut text = text.to_owned();
    for (recorded, ours) in names {
        text = text.replace(recorded, ours);
    }
    text
}

fn is_id(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_time(text: &str) -> bool {
    text.len() > 19 && text.as_bytes()[10] == b'T' && text.parse::<jiff::Timestamp>().is_ok()
}

/// Learns the ids that stand in the same place.
fn learn(recorded: &Value, ours: &Value, names: &mut Names) {
    match (recorded, ours) {
        (Value::Object(a), Value::Object(b)) => {
            for (key, value) in a {
                learn(value, b.get(key).unwrap_or(&Value::Null), names);
            }
        }
        (Value::Array(a), Value::Array(b)) => {
            a.iter().zip(b).for_each(|(a, b)| learn(a, b, names));
        }
        (Value::String(a), Value::String(b)) if is_id(a) && is_id(b) => {
            names.entry(a.clone()).or_insert_with(|| b.clone());
        }
        _ => {}
    }
}

/// Where the two differ; times are alike whatever they say.
fn differences(recorded: &Value, ours: &Value, path: &str, found: &mut Vec<String>) {
    match (recorded, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let (a, b) = (a.get(key), b.get(key));
                match (a, b) {
                    (Some(a), Some(b)) => differences(a, b, &format!("{path}.{key}"), found),
                    _ => found.push(format!("{path}.{key}: {a:?} / {b:?}")),
                }
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (a, b) in a.iter().zip(b) {
                differences(a, b, path, found);
            }
        }
        (Value::String(a), Value::String(b)) if is_time(a) && is_time(b) => {}
        _ if recorded == ours => {}
        _ => found.push(format!("{path}: {recorded} / {ours}")),
    }
}

/// Replays a stretch of the record. `known`: line and path of what is meant to differ.
fn replay(lines: Range<usize>, names: &mut Names, api: &Api, known: &[(usize, &str)]) {
    let record = include_str!("data/exchanges.jsonl");
    names.insert("__tests__".into(), "local".into());
    names.insert("Stopped by tests".into(), "Stopped by local user".into());
    for (number, line) in record
        .lines()
        .enumerate()
        .skip(lines.start)
        .take(lines.len())
    {
        let exchange: Value = serde_json::from_str(line).unwrap();
        let body = match &exchange["request"] {
            Value::String(lines) => lines.clone(),
            object => object.to_string(),
        };
        let path = exchange["path"].as_str().unwrap();
        let kind = exchange["content_type"].as_str().unwrap();
        let (status, mut ours) = api.send(path, kind, renamed(&body, names));
        learn(&exchange["response"]["data"], &ours["data"], names);
        let recorded = renamed(&exchange["response"].to_string(), names);
        let mut recorded: Value = serde_json::from_str(&recorded).unwrap();
        assert_eq!(exchange["status"], status, "line {number}, {path}: {ours}");
        for answer in [&mut recorded, &mut ours] {
            let meta = answer["meta"].as_object_mut().unwrap();
            // Each call has its own.
            assert!(meta.remove("id").is_some() && meta.remove("trx").is_some());
        }
        let mut found = vec![];
        differences(&recorded, &ours, "", &mut found);
        let is_known = |difference: &String| {
            let place = difference.split(':').next().unwrap_or_default();
            known.contains(&(number, place))
        };
        found.retain(|difference| !is_known(difference));
        assert!(found.is_empty(), "line {number}, {path}: {found:#?}");
    }
}

#[test]
fn a_task_from_its_making_to_its_end_is_answered_as_by_the_real_server() {
    let world = World::new();
    let known = [
        // The real server leaves a mark of the second, refused enqueueing, and of the first none.
        (10, ".data.task.status_reason"),
        (10, ".data.task.enqueue_status"),
        (30, ".data.workers.task.running_time"),
        (30, ".data.workers.user.name"),
        // Here the record has a gap.
        (31, ".data.tasks.runtime.a"),
        (31, ".data.tasks.runtime.c"),
    ];
    replay(1..32, &mut Names::new(), &world.api, &known);
}

#[test]
fn refusals_and_the_other_services_are_answered_as_by_the_real_server() {
    let world = World::new();
    let project = world.api.call("projects.create", json!({"name": "proj"}));
    let mut names = Names::from([(
        "2b1c203553094860a7ca11c07d0e4ff3".to_owned(),
        project["id"].as_str().unwrap().to_owned(),
    )]);
    let known = [
        (58, ".data.user.created"),
        (58, ".data.user.family_name"),
        (58, ".data.user.given_name"),
        (58, ".data.user.name"),
        (58, ".data.getting_started"),
    ];
    replay(54..85, &mut names, &world.api, &known);
}

#[test]
fn user_properties_can_be_set_on_a_running_task_and_parameters_cannot() {
    let world = World::new();
    let id = world.api.create("running", script(""));
    world.api.call("tasks.started", json!({"task": id}));
    for (section, status) in [("properties", 200), ("General", 400)] {
        let item = json!({"section": section, "name": "a", "value": "b"});
        let edit = json!({"task": id, "hyperparams": [item]});
        for action in ["edit", "delete"] {
            let endpoint = format!("tasks.{action}_hyper_params");
            assert_eq!(world.api.try_call(&endpoint, &edit).0, status, "{endpoint}");
        }
    }
}

/// `clearml-agent server` as its own process.
struct Served {
    child: Child,
    api: Api,
}

impl Served {
    fn start(data: &std::path::Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_clearml-agent"))
            .args(["server", "--listen", "localhost:0", "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut api = Api {
            url: String::new(),
            access_key: String::new(),
            secret_key: String::new(),
        };
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let value = || line.split('"').rev().nth(1).unwrap_or_default().to_owned();
            match line.trim_start().split([':', ' ']).next() {
                Some("api_server") => api.url = value(),
                Some("\"access_key\"") => api.access_key = value(),
                Some("\"secret_key\"") => api.secret_key = value(),
                _ => {}
            }
            if line.starts_with("Stop with") {
                break;
            }
        }
        Self { child, api }
    }
}

/// kill -9.
impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_was_answered_is_kept_through_kill_9_and_the_credentials_too() {
    let data = tempfile::tempdir().unwrap();
    let first = Served::start(data.path());
    let id = first.api.create("kept", script("print(1)\n"));
    first.api.enqueue(&id);
    let event = json!({"type": "log", "task": id, "msg": "acknowledged"});
    first.api.call("events.add_batch", event);
    let before = first.api.task(&id);
    let keys = first.api.secret_key.clone();
    drop(first);

    let second = Served::start(data.path());
    assert_eq!(second.api.secret_key, keys);
    assert_eq!(second.api.task(&id), before);
    assert_eq!(second.api.log(&id), "acknowledged\n");
    let queues = second.api.call("queues.get_all", json!({}));
    assert_eq!(queues["queues"][0]["entries"][0]["task"], id);
}
