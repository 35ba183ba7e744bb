//! The machine's figures as they reach the server, against what the machine says of itself.

// The whole file is a test.
#![allow(clippy::unwrap_used)]

#[path = "common/recorded.rs"]
mod recorded;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clearml_agent::api::Session;
use clearml_agent::console::Console;
use clearml_agent::monitor::gpu::{Source, Visible};
use clearml_agent::monitor::{self, GpuReport, Node, Report, Script, TaskScalars, Timing, Worker};
use recorded::Recorded;
use serde_json::{Value, json};

async fn start(server: &Recorded, task: &str, timing: Timing) -> monitor::Monitor {
    monitor::start(report(server, task, timing).await)
}

async fn report(server: &Recorded, task: &str, timing: Timing) -> Report {
    let session = Session::login(&server.endpoint("w:0")).await.unwrap();
    Report {
        session: Arc::new(session),
        worker: Worker {
            id: "w:0".into(),
            tags: vec!["a".into(), "b c".into()],
            queue: Some("q1".into()),
        },
        task: task.into(),
        disk_path: home(),
        gpus: Source {
            visible: Visible::None,
            sysfs: "/sys".into(),
        },
        gpu_report: GpuReport {
            default_usage: Some(100.0),
            fractions: vec![],
        },
        script: Script::default(),
        scalars: None,
        timing,
        console: Console::new(|line| panic!("nothing to say: {line}")),
    }
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from)
}

