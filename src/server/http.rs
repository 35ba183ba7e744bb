//! From an HTTP request to an endpoint and back to ClearML's envelope.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request as HttpRequest, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::auth::Keys;
use super::call::{Access, Call, Endpoint, Request};
use super::document::Document;
use super::files::FileStore;
use super::refusal::Refusal;
use super::store::Store;
use super::{API_VERSION, events, models, new_id, organization, projects, queues, tasks, workers};

/// What the server works on.
pub struct App {
    pub store: Store,
    pub keys: Keys,
    pub files: FileStore,
}

/// A call's body may be as long: a batch of plots comes in one piece.
const BODY_LIMIT: usize = 256 * 1024 * 1024;
const LOGIN: &str = "auth.login";
/// The one call that needs no credentials.
const PING: &str = "debug.ping";

static ENDPOINTS: LazyLock<HashMap<&'static str, &'static Endpoint>> = LazyLock::new(|| {
    let single = [
        queues::ENDPOINTS,
        projects::ENDPOINTS,
        workers::ENDPOINTS,
        models::ENDPOINTS,
        organization::ENDPOINTS,
    ];
    single
        .iter()
        .chain(tasks::ENDPOINTS)
        .chain(events::ENDPOINTS)
        .flat_map(|table| table.iter())
        .map(|endpoint| (endpoint.name, endpoint))
        .collect()
});

static SERVICES: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let names = ENDPOINTS.keys().copied().chain([LOGIN]);
    names
        .filter_map(|name| Some(name.split_once('.')?.0))
        .collect()
});

/// All requests, of the API and of the file store, come through one handler.
pub fn router(app: Arc<App>) -> Router {
    Router::new()
        .fallback(answer)
        .layer(DefaultBodyLimit::disable())
        .with_state(app)
}

/// What a path stands for.
#[derive(Debug, PartialEq, Eq)]
enum Target<'p> {
    Endpoint {
        version: Option<&'p str>,
        name: &'p str,
    },
    File,
}

/// `[v2.31/]service.action` with a service of this API; anything else is a file's path.
fn target(path: &str) -> Target<'_> {
    let path = path.trim_start_matches('/');
    let (version, name) = match path.split_once('/') {
        Some((first, rest)) => match first.strip_prefix('v') {
            Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => {
                (Some(version), rest)
            }
            _ => return Target::File,
        },
        None => (None, path),
    };
    match name.split_once('.') {
        Some((service, action)) if SERVICES.contains(service) && !action.contains('/') => {
            Target::Endpoint { version, name }
        }
        _ => Target::File,
    }
}

async fn answer(
    State(app): State<Arc<App>>,
    ConnectInfo(address): ConnectInfo<SocketAddr>,
    request: HttpRequest,
) -> Response {
    let path = request.uri().path().to_owned();
    match target(&path) {
        Target::File => app.files.answer(&app.keys, &path, request).await,
        Target::Endpoint { version, name } => {
            let outcome = call(app, version, name, address, request).await;
            envelope(version, name, outcome)
        }
    }
}

struct Outcome {
    transaction: String,
    result: Result<Value, Refusal>,
}

async fn call(
    app: Arc<App>,
    version: Option<&str>,
    name: &str,
    address: SocketAddr,
    request: HttpRequest,
) -> Outcome {
    let (parts, body) = request.into_parts();
    let header = |names: [&str; 2]| header(&parts.headers, names).map(str::to_owned);
    let worker = header(["x-clearml-worker", "x-trains-worker"]);
    let transaction = header(["x-clearml-trx", "x-trains-trx"]).unwrap_or_else(new_id);
    let result = async {
        if let Some(version) = version
            && !is_version(version)
        {
            return Err(Refusal::bad_version(version));
        }
        let unknown = || Refusal::no_endpoint(name, version.unwrap_or(API_VERSION));
        let endpoint = ENDPOINTS.get(name).copied();
        if endpoint.is_none() && name != LOGIN {
            return Err(unknown());
        }
        let now = Timestamp::now();
        if name != PING {
            app.keys.check(&parts.headers, now.as_second())?;
        }
        let body = axum::body::to_bytes(body, BODY_LIMIT)
            .await
            .map_err(|e| Refusal::bad_body(format!("the body could not be read: {e}")))?;
        let items = items(&parts.headers, parts.uri.query(), &body)?;
        // The database works in files and in locks, neither of which may hold up other calls.
        let run = move || {
            let empty = Document::new();
            let first = match items.first() {
                Some(Value::Object(first)) => first,
                Some(_) => return Err(Refusal::bad_body("expected a JSON object")),
                None => &empty,
            };
            let request = Request(first);
            let Some(endpoint) = endpoint else {
                let life = request.number("expiration_sec")?;
                return Ok(json!({"token": app.keys.token(life, now.as_second())}));
            };
            let step = |transaction: &super::store::Transaction<'_>| {
                (endpoint.run)(&Call {
                    transaction,
                    request,
                    items: &items,
                    worker: worker.as_deref(),
                    address: Some(address.ip()),
                    now,
                })
            };
            match endpoint.access {
                Access::Read => app.store.read(step),
                Access::Write => app.store.write(step),
            }
        };
        tokio::task::spawn_blocking(run)
            .await
            .unwrap_or_else(|e| Err(Refusal::data_error(e)))
    };
    Outcome {
        result: result.await,
        transaction,
    }
}

