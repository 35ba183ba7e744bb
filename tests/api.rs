//! The API session and the claim, against a server that answers as the real one was recorded to.

// The whole file is a test.
#![allow(clippy::unwrap_used)]

#[path = "common/recorded.rs"]
mod recorded;

use std::time::{Duration, Instant};

use clearml_agent::api::{
    ApiError, Credentials, Patience, Session, events,
    tasks::{self, FinalStatus, StatusNote, StatusWrite},
    workers,
};
use clearml_agent::console::Console;
use clearml_agent::execute::claim::{self, Claimed, Mode, Ready, Refused, Taking};
use clearml_agent::secret::Secret;
use clearml_agent::task::{Requirements, Status};
use recorded::Recorded;
use serde_json::{Value, json};

/// Looks the task up and takes it.
async fn claim(
    session: &Session,
    id: &str,
    mode: Mode,
    worker: &str,
    console: &Console,
) -> Result<Claimed, Refused> {
    let task = claim::fetch(session, id).await?;
    let taking = Taking {
        mode,
        worker,
        run: "run1",
        claimant: None,
    };
    match claim::ready(&task, &taking, |_| false) {
        Ready::Now => claim::claim(session, task, &taking, console).await,
        Ready::Unanswered(within) => {
            let task = claim::asking::ask(session, &task, &taking, within).await?;
            claim::claim(session, task, &taking, console).await
        }
        Ready::Later(why) | Ready::Never(why) => Err(why),
    }
}

const NOTE: StatusNote<'_> = StatusNote {
    reason: "worker execution done",
    message: "Changed by clearml-agent w:0",
};

async fn login(server: &Recorded) -> Session {
    Session::login(&server.endpoint("w:0")).await.unwrap()
}

fn training(server: &Recorded) -> String {
    server.create_task(json!({"name": "train", "script": {"entry_point": "train.py"}}))
}

fn quiet() -> Console {
    Console::new(|_| {})
}

// --- login and tokens

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

// --- what each call carries

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

// --- failures and retries

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

// --- the task's calls

#[tokio::test]
async fn a_task_is_read_as_the_server_writes_it() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = server.create_task(json!({
        "name": "train",
        "script": {"repository": "https://host/r.git", "branch": "main", "version_num": "abc",
                   "entry_point": "train.py", "working_dir": ".", "binary": "python3.11",
                   "requirements": {"pip": ["a==1", "b"], "org_pip": "a"}},
        "hyperparams": {"Environment": {"A": {"section": "Environment", "name": "A", "value": "1", "type": ""}}},
    }));
    let task = tasks::get_by_id(&session, &id).await.unwrap().unwrap();
    assert_eq!(
        (task.name.as_str(), task.status),
        ("train", Status::Created)
    );
    let script = task.script.unwrap();
    assert_eq!(script.repository, "https://host/r.git");
    assert_eq!(script.binary, "python3.11");
    assert_eq!(script.diff, "");
    assert_eq!(script.requirements.text("pip").unwrap(), "a==1\nb");
    assert_eq!(task.hyperparams["Environment"]["A"].value, "1");
}

#[tokio::test]
async fn what_a_run_writes_arrives() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = server.create_task(json!({
        "name": "train", "script": {"entry_point": "train.py", "requirements": {"pip": "a"}},
        "runtime": {"theirs": "kept"},
    }));
    tasks::started(&session, &id, NOTE, true).await.unwrap();
    tasks::set_version_num(&session, &id, "abc").await.unwrap();
    let list = json!({"pip": ["a==1"], "org_pip": "a"});
    let requirements: Requirements = serde_json::from_value(list.clone()).unwrap();
    tasks::set_requirements(&session, &id, &requirements)
        .await
        .unwrap();
    let mut runtime = tasks::get_by_id(&session, &id)
        .await
        .unwrap()
        .unwrap()
        .runtime;
    runtime.insert("ours".into(), "added".into());
    tasks::set_runtime(&session, &id, &runtime).await.unwrap();
    let standing = tasks::standing(&session, &id).await.unwrap().unwrap();
    assert_eq!(standing.status, Status::InProgress);

    let task = server.task(&id);
    assert_eq!(task["status_message"], NOTE.message);
    assert_eq!(task["script"]["version_num"], "abc");
    assert_eq!(
        task["script"]["entry_point"], "train.py",
        "script is merged"
    );
    assert_eq!(task["script"]["requirements"], list);
    assert_eq!(task["runtime"], json!({"theirs": "kept", "ours": "added"}));
    assert_eq!(tasks::standing(&session, "nosuch").await.unwrap(), None);
}

