//! What the log costs and how fast it is: a script that prints a million lines, by hand into a file and
//! through the agent to a server on this machine; and how late a line is on the server.
//! `cargo bench --bench log`
#![allow(clippy::unwrap_used)]

#[path = "../tests/common/mod.rs"]
mod common;
#[path = "../tests/common/figures.rs"]
mod figures;
#[path = "../tests/common/server_process.rs"]
mod server_process;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{Api, World, script};
use serde_json::{Value, json};
use server_process::ServerProcess;

const LINES: usize = 1_000_000;

/// Says at its end, in a file, how long it took: wall and processor seconds.
const PRINTER: &str = "\
import sys, time
wall, cpu = time.perf_counter(), time.process_time()
for n in range(1000000):
    print('line', n)
took = time.perf_counter() - wall, time.process_time() - cpu
open(TIMES, 'w').write('%f %f' % took)
";

fn times(world: &World) -> (f64, f64) {
    let text = std::fs::read_to_string(world.path("times")).unwrap();
    let (wall, cpu) = text.split_once(' ').unwrap();
    (wall.parse().unwrap(), cpu.parse().unwrap())
}

/// Processor seconds and the peak of memory (MB) of a process, up to now.
fn cost(pid: u32) -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields[11].parse::<f64>().ok()? + fields[12].parse::<f64>().ok()?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let peak: f64 = peak.trim().trim_end_matches(" kB").parse().ok()?;
    Some((ticks / 100.0, peak / 1024.0))
}

/// The whole log, page by page.
fn log(api: &Api, id: &str) -> String {
    let mut all = String::new();
    let mut from = Value::Null;
    loop {
        let mut request =
            json!({"task": id, "batch_size": 1000, "order": "asc", "navigate_earlier": false});
        if !from.is_null() {
            request["from_timestamp"] = from.clone();
        }
        let answer = api.call("events.get_task_log", request);
        let events = answer["events"].as_array().unwrap().clone();
        let Some(last) = events.last() else {
            return all;
        };
        from = json!(last["timestamp"].as_f64().unwrap() + 1.0);
        for event in &events {
            all.push_str(event["msg"].as_str().unwrap());
        }
    }
}

fn a_million_lines(world: &World) {
    let text = PRINTER.replace(
        "TIMES",
        &format!("{:?}", world.path("times").to_str().unwrap()),
    );
    std::fs::write(world.path("main.py"), &text).unwrap();
    let (mut by_hand, mut through) = (f64::MAX, f64::MAX);
    let mut script_cpu = 0.0;
    let mut costs = (0.0, 0.0);
    for round in 0..5 {
        let file = std::fs::File::create(world.path("out.txt")).unwrap();
        let mut plain = Command::new("python3");
        plain.arg("-u").arg(world.path("main.py")).stdout(file);
        assert!(plain.status().unwrap().success());
        by_hand = by_hand.min(times(world).0);

        let id = world.api.create("a million lines", script(&text));
        let mut child = world
            .command(&["execute", "--id", &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut seen = (0.0, 0.0);
        while child.try_wait().unwrap().is_none() {
            seen = cost(child.id()).unwrap_or(seen);
            std::thread::sleep(Duration::from_millis(10));
        }
        let (wall, cpu) = times(world);
        if wall < through {
            (through, script_cpu, costs) = (wall, cpu, seen);
        }
        if round == 0 {
            let figures = figures::figures(&log(&world.api, &id), LINES);
            assert_eq!(figures, figures::NOTHING_WRONG);
        }
    }
    println!(
        "1,000,000 lines: {by_hand:.2} s into a file, {through:.2} s through the agent ({:+.1} %)",
        100.0 * (through / by_hand - 1.0)
    );
    println!(
        "the agent: {:.2} s of processor time, {:.0} % of the script's {script_cpu:.2} s; peak memory {:.1} MB",
        costs.0,
        100.0 * costs.0 / script_cpu,
        costs.1
    );
}

/// How long after it was printed a line can be read from the server.
fn lateness(world: &World) {
    let text = "\
import time
for n in range(40):
    print('at', time.time(), flush=True)
    time.sleep(0.13)
";
    let id = world.api.create("lateness", script(text));
    let running = world.start_execute(&id, &[]);
    let (mut worst, mut seen) = (0.0_f64, 0);
    let until = Instant::now() + Duration::from_secs(30);
    while seen < 40 && Instant::now() < until {
        let log = world.api.log(&id);
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let printed: Vec<f64> = log
            .lines()
            .filter_map(|line| line.strip_prefix("at ")?.parse().ok())
            .collect();
        for time in &printed[seen..] {
            worst = worst.max(now.as_secs_f64() - time);
        }
        seen = printed.len();
        std::thread::sleep(Duration::from_millis(20));
    }
    running.wait().exits(0);
    println!("a line is on the server {worst:.2} s after it was printed, at the latest");
}

fn main() {
    let server = ServerProcess::start("127.0.0.1:0", None);
    let world = World::at(server.api.clone());
    lateness(&world);
    a_million_lines(&world);
}
