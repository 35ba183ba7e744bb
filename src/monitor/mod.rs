//! The machine's figures while the task runs, told to the server as this worker's status.
//!
//! `execute` starts it once the task is claimed. A thread of its own samples the host twice a
//! second; a task of the runtime reports the averages. Nothing here can end or delay the run: a
//! report that fails is logged for `--debug` and the next one follows.

mod host;
mod stats;

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{Session, workers};
use host::Host;
use stats::{MachineStats, Period};

/// What is reported, where and when.
#[derive(Debug)]
pub struct Report {
    pub session: Arc<Session>,
    pub worker: String,
    pub task: String,
    /// `disk_free_home` is that of the file system with this path.
    pub disk_path: PathBuf,
    pub timing: Timing,
}

/// When the host is sampled and reports are sent; the default is the Python agent's.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub sample: Duration,
    /// From the start to the first report with figures.
    pub first: Duration,
    /// From each report to the next.
    pub every: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            sample: Duration::from_millis(500),
            first: Duration::from_secs(3),
            every: Duration::from_secs(30),
        }
    }
}

/// A running monitor. Dropped without [`Monitor::stop`] it ends with no last report.
#[derive(Debug)]
pub struct Monitor {
    stop: CancellationToken,
    reporter: JoinHandle<()>,
}

/// Reports the worker with its task at once, and from then on with the machine's figures.
/// Needs a tokio runtime; takes no time itself.
pub fn start(report: Report) -> Monitor {
    let stop = CancellationToken::new();
    let reporter = tokio::spawn(run(report, stop.clone()));
    Monitor { stop, reporter }
}

impl Monitor {
    /// Ends the sampling and sends a last report without figures. Taking the worker off the
    /// server's list is the caller's.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.reporter).await {
            tracing::debug!(%error, "the monitor did not end well");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reporter.abort();
    }
}

async fn run(report: Report, stop: CancellationToken) {
    // The sampler ends when this end of its channel is dropped.
    let period = Arc::new(Mutex::new(Period::default()));
    let _sampling = sample(&report, period.clone());
    let reports = async {
        send(&report, None).await;
        let mut pause = report.timing.first;
        loop {
            tokio::time::sleep(pause).await;
            let stats = lock(&period).take();
            send(&report, stats.as_ref()).await;
            pause = report.timing.every;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = reports => {}
    }
    send(&report, None).await;
}

async fn send(report: &Report, stats: Option<&MachineStats>) {
    let now = jiff::Timestamp::now().as_millisecond();
    let sent =
        workers::status_report(&report.session, &report.worker, &report.task, now, stats).await;
    if let Err(error) = sent {
        tracing::debug!(%error, "the worker's status was not reported");
    }
}

/// Samples into `period` until the returned end is dropped. On a thread of its own: the figures
/// come from files, and one on a file system that hangs must not hold up anything else.
fn sample(report: &Report, period: Arc<Mutex<Period>>) -> mpsc::Sender<()> {
    let (end, ended) = mpsc::channel::<()>();
    let pause = report.timing.sample;
    let disk_path = report.disk_path.clone();
    let sampler = move || {
        let still_wanted = || ended.recv_timeout(pause) == Err(RecvTimeoutError::Timeout);
        // The first look at the machine waits too: the run's own start comes first.
        if !still_wanted() {
            return;
        }
        let mut host = match Host::new(disk_path) {
            Ok(host) => host,
            Err(error) => {
                tracing::debug!(%error, "this machine's figures cannot be read");
                return;
            }
        };
        while still_wanted() {
            let sample = host.sample();
            lock(&period).add(Instant::now(), &sample);
        }
    };
    let started = std::thread::Builder::new()
        .name("monitor".into())
        .spawn(sampler);
    if let Err(error) = started {
        tracing::debug!(%error, "the monitor's thread was not started");
    }
    end
}

/// A period is whole between any two calls, so a panic elsewhere leaves a usable one.
fn lock(period: &Mutex<Period>) -> MutexGuard<'_, Period> {
    period.lock().unwrap_or_else(PoisonError::into_inner)
}
