//! The `models` service, as far as the SDK needs it to keep what a task makes.

use serde_json::{Value, json};

use super::call::{Access, Call, Endpoint, endpoint};
use super::document::{Document, get_path, iso, project, set_path, text};
use super::refusal::Refusal;
use super::store::{Kind, value};
use super::{COMPANY, USER_ID, check_name, new_id, projects, query, tasks};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("models.create", "1.0", Access::Write, create),
    endpoint("models.get_by_id", "1.0", Access::Read, get_by_id),
    endpoint("models.get_all", "1.0", Access::Read, get_all),
    endpoint("models.get_all_ex", "1.0", Access::Read, get_all_ex),
    endpoint("models.edit", "1.0", Access::Write, edit),
    endpoint("models.update", "1.0", Access::Write, edit),
    endpoint(
        "models.update_for_task",
        "1.0",
        Access::Write,
        update_for_task,
    ),
    endpoint("models.set_ready", "1.0", Access::Write, set_ready),
    endpoint("models.delete", "1.0", Access::Write, delete),
    endpoint(
        "models.add_or_update_metadata",
        "2.13",
        Access::Write,
        add_or_update_metadata,
    ),
];

const GIVABLE: [&str; 13] = [
    "name",
    "uri",
    "comment",
    "tags",
    "system_tags",
    "framework",
    "design",
    "labels",
    "ready",
    "project",
    "parent",
    "task",
    "metadata",
];

fn fetch(call: &Call<'_>) -> Result<(String, Document), Refusal> {
    let id = call.request.required("model")?;
    let model = call.transaction.get(Kind::Models, id)?;
    let model = model.ok_or_else(|| Refusal::no_document(201, "model", id))?;
    Ok((id.to_owned(), model))
}

fn given(call: &Call<'_>) -> Result<Document, Refusal> {
    if let Some(name) = call.request.text("name")? {
        check_name(name)?;
    }
    if let Some(project) = call.request.text("project")? {
        projects::check(call.transaction, project)?;
    }
    let fields = GIVABLE
        .iter()
        .filter_map(|field| Some(((*field).to_owned(), call.request.get(field)?.clone())));
    let mut fields: Document = fields.collect();
    if let Some(Value::Array(items)) = fields.get("metadata") {
        let items = items.iter().filter_map(|item| {
            let key = item["key"].as_str()?;
            Some((key.to_owned(), item.clone()))
        });
        let metadata = Value::Object(items.collect());
        fields.insert("metadata".into(), metadata);
    }
    fields.insert("last_update".into(), json!(iso(call.now)));
    fields.insert("last_change".into(), json!(iso(call.now)));
    Ok(fields)
}

fn make(call: &Call<'_>, given: Document) -> Result<String, Refusal> {
    let id = call.request.text("id")?.map_or_else(new_id, str::to_owned);
    let model = json!({
        "id": id, "company": COMPANY, "user": USER_ID, "created": iso(call.now),
        "tags": [], "system_tags": [], "labels": {}, "design": {}, "ready": true, "metadata": {},
    });
    let mut model = model.as_object().cloned().unwrap_or_default();
    model.extend(given);
    call.transaction.put(Kind::Models, &id, &model)?;
    Ok(id)
}

fn create(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required("name")?;
    let id = make(call, given(call)?)?;
    Ok(json!({"id": id, "created": true}))
}

fn get_by_id(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, model) = fetch(call)?;
    Ok(json!({"model": model}))
}

fn get_all(call: &Call<'_>) -> Result<Value, Refusal> {
    let models = query::select(call.transaction.all(Kind::Models)?, call.request)?;
    let fields = query::only_fields(call.request);
    let models: Vec<Value> = models.iter().map(|m| value(project(m, &fields))).collect();
    Ok(json!({"models": models}))
}

fn get_all_ex(call: &Call<'_>) -> Result<Value, Refusal> {
    let fields = query::only_fields(call.request);
    let mut result = Vec::new();
    for mut model in query::select(call.transaction.all(Kind::Models)?, call.request)? {
        projects::join(call.transaction, &mut model)?;
        result.push(value(project(&model, &fields)));
    }
    Ok(json!({"models": result}))
}

fn edit(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut model) = fetch(call)?;
    let fields = given(call)?;
    model.extend(fields.clone());
    call.transaction.put(Kind::Models, &id, &model)?;
    Ok(json!({"updated": 1, "fields": fields}))
}

/// Makes the task's output model, or changes it where it is there under this name.
fn update_for_task(call: &Call<'_>) -> Result<Value, Refusal> {
    let (task_id, mut task) = tasks::fetch(call)?;
    let mut fields = given(call)?;
    let name = call.request.text("name")?.or(text(&task, "name"));
    let name = name.unwrap_or_default().to_owned();
    fields.insert("name".into(), json!(name));
    let outputs = get_path(&task, "models.output").and_then(Value::as_array);
    let mut outputs = outputs.cloned().unwrap_or_default();
    let known = outputs.iter().find(|entry| entry["name"] == name.as_str());
    if let Some(id) = known.and_then(|entry| entry["model"].as_str())
        && let Some(mut model) = call.transaction.get(Kind::Models, id)?
    {
        model.extend(fields.clone());
        call.transaction.put(Kind::Models, id, &model)?;
        return Ok(json!({"id": id, "created": false, "updated": 1, "fields": fields}));
    }
    if let Some(project) = task.get("project") {
        fields.entry("project").or_insert(project.clone());
    }
    // A model becomes ready with its task.
    fields.insert("ready".into(), json!(false));
    let id = make(call, fields)?;
    outputs.push(json!({"name": name, "model": id}));
    set_path(&mut task, "models.output", Value::Array(outputs));
    call.transaction.put(Kind::Tasks, &task_id, &task)?;
    Ok(json!({"id": id, "created": true}))
}

fn set_ready(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut model) = fetch(call)?;
    model.insert("ready".into(), json!(true));
    model.insert("last_update".into(), json!(iso(call.now)));
    call.transaction.put(Kind::Models, &id, &model)?;
    Ok(json!({"updated": 1}))
}

fn delete(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, model) = fetch(call)?;
    call.transaction.delete(Kind::Models, &id)?;
    let url = if call.request.flag("return_file_url")? {
        model.get("uri").cloned()
    } else {
        None
    };
    Ok(json!({"deleted": true, "url": url}))
}

fn add_or_update_metadata(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("metadata")?;
    let (id, mut model) = fetch(call)?;
    let mut metadata = match model.get("metadata") {
        Some(Value::Object(old)) if !call.request.flag("replace_metadata")? => old.clone(),
        _ => Document::new(),
    };
    for item in call.request.list("metadata")? {
        if let Some(key) = item["key"].as_str() {
            metadata.insert(key.to_owned(), item.clone());
        }
    }
    model.insert("metadata".into(), Value::Object(metadata));
    call.transaction.put(Kind::Models, &id, &model)?;
    Ok(json!({"updated": 1}))
}
