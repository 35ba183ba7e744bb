//! The parts of a task that the SDK writes one by one: parameters, configuration, artifacts, models.

use serde_json::{Map, Value, json};

use super::super::call::{Access, Call, Endpoint, endpoint};
use super::super::document::{Document, get_path, set_path, text};
use super::super::refusal::Refusal;
use super::super::store::Kind;
use super::{check_editable, check_not_published, fetch, touch};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint(
        "tasks.get_hyper_params",
        "1.0",
        Access::Read,
        get_hyper_params,
    ),
    endpoint(
        "tasks.edit_hyper_params",
        "2.9",
        Access::Write,
        edit_hyper_params,
    ),
    endpoint(
        "tasks.delete_hyper_params",
        "2.9",
        Access::Write,
        delete_hyper_params,
    ),
    endpoint(
        "tasks.get_configurations",
        "2.9",
        Access::Read,
        get_configurations,
    ),
    endpoint(
        "tasks.get_configuration_names",
        "2.9",
        Access::Read,
        get_configuration_names,
    ),
    endpoint(
        "tasks.edit_configuration",
        "2.9",
        Access::Write,
        edit_configuration,
    ),
    endpoint(
        "tasks.delete_configuration",
        "2.9",
        Access::Write,
        delete_configuration,
    ),
    endpoint(
        "tasks.add_or_update_artifacts",
        "2.10",
        Access::Write,
        add_or_update_artifacts,
    ),
    endpoint(
        "tasks.delete_artifacts",
        "2.10",
        Access::Write,
        delete_artifacts,
    ),
    endpoint(
        "tasks.add_or_update_model",
        "2.13",
        Access::Write,
        add_or_update_model,
    ),
    endpoint("tasks.delete_models", "2.13", Access::Write, delete_models),
];

/// A task's id and one of its maps.
type TaskPart = (String, Map<String, Value>);

/// Reads `field` of the tasks in `tasks`; gives task id and value of those that there are.
fn of_tasks(call: &Call<'_>, field: &str) -> Result<Vec<TaskPart>, Refusal> {
    call.request.required_value("tasks")?;
    let mut found = Vec::new();
    for id in call.request.texts("tasks")? {
        if let Some(task) = call.transaction.get(Kind::Tasks, id)? {
            let map = task.get(field).and_then(Value::as_object);
            found.push((id.to_owned(), map.cloned().unwrap_or_default()));
        }
    }
    Ok(found)
}

fn named<'v>(item: &'v Value, field: &str) -> Result<&'v str, Refusal> {
    item.get(field)
        .and_then(Value::as_str)
        .ok_or_else(|| Refusal::missing_field(field))
}

fn put(call: &Call<'_>, id: &str, mut task: Document) -> Result<(), Refusal> {
    touch(call, &mut task);
    call.transaction.put(Kind::Tasks, id, &task)
}

fn map_of(task: &Document, field: &str) -> Map<String, Value> {
    let map = task.get(field).and_then(Value::as_object);
    map.cloned().unwrap_or_default()
}

fn get_hyper_params(call: &Call<'_>) -> Result<Value, Refusal> {
    let params: Vec<Value> = of_tasks(call, "hyperparams")?
        .into_iter()
        .map(|(task, sections)| {
            let all: Vec<&Value> = sections
                .values()
                .filter_map(Value::as_object)
                .flat_map(Map::values)
                .collect();
            json!({"task": task, "hyperparams": all})
        })
        .collect();
    Ok(json!({"params": params}))
}

/// What users note on a task beside its parameters: they may at any time.
fn are_user_properties(items: &[Value]) -> bool {
    items.iter().all(|item| item["section"] == "properties")
}

fn edit_hyper_params(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("hyperparams")?;
    let (id, mut task) = fetch(call)?;
    let items = call.request.list("hyperparams")?;
    if !are_user_properties(items) {
        check_editable(call, &task)?;
    }
    let mut sections = map_of(&task, "hyperparams");
    match call.request.text("replace_hyperparams")? {
        Some("all") => sections.clear(),
        Some("section") => {
            for item in items {
                sections.shift_remove(named(item, "section")?);
            }
        }
        _ => {}
    }
    for item in items {
        let (section, name) = (named(item, "section")?, named(item, "name")?);
        let section = sections.entry(section).or_insert_with(|| json!({}));
        section[name] = item.clone();
    }
    task.insert("hyperparams".into(), Value::Object(sections));
    put(call, &id, task)?;
    Ok(json!({"updated": 1}))
}

fn delete_hyper_params(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("hyperparams")?;
    let (id, mut task) = fetch(call)?;
    let items = call.request.list("hyperparams")?;
    if !are_user_properties(items) {
        check_editable(call, &task)?;
    }
    let mut sections = map_of(&task, "hyperparams");
    for item in items {
        let section = named(item, "section")?;
        match item.get("name").and_then(Value::as_str) {
            None | Some("") => {
                sections.shift_remove(section);
            }
            Some(name) => {
                if let Some(Value::Object(section)) = sections.get_mut(section) {
                    section.shift_remove(name);
                }
            }
        }
    }
    task.insert("hyperparams".into(), Value::Object(sections));
    put(call, &id, task)?;
    Ok(json!({"deleted": 1}))
}

