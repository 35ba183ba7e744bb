//! Of all who try, one takes the task.

use std::time::Duration;

use clearml_agent::api::{ApiError, Session, queues};
use clearml_agent::console::Console;
use clearml_agent::execute::claim::{self, Claimed, Mode, Ready, Refused, Taking};
use clearml_agent::task::Status;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::calls::status_change_lost;
use crate::recorded::Recorded;
use crate::{login, training};

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
        run: worker,
        claimant: None,
    };
    let never = CancellationToken::new();
    match claim::ready(&task, &taking, |_| false) {
        Ready::Now => claim::claim(session, task, &taking, console, &never).await,
        Ready::Unanswered(within) => {
            let task = claim::asking::ask(session, &task, &taking, within).await?;
            claim::claim(session, task, &taking, console, &never).await
        }
        Ready::Later(why) | Ready::Never(why) => Err(why),
    }
}

fn quiet() -> Console {
    Console::new(|_| {})
}

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
    // Login, a look at the task, the race for it, a look at where it went, and whether it has started there.
    let calls = server.calls().len();
    assert!(calls <= 6 * AGENTS, "{calls}");
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

/// An agent was killed after it had taken the entry away, and nobody can tell.
#[tokio::test]
async fn a_task_that_stays_queued_in_no_queue_is_taken_by_exactly_one() {
    let server = Recorded::start();
    let id = training(&server);
    let queue = server.create_queue("left");
    server.enqueue(&id, &queue);
    let session = login(&server).await;
    assert!(queues::remove_task(&session, &queue, &id).await.unwrap());
    let console = quiet();
    let workers = ["a", "b", "c", "d", "e"];
    let claims = workers.map(|worker| claim(&session, &id, Mode::FromQueue, worker, &console));
    let results = futures_util::future::join_all(claims).await;
    let winners = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(winners, 1, "{results:?}");
    assert_eq!(server.calls_of("tasks.started").len(), 1);
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

#[tokio::test]
async fn a_task_is_copied_once_whatever_becomes_of_the_answer() {
    let server = Recorded::start();
    let session = login(&server).await;
    let lost = |what: &str, status: u32, applied: bool| json!({"endpoint": "tasks.clone", "what": what, "status": status, "applied": applied});
    for (failure, copied) in [
        (lost("status", 429, false), true),
        (lost("status", 500, true), false),
        (lost("status", 502, true), false),
        (lost("status", 503, false), false),
        (lost("drop", 0, true), false),
    ] {
        let source = training(&server);
        server.inject(failure.clone());
        let result = claim(&session, &source, Mode::Clone, "w:0", &quiet()).await;
        assert_eq!(result.is_ok(), copied, "{failure}: {result:?}");
        if let Err(refused) = result {
            let words = refused.to_string();
            assert!(words.contains("not tried again"), "{words}");
            assert_eq!(refused.exit_code(), 69);
        }
        let state = server.state();
        let tasks = state["tasks"].as_object().unwrap().values();
        let copies = tasks.filter(|task| task["parent"] == json!(source)).count();
        assert!(copies <= 1, "{failure}: {copies}");
    }
}
