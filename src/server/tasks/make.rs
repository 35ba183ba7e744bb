//! Tasks come and go: create, clone, reset, delete.

use serde_json::{Value, json};

use super::super::call::{Access, Call, Endpoint, endpoint};
use super::super::document::{Document, iso, merged, set_path, text, without_nulls};
use super::super::refusal::Refusal;
use super::super::state::{Change, status_of};
use super::super::store::Kind;
use super::super::{COMPANY, USER_ID, check_name, new_id, projects, queues};
use super::fetch;
use crate::task::Status;

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("tasks.create", "1.0", Access::Write, create),
    endpoint("tasks.validate", "1.0", Access::Read, validate),
    endpoint("tasks.clone", "1.0", Access::Write, clone),
    endpoint("tasks.reset", "1.0", Access::Write, reset),
    endpoint("tasks.delete", "1.0", Access::Write, delete),
];

/// What a task may be (`tasks.get_types`).
pub const TYPES: [&str; 14] = [
    "training",
    "testing",
    "inference",
    "data_processing",
    "application",
    "monitor",
    "controller",
    "optimizer",
    "service",
    "qc",
    "custom",
    "dataset_import",
    "annotation",
    "annotation_manual",
];

/// The fields of a new task that the caller may give, with what they are if it gives none.
fn givable() -> [(&'static str, Value); 13] {
    [
        ("parent", Value::Null),
        ("comment", Value::Null),
        ("output_dest", Value::Null),
        ("input", Value::Null),
        ("output", json!({})),
        (
            "execution",
            json!({
                "test_split": 0, "parameters": {}, "model_desc": {}, "model_labels": {}, "artifacts": [],
            }),
        ),
        ("tags", json!([])),
        ("system_tags", json!([])),
        ("script", json!({})),
        ("hyperparams", json!({})),
        ("configuration", json!({})),
        ("runtime", json!({})),
        ("container", json!({})),
    ]
}

/// Gives the document of a new task as the request describes it.
fn described(call: &Call<'_>) -> Result<Document, Refusal> {
    let name = call.request.required("name")?;
    check_name(name)?;
    let kind = call.request.required("type")?;
    if !TYPES.contains(&kind) {
        let why = format!("Value must be one of {TYPES:?}");
        return Err(Refusal::bad_value("type", &why));
    }
    let now = iso(call.now);
    let mut task = Document::new();
    for (field, value) in [
        ("id", json!(new_id())),
        ("company", json!(COMPANY)),
        ("user", json!(USER_ID)),
        ("name", json!(name)),
        ("type", json!(kind)),
        ("status", json!(Status::Created)),
        ("report_assets", json!([])),
        ("created", json!(now)),
    ] {
        task.insert(field.into(), value);
    }
    if let Some(project) = call.request.text("project")? {
        projects::check(call.transaction, project)?;
        task.insert("project".into(), json!(project));
    }
    for (field, default) in givable() {
        let value = match call.request.get(field) {
            Some(given) => merged(Some(&default), given),
            None => default,
        };
        if !value.is_null() {
            task.insert(field.into(), value);
        }
    }
    if let Some(Value::Object(script)) = task.get_mut("script")
        && !script.is_empty()
    {
        for (field, default) in [("binary", json!("python")), ("requirements", json!({}))] {
            script.entry(field).or_insert(default);
        }
    }
    let models = json!({"input": [], "output": []});
    let models = merged(
        Some(&models),
        call.request.get("models").unwrap_or(&json!({})),
    );
    for (field, value) in [
        ("last_update", json!(now)),
        ("last_change", json!(now)),
        ("last_iteration", json!(0)),
        ("last_metrics", json!({})),
        ("unique_metrics", json!([])),
        ("metric_stats", json!({})),
        ("models", models),
        ("last_changed_by", json!(USER_ID)),
    ] {
        task.insert(field.into(), value);
    }
    Ok(task)
}

fn put_new(call: &Call<'_>, task: &Document) -> Result<String, Refusal> {
    let id = text(task, "id").unwrap_or_default().to_owned();
    call.transaction.put(Kind::Tasks, &id, task)?;
    Ok(id)
}

fn create(call: &Call<'_>) -> Result<Value, Refusal> {
    let task = described(call)?;
    Ok(json!({"id": put_new(call, &task)?}))
}

fn validate(call: &Call<'_>) -> Result<Value, Refusal> {
    described(call)?;
    Ok(json!({}))
}

fn is_input(artifact: &Value) -> bool {
    artifact["mode"].as_str() == Some("input")
}

fn keep_input_artifacts(task: &mut Document) {
    if let Some(Value::Array(artifacts)) = task
        .get_mut("execution")
        .and_then(|execution| execution.get_mut("artifacts"))
    {
        artifacts.retain(is_input);
    }
}

/// What a run leaves behind, gone in a clone and after a reset.
const OF_A_RUN: [&str; 13] = [
    "status_reason",
    "status_message",
    "status_changed",
    "started",
    "completed",
    "published",
    "active_duration",
    "enqueue_status",
    "last_worker",
    "last_worker_report",
    "execution.queue",
    "output.result",
    "output.error",
];

fn forget_run(task: &mut Document) {
    for path in OF_A_RUN {
        set_path(task, path, Value::Null);
    }
    keep_input_artifacts(task);
    for (path, value) in [
        ("last_iteration", json!(0)),
        ("last_metrics", json!({})),
        ("unique_metrics", json!([])),
        ("metric_stats", json!({})),
        ("models.output", json!([])),
        ("runtime", json!({})),
    ] {
        set_path(task, path, value);
    }
}

fn clone(call: &Call<'_>) -> Result<Value, Refusal> {
    let (source, original) = fetch(call)?;
    let request = call.request;
    let mut task = original.clone();
    forget_run(&mut task);
    let id = new_id();
    let mut answer = json!({"id": id});

    let parent = match request.text("new_task_parent")? {
        Some(parent) => {
            if call.transaction.get(Kind::Tasks, parent)?.is_none() {
                return Err(Refusal::no_task(parent));
            }
            parent
        }
        None => text(&original, "parent").unwrap_or(&source),
    };
    let name = request.text("new_task_name")?;
    if let Some(name) = name {
        check_name(name)?;
    }
    if let Some(name) = request.text("new_project_name")? {
        let project = projects::find_or_make(call.transaction, name, call.now)?;
        answer["new_project"] = json!({"id": project, "name": name});
        task.insert("project".into(), json!(project));
    } else if let Some(project) = request.text("new_task_project")? {
        projects::check(call.transaction, project)?;
        task.insert("project".into(), json!(project));
    }
    for (field, value) in [
        ("id", json!(id)),
        ("user", json!(USER_ID)),
        ("status", json!(Status::Created)),
        ("parent", json!(parent)),
        ("created", json!(iso(call.now))),
        ("last_update", json!(iso(call.now))),
        ("last_change", json!(iso(call.now))),
        ("last_changed_by", json!(USER_ID)),
    ] {
        task.insert(field.into(), value);
    }
    // A copy of a task that was run by hand is to be run by an agent.
    if let Some(Value::Array(tags)) = task.get_mut("system_tags") {
        tags.retain(|tag| !matches!(tag.as_str(), Some("development" | "archived")));
    }
    for (given, field) in [
        ("new_task_name", "name"),
        ("new_task_comment", "comment"),
        ("new_task_tags", "tags"),
        ("new_task_system_tags", "system_tags"),
        ("new_task_hyperparams", "hyperparams"),
        ("new_task_configuration", "configuration"),
        ("new_task_container", "container"),
        ("new_task_input_models", "models.input"),
    ] {
        if let Some(value) = request.get(given) {
            set_path(&mut task, field, value.clone());
        }
    }
    if let Some(Value::Object(overrides)) = request.get("execution_overrides") {
        let overrides = Value::Object(without_nulls(overrides));
        let execution = merged(task.get("execution"), &overrides);
        task.insert("execution".into(), execution);
        set_path(&mut task, "execution.queue", Value::Null);
    }
    put_new(call, &task)?;
    Ok(answer)
}

fn reset(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut task) = fetch(call)?;
    let force = call.request.flag("force")?;
    queues::remove_everywhere(call, &id)?;
    let change = Change {
        to: Status::Created,
        reason: "reset",
        message: "reset",
        force,
    };
    let fields = change.apply(&mut task, call.now)?;
    forget_run(&mut task);
    for field in ["status_reason", "status_message", "status_changed"] {
        task.insert(field.into(), fields[field].clone());
    }
    if call.request.flag("clear_all")? {
        task.insert("script".into(), json!({}));
        task.insert("hyperparams".into(), json!({}));
        task.insert("configuration".into(), json!({}));
    }
    call.transaction.delete_events(&id)?;
    let deleted = delete_models_of(call, &id)?;
    call.transaction.put(Kind::Tasks, &id, &task)?;
    Ok(json!({
        "deleted_models": deleted, "dequeued": {}, "events": {}, "fields": fields, "updated": 1, "urls": {},
    }))
}

