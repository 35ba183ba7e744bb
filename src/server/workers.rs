//! The `workers` service: who is there, what it runs, and its machine's figures.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::call::{Access, Call, Endpoint, endpoint};
use super::document::{self, Document, iso, text};
use super::refusal::Refusal;
use super::store::{Kind, Transaction};
use super::{COMPANY, COMPANY_NAME, USER_ID, USER_NAME};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("workers.register", "2.4", Access::Write, register),
    endpoint("workers.unregister", "2.4", Access::Write, unregister),
    endpoint("workers.status_report", "2.4", Access::Write, status_report),
    endpoint("workers.get_all", "2.4", Access::Read, get_all),
    endpoint("workers.get_count", "2.16", Access::Read, get_count),
    endpoint("workers.get_stats", "2.4", Access::Read, get_stats),
];

/// A worker that says nothing for as long is gone, if it did not ask for another time.
const TIMEOUT: i64 = 600;
/// Machine figures are kept as long.
pub const STATS_KEPT: SignedDuration = SignedDuration::from_hours(24);

fn new_worker(call: &Call<'_>, id: &str) -> Document {
    let now = iso(call.now);
    let worker = json!({
        "id": id,
        "ip": call.address.map(|address| address.to_string()).unwrap_or_default(),
        "key": format!("worker_{COMPANY}_{USER_ID}_{id}"),
        "register_time": now, "register_timeout": TIMEOUT,
        "last_activity_time": now, "last_report_time": now,
        "queues": [], "tags": [], "system_tags": [],
    });
    worker.as_object().cloned().unwrap_or_default()
}

fn worker_id<'c>(call: &Call<'c>) -> Result<&'c str, Refusal> {
    let id = call.request.required("worker")?;
    if id.is_empty() {
        return Err(Refusal::new(400, 1001, "Invalid worker id: id is empty"));
    }
    Ok(id)
}

fn register(call: &Call<'_>) -> Result<Value, Refusal> {
    let id = worker_id(call)?;
    let mut worker = new_worker(call, id);
    if let Some(timeout) = call.request.number("timeout")? {
        worker.insert("register_timeout".into(), json!(timeout));
    }
    for field in ["queues", "tags", "system_tags"] {
        worker.insert(field.into(), json!(call.request.list(field)?));
    }
    call.transaction.put(Kind::Workers, id, &worker)?;
    Ok(json!({}))
}

fn unregister(call: &Call<'_>) -> Result<Value, Refusal> {
    call.transaction.delete(Kind::Workers, worker_id(call)?)?;
    Ok(json!({}))
}

fn status_report(call: &Call<'_>) -> Result<Value, Refusal> {
    let id = worker_id(call)?;
    let request = call.request;
    let time = request
        .number("timestamp")?
        .ok_or_else(|| Refusal::missing_field("timestamp"))?;
    let known = call.transaction.get(Kind::Workers, id)?;
    let mut worker = known.unwrap_or_else(|| new_worker(call, id));
    let now = iso(call.now);
    worker.insert("last_report_time".into(), json!(now));
    for field in ["queues", "tags"] {
        if request.get(field).is_some() {
            worker.insert(field.into(), json!(request.list(field)?));
        }
    }
    for field in ["task", "queue"] {
        match request.text(field)? {
            Some(text) => worker.insert(field.into(), json!(text)),
            None => worker.shift_remove(field),
        };
    }
    if let Some(task_id) = request.text("task")? {
        let task = call.transaction.get(Kind::Tasks, task_id)?;
        let mut task = task.ok_or_else(|| Refusal::no_task(task_id))?;
        task.insert("last_worker".into(), json!(id));
        for field in ["last_worker_report", "last_update", "last_change"] {
            task.insert(field.into(), json!(now));
        }
        call.transaction.put(Kind::Tasks, task_id, &task)?;
        worker.insert("last_activity_time".into(), json!(now));
    }
    if let Some(Value::Object(stats)) = request.get("machine_stats") {
        let stats = document::without_nulls(stats);
        call.transaction.put_stats(id, time, &stats)?;
    }
    call.transaction.put(Kind::Workers, id, &worker)?;
    Ok(json!({}))
}

/// Whether the worker was heard of within its own time.
fn is_there(worker: &Document, now: Timestamp) -> bool {
    let timeout = worker.get("register_timeout").and_then(Value::as_i64);
    let timeout = SignedDuration::from_secs(timeout.unwrap_or(TIMEOUT));
    text(worker, "last_report_time")
        .and_then(document::time)
        .is_some_and(|heard| now.duration_since(heard) <= timeout)
}

/// Workers that are there, and of these the ones heard of within `last_seen` seconds.
fn present(call: &Call<'_>) -> Result<Vec<Document>, Refusal> {
    let within = call
        .request
        .number("last_seen")?
        .filter(|within| *within > 0);
    let mut workers = call.transaction.all(Kind::Workers)?;
    workers.retain(|worker| {
        let heard = text(worker, "last_report_time").and_then(document::time);
        is_there(worker, call.now)
            && within.is_none_or(|within| {
                let within = SignedDuration::from_secs(within);
                heard.is_some_and(|heard| call.now.duration_since(heard) <= within)
            })
    });
    Ok(workers)
}

fn get_all(call: &Call<'_>) -> Result<Value, Refusal> {
    let workers: Result<Vec<Value>, Refusal> = present(call)?
        .into_iter()
        .map(|worker| described(call.transaction, worker, call.now))
        .collect();
    Ok(json!({"workers": workers?}))
}

