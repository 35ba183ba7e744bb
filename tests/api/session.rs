//! Login, tokens, and what each call carries.

use std::time::Duration;

use clearml_agent::api::{
    ApiError, Credentials, Session, events,
    tasks::{self},
};
use clearml_agent::secret::Secret;
use serde_json::json;

use crate::recorded::Recorded;
use crate::{login, training};

#[tokio::test]
async fn a_key_pair_logs_in_once_and_the_token_serves_all_calls() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    for _ in 0..20 {
        tasks::ping(&session, &id).await.unwrap();
    }
    let logins = server.calls_of("auth.login");
    assert_eq!(logins.len(), 1);
    assert_eq!(logins[0]["headers"]["authorization"], "Basic");
    let pings = server.calls_of("tasks.ping");
    assert_eq!(pings.len(), 20);
    assert!(
        pings
            .iter()
            .all(|c| c["headers"]["authorization"] == "Bearer")
    );
    assert_eq!(server.state()["connections"], 1, "the connection is kept");
}

#[tokio::test]
async fn a_wrong_key_pair_is_told_at_once_and_without_its_secret() {
    let server = Recorded::start();
    let mut endpoint = server.endpoint("w:0");
    endpoint.credentials = Credentials::KeyPair {
        access_key: Secret::new("nobody"),
        secret_key: Secret::new("hunter2"),
    };
    let error = Session::login(&endpoint).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ApiError::Unauthorized { .. }), "{error:?}");
    assert!(
        text.contains("failed to locate provided credentials"),
        "{text}"
    );
    assert!(text.contains("CLEARML_API_ACCESS_KEY"), "{text}");
    assert!(text.contains(server.url()), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    assert_eq!(server.calls().len(), 1, "no second try");
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let server = Recorded::start();
    server.token_life(3);
    let session = login(&server).await;
    let id = training(&server);
    while server.calls_of("auth.login").len() < 3 {
        tasks::ping(&session, &id).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let refused = server.calls().into_iter().filter(|c| c["status"] == 401);
    assert_eq!(
        refused.count(),
        0,
        "no call was made with a token that had ended"
    );
}

#[tokio::test]
async fn a_refused_token_is_renewed_and_the_call_repeated() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.revoke_tokens();
    let task = tasks::get_by_id(&session, &id).await.unwrap().unwrap();
    assert_eq!(task.id, id);
    server.inject(json!({"endpoint": "tasks.ping", "what": "expired_token"}));
    tasks::ping(&session, &id).await.unwrap();
    assert_eq!(server.calls_of("auth.login").len(), 3);
    assert_eq!(server.calls_of("tasks.ping").len(), 2);
}

#[tokio::test]
async fn of_many_calls_with_a_refused_token_one_renews_it() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.revoke_tokens();
    let ping = || tasks::ping(&session, &id);
    let (a, b, c, d) = tokio::join!(ping(), ping(), ping(), ping());
    for result in [a, b, c, d] {
        result.unwrap();
    }
    assert_eq!(server.calls_of("auth.login").len(), 2);
}

#[tokio::test]
async fn a_token_refused_again_and_again_ends_the_call() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.inject(json!({"endpoint": "tasks.ping", "what": "expired_token", "times": 100}));
    let error = tasks::ping(&session, &id).await.unwrap_err();
    assert!(matches!(error, ApiError::Unauthorized { .. }), "{error:?}");
    assert_eq!(server.calls_of("tasks.ping").len(), 2);
}

#[tokio::test]
async fn a_given_token_is_used_as_it_is_until_refused() {
    let server = Recorded::start();
    let id = training(&server);
    let mut endpoint = server.endpoint("w:0");
    endpoint.credentials = Credentials::Token(Secret::new(server.token()));
    let session = Session::login(&endpoint).await.unwrap();
    tasks::ping(&session, &id).await.unwrap();
    server.revoke_tokens();
    let error = tasks::ping(&session, &id).await.unwrap_err();
    assert!(matches!(error, ApiError::Unauthorized { .. }), "{error:?}");
    assert!(error.to_string().contains("CLEARML_AUTH_TOKEN"), "{error}");
    assert!(server.calls_of("auth.login").is_empty());
}

#[tokio::test]
async fn every_call_names_worker_and_client() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    tasks::ping(&session, &id).await.unwrap();
    for call in server.calls() {
        let headers = &call["headers"];
        assert_eq!(headers["x-clearml-worker"], "w:0");
        assert_eq!(headers["x-trains-worker"], "w:0");
        let client = headers["x-clearml-client"].as_str().unwrap();
        assert!(client.starts_with("clearml-agent-"), "{client}");
        assert_eq!(headers["content-type"], "application/json");
    }
}

#[tokio::test]
async fn a_batch_goes_as_json_lines() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    let line = |n: i64, task: &str| {
        json!({"type": "log", "task": task, "worker": "w:0", "level": "DEBUG", "timestamp": n,
               "msg": format!("line {n} é\nand more")})
        .to_string()
    };
    let body = [line(1, &id), line(2, &id), line(3, "nosuch")].join("\n");
    let added = events::add_batch(&session, body.into_bytes())
        .await
        .unwrap();
    assert_eq!((added.added, added.errors), (2, 1));
    assert_eq!(
        server.log(&id),
        ["line 1 é\nand more", "line 2 é\nand more"]
    );
    let call = &server.calls_of("events.add_batch")[0];
    assert_eq!(call["headers"]["content-type"], "application/json-lines");

    let strangers = line(1, "nosuch").into_bytes();
    let error = events::add_batch(&session, strangers).await.unwrap_err();
    assert!(error.is_refusal(131), "{error}");
    let error = events::add_batch(&session, Vec::new()).await.unwrap_err();
    assert!(error.is_refusal(17), "{error}");
}
