//! GPUs: what they do and how they are, of NVIDIA's by the driver's own library, of AMD's by sysfs.
//!
//! The driver is asked on a thread of its own: a call into it can take long, or never come back.
//! The monitor takes the newest figures that are there and never waits for any. What goes wrong is
//! said once for each device; the others go on.

mod amd;
mod driver;
pub mod health;
mod nvml;
mod visible;
mod xid;

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::console::Console;
pub use visible::{Visible, visible};

/// Where GPUs are looked for, and which of them count.
#[derive(Debug, Clone)]
pub struct Source {
    pub visible: Visible,
    /// Where the kernel's device files are: `/sys`.
    pub sysfs: PathBuf,
}

/// A device as the driver knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub index: u32,
    pub uuid: String,
    pub name: String,
    /// A part of the GPU that is a device of its own.
    pub mig: Option<Mig>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mig {
    pub index: u32,
    pub uuid: String,
}

/// As part of a sentence: `GPU 3`, `GPU 3 (MIG 1)`.
impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GPU {}", self.index)?;
        match &self.mig {
            Some(mig) => write!(f, " (MIG {})", mig.index),
            None => Ok(()),
        }
    }
}

/// One look at one GPU. A figure that the device or its driver does not give is `None`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Figures {
    /// The device's place in the driver's list: without MIG its index.
    pub place: usize,
    /// Percent.
    pub usage: Option<f64>,
    pub memory: Option<Memory>,
    /// MiB that the job's own processes hold.
    pub job_memory: Option<f64>,
    /// °C.
    pub temperature: Option<f64>,
    /// W.
    pub power: Option<f64>,
    /// MHz, of the processors and of the memory.
    pub clock: Option<f64>,
    pub memory_clock: Option<f64>,
    /// Memory errors that could not be corrected since the driver was loaded.
    pub ecc_uncorrected: Option<f64>,
}

/// MiB, whole ones, as the Python agent has them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    pub used: f64,
    pub total: f64,
}

impl Memory {
    fn of_bytes(used: u64, total: u64) -> Self {
        let whole = |bytes: u64| (bytes >> 20) as f64;
        Self {
            used: whole(used),
            total: whole(total),
        }
    }
}

/// Held by each thread that runs; whoever has the other end sees when all are gone.
pub type Alive = tokio::sync::mpsc::Sender<()>;

/// The job's processes, as far as they are known.
pub type Pids = Arc<Mutex<Vec<i32>>>;

/// What the thread shares.
#[derive(Debug, Default)]
struct Latest {
    figures: Vec<Figures>,
    asking: Option<Question>,
    /// That it was given up has been said.
    told: bool,
}

/// One that the driver has not answered yet.
#[derive(Debug)]
struct Question {
    since: Instant,
    about: String,
    /// Devices that sleep are woken, which takes seconds for each.
    first: bool,
}

/// The newest figures; the thread that gets them ends when this is dropped (or never, if it waits for
/// a driver that hangs: it holds up nothing).
#[derive(Debug)]
pub struct Watch {
    latest: Arc<Mutex<Latest>>,
    patience: Duration,
    console: Console,
    _end: mpsc::Sender<()>,
}

/// How the thread works.
#[derive(Debug, Clone)]
pub struct Rhythm {
    pub every: Duration,
    /// How long the driver may take for one answer before it is given up; for the first one six
    /// times as long.
    pub patience: Duration,
}

impl Watch {
    /// Begins to watch; takes no time itself. `alive` is dropped when the thread has ended.
    pub fn start(
        source: Source,
        rhythm: &Rhythm,
        pids: Pids,
        console: Console,
        alive: Alive,
    ) -> Watch {
        let latest = Arc::new(Mutex::new(Latest::default()));
        let (end, ended) = mpsc::channel();
        let watch = Watch {
            latest: latest.clone(),
            patience: rhythm.patience,
            console: console.clone(),
            _end: end,
        };
        if source.visible == Visible::None {
            return watch;
        }
        let every = rhythm.every;
        let thread = move || {
            follow(&source, every, &latest, &pids, &console, &ended);
            drop(alive);
        };
        let started = std::thread::Builder::new().name("gpu".into()).spawn(thread);
        if let Err(error) = started {
            tracing::debug!(%error, "the GPUs' thread was not started");
        }
        watch
    }

    /// The newest figures of the devices that answer.
    pub fn latest(&self) -> Vec<Figures> {
        let mut latest = lock(&self.latest);
        let late = latest.asking.as_ref().and_then(|question| {
            let patience = self.patience * if question.first { 6 } else { 1 };
            (question.since.elapsed() >= patience).then(|| (question.about.clone(), patience))
        });
        let Some((what, patience)) = late else {
            return latest.figures.clone();
        };
        if !latest.told {
            latest.told = true;
            self.console.say(format!(
                "Note: {what}: the driver has not answered for {} s. There are no figures of the GPUs \
                 until it does",
                patience.as_secs_f32().ceil()
            ));
        }
        Vec::new()
    }
}

fn follow(
    source: &Source,
    every: Duration,
    latest: &Mutex<Latest>,
    pids: &Mutex<Vec<i32>>,
    console: &Console,
    ended: &mpsc::Receiver<()>,
) {
    let first = Cell::new(true);
    let asking = |what: &str| {
        lock(latest).asking = Some(Question {
            since: Instant::now(),
            about: what.to_owned(),
            first: first.get(),
        });
    };
    asking("the GPUs' driver");
    let nvml = driver::open(console);
    let mut nvidia = nvml
        .as_ref()
        .map(|nvml| nvml::Reader::new(nvml, &source.visible, console, &asking));
    // A machine that computes on NVIDIA's has AMD's for its screen at most.
    let amd = match &nvidia {
        Some(reader) if reader.found_any() => None,
        _ => Some(amd::Reader::new(&source.sysfs, &source.visible)),
    };
    let nothing = nvidia.as_ref().is_none_or(nvml::Reader::is_empty)
        && amd.as_ref().is_none_or(amd::Reader::is_empty);
    if nothing {
        lock(latest).asking = None;
        return;
    }
    loop {
        let job = lock(pids).clone();
        let mut figures = match &mut nvidia {
            Some(reader) => reader.look(&job, console, &asking),
            None => Vec::new(),
        };
        figures.extend(amd.iter().flat_map(|reader| reader.look(&job)));
        {
            let mut latest = lock(latest);
            latest.figures = figures;
            latest.asking = None;
        }
        first.set(false);
        if ended.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// What is locked here is whole between any two calls, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
