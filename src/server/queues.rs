//! The `queues` service. An entry is taken out by exactly one caller.

use serde_json::{Value, json};

use super::call::{Access, Call, Endpoint, endpoint};
use super::document::{Document, iso, project, text, without_nulls};
use super::refusal::Refusal;
use super::state::{Change, status_of};
use super::store::{Kind, Transaction, value};
use super::tasks;
use super::{COMPANY, COMPANY_NAME, USER_ID, new_id, query};
use crate::task::Status;

/// The queue that is there from the start.
pub const DEFAULT_QUEUE: &str = "default";

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("queues.create", "2.4", Access::Write, create),
    endpoint("queues.get_by_id", "2.4", Access::Read, get_by_id),
    endpoint("queues.get_all", "2.4", Access::Read, get_all),
    endpoint("queues.get_all_ex", "2.4", Access::Read, get_all_ex),
    endpoint("queues.get_default", "2.4", Access::Read, get_default),
    endpoint(
        "queues.get_num_entries",
        "2.13",
        Access::Read,
        get_num_entries,
    ),
    endpoint("queues.update", "2.4", Access::Write, update),
    endpoint("queues.delete", "2.4", Access::Write, delete),
    endpoint("queues.add_task", "2.4", Access::Write, add_task),
    endpoint("queues.remove_task", "2.4", Access::Write, remove_task),
    endpoint("queues.get_next_task", "1.0", Access::Write, get_next_task),
    endpoint("queues.peek_task", "2.15", Access::Read, peek_task),
];

fn fetch(call: &Call<'_>) -> Result<(String, Document), Refusal> {
    let id = call.request.required("queue")?;
    let queue = call.transaction.get(Kind::Queues, id)?;
    let queue = queue.ok_or_else(|| Refusal::no_document(701, "queue", id))?;
    Ok((id.to_owned(), queue))
}

fn entries(queue: &Document) -> &[Value] {
    queue
        .get("entries")
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn holds(entry: &Value, task: &str) -> bool {
    entry["task"].as_str() == Some(task)
}

fn set_entries(call: &Call<'_>, queue: &mut Document, entries: Vec<Value>) -> Result<(), Refusal> {
    queue.insert("entries".into(), Value::Array(entries));
    queue.insert("last_update".into(), json!(iso(call.now)));
    let id = text(queue, "id").unwrap_or_default().to_owned();
    call.transaction.put(Kind::Queues, &id, queue)
}

fn by_name(transaction: &Transaction<'_>, name: &str) -> Result<Option<String>, Refusal> {
    let queues = transaction.all(Kind::Queues)?;
    let found = queues
        .iter()
        .find(|queue| text(queue, "name") == Some(name));
    Ok(found.and_then(|queue| text(queue, "id").map(str::to_owned)))
}

/// Makes a queue; gives its id.
pub fn make(
    transaction: &Transaction<'_>,
    name: &str,
    tags: [Value; 2],
    now: jiff::Timestamp,
) -> Result<String, Refusal> {
    super::check_name(name)?;
    if by_name(transaction, name)?.is_some() {
        return Err(Refusal::not_unique("queue", name));
    }
    let id = new_id();
    let [tags, system_tags] = tags;
    let queue = json!({
        "id": id, "name": name, "user": USER_ID, "company": COMPANY, "created": iso(now),
        "tags": tags, "system_tags": system_tags, "entries": [],
        "last_update": iso(now), "metadata": {},
    });
    let mut queue = queue.as_object().cloned().unwrap_or_default();
    // The default queue is nobody's.
    if name == DEFAULT_QUEUE {
        queue.shift_remove("user");
    }
    transaction.put(Kind::Queues, &id, &queue)?;
    Ok(id)
}

/// Sees to it that there is a default queue.
pub fn make_default(transaction: &Transaction<'_>, now: jiff::Timestamp) -> Result<(), Refusal> {
    if by_name(transaction, DEFAULT_QUEUE)?.is_none() {
        make(
            transaction,
            DEFAULT_QUEUE,
            [json!([]), json!(["default"])],
            now,
        )?;
    }
    Ok(())
}

fn create(call: &Call<'_>) -> Result<Value, Refusal> {
    let name = call.request.required("name")?;
    let tags = call.request.list("tags")?;
    let system_tags = call.request.list("system_tags")?;
    let tags = [json!(tags), json!(system_tags)];
    Ok(json!({"id": make(call.transaction, name, tags, call.now)?}))
}

fn get_by_id(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, queue) = fetch(call)?;
    Ok(json!({"queue": queue}))
}

