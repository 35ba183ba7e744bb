//! The figures as the task's scalars, for a script that does not use the ClearML SDK (whose own
//! monitor sends the same): the server is asked each time before something is sent.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::job::Life;
use super::scalars::{self, Iterations, Layout, Marks, Node};
use super::stats::Averages;
use super::{Periods, Report, lock};
use crate::api::{ApiError, events, tasks};

/// How the task gets its scalars.
#[derive(Debug, Clone)]
pub struct TaskScalars {
    /// The reason that the task was set `started` with: it is there until the SDK comes.
    pub reason: &'static str,
    /// The SDK's version that an earlier run left in the task's `runtime`.
    pub left_version: Option<String>,
    pub node: Node,
}

impl TaskScalars {
    /// From the task's `runtime` when it was taken.
    pub fn new(
        reason: &'static str,
        runtime: &serde_json::Map<String, serde_json::Value>,
        node: Node,
    ) -> Self {
        Self {
            reason,
            left_version: version(runtime),
            node,
        }
    }
}

fn version(runtime: &serde_json::Map<String, serde_json::Value>) -> Option<String> {
    let version = runtime.get(Marks::SDK_VERSION)?;
    Some(version.as_str().unwrap_or_default().to_owned())
}

/// The last figures may take so long when the run ends.
const LAST_LIMIT: Duration = Duration::from_secs(5);

/// Tells from the script's start to its end, where not `stop` comes before.
pub(super) async fn tell(report: Report, periods: Arc<Mutex<Periods>>, stop: CancellationToken) {
    let Some(how) = report.scalars.clone() else {
        return;
    };
    let mut script = report.script.subscribe();
    let begun = async {
        // The sender is held by `report`.
        let _ = script.wait_for(|life| *life != Life::Before).await;
    };
    tokio::select! {
        () = begun => {}
        () = stop.cancelled() => return,
    }
    let mut teller = Teller {
        report: &report,
        how,
        periods: &periods,
        iterations: Iterations::default(),
        begin: Instant::now(),
    };
    lock(&periods).task.clear();
    loop {
        let over = async {
            let _ = script.wait_for(|life| *life == Life::Over).await;
        };
        tokio::select! {
            () = tokio::time::sleep(report.timing.every) => {
                if !teller.regularly().await {
                    return;
                }
            }
            () = over => break,
            () = stop.cancelled() => break,
        }
    }
    if tokio::time::timeout(LAST_LIMIT, teller.at_the_end())
        .await
        .is_err()
    {
        tracing::debug!("the task's last figures were not sent in time");
    }
}

struct Teller<'a> {
    report: &'a Report,
    how: TaskScalars,
    periods: &'a Mutex<Periods>,
    iterations: Iterations,
    begin: Instant,
}

impl Teller<'_> {
    /// `false`: the SDK has come, it is told no more.
    async fn regularly(&mut self) -> bool {
        let on_server = match self.last_iteration().await {
            Ok(Some(iteration)) => iteration,
            Ok(None) => return false,
            Err(error) => {
                tracing::debug!(%error, "the task's figures wait");
                return true;
            }
        };
        let decision = self.iterations.next(self.seconds(), on_server);
        let averages = {
            let mut periods = lock(self.periods);
            let averages = periods.task.averages();
            if decision.clear {
                periods.task.clear();
            }
            averages
        };
        if let (Some(iteration), Some(averages)) = (decision.iteration, averages) {
            self.send(&averages, iteration).await;
        }
        true
    }

    async fn at_the_end(&mut self) {
        let Some(averages) = lock(self.periods).task.averages() else {
            return;
        };
        match self.last_iteration().await {
            Ok(Some(on_server)) => {
                let iteration = self.iterations.end(self.seconds(), on_server);
                self.send(&averages, iteration).await;
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "the task's last figures"),
        }
    }

    /// The task's last iteration; `None` where the script uses the SDK, or the task is gone.
    async fn last_iteration(&self) -> Result<Option<i64>, ApiError> {
        let Some(progress) = tasks::progress(&self.report.session, &self.report.task).await? else {
            return Ok(None);
        };
        let at_start = Marks {
            sdk_version: self.how.left_version.clone(),
            ..Marks::default()
        };
        let now = Marks {
            reason: progress.status_reason,
            sdk_version: version(&progress.runtime),
        };
        if now.show_sdk(&at_start, self.how.reason) {
            tracing::debug!("the script uses the ClearML SDK, which sends the figures itself");
            return Ok(None);
        }
        // Under other titles than the usual ones the server takes our own seconds for iterations.
        let own_titles = match self.how.node.layout {
            Layout::Alone | Layout::Nothing => false,
            Layout::Graphs => self.how.node.rank > 0,
            Layout::Lines => true,
        };
        Ok(Some(match own_titles {
            true => 0,
            false => progress.last_iteration,
        }))
    }

    async fn send(&self, averages: &Averages, iteration: i64) {
        let scalars = scalars::scalars(
            averages,
            self.report.gpu_report.default_usage,
            self.how.node,
        );
        if scalars.is_empty() {
            return;
        }
        let now = jiff::Timestamp::now().as_millisecond();
        let (task, worker) = (&self.report.task, &self.report.worker.id);
        let sent = match scalars::events(&scalars, iteration, task, worker, now) {
            Ok(lines) => events::add_batch(&self.report.session, lines).await,
            Err(error) => {
                tracing::debug!(%error, "the task's figures");
                return;
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "the task's figures were not taken");
        }
    }

    fn seconds(&self) -> i64 {
        let seconds = self.begin.elapsed().as_secs_f64().round();
        #[allow(clippy::cast_possible_truncation)] // Saturates, which is what is meant.
        let seconds = seconds as i64;
        seconds
    }
}
