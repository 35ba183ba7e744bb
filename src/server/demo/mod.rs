//! `clearml-agent demo`: the whole way on this machine, for a person who looks at the product for the
//! first time. The server is this module's parent, in this process; the task is run by the real
//! `execute` as a process of its own, which knows nothing of the demo.

mod findings;
mod place;
mod sample;

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{RunningServer, ServerOptions};
use crate::api::{Credentials, Endpoint, Patience, Session, Trust};
use crate::config::Variables;
use crate::execute::outcome::{StopCause, exit, for_signal};
use crate::execute::stop::Stop;
use crate::process::signal::name as signal_name;
use crate::secret::Secret;
use crate::task::Status;
use findings::Findings;
use place::Place;

#[derive(Debug, clap::Args)]
pub struct DemoArgs {}

const PROJECT: &str = "demo";
const TASK: &str = "fit a line";
const QUEUE: &str = "demo";
/// How long `execute` may take to end once it was asked to: longer than its own patience with the
/// script.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Runs the demo; gives the exit code. `debug` is passed on to `execute`.
pub async fn run(_: DemoArgs, debug: bool, inherited: Variables) -> anyhow::Result<u8> {
    let stop = Stop::on_signals().context("cannot wait for signals")?;
    let place = Place::new()?;
    let server = super::start(ServerOptions {
        listen: ([127, 0, 0, 1], 0).into(),
        data: None,
        credentials: None,
    })
    .await?;
    let ended = show(&place, &server, &stop, debug, &inherited).await;
    server.stop().await;
    let cleared = place.clear();
    say("\n");
    let (code, last_words) = ended?;
    cleared?;
    say(&format!("{last_words} Nothing stays behind.\n"));
    Ok(code)
}

/// The demo with its folder and server at hand; gives the exit code and the last words.
async fn show(
    place: &Place,
    server: &RunningServer,
    stop: &Stop,
    debug: bool,
    inherited: &Variables,
) -> anyhow::Result<(u8, String)> {
    let repository = place.repository();
    let diff = sample::make_repository(&repository).context("cannot make the git repository")?;
    let session = log_in(server).await?;
    let task = make_task(&session, sample::script(&repository, &diff)).await?;
    let environment = place.furnish(&server.client_configuration(), inherited)?;
    let url = server.url().as_str().trim_end_matches('/');
    say(&section(
        "The demo's parts",
        &[
            (
                "server",
                format!("{url} (in this process, on this machine alone)"),
            ),
            (
                "repository",
                format!("{}, branch {}", repository.display(), sample::BRANCH),
            ),
            ("script", sample::SCRIPT.into()),
            ("uncommitted", sample::shown_change()),
            ("packages", sample::PACKAGE.into()),
            (
                "task",
                format!("{task} \"{TASK}\" in project \"{PROJECT}\""),
            ),
            ("queue", QUEUE.into()),
        ],
    ));

    say(&section(
        &format!("clearml-agent execute --id {task} --require-queue"),
        &[],
    ));
    let now = || jiff::Timestamp::now().as_millisecond();
    let started = now();
    let ended = execute(&task, environment, debug, stop).await?;
    let took = now() - started;

    let found = findings::ask(&session, &task, started).await?;
    if let Some(StopCause::Signal(signal)) = stop.cause() {
        let words = format!(
            "The demo was stopped by {}. The task is {}.",
            signal_name(signal),
            found.status_in_words()
        );
        return Ok((for_signal(signal), words));
    }
    say(&section("What the server holds", &found.rows()));
    let first_line = match found.first_line {
        Some(at) if sample::is_of_the_script(&found.log) => seconds(at - started),
        _ => "none of the script".into(),
    };
    say(&section(
        "How it went",
        &[
            ("exit code", in_words(ended)),
            ("to first line", first_line),
            ("in all", seconds(took)),
        ],
    ));
    judge(ended, &found)?;
    Ok((0, "The task is completed and its log is whole.".into()))
}

async fn log_in(server: &RunningServer) -> anyhow::Result<Session> {
    let keys = server.credentials();
    let endpoint = Endpoint {
        api_server: server.url().clone(),
        credentials: Credentials::KeyPair {
            access_key: Secret::new(keys.access_key.clone()),
            secret_key: keys.secret_key.clone(),
        },
        trust: Trust::System,
        worker: "demo".into(),
    };
    Ok(Session::login(&endpoint).await?)
}

