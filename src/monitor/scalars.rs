//! The figures as scalars of the task: titles, names and units are those of the ClearML SDK's own
//! monitor, as is the rule by which they get their iteration. Pure.
//!
//! Beside the SDK's there are figures of the job (`job_…`, of all its processes) and a GPU's clocks
//! and memory errors.

use serde::Serialize;

use super::stats::Averages;

const MACHINE: &str = ":monitor:machine";
const GPU: &str = ":monitor:gpu";

/// One point of one line of a graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Scalar {
    pub title: String,
    pub series: String,
    pub value: f64,
}

/// `default_usage`: as in `GpuReport`.
pub fn scalars(averages: &Averages, default_usage: Option<f64>, node: Node) -> Vec<Scalar> {
    let gib = |mib: f64| mib / 1024.0;
    let job = averages.job.as_ref();
    let mut all = Vec::new();
    let mut add = |title: &str, series: String, value: Option<f64>| {
        if let Some(value) = value {
            node.place(title, series, (value * 1000.0).round() / 1000.0, &mut all);
        }
    };
    for (series, value) in [
        ("cpu_usage", averages.cpu_usage),
        ("cpu_temperature", averages.cpu_temperature),
        // The job's, not the machine's.
        ("memory_used_gb", job.and_then(|job| job.memory).map(gib)),
        ("memory_free_gb", averages.memory_free.map(gib)),
        ("disk_free_percent", averages.disk_free),
        ("network_tx_mbs", averages.network_tx),
        ("network_rx_mbs", averages.network_rx),
        ("io_read_mbs", averages.disk_read),
        ("io_write_mbs", averages.disk_write),
        ("job_cpu_usage", job.and_then(|job| job.cpu_usage)),
        ("job_threads", job.and_then(|job| job.threads)),
        ("job_processes", job.and_then(|job| job.processes)),
        ("job_io_read_mbs", job.and_then(|job| job.disk_read)),
        ("job_io_write_mbs", job.and_then(|job| job.disk_write)),
    ] {
        add(MACHINE, series.to_owned(), value);
    }
    for gpu in &averages.gpus {
        for (series, value) in [
            ("temperature", gpu.temperature),
            ("utilization", gpu.usage.or(default_usage)),
            // The job's share where it is known.
            ("mem_used_gb", gpu.job_memory.or(gpu.memory_used).map(gib)),
            ("mem_usage", gpu.memory_usage),
            ("mem_free_gb", gpu.memory_free.map(gib)),
            // The SDK has whole watts.
            ("power_draw", gpu.power.map(f64::trunc)),
            ("clock_mhz", gpu.clock),
            ("mem_clock_mhz", gpu.memory_clock),
            ("ecc_uncorrected", gpu.ecc_uncorrected),
        ] {
            add(GPU, format!("gpu_{}_{series}", gpu.place), value);
        }
    }
    all
}

/// Which of several nodes that run one task this is, where `CLEARML_MULTI_NODE_SINGLE_TASK` says that
/// they do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    pub layout: Layout,
    pub rank: u32,
    /// How many digits ranks are shown with.
    pub digits: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Layout {
    /// One node, or each with a task of its own.
    #[default]
    Alone,
    /// Graphs of its own for each node.
    Graphs,
    /// One graph for each figure, with a line for each node.
    Lines,
    /// Negative: no scalars.
    Nothing,
}

impl Node {
    /// From the variables of the SDK's monitor, `get` gives them.
    pub fn from_env<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Self {
        let number = |name: &str| get(name).and_then(|text| text.trim().parse::<i64>().ok());
        let layout = match number("CLEARML_MULTI_NODE_SINGLE_TASK") {
            None | Some(0) => Layout::Alone,
            Some(..0) => Layout::Nothing,
            Some(2) => Layout::Lines,
            Some(_) => Layout::Graphs,
        };
        let of_node = || match (
            number("RANK"),
            number("LOCAL_RANK"),
            number("LOCAL_WORLD_SIZE"),
        ) {
            (Some(rank), Some(local), Some(size @ 1..)) => Some((rank - local) / size),
            (rank, _, _) => rank,
        };
        let rank = number("GROUP_RANK")
            .or_else(|| number("NODE_RANK"))
            .or_else(of_node)
            .or_else(|| number("SLURM_NODEID"));
        let digits = get("WORLD_SIZE").or_else(|| get("SLURM_NNODES"));
        Self {
            layout,
            rank: u32::try_from(rank.unwrap_or(0)).unwrap_or(0),
            digits: digits.map_or(1, |size| size.trim().len().max(1)),
        }
    }

