//! The `projects` service. A name with slashes is a project within others, which are made with it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::call::{Access, Call, Endpoint, Request, endpoint};
use super::document::{Document, get_path, iso, project, text};
use super::refusal::Refusal;
use super::store::{Kind, Transaction, value};
use super::{COMPANY, COMPANY_NAME, USER_ID, USER_NAME, new_id, query};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("projects.create", "1.0", Access::Write, create),
    endpoint("projects.get_by_id", "1.0", Access::Read, get_by_id),
    endpoint("projects.get_all", "1.0", Access::Read, get_all),
    endpoint("projects.get_all_ex", "1.0", Access::Read, get_all_ex),
    endpoint("projects.update", "1.0", Access::Write, update),
    endpoint("projects.delete", "1.0", Access::Write, delete),
    endpoint("projects.get_task_tags", "2.8", Access::Read, get_task_tags),
];

fn fetch(call: &Call<'_>) -> Result<(String, Document), Refusal> {
    let id = call.request.required("project")?;
    let project = check(call.transaction, id)?;
    Ok((id.to_owned(), project))
}

/// The project, or the refusal of an id that none has.
pub fn check(transaction: &Transaction<'_>, id: &str) -> Result<Document, Refusal> {
    transaction
        .get(Kind::Projects, id)?
        .ok_or_else(|| Refusal::no_document(401, "project", id))
}

fn by_name(transaction: &Transaction<'_>, name: &str) -> Result<Option<Document>, Refusal> {
    let projects = transaction.all(Kind::Projects)?;
    Ok(projects.into_iter().find(|p| text(p, "name") == Some(name)))
}

/// The id of the project with this name, made if there is none.
pub fn find_or_make(
    transaction: &Transaction<'_>,
    name: &str,
    now: Timestamp,
) -> Result<String, Refusal> {
    match by_name(transaction, name)? {
        Some(project) => Ok(text(&project, "id").unwrap_or_default().to_owned()),
        None => make(transaction, name, Request(&Document::new()), now),
    }
}

fn make(
    transaction: &Transaction<'_>,
    name: &str,
    request: Request<'_>,
    now: Timestamp,
) -> Result<String, Refusal> {
    super::check_name(name)?;
    if by_name(transaction, name)?.is_some() {
        return Err(Refusal::not_unique("project", name));
    }
    let (parent, basename) = match name.rsplit_once('/') {
        Some((parent, basename)) if !parent.is_empty() => {
            (Some(find_or_make(transaction, parent, now)?), basename)
        }
        _ => (None, name),
    };
    let id = new_id();
    let project = json!({
        "id": id, "company": COMPANY, "user": USER_ID, "name": name, "basename": basename,
        "description": request.text("description")?.unwrap_or_default(),
        "created": iso(now), "tags": request.list("tags")?,
        "system_tags": request.list("system_tags")?, "last_update": iso(now), "featured": 9999,
    });
    let mut project = project.as_object().cloned().unwrap_or_default();
    for field in ["default_output_destination"] {
        if let Some(value) = request.get(field) {
            project.insert(field.into(), value.clone());
        }
    }
    if let Some(parent) = parent {
        project.insert("parent".into(), json!(parent));
    }
    transaction.put(Kind::Projects, &id, &project)?;
    Ok(id)
}

fn create(call: &Call<'_>) -> Result<Value, Refusal> {
    let name = call.request.required("name")?;
    Ok(json!({"id": make(call.transaction, name, call.request, call.now)?}))
}

fn get_by_id(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, mut project) = fetch(call)?;
    let mut path = Vec::new();
    let mut parent = text(&project, "parent").map(str::to_owned);
    while let Some(id) = parent {
        let above = call.transaction.get(Kind::Projects, &id)?;
        parent = above.and_then(|p| text(&p, "parent").map(str::to_owned));
        path.insert(0, Value::String(id));
    }
    project.insert("path".into(), Value::Array(path));
    Ok(json!({"project": project}))
}

fn get_all(call: &Call<'_>) -> Result<Value, Refusal> {
    let projects = query::select(call.transaction.all(Kind::Projects)?, call.request)?;
    let fields = query::only_fields(call.request);
    let projects: Vec<Value> = projects
        .iter()
        .map(|p| value(project(p, &fields)))
        .collect();
    Ok(json!({"projects": projects}))
}

