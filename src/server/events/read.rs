//! Giving events out.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde_json::{Value, json};

use super::super::call::{Access, Call, Endpoint, Request, endpoint};
use super::super::document::{Document, iso, text};
use super::super::refusal::Refusal;
use super::super::store::Kind;
use super::super::tasks;
use super::{SINGLE_VALUE, kind, sortable};

pub const ENDPOINTS: &[Endpoint] = &[
    endpoint("events.get_task_log", "2.9", Access::Read, get_task_log),
    endpoint(
        "events.get_task_events",
        "1.0",
        Access::Read,
        get_task_events,
    ),
    endpoint("events.get_task_plots", "1.0", Access::Read, get_task_plots),
    endpoint(
        "events.get_task_metrics",
        "2.7",
        Access::Read,
        get_task_metrics,
    ),
    endpoint(
        "events.get_task_latest_scalar_values",
        "1.0",
        Access::Read,
        get_task_latest_scalar_values,
    ),
    endpoint(
        "events.get_task_single_value_metrics",
        "2.20",
        Access::Read,
        get_task_single_value_metrics,
    ),
    endpoint(
        "events.scalar_metrics_iter_histogram",
        "1.0",
        Access::Read,
        scalar_metrics_iter_histogram,
    ),
    endpoint("events.debug_images", "2.7", Access::Read, debug_images),
];

const ALL: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);

fn limit(call: &Call<'_>, field: &str, default: usize) -> Result<usize, Refusal> {
    let given = call.request.number(field)?;
    Ok(given.map_or(default, |n| usize::try_from(n).unwrap_or(0).max(1)))
}

fn all_events(call: &Call<'_>, task: &str, kind: &str) -> Result<Vec<Document>, Refusal> {
    call.transaction
        .events((task, kind), ALL, false, |_, _| true)
}

/// One page of the log before or behind a time, which is not in it. A page ends where the time
/// changes, so that no line falls between two pages.
fn get_task_log(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, _) = tasks::fetch(call)?;
    let request = call.request;
    let size = limit(call, "batch_size", 500)?;
    let earlier = request.get("navigate_earlier").is_none() || request.flag("navigate_earlier")?;
    let from = request.number("from_timestamp")?;
    let (before, behind) = match from {
        Some(time) => (sortable(time), sortable(time.saturating_add(1))),
        None => ([0; 8], [0; 8]),
    };
    let bounds = match (from, earlier) {
        (None, _) => ALL,
        (Some(_), true) => (Bound::Unbounded, Bound::Excluded(&before[..])),
        (Some(_), false) => (Bound::Included(&behind[..]), Bound::Unbounded),
    };
    let (mut count, mut last) = (0, [0; 8]);
    let page = (id.as_str(), kind::LOG);
    let mut events = call.transaction.events(page, bounds, earlier, |key, _| {
        count += 1;
        let wanted = count <= size || key.get(..8) == Some(&last[..]);
        if let Some(time) = key.get(..8).and_then(|time| time.try_into().ok()) {
            last = time;
        }
        wanted
    })?;
    let backwards = match request.text("order")? {
        Some(order) => order == "desc",
        None => earlier,
    };
    if backwards != earlier {
        events.reverse();
    }
    let total = call.transaction.count_events(&id, kind::LOG)?;
    Ok(json!({"returned": events.len(), "events": events, "total": total}))
}

/// All events of a task by time, in pages; the scroll id is how many were given.
fn get_task_events(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, _) = tasks::fetch(call)?;
    let size = limit(call, "batch_size", 500)?;
    let done = match call.request.text("scroll_id")? {
        Some(scroll) if !scroll.is_empty() => scroll
            .parse()
            .map_err(|_| Refusal::invalid_field("scroll_id", "not one that was given"))?,
        _ => 0_usize,
    };
    let wanted = call.request.text("event_type")?;
    let mut events = Vec::new();
    for kind in kind::ALL {
        if wanted.is_none_or(|wanted| wanted == kind) {
            events.extend(all_events(call, &id, kind)?);
        }
    }
    events.sort_by_key(|event| event.get("timestamp").and_then(Value::as_i64));
    if call.request.text("order")? == Some("desc") {
        events.reverse();
    }
    let total = events.len();
    let page: Vec<Document> = events.into_iter().skip(done).take(size).collect();
    let scroll = (done + page.len()).to_string();
    Ok(json!({"returned": page.len(), "events": page, "total": total, "scroll_id": scroll}))
}

