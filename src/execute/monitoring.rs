//! The run's part in monitoring: what is asked of the GPUs before the task is taken, and what is
//! reported while it runs.

use std::path::{Path, PathBuf};

use super::claim;
use super::job_env::{self, Gpus, Variables};
use super::run::Run;
use super::settings::SettingsError;
use crate::config::Config;
use crate::monitor::{self, GpuReport, Layout, Node, TaskScalars, gpu};
use crate::task::Status;

/// What is decided about it before the first request.
#[derive(Debug)]
pub struct MonitorSettings {
    /// `agent.resource_monitoring.disk_use_path`, or the home folder.
    pub disk: PathBuf,
    pub gpus: gpu::Source,
    pub gpu_report: GpuReport,
    /// `agent.gpu_health_check`
    pub health_check: gpu::health::Check,
    pub asked: gpu::health::Asked,
    /// `CLEARML_WORKER_TAGS`
    pub tags: Vec<String>,
    pub node: Node,
}

const DEFAULT_USAGE: &str = "agent.resource_monitoring.default_gpu_utilization";
const HEALTH_CHECK: &str = "agent.gpu_health_check";

impl MonitorSettings {
    /// `inherited`: what the script inherits; `home` is the home folder.
    pub fn read(
        config: &Config,
        inherited: &Variables,
        gpus: &Gpus,
        home: Option<PathBuf>,
    ) -> Result<Self, SettingsError> {
        let text = config.text(HEALTH_CHECK).unwrap_or_default();
        let health_check = gpu::health::Check::from_text(&text).ok_or_else(|| {
            SettingsError::Value(format!(
                "{HEALTH_CHECK} is {text:?}: it can be off, warn or refuse"
            ))
        })?;
        let default_usage = match config.value(DEFAULT_USAGE) {
            // Set to null: then there is no figure.
            Some(serde_json::Value::Null) => None,
            _ => Some(config.number(DEFAULT_USAGE)?.unwrap_or(100.0)),
        };
        let visible = visible(&job_env::with_gpus(inherited, gpus));
        let tags = inherited.get("CLEARML_WORKER_TAGS");
        Ok(Self {
            disk: config
                .path("agent.resource_monitoring.disk_use_path")
                .or(home)
                .unwrap_or_else(|| PathBuf::from("/")),
            asked: gpu::health::Asked {
                named: matches!(gpus, Gpus::All | Gpus::Only(_))
                    || matches!(visible, gpu::Visible::Only(_)),
                cuda: config.text("agent.cuda_version").and_then(|v| cuda(&v)),
            },
            gpus: gpu::Source {
                visible,
                sysfs: Path::new("/sys").to_owned(),
            },
            gpu_report: GpuReport {
                default_usage,
                fractions: fractions(inherited.get("CLEARML_AGENT_GPU_FRACTIONS")),
            },
            health_check,
            tags: tags.and_then(|t| shlex::split(t)).unwrap_or_default(),
            node: Node::from_env(|name| inherited.get(name).map(String::as_str)),
        })
    }
}

fn visible(env: &Variables) -> gpu::Visible {
    let folder = |path: &str| -> Option<Vec<String>> {
        let entries = std::fs::read_dir(path).ok()?;
        let names = entries.flatten();
        Some(
            names
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect(),
        )
    };
    let get = |name: &str| env.get(name).map(String::as_str);
    gpu::visible(
        get("NVIDIA_VISIBLE_DEVICES"),
        get("CUDA_VISIBLE_DEVICES"),
        folder,
    )
}

/// `0.5,0.25`. The variable's other form, MIG profiles with their counts, says how the GPUs are divided
/// and not what of them is the job's: then each instance counts whole.
fn fractions(text: Option<&String>) -> Vec<f64> {
    let numbers = text.into_iter().flat_map(|text| text.split(','));
    let numbers: Option<Vec<f64>> = numbers.map(|n| n.trim().parse().ok()).collect();
    numbers.unwrap_or_default()
}

/// `12.6.3`, `12.6`, `126` and `12` as ten times major plus minor; a bare number below 60 is a major
/// version, as in the Python agent. `None` for 0 (no CUDA) and what is no version.
fn cuda(text: &str) -> Option<u32> {
    let text = text.trim();
    let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
    let major = parts.next()??;
    let version = match parts.next() {
        Some(minor) => major * 10 + minor?.min(9),
        None if major < 60 => major * 10,
        None => major,
    };
    (version > 0).then_some(version)
}

impl Run {
    /// What the monitor is to report of this run.
    pub(super) fn report(&self) -> monitor::Report {
        let settings = &self.settings.monitor;
        let task = &self.task;
        let queue = task.execution.queue.clone();
        // Of several ranks that do not say that they share the task, the first alone reports to it.
        let shares = settings.node.layout != Layout::Alone;
        let scalars = (self.settings.rank == 0 || shares)
            .then(|| TaskScalars::new(claim::STARTED, &task.runtime, settings.node));
        monitor::Report {
            session: self.session.clone(),
            worker: monitor::Worker {
                id: self.settings.endpoint.worker.clone(),
                tags: settings.tags.clone(),
                queue: queue.filter(|q| !q.is_empty() && task.status == Status::Queued),
            },
            task: task.id.clone(),
            disk_path: settings.disk.clone(),
            gpus: settings.gpus.clone(),
            gpu_report: settings.gpu_report.clone(),
            script: self.script.clone(),
            scalars,
            timing: monitor::Timing::default(),
            console: self.console.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_of_gpus() {
        let read = |text: &str| fractions(Some(&text.to_owned()));
        assert_eq!(read("0.5, 0.250"), [0.5, 0.25]);
        assert!(read("nvidia.com/mig-1g.10gb:2").is_empty());
        assert!(fractions(None).is_empty());
    }

    #[test]
    fn cuda_versions() {
        for (text, expected) in [
            ("12.6.3", Some(126)),
            ("12.6", Some(126)),
            ("126", Some(126)),
            ("11", Some(110)),
            ("0", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(cuda(text), expected, "{text}");
        }
    }
}
