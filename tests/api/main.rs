//! The API session and the claim, against a server that answers as the real one was recorded to.

// The whole file is a test.
#![allow(clippy::unwrap_used)]

mod calls;
mod claiming;
mod failures;
mod session;

#[path = "../common/recorded.rs"]
mod recorded;

use clearml_agent::api::Session;
use recorded::Recorded;
use serde_json::json;

async fn login(server: &Recorded) -> Session {
    Session::login(&server.endpoint("w:0")).await.unwrap()
}

fn training(server: &Recorded) -> String {
    server.create_task(json!({"name": "train", "script": {"entry_point": "train.py"}}))
}