/// Deletes the models that the task made and nobody published.
fn delete_models_of(call: &Call<'_>, task: &str) -> Result<usize, Refusal> {
    let mut deleted = 0;
    for model in call.transaction.all(Kind::Models)? {
        let published = model.get("ready") == Some(&json!(true));
        if text(&model, "task") == Some(task) && !published {
            let id = text(&model, "id").unwrap_or_default();
            deleted += usize::from(call.transaction.delete(Kind::Models, id)?);
        }
    }
    Ok(deleted)
}

fn delete(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, task) = fetch(call)?;
    let status = status_of(&task);
    if status != Status::Created && !call.request.flag("force")? {
        let message = format!(
            "Task cannot be deleted (due to status, use force): task={id}, status={status}"
        );
        return Err(Refusal::new(400, 123, message));
    }
    queues::remove_everywhere(call, &id)?;
    let mut children = 0;
    for mut child in call.transaction.all(Kind::Tasks)? {
        if text(&child, "parent") == Some(&id) {
            child.shift_remove("parent");
            put_new(call, &child)?;
            children += 1;
        }
    }
    call.transaction.delete_events(&id)?;
    let models = delete_models_of(call, &id)?;
    call.transaction.delete(Kind::Tasks, &id)?;
    Ok(json!({
        "deleted": true, "updated_children": children, "updated_models": 0,
        "deleted_models": models, "urls": {},
    }))
}