fn get_all(call: &Call<'_>) -> Result<Value, Refusal> {
    let queues = query::select(call.transaction.all(Kind::Queues)?, call.request)?;
    let fields = query::only_fields(call.request);
    let queues: Vec<Value> = queues.iter().map(|q| value(project(q, &fields))).collect();
    Ok(json!({"queues": queues}))
}

fn get_all_ex(call: &Call<'_>) -> Result<Value, Refusal> {
    let queues = query::select(call.transaction.all(Kind::Queues)?, call.request)?;
    let fields = query::only_fields(call.request);
    let workers = call.transaction.all(Kind::Workers)?;
    let mut result = Vec::new();
    for mut queue in queues {
        let mut joined = Vec::new();
        for entry in entries(&queue) {
            let mut entry = entry.clone();
            let task = entry["task"].as_str().unwrap_or_default();
            let found = call.transaction.get(Kind::Tasks, task)?;
            let name = found.as_ref().and_then(|task| text(task, "name"));
            entry["task"] = json!({"id": task, "name": name});
            joined.push(entry);
        }
        queue.insert("entries".into(), Value::Array(joined));
        let company = json!({"id": COMPANY, "name": COMPANY_NAME});
        queue.insert("company".into(), company);
        let serving: Vec<Value> = workers
            .iter()
            .filter(|worker| {
                let queues = worker.get("queues").and_then(Value::as_array);
                queues.is_some_and(|ids| ids.contains(&queue["id"]))
            })
            .map(|worker| json!({"name": worker["id"], "ip": worker["ip"], "task": worker.get("task")}))
            .collect();
        queue.insert("workers".into(), Value::Array(serving));
        result.push(value(project(&queue, &fields)));
    }
    Ok(json!({"queues": result}))
}

fn default_queue(call: &Call<'_>) -> Result<Option<Document>, Refusal> {
    let queues = call.transaction.all(Kind::Queues)?;
    Ok(queues.into_iter().find(|queue| {
        let tags = queue.get("system_tags").and_then(Value::as_array);
        tags.is_some_and(|tags| tags.contains(&json!("default")))
    }))
}

fn get_default(call: &Call<'_>) -> Result<Value, Refusal> {
    let queue = default_queue(call)?
        .ok_or_else(|| Refusal::new(400, 707, "No default queue is configured"))?;
    Ok(json!({"id": queue["id"], "name": queue["name"]}))
}

fn get_num_entries(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, queue) = fetch(call)?;
    Ok(json!({"num": entries(&queue).len()}))
}

fn update(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, mut queue) = fetch(call)?;
    let mut fields = Document::new();
    for field in ["name", "tags", "system_tags", "metadata"] {
        if let Some(value) = call.request.get(field) {
            fields.insert(field.into(), value.clone());
        }
    }
    if let Some(name) = call.request.text("name")? {
        super::check_name(name)?;
        if by_name(call.transaction, name)?.is_some_and(|other| other != id) {
            return Err(Refusal::not_unique("queue", name));
        }
    }
    fields.insert("last_update".into(), json!(iso(call.now)));
    queue.extend(fields.clone());
    call.transaction.put(Kind::Queues, &id, &queue)?;
    Ok(json!({"updated": 1, "fields": fields}))
}

fn delete(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, queue) = fetch(call)?;
    if !entries(&queue).is_empty() && !call.request.flag("force")? {
        let message = format!("Queue is not empty, use force=true to delete: id={id}");
        return Err(Refusal::new(400, 704, message));
    }
    call.transaction.delete(Kind::Queues, &id)?;
    Ok(json!({"deleted": 1}))
}

fn queue_of(call: &Call<'_>, task: &str) -> Result<Option<Document>, Refusal> {
    let queues = call.transaction.all(Kind::Queues)?;
    Ok(queues
        .into_iter()
        .find(|queue| entries(queue).iter().any(|entry| holds(entry, task))))
}

