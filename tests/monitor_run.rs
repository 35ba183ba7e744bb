//! What a run reports of its machine and its job, and what a run of several nodes or on a sick machine
//! does: the real binary on the embedded server.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/nvml.rs"]
mod nvml;

use std::collections::BTreeMap;

use common::{World, eventually, script};
use nvml::{Driver, gpus};
use serde_json::{Value, json};

const MACHINE: &str = ":monitor:machine";
const GPU: &str = ":monitor:gpu";

fn with_driver(driver: &Driver) -> World {
    let mut world = World::new();
    for (name, value) in driver.env() {
        world.env.insert(name.into(), value);
    }
    world
}

/// (title, series) → (iteration, value), each once.
fn scalars(world: &World, id: &str) -> BTreeMap<(String, String), Vec<(i64, f64)>> {
    let answer = world.api.call(
        "events.get_task_events",
        json!({"task": id, "event_type": "training_stats_scalar", "batch_size": 1000}),
    );
    let mut found: BTreeMap<(String, String), Vec<(i64, f64)>> = BTreeMap::new();
    for event in answer["events"].as_array().unwrap() {
        let text = |field: &str| event[field].as_str().unwrap().to_owned();
        let key = (text("metric"), text("variant"));
        let point = (
            event["iter"].as_i64().unwrap(),
            event["value"].as_f64().unwrap(),
        );
        found.entry(key).or_default().push(point);
    }
    found
}

fn one(all: &BTreeMap<(String, String), Vec<(i64, f64)>>, title: &str, series: &str) -> (i64, f64) {
    let points = all.get(&(title.to_owned(), series.to_owned()));
    let points = points.unwrap_or_else(|| panic!("no {title} {series} in {all:?}"));
    assert_eq!(points.len(), 1, "{title} {series}: {points:?}");
    points[0]
}

/// Holds 300 MiB and six threads, keeps one core busy and has memory on GPU 1; says at its end what
/// the kernel says of it.
const LOAD: &str = "\
import os, threading, time
spec = os.environ['NVML_STAND_IN']
with open(spec) as file:
    text = file.read()
with open(spec + '.job', 'w') as file:
    file.write(text + f'proc 1 {os.getpid()} 512\\nproc 1 1 64\\n')
os.rename(spec + '.job', spec)
block = bytearray(os.urandom(1024)) * (300 * 1024)
over = threading.Event()
for _ in range(5):
    threading.Thread(target=over.wait).start()
until = time.monotonic() + 5
while time.monotonic() < until:
    sum(range(10000))
with open('/proc/self/status') as file:
    status = dict(line.split(':', 1) for line in file)
print('rss', status['VmRSS'].split()[0], 'threads', status['Threads'].strip(), 'cpu', time.process_time())
over.set()
";

#[test]
fn a_task_without_the_sdk_has_the_machines_figures_as_scalars() {
    let driver = Driver::new(&gpus(2));
    let world = with_driver(&driver);
    let id = world.api.create("load", script(LOAD));
    let ended = world.execute(&id, &[]).exits(0);
    let line = ended
        .stdout
        .lines()
        .find(|l| l.starts_with("rss "))
        .unwrap();
    let words: Vec<f64> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
    let [rss_kib, threads, cpu] = words[..] else {
        panic!("{line}")
    };

    let all = scalars(&world, &id);
    for series in [
        "cpu_usage",
        "memory_free_gb",
        "disk_free_percent",
        "network_tx_mbs",
        "network_rx_mbs",
        "io_read_mbs",
        "io_write_mbs",
    ] {
        one(&all, MACHINE, series);
    }
    // The job's own, against what the kernel told the job itself. Its first moments are in the
    // averages.
    let (seconds, memory) = one(&all, MACHINE, "memory_used_gb");
    let rss = rss_kib / 1024.0 / 1024.0;
    assert!((4..60).contains(&seconds), "{seconds}");
    assert!(
        memory > rss * 0.5 && memory < rss * 1.1,
        "{memory} of {rss}"
    );
    let (_, counted) = one(&all, MACHINE, "job_threads");
    assert!(
        counted > threads * 0.5 && counted <= threads,
        "{counted} of {threads}"
    );
    assert_eq!(one(&all, MACHINE, "job_processes").1, 1.0);
    let cores = std::fs::read_to_string("/proc/stat").unwrap();
    let cores = cores.lines().filter(|l| l.starts_with("cpu")).count() - 1;
    let busy = cpu / seconds as f64 * 100.0 / cores as f64;
    let (_, usage) = one(&all, MACHINE, "job_cpu_usage");
    assert!(
        usage > busy * 0.5 && usage < busy * 1.5,
        "{usage} of {busy}"
    );
    let (_, whole) = one(&all, MACHINE, "cpu_usage");
    assert!(
        whole > usage * 0.7,
        "{whole} of the machine, {usage} of the job"
    );

    assert_eq!(one(&all, GPU, "gpu_0_utilization").1, 0.0);
    assert_eq!(one(&all, GPU, "gpu_1_utilization").1, 10.0);
    assert_eq!(one(&all, GPU, "gpu_1_temperature").1, 41.0);
    assert_eq!(one(&all, GPU, "gpu_1_mem_free_gb").1, 79.0);
    assert_eq!(one(&all, GPU, "gpu_1_mem_usage").1, 1.25);
    assert_eq!(one(&all, GPU, "gpu_1_power_draw").1, 101.0);
    assert_eq!(one(&all, GPU, "gpu_1_clock_mhz").1, 1980.0);
    // The job's share, not the other process's.
    let (_, share) = one(&all, GPU, "gpu_1_mem_used_gb");
    assert!(share > 0.2 && share <= 0.5, "{share}");

    let task = world.api.task(&id);
    assert_eq!(task["last_iteration"], 0, "seconds are no progress");
    assert_eq!(task["status"], "completed");
}