/// Makes a project and a task in it, and puts the task in a queue; gives the task's id.
async fn make_task(session: &Session, script: Value) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Made {
        id: String,
    }
    let request = json!({"name": PROJECT, "description": ""});
    let project: Made = session
        .call("projects.create", &request, Patience::Start)
        .await?;
    let request = json!({
        "name": TASK, "type": "training", "project": project.id, "script": script,
    });
    let task: Made = session
        .call("tasks.create", &request, Patience::Start)
        .await?;
    let queue: Made = session
        .call("queues.create", &json!({"name": QUEUE}), Patience::Start)
        .await?;
    let request = json!({"task": task.id, "queue": queue.id});
    session
        .call::<Value>("tasks.enqueue", &request, Patience::Start)
        .await?;
    Ok(task.id)
}

/// Runs `execute` to its end, its output going where the demo's goes. A signal to the demo is
/// passed on.
async fn execute(
    task: &str,
    environment: Variables,
    debug: bool,
    stop: &Stop,
) -> anyhow::Result<ExitStatus> {
    let agent = std::env::current_exe().context("cannot tell where this program is")?;
    let mut command = tokio::process::Command::new(&agent);
    command
        .args(["execute", "--id", task, "--require-queue"])
        .args(debug.then_some("--debug"))
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let cannot = || format!("cannot run {}", agent.display());
    let mut child = command.spawn().with_context(cannot)?;
    let cause = tokio::select! {
        ended = child.wait() => return ended.with_context(cannot),
        cause = stop.requested() => cause,
    };
    let StopCause::Signal(number) = cause else {
        return child.wait().await.with_context(cannot);
    };
    let signal = Signal::from_named_raw(number).unwrap_or(Signal::TERM);
    // Not there where it has ended this moment.
    if let Some(child) = child.id().and_then(|id| Pid::from_raw(id.cast_signed())) {
        let _ = kill_process(child, signal);
    }
    match tokio::time::timeout(END_LIMIT, child.wait()).await {
        Ok(ended) => ended.with_context(cannot),
        Err(_) => {
            child.start_kill().with_context(cannot)?;
            child.wait().await.with_context(cannot)
        }
    }
}

/// Whether all is as it has to be; the error says what is not, and what may help.
fn judge(ended: ExitStatus, found: &Findings) -> anyhow::Result<()> {
    if found.status != Status::Completed || !ended.success() {
        let help = match ended.code() {
            Some(code) if code == i32::from(exit::ENVIRONMENT) => format!(
                "It needs Python 3 (on Debian and Ubuntu: python3 and python3-venv) and the package \
                 {} from a package index; PIP_INDEX_URL names another index, HTTPS_PROXY a proxy.",
                sample::PACKAGE
            ),
            _ => "The output above says why; --debug tells more.".to_owned(),
        };
        bail!(
            "the demo failed: its exit code is {} and the task's status {}; 0 and completed are \
             expected.\n{help}",
            in_words(ended),
            found.status
        );
    }
    if let Some(fault) = sample::fault_of(&found.log) {
        bail!("the demo failed: the log on the server is not whole: {fault}");
    }
    Ok(())
}

fn in_words(ended: ExitStatus) -> String {
    match (ended.code(), ended.signal()) {
        (Some(code), _) => code.to_string(),
        (None, Some(signal)) => format!("none: killed by {}", signal_name(signal)),
        (None, None) => "none".into(),
    }
}

fn seconds(milliseconds: i64) -> String {
    let tenths = (milliseconds + 50) / 100;
    format!("{}.{} s", tenths / 10, tenths % 10)
}

/// A heading and rows with their values in one column.
fn section(title: &str, rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = format!("\n== {title}\n\n");
    for (label, value) in rows {
        for (number, line) in value.lines().enumerate() {
            let label = if number == 0 { label } else { "" };
            text.push_str(&format!("  {label:width$}  {line}\n"));
        }
    }
    text
}

/// Nobody reading is no reason to end.
fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_in_one_column() {
        let rows = [("a", "one\ntwo".to_owned()), ("long", "three".to_owned())];
        assert_eq!(
            section("Title", &rows),
            "\n== Title\n\n  a     one\n        two\n  long  three\n"
        );
    }

    #[test]
    fn times_are_rounded_to_tenths() {
        for (milliseconds, shown) in [
            (0, "0.0 s"),
            (949, "0.9 s"),
            (950, "1.0 s"),
            (12_345, "12.3 s"),
        ] {
            assert_eq!(seconds(milliseconds), shown);
        }
    }
}
