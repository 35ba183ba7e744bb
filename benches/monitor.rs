//! What the monitor costs: processor time of a process that does nothing else, with the default
//! rhythm (two samples a second) and eight GPUs, which are a driver library of the tests' own
//! (`tests/nvml/stand_in.c`): a real driver's calls cost what they cost, ours are to be few.
//!
//!     cargo bench --bench monitor
//!
//! The aim is half a percent of one core.

#![allow(clippy::unwrap_used)]

#[path = "../tests/common/nvml.rs"]
mod nvml;
#[path = "../tests/common/recorded.rs"]
mod recorded;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clearml_agent::api::Session;
use clearml_agent::console::Console;
use clearml_agent::monitor::gpu::{Source, Visible};
use clearml_agent::monitor::{self, GpuReport, Node, Report, Script, TaskScalars, Timing, Worker};
use recorded::Recorded;
use serde_json::json;

const DURING: Duration = Duration::from_secs(65);
/// Percent of one core.
const AIM: f64 = 0.5;
const REASON: &str = "worker started execution";

fn main() {
    if let Ok(gpus) = std::env::var("BENCH_GPUS") {
        measure(gpus.parse().unwrap());
        return;
    }
    println!(
        "{} s each, as a share of one core (aim: {AIM} %)",
        DURING.as_secs()
    );
    for gpus in [0, 8] {
        let driver = nvml::Driver::new(&nvml::gpus(gpus));
        // The loader reads LD_LIBRARY_PATH when a process starts.
        let status = Command::new(std::env::current_exe().unwrap())
            .envs(driver.env())
            .env("BENCH_GPUS", gpus.to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }
}

fn measure(gpus: u32) {
    let server = Recorded::start();
    let task = server.create_task(json!({
        "name": "bench", "status": "in_progress", "status_reason": REASON, "last_iteration": 1,
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let script = Script::default();
    let monitor = runtime.block_on(async {
        let session = Session::login(&server.endpoint("w:0")).await.unwrap();
        monitor::start(Report {
            session: Arc::new(session),
            worker: Worker {
                id: "w:0".into(),
                ..Worker::default()
            },
            task,
            disk_path: "/".into(),
            gpus: Source {
                visible: Visible::All,
                sysfs: "/sys".into(),
            },
            gpu_report: GpuReport {
                default_usage: Some(100.0),
                fractions: vec![],
            },
            script: script.clone(),
            scalars: Some(TaskScalars::new(
                REASON,
                &serde_json::Map::new(),
                Node::default(),
            )),
            timing: Timing::default(),
            console: Console::new(|line| println!("{line}")),
        })
    });
    script.started(std::process::id());
    // The login and the first look are not what goes on all the time.
    std::thread::sleep(Duration::from_secs(2));
    let (begin, before) = (Instant::now(), processor_time());
    std::thread::sleep(DURING);
    let used = processor_time() - before;
    let share = used.as_secs_f64() / begin.elapsed().as_secs_f64() * 100.0;
    println!(
        "{gpus} GPUs: {share:.3} % of a core ({:.1} ms of {} s), {:.2} times the aim",
        used.as_secs_f64() * 1e3,
        DURING.as_secs(),
        share / AIM
    );
    let state = server.state();
    assert!(
        state["reports"].as_array().unwrap().len() >= 3,
        "it reported"
    );
    runtime.block_on(monitor.stop());
}

/// Of this process's threads, in nanoseconds.
fn processor_time() -> Duration {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let used = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(used.sum())
}
