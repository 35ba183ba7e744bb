//! The filters, orders and pages that `get_all` and `get_all_ex` of every service share.

use std::cmp::Ordering;

use regex::Regex;
use serde_json::Value;

use super::call::Request;
use super::document::{self, Document, get_path};
use super::refusal::Refusal;

/// Fields that filter by being equal to one of the given values.
const EQUAL: [&str; 12] = [
    "id",
    "user",
    "project",
    "status",
    "type",
    "parent",
    "tags",
    "system_tags",
    "execution.queue",
    "task",
    "framework",
    "ready",
];
/// Fields that filter by `>=TIME`, `<TIME`, … or a pair of times.
const TIMES: [&str; 7] = [
    "created",
    "started",
    "completed",
    "status_changed",
    "last_update",
    "last_change",
    "last_worker_report",
];
/// Fields that filter by regular expression.
const PATTERNS: [&str; 2] = ["name", "comment"];

/// The documents that `request` asks for: filtered, ordered, and of these the page asked for.
pub fn select(documents: Vec<Document>, request: Request<'_>) -> Result<Vec<Document>, Refusal> {
    let filter = Filter::of(request)?;
    let mut found: Vec<Document> = documents
        .into_iter()
        .filter(|document| filter.takes(document))
        .collect();
    let mut order: Vec<&str> = match request.get("order_by") {
        Some(Value::String(field)) => vec![field],
        _ => request.texts("order_by")?,
    };
    // The order in which they were made, as a last resort.
    order.push("created");
    found.sort_by(|a, b| {
        order
            .iter()
            .map(|field| compare_by(field, a, b))
            .find(|o| o.is_ne())
            .unwrap_or(Ordering::Equal)
    });
    let whole = usize::try_from(request.number("page")?.unwrap_or(0)).unwrap_or(0);
    let limit = request.number("page_size")?.or(request.number("size")?);
    Ok(match limit.and_then(|size| usize::try_from(size).ok()) {
        Some(size) if size > 0 => found.into_iter().skip(whole * size).take(size).collect(),
        _ => found,
    })
}

/// `only_fields`: a list, or one text.
pub fn only_fields(request: Request<'_>) -> Vec<&str> {
    match request.get("only_fields") {
        Some(Value::Array(fields)) => fields.iter().filter_map(Value::as_str).collect(),
        Some(Value::String(field)) => vec![field],
        _ => Vec::new(),
    }
}

fn compare_by(field: &str, a: &Document, b: &Document) -> Ordering {
    let (field, backwards) = match field.strip_prefix('-') {
        Some(field) => (field, true),
        None => (field.trim_start_matches('+'), false),
    };
    let order = match (get_path(a, field), get_path(b, field)) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a
            .as_f64()
            .partial_cmp(&b.as_f64())
            .unwrap_or(Ordering::Equal),
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    if backwards { order.reverse() } else { order }
}

