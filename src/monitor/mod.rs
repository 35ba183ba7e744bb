//! The machine's figures while the task runs: told to the server as this worker's status, and as
//! scalars of the task where its script does not do that itself.
//!
//! `execute` starts it once the task is claimed. A thread of its own samples the host twice a
//! second, another asks the GPUs' driver; tasks of the runtime report the averages. Nothing here can
//! end or delay the run: a report that fails is logged for `--debug` and the next one follows.

pub mod gpu;
mod host;
mod job;
mod scalars;
mod stats;
mod status;
mod task;

use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{Session, workers};
use crate::console::Console;
use host::Host;
use job::Life;
pub use job::Script;
pub use scalars::{Layout, Node};
use stats::Period;
pub use status::GpuReport;
use status::MachineStats;
pub use task::TaskScalars;

/// What is reported, where and when.
#[derive(Debug, Clone)]
pub struct Report {
    pub session: Arc<Session>,
    pub worker: Worker,
    pub task: String,
    /// `disk_free_home` is that of the file system with this path.
    pub disk_path: PathBuf,
    pub gpus: gpu::Source,
    pub gpu_report: GpuReport,
    /// The job, once there is one.
    pub script: Script,
    /// `None`: the task gets no scalars from here.
    pub scalars: Option<TaskScalars>,
    pub timing: Timing,
    /// For what the user should know: a GPU that fails.
    pub console: Console,
}

/// How the worker is called and sorted on the server.
#[derive(Debug, Clone, Default)]
pub struct Worker {
    pub id: String,
    /// `CLEARML_WORKER_TAGS`
    pub tags: Vec<String>,
    /// The id of the queue that the task came from.
    pub queue: Option<String>,
}

/// When the host is sampled and reports are sent; the default is the Python agent's.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub sample: Duration,
    /// From the start to the first report with figures.
    pub first: Duration,
    /// From each report to the next.
    pub every: Duration,
    /// How long the GPUs' driver may take for an answer.
    pub driver: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            sample: Duration::from_millis(500),
            first: Duration::from_secs(3),
            every: Duration::from_secs(30),
            driver: Duration::from_secs(10),
        }
    }
}

/// A running monitor. Dropped without [`Monitor::stop`] it ends with no last report.
#[derive(Debug)]
pub struct Monitor {
    stop: CancellationToken,
    reporter: JoinHandle<()>,
    scalars: JoinHandle<()>,
    told: CancellationToken,
    /// The threads end when this is dropped.
    sampling: Option<mpsc::Sender<()>>,
    /// Nothing comes; closed when the threads have ended.
    alive: tokio::sync::mpsc::Receiver<()>,
}

/// How long the end waits for the threads. To leave while one is inside the driver's library would be
/// to take that library away from under it; one that hangs in there cannot be helped.
const THREADS_LIMIT: Duration = Duration::from_millis(500);

/// Samples that wait to be reported.
#[derive(Debug, Default)]
struct Periods {
    worker: Period,
    task: Period,
}

/// Reports the worker with its task at once, and from then on with the machine's figures.
/// Needs a tokio runtime; takes no time itself.
pub fn start(report: Report) -> Monitor {
    let stop = CancellationToken::new();
    let periods = Arc::new(Mutex::new(Periods::default()));
    let (alive, ended) = tokio::sync::mpsc::channel(1);
    let sampling = sample(&report, periods.clone(), alive);
    let told = CancellationToken::new();
    let over = told.clone().drop_guard();
    let telling = task::tell(report.clone(), periods.clone(), stop.clone());
    let scalars = tokio::spawn(async move {
        telling.await;
        drop(over);
    });
    let reporter = tokio::spawn(run(report, periods, stop.clone()));
    Monitor {
        stop,
        reporter,
        scalars,
        told,
        sampling: Some(sampling),
        alive: ended,
    }
}

impl Monitor {
    /// Resolves when the task has its last scalars, which takes a few seconds at most from the script's
    /// end. The final status is to wait for it: whether the script has used the SDK shows in the reason
    /// that the task has until then.
    pub fn told(&self) -> impl Future<Output = ()> + use<> {
        self.told.clone().cancelled_owned()
    }

    /// Ends the sampling and sends a last report without figures. Taking the worker off the
    /// server's list is the caller's.
    pub async fn stop(mut self) {
        self.stop.cancel();
        self.sampling = None;
        for task in [&mut self.reporter, &mut self.scalars] {
            if let Err(error) = task.await {
                tracing::debug!(%error, "the monitor did not end well");
            }
        }
        if tokio::time::timeout(THREADS_LIMIT, self.alive.recv())
            .await
            .is_err()
        {
            tracing::debug!("a thread of the monitor has not ended");
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.reporter.abort();
        self.scalars.abort();
    }
}

async fn run(report: Report, periods: Arc<Mutex<Periods>>, stop: CancellationToken) {
    let reports = async {
        send(&report, None).await;
        let fractions = !report.session.is_basic().await;
        let mut pause = report.timing.first;
        loop {
            tokio::time::sleep(pause).await;
            let averages = {
                let mut periods = lock(&periods);
                let averages = periods.worker.averages();
                periods.worker.clear();
                averages
            };
            let stats = averages.map(|a| MachineStats::of(&a, &report.gpu_report, fractions));
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
    let status = workers::Status {
        worker: &report.worker.id,
        task: &report.task,
        queue: report.worker.queue.as_deref(),
        tags: &report.worker.tags,
        timestamp: jiff::Timestamp::now().as_millisecond(),
        machine_stats: stats,
    };
    if let Err(error) = workers::status_report(&report.session, &status).await {
        tracing::debug!(%error, "the worker's status was not reported");
    }
}

/// Samples into `periods` until the returned end is dropped. On a thread of its own: the figures
/// come from files, and one on a file system that hangs must not hold up anything else.
fn sample(report: &Report, periods: Arc<Mutex<Periods>>, alive: gpu::Alive) -> mpsc::Sender<()> {
    let (end, ended) = mpsc::channel::<()>();
    let Report {
        disk_path,
        gpus,
        console,
        timing,
        script,
        ..
    } = report.clone();
    let sampler = move || {
        let still_wanted = || ended.recv_timeout(timing.sample) == Err(RecvTimeoutError::Timeout);
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
        let rhythm = gpu::Rhythm {
            every: timing.sample,
            patience: timing.driver,
        };
        let pids = gpu::Pids::default();
        let gpus = gpu::Watch::start(gpus, &rhythm, pids.clone(), console, alive);
        let script = script.subscribe();
        let mut job: Option<job::Watch> = None;
        while still_wanted() {
            let mut sample = host.sample();
            sample.gpus = gpus.latest();
            let life = *script.borrow();
            match (life, &mut job) {
                (Life::Running { pid }, None) => job = Some(job::Watch::of(pid)),
                (Life::Over, Some(_)) => job = None,
                _ => {}
            }
            let now = Instant::now();
            if let Some(job) = &mut job {
                sample.job = job.look(now);
                if sample.job.is_some() {
                    lock(&pids).clone_from(&job.pids().to_vec());
                }
            }
            let mut periods = lock(&periods);
            periods.worker.add(now, &sample);
            periods.task.add(now, &sample);
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

/// What is locked here is whole between any two calls, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
