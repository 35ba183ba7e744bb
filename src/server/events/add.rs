//! Taking events in.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::super::call::{Access, Call, Endpoint, endpoint};
use super::super::document::{Document, get_path, iso, set_path};
use super::super::refusal::Refusal;
use super::super::state::status_of;
use super::super::store::Kind;
use super::{kind, log_key, value_key};
use crate::task::Status;

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("events.add", "1.0", Access::Write, add),
    endpoint("events.add_batch", "1.0", Access::Write, add_batch),
    endpoint(
        "events.delete_for_task",
        "1.0",
        Access::Write,
        delete_for_task,
    ),
];

/// Figures of machines are no progress of the task.
const NO_ITERATION: [&str; 2] = [":monitor:machine", ":monitor:gpu"];

fn add(call: &Call<'_>) -> Result<Value, Refusal> {
    let event = Value::Object(call.request.0.clone());
    take(call, std::slice::from_ref(&event))
}

fn add_batch(call: &Call<'_>) -> Result<Value, Refusal> {
    if call.items.is_empty() {
        return Err(Refusal::no_items());
    }
    take(call, call.items)
}

/// Keeps what can be kept; says how much that was and why not the rest.
fn take(call: &Call<'_>, events: &[Value]) -> Result<Value, Refusal> {
    let mut tasks = BTreeMap::<String, Option<Document>>::new();
    let mut errors = BTreeMap::<String, usize>::new();
    let mut added = 0;
    for event in events {
        match take_one(call, event, &mut tasks) {
            Ok(()) => added += 1,
            Err(Problem::OfEvent(why)) => *errors.entry(why).or_default() += 1,
            Err(Problem::OfStore(refusal)) => return Err(refusal),
        }
    }
    if added == 0 {
        let all: Vec<String> = errors.iter().map(|(why, n)| format!("{why}={n}")).collect();
        let message = format!("Events not added: {}", all.join(", "));
        return Err(Refusal::new(400, 131, message));
    }
    for (id, task) in tasks {
        if let Some(mut task) = task {
            task.insert("last_update".into(), json!(iso(call.now)));
            call.transaction.put(Kind::Tasks, &id, &task)?;
        }
    }
    let failed: usize = errors.values().sum();
    Ok(json!({"added": added, "errors": failed, "errors_info": errors}))
}

enum Problem {
    /// Only this event is lost.
    OfEvent(String),
    OfStore(Refusal),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Problem::OfStore(refusal)
    }
}

