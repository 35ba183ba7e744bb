//! The abort callback: what a task may do when it is aborted on the server, before it is stopped.
//!
//! Either the script registered a function with the SDK, which watches the task itself and says in the
//! task's runtime how long it may take and when it is done; or `CLEARML_AGENT_ABORT_CALLBACK_CMD`
//! names a command, which the agent runs. The names in the runtime are the SDK's and the Python
//! agent's.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::run::Run;
use crate::api::tasks;
use crate::process::{self, Ended};

const TIMEOUT: &str = "_abort_callback_timeout";
const POLL_FREQUENCY: &str = "_abort_poll_freq";
const COMPLETED: &str = "_abort_callback_completed";
/// How often the runtime is looked at while a callback of the script runs.
const LOOK_EACH: Duration = Duration::from_secs(2);

/// A command that is run when the task is aborted on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// The program and its arguments.
    pub words: Vec<String>,
    pub timeout: Duration,
}

/// Where a command is run: as the script is.
pub(super) struct Place {
    pub env: BTreeMap<String, String>,
    pub working_dir: PathBuf,
}

/// Tells others how long an abort may take, where there is a command for it.
pub(super) async fn register(run: &Run) {
    let Some(callback) = &run.settings.stop.callback else {
        return;
    };
    let seconds = callback.timeout.as_secs().to_string();
    let more = [(TIMEOUT, seconds.as_str()), (POLL_FREQUENCY, "10")];
    if let Err(error) = run.runtime.add(&more).await {
        run.console.say(format!(
            "Note: the abort callback is not registered: {error}"
        ));
    }
}

/// Runs the callback, or waits for the script's own, if there is any; not longer than it may take.
pub(super) async fn run(run: &Run, place: &Place) {
    let runtime = match tasks::runtime(&run.session, &run.task.id).await {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::debug!(%error, "no word of an abort callback");
            Map::new()
        }
    };
    let Some(limit) = limit(
        &runtime,
        run.settings.stop.callback.as_ref(),
        run.settings.stop.callback_limit,
    ) else {
        return;
    };
    run.console.say(format!(
        "### Task abort callback timeout set, waiting for max {} sec ###",
        limit.as_secs_f64()
    ));
    let begin = Instant::now();
    let done = async {
        match &run.settings.stop.callback {
            Some(callback) => run_command(run, callback, place).await,
            None => completed(run).await,
        }
    };
    let words = match tokio::time::timeout(limit, done).await {
        Ok(()) => "completed in",
        Err(_) => "timed out after",
    };
    run.console.say(format!(
        "### Task abort callback {words} {:.2} seconds ###",
        begin.elapsed().as_secs_f64()
    ));
}

/// How long the callback may take; `None`: there is none, or it is done. The rule is the Python
/// agent's: the time that was registered and one more look at the task, up to a limit.
fn limit(
    runtime: &Map<String, Value>,
    command: Option<&Callback>,
    most: Duration,
) -> Option<Duration> {
    let seconds = |name: &str| match runtime.get(name)? {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let is_set = |value: &Value| !matches!(value, Value::Null) && *value != "" && *value != 0;
    if command.is_none() && runtime.get(COMPLETED).is_some_and(is_set) {
        return None;
    }
    let registered = seconds(TIMEOUT).filter(|timeout| *timeout > 0.0);
    let of_the_command = command.map(|callback| callback.timeout.as_secs_f64());
    let timeout = registered.or(of_the_command)? + seconds(POLL_FREQUENCY).unwrap_or(0.0);
    Some(Duration::try_from_secs_f64(timeout).map_or(most, |timeout| timeout.min(most)))
}

/// Waits until the script says that its callback is done.
async fn completed(run: &Run) {
    loop {
        tokio::time::sleep(LOOK_EACH).await;
        match tasks::runtime(&run.session, &run.task.id).await {
            Ok(runtime) if runtime.contains_key(COMPLETED) => return,
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "no word of the abort callback"),
        }
    }
}

async fn run_command(run: &Run, callback: &Callback, place: &Place) {
    let [program, args @ ..] = callback.words.as_slice() else {
        return;
    };
    let command = process::Command {
        program: program.into(),
        args: args.to_vec(),
        working_dir: place.working_dir.clone(),
        env: place.env.clone(),
    };
    match process::spawn(command) {
        Ok((mut job, output)) => {
            let (read, ended) = tokio::join!(run.journal.read_from(output), job.wait());
            if let Err(error) = read {
                tracing::debug!(%error, "the abort callback's output");
            }
            if ended != (Ended::Exited { code: 0 }) {
                run.console
                    .say(format!("Note: the abort callback failed: {ended:?}"));
            }
        }
        Err(error) => run
            .console
            .say(format!("Note: the abort callback failed: {error}")),
    }
    if let Err(error) = run.runtime.add(&[(COMPLETED, "1")]).await {
        tracing::debug!(%error, "the abort callback's end is not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn how_long_a_callback_may_take() {
        let most = Duration::from_secs(1800);
        let command = Callback {
            words: vec!["save".into()],
            timeout: Duration::from_secs(180),
        };
        for (runtime, command, expected) in [
            (json!({}), None, None),
            (json!({"_abort_callback_timeout": 0}), None, None),
            (json!({"_abort_callback_timeout": "60"}), None, Some(60)),
            (
                json!({"_abort_callback_timeout": 60.0, "_abort_poll_freq": 10}),
                None,
                Some(70),
            ),
            (json!({"_abort_callback_timeout": 99_999}), None, Some(1800)),
            (json!({"_abort_callback_timeout": "x"}), None, None),
            (
                json!({"_abort_callback_timeout": 60, "_abort_callback_completed": "1"}),
                None,
                None,
            ),
            (json!({}), Some(&command), Some(180)),
            (
                json!({"_abort_callback_timeout": "180", "_abort_poll_freq": "10"}),
                Some(&command),
                Some(190),
            ),
        ] {
            let limit = limit(runtime.as_object().unwrap(), command, most);
            assert_eq!(limit, expected.map(Duration::from_secs), "{runtime}");
        }
    }
}
