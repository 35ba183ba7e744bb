//! Tasks that wait in a queue, and agents that take them from there.

use serde_json::json;

use super::common::{Running, World, script};

/// Says which attempt it is, and sleeps until it is stopped.
pub const SLEEPER: &str = "\
import os, signal, sys, time
def bye(*_):
    print('checkpoint written', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
env = os.environ.get
print('attempt', env('CLEARML_AGENT_ATTEMPT'), 'after', env('CLEARML_AGENT_FORMER_END'), flush=True)
if env('CLEARML_AGENT_ATTEMPT') == '1': time.sleep(1000)
";

pub fn claimant(world: &mut World, id: &str) {
    world
        .env
        .insert("CLEARML_AGENT_CLAIM_ID".into(), id.to_owned());
}

pub fn queued(world: &World, text: &str) -> String {
    let id = world.api.create("queued", script(text));
    world.api.enqueue(&id);
    id
}

pub fn entries(world: &World) -> usize {
    let queues = world.api.call("queues.get_all", json!({}));
    queues["queues"][0]["entries"].as_array().unwrap().len()
}

pub fn start(world: &World, id: &str, words: &[&str]) -> Running {
    let mut all = vec!["--require-queue"];
    all.extend(words);
    world.start_execute(id, &all)
}