/// Waits until the server has so many reports, and gives them.
async fn reports(server: &Recorded, count: usize) -> Vec<Value> {
    loop {
        let state = server.state();
        let reports = state["reports"].as_array().unwrap();
        if reports.len() >= count {
            return reports.clone();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_worker_is_reported_at_once_then_with_figures_and_at_the_end_without() {
    let server = Recorded::start();
    let task = server.create_task(json!({"name": "train", "status": "in_progress"}));
    let timing = Timing {
        every: Duration::from_millis(1200),
        ..Timing::default()
    };
    let monitor = start(&server, &task, timing).await;
    reports(&server, 3).await;
    monitor.stop().await;

    let reports = server.state()["reports"].as_array().unwrap().clone();
    for report in &reports {
        assert_eq!(report["worker"], "w:0");
        assert_eq!(report["task"], json!(task));
        assert_eq!(report["is_daemon"], false);
        assert_eq!(report["tags"], json!(["a", "b c"]));
        assert_eq!(report["queue"], "q1");
        assert!(report["timestamp"].as_i64().unwrap() > 1_700_000_000_000);
    }
    let (with, without): (Vec<_>, Vec<_>) =
        (0..reports.len()).partition(|&n| reports[n]["machine_stats"].is_object());
    assert_eq!(without, [0, reports.len() - 1]);
    assert!(with.len() >= 2);
    assert_eq!(server.task(&task)["last_worker"], "w:0");
}

#[tokio::test]
async fn the_figures_are_the_machines() {
    let server = Recorded::start();
    let task = server.create_task(json!({"name": "train", "status": "in_progress"}));
    let monitor = start(&server, &task, Timing::default()).await;
    reports(&server, 1).await;
    let enough = Arc::new(AtomicBool::new(false));
    let traffic = std::thread::spawn({
        let enough = enough.clone();
        move || send_over_loopback(&enough)
    });
    let stats = reports(&server, 2).await[1]["machine_stats"].clone();
    enough.store(true, Ordering::Relaxed);
    traffic.join().unwrap();
    monitor.stop().await;
    let figure = |name: &str| {
        let value = &stats[name];
        value
            .as_f64()
            .unwrap_or_else(|| panic!("{name} in {stats}"))
    };

    let usage = stats["cpu_usage"].as_array().unwrap();
    assert_eq!(usage.len(), 1);
    let usage = usage[0].as_f64().unwrap();
    assert!(usage > 0.0 && usage <= 100.0, "{stats}");
    if let Some(temperature) = stats["cpu_temperature"].as_array() {
        let temperature = temperature[0].as_f64().unwrap();
        assert!((1.0..130.0).contains(&temperature), "{stats}");
    }

    let memory = meminfo();
    let total = memory["MemTotal"];
    let (used, free) = (figure("memory_used"), figure("memory_free"));
    assert!(
        (used + free - total).abs() < 1.0,
        "{used} + {free} of {total}"
    );
    // Other tests build environments meanwhile.
    assert!(
        (free - memory["MemAvailable"]).abs() < total / 4.0,
        "{memory:?} {stats}"
    );

    let free_percent = figure("disk_free_home");
    assert!(
        (free_percent - (100.0 - df_used_percent())).abs() < 2.0,
        "{stats}"
    );

    for name in ["network_rx", "network_tx"] {
        // 20 MiB/s where nothing else keeps the machine busy.
        assert!((2.0..10_000.0).contains(&figure(name)), "{stats}");
    }
    for name in ["disk_read", "disk_write"] {
        assert!((0.0..100_000.0).contains(&figure(name)), "{stats}");
    }
    assert!(stats.get("gpu_usage").is_none());
}

#[tokio::test]
async fn a_server_that_fails_is_told_again_and_ends_nothing() {
    let server = Recorded::start();
    let task = server.create_task(json!({"name": "train", "status": "in_progress"}));
    let refused =
        json!({"endpoint": "workers.status_report", "what": "status", "status": 400, "times": 2});
    server.inject(refused);
    let timing = Timing {
        sample: Duration::from_millis(100),
        first: Duration::from_millis(400),
        every: Duration::from_millis(400),
        ..Timing::default()
    };
    let monitor = start(&server, &task, timing).await;
    let reports = reports(&server, 1).await;
    assert!(reports[0]["machine_stats"].is_object());
    monitor.stop().await;
    assert!(server.calls_of("workers.status_report").len() >= 4);
}

#[tokio::test]
async fn a_report_that_hangs_does_not_hold_up_the_end() {
    let server = Recorded::start();
    let task = server.create_task(json!({"name": "train", "status": "in_progress"}));
    let hangs = json!({"endpoint": "workers.status_report", "what": "delay", "seconds": 3600});
    server.inject(hangs);
    let monitor = start(&server, &task, Timing::default()).await;
    while server.calls_of("workers.status_report").is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    monitor.stop().await;
    assert_eq!(server.state()["reports"][0]["machine_stats"], Value::Null);
}

const REASON: &str = "worker started execution";

/// (iteration, value) of the task's `cpu_usage`, in the order of arrival.
fn cpu_usages(server: &Recorded) -> Vec<(i64, f64)> {
    let state = server.state();
    let events = state["events"].as_array().unwrap();
    events
        .iter()
        .filter(|e| e["metric"] == ":monitor:machine" && e["variant"] == "cpu_usage")
        .map(|e| (e["iter"].as_i64().unwrap(), e["value"].as_f64().unwrap()))
        .collect()
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn the_scalars_follow_the_tasks_iterations_until_the_sdk_comes() {
    let server = Recorded::start();
    let task = server.create_task(json!({
        "name": "train", "status": "in_progress", "status_reason": REASON, "last_iteration": 0,
    }));
    let timing = Timing {
        sample: Duration::from_millis(50),
        every: Duration::from_millis(200),
        ..Timing::default()
    };
    let node = Node::default();
    let script = Script::default();
    let monitor = monitor::start(Report {
        script: script.clone(),
        scalars: Some(TaskScalars::new(REASON, &serde_json::Map::new(), node)),
        ..report(&server, &task, timing).await
    });
    let looks = || server.calls_of("tasks.get_all").len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(looks(), 0, "no script, no scalars");

    script.started(std::process::id());
    until(|| looks() >= 3).await;
    assert!(cpu_usages(&server).is_empty(), "no iteration yet");
    // Somebody, not the SDK, reports iterations.
    server.set(&task, json!({"last_iteration": 7}));
    until(|| cpu_usages(&server).iter().any(|(i, _)| *i == 7)).await;
    server.set(&task, json!({"last_iteration": 9}));
    until(|| cpu_usages(&server).iter().any(|(i, _)| *i == 9)).await;
    assert!(cpu_usages(&server).iter().all(|(i, _)| [7, 9].contains(i)));

    // `Task.init` sets the task started, with no reason.
    server.set(&task, json!({"status_reason": "", "last_iteration": 11}));
    let before = looks();
    until(|| looks() > before).await;
    script.ended();
    monitor.stop().await;
    assert!(cpu_usages(&server).iter().all(|(i, _)| *i < 11));
    assert!(looks() <= before + 2, "it is not asked again and again");
}

/// Busy and idle time of all cores, from `/proc/stat`.
fn processor_times() -> (f64, f64) {
    let text = std::fs::read_to_string("/proc/stat").unwrap();
    let times: Vec<f64> = text
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|n| n.parse().unwrap())
        .collect();
    // user nice system idle iowait irq softirq steal; guests are in user.
    let idle = times[3] + times[4];
    (times[..8].iter().sum::<f64>() - idle, idle)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processors_usage_is_the_kernels_under_a_load_of_known_size() {
    let server = Recorded::start();
    let task = server.create_task(json!({"name": "train", "status": "in_progress"}));
    let timing = Timing {
        sample: Duration::from_millis(250),
        first: Duration::from_millis(500),
        every: Duration::from_secs(4),
        ..Timing::default()
    };
    let enough = Arc::new(AtomicBool::new(false));
    let load = std::thread::spawn({
        let enough = enough.clone();
        // One core.
        move || {
            while !enough.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        }
    });
    let monitor = start(&server, &task, timing).await;
    // The second report with figures is of the time between the first and itself.
    reports(&server, 2).await;
    let (busy, idle) = processor_times();
    let all = reports(&server, 3).await;
    let (busy_then, idle_then) = processor_times();
    enough.store(true, Ordering::Relaxed);
    load.join().unwrap();
    monitor.stop().await;
    let expected = (busy_then - busy) / (busy_then - busy + idle_then - idle) * 100.0;
    let usage = all[2]["machine_stats"]["cpu_usage"][0].as_f64().unwrap();
    let cores = std::thread::available_parallelism().unwrap().get() as f64;
    assert!(
        (usage - expected).abs() < 15.0,
        "{usage}, the kernel says {expected}"
    );
    assert!(usage > 60.0 / cores, "one core is busy: {usage} of {cores}");
}

/// Sends 1 MiB each 50 ms.
fn send_over_loopback(enough: &AtomicBool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let receiver = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut buffer = vec![0; 1 << 20];
        while stream.read(&mut buffer).unwrap() > 0 {}
    });
    let mut stream = TcpStream::connect(address).unwrap();
    let chunk = vec![7; 1 << 20];
    while !enough.load(Ordering::Relaxed) {
        stream.write_all(&chunk).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stream);
    receiver.join().unwrap();
}

/// `/proc/meminfo` in MiB.
fn meminfo() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let kib: f64 = rest.split_whitespace().next()?.parse().ok()?;
        Some((name.to_owned(), kib / 1024.0))
    };
    text.lines().filter_map(line).collect()
}

fn df_used_percent() -> f64 {
    let output = std::process::Command::new("df")
        .args(["--output=pcent"])
        .arg(home())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let percent = text.lines().nth(1).unwrap().trim().trim_end_matches('%');
    percent.parse().unwrap()
}
