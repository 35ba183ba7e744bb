//! Of several ranks, all run the commit that the first one has found, whatever becomes of the branch in
//! between.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::is_of_this_start;
use super::run::Run;
use super::runtime::{COMMIT, said};
use crate::api::{self, tasks};
use crate::task::Script;

/// How long the first rank may take for its code, at least: it may have to clone all of it.
const LIMIT: Duration = Duration::from_secs(3600);

/// Why the first rank's commit is not to be had.
pub(super) enum Missing {
    Stopped,
    Silent { waited: Duration },
}

/// Whether the ranks have something to agree on: the code is a repository's, and what is named there can
/// move.
fn is_open(run: &Run, script: &Script) -> bool {
    let version = script.version_num.trim();
    let is_commit = version.len() == 40 && version.bytes().all(|byte| byte.is_ascii_hexdigit());
    run.several.is_some()
        && !script.repository.trim().is_empty()
        && !is_commit
        && run.settings.git.code_dir.is_none()
        && run.settings.python.standalone.is_none()
}

/// `script` as this rank is to run it: with the first one's commit, as soon as that is known.
pub(super) async fn agreed(
    run: &Run,
    script: Script,
    stop: &CancellationToken,
) -> Result<Script, Missing> {
    let Some(claimant) = run.several.as_ref().filter(|_| run.settings.rank > 0) else {
        return Ok(script);
    };
    if !is_open(run, &script) {
        return Ok(script);
    }
    let limit = run.settings.wait.max(LIMIT);
    let begin = Instant::now();
    let mut pause = Duration::from_millis(500);
    let mut told = false;
    loop {
        match tasks::runtime(&run.session, &run.task.id).await {
            Ok(runtime) => {
                let commit =
                    said(&runtime, COMMIT).filter(|_| is_of_this_start(&runtime, claimant));
                if let Some(commit) = commit {
                    run.console
                        .say(format!("Rank 0 runs commit {commit}: so does this one"));
                    return Ok(Script {
                        version_num: commit.to_owned(),
                        ..script
                    });
                }
            }
            Err(error) => tracing::debug!(%error, "rank 0's commit"),
        }
        if begin.elapsed() >= limit {
            return Err(Missing::Silent { waited: limit });
        }
        if !told {
            told = true;
            run.console
                .say("Waiting for rank 0 to say which commit it runs");
        }
        // Many wait: not in step, and ever more seldom.
        tokio::select! {
            () = tokio::time::sleep(pause.mul_f64(0.5 + api::random())) => {}
            () = stop.cancelled() => return Err(Missing::Stopped),
        }
        pause = (pause * 3 / 2).min(Duration::from_secs(15));
    }
}

/// Tells the other ranks which commit the first one runs.
pub(super) async fn tell(run: &Run, script: &Script, commit: Option<&str>) {
    let Some(commit) = commit.filter(|_| run.settings.rank == 0 && is_open(run, script)) else {
        return;
    };
    if let Err(error) = run.runtime.add(&[(COMMIT, commit)]).await {
        run.console.say(format!(
            "Note: the other ranks could not be told which commit this one runs: {error}"
        ));
    }
}