    fn place(self, title: &str, series: String, value: f64, all: &mut Vec<Scalar>) {
        let Self { rank, digits, .. } = self;
        let scalar = |title: String, series: String| Scalar {
            title,
            series,
            value,
        };
        match self.layout {
            Layout::Nothing => {}
            Layout::Graphs if rank > 0 => {
                all.push(scalar(format!("{title}:rank{rank:0digits$}"), series));
            }
            Layout::Alone | Layout::Graphs => all.push(scalar(title.to_owned(), series)),
            Layout::Lines => {
                // Others look for the first node's figures where they always are.
                if rank == 0 {
                    all.push(scalar(title.to_owned(), series.clone()));
                }
                let group = title.rsplit_once(':').map_or(title, |(group, _)| group);
                all.push(scalar(
                    format!("{group}:{series}"),
                    format!("rank {rank:0digits$}"),
                ));
            }
        }
    }
}

/// By which iteration the figures are told: the script's own where somebody reports iterations, else
/// seconds since its start.
#[derive(Debug, Default)]
pub struct Iterations {
    last: i64,
    rule: Rule,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Rule {
    #[default]
    Undecided,
    Seconds,
    Iterations,
}

/// What is to be done with the figures that are there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// `None`: they are kept for the next time.
    pub iteration: Option<i64>,
    /// Whether the next averages begin anew. An iteration that lasts gets the averages of all of its
    /// time so far, each time.
    pub clear: bool,
}

impl Iterations {
    /// So long no iteration is waited for, and so long one is still taken up (seconds).
    const WAIT: i64 = 180;
    const LONGEST_WAIT: i64 = 1800;

    /// At each report: the seconds since the script's start, and the task's last iteration on the
    /// server (`last_iteration`, in which these scalars do not count).
    pub fn next(&mut self, seconds: i64, on_server: i64) -> Decision {
        match self.rule {
            Rule::Undecided if seconds >= Self::WAIT => self.rule = Rule::Seconds,
            Rule::Seconds if seconds <= Self::LONGEST_WAIT && on_server > self.last => {
                self.rule = Rule::Iterations;
            }
            _ => {}
        }
        if self.rule == Rule::Seconds {
            return Decision {
                iteration: Some(seconds),
                clear: true,
            };
        }
        let clear = on_server > self.last;
        if clear {
            self.last = on_server;
            self.rule = Rule::Iterations;
        }
        Decision {
            iteration: (self.rule == Rule::Iterations).then_some(self.last),
            clear,
        }
    }

    /// At the script's end there is nothing more to wait for. (The SDK's monitor just ends; so a short
    /// task of its has no figures at all.)
    pub fn end(&mut self, seconds: i64, on_server: i64) -> i64 {
        match self.next(seconds, on_server).iteration {
            Some(iteration) => iteration,
            None => seconds,
        }
    }
}

/// What the server tells of the task, as far as it shows whether the script uses the SDK.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// `status_reason`
    pub reason: String,
    /// `runtime` has the SDK's version.
    pub sdk_version: Option<String>,
}

impl Marks {
    /// The key in a task's `runtime`.
    pub const SDK_VERSION: &'static str = "CLEARML VERSION";

