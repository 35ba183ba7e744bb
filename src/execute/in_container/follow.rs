//! A container that runs: its output into the journal, stop requests to it, and how it ended.

use std::sync::Arc;
use std::time::Duration;

use super::super::container_plan::Plan;
use super::super::follow;
use super::super::inside::Order;
use super::super::outcome::{Outcome, Stage, StopCause};
use super::super::report::Report;
use super::super::run::Run;
use super::super::timeline::Phase;
use crate::container::archive;
use crate::container::error::ContainerError;
use crate::container::handover;
use crate::container::lifecycle::{Attached, Container, Ended, Input};
use crate::process::signal;

/// How much longer than the script's own grace the inner agent may take to end.
pub(in super::super) const INNER_GRACE: Duration = Duration::from_secs(10);
/// The rest of the output, once the container has ended.
const REST_OF_OUTPUT: Duration = Duration::from_secs(10);

/// Follows the container to its end; says why it was stopped, if it was.
pub(super) async fn follow_to_the_end(
    run: &Run,
    container: &Container,
    attached: Attached,
) -> Result<(Ended, Option<StopCause>), ContainerError> {
    let Attached { output, mut input } = attached;
    let journal = run.journal.clone();
    let mut reading = tokio::spawn(async move { journal.read_from(output).await });
    let stopped = loop {
        tokio::select! {
            ended = container.wait() => break ended.map(|()| None)?,
            cause = run.stop.requested() => {
                stop(run, container, &mut input, &cause).await?;
                break Some(cause);
            }
            // The agent inside passes it on to the script.
            notice = run.stop.notice() => container.signal(&signal::name(notice)).await,
        }
    };
    let read = tokio::time::timeout(REST_OF_OUTPUT, &mut reading).await;
    let trouble = match read {
        Ok(Ok(Ok(()))) => None,
        Ok(Ok(Err(error))) => Some(error.to_string()),
        Ok(Err(panic)) => Some(panic.to_string()),
        Err(_) => {
            reading.abort();
            Some("it does not end".to_owned())
        }
    };
    if let Some(trouble) = trouble {
        run.console.say(format!(
            "Note: the container's output could not be read to its end: {trouble}"
        ));
    }
    let ended = container.ended().await?.ok_or(ContainerError::Engine {
        at: "waiting for the container",
        cause: "the engine says that it has ended, and that it runs".into(),
    })?;
    Ok((ended, stopped))
}

/// Asks the inner agent to stop the script as it would be on the host: callback, signal, grace, SIGKILL.
/// One that does not answer, and a second request, end the container at once.
async fn stop(
    run: &Run,
    container: &Container,
    input: &mut Input,
    cause: &StopCause,
) -> Result<(), ContainerError> {
    let settings = &run.settings.stop;
    let callback = match cause {
        StopCause::Server { .. } => settings.callback_limit,
        _ => Duration::ZERO,
    };
    let grace = follow::grace(run).await;
    let order = Order::Stop {
        cause: cause.clone(),
        grace,
    };
    let limit = callback.saturating_add(grace).saturating_add(INNER_GRACE);
    let asked = match serde_json::to_string(&order) {
        Ok(order) => input.line(&order).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = &asked {
        tracing::debug!(%error, "the inner agent does not listen");
    }
    tokio::select! {
        ended = container.wait(), if asked.is_ok() => ended,
        () = tokio::time::sleep(limit), if asked.is_ok() => {
            run.console.say("The container does not end: SIGKILL");
            container.kill().await;
            container.wait().await
        }
        () = run.stop.hurried(), if asked.is_ok() => {
            run.console.say("Asked to stop a second time: SIGKILL at once");
            container.kill().await;
            container.wait().await
        }
        else => {
            container.kill().await;
            container.wait().await
        }
    }
}

/// How the run ended, in the inner agent's own words.
pub(in super::super) fn reported(run: &Run, document: &[u8]) -> Result<Outcome, ContainerError> {
    let report: Report =
        serde_json::from_slice(document).map_err(|error| ContainerError::Engine {
            at: "reading how the run ended",
            cause: error.to_string(),
        })?;
    for phase in [
        Phase::CodeReady,
        Phase::EnvironmentReady,
        Phase::ScriptStarted,
        Phase::ScriptEnded,
    ] {
        if let Some(at) = report.times.get(&phase) {
            run.timeline.mark_at(phase, *at);
        }
    }
    Ok(Outcome::Inside(Arc::new(report)))
}

/// How the run ended, by the inner agent's own document where it could write one.
pub(super) async fn outcome(
    run: &Run,
    container: &Container,
    plan: &Plan,
    ended: Ended,
) -> Result<Outcome, ContainerError> {
    let engine = container.engine();
    let get = async |path: &str| archive::get(engine, container.id(), path).await;
    if let Some(document) = get(handover::RESULT).await? {
        return reported(run, &document);
    }
    if let Some(said) = get(handover::UNSUITABLE).await? {
        return Err(ContainerError::ImageUnsuitable {
            image: plan.image.clone(),
            cause: handover::why_unsuitable(&String::from_utf8_lossy(&said)),
        });
    }
    if ended.out_of_memory {
        return Err(ContainerError::OutOfMemory);
    }
    Ok(Outcome::Failed {
        stage: Stage::Agent,
        cause: format!(
            "the container was ended from outside (exit code {}): nobody could say how the script ended",
            ended.exit_code
        ),
    })
}
