//! Reading tasks.

use serde_json::{Value, json};

use super::super::call::{Access, Call, Endpoint, endpoint};
use super::super::document::{Document, project};
use super::super::refusal::Refusal;
use super::super::store::{Kind, value};
use super::super::{projects, query};
use super::make::TYPES;

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("tasks.get_by_id", "1.0", Access::Read, get_by_id),
    endpoint("tasks.get_by_id_ex", "1.0", Access::Read, get_all_ex),
    endpoint("tasks.get_all", "1.0", Access::Read, get_all),
    endpoint("tasks.get_all_ex", "1.0", Access::Read, get_all_ex),
    endpoint("tasks.get_types", "2.8", Access::Read, get_types),
];

fn get_by_id(call: &Call<'_>) -> Result<Value, Refusal> {
    let id = call.request.required("task")?;
    match call.transaction.get(Kind::Tasks, id)? {
        Some(task) => Ok(json!({"task": task})),
        None => {
            let message = format!("Invalid task id: ids=({id})");
            Err(Refusal::new(400, 101, message))
        }
    }
}

/// The tasks asked for: by id where ids are given, which spares looking at all.
fn selected(call: &Call<'_>) -> Result<Vec<Document>, Refusal> {
    let ids: Vec<&str> = match call.request.get("id") {
        Some(Value::String(id)) => vec![id],
        _ => call.request.texts("id")?,
    };
    let documents = if ids.is_empty() {
        call.transaction.all(Kind::Tasks)?
    } else {
        let found = ids.iter().map(|id| call.transaction.get(Kind::Tasks, id));
        found
            .filter_map(Result::transpose)
            .collect::<Result<_, _>>()?
    };
    query::select(documents, call.request)
}

fn get_all(call: &Call<'_>) -> Result<Value, Refusal> {
    let fields = query::only_fields(call.request);
    let tasks = selected(call)?;
    let tasks: Vec<Value> = tasks.iter().map(|t| value(project(t, &fields))).collect();
    Ok(json!({"tasks": tasks}))
}

fn get_all_ex(call: &Call<'_>) -> Result<Value, Refusal> {
    let fields = query::only_fields(call.request);
    let mut tasks = Vec::new();
    for mut task in selected(call)? {
        projects::join(call.transaction, &mut task)?;
        tasks.push(value(project(&task, &fields)));
    }
    Ok(json!({"tasks": tasks}))
}

fn get_types(_: &Call<'_>) -> Result<Value, Refusal> {
    Ok(json!({"types": TYPES}))
}