/// Whether the call's `metrics` (a list of `{metric, variants}`) ask for this event.
fn asks_for(metrics: &[Value], event: &Document) -> bool {
    metrics.is_empty()
        || metrics.iter().any(|wanted| {
            let variants = wanted["variants"].as_array();
            let metric = wanted["metric"].as_str();
            metric.is_none_or(|metric| text(event, "metric") == Some(metric))
                && variants.is_none_or(|variants| {
                    variants.is_empty()
                        || event.get("variant").is_some_and(|v| variants.contains(v))
                })
        })
}

fn iteration(event: &Document) -> i64 {
    event.get("iter").and_then(Value::as_i64).unwrap_or(0)
}

/// Of each metric and variant the last `iterations`, newest first. Events come by iteration.
fn last_iterations(events: Vec<Document>, iterations: usize) -> Vec<Document> {
    let mut by_series = BTreeMap::<(String, String), Vec<Document>>::new();
    for event in events {
        let part = |field| text(&event, field).unwrap_or_default().to_owned();
        let series = (part("metric"), part("variant"));
        by_series.entry(series).or_default().push(event);
    }
    by_series
        .into_values()
        .flat_map(|series| series.into_iter().rev().take(iterations))
        .collect()
}

fn get_task_plots(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, _) = tasks::fetch(call)?;
    let metrics = call.request.list("metrics")?;
    let mut events = all_events(call, &id, kind::PLOT)?;
    events.retain(|event| asks_for(metrics, event));
    let plots = last_iterations(events, limit(call, "iters", 1)?);
    // All in one page: a client that scrolls on gets an empty one.
    let plots = match call.request.text("scroll_id")? {
        Some(scroll) if !scroll.is_empty() => Vec::new(),
        _ => plots,
    };
    Ok(json!({"returned": plots.len(), "total": plots.len(), "plots": plots, "scroll_id": "end"}))
}

/// The `tasks` of the call that there are.
fn asked_tasks(call: &Call<'_>) -> Result<Vec<String>, Refusal> {
    call.request.required_value("tasks")?;
    for id in call.request.texts("tasks")? {
        if call.transaction.get(Kind::Tasks, id)?.is_none() {
            return Err(Refusal::no_task(id));
        }
    }
    let ids = call.request.texts("tasks")?;
    Ok(ids.into_iter().map(str::to_owned).collect())
}

fn get_task_metrics(call: &Call<'_>) -> Result<Value, Refusal> {
    let kind = call.request.text("event_type")?.unwrap_or(kind::SCALAR);
    let mut metrics = Vec::new();
    for id in asked_tasks(call)? {
        let mut names = Vec::<Value>::new();
        for event in all_events(call, &id, kind)? {
            match event.get("metric") {
                Some(name) if !names.contains(name) => names.push(name.clone()),
                _ => {}
            }
        }
        metrics.push(json!({"task": id, "metrics": names}));
    }
    Ok(json!({"metrics": metrics}))
}

fn get_task_latest_scalar_values(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, task) = tasks::fetch(call)?;
    let events = all_events(call, &id, kind::SCALAR)?;
    let mut metrics = BTreeMap::<String, Vec<Value>>::new();
    for event in last_iterations(events, 1) {
        let part = |field| text(&event, field).unwrap_or_default().to_owned();
        metrics.entry(part("metric")).or_default().push(json!({
            "name": part("variant"), "last_value": event.get("value"),
            "last_timestamp": event.get("timestamp"),
        }));
    }
    let metrics: Vec<Value> = metrics
        .into_iter()
        .map(|(name, variants)| json!({"name": name, "variants": variants}))
        .collect();
    Ok(json!({
        "metrics": metrics, "name": task.get("name"), "status": task.get("status"),
        "last_iter": task.get("last_iteration"),
    }))
}

fn get_task_single_value_metrics(call: &Call<'_>) -> Result<Value, Refusal> {
    let metrics = call.request.list("metrics")?;
    let mut result = Vec::new();
    for id in asked_tasks(call)? {
        let values: Vec<Value> = all_events(call, &id, kind::SCALAR)?
            .iter()
            .filter(|event| iteration(event) == SINGLE_VALUE && asks_for(metrics, event))
            .map(|event| {
                json!({
                    "metric": event.get("metric"), "variant": event.get("variant"),
                    "value": event.get("value"), "timestamp": event.get("timestamp"),
                })
            })
            .collect();
        if !values.is_empty() {
            let task = call.transaction.get(Kind::Tasks, &id)?;
            let name = task.as_ref().and_then(|task| text(task, "name"));
            result.push(json!({"task": id, "task_name": name, "values": values}));
        }
    }
    Ok(json!({"tasks": result}))
}

