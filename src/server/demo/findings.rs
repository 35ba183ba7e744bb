//! What the server holds of the demo's task, asked over its API, and how it is shown.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::{ApiError, Patience, Session, tasks};
use crate::task::{Status, Task};

/// How many of the log's last lines are shown.
const SHOWN_LINES: usize = 6;
/// A longer line is cut.
const SHOWN_WIDTH: usize = 100;
/// The machine's figures that are shown (`machine_stats` of the workers' reports).
const FIGURES: [&str; 4] = ["cpu_usage", "memory_used", "memory_free", "disk_free_home"];

#[derive(Debug)]
pub struct Findings {
    pub status: Status,
    reason: String,
    commit: String,
    packages: Vec<String>,
    /// The log's lines.
    pub log: Vec<String>,
    /// When the log's first line came (epoch milliseconds).
    pub first_line: Option<i64>,
    /// The worker that sent figures, and their averages.
    machine: Option<(String, BTreeMap<String, f64>)>,
}

#[derive(Deserialize)]
struct Log {
    events: Vec<LogEvent>,
}

#[derive(Deserialize)]
struct LogEvent {
    timestamp: i64,
    #[serde(default)]
    msg: String,
}

/// Asks for all that is shown. `since`: when the run began (epoch milliseconds).
pub async fn ask(session: &Session, task: &str, since: i64) -> anyhow::Result<Findings> {
    let found = tasks::get_by_id(session, task).await?;
    let Task {
        status,
        status_reason,
        script,
        ..
    } = found.ok_or_else(|| anyhow::anyhow!("the server knows no task {task}"))?;
    let script = script.unwrap_or_default();
    let request = json!({
        "task": task, "batch_size": 10_000, "order": "asc", "navigate_earlier": false,
    });
    let log: Log = session
        .call("events.get_task_log", &request, Patience::Start)
        .await?;
    Ok(Findings {
        status,
        reason: status_reason,
        commit: script.version_num,
        packages: lines(&script.requirements.text("pip").unwrap_or_default()),
        first_line: log.events.first().map(|event| event.timestamp),
        log: log
            .events
            .iter()
            .flat_map(|event| lines(&event.msg))
            .collect(),
        machine: machine(session, since).await?,
    })
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

async fn machine(
    session: &Session,
    since: i64,
) -> Result<Option<(String, BTreeMap<String, f64>)>, ApiError> {
    #[derive(Deserialize)]
    struct Answer {
        workers: Vec<Worker>,
    }
    #[derive(Deserialize)]
    struct Worker {
        worker: String,
        metrics: Vec<Metric>,
    }
    #[derive(Deserialize)]
    struct Metric {
        metric: String,
        stats: Vec<Stats>,
    }
    #[derive(Deserialize)]
    struct Stats {
        values: Vec<f64>,
    }
    let items: Vec<Value> = FIGURES
        .iter()
        .map(|key| json!({"key": key, "category": "avg"}))
        .collect();
    let now = jiff::Timestamp::now().as_millisecond();
    let request = json!({
        "from_date": since / 1000, "to_date": now / 1000 + 1, "interval": 3600, "items": items,
    });
    let answer: Answer = session
        .call("workers.get_stats", &request, Patience::Start)
        .await?;
    // One worker ran one task.
    Ok(answer.workers.into_iter().next().map(|worker| {
        let figures = worker.metrics.into_iter().filter_map(|metric| {
            let value = metric.stats.first()?.values.last()?;
            Some((metric.metric, *value))
        });
        (worker.worker, figures.collect())
    }))
}

impl Findings {
    /// The status with its reason, in words.
    pub fn status_in_words(&self) -> String {
        match self.reason.as_str() {
            "" => self.status.to_string(),
            reason => format!("{} ({reason})", self.status),
        }
    }

    /// What is shown, row by row.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let or_none = |text: String| match text.as_str() {
            "" => "none recorded".to_owned(),
            _ => text,
        };
        let mut rows = vec![
            ("status", self.status_in_words()),
            ("commit", or_none(self.commit.clone())),
            ("packages", or_none(self.packages.join("\n"))),
        ];
        match &self.machine {
            Some((worker, figures)) => {
                rows.extend([("worker", worker.clone()), ("machine", in_words(figures))]);
            }
            None => rows.push((
                "machine",
                "no figures: the run was over before their first report, 3 s after its start"
                    .into(),
            )),
        }
        rows.push(("log", self.log_in_words()));
        rows
    }

    fn log_in_words(&self) -> String {
        let count = self.log.len();
        let last = &self.log[count.saturating_sub(SHOWN_LINES)..];
        let mut text = match count {
            0 => return "no line".to_owned(),
            _ if last.len() == count => format!("{count} lines:"),
            _ => format!("{count} lines, of which the last {SHOWN_LINES}:"),
        };
        for line in last {
            text.push_str("\n| ");
            text.extend(line.chars().take(SHOWN_WIDTH));
            if line.chars().count() > SHOWN_WIDTH {
                text.push('…');
            }
        }
        text
    }
}