    /// Whether the script has called `Task.init`. It shows in two ways: the SDK writes its version
    /// into the task's `runtime`, and before that sets the task `started` with no reason, which wipes
    /// out the reason that the agent gave (`ours`) when it took the task. The version alone does not
    /// do: it is still there when a task is run again, so one that was there at the start
    /// (`at_start`) tells nothing.
    ///
    /// What else changes the reason while a task runs (somebody else's hand) passes for the SDK: then
    /// these scalars are missing, rather than there twice.
    pub fn show_sdk(&self, at_start: &Marks, ours: &str) -> bool {
        self.reason != ours || (self.sdk_version.is_some() && at_start.sdk_version.is_none())
    }
}

/// The event as `events.add_batch` takes it.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    task: &'a str,
    worker: &'a str,
    metric: &'a str,
    variant: &'a str,
    value: f64,
    iter: i64,
    timestamp: i64,
}

/// One JSON object a line; `time` in epoch milliseconds.
pub fn events(
    scalars: &[Scalar],
    iteration: i64,
    task: &str,
    worker: &str,
    time: i64,
) -> serde_json::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for scalar in scalars {
        let event = Event {
            kind: "training_stats_scalar",
            task,
            worker,
            metric: &scalar.title,
            variant: &scalar.series,
            value: scalar.value,
            iter: iteration,
            timestamp: time,
        };
        serde_json::to_writer(&mut lines, &event)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::super::stats::{Gpu, Job};
    use super::*;

    fn averages() -> Averages {
        Averages {
            cpu_usage: Some(12.3456),
            memory_free: Some(2048.0),
            disk_free: Some(70.0),
            gpus: vec![Gpu {
                place: 3,
                memory_used: Some(4096.0),
                memory_free: Some(1024.0),
                memory_usage: Some(80.0),
                job_memory: Some(512.0),
                power: Some(250.9),
                ..Gpu::default()
            }],
            job: Some(Job {
                memory: Some(1536.0),
                cpu_usage: Some(1.0),
                ..Job::default()
            }),
            ..Averages::default()
        }
    }

    fn named(scalars: &[Scalar]) -> Vec<(&str, &str, f64)> {
        scalars
            .iter()
            .map(|s| (s.title.as_str(), s.series.as_str(), s.value))
            .collect()
    }

    #[test]
    fn names_and_units_are_the_sdks() {
        let scalars = scalars(&averages(), Some(100.0), Node::default());
        assert_eq!(
            named(&scalars),
            [
                (MACHINE, "cpu_usage", 12.346),
                (MACHINE, "memory_used_gb", 1.5),
                (MACHINE, "memory_free_gb", 2.0),
                (MACHINE, "disk_free_percent", 70.0),
                (MACHINE, "job_cpu_usage", 1.0),
                (GPU, "gpu_3_utilization", 100.0),
                (GPU, "gpu_3_mem_used_gb", 0.5),
                (GPU, "gpu_3_mem_usage", 80.0),
                (GPU, "gpu_3_mem_free_gb", 1.0),
                (GPU, "gpu_3_power_draw", 250.0),
            ]
        );
    }

    #[test]
    fn several_nodes_have_places_of_their_own() {
        let one = Averages {
            cpu_usage: Some(1.0),
            ..Averages::default()
        };
        let node = |pairs: &[(&str, &'static str)]| {
            Node::from_env(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v))
        };
        const SINGLE: &str = "CLEARML_MULTI_NODE_SINGLE_TASK";
        for (env, expected) in [
            (&[][..], &[(MACHINE, "cpu_usage")][..]),
            (&[("RANK", "3")], &[(MACHINE, "cpu_usage")]),
            (&[(SINGLE, "1")], &[(MACHINE, "cpu_usage")]),
            (
                &[(SINGLE, "1"), ("NODE_RANK", "3"), ("WORLD_SIZE", "16")],
                &[(":monitor:machine:rank03", "cpu_usage")],
            ),
            (
                &[
                    (SINGLE, "1"),
                    ("RANK", "9"),
                    ("LOCAL_RANK", "1"),
                    ("LOCAL_WORLD_SIZE", "4"),
                ],
                &[(":monitor:machine:rank2", "cpu_usage")],
            ),
            (
                &[(SINGLE, "2"), ("SLURM_NODEID", "1"), ("SLURM_NNODES", "2")],
                &[(":monitor:cpu_usage", "rank 1")],
            ),
            (
                &[(SINGLE, "2")],
                &[(MACHINE, "cpu_usage"), (":monitor:cpu_usage", "rank 0")],
            ),
            (&[(SINGLE, "-1")], &[]),
        ] {
            let scalars = scalars(&one, None, node(env));
            let found: Vec<(&str, &str)> = named(&scalars)
                .into_iter()
                .map(|(t, s, _)| (t, s))
                .collect();
            assert_eq!(found, expected, "{env:?}");
        }
    }

    /// (seconds, last iteration on the server) → (iteration, cleared)
    fn run(reports: &[(i64, i64)]) -> Vec<(Option<i64>, bool)> {
        let mut iterations = Iterations::default();
        reports
            .iter()
            .map(|&(seconds, on_server)| {
                let decision = iterations.next(seconds, on_server);
                (decision.iteration, decision.clear)
            })
            .collect()
    }

    #[test]
    fn the_iteration_is_the_scripts_or_the_time() {
        for (reports, expected) in [
            // Nobody reports iterations.
            (
                &[(30, 0), (150, 0), (180, 0), (210, 0)][..],
                &[
                    (None, false),
                    (None, false),
                    (Some(180), true),
                    (Some(210), true),
                ][..],
            ),
            // Somebody does, from the beginning; and one iteration lasts.
            (
                &[(30, 0), (60, 5), (90, 9), (120, 9)],
                &[
                    (None, false),
                    (Some(5), true),
                    (Some(9), true),
                    (Some(9), false),
                ],
            ),
            // Later.
            (
                &[(180, 0), (210, 3), (240, 3)],
                &[(Some(180), true), (Some(3), true), (Some(3), false)],
            ),
            // Too late.
            (
                &[(180, 0), (1830, 7), (1860, 8)],
                &[(Some(180), true), (Some(1830), true), (Some(1860), true)],
            ),
            // The iterations begin again.
            (
                &[(30, 100), (60, 2), (90, 101)],
                &[(Some(100), true), (Some(100), false), (Some(101), true)],
            ),
        ] {
            assert_eq!(run(reports), expected, "{reports:?}");
        }
    }

    #[test]
    fn the_last_figures_are_told_in_any_case() {
        assert_eq!(Iterations::default().end(4, 0), 4);
        assert_eq!(Iterations::default().end(4, 12), 12);
    }

    #[test]
    fn a_script_that_uses_the_sdk_is_known_by_its_marks() {
        const OURS: &str = "worker started execution";
        let marks = |reason: &str, version: Option<&str>| Marks {
            reason: reason.into(),
            sdk_version: version.map(str::to_owned),
        };
        let fresh = marks("", None);
        let again = marks("", Some("clearml-2.1.12"));
        for (start, now, expected) in [
            (&fresh, marks(OURS, None), false),
            (&fresh, marks(OURS, Some("clearml-2.1.12")), true),
            (&fresh, marks("", Some("clearml-2.1.12")), true),
            (&fresh, marks("", None), true),
            (&again, marks(OURS, Some("clearml-2.1.12")), false),
            (&again, marks("", Some("clearml-2.1.12")), true),
        ] {
            assert_eq!(now.show_sdk(start, OURS), expected, "{start:?} {now:?}");
        }
    }

    #[test]
    fn events_are_lines_of_json() {
        let scalar = Scalar {
            title: MACHINE.into(),
            series: "cpu_usage".into(),
            value: 1.5,
        };
        let lines = events(&[scalar], 30, "t1", "w:0", 1_700_000_000_000).unwrap();
        let event: serde_json::Value = serde_json::from_slice(&lines).unwrap();
        assert_eq!(
            event,
            serde_json::json!({
                "type": "training_stats_scalar", "task": "t1", "worker": "w:0",
                "metric": ":monitor:machine", "variant": "cpu_usage", "value": 1.5, "iter": 30,
                "timestamp": 1_700_000_000_000_i64,
            })
        );
    }
}