/// Metric → variant → the curve, thinned by averaging to at most `samples` points.
fn scalar_metrics_iter_histogram(call: &Call<'_>) -> Result<Value, Refusal> {
    let (id, _) = tasks::fetch(call)?;
    let metrics = call.request.list("metrics")?;
    let key = call.request.text("key")?.unwrap_or("iter");
    let samples = limit(call, "samples", 2000)?;
    let mut curves = BTreeMap::<String, BTreeMap<String, Vec<(f64, f64)>>>::new();
    for event in all_events(call, &id, kind::SCALAR)? {
        let Some(y) = event.get("value").and_then(Value::as_f64) else {
            continue;
        };
        if iteration(&event) == SINGLE_VALUE || !asks_for(metrics, &event) {
            continue;
        }
        let field = if key == "iter" { "iter" } else { "timestamp" };
        let x = event.get(field).and_then(Value::as_f64).unwrap_or(0.0);
        let part = |field| text(&event, field).unwrap_or_default().to_owned();
        let curve = curves.entry(part("metric")).or_default();
        curve.entry(part("variant")).or_default().push((x, y));
    }
    let mut result = Document::new();
    for (metric, variants) in curves {
        let mut of_metric = Document::new();
        for (variant, points) in variants {
            let points = thinned(&points, samples);
            let x: Vec<Value> = points.iter().map(|(x, _)| shown(*x, key)).collect();
            let y: Vec<f64> = points.iter().map(|(_, y)| *y).collect();
            let curve = json!({"name": variant, "x": x, "y": y});
            of_metric.insert(variant, curve);
        }
        result.insert(metric, Value::Object(of_metric));
    }
    Ok(Value::Object(result))
}

fn shown(x: f64, key: &str) -> Value {
    #[allow(clippy::cast_possible_truncation)] // Was an integer.
    let whole = x as i64;
    match (key, jiff::Timestamp::from_millisecond(whole)) {
        ("iso_time", Ok(time)) => json!(iso(time)),
        _ => json!(whole),
    }
}

fn thinned(points: &[(f64, f64)], samples: usize) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(samples).max(1);
    points
        .chunks(step)
        .map(|chunk| {
            #[allow(clippy::cast_precision_loss)] // Some thousands at most.
            let n = chunk.len() as f64;
            (chunk[0].0, chunk.iter().map(|(_, y)| y).sum::<f64>() / n)
        })
        .collect()
}

fn debug_images(call: &Call<'_>) -> Result<Value, Refusal> {
    call.request.required_value("metrics")?;
    let iterations = limit(call, "iters", 1)?;
    let mut result = Vec::new();
    for wanted in call.request.list("metrics")? {
        let Some(wanted) = wanted.as_object() else {
            continue;
        };
        let id = Request(wanted).required("task")?;
        let mut events = all_events(call, id, kind::IMAGE)?;
        let asked = Value::Object(wanted.clone());
        events.retain(|event| asks_for(std::slice::from_ref(&asked), event));
        let mut by_iteration = BTreeMap::<i64, Vec<Document>>::new();
        for event in events {
            by_iteration
                .entry(iteration(&event))
                .or_default()
                .push(event);
        }
        let newest: Vec<Value> = by_iteration
            .into_iter()
            .rev()
            .take(iterations)
            .map(|(iter, events)| json!({"iter": iter, "events": events}))
            .collect();
        result.push(json!({"task": id, "iterations": newest}));
    }
    Ok(json!({"metrics": result, "scroll_id": "end"}))
}

#[cfg(test)]
mod tests {
    use super::thinned;

    #[test]
    fn curves_are_thinned_by_averaging() {
        let points = [(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0), (4.0, 9.0)];
        assert_eq!(thinned(&points, 10), points);
        assert_eq!(thinned(&points, 2), [(0.0, 3.0), (3.0, 8.0)]);
        assert_eq!(thinned(&[], 2), []);
    }
}
