//! Which task is taken and when, also over a line that fails: far away, cut off in the middle, or with an agent
//! that is killed or stopped meanwhile.
#![allow(clippy::unwrap_used)]

#[path = "common/claiming.rs"]
mod claiming;
mod common;
#[path = "common/line.rs"]
mod line;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use claiming::{SLEEPER, claimant, entries, queued, start};
use common::{World, eventually, script};
use line::Line;
use serde_json::json;

#[test]
fn which_task_comes_from_a_file_or_the_environment() {
    let mut world = World::new();
    let ids: Vec<String> = (0..3)
        .map(|n| {
            world
                .api
                .create("one of several", script(&format!("print('number {n}')")))
        })
        .collect();
    let file = world.path("tasks");
    std::fs::write(&file, ids.join("\n") + "\n").unwrap();
    let words = ["execute", "--id-file", file.to_str().unwrap()];
    world
        .run(&words)
        .exits(2)
        .complains("neither SLURM_ARRAY_TASK_ID nor JOB_COMPLETION_INDEX");
    for (name, value, expected) in [
        ("SLURM_ARRAY_TASK_ID", "2", "number 1"),
        ("JOB_COMPLETION_INDEX", "2", "number 2"),
    ] {
        world.env = [(name.to_owned(), value.to_owned())].into();
        world.run(&words).exits(0).prints(expected);
    }
    world.env = [("SLURM_ARRAY_TASK_ID".to_owned(), "4".to_owned())].into();
    world
        .run(&words)
        .exits(2)
        .complains("has 3 lines, and this job's is line 4");
    world.env = [("CLEARML_TASK_ID".to_owned(), ids[0].clone())].into();
    world.run(&["execute"]).exits(0).prints("number 0");
    world.env.clear();
    world
        .run(&["execute"])
        .exits(2)
        .complains("CLEARML_TASK_ID");
}

#[test]
fn a_task_that_is_about_to_be_queued_is_waited_for() {
    let world = World::new();
    let id = world.api.create("not yet", script("print('ran')"));
    let mut running = start(&world, &id, &["--wait", "100"]);
    running.line_with("Waiting for task");
    world.api.enqueue(&id);
    running.wait().exits(0).prints("ran");

    let never = world.api.create("never", script("print('ran')"));
    start(&world, &never, &["--wait", "1"])
        .wait()
        .exits(75)
        .complains("not waiting in a queue");
    // A signal ends the waiting.
    let mut running = start(&world, &never, &["--wait", "1000"]);
    running.line_with("Waiting for task");
    running.signal("TERM");
    running.wait().exits(143);
    assert_eq!(world.api.status(&never), "created");
}

/// Between the queue and what the task says of its claim.
#[test]
fn a_job_that_was_killed_while_it_took_its_task_takes_it_up() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let line = Line::to(&world.api.url);
    world
        .env
        .insert("CLEARML_API_HOST".into(), line.url.clone());
    let id = queued(&world, "print('ran')");
    line.hold("tasks.edit");
    let first = start(&world, &id, &[]);
    eventually("the task is out of its queue", || entries(&world) == 0);
    first.signal("KILL");
    let _ = first.wait();
    line.let_through();
    assert_eq!(world.api.status(&id), "queued");
    start(&world, &id, &[]).wait().exits(0).prints("ran");
    assert_eq!(world.api.status(&id), "completed");
}

#[test]
fn a_signal_while_the_task_is_taken_puts_it_back() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let line = Line::to(&world.api.url);
    world
        .env
        .insert("CLEARML_API_HOST".into(), line.url.clone());
    for held in ["tasks.edit", "tasks.started"] {
        let id = queued(&world, "print('ran')");
        line.hold(held);
        let running = start(&world, &id, &["--on-preempt", "keep"]);
        eventually("the task is out of its queue", || entries(&world) == 0);
        running.signal("TERM");
        running
            .wait()
            .exits(143)
            .complains("while task")
            .complains("it is as it was");
        line.let_through();
        assert_eq!(world.api.status(&id), "queued");
        assert_eq!(entries(&world), 1);
        start(&world, &id, &[]).wait().exits(0).prints("ran");
    }
    // With nothing at stake, while it is seen whether another agent has it.
    let id = queued(&world, "print('ran')");
    let queues = world.api.call("queues.get_all", json!({}));
    let queue = &queues["queues"][0]["id"];
    world
        .api
        .call("queues.remove_task", json!({"queue": queue, "task": id}));
    line.hold("tasks.get_all");
    let running = start(&world, &id, &[]);
    eventually("it looks whether the task is started", || {
        line.has_held() > 2
    });
    running.signal("TERM");
    running.wait().exits(143).complains("it is as it was");
    assert_eq!(world.api.status(&id), "queued");
}

#[test]
fn a_claim_is_recorded_as_soon_as_the_server_takes_it() {
    let mut world = World::new();
    let line = Line::to(&world.api.url);
    world
        .env
        .insert("CLEARML_API_HOST".into(), line.url.clone());
    let go = world.path("go").display().to_string();
    world.env.insert("GO".into(), go.clone());
    let text = "import os, time\nprint('awake', flush=True)\n\
                while not os.path.exists(os.environ['GO']): time.sleep(0.01)\n";
    let id = world.api.create("not recorded", script(text));
    line.hold("tasks.edit");
    let mut running = world.start_execute(&id, &[]);
    running.line_with("awake");
    // Longer than one call is patient.
    eventually("it is tried again", || line.has_held() > 1);
    line.let_through();
    eventually("the claim is recorded", || {
        world.api.task(&id)["runtime"]["clearml_agent_claim"].is_string()
    });
    std::fs::write(go, "").unwrap();
    running.wait().exits(0);
}

/// The server's address by way of a line on which each request takes its time.
fn far_away(url: &str) -> String {
    let server = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let far = TcpStream::connect(&server).unwrap();
            let (mut back, mut answers) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut answers, &mut back));
            std::thread::spawn(move || carry(near, far));
        }
    });
    here
}

fn carry(mut from: TcpStream, mut to: TcpStream) -> std::io::Result<()> {
    let mut bytes = [0; 65536];
    loop {
        let count = from.read(&mut bytes)?;
        if count == 0 {
            return to.shutdown(Shutdown::Write);
        }
        std::thread::sleep(Duration::from_millis(300));
        to.write_all(&bytes[..count])?;
    }
}

#[test]
fn a_killed_job_is_gone_on_with_over_a_server_far_away() {
    let mut world = World::new();
    claimant(&mut world, "job 7");
    let id = queued(&world, SLEEPER);
    let mut first = start(&world, &id, &[]);
    first.line_with("attempt 1");
    first.signal("KILL");
    let _ = first.wait();
    let far = far_away(&world.api.url);
    world.env.insert("CLEARML_API_HOST".into(), far);
    start(&world, &id, &[]).wait().exits(0).prints("attempt 2");
    assert_eq!(world.api.status(&id), "completed");
}
