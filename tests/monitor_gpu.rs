//! GPUs as they reach the server, by a driver library of the tests' own.
//!
//! The dynamic loader reads `LD_LIBRARY_PATH` when a process starts, so each test runs itself again
//! in a process of its own in which that library is the machine's driver.

// The whole file is a test.
#![allow(clippy::unwrap_used)]

#[path = "common/nvml.rs"]
mod nvml;
#[path = "common/recorded.rs"]
mod recorded;

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clearml_agent::api::Session;
use clearml_agent::console::Console;
use clearml_agent::monitor::gpu::health::{self, Asked};
use clearml_agent::monitor::gpu::{Source, Visible};
use clearml_agent::monitor::{self, GpuReport, Monitor, Report, Script, Timing, Worker};
use nvml::{Driver, gpus};
use recorded::Recorded;
use serde_json::{Value, json};

/// Whether this is the process in which `driver` is the machine's; where it is not, it is run.
fn is_at_home(test: &str, driver: impl FnOnce() -> Driver) -> bool {
    if std::env::var_os("NVML_STAND_IN").is_some() {
        return true;
    }
    let driver = driver();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .envs(driver.env())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("1 passed"), "{text}");
    false
}

/// Changes what the driver of this process answers.
fn driver_says(spec: &str) {
    let path = std::env::var("NVML_STAND_IN").unwrap();
    let new = format!("{path}.new");
    std::fs::write(&new, spec).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// A monitor at work, its server, and what it said.
struct Watched {
    server: Recorded,
    monitor: Monitor,
    said: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    async fn start(visible: Visible) -> Watched {
        let server = Recorded::start();
        let task = server.create_task(json!({"name": "train", "status": "in_progress"}));
        let session = Session::login(&server.endpoint("host:0")).await.unwrap();
        let said: Arc<Mutex<Vec<String>>> = Arc::default();
        let console = Console::new({
            let said = said.clone();
            move |line| said.lock().unwrap().push(line.to_owned())
        });
        let monitor = monitor::start(Report {
            session: Arc::new(session),
            worker: Worker {
                id: "host:0".into(),
                ..Worker::default()
            },
            task,
            disk_path: "/".into(),
            gpus: Source {
                visible,
                sysfs: "/no/such/sysfs".into(),
            },
            gpu_report: GpuReport {
                default_usage: Some(100.0),
                fractions: vec![],
            },
            script: Script::default(),
            scalars: None,
            timing: Timing {
                sample: Duration::from_millis(50),
                first: Duration::from_millis(500),
                every: Duration::from_millis(300),
                driver: Duration::from_millis(400),
            },
            console,
        });
        Watched {
            server,
            monitor,
            said,
        }
    }

    /// Waits for a report whose figures are as wanted.
    async fn report(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = json!(null);
        for _ in 0..600 {
            let state = self.server.state();
            let reports = state["reports"].as_array().unwrap();
            if let Some(report) = reports.iter().rfind(|r| r["machine_stats"].is_object()) {
                last = report.clone();
                if wanted(&last["machine_stats"]) {
                    return last;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no such report; the last: {last}");
    }

    async fn stats(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        self.report(wanted).await["machine_stats"].clone()
    }

    async fn end(self) -> Vec<String> {
        self.monitor.stop().await;
        std::mem::take(&mut *self.said.lock().unwrap())
    }
}

fn has_gpus(count: usize) -> impl Fn(&Value) -> bool {
    move |stats| stats["gpu_usage"].as_array().map_or(0, Vec::len) == count
}

#[tokio::test]
async fn the_report_is_the_reference_agents() {
    const SPEC: &str = "\
gpu 0 util=37 total=81920 used=1024 temp=41 power=150500 sm=1980 mem=2619 ecc=0
gpu 1 util=0 total=40960 used=8192 temp=55 power=90000 mig=1
mig 1 0 total=9856 used=12
mig 1 2 total=4864 used=600
";
    if !is_at_home("the_report_is_the_reference_agents", || Driver::new(SPEC)) {
        return;
    }
    // What the Python agent sent of the same driver.
    let theirs: Value = serde_json::from_str(include_str!("data/worker_report.json")).unwrap();
    let watched = Watched::start(Visible::All).await;
    let ours = watched.report(has_gpus(3)).await;

    let kind = |value: &Value| match value {
        Value::Array(items) => format!(
            "list of {} numbers",
            items.iter().filter(|i| i.is_f64()).count()
        ),
        Value::Number(number) if number.is_f64() => "number".into(),
        other => other.to_string(),
    };
    for (name, value) in theirs["machine_stats"].as_object().unwrap() {
        let our_value = &ours["machine_stats"][name];
        assert_eq!(kind(our_value), kind(value), "{name}");
        if name.starts_with("gpu_") {
            assert_eq!(our_value, value, "{name}");
        }
    }
    for (name, _) in ours["machine_stats"].as_object().unwrap() {
        // Only on machines that have a sensor.
        assert!(
            name == "cpu_temperature" || theirs["machine_stats"].get(name).is_some(),
            "{name} is not theirs"
        );
    }
    for (name, value) in theirs.as_object().unwrap() {
        match name.as_str() {
            "machine_stats" => {}
            "task" => assert!(ours["task"].is_string()),
            "timestamp" => assert!(ours["timestamp"].is_i64()),
            name => assert_eq!(&ours[name], value, "{name}"),
        }
    }
    assert_eq!(watched.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn only_the_gpus_that_the_job_may_see() {
    let test = "only_the_gpus_that_the_job_may_see";
    if !is_at_home(test, || Driver::new(&gpus(8))) {
        return;
    }
    let only = Visible::Only(vec!["5".into(), "GPU-20000000".into()]);
    let watched = Watched::start(only).await;
    let stats = watched.stats(has_gpus(2)).await;
    assert_eq!(stats["gpu_usage"], json!([20.0, 50.0]));
    assert_eq!(stats["gpu_temperature"], json!([42.0, 45.0]));
    assert_eq!(stats["gpu_memory_used"], json!([2048.0, 5120.0]));
    assert_eq!(watched.end().await, Vec::<String>::new());

    let watched = Watched::start(Visible::None).await;
    let stats = watched.stats(|_| true).await;
    assert!(stats.get("gpu_usage").is_none(), "{stats}");
    watched.end().await;
}

#[tokio::test]
async fn a_gpu_that_fails_is_said_once_and_the_others_go_on() {
    let test = "a_gpu_that_fails_is_said_once_and_the_others_go_on";
    if !is_at_home(test, || Driver::new(&(gpus(8) + "fail 6 3\n"))) {
        return;
    }
    let watched = Watched::start(Visible::All).await;
    watched.stats(has_gpus(7)).await;
    // One that is lost in the middle of the run, and an error that the driver reports.
    driver_says(&(gpus(8) + "fail 6 3\nfail 3 15\nxid 3 79\nxid 1 31\n"));
    let stats = watched.stats(has_gpus(6)).await;
    assert_eq!(
        stats["gpu_usage"],
        json!([0.0, 10.0, 20.0, 40.0, 50.0, 70.0])
    );
    // It comes back after a reset.
    driver_says(&gpus(8));
    watched.stats(has_gpus(7)).await;
    driver_says(&(gpus(8) + "fail 3 15\n"));
    watched.stats(has_gpus(6)).await;

    let mut said = watched.end().await;
    said.sort();
    assert_eq!(
        said,
        [
            "Note: GPU 1: the driver reports error Xid 31",
            "Note: GPU 3 gives no figures: the device has fallen off the bus (restart the machine)",
            "Note: GPU 3: the driver reports error Xid 79: the device has fallen off the bus",
            "Note: GPU 6 gives no figures: the requested operation is not available on the target device",
        ]
    );
}

#[tokio::test]
async fn a_driver_that_hangs_is_given_up() {
    if !is_at_home("a_driver_that_hangs_is_given_up", || Driver::new(&gpus(2))) {
        return;
    }
    let watched = Watched::start(Visible::All).await;
    watched.stats(has_gpus(2)).await;
    driver_says(&(gpus(2) + "hang 1\n"));
    let stats = watched.stats(has_gpus(0)).await;
    assert!(stats["cpu_usage"].is_array(), "the rest goes on: {stats}");
    // Some reports later nothing more is said, and the end does not wait.
    let so_far = watched.server.state()["reports"].as_array().unwrap().len();
    while watched.server.state()["reports"].as_array().unwrap().len() < so_far + 3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = watched.end().await;
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("Note: GPU 1: the driver has not answered"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_driver_that_hangs_from_the_start_is_given_up() {
    let test = "a_driver_that_hangs_from_the_start_is_given_up";
    if !is_at_home(test, || Driver::new(&(gpus(2) + "hang 0\n"))) {
        return;
    }
    let watched = Watched::start(Visible::All).await;
    let stats = watched.stats(|_| true).await;
    assert!(stats.get("gpu_usage").is_none(), "{stats}");
    while watched.said.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = watched.end().await;
    assert!(
        said[0].starts_with("Note: GPU 0: the driver has not answered"),
        "{said:?}"
    );
}

#[tokio::test]
async fn a_check_of_a_driver_that_hangs_ends() {
    let test = "a_check_of_a_driver_that_hangs_ends";
    if !is_at_home(test, || Driver::new(&(gpus(2) + "hang 1\n"))) {
        return;
    }
    let source = Source {
        visible: Visible::All,
        sysfs: "/no/such/sysfs".into(),
    };
    let asked = Asked {
        named: false,
        cuda: None,
    };
    let found = health::check(&source, &asked, Duration::from_secs(1)).await;
    assert_eq!(found, ["the GPUs' driver has not answered for 1 s"]);
}

#[tokio::test]
async fn a_check_finds_what_the_driver_tells() {
    const SPEC: &str = "\
driver 470.82.01
cuda 11040
gpu 0 util=1 total=81920 used=100 ecc=2
gpu 1 total=81920 used=100 retired=1 remapfail=1
gpu 2 total=81920 used=9000
gpu 3 total=81920 used=100
gpu 4 total=81920 used=100
proc 2 77 8500
fail 3 15
";
    let test = "a_check_finds_what_the_driver_tells";
    if !is_at_home(test, || Driver::new(SPEC)) {
        return;
    }
    let check = async |visible, cuda| {
        let source = Source {
            visible,
            sysfs: "/no/such/sysfs".into(),
        };
        let asked = Asked { named: true, cuda };
        let mut found = health::check(&source, &asked, health::PATIENCE).await;
        found.sort();
        found
    };
    assert_eq!(
        check(Visible::All, Some(126)).await,
        [
            "GPU 0: 2 memory error(s) that could not be corrected since the driver was loaded",
            "GPU 1: a memory row could not be replaced: the device is to be exchanged",
            "GPU 1: memory pages wait to be taken out of use: it must be reset",
            "GPU 2: 8992 of its 81920 MiB are held already, by process 77",
            "GPU 3: the device has fallen off the bus (restart the machine)",
            "the driver 470.82.01 runs CUDA 11.4 at most, and the configuration asks for 12.6",
        ]
    );
    let four = Visible::Only(vec!["4".into()]);
    assert_eq!(check(four, None).await, Vec::<String>::new());
    let missing = Visible::Only(vec!["4".into(), "9".into()]);
    assert_eq!(
        check(missing, None).await,
        ["there is no GPU 9, which the run asks for"]
    );
}

#[tokio::test]
async fn an_old_driver_tells_what_it_knows() {
    let test = "an_old_driver_tells_what_it_knows";
    if !is_at_home(test, || Driver::old(&gpus(3))) {
        return;
    }
    let watched = Watched::start(Visible::All).await;
    let stats = watched.stats(has_gpus(3)).await;
    assert_eq!(stats["gpu_usage"], json!([0.0, 10.0, 20.0]));
    assert_eq!(stats["gpu_memory_used"], json!([0.0, 1024.0, 2048.0]));
    assert_eq!(stats["gpu_memory_free"], json!([81920.0, 80896.0, 79872.0]));
    assert_eq!(watched.end().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_driver_that_does_not_work_is_said_once() {
    let test = "a_driver_that_does_not_work_is_said_once";
    if !is_at_home(test, || Driver::new("init 18\n")) {
        return;
    }
    let watched = Watched::start(Visible::All).await;
    let stats = watched.stats(|_| true).await;
    assert!(stats.get("gpu_usage").is_none(), "{stats}");
    let said = watched.end().await;
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("of different versions"), "{said:?}");
}

#[tokio::test]
async fn no_driver_is_no_news() {
    // No stand-in; on a machine that has a driver this is another test.
    if std::path::Path::new("/proc/driver/nvidia").exists() {
        return;
    }
    let watched = Watched::start(Visible::All).await;
    let stats = watched.stats(|_| true).await;
    assert!(stats.get("gpu_usage").is_none(), "{stats}");
    assert_eq!(watched.end().await, Vec::<String>::new());
}
