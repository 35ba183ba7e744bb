//! Of several ranks, all run the commit that the first one has found, whatever becomes of the branch in
//! between.

use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::batch::is_of_this_start;
use super::run::Run;
use super::runtime::{COMMIT, said};
use super::scheduler::Claimant;
use crate::api::{self, tasks};
use crate::task::Script;

/// How long the first rank may take for its code, at least: it may have to clone all of it.
const LIMIT: Duration = Duration::from_secs(3600);

/// After the first time.
const FIRST_LOOK: Duration = Duration::from_secs(5);
const LAST_LOOKS: Duration = Duration::from_secs(300);
/// Where the server is away.
const AGAIN: Duration = Duration::from_secs(2);

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

/// Tells the other ranks which commit the first one runs: beside the run, until the server has it and as
/// long as others may wait for it. A rank that has read the runtime before may write it after, without the
/// commit, so it is looked at again, ever more seldom.
pub(super) fn tell(run: &Run, script: &Script, commit: Option<&str>) {
    let commit = commit.filter(|_| run.settings.rank == 0 && is_open(run, script));
    let (Some(commit), Some(claimant)) = (commit, run.several.clone()) else {
        return;
    };
    let commit = commit.to_owned();
    let (runtime, console) = (run.runtime.clone(), run.console.clone());
    let stop = run.stop.token().clone();
    let limit = run.settings.wait.max(LIMIT);
    let telling = async move {
        let begin = Instant::now();
        let mut pause = FIRST_LOOK;
        let mut is_said = false;
        while begin.elapsed() < limit {
            let told = runtime.change(|all| lay_down(all, &claimant, &commit));
            match told.await {
                Ok(_) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LAST_LOOKS);
                }
                Err(error) => {
                    if !is_said {
                        is_said = true;
                        console.say(format!(
                            "Note: the other ranks are not told yet which commit this one runs: {error}"
                        ));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    };
    tokio::spawn(async move { stop.run_until_cancelled(telling).await });
}

/// Whether the commit has to be written: it is not there, and the task is this start's still.
fn lay_down(all: &mut Map<String, Value>, claimant: &Claimant, commit: &str) -> bool {
    let is_missing = is_of_this_start(all, claimant) && said(all, COMMIT) != Some(commit);
    if is_missing {
        all.insert(COMMIT.into(), commit.into());
    }
    is_missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::execute::runtime::{CLAIMANT, ROUND};

    #[test]
    fn the_commit_is_laid_down_again_where_another_has_undone_it() {
        let mine = Claimant {
            id: "job 7".into(),
            round: 1,
            step: None,
        };
        for (holder, round, there, is_written) in [
            ("job 7", "1", "", true),
            ("job 7", "1", "abc", false),
            // Of an earlier start.
            ("job 7", "1", "old", true),
            // Another start's by now.
            ("job 7", "2", "", false),
            ("job 8", "1", "", false),
        ] {
            let runtime = [(CLAIMANT, holder), (ROUND, round), (COMMIT, there)];
            let runtime = runtime.map(|(key, value)| (key.to_owned(), value.into()));
            let mut runtime = Map::from_iter(runtime);
            assert_eq!(
                lay_down(&mut runtime, &mine, "abc"),
                is_written,
                "{runtime:?}"
            );
            let expected = if is_written { "abc" } else { there };
            assert_eq!(runtime[COMMIT], expected);
        }
    }
}