fn get_all_ex(call: &Call<'_>) -> Result<Value, Refusal> {
    let projects = query::select(call.transaction.all(Kind::Projects)?, call.request)?;
    let fields = query::only_fields(call.request);
    let mut result = Vec::new();
    for mut found in projects {
        join(call.transaction, &mut found)?;
        result.push(value(project(&found, &fields)));
    }
    Ok(json!({"projects": result}))
}

/// Puts the named documents in the place of their ids, as the `_ex` calls give them.
pub fn join(transaction: &Transaction<'_>, document: &mut Document) -> Result<(), Refusal> {
    let company = json!({"id": COMPANY, "name": COMPANY_NAME});
    document.insert("company".into(), company);
    if document.contains_key("user") {
        let user = json!({"id": USER_ID, "name": USER_NAME});
        document.insert("user".into(), user);
    }
    let parents = if document.contains_key("basename") {
        Kind::Projects
    } else {
        Kind::Tasks
    };
    for (path, kind) in [
        ("project", Kind::Projects),
        ("parent", parents),
        ("task", Kind::Tasks),
        ("execution.queue", Kind::Queues),
    ] {
        let Some(id) = get_path(document, path).and_then(Value::as_str) else {
            continue;
        };
        let mut joined = json!({"id": id});
        if let Some(found) = transaction.get(kind, id)? {
            for field in ["name", "basename", "parent"] {
                if let Some(value) = found.get(field) {
                    joined[field] = value.clone();
                }
            }
        }
        super::document::set_path(document, path, joined);
    }
    Ok(())
}

fn update(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut project) = fetch(call)?;
    let mut fields = Document::new();
    for field in [
        "name",
        "description",
        "tags",
        "system_tags",
        "default_output_destination",
    ] {
        if let Some(value) = call.request.get(field) {
            fields.insert(field.into(), value.clone());
        }
    }
    if let Some(name) = call.request.text("name")? {
        super::check_name(name)?;
        if by_name(call.transaction, name)?.is_some_and(|other| text(&other, "id") != Some(&id)) {
            return Err(Refusal::not_unique("project", name));
        }
        let basename = name.rsplit('/').next().unwrap_or(name);
        fields.insert("basename".into(), json!(basename));
    }
    fields.insert("last_update".into(), json!(iso(call.now)));
    project.extend(fields.clone());
    call.transaction.put(Kind::Projects, &id, &project)?;
    Ok(json!({"updated": 1, "fields": fields}))
}

fn delete(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, _) = fetch(call)?;
    let in_it = |document: &Document| text(document, "project") == Some(&id);
    let force = call.request.flag("force")?;
    let mut disassociated = 0;
    for (kind, noun, subcode) in [(Kind::Tasks, "tasks", 402), (Kind::Models, "models", 405)] {
        for mut document in call.transaction.all(kind)? {
            if !in_it(&document) {
                continue;
            }
            if !force {
                let message = format!("Project has associated {noun}: use force=true: id={id}");
                return Err(Refusal::new(400, subcode, message));
            }
            let Some(Value::String(member)) = document.get("id").cloned() else {
                continue;
            };
            document.shift_remove("project");
            call.transaction.put(kind, &member, &document)?;
            disassociated += usize::from(kind == Kind::Tasks);
        }
    }
    call.transaction.delete(Kind::Projects, &id)?;
    Ok(json!({"deleted": 1, "disassociated_tasks": disassociated}))
}

/// The tags of all tasks, or of those of some projects.
fn get_task_tags(call: &Call<'_>) -> Result<Value, Refusal> {
    let projects = call.request.texts("projects")?;
    let mut tags = std::collections::BTreeSet::new();
    for task in call.transaction.all(Kind::Tasks)? {
        let wanted = projects.is_empty()
            || text(&task, "project").is_some_and(|project| projects.contains(&project));
        if let (true, Some(Value::Array(found))) = (wanted, task.get("tags")) {
            tags.extend(found.iter().filter_map(|t| t.as_str().map(str::to_owned)));
        }
    }
    Ok(json!({"tags": tags}))
}
