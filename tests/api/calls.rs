//! The task's calls.

use clearml_agent::api::{
    tasks::{self, FinalStatus, StatusNote, StatusWrite},
    workers,
};
use clearml_agent::task::{Requirements, Status};
use serde_json::{Value, json};

use crate::recorded::Recorded;
use crate::{login, training};

const NOTE: StatusNote<'_> = StatusNote {
    reason: "worker execution done",
    message: "Changed by clearml-agent w:0",
};

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
pub fn status_change_lost(endpoint: &str, times: u32) -> Value {
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