#[test]
fn a_task_with_the_sdk_has_only_the_sdks_scalars() {
    const TRAIN: &str = "\
import time
from clearml.utilities.resource_monitor import ResourceMonitor
ResourceMonitor._first_report_sec_default = 1.0
ResourceMonitor._wait_for_first_iteration_to_start_sec_default = 1.0
from clearml import Task
task = Task.init(project_name='tests', task_name='x')
time.sleep(5)
task.flush(wait_for_uploads=True)
";
    let driver = Driver::new(&gpus(2));
    let world = with_driver(&driver);
    let mut task = script(TRAIN);
    task["requirements"] = json!({"pip": "clearml == 2.1.12\n"});
    let id = world.api.create("with the SDK", task);
    world.execute(&id, &[]).exits(0);
    let all = scalars(&world, &id);
    one(&all, MACHINE, "cpu_usage");
    one(&all, GPU, "gpu_1_utilization");
    let ours: Vec<_> = all.keys().filter(|(_, s)| s.starts_with("job_")).collect();
    assert!(ours.is_empty(), "{ours:?}");
    // What it would have been: the SDK's series are all among ours.
    let load = world
        .api
        .create("without", script("import time; time.sleep(3)"));
    world.execute(&load, &[]).exits(0);
    let without = scalars(&world, &load);
    for key in all
        .keys()
        .filter(|(title, _)| title.starts_with(":monitor:"))
    {
        assert!(without.contains_key(key), "{key:?} in {without:?}");
    }
}

#[test]
fn what_an_earlier_run_with_the_sdk_left_is_no_sign_of_it() {
    let world = World::new();
    let id = world
        .api
        .create("again", script("import time; time.sleep(2)"));
    world.api.call(
        "tasks.edit",
        json!({"task": id, "force": true, "runtime": {"CLEARML VERSION": "clearml-2.1.12"}}),
    );
    world.execute(&id, &[]).exits(0);
    one(&scalars(&world, &id), MACHINE, "cpu_usage");
}

#[test]
fn without_monitoring_there_are_no_figures() {
    let world = World::new();
    let id = world
        .api
        .create("quiet", script("import time; time.sleep(2)"));
    world.execute(&id, &["--disable-monitoring"]).exits(0);
    assert!(scalars(&world, &id).is_empty());
    assert_eq!(world.api.status(&id), "completed");
    assert_eq!(world.api.log(&id), "");
    let worker = &world.api.task(&id)["last_worker_report"];
    assert!(worker.is_null(), "no worker reported: {worker}");
}

fn workers(world: &World) -> Vec<String> {
    let answer = world.api.call("workers.get_all", json!({}));
    let workers = answer["workers"].as_array().unwrap();
    let ids = workers.iter().map(|w| w["id"].as_str().unwrap().to_owned());
    ids.collect()
}

