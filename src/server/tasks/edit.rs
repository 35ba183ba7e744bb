//! Changing what a task says, but for its status.

use serde_json::{Value, json};

use super::super::call::{Access, Call, Endpoint, endpoint};
use super::super::document::{self, Document, iso, merged};
use super::super::refusal::Refusal;
use super::super::store::Kind;
use super::super::{check_name, projects};
use super::{check_editable, fetch, touch, touched, updated};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("tasks.edit", "1.0", Access::Write, edit),
    endpoint("tasks.update", "1.0", Access::Write, update),
    endpoint("tasks.move", "2.12", Access::Write, move_to_project),
    endpoint("tasks.archive", "2.12", Access::Write, archive),
    endpoint("tasks.unarchive", "2.12", Access::Write, unarchive),
    endpoint(
        "tasks.set_requirements",
        "1.0",
        Access::Write,
        set_requirements,
    ),
    endpoint("tasks.ping", "1.0", Access::Write, ping),
];

/// Embedded documents, which are merged one level deep. Whatever else is an object is a plain map
/// and is replaced whole.
const EMBEDDED: [&str; 4] = ["script", "execution", "output", "models"];
/// What `tasks.edit` may write besides.
const EDITABLE: [&str; 12] = [
    "name",
    "comment",
    "tags",
    "system_tags",
    "type",
    "parent",
    "project",
    "output_dest",
    "hyperparams",
    "configuration",
    "container",
    "runtime",
];
/// What `tasks.update` may write, whatever the task's status.
const UPDATABLE: [&str; 7] = [
    "name",
    "comment",
    "tags",
    "system_tags",
    "project",
    "output",
    "created",
];

fn edit(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, task) = fetch(call)?;
    // Names and the like are looked at first, as the real server does.
    let fields = given(call, &task, |field| {
        EDITABLE.contains(&field) || EMBEDDED.contains(&field)
    })?;
    check_editable(call, &task)?;
    write(call, task, fields)
}

fn update(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, task) = fetch(call)?;
    let fields = given(call, &task, |field| UPDATABLE.contains(&field))?;
    write(call, task, fields)
}

/// The fields that the call gives, checked, and merged with what the task holds where that is due.
fn given(
    call: &Call<'_>,
    task: &Document,
    may: impl Fn(&str) -> bool,
) -> Result<Document, Refusal> {
    if let Some(name) = call.request.text("name")? {
        check_name(name)?;
    }
    if let Some(project) = call.request.text("project")? {
        projects::check(call.transaction, project)?;
    }
    let mut fields = Document::new();
    for (field, new) in call.request.0 {
        if new.is_null() || !may(field) {
            continue;
        }
        let new = if EMBEDDED.contains(&field.as_str()) {
            merged(task.get(field), new)
        } else {
            new.clone()
        };
        fields.insert(field.clone(), new);
    }
    Ok(fields)
}

fn write(call: &Call<'_>, mut task: Document, mut fields: Document) -> Result<Value, Refusal> {
    fields.extend(touched(call));
    task.extend(fields.clone());
    let id = call.request.required("task")?;
    call.transaction.put(Kind::Tasks, id, &task)?;
    Ok(updated(fields))
}

fn move_to_project(call: &Call<'_>) -> Result<Value, Refusal> {
    let project = match call.request.text("project_name")? {
        Some(name) => projects::find_or_make(call.transaction, name, call.now)?,
        None => {
            let project = call.request.required("project")?;
            projects::check(call.transaction, project)?;
            project.to_owned()
        }
    };
    let mut moved = 0;
    for id in call.request.texts("ids")? {
        if let Some(mut task) = call.transaction.get(Kind::Tasks, id)? {
            task.insert("project".into(), json!(project));
            touch(call, &mut task);
            call.transaction.put(Kind::Tasks, id, &task)?;
            moved += 1;
        }
    }
    Ok(json!({"project_id": project, "moved": moved}))
}

fn archive(call: &Call<'_>) -> Result<Value, Refusal> {
    set_archived(call, true).map(|changed| json!({"archived": changed}))
}

fn unarchive(call: &Call<'_>) -> Result<Value, Refusal> {
    set_archived(call, false).map(|changed| json!({"unarchived": changed}))
}

/// Archived is a system tag. `tasks` is a list of ids.
fn set_archived(call: &Call<'_>, archived: bool) -> Result<usize, Refusal> {
    call.request.required_value("tasks")?;
    let mut changed = 0;
    for id in call.request.texts("tasks")? {
        let task = call.transaction.get(Kind::Tasks, id)?;
        let mut task = task.ok_or_else(|| Refusal::no_task(id))?;
        let mut tags: Vec<Value> = task
            .get("system_tags")
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        tags.retain(|tag| tag != "archived");
        if archived {
            tags.push(json!("archived"));
        }
        task.insert("system_tags".into(), Value::Array(tags));
        touch(call, &mut task);
        call.transaction.put(Kind::Tasks, id, &task)?;
        changed += 1;
    }
    Ok(changed)
}

fn set_requirements(call: &Call<'_>) -> Result<Value, Refusal> {
    let requirements = call.request.required_value("requirements")?.clone();
    let (id, mut task) = fetch(call)?;
    document::set_path(&mut task, "script.requirements", requirements);
    touch(call, &mut task);
    call.transaction.put(Kind::Tasks, &id, &task)?;
    Ok(json!({"fields": {}, "updated": 1}))
}

fn ping(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut task) = fetch(call)?;
    task.insert("last_update".into(), json!(iso(call.now)));
    call.transaction.put(Kind::Tasks, &id, &task)?;
    Ok(json!({}))
}
