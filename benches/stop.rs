//! How soon a stop reaches the script: a signal to the agent, and an abort on the server (of twenty
//! each, the median and the worst). `cargo bench --bench stop`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Running, World, script};
use serde_json::json;

const RUNS: usize = 20;
/// As many at once as a small machine has no trouble with.
const AT_ONCE: usize = 5;

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
}

/// A script that writes down when SIGTERM came.
fn sleeper(file: &Path) -> String {
    format!(
        "import signal, sys, time\n\
         def bye(*_):\n    now = time.time()\n    open({file:?}, 'w').write(repr(now))\n    sys.exit(0)\n\
         signal.signal(signal.SIGTERM, bye)\nprint('ready', flush=True)\n\
         while True: time.sleep(1000)\n"
    )
}

/// Starts runs, stops each by `stop`; seconds from there to the script.
fn delays(stop: impl Fn(&World, &str, &Running)) -> Vec<f64> {
    let world = World::new();
    let mut all = Vec::new();
    for round in 0..RUNS / AT_ONCE {
        let mut runs: Vec<_> = (0..AT_ONCE)
            .map(|n| {
                let file = world.path(&format!("stopped-{round}-{n}"));
                let id = world.api.create("sleeps", script(&sleeper(&file)));
                let running = world.start_execute(&id, &[]);
                (id, running, file)
            })
            .collect();
        for (_, running, _) in &mut runs {
            running.line_with("ready");
        }
        let stopped: Vec<f64> = runs
            .iter()
            .map(|(id, running, _)| {
                let at = now();
                stop(&world, id, running);
                at
            })
            .collect();
        for ((_, running, file), at) in runs.into_iter().zip(stopped) {
            let _ = running.wait();
            let came: f64 = std::fs::read_to_string(file).unwrap().parse().unwrap();
            all.push(came - at);
        }
    }
    all.sort_by(f64::total_cmp);
    all
}

fn tell(what: &str, delays: &[f64]) {
    println!(
        "{what}: median {:.3} s, worst {:.3} s of {}",
        delays[delays.len() / 2],
        delays[delays.len() - 1],
        delays.len()
    );
}

fn main() {
    tell(
        "SIGTERM to the agent, at the script after (kill's own start in it)",
        &delays(|_, _, running| running.signal("TERM")),
    );
    tell(
        "abort on the server, at the script after",
        &delays(|world, id, _| {
            world.api.call("tasks.stop", json!({"task": id}));
        }),
    );
}