/// Puts `task` at the end of the queue; a task is in one queue at most.
fn append(call: &Call<'_>, mut queue: Document, task: &str) -> Result<(), Refusal> {
    if queue_of(call, task)?.is_some() {
        return Err(Refusal::already_queued(task));
    }
    let mut all = entries(&queue).to_vec();
    all.push(json!({"task": task, "added": iso(call.now)}));
    set_entries(call, &mut queue, all)
}

/// Puts `task` in the queue that the call names by `queue` or `queue_name` (made if there is
/// none), or in the default one; gives its id.
pub fn enqueue(call: &Call<'_>, task: &str) -> Result<String, Refusal> {
    let id = match (
        call.request.text("queue")?,
        call.request.text("queue_name")?,
    ) {
        (Some(_), Some(_)) => {
            let why = "Either queue id or queue name should be provided";
            return Err(Refusal::bad_body(why));
        }
        (Some(id), None) => id.to_owned(),
        (None, Some(name)) => match by_name(call.transaction, name)? {
            Some(id) => id,
            None => make(call.transaction, name, [json!([]), json!([])], call.now)?,
        },
        (None, None) => {
            let default = get_default(call)?;
            default["id"].as_str().unwrap_or_default().to_owned()
        }
    };
    let queue = call.transaction.get(Kind::Queues, &id)?;
    let queue = queue.ok_or_else(|| Refusal::no_document(701, "queue", &id))?;
    append(call, queue, task)?;
    Ok(id)
}

/// Takes `task` out of whatever queue it is in.
pub fn remove_everywhere(call: &Call<'_>, task: &str) -> Result<(), Refusal> {
    while let Some(mut queue) = queue_of(call, task)? {
        let mut rest = entries(&queue).to_vec();
        rest.retain(|entry| !holds(entry, task));
        set_entries(call, &mut queue, rest)?;
    }
    Ok(())
}

fn add_task(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, queue) = fetch(call)?;
    let (id, _) = tasks::fetch(call)?;
    append(call, queue, &id)?;
    Ok(json!({"added": 1}))
}

fn remove_task(call: &Call<'_>) -> Result<Value, Refusal> {
    let task = call.request.required("task")?;
    let id = call.request.required("queue")?;
    let not_there = || Refusal::not_in_queue(task, id);
    let queue = call.transaction.get(Kind::Queues, id)?;
    let mut queue = queue.ok_or_else(not_there)?;
    let mut rest = entries(&queue).to_vec();
    let before = rest.len();
    rest.retain(|entry| !holds(entry, task));
    let removed = before - rest.len();
    if removed == 0 {
        return Err(not_there());
    }
    set_entries(call, &mut queue, rest)?;
    if call.request.flag("update_task_status")?
        && let Some(mut document) = call.transaction.get(Kind::Tasks, task)?
        && status_of(&document) == Status::Queued
    {
        let change = Change {
            to: tasks::status_before_queue(&document),
            reason: "",
            message: "",
            force: true,
        };
        change.apply(&mut document, call.now)?;
        document.shift_remove("enqueue_status");
        call.transaction.put(Kind::Tasks, task, &document)?;
    }
    Ok(json!({"removed": removed}))
}

fn get_next_task(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, mut queue) = fetch(call)?;
    let mut rest = entries(&queue).to_vec();
    if rest.is_empty() {
        return Ok(json!({}));
    }
    let entry = rest.remove(0);
    set_entries(call, &mut queue, rest)?;
    let mut answer = json!({"entry": entry});
    if call.request.flag("get_task_info")? {
        let task = entry["task"].as_str().unwrap_or_default();
        if let Some(task) = call.transaction.get(Kind::Tasks, task)? {
            let info = json!({
                "company": task.get("company"), "project": task.get("project"), "user": task.get("user"),
            });
            answer["task_info"] = value(without_nulls(info.as_object().unwrap_or(&task)));
        }
    }
    Ok(answer)
}

fn peek_task(call: &Call<'_>) -> Result<Value, Refusal> {
    let (_, queue) = fetch(call)?;
    Ok(match entries(&queue).first() {
        Some(entry) => json!({"task": entry["task"]}),
        None => json!({}),
    })
}
