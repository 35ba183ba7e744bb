//! `--require-queue`: exactly one of any number of agents runs the task.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Running, World};
use serde_json::json;

fn count_script(world: &World) -> serde_json::Value {
    let mark = world.path("marks");
    std::fs::create_dir_all(&mark).unwrap();
    json!({"entry_point": "main.py", "working_dir": ".", "binary": "python3", "diff": format!(
        "import os\nopen(os.path.join({mark:?}, str(os.getpid())), 'w').close()\nprint('ran')\n")})
}

#[test]
fn a_queued_task_is_taken_out_of_its_queue_and_run() {
    let world = World::new();
    let id = world.api.create("queued", count_script(&world));
    world.api.enqueue(&id);
    world
        .execute(&id, &["--require-queue"])
        .exits(0)
        .prints("ran");
    assert_eq!(world.api.status(&id), "completed");
    let queues = world.api.call("queues.get_all", json!({}));
    assert_eq!(queues["queues"][0]["entries"].as_array().unwrap().len(), 0);
}

#[test]
fn what_is_not_queued_is_refused_and_untouched() {
    let world = World::new();
    let id = world.api.create("not queued", count_script(&world));
    let before = world.api.task(&id);
    world
        .execute(&id, &["--require-queue"])
        .exits(75)
        .complains("not waiting in a queue")
        .complains("created");
    assert_eq!(world.api.task(&id), before);

    world.api.call("tasks.started", json!({"task": id}));
    let before = world.api.task(&id);
    world
        .execute(&id, &["--require-queue"])
        .exits(76)
        .complains("in_progress");
    assert_eq!(world.api.task(&id), before);
}

#[test]
fn of_many_agents_exactly_one_runs_it() {
    let world = World::new();
    for round in 0..3 {
        let id = world
            .api
            .create(&format!("race {round}"), count_script(&world));
        world.api.enqueue(&id);
        let racers: Vec<Running> = (0..8)
            .map(|_| world.start_execute(&id, &["--require-queue"]))
            .collect();
        let mut codes: Vec<i32> = racers.into_iter().map(|racer| racer.wait().code).collect();
        codes.sort_unstable();
        // Those who come late find it taken, or even done.
        assert_eq!(codes.remove(0), 0);
        assert!(
            codes.iter().all(|code| [67, 76].contains(code)),
            "{codes:?}"
        );
        assert_eq!(world.api.status(&id), "completed");
        let runs = std::fs::read_dir(world.path("marks")).unwrap().count();
        assert_eq!(runs, round + 1);
    }
}