struct Filter<'r> {
    equal: Vec<(&'static str, Wanted<'r>)>,
    times: Vec<(&'static str, Vec<(TimeTest, jiff::Timestamp)>)>,
    patterns: Vec<(&'static str, Regex)>,
    /// `_any_` and `_all_`: the fields, the pattern, whether all fields must match.
    multi: Vec<(Vec<&'r str>, Regex, bool)>,
}

#[derive(Default)]
struct Wanted<'r> {
    any: Vec<&'r Value>,
    all: Vec<&'r str>,
    none: Vec<&'r str>,
}

#[derive(Clone, Copy)]
enum TimeTest {
    AtLeast,
    Above,
    AtMost,
    Below,
}

impl<'r> Filter<'r> {
    fn of(request: Request<'r>) -> Result<Filter<'r>, Refusal> {
        let mut filter = Filter {
            equal: Vec::new(),
            times: Vec::new(),
            patterns: Vec::new(),
            multi: Vec::new(),
        };
        for field in EQUAL {
            if let Some(value) = request.get(field) {
                filter.equal.push((field, Wanted::of(value)));
            }
        }
        for field in TIMES {
            if let Some(value) = request.get(field) {
                filter.times.push((field, time_tests(field, value)?));
            }
        }
        for field in PATTERNS {
            if let Some(pattern) = request.text(field)? {
                filter.patterns.push((field, regex(field, pattern)?));
            }
        }
        for (field, all) in [("_any_", false), ("_all_", true)] {
            let Some(multi) = request.get(field).and_then(Value::as_object) else {
                continue;
            };
            let multi = Request(multi);
            if let Some(pattern) = multi.text("pattern")? {
                let fields = multi.texts("fields")?;
                filter.multi.push((fields, regex(field, pattern)?, all));
            }
        }
        if let Some(text) = request.text("search_text")? {
            let pattern = regex("search_text", &regex::escape(text))?;
            filter
                .multi
                .push((vec!["id", "name", "comment"], pattern, false));
        }
        Ok(filter)
    }

    fn takes(&self, document: &Document) -> bool {
        self.equal
            .iter()
            .all(|(field, wanted)| wanted.takes(get_path(document, field)))
            && self.times.iter().all(|(field, tests)| {
                let time = document::text(document, field).and_then(document::time);
                time.is_some_and(|time| tests.iter().all(|(test, at)| test.holds(time, *at)))
            })
            && self.patterns.iter().all(|(field, pattern)| {
                document::text(document, field).is_some_and(|t| pattern.is_match(t))
            })
            && self.multi.iter().all(|(fields, pattern, all)| {
                let matches = |field: &&str| {
                    document::text(document, field).is_some_and(|t| pattern.is_match(t))
                };
                if *all {
                    fields.iter().all(matches)
                } else {
                    fields.iter().any(matches)
                }
            })
    }
}

impl<'r> Wanted<'r> {
    /// One value, or a list of values in which `-x` excludes x and `__$all`, `__$any`, `__$not`
    /// say how the ones behind them are meant.
    fn of(value: &'r Value) -> Wanted<'r> {
        let mut wanted = Wanted::default();
        let Value::Array(items) = value else {
            wanted.any.push(value);
            return wanted;
        };
        let (mut all, mut not) = (false, false);
        for item in items {
            match item.as_str() {
                Some("__$all" | "__$and") => all = true,
                Some("__$any" | "__$or") => all = false,
                Some("__$not") => not = true,
                Some(text) if not => {
                    wanted.none.push(text);
                    not = false;
                }
                Some(text) if text.len() > 1 && text.starts_with('-') => {
                    wanted.none.push(&text[1..]);
                }
                Some(text) if all => wanted.all.push(text),
                _ => wanted.any.push(item),
            }
        }
        wanted
    }

    fn takes(&self, value: Option<&Value>) -> bool {
        let has = |wanted: &Value| match value {
            Some(Value::Array(items)) => items.contains(wanted),
            Some(value) => value == wanted,
            None => wanted.is_null(),
        };
        let has_text = |wanted: &&str| has(&Value::from(*wanted));
        (self.any.is_empty() || self.any.iter().any(|wanted| has(wanted)))
            && self.all.iter().all(has_text)
            && !self.none.iter().any(has_text)
    }
}

impl TimeTest {
    fn holds(self, time: jiff::Timestamp, at: jiff::Timestamp) -> bool {
        match self {
            TimeTest::AtLeast => time >= at,
            TimeTest::Above => time > at,
            TimeTest::AtMost => time <= at,
            TimeTest::Below => time < at,
        }
    }
}

fn time_tests(field: &str, value: &Value) -> Result<Vec<(TimeTest, jiff::Timestamp)>, Refusal> {
    let texts: Vec<Option<&str>> = match value {
        Value::Array(items) => items.iter().map(Value::as_str).collect(),
        other => vec![other.as_str()],
    };
    let mut tests = Vec::new();
    for (index, text) in texts.into_iter().enumerate() {
        let Some(text) = text else { continue };
        let (test, rest) = if let Some(rest) = text.strip_prefix(">=") {
            (TimeTest::AtLeast, rest)
        } else if let Some(rest) = text.strip_prefix("<=") {
            (TimeTest::AtMost, rest)
        } else if let Some(rest) = text.strip_prefix('>') {
            (TimeTest::Above, rest)
        } else if let Some(rest) = text.strip_prefix('<') {
            (TimeTest::Below, rest)
        } else if index == 0 {
            (TimeTest::AtLeast, text)
        } else {
            (TimeTest::AtMost, text)
        };
        let rest = rest.trim();
        let time = document::time(rest)
            .or_else(|| document::time(&format!("{rest}Z")))
            .or_else(|| document::time(&format!("{rest}T00:00:00Z")))
            .ok_or_else(|| Refusal::invalid_field(field, "expected a time"))?;
        tests.push((test, time));
    }
    Ok(tests)
}

fn regex(field: &str, pattern: &str) -> Result<Regex, Refusal> {
    regex::RegexBuilder::new(pattern)
        .case_insensitive(true)
        .build()
        .map_err(|e| Refusal::invalid_field(field, &format!("invalid regex: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(request: Value) -> String {
        let documents = [
            json!({"name": "alpha", "id": "1", "tags": ["x", "y"], "status": "queued",
                "created": "2026-01-01T00:00:00.000000+00:00", "n": {"v": 3}}),
            json!({"name": "beta one", "id": "2", "tags": ["x"], "status": "created",
                "created": "2026-01-02T00:00:00.000000+00:00", "n": {"v": 10}}),
            json!({"name": "gamma", "id": "3", "tags": [], "status": "failed",
                "created": "2026-01-03T00:00:00.000000+00:00", "comment": "alpha too"}),
        ];
        let documents = documents
            .iter()
            .map(|d| d.as_object().cloned().unwrap())
            .collect();
        let found = select(documents, Request(request.as_object().unwrap())).unwrap();
        let letters: Vec<&str> = found
            .iter()
            .map(|d| &d["name"].as_str().unwrap()[..1])
            .collect();
        letters.join("")
    }

    #[test]
    fn filters_orders_and_pages() {
        for (request, expected) in [
            (json!({}), "abg"),
            (json!({"name": "^beta\\ one$"}), "b"),
            (json!({"name": "a$"}), "ag"),
            (json!({"id": ["3", "1"]}), "ag"),
            (json!({"status": ["-failed"]}), "ab"),
            (json!({"tags": ["x"]}), "ab"),
            (json!({"tags": ["x", "-y"]}), "b"),
            (json!({"tags": ["__$all", "x", "y"]}), "a"),
            (json!({"tags": ["__$not", "x"]}), "g"),
            (json!({"status_changed": [">=2026-01-01"]}), ""),
            (json!({"created": [">2026-01-01T00:00:00"]}), "bg"),
            (json!({"created": ["2026-01-01", "2026-01-02"]}), "ab"),
            (
                json!({"_any_": {"fields": ["name", "comment"], "pattern": "alpha"}}),
                "ag",
            ),
            (
                json!({"_all_": {"fields": ["name", "comment"], "pattern": "a"}}),
                "g",
            ),
            (json!({"search_text": "beta one"}), "b"),
            (json!({"order_by": ["-created"]}), "gba"),
            (json!({"order_by": ["-n.v"]}), "bag"),
            (json!({"page": 1, "page_size": 2}), "g"),
        ] {
            assert_eq!(names(request.clone()), expected, "{request}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for request in [json!({"name": "("}), json!({"created": [">=yesterday"]})] {
            let refusal = Filter::of(Request(request.as_object().unwrap()))
                .err()
                .unwrap();
            assert_eq!((refusal.code, refusal.subcode), (400, 12), "{request}");
        }
    }
}