fn get_configurations(call: &Call<'_>) -> Result<Value, Refusal> {
    let names = call.request.texts("names")?;
    let configurations: Vec<Value> = of_tasks(call, "configuration")?
        .into_iter()
        .map(|(task, items)| {
            let wanted: Vec<&Value> = items
                .iter()
                .filter(|(name, _)| names.is_empty() || names.contains(&name.as_str()))
                .map(|(_, item)| item)
                .collect();
            json!({"task": task, "configuration": wanted})
        })
        .collect();
    Ok(json!({"configurations": configurations}))
}

fn get_configuration_names(call: &Call<'_>) -> Result<Value, Refusal> {
    let configurations: Vec<Value> = of_tasks(call, "configuration")?
        .into_iter()
        .map(|(task, items)| json!({"task": task, "names": items.keys().collect::<Vec<_>>()}))
        .collect();
    Ok(json!({"configurations": configurations}))
}

fn edit_configuration(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("configuration")?;
    let (id, mut task) = fetch(call)?;
    check_editable(call, &task)?;
    let mut items = map_of(&task, "configuration");
    if call.request.flag("replace_configuration")? {
        items.clear();
    }
    for item in call.request.list("configuration")? {
        items.insert(named(item, "name")?.to_owned(), item.clone());
    }
    task.insert("configuration".into(), Value::Object(items));
    put(call, &id, task)?;
    Ok(json!({"updated": 1}))
}

fn delete_configuration(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("configuration")?;
    let (id, mut task) = fetch(call)?;
    check_editable(call, &task)?;
    let mut items = map_of(&task, "configuration");
    for name in call.request.texts("configuration")? {
        items.shift_remove(name);
    }
    task.insert("configuration".into(), Value::Object(items));
    put(call, &id, task)?;
    Ok(json!({"deleted": 1}))
}

/// Two of the same key and direction are one artifact.
fn same_artifact(a: &Value, b: &Value) -> bool {
    let mode = |artifact: &Value| artifact["mode"].as_str().unwrap_or("output").to_owned();
    a["key"] == b["key"] && mode(a) == mode(b)
}

fn list_at(task: &Document, path: &str) -> Vec<Value> {
    let list = get_path(task, path).and_then(Value::as_array);
    list.cloned().unwrap_or_default()
}

fn add_or_update_artifacts(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("artifacts")?;
    let (id, mut task) = fetch(call)?;
    check_not_published(call, &task)?;
    let mut artifacts = list_at(&task, "execution.artifacts");
    for new in call.request.list("artifacts")? {
        named(new, "key")?;
        let mut new = new.clone();
        if new.get("mode").is_none() {
            new["mode"] = json!("output");
        }
        match artifacts.iter_mut().find(|old| same_artifact(old, &new)) {
            Some(old) => *old = new,
            None => artifacts.push(new),
        }
    }
    set_path(&mut task, "execution.artifacts", Value::Array(artifacts));
    put(call, &id, task)?;
    Ok(json!({"updated": 1}))
}

fn delete_artifacts(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("artifacts")?;
    let (id, mut task) = fetch(call)?;
    check_not_published(call, &task)?;
    let gone = call.request.list("artifacts")?;
    let mut artifacts = list_at(&task, "execution.artifacts");
    artifacts.retain(|old| !gone.iter().any(|new| same_artifact(old, new)));
    set_path(&mut task, "execution.artifacts", Value::Array(artifacts));
    put(call, &id, task)?;
    Ok(json!({"deleted": 1}))
}

/// `models.input` or `models.output`.
fn models_path(kind: &str) -> Result<&'static str, Refusal> {
    match kind {
        "input" => Ok("models.input"),
        "output" => Ok("models.output"),
        _ => Err(Refusal::invalid_field("type", "expected input or output")),
    }
}

fn add_or_update_model(call: &Call<'_>) -> Result<Value, Refusal> {
    let (name, model) = (
        call.request.required("name")?,
        call.request.required("model")?,
    );
    let path = models_path(call.request.required("type")?)?;
    let (id, mut task) = fetch(call)?;
    check_not_published(call, &task)?;
    if call.transaction.get(Kind::Models, model)?.is_none() {
        return Err(Refusal::no_document(201, "model", model));
    }
    let mut models = list_at(&task, path);
    let entry = json!({"name": name, "model": model});
    match models.iter_mut().find(|old| old["name"] == name) {
        Some(old) => *old = entry,
        None => models.push(entry),
    }
    set_path(&mut task, path, Value::Array(models));
    if let Some(iteration) = call.request.number("iteration")? {
        let last = task.get("last_iteration").and_then(Value::as_i64);
        task.insert(
            "last_iteration".into(),
            json!(last.unwrap_or(0).max(iteration)),
        );
    }
    put(call, &id, task)?;
    Ok(json!({"updated": 1}))
}

fn delete_models(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("models")?;
    let (id, mut task) = fetch(call)?;
    check_not_published(call, &task)?;
    for gone in call.request.list("models")? {
        let path = models_path(named(gone, "type")?)?;
        let name = gone.as_object().and_then(|gone| text(gone, "name"));
        let mut models = list_at(&task, path);
        models.retain(|old| old["name"].as_str() != name);
        set_path(&mut task, path, Value::Array(models));
    }
    put(call, &id, task)?;
    Ok(json!({"updated": 1}))
}
