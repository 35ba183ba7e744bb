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
use clearml_agent::monitor::{self, Report, Script, Timing, Worker};
use recorded::Recorded;
use serde_json::{Value, json};

async fn start(server: &Recorded, task: &str, timing: Timing) -> monitor::Monitor {
    let session = Session::login(&server.endpoint("w:0")).await.unwrap();
    monitor::start(Report {
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
        default_gpu_usage: Some(100.0),
        script: Script::default(),
        scalars: None,
        timing,
        console: Console::new(|line| panic!("nothing to say: {line}")),
    })
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