fn take_one(
    call: &Call<'_>,
    event: &Value,
    tasks: &mut BTreeMap<String, Option<Document>>,
) -> Result<(), Problem> {
    let problem = |why: &str| Problem::OfEvent(why.to_owned());
    let given = event
        .as_object()
        .ok_or_else(|| problem("Event must be an object"))?;
    let text = |field: &str| given.get(field).and_then(Value::as_str);
    let kind = text("type").ok_or_else(|| problem("Event must have a 'type' field"))?;
    if !kind::ALL.contains(&kind) {
        return Err(Problem::OfEvent(format!("Invalid event type {kind}")));
    }
    let id = text("task").ok_or_else(|| problem("Event must have a 'task' field"))?;
    if !tasks.contains_key(id) {
        tasks.insert(id.to_owned(), call.transaction.get(Kind::Tasks, id)?);
    }
    let Some(Some(task)) = tasks.get_mut(id) else {
        return Err(Problem::OfEvent(format!("Invalid task id {id}")));
    };
    let locked = matches!(status_of(task), Status::Published | Status::Publishing);
    if locked && given.get("allow_locked") != Some(&Value::Bool(true)) {
        return Err(Problem::OfEvent(format!("Task is published {id}")));
    }
    let iteration = match given.get("iter") {
        None | Some(Value::Null) => 0,
        Some(iteration) => iteration
            .as_i64()
            .ok_or_else(|| problem("Iteration number must be an integer of 64 bits"))?,
    };
    let timestamp = ["timestamp", "ts"]
        .iter()
        .find_map(|field| milliseconds(given.get(*field)?))
        .unwrap_or_else(|| call.now.as_millisecond());

    let mut event = given.clone();
    event.shift_remove("ts");
    event.shift_remove("allow_locked");
    event.insert("timestamp".into(), json!(timestamp));
    if text("worker").is_none()
        && let Some(worker) = call.worker
    {
        event.insert("worker".into(), json!(worker));
    }
    event.entry("model_event").or_insert(json!(false));
    let arrived = call.now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    event.insert("@timestamp".into(), json!(arrived));
    let metric = text("metric").unwrap_or_default();
    let variant = text("variant").unwrap_or_default();
    event.insert("metric".into(), json!(metric));
    event.insert("variant".into(), json!(variant));

    if kind == kind::LOG {
        let sequence = call.transaction.next_in_sequence()?;
        let key = log_key(timestamp, sequence);
        call.transaction.put_event(id, kind, &key, &event)?;
    } else {
        event.insert("iter".into(), json!(iteration));
        let key = value_key(metric, variant, iteration);
        call.transaction.put_event(id, kind, &key, &event)?;
        let last = task.get("last_iteration").and_then(Value::as_i64);
        if last.unwrap_or(0) < iteration && !NO_ITERATION.contains(&metric) {
            task.insert("last_iteration".into(), json!(iteration));
        }
    }
    if kind == kind::SCALAR
        && let Some(number) = event.get("value").and_then(Value::as_f64)
    {
        set_last_metric(task, (metric, variant), iteration, number, timestamp);
    }
    let path = format!("metric_stats.{}", hash(metric));
    set_path(task, &format!("{path}.metric"), json!(metric));
    let path = format!("{path}.event_stats_by_type.{kind}.last_update");
    set_path(task, &path, json!(timestamp));
    Ok(())
}

fn milliseconds(value: &Value) -> Option<i64> {
    #[allow(clippy::cast_possible_truncation)] // Fractions of a millisecond.
    value
        .as_i64()
        .or_else(|| value.as_f64().map(|ms| ms as i64))
}

/// Metric and variant names hold dots and dollars, so that maps are keyed by a hash of them.
fn hash(name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Keeps the last, least and greatest value of a scalar on the task.
fn set_last_metric(
    task: &mut Document,
    (metric, variant): (&str, &str),
    iteration: i64,
    number: f64,
    timestamp: i64,
) {
    let path = format!("last_metrics.{}.{}", hash(metric), hash(variant));
    let old = get_path(task, &path).cloned().unwrap_or(Value::Null);
    let of_old = |field: &str| old.get(field).and_then(Value::as_f64);
    let least = of_old("min_value").is_none_or(|min| number < min);
    let greatest = of_old("max_value").is_none_or(|max| number > max);
    let keep = |field: &str, new: bool, value: Value| {
        if new { value } else { old[field].clone() }
    };
    let newest = old
        .get("iter")
        .and_then(Value::as_i64)
        .is_none_or(|iter| iteration >= iter);
    let count = old.get("count").and_then(Value::as_i64).unwrap_or(0) + 1;
    let new = json!({
        "metric": metric, "variant": variant,
        "value": keep("value", newest, json!(number)),
        "iter": keep("iter", newest, json!(iteration)),
        "timestamp": keep("timestamp", newest, json!(timestamp)),
        "min_value": keep("min_value", least, json!(number)),
        "min_value_iteration": keep("min_value_iteration", least, json!(iteration)),
        "max_value": keep("max_value", greatest, json!(number)),
        "max_value_iteration": keep("max_value_iteration", greatest, json!(iteration)),
        "first_value": keep("first_value", old.is_null(), json!(number)),
        "first_value_iteration": keep("first_value_iteration", old.is_null(), json!(iteration)),
        "count": count,
    });
    set_path(task, &path, new);
    let name = json!(format!("{metric}/{variant}"));
    let names = task.entry("unique_metrics").or_insert_with(|| json!([]));
    if let Value::Array(names) = names
        && !names.contains(&name)
    {
        names.push(name);
    }
}

fn delete_for_task(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, _) = super::super::tasks::fetch(call)?;
    call.transaction.delete_events(&id)?;
    Ok(json!({"deleted": true}))
}
