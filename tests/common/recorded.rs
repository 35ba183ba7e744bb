//! Starts and steers `tests/recorded_server.py`, the API server that answers as the real one was
//! recorded to. It ends with the handle.

// Each test binary uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use clearml_agent::api::tls::Trust;
use clearml_agent::api::{Credentials, Endpoint};
use clearml_agent::secret::Secret;
use serde_json::{Value, json};

pub struct Recorded {
    child: Child,
    url: String,
    access_key: String,
    secret_key: String,
}

impl Recorded {
    pub fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recorded_server.py");
        // It ends when its stdin does, also when the test is killed.
        let mut child = Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs the recorded server");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let said: Value = serde_json::from_str(&line).expect("the recorded server says its URL");
        let text = |key: &str| said[key].as_str().unwrap().to_owned();
        Self {
            child,
            url: text("url"),
            access_key: text("access_key"),
            secret_key: text("secret_key"),
        }
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn access_key(&self) -> &str {
        &self.access_key
    }

    pub fn secret_key(&self) -> &str {
        &self.secret_key
    }

    /// What a session needs, as the worker `worker`.
    pub fn endpoint(&self, worker: &str) -> Endpoint {
        Endpoint {
            api_server: self.url.parse().unwrap(),
            credentials: Credentials::KeyPair {
                access_key: Secret::new(&self.access_key),
                secret_key: Secret::new(&self.secret_key),
            },
            trust: Trust::System,
            worker: worker.to_owned(),
        }
    }

    /// The `api` section of a `clearml.conf` for this server.
    pub fn conf(&self) -> String {
        format!(
            "api {{\n  api_server: {url}\n  web_server: {url}\n  files_server: {url}\n  credentials {{\n    \
             access_key: {}\n    secret_key: {}\n  }}\n}}\n",
            self.access_key,
            self.secret_key,
            url = self.url,
        )
    }

    /// Makes a task with these fields over the server's defaults, whatever its status; gives its id.
    pub fn create_task(&self, fields: Value) -> String {
        id(&self.control("task", fields))
    }

    /// Makes a queue; gives its id.
    pub fn create_queue(&self, name: &str) -> String {
        id(&self.control("queue", json!({"name": name})))
    }

    pub fn enqueue(&self, task: &str, queue: &str) {
        self.control("enqueue", json!({"task": task, "queue": queue}));
    }

    /// Overwrites fields of a task, as another user's call would.
    pub fn set(&self, task: &str, fields: Value) {
        self.control("set", json!({"task": task, "fields": fields}));
    }

    /// The task's document.
    pub fn task(&self, id: &str) -> Value {
        self.state()["tasks"][id].clone()
    }

    /// The messages of the task's log events, in order.
    pub fn log(&self, id: &str) -> Vec<String> {
        let state = self.state();
        let log = state["logs"][id].as_array().expect("the task is known");
        log.iter()
            .map(|msg| msg.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The API calls so far: `endpoint`, `headers`, `request`, `status`, `connection`, `at` (epoch
    /// seconds). Headers have lower-case names; of `authorization` only the kind is kept.
    pub fn calls(&self) -> Vec<Value> {
        self.state()["calls"].as_array().unwrap().clone()
    }

    /// The calls of one endpoint.
    pub fn calls_of(&self, endpoint: &str) -> Vec<Value> {
        let mut calls = self.calls();
        calls.retain(|call| call["endpoint"] == endpoint);
        calls
    }

    /// Makes coming calls of an endpoint fail; what is possible stands at the top of the script.
    pub fn inject(&self, failure: Value) {
        self.control("inject", failure);
    }

    /// A token as `auth.login` gives.
    pub fn token(&self) -> String {
        let answer = self.control("token", json!({}));
        answer["token"].as_str().unwrap().to_owned()
    }

    /// The life in seconds of the tokens given from now on.
    pub fn token_life(&self, seconds: u32) {
        self.control("token_life", json!({"seconds": seconds}));
    }

    /// Refuses every token given so far.
    pub fn revoke_tokens(&self) {
        self.control("revoke_tokens", json!({}));
    }

    /// All that the server holds.
    pub fn state(&self) -> Value {
        self.control("state", json!({}))
    }

    /// Ends the server: from now on nothing listens at its address.
    pub fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn control(&self, verb: &str, request: Value) -> Value {
        let address = self.url.trim_start_matches("http://");
        let body = request.to_string();
        let mut stream = TcpStream::connect(address).expect("the recorded server listens");
        write!(
            stream,
            "POST /_test/{verb} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        assert!(head.starts_with("HTTP/1.1 200"), "/_test/{verb}: {body}");
        serde_json::from_str(body).unwrap()
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        self.stop();
    }
}

fn id(answer: &Value) -> String {
    answer["id"].as_str().expect("an id").to_owned()
}
