//! What the server is told as the worker's status: keys, units and types are the Python agent's.
//! Pure.

use serde::Serialize;

use super::stats::{Averages, Gpu};

/// `machine_stats` of `workers.status_report`: one number for each device where it is a list.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct MachineStats {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_usage: Option<[f64; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_temperature: Option<[f64; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_used: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_free: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_home: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_read: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_write: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_rx: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_tx: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_usage: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_temperature: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_memory_used: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_memory_free: Vec<f64>,
    /// How much of each GPU is the job's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpu_fraction: Vec<f64>,
}

/// What is configured of the GPUs' figures.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GpuReport {
    /// Stands for the usage of a GPU whose driver does not tell it (all MIG instances):
    /// `agent.resource_monitoring.default_gpu_utilization`.
    pub default_usage: Option<f64>,
    /// How much of each GPU is the job's, by its place; the last holds for those behind it
    /// (`CLEARML_AGENT_GPU_FRACTIONS`). Servers that are more than the open-source one want it.
    pub fractions: Vec<f64>,
}

impl MachineStats {
    /// `fractions`: whether the server wants them.
    pub fn of(averages: &Averages, report: &GpuReport, fractions: bool) -> Self {
        let gpus = |figure: fn(&Gpu) -> Option<f64>| -> Vec<f64> {
            averages.gpus.iter().filter_map(figure).collect()
        };
        Self {
            cpu_usage: averages.cpu_usage.map(|value| [value]),
            cpu_temperature: averages.cpu_temperature.map(|value| [value]),
            memory_used: averages.memory_used,
            memory_free: averages.memory_free,
            disk_free_home: averages.disk_free,
            disk_read: averages.disk_read,
            disk_write: averages.disk_write,
            network_rx: averages.network_rx,
            network_tx: averages.network_tx,
            gpu_usage: averages
                .gpus
                .iter()
                .filter_map(|gpu| gpu.usage.or(report.default_usage))
                .collect(),
            gpu_temperature: gpus(|gpu| gpu.temperature),
            gpu_memory_used: gpus(|gpu| gpu.memory_used),
            gpu_memory_free: gpus(|gpu| gpu.memory_free),
            gpu_fraction: averages
                .gpus
                .iter()
                .filter(|_| fractions)
                .map(|gpu| {
                    let all = &report.fractions;
                    *all.get(gpu.place).or(all.last()).unwrap_or(&1.0)
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_gets_only_what_there_is() {
        let stats = MachineStats {
            cpu_usage: Some([1.5]),
            memory_used: Some(3.0),
            ..MachineStats::default()
        };
        let json = serde_json::to_value(stats).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"cpu_usage": [1.5], "memory_used": 3.0})
        );
    }
}