#[tokio::test]
async fn a_final_status_is_written_only_from_where_it_may_be() {
    for (status, name) in [
        (FinalStatus::Completed, "completed"),
        (FinalStatus::Failed, "failed"),
        (FinalStatus::Stopped, "stopped"),
    ] {
        let server = Recorded::start();
        let session = login(&server).await;
        let id = training(&server);
        tasks::started(&session, &id, NOTE, true).await.unwrap();
        let written = tasks::finish(&session, &id, status, NOTE).await.unwrap();
        assert_eq!(written, StatusWrite::Written);
        assert_eq!(server.task(&id)["status"], name);

        server.set(&id, json!({"status": "published"}));
        let written = tasks::finish(&session, &id, status, NOTE).await.unwrap();
        let StatusWrite::NotFromHere { message } = written else {
            panic!("{written:?}")
        };
        assert!(message.contains("current_status=published"), "{message}");
        assert_eq!(server.task(&id)["status"], "published");
    }
}

#[tokio::test]
async fn the_final_status_outlives_a_failing_server() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    tasks::started(&session, &id, NOTE, true).await.unwrap();
    server.inject(
        json!({"endpoint": "tasks.completed", "what": "status", "status": 500, "times": 3}),
    );
    server.inject(json!({"endpoint": "tasks.completed", "what": "drop", "applied": true}));
    let written = tasks::finish(&session, &id, FinalStatus::Completed, NOTE)
        .await
        .unwrap();
    assert_eq!(written, StatusWrite::Written);
    assert_eq!(server.task(&id)["status"], "completed");
}

/// The refusal that a status change meets when another one was faster.
fn status_change_lost(endpoint: &str, times: u32) -> Value {
    let meta = json!({
        "result_code": 400, "result_subcode": 121,
        "result_msg": "Failed changing task status. probably someone changed it before you",
    });
    let body = json!({"meta": meta, "data": {}}).to_string();
    json!({"endpoint": endpoint, "what": "status", "status": 400, "body": body, "times": times})
}

#[tokio::test]
async fn a_status_change_that_met_another_one_is_made_again() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.inject(status_change_lost("tasks.started", 1));
    tasks::started(&session, &id, NOTE, true).await.unwrap();
    server.inject(status_change_lost("tasks.completed", 2));
    let written = tasks::finish(&session, &id, FinalStatus::Completed, NOTE).await;
    assert_eq!(written.unwrap(), StatusWrite::Written);
    assert_eq!(server.task(&id)["status"], "completed");
}

#[tokio::test]
async fn a_worker_reports_and_leaves() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    let stats = json!({"cpu_usage": [1.5], "memory_used": 3.0});
    let status = workers::Status {
        worker: "w:0",
        task: &id,
        queue: None,
        tags: &[],
        timestamp: 1_795_472_758_977,
        machine_stats: Some(&stats),
    };
    workers::status_report(&session, &status).await.unwrap();
    assert_eq!(server.task(&id)["last_worker"], "w:0");
    assert_eq!(server.state()["reports"][0]["machine_stats"], stats);
    workers::unregister(&session, "w:0").await.unwrap();
    assert_eq!(server.state()["workers"], json!({}));
    workers::unregister(&session, "stranger").await.unwrap();
}

// --- the claim

