//! What fails, and what is tried again.

use std::time::{Duration, Instant};

use clearml_agent::api::{
    ApiError, Patience, Session,
    tasks::{self},
};
use serde_json::{Value, json};

use crate::recorded::Recorded;
use crate::{login, training};

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    for failure in [
        json!({"endpoint": "tasks.ping", "what": "status", "status": 500}),
        json!({"endpoint": "tasks.ping", "what": "status", "status": 502, "body": "<html>bad gateway</html>"}),
        json!({"endpoint": "tasks.ping", "what": "status", "status": 429}),
        json!({"endpoint": "tasks.ping", "what": "drop"}),
        json!({"endpoint": "tasks.ping", "what": "drop", "applied": true}),
    ] {
        let before = server.calls_of("tasks.ping").len();
        server.inject(failure.clone());
        tasks::ping(&session, &id).await.unwrap();
        assert_eq!(server.calls_of("tasks.ping").len(), before + 2, "{failure}");
    }
}

#[tokio::test]
async fn the_pause_that_the_server_asks_for_is_kept() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.inject(
        json!({"endpoint": "tasks.ping", "what": "status", "status": 503, "retry_after": 2}),
    );
    tasks::ping(&session, &id).await.unwrap();
    let at: Vec<f64> = server
        .calls_of("tasks.ping")
        .iter()
        .map(|call| call["at"].as_f64().unwrap())
        .collect();
    assert!(at[1] - at[0] >= 1.99, "{at:?}");
}

#[tokio::test]
async fn a_login_survives_a_server_that_is_starting() {
    let server = Recorded::start();
    server.inject(json!({"endpoint": "auth.login", "what": "status", "status": 503, "times": 2}));
    server.inject(json!({"endpoint": "auth.login", "what": "drop"}));
    login(&server).await;
    assert_eq!(server.calls_of("auth.login").len(), 4);
}

#[tokio::test]
async fn a_refusal_is_never_tried_again() {
    let server = Recorded::start();
    let session = login(&server).await;
    assert_eq!(
        tasks::get_by_id(&session, &"0".repeat(32)).await.unwrap(),
        None
    );
    assert_eq!(server.calls_of("tasks.get_by_id").len(), 1);

    let error = session
        .call::<Value>("tasks.nosuch", &json!({}), Patience::Persistent)
        .await
        .unwrap_err();
    let ApiError::Refused { code, subcode, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!((*code, *subcode), (404, 0));
    assert!(
        error.to_string().contains("Unable to find endpoint"),
        "{error}"
    );
    assert_eq!(server.calls_of("tasks.nosuch").len(), 1);
}

#[tokio::test]
async fn one_try_means_one() {
    let server = Recorded::start();
    let session = login(&server).await;
    server.inject(json!({"endpoint": "tasks.ping", "what": "drop", "times": 9}));
    let error = session
        .call::<Value>("tasks.ping", &json!({"task": "x"}), Patience::Once)
        .await
        .unwrap_err();
    assert!(
        matches!(error, ApiError::Unreachable { tries: 1, .. }),
        "{error:?}"
    );
    assert_eq!(server.calls_of("tasks.ping").len(), 1);
}

/// Takes as long as the agent is patient with a server that is not there.
#[tokio::test]
async fn a_server_that_is_not_there_is_told_within_30_s() {
    let mut server = Recorded::start();
    let endpoint = server.endpoint("w:0");
    server.stop();
    let begin = Instant::now();
    let error = Session::login(&endpoint).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_secs(30));
    let text = error.to_string();
    let ApiError::Unreachable { tries, .. } = error else {
        panic!("{error:?}")
    };
    assert!(tries > 1);
    assert!(text.contains(server.url()), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.contains("api.api_server"), "{text}");
    assert!(text.contains("CLEARML_API_HOST"), "{text}");
}

#[tokio::test]
async fn a_web_page_is_not_taken_for_an_api_server() {
    let server = Recorded::start();
    server.inject(json!({"endpoint": "auth.login", "what": "web_page"}));
    let error = Session::login(&server.endpoint("w:0")).await.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, ApiError::NotAnApiServer { .. }),
        "{error:?}"
    );
    assert!(text.contains("a web page"), "{text}");
    assert!(text.contains("api.api_server"), "{text}");
}