fn get_count(call: &Call<'_>) -> Result<Value, Refusal> {
    Ok(json!({"count": present(call)?.len()}))
}

fn described(
    transaction: &Transaction<'_>,
    mut worker: Document,
    now: Timestamp,
) -> Result<Value, Refusal> {
    let company = json!({"id": COMPANY, "name": COMPANY_NAME});
    worker.insert("company".into(), company);
    worker.insert("user".into(), json!({"id": USER_ID, "name": USER_NAME}));
    if let Some(id) = text(&worker, "task").map(str::to_owned) {
        worker.shift_remove("task");
        if let Some(task) = transaction.get(Kind::Tasks, &id)? {
            let started = text(&task, "started").and_then(document::time);
            let running = started.map_or(0, |started| now.duration_since(started).as_millis());
            let described = json!({
                "id": id, "name": task.get("name"), "last_iteration": task.get("last_iteration"),
                "running_time": i64::try_from(running).unwrap_or(0).max(0),
            });
            worker.insert("task".into(), described);
            if let Some(project) = text(&task, "project") {
                let found = transaction.get(Kind::Projects, project)?;
                let name = found.as_ref().and_then(|project| text(project, "name"));
                worker.insert("project".into(), json!({"id": project, "name": name}));
            }
        }
    }
    if let Some(Value::Array(ids)) = worker.get("queues").cloned() {
        let mut queues = Vec::new();
        for id in ids.iter().filter_map(Value::as_str) {
            if let Some(queue) = transaction.get(Kind::Queues, id)? {
                queues.push(json!({"id": id, "name": queue.get("name")}));
            }
        }
        worker.insert("queues".into(), Value::Array(queues));
    }
    worker.shift_remove("queue");
    Ok(Value::Object(worker))
}

/// Figures over time: for each worker and item (`{key, category}`) one value for each `interval`.
fn get_stats(call: &Call<'_>) -> Result<Value, Refusal> {
    let request = call.request;
    let seconds = |field| {
        let value = request
            .get(field)
            .ok_or_else(|| Refusal::missing_field(field));
        value.map(|value| value.as_f64().unwrap_or(0.0))
    };
    let (from, to) = (seconds("from_date")?, seconds("to_date")?);
    let interval = request.number("interval")?.unwrap_or(60).max(1) * 1000;
    #[allow(clippy::cast_possible_truncation)] // Saturates, which is what is meant.
    let (from, to) = ((from * 1000.0) as i64, (to * 1000.0) as i64);
    let mut workers = request.texts("worker_ids")?;
    let known = call.transaction.workers_with_stats()?;
    if workers.is_empty() {
        workers = known.iter().map(String::as_str).collect();
    }
    let mut result = Vec::new();
    for worker in workers {
        let samples = call.transaction.stats(worker, from, to)?;
        let mut metrics = Vec::new();
        for item in request.list("items")? {
            let key = item["key"].as_str().unwrap_or_default();
            let category = item["category"].as_str().unwrap_or("avg");
            let (dates, values) = series(&samples, key, category, interval);
            if !dates.is_empty() {
                metrics.push(json!({
                    "metric": key, "dates": dates,
                    "stats": [{"aggregation": category, "dates": dates, "values": values}],
                }));
            }
        }
        if !samples.is_empty() {
            result.push(json!({"worker": worker, "metrics": metrics}));
        }
    }
    Ok(json!({"workers": result}))
}

/// The times (in seconds) at which the intervals with samples begin, and a value for each.
fn series(
    samples: &[(i64, Document)],
    key: &str,
    category: &str,
    interval: i64,
) -> (Vec<i64>, Vec<f64>) {
    let mut buckets = std::collections::BTreeMap::<i64, Vec<f64>>::new();
    for (time, stats) in samples {
        let values: Vec<f64> = match stats.get(key) {
            Some(Value::Array(devices)) => devices.iter().filter_map(Value::as_f64).collect(),
            Some(value) => value.as_f64().into_iter().collect(),
            None => continue,
        };
        let start = time.div_euclid(interval) * interval;
        buckets.entry(start).or_default().extend(values);
    }
    buckets.retain(|_, values| !values.is_empty());
    let values = buckets.values().map(|values| match category {
        "min" => values.iter().copied().fold(f64::INFINITY, f64::min),
        "max" => values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        #[allow(clippy::cast_precision_loss)] // A few thousand samples at most.
        _ => values.iter().sum::<f64>() / values.len() as f64,
    });
    let values = values.collect();
    (buckets.keys().map(|start| start / 1000).collect(), values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_put_together_by_interval() {
        let sample = |time, value: Value| {
            let stats = json!({"cpu_usage": value, "memory_used": time});
            (time, stats.as_object().cloned().unwrap())
        };
        let samples = [
            sample(1_000, json!([10.0, 20.0])),
            sample(2_000, json!([60.0])),
            sample(61_000, json!([5.0])),
            sample(62_000, json!([])),
        ];
        for (category, values) in [
            ("avg", [30.0, 5.0]),
            ("min", [10.0, 5.0]),
            ("max", [60.0, 5.0]),
        ] {
            let (dates, found) = series(&samples, "cpu_usage", category, 60_000);
            assert_eq!((dates, found), (vec![0, 60], values.to_vec()), "{category}");
        }
        assert_eq!(
            series(&samples, "gpu_usage", "avg", 60_000),
            (vec![], vec![])
        );
        assert_eq!(
            series(&samples[..1], "memory_used", "avg", 60_000).1,
            [1000.0]
        );
    }
}
