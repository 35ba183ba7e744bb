//! A server that knows `auth.login` and `events.add_batch`, and can be away, deaf, forgetful or choosy.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use clearml_agent::api::tls::Trust;
use clearml_agent::api::{Credentials, Endpoint, Session};
use clearml_agent::secret::Secret;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::{Notify, Semaphore};

pub const WORKER: &str = "host:0";

pub struct LogServer {
    pub session: Arc<Session>,
    inner: Arc<Inner>,
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// This HTTP status, and nothing is taken.
    Status(u16),
    /// The connection breaks, and nothing is taken.
    Dropped,
    /// All is taken, and the connection breaks before the answer is out.
    AnswerLost,
}

struct Inner {
    events: Mutex<Vec<Value>>,
    arrived: Notify,
    /// What happens to the next requests.
    faults: Mutex<VecDeque<Fault>>,
    /// Tokens that were given out; the last one is good.
    logins: AtomicUsize,
    /// Events with this text are refused, with all of their packet.
    poison: Mutex<Option<&'static str>>,
    /// One permit for each request that may be answered.
    gate: Semaphore,
    asked: Notify,
    requests: AtomicUsize,
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
            faults: Mutex::default(),
            logins: AtomicUsize::new(0),
            poison: Mutex::default(),
            gate: Semaphore::new(permits),
            asked: Notify::new(),
            requests: AtomicUsize::new(0),
        });
        let app = Router::new()
            .route("/auth.login", post(login))
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

    pub fn fail_next(&self, faults: impl IntoIterator<Item = Fault>) {
        self.inner.faults.lock().unwrap().extend(faults);
    }

    /// No token that was given out is good any more.
    pub fn forget_tokens(&self) {
        self.inner.logins.fetch_add(1, Ordering::SeqCst);
    }

    /// Answers `count` more requests.
    pub fn answer(&self, count: usize) {
        self.inner.gate.add_permits(count);
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

    /// How many batches were sent.
    pub fn requests(&self) -> usize {
        self.inner.requests.load(Ordering::SeqCst)
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

async fn login(State(inner): State<Arc<Inner>>) -> Response {
    let token = format!("t{}", inner.logins.fetch_add(1, Ordering::SeqCst) + 1);
    envelope(200, 0, json!({"token": token}))
}

async fn add_batch(State(inner): State<Arc<Inner>>, headers: HeaderMap, body: String) -> Response {
    inner.requests.fetch_add(1, Ordering::SeqCst);
    inner.asked.notify_one();
    inner.gate.acquire().await.unwrap().forget();
    let fault = inner.faults.lock().unwrap().pop_front();
    match fault {
        Some(Fault::Status(status)) => {
            return (StatusCode::from_u16(status).unwrap(), "<html>away</html>").into_response();
        }
        Some(Fault::Dropped) => return broken(),
        Some(Fault::AnswerLost) | None => {}
    }
    let good = format!("Bearer t{}", inner.logins.load(Ordering::SeqCst));
    if headers["authorization"] != good.as_str() {
        return envelope(401, 30, json!({}));
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
    if fault.is_some() {
        return broken();
    }
    envelope(
        200,
        0,
        json!({"added": added, "errors": 0, "errors_info": {}}),
    )
}

/// The connection ends in the middle of the answer.
fn broken() -> Response {
    struct Broken;
    impl AsyncRead for Broken {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    let body = Body::from_stream(tokio_util::io::ReaderStream::new(Broken));
    ([("content-length", "1000")], body).into_response()
}

fn envelope(code: u16, subcode: u32, data: Value) -> Response {
    let meta = json!({
        "result_code": code,
        "result_subcode": subcode,
        "result_msg": if code == 200 { "OK" } else { "Events not added" },
    });
    (
        StatusCode::from_u16(code).unwrap(),
        json!({"meta": meta, "data": data}).to_string(),
    )
        .into_response()
}