fn header<'h>(headers: &'h HeaderMap, names: [&str; 2]) -> Option<&'h str> {
    let found = names.iter().find_map(|name| headers.get(*name))?;
    found.to_str().ok().filter(|value| !value.is_empty())
}

fn is_version(version: &str) -> bool {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match version.split_once('.') {
        Some((major, minor)) => number(major) && number(minor),
        None => number(version),
    }
}

/// The request, or the requests of a batch: one JSON object a line. A request without a body may
/// stand in the query.
fn items(headers: &HeaderMap, query: Option<&str>, body: &Bytes) -> Result<Vec<Value>, Refusal> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let batch = kind.is_some_and(|kind| kind.starts_with("application/json-lines"));
    if batch {
        let lines = body.split(|byte| *byte == b'\n');
        let lines = lines.filter(|line| !line.trim_ascii().is_empty());
        return lines
            .map(|line| serde_json::from_slice(line).map_err(Refusal::bad_body))
            .collect();
    }
    if body.trim_ascii().is_empty() {
        let pairs = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let pairs = pairs.map(|(key, value)| (key.into_owned(), Value::String(value.into_owned())));
        return Ok(vec![Value::Object(pairs.collect())]);
    }
    Ok(vec![
        serde_json::from_slice(body).map_err(Refusal::bad_body)?,
    ])
}

fn envelope(version: Option<&str>, name: &str, outcome: Outcome) -> Response {
    let actual = match ENDPOINTS.get(name) {
        Some(endpoint) => Some(endpoint.version),
        None => (name == LOGIN).then_some("1.0"),
    };
    let (code, subcode, message, data) = match outcome.result {
        Ok(data) => (200, 0, "OK".to_owned(), data),
        Err(refusal) => (refusal.code, refusal.subcode, refusal.message, json!({})),
    };
    let body = json!({
        "meta": {
            "id": new_id(), "trx": outcome.transaction,
            "endpoint": {
                "name": name,
                "requested_version": version.unwrap_or(API_VERSION),
                "actual_version": actual,
            },
            "result_code": code, "result_subcode": subcode, "result_msg": message,
            "error_stack": if code == 200 { json!("") } else { Value::Null },
            "error_data": {},
        },
        "data": data,
    });
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = [(CONTENT_TYPE, "application/json")];
    (status, headers, Body::from(body.to_string())).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_endpoints_and_of_files() {
        for (path, expected) in [
            ("/tasks.get_all", Some((None, "tasks.get_all"))),
            (
                "/v2.31/tasks.get_all",
                Some((Some("2.31"), "tasks.get_all")),
            ),
            ("/v2.x/tasks.get_all", Some((Some("2.x"), "tasks.get_all"))),
            ("/tasks.nosuch", Some((None, "tasks.nosuch"))),
            ("/auth.login", Some((None, "auth.login"))),
            ("/", None),
            ("/model.pkl", None),
            ("/project/tasks.get_all", None),
            ("/project/task.0123/artifacts/a/tasks.csv", None),
            ("/v1/model.pkl", None),
        ] {
            let expected = match expected {
                Some((version, name)) => Target::Endpoint { version, name },
                None => Target::File,
            };
            assert_eq!(target(path), expected, "{path}");
        }
    }

    #[test]
    fn versions() {
        for (version, ok) in [("2.31", true), ("2", true), ("2.", false), ("2.x", false)] {
            assert_eq!(is_version(version), ok, "{version}");
        }
    }

    #[test]
    fn no_endpoint_is_there_twice() {
        let tables = [queues::ENDPOINTS, projects::ENDPOINTS, workers::ENDPOINTS];
        let more = [models::ENDPOINTS, organization::ENDPOINTS];
        let all = tables.iter().chain(&more).chain(tasks::ENDPOINTS);
        let rows: usize = all.chain(events::ENDPOINTS).map(|table| table.len()).sum();
        assert_eq!(rows, ENDPOINTS.len());
    }
}