#[test]
fn supervised_runs_on_one_machine_have_ids_that_say_what_they_have() {
    let mut world = World::new();
    world.configure("agent.worker_name: node7");
    let wait = "import os, time\nwhile not os.path.exists('over'): time.sleep(0.05)";
    let wait = wait.replace("over", world.path("over").to_str().unwrap());
    // Others on this machine, another test run say, may have the plain name.
    let name = format!("node-{}", std::process::id());
    world.env.insert("CLEARML_WORKER_NAME".into(), name.clone());
    let start = |words: &[&str]| {
        let id = world.api.create("waits", script(&wait));
        let mut all = vec!["--full-monitoring"];
        all.extend(words);
        world.start_execute(&id, &all)
    };
    let mut runs = vec![start(&["--gpus", "0,1"])];
    eventually("the first is there", || workers(&world).len() == 1);
    runs.push(start(&["--gpus", "0,1"]));
    runs.push(start(&["--cpu-only"]));
    runs.push(start(&[]));
    eventually("all are there", || workers(&world).len() == 4);
    let mut ids = workers(&world);
    ids.sort();
    assert_eq!(
        ids,
        [
            format!("{name}:0"),
            format!("{name}:cpu:0"),
            format!("{name}:gpu0,1"),
            format!("{name}:gpu0,1:1")
        ]
    );
    std::fs::write(world.path("over"), "").unwrap();
    for run in runs {
        let _ = run.wait().exits(0);
    }
    assert_eq!(workers(&world), Vec::<String>::new());
}

#[test]
fn another_rank_leaves_status_and_packages_to_the_first() {
    let mut world = World::new();
    let mut task = script("print('here')\nraise SystemExit(3)");
    task["requirements"] = json!({"pip": "six == 1.17.0\n"});
    let id = world.api.create("several", task);
    world.api.call("tasks.started", json!({"task": id}));
    let before = world.api.task(&id);
    world.env.insert("SLURM_PROCID".into(), "2".into());
    world
        .env
        .insert("CLEARML_MULTI_NODE_SINGLE_TASK".into(), "1".into());
    let file = world.path("result.json");
    world
        .execute(
            &id,
            &["--require-queue", "--result", file.to_str().unwrap()],
        )
        .exits(3)
        .prints("Process failed, exit code 3 - rank 2");

    let after = world.api.task(&id);
    for field in [
        "status",
        "status_reason",
        "status_message",
        "script",
        "started",
    ] {
        assert_eq!(after[field], before[field], "{field}");
    }
    let log = world.api.log(&id);
    assert!(
        log.starts_with("\u{1b}[38;5;22mRANK 2:\u{1b}[0m\n"),
        "{log:?}"
    );
    assert!(log.contains("here\n"), "{log}");
    let all = scalars(&world, &id);
    assert!(
        all.keys().all(|(title, _)| title.ends_with(":rank2")),
        "{all:?}"
    );
    let result: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(result["status"], Value::Null);
    assert_eq!(result["reason"], "failed");
}

#[test]
fn a_machine_with_a_sick_gpu_takes_no_task() {
    let sick = gpus(8).replace("util=30 ", "util=30 remap=1 ");
    let driver = Driver::new(&(sick + "proc 1 7 40000\n"));
    let world = with_driver(&driver);
    world.configure("agent.gpu_health_check: refuse");
    let id = world.api.create("waits", script("print('ran')"));
    world.api.enqueue(&id);
    let file = world.path("result.json");
    let file = file.to_str().unwrap();
    let take = ["--require-queue", "--result", file];
    world
        .execute(&id, &take)
        .exits(71)
        .complains("GPU 3: memory rows wait to be replaced: it must be reset")
        .complains("GPU 1: 40000 of its 81920 MiB are held already, by process 7");
    assert_eq!(
        world.api.status(&id),
        "queued",
        "another machine can take it"
    );
    let result: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    assert_eq!(result["reason"], "node_unfit");
    assert_eq!(result["status"], Value::Null);

    // The sick ones are none of this run's.
    let mut words = vec!["--gpus", "0,2"];
    words.extend(take);
    world.execute(&id, &words).exits(0).prints("ran");

    // The same found, and said.
    world.configure("agent.gpu_health_check: warn");
    let id = world.api.create("runs", script("print('ran')"));
    world
        .execute(&id, &[])
        .exits(0)
        .prints("Warning: GPU 3: memory rows wait")
        .prints("ran");

    world.configure("agent.gpu_health_check: sometimes");
    world
        .execute(&id, &[])
        .exits(78)
        .complains("agent.gpu_health_check is \"sometimes\"");
}