#[tokio::test]
async fn of_many_agents_one_takes_the_task_out_of_its_queue() {
    const AGENTS: usize = 1000;
    // More connections at once than a small machine's server would take.
    let lanes = std::sync::Arc::new(tokio::sync::Semaphore::new(64));
    let server = Recorded::start();
    let id = training(&server);
    let queue = server.create_queue("race");
    server.enqueue(&id, &queue);
    let mut agents = tokio::task::JoinSet::new();
    for n in 0..AGENTS {
        let endpoint = server.endpoint(&format!("w:{n}"));
        let id = id.clone();
        let lanes = lanes.clone();
        agents.spawn(async move {
            let _lane = lanes.acquire().await.unwrap();
            let session = Session::login(&endpoint).await.unwrap();
            claim(&session, &id, Mode::FromQueue, &endpoint.worker, &quiet())
                .await
                .map(|claimed| claimed.task().id.clone())
        });
    }
    let results = agents.join_all().await;
    let winners = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(winners, 1, "{results:?}");
    for refused in results.into_iter().filter_map(Result::err) {
        assert!(
            matches!(
                refused,
                Refused::TakenByAnother { .. } | Refused::Held { .. }
            ),
            "{refused:?}"
        );
    }
    assert_eq!(server.calls_of("tasks.started").len(), 1);
    assert_eq!(server.task(&id)["status"], "in_progress");
    // Login, a look at the task, the race for it, a look at where it went.
    let calls = server.calls().len();
    assert!(calls <= 5 * AGENTS, "{calls}");
}

#[tokio::test]
async fn a_task_that_waits_in_another_queue_than_it_says_is_found() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    let there = server.create_queue("there");
    let elsewhere = server.create_queue("elsewhere");
    server.enqueue(&id, &there);
    server.set(&id, json!({"execution.queue": elsewhere}));
    claim(&session, &id, Mode::FromQueue, "w:0", &quiet())
        .await
        .unwrap();
    assert_eq!(server.state()["queues"][&there]["entries"], json!([]));
}

#[tokio::test]
async fn a_claim_whose_call_never_arrived_is_made_again() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.enqueue(&id, &server.create_queue("lossy"));
    server.inject(json!({"endpoint": "queues.remove_task", "what": "drop"}));
    claim(&session, &id, Mode::FromQueue, "w:0", &quiet())
        .await
        .unwrap();
    assert_eq!(server.task(&id)["status"], "in_progress");
}

/// The entry is gone and nobody starts the task: it is put back and taken again.
#[tokio::test]
async fn a_claim_whose_answer_was_lost_is_raced_for_again() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    let queue = server.create_queue("lossy");
    server.enqueue(&id, &queue);
    server.inject(json!({"endpoint": "queues.remove_task", "what": "drop", "applied": true}));
    claim(&session, &id, Mode::FromQueue, "w:0", &quiet())
        .await
        .unwrap();
    assert_eq!(server.task(&id)["status"], "in_progress");
    assert_eq!(server.state()["queues"][&queue]["entries"], json!([]));
}

/// The answer is lost, and another agent turns out to have the task.
#[tokio::test]
async fn a_lost_answer_is_no_claim_when_another_agent_starts_the_task() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    server.enqueue(&id, &server.create_queue("lossy"));
    server.inject(json!({"endpoint": "queues.remove_task", "what": "drop", "applied": true}));
    let console = quiet();
    let claiming = claim(&session, &id, Mode::FromQueue, "w:0", &console);
    let other = async {
        while server.calls_of("queues.remove_task").len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server.set(&id, json!({"status": "in_progress"}));
    };
    let (result, ()) = tokio::join!(claiming, other);
    let refused = result.unwrap_err();
    assert!(
        matches!(refused, Refused::TakenByAnother { .. }),
        "{refused:?}"
    );
    assert!(server.calls_of("tasks.started").is_empty());
}

