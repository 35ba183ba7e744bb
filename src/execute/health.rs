//! `agent.gpu_health_check`, before the task is taken: what is refused stays where it is, and
//! another machine can take it.

use super::monitoring::MonitorSettings;
use super::not_run::NotRun;
use super::stop::Stop;
use super::take::interrupted;
use crate::console::Console;
use crate::monitor::gpu::health::{self, Check};

/// Says what is wrong with the GPUs that the job may see; refuses if it is to.
pub(super) async fn check(
    settings: &MonitorSettings,
    stop: &Stop,
    console: &Console,
) -> Result<(), NotRun> {
    if settings.health_check == Check::Off {
        return Ok(());
    }
    let found = tokio::select! {
        found = health::check(&settings.gpus, &settings.asked, health::PATIENCE) => found,
        cause = stop.requested() => return Err(interrupted(&cause)),
    };
    match settings.health_check {
        Check::Refuse if !found.is_empty() => Err(NotRun::Unfit(found)),
        _ => {
            for finding in found {
                console.say(format!("Warning: {finding}"));
            }
            Ok(())
        }
    }
}
