//! Runs in containers, with the real engine.

mod common;

use common::{World, script};

const IMAGE: &str = "clearml-agent-test/debian-python:bookworm";

#[test]
fn a_task_runs_in_a_container() {
    let world = World::new();
    let id = world.api.create(
        "in a container",
        script("import os\nprint('in', os.path.exists('/.dockerenv'))\n"),
    );
    world
        .execute(&id, &["--docker", &format!("{IMAGE} --network host")])
        .exits(0)
        .prints("in True");
    assert_eq!(world.api.status(&id), "completed");
}