/// However often answers are lost, the task does not end up queued in no queue.
#[tokio::test]
async fn a_claim_given_up_leaves_the_task_in_its_queue() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    let queue = server.create_queue("lossy");
    server.enqueue(&id, &queue);
    let lost =
        json!({"endpoint": "queues.remove_task", "what": "drop", "applied": true, "times": 9});
    server.inject(lost);
    let refused = claim(&session, &id, Mode::FromQueue, "w:0", &quiet())
        .await
        .unwrap_err();
    assert!(
        matches!(refused, Refused::Api(ApiError::Unreachable { .. })),
        "{refused:?}"
    );
    assert_eq!(server.task(&id)["status"], "queued");
    assert_eq!(server.state()["queues"][&queue]["entries"][0]["task"], id);
}

#[tokio::test]
async fn a_task_taken_but_not_started_goes_back_to_its_queue() {
    let server = Recorded::start();
    let session = login(&server).await;
    let id = training(&server);
    let queue = server.create_queue("returning");
    server.enqueue(&id, &queue);
    server.inject(status_change_lost("tasks.started", 99));
    let refused = claim(&session, &id, Mode::FromQueue, "w:0", &quiet()).await;
    assert!(refused.is_err());
    assert_eq!(server.task(&id)["status"], "queued");
    assert_eq!(server.state()["queues"][&queue]["entries"][0]["task"], id);
}

#[tokio::test]
async fn what_cannot_be_claimed_is_refused_and_left_alone() {
    let server = Recorded::start();
    let session = login(&server).await;
    let refusal = async |id: &str, mode| {
        claim(&session, id, mode, "w:0", &quiet())
            .await
            .unwrap_err()
    };
    let missing = refusal(&"0".repeat(32), Mode::Any).await;
    assert!(matches!(missing, Refused::NoSuchTask { .. }), "{missing:?}");
    assert!(missing.to_string().contains(server.url()), "{missing}");

    let idle = training(&server);
    let refused = refusal(&idle, Mode::FromQueue).await;
    assert!(
        matches!(
            refused,
            Refused::NotQueued {
                status: Status::Created,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(server.task(&idle)["status"], "created");

    let running = server.create_task(json!({"name": "train", "status": "in_progress"}));
    let refused = refusal(&running, Mode::FromQueue).await;
    assert!(matches!(refused, Refused::Held { .. }), "{refused:?}");

    let published = server.create_task(json!({"name": "train", "status": "published"}));
    let refused = refusal(&published, Mode::Any).await;
    assert!(matches!(refused, Refused::ReadOnly { .. }), "{refused:?}");
    assert_eq!(server.task(&published)["status"], "published");
    assert!(server.calls_of("tasks.started").is_empty());
}

#[tokio::test]
async fn a_person_may_run_a_task_whatever_its_status() {
    let server = Recorded::start();
    let session = login(&server).await;
    for status in [
        "created",
        "queued",
        "in_progress",
        "stopped",
        "failed",
        "completed",
    ] {
        let id = server.create_task(json!({"name": "train", "status": status}));
        let claimed = claim(&session, &id, Mode::Any, "w:0", &quiet())
            .await
            .unwrap();
        assert_eq!(claimed.task().id, id);
        let task = server.task(&id);
        assert_eq!(task["status"], "in_progress", "from {status}");
        assert_eq!(task["status_message"], "Changed by clearml-agent w:0");
    }
}

#[tokio::test]
async fn a_clone_runs_and_its_source_stays_untouched() {
    let server = Recorded::start();
    let session = login(&server).await;
    let source = server.create_task(json!({
        "name": "train", "status": "published", "script": {"entry_point": "train.py"},
    }));
    let before = server.task(&source);
    let claimed = claim(&session, &source, Mode::Clone, "w:0", &quiet())
        .await
        .unwrap();
    let copy = server.task(&claimed.task().id);
    assert_eq!(copy["name"], "Clone of train");
    assert_eq!(copy["parent"], json!(source));
    assert_eq!(copy["script"]["entry_point"], "train.py");
    assert_eq!(copy["status"], "in_progress");
    assert_eq!(server.task(&source), before);
}
