//! A server that knows `auth.login` and `events.add_batch`, and can be away, deaf or choosy.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::post;
use clearml_agent::api::tls::Trust;
use clearml_agent::api::{Credentials, Endpoint, Session};
use clearml_agent::secret::Secret;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore};

pub const WORKER: &str = "host:0";

pub struct LogServer {
    pub session: Arc<Session>,
    inner: Arc<Inner>,
}

struct Inner {
    events: Mutex<Vec<Value>>,
    arrived: Notify,
    /// Answers for the next requests, before it takes anything.
    failures: Mutex<VecDeque<StatusCode>>,
    /// Events with this text are refused, with all of their packet.
    poison: Mutex<Option<&'static str>>,
    /// One permit for each request that may be answered.
    gate: Semaphore,
    asked: Notify,
}

impl LogServer {
    pub async fn start() -> LogServer {
        Self::with_gate(Semaphore::MAX_PERMITS).await
    }

    /// It takes requests, and answers none until it is told to.
    pub async fn stuck() -> LogServer {
        Self::with_gate(0).await
    }

    async fn with_gate(permits: usize) -> LogServer {
        let inner = Arc::new(Inner {
            events: Mutex::default(),
            arrived: Notify::new(),
            failures: Mutex::default(),
            poison: Mutex::default(),
            gate: Semaphore::new(permits),
            asked: Notify::new(),
        });
        let app = Router::new()
            .route(
                "/auth.login",
                post(async || envelope(200, 0, json!({"token": "t"})).1),
            )
            .route("/events.add_batch", post(add_batch))
            .layer(DefaultBodyLimit::max(1024 * 1024))
            .with_state(inner.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        let endpoint = Endpoint {
            api_server: format!("http://{address}/").parse().unwrap(),
            credentials: Credentials::KeyPair {
                access_key: Secret::new("key"),
                secret_key: Secret::new("secret"),
            },
            trust: Trust::Anything,
            worker: WORKER.into(),
        };
        let session = Session::login(&endpoint).await.unwrap();
        LogServer {
            session: Arc::new(session),
            inner,
        }
    }

    pub fn fail_next(&self, answers: &[u16]) {
        let answers = answers.iter().map(|a| StatusCode::from_u16(*a).unwrap());
        self.inner.failures.lock().unwrap().extend(answers);
    }

    pub fn refuse(&self, text: &'static str) {
        *self.inner.poison.lock().unwrap() = Some(text);
    }

    pub fn answer_all(&self) {
        self.inner.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Waits until a request has come in that is not answered.
    pub async fn asked(&self) {
        self.inner.asked.notified().await;
    }

    /// Waits until the log has `text` in it; gives the whole log.
    pub async fn log_with(&self, text: &str) -> String {
        loop {
            let arrived = self.inner.arrived.notified();
            let log = self.log();
            if log.contains(text) {
                return log;
            }
            arrived.await;
        }
    }

    pub fn log(&self) -> String {
        let events = self.inner.events.lock().unwrap();
        events.iter().map(|e| e["msg"].as_str().unwrap()).collect()
    }

    pub fn events(&self) -> Vec<Value> {
        self.inner.events.lock().unwrap().clone()
    }
}

async fn add_batch(State(inner): State<Arc<Inner>>, body: String) -> (StatusCode, String) {
    inner.asked.notify_one();
    inner.gate.acquire().await.unwrap().forget();
    if let Some(failure) = inner.failures.lock().unwrap().pop_front() {
        return (failure, "<html>away</html>".into());
    }
    let events: Vec<Value> = body
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    if events.is_empty() {
        return envelope(400, 17, json!({}));
    }
    if let Some(poison) = *inner.poison.lock().unwrap()
        && body.contains(poison)
    {
        return envelope(400, 131, json!({}));
    }
    let added = events.len();
    inner.events.lock().unwrap().extend(events);
    inner.arrived.notify_one();
    envelope(
        200,
        0,
        json!({"added": added, "errors": 0, "errors_info": {}}),
    )
}

fn envelope(code: u16, subcode: u32, data: Value) -> (StatusCode, String) {
    let meta = json!({
        "result_code": code,
        "result_subcode": subcode,
        "result_msg": if code == 200 { "OK" } else { "Events not added" },
    });
    (
        StatusCode::from_u16(code).unwrap(),
        json!({"meta": meta, "data": data}).to_string(),
    )
}