fn in_words(figures: &BTreeMap<String, f64>) -> String {
    let shown = [
        ("cpu_usage", 1.0, 0, "% CPU"),
        ("memory_used", 1024.0, 1, "GiB memory used"),
        ("memory_free", 1024.0, 1, "GiB free"),
        ("disk_free_home", 1.0, 0, "% of the disk free"),
    ];
    let parts = shown.into_iter().filter_map(|(key, unit, places, words)| {
        let value = figures.get(key)? / unit;
        Some(format!("{value:.places$} {words}"))
    });
    parts.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(log: &[&str]) -> Findings {
        Findings {
            status: Status::Completed,
            reason: "worker execution done".into(),
            commit: "c0ffee".into(),
            packages: vec!["a==1".into(), "b==2".into()],
            log: log.iter().map(|line| (*line).to_owned()).collect(),
            first_line: None,
            machine: None,
        }
    }

    fn row(findings: &Findings, label: &str) -> String {
        let rows = findings.rows();
        rows.into_iter()
            .find(|(found, _)| *found == label)
            .unwrap()
            .1
    }

    #[test]
    fn what_is_there_is_shown_and_what_is_not_is_said() {
        let mut found = findings(&["1", "2", "3"]);
        assert_eq!(row(&found, "status"), "completed (worker execution done)");
        assert_eq!(row(&found, "packages"), "a==1\nb==2");
        assert_eq!(row(&found, "log"), "3 lines:\n| 1\n| 2\n| 3");
        assert!(row(&found, "machine").contains("no figures"));
        found.reason.clear();
        found.commit.clear();
        assert_eq!(row(&found, "status"), "completed");
        assert_eq!(row(&found, "commit"), "none recorded");
        let found = findings(&["1", "2", "3", "4", "5", "6", "7"]);
        let log = row(&found, "log");
        assert!(
            log.starts_with("7 lines, of which the last 6:\n| 2\n"),
            "{log}"
        );
        assert_eq!(row(&findings(&[]), "log"), "no line");
        let long = "é".repeat(SHOWN_WIDTH);
        assert!(row(&findings(&[&long]), "log").ends_with(&format!("| {long}")));
        let longer = format!("{long}é");
        assert!(row(&findings(&[&longer]), "log").ends_with(&format!("| {long}…")));
    }

    #[test]
    fn figures_have_their_units() {
        let figures = [
            ("cpu_usage", 41.6),
            ("memory_used", 2048.0),
            ("memory_free", 1536.0),
            ("network_rx", 1.0),
        ];
        let figures = figures.map(|(key, value)| (key.to_owned(), value));
        assert_eq!(
            in_words(&figures.into()),
            "42 % CPU, 2.0 GiB memory used, 1.5 GiB free"
        );
    }
}
