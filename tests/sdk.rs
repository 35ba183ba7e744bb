//! The real ClearML SDK inside a task that the agent runs.

mod common;

use common::{World, script};
use serde_json::json;

const TRAIN: &str = "\
from clearml import Task, Logger
task = Task.init(project_name='tests', task_name='another name')
params = task.connect({'epochs': 2, 'rate': 0.1})
print('connected', params['epochs'] + 0, task.id)
for i in range(int(params['epochs'])):
    Logger.current_logger().report_scalar('loss', 'train', 1.0 / (i + 1), iteration=i)
    print('epoch', i)
task.upload_artifact('numbers', {'a': 1})
task.flush(wait_for_uploads=True)
";

#[test]
fn the_sdk_attaches_to_the_task_that_the_agent_runs() {
    let world = World::new();
    let mut task = script(TRAIN);
    task["requirements"] = json!({"pip": "clearml == 2.1.12\n"});
    let id = world.api.create("with the SDK", task);
    // A value set in the UI overrides what the script has.
    world.api.call(
        "tasks.edit_hyper_params",
        json!({"task": id, "hyperparams": [
            {"section": "General", "name": "epochs", "value": "3", "type": "int"}]}),
    );
    world
        .execute(&id, &[])
        .exits(0)
        .prints(&format!("connected 3 {id}"))
        .prints("epoch 2");

    let task = world.api.task(&id);
    assert_eq!(task["status"], "completed", "{task}");
    assert_eq!(task["name"], "with the SDK");
    let scalars = world.api.call(
        "events.get_task_events",
        json!({"task": id, "event_type": "training_stats_scalar", "batch_size": 100}),
    );
    let mut losses: Vec<(i64, f64)> = scalars["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["metric"] == "loss")
        .map(|event| {
            (
                event["iter"].as_i64().unwrap(),
                event["value"].as_f64().unwrap(),
            )
        })
        .collect();
    losses.sort_by_key(|(iteration, _)| *iteration);
    assert_eq!(losses.len(), 3, "{scalars}");
    assert_eq!(losses[1], (1, 0.5));
    let artifacts = task["execution"]["artifacts"].as_array().unwrap();
    assert_eq!(artifacts[0]["key"], "numbers");

    // The console is the agent's: each line once.
    let log = world.api.log(&id);
    assert_eq!(log.matches("epoch 2\n").count(), 1, "{log}");
}
